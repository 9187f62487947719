/* The KV memory of a device: ranges, checksums, marks, peers in two processes, errors; over the emulated device, whose
 * streams run late and in any order. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "kernels/cuda/cuda_marks.h"
#include "tests/unit/kernels_cuda/device_memory_testing.h"

/* Disjoint ranges of the pool in any order. */
static void draw_ranges(struct world *w, struct kv_memory_op *op)
{
    uint32_t slots[2 * POOL_BYTES / RANGE];
    const uint32_t room = (uint32_t)(POOL_BYTES / op->range_bytes); /* no range is smaller than half of RANGE */
    for (uint32_t i = 0; i < room; i++) { slots[i] = i; }
    for (uint32_t i = 0; i < op->count; i++) {
        uint32_t other = i + draw(w, room - i), slot = slots[other];
        slots[other] = slots[i];
        op->offsets[i] = slot * op->range_bytes;
    }
}

/* ---- ranges --------------------------------------------------------------------------------- */

/* Whatever was written last to a range is read back and summed, whatever the sizes and numbers of ranges. */
static void ranges_hold_what_was_written(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 3; seed++) {
        struct world w;
        printf("seed=%llu\n", (unsigned long long)seed);
        world_init(&w, seed);
        uint8_t *host = host_of(&w, (size_t)KV_MEMORY_RANGES_MAX * RANGE);
        for (int round = 0; round < 60; round++) {
            const size_t range_bytes = KV_MEMORY_ALIGN * (size_t)(RANGE / KV_MEMORY_ALIGN - draw(&w, 3) * 5);
            struct kv_memory_op op = op_of(&w, (enum kv_memory_op_kind)draw(&w, 3), 1 + draw(&w, KV_MEMORY_RANGES_MAX), range_bytes);
            op.host = host;
            draw_ranges(&w, &op);
            if (op.kind == KV_MEMORY_WRITE) {
                for (size_t i = 0; i < op.count * range_bytes; i++) { host[i] = (uint8_t)draw(&w, 256); }
                for (uint32_t i = 0; i < op.count; i++) { memcpy(w.model + op.offsets[i], host + i * range_bytes, range_bytes); }
            }
            if (op.kind == KV_MEMORY_CHECKSUM && round % 2 == 0) { op.event = draw(&w, KV_MEMORY_EVENTS); }
            assert_false(failed(run(&w, &op)));
            for (uint32_t i = 0; i < op.count; i++) {
                const uint8_t *want = w.model + op.offsets[i];
                if (op.kind == KV_MEMORY_READ) { assert_memory_equal(host + i * range_bytes, want, range_bytes); }
                if (op.kind == KV_MEMORY_CHECKSUM) { assert_int_equal(op.crc[i], crc32c(0, want, range_bytes)); }
            }
        }
        uint8_t *all = malloc(POOL_BYTES);
        assert_true(emulated_device_peek(w.driver, w.pool, all, POOL_BYTES));
        assert_memory_equal(all, w.model, POOL_BYTES);
        free(all);
        kv_memory_host_free(w.memory, host);
        world_fini(&w);
    }
}

/* An op with a mark sees what was queued before the mark, however late the compute stream runs; tickets whose events
 * have come round too. */
static void an_op_waits_for_its_mark(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct world w;
        void *memory = NULL;
        struct diag diag;
        printf("seed=%llu\n", (unsigned long long)seed);
        world_init(&w, seed);
        enum { STEPS = 100 };
        assert_false(failed(kernels_pinned_alloc(w.kernels, STEPS * RANGE, &memory, &diag)));
        uint8_t *patterns = memory, *read = host_of(&w, STEPS * RANGE);
        struct kv_memory_op *ops = calloc(2 * STEPS, sizeof(*ops));
        uint64_t first_mark = 0;
        assert_non_null(ops);
        for (uint32_t i = 0; i < STEPS; i++) {
            for (uint32_t b = 0; b < RANGE; b++) { patterns[i * RANGE + b] = (uint8_t)draw(&w, 256); }
            kernels_upload(w.kernels, w.pool + i * RANGE, patterns + i * RANGE, RANGE);
            uint64_t mark = kernels_mark(w.kernels);
            if (i == 0) { first_mark = mark; }
            for (int k = 0; k < 2; k++) {
                struct kv_memory_op *op = &ops[2 * i + (uint32_t)k];
                *op = op_of(&w, k == 0 ? KV_MEMORY_READ : KV_MEMORY_CHECKSUM, 1, RANGE);
                op->mark = mark;
                op->offsets[0] = i * RANGE;
                op->host = read + i * RANGE;
                kv_memory_submit(w.memory, op);
            }
        }
        for (uint32_t left = 2 * STEPS; left > 0;) {
            kv_memory_inbox_wait(&w.inbox);
            for (struct kv_memory_op *op = kv_memory_inbox_take_all(&w.inbox); op != NULL; op = op->next, left--) {
                assert_false(failed(op->status));
                const uint8_t *want = patterns + op->offsets[0];
                if (op->kind == KV_MEMORY_READ) { assert_memory_equal(op->host, want, RANGE); }
                if (op->kind == KV_MEMORY_CHECKSUM) { assert_int_equal(op->crc[0], crc32c(0, want, RANGE)); }
            }
        }
        ops[0].mark = first_mark; /* long past, its event recorded again */
        assert_false(failed(run(&w, &ops[0])));
        kernels_pinned_free(w.kernels, memory, STEPS * RANGE);
        kv_memory_host_free(w.memory, read);
        free(ops);
        world_fini(&w);
    }
}

