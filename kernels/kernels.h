/* kernels: the arithmetic of a forward pass, behind one opaque handle per device.
 * Flow:    model forward -> [kernels] -> kernels/cpu (by instruction set), kernels/ref (oracle)
 * Thread:  one caller at a time per handle (the engine thread); the handle owns its workers.
 * Memory:  all of it is taken in kernels_create; no operation allocates afterwards.
 *
 * Exactness. Every output element is reduced in one order that depends on the shape of its own
 * row and the kernel set alone. A row's bits are the same alone or among others, for any row
 * count, wherever a prompt was cut into chunks, and for any thread count. Two nodes may exchange
 * KV blocks only if kernels_set_name() is equal on both.
 *
 * Values. Activations are f32. Weight matrices are packed (matrix.h); vectors and position tables
 * are bf16, f16 or f32 where they lie, aligned to their element. Strides count elements, from the start
 * of one row to the start of the next; a stride may exceed the row, so that q, k and v may be
 * three column ranges of one buffer. Outputs never overlap inputs unless the comment says so.
 *
 * Errors. Shapes and pointers come from our own model code: a wrong one is a CHECK. Operations
 * return nothing; a device that fails keeps its first error, and kernels_sync() returns it. On
 * the CPU every operation has finished when it returns and kernels_sync() is always OK; a device
 * with a queue finishes them in order, and pointers are held until kernels_sync(). */
#ifndef BATON_KERNELS_KERNELS_H
#define BATON_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/dtype.h"
#include "base/status.h"
#include "kernels/matrix.h"
#include "kv/kv_layout.h"

#define KERNELS_THREADS_MAX 256u
#define KERNELS_HEAD_DIM_MAX 256u
#define KERNELS_GEMM_IN_MAX 131072u /* n_in: bounds the scratch of a thread */

struct kernels; /* private to kernels/ */

/* What the products do with activations where weights are bf16. */
enum kernels_compute {
    KERNELS_COMPUTE_F32 = 0,  /* kept f32 */
    KERNELS_COMPUTE_BF16 = 1, /* rounded to bf16, as most servers do: an element errs by up to 2^-8 of its
                               * sum of |x w|, and the machine's bf16 units multiply 2 to 16 times faster */
};

struct kernels_config {
    const char *isa;  /* "auto" (NULL is the same), "scalar", "avx2", "avx512", "avx512bf16", "amx", or "ref",
                       * the slow oracle in plain C; "auto" is the best of this machine that `compute` allows.
                       * A named one is taken whatever `compute` says */
    uint32_t threads; /* the caller's included; 1 .. KERNELS_THREADS_MAX */
    enum kernels_compute compute;
};

/* Returns owned, in *ret_kernels, the kernels of this machine's CPU. Starts threads - 1 workers.
 * Errors   INVALID_ARGUMENT (node): an unknown isa or a thread count out of range;
 *          FAILED_PRECONDITION (node): this machine lacks the isa; diag names those it has;
 *          RESOURCE_EXHAUSTED (node): no memory or no thread. */
NODISCARD status_t kernels_create(const struct kernels_config *config, struct kernels **ret_kernels,
                                  struct diag *diag);

/* Takes NULL. Stops the workers. */
void kernels_destroy(struct kernels *kernels);

/* Which order of arithmetic this is, for the layout fingerprint, e.g. "cpu-fma16-v2". Equal names
 * mean equal bits: avx2 and avx512 share one, because they do the same operations in the same
 * order (a test holds them to it). Static text. */
const char *kernels_set_name(const struct kernels *kernels);

/* The instruction set in use, e.g. "avx512"; for logs. Static text. */
const char *kernels_isa_name(const struct kernels *kernels);

uint32_t kernels_threads(const struct kernels *kernels);

/* Writes the instruction sets that this machine runs, best first, e.g. "avx512bf16 avx512 avx2
 * scalar ref". Static text, made once. */
const char *kernels_isa_available(void);

/* ---- memory ------------------------------------------------------------------------------- */

/* Memory that the operations may read and write: on the CPU zeroed, 64-byte aligned, anonymous,
 * asking for 2 MiB pages where it is 2 MiB or more.
 * Returns owned; free with the same `bytes`.
 * Errors   RESOURCE_EXHAUSTED (node). */
NODISCARD status_t kernels_buffer_alloc(struct kernels *kernels, size_t bytes, void **ret_buffer,
                                        struct diag *diag);
/* Takes NULL. */
void kernels_buffer_free(struct kernels *kernels, void *buffer, size_t bytes);

