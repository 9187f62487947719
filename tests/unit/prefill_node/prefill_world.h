/* prefill_world: routers, decode nodes, the transfer and the engine around one prefill_core.
 * It checks after every event whatever must hold at any time: the audit, the sums, that every
 * first token is the right one, that every block is pushed once, complete, and stays as it
 * was pushed until its transfer is over. */
#ifndef BATON_TESTS_UNIT_PREFILL_NODE_PREFILL_WORLD_H
#define BATON_TESTS_UNIT_PREFILL_NODE_PREFILL_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "prefill_node/prefill_core.h"
#include "tests/unit/sched/kv_model.h"

#define PWORLD_VOCAB 61u
#define PWORLD_EOS 7u
#define PWORLD_TEXT_MAX 256u
#define PWORLD_SEQS_MAX 8u
#define PWORLD_ROUTERS 3u

enum pworld_end { PWORLD_OPEN, PWORLD_REFUSED, PWORLD_FAILED, PWORLD_DROPPED, PWORLD_DONE };

struct pworld_job {
    struct leg_id id;
    uint32_t router;
    enum pworld_end end;
    uint8_t code;
    uint32_t retry_after_ms;
    char message[256];
    struct ctl_prefill prefill;
    uint8_t ticket[8];
    uint32_t text[PWORLD_TEXT_MAX];  /* prompt, then output */
    uint32_t first_token[PWORLD_SEQS_MAX];
    bool has_token[PWORLD_SEQS_MAX], is_cancelled[PWORLD_SEQS_MAX];
    uint32_t logprob_next;
    bool has_transfer, is_aborted, is_committed; /* has_transfer: its blocks are being read */
    uint32_t pushed_count;                       /* blocks, from grant_first on, in any order */
    bool is_pushed[PWORLD_TEXT_MAX];             /* by index in the grant */
    uint32_t pushed[PWORLD_TEXT_MAX];            /* pool block of each */
    uint32_t cached_pushed;                      /* of them, those that were cached */
    struct ctl_prefill_done done;
};

#define PWORLD_TIER_MAX 512u
#define PWORLD_BLOCK_TOKENS_MAX 16u

struct pworld_entry {
    struct kv_hash hash;
    enum kv_tier_kind tier;
    uint64_t marks[PWORLD_BLOCK_TOKENS_MAX];
};

struct pworld_operation {
    bool is_load;
    struct kv_hash hash;
    uint32_t block;
    uint64_t tag;
    uint64_t marks[PWORLD_BLOCK_TOKENS_MAX]; /* store: of the block when it began */
};

struct pworld {
    struct prefill_core_config config;
    struct prefill_core *core;
    struct kv_model *model;
    uint64_t now_ns;
    const struct step_plan *plan;
    bool router_is_up[PWORLD_ROUTERS];
    uint32_t job_count, job_max;
    struct pworld_job **jobs;
    status_t status;
    struct ctl_load load;
    uint32_t loads[PWORLD_ROUTERS];
    uint32_t spans_max; /* of any plan so far */
    uint32_t slowness;  /* of steps: 0 is a microsecond a row, n is n more */
    uint32_t entry_count, operation_count;
    struct pworld_entry entries[PWORLD_TIER_MAX];
    struct pworld_operation operations[PWORLD_TIER_MAX];
};

struct prefill_core_config pworld_config(uint32_t block_count);
struct pworld *pworld_open(const struct prefill_core_config *config);
void pworld_close(struct pworld *world);

struct pworld_job *pworld_job(struct pworld *world, uint32_t router, uint32_t prompt_count, uint32_t output_count,
                              uint64_t seed);
/* Its text begins with `count` tokens of another's. */
void pworld_share(struct pworld_job *job, const struct pworld_job *other, uint32_t count);

/* A job of router 0 whose prompt begins with `shared` tokens of `before`; the decode node has grant_first blocks. */
struct pworld_job *pworld_next_turn(struct pworld *world, const struct pworld_job *before, uint32_t shared, uint32_t prompt_count,
                                    uint32_t grant_first);
void pworld_event(struct pworld *world, const struct prefill_event *event);
void pworld_message(struct pworld *world, uint32_t router, const struct ctl_msg *msg);
void pworld_send(struct pworld *world, struct pworld_job *job);
void pworld_cancel(struct pworld *world, struct pworld_job *job);
void pworld_cancel_seq(struct pworld *world, struct pworld_job *job, uint32_t index);
void pworld_ack(struct pworld *world, struct pworld_job *job);
void pworld_fail(struct pworld *world, struct pworld_job *job);
void pworld_ended(struct pworld *world, struct pworld_job *job);
void pworld_router_up(struct pworld *world, uint32_t router);
void pworld_router_down(struct pworld *world, uint32_t router);
void pworld_tick(struct pworld *world, uint64_t later_ns);
/* A store or load under way ends; is_ok: as it should. */
void pworld_tier_end(struct pworld *world, uint32_t operation, bool is_ok);
/* The tier gives an entry up, or moves it to disk. */
void pworld_tier_drop(struct pworld *world, uint32_t entry);
void pworld_tier_move(struct pworld *world, uint32_t entry);
void pworld_step_done(struct pworld *world);
void pworld_step_failed(struct pworld *world, uint8_t scope);
void pworld_finish(struct pworld *world);

/* Sends the job and finishes all; CHECKs that it is done. Returns the prompt tokens that were computed meanwhile. */
uint64_t pworld_computed_by(struct pworld *world, struct pworld_job *job);
struct prefill_core_stats pworld_stats(const struct pworld *world);

#endif