struct submitter {
    struct world *w;
    struct kv_memory_inbox inbox;
    uint32_t number;
    uint8_t *host;
    pthread_t thread;
};

#define SUBMITTER_OPS 40u

/* Writes a part of the pool that is its own, many ops at a time, then reads it. */
static void *submitter_main(void *user)
{
    struct submitter *s = user;
    struct kv_memory_op *ops = calloc(SUBMITTER_OPS, sizeof(*ops));
    for (int phase = 0; phase < 2 && ops != NULL; phase++) {
        for (uint32_t i = 0; i < SUBMITTER_OPS; i++) {
            ops[i] = op_of(s->w, phase == 0 ? KV_MEMORY_WRITE : KV_MEMORY_READ, 1, RANGE);
            ops[i].user = &s->inbox;
            ops[i].offsets[0] = (s->number * SUBMITTER_OPS + i) * (uint64_t)RANGE;
            ops[i].host = s->host + (phase * SUBMITTER_OPS + i) * RANGE;
            if (phase == 0) { memset(ops[i].host, (int)(s->number * 50 + i), RANGE); }
            kv_memory_submit(s->w->memory, &ops[i]);
        }
        for (uint32_t left = SUBMITTER_OPS; left > 0;) {
            kv_memory_inbox_wait(&s->inbox);
            for (struct kv_memory_op *op = kv_memory_inbox_take_all(&s->inbox); op != NULL; op = op->next) { left--; }
        }
    }
    free(ops);
    return NULL;
}

/* Three threads, each with more ops at a time than there are slots. */
static void ops_come_from_any_thread(void **state)
{
    (void)state;
    struct world w;
    struct submitter s[3];
    world_init(&w, 7);
    for (uint32_t i = 0; i < 3; i++) {
        s[i] = (struct submitter){.w = &w, .number = i, .host = host_of(&w, 2 * SUBMITTER_OPS * RANGE)};
        assert_false(failed(kv_memory_inbox_init(&s[i].inbox)));
        assert_int_equal(pthread_create(&s[i].thread, NULL, submitter_main, &s[i]), 0);
    }
    for (uint32_t i = 0; i < 3; i++) {
        pthread_join(s[i].thread, NULL);
        assert_memory_equal(s[i].host, s[i].host + SUBMITTER_OPS * RANGE, SUBMITTER_OPS * RANGE);
        assert_int_equal(s[i].host[RANGE], (uint8_t)(i * 50 + 1));
        kv_memory_inbox_fini(&s[i].inbox);
        kv_memory_host_free(w.memory, s[i].host);
    }
    world_fini(&w);
}

/* ---- errors --------------------------------------------------------------------------------- */

