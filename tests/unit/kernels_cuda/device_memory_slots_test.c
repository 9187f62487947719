/* Slots and queues of a device: pieces with their sums, marks, what a library queues on its own, and what becomes of all
 * that when calls fail or transfers hang; over the emulated device, whose streams run late and in any order. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "tests/kv_memory/kv_convert.h"
#include "tests/unit/kernels_cuda/device_memory_testing.h"

#define SLOT_BYTES ((size_t)1 << 18)
#define PIECES 12u

static uint8_t *slots_of(struct world *w, size_t bytes)
{
    uint8_t *slots = NULL;
    struct diag diag = {{0}};
    if (failed(kv_memory_slots_alloc(w->memory, bytes, &slots, &diag))) { fail_msg("%s", diag.text); }
    assert_int_equal((uintptr_t)slots % 256, 0);
    return slots;
}

static struct kv_memory_queue *queue_of(struct world *w)
{
    struct kv_memory_queue *queue = NULL;
    struct diag diag = {{0}};
    if (failed(kv_memory_queue_create(w->memory, &queue, &diag))) { fail_msg("%s", diag.text); }
    return queue;
}

static struct kv_memory_op passed_of(struct world *w, struct kv_memory_queue *queue)
{
    return (struct kv_memory_op){.kind = KV_MEMORY_PASSED, .queue = queue, .done = kv_memory_inbox_put, .user = &w->inbox};
}

/* Slices of the pool that do not overlap, in any order; at most PIECES, so that 13 goes through all of them. */
static void draw_slices(struct world *w, struct kv_memory_op *op)
{
    const uint32_t room = (uint32_t)(POOL_BYTES / op->range_bytes), step = room / op->count, first = draw(w, op->count);
    assert_true(step > 0);
    for (uint32_t i = 0; i < op->count; i++) { op->offsets[i] = (uint64_t)((first + i * 13) % op->count * step + draw(w, step)) * op->range_bytes; }
}

static void fill_pool(struct world *w)
{
    for (size_t i = 0; i < POOL_BYTES; i += 2) {
        const uint16_t bits = f32_to_bf16((float)((int)draw(w, 2001) - 1000) / 64);
        memcpy(w->model + i, &bits, 2);
    }
    assert_true(emulated_device_poke(w->driver, w->pool, w->model, POOL_BYTES));
}

static void assert_device_holds(struct world *w, const void *device, const uint8_t *want, size_t bytes)
{
    uint8_t *got = malloc(bytes);
    assert_non_null(got);
    assert_true(emulated_device_peek(w->driver, device, got, bytes));
    assert_memory_equal(got, want, bytes);
    free(got);
}

/* ---- pieces --------------------------------------------------------------------------------- */

static void gather_and_scatter(struct world *w, uint8_t *slots, const struct kv_memory_form *form, size_t range_bytes)
{
    struct kv_memory_op op = op_of(w, KV_MEMORY_GATHER, 1 + draw(w, PIECES), range_bytes);
    op.form = form;
    const size_t piece_bytes = kv_memory_piece_bytes(&op), slot_at = 256 * (size_t)draw(w, 3), used = op.count * piece_bytes;
    uint8_t *want = malloc(SLOT_BYTES);
    assert_non_null(want);
    assert_true(slot_at + used <= SLOT_BYTES);
    memset(want, 0x5a, SLOT_BYTES);
    assert_true(emulated_device_poke(w->driver, slots, want, SLOT_BYTES));
    op.slot = slots + slot_at;
    draw_slices(w, &op);
    assert_false(failed(run(w, &op)));
    for (uint32_t i = 0; i < op.count; i++) {
        uint8_t *piece = want + slot_at + i * piece_bytes;
        if (form != NULL) {
            kv_convert(&form->pool, w->model + op.offsets[i], &form->slot, piece);
        } else {
            memcpy(piece, w->model + op.offsets[i], piece_bytes);
        }
        assert_int_equal(op.crc[i], crc32c(0, piece, piece_bytes));
    }
    assert_device_holds(w, slots, want, SLOT_BYTES);
    assert_device_holds(w, w->pool, w->model, POOL_BYTES);

    /* Back to other places; a piece that was damaged meanwhile is placed as it is, and its sum tells. */
    const uint32_t damaged = draw(w, op.count), crc = op.crc[damaged];
    uint8_t *odd = want + slot_at + damaged * piece_bytes + piece_bytes / 2;
    *odd ^= 4;
    assert_true(emulated_device_poke(w->driver, slots + (odd - want), odd, 1));
    op.kind = KV_MEMORY_SCATTER;
    draw_slices(w, &op);
    assert_false(failed(run(w, &op)));
    assert_int_not_equal(op.crc[damaged], crc);
    for (uint32_t i = 0; i < op.count; i++) {
        const uint8_t *piece = want + slot_at + i * piece_bytes;
        assert_int_equal(op.crc[i], crc32c(0, piece, piece_bytes));
        if (form != NULL) {
            kv_convert(&form->slot, piece, &form->pool, w->model + op.offsets[i]);
        } else {
            memcpy(w->model + op.offsets[i], piece, piece_bytes);
        }
    }
    assert_device_holds(w, slots, want, SLOT_BYTES);
    assert_device_holds(w, w->pool, w->model, POOL_BYTES);
    free(want);
}

