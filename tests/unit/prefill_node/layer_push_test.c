/* Claims on layer_push over an endpoint that refuses, fails and goes stale: nothing is lost or
 * doubled, a commit comes after all of its pushes, and no leg is left without a final event.
 *
 * The endpoint here is a fake of the four calls that layer_push makes. It takes as many pushes
 * as it has room for, and reports the ends of sends when the test says so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <pthread.h>

#include "base/clock.h"
#include "base/rng.h"
#include "prefill_node/layer_push.h"

enum { SENDS = 64, LAYERS = 6, BLOCKS = 600, LAYER_MARK = 7000 /* and the layer: what the engine says */ };

struct fake_send {
    bool open, committed, aborted;
    uint32_t slices, want_slices; /* pushed so far; the commit checks */
    bool seen[LAYERS][BLOCKS];
    uint64_t marks[LAYERS][BLOCKS];
    uint8_t payload[64];
    size_t payload_bytes;
};

struct kv_endpoint {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct fake_send sends[SENDS];
    uint32_t begun;
    uint32_t room, under_way; /* pushes that may be taken; that were taken and not reported */
    uint32_t refuse_commits;  /* the next so many: ring full */
    status_t begin_status;
    uint32_t pushes, commits, aborts, ignored;
};

static struct fake_send *live(struct kv_endpoint *endpoint, kv_send_t send)
{
    if (send.value == 0 || send.value > endpoint->begun) { return NULL; }
    struct fake_send *found = &endpoint->sends[send.value - 1];
    return found->open ? found : NULL;
}

