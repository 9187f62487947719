#include "engine/engine.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "engine/logits_rows.h"
#include "model/forward.h"
#include "model/logprobs.h"
#include "model/sampler.h"
#include "model/sampler_state.h"

struct slot {
    struct sampler_state state;
    struct sampling_params params; /* copy; its arrays are the two below */
    uint32_t stop_tokens[SAMPLING_STOP_TOKENS_MAX];
    struct logit_bias *logit_bias; /* [logit_bias_capacity], grown when a request brings more */
    uint32_t logit_bias_capacity;
    void *memory;                  /* the state's tables, grown when a request needs more */
    size_t memory_bytes;
};

struct engine {
    struct engine_config config;
    uint32_t vocab_size;
    struct eos_tokens eos;
    struct forward *forward;
    struct forward_span *spans; /* [spans_max] */
    struct slot *slots;         /* [slot_count] */
    struct logits_rows *logits;
    void *scratch_memory;
    struct sampler_scratch scratch;
    struct step_sample *samples;           /* [sample_capacity] */
    uint32_t sample_capacity;
    struct token_logprob *prompt_logprobs; /* [rows_max] */
    struct step_result result;

    pthread_t thread;
    bool thread_runs;
    pthread_mutex_t mutex; /* guards plan and stop */
    pthread_cond_t submitted;
    const struct step_plan *plan;
    bool stop;
};

static struct forward_limits limits_of(const struct engine_config *config)
{
    return (struct forward_limits){.rows_max = config->rows_max, .spans_max = config->spans_max};
}

uint64_t engine_memory_bytes(const struct engine_config *config)
{
    struct forward_limits limits = limits_of(config);
    uint64_t vocab = model_get_config(config->model)->vocab_size;
    return forward_scratch_bytes(config->model, config->kernels, &limits) + logits_rows_bytes(config->kernels, (uint32_t)vocab, config->rows_max) +
           sampler_scratch_bytes((uint32_t)vocab) + (uint64_t)config->slot_count * sizeof(struct slot) +
           (uint64_t)config->rows_max * sizeof(struct token_logprob) +
           (uint64_t)config->spans_max * sizeof(struct forward_span) +
           (uint64_t)(config->slot_count + config->rows_max) * sizeof(struct step_sample);
}

/* ---- one step ---- */

static status_t no_slot_memory(uint32_t slot, struct diag *diag)
{
    diag_set(diag, "engine: no memory for the sampler of slot %u; lower --batch-max", slot);
    return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
}

/* Makes the slot's state what the tokens so far say. Only here may a step allocate: when a
 * sequence is new to its slot and needs larger tables than any before it. */
static status_t slot_open(struct engine *engine, const struct step_open *open, struct diag *diag)
{
    CHECK(open->slot < engine->config.slot_count);
    CHECK(open->params->stop_token_count <= SAMPLING_STOP_TOKENS_MAX);
    struct slot *slot = &engine->slots[open->slot];
    slot->params = *open->params;
    if (slot->params.logit_bias_count > slot->logit_bias_capacity) {
        struct logit_bias *grown = realloc(slot->logit_bias, slot->params.logit_bias_count * sizeof *grown);
        if (!grown) { return no_slot_memory(open->slot, diag); }
        slot->logit_bias = grown;
        slot->logit_bias_capacity = slot->params.logit_bias_count;
    }
    if (slot->params.logit_bias_count > 0) {
        memcpy(slot->logit_bias, open->params->logit_bias, slot->params.logit_bias_count * sizeof *slot->logit_bias);
    }
    if (slot->params.stop_token_count > 0) {
        memcpy(slot->stop_tokens, open->params->stop_tokens, slot->params.stop_token_count * sizeof *slot->stop_tokens);
    }
    slot->params.logit_bias = slot->logit_bias;
    slot->params.stop_tokens = slot->stop_tokens;
    size_t bytes = sampler_state_bytes(&slot->params, engine->vocab_size, open->prompt_count);
    if (bytes > slot->memory_bytes) {
        free(slot->memory);
        slot->memory = malloc(bytes);
        slot->memory_bytes = slot->memory ? bytes : 0;
        if (!slot->memory) { return no_slot_memory(open->slot, diag); }
    }
    sampler_state_init(&slot->state, &slot->params, engine->eos, engine->vocab_size, open->sequence,
                       open->prompt_count, slot->memory);
    sampler_state_add_prompt(&slot->state, open->prompt, open->prompt_count);
    for (uint32_t i = 0; i < open->output_count; i++) { sampler_state_add_output(&slot->state, open->output[i]); }
    return STATUS_OK;
}