static void slices_go_through_a_slot(void **state)
{
    (void)state;
    static const struct kv_layout base = {.block_tokens = 16, .layer_count = 2, .kv_heads = 2, .head_dim = 64, .dtype = DTYPE_BF16, .order = KV_ORDER_ROWS};
    for (uint64_t seed = 1; seed <= 3; seed++) {
        struct world w;
        printf("seed=%llu\n", (unsigned long long)seed);
        world_init(&w, seed);
        uint8_t *slots = slots_of(&w, SLOT_BYTES);
        fill_pool(&w);
        for (uint32_t round = 0; round < 12; round++) {
            gather_and_scatter(&w, slots, NULL, 16 * (size_t)(1 + draw(&w, 1000)));
            struct kv_memory_form form = {.pool = base, .slot = base};
            form.slot.dtype = (enum dtype)draw(&w, DTYPE_KV_COUNT);
            form.slot.order = (enum kv_order)draw(&w, 2);
            gather_and_scatter(&w, slots, &form, kv_layout_slice_bytes(&form.pool));
        }
        kv_memory_slots_free(w.memory, slots);
        world_fini(&w);
    }
}

/* Neither a gather nor a scatter touches the pool before its mark has passed, however late the compute stream runs. */
static void pieces_wait_for_their_mark(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 8; seed++) {
        struct world w;
        void *pinned = NULL;
        struct diag diag;
        printf("seed=%llu\n", (unsigned long long)seed);
        world_init(&w, seed);
        enum { STEPS = 40 };
        assert_false(failed(kernels_pinned_alloc(w.kernels, 2 * STEPS * RANGE, &pinned, &diag)));
        uint8_t *patterns = pinned, *slots = slots_of(&w, 2 * STEPS * RANGE), *all = malloc(2 * STEPS * RANGE);
        struct kv_memory_op *ops = calloc(2 * STEPS, sizeof(*ops));
        assert_true(ops != NULL && all != NULL);
        for (uint32_t i = 0; i < 2 * STEPS * RANGE; i++) { patterns[i] = (uint8_t)draw(&w, 256); }
        memset(all, 0x77, 2 * STEPS * RANGE);
        assert_true(emulated_device_poke(w.driver, slots, all, 2 * STEPS * RANGE));
        for (uint32_t i = 0; i < 2 * STEPS; i++) { /* even ones gather what was uploaded, odd ones scatter over it */
            kernels_upload(w.kernels, w.pool + i * RANGE, patterns + i * RANGE, RANGE);
            ops[i] = op_of(&w, i % 2 == 0 ? KV_MEMORY_GATHER : KV_MEMORY_SCATTER, 1, RANGE);
            ops[i].mark = kernels_mark(w.kernels);
            ops[i].offsets[0] = i * RANGE;
            ops[i].slot = slots + i * RANGE;
            kv_memory_submit(w.memory, &ops[i]);
        }
        for (uint32_t left = 2 * STEPS; left > 0;) {
            kv_memory_inbox_wait(&w.inbox);
            for (struct kv_memory_op *op = kv_memory_inbox_take_all(&w.inbox); op != NULL; op = op->next, left--) { assert_false(failed(op->status)); }
        }
        for (uint32_t i = 0; i < 2 * STEPS; i++) {
            const uint8_t *want = i % 2 == 0 ? patterns + i * RANGE : all;
            assert_device_holds(&w, w.pool + i * RANGE, want, RANGE);
            assert_device_holds(&w, slots + i * RANGE, want, RANGE);
            assert_int_equal(ops[i].crc[0], crc32c(0, want, RANGE));
        }
        kernels_pinned_free(w.kernels, pinned, 2 * STEPS * RANGE);
        kv_memory_slots_free(w.memory, slots);
        free(all);
        free(ops);
        world_fini(&w);
    }
}

