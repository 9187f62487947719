/* link_core_grant: D's half of the core: what was granted, what has landed, and how it ends.
 * Flow:    node's grant and revoke, frames off the cable, P's messages -> [link_core_grant] -> wishes
 * Thread:  one, as link_core.h says; pure.
 * Memory:  the core's carve. */
#include "transfer/link_core_state.h"

#include <string.h>

#include "base/check.h"

/* ---- grants */

/* In time that does not depend on where they differ. */
static bool secret_is_equal(const uint8_t *a, const uint8_t *b)
{
    volatile uint8_t differs = 0;
    for (uint32_t i = 0; i < KV_SECRET_BYTES; i++) { differs |= a[i] ^ b[i]; }
    return differs == 0;
}

static struct core_grant *grant_find(struct link_core *core, kv_xfer_id_t xfer_id)
{
    for (uint32_t i = 0; i < core->config.grants_max; i++) {
        struct core_grant *grant = &core->grants[i];
        if (grant->state != GS_FREE && kv_xfer_id_equal(grant->xfer_id, xfer_id)) { return grant; }
    }
    return NULL;
}

static uint32_t grant_slot(const struct link_core *core, const struct core_grant *grant)
{
    return (uint32_t)(grant - core->grants);
}
static void grant_free(struct core_grant *grant)
{
    uint64_t *taken = grant->taken;
    memset(grant, 0, sizeof *grant); /* the secret goes with it */
    grant->taken = taken;
}

void link_core_grant_finish(struct link_core *core, struct core_grant *grant, uint64_t now_ns, struct link_wishes *ret)
{
    bool revoked = !failed(grant->end_status);
    bool link_lives = grant->link != LINK_NONE && core->links[grant->link].state != LS_FREE;
    if (grant->end_answer_due && link_lives) {
        link_core_wish_answer(core, ret, grant->link, LINK_ABORT_ACK, grant->xfer_id, grant->grant_epoch,
                              STATUS_OK, now_ns);
    }
    struct link_wish *event = link_core_wish_event(ret, revoked || grant->end_told ? KV_EVENT_FENCED : KV_EVENT_FAILED,
                                                   grant_slot(core, grant), grant->xfer_id, grant->grant_epoch);
    event->link = grant->link;
    event->status = grant->end_status;
    event->text = grant->end_text;
    event->fenced = true;
    core->stats.quarantined--;
    core->stats.blocks_quarantined -= grant->block_count;
    if (revoked) {
        core->stats.revoked++;
        core->stats.blocks_revoked += grant->block_count;
    } else {
        core->stats.failed++;
        core->stats.blocks_failed += grant->block_count;
    }
    grant_free(grant);
}

/* Every way a grant ends without landing comes through here. */
void link_core_grant_quarantine(struct link_core *core, struct core_grant *grant, status_t status, const char *text,
                                bool tell_peer, uint64_t now_ns, struct link_wishes *ret)
{
    bool was_begun = grant->state != GS_GRANTED;
    bool link_lives = grant->link != LINK_NONE && core->links[grant->link].state == LS_READY;
    if (was_begun && tell_peer && link_lives) {
        link_core_wish_answer(core, ret, grant->link, LINK_ABORT, grant->xfer_id, grant->grant_epoch,
                              failed(status) ? status : STATUS(ST_ABORTED, SCOPE_REQUEST), now_ns);
    }
    grant->state = GS_QUARANTINE;
    grant->end_status = status;
    grant->end_text = text;
    grant->deadline_ns = now_ns + 2 * grant->lease_ns;
    core->stats.live--;
    core->stats.blocks_live -= grant->block_count;
    core->stats.quarantined++;
    core->stats.blocks_quarantined += grant->block_count;
    if (!was_begun || !link_lives) { /* nobody was ever told where it is, or the cable is closed */
        link_core_grant_finish(core, grant, now_ns, ret);
        return;
    }
    struct link_wish *revoke = link_core_wish(ret, LINK_WISH_CABLE_REVOKE, grant->link);
    revoke->slot = grant_slot(core, grant);
    revoke->xfer_id = grant->xfer_id;
    revoke->grant_epoch = grant->grant_epoch;
}

