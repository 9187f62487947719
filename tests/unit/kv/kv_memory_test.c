/* What each op of kv_memory means, over the fake device of the tests, and the inbox through which ops come back. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/crc32c.h"
#include "kv/kv_memory_inbox.h"
#include "tests/kv_memory/fake_memory.h"
#include "tests/kv_memory/kv_convert.h"

enum { POOL_BYTES = 1 << 16, SLICE = 256, DEVICE_BYTES = 1 << 20 };

static uint8_t *pool; /* the device's, as only a test sees it */
static struct kv_memory *memory;
static struct kv_memory_inbox inbox;
static uint8_t *host;

static uint64_t seed(void)
{
    const char *given = getenv("BATON_SEED");
    return given ? strtoull(given, NULL, 0) : 20261122;
}

static int set_up(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    void *buffer = NULL;
    memory = fake_memory_create(&(struct fake_memory_config){.pool_bytes = POOL_BYTES, .seed = seed(), .memory_bytes = DEVICE_BYTES});
    pool = fake_memory_view(memory);
    assert_false(failed(kv_memory_inbox_init(&inbox)));
    assert_false(failed(kv_memory_host_alloc(memory, KV_MEMORY_RANGES_MAX * SLICE, &buffer, &diag)));
    host = buffer;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    kv_memory_host_free(memory, host);
    kv_memory_inbox_fini(&inbox);
    fake_memory_destroy(memory);
    return 0;
}

static struct kv_memory_op *op_of(struct kv_memory_op *op, enum kv_memory_op_kind kind, uint32_t count)
{
    *op = (struct kv_memory_op){.kind = kind, .count = count, .range_bytes = SLICE, .host = host,
                                .event = KV_MEMORY_EVENT_NONE, .done = kv_memory_inbox_put, .user = &inbox};
    return op;
}

static void run(struct kv_memory_op *op)
{
    kv_memory_submit(memory, op);
    struct kv_memory_op *done;
    while ((done = kv_memory_inbox_take_all(&inbox)) == NULL) { kv_memory_inbox_wait(&inbox); }
    assert_ptr_equal(done, op);
    assert_null(done->next);
    assert_int_equal(op->status.code, ST_OK);
}

/* Any mix of reads, writes and sums is what memcpy and crc32c would have done. */
static void ops_do_what_memcpy_does(void **state)
{
    (void)state;
    static uint8_t model[POOL_BYTES];
    uint64_t random = seed();
    print_message("seed %llu\n", (unsigned long long)random);
    for (size_t i = 0; i < POOL_BYTES; i++) { pool[i] = model[i] = (uint8_t)(i * 31 + 7); }
    static struct kv_memory_op op;
    for (int turn = 0; turn < 400; turn++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        uint32_t count = (uint32_t)(random >> 33) % KV_MEMORY_RANGES_MAX + 1;
        uint32_t first = (uint32_t)(random >> 40);
        enum kv_memory_op_kind kind = turn % 3 == 0 ? KV_MEMORY_WRITE : turn % 3 == 1 ? KV_MEMORY_READ : KV_MEMORY_CHECKSUM;
        op_of(&op, kind, count);
        for (uint32_t i = 0; i < count; i++) { op.offsets[i] = (uint64_t)((first + i * 5) % (POOL_BYTES / SLICE)) * SLICE; }
        for (uint32_t i = 0; i < count * SLICE; i++) { host[i] = (uint8_t)(random >> (i % 57)); }
        if (kind == KV_MEMORY_WRITE) {
            for (uint32_t i = 0; i < count; i++) { memcpy(model + op.offsets[i], host + i * SLICE, SLICE); }
        }
        run(&op);
        assert_memory_equal(pool, model, (size_t)POOL_BYTES);
        for (uint32_t i = 0; i < count; i++) {
            if (kind == KV_MEMORY_READ) { assert_memory_equal(host + i * SLICE, model + op.offsets[i], SLICE); }
            if (kind == KV_MEMORY_CHECKSUM) { assert_int_equal(op.crc[i], crc32c(0, model + op.offsets[i], SLICE)); }
        }
    }
}

static pthread_t done_on;

static void note_thread(struct kv_memory_op *op)
{
    done_on = pthread_self();
    kv_memory_inbox_put(op);
}

/* An op never ends inside submit, which its submitter may call under a lock. */
static void done_comes_from_another_thread(void **state)
{
    (void)state;
    static struct kv_memory_op op;
    op_of(&op, KV_MEMORY_CHECKSUM, 1)->done = note_thread;
    run(&op);
    assert_false(pthread_equal(done_on, pthread_self()));
}

enum { SUBMITTERS = 4, OPS_EACH = 200 };

