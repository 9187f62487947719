/* cable_ucx_state: what the files of the ucx cable share. cable_ucx.c has the cable and its ops,
 * cable_ucx_conn.c a connection's life, cable_ucx_send.c P's half, cable_ucx_receive.c D's, cable_ucx_sum.c
 * the sums of slices that lie on a device.
 *
 * UCX calls back from inside worker_progress(), where nothing of that worker may be destroyed, while
 * the endpoint may answer any report with a fence. So callbacks only note what happened (lists, flags),
 * and the connection's turn reports it when progress has returned. */
#ifndef BATON_TRANSFER_CABLE_UCX_STATE_H
#define BATON_TRANSFER_CABLE_UCX_STATE_H

#include "kv/kv_memory_inbox.h"
#include "transfer/cable_ucx.h"
#include "transfer/cable_tcp.h" /* the head of a frame */
#include "transfer/loop.h"
#include "transfer/ucx_api.h"
#include "transfer/ucx_wire.h"

enum {
    FRAMES_MAX = 32,       /* under way per connection */
    SUMS_MAX = 32,         /* on the device, per connection */
    GRANT_BUCKETS = 64,
    GRANTS_MAX = 65536,    /* that one D may have told us of and not taken back */
    MAIL_MAX = 4096,       /* messages that came in one turn's progress */
    PROGRESS_MAX = 64,     /* calls of it per turn */
    TICK_MS = 50,
};
#define INFLIGHT_BYTES_MAX (8u << 20) /* at 50 GB/s and 20 us of round trip 1 MiB is under way; an abort waits for it */
#define TURN_BYTES (4u << 20)         /* summed per turn, so that one link does not stall the others */
#define DRAIN_NS (250u * 1000u * 1000u) /* 24 ms at most were seen on RC, 2 on TCP */
#define LATE_DRAIN_NS (30ull * 1000u * 1000u * 1000u) /* P's: later than any retry of the hardware */

struct conn;

enum frame_state { FS_FREE, FS_PUTS, FS_NOTICE };

struct frame { /* P: a push under way */
    struct conn *conn;
    struct kv_cable_push *push; /* NULL once it was given back */
    struct frame *next_done;
    enum frame_state state;
    uint32_t open; /* requests that UCX holds, and 1 while we post */
    bool failed;
    uint32_t head_bytes;
    uint8_t head[TCP_HEAD_BYTES_MAX];
};

/* Pool on a device: the slices of a frame, which the device sums. P's before they are put, D's when they have landed. */
struct sum {
    struct kv_memory_op op;
    struct conn *conn;
    bool is_busy;
    struct kv_cable_push *push; /* P */
    struct kv_frame frame;      /* D */
    struct kv_landing landing;
    uint32_t crc[KV_FRAME_BLOCKS_MAX]; /* D: as P has said */
    bool is_second;
};

struct remote_grant { /* P: where D said the blocks of a grant are */
    struct remote_grant *next;
    uint64_t grant_epoch;
    uint64_t slices_left; /* to push */
    uint32_t count;
    uint32_t blocks[];
};

struct mail { /* a message, copied inside its callback */
    struct mail *next;
    enum ucx_message kind;
    size_t bytes;
    uint8_t data[];
};

struct parcel { /* a message of ours that UCX holds */
    struct conn *conn;
    uint8_t data[];
};

enum conn_state {
    CS_OFFERED, /* D: waits for P's hello */
    CS_HELLO,   /* P: waits for D's welcome */
    CS_READY,
    CS_LATE,    /* fenced, and not empty yet: P's, which still reads; off every table but cable->late */
    CS_OVER,    /* nothing of UCX is left: there for the device's sums alone, if any are under way */
};

struct conn {
    struct kv_watch watch; /* the worker's event fd; first */
    struct kv_cable *cable;
    uint32_t link;
    bool is_sender;
    enum conn_state state;
    void *worker, *address, *endpoint, *rkey;
    ucx_request_t closing;
    size_t address_bytes;
    uint32_t open;             /* requests that UCX holds, of any kind but the closing */
    bool is_broken;            /* seen in a callback; the turn reports it */
    ucx_status_t broken_status;
    bool in_turn, is_gone;     /* gone: destroyed; the memory goes when no turn and no sum needs it */
    bool turn_due;
    struct conn *turn_next;
    uint64_t since_ns;
    uint32_t ticks;            /* without progress: until connected, or with frames under way */
    struct mail *mail_first, *mail_last;
    uint32_t mail_count;
    struct sum *sums;          /* [SUMS_MAX]; NULL: the pool is host memory */
    uint32_t sums_busy;
    bool in_sum;               /* one that has ended is being dealt with */

    /* P */
    uint8_t token[KV_CABLE_TOKEN_BYTES];
    uint64_t remote_base;
    uint32_t remote_blocks;
    struct kv_cable_push *raw_first, *raw_last;     /* pool on a device: they have no sums yet */
    struct kv_cable_push *ready_first, *ready_last; /* their grant is known */
    struct kv_cable_push *early_first, *early_last; /* it is not yet */
    struct remote_grant *grants[GRANT_BUCKETS];
    uint32_t grant_count;
    struct frame *frames; /* [FRAMES_MAX] */
    uint32_t frames_busy;
    struct frame *done_first, *done_last;
    uint64_t inflight_bytes;
    uint64_t busy_since_ns, busy_ns, put_bytes;
    struct conn *late_next;
    uint64_t late_until_ns;
};

