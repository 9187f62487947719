#include "model/forward.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "kernels/kernels.h"
#include "model/forward_scratch.h"
#include "model/model_tensors.h"
#include "model/rope_table.h"
#include "model/step_rows.h"

struct forward {
    const struct model_config *config;
    const struct model_weights *weights;
    struct kernels *kernels;
    enum dtype dtype; /* of activations */
    struct kv_layout layout;
    struct forward_limits limits;
    struct forward_scratch scratch;
    struct step_rows rows;
    uint64_t graph_key; /* its high half: no other forward pass has it */

    /* What the rest of a step computes on: all rows, then those that are kept. */
    struct live {
        uint32_t rows;
        float *x;
        const struct kernels_attention_sequence *sequences;
        const uint32_t *angles; /* which row of cos and sin a row reads */
    } live;
    uint32_t ready_rows; /* of normed, for logits */
    bool is_recorded;    /* the last run */
};

static struct step_rows_limits rows_limits(const struct model_config *config, const struct forward_limits *limits,
                                           uint32_t block_tokens)
{
    return (struct step_rows_limits){.rows_max = limits->rows_max, .spans_max = limits->spans_max,
                                     .context_tokens = config->context_tokens, .vocab_size = config->vocab_size,
                                     .block_tokens = block_tokens};
}

size_t forward_scratch_bytes(const struct model *model, const struct kernels *kernels, const struct forward_limits *limits)
{
    const struct model_config *config = model_get_config(model);
    const bool is_host = !kernels || kernels_uses_host_memory(kernels);
    const enum dtype dtype = kernels ? kernels_activation_dtype(kernels) : DTYPE_F32;
    const struct step_rows_limits rows = rows_limits(config, limits, KV_TILE_TOKENS);
    return forward_scratch_plan_bytes(config, limits->rows_max, dtype, is_host) + step_rows_bytes(&rows, !is_host);
}

static bool layout_fits(const struct kv_layout *layout, const struct model_config *config)
{
    return layout->layer_count == config->layer_count && layout->kv_heads == config->kv_heads &&
           layout->head_dim == config->head_dim && layout->block_tokens % 16 == 0 && layout->block_tokens > 0 &&
           (unsigned)layout->dtype < DTYPE_KV_COUNT;
}

