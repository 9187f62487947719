#include "kernels/cuda/rows_args.h"

#include "base/check.h"

#define WARP 32u
#define CHUNK 8u        /* elements a thread takes at a time: rows_math.cuh */
#define WARP_DIM_MAX 256u /* a vector up to here is a warp's */
#define WARPS 4u        /* of a block whose warps work alone */

static uint32_t divide_up(uint32_t value, uint32_t step) { return value / step + (value % step != 0); }

static uint32_t threads_for(uint32_t dim, uint32_t threads_max)
{
    const uint32_t threads = divide_up(divide_up(dim, CHUNK), WARP) * WARP;
    return threads < threads_max ? threads : threads_max;
}

/* The grid's x must stay below 2^31. */
static uint32_t product(uint32_t a, uint32_t b)
{
    const uint64_t all = (uint64_t)a * b;
    CHECK(all <= INT32_MAX);
    return (uint32_t)all;
}

static struct cuda_launch launch_of(uint32_t blocks, uint32_t threads, uint32_t shared_bytes)
{
    return (struct cuda_launch){.grid = {blocks, 1, 1}, .block = {threads, 1, 1}, .shared_bytes = shared_bytes};
}

/* As many threads as a row has chunks, in as many blocks as that takes. */
static struct cuda_launch launch_by_chunks(uint32_t rows, uint32_t dim)
{
    const uint32_t threads = threads_for(dim, 256);
    return launch_of(product(rows, divide_up(divide_up(dim, CHUNK), threads)), threads, 0);
}

static bool is_dtype(enum dtype dtype) { return (unsigned)dtype < DTYPE_COUNT; }

void cuda_embed_shape(const struct cuda_embed_args *args, struct cuda_launch *ret_launch)
{
    CHECK(args->dim != 0);
    CHECK(is_dtype(args->table_dtype));
    CHECK(is_dtype(args->position_dtype));
    *ret_launch = launch_by_chunks(args->rows, args->dim);
}

void cuda_rmsnorm_shape(const struct cuda_rmsnorm_args *args, struct cuda_launch *ret_launch)
{
    CHECK(args->dim != 0);
    CHECK(args->heads != 0);
    CHECK(is_dtype(args->x_dtype));
    CHECK(is_dtype(args->weight_dtype));
    CHECK(is_dtype(args->out_dtype));
    const uint32_t vectors = product(args->rows, args->heads);
    if (args->dim <= WARP_DIM_MAX) {
        *ret_launch = launch_of(divide_up(vectors, WARPS), WARPS * WARP, 0);
    } else {
        *ret_launch = launch_of(vectors, threads_for(args->dim, CUDA_ROW_THREADS_MAX), WARP * sizeof(float));
    }
}

void cuda_layernorm_shape(const struct cuda_layernorm_args *args, struct cuda_launch *ret_launch)
{
    CHECK(args->dim != 0);
    CHECK(is_dtype(args->x_dtype));
    CHECK(is_dtype(args->weight_dtype));
    CHECK(is_dtype(args->out_dtype));
    *ret_launch = launch_of(product(args->rows, 1), threads_for(args->dim, CUDA_ROW_THREADS_MAX), 2 * WARP * sizeof(float));
}

void cuda_rope_shape(const struct cuda_rope_args *args, struct cuda_launch *ret_launch)
{
    CHECK(args->head_dim != 0);
    CHECK(args->head_dim <= WARP_DIM_MAX);
    CHECK(args->rotary_dim <= args->head_dim);
    CHECK(args->rotary_dim % 2 == 0);
    CHECK(is_dtype(args->dtype));
    CHECK(is_dtype(args->norm_dtype));
    *ret_launch = launch_of(divide_up(product(args->rows, args->heads), WARPS), WARPS * WARP,
                            WARPS * WARP_DIM_MAX * (uint32_t)sizeof(float));
}

void cuda_map_shape(const struct cuda_map_args *args, struct cuda_launch *ret_launch)
{
    CHECK(args->dim != 0);
    CHECK(is_dtype(args->dtype));
    CHECK(is_dtype(args->out_dtype));
    CHECK((args->map == CUDA_MAP_SILU_MUL || args->map == CUDA_MAP_MUL) == (args->b != NULL));
    *ret_launch = launch_by_chunks(args->rows, args->dim);
}

void cuda_gather_rows_shape(const struct cuda_gather_rows_args *args, struct cuda_launch *ret_launch)
{
    CHECK(args->row_bytes != 0);
    CHECK(args->row_bytes % 2 == 0);
    *ret_launch = launch_by_chunks(args->rows, args->row_bytes / 2);
}
