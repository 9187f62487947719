#include "kernels/cuda/sample_args.h"

#include "base/check.h"
#include "kernels/kernels.h"

#define VOCAB_MAX ((uint32_t)1 << 19) /* TOKEN_MASS_VOCAB_MAX: sums of masses fit 63 bits up to here */

#define SAME(ours, theirs, field) \
    _Static_assert(offsetof(struct ours, field) == offsetof(struct theirs, field), "one layout, two texts")
SAME(cuda_sample_adjustment, kernels_sample_adjust, token);
SAME(cuda_sample_adjustment, kernels_sample_adjust, output_count);
SAME(cuda_sample_adjustment, kernels_sample_adjust, bias);
SAME(cuda_sample_adjustment, kernels_sample_adjust, has_bias);
SAME(cuda_sample_adjustment, kernels_sample_adjust, is_masked);
SAME(cuda_sample_adjustment, kernels_sample_adjust, is_seen);
SAME(cuda_sample_row, kernels_sample_row, adjust_first);
SAME(cuda_sample_row, kernels_sample_row, adjust_count);
SAME(cuda_sample_row, kernels_sample_row, temperature);
SAME(cuda_sample_row, kernels_sample_row, top_p);
SAME(cuda_sample_row, kernels_sample_row, min_p);
SAME(cuda_sample_row, kernels_sample_row, repetition);
SAME(cuda_sample_row, kernels_sample_row, frequency);
SAME(cuda_sample_row, kernels_sample_row, presence);
SAME(cuda_sample_row, kernels_sample_row, top_k);
SAME(cuda_sample_row, kernels_sample_row, bits);
SAME(cuda_sample_result, kernels_sample_result, token);
SAME(cuda_sample_result, kernels_sample_result, fault);
SAME(cuda_sample_result, kernels_sample_result, fault_at);
_Static_assert(sizeof(struct cuda_sample_adjustment) == sizeof(struct kernels_sample_adjust), "one layout, two texts");
_Static_assert(sizeof(struct cuda_sample_row) == sizeof(struct kernels_sample_row), "one layout, two texts");
_Static_assert(sizeof(struct cuda_sample_result) == sizeof(struct kernels_sample_result), "one layout, two texts");
_Static_assert((int)CUDA_SAMPLE_NAN == (int)KERNELS_SAMPLE_NAN, "one number, two texts");
_Static_assert((int)CUDA_SAMPLE_NONE == (int)KERNELS_SAMPLE_NONE, "one number, two texts");

/* Blocks of a row that share out its adjusts, which are few as a rule, but a whole context with a repetition penalty. */
#define ADJUST_BLOCKS 8u

static uint32_t chunks_of(uint32_t vocab)
{
    return (vocab + CUDA_SAMPLE_CHUNK - 1) / CUDA_SAMPLE_CHUNK;
}

/* The pieces of the workspace, in one place for the size and for the addresses. */
static size_t carve(struct cuda_sample_args *args, uintptr_t workspace, uint32_t rows_max, uint32_t vocab)
{
    size_t rows = rows_max, chunks = chunks_of(vocab), at = 0;
    size_t sizes[] = {
        rows * sizeof(struct cuda_sample_state),
        rows * chunks * sizeof(struct cuda_sample_extreme),
        rows * chunks * sizeof(uint64_t),
        rows * (chunks + 1) * CUDA_SAMPLE_BINS * sizeof(uint64_t),
        rows * chunks * CUDA_SAMPLE_BINS * sizeof(uint32_t),
        rows * CUDA_SAMPLE_LIST_MAX * sizeof(uint64_t),
    };
    enum { PIECES = sizeof sizes / sizeof sizes[0] };
    uintptr_t pieces[PIECES]; /* numbers: these are the device's addresses, or offsets */
    for (unsigned i = 0; i < PIECES; i++) {
        pieces[i] = workspace + at;
        at += (sizes[i] + 255) / 256 * 256;
    }
    args->states = (struct cuda_sample_state *)pieces[0];
    args->extremes = (struct cuda_sample_extreme *)pieces[1];
    args->masses = (uint64_t *)pieces[2];
    args->bin_masses = (uint64_t *)pieces[3];
    args->bin_counts = (uint32_t *)pieces[4];
    args->list = (uint64_t *)pieces[5];
    return at;
}

size_t cuda_sample_workspace_bytes(uint32_t rows_max, uint32_t vocab)
{
    CHECK(vocab >= 1);
    CHECK(vocab <= VOCAB_MAX);
    struct cuda_sample_args args;
    return carve(&args, 0, rows_max, vocab);
}

struct cuda_sample_args cuda_sample_args_of(const struct kernels_sample *sample, void *workspace, uint32_t rows_max)
{
    CHECK(sample->rows <= rows_max);
    CHECK(sample->vocab >= 1);
    CHECK(sample->vocab <= VOCAB_MAX);
    CHECK(sample->stride >= sample->vocab);
    struct cuda_sample_args args = {
        .rows = sample->rows,
        .vocab = sample->vocab,
        .chunks = chunks_of(sample->vocab),
        .logits = sample->logits,
        .stride = sample->stride,
        .params = (const struct cuda_sample_row *)(const void *)sample->params,
        .adjusts = (const struct cuda_sample_adjustment *)(const void *)sample->adjusts,
        .results = (struct cuda_sample_result *)(void *)sample->results,
    };
    (void)carve(&args, (uintptr_t)workspace, rows_max, sample->vocab);
    return args;
}

enum cuda_kernel cuda_sample_kernel(enum cuda_sample_step step)
{
    static const enum cuda_kernel kernels[CUDA_SAMPLE_STEPS] = {
        [CUDA_SAMPLE_ADJUST] = CUDA_KERNEL_sample_adjust,
        [CUDA_SAMPLE_SCAN] = CUDA_KERNEL_sample_scan,
        [CUDA_SAMPLE_HISTOGRAM] = CUDA_KERNEL_sample_histogram,
        [CUDA_SAMPLE_SELECT] = CUDA_KERNEL_sample_select,
        [CUDA_SAMPLE_SELECT_AGAIN] = CUDA_KERNEL_sample_select_again,
        [CUDA_SAMPLE_DRAW] = CUDA_KERNEL_sample_draw,
    };
    CHECK(step < CUDA_SAMPLE_STEPS);
    return kernels[step];
}

void cuda_sample_shape(const struct cuda_sample_args *args, enum cuda_sample_step step, struct cuda_launch *ret_launch)
{
    *ret_launch = (struct cuda_launch){
        .grid = {step == CUDA_SAMPLE_ADJUST ? ADJUST_BLOCKS : args->chunks, args->rows, 1},
        .block = {CUDA_SAMPLE_THREADS, 1, 1},
        .shared_bytes = step == CUDA_SAMPLE_ADJUST ? 0 : CUDA_SAMPLE_SHARED_BYTES,
    };
}
