/* backend: what a device brings to stand behind kernels.h.
 * Flow:    kernels.c (checks arguments) -> [backend] -> ref/, cpu/, cuda/
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
    status_t (*pinned_alloc)(struct kernels *kernels, size_t bytes, void **ret_host, struct diag *diag);
    void (*pinned_free)(struct kernels *kernels, void *host, size_t bytes);
    status_t (*sync)(struct kernels *kernels);
    status_t (*exchange_alloc)(struct kernels *kernels, size_t bytes, void **ret_host, struct diag *diag);
    void (*exchange_free)(struct kernels *kernels, void *host, size_t bytes);
    void (*exchange_send)(struct kernels *kernels, const void *first, size_t bytes);
    uint64_t (*mark)(struct kernels *kernels);
    status_t (*wait)(struct kernels *kernels, uint64_t mark);
    bool (*graph_begin)(struct kernels *kernels, uint64_t key);
    void (*graph_end)(struct kernels *kernels);

    void (*gemm)(struct kernels *kernels, const struct kernels_gemm *gemms, uint32_t count);
    void (*rmsnorm)(struct kernels *kernels, const struct kernels_rmsnorm *args);
    void (*layernorm)(struct kernels *kernels, const struct kernels_layernorm *args);
    void (*rope)(struct kernels *kernels, const struct kernels_rope *args); /* the norm is done where norm_in_rope is false */
    void (*embed)(struct kernels *kernels, const struct kernels_embed *args);
    void (*silu_mul)(struct kernels *kernels, const struct kernels_silu_mul *args);
    bool (*gemm_silu)(struct kernels *kernels, const struct kernels_gemm_silu *args); /* NULL, or false: nothing was queued, its two parts are called */
    void (*mul)(struct kernels *kernels, const struct kernels_mul *args);
    void (*gelu)(struct kernels *kernels, const struct kernels_gelu *args);
    void (*gather_rows)(struct kernels *kernels, const struct kernels_gather_rows *args);
    void (*kv_write)(struct kernels *kernels, const struct kernels_kv_write *args);
    void (*rope_kv)(struct kernels *kernels, const struct kernels_rope_kv *args); /* NULL: its three parts are called. Else with q and k norms of one dtype, or none; q.rows may be 0 */
    void (*copy_block)(struct kernels *kernels, const struct kernels_copy_block *args);
    void (*attention)(struct kernels *kernels, const struct kernels_attention *args);
    void (*sample)(struct kernels *kernels, const struct kernels_sample *args); /* NULL: cannot */
};

struct kernels {
    const struct kernels_backend *ops;
    const char *set_name;
    const char *isa_name;
    uint32_t threads;
    bool uses_host_memory;
    bool has_graphs;
    bool takes_any_order; /* of weights and of KV: the oracle */
    bool norm_in_rope; /* its rope takes a norm; else kernels.c calls rmsnorm first */
    enum dtype activations;
    enum kernels_order weight_order;
    enum kv_order kv_order;
};

/* What backends that work in host memory have in common: an operation has finished when it returns. */
status_t kernels_host_buffer_alloc(struct kernels *kernels, size_t bytes, void **ret_buffer, struct diag *diag);
void kernels_host_buffer_free(struct kernels *kernels, void *buffer, size_t bytes);
void kernels_host_copy(struct kernels *kernels, void *to, const void *from, size_t bytes);
status_t kernels_host_sync(struct kernels *kernels);
void kernels_host_exchange_send(struct kernels *kernels, const void *first, size_t bytes);
uint64_t kernels_host_mark(struct kernels *kernels);
status_t kernels_host_wait(struct kernels *kernels, uint64_t mark);
bool kernels_host_graph_begin(struct kernels *kernels, uint64_t key);
void kernels_host_graph_end(struct kernels *kernels);
void kernels_host_copy_block(struct kernels *kernels, const struct kernels_copy_block *args);

#define KERNELS_HOST_OPERATIONS                                                                              \
    .buffer_alloc = kernels_host_buffer_alloc, .buffer_free = kernels_host_buffer_free,                      \
    .upload = kernels_host_copy, .download = kernels_host_copy, .pinned_alloc = kernels_host_buffer_alloc,   \
    .pinned_free = kernels_host_buffer_free, .sync = kernels_host_sync,                                      \
    .exchange_alloc = kernels_host_buffer_alloc, .exchange_free = kernels_host_buffer_free,                  \
    .exchange_send = kernels_host_exchange_send, .mark = kernels_host_mark, .wait = kernels_host_wait,       \
    .graph_begin = kernels_host_graph_begin, .graph_end = kernels_host_graph_end,                            \
    .copy_block = kernels_host_copy_block

#endif