/* ---- a library's own work ------------------------------------------------------------------- */

/* Copies from one slot to another on the stream that it was given, when it is let. */
struct transfer {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool may_go;
    struct world *w;
    uint8_t *from, *to;
    size_t bytes;
};

static void transfer_run(void *user)
{
    struct transfer *transfer = user;
    pthread_mutex_lock(&transfer->lock);
    while (!transfer->may_go) { pthread_cond_wait(&transfer->changed, &transfer->lock); }
    pthread_mutex_unlock(&transfer->lock);
    uint8_t *bytes = malloc(transfer->bytes);
    if (bytes == NULL || !emulated_device_peek(transfer->w->driver, transfer->from, bytes, transfer->bytes)) { abort(); }
    if (!emulated_device_poke(transfer->w->driver, transfer->to, bytes, transfer->bytes)) { abort(); }
    free(bytes);
}

static void transfer_let(struct transfer *transfer)
{
    pthread_mutex_lock(&transfer->lock);
    transfer->may_go = true;
    pthread_cond_signal(&transfer->changed);
    pthread_mutex_unlock(&transfer->lock);
}

static struct transfer transfer_of(struct world *w, uint8_t *from, uint8_t *to, size_t bytes, bool may_go)
{
    return (struct transfer){.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .may_go = may_go, .w = w, .from = from, .to = to, .bytes = bytes};
}

static void queue_transfer(struct world *w, struct kv_memory_queue *queue, struct transfer *transfer)
{
    assert_ptr_equal(emulated_device_bound(), w->driver);
    emulated_device_stream_run(emulated_device_bound(), kv_memory_queue_handle(w->memory, queue), transfer_run, transfer);
}

/* Slices that were gathered, carried by a library and scattered are those that they were: each step after the one before. */
static void what_a_library_carries_arrives(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct world w;
        struct diag diag;
        world_init(&w, seed);
        fill_pool(&w);
        assert_false(failed(kv_memory_thread_bind(w.memory, &diag)));
        uint8_t *here = slots_of(&w, PIECES * RANGE), *there = slots_of(&w, PIECES * RANGE);
        struct kv_memory_queue *queue = queue_of(&w);
        struct kv_memory_op gather = op_of(&w, KV_MEMORY_GATHER, PIECES, RANGE), scatter = op_of(&w, KV_MEMORY_SCATTER, PIECES, RANGE);
        struct kv_memory_op passed = passed_of(&w, queue);
        gather.slot = here;
        scatter.slot = there;
        for (uint32_t i = 0; i < PIECES; i++) {
            gather.offsets[i] = i * 3 * RANGE;
            scatter.offsets[i] = (i * 3 + 1) * RANGE;
        }
        for (int round = 0; round < 3; round++) {
            struct transfer transfer = transfer_of(&w, here, there, PIECES * RANGE, true);
            assert_false(failed(run(&w, &gather)));
            queue_transfer(&w, queue, &transfer);
            assert_false(failed(run(&w, &passed)));
            assert_false(failed(run(&w, &scatter)));
            assert_memory_equal(scatter.crc, gather.crc, PIECES * sizeof(scatter.crc[0]));
            for (uint32_t i = 0; i < PIECES; i++) { assert_device_holds(&w, w.pool + scatter.offsets[i], w.model + gather.offsets[i], RANGE); }
        }
        kv_memory_queue_destroy(w.memory, queue);
        kv_memory_slots_free(w.memory, here);
        kv_memory_slots_free(w.memory, there);
        world_fini(&w);
    }
}

