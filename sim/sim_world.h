/* sim_world: the tables of one simulated cluster, for sim's own files only.
 * Flow:    sim.c (events), sim_plan.c (cluster, requests, faults), sim_conn.c (streams and
 *          routers), sim_client.c (what clients see), sim_node.c (nodes), sim_model.c (what
 *          they compute), sim_xfer.c (transfers), sim_tier.c (host memory and disk), sim_talk.c
 *          (conversations) share them.
 * Thread:  one. */
#ifndef BATON_SIM_SIM_WORLD_H
#define BATON_SIM_SIM_WORLD_H

#include "base/clock.h"
#include "base/rng.h"
#include "control/ctl_codec.h"
#include "decode_node/decode_core.h"
#include "kv/kv_tier.h"
#include "prefill_node/prefill_core.h"
#include "router/router_core.h"
#include "sim/event_heap.h"
#include "sim/sim.h"

#define NODES_MAX 6u
#define LAYERS 2u
#define VOCAB 61u
#define EOS_TOKEN 1u
#define CONTEXT 96u
#define REQUESTS_MAX 24u
#define SLOTS_MAX 32u
#define STEP_ROWS_MAX 256u
#define TICKET_BYTES 32u
#define ROUTERS_MAX 2u
#define LEGS_MAX 4096u
#define NO_CONN UINT32_MAX
#define NO_REQUEST UINT32_MAX
#define XFER_LEASE_NS (5 * NS_PER_S) /* a grant where nothing lands for so long is over */
#define RING_LINES 48u
#define LINE_CHARS 160u

enum sim_event_kind {
    SIM_SUBMIT, SIM_CANCEL, SIM_STOP,       /* a request; b: b's sequence */
    SIM_TO_NODE, SIM_TO_ROUTER,             /* a conn, bytes */
    SIM_CONN_OPEN,                          /* a router, b node; generation: the router's epoch */
    SIM_CONN_DOWN_ROUTER, SIM_CONN_DOWN_NODE, /* a conn */
    SIM_STEP_LAYER, SIM_STEP_DONE,          /* a node, b layer; generation: its epoch */
    SIM_XFER_SLICE, SIM_XFER_COMMIT, SIM_XFER_ACK, SIM_XFER_END_P, SIM_XFER_FAIL_D, SIM_XFER_FENCE,
    SIM_TIER_DONE, SIM_TIER_EVENT,          /* a node, b block; bytes; generation: its epoch */
    SIM_FAULT,                              /* a index in world->faults */
    SIM_NODE_START,                         /* a node; generation: the epoch that died */
    SIM_QUIET,                              /* faults end */
    SIM_CHECK_FREE,                         /* a: requests that were over when it was made */
    SIM_TICK_NODE, SIM_TICK_ROUTER,         /* a node or router; generation: its epoch */
};

struct sim_event {
    uint64_t at_ns, order;
    enum sim_event_kind kind;
    uint32_t a, b, c;     /* request, node, xfer, ... */
    uint64_t generation;  /* of the connection, the boot or the transfer */
    uint8_t *bytes;
    size_t byte_count;
};

struct sim_slot { uint32_t sequence, output_count; uint64_t seed; int32_t logprobs; };

/* What a node's host memory and disk hold. */
struct sim_tier {
    bool is_on;
    uint32_t entries_max[KV_TIER_COUNT]; /* 0: there is no such tier */
    uint32_t count, capacity;
    struct sim_tier_entry *entries;      /* oldest first */
    uint64_t last_event_ns;              /* the core hears of things in their order */
};

struct sim_node {
    uint32_t index;
    bool is_prefill, is_alive;
    uint64_t epoch;
    struct decode_core *decode;
    struct prefill_core *prefill;
    uint32_t block_tokens, block_count;
    uint64_t *kv;                      /* [block_count][LAYERS][block_tokens] */
    const struct step_plan *plan;      /* in flight */
    uint64_t step_began_ns;
    uint64_t hidden[STEP_ROWS_MAX];    /* of the rows of the step in flight, span by span */
    struct sim_tier tier;
    struct sim_slot slots[SLOTS_MAX];
    struct step_sample *samples;
    struct token_logprob *logprobs;
    struct step_result result;
    uint64_t next_tick_ns;
    bool is_draining;
    bool next_step_fails;
    uint64_t stopped_until_ns;
};

/* One Attach stream. Its index is the handle that the node gives its router: a new stream is a
 * new handle, and the node may have both for a while. */
struct sim_conn {
    uint32_t node, router;
    uint64_t node_epoch;
    bool is_cut;                                 /* what is sent from now on is lost */
    bool open_at_router, open_at_node;           /* that end has not seen the break yet */
    bool up_at_router, up_at_node;               /* the core there knows the stream */
    uint64_t last_to_node_ns, last_to_router_ns; /* streams keep order */
};

struct sim_router {
    struct router_core *core;
    struct router_core_config config;
    uint64_t epoch;
    uint64_t next_tick_ns;
    bool is_draining;
    uint32_t conns[NODES_MAX]; /* the current stream to each node, NO_CONN: none */
};

