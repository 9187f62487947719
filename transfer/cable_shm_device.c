/* cable_shm_device: the shm cable between two pools on one device: P lends its pool through kv_memory, D
 * copies out of it on the device.
 * Flow:    P's push -> CHECKSUM after the mark, event -> descriptor -> D's COPY -> done
 * Thread:  the transfer thread; the device's threads only fill the inbox, which the loop watches.
 * Memory:  SHM_DEVICE_WINDOW frames per connection, from its set-up to its very end.
 *
 * What is under way on the device cannot be called back. So a connection that ends while it has ops
 * leaves the cable's tables at once and lives on in `ended` until the last of them is done: D holds
 * the blocks that are copied into so long (kv_cable_host.hold), P the pushes whose slices are summed.
 * P's lives on until D has hung up, too: see cable_shm.h. */
#include "transfer/cable_shm_state.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "transfer/little_endian.h"

_Static_assert(KV_FRAME_BLOCKS_MAX <= KV_MEMORY_RANGES_MAX, "a frame is one op");
_Static_assert(KV_MEMORY_EVENTS == 64, "their use is a word of bits");

/* P at its own end: for a D that is stopped, whose copies have ended long before. */
#define LET_GO_NS NS_PER_S
/* P: connections that wait for D to hang up. A D that stays stopped keeps one for each that was
 * tried with it; then the oldest is closed, which it does not notice before it wakes. */
enum { ENDED_MAX = 64, PACKETS_PER_TURN = 8 };

enum frame_state {
    FRAME_FREE,
    FRAME_SUMMING, /* P: its op is under way */
    FRAME_SUMMED,  /* P: its descriptor is to be sent */
    FRAME_SENT,    /* P: D has it */
    FRAME_COPYING, /* D: its op is under way */
    FRAME_DONE,    /* D: P is to be told */
};

struct shm_frame {
    struct kv_memory_op op;
    struct conn *conn;
    enum frame_state state;
    struct kv_cable_push *push; /* P */
    struct kv_frame frame;      /* D */
    struct kv_landing landing;
    uint32_t crc[KV_FRAME_BLOCKS_MAX]; /* D: as P has said */
};

static void inbox_on_ready(struct kv_watch *watch, uint32_t events);

/* ---- begin and end of the cable */

static status_t device_open(struct kv_cable *cable, struct diag *diag)
{
    (void)diag;
    TRY(kv_memory_inbox_init(&cable->inbox));
    cable->inbox_watch = (struct kv_watch){.fd = cable->inbox.fd, .on_ready = inbox_on_ready};
    return kv_loop_watch(cable->host->loop, &cable->inbox_watch, EPOLLIN);
}

static bool has_ops(const struct kv_cable *cable)
{
    bool any = false;
    for (const struct conn *conn = cable->ended; conn; conn = conn->next_ended) { any |= conn->ops_under_way > 0; }
    return any;
}

static void conn_free(struct conn *conn)
{
    struct kv_cable *cable = conn->cable;
    struct conn **at = &cable->ended;
    while (*at != conn) { at = &(*at)->next_ended; }
    *at = conn->next_ended;
    kv_loop_remove(cable->host->loop, &conn->watch);
    if (conn->peer) { kv_memory_release(cable->host->pool.memory, conn->peer); }
    close(conn->watch.fd); /* after the release: P takes it for D's word that nothing of its pool is used */
    for (uint32_t i = 0; conn->frames && i < SHM_DEVICE_WINDOW; i++) {
        const struct shm_frame *frame = &conn->frames[i];
        if (conn->is_sender && frame->op.event != KV_MEMORY_EVENT_NONE) { cable->events_used &= ~(UINT64_C(1) << frame->op.event); }
    }
    free(conn->frames);
    free(conn);
}

/* P: whether D has closed its side. What it still says is of no interest. */
static bool has_hung_up(struct conn *conn)
{
    uint8_t packet[SHM_PACKET_BYTES_MAX];
    ssize_t got;
    do { got = recv(conn->watch.fd, packet, sizeof packet, MSG_DONTWAIT); } while (got > 0 || (got < 0 && errno == EINTR));
    return got == 0 || errno != EAGAIN;
}

/* Frees it if nothing is under way any more. P's: once D has hung up. */
static void conn_retire(struct conn *conn)
{
    if (conn->ops_under_way > 0 || (conn->is_sender && !has_hung_up(conn))) { return; }
    conn_free(conn);
}