static void grant_land_if_complete(struct link_core *core, struct core_grant *grant, uint64_t now_ns,
                                   struct link_wishes *ret)
{
    if (grant->state != GS_COMMITTED || grant->landed != link_core_grant_slices(core, grant)) { return; }
    link_core_wish_answer(core, ret, grant->link, LINK_ACK, grant->xfer_id, grant->grant_epoch, STATUS_OK, now_ns);
    link_core_wish_event(ret, KV_EVENT_LANDED, grant_slot(core, grant), grant->xfer_id, grant->grant_epoch);
    core->stats.live--;
    core->stats.blocks_live -= grant->block_count;
    core->stats.landed++;
    core->stats.blocks_landed += grant->block_count;
    grant_free(grant);
}

status_t link_core_grant(struct link_core *core, uint32_t slot, kv_xfer_id_t xfer_id, uint64_t grant_epoch,
                         const uint8_t secret[KV_SECRET_BYTES], uint32_t block_count, uint64_t lease_ns,
                         uint64_t now_ns)
{
    CHECK(slot < core->config.grants_max);
    struct core_grant *grant = &core->grants[slot];
    CHECK(grant->state == GS_FREE);
    CHECK(block_count >= 1);
    CHECK(block_count <= core->config.grant_blocks_max);
    if (grant_find(core, xfer_id)) { return STATUS(ST_ALREADY_EXISTS, SCOPE_REQUEST); }
    grant->state = GS_GRANTED;
    grant->xfer_id = xfer_id;
    grant->grant_epoch = grant_epoch;
    memcpy(grant->secret, secret, KV_SECRET_BYTES);
    grant->block_count = block_count;
    grant->link = LINK_NONE;
    grant->lease_ns = lease_ns;
    grant->deadline_ns = now_ns + lease_ns;
    grant->end_text = "";
    size_t bits = (size_t)block_count * core->config.layer_count;
    memset(grant->taken, 0, (bits + 63) / 64 * sizeof(uint64_t));
    core->stats.grants++;
    core->stats.live++;
    core->stats.blocks_granted += block_count;
    core->stats.blocks_live += block_count;
    return STATUS_OK;
}

void link_core_revoke(struct link_core *core, kv_xfer_id_t xfer_id, uint64_t now_ns, struct link_wishes *ret)
{
    struct core_grant *grant = grant_find(core, xfer_id);
    if (!grant || grant->state == GS_QUARANTINE) { /* its end is on its way already */
        core->stats.messages_ignored++;
        return;
    }
    link_core_grant_quarantine(core, grant, STATUS_OK, "", true, now_ns, ret);
}

void link_core_fence_answer(struct link_core *core, uint32_t slot, uint64_t grant_epoch, bool fenced, uint64_t now_ns,
                            struct link_wishes *ret)
{
    struct core_grant *grant = &core->grants[slot];
    if (grant->state != GS_QUARANTINE || grant->grant_epoch != grant_epoch) { return; }
    if (fenced) {
        link_core_grant_finish(core, grant, now_ns, ret);
    } else if (failed(grant->end_status) && !grant->end_told) {
        struct link_wish *event = link_core_wish_event(ret, KV_EVENT_FAILED, slot, grant->xfer_id, grant->grant_epoch);
        event->link = grant->link;
        event->status = grant->end_status;
        event->text = grant->end_text;
        grant->end_told = true;
    }
}

bool link_core_grant_is_live(const struct link_core *core, uint32_t slot, uint64_t grant_epoch)
{
    const struct core_grant *grant = &core->grants[slot];
    return grant->grant_epoch == grant_epoch && (grant->state == GS_RECEIVING || grant->state == GS_COMMITTED);
}

