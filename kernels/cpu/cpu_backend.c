#include "kernels/cpu/cpu_backend.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "base/log.h"
#include "kernels/backend.h"
#if defined(__x86_64__)
#include "kernels/cpu/amx_check.h"
#include "kernels/cpu/gemm_amx.h"
#endif
#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/gemm_run.h"
#include "kernels/cpu/pool.h"
#include "kernels/cpu/set.h"

/* Below this many values a row operation is done before a second thread could wake. */
#define ROWS_ALONE_MAX 16384u

struct cpu_backend {
    struct kernels base; /* first */
    const struct cpu_set *set;
    uint32_t row_step; /* rows of a whole tile of the product */
    const struct gemm_int_set *integers;
    struct pool *pool;
    struct attention_plan *attention;
    struct set_scratch *scratch; /* [threads] */
    void *memory;
    size_t memory_bytes;
};

static struct cpu_backend *cpu(struct kernels *kernels) { return (struct cpu_backend *)kernels; }

/* ---- which sets there are ------------------------------------------------------------------ */

static bool have_scalar(void) { return true; }

#if defined(__x86_64__)
/* __builtin_cpu_supports also asks whether the operating system saves the registers. */
static bool have_avx2(void)
{
    unsigned a, b, c = 0, d;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d)
        && (c & bit_F16C) != 0;
}

static bool have_avx512(void)
{
    return have_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static bool have_avx512bf16(void)
{
    unsigned a = 0, b, c, d;
    return have_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5)) != 0;
}

/* set_avx512bf16 with another product for bf16 weights. The emulation has a name of its own: nobody has
 * compared its bits with those of the hardware. */
static struct cpu_set set_amx = {.isa_name = "amx", .set_name = "cpu-amxbf16-v1"};
static struct cpu_set set_amx_emulated = {.isa_name = "amx-emulated", .set_name = "cpu-amxbf16-emulated-v1"};
static pthread_once_t amx_sets_once = PTHREAD_ONCE_INIT;

static void amx_set_make(struct cpu_set *set, void (*piece)(const struct set_gemm_piece *piece, struct set_scratch *scratch))
{
    struct cpu_set made = set_avx512bf16;
    made.isa_name = set->isa_name;
    made.set_name = set->set_name;
    made.gemm[KERNELS_WEIGHT_BF16] = piece;
    *set = made;
}

static void amx_sets_make(void)
{
    amx_set_make(&set_amx, gemm_amx_piece);
    amx_set_make(&set_amx_emulated, gemm_amx_emulated_piece);
}

static pthread_once_t amx_once = PTHREAD_ONCE_INIT;
static bool amx_is_good;
static struct diag amx_why; /* where it is not */

/* Asked once a process: the tiles are there, the system grants them, and they compute what they should. */
static void amx_examine(void)
{
    if (!amx_has_bf16()) { return; }
    status_t st = amx_ask_permission(&amx_why);
    if (!failed(st)) { st = amx_self_check(gemm_amx_piece, &amx_why); }
    amx_is_good = !failed(st);
    if (!amx_is_good) { LOGF(LOG_WARN, "amx_not_used", "why=\"%s\"", amx_why.text); }
}

static bool have_amx(void)
{
    if (!have_avx512bf16()) { return false; }
    pthread_once(&amx_once, amx_examine);
    return amx_is_good;
}
#endif

static const struct {
    const struct cpu_set *set;
    bool (*have)(void);
    enum kernels_compute compute; /* "auto" picks it only where this is asked for */
} sets[] = {
#if defined(__x86_64__)
    {&set_amx, have_amx, KERNELS_COMPUTE_BF16},
    {&set_avx512bf16, have_avx512bf16, KERNELS_COMPUTE_BF16},
    {&set_avx512, have_avx512, KERNELS_COMPUTE_F32},
    {&set_avx2, have_avx2, KERNELS_COMPUTE_F32},
#endif
    {&set_scalar, have_scalar, KERNELS_COMPUTE_F32},
};
#define SET_COUNT (sizeof(sets) / sizeof(sets[0]))

static char isa_text[128];
static pthread_once_t isa_text_once = PTHREAD_ONCE_INIT;

static void isa_text_make(void)
{
    size_t length = 0;
    for (size_t i = 0; i < SET_COUNT; i++) {
        if (!sets[i].have()) { continue; }
        length += (size_t)snprintf(isa_text + length, sizeof(isa_text) - length, "%s ", sets[i].set->isa_name);
    }
    snprintf(isa_text + length, sizeof(isa_text) - length, "ref");
}

const char *cpu_backend_isa_available(void)
{
    pthread_once(&isa_text_once, isa_text_make);
    return isa_text;
}

