/* kv_memory over host memory, and the inbox through which its ops come back. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/crc32c.h"
#include "kv/kv_memory_host.h"
#include "kv/kv_memory_inbox.h"

enum { POOL_BYTES = 1 << 16, SLICE = 256 };

static uint8_t pool[POOL_BYTES] __attribute__((aligned(64)));
static struct kv_memory *memory;
static struct kv_memory_inbox inbox;
static uint8_t *host;

static int set_up(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    void *buffer = NULL;
    assert_false(failed(kv_memory_host_create(pool, sizeof pool, &memory)));
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
    kv_memory_host_destroy(memory);
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
    const char *given = getenv("BATON_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : 20261122;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (size_t i = 0; i < sizeof pool; i++) { pool[i] = model[i] = (uint8_t)(i * 31 + 7); }
    static struct kv_memory_op op;
    for (int turn = 0; turn < 400; turn++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        uint32_t count = (uint32_t)(seed >> 33) % KV_MEMORY_RANGES_MAX + 1;
        uint32_t first = (uint32_t)(seed >> 40);
        enum kv_memory_op_kind kind = turn % 3 == 0 ? KV_MEMORY_WRITE : turn % 3 == 1 ? KV_MEMORY_READ : KV_MEMORY_CHECKSUM;
        op_of(&op, kind, count);
        for (uint32_t i = 0; i < count; i++) { op.offsets[i] = (uint64_t)((first + i * 5) % (POOL_BYTES / SLICE)) * SLICE; }
        for (uint32_t i = 0; i < count * SLICE; i++) { host[i] = (uint8_t)(seed >> (i % 57)); }
        if (kind == KV_MEMORY_WRITE) {
            for (uint32_t i = 0; i < count; i++) { memcpy(model + op.offsets[i], host + i * SLICE, SLICE); }
        }
        run(&op);
        assert_memory_equal(pool, model, sizeof pool);
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

/* Host memory is not lent: it says so instead of lending something. */
static void host_memory_is_not_exported(void **state)
{
    (void)state;
    uint8_t bytes[KV_MEMORY_EXPORT_BYTES_MAX] = {0};
    size_t count = 0, pool_bytes = 0;
    struct kv_memory_peer *peer = NULL;
    struct diag diag = {{0}};
    assert_false(kv_memory_can_export(memory));
    assert_int_equal(kv_memory_export(memory, bytes, &count, &diag).code, ST_UNIMPLEMENTED);
    assert_int_equal(kv_memory_import(memory, bytes, sizeof bytes, &peer, &pool_bytes, &diag).code, ST_FAILED_PRECONDITION);
    assert_null(peer);
    assert_true(strlen(diag.text) > 0);
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
        cmocka_unit_test_setup_teardown(host_memory_is_not_exported, set_up, tear_down),
        cmocka_unit_test(an_inbox_that_never_began_can_end),
        cmocka_unit_test_setup_teardown(done_comes_from_another_thread, set_up, tear_down),
        cmocka_unit_test_setup_teardown(every_op_comes_back_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(ops_do_what_memcpy_does, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