static void ended_on_ready(struct kv_watch *watch, uint32_t events)
{
    (void)events;
    struct conn *conn = (struct conn *)watch;
    if (conn->ops_under_way > 0) {
        kv_loop_remove(conn->cable->host->loop, &conn->watch); /* a hangup stays; its last op looks again */
        return;
    }
    conn_retire(conn);
}

static void device_close(struct kv_cable *cable)
{
    if (cable->inbox.fd > 0) {
        while (has_ops(cable)) {
            kv_memory_inbox_wait(&cable->inbox);
            inbox_on_ready(&cable->inbox_watch, EPOLLIN);
        }
    }
    uint64_t end_ns = clock_now_ns() + LET_GO_NS;
    while (cable->ended) {
        struct conn *conn = cable->ended;
        uint64_t now_ns = clock_now_ns();
        struct pollfd fd = {.fd = conn->watch.fd, .events = POLLIN};
        if (conn->is_sender && now_ns < end_ns && !has_hung_up(conn)) {
            (void)poll(&fd, 1, (int)((end_ns - now_ns) / NS_PER_MS) + 1);
            continue;
        }
        conn_free(conn);
    }
    if (cable->inbox_watch.watched) { kv_loop_remove(cable->host->loop, &cable->inbox_watch); }
    kv_memory_inbox_fini(&cable->inbox);
}

/* ---- a connection's end */

static void push_drop(const struct kv_cable_host *host, struct kv_cable_push *push)
{
    push->dropped = true;
    host->push_done(host->endpoint, push);
}

static void ended_bound(struct kv_cable *cable)
{
    uint32_t count = 0;
    struct conn *oldest = NULL; /* of those that have no ops: the list has the newest first */
    for (struct conn *conn = cable->ended; conn; conn = conn->next_ended) {
        count++;
        if (conn->ops_under_way == 0) { oldest = conn; }
    }
    if (count > ENDED_MAX && oldest) { conn_free(oldest); }
}

static void device_end(struct conn *conn)
{
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    conn->is_ended = true;
    conn->next_ended = cable->ended;
    cable->ended = conn;
    for (uint32_t i = 0; conn->is_sender && conn->frames && i < SHM_DEVICE_WINDOW; i++) {
        struct shm_frame *frame = &conn->frames[i];
        if (frame->state == FRAME_SUMMED || frame->state == FRAME_SENT) {
            frame->state = FRAME_FREE; /* its event stays taken: D may still name it */
            push_drop(host, frame->push);
        }
    }
    shm_queue_drop(conn);
    conn->watch.on_ready = ended_on_ready;
    if (conn->is_sender) {
        shutdown(conn->watch.fd, SHUT_WR); /* D reads an end, and hangs up */
        /* Where the loop is full D's hangup is seen at our own end. */
        if (failed(kv_loop_watch(host->loop, &conn->watch, EPOLLIN))) { kv_loop_remove(host->loop, &conn->watch); }
    } else {
        kv_loop_remove(host->loop, &conn->watch);
    }
    conn_retire(conn);
    ended_bound(cable);
}

/* ---- the set-up */

static bool frames_make(struct conn *conn)
{
    conn->frames = calloc(SHM_DEVICE_WINDOW, sizeof *conn->frames);
    for (uint32_t i = 0; conn->frames && i < SHM_DEVICE_WINDOW; i++) {
        conn->frames[i].conn = conn;
        conn->frames[i].op.event = KV_MEMORY_EVENT_NONE;
    }
    return conn->frames != NULL;
}

static bool device_greet(struct conn *conn, const uint8_t *token)
{
    const struct kv_cable_host *host = conn->cable->host;
    uint8_t packet[SHM_DEVICE_HELLO_BYTES_MAX];
    size_t export_bytes = 0;
    errno = ENOMEM;
    if (!frames_make(conn)) { return false; }
    errno = EIO; /* the device's own word is in no errno */
    if (failed(kv_memory_export(host->pool.memory, packet + SHM_DEVICE_HELLO_HEAD_BYTES, &export_bytes, NULL))) { return false; }
    le32_store(packet, SHM_MAGIC);
    le32_store(packet + 4, SHM_DEVICE_HELLO);
    memcpy(packet + 8, token, KV_CABLE_TOKEN_BYTES);
    le64_store(packet + 40, host->pool.bytes);
    le32_store(packet + 48, (uint32_t)export_bytes);
    size_t bytes = SHM_DEVICE_HELLO_HEAD_BYTES + export_bytes;
    return send(conn->watch.fd, packet, bytes, MSG_NOSIGNAL) == (ssize_t)bytes;
}

