#include "sim/sim.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "sim/sim_world.h"

/* A run of 24 requests takes some ten thousand events; one that takes these is a livelock. */
#define EVENTS_MAX UINT64_C(2000000)
/* After the last fault. Every lease and back-off is far shorter. */
#define QUIET_MAX_NS (600 * NS_PER_S)

struct sim_world *sim_running;

/* ---- verdict ---- */

void sim_print_failure(FILE *out)
{
    struct sim_world *world = sim_running;
    if (!world) { return; }
    sim_running = NULL; /* once */
    if (world->options.trace) { fflush(world->options.trace); }
    uint64_t first = world->ring_count > RING_LINES ? world->ring_count - RING_LINES : 0;
    for (uint64_t i = first; i < world->ring_count; i++) { fprintf(out, "  %s\n", world->ring[i % RING_LINES]); }
    fprintf(out, "sim: broke at %.3f ms, event %llu\nreplay: bazel run //sim -- --seed=%llu --trace%s\n", (double)world->now_ns / 1e6,
            (unsigned long long)world->result.events, (unsigned long long)world->options.seed,
            world->options.calm ? " --calm" : "");
    fflush(out);
}

_Noreturn void sim_fail(struct sim_world *world, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "sim: seed %llu: ", (unsigned long long)world->options.seed);
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    sim_print_failure(stderr);
    abort();
}

void sim_trace(struct sim_world *world, const char *format, ...)
{
    char *line = world->ring[world->ring_count++ % RING_LINES];
    int used = snprintf(line, LINE_CHARS, "[%4.1f] ", (double)world->now_ns / 1e6);
    va_list args;
    va_start(args, format);
    vsnprintf(line + used, LINE_CHARS - (size_t)used, format, args);
    va_end(args);
    if (world->options.trace) { fprintf(world->options.trace, "%s\n", line); }
}

void sim_result_add(struct sim_result *sum, const struct sim_result *one)
{
    _Static_assert(sizeof *sum % sizeof(uint64_t) == 0, "a sum of counts, field by field");
    uint64_t into[sizeof *sum / sizeof(uint64_t)], from[sizeof *sum / sizeof(uint64_t)];
    memcpy(into, sum, sizeof into);
    memcpy(from, one, sizeof from);
    for (size_t i = 0; i < sizeof into / sizeof into[0]; i++) { into[i] += from[i]; }
    memcpy(sum, into, sizeof into);
}

void sim_result_print(const struct sim_result *sum, uint64_t seeds, FILE *out)
{
    const struct { const char *name; uint64_t count; } lines[] = {
        {"events", sum->events}, {"virtual_s", sum->virtual_ns / NS_PER_S}, {"requests", sum->requests},
        {"finished", sum->finished}, {"stopped", sum->stopped}, {"cancelled", sum->cancelled}, {"expired", sum->expired},
        {"refused", sum->refused}, {"lost_with_router", sum->lost}, {"tokens", sum->tokens},
        {"prompt_logprobs", sum->prompt_logprobs}, {"local_prefills", sum->local_prefills},
        {"remote_prefills", sum->remote_prefills}, {"forks", sum->forked}, {"preemptions", sum->preemptions},
        {"deaths", sum->deaths}, {"cuts", sum->cuts}, {"partitions", sum->partitions}, {"drains", sum->drains},
        {"failed_steps", sum->failed_steps}, {"stops", sum->stops}, {"leases", sum->leases}, {"router_deaths", sum->router_deaths}, {"router_drains", sum->router_drains},
        {"resumed_legs", sum->resumed}, {"revoked", sum->revoked}, {"late_landings", sum->late_landings},
        {"corrupted", sum->corrupted}, {"repeated_messages", sum->repeated}, {"late_messages", sum->late_messages},
        {"duplicate_tokens", sum->duplicate_tokens}, {"turns", sum->turns}, {"rows_computed", sum->rows_computed},
        {"local_offers", sum->local_offers}, {"cached_tokens", sum->cached_tokens}, {"prefill_cached_tokens", sum->prefill_cached_tokens}, {"pushed_cached", sum->pushed_cached}, {"tier_stores", sum->tier_stores}, {"tier_loads", sum->tier_loads},
        {"swaps", sum->swaps}, {"tier_failures", sum->tier_failures}, {"tier_found", sum->tier_found},
    };
    fprintf(out, "event=sim_done seeds=%llu", (unsigned long long)seeds);
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        fprintf(out, " %s=%llu", lines[i].name, (unsigned long long)lines[i].count);
    }
    fprintf(out, "\n");
}

/* ---- the queue of what will happen ---- */

