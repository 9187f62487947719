#include "node/tier_service.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

/* More than a core has under way (sched/tier_desk.h), so that a refusal is a rare thing. */
#define QUEUE_MAX 512u

#define LOG_PAUSE_NS (10 * NS_PER_S)

struct tier_service {
    struct tier_service_config config;
    struct kv_tier *tier;
    bool is_open; /* until then events are of what was found */
    struct kv_tier_event *found;
    uint32_t found_count, found_max, found_next;
    struct kv_tier_event refused[QUEUE_MAX]; /* a ring */
    uint32_t refused_first, refused_count;
    uint64_t failures, failure_logged_ns; /* the tiers' thread */
};

/* A failure is lived with, by computing again; a disk that goes on failing is one line in ten seconds. */
static void log_failure(struct tier_service *service, const struct kv_tier_event *event)
{
    uint64_t now_ns = clock_now_ns();
    service->failures++;
    if (service->failure_logged_ns != 0 && now_ns < service->failure_logged_ns + LOG_PAUSE_NS) { return; }
    LOGF(LOG_WARN, "kv_tier_failed", "what=%s code=%s cause=%d failures=%" PRIu64, event->kind == KV_TIER_LOAD_FAILED ? "load" : "store",
         status_code_name(event->status.code), event->status.cause, service->failures);
    service->failure_logged_ns = now_ns;
}

static void on_event(void *user, const struct kv_tier_event *event)
{
    struct tier_service *service = user;
    bool is_failure = event->kind == KV_TIER_STORE_FAILED || event->kind == KV_TIER_LOAD_FAILED;
    /* Not found: it was given up on its way to us, which is how a full tier works. */
    if (is_failure && event->status.code != ST_NOT_FOUND) { log_failure(service, event); }
    if (service->is_open) {
        service->config.post(service->config.user, event);
        return;
    }
    /* In create, on our own thread, before there is a core that could be told. */
    CHECK(event->kind == KV_TIER_FOUND);
    CHECK(service->found_count < service->found_max);
    service->found[service->found_count++] = *event;
}

static struct kv_tier_config tier_config(const struct tier_service_config *config)
{
    struct kv_tier_config tier = {
        .pool = config->pool,
        .memory = config->memory,
        .block_bytes = config->block_bytes,
        .block_count = config->block_count,
        .host_bytes = config->flags->kv_host_memory,
        .disk_path = config->flags->kv_disk > 0 ? config->flags->kv_disk_path : NULL,
        .disk_bytes = config->flags->kv_disk,
        .queue_max = QUEUE_MAX,
        .on_event = on_event,
    };
    memcpy(tier.fingerprint_hash, config->fingerprint_hash, sizeof tier.fingerprint_hash);
    return tier;
}

static bool wants_tiers(const struct tier_service_config *config)
{
    return !config->is_unused && (config->flags->kv_host_memory > 0 || config->flags->kv_disk > 0);
}

