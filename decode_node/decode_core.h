/* decode_core: every decision of a decode node: who gets blocks, who runs, who waits.
 * Flow:    Attach stream, transfer, engine -> [decode_core] -> engine, transfer, Attach stream
 * Thread:  the node's core thread only.
 * Memory:  its tables are carved at create; a leg's token lists are one allocation when the
 *          leg is taken and freed when it ends. A step allocates nothing.
 *
 * Facts in, wishes out. Reads no clock, socket, GPU or engine; same events, same actions.
 *
 * Who gets blocks first: the highest priority; among equals preempted sequences, oldest request
 * first; then legs that resume, in order of arrival; then new legs, in order of arrival. Nobody
 * overtakes the head of that order: a long prompt at the head waits until enough sequences have
 * ended, and small ones behind it wait as well, so that it cannot starve. waiting_max and wait_ms
 * hold for new legs; one that resumes waits until it is served or cancelled. A sequence's claim is
 * its priority, then the age of its request; where blocks run out the weakest claim gives its blocks
 * up. Sequences of lower priority give blocks and slots to a higher one that waits, where that is
 * enough for it to go on, and never to an equal.
 *
 * With the prefix cache a leg takes the blocks of its text that are there and computes, or is
 * granted, the rest only; where little is missing the node computes it itself although a prefill
 * node could (RESERVE's local_max_tokens), and says so.
 *
 * With KV tiers, what eviction would give away next is saved ahead of time, preempted sequences save
 * what they hold, and what lies in a tier is loaded where that is cheaper than to compute it again.
 *
 * Parts: decode_state.h (the tables), decode_reserve.c (what is taken), decode_leg.c (one leg's life),
 * decode_admit.c (blocks and slots), decode_preempt.c (who gives way), decode_prefix.c (the prefix cache),
 * decode_tier.c (the tiers below it), decode_window.c (sliding windows), decode_batch.c (steps),
 * decode_pace.c (how long they may take), decode_stats.c, decode_inspect.c and decode_audit.c (what is
 * seen of it), decode_core.c (events).
 * Source: continuous batching, Orca (OSDI 2022); paged blocks, arXiv 2309.06180. */
#ifndef BATON_DECODE_NODE_DECODE_CORE_H
#define BATON_DECODE_NODE_DECODE_CORE_H

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "control/ctl_msg.h"
#include "engine/step_plan.h"
#include "kv/kv_cache.h"
#include "kv/kv_tier.h"
#include "sched/inspect.h"

struct decode_core;

/* How a sequence that gives way comes back. AUTO: the cheaper one by measured rates. */
enum decode_preempt { DECODE_PREEMPT_AUTO = 0, DECODE_PREEMPT_SWAP, DECODE_PREEMPT_RECOMPUTE };

struct decode_core_config {
    uint32_t block_tokens;
    uint32_t block_count;
    uint32_t context_tokens;   /* longest sequence of the model */
    uint32_t vocab_size;
    uint32_t batch_max;        /* sequences running at once; slots are 0 .. batch_max-1 */
    uint32_t step_rows_max;    /* rows of one step: decoding ones first, prompt chunks fill up */
    uint32_t chunk_tokens;     /* longest prompt chunk of one sequence in one step */
    uint32_t itl_stretch_percent; /* a step with prompt chunks beside sequences that decode takes at most so
                                  much of the time of one without, by what was measured; 0: no bound */
    uint32_t waiting_max;      /* legs that may wait for blocks; one more is REFUSED */
    uint32_t legs_max;         /* legs held at once, all states */
    uint32_t eos_count;
    const uint32_t *eos_tokens; /* [eos_count], copied */
    uint64_t lease_ns;         /* a grant without XFER_PROGRESS for this long is revoked; not shorter
                                  than the transfer's own lease, which ends most of them */
    bool prefix_cache;         /* blocks outlive their sequences and are found again by what they hold */
    uint32_t window_tokens;    /* no layer sees more tokens than so many, the row's own included: blocks before
                                  them are given back; not 1. 0: some layer sees all */
    uint32_t tier_entries_max; /* of all KV tiers together; 0: there are none. Needs prefix_cache; not used
                                  with window_tokens */
    uint32_t tier_queue_max;   /* TIER_STORE and TIER_LOAD under way; 0: 256 */
    enum decode_preempt preempt;
};

enum decode_event_kind {
    DECODE_EV_ROUTER_UP,    /* router */
    DECODE_EV_ROUTER_DOWN,  /* router: its stream broke; all of its legs are dropped */
    DECODE_EV_MESSAGE,      /* router, msg: RESERVE, PREFILL_LOST, CANCEL */
    DECODE_EV_STEP_DONE,    /* result of the plan in flight */
    DECODE_EV_XFER_LANDED,  /* leg, tokens: commit verified, nothing more lands; tokens are its
                               first tokens. A REVOKE that crosses it is not answered. */
    DECODE_EV_XFER_FAILED,  /* leg, status: it will not land; a FENCED follows or has come */
    DECODE_EV_XFER_FENCED,  /* leg: no byte of it can land any more. Every grant ends in LANDED
                               or FENCED. */
    DECODE_EV_XFER_PROGRESS,/* leg: bytes of it landed; its lease starts again */
    DECODE_EV_TIER,         /* tier: every event of the KV tiers */
    DECODE_EV_TICK,         /* time passes; deadlines are looked at */
    DECODE_EV_DRAIN,        /* take nothing new, finish what is here */
};