/* Each call that an op makes, failing: the op ends once, badly, and the next one is good. */
static void an_op_that_fails_ends_once(void **state)
{
    (void)state;
    static const enum emulated_call calls[] = {EMULATED_COPY, EMULATED_LAUNCH, EMULATED_CALLBACK, EMULATED_STREAM, EMULATED_EVENT};
    for (int kind = KV_MEMORY_READ; kind <= KV_MEMORY_CHECKSUM; kind++) {
        for (size_t c = 0; c < sizeof(calls) / sizeof(calls[0]); c++) {
            struct world w;
            world_init(&w, 3);
            uint8_t *host = host_of(&w, 4 * RANGE);
            for (uint64_t nth = 1;; nth++) {
                struct kv_memory_op op = op_of(&w, (enum kv_memory_op_kind)kind, 4, RANGE);
                op.host = host;
                op.mark = kernels_mark(w.kernels);
                if (kind == KV_MEMORY_CHECKSUM) { op.event = 3; }
                draw_ranges(&w, &op);
                emulated_device_fail(w.driver, calls[c], nth, 999);
                status_t st = run(&w, &op);
                emulated_device_fail(w.driver, calls[c], 0, 0);
                if (!failed(st)) { break; }
                assert_int_equal(st.code, ST_INTERNAL);
                assert_int_equal(st.scope, SCOPE_NODE);
                assert_int_equal(st.cause, 999);
                assert_null(kv_memory_inbox_take_all(&w.inbox));
                assert_true(nth < 9);
            }
            kv_memory_host_free(w.memory, host);
            world_fini(&w);
        }
    }
}

/* A device that is lost ends every op, those under way and those to come. */
static void a_lost_device_ends_every_op(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 5);
    uint8_t *host = host_of(&w, 64 * RANGE);
    struct kv_memory_op *ops = calloc(64, sizeof(*ops));
    assert_non_null(ops);
    emulated_device_break(w.driver, 3);
    for (uint32_t i = 0; i < 64; i++) {
        ops[i] = op_of(&w, i % 2 == 0 ? KV_MEMORY_READ : KV_MEMORY_CHECKSUM, 1, RANGE);
        ops[i].host = host + i * RANGE;
        kv_memory_submit(w.memory, &ops[i]);
    }
    uint32_t bad = 0;
    for (uint32_t left = 64; left > 0;) {
        kv_memory_inbox_wait(&w.inbox);
        for (struct kv_memory_op *op = kv_memory_inbox_take_all(&w.inbox); op != NULL; op = op->next, left--) {
            if (failed(op->status)) { bad++; }
        }
    }
    assert_true(bad >= 60);
    struct kv_memory_op last = op_of(&w, KV_MEMORY_READ, 1, RANGE);
    last.host = host;
    assert_int_equal(run(&w, &last).code, ST_INTERNAL);
    assert_int_equal(kernels_sync(w.kernels).code, ST_INTERNAL);
    kv_memory_host_free(w.memory, host);
    free(ops);
    world_fini(&w);
}

/* After a failed operation nobody may take bytes for final that were never computed. */
static void a_mark_after_a_failed_operation_never_passes(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 5);
    struct kv_memory_op op = op_of(&w, KV_MEMORY_CHECKSUM, 1, RANGE);
    emulated_device_fail(w.driver, EMULATED_COPY, 1, 999);
    kernels_upload(w.kernels, w.pool, w.model, 64);
    op.mark = kernels_mark(w.kernels);
    assert_true(op.mark != 0);
    assert_int_equal(run(&w, &op).code, ST_INTERNAL);
    op = op_of(&w, KV_MEMORY_CHECKSUM, 1, RANGE); /* the device itself is well */
    assert_false(failed(run(&w, &op)));
    world_fini(&w);
}

/* Against the rules, but not at the price of memory: what is under way at the end is done before the end. */
static void the_end_waits_for_what_is_under_way(void **state)
{
    (void)state;
    struct world w;
    struct diag diag;
    world_init(&w, 9);
    struct kv_memory_op *ops = calloc(3 * DEVICE_MEMORY_SLOTS, sizeof(*ops));
    uint8_t *host = host_of(&w, RANGE);
    assert_non_null(ops);
    kernels_upload(w.kernels, w.pool, w.model, RANGE);
    for (uint32_t i = 0; i < 3 * DEVICE_MEMORY_SLOTS; i++) {
        ops[i] = op_of(&w, KV_MEMORY_CHECKSUM, 1, RANGE);
        ops[i].mark = kernels_mark(w.kernels);
        kv_memory_submit(w.memory, &ops[i]);
    }
    device_memory_destroy(w.memory);
    uint32_t count = 0;
    for (struct kv_memory_op *op = kv_memory_inbox_take_all(&w.inbox); op != NULL; op = op->next) {
        assert_false(failed(op->status));
        count++;
    }
    assert_int_equal(count, 3 * DEVICE_MEMORY_SLOTS);
    assert_false(failed(device_memory_create(w.kernels, w.pool, POOL_BYTES, &w.memory, &diag))); /* the pool is free for another */
    kv_memory_host_free(w.memory, host);
    free(ops);
    world_fini(&w);
}

