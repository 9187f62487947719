/* transfer: moves the KV blocks of a prompt from a prefill process P into blocks that a
 * decode process D has granted. Two parts: the endpoint, which nodes use; and the ops table
 * of a cable, which every way of moving bytes implements.
 *
 * Flow:    D kv_endpoint_grant -> ticket -> router -> P kv_endpoint_send_begin, one push per
 *          layer and chunk, commit -> D LANDED; P ACKED.
 * Thread:  every kv_endpoint_* call may come from any thread, never blocks and never waits
 *          for a peer. One transfer thread per endpoint owns all sockets and cables; calls
 *          are posted to it through a bounded ring, answers come as events on that thread.
 * Memory:  everything is taken in kv_endpoint_create, by the limits in the configuration,
 *          except the payload of a commit (at most KV_PAYLOAD_BYTES_MAX).
 *
 * Who places the bytes: D. P names "the n-th block of this grant", never an address. D looks
 * up the grant by (xfer_id, grant_epoch), checks layer, index and that the slice has not
 * been there before, and only then reads bytes into its own block. */
#ifndef BATON_TRANSFER_TRANSFER_H
#define BATON_TRANSFER_TRANSFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kv/kv_layout.h"
#include "kv/kv_memory.h"
#include "transfer/fingerprint.h"
#include "transfer/ticket.h"

/* ---------------------------------------------------------------- the endpoint */

struct kv_endpoint;

/* A transfer that this process sends; 0 is none. A value of a finished transfer is known
 * as stale: calls with it are counted and ignored. */
typedef struct { uint64_t value; } kv_send_t;

#define KV_PAYLOAD_BYTES_MAX (64u * 1024u)

/* The KV pool's memory. Allocated here it lies in a memfd, which `shm` needs on the sending
 * side; any other memory works with `tcp`, and for a receiver with both. */
struct kv_endpoint_pool {
    void *base;   /* page aligned; with `memory` an address of the device, which nothing here looks into */
    size_t bytes; /* as asked for */
    int memfd;    /* -1 when the memory is not ours */
    struct kv_memory *memory; /* how to get at a pool that the CPU does not see; NULL: base is host memory.
                               * Borrowed until the endpoint is destroyed, which waits for its own ops. */
};

/* Takes `bytes` of zeroed memory in a sealed memfd and touches every page, so that a lack of
 * memory shows now. Returns owned. Errors: RESOURCE_EXHAUSTED (node), cause errno. */
NODISCARD status_t kv_endpoint_pool_alloc(size_t bytes, struct diag *diag, struct kv_endpoint_pool *ret_pool);
/* After every endpoint that was created over it is destroyed. Takes a zeroed pool too. */
void kv_endpoint_pool_free(struct kv_endpoint_pool *pool);

enum kv_event_kind {
    /* On D; every grant ends in exactly one of LANDED, or FENCED, or FAILED with fenced
     * set. A FAILED without it is followed by FENCED. */
    KV_EVENT_LANDED, /* all slices are in the blocks, checksums hold; payload is set */
    KV_EVENT_FAILED, /* status says why: DATA_LOSS, UNAVAILABLE (P is gone), ABORTED (P gave
                      * up), DEADLINE_EXCEEDED (lease). Not sent for a revoke. */
    KV_EVENT_FENCED, /* answer to kv_endpoint_revoke, or the end of a FAILED: from here on no
                      * byte of this transfer can land; the blocks may be used again */

    /* On P; every send ends in exactly one of ACKED and SEND_FAILED: from here on the
     * source blocks are no longer read. */
    KV_EVENT_PUSH_DONE,   /* one kv_endpoint_push was taken by the cable: room for more. The
                           * blocks are held on. No event for pushes after an abort. */
    KV_EVENT_ACKED,       /* D has it all, checked */
    KV_EVENT_SEND_FAILED, /* status: ABORTED after kv_endpoint_abort or when D revoked,
                           * UNAVAILABLE, DATA_LOSS, FAILED_PRECONDITION (layout, epoch),
                           * NOT_FOUND (the grant is over), PERMISSION_DENIED (secret),
                           * RESOURCE_EXHAUSTED (links_max), DEADLINE_EXCEEDED */
};

