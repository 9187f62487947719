/* sim_model: the model of the simulated cluster: KV and tokens by arithmetic.
 * Flow:    step_plan -> [sim_model] reads and writes the node's KV -> step_result
 *
 * It computes in the order of a transformer, because that order decides what a wrong block does:
 * every layer first writes the KV of all rows of the step, then every row attends to the slots
 * that its window lets it see, its own among them. The KV of a slot is a number that depends on
 * its token, its position, all that came before it, and the salt of the request that wrote it:
 * a block that holds another prefix, another tenant's prompt, half of its rows, or rows that a
 * ring has written over gives other tokens than the undisturbed run. */
#include <string.h>

#include "base/check.h"
#include "model/stop_rules.h"
#include "sim/sim_world.h"

const uint32_t sim_eos_tokens[1] = {EOS_TOKEN};

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t state = a * UINT64_C(0x9E3779B97F4A7C15) ^ b;
    return rng_splitmix64(&state);
}

/* ---- the arithmetic ---- */

static uint64_t embed(uint32_t token, uint64_t salt) { return mix(token + 1, salt); }

static uint64_t kv_value(uint64_t hidden, uint32_t layer, uint32_t position)
{
    return mix(hidden, ((uint64_t)layer << 32) | position);
}

/* The first position that the row at `position` sees. */
static uint32_t window_begin(uint32_t window_tokens, uint32_t position)
{
    return window_tokens > 0 && position + 1 > window_tokens ? position + 1 - window_tokens : 0;
}

static uint32_t sample_token(uint64_t value, uint64_t seed, uint32_t sequence, uint32_t position)
{
    return (uint32_t)(mix(mix(value, seed), ((uint64_t)sequence << 32) | position) % VOCAB);
}

static uint32_t masked(uint32_t token, const struct sampling_params *params, uint32_t position)
{
    /* Ends are masked until min_tokens, as the sampler does it. */
    return token == EOS_TOKEN && position < params->min_tokens ? EOS_TOKEN + 1 : token;
}

/* ---- the undisturbed run: one sequence, no blocks ---- */

/* Appends one position to kv and gives what is sampled from. */
static uint64_t append(uint64_t kv[LAYERS][CONTEXT], uint32_t window_tokens, uint64_t salt, uint32_t token, uint32_t position)
{
    uint64_t hidden = embed(token, salt);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        kv[layer][position] = kv_value(hidden, layer, position);
        uint64_t seen = 0;
        for (uint32_t p = window_begin(window_tokens, position); p <= position; p++) { seen = mix(seen, kv[layer][p]); }
        hidden = mix(hidden, seen);
    }
    return hidden;
}

void sim_expect(const struct sim_world *world, struct sim_request *request)
{
    const struct sampling_params *params = &request->params;
    struct eos_tokens eos = {.token = sim_eos_tokens, .count = 1};
    uint64_t kv[LAYERS][CONTEXT], prompt_end = 0;
    for (uint32_t p = 0; p < request->prompt_count; p++) {
        prompt_end = append(kv, world->window_tokens, request->cache_salt, request->prompt[p], p);
    }
    for (uint32_t s = 0; s < params->n; s++) {
        uint64_t hidden = prompt_end;
        uint32_t total = request->prompt_count, count = 0;
        for (;;) {
            uint32_t token = masked(sample_token(hidden, params->seed, s, count), params, count);
            request->expected[s][count++] = token;
            total++;
            enum stop_verdict verdict = stop_rules_decide(params, eos, token, count, total, CONTEXT);
            if (verdict != STOP_RULES_CONTINUE) {
                request->expected_finish[s] = verdict == STOP_RULES_END_TOKEN ? FINISH_STOP : FINISH_LENGTH;
                break;
            }
            hidden = append(kv, world->window_tokens, request->cache_salt, token, total - 1);
        }
        request->expected_count[s] = count;
    }
}

/* ---- a step over paged blocks ---- */

uint64_t *sim_kv(struct sim_node *node, uint32_t block, uint32_t layer)
{
    CHECK(block < node->block_count);
    return node->kv + ((size_t)block * LAYERS + layer) * node->block_tokens;
}

static uint64_t *slot_of(struct sim_node *node, const struct step_span *span, uint32_t layer, uint32_t position)
{
    CHECK(position / node->block_tokens < span->block_count);
    return &sim_kv(node, span->block_table[position / node->block_tokens], layer)[position % node->block_tokens];
}

/* The seed of a request names it, so that the model knows its parameters. */
static const struct sampling_params *params_of(struct sim_world *world, uint64_t seed)
{
    for (uint32_t i = 0; i < world->request_count; i++) {
        if (world->requests[i].params.seed == seed) { return &world->requests[i].params; }
    }
    sim_fail(world, "a slot was opened for a seed that no request has");
}