status_t kv_endpoint_send_begin(struct kv_endpoint *endpoint, const void *ticket, size_t ticket_bytes, void *user,
                                struct diag *diag, kv_send_t *ret_send)
{
    (void)user;
    pthread_mutex_lock(&endpoint->mutex);
    status_t st = endpoint->begin_status;
    if (failed(st)) { diag_set(diag, "not a ticket"); }
    if (!failed(st) && endpoint->begun == SENDS) { st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
    if (!failed(st)) {
        struct fake_send *send = &endpoint->sends[endpoint->begun++];
        send->open = true;
        if (ticket_bytes == sizeof send->want_slices) { memcpy(&send->want_slices, ticket, ticket_bytes); }
        ret_send->value = endpoint->begun;
    }
    pthread_mutex_unlock(&endpoint->mutex);
    return st;
}

status_t kv_endpoint_push(struct kv_endpoint *endpoint, kv_send_t handle, uint32_t layer, uint32_t first,
                          const uint32_t *src_blocks, uint32_t count, uint64_t mark)
{
    status_t st = STATUS_OK;
    pthread_mutex_lock(&endpoint->mutex);
    struct fake_send *send = live(endpoint, handle);
    if (!send || send->committed || send->aborted || layer >= LAYERS || first + count > BLOCKS) {
        st = STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    } else if (endpoint->room == 0) {
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    } else {
        endpoint->room--;
        endpoint->under_way++;
        endpoint->pushes++;
        for (uint32_t i = 0; i < count; i++) {
            assert_false(send->seen[layer][first + i]); /* each slice exactly once */
            send->seen[layer][first + i] = true;
            send->marks[layer][first + i] = mark;
            assert_int_equal(src_blocks[i], 1000 + first + i); /* the right block of the table */
        }
        send->slices += count;
        pthread_cond_broadcast(&endpoint->changed);
    }
    pthread_mutex_unlock(&endpoint->mutex);
    return st;
}

status_t kv_endpoint_commit(struct kv_endpoint *endpoint, kv_send_t handle, const void *payload, size_t payload_bytes)
{
    status_t st = STATUS_OK;
    pthread_mutex_lock(&endpoint->mutex);
    struct fake_send *send = live(endpoint, handle);
    if (!send || send->committed || send->aborted || send->slices != send->want_slices) {
        st = STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    } else if (endpoint->refuse_commits > 0) {
        endpoint->refuse_commits--;
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    } else {
        send->committed = true;
        send->payload_bytes = payload_bytes;
        assert_true(payload_bytes <= sizeof send->payload);
        if (payload_bytes > 0) { memcpy(send->payload, payload, payload_bytes); }
        endpoint->commits++;
        pthread_cond_broadcast(&endpoint->changed);
    }
    pthread_mutex_unlock(&endpoint->mutex);
    return st;
}

void kv_endpoint_abort(struct kv_endpoint *endpoint, kv_send_t handle)
{
    pthread_mutex_lock(&endpoint->mutex);
    struct fake_send *send = live(endpoint, handle);
    if (send && !send->aborted) {
        send->aborted = true;
        endpoint->aborts++;
        pthread_cond_broadcast(&endpoint->changed);
    } else {
        endpoint->ignored++;
    }
    pthread_mutex_unlock(&endpoint->mutex);
}

/* ---- what the tests do with it */

static struct layer_push *open_push(struct kv_endpoint *endpoint, uint32_t jobs_max, uint32_t room)
{
    struct layer_push *push;
    memset(endpoint, 0, sizeof *endpoint);
    pthread_mutex_init(&endpoint->mutex, NULL);
    pthread_cond_init(&endpoint->changed, NULL);
    endpoint->room = room;
    assert_false(failed(layer_push_create(jobs_max, &push)));
    layer_push_attach(push, endpoint);
    return push;
}

static void close_push(struct kv_endpoint *endpoint, struct layer_push *push)
{
    layer_push_destroy(push);
    pthread_cond_destroy(&endpoint->changed);
    pthread_mutex_destroy(&endpoint->mutex);
}

static struct leg_id leg(uint64_t lo) { return (struct leg_id){.hi = 9, .lo = lo}; }

static status_t begin(struct layer_push *push, uint64_t lo, uint32_t want_slices)
{
    struct diag diag = {{0}};
    return layer_push_begin(push, leg(lo), (const uint8_t *)&want_slices, sizeof want_slices, &diag);
}

/* Blocks first .. +count of the leg are complete; block i of its table is pool block 1000 + i. */
static struct step_span span_of(uint64_t lo, uint32_t first, uint32_t count)
{
    static uint32_t table[BLOCKS];
    for (uint32_t i = 0; i < BLOCKS; i++) { table[i] = 1000 + i; }
    return (struct step_span){.leg = leg(lo), .block_table = table, .block_count = BLOCKS, .push_first = first,
                              .push_count = count};
}

static void push_layers(struct layer_push *push, const struct step_span *spans, uint32_t count, uint32_t from, uint32_t to)
{
    struct step_plan plan = {.span_count = count, .spans = spans};
    for (uint32_t layer = from; layer < to; layer++) { layer_push_layer(push, &plan, layer, LAYER_MARK + layer); }
}

/* One push was taken by the cable. False: none was under way. */
static bool push_done(struct kv_endpoint *endpoint, struct layer_push *push)
{
    pthread_mutex_lock(&endpoint->mutex);
    bool any = endpoint->under_way > 0;
    if (any) { endpoint->under_way--; endpoint->room++; }
    pthread_mutex_unlock(&endpoint->mutex);
    if (any) { layer_push_room(push); }
    return any;
}

/* The final event of a send: it is stale from here on. */
static void finish(struct kv_endpoint *endpoint, uint64_t send)
{
    pthread_mutex_lock(&endpoint->mutex);
    endpoint->sends[send - 1].open = false;
    pthread_mutex_unlock(&endpoint->mutex);
}

/* With room, everything goes straight through; with none under way, nothing is left behind. */
static void with_room_all_goes_through(void **state)
{
    (void)state;
    static struct kv_endpoint endpoint;
    struct layer_push *push = open_push(&endpoint, 4, 1000);
    assert_false(failed(begin(push, 1, LAYERS * 5)));
    struct step_span first = span_of(1, 0, 2), none = span_of(1, 2, 0), second = span_of(1, 2, 3);
    push_layers(push, &first, 1, 0, LAYERS);
    push_layers(push, &none, 1, 0, LAYERS); /* a chunk that completed no block */
    push_layers(push, &second, 1, 0, LAYERS);
    assert_int_equal(endpoint.pushes, 2 * LAYERS);
    assert_false(failed(layer_push_commit(push, leg(1), (const uint8_t *)"token", 5)));
    assert_int_equal(endpoint.commits, 1);
    assert_memory_equal(endpoint.sends[0].payload, "token", 5);
    assert_int_equal(endpoint.aborts, 0);
    finish(&endpoint, 1);
    assert_true(layer_push_end(push, leg(1)));
    assert_false(layer_push_end(push, leg(1)));
    close_push(&endpoint, push);
    layer_push_destroy(NULL);
}

/* A grant that begins after cached blocks counts from there, and the bytes come from the table. */
static void a_grant_counts_from_its_first_block(void **state)
{
    (void)state;
    static struct kv_endpoint endpoint;
    static uint32_t table[7];
    for (uint32_t i = 0; i < 7; i++) { table[i] = 1000 + i - 3; } /* what the fake expects at the grant's index */
    struct layer_push *push = open_push(&endpoint, 4, 1000);
    assert_false(failed(begin(push, 1, LAYERS * 4)));
    struct step_span span = {.leg = leg(1), .block_table = table, .block_count = 7, .grant_first = 3, .push_first = 3,
                             .push_count = 4};
    push_layers(push, &span, 1, 0, LAYERS);
    assert_false(failed(layer_push_commit(push, leg(1), (const uint8_t *)"x", 1)));
    assert_int_equal(endpoint.commits, 1);
    close_push(&endpoint, push);
}

/* Cached blocks leave with all their layers, once each, before the computed ones or after them, in
 * pieces where there are many; the commit waits for them like for any push. A computed layer leaves
 * with its mark, also after a wait for room; what was cached is final and has none. */
static void cached_blocks_leave_with_all_layers(void **state)
{
    (void)state;
    static struct kv_endpoint endpoint;
    uint32_t table[BLOCKS];
    for (uint32_t i = 0; i < BLOCKS; i++) { table[i] = 1000 + i; }
    struct layer_push *push = open_push(&endpoint, 4, 3);
    assert_false(failed(begin(push, 1, LAYERS * 9)));
    layer_push_blocks(push, leg(2), LAYERS, 0, table, 5); /* not open here */
    layer_push_blocks(push, leg(1), LAYERS, 0, table, 5);
    struct step_span span = span_of(1, 5, 4);
    push_layers(push, &span, 1, 0, LAYERS);
    assert_false(failed(layer_push_commit(push, leg(1), (const uint8_t *)"x", 1)));
    assert_int_equal(endpoint.pushes, 3);
    assert_int_equal(endpoint.commits, 0);
    while (push_done(&endpoint, push)) {}
    assert_int_equal(endpoint.pushes, 2 * LAYERS);
    assert_int_equal(endpoint.commits, 1);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (uint32_t i = 0; i < 9; i++) { assert_int_equal(endpoint.sends[0].marks[layer][i], i < 5 ? 0 : LAYER_MARK + layer); }
    }
    close_push(&endpoint, push);

