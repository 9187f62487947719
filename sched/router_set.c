#include "sched/router_set.h"

#include <stdlib.h>

#include "sched/rate.h"

static bool load_equal(const struct ctl_load *a, const struct ctl_load *b);

void router_set_fini(struct router_set *set)
{
    free(set->routers);
    *set = (struct router_set){0};
}

status_t router_set_add(struct router_set *set, uint32_t handle)
{
    if (router_set_has(set, handle)) { return STATUS_OK; }
    if (set->count == set->capacity) {
        uint32_t capacity = set->capacity == 0 ? 8 : 2 * set->capacity;
        struct router_entry *routers = realloc(set->routers, capacity * sizeof *routers);
        if (routers == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
        set->routers = routers;
        set->capacity = capacity;
    }
    set->routers[set->count++] = (struct router_entry){.handle = handle};
    return STATUS_OK;
}

void router_set_remove(struct router_set *set, uint32_t handle)
{
    for (uint32_t i = 0; i < set->count; i++) {
        if (set->routers[i].handle != handle) { continue; }
        set->routers[i] = set->routers[--set->count];
        return;
    }
}

bool router_set_has(const struct router_set *set, uint32_t handle)
{
    for (uint32_t i = 0; i < set->count; i++) {
        if (set->routers[i].handle == handle) { return true; }
    }
    return false;
}

bool router_set_wants_load(struct router_set *set, uint64_t now_ns)
{
    if (set->count == 0) {
        set->is_pending = false;
        return false;
    }
    if (now_ns >= later_ns(set->last_ns, LOAD_INTERVAL_NS)) { return true; }
    set->is_pending = true;
    for (uint32_t i = 0; i < set->count; i++) {
        if (!set->routers[i].was_told) { return true; }
    }
    return false;
}

bool router_set_next_load(struct router_set *set, const struct ctl_load *load, uint64_t now_ns,
                          uint32_t *ret_router)
{
    bool is_changed = !load_equal(&set->last, load);
    set->is_pending = set->count > 0 && (is_changed || set->is_mixed);
    if (set->is_pending && now_ns >= later_ns(set->last_ns, LOAD_INTERVAL_NS)) {
        set->last = *load;
        set->last_ns = now_ns;
        set->is_pending = false;
        set->is_mixed = false;
        is_changed = false;
        for (uint32_t i = 0; i < set->count; i++) { set->routers[i].was_told = false; }
    }
    for (uint32_t i = 0; i < set->count; i++) {
        if (set->routers[i].was_told) { continue; }
        set->routers[i].was_told = true;
        /* Between two broadcasts: if the load goes back to `last`, this one must hear of it. */
        if (is_changed) {
            set->is_mixed = true;
            set->is_pending = true;
        }
        *ret_router = set->routers[i].handle;
        return true;
    }
    return false;
}

uint64_t router_set_load_due_ns(const struct router_set *set)
{
    return set->is_pending ? later_ns(set->last_ns, LOAD_INTERVAL_NS) : UINT64_MAX;
}

static bool load_equal(const struct ctl_load *a, const struct ctl_load *b)
{
    return a->blocks_total == b->blocks_total && a->blocks_free == b->blocks_free &&
           a->blocks_held == b->blocks_held && a->blocks_cached == b->blocks_cached &&
           a->blocks_quarantined == b->blocks_quarantined && a->sequences_running == b->sequences_running &&
           a->sequences_waiting == b->sequences_waiting && a->tokens_queued == b->tokens_queued &&
           a->tokens_per_s == b->tokens_per_s && a->draining == b->draining;
}
