/* device_plan: what a node will take of a device's memory, added up before any of it is taken.
 * Flow:    node start-up: model opened, device open -> [device_plan] -> weights, KV pool, engine
 * Thread:  start-up only.
 *
 * Loading weights takes seconds to minutes: what does not fit is refused before, with the numbers. What a device takes
 * beside the plan (recorded graphs, plans of products, what other processes do) is not known, so a plan that fits
 * may still fail later; then the device says so. */
#ifndef BATON_NODE_DEVICE_PLAN_H
#define BATON_NODE_DEVICE_PLAN_H

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

/* In bytes, all of the device. */
struct device_plan {
    uint32_t device;
    uint64_t free_bytes, total_bytes; /* now: nothing of the rest is there yet */
    uint64_t weights_bytes;
    uint64_t engine_bytes; /* of steps */
    uint64_t nccl_bytes;   /* --nccl-memory where --nccl=on, else 0 */
    uint64_t nccl_pair_bytes_min; /* of nccl_bytes, what the smallest pair takes */
    uint64_t kv_bytes;
};

/* The pool of --kv-memory=auto: nine tenths of what the rest of the plan leaves free; the last tenth is for what the plan
 * does not know. 0: the rest takes all. */
uint64_t device_plan_kv_auto(const struct device_plan *plan);

/* Errors  RESOURCE_EXHAUSTED (node): diag has the parts, the sum, what there is, and the flags to turn;
 *         INVALID_ARGUMENT (node): nccl_bytes are less than one pair takes. */
NODISCARD status_t device_plan_check(const struct device_plan *plan, struct diag *diag);

#endif