static void copy_block(struct engine *engine, const struct step_copy *copy)
{
    CHECK(copy->source_block < engine->config.block_count);
    CHECK(copy->destination_block < engine->config.block_count);
    kernels_copy_block(engine->config.kernels,
                       &(struct kernels_copy_block){.pool = engine->config.kv_pool, .layout = engine->config.layout,
                                                    .block_count = engine->config.block_count, .from = copy->source_block,
                                                    .to = copy->destination_block});
}

static void to_token_logprob(const struct logprob_row *row, struct token_logprob *out)
{
    out->logprob = row->logprob;
    out->rank = row->rank;
    out->alternative_count = row->top_count;
    for (uint32_t i = 0; i < row->top_count; i++) {
        out->alternatives[i] = (struct token_alternative){.token = row->top[i].token, .logprob = row->top[i].logprob};
    }
}

/* Walks the rows of a plan that want logits, in the order in which the forward pass numbers them. */
struct row_walk {
    const struct step_plan *plan;
    uint32_t span_index;
    uint32_t row; /* of that span, when all of its rows are wanted */
};

static bool span_wants_logits(const struct step_span *span) { return span->prompt_logprobs >= 0 || span->sample_count > 0; }

/* Returns the row's span. ret_row  its number in the span. */
static const struct step_span *next_row(struct row_walk *walk, uint32_t *ret_row)
{
    for (;; walk->span_index++) {
        CHECK(walk->span_index < walk->plan->span_count);
        if (span_wants_logits(&walk->plan->spans[walk->span_index])) { break; }
    }
    const struct step_span *span = &walk->plan->spans[walk->span_index];
    const uint32_t row = span->prompt_logprobs >= 0 ? walk->row++ : span->row_count - 1;
    if (row + 1 == span->row_count) {
        walk->span_index++;
        walk->row = 0;
    }
    *ret_row = row;
    return span;
}

/* The one sampler of a row whose logits serve for nothing else; NULL else. */
static const struct sampler_state *lone_sampler(const struct engine *engine, const struct step_span *span)
{
    if (span->prompt_logprobs >= 0 || span->sample_count != 1) { return NULL; }
    CHECK(span->sample_slots[0] < engine->config.slot_count);
    const struct slot *slot = &engine->slots[span->sample_slots[0]];
    return slot->params.logprobs < 0 ? &slot->state : NULL;
}

static status_t take_prompt_logprob(struct engine *engine, const struct step_span *span, uint32_t row,
                                    const float *logits, struct diag *diag)
{
    bool last = row + 1 == span->row_count;
    if (last && !span->has_next_token) { return STATUS_OK; }
    uint32_t token = last ? span->next_token : span->tokens[row + 1];
    struct logprob_row values;
    TRY(logprobs_of_row(logits, engine->vocab_size, token, (uint32_t)span->prompt_logprobs,
                        span->first_position + row + 1, diag, &values));
    CHECK(engine->result.prompt_logprob_count < engine->config.rows_max);
    to_token_logprob(&values, &engine->prompt_logprobs[engine->result.prompt_logprob_count++]);
    return STATUS_OK;
}

static status_t take_sample(struct engine *engine, uint32_t slot_index, uint32_t position, const float *logits,
                            struct diag *diag)
{
    CHECK(slot_index < engine->config.slot_count);
    struct slot *slot = &engine->slots[slot_index];
    CHECK(engine->result.sample_count < engine->sample_capacity);
    struct step_sample *sample = &engine->samples[engine->result.sample_count++];
    TRY(sampler_choose(&slot->state, logits, &engine->scratch, diag, &sample->token));
    sampler_state_add_output(&slot->state, sample->token);
    sample->has_logprob = slot->params.logprobs >= 0;
    if (sample->has_logprob) {
        struct logprob_row values;
        TRY(logprobs_of_row(logits, engine->vocab_size, sample->token, (uint32_t)slot->params.logprobs, position, diag,
                            &values));
        to_token_logprob(&values, &sample->logprob);
    }
    return STATUS_OK;
}

/* The same for a token that the device chose. */
static void add_sample(struct engine *engine, uint32_t slot_index, uint32_t token)
{
    struct slot *slot = &engine->slots[slot_index];
    CHECK(engine->result.sample_count < engine->sample_capacity);
    struct step_sample *sample = &engine->samples[engine->result.sample_count++];
    sample->token = token;
    sample->has_logprob = false;
    sampler_state_add_output(&slot->state, token);
}

