/* kernels: the facade: picks the backend and checks what callers hand over.
 * Flow:    model forward -> [kernels] -> a backend's table
 * Thread:  as kernels.h.
 * Memory:  none of its own. */
#include "kernels/kernels.h"

#include <string.h>

#include "base/check.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/ref/ref.h"

status_t kernels_create(const struct kernels_config *config, struct kernels **ret_kernels, struct diag *diag)
{
    if (config->threads == 0 || config->threads > KERNELS_THREADS_MAX) {
        diag_set(diag, "--threads=%u is out of range: 1 .. %u", config->threads, KERNELS_THREADS_MAX);
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

status_t kernels_sync(struct kernels *kernels) { return kernels->ops->sync(kernels); }

static void matrix_check(const struct kernels_matrix *matrix)
{
    CHECK((unsigned)matrix->format < KERNELS_WEIGHT_COUNT);
    CHECK(matrix->n_out >= 1);
    CHECK(matrix->n_in >= 1);
    CHECK((uintptr_t)matrix->data % 64 == 0);
}

void kernels_gemm(struct kernels *kernels, const struct kernels_gemm *gemms, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct kernels_gemm *g = &gemms[i];
        matrix_check(g->weight);
        CHECK(g->weight->n_in <= KERNELS_GEMM_IN_MAX);
        CHECK(g->x_stride >= g->weight->n_in || g->rows <= 1);
        CHECK(g->out_stride >= g->weight->n_out || g->rows <= 1);
        CHECK(g->bias == NULL || (unsigned)g->bias_dtype < DTYPE_COUNT);
    }
    if (count != 0) { kernels->ops->gemm(kernels, gemms, count); }
}

void kernels_rmsnorm(struct kernels *kernels, const struct kernels_rmsnorm *args)
{
    CHECK(args->dim >= 1);
    CHECK(args->heads >= 1);
    CHECK((unsigned)args->weight_dtype < DTYPE_COUNT);
    if (args->rows != 0) { kernels->ops->rmsnorm(kernels, args); }
}

void kernels_layernorm(struct kernels *kernels, const struct kernels_layernorm *args)
{
    CHECK(args->dim >= 1);
    CHECK((unsigned)args->dtype < DTYPE_COUNT);
    if (args->rows != 0) { kernels->ops->layernorm(kernels, args); }
}

void kernels_rope(struct kernels *kernels, const struct kernels_rope *args)
{
    CHECK(args->rotary_dim % 2 == 0);
    CHECK(args->rotary_dim <= args->head_dim);
    for (uint32_t r = 0; r < args->rows; r++) { CHECK(args->positions[r] < args->position_count); }
    if (args->rows != 0 && args->rotary_dim != 0) { kernels->ops->rope(kernels, args); }
}

void kernels_embed(struct kernels *kernels, const struct kernels_embed *args)
{
    matrix_check(args->table);
    for (uint32_t r = 0; r < args->rows; r++) {
        CHECK(args->ids[r] < args->table->n_out);
        CHECK(args->position_table == NULL || args->positions[r] < args->position_count);
    }
    if (args->rows != 0) { kernels->ops->embed(kernels, args); }
}

void kernels_silu_mul(struct kernels *kernels, uint32_t rows, uint32_t dim, const float *gate, size_t gate_stride,
                      const float *up, size_t up_stride, float *out, size_t out_stride)
{
    if (rows != 0) { kernels->ops->silu_mul(kernels, rows, dim, gate, gate_stride, up, up_stride, out, out_stride); }
}

void kernels_gelu(struct kernels *kernels, enum kernels_gelu_form form, uint32_t rows, uint32_t dim, const float *x,
                  size_t x_stride, float *out, size_t out_stride)
{
    CHECK(form == KERNELS_GELU_ERF || form == KERNELS_GELU_TANH);
    if (rows != 0) { kernels->ops->gelu(kernels, form, rows, dim, x, x_stride, out, out_stride); }
}

void kernels_add(struct kernels *kernels, uint32_t rows, uint32_t dim, const float *a, size_t a_stride,
                 const float *b, size_t b_stride, float *out, size_t out_stride)
{
    if (rows != 0) { kernels->ops->add(kernels, rows, dim, a, a_stride, b, b_stride, out, out_stride); }
}

void kernels_scale(struct kernels *kernels, uint32_t rows, uint32_t dim, float factor, float *x, size_t x_stride)
{
    if (rows != 0) { kernels->ops->scale(kernels, rows, dim, factor, x, x_stride); }
}

static void kv_check(const struct kernels_kv *kv)
{
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

void kernels_kv_write(struct kernels *kernels, const struct kernels_kv_write *args)
{
    kv_check(&args->kv);
    for (uint32_t r = 0; r < args->rows; r++) {
        CHECK(args->slots[r].block < args->kv.block_count);
        CHECK(args->slots[r].slot < args->kv.layout.block_tokens);
    }
    if (args->rows != 0) { kernels->ops->kv_write(kernels, args); }
}

void kernels_attention(struct kernels *kernels, const struct kernels_attention *args)
{
    kv_check(&args->kv);
    CHECK(args->q_heads != 0);
    CHECK(args->q_heads % args->kv.layout.kv_heads == 0);
    for (uint32_t s = 0; s < args->sequence_count; s++) {
        const struct kernels_attention_sequence *seq = &args->sequences[s];
        uint32_t end = seq->position_first + seq->row_count;
        CHECK(end >= seq->position_first);
        uint32_t start = args->window == 0 || seq->position_first < args->window ? 0 : seq->position_first - args->window + 1;
        if (seq->row_count == 0) { continue; }
        for (uint32_t b = start / args->kv.layout.block_tokens; b < kv_layout_blocks_for(&args->kv.layout, end); b++) {
            CHECK(seq->blocks[b] < args->kv.block_count);
        }
    }
    if (args->sequence_count != 0) { kernels->ops->attention(kernels, args); }
}

void kernels_logit_stats(struct kernels *kernels, uint32_t rows, uint32_t vocab, const float *logits, size_t stride,
                         struct kernels_logit_stats *ret_stats)
{
    CHECK(vocab >= 1);
    if (rows != 0) { kernels->ops->logit_stats(kernels, rows, vocab, logits, stride, ret_stats); }
}
