/* endpoint_cables: the endpoint as the cables see it, the pushes they are given, and P's choice of one.
 * Flow:    cables -> [endpoint_cables] -> facts for the link core; pushes -> [endpoint_cables] -> a cable
 * Thread:  the transfer thread.
 * Memory:  push records go back to the callers' free list under the mutex. */
#include "transfer/endpoint_private.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"

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

static bool host_is_own(void *slot_, uint32_t link_slot)
{
    const struct cable_slot *slot = slot_;
    return slot->endpoint->links[link_slot].cable == slot;
}

static bool host_is_sender(void *slot, uint32_t link_slot) { return ((struct cable_slot *)slot)->endpoint->links[link_slot].is_sender; }

static uint64_t host_peer_identity(void *slot, uint32_t link_slot) { return ((struct cable_slot *)slot)->endpoint->links[link_slot].peer_identity; }

static const struct kv_layout *host_peer_layout(void *slot, uint32_t link)
{
    return &((struct cable_slot *)slot)->endpoint->links[link].peer_layout;
}

bool endpoint_peer_layout(struct kv_endpoint *e, struct link_data *link, const uint8_t wire[KV_FINGERPRINT_WIRE_BYTES])
{
    struct kv_fingerprint theirs;
    if (failed(kv_fingerprint_decode(wire, KV_FINGERPRINT_WIRE_BYTES, NULL, &theirs))) { return false; }
    enum kv_fit fit = kv_fingerprint_fit(&e->fingerprint, &theirs);
    link->converts = fit == KV_FIT_CONVERTS;
    if (link->converts) { link->peer_layout = theirs.layout; }
    return fit != KV_FIT_NONE;
}

static void warm_connect(struct kv_endpoint *e, uint32_t link_slot);

static void host_connected(void *slot_, uint32_t link_slot)
{
    struct cable_slot *slot = slot_;
    struct kv_endpoint *e = slot->endpoint;
    struct link_data *link = &e->links[link_slot];
    if (!link->open || (link->is_sender && link->cable != slot)) { return; } /* P asks the warm one itself */
    if (link->cable_up) {
        if (slot->ops->warms_up && slot != link->cable) { link->warm = slot; }
        return;
    }
    link->cable = slot;
    link->cable_up = true;
    link->has_token = false; /* it opens one connection */
    link_core_cable_up(e->core, link_slot, clock_now_ns(), &e->wishes);
    if (link->warm) { warm_connect(e, link_slot); }
    endpoint_settle(e);
}

/* What the warm cable carried is over; the link goes on. */
static void warm_lost(struct kv_endpoint *e, uint32_t link_slot, const struct cable_slot *slot, status_t status, const char *text)
{
    uint64_t now_ns = clock_now_ns();
    for (uint32_t i = 0; i < e->limits.sends_max; i++) {
        struct send_data *send = &e->sends[i];
        if (!send->live || send->link != link_slot || send->cable != slot || send->final_held) { continue; }
        snprintf(send->broke_text, sizeof send->broke_text, "the %s cable broke: %.160s", slot->ops->name, text);
        link_core_send_broke(e->core, i, status, send->broke_text, now_ns, &e->wishes);
    }
    for (uint32_t i = 0; i < e->limits.grants_max; i++) {
        struct grant_data *grant = &e->grants[i];
        if (grant->link != link_slot || grant->carrier != slot || !link_core_grant_is_live(e->core, i, grant->grant_epoch)) { continue; }
        snprintf(grant->broke_text, sizeof grant->broke_text, "the %s cable broke: %.160s", slot->ops->name, text);
        link_core_grant_broke(e->core, i, grant->grant_epoch, status, grant->broke_text, now_ns, &e->wishes);
    }
}

static void host_lost(void *slot_, uint32_t link_slot, status_t status, const char *text)
{
    struct cable_slot *slot = slot_;
    struct kv_endpoint *e = slot->endpoint;
    struct link_data *link = &e->links[link_slot];
    if (!link->open || (link->cable != slot && link->warm != slot)) { return; }
    if (link->warm == slot) {
        warm_lost(e, link_slot, slot, status, text);
    } else if (!link->cable_up && link->is_sender) {
        snprintf(link->reason, sizeof link->reason, "%s failed: %s", slot->ops->name, text);
        endpoint_cable_try_next(e, link_slot);
    } else {
        snprintf(link->note, sizeof link->note, "the %s cable broke: %s", slot->ops->name, text);
        link_core_link_lost(e->core, link_slot, status, link->note, clock_now_ns(), &e->wishes);
    }
    endpoint_settle(e);
}

static void host_heard(void *slot, uint32_t link)
{
    struct kv_endpoint *e = ((struct cable_slot *)slot)->endpoint;
    link_core_heard(e->core, link, clock_now_ns());
}

