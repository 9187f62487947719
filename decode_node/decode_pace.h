/* decode_pace: how many prompt rows a step may take beside sequences that decode.
 * Flow:    finished steps -> [decode_pace] -> the plan of the next one
 * Thread:  the core's. Reads no clock: times come with the steps' results.
 * Memory:  a few words.
 *
 * A step with prompt rows lengthens the wait of every sequence that decodes in it. The time of a step
 * without any is learned by the size of its batch, and the time that one prompt row adds; both follow
 * what is measured, so a row's cost is that of rows in chunks of the size that is being chosen.
 * Source: chunked prefill beside decoding, Sarathi-Serve (arXiv 2403.02310). */
#ifndef BATON_DECODE_NODE_DECODE_PACE_H
#define BATON_DECODE_NODE_DECODE_PACE_H

#include <stdint.h>

#define PACE_SIZES 17u /* batches of 1, 2 .. 3, 4 .. 7, and so on */

/* A zeroed one has learned nothing. */
struct decode_pace {
    uint64_t decode_ns[PACE_SIZES]; /* means of steps that only decode; 0: none seen */
    uint64_t row_ns;                /* mean of what a prompt row adds; 0: none seen */
};

/* A step has ended.
 * decode_rows  one for each sequence that decoded in it
 * prompt_rows  all others */
void decode_pace_learn(struct decode_pace *pace, uint32_t decode_rows, uint32_t prompt_rows, uint64_t step_ns);

/* Prompt rows beside decode_rows sequences so that the step takes at most stretch_percent of one without
 * them, as far as can be told; at least 1. UINT32_MAX: no bound, for decode_rows or stretch_percent is 0. */
uint32_t decode_pace_rows(const struct decode_pace *pace, uint32_t decode_rows, uint32_t stretch_percent);

#endif