struct decode_event {
    enum decode_event_kind kind;
    uint64_t now_ns;
    uint32_t router;              /* handle the node's server gave that Attach stream */
    const struct ctl_msg *msg;
    const struct step_result *result;
    struct leg_id leg;
    status_t status;
    const struct kv_tier_event *tier;
    uint32_t token_count;         /* XFER_LANDED: one per sequence of the leg */
    const struct ctl_token *tokens;
};

enum decode_action_kind {
    DECODE_ACT_SEND,    /* msg to router */
    DECODE_ACT_GRANT,   /* let the leg's KV land in blocks; the server mints the ticket and
                           sends RESERVED with it, cached_tokens and grant_first to router */
    DECODE_ACT_REVOKE,  /* nothing of the leg may land any more; FENCED is awaited, the blocks
                           are in quarantine until then */
    DECODE_ACT_STEP,    /* run plan; at most one in flight */
    DECODE_ACT_TIER_STORE, /* kv_tier_store(hash, block, tag): it must end in STORED or STORE_FAILED */
    DECODE_ACT_TIER_LOAD,  /* kv_tier_load(hash, block, tag): it must end in LOADED or LOAD_FAILED */
};

struct decode_action {
    enum decode_action_kind kind;
    uint32_t router;
    struct leg_id leg;
    struct ctl_msg msg;
    uint32_t block_count;
    const uint32_t *blocks;     /* GRANT: for prompt and output in order, from block grant_first on */
    uint32_t cached_tokens, grant_first; /* GRANT: as RESERVED says them */
    uint64_t lease_ns;
    const struct step_plan *plan;
    struct kv_hash hash;        /* TIER_STORE, TIER_LOAD */
    uint32_t block;
    uint64_t tag;
};

/* Borrowed from the core; good until the next decode_core_step(). */
struct decode_actions {
    uint32_t count;
    const struct decode_action *list;
};

/* Numbers for LOAD, metrics and the audit. free + held + cached + quarantined == total. */
struct decode_core_stats {
    uint32_t blocks_total, blocks_free, blocks_held, blocks_cached, blocks_quarantined;
    uint64_t cache_tokens_asked, cache_tokens_found; /* of the texts of legs that were admitted, at the first time */
    uint64_t cache_blocks_taken; /* by them then, of the pool: not those loaded from a tier */
    uint64_t tier_stores, tier_loads, tier_store_failures, tier_load_failures; /* blocks */
    uint64_t tier_tokens_loaded;
    uint64_t loads_chosen, loads_declined; /* sequences: loaded, or computed again because that was cheaper */
    uint64_t load_predicted_ns, load_actual_ns; /* sums over the loads whose time was predicted */
    uint64_t swaps, slot_preemptions;      /* preemptions that saved blocks first; slots given up alone */
    uint32_t legs, sequences_running, sequences_waiting, sequences_preempted;
    uint64_t tokens_queued;     /* prompt tokens still to be computed here */
    uint64_t tokens_generated, prompt_tokens_computed, preemptions, legs_finished, legs_failed,
        legs_cancelled, legs_refused, late_messages, steps;
    bool draining, idle;        /* idle: nothing held, nothing in flight, nothing quarantined */
};

/* Errors  INVALID_ARGUMENT (node): a size of the config is out of range, diag names it. */
NODISCARD status_t decode_core_create(const struct decode_core_config *config, struct decode_core **ret_core,
                                      struct diag *diag);
void decode_core_destroy(struct decode_core *core);

/* Moves every leg that the event lets move, until nothing moves.
 * ret_actions  written always; the caller performs them in order
 * Errors  only SCOPE_NODE ones: the node must drain and exit. */
NODISCARD status_t decode_core_step(struct decode_core *core, const struct decode_event *event,
                                    struct decode_actions *ret_actions);

/* When the core next wants a TICK at the latest; UINT64_MAX: not on its own. */
uint64_t decode_core_deadline_ns(const struct decode_core *core);

struct decode_core_stats decode_core_stats(const struct decode_core *core);

/* What LOAD says, and what /metrics shows: the same words to the router and to an operator. */
struct ctl_load decode_core_load(const struct decode_core *core);

/* Calls `visit` for every sequence that has not ended, by arrival, those without blocks too. */
void decode_core_inspect(const struct decode_core *core, inspect_fn visit, void *user);
struct kv_cache_stats decode_core_cache_stats(const struct decode_core *core);

/* Whose leg it is. False: it is none, or over. */
bool decode_core_leg_router(const struct decode_core *core, struct leg_id id, uint32_t *ret_router);

/* Walks everything: block owners and counts, every leg in one state, every list. A CHECK
 * fails where they disagree. For tests and the simulator, after every step. */
void decode_core_audit(const struct decode_core *core);

#endif
