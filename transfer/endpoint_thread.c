/* endpoint_thread: the transfer thread: its loop, and the callers' commands; see endpoint_private.h.
 * It turns what happens (commands, messages, cables, time) into facts for the link core; what the
 * core wishes is carried out by endpoint_wishes.c.
 * Flow:    endpoint.c's command ring, the loop -> [endpoint_thread] -> link core -> endpoint_wishes
 * Thread:  the transfer thread.
 * Memory:  a commit's payload, until its event. */
#include "transfer/endpoint_private.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"

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
    endpoint_settle(e);
    e->message_now = NULL;
}

static void on_send_begin(struct kv_endpoint *e, uint32_t slot)
{
    struct send_data *send = &e->sends[slot];
    send->live = true;
    send->streaming = send->dropped = send->final_held = send->word_held = false;
    send->waiting_first = send->waiting_last = NULL;
    send->cable = NULL;
    send->is_used = false;
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
            endpoint_push_free(e, push);
        } else if (send->waiting_first) {
            send->waiting_last->next = push;
            send->waiting_last = push;
        } else {
            send->waiting_first = send->waiting_last = push;
        }
        push = next;
    }
    if (current && send->streaming) { endpoint_pushes_to_cable(e, send); }
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
        grant->carrier = NULL;
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
        endpoint_link_open(&e->links[command->slot], &e->layout, false, command->pointer);
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
    endpoint_settle(e);
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

/* ---- the thread */

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
        while (command_take(e, &command)) {
            on_command(e, &command);
            endpoint_deaf_close(e);
        }
        endpoint_deaf_close(e);
        uint64_t now_ns = clock_now_ns();
        if (now_ns - ticked_ns >= tick_ns) {
            ticked_ns = now_ns;
            link_core_tick(e->core, now_ns, &e->wishes);
            endpoint_settle(e);
        }
        endpoint_stats_publish(e);
    }
    e->on_event = no_event;
    endpoint_close_all(e);
    return NULL;
}
