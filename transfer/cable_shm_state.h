/* cable_shm_state: what the files of the shm cable share: a connection, the cable, and the two forms.
 * Flow:    cable_shm (sockets, set-up, ops), cable_shm_listen (D's socket file), cable_shm_host and
 *          cable_shm_device (what moves, by where the pool lies)
 * Thread:  the transfer thread.
 * Memory:  one connection per link, and the strangers'; see the forms. */
#ifndef BATON_TRANSFER_CABLE_SHM_STATE_H
#define BATON_TRANSFER_CABLE_SHM_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/un.h>

#include "kv/kv_memory_inbox.h"
#include "transfer/cable_shm.h"
#include "transfer/loop.h"

enum { STRANGERS_MAX = 16 };

struct shm_form;
struct shm_frame; /* private to cable_shm_device.c */

struct conn {
    struct kv_watch watch; /* first: the callback casts back */
    struct kv_cable *cable;
    uint32_t link; /* UINT32_MAX: a stranger, who has not shown a token */
    bool is_sender, ready;
    uint64_t born; /* strangers: the oldest goes first */
    /* P: pushes that wait, in order */
    struct kv_cable_push *queue_first, *queue_last;
    uint32_t map_blocks; /* D: of P's pool */
    /* host form. D */
    const uint8_t *map;
    size_t map_bytes;
    uint32_t done_owed;
    /* P: under way, in order */
    struct kv_cable_push *sent_first, *sent_last;
    uint32_t sent_count;
    /* device form */
    struct shm_frame *frames; /* [DEVICE_WINDOW]; NULL before the set-up */
    uint32_t ops_under_way;
    struct kv_memory_peer *peer; /* D */
    bool is_ended;           /* no link's any more: waits for its ops, and P for D to let go of the pool */
    struct conn *next_ended;
};

struct kv_cable {
    const struct kv_cable_host *host;
    const struct shm_form *form;
    struct kv_watch listener;
    char path[sizeof ((struct sockaddr_un *)0)->sun_path];
    struct conn **conns; /* [links_max] */
    struct conn *strangers[STRANGERS_MAX];
    uint64_t births;
    /* host form */
    int lent_fd; /* P: read-only descriptor of the pool; -1 until first used */
    /* device form */
    struct kv_memory_inbox inbox;
    struct kv_watch inbox_watch;
    uint64_t events_used; /* P: bits of KV_MEMORY_EVENTS */
    struct conn *ended;
};

/* What is done with a connection, by where the pool lies. */
struct shm_form {
    size_t hello_bytes_max;
    uint32_t packets_per_turn; /* so that many links share the thread */
    status_t (*open)(struct kv_cable *cable, struct diag *diag);
    void (*close)(struct kv_cable *cable); /* after the last connection has ended */
    /* P: the first packet. False: it could not be sent, errno. */
    bool (*greet)(struct conn *conn, const uint8_t *token);
    /* D: whether the packet is a hello of this form. */
    bool (*is_hello)(const uint8_t *packet, size_t bytes, int fd);
    /* D: makes P's pool readable. Takes fd. NULL, or why not. */
    const char *(*meet)(struct conn *conn, const uint8_t *packet, size_t bytes, int fd);
    /* A packet after the set-up. NULL, or what is wrong with it. The connection may have ended. */
    const char *(*receive)(struct conn *conn, const uint8_t *packet, size_t bytes);
    /* Sends what can be sent. False: the socket broke. */
    bool (*pump)(struct conn *conn);
    /* P: marks what is under way of that send as dropped. */
    void (*drop)(struct conn *conn, uint32_t send_slot);
    /* Frees it, now or when nothing of it is under way any more. It is in no table. */
    void (*end)(struct conn *conn);
};

extern const struct shm_form shm_form_host, shm_form_device;

/* ---- cable_shm.c */
/* Takes it from the cable's tables and ends it. */
void shm_conn_end(struct conn *conn);
/* And tells the endpoint that the link's cable is lost. */
void shm_conn_fail(struct conn *conn, status_t status, const char *text);
/* P: gives up the pushes that wait. */
void shm_queue_drop(struct conn *conn);
/* The first 44 bytes and the blocks of a descriptor, which both forms have; at_blocks is where the latter begin. */
void shm_frame_write(const struct kv_cable_push *push, uint32_t kind, uint8_t *packet, size_t at_blocks);
/* The same from foreign bytes. False: no frame, or no block that the pool has. */
bool shm_frame_read(const struct conn *conn, const uint8_t *packet, size_t bytes, size_t at_blocks, struct kv_frame *ret_frame);

/* ---- cable_shm_listen.c */
/* Makes the socket file. on_ready of cable->listener is the caller's. */
status_t shm_listener_open(struct kv_cable *cable, struct diag *diag);
void shm_listener_close(struct kv_cable *cable);

#endif
