/* endpoint_private: what the two halves of the endpoint share. endpoint.c holds what callers
 * run on their own threads; the transfer thread runs endpoint_thread.c (its loop and the commands),
 * endpoint_wishes.c, endpoint_cables.c and endpoint_events.c.
 * Thread:  fields say whose they are. The mutex guards free lists, the command ring and what
 *          callers must see at once; it is held for a few hundred nanoseconds, never over a
 *          system call or a callback. A lock and not messages alone, because a caller of
 *          grant, send_begin and push needs its answer (a slot, or "full") before it returns. */
#ifndef BATON_TRANSFER_ENDPOINT_PRIVATE_H
#define BATON_TRANSFER_ENDPOINT_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "transfer/link_core.h"
#include "transfer/link_wire.h"
#include "transfer/loop.h"

#define CABLES_MAX LINK_CABLES_MAX
#define ENDPOINT_STRINGS 7

enum command_kind {
    CMD_GRANT, CMD_REVOKE, CMD_SEND_BEGIN, CMD_PUSH, CMD_COMMIT, CMD_ABORT,
    CMD_STREAM_ACCEPT, CMD_STREAM_MESSAGE, CMD_STREAM_CLOSED,
};

struct command {
    enum command_kind kind;
    uint32_t slot;
    uint32_t generation; /* of the send or link */
    uint64_t grant_epoch; /* revoke: whose */
    status_t status;
    void *pointer; /* push: chain of records; commit, message: heap bytes, owned; accept: stream */
    size_t bytes;
};

struct grant_data {
    /* caller's until CMD_GRANT is posted, then the transfer thread's */
    uint32_t *blocks; /* [grant_blocks_max] */
    uint32_t count;
    void *user;
    uint32_t lease_ms;
    uint64_t grant_epoch;
    uint8_t secret[KV_SECRET_BYTES];
    /* mutex */
    bool used, revoke_posted;
    kv_xfer_id_t xfer_id;
    uint32_t next_free;
    /* transfer thread */
    uint32_t link;
    uint64_t began_ns, bytes;
    const char *cable;
    const struct cable_slot *carrier; /* whose frames came; NULL: none has yet, or the link is closed */
    char broke_text[200];
    uint8_t *payload;
    size_t payload_bytes;
    uint32_t holds;  /* copies under way into its blocks */
    bool final_held; /* its last event waits for them */
    struct link_wish final;
    char final_text[256];
};

struct send_data {
    /* caller's until CMD_SEND_BEGIN is posted, then the transfer thread's */
    struct kv_ticket ticket; /* block_count is read by callers too; constant while open */
    void *user;
    /* mutex */
    uint32_t generation;
    bool open, committed, abort_posted;
    uint64_t slices_pushed;
    uint32_t *layer_slices; /* [layer_count] */
    uint32_t next_free;
    /* transfer thread */
    bool live, streaming, dropped;
    uint32_t link;
    struct cable_slot *cable; /* that carries it, chosen when it begins to stream */
    bool is_used;             /* the cable was told of it */
    char broke_text[200];
    struct kv_cable_push *waiting_first, *waiting_last;
    uint32_t at_cable; /* pushes that the cable holds */
    bool final_held;   /* its last event waits for them */
    struct link_wish final;
    char final_text[256];
    bool word_held; /* a one-sided cable: "we are quiet" waits for them too */
    struct link_wish word;
    uint64_t began_ns, bytes;
    uint8_t *payload;
    size_t payload_bytes;
};

struct cable_slot {
    struct kv_endpoint *endpoint;
    const struct kv_cable_ops *ops;
    struct kv_cable *cable;
    struct kv_cable_host host;
};

struct link_data {
    /* mutex */
    uint32_t generation;
    bool used, closed_posted;
    uint32_t next_free;
    /* transfer thread */
    bool open; /* dialled or accepted, and not closed since */
    void *stream;
    bool is_sender;
    char address[KV_ADDRESS_CHARS_MAX + 1]; /* P: as dialled */
    struct cable_slot *cable; /* connecting (P) or connected */
    bool cable_up;
    struct cable_slot *warm; /* warms up (P), or did (D), beside it */
    bool warm_connects;      /* P: it was told of the link */
    uint32_t next_choice; /* P: of the endpoint's cables, after the one being tried */
    bool has_token;
    uint8_t token[KV_CABLE_TOKEN_BYTES];
    struct link_hello_ack ack; /* P: D's offers */
    uint64_t peer_identity;    /* D: of P's hello */
    uint32_t offered;          /* bits of the endpoint's cables that D offered */
    struct kv_layout peer_layout; /* ours, unless both convert; from the peer's hello on */
    bool converts;             /* it is another */
    bool is_deaf;              /* its stream refused a message: the link is to be closed */
    char reason[160];          /* why this cable */
    char warm_reason[160];
    char note[768];            /* why the link broke, for the events of its transfers */
};