static struct kv_memory_op many[SUBMITTERS][OPS_EACH];

static void *submit_many(void *user)
{
    struct kv_memory_op *ops = user;
    for (int i = 0; i < OPS_EACH; i++) { kv_memory_submit(memory, op_of(&ops[i], KV_MEMORY_CHECKSUM, 1)); }
    return NULL;
}

/* Ops of several threads at once all come back, each once. */
static void every_op_comes_back_once(void **state)
{
    (void)state;
    pthread_t threads[SUBMITTERS];
    memset(many, 0, sizeof many);
    for (int i = 0; i < SUBMITTERS; i++) { assert_int_equal(pthread_create(&threads[i], NULL, submit_many, many[i]), 0); }
    int seen = 0;
    while (seen < SUBMITTERS * OPS_EACH) {
        kv_memory_inbox_wait(&inbox);
        for (struct kv_memory_op *op = kv_memory_inbox_take_all(&inbox); op != NULL; op = op->next) {
            assert_ptr_equal(op->user, &inbox);
            op->user = NULL;
            seen++;
        }
    }
    for (int i = 0; i < SUBMITTERS; i++) { pthread_join(threads[i], NULL); }
    assert_null(kv_memory_inbox_take_all(&inbox));
}

/* Memory without an id is not lent: it says so instead of lending something. */
static void memory_without_an_id_is_not_exported(void **state)
{
    (void)state;
    uint8_t bytes[KV_MEMORY_EXPORT_BYTES_MAX] = {0};
    size_t count = 0, pool_bytes = 0;
    struct kv_memory_peer *peer = NULL;
    struct diag diag = {{0}};
    assert_false(kv_memory_can_export(memory));
    assert_int_equal(kv_memory_export(memory, bytes, &count, &diag).code, ST_UNIMPLEMENTED);
    assert_int_equal(kv_memory_import(memory, bytes, sizeof bytes, &peer, &pool_bytes, &diag).code, ST_INVALID_ARGUMENT);
    assert_null(peer);
    assert_true(strlen(diag.text) > 0);
}

enum { PIECES = 12, HEADS = 2, DIM = 8 };

static struct kv_layout layout_of(enum dtype dtype, enum kv_order order)
{
    return (struct kv_layout){.block_tokens = 16, .layer_count = 1, .kv_heads = HEADS, .head_dim = DIM, .dtype = dtype, .order = order};
}

static struct kv_memory_op *slot_op(struct kv_memory_op *op, enum kv_memory_op_kind kind, uint8_t *slot, const struct kv_memory_form *form)
{
    op_of(op, kind, PIECES);
    op->slot = slot;
    op->form = form;
    op->range_bytes = form ? kv_layout_slice_bytes(&form->pool) : SLICE;
    for (uint32_t i = 0; i < PIECES; i++) { op->offsets[i] = (uint64_t)((i * 7 + 3) % PIECES) * op->range_bytes; }
    return op;
}

/* Slices go into a slot and out of it again: as they are, or as values of another dtype and order, with the sum of what lay there. */
static void slices_go_through_a_slot(void **state)
{
    (void)state;
    static const struct { enum dtype dtype; enum kv_order order; } shapes[] = {
        {DTYPE_BF16, KV_ORDER_ROWS}, {DTYPE_BF16, KV_ORDER_TILES}, {DTYPE_F32, KV_ORDER_ROWS},
        {DTYPE_INT8, KV_ORDER_ROWS}, {DTYPE_FP8_E4M3, KV_ORDER_TILES},
    };
    static struct kv_memory_op op;
    static uint8_t want[POOL_BYTES];
    struct diag diag = {{0}};
    uint8_t *slot = NULL;
    assert_false(failed(kv_memory_slots_alloc(memory, POOL_BYTES, &slot, &diag)));
    for (int turn = -1; turn < (int)(sizeof shapes / sizeof shapes[0]); turn++) {
        const struct kv_memory_form converts = {.pool = layout_of(DTYPE_BF16, KV_ORDER_ROWS),
                                                .slot = layout_of(turn < 0 ? DTYPE_BF16 : shapes[turn].dtype, turn < 0 ? KV_ORDER_ROWS : shapes[turn].order)};
        const struct kv_memory_form *form = turn < 0 ? NULL : &converts;
        for (size_t i = 0; i < POOL_BYTES; i += 2) { memcpy(pool + i, &(uint16_t){f32_to_bf16((float)((int)(i * 37 % 511) - 255) / 16)}, 2); }
        memcpy(want, pool, POOL_BYTES);
        slot_op(&op, KV_MEMORY_GATHER, slot, form);
        const size_t piece_bytes = kv_memory_piece_bytes(&op);
        uint8_t piece[4096];
        run(&op);
        for (uint32_t i = 0; i < PIECES; i++) {
            if (form) {
                kv_convert(&form->pool, pool + op.offsets[i], &form->slot, piece);
                kv_convert(&form->slot, piece, &form->pool, want + op.offsets[i]);
            } else {
                memcpy(piece, pool + op.offsets[i], piece_bytes);
            }
            assert_memory_equal(fake_memory_reach(slot + i * piece_bytes), piece, piece_bytes);
            assert_int_equal(op.crc[i], crc32c(0, piece, piece_bytes));
        }
        const uint32_t first_crc = op.crc[0];
        memset(pool, 0x11, PIECES * op.range_bytes);
        run(slot_op(&op, KV_MEMORY_SCATTER, slot, form));
        assert_memory_equal(pool, want, POOL_BYTES);
        assert_int_equal(op.crc[0], first_crc);
        fake_memory_reach(slot)[piece_bytes - 1] ^= 1; /* damaged on its way: the sum says so */
        run(slot_op(&op, KV_MEMORY_SCATTER, slot, form));
        assert_int_not_equal(op.crc[0], first_crc);
    }
    kv_memory_slots_free(memory, slot);
    assert_null(fake_memory_reach(slot));
}

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static int steps;

