/* cable_shm: a connection's life from set-up to end, and the cable's ops. What moves, and how the peer's
 * pool is lent, have files of their own; cable_shm_state.h is what they share. */
#include "transfer/cable_shm_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "transfer/little_endian.h"

static void conn_on_ready(struct kv_watch *watch, uint32_t events);

/* ---- connections */

void shm_conn_end(struct conn *conn)
{
    struct kv_cable *cable = conn->cable;
    if (conn->link != UINT32_MAX && cable->conns[conn->link] == conn) { cable->conns[conn->link] = NULL; }
    for (uint32_t i = 0; i < STRANGERS_MAX; i++) {
        if (cable->strangers[i] == conn) { cable->strangers[i] = NULL; }
    }
    cable->form->end(conn);
}

void shm_conn_fail(struct conn *conn, status_t status, const char *text)
{
    const struct kv_cable_host *host = conn->cable->host;
    uint32_t link = conn->link;
    shm_conn_end(conn);
    if (link != UINT32_MAX) { host->lost(host->endpoint, link, status, text); }
}

static struct conn *conn_create(struct kv_cable *cable, int fd, uint32_t link, bool is_sender)
{
    struct conn *conn = calloc(1, sizeof *conn);
    if (!conn) { return NULL; }
    conn->cable = cable;
    conn->link = link;
    conn->is_sender = is_sender;
    conn->born = ++cable->births;
    conn->watch.fd = fd;
    conn->watch.on_ready = conn_on_ready;
    if (failed(kv_loop_watch(cable->host->loop, &conn->watch, EPOLLIN))) {
        free(conn);
        return NULL;
    }
    return conn;
}

void shm_queue_drop(struct conn *conn)
{
    const struct kv_cable_host *host = conn->cable->host;
    while (conn->queue_first) {
        struct kv_cable_push *push = conn->queue_first;
        conn->queue_first = push->next;
        push->dropped = true;
        host->push_done(host->endpoint, push);
    }
}

