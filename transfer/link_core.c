#include "transfer/link_core.h"

#include <string.h>

#include "base/check.h"

enum link_state { LS_FREE, LS_WAIT_HELLO, LS_WAIT_CABLE, LS_READY };

struct core_link {
    enum link_state state;
    bool is_sender; /* we are P on it */
    bool is_suspect;
    char address[KV_ADDRESS_CHARS_MAX + 1]; /* P: as dialled */
    char peer_id[KV_NODE_ID_CHARS_MAX + 1];
    uint64_t peer_epoch;
    uint64_t since_ns, heard_ns, sent_ns;
};

enum grant_state {
    GS_FREE,
    GS_GRANTED,    /* waits for a begin */
    GS_RECEIVING,  /* waits for slices and the commit */
    GS_COMMITTED,  /* waits for the last slices */
    GS_QUARANTINE, /* over, but the cable has not said that nothing can land any more */
};

struct core_grant {
    enum grant_state state;
    kv_xfer_id_t xfer_id;
    uint64_t grant_epoch;
    uint8_t secret[KV_SECRET_BYTES];
    uint32_t block_count;
    uint32_t link;
    uint64_t lease_ns;
    uint64_t deadline_ns;
    uint64_t landed; /* slices, checked */
    uint64_t *taken; /* [layer][block] bits: accepted by frame_accept */
    /* QUARANTINE: why; code OK means that we revoked it ourselves. */
    status_t end_status;
    const char *end_text;
    bool end_told;       /* FAILED without a fence was sent */
    bool end_answer_due; /* the peer waits for our ABORT_ACK */
};

enum send_state {
    SS_FREE,
    SS_WAIT_LINK, /* waits for the link to be ready */
    SS_BEGUN,     /* waits for begin_ack */
    SS_STREAMING, /* waits for the node's commit */
    SS_COMMITTED, /* waits for the ack */
    SS_ABORTING,  /* waits for abort_ack */
};

struct core_send {
    enum send_state state;
    kv_xfer_id_t xfer_id;
    uint64_t grant_epoch;
    uint32_t link;
    bool commit_asked;
    uint64_t deadline_ns;
    status_t end_status; /* ABORTING: why */
    const char *end_text;
};

/* What we remember of a peer that failed: until when nobody dials it. */
struct suspicion {
    char node_id[KV_NODE_ID_CHARS_MAX + 1];
    uint64_t boot_epoch;
    uint64_t until_ns, span_ns; /* span 0: unused */
};

struct link_core {
    struct link_core_config config;
    struct core_link *links;
    struct core_grant *grants;
    struct core_send *sends;
    struct suspicion *suspicions; /* [links_max] */
    size_t grant_words;           /* of one bitmap */
    uint64_t ticked_ns;
    struct kv_endpoint_stats stats;
};

/* ---- memory */

static size_t words_of_grant(const struct link_core_config *config)
{
    return ((size_t)config->layer_count * config->grant_blocks_max + 63) / 64;
}

static size_t align16(size_t bytes) { return (bytes + 15) & ~(size_t)15; }

size_t link_core_bytes(const struct link_core_config *config)
{
    return align16(sizeof(struct link_core)) + align16(config->links_max * sizeof(struct core_link)) +
           align16(config->grants_max * sizeof(struct core_grant)) +
           align16(config->sends_max * sizeof(struct core_send)) +
           align16(config->links_max * sizeof(struct suspicion)) +
           align16(config->grants_max * words_of_grant(config) * sizeof(uint64_t));
}

static void *carve(uint8_t **at, size_t bytes)
{
    void *piece = *at;
    *at += align16(bytes);
    return piece;
}

struct link_core *link_core_init(void *memory, const struct link_core_config *config)
{
    uint8_t *at = memory;
    struct link_core *core = carve(&at, sizeof *core);
    core->config = *config;
    core->grant_words = words_of_grant(config);
    core->links = carve(&at, config->links_max * sizeof *core->links);
    core->grants = carve(&at, config->grants_max * sizeof *core->grants);
    core->sends = carve(&at, config->sends_max * sizeof *core->sends);
    core->suspicions = carve(&at, config->links_max * sizeof *core->suspicions);
    uint64_t *bits = carve(&at, config->grants_max * core->grant_words * sizeof *bits);
    for (uint32_t i = 0; i < config->grants_max; i++) { core->grants[i].taken = bits + i * core->grant_words; }
    return core;
}

/* ---- wishes */

