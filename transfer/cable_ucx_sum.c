/* cable_ucx_sum: the sums of slices that lie on a device, where the CPU does not see them.
 * Flow:    P: push -> CHECKSUM after the mark -> puts; D: notice -> CHECKSUM of what landed -> landed
 * Thread:  the transfer thread; the device's threads only fill the inbox, which the loop watches.
 * Memory:  SUMS_MAX records per connection, from its creation to its very end.
 *
 * P's sum is the word that the layer was computed, too: a put begins when its sum is done, which is after
 * the mark. What is under way on the device cannot be called back, so a connection that ends while it has
 * sums leaves the cable's tables at once and lives on until the last of them is done: P holds the pushes
 * whose slices are read so long, D the blocks (kv_cable_host.hold). */
#include "transfer/cable_ucx_state.h"

#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "base/check.h"

_Static_assert(KV_FRAME_BLOCKS_MAX <= KV_MEMORY_RANGES_MAX, "a frame is one op");

static void inbox_on_ready(struct kv_watch *watch, uint32_t events)
{
    (void)events;
    struct kv_cable *cable = (struct kv_cable *)((char *)watch - offsetof(struct kv_cable, inbox_watch));
    struct kv_memory_op *op = kv_memory_inbox_take_all(&cable->inbox);
    while (op) {
        struct sum *sum = (struct sum *)((char *)op - offsetof(struct sum, op));
        struct conn *conn = sum->conn;
        op = op->next; /* the record may be taken anew below */
        conn->in_sum = true;
        (conn->is_sender ? ucx_sender_summed : ucx_receiver_summed)(sum);
        conn->in_sum = false;
        ucx_conn_release(conn);
    }
}

status_t ucx_sums_open(struct kv_cable *cable)
{
    if (!cable->host->pool.memory) { return STATUS_OK; }
    TRY(kv_memory_inbox_init(&cable->inbox));
    cable->inbox_watch = (struct kv_watch){.fd = cable->inbox.fd, .on_ready = inbox_on_ready};
    return kv_loop_watch(cable->host->loop, &cable->inbox_watch, EPOLLIN);
}

void ucx_sums_close(struct kv_cable *cable)
{
    while (cable->sums_busy > 0) {
        kv_memory_inbox_wait(&cable->inbox);
        inbox_on_ready(&cable->inbox_watch, EPOLLIN);
    }
    kv_loop_remove(cable->host->loop, &cable->inbox_watch);
    kv_memory_inbox_fini(&cable->inbox);
}

bool ucx_sums_make(struct conn *conn)
{
    if (!conn->cable->host->pool.memory) { return true; }
    conn->sums = calloc(SUMS_MAX, sizeof *conn->sums);
    for (uint32_t i = 0; conn->sums && i < SUMS_MAX; i++) { conn->sums[i].conn = conn; }
    return conn->sums != NULL;
}

struct sum *ucx_sum_take(struct conn *conn)
{
    if (conn->sums_busy == SUMS_MAX) { return NULL; }
    struct sum *sum = conn->sums;
    while (sum->is_busy) { sum++; }
    sum->is_busy = true;
    conn->sums_busy++;
    conn->cable->sums_busy++;
    return sum;
}

void ucx_sum_start(struct sum *sum, uint32_t layer, const uint32_t *blocks, uint32_t count, uint64_t mark)
{
    struct kv_cable *cable = sum->conn->cable;
    sum->op.kind = KV_MEMORY_CHECKSUM;
    sum->op.count = count;
    sum->op.range_bytes = cable->slice_bytes;
    sum->op.mark = mark;
    sum->op.event = KV_MEMORY_EVENT_NONE;
    sum->op.done = kv_memory_inbox_put;
    sum->op.user = &cable->inbox;
    for (uint32_t i = 0; i < count; i++) { sum->op.offsets[i] = kv_layout_slice_offset(cable->host->layout, blocks[i], layer); }
    kv_memory_submit(cable->host->pool.memory, &sum->op);
}

void ucx_sum_give_back(struct sum *sum)
{
    CHECK(sum->is_busy);
    sum->is_busy = false;
    sum->push = NULL;
    sum->conn->sums_busy--;
    sum->conn->cable->sums_busy--;
}
