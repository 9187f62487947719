/* endpoint: the transfer thread's half; see endpoint_private.h.
 * It turns what happens (commands, messages, cables, time) into facts for the link core, and
 * carries out what the core wishes. Facts that arise while wishes are carried out only append
 * to the list, so nothing here runs inside itself. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/check.h"
#include "base/clock.h"
#include "transfer/endpoint_private.h"

static void settle(struct kv_endpoint *e);

/* ---- events */

static void stats_publish(struct kv_endpoint *e)
{
    pthread_mutex_lock(&e->mutex);
    e->published = *link_core_stats(e->core);
    e->published.bytes_pushed = e->bytes_pushed;
    e->published.cables_refused = e->cables_refused;
    pthread_mutex_unlock(&e->mutex);
}

static void emit(struct kv_endpoint *e, const struct kv_event *event)
{
    /* Who is told of an end finds it counted. */
    if (event->kind != KV_EVENT_PUSH_DONE) { stats_publish(e); }
    e->on_event(e->on_event_context, event);
}

static const char *event_text(const struct kv_endpoint *e, const struct link_wish *wish)
{
    return wish->link != LINK_NONE && e->links[wish->link].note[0] ? e->links[wish->link].note : wish->text;
}

static void emit_grant_event(struct kv_endpoint *e, const struct link_wish *wish)
{
    struct grant_data *grant = &e->grants[wish->slot];
    bool is_final = wish->event != KV_EVENT_FAILED || wish->fenced;
    struct kv_event event = {
        .kind = wish->event,
        .xfer_id = wish->xfer_id,
        .grant_epoch = wish->grant_epoch,
        .user = grant->user,
        .status = wish->status,
        .text = event_text(e, wish),
        .fenced = wish->fenced,
        .payload = wish->event == KV_EVENT_LANDED ? grant->payload : NULL,
        .payload_bytes = wish->event == KV_EVENT_LANDED ? grant->payload_bytes : 0,
        .stats = {.bytes = grant->bytes, .duration_ns = grant->began_ns ? clock_now_ns() - grant->began_ns : 0,
                  .cable = grant->cable ? grant->cable : "", .reason = grant->cable ? "chosen by the sender" : ""},
    };
    if (!is_final) {
        emit(e, &event);
        return;
    }
    uint8_t *payload = grant->payload;
    grant->payload = NULL;
    grant->payload_bytes = 0;
    /* Free first: the node may grant again from inside the event. */
    pthread_mutex_lock(&e->mutex);
    for (uint32_t i = 0; i < grant->count; i++) {
        e->granted[grant->blocks[i] / 64] &= ~(UINT64_C(1) << (grant->blocks[i] % 64));
    }
    grant->used = false;
    grant->next_free = e->free_grant;
    e->free_grant = wish->slot;
    pthread_mutex_unlock(&e->mutex);
    emit(e, &event);
    free(payload);
}

static void emit_send_event(struct kv_endpoint *e, const struct link_wish *wish)
{
    struct send_data *send = &e->sends[wish->slot];
    const struct link_data *link = send->link != LINK_NONE ? &e->links[send->link] : NULL;
    char reason[sizeof link->reason] = "";
    if (link) { snprintf(reason, sizeof reason, "%s", link->reason); }
    struct kv_event event = {
        .kind = wish->event,
        .xfer_id = wish->xfer_id,
        .grant_epoch = wish->grant_epoch,
        .send = {.value = (uint64_t)send->generation << 32 | wish->slot},
        .user = send->user,
        .status = wish->status,
        .text = event_text(e, wish),
        .stats = {.bytes = send->bytes, .duration_ns = clock_now_ns() - send->began_ns,
                  .cable = send->streaming && link && link->cable ? link->cable->ops->name : "", .reason = reason},
    };
    uint8_t *payload = send->payload;
    send->payload = NULL;
    send->live = send->final_held = false;
    send->link = LINK_NONE;
    pthread_mutex_lock(&e->mutex);
    send->open = false;
    send->generation++;
    send->next_free = e->free_send;
    e->free_send = wish->slot;
    pthread_mutex_unlock(&e->mutex);
    free(payload);
    emit(e, &event);
}

/* ---- pushes */

