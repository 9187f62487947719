/* endpoint_events: what the node is told: the ends of grants and sends, and the counters.
 * Flow:    endpoint_wishes, endpoint_cables -> [endpoint_events] -> the node's on_event
 * Thread:  the transfer thread; a slot goes back to the callers under the mutex.
 * Memory:  frees the payload of a commit with the event that ends its transfer. */
#include "transfer/endpoint_private.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"

void endpoint_stats_publish(struct kv_endpoint *e)
{
    pthread_mutex_lock(&e->mutex);
    e->published = *link_core_stats(e->core);
    e->published.bytes_pushed = e->bytes_pushed;
    e->published.cables_refused = e->cables_refused;
    e->published.messages_ignored += e->messages_unheard;
    for (uint32_t i = 0; i < e->cable_count; i++) {
        if (e->cables[i].ops->stats) { e->cables[i].ops->stats(e->cables[i].cable, &e->published); }
    }
    pthread_mutex_unlock(&e->mutex);
}

void endpoint_emit(struct kv_endpoint *e, const struct kv_event *event)
{
    /* Who is told of an end finds it counted. */
    if (event->kind != KV_EVENT_PUSH_DONE) { endpoint_stats_publish(e); }
    e->on_event(e->on_event_context, event);
}

static const char *event_text(const struct kv_endpoint *e, const struct link_wish *wish)
{
    return wish->link != LINK_NONE && e->links[wish->link].note[0] ? e->links[wish->link].note : wish->text;
}

void endpoint_emit_grant(struct kv_endpoint *e, const struct link_wish *wish)
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
        endpoint_emit(e, &event);
        return;
    }
    if (grant->carrier) { endpoint_cable_used(grant->carrier, grant->link, -1); }
    grant->carrier = NULL;
    uint8_t *payload = grant->payload;
    grant->payload = NULL;
    grant->payload_bytes = 0;
    grant->final_held = false;
    /* Free first: the node may grant again from inside the event. */
    pthread_mutex_lock(&e->mutex);
    for (uint32_t i = 0; i < grant->count; i++) {
        e->granted[grant->blocks[i] / 64] &= ~(UINT64_C(1) << (grant->blocks[i] % 64));
    }
    grant->used = false;
    grant->next_free = e->free_grant;
    e->free_grant = wish->slot;
    pthread_mutex_unlock(&e->mutex);
    endpoint_emit(e, &event);
    free(payload);
}

/* The link may be another's by the time of the event, and its note with it. */
static struct link_wish wish_for_later(const struct kv_endpoint *e, const struct link_wish *wish, char ret_text[256])
{
    struct link_wish later = *wish;
    snprintf(ret_text, 256, "%.255s", event_text(e, wish));
    later.text = ret_text;
    later.link = LINK_NONE;
    return later;
}

void endpoint_hold_grant(struct kv_endpoint *e, const struct link_wish *wish)
{
    struct grant_data *grant = &e->grants[wish->slot];
    grant->final = wish_for_later(e, wish, grant->final_text);
    grant->final_held = true;
}

void endpoint_hold_send(struct kv_endpoint *e, const struct link_wish *wish)
{
    struct send_data *send = &e->sends[wish->slot];
    send->final = wish_for_later(e, wish, send->final_text);
    send->final_held = true;
}

void endpoint_emit_send(struct kv_endpoint *e, const struct link_wish *wish)
{
    struct send_data *send = &e->sends[wish->slot];
    const struct link_data *link = send->link != LINK_NONE ? &e->links[send->link] : NULL;
    char reason[sizeof link->reason] = "";
    if (link && link->warm && send->cable == link->warm) {
        snprintf(reason, sizeof reason, "%s", link->warm_reason);
    } else if (link) {
        snprintf(reason, sizeof reason, "%s%s%.120s", link->warm ? link->warm->ops->name : "", link->warm ? " is not up yet; " : "",
                 link->reason);
    }
    struct kv_event event = {
        .kind = wish->event,
        .xfer_id = wish->xfer_id,
        .grant_epoch = wish->grant_epoch,
        .send = {.value = (uint64_t)send->generation << 32 | wish->slot},
        .user = send->user,
        .status = wish->status,
        .text = event_text(e, wish),
        .stats = {.bytes = send->bytes, .duration_ns = clock_now_ns() - send->began_ns,
                  .cable = send->cable ? send->cable->ops->name : "", .reason = reason},
    };
    if (send->is_used) { endpoint_cable_used(send->cable, send->link, -1); }
    send->is_used = false;
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
    endpoint_emit(e, &event);
}
