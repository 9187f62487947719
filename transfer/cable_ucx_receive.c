/* cable_ucx_receive: D's half of the ucx cable: who may write where, and whether it is what was sent.
 * Flow:    P's hello -> welcome; the endpoint's grant -> block numbers to P; a notice -> [cable_ucx_receive]
 *          -> the sums of what landed -> frame_landed
 * Thread:  the transfer thread.
 * Memory:  none of its own. */
#include "transfer/cable_ucx_state.h"

#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "transfer/little_endian.h"

static void on_hello_mail(struct conn *conn, const struct mail *mail)
{
    const struct kv_cable_host *host = conn->cable->host;
    struct ucx_hello hello;
    uint32_t link = 0;
    /* The worker was made for one link, so the token must be that link's. Who has neither is not
     * answered; what he connected ends with the worker. */
    if (!ucx_hello_read(mail->data, mail->bytes, &hello) || !host->token_link(host->endpoint, hello.token, &link) ||
        link != conn->link) {
        return;
    }
    uint8_t *address = calloc(1, UCX_ADDRESS_BYTES_MAX + UCX_BLOB_TAIL_BYTES);
    if (!address) { return; }
    memcpy(address, hello.address, hello.address_bytes);
    /* UCX made an endpoint of its own for P's wire-up; this call takes it over. Until then an error on it would have
     * ended it without our hearing of it, which is why we do not answer to the message's reply_ep. */
    ucx_status_t st = ucx_conn_dial(conn, address);
    free(address);
    if (st != UCX_OK) {
        ucx_conn_break(conn, st);
        return;
    }
    ucx_conn_is_ready(conn);
    uint8_t welcome[UCX_WELCOME_BYTES];
    ucx_welcome_write(welcome);
    /* D is ready before P can know it, so P's first begin finds the link so. */
    host->connected(host->endpoint, conn->link);
    if (!conn->is_gone) { (void)ucx_conn_send(conn, UCX_MSG_WELCOME, welcome, sizeof welcome); }
}

static void sum_start(struct sum *sum)
{
    ucx_sum_start(sum, sum->frame.layer, sum->landing.blocks, sum->frame.count, 0);
}

void ucx_receiver_summed(struct sum *sum)
{
    struct conn *conn = sum->conn;
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    const status_t status = sum->op.status;
    const struct kv_frame frame = sum->frame;
    const struct kv_landing landing = sum->landing;
    bool crc_ok = !failed(status);
    for (uint32_t i = 0; i < frame.count && crc_ok; i++) { crc_ok = sum->op.crc[i] == sum->crc[i]; }
    if (!crc_ok && !failed(status) && !sum->is_second && !conn->is_gone) {
        /* A card's writes to a GPU and those to host memory go two ways, so a notice may be here a moment before the
         * last bytes are there, on a GPU that does not order them (CUDA's GPUDirect RDMA writes ordering: none). By a
         * second sum they are; what differs then is wrong. */
        sum->is_second = true;
        sum_start(sum);
        return;
    }
    ucx_sum_give_back(sum);
    host->let_go(host->endpoint, &landing);
    if (conn->is_gone) { return; }
    if (failed(status)) {
        ucx_conn_fail(conn, status, "our device could not read what has landed");
        return;
    }
    if (conn->mail_first) { ucx_conn_schedule(conn); }
    host->frame_landed(host->endpoint, conn->link, &landing, &frame, crc_ok);
}

/* False: no sum is free. */
static bool on_frame_mail(struct conn *conn, const struct mail *mail)
{
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    struct kv_frame frame;
    struct kv_landing landing;
    if (mail->bytes < TCP_HEADER_BYTES || !tcp_frame_header_read(mail->data, (uint32_t)cable->slice_bytes, &frame) ||
        mail->bytes != TCP_HEADER_BYTES + 4u * (size_t)frame.count || !tcp_frame_head_check(mail->data, frame.count)) {
        ucx_conn_fail(conn, STATUS(ST_DATA_LOSS, SCOPE_PEER), "a frame's notice is corrupt");
        return true;
    }
    if (conn->sums && conn->sums_busy == SUMS_MAX) { return false; }
    /* Refused: its grant ended while it was under way; quarantine waits for P's word. */
    if (!host->frame_accept(host->endpoint, conn->link, &frame, &landing)) { return true; }
    const uint8_t *sums = mail->data + TCP_HEADER_BYTES;
    if (conn->sums) {
        struct sum *sum = ucx_sum_take(conn);
        sum->frame = frame;
        sum->landing = landing;
        sum->is_second = false;
        for (uint32_t i = 0; i < frame.count; i++) { sum->crc[i] = le32_load(sums + 4u * (size_t)i); }
        host->hold(host->endpoint, &landing);
        sum_start(sum);
        return true;
    }
    bool crc_ok = true;
    for (uint32_t i = 0; i < frame.count; i++) {
        const uint8_t *slice =
            (const uint8_t *)host->pool.base + kv_layout_slice_offset(host->layout, landing.blocks[i], frame.layer);
        crc_ok &= crc32c(0, slice, cable->slice_bytes) == le32_load(sums + 4u * (size_t)i);
    }
    host->frame_landed(host->endpoint, conn->link, &landing, &frame, crc_ok);
    return true;
}

bool ucx_receiver_mail(struct conn *conn, const struct mail *mail)
{
    if (mail->kind == UCX_MSG_HELLO && conn->state == CS_OFFERED) {
        on_hello_mail(conn, mail);
    } else if (conn->state != CS_READY) {
        return true; /* of somebody whose hello was not taken */
    } else if (mail->kind == UCX_MSG_FRAME) {
        conn->cable->host->heard(conn->cable->host->endpoint, conn->link);
        return on_frame_mail(conn, mail);
    } else {
        ucx_conn_fail(conn, STATUS(ST_INTERNAL, SCOPE_PEER), "the peer broke the cable's order of messages");
    }
    return true;
}

static void tell(struct conn *conn, uint64_t grant_epoch, const uint32_t *blocks, uint32_t count)
{
    uint8_t *bytes = malloc(UCX_GRANT_HEAD_BYTES + 4u * (size_t)count);
    if (!bytes) {
        ucx_conn_break(conn, -1);
        ucx_conn_schedule(conn);
        return;
    }
    size_t size = ucx_grant_write(grant_epoch, blocks, count, bytes);
    (void)ucx_conn_send(conn, UCX_MSG_GRANT, bytes, size);
    free(bytes);
}

void ucx_receiver_grant(struct kv_cable *cable, uint32_t link, const struct kv_landing *landing, uint32_t count)
{
    struct conn *conn = cable->conns[link];
    if (conn && conn->state == CS_READY && !conn->is_broken) { tell(conn, landing->grant_epoch, landing->blocks, count); }
}

bool ucx_receiver_revoke(struct kv_cable *cable, uint32_t link, const struct kv_landing *landing)
{
    struct conn *conn = cable->conns[link];
    if (!conn) { return true; } /* fenced already */
    /* So that P stops early and forgets the list; what makes the blocks safe is its word on the link, or
     * the fence. */
    if (conn->state == CS_READY && !conn->is_broken) { tell(conn, landing->grant_epoch, NULL, 0); }
    return false;
}
