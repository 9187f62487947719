/* kernels: the arithmetic of a forward pass, behind one opaque handle per device.
 * Flow:    model forward -> [kernels] -> kernels/cpu (by instruction set), kernels/cuda, kernels/ref (oracle)
 * Thread:  one caller at a time per handle (the engine thread); the handle owns its workers.
 * Memory:  all of it is taken in kernels_create; no operation allocates afterwards.
 *
 * Exactness. Every output element is reduced in one order that depends on the shape of its own
 * row and the kernel set alone. A row's bits are the same alone or among others, for any row
 * count, wherever a prompt was cut into chunks, and for any thread count. Two nodes may exchange
 * KV blocks only if kernels_set_name() is equal on both.
 *
 * Values. The residual stream and logits are f32. What lies between (normed rows, q, k, v, attended,
 * gate, up) is of kernels_activation_dtype(): f32 on the CPU, where every dtype field below must be
 * DTYPE_F32, which is zero. Weight matrices are in the order of the backend (matrix.h); vectors and position
 * tables are bf16, f16 or f32 where they lie, aligned to their element. Strides count elements, from the
 * start of one row to the start of the next; a stride may exceed the row, so that q, k and v may be
 * three column ranges of one buffer. Outputs never overlap inputs unless the comment says so.
 *
 * Memory that operations name. On a device with its own memory a pointer leads into a buffer of
 * kernels_buffer_alloc(), or, where the comment says "exchange", into an exchange region: small inputs
 * and results of a step. On the CPU any host memory serves.
 *
 * Errors. Shapes and pointers come from our own model code: a wrong one is a CHECK. Operations
 * return nothing; a device that fails keeps its first error, and kernels_sync() returns it. On
 * the CPU every operation has finished when it returns and kernels_sync() is always OK; a device
 * with a queue finishes them in order, and pointers are held until kernels_sync(); argument structs and the
 * matrices that they name are read during the call alone. */
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
    const char *backend; /* "cpu" (NULL is the same) or "cuda" */
    const char *isa;  /* of the CPU: "auto" (NULL is the same), "scalar", "avx2", "avx512", "avx512bf16", "amx", or "ref",
                       * the slow oracle in plain C; "auto" is the best of this machine that `compute` allows.
                       * A named one is taken whatever `compute` says */
    uint32_t threads; /* the caller's included; 1 .. KERNELS_THREADS_MAX */
    enum kernels_compute compute; /* CPU */

    uint32_t device;        /* cuda: which, counted from 0 */
    bool deterministic;     /* cuda: a row's bits are its own, as they always are on the CPU; else the order of
                             * sums may depend on the batch. Goes into kernels_set_name() */
    enum dtype activations; /* cpu: F32. cuda: F32, or BF16 or F16 where the weights are of that dtype */
};

/* Returns owned, in *ret_kernels, the kernels of this machine's CPU, with threads - 1 workers started, or of
 * one of its devices.
 * Errors   INVALID_ARGUMENT (node): an unknown backend or isa, a thread count out of range, or a dtype of
 *          activations that the backend does not compute in;
 *          FAILED_PRECONDITION (node): this machine lacks the isa, diag names those it has; or the device, the
 *          driver, or a backend in this build;
 *          RESOURCE_EXHAUSTED (node): no memory or no thread. */
NODISCARD status_t kernels_create(const struct kernels_config *config, struct kernels **ret_kernels,
                                  struct diag *diag);

/* Takes NULL. Stops the workers. */
void kernels_destroy(struct kernels *kernels);

/* Which order of arithmetic this is, for the layout fingerprint, e.g. "cpu-fma16-v2". Equal names
 * mean equal bits: avx2 and avx512 share one, because they do the same operations in the same
 * order (a test holds them to it). Static text. */
const char *kernels_set_name(const struct kernels *kernels);

/* The instruction set in use, e.g. "avx512" or "sm_90"; for logs. Static text. */
const char *kernels_isa_name(const struct kernels *kernels);

uint32_t kernels_threads(const struct kernels *kernels);

/* What operations read and write between the norms and the residual stream. */
enum dtype kernels_activation_dtype(const struct kernels *kernels);