/* A PASSED waits for what was queued before it, and not for what is queued behind it; a transfer that hangs holds up no other
 * queue, no op, and nobody who gives slots back or asks for more. */
static void a_transfer_that_hangs_holds_up_nobody_else(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct world w;
        struct diag diag;
        world_init(&w, seed);
        fill_pool(&w);
        assert_false(failed(kv_memory_thread_bind(w.memory, &diag)));
        uint8_t *slots = slots_of(&w, 4 * RANGE), *more = slots_of(&w, RANGE);
        struct kv_memory_queue *hung = queue_of(&w), *well = queue_of(&w);
        struct transfer first = transfer_of(&w, slots, slots + RANGE, RANGE, true), second = transfer_of(&w, slots, slots + 2 * RANGE, RANGE, false);
        struct transfer third = transfer_of(&w, more, more, RANGE, true);
        struct kv_memory_op before = passed_of(&w, hung), behind = passed_of(&w, hung), beside = passed_of(&w, well);
        queue_transfer(&w, hung, &first);
        kv_memory_submit(w.memory, &before);
        queue_transfer(&w, hung, &second);
        kv_memory_inbox_wait(&w.inbox);
        assert_ptr_equal(kv_memory_inbox_take_all(&w.inbox), &before);
        assert_false(failed(before.status));
        kv_memory_submit(w.memory, &behind);

        queue_transfer(&w, well, &third);
        assert_false(failed(run(&w, &beside)));
        struct kv_memory_op gather = op_of(&w, KV_MEMORY_GATHER, 1, RANGE);
        gather.slot = more;
        assert_false(failed(run(&w, &gather)));
        kv_memory_slots_free(w.memory, more);
        assert_ptr_equal(slots_of(&w, RANGE), more);
        kv_memory_queue_destroy(w.memory, well);
        well = queue_of(&w);
        assert_null(kv_memory_inbox_take_all(&w.inbox));

        transfer_let(&second);
        kv_memory_inbox_wait(&w.inbox);
        assert_ptr_equal(kv_memory_inbox_take_all(&w.inbox), &behind);
        assert_false(failed(behind.status));
        kv_memory_slots_free(w.memory, slots);
        kv_memory_slots_free(w.memory, more);
        kv_memory_queue_destroy(w.memory, hung);
        kv_memory_queue_destroy(w.memory, well);
        world_fini(&w);
    }
}

/* ---- memory --------------------------------------------------------------------------------- */

static uint64_t left_of(struct world *w)
{
    uint64_t left = 0;
    struct diag diag = {{0}};
    assert_false(failed(kv_memory_left(w->memory, &left, &diag)));
    return left;
}

/* Slots that are given back are the device's again at once, and none that is held is anybody else's. */
static void slots_given_back_are_freed(void **state)
{
    (void)state;
    struct world w;
    struct diag diag = {{0}};
    uint8_t *big = NULL;
    world_init(&w, 1);
    const uint64_t before = left_of(&w);
    uint8_t *one = slots_of(&w, SLOT_BYTES), *two = slots_of(&w, SLOT_BYTES);
    assert_ptr_not_equal(one, two);
    assert_true(left_of(&w) == before - 2 * SLOT_BYTES);
    kv_memory_slots_free(w.memory, one);
    assert_true(left_of(&w) == before - SLOT_BYTES);
    status_t st = kv_memory_slots_alloc(w.memory, before, &big, &diag); /* `two` is in the way */
    assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
    assert_int_equal(st.scope, SCOPE_NODE);
    assert_true(strlen(diag.text) > 0);
    assert_null(big);
    assert_device_holds(&w, two, (const uint8_t *)"\xff\xff\xff\xff", 4); /* and lives */
    kv_memory_slots_free(w.memory, two);
    big = slots_of(&w, before);
    assert_true(left_of(&w) == 0);
    kv_memory_slots_free(w.memory, big);
    kv_memory_slots_free(w.memory, NULL);
    assert_true(left_of(&w) == before);
    world_fini(&w); /* where the device is closed, which says what was not freed */
}

