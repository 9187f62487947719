/* sim: the real cores of a whole cluster in one process, in virtual time, from one seed.
 * Flow:    seed -> [sim]: router_core, prefill_core, decode_core over modelled streams,
 *          transfers, engines and clients -> a verdict
 * Thread:  one.
 * Memory:  grows with the run; all of it is gone when the run ends.
 *
 * Modelled: message delay; streams that break; nodes that die at any event and come back with
 * another boot epoch; transfers that are slow, corrupted, cut, or revoked while bytes still
 * land; clients that cancel, stop at a text, or set a deadline; pools of a handful of blocks.
 * Checked after every event: the cores' own audits, free + held + cached + quarantined ==
 * total, one answer per request, and each emitted token against the undisturbed run. Once all
 * is quiet: every request answered, every block free.
 *
 * A KV slot holds a number that depends on every slot before it, read through the block table:
 * a wrong block, a block reused too early, or one slice that never came changes the tokens. */
#ifndef BATON_SIM_SIM_H
#define BATON_SIM_SIM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define FAULTS_MAX 16u

enum sim_fault_kind {
    FAULT_DIE,        /* node; back after `for_ns`, UINT64_MAX: once all is quiet */
    FAULT_CUT,        /* the Attach stream of router and node; both are alive */
    FAULT_PARTITION,  /* no KV passes between prefill node and node for `for_ns` */
    FAULT_DRAIN,      /* node; it ends `for_ns` later */
    FAULT_STEP,       /* the node's next step fails in its engine */
    FAULT_STOP,       /* node: SIGSTOP, and SIGCONT `for_ns` later; its streams stay whole */
    FAULT_SLOW,       /* every link is slow for `for_ns` */
    FAULT_ROUTER_DIE, /* router: its clients see a broken call, the nodes a broken stream */
    FAULT_ROUTER_DRAIN,
    FAULT_KIND_COUNT
};

struct sim_fault {
    enum sim_fault_kind kind;
    uint64_t at_ns;
    uint64_t at_event; /* > 0: just before that event, whatever it is, instead of at_ns */
    uint32_t node, prefill_node, router;
    uint64_t for_ns;
};

/* A named run: this cluster, these requests, these faults, and every delay the same, so that
 * its trace can be read and compared. */
struct sim_scenario {
    uint32_t prefill_count, decode_count, block_tokens, block_count;
    uint32_t local_prefill_tokens;
    bool prefix_cache;
    uint32_t request_count;
    struct {
        uint64_t at_ns;
        uint32_t prompt_count, max_tokens, n;
        uint64_t cancel_ns; /* 0: never */
        bool is_turn;       /* all that the one before said, then prompt_count tokens more; at_ns after its answer */
    } requests[4];
    uint32_t fault_count;
    struct sim_fault faults[4];
};

struct sim_options {
    uint64_t seed;
    FILE *trace;     /* NULL: silent; else one line an event */
    bool calm;       /* no faults: the same cluster and requests, undisturbed */
    const struct sim_scenario *scenario; /* NULL: all from the seed */
};

struct sim_result {
    uint64_t events, virtual_ns;
    uint64_t requests, finished, stopped, cancelled, expired, refused, lost;
    uint64_t deaths, cuts, partitions, drains, failed_steps, stops, leases, router_deaths, router_drains;
    uint64_t resumed, preemptions, corrupted, revoked, forked, repeated, late_landings;
    uint64_t local_prefills, remote_prefills, prompt_logprobs, duplicate_tokens, late_messages;
    uint64_t tokens, rows_computed;
    uint64_t turns, local_offers, cached_tokens, prefill_cached_tokens, pushed_cached, tier_stores, tier_loads, swaps, tier_failures, tier_found;
};

/* Adds up runs. */
void sim_result_add(struct sim_result *sum, const struct sim_result *one);
void sim_result_print(const struct sim_result *sum, uint64_t seeds, FILE *out);

/* Prints the lines that led up to the failure and the command that replays it. For main's
 * handler of SIGABRT; prints nothing when no run is on. */
void sim_print_failure(FILE *out);

/* Runs one seed. A broken promise prints what it was and the command that replays it, and
 * aborts the process; so does a failed audit. */
void sim_run(const struct sim_options *options, struct sim_result *ret_result);

#endif