static void push_free(struct kv_endpoint *e, struct kv_cable_push *push)
{
    pthread_mutex_lock(&e->mutex);
    push->next = e->free_push;
    e->free_push = push;
    e->free_push_count++;
    pthread_mutex_unlock(&e->mutex);
}

static void pushes_to_cable(struct kv_endpoint *e, struct send_data *send)
{
    const struct link_data *link = &e->links[send->link];
    while (send->waiting_first && link->cable_up && !send->dropped) {
        struct kv_cable_push *push = send->waiting_first;
        send->waiting_first = push->next;
        push->next = NULL;
        send->at_cable++;
        link->cable->ops->push(link->cable->cable, send->link, push);
    }
}

static void waiting_pushes_drop(struct kv_endpoint *e, struct send_data *send)
{
    while (send->waiting_first) {
        struct kv_cable_push *push = send->waiting_first;
        send->waiting_first = push->next;
        push_free(e, push);
    }
}

/* ---- what cables tell us */

static bool host_token_link(void *slot, const uint8_t token[KV_CABLE_TOKEN_BYTES], uint32_t *ret_link)
{
    struct kv_endpoint *e = ((struct cable_slot *)slot)->endpoint;
    bool found = false;
    for (uint32_t i = 0; i < e->limits.links_max; i++) {
        const struct link_data *link = &e->links[i];
        if (!link->open || link->is_sender || !link->has_token || link->cable_up) { continue; }
        volatile uint8_t differs = 0;
        for (uint32_t k = 0; k < KV_CABLE_TOKEN_BYTES; k++) { differs |= link->token[k] ^ token[k]; }
        if (!differs) {
            *ret_link = i;
            found = true;
        }
    }
    if (!found) { e->cables_refused++; }
    return found;
}

static void host_connected(void *slot_, uint32_t link_slot)
{
    struct cable_slot *slot = slot_;
    struct kv_endpoint *e = slot->endpoint;
    struct link_data *link = &e->links[link_slot];
    if (!link->open || link->cable_up || (link->is_sender && link->cable != slot)) { return; }
    link->cable = slot;
    link->cable_up = true;
    link->has_token = false; /* it opens one connection */
    link_core_cable_up(e->core, link_slot, clock_now_ns(), &e->wishes);
    settle(e);
}

static void cable_try_next(struct kv_endpoint *e, uint32_t link_slot);

static void host_lost(void *slot_, uint32_t link_slot, status_t status, const char *text)
{
    struct cable_slot *slot = slot_;
    struct kv_endpoint *e = slot->endpoint;
    struct link_data *link = &e->links[link_slot];
    if (!link->open || link->cable != slot) { return; }
    if (!link->cable_up && link->is_sender) {
        snprintf(link->reason, sizeof link->reason, "%s failed: %s", slot->ops->name, text);
        cable_try_next(e, link_slot);
    } else {
        snprintf(link->note, sizeof link->note, "the %s cable broke: %s", slot->ops->name, text);
        link_core_link_lost(e->core, link_slot, status, link->note, clock_now_ns(), &e->wishes);
    }
    settle(e);
}

static void host_heard(void *slot, uint32_t link)
{
    struct kv_endpoint *e = ((struct cable_slot *)slot)->endpoint;
    link_core_heard(e->core, link, clock_now_ns());
}

static bool host_frame_accept(void *slot, uint32_t link, const struct kv_frame *frame, struct kv_landing *ret_landing)
{
    struct kv_endpoint *e = ((struct cable_slot *)slot)->endpoint;
    uint32_t grant_slot = 0;
    if (!link_core_frame_accept(e->core, link, frame, &grant_slot)) { return false; }
    const struct grant_data *grant = &e->grants[grant_slot];
    *ret_landing = (struct kv_landing){.slot = grant_slot, .grant_epoch = frame->grant_epoch,
                                       .blocks = grant->blocks + frame->first};
    return true;
}

static bool host_landing_is_live(void *slot, const struct kv_landing *landing)
{
    struct kv_endpoint *e = ((struct cable_slot *)slot)->endpoint;
    return link_core_grant_is_live(e->core, landing->slot, landing->grant_epoch);
}

