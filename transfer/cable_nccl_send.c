/* cable_nccl_send: P's half of the nccl cable: pushes are gathered into slots, asked for, and sent.
 * Flow:    the endpoint's push and abort -> [cable_nccl_send] -> gather, SEND; D's READY -> nccl_pair_transfer
 * Thread:  the transfer thread.
 * Memory:  the endpoint's push records. The pool is read by the gather alone: an aborted push is given back when that is
 *          done, and what then lies in the slot is of no interest. */
#include "transfer/cable_nccl_state.h"

#include "base/check.h"
#include "base/clock.h"

static uint32_t slot_number(const struct pair_slot *slot) { return (uint32_t)(slot - slot->pair->slots); }

static void slot_take(struct pair_slot *slot, struct kv_cable_push *push)
{
    struct kv_cable *cable = slot->pair->cable;
    slot->push = push;
    slot->state = SLOT_GATHERING;
    if (cable->frames_under_way++ == 0) { cable->busy_since_ns = clock_now_ns(); }
    nccl_pairs_busy(cable->table, slot->pair->number, 1, clock_now_ns());
}

static void slot_leave(struct pair_slot *slot)
{
    struct kv_cable *cable = slot->pair->cable;
    slot->state = SLOT_FREE;
    slot->push = NULL;
    if (--cable->frames_under_way == 0) { cable->stats.busy_ns += clock_now_ns() - cable->busy_since_ns; }
    nccl_pairs_busy(cable->table, slot->pair->number, -1, clock_now_ns());
}

/* Its slot may be anybody's after it, and the pair on its way out. */
static void push_give_back(struct kv_cable *cable, struct kv_cable_push *push, bool is_dropped)
{
    if (!push) { return; }
    push->dropped |= is_dropped;
    cable->host->push_done(cable->host->endpoint, push);
}

/* ---- the queue of a link */

static void queue_append(struct nccl_link *link, struct kv_cable_push *push)
{
    push->next = NULL;
    if (link->queue_first) { link->queue_last->next = push; } else { link->queue_first = push; }
    link->queue_last = push;
}

static struct kv_cable_push *queue_take(struct nccl_link *link)
{
    struct kv_cable_push *push = link->queue_first;
    link->queue_first = push->next;
    return push;
}

void cable_sender_push(struct kv_cable *cable, uint32_t number, struct kv_cable_push *push)
{
    struct nccl_link *link = &cable->links[number];
    if (!link->is_known) { /* it broke, and the endpoint has not heard of it yet */
        push_give_back(cable, push, true);
        return;
    }
    queue_append(link, push);
    struct cable_pair *pair = cable_pair_of(cable, number);
    if (pair && pair->state == PAIR_READY) {
        cable_sender_pump(pair);
    } else if (link->starved_ns == 0) { /* it was closed under the transfer: see cable_sender_end() */
        link->starved_ns = clock_now_ns();
        if (!pair) { (void)cable_link_want(cable, number); }
    }
}

void cable_sender_queue_drop(struct kv_cable *cable, uint32_t number)
{
    struct nccl_link *link = &cable->links[number];
    link->starved_ns = 0;
    while (link->queue_first) { push_give_back(cable, queue_take(link), true); }
}

void cable_sender_abort(struct kv_cable *cable, uint32_t number, uint32_t send_slot)
{
    struct nccl_link *link = &cable->links[number];
    struct kv_cable_push *rest = link->queue_first;
    link->queue_first = NULL;
    while (rest) {
        struct kv_cable_push *push = rest;
        rest = push->next;
        if (push->send_slot == send_slot) {
            push_give_back(cable, push, true);
        } else {
            queue_append(link, push);
        }
    }
    if (!link->queue_first) { link->starved_ns = 0; }
    for (uint32_t i = 0; i < cable->pairs_max; i++) { /* one that ends may still gather for it */
        struct cable_pair *pair = &cable->pairs[i];
        if (pair->state == PAIR_FREE || pair->link != number) { continue; }
        for (uint32_t k = 0; k < pair->shape.slot_count; k++) {
            struct pair_slot *slot = &pair->slots[k];
            if (slot->state == SLOT_FREE || !slot->push || slot->push->send_slot != send_slot) { continue; }
            slot->push->dropped = true;
            if (slot->state == SLOT_GATHERING) { continue; }
            struct kv_cable_push *push = slot->push;
            slot->push = NULL; /* D has its receive queued, or will: the slot is sent */
            push_give_back(cable, push, true);
        }
    }
}