void link_core_grant_broke(struct link_core *core, uint32_t slot, uint64_t grant_epoch, status_t status, const char *text,
                           uint64_t now_ns, struct link_wishes *ret)
{
    if (!link_core_grant_is_live(core, slot, grant_epoch)) { return; }
    link_core_grant_quarantine(core, &core->grants[slot], status, text, true, now_ns, ret);
}

bool link_core_frame_accept(struct link_core *core, uint32_t link, const struct kv_frame *frame, uint32_t *ret_slot)
{
    struct core_grant *grant = grant_find(core, frame->xfer_id);
    bool known = grant && (grant->state == GS_RECEIVING || grant->state == GS_COMMITTED) &&
                 grant->grant_epoch == frame->grant_epoch && grant->link == link;
    bool inside = known && frame->layer < core->config.layer_count && frame->count >= 1 &&
                  frame->first < grant->block_count && frame->count <= grant->block_count - frame->first;
    if (!inside) {
        core->stats.slices_refused += frame->count;
        return false;
    }
    uint64_t bit0 = (uint64_t)frame->layer * grant->block_count + frame->first;
    for (uint64_t bit = bit0; bit < bit0 + frame->count; bit++) {
        if (grant->taken[bit / 64] >> (bit % 64) & 1u) { /* all or none: a twice-sent slice lands nowhere */
            core->stats.slices_refused += frame->count;
            return false;
        }
    }
    for (uint64_t bit = bit0; bit < bit0 + frame->count; bit++) { grant->taken[bit / 64] |= UINT64_C(1) << (bit % 64); }
    *ret_slot = grant_slot(core, grant);
    return true;
}

void link_core_frame_landed(struct link_core *core, uint32_t slot, uint64_t grant_epoch, const struct kv_frame *frame,
                            bool crc_ok, uint64_t now_ns, struct link_wishes *ret)
{
    if (!link_core_grant_is_live(core, slot, grant_epoch)) { return; }
    struct core_grant *grant = &core->grants[slot];
    if (!crc_ok) {
        core->stats.crc_errors++;
        link_core_grant_quarantine(core, grant, STATUS(ST_DATA_LOSS, SCOPE_REQUEST),
                                   "a slice's CRC32C differs from the one its sender made", true, now_ns, ret);
        return;
    }
    grant->landed += frame->count;
    core->stats.slices_landed += frame->count;
    core->stats.bytes_landed += frame->count * core->config.slice_bytes;
    grant->deadline_ns = now_ns + (grant->state == GS_COMMITTED ? core->config.stall_ns : grant->lease_ns);
    grant_land_if_complete(core, grant, now_ns, ret);
}

/* ---- messages about a grant */

static void on_begin(struct link_core *core, uint32_t link, const struct link_xfer *xfer, uint64_t now_ns,
                     struct link_wishes *ret)
{
    struct core_grant *grant = grant_find(core, xfer->xfer_id);
    status_t status = STATUS_OK;
    if (!grant || grant->state == GS_QUARANTINE || grant->grant_epoch != xfer->grant_epoch) {
        core->stats.messages_ignored++;
        status = STATUS(ST_NOT_FOUND, SCOPE_REQUEST);
    } else if (!secret_is_equal(grant->secret, xfer->secret)) {
        core->stats.secrets_refused++; /* the grant stays as it was: its true owner may still come */
        status = STATUS(ST_PERMISSION_DENIED, SCOPE_REQUEST);
    } else if (grant->block_count != xfer->block_count) {
        status = STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    } else if (grant->state != GS_GRANTED) {
        core->stats.messages_ignored++;
        if (grant->link == link) { return; } /* a duplicate of one that was answered */
        status = STATUS(ST_ALREADY_EXISTS, SCOPE_REQUEST);
    }
    if (!failed(status)) {
        grant->state = GS_RECEIVING;
        grant->link = link;
        grant->deadline_ns = now_ns + grant->lease_ns;
        struct link_wish *open = link_core_wish(ret, LINK_WISH_CABLE_GRANT, link);
        open->slot = grant_slot(core, grant);
        open->xfer_id = grant->xfer_id;
        open->grant_epoch = grant->grant_epoch;
    }
    link_core_wish_answer(core, ret, link, LINK_BEGIN_ACK, xfer->xfer_id, xfer->grant_epoch, status, now_ns);
}

