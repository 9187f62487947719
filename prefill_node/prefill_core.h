/* prefill_core: every decision of a prefill node: which prompts share a step, what is pushed.
 * Flow:    Attach stream, transfer, engine -> [prefill_core] -> engine, transfer, Attach stream
 * Thread:  the node's core thread only.
 * Memory:  its tables are carved at create; a job's token list is one allocation when the job
 *          is taken and freed when it ends. A step allocates nothing.
 *
 * Facts in, wishes out. Reads no clock, socket, GPU or engine; same events, same actions.
 *
 * Jobs get blocks for their whole prompt, all or none: the highest priority first; among equals those
 * that resume a stream, then in order of arrival. Nobody overtakes the head of that order. A step packs
 * the chunks of the jobs that have blocks, by priority and then by admission, until its token budget is
 * used up.
 *
 * With the prefix cache a job begins behind the blocks of its text that are here already. Those of
 * them that the decode node lacks are pushed at once; the others are pushed as they are computed.
 * With KV tiers, blocks that lie there are loaded where that is predicted to be cheaper than computing
 * them, and what eviction would give away next is stored ahead of need.
 *
 * Parts: prefill_state.h (the tables), prefill_job.c (one job's life), prefill_prefix.c (the
 * prefix cache), prefill_tier.c (the tiers), prefill_window.c
 * (sliding windows), prefill_batch.c (blocks and steps), prefill_stats.c, prefill_audit.c, prefill_core.c (events).
 * Source: chunked prefill, Sarathi-Serve (OSDI 2024); layer-wise push, Splitwise (ISCA 2024). */
#ifndef BATON_PREFILL_NODE_PREFILL_CORE_H
#define BATON_PREFILL_NODE_PREFILL_CORE_H

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "control/ctl_msg.h"
#include "engine/step_plan.h"
#include "kv/kv_cache.h"
#include "kv/kv_hash.h"
#include "kv/kv_tier.h"
#include "sched/inspect.h"

struct prefill_core;

struct prefill_core_config {
    uint32_t block_tokens;
    uint32_t block_count;
    uint32_t context_tokens;
    uint32_t vocab_size;
    uint32_t step_rows_max;   /* token budget of one step, over all prompts in it */
    uint32_t chunk_tokens;    /* longest chunk of one prompt in one step */
    uint32_t jobs_max;        /* jobs held at once, all states; one more is REFUSED */
    uint32_t slot_count;      /* sampler slots of the engine */
    uint32_t eos_count;       /* decides whether a first token is also the last */
    const uint32_t *eos_tokens; /* [eos_count], copied */
    uint64_t transfer_stall_ns; /* computed, but not acknowledged for this long: give up */
    bool prefix_cache;        /* blocks outlive their jobs and are found again by what they hold */
    uint32_t window_tokens;   /* no layer sees more tokens than so many, the row's own included: long
                                 prompts hold a ring of blocks; 0: some layer sees all */
    uint32_t tier_entries_max; /* blocks that the tiers below the pool can hold; 0: there are none.
                                 Needs prefix_cache. */
};

enum prefill_event_kind {
    PREFILL_EV_ROUTER_UP,
    PREFILL_EV_ROUTER_DOWN, /* all of its jobs are dropped */
    PREFILL_EV_MESSAGE,     /* router, msg: PREFILL, CANCEL */
    PREFILL_EV_STEP_DONE,
    PREFILL_EV_XFER_ACKED,  /* leg: the decode node has verified everything */
    PREFILL_EV_XFER_FAILED, /* leg, status: over, and the source blocks are no longer read */
    PREFILL_EV_XFER_ENDED,  /* leg: an abort is complete, the source blocks are no longer read.
                               ACKED or FAILED that cross the abort do as well. */
    PREFILL_EV_TIER,        /* tier: every TIER_STORE and TIER_LOAD ends in one; others come unasked */
    PREFILL_EV_TICK,
    PREFILL_EV_DRAIN,
};

struct prefill_event {
    enum prefill_event_kind kind;
    uint64_t now_ns;
    uint32_t router;
    const struct ctl_msg *msg;
    const struct step_result *result;
    struct leg_id leg;
    status_t status;
    const char *message;     /* XFER_FAILED: the sentence for people, may be NULL */
    const char *cable;       /* XFER_ACKED */
    uint64_t bytes;          /* XFER_ACKED */
    uint64_t transfer_ns;    /* XFER_ACKED */
    const struct kv_tier_event *tier;
};