static struct link_wish *wish(struct link_wishes *ret, enum link_wish_kind kind, uint32_t link)
{
    CHECK(ret->count < ret->count_max);
    struct link_wish *made = &ret->wishes[ret->count++];
    memset(made, 0, sizeof *made);
    made->kind = kind;
    made->link = link;
    made->slot = LINK_NONE;
    made->text = "";
    return made;
}

static struct link_wish *wish_send(struct link_core *core, struct link_wishes *ret, uint32_t link,
                                   enum link_msg_kind kind, uint64_t now_ns)
{
    struct link_wish *made = wish(ret, LINK_WISH_SEND, link);
    made->msg_kind = kind;
    core->links[link].sent_ns = now_ns;
    return made;
}

static void wish_answer(struct link_core *core, struct link_wishes *ret, uint32_t link, enum link_msg_kind kind,
                        kv_xfer_id_t xfer_id, uint64_t grant_epoch, status_t status, uint64_t now_ns)
{
    struct link_wish *made = wish_send(core, ret, link, kind, now_ns);
    made->xfer_id = xfer_id;
    made->grant_epoch = grant_epoch;
    made->status = status;
}

static struct link_wish *wish_event(struct link_wishes *ret, enum kv_event_kind event, uint32_t slot,
                                    kv_xfer_id_t xfer_id, uint64_t grant_epoch)
{
    struct link_wish *made = wish(ret, LINK_WISH_EVENT, LINK_NONE);
    made->event = event;
    made->slot = slot;
    made->xfer_id = xfer_id;
    made->grant_epoch = grant_epoch;
    return made;
}

/* ---- suspicion */

static struct suspicion *suspicion_find(struct link_core *core, const char *node_id, uint64_t boot_epoch)
{
    for (uint32_t i = 0; i < core->config.links_max; i++) {
        struct suspicion *seen = &core->suspicions[i];
        if (seen->span_ns && seen->boot_epoch == boot_epoch && strcmp(seen->node_id, node_id) == 0) { return seen; }
    }
    return NULL;
}

/* The next dial after the span is the probe; it doubles the span if it fails, and forgets the
 * matter if it succeeds. A restarted node has another epoch, so it starts without suspicion. */
static void suspicion_add(struct link_core *core, const char *node_id, uint64_t boot_epoch, uint64_t now_ns)
{
    struct suspicion *seen = suspicion_find(core, node_id, boot_epoch);
    if (!seen) {
        seen = &core->suspicions[0]; /* take the one that ends first */
        for (uint32_t i = 1; i < core->config.links_max; i++) {
            if (core->suspicions[i].until_ns < seen->until_ns) { seen = &core->suspicions[i]; }
        }
        memset(seen, 0, sizeof *seen);
        memcpy(seen->node_id, node_id, sizeof seen->node_id);
        seen->boot_epoch = boot_epoch;
    }
    seen->span_ns = seen->span_ns ? seen->span_ns * 2 : core->config.suspicion_min_ns;
    if (seen->span_ns > core->config.suspicion_max_ns) { seen->span_ns = core->config.suspicion_max_ns; }
    seen->until_ns = now_ns + seen->span_ns;
    core->stats.links_suspected++;
}

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

static uint64_t grant_slices(const struct link_core *core, const struct core_grant *grant)
{
    return (uint64_t)grant->block_count * core->config.layer_count;
}

static void grant_free(struct core_grant *grant)
{
    uint64_t *taken = grant->taken;
    memset(grant, 0, sizeof *grant); /* the secret goes with it */
    grant->taken = taken;
}

