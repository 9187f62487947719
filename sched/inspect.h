/* inspect: who holds KV blocks of a node, as `baton kv` shows it.
 * Flow:    decode_core_inspect, prefill_core_inspect -> [inspect] -> the node's answer
 * Thread:  the node's core thread; an entry is good during the call. */
#ifndef BATON_SCHED_INSPECT_H
#define BATON_SCHED_INSPECT_H

#include <stdint.h>

#include "control/ctl_msg.h"

/* One sequence of a decode node, or one job of a prefill node. */
struct inspect_entry {
    struct leg_id leg;
    uint32_t router;           /* handle of its Attach stream */
    uint32_t sequence;         /* index within the request; of a job with several: the first */
    const char *state;         /* "waiting", "loading", "computing", "running", ...; a constant */
    int32_t priority;
    uint64_t age_ns;           /* of the request, since it came to the router */
    uint32_t tokens;           /* prompt and output so far */
    uint32_t tokens_computed;  /* whose KV lies in its blocks */
    uint32_t tokens_cached;    /* of them, found in the cache or in a tier when it was admitted */
    uint32_t block_count;
    const uint32_t *blocks;    /* [block_count] that it has references to; shared ones appear with every holder */
};

typedef void (*inspect_fn)(void *user, const struct inspect_entry *entry);

#endif
