#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "kv/tier_file.h"
#include "tests/unit/heap/counting_heap.h"
#include "tests/unit/kv/tier_harness.h"

static void assert_stored(struct harness *harness, uint32_t id, enum kv_tier_kind tier)
{
    struct kv_tier_event event = harness_store(harness, id);
    assert_int_equal(event.kind, KV_TIER_STORED);
    assert_int_equal(event.tier, tier);
    assert_int_equal(event.tag, id);
    assert_true(kv_hash_equal(event.hash, harness_name(id)));
}

static void assert_loads(struct harness *harness, uint32_t id, enum kv_tier_kind tier)
{
    struct kv_tier_event event = harness_load(harness, id);
    assert_int_equal(event.kind, KV_TIER_LOADED);
    assert_int_equal(event.tier, tier);
    assert_int_equal(event.bytes, HARNESS_BLOCK_BYTES);
    assert_true(event.elapsed_ns > 0);
    assert_true(harness_holds(harness, 1, id));
}

static void assert_refused(struct harness *harness, uint8_t code)
{
    struct diag diag = {{0}};
    status_t st = harness_open(harness, &diag);
    assert_int_equal(st.code, code);
    assert_int_equal(st.scope, SCOPE_NODE);
    assert_null(harness->tier);
    assert_true(strlen(diag.text) > 20);
}

/* Budgets below one block, no tier, absurd blocks: said before anything is taken. */
static void budgets_are_checked(void **state)
{
    (void)state;
    struct harness *harness = harness_create(0, 0);
    assert_refused(harness, ST_INVALID_ARGUMENT);
    harness->config.host_bytes = HARNESS_BLOCK_BYTES - 1;
    assert_refused(harness, ST_INVALID_ARGUMENT);
    harness->config.host_bytes = 0;
    harness->config.disk_path = harness->path;
    harness->config.disk_bytes = harness_disk_bytes(1) - 1;
    assert_refused(harness, ST_INVALID_ARGUMENT);
    harness->config.disk_bytes = harness_disk_bytes(1);
    assert_int_equal(kv_tier_entries_max(&harness->config), 1);
    harness->config.block_bytes = (size_t)2 << 30;
    assert_refused(harness, ST_INVALID_ARGUMENT);
    harness->config.block_bytes = 0;
    assert_refused(harness, ST_INVALID_ARGUMENT);
    harness_destroy(harness);
    kv_tier_destroy(NULL);
}

/* A folder that is not there, a folder instead of a file, more than the disk has. */
static void a_file_that_cannot_be_had_is_named(void **state)
{
    (void)state;
    struct harness *harness = harness_create(0, 4);
    char other[400];
    snprintf(other, sizeof other, "%s/no/such/folder", harness->folder);
    harness->config.disk_path = other;
    assert_refused(harness, ST_UNAVAILABLE);
    harness->config.disk_path = harness->folder;
    struct diag diag = {{0}};
    assert_true(failed(harness_open(harness, &diag)));
    assert_non_null(strstr(diag.text, harness->folder));
    harness_destroy(harness);
}

/* What holds anything but a tier is left alone, to the last byte. */
static void a_foreign_file_is_not_touched(void **state)
{
    (void)state;
    struct harness *harness = harness_create(0, 4);
    const char text[] = "Chapter one. It was a dark and stormy night.";
    char after[sizeof text + 1];
    FILE *file = fopen(harness->path, "w");
    assert_int_equal(fwrite(text, 1, sizeof text, file), sizeof text);
    fclose(file);
    assert_refused(harness, ST_INVALID_ARGUMENT);
    file = fopen(harness->path, "r");
    assert_int_equal(fread(after, 1, sizeof after, file), sizeof text);
    assert_memory_equal(after, text, sizeof text);
    fclose(file);
    harness_destroy(harness);
}

/* Two nodes on one machine with one path: the second one hears of it. */
static void a_file_has_one_owner(void **state)
{
    (void)state;
    struct harness *harness = harness_create(0, 4);
    harness_must_open(harness);
    struct kv_tier *second = NULL;
    struct diag diag = {{0}};
    assert_int_equal(kv_tier_create(&harness->config, &second, &diag).code, ST_UNAVAILABLE);
    assert_non_null(strstr(diag.text, "another process"));
    harness_destroy(harness);
}