/* What one transfer did; valid in its final event. */
struct kv_transfer_stats {
    uint64_t bytes;       /* of slices that landed (D) or that the cable took (P) */
    uint64_t duration_ns; /* D: grant's first begin to end; P: send_begin to end */
    const char *cable;    /* "shm", "tcp", or "" when none was reached; static */
    const char *reason;   /* why this cable: "same host"; borrows until the callback returns */
};

struct kv_event {
    enum kv_event_kind kind;
    kv_xfer_id_t xfer_id;
    uint64_t grant_epoch;
    kv_send_t send;   /* P's events */
    void *user;       /* as given to grant or send_begin */
    status_t status;  /* FAILED, SEND_FAILED */
    const char *text; /* a sentence for status, or ""; borrows until the callback returns */
    bool fenced;      /* FAILED: the blocks may be used again now */
    uint32_t layer, first, count; /* PUSH_DONE: as pushed */
    const uint8_t *payload;       /* LANDED; borrows until the callback returns */
    size_t payload_bytes;
    struct kv_transfer_stats stats; /* final events */
};

/* On the transfer thread. Must not block; may call kv_endpoint_* except destroy. */
typedef void (*kv_event_fn)(void *context, const struct kv_event *event);

/* The stream of byte messages that carries the link: gRPC in the servers
 * (transfer/link_grpc.h), a socket in tests. All three are called on the transfer thread
 * and must not block. */
struct kv_stream_ops {
    /* P: begins to open the stream to "host:port". Messages may be sent at once; a failure
     * comes as kv_endpoint_stream_closed(link). The stream belongs to `close`. */
    status_t (*dial)(void *context, const char *address, uint64_t link, void **ret_stream);
    /* Borrows message. Messages arrive whole, in order, or the stream closes. */
    status_t (*send)(void *context, void *stream, const void *message, size_t bytes);
    /* Ends the stream, by force, now; after it returns `stream` is not used again. Calls of
     * kv_endpoint_stream_* with this link may still come late: they are ignored. */
    void (*close)(void *context, void *stream);
};

#define KV_LINK_MESSAGE_BYTES_MAX (KV_PAYLOAD_BYTES_MAX + 16u * 1024u)

struct kv_endpoint_limits {     /* 0 takes the default */
    uint32_t links_max;         /* peers at a time, 64 */
    uint32_t grants_max;        /* live and quarantined, 256 */
    uint32_t grant_blocks_max;  /* blocks of one grant, 8192 */
    uint32_t sends_max;         /* 256 */
    uint32_t pushes_max;        /* pushes (of up to 64 blocks each) under way, 2048 */
    uint32_t ring_commands_max; /* 4096 */
    uint64_t heartbeat_ns;      /* 250 ms */
    uint64_t suspect_ns;        /* silence until no new send uses the link, 1 s */
    uint64_t dead_ns;           /* silence until the link is closed by force, 3 s */
    uint64_t connect_ns;        /* dial to ready, 5 s; with nccl alone, on a D that has it and on a P that has it and converts, its init_ns and 5 s */
    uint64_t stall_ns;          /* after commit: without a slice, or without an ack, 10 s */
};

struct kv_endpoint_tls { /* all empty: plain TCP. All three: mutual TLS. */
    const char *cert_file;
    const char *key_file;
    const char *ca_file;
};

enum kv_ucx_mode {
    KV_UCX_OFF,
    KV_UCX_RDMA,          /* lanes of RDMA hardware alone */
    KV_UCX_TRUST_NETWORK, /* UCX's TCP too: whoever reaches its port can write this process's memory */
};

struct ucx_api;

struct kv_ucx_config {
    enum kv_ucx_mode mode;
    const char *library;       /* path of libucp; NULL or "": the loader's search, "libucp.so.0" */
    const struct ucx_api *api; /* tests: instead of a library; borrows until destroy */
};