struct kv_endpoint {
    /* constant after create */
    struct kv_layout layout;
    struct kv_fingerprint fingerprint;
    uint8_t fingerprint_hash[KV_FINGERPRINT_HASH_BYTES], convert_hash[KV_FINGERPRINT_HASH_BYTES];
    char node_id[KV_NODE_ID_CHARS_MAX + 1];
    uint64_t boot_epoch;
    char link_address[KV_ADDRESS_CHARS_MAX + 1];
    char host_id[LINK_HOST_ID_CHARS_MAX + 1];
    const struct kv_cable_ops *const *cable_table;
    struct kv_endpoint_pool pool;
    uint32_t block_count;
    uint64_t slice_bytes;
    uint32_t frame_blocks; /* blocks that one frame carries at most */
    struct kv_endpoint_limits limits;
    kv_event_fn on_event;
    void *on_event_context;
    struct kv_stream_ops stream;
    void *stream_context;
    char *strings[ENDPOINT_STRINGS]; /* our copies of the configuration's */
    struct cable_slot cables[CABLES_MAX];
    uint32_t cable_count;
    struct kv_loop *loop;
    pthread_t thread;
    bool thread_started;
    atomic_bool stop;

    pthread_mutex_t mutex;
    bool mutex_made;
    /* mutex */
    struct command *ring;
    uint32_t ring_size, ring_first, ring_count;
    bool wake_posted;
    uint32_t free_grant, free_send, free_link;
    struct kv_cable_push *free_push;
    uint32_t free_push_count;
    uint64_t *granted; /* [block_count] bits: in a grant that has not ended */
    uint64_t next_grant_epoch;
    uint64_t ignored_calls; /* revokes and aborts of what is over */
    struct kv_endpoint_stats published;

    struct grant_data *grants;
    struct send_data *sends;
    struct link_data *links;
    struct kv_cable_push *pushes;
    uint32_t *grant_blocks;
    uint32_t *send_layers;

    /* transfer thread */
    void *core_memory;
    struct link_core *core;
    struct link_wishes wishes;
    bool settling;
    const struct link_msg *message_now; /* the message whose wishes are carried out */
    uint64_t heartbeats;
    uint64_t bytes_pushed, cables_refused;
    uint64_t messages_unheard; /* for a cable that we do not have on that link */
    bool any_is_deaf;
    bool memory_is_kept;   /* until the process ends */
    uint8_t *wire_buffer;  /* [KV_LINK_MESSAGE_BYTES_MAX] */
    uint8_t *wire_scratch; /* [LINK_WIRE_SCRATCH_BYTES] */
};

/* endpoint_thread.c */
void *endpoint_thread_main(void *endpoint);

/* endpoint_wishes.c, on the thread */
/* Carries out the wishes so far; called from within itself it leaves them to the outer call. */
void endpoint_settle(struct kv_endpoint *e);
/* Sends the ABORT or ABORT_ACK that waited until the cable had nothing of this send under way. */
void endpoint_word_send(struct kv_endpoint *e, struct send_data *send);
void endpoint_link_open(struct link_data *link, const struct kv_layout *ours, bool is_sender, void *stream);
void endpoint_close_all(struct kv_endpoint *endpoint); /* at its end */

/* endpoint_cables.c, on the thread but for the first */
void endpoint_cable_host_init(struct cable_slot *slot);
void endpoint_cable_try_next(struct kv_endpoint *e, uint32_t link_slot);
/* P: what D said of this cable; NULL: it offers none. */
const struct kv_cable_offer *endpoint_offer_of(const struct link_data *link, const struct cable_slot *slot);
/* The peer's fingerprint as it said it. False: not one to exchange blocks with. */
bool endpoint_peer_layout(struct kv_endpoint *e, struct link_data *link, const uint8_t wire[KV_FINGERPRINT_WIRE_BYTES]);
/* What the peer's cable said, to ours of that name. */
void endpoint_cable_hear(struct kv_endpoint *e, uint32_t link_slot, const struct link_cable_msg *msg);
/* Closes the links whose stream refused what a cable said. */
void endpoint_deaf_close(struct kv_endpoint *e);
/* Tells a cable that wants to know. change: +1, -1 */
void endpoint_cable_used(const struct cable_slot *slot, uint32_t link_slot, int change);
/* P: the cable for a send that begins to stream now. */
struct cable_slot *endpoint_cable_choose(struct kv_endpoint *e, uint32_t link_slot);
void endpoint_pushes_to_cable(struct kv_endpoint *e, struct send_data *send);
void endpoint_pushes_drop(struct kv_endpoint *e, struct send_data *send);
void endpoint_push_free(struct kv_endpoint *e, struct kv_cable_push *push);

/* endpoint_events.c, on the thread */
void endpoint_stats_publish(struct kv_endpoint *e);
void endpoint_emit(struct kv_endpoint *e, const struct kv_event *event);
void endpoint_emit_grant(struct kv_endpoint *e, const struct link_wish *wish);
/* The same later: when nothing is copied into the grant's blocks, or out of the send's, any more. */
void endpoint_hold_grant(struct kv_endpoint *e, const struct link_wish *wish);
void endpoint_hold_send(struct kv_endpoint *e, const struct link_wish *wish);
void endpoint_emit_send(struct kv_endpoint *e, const struct link_wish *wish);

/* endpoint.c: slots, under the mutex */
void endpoint_link_release(struct kv_endpoint *endpoint, uint32_t link);
uint32_t endpoint_link_take(struct kv_endpoint *endpoint); /* LINK_NONE: none is free */

#endif