    push = open_push(&endpoint, 4, 1000);
    assert_false(failed(begin(push, 1, 0)));
    static uint32_t many[600];
    for (uint32_t i = 0; i < 600; i++) { many[i] = 1000 + i; }
    layer_push_blocks(push, leg(1), 1, 0, many, 600);
    assert_int_equal(endpoint.pushes, 3);
    assert_int_equal(endpoint.sends[0].slices, 600);
    close_push(&endpoint, push);
}

/* However little room there is, each slice arrives once, and the commit only after the last. */
static void what_is_refused_waits_in_order(void **state)
{
    (void)state;
    for (uint32_t room = 0; room <= 2 * LAYERS + 1; room++) {
        static struct kv_endpoint endpoint;
        struct layer_push *push = open_push(&endpoint, 4, room);
        assert_false(failed(begin(push, 1, LAYERS * 4)));
        struct step_span first = span_of(1, 0, 1), second = span_of(1, 1, 3);
        push_layers(push, &first, 1, 0, LAYERS);
        push_layers(push, &second, 1, 0, LAYERS);
        assert_false(failed(layer_push_commit(push, leg(1), (const uint8_t *)"abc", 3)));
        assert_int_equal(endpoint.pushes, room < 2 * LAYERS ? room : 2 * LAYERS);
        assert_int_equal(endpoint.commits, room >= 2 * LAYERS);
        if (room == 0) { endpoint.room = 1; layer_push_room(push); }
        while (push_done(&endpoint, push)) {}
        assert_int_equal(endpoint.pushes, 2 * LAYERS);
        assert_int_equal(endpoint.commits, 1);
        assert_int_equal(endpoint.aborts, 0);
        close_push(&endpoint, push);
    }
}