/* True where the operations read host memory as it is: then a mapped weight file needs no copy,
 * and buffers may be read and written by the host. False for a device with its own memory: then
 * kernels_upload and kernels_download move bytes, in order with the operations. */
bool kernels_uses_host_memory(const struct kernels *kernels);
void kernels_upload(struct kernels *kernels, void *buffer, const void *host, size_t bytes);
void kernels_download(struct kernels *kernels, void *host, const void *buffer, size_t bytes);

/* Waits for all operations so far.
 * Errors   INTERNAL (node): the device failed; nothing computed since the last sync is valid. */
NODISCARD status_t kernels_sync(struct kernels *kernels);

/* ---- matrix product ----------------------------------------------------------------------- */

/* out[rows][n_out] = x[rows][n_in] * weight[n_out][n_in]^T (+ bias[n_out]) (+ out before)
 * The sum over n_in is formed first, then the bias is added, then the old value of out.
 * Bytes  kernels_matrix_bytes(weight) read at a few rows; the bench divides by this. */
struct kernels_gemm {
    uint32_t rows;  /* 0: nothing happens */
    const struct kernels_matrix *weight; /* n_in 1 .. KERNELS_GEMM_IN_MAX; data 64-byte aligned */
    const float *x;
    size_t x_stride; /* >= n_in */
    const void *bias; /* [n_out]; NULL: none */
    enum dtype bias_dtype;
    float *out;
    size_t out_stride; /* >= n_out */
    bool accumulate;   /* add to what out holds: the residual stream */
};

/* Computes `count` products that do not need each other (q, k and v; gate and up), as one piece
 * of parallel work, so that threads meet once. Borrows. */
void kernels_gemm(struct kernels *kernels, const struct kernels_gemm *gemms, uint32_t count);

/* ---- norms, positions, elementwise; all per row -------------------------------------------- */

/* out = x / sqrt(mean(x^2) + eps) * weight. out may be x.
 * A row here is `dim` values; for the q and k norms of Qwen3 see `heads`. */
struct kernels_rmsnorm {
    uint32_t rows;
    uint32_t heads; /* each row holds this many vectors of dim, side by side, normed alone; 1 else */
    uint32_t dim;
    const float *x;
    size_t x_stride; /* >= heads * dim */
    const void *weight; /* [dim] */
    enum dtype weight_dtype;
    float eps;
    float *out;
    size_t out_stride;
};
void kernels_rmsnorm(struct kernels *kernels, const struct kernels_rmsnorm *args);

/* out = (x - mean) / sqrt(var + eps) * weight + bias, var by the two-pass formula over dim.
 * out may be x. */
struct kernels_layernorm {
    uint32_t rows;
    uint32_t dim;
    const float *x;
    size_t x_stride;
    const void *weight; /* [dim] */
    const void *bias;   /* [dim], or NULL */
    enum dtype dtype;   /* of weight and bias */
    float eps;
    float *out;
    size_t out_stride;
};
void kernels_layernorm(struct kernels *kernels, const struct kernels_layernorm *args);

/* Rotates heads in place, in the half-split layout of Hugging Face: with h = rotary_dim / 2 and
 * i < h, (x[i], x[i+h]) becomes (x[i]*c - x[i+h]*s, x[i+h]*c + x[i]*s). Values past rotary_dim
 * stay. The tables hold every scaling (linear, llama3): the model makes them. */
struct kernels_rope {
    uint32_t rows;
    uint32_t heads;
    uint32_t head_dim;
    uint32_t rotary_dim; /* even, <= head_dim */
    float *x;            /* [rows][heads][head_dim] */
    size_t x_stride;
    const float *cos; /* [position][rotary_dim / 2] */
    const float *sin;
    const uint32_t *positions; /* [rows] */
    uint32_t position_count;   /* rows of the tables; every position is below it */
};
void kernels_rope(struct kernels *kernels, const struct kernels_rope *args);

/* out[row] = table[ids[row]] (+ position_table[positions[row]]), as f32. */
struct kernels_embed {
    uint32_t rows;
    const struct kernels_matrix *table; /* an output for each id: the head itself where it is tied */
    const uint32_t *ids;                /* [rows], each below table->n_out */
    const void *position_table; /* [position_count][n_in]: learned positions; NULL: none */
    uint32_t position_count;
    enum dtype position_dtype;
    const uint32_t *positions; /* [rows]; read with a position_table only */
    float *out;
    size_t out_stride;
};
void kernels_embed(struct kernels *kernels, const struct kernels_embed *args);

/* out = gate * sigmoid(gate) * up. out may be gate or up. */
void kernels_silu_mul(struct kernels *kernels, uint32_t rows, uint32_t dim, const float *gate,
                      size_t gate_stride, const float *up, size_t up_stride, float *out, size_t out_stride);

