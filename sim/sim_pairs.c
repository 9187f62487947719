/* The world around the cable's ends: time, nodes, streams, faults, traffic, and the verdict. */
#include "sim/sim_pairs.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "sim/sim_pairs_world.h"

#define QUIET_NS (60 * NS_PER_S)  /* after the last transfer: every deadline is shorter */
#define LEAVE_NS (7 * NS_PER_S)   /* every abort that ends has ended */
#define SILENCE_NS (2 * NS_PER_S) /* after which a stream without a heartbeat is dead */

static struct world *running;

/* ---- verdict ---- */

void sim_pairs_print_failure(FILE *out)
{
    const struct world *world = running;
    if (!world) { return; }
    running = NULL; /* once */
    fprintf(out, "sim_pairs: broke at %.3f s, event %" PRIu64 "\nreplay: bazel run //sim -- --pairs --seed=%" PRIu64 " --trace%s\n",
            (double)world->now_ns / 1e9, world->result.events, world->options.seed, world->options.calm ? " --calm" : "");
    fflush(out);
}

_Noreturn void pairs_fail(struct world *world, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "sim_pairs: seed %" PRIu64 ": ", world->options.seed);
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    sim_pairs_print_failure(stderr);
    abort();
}

void pairs_trace(struct world *world, const char *format, ...)
{
    if (!world->options.trace) { return; }
    va_list args;
    va_start(args, format);
    fprintf(world->options.trace, "[%9.3f] ", (double)world->now_ns / 1e9);
    vfprintf(world->options.trace, format, args);
    fprintf(world->options.trace, "\n");
    va_end(args);
}

void sim_pairs_result_add(struct sim_pairs_result *sum, const struct sim_pairs_result *one)
{
    _Static_assert(sizeof *sum % sizeof(uint64_t) == 0, "a sum of counts, field by field");
    uint64_t into[sizeof *sum / sizeof(uint64_t)], from[sizeof *sum / sizeof(uint64_t)];
    memcpy(into, sum, sizeof into);
    memcpy(from, one, sizeof from);
    for (size_t i = 0; i < sizeof into / sizeof into[0]; i++) { into[i] += from[i]; }
    memcpy(sum, into, sizeof into);
}

void sim_pairs_result_print(const struct sim_pairs_result *sum, uint64_t seeds, FILE *out)
{
    const struct { const char *name; uint64_t count; } lines[] = {
        {"events", sum->events}, {"virtual_s", sum->virtual_ns / NS_PER_S}, {"transfers", sum->transfers},
        {"by_nccl", sum->by_nccl}, {"by_other", sum->by_other}, {"pair_broke_under", sum->pair_broke_under},
        {"pair_closed_under", sum->pair_closed_under}, {"late_transfers", sum->late_transfers}, {"late_by_other", sum->late_by_other},
        {"opened", sum->opened}, {"came_up", sum->came_up}, {"closed_for_room", sum->closed_for_room}, {"broke", sum->broke},
        {"denied", sum->denied}, {"overran", sum->overran}, {"stuck", sum->stuck}, {"stuck_ended", sum->stuck_ended},
        {"kills", sum->kills}, {"leaves", sum->leaves}, {"cuts", sum->cuts}, {"shifts", sum->shifts},
        {"stale_messages", sum->stale_messages}, {"pairs_most_prefill", sum->pairs_most_prefill},
        {"pairs_most_decode", sum->pairs_most_decode}, {"mib_most_prefill", sum->memory_most_prefill >> 20},
        {"mib_most_decode", sum->memory_most_decode >> 20},
    };
    fprintf(out, "event=sim_pairs_done seeds=%" PRIu64, seeds);
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        fprintf(out, " %s=%" PRIu64, lines[i].name, lines[i].count);
    }
    fprintf(out, "\n");
}

/* ---- the queue of what will happen ---- */

struct event *pairs_at(struct world *world, uint64_t at_ns, enum event_kind kind)
{
    return event_heap_add(&world->heap, &(struct event){.at_ns = at_ns, .kind = kind});
}

uint64_t pairs_below(struct world *world, uint64_t bound) { return rng_below(&world->rng, bound); }