static void host_frame_landed(void *slot, uint32_t link, const struct kv_landing *landing, const struct kv_frame *frame,
                              bool crc_ok)
{
    struct kv_endpoint *e = ((struct cable_slot *)slot)->endpoint;
    uint64_t now_ns = clock_now_ns();
    if (link_core_grant_is_live(e->core, landing->slot, landing->grant_epoch) && crc_ok) {
        e->grants[landing->slot].bytes += frame->count * e->slice_bytes;
    }
    link_core_heard(e->core, link, now_ns);
    link_core_frame_landed(e->core, landing->slot, landing->grant_epoch, frame, crc_ok, now_ns, &e->wishes);
    settle(e);
}

static void host_push_done(void *slot, struct kv_cable_push *push)
{
    struct kv_endpoint *e = ((struct cable_slot *)slot)->endpoint;
    struct send_data *send = &e->sends[push->send_slot];
    CHECK(send->at_cable > 0);
    send->at_cable--;
    if (!push->dropped && !send->dropped) {
        send->bytes += push->frame.count * e->slice_bytes;
        e->bytes_pushed += push->frame.count * e->slice_bytes;
        link_core_send_progress(e->core, push->send_slot, clock_now_ns());
    }
    struct kv_event event = {
        .kind = KV_EVENT_PUSH_DONE,
        .xfer_id = push->frame.xfer_id,
        .grant_epoch = push->frame.grant_epoch,
        .send = {.value = (uint64_t)send->generation << 32 | push->send_slot},
        .user = send->user,
        .text = "",
        .layer = push->frame.layer,
        .first = push->push_first,
        .count = push->push_count,
        .stats = {.cable = "", .reason = ""},
    };
    bool tell = push->last && !push->dropped && !send->dropped;
    push_free(e, push);
    if (tell) { emit(e, &event); }
    if (send->final_held && send->at_cable == 0) { emit_send_event(e, &send->final); }
}

void endpoint_cable_host_init(struct cable_slot *slot)
{
    struct kv_endpoint *e = slot->endpoint;
    slot->host = (struct kv_cable_host){
        .endpoint = slot,
        .loop = e->loop,
        .layout = &e->layout,
        .pool = e->pool,
        .block_count = e->block_count,
        .links_max = e->limits.links_max,
        .connect_ns = e->limits.connect_ns,
        .token_link = host_token_link,
        .connected = host_connected,
        .lost = host_lost,
        .heard = host_heard,
        .frame_accept = host_frame_accept,
        .landing_is_live = host_landing_is_live,
        .frame_landed = host_frame_landed,
        .push_done = host_push_done,
    };
}

/* ---- P: the choice of a cable */

/* "[::1]:80" and "host:80" without the port; brackets go too. */
static void host_part(const char *address, char *ret_host, size_t size)
{
    const char *colon = strrchr(address, ':');
    size_t chars = colon ? (size_t)(colon - address) : strlen(address);
    if (chars >= 2 && address[0] == '[' && address[chars - 1] == ']') {
        address++;
        chars -= 2;
    }
    snprintf(ret_host, size, "%.*s", (int)chars, address);
}

/* In our order of preference, what both sides have. The reason that is kept is the one why the
 * chosen cable is not a better one. */
static void cable_try_next(struct kv_endpoint *e, uint32_t link_slot)
{
    struct link_data *link = &e->links[link_slot];
    bool same_host = e->host_id[0] && strcmp(e->host_id, link->ack.host_id) == 0;
    link->cable = NULL;
    while (link->next_choice < e->cable_count) {
        struct cable_slot *slot = &e->cables[link->next_choice++];
        const struct kv_cable_offer *offer = NULL;
        for (uint32_t i = 0; i < link->ack.offer_count && !offer; i++) {
            if (strcmp(link->ack.offers[i].cable, slot->ops->name) == 0) { offer = &link->ack.offers[i].offer; }
        }
        if (!offer) {
            snprintf(link->reason, sizeof link->reason, "%s is not offered by the receiver", slot->ops->name);
            continue;
        }
        if (slot->ops->same_host_only && !same_host) {
            snprintf(link->reason, sizeof link->reason, "%s needs one host; these are two", slot->ops->name);
            continue;
        }
        if (slot->ops->needs_source_memfd && e->pool.memfd < 0) {
            snprintf(link->reason, sizeof link->reason, "%s needs a pool in a memfd", slot->ops->name);
            continue;
        }
        char host[KV_ADDRESS_CHARS_MAX + 1];
        host_part(link->address, host, sizeof host);
        link->cable = slot;
        status_t st = slot->ops->connect(slot->cable, link_slot, host, offer->bytes, offer->size, link->ack.token);
        if (!failed(st)) {
            if (link->reason[0] == '\0') {
                snprintf(link->reason, sizeof link->reason, "%s", same_host && slot->ops->same_host_only ? "same host" : "first choice");
            }
            return;
        }
        link->cable = NULL;
        snprintf(link->reason, sizeof link->reason, "%s failed: %s (cause %d)", slot->ops->name, status_code_name(st.code),
                 st.cause);
    }
    snprintf(link->note, sizeof link->note, "no cable works: %s", link->reason);
    link_core_link_lost(e->core, link_slot, STATUS(ST_UNAVAILABLE, SCOPE_PEER), link->note, clock_now_ns(), &e->wishes);
}

