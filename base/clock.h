/* clock: the only place that reads time. Cores never call it: their events carry now_ns.
 * Thread: any. */
#ifndef BATON_BASE_CLOCK_H
#define BATON_BASE_CLOCK_H

#include <stdint.h>

#define NS_PER_US UINT64_C(1000)
#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S UINT64_C(1000000000)

/* Monotonic nanoseconds since boot. */
uint64_t clock_now_ns(void);

/* Wall time, nanoseconds since 1970; for logs and boot epochs only. */
uint64_t clock_wall_ns(void);

void clock_sleep_ns(uint64_t duration_ns);

#endif
