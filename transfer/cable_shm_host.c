/* cable_shm_host: the shm cable between two pools in host memory: P lends its memfd, D copies and sums
 * in one pass.
 * Flow:    P's push -> sums, descriptor -> D's crc32c_copy -> done
 * Thread:  the transfer thread does the copies itself.
 * Memory:  one read-only mapping of P's pool per link. */
#include "transfer/cable_shm_state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/crc32c.h"
#include "transfer/little_endian.h"

/* Descriptors under way per link: enough that P sums the next frames while D copies, and few
 * enough that D still finds in the shared cache what P has just read (D's copy took 15 % less
 * CPU time with 4 than with 16). D answers every second frame, so that P is never idle. */
enum { WINDOW = 6, FRAMES_PER_TURN = 2 };

/* ---- begin and end */

static status_t host_open(struct kv_cable *cable, struct diag *diag)
{
    (void)diag;
    cable->lent_fd = -1;
    return STATUS_OK;
}

static void host_close(struct kv_cable *cable)
{
    if (cable->lent_fd >= 0) { close(cable->lent_fd); }
}

static void host_end(struct conn *conn)
{
    const struct kv_cable_host *host = conn->cable->host;
    kv_loop_remove(host->loop, &conn->watch);
    close(conn->watch.fd);
    if (conn->map) { munmap((void *)(uintptr_t)conn->map, conn->map_bytes); }
    conn->sent_count = 0;
    while (conn->sent_first) {
        struct kv_cable_push *push = conn->sent_first;
        conn->sent_first = push->next;
        push->dropped = true;
        host->push_done(host->endpoint, push);
    }
    shm_queue_drop(conn);
    free(conn);
}

/* ---- the set-up */

/* What is lent cannot be written through, whatever the receiver does with it. */
static int lent_fd_open(struct kv_cable *cable)
{
    if (cable->lent_fd < 0) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", cable->host->pool.memfd);
        cable->lent_fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    return cable->lent_fd;
}

static bool host_greet(struct conn *conn, const uint8_t *token)
{
    struct kv_cable *cable = conn->cable;
    int lent = lent_fd_open(cable);
    if (lent < 0) { return false; }
    uint8_t packet[SHM_HELLO_BYTES];
    le32_store(packet, SHM_MAGIC);
    le32_store(packet + 4, SHM_HELLO);
    memcpy(packet + 8, token, KV_CABLE_TOKEN_BYTES);
    le64_store(packet + 40, cable->host->pool.bytes);
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct iovec iov = {.iov_base = packet, .iov_len = sizeof packet};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    struct cmsghdr *part = CMSG_FIRSTHDR(&msg);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(part), &lent, sizeof lent);
    return sendmsg(conn->watch.fd, &msg, MSG_NOSIGNAL) == (ssize_t)sizeof packet;
}

static bool host_is_hello(const uint8_t *packet, size_t bytes, int fd)
{
    return bytes == SHM_HELLO_BYTES && fd >= 0 && le32_load(packet) == SHM_MAGIC && le32_load(packet + 4) == SHM_HELLO;
}

/* Takes memfd. NULL, or why it is refused. */
static const char *host_meet(struct conn *conn, const uint8_t *packet, size_t bytes, int memfd)
{
    (void)bytes; /* is_hello has looked */
    const uint64_t pool_bytes = le64_load(packet + 40);
    const char *wrong = NULL;
    struct stat info;
    uint64_t block_bytes = kv_layout_block_bytes(conn->cable->host->layout);
    int seals = fcntl(memfd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK)) {
        wrong = "the pool could shrink under its reader"; /* which would end us with SIGBUS */
    } else if (fstat(memfd, &info) != 0 || (uint64_t)info.st_size < pool_bytes || pool_bytes < block_bytes ||
               pool_bytes / block_bytes > UINT32_MAX / 2) {
        wrong = "the pool is not of the size it is said to be";
    } else {
        void *map = mmap(NULL, pool_bytes, PROT_READ, MAP_SHARED, memfd, 0);
        if (map == MAP_FAILED) {
            wrong = "the pool cannot be mapped";
        } else {
            conn->map = map;
            conn->map_bytes = pool_bytes;
            conn->map_blocks = (uint32_t)(pool_bytes / block_bytes);
        }
    }
    close(memfd);
    return wrong;
}

/* ---- D */

static const char *on_descriptor(struct conn *conn, const uint8_t *packet, size_t bytes)
{
    const struct kv_cable_host *host = conn->cable->host;
    struct kv_frame frame;
    if (bytes < 8 || le32_load(packet + 4) != SHM_DESCRIPTOR ||
        !shm_frame_read(conn, packet, bytes, SHM_DESCRIPTOR_HEAD_BYTES, &frame)) {
        return "the peer sent a descriptor that is none";
    }
    const uint8_t *blocks = packet + SHM_DESCRIPTOR_HEAD_BYTES;
    const uint8_t *sums = blocks + 4u * frame.count;
    conn->done_owed++;
    struct kv_landing landing;
    if (!host->frame_accept(host->endpoint, conn->link, &frame, &landing)) { return NULL; }
    size_t slice_bytes = kv_layout_slice_bytes(host->layout);
    bool crc_ok = true;
    for (uint32_t i = 0; i < frame.count; i++) {
        const uint8_t *from = conn->map + kv_layout_slice_offset(host->layout, le32_load(blocks + 4u * i), frame.layer);
        uint8_t *to = (uint8_t *)host->pool.base + kv_layout_slice_offset(host->layout, landing.blocks[i], frame.layer);
        crc_ok &= crc32c_copy(0, to, from, slice_bytes) == le32_load(sums + 4u * i);
    }
    host->frame_landed(host->endpoint, conn->link, &landing, &frame, crc_ok);
    return NULL;
}

