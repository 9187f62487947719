/* device_bench: kernels of a CUDA device alone, beside the ceilings of the same run, as JSON lines.
 *   device_bench [--device=N] [--deterministic] [--rounds=N]
 *
 * Estimate, by the ceilings that the first two lines print (an H200: 4.3 TB/s copied, 790 TFLOP/s):
 *   decode attention   64 sequences of 8,192 tokens read 2 * 8 heads * 128 * 2 bytes a token: 2.1 GB, 0.5 ms
 *   prefill attention  8,192 rows of 32 heads of 128, causal: 2 * 2 * 8192^2 / 2 * 4096 = 0.55 TFLOP, 0.7 ms
 *   product            one row of 4096 x 28672: 235 MB, 0.055 ms
 * A figure is the median over rounds of the mean of a round's launches, by the host's clock between two syncs:
 * a round takes 10 ms and more, a sync some microseconds. Inputs are random: zeros run faster. What is read
 * again and again does not fit the second-level cache, but for the product of one row, which walks a ring of
 * eight matrices. */
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/flags.h"
#include "bench/median.h"
#include "kernels/cuda/driver.h"
#include "kernels/kernels.h"

enum { ROUNDS_MAX = 64, HEADS = 32, KV_HEADS = 8, HEAD_DIM = 128, BLOCK_TOKENS = 16, RING = 8 };

struct bench_config {
    uint32_t device, rounds;
    bool deterministic;
};

#define AT(field) offsetof(struct bench_config, field)
static const struct flag bench_flags[] = {
    {"device", FLAG_U32, AT(device), "0", "N", "Which GPU.", 0, 255},
    {"rounds", FLAG_U32, AT(rounds), "9", "N", "Rounds; figures are medians.", 1, ROUNDS_MAX},
    {"deterministic", FLAG_BOOL, AT(deterministic), NULL, NULL, "As the nodes' flag.", 0, 0},
};

static struct kernels *kernels;
static uint32_t rounds;

static void stop(status_t st, const char *what, const struct diag *diag)
{
    if (!failed(st)) { return; }
    fprintf(stderr, "%s: %s\n", what, diag->text[0] ? diag->text : status_code_name(st.code));
    exit(1);
}

static void sync_all(void)
{
    struct diag diag = {{0}};
    stop(kernels_sync(kernels), "the device failed", &diag);
}

/* bf16 in (-1, 1), another piece of noise each time. */
static void noise_fill(uint16_t *values, size_t count)
{
    static uint64_t state = 88172645463325252u;
    for (size_t i = 0; i < count; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        values[i] = f32_to_bf16((float)(int32_t)(uint32_t)state * 0x1p-31f);
    }
}

static void *noise_buffer(size_t bytes)
{
    static uint16_t piece[8u << 20];
    static bool is_made;
    struct diag diag = {{0}};
    void *buffer;
    if (!is_made) { noise_fill(piece, sizeof piece / sizeof piece[0]); }
    is_made = true;
    stop(kernels_buffer_alloc(kernels, bytes, &buffer, &diag), "no memory on the device", &diag);
    for (size_t at = 0; at < bytes; at += sizeof piece) {
        kernels_upload(kernels, (char *)buffer + at, piece, bytes - at < sizeof piece ? bytes - at : sizeof piece);
        sync_all();
    }
    return buffer;
}

/* Median seconds of one run(index). */
static double seconds_of(void (*run)(void *what, uint32_t index), void *what)
{
    double seconds[ROUNDS_MAX];
    uint32_t count = 4;
    for (uint32_t i = 0; i < 3; i++) { run(what, i); } /* warm: code loaded, algorithms chosen */
    sync_all();
    uint64_t start_ns = clock_now_ns();
    for (uint32_t i = 0; i < count; i++) { run(what, i); }
    sync_all();
    double once = (double)(clock_now_ns() - start_ns) / (double)NS_PER_S / count;
    count = once > 0.005 ? 4 : (uint32_t)(0.02 / once) + 1;
    for (uint32_t r = 0; r < rounds; r++) {
        start_ns = clock_now_ns();
        for (uint32_t i = 0; i < count; i++) { run(what, i); }
        sync_all();
        seconds[r] = (double)(clock_now_ns() - start_ns) / (double)NS_PER_S / count;
    }
    return bench_median(seconds, rounds);
}

/* ---- ceilings */

struct copy_case {
    const struct cuda_driver *driver;
    struct cuda_stream *stream;
    char *from, *to;
    size_t bytes;
};

