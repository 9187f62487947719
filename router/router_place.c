/* router_place: on which nodes a leg runs, and on which it runs next.
 * Flow:    router_core -> [router_place] -> RESERVE, PREFILL, CANCEL
 * Thread:  the router's core thread.
 * Memory:  none of its own. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "router/router_state.h"

#define BACKOFF_FIRST_MS 20u
#define BACKOFF_MAX_MS 1000u

static bool was_tried(const struct leg *leg, uint32_t node) { return (leg->tried[node / 64] >> (node % 64)) & 1u; }

static void mark_tried(struct leg *leg, uint32_t node) { leg->tried[node / 64] |= UINT64_C(1) << (node % 64); }

static bool is_suspect(const struct router_core *core, uint32_t prefill_node, uint32_t decode_node)
{
    for (uint32_t i = 0; i < SUSPECTS_MAX; i++) {
        const struct suspect *pair = &core->suspects[i];
        if (pair->until_ns > core->now_ns && pair->prefill_node == prefill_node && pair->decode_node == decode_node) {
            return true;
        }
    }
    return false;
}

void router_suspect(struct router_core *core, uint32_t prefill_node, uint32_t decode_node)
{
    struct suspect *oldest = &core->suspects[0];
    for (uint32_t i = 0; i < SUSPECTS_MAX; i++) {
        struct suspect *pair = &core->suspects[i];
        if (pair->prefill_node == prefill_node && pair->decode_node == decode_node) { oldest = pair; break; }
        if (pair->until_ns < oldest->until_ns) { oldest = pair; }
    }
    *oldest = (struct suspect){.prefill_node = prefill_node, .decode_node = decode_node,
                               .until_ns = core->now_ns + core->config.suspect_ttl_ns};
}

/* ---- books ---- */

struct leg *router_leg_create(struct router_core *core, struct request *request, uint32_t first, uint32_t count)
{
    struct leg *leg = NULL;
    /* There is a slot for every live sequence, and as many again for those that ended in
     * this very step, so one is free. */
    for (uint32_t i = 0; i < core->legs_max && !leg; i++) {
        uint32_t slot = (core->leg_cursor + i) % core->legs_max;
        if (core->legs[slot].phase == LEG_FREE) { leg = &core->legs[slot]; }
    }
    CHECK(leg != NULL);
    uint32_t slot = (uint32_t)(leg - core->legs);
    core->leg_cursor = (slot + 1) % core->legs_max;
    memset(leg, 0, offsetof(struct leg, ticket));
    leg->phase = LEG_WAITING;
    leg->lo = (++core->leg_counter << 24) | slot;
    leg->request = request;
    leg->sequence_first = first;
    leg->sequence_count = count;
    leg->decode_node = leg->prefill_node = NO_NODE;
    leg->next_of_request = request->first_leg;
    request->first_leg = slot;
    request->route.legs++;
    core->waiting_legs++;
    return leg;
}

static void uncount_prefill(struct router_core *core, struct leg *leg)
{
    if (leg->prefill_node == NO_NODE || leg->tokens == 0) { return; }
    struct node_entry *node = &core->nodes[leg->prefill_node];
    node->own_tokens -= node->own_tokens < leg->tokens ? node->own_tokens : leg->tokens;
    leg->tokens = 0;
}

void router_leg_uncount_decode(struct router_core *core, struct leg *leg)
{
    if (leg->decode_node == NO_NODE) { return; }
    struct node_entry *node = &core->nodes[leg->decode_node];
    if (leg->phase == LEG_DECODING) {
        uint64_t held_ns = core->now_ns - leg->placed_ns;
        core->hold_ns = core->hold_ns == 0 ? held_ns : core->hold_ns - core->hold_ns / 8 + held_ns / 8;
    }
    CHECK(node->own_legs > 0);
    node->own_legs--;
    /* A report that came since has it already. One need not come: a leg that was refused may
     * have changed nothing. */
    if (leg->loads_seen == node->loads) {
        node->pending_blocks -= leg->blocks;
        node->pending_tokens -= leg->local_tokens;
    }
}