static void through_the_gate(void *user)
{
    pthread_mutex_lock(&gate);
    steps++;
    if (user) { *(int *)user = steps; }
    pthread_mutex_unlock(&gate);
}

/* A PASSED comes back behind the work of its own queue and of no other. */
static void passed_is_behind_its_own_queue(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    struct kv_memory_queue *held, *open;
    static struct kv_memory_op behind, beside;
    int first = 0, second = 0;
    steps = 0;
    assert_false(failed(kv_memory_queue_create(memory, &held, &diag)));
    assert_false(failed(kv_memory_queue_create(memory, &open, &diag)));
    behind = (struct kv_memory_op){.kind = KV_MEMORY_PASSED, .queue = held, .done = kv_memory_inbox_put, .user = &inbox};
    beside = (struct kv_memory_op){.kind = KV_MEMORY_PASSED, .queue = open, .done = kv_memory_inbox_put, .user = &inbox};
    pthread_mutex_lock(&gate);
    fake_memory_queue_run(kv_memory_queue_handle(memory, held), through_the_gate, &first);
    fake_memory_queue_run(kv_memory_queue_handle(memory, held), through_the_gate, &second);
    kv_memory_submit(memory, &behind);
    run(&beside);
    assert_null(kv_memory_inbox_take_all(&inbox));
    assert_int_equal(steps, 0);
    pthread_mutex_unlock(&gate);
    struct kv_memory_op *done;
    while ((done = kv_memory_inbox_take_all(&inbox)) == NULL) { kv_memory_inbox_wait(&inbox); }
    assert_ptr_equal(done, &behind);
    assert_int_equal(first, 1);
    assert_int_equal(second, 2);
    kv_memory_queue_destroy(memory, held);
    kv_memory_queue_destroy(memory, open);
}

/* A device that is lost holds up no PASSED, whatever its queue does, and gives nothing more. */
static void a_lost_device_ends_what_waits_for_a_queue(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    struct kv_memory_queue *queue;
    static struct kv_memory_op op;
    uint8_t *slot = NULL;
    assert_false(failed(kv_memory_queue_create(memory, &queue, &diag)));
    op = (struct kv_memory_op){.kind = KV_MEMORY_PASSED, .queue = queue, .done = kv_memory_inbox_put, .user = &inbox};
    pthread_mutex_lock(&gate);
    fake_memory_queue_run(kv_memory_queue_handle(memory, queue), through_the_gate, NULL);
    kv_memory_submit(memory, &op);
    fake_memory_lose(memory);
    struct kv_memory_op *done;
    while ((done = kv_memory_inbox_take_all(&inbox)) == NULL) { kv_memory_inbox_wait(&inbox); }
    assert_int_equal(done->status.code, ST_INTERNAL);
    assert_int_equal(done->status.scope, SCOPE_NODE);
    assert_int_equal(kv_memory_slots_alloc(memory, 256, &slot, &diag).code, ST_INTERNAL);
    assert_int_equal(kv_memory_thread_bind(memory, &diag).code, ST_INTERNAL);
    pthread_mutex_unlock(&gate);
    kv_memory_queue_destroy(memory, queue);
}

