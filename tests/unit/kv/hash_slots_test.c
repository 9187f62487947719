#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "base/rng.h"
#include "kv/hash_slots.h"
#include "tests/unit/heap/counting_heap.h"

enum { RECORDS = 40 };

struct record {
    uint32_t before;
    struct kv_hash name;
};

/* Names from a few home slots only, so that runs are long, meet each other and wrap around. */
static struct kv_hash crowded_name(uint32_t id)
{
    struct kv_hash name = {{0}};
    name.bytes[0] = (uint8_t)(id % 5 == 0 ? 0xfe : 0x7d + id % 5);
    name.bytes[15] = (uint8_t)id;
    return name;
}

static void no_memory_is_a_status(void **state)
{
    (void)state;
    struct record record;
    struct hash_slots slots;
    heap_fail_next(1);
    assert_int_equal(hash_slots_init(&slots, 1, &record.name, sizeof record).code, ST_RESOURCE_EXHAUSTED);
    hash_slots_fini(&slots);
}

/* Against a naive set, with a table that is as full as it gets: what was added and not removed is
 * found, at its record, and nothing else is. */
static void random_operations_agree_with_a_naive_set(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct rng rng = rng_init(seed);
        struct record records[RECORDS];
        bool is_in[RECORDS] = {false};
        for (uint32_t i = 0; i < RECORDS; i++) { records[i].name = crowded_name(i); }
        struct hash_slots slots;
        assert_false(failed(hash_slots_init(&slots, RECORDS, &records[0].name, sizeof records[0])));
        uint32_t count = 0;
        for (uint32_t step = 0; step < 2000; step++) {
            uint32_t i = (uint32_t)rng_below(&rng, RECORDS);
            if (is_in[i]) {
                hash_slots_remove(&slots, i);
            } else {
                hash_slots_add(&slots, i);
            }
            count = is_in[i] ? count - 1 : count + 1;
            is_in[i] = !is_in[i];
            assert_int_equal(slots.count, count);
            for (uint32_t k = 0; k < RECORDS; k++) {
                uint32_t at = RECORDS;
                if (hash_slots_find(&slots, records[k].name, &at) != is_in[k] || (is_in[k] && at != k)) {
                    fail_msg("seed %llu, step %u: record %u", (unsigned long long)seed, step, k);
                }
            }
        }
        hash_slots_clear(&slots);
        uint32_t at;
        for (uint32_t k = 0; k < RECORDS; k++) { assert_false(hash_slots_find(&slots, records[k].name, &at)); }
        hash_slots_fini(&slots);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_memory_is_a_status),
        cmocka_unit_test(random_operations_agree_with_a_naive_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
