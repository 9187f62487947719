/* cuda_ops: each operation of kernels.h as launches: its arguments translated, its shape asked for, queued.
 * Flow:    kernels.c -> [cuda_ops] -> cuda_queue
 * Thread:  as kernels.h.
 * Memory:  scratch of attention and sampling, taken when it is first needed. */
#include <string.h>

#include "base/check.h"
#include "kernels/cuda/cuda_handle.h"
#include "kernels/cuda/kv_args.h"
#include "kernels/cuda/rows_args.h"
#include "kernels/cuda/sample_args.h"

_Static_assert(sizeof(struct cuda_kv_slot) == sizeof(struct kernels_kv_slot), "slots go to the device as they are");
_Static_assert(CUDA_SLOT_NONE == KERNELS_SLOT_NONE, "slots go to the device as they are");

static struct cuda_handle *begin(struct kernels *kernels, const char *operation)
{
    struct cuda_handle *handle = cuda_handle(kernels);
    if (!cuda_queue_failed(&handle->queue)) { handle->queue.operation = operation; }
    return handle;
}

#define LAUNCH(handle, kernel, args)                                                                      \
    do {                                                                                                  \
        struct cuda_launch shape_;                                                                        \
        cuda_##kernel##_shape(&(args), &shape_);                                                          \
        cuda_queue_launch(&(handle)->queue, CUDA_KERNEL_##kernel, &shape_, &(args), sizeof(args));        \
    } while (0)

/* What must lie in an exchange. */
static const void *sent(const struct cuda_handle *handle, const void *host, size_t bytes)
{
    return cuda_exchange_device(&handle->exchange, host, bytes);
}

/* What may lie in an exchange or in a buffer. */
static const void *sent_or_device(const struct cuda_handle *handle, const void *address, size_t bytes)
{
    return cuda_exchange_find(&handle->exchange, address, bytes) != NULL ? sent(handle, address, bytes) : address;
}

/* ---- products, rows ------------------------------------------------------------------------- */

void cuda_op_gemm(struct kernels *kernels, const struct kernels_gemm *gemms, uint32_t count)
{
    struct cuda_handle *handle = begin(kernels, "gemm");
    cuda_gemm_plans_run(handle->gemms, gemms, count);
}

void cuda_op_rmsnorm(struct kernels *kernels, const struct kernels_rmsnorm *a)
{
    struct cuda_handle *handle = begin(kernels, "rmsnorm");
    struct cuda_rmsnorm_args args = {.rows = a->rows, .heads = a->heads, .dim = a->dim, .eps = a->eps, .x = a->x,
                                     .x_stride = a->x_stride, .weight = a->weight, .out = a->out, .out_stride = a->out_stride,
                                     .x_dtype = a->x_dtype, .weight_dtype = a->weight_dtype, .out_dtype = a->out_dtype};
    LAUNCH(handle, rmsnorm, args);
}

void cuda_op_layernorm(struct kernels *kernels, const struct kernels_layernorm *a)
{
    struct cuda_handle *handle = begin(kernels, "layernorm");
    struct cuda_layernorm_args args = {.rows = a->rows, .dim = a->dim, .eps = a->eps, .x_dtype = a->x_dtype,
                                       .weight_dtype = a->dtype, .out_dtype = a->out_dtype, .x = a->x, .x_stride = a->x_stride,
                                       .weight = a->weight, .bias = a->bias, .out = a->out, .out_stride = a->out_stride};
    LAUNCH(handle, layernorm, args);
}

static size_t angles_bytes(const struct kernels_rope *a) { return (size_t)a->position_count * (a->rotary_dim / 2) * sizeof(float); }

void cuda_op_rope(struct kernels *kernels, const struct kernels_rope *a)
{
    struct cuda_handle *handle = begin(kernels, "rope");
    struct cuda_rope_args args = {.rows = a->rows, .heads = a->heads, .head_dim = a->head_dim, .rotary_dim = a->rotary_dim,
                                  .dtype = a->dtype, .x = a->x, .x_stride = a->x_stride,
                                  .cos = sent_or_device(handle, a->cos, angles_bytes(a)),
                                  .sin = sent_or_device(handle, a->sin, angles_bytes(a)),
                                  .positions = sent(handle, a->positions, a->rows * sizeof(uint32_t))};
    LAUNCH(handle, rope, args);
}

void cuda_op_embed(struct kernels *kernels, const struct kernels_embed *a)
{
    struct cuda_handle *handle = begin(kernels, "embed");
    CHECK(a->table->order == KERNELS_ORDER_ROWS);
    const bool has_positions = a->position_table != NULL;
    struct cuda_embed_args args = {.rows = a->rows, .dim = a->table->n_in, .table = a->table->data, .table_stride = a->table->stride,
                                   .table_dtype = (enum dtype)a->table->format, .position_dtype = a->position_dtype,
                                   .ids = sent(handle, a->ids, a->rows * sizeof(uint32_t)), .position_table = a->position_table,
                                   .positions = has_positions ? sent(handle, a->positions, a->rows * sizeof(uint32_t)) : NULL,
                                   .out = a->out, .out_stride = a->out_stride};
    LAUNCH(handle, embed, args);
}

void cuda_op_silu_mul(struct kernels *kernels, const struct kernels_silu_mul *a)
{
    struct cuda_handle *handle = begin(kernels, "silu_mul");
    struct cuda_map_args args = {.map = CUDA_MAP_SILU_MUL, .rows = a->rows, .dim = a->dim, .dtype = a->dtype, .out_dtype = a->dtype,
                                 .a = a->gate, .a_stride = a->gate_stride, .b = a->up, .b_stride = a->up_stride, .out = a->out,
                                 .out_stride = a->out_stride};
    LAUNCH(handle, map, args);
}

bool cuda_op_gemm_silu(struct kernels *kernels, const struct kernels_gemm_silu *args)
{
    struct cuda_handle *handle = begin(kernels, "gemm_silu");
    return cuda_gemm_plans_run_silu(handle->gemms, args);
}

void cuda_op_mul(struct kernels *kernels, const struct kernels_mul *a)
{
    struct cuda_handle *handle = begin(kernels, "mul");
    struct cuda_map_args args = {.map = CUDA_MAP_MUL, .rows = a->rows, .dim = a->dim, .dtype = a->dtype, .out_dtype = a->dtype,
                                 .a = a->a, .a_stride = a->a_stride, .b = a->b, .b_stride = a->b_stride, .out = a->out,
                                 .out_stride = a->out_stride};
    LAUNCH(handle, map, args);
}

void cuda_op_gelu(struct kernels *kernels, const struct kernels_gelu *a)
{
    struct cuda_handle *handle = begin(kernels, "gelu");
    struct cuda_map_args args = {.map = a->form == KERNELS_GELU_ERF ? CUDA_MAP_GELU_ERF : CUDA_MAP_GELU_TANH, .rows = a->rows,
                                 .dim = a->dim, .dtype = a->dtype, .out_dtype = a->dtype, .a = a->x, .a_stride = a->x_stride,
                                 .out = a->out, .out_stride = a->out_stride};
    LAUNCH(handle, map, args);
}

void cuda_op_gather_rows(struct kernels *kernels, const struct kernels_gather_rows *a)
{
    struct cuda_handle *handle = begin(kernels, "gather_rows");
    const uint32_t bytes = dtype_bytes(a->dtype);
    struct cuda_gather_rows_args args = {.rows = a->rows, .row_bytes = a->dim * bytes, .x = a->x, .x_stride_bytes = a->x_stride * bytes,
                                         .from = sent(handle, a->from, a->rows * sizeof(uint32_t)), .out = a->out,
                                         .out_stride_bytes = a->out_stride * bytes};
    LAUNCH(handle, gather_rows, args);
}

/* ---- paged KV ------------------------------------------------------------------------------- */

static const struct cuda_kv_slot *slots_sent(const struct cuda_handle *handle, const struct kernels_kv_write *a)
{
    return sent(handle, a->slots, a->rows * sizeof(*a->slots));
}

void cuda_op_kv_write(struct kernels *kernels, const struct kernels_kv_write *a)
{
    struct cuda_handle *handle = begin(kernels, "kv_write");
    struct cuda_kv_write_args args = {.rows = a->rows, .dtype = a->dtype, .k = a->k, .k_stride = a->k_stride, .v = a->v,
                                      .v_stride = a->v_stride, .slots = slots_sent(handle, a)};
    cuda_kv_place_of(&a->kv, &args.kv);
    LAUNCH(handle, kv_write, args);
}

void cuda_op_rope_kv(struct kernels *kernels, const struct kernels_rope_kv *a)
{
    struct cuda_handle *handle = begin(kernels, "rope_kv");
    const struct kernels_rope *k = &a->k, *q = &a->q;
    const struct kernels_kv_write *w = &a->write;
    const bool has_q = q->rows != 0;
    if (has_q) {
        CHECK(q->cos == k->cos);
        CHECK(q->sin == k->sin);
        CHECK(q->positions == k->positions);
    }
    if (has_q && q->norm != NULL && k->norm != NULL) { CHECK(memcmp(&q->norm_eps, &k->norm_eps, sizeof(q->norm_eps)) == 0); }
    struct cuda_qkv_store_args args = {
        .rows = w->rows, .q_heads = has_q ? q->heads : 0, .rotary_dim = k->rotary_dim, .dtype = w->dtype, .q = has_q ? q->x : NULL,
        .q_stride = has_q ? q->x_stride : 0, .k = w->k, .k_stride = w->k_stride, .v = w->v, .v_stride = w->v_stride,
        .q_norm = has_q ? q->norm : NULL, .k_norm = k->norm, .q_norm_dtype = q->norm_dtype, .k_norm_dtype = k->norm_dtype,
        .norm_eps = k->norm != NULL ? k->norm_eps : q->norm_eps,
        .slots = slots_sent(handle, w)};
    if (k->rotary_dim != 0) {
        args.cos = sent_or_device(handle, k->cos, angles_bytes(k));
        args.sin = sent_or_device(handle, k->sin, angles_bytes(k));
        args.positions = sent(handle, k->positions, k->rows * sizeof(uint32_t));
    }
    cuda_kv_place_of(&w->kv, &args.kv);
    LAUNCH(handle, qkv_store, args);
}

void cuda_op_copy_block(struct kernels *kernels, const struct kernels_copy_block *a)
{
    struct cuda_handle *handle = begin(kernels, "copy_block");
    const size_t bytes = kv_layout_block_bytes(&a->layout);
    uint8_t *pool = a->pool;
    cuda_queue_copy(&handle->queue, CUDA_COPY_ON_DEVICE, pool + a->to * bytes, pool + a->from * bytes, bytes);
}

/* ---- attention, sampling -------------------------------------------------------------------- */

/* The power of two not below. */
static uint32_t grown(uint32_t value, uint32_t least)
{
    uint64_t power = least;
    while (power < value) { power *= 2; }
    return power > UINT32_MAX ? UINT32_MAX : (uint32_t)power;
}

void cuda_op_attention(struct kernels *kernels, const struct kernels_attention *a)
{
    struct cuda_handle *handle = begin(kernels, "attention");
    const struct cuda_exchange_region *region =
        cuda_exchange_find(&handle->exchange, a->sequences, a->sequence_count * sizeof(*a->sequences));
    CHECK(region != NULL);
    struct cuda_attention_scratch scratch = {0};
    /* More than this call needs, so that a batch that grows by ones does not take memory by ones. */
    cuda_attention_scratch_need(&handle->attention, a, grown(a->sequence_count, 16), grown(a->context_max, 4096), &scratch);
    scratch.pieces = cuda_scratch_get(&handle->attention_pieces, &handle->queue, scratch.piece_bytes, false);
    scratch.arrivals = cuda_scratch_get(&handle->attention_arrivals, &handle->queue, scratch.arrival_bytes, true);
    if (cuda_queue_failed(&handle->queue)) { return; }
    struct cuda_attention_launch launches[CUDA_ATTENTION_LAUNCHES_MAX];
    uint32_t count = cuda_attention_plan(&handle->attention, a, region->host, region->device, &scratch, launches);
    for (uint32_t i = 0; i < count; i++) {
        cuda_queue_launch(&handle->queue, launches[i].kernel, &launches[i].shape, &launches[i].args, sizeof(launches[i].args));
    }
}

void cuda_op_sample(struct kernels *kernels, const struct kernels_sample *a)
{
    struct cuda_handle *handle = begin(kernels, "sample");
    const struct cuda_exchange_region *adjusts = cuda_exchange_find(&handle->exchange, a->adjusts, 0);
    const size_t results_bytes = a->rows * sizeof(*a->results);
    struct kernels_sample on_device = *a;
    CHECK(adjusts != NULL || a->adjusts == NULL); /* how many there are, only the rows know */
    on_device.params = sent(handle, a->params, a->rows * sizeof(*a->params));
    on_device.adjusts = sent(handle, a->adjusts, 0);
    on_device.results = (struct kernels_sample_result *)(uintptr_t)sent(handle, a->results, results_bytes);
    if (a->rows > handle->sample_rows || a->vocab > handle->sample_vocab) {
        handle->sample_rows = grown(a->rows > handle->sample_rows ? a->rows : handle->sample_rows, 16);
        handle->sample_vocab = a->vocab > handle->sample_vocab ? a->vocab : handle->sample_vocab;
    }
    void *workspace = cuda_scratch_get(&handle->sample_workspace, &handle->queue,
                                       cuda_sample_workspace_bytes(handle->sample_rows, handle->sample_vocab), false);
    if (cuda_queue_failed(&handle->queue)) { return; }
    struct cuda_sample_args args = cuda_sample_args_of(&on_device, workspace, handle->sample_rows);
    for (int step = 0; step < CUDA_SAMPLE_STEPS; step++) {
        struct cuda_launch shape;
        cuda_sample_shape(&args, (enum cuda_sample_step)step, &shape);
        cuda_queue_launch(&handle->queue, cuda_sample_kernel((enum cuda_sample_step)step), &shape, &args, sizeof(args));
    }
    cuda_queue_copy(&handle->queue, CUDA_COPY_TO_HOST, a->results, on_device.results, results_bytes);
}