static void every_failed_allocation_is_a_status(void **state)
{
    (void)state;
    struct harness *harness = harness_create(2, 2);
    uint64_t before = heap_allocations();
    harness_must_open(harness);
    uint64_t needed = heap_allocations() - before;
    harness_close(harness);
    for (uint64_t k = 1; k <= needed; k++) {
        heap_fail_next(k);
        struct diag diag = {{0}};
        status_t st = harness_open(harness, &diag);
        heap_fail_next(0);
        if (failed(st)) {
            assert_null(harness->tier);
            assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
        }
        harness_close(harness); /* where a library copes without: it is open */
    }
    harness_destroy(harness);
}

/* Host memory alone: what it must give up is gone, coldest first, and told. */
static void the_host_tier_keeps_what_is_warm(void **state)
{
    (void)state;
    struct harness *harness = harness_create(3, 0);
    harness_must_open(harness);
    for (uint32_t id = 1; id <= 3; id++) { assert_stored(harness, id, KV_TIER_HOST); }
    assert_loads(harness, 1, KV_TIER_HOST);
    (void)harness_settled(harness);
    assert_stored(harness, 4, KV_TIER_HOST);
    assert_non_null(harness_event(harness, KV_TIER_DROPPED, 2));
    assert_int_equal(harness->dropped, 1);
    assert_loads(harness, 1, KV_TIER_HOST);
    assert_loads(harness, 3, KV_TIER_HOST);
    assert_loads(harness, 4, KV_TIER_HOST);
    struct kv_tier_event event = harness_load(harness, 2);
    assert_int_equal(event.kind, KV_TIER_LOAD_FAILED);
    assert_int_equal(event.status.code, ST_NOT_FOUND);
    struct kv_tier_stats stats = harness_stats(harness);
    assert_int_equal(stats.entries[KV_TIER_HOST], 3);
    assert_int_equal(stats.entries_max[KV_TIER_HOST], 3);
    assert_int_equal(stats.bytes[KV_TIER_HOST], 3 * HARNESS_BLOCK_BYTES);
    assert_int_equal(stats.stored[KV_TIER_HOST], 4);
    assert_int_equal(stats.loaded[KV_TIER_HOST], 4);
    assert_int_equal(stats.dropped[KV_TIER_HOST], 1);
    assert_int_equal(stats.load_failures, 1);
    assert_int_equal(stats.checksum_failures, 0);
    assert_true(stats.bytes_per_s_store[KV_TIER_HOST] > 0);
    assert_true(stats.bytes_per_s_load[KV_TIER_HOST] > 0);
    assert_string_equal(stats.disk_io, "");
    harness_destroy(harness);
}

/* What is here already is not copied again: bytes 0 says so. */
static void a_second_store_finds_the_first(void **state)
{
    (void)state;
    struct harness *harness = harness_create(3, 0);
    harness_must_open(harness);
    assert_stored(harness, 1, KV_TIER_HOST);
    struct kv_tier_event event = harness_store(harness, 1);
    assert_int_equal(event.kind, KV_TIER_STORED);
    assert_int_equal(event.bytes, 0);
    assert_int_equal(harness_stats(harness).stored[KV_TIER_HOST], 1);
    harness_destroy(harness);
}

/* An entry that is dropped is gone and told once; one that was never here is no event. */
static void a_dropped_entry_is_gone(void **state)
{
    (void)state;
    struct harness *harness = harness_create(3, 0);
    harness_must_open(harness);
    assert_stored(harness, 1, KV_TIER_HOST);
    kv_tier_drop(harness->tier, harness_name(1));
    kv_tier_drop(harness->tier, harness_name(1));
    kv_tier_drop(harness->tier, harness_name(2));
    assert_int_equal(harness_settled(harness).entries[KV_TIER_HOST], 0);
    assert_int_equal(harness->dropped, 1);
    assert_int_equal(harness_load(harness, 1).kind, KV_TIER_LOAD_FAILED);
    harness_destroy(harness);
}