/* The order of weights that products take; KERNELS_ORDER_ROWS wherever kernels_uses_host_memory() is false. */
enum kernels_order kernels_weight_order(const struct kernels *kernels);

/* Whether products take weights of this order: the one above, or any in the oracle. */
bool kernels_takes_weights(const struct kernels *kernels, enum kernels_order order);

/* The order of KV blocks that the fast kernels of this backend take; a pool's layout names it. */
enum kv_order kernels_kv_order(const struct kernels *kernels);

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

/* upload: `host` is read up to kernels_wait() for a later mark, or kernels_sync(): it must not change before.
 * download: `host` is written up to then. With memory of kernels_pinned_alloc() neither waits for the device. */
void kernels_upload(struct kernels *kernels, void *buffer, const void *host, size_t bytes);
void kernels_download(struct kernels *kernels, void *host, const void *buffer, size_t bytes);

/* Host memory from which a device copies at full speed while the host does something else; plain memory on
 * the CPU. 64-byte aligned. Not for operations: see the exchange.
 * Returns owned; free with the same `bytes`.
 * Errors   RESOURCE_EXHAUSTED (node). */
NODISCARD status_t kernels_pinned_alloc(struct kernels *kernels, size_t bytes, void **ret_host, struct diag *diag);
/* Takes NULL. */
void kernels_pinned_free(struct kernels *kernels, void *host, size_t bytes);

/* Waits for all operations so far.
 * Errors   INTERNAL (node): the device failed; nothing computed since the last sync is valid. */
NODISCARD status_t kernels_sync(struct kernels *kernels);

/* ---- the exchange: what the host tells and is told every step -------------------------------- */

#define KERNELS_EXCHANGES_MAX 4u /* regions of one handle at a time */

/* A region of host memory that operations may name where their comment says "exchange": ids, positions, row
 * numbers, slots, sequences and their block tables, sampling. A device has a mirror of it and translates
 * addresses, those inside the structs too. Zeroed, 64-byte aligned. Not while operations are in flight.
 * Returns owned; free with the same `bytes`.
 * Errors   RESOURCE_EXHAUSTED (node). */
NODISCARD status_t kernels_exchange_alloc(struct kernels *kernels, size_t bytes, void **ret_host, struct diag *diag);
/* Takes NULL. */
void kernels_exchange_free(struct kernels *kernels, void *host, size_t bytes);

/* What the host wrote to first .. first+bytes-1, inside one region, goes to the device, in order with the
 * operations. The host may not write there again before the next kernels_sync(). Nothing on the CPU. */
void kernels_exchange_send(struct kernels *kernels, const void *first, size_t bytes);

/* ---- marks and graphs ---------------------------------------------------------------------- */

/* A ticket for all operations so far, for whoever moves bytes that they write (kv_memory.h): 0 where they
 * have finished already, as always on the CPU; else it counts up. Not inside a graph. */
uint64_t kernels_mark(struct kernels *kernels);

/* Waits until the operations before a mark have finished; at once for 0.
 * Errors   as kernels_sync(). */
NODISCARD status_t kernels_wait(struct kernels *kernels, uint64_t mark);

/* Whether kernels_graph_begin() ever spares work: then it pays to fill a step up to one of a few sizes. */
bool kernels_has_graphs(const struct kernels *kernels);

/* A run of operations that comes again and again with the same arguments and other values behind them.
 * True: issue the operations, which run, and which a device records under `key`; then kernels_graph_end().
 * False: those recorded under this key have been queued as they were: issue none, and do not call end.
 * Therefore, on a device with graphs, what an operation does on the host depends on its arguments alone
 * and never on what they point at, and all that changes from run to run lies in the exchange. Between begin
 * and end there is no sync, wait, mark, send, upload, download or alloc. Always true on the CPU. */
bool kernels_graph_begin(struct kernels *kernels, uint64_t key);
void kernels_graph_end(struct kernels *kernels);

/* ---- matrix product ----------------------------------------------------------------------- */

