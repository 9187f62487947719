/* cable_tcp_state: what the files of the tcp cable share: a connection, the cable, and the moves between them.
 * Flow:    cable_tcp (set-up, ops), cable_tcp_receive (D), cable_tcp_send (P), cable_tcp_resolve (P),
 *          cable_tcp_stage (where the pool lies on a device)
 * Thread:  the transfer thread.
 * Memory:  one connection per link, and the strangers'. */
#ifndef BATON_TRANSFER_CABLE_TCP_STATE_H
#define BATON_TRANSFER_CABLE_TCP_STATE_H

#include <stdbool.h>
#include <sys/socket.h>

#include "kv/kv_memory_inbox.h"
#include "transfer/cable_tcp.h"
#include "transfer/loop.h"
#include "transfer/tcp_io.h"

enum { STRANGERS_MAX = 64, TCP_STAGES_EACH = 4 };
/* One turn of one connection, so that many links share the thread. */
#define TURN_BYTES (4u * 1024u * 1024u)

enum conn_state {
    CS_RESOLVING,  /* P: waits for the name's address */
    CS_CONNECTING, /* P: waits for TCP */
    CS_TLS,        /* waits for the handshake */
    CS_HELLO,      /* P: sends the token; D: waits for it */
    CS_WELCOME,    /* P: waits for the answer; D: sends it */
    CS_READY,
};

enum receive_state { RS_HEADER, RS_CRCS, RS_STAGE, RS_SLICES, RS_DRAIN };

enum stage_state {
    STAGE_FREE,
    STAGE_READING, /* P: its op is under way */
    STAGE_READY,   /* P: a frame's slices, to be sent */
    STAGE_FILLING, /* D: a frame's slices are coming in */
    STAGE_WRITING, /* D: its op is under way */
};

struct tcp_stage {
    struct kv_memory_op op;
    struct kv_cable *cable;
    enum stage_state state;
    struct conn *conn;          /* NULL: ended meanwhile */
    struct kv_cable_push *push; /* P */
    struct kv_frame frame;      /* D, WRITING */
    struct kv_landing landing;
    uint8_t *host; /* [frame_blocks][slice_bytes] */
};

struct conn {
    struct kv_watch watch; /* first: the callback casts back */
    struct kv_cable *cable;
    uint32_t link; /* UINT32_MAX: a stranger, who has not shown a token */
    bool is_sender;
    enum conn_state state;
    uint64_t born;
    struct tcp_io io;
    /* small fixed messages of the set-up, and heads of frames */
    uint8_t head[TCP_HEAD_BYTES_MAX];
    size_t head_bytes, head_at;
    /* D: the frame that is coming in */
    enum receive_state receive;
    struct kv_frame frame;
    struct kv_landing landing;
    uint64_t body_at;   /* bytes of the slices received */
    uint32_t crc_now;   /* of the slice that is coming in */
    bool crc_ok;
    struct tcp_stage *stage; /* of that frame; NULL: the slices go straight to their blocks */
    bool waits_for_stage;
    /* P */
    struct kv_cable_push *queue_first, *queue_last;
    uint64_t sent_at; /* bytes of the first push's frame that the kernel has taken; its head included */
    bool head_made;
    struct tcp_stage *stages[TCP_STAGES_EACH]; /* of the first pushes of the queue, in its order */
    uint32_t stage_count;
    uint16_t peer_port; /* while resolving */
    uint8_t token[KV_CABLE_TOKEN_BYTES];
};

struct kv_cable {
    const struct kv_cable_host *host;
    struct kv_watch listener;
    struct tcp_tls *tls; /* NULL: plain */
    char address[KV_ADDRESS_CHARS_MAX + 1];
    char offer_host[KV_ADDRESS_CHARS_MAX + 1]; /* "": any of ours; the peer takes the ticket's */
    uint16_t port;
    uint64_t slice_bytes;
    struct conn **conns; /* [links_max] */
    struct conn *strangers[STRANGERS_MAX];
    uint64_t births;
    /* a pool on a device */
    struct tcp_stage *stages; /* [stage_count] */
    uint32_t stage_count, stages_free;
    uint8_t *stage_memory;
    bool stage_is_wanted;
    struct kv_memory_inbox inbox;
    struct kv_watch inbox_watch;
};

/* How far a read got. GONE: the connection was destroyed by what it led to. */
enum tcp_step { STEP_ON, STEP_BLOCKED, STEP_BROKEN, STEP_CORRUPT, STEP_GONE };

/* ---- cable_tcp.c */
/* fd -1: not yet. link UINT32_MAX: a stranger. NULL: no memory. */
struct conn *tcp_conn_create(struct kv_cable *cable, int fd, uint32_t link, bool is_sender, enum conn_state state);
/* Its pushes are given back as dropped. */
void tcp_conn_destroy(struct conn *conn);
/* Destroys it and tells the endpoint that the link's cable is lost. */
void tcp_conn_fail(struct conn *conn, status_t status, const char *text);

/* ---- cable_tcp_receive.c */
/* Reads on towards `bytes` of conn->head. */
enum tcp_step tcp_head_receive(struct conn *conn, size_t bytes);
/* D's turn of a connection that is ready. It may be destroyed by it. */
void tcp_receiver_run(struct conn *conn);

/* ---- cable_tcp_send.c */
void tcp_sender_push(struct kv_cable *cable, uint32_t link, struct kv_cable_push *push);
void tcp_sender_abort(struct kv_cable *cable, uint32_t link, uint32_t send_slot);
/* Hands the kernel what it takes. False: broken. */
bool tcp_sender_pump(struct conn *conn);
/* Whether what became readable is not the connection's end. */
bool tcp_sender_peer_lives(struct conn *conn);

/* ---- cable_tcp_stage.c; the first two take a pool in host memory too, and do nothing */
status_t tcp_stages_open(struct kv_cable *cable, struct diag *diag);
/* When no connection is left. Waits for what is under way. */
void tcp_stages_close(struct kv_cable *cable);
/* A connection's end: staged pushes leave its queue. */
void tcp_stages_end(struct conn *conn);
/* P: begins to read what waits, as far as there are stages. */
void tcp_stages_gather(struct conn *conn);
/* P: whether the first push's slices are there. */
bool tcp_stage_is_ready(const struct conn *conn);
/* P: the first push was sent. */
void tcp_stage_shift(struct conn *conn);
/* P: a staged push is dropped. True: it is done now; false: when its slices are no longer read. */
bool tcp_stage_leave(struct tcp_stage *stage);
/* D: a stage for the frame that is coming in. False: none is free; wanted. */
bool tcp_stage_fill(struct conn *conn);
/* D: the frame is whole: its slices go to their blocks, and frame_landed follows. */
void tcp_stage_scatter(struct conn *conn);
/* D: the frame is thrown away. */
void tcp_stage_empty(struct conn *conn);

/* ---- cable_tcp_resolve.c */
/* Begins to connect to `name`; digits at once, others when a look-up answers. */
status_t tcp_sender_resolve(struct conn *conn, const char *name);
/* The look-up's pipe is readable. The connection may be destroyed by it. */
void tcp_lookup_answered(struct conn *conn);

#endif