/* A prefix is loaded from its first block on, and must not lose its first block first. */
static void a_run_of_loads_is_touched_backwards(void **state)
{
    (void)state;
    struct harness *harness = harness_create(4, 0);
    harness_must_open(harness);
    for (uint32_t id = 4; id >= 1; id--) { assert_stored(harness, id, KV_TIER_HOST); } /* children first */
    harness_gate(harness, true);
    for (uint32_t id = 1; id <= 4; id++) { assert_false(failed(kv_tier_load(harness->tier, harness_name(id), id, id))); }
    harness_wait_gated(harness);
    harness_gate(harness, false);
    harness_wait(harness, 8);
    (void)harness_settled(harness);
    for (uint32_t id = 5; id <= 7; id++) { assert_stored(harness, id, KV_TIER_HOST); }
    assert_loads(harness, 1, KV_TIER_HOST);
    assert_non_null(harness_event(harness, KV_TIER_DROPPED, 4));
    assert_non_null(harness_event(harness, KV_TIER_DROPPED, 3));
    assert_non_null(harness_event(harness, KV_TIER_DROPPED, 2));
    harness_destroy(harness);
}

/* What the host gives up goes down to disk, and from the disk's end it is gone. */
static void host_evictions_go_down_to_disk(void **state)
{
    const bool *is_without_uring = *state;
    struct harness *harness = harness_create(2, 4);
    harness->config.is_without_uring = *is_without_uring;
    harness_must_open(harness);
    for (uint32_t id = 1; id <= 9; id++) { assert_stored(harness, id, KV_TIER_HOST); }
    struct kv_tier_stats stats = harness_settled(harness);
    /* One host slot is kept free, so that a store need not wait. */
    assert_int_equal(stats.entries[KV_TIER_HOST], 1);
    assert_int_equal(stats.entries[KV_TIER_DISK], 4);
    assert_int_equal(stats.moved, 8);
    assert_int_equal(stats.dropped[KV_TIER_HOST], 0);
    assert_int_equal(stats.dropped[KV_TIER_DISK], 4);
    assert_string_equal(stats.disk_state, "new");
    if (*is_without_uring) { assert_string_equal(stats.disk_io, "pread/pwrite"); }
    assert_true(stats.bytes_per_s_store[KV_TIER_DISK] > 0);
    for (uint32_t id = 1; id <= 4; id++) {
        assert_non_null(harness_event(harness, KV_TIER_MOVED, id));
        assert_non_null(harness_event(harness, KV_TIER_DROPPED, id));
    }
    for (uint32_t id = 5; id <= 8; id++) { assert_loads(harness, id, KV_TIER_DISK); }
    assert_loads(harness, 9, KV_TIER_HOST);
    assert_true(harness_stats(harness).bytes_per_s_load[KV_TIER_DISK] > 0);
    harness_destroy(harness);
}

/* Without host memory blocks go straight to disk, many at a time. */
static void a_disk_alone_is_a_tier(void **state)
{
    const bool *is_without_uring = *state;
    struct harness *harness = harness_create(0, 40);
    harness->config.is_without_uring = *is_without_uring;
    harness_must_open(harness);
    uint32_t answers = 0;
    for (uint32_t first = 0; first < 48; first += HARNESS_BLOCKS) {
        for (uint32_t b = 0; b < HARNESS_BLOCKS; b++) {
            harness_fill(harness, b, first + b);
            assert_false(failed(kv_tier_store(harness->tier, harness_name(first + b), b, b)));
        }
        answers += HARNESS_BLOCKS;
        harness_wait(harness, answers);
    }
    assert_int_equal(harness_settled(harness).entries[KV_TIER_DISK], 40);
    assert_int_equal(harness->dropped, 8);
    memset(harness->pool, 0, HARNESS_BLOCKS * HARNESS_BLOCK_BYTES);
    for (uint32_t b = 0; b < HARNESS_BLOCKS; b++) { assert_false(failed(kv_tier_load(harness->tier, harness_name(32 + b), b, b))); }
    harness_wait(harness, answers + HARNESS_BLOCKS);
    for (uint32_t b = 0; b < HARNESS_BLOCKS; b++) {
        assert_non_null(harness_event(harness, KV_TIER_LOADED, 32 + b));
        assert_true(harness_holds(harness, b, 32 + b));
    }
    harness_destroy(harness);
}

/* One store twice at the same time: both are answered, one entry is kept. */
static void stores_of_one_name_side_by_side(void **state)
{
    const bool *is_without_uring = *state;
    struct harness *harness = harness_create(0, 4);
    harness->config.is_without_uring = *is_without_uring;
    harness_must_open(harness);
    harness_fill(harness, 0, 7);
    harness_fill(harness, 2, 7);
    for (uint32_t i = 0; i < 20; i++) {
        assert_false(failed(kv_tier_store(harness->tier, harness_name(7), 0, 1)));
        assert_false(failed(kv_tier_store(harness->tier, harness_name(7), 2, 2)));
        harness_wait(harness, 2 * (i + 1));
        assert_int_equal(harness_settled(harness).entries[KV_TIER_DISK], 1);
        kv_tier_drop(harness->tier, harness_name(7));
        assert_int_equal(harness_settled(harness).entries[KV_TIER_DISK], 0);
    }
    assert_null(harness_event(harness, KV_TIER_STORE_FAILED, 7));
    harness_destroy(harness);
}

