/* cable_tcp_send: P's half of the tcp cable: pushes out of the pool onto the wire.
 * Flow:    the endpoint's push and abort -> [cable_tcp_send] -> header, checksums, slices -> D
 * Thread:  the transfer thread.
 * Memory:  the endpoint's push records, queued by their own links; the kernel reads the pool, or, where
 *          that is on a device, stages that were filled from it. */
#include "transfer/cable_tcp_state.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/check.h"
#include "base/crc32c.h"

void tcp_sender_push(struct kv_cable *cable, uint32_t link, struct kv_cable_push *push)
{
    struct conn *conn = cable->conns[link];
    if (!conn) { /* it broke, and the endpoint has not heard of it yet */
        push->dropped = true;
        cable->host->push_done(cable->host->endpoint, push);
        return;
    }
    push->next = NULL;
    bool was_idle = conn->queue_first == NULL;
    if (conn->queue_first) { conn->queue_last->next = push; } else { conn->queue_first = push; }
    conn->queue_last = push;
    if (cable->stages) { /* sent when it has been read */
        if (conn->state == CS_READY) { tcp_stages_gather(conn); }
        return;
    }
    CHECK(push->mark == 0); /* a pool in host memory has no marks */
    /* Not sent from here: the loop does it in turns, and a failure has one place to show. */
    if (was_idle && failed(kv_loop_watch(cable->host->loop, &conn->watch, EPOLLIN | EPOLLOUT))) {
        shutdown(conn->watch.fd, SHUT_RDWR);
    }
}

void tcp_sender_abort(struct kv_cable *cable, uint32_t link, uint32_t send_slot)
{
    struct conn *conn = cable->conns[link];
    if (!conn) { return; }
    struct kv_cable_push *rest = conn->queue_first;
    struct kv_cable_push *half = NULL;
    uint32_t staged = 0, kept = 0; /* stages looked at, and those of pushes that stay */
    if (rest && conn->head_made && (conn->sent_at > 0 || conn->io.write_waits)) { /* the frame must be finished, or the stream has no meaning */
        half = rest;
        rest = rest->next;
        half->next = NULL;
        if (half->send_slot == send_slot) { half->dropped = true; }
        if (cable->stages) { staged = kept = 1; }
    } else {
        conn->head_made = false;
    }
    conn->queue_first = conn->queue_last = half;
    while (rest) {
        struct kv_cable_push *push = rest;
        struct tcp_stage *stage = staged < conn->stage_count ? conn->stages[staged++] : NULL;
        rest = push->next;
        push->next = NULL;
        if (push->send_slot == send_slot) {
            push->dropped = true;
            if (!stage || tcp_stage_leave(stage)) { cable->host->push_done(cable->host->endpoint, push); }
            continue;
        }
        if (stage) { conn->stages[kept++] = stage; }
        if (conn->queue_first) { conn->queue_last->next = push; } else { conn->queue_first = push; }
        conn->queue_last = push;
    }
    conn->stage_count = kept;
    if (!cable->stages || conn->state != CS_READY) { return; }
    tcp_stages_gather(conn);
    /* The first may have become ready while another was. A failure shows itself to the loop. */
    if (tcp_stage_is_ready(conn) && failed(kv_loop_watch(cable->host->loop, &conn->watch, EPOLLIN | EPOLLOUT))) {
        shutdown(conn->watch.fd, SHUT_RDWR);
    }
}

/* ---- the loop's turns */

/* Slice i of the first push. */
static uint8_t *slice_at(const struct conn *conn, const struct kv_cable_push *push, uint32_t i)
{
    const struct kv_cable_host *host = conn->cable->host;
    if (conn->cable->stages) { return conn->stages[0]->host + i * conn->cable->slice_bytes; }
    return (uint8_t *)host->pool.base + kv_layout_slice_offset(host->layout, push->blocks[i], push->frame.layer);
}

static void frame_make(struct conn *conn, struct kv_cable_push *push)
{
    for (uint32_t i = 0; i < push->frame.count; i++) { push->crc[i] = crc32c(0, slice_at(conn, push, i), conn->cable->slice_bytes); }
    conn->head_bytes = tcp_frame_head_write(&push->frame, (uint32_t)conn->cable->slice_bytes, push->crc, conn->head);
    conn->head_made = true;
    conn->sent_at = 0;
}

static int frame_iov(const struct conn *conn, const struct kv_cable_push *push, struct iovec iov[KV_FRAME_BLOCKS_MAX + 1])
{
    uint64_t slice_bytes = conn->cable->slice_bytes;
    int pieces = 0;
    uint64_t body_at = 0;
    if (conn->sent_at < conn->head_bytes) {
        iov[pieces].iov_base = (void *)(uintptr_t)(conn->head + conn->sent_at);
        iov[pieces++].iov_len = conn->head_bytes - conn->sent_at;
    } else {
        body_at = conn->sent_at - conn->head_bytes;
    }
    uint64_t within = body_at % slice_bytes;
    for (uint32_t i = (uint32_t)(body_at / slice_bytes); i < push->frame.count; i++) {
        iov[pieces].iov_base = slice_at(conn, push, i) + within;
        iov[pieces++].iov_len = slice_bytes - within;
        within = 0;
    }
    return pieces;
}

/* Whether the first push can be sent now. */
static bool queue_is_ready(const struct conn *conn)
{
    return conn->queue_first && (!conn->cable->stages || tcp_stage_is_ready(conn));
}

/* Hands the kernel what it takes. False: broken. */
bool tcp_sender_pump(struct conn *conn)
{
    const struct kv_cable_host *host = conn->cable->host;
    uint64_t turn_bytes = 0;
    bool blocked = false;
    if (conn->cable->stages) { tcp_stages_gather(conn); }
    while (queue_is_ready(conn) && !blocked && turn_bytes < TURN_BYTES) {
        struct kv_cable_push *push = conn->queue_first;
        if (!conn->head_made) { frame_make(conn, push); }
        struct iovec iov[KV_FRAME_BLOCKS_MAX + 1];
        int pieces = frame_iov(conn, push, iov);
        ssize_t sent = tcp_io_write(&conn->io, iov, pieces);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
            blocked = true;
            break;
        }
        if (sent <= 0) { return false; }
        conn->sent_at += (uint64_t)sent;
        turn_bytes += (uint64_t)sent;
        if (conn->sent_at == conn->head_bytes + push->frame.count * conn->cable->slice_bytes) {
            conn->queue_first = push->next;
            conn->head_made = false;
            if (conn->cable->stages) {
                tcp_stage_shift(conn);
                tcp_stages_gather(conn);
            }
            host->push_done(host->endpoint, push);
        }
    }
    bool more = queue_is_ready(conn);
    return !failed(kv_loop_watch(host->loop, &conn->watch, EPOLLIN | (more ? (uint32_t)EPOLLOUT : 0u)));
}

/* D says nothing after the welcome: anything readable is the end, or under TLS a session
 * ticket, which the library consumes. */
bool tcp_sender_peer_lives(struct conn *conn)
{
    uint8_t byte;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    ssize_t got = tcp_io_read(&conn->io, &iov, 1);
    return got < 0 && (errno == EAGAIN || errno == EINTR);
}