/* Whichever call of create fails, it says so and leaves nothing. */
static void every_failure_of_create_is_undone(void **state)
{
    (void)state;
    static const enum emulated_call calls[] = {EMULATED_MEM_ALLOC, EMULATED_HOST_ALLOC, EMULATED_STREAM, EMULATED_EVENT};
    for (size_t c = 0; c < sizeof(calls) / sizeof(calls[0]); c++) {
        const struct cuda_driver *driver = emulated_device_create(&(struct emulated_options){.memory_bytes = PAIR_MEMORY_BYTES});
        struct cuda_marks *marks = NULL;
        struct diag diag = {{0}};
        void *pool = NULL;
        assert_false(failed(cuda_marks_create(driver, &marks, &diag)));
        assert_false(failed(driver->mem_alloc(driver, POOL_BYTES, &pool, &diag)));
        for (uint64_t nth = 1;; nth++) {
            struct kv_memory *memory = NULL;
            emulated_device_fail(driver, calls[c], nth, 2);
            status_t st = device_memory_create_on(driver, marks, pool, POOL_BYTES, &memory, &diag);
            emulated_device_fail(driver, calls[c], 0, 0);
            if (!failed(st)) {
                assert_true(nth > 1);
                device_memory_destroy(memory);
                break;
            }
            assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
            assert_null(memory);
        }
        driver->mem_free(driver, pool);
        cuda_marks_destroy(marks);
        driver->close(driver);
    }
}

/* ---- between processes ---------------------------------------------------------------------- */

static void send_all(int fd, const void *bytes, size_t count) { if (write(fd, bytes, count) != (ssize_t)count) { _exit(9); } }
static bool read_all(int fd, void *bytes, size_t count)
{
    for (size_t at = 0; at < count;) {
        ssize_t got = read(fd, (uint8_t *)bytes + at, count - at);
        if (got <= 0) { return false; }
        at += (size_t)got;
    }
    return true;
}

#define EXPORTED_EVENT 9u

/* P: fills its pool, sums a few ranges with an event, exports, and lives until told. */
static void exporter(int fd, uint32_t device)
{
    struct world w;
    uint8_t bytes[KV_MEMORY_EXPORT_BYTES_MAX], word;
    size_t count = 0;
    struct diag diag;
    world_init_on(&w, 21, device);
    uint8_t *host = host_of(&w, 8 * RANGE);
    struct kv_memory_op op = op_of(&w, KV_MEMORY_WRITE, 8, RANGE);
    op.host = host;
    for (uint32_t i = 0; i < 8; i++) { op.offsets[i] = (i * 3 + 1) * RANGE; }
    for (uint32_t i = 0; i < 8 * RANGE; i++) { host[i] = (uint8_t)(i * 13 + i / 256); }
    if (failed(run(&w, &op))) { _exit(4); }
    op.kind = KV_MEMORY_CHECKSUM;
    op.event = EXPORTED_EVENT;
    if (failed(run(&w, &op))) { _exit(5); }
    if (failed(kv_memory_export(w.memory, bytes, &count, &diag))) { _exit(6); }
    send_all(fd, &count, sizeof(count));
    send_all(fd, bytes, count);
    send_all(fd, op.crc, 8 * sizeof(op.crc[0]));
    if (read(fd, &word, 1) != 1) { _exit(0); } /* dies without a word */
    kv_memory_host_free(w.memory, host);
    world_fini(&w);
    _exit(0);
}

/* D imports P's pool and copies out of it into its own, which then has P's checksums; the order of streams does not
 * matter. When P dies the import can still be read and released. */
