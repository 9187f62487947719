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

uint64_t memory_plan_available(void)
{
    uint64_t available = machine_available();
    uint64_t limit = read_number("/sys/fs/cgroup/memory.max");
    if (limit > 0) {
        uint64_t used = read_number("/sys/fs/cgroup/memory.current");
        uint64_t left = limit > used ? limit - used : 0;
        if (available == 0 || left < available) { available = left; }
    }
    return available;
}

status_t memory_plan_check(const struct memory_plan *plan, struct diag *diag)
{
    uint64_t available = memory_plan_available();
    uint64_t wanted = plan->kv_bytes + plan->engine_bytes;
    if (available == 0 || wanted <= available) { return STATUS_OK; }
    diag_set(diag,
             "memory: the KV pool (%" PRIu64 " MiB) and the engine (%" PRIu64 " MiB) do not fit into the %" PRIu64
             " MiB that are available; lower --kv-memory or --step-tokens",
             plan->kv_bytes >> 20, plan->engine_bytes >> 20, available >> 20);
    return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
}