struct sim_xfer {
    bool is_used;
    uint64_t generation;
    struct leg_id leg;
    uint32_t decode_node, prefill_node; /* prefill_node NODES_MAX: not begun */
    uint64_t decode_epoch, prefill_epoch;
    uint32_t block_count;
    uint32_t *blocks;
    bool *landed;              /* [block_count][LAYERS] */
    bool d_open;               /* bytes may land: until FENCED, even after a revoke */
    bool d_revoked, d_told;    /* LANDED, FAILED or FENCED was said */
    bool p_open;               /* P waits for its final event */
    bool is_poisoned;          /* one slice will be corrupted */
    bool is_bad;               /* D has seen it: no commit can make it good */
    bool is_committed;         /* P has said commit */
    uint32_t pushed, arrived;
    uint64_t last_slice_ns, lease_until_ns;
    uint8_t *payload;
    size_t payload_bytes;
};

struct sim_request {
    bool is_submitted, is_over, cancel_asked;
    bool is_lost;             /* its router died; the client knows by the broken call */
    uint32_t router;
    uint64_t arrival_ns, cancel_ns; /* cancel_ns UINT64_MAX: never */
    uint32_t follows;         /* a later turn of that request: comes think_ns after its answer; NO_REQUEST: of none */
    uint64_t think_ns;
    uint64_t cache_salt;
    int32_t priority;
    uint32_t prompt_count, prompt[CONTEXT];
    struct sampling_params params;
    uint32_t stop_tokens[2];
    uint64_t deadline_ns;
    uint32_t expected_count[4], expected[4][CONTEXT];
    uint8_t expected_finish[4];
    uint32_t emitted[4];
    bool ended[4], stopped[4];
    uint64_t stopped_ns[4];
    uint32_t stop_after[4];   /* a "stop string" after so many tokens; UINT32_MAX: none */
    uint32_t prompt_logprobs;
};

/* What the cluster of a seed has beside the plain split. All zero: nothing. */
struct sim_features {
    uint32_t talk_per_mille;      /* of the requests say an earlier one again and go on */
    bool has_salts, has_priorities;
    bool prefix_cache, prefill_prefix_cache;
    uint32_t guess_blocks_max;    /* of the routers; 0: they do not look at caches */
    bool predict_local;
    bool has_tiers;
    uint32_t tier_slow_us;        /* the longest that a store or load takes */
    uint32_t itl_stretch_percent; /* 0: steps are bounded by rows alone */
    uint32_t preempt;             /* 0 auto, 1 swap, 2 recompute */
};

struct sim_world {
    struct sim_options options;
    struct sim_result result;
    struct rng rng;
    uint64_t now_ns;
    struct event_heap heap;
    struct ctl_codec *codec_out, *codec_in;
    uint32_t node_count, prefill_count;
    struct sim_node nodes[NODES_MAX];
    struct sim_xfer *xfers;
    uint32_t xfer_count, xfer_capacity;
    uint64_t xfer_generation;
    uint64_t cut_until_ns[NODES_MAX][NODES_MAX]; /* [prefill][decode]: no bytes pass */
    struct sim_conn *conns;
    uint32_t conn_count, conn_capacity;
    uint32_t router_count;
    struct sim_router routers[ROUTERS_MAX];
    struct { struct leg_id leg; uint32_t request; } legs[LEGS_MAX]; /* open addressing; leg.hi 0: unused */
    struct sim_features features;
    uint32_t window_tokens;  /* of the model's attention; 0: all that came before */
    uint32_t request_count, submitted_count, over_count;
    struct sim_request requests[REQUESTS_MAX];
    uint32_t fault_count, fault_next; /* faults with at_event, in order, from fault_next on */
    struct sim_fault faults[FAULTS_MAX];
    uint64_t quiet_at_ns, slow_until_ns;
    uint32_t poison_per_mille, repeat_per_mille;
    bool is_quiet;
    bool has_small_node;   /* one that some requests do not fit */
    char ring[RING_LINES][LINE_CHARS];
    uint64_t ring_count;
};

/* The world that is running, for the handler of a failed CHECK; NULL: none. */
extern struct sim_world *sim_running;

/* sim.c */
__attribute__((format(printf, 2, 3))) _Noreturn void sim_fail(struct sim_world *world, const char *format, ...);
__attribute__((format(printf, 2, 3))) void sim_trace(struct sim_world *world, const char *format, ...);
struct sim_event *sim_at(struct sim_world *world, uint64_t at_ns, enum sim_event_kind kind);
uint64_t sim_delay_ns(struct sim_world *world); /* of one message */
bool sim_chance(struct sim_world *world, uint32_t per_mille);