struct nccl_api;

/* The nccl cable: pools on devices, one communicator of two ranks per link; see cable_nccl.h. */
struct kv_nccl_config {
    bool is_on;
    const char *library;       /* path of libnccl; NULL or "": the loader's search, "libnccl.so.2" */
    uint32_t channels;         /* of a communicator; each takes device memory at both ends and an SM; 0: 4 */
    uint32_t pairs_max;        /* communicators at a time; 0: one for each link */
    uint64_t memory_bytes_max; /* of the device, for all of them; 0: 2 GiB */
    uint64_t init_ns;          /* from the unique id to both ranks up, 0: 15 s */
    uint64_t stall_ns;         /* without a frame passing while one is under way, 0: 5 s */
    const struct nccl_api *api; /* tests: instead of a library; borrows until destroy */
};

struct kv_cable_ops;

struct kv_endpoint_config {
    const char *node_id;      /* <= KV_NODE_ID_CHARS_MAX */
    uint64_t boot_epoch;      /* grows with each start of one node_id; clock_wall_ns() does */
    const char *link_address; /* D: host:port that tickets name. P: "" */
    struct kv_fingerprint fingerprint; /* its layout is the pool's. With `converts` the peer's dtype and order may be others
                                        * if it says so too, and then the link's cable is one that converts: nccl */
    struct kv_endpoint_pool pool;      /* borrows base and memfd until destroy; bytes is a
                                        * whole number of blocks or more */
    const char *cables;     /* "auto" (= "shm,nccl,ucx,tcp", less what is off or not here), or names in order of choice */
    const struct kv_cable_ops *const *cable_table; /* tests: NULL-ended, borrows until destroy; NULL: kv_cables */
    struct kv_ucx_config ucx; /* zeros: off */
    struct kv_nccl_config nccl; /* zeros: off */
    const char *tcp_listen; /* D: "0.0.0.0:0"; port 0 picks one; "" or NULL: no tcp listener */
    const char *uds_dir;    /* D: where the shm cable's socket lies, must exist; NULL: a folder of this user alone */
    struct kv_endpoint_tls tls;
    struct kv_endpoint_limits limits;
    kv_event_fn on_event;
    void *on_event_context;
    struct kv_stream_ops stream; /* dial may be NULL on a pure D */
    void *stream_context;
};

/* Starts the transfer thread. Borrows config's strings during the call. Errors:
 * INVALID_ARGUMENT (node) with a diag naming the field; UNAVAILABLE (node) when an address
 * cannot be listened on. */
NODISCARD status_t kv_endpoint_create(const struct kv_endpoint_config *config, struct diag *diag,
                                      struct kv_endpoint **ret_endpoint);

/* Closes every link by force (peers learn at once) and joins the thread. No event comes
 * after it returns; unfinished transfers end without one. Takes NULL. Not from on_event.
 * False: a library that has the pool's device does not let go of it (an NCCL abort that never returns): pool and
 * kv_memory are not to be destroyed, the process's end frees them. */
bool kv_endpoint_destroy(struct kv_endpoint *endpoint);

/* The address that the tcp listener got, "0.0.0.0:40123"; "" without one. Borrows forever. */
const char *kv_endpoint_tcp_address(const struct kv_endpoint *endpoint);

/* --- D */

/* Lets the holder of the ticket fill blocks[0..count), block i as index i of the grant.
 * blocks      pool block numbers, all different; copied. The caller keeps them reserved and
 *             does not read or write them until the grant's final event.
 * lease_ms    the grant lapses (FAILED, DEADLINE_EXCEEDED) after this long without begin or
 *             a slice; from 1 to 3,600,000
 * ret_ticket  [KV_TICKET_BYTES_MAX], ret_ticket_bytes how many were written
 * Errors      INVALID_ARGUMENT for bounds; ALREADY_EXISTS while the xfer_id is live here;
 *             RESOURCE_EXHAUSTED: too many grants, or the ring is full. */
