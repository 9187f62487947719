/* event_heap against a list that is searched from end to end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include "base/rng.h"
#include "sim/event_heap.h"

struct event { uint64_t at_ns, order; uint32_t name; char tail[5]; };

enum { EVENTS = 2000 };

static struct event taken(struct event_heap *heap)
{
    struct event event;
    event_heap_take(heap, &event);
    return event;
}

/* What is due at one time comes in the order in which it was added, also where it was added after later things. */
static void one_time_keeps_the_order(void **state)
{
    (void)state;
    struct event_heap heap = {.event_bytes = sizeof(struct event)};
    (void)event_heap_add(&heap, &(struct event){.at_ns = 9, .name = 100});
    for (uint32_t i = 0; i < 10; i++) { (void)event_heap_add(&heap, &(struct event){.at_ns = 5, .name = i}); }
    for (uint32_t i = 0; i < 10; i++) { assert_int_equal(taken(&heap).name, i); }
    assert_int_equal(taken(&heap).name, 100);
    assert_int_equal(heap.count, 0);
    event_heap_fini(&heap);
}

/* The copy that add gives back is the one that is taken later; the only event there is can be taken and another added. */
static void what_is_filled_in_later_is_kept(void **state)
{
    (void)state;
    struct event_heap heap = {.event_bytes = sizeof(struct event)};
    for (uint32_t i = 1; i < 4; i++) {
        struct event *place = event_heap_add(&heap, &(struct event){.at_ns = i});
        place->name = i;
        assert_int_equal(place->order, i);
        struct event event = taken(&heap);
        assert_int_equal(event.name, i);
        assert_int_equal(event.at_ns, i);
        assert_int_equal(heap.count, 0);
    }
    event_heap_fini(&heap);
}

/* Whatever is added and taken, and however the array has to grow: always the earliest, and every one once. */
static void the_earliest_comes_first(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct rng rng = rng_init(seed);
        struct event_heap heap = {.event_bytes = sizeof(struct event)};
        struct event list[EVENTS];
        uint32_t list_count = 0, added = 0;
        while (added < EVENTS || list_count > 0) {
            if (added < EVENTS && (list_count == 0 || rng_below(&rng, 100) < 60)) {
                struct event event = {.at_ns = rng_below(&rng, 50), .order = added + 1, .name = added + 1, .tail = "tail"};
                added++;
                list[list_count++] = event;
                event.order = 0; /* it is the heap that numbers them */
                (void)event_heap_add(&heap, &event);
                continue;
            }
            uint32_t best = 0;
            for (uint32_t i = 1; i < list_count; i++) {
                if (list[i].at_ns < list[best].at_ns || (list[i].at_ns == list[best].at_ns && list[i].order < list[best].order)) { best = i; }
            }
            struct event event = taken(&heap);
            if (event.name != list[best].name || event.at_ns != list[best].at_ns || event.order != list[best].order) {
                fail_msg("seed %llu: %u instead of %u", (unsigned long long)seed, event.name, list[best].name);
            }
            assert_string_equal(event.tail, "tail");
            list[best] = list[--list_count];
            assert_int_equal(heap.count, list_count);
        }
        event_heap_fini(&heap);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_time_keeps_the_order),
        cmocka_unit_test(what_is_filled_in_later_is_kept),
        cmocka_unit_test(the_earliest_comes_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
