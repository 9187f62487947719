/* The ends of a pair: what a cable makes of the table's wishes, of the peer's messages, and of what its
 * communicators do. In the order of a pair's life. */
#include "base/check.h"
#include "sim/sim_pairs_world.h"

bool end_is_ready(const struct end *end) { return end->stage == END_MADE && end->is_up && end->peer_is_up; }

/* A link was just told that there is no room. Then too few idle, or room is being made, or was of late. */
void end_no_room(struct world *world, uint32_t node_id)
{
    const struct node *node = &world->nodes[node_id];
    if (!world->is_even || nccl_pairs_stats(node->pairs)->closing > 0) { return; }
    if (node->changed_ns > 0 && world->now_ns - node->changed_ns < NCCL_PAIRS_CHANGE_NS) { return; }
    uint32_t idle = 0;
    for (uint32_t i = 0; i < world->options.pairs_max; i++) {
        const struct end *end = &node->ends[i];
        if (end->stage != END_MADE || !end->is_up || end->busy > 0) { continue; }
        if (world->now_ns - end->up_ns < NCCL_PAIRS_UP_MIN_NS || world->now_ns - end->used_ns < NCCL_PAIRS_IDLE_NS) {
            continue;
        }
        idle++;
    }
    const struct nccl_pairs_stats *stats = nccl_pairs_stats(node->pairs);
    uint64_t idle_bytes = idle * (world->options.slots_bytes + world->options.nccl_bytes); /* at least */
    uint64_t cost = world->options.slots_bytes + stats->nccl_bytes_expected;
    if (idle > 0 && stats->memory_bytes + cost <= world->options.memory_max + idle_bytes) {
        pairs_fail(world, "node %u: no room, and %u idle", node_id, idle);
    }
}

/* A pair is closed for another's sake: it carries nothing, and of those that could be closed it is the one not
 * used for the longest. (Of one that was not used since it was opened only the table knows.) */
static void check_victim(struct world *world, uint32_t node_id, uint32_t pair)
{
    const struct node *node = &world->nodes[node_id];
    const struct end *victim = &node->ends[pair];
    if (victim->busy > 0) { pairs_fail(world, "node %u: pair %u is closed while it is used", node_id, pair); }
    if (world->now_ns - victim->up_ns < NCCL_PAIRS_UP_MIN_NS) {
        pairs_fail(world, "node %u: pair %u is closed young", node_id, pair);
    }
    for (uint32_t i = 0; victim->was_used && i < world->options.pairs_max; i++) {
        const struct end *end = &node->ends[i];
        if (end->stage != END_MADE || !end->is_up || end->busy > 0 || !end->was_used) { continue; }
        if (world->now_ns - end->up_ns < NCCL_PAIRS_UP_MIN_NS || end->used_ns >= victim->used_ns) { continue; }
        pairs_fail(world, "node %u: pair %u is closed, and pair %u was used less lately", node_id, pair, i);
    }
}

static void say(struct world *world, uint32_t link_id, int from, enum message_kind kind, uint64_t gen, uint32_t comm,
                uint32_t transfer, uint64_t value)
{
    struct link_of_two *link = &world->links[link_id];
    int to = !from;
    if (!link->is_up[from]) { return; }
    uint64_t at_ns = world->now_ns + 1 + pairs_below(world, link->delay_ns);
    if (at_ns <= link->arrives_ns[to]) { at_ns = link->arrives_ns[to] + 1; }
    link->arrives_ns[to] = at_ns;
    struct event *event = pairs_at(world, at_ns, EV_MESSAGE);
    event->link = link_id;
    event->side = to;
    event->message = kind;
    event->gen = gen;
    event->comm = comm;
    event->transfer = transfer;
    event->value = value;
}

static struct event *at_pair(struct world *world, uint64_t at_ns, enum event_kind kind, uint32_t node, uint32_t pair)
{
    struct event *event = pairs_at(world, at_ns, kind);
    event->node = node;
    event->pair = pair;
    event->life = world->nodes[node].life;
    event->turn = world->nodes[node].ends[pair].turn;
    return event;
}

static void hold(struct world *world, uint32_t node, struct end *end, uint64_t bytes)
{
    world->nodes[node].device_bytes += (int64_t)bytes - (int64_t)end->holds_bytes;
    end->holds_bytes = bytes;
}