/* A full queue refuses, and what it accepted is still answered. */
static void a_full_queue_refuses(void **state)
{
    (void)state;
    struct harness *harness = harness_create(8, 0);
    harness->config.queue_max = 3;
    harness_must_open(harness);
    harness_gate(harness, true);
    assert_false(failed(kv_tier_store(harness->tier, harness_name(1), 0, 1)));
    harness_wait_gated(harness); /* that one is over; its event waits */
    for (uint32_t id = 2; id <= 4; id++) { assert_false(failed(kv_tier_store(harness->tier, harness_name(id), 0, id))); }
    status_t st = kv_tier_store(harness->tier, harness_name(5), 0, 5);
    assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
    assert_int_equal(st.scope, SCOPE_REQUEST);
    assert_int_equal(kv_tier_load(harness->tier, harness_name(1), 1, 5).code, ST_RESOURCE_EXHAUSTED);
    assert_int_equal(harness_stats(harness).in_flight, 3);
    harness_gate(harness, false);
    harness_wait(harness, 4);
    assert_int_equal(harness_load(harness, 4).kind, KV_TIER_LOADED);
    harness_destroy(harness);
}

/* Loads that the disk serves side by side share its time: what their events say adds up to no more than
 * has passed, so that a price made of it is what a prefix of them takes. */
static void loads_side_by_side_count_no_moment_twice(void **state)
{
    const bool *is_without_uring = *state;
    enum { LOADS = 12 };
    struct harness *harness = harness_create(0, 20);
    harness->config.is_without_uring = *is_without_uring;
    harness_must_open(harness);
    for (uint32_t id = 1; id <= LOADS; id++) { assert_stored(harness, id, KV_TIER_DISK); }
    harness_gate(harness, true);
    assert_false(failed(kv_tier_store(harness->tier, harness_name(1), 0, 1)));
    harness_wait_gated(harness); /* so that it meets all of them at once */
    for (uint32_t id = 1; id <= LOADS; id++) { assert_false(failed(kv_tier_load(harness->tier, harness_name(id), 1 + id, id))); }
    uint64_t begin_ns = clock_now_ns();
    harness_gate(harness, false);
    harness_wait(harness, 2 * LOADS + 1);
    uint64_t passed_ns = clock_now_ns() - begin_ns;
    uint64_t sum_ns = 0;
    for (uint32_t id = 1; id <= LOADS; id++) {
        const struct kv_tier_event *event = harness_event(harness, KV_TIER_LOADED, id);
        assert_non_null(event);
        assert_true(harness_holds(harness, 1 + id, id));
        sum_ns += event->elapsed_ns;
    }
    assert_true(sum_ns > 0);
    assert_true(sum_ns <= passed_ns);
    harness_destroy(harness);
}

/* Closed with requests under way: all of them are answered first. */
static void destroy_answers_what_is_under_way(void **state)
{
    const bool *is_without_uring = *state;
    struct harness *harness = harness_create(2, 64);
    harness->config.is_without_uring = *is_without_uring;
    harness_must_open(harness);
    for (uint32_t id = 1; id <= 30; id++) { assert_false(failed(kv_tier_store(harness->tier, harness_name(id), 3, id))); }
    kv_tier_destroy(harness->tier);
    harness->tier = NULL;
    assert_int_equal(harness->answers, 30);
    for (uint32_t id = 1; id <= 30; id++) { assert_non_null(harness_event(harness, KV_TIER_STORED, id)); }
    harness_destroy(harness);
}

/* The next life finds what the last one had on disk, in the order of its age, and nothing of what
 * was in host memory. */
