#include "tests/unit/kernels_cuda/device_memory_testing.h"

#include <stdlib.h>

void world_init_on(struct world *w, uint64_t seed, uint32_t device)
{
    struct diag diag = {{0}};
    *w = (struct world){.driver = emulated_device_create(&(struct emulated_options){.seed = seed, .device = device, .memory_bytes = PAIR_MEMORY_BYTES}), .random = seed};
    void *pool = NULL;
    assert_false(failed(cuda_backend_create_on(w->driver, &(struct kernels_config){.threads = 1}, &w->kernels, &diag)));
    assert_false(failed(kernels_buffer_alloc(w->kernels, POOL_BYTES, &pool, &diag)));
    w->pool = pool;
    w->model = calloc(1, POOL_BYTES);
    assert_non_null(w->model);
    assert_false(failed(device_memory_create(w->kernels, pool, POOL_BYTES, &w->memory, &diag)));
    assert_false(failed(kv_memory_inbox_init(&w->inbox)));
}

void world_init(struct world *w, uint64_t seed) { world_init_on(w, seed, 0); }

void world_fini(struct world *w)
{
    device_memory_destroy(w->memory);
    kv_memory_inbox_fini(&w->inbox);
    kernels_buffer_free(w->kernels, w->pool, POOL_BYTES);
    kernels_destroy(w->kernels);
    free(w->model);
}

uint32_t draw(struct world *w, uint32_t below)
{
    w->random = w->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(w->random >> 33) % below;
}

struct kv_memory_op op_of(struct world *w, enum kv_memory_op_kind kind, uint32_t count, size_t range_bytes)
{
    return (struct kv_memory_op){.kind = kind, .count = count, .range_bytes = range_bytes, .event = KV_MEMORY_EVENT_NONE,
                                 .done = kv_memory_inbox_put, .user = &w->inbox};
}

status_t run(struct world *w, struct kv_memory_op *op)
{
    kv_memory_submit(w->memory, op);
    kv_memory_inbox_wait(&w->inbox);
    assert_ptr_equal(kv_memory_inbox_take_all(&w->inbox), op);
    return op->status;
}

uint8_t *host_of(struct world *w, size_t bytes)
{
    void *host = NULL;
    struct diag diag;
    assert_false(failed(kv_memory_host_alloc(w->memory, bytes, &host, &diag)));
    return host;
}