/* ---- a communicator begins at both ends, and comes up once both have */

static void make(struct world *world, uint32_t node, uint32_t pair)
{
    struct end *end = &world->nodes[node].ends[pair];
    int side = world->nodes[node].side;
    struct comm *comm = &world->comms[end->comm];
    end->stage = END_MADE;
    hold(world, node, end, world->options.slots_bytes);
    end->device_bytes = world->nodes[node].device_bytes;
    comm->begun[side] = true;
    comm->node[side] = node;
    comm->pair[side] = pair;
    comm->life[side] = world->nodes[node].life;
    at_pair(world, world->now_ns + INIT_NS, EV_INIT_LATE, node, pair);
    if (!comm->begun[!side] || comm->ended[!side]) { return; }
    comm->begun_ns = world->now_ns;
    comm->fate = world->options.calm ? 99 : pairs_below(world, 100);
    for (int i = 0; i < 2; i++) {
        if (world->nodes[comm->node[i]].life != comm->life[i]) { return; } /* that process is no more: it never comes up */
    }
    uint64_t up_ns = pairs_between(world, COME_UP_MIN_NS, COME_UP_MAX_NS);
    for (int i = 0; i < 2; i++) {
        uint64_t at_ns = world->now_ns + up_ns + pairs_below(world, 50 * MS);
        if (comm->fate == 0) { continue; } /* it hangs: the watch on init ends it */
        at_pair(world, at_ns, comm->fate == 1 && i == D ? EV_PAIR_BREAKS : EV_PAIR_UP, comm->node[i], comm->pair[i]);
        if (comm->fate == 2) {
            at_pair(world, at_ns + pairs_below(world, 20 * NS_PER_S), EV_PAIR_BREAKS, comm->node[i], comm->pair[i]);
        }
    }
}

/* ---- the table's wishes */

static void drop_transfers(struct world *world, struct end *end, enum nccl_pairs_reason reason)
{
    for (uint32_t i = end->first_transfer; i != NOBODY; i = world->transfers[i].next) {
        struct transfer *transfer = &world->transfers[i];
        if (transfer->over) { continue; }
        /* Its pushes in the cable end, and with them the transfer: somebody sends it again. */
        transfer->over = true;
        if (reason == NCCL_PAIRS_PEER) { world->result.pair_closed_under++; } else { world->result.pair_broke_under++; }
    }
    end->first_transfer = NOBODY;
}

static void carry_out(struct world *world, uint32_t node_id, struct nccl_pairs_wish wish)
{
    struct node *node = &world->nodes[node_id];
    struct end *end = &node->ends[wish.pair];
    if (wish.kind == NCCL_PAIRS_OPEN) {
        uint32_t link_id = node->slots[wish.link];
        CHECK(end->stage == END_NONE);
        CHECK(link_id != NOBODY);
        if (world->now_ns < world->links[link_id].pause_until_ns[node->side]) {
            pairs_fail(world, "node %u does not pause", node_id);
        }
        *end = (struct end){.turn = ++world->turns, .link = link_id, .asked_ns = world->now_ns, .used_ns = world->now_ns, .first_transfer = NOBODY};
        if (node->side == P) {
            world->comms = pairs_grow(world->comms, &world->comm_room, world->comm_count, sizeof *world->comms);
            end->stage = END_ASKED;
            end->gen = ++node->gens;
            end->comm = world->comm_count++;
            world->comms[end->comm] = (struct comm){0};
            say(world, link_id, P, MSG_OPEN, end->gen, end->comm, 0, 0);
        } else {
            end->gen = world->links[link_id].asked_gen;
            end->comm = world->links[link_id].asked_comm;
            make(world, node_id, wish.pair);
            say(world, link_id, D, MSG_OPENED, end->gen, 0, 0, 0);
        }
        pairs_trace(world, "%c%u pair %u gen %llu: open", node->side ? 'D' : 'P', node_id, wish.pair, (unsigned long long)end->gen);
        return;
    }
    pairs_trace(world, "%c%u pair %u gen %llu: close, reason %d", node->side ? 'D' : 'P', node_id, wish.pair,
                (unsigned long long)end->gen, (int)wish.reason);
    if (wish.reason == NCCL_PAIRS_FOR_ROOM) {
        node->changed_ns = world->now_ns;
        check_victim(world, node_id, wish.pair);
    }
    drop_transfers(world, end, wish.reason);
    if (wish.reason == NCCL_PAIRS_BROKE || wish.reason == NCCL_PAIRS_OVERRUN) {
        world->links[end->link].pause_until_ns[node->side] = world->now_ns + NCCL_PAIRS_PAUSE_MIN_NS / (node->side == P ? 1 : 2);
    }
    if (!end->told) {
        bool is_broken = wish.reason == NCCL_PAIRS_BROKE;
        say(world, end->link, node->side, is_broken ? MSG_BROKEN : MSG_CLOSE, end->gen, 0, 0, 0);
    }
    if (end->stage == END_ASKED) {
        end->stage = END_NONE;
        nccl_pairs_ended(node->pairs, wish.pair, world->now_ns, &node->wishes);
        return;
    }
    struct comm *comm = &world->comms[end->comm];
    comm->ended[node->side] = true;
    end->stage = END_ENDING;
    /* The other end's communicator may see it too, perhaps before the message; one that carries nothing may not. */
    if (comm->begun[!node->side] && !comm->ended[!node->side] && end->is_up && pairs_below(world, 4) == 0) {
        uint32_t other = comm->node[!node->side];
        if (world->nodes[other].life == comm->life[!node->side]) {
            at_pair(world, world->now_ns + 1 * MS + pairs_below(world, 500 * MS), EV_PAIR_BREAKS, other, comm->pair[!node->side]);
        }
    }
    uint64_t luck = world->options.calm ? 99 : pairs_below(world, 100);
    end->never_ends = luck == 0;
    if (!end->never_ends) {
        uint64_t takes_ns = luck < 10 ? pairs_between(world, 1 * NS_PER_S, 6 * NS_PER_S) : pairs_below(world, 300 * MS);
        at_pair(world, world->now_ns + takes_ns, EV_ENDED, node_id, wish.pair);
    }
    at_pair(world, world->now_ns + STUCK_NS, EV_OVERDUE, node_id, wish.pair);
}