static void grant_finish(struct link_core *core, struct core_grant *grant, uint64_t now_ns, struct link_wishes *ret)
{
    bool revoked = !failed(grant->end_status);
    bool link_lives = grant->link != LINK_NONE && core->links[grant->link].state != LS_FREE;
    if (grant->end_answer_due && link_lives) {
        wish_answer(core, ret, grant->link, LINK_ABORT_ACK, grant->xfer_id, grant->grant_epoch, STATUS_OK, now_ns);
    }
    struct link_wish *event = wish_event(ret, revoked || grant->end_told ? KV_EVENT_FENCED : KV_EVENT_FAILED,
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
static void grant_quarantine(struct link_core *core, struct core_grant *grant, status_t status, const char *text,
                             bool tell_peer, uint64_t now_ns, struct link_wishes *ret)
{
    bool was_begun = grant->state != GS_GRANTED;
    bool link_lives = grant->link != LINK_NONE && core->links[grant->link].state == LS_READY;
    if (was_begun && tell_peer && link_lives) {
        wish_answer(core, ret, grant->link, LINK_ABORT, grant->xfer_id, grant->grant_epoch,
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
        grant_finish(core, grant, now_ns, ret);
        return;
    }
    struct link_wish *revoke = wish(ret, LINK_WISH_CABLE_REVOKE, grant->link);
    revoke->slot = grant_slot(core, grant);
    revoke->xfer_id = grant->xfer_id;
    revoke->grant_epoch = grant->grant_epoch;
}

static void grant_land_if_complete(struct link_core *core, struct core_grant *grant, uint64_t now_ns,
                                   struct link_wishes *ret)
{
    if (grant->state != GS_COMMITTED || grant->landed != grant_slices(core, grant)) { return; }
    wish_answer(core, ret, grant->link, LINK_ACK, grant->xfer_id, grant->grant_epoch, STATUS_OK, now_ns);
    wish_event(ret, KV_EVENT_LANDED, grant_slot(core, grant), grant->xfer_id, grant->grant_epoch);
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
    grant_quarantine(core, grant, STATUS_OK, "", true, now_ns, ret);
}

void link_core_fence_answer(struct link_core *core, uint32_t slot, uint64_t grant_epoch, bool fenced, uint64_t now_ns,
                            struct link_wishes *ret)
{
    struct core_grant *grant = &core->grants[slot];
    if (grant->state != GS_QUARANTINE || grant->grant_epoch != grant_epoch) { return; }
    if (fenced) {
        grant_finish(core, grant, now_ns, ret);
    } else if (failed(grant->end_status) && !grant->end_told) {
        struct link_wish *event = wish_event(ret, KV_EVENT_FAILED, slot, grant->xfer_id, grant->grant_epoch);
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
        grant_quarantine(core, grant, STATUS(ST_DATA_LOSS, SCOPE_REQUEST),
                         "a slice's CRC32C differs from the one its sender made", true, now_ns, ret);
        return;
    }
    grant->landed += frame->count;
    core->stats.slices_landed += frame->count;
    core->stats.bytes_landed += frame->count * core->config.slice_bytes;
    grant->deadline_ns = now_ns + (grant->state == GS_COMMITTED ? core->config.stall_ns : grant->lease_ns);
    grant_land_if_complete(core, grant, now_ns, ret);
}

/* ---- sends */

static uint32_t send_slot(const struct link_core *core, const struct core_send *send)
{
    return (uint32_t)(send - core->sends);
}

static void send_finish(struct link_core *core, struct core_send *send, enum kv_event_kind event, status_t status,
                        const char *text, struct link_wishes *ret)
{
    uint32_t slot = send_slot(core, send);
    if (event == KV_EVENT_SEND_FAILED) {
        struct link_wish *drop = wish(ret, LINK_WISH_DROP, send->link);
        drop->slot = slot;
    }
    struct link_wish *made = wish_event(ret, event, slot, send->xfer_id, send->grant_epoch);
    made->link = send->link;
    made->status = status;
    made->text = text;
    if (event == KV_EVENT_ACKED) {
        core->stats.acked++;
    } else {
        core->stats.send_failed++;
    }
    core->stats.sends_live--;
    memset(send, 0, sizeof *send);
}

static void send_do_begin(struct link_core *core, struct core_send *send, uint64_t now_ns, struct link_wishes *ret)
{
    struct link_wish *begin = wish_send(core, ret, send->link, LINK_BEGIN, now_ns);
    begin->slot = send_slot(core, send);
    begin->xfer_id = send->xfer_id;
    begin->grant_epoch = send->grant_epoch;
    send->state = SS_BEGUN;
    send->deadline_ns = now_ns + core->config.stall_ns;
}

static void send_do_commit(struct link_core *core, struct core_send *send, uint64_t now_ns, struct link_wishes *ret)
{
    struct link_wish *commit = wish_send(core, ret, send->link, LINK_COMMIT, now_ns);
    commit->slot = send_slot(core, send);
    commit->xfer_id = send->xfer_id;
    commit->grant_epoch = send->grant_epoch;
    send->state = SS_COMMITTED;
    send->deadline_ns = now_ns + 2 * core->config.stall_ns; /* D, which knows more, gives up first */
}

uint32_t link_core_send_begin(struct link_core *core, uint32_t slot, const struct kv_ticket *ticket, uint32_t spare_link,
                          uint64_t now_ns, struct link_wishes *ret)
{
    CHECK(slot < core->config.sends_max);
    struct core_send *send = &core->sends[slot];
    CHECK(send->state == SS_FREE);
    memset(send, 0, sizeof *send);
    send->state = SS_WAIT_LINK;
    send->xfer_id = ticket->xfer_id;
    send->grant_epoch = ticket->grant_epoch;
    send->link = LINK_NONE;
    core->stats.sends++;
    core->stats.sends_live++;
    for (uint32_t i = 0; i < core->config.links_max; i++) {
        struct core_link *link = &core->links[i];
        if (link->state == LS_FREE || !link->is_sender || link->peer_epoch != ticket->boot_epoch ||
            strcmp(link->peer_id, ticket->node_id) != 0 || strcmp(link->address, ticket->link_address) != 0) {
            continue;
        }
        if (link->is_suspect) {
            send_finish(core, send, KV_EVENT_SEND_FAILED, STATUS(ST_UNAVAILABLE, SCOPE_PEER),
                        "the peer has been silent; nothing new is sent to it until it is heard", ret);
            return LINK_NONE;
        }
        send->link = i;
        if (link->state == LS_READY) { send_do_begin(core, send, now_ns, ret); }
        return i;
    }
    const struct suspicion *seen = suspicion_find(core, ticket->node_id, ticket->boot_epoch);
    if (seen && now_ns < seen->until_ns) {
        send_finish(core, send, KV_EVENT_SEND_FAILED, STATUS(ST_UNAVAILABLE, SCOPE_PEER),
                    "the last link to the peer broke a moment ago; it is tried again shortly", ret);
        return LINK_NONE;
    }
    if (spare_link == LINK_NONE) {
        send_finish(core, send, KV_EVENT_SEND_FAILED, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST),
                    "no link is free: raise links_max", ret);
        return LINK_NONE;
    }
    struct core_link *link = &core->links[spare_link];
    CHECK(link->state == LS_FREE);
    memset(link, 0, sizeof *link);
    link->state = LS_WAIT_HELLO;
    link->is_sender = true;
    memcpy(link->address, ticket->link_address, sizeof link->address);
    memcpy(link->peer_id, ticket->node_id, sizeof link->peer_id);
    link->peer_epoch = ticket->boot_epoch;
    link->since_ns = link->heard_ns = link->sent_ns = now_ns;
    send->link = spare_link;
    struct link_wish *dial = wish(ret, LINK_WISH_DIAL, spare_link);
    dial->address = link->address;
    wish_send(core, ret, spare_link, LINK_HELLO, now_ns);
    return spare_link;
}

void link_core_commit(struct link_core *core, uint32_t slot, uint64_t now_ns, struct link_wishes *ret)
{
    struct core_send *send = &core->sends[slot];
    if (send->state == SS_FREE || send->state == SS_ABORTING) { return; }
    send->commit_asked = true;
    if (send->state == SS_STREAMING) { send_do_commit(core, send, now_ns, ret); }
}

/* The source blocks stay held until D has said that it stopped: with shm it is D that reads
 * them. */
static void send_give_up(struct link_core *core, struct core_send *send, status_t status, const char *text,
                         uint64_t now_ns, struct link_wishes *ret)
{
    if (send->state == SS_WAIT_LINK) { /* D has never heard of it; its lease ends the grant */
        send_finish(core, send, KV_EVENT_SEND_FAILED, status, text, ret);
        return;
    }
    struct link_wish *drop = wish(ret, LINK_WISH_DROP, send->link);
    drop->slot = send_slot(core, send);
    wish_answer(core, ret, send->link, LINK_ABORT, send->xfer_id, send->grant_epoch, status, now_ns);
    send->state = SS_ABORTING;
    send->end_status = status;
    send->end_text = text;
    send->deadline_ns = now_ns + core->config.stall_ns;
}

void link_core_abort(struct link_core *core, uint32_t slot, uint64_t now_ns, struct link_wishes *ret)
{
    struct core_send *send = &core->sends[slot];
    if (send->state == SS_FREE || send->state == SS_ABORTING) { return; }
    send_give_up(core, send, STATUS(ST_ABORTED, SCOPE_REQUEST), "aborted here", now_ns, ret);
}

void link_core_send_progress(struct link_core *core, uint32_t slot, uint64_t now_ns)
{
    struct core_send *send = &core->sends[slot];
    if (send->state == SS_COMMITTED) { send->deadline_ns = now_ns + 2 * core->config.stall_ns; }
}

/* ---- links */

static void link_close(struct link_core *core, uint32_t link_slot, status_t status, const char *text, bool suspicious,
                       uint64_t now_ns, struct link_wishes *ret)
{
    struct core_link *link = &core->links[link_slot];
    if (link->state == LS_FREE) { return; }
    if (link->is_sender && suspicious) { suspicion_add(core, link->peer_id, link->peer_epoch, now_ns); }
    core->stats.links_lost++;
    link->state = LS_FREE;
    /* First the fence, then the news: when the node hears FAILED, nothing can land any more. */
    wish(ret, LINK_WISH_CLOSE_LINK, link_slot);
    for (uint32_t i = 0; i < core->config.grants_max; i++) {
        struct core_grant *grant = &core->grants[i];
        if (grant->state == GS_FREE || grant->link != link_slot) { continue; }
        if (grant->state == GS_QUARANTINE) {
            grant_finish(core, grant, now_ns, ret);
        } else {
            grant_quarantine(core, grant, status, text, false, now_ns, ret);
        }
    }
    for (uint32_t i = 0; i < core->config.sends_max; i++) {
        struct core_send *send = &core->sends[i];
        if (send->state == SS_FREE || send->link != link_slot) { continue; }
        bool was_ours = send->state == SS_ABORTING;
        send_finish(core, send, KV_EVENT_SEND_FAILED, was_ours ? send->end_status : status,
                    was_ours ? send->end_text : text, ret);
    }
    memset(link, 0, sizeof *link);
}

void link_core_link_lost(struct link_core *core, uint32_t link, status_t status, const char *text, uint64_t now_ns,
                         struct link_wishes *ret)
{
    link_close(core, link, status, text, true, now_ns, ret);
}

void link_core_accepted(struct link_core *core, uint32_t link_slot, uint64_t now_ns)
{
    struct core_link *link = &core->links[link_slot];
    CHECK(link->state == LS_FREE);
    memset(link, 0, sizeof *link);
    link->state = LS_WAIT_HELLO;
    link->since_ns = link->heard_ns = link->sent_ns = now_ns;
}

void link_core_cable_up(struct link_core *core, uint32_t link_slot, uint64_t now_ns, struct link_wishes *ret)
{
    struct core_link *link = &core->links[link_slot];
    if (link->state != LS_WAIT_CABLE) { return; }
    link->state = LS_READY;
    core->stats.links_up++;
    if (!link->is_sender) { return; }
    struct suspicion *seen = suspicion_find(core, link->peer_id, link->peer_epoch);
    if (seen) { memset(seen, 0, sizeof *seen); }
    for (uint32_t i = 0; i < core->config.sends_max; i++) {
        struct core_send *send = &core->sends[i];
        if (send->state == SS_WAIT_LINK && send->link == link_slot) { send_do_begin(core, send, now_ns, ret); }
    }
}

void link_core_heard(struct link_core *core, uint32_t link_slot, uint64_t now_ns)
{
    struct core_link *link = &core->links[link_slot];
    link->heard_ns = now_ns;
    link->is_suspect = false;
}

bool link_core_link_is_used(const struct link_core *core, uint32_t link) { return core->links[link].state != LS_FREE; }

/* ---- messages */

static void on_hello(struct link_core *core, uint32_t link_slot, const struct link_hello *hello, uint64_t now_ns,
                     struct link_wishes *ret)
{
    struct core_link *link = &core->links[link_slot];
    status_t status = STATUS_OK;
    const char *text = "";
    if (hello->protocol != LINK_PROTOCOL) {
        status = STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER);
        text = "the link protocol versions differ: run the same Baton version on both pools";
    } else if (memcmp(hello->fingerprint, core->config.fingerprint, sizeof hello->fingerprint) != 0) {
        status = STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER);
        text = "the KV layouts differ"; /* the caller, who can read them, adds how */
    } else if (strcmp(hello->expect_node_id, core->config.node_id) != 0 ||
               hello->expect_boot_epoch != core->config.boot_epoch) {
        status = STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER);
        text = "the ticket is of another node or of an earlier start of this one";
    }
    struct link_wish *ack = wish_send(core, ret, link_slot, LINK_HELLO_ACK, now_ns);
    ack->status = status;
    ack->text = text;
    if (failed(status)) {
        core->stats.hellos_refused++;
        link_close(core, link_slot, status, text, false, now_ns, ret);
        return;
    }
    memcpy(link->peer_id, hello->node_id, sizeof link->peer_id);
    link->peer_epoch = hello->boot_epoch;
    link->state = LS_WAIT_CABLE;
    link->since_ns = now_ns;
    /* A process that comes back under its name is a new peer: the old one is over. */
    for (uint32_t i = 0; i < core->config.links_max; i++) {
        const struct core_link *other = &core->links[i];
        if (i == link_slot || other->state == LS_FREE || other->is_sender ||
            strcmp(other->peer_id, link->peer_id) != 0 || other->peer_epoch >= link->peer_epoch) {
            continue;
        }
        link_close(core, i, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the peer was restarted", false, now_ns, ret);
    }
}