static void a_restart_finds_the_disk(void **state)
{
    const bool *is_without_uring = *state;
    struct harness *harness = harness_create(0, 6);
    harness->config.is_without_uring = *is_without_uring;
    harness_must_open(harness);
    for (uint32_t id = 1; id <= 8; id++) { assert_stored(harness, id, KV_TIER_DISK); }
    kv_tier_drop(harness->tier, harness_name(4));
    (void)harness_settled(harness);
    harness_close(harness);
    harness_must_open(harness);
    struct kv_tier_stats stats = harness_stats(harness);
    assert_string_equal(stats.disk_state, "kept");
    assert_int_equal(stats.found, 5);
    assert_int_equal(harness->found, 5);
    uint32_t order[5] = {3, 5, 6, 7, 8};
    for (uint32_t i = 0; i < 5; i++) {
        assert_int_equal(harness->events[i].kind, KV_TIER_FOUND);
        assert_true(kv_hash_equal(harness->events[i].hash, harness_name(order[i])));
    }
    for (uint32_t i = 0; i < 5; i++) { assert_loads(harness, order[i], KV_TIER_DISK); }
    harness_close(harness);
    harness_must_open(harness);
    assert_stored(harness, 20, KV_TIER_DISK);
    assert_stored(harness, 21, KV_TIER_DISK);
    assert_non_null(harness_event(harness, KV_TIER_DROPPED, 3)); /* the oldest goes first in this life too */
    harness_destroy(harness);
}

/* Blocks of another model, of another size or of another budget are not ours: reset, and said. */
static void another_layout_resets_the_file(void **state)
{
    (void)state;
    struct harness *harness = harness_create(0, 6);
    harness_must_open(harness);
    for (uint32_t id = 1; id <= 3; id++) { assert_stored(harness, id, KV_TIER_DISK); }
    harness_close(harness);
    harness->config.fingerprint_hash[31] ^= 1;
    harness_must_open(harness);
    assert_int_equal(harness->found, 0);
    assert_non_null(strstr(harness_stats(harness).disk_state, "layout"));
    assert_int_equal(harness_load(harness, 1).kind, KV_TIER_LOAD_FAILED);
    assert_stored(harness, 9, KV_TIER_DISK);
    harness_close(harness);
    /* Back again: not even the slots that were not written since. */
    harness->config.fingerprint_hash[31] ^= 1;
    harness_must_open(harness);
    assert_int_equal(harness->found, 0);
    assert_stored(harness, 1, KV_TIER_DISK);
    harness_close(harness);
    harness->config.disk_bytes = harness_disk_bytes(5);
    harness_must_open(harness);
    assert_int_equal(harness->found, 0);
    assert_non_null(strstr(harness_stats(harness).disk_state, "size"));
    struct stat info;
    assert_int_equal(stat(harness->path, &info), 0);
    assert_true((uint64_t)info.st_size <= harness->config.disk_bytes);
    harness_destroy(harness);
}

static void flip(const struct harness *harness, uint64_t offset, uint8_t mask)
{
    FILE *file = fopen(harness->path, "r+");
    assert_int_equal(fseek(file, (long)offset, SEEK_SET), 0);
    int byte = fgetc(file);
    assert_int_equal(fseek(file, (long)offset, SEEK_SET), 0);
    fputc(byte ^ mask, file);
    fclose(file);
}

static struct tier_file_shape shape_of(const struct harness *harness)
{
    struct tier_file_shape shape = {.block_bytes = HARNESS_BLOCK_BYTES};
    shape.slot_count = tier_file_slots_in(harness->config.disk_bytes, HARNESS_BLOCK_BYTES);
    memcpy(shape.fingerprint_hash, harness->config.fingerprint_hash, sizeof shape.fingerprint_hash);
    return shape;
}

/* A block whose bytes changed on the disk is never handed out: the load fails, after the entry is
 * dropped, and the next life does not find it. */
static void a_flipped_bit_fails_the_load(void **state)
{
    const bool *is_without_uring = *state;
    struct harness *harness = harness_create(0, 4);
    harness->config.is_without_uring = *is_without_uring;
    struct tier_file_shape shape = shape_of(harness);
    harness_must_open(harness);
    for (uint32_t id = 1; id <= 4; id++) { assert_stored(harness, id, KV_TIER_DISK); }
    harness_close(harness);
    flip(harness, tier_file_slot_offset(&shape, 1) + HARNESS_BLOCK_BYTES - 1, 0x80);
    flip(harness, tier_file_slot_offset(&shape, 2) + HARNESS_BLOCK_BYTES, 0x80); /* behind the block */
    harness_must_open(harness);
    assert_int_equal(harness->found, 4);
    struct kv_tier_event event = harness_load(harness, 2);
    assert_int_equal(event.kind, KV_TIER_LOAD_FAILED);
    assert_int_equal(event.status.code, ST_DATA_LOSS);
    const struct kv_tier_event *dropped = harness_event(harness, KV_TIER_DROPPED, 2);
    assert_non_null(dropped);
    assert_ptr_equal(dropped + 1, harness_event(harness, KV_TIER_LOAD_FAILED, 2));
    assert_int_equal(harness_stats(harness).checksum_failures, 1);
    assert_loads(harness, 1, KV_TIER_DISK);
    assert_loads(harness, 3, KV_TIER_DISK);
    assert_stored(harness, 2, KV_TIER_DISK);
    assert_loads(harness, 2, KV_TIER_DISK);
    kv_tier_drop(harness->tier, harness_name(2));
    harness_close(harness);
    harness_must_open(harness);
    assert_int_equal(harness->found, 3);
    harness_destroy(harness);
}