void sim_model_begin(struct sim_world *world, struct sim_node *node, const struct step_plan *plan)
{
    for (uint32_t i = 0; i < plan->open_count; i++) {
        const struct step_open *open = &plan->opens[i];
        CHECK(open->slot < SLOTS_MAX);
        node->slots[open->slot] = (struct sim_slot){.sequence = open->sequence, .output_count = open->output_count,
                                                    .seed = open->params->seed, .logprobs = open->params->logprobs};
    }
    for (uint32_t i = 0; i < plan->copy_count; i++) {
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            memcpy(sim_kv(node, plan->copies[i].destination_block, layer),
                   sim_kv(node, plan->copies[i].source_block, layer), node->block_tokens * sizeof(uint64_t));
        }
    }
    uint32_t at = 0;
    for (uint32_t i = 0; i < plan->span_count; i++) {
        const struct step_span *span = &plan->spans[i];
        uint64_t salt = world->requests[sim_request_of(world, span->leg)].cache_salt;
        for (uint32_t row = 0; row < span->row_count; row++) {
            CHECK(at < STEP_ROWS_MAX);
            node->hidden[at++] = embed(span->tokens[row], salt);
        }
        world->result.rows_computed += span->row_count;
    }
}

void sim_model_layer(struct sim_world *world, struct sim_node *node, const struct step_plan *plan, uint32_t layer)
{
    uint32_t at = 0;
    for (uint32_t i = 0; i < plan->span_count; i++) {
        const struct step_span *span = &plan->spans[i];
        for (uint32_t row = 0; row < span->row_count; row++) {
            uint32_t position = span->first_position + row;
            *slot_of(node, span, layer, position) = kv_value(node->hidden[at++], layer, position);
        }
    }
    at = 0;
    for (uint32_t i = 0; i < plan->span_count; i++) {
        const struct step_span *span = &plan->spans[i];
        for (uint32_t row = 0; row < span->row_count; row++, at++) {
            uint32_t position = span->first_position + row;
            uint64_t seen = 0;
            for (uint32_t p = window_begin(world->window_tokens, position); p <= position; p++) {
                seen = mix(seen, *slot_of(node, span, layer, p));
            }
            node->hidden[at] = mix(node->hidden[at], seen);
        }
    }
}

/* A step that failed may have left anything in the slots it wrote, of any layer. */
static void spoil(struct sim_world *world, struct sim_node *node, const struct step_plan *plan)
{
    for (uint32_t i = 0; i < plan->span_count; i++) {
        const struct step_span *span = &plan->spans[i];
        for (uint32_t row = 0; row < span->row_count; row++) {
            for (uint32_t layer = 0; layer < LAYERS; layer++) {
                *slot_of(node, span, layer, span->first_position + row) = rng_next(&world->rng);
            }
        }
    }
}

void sim_model_finish(struct sim_world *world, struct sim_node *node, const struct step_plan *plan)
{
    uint32_t samples = 0, logprobs = 0, at = 0;
    for (uint32_t i = 0; i < plan->span_count; i++) {
        const struct step_span *span = &plan->spans[i];
        at += span->row_count;
        for (uint32_t row = 0; row < span->row_count && span->prompt_logprobs >= 0; row++) {
            if (row + 1 == span->row_count && !span->has_next_token) { continue; }
            uint32_t next = row + 1 == span->row_count ? span->next_token : span->tokens[row + 1];
            node->logprobs[logprobs++] = (struct token_logprob){.logprob = -(float)next, .rank = span->first_position + row + 1};
        }
        for (uint32_t s = 0; s < span->sample_count; s++) {
            struct sim_slot *slot = &node->slots[span->sample_slots[s]];
            uint32_t token = sample_token(node->hidden[at - 1], slot->seed, slot->sequence, slot->output_count);
            token = masked(token, params_of(world, slot->seed), slot->output_count);
            slot->output_count++;
            node->samples[samples++] = (struct step_sample){.token = token, .has_logprob = slot->logprobs >= 0,
                                                            .logprob = {.logprob = -(float)token, .rank = 1}};
        }
    }
    if (node->next_step_fails) {
        node->next_step_fails = false;
        world->result.failed_steps++;
        sim_trace(world, "%s: a step fails", sim_node_name(world, node->index));
        spoil(world, node, plan);
        node->result = (struct step_result){.id = plan->id, .status = STATUS(ST_INTERNAL, SCOPE_REQUEST)};
        return;
    }
    node->result = (struct step_result){.id = plan->id, .sample_count = samples, .samples = node->samples,
                                        .prompt_logprob_count = logprobs, .prompt_logprobs = node->logprobs,
                                        .compute_ns = world->now_ns - node->step_began_ns};
}
