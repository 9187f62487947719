#include "prefill_node/layer_push.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

/* Of one push: the endpoint takes a push whole or not at all, so one that is larger than all of its
 * room would wait for ever. At a block a frame this is an eighth of the default room. */
#define PUSH_BLOCKS_MAX 256u

struct open_leg {
    bool open;
    struct leg_id leg;
    kv_send_t send;
    uint32_t waiting; /* entries of the list that belong to it */
};

/* A push, or a commit (layer COMMIT), that the endpoint had no room for. */
#define COMMIT UINT32_MAX

struct waiting {
    struct waiting *next;
    uint32_t owner;
    kv_send_t send;
    uint32_t layer, first, count;
    uint64_t mark;
    size_t payload_bytes;
    uint32_t blocks[]; /* [count], or the payload's bytes */
};

struct layer_push {
    pthread_mutex_t mutex; /* guards everything below */
    struct kv_endpoint *endpoint;
    struct waiting *head, **tail;
    uint32_t jobs_max;
    struct open_leg legs[];
};

status_t layer_push_create(uint32_t jobs_max, struct layer_push **ret_push)
{
    struct layer_push *push = calloc(1, sizeof *push + jobs_max * sizeof push->legs[0]);
    if (!push) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    pthread_mutex_init(&push->mutex, NULL);
    push->tail = &push->head;
    push->jobs_max = jobs_max;
    *ret_push = push;
    return STATUS_OK;
}

void layer_push_attach(struct layer_push *push, struct kv_endpoint *endpoint) { push->endpoint = endpoint; }

void layer_push_destroy(struct layer_push *push)
{
    if (!push) { return; }
    while (push->head) {
        struct waiting *next = push->head->next;
        free(push->head);
        push->head = next;
    }
    pthread_mutex_destroy(&push->mutex);
    free(push);
}

static struct open_leg *find(struct layer_push *push, struct leg_id leg)
{
    for (uint32_t i = 0; i < push->jobs_max; i++) {
        if (push->legs[i].open && leg_id_equal(push->legs[i].leg, leg)) { return &push->legs[i]; }
    }
    return NULL;
}

status_t layer_push_begin(struct layer_push *push, struct leg_id leg, const uint8_t *ticket, size_t ticket_bytes,
                          struct diag *diag)
{
    status_t st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    pthread_mutex_lock(&push->mutex);
    struct open_leg *slot = NULL;
    for (uint32_t i = 0; i < push->jobs_max && !slot; i++) {
        if (!push->legs[i].open) { slot = &push->legs[i]; }
    }
    if (slot) {
        /* Under the lock, so that an event of this send finds the leg in the table. */
        st = kv_endpoint_send_begin(push->endpoint, ticket, ticket_bytes, NULL, diag, &slot->send);
        if (!failed(st)) {
            slot->open = true;
            slot->leg = leg;
            slot->waiting = 0;
        }
    } else {
        diag_set(diag, "no room for another transfer");
    }
    pthread_mutex_unlock(&push->mutex);
    return st;
}

/* Puts an entry at the end of the list. False: no memory. */
static bool wait_for_room(struct layer_push *push, struct open_leg *leg, uint32_t layer, uint32_t first,
                          uint32_t count, uint64_t mark, const void *bytes, size_t byte_count)
{
    struct waiting *entry = malloc(sizeof *entry + byte_count);
    if (!entry) { return false; }
    *entry = (struct waiting){.owner = (uint32_t)(leg - push->legs), .send = leg->send, .layer = layer,
                              .first = first, .count = count, .mark = mark, .payload_bytes = byte_count};
    if (byte_count > 0) { memcpy(entry->blocks, bytes, byte_count); }
    *push->tail = entry;
    push->tail = &entry->next;
    leg->waiting++;
    return true;
}

/* A send that has ended meanwhile is known as stale, its final event is on its way, and this
 * abort is counted and ignored. Any other refusal is for good: without the abort the leg would
 * wait for an event that never comes. */
static void refused(struct layer_push *push, kv_send_t send)
{
    kv_endpoint_abort(push->endpoint, send);
}

static void push_slices(struct layer_push *push, struct open_leg *leg, uint32_t layer, uint32_t first,
                        const uint32_t *blocks, uint32_t count, uint64_t mark)
{
    status_t st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    if (leg->waiting == 0) { st = kv_endpoint_push(push->endpoint, leg->send, layer, first, blocks, count, mark); }
    if (!failed(st)) { return; }
    if (st.code == ST_RESOURCE_EXHAUSTED &&
        wait_for_room(push, leg, layer, first, count, mark, blocks, count * sizeof *blocks)) {
        return;
    }
    refused(push, leg->send);
}