/* What is taken of a device is missing, slots beyond it are refused, and what is freed is there again. */
static void device_memory_is_counted(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    uint8_t *slot = NULL, *more = NULL;
    uint64_t left = 0;
    assert_null(fake_memory_bound());
    assert_false(failed(kv_memory_thread_bind(memory, &diag)));
    assert_ptr_equal(fake_memory_bound(), memory);
    assert_false(failed(kv_memory_slots_alloc(memory, DEVICE_BYTES / 2, &slot, &diag)));
    assert_int_equal((uintptr_t)slot % 256, 0);
    assert_true(fake_memory_take(memory, DEVICE_BYTES / 4));
    assert_false(failed(kv_memory_left(memory, &left, &diag)));
    assert_int_equal(left, DEVICE_BYTES / 4);
    assert_int_equal(kv_memory_slots_alloc(memory, DEVICE_BYTES / 2, &more, &diag).code, ST_RESOURCE_EXHAUSTED);
    assert_false(fake_memory_take(memory, DEVICE_BYTES / 2));
    kv_memory_slots_free(memory, slot);
    kv_memory_slots_free(memory, NULL);
    fake_memory_give_back(memory, DEVICE_BYTES / 4);
    assert_false(failed(kv_memory_left(memory, &left, &diag)));
    assert_int_equal(left, DEVICE_BYTES);
}

static void slot_that_was_freed(uint8_t *slot)
{
    static struct kv_memory_op op;
    kv_memory_slots_free(memory, slot);
    kv_memory_submit(memory, slot_op(&op, KV_MEMORY_GATHER, slot, NULL));
}

static void slot_of_two_ops(uint8_t *slot)
{
    static struct kv_memory_op ops[2];
    fake_memory_set_held(memory, true);
    kv_memory_submit(memory, slot_op(&ops[0], KV_MEMORY_GATHER, slot, NULL));
    kv_memory_submit(memory, slot_op(&ops[1], KV_MEMORY_SCATTER, slot + SLICE, NULL));
}

static void slot_freed_too_early(uint8_t *slot)
{
    static struct kv_memory_op op;
    fake_memory_set_held(memory, true);
    kv_memory_submit(memory, slot_op(&op, KV_MEMORY_GATHER, slot, NULL));
    kv_memory_slots_free(memory, slot);
}

static void queue_with_work_destroyed(uint8_t *slot)
{
    struct diag diag;
    struct kv_memory_queue *queue;
    (void)slot;
    if (failed(kv_memory_queue_create(memory, &queue, &diag))) { return; }
    pthread_mutex_lock(&gate);
    fake_memory_queue_run(kv_memory_queue_handle(memory, queue), through_the_gate, NULL);
    kv_memory_queue_destroy(memory, queue);
}

/* Who breaks a rule of slots and queues is ended, in a child here, whose device is its own. */
static void broken_rules_end_the_process(void **state)
{
    (void)state;
    static void (*const breakers[])(uint8_t *slot) = {slot_that_was_freed, slot_of_two_ops, slot_freed_too_early, queue_with_work_destroyed};
    for (size_t i = 0; i < sizeof breakers / sizeof breakers[0]; i++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            struct diag diag;
            uint8_t *slot = NULL;
            signal(SIGABRT, SIG_DFL);
            memory = fake_memory_create(&(struct fake_memory_config){.pool_bytes = POOL_BYTES});
            if (freopen("/dev/null", "w", stderr) && !failed(kv_memory_slots_alloc(memory, POOL_BYTES, &slot, &diag))) { breakers[i](slot); }
            _exit(0);
        }
        int status = 0;
        assert_int_equal(waitpid(child, &status, 0), child);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT) { fail_msg("breaker %zu was let go: %d", i, status); }
    }
}

/* A zeroed inbox, and one that was ended, can be ended again: clean-up paths do. */
static void an_inbox_that_never_began_can_end(void **state)
{
    (void)state;
    struct kv_memory_inbox none = {0};
    kv_memory_inbox_fini(&none);
    assert_false(failed(kv_memory_inbox_init(&none)));
    kv_memory_inbox_fini(&none);
    kv_memory_inbox_fini(&none);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(memory_without_an_id_is_not_exported, set_up, tear_down),
        cmocka_unit_test(an_inbox_that_never_began_can_end),
        cmocka_unit_test_setup_teardown(done_comes_from_another_thread, set_up, tear_down),
        cmocka_unit_test_setup_teardown(every_op_comes_back_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(ops_do_what_memcpy_does, set_up, tear_down),
        cmocka_unit_test(broken_rules_end_the_process),
        cmocka_unit_test_setup_teardown(device_memory_is_counted, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_lost_device_ends_what_waits_for_a_queue, set_up, tear_down),
        cmocka_unit_test_setup_teardown(passed_is_behind_its_own_queue, set_up, tear_down),
        cmocka_unit_test_setup_teardown(slices_go_through_a_slot, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