NODISCARD status_t kv_endpoint_grant(struct kv_endpoint *endpoint, kv_xfer_id_t xfer_id,
                                     const uint32_t *blocks, uint32_t count, uint32_t lease_ms, void *user,
                                     uint8_t *ret_ticket, size_t *ret_ticket_bytes);

/* Ends a grant: cancel, deadline, or the router went away. FENCED follows, unless the
 * grant's final event is already on its way; then this is counted and ignored. Tells P.
 * Cannot fail: room for it was taken with the grant. */
void kv_endpoint_revoke(struct kv_endpoint *endpoint, kv_xfer_id_t xfer_id);

/* --- P */

/* Opens a transfer by its ticket; the link to D is opened when there is none. Events carry
 * ret_send and user. The ticket is copied.
 * Errors: INVALID_ARGUMENT: not a ticket; FAILED_PRECONDITION: for another layout;
 * RESOURCE_EXHAUSTED. */
NODISCARD status_t kv_endpoint_send_begin(struct kv_endpoint *endpoint, const void *ticket, size_t ticket_bytes,
                                          void *user, struct diag *diag, kv_send_t *ret_send);

/* Pushes one layer's slices of blocks [first, first + count) of the grant, out of this
 * endpoint's pool blocks src_blocks[0..count). Each (layer, index) is pushed exactly once.
 * The source slices are final once `mark` (kv/kv_memory.h) has passed, 0: now; they are held until
 * ACKED or SEND_FAILED. A pool without kv_memory takes 0 only. May be called before the link is up:
 * pushes wait. src_blocks is copied.
 * Errors: INVALID_ARGUMENT for bounds or a stale send; RESOURCE_EXHAUSTED: pushes_max are
 * under way, nothing was taken: try again after a PUSH_DONE. */
NODISCARD status_t kv_endpoint_push(struct kv_endpoint *endpoint, kv_send_t send, uint32_t layer,
                                    uint32_t first, const uint32_t *src_blocks, uint32_t count, uint64_t mark);

/* All slices were pushed; payload (opaque, copied) reaches D with LANDED: the first tokens.
 * Errors: INVALID_ARGUMENT: too large, stale; RESOURCE_EXHAUSTED: out of memory. */
NODISCARD status_t kv_endpoint_commit(struct kv_endpoint *endpoint, kv_send_t send, const void *payload,
                                      size_t payload_bytes);

/* Gives up; SEND_FAILED(ABORTED) follows when D has stopped, or the link is gone. Cannot fail. */
void kv_endpoint_abort(struct kv_endpoint *endpoint, kv_send_t send);

/* --- the link's stream, called by its binding, from any thread */

/* D: a peer opened a stream to us. ret_link names it in the calls below.
 * Errors: RESOURCE_EXHAUSTED: links_max. Then the caller closes the stream. */
NODISCARD status_t kv_endpoint_stream_accept(struct kv_endpoint *endpoint, void *stream, uint64_t *ret_link);
/* A whole message came. Borrows it. Errors: RESOURCE_EXHAUSTED (too big, or the ring is
 * full): close the stream and report it closed. */
NODISCARD status_t kv_endpoint_stream_message(struct kv_endpoint *endpoint, uint64_t link, const void *message,
                                              size_t bytes);
/* The stream broke or the peer ended it. At most one per link has an effect. */
void kv_endpoint_stream_closed(struct kv_endpoint *endpoint, uint64_t link, status_t status);

/* --- what the ucx cable did; see cable_ucx.h. */
struct kv_ucx_stats {
    uint64_t registered_bytes, registration_ns; /* of the pool, once, at start */
    uint64_t connections;                       /* that came to work */
    uint64_t connections_rdma;                  /* of those: every lane is RDMA */
    uint64_t puts, put_bytes;                   /* P: slices whose put was flushed */
    uint64_t busy_ns;                           /* P: time with at least one put under way; bytes by it is GB/s */
    uint64_t drains_forced; /* connections that had not drained when their time was up; they end later */
    uint64_t workers_kept;  /* now: such workers, and those behind live links */
};

