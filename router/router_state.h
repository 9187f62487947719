/* router_state: the tables of router_core, for its own files only.
 * Flow:    router_core (events), router_place (where to), router_cost (at what cost), router_cache
 *          (what is cached there) and router_reserve (what a decode node promised) share them
 * Thread:  the router's core thread.
 * Memory:  nodes and legs are tables of fixed size; a request is one allocation. */
#ifndef BATON_ROUTER_ROUTER_STATE_H
#define BATON_ROUTER_ROUTER_STATE_H

#include "router/prefix_guess.h"
#include "router/router_core.h"

#define NO_NODE UINT32_MAX
#define NO_LEG UINT32_MAX
#define TICKET_BYTES_MAX 1024u
#define CABLE_CHARS_MAX 16u

/* A leg that failed this often in a row without one new token fails its request: some
 * requests are poison, and a router that keeps placing them takes the nodes down in turn. */
#define LEGS_WITHOUT_PROGRESS_MAX 16u
/* After so many transfers failed, the decode node computes the prompt itself. */
#define TRANSFER_FAILURES_MAX 2u

enum leg_phase {
    LEG_FREE,       /* the slot is not in use */
    LEG_WAITING,    /* waits for retry_ns, or for a node that can take it */
    LEG_RESERVING,  /* RESERVE was sent; waits for RESERVED, REFUSED, or (told to compute it) tokens */
    LEG_PREFILLING, /* PREFILL was sent; waits for first tokens, or for word that it failed */
    LEG_LOST,       /* PREFILL_LOST was sent; waits for LEG_FAILED, or for tokens after all */
    LEG_DECODING,   /* the decode node has it; waits for tokens */
    LEG_DEAD,       /* over in this step; its slot is free from the next one on */
};

struct request;

struct leg {
    enum leg_phase phase;
    uint64_t lo; /* low half of its id: a count, and the slot in the low 24 bits */
    struct request *request;
    uint32_t next_of_request;
    uint32_t sequence_first, sequence_count;
    uint32_t decode_node, prefill_node;
    bool local;
    bool prefill_is_open; /* the prefill node may still hold something of it */
    bool resumed;
    bool prefill_cannot; /* a prefill node said that it can never take the leg: no retry will help */
    bool transfer_is_known; /* its bytes are counted: both ends report them */
    uint64_t first_token_ns;  /* the prefill node's first token came; 0: not yet */
    uint64_t landed_ns;       /* the decode node said that the blocks landed; 0: not yet */
    uint32_t transfer_failures;
    uint32_t without_progress;
    uint32_t backoff_ms;
    uint64_t retry_ns;      /* WAITING: not before */
    uint64_t give_up_ns;    /* WAITING, RESERVING: then the request fails */
    uint32_t blocks;        /* counted against the decode node until its next load report, */
    uint32_t local_tokens;  /* and what it is likely to compute of the prompt; */
    uint64_t loads_seen;    /* that is the one after so many */
    uint32_t tokens;        /* counted against the prefill node while it computes */
    uint64_t tried[ROUTER_NODES_MAX / 64]; /* nodes that refused it */
    uint64_t placed_ns;        /* RESERVE was sent */
    uint32_t guessed_tokens;   /* of its text, believed to be in the decode node's cache */
    uint32_t local_max_tokens; /* as RESERVE said */
    bool is_known_there;       /* the decode node is known to have its prompt */
    uint32_t grant_first;      /* as RESERVED said: the first block that the prefill node must send */
    uint32_t ticket_bytes;
    uint8_t ticket[TICKET_BYTES_MAX];
};

struct sequence {
    bool done;
    uint8_t pending_finish; /* the prefill node says its first token is the last; the decode node,
                             * whose word also says what was moved, has not repeated it yet */
    uint32_t output_count;
    uint32_t *output; /* [max_tokens] */
};

struct request {
    struct request *next, **link; /* in the list of live ones, oldest first; later the graveyard */
    uint64_t handle;
    uint64_t arrival_ns, deadline_ns;
    uint32_t prompt_count;
    uint32_t *prompt;
    struct sampling_params params; /* arrays point into this allocation */
    int32_t priority;
    uint64_t cache_salt;
    uint32_t name_count, name_block_tokens;
    struct kv_hash *names;         /* [name_count] of the prompt's full blocks; points into this allocation */
    bool has_prompt_logprobs;      /* they were passed on, or not asked for */
    uint32_t prompt_logprobs_next;
    uint32_t held_count, held_capacity;
    struct ctl_token *held;        /* tokens that came before the prompt's log-probabilities */
    uint32_t first_leg;            /* list through next_of_request */
    uint32_t sequences_left;
    struct router_route route;
    char cable[CABLE_CHARS_MAX];
    struct sequence sequences[];   /* [params.n] */
};

struct node_entry {
    bool up;
    uint32_t role; /* enum node_role */
    uint32_t block_tokens, block_count, sequences_max;
    struct ctl_load load;
    bool has_load;
    uint64_t loads;          /* reports since the handle came into use */
    uint32_t pending_blocks; /* of legs placed since its last report */
    uint32_t own_tokens;     /* prompt tokens of our legs that it computes */
    uint32_t own_legs;
    uint32_t pending_tokens; /* of legs placed since its last report that it is likely to compute itself */
    struct prefix_guess *guess; /* NULL: nothing is believed of it */
};

struct suspect {
    uint32_t prefill_node, decode_node;
    uint64_t until_ns;
};
#define SUSPECTS_MAX 64u

