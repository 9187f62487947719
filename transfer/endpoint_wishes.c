/* endpoint_wishes: carries out what the link core wishes.
 * Flow:    link core's wishes -> [endpoint_wishes] -> streams, cables, events
 * Thread:  the transfer thread. Facts that arise while wishes are carried out only append to the
 *          list, so nothing here runs inside itself.
 * Memory:  a message is written into the endpoint's one wire buffer. */
#include "transfer/endpoint_private.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/check.h"
#include "base/clock.h"

static void hello_fill(struct kv_endpoint *e, const struct kv_ticket *ticket, struct link_hello *ret)
{
    memset(ret, 0, sizeof *ret);
    ret->protocol = LINK_PROTOCOL;
    memcpy(ret->node_id, e->node_id, sizeof ret->node_id);
    ret->boot_epoch = e->boot_epoch;
    memcpy(ret->expect_node_id, ticket->node_id, sizeof ret->expect_node_id);
    ret->expect_boot_epoch = ticket->boot_epoch;
    kv_fingerprint_encode(&e->fingerprint, ret->fingerprint);
    memcpy(ret->host_id, e->host_id, sizeof ret->host_id);
    for (uint32_t i = 0; i < e->cable_count; i++) {
        snprintf(ret->cables[i], sizeof ret->cables[i], "%s", e->cables[i].ops->name);
    }
    ret->cable_count = e->cable_count;
}

/* FNV-1a. Who looks for two that are alike finds two names of its own. */
static uint64_t identity_of(const char *node_id, uint64_t boot_epoch)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (; *node_id; node_id++) { hash = (hash ^ (uint8_t)*node_id) * UINT64_C(0x100000001b3); }
    for (int i = 0; i < 8; i++) { hash = (hash ^ (boot_epoch >> 8 * i & 0xff)) * UINT64_C(0x100000001b3); }
    return hash;
}

static void hello_ack_fill(struct kv_endpoint *e, uint32_t link_slot, const struct link_wish *wish,
                           struct link_hello_ack *ret)
{
    struct link_data *link = &e->links[link_slot];
    memset(ret, 0, sizeof *ret);
    ret->code = wish->status.code;
    memcpy(ret->node_id, e->node_id, sizeof ret->node_id);
    ret->boot_epoch = e->boot_epoch;
    memcpy(ret->host_id, e->host_id, sizeof ret->host_id);
    const struct link_hello *hello = &e->message_now->body.hello;
    if (failed(wish->status)) {
        struct kv_fingerprint theirs;
        char diff[320] = "";
        if (!failed(kv_fingerprint_decode(hello->fingerprint, sizeof hello->fingerprint, NULL, &theirs))) {
            kv_fingerprint_diff(&theirs, &e->fingerprint, diff, sizeof diff); /* "ours" is the reader's */
        }
        snprintf(ret->text, sizeof ret->text, "%s%s%s", wish->text, diff[0] ? ": " : "", diff);
        return;
    }
    link->peer_identity = identity_of(hello->node_id, hello->boot_epoch);
    if (endpoint_peer_layout(e, link, hello->fingerprint) && link->converts) {
        ret->converts = true;
        kv_fingerprint_encode(&e->fingerprint, ret->fingerprint);
    }
    for (uint32_t i = 0; i < e->cable_count; i++) {
        struct cable_slot *slot = &e->cables[i];
        bool asked = false;
        if (link->converts && !slot->ops->converts) { continue; }
        for (uint32_t k = 0; k < hello->cable_count; k++) { asked |= strcmp(hello->cables[k], slot->ops->name) == 0; }
        bool reachable = !slot->ops->same_host_only || (e->host_id[0] && strcmp(e->host_id, hello->host_id) == 0);
        if (!asked || !reachable) { continue; }
        if (failed(slot->ops->offer(slot->cable, link_slot, &ret->offers[ret->offer_count].offer))) { continue; }
        snprintf(ret->offers[ret->offer_count].cable, sizeof ret->offers[0].cable, "%s", slot->ops->name);
        ret->offer_count++;
        link->offered |= 1u << i;
    }
    /* Without random bytes no token: then no cable of this link can be opened by anyone. */
    link->has_token = getrandom(link->token, sizeof link->token, 0) == (ssize_t)sizeof link->token;
    if (link->has_token) { memcpy(ret->token, link->token, sizeof ret->token); }
}

/* With a one-sided cable D has only P's word that no byte can land any more: it is not given while
 * a put is under way. Where D places the bytes itself the word needs no waiting. */
static bool word_must_wait(struct kv_endpoint *e, const struct link_wish *wish)
{
    const struct link_data *link = &e->links[wish->link];
    bool is_word = wish->msg_kind == LINK_ABORT || wish->msg_kind == LINK_ABORT_ACK;
    if (!is_word || !link->is_sender) { return false; }
    for (uint32_t i = 0; i < e->limits.sends_max; i++) {
        struct send_data *send = &e->sends[i];
        if (!send->live || send->link != wish->link || send->at_cable == 0 || send->cable->ops->places_at_destination ||
            send->ticket.grant_epoch != wish->grant_epoch || !kv_xfer_id_equal(send->ticket.xfer_id, wish->xfer_id)) {
            continue;
        }
        /* Of two, ABORT and then ABORT_ACK, the later one says all: D ends the grant at either. */
        send->word = *wish;
        send->word_held = true;
        return true;
    }
    return false;
}

