/* busy_time: what each operation costs on a device that has several of them under way.
 * Flow:    kv/tier_work.c -> [busy_time] -> kv_tier_event.elapsed_ns -> sched/tier_desk
 * Thread:  the tiers' own; a plain value. Reads no clock.
 * Memory:  none.
 *
 * Sixteen reads side by side each last about sixteen times as long as one of them keeps the disk busy:
 * blocks times that would price a prefix far above what it takes. Here no moment counts twice, so that
 * the times of operations add up to the time in which the device had any of them. */
#ifndef BATON_KV_BUSY_TIME_H
#define BATON_KV_BUSY_TIME_H

#include <stdint.h>

struct busy_time {
    uint64_t until_ns; /* what came before is counted */
};

/* `count` operations, the first of which began at begin_ns, were seen to have ended at now_ns. Returns
 * the time of each: what has not been counted yet, in equal parts, as nobody knows which ended when. */
static inline uint64_t busy_time_share(struct busy_time *busy, uint64_t begin_ns, uint32_t count, uint64_t now_ns)
{
    if (count == 0) { return 0; }
    uint64_t from_ns = begin_ns > busy->until_ns ? begin_ns : busy->until_ns;
    if (now_ns <= from_ns) { return 0; }
    busy->until_ns = now_ns;
    return (now_ns - from_ns) / count;
}

#endif