static bool device_is_hello(const uint8_t *packet, size_t bytes, int fd)
{
    return fd < 0 && bytes > SHM_DEVICE_HELLO_HEAD_BYTES && le32_load(packet) == SHM_MAGIC &&
           le32_load(packet + 4) == SHM_DEVICE_HELLO && bytes == (size_t)SHM_DEVICE_HELLO_HEAD_BYTES + le32_load(packet + 48);
}

static const char *device_meet(struct conn *conn, const uint8_t *packet, size_t bytes, int fd)
{
    (void)fd; /* none came */
    const struct kv_cable_host *host = conn->cable->host;
    const uint64_t pool_bytes = le64_load(packet + 40);
    const uint64_t block_bytes = kv_layout_block_bytes(host->layout);
    size_t readable = 0;
    if (!frames_make(conn)) { return "no memory"; }
    if (failed(kv_memory_import(host->pool.memory, packet + SHM_DEVICE_HELLO_HEAD_BYTES, bytes - SHM_DEVICE_HELLO_HEAD_BYTES,
                                &conn->peer, &readable, NULL))) {
        return "the pool cannot be imported";
    }
    if (pool_bytes < block_bytes || pool_bytes > readable || pool_bytes / block_bytes > UINT32_MAX / 2) {
        return "the pool is not of the size it is said to be";
    }
    conn->map_blocks = (uint32_t)(pool_bytes / block_bytes);
    return NULL;
}

/* ---- ops */

static void op_start(struct shm_frame *frame, enum kv_memory_op_kind kind, uint32_t count)
{
    const struct kv_cable_host *host = frame->conn->cable->host;
    frame->op.kind = kind;
    frame->op.count = count;
    frame->op.range_bytes = kv_layout_slice_bytes(host->layout);
    frame->op.done = kv_memory_inbox_put;
    frame->op.user = &frame->conn->cable->inbox;
    frame->conn->ops_under_way++;
    kv_memory_submit(host->pool.memory, &frame->op);
}

static struct shm_frame *frame_free(struct conn *conn)
{
    for (uint32_t i = 0; i < SHM_DEVICE_WINDOW; i++) {
        if (conn->frames[i].state == FRAME_FREE) { return &conn->frames[i]; }
    }
    return NULL;
}

/* ---- P */

/* Sums the slices of what waits, as far as there are frames and events. */
static void queue_sum(struct conn *conn)
{
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    struct shm_frame *frame;
    while (conn->queue_first && (frame = frame_free(conn)) != NULL) {
        if (frame->op.event == KV_MEMORY_EVENT_NONE) {
            if (cable->events_used == UINT64_MAX) { return; } /* others have them all; theirs come back, and with them our turn */
            frame->op.event = (uint32_t)__builtin_ctzll(~cable->events_used);
            cable->events_used |= UINT64_C(1) << frame->op.event;
        }
        struct kv_cable_push *push = conn->queue_first;
        conn->queue_first = push->next;
        push->next = NULL;
        frame->push = push;
        frame->state = FRAME_SUMMING;
        frame->op.mark = push->mark;
        for (uint32_t i = 0; i < push->frame.count; i++) {
            frame->op.offsets[i] = kv_layout_slice_offset(host->layout, push->blocks[i], push->frame.layer);
        }
        op_start(frame, KV_MEMORY_CHECKSUM, push->frame.count);
    }
}

/* The event goes back with the frame: another connection may be waiting for one. */
static void frame_give_back(struct shm_frame *frame)
{
    struct kv_cable *cable = frame->conn->cable;
    const bool were_all_used = cable->events_used == UINT64_MAX;
    frame->state = FRAME_FREE;
    frame->push = NULL;
    cable->events_used &= ~(UINT64_C(1) << frame->op.event);
    frame->op.event = KV_MEMORY_EVENT_NONE;
    for (uint32_t i = 0; were_all_used && i < cable->host->links_max; i++) {
        struct conn *conn = cable->conns[i];
        if (conn && conn->is_sender && conn->ready) { queue_sum(conn); }
    }
}