static void carry_send(struct kv_endpoint *e, const struct link_wish *wish)
{
    struct link_data *link = &e->links[wish->link];
    if (!link->open || !link->stream || word_must_wait(e, wish)) { return; }
    struct link_msg msg = {.kind = wish->msg_kind};
    struct link_xfer *xfer = &msg.body.xfer;
    switch (wish->msg_kind) {
    case LINK_HELLO: {
        /* The send that made us dial is the only one on this link yet; its ticket names D. */
        const struct kv_ticket *ticket = NULL;
        for (uint32_t i = 0; i < e->limits.sends_max && !ticket; i++) {
            if (e->sends[i].live && e->sends[i].link == wish->link) { ticket = &e->sends[i].ticket; }
        }
        if (!ticket) { return; }
        hello_fill(e, ticket, &msg.body.hello);
        break;
    }
    case LINK_HELLO_ACK: hello_ack_fill(e, wish->link, wish, &msg.body.hello_ack); break;
    case LINK_HEARTBEAT: msg.body.heartbeat = ++e->heartbeats; break;
    default:
        xfer->xfer_id = wish->xfer_id;
        xfer->grant_epoch = wish->grant_epoch;
        xfer->code = wish->status.code;
        if (wish->msg_kind == LINK_BEGIN) {
            memcpy(xfer->secret, e->sends[wish->slot].ticket.secret, sizeof xfer->secret);
            xfer->block_count = e->sends[wish->slot].ticket.block_count;
        } else if (wish->msg_kind == LINK_COMMIT) {
            const struct send_data *send = &e->sends[wish->slot];
            xfer->layer_slices = send->layer_slices; /* nobody pushes after the commit */
            xfer->layer_count = e->layout.layer_count;
            xfer->bytes_total = (uint64_t)send->ticket.block_count * e->layout.layer_count * kv_layout_slice_bytes(&link->peer_layout);
            xfer->payload = send->payload;
            xfer->payload_bytes = send->payload_bytes;
        }
        break;
    }
    size_t bytes = link_wire_encode(&msg, e->wire_buffer, KV_LINK_MESSAGE_BYTES_MAX);
    CHECK(bytes > 0 || msg.kind == LINK_HEARTBEAT);
    status_t st = e->stream.send(e->stream_context, link->stream, e->wire_buffer, bytes);
    if (failed(st)) {
        link_core_link_lost(e->core, wish->link, STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, st.cause),
                            "the link's stream takes no more messages", clock_now_ns(), &e->wishes);
    }
}

void endpoint_word_send(struct kv_endpoint *e, struct send_data *send)
{
    struct link_wish word = send->word;
    send->word_held = false;
    carry_send(e, &word);
    endpoint_settle(e);
}

static void carry_close_link(struct kv_endpoint *e, uint32_t link_slot)
{
    struct link_data *link = &e->links[link_slot];
    if (!link->open) { return; }
    link->open = false; /* what the cable reports from here on is known */
    for (uint32_t i = 0; i < e->limits.grants_max; i++) {
        if (e->grants[i].link == link_slot) { e->grants[i].carrier = NULL; }
    }
    for (uint32_t i = 0; i < e->limits.sends_max; i++) {
        if (e->sends[i].live && e->sends[i].link == link_slot) { e->sends[i].is_used = false; }
    }
    for (uint32_t i = 0; i < e->cable_count; i++) {
        const struct cable_slot *slot = &e->cables[i];
        /* One that speaks may know the link although it is not, or not yet, the link's. */
        bool knows_it = slot == link->cable || (slot->ops->message && (link->offered >> i & 1u));
        if (knows_it) { slot->ops->fence(slot->cable, link_slot); }
    }
    if (link->stream) { e->stream.close(e->stream_context, link->stream); }
    link->stream = NULL;
    link->cable_up = link->has_token = false;
    pthread_mutex_lock(&e->mutex);
    endpoint_link_release(e, link_slot);
    pthread_mutex_unlock(&e->mutex);
}

void endpoint_link_open(struct link_data *link, const struct kv_layout *ours, bool is_sender, void *stream)
{
    link->open = true;
    link->is_sender = is_sender;
    link->stream = stream;
    link->cable = link->warm = NULL;
    link->cable_up = link->has_token = link->warm_connects = false;
    link->next_choice = link->offered = 0;
    link->is_deaf = false;
    link->peer_layout = *ours;
    link->converts = false;
    link->reason[0] = link->warm_reason[0] = link->note[0] = '\0';
}

