#include "kernels/cuda/cuda_attention_check.h"

#include <math.h>
#include <string.h>

#define BLOCK_TOKENS 16u
#define BLOCKS 14u
#define HEADS 2u /* of q; one of KV */
#define SEQUENCES 2u
#define CONTEXT_MAX 96u
/* A prompt from its start, and the later part of another; neither fills its last tile. */
#define ROWS_FIRST 75u
#define ROWS_SECOND 21u
#define SECOND_AT 75u
#define ROWS (ROWS_FIRST + ROWS_SECOND)

/* One attention, on both sides. Offsets in bytes from the start of an area of pinned memory and one of the device. */
struct trial {
    const struct cuda_driver *driver;
    struct cuda_stream *stream;
    struct kernels_attention call; /* its addresses are the device's, but for sequences */
    size_t q, pool, sequences, tables, out, pieces, arrivals, total;
    struct cuda_attention_scratch scratch;
    uint8_t *host, *device;
};

static size_t take(struct trial *t, size_t bytes)
{
    size_t at = t->total;
    t->total += (bytes + 255) / 256 * 256;
    return at;
}

static float number(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(int)(*state >> 8) / 8388608.0f - 1.0f;
}

static void fill(uint8_t *to, size_t count, enum dtype dtype, uint32_t *state)
{
    for (size_t i = 0; i < count; i++) {
        float value = number(state);
        uint16_t half = dtype == DTYPE_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
        memcpy(to + 2 * i, &half, 2);
    }
}

static void fill_all(struct trial *t)
{
    const struct kv_layout *layout = &t->call.kv.layout;
    struct kernels_attention_sequence *sequences = (void *)(t->host + t->sequences);
    uint32_t *tables = (void *)(t->host + t->tables), state = layout->head_dim;
    fill(t->host + t->q, (size_t)ROWS * t->call.q_stride, t->call.dtype, &state);
    fill(t->host + t->pool, BLOCKS * kv_layout_block_bytes(layout) / 2, t->call.dtype, &state);
    for (uint32_t i = 0; i < BLOCKS; i++) { tables[i] = (i * 5 + 2) % BLOCKS; }
    sequences[0] = (struct kernels_attention_sequence){.row_count = ROWS_FIRST, .blocks = tables};
    sequences[1] = (struct kernels_attention_sequence){.row_first = ROWS_FIRST, .row_count = ROWS_SECOND, .position_first = SECOND_AT,
                                                       .blocks = tables + 6};
    memset(t->host + t->out, 0xff, t->pieces - t->out); /* NaN: a row that nobody writes shows */
}

static status_t trial_init(struct trial *t, const struct cuda_attention_device *device, enum dtype dtype, uint32_t head_dim,
                           struct diag *diag)
{
    const struct cuda_driver *d = t->driver;
    t->call = (struct kernels_attention){
        .kv = {.layout = {.block_tokens = BLOCK_TOKENS, .layer_count = 1, .kv_heads = 1, .head_dim = head_dim, .dtype = dtype,
                          .order = KV_ORDER_ROWS},
               .block_count = BLOCKS},
        .q_heads = HEADS, .scale = 1.0f / sqrtf((float)head_dim), .window = head_dim == 64 ? 0 : 40, .dtype = dtype,
        .q_stride = (size_t)HEADS * head_dim, .out_stride = (size_t)HEADS * head_dim, .sequence_count = SEQUENCES, .rows = ROWS,
        .row_count_max = ROWS_FIRST, .context_max = CONTEXT_MAX};
    cuda_attention_scratch_need(device, &t->call, SEQUENCES, CONTEXT_MAX, &t->scratch);
    t->q = take(t, ROWS * t->call.q_stride * 2);
    t->pool = take(t, BLOCKS * kv_layout_block_bytes(&t->call.kv.layout));
    t->sequences = take(t, SEQUENCES * sizeof(struct kernels_attention_sequence));
    t->tables = take(t, BLOCKS * sizeof(uint32_t));
    t->out = take(t, ROWS * t->call.out_stride * 2);
    t->pieces = take(t, t->scratch.piece_bytes);
    t->arrivals = take(t, t->scratch.arrival_bytes);
    void *host = NULL, *area = NULL;
    TRY(d->host_alloc(d, t->total, &host, diag)); /* zeroed, arrivals too */
    t->host = host;
    TRY(d->mem_alloc(d, t->total, &area, diag));
    t->device = area;
    fill_all(t);
    t->call.kv.pool = t->device + t->pool;
    t->call.q = t->device + t->q;
    t->call.out = t->device + t->out;
    t->call.sequences = (void *)(t->host + t->sequences);
    t->scratch.pieces = t->device + t->pieces;
    t->scratch.arrivals = t->device + t->arrivals;
    return STATUS_OK;
}

