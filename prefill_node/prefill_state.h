/* prefill_state: the tables behind prefill_core, shared by its parts and nobody else.
 * Flow:    prefill_core (events) -> prefill_job (one job's life), prefill_prefix (what is cached),
 *          prefill_batch (blocks, steps)
 * Thread:  the node's core thread only.
 * Memory:  carved in prefill_core_create; a job's tokens, ticket and block table are one
 *          allocation that ends with the job. */
#ifndef BATON_PREFILL_NODE_PREFILL_STATE_H
#define BATON_PREFILL_NODE_PREFILL_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "kv/kv_cache.h"
#include "kv/kv_hash.h"
#include "prefill_node/prefill_core.h"
#include "sched/leg_index.h"
#include "sched/list.h"
#include "sched/rate.h"
#include "sched/router_set.h"
#include "sched/tier_desk.h"
#include "sched/token_list.h"

/* What a job waits for. */
enum job_state {
    JOB_WAITING,   /* waits in a queue for blocks, all or none; holds none */
    JOB_LOADING,   /* has blocks; waits for those of its text that a tier writes into them */
    JOB_COMPUTING, /* has blocks; waits for steps to compute the rest of its prompt */
    JOB_SENT,      /* computed and committed; waits for the decode node's acknowledgement */
    JOB_LEAVING,   /* is over; waits for the step in flight, the loads and the transfer to let go of
                      its blocks */
    JOB_ENDED,     /* holds nothing, waits for nothing */
    JOB_STATE_COUNT
};

enum job_outcome { JOB_OPEN, JOB_DONE, JOB_FAILED, JOB_CANCELLED };

struct prefill_job {
    struct list_link link;        /* in core->jobs, or in core->ended */
    struct list_link queue_link;  /* in resumed, fresh or computing */
    struct list *queue;           /* that one; NULL: in none */
    struct leg_id id;
    uint32_t router;
    enum job_state state;
    enum job_outcome outcome;
    struct ctl_work work;         /* copied */
    bool is_over;                 /* fact: nobody wants the result any more */
    bool is_in_step;              /* the step in flight writes its blocks */
    bool transfer_is_over;        /* fact: the source blocks are no longer read */
    uint64_t cancelled;           /* one bit for each sequence that is not wanted any more */
    uint64_t arrival_ns, first_chunk_ns, first_token_ns;
    uint64_t stall_until_ns;
    uint32_t total;               /* prompt and output: what is computed */
    uint32_t computed;
    uint32_t cached;              /* tokens that it began with: a multiple of block_tokens */
    uint32_t grant_first;         /* blocks before it are not sent: the decode node has them */
    uint32_t ring;                /* blocks that it holds, in turn; 0: one for each of the table */
    uint32_t block_count;         /* held; its first so many in the table */
    uint32_t *blocks;             /* [blocks for total] */
    uint32_t load_first, load_end;   /* LOADING: entries of the table that come from a tier */
    uint32_t load_next, load_good;   /* the next one to ask for; before it, and before the first that failed */
    uint32_t loads_pending;
    uint64_t load_began_ns, load_predicted_ns;
    uint32_t published;           /* entries before it hold final content and have been named */
    uint32_t hash_count;
    struct kv_hash root;          /* the chain before its first block */
    struct kv_hash *hashes;       /* [blocks for total] names of its full blocks */
    uint32_t ticket_bytes;
    uint8_t *ticket;
};

struct prefill_plan {
    bool is_in_flight;
    struct step_plan plan;
    struct step_open *opens;        /* [slot_count] */
    struct step_span *spans;        /* [span_max] */
    struct prefill_job **span_jobs; /* [span_max] */
    uint32_t *sample_slots;         /* [slot_count] */
    uint32_t *tokens;               /* [step_rows_max] */
    uint32_t sample_count, token_count, logprob_count;
};

/* Why the head of the queues was not admitted when it was last tried: it is not tried again until
 * that may have changed, for a try walks its whole prompt. */
struct admit_miss {
    bool is_set;
    struct leg_id leg;
    uint32_t available;
    uint64_t published;
};

