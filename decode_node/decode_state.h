/* decode_state: the tables behind decode_core, shared by its parts and nobody else.
 * Flow:    decode_core (events) -> decode_reserve, decode_leg (one leg's life), decode_admit (blocks,
 *          slots), decode_batch (steps) -> decode_stats, decode_audit
 * Thread:  the node's core thread only.
 * Memory:  carved in decode_core_create; a leg's sequences, tokens and block tables are one
 *          allocation that ends with the leg.
 *
 * A leg starts as one sequence, the carrier, that holds the prompt's blocks and either
 * computes the prompt or lets it land. The others wait in FORKING. When the first tokens are
 * there the leg forks: full blocks are shared by reference, the part-filled last one is
 * copied, and each sequence goes its own way. */
#ifndef BATON_DECODE_NODE_DECODE_STATE_H
#define BATON_DECODE_NODE_DECODE_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "decode_node/decode_core.h"
#include "decode_node/decode_pace.h"
#include "kv/kv_cache.h"
#include "kv/kv_hash.h"
#include "kv/kv_pool.h"
#include "sched/leg_index.h"
#include "sched/list.h"
#include "sched/rate.h"
#include "sched/router_set.h"
#include "sched/tier_desk.h"
#include "sched/token_list.h"

#define NO_BLOCK UINT32_MAX
#define NO_SLOT UINT32_MAX

/* What a sequence waits for. */
enum seq_state {
    SEQ_FORKING,   /* waits for the carrier to have the prompt; may hold one spare block */
    SEQ_WAITING,   /* waits in a queue for blocks, all or none; holds none */
    SEQ_LOADING,   /* has blocks; waits for those of its text that come from a tier */
    SEQ_GRANTED,   /* waits for the prompt's KV to land in its blocks */
    SEQ_FENCING,   /* is over; waits until nothing can land in its blocks, then frees them */
    SEQ_READY,     /* has blocks; waits for a sampler slot (the carrier: one for each sequence) */
    SEQ_RUNNING,   /* has blocks and a slot; waits for a step with room for its next rows */
    SEQ_SWAPPING,  /* gives way; waits until each of its full blocks has a store under way */
    SEQ_LEAVING,   /* is over; waits for the step in flight to let go of its blocks */
    SEQ_ENDED,     /* holds nothing, waits for nothing */
    SEQ_STATE_COUNT
};

struct decode_leg;

struct decode_seq {
    struct list_link link;    /* in the queue of WAITING, or in granted, ready, running */
    struct list *list;        /* that one; NULL: in none */
    struct decode_leg *leg;
    enum seq_state state;
    uint32_t index;           /* within the leg */
    bool is_over;             /* fact: needs no more tokens; its state follows */
    bool is_in_step;          /* the step in flight reads or writes its blocks */
    bool slot_is_open;
    uint32_t slot;
    uint32_t output_count;
    uint32_t *output;         /* [leg->output_max] */
    uint32_t computed;        /* tokens whose KV lies in the blocks */
    uint32_t block_first;     /* entries of the table before it are not its own */
    uint32_t block_count;
    uint32_t *blocks;         /* [leg->table_max] the block table */
    uint32_t published;       /* entries before it hold final content and have been named, or lie before block_first */
    uint32_t load_first, load_end;  /* entries that a tier has: the plan when it took its blocks */
    uint32_t load_next, load_good;  /* the next to ask for; before the first one that failed */
    uint32_t loads_pending;
    bool load_is_declined;          /* a tier had some, and computing was predicted cheaper */
    uint64_t load_predicted_ns, load_began_ns;
    uint32_t hash_count;
    struct kv_hash *hashes;   /* [leg->table_max] names of its full blocks */
    uint32_t spare;           /* FORKING: the block it will own alone */
    uint32_t copy_source;     /* block to copy over its last one before it runs; one reference */
};

/* How a leg ended, for the counts. */
enum leg_outcome { LEG_OPEN, LEG_FINISHED, LEG_FAILED, LEG_CANCELLED, LEG_REFUSED };