/* Leaves the rows in `ret_out`, pinned. */
static status_t trial_run(struct trial *t, const struct cuda_attention_device *device, uint8_t *ret_out, struct diag *diag)
{
    const struct cuda_driver *d = t->driver;
    struct cuda_attention_launch launches[CUDA_ATTENTION_LAUNCHES_MAX];
    TRY(d->copy(d, CUDA_COPY_TO_DEVICE, t->device, t->host, t->total, t->stream, diag));
    uint32_t count = cuda_attention_plan(device, &t->call, t->host, t->device, &t->scratch, launches);
    for (uint32_t i = 0; i < count; i++) {
        TRY(d->launch(d, launches[i].kernel, &launches[i].shape, &launches[i].args, sizeof(launches[i].args), t->stream, diag));
    }
    TRY(d->copy(d, CUDA_COPY_TO_HOST, ret_out, t->device + t->out, ROWS * t->call.out_stride * 2, t->stream, diag));
    return d->stream_sync(d, t->stream, diag);
}

static float element(const uint8_t *at, size_t index, enum dtype dtype)
{
    uint16_t half;
    memcpy(&half, at + 2 * index, 2);
    return dtype == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

/* Each output is an average of values below 1. The weights and the output are rounded to the dtype by both kernels, each
 * time by half a unit at most: four roundings may come together. */
static status_t compare(const struct trial *t, const uint8_t *expected, const uint8_t *found, struct diag *diag)
{
    const enum dtype dtype = t->call.dtype;
    const float bound = 4 * (dtype == DTYPE_BF16 ? 0x1p-9f : 0x1p-12f);
    for (size_t i = 0; i < ROWS * t->call.out_stride; i++) {
        float want = element(expected, i, dtype), got = element(found, i, dtype);
        if (fabsf(want - got) <= bound) { continue; }
        diag_set(diag, "head_dim %u, row %zu, value %zu is %g, should be %g", t->call.kv.layout.head_dim, i / t->call.out_stride,
                 i % t->call.out_stride, (double)got, (double)want);
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    return STATUS_OK;
}

static bool is_for(const struct trial *t, const struct cuda_attention_device *with, const struct cuda_attention_device *without)
{
    struct cuda_attention_launch a[CUDA_ATTENTION_LAUNCHES_MAX], b[CUDA_ATTENTION_LAUNCHES_MAX];
    uint32_t count = cuda_attention_plan(with, &t->call, t->host, t->device, &t->scratch, a);
    return count == cuda_attention_plan(without, &t->call, t->host, t->device, &t->scratch, b) && count > 0 && a[0].kernel != b[0].kernel;
}

static status_t check_dim(struct trial *t, const struct cuda_attention_device *device, enum dtype dtype, uint32_t head_dim,
                          struct diag *diag)
{
    struct cuda_attention_device without = *device, with = *device;
    void *outs = NULL;
    without.use_sm90 = false;
    with.use_sm90 = true;
    TRY(trial_init(t, device, dtype, head_dim, diag));
    if (!is_for(t, &with, &without)) {
        diag_set(diag, "the kernel is none for this device");
        return STATUS(ST_UNIMPLEMENTED, SCOPE_NODE);
    }
    const size_t out_bytes = ROWS * t->call.out_stride * 2;
    TRY(t->driver->host_alloc(t->driver, 2 * out_bytes, &outs, diag));
    uint8_t *expected = outs, *found = expected + out_bytes;
    status_t st = trial_run(t, &without, expected, diag);
    if (!failed(st)) { st = trial_run(t, &with, found, diag); }
    if (!failed(st)) { st = compare(t, expected, found, diag); }
    (void)t->driver->stream_sync(t->driver, t->stream, NULL);
    t->driver->host_free(t->driver, outs);
    return st;
}

status_t cuda_attention_check(const struct cuda_driver *driver, struct cuda_stream *stream, const struct cuda_attention_device *device,
                              enum dtype dtype, struct diag *diag)
{
    static const uint32_t head_dims[] = {64, 128};
    status_t st = STATUS_OK;
    for (size_t i = 0; i < sizeof(head_dims) / sizeof(head_dims[0]) && !failed(st); i++) {
        struct trial trial = {.driver = driver, .stream = stream};
        st = check_dim(&trial, device, dtype, head_dims[i], diag);
        driver->mem_free(driver, trial.device); /* waits for what still writes there */
        driver->host_free(driver, trial.host);
    }
    return st;
}