/* An empty payload commits, at once and after a wait; one too large is refused both ways. */
static void payloads_have_bounds(void **state)
{
    (void)state;
    static uint8_t large[KV_PAYLOAD_BYTES_MAX + 1];
    for (uint32_t room = 0; room < 2; room++) {
        static struct kv_endpoint endpoint;
        struct layer_push *push = open_push(&endpoint, 4, room);
        assert_false(failed(begin(push, 1, 1)));
        struct step_span span = span_of(1, 0, 1);
        push_layers(push, &span, 1, 0, 1);
        status_t st = layer_push_commit(push, leg(1), large, sizeof large);
        assert_int_equal(st.code, ST_INVALID_ARGUMENT);
        assert_false(failed(layer_push_commit(push, leg(1), NULL, 0)));
        endpoint.room++;
        layer_push_room(push);
        assert_int_equal(endpoint.commits, 1);
        close_push(&endpoint, push);
    }
}

/* A commit that cannot go when its turn comes turns into an abort: the leg gets its final event. */
static void a_commit_refused_late_aborts(void **state)
{
    (void)state;
    static struct kv_endpoint endpoint;
    struct layer_push *push = open_push(&endpoint, 4, 0);
    assert_false(failed(begin(push, 1, 1)));
    struct step_span span = span_of(1, 0, 1);
    push_layers(push, &span, 1, 0, 1);
    assert_false(failed(layer_push_commit(push, leg(1), (const uint8_t *)"x", 1)));
    endpoint.refuse_commits = 1;
    endpoint.room = 1;
    layer_push_room(push);
    assert_int_equal(endpoint.pushes, 1);
    assert_int_equal(endpoint.commits, 0);
    assert_int_equal(endpoint.aborts, 1);
    close_push(&endpoint, push);
}

/* A commit that is refused at once says so: the caller aborts. One of slices that were never
 * pushed is our mistake; it ends in an abort, not in silence. */
static void a_commit_refused_now_is_told(void **state)
{
    (void)state;
    static struct kv_endpoint endpoint;
    struct layer_push *push = open_push(&endpoint, 4, 9);
    assert_false(failed(begin(push, 1, 0)));
    endpoint.refuse_commits = 1;
    status_t st = layer_push_commit(push, leg(1), (const uint8_t *)"x", 1);
    assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
    assert_true(layer_push_abort(push, leg(1)));
    assert_int_equal(endpoint.aborts, 1);
    assert_false(failed(begin(push, 2, 7)));
    assert_false(failed(layer_push_commit(push, leg(2), (const uint8_t *)"x", 1)));
    assert_int_equal(endpoint.aborts, 2);
    close_push(&endpoint, push);
}

