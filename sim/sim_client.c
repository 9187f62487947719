/* sim_client: the clients, and what they were promised.
 * Flow:    submit, cancel, stop -> router_core -> [sim_client] checks every answer
 *
 * Each token must be the next one of the undisturbed run (sim_expect), each request must have
 * one answer, and the answer must be one that its client can be given. */
#include <string.h>

#include "base/check.h"
#include "sim/sim_world.h"

static bool has_output(const struct sim_request *request)
{
    for (uint32_t s = 0; s < request->params.n; s++) {
        if (request->emitted[s] > 0) { return true; }
    }
    return false;
}

static bool wants_prompt_logprobs(const struct sim_request *request)
{
    return request->params.prompt_logprobs >= 0 && request->prompt_count > 1;
}

void sim_client_event(struct sim_world *world, const struct sim_event *event)
{
    struct sim_request *request = &world->requests[event->a];
    if (request->is_over || request->is_lost) { return; }
    struct router_event fact = {.request = event->a + 1};
    switch (event->kind) {
    case SIM_SUBMIT:
        sim_trace(world, "req %u: %u prompt tokens, at most %u, n %u", event->a, request->prompt_count, request->params.max_tokens, request->params.n);
        request->is_submitted = true;
        world->submitted_count++;
        if (request->follows != NO_REQUEST) { world->result.turns++; }
        fact.kind = ROUTER_EV_SUBMIT;
        fact.prompt = request->prompt;
        fact.prompt_count = request->prompt_count;
        fact.params = &request->params;
        fact.priority = request->priority;
        fact.cache_salt = request->cache_salt;
        fact.deadline_ns = request->deadline_ns;
        break;
    case SIM_CANCEL:
        if (!request->is_submitted) { return; }
        sim_trace(world, "req %u: the client cancels", event->a);
        request->cancel_asked = true;
        fact.kind = ROUTER_EV_CLIENT_GONE;
        break;
    default:
        CHECK(event->kind == SIM_STOP);
        if (request->ended[event->b]) { return; }
        sim_trace(world, "req %u seq %u: a stop string", event->a, event->b);
        request->stopped[event->b] = true;
        request->stopped_ns[event->b] = world->now_ns;
        world->result.stopped++;
        fact.kind = ROUTER_EV_SEQUENCE_STOP;
        fact.sequence = event->b;
        break;
    }
    sim_router_event(world, request->router, &fact);
    if (event->kind == SIM_CANCEL && !request->is_over) { sim_fail(world, "request %u was cancelled and is not over", event->a); }
}

void sim_client_router_died(struct sim_world *world, uint32_t router)
{
    for (uint32_t i = 0; i < world->request_count; i++) {
        struct sim_request *request = &world->requests[i];
        if (request->router != router || !request->is_submitted || request->is_over || request->is_lost) { continue; }
        request->is_lost = true;
        world->result.lost++;
        sim_talk_go_on(world, i);
    }
}

/* ---- what a client reads ---- */

static void on_emit(struct sim_world *world, uint32_t index, struct sim_request *request, const struct ctl_token *token)
{
    uint32_t s = token->sequence;
    if (s >= request->params.n) { sim_fail(world, "request %u: a token of sequence %u of %u", index, s, request->params.n); }
    if (request->ended[s] || request->stopped[s]) { sim_fail(world, "request %u seq %u: a token after its end", index, s); }
    uint32_t position = request->emitted[s];
    if (token->position != position || position >= request->expected_count[s]) {
        sim_fail(world, "request %u seq %u: token at %u, expected at %u of %u", index, s, token->position, position, request->expected_count[s]);
    }
    if (token->token != request->expected[s][position]) {
        sim_fail(world, "request %u seq %u: token %u at %u is %u, undisturbed %u", index, s, token->position, position,
                 token->token, request->expected[s][position]);
    }
    bool wants = request->params.logprobs >= 0;
    if (token->has_logprob != wants) { sim_fail(world, "request %u seq %u: logprob at %u is %s", index, s, position, wants ? "missing" : "not asked for"); }
    if (wants && (token->logprob.logprob != -(float)token->token || token->logprob.rank != 1)) {
        sim_fail(world, "request %u seq %u: the logprob at %u is of another token", index, s, position);
    }
    if (wants_prompt_logprobs(request) && request->prompt_logprobs + 1 < request->prompt_count) {
        sim_fail(world, "request %u: a token before the prompt's logprobs", index);
    }
    sim_trace(world, "req %u seq %u: token %u at %u", index, s, token->token, position);
    request->emitted[s]++;
    world->result.tokens++;
    if (request->emitted[s] == request->stop_after[s]) {
        /* The router's server sees the text at once; its word may come a little later. */
        struct sim_event *event = sim_at(world, world->now_ns + rng_below(&world->rng, 3) * NS_PER_MS, SIM_STOP);
        event->a = index;
        event->b = s;
    }
}

static void on_prompt_logprobs(struct sim_world *world, uint32_t index, struct sim_request *request, const struct ctl_prompt_logprobs *logprobs)
{
    if (!wants_prompt_logprobs(request)) { sim_fail(world, "request %u: prompt logprobs that nobody wants", index); }
    if (logprobs->first != request->prompt_logprobs + 1 || logprobs->count == 0 || logprobs->first + logprobs->count > request->prompt_count) {
        sim_fail(world, "request %u: prompt logprobs %u +%u after %u of %u", index, logprobs->first, logprobs->count,
                 request->prompt_logprobs, request->prompt_count);
    }
    for (uint32_t i = 0; i < logprobs->count; i++) {
        uint32_t at = logprobs->first + i;
        if (logprobs->entries[i].logprob != -(float)request->prompt[at] || logprobs->entries[i].rank != at) {
            sim_fail(world, "request %u: the logprob of prompt token %u is another's", index, at);
        }
    }
    request->prompt_logprobs += logprobs->count;
    world->result.prompt_logprobs += logprobs->count;
}

