#include "model/forward_scratch.h"

#define PART_ALIGNMENT 64u /* of arrays, and of rows in them */
#define UPLOAD_PIECE_BYTES ((size_t)1 << 20)

_Static_assert(2 * ROPE_TABLE_PAIRS_MAX == KERNELS_HEAD_DIM_MAX, "every head the kernels take has its angles");

/* Where each array begins, in bytes. */
struct plan {
    size_t x, x_kept, normed, qkv, attended, ffn, cos, sin, ones, total;
    size_t q_dim, kv_dim;
};

static size_t take_part(struct plan *plan, size_t bytes)
{
    size_t at = plan->total;
    plan->total += (bytes + PART_ALIGNMENT - 1) / PART_ALIGNMENT * PART_ALIGNMENT;
    return at;
}

static size_t padded(size_t count, size_t element_bytes)
{
    const size_t step = PART_ALIGNMENT / element_bytes;
    return (count + step - 1) / step * step;
}

static bool needs_ones(const struct model_config *config) { return config->activation == MODEL_SILU && !config->ffn_is_gated; }

/* Fills the strides and counts of *scratch. */
static struct plan plan_make(const struct model_config *config, size_t rows, enum dtype dtype, bool is_host,
                             struct forward_scratch *scratch)
{
    struct plan plan = {0};
    const size_t bytes = dtype_bytes(dtype);
    plan.q_dim = (size_t)config->q_heads * config->head_dim;
    plan.kv_dim = (size_t)config->kv_heads * config->head_dim;
    scratch->hidden_stride = padded(config->hidden_size, bytes);
    scratch->qkv_stride = padded(plan.q_dim + 2 * plan.kv_dim, bytes);
    scratch->attended_stride = padded(plan.q_dim, bytes);
    scratch->ffn_stride = padded((config->ffn_is_gated ? 2 : 1) * (size_t)config->ffn_size, bytes);
    scratch->pair_count = config->rope == MODEL_ROPE_NONE ? 0 : config->head_dim / 2;
    scratch->angle_rows = is_host ? (uint32_t)rows : config->context_tokens;
    plan.x = take_part(&plan, rows * scratch->hidden_stride * sizeof(float));
    plan.x_kept = take_part(&plan, rows * scratch->hidden_stride * sizeof(float));
    plan.normed = take_part(&plan, rows * scratch->hidden_stride * bytes);
    plan.qkv = take_part(&plan, rows * scratch->qkv_stride * bytes);
    plan.attended = take_part(&plan, rows * scratch->attended_stride * bytes);
    plan.ffn = take_part(&plan, rows * scratch->ffn_stride * bytes);
    plan.cos = take_part(&plan, scratch->angle_rows * scratch->pair_count * sizeof(float));
    plan.sin = take_part(&plan, scratch->angle_rows * scratch->pair_count * sizeof(float));
    plan.ones = take_part(&plan, needs_ones(config) ? config->ffn_size * bytes : 0);
    return plan;
}

size_t forward_scratch_plan_bytes(const struct model_config *config, uint32_t rows_max, enum dtype dtype, bool is_host)
{
    struct forward_scratch scratch;
    return plan_make(config, rows_max, dtype, is_host, &scratch).total;
}

static void point_into_memory(struct forward_scratch *scratch, const struct plan *plan, const struct model_config *config, enum dtype dtype)
{
    uint8_t *base = scratch->memory;
    const size_t bytes = dtype_bytes(dtype);
    scratch->x = (float *)(void *)(base + plan->x);
    scratch->x_kept = (float *)(void *)(base + plan->x_kept);
    scratch->normed = base + plan->normed;
    scratch->q = base + plan->qkv;
    scratch->k = base + plan->qkv + plan->q_dim * bytes;
    scratch->v = base + plan->qkv + (plan->q_dim + plan->kv_dim) * bytes;
    scratch->attended = base + plan->attended;
    scratch->gate = base + plan->ffn;
    scratch->up = base + plan->ffn + (config->ffn_is_gated ? config->ffn_size * bytes : 0);
    scratch->cos = (float *)(void *)(base + plan->cos);
    scratch->sin = (float *)(void *)(base + plan->sin);
    scratch->ones = base + plan->ones;
}

static status_t fill_ones(const struct forward_scratch *scratch, size_t count, enum dtype dtype, void *piece)
{
    const size_t bytes = dtype_bytes(dtype), room = UPLOAD_PIECE_BYTES / bytes;
    for (size_t i = 0; i < room && i < count; i++) {
        if (bytes == 4) { ((float *)piece)[i] = 1.0f; }
        else { ((uint16_t *)piece)[i] = dtype == DTYPE_BF16 ? f32_to_bf16(1.0f) : f32_to_f16(1.0f); }
    }
    for (size_t at = 0; at < count; at += room) {
        kernels_upload(scratch->kernels, (uint8_t *)scratch->ones + at * bytes, piece, (count - at < room ? count - at : room) * bytes);
    }
    return kernels_sync(scratch->kernels);
}

/* The angles of every position. */
static status_t fill_angles(const struct forward_scratch *scratch, void *piece)
{
    const size_t pairs = scratch->pair_count, row_bytes = pairs * sizeof(float);
    const uint32_t room = (uint32_t)(UPLOAD_PIECE_BYTES / 2 / row_bytes);
    float *cos = piece, *sin = cos + room * pairs;
    for (uint32_t at = 0; at < scratch->angle_rows; at += room) {
        const uint32_t left = scratch->angle_rows - at, count = left < room ? left : room;
        for (uint32_t i = 0; i < count; i++) { rope_table_row(&scratch->rope, at + i, cos + i * pairs, sin + i * pairs); }
        kernels_upload(scratch->kernels, scratch->cos + at * pairs, cos, count * row_bytes);
        kernels_upload(scratch->kernels, scratch->sin + at * pairs, sin, count * row_bytes);
        TRY(kernels_sync(scratch->kernels));
    }
    return STATUS_OK;
}

status_t forward_scratch_init(struct forward_scratch *scratch, const struct model_config *config, uint32_t rows_max,
                              struct kernels *kernels, struct diag *diag)
{
    const bool is_host = kernels_uses_host_memory(kernels);
    const enum dtype dtype = kernels_activation_dtype(kernels);
    *scratch = (struct forward_scratch){.kernels = kernels};
    const struct plan plan = plan_make(config, rows_max, dtype, is_host, scratch);
    if (config->rope != MODEL_ROPE_NONE) { rope_table_init(&scratch->rope, config); }
    scratch->bytes = plan.total;
    TRY(kernels_buffer_alloc(kernels, plan.total, &scratch->memory, diag));
    point_into_memory(scratch, &plan, config, dtype);
    void *piece = NULL;
    TRY(kernels_pinned_alloc(kernels, UPLOAD_PIECE_BYTES, &piece, diag));
    status_t st = needs_ones(config) ? fill_ones(scratch, config->ffn_size, dtype, piece) : STATUS_OK;
    if (!failed(st) && !is_host && scratch->pair_count > 0) { st = fill_angles(scratch, piece); }
    if (failed(st)) { diag_set(diag, "the device failed while the constants of the forward pass were copied to it"); }
    kernels_pinned_free(kernels, piece, UPLOAD_PIECE_BYTES);
    return st;
}

void forward_scratch_fini(struct forward_scratch *scratch)
{
    if (scratch->memory) { kernels_buffer_free(scratch->kernels, scratch->memory, scratch->bytes); }
    scratch->memory = NULL;
}