static bool peer_is_our_user(int fd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

/* ---- D: strangers become links */

static void listener_on_ready(struct kv_watch *watch, uint32_t events)
{
    (void)events;
    struct kv_cable *cable = (struct kv_cable *)((char *)watch - offsetof(struct kv_cable, listener));
    int fd = accept4(watch->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) { return; }
    if (!peer_is_our_user(fd)) {
        close(fd);
        return;
    }
    uint32_t at = 0; /* a free place, else the oldest stranger's: who stalls is pushed out */
    for (uint32_t i = 1; i < STRANGERS_MAX && cable->strangers[at]; i++) {
        if (!cable->strangers[i] || cable->strangers[i]->born < cable->strangers[at]->born) { at = i; }
    }
    if (cable->strangers[at]) { shm_conn_end(cable->strangers[at]); }
    cable->strangers[at] = conn_create(cable, fd, UINT32_MAX, false);
    if (!cable->strangers[at]) { close(fd); }
}

static void on_hello(struct conn *conn, const uint8_t *packet, size_t bytes, int fd)
{
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    uint32_t link = 0;
    bool known = cable->form->is_hello(packet, bytes, fd) && host->token_link(host->endpoint, packet + 8, &link) &&
                 !cable->conns[link];
    if (!known) {
        if (fd >= 0) { close(fd); }
        shm_conn_end(conn);
        return;
    }
    uint8_t welcome[8];
    le32_store(welcome, SHM_MAGIC);
    le32_store(welcome + 4, SHM_WELCOME);
    if (cable->form->meet(conn, packet, bytes, fd) != NULL ||
        send(conn->watch.fd, welcome, sizeof welcome, MSG_NOSIGNAL) != (ssize_t)sizeof welcome) {
        shm_conn_end(conn); /* P sees the hangup and takes the next cable; the token is still good */
        return;
    }
    for (uint32_t i = 0; i < STRANGERS_MAX; i++) {
        if (cable->strangers[i] == conn) { cable->strangers[i] = NULL; }
    }
    conn->link = link;
    conn->ready = true;
    cable->conns[link] = conn;
    host->connected(host->endpoint, link);
}

/* ---- frames */

void shm_frame_write(const struct kv_cable_push *push, uint32_t kind, uint8_t *packet, size_t at_blocks)
{
    le32_store(packet, SHM_MAGIC);
    le32_store(packet + 4, kind);
    memcpy(packet + 8, push->frame.xfer_id.bytes, 16);
    le64_store(packet + 24, push->frame.grant_epoch);
    le32_store(packet + 32, push->frame.layer);
    le32_store(packet + 36, push->frame.first);
    le32_store(packet + 40, push->frame.count);
    for (uint32_t i = 0; i < push->frame.count; i++) { le32_store(packet + at_blocks + 4u * i, push->blocks[i]); }
}

bool shm_frame_read(const struct conn *conn, const uint8_t *packet, size_t bytes, size_t at_blocks, struct kv_frame *ret_frame)
{
    if (bytes < at_blocks || le32_load(packet) != SHM_MAGIC) { return false; }
    struct kv_frame frame = {.grant_epoch = le64_load(packet + 24), .layer = le32_load(packet + 32),
                             .first = le32_load(packet + 36), .count = le32_load(packet + 40)};
    memcpy(frame.xfer_id.bytes, packet + 8, 16);
    if (frame.count == 0 || frame.count > KV_FRAME_BLOCKS_MAX || bytes != at_blocks + 8u * frame.count) { return false; }
    for (uint32_t i = 0; i < frame.count; i++) {
        if (le32_load(packet + at_blocks + 4u * i) >= conn->map_blocks) { return false; }
    }
    *ret_frame = frame;
    return true;
}

/* ---- the loop's turns */

/* One packet and, on a hello, a descriptor. 0: hangup; -1 with errno. */
static ssize_t packet_receive(int fd, uint8_t *packet, size_t size, int *ret_fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(4 * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = packet, .iov_len = size};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    *ret_fd = -1;
    ssize_t got = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0) { return got; }
    for (struct cmsghdr *part = CMSG_FIRSTHDR(&msg); part; part = CMSG_NXTHDR(&msg, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) { continue; }
        for (size_t i = 0; i < (part->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
            int one;
            memcpy(&one, CMSG_DATA(part) + i * sizeof(int), sizeof one);
            if (*ret_fd < 0) { *ret_fd = one; } else { close(one); }
        }
    }
    return got;
}

static void conn_on_ready(struct kv_watch *watch, uint32_t events)
{
    (void)events; /* reading tells all: data, hangup or error */
    struct conn *conn = (struct conn *)watch;
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    const char *wrong = NULL;
    for (uint32_t turn = 0; turn < cable->form->packets_per_turn && !wrong; turn++) {
        uint8_t packet[SHM_DEVICE_HELLO_BYTES_MAX]; /* the largest of all */
        size_t size = conn->ready ? SHM_PACKET_BYTES_MAX : cable->form->hello_bytes_max;
        int fd = -1;
        ssize_t got = packet_receive(watch->fd, packet, size, &fd);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) { break; }
        if (got <= 0) {
            if (fd >= 0) { close(fd); }
            wrong = "the peer hung up";
            break;
        }
        if (!conn->is_sender && !conn->ready) {
            on_hello(conn, packet, (size_t)got, fd);
            return; /* the connection may be gone */
        }
        if (fd >= 0) { close(fd); }
        uint32_t link = conn->link;
        host->heard(host->endpoint, link);
        if (conn->ready) {
            wrong = cable->form->receive(conn, packet, (size_t)got);
        } else if (got != 8 || le32_load(packet) != SHM_MAGIC || le32_load(packet + 4) != SHM_WELCOME) {
            wrong = "the peer did not welcome us";
        } else {
            conn->ready = true;
            host->connected(host->endpoint, link);
        }
        if (cable->conns[link] != conn) { return; } /* what this led to has ended the link */
    }
    if (!wrong && conn->ready && !cable->form->pump(conn)) { wrong = "the socket broke"; }
    if (wrong) { shm_conn_fail(conn, STATUS(ST_UNAVAILABLE, SCOPE_PEER), wrong); }
}

/* ---- the ops */

static void shm_close(struct kv_cable *cable)
{
    if (!cable) { return; }
    for (uint32_t i = 0; i < STRANGERS_MAX; i++) {
        if (cable->strangers[i]) { shm_conn_end(cable->strangers[i]); }
    }
    for (uint32_t i = 0; cable->conns && i < cable->host->links_max; i++) {
        if (cable->conns[i]) { shm_conn_end(cable->conns[i]); }
    }
    shm_listener_close(cable);
    cable->form->close(cable);
    free(cable->conns);
    free(cable);
}

