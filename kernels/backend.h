/* backend: what a device brings to stand behind kernels.h.
 * Flow:    kernels.c (checks arguments) -> [backend] -> ref/, cpu/, later cuda/
 * Thread:  as kernels.h.
 * Memory:  a backend allocates its own handle, with struct kernels as the first member. */
#ifndef BATON_KERNELS_BACKEND_H
#define BATON_KERNELS_BACKEND_H

#include "kernels/kernels.h"

/* Arguments arrive checked; rows are never 0. One entry per operation of kernels.h. */
struct kernels_backend {
    void (*destroy)(struct kernels *kernels);
    status_t (*buffer_alloc)(struct kernels *kernels, size_t bytes, void **ret_buffer, struct diag *diag);
    void (*buffer_free)(struct kernels *kernels, void *buffer, size_t bytes);
    void (*upload)(struct kernels *kernels, void *buffer, const void *host, size_t bytes);
    void (*download)(struct kernels *kernels, void *host, const void *buffer, size_t bytes);
    status_t (*sync)(struct kernels *kernels);

    void (*gemm)(struct kernels *kernels, const struct kernels_gemm *gemms, uint32_t count);
    void (*rmsnorm)(struct kernels *kernels, const struct kernels_rmsnorm *args);
    void (*layernorm)(struct kernels *kernels, const struct kernels_layernorm *args);
    void (*rope)(struct kernels *kernels, const struct kernels_rope *args);
    void (*embed)(struct kernels *kernels, const struct kernels_embed *args);
    void (*silu_mul)(struct kernels *kernels, uint32_t rows, uint32_t dim, const float *gate, size_t gate_stride,
                     const float *up, size_t up_stride, float *out, size_t out_stride);
    void (*gelu)(struct kernels *kernels, enum kernels_gelu_form form, uint32_t rows, uint32_t dim, const float *x,
                 size_t x_stride, float *out, size_t out_stride);
    void (*add)(struct kernels *kernels, uint32_t rows, uint32_t dim, const float *a, size_t a_stride,
                const float *b, size_t b_stride, float *out, size_t out_stride);
    void (*scale)(struct kernels *kernels, uint32_t rows, uint32_t dim, float factor, float *x, size_t x_stride);
    void (*kv_write)(struct kernels *kernels, const struct kernels_kv_write *args);
    void (*attention)(struct kernels *kernels, const struct kernels_attention *args);
    void (*logit_stats)(struct kernels *kernels, uint32_t rows, uint32_t vocab, const float *logits,
                        size_t stride, struct kernels_logit_stats *ret_stats);
};

struct kernels {
    const struct kernels_backend *ops;
    const char *set_name;
    const char *isa_name;
    uint32_t threads;
    bool uses_host_memory;
};

/* Buffers of any backend that works in host memory. */
status_t kernels_host_buffer_alloc(struct kernels *kernels, size_t bytes, void **ret_buffer, struct diag *diag);
void kernels_host_buffer_free(struct kernels *kernels, void *buffer, size_t bytes);
void kernels_host_copy(struct kernels *kernels, void *to, const void *from, size_t bytes);
status_t kernels_host_sync(struct kernels *kernels);

#endif
