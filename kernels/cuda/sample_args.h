/* sample_args: the launches that turn rows of logits into tokens on the device, and their scratch.
 * Flow:    kernels_sample -> cuda_backend: cuda_sample_args_of(), then every step in order -> sample*.cu
 * Thread:  any; pure functions and plain values.
 * Memory:  one workspace in device memory, cuda_sample_workspace_bytes() of it; its content before the first
 *          step does not matter, and nothing in it is kept for the next call.
 *
 * The tokens are those of sampler_choose() (model/sampler.h) for the same logits, to the last draw: masses are
 * integers (model/token_mass.h) and every decision is on integers, so neither the order of threads nor how a row is
 * cut into chunks can change one. The steps:
 *   ADJUST        bias, mask and penalties, into the logits
 *   SCAN          NaN, the best token; greedy rows and faults end here
 *   HISTOGRAM     rows with top_k or top_p: tokens, or mass, by distance from the best; finds the bin of the cut
 *   SELECT        gathers that bin's tokens, and finds the exact token of the cut among them
 *   SELECT_AGAIN  the same for top_p where its cut lies in another bin than top_k's
 *   DRAW          sums the masses that are kept by chunks of tokens, and walks to the draw in one of them
 * A row is cut into chunks of CUDA_SAMPLE_CHUNK tokens, a block of threads for each; the block that arrives last
 * decides for its row. Blocks whose row has no need of a step leave at once: grids depend on rows and vocab alone, so
 * the steps can be captured in a graph. */
#ifndef BATON_KERNELS_CUDA_SAMPLE_ARGS_H
#define BATON_KERNELS_CUDA_SAMPLE_ARGS_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/kernel_list.h"
#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

struct kernels_sample; /* kernels/kernels.h */

/* kernels_sample_adjust, _row, _result and _fault, for texts that cannot include kernels.h because they are compiled
 * for the device: the same fields at the same places, which sample_args.c asserts. */
struct cuda_sample_adjustment {
    uint32_t token, output_count;
    float bias;
    uint8_t has_bias, is_masked, is_seen;
};
struct cuda_sample_row {
    uint32_t adjust_first, adjust_count;
    float temperature, top_p, min_p, repetition, frequency, presence;
    uint32_t top_k;
    uint64_t bits;
};
struct cuda_sample_result {
    uint32_t token, fault, fault_at;
};
enum cuda_sample_fault { CUDA_SAMPLE_OK = 0, CUDA_SAMPLE_NAN = 1, CUDA_SAMPLE_NONE = 2 };

enum cuda_sample_step {
    CUDA_SAMPLE_ADJUST,
    CUDA_SAMPLE_SCAN,
    CUDA_SAMPLE_HISTOGRAM,
    CUDA_SAMPLE_SELECT,
    CUDA_SAMPLE_SELECT_AGAIN,
    CUDA_SAMPLE_DRAW,
    CUDA_SAMPLE_STEPS,
};

#define CUDA_SAMPLE_THREADS 512u
#define CUDA_SAMPLE_CHUNK 8192u           /* tokens of a row that one block reads: 16 a thread */
#define CUDA_SAMPLE_BINS CUDA_SAMPLE_THREADS /* of the histogram, and of a digit in the exact selection */
#define CUDA_SAMPLE_SHARED_BYTES 8192u
#define CUDA_SAMPLE_LIST_MAX 8192u        /* tokens gathered of one bin; more (equal logits) are found in the row itself */
#define CUDA_SAMPLE_FEW_MAX 1024u         /* top_k up to here gathers all that it keeps, so masses are of those alone */

/* What one block saw of its chunk. Keys order as logits do, see sample_math.cuh. */
struct cuda_sample_extreme {
    uint32_t key_max;
    uint32_t argmax;   /* the lowest token among equals */
    uint32_t nan_at;   /* UINT32_MAX: none */
    uint32_t key_min;  /* of those above -inf; UINT32_MAX: none */
    uint32_t key_floor; /* least of the maxima of groups of up to 16 tokens; groups of -inf alone do not count */
    uint32_t groups;
};

/* A run of best tokens: those of a better key, and those of this key up to this token id. */
struct cuda_sample_run {
    uint32_t key;
    uint32_t token;
};

/* One row on its way, written by the last block of each step. */
struct cuda_sample_state {
    uint32_t arrived[CUDA_SAMPLE_STEPS]; /* blocks of this row that have finished their chunk */
    uint32_t listed[2];                  /* tokens that SELECT, SELECT_AGAIN found in their bin */
    uint32_t todo;                       /* which of the later steps this row needs: 1 << enum cuda_sample_step */
    uint32_t top_k;                      /* 0: no limit, or none that matters */
    uint32_t bins_have_mass;             /* HISTOGRAM sums masses; they decide top_p */
    float max;
    float bin_scale;  /* bins per unit of logit */
    float mass_reach; /* tokens farther than this below max weigh 0 */
    float draw_reach; /* tokens farther than this below max weigh 0, or less than min_p asks for */
    double inverse_temperature;
    uint64_t floor_mass; /* min_p; 0: none */
    uint32_t bin[2];     /* of the cut: SELECT, SELECT_AGAIN */
    uint64_t above[2];   /* tokens or mass in better bins */
    uint64_t needed[2];  /* what the run must hold: tokens or mass */
    struct cuda_sample_run run; /* what is kept so far; only DRAW applies min_p */
};

struct cuda_sample_args {
    uint32_t rows;
    uint32_t vocab;
    uint32_t chunks; /* per row */
    uint32_t reserved;
    float *logits; /* [rows][stride] */
    uint64_t stride;
    const struct cuda_sample_row *params; /* [rows] */
    const struct cuda_sample_adjustment *adjusts;
    struct cuda_sample_result *results; /* [rows] */
    /* The workspace. */
    struct cuda_sample_state *states;      /* [rows] */
    struct cuda_sample_extreme *extremes;  /* [rows][chunks] */
    uint64_t *masses;                      /* [rows][chunks]: of each chunk */
    uint64_t *bin_masses;                  /* [rows][chunks + 1][BINS]; the last of a row: their sums */
    uint32_t *bin_counts;                  /* [rows][chunks][BINS] */
    uint64_t *list;                        /* [rows][LIST_MAX]: key << 32 | token */
};

/* Bytes for up to rows_max rows; vocab 1 .. 2^19 (TOKEN_MASS_VOCAB_MAX; CHECK). About 300 KB a row at 152k tokens. */
size_t cuda_sample_workspace_bytes(uint32_t rows_max, uint32_t vocab);

/* The arguments of every step. Addresses in `sample` and `workspace` (256-byte aligned) are the device's; neither is
 * followed here. rows 0 gives steps that launch nothing. logits is 4-byte aligned; fastest where its base and its
 * stride are multiples of 16 bytes. */
struct cuda_sample_args cuda_sample_args_of(const struct kernels_sample *sample, void *workspace, uint32_t rows_max);

enum cuda_kernel cuda_sample_kernel(enum cuda_sample_step step);

/* The shape of one step: a function of rows and vocab alone. Launch cuda_sample_kernel(step) with it. */
void cuda_sample_shape(const struct cuda_sample_args *args, enum cuda_sample_step step, struct cuda_launch *ret_launch);

#ifdef __cplusplus
}
#endif

#endif
