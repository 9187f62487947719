/* sim_pairs: the NCCL pairs of a whole cluster in one process, in virtual time, from one seed: the real
 * transfer/nccl_pairs of every node, and what a cable does around it.
 * Flow:    seed -> [sim_pairs]: a table at both ends of each link, the handshake OPEN, OPENED, DENIED, UP,
 *          CLOSE, BROKEN with generations, communicators, transfers -> a verdict
 * Thread:  one.
 * Memory:  grows with the run; all of it is gone when the run ends.
 *
 * Modelled: messages in order, with a delay; communicators that take 0.2 to 3 s to come up, fail, break or
 * hang; aborts that take up to 6 s or never end; a measure of memory that sees all of the device; nodes that
 * are killed, leave, come back as somebody else; streams that are cut; traffic that moves.
 * Checked after every event, at the node it was at: the table's own audit; counted memory within the cap; what
 * the device really holds is never more than what is counted; nobody is told "no room" beside a pair that idles.
 * For every transfer: it started when it was asked for, by the other cable where NCCL was not ready, and ended in time.
 * For every pair: it was answered at once and up in its own time, whatever other links' pairs were doing.
 * Once all is quiet: both ends of every link agree; once all have left: nothing is open, and no byte
 * is counted but for aborts that never ended. */
#ifndef BATON_SIM_SIM_PAIRS_H
#define BATON_SIM_SIM_PAIRS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct sim_pairs_options {
    uint64_t seed;
    FILE *trace; /* NULL: silent; else one line an event */
    bool calm;   /* no faults */
    /* A cluster of one's own; with prefill_count 0 all of it is from the seed. */
    uint32_t prefill_count, decode_count;
    uint32_t pairs_max;           /* of each node; 0: one for each link */
    uint64_t memory_max;          /* of each node */
    uint64_t slots_bytes;         /* of a pair */
    uint64_t nccl_bytes;          /* that a communicator takes */
    uint64_t nccl_bytes_first;    /* that it is thought to take at first */
    uint64_t transfers_per_min;   /* of each prefill node */
    uint32_t hot_count;           /* decode nodes that get most of a prefill node's transfers; 0: all the same */
    uint64_t shift_ns;            /* how often that set changes; 0: never */
    uint64_t span_ns;             /* of traffic */
};

struct sim_pairs_result {
    uint64_t events, virtual_ns;
    uint64_t transfers, by_nccl, by_other, pair_broke_under, pair_closed_under; /* transfers; the last two are of by_nccl */
    uint64_t late_transfers, late_by_other;                   /* of the last third of the span */
    uint64_t opened, came_up, closed_for_room, broke, denied, overran, stuck, stuck_ended;
    uint64_t kills, leaves, cuts, shifts, stale_messages;
    uint64_t pairs_most_prefill, pairs_most_decode;           /* at one time, of any node: summed up over runs */
    uint64_t memory_most_prefill, memory_most_decode;         /* counted bytes, likewise */
    uint64_t hash;                                            /* of all events: the same for the same seed */
};

/* Adds up runs; hashes too. */
void sim_pairs_result_add(struct sim_pairs_result *sum, const struct sim_pairs_result *one);
void sim_pairs_result_print(const struct sim_pairs_result *sum, uint64_t seeds, FILE *out);

/* Which seed is running; for a handler of SIGABRT. */
void sim_pairs_print_failure(FILE *out);

/* Runs one seed. A broken promise prints what it was and the command that replays it, and aborts
 * the process. */
void sim_pairs_run(const struct sim_pairs_options *options, struct sim_pairs_result *ret_result);

#endif
