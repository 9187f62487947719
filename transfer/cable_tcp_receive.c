/* cable_tcp_receive: D's half of the tcp cable: frames off the wire, straight into the blocks.
 * Flow:    a connection that is ready -> [cable_tcp_receive] -> the endpoint's frame_accept, frame_landed
 * Thread:  the transfer thread.
 * Memory:  the connection's own; a frame's slices are read to where they stay, or, where that is on a
 *          device, into a stage. */
#include "transfer/cable_tcp_state.h"

#include <errno.h>
#include <sys/uio.h>

#include "base/crc32c.h"
#include "transfer/little_endian.h"

static enum tcp_step step_of(ssize_t got)
{
    if (got > 0) { return STEP_ON; }
    return got < 0 && (errno == EAGAIN || errno == EINTR) ? STEP_BLOCKED : STEP_BROKEN;
}

enum tcp_step tcp_head_receive(struct conn *conn, size_t bytes)
{
    struct iovec iov = {.iov_base = conn->head + conn->head_at, .iov_len = bytes - conn->head_at};
    ssize_t got = tcp_io_read(&conn->io, &iov, 1);
    if (got > 0) { conn->head_at += (size_t)got; }
    return step_of(got);
}

/* ---- a frame */

/* Where bytes [body_at, end) of the frame belong. Returns the number of pieces. */
static int body_iov(const struct conn *conn, struct iovec iov[KV_FRAME_BLOCKS_MAX])
{
    const struct kv_cable_host *host = conn->cable->host;
    uint64_t slice_bytes = conn->cable->slice_bytes;
    uint64_t within = conn->body_at % slice_bytes;
    int pieces = 0;
    for (uint32_t i = (uint32_t)(conn->body_at / slice_bytes); i < conn->frame.count; i++) {
        uint8_t *slice = conn->stage ? conn->stage->host + i * slice_bytes
                                     : (uint8_t *)host->pool.base +
                                           kv_layout_slice_offset(host->layout, conn->landing.blocks[i], conn->frame.layer);
        iov[pieces].iov_base = slice + within;
        iov[pieces++].iov_len = slice_bytes - within;
        within = 0;
    }
    return pieces;
}

/* Sums what has just arrived, while it is in the cache. */
static void body_sum(struct conn *conn, const struct iovec *iov, uint64_t bytes)
{
    uint64_t slice_bytes = conn->cable->slice_bytes;
    for (; bytes > 0; iov++) {
        uint64_t piece = bytes < iov->iov_len ? bytes : iov->iov_len;
        conn->crc_now = crc32c(conn->crc_now, iov->iov_base, piece);
        conn->body_at += piece;
        bytes -= piece;
        if (conn->body_at % slice_bytes == 0) {
            uint32_t index = (uint32_t)(conn->body_at / slice_bytes) - 1;
            conn->crc_ok &= conn->crc_now == le32_load(conn->head + TCP_HEADER_BYTES + 4u * index);
            conn->crc_now = 0;
        }
    }
}

static enum tcp_step receive_step(struct conn *conn, uint64_t *taken)
{
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    uint64_t body_bytes = conn->frame.count * cable->slice_bytes;
    enum tcp_step step = STEP_ON;
    switch (conn->receive) {
    case RS_HEADER:
        step = tcp_head_receive(conn, TCP_HEADER_BYTES);
        if (step != STEP_ON || conn->head_at < TCP_HEADER_BYTES) { return step; }
        if (!tcp_frame_header_read(conn->head, (uint32_t)cable->slice_bytes, &conn->frame)) { return STEP_CORRUPT; }
        if (cable->stages && conn->frame.count > host->frame_blocks) { return STEP_CORRUPT; } /* larger than any sender's */
        conn->receive = RS_CRCS;
        return STEP_ON;
    case RS_CRCS: {
        size_t head_bytes = TCP_HEADER_BYTES + 4u * (size_t)conn->frame.count;
        step = tcp_head_receive(conn, head_bytes);
        if (step != STEP_ON || conn->head_at < head_bytes) { return step; }
        if (!tcp_frame_head_check(conn->head, conn->frame.count)) { return STEP_CORRUPT; }
        conn->head_at = 0;
        conn->body_at = 0;
        conn->crc_now = 0;
        conn->crc_ok = true;
        bool accepted = host->frame_accept(host->endpoint, conn->link, &conn->frame, &conn->landing);
        conn->receive = !accepted ? RS_DRAIN : cable->stages ? RS_STAGE : RS_SLICES;
        return STEP_ON;
    }
    case RS_STAGE:
        if (!host->landing_is_live(host->endpoint, &conn->landing)) {
            conn->receive = RS_DRAIN;
        } else if (tcp_stage_fill(conn)) {
            conn->receive = RS_SLICES;
        } else { /* the bytes stay in the socket until there is one */
            conn->waits_for_stage = true;
            return failed(kv_loop_watch(host->loop, &conn->watch, 0)) ? STEP_BROKEN : STEP_BLOCKED;
        }
        return STEP_ON;
    case RS_SLICES: {
        if (!host->landing_is_live(host->endpoint, &conn->landing)) { /* revoked in mid-frame */
            tcp_stage_empty(conn);
            conn->receive = RS_DRAIN;
            return STEP_ON;
        }
        struct iovec iov[KV_FRAME_BLOCKS_MAX];
        int pieces = body_iov(conn, iov);
        ssize_t got = tcp_io_read(&conn->io, iov, pieces);
        if (got <= 0) { return step_of(got); }
        *taken += (uint64_t)got;
        body_sum(conn, iov, (uint64_t)got);
        if (conn->body_at < body_bytes) { return STEP_ON; }
        conn->receive = RS_HEADER;
        if (conn->stage && conn->crc_ok) {
            tcp_stage_scatter(conn);
            return STEP_ON;
        }
        tcp_stage_empty(conn);
        uint32_t link = conn->link;
        host->frame_landed(host->endpoint, link, &conn->landing, &conn->frame, conn->crc_ok);
        return cable->conns[link] == conn ? STEP_ON : STEP_GONE;
    }
    case RS_DRAIN: {
        ssize_t got = tcp_io_discard(&conn->io, body_bytes - conn->body_at);
        if (got <= 0) { return step_of(got); }
        *taken += (uint64_t)got;
        conn->body_at += (uint64_t)got;
        if (conn->body_at == body_bytes) { conn->receive = RS_HEADER; }
        return STEP_ON;
    }
    }
    return STEP_BROKEN;
}

void tcp_receiver_run(struct conn *conn)
{
    const struct kv_cable_host *host = conn->cable->host;
    uint64_t taken = 0;
    enum tcp_step step = STEP_ON;
    host->heard(host->endpoint, conn->link);
    /* TLS may hold bytes that epoll knows nothing of, so there only blocking ends a turn. */
    while (step == STEP_ON && (taken < TURN_BYTES || conn->io.ssl)) { step = receive_step(conn, &taken); }
    if (step == STEP_BROKEN) {
        tcp_conn_fail(conn, STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno), "the peer hung up");
    } else if (step == STEP_CORRUPT) {
        tcp_conn_fail(conn, STATUS(ST_DATA_LOSS, SCOPE_PEER), "a frame's header is corrupt");
    }
}
