/* cable_tcp_stage: the tcp cable's buffers between a pool on a device and the wire.
 * Flow:    P: queue -> READ after the mark -> [stage] -> socket; D: socket -> [stage] -> WRITE -> landed
 * Thread:  the transfer thread; the device's threads only fill the inbox, which the loop watches.
 * Memory:  a fixed number of stages of one frame each, of memory that the device copies to and from
 *          at full speed; taken at open. None where the pool is host memory.
 *
 * The pressure goes back: without a free stage P leaves pushes in its queue, whose length the endpoint
 * bounds, and D leaves bytes in the socket. A connection gets more than one stage only while a quarter
 * of them is free, so that peers who stall, until they are given up, leave the others room. What is
 * under way on the device cannot be called back: a stage whose connection has ended belongs to nobody
 * until its op is done. */
#include "transfer/cable_tcp_state.h"

#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "base/check.h"

#define STAGE_MEMORY_AIM (UINT64_C(64) << 20)
enum { STAGES_MIN = 4, STAGES_MAX = 32 };

static void inbox_on_ready(struct kv_watch *watch, uint32_t events);

/* ---- begin and end */

status_t tcp_stages_open(struct kv_cable *cable, struct diag *diag)
{
    const struct kv_cable_host *host = cable->host;
    if (!host->pool.memory) { return STATUS_OK; }
    uint64_t stage_bytes = host->frame_blocks * cable->slice_bytes;
    uint64_t count = STAGE_MEMORY_AIM / stage_bytes;
    uint32_t stages = count < STAGES_MIN ? STAGES_MIN : count > STAGES_MAX ? STAGES_MAX : (uint32_t)count;
    void *memory = NULL;
    TRY(kv_memory_inbox_init(&cable->inbox));
    cable->inbox_watch = (struct kv_watch){.fd = cable->inbox.fd, .on_ready = inbox_on_ready};
    TRY(kv_loop_watch(host->loop, &cable->inbox_watch, EPOLLIN));
    TRY(kv_memory_host_alloc(host->pool.memory, stages * stage_bytes, &memory, diag));
    cable->stage_memory = memory;
    cable->stages = calloc(stages, sizeof *cable->stages);
    if (!cable->stages) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    cable->stage_count = cable->stages_free = stages;
    for (uint32_t i = 0; i < stages; i++) {
        cable->stages[i].cable = cable;
        cable->stages[i].host = cable->stage_memory + i * stage_bytes;
    }
    return STATUS_OK;
}

void tcp_stages_close(struct kv_cable *cable)
{
    if (!cable->host->pool.memory) { return; }
    while (cable->stages_free < cable->stage_count) {
        kv_memory_inbox_wait(&cable->inbox);
        inbox_on_ready(&cable->inbox_watch, EPOLLIN);
    }
    if (cable->inbox_watch.watched) { kv_loop_remove(cable->host->loop, &cable->inbox_watch); }
    kv_memory_inbox_fini(&cable->inbox);
    free(cable->stages);
    kv_memory_host_free(cable->host->pool.memory, cable->stage_memory);
}

/* ---- stages */

static struct tcp_stage *stage_take(struct kv_cable *cable, bool is_only)
{
    if (cable->stages_free == 0 || (!is_only && cable->stages_free <= cable->stage_count / 4)) {
        cable->stage_is_wanted = true;
        return NULL;
    }
    struct tcp_stage *stage = cable->stages;
    while (stage->state != STAGE_FREE) { stage++; }
    cable->stages_free--;
    return stage;
}

static void stage_give_back(struct tcp_stage *stage)
{
    struct kv_cable *cable = stage->cable;
    stage->state = STAGE_FREE;
    stage->conn = NULL;
    stage->push = NULL;
    cable->stages_free++;
    /* Who waits is served in a turn of its own, not from inside whatever has freed this one. */
    if (cable->stage_is_wanted) { kv_memory_inbox_poke(&cable->inbox); }
}

static void op_start(struct tcp_stage *stage, enum kv_memory_op_kind kind, uint32_t count)
{
    struct kv_cable *cable = stage->cable;
    stage->op.kind = kind;
    stage->op.count = count;
    stage->op.range_bytes = cable->slice_bytes;
    stage->op.host = stage->host;
    stage->op.event = KV_MEMORY_EVENT_NONE;
    stage->op.done = kv_memory_inbox_put;
    stage->op.user = &cable->inbox;
    kv_memory_submit(cable->host->pool.memory, &stage->op);
}

/* ---- P */

bool tcp_stage_is_ready(const struct conn *conn) { return conn->stage_count > 0 && conn->stages[0]->state == STAGE_READY; }

void tcp_stages_gather(struct conn *conn)
{
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    struct kv_cable_push *push = conn->queue_first;
    for (uint32_t i = 0; i < conn->stage_count; i++) { push = push->next; }
    while (push && conn->stage_count < TCP_STAGES_EACH) {
        struct tcp_stage *stage = stage_take(cable, conn->stage_count == 0);
        if (!stage) { return; }
        stage->conn = conn;
        stage->push = push;
        stage->state = STAGE_READING;
        stage->op.mark = push->mark;
        for (uint32_t i = 0; i < push->frame.count; i++) {
            stage->op.offsets[i] = kv_layout_slice_offset(host->layout, push->blocks[i], push->frame.layer);
        }
        conn->stages[conn->stage_count++] = stage;
        op_start(stage, KV_MEMORY_READ, push->frame.count);
        push = push->next;
    }
}