/* out[rows][n_out] = x[rows][n_in] * weight[n_out][n_in]^T (+ bias[n_out]) (+ out before)
 * The sum over n_in is formed first, then the bias is added, then the old value of out.
 * Bytes  kernels_matrix_bytes(weight) read at a few rows; the bench divides by this. */
struct kernels_gemm {
    uint32_t rows;  /* 0: nothing happens */
    const struct kernels_matrix *weight; /* n_in 1 .. KERNELS_GEMM_IN_MAX; data 64-byte aligned */
    const void *x;
    enum dtype x_dtype;
    size_t x_stride; /* >= n_in */
    const void *bias; /* [n_out]; NULL: none */
    enum dtype bias_dtype;
    void *out;
    enum dtype out_dtype; /* the activations', or F32 */
    size_t out_stride; /* >= n_out */
    bool accumulate;   /* add to what out holds: the residual stream; F32 only */
};

/* Computes `count` products that do not need each other (q, k and v; gate and up), as one piece
 * of parallel work, so that threads meet once. Borrows.
 * A device makes one product of neighbours in the list whose weights (KERNELS_ORDER_ROWS), biases and output
 * columns each lie one right after the other, with equal dtypes, strides and x. */
void kernels_gemm(struct kernels *kernels, const struct kernels_gemm *gemms, uint32_t count);

/* ---- norms, positions, elementwise; all per row -------------------------------------------- */

/* out = x / sqrt(mean(x^2) + eps) * weight. out may be x.
 * A row here is `dim` values; for the q and k norms of Qwen3 see `heads`. */
struct kernels_rmsnorm {
    uint32_t rows;
    uint32_t heads; /* each row holds this many vectors of dim, side by side, normed alone; 1 else */
    uint32_t dim;
    const void *x;
    enum dtype x_dtype;
    size_t x_stride; /* >= heads * dim */
    const void *weight; /* [dim] */
    enum dtype weight_dtype;
    float eps;
    void *out;
    enum dtype out_dtype;
    size_t out_stride;
};
void kernels_rmsnorm(struct kernels *kernels, const struct kernels_rmsnorm *args);

/* out = (x - mean) / sqrt(var + eps) * weight + bias, var by the two-pass formula over dim.
 * out may be x. */
struct kernels_layernorm {
    uint32_t rows;
    uint32_t dim;
    const void *x;
    enum dtype x_dtype;
    size_t x_stride;
    const void *weight; /* [dim] */
    const void *bias;   /* [dim], or NULL */
    enum dtype dtype;   /* of weight and bias */
    float eps;
    void *out;
    enum dtype out_dtype;
    size_t out_stride;
};
void kernels_layernorm(struct kernels *kernels, const struct kernels_layernorm *args);

/* Rotates heads in place, in the half-split layout of Hugging Face: with h = rotary_dim / 2 and
 * i < h, (x[i], x[i+h]) becomes (x[i]*c - x[i+h]*s, x[i+h]*c + x[i]*s). Values past rotary_dim
 * stay. The tables hold every scaling (linear, llama3): the model makes them.
 * With a norm, each head is first replaced by kernels_rmsnorm() of it: the q and k norms of Qwen3. */
struct kernels_rope {
    uint32_t rows;
    uint32_t heads;
    uint32_t head_dim;
    uint32_t rotary_dim; /* even, <= head_dim */
    void *x;             /* [rows][heads][head_dim] */
    enum dtype dtype;
    size_t x_stride;
    const float *cos; /* [position][rotary_dim / 2]: a buffer or exchange */
    const float *sin;
    const uint32_t *positions; /* [rows], exchange */
    uint32_t position_count;   /* rows of the tables; every position is below it */
    const void *norm;          /* [head_dim]; NULL: none */
    enum dtype norm_dtype;
    float norm_eps;
};
void kernels_rope(struct kernels *kernels, const struct kernels_rope *args);

/* out[row] = table[ids[row]] (+ position_table[positions[row]]), as f32. */
struct kernels_embed {
    uint32_t rows;
    const struct kernels_matrix *table; /* an output for each id: the head itself where it is tied */
    const uint32_t *ids;                /* [rows], each below table->n_out; exchange */
    const void *position_table; /* [position_count][n_in]: learned positions; NULL: none */
    uint32_t position_count;
    enum dtype position_dtype;
    const uint32_t *positions; /* [rows]; read with a position_table only; exchange */
    float *out;
    size_t out_stride;
};
void kernels_embed(struct kernels *kernels, const struct kernels_embed *args);

