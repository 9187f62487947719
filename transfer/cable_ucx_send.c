/* cable_ucx_send: P's half of the ucx cable: pushes out of the pool into D's blocks.
 * Flow:    the endpoint's push and abort -> [cable_ucx_send] -> sums, puts, flush, notice -> D
 *          A pool on a device: the device makes the sums first, and the puts read out of its memory.
 * Thread:  the transfer thread; the callbacks run on it too, inside worker_progress().
 * Memory:  FRAMES_MAX frames per connection; a list of block numbers per grant that D told us of. */
#include "transfer/cable_ucx_state.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/crc32c.h"
#include "transfer/little_endian.h"

/* ---- where D's blocks are */

static struct remote_grant **grant_place(struct conn *conn, uint64_t grant_epoch)
{
    struct remote_grant **at = &conn->grants[grant_epoch % GRANT_BUCKETS];
    while (*at && (*at)->grant_epoch != grant_epoch) { at = &(*at)->next; }
    return at;
}

static void grant_remove(struct conn *conn, struct remote_grant **at)
{
    struct remote_grant *grant = *at;
    *at = grant->next;
    conn->grant_count--;
    free(grant);
}

static void push_queue(struct kv_cable_push **first, struct kv_cable_push **last, struct kv_cable_push *push)
{
    push->next = NULL;
    if (*first) { (*last)->next = push; } else { *first = push; }
    *last = push;
}

static void push_drop(struct kv_cable *cable, struct kv_cable_push *push)
{
    push->dropped = true;
    cable->host->push_done(cable->host->endpoint, push);
}

/* Moves the early pushes whose grant is known now. */
static void early_wake(struct conn *conn, uint64_t grant_epoch)
{
    struct kv_cable_push *rest = conn->early_first;
    conn->early_first = conn->early_last = NULL;
    while (rest) {
        struct kv_cable_push *push = rest;
        rest = push->next;
        if (push->frame.grant_epoch == grant_epoch) {
            push_queue(&conn->ready_first, &conn->ready_last, push);
        } else {
            push_queue(&conn->early_first, &conn->early_last, push);
        }
    }
}

static void on_grant_mail(struct conn *conn, const struct mail *mail)
{
    struct ucx_grant told;
    if (!ucx_grant_read(mail->data, mail->bytes, conn->remote_blocks, &told)) {
        ucx_conn_fail(conn, STATUS(ST_DATA_LOSS, SCOPE_PEER), "a grant's list of blocks is corrupt");
        return;
    }
    struct remote_grant **at = grant_place(conn, told.grant_epoch);
    if (told.count == 0) {
        if (*at) { grant_remove(conn, at); }
        return;
    }
    if (*at || conn->grant_count == GRANTS_MAX) {
        ucx_conn_fail(conn, STATUS(ST_INTERNAL, SCOPE_PEER), "the peer tells of a grant twice, or of too many");
        return;
    }
    struct remote_grant *grant = malloc(sizeof *grant + told.count * sizeof grant->blocks[0]);
    if (!grant) {
        ucx_conn_fail(conn, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_PEER), "no memory for a grant's list of blocks");
        return;
    }
    grant->next = NULL;
    grant->grant_epoch = told.grant_epoch;
    grant->count = told.count;
    grant->slices_left = (uint64_t)told.count * conn->cable->host->layout->layer_count;
    for (uint32_t i = 0; i < told.count; i++) { grant->blocks[i] = le32_load(told.blocks + 4u * (size_t)i); }
    *at = grant;
    conn->grant_count++;
    early_wake(conn, told.grant_epoch);
    ucx_conn_schedule(conn);
}