/* By the driver's own copy, with its own events: nothing of ours is in it. */
static double copy_bytes_per_s(uint32_t device)
{
    struct copy_case c = {.bytes = (size_t)4 << 30};
    struct diag diag = {{0}};
    struct cuda_event *first, *last;
    void *from, *to;
    stop(cuda_driver_open(device, &c.driver, &diag), "copy", &diag);
    const struct cuda_driver *d = c.driver;
    stop(d->mem_alloc(d, c.bytes, &from, &diag), "copy", &diag);
    stop(d->mem_alloc(d, c.bytes, &to, &diag), "copy", &diag);
    stop(d->stream_create(d, false, &c.stream, &diag), "copy", &diag);
    stop(d->event_create(d, CUDA_EVENT_TIMING, &first, &diag), "copy", &diag);
    stop(d->event_create(d, CUDA_EVENT_TIMING, &last, &diag), "copy", &diag);
    stop(d->fill(d, from, 0x5a, c.bytes, c.stream, &diag), "copy", &diag);
    double rates[ROUNDS_MAX];
    for (uint32_t r = 0; r < rounds; r++) {
        float ms = 0;
        stop(d->event_record(d, first, c.stream, &diag), "copy", &diag);
        for (uint32_t i = 0; i < 4; i++) { stop(d->copy(d, CUDA_COPY_ON_DEVICE, to, from, c.bytes, c.stream, &diag), "copy", &diag); }
        stop(d->event_record(d, last, c.stream, &diag), "copy", &diag);
        stop(d->stream_sync(d, c.stream, &diag), "copy", &diag);
        stop(d->event_elapsed(d, first, last, &ms, &diag), "copy", &diag);
        rates[r] = 4 * 2.0 * (double)c.bytes / (ms * 1e-3);
    }
    d->event_destroy(d, first);
    d->event_destroy(d, last);
    d->stream_destroy(d, c.stream);
    d->mem_free(d, from);
    d->mem_free(d, to);
    printf("{\"bench\":\"gpu_copy\",\"gpu\":\"%s\",\"tb_s\":%.3f}\n", d->info.name, bench_median(rates, rounds) / 1e12);
    d->close(d);
    return bench_median(rates, rounds);
}

struct gemm_case {
    struct kernels_matrix weight;
    char *weights; /* `ring` of them */
    uint32_t ring;
    void *x, *out;
    uint32_t rows;
};

static void gemm_run(void *what, uint32_t index)
{
    struct gemm_case *c = what;
    struct kernels_matrix weight = c->weight;
    weight.data = c->weights + (size_t)(index % c->ring) * kernels_matrix_bytes(&weight);
    kernels_gemm(kernels, &(struct kernels_gemm){.rows = c->rows, .weight = &weight, .x = c->x, .x_dtype = DTYPE_BF16,
                                                 .x_stride = weight.n_in, .out = c->out, .out_dtype = DTYPE_BF16,
                                                 .out_stride = weight.n_out}, 1);
}

static double gemm_seconds(uint32_t rows, uint32_t n_out, uint32_t n_in, uint32_t ring)
{
    struct gemm_case c = {.rows = rows, .ring = ring,
                          .weight = {.format = KERNELS_WEIGHT_BF16, .n_out = n_out, .n_in = n_in,
                                     .order = KERNELS_ORDER_ROWS, .stride = n_in}};
    size_t weight_bytes = ring * kernels_matrix_bytes(&c.weight);
    size_t x_bytes = (size_t)rows * n_in * 2, out_bytes = (size_t)rows * n_out * 2;
    c.weights = noise_buffer(weight_bytes);
    c.x = noise_buffer(x_bytes);
    c.out = noise_buffer(out_bytes);
    double seconds = seconds_of(gemm_run, &c);
    kernels_buffer_free(kernels, c.weights, weight_bytes);
    kernels_buffer_free(kernels, c.x, x_bytes);
    kernels_buffer_free(kernels, c.out, out_bytes);
    return seconds;
}

/* ---- attention */

static void attention_run(void *what, uint32_t index)
{
    (void)index;
    kernels_attention(kernels, what);
}