static void on_hello_ack(struct link_core *core, uint32_t link_slot, const struct link_hello_ack *ack, uint64_t now_ns,
                         struct link_wishes *ret)
{
    struct core_link *link = &core->links[link_slot];
    if (ack->code != ST_OK) {
        core->stats.hellos_refused++;
        uint8_t code = ack->code <= ST_UNAUTHENTICATED ? (uint8_t)ack->code : (uint8_t)ST_UNKNOWN;
        link_close(core, link_slot, STATUS(code, SCOPE_PEER), "the peer refused the link", false, now_ns, ret);
        return;
    }
    if (strcmp(ack->node_id, link->peer_id) != 0 || ack->boot_epoch != link->peer_epoch) {
        link_close(core, link_slot, STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER),
                   "the ticket is of another node or of an earlier start of this one", false, now_ns, ret);
        return;
    }
    link->state = LS_WAIT_CABLE;
    link->since_ns = now_ns;
    wish(ret, LINK_WISH_CONNECT_CABLE, link_slot);
}

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
        struct link_wish *open = wish(ret, LINK_WISH_CABLE_GRANT, link);
        open->slot = grant_slot(core, grant);
        open->xfer_id = grant->xfer_id;
        open->grant_epoch = grant->grant_epoch;
    }
    wish_answer(core, ret, link, LINK_BEGIN_ACK, xfer->xfer_id, xfer->grant_epoch, status, now_ns);
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
                   xfer->bytes_total == grant_slices(core, grant) * core->config.slice_bytes;
    for (uint32_t i = 0; matches && i < xfer->layer_count; i++) {
        matches = xfer->layer_slices[i] == grant->block_count;
    }
    if (!matches) {
        grant_quarantine(core, grant, STATUS(ST_DATA_LOSS, SCOPE_REQUEST),
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
        wish_answer(core, ret, link, LINK_ABORT_ACK, xfer->xfer_id, xfer->grant_epoch, STATUS_OK, now_ns);
        return;
    }
    grant->end_answer_due = true;
    if (grant->state == GS_QUARANTINE) { /* both gave up at once; the writer is quiet now */
        grant_finish(core, grant, now_ns, ret);
        return;
    }
    grant_quarantine(core, grant, STATUS(ST_ABORTED, SCOPE_REQUEST), "the sender gave up", false, now_ns, ret);
}

