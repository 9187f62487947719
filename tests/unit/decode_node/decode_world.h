/* decode_world: routers, prefill nodes, the transfer and the engine around one decode_core.
 * It checks after every event whatever must hold at any time: the audit, the sums, one plan
 * in flight, one TOKENS per router, and that every token is the one that must come next. */
#ifndef BATON_TESTS_UNIT_DECODE_NODE_DECODE_WORLD_H
#define BATON_TESTS_UNIT_DECODE_NODE_DECODE_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "decode_node/decode_core.h"
#include "tests/unit/sched/kv_model.h"

#define WORLD_VOCAB 61u
#define WORLD_EOS 7u
#define WORLD_TEXT_MAX 512u
#define WORLD_SEQS_MAX 8u
#define WORLD_BLOCKS_MAX 256u
#define WORLD_ROUTERS 3u

enum world_leg_end { WORLD_OPEN, WORLD_REFUSED, WORLD_FAILED, WORLD_DROPPED };

struct world_leg {
    struct leg_id id;
    uint32_t router;
    enum world_leg_end end;
    uint8_t code;
    uint32_t retry_after_ms;
    char message[256];
    struct ctl_reserve reserve; /* arrays below */
    uint32_t prompt[WORLD_TEXT_MAX];
    uint32_t given[WORLD_TEXT_MAX];                   /* reserve.work.output */
    uint32_t output[WORLD_SEQS_MAX][WORLD_TEXT_MAX];  /* given, then received */
    uint32_t output_count[WORLD_SEQS_MAX];
    uint8_t finish[WORLD_SEQS_MAX];
    bool is_cancelled[WORLD_SEQS_MAX];
    uint32_t logprob_next;                            /* prompt index expected next */
    bool has_grant, is_revoked, has_landed;
    bool is_local;                                    /* RESERVED said so */
    uint32_t cached_tokens, grant_first;              /* as RESERVED or the grant said */
    uint32_t granted[WORLD_BLOCKS_MAX];
    uint32_t granted_count;
};

#define WORLD_TIER_MAX 512u
#define WORLD_BLOCK_TOKENS_MAX 8u

/* A store or load under way. */
struct world_tier_request {
    bool is_load;
    struct kv_hash hash;
    uint32_t block;
    uint64_t tag;
};

struct world_tier_entry {
    struct kv_hash hash;
    enum kv_tier_kind tier;
    uint64_t marks[WORLD_BLOCK_TOKENS_MAX];
};

struct world {
    struct decode_core_config config;
    struct decode_core *core;
    struct kv_model *model;
    uint64_t now_ns;
    const struct step_plan *plan; /* in flight */
    bool router_is_up[WORLD_ROUTERS];
    uint32_t leg_count, leg_max;
    struct world_leg **legs;
    uint64_t garbage;
    status_t status;              /* of the last event */
    struct ctl_load load;         /* last of router 0 */
    uint32_t loads[WORLD_ROUTERS], token_messages;
    uint32_t copies;              /* seen in plans so far */
    uint32_t rows_max;            /* of any plan so far */
    struct world_tier_request requests[WORLD_TIER_MAX]; /* in the order of their coming */
    uint32_t request_count, tier_stores, tier_loads;
    struct world_tier_entry entries[WORLD_TIER_MAX];
    uint32_t entry_count;
    bool has_past;                /* the disk had entries from an earlier life */
    enum kv_tier_kind store_tier; /* where stores go */
    uint64_t tier_extra_ns, step_extra_ns; /* that a block, a step takes longer */
};

/* 4 tokens a block; everything may be changed before world_open(). */
struct decode_core_config world_config(uint32_t block_count, uint32_t batch_max);
struct world *world_open(const struct decode_core_config *config);
void world_close(struct world *world);

/* A greedy leg with one sequence over a prompt that depends on `seed`, not sent yet. */
struct world_leg *world_leg(struct world *world, uint32_t router, uint32_t prompt_count, uint32_t max_tokens,
                            uint64_t seed);
/* Gives a leg that is not sent yet a prompt that begins with the first `count` tokens of what another one
 * has had, as far as that goes; its own stay behind them. */
void world_leg_extend(struct world_leg *leg, const struct world_leg *earlier, uint32_t index, uint32_t count);
/* Gives the leg the first `count` tokens of its one sequence, as a broken leg left them; false if it ends before. */
bool world_leg_resume(struct world *world, struct world_leg *leg, uint32_t count);

void world_event(struct world *world, const struct decode_event *event);
void world_message(struct world *world, uint32_t router, const struct ctl_msg *msg);
void world_reserve(struct world *world, struct world_leg *leg);
void world_cancel(struct world *world, struct world_leg *leg);
void world_cancel_seq(struct world *world, struct world_leg *leg, uint32_t index);
void world_prefill_lost(struct world *world, struct world_leg *leg);
void world_land(struct world *world, struct world_leg *leg);
void world_fail_transfer(struct world *world, struct world_leg *leg);
void world_fence(struct world *world, struct world_leg *leg);
void world_router_up(struct world *world, uint32_t router);
void world_router_down(struct world *world, uint32_t router);
void world_tick(struct world *world, uint64_t later_ns);
void world_step_done(struct world *world);
void world_step_failed(struct world *world, uint8_t scope);

/* Ends the `index`th request under way, well or not. */
void world_tier_end(struct world *world, uint32_t index, bool is_good);
/* Ends all that are under way and what comes of them. */
void world_tier_end_all(struct world *world);
/* A tier gives the `index`th entry up, or moves it to disk. */
void world_tier_drop(struct world *world, uint32_t index);
void world_tier_move(struct world *world, uint32_t index);
/* The disk has an entry from an earlier life. */
void world_tier_find(struct world *world, const struct world_tier_entry *entry);

/* Runs until nothing is left to do: lands what is granted, fences what is revoked. */
void world_finish(struct world *world);

/* Every sequence has had its last token. */
bool world_leg_is_complete(const struct world_leg *leg);

struct decode_core_stats world_stats(const struct world *world);

#endif