uint64_t pairs_between(struct world *world, uint64_t from_ns, uint64_t to_ns) { return from_ns + pairs_below(world, to_ns - from_ns + 1); }

void *pairs_grow(void *array, uint32_t *room, uint32_t count, size_t bytes)
{
    if (count < *room) { return array; }
    *room = *room ? *room * 2 : 64;
    array = realloc(array, *room * bytes);
    CHECK(array != NULL);
    return array;
}

/* ---- what holds after every fact ---- */

void pairs_settle(struct world *world, uint32_t node_id)
{
    struct node *node = &world->nodes[node_id];
    end_wishes(world, node_id);
    const struct nccl_pairs_stats *stats = nccl_pairs_stats(node->pairs);
    uint64_t pairs = (uint64_t)stats->opening + stats->up + stats->closing + stats->stuck;
    if (!nccl_pairs_audit(node->pairs)) { pairs_fail(world, "node %u: the audit fails", node_id); }
    if (pairs > world->options.pairs_max) { pairs_fail(world, "node %u: %" PRIu64 " pairs", node_id, pairs); }
    if (world->is_even) {
        if (stats->memory_bytes > world->options.memory_max) {
            pairs_fail(world, "node %u: %" PRIu64 " bytes are counted", node_id, stats->memory_bytes);
        }
        if (node->device_bytes > (int64_t)stats->memory_bytes) {
            pairs_fail(world, "node %u: %" PRId64 " bytes are held", node_id, node->device_bytes);
        }
        if (stats->nccl_bytes_expected > world->options.nccl_bytes_first) {
            pairs_fail(world, "node %u: another's memory was believed", node_id);
        }
        uint64_t cost = world->options.slots_bytes + stats->nccl_bytes_expected;
        if (node->side == P && stats->waiting > 0 && pairs < world->options.pairs_max && stats->memory_bytes + cost <= world->options.memory_max) {
            pairs_fail(world, "P%u: %u wait beside an empty place", node_id, stats->waiting);
        }
    }
    uint64_t *pairs_most = node->side == P ? &world->result.pairs_most_prefill : &world->result.pairs_most_decode;
    uint64_t *memory_most = node->side == P ? &world->result.memory_most_prefill : &world->result.memory_most_decode;
    if (pairs > *pairs_most) { *pairs_most = pairs; }
    if (stats->memory_bytes > *memory_most) { *memory_most = stats->memory_bytes; }
    if (stats->waiting > 0 && !node->ticks) {
        node->ticks = true;
        struct event *event = pairs_at(world, world->now_ns + 250 * MS, EV_TICK);
        event->node = node_id;
        event->life = node->life;
    }
}

/* ---- nodes ---- */

static void node_starts(struct world *world, uint32_t node_id)
{
    struct node *node = &world->nodes[node_id];
    const struct nccl_pairs_config config = {
        .links_max = node->links_max,
        .pairs_max = world->options.pairs_max,
        .memory_max = world->options.memory_max,
        .nccl_bytes_first = world->options.nccl_bytes_first,
    };
    node->memory = calloc(1, nccl_pairs_bytes(&config));
    node->slots = malloc(node->links_max * sizeof *node->slots);
    node->ends = calloc(config.pairs_max, sizeof *node->ends);
    node->wishes = (struct nccl_pairs_wishes){.count_max = NCCL_PAIRS_WISHES_FOR(&config)};
    node->wishes.wishes = calloc(node->wishes.count_max, sizeof *node->wishes.wishes);
    CHECK(node->memory != NULL);
    CHECK(node->slots != NULL);
    CHECK(node->ends != NULL);
    CHECK(node->wishes.wishes != NULL);
    for (uint32_t i = 0; i < node->links_max; i++) { node->slots[i] = NOBODY; }
    node->pairs = nccl_pairs_init(node->memory, &config);
    node->is_alive = true;
    node->is_leaving = node->ticks = false;
    node->device_bytes = 0;
    node->gens = node->changed_ns = 0;
}