static void a_peer_is_copied_from_after_its_event(void **state)
{
    (void)state;
    for (int dies = 0; dies < 2; dies++) {
        int fds[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
        fflush(NULL);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            close(fds[0]);
            exporter(fds[1], 0);
        }
        close(fds[1]);
        struct world w;
        uint8_t bytes[KV_MEMORY_EXPORT_BYTES_MAX];
        size_t count = 0, pool_bytes = 0;
        uint32_t crcs[8];
        struct kv_memory_peer *peer = NULL;
        struct diag diag = {{0}};
        world_init(&w, 22);
        assert_true(kv_memory_can_export(w.memory));
        assert_true(read_all(fds[0], &count, sizeof(count)));
        assert_true(count <= sizeof(bytes));
        assert_true(read_all(fds[0], bytes, count));
        assert_true(read_all(fds[0], crcs, sizeof(crcs)));
        if (failed(kv_memory_import(w.memory, bytes, count, &peer, &pool_bytes, &diag))) { fail_msg("%s", diag.text); }
        assert_int_equal(pool_bytes, POOL_BYTES);
        for (int round = 0; round < 2; round++) {
            if (dies == 1 && round == 1) {
                kill(child, SIGKILL);
                waitpid(child, NULL, 0);
            }
            struct kv_memory_op op = op_of(&w, KV_MEMORY_COPY, 8, RANGE);
            op.peer = peer;
            op.event = EXPORTED_EVENT;
            for (uint32_t i = 0; i < 8; i++) {
                op.peer_offsets[i] = (i * 3 + 1) * RANGE;
                op.offsets[i] = (uint64_t)(7 - i) * 2 * RANGE;
            }
            assert_false(failed(run(&w, &op)));
            assert_memory_equal(op.crc, crcs, sizeof(crcs));
            uint8_t got[4];
            assert_true(emulated_device_peek(w.driver, w.pool + op.offsets[1], got, 4));
            assert_int_equal(got[3], (uint8_t)((RANGE + 3) * 13 + (RANGE + 3) / 256));
        }
        kv_memory_release(w.memory, peer);
        world_fini(&w);
        if (dies == 0) {
            send_all(fds[0], "x", 1);
            int how = 0;
            waitpid(child, &how, 0);
            assert_int_equal(how, 0);
        }
        close(fds[0]);
    }
}

/* Foreign bytes: each kind of wrong is told, and nothing is left. */
static void what_is_no_export_of_a_peer_is_refused(void **state)
{
    (void)state;
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(fds[0]);
        exporter(fds[1], 3); /* of another device */
    }
    close(fds[1]);
    struct world w;
    uint8_t bytes[KV_MEMORY_EXPORT_BYTES_MAX], own[KV_MEMORY_EXPORT_BYTES_MAX];
    size_t count = 0, own_count = 0, pool_bytes = 77;
    struct kv_memory_peer *peer = NULL;
    struct diag diag;
    world_init(&w, 23);
    assert_true(read_all(fds[0], &count, sizeof(count)));
    assert_true(read_all(fds[0], bytes, count));
    status_t st = kv_memory_import(w.memory, bytes, count, &peer, &pool_bytes, &diag);
    assert_int_equal(st.code, ST_FAILED_PRECONDITION);
    assert_int_equal(st.scope, SCOPE_PEER);
    assert_false(failed(kv_memory_export(w.memory, own, &own_count, &diag)));
    assert_int_equal(kv_memory_import(w.memory, own, own_count, &peer, &pool_bytes, &diag).code, ST_FAILED_PRECONDITION);
    for (size_t cut = 0; cut < own_count; cut += own_count / 7) {
        st = kv_memory_import(w.memory, own, cut, &peer, &pool_bytes, &diag);
        assert_int_equal(st.code, ST_INVALID_ARGUMENT);
        assert_int_equal(st.scope, SCOPE_PEER);
    }
    for (size_t at = 0; at < own_count; at += at < 64 ? 1 : 37) { /* any byte may lie: a status, whichever */
        uint8_t keep = own[at];
        own[at] ^= 0x55;
        st = kv_memory_import(w.memory, own, own_count, &peer, &pool_bytes, &diag);
        assert_true(failed(st));
        assert_int_equal(st.scope, SCOPE_PEER);
        own[at] = keep;
    }
    assert_null(peer);
    assert_int_equal(pool_bytes, 77);
    world_fini(&w);
    close(fds[0]);
    waitpid(child, NULL, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_failure_of_create_is_undone),
        cmocka_unit_test(an_op_that_fails_ends_once),
        cmocka_unit_test(a_lost_device_ends_every_op),
        cmocka_unit_test(a_mark_after_a_failed_operation_never_passes),
        cmocka_unit_test(what_is_no_export_of_a_peer_is_refused),
        cmocka_unit_test(ranges_hold_what_was_written),
        cmocka_unit_test(an_op_waits_for_its_mark),
        cmocka_unit_test(ops_come_from_any_thread),
        cmocka_unit_test(the_end_waits_for_what_is_under_way),
        cmocka_unit_test(a_peer_is_copied_from_after_its_event),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