/* While a transfer is under way they are kept: whoever asks for as much gets those, and nobody waits. When it has passed, the
 * next who asks, or gives back, frees what is kept. */
static void slots_are_kept_while_a_transfer_is_under_way(void **state)
{
    (void)state;
    for (int asks = 0; asks < 2; asks++) {
        struct world w;
        struct diag diag = {{0}};
        uint8_t *big = NULL;
        world_init(&w, 1);
        fill_pool(&w);
        assert_false(failed(kv_memory_thread_bind(w.memory, &diag)));
        const uint64_t before = left_of(&w);
        uint8_t *slots = slots_of(&w, SLOT_BYTES), *one = slots_of(&w, 2 * SLOT_BYTES), *two = slots_of(&w, 2 * SLOT_BYTES);
        void *host = NULL;
        assert_false(failed(kv_memory_host_alloc(w.memory, RANGE, &host, &diag)));
        struct kv_memory_queue *queue = queue_of(&w);
        struct transfer transfer = transfer_of(&w, slots, slots + RANGE, RANGE, false);
        struct kv_memory_op behind = passed_of(&w, queue);
        queue_transfer(&w, queue, &transfer);
        kv_memory_submit(w.memory, &behind);
        kv_memory_host_free(w.memory, host); /* neither does this wait */
        kv_memory_slots_free(w.memory, one);
        kv_memory_slots_free(w.memory, two);
        assert_true(left_of(&w) == before - 5 * SLOT_BYTES);
        uint8_t *again = slots_of(&w, 2 * SLOT_BYTES), *other = slots_of(&w, SLOT_BYTES);
        assert_true(again == one || again == two);
        assert_true(left_of(&w) == before - 6 * SLOT_BYTES);
        assert_int_equal(kv_memory_slots_alloc(w.memory, before - 5 * SLOT_BYTES, &big, &diag).code, ST_RESOURCE_EXHAUSTED);
        kv_memory_slots_free(w.memory, other);

        transfer_let(&transfer);
        kv_memory_inbox_wait(&w.inbox);
        assert_ptr_equal(kv_memory_inbox_take_all(&w.inbox), &behind);
        assert_true(left_of(&w) == before - 6 * SLOT_BYTES);
        if (asks) { /* the other two of the three kept */
            other = slots_of(&w, SLOT_BYTES);
            assert_true(left_of(&w) == before - 4 * SLOT_BYTES);
            kv_memory_slots_free(w.memory, other);
        }
        kv_memory_slots_free(w.memory, again);
        assert_true(left_of(&w) == before - SLOT_BYTES);
        kv_memory_slots_free(w.memory, slots);
        assert_true(left_of(&w) == before);
        kv_memory_queue_destroy(w.memory, queue);
        world_fini(&w);
    }
}

/* ---- errors --------------------------------------------------------------------------------- */

/* Each call that an op makes, failing: the op ends once, badly, and the next one is good. */
static void an_op_that_fails_ends_once(void **state)
{
    (void)state;
    static const enum emulated_call calls[] = {EMULATED_COPY, EMULATED_LAUNCH, EMULATED_CALLBACK, EMULATED_STREAM};
    static const enum kv_memory_op_kind kinds[] = {KV_MEMORY_GATHER, KV_MEMORY_SCATTER, KV_MEMORY_PASSED};
    uint32_t failures = 0;
    struct world w;
    world_init(&w, 3);
    uint8_t *slots = slots_of(&w, 4 * RANGE);
    struct kv_memory_queue *queue = queue_of(&w);
    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
        for (size_t c = 0; c < sizeof(calls) / sizeof(calls[0]); c++) {
            for (uint64_t nth = 1;; nth++) {
                struct kv_memory_op op = kinds[k] == KV_MEMORY_PASSED ? passed_of(&w, queue) : op_of(&w, kinds[k], 4, RANGE);
                op.slot = slots;
                if (kinds[k] != KV_MEMORY_PASSED) { draw_slices(&w, &op); }
                emulated_device_fail(w.driver, calls[c], nth, 999);
                status_t st = run(&w, &op);
                emulated_device_fail(w.driver, calls[c], 0, 0);
                if (!failed(st)) { break; }
                failures++;
                assert_int_equal(st.code, ST_INTERNAL);
                assert_int_equal(st.scope, SCOPE_NODE);
                assert_int_equal(st.cause, 999);
                assert_null(kv_memory_inbox_take_all(&w.inbox));
                assert_true(nth < 9);
            }
        }
    }
    assert_int_equal(failures, 2 * (2 + 2 + 1) + 1); /* two copies, two launches and a callback of each; a callback of a PASSED */
    kv_memory_queue_destroy(w.memory, queue);
    kv_memory_slots_free(w.memory, slots);
    world_fini(&w);
}