static status_t shm_open_cable(const struct kv_cable_host *host, struct diag *diag, struct kv_cable **ret_cable)
{
    struct kv_cable *cable = calloc(1, sizeof *cable);
    if (!cable) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    cable->host = host;
    cable->form = host->pool.memory ? &shm_form_device : &shm_form_host;
    cable->listener.fd = -1;
    cable->listener.on_ready = listener_on_ready;
    status_t st = cable->form->open(cable, diag);
    cable->conns = calloc(host->links_max, sizeof(struct conn *));
    if (!failed(st) && !cable->conns) { st = STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    if (!failed(st) && host->receives) { st = shm_listener_open(cable, diag); }
    if (failed(st)) {
        shm_close(cable);
        return st;
    }
    *ret_cable = cable;
    return STATUS_OK;
}

/* The socket's path; with a pool on a device a zero byte and the device's id follow. */
static status_t shm_offer(struct kv_cable *cable, uint32_t link, struct kv_cable_offer *ret_offer)
{
    (void)link;
    const struct kv_memory *memory = cable->host->pool.memory;
    if (cable->listener.fd < 0 || (memory && !kv_memory_can_export(memory))) { return STATUS(ST_UNIMPLEMENTED, SCOPE_PEER); }
    ret_offer->size = (uint32_t)strlen(cable->path);
    memcpy(ret_offer->bytes, cable->path, ret_offer->size);
    if (memory) {
        ret_offer->bytes[ret_offer->size++] = 0;
        memcpy(ret_offer->bytes + ret_offer->size, memory->id, sizeof memory->id);
        ret_offer->size += (uint32_t)sizeof memory->id;
    }
    return STATUS_OK;
}

static const char *shm_mismatch(const struct kv_cable *cable, const void *offer, size_t offer_bytes)
{
    const struct kv_memory *memory = cable->host->pool.memory;
    const uint8_t *end = memchr(offer, 0, offer_bytes);
    const uint8_t *id = end ? end + 1 : NULL;
    if (!memory) { return id ? "needs both pools in one kind of memory; the receiver's is on a device" : NULL; }
    if (!id) { return "needs both pools in one kind of memory; the receiver's is not on a device"; }
    if (!kv_memory_can_export(memory)) { return "needs a device that lends its memory"; }
    bool is_same = offer_bytes - (size_t)(id - (const uint8_t *)offer) == sizeof memory->id && memcmp(id, memory->id, sizeof memory->id) == 0;
    return is_same ? NULL : "needs both pools on one device; these are on two";
}

static status_t shm_connect(struct kv_cable *cable, uint32_t link, const char *peer_host, const void *offer,
                            size_t offer_bytes, const uint8_t token[KV_CABLE_TOKEN_BYTES])
{
    (void)peer_host;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const uint8_t *end = memchr(offer, 0, offer_bytes);
    size_t chars = end ? (size_t)(end - (const uint8_t *)offer) : offer_bytes;
    if (chars == 0 || chars >= sizeof address.sun_path) { return STATUS(ST_INVALID_ARGUMENT, SCOPE_PEER); }
    memcpy(address.sun_path, offer, chars);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) { return STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno); }
    status_t st = STATUS_OK;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        st = STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno);
    } else if (!peer_is_our_user(fd)) {
        st = STATUS(ST_PERMISSION_DENIED, SCOPE_PEER);
    }
    struct conn *conn = failed(st) ? NULL : conn_create(cable, fd, link, true);
    if (!conn) {
        close(fd);
        return failed(st) ? st : STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_PEER, ENOMEM);
    }
    if (!cable->form->greet(conn, token)) {
        st = STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno);
        shm_conn_end(conn);
        return st;
    }
    cable->conns[link] = conn;
    return STATUS_OK;
}

static void shm_push(struct kv_cable *cable, uint32_t link, struct kv_cable_push *push)
{
    struct conn *conn = cable->conns[link];
    if (!conn) { /* it broke, and the endpoint has not heard of it yet */
        push->dropped = true;
        cable->host->push_done(cable->host->endpoint, push);
        return;
    }
    push->next = NULL;
    if (conn->queue_first) { conn->queue_last->next = push; } else { conn->queue_first = push; }
    conn->queue_last = push;
    /* A broken socket shows itself to the loop right after. */
    if (conn->ready && !cable->form->pump(conn)) { shutdown(conn->watch.fd, SHUT_RDWR); }
}

static void shm_abort(struct kv_cable *cable, uint32_t link, uint32_t send_slot)
{
    struct conn *conn = cable->conns[link];
    if (!conn) { return; }
    cable->form->drop(conn, send_slot);
    struct kv_cable_push *queue = conn->queue_first;
    conn->queue_first = conn->queue_last = NULL;
    while (queue) {
        struct kv_cable_push *push = queue;
        queue = push->next;
        push->next = NULL;
        if (push->send_slot == send_slot) {
            push->dropped = true;
            cable->host->push_done(cable->host->endpoint, push);
            continue;
        }
        if (conn->queue_first) { conn->queue_last->next = push; } else { conn->queue_first = push; }
        conn->queue_last = push;
    }
}

static void shm_fence(struct kv_cable *cable, uint32_t link)
{
    if (cable->conns[link]) { shm_conn_end(cable->conns[link]); }
}

static const char *shm_address(const struct kv_cable *cable) { return cable->path; }

const struct kv_cable_ops kv_cable_shm = {
    .name = "shm",
    .same_host_only = true,
    .needs_source_memfd = true,
    .places_at_destination = true,
    .open = shm_open_cable,
    .offer = shm_offer,
    .mismatch = shm_mismatch,
    .connect = shm_connect,
    .push = shm_push,
    .abort = shm_abort,
    .fence = shm_fence,
    .close = shm_close,
    .address = shm_address,
};