/* From inside a cable: what a refused message leads to has to wait until the cable has returned. */
static void host_say(void *slot_, uint32_t link_slot, const void *bytes, size_t count)
{
    struct cable_slot *slot = slot_;
    struct kv_endpoint *e = slot->endpoint;
    struct link_data *link = &e->links[link_slot];
    CHECK(count <= KV_CABLE_MESSAGE_BYTES_MAX);
    if (!link->open || !link->stream || link->is_deaf) { return; }
    struct link_msg msg = {.kind = LINK_CABLE, .body.cable = {.bytes = bytes, .count = count}};
    snprintf(msg.body.cable.cable, sizeof msg.body.cable.cable, "%s", slot->ops->name);
    size_t size = link_wire_encode(&msg, e->wire_buffer, KV_LINK_MESSAGE_BYTES_MAX);
    CHECK(size > 0);
    if (failed(e->stream.send(e->stream_context, link->stream, e->wire_buffer, size))) { link->is_deaf = e->any_is_deaf = true; }
}

void endpoint_deaf_close(struct kv_endpoint *e)
{
    if (!e->any_is_deaf) { return; }
    e->any_is_deaf = false;
    for (uint32_t i = 0; i < e->limits.links_max; i++) {
        if (!e->links[i].open || !e->links[i].is_deaf) { continue; }
        link_core_link_lost(e->core, i, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the link's stream takes no more messages",
                            clock_now_ns(), &e->wishes);
        endpoint_settle(e);
    }
}

/* Only to a cable that was offered on this link: whoever names another is mistaken or lies. */
void endpoint_cable_hear(struct kv_endpoint *e, uint32_t link_slot, const struct link_cable_msg *msg)
{
    for (uint32_t i = 0; i < e->cable_count; i++) {
        const struct cable_slot *slot = &e->cables[i];
        if (!(e->links[link_slot].offered >> i & 1u) || !slot->ops->message || strcmp(slot->ops->name, msg->cable) != 0) { continue; }
        slot->ops->message(slot->cable, link_slot, msg->bytes, msg->count);
        return;
    }
    e->messages_unheard++;
}

static bool host_frame_accept(void *slot, uint32_t link, const struct kv_frame *frame, struct kv_landing *ret_landing)
{
    struct kv_endpoint *e = ((struct cable_slot *)slot)->endpoint;
    uint32_t grant_slot = 0;
    if (!link_core_frame_accept(e->core, link, frame, &grant_slot)) { return false; }
    struct grant_data *grant = &e->grants[grant_slot];
    if (!grant->carrier) {
        grant->carrier = slot;
        grant->cable = grant->carrier->ops->name;
        endpoint_cable_used(grant->carrier, link, 1);
    }
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
    endpoint_settle(e);
}

static void host_hold(void *slot, const struct kv_landing *landing)
{
    struct kv_endpoint *e = ((struct cable_slot *)slot)->endpoint;
    e->grants[landing->slot].holds++;
}

static void host_let_go(void *slot, const struct kv_landing *landing)
{
    struct kv_endpoint *e = ((struct cable_slot *)slot)->endpoint;
    struct grant_data *grant = &e->grants[landing->slot];
    CHECK(grant->holds > 0);
    CHECK(grant->grant_epoch == landing->grant_epoch); /* its slot is not given away while it is held */
    if (--grant->holds > 0 || !grant->final_held) { return; }
    struct link_wish final = grant->final;
    endpoint_emit_grant(e, &final);
}

static void host_memory_kept(void *slot) { ((struct cable_slot *)slot)->endpoint->memory_is_kept = true; }

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
    endpoint_push_free(e, push);
    if (tell) { endpoint_emit(e, &event); }
    if (send->word_held && send->at_cable == 0) { endpoint_word_send(e, send); }
    if (send->final_held && send->at_cable == 0) { endpoint_emit_send(e, &send->final); }
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
        .frame_blocks = e->frame_blocks,
        .links_max = e->limits.links_max,
        .connect_ns = e->limits.connect_ns,
        .token_link = host_token_link,
        .peer_layout = host_peer_layout,
        .is_own = host_is_own,
        .is_sender = host_is_sender,
        .peer_identity = host_peer_identity,
        .connected = host_connected,
        .lost = host_lost,
        .say = host_say,
        .heard = host_heard,
        .frame_accept = host_frame_accept,
        .landing_is_live = host_landing_is_live,
        .frame_landed = host_frame_landed,
        .hold = host_hold,
        .let_go = host_let_go,
        .memory_kept = host_memory_kept,
        .push_done = host_push_done,
    };
}

/* ---- pushes */

void endpoint_push_free(struct kv_endpoint *e, struct kv_cable_push *push)
{
    pthread_mutex_lock(&e->mutex);
    push->next = e->free_push;
    e->free_push = push;
    e->free_push_count++;
    pthread_mutex_unlock(&e->mutex);
}

void endpoint_cable_used(const struct cable_slot *slot, uint32_t link_slot, int change)
{
    if (slot->ops->used) { slot->ops->used(slot->cable, link_slot, change); }
}

struct cable_slot *endpoint_cable_choose(struct kv_endpoint *e, uint32_t link_slot)
{
    const struct link_data *link = &e->links[link_slot];
    bool warm_is_ready = link->warm && link->warm_connects && link->warm->ops->ready(link->warm->cable, link_slot);
    return warm_is_ready ? link->warm : link->cable;
}