/* ---- wishes */

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

static void hello_ack_fill(struct kv_endpoint *e, uint32_t link_slot, const struct link_wish *wish, struct link_hello_ack *ret)
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
    for (uint32_t i = 0; i < e->cable_count; i++) {
        struct cable_slot *slot = &e->cables[i];
        bool asked = false;
        for (uint32_t k = 0; k < hello->cable_count; k++) { asked |= strcmp(hello->cables[k], slot->ops->name) == 0; }
        bool reachable = !slot->ops->same_host_only || (e->host_id[0] && strcmp(e->host_id, hello->host_id) == 0);
        if (!asked || !reachable) { continue; }
        if (failed(slot->ops->offer(slot->cable, &ret->offers[ret->offer_count].offer))) { continue; }
        snprintf(ret->offers[ret->offer_count].cable, sizeof ret->offers[0].cable, "%s", slot->ops->name);
        ret->offer_count++;
    }
    /* Without random bytes no token: then no cable of this link can be opened by anyone. */
    link->has_token = getrandom(link->token, sizeof link->token, 0) == (ssize_t)sizeof link->token;
    if (link->has_token) { memcpy(ret->token, link->token, sizeof ret->token); }
}

static void carry_send(struct kv_endpoint *e, const struct link_wish *wish)
{
    struct link_data *link = &e->links[wish->link];
    if (!link->open || !link->stream) { return; }
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
            xfer->bytes_total = (uint64_t)send->ticket.block_count * e->layout.layer_count * e->slice_bytes;
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

static void carry_close_link(struct kv_endpoint *e, uint32_t link_slot)
{
    struct link_data *link = &e->links[link_slot];
    if (!link->open) { return; }
    link->open = false; /* what the cable reports from here on is known */
    if (link->cable) { link->cable->ops->fence(link->cable->cable, link_slot); }
    if (link->stream) { e->stream.close(e->stream_context, link->stream); }
    link->stream = NULL;
    link->cable_up = link->has_token = false;
    pthread_mutex_lock(&e->mutex);
    endpoint_link_release(e, link_slot);
    pthread_mutex_unlock(&e->mutex);
}

static void link_data_open(struct link_data *link, bool is_sender, void *stream)
{
    link->open = true;
    link->is_sender = is_sender;
    link->stream = stream;
    link->cable = NULL;
    link->cable_up = link->has_token = false;
    link->next_choice = 0;
    link->reason[0] = link->note[0] = '\0';
}

static void carry_dial(struct kv_endpoint *e, const struct link_wish *wish)
{
    struct link_data *link = &e->links[wish->link];
    link_data_open(link, true, NULL);
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
        emit_grant_event(e, wish);
        return;
    }
    struct send_data *send = &e->sends[wish->slot];
    if (send->at_cable > 0) { /* a frame is half on the wire: its source is still read */
        send->final = *wish;
        send->final_held = true;
        return;
    }
    emit_send_event(e, wish);
}