/* `sequences` of `context` tokens, the last `rows` of each computed. */
static double attention_seconds(uint32_t sequences, uint32_t context, uint32_t rows_each)
{
    struct kv_layout layout = {.block_tokens = BLOCK_TOKENS, .layer_count = 1, .kv_heads = KV_HEADS, .head_dim = HEAD_DIM,
                               .dtype = DTYPE_BF16, .order = kernels_kv_order(kernels)};
    uint32_t blocks_each = kv_layout_blocks_for(&layout, context), block_count = sequences * blocks_each;
    uint32_t rows = sequences * rows_each;
    size_t pool_bytes = block_count * kv_layout_block_bytes(&layout), q_bytes = (size_t)rows * HEADS * HEAD_DIM * 2;
    size_t table_bytes = (size_t)block_count * 4, exchange_bytes = table_bytes + sequences * sizeof(struct kernels_attention_sequence);
    struct diag diag = {{0}};
    void *exchange;
    stop(kernels_exchange_alloc(kernels, exchange_bytes, &exchange, &diag), "exchange", &diag);
    struct kernels_attention_sequence *list = exchange;
    uint32_t *tables = (uint32_t *)(list + sequences);
    /* Scattered over the pool, as after an hour: i * odd mod 2^k visits each once where the count is 2^k. */
    for (uint32_t i = 0; i < block_count; i++) {
        tables[i] = (block_count & (block_count - 1)) == 0 ? i * 2654435761u & (block_count - 1) : i;
    }
    for (uint32_t s = 0; s < sequences; s++) {
        list[s] = (struct kernels_attention_sequence){.row_first = s * rows_each, .row_count = rows_each,
                                                      .position_first = context - rows_each, .blocks = tables + (size_t)s * blocks_each};
    }
    kernels_exchange_send(kernels, exchange, exchange_bytes);
    void *pool = noise_buffer(pool_bytes), *q = noise_buffer(q_bytes), *out = noise_buffer(q_bytes);
    struct kernels_attention args = {
        .kv = {.pool = pool, .layout = layout, .block_count = block_count}, .q_heads = HEADS, .scale = 1.0f / sqrtf(HEAD_DIM),
        .dtype = DTYPE_BF16, .q = q, .q_stride = HEADS * HEAD_DIM, .out = out, .out_stride = HEADS * HEAD_DIM, .sequences = list,
        .sequence_count = sequences, .rows = rows, .row_count_max = rows_each, .context_max = context};
    double seconds = seconds_of(attention_run, &args);
    kernels_buffer_free(kernels, pool, pool_bytes);
    kernels_buffer_free(kernels, q, q_bytes);
    kernels_buffer_free(kernels, out, q_bytes);
    kernels_exchange_free(kernels, exchange, exchange_bytes);
    return seconds;
}

int main(int argc, char **argv)
{
    struct bench_config config;
    struct diag diag = {{0}};
    bool wants_help = false;
    const size_t flag_count = sizeof bench_flags / sizeof bench_flags[0];
    if (failed(flags_parse(bench_flags, flag_count, &config, argc, argv, NULL, NULL, &wants_help, &diag))) {
        fprintf(stderr, "%s\n", diag.text);
        return 2;
    }
    if (wants_help) {
        flags_print_help(bench_flags, flag_count, "device_bench [flags]", stdout);
        return 0;
    }
    rounds = config.rounds;
    double copied = copy_bytes_per_s(config.device);
    const struct kernels_config shape = {.backend = "cuda", .threads = 1, .device = config.device,
                                         .deterministic = config.deterministic, .activations = DTYPE_BF16};
    stop(kernels_create(&shape, &kernels, &diag), "kernels", &diag);
    const char *mode = config.deterministic ? "deterministic" : "fast";

    double flops = 2.0 * 8192 * 8192 * 8192 / gemm_seconds(8192, 8192, 8192, 1);
    printf("{\"bench\":\"gpu_gemm\",\"mode\":\"%s\",\"size\":8192,\"tflop_s\":%.1f}\n", mode, flops / 1e12);
    for (uint32_t rows = 1; rows <= 64; rows *= 4) {
        double seconds = gemm_seconds(rows, 28672, 4096, RING), bytes = 28672.0 * 4096 * 2;
        printf("{\"bench\":\"gpu_gemm_rows\",\"mode\":\"%s\",\"rows\":%u,\"us\":%.1f,\"tb_s\":%.3f,\"of_copy\":%.3f}\n", mode, rows,
               seconds * 1e6, bytes / seconds / 1e12, bytes / seconds / copied);
    }
    static const uint32_t decode[][2] = {{1, 65536}, {64, 2048}, {64, 8192}};
    for (size_t i = 0; i < sizeof decode / sizeof decode[0]; i++) {
        double seconds = attention_seconds(decode[i][0], decode[i][1], 1);
        double bytes = (double)decode[i][0] * decode[i][1] * 2 * KV_HEADS * HEAD_DIM * 2;
        printf("{\"bench\":\"gpu_attention_decode\",\"mode\":\"%s\",\"sequences\":%u,\"context\":%u,\"us\":%.1f,\"of_copy\":%.3f}\n",
               mode, decode[i][0], decode[i][1], seconds * 1e6, bytes / seconds / copied);
    }
    static const uint32_t prefill[][2] = {{16, 2048}, {1, 8192}};
    for (size_t i = 0; i < sizeof prefill / sizeof prefill[0]; i++) {
        double n = prefill[i][1], seconds = attention_seconds(prefill[i][0], prefill[i][1], prefill[i][1]);
        double work = prefill[i][0] * 2.0 * n * n * HEADS * HEAD_DIM; /* q.k and p.v, half of the square each */
        printf("{\"bench\":\"gpu_attention_prefill\",\"mode\":\"%s\",\"sequences\":%u,\"tokens\":%u,\"us\":%.1f,\"tflop_s\":%.1f,\"of_gemm\":%.3f}\n",
               mode, prefill[i][0], prefill[i][1], seconds * 1e6, work / seconds / 1e12, work / seconds / flops);
    }
    kernels_destroy(kernels);
    return 0;
}