void tcp_stage_shift(struct conn *conn)
{
    CHECK(conn->stage_count > 0);
    stage_give_back(conn->stages[0]);
    conn->stage_count--;
    for (uint32_t i = 0; i < conn->stage_count; i++) { conn->stages[i] = conn->stages[i + 1]; }
}

bool tcp_stage_leave(struct tcp_stage *stage)
{
    if (stage->state == STAGE_READING) {
        stage->conn = NULL;
        stage->push->dropped = true;
        return false;
    }
    stage_give_back(stage);
    return true;
}

static void read_done(struct tcp_stage *stage)
{
    struct conn *conn = stage->conn;
    const struct kv_cable_host *host = stage->cable->host;
    struct kv_cable_push *push = stage->push;
    stage->state = STAGE_READY;
    if (!conn) {
        stage_give_back(stage);
        host->push_done(host->endpoint, push);
    } else if (failed(stage->op.status)) {
        tcp_conn_fail(conn, stage->op.status, "our device could not read the slices");
    } else if (conn->stages[0] == stage && conn->state == CS_READY &&
               failed(kv_loop_watch(host->loop, &conn->watch, EPOLLIN | EPOLLOUT))) {
        tcp_conn_fail(conn, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_PEER), "the loop is full");
    }
}

/* ---- D */

bool tcp_stage_fill(struct conn *conn)
{
    conn->stage = stage_take(conn->cable, true);
    if (conn->stage) { conn->stage->state = STAGE_FILLING; }
    return conn->stage != NULL;
}

void tcp_stage_scatter(struct conn *conn)
{
    const struct kv_cable_host *host = conn->cable->host;
    struct tcp_stage *stage = conn->stage;
    conn->stage = NULL;
    stage->conn = conn;
    stage->frame = conn->frame;
    stage->landing = conn->landing;
    stage->state = STAGE_WRITING;
    stage->op.mark = 0;
    for (uint32_t i = 0; i < stage->frame.count; i++) {
        stage->op.offsets[i] = kv_layout_slice_offset(host->layout, stage->landing.blocks[i], stage->frame.layer);
    }
    host->hold(host->endpoint, &stage->landing);
    op_start(stage, KV_MEMORY_WRITE, stage->frame.count);
}

void tcp_stage_empty(struct conn *conn)
{
    if (conn->stage) { stage_give_back(conn->stage); }
    conn->stage = NULL;
}

static void write_done(struct tcp_stage *stage)
{
    struct conn *conn = stage->conn;
    const struct kv_cable_host *host = stage->cable->host;
    const struct kv_landing landing = stage->landing;
    const struct kv_frame frame = stage->frame;
    stage_give_back(stage);
    host->let_go(host->endpoint, &landing);
    if (!conn) { return; }
    if (failed(stage->op.status)) {
        tcp_conn_fail(conn, stage->op.status, "our device could not write the slices");
        return;
    }
    host->frame_landed(host->endpoint, conn->link, &landing, &frame, true);
}

/* ---- both */

void tcp_stages_end(struct conn *conn)
{
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    tcp_stage_empty(conn);
    for (uint32_t i = 0; i < conn->stage_count; i++) { /* of the first so many pushes of the queue */
        struct kv_cable_push *push = conn->queue_first;
        conn->queue_first = push->next;
        push->dropped = true;
        if (tcp_stage_leave(conn->stages[i])) { host->push_done(host->endpoint, push); }
    }
    conn->stage_count = 0;
    for (uint32_t i = 0; i < cable->stage_count; i++) {
        if (cable->stages[i].conn == conn) { cable->stages[i].conn = NULL; } /* D's, which are being written */
    }
}

/* Those who found no stage find one now, or wait on. */
static void wanted_serve(struct kv_cable *cable)
{
    cable->stage_is_wanted = false;
    for (uint32_t link = 0; link < cable->host->links_max; link++) {
        struct conn *conn = cable->conns[link];
        if (!conn || conn->state != CS_READY) { continue; }
        if (conn->is_sender) {
            tcp_stages_gather(conn);
        } else if (conn->waits_for_stage) {
            conn->waits_for_stage = false;
            if (failed(kv_loop_watch(cable->host->loop, &conn->watch, EPOLLIN))) {
                tcp_conn_fail(conn, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_PEER), "the loop is full");
            } else {
                tcp_receiver_run(conn);
            }
        }
    }
}

static void inbox_on_ready(struct kv_watch *watch, uint32_t events)
{
    (void)events;
    struct kv_cable *cable = (struct kv_cable *)((char *)watch - offsetof(struct kv_cable, inbox_watch));
    struct kv_memory_op *op = kv_memory_inbox_take_all(&cable->inbox);
    while (op) {
        struct tcp_stage *stage = (struct tcp_stage *)((char *)op - offsetof(struct tcp_stage, op));
        op = op->next; /* the stage may be taken anew below */
        (stage->state == STAGE_READING ? read_done : write_done)(stage);
    }
    if (cable->stage_is_wanted && cable->stages_free > 0) { wanted_serve(cable); }
}