static void on_commit(struct link_core *core, uint32_t link, const struct link_xfer *xfer, uint64_t now_ns,
                      struct link_wishes *ret)
{
    struct core_grant *grant = grant_find(core, xfer->xfer_id);
    if (!grant || grant->state != GS_RECEIVING || grant->grant_epoch != xfer->grant_epoch || grant->link != link) {
        core->stats.messages_ignored++;
        return;
    }
    bool matches = xfer->layer_count == core->config.layer_count &&
                   xfer->bytes_total == link_core_grant_slices(core, grant) * core->config.slice_bytes;
    for (uint32_t i = 0; matches && i < xfer->layer_count; i++) {
        matches = xfer->layer_slices[i] == grant->block_count;
    }
    if (!matches) {
        link_core_grant_quarantine(core, grant, STATUS(ST_DATA_LOSS, SCOPE_REQUEST),
                                   "the commit's slice counts are not those of the grant", true, now_ns, ret);
        return;
    }
    grant->state = GS_COMMITTED;
    grant->deadline_ns = now_ns + core->config.stall_ns;
    grant_land_if_complete(core, grant, now_ns, ret);
}

static void on_abort_at_grant(struct link_core *core, uint32_t link, const struct link_xfer *xfer, uint64_t now_ns,
                              struct link_wishes *ret)
{
    struct core_grant *grant = grant_find(core, xfer->xfer_id);
    if (!grant || grant->grant_epoch != xfer->grant_epoch || grant->link != link) {
        /* Over or never begun: the peer must learn that we are quiet, or it holds its blocks. */
        core->stats.messages_ignored++;
        link_core_wish_answer(core, ret, link, LINK_ABORT_ACK, xfer->xfer_id, xfer->grant_epoch, STATUS_OK, now_ns);
        return;
    }
    grant->end_answer_due = true;
    if (grant->state == GS_QUARANTINE) { /* both gave up at once; the writer is quiet now */
        link_core_grant_finish(core, grant, now_ns, ret);
        return;
    }
    link_core_grant_quarantine(core, grant, STATUS(ST_ABORTED, SCOPE_REQUEST), "the sender gave up", false, now_ns, ret);
    /* It says so when it is quiet, so this is a fence for a one-sided cable too; the cable still hears
     * of the revoke first, and its answer finds the grant over. */
    if (grant->state == GS_QUARANTINE) { link_core_grant_finish(core, grant, now_ns, ret); }
}

static void on_abort_ack_at_grant(struct link_core *core, uint32_t link, const struct link_xfer *xfer,
                                  uint64_t now_ns, struct link_wishes *ret)
{
    struct core_grant *grant = grant_find(core, xfer->xfer_id);
    if (!grant || grant->state != GS_QUARANTINE || grant->grant_epoch != xfer->grant_epoch || grant->link != link) {
        core->stats.messages_ignored++; /* usual where D places: the fence was quicker */
        return;
    }
    link_core_grant_finish(core, grant, now_ns, ret);
}

void link_core_grant_message(struct link_core *core, uint32_t link, const struct link_msg *msg, uint64_t now_ns,
                             struct link_wishes *ret)
{
    switch (msg->kind) {
    case LINK_BEGIN: on_begin(core, link, &msg->body.xfer, now_ns, ret); break;
    case LINK_COMMIT: on_commit(core, link, &msg->body.xfer, now_ns, ret); break;
    case LINK_ABORT: on_abort_at_grant(core, link, &msg->body.xfer, now_ns, ret); break;
    default: on_abort_ack_at_grant(core, link, &msg->body.xfer, now_ns, ret); break;
    }
}