static void carry(struct kv_endpoint *e, const struct link_wish *wish)
{
    struct link_data *link = wish->link != LINK_NONE ? &e->links[wish->link] : NULL;
    switch (wish->kind) {
    case LINK_WISH_DIAL: carry_dial(e, wish); break;
    case LINK_WISH_SEND: carry_send(e, wish); break;
    case LINK_WISH_CONNECT_CABLE:
        link->ack = e->message_now->body.hello_ack;
        cable_try_next(e, wish->link);
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
        pushes_to_cable(e, &e->sends[wish->slot]);
        break;
    case LINK_WISH_DROP: {
        struct send_data *send = &e->sends[wish->slot];
        send->dropped = true;
        waiting_pushes_drop(e, send);
        if (send->at_cable > 0 && link && link->open && link->cable_up) {
            link->cable->ops->abort(link->cable->cable, wish->link, wish->slot);
        }
        break;
    }
    case LINK_WISH_EVENT: carry_event(e, wish); break;
    }
}

static void settle(struct kv_endpoint *e)
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

/* ---- commands */

static void on_message(struct kv_endpoint *e, const struct command *command)
{
    struct link_msg msg;
    struct link_data *link = &e->links[command->slot];
    uint64_t now_ns = clock_now_ns();
    struct diag diag = {.text = ""};
    status_t st = link_wire_decode(command->pointer, command->bytes, e->wire_scratch, &diag, &msg);
    if (failed(st)) {
        snprintf(link->note, sizeof link->note, "the peer sent bytes that are no message: %.256s", diag.text);
        link_core_link_lost(e->core, command->slot, st, link->note, now_ns, &e->wishes);
        return;
    }
    if (msg.kind == LINK_HELLO_ACK && msg.body.hello_ack.code != ST_OK) {
        snprintf(link->note, sizeof link->note, "the receiver refused the link: %s", msg.body.hello_ack.text);
    }
    if (msg.kind == LINK_COMMIT) {
        /* Kept for LANDED; the core decides whether the commit counts. A second one changes
         * nothing, and one of a stranger's transfer finds no grant of its link. */
        for (uint32_t i = 0; i < e->limits.grants_max; i++) {
            struct grant_data *grant = &e->grants[i];
            const struct link_xfer *xfer = &msg.body.xfer;
            if (!link_core_grant_is_live(e->core, i, xfer->grant_epoch) || grant->link != command->slot || grant->payload) {
                continue;
            }
            grant->payload = malloc(xfer->payload_bytes ? xfer->payload_bytes : 1);
            if (!grant->payload) {
                link_core_link_lost(e->core, command->slot, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE),
                                    "no memory for a commit's payload", now_ns, &e->wishes);
                return;
            }
            if (xfer->payload_bytes) { memcpy(grant->payload, xfer->payload, xfer->payload_bytes); }
            grant->payload_bytes = xfer->payload_bytes;
        }
    }
    e->message_now = &msg;
    link_core_message(e->core, command->slot, &msg, now_ns, &e->wishes);
    settle(e);
    e->message_now = NULL;
}

static void on_send_begin(struct kv_endpoint *e, uint32_t slot)
{
    struct send_data *send = &e->sends[slot];
    send->live = true;
    send->streaming = send->dropped = send->final_held = false;
    send->waiting_first = send->waiting_last = NULL;
    send->at_cable = 0;
    send->bytes = 0;
    send->began_ns = clock_now_ns();
    pthread_mutex_lock(&e->mutex);
    uint32_t spare = endpoint_link_take(e);
    pthread_mutex_unlock(&e->mutex);
    send->link = link_core_send_begin(e->core, slot, &send->ticket, spare, send->began_ns, &e->wishes);
    if (spare != LINK_NONE && send->link != spare) {
        pthread_mutex_lock(&e->mutex);
        endpoint_link_release(e, spare);
        pthread_mutex_unlock(&e->mutex);
    }
}

static void on_push(struct kv_endpoint *e, const struct command *command)
{
    struct send_data *send = &e->sends[command->slot];
    bool current = send->live && send->generation == command->generation && !send->dropped;
    struct kv_cable_push *push = command->pointer;
    while (push) {
        struct kv_cable_push *next = push->next;
        push->next = NULL;
        if (!current) {
            push_free(e, push);
        } else if (send->waiting_first) {
            send->waiting_last->next = push;
            send->waiting_last = push;
        } else {
            send->waiting_first = send->waiting_last = push;
        }
        push = next;
    }
    if (current && send->streaming) { pushes_to_cable(e, send); }
}