/* --- what the nccl cable did; see cable_nccl.h. */
struct kv_nccl_stats {
    uint64_t pairs_up, pairs_opening, pairs_stuck; /* now; stuck: an abort that never returned, kept for good */
    uint64_t pairs_opened, pairs_closed, pairs_broken, pairs_denied; /* opened: came up; closed: idle, for another's sake, here or at the peer */
    uint64_t memory_bytes;                         /* now, of the device, as counted: slots and what NCCL took */
    uint64_t init_ns_last, init_ns_max, abort_ns_last, abort_ns_max;
    uint64_t frames, bytes;                        /* P: sent; D: received */
    uint64_t busy_ns;                              /* P: time with at least one frame under way; bytes by it is GB/s */
    uint64_t messages_stale;                       /* of a pair that is over */
};

/* --- numbers, all since create. Audit: grants == landed + failed + revoked + live +
 * quarantined, and the same of blocks; sends == acked + send_failed + sends_live. */
struct kv_endpoint_stats {
    uint64_t grants, landed, failed, revoked;
    uint64_t live, quarantined; /* now */
    uint64_t blocks_granted, blocks_landed, blocks_failed, blocks_revoked, blocks_live, blocks_quarantined;
    uint64_t sends, acked, send_failed, sends_live;
    uint64_t bytes_landed, bytes_pushed;
    uint64_t slices_landed, slices_refused; /* refused: unknown grant, bounds, twice */
    uint64_t crc_errors;
    uint64_t messages_ignored; /* unknown, late and duplicate ids on the link */
    uint64_t secrets_refused, hellos_refused, cables_refused;
    uint64_t links_up, links_lost, links_suspected;
    uint64_t fences_forced;
    struct kv_ucx_stats ucx; /* zeros without the ucx cable */
    struct kv_nccl_stats nccl; /* zeros without the nccl cable */
};
void kv_endpoint_stats_get(struct kv_endpoint *endpoint, struct kv_endpoint_stats *ret_stats);

/* ---------------------------------------------------------------- a cable
 *
 * One struct per way of moving bytes (cable_shm.c, cable_tcp.c). All calls are made on the
 * transfer thread and return at once. A cable has one connection per link.
 *
 * A cable whose connections take long to make (warms_up) is made beside the link's own: that one
 * carries the transfers until the other is ready, and again when it breaks. Alone it is the link's. */

#define KV_CABLE_TOKEN_BYTES 32u
#define KV_OFFER_BYTES_MAX 2048u /* ucx: a worker's address lists every device */

#define KV_CABLE_MESSAGE_BYTES_MAX 1024u /* of one message between the two halves of a cable */

struct kv_cable_offer { uint8_t bytes[KV_OFFER_BYTES_MAX]; uint32_t size; };

/* The slices one frame moves: `count` indices from `first` in one layer of one grant. */
#define KV_FRAME_BLOCKS_MAX 64u
struct kv_frame {
    kv_xfer_id_t xfer_id;
    uint64_t grant_epoch;
    uint32_t layer, first, count;
};

/* Slices that a push of an endpoint with such a pool has at most. */
static inline uint32_t kv_frame_blocks(const struct kv_layout *layout)
{
    const uint64_t bytes_aim = 1024u * 1024u, blocks = bytes_aim / kv_layout_slice_bytes(layout);
    return (uint32_t)(blocks < 1 ? 1 : blocks > KV_FRAME_BLOCKS_MAX ? KV_FRAME_BLOCKS_MAX : blocks);
}

/* P: a frame to send; lives in the endpoint until push_done or until the cable drops it. */
struct kv_cable_push {
    struct kv_cable_push *next;        /* the cable's queue */
    struct kv_frame frame;
    uint32_t blocks[KV_FRAME_BLOCKS_MAX]; /* source blocks in P's pool */
    uint32_t crc[KV_FRAME_BLOCKS_MAX];    /* CRC32C of each slice, made by the cable */
    uint64_t mark;                     /* the slices are final after it; 0: now */
    uint32_t send_slot;                /* the endpoint's */
    bool last;                         /* ends one kv_endpoint_push */
    bool dropped;                      /* aborted while its bytes were under way */
    uint32_t push_first, push_count;   /* of the whole kv_endpoint_push */
};

