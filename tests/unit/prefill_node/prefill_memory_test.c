#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/heap/counting_heap.h"
#include "tests/unit/prefill_node/prefill_world.h"

static void steps_do_not_allocate(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(64);
    config.step_rows_max = 3;
    config.chunk_tokens = 1;
    config.prefix_cache = true;
    struct pworld *world = pworld_open(&config);
    uint64_t before = heap_allocations();
    for (uint32_t i = 0; i < 10; i++) { pworld_send(world, pworld_job(world, 0, 200, 0, i)); }
    assert_true(heap_allocations() > before); /* the counter counts */
    before = heap_allocations();
    uint32_t steps = 0;
    for (; world->plan != NULL; steps++) { pworld_step_done(world); }
    assert_int_equal(heap_allocations(), before);
    assert_true(steps >= 200);
    pworld_finish(world);
    pworld_close(world);
}

/* Whichever allocation fails: create says so and leaks nothing, and a job is refused. */
static void every_failed_allocation_is_a_status(void **state)
{
    (void)state;
    struct prefill_core_config config = pworld_config(32);
    struct prefill_core *core = NULL;
    struct diag diag;
    status_t st = STATUS(ST_UNKNOWN, SCOPE_NODE);
    uint32_t failures = 0;
    for (uint64_t k = 1; failed(st); k++) {
        heap_fail_next(k);
        st = prefill_core_create(&config, &core, &diag);
        if (!failed(st)) { break; }
        assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
        assert_null(core);
        failures++;
    }
    heap_fail_next(0);
    assert_true(failures > 15);
    prefill_core_destroy(core);
    struct pworld *world = pworld_open(&config);
    struct pworld_job *job = pworld_job(world, 0, 4, 0, 1);
    heap_fail_next(1);
    pworld_send(world, job);
    heap_fail_next(0);
    assert_int_equal(job->end, PWORLD_REFUSED);
    assert_int_equal(job->code, ST_RESOURCE_EXHAUSTED);
    assert_false(job->has_transfer);
    pworld_close(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_do_not_allocate),
        cmocka_unit_test(every_failed_allocation_is_a_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