struct sim_event *sim_at(struct sim_world *world, uint64_t at_ns, enum sim_event_kind kind)
{
    return event_heap_add(&world->heap, &(struct sim_event){.at_ns = at_ns, .kind = kind});
}

bool sim_chance(struct sim_world *world, uint32_t per_mille) { return rng_below(&world->rng, 1000) < per_mille; }

uint64_t sim_delay_ns(struct sim_world *world)
{
    if (world->options.scenario) { return NS_PER_MS / 2; }
    uint64_t delay_ns = 20 * NS_PER_US + rng_below(&world->rng, 500) * NS_PER_US;
    if (world->now_ns < world->slow_until_ns) { delay_ns += rng_below(&world->rng, 60) * NS_PER_MS; }
    return delay_ns;
}

/* ---- the run ---- */

/* The stopped node that the event needs; NULL: it may happen. */
static const struct sim_node *stopped_for(const struct sim_world *world, const struct sim_event *event)
{
    uint32_t nodes[2] = {NODES_MAX, NODES_MAX};
    switch (event->kind) {
    case SIM_TO_NODE:
    case SIM_CONN_DOWN_NODE: nodes[0] = world->conns[event->a].node; break;
    case SIM_STEP_LAYER:
    case SIM_STEP_DONE:
    case SIM_TIER_DONE:
    case SIM_TIER_EVENT:
    case SIM_TICK_NODE: nodes[0] = event->a; break;
    case SIM_XFER_SLICE:
    case SIM_XFER_COMMIT:
    case SIM_XFER_FAIL_D:
    case SIM_XFER_FENCE: nodes[0] = world->xfers[event->a].decode_node; break;
    case SIM_XFER_ACK: nodes[0] = world->xfers[event->a].prefill_node; break;
    case SIM_XFER_END_P: nodes[0] = event->a == UINT32_MAX ? event->c : world->xfers[event->a].prefill_node; break;
    default: return NULL;
    }
    /* A slice in shared memory needs its source, too: pulled bytes do not move by themselves. */
    if (event->kind == SIM_XFER_SLICE) { nodes[1] = world->xfers[event->a].prefill_node; }
    for (unsigned i = 0; i < 2; i++) {
        if (nodes[i] < NODES_MAX && world->nodes[nodes[i]].stopped_until_ns > world->now_ns) { return &world->nodes[nodes[i]]; }
    }
    return NULL;
}

static void dispatch(struct sim_world *world, struct sim_event *event)
{
    const struct sim_node *stopped = stopped_for(world, event);
    if (stopped) {
        struct sim_event *later = sim_at(world, stopped->stopped_until_ns, event->kind);
        *later = (struct sim_event){.at_ns = later->at_ns, .order = later->order, .kind = event->kind, .a = event->a, .b = event->b,
                                    .c = event->c, .generation = event->generation, .bytes = event->bytes, .byte_count = event->byte_count};
        event->bytes = NULL;
        return;
    }
    switch (event->kind) {
    case SIM_SUBMIT:
    case SIM_CANCEL:
    case SIM_STOP: sim_client_event(world, event); return;
    case SIM_TO_NODE:
    case SIM_TO_ROUTER:
    case SIM_CONN_OPEN:
    case SIM_CONN_DOWN_ROUTER:
    case SIM_CONN_DOWN_NODE:
    case SIM_TICK_ROUTER: sim_conn_event(world, event); return;
    case SIM_XFER_SLICE:
    case SIM_XFER_COMMIT:
    case SIM_XFER_ACK:
    case SIM_XFER_END_P:
    case SIM_XFER_FAIL_D:
    case SIM_XFER_FENCE: sim_xfer_event(world, event); return;
    case SIM_FAULT: sim_fault(world, &world->faults[event->a]); return;
    case SIM_CHECK_FREE: sim_client_check_free(world, event->a); return;
    case SIM_QUIET: sim_go_quiet(world); return;
    case SIM_STEP_LAYER:
    case SIM_STEP_DONE:
    case SIM_TICK_NODE:
    case SIM_TIER_DONE:
    case SIM_TIER_EVENT:
    case SIM_NODE_START: break;
    }
    struct sim_node *node = &world->nodes[event->a];
    if (node->epoch != event->generation) { return; } /* of a process that is gone */
    if (event->kind == SIM_NODE_START) {
        if (!node->is_alive) { sim_node_start(world, node); }
        return;
    }
    if (!node->is_alive) { return; }
    if (event->kind == SIM_STEP_LAYER) { sim_node_layer(world, node, event->b); }
    if (event->kind == SIM_STEP_DONE) { sim_node_step_done(world, node); }
    if (event->kind == SIM_TICK_NODE) { sim_node_tick(world, node); }
    if (event->kind == SIM_TIER_DONE || event->kind == SIM_TIER_EVENT) { sim_tier_event(world, node, event); }
}