/* Where an accepted frame goes. */
struct kv_landing {
    uint32_t slot;          /* the endpoint's grant slot */
    uint64_t grant_epoch;
    const uint32_t *blocks; /* [count] destination blocks; valid while landing_is_live */
};

struct kv_loop;

/* What the endpoint gives a cable. */
struct kv_cable_host {
    void *endpoint;
    struct kv_loop *loop;
    const struct kv_layout *layout;
    struct kv_endpoint_pool pool;
    uint32_t block_count; /* whole blocks in the pool */
    uint32_t frame_blocks; /* slices that a push of this endpoint has at most */
    uint32_t links_max;
    uint64_t connect_ns;
    bool receives; /* this process grants blocks: listen */
    const char *tcp_listen; /* "" : no listener */
    const char *uds_dir; /* NULL: the cable picks one that only this user can enter */
    struct kv_endpoint_tls tls;
    struct kv_ucx_config ucx; /* borrows library until close */
    struct kv_nccl_config nccl; /* borrows library until close */

    /* D: which link has this token; false: nobody's. Compares in constant time. */
    bool (*token_link)(void *endpoint, const uint8_t token[KV_CABLE_TOKEN_BYTES], uint32_t *ret_link);
    /* Both: of the peer's pool; ours, unless both convert. Only a cable that converts asks. Borrows until the link is closed. */
    const struct kv_layout *(*peer_layout)(void *endpoint, uint32_t link);
    /* P: whether it is the link's own cable, not one beside it; from connect on. */
    bool (*is_own)(void *endpoint, uint32_t link);
    /* Both: whether we are P on it; while the link lives. */
    bool (*is_sender)(void *endpoint, uint32_t link);
    /* D: a hash of the peer's node id and boot epoch, as its hello said; from offer on. */
    uint64_t (*peer_identity)(void *endpoint, uint32_t link);
    /* Both: the connection of `link` works (P: authenticated by D). */
    void (*connected)(void *endpoint, uint32_t link);
    /* Both: it is gone, and nothing comes from it any more. The end of the link, but for a cable that
     * warms up beside another: then of the transfers that it carried, and it may connect again. */
    void (*lost)(void *endpoint, uint32_t link, status_t status, const char *text);
    /* Both: to the peer's cable of this name, over the link, in order with all else there. A link that
     * is gone swallows it. count: up to KV_CABLE_MESSAGE_BYTES_MAX. Borrows bytes. */
    void (*say)(void *endpoint, uint32_t link, const void *bytes, size_t count);
    /* D: bytes came; the peer lives. */
    void (*heard)(void *endpoint, uint32_t link);
    /* D: before any byte is placed. False: drop the frame's bytes. True marks the slices as
     * taken, so that a second frame for one of them is refused. */
    bool (*frame_accept)(void *endpoint, uint32_t link, const struct kv_frame *frame, struct kv_landing *ret_landing);
    /* D: asked again before each piece of a frame is placed. */
    bool (*landing_is_live)(void *endpoint, const struct kv_landing *landing);
    /* D: the frame is in its blocks; crc_ok is false if any slice's CRC32C differs. */
    void (*frame_landed)(void *endpoint, uint32_t link, const struct kv_landing *landing,
                         const struct kv_frame *frame, bool crc_ok);
    /* D: a cable whose copies end later than it starts them holds the landing from before a copy
     * until after it: the blocks are not given back in between, whatever becomes of the grant or the
     * link. Every hold is let go of, and before frame_landed is called for it. */
    void (*hold)(void *endpoint, const struct kv_landing *landing);
    void (*let_go)(void *endpoint, const struct kv_landing *landing);
    /* Both, from close: something still uses the pool's kv_memory, perhaps for ever. */
    void (*memory_kept)(void *endpoint);
    /* P: the cable has no more use for it. */
    void (*push_done)(void *endpoint, struct kv_cable_push *push);
};