/* Every bit of a label and of the first page: what is damaged is not found; nothing else is lost
 * but, with the first page, all of it. */
static void damaged_labels_are_not_found(void **state)
{
    (void)state;
    struct harness *harness = harness_create(0, 2);
    for (uint32_t at = 0; at < TIER_FILE_LABEL; at++) {
        harness_must_open(harness);
        assert_stored(harness, 1, KV_TIER_DISK);
        assert_stored(harness, 2, KV_TIER_DISK);
        harness_close(harness);
        flip(harness, tier_file_label_offset(0) + at, (uint8_t)(1u << at % 8));
        harness_must_open(harness);
        assert_int_equal(harness->found, 1);
        assert_int_equal(harness_load(harness, 2).kind, KV_TIER_LOADED);
        assert_int_equal(harness_load(harness, 1).kind, KV_TIER_LOAD_FAILED);
        harness_close(harness);
    }
    for (uint32_t at = 8; at < 72; at++) {
        harness_must_open(harness);
        assert_stored(harness, 1, KV_TIER_DISK);
        harness_close(harness);
        flip(harness, at, (uint8_t)(1u << at % 8));
        harness_must_open(harness);
        assert_int_equal(harness->found, 0);
        assert_non_null(strstr(harness_stats(harness).disk_state, "reset"));
        harness_close(harness);
    }
    harness_destroy(harness);
}

/* Of a file that was cut, what is still whole is found. */
static void a_truncated_file_keeps_what_is_whole(void **state)
{
    (void)state;
    struct harness *harness = harness_create(0, 4);
    struct tier_file_shape shape = shape_of(harness);
    uint64_t cuts[] = {tier_file_bytes(&shape) - 1, tier_file_slot_offset(&shape, 2), tier_file_label_offset(1), TIER_FILE_PAGE - 1, 9, 0};
    uint32_t left[] = {3, 2, 0, 0, 0, 0};
    for (uint32_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        harness_must_open(harness);
        for (uint32_t id = 1; id <= 4; id++) { (void)harness_store(harness, id); }
        harness_close(harness);
        assert_int_equal(truncate(harness->path, (off_t)cuts[i]), 0);
        harness_must_open(harness);
        assert_int_equal(harness->found, left[i]);
        for (uint32_t id = 1; id <= left[i]; id++) { assert_loads(harness, id, KV_TIER_DISK); }
        harness_close(harness);
        unlink(harness->path);
    }
    harness_destroy(harness);
}

/* Stores and loads allocate nothing: they run beside the token loop. */
static void running_allocates_nothing(void **state)
{
    const bool *is_without_uring = *state;
    struct harness *harness = harness_create(2, 4);
    harness->config.is_without_uring = *is_without_uring;
    harness_must_open(harness);
    (void)harness_store(harness, 1);
    uint64_t before = heap_allocations();
    for (uint32_t id = 2; id <= 40; id++) {
        (void)harness_store(harness, id);
        (void)harness_load(harness, id / 2);
    }
    assert_int_equal(heap_allocations(), before);
    harness_destroy(harness);
}

/* Random stores, loads and drops, eight at a time: what the events say is here loads and is right;
 * what they say is gone does not load; at rest the counts agree with the events. */
