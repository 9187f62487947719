/* cable_tcp_state: what the files of the tcp cable share: a connection, the cable, and the moves between them.
 * Flow:    cable_tcp (set-up, ops), cable_tcp_receive (D), cable_tcp_send (P), cable_tcp_resolve (P)
 * Thread:  the transfer thread.
 * Memory:  one connection per link, and the strangers'. */
#ifndef BATON_TRANSFER_CABLE_TCP_STATE_H
#define BATON_TRANSFER_CABLE_TCP_STATE_H

#include <stdbool.h>
#include <sys/socket.h>

#include "transfer/cable_tcp.h"
#include "transfer/loop.h"
#include "transfer/tcp_io.h"

enum { STRANGERS_MAX = 64 };
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

enum receive_state { RS_HEADER, RS_CRCS, RS_SLICES, RS_DRAIN };

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
    /* P */
    struct kv_cable_push *queue_first, *queue_last;
    uint64_t sent_at; /* bytes of the first push's frame that the kernel has taken; its head included */
    bool head_made;
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

/* ---- cable_tcp_resolve.c */
/* Begins to connect to `name`; digits at once, others when a look-up answers. */
status_t tcp_sender_resolve(struct conn *conn, const char *name);
/* The look-up's pipe is readable. The connection may be destroyed by it. */
void tcp_lookup_answered(struct conn *conn);

#endif
