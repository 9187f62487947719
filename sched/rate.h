/* rate: running means of what a node measures about itself, and sums of times.
 * Thread: the core's; plain values. No floating point: the same events give the same numbers
 * on every machine. */
#ifndef BATON_SCHED_RATE_H
#define BATON_SCHED_RATE_H

#include <stdint.h>

/* An eighth of the new sample, so about the last dozen count. 0: nothing measured yet. */
static inline uint64_t rate_mean(uint64_t mean, uint64_t sample)
{
    if (mean == 0) { return sample; }
    return mean - mean / 8 + sample / 8;
}

/* Prefill tokens per second from the rows and the time of steps that computed prompts. */
struct token_rate {
    uint64_t rows; /* of the recent past: both fade by an eighth with each step, so that */
    uint64_t ns;   /* long steps weigh more than short ones */
};

static inline void token_rate_add(struct token_rate *rate, uint32_t rows, uint64_t compute_ns)
{
    /* Rows are scaled up so that fading does not round a few rows away. */
    rate->rows = rate->rows - rate->rows / 8 + (uint64_t)rows * 1024;
    rate->ns = rate->ns - rate->ns / 8 + compute_ns;
}

static inline uint32_t token_rate_per_s(const struct token_rate *rate)
{
    uint64_t us = rate->ns / 1000;
    if (us == 0) { return 0; }
    uint64_t per_s = rate->rows / 1024 * 1000000 / us;
    return per_s > UINT32_MAX ? UINT32_MAX : (uint32_t)per_s;
}

/* now + duration; UINT64_MAX, which is never, where that does not fit. */
static inline uint64_t later_ns(uint64_t now_ns, uint64_t duration_ns)
{
    return duration_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + duration_ns;
}

/* A hint for people and routers: never 0, never longer than a minute. */
static inline uint32_t retry_hint_ms(uint64_t wait_ns)
{
    uint64_t ms = wait_ns / 1000000;
    return ms < 10 ? 10 : ms > 60000 ? 60000 : (uint32_t)ms;
}

#endif