static status_t check_one(const char *flag, uint64_t budget, const struct kv_tier_config *tier, struct diag *diag)
{
    if (budget == 0 || kv_tier_entries_max(tier) > 0) { return STATUS_OK; }
    diag_set(diag, "--%s=%" PRIu64 ": does not hold one block of %zu bytes; give it more", flag, budget, tier->block_bytes);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

status_t tier_service_check(const struct tier_service_config *config, struct diag *diag)
{
    struct kv_tier_config host = tier_config(config), disk = host;
    if (!wants_tiers(config)) { return STATUS_OK; }
    host.disk_path = NULL;
    host.disk_bytes = 0;
    disk.host_bytes = 0;
    TRY(check_one("kv-host-memory", host.host_bytes, &host, diag));
    return check_one("kv-disk", disk.disk_bytes, &disk, diag);
}

uint64_t tier_service_memory_bytes(const struct tier_service_config *config)
{
    struct kv_tier_config tier = tier_config(config);
    return wants_tiers(config) ? kv_tier_memory_bytes(&tier) : 0;
}

uint32_t tier_service_entries_max(const struct tier_service_config *config)
{
    struct kv_tier_config tier = tier_config(config);
    return wants_tiers(config) ? kv_tier_entries_max(&tier) : 0;
}

static void log_open(struct tier_service *service)
{
    struct kv_tier_stats stats;
    kv_tier_stats_get(service->tier, &stats);
    /* Whoever changed a model or a size should not wonder where the cache has gone. */
    if (strncmp(stats.disk_state, "reset", 5) == 0) {
        LOGF(LOG_WARN, "kv_tier_reset", "file=\"%s\" why=\"%s\"", service->config.flags->kv_disk_path, stats.disk_state);
    }
    LOGF(LOG_INFO, "kv_tiers", "host_blocks=%" PRIu64 " disk_blocks=%" PRIu64 " disk_io=%s direct=%s disk_file=\"%s\" found=%" PRIu64,
         stats.entries_max[KV_TIER_HOST], stats.entries_max[KV_TIER_DISK], stats.disk_io[0] ? stats.disk_io : "none",
         stats.is_disk_direct ? "yes" : "no", stats.disk_state, stats.found);
}

status_t tier_service_create(const struct tier_service_config *config, struct tier_service **ret_service, struct diag *diag)
{
    *ret_service = NULL;
    if (!wants_tiers(config)) { return STATUS_OK; }
    struct tier_service *service = calloc(1, sizeof *service);
    if (service == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    service->config = *config;
    struct kv_tier_config tier = tier_config(config);
    tier.user = service;
    service->found_max = kv_tier_entries_max(&tier);
    service->found = calloc(service->found_max + UINT64_C(1), sizeof *service->found); /* pages that nobody touches cost nothing */
    status_t st = service->found != NULL ? kv_tier_create(&tier, &service->tier, diag) : STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    if (failed(st)) {
        diag_prefix(diag, "--kv-host-memory, --kv-disk");
        tier_service_destroy(service);
        return st;
    }
    service->is_open = true; /* the tiers' thread tells nothing before it is asked something */
    log_open(service);
    *ret_service = service;
    return STATUS_OK;
}

void tier_service_destroy(struct tier_service *service)
{
    if (service == NULL) { return; }
    kv_tier_destroy(service->tier);
    free(service->found);
    free(service);
}

const struct kv_tier_event *tier_service_next_found(struct tier_service *service)
{
    if (service == NULL || service->found == NULL) { return NULL; }
    if (service->found_next < service->found_count) { return &service->found[service->found_next++]; }
    free(service->found);
    service->found = NULL;
    return NULL;
}

static void refuse(struct tier_service *service, struct kv_tier_event event)
{
    CHECK(service->refused_count < QUEUE_MAX);
    service->refused[(service->refused_first + service->refused_count++) % QUEUE_MAX] = event;
}

void tier_service_store(struct tier_service *service, struct kv_hash hash, uint32_t block, uint64_t tag)
{
    CHECK(service != NULL); /* a core without tiers asks for none */
    status_t st = kv_tier_store(service->tier, hash, block, tag);
    if (failed(st)) { refuse(service, (struct kv_tier_event){.kind = KV_TIER_STORE_FAILED, .hash = hash, .block = block, .tag = tag, .status = st}); }
}

void tier_service_load(struct tier_service *service, struct kv_hash hash, uint32_t block, uint64_t tag)
{
    CHECK(service != NULL);
    status_t st = kv_tier_load(service->tier, hash, block, tag);
    if (failed(st)) { refuse(service, (struct kv_tier_event){.kind = KV_TIER_LOAD_FAILED, .hash = hash, .block = block, .tag = tag, .status = st}); }
}

uint32_t tier_service_refused_count(const struct tier_service *service) { return service != NULL ? service->refused_count : 0; }

bool tier_service_next_refused(struct tier_service *service, struct kv_tier_event *ret_event)
{
    if (service == NULL || service->refused_count == 0) { return false; }
    *ret_event = service->refused[service->refused_first];
    service->refused_first = (service->refused_first + 1) % QUEUE_MAX;
    service->refused_count--;
    return true;
}

bool tier_service_stats(struct tier_service *service, struct kv_tier_stats *ret_stats)
{
    if (service == NULL) { return false; }
    kv_tier_stats_get(service->tier, ret_stats);
    return true;
}