static void on_welcome_mail(struct conn *conn, const struct mail *mail)
{
    if (conn->state != CS_HELLO || !ucx_welcome_read(mail->data, mail->bytes)) {
        ucx_conn_fail(conn, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the peer did not welcome us");
        return;
    }
    ucx_conn_is_ready(conn);
    conn->cable->host->connected(conn->cable->host->endpoint, conn->link);
}

void ucx_sender_mail(struct conn *conn, const struct mail *mail)
{
    if (mail->kind == UCX_MSG_WELCOME) {
        on_welcome_mail(conn, mail);
    } else if (mail->kind == UCX_MSG_GRANT && conn->state == CS_READY) {
        on_grant_mail(conn, mail);
    } else {
        ucx_conn_fail(conn, STATUS(ST_INTERNAL, SCOPE_PEER), "the peer broke the cable's order of messages");
    }
}

/* ---- frames */

static void frame_done(struct frame *frame)
{
    struct conn *conn = frame->conn;
    frame->next_done = NULL;
    if (conn->done_first) { conn->done_last->next_done = frame; } else { conn->done_first = frame; }
    conn->done_last = frame;
}

static void on_request_done(void *request, ucx_status_t status, void *user)
{
    struct frame *frame = user;
    struct conn *conn = frame->conn;
    conn->cable->api->request_free(request);
    if (status != UCX_OK) {
        frame->failed = true;
        ucx_conn_break(conn, status);
    }
    conn->open--;
    if (--frame->open == 0) { frame_done(frame); }
}

/* Counts what UCX took of a frame. False: it failed at once. */
static bool frame_posted(struct frame *frame, ucx_request_t request)
{
    ucx_status_t st = ucx_status_of(request);
    if (st == UCX_INPROGRESS) {
        frame->open++;
        frame->conn->open++;
    } else if (st != UCX_OK) {
        frame->failed = true;
        ucx_conn_break(frame->conn, st);
        return false;
    }
    return true;
}

static struct ucx_request_param frame_param(struct frame *frame)
{
    return (struct ucx_request_param){
        .op_attr_mask = UCX_OP_ATTR_FIELD_CALLBACK | UCX_OP_ATTR_FIELD_USER_DATA,
        .cb.send = on_request_done,
        .user_data = frame,
    };
}

static void frame_start(struct conn *conn, struct kv_cable_push *push, const struct remote_grant *grant)
{
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    struct frame *frame = conn->frames;
    while (frame->state != FS_FREE) { frame++; }
    /* Posting counts as one: a put that finds the connection broken ends those before it from inside its call. */
    *frame = (struct frame){.conn = conn, .push = push, .state = FS_PUTS, .open = 1};
    if (conn->frames_busy++ == 0) {
        conn->busy_since_ns = clock_now_ns();
        conn->ticks = 0;
        ucx_ticks_set(cable, true);
    }
    conn->inflight_bytes += push->frame.count * cable->slice_bytes;
    const uint8_t *pool = host->pool.base; /* on a device an address for UCX alone */
    for (uint32_t i = 0; i < push->frame.count && !conn->sums; i++) {
        push->crc[i] = crc32c(0, pool + kv_layout_slice_offset(host->layout, push->blocks[i], push->frame.layer), cable->slice_bytes);
    }
    frame->head_bytes = (uint32_t)tcp_frame_head_write(&push->frame, (uint32_t)cable->slice_bytes, push->crc, frame->head);
    struct ucx_request_param param = frame_param(frame);
    param.op_attr_mask |= UCX_OP_ATTR_FIELD_MEMH;
    param.memh = cable->memh;
    if (conn->sums) {
        param.op_attr_mask |= UCX_OP_ATTR_FIELD_MEMORY_TYPE;
        param.memory_type = UCX_MEMORY_TYPE_CUDA;
    }
    bool goes = true;
    for (uint32_t i = 0; i < push->frame.count && goes; i++) {
        const uint8_t *from = pool + kv_layout_slice_offset(host->layout, push->blocks[i], push->frame.layer);
        uint64_t to = conn->remote_base +
                      kv_layout_slice_offset(host->layout, grant->blocks[push->frame.first + i], push->frame.layer);
        goes = frame_posted(frame, cable->api->put_nbx(conn->endpoint, from, cable->slice_bytes, to, conn->rkey, &param));
    }
    /* A put that is complete here may still be on its way there: only the flush says that all puts
     * before it are in D's memory. */
    if (goes) {
        const struct ucx_request_param flush = frame_param(frame);
        (void)frame_posted(frame, cable->api->ep_flush_nbx(conn->endpoint, &flush));
    }
    if (--frame->open == 0) { frame_done(frame); }
}

static void frame_free(struct frame *frame)
{
    struct conn *conn = frame->conn;
    frame->state = FS_FREE;
    if (--conn->frames_busy == 0) {
        uint64_t busy_ns = clock_now_ns() - conn->busy_since_ns;
        conn->busy_ns += busy_ns;
        conn->cable->stats.busy_ns += busy_ns;
    }
}

/* Gives the push of a frame whose puts are over back. */
static void frame_push_done(struct frame *frame)
{
    struct conn *conn = frame->conn;
    struct kv_cable *cable = conn->cable;
    struct kv_cable_push *push = frame->push;
    uint64_t bytes = push->frame.count * cable->slice_bytes;
    frame->push = NULL;
    conn->inflight_bytes -= bytes;
    conn->ticks = 0;
    if (frame->failed || conn->is_gone) {
        push->dropped = true;
    } else {
        conn->put_bytes += bytes;
        cable->stats.puts += push->frame.count;
        cable->stats.put_bytes += bytes;
    }
    cable->host->push_done(cable->host->endpoint, push);
}

void ucx_sender_collect(struct conn *conn)
{
    while (conn->done_first) {
        struct frame *frame = conn->done_first;
        conn->done_first = frame->next_done;
        struct kv_cable_push *push = frame->push;
        if (frame->state == FS_PUTS && !frame->failed && !push->dropped && !conn->is_gone && !conn->is_broken) {
            frame->state = FS_NOTICE;
            struct ucx_request_param param = frame_param(frame);
            param.op_attr_mask |= UCX_OP_ATTR_FIELD_FLAGS;
            param.flags = UCX_AM_SEND_FLAG_EAGER;
            frame->open = 1;
            (void)frame_posted(frame, conn->cable->api->am_send_nbx(conn->endpoint, UCX_MSG_FRAME, NULL, 0, frame->head,
                                                                    frame->head_bytes, &param));
            if (--frame->open == 0) { frame_free(frame); }
            frame_push_done(frame); /* last: the endpoint may close the link in it */
            continue;
        }
        bool has_push = frame->push != NULL;
        frame_free(frame);
        if (has_push) { frame_push_done(frame); }
    }
}

bool ucx_sender_run(struct conn *conn)
{
    ucx_sender_collect(conn);
    uint64_t summed = 0;
    while (!conn->is_gone && !conn->is_broken && conn->ready_first && conn->frames_busy < FRAMES_MAX &&
           conn->inflight_bytes < INFLIGHT_BYTES_MAX) {
        if (summed >= TURN_BYTES) { return true; }
        struct kv_cable_push *push = conn->ready_first;
        conn->ready_first = push->next;
        push->next = NULL;
        struct remote_grant **at = grant_place(conn, push->frame.grant_epoch);
        if (!*at) { /* D took the grant back; its word about it is on its way over the link */
            push_queue(&conn->early_first, &conn->early_last, push);
            continue;
        }
        if (push->frame.first >= (*at)->count || push->frame.count > (*at)->count - push->frame.first) {
            push_drop(conn->cable, push); /* the ticket lied about the size; D refused its begin */
            continue;
        }
        summed += conn->sums ? 0 : push->frame.count * conn->cable->slice_bytes;
        frame_start(conn, push, *at);
        (*at)->slices_left -= push->frame.count < (*at)->slices_left ? push->frame.count : (*at)->slices_left;
        if ((*at)->slices_left == 0) { grant_remove(conn, at); }
        if (conn->done_first) { ucx_sender_collect(conn); }
    }
    return false;
}

/* ---- pushes on their way to the frames */

/* It has its sums, or the CPU will make them: it may be put once D has told of its grant. */
static void push_may_go(struct conn *conn, struct kv_cable_push *push)
{
    if (*grant_place(conn, push->frame.grant_epoch)) {
        push_queue(&conn->ready_first, &conn->ready_last, push);
    } else {
        push_queue(&conn->early_first, &conn->early_last, push);
    }
    ucx_conn_schedule(conn);
}

static void raw_sum(struct conn *conn)
{
    struct sum *sum;
    while (conn->raw_first && (sum = ucx_sum_take(conn)) != NULL) {
        struct kv_cable_push *push = conn->raw_first;
        conn->raw_first = push->next;
        push->next = NULL;
        sum->push = push;
        ucx_sum_start(sum, push->frame.layer, push->blocks, push->frame.count, push->mark);
    }
}

void ucx_sender_summed(struct sum *sum)
{
    struct conn *conn = sum->conn;
    struct kv_cable_push *push = sum->push;
    const status_t status = sum->op.status;
    if (!failed(status)) { memcpy(push->crc, sum->op.crc, push->frame.count * sizeof push->crc[0]); }
    ucx_sum_give_back(sum);
    if (conn->is_gone || push->dropped || failed(status)) {
        push_drop(conn->cable, push);
    } else {
        push_may_go(conn, push);
    }
    if (conn->is_gone) { return; }
    if (failed(status)) {
        ucx_conn_fail(conn, status, "our device could not read the slices");
        return;
    }
    raw_sum(conn);
}

/* ---- the endpoint's calls */

void ucx_sender_push(struct kv_cable *cable, uint32_t link, struct kv_cable_push *push)
{
    struct conn *conn = cable->conns[link];
    if (!conn) { /* it broke, and the endpoint has not heard of it yet */
        push_drop(cable, push);
    } else if (conn->sums) {
        push_queue(&conn->raw_first, &conn->raw_last, push);
        raw_sum(conn);
    } else {
        push_may_go(conn, push);
    }
}

/* Takes the pushes of `send_slot`, or all with UINT32_MAX, out of a queue and puts them before `dropped`. */
static struct kv_cable_push *queue_take(struct kv_cable_push **first, struct kv_cable_push **last, uint32_t send_slot,
                                        struct kv_cable_push *dropped)
{
    struct kv_cable_push *rest = *first;
    *first = *last = NULL;
    while (rest) {
        struct kv_cable_push *push = rest;
        rest = push->next;
        if (send_slot == UINT32_MAX || push->send_slot == send_slot) {
            push->next = dropped;
            dropped = push;
        } else {
            push_queue(first, last, push);
        }
    }
    return dropped;
}

/* All queues are done with before the first is given back: the endpoint may end the link in that. */
static void queues_drop(struct conn *conn, uint32_t send_slot)
{
    struct kv_cable *cable = conn->cable;
    struct kv_cable_push *dropped = queue_take(&conn->raw_first, &conn->raw_last, send_slot, NULL);
    dropped = queue_take(&conn->ready_first, &conn->ready_last, send_slot, dropped);
    dropped = queue_take(&conn->early_first, &conn->early_last, send_slot, dropped);
    while (dropped) {
        struct kv_cable_push *push = dropped;
        dropped = push->next;
        push->next = NULL;
        push_drop(cable, push);
    }
}

void ucx_sender_abort(struct kv_cable *cable, uint32_t link, uint32_t send_slot)
{
    struct conn *conn = cable->conns[link];
    if (!conn) { return; }
    for (uint32_t i = 0; i < FRAMES_MAX; i++) {
        struct kv_cable_push *push = conn->frames[i].push;
        if (push && push->send_slot == send_slot) { push->dropped = true; }
    }
    for (uint32_t i = 0; conn->sums && i < SUMS_MAX; i++) {
        struct kv_cable_push *push = conn->sums[i].push;
        if (push && push->send_slot == send_slot) { push->dropped = true; }
    }
    queues_drop(conn, send_slot);
}

void ucx_sender_drop_queues(struct conn *conn) { queues_drop(conn, UINT32_MAX); }

void ucx_sender_fini(struct conn *conn)
{
    for (uint32_t i = 0; i < GRANT_BUCKETS; i++) {
        while (conn->grants[i]) { grant_remove(conn, &conn->grants[i]); }
    }
    free(conn->frames);
}