static void on_command(struct kv_endpoint *e, const struct command *command)
{
    uint64_t now_ns = clock_now_ns();
    switch (command->kind) {
    case CMD_GRANT: {
        struct grant_data *grant = &e->grants[command->slot];
        grant->link = LINK_NONE;
        grant->began_ns = grant->bytes = 0;
        grant->cable = NULL;
        status_t st = link_core_grant(e->core, command->slot, grant->xfer_id, grant->grant_epoch, grant->secret,
                                      grant->count, grant->lease_ms * NS_PER_MS, now_ns);
        CHECK(!failed(st)); /* an id that is live was refused to the caller */
        memset(grant->secret, 0, sizeof grant->secret);
        break;
    }
    case CMD_REVOKE: {
        const struct grant_data *grant = &e->grants[command->slot];
        pthread_mutex_lock(&e->mutex);
        kv_xfer_id_t xfer_id = grant->xfer_id;
        bool current = grant->used && grant->grant_epoch == command->grant_epoch;
        pthread_mutex_unlock(&e->mutex);
        if (current) { link_core_revoke(e->core, xfer_id, now_ns, &e->wishes); }
        break;
    }
    case CMD_SEND_BEGIN: on_send_begin(e, command->slot); break;
    case CMD_PUSH: on_push(e, command); break;
    case CMD_COMMIT: {
        struct send_data *send = &e->sends[command->slot];
        if (!send->live || send->generation != command->generation || send->payload) {
            free(command->pointer);
            break;
        }
        send->payload = command->pointer;
        send->payload_bytes = command->bytes;
        if (!send->final_held) { link_core_commit(e->core, command->slot, now_ns, &e->wishes); }
        break;
    }
    case CMD_ABORT: {
        const struct send_data *send = &e->sends[command->slot];
        if (send->live && send->generation == command->generation && !send->final_held) {
            link_core_abort(e->core, command->slot, now_ns, &e->wishes);
        }
        break;
    }
    case CMD_STREAM_ACCEPT:
        link_data_open(&e->links[command->slot], false, command->pointer);
        link_core_accepted(e->core, command->slot, now_ns);
        break;
    case CMD_STREAM_MESSAGE:
        if (e->links[command->slot].open && e->links[command->slot].generation == command->generation) {
            on_message(e, command);
        }
        free(command->pointer);
        break;
    case CMD_STREAM_CLOSED:
        if (e->links[command->slot].open && e->links[command->slot].generation == command->generation) {
            link_core_link_lost(e->core, command->slot, STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, command->status.cause),
                                "the peer's stream ended", now_ns, &e->wishes);
        }
        break;
    }
    settle(e);
}

static bool command_take(struct kv_endpoint *e, struct command *ret_command)
{
    pthread_mutex_lock(&e->mutex);
    bool any = e->ring_count > 0;
    if (any) {
        *ret_command = e->ring[e->ring_first];
        e->ring_first = (e->ring_first + 1) % e->ring_size;
        e->ring_count--;
    } else {
        e->wake_posted = false;
    }
    pthread_mutex_unlock(&e->mutex);
    return any;
}

void endpoint_close_all(struct kv_endpoint *e)
{
    for (uint32_t i = 0; i < e->limits.links_max; i++) { carry_close_link(e, i); }
    for (uint32_t i = 0; i < e->cable_count; i++) { e->cables[i].ops->close(e->cables[i].cable); }
}

static void no_event(void *context, const struct kv_event *event)
{
    (void)context;
    (void)event;
}

void *endpoint_thread_main(void *endpoint)
{
    struct kv_endpoint *e = endpoint;
    /* Signals belong to main. A write to a closed socket inside OpenSSL raises SIGPIPE, which
     * stays pending here and harms nobody. */
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    uint64_t tick_ns = e->limits.heartbeat_ns / 4;
    uint64_t ticked_ns = 0;
    int wait_ms = (int)(tick_ns / NS_PER_MS) + 1;
    while (!atomic_load(&e->stop)) {
        kv_loop_run_once(e->loop, wait_ms);
        struct command command;
        while (command_take(e, &command)) { on_command(e, &command); }
        uint64_t now_ns = clock_now_ns();
        if (now_ns - ticked_ns >= tick_ns) {
            ticked_ns = now_ns;
            link_core_tick(e->core, now_ns, &e->wishes);
            settle(e);
        }
        stats_publish(e);
    }
    e->on_event = no_event;
    endpoint_close_all(e);
    return NULL;
}