void end_wishes(struct world *world, uint32_t node_id)
{
    struct node *node = &world->nodes[node_id];
    for (uint32_t i = 0; i < node->wishes.count; i++) { carry_out(world, node_id, node->wishes.wishes[i]); }
    node->wishes.count = 0;
}

/* ---- the peer's messages */

static void open_came(struct world *world, const struct event *event)
{
    struct link_of_two *link = &world->links[event->link];
    uint32_t node_id = link->node[D];
    struct node *node = &world->nodes[node_id];
    /* P has said CLOSE or BROKEN of the one before, or was told so, and messages come in order. */
    if (nccl_pairs_of(node->pairs, link->slot[D]) != NCCL_PAIRS_NONE) {
        pairs_fail(world, "D%u is asked for a second pair on a stream", node_id);
    }
    link->asked_gen = event->gen;
    link->asked_comm = event->comm;
    uint64_t retry_ns = 0;
    enum nccl_pairs_answer answer =
        nccl_pairs_ask(node->pairs, link->slot[D], world->options.slots_bytes, world->now_ns, &retry_ns, &node->wishes);
    if (answer != NCCL_PAIRS_IS_OPENING) { say(world, event->link, D, MSG_DENIED, event->gen, 0, 0, retry_ns); }
    if (answer == NCCL_PAIRS_NO_ROOM) { end_no_room(world, node_id); }
    pairs_settle(world, node_id);
}

static void frame_passes(struct world *world, uint32_t node, uint32_t pair, uint32_t transfer, uint64_t takes_ns)
{
    struct event *event = at_pair(world, world->now_ns + takes_ns, EV_FRAME_PASSED, node, pair);
    event->transfer = transfer;
    event->value = world->transfers[transfer].frame;
}

static void use(struct world *world, uint32_t node_id, uint32_t pair, int change)
{
    struct node *node = &world->nodes[node_id];
    node->ends[pair].used_ns = world->now_ns;
    node->ends[pair].was_used = true;
    node->ends[pair].busy += (uint64_t)(int64_t)change;
    nccl_pairs_busy(node->pairs, pair, change, world->now_ns);
}

static void send_frame(struct world *world, uint32_t node_id, uint32_t pair, uint32_t transfer)
{
    struct end *end = &world->nodes[node_id].ends[pair];
    world->transfers[transfer].frame++;
    say(world, end->link, P, MSG_SEND, end->gen, 0, transfer, world->transfers[transfer].frame);
    struct event *event = at_pair(world, world->now_ns + STALL_NS, EV_FRAME_LATE, node_id, pair);
    event->transfer = transfer;
    event->value = world->transfers[transfer].frame;
}