struct decode_leg {
    struct list_link link;       /* in core->legs, or in core->ended */
    struct leg_id id;
    uint32_t router;
    struct ctl_work work;        /* copied */
    bool is_remote;              /* its prompt is computed elsewhere */
    uint32_t local_max_tokens;   /* unless so few of its tokens are missing: decided when it is admitted */
    struct kv_hash root;         /* the chain before its first block */
    uint32_t cached_tokens;      /* of its text, that nobody had to compute */
    uint32_t grant_first;        /* the first block that lands */
    bool is_forked;              /* the first tokens are there */
    bool is_fenced;              /* fact: nothing can land any more */
    bool is_in_failed_step;
    bool was_admitted;
    enum leg_outcome outcome;
    uint64_t birth_ns, arrival;  /* the claim: older first, then by arrival */
    uint64_t admitted_ns;
    uint64_t wait_until_ns;      /* UINT64_MAX: waits for as long as it takes */
    uint64_t lease_until_ns;
    uint32_t logprobs_next;      /* next prompt index to report; prompt_count: none */
    uint32_t shared_block;       /* part-filled block that copies are made of; NO_BLOCK: none */
    uint32_t copies_in_step;
    uint32_t output_max, table_max;
    uint32_t seq_count, ended_count;
    struct decode_seq *seqs;     /* [seq_count]; seqs[0] is the carrier */
};

/* The plan in flight, and whom each part of it speaks of. */
struct decode_plan {
    bool is_in_flight;
    struct step_plan plan;
    struct step_open *opens;             /* [batch_max] */
    struct step_copy *copies;            /* [block_count] */
    struct step_span *spans;             /* [batch_max] */
    struct decode_seq **span_seqs;       /* [batch_max] */
    struct decode_seq **sample_seqs;     /* [batch_max], in the order of the samples */
    struct decode_seq **copy_seqs;       /* [block_count] */
    uint32_t *sample_slots;              /* [batch_max] */
    uint32_t *tokens;                    /* [step_rows_max] */
    uint32_t sample_count, token_count, prompt_rows, decode_rows, chunk_rows, logprob_count;
};

/* Why the head of the queues was not admitted when it was last tried: it is not tried again until
 * that may have changed, for a try walks its whole prompt. */
struct admit_miss {
    bool is_set;
    uint64_t arrival;
    uint32_t index, live, available;
    uint64_t published, taken;
};

struct decode_core {
    struct decode_core_config config;
    uint32_t *eos_tokens;
    uint64_t now_ns;
    bool is_draining;
    struct kv_cache *cache;
    uint32_t *block_text;          /* [block_tokens] for a hash */
    struct admit_miss miss;
    struct tier_desk *tiers;       /* NULL: there are none */
    uint32_t growth_waiters;       /* of this event, that wait for blocks that are being saved */
    struct leg_index *index;
    struct router_set routers;
    struct token_list *tokens;
    struct decode_plan step;
    struct list legs;              /* live, in order of arrival */
    struct list ended;             /* freed at the end of the event */
    struct list preempted;         /* WAITING, by claim */
    struct list resumed, fresh;    /* WAITING, by arrival */
    struct list loading;           /* LOADING */
    struct list granted;           /* GRANTED */
    struct list swapping;          /* SWAPPING */
    struct list ready, running;    /* READY, RUNNING, by claim */
    uint32_t slot_free_count;
    uint32_t *slots_free;          /* [batch_max] a stack */
    struct decode_action *actions; /* [action_max] */
    uint32_t action_count, action_max;
    struct token_logprob *logprobs; /* [step_rows_max] of one event, for PROMPT_LOGPROBS */
    uint32_t logprob_count;
    struct diag text;              /* the one message of an event that is not a constant */
    uint32_t *audit_owners;        /* [block_count] */
    uint32_t *victim_refs;         /* [block_count], all 0 between uses */
    uint64_t arrivals, steps, tokens_generated, prompt_tokens_computed, preemptions, slot_preemptions;
    uint64_t swaps, loads_chosen, loads_declined, tier_tokens_loaded, load_predicted_ns, load_actual_ns;
    uint64_t legs_finished, legs_failed, legs_cancelled, legs_refused, late_messages;
    uint64_t cache_tokens_asked, cache_tokens_found, cache_blocks_taken; /* of legs that were admitted */
    uint64_t hold_mean_ns;         /* how long a leg holds blocks */
    struct token_rate prefill_rate;
    struct decode_pace pace;
};