void router_leg_end(struct router_core *core, struct leg *leg)
{
    CHECK(leg->phase != LEG_FREE);
    CHECK(leg->phase != LEG_DEAD);
    uncount_prefill(core, leg);
    router_leg_uncount_decode(core, leg);
    if (leg->phase == LEG_WAITING) { core->waiting_legs--; }
    uint32_t slot = (uint32_t)(leg - core->legs);
    for (uint32_t *link = &leg->request->first_leg; *link != NO_LEG; link = &core->legs[*link].next_of_request) {
        if (*link == slot) { *link = leg->next_of_request; break; }
    }
    leg->phase = LEG_DEAD;
    leg->request = NULL;
    core->dead_legs[core->dead_leg_count++] = slot;
}

static struct ctl_msg *send(struct router_core *core, uint32_t node, enum ctl_kind kind)
{
    struct router_action *action = router_action_add(core, ROUTER_ACT_SEND);
    action->node = node;
    action->msg.kind = kind;
    return &action->msg;
}

void router_leg_cancel(struct router_core *core, struct leg *leg)
{
    struct leg_id id = leg_id_of(core, leg);
    if (leg->decode_node != NO_NODE && core->nodes[leg->decode_node].up) {
        send(core, leg->decode_node, CTL_CANCEL)->cancel = (struct ctl_cancel){.leg = id};
    }
    if (leg->prefill_is_open && core->nodes[leg->prefill_node].up) {
        send(core, leg->prefill_node, CTL_CANCEL)->cancel = (struct ctl_cancel){.leg = id};
    }
    router_leg_end(core, leg);
}

/* ---- choice ---- */

static uint32_t choose_decode(const struct router_core *core, const struct leg *leg, double remote_s)
{
    uint32_t best = NO_NODE;
    double best_cost = 0;
    for (uint32_t i = 0; i < core->config.nodes_max; i++) {
        if (!router_node_can_take(&core->nodes[i], NODE_ROLE_DECODE) || was_tried(leg, i)) { continue; }
        double cost = router_cost_decode(core, leg, i, router_cache_find(core, leg, i), remote_s);
        if (best == NO_NODE || cost < best_cost) { best = i; best_cost = cost; }
    }
    return best;
}

static uint32_t choose_prefill(const struct router_core *core, const struct leg *leg, bool skip_tried)
{
    uint32_t best = NO_NODE;
    double best_cost = 0;
    for (uint32_t i = 0; i < core->config.nodes_max; i++) {
        if (!router_node_can_take(&core->nodes[i], NODE_ROLE_PREFILL)) { continue; }
        if (skip_tried && was_tried(leg, i)) { continue; }
        if (is_suspect(core, i, leg->decode_node)) { continue; }
        double cost = router_cost_prefill(core, leg, i);
        if (best == NO_NODE || cost < best_cost) { best = i; best_cost = cost; }
    }
    return best;
}

bool router_leg_has_choice(const struct router_core *core, const struct leg *leg)
{
    for (uint32_t i = 0; i < core->config.nodes_max; i++) {
        if (router_node_can_take(&core->nodes[i], NODE_ROLE_DECODE) && !was_tried(leg, i)) { return true; }
    }
    return false;
}

static struct ctl_work work_of(const struct router_core *core, const struct leg *leg)
{
    const struct request *request = leg->request;
    const struct sequence *sequence = &request->sequences[leg->sequence_first];
    struct ctl_work work = {
        .leg = leg_id_of(core, leg),
        .sequence_first = leg->sequence_first,
        .sequence_count = leg->sequence_count,
        .prompt_count = request->prompt_count,
        .prompt = request->prompt,
        .output_count = sequence->output_count,
        .output = sequence->output,
        .params = request->params,
        .age_ns = core->now_ns - request->arrival_ns,
        .resumed = leg->resumed,
        .priority = request->priority,
        .cache_salt = request->cache_salt,
    };
    if (request->has_prompt_logprobs || sequence->output_count > 0) { work.params.prompt_logprobs = -1; }
    return work;
}

static void wait_and_retry(struct router_core *core, struct leg *leg)
{
    if (leg->phase != LEG_WAITING) { core->waiting_legs++; }
    leg->phase = LEG_WAITING;
    leg->backoff_ms = leg->backoff_ms == 0 ? BACKOFF_FIRST_MS : leg->backoff_ms * 2;
    if (leg->backoff_ms > BACKOFF_MAX_MS) { leg->backoff_ms = BACKOFF_MAX_MS; }
    leg->retry_ns = core->now_ns + leg->backoff_ms * NS_PER_MS;
    router_want_tick(core, leg->retry_ns);
}