void endpoint_pushes_to_cable(struct kv_endpoint *e, struct send_data *send)
{
    const struct link_data *link = &e->links[send->link];
    while (send->waiting_first && link->cable_up && !send->dropped) {
        struct kv_cable_push *push = send->waiting_first;
        send->waiting_first = push->next;
        push->next = NULL;
        send->at_cable++;
        send->cable->ops->push(send->cable->cable, send->link, push);
    }
}

void endpoint_pushes_drop(struct kv_endpoint *e, struct send_data *send)
{
    while (send->waiting_first) {
        struct kv_cable_push *push = send->waiting_first;
        send->waiting_first = push->next;
        endpoint_push_free(e, push);
    }
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

const struct kv_cable_offer *endpoint_offer_of(const struct link_data *link, const struct cable_slot *slot)
{
    for (uint32_t i = 0; i < link->ack.offer_count; i++) {
        if (strcmp(link->ack.offers[i].cable, slot->ops->name) == 0) { return &link->ack.offers[i].offer; }
    }
    return NULL;
}

/* False: link->reason says why. */
static bool cable_connect(struct kv_endpoint *e, uint32_t link_slot, const struct cable_slot *slot, char ret_reason[160])
{
    const struct link_data *link = &e->links[link_slot];
    const struct kv_cable_offer *offer = endpoint_offer_of(link, slot);
    char host[KV_ADDRESS_CHARS_MAX + 1];
    host_part(link->address, host, sizeof host);
    status_t st = slot->ops->connect(slot->cable, link_slot, host, offer->bytes, offer->size, link->ack.token);
    if (failed(st)) { snprintf(ret_reason, 160, "%s failed: %s (cause %d)", slot->ops->name, status_code_name(st.code), st.cause); }
    return !failed(st);
}

/* The link's own cable works: the better one, which takes its time, is begun. */
static void warm_connect(struct kv_endpoint *e, uint32_t link_slot)
{
    struct link_data *link = &e->links[link_slot];
    link->warm_connects = cable_connect(e, link_slot, link->warm, link->reason);
    if (!link->warm_connects) { link->warm = NULL; }
}

/* In our order of preference, what both sides have. The reason that is kept is the one why the
 * chosen cable is not a better one. One that warms up is passed over, and is the link's own only
 * where no other works. */
void endpoint_cable_try_next(struct kv_endpoint *e, uint32_t link_slot)
{
    struct link_data *link = &e->links[link_slot];
    bool same_host = e->host_id[0] && strcmp(e->host_id, link->ack.host_id) == 0;
    link->cable = NULL;
    while (link->next_choice < e->cable_count) {
        struct cable_slot *slot = &e->cables[link->next_choice++];
        const struct kv_cable_offer *offer = endpoint_offer_of(link, slot);
        if (link->converts && !slot->ops->converts) {
            snprintf(link->reason, sizeof link->reason, "%s does not convert %s to %s", slot->ops->name, dtype_name(e->layout.dtype),
                     dtype_name(link->peer_layout.dtype));
            continue;
        }
        if (!offer) {
            snprintf(link->reason, sizeof link->reason, "%s is not offered by the receiver", slot->ops->name);
            continue;
        }
        if (slot->ops->same_host_only && !same_host) {
            snprintf(link->reason, sizeof link->reason, "%s needs one host; these are two", slot->ops->name);
            continue;
        }
        if (slot->ops->needs_source_memfd && e->pool.memfd < 0 && !e->pool.memory) {
            snprintf(link->reason, sizeof link->reason, "%s needs a pool in a memfd", slot->ops->name);
            continue;
        }
        const char *mismatch = slot->ops->mismatch ? slot->ops->mismatch(slot->cable, offer->bytes, offer->size) : NULL;
        if (mismatch) {
            snprintf(link->reason, sizeof link->reason, "%s: %s", slot->ops->name, mismatch);
            continue;
        }
        if (slot->ops->warms_up && !link->warm) {
            link->warm = slot;
            snprintf(link->warm_reason, sizeof link->warm_reason, "%s", link->reason[0] ? link->reason : "first choice");
            continue;
        }
        link->cable = slot;
        if (cable_connect(e, link_slot, slot, link->reason)) {
            if (link->reason[0] == '\0') {
                snprintf(link->reason, sizeof link->reason, "%s", same_host && slot->ops->same_host_only ? "same host" : "first choice");
            }
            return;
        }
        link->cable = NULL;
    }
    if (link->warm) {
        link->cable = link->warm;
        link->warm = NULL;
        snprintf(link->reason, sizeof link->reason, "%s", link->warm_reason);
        if (cable_connect(e, link_slot, link->cable, link->reason)) { return; }
        link->cable = NULL;
    }
    snprintf(link->note, sizeof link->note, "no cable works: %s", link->reason);
    link_core_link_lost(e->core, link_slot, STATUS(ST_UNAVAILABLE, SCOPE_PEER), link->note, clock_now_ns(), &e->wishes);
}