/* The faults that wait for a count of events strike between any two of them. */
static void strike(struct sim_world *world)
{
    for (; world->fault_next < world->fault_count; world->fault_next++) {
        const struct sim_fault *fault = &world->faults[world->fault_next];
        if (fault->at_event == 0) { continue; }
        if (fault->at_event > world->result.events || world->is_quiet) { return; }
        sim_fault(world, fault);
    }
}

static void run_dry(struct sim_world *world)
{
    while (world->heap.count > 0) {
        struct sim_event event;
        event_heap_take(&world->heap, &event);
        CHECK(event.at_ns >= world->now_ns);
        world->now_ns = event.at_ns;
        if (world->now_ns > world->quiet_at_ns + QUIET_MAX_NS) { sim_fail(world, "still busy long after the last fault: a livelock"); }
        if (++world->result.events > EVENTS_MAX) { sim_fail(world, "too many events: a livelock"); }
        strike(world);
        dispatch(world, &event);
        free(event.bytes);
    }
}

/* Nothing is on its way any more: then nothing may be left over either. */
static void check_quiet(struct sim_world *world)
{
    for (uint32_t i = 0; i < world->request_count; i++) {
        const struct sim_request *request = &world->requests[i];
        if (!request->is_over && !request->is_lost) { sim_fail(world, "request %u has no answer", i); }
    }
    for (uint32_t i = 0; i < world->xfer_count; i++) {
        if (world->xfers[i].is_used) {
            sim_fail(world, "the transfer of leg %llu is left over", (unsigned long long)world->xfers[i].leg.lo >> 24);
        }
    }
    for (uint32_t i = 0; i < world->node_count; i++) { sim_node_check_idle(world, &world->nodes[i]); }
    for (uint32_t r = 0; r < world->router_count; r++) {
        struct router_core_stats stats = router_core_stats(world->routers[r].core);
        if (stats.live != 0 || stats.waiting != 0) { sim_fail(world, "router %u still has %u requests", r, stats.live); }
        for (uint32_t i = 0; i < world->node_count; i++) {
            struct ctl_load load;
            if (!router_core_node(world->routers[r].core, i, &load)) {
                sim_fail(world, "router %u has not found %s again", r, sim_node_name(world, i));
            }
            if (load.blocks_free + load.blocks_cached != world->nodes[i].block_count) {
                sim_fail(world, "router %u believes that %s has %u free blocks and %u cached; it has %u", r, sim_node_name(world, i),
                         load.blocks_free, load.blocks_cached, world->nodes[i].block_count);
            }
        }
    }
}

static void fini(struct sim_world *world)
{
    for (uint32_t i = 0; i < world->node_count; i++) {
        sim_node_stop(world, &world->nodes[i]);
        sim_tier_fini(&world->nodes[i]);
    }
    for (uint32_t r = 0; r < world->router_count; r++) { router_core_destroy(world->routers[r].core); }
    ctl_codec_destroy(world->codec_in);
    ctl_codec_destroy(world->codec_out);
    free(world->xfers);
    free(world->conns);
    event_heap_fini(&world->heap);
    free(world);
}

void sim_run(const struct sim_options *options, struct sim_result *ret_result)
{
    struct sim_world *world = calloc(1, sizeof *world);
    CHECK(world != NULL);
    world->options = *options;
    world->rng = rng_init(options->seed);
    world->heap.event_bytes = sizeof(struct sim_event);
    status_t st = ctl_codec_create(1u << 20, &world->codec_out);
    CHECK(!failed(st));
    st = ctl_codec_create(1u << 20, &world->codec_in);
    CHECK(!failed(st));
    sim_running = world;
    if (options->scenario) {
        sim_plan_from_scenario(world, options->scenario);
    } else {
        sim_plan_from_seed(world);
    }
    run_dry(world);
    check_quiet(world);
    for (uint32_t r = 0; r < world->router_count; r++) {
        struct router_core_stats stats = router_core_stats(world->routers[r].core);
        world->result.resumed += stats.resumed_legs;
        world->result.duplicate_tokens += stats.duplicate_tokens;
        world->result.late_messages += stats.late_messages;
    }
    if (options->calm && world->result.resumed > 0) { sim_fail(world, "a leg was resumed though nothing broke"); }
    world->result.virtual_ns = world->now_ns;
    world->result.requests = world->request_count;
    *ret_result = world->result;
    sim_running = NULL;
    fini(world);
}