/* Tells P what was copied. False: broken. When P does not read, it is told later. */
static bool done_send(struct conn *conn)
{
    bool blocked = false;
    if (conn->done_owed) {
        uint8_t packet[12];
        le32_store(packet, SHM_MAGIC);
        le32_store(packet + 4, SHM_DONE);
        le32_store(packet + 8, conn->done_owed);
        ssize_t sent = send(conn->watch.fd, packet, sizeof packet, MSG_NOSIGNAL);
        blocked = sent < 0 && (errno == EAGAIN || errno == EINTR);
        if (sent != (ssize_t)sizeof packet && !blocked) { return false; }
        if (!blocked) { conn->done_owed = 0; }
    }
    return !failed(kv_loop_watch(conn->cable->host->loop, &conn->watch, EPOLLIN | (blocked ? (uint32_t)EPOLLOUT : 0u)));
}

/* ---- P */

static const char *on_done(struct conn *conn, const uint8_t *packet, size_t bytes)
{
    const struct kv_cable_host *host = conn->cable->host;
    uint32_t done = bytes == 12 ? le32_load(packet + 8) : UINT32_MAX;
    if (bytes != 12 || le32_load(packet) != SHM_MAGIC || le32_load(packet + 4) != SHM_DONE || done > conn->sent_count) {
        return "the peer answered what was not asked";
    }
    while (done--) {
        struct kv_cable_push *push = conn->sent_first;
        conn->sent_first = push->next;
        conn->sent_count--;
        host->push_done(host->endpoint, push);
    }
    return NULL;
}

static size_t descriptor_write(const struct kv_cable_host *host, struct kv_cable_push *push, uint8_t *packet)
{
    size_t slice_bytes = kv_layout_slice_bytes(host->layout);
    CHECK(push->mark == 0); /* a pool in host memory has no marks */
    shm_frame_write(push, SHM_DESCRIPTOR, packet, SHM_DESCRIPTOR_HEAD_BYTES);
    uint8_t *sums = packet + SHM_DESCRIPTOR_HEAD_BYTES + 4u * push->frame.count;
    for (uint32_t i = 0; i < push->frame.count; i++) {
        const uint8_t *from =
            (const uint8_t *)host->pool.base + kv_layout_slice_offset(host->layout, push->blocks[i], push->frame.layer);
        push->crc[i] = crc32c(0, from, slice_bytes);
        le32_store(sums + 4u * i, push->crc[i]);
    }
    return SHM_DESCRIPTOR_HEAD_BYTES + 8u * push->frame.count;
}

/* Sends descriptors while the window is open. False: the socket is broken. */
static bool queue_pump(struct conn *conn)
{
    uint8_t packet[SHM_PACKET_BYTES_MAX];
    bool blocked = false;
    while (conn->queue_first && conn->sent_count < WINDOW) {
        struct kv_cable_push *push = conn->queue_first;
        size_t bytes = descriptor_write(conn->cable->host, push, packet);
        ssize_t sent = send(conn->watch.fd, packet, bytes, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
            blocked = true;
            break;
        }
        if (sent != (ssize_t)bytes) { return false; }
        conn->queue_first = push->next;
        push->next = NULL;
        if (conn->sent_first) { conn->sent_last->next = push; } else { conn->sent_first = push; }
        conn->sent_last = push;
        conn->sent_count++;
    }
    return !failed(kv_loop_watch(conn->cable->host->loop, &conn->watch, EPOLLIN | (blocked ? (uint32_t)EPOLLOUT : 0u)));
}

static void host_drop(struct conn *conn, uint32_t send_slot)
{
    for (struct kv_cable_push *push = conn->sent_first; push; push = push->next) {
        if (push->send_slot == send_slot) { push->dropped = true; }
    }
}

static const char *host_receive(struct conn *conn, const uint8_t *packet, size_t bytes)
{
    return conn->is_sender ? on_done(conn, packet, bytes) : on_descriptor(conn, packet, bytes);
}

static bool host_pump(struct conn *conn) { return conn->is_sender ? queue_pump(conn) : done_send(conn); }

const struct shm_form shm_form_host = {
    .hello_bytes_max = SHM_HELLO_BYTES,
    .packets_per_turn = FRAMES_PER_TURN,
    .open = host_open,
    .close = host_close,
    .greet = host_greet,
    .is_hello = host_is_hello,
    .meet = host_meet,
    .receive = host_receive,
    .pump = host_pump,
    .drop = host_drop,
    .end = host_end,
};
