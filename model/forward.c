#include "model/forward.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "kernels/kernels.h"
#include "model/model_tensors.h"
#include "model/rope_table.h"

/* Rows of activations begin on a cache line. */
#define ROW_ALIGNMENT_FLOATS 16u
#define PART_ALIGNMENT 64u

_Static_assert(2 * ROPE_TABLE_PAIRS_MAX == KERNELS_HEAD_DIM_MAX, "every head the kernels take has its angles");

/* Sizes of a row of each activation in floats, and where each array begins in the one scratch buffer. */
struct scratch_plan {
    size_t hidden_stride, q_stride, kv_stride, ffn_stride, pair_count;
    size_t x, normed, q, k, v, attended, gate, up, cos, sin, ones; /* byte offsets of float arrays */
    size_t ids, positions, row_numbers, slots, sequences;
    size_t total;
};

struct forward {
    const struct model_config *config;
    const struct model_weights *weights;
    struct kernels *kernels;
    struct kv_layout layout;
    struct forward_limits limits;
    struct rope_table rope;
    struct scratch_plan plan;
    uint8_t *scratch;

    float *x;        /* the residual stream */
    float *normed;   /* input of the projections; after a run: the final hidden states of kept_rows rows */
    float *q, *k, *v;
    float *attended;
    float *gate, *up;
    float *cos, *sin; /* [row][pair_count] of this step */
    float *ones;      /* [ffn]: the other factor where silu is not gated */
    uint32_t *ids, *positions;
    uint32_t *row_numbers; /* 0, 1, 2 ...: which row of cos and sin a row reads */
    struct kernels_kv_slot *slots;
    struct kernels_attention_sequence *sequences;

    uint32_t rows;      /* of the step that runs */
    uint32_t kept_rows; /* that want logits */
};

static size_t padded(size_t floats)
{
    return (floats + ROW_ALIGNMENT_FLOATS - 1) / ROW_ALIGNMENT_FLOATS * ROW_ALIGNMENT_FLOATS;
}

static size_t take_part(struct scratch_plan *plan, size_t bytes)
{
    size_t at = plan->total;
    plan->total += (bytes + PART_ALIGNMENT - 1) / PART_ALIGNMENT * PART_ALIGNMENT;
    return at;
}

static struct scratch_plan plan_scratch(const struct model_config *config, const struct forward_limits *limits)
{
    struct scratch_plan plan = {0};
    size_t rows = limits->rows_max;
    plan.hidden_stride = padded(config->hidden_size);
    plan.q_stride = padded((size_t)config->q_heads * config->head_dim);
    plan.kv_stride = padded((size_t)config->kv_heads * config->head_dim);
    plan.ffn_stride = padded(config->ffn_size);
    plan.pair_count = config->rope == MODEL_ROPE_NONE ? 0 : config->head_dim / 2;
    plan.x = take_part(&plan, rows * plan.hidden_stride * 4);
    plan.normed = take_part(&plan, rows * plan.hidden_stride * 4);
    plan.q = take_part(&plan, rows * plan.q_stride * 4);
    plan.k = take_part(&plan, rows * plan.kv_stride * 4);
    plan.v = take_part(&plan, rows * plan.kv_stride * 4);
    plan.attended = take_part(&plan, rows * plan.q_stride * 4);
    plan.gate = take_part(&plan, config->ffn_is_gated ? rows * plan.ffn_stride * 4 : 0);
    plan.up = take_part(&plan, rows * plan.ffn_stride * 4);
    plan.cos = take_part(&plan, rows * plan.pair_count * 4);
    plan.sin = take_part(&plan, rows * plan.pair_count * 4);
    plan.ones = take_part(&plan, plan.ffn_stride * 4);
    plan.ids = take_part(&plan, rows * sizeof(uint32_t));
    plan.positions = take_part(&plan, rows * sizeof(uint32_t));
    plan.row_numbers = take_part(&plan, rows * sizeof(uint32_t));
    plan.slots = take_part(&plan, rows * sizeof(struct kernels_kv_slot));
    plan.sequences = take_part(&plan, (size_t)limits->spans_max * sizeof(struct kernels_attention_sequence));
    return plan;
}

