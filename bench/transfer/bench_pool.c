#include "bench/transfer/bench_pool.h"

#include "base/check.h"
#include "kernels/cuda/device_memory.h"
#include "tests/kv_memory/fake_memory.h"

static status_t open_gpu(size_t bytes, uint32_t device, struct diag *diag, struct bench_pool *pool)
{
    const struct kernels_config config = {.backend = "cuda", .threads = 1, .device = device, .activations = DTYPE_BF16};
    void *piece = NULL;
    TRY(kernels_create(&config, &pool->kernels, diag));
    pool->pool = (struct kv_endpoint_pool){.bytes = bytes, .memfd = -1};
    TRY(kernels_buffer_alloc(pool->kernels, bytes, &pool->pool.base, diag));
    TRY(kernels_pinned_alloc(pool->kernels, BENCH_POOL_PIECE_BYTES, &piece, diag));
    pool->view = piece;
    return device_memory_create(pool->kernels, pool->pool.base, bytes, &pool->pool.memory, diag);
}

status_t bench_pool_open(enum bench_pool_kind kind, size_t bytes, uint32_t device, struct diag *diag, struct bench_pool *ret_pool)
{
    *ret_pool = (struct bench_pool){.kind = kind};
    switch (kind) {
    case BENCH_POOL_GPU: return open_gpu(bytes, device, diag, ret_pool);
    case BENCH_POOL_FAKE: {
        const struct fake_memory_config config = {.pool_bytes = bytes, .device = (uint8_t)device, .seed = device};
        struct kv_memory *memory = fake_memory_create(&config);
        ret_pool->pool = (struct kv_endpoint_pool){.base = fake_memory_base(memory), .bytes = bytes, .memfd = -1, .memory = memory};
        ret_pool->view = fake_memory_view(memory);
        return STATUS_OK;
    }
    case BENCH_POOL_HOST: break;
    }
    TRY(kv_endpoint_pool_alloc(bytes, diag, &ret_pool->pool));
    ret_pool->view = ret_pool->pool.base;
    return STATUS_OK;
}

uint8_t *bench_pool_begin(struct bench_pool *pool, size_t offset) { return pool->kernels ? pool->view : pool->view + offset; }

uint8_t *bench_pool_get(struct bench_pool *pool, size_t offset, size_t bytes)
{
    CHECK(bytes <= BENCH_POOL_PIECE_BYTES);
    if (pool->kernels) {
        kernels_download(pool->kernels, pool->view, (const uint8_t *)pool->pool.base + offset, bytes);
        CHECK(!failed(kernels_sync(pool->kernels)));
    }
    return bench_pool_begin(pool, offset);
}

void bench_pool_put(struct bench_pool *pool, size_t offset, size_t bytes)
{
    CHECK(bytes <= BENCH_POOL_PIECE_BYTES);
    if (!pool->kernels) { return; }
    kernels_upload(pool->kernels, (uint8_t *)pool->pool.base + offset, pool->view, bytes);
    CHECK(!failed(kernels_sync(pool->kernels)));
}