/* Everything that is wanted of row `index` of the chunk of logits. */
static status_t finish_row(struct engine *engine, const struct step_span *span, uint32_t row, uint32_t index, struct diag *diag)
{
    if (logits_rows_is_sampled(engine->logits, index)) {
        uint32_t token;
        TRY(logits_rows_token(engine->logits, index, diag, &token));
        add_sample(engine, span->sample_slots[0], token);
        return STATUS_OK;
    }
    const float *logits;
    TRY(logits_rows_host(engine->logits, index, &logits));
    if (span->prompt_logprobs >= 0) { TRY(take_prompt_logprob(engine, span, row, logits, diag)); }
    if (row + 1 != span->row_count) { return STATUS_OK; }
    for (uint32_t s = 0; s < span->sample_count; s++) {
        TRY(take_sample(engine, span->sample_slots[s], span->first_position + span->row_count, logits, diag));
    }
    return STATUS_OK;
}

/* wanted  rows of the step that want logits. */
static status_t finish_step(struct engine *engine, const struct step_plan *plan, uint32_t wanted, struct diag *diag)
{
    struct row_walk listed = {.plan = plan}, finished = {.plan = plan};
    for (uint32_t first = 0; first < wanted;) {
        const uint32_t count = logits_rows_begin(engine->logits, first, wanted);
        uint32_t row;
        for (uint32_t i = 0; i < count; i++) { logits_rows_add(engine->logits, lone_sampler(engine, next_row(&listed, &row))); }
        TRY(logits_rows_run(engine->logits, diag));
        for (uint32_t i = 0; i < count; i++) {
            const struct step_span *span = next_row(&finished, &row);
            TRY(finish_row(engine, span, row, i, diag));
        }
        first += count;
    }
    /* Without logits nothing has waited yet. */
    return wanted == 0 ? kernels_sync(engine->config.kernels) : STATUS_OK;
}

static void layer_done(uint32_t layer, uint64_t mark, void *user)
{
    struct engine *engine = user;
    if (engine->config.on_layer) { engine->config.on_layer(engine->config.user, engine->plan, layer, mark); }
}

static status_t run_step(struct engine *engine, const struct step_plan *plan, struct diag *diag)
{
    for (uint32_t i = 0; i < plan->open_count; i++) { TRY(slot_open(engine, &plan->opens[i], diag)); }
    for (uint32_t i = 0; i < plan->copy_count; i++) { copy_block(engine, &plan->copies[i]); }
    if (plan->span_count == 0) { return plan->copy_count > 0 ? kernels_sync(engine->config.kernels) : STATUS_OK; }
    CHECK(plan->span_count <= engine->config.spans_max);
    for (uint32_t i = 0; i < plan->span_count; i++) {
        const struct step_span *span = &plan->spans[i];
        engine->spans[i] = (struct forward_span){
            .tokens = span->tokens,
            .row_count = span->row_count,
            .first_position = span->first_position,
            .block_table = span->block_table,
            .want = span->prompt_logprobs >= 0 ? FORWARD_WANT_ALL
                    : span->sample_count > 0   ? FORWARD_WANT_LAST
                                               : FORWARD_WANT_NONE,
        };
    }
    struct forward_step step = {
        .spans = engine->spans,
        .span_count = plan->span_count,
        .kv_pool = engine->config.kv_pool,
        .kv_block_count = engine->config.block_count,
        .layer_done = layer_done,
        .layer_done_user = engine,
    };
    uint32_t wanted;
    TRY(forward_run(engine->forward, &step, diag, &wanted));
    return finish_step(engine, plan, wanted, diag);
}

static void *engine_main(void *user)
{
    struct engine *engine = user;
    for (;;) {
        pthread_mutex_lock(&engine->mutex);
        while (!engine->plan && !engine->stop) { pthread_cond_wait(&engine->submitted, &engine->mutex); }
        const struct step_plan *plan = engine->plan;
        pthread_mutex_unlock(&engine->mutex);
        if (!plan) { return NULL; }

        struct diag diag = {{0}};
        uint64_t start_ns = clock_now_ns();
        engine->result = (struct step_result){.id = plan->id, .samples = engine->samples,
                                              .prompt_logprobs = engine->prompt_logprobs};
        engine->result.status = run_step(engine, plan, &diag);
        if (failed(engine->result.status) && diag.text[0] == '\0') {
            diag_set(&diag, "the device failed; its own event says how");
        }
        engine->result.compute_ns = clock_now_ns() - start_ns;
        if (failed(engine->result.status)) {
            LOGF(LOG_ERROR, "step_failed", "step=%lu code=%s line=%u why=\"%s\"", (unsigned long)plan->id,
                 status_code_name(engine->result.status.code), engine->result.status.line, diag.text);
        }
        pthread_mutex_lock(&engine->mutex);
        engine->plan = NULL;
        pthread_mutex_unlock(&engine->mutex);
        engine->config.on_step(engine->config.user, &engine->result);
    }
}