void end_message(struct world *world, const struct event *event)
{
    struct link_of_two *link = &world->links[event->link];
    int side = event->side;
    if (!link->is_up[side]) { return; }
    uint32_t node_id = link->node[side];
    struct node *node = &world->nodes[node_id];
    if (event->message == MSG_OPEN) {
        open_came(world, event);
        return;
    }
    uint32_t pair = nccl_pairs_of(node->pairs, link->slot[side]);
    if (pair == NCCL_PAIRS_NONE || node->ends[pair].gen != event->gen) {
        world->result.stale_messages++;
        return;
    }
    struct end *end = &node->ends[pair];
    if (end->stage == END_ASKED && event->message != MSG_OPENED && event->message != MSG_DENIED) {
        pairs_fail(world, "P%u is told of a pair before its answer", node_id); /* messages come in order */
    }
    switch (event->message) {
    case MSG_OPEN: break;
    case MSG_OPENED:
        if (world->now_ns - end->asked_ns > 4 * link->delay_ns) {
            pairs_fail(world, "OPEN of P%u was kept waiting", node_id);
        }
        make(world, node_id, pair);
        break;
    case MSG_DENIED:
        if (world->now_ns - end->asked_ns > 4 * link->delay_ns) {
            pairs_fail(world, "OPEN of P%u was kept waiting", node_id);
        }
        link->pause_until_ns[P] = world->now_ns + (event->value > 100 * MS ? event->value : 100 * MS);
        end->stage = END_NONE;
        nccl_pairs_denied(node->pairs, pair, event->value, world->now_ns, &node->wishes);
        break;
    case MSG_UP:
        if (event->comm != end->comm) { pairs_fail(world, "node %u takes UP for another pair's", node_id); }
        end->peer_is_up = true;
        break;
    case MSG_SEND:
        if (!end->is_up) { pairs_fail(world, "D%u is sent to before it is up", node_id); }
        use(world, node_id, pair, 1);
        say(world, event->link, D, MSG_READY, event->gen, 0, event->transfer, event->value);
        if (world->comms[end->comm].fate != 3) {
            frame_passes(world, node_id, pair, event->transfer, pairs_between(world, 1 * MS, FRAME_MAX_NS));
        }
        break;
    case MSG_READY:
        if (world->comms[end->comm].fate != 3) {
            frame_passes(world, node_id, pair, event->transfer, pairs_between(world, 1 * MS, FRAME_MAX_NS));
        }
        break;
    case MSG_CLOSE:
        end->told = true;
        nccl_pairs_peer_closed(node->pairs, pair, world->now_ns, &node->wishes);
        break;
    case MSG_BROKEN:
        end->told = true;
        nccl_pairs_broke(node->pairs, pair, world->now_ns, &node->wishes);
        break;
    }
    pairs_settle(world, node_id);
}

/* ---- what the communicator and the transfers on it do */

static void came_up(struct world *world, uint32_t node_id, uint32_t pair)
{
    struct node *node = &world->nodes[node_id];
    struct end *end = &node->ends[pair];
    const struct comm *comm = &world->comms[end->comm];
    if (end->stage != END_MADE) { return; }
    if (world->now_ns - comm->begun_ns > COME_UP_MAX_NS + 50 * MS) {
        pairs_fail(world, "pair %u of node %u came up late", pair, node_id);
    }
    end->is_up = true;
    end->up_ns = world->now_ns;
    /* Half of the runs that are not even: sizes that differ, and one now and then that is far off. */
    uint64_t bytes = world->options.nccl_bytes;
    if (!world->is_even) { bytes = bytes / 2 + pairs_below(world, bytes + 1); }
    hold(world, node_id, end, end->holds_bytes + bytes);
    int64_t measured = node->device_bytes - end->device_bytes;
    if (!world->is_even && pairs_below(world, 100) == 0) { measured += (int64_t)world->options.memory_max; } /* somebody else's */
    nccl_pairs_up(node->pairs, pair, measured > 0 ? (uint64_t)measured : 0, world->now_ns, &node->wishes);
    if (nccl_pairs_of(node->pairs, world->links[end->link].slot[node->side]) == pair) {
        say(world, end->link, node->side, MSG_UP, end->gen, end->comm, 0, 0);
    }
}

