/* kv_tier on disks that fill up, break, stop short and lie, and in processes that die at any write. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/kv/faulty_disk.h"
#include "tests/unit/kv/tier_harness.h"

enum { NAMES = 24 };

/* The child of a fork starts threads; ThreadSanitizer would rather it died. And it would sleep for a
 * second in each child that ends. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) { return "die_after_fork=0:atexit_sleep_ms=0"; }

/* From the events: which names the tier says it has. */
static uint32_t names_here(const struct harness *harness, bool *ret_is_here)
{
    uint32_t count = 0;
    memset(ret_is_here, 0, NAMES * sizeof *ret_is_here);
    for (uint32_t e = 0; e < harness->event_count; e++) {
        const struct kv_tier_event *event = &harness->events[e];
        for (uint32_t id = 0; id < NAMES; id++) {
            if (!kv_hash_equal(event->hash, harness_name(id))) { continue; }
            if (event->kind == KV_TIER_STORED || event->kind == KV_TIER_FOUND) { ret_is_here[id] = true; }
            if (event->kind == KV_TIER_DROPPED) { ret_is_here[id] = false; }
        }
    }
    for (uint32_t id = 0; id < NAMES; id++) { count += ret_is_here[id]; }
    return count;
}

/* What is said to be here loads and is right. */
static void assert_all_here_load(struct harness *harness)
{
    bool is_here[NAMES];
    (void)harness_settled(harness);
    (void)names_here(harness, is_here);
    for (uint32_t id = 0; id < NAMES; id++) {
        if (!is_here[id]) { continue; }
        struct kv_tier_event event = harness_load(harness, id);
        if (event.kind != KV_TIER_LOADED || !harness_holds(harness, 1, id)) { fail_msg("%u does not load", id); }
    }
}

static void fault_at_write(enum disk_fault fault, uint32_t host_blocks, uint64_t from, uint64_t count)
{
    struct harness *harness = harness_create(host_blocks, 6);
    harness->config.is_without_uring = true;
    harness_must_open(harness);
    faulty_disk_plan(fault, from, count);
    for (uint32_t id = 0; id < 12; id++) { (void)harness_store(harness, id); }
    struct kv_tier_stats stats = harness_settled(harness);
    assert_true(faulty_disk_writes() >= from);
    assert_true(stats.store_failures > 0);
    assert_int_equal(stats.in_flight, 0);
    assert_all_here_load(harness);
    faulty_disk_plan(DISK_SOUND, 0, 0);
    assert_all_here_load(harness);
    /* What this life had is what the next one has. */
    bool is_here[NAMES];
    uint32_t on_disk = (uint32_t)harness_settled(harness).entries[KV_TIER_DISK];
    uint32_t here = names_here(harness, is_here);
    harness_close(harness);
    harness_must_open(harness);
    assert_int_equal(harness->found, on_disk);
    if (host_blocks == 0) { assert_int_equal(here, on_disk); }
    assert_all_here_load(harness);
    assert_int_equal(harness_stats(harness).checksum_failures, 0);
    harness_destroy(harness);
}

/* Any one write fails, in any way: that entry fails or is dropped, all others live on, here and in
 * the next life. Wipes are the exception that costs a slot; the counts below allow no other. */
static void any_one_write_may_fail(void **state)
{
    (void)state;
    enum disk_fault faults[] = {DISK_FULL, DISK_BROKEN, DISK_STOPS_SHORT};
    for (uint32_t f = 0; f < 3; f++) {
        for (uint32_t host_blocks = 0; host_blocks <= 2; host_blocks += 2) {
            /* Six entries are written without a wipe: a block and its label each. */
            for (uint64_t at = 1; at <= 12; at++) { fault_at_write(faults[f], host_blocks, at, 1); }
        }
    }
}

/* A wipe that fails leaves a label that a later life will find; so its slot is never written again. */
static void a_failed_wipe_retires_the_slot(void **state)
{
    (void)state;
    struct harness *harness = harness_create(0, 2);
    harness->config.is_without_uring = true;
    harness_must_open(harness);
    (void)harness_store(harness, 1);
    (void)harness_store(harness, 2);
    faulty_disk_plan(DISK_BROKEN, 1, 1);
    kv_tier_drop(harness->tier, harness_name(1));
    (void)harness_settled(harness);
    faulty_disk_plan(DISK_SOUND, 0, 0);
    assert_int_equal(harness_load(harness, 1).kind, KV_TIER_LOAD_FAILED);
    for (uint32_t id = 3; id < 9; id++) { assert_int_equal(harness_store(harness, id).kind, KV_TIER_STORED); }
    assert_int_equal(harness_stats(harness).entries[KV_TIER_DISK], 1);
    /* With the other one gone the same way there is no room at all, and stores say so. */
    faulty_disk_plan(DISK_BROKEN, 1, 1);
    kv_tier_drop(harness->tier, harness_name(8));
    (void)harness_settled(harness);
    faulty_disk_plan(DISK_SOUND, 0, 0);
    struct kv_tier_event event = harness_store(harness, 9);
    assert_int_equal(event.kind, KV_TIER_STORE_FAILED);
    assert_int_equal(event.status.code, ST_RESOURCE_EXHAUSTED);
    harness_close(harness);
    harness_must_open(harness);
    assert_int_equal(harness->found, 2);
    assert_true(harness_load(harness, 1).kind == KV_TIER_LOADED && harness_holds(harness, 1, 1));
    assert_true(harness_load(harness, 8).kind == KV_TIER_LOADED && harness_holds(harness, 1, 8));
    harness_destroy(harness);
}