static void on_abort_ack_at_grant(struct link_core *core, uint32_t link, const struct link_xfer *xfer,
                                  uint64_t now_ns, struct link_wishes *ret)
{
    struct core_grant *grant = grant_find(core, xfer->xfer_id);
    if (!grant || grant->state != GS_QUARANTINE || grant->grant_epoch != xfer->grant_epoch || grant->link != link) {
        core->stats.messages_ignored++; /* usual where D places: the fence was quicker */
        return;
    }
    grant_finish(core, grant, now_ns, ret);
}

static void on_message_at_sender(struct link_core *core, uint32_t link, const struct link_msg *msg, uint64_t now_ns,
                                 struct link_wishes *ret)
{
    const struct link_xfer *xfer = &msg->body.xfer;
    struct core_send *send = NULL;
    for (uint32_t i = 0; i < core->config.sends_max && !send; i++) {
        struct core_send *each = &core->sends[i];
        if (each->state > SS_WAIT_LINK && each->link == link && each->grant_epoch == xfer->grant_epoch &&
            kv_xfer_id_equal(each->xfer_id, xfer->xfer_id)) {
            send = each;
        }
    }
    if (msg->kind == LINK_ABORT) { /* also for one that is over: D may wait for our word */
        wish_answer(core, ret, link, LINK_ABORT_ACK, xfer->xfer_id, xfer->grant_epoch, STATUS_OK, now_ns);
    }
    uint8_t code = xfer->code <= ST_UNAUTHENTICATED ? (uint8_t)xfer->code : (uint8_t)ST_UNKNOWN;
    if (!send) {
        core->stats.messages_ignored++;
    } else if (msg->kind == LINK_BEGIN_ACK && send->state == SS_BEGUN) {
        if (code != ST_OK) {
            send_finish(core, send, KV_EVENT_SEND_FAILED, STATUS(code, SCOPE_REQUEST), "the peer refused the ticket", ret);
            return;
        }
        send->state = SS_STREAMING;
        struct link_wish *stream = wish(ret, LINK_WISH_STREAM, link);
        stream->slot = send_slot(core, send);
        if (send->commit_asked) { send_do_commit(core, send, now_ns, ret); }
    } else if (msg->kind == LINK_ACK && send->state == SS_COMMITTED) {
        send_finish(core, send, KV_EVENT_ACKED, STATUS_OK, "", ret);
    } else if (msg->kind == LINK_ABORT) {
        bool was_ours = send->state == SS_ABORTING;
        status_t status = was_ours ? send->end_status : STATUS(code == ST_OK ? ST_ABORTED : code, SCOPE_REQUEST);
        send_finish(core, send, KV_EVENT_SEND_FAILED, status, was_ours ? send->end_text : "the receiver gave up", ret);
    } else if (msg->kind == LINK_ABORT_ACK && send->state == SS_ABORTING) {
        send_finish(core, send, KV_EVENT_SEND_FAILED, send->end_status, send->end_text, ret);
    } else {
        core->stats.messages_ignored++;
    }
}