/* The process is no more, and its device memory free. */
static void node_stops(struct world *world, uint32_t node_id)
{
    struct node *node = &world->nodes[node_id];
    if (!node->is_alive) { return; }
    const struct nccl_pairs_stats *stats = nccl_pairs_stats(node->pairs);
    world->result.opened += stats->opened;
    world->result.came_up += stats->came_up;
    world->result.closed_for_room += stats->closed_for_room;
    world->result.broke += stats->broke;
    world->result.denied += stats->denied;
    world->result.overran += stats->overran;
    node->is_alive = false;
    node->life++;
    free(node->memory);
    free(node->slots);
    free(node->ends);
    free(node->wishes.wishes);
    node->memory = NULL;
}

/* The other end hears of it: at once where a socket is reset, after a silence where nothing says so. */
static void tell_gone(struct world *world, uint32_t link_id, int side)
{
    uint64_t after_ns = pairs_below(world, 2) ? 1 * MS + pairs_below(world, 50 * MS) : SILENCE_NS;
    struct event *event = pairs_at(world, world->now_ns + after_ns, EV_LINK_GONE);
    event->link = link_id;
    event->side = side;
}

void pairs_link_gone(struct world *world, uint32_t link_id, int side)
{
    struct link_of_two *link = &world->links[link_id];
    struct node *node = &world->nodes[link->node[side]];
    if (!link->is_up[side] || node->life != link->life[side]) { return; }
    nccl_pairs_link_gone(node->pairs, link->slot[side], world->now_ns, &node->wishes);
    pairs_settle(world, link->node[side]);
    link->is_up[side] = false;
    node->slots[link->slot[side]] = NOBODY;
}

static void kill_node(struct world *world, uint32_t node_id)
{
    struct node *node = &world->nodes[node_id];
    for (uint32_t i = 0; i < node->links_max; i++) {
        uint32_t link_id = node->slots[i];
        if (link_id == NOBODY) { continue; }
        world->links[link_id].is_up[node->side] = false;
        tell_gone(world, link_id, !node->side);
    }
    pairs_trace(world, "node %u is killed", node_id);
    node_stops(world, node_id);
}

static void leave(struct world *world, uint32_t node_id)
{
    struct node *node = &world->nodes[node_id];
    node->is_leaving = true;
    for (uint32_t i = 0; i < node->links_max; i++) {
        uint32_t link_id = node->slots[i];
        if (link_id == NOBODY) { continue; }
        pairs_link_gone(world, link_id, node->side);
        world->links[link_id].is_up[node->side] = false;
        node->slots[i] = NOBODY;
        tell_gone(world, link_id, !node->side);
    }
    pairs_trace(world, "node %u leaves", node_id);
    struct event *event = pairs_at(world, world->now_ns + LEAVE_NS, EV_GO);
    event->node = node_id;
    event->life = node->life;
}

/* It has waited for its aborts: what is left never ends. */
static void go(struct world *world, uint32_t node_id)
{
    struct node *node = &world->nodes[node_id];
    const struct nccl_pairs_stats *stats = nccl_pairs_stats(node->pairs);
    uint32_t never = 0;
    int64_t held = 0;
    for (uint32_t i = 0; i < world->options.pairs_max; i++) {
        const struct end *end = &node->ends[i];
        if (end->stage == END_NONE) { continue; }
        if (end->stage != END_ENDING || !end->never_ends) {
            pairs_fail(world, "node %u goes with pair %u open", node_id, i);
        }
        never++;
        held += (int64_t)end->holds_bytes;
    }
    if (stats->opening + stats->up + stats->closing > 0) {
        pairs_fail(world, "node %u goes with pairs in its table", node_id);
    }
    if (stats->stuck != never) {
        pairs_fail(world, "node %u goes with %u stuck, %u of them really", node_id, stats->stuck, never);
    }
    if (never == 0 && stats->memory_bytes > 0) {
        pairs_fail(world, "node %u goes with %" PRIu64 " bytes counted", node_id, stats->memory_bytes);
    }
    if (stats->waiting > 0) { pairs_fail(world, "node %u goes with links in line", node_id); }
    if (node->device_bytes != held) { pairs_fail(world, "node %u goes with memory taken", node_id); }
    node_stops(world, node_id);
}

static void rejoin(struct world *world, uint32_t node_id)
{
    if (world->is_over) { return; }
    struct event *event = pairs_at(world, world->now_ns + pairs_between(world, 100 * MS, 10 * NS_PER_S), EV_JOIN);
    event->node = node_id;
}