/* A disk that takes nothing more: after some failures it is left alone, the host tier goes on as if
 * there were none, and stores neither hang nor wait for it. */
static void a_dead_disk_is_left_alone(void **state)
{
    (void)state;
    struct harness *harness = harness_create(3, 6);
    harness->config.is_without_uring = true;
    harness_must_open(harness);
    faulty_disk_plan(DISK_FULL, 1, UINT32_MAX);
    for (uint32_t id = 0; id < NAMES; id++) { assert_int_equal(harness_store(harness, id).kind, KV_TIER_STORED); }
    struct kv_tier_stats stats = harness_settled(harness);
    assert_true(stats.is_disk_paused);
    assert_int_equal(stats.entries[KV_TIER_DISK], 0);
    assert_true(stats.entries[KV_TIER_HOST] >= 2);
    uint64_t writes = faulty_disk_writes();
    assert_true(writes < 10);
    assert_all_here_load(harness);
    faulty_disk_plan(DISK_SOUND, 0, 0);
    harness_destroy(harness);

    /* The disk alone: refused at once, with the reason. */
    harness = harness_create(0, 6);
    harness->config.is_without_uring = true;
    harness_must_open(harness);
    faulty_disk_plan(DISK_FULL, 1, UINT32_MAX);
    assert_int_equal(harness_store(harness, 1).status.code, ST_RESOURCE_EXHAUSTED);
    for (uint32_t id = 2; id < NAMES; id++) { assert_int_equal(harness_store(harness, id).kind, KV_TIER_STORE_FAILED); }
    assert_int_equal(harness_store(harness, 1).status.code, ST_UNAVAILABLE);
    assert_int_equal(harness_stats(harness).in_flight, 0);
    faulty_disk_plan(DISK_SOUND, 0, 0);
    harness_destroy(harness);
}

/* A read that fails or ends early is a failed load of that entry. */
static void a_failed_read_fails_its_entry(void **state)
{
    (void)state;
    enum disk_fault faults[] = {DISK_READ_BROKEN, DISK_READ_SHORT};
    for (uint32_t f = 0; f < 2; f++) {
        struct harness *harness = harness_create(0, 6);
        harness->config.is_without_uring = true;
        harness_must_open(harness);
        for (uint32_t id = 0; id < 3; id++) { (void)harness_store(harness, id); }
        faulty_disk_plan(faults[f], 1, 1);
        struct kv_tier_event event = harness_load(harness, 1);
        assert_int_equal(event.kind, KV_TIER_LOAD_FAILED);
        assert_int_equal(event.status.code, ST_UNAVAILABLE);
        assert_int_equal(event.status.scope, SCOPE_REQUEST);
        assert_non_null(harness_event(harness, KV_TIER_DROPPED, 1));
        faulty_disk_plan(DISK_SOUND, 0, 0);
        assert_all_here_load(harness);
        assert_int_equal(harness_store(harness, 1).kind, KV_TIER_STORED);
        assert_all_here_load(harness);
        harness_destroy(harness);
    }
}

/* No room for the file: said at start, before any of it is taken; and where the file system finds
 * out half way, what it took is given back. */
static void no_room_at_start_is_said(void **state)
{
    (void)state;
    struct harness *harness = harness_create(0, 6);
    struct stat info;
    harness->config.disk_bytes = UINT64_C(1) << 60;
    struct diag diag = {{0}};
    faulty_disk_plan(DISK_SOUND, 0, 0);
    assert_int_equal(harness_open(harness, &diag).code, ST_RESOURCE_EXHAUSTED);
    assert_int_equal(faulty_disk_allocations(), 0);
    assert_non_null(strstr(diag.text, harness->path));
    harness->config.disk_bytes = harness_disk_bytes(6);
    faulty_disk_plan(DISK_FULL, 1, UINT32_MAX);
    assert_int_equal(harness_open(harness, &diag).code, ST_RESOURCE_EXHAUSTED);
    assert_int_equal(faulty_disk_allocations(), 1);
    faulty_disk_plan(DISK_SOUND, 0, 0);
    assert_int_equal(stat(harness->path, &info), 0);
    assert_int_equal(info.st_size, 0);
    harness_must_open(harness);
    assert_string_equal(harness_stats(harness).disk_state, "new");
    harness_destroy(harness);
}