void link_core_message(struct link_core *core, uint32_t link_slot, const struct link_msg *msg, uint64_t now_ns,
                       struct link_wishes *ret)
{
    struct core_link *link = &core->links[link_slot];
    if (link->state == LS_FREE) {
        core->stats.messages_ignored++;
        return;
    }
    link_core_heard(core, link_slot, now_ns);
    if (msg->kind == LINK_HEARTBEAT) { return; }
    if (msg->kind == LINK_HELLO && !link->is_sender && link->state == LS_WAIT_HELLO) {
        on_hello(core, link_slot, &msg->body.hello, now_ns, ret);
        return;
    }
    if (msg->kind == LINK_HELLO_ACK && link->is_sender && link->state == LS_WAIT_HELLO) {
        on_hello_ack(core, link_slot, &msg->body.hello_ack, now_ns, ret);
        return;
    }
    bool is_about_xfer = msg->kind != LINK_HELLO && msg->kind != LINK_HELLO_ACK;
    bool from_sender = msg->kind == LINK_BEGIN || msg->kind == LINK_COMMIT;
    bool from_receiver = msg->kind == LINK_BEGIN_ACK || msg->kind == LINK_ACK;
    if (link->state != LS_READY || !is_about_xfer || (link->is_sender ? from_sender : from_receiver)) {
        link_close(core, link_slot, STATUS(ST_INTERNAL, SCOPE_PEER), "the peer broke the link's order of messages",
                   true, now_ns, ret);
        return;
    }
    if (link->is_sender) {
        on_message_at_sender(core, link_slot, msg, now_ns, ret);
        return;
    }
    switch (msg->kind) {
    case LINK_BEGIN: on_begin(core, link_slot, &msg->body.xfer, now_ns, ret); break;
    case LINK_COMMIT: on_commit(core, link_slot, &msg->body.xfer, now_ns, ret); break;
    case LINK_ABORT: on_abort_at_grant(core, link_slot, &msg->body.xfer, now_ns, ret); break;
    default: on_abort_ack_at_grant(core, link_slot, &msg->body.xfer, now_ns, ret); break;
    }
}

