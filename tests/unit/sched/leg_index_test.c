#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "sched/leg_index.h"

/* Ended legs stay known until enough others have ended, and are never found as live. */
static void ended_legs_are_known_for_a_while(void **state)
{
    (void)state;
    struct leg_index *index;
    assert_false(failed(leg_index_create(2, 2, &index)));
    int leg;
    for (uint64_t i = 1; i <= 3; i++) {
        struct leg_id id = {.hi = 1, .lo = i};
        assert_false(leg_index_is_known(index, id));
        leg_index_add(index, id, &leg);
        assert_ptr_equal(leg_index_find(index, id), &leg);
        leg_index_remove(index, id);
        assert_null(leg_index_find(index, id));
        assert_true(leg_index_is_known(index, id));
    }
    assert_false(leg_index_is_known(index, (struct leg_id){.hi = 1, .lo = 1}));
    assert_true(leg_index_is_known(index, (struct leg_id){.hi = 1, .lo = 2}));
    leg_index_remember(index, (struct leg_id){.hi = 9, .lo = 9});
    assert_true(leg_index_is_known(index, (struct leg_id){.hi = 9, .lo = 9}));
    assert_false(leg_index_is_known(index, (struct leg_id){.hi = 1, .lo = 2}));
    assert_int_equal(leg_index_live_count(index), 0);
    leg_index_destroy(index);
    leg_index_destroy(NULL);
}

/* Against a plain array: what is live is found, whatever was removed before and between. */
static void random_legs_are_found_again(void **state)
{
    (void)state;
    enum { LIVE = 40 };
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct rng rng = rng_init(seed);
        struct leg_index *index;
        assert_false(failed(leg_index_create(LIVE, 25, &index)));
        struct leg_id ids[LIVE];
        uint32_t count = 0;
        uint64_t next = 0;
        for (uint32_t step = 0; step < 3000; step++) {
            if (count < LIVE && rng_below(&rng, 2) == 0) {
                ids[count] = (struct leg_id){.hi = rng_below(&rng, 3), .lo = next++};
                leg_index_add(index, ids[count], &ids[count]);
                count++;
            } else if (count > 0) {
                /* The last one moves into the gap, so what is stored for it moves as well. */
                uint32_t at = (uint32_t)rng_below(&rng, count);
                struct leg_id gone = ids[at];
                leg_index_remove(index, gone);
                count--;
                if (at < count) {
                    leg_index_remove(index, ids[count]);
                    next++;
                    ids[at] = (struct leg_id){.hi = 5, .lo = next++};
                    leg_index_add(index, ids[at], &ids[at]);
                }
                assert_null(leg_index_find(index, gone));
            }
            for (uint32_t i = 0; i < count; i++) { assert_ptr_equal(leg_index_find(index, ids[i]), &ids[i]); }
            assert_int_equal(leg_index_live_count(index), count);
        }
        leg_index_destroy(index);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ended_legs_are_known_for_a_while),
        cmocka_unit_test(random_legs_are_found_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