struct router_core {
    struct router_core_config config;
    uint64_t now_ns;
    uint64_t next_deadline_ns;
    uint64_t leg_counter;
    bool draining;
    struct node_entry *nodes; /* [nodes_max] */
    struct leg *legs;         /* [legs_max] */
    uint32_t legs_max, leg_cursor;
    uint32_t sequences_live;
    struct request *head, **tail;
    struct request *graveyard;
    uint32_t *dead_legs; /* [legs_max] slots to free at the next step */
    uint32_t dead_leg_count;
    uint32_t waiting_legs;
    uint32_t name_block_tokens;  /* of the nodes that are up; 0: none has been yet */
    uint32_t tail_capacity;
    struct kv_hash *tail_names;  /* [tail_capacity] scratch */
    uint64_t hold_ns;            /* mean time of a leg on its decode node; 0: not known */
    uint64_t handover_token_ns;  /* mean time a moved token added after the first token; 0: none */
    struct suspect suspects[SUSPECTS_MAX];
    struct router_action *actions;
    uint32_t action_count, action_capacity;
    struct router_core_stats stats;
    char message[512]; /* of the FINISHED being made; actions copy none: one per step is enough */
};

/* --- router_core.c, for the other parts */

/* Tells the client that a sequence ended; its leg is the caller's affair. Ends the request
 * with its last one, and all legs with that. */
void router_sequence_end(struct router_core *core, struct request *request, uint32_t index, uint8_t finish);

struct router_action *router_action_add(struct router_core *core, enum router_action_kind kind);
void router_finish(struct router_core *core, struct request *request, uint8_t code, uint32_t retry_after_ms,
                   const char *message);
void router_want_tick(struct router_core *core, uint64_t at_ns);

/* The live leg of that id; NULL: none. */
struct leg *router_leg_find(struct router_core *core, struct leg_id id);

/* A node broke the rules: it loses the leg, which is placed again. */
void router_leg_take_back(struct router_core *core, struct leg *leg, const char *why);

/* --- router_reserve.c */

/* The decode node holds the leg's blocks. */
void router_reserved(struct router_core *core, uint32_t node, const struct ctl_reserved *reserved);

/* --- router_cache.c */

/* node  counted in stats already. */
void router_cache_node_up(struct router_core *core, struct node_entry *node);
void router_cache_node_down(struct node_entry *node);

/* How many names a prompt has, and finds them: the event's, or hashed here. */
uint32_t router_cache_name_count(const struct router_core *core, uint32_t prompt_count);
void router_cache_name(struct router_core *core, struct request *request, const struct router_event *event);

/* Tokens of the leg's text that are believed to be cached on the node: less than all of them. */
uint32_t router_cache_find(const struct router_core *core, const struct leg *leg, uint32_t node);

/* The node has the leg's prompt; or the prompt and output of a sequence that has ended. */
void router_cache_prompt_is_at(struct router_core *core, const struct leg *leg, uint32_t node);
void router_cache_sequence_is_at(struct router_core *core, const struct request *request, const struct sequence *sequence,
                                 uint32_t node);

/* --- router_cost.c */

bool router_node_can_take(const struct node_entry *node, enum node_role role);

/* Blocks that the leg takes from the node's free ones. */
uint32_t router_leg_blocks(const struct leg *leg, const struct node_entry *node, uint32_t cached_tokens);

/* Seconds until the prefill node has the leg's first token; without guesses, until it begins. */
double router_cost_prefill(const struct router_core *core, const struct leg *leg, uint32_t index);

/* The same on the best one, and the way there; negative: there is none. */
double router_cost_remote(const struct router_core *core, const struct leg *leg);

/* remote_s  router_cost_remote(): the node need not do what others do sooner. */
double router_cost_decode(const struct router_core *core, const struct leg *leg, uint32_t index, uint32_t cached_tokens,
                          double remote_s);

/* Up to how many missing tokens the decode node is predicted to be better off computing itself. */
uint32_t router_cost_local_max(const struct router_core *core, const struct leg *leg, uint32_t index, uint32_t cached_tokens,
                               double remote_s);

/* --- router_place.c */

static inline struct leg_id leg_id_of(const struct router_core *core, const struct leg *leg)
{
    return (struct leg_id){.hi = core->config.router_boot_id, .lo = leg->lo};
}

/* Prompt and output: what must be computed before the leg's next token. */
static inline uint32_t router_leg_tokens(const struct leg *leg)
{
    return leg->request->prompt_count + leg->request->sequences[leg->sequence_first].output_count;
}

/* Cuts a leg for sequences first .. first+count-1 of the request; it waits to be placed. */
struct leg *router_leg_create(struct router_core *core, struct request *request, uint32_t first, uint32_t count);

/* The leg leaves its decode node's books. */
void router_leg_uncount_decode(struct router_core *core, struct leg *leg);

/* Takes the leg off the books. Its nodes are told by the caller, where they must be. */
void router_leg_end(struct router_core *core, struct leg *leg);

/* Tells both nodes of a leg to drop it, then ends it. */
void router_leg_cancel(struct router_core *core, struct leg *leg);

/* Tries to place a WAITING leg now; it goes to RESERVING, stays WAITING with a later
 * retry_ns, or its request fails. */
void router_leg_place(struct router_core *core, struct leg *leg);

/* Is there a decode node that may take the leg and has not refused it? */
bool router_leg_has_choice(const struct router_core *core, const struct leg *leg);

/* Hands a reserved leg to a prefill node. */
void router_leg_prefill(struct router_core *core, struct leg *leg);

/* The leg broke: cuts new ones for its unfinished sequences and ends it. Its nodes are told
 * by the caller. why: for the client, if the request cannot go on. */
void router_leg_replace(struct router_core *core, struct leg *leg, uint8_t code, const char *why);

void router_suspect(struct router_core *core, uint32_t prefill_node, uint32_t decode_node);

#endif