/* ---- streams ---- */

static uint32_t slot_of(struct node *node)
{
    for (uint32_t i = 0; i < node->links_max; i++) {
        if (node->slots[i] == NOBODY) { return i; }
    }
    return NOBODY;
}

/* P dials; the transfer waits for the stream, as it does without NCCL. */
static void dial(struct world *world, uint32_t p, uint32_t d)
{
    struct node *node = &world->nodes[p];
    uint32_t slot = slot_of(node);
    if (slot == NOBODY) { return; }
    world->links = pairs_grow(world->links, &world->link_room, world->link_count, sizeof *world->links);
    uint32_t link_id = world->link_count++;
    world->links[link_id] = (struct link_of_two){
        .node = {p, d}, .slot = {slot, NOBODY}, .life = {node->life, world->nodes[d].life}, .waiting = 1,
        .delay_ns = !world->options.calm && pairs_below(world, 8) == 0 ? DELAY_SLOW_NS : DELAY_NS};
    node->slots[slot] = link_id;
    struct event *event = pairs_at(world, world->now_ns + 2 * (1 + pairs_below(world, world->links[link_id].delay_ns)), EV_LINK_UP);
    event->link = link_id;
}

static void link_up(struct world *world, uint32_t link_id)
{
    struct link_of_two *link = &world->links[link_id];
    struct node *p = &world->nodes[link->node[P]], *d = &world->nodes[link->node[D]];
    if (!p->is_alive || p->life != link->life[P]) { return; }
    if (p->is_leaving || p->slots[link->slot[P]] != link_id) { return; }
    bool takes = d->is_alive && !d->is_leaving && d->life == link->life[D];
    uint32_t slot = takes ? slot_of(d) : NOBODY;
    if (slot == NOBODY) {
        p->slots[link->slot[P]] = NOBODY;
        return;
    }
    d->slots[slot] = link_id;
    link->slot[D] = slot;
    for (int side = 0; side < 2; side++) {
        struct node *node = side == P ? p : d;
        link->is_up[side] = true;
        uint64_t identity = (uint64_t)link->node[!side] << 32 | link->life[!side];
        nccl_pairs_link(node->pairs, link->slot[side], identity, world->now_ns);
    }
    uint32_t waiting = link->waiting;
    for (uint32_t i = 0; i < waiting; i++) { end_transfer(world, link_id); }
}

/* ---- traffic and faults ---- */

static bool is_of_use(const struct node *node) { return node->is_alive && !node->is_leaving; }

static void choose_hot(struct world *world, uint32_t p)
{
    for (uint32_t i = 0; i < world->options.hot_count; i++) {
        world->nodes[p].hot[i] = world->options.prefill_count + (uint32_t)pairs_below(world, world->options.decode_count);
    }
}

static void traffic(struct world *world, uint32_t p)
{
    const struct sim_pairs_options *options = &world->options;
    if (world->now_ns >= options->span_ns) { return; }
    uint64_t mean_ns = 60 * NS_PER_S / options->transfers_per_min;
    pairs_at(world, world->now_ns + 1 + pairs_below(world, 2 * mean_ns), EV_TRAFFIC)->node = p;
    uint32_t d = options->prefill_count + (uint32_t)pairs_below(world, options->decode_count);
    if (options->hot_count > 0 && pairs_below(world, 20) > 0) {
        d = world->nodes[p].hot[pairs_below(world, options->hot_count)];
    }
    struct node *node = &world->nodes[p];
    if (!is_of_use(node) || !is_of_use(&world->nodes[d])) { return; }
    for (uint32_t i = 0; i < node->links_max; i++) {
        uint32_t link_id = node->slots[i];
        if (link_id == NOBODY || world->links[link_id].node[D] != d) { continue; }
        if (world->links[link_id].is_up[P]) {
            end_transfer(world, link_id);
        } else {
            world->links[link_id].waiting++;
        }
        return;
    }
    dial(world, p, d);
}

