/* The thread pool: every piece once, results visible, however often and however small the jobs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "kernels/cpu/pool.h"

#define PIECES_MAX 300u

struct job {
    uint32_t *plain; /* [PIECES_MAX]: not atomic, so that a piece given twice is a race */
    uint32_t threads;
    uint32_t value;
    _Atomic uint32_t *bad_worker;
    bool slow;
};

static void piece(const void *arg, uint32_t worker, uint32_t index)
{
    const struct job *job = arg;
    if (worker >= job->threads) { atomic_fetch_add(job->bad_worker, 1); }
    if (job->slow && index % 3 == 0) { sched_yield(); }
    job->plain[index] += job->value;
}

static struct pool *pool_for(uint32_t threads)
{
    struct pool *pool = NULL;
    struct diag diag;
    assert_false(failed(pool_create(threads, &pool, &diag)));
    assert_int_equal(pool_threads(pool), threads);
    return pool;
}

/* Small jobs of changing size back to back, on more threads than cores: a worker on its way out
 * of one job must not take a piece of the next before there is one. (It could, when the ticket
 * of the job before was still open while the new fields were written; then a piece ran twice,
 * or the caller slept for ever.) */
static void late_workers_take_nothing(void **state)
{
    (void)state;
    struct pool *pool = pool_for(4);
    uint32_t plain[PIECES_MAX] = {0}, want[PIECES_MAX] = {0};
    _Atomic uint32_t bad = 0;
    for (uint32_t turn = 1; turn <= 300000; turn++) {
        uint32_t count = 2 + turn * 7 % 13;
        struct job job = {plain, 4, 1, &bad, turn % 1000 == 0};
        pool_run(pool, count, piece, &job);
        for (uint32_t i = 0; i < count; i++) { want[i]++; }
        assert_memory_equal(plain, want, count * sizeof(uint32_t));
    }
    assert_int_equal(atomic_load(&bad), 0);
    pool_destroy(pool);
}

static void every_piece_once(void **state)
{
    (void)state;
    for (uint32_t threads = 1; threads <= 5; threads++) {
        struct pool *pool = pool_for(threads);
        uint32_t plain[PIECES_MAX] = {0}, want[PIECES_MAX] = {0};
        _Atomic uint32_t bad = 0;
        for (uint32_t turn = 1; turn <= 2000; turn++) {
            uint32_t count = turn * 7 % (turn % 10 == 0 ? PIECES_MAX : 6);
            struct job job = {plain, threads, turn, &bad, turn % 50 == 0};
            pool_run(pool, count, piece, &job);
            for (uint32_t i = 0; i < count; i++) { want[i] += turn; }
            assert_memory_equal(plain, want, sizeof(want)); /* visible as soon as pool_run returns */
        }
        assert_int_equal(atomic_load(&bad), 0);
        pool_destroy(pool);
    }
}

/* Workers that have gone to sleep between jobs come back; a pool never used can be destroyed. */
static void sleepers_wake(void **state)
{
    (void)state;
    struct pool *pool = pool_for(3);
    uint32_t plain[PIECES_MAX] = {0};
    _Atomic uint32_t bad = 0;
    for (uint32_t turn = 0; turn < 20; turn++) {
        struct timespec pause = {0, 1000000};
        nanosleep(&pause, NULL);
        struct job job = {plain, 3, 1, &bad, true};
        pool_run(pool, PIECES_MAX, piece, &job);
        assert_int_equal(plain[0], turn + 1);
        assert_int_equal(plain[PIECES_MAX - 1], turn + 1);
    }
    pool_destroy(pool);
    pool_destroy(pool_for(4));
    pool_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_piece_once),
        cmocka_unit_test(late_workers_take_nothing),
        cmocka_unit_test(sleepers_wake),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
