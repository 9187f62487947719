#include "node/memory_plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static uint64_t read_number(const char *path)
{
    FILE *file = fopen(path, "r");
    if (!file) { return 0; }
    uint64_t value = 0;
    if (fscanf(file, "%" SCNu64, &value) != 1) { value = 0; } /* "max": no limit */
    fclose(file);
    return value;
}

static uint64_t machine_available(void)
{
    FILE *file = fopen("/proc/meminfo", "r");
    if (!file) { return 0; }
    char line[256];
    uint64_t kib = 0;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &kib) == 1) { break; }
    }
    fclose(file);
    return kib * 1024;
}

static uint64_t cgroup_cache(void)
{
    FILE *file = fopen("/sys/fs/cgroup/memory.stat", "r");
    if (!file) { return 0; }
    char line[256];
    uint64_t sum = 0, value;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "inactive_file %" SCNu64, &value) == 1 || sscanf(line, "active_file %" SCNu64, &value) == 1) {
            sum += value;
        }
    }
    fclose(file);
    return sum;
}

uint64_t memory_plan_available(void)
{
    uint64_t available = machine_available();
    uint64_t limit = read_number("/sys/fs/cgroup/memory.max");
    if (limit > 0) {
        uint64_t used = read_number("/sys/fs/cgroup/memory.current");
        /* Page cache counts as used but gives way: mapped weights are in there. */
        uint64_t cache = cgroup_cache();
        used = used > cache ? used - cache : 0;
        uint64_t left = limit > used ? limit - used : 1; /* 0 would say: not known */
        if (available == 0 || left < available) { available = left; }
    }
    return available;
}

status_t memory_plan_check(const struct memory_plan *plan, struct diag *diag)
{
    uint64_t available = memory_plan_available();
    uint64_t wanted;
    if (__builtin_add_overflow(plan->kv_bytes, plan->engine_bytes, &wanted)) { wanted = UINT64_MAX; }
    if (__builtin_add_overflow(wanted, plan->tier_bytes, &wanted)) { wanted = UINT64_MAX; }
    if (available == 0 || wanted <= available) { return STATUS_OK; }
    diag_set(diag,
             "memory: the KV pool (%" PRIu64 " MiB), the engine (%" PRIu64 " MiB) and the KV tiers (%" PRIu64
             " MiB) take %" PRIu64 " MiB, but %" PRIu64 " MiB are available (weights: %" PRIu64 " MiB mapped, %" PRIu64
             " MiB packed already); lower --kv-memory, --kv-host-memory or --step-tokens",
             plan->kv_bytes >> 20, plan->engine_bytes >> 20, plan->tier_bytes >> 20, wanted >> 20, available >> 20,
             plan->weights_mapped_bytes >> 20, plan->weights_owned_bytes >> 20);
    return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
}
