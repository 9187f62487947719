/* workload: what a benchmark sends, and when.
 * Flow:    flags, a trace file -> [workload] -> command_bench
 * Thread:  start-up; then read-only.
 * Memory:  one entry a request; prompts are made when they are sent. */
#ifndef BATON_CLIENT_WORKLOAD_H
#define BATON_CLIENT_WORKLOAD_H

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

struct workload_request {
    uint64_t at_ns;           /* from the start; open loop only */
    uint32_t input_tokens, output_tokens;
    uint32_t hash_count;      /* prefix blocks of `hash_tokens` tokens each; 0: all tokens its own */
    uint64_t *hashes;
};

struct workload {
    uint32_t count;
    struct workload_request *requests;
    uint32_t hash_tokens;
    uint64_t seed;
};

/* The same lengths for all; at `rate` requests per second with exponential gaps, or all at
 * once (rate 0). */
NODISCARD status_t workload_uniform(uint32_t count, uint32_t input_tokens, uint32_t output_tokens, double rate,
                                    uint64_t seed, struct workload *ret_workload);

/* A Mooncake trace: JSON lines of timestamp (ms), input_length, output_length, hash_ids (one
 * per 512 tokens; equal ids mean an equal prefix).
 * length_scale   multiplies all lengths and the 512
 * time_scale     divides the time between arrivals: 2 is twice the rate
 * count_max      0: all lines
 * Errors  NOT_FOUND, INVALID_ARGUMENT (request): diag names file, line and field, or the scale. */
NODISCARD status_t workload_read_trace(const char *path, double length_scale, double time_scale, uint32_t count_max,
                                       uint32_t input_max, uint64_t seed, struct workload *ret_workload,
                                       struct diag *diag);

/* Fills tokens [input_tokens] of one request: the same bytes for the same seed and hashes.
 * vocab_size at least 1. */
void workload_prompt(const struct workload *workload, uint32_t index, uint32_t vocab_size, uint32_t *ret_tokens);

void workload_fini(struct workload *workload);

#endif
