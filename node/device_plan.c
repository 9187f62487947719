#include "node/device_plan.h"

#include <inttypes.h>

/* A sum that does not fit into 64 bits fits into no device. */
static uint64_t sum(uint64_t a, uint64_t b)
{
    uint64_t both;
    return __builtin_add_overflow(a, b, &both) ? UINT64_MAX : both;
}

static uint64_t without_kv(const struct device_plan *plan) { return sum(sum(plan->weights_bytes, plan->engine_bytes), plan->nccl_bytes); }

uint64_t device_plan_kv_auto(const struct device_plan *plan)
{
    uint64_t rest = without_kv(plan);
    uint64_t left = rest < plan->free_bytes ? plan->free_bytes - rest : 0;
    return left - left / 10;
}

status_t device_plan_check(const struct device_plan *plan, struct diag *diag)
{
    if (plan->nccl_bytes < plan->nccl_pair_bytes_min) { /* rounded so that what the text asks for is enough */
        diag_set(diag, "--nccl-memory: %" PRIu64 " MiB hold no pair of nodes, which takes at least %" PRIu64
                 " MiB; raise it, lower --nccl-channels, or give --nccl=off", plan->nccl_bytes >> 20, ((plan->nccl_pair_bytes_min - 1) >> 20) + 1);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    uint64_t wanted = sum(without_kv(plan), plan->kv_bytes);
    if (wanted <= plan->free_bytes) { return STATUS_OK; }
    diag_set(diag,
             "memory of --device=%" PRIu32 ": the weights (%" PRIu64 " MiB), the engine (%" PRIu64 " MiB), NCCL (%" PRIu64
             " MiB) and the KV pool (%" PRIu64 " MiB) take %" PRIu64 " MiB, but %" PRIu64 " of %" PRIu64
             " MiB are free; %slower --step-tokens%s",
             plan->device, plan->weights_bytes >> 20, plan->engine_bytes >> 20, plan->nccl_bytes >> 20, plan->kv_bytes >> 20, wanted >> 20,
             plan->free_bytes >> 20, plan->total_bytes >> 20,
             plan->kv_bytes > 0 ? "lower --kv-memory or give --kv-memory=auto, or " : "", plan->nccl_bytes > 0 ? " or --nccl-memory" : "");
    return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
}