/* out = gate * sigmoid(gate) * up. out may be gate or up. */
struct kernels_silu_mul {
    uint32_t rows;
    uint32_t dim;
    enum dtype dtype; /* of all three */
    const void *gate;
    size_t gate_stride;
    const void *up;
    size_t up_stride; /* 0: one row for all */
    void *out;
    size_t out_stride;
};
void kernels_silu_mul(struct kernels *kernels, const struct kernels_silu_mul *args);

/* kernels_gemm() of gate and up, then kernels_silu_mul() of what they gave. What their outputs hold afterwards is not said,
 * but for silu.out, which may be one of them: a device may make one operation of it, which rounds less where results need
 * not be deterministic. */
struct kernels_gemm_silu {
    struct kernels_gemm gate, up; /* of the same rows, x and n_out; not accumulated */
    struct kernels_silu_mul silu; /* its gate and up are their outputs */
};
void kernels_gemm_silu(struct kernels *kernels, const struct kernels_gemm_silu *args);

/* out = a * b. out may be a or b. */
struct kernels_mul {
    uint32_t rows;
    uint32_t dim;
    enum dtype dtype;
    const void *a;
    size_t a_stride;
    const void *b;
    size_t b_stride;
    void *out;
    size_t out_stride;
};
void kernels_mul(struct kernels *kernels, const struct kernels_mul *args);

enum kernels_gelu_form {
    KERNELS_GELU_ERF,  /* "gelu": x/2 * (1 + erf(x / sqrt 2)) */
    KERNELS_GELU_TANH, /* "gelu_new", "gelu_pytorch_tanh": x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) */
};
/* out may be x. */
struct kernels_gelu {
    enum kernels_gelu_form form;
    uint32_t rows;
    uint32_t dim;
    enum dtype dtype;
    const void *x;
    size_t x_stride;
    void *out;
    size_t out_stride;
};
void kernels_gelu(struct kernels *kernels, const struct kernels_gelu *args);

/* out[r] = x[from[r]]. out is another place than x. */
struct kernels_gather_rows {
    uint32_t rows;
    uint32_t dim;
    enum dtype dtype;
    const void *x; /* [x_rows] */
    uint32_t x_rows;
    size_t x_stride;
    const uint32_t *from; /* [rows], each below x_rows; exchange */
    void *out;
    size_t out_stride;
};
void kernels_gather_rows(struct kernels *kernels, const struct kernels_gather_rows *args);

/* ---- paged KV ----------------------------------------------------------------------------- */

/* One layer of the pool of KV blocks. */
struct kernels_kv {
    void *pool; /* block 0; block b lies at b * kv_layout_block_bytes() */
    struct kv_layout layout; /* block_tokens a multiple of 16; head_dim even, <= KERNELS_HEAD_DIM_MAX */
    uint32_t block_count;    /* of the pool; every index is below it */
    uint32_t layer;
};

#define KERNELS_SLOT_NONE UINT32_MAX

struct kernels_kv_slot {
    uint32_t block; /* KERNELS_SLOT_NONE: the row is not stored */
    uint32_t slot; /* < block_tokens */
};

/* Stores rows of k and v (k after rope) at their slots, rounded to the layout's dtype, nearest
 * even, in the order and with the scales of kv_layout.h; past the range of f16 becomes infinity. Every
 * backend and set stores the same bytes (but for which NaN). No two rows name one slot. */
struct kernels_kv_write {
    struct kernels_kv kv;
    uint32_t rows;
    enum dtype dtype; /* of k and v as given */
    const void *k; /* [rows][kv_heads][head_dim] */
    size_t k_stride;
    const void *v;
    size_t v_stride;
    const struct kernels_kv_slot *slots; /* [rows], exchange */
};
void kernels_kv_write(struct kernels *kernels, const struct kernels_kv_write *args);

