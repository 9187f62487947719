/* router_set: which routers are attached, and what load report each was sent.
 * Flow:    ROUTER_UP, ROUTER_DOWN, the core's numbers -> [router_set] -> LOAD where it is due
 * Thread:  the core's.
 * Memory:  grows when a router comes, never in a step. */
#ifndef BATON_SCHED_ROUTER_SET_H
#define BATON_SCHED_ROUTER_SET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "control/ctl_msg.h"

/* A changed LOAD goes out at most this often. */
#define LOAD_INTERVAL_NS UINT64_C(5000000)

struct router_entry {
    uint32_t handle;
    bool was_told; /* has had a LOAD since it came */
};

struct router_set {
    uint32_t count, capacity;
    struct router_entry *routers; /* [count] */
    struct ctl_load last;         /* what was sent last */
    uint64_t last_ns;
    bool is_pending;              /* changed since, and not sent yet */
    bool is_mixed;                /* a router that just came was told something newer than last */
};

void router_set_fini(struct router_set *set); /* a zeroed set is an empty one */

/* Errors  RESOURCE_EXHAUSTED (node): no memory. Coming twice changes nothing. */
NODISCARD status_t router_set_add(struct router_set *set, uint32_t handle);
void router_set_remove(struct router_set *set, uint32_t handle);
bool router_set_has(const struct router_set *set, uint32_t handle);

/* Is it worth counting up the load now? If not, it may have changed: then it is due later. */
bool router_set_wants_load(struct router_set *set, uint64_t now_ns);

/* Decides who is sent `load` now: every router when it changed and the interval is over, the
 * ones that just came in any case. Returns true while there is one; then it is *ret_router.
 * Call until false. */
bool router_set_next_load(struct router_set *set, const struct ctl_load *load, uint64_t now_ns,
                          uint32_t *ret_router);

/* When the next LOAD is due; UINT64_MAX: none is pending. */
uint64_t router_set_load_due_ns(const struct router_set *set);

#endif