static status_t pick_set(const char *isa, enum kernels_compute compute, const struct cpu_set **ret_set, struct diag *diag)
{
    bool automatic = strcmp(isa, "auto") == 0, known = automatic;
#if defined(__x86_64__)
    pthread_once(&amx_sets_once, amx_sets_make);
    if (strcmp(isa, set_amx_emulated.isa_name) == 0 && have_avx512bf16()) { /* for tests: no list names it */
        *ret_set = &set_amx_emulated;
        return STATUS_OK;
    }
#endif
    for (size_t i = 0; i < SET_COUNT; i++) {
        bool named = strcmp(isa, sets[i].set->isa_name) == 0;
        known = known || named;
        if ((named || (automatic && sets[i].compute <= compute)) && sets[i].have()) {
            *ret_set = sets[i].set;
            return STATUS_OK;
        }
    }
    if (!known) {
        diag_set(diag, "unknown instruction set \"%.64s\"; this machine has: auto %s", isa, cpu_backend_isa_available());
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    diag_set(diag, "this machine does not have the instruction set \"%s\"; it has: auto %s", isa, cpu_backend_isa_available());
    return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
}

/* ---- products ------------------------------------------------------------------------------ */

static void cpu_gemm(struct kernels *kernels, const struct kernels_gemm *gemms, uint32_t count)
{
    const struct cpu_backend *backend = cpu(kernels);
    gemm_run(backend->set, backend->row_step, backend->integers, backend->pool, backend->scratch, gemms, count);
}

static uint32_t div_up(uint32_t a, uint32_t b) { return a / b + (a % b != 0); }
static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* ---- attention ----------------------------------------------------------------------------- */

static void cpu_attention(struct kernels *kernels, const struct kernels_attention *a)
{
    struct cpu_backend *backend = cpu(kernels);
    attention_plan_run(backend->attention, backend->set, backend->pool, backend->scratch, a);
}

/* ---- row by row ---------------------------------------------------------------------------- */

struct rows_job {
    const struct cpu_backend *cpu;
    void (*fn)(const struct rows_job *job, uint32_t row_first, uint32_t rows);
    const void *args;
    uint32_t rows;
    uint32_t piece_rows;
};

static void rows_piece_run(const void *arg, uint32_t worker, uint32_t piece)
{
    (void)worker;
    const struct rows_job *job = arg;
    uint32_t first = piece * job->piece_rows;
    job->fn(job, first, min_u32(job->piece_rows, job->rows - first));
}

static void rows_run(struct kernels *kernels, uint32_t rows, size_t row_values, const void *args,
                     void (*fn)(const struct rows_job *job, uint32_t row_first, uint32_t rows))
{
    struct rows_job job = {.cpu = cpu(kernels), .fn = fn, .args = args, .rows = rows};
    size_t rows_alone = ROWS_ALONE_MAX / (row_values != 0 ? row_values : 1);
    job.piece_rows = rows_alone < 2 ? 1 : rows_alone > rows ? rows : (uint32_t)rows_alone / 2;
    pool_run(job.cpu->pool, div_up(rows, job.piece_rows), rows_piece_run, &job);
}

#define ROWS_OPERATION(name, row_values)                                                       \
    static void name##_rows_run(const struct rows_job *job, uint32_t row_first, uint32_t rows) \
    {                                                                                          \
        job->cpu->set->name(job->args, row_first, rows);                                       \
    }                                                                                          \
    static void cpu_##name(struct kernels *kernels, const struct kernels_##name *args)         \
    {                                                                                          \
        rows_run(kernels, args->rows, (row_values), args, name##_rows_run);                    \
    }

ROWS_OPERATION(rmsnorm, (size_t)args->heads * args->dim)
ROWS_OPERATION(layernorm, args->dim)
ROWS_OPERATION(rope, (size_t)args->heads * args->rotary_dim)
ROWS_OPERATION(embed, args->table->n_in)
ROWS_OPERATION(kv_write, (size_t)2 * args->kv.layout.kv_heads * args->kv.layout.head_dim)

/* Operations that a set has for one row. */
static void silu_mul_rows_run(const struct rows_job *job, uint32_t row_first, uint32_t rows)
{
    const struct kernels_silu_mul *a = job->args;
    const float *gate = a->gate, *up = a->up;
    float *out = a->out;
    for (size_t r = row_first; r < (size_t)row_first + rows; r++) {
        job->cpu->set->silu_mul(a->dim, gate + r * a->gate_stride, up + r * a->up_stride, out + r * a->out_stride);
    }
}

static void cpu_silu_mul(struct kernels *kernels, const struct kernels_silu_mul *args)
{
    rows_run(kernels, args->rows, args->dim, args, silu_mul_rows_run);
}

static void mul_rows_run(const struct rows_job *job, uint32_t row_first, uint32_t rows)
{
    const struct kernels_mul *m = job->args;
    const float *a = m->a, *b = m->b;
    float *out = m->out;
    for (size_t r = row_first; r < (size_t)row_first + rows; r++) {
        job->cpu->set->mul(m->dim, a + r * m->a_stride, b + r * m->b_stride, out + r * m->out_stride);
    }
}

static void cpu_mul(struct kernels *kernels, const struct kernels_mul *args)
{
    rows_run(kernels, args->rows, args->dim, args, mul_rows_run);
}

static void gelu_rows_run(const struct rows_job *job, uint32_t row_first, uint32_t rows)
{
    const struct kernels_gelu *a = job->args;
    const float *x = a->x;
    float *out = a->out;
    for (size_t r = row_first; r < (size_t)row_first + rows; r++) {
        job->cpu->set->gelu(a->form, a->dim, x + r * a->x_stride, out + r * a->out_stride);
    }
}

static void cpu_gelu(struct kernels *kernels, const struct kernels_gelu *args)
{
    rows_run(kernels, args->rows, args->dim, args, gelu_rows_run);
}

static void gather_rows_run(const struct rows_job *job, uint32_t row_first, uint32_t rows)
{
    const struct kernels_gather_rows *a = job->args;
    for (size_t r = row_first; r < (size_t)row_first + rows; r++) {
        memcpy((float *)a->out + r * a->out_stride, (const float *)a->x + a->from[r] * a->x_stride, a->dim * sizeof(float));
    }
}

static void cpu_gather_rows(struct kernels *kernels, const struct kernels_gather_rows *args)
{
    rows_run(kernels, args->rows, args->dim, args, gather_rows_run);
}

/* ---- life ---------------------------------------------------------------------------------- */

static void cpu_destroy(struct kernels *kernels)
{
    struct cpu_backend *backend = cpu(kernels);
    pool_destroy(backend->pool);
    attention_plan_destroy(backend->attention);
    if (backend->memory != NULL) { kernels_host_buffer_free(kernels, backend->memory, backend->memory_bytes); }
    free(backend->scratch);
    free(backend);
}

static const struct kernels_backend cpu_ops = {
    .destroy = cpu_destroy,
    KERNELS_HOST_OPERATIONS,
    .gemm = cpu_gemm,
    .rmsnorm = cpu_rmsnorm,
    .layernorm = cpu_layernorm,
    .rope = cpu_rope,
    .embed = cpu_embed,
    .silu_mul = cpu_silu_mul,
    .gelu = cpu_gelu,
    .mul = cpu_mul,
    .gather_rows = cpu_gather_rows,
    .kv_write = cpu_kv_write,
    .attention = cpu_attention,
};

/* The pages of a worker's scratch are touched when used: packs are mapped for the deepest product
 * that there may be, and cost memory only as far as a model's products reach. */
static status_t scratch_create(struct cpu_backend *backend, struct diag *diag)
{
    const size_t pack = SET_GEMM_PACK_BYTES, sums = SET_SUMS_FLOATS * sizeof(float);
    const size_t attention = SET_ATTENTION_FLOATS * sizeof(float);
    const size_t worker_bytes = (pack + sums + GEMM_INT_SCRATCH_BYTES + attention + 4095) / 4096 * 4096;
    uint32_t threads = backend->base.threads;
    backend->scratch = calloc(threads, sizeof(*backend->scratch));
    if (backend->scratch == NULL) {
        diag_set(diag, "no memory for the scratch of %u threads", threads);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    TRY(kernels_host_buffer_alloc(&backend->base, worker_bytes * threads, &backend->memory, diag));
    backend->memory_bytes = worker_bytes * threads;
    for (uint32_t i = 0; i < threads; i++) {
        unsigned char *base = (unsigned char *)backend->memory + i * worker_bytes;
        backend->scratch[i].pack = base;
        backend->scratch[i].sums = (float *)(void *)(base + pack);
        gemm_int_scratch_init(&backend->scratch[i].integers, base + pack + sums);
        backend->scratch[i].attention = (float *)(void *)(base + pack + sums + GEMM_INT_SCRATCH_BYTES);
    }
    return STATUS_OK;
}

status_t cpu_backend_create(const char *isa, const struct kernels_config *config, struct kernels **ret_kernels,
                            struct diag *diag)
{
    const struct cpu_set *set = NULL;
    TRY(pick_set(isa, config->compute, &set, diag));
    struct cpu_backend *backend = calloc(1, sizeof(*backend));
    if (backend == NULL) {
        diag_set(diag, "no memory for the kernels' handle");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    backend->set = set;
    backend->row_step = strncmp(set->isa_name, "amx", 3) == 0 ? 32 : 6; /* 2 x 16, or the register tiles */
    backend->integers = gemm_int_pick(isa);
    backend->base = (struct kernels){.ops = &cpu_ops, .set_name = set->set_name, .isa_name = set->isa_name,
                                     .threads = config->threads, .uses_host_memory = true};
    status_t st = scratch_create(backend, diag);
    if (failed(st)) { goto fail; }
    st = attention_plan_create(config->threads, &backend->attention, diag);
    if (failed(st)) { goto fail; }
    st = pool_create(config->threads, &backend->pool, diag);
    if (failed(st)) { goto fail; }
    *ret_kernels = &backend->base;
    return STATUS_OK;
fail:
    cpu_destroy(&backend->base);
    return st;
}