/* kernels_rope(k), kernels_kv_write(write), then kernels_rope(q): all that stands between the projections and
 * attention. A device does it in one launch; elsewhere the three follow one another. k.x holds k as it was or as it
 * was written. q.rows is write.rows, or 0: no q yet. Without rotation or norm (rotary_dim 0, norm NULL) a rope does
 * nothing; cos, sin, positions, rotary_dim and norm_eps of the two are equal. */
struct kernels_rope_kv {
    struct kernels_rope k;
    struct kernels_kv_write write; /* write.k is k.x, of equal stride */
    struct kernels_rope q;
};
void kernels_rope_kv(struct kernels *kernels, const struct kernels_rope_kv *args);

/* Copies a whole block, all layers, inside the pool. The two differ. */
struct kernels_copy_block {
    void *pool;
    struct kv_layout layout;
    uint32_t block_count;
    uint32_t from, to;
};
void kernels_copy_block(struct kernels *kernels, const struct kernels_copy_block *args);

/* The rows of one sequence in this call: row r is the query at position position_first + r. */
struct kernels_attention_sequence {
    uint32_t row_first; /* its first row in q and out */
    uint32_t row_count; /* 1 in decode, the chunk in prefill; 0 is skipped, and fills a graph's size */
    uint32_t position_first;
    const uint32_t *blocks; /* exchange; [blocks of position_first + row_count tokens]; entries that lie wholly
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
    enum dtype dtype; /* of q and out */
    const void *q;    /* [rows][q_heads][head_dim], after rope */
    size_t q_stride;
    void *out; /* [rows][q_heads][head_dim]; rows of no sequence are left as they are */
    size_t out_stride;
    const struct kernels_attention_sequence *sequences; /* exchange; by rising row_first, none overlapping */
    uint32_t sequence_count;

    /* What a device sizes its launch by, for it may not look at the sequences; the CPU reads none of them. */
    uint32_t rows;          /* of q and out */
    uint32_t row_count_max; /* no sequence has more; 1: a decode step */
    uint32_t context_max;   /* no sequence has more tokens, those of this call included */
};
void kernels_attention(struct kernels *kernels, const struct kernels_attention *args);

/* ---- sampling ----------------------------------------------------------------------------- */

/* What one token's logit becomes before temperature; a row names a token once. As model/sampler.c, in this
 * order: bias; mask (-inf, a NaN stays); repetition, where seen; frequency and presence, where output. */
struct kernels_sample_adjust {
    uint32_t token;
    uint32_t output_count; /* how often it was sampled before */
    float bias;
    uint8_t has_bias, is_masked, is_seen; /* 0 or 1; seen: in the prompt or sampled */
};

struct kernels_sample_row {
    uint32_t adjust_first, adjust_count; /* of kernels_sample.adjusts */
    float temperature; /* 0: the largest logit, the lowest token among equals */
    float top_p, min_p;
    float repetition, frequency, presence;
    uint32_t top_k; /* 0: no limit */
    uint64_t bits;  /* the draw: counter_rng_draw() */
};

enum kernels_sample_fault {
    KERNELS_SAMPLE_OK = 0,
    KERNELS_SAMPLE_NAN = 1,  /* a logit is NaN: fault_at is the lowest such token */
    KERNELS_SAMPLE_NONE = 2, /* nothing may be chosen: all is masked */
};

struct kernels_sample_result {
    uint32_t token;
    uint32_t fault; /* enum kernels_sample_fault */
    uint32_t fault_at;
};

/* Chooses a token for each row, bit for bit what sampler_choose() of model/sampler.h chooses for equal logits.
 * Adjusting changes the logits in place. Results are valid after kernels_sync(). */
struct kernels_sample {
    uint32_t rows;
    uint32_t vocab;
    float *logits; /* [rows] */
    size_t stride;
    const struct kernels_sample_row *params;     /* [rows], exchange */
    const struct kernels_sample_adjust *adjusts; /* exchange */
    struct kernels_sample_result *results;       /* [rows], exchange */
};

/* False on the CPU, where model/sampler.c samples. */
bool kernels_can_sample(const struct kernels *kernels);
void kernels_sample(struct kernels *kernels, const struct kernels_sample *args);

#endif
