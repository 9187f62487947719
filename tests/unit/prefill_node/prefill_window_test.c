#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/prefill_node/prefill_world.h"

/* A prompt far longer than the window runs in a pool that could not hold it, with the same token and
 * the same blocks for whoever decodes; one that fits in the ring is cached as ever. */
static void a_long_prompt_holds_a_ring(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(8);
    config.prefix_cache = true;
    config.window_tokens = 9;
    config.chunk_tokens = 6; /* (9 + 6) / 4 rounded up, and one: 5 blocks */
    struct pworld *world = pworld_open(&config);
    struct pworld_job *job = pworld_job(world, 0, 200, 0, 1);
    job->prefill.grant_first = (200 - 9 + 1) / 4;
    job->prefill.work.params.prompt_logprobs = 0; /* the window of every row is looked at */
    pworld_send(world, job);
    while (world->plan != NULL) {
        assert_int_equal(pworld_stats(world).blocks_held, 5);
        pworld_step_done(world);
    }
    assert_int_equal(job->pushed_count, 50 - 48);
    pworld_finish(world);
    assert_int_equal(job->end, PWORLD_DONE);
    assert_int_equal(pworld_stats(world).blocks_free, 8); /* nothing of a ring is found again */
    struct pworld_job *small = pworld_job(world, 0, 17, 0, 2);
    (void)pworld_computed_by(world, small);
    assert_int_equal(pworld_computed_by(world, pworld_next_turn(world, small, 17, 18, 0)), 2);
    pworld_close(world);
}

/* Where the decode node wants more than the ring keeps, every block is held; then the pool's size counts. */
static void a_grant_longer_than_the_ring_needs_all_blocks(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(20);
    config.window_tokens = 9;
    config.chunk_tokens = 6;
    struct pworld *world = pworld_open(&config);
    struct pworld_job *job = pworld_job(world, 0, 80, 0, 1);
    job->prefill.grant_first = 14; /* six blocks: one more than the ring */
    pworld_send(world, job);
    assert_int_equal(pworld_stats(world).blocks_held, 20);
    pworld_finish(world);
    assert_int_equal(job->end, PWORLD_DONE);
    job = pworld_job(world, 0, 84, 0, 2);
    job->prefill.grant_first = 15;
    pworld_send(world, job);
    assert_int_equal(job->end, PWORLD_REFUSED);
    assert_int_equal(job->code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(job->message, "21 KV blocks"));
    assert_int_equal(pworld_stats(world).jobs, 0);
    pworld_close(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_long_prompt_holds_a_ring),
        cmocka_unit_test(a_grant_longer_than_the_ring_needs_all_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