static size_t descriptor_write(const struct shm_frame *frame, uint8_t *packet)
{
    const struct kv_cable_push *push = frame->push;
    shm_frame_write(push, SHM_DEVICE_DESCRIPTOR, packet, SHM_DEVICE_DESCRIPTOR_HEAD_BYTES);
    le32_store(packet + 44, (uint32_t)(frame - frame->conn->frames));
    le32_store(packet + 48, frame->op.event);
    uint8_t *sums = packet + SHM_DEVICE_DESCRIPTOR_HEAD_BYTES + 4u * push->frame.count;
    for (uint32_t i = 0; i < push->frame.count; i++) { le32_store(sums + 4u * i, push->crc[i]); }
    return SHM_DEVICE_DESCRIPTOR_HEAD_BYTES + 8u * push->frame.count;
}

static bool sender_pump(struct conn *conn)
{
    const struct kv_cable_host *host = conn->cable->host;
    uint8_t packet[SHM_PACKET_BYTES_MAX];
    bool blocked = false;
    queue_sum(conn);
    for (uint32_t i = 0; i < SHM_DEVICE_WINDOW && !blocked; i++) {
        struct shm_frame *frame = &conn->frames[i];
        if (frame->state != FRAME_SUMMED) { continue; }
        if (frame->push->dropped) { /* aborted before D has heard of it */
            struct kv_cable_push *push = frame->push;
            frame_give_back(frame);
            host->push_done(host->endpoint, push);
            continue;
        }
        size_t bytes = descriptor_write(frame, packet);
        ssize_t sent = send(conn->watch.fd, packet, bytes, MSG_NOSIGNAL);
        blocked = sent < 0 && (errno == EAGAIN || errno == EINTR);
        if (sent != (ssize_t)bytes && !blocked) { return false; }
        if (!blocked) { frame->state = FRAME_SENT; }
    }
    return !failed(kv_loop_watch(host->loop, &conn->watch, EPOLLIN | (blocked ? (uint32_t)EPOLLOUT : 0u)));
}

