#include "tests/unit/kv/tier_harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "kv/tier_file.h"
#ifdef TIER_ON_DEVICE
#include "tests/kv_memory/fake_memory.h"
#endif

uint64_t harness_disk_bytes(uint32_t blocks)
{
    uint64_t bytes = 2 * TIER_FILE_PAGE;
    while (tier_file_slots_in(bytes, HARNESS_BLOCK_BYTES) < blocks) { bytes++; }
    return bytes;
}

static void on_event(void *user, const struct kv_tier_event *event)
{
    struct harness *harness = user;
    pthread_mutex_lock(&harness->lock);
    harness->gated++;
    pthread_cond_broadcast(&harness->changed);
    while (harness->gate_is_shut) { pthread_cond_wait(&harness->changed, &harness->lock); }
    harness->gated--;
    CHECK(harness->event_count < HARNESS_EVENTS);
    harness->events[harness->event_count++] = *event;
    harness->answers += event->kind <= KV_TIER_LOAD_FAILED;
    harness->dropped += event->kind == KV_TIER_DROPPED;
    harness->found += event->kind == KV_TIER_FOUND;
    pthread_cond_broadcast(&harness->changed);
    pthread_mutex_unlock(&harness->lock);
}

struct harness *harness_create(uint32_t host_blocks, uint32_t disk_blocks)
{
    struct harness *harness = calloc(1, sizeof *harness);
    CHECK(harness != NULL);
    const char *root = getenv("TEST_TMPDIR");
    snprintf(harness->folder, sizeof harness->folder, "%s/tier_XXXXXX", root != NULL ? root : "/tmp");
    CHECK(mkdtemp(harness->folder) != NULL);
    snprintf(harness->path, sizeof harness->path, "%s/kv", harness->folder);
#ifdef TIER_ON_DEVICE
    struct fake_memory_config device = {.pool_bytes = HARNESS_BLOCKS * HARNESS_BLOCK_BYTES, .seed = 20261122, .delay_us_max = 50};
    harness->memory = fake_memory_create(&device);
    harness->pool = fake_memory_view(harness->memory);
#else
    harness->pool = calloc(HARNESS_BLOCKS, HARNESS_BLOCK_BYTES);
#endif
    CHECK(harness->pool != NULL);
    CHECK(pthread_mutex_init(&harness->lock, NULL) == 0);
    CHECK(pthread_cond_init(&harness->changed, NULL) == 0);
    harness->config = (struct kv_tier_config){
        .pool = harness->memory == NULL ? harness->pool : NULL,
        .memory = harness->memory,
        .block_bytes = HARNESS_BLOCK_BYTES,
        .block_count = HARNESS_BLOCKS,
        .fingerprint_hash = {1, 2, 3},
        .disk_path = disk_blocks > 0 ? harness->path : NULL,
        .disk_bytes = disk_blocks > 0 ? harness_disk_bytes(disk_blocks) : 0,
        .on_event = on_event,
        .user = harness,
    };
    size_t stride = disk_blocks > 0 ? 8192 : 5056;
    harness->config.host_bytes = host_blocks * stride;
    return harness;
}

void harness_close(struct harness *harness)
{
    kv_tier_destroy(harness->tier);
    harness->tier = NULL;
    harness->event_count = harness->answers = harness->dropped = harness->found = 0;
}

void harness_destroy(struct harness *harness)
{
    harness_close(harness);
    unlink(harness->path);
    rmdir(harness->folder);
    pthread_cond_destroy(&harness->changed);
    pthread_mutex_destroy(&harness->lock);
#ifdef TIER_ON_DEVICE
    fake_memory_destroy(harness->memory);
#else
    free(harness->pool);
#endif
    free(harness);
}

status_t harness_open(struct harness *harness, struct diag *diag) { return kv_tier_create(&harness->config, &harness->tier, diag); }

void harness_must_open(struct harness *harness)
{
    struct diag diag = {{0}};
    status_t st = harness_open(harness, &diag);
    if (failed(st)) { fprintf(stderr, "%s\n", diag.text); }
    CHECK(!failed(st));
}

struct kv_hash harness_name(uint32_t id) { return kv_hash_next(kv_hash_root(0), &id, 1); }