/* Every size of decode steps twice: the first time chooses, the second is recorded. One prompt of a whole step. */
static status_t warm_up(struct engine *engine, struct diag *diag)
{
    const struct engine_config *config = &engine->config;
    if (!config->warms_up || !kernels_has_graphs(config->kernels)) { return STATUS_OK; }
    const uint64_t start_ns = clock_now_ns();
    forward_warm(engine->forward, config->kv_pool, config->block_count, config->rows_max, false);
    TRY(logits_rows_warm(engine->logits, diag));
    const uint32_t most = forward_decode_size(engine->forward, config->slot_count);
    for (uint32_t rows = forward_decode_size(engine->forward, 1);; rows = forward_decode_size(engine->forward, rows + 1)) {
        for (int i = 0; i < 2; i++) {
            forward_warm(engine->forward, config->kv_pool, config->block_count, rows, true);
            TRY(logits_rows_warm(engine->logits, diag));
        }
        if (rows >= most) { break; }
    }
    LOGF(LOG_INFO, "engine_warm", "rows=%u ms=%lu", most, (unsigned long)((clock_now_ns() - start_ns) / 1000000));
    return STATUS_OK;
}

/* ---- life ---- */

static status_t take_memory(struct engine *engine, struct diag *diag)
{
    const struct engine_config *config = &engine->config;
    engine->spans = calloc(config->spans_max, sizeof *engine->spans);
    engine->slots = calloc(config->slot_count, sizeof *engine->slots);
    engine->sample_capacity = config->slot_count + config->rows_max;
    engine->samples = calloc(engine->sample_capacity, sizeof *engine->samples);
    engine->prompt_logprobs = calloc(config->rows_max, sizeof *engine->prompt_logprobs);
    engine->scratch_memory = malloc(sampler_scratch_bytes(engine->vocab_size));
    if (!engine->spans || !engine->slots || !engine->samples || !engine->prompt_logprobs || !engine->scratch_memory) {
        diag_set(diag, "engine: no memory for its tables; lower --step-tokens or --batch-max");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    sampler_scratch_init(&engine->scratch, engine->vocab_size, engine->scratch_memory);
    struct forward_limits limits = limits_of(config);
    TRY(forward_create(config->model, config->kernels, &config->layout, &limits, diag, &engine->forward));
    return logits_rows_create(config->kernels, engine->forward, engine->vocab_size, config->rows_max, diag, &engine->logits);
}

status_t engine_create(const struct engine_config *config, struct engine **ret_engine, struct diag *diag)
{
    struct engine *engine = calloc(1, sizeof *engine);
    if (!engine) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    const struct model_config *model = model_get_config(config->model);
    engine->config = *config;
    engine->vocab_size = model->vocab_size;
    engine->eos = (struct eos_tokens){.token = model->eos_tokens, .count = model->eos_count};
    pthread_mutex_init(&engine->mutex, NULL);
    pthread_cond_init(&engine->submitted, NULL);
    status_t st = take_memory(engine, diag);
    if (failed(st)) { goto fail; }
    st = warm_up(engine, diag);
    if (failed(st)) {
        diag_prefix(diag, "engine: the first steps on the device failed");
        goto fail;
    }
    if (pthread_create(&engine->thread, NULL, engine_main, engine) != 0) {
        diag_set(diag, "engine: cannot start its thread");
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
        goto fail;
    }
    engine->thread_runs = true;
    *ret_engine = engine;
    return STATUS_OK;
fail:
    engine_destroy(engine);
    return st;
}

void engine_destroy(struct engine *engine)
{
    if (!engine) { return; }
    if (engine->thread_runs) {
        pthread_mutex_lock(&engine->mutex);
        engine->stop = true;
        pthread_cond_signal(&engine->submitted);
        pthread_mutex_unlock(&engine->mutex);
        pthread_join(engine->thread, NULL);
    }
    logits_rows_destroy(engine->logits);
    forward_destroy(engine->forward);
    for (uint32_t i = 0; engine->slots && i < engine->config.slot_count; i++) {
        free(engine->slots[i].memory);
        free(engine->slots[i].logit_bias);
    }
    free(engine->slots);
    free(engine->spans);
    free(engine->samples);
    free(engine->prompt_logprobs);
    free(engine->scratch_memory);
    pthread_cond_destroy(&engine->submitted);
    pthread_mutex_destroy(&engine->mutex);
    free(engine);
}

void engine_submit(struct engine *engine, const struct step_plan *plan)
{
    pthread_mutex_lock(&engine->mutex);
    CHECK(engine->plan == NULL);
    engine->plan = plan;
    pthread_cond_signal(&engine->submitted);
    pthread_mutex_unlock(&engine->mutex);
}