/* Legs that end, abort or go stale while their pushes wait hold up nobody behind them. */
static void the_dead_do_not_block_the_living(void **state)
{
    (void)state;
    for (int how = 0; how < 3; how++) {
        static struct kv_endpoint endpoint;
        struct layer_push *push = open_push(&endpoint, 4, 0);
        assert_false(failed(begin(push, 1, LAYERS)));
        assert_false(failed(begin(push, 2, LAYERS)));
        struct step_span spans[2] = {span_of(1, 0, 1), span_of(2, 0, 1)};
        push_layers(push, spans, 2, 0, LAYERS);
        assert_false(failed(layer_push_commit(push, leg(2), (const uint8_t *)"2", 1)));
        if (how == 0) { finish(&endpoint, 1); assert_true(layer_push_end(push, leg(1))); }
        if (how == 1) { assert_true(layer_push_abort(push, leg(1))); }
        if (how == 2) { finish(&endpoint, 1); } /* stale before anybody here knows */
        endpoint.room = 1;
        layer_push_room(push);
        while (push_done(&endpoint, push)) {}
        assert_true(endpoint.sends[1].committed);
        assert_int_equal(endpoint.pushes, LAYERS);
        close_push(&endpoint, push);
    }
}

/* A new leg in the slot of one that ended gets none of its pushes. */
static void a_slot_reused_inherits_nothing(void **state)
{
    (void)state;
    static struct kv_endpoint endpoint;
    struct layer_push *push = open_push(&endpoint, 1, 0);
    assert_false(failed(begin(push, 1, LAYERS)));
    struct step_span old = span_of(1, 0, 4), now = span_of(2, 0, 1);
    push_layers(push, &old, 1, 0, LAYERS);
    finish(&endpoint, 1);
    assert_true(layer_push_end(push, leg(1)));
    assert_false(failed(begin(push, 2, LAYERS)));
    push_layers(push, &old, 1, 0, LAYERS); /* of a leg that is gone: ignored */
    push_layers(push, &now, 1, 0, LAYERS);
    assert_false(failed(layer_push_commit(push, leg(2), (const uint8_t *)"2", 1)));
    endpoint.room = 1;
    layer_push_room(push);
    while (push_done(&endpoint, push)) {}
    assert_int_equal(endpoint.pushes, LAYERS);
    assert_true(endpoint.sends[1].committed);
    assert_int_equal(endpoint.sends[0].slices, 0);
    close_push(&endpoint, push);
}

/* Room that came back without a PUSH_DONE is found with the next layer. */
static void room_is_found_without_an_event(void **state)
{
    (void)state;
    static struct kv_endpoint endpoint;
    struct layer_push *push = open_push(&endpoint, 4, 0);
    assert_false(failed(begin(push, 1, LAYERS)));
    struct step_span span = span_of(1, 0, 1);
    push_layers(push, &span, 1, 0, 3);
    endpoint.room = 100;
    push_layers(push, &span, 1, 3, LAYERS);
    assert_int_equal(endpoint.pushes, LAYERS);
    assert_false(failed(layer_push_commit(push, leg(1), NULL, 0)));
    assert_int_equal(endpoint.commits, 1);
    close_push(&endpoint, push);
}

/* A begin that fails, here or at the endpoint, holds nothing. */
static void a_failed_begin_holds_nothing(void **state)
{
    (void)state;
    static struct kv_endpoint endpoint;
    struct layer_push *push = open_push(&endpoint, 1, 9);
    endpoint.begin_status = STATUS(ST_FAILED_PRECONDITION, SCOPE_REQUEST);
    status_t st = begin(push, 1, 1);
    assert_int_equal(st.code, ST_FAILED_PRECONDITION);
    assert_false(layer_push_abort(push, leg(1)));
    endpoint.begin_status = STATUS_OK;
    assert_false(failed(begin(push, 2, 1)));
    st = begin(push, 3, 1);
    assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
    assert_int_equal(endpoint.begun, 1);
    assert_true(layer_push_end(push, leg(2)));
    assert_false(failed(begin(push, 3, 1)));
    close_push(&endpoint, push);
}

/* ---- three threads, as in the node: core, engine, transfer */

struct world {
    struct kv_endpoint endpoint;
    struct layer_push *push;
    _Atomic bool stop;
    _Atomic uint64_t pushed_legs; /* legs whose layers have all been pushed */
    _Atomic uint64_t begun_legs;
};