/* What cannot be had is told as what it is, and leaves nothing behind. */
static void what_cannot_be_had_is_told(void **state)
{
    (void)state;
    struct world w;
    struct diag diag = {{0}};
    struct kv_memory_queue *queue = NULL;
    uint8_t *slots = NULL;
    world_init(&w, 4);
    static const struct { int32_t cause; enum status_code code; } ways[] = {{2, ST_RESOURCE_EXHAUSTED}, {999, ST_INTERNAL}, {1, ST_INTERNAL}};
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        emulated_device_fail(w.driver, EMULATED_MEM_ALLOC, 1, ways[i].cause);
        assert_int_equal(kv_memory_slots_alloc(w.memory, 256, &slots, &diag).code, ways[i].code);
        assert_null(slots);
        emulated_device_fail(w.driver, EMULATED_STREAM, 1, ways[i].cause);
        assert_int_equal(kv_memory_queue_create(w.memory, &queue, &diag).code, ways[i].code);
        assert_null(queue);
        emulated_device_fail(w.driver, EMULATED_STREAM, 1, ways[i].cause);
        assert_int_equal(kv_memory_thread_bind(w.memory, &diag).code, ST_INTERNAL);
    }
    world_fini(&w);
}

/* A device that is lost ends what waits on queues and in slots. */
static void a_lost_device_ends_every_op(void **state)
{
    (void)state;
    struct world w;
    struct diag diag;
    world_init(&w, 5);
    assert_false(failed(kv_memory_thread_bind(w.memory, &diag)));
    uint8_t *slots = slots_of(&w, 32 * RANGE);
    struct kv_memory_queue *queue = queue_of(&w);
    struct kv_memory_op *ops = calloc(32, sizeof(*ops));
    struct transfer transfer = transfer_of(&w, slots, slots, RANGE, true);
    assert_non_null(ops);
    emulated_device_break(w.driver, 2);
    queue_transfer(&w, queue, &transfer);
    for (uint32_t i = 0; i < 32; i++) {
        ops[i] = i % 4 == 3 ? passed_of(&w, queue) : op_of(&w, i % 2 == 0 ? KV_MEMORY_GATHER : KV_MEMORY_SCATTER, 1, RANGE);
        ops[i].slot = slots + i * RANGE;
        kv_memory_submit(w.memory, &ops[i]);
    }
    uint32_t bad = 0;
    for (uint32_t left = 32; left > 0;) {
        kv_memory_inbox_wait(&w.inbox);
        for (struct kv_memory_op *op = kv_memory_inbox_take_all(&w.inbox); op != NULL; op = op->next, left--) {
            if (failed(op->status)) { bad++; }
        }
    }
    assert_true(bad >= 29);
    struct kv_memory_op last = passed_of(&w, queue);
    assert_int_equal(run(&w, &last).code, ST_INTERNAL);
    kv_memory_queue_destroy(w.memory, queue);
    kv_memory_slots_free(w.memory, slots);
    free(ops);
    world_fini(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_be_had_is_told),
        cmocka_unit_test(an_op_that_fails_ends_once),
        cmocka_unit_test(a_lost_device_ends_every_op),
        cmocka_unit_test(slots_given_back_are_freed),
        cmocka_unit_test(slots_are_kept_while_a_transfer_is_under_way),
        cmocka_unit_test(a_transfer_that_hangs_holds_up_nobody_else),
        cmocka_unit_test(what_a_library_carries_arrives),
        cmocka_unit_test(slices_go_through_a_slot),
        cmocka_unit_test(pieces_wait_for_their_mark),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