enum prefill_action_kind {
    PREFILL_ACT_SEND,        /* msg to router */
    PREFILL_ACT_XFER_BEGIN,  /* leg, ticket: connect while the job still queues */
    PREFILL_ACT_PUSH_CACHED, /* leg, blocks, grant_index: push them now, all layers; each (layer,
                                block of the grant) is pushed once, here or by a span */
    PREFILL_ACT_STEP,        /* run plan; spans name the slices to push; at most one in flight */
    PREFILL_ACT_TIER_STORE,  /* hash, block, tag: copy the block to a tier; it is not written until the end */
    PREFILL_ACT_TIER_LOAD,   /* hash, block, tag: write the tier's copy into the block */
    PREFILL_ACT_XFER_COMMIT, /* leg, tokens: all slices are posted; the first tokens go along */
    PREFILL_ACT_XFER_ABORT,  /* leg: stop pushing; ENDED is awaited before blocks are reused */
};

struct prefill_action {
    enum prefill_action_kind kind;
    uint32_t router;
    struct leg_id leg;
    struct ctl_msg msg;
    uint32_t ticket_bytes;
    const uint8_t *ticket;
    uint32_t block_count;      /* XFER_BEGIN: blocks the grant must have; PUSH_CACHED: of blocks */
    const uint32_t *blocks;    /* PUSH_CACHED: the job's; final, and held until the transfer is over */
    uint32_t grant_index;      /* PUSH_CACHED: of the first one, in the grant */
    const struct step_plan *plan;
    struct kv_hash hash;       /* TIER_STORE, TIER_LOAD */
    uint32_t block;
    uint64_t tag;
    uint32_t token_count;      /* XFER_COMMIT: one per sequence of the leg */
    const struct ctl_token *tokens;
};

/* Borrowed from the core; good until the next prefill_core_step(). */
struct prefill_actions {
    uint32_t count;
    const struct prefill_action *list;
};

/* free + held + cached + quarantined == total. */
struct prefill_core_stats {
    uint32_t blocks_total, blocks_free, blocks_held, blocks_cached, blocks_quarantined;
    uint32_t jobs, jobs_computing, jobs_waiting;
    uint64_t tokens_queued;
    uint64_t cache_tokens_asked, cache_tokens_found; /* of the texts of jobs that looked into the cache and were admitted */
    uint64_t cache_blocks_taken; /* by them, of the pool: not those loaded from a tier */
    uint64_t tier_stores, tier_loads, tier_load_failures, tier_tokens_loaded;
    uint64_t loads_chosen, loads_declined;        /* prefixes in a tier: loaded, or predicted cheaper to compute */
    uint64_t load_predicted_ns, load_actual_ns;   /* of the whole loads for which something was predicted */
    uint64_t prompt_tokens_computed, jobs_done, jobs_failed, jobs_cancelled, jobs_refused, late_messages, steps;
    bool draining, idle;
};

/* Errors  INVALID_ARGUMENT (node): a size of the config is out of range, diag names it. */
NODISCARD status_t prefill_core_create(const struct prefill_core_config *config, struct prefill_core **ret_core,
                                       struct diag *diag);
void prefill_core_destroy(struct prefill_core *core);

/* Moves every job that the event lets move, until nothing moves.
 * ret_actions  written always; the caller performs them in order
 * Errors  only SCOPE_NODE ones: the node must drain and exit. */
NODISCARD status_t prefill_core_step(struct prefill_core *core, const struct prefill_event *event,
                                     struct prefill_actions *ret_actions);

/* When the core next wants a TICK at the latest; UINT64_MAX: not on its own. */
uint64_t prefill_core_deadline_ns(const struct prefill_core *core);

struct prefill_core_stats prefill_core_stats(const struct prefill_core *core);

/* What LOAD says, and what /metrics shows: the same words to the router and to an operator. */
struct ctl_load prefill_core_load(const struct prefill_core *core);

/* Visits every job, oldest first. */
void prefill_core_inspect(const struct prefill_core *core, inspect_fn visit, void *user);

/* What the cache did since create. */
struct kv_cache_stats prefill_core_cache_stats(const struct prefill_core *core);

/* Walks everything; a CHECK fails where blocks, jobs and queues disagree. For tests and the
 * simulator, after every step. */
void prefill_core_audit(const struct prefill_core *core);

#endif