/* Before the leg is on its node's books. */
static uint32_t local_max_of(const struct router_core *core, const struct leg *leg, double remote_s)
{
    uint32_t predicted = router_cost_local_max(core, leg, leg->decode_node, leg->guessed_tokens, remote_s);
    return predicted > core->config.local_prefill_tokens ? predicted : core->config.local_prefill_tokens;
}

void router_leg_place(struct router_core *core, struct leg *leg)
{
    CHECK(leg->phase == LEG_WAITING);
    double remote_s = router_cost_remote(core, leg);
    uint32_t decode = choose_decode(core, leg, remote_s);
    if (decode == NO_NODE) {
        /* Nobody, or all have refused: start over later, or tell the client now. */
        memset(leg->tried, 0, sizeof leg->tried);
        if (leg->resumed && core->now_ns < leg->give_up_ns) { wait_and_retry(core, leg); return; }
        router_finish(core, leg->request, ST_UNAVAILABLE, 1000,
                      leg->resumed ? "no decode node could take the request up again in time"
                                   : "no decode node is attached and ready; try again when one is");
        return;
    }
    struct node_entry *node = &core->nodes[decode];
    core->waiting_legs--;
    leg->decode_node = decode;
    leg->placed_ns = core->now_ns;
    leg->guessed_tokens = router_cache_find(core, leg, decode);
    leg->blocks = router_leg_blocks(leg, node, leg->guessed_tokens);
    leg->loads_seen = node->loads;
    node->pending_blocks += leg->blocks;
    leg->local = router_leg_tokens(leg) <= core->config.local_prefill_tokens ||
                 leg->transfer_failures >= TRANSFER_FAILURES_MAX || choose_prefill(core, leg, false) == NO_NODE;
    leg->local_max_tokens = leg->local ? 0 : local_max_of(core, leg, remote_s);
    uint32_t missing = router_leg_tokens(leg) - leg->guessed_tokens;
    leg->local_tokens = leg->local || missing <= leg->local_max_tokens ? missing : 0;
    node->pending_tokens += leg->local_tokens;
    node->own_legs++;
    leg->phase = LEG_RESERVING;
    uint64_t wait_ns = leg->give_up_ns > core->now_ns ? leg->give_up_ns - core->now_ns : 0;
    if (wait_ns > core->config.reserve_wait_ns) { wait_ns = core->config.reserve_wait_ns; }
    struct ctl_msg *msg = send(core, decode, CTL_RESERVE);
    msg->reserve.work = work_of(core, leg);
    msg->reserve.local_prefill = leg->local;
    msg->reserve.local_max_tokens = leg->local_max_tokens;
    msg->reserve.wait_ms = (uint32_t)(wait_ns / NS_PER_MS);
    leg->request->route.decode_node = decode;
    leg->request->route.prefill_node = NO_NODE;
    snprintf(leg->request->cable, sizeof leg->request->cable, "%s", leg->local ? "local" : "");
}

