/* Claims on tiers whose pool's device is lost: every request is answered, with the device's code, and
 * the tiers end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/kv_memory/fake_memory.h"
#include "tests/unit/kv/tier_harness.h"

/* What was stored cannot be loaded any more, and nothing new can be stored: each is told so, an entry
 * that fails is given up first, as with any other failure, and nothing waits for ever. */
static void lost_between_store_and_load(uint32_t host_blocks, uint32_t disk_blocks)
{
    struct harness *harness = harness_create(host_blocks, disk_blocks);
    harness_must_open(harness);
    assert_int_equal(harness_store(harness, 7).kind, KV_TIER_STORED);
    assert_int_equal(harness_load(harness, 7).kind, KV_TIER_LOADED);
    assert_true(harness_holds(harness, 1, 7));
    fake_memory_lose(harness->memory);
    struct kv_tier_event event = harness_load(harness, 7);
    assert_int_equal(event.kind, KV_TIER_LOAD_FAILED);
    assert_int_equal(event.status.code, ST_INTERNAL);
    assert_int_equal(event.status.scope, SCOPE_NODE);
    assert_non_null(harness_event(harness, KV_TIER_DROPPED, 7));
    event = harness_store(harness, 8);
    assert_int_equal(event.kind, KV_TIER_STORE_FAILED);
    assert_int_equal(event.status.code, ST_INTERNAL);
    struct kv_tier_stats stats = harness_settled(harness);
    assert_int_equal(stats.entries[KV_TIER_HOST] + stats.entries[KV_TIER_DISK], 0);
    assert_int_equal(stats.load_failures, 1);
    assert_int_equal(stats.store_failures, 1);
    assert_int_equal(stats.checksum_failures, 0);
    harness_destroy(harness);
}

static void a_host_tier_over_a_lost_device(void **state)
{
    (void)state;
    lost_between_store_and_load(4, 0);
}

static void a_disk_tier_over_a_lost_device(void **state)
{
    (void)state;
    lost_between_store_and_load(0, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_host_tier_over_a_lost_device),
        cmocka_unit_test(a_disk_tier_over_a_lost_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