/* ---- time */

void link_core_tick(struct link_core *core, uint64_t now_ns, struct link_wishes *ret)
{
    uint64_t gap_ns = core->ticked_ns ? now_ns - core->ticked_ns : 0;
    core->ticked_ns = now_ns;
    bool we_slept = gap_ns > core->config.suspect_ns;
    for (uint32_t i = 0; i < core->config.links_max; i++) {
        struct core_link *link = &core->links[i];
        if (link->state == LS_FREE) { continue; }
        if (we_slept) {
            link->heard_ns += gap_ns < now_ns - link->heard_ns ? gap_ns : now_ns - link->heard_ns;
            link->since_ns += gap_ns < now_ns - link->since_ns ? gap_ns : now_ns - link->since_ns;
        }
        uint64_t silence_ns = now_ns - link->heard_ns;
        if (link->state != LS_READY) {
            if (now_ns - link->since_ns >= core->config.connect_ns) {
                link_close(core, i, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the link was not ready in time", true, now_ns, ret);
                continue;
            }
        } else if (silence_ns >= core->config.dead_ns) {
            link_close(core, i, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the peer is silent", true, now_ns, ret);
            continue;
        } else if (silence_ns >= core->config.suspect_ns && !link->is_suspect) {
            link->is_suspect = true;
            core->stats.links_suspected++;
        }
        if (link->state == LS_READY && now_ns - link->sent_ns >= core->config.heartbeat_ns) {
            wish_send(core, ret, i, LINK_HEARTBEAT, now_ns);
        }
    }
    for (uint32_t i = 0; i < core->config.grants_max; i++) {
        struct core_grant *grant = &core->grants[i];
        if (grant->state == GS_FREE || now_ns < grant->deadline_ns) { continue; }
        if (grant->state == GS_QUARANTINE) { /* twice the lease without a fence: end it by force */
            core->stats.fences_forced++;
            link_close(core, grant->link, STATUS(ST_UNAVAILABLE, SCOPE_PEER),
                       "the peer did not stop writing in time", true, now_ns, ret);
        } else {
            grant_quarantine(core, grant, STATUS(ST_DEADLINE_EXCEEDED, SCOPE_REQUEST),
                             grant->state == GS_GRANTED ? "nobody came with the ticket in time"
                                                        : "no slice came in time",
                             true, now_ns, ret);
        }
    }
    for (uint32_t i = 0; i < core->config.sends_max; i++) {
        struct core_send *send = &core->sends[i];
        bool waits = send->state == SS_BEGUN || send->state == SS_COMMITTED || send->state == SS_ABORTING;
        if (!waits || now_ns < send->deadline_ns) { continue; }
        if (send->state == SS_ABORTING) { /* it lives, yet does not answer: no peer of ours does that */
            link_close(core, send->link, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the peer does not answer", true, now_ns, ret);
            continue;
        }
        send_give_up(core, send, STATUS(ST_DEADLINE_EXCEEDED, SCOPE_REQUEST), "the receiver did not answer in time",
                     now_ns, ret);
    }
}

const struct kv_endpoint_stats *link_core_stats(const struct link_core *core) { return &core->stats; }

bool link_core_audit(const struct link_core *core)
{
    uint64_t live = 0, quarantined = 0, blocks_live = 0, blocks_quarantined = 0, sends_live = 0;
    for (uint32_t i = 0; i < core->config.grants_max; i++) {
        const struct core_grant *grant = &core->grants[i];
        if (grant->state == GS_FREE) { continue; }
        bool in_quarantine = grant->state == GS_QUARANTINE;
        quarantined += in_quarantine;
        live += !in_quarantine;
        blocks_quarantined += in_quarantine ? grant->block_count : 0;
        blocks_live += in_quarantine ? 0 : grant->block_count;
        if (grant->landed > grant_slices(core, grant)) { return false; }
        bool needs_link = grant->state != GS_GRANTED;
        if (needs_link && (grant->link == LINK_NONE || core->links[grant->link].state == LS_FREE)) { return false; }
        for (uint32_t k = 0; k < i; k++) {
            if (core->grants[k].state != GS_FREE && kv_xfer_id_equal(core->grants[k].xfer_id, grant->xfer_id)) {
                return false;
            }
        }
    }
    for (uint32_t i = 0; i < core->config.sends_max; i++) {
        const struct core_send *send = &core->sends[i];
        if (send->state == SS_FREE) { continue; }
        sends_live++;
        if (core->links[send->link].state == LS_FREE) { return false; }
    }
    const struct kv_endpoint_stats *s = &core->stats;
    return s->live == live && s->quarantined == quarantined && s->blocks_live == blocks_live &&
           s->blocks_quarantined == blocks_quarantined && s->sends_live == sends_live &&
           s->grants == s->landed + s->failed + s->revoked + live + quarantined &&
           s->blocks_granted ==
               s->blocks_landed + s->blocks_failed + s->blocks_revoked + blocks_live + blocks_quarantined &&
           s->sends == s->acked + s->send_failed + sends_live;
}