/* Shorthands. */
static inline uint32_t seq_total(const struct decode_seq *seq)
{
    return seq->leg->work.prompt_count + seq->output_count;
}

/* The table's entries that it has references to. */
static inline uint32_t *seq_own_blocks(const struct decode_seq *seq) { return seq->blocks + seq->block_first; }

static inline uint32_t seq_own_count(const struct decode_seq *seq) { return seq->block_count - seq->block_first; }

static inline uint32_t blocks_for(const struct decode_core *core, uint32_t token_count)
{
    return (token_count + core->config.block_tokens - 1) / core->config.block_tokens;
}

static inline struct decode_seq *seq_of(struct list_link *link)
{
    return link == NULL ? NULL : LIST_OWNER(link, struct decode_seq, link);
}

struct decode_action *action_add(struct decode_core *core, enum decode_action_kind kind);

/* --- decode_reserve.c */

/* Takes, refuses or ignores a RESERVE from the wire. */
void reserve_take(struct decode_core *core, uint32_t router, const struct ctl_reserve *reserve);

/* --- decode_leg.c */

/* Takes a validated RESERVE. NULL: no memory. */
struct decode_leg *leg_take(struct decode_core *core, uint32_t router, const struct ctl_reserve *reserve);

/* Do so many of its tokens come from elsewhere? Not if the leg was admitted before, or must or had better
 * be computed here. */
bool leg_will_be_granted(const struct decode_core *core, const struct decode_leg *leg, uint32_t missing);

/* Its prompt is computed by this node. */
void leg_compute_here(struct decode_leg *leg);

/* Ends every sequence of the leg, without a word to the router. */
void leg_drop(struct decode_core *core, struct decode_leg *leg, enum leg_outcome outcome);

/* Tells the router why (REFUSED for LEG_REFUSED, else LEG_FAILED) and ends the leg. message is a constant. */
void leg_give_up(struct decode_core *core, struct decode_leg *leg, enum leg_outcome outcome, uint8_t code,
                 const char *message);

/* Ends one sequence at the router's wish. */
void leg_cancel_seq(struct decode_core *core, struct decode_leg *leg, uint32_t index);

/* Appends a sampled token and stages it for the router; the sequence may be over then. */
void seq_take_token(struct decode_core *core, struct decode_seq *seq, uint32_t token, bool has_logprob,
                    const struct token_logprob *logprob);

/* The prompt is there and the first tokens are taken: shares it out, and lets every sequence move. */
void leg_fork(struct decode_core *core, struct decode_leg *leg);

/* Somebody still needs it. */
bool seq_goes_on(const struct decode_seq *seq);

/* Moves a sequence whose facts have changed, until its state stops changing. */
void seq_move(struct decode_core *core, struct decode_seq *seq);

/* Changes state and list together; lists that go by claim keep their order. */
void seq_enter(struct decode_core *core, struct decode_seq *seq, enum seq_state state, struct list *list);

/* Gives back everything a sequence holds: blocks, spare, copy source, slot. What has a name stays
 * cached until somebody needs the blocks. */
void seq_release(struct decode_core *core, struct decode_seq *seq);

/* Of what was admitted: its blocks, and those of the sequences that wait for it to fork. */
void seq_give_blocks_back(struct decode_core *core, struct decode_seq *seq);

void seq_release_slot(struct decode_core *core, struct decode_seq *seq);

/* Higher priority first, then older. */
bool seq_claim_is_stronger(const struct decode_seq *a, const struct decode_seq *b);

uint32_t leg_live_count(const struct decode_leg *leg);

uint32_t retry_after_ms(const struct decode_core *core);

/* Frees the legs that ended in this event. */
void legs_reap(struct decode_core *core);

/* --- decode_prefix.c */

/* Takes the blocks of a waiting sequence's text that are cached, from its first one on, into its
 * table. Returns how many; they are final and count as computed. */
uint32_t seq_take_cached(struct decode_core *core, struct decode_seq *seq);

/* It is admitted with them: only now have they been used once more. */
void seq_note_cached(struct decode_core *core, const struct decode_seq *seq);

/* Names the blocks that seq->computed has filled since the last call. */
void seq_publish(struct decode_core *core, struct decode_seq *seq);

/* A sequence that goes its own way from where the heir stands: its names so far. */
void seq_share_names(struct decode_seq *seq, const struct decode_seq *heir);

