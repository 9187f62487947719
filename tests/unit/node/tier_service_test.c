/* Claims on the glue between a node and its KV tiers: no flags, no tiers; what the disk kept is told
 * first and once; every request ends in one event, a refused one too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <pthread.h>
#include <unistd.h>

#include "base/clock.h"
#include "node/tier_service.h"

enum { BLOCK_BYTES = 4096, BLOCKS = 4 };

static uint8_t pool[BLOCKS * BLOCK_BYTES];
static char path[128];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool is_held; /* the tiers' thread waits in its next event */
static uint32_t event_count;
static struct kv_tier_event events[2048];

static void on_post(void *user, const struct kv_tier_event *event)
{
    assert_ptr_equal(user, pool);
    pthread_mutex_lock(&lock);
    while (is_held) { pthread_cond_wait(&changed, &lock); }
    events[event_count++] = *event;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void hold(bool held)
{
    pthread_mutex_lock(&lock);
    is_held = held;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void wait_for(uint32_t count)
{
    pthread_mutex_lock(&lock);
    while (event_count < count) { pthread_cond_wait(&changed, &lock); }
    pthread_mutex_unlock(&lock);
}

static struct kv_hash name_of(uint32_t id) { return kv_hash_next(kv_hash_root(0), &id, 1); }

static struct tier_service_config shape(const struct node_config *flags)
{
    event_count = 0;
    snprintf(path, sizeof path, "%s/tier_service_%d", getenv("TEST_TMPDIR") ? getenv("TEST_TMPDIR") : "/tmp", (int)getpid());
    return (struct tier_service_config){.flags = flags, .pool = pool, .block_bytes = BLOCK_BYTES, .block_count = BLOCKS, .post = on_post, .user = pool};
}

/* Nothing asked for: nothing is there, and everybody who asks is told so. */
static void no_flags_no_tiers(void **state)
{
    (void)state;
    struct node_config flags = {0};
    struct tier_service_config config = shape(&flags);
    struct tier_service *service = (struct tier_service *)&config;
    struct diag diag = {{0}};
    struct kv_tier_stats stats;
    struct kv_tier_event event;
    assert_false(failed(tier_service_create(&config, &service, &diag)));
    assert_null(service);
    assert_int_equal(tier_service_memory_bytes(&config), 0);
    assert_int_equal(tier_service_entries_max(&config), 0);
    assert_null(tier_service_next_found(NULL));
    assert_int_equal(tier_service_refused_count(NULL), 0);
    assert_false(tier_service_next_refused(NULL, &event));
    assert_false(tier_service_stats(NULL, &stats));
    tier_service_destroy(NULL);
}

/* What the role has no use for is not there, whatever the flags ask for. */
static void unused_tiers_are_none(void **state)
{
    (void)state;
    struct node_config flags = {.kv_host_memory = 1 << 20};
    struct tier_service_config config = shape(&flags);
    struct tier_service *service = (struct tier_service *)&config;
    struct diag diag = {{0}};
    assert_true(tier_service_entries_max(&config) > 0);
    config.is_unused = true;
    assert_false(failed(tier_service_create(&config, &service, &diag)));
    assert_null(service);
    assert_int_equal(tier_service_memory_bytes(&config), 0);
    assert_int_equal(tier_service_entries_max(&config), 0);
}

/* Each budget is checked by itself, before anything is made; the flag and the size of a block are in the text. */
static void budgets_are_checked_before_the_start(void **state)
{
    (void)state;
    struct node_config flags = {0};
    struct tier_service_config config = shape(&flags);
    struct diag diag = {{0}};
    assert_false(failed(tier_service_check(&config, &diag)));
    flags.kv_host_memory = BLOCK_BYTES - 1;
    assert_int_equal(tier_service_check(&config, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "--kv-host-memory=4095"));
    assert_non_null(strstr(diag.text, "4096"));
    flags.kv_host_memory = 1 << 20;
    assert_false(failed(tier_service_check(&config, &diag)));
    flags.kv_disk = 1;
    flags.kv_disk_path = path;
    assert_int_equal(tier_service_check(&config, &diag).code, ST_INVALID_ARGUMENT); /* the other tier does not make it good */
    assert_non_null(strstr(diag.text, "--kv-disk=1:"));
    flags.kv_disk = 1 << 20;
    assert_false(failed(tier_service_check(&config, &diag)));
    assert_int_not_equal(access(path, F_OK), 0);
}

/* A budget that holds no block names the flags. */
static void a_useless_budget_names_the_flag(void **state)
{
    (void)state;
    struct node_config flags = {.kv_host_memory = BLOCK_BYTES - 1};
    struct tier_service_config config = shape(&flags);
    struct tier_service *service;
    struct diag diag = {{0}};
    assert_int_equal(tier_service_create(&config, &service, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "--kv-host-memory"));
    assert_null(service);
}

/* The plan counts the host tier in full. */
static void memory_counts_the_host_tier(void **state)
{
    (void)state;
    struct node_config flags = {.kv_host_memory = 100 * BLOCK_BYTES};
    struct tier_service_config config = shape(&flags);
    assert_true(tier_service_memory_bytes(&config) >= 100 * BLOCK_BYTES);
    assert_int_equal(tier_service_entries_max(&config), 100);
}

/* A second life: what the first one left on disk comes from next_found, and is not posted. */
static void what_was_found_is_told_first(void **state)
{
    (void)state;
    struct node_config flags = {.kv_disk = 16 * BLOCK_BYTES};
    struct tier_service_config config = shape(&flags);
    flags.kv_disk_path = path;
    struct tier_service *service;
    struct diag diag = {{0}};
    assert_false(failed(tier_service_create(&config, &service, &diag)));
    assert_null(tier_service_next_found(service));
    for (uint32_t id = 0; id < 3; id++) { tier_service_store(service, name_of(id), id, 100 + id); }
    wait_for(3);
    tier_service_destroy(service);
    event_count = 0;
    assert_false(failed(tier_service_create(&config, &service, &diag)));
    for (uint32_t i = 0; i < 3; i++) {
        const struct kv_tier_event *event = tier_service_next_found(service);
        assert_non_null(event);
        assert_int_equal(event->kind, KV_TIER_FOUND);
    }
    assert_null(tier_service_next_found(service));
    assert_null(tier_service_next_found(service));
    tier_service_load(service, name_of(1), 0, 7);
    wait_for(1);
    assert_int_equal(events[0].kind, KV_TIER_LOADED);
    assert_int_equal(events[0].tag, 7);
    struct kv_tier_stats stats;
    assert_true(tier_service_stats(service, &stats));
    assert_int_equal(stats.found, 3);
    tier_service_destroy(service);
    unlink(path);
}

/* More than the tiers take at once: the rest comes back as failures, in order, none lost, none twice. */
static void refusals_are_events(void **state)
{
    (void)state;
    enum { ASKED = 700 };
    struct node_config flags = {.kv_host_memory = 1024 * BLOCK_BYTES};
    struct tier_service_config config = shape(&flags);
    struct tier_service *service;
    struct diag diag = {{0}};
    static bool was_answered[ASKED];
    assert_false(failed(tier_service_create(&config, &service, &diag)));
    hold(true);
    for (uint32_t i = 0; i < ASKED; i++) {
        if (i % 2 == 0) {
            tier_service_store(service, name_of(i), 0, i);
        } else {
            tier_service_load(service, name_of(i), 1, i);
        }
    }
    uint32_t refused = tier_service_refused_count(service);
    assert_true(refused >= ASKED - 600);
    struct kv_tier_event event;
    uint64_t last = 0;
    for (uint32_t i = 0; i < refused; i++) {
        assert_true(tier_service_next_refused(service, &event));
        assert_int_equal(event.kind, event.tag % 2 == 0 ? KV_TIER_STORE_FAILED : KV_TIER_LOAD_FAILED);
        assert_int_equal(event.status.code, ST_RESOURCE_EXHAUSTED);
        assert_true(kv_hash_equal(event.hash, name_of((uint32_t)event.tag)));
        assert_true(event.tag > last);
        last = event.tag;
        was_answered[event.tag] = true;
    }
    assert_false(tier_service_next_refused(service, &event));
    hold(false);
    tier_service_destroy(service); /* answers the rest */
    for (uint32_t i = 0; i < event_count; i++) {
        if (events[i].kind > KV_TIER_LOAD_FAILED) { continue; }
        assert_false(was_answered[events[i].tag]);
        was_answered[events[i].tag] = true;
    }
    for (uint32_t i = 0; i < ASKED; i++) { assert_true(was_answered[i]); }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_flags_no_tiers),
        cmocka_unit_test(unused_tiers_are_none),
        cmocka_unit_test(budgets_are_checked_before_the_start),
        cmocka_unit_test(a_useless_budget_names_the_flag),
        cmocka_unit_test(memory_counts_the_host_tier),
        cmocka_unit_test(what_was_found_is_told_first),
        cmocka_unit_test(refusals_are_events),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