/* In a child: stores 0, 1, 2 ... round and round, told through the pipe, until it dies. */
static void live_and_die(struct harness *harness, int told, bool is_without_uring, uint64_t die_at)
{
    harness->config.is_without_uring = is_without_uring;
    if (die_at > 0) { faulty_disk_plan(PROCESS_DIES, die_at, 1); }
    harness_must_open(harness);
    for (uint32_t i = 0;; i++) {
        (void)harness_store(harness, i % NAMES);
        if (i % 5 == 4) { kv_tier_drop(harness->tier, harness_name((i - 2) % NAMES)); }
        pthread_mutex_lock(&harness->lock);
        if (harness->event_count > HARNESS_EVENTS - 64) { harness->event_count = 0; }
        pthread_mutex_unlock(&harness->lock);
        uint8_t byte = (uint8_t)i;
        if (write(told, &byte, 1) != 1) { _exit(0); }
    }
}

/* A child has none of the threads that a fake device needs, and the file is the same for either pool. */
static void skip_on_device(void)
{
#ifdef TIER_ON_DEVICE
    print_message("  runs with a pool in host memory\n");
    skip();
#endif
}

/* Lives until the child is dead; kill_after: so many stores, 0: it kills itself. */
static void run_child(struct harness *harness, bool is_without_uring, uint64_t die_at, uint32_t kill_after)
{
    int pipe_fds[2];
    assert_int_equal(pipe(pipe_fds), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(pipe_fds[0]);
        live_and_die(harness, pipe_fds[1], is_without_uring, die_at);
    }
    close(pipe_fds[1]);
    uint8_t byte;
    uint32_t stores = 0;
    while (read(pipe_fds[0], &byte, 1) == 1) {
        if (++stores == kill_after) { kill(child, SIGKILL); }
    }
    close(pipe_fds[0]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(die_at > 0 ? WIFEXITED(status) && WEXITSTATUS(status) == 9 : WIFSIGNALED(status));
}

/* After any death: every entry that is found is whole. */
static void assert_next_life_is_sound(struct harness *harness, const char *what, uint64_t number)
{
    harness->config.is_without_uring = true;
    harness_must_open(harness);
    bool is_here[NAMES];
    uint32_t found = harness->found;
    assert_int_equal(names_here(harness, is_here), found);
    for (uint32_t id = 0; id < NAMES; id++) {
        if (!is_here[id]) { continue; }
        struct kv_tier_event event = harness_load(harness, id);
        if (event.kind != KV_TIER_LOADED || !harness_holds(harness, 1, id)) { fail_msg("%s %llu: %u is torn", what, (unsigned long long)number, id); }
    }
    assert_int_equal(harness_stats(harness).checksum_failures, 0);
    harness_close(harness);
}

/* The process dies in the middle of its k-th write, for every k from the making of the file through
 * stores, evictions and drops; each life goes on with the file of the last. */
static void death_at_any_write_leaves_only_whole_entries(void **state)
{
    (void)state;
    skip_on_device();
    for (uint32_t host_blocks = 0; host_blocks <= 2; host_blocks += 2) {
        struct harness *harness = harness_create(host_blocks, 6);
        for (uint64_t at = 1; at <= 60; at++) {
            if (at % 20 == 1) { unlink(harness->path); }
            run_child(harness, true, at, 0);
            assert_next_life_is_sound(harness, "death at write", at);
        }
        harness_destroy(harness);
    }
}

/* The process dies while a file of another size, whose labels would pass, is being made its own. */
static void death_during_a_reset_leaves_nothing_torn(void **state)
{
    (void)state;
    skip_on_device();
    struct harness *harness = harness_create(0, 6);
    for (uint64_t at = 1; at <= 4; at++) {
        harness->config.is_without_uring = true;
        harness->config.disk_bytes = harness_disk_bytes(6 + 64); /* one page of labels more */
        harness_must_open(harness);
        for (uint32_t id = 0; id < NAMES; id++) { (void)harness_store(harness, id); }
        harness_close(harness);
        harness->config.disk_bytes = harness_disk_bytes(6);
        run_child(harness, true, at, 0);
        assert_next_life_is_sound(harness, "reset, death at write", at);
        unlink(harness->path);
    }
    harness_destroy(harness);
}

/* kill -9 from outside, at moments nobody chose, with several writes under way. */
static void kill_leaves_only_whole_entries(void **state)
{
    (void)state;
    skip_on_device();
    struct harness *harness = harness_create(0, 6);
    for (uint32_t round = 1; round <= 25; round++) {
        run_child(harness, round % 2 == 0, 0, 1 + round * 7 % 40);
        assert_next_life_is_sound(harness, "kill in round", round);
    }
    harness_destroy(harness);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_one_write_may_fail),
        cmocka_unit_test(a_failed_wipe_retires_the_slot),
        cmocka_unit_test(a_dead_disk_is_left_alone),
        cmocka_unit_test(a_failed_read_fails_its_entry),
        cmocka_unit_test(no_room_at_start_is_said),
        cmocka_unit_test(death_at_any_write_leaves_only_whole_entries),
        cmocka_unit_test(death_during_a_reset_leaves_nothing_torn),
        cmocka_unit_test(kill_leaves_only_whole_entries),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