static void content(uint32_t id, uint8_t *ret_bytes)
{
    struct rng rng = rng_init(id);
    for (uint32_t i = 0; i < HARNESS_BLOCK_BYTES; i += 8) {
        uint64_t word = rng_next(&rng);
        memcpy(ret_bytes + i, &word, HARNESS_BLOCK_BYTES - i < 8 ? HARNESS_BLOCK_BYTES - i : 8);
    }
}

void harness_fill(struct harness *harness, uint32_t block, uint32_t id) { content(id, harness->pool + (size_t)block * HARNESS_BLOCK_BYTES); }

bool harness_holds(const struct harness *harness, uint32_t block, uint32_t id)
{
    uint8_t wanted[HARNESS_BLOCK_BYTES];
    content(id, wanted);
    return memcmp(harness->pool + (size_t)block * HARNESS_BLOCK_BYTES, wanted, sizeof wanted) == 0;
}

void harness_wait(struct harness *harness, uint32_t answers)
{
    pthread_mutex_lock(&harness->lock);
    while (harness->answers < answers) { pthread_cond_wait(&harness->changed, &harness->lock); }
    pthread_mutex_unlock(&harness->lock);
}

void harness_gate(struct harness *harness, bool is_shut)
{
    pthread_mutex_lock(&harness->lock);
    harness->gate_is_shut = is_shut;
    pthread_cond_broadcast(&harness->changed);
    pthread_mutex_unlock(&harness->lock);
}

void harness_wait_gated(struct harness *harness)
{
    pthread_mutex_lock(&harness->lock);
    while (harness->gated == 0) { pthread_cond_wait(&harness->changed, &harness->lock); }
    pthread_mutex_unlock(&harness->lock);
}

static uint32_t answers_so_far(struct harness *harness)
{
    pthread_mutex_lock(&harness->lock);
    uint32_t answers = harness->answers;
    pthread_mutex_unlock(&harness->lock);
    return answers;
}

static struct kv_tier_event last_answer(struct harness *harness)
{
    pthread_mutex_lock(&harness->lock);
    uint32_t i = harness->event_count - 1;
    while (harness->events[i].kind > KV_TIER_LOAD_FAILED) { i--; }
    struct kv_tier_event event = harness->events[i];
    pthread_mutex_unlock(&harness->lock);
    return event;
}

struct kv_tier_event harness_store(struct harness *harness, uint32_t id)
{
    harness_fill(harness, 0, id);
    uint32_t before = answers_so_far(harness);
    CHECK(!failed(kv_tier_store(harness->tier, harness_name(id), 0, id)));
    harness_wait(harness, before + 1);
    return last_answer(harness);
}

struct kv_tier_event harness_load(struct harness *harness, uint32_t id)
{
    memset(harness->pool + HARNESS_BLOCK_BYTES, 0xee, HARNESS_BLOCK_BYTES);
    uint32_t before = answers_so_far(harness);
    CHECK(!failed(kv_tier_load(harness->tier, harness_name(id), 1, id)));
    harness_wait(harness, before + 1);
    return last_answer(harness);
}

const struct kv_tier_event *harness_event(struct harness *harness, enum kv_tier_event_kind kind, uint32_t id)
{
    struct kv_hash name = harness_name(id);
    const struct kv_tier_event *event = NULL;
    pthread_mutex_lock(&harness->lock);
    for (uint32_t i = 0; i < harness->event_count && event == NULL; i++) {
        if (harness->events[i].kind == kind && kv_hash_equal(harness->events[i].hash, name)) { event = &harness->events[i]; }
    }
    pthread_mutex_unlock(&harness->lock);
    return event;
}

struct kv_tier_stats harness_stats(struct harness *harness)
{
    struct kv_tier_stats stats;
    kv_tier_stats_get(harness->tier, &stats);
    return stats;
}

struct kv_tier_stats harness_settled(struct harness *harness)
{
    struct kv_tier_stats stats = harness_stats(harness);
    while (!stats.is_idle) {
        clock_sleep_ns(NS_PER_MS / 4);
        stats = harness_stats(harness);
    }
    (void)answers_so_far(harness); /* what the tier's thread wrote is seen */
    return stats;
}