/* ---- slots */

static void gather(struct pair_slot *slot, struct kv_cable_push *push)
{
    slot_take(slot, push);
    slot->bytes = push->frame.count * slot->pair->shape.piece_bytes;
    cable_slot_submit(slot, KV_MEMORY_GATHER, &push->frame, push->blocks, push->mark);
}

void cable_sender_pump(struct cable_pair *pair)
{
    struct nccl_link *link = &pair->cable->links[pair->link];
    for (uint32_t i = 0; i < pair->shape.slot_count && link->queue_first; i++) {
        if (pair->slots[i].state == SLOT_FREE) { gather(&pair->slots[i], queue_take(link)); }
    }
    if (!link->queue_first) { link->starved_ns = 0; }
}

void cable_sender_gathered(struct pair_slot *slot)
{
    struct cable_pair *pair = slot->pair;
    struct kv_cable *cable = pair->cable;
    struct kv_cable_push *push = slot->push;
    if (failed(slot->op.status)) {
        status_t status = slot->op.status;
        bool loses = !push->dropped;
        slot_leave(slot);
        push_give_back(cable, push, true);
        cable_pair_op_failed(pair, status, "the device does not gather blocks", loses);
        return;
    }
    if (pair->state == PAIR_READY && !push->dropped) {
        struct nccl_wire_msg msg = {.kind = NCCL_WIRE_SEND, .slot = slot_number(slot), .frame = push->frame};
        for (uint32_t i = 0; i < push->frame.count; i++) { msg.crc[i] = slot->op.crc[i]; }
        slot->state = SLOT_ASKED;
        slot->since_ns = clock_now_ns();
        cable_say(pair, &msg);
        return;
    }
    slot_leave(slot);
    if (!push->dropped) { /* the pair was closed for room meanwhile */
        struct nccl_link *link = &cable->links[pair->link];
        queue_append(link, push);
        struct cable_pair *next = cable_pair_of(cable, pair->link);
        if (next && next->state == PAIR_READY) {
            cable_sender_pump(next);
        } else if (link->starved_ns == 0) {
            link->starved_ns = clock_now_ns();
            if (!next) { (void)cable_link_want(cable, pair->link); }
        }
        return;
    }
    push_give_back(cable, push, true);
    if (pair->state == PAIR_READY) { cable_sender_pump(pair); }
}

void cable_sender_answered(struct pair_slot *slot, bool is_ready)
{
    struct cable_pair *pair = slot->pair;
    struct kv_cable_push *push = slot->push;
    if (is_ready) {
        slot->state = SLOT_SENDING;
        nccl_pair_transfer(pair->pair, slot_number(slot), slot->bytes);
        return;
    }
    slot_leave(slot);
    push_give_back(pair->cable, push, false);
    if (pair->state == PAIR_READY) { cable_sender_pump(pair); }
}

void cable_sender_passed(struct pair_slot *slot)
{
    struct cable_pair *pair = slot->pair;
    struct kv_cable_push *push = slot->push;
    if (slot->state != SLOT_SENDING) { return; }
    pair->frames++;
    pair->bytes += slot->bytes;
    pair->cable->stats.frames++;
    pair->cable->stats.bytes += slot->bytes;
    slot_leave(slot);
    push_give_back(pair->cable, push, false);
    if (pair->state == PAIR_READY) { cable_sender_pump(pair); }
}

void cable_sender_end(struct cable_pair *pair, bool requeues)
{
    struct kv_cable *cable = pair->cable;
    for (uint32_t i = 0; i < pair->shape.slot_count; i++) {
        struct pair_slot *slot = &pair->slots[i];
        struct kv_cable_push *push = slot->push;
        enum slot_state was = slot->state;
        if (was == SLOT_FREE) { continue; }
        if (was == SLOT_GATHERING) { /* the op ends it */
            push->dropped |= !requeues;
            continue;
        }
        slot_leave(slot);
        if (was == SLOT_ASKED && requeues && push) {
            queue_append(&cable->links[pair->link], push); /* slices have no order */
        } else { /* a D that closes for room has had all that it was ready for */
            push_give_back(cable, push, !requeues);
        }
    }
}