enum { LEGS = 60 };

static void *engine_thread(void *user)
{
    struct world *world = user;
    for (uint64_t lo = 1; lo <= LEGS; lo++) {
        while (world->begun_legs < lo) { clock_sleep_ns(20 * NS_PER_US); }
        struct step_span spans[2] = {span_of(lo, 0, 3), span_of(lo, 3, 5)};
        push_layers(world->push, spans, 2, 0, LAYERS);
        world->pushed_legs = lo;
    }
    return NULL;
}

static void *transfer_thread(void *user)
{
    struct world *world = user;
    while (!world->stop) {
        if (!push_done(&world->endpoint, world->push)) { clock_sleep_ns(20 * NS_PER_US); }
    }
    return NULL;
}

/* Legs begin, push, commit, abort and end on three threads with room for two pushes: each leg that
 * is not aborted has all of its slices and one commit. */
static void three_threads_lose_nothing(void **state)
{
    (void)state;
    static struct world world;
    struct rng rng = rng_init(3);
    world.push = open_push(&world.endpoint, 8, 2);
    pthread_t engine, transfer;
    assert_int_equal(pthread_create(&engine, NULL, engine_thread, &world), 0);
    assert_int_equal(pthread_create(&transfer, NULL, transfer_thread, &world), 0);
    uint32_t aborted = 0;
    for (uint64_t lo = 1; lo <= LEGS; lo++) {
        assert_false(failed(begin(world.push, lo, LAYERS * 8)));
        bool gives_up = rng_below(&rng, 4) == 0;
        world.begun_legs = lo;
        if (gives_up) {
            clock_sleep_ns(rng_below(&rng, 200) * NS_PER_US);
            assert_true(layer_push_abort(world.push, leg(lo)));
            aborted++;
        }
        while (world.pushed_legs < lo) { clock_sleep_ns(20 * NS_PER_US); }
        if (!gives_up) {
            assert_false(failed(layer_push_commit(world.push, leg(lo), (const uint8_t *)&lo, sizeof lo)));
        }
        struct fake_send *send = &world.endpoint.sends[lo - 1];
        pthread_mutex_lock(&world.endpoint.mutex);
        while (!send->committed && !send->aborted) { pthread_cond_wait(&world.endpoint.changed, &world.endpoint.mutex); }
        send->open = false;
        pthread_mutex_unlock(&world.endpoint.mutex);
        assert_true(layer_push_end(world.push, leg(lo)));
    }
    pthread_join(engine, NULL);
    world.stop = true;
    pthread_join(transfer, NULL);
    for (uint64_t lo = 1; lo <= LEGS; lo++) {
        const struct fake_send *send = &world.endpoint.sends[lo - 1];
        assert_true(send->committed != send->aborted);
        if (!send->committed) { continue; }
        assert_int_equal(send->slices, LAYERS * 8);
        assert_int_equal(send->payload_bytes, sizeof lo);
        assert_memory_equal(send->payload, &lo, sizeof lo);
    }
    assert_int_equal(world.endpoint.commits, LEGS - aborted);
    assert_true(aborted > 0);
    close_push(&world.endpoint, world.push);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(with_room_all_goes_through),      cmocka_unit_test(a_grant_counts_from_its_first_block),
        cmocka_unit_test(cached_blocks_leave_with_all_layers),
        cmocka_unit_test(what_is_refused_waits_in_order),
        cmocka_unit_test(payloads_have_bounds),            cmocka_unit_test(a_commit_refused_late_aborts),
        cmocka_unit_test(a_commit_refused_now_is_told),    cmocka_unit_test(the_dead_do_not_block_the_living),
        cmocka_unit_test(a_slot_reused_inherits_nothing),  cmocka_unit_test(room_is_found_without_an_event),
        cmocka_unit_test(a_failed_begin_holds_nothing),    cmocka_unit_test(three_threads_lose_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
