/* link_core_send: P's half of the core: a send from its first wish to the receiver's word.
 * Flow:    node's begin, commit and abort, D's messages -> [link_core_send] -> wishes
 * Thread:  one, as link_core.h says; pure.
 * Memory:  the core's carve. */
#include "transfer/link_core_state.h"

#include <string.h>

#include "base/check.h"

/* ---- sends */

static uint32_t send_slot(const struct link_core *core, const struct core_send *send)
{
    return (uint32_t)(send - core->sends);
}

void link_core_send_finish(struct link_core *core, struct core_send *send, enum kv_event_kind event, status_t status,
                           const char *text, struct link_wishes *ret)
{
    uint32_t slot = send_slot(core, send);
    if (event == KV_EVENT_SEND_FAILED) {
        struct link_wish *drop = link_core_wish(ret, LINK_WISH_DROP, send->link);
        drop->slot = slot;
    }
    struct link_wish *made = link_core_wish_event(ret, event, slot, send->xfer_id, send->grant_epoch);
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

void link_core_send_do_begin(struct link_core *core, struct core_send *send, uint64_t now_ns, struct link_wishes *ret)
{
    struct link_wish *begin = link_core_wish_send(core, ret, send->link, LINK_BEGIN, now_ns);
    begin->slot = send_slot(core, send);
    begin->xfer_id = send->xfer_id;
    begin->grant_epoch = send->grant_epoch;
    send->state = SS_BEGUN;
    send->deadline_ns = now_ns + core->config.stall_ns;
}

static void send_do_commit(struct link_core *core, struct core_send *send, uint64_t now_ns, struct link_wishes *ret)
{
    struct link_wish *commit = link_core_wish_send(core, ret, send->link, LINK_COMMIT, now_ns);
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
            link_core_send_finish(core, send, KV_EVENT_SEND_FAILED, STATUS(ST_UNAVAILABLE, SCOPE_PEER),
                                  "the peer has been silent; nothing new is sent to it until it is heard", ret);
            return LINK_NONE;
        }
        send->link = i;
        if (link->state == LS_READY) { link_core_send_do_begin(core, send, now_ns, ret); }
        return i;
    }
    const struct suspicion *seen = link_core_suspicion_find(core, ticket->node_id, ticket->boot_epoch);
    if (seen && now_ns < seen->until_ns) {
        link_core_send_finish(core, send, KV_EVENT_SEND_FAILED, STATUS(ST_UNAVAILABLE, SCOPE_PEER),
                              "the last link to the peer broke a moment ago; it is tried again shortly", ret);
        return LINK_NONE;
    }
    if (spare_link == LINK_NONE) {
        link_core_send_finish(core, send, KV_EVENT_SEND_FAILED, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST),
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
    struct link_wish *dial = link_core_wish(ret, LINK_WISH_DIAL, spare_link);
    dial->address = link->address;
    link_core_wish_send(core, ret, spare_link, LINK_HELLO, now_ns);
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
void link_core_send_give_up(struct link_core *core, struct core_send *send, status_t status, const char *text,
                            uint64_t now_ns, struct link_wishes *ret)
{
    if (send->state == SS_WAIT_LINK) { /* D has never heard of it; its lease ends the grant */
        link_core_send_finish(core, send, KV_EVENT_SEND_FAILED, status, text, ret);
        return;
    }
    struct link_wish *drop = link_core_wish(ret, LINK_WISH_DROP, send->link);
    drop->slot = send_slot(core, send);
    link_core_wish_answer(core, ret, send->link, LINK_ABORT, send->xfer_id, send->grant_epoch, status, now_ns);
    send->state = SS_ABORTING;
    send->end_status = status;
    send->end_text = text;
    send->deadline_ns = now_ns + core->config.stall_ns;
}

void link_core_abort(struct link_core *core, uint32_t slot, uint64_t now_ns, struct link_wishes *ret)
{
    struct core_send *send = &core->sends[slot];
    if (send->state == SS_FREE || send->state == SS_ABORTING) { return; }
    link_core_send_give_up(core, send, STATUS(ST_ABORTED, SCOPE_REQUEST), "aborted here", now_ns, ret);
}

void link_core_send_broke(struct link_core *core, uint32_t slot, status_t status, const char *text, uint64_t now_ns,
                          struct link_wishes *ret)
{
    struct core_send *send = &core->sends[slot];
    if (send->state == SS_FREE || send->state == SS_ABORTING) { return; }
    link_core_send_give_up(core, send, status, text, now_ns, ret);
}

void link_core_send_progress(struct link_core *core, uint32_t slot, uint64_t now_ns)
{
    struct core_send *send = &core->sends[slot];
    if (send->state == SS_COMMITTED) { send->deadline_ns = now_ns + 2 * core->config.stall_ns; }
}

/* ---- messages about a send */

void link_core_send_message(struct link_core *core, uint32_t link, const struct link_msg *msg, uint64_t now_ns,
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
        link_core_wish_answer(core, ret, link, LINK_ABORT_ACK, xfer->xfer_id, xfer->grant_epoch, STATUS_OK, now_ns);
    }
    uint8_t code = xfer->code <= ST_UNAUTHENTICATED ? (uint8_t)xfer->code : (uint8_t)ST_UNKNOWN;
    if (!send) {
        core->stats.messages_ignored++;
    } else if (msg->kind == LINK_BEGIN_ACK && send->state == SS_BEGUN) {
        if (code != ST_OK) {
            link_core_send_finish(core, send, KV_EVENT_SEND_FAILED, STATUS(code, SCOPE_REQUEST),
                                  "the peer refused the ticket", ret);
            return;
        }
        send->state = SS_STREAMING;
        struct link_wish *stream = link_core_wish(ret, LINK_WISH_STREAM, link);
        stream->slot = send_slot(core, send);
        if (send->commit_asked) { send_do_commit(core, send, now_ns, ret); }
    } else if (msg->kind == LINK_ACK && send->state == SS_COMMITTED) {
        link_core_send_finish(core, send, KV_EVENT_ACKED, STATUS_OK, "", ret);
    } else if (msg->kind == LINK_ABORT) {
        bool was_ours = send->state == SS_ABORTING;
        status_t status = was_ours ? send->end_status : STATUS(code == ST_OK ? ST_ABORTED : code, SCOPE_REQUEST);
        link_core_send_finish(core, send, KV_EVENT_SEND_FAILED, status,
                              was_ours ? send->end_text : "the receiver gave up", ret);
    } else if (msg->kind == LINK_ABORT_ACK && send->state == SS_ABORTING) {
        link_core_send_finish(core, send, KV_EVENT_SEND_FAILED, send->end_status, send->end_text, ret);
    } else {
        core->stats.messages_ignored++;
    }
}