struct kv_cable {
    const struct kv_cable_host *host;
    const struct ucx_api *api;
    void *context, *memh;
    uint8_t rkey[UCX_RKEY_BYTES_MAX];
    uint32_t rkey_bytes;
    char refusal[640]; /* why there is no RDMA for this pool; then nothing of UCX is open. Else "" */
    bool is_direct; /* a network card has the pool registered, so that a put needs no CPU */
    uint64_t slice_bytes;
    struct conn **conns; /* [links_max] */
    struct conn *late;
    struct conn *due_first, *due_last;
    struct kv_watch turns, ticks;
    bool ticking;
    struct kv_memory_inbox inbox; /* pool on a device */
    struct kv_watch inbox_watch;
    uint32_t sums_busy;
    struct kv_ucx_stats stats;
};

/* ---- cable_ucx.c */
/* Registers the pool, counts what it cost, and packs its key. */
status_t ucx_pool_register(struct kv_cable *cable, struct diag *diag);
/* Ends every access to the pool that a peer may have, and registers it anew. Breaks all other links. */
void ucx_pool_revoke(struct kv_cable *cable);
/* Counts it and logs its lanes. */
void ucx_conn_is_ready(struct conn *conn);

/* ---- cable_ucx_conn.c */
/* A worker that listens to messages. Errors: UNAVAILABLE, RESOURCE_EXHAUSTED. */
status_t ucx_conn_create(struct kv_cable *cable, uint32_t link, bool is_sender, struct conn **ret_conn);
/* Our end towards the peer at `address`, which lies in memory with UCX_BLOB_TAIL_BYTES behind it. */
ucx_status_t ucx_conn_dial(struct conn *conn, const void *address);
/* By force. Queued pushes are given back; so are those under way, now or when UCX lets go of them. */
void ucx_conn_destroy(struct conn *conn);
void ucx_conn_fail(struct conn *conn, status_t status, const char *text);
/* Frees it if it is gone and nothing needs its memory any more. */
void ucx_conn_release(struct conn *conn);
/* It has work: its turn comes from the loop. */
void ucx_conn_schedule(struct conn *conn);
/* Sends a copy of the message. False: the connection is broken now. */
bool ucx_conn_send(struct conn *conn, enum ucx_message kind, const void *bytes, size_t size);
/* Notes a failure; from callbacks too. */
void ucx_conn_break(struct conn *conn, ucx_status_t status);
/* The lanes of the endpoint: "rc_mlx5/mlx5_0:1 ...". Returns whether all of them are RDMA. */
bool ucx_conn_lanes(const struct conn *conn, char *ret_text, size_t size);
/* The cable's clock, which runs while something may take too long. */
void ucx_ticks_set(struct kv_cable *cable, bool on);
void ucx_on_turns(struct kv_watch *watch, uint32_t events);
void ucx_on_tick(struct kv_watch *watch, uint32_t events);
void ucx_late_end(struct kv_cable *cable); /* at close: gives what is late its last chance */

/* ---- cable_ucx_send.c */
void ucx_sender_push(struct kv_cable *cable, uint32_t link, struct kv_cable_push *push);
void ucx_sender_abort(struct kv_cable *cable, uint32_t link, uint32_t send_slot);
/* In a turn; the connection may be gone after it. Returns whether there is more to do at once. */
bool ucx_sender_run(struct conn *conn);
void ucx_sender_mail(struct conn *conn, const struct mail *mail);
/* The device has summed a push. */
void ucx_sender_summed(struct sum *sum);
/* Gives back all that is queued. */
void ucx_sender_drop_queues(struct conn *conn);
/* Gives back the frames whose requests are over. */
void ucx_sender_collect(struct conn *conn);
void ucx_sender_fini(struct conn *conn);

/* ---- cable_ucx_receive.c */
/* False: it waits for a sum to end. */
bool ucx_receiver_mail(struct conn *conn, const struct mail *mail);
/* The device has summed what landed. */
void ucx_receiver_summed(struct sum *sum);
void ucx_receiver_grant(struct kv_cable *cable, uint32_t link, const struct kv_landing *landing, uint32_t count);
bool ucx_receiver_revoke(struct kv_cable *cable, uint32_t link, const struct kv_landing *landing);

/* ---- cable_ucx_sum.c: all of it for a pool on a device; begin and end do nothing where it is host memory */
status_t ucx_sums_open(struct kv_cable *cable);
void ucx_sums_close(struct kv_cable *cable); /* waits for those under way */
/* The records of a connection. False: no memory. */
bool ucx_sums_make(struct conn *conn);
struct sum *ucx_sum_take(struct conn *conn); /* NULL: all are busy */
/* Sums that layer's slices of blocks[0 .. count) once the mark has passed; the connection's half hears of the end. */
void ucx_sum_start(struct sum *sum, uint32_t layer, const uint32_t *blocks, uint32_t count, uint64_t mark);
void ucx_sum_give_back(struct sum *sum);

#endif