/* Finds the names of the sequence's first `count` blocks. */
void seq_name_blocks(struct decode_core *core, struct decode_seq *seq, uint32_t count);

/* The name before entry `index` in the sequence's chain. */
struct kv_hash seq_name_before(const struct decode_seq *seq, uint32_t index);

/* --- decode_admit.c */

/* Who is next in the queues; NULL: nobody waits. */
struct decode_seq *admit_head(const struct decode_core *core);

/* Would it be admitted if it were its turn? Changes nothing. */
bool admit_fits(struct decode_core *core, struct decode_seq *seq);

/* Rows that are left and have blocks to be written in. */
uint32_t seq_rows_covered(const struct decode_core *core, const struct decode_seq *seq);

/* Gives running sequences the block that their next row needs; may preempt: no step is in flight. And
 * blocks for a whole chunk, where they can be had and it is windowed: else it has them. */
void admit_growth(struct decode_core *core);

/* Gives blocks to those that wait for them, in order. */
void admit_waiting(struct decode_core *core);

/* Gives slots to sequences that have blocks, in order; no step is in flight. */
void admit_to_slots(struct decode_core *core);

/* A sequence whose loads have ended, or that has none: READY or GRANTED. */
void admit_with_content(struct decode_core *core, struct decode_seq *seq);

/* --- decode_window.c */

/* The first block that the row at `position` sees. */
uint32_t window_first(const struct decode_core *core, uint32_t position);

/* Blocks that one sequence needs at once at most; UINT32_MAX: as long as it is. */
uint32_t window_blocks_max(const struct decode_core *core);

/* Gives back the blocks that no row from seq->computed on sees; none of its rows is in a step. */
void window_slide(struct decode_core *core, struct decode_seq *seq);

/* The most blocks, up to `most`, that need not be computed: all of them that the next row sees are cached. */
uint32_t window_find_cached(struct decode_core *core, struct decode_seq *seq, uint32_t most);

/* --- decode_tier.c */

/* Decides what of a sequence's text, behind what it has taken and up to block `most`, is loaded. */
void tier_plan_load(struct decode_core *core, struct decode_seq *seq, uint32_t most);

/* The cached blocks that a sequence was admitted with: what no tier has any more is stored again. */
void tier_note_used(struct decode_core *core, const struct decode_seq *seq);

/* One was admitted whose load was declined. */
void tier_note_declined(struct decode_core *core);

void tier_begin_load(struct decode_core *core, struct decode_seq *seq);

/* Saves what a preempted sequence holds before it gives it up, where that is cheaper than to compute it
 * again. False: nothing has changed. */
bool tier_begin_swap(struct decode_core *core, struct decode_seq *seq);

/* Blocks that come back when the stores under way have ended. */
uint32_t tier_blocks_coming(const struct decode_core *core);

/* Asks for what is due: loads, swaps, and stores ahead of need. */
void tier_issue(struct decode_core *core);

void tier_take(struct decode_core *core, const struct kv_tier_event *event);

/* --- decode_preempt.c; none of these while a step is in flight, but for preempt_has_weaker */

/* Lets weaker claims give way until one block can be had. False: `seq` itself gave way, or it is
 * the only one that holds blocks and waits, with all it has, for those that a grant or a fence will
 * give back. */
bool preempt_for_growth(struct decode_core *core, struct decode_seq *seq);

/* Does anybody of lower priority hold blocks, and could give them up now? */
bool preempt_has_weaker(const struct decode_core *core, const struct decode_seq *seq);

/* Lets sequences of lower priority give way until `needed` blocks can be had, or none if all of
 * them together have not enough. */
void preempt_for_priority(struct decode_core *core, const struct decode_seq *seq, uint32_t needed);

/* The same with slots. */
void preempt_slots(struct decode_core *core, const struct decode_seq *seq, uint32_t needed);

/* --- decode_batch.c */

/* Gives blocks and slots to whom they are due, and plans a step if none is in flight. */
void batch_schedule(struct decode_core *core);

/* Takes a result of the plan in flight.
 * Errors  SCOPE_NODE: the step failed for the whole node, or the result does not fit the plan. */
NODISCARD status_t batch_finish_step(struct decode_core *core, const struct step_result *result);

#endif