static void fault(struct world *world)
{
    if (world->now_ns >= world->options.span_ns) { return; }
    uint64_t mean_ns = 40 * NS_PER_S / world->node_count; /* a node has one in 40 s or so */
    pairs_at(world, world->now_ns + 1 + pairs_below(world, 2 * mean_ns), EV_FAULT);
    uint32_t node_id = (uint32_t)pairs_below(world, world->node_count);
    struct node *node = &world->nodes[node_id];
    if (!is_of_use(node)) { return; }
    switch (pairs_below(world, 3)) {
    case 0:
        world->result.kills++;
        kill_node(world, node_id);
        rejoin(world, node_id);
        break;
    case 1:
        world->result.leaves++;
        leave(world, node_id);
        break;
    default: {
        uint32_t link_id = node->slots[pairs_below(world, node->links_max)];
        if (link_id == NOBODY || !world->links[link_id].is_up[node->side]) { break; }
        world->result.cuts++;
        tell_gone(world, link_id, P);
        tell_gone(world, link_id, D);
    }
    }
}

/* ---- the end ---- */

/* Long after the last transfer both ends of a stream have the same pair, or none. */
static void compare(struct world *world)
{
    for (uint32_t i = 0; i < world->link_count; i++) {
        const struct link_of_two *link = &world->links[i];
        if (!link->is_up[P] && !link->is_up[D]) { continue; }
        if (!link->is_up[P] || !link->is_up[D]) { pairs_fail(world, "stream %u has one end", i); }
        const struct end *ends[2] = {NULL, NULL};
        for (int side = 0; side < 2; side++) {
            const struct node *node = &world->nodes[link->node[side]];
            uint32_t pair = nccl_pairs_of(node->pairs, link->slot[side]);
            if (pair != NCCL_PAIRS_NONE) { ends[side] = &node->ends[pair]; }
        }
        if (!ends[P] && !ends[D]) { continue; }
        if (!ends[P] || !ends[D] || ends[P]->gen != ends[D]->gen) {
            pairs_fail(world, "the ends of stream %u have different pairs", i);
        }
        if (!end_is_ready(ends[P]) || !end_is_ready(ends[D])) { pairs_fail(world, "a pair of stream %u never came up", i); }
        if (ends[P]->busy > 0 || ends[D]->busy > 0) { pairs_fail(world, "a pair of stream %u is busy with nothing", i); }
    }
    for (uint32_t i = 0; i < world->transfer_count; i++) {
        const struct link_of_two *link = &world->links[world->transfers[i].link];
        if (!world->transfers[i].over && world->nodes[link->node[P]].life == link->life[P]) {
            pairs_fail(world, "transfer %u never ended", i);
        }
    }
    world->is_over = true;
    for (uint32_t i = 0; i < world->node_count; i++) {
        if (is_of_use(&world->nodes[i])) { leave(world, i); }
    }
}

static void happen(struct world *world, const struct event *event)
{
    struct node *node = event->node < world->node_count ? &world->nodes[event->node] : NULL;
    switch (event->kind) {
    case EV_TRAFFIC: traffic(world, event->node); break;
    case EV_SHIFT:
        if (world->now_ns >= world->options.span_ns) { break; }
        world->result.shifts++;
        choose_hot(world, event->node);
        pairs_at(world, world->now_ns + world->options.shift_ns, EV_SHIFT)->node = event->node;
        break;
    case EV_FAULT: fault(world); break;
    case EV_JOIN: node_starts(world, event->node); break;
    case EV_GO:
        if (!node->is_alive || node->life != event->life) { break; }
        go(world, event->node);
        rejoin(world, event->node);
        break;
    case EV_TICK:
        if (!node->is_alive || node->life != event->life) { break; }
        node->ticks = false;
        nccl_pairs_tick(node->pairs, world->now_ns, &node->wishes);
        pairs_settle(world, event->node);
        break;
    case EV_LINK_UP: link_up(world, event->link); break;
    case EV_LINK_GONE: pairs_link_gone(world, event->link, event->side); break;
    case EV_MESSAGE: end_message(world, event); break;
    case EV_COMPARE: compare(world); break;
    default: end_event(world, event);
    }
}

/* ---- a run ---- */

static uint64_t fold(uint64_t hash, uint64_t value) { return (hash ^ value) * UINT64_C(0x100000001b3); }

