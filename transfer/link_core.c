/* link_core: the core's memory, its links and suspicions, the clock's ticks, and the audit.
 * Grants, sends and messages have files of their own; link_core_state.h is what they share. */
#include "transfer/link_core_state.h"

#include <string.h>

#include "base/check.h"

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

struct link_wish *link_core_wish(struct link_wishes *ret, enum link_wish_kind kind, uint32_t link)
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

struct link_wish *link_core_wish_send(struct link_core *core, struct link_wishes *ret, uint32_t link,
                                      enum link_msg_kind kind, uint64_t now_ns)
{
    struct link_wish *made = link_core_wish(ret, LINK_WISH_SEND, link);
    made->msg_kind = kind;
    core->links[link].sent_ns = now_ns;
    return made;
}

void link_core_wish_answer(struct link_core *core, struct link_wishes *ret, uint32_t link, enum link_msg_kind kind,
                           kv_xfer_id_t xfer_id, uint64_t grant_epoch, status_t status, uint64_t now_ns)
{
    struct link_wish *made = link_core_wish_send(core, ret, link, kind, now_ns);
    made->xfer_id = xfer_id;
    made->grant_epoch = grant_epoch;
    made->status = status;
}

struct link_wish *link_core_wish_event(struct link_wishes *ret, enum kv_event_kind event, uint32_t slot,
                                       kv_xfer_id_t xfer_id, uint64_t grant_epoch)
{
    struct link_wish *made = link_core_wish(ret, LINK_WISH_EVENT, LINK_NONE);
    made->event = event;
    made->slot = slot;
    made->xfer_id = xfer_id;
    made->grant_epoch = grant_epoch;
    return made;
}

/* ---- suspicion */

struct suspicion *link_core_suspicion_find(struct link_core *core, const char *node_id, uint64_t boot_epoch)
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
    struct suspicion *seen = link_core_suspicion_find(core, node_id, boot_epoch);
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

/* ---- links */

void link_core_link_close(struct link_core *core, uint32_t link_slot, status_t status, const char *text, bool suspicious,
                          uint64_t now_ns, struct link_wishes *ret)
{
    struct core_link *link = &core->links[link_slot];
    if (link->state == LS_FREE) { return; }
    if (link->is_sender && suspicious) { suspicion_add(core, link->peer_id, link->peer_epoch, now_ns); }
    core->stats.links_lost++;
    link->state = LS_FREE;
    /* First the fence, then the news: when the node hears FAILED, nothing can land any more. */
    link_core_wish(ret, LINK_WISH_CLOSE_LINK, link_slot);
    for (uint32_t i = 0; i < core->config.grants_max; i++) {
        struct core_grant *grant = &core->grants[i];
        if (grant->state == GS_FREE || grant->link != link_slot) { continue; }
        if (grant->state == GS_QUARANTINE) {
            link_core_grant_finish(core, grant, now_ns, ret);
        } else {
            link_core_grant_quarantine(core, grant, status, text, false, now_ns, ret);
        }
    }
    for (uint32_t i = 0; i < core->config.sends_max; i++) {
        struct core_send *send = &core->sends[i];
        if (send->state == SS_FREE || send->link != link_slot) { continue; }
        bool was_ours = send->state == SS_ABORTING;
        link_core_send_finish(core, send, KV_EVENT_SEND_FAILED, was_ours ? send->end_status : status,
                              was_ours ? send->end_text : text, ret);
    }
    memset(link, 0, sizeof *link);
}

void link_core_link_lost(struct link_core *core, uint32_t link, status_t status, const char *text, uint64_t now_ns,
                         struct link_wishes *ret)
{
    link_core_link_close(core, link, status, text, true, now_ns, ret);
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
    /* Setting up may take longer than dead_ns, and nobody beats his heart meanwhile. */
    link->heard_ns = link->sent_ns = now_ns;
    core->stats.links_up++;
    if (!link->is_sender) { return; }
    struct suspicion *seen = link_core_suspicion_find(core, link->peer_id, link->peer_epoch);
    if (seen) { memset(seen, 0, sizeof *seen); }
    for (uint32_t i = 0; i < core->config.sends_max; i++) {
        struct core_send *send = &core->sends[i];
        if (send->state == SS_WAIT_LINK && send->link == link_slot) { link_core_send_do_begin(core, send, now_ns, ret); }
    }
}

void link_core_heard(struct link_core *core, uint32_t link_slot, uint64_t now_ns)
{
    struct core_link *link = &core->links[link_slot];
    link->heard_ns = now_ns;
    link->is_suspect = false;
}

bool link_core_link_is_used(const struct link_core *core, uint32_t link) { return core->links[link].state != LS_FREE; }

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
                link_core_link_close(core, i, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the link was not ready in time",
                                     true, now_ns, ret);
                continue;
            }
        } else if (silence_ns >= core->config.dead_ns) {
            link_core_link_close(core, i, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the peer is silent", true, now_ns, ret);
            continue;
        } else if (silence_ns >= core->config.suspect_ns && !link->is_suspect) {
            link->is_suspect = true;
            core->stats.links_suspected++;
        }
        if (link->state == LS_READY && now_ns - link->sent_ns >= core->config.heartbeat_ns) {
            link_core_wish_send(core, ret, i, LINK_HEARTBEAT, now_ns);
        }
    }
    for (uint32_t i = 0; i < core->config.grants_max; i++) {
        struct core_grant *grant = &core->grants[i];
        if (grant->state == GS_FREE || now_ns < grant->deadline_ns) { continue; }
        if (grant->state == GS_QUARANTINE) { /* twice the lease without a fence: end it by force */
            core->stats.fences_forced++;
            link_core_link_close(core, grant->link, STATUS(ST_UNAVAILABLE, SCOPE_PEER),
                                 "the peer did not stop writing in time", true, now_ns, ret);
        } else {
            link_core_grant_quarantine(core, grant, STATUS(ST_DEADLINE_EXCEEDED, SCOPE_REQUEST),
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
            link_core_link_close(core, send->link, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the peer does not answer",
                                 true, now_ns, ret);
            continue;
        }
        link_core_send_give_up(core, send, STATUS(ST_DEADLINE_EXCEEDED, SCOPE_REQUEST),
                               "the receiver did not answer in time", now_ns, ret);
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
        if (grant->landed > link_core_grant_slices(core, grant)) { return false; }
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