static void sum_done(struct shm_frame *frame)
{
    struct conn *conn = frame->conn;
    const struct kv_cable_host *host = conn->cable->host;
    struct kv_cable_push *push = frame->push;
    if (conn->is_ended) {
        frame->state = FRAME_FREE;
        push_drop(host, push);
        return;
    }
    if (failed(frame->op.status)) {
        frame->state = FRAME_FREE;
        push_drop(host, push);
        shm_conn_fail(conn, frame->op.status, "our device could not read the slices");
        return;
    }
    frame->state = FRAME_SUMMED;
    memcpy(push->crc, frame->op.crc, push->frame.count * sizeof *push->crc);
    if (!sender_pump(conn)) { shm_conn_fail(conn, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the socket broke"); }
}

static const char *on_done(struct conn *conn, const uint8_t *packet, size_t bytes)
{
    const struct kv_cable_host *host = conn->cable->host;
    uint32_t tag = bytes == 12 ? le32_load(packet + 8) : UINT32_MAX;
    if (bytes != 12 || le32_load(packet) != SHM_MAGIC || le32_load(packet + 4) != SHM_DEVICE_DONE || tag >= SHM_DEVICE_WINDOW ||
        conn->frames[tag].state != FRAME_SENT) {
        return "the peer answered what was not asked";
    }
    struct kv_cable_push *push = conn->frames[tag].push;
    frame_give_back(&conn->frames[tag]);
    host->push_done(host->endpoint, push);
    return NULL;
}

static void device_drop(struct conn *conn, uint32_t send_slot)
{
    for (uint32_t i = 0; i < SHM_DEVICE_WINDOW; i++) {
        struct shm_frame *frame = &conn->frames[i];
        if (frame->state != FRAME_FREE && frame->push->send_slot == send_slot) { frame->push->dropped = true; }
    }
}

/* ---- D */

static const char *on_descriptor(struct conn *conn, const uint8_t *packet, size_t bytes)
{
    const struct kv_cable_host *host = conn->cable->host;
    struct kv_frame frame;
    if (bytes < 8 || le32_load(packet + 4) != SHM_DEVICE_DESCRIPTOR ||
        !shm_frame_read(conn, packet, bytes, SHM_DEVICE_DESCRIPTOR_HEAD_BYTES, &frame)) {
        return "the peer sent a descriptor that is none";
    }
    uint32_t tag = le32_load(packet + 44), event = le32_load(packet + 48);
    if (tag >= SHM_DEVICE_WINDOW || conn->frames[tag].state != FRAME_FREE || event >= KV_MEMORY_EVENTS) {
        return "the peer sent a frame that it had no place for";
    }
    struct shm_frame *here = &conn->frames[tag];
    if (!host->frame_accept(host->endpoint, conn->link, &frame, &here->landing)) {
        here->state = FRAME_DONE;
        return NULL;
    }
    const uint8_t *blocks = packet + SHM_DEVICE_DESCRIPTOR_HEAD_BYTES;
    for (uint32_t i = 0; i < frame.count; i++) {
        here->op.peer_offsets[i] = kv_layout_slice_offset(host->layout, le32_load(blocks + 4u * i), frame.layer);
        here->op.offsets[i] = kv_layout_slice_offset(host->layout, here->landing.blocks[i], frame.layer);
        here->crc[i] = le32_load(blocks + 4u * (frame.count + i));
    }
    here->frame = frame;
    here->state = FRAME_COPYING;
    here->op.mark = 0;
    here->op.event = event;
    here->op.peer = conn->peer;
    host->hold(host->endpoint, &here->landing);
    op_start(here, KV_MEMORY_COPY, frame.count);
    return NULL;
}

static bool receiver_pump(struct conn *conn)
{
    bool blocked = false;
    for (uint32_t tag = 0; tag < SHM_DEVICE_WINDOW && !blocked; tag++) {
        if (conn->frames[tag].state != FRAME_DONE) { continue; }
        uint8_t packet[12];
        le32_store(packet, SHM_MAGIC);
        le32_store(packet + 4, SHM_DEVICE_DONE);
        le32_store(packet + 8, tag);
        ssize_t sent = send(conn->watch.fd, packet, sizeof packet, MSG_NOSIGNAL);
        blocked = sent < 0 && (errno == EAGAIN || errno == EINTR);
        if (sent != (ssize_t)sizeof packet && !blocked) { return false; }
        if (!blocked) { conn->frames[tag].state = FRAME_FREE; }
    }
    return !failed(kv_loop_watch(conn->cable->host->loop, &conn->watch, EPOLLIN | (blocked ? (uint32_t)EPOLLOUT : 0u)));
}

static void copy_done(struct shm_frame *frame)
{
    struct conn *conn = frame->conn;
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    bool is_ended = conn->is_ended, crc_ok = true;
    host->let_go(host->endpoint, &frame->landing);
    frame->state = FRAME_DONE;
    if (is_ended) { return; }
    if (failed(frame->op.status)) {
        shm_conn_fail(conn, frame->op.status, "our device could not copy the slices");
        return;
    }
    for (uint32_t i = 0; i < frame->frame.count; i++) { crc_ok &= frame->op.crc[i] == frame->crc[i]; }
    uint32_t link = conn->link;
    host->frame_landed(host->endpoint, link, &frame->landing, &frame->frame, crc_ok);
    if (cable->conns[link] != conn) { return; } /* what landed has ended the link */
    if (!receiver_pump(conn)) { shm_conn_fail(conn, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the socket broke"); }
}

/* ---- both */

static void inbox_on_ready(struct kv_watch *watch, uint32_t events)
{
    (void)events;
    struct kv_cable *cable = (struct kv_cable *)((char *)watch - offsetof(struct kv_cable, inbox_watch));
    struct kv_memory_op *op = kv_memory_inbox_take_all(&cable->inbox);
    while (op) {
        struct shm_frame *frame = (struct shm_frame *)((char *)op - offsetof(struct shm_frame, op));
        struct conn *conn = frame->conn;
        op = op->next;
        /* Counted as under way until it was dealt with: the connection is there so long. */
        (conn->is_sender ? sum_done : copy_done)(frame);
        conn->ops_under_way--;
        if (conn->is_ended) { conn_retire(conn); }
    }
}

static const char *device_receive(struct conn *conn, const uint8_t *packet, size_t bytes)
{
    return conn->is_sender ? on_done(conn, packet, bytes) : on_descriptor(conn, packet, bytes);
}

static bool device_pump(struct conn *conn) { return conn->is_sender ? sender_pump(conn) : receiver_pump(conn); }

const struct shm_form shm_form_device = {
    .hello_bytes_max = SHM_DEVICE_HELLO_BYTES_MAX,
    .packets_per_turn = PACKETS_PER_TURN,
    .open = device_open,
    .close = device_close,
    .greet = device_greet,
    .is_hello = device_is_hello,
    .meet = device_meet,
    .receive = device_receive,
    .pump = device_pump,
    .drop = device_drop,
    .end = device_end,
};
