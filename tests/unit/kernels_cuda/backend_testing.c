#include "tests/unit/kernels_cuda/backend_testing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct pair *pair_create(enum dtype act, bool deterministic, uint64_t seed)
{
    struct pair *pair = calloc(1, sizeof(*pair));
    struct diag diag = {{0}};
    assert_non_null(pair);
    pair->act = act;
    pair->random = seed * 2654435761u + 1;
    pair->driver = emulated_device_create(&(struct emulated_options){.seed = seed, .memory_bytes = PAIR_MEMORY_BYTES});
    struct kernels_config config = {.backend = "cuda", .threads = 1, .deterministic = deterministic, .activations = act};
    status_t st = cuda_backend_create_on(pair->driver, &config, &pair->cuda, &diag);
    if (failed(st)) { fail_msg("%s", diag.text); }
    assert_false(failed(kernels_create(&(struct kernels_config){.isa = "ref", .threads = 1}, &pair->ref, &diag)));
    void *exchange = NULL;
    assert_false(failed(kernels_exchange_alloc(pair->cuda, PAIR_EXCHANGE_BYTES, &exchange, &diag)));
    pair->exchange = exchange;
    return pair;
}

void pair_destroy(struct pair *pair)
{
    for (uint32_t i = 0; i < pair->item_count; i++) {
        free(pair->items[i].host);
        kernels_buffer_free(pair->cuda, pair->items[i].device, pair->items[i].bytes);
    }
    kernels_exchange_free(pair->cuda, pair->exchange, PAIR_EXCHANGE_BYTES);
    kernels_destroy(pair->cuda);
    kernels_destroy(pair->ref);
    free(pair);
}

uint64_t pair_random(struct pair *pair)
{
    pair->random = pair->random * 6364136223846793005u + 1442695040888963407u;
    return pair->random >> 33;
}

float pair_random_float(struct pair *pair) { return (float)((double)pair_random(pair) / 1073741824.0 - 1.0); }

uint32_t pair_random_range(struct pair *pair, uint32_t from, uint32_t to) { return from + (uint32_t)(pair_random(pair) % (to - from + 1)); }

static struct pair_item *new_item(struct pair *pair)
{
    assert_true(pair->item_count < PAIR_ITEMS_MAX);
    return &pair->items[pair->item_count++];
}

void *pair_host(struct pair *pair, size_t bytes)
{
    struct pair_item *item = new_item(pair);
    item->host = calloc(1, bytes + 64);
    assert_non_null(item->host);
    return item->host;
}

void *pair_device(struct pair *pair, size_t bytes)
{
    struct pair_item *item = new_item(pair);
    struct diag diag = {{0}};
    item->bytes = bytes;
    status_t st = kernels_buffer_alloc(pair->cuda, bytes, &item->device, &diag);
    if (failed(st)) { fail_msg("%s", diag.text); }
    return item->device;
}

void round_to(enum dtype dtype, const float *from, size_t count, void *to)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t half = dtype == DTYPE_BF16 ? f32_to_bf16(from[i]) : dtype == DTYPE_F16 ? f32_to_f16(from[i]) : 0;
        if (dtype == DTYPE_F32) { ((float *)to)[i] = from[i]; } else { ((uint16_t *)to)[i] = half; }
    }
}

static float widened(enum dtype dtype, const void *from, size_t i)
{
    return dtype == DTYPE_BF16  ? bf16_to_f32(((const uint16_t *)from)[i])
           : dtype == DTYPE_F16 ? f16_to_f32(((const uint16_t *)from)[i])
                                : ((const float *)from)[i];
}

void pair_upload(struct pair *pair, const struct pair_values *values)
{
    void *bits = malloc(values->count * 4 + 4);
    assert_non_null(bits);
    round_to(values->dtype, values->host, values->count, bits);
    kernels_upload(pair->cuda, values->device, bits, values->count * dtype_bytes(values->dtype));
    assert_false(failed(kernels_sync(pair->cuda)));
    free(bits);
}

struct pair_values pair_values(struct pair *pair, size_t count, enum dtype dtype, float factor)
{
    struct pair_values values = {.dtype = dtype, .count = count};
    values.host = pair_host(pair, count * sizeof(float));
    values.device = pair_device(pair, count * dtype_bytes(dtype));
    for (size_t i = 0; i < count; i++) {
        float value = pair_random_float(pair) * factor;
        values.host[i] = dtype == DTYPE_BF16 ? bf16_to_f32(f32_to_bf16(value)) : dtype == DTYPE_F16 ? f16_to_f32(f32_to_f16(value)) : value;
    }
    pair_upload(pair, &values);
    return values;
}

void pair_matrix(struct pair *pair, uint32_t n_out, uint32_t n_in, enum dtype dtype, struct kernels_matrix *ret_ref,
                 struct kernels_matrix *ret_cuda)
{
    const uint32_t stride = kernels_matrix_rows_stride(n_in);
    const size_t bytes = (size_t)n_out * stride * dtype_bytes(dtype);
    uint8_t *host = pair_host(pair, bytes);
    host += (64 - (uintptr_t)host % 64) % 64;
    for (uint32_t n = 0; n < n_out; n++) {
        for (uint32_t k = 0; k < n_in; k++) {
            float value = pair_random_float(pair);
            round_to(dtype, &value, 1, host + ((size_t)n * stride + k) * dtype_bytes(dtype));
        }
    }
    *ret_ref = (struct kernels_matrix){.format = (enum kernels_weight)dtype, .n_out = n_out, .n_in = n_in,
                                       .order = KERNELS_ORDER_ROWS, .stride = stride, .data = host};
    *ret_cuda = *ret_ref;
    void *device = pair_device(pair, bytes);
    kernels_upload(pair->cuda, device, host, bytes);
    ret_cuda->data = device;
}

void *pair_exchange(struct pair *pair, size_t bytes)
{
    uint8_t *at = pair->exchange + pair->exchange_used;
    pair->exchange_used += (bytes + 15) / 16 * 16;
    assert_true(pair->exchange_used <= PAIR_EXCHANGE_BYTES);
    return at;
}

void pair_send(struct pair *pair) { kernels_exchange_send(pair->cuda, pair->exchange, pair->exchange_used); }

void pair_download(struct pair *pair, const void *device, enum dtype dtype, size_t count, float *ret_values)
{
    void *bits = malloc(count * 4 + 4);
    assert_non_null(bits);
    kernels_download(pair->cuda, bits, device, count * dtype_bytes(dtype));
    if (failed(kernels_sync(pair->cuda))) { fail_msg("%s", cuda_backend_error(pair->cuda)); }
    for (size_t i = 0; i < count; i++) { ret_values[i] = widened(dtype, bits, i); }
    free(bits);
}

double pair_epsilon(enum dtype dtype) { return dtype == DTYPE_BF16 ? 0x1p-8 : dtype == DTYPE_F16 ? 0x1p-11 : 0x1p-23; }

void pair_compare(struct pair *pair, const char *what, const struct pair_values *values, double relative, double absolute)
{
    float *got = malloc(values->count * sizeof(float) + 4);
    assert_non_null(got);
    pair_download(pair, values->device, values->dtype, values->count, got);
    for (size_t i = 0; i < values->count; i++) {
        double want = (double)values->host[i], bound = fabs(want) * relative + absolute;
        if (!(fabs((double)got[i] - want) <= bound)) {
            fail_msg("%s: element %zu is %.9g, should be %.9g within %.3g", what, i, (double)got[i], want, bound);
        }
    }
    free(got);
}