static void frame_passed(struct world *world, const struct event *event)
{
    struct node *node = &world->nodes[event->node];
    struct end *end = &node->ends[event->pair];
    struct transfer *transfer = &world->transfers[event->transfer];
    if (node->side == D) {
        if (end->busy > 0) { use(world, event->node, event->pair, -1); }
        return;
    }
    if (transfer->over || transfer->frame != event->value) { return; }
    if (--transfer->frames > 0) {
        send_frame(world, event->node, event->pair, event->transfer);
        return;
    }
    transfer->over = true;
    use(world, event->node, event->pair, -1);
    if (world->now_ns - transfer->began_ns > 3 * STALL_NS) {
        pairs_fail(world, "a transfer of P%u took too long", event->node);
    }
}

void end_event(struct world *world, const struct event *event)
{
    struct node *node = &world->nodes[event->node];
    if (!node->is_alive || node->life != event->life) { return; }
    struct end *end = &node->ends[event->pair];
    if (end->stage == END_NONE || end->turn != event->turn) { return; }
    bool is_ending = end->stage == END_ENDING;
    switch (event->kind) {
    case EV_PAIR_UP: came_up(world, event->node, event->pair); break;
    case EV_PAIR_BREAKS:
        if (!is_ending) { nccl_pairs_broke(node->pairs, event->pair, world->now_ns, &node->wishes); }
        break;
    case EV_INIT_LATE: /* also where only the peer's UP is missing */
        if (!is_ending && !end_is_ready(end)) { nccl_pairs_broke(node->pairs, event->pair, world->now_ns, &node->wishes); }
        break;
    case EV_FRAME_PASSED:
        frame_passed(world, event);
        break;
    case EV_FRAME_LATE: {
        const struct transfer *transfer = &world->transfers[event->transfer];
        if (!is_ending && !transfer->over && transfer->frame == event->value) {
            nccl_pairs_broke(node->pairs, event->pair, world->now_ns, &node->wishes);
        }
        break;
    }
    case EV_ENDED:
        world->result.stuck_ended += end->is_overdue;
        hold(world, event->node, end, 0);
        end->stage = END_NONE;
        nccl_pairs_ended(node->pairs, event->pair, world->now_ns, &node->wishes);
        break;
    case EV_OVERDUE:
        end->is_overdue = true;
        world->result.stuck++;
        nccl_pairs_stuck(node->pairs, event->pair, world->now_ns, &node->wishes);
        break;
    default: CHECK(false);
    }
    pairs_settle(world, event->node);
}

/* ---- a transfer starts, now, on whatever is ready */

void end_transfer(struct world *world, uint32_t link_id)
{
    struct link_of_two *link = &world->links[link_id];
    uint32_t node_id = link->node[P];
    struct node *node = &world->nodes[node_id];
    enum nccl_pairs_answer answer = nccl_pairs_want(node->pairs, link->slot[P], world->options.slots_bytes, world->now_ns, &node->wishes);
    if (answer == NCCL_PAIRS_NO_ROOM) { end_no_room(world, node_id); }
    pairs_settle(world, node_id);
    uint32_t pair = nccl_pairs_of(node->pairs, link->slot[P]);
    if (pair != NCCL_PAIRS_NONE) { node->ends[pair].used_ns = world->now_ns; }
    bool is_late = world->now_ns > world->options.span_ns / 3 * 2;
    world->result.transfers++;
    world->result.late_transfers += is_late;
    if (pair == NCCL_PAIRS_NONE || !end_is_ready(&node->ends[pair])) {
        world->result.by_other++;
        world->result.late_by_other += is_late;
        return;
    }
    world->result.by_nccl++;
    struct end *end = &node->ends[pair];
    world->transfers = pairs_grow(world->transfers, &world->transfer_room, world->transfer_count, sizeof *world->transfers);
    uint32_t transfer = world->transfer_count++;
    world->transfers[transfer] = (struct transfer){
        .link = link_id, .next = end->first_transfer, .frames = 1 + (uint32_t)pairs_below(world, 3), .began_ns = world->now_ns};
    end->first_transfer = transfer;
    use(world, node_id, pair, 1);
    send_frame(world, node_id, pair, transfer);
}