/* Small clusters, tight caps: most of what can happen happens in seconds. */
static void options_of_seed(struct world *world)
{
    struct sim_pairs_options *options = &world->options;
    options->prefill_count = 1 + (uint32_t)pairs_below(world, 7);
    options->decode_count = 1 + (uint32_t)pairs_below(world, 7);
    uint32_t more = options->prefill_count > options->decode_count ? options->prefill_count : options->decode_count;
    options->slots_bytes = UINT64_C(1) << 24;
    options->nccl_bytes = UINT64_C(28) << 20;
    options->nccl_bytes_first = world->is_even ? options->nccl_bytes + (pairs_below(world, 20) << 20) : options->nccl_bytes;
    options->memory_max = (options->slots_bytes + options->nccl_bytes_first) * (1 + pairs_below(world, more)) + pairs_below(world, 1 << 24);
    options->pairs_max = pairs_below(world, 3) ? 0 : 1 + (uint32_t)pairs_below(world, more);
    options->transfers_per_min = 60 + pairs_below(world, 300);
    options->hot_count = (uint32_t)pairs_below(world, 4);
    options->shift_ns = options->hot_count && pairs_below(world, 2) ? pairs_between(world, 5 * NS_PER_S, 20 * NS_PER_S) : 0;
    options->span_ns = pairs_between(world, 10 * NS_PER_S, 60 * NS_PER_S);
}

void sim_pairs_run(const struct sim_pairs_options *given, struct sim_pairs_result *ret_result)
{
    struct world world = {.options = *given, .rng = rng_init(given->seed), .now_ns = NS_PER_S, .heap = {.event_bytes = sizeof(struct event)}};
    running = &world;
    world.is_even = given->prefill_count > 0 || given->seed % 3 > 0;
    if (given->prefill_count == 0) { options_of_seed(&world); }
    struct sim_pairs_options *options = &world.options;
    CHECK(options->hot_count <= HOT_MAX);
    uint32_t more = options->prefill_count > options->decode_count ? options->prefill_count : options->decode_count;
    if (options->pairs_max == 0) { options->pairs_max = 2 * more; }
    world.node_count = options->prefill_count + options->decode_count;
    world.nodes = calloc(world.node_count, sizeof *world.nodes);
    CHECK(world.nodes != NULL);
    for (uint32_t i = 0; i < world.node_count; i++) {
        world.nodes[i].side = i < options->prefill_count ? P : D;
        /* A peer may be back before its old stream is known to be dead. */
        world.nodes[i].links_max = 2 * (world.nodes[i].side == P ? options->decode_count : options->prefill_count);
        node_starts(&world, i);
        if (world.nodes[i].side == D) { continue; }
        choose_hot(&world, i);
        pairs_at(&world, world.now_ns + pairs_below(&world, NS_PER_S), EV_TRAFFIC)->node = i;
        if (options->shift_ns) {
            pairs_at(&world, world.now_ns + pairs_below(&world, options->shift_ns), EV_SHIFT)->node = i;
        }
    }
    if (!options->calm) { pairs_at(&world, world.now_ns + pairs_below(&world, 5 * NS_PER_S), EV_FAULT); }
    pairs_at(&world, options->span_ns + QUIET_NS, EV_COMPARE);
    while (world.heap.count > 0) {
        struct event event;
        event_heap_take(&world.heap, &event);
        world.now_ns = event.at_ns;
        world.result.events++;
        const uint64_t parts[] = {event.at_ns, event.kind, event.node, event.pair, event.link, event.life, event.gen, event.value};
        for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
            world.result.hash = fold(world.result.hash, parts[i]);
        }
        happen(&world, &event);
    }
    for (uint32_t i = 0; i < world.node_count; i++) {
        if (world.nodes[i].is_alive) { pairs_fail(&world, "node %u never left", i); }
    }
    world.result.virtual_ns = world.now_ns;
    if (world.result.by_nccl + world.result.by_other != world.result.transfers) {
        pairs_fail(&world, "a transfer did not start");
    }
    event_heap_fini(&world.heap);
    free(world.nodes);
    free(world.links);
    free(world.comms);
    free(world.transfers);
    running = NULL;
    *ret_result = world.result;
}
