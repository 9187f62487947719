/* router_core: every decision of the router: where a request runs, and where it runs next.
 * Flow:    clients, Attach streams -> [router_core] -> Attach streams, clients
 * Thread:  the router's core thread only.
 * Memory:  its tables are carved at create; a request's tokens are one allocation when it is
 *          accepted and freed when it ends.
 *
 * Facts in, wishes out. Speaks token ids only: text, stop strings and sockets are the
 * server's. Reads no clock; same events, same actions.
 *
 * Every accepted request ends in exactly one FINISHED, whatever dies. Its tokens are emitted
 * once each, in order: the core keeps what was emitted and resumes a broken leg after it. */
#ifndef BATON_ROUTER_ROUTER_CORE_H
#define BATON_ROUTER_ROUTER_CORE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "control/ctl_msg.h"
#include "kv/kv_hash.h"

struct router_core;

#define ROUTER_NODES_MAX 256u

struct router_core_config {
    uint64_t router_boot_id;     /* random; the high half of every leg id */
    uint32_t requests_max;       /* accepted at once; one more is RESOURCE_EXHAUSTED */
    uint32_t sequences_max;      /* of all accepted requests together; >= SAMPLING_N_MAX */
    uint32_t nodes_max;          /* node handles are 0 .. nodes_max-1, at most ROUTER_NODES_MAX */
    uint32_t local_prefill_tokens; /* where at most so many tokens are missing, the decode node computes them */
    bool predict_local;          /* and where that is predicted to be faster; needs guess_blocks_max */
    uint32_t guess_blocks_max;   /* blocks of a node's cache that are remembered, to place requests where
                                    their prompts are; 0: caches are not looked at */
    uint64_t reserve_wait_ns;    /* how long new work may wait for blocks before it is refused */
    uint64_t resume_wait_ns;     /* how long a broken request may wait for a node to resume on */
    uint64_t suspect_ttl_ns;     /* a prefill-decode pair whose transfer failed is avoided so long */
};

enum router_event_kind {
    ROUTER_EV_SUBMIT,        /* request, tokens, params, priority, cache_salt, deadline */
    ROUTER_EV_CLIENT_GONE,   /* request: cancelled or disconnected */
    ROUTER_EV_SEQUENCE_STOP, /* request, sequence: a stop string was seen; it needs no more tokens */
    ROUTER_EV_NODE_UP,       /* node, msg: its NODE_HELLO, checked by the server */
    ROUTER_EV_NODE_DOWN,     /* node: its Attach stream broke */
    ROUTER_EV_MESSAGE,       /* node, msg */
    ROUTER_EV_TICK,
    ROUTER_EV_DRAIN,         /* refuse new work, finish what is accepted */
};

struct router_event {
    enum router_event_kind kind;
    uint64_t now_ns;
    uint64_t request;           /* the server's handle, unique for the life of the process */
    uint32_t sequence;
    uint32_t node;
    const struct ctl_msg *msg;
    uint32_t prompt_count;
    const uint32_t *prompt;     /* [prompt_count], copied */
    const struct sampling_params *params; /* validated; copied, arrays too */
    int32_t priority;
    uint64_t cache_salt;        /* 0: shared by all */
    uint32_t name_block_tokens; /* 0: no names; the core hashes the prompt itself */
    const struct kv_hash *names; /* [prompt_count / name_block_tokens] of the prompt's full blocks */
    uint64_t deadline_ns;       /* UINT64_MAX: none */
};

enum router_action_kind {
    ROUTER_ACT_SEND,            /* msg to node */
    ROUTER_ACT_EMIT,            /* request: token is the next of its sequence */
    ROUTER_ACT_SEQUENCE_END,    /* request: token.sequence ended with token.finish, after all it emitted */
    ROUTER_ACT_PROMPT_LOGPROBS, /* request: logprobs, before its first EMIT, once */
    ROUTER_ACT_FINISHED,        /* request is over: code, message, retry_after_ms, route; its handle is dead */
};

/* Where a request ran, for the client's --json and the log. */
struct router_route {
    uint32_t prefill_node;     /* of the last leg; UINT32_MAX: computed on the decode node */
    uint32_t decode_node;      /* UINT32_MAX: never placed */
    uint32_t legs;             /* 1, and one more for each resume */
    const char *cable;         /* "shm", "tcp", "" */
    uint64_t kv_bytes;
    uint64_t prefill_queue_ns, prefill_compute_ns, transfer_ns;
    uint64_t handover_ns;      /* from the prefill node's first token until its blocks had landed, as
                                  the router heard of both: what of the transfer was not hidden */
    uint32_t cached_prompt_tokens;  /* found in the decode node's cache by the last leg that began
                                       with the prompt */
    uint32_t prefill_cached_tokens; /* of prompt and output, in the prefill node's cache; the last leg's */
};

struct router_action {
    enum router_action_kind kind;
    uint32_t node;
    struct ctl_msg msg;
    uint64_t request;
    struct ctl_token token;
    struct ctl_prompt_logprobs logprobs;
    uint8_t code;              /* FINISHED: enum status_code */
    const char *message;
    uint32_t retry_after_ms;
    struct router_route route;
};

/* Borrowed from the core; good until the next router_core_step(). */
struct router_actions {
    uint32_t count;
    const struct router_action *list;
};

/* accepted == finished + failed + cancelled + live, at every moment. */
struct router_core_stats {
    uint64_t accepted, finished, failed, cancelled, refused, resumed_legs, late_messages, duplicate_tokens;
    uint64_t cache_tokens_asked, cache_tokens_guessed, cache_tokens_found; /* of reserved legs: all, believed
                                    to be in the decode node's cache, found there */
    uint32_t live, waiting, nodes_prefill, nodes_decode;
    bool draining;
};

NODISCARD status_t router_core_create(const struct router_core_config *config, struct router_core **ret_core,
                                      struct diag *diag);
void router_core_destroy(struct router_core *core);

NODISCARD status_t router_core_step(struct router_core *core, const struct router_event *event,
                                    struct router_actions *ret_actions);

uint64_t router_core_deadline_ns(const struct router_core *core);

struct router_core_stats router_core_stats(const struct router_core *core);

/* What the core last heard of a node; false if the handle is not up. */
bool router_core_node(const struct router_core *core, uint32_t node, struct ctl_load *ret_load);

void router_core_audit(const struct router_core *core);

#endif