void router_leg_prefill(struct router_core *core, struct leg *leg)
{
    uint32_t prefill = choose_prefill(core, leg, true);
    if (prefill == NO_NODE) {
        /* The pool went away, or is full, after blocks were reserved. Work that has not
         * begun is refused; what a client already reads goes on, on the decode node alone. */
        bool any = choose_prefill(core, leg, false) != NO_NODE;
        if (any && leg->prefill_cannot && !leg->resumed) {
            /* Too large for every prefill node there is: the decode node computes it, or says why
             * it cannot either. The same leg under a fresh id; the old one is spent. */
            send(core, leg->decode_node, CTL_CANCEL)->cancel = (struct ctl_cancel){.leg = leg_id_of(core, leg)};
            router_leg_uncount_decode(core, leg);
            leg->decode_node = NO_NODE;
            leg->phase = LEG_WAITING;
            core->waiting_legs++;
            leg->transfer_failures = TRANSFER_FAILURES_MAX;
            memset(leg->tried, 0, sizeof leg->tried);
            leg->lo = (++core->leg_counter << 24) | (uint32_t)(leg - core->legs);
            router_leg_place(core, leg);
            return;
        }
        if (any && !leg->resumed) {
            struct request *request = leg->request;
            router_leg_cancel(core, leg);
            router_finish(core, request, ST_RESOURCE_EXHAUSTED, 500,
                          "every prefill node's queue is full; try again later or add prefill nodes");
            return;
        }
        if (core->nodes[leg->decode_node].up) {
            send(core, leg->decode_node, CTL_CANCEL)->cancel = (struct ctl_cancel){.leg = leg_id_of(core, leg)};
        }
        leg->transfer_failures = TRANSFER_FAILURES_MAX;
        router_leg_replace(core, leg, ST_UNAVAILABLE, "no prefill node is left");
        return;
    }
    leg->prefill_node = prefill;
    leg->prefill_is_open = true;
    leg->tokens = router_leg_tokens(leg) - router_cache_find(core, leg, prefill);
    core->nodes[prefill].own_tokens += leg->tokens;
    leg->phase = LEG_PREFILLING;
    struct ctl_msg *msg = send(core, prefill, CTL_PREFILL);
    msg->prefill.work = work_of(core, leg);
    msg->prefill.ticket = leg->ticket;
    msg->prefill.ticket_bytes = leg->ticket_bytes;
    msg->prefill.grant_first = leg->grant_first;
    mark_tried(leg, prefill);
    leg->request->route.prefill_node = prefill;
}

/* What the leg sent too early is of no use once it is gone. */
static void forget_held(struct request *request, struct leg_id id)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < request->held_count; i++) {
        if (!leg_id_equal(request->held[i].leg, id)) { request->held[kept++] = request->held[i]; }
    }
    request->held_count = kept;
}

static struct leg *successor(struct router_core *core, const struct leg *old, uint32_t first, uint32_t count)
{
    struct leg *leg = router_leg_create(core, old->request, first, count);
    leg->transfer_failures = old->transfer_failures;
    leg->without_progress = old->without_progress + 1;
    /* The clock of giving up starts with the first leg that broke, and again after progress. */
    leg->give_up_ns = old->resumed && old->without_progress > 0 ? old->give_up_ns
                                                                : core->now_ns + core->config.resume_wait_ns;
    leg->resumed = true;
    core->stats.resumed_legs++;
    return leg;
}

void router_leg_replace(struct router_core *core, struct leg *leg, uint8_t code, const char *why)
{
    struct request *request = leg->request;
    forget_held(request, leg_id_of(core, leg));
    for (uint32_t s = leg->sequence_first; s < leg->sequence_first + leg->sequence_count; s++) {
        const struct sequence *sequence = &request->sequences[s];
        if (sequence->done || sequence->pending_finish == FINISH_NONE) { continue; }
        router_sequence_end(core, request, s, sequence->pending_finish);
        if (leg->request != request) { return; } /* that was the request's last: its legs are gone */
    }
    if (leg->without_progress + 1 >= LEGS_WITHOUT_PROGRESS_MAX) {
        router_leg_end(core, leg);
        router_finish(core, request, code, 1000, why);
        return;
    }
    /* Sequences that have no token yet still share their prompt; the others go on alone. */
    uint32_t fresh[SAMPLING_N_MAX], fresh_count = 0;
    uint32_t end = leg->sequence_first + leg->sequence_count;
    for (uint32_t s = leg->sequence_first; s < end;) {
        const struct sequence *sequence = &request->sequences[s];
        if (sequence->done) { s++; continue; }
        uint32_t run = 1;
        while (sequence->output_count == 0 && s + run < end && !request->sequences[s + run].done &&
               request->sequences[s + run].output_count == 0) {
            run++;
        }
        struct leg *next = successor(core, leg, s, run);
        fresh[fresh_count++] = (uint32_t)(next - core->legs);
        s += run;
    }
    router_leg_end(core, leg);
    for (uint32_t i = 0; i < fresh_count; i++) {
        struct leg *next = &core->legs[fresh[i]];
        if (next->phase == LEG_WAITING && next->request == request) { router_leg_place(core, next); }
    }
}