status_t forward_create(const struct model *model, struct kernels *kernels, const struct kv_layout *layout,
                        const struct forward_limits *limits, struct diag *diag, struct forward **ret_forward)
{
    static _Atomic uint64_t created;
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
    const struct model_weights *weights = model_get_weights(model);
    if (!weights->head.data || !kernels_takes_weights(kernels, weights->head.matrix.order)) {
        diag_set(diag, "the kernels \"%s\" do not read the model's weights where they are: %s", kernels_set_name(kernels),
                 kernels_uses_host_memory(kernels) ? "they lie on a device" : "they are not on the device yet");
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    struct forward *forward = calloc(1, sizeof *forward);
    if (!forward) {
        diag_set(diag, "no memory for the forward pass");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    forward->config = config;
    forward->weights = weights;
    forward->kernels = kernels;
    forward->dtype = kernels_activation_dtype(kernels);
    forward->layout = *layout;
    forward->limits = *limits;
    forward->graph_key = (atomic_fetch_add(&created, 1) + 1) << 32;
    status_t st = forward_scratch_init(&forward->scratch, config, limits->rows_max, kernels, diag);
    if (failed(st)) { goto fail; }
    const struct step_rows_limits rows = rows_limits(config, limits, layout->block_tokens);
    st = step_rows_init(&forward->rows, kernels, &rows, diag);
    if (failed(st)) { goto fail; }
    *ret_forward = forward;
    return STATUS_OK;
fail:
    forward_destroy(forward);
    return st;
}

void forward_destroy(struct forward *forward)
{
    if (!forward) { return; }
    step_rows_fini(&forward->rows);
    forward_scratch_fini(&forward->scratch);
    free(forward);
}

/* ---- the parts of a layer ----------------------------------------------------------------- */

/* x is of the activations' dtype; out too, unless the caller says otherwise. */
static struct kernels_gemm product(const struct forward *forward, const struct model_tensor *weight,
                                   const struct model_tensor *bias, const void *x, size_t x_stride, void *out,
                                   size_t out_stride)
{
    return (struct kernels_gemm){
        .rows = forward->live.rows,
        .weight = &weight->matrix,
        .x = x,
        .x_dtype = forward->dtype,
        .x_stride = x_stride,
        .bias = bias ? bias->data : NULL,
        .bias_dtype = bias ? bias->dtype : DTYPE_F32,
        .out = out,
        .out_dtype = forward->dtype,
        .out_stride = out_stride,
    };
}

/* x += weight * y */
static void add_product(struct forward *forward, const struct model_tensor *weight, const struct model_tensor *bias,
                        const void *y, size_t y_stride)
{
    struct kernels_gemm gemm = product(forward, weight, bias, y, y_stride, forward->live.x, forward->scratch.hidden_stride);
    gemm.out_dtype = DTYPE_F32;
    gemm.accumulate = true;
    kernels_gemm(forward->kernels, &gemm, 1);
}

/* normed = norm(x) */
static void run_norm(struct forward *forward, const struct model_tensor *weight, const struct model_tensor *bias)
{
    const struct model_config *config = forward->config;
    const size_t stride = forward->scratch.hidden_stride;
    if (config->norm == MODEL_NORM_RMS) {
        kernels_rmsnorm(forward->kernels,
                        &(struct kernels_rmsnorm){.rows = forward->live.rows, .heads = 1, .dim = config->hidden_size,
                                                  .x = forward->live.x, .x_stride = stride, .weight = weight->data,
                                                  .weight_dtype = weight->dtype, .eps = config->norm_eps,
                                                  .out = forward->scratch.normed, .out_dtype = forward->dtype, .out_stride = stride});
        return;
    }
    CHECK(weight->dtype == bias->dtype);
    kernels_layernorm(forward->kernels,
                      &(struct kernels_layernorm){.rows = forward->live.rows, .dim = config->hidden_size,
                                                  .x = forward->live.x, .x_stride = stride, .weight = weight->data,
                                                  .bias = bias->data, .dtype = weight->dtype, .eps = config->norm_eps,
                                                  .out = forward->scratch.normed, .out_dtype = forward->dtype, .out_stride = stride});
}

/* Norm of each head, where the model has it, and rotation; of q or k, in place. */
static struct kernels_rope rope_of(const struct forward *forward, const struct model_tensor *norm, uint32_t heads, void *x)
{
    const struct model_config *config = forward->config;
    return (struct kernels_rope){
        .rows = forward->live.rows,
        .heads = heads,
        .head_dim = config->head_dim,
        .rotary_dim = config->rope == MODEL_ROPE_NONE ? 0 : config->head_dim,
        .x = x,
        .dtype = forward->dtype,
        .x_stride = forward->scratch.qkv_stride,
        .cos = forward->scratch.cos,
        .sin = forward->scratch.sin,
        .positions = forward->live.angles,
        .position_count = forward->scratch.angle_rows,
        .norm = config->qk_norm ? norm->data : NULL,
        .norm_dtype = config->qk_norm ? norm->dtype : DTYPE_F32,
        .norm_eps = config->norm_eps,
    };
}

static struct kernels_kv layer_kv(const struct forward *forward, const struct forward_step *step, uint32_t layer)
{
    return (struct kernels_kv){
        .pool = step->kv_pool, .layout = forward->layout, .block_count = step->kv_block_count, .layer = layer};
}

/* K and V of every row into the pool; and q, unless fewer rows will need it. */
static void run_projections(struct forward *forward, const struct forward_step *step, uint32_t layer, bool with_q)
{
    const struct model_config *config = forward->config;
    const struct model_layer *weights = &forward->weights->layers[layer];
    const struct forward_scratch *scratch = &forward->scratch;
    const size_t stride = scratch->hidden_stride;
    const struct kernels_gemm gemms[3] = {
        product(forward, &weights->q, &weights->q_bias, scratch->normed, stride, scratch->q, scratch->qkv_stride),
        product(forward, &weights->k, &weights->k_bias, scratch->normed, stride, scratch->k, scratch->qkv_stride),
        product(forward, &weights->v, &weights->v_bias, scratch->normed, stride, scratch->v, scratch->qkv_stride),
    };
    kernels_gemm(forward->kernels, with_q ? gemms : gemms + 1, with_q ? 3 : 2);
    struct kernels_rope_kv rope = {
        .k = rope_of(forward, &weights->k_norm, config->kv_heads, scratch->k),
        .write = {.kv = layer_kv(forward, step, layer), .rows = forward->live.rows, .dtype = forward->dtype,
                  .k = scratch->k, .k_stride = scratch->qkv_stride, .v = scratch->v, .v_stride = scratch->qkv_stride,
                  .slots = forward->rows.slots},
        .q = rope_of(forward, &weights->q_norm, config->q_heads, scratch->q),
    };
    if (!with_q) { rope.q.rows = 0; }
    kernels_rope_kv(forward->kernels, &rope);
}

/* Goes on with the rows that want logits alone, and computes the q that run_projections() left out. Attention over one
 * row has the bits that it has among others. */
static void drop_unwanted_rows(struct forward *forward, const struct model_layer *weights)
{
    const struct forward_scratch *scratch = &forward->scratch;
    const struct step_rows *rows = &forward->rows;
    const bool is_host = kernels_uses_host_memory(forward->kernels);
    kernels_gather_rows(forward->kernels,
                        &(struct kernels_gather_rows){.rows = rows->kept_rows, .dim = forward->config->hidden_size,
                                                      .x = scratch->x, .x_rows = rows->rows, .x_stride = scratch->hidden_stride,
                                                      .from = rows->kept_from, .out = scratch->x_kept,
                                                      .out_stride = scratch->hidden_stride});
    forward->live = (struct live){.rows = rows->kept_rows, .x = scratch->x_kept, .sequences = rows->kept_sequences,
                                  .angles = is_host ? rows->kept_from : rows->kept_positions};
    run_norm(forward, &weights->attention_norm, &weights->attention_norm_bias);
    const struct kernels_gemm q =
        product(forward, &weights->q, &weights->q_bias, scratch->normed, scratch->hidden_stride, scratch->q, scratch->qkv_stride);
    kernels_gemm(forward->kernels, &q, 1);
    const struct kernels_rope rope = rope_of(forward, &weights->q_norm, forward->config->q_heads, scratch->q);
    kernels_rope(forward->kernels, &rope);
}

/* x += o(attention(q)) */
static void run_attention(struct forward *forward, const struct forward_step *step, uint32_t layer)
{
    const struct model_config *config = forward->config;
    const struct model_layer *weights = &forward->weights->layers[layer];
    const struct forward_scratch *scratch = &forward->scratch;
    kernels_attention(forward->kernels,
                      &(struct kernels_attention){.kv = layer_kv(forward, step, layer), .q_heads = config->q_heads,
                                                  .scale = model_config_attention_scale(config, layer),
                                                  .window = model_config_window(config, layer), .dtype = forward->dtype,
                                                  .q = scratch->q, .q_stride = scratch->qkv_stride, .out = scratch->attended,
                                                  .out_stride = scratch->attended_stride,
                                                  .sequences = forward->live.sequences,
                                                  .sequence_count = forward->rows.sequence_count,
                                                  .rows = forward->live.rows,
                                                  .row_count_max = forward->rows.row_count_max,
                                                  .context_max = forward->rows.context_max});
    add_product(forward, &weights->o, &weights->o_bias, scratch->attended, scratch->attended_stride);
}

/* up = silu(gate) * up, or up = silu(up). */
static struct kernels_silu_mul silu_of(const struct forward *forward)
{
    const bool is_gated = forward->config->ffn_is_gated;
    const size_t stride = forward->scratch.ffn_stride;
    return (struct kernels_silu_mul){.rows = forward->live.rows, .dim = forward->config->ffn_size, .dtype = forward->dtype,
                                     .gate = is_gated ? forward->scratch.gate : forward->scratch.up, .gate_stride = stride,
                                     .up = is_gated ? forward->scratch.up : forward->scratch.ones, .up_stride = is_gated ? stride : 0,
                                     .out = forward->scratch.up, .out_stride = stride};
}

/* up = act(gate) * up, or up = act(up). */
static void run_activation(struct forward *forward)
{
    const struct model_config *config = forward->config;
    const size_t stride = forward->scratch.ffn_stride;
    const uint32_t dim = config->ffn_size, rows = forward->live.rows;
    if (config->activation == MODEL_SILU) {
        const struct kernels_silu_mul silu = silu_of(forward);
        kernels_silu_mul(forward->kernels, &silu);
        return;
    }
    void *x = config->ffn_is_gated ? forward->scratch.gate : forward->scratch.up;
    kernels_gelu(forward->kernels,
                 &(struct kernels_gelu){.form = config->activation == MODEL_GELU_ERF ? KERNELS_GELU_ERF : KERNELS_GELU_TANH,
                                        .rows = rows, .dim = dim, .dtype = forward->dtype, .x = x, .x_stride = stride,
                                        .out = x, .out_stride = stride});
    if (!config->ffn_is_gated) { return; }
    kernels_mul(forward->kernels,
                &(struct kernels_mul){.rows = rows, .dim = dim, .dtype = forward->dtype, .a = forward->scratch.up, .a_stride = stride,
                                      .b = forward->scratch.gate, .b_stride = stride, .out = forward->scratch.up, .out_stride = stride});
}

/* x += down(act(...)) of norm(x) */
static void run_ffn(struct forward *forward, uint32_t layer)
{
    const struct model_layer *weights = &forward->weights->layers[layer];
    const struct forward_scratch *scratch = &forward->scratch;
    run_norm(forward, &weights->ffn_norm, &weights->ffn_norm_bias);
    const struct kernels_gemm up = product(forward, &weights->up, &weights->up_bias, scratch->normed, scratch->hidden_stride,
                                           scratch->up, scratch->ffn_stride);
    if (!forward->config->ffn_is_gated) {
        kernels_gemm(forward->kernels, &up, 1);
        run_activation(forward);
    } else {
        const struct kernels_gemm gate = product(forward, &weights->gate, &weights->gate_bias, scratch->normed, scratch->hidden_stride,
                                                 scratch->gate, scratch->ffn_stride);
        if (forward->config->activation == MODEL_SILU) {
            kernels_gemm_silu(forward->kernels, &(struct kernels_gemm_silu){.gate = gate, .up = up, .silu = silu_of(forward)});
        } else {
            kernels_gemm(forward->kernels, (const struct kernels_gemm[2]){gate, up}, 2);
            run_activation(forward);
        }
    }
    add_product(forward, &weights->down, &weights->down_bias, scratch->up, scratch->ffn_stride);
}

static void run_embedding(struct forward *forward)
{
    const struct model_tensor *table = &forward->weights->embedding;
    const struct model_tensor *positions = &forward->weights->positions;
    kernels_embed(forward->kernels,
                  &(struct kernels_embed){.rows = forward->live.rows, .table = &table->matrix, .ids = forward->rows.ids,
                                          .position_table = positions->data,
                                          .position_count = positions->rows, .position_dtype = positions->dtype,
                                          .positions = forward->rows.positions, .out = forward->live.x,
                                          .out_stride = forward->scratch.hidden_stride});
}

/* ---- a step ------------------------------------------------------------------------------- */

/* Queues everything. layer_done  may be NULL. */
static void run_layers(struct forward *forward, const struct forward_step *step, forward_layer_done_fn layer_done)
{
    struct step_rows *rows = &forward->rows;
    const uint32_t layer_count = forward->config->layer_count;
    run_embedding(forward);
    for (uint32_t layer = 0; layer < layer_count; layer++) {
        const struct model_layer *weights = &forward->weights->layers[layer];
        const bool drops_rows = layer + 1 == layer_count && rows->kept_rows < rows->rows;
        run_norm(forward, &weights->attention_norm, &weights->attention_norm_bias);
        run_projections(forward, step, layer, !drops_rows);
        if (layer_done) { layer_done(layer, kernels_mark(forward->kernels), step->layer_done_user); }
        if (drops_rows) {
            if (rows->kept_rows == 0) { return; }
            drop_unwanted_rows(forward, weights);
        }
        run_attention(forward, step, layer);
        run_ffn(forward, layer);
    }
    run_norm(forward, &forward->weights->final_norm, &forward->weights->final_norm_bias);
}

/* Each size costs some memory and two slow steps. */
uint32_t forward_decode_size(const struct forward *forward, uint32_t rows)
{
    static const uint32_t sizes[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024};
    const uint32_t most = forward->limits.rows_max < forward->limits.spans_max ? forward->limits.rows_max : forward->limits.spans_max;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (sizes[i] >= rows) { return sizes[i] < most ? sizes[i] : most; }
    }
    const uint32_t size = (rows + 255) / 256 * 256;
    return size < most ? size : most;
}

/* One row for each of many sequences, as it comes step after step: of a few sizes, each recorded once. The mark of
 * every layer is that of the whole. */
static void run_decode_graph(struct forward *forward, const struct forward_step *step)
{
    struct step_rows *rows = &forward->rows;
    step_rows_fill_up(rows, forward_decode_size(forward, rows->rows));
    rows->context_max = forward->config->context_tokens;
    step_rows_send(rows);
    forward->live.rows = forward->ready_rows = rows->rows;
    if (kernels_graph_begin(forward->kernels, forward->graph_key | rows->rows)) {
        run_layers(forward, step, NULL);
        kernels_graph_end(forward->kernels);
    }
    if (!step->layer_done) { return; }
    const uint64_t mark = kernels_mark(forward->kernels);
    for (uint32_t layer = 0; layer < forward->config->layer_count; layer++) { step->layer_done(layer, mark, step->layer_done_user); }
}

status_t forward_run(struct forward *forward, const struct forward_step *step, struct diag *diag,
                     uint32_t *ret_logits_rows)
{
    struct step_rows *rows = &forward->rows;
    const bool is_host = kernels_uses_host_memory(forward->kernels);
    forward->ready_rows = 0;
    forward->is_recorded = false;
    TRY(step_rows_set(rows, step, diag));
    const uint32_t wanted = rows->kept_rows;
    forward->ready_rows = wanted;
    forward->live = (struct live){.rows = rows->rows, .x = forward->scratch.x, .sequences = rows->sequences,
                                  .angles = is_host ? rows->numbers : rows->positions};
    if (is_host) {
        const struct forward_scratch *scratch = &forward->scratch;
        const size_t pairs = scratch->pair_count;
        for (uint32_t r = 0; pairs > 0 && r < rows->rows; r++) {
            rope_table_row(&scratch->rope, rows->positions[r], scratch->cos + r * pairs, scratch->sin + r * pairs);
        }
    }
    forward->is_recorded = rows->is_decode && kernels_has_graphs(forward->kernels);
    if (forward->is_recorded) {
        run_decode_graph(forward, step);
    } else if (rows->rows > 0) {
        step_rows_send(rows);
        run_layers(forward, step, step->layer_done);
    }
    if (ret_logits_rows) { *ret_logits_rows = wanted; }
    return STATUS_OK;
}

void forward_warm(struct forward *forward, void *kv_pool, uint32_t kv_block_count, uint32_t rows, bool is_decode)
{
    struct step_rows *step_rows = &forward->rows;
    const struct forward_step step = {.kv_pool = kv_pool, .kv_block_count = kv_block_count};
    CHECK(kernels_has_graphs(forward->kernels));
    CHECK(rows > 0);
    step_rows_set_empty(step_rows, rows, is_decode);
    forward->is_recorded = is_decode;
    forward->ready_rows = step_rows->kept_rows;
    forward->live = (struct live){.rows = rows, .x = forward->scratch.x, .sequences = step_rows->sequences,
                                  .angles = step_rows->positions};
    if (is_decode) {
        run_decode_graph(forward, &step);
        return;
    }
    step_rows_send(step_rows);
    run_layers(forward, &step, NULL);
}

uint32_t forward_ready_rows(const struct forward *forward) { return forward->ready_rows; }
bool forward_is_recorded(const struct forward *forward) { return forward->is_recorded; }

status_t forward_logits(struct forward *forward, uint32_t first, uint32_t count, struct diag *diag, float *ret_logits)
{
    if (first > forward->ready_rows || count > forward->ready_rows - first) {
        diag_set(diag, "logits of rows %u to %u are asked for; the last step kept %u", first, first + count,
                 forward->ready_rows);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    if (count == 0) { return STATUS_OK; }
    const size_t stride = forward->scratch.hidden_stride;
    const uint8_t *normed = (const uint8_t *)forward->scratch.normed + first * stride * dtype_bytes(forward->dtype);
    struct kernels_gemm head = product(forward, &forward->weights->head, NULL, normed, stride, ret_logits,
                                       forward->config->vocab_size);
    head.rows = count;
    head.out_dtype = DTYPE_F32;
    kernels_gemm(forward->kernels, &head, 1);
    return STATUS_OK;
}