/* sim_model.c */
extern const uint32_t sim_eos_tokens[1];
uint64_t *sim_kv(struct sim_node *node, uint32_t block, uint32_t layer);
void sim_expect(const struct sim_world *world, struct sim_request *request);
void sim_model_begin(struct sim_world *world, struct sim_node *node, const struct step_plan *plan);
void sim_model_layer(struct sim_world *world, struct sim_node *node, const struct step_plan *plan, uint32_t layer);
void sim_model_finish(struct sim_world *world, struct sim_node *node, const struct step_plan *plan);

/* sim_talk.c */
void sim_talk_plan(struct sim_world *world, uint32_t index);
void sim_talk_turn(struct sim_world *world, uint32_t index);
void sim_talk_go_on(struct sim_world *world, uint32_t index);

/* sim_tier.c */
void sim_tier_start(struct sim_world *world, struct sim_node *node);
void sim_tier_fini(struct sim_node *node);
void sim_tier_store(struct sim_world *world, struct sim_node *node, struct kv_hash hash, uint32_t block, uint64_t tag);
void sim_tier_load(struct sim_world *world, struct sim_node *node, struct kv_hash hash, uint32_t block, uint64_t tag);
void sim_tier_event(struct sim_world *world, struct sim_node *node, const struct sim_event *event);

/* sim_plan.c */
uint32_t sim_pick(struct sim_world *world, uint32_t low, uint32_t high);
void sim_submit_at(struct sim_world *world, uint32_t index, uint64_t at_ns);
void sim_plan_from_seed(struct sim_world *world);
void sim_plan_from_scenario(struct sim_world *world, const struct sim_scenario *scenario);
void sim_fault(struct sim_world *world, const struct sim_fault *fault);
void sim_go_quiet(struct sim_world *world);

/* sim_conn.c */
void sim_node_send(struct sim_world *world, struct sim_node *node, uint32_t handle, const struct ctl_msg *msg);
void sim_router_event(struct sim_world *world, uint32_t router, struct router_event *event);
void sim_router_start(struct sim_world *world, uint32_t router);
void sim_router_die(struct sim_world *world, uint32_t router);
void sim_conn_want(struct sim_world *world, uint32_t router, uint32_t node);
void sim_conn_cut(struct sim_world *world, uint32_t conn);
void sim_conn_node_died(struct sim_world *world, struct sim_node *node);
void sim_conn_event(struct sim_world *world, const struct sim_event *event);
uint32_t sim_request_of(struct sim_world *world, struct leg_id leg);

/* sim_client.c */
void sim_client_event(struct sim_world *world, const struct sim_event *event);
void sim_client_action(struct sim_world *world, uint32_t router, const struct router_action *action);
void sim_client_check_wanted(struct sim_world *world, const struct ctl_token *token);
void sim_client_check_free(struct sim_world *world, uint32_t over_count);
void sim_client_router_died(struct sim_world *world, uint32_t router);

/* sim_node.c */
void sim_node_start(struct sim_world *world, struct sim_node *node);
void sim_node_stop(struct sim_world *world, struct sim_node *node);
void sim_node_attach(struct sim_world *world, struct sim_node *node, uint32_t handle, bool up);
void sim_node_message(struct sim_world *world, struct sim_node *node, uint32_t handle, const struct ctl_msg *msg);
void sim_node_drain(struct sim_world *world, struct sim_node *node);
void sim_node_die(struct sim_world *world, struct sim_node *node, uint64_t back_after_ns);
void sim_node_check_idle(struct sim_world *world, struct sim_node *node);
const char *sim_node_name(const struct sim_world *world, uint32_t index); /* "p0", "d1" */
void sim_node_layer(struct sim_world *world, struct sim_node *node, uint32_t layer);
void sim_node_step_done(struct sim_world *world, struct sim_node *node);
void sim_node_tick(struct sim_world *world, struct sim_node *node);
void sim_node_tier_event(struct sim_world *world, struct sim_node *node, const struct kv_tier_event *fact);
void sim_decode_event(struct sim_world *world, struct sim_node *node, struct decode_event *event);
void sim_prefill_event(struct sim_world *world, struct sim_node *node, struct prefill_event *event);

/* sim_xfer.c */
void sim_xfer_grant(struct sim_world *world, struct sim_node *node, const struct decode_action *action);
void sim_xfer_revoke(struct sim_world *world, struct sim_node *node, struct leg_id leg);
void sim_xfer_begin(struct sim_world *world, struct sim_node *node, const struct prefill_action *action);
void sim_xfer_push(struct sim_world *world, struct sim_node *node, const struct step_span *span, uint32_t layer);
void sim_xfer_push_cached(struct sim_world *world, struct sim_node *node, struct leg_id leg, uint32_t first, uint32_t count,
                          const uint32_t *blocks);
void sim_xfer_commit(struct sim_world *world, struct sim_node *node, const struct prefill_action *action);
void sim_xfer_abort(struct sim_world *world, struct sim_node *node, struct leg_id leg);
void sim_xfer_event(struct sim_world *world, const struct sim_event *event);
void sim_xfer_node_died(struct sim_world *world, struct sim_node *node);

#endif