static void on_sequence_end(struct sim_world *world, uint32_t index, struct sim_request *request, const struct ctl_token *token)
{
    uint32_t s = token->sequence;
    if (s >= request->params.n || request->ended[s] || request->stopped[s]) { sim_fail(world, "request %u seq %u: ends twice", index, s); }
    if (request->emitted[s] != request->expected_count[s]) {
        sim_fail(world, "request %u seq %u: ends after %u tokens of %u", index, s, request->emitted[s], request->expected_count[s]);
    }
    if (token->finish != request->expected_finish[s]) {
        sim_fail(world, "request %u seq %u: ends for reason %u, undisturbed %u", index, s, token->finish, request->expected_finish[s]);
    }
    request->ended[s] = true;
}

/* Whatever ended the last request, a cancel or a stop string among them: where nothing breaks,
 * all that it held on the nodes is free within 100 ms. */
void sim_client_check_free(struct sim_world *world, uint32_t over_count)
{
    if (world->over_count != over_count || world->submitted_count != over_count) { return; }
    for (uint32_t i = 0; i < world->node_count; i++) { sim_node_check_idle(world, &world->nodes[i]); }
}

/* Where nothing breaks, nobody computes a sequence 100 ms after its stop string. */
void sim_client_check_wanted(struct sim_world *world, const struct ctl_token *token)
{
    uint32_t index = sim_request_of(world, token->leg), s = token->sequence;
    const struct sim_request *request = &world->requests[index];
    if (s >= request->params.n || !request->stopped[s]) { return; }
    if (world->now_ns > request->stopped_ns[s] + 100 * NS_PER_MS) { sim_fail(world, "request %u seq %u: computed long after it was stopped", index, s); }
}

static void on_finished(struct sim_world *world, uint32_t index, struct sim_request *request, const struct router_action *action)
{
    if (action->message == NULL) { sim_fail(world, "request %u: ends without a message", index); }
    request->is_over = true;
    sim_talk_go_on(world, index);
    if (++world->over_count == world->submitted_count && world->options.calm) {
        sim_at(world, world->now_ns + 100 * NS_PER_MS, SIM_CHECK_FREE)->a = world->over_count;
    }
    sim_trace(world, "req %u: %s after %u legs%s%s", index, status_code_name(action->code), action->route.legs,
              action->message[0] != '\0' ? ": " : "", action->message);
    bool is_fine = false;
    switch (action->code) {
    case ST_OK:
        is_fine = true;
        for (uint32_t s = 0; s < request->params.n; s++) { is_fine = is_fine && (request->ended[s] || request->stopped[s]); }
        world->result.finished++;
        break;
    case ST_CANCELLED:
        is_fine = request->cancel_asked;
        world->result.cancelled++;
        break;
    case ST_DEADLINE_EXCEEDED:
        is_fine = request->deadline_ns <= world->now_ns;
        world->result.expired++;
        break;
    case ST_RESOURCE_EXHAUSTED:
        is_fine = !has_output(request) && action->retry_after_ms > 0;
        world->result.refused++;
        break;
    case ST_INVALID_ARGUMENT:
        is_fine = !has_output(request) && action->route.legs <= 1 && world->has_small_node;
        world->result.refused++;
        break;
    case ST_UNAVAILABLE:
        /* An accepted request waits for a node: resume_wait_ns is longer than any run. */
        is_fine = !has_output(request) && action->route.legs <= 1 && !world->options.calm;
        world->result.refused++;
        break;
    default: break;
    }
    if (!is_fine) {
        sim_fail(world, "request %u: ends with %s (%s) after %u legs", index, status_code_name(action->code), action->message,
                 action->route.legs);
    }
}

void sim_client_action(struct sim_world *world, uint32_t router, const struct router_action *action)
{
    uint32_t index = (uint32_t)action->request - 1;
    if (index >= world->request_count) { sim_fail(world, "the router answers a request that nobody made"); }
    struct sim_request *request = &world->requests[index];
    if (request->router != router) { sim_fail(world, "request %u is answered by the other router", index); }
    if (!request->is_submitted || request->is_over || request->is_lost) { sim_fail(world, "request %u: an answer after its end", index); }
    /* The tick of a deadline may share its nanosecond with other events. */
    if (request->deadline_ns < world->now_ns && action->kind == ROUTER_ACT_EMIT) { sim_fail(world, "request %u: a token after its deadline", index); }
    switch (action->kind) {
    case ROUTER_ACT_EMIT: on_emit(world, index, request, &action->token); return;
    case ROUTER_ACT_PROMPT_LOGPROBS: on_prompt_logprobs(world, index, request, &action->logprobs); return;
    case ROUTER_ACT_SEQUENCE_END: on_sequence_end(world, index, request, &action->token); return;
    case ROUTER_ACT_FINISHED: on_finished(world, index, request, action); return;
    case ROUTER_ACT_SEND: break;
    }
    CHECK(action->kind != ROUTER_ACT_SEND);
}