static void events_tell_the_truth(void **state)
{
    const bool *is_without_uring = *state;
    for (uint32_t seed = 1; seed <= 6; seed++) {
        struct rng rng = rng_init(seed);
        struct harness *harness = harness_create(seed % 3 == 0 ? 0 : 5, seed % 3 == 1 ? 0 : 9);
        harness->config.is_without_uring = *is_without_uring;
        harness_must_open(harness);
        uint32_t answers = 0;
        for (uint32_t round = 0; round < 40; round++) {
            uint32_t ids[8];
            bool loads[8];
            for (uint32_t b = 0; b < 8; b++) {
                ids[b] = (uint32_t)rng_below(&rng, 24);
                loads[b] = rng_below(&rng, 2) == 0;
                if (loads[b]) {
                    memset(harness->pool + b * (size_t)HARNESS_BLOCK_BYTES, 0, HARNESS_BLOCK_BYTES);
                    assert_false(failed(kv_tier_load(harness->tier, harness_name(ids[b]), b, round * 8 + b)));
                } else {
                    harness_fill(harness, b, ids[b]);
                    assert_false(failed(kv_tier_store(harness->tier, harness_name(ids[b]), b, round * 8 + b)));
                }
                answers++;
            }
            if (rng_below(&rng, 3) == 0) { kv_tier_drop(harness->tier, harness_name((uint32_t)rng_below(&rng, 24))); }
            harness_wait(harness, answers);
            for (uint32_t b = 0; b < 8; b++) {
                if (!loads[b]) { continue; }
                bool is_right = harness_holds(harness, b, ids[b]);
                bool was_loaded = false;
                pthread_mutex_lock(&harness->lock); /* moves go on */
                for (uint32_t e = 0; e < harness->event_count; e++) {
                    was_loaded |= harness->events[e].kind == KV_TIER_LOADED && harness->events[e].tag == round * 8 + b;
                }
                pthread_mutex_unlock(&harness->lock);
                if (is_right != was_loaded) { fail_msg("seed %u, round %u, block %u", seed, round, b); }
            }
        }
        struct kv_tier_stats stats = harness_settled(harness);
        bool is_here[24] = {false};
        uint32_t here = 0;
        for (uint32_t e = 0; e < harness->event_count; e++) {
            for (uint32_t id = 0; id < 24; id++) {
                if (!kv_hash_equal(harness->events[e].hash, harness_name(id))) { continue; }
                if (harness->events[e].kind == KV_TIER_STORED) { is_here[id] = true; }
                if (harness->events[e].kind == KV_TIER_DROPPED) { is_here[id] = false; }
            }
        }
        for (uint32_t id = 0; id < 24; id++) { here += is_here[id]; }
        assert_int_equal(stats.entries[0] + stats.entries[1], here);
        assert_int_equal(stats.checksum_failures, 0);
        assert_int_equal(stats.store_failures, 0);
        for (uint32_t id = 0; id < 24; id++) {
            if (is_here[id]) { assert_int_equal(harness_load(harness, id).kind, KV_TIER_LOADED); }
        }
        harness_destroy(harness);
    }
}

int main(void)
{
    static bool uring = false;
    static bool plain = true;
#define ON_BOTH(name) {#name "(io_uring)", name, NULL, NULL, &uring}, {#name "(pwrite)", name, NULL, NULL, &plain}
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(budgets_are_checked),
        cmocka_unit_test(a_file_that_cannot_be_had_is_named),
        cmocka_unit_test(a_foreign_file_is_not_touched),
        cmocka_unit_test(a_file_has_one_owner),
        cmocka_unit_test(every_failed_allocation_is_a_status),
        cmocka_unit_test(the_host_tier_keeps_what_is_warm),
        cmocka_unit_test(a_second_store_finds_the_first),
        cmocka_unit_test(a_dropped_entry_is_gone),
        cmocka_unit_test(a_run_of_loads_is_touched_backwards),
        ON_BOTH(host_evictions_go_down_to_disk),
        ON_BOTH(a_disk_alone_is_a_tier),
        ON_BOTH(stores_of_one_name_side_by_side),
        cmocka_unit_test(a_full_queue_refuses),
        ON_BOTH(loads_side_by_side_count_no_moment_twice),
        ON_BOTH(destroy_answers_what_is_under_way),
        ON_BOTH(a_restart_finds_the_disk),
        cmocka_unit_test(another_layout_resets_the_file),
        ON_BOTH(a_flipped_bit_fails_the_load),
        cmocka_unit_test(damaged_labels_are_not_found),
        cmocka_unit_test(a_truncated_file_keeps_what_is_whole),
        ON_BOTH(running_allocates_nothing),
        ON_BOTH(events_tell_the_truth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