/* Under the mutex. */
static void drain_waiting(struct layer_push *push)
{
    while (push->head) {
        struct waiting *entry = push->head;
        struct open_leg *leg = &push->legs[entry->owner];
        bool is_live = leg->open && leg->send.value == entry->send.value;
        if (is_live) {
            status_t st = entry->layer == COMMIT
                              ? kv_endpoint_commit(push->endpoint, entry->send, entry->blocks, entry->payload_bytes)
                              : kv_endpoint_push(push->endpoint, entry->send, entry->layer, entry->first,
                                                 entry->blocks, entry->count, entry->mark);
            if (st.code == ST_RESOURCE_EXHAUSTED && entry->layer != COMMIT) { break; }
            CHECK(leg->waiting > 0);
            leg->waiting--;
            if (failed(st)) { refused(push, entry->send); }
        }
        push->head = entry->next;
        if (!push->head) { push->tail = &push->head; }
        free(entry);
    }
}

void layer_push_layer(struct layer_push *push, const struct step_plan *plan, uint32_t layer, uint64_t mark)
{
    pthread_mutex_lock(&push->mutex);
    /* Room may come back without a PUSH_DONE: a full ring drains, an aborted send's pushes do
     * not report. */
    drain_waiting(push);
    for (uint32_t i = 0; i < plan->span_count; i++) {
        const struct step_span *span = &plan->spans[i];
        if (span->push_count == 0) { continue; }
        struct open_leg *leg = find(push, span->leg);
        if (!leg) { continue; }
        push_slices(push, leg, layer, span->push_first - span->grant_first, span->block_table + span->push_first,
                    span->push_count, mark);
    }
    pthread_mutex_unlock(&push->mutex);
}

void layer_push_blocks(struct layer_push *push, struct leg_id id, uint32_t layer_count, uint32_t first,
                       const uint32_t *blocks, uint32_t count)
{
    pthread_mutex_lock(&push->mutex);
    drain_waiting(push);
    struct open_leg *leg = find(push, id);
    for (uint32_t layer = 0; leg && layer < layer_count; layer++) {
        for (uint32_t done = 0; done < count;) {
            uint32_t now = count - done < PUSH_BLOCKS_MAX ? count - done : PUSH_BLOCKS_MAX;
            push_slices(push, leg, layer, first + done, blocks + done, now, 0);
            done += now;
        }
    }
    pthread_mutex_unlock(&push->mutex);
}

status_t layer_push_commit(struct layer_push *push, struct leg_id id, const uint8_t *payload, size_t payload_bytes)
{
    if (payload_bytes > KV_PAYLOAD_BYTES_MAX) { return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST); }
    status_t st = STATUS_OK;
    pthread_mutex_lock(&push->mutex);
    struct open_leg *leg = find(push, id);
    if (leg && leg->waiting > 0) {
        if (!wait_for_room(push, leg, COMMIT, 0, 0, 0, payload, payload_bytes)) {
            st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
        }
    } else if (leg) {
        st = kv_endpoint_commit(push->endpoint, leg->send, payload, payload_bytes);
        if (st.code == ST_INVALID_ARGUMENT) {
            refused(push, leg->send);
            st = STATUS_OK;
        }
    }
    pthread_mutex_unlock(&push->mutex);
    return st;
}

bool layer_push_abort(struct layer_push *push, struct leg_id id)
{
    pthread_mutex_lock(&push->mutex);
    struct open_leg *leg = find(push, id);
    if (leg) { kv_endpoint_abort(push->endpoint, leg->send); }
    pthread_mutex_unlock(&push->mutex);
    return leg != NULL;
}

void layer_push_room(struct layer_push *push)
{
    pthread_mutex_lock(&push->mutex);
    drain_waiting(push);
    pthread_mutex_unlock(&push->mutex);
}

bool layer_push_end(struct layer_push *push, struct leg_id id)
{
    pthread_mutex_lock(&push->mutex);
    struct open_leg *leg = find(push, id);
    if (leg) { leg->open = false; } /* what waits for it is dropped when its turn comes */
    drain_waiting(push);
    pthread_mutex_unlock(&push->mutex);
    return leg != NULL;
}
