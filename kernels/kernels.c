/* kernels: the facade: picks the backend and checks what callers hand over.
 * Flow:    model forward -> [kernels] -> a backend's table
 * Thread:  as kernels.h.
 * Memory:  none of its own. */
#include "kernels/kernels.h"

#include <string.h>

#include "base/check.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/ref/ref.h"

status_t kernels_create(const struct kernels_config *config, struct kernels **ret_kernels, struct diag *diag)
{
    if (config->threads == 0 || config->threads > KERNELS_THREADS_MAX) {
        diag_set(diag, "--threads=%u is out of range: 1 .. %u", config->threads, KERNELS_THREADS_MAX);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    const char *backend = config->backend != NULL ? config->backend : "cpu";
    if (strcmp(backend, "cuda") == 0) {
        if ((unsigned)config->activations >= DTYPE_COUNT) {
            diag_set(diag, "activations of dtype %u: f32, bf16 and f16 are those there are", (unsigned)config->activations);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
        }
        return cuda_backend_create(config, ret_kernels, diag);
    }
    if (strcmp(backend, "cpu") != 0) {
        diag_set(diag, "--backend=%.64s is unknown; there are: cpu cuda", backend);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (config->activations != DTYPE_F32) {
        diag_set(diag, "the cpu backend keeps activations as f32");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    const char *isa = config->isa != NULL ? config->isa : "auto";
    if (strcmp(isa, "ref") == 0) { return ref_create(ret_kernels, diag); }
    return cpu_backend_create(isa, config, ret_kernels, diag);
}

void kernels_destroy(struct kernels *kernels)
{
    if (kernels != NULL) { kernels->ops->destroy(kernels); }
}

const char *kernels_set_name(const struct kernels *kernels) { return kernels->set_name; }
const char *kernels_isa_name(const struct kernels *kernels) { return kernels->isa_name; }
uint32_t kernels_threads(const struct kernels *kernels) { return kernels->threads; }
enum dtype kernels_activation_dtype(const struct kernels *kernels) { return kernels->activations; }
enum kernels_order kernels_weight_order(const struct kernels *kernels) { return kernels->weight_order; }
bool kernels_takes_weights(const struct kernels *kernels, enum kernels_order order)
{
    return order == kernels->weight_order || kernels->takes_any_order;
}
enum kv_order kernels_kv_order(const struct kernels *kernels) { return kernels->kv_order; }
bool kernels_has_graphs(const struct kernels *kernels) { return kernels->has_graphs; }
bool kernels_can_sample(const struct kernels *kernels) { return kernels->ops->sample != NULL; }
const char *kernels_isa_available(void) { return cpu_backend_isa_available(); }

status_t kernels_buffer_alloc(struct kernels *kernels, size_t bytes, void **ret_buffer, struct diag *diag)
{
    return kernels->ops->buffer_alloc(kernels, bytes, ret_buffer, diag);
}

void kernels_buffer_free(struct kernels *kernels, void *buffer, size_t bytes)
{
    kernels->ops->buffer_free(kernels, buffer, bytes);
}

bool kernels_uses_host_memory(const struct kernels *kernels) { return kernels->uses_host_memory; }

void kernels_upload(struct kernels *kernels, void *buffer, const void *host, size_t bytes)
{
    kernels->ops->upload(kernels, buffer, host, bytes);
}

void kernels_download(struct kernels *kernels, void *host, const void *buffer, size_t bytes)
{
    kernels->ops->download(kernels, host, buffer, bytes);
}

status_t kernels_pinned_alloc(struct kernels *kernels, size_t bytes, void **ret_host, struct diag *diag)
{
    return kernels->ops->pinned_alloc(kernels, bytes, ret_host, diag);
}

void kernels_pinned_free(struct kernels *kernels, void *host, size_t bytes)
{
    if (host != NULL) { kernels->ops->pinned_free(kernels, host, bytes); }
}

status_t kernels_sync(struct kernels *kernels) { return kernels->ops->sync(kernels); }

status_t kernels_exchange_alloc(struct kernels *kernels, size_t bytes, void **ret_host, struct diag *diag)
{
    return kernels->ops->exchange_alloc(kernels, bytes, ret_host, diag);
}

void kernels_exchange_free(struct kernels *kernels, void *host, size_t bytes)
{
    if (host != NULL) { kernels->ops->exchange_free(kernels, host, bytes); }
}

void kernels_exchange_send(struct kernels *kernels, const void *first, size_t bytes)
{
    if (bytes != 0) { kernels->ops->exchange_send(kernels, first, bytes); }
}

uint64_t kernels_mark(struct kernels *kernels) { return kernels->ops->mark(kernels); }

status_t kernels_wait(struct kernels *kernels, uint64_t mark)
{
    return mark != 0 ? kernels->ops->wait(kernels, mark) : STATUS_OK;
}

bool kernels_graph_begin(struct kernels *kernels, uint64_t key) { return kernels->ops->graph_begin(kernels, key); }
void kernels_graph_end(struct kernels *kernels) { kernels->ops->graph_end(kernels); }

/* What this backend computes with; f32 always may come and go where the header says so. */
static void dtype_check(const struct kernels *kernels, enum dtype dtype) { CHECK(dtype == kernels->activations); }

static void dtype_or_f32_check(const struct kernels *kernels, enum dtype dtype)
{
    CHECK(dtype == kernels->activations || dtype == DTYPE_F32);
}

static void matrix_check(const struct kernels *kernels, const struct kernels_matrix *matrix)
{
    const bool is_rows = matrix->order == KERNELS_ORDER_ROWS;
    CHECK((unsigned)matrix->format < KERNELS_WEIGHT_COUNT);
    CHECK(matrix->n_out >= 1);
    CHECK(matrix->n_in >= 1);
    CHECK(kernels_takes_weights(kernels, matrix->order));
    CHECK(!is_rows || matrix->format <= KERNELS_WEIGHT_F16);
    CHECK(!is_rows || matrix->stride == kernels_matrix_rows_stride(matrix->n_in));
    CHECK((uintptr_t)matrix->data % (is_rows ? 16 : 64) == 0);
}

static void gemm_check(const struct kernels *kernels, const struct kernels_gemm *g)
{
    matrix_check(kernels, g->weight);
    CHECK(g->weight->n_in <= KERNELS_GEMM_IN_MAX);
    CHECK(g->x_stride >= g->weight->n_in || g->rows <= 1);
    CHECK(g->out_stride >= g->weight->n_out || g->rows <= 1);
    CHECK(g->bias == NULL || (unsigned)g->bias_dtype < DTYPE_COUNT);
    dtype_check(kernels, g->x_dtype);
    dtype_or_f32_check(kernels, g->out_dtype);
    CHECK(!g->accumulate || g->out_dtype == DTYPE_F32);
}

void kernels_gemm(struct kernels *kernels, const struct kernels_gemm *gemms, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) { gemm_check(kernels, &gemms[i]); }
    if (count != 0) { kernels->ops->gemm(kernels, gemms, count); }
}

void kernels_rmsnorm(struct kernels *kernels, const struct kernels_rmsnorm *args)
{
    CHECK(args->dim >= 1);
    CHECK(args->heads >= 1);
    CHECK((unsigned)args->weight_dtype < DTYPE_COUNT);
    dtype_or_f32_check(kernels, args->x_dtype);
    dtype_or_f32_check(kernels, args->out_dtype);
    if (args->rows != 0) { kernels->ops->rmsnorm(kernels, args); }
}

void kernels_layernorm(struct kernels *kernels, const struct kernels_layernorm *args)
{
    CHECK(args->dim >= 1);
    CHECK((unsigned)args->dtype < DTYPE_COUNT);
    dtype_or_f32_check(kernels, args->x_dtype);
    dtype_or_f32_check(kernels, args->out_dtype);
    if (args->rows != 0) { kernels->ops->layernorm(kernels, args); }
}

static void rope_check(const struct kernels *kernels, const struct kernels_rope *args)
{
    CHECK(args->rotary_dim % 2 == 0);
    CHECK(args->rotary_dim <= args->head_dim);
    CHECK(args->norm == NULL || (unsigned)args->norm_dtype < DTYPE_COUNT);
    dtype_check(kernels, args->dtype);
    if (args->rotary_dim == 0) { return; }
    for (uint32_t r = 0; r < args->rows; r++) { CHECK(args->positions[r] < args->position_count); }
}

static void rope_run(struct kernels *kernels, const struct kernels_rope *args)
{
    if (args->rows == 0) { return; }
    if (args->norm != NULL && (args->rotary_dim == 0 || !kernels->norm_in_rope)) {
        kernels->ops->rmsnorm(kernels, &(struct kernels_rmsnorm){
                                           .rows = args->rows, .heads = args->heads, .dim = args->head_dim, .x = args->x,
                                           .x_dtype = args->dtype, .x_stride = args->x_stride, .weight = args->norm,
                                           .weight_dtype = args->norm_dtype, .eps = args->norm_eps, .out = args->x,
                                           .out_dtype = args->dtype, .out_stride = args->x_stride});
    }
    if (args->rotary_dim != 0) { kernels->ops->rope(kernels, args); }
}

void kernels_rope(struct kernels *kernels, const struct kernels_rope *args)
{
    rope_check(kernels, args);
    rope_run(kernels, args);
}

void kernels_embed(struct kernels *kernels, const struct kernels_embed *args)
{
    matrix_check(kernels, args->table);
    for (uint32_t r = 0; r < args->rows; r++) {
        CHECK(args->ids[r] < args->table->n_out);
        CHECK(args->position_table == NULL || args->positions[r] < args->position_count);
    }
    if (args->rows != 0) { kernels->ops->embed(kernels, args); }
}

void kernels_silu_mul(struct kernels *kernels, const struct kernels_silu_mul *args)
{
    dtype_check(kernels, args->dtype);
    if (args->rows != 0) { kernels->ops->silu_mul(kernels, args); }
}

void kernels_gemm_silu(struct kernels *kernels, const struct kernels_gemm_silu *args)
{
    const struct kernels_gemm *gate = &args->gate, *up = &args->up;
    CHECK(gate->rows == up->rows);
    CHECK(gate->x == up->x);
    CHECK(gate->x_stride == up->x_stride);
    CHECK(gate->weight->n_in == up->weight->n_in);
    CHECK(gate->weight->n_out == up->weight->n_out);
    CHECK(!gate->accumulate);
    CHECK(!up->accumulate);
    CHECK(args->silu.rows == gate->rows);
    CHECK(args->silu.dim == gate->weight->n_out);
    CHECK(args->silu.gate == gate->out);
    CHECK(args->silu.up == up->out);
    gemm_check(kernels, gate);
    gemm_check(kernels, up);
    dtype_check(kernels, args->silu.dtype);
    if (gate->rows == 0 || (kernels->ops->gemm_silu != NULL && kernels->ops->gemm_silu(kernels, args))) { return; }
    const struct kernels_gemm gemms[2] = {*gate, *up};
    kernels->ops->gemm(kernels, gemms, 2);
    kernels->ops->silu_mul(kernels, &args->silu);
}

void kernels_mul(struct kernels *kernels, const struct kernels_mul *args)
{
    dtype_check(kernels, args->dtype);
    if (args->rows != 0) { kernels->ops->mul(kernels, args); }
}

void kernels_gelu(struct kernels *kernels, const struct kernels_gelu *args)
{
    CHECK(args->form == KERNELS_GELU_ERF || args->form == KERNELS_GELU_TANH);
    dtype_check(kernels, args->dtype);
    if (args->rows != 0) { kernels->ops->gelu(kernels, args); }
}

void kernels_gather_rows(struct kernels *kernels, const struct kernels_gather_rows *args)
{
    dtype_or_f32_check(kernels, args->dtype);
    for (uint32_t r = 0; r < args->rows; r++) { CHECK(args->from[r] < args->x_rows); }
    if (args->rows != 0) { kernels->ops->gather_rows(kernels, args); }
}

static void kv_check(const struct kernels *kernels, const struct kernels_kv *kv)
{
    CHECK(kv->layout.order == kernels->kv_order || kernels->takes_any_order);
    CHECK((unsigned)kv->layout.dtype < DTYPE_KV_COUNT);
    CHECK(kv->layout.block_tokens != 0);
    CHECK(kv->layout.block_tokens % 16 == 0);
    CHECK(kv->layout.head_dim != 0);
    CHECK(kv->layout.head_dim % 2 == 0);
    CHECK(kv->layout.head_dim <= KERNELS_HEAD_DIM_MAX);
    CHECK(kv->layout.kv_heads != 0);
    CHECK(kv->layer < kv->layout.layer_count);
    CHECK((uintptr_t)kv->pool % sizeof(uint32_t) == 0);
}

static void kv_write_check(const struct kernels *kernels, const struct kernels_kv_write *args)
{
    kv_check(kernels, &args->kv);
    dtype_check(kernels, args->dtype);
    for (uint32_t r = 0; r < args->rows; r++) {
        if (args->slots[r].block == KERNELS_SLOT_NONE) { continue; }
        CHECK(args->slots[r].block < args->kv.block_count);
        CHECK(args->slots[r].slot < args->kv.layout.block_tokens);
    }
}

void kernels_kv_write(struct kernels *kernels, const struct kernels_kv_write *args)
{
    kv_write_check(kernels, args);
    if (args->rows != 0) { kernels->ops->kv_write(kernels, args); }
}

void kernels_rope_kv(struct kernels *kernels, const struct kernels_rope_kv *args)
{
    rope_check(kernels, &args->k);
    rope_check(kernels, &args->q);
    kv_write_check(kernels, &args->write);
    CHECK(args->write.k == args->k.x);
    const uint32_t rows = args->write.rows;
    CHECK(args->k.rows == rows);
    CHECK(args->q.rows == rows || args->q.rows == 0);
    if (rows == 0) { return; }
    CHECK(args->q.rotary_dim == args->k.rotary_dim);
    if (kernels->ops->rope_kv != NULL && (args->q.norm == NULL || args->q.norm_dtype == args->k.norm_dtype)) {
        kernels->ops->rope_kv(kernels, args);
        return;
    }
    rope_run(kernels, &args->k);
    kernels->ops->kv_write(kernels, &args->write);
    rope_run(kernels, &args->q);
}

void kernels_copy_block(struct kernels *kernels, const struct kernels_copy_block *args)
{
    CHECK(args->from < args->block_count);
    CHECK(args->to < args->block_count);
    CHECK(args->from != args->to);
    kernels->ops->copy_block(kernels, args);
}

void kernels_attention(struct kernels *kernels, const struct kernels_attention *args)
{
    kv_check(kernels, &args->kv);
    dtype_check(kernels, args->dtype);
    CHECK(args->q_heads != 0);
    CHECK(args->q_heads % args->kv.layout.kv_heads == 0);
    for (uint32_t s = 0; s < args->sequence_count; s++) {
        const struct kernels_attention_sequence *seq = &args->sequences[s];
        uint32_t end = seq->position_first + seq->row_count;
        CHECK(end >= seq->position_first);
        uint32_t start = args->window == 0 || seq->position_first < args->window ? 0 : seq->position_first - args->window + 1;
        if (seq->row_count == 0) { continue; }
        CHECK(kernels->uses_host_memory || seq->row_count <= args->row_count_max);
        CHECK(kernels->uses_host_memory || seq->row_first + seq->row_count <= args->rows);
        CHECK(kernels->uses_host_memory || end <= args->context_max);
        for (uint32_t b = start / args->kv.layout.block_tokens; b < kv_layout_blocks_for(&args->kv.layout, end); b++) {
            CHECK(seq->blocks[b] < args->kv.block_count);
        }
    }
    if (args->sequence_count != 0) { kernels->ops->attention(kernels, args); }
}

void kernels_sample(struct kernels *kernels, const struct kernels_sample *args)
{
    CHECK(kernels_can_sample(kernels));
    CHECK(args->vocab >= 1);
    for (uint32_t r = 0; r < args->rows; r++) {
        for (uint32_t i = 0; i < args->params[r].adjust_count; i++) {
            CHECK(args->adjusts[args->params[r].adjust_first + i].token < args->vocab);
        }
    }
    if (args->rows != 0) { kernels->ops->sample(kernels, args); }
}
