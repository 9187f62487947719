/* cuda_handle: the struct kernels of a CUDA device; for the files of the backend alone.
 * Flow:    cuda_backend (life, memory, order) and cuda_ops (operations) share it; device_memory reads it
 * Thread:  as kernels.h; driver and marks may be used from any.
 * Memory:  one struct and what its parts say. */
#ifndef BATON_KERNELS_CUDA_CUDA_HANDLE_H
#define BATON_KERNELS_CUDA_CUDA_HANDLE_H

#include "kernels/backend.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/cuda_exchange.h"
#include "kernels/cuda/cuda_gemm_plan.h"
#include "kernels/cuda/cuda_graphs.h"
#include "kernels/cuda/cuda_marks.h"
#include "kernels/cuda/cuda_queue.h"
#include "kernels/cuda/cuda_scratch.h"

#define CUDA_STAGING_BYTES ((size_t)4 << 20)

/* Memory of kernels_pinned_alloc(). */
struct cuda_pinned {
    uint8_t *host;
    size_t bytes;
};

struct cuda_handle {
    struct kernels base; /* first: the operations cast back */
    const struct cuda_driver *driver;
    struct cuda_queue queue;
    struct cuda_marks *marks;
    struct cuda_graphs graphs;
    struct cuda_exchange exchange;
    struct cuda_gemm_plans *gemms;
    struct cuda_attention_device attention;
    struct cuda_scratch attention_pieces, attention_arrivals, sample_workspace;
    uint32_t sample_rows, sample_vocab; /* that the workspace is for */
    uint8_t *staging;                   /* pinned: for memory that is not */
    struct cuda_pinned *pinned;
    uint32_t pinned_count, pinned_capacity;
    char set_name[64], isa_name[160];
};

static inline struct cuda_handle *cuda_handle(struct kernels *kernels) { return (struct cuda_handle *)kernels; }

/* The entries of struct kernels_backend that are operations, in cuda_ops.c. */
void cuda_op_gemm(struct kernels *kernels, const struct kernels_gemm *gemms, uint32_t count);
void cuda_op_rmsnorm(struct kernels *kernels, const struct kernels_rmsnorm *args);
void cuda_op_layernorm(struct kernels *kernels, const struct kernels_layernorm *args);
void cuda_op_rope(struct kernels *kernels, const struct kernels_rope *args);
void cuda_op_embed(struct kernels *kernels, const struct kernels_embed *args);
void cuda_op_silu_mul(struct kernels *kernels, const struct kernels_silu_mul *args);
bool cuda_op_gemm_silu(struct kernels *kernels, const struct kernels_gemm_silu *args);
void cuda_op_mul(struct kernels *kernels, const struct kernels_mul *args);
void cuda_op_gelu(struct kernels *kernels, const struct kernels_gelu *args);
void cuda_op_gather_rows(struct kernels *kernels, const struct kernels_gather_rows *args);
void cuda_op_kv_write(struct kernels *kernels, const struct kernels_kv_write *args);
void cuda_op_rope_kv(struct kernels *kernels, const struct kernels_rope_kv *args);
void cuda_op_copy_block(struct kernels *kernels, const struct kernels_copy_block *args);
void cuda_op_attention(struct kernels *kernels, const struct kernels_attention *args);
void cuda_op_sample(struct kernels *kernels, const struct kernels_sample *args);

#endif