size_t forward_scratch_bytes(const struct model *model, const struct forward_limits *limits)
{
    return plan_scratch(model_get_config(model), limits).total;
}

static bool layout_fits(const struct kv_layout *layout, const struct model_config *config)
{
    return layout->layer_count == config->layer_count && layout->kv_heads == config->kv_heads &&
           layout->head_dim == config->head_dim && layout->block_tokens % 16 == 0 && layout->block_tokens > 0 &&
           (unsigned)layout->dtype < DTYPE_KV_COUNT;
}

static void point_into_scratch(struct forward *forward)
{
    const struct scratch_plan *plan = &forward->plan;
    uint8_t *base = forward->scratch;
    forward->x = (float *)(void *)(base + plan->x);
    forward->normed = (float *)(void *)(base + plan->normed);
    forward->q = (float *)(void *)(base + plan->q);
    forward->k = (float *)(void *)(base + plan->k);
    forward->v = (float *)(void *)(base + plan->v);
    forward->attended = (float *)(void *)(base + plan->attended);
    forward->gate = (float *)(void *)(base + plan->gate);
    forward->up = (float *)(void *)(base + plan->up);
    forward->cos = (float *)(void *)(base + plan->cos);
    forward->sin = (float *)(void *)(base + plan->sin);
    forward->ones = (float *)(void *)(base + plan->ones);
    forward->ids = (uint32_t *)(void *)(base + plan->ids);
    forward->positions = (uint32_t *)(void *)(base + plan->positions);
    forward->row_numbers = (uint32_t *)(void *)(base + plan->row_numbers);
    forward->slots = (struct kernels_kv_slot *)(void *)(base + plan->slots);
    forward->sequences = (struct kernels_attention_sequence *)(void *)(base + plan->sequences);
    for (size_t i = 0; i < forward->plan.ffn_stride; i++) { forward->ones[i] = 1.0f; }
}

