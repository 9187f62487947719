/* cable_nccl_receive: D's half of the nccl cable: a receive is queued for what P asks to send, and what has come is
 * scattered into the blocks of its grant, if that is still alive.
 * Flow:    SEND -> [cable_nccl_receive] -> nccl_pair_transfer, READY; passed -> scatter -> frame_landed
 * Thread:  the transfer thread.
 * Memory:  slots. The landing is held while the scatter is under way, whatever becomes of grant, pair or link. */
#include "transfer/cable_nccl_state.h"

#include "base/check.h"
#include "base/clock.h"

static uint32_t slot_number(const struct pair_slot *slot) { return (uint32_t)(slot - slot->pair->slots); }

/* NCCL pairs the n-th receive with the n-th send: P sends in the order of the READYs that it hears, which is the order
 * of the calls here. READY does not wait until the pair's thread has queued the receive on the device. */
static void receive(struct pair_slot *slot)
{
    struct cable_pair *pair = slot->pair;
    struct kv_cable *cable = pair->cable;
    const struct kv_cable_host *host = cable->host;
    if (!host->frame_accept(host->endpoint, pair->link, &slot->now.frame, &slot->landing)) {
        cable_say_slot(pair, NCCL_WIRE_REFUSED, slot);
        return;
    }
    slot->state = SLOT_RECEIVING;
    slot->bytes = slot->now.frame.count * pair->shape.piece_bytes;
    nccl_pairs_busy(cable->table, pair->number, 1, clock_now_ns());
    nccl_pair_transfer(pair->pair, slot_number(slot), slot->bytes);
    cable_say_slot(pair, NCCL_WIRE_READY, slot);
}

static void receive_next(struct pair_slot *slot)
{
    if (slot->pair->state != PAIR_READY || slot->state != SLOT_FREE || !slot->has_next) { return; }
    slot->has_next = false;
    slot->now = slot->next;
    receive(slot);
}

static void slot_leave(struct pair_slot *slot)
{
    struct kv_cable *cable = slot->pair->cable;
    slot->state = SLOT_FREE;
    nccl_pairs_busy(cable->table, slot->pair->number, -1, clock_now_ns());
}

bool cable_receiver_asked(struct cable_pair *pair, const struct nccl_wire_msg *msg)
{
    const struct nccl_shape *shape = &pair->shape;
    if (msg->slot >= shape->slot_count || msg->frame.count * shape->piece_bytes > shape->slot_bytes) { return false; }
    struct pair_slot *slot = &pair->slots[msg->slot];
    struct slot_frame *to = slot->state == SLOT_FREE ? &slot->now : &slot->next;
    if (slot->state != SLOT_FREE && slot->has_next) { return false; }
    to->frame = msg->frame;
    for (uint32_t i = 0; i < msg->frame.count; i++) { to->crc[i] = msg->crc[i]; }
    if (slot->state == SLOT_FREE) {
        receive(slot);
    } else { /* P's end of the transfer before has passed, and ours goes on */
        slot->has_next = true;
    }
    return true;
}

void cable_receiver_passed(struct pair_slot *slot)
{
    struct cable_pair *pair = slot->pair;
    struct kv_cable *cable = pair->cable;
    const struct kv_cable_host *host = cable->host;
    if (slot->state != SLOT_RECEIVING) { return; }
    pair->frames++;
    pair->bytes += slot->bytes;
    cable->stats.frames++;
    cable->stats.bytes += slot->bytes;
    if (!host->landing_is_live(host->endpoint, &slot->landing)) { /* it came too late for its grant, and stays in the slot */
        slot_leave(slot);
        receive_next(slot);
        return;
    }
    host->hold(host->endpoint, &slot->landing);
    slot->state = SLOT_SCATTERING;
    cable_slot_submit(slot, KV_MEMORY_SCATTER, &slot->now.frame, slot->landing.blocks, 0);
}

void cable_receiver_scattered(struct pair_slot *slot)
{
    struct cable_pair *pair = slot->pair;
    const struct kv_cable_host *host = pair->cable->host;
    bool loses = failed(slot->op.status) && host->landing_is_live(host->endpoint, &slot->landing);
    host->let_go(host->endpoint, &slot->landing);
    slot_leave(slot);
    if (failed(slot->op.status)) {
        cable_pair_op_failed(pair, slot->op.status, "the device does not scatter blocks", loses);
        return;
    }
    bool crc_ok = true;
    for (uint32_t i = 0; i < slot->now.frame.count; i++) { crc_ok &= slot->op.crc[i] == slot->now.crc[i]; }
    /* Of a link that is closed the grants are over. The call may end this one. */
    if (pair->link != NCCL_LINK_GONE) { host->frame_landed(host->endpoint, pair->link, &slot->landing, &slot->now.frame, crc_ok); }
    receive_next(slot);
}

void cable_receiver_end(struct cable_pair *pair)
{
    for (uint32_t i = 0; i < pair->shape.slot_count; i++) {
        struct pair_slot *slot = &pair->slots[i];
        slot->has_next = false;
        if (slot->state == SLOT_RECEIVING) { slot_leave(slot); }
    }
}