struct prefill_core {
    struct prefill_core_config config;
    uint32_t *eos_tokens;
    uint64_t now_ns;
    bool is_draining;
    struct kv_cache *cache;
    struct tier_desk *tiers;           /* NULL: there are none */
    uint32_t *block_text;              /* [block_tokens] for a hash */
    struct admit_miss miss;
    struct leg_index *index;
    struct router_set routers;
    struct token_list *tokens;         /* for the routers */
    struct prefill_plan step;
    struct list jobs;                  /* live, by arrival */
    struct list ended;                 /* freed at the end of the event */
    struct list resumed, fresh;        /* WAITING, by priority and arrival */
    struct list loading;               /* LOADING, by admission */
    struct list computing;             /* COMPUTING, by priority and admission */
    struct list sent;                  /* SENT, by time of commit: its stall deadlines are in order */
    struct prefill_action *actions;    /* [action_max] */
    uint32_t action_count, action_max;
    struct ctl_token *commits;         /* [slot_count] first tokens of one event, for COMMIT */
    uint32_t commit_count;
    struct token_logprob *logprobs;    /* [step_rows_max] of one event, for PROMPT_LOGPROBS */
    uint32_t logprob_count;
    struct diag text;                  /* the one message of an event that is not a constant */
    char cable[32];                    /* of the event's PREFILL_DONE */
    uint32_t *audit_owners;            /* [block_count] */
    uint64_t steps, prompt_tokens_computed, jobs_done, jobs_failed, jobs_cancelled, jobs_refused, late_messages;
    uint64_t cache_tokens_asked, cache_tokens_found, cache_blocks_taken;
    uint64_t tier_tokens_loaded, loads_chosen, loads_declined, load_predicted_ns, load_actual_ns;
    uint64_t hold_mean_ns;             /* how long a job stays here */
    struct token_rate rate;
};

static inline uint32_t prefill_blocks_for(const struct prefill_core *core, uint32_t token_count)
{
    return (token_count + core->config.block_tokens - 1) / core->config.block_tokens;
}

struct prefill_action *prefill_action_add(struct prefill_core *core, enum prefill_action_kind kind);

/* --- prefill_job.c */

/* Takes a validated PREFILL and begins its transfer. NULL: no memory. */
struct prefill_job *job_take(struct prefill_core *core, uint32_t router, const struct ctl_prefill *prefill);

/* Changes state and queue together. */
void job_enter(struct prefill_core *core, struct prefill_job *job, enum job_state state, struct list *queue);

/* Ends the job without a word to the router. */
void job_drop(struct prefill_core *core, struct prefill_job *job, enum job_outcome outcome);

/* Tells the router why and ends the job. Borrows message until the event's actions are done. */
void job_give_up(struct prefill_core *core, struct prefill_job *job, uint8_t code, const char *message);

/* Moves a job whose facts have changed, until its state stops changing. */
void job_move(struct prefill_core *core, struct prefill_job *job);

uint32_t prefill_retry_after_ms(const struct prefill_core *core);

uint64_t prefill_tokens_queued(const struct prefill_core *core);

/* Frees the jobs that ended in this event. */
void jobs_reap(struct prefill_core *core);

/* --- prefill_prefix.c */

/* Takes the blocks of a waiting job's text that are cached, from its first one on, into its table.
 * Returns how many; they are final. */
uint32_t prefill_prefix_take(struct prefill_core *core, struct prefill_job *job);

/* May the job begin behind what is here? Whoever wants the log-probabilities of the prompt needs its
 * rows computed; a ring has no room for what lies before the window. */
bool prefill_prefix_is_wanted(const struct prefill_core *core, const struct prefill_job *job);

/* Finds the names of the job's first `count` blocks. */
void prefill_name_blocks(struct prefill_core *core, struct prefill_job *job, uint32_t count);

/* The job begins with so many: counts them, and sends those that the decode node lacks. */
void prefill_prefix_use(struct prefill_core *core, struct prefill_job *job, uint32_t taken);

/* Names the blocks that job->computed has filled since the last call. */
void prefill_prefix_publish(struct prefill_core *core, struct prefill_job *job);

/* --- prefill_tier.c */

/* How many blocks behind the `taken` ones shall be loaded; the job's load_* say which. */
uint32_t prefill_tier_plan_load(struct prefill_core *core, struct prefill_job *job, uint32_t taken);

void prefill_tier_take(struct prefill_core *core, const struct kv_tier_event *event);

/* Asks for what jobs wait for, and for stores ahead of need. */
void prefill_tier_issue(struct prefill_core *core);

/* --- prefill_window.c */

/* Blocks of the ring of a job with a table of so many; 0: it holds all of them. */
uint32_t prefill_ring_blocks(const struct prefill_core_config *config, uint32_t table_count, uint32_t grant_first);

/* The ring's blocks are in the table's first entries: fills the others. */
void prefill_ring_fill(struct prefill_job *job, uint32_t table_count);

/* --- prefill_batch.c */

/* Gives blocks to whom they are due, and plans a step if none is in flight. */
void prefill_schedule(struct prefill_core *core);

/* Takes a result of the plan in flight.
 * Errors  SCOPE_NODE: the step failed for the whole node, or the result does not fit the plan. */
NODISCARD status_t prefill_finish_step(struct prefill_core *core, const struct step_result *result);

#endif
