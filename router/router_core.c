#include "router/router_core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "router/router_state.h"

/* ---- life ---- */

static status_t bad_size(struct diag *diag, const char *what)
{
    diag_set(diag, "router: %s", what);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

status_t router_core_create(const struct router_core_config *config, struct router_core **ret_core, struct diag *diag)
{
    if (config->nodes_max == 0 || config->nodes_max > ROUTER_NODES_MAX) { return bad_size(diag, "takes 1 to 256 nodes"); }
    if (config->requests_max == 0) { return bad_size(diag, "--requests-max must be at least 1"); }
    if (config->sequences_max < SAMPLING_N_MAX) { return bad_size(diag, "sequences_max must be at least 64"); }
    if (config->sequences_max > (1u << 22)) { return bad_size(diag, "sequences_max must be at most 4194304"); }
    struct router_core *core = calloc(1, sizeof *core);
    if (!core) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    core->config = *config;
    core->next_deadline_ns = UINT64_MAX;
    core->tail = &core->head;
    /* One leg per live sequence, and one more for each that breaks in the step it breaks in. */
    core->legs_max = config->sequences_max * 2;
    core->nodes = calloc(config->nodes_max, sizeof *core->nodes);
    core->legs = calloc(core->legs_max, sizeof *core->legs);
    core->dead_legs = calloc(core->legs_max, sizeof *core->dead_legs);
    if (!core->nodes || !core->legs || !core->dead_legs) {
        router_core_destroy(core);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    *ret_core = core;
    return STATUS_OK;
}

static void free_requests(struct request *request)
{
    while (request) {
        struct request *next = request->next;
        free(request->held);
        free(request);
        request = next;
    }
}

static void bury(struct router_core *core)
{
    free_requests(core->graveyard);
    core->graveyard = NULL;
    for (uint32_t i = 0; i < core->dead_leg_count; i++) { core->legs[core->dead_legs[i]].phase = LEG_FREE; }
    core->dead_leg_count = 0;
}

void router_core_destroy(struct router_core *core)
{
    if (!core) { return; }
    bury(core);
    free_requests(core->head);
    for (uint32_t i = 0; core->nodes && i < core->config.nodes_max; i++) { router_cache_node_down(&core->nodes[i]); }
    free(core->nodes);
    free(core->tail_names);
    free(core->legs);
    free(core->dead_legs);
    free(core->actions);
    free(core);
}

struct router_action *router_action_add(struct router_core *core, enum router_action_kind kind)
{
    if (core->action_count == core->action_capacity) {
        uint32_t capacity = core->action_capacity ? core->action_capacity * 2 : 256;
        struct router_action *grown = realloc(core->actions, capacity * sizeof *grown);
        CHECK(grown != NULL);
        core->actions = grown;
        core->action_capacity = capacity;
    }
    struct router_action *action = &core->actions[core->action_count++];
    memset(action, 0, sizeof *action);
    action->kind = kind;
    return action;
}

void router_want_tick(struct router_core *core, uint64_t at_ns)
{
    if (at_ns < core->next_deadline_ns) { core->next_deadline_ns = at_ns; }
}

/* ---- requests ---- */

static struct request *find_request(struct router_core *core, uint64_t handle)
{
    for (struct request *request = core->head; request; request = request->next) {
        if (request->handle == handle) { return request; }
    }
    return NULL;
}

/* Ends a request for the client, and everything it still holds on nodes. */
void router_finish(struct router_core *core, struct request *request, uint8_t code, uint32_t retry_after_ms,
                   const char *message)
{
    /* A repeated message of a node points into the codec; the text must outlive the step. */
    struct router_action *action = router_action_add(core, ROUTER_ACT_FINISHED);
    action->request = request->handle;
    action->code = code;
    action->retry_after_ms = retry_after_ms;
    action->message = message;
    action->route = request->route;
    action->route.cable = request->cable;
    while (request->first_leg != NO_LEG) { router_leg_cancel(core, &core->legs[request->first_leg]); }
    *request->link = request->next;
    if (request->next) { request->next->link = request->link; } else { core->tail = request->link; }
    core->sequences_live -= request->params.n;
    core->stats.live--;
    if (code == ST_OK) {
        core->stats.finished++;
    } else if (code == ST_CANCELLED) {
        core->stats.cancelled++;
    } else {
        core->stats.failed++;
    }
    request->next = core->graveyard; /* its memory is named by actions: freed in the next step */
    core->graveyard = request;
}

static void refuse(struct router_core *core, uint64_t handle, uint8_t code, uint32_t retry_after_ms, const char *message)
{
    struct router_action *action = router_action_add(core, ROUTER_ACT_FINISHED);
    action->request = handle;
    action->code = code;
    action->retry_after_ms = retry_after_ms;
    action->message = message;
    action->route = (struct router_route){.prefill_node = NO_NODE, .decode_node = NO_NODE, .cable = ""};
    core->stats.refused++;
}

static struct request *request_create(struct router_core *core, const struct router_event *event)
{
    const struct sampling_params *params = event->params;
    size_t sequences = sizeof(struct sequence) * params->n;
    size_t tokens = (size_t)event->prompt_count + (size_t)params->n * params->max_tokens + params->stop_token_count;
    size_t biases = params->logit_bias_count * sizeof(struct logit_bias);
    uint32_t name_count = router_cache_name_count(core, event->prompt_count);
    struct request *request = malloc(sizeof *request + sequences + biases + tokens * sizeof(uint32_t) +
                                     name_count * sizeof(struct kv_hash));
    if (!request) { return NULL; }
    memset(request, 0, sizeof *request + sequences);
    struct logit_bias *bias = (struct logit_bias *)(void *)((char *)(request + 1) + sequences);
    uint32_t *words = (uint32_t *)(void *)((char *)bias + biases);
    request->params = *params;
    request->params.logit_bias = bias;
    if (biases > 0) { memcpy(bias, params->logit_bias, biases); }
    request->params.stop_tokens = words;
    if (params->stop_token_count > 0) { memcpy(words, params->stop_tokens, params->stop_token_count * sizeof *words); }
    words += params->stop_token_count;
    request->prompt = words;
    memcpy(words, event->prompt, event->prompt_count * sizeof *words);
    words += event->prompt_count;
    for (uint32_t s = 0; s < params->n; s++) {
        request->sequences[s].output = words;
        words += params->max_tokens;
    }
    request->name_count = name_count;
    request->names = (struct kv_hash *)(void *)words;
    request->handle = event->request;
    request->arrival_ns = event->now_ns;
    request->deadline_ns = event->deadline_ns;
    request->prompt_count = event->prompt_count;
    request->priority = event->priority;
    request->cache_salt = event->cache_salt;
    request->has_prompt_logprobs = params->prompt_logprobs < 0 || event->prompt_count < 2;
    request->prompt_logprobs_next = 1;
    request->first_leg = NO_LEG;
    request->sequences_left = params->n;
    request->route = (struct router_route){.prefill_node = NO_NODE, .decode_node = NO_NODE};
    return request;
}

static void on_submit(struct router_core *core, const struct router_event *event)
{
    if (core->draining) { refuse(core, event->request, ST_UNAVAILABLE, 1000, "this router is draining; use another"); return; }
    if (core->stats.live >= core->config.requests_max ||
        core->sequences_live + event->params->n > core->config.sequences_max) {
        refuse(core, event->request, ST_RESOURCE_EXHAUSTED, 500, "the router holds as many requests as --requests-max allows");
        return;
    }
    if (core->stats.nodes_decode == 0) {
        refuse(core, event->request, ST_UNAVAILABLE, 1000, "no decode node is attached and ready; try again when one is");
        return;
    }
    struct request *request = request_create(core, event);
    if (!request) { refuse(core, event->request, ST_RESOURCE_EXHAUSTED, 500, "the router is out of memory"); return; }
    router_cache_name(core, request, event);
    request->link = core->tail;
    *core->tail = request;
    core->tail = &request->next;
    core->stats.accepted++;
    core->stats.live++;
    core->sequences_live += request->params.n;
    if (request->deadline_ns != UINT64_MAX) { router_want_tick(core, request->deadline_ns); }
    struct leg *leg = router_leg_create(core, request, 0, request->params.n);
    leg->give_up_ns = core->now_ns + core->config.reserve_wait_ns;
    router_leg_place(core, leg);
}

static void on_client_gone(struct router_core *core, uint64_t handle)
{
    struct request *request = find_request(core, handle);
    if (request) { router_finish(core, request, ST_CANCELLED, 0, "cancelled by the client"); }
}

/* ---- legs ---- */

struct leg *router_leg_find(struct router_core *core, struct leg_id id)
{
    uint32_t slot = (uint32_t)(id.lo & 0xffffffu);
    if (id.hi != core->config.router_boot_id || slot >= core->legs_max) { return NULL; }
    struct leg *leg = &core->legs[slot];
    return leg->lo == id.lo && leg->phase != LEG_FREE && leg->phase != LEG_DEAD ? leg : NULL;
}

/* The prefill node has nothing of the leg any more. */
static void close_prefill(struct router_core *core, struct leg *leg)
{
    if (!leg->prefill_is_open) { return; }
    leg->prefill_is_open = false;
    struct node_entry *node = &core->nodes[leg->prefill_node];
    node->own_tokens -= node->own_tokens < leg->tokens ? node->own_tokens : leg->tokens;
    leg->tokens = 0;
}

static void tell_decode_prefill_lost(struct router_core *core, struct leg *leg)
{
    struct router_action *action = router_action_add(core, ROUTER_ACT_SEND);
    action->node = leg->decode_node;
    action->msg.kind = CTL_PREFILL_LOST;
    action->msg.prefill_lost = leg_id_of(core, leg);
    leg->phase = LEG_LOST;
}

/* A sequence needs no more tokens. Ends its leg with its last one, the request likewise. */
static void sequence_done(struct router_core *core, struct request *request, uint32_t index, struct leg *leg,
                          bool node_knows)
{
    request->sequences[index].done = true;
    request->sequences_left--;
    if (leg && leg->decode_node != NO_NODE) {
        router_cache_sequence_is_at(core, request, &request->sequences[index], leg->decode_node);
    }
    if (leg) {
        bool any_left = false;
        for (uint32_t s = leg->sequence_first; s < leg->sequence_first + leg->sequence_count; s++) {
            any_left = any_left || !request->sequences[s].done;
        }
        if (!any_left && node_knows) {
            /* The decode node is done with it, and so the prefill node is or will be. */
            router_leg_end(core, leg);
        } else if (!any_left) {
            router_leg_cancel(core, leg);
        } else if (!node_knows && leg->decode_node != NO_NODE && core->nodes[leg->decode_node].up) {
            struct router_action *action = router_action_add(core, ROUTER_ACT_SEND);
            action->node = leg->decode_node;
            action->msg.kind = CTL_CANCEL;
            action->msg.cancel = (struct ctl_cancel){.leg = leg_id_of(core, leg), .one_sequence = true, .sequence = index};
        }
    }
    if (request->sequences_left == 0) { router_finish(core, request, ST_OK, 0, ""); }
}

static void on_sequence_stop(struct router_core *core, uint64_t handle, uint32_t index)
{
    struct request *request = find_request(core, handle);
    if (!request || index >= request->params.n || request->sequences[index].done) { return; }
    struct leg *leg = NULL;
    for (uint32_t slot = request->first_leg; slot != NO_LEG; slot = core->legs[slot].next_of_request) {
        struct leg *each = &core->legs[slot];
        if (index >= each->sequence_first && index < each->sequence_first + each->sequence_count) { leg = each; }
    }
    sequence_done(core, request, index, leg, false);
}

void router_leg_take_back(struct router_core *core, struct leg *leg, const char *why)
{
    uint32_t nodes[] = {leg->decode_node, leg->prefill_is_open ? leg->prefill_node : NO_NODE};
    for (unsigned i = 0; i < 2; i++) {
        if (nodes[i] == NO_NODE || !core->nodes[nodes[i]].up) { continue; }
        struct router_action *action = router_action_add(core, ROUTER_ACT_SEND);
        action->node = nodes[i];
        action->msg.kind = CTL_CANCEL;
        action->msg.cancel.leg = leg_id_of(core, leg);
    }
    router_leg_replace(core, leg, ST_INTERNAL, why);
}

/* Both moments are known: keep what lies between them. */
static void note_handover(struct router_core *core, struct leg *leg)
{
    if (leg->first_token_ns == 0 || leg->landed_ns == 0) { return; }
    uint64_t handover_ns = leg->landed_ns > leg->first_token_ns ? leg->landed_ns - leg->first_token_ns : 0;
    leg->request->route.handover_ns = handover_ns;
    uint64_t before = (uint64_t)leg->grant_first * core->nodes[leg->decode_node].block_tokens;
    uint32_t total = router_leg_tokens(leg);
    uint64_t token_ns = handover_ns / (total > before ? total - before : 1);
    core->handover_token_ns = core->handover_token_ns - core->handover_token_ns / 8 + token_ns / 8;
}

/* Prompt log-probabilities come from the prefill node and tokens from both, on two streams:
 * the decode node's may be first. A client reads the prompt before the output, so they wait.
 * False: no memory. */
static bool hold_token(struct request *request, const struct ctl_token *token)
{
    if (request->held_count == request->held_capacity) {
        uint32_t capacity = request->held_capacity > 0 ? request->held_capacity * 2 : 16;
        struct ctl_token *grown = realloc(request->held, capacity * sizeof *grown);
        if (!grown) { return false; }
        request->held = grown;
        request->held_capacity = capacity;
    }
    request->held[request->held_count++] = *token;
    return true;
}

static void on_token(struct router_core *core, uint32_t node, const struct ctl_token *token)
{
    struct leg *leg = router_leg_find(core, token->leg);
    if (!leg || (node != leg->decode_node && node != leg->prefill_node)) { core->stats.late_messages++; return; }
    struct request *request = leg->request;
    uint32_t index = token->sequence;
    if (index < leg->sequence_first || index - leg->sequence_first >= leg->sequence_count ||
        request->sequences[index].done) {
        core->stats.late_messages++;
        return;
    }
    if (node == leg->decode_node) {
        leg->phase = LEG_DECODING;
        if (!leg->is_known_there) { router_cache_prompt_is_at(core, leg, node); }
        leg->is_known_there = true;
    } else if (leg->first_token_ns == 0) {
        leg->first_token_ns = core->now_ns;
        router_cache_prompt_is_at(core, leg, node);
        note_handover(core, leg);
    }
    if (!request->has_prompt_logprobs) {
        /* Whoever has them is gone: the prompt must be computed again. */
        bool may_come = leg->prefill_is_open && hold_token(request, token);
        if (!may_come) { router_leg_take_back(core, leg, "the prompt's log-probabilities were lost"); }
        return;
    }
    struct sequence *sequence = &request->sequences[index];
    bool is_new = token->position == sequence->output_count && sequence->output_count < request->params.max_tokens;
    if (is_new) {
        sequence->output[sequence->output_count++] = token->token;
        leg->without_progress = 0;
        struct router_action *action = router_action_add(core, ROUTER_ACT_EMIT);
        action->request = request->handle;
        action->token = *token;
        action->token.finish = FINISH_NONE;
    } else if (token->position < sequence->output_count) {
        core->stats.duplicate_tokens++;
        if (token->position + 1 != sequence->output_count) { return; }
    } else {
        /* The stream is ordered, so a gap is a broken node: take the leg away from it. */
        router_leg_take_back(core, leg, "a node skipped a token");
        return;
    }
    if (token->finish == FINISH_NONE) { return; }
    if (node != leg->decode_node) {
        /* A first token that is the last one. The decode node says so too, once the blocks have
         * landed; were it to die first, there would be nothing left to resume: see
         * router_leg_replace. */
        sequence->pending_finish = token->finish;
        return;
    }
    struct router_action *action = router_action_add(core, ROUTER_ACT_SEQUENCE_END);
    action->request = request->handle;
    action->token = *token;
    sequence_done(core, request, index, leg, true);
}

void router_sequence_end(struct router_core *core, struct request *request, uint32_t index, uint8_t finish)
{
    struct router_action *action = router_action_add(core, ROUTER_ACT_SEQUENCE_END);
    action->request = request->handle;
    action->token = (struct ctl_token){.sequence = index, .position = request->sequences[index].output_count - 1,
                                       .finish = finish};
    sequence_done(core, request, index, NULL, false);
}

/* The decode node's refusal, or the prefill node's: its message lives in the codec's memory,
 * so it is kept. One message a step is enough: a step handles one refusal. */
static const char *keep_message(struct router_core *core, const char *message)
{
    snprintf(core->message, sizeof core->message, "%s", message ? message : "");
    return core->message;
}

static void on_refused(struct router_core *core, uint32_t node, const struct ctl_failure *failure)
{
    struct leg *leg = router_leg_find(core, failure->leg);
    if (!leg) { core->stats.late_messages++; return; }
    if (node == leg->prefill_node && leg->phase == LEG_PREFILLING) {
        close_prefill(core, leg);
        leg->prefill_node = NO_NODE;
        leg->prefill_cannot = leg->prefill_cannot || failure->code == ST_INVALID_ARGUMENT;
        router_leg_prefill(core, leg);
        return;
    }
    if (node != leg->decode_node || leg->phase != LEG_RESERVING) { core->stats.late_messages++; return; }
    leg->tried[node / 64] |= UINT64_C(1) << (node % 64);
    router_leg_uncount_decode(core, leg);
    leg->decode_node = NO_NODE;
    leg->phase = LEG_WAITING;
    core->waiting_legs++;
    if (!leg->resumed && !router_leg_has_choice(core, leg)) {
        router_finish(core, leg->request, failure->code, failure->retry_after_ms, keep_message(core, failure->message));
        return;
    }
    /* A fresh id: the refused one is spent. */
    uint32_t slot = (uint32_t)(leg - core->legs);
    leg->lo = (++core->leg_counter << 24) | slot;
    router_leg_place(core, leg);
}

/* The leg's prefill node will say no more. If it never told the prompt's log-probabilities,
 * then what the decode node generates is held in vain. */
static void want_prompt_logprobs(struct router_core *core, struct leg *leg)
{
    if (leg->request->has_prompt_logprobs) { return; }
    router_leg_take_back(core, leg, "the prompt's log-probabilities were lost with its prefill node");
}

static void on_prefill_failed(struct router_core *core, uint32_t node, const struct ctl_failure *failure)
{
    struct leg *leg = router_leg_find(core, failure->leg);
    if (!leg || leg->prefill_node != node || !leg->prefill_is_open) { core->stats.late_messages++; return; }
    close_prefill(core, leg);
    if (leg->phase == LEG_DECODING) { want_prompt_logprobs(core, leg); }
    if (leg->phase != LEG_PREFILLING) { return; }
    leg->transfer_failures++;
    router_suspect(core, node, leg->decode_node);
    tell_decode_prefill_lost(core, leg);
}

static void on_leg_failed(struct router_core *core, uint32_t node, const struct ctl_failure *failure)
{
    struct leg *leg = router_leg_find(core, failure->leg);
    if (!leg || leg->decode_node != node) { core->stats.late_messages++; return; }
    if (!leg->local && leg->phase == LEG_PREFILLING && leg->prefill_node != NO_NODE) {
        leg->transfer_failures++;
        router_suspect(core, leg->prefill_node, leg->decode_node);
    }
    if (leg->prefill_is_open && core->nodes[leg->prefill_node].up) {
        struct router_action *action = router_action_add(core, ROUTER_ACT_SEND);
        action->node = leg->prefill_node;
        action->msg.kind = CTL_CANCEL;
        action->msg.cancel.leg = leg_id_of(core, leg);
    }
    router_leg_replace(core, leg, failure->code, keep_message(core, failure->message));
}

static void note_transfer(struct leg *leg, const struct ctl_prefill_done *done)
{
    if (leg->transfer_is_known) { return; }
    leg->transfer_is_known = true;
    struct request *request = leg->request;
    request->route.kv_bytes += done->bytes;
    request->route.transfer_ns = done->transfer_ns;
    snprintf(request->cable, sizeof request->cable, "%s", done->cable);
}

static void on_prefill_done(struct router_core *core, uint32_t node, const struct ctl_prefill_done *done)
{
    struct leg *leg = router_leg_find(core, done->leg);
    if (leg && leg->prefill_node != NO_NODE && node == leg->decode_node) {
        note_transfer(leg, done);
        if (leg->landed_ns == 0) {
            leg->landed_ns = core->now_ns;
            note_handover(core, leg);
        }
        return;
    }
    if (!leg || leg->prefill_node != node || !leg->prefill_is_open) { core->stats.late_messages++; return; }
    close_prefill(core, leg);
    note_transfer(leg, done);
    leg->request->route.prefill_queue_ns = done->queue_ns;
    leg->request->route.prefill_compute_ns = done->compute_ns;
    uint32_t total = router_leg_tokens(leg);
    leg->request->route.prefill_cached_tokens = done->cached_tokens < total ? done->cached_tokens : total;
    if (leg->phase == LEG_DECODING) { want_prompt_logprobs(core, leg); }
}

static void on_prompt_logprobs(struct router_core *core, uint32_t node, const struct ctl_prompt_logprobs *logprobs)
{
    struct leg *leg = router_leg_find(core, logprobs->leg);
    if (!leg || (node != leg->decode_node && node != leg->prefill_node)) { core->stats.late_messages++; return; }
    struct request *request = leg->request;
    /* They come in chunks, and again from the start when a leg broke half way. */
    if (request->has_prompt_logprobs || logprobs->first > request->prompt_logprobs_next) { return; }
    uint32_t known = request->prompt_logprobs_next - logprobs->first;
    if (known >= logprobs->count) { return; }
    struct router_action *action = router_action_add(core, ROUTER_ACT_PROMPT_LOGPROBS);
    action->request = request->handle;
    action->logprobs = *logprobs;
    action->logprobs.first += known;
    action->logprobs.count -= known;
    action->logprobs.entries += known;
    request->prompt_logprobs_next += action->logprobs.count;
    request->has_prompt_logprobs = request->prompt_logprobs_next >= request->prompt_count;
    if (!request->has_prompt_logprobs) { return; }
    /* A held token may end its leg, and the last of them the request: it is in the graveyard
     * then, whole until the next step. */
    for (uint32_t i = 0; i < request->held_count; i++) {
        struct leg *holder = router_leg_find(core, request->held[i].leg);
        if (holder) { on_token(core, holder->decode_node, &request->held[i]); }
    }
    request->held_count = 0;
}

static void place_waiting(struct router_core *core, bool only_due)
{
    if (core->waiting_legs == 0) { return; }
    for (struct request *request = core->head, *next; request; request = next) {
        next = request->next;
        for (uint32_t slot = request->first_leg, following; slot != NO_LEG; slot = following) {
            struct leg *leg = &core->legs[slot];
            following = leg->next_of_request;
            if (leg->phase != LEG_WAITING || (only_due && leg->retry_ns > core->now_ns)) { continue; }
            router_leg_place(core, leg);
            if (leg->request != request) { break; } /* that ended the request */
        }
    }
}

/* ---- nodes ---- */

static void on_node_up(struct router_core *core, uint32_t index, const struct ctl_node_hello *hello)
{
    struct node_entry *node = &core->nodes[index];
    CHECK(!node->up);
    *node = (struct node_entry){.up = true, .role = hello->role, .block_tokens = hello->block_tokens,
                                .block_count = hello->block_count, .sequences_max = hello->sequences_max};
    if (hello->role == NODE_ROLE_PREFILL) { core->stats.nodes_prefill++; } else { core->stats.nodes_decode++; }
    router_cache_node_up(core, node);
    /* Another process may sit behind the handle now: old suspicions are void. */
    for (uint32_t i = 0; i < SUSPECTS_MAX; i++) {
        struct suspect *pair = &core->suspects[i];
        if (pair->prefill_node == index || pair->decode_node == index) { pair->until_ns = 0; }
    }
    place_waiting(core, false);
}

static void on_node_down(struct router_core *core, uint32_t index)
{
    struct node_entry *node = &core->nodes[index];
    if (!node->up) { return; }
    node->up = false;
    router_cache_node_down(node);
    if (node->role == NODE_ROLE_PREFILL) { core->stats.nodes_prefill--; } else { core->stats.nodes_decode--; }
    for (struct request *request = core->head, *next; request; request = next) {
        next = request->next;
        for (uint32_t slot = request->first_leg, following; slot != NO_LEG; slot = following) {
            struct leg *leg = &core->legs[slot];
            following = leg->next_of_request;
            if (leg->decode_node == index) {
                if (leg->prefill_is_open && core->nodes[leg->prefill_node].up) {
                    struct router_action *action = router_action_add(core, ROUTER_ACT_SEND);
                    action->node = leg->prefill_node;
                    action->msg.kind = CTL_CANCEL;
                    action->msg.cancel.leg = leg_id_of(core, leg);
                }
                router_leg_replace(core, leg, ST_UNAVAILABLE, "its decode node died, and no other could take it up");
            } else if (leg->prefill_node == index && leg->prefill_is_open) {
                close_prefill(core, leg);
                if (leg->phase == LEG_PREFILLING) {
                    tell_decode_prefill_lost(core, leg);
                } else if (leg->phase == LEG_DECODING) {
                    want_prompt_logprobs(core, leg);
                }
            }
            /* Replacing put new legs at the front of the list, where this walk has been; a
             * request that ended has none. */
            if (request->first_leg == NO_LEG) { break; }
        }
    }
}

static void on_load(struct router_core *core, uint32_t index, const struct ctl_load *load)
{
    struct node_entry *node = &core->nodes[index];
    bool was_draining = node->load.draining;
    node->load = *load;
    node->has_load = true;
    node->loads++;
    node->pending_blocks = 0;
    node->pending_tokens = 0;
    if (core->waiting_legs > 0 && was_draining && !load->draining) { place_waiting(core, false); }
}

static void on_message(struct router_core *core, uint32_t node, const struct ctl_msg *msg)
{
    if (!core->nodes[node].up) { core->stats.late_messages++; return; }
    switch (msg->kind) {
    case CTL_RESERVED: router_reserved(core, node, &msg->reserved); break;
    case CTL_REFUSED: on_refused(core, node, &msg->failure); break;
    case CTL_PREFILL_FAILED: on_prefill_failed(core, node, &msg->failure); break;
    case CTL_LEG_FAILED: on_leg_failed(core, node, &msg->failure); break;
    case CTL_PREFILL_DONE: on_prefill_done(core, node, &msg->prefill_done); break;
    case CTL_PROMPT_LOGPROBS: on_prompt_logprobs(core, node, &msg->prompt_logprobs); break;
    case CTL_LOAD: on_load(core, node, &msg->load); break;
    case CTL_TOKENS:
        for (uint32_t i = 0; i < msg->tokens.count; i++) { on_token(core, node, &msg->tokens.tokens[i]); }
        break;
    default: core->stats.late_messages++; break;
    }
}

/* ---- time ---- */

static void on_tick(struct router_core *core)
{
    core->next_deadline_ns = UINT64_MAX;
    for (struct request *request = core->head, *next; request; request = next) {
        next = request->next;
        if (request->deadline_ns <= core->now_ns) {
            router_finish(core, request, ST_DEADLINE_EXCEEDED, 0, "the request's deadline passed");
        }
    }
    place_waiting(core, true);
    for (struct request *request = core->head; request; request = request->next) {
        if (request->deadline_ns != UINT64_MAX) { router_want_tick(core, request->deadline_ns); }
        for (uint32_t slot = request->first_leg; slot != NO_LEG; slot = core->legs[slot].next_of_request) {
            if (core->legs[slot].phase == LEG_WAITING) { router_want_tick(core, core->legs[slot].retry_ns); }
        }
    }
}

status_t router_core_step(struct router_core *core, const struct router_event *event, struct router_actions *ret_actions)
{
    bury(core);
    core->action_count = 0;
    core->now_ns = event->now_ns;
    switch (event->kind) {
    case ROUTER_EV_SUBMIT: on_submit(core, event); break;
    case ROUTER_EV_CLIENT_GONE: on_client_gone(core, event->request); break;
    case ROUTER_EV_SEQUENCE_STOP: on_sequence_stop(core, event->request, event->sequence); break;
    case ROUTER_EV_NODE_UP: on_node_up(core, event->node, &event->msg->node_hello); break;
    case ROUTER_EV_NODE_DOWN: on_node_down(core, event->node); break;
    case ROUTER_EV_MESSAGE: on_message(core, event->node, event->msg); break;
    case ROUTER_EV_TICK: on_tick(core); break;
    case ROUTER_EV_DRAIN: core->draining = true; break;
    }
    core->stats.waiting = core->waiting_legs;
    ret_actions->count = core->action_count;
    ret_actions->list = core->actions;
    return STATUS_OK;
}

uint64_t router_core_deadline_ns(const struct router_core *core) { return core->next_deadline_ns; }

struct router_core_stats router_core_stats(const struct router_core *core)
{
    struct router_core_stats stats = core->stats;
    stats.draining = core->draining;
    return stats;
}

bool router_core_node(const struct router_core *core, uint32_t node, struct ctl_load *ret_load)
{
    if (node >= core->config.nodes_max || !core->nodes[node].up) { return false; }
    *ret_load = core->nodes[node].load;
    return true;
}

void router_core_audit(const struct router_core *core)
{
    const struct router_core_stats *stats = &core->stats;
    CHECK(stats->accepted == stats->finished + stats->failed + stats->cancelled + stats->live);
    uint32_t live = 0, sequences = 0, legs = 0, waiting = 0;
    struct { uint32_t legs, blocks, local_tokens, tokens; } books[ROUTER_NODES_MAX] = {{0, 0, 0, 0}};
    for (const struct request *request = core->head; request; request = request->next) {
        live++;
        sequences += request->params.n;
        uint32_t left = 0, covered = 0;
        for (uint32_t s = 0; s < request->params.n; s++) { left += !request->sequences[s].done; }
        CHECK(left == request->sequences_left);
        CHECK(left > 0);
        for (uint32_t slot = request->first_leg; slot != NO_LEG; slot = core->legs[slot].next_of_request) {
            const struct leg *leg = &core->legs[slot];
            CHECK(leg->request == request);
            CHECK(leg->phase != LEG_FREE);
            CHECK(leg->phase != LEG_DEAD);
            CHECK((leg->lo & 0xffffffu) == slot);
            legs++;
            waiting += leg->phase == LEG_WAITING;
            if (leg->phase == LEG_WAITING) {
                CHECK(leg->decode_node == NO_NODE);
            } else {
                const struct node_entry *node = &core->nodes[leg->decode_node];
                CHECK(node->up);
                books[leg->decode_node].legs++;
                if (leg->loads_seen == node->loads) {
                    books[leg->decode_node].blocks += leg->blocks;
                    books[leg->decode_node].local_tokens += leg->local_tokens;
                }
            }
            if (leg->prefill_is_open) {
                CHECK(core->nodes[leg->prefill_node].up);
                books[leg->prefill_node].tokens += leg->tokens;
            }
            for (uint32_t s = leg->sequence_first; s < leg->sequence_first + leg->sequence_count; s++) {
                covered += !request->sequences[s].done;
            }
        }
        CHECK(covered == left); /* every unfinished sequence is in exactly one leg */
    }
    for (uint32_t i = 0; i < core->config.nodes_max; i++) {
        CHECK(core->nodes[i].own_legs == books[i].legs);
        CHECK(core->nodes[i].pending_blocks == books[i].blocks);
        CHECK(core->nodes[i].pending_tokens == books[i].local_tokens);
        CHECK(core->nodes[i].own_tokens == books[i].tokens);
        CHECK(core->nodes[i].up || !core->nodes[i].guess);
        if (core->nodes[i].guess) { prefix_guess_audit(core->nodes[i].guess); }
    }
    CHECK(live == stats->live);
    CHECK(sequences == core->sequences_live);
    CHECK(waiting == core->waiting_legs);
    uint32_t used = 0;
    for (uint32_t slot = 0; slot < core->legs_max; slot++) {
        used += core->legs[slot].phase != LEG_FREE && core->legs[slot].phase != LEG_DEAD;
    }
    CHECK(used == legs);
}
