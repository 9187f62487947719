/* ctl_msg: what the router and a node say to each other on the Attach stream.
 * Flow:    router_core -> [ctl_msg] -> decode_core, prefill_core, and back
 * Thread:  any; plain values.
 * Memory:  every pointer inside a message is a borrow, good for the call that hands the
 *          message over. Who wants to keep something copies it.
 *
 * The cores speak in these values; control/ctl_codec.h turns them into the bytes of
 * proto/baton/control/v1/control.proto and back.
 *
 * A request is placed on nodes as one or more legs. A leg is one attempt to serve some of
 * the request's sequences: it has a fresh 128-bit id, is never reused, and names the
 * transfer of its blocks as well. After a death the router cuts a new leg; whatever still
 * arrives about the old one is unknown and ignored. */
#ifndef BATON_CONTROL_CTL_MSG_H
#define BATON_CONTROL_CTL_MSG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "model/sampling_params.h"

/* Grows when a message changes so that an older peer would misread it. */
#define CTL_PROTOCOL_VERSION 2u

struct leg_id {
    uint64_t hi; /* the router's boot id: no two routers issue the same leg */
    uint64_t lo; /* counts up within one router */
};

static inline bool leg_id_equal(struct leg_id a, struct leg_id b) { return a.hi == b.hi && a.lo == b.lo; }

enum node_role { NODE_ROLE_PREFILL = 1, NODE_ROLE_DECODE = 2 };

/* Why a sequence ended, as the node that sampled its last token sees it. */
enum finish_reason {
    FINISH_NONE = 0,
    FINISH_STOP = 1,   /* an end token or a stop token; stop strings are the router's */
    FINISH_LENGTH = 2, /* max_tokens or the context is full */
};

struct token_alternative {
    uint32_t token;
    float logprob;
};

/* Log-probability of one chosen token, and of the best ones beside it. */
struct token_logprob {
    float logprob;
    uint32_t rank; /* 1 is the most likely */
    uint32_t alternative_count;
    struct token_alternative alternatives[SAMPLING_LOGPROBS_MAX];
};

/* One output token of one sequence. */
struct ctl_token {
    struct leg_id leg;
    uint32_t sequence;  /* index within the request, 0 .. n-1 */
    uint32_t position;  /* output position, 0 is the first token: the router drops what it has */
    uint32_t token;
    uint8_t finish;     /* enum finish_reason: this is the sequence's last token */
    bool has_logprob;
    struct token_logprob logprob;
};

/* What a node must know to compute a leg. The same in RESERVE and in PREFILL. */
struct ctl_work {
    struct leg_id leg;
    uint32_t sequence_first; /* the leg serves sequences sequence_first .. +sequence_count-1 */
    uint32_t sequence_count; /* > 1 only when output_count is 0 */
    uint32_t prompt_count;
    const uint32_t *prompt;  /* [prompt_count], at least one */
    uint32_t output_count;   /* tokens the client already has: the leg resumes after them */
    const uint32_t *output;  /* [output_count] */
    struct sampling_params params; /* params.n is the request's; stop_tokens, logit_bias borrowed */
    uint64_t age_ns;         /* since the request came to the router; clocks are not shared, ages are */
    bool resumed;            /* the client already streams: goes before new work, is not refused for load */
    int32_t priority;        /* higher goes first and is preempted last; 0 where nobody says */
    uint64_t cache_salt;     /* kv_hash_root(): blocks are shared among equal salts only; 0: all */
};

enum ctl_kind {
    CTL_NONE = 0,
    /* router -> node */
    CTL_ROUTER_HELLO,   /* first message */
    CTL_RESERVE,        /* decode: reserve blocks, answer RESERVED or REFUSED */
    CTL_PREFILL,        /* prefill: compute, push to the ticket's decode node */
    CTL_PREFILL_LOST,   /* decode: the leg's prefill node is gone or gave up; answer LEG_FAILED
                           unless its blocks have landed already */
    CTL_CANCEL,         /* either: free the leg, or one sequence of it; no answer */
    /* node -> router */
    CTL_NODE_HELLO,     /* first message */
    CTL_RESERVED,       /* decode: the blocks are held; here is the ticket, or word that it computes the
                           prompt itself (which it may leave out where the router told it to) */
    CTL_REFUSED,        /* either: the leg was not taken; nothing is held */
    CTL_PROMPT_LOGPROBS,/* whoever computed the prompt; before its first token */
    CTL_TOKENS,         /* tokens of one step, all sequences; prefill sends first tokens so too */
    CTL_PREFILL_DONE,   /* prefill: the decode node acknowledged the blocks; decode: they landed,
                         * said ahead of its tokens, which may be all before the other word */
    CTL_PREFILL_FAILED, /* prefill: gave up, nothing is held */
    CTL_LEG_FAILED,     /* decode: the leg ended here without its last token, nothing is held */
    CTL_LOAD,           /* when it changed, at most every few milliseconds */
    CTL_KIND_COUNT
};

