#include "kernels/cuda/sample_args.h"

#include "base/check.h"
#include "kernels/kernels.h"

#define VOCAB_MAX ((uint32_t)1 << 19) /* TOKEN_MASS_VOCAB_MAX: sums of masses fit 63 bits up to here */

/* Blocks of a row that share out its adjusts, which are few as a rule, but a whole context with a repetition penalty. */
#define ADJUST_BLOCKS 8u

/* Shared memory of a block: a value of 8 and of 4 bytes for each thread, and what the reductions need. */
#define SHARED_BYTES (CUDA_SAMPLE_THREADS * 12u + 1024u)

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
        .params = sample->params,
        .adjusts = sample->adjusts,
        .results = sample->results,
    };
    (void)carve(&args, (uintptr_t)workspace, rows_max, sample->vocab);
    return args;
}

void cuda_sample_shape(const struct cuda_sample_args *args, enum cuda_sample_step step, struct cuda_launch *ret_launch)
{
    *ret_launch = (struct cuda_launch){
        .grid = {step == CUDA_SAMPLE_ADJUST ? ADJUST_BLOCKS : args->chunks, args->rows, 1},
        .block = {CUDA_SAMPLE_THREADS, 1, 1},
        .shared_bytes = step == CUDA_SAMPLE_ADJUST ? 0 : SHARED_BYTES,
    };
}
