#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "sched/rate.h"
#include "sched/router_set.h"

static uint32_t count_due(struct router_set *set, const struct ctl_load *load, uint64_t now_ns)
{
    uint32_t router;
    uint32_t count = 0;
    if (!router_set_wants_load(set, now_ns)) { return 0; }
    while (router_set_next_load(set, load, now_ns, &router)) { count++; }
    return count;
}

/* A router is told when it comes; later ones only when something changed, and not too often. */
static void load_is_sent_when_it_changed_and_not_too_often(void **state)
{
    (void)state;
    struct router_set set = {0};
    struct ctl_load load = {.blocks_free = 5};
    uint64_t now_ns = 100 * LOAD_INTERVAL_NS;
    assert_int_equal(count_due(&set, &load, now_ns), 0);
    assert_int_equal(router_set_load_due_ns(&set), UINT64_MAX);
    for (uint32_t i = 0; i < 20; i++) { assert_false(failed(router_set_add(&set, i * 7))); }
    assert_false(failed(router_set_add(&set, 7)));
    assert_int_equal(set.count, 20);
    assert_int_equal(count_due(&set, &load, now_ns), 20);
    assert_int_equal(count_due(&set, &load, now_ns + LOAD_INTERVAL_NS), 0);
    load.blocks_free = 4;
    assert_int_equal(count_due(&set, &load, now_ns + LOAD_INTERVAL_NS), 20);
    load.blocks_free = 3;
    assert_int_equal(count_due(&set, &load, now_ns + LOAD_INTERVAL_NS + 1), 0);
    assert_int_equal(router_set_load_due_ns(&set), now_ns + 2 * LOAD_INTERVAL_NS);
    assert_false(failed(router_set_add(&set, 500)));
    assert_int_equal(count_due(&set, &load, now_ns + LOAD_INTERVAL_NS + 2), 1);
    router_set_remove(&set, 500);
    assert_false(router_set_has(&set, 500));
    assert_true(router_set_has(&set, 19 * 7));
    assert_int_equal(count_due(&set, &load, now_ns + 2 * LOAD_INTERVAL_NS), 20);
    assert_int_equal(router_set_load_due_ns(&set), UINT64_MAX);
    /* The last one leaves while a change is pending: nobody is to be woken for it. */
    load.blocks_free = 2;
    assert_int_equal(count_due(&set, &load, now_ns + 2 * LOAD_INTERVAL_NS + 1), 0);
    for (uint32_t i = 0; i < 20; i++) { router_set_remove(&set, i * 7); }
    assert_int_equal(count_due(&set, &load, now_ns + 3 * LOAD_INTERVAL_NS), 0);
    assert_int_equal(router_set_load_due_ns(&set), UINT64_MAX);
    router_set_fini(&set);
}

/* A router that comes between two reports is told the load of that moment. Where the load then
 * goes back to what the others were told, it hears that too (sim seed 516: it believed ten free
 * blocks fewer for good). */
static void a_router_that_came_in_between_hears_of_the_way_back(void **state)
{
    (void)state;
    struct router_set set = {0};
    struct ctl_load load = {.blocks_free = 15};
    uint64_t now_ns = 100 * LOAD_INTERVAL_NS;
    assert_false(failed(router_set_add(&set, 1)));
    assert_int_equal(count_due(&set, &load, now_ns), 1);
    load.blocks_free = 5;
    assert_false(failed(router_set_add(&set, 2)));
    assert_int_equal(count_due(&set, &load, now_ns + 1), 1);
    load.blocks_free = 15;
    assert_int_equal(count_due(&set, &load, now_ns + 2), 0);
    assert_int_equal(router_set_load_due_ns(&set), now_ns + LOAD_INTERVAL_NS);
    assert_int_equal(count_due(&set, &load, now_ns + LOAD_INTERVAL_NS), 2);
    assert_int_equal(router_set_load_due_ns(&set), UINT64_MAX);
    router_set_fini(&set);
}

/* The rate follows the rows per second of the recent steps; a long step weighs more. */
static void a_rate_is_that_of_recent_steps(void **state)
{
    (void)state;
    struct token_rate rate = {0};
    assert_int_equal(token_rate_per_s(&rate), 0);
    for (uint32_t i = 0; i < 100; i++) { token_rate_add(&rate, 100, 1000000); }
    assert_in_range(token_rate_per_s(&rate), 99000, 101000);
    for (uint32_t i = 0; i < 100; i++) { token_rate_add(&rate, 1, 1000000); }
    assert_in_range(token_rate_per_s(&rate), 900, 1100);
    assert_true(later_ns(5, UINT64_MAX) == UINT64_MAX);
    assert_int_equal(retry_hint_ms(0), 10);
    assert_int_equal(retry_hint_ms(UINT64_MAX), 60000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(load_is_sent_when_it_changed_and_not_too_often),
        cmocka_unit_test(a_router_that_came_in_between_hears_of_the_way_back),
        cmocka_unit_test(a_rate_is_that_of_recent_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