enum kernels_gelu_form {
    KERNELS_GELU_ERF,  /* "gelu": x/2 * (1 + erf(x / sqrt 2)) */
    KERNELS_GELU_TANH, /* "gelu_new", "gelu_pytorch_tanh": x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) */
};
/* out may be x. */
void kernels_gelu(struct kernels *kernels, enum kernels_gelu_form form, uint32_t rows, uint32_t dim,
                  const float *x, size_t x_stride, float *out, size_t out_stride);

/* out = a + b. out may be a or b. */
void kernels_add(struct kernels *kernels, uint32_t rows, uint32_t dim, const float *a, size_t a_stride,
                 const float *b, size_t b_stride, float *out, size_t out_stride);

/* x = x * factor, in place. */
void kernels_scale(struct kernels *kernels, uint32_t rows, uint32_t dim, float factor, float *x,
                   size_t x_stride);

/* ---- paged KV ----------------------------------------------------------------------------- */

/* One layer of the pool of KV blocks. */
struct kernels_kv {
    void *pool; /* block 0; block b lies at b * kv_layout_block_bytes() */
    struct kv_layout layout; /* block_tokens a multiple of 16; head_dim even, <= KERNELS_HEAD_DIM_MAX */
    uint32_t block_count;    /* of the pool; every index is below it */
    uint32_t layer;
};

struct kernels_kv_slot {
    uint32_t block;
    uint32_t slot; /* < block_tokens */
};

/* Stores rows of k and v (k after rope) at their slots, rounded to the layout's dtype, nearest
 * even, in the order and with the scales of kv_layout.h; past the range of f16 becomes infinity. Every
 * backend and set stores the same bytes (but for which NaN). No two rows name one slot. */
struct kernels_kv_write {
    struct kernels_kv kv;
    uint32_t rows;
    const float *k; /* [rows][kv_heads][head_dim] */
    size_t k_stride;
    const float *v;
    size_t v_stride;
    const struct kernels_kv_slot *slots; /* [rows] */
};
void kernels_kv_write(struct kernels *kernels, const struct kernels_kv_write *args);

/* The rows of one sequence in this call: row r is the query at position position_first + r. */
struct kernels_attention_sequence {
    uint32_t row_first; /* its first row in q and out */
    uint32_t row_count; /* 1 in decode, the chunk in prefill; 0 is skipped */
    uint32_t position_first;
    const uint32_t *blocks; /* [blocks of position_first + row_count tokens]; entries that lie wholly
                             * before the window of every row are not read and may be stale */
};

/* Causal attention of every row over its own sequence, K and V of its own position included:
 * kernels_kv_write comes first. One kernel for prefill and decode: each query row walks steps of
 * 64 tokens with an online softmax and segments of 512 tokens that are joined in order, both counted from
 * position 0, so a row's bits depend on its position, its sequence's KV and its q alone. The segments of a
 * long context are shared out over the threads.
 * With a window, a table may be a ring: block i at physical block i mod R, where R blocks hold the
 * window, the rows of the call and one block more.
 * Bytes   kv_layout_block_bytes() / layer_count / block_tokens per token of context, read once per tile of query rows.
 * Source  FlashAttention, arXiv 2205.14135, Algorithm 1; paging: arXiv 2309.06180; the split over the context:
 *         "Flash-Decoding for long-context inference", Dao et al. 2023. */
struct kernels_attention {
    struct kernels_kv kv;
    uint32_t q_heads; /* a multiple of kv_heads */
    float scale;      /* of q.k; 1/sqrt(head_dim) as a rule */
    uint32_t window;  /* the row at p sees positions p-window+1 .. p; 0: all up to p */
    const float *q;   /* [rows][q_heads][head_dim], after rope */
    size_t q_stride;
    float *out; /* [rows][q_heads][head_dim] */
    size_t out_stride;
    const struct kernels_attention_sequence *sequences;
    uint32_t sequence_count;
};
void kernels_attention(struct kernels *kernels, const struct kernels_attention *args);

/* ---- logits ------------------------------------------------------------------------------- */

struct kernels_logit_stats {
    float max;       /* NaN values are passed over; -inf where there is nothing else */
    uint32_t argmax; /* the lowest index among equals */
    float sum_exp;   /* of exp(x - max): log-sum-exp is max + log(sum_exp) */
};

/* ret_stats  [rows], host memory, valid on return on every device. */
void kernels_logit_stats(struct kernels *kernels, uint32_t rows, uint32_t vocab, const float *logits,
                         size_t stride, struct kernels_logit_stats *ret_stats);

#endif