status_t forward_create(const struct model *model, struct kernels *kernels, const struct kv_layout *layout,
                        const struct forward_limits *limits, struct diag *diag, struct forward **ret_forward)
{
    const struct model_config *config = model_get_config(model);
    if (limits->rows_max == 0 || limits->spans_max == 0) {
        diag_set(diag, "a step needs room for at least one row and one span");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (!layout_fits(layout, config)) {
        diag_set(diag, "the KV pool's layout is not this model's: %u layers, %u KV heads of %u; the model has %u, %u, %u",
                 layout->layer_count, layout->kv_heads, layout->head_dim, config->layer_count, config->kv_heads,
                 config->head_dim);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (!kernels_uses_host_memory(kernels)) {
        diag_set(diag, "the kernels \"%s\" do not read host memory, where this forward pass keeps weights and rows",
                 kernels_set_name(kernels));
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    struct forward *forward = calloc(1, sizeof *forward);
    if (!forward) {
        diag_set(diag, "no memory for the forward pass");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    forward->config = config;
    forward->weights = model_get_weights(model);
    forward->kernels = kernels;
    forward->layout = *layout;
    forward->limits = *limits;
    forward->plan = plan_scratch(config, limits);
    void *scratch = NULL;
    status_t st = kernels_buffer_alloc(kernels, forward->plan.total, &scratch, diag);
    if (failed(st)) {
        free(forward);
        return st;
    }
    forward->scratch = scratch;
    point_into_scratch(forward);
    if (config->rope != MODEL_ROPE_NONE) { rope_table_init(&forward->rope, config); }
    *ret_forward = forward;
    return STATUS_OK;
}

void forward_destroy(struct forward *forward)
{
    if (!forward) { return; }
    kernels_buffer_free(forward->kernels, forward->scratch, forward->plan.total);
    free(forward);
}

/* ---- a step's rows ------------------------------------------------------------------------ */

static uint32_t span_kept(const struct forward_span *span)
{
    return span->want == FORWARD_WANT_ALL ? span->row_count : span->want == FORWARD_WANT_LAST ? 1u : 0u;
}

static status_t check_span(const struct forward *forward, const struct forward_step *step, uint32_t index,
                           struct diag *diag)
{
    const struct model_config *config = forward->config;
    const struct forward_span *span = &step->spans[index];
    uint64_t end = (uint64_t)span->first_position + span->row_count;
    if (span->row_count == 0 || end > config->context_tokens) {
        diag_set(diag, "span %u has positions %u to %llu; the model takes 1 to %u tokens", index, span->first_position,
                 (unsigned long long)end, config->context_tokens);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    for (uint32_t r = 0; r < span->row_count; r++) {
        uint32_t block = span->block_table[(span->first_position + r) / forward->layout.block_tokens];
        if (span->tokens[r] >= config->vocab_size) {
            diag_set(diag, "span %u, position %u: token %u is not in the vocabulary of %u", index,
                     span->first_position + r, span->tokens[r], config->vocab_size);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
        }
        if (block >= step->kv_block_count) {
            diag_set(diag, "span %u, position %u: block %u is not in the pool of %u", index, span->first_position + r,
                     block, step->kv_block_count);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
        }
    }
    return STATUS_OK;
}

static status_t check_step(const struct forward *forward, const struct forward_step *step, struct diag *diag)
{
    uint64_t rows = 0;
    if (step->span_count > forward->limits.spans_max) {
        diag_set(diag, "a step of %u spans; the limit is %u", step->span_count, forward->limits.spans_max);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    }
    for (uint32_t i = 0; i < step->span_count; i++) {
        rows += step->spans[i].row_count;
        TRY(check_span(forward, step, i, diag));
    }
    if (rows > forward->limits.rows_max) {
        diag_set(diag, "a step of %llu rows; the limit is %u", (unsigned long long)rows, forward->limits.rows_max);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    }
    return STATUS_OK;
}

/* Spreads the spans over flat arrays of rows. */
static void lay_out_rows(struct forward *forward, const struct forward_step *step)
{
    uint32_t row = 0;
    forward->kept_rows = 0;
    for (uint32_t i = 0; i < step->span_count; i++) {
        const struct forward_span *span = &step->spans[i];
        forward->sequences[i] = (struct kernels_attention_sequence){
            .row_first = row,
            .row_count = span->row_count,
            .position_first = span->first_position,
            .blocks = span->block_table,
        };
        for (uint32_t r = 0; r < span->row_count; r++, row++) {
            uint32_t position = span->first_position + r;
            forward->ids[row] = span->tokens[r];
            forward->positions[row] = position;
            forward->row_numbers[row] = row;
            forward->slots[row] = (struct kernels_kv_slot){
                .block = span->block_table[position / forward->layout.block_tokens],
                .slot = position % forward->layout.block_tokens,
            };
            if (forward->plan.pair_count > 0) {
                rope_table_row(&forward->rope, position, forward->cos + row * forward->plan.pair_count,
                               forward->sin + row * forward->plan.pair_count);
            }
        }
        forward->kept_rows += span_kept(span);
    }
    forward->rows = row;
}

/* From the last layer's attention on, only rows that want logits matter. They move to the front, in
 * order, with their own angles; attention over one row alone has the bits it has among others. */
static uint32_t drop_unwanted_rows(struct forward *forward, const struct forward_step *step)
{
    size_t stride = forward->plan.hidden_stride;
    size_t row_bytes = forward->config->hidden_size * sizeof(float);
    uint32_t kept = 0, row = 0;
    for (uint32_t i = 0; i < step->span_count; i++) {
        const struct forward_span *span = &step->spans[i];
        uint32_t count = span_kept(span);
        uint32_t skipped = span->row_count - count;
        forward->sequences[i].row_first = kept;
        forward->sequences[i].row_count = count;
        forward->sequences[i].position_first = span->first_position + skipped;
        for (uint32_t r = 0; r < count; r++, kept++) {
            uint32_t from = row + skipped + r;
            forward->row_numbers[kept] = from;
            if (from == kept) { continue; }
            memcpy(forward->x + kept * stride, forward->x + from * stride, row_bytes);
            memcpy(forward->normed + kept * stride, forward->normed + from * stride, row_bytes);
        }
        row += span->row_count;
    }
    CHECK(kept == forward->kept_rows);
    return kept;
}

/* ---- the parts of a layer ----------------------------------------------------------------- */

static struct kernels_gemm product(const struct model_tensor *weight, const struct model_tensor *bias, uint32_t rows,
                                   const float *x, size_t x_stride, float *out, size_t out_stride)
{
    return (struct kernels_gemm){
        .rows = rows,
        .weight = &weight->matrix,
        .x = x,
        .x_stride = x_stride,
        .bias = bias ? bias->data : NULL,
        .bias_dtype = bias ? bias->dtype : DTYPE_F32,
        .out = out,
        .out_stride = out_stride,
    };
}

/* normed = norm(x) */
static void run_norm(struct forward *forward, const struct model_tensor *weight, const struct model_tensor *bias,
                     uint32_t rows)
{
    const struct model_config *config = forward->config;
    size_t stride = forward->plan.hidden_stride;
    if (config->norm == MODEL_NORM_RMS) {
        kernels_rmsnorm(forward->kernels, &(struct kernels_rmsnorm){
                                              .rows = rows, .heads = 1, .dim = config->hidden_size, .x = forward->x,
                                              .x_stride = stride, .weight = weight->data, .weight_dtype = weight->dtype,
                                              .eps = config->norm_eps, .out = forward->normed, .out_stride = stride});
        return;
    }
    CHECK(weight->dtype == bias->dtype);
    kernels_layernorm(forward->kernels, &(struct kernels_layernorm){
                                            .rows = rows, .dim = config->hidden_size, .x = forward->x,
                                            .x_stride = stride, .weight = weight->data, .bias = bias->data,
                                            .dtype = weight->dtype, .eps = config->norm_eps, .out = forward->normed,
                                            .out_stride = stride});
}

/* Norm of each head, then rotation, where the model has them; on q or on k, in place. */
static void norm_and_rotate(struct forward *forward, const struct model_tensor *norm, uint32_t rows, uint32_t heads,
                            float *x, size_t x_stride)
{
    const struct model_config *config = forward->config;
    if (config->qk_norm) {
        kernels_rmsnorm(forward->kernels,
                        &(struct kernels_rmsnorm){.rows = rows, .heads = heads, .dim = config->head_dim, .x = x,
                                                  .x_stride = x_stride, .weight = norm->data,
                                                  .weight_dtype = norm->dtype, .eps = config->norm_eps, .out = x,
                                                  .out_stride = x_stride});
    }
    if (config->rope == MODEL_ROPE_NONE) { return; }
    kernels_rope(forward->kernels,
                 &(struct kernels_rope){.rows = rows, .heads = heads, .head_dim = config->head_dim,
                                        .rotary_dim = config->head_dim, .x = x, .x_stride = x_stride,
                                        .cos = forward->cos, .sin = forward->sin, .positions = forward->row_numbers,
                                        .position_count = forward->rows});
}

static struct kernels_kv layer_kv(const struct forward *forward, const struct forward_step *step, uint32_t layer)
{
    return (struct kernels_kv){
        .pool = step->kv_pool, .layout = forward->layout, .block_count = step->kv_block_count, .layer = layer};
}

/* K and V of every row into the pool; q too, unless this is the last layer, where fewer rows need it. */
static void run_projections(struct forward *forward, const struct forward_step *step, uint32_t layer, bool with_q)
{
    const struct model_layer *weights = &forward->weights->layers[layer];
    const struct scratch_plan *plan = &forward->plan;
    uint32_t rows = forward->rows;
    size_t stride = plan->hidden_stride;
    struct kernels_gemm gemms[3] = {
        product(&weights->k, &weights->k_bias, rows, forward->normed, stride, forward->k, plan->kv_stride),
        product(&weights->v, &weights->v_bias, rows, forward->normed, stride, forward->v, plan->kv_stride),
        product(&weights->q, &weights->q_bias, rows, forward->normed, stride, forward->q, plan->q_stride),
    };
    kernels_gemm(forward->kernels, gemms, with_q ? 3 : 2);
    norm_and_rotate(forward, &weights->k_norm, rows, forward->config->kv_heads, forward->k, plan->kv_stride);
    kernels_kv_write(forward->kernels,
                     &(struct kernels_kv_write){.kv = layer_kv(forward, step, layer), .rows = rows, .k = forward->k,
                                                .k_stride = plan->kv_stride, .v = forward->v,
                                                .v_stride = plan->kv_stride, .slots = forward->slots});
}

/* x += o(attention(q)) */
static void run_attention(struct forward *forward, const struct forward_step *step, uint32_t layer, uint32_t rows)
{
    const struct model_config *config = forward->config;
    const struct model_layer *weights = &forward->weights->layers[layer];
    const struct scratch_plan *plan = &forward->plan;
    norm_and_rotate(forward, &weights->q_norm, rows, config->q_heads, forward->q, plan->q_stride);
    kernels_attention(forward->kernels,
                      &(struct kernels_attention){.kv = layer_kv(forward, step, layer), .q_heads = config->q_heads,
                                                  .scale = model_config_attention_scale(config, layer),
                                                  .window = model_config_window(config, layer), .q = forward->q,
                                                  .q_stride = plan->q_stride, .out = forward->attended,
                                                  .out_stride = plan->q_stride, .sequences = forward->sequences,
                                                  .sequence_count = step->span_count});
    struct kernels_gemm out = product(&weights->o, &weights->o_bias, rows, forward->attended, plan->q_stride,
                                      forward->x, plan->hidden_stride);
    out.accumulate = true;
    kernels_gemm(forward->kernels, &out, 1);
}

/* up = act(gate) * up, or up = act(up). */
static void run_activation(struct forward *forward, uint32_t rows)
{
    const struct model_config *config = forward->config;
    size_t stride = forward->plan.ffn_stride;
    uint32_t dim = config->ffn_size;
    if (config->activation == MODEL_SILU) {
        if (config->ffn_is_gated) {
            kernels_silu_mul(forward->kernels, &(struct kernels_silu_mul){
                                                   .rows = rows, .dim = dim, .gate = forward->gate, .gate_stride = stride,
                                                   .up = forward->up, .up_stride = stride, .out = forward->up, .out_stride = stride});
            return;
        }
        kernels_silu_mul(forward->kernels, &(struct kernels_silu_mul){
                                               .rows = rows, .dim = dim, .gate = forward->up, .gate_stride = stride,
                                               .up = forward->ones, .up_stride = 0, .out = forward->up, .out_stride = stride});
        return;
    }
    enum kernels_gelu_form form = config->activation == MODEL_GELU_ERF ? KERNELS_GELU_ERF : KERNELS_GELU_TANH;
    float *x = config->ffn_is_gated ? forward->gate : forward->up;
    kernels_gelu(forward->kernels, &(struct kernels_gelu){.form = form, .rows = rows, .dim = dim, .x = x, .x_stride = stride,
                                                          .out = x, .out_stride = stride});
    if (!config->ffn_is_gated) { return; }
    kernels_mul(forward->kernels, &(struct kernels_mul){.rows = rows, .dim = dim, .a = forward->up, .a_stride = stride,
                                                        .b = forward->gate, .b_stride = stride, .out = forward->up,
                                                        .out_stride = stride});
}

/* x += down(act(...)) of norm(x) */
static void run_ffn(struct forward *forward, uint32_t layer, uint32_t rows)
{
    const struct model_layer *weights = &forward->weights->layers[layer];
    const struct scratch_plan *plan = &forward->plan;
    run_norm(forward, &weights->ffn_norm, &weights->ffn_norm_bias, rows);
    struct kernels_gemm gemms[2];
    uint32_t count = 0;
    gemms[count++] = product(&weights->up, &weights->up_bias, rows, forward->normed, plan->hidden_stride, forward->up,
                             plan->ffn_stride);
    if (forward->config->ffn_is_gated) {
        gemms[count++] = product(&weights->gate, &weights->gate_bias, rows, forward->normed, plan->hidden_stride,
                                 forward->gate, plan->ffn_stride);
    }
    kernels_gemm(forward->kernels, gemms, count);
    run_activation(forward, rows);
    struct kernels_gemm down = product(&weights->down, &weights->down_bias, rows, forward->up, plan->ffn_stride,
                                       forward->x, plan->hidden_stride);
    down.accumulate = true;
    kernels_gemm(forward->kernels, &down, 1);
}

static void run_embedding(struct forward *forward)
{
    const struct model_tensor *table = &forward->weights->embedding;
    const struct model_tensor *positions = &forward->weights->positions;
    kernels_embed(forward->kernels,
                  &(struct kernels_embed){.rows = forward->rows, .table = &table->matrix, .ids = forward->ids,
                                          .position_table = positions->data,
                                          .position_count = positions->rows, .position_dtype = positions->dtype,
                                          .positions = forward->positions, .out = forward->x,
                                          .out_stride = forward->plan.hidden_stride});
}

status_t forward_run(struct forward *forward, const struct forward_step *step, struct diag *diag,
                     uint32_t *ret_logits_rows)
{
    forward->kept_rows = 0;
    TRY(check_step(forward, step, diag));
    lay_out_rows(forward, step);
    if (forward->rows > 0) { run_embedding(forward); }
    uint32_t layer_count = forward->rows > 0 ? forward->config->layer_count : 0;
    for (uint32_t layer = 0; layer < layer_count; layer++) {
        const struct model_layer *weights = &forward->weights->layers[layer];
        bool is_last = layer + 1 == layer_count;
        uint32_t rows = forward->rows;
        run_norm(forward, &weights->attention_norm, &weights->attention_norm_bias, rows);
        run_projections(forward, step, layer, !is_last);
        TRY(kernels_sync(forward->kernels)); /* the layer's KV is in memory before anyone is told */
        if (step->layer_done) { step->layer_done(layer, kernels_mark(forward->kernels), step->layer_done_user); }
        if (is_last) {
            rows = drop_unwanted_rows(forward, step);
            if (rows == 0) { break; }
            struct kernels_gemm q = product(&weights->q, &weights->q_bias, rows, forward->normed,
                                            forward->plan.hidden_stride, forward->q, forward->plan.q_stride);
            kernels_gemm(forward->kernels, &q, 1);
        }
        run_attention(forward, step, layer, rows);
        run_ffn(forward, layer, rows);
    }
    if (forward->kept_rows > 0) {
        run_norm(forward, &forward->weights->final_norm, &forward->weights->final_norm_bias, forward->kept_rows);
    }
    TRY(kernels_sync(forward->kernels));
    if (ret_logits_rows) { *ret_logits_rows = forward->kept_rows; }
    return STATUS_OK;
}

status_t forward_logits(struct forward *forward, uint32_t first, uint32_t count, struct diag *diag, float *ret_logits)
{
    if (first > forward->kept_rows || count > forward->kept_rows - first) {
        diag_set(diag, "logits of rows %u to %u are asked for; the last step kept %u", first, first + count,
                 forward->kept_rows);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    if (count == 0) { return STATUS_OK; }
    size_t stride = forward->plan.hidden_stride;
    struct kernels_gemm head = product(&forward->weights->head, NULL, count, forward->normed + first * stride, stride,
                                       ret_logits, forward->config->vocab_size);
    kernels_gemm(forward->kernels, &head, 1);
    return kernels_sync(forward->kernels);
}