struct ctl_router_hello {
    uint32_t protocol_version;
    uint64_t router_boot_id;
};

struct ctl_node_hello {
    uint32_t protocol_version;
    uint64_t node_id;      /* random per node name; stays over restarts */
    uint64_t boot_epoch;   /* grows with each start */
    uint32_t role;         /* enum node_role */
    const char *node_name; /* for people */
    const char *model_name;
    uint8_t model_hash[32];
    uint32_t fingerprint_bytes;
    const uint8_t *fingerprint; /* encoded layout fingerprint (transfer/fingerprint.h) */
    uint32_t vocab_size;
    uint32_t context_tokens;
    uint32_t block_tokens;
    uint32_t block_count;
    uint32_t sequences_max; /* decode: running at once; prefill: jobs held at once */
};

struct ctl_reserve {
    struct ctl_work work;
    bool local_prefill;  /* compute the prompt here, whatever it costs; no ticket */
    uint32_t local_max_tokens; /* else: compute it here if at most so many of its tokens are missing from
                                  the cache; 0: never */
    uint32_t wait_ms;    /* how long the leg may wait for blocks before REFUSED; 0: do not wait */
};

struct ctl_prefill {
    struct ctl_work work;
    uint32_t ticket_bytes;
    const uint8_t *ticket;
    uint32_t grant_first; /* as RESERVED said */
};

struct ctl_cancel {
    struct leg_id leg;
    bool one_sequence; /* only `sequence`, the others go on */
    uint32_t sequence;
};

struct ctl_reserved {
    struct leg_id leg;
    bool is_local;          /* the decode node computes the prompt itself; there is no ticket */
    uint32_t cached_tokens; /* of prompt and output, found in the decode node's cache */
    uint32_t grant_first;   /* the block of the sequence that the grant's index 0 is: those before it are
                               cached, or lie before every window */
    uint32_t ticket_bytes;
    const uint8_t *ticket;
};

/* REFUSED, PREFILL_FAILED, LEG_FAILED. */
struct ctl_failure {
    struct leg_id leg;
    uint8_t code;            /* enum status_code */
    uint32_t retry_after_ms; /* 0: no hint */
    const char *message;     /* says what to do; never NULL */
};

struct ctl_prompt_logprobs {
    struct leg_id leg;
    uint32_t first; /* prompt index of entries[0]; index 0 has none, so it is >= 1 */
    uint32_t count;
    const struct token_logprob *entries; /* [count] */
};

struct ctl_tokens {
    uint32_t count;
    const struct ctl_token *tokens; /* [count] */
};

struct ctl_prefill_done {
    struct leg_id leg;
    const char *cable;     /* "shm", "tcp" */
    uint64_t bytes;        /* KV bytes moved */
    uint64_t queue_ns;     /* from arrival at the node to its first chunk */
    uint64_t compute_ns;   /* first chunk to first token */
    uint64_t transfer_ns;  /* first push to acknowledgement */
    uint32_t cached_tokens; /* prefill: of prompt and output, not computed because its cache had them */
};

struct ctl_load {
    uint32_t blocks_total, blocks_free, blocks_held, blocks_cached, blocks_quarantined;
    uint32_t sequences_running; /* decode: in the batch; prefill: jobs being computed */
    uint32_t sequences_waiting; /* for blocks, for KV, or preempted */
    uint64_t tokens_queued;     /* prompt tokens still to be computed here */
    uint32_t tokens_per_s;      /* measured prefill rate, 0 while unknown */
    bool draining;              /* give it nothing new */
    uint64_t cache_tokens_asked, cache_tokens_found; /* since boot: of prompts, in its prefix cache and tiers */
};

struct ctl_msg {
    enum ctl_kind kind;
    union {
        struct ctl_router_hello router_hello;
        struct ctl_reserve reserve;
        struct ctl_prefill prefill;
        struct leg_id prefill_lost;
        struct ctl_cancel cancel;
        struct ctl_node_hello node_hello;
        struct ctl_reserved reserved;
        struct ctl_failure failure; /* REFUSED, PREFILL_FAILED, LEG_FAILED */
        struct ctl_prompt_logprobs prompt_logprobs;
        struct ctl_tokens tokens;
        struct ctl_prefill_done prefill_done;
        struct ctl_load load;
    };
};

/* "RESERVE"; "?" for a number that is none. */
const char *ctl_kind_name(enum ctl_kind kind);

#endif
