/* link_core_message: what a peer says: the hello of a link, then whose business a message is.
 * Flow:    the link's stream -> [link_core_message] -> link_core_grant or link_core_send -> wishes
 * Thread:  one, as link_core.h says; pure.
 * Memory:  none of its own. */
#include "transfer/link_core_state.h"

#include <string.h>

/* Of ours the caller knows that it can be read; in tests it need not be one. */
static bool layouts_fit(const struct link_core *core, const uint8_t theirs_wire[KV_FINGERPRINT_WIRE_BYTES])
{
    struct kv_fingerprint ours, theirs;
    if (memcmp(theirs_wire, core->config.fingerprint, KV_FINGERPRINT_WIRE_BYTES) == 0) { return true; }
    if (failed(kv_fingerprint_decode(core->config.fingerprint, KV_FINGERPRINT_WIRE_BYTES, NULL, &ours)) ||
        failed(kv_fingerprint_decode(theirs_wire, KV_FINGERPRINT_WIRE_BYTES, NULL, &theirs))) {
        return false;
    }
    return kv_fingerprint_fit(&ours, &theirs) != KV_FIT_NONE;
}

static void on_hello(struct link_core *core, uint32_t link_slot, const struct link_hello *hello, uint64_t now_ns,
                     struct link_wishes *ret)
{
    struct core_link *link = &core->links[link_slot];
    status_t status = STATUS_OK;
    const char *text = "";
    if (hello->protocol != LINK_PROTOCOL) {
        status = STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER);
        text = "the link protocol versions differ: run the same Baton version on both pools";
    } else if (!layouts_fit(core, hello->fingerprint)) {
        status = STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER);
        text = "the KV layouts differ"; /* the caller, who can read them, adds how */
    } else if (strcmp(hello->expect_node_id, core->config.node_id) != 0 ||
               hello->expect_boot_epoch != core->config.boot_epoch) {
        status = STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER);
        text = "the ticket is of another node or of an earlier start of this one";
    }
    struct link_wish *ack = link_core_wish_send(core, ret, link_slot, LINK_HELLO_ACK, now_ns);
    ack->status = status;
    ack->text = text;
    if (failed(status)) {
        core->stats.hellos_refused++;
        link_core_link_close(core, link_slot, status, text, false, now_ns, ret);
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
        link_core_link_close(core, i, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the peer was restarted", false, now_ns, ret);
    }
}

static void on_hello_ack(struct link_core *core, uint32_t link_slot, const struct link_hello_ack *ack, uint64_t now_ns,
                         struct link_wishes *ret)
{
    struct core_link *link = &core->links[link_slot];
    if (ack->code != ST_OK) {
        core->stats.hellos_refused++;
        uint8_t code = ack->code <= ST_UNAUTHENTICATED ? (uint8_t)ack->code : (uint8_t)ST_UNKNOWN;
        link_core_link_close(core, link_slot, STATUS(code, SCOPE_PEER), "the peer refused the link", false, now_ns, ret);
        return;
    }
    if (strcmp(ack->node_id, link->peer_id) != 0 || ack->boot_epoch != link->peer_epoch) {
        link_core_link_close(core, link_slot, STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER),
                             "the ticket is of another node or of an earlier start of this one", false, now_ns, ret);
        return;
    }
    link->state = LS_WAIT_CABLE;
    link->since_ns = now_ns;
    link_core_wish(ret, LINK_WISH_CONNECT_CABLE, link_slot);
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
    if (msg->kind == LINK_CABLE && (link->state == LS_WAIT_CABLE || link->state == LS_READY)) {
        link_core_wish(ret, LINK_WISH_CABLE_MESSAGE, link_slot);
        return;
    }
    bool is_about_xfer = msg->kind != LINK_HELLO && msg->kind != LINK_HELLO_ACK && msg->kind != LINK_CABLE;
    bool from_sender = msg->kind == LINK_BEGIN || msg->kind == LINK_COMMIT;
    bool from_receiver = msg->kind == LINK_BEGIN_ACK || msg->kind == LINK_ACK;
    if (link->state != LS_READY || !is_about_xfer || (link->is_sender ? from_sender : from_receiver)) {
        link_core_link_close(core, link_slot, STATUS(ST_INTERNAL, SCOPE_PEER),
                             "the peer broke the link's order of messages", true, now_ns, ret);
        return;
    }
    if (link->is_sender) {
        link_core_send_message(core, link_slot, msg, now_ns, ret);
        return;
    }
    link_core_grant_message(core, link_slot, msg, now_ns, ret);
}