static void carry_dial(struct kv_endpoint *e, const struct link_wish *wish)
{
    struct link_data *link = &e->links[wish->link];
    endpoint_link_open(link, &e->layout, true, NULL);
    snprintf(link->address, sizeof link->address, "%s", wish->address);
    pthread_mutex_lock(&e->mutex);
    uint64_t id = (uint64_t)link->generation << 32 | wish->link;
    pthread_mutex_unlock(&e->mutex);
    status_t st = e->stream.dial(e->stream_context, wish->address, id, &link->stream);
    if (failed(st)) {
        link->stream = NULL;
        link_core_link_lost(e->core, wish->link, STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, st.cause),
                            "the receiver cannot be dialled", clock_now_ns(), &e->wishes);
    }
}

static void carry_event(struct kv_endpoint *e, const struct link_wish *wish)
{
    if (wish->event != KV_EVENT_ACKED && wish->event != KV_EVENT_SEND_FAILED) {
        bool is_final = wish->event != KV_EVENT_FAILED || wish->fenced;
        bool is_copied_into = e->grants[wish->slot].holds > 0;
        if (is_copied_into) { CHECK(wish->event != KV_EVENT_LANDED); }
        if (is_final && is_copied_into) {
            endpoint_hold_grant(e, wish);
        } else {
            endpoint_emit_grant(e, wish);
        }
        return;
    }
    struct send_data *send = &e->sends[wish->slot];
    if (send->at_cable > 0) { /* a frame is half on the wire: its source is still read */
        endpoint_hold_send(e, wish);
        return;
    }
    endpoint_emit_send(e, wish);
}

static void carry(struct kv_endpoint *e, const struct link_wish *wish)
{
    struct link_data *link = wish->link != LINK_NONE ? &e->links[wish->link] : NULL;
    switch (wish->kind) {
    case LINK_WISH_DIAL: carry_dial(e, wish); break;
    case LINK_WISH_SEND: carry_send(e, wish); break;
    case LINK_WISH_CONNECT_CABLE:
        link->ack = e->message_now->body.hello_ack;
        if (link->ack.converts && !endpoint_peer_layout(e, link, link->ack.fingerprint)) {
            link_core_link_lost(e->core, wish->link, STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER), "the KV layouts differ", clock_now_ns(), &e->wishes);
            break;
        }
        for (uint32_t i = 0; i < e->cable_count; i++) {
            if (endpoint_offer_of(link, &e->cables[i])) { link->offered |= 1u << i; }
        }
        endpoint_cable_try_next(e, wish->link);
        break;
    case LINK_WISH_CABLE_MESSAGE:
        if (link->open) { endpoint_cable_hear(e, wish->link, &e->message_now->body.cable); }
        break;
    case LINK_WISH_CLOSE_LINK: carry_close_link(e, wish->link); break;
    case LINK_WISH_CABLE_GRANT: {
        struct grant_data *grant = &e->grants[wish->slot];
        grant->link = wish->link;
        grant->began_ns = clock_now_ns();
        grant->cable = link->cable->ops->name;
        if (link->cable->ops->grant) {
            const struct kv_landing landing = {.slot = wish->slot, .grant_epoch = wish->grant_epoch, .blocks = grant->blocks};
            link->cable->ops->grant(link->cable->cable, wish->link, &landing, grant->count);
        }
        break;
    }
    case LINK_WISH_CABLE_REVOKE: {
        bool fenced = true;
        if (link->open && link->cable_up && link->cable->ops->revoke) {
            const struct kv_landing landing = {.slot = wish->slot, .grant_epoch = wish->grant_epoch,
                                               .blocks = e->grants[wish->slot].blocks};
            fenced = link->cable->ops->revoke(link->cable->cable, wish->link, &landing);
        }
        link_core_fence_answer(e->core, wish->slot, wish->grant_epoch, fenced, clock_now_ns(), &e->wishes);
        break;
    }
    case LINK_WISH_STREAM:
        e->sends[wish->slot].streaming = true;
        e->sends[wish->slot].cable = endpoint_cable_choose(e, wish->link);
        e->sends[wish->slot].is_used = true;
        endpoint_cable_used(e->sends[wish->slot].cable, wish->link, 1);
        endpoint_pushes_to_cable(e, &e->sends[wish->slot]);
        break;
    case LINK_WISH_DROP: {
        struct send_data *send = &e->sends[wish->slot];
        send->dropped = true;
        endpoint_pushes_drop(e, send);
        if (send->at_cable > 0 && link && link->open && link->cable_up) {
            send->cable->ops->abort(send->cable->cable, wish->link, wish->slot);
        }
        break;
    }
    case LINK_WISH_EVENT: carry_event(e, wish); break;
    }
}

void endpoint_settle(struct kv_endpoint *e)
{
    if (e->settling) { return; }
    e->settling = true;
    for (uint32_t i = 0; i < e->wishes.count; i++) {
        struct link_wish wish = e->wishes.wishes[i];
        carry(e, &wish);
    }
    e->wishes.count = 0;
    e->settling = false;
    DCHECK(link_core_audit(e->core));
}

void endpoint_close_all(struct kv_endpoint *e)
{
    for (uint32_t i = 0; i < e->limits.links_max; i++) { carry_close_link(e, i); }
    for (uint32_t i = 0; i < e->cable_count; i++) { e->cables[i].ops->close(e->cables[i].cable); }
}