struct kv_cable; /* private to each cable */

struct kv_cable_ops {
    const char *name;
    bool same_host_only;
    bool needs_source_memfd;
    /* True: D's own thread places every byte, so a grant that is off the table is a fence by
     * itself. False (one-sided RDMA): `revoke` starts a fence and `fenced` must come. */
    bool places_at_destination;
    /* Peers may have pools of two dtypes and orders. False: it is passed over where they differ. */
    bool converts;
    /* True: see above. D may hear `message` for a link from its offer on, P from connect on. */
    bool warms_up;
    /* Ready to send, and to receive when the host names somewhere to listen. Borrows host
     * until close. Errors: UNIMPLEMENTED: the configuration has it off; "auto" leaves it out. */
    status_t (*open)(const struct kv_cable_host *host, struct diag *diag, struct kv_cable **ret_cable);
    /* D: what the peer of `link` must know to connect; once a link, before token_link can name it.
     * Errors: UNIMPLEMENTED: this side cannot receive. */
    status_t (*offer)(struct kv_cable *cable, uint32_t link, struct kv_cable_offer *ret_offer);
    /* P: why this side's pool and the offer's do not go together; NULL: they do. The op may be NULL. */
    const char *(*mismatch)(const struct kv_cable *cable, const void *offer, size_t offer_bytes);
    /* P: begins to connect; `connected` or `lost` follows. peer_host is the host part of the
     * ticket's address, for offers that leave it out. */
    status_t (*connect)(struct kv_cable *cable, uint32_t link, const char *peer_host, const void *offer,
                        size_t offer_bytes, const uint8_t token[KV_CABLE_TOKEN_BYTES]);
    /* D: a grant is open to `link`, or no longer. NULL where the tables say it all. revoke
     * returns true when nothing can land from now on. */
    void (*grant)(struct kv_cable *cable, uint32_t link, const struct kv_landing *landing, uint32_t count);
    bool (*revoke)(struct kv_cable *cable, uint32_t link, const struct kv_landing *landing);
    /* Both: what the peer's cable said; foreign bytes. NULL: it has nothing to say. */
    void (*message)(struct kv_cable *cable, uint32_t link, const uint8_t *bytes, size_t count);
    /* P, warms_up: whether a push now leaves at once. False also asks for that to become so. */
    bool (*ready)(struct kv_cable *cable, uint32_t link);
    /* Both: one more, or one less, transfer is on it; not after `fence`. D knows by the first frame. NULL: it need not know. */
    void (*used)(struct kv_cable *cable, uint32_t link, int change);
    /* P: queues the frame; push_done follows, also when the link is lost. */
    void (*push)(struct kv_cable *cable, uint32_t link, struct kv_cable_push *push);
    /* P: drops every queued frame of send_slot (push_done for each); one that is half on
     * the wire is marked dropped and finished. */
    void (*abort)(struct kv_cable *cable, uint32_t link, uint32_t send_slot);
    /* Both: closes the link's connection by force; when it returns nothing more lands, but for
     * copies under way whose landing is held, and every push is done, but for those whose source is
     * still read: push_done follows. `lost` is not called. */
    void (*fence)(struct kv_cable *cable, uint32_t link);
    /* After every fence. Waits for copies that are under way. */
    void (*close)(struct kv_cable *cable);
    /* The address that peers connect to, for logs and tests; "" without one. */
    const char *(*address)(const struct kv_cable *cable);
    /* Adds what it counts. NULL where the endpoint's own counters say it all. */
    void (*stats)(const struct kv_cable *cable, struct kv_endpoint_stats *stats);
};

/* Ordered by preference; NULL-ended. Further cables join here. */
extern const struct kv_cable_ops *const kv_cables[];

#endif
