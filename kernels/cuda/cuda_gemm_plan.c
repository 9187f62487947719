#include "kernels/cuda/cuda_gemm_plan.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "kernels/cuda/cuda_bias.h"
#include "kernels/cuda/cuda_gemm_choose.h"
#include "kernels/cuda/gemv_args.h"

#define WORKSPACE_BYTES ((size_t)32 << 20)
#define WORKSPACE_BYTES_SM90 ((size_t)64 << 20) /* cuBLASLt's kernels for Hopper and later ask for more */
#define WORKSPACE_SHARE 64u /* of a device's memory at most: 4 GiB and more have the full size */
#define WORKSPACE_BYTES_MIN ((size_t)1 << 20)
#define STAGE_BYTES ((size_t)4 << 20)
#define BASE_ALIGNMENT 16u /* the driver takes bases to be so */
#define GEMV_ROWS 4u /* up to here a product is a walk through the weights, and ours is one launch without a plan */
#define BINS 1024u
#define NONE UINT32_MAX

_Static_assert(STAGE_BYTES / 2 >= (size_t)KERNELS_GEMM_IN_MAX * 4, "a row of x fits half of the stage");

struct plan {
    struct cuda_gemm_shape shape;
    struct cuda_gemm *gemm; /* NULL: the slot is free */
    struct cuda_gemm_algorithm algorithm;
    uint64_t used_at;
    uint32_t next; /* in its bin */
};

/* An algorithm for a bucket of rows, or in deterministic mode for all of them. */
struct choice {
    struct cuda_gemm_shape shape; /* its rows are the bucket */
    struct cuda_gemm_algorithm algorithm;
};

struct cuda_gemm_plans {
    struct cuda_queue *queue;
    bool deterministic;
    struct cuda_biases biases;
    void *workspace, *stage; /* device */
    size_t workspace_bytes;
    struct plan plans[CUDA_GEMM_PLANS_MAX];
    uint32_t bins[BINS];
    uint32_t plan_count; /* slots ever used */
    uint64_t clock;
    struct choice *choices;
    uint32_t choice_count, choice_capacity;
};

/* A product as the library takes it. */
struct product {
    struct cuda_gemm_shape shape;
    const void *weight, *x, *bias;
    void *out;
};

static size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

uint32_t cuda_gemm_bucket(uint32_t rows)
{
    uint32_t power = 1;
    while (power < rows && power < 1u << 31) { power *= 2; }
    uint32_t between = power / 4 * 3;
    return power >= 32 && rows <= between ? between : power;
}

/* ---- merging -------------------------------------------------------------------------------- */

static const uint8_t *at(const void *base, size_t bytes) { return (const uint8_t *)base + bytes; }

/* `b` continues `a` in weights, biases and columns. */
static bool continues(const struct kernels_gemm *a, const struct kernels_matrix *a_weight, const struct kernels_gemm *b)
{
    const struct kernels_matrix *w = a_weight, *v = b->weight;
    const size_t row_bytes = (size_t)w->stride * dtype_bytes((enum dtype)w->format);
    if (a->rows != b->rows || a->x != b->x || a->x_dtype != b->x_dtype || a->x_stride != b->x_stride) { return false; }
    if (a->out_dtype != b->out_dtype || a->out_stride != b->out_stride || a->accumulate != b->accumulate) { return false; }
    if (w->format != v->format || w->order != v->order || w->n_in != v->n_in || w->stride != v->stride) { return false; }
    if ((a->bias == NULL) != (b->bias == NULL)) { return false; }
    if (at(w->data, w->n_out * row_bytes) != (const uint8_t *)v->data) { return false; }
    if (at(a->out, (size_t)w->n_out * dtype_bytes(a->out_dtype)) != (const uint8_t *)b->out) { return false; }
    /* One row's stride need not hold all of its columns; the merged product's must. */
    if (a->rows > 1 && a->out_stride < (size_t)w->n_out + v->n_out) { return false; }
    if (a->bias == NULL) { return true; }
    return a->bias_dtype == b->bias_dtype && at(a->bias, (size_t)w->n_out * dtype_bytes(a->bias_dtype)) == (const uint8_t *)b->bias;
}

uint32_t cuda_gemm_merge(const struct kernels_gemm *gemms, uint32_t count, struct kernels_gemm *ret_gemm, struct kernels_matrix *ret_weight)
{
    *ret_gemm = gemms[0];
    *ret_weight = *gemms[0].weight;
    ret_gemm->weight = ret_weight;
    uint32_t merged = 1;
    while (merged < count && continues(ret_gemm, ret_weight, &gemms[merged])) { ret_weight->n_out += gemms[merged++].weight->n_out; }
    return merged;
}

/* ---- choices -------------------------------------------------------------------------------- */

static bool shapes_equal(const struct cuda_gemm_shape *a, const struct cuda_gemm_shape *b)
{
    return a->rows == b->rows && a->n_out == b->n_out && a->n_in == b->n_in && a->dtype == b->dtype && a->out_dtype == b->out_dtype &&
           a->weight_stride == b->weight_stride && a->x_stride == b->x_stride && a->out_stride == b->out_stride &&
           a->has_bias == b->has_bias && a->accumulate == b->accumulate && a->deterministic == b->deterministic;
}

/* What a choice is known by: exact rows and, where results are deterministic, strides do not matter. */
static struct cuda_gemm_shape choice_shape(const struct cuda_gemm_plans *plans, const struct cuda_gemm_shape *shape)
{
    struct cuda_gemm_shape s = *shape;
    if (plans->deterministic) {
        s.rows = CUDA_GEMM_PROBE_ROWS;
        s.x_stride = (uint32_t)round_up(s.n_in, BASE_ALIGNMENT / 2);
        s.out_stride = (uint32_t)round_up(s.n_out, BASE_ALIGNMENT / 2);
    } else {
        s.rows = cuda_gemm_bucket(s.rows);
    }
    return s;
}

static const struct choice *choice_find(const struct cuda_gemm_plans *plans, const struct cuda_gemm_shape *key)
{
    for (uint32_t i = 0; i < plans->choice_count; i++) {
        if (shapes_equal(&plans->choices[i].shape, key)) { return &plans->choices[i]; }
    }
    return NULL;
}

static status_t choice_room(struct cuda_gemm_plans *plans, struct diag *diag)
{
    if (plans->choice_count < plans->choice_capacity) { return STATUS_OK; }
    uint32_t capacity = plans->choice_capacity == 0 ? 64 : plans->choice_capacity * 2;
    struct choice *choices = realloc(plans->choices, capacity * sizeof(*choices));
    if (choices == NULL) {
        diag_set(diag, "no memory for the choice of a product's algorithm");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    plans->choices = choices;
    plans->choice_capacity = capacity;
    return STATUS_OK;
}

static status_t choice_make(struct cuda_gemm_plans *plans, const struct cuda_gemm_shape *key, const struct product *p, struct diag *diag)
{
    const struct cuda_gemm_trial trial = {
        .driver = plans->queue->driver, .stream = plans->queue->stream, .weight = p->weight, .bias = p->bias, .x = p->x,
        .out = p->shape.accumulate ? NULL : p->out, .workspace = plans->workspace, .workspace_bytes = plans->workspace_bytes};
    TRY(choice_room(plans, diag));
    struct choice *choice = &plans->choices[plans->choice_count];
    choice->shape = *key;
    /* Timed with the rows at hand, which stand for their bucket. */
    TRY(plans->deterministic ? cuda_gemm_choose_exact(&trial, key, &choice->algorithm, diag)
                             : cuda_gemm_choose_fast(&trial, &p->shape, &choice->algorithm, diag));
    plans->choice_count++;
    return STATUS_OK;
}

/* ---- plans ---------------------------------------------------------------------------------- */

static uint32_t bin_of(const struct cuda_gemm_shape *s)
{
    const uint32_t words[] = {s->rows,         s->n_out,    s->n_in,       (uint32_t)s->dtype << 8 | (uint32_t)s->out_dtype,
                              s->weight_stride, s->x_stride, s->out_stride, (uint32_t)s->has_bias << 1 | (uint32_t)s->accumulate};
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) { hash = (hash ^ words[i]) * 1099511628211u; }
    return (uint32_t)(hash >> 32) % BINS;
}

static struct plan *plan_find(struct cuda_gemm_plans *plans, const struct cuda_gemm_shape *shape)
{
    for (uint32_t i = plans->bins[bin_of(shape)]; i != NONE; i = plans->plans[i].next) {
        if (shapes_equal(&plans->plans[i].shape, shape)) { return &plans->plans[i]; }
    }
    return NULL;
}

/* A slot that no bin knows. The plan unused for longest gives way: its products have long been queued. */
static uint32_t plan_slot(struct cuda_gemm_plans *plans)
{
    if (plans->plan_count < CUDA_GEMM_PLANS_MAX) { return plans->plan_count++; }
    uint32_t oldest = 0;
    for (uint32_t i = 1; i < CUDA_GEMM_PLANS_MAX; i++) {
        if (plans->plans[i].used_at < plans->plans[oldest].used_at) { oldest = i; }
    }
    struct plan *plan = &plans->plans[oldest];
    if (plan->gemm != NULL) {
        uint32_t *link = &plans->bins[bin_of(&plan->shape)];
        while (*link != oldest) { link = &plans->plans[*link].next; }
        *link = plan->next;
        plans->queue->driver->gemm_destroy(plans->queue->driver, plan->gemm);
    }
    *plan = (struct plan){0};
    return oldest;
}

/* The chosen algorithm for these rows. Where it does not take them, fast mode asks the library again. */
static status_t plan_settle(struct cuda_gemm_plans *plans, struct plan *plan, const struct product *p, struct diag *diag)
{
    const struct cuda_driver *d = plans->queue->driver;
    struct cuda_gemm_shape key = choice_shape(plans, &p->shape);
    const struct choice *choice = choice_find(plans, &key);
    if (choice == NULL) {
        TRY(choice_make(plans, &key, p, diag));
        choice = choice_find(plans, &key);
    }
    TRY(d->gemm_create(d, &p->shape, &plan->gemm, diag));
    plan->algorithm = choice->algorithm;
    status_t st = d->gemm_adopt(d, plan->gemm, &plan->algorithm, diag);
    bool too_big = !failed(st) && plan->algorithm.workspace_bytes > plans->workspace_bytes;
    if (plans->deterministic) {
        if (too_big) {
            diag_set(diag, "%u rows of n_out=%u n_in=%u need more workspace than there is", p->shape.rows, p->shape.n_out, p->shape.n_in);
            return STATUS(ST_UNIMPLEMENTED, SCOPE_NODE);
        }
        return st;
    }
    if (!too_big && st.code != ST_UNIMPLEMENTED) { return st; }
    uint32_t count = 0;
    return d->gemm_algorithms(d, plan->gemm, plans->workspace_bytes, 1, &plan->algorithm, &count, diag);
}

/* NULL after a failure, which the queue keeps. */
static struct plan *plan_get(struct cuda_gemm_plans *plans, const struct product *p)
{
    struct plan *plan = plan_find(plans, &p->shape);
    if (plan == NULL) {
        cuda_queue_capture_abandon(plans->queue, "a product's shape is seen for the first time");
        uint32_t slot = plan_slot(plans);
        struct diag text = {{0}};
        plan = &plans->plans[slot];
        status_t st = plan_settle(plans, plan, p, &text);
        if (failed(st)) {
            plans->queue->driver->gemm_destroy(plans->queue->driver, plan->gemm);
            *plan = (struct plan){0};
            cuda_queue_fail(plans->queue, st, &text);
            return NULL;
        }
        uint32_t *bin = &plans->bins[bin_of(&p->shape)];
        plan->shape = p->shape;
        plan->next = *bin;
        *bin = slot;
    }
    plan->used_at = ++plans->clock;
    return plan;
}

/* ---- products ------------------------------------------------------------------------------- */

static void product_run(struct cuda_gemm_plans *plans, const struct product *p)
{
    struct plan *plan = plan_get(plans, p);
    if (plan == NULL) { return; }
    cuda_queue_gemm(plans->queue, &(struct cuda_queue_gemm){.gemm = plan->gemm, .algorithm = &plan->algorithm, .weight = p->weight,
                                                            .x = p->x, .bias = p->bias, .out = p->out, .workspace = plans->workspace,
                                                            .workspace_bytes = plans->workspace_bytes});
}

static void rows_copy(struct cuda_queue *queue, void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t row_bytes, size_t rows)
{
    cuda_queue_copy_2d(queue, &(struct cuda_copy_2d){.kind = CUDA_COPY_ON_DEVICE, .to = to, .to_pitch = to_pitch, .from = from,
                                                     .from_pitch = from_pitch, .row_bytes = row_bytes, .rows = rows});
}

/* Rows that do not begin on 16 bytes go through the stage, as many at a time as fit. */
static void product_run_staged(struct cuda_gemm_plans *plans, const struct product *whole, bool stage_x, bool stage_out)
{
    const struct cuda_gemm_shape *s = &whole->shape;
    const size_t x_bytes = dtype_bytes(s->dtype), out_bytes = dtype_bytes(s->out_dtype);
    const size_t x_pitch = round_up(s->n_in * x_bytes, BASE_ALIGNMENT), out_pitch = round_up(s->n_out * out_bytes, BASE_ALIGNMENT);
    const size_t x_from_pitch = s->x_stride * x_bytes, out_from_pitch = s->out_stride * out_bytes, half = STAGE_BYTES / 2;
    uint8_t *staged_x = plans->stage, *staged_out = staged_x + half;
    uint32_t rows_max = s->rows;
    if (stage_x && half / x_pitch < rows_max) { rows_max = (uint32_t)(half / x_pitch); }
    if (stage_out && half / out_pitch < rows_max) { rows_max = (uint32_t)(half / out_pitch); }
    CHECK(rows_max >= 1); /* 2^19 outputs of f32: TOKEN_MASS_VOCAB_MAX */
    for (uint32_t row = 0; row < s->rows; row += rows_max) {
        const uint32_t rows = s->rows - row < rows_max ? s->rows - row : rows_max;
        const uint8_t *x = (const uint8_t *)whole->x + row * x_from_pitch;
        uint8_t *out = (uint8_t *)whole->out + row * out_from_pitch;
        struct product p = *whole;
        p.shape.rows = rows;
        p.x = x;
        p.out = out;
        if (stage_x) {
            rows_copy(plans->queue, staged_x, x_pitch, x, x_from_pitch, s->n_in * x_bytes, rows);
            p.x = staged_x;
            p.shape.x_stride = (uint32_t)(x_pitch / x_bytes);
        }
        if (stage_out) {
            if (s->accumulate) { rows_copy(plans->queue, staged_out, out_pitch, out, out_from_pitch, s->n_out * out_bytes, rows); }
            p.out = staged_out;
            p.shape.out_stride = (uint32_t)(out_pitch / out_bytes);
        }
        product_run(plans, &p);
        if (stage_out) { rows_copy(plans->queue, out, out_from_pitch, staged_out, out_pitch, s->n_out * out_bytes, rows); }
    }
}

static bool is_aligned(const void *base, size_t pitch, bool pitch_too)
{
    return (uintptr_t)base % BASE_ALIGNMENT == 0 && (!pitch_too || pitch % BASE_ALIGNMENT == 0);
}

static struct cuda_gemv_part gemv_part(const struct kernels_gemm *g)
{
    return (struct cuda_gemv_part){.weight = g->weight->data, .stride = g->weight->stride, .n_out = g->weight->n_out, .bias = g->bias,
                                   .out = g->out, .out_stride = g->out_stride};
}

static bool gemv_launch(struct cuda_gemm_plans *plans, const struct cuda_gemv_args *args)
{
    struct cuda_launch shape;
    if (!cuda_gemv_takes(args)) { return false; }
    cuda_gemv_shape(args, &shape);
    cuda_queue_launch(plans->queue, cuda_gemv_kernel(args), &shape, args, sizeof(*args));
    return true;
}

static struct cuda_gemv_args gemv_args(const struct kernels_gemm *g)
{
    return (struct cuda_gemv_args){.rows = g->rows, .n_in = g->weight->n_in, .part_count = 1, .accumulate = g->accumulate, .dtype = g->x_dtype,
                                   .out_dtype = g->out_dtype, .bias_dtype = g->bias_dtype, .x = g->x,
                                   /* nobody looks at the stride of one row */
                                   .x_stride = g->rows == 1 ? round_up(g->weight->n_in, BASE_ALIGNMENT / 2) : g->x_stride,
                                   .parts = {gemv_part(g)}};
}

/* False: it is none for gemv.cu. Its sums do not depend on the rows, but they are not the library's, which takes over
 * at more rows: so not where results are deterministic. */
static bool gemv_run(struct cuda_gemm_plans *plans, const struct kernels_gemm *g)
{
    if (plans->deterministic || g->rows > GEMV_ROWS) { return false; }
    const struct cuda_gemv_args args = gemv_args(g);
    return gemv_launch(plans, &args);
}

bool cuda_gemm_plans_run_silu(struct cuda_gemm_plans *plans, const struct kernels_gemm_silu *args)
{
    const struct kernels_gemm *gate = &args->gate, *up = &args->up;
    if (plans->deterministic || gate->rows > GEMV_ROWS || gate->weight->order != KERNELS_ORDER_ROWS || up->weight->order != KERNELS_ORDER_ROWS ||
        (enum dtype)gate->weight->format != gate->x_dtype || up->weight->format != gate->weight->format || up->x_dtype != gate->x_dtype ||
        gate->out_dtype != args->silu.dtype || up->out_dtype != args->silu.dtype ||
        (gate->bias != NULL && up->bias != NULL && gate->bias_dtype != up->bias_dtype)) {
        return false;
    }
    struct cuda_gemv_args gemv = gemv_args(gate);
    gemv.part_count = 2;
    gemv.silu_mul = true;
    gemv.bias_dtype = gate->bias != NULL ? gate->bias_dtype : up->bias_dtype;
    gemv.parts[0].out = args->silu.out;
    gemv.parts[0].out_stride = args->silu.out_stride;
    gemv.parts[1] = gemv_part(up);
    return gemv_launch(plans, &gemv);
}

static void gemm_run(struct cuda_gemm_plans *plans, const struct kernels_gemm *g)
{
    const struct kernels_matrix *w = g->weight;
    CHECK(w->order == KERNELS_ORDER_ROWS);
    CHECK((unsigned)w->format < DTYPE_COUNT);
    CHECK((enum dtype)w->format == g->x_dtype);
    CHECK(g->out_dtype == g->x_dtype || g->out_dtype == DTYPE_F32);
    CHECK(g->x_stride <= UINT32_MAX);
    CHECK(g->out_stride <= UINT32_MAX);
    if (gemv_run(plans, g)) { return; }
    struct product p = {
        .shape = {.rows = g->rows, .n_out = w->n_out, .n_in = w->n_in, .dtype = g->x_dtype, .out_dtype = g->out_dtype,
                  .weight_stride = w->stride, .x_stride = (uint32_t)g->x_stride, .out_stride = (uint32_t)g->out_stride,
                  .has_bias = g->bias != NULL, .accumulate = g->accumulate, .deterministic = plans->deterministic},
        .weight = w->data, .x = g->x, .out = g->out,
    };
    if (g->rows == 1) { /* nobody looks at the strides of one row: one plan for all of them */
        p.shape.x_stride = (uint32_t)round_up(w->n_in, BASE_ALIGNMENT / 2);
        p.shape.out_stride = (uint32_t)round_up(w->n_out, BASE_ALIGNMENT / 2);
    }
    p.bias = cuda_biases_get(&plans->biases, g->bias, w->n_out, g->bias_dtype, g->out_dtype);
    if (cuda_queue_failed(plans->queue)) { return; }
    bool stage_x = !is_aligned(g->x, p.shape.x_stride * (size_t)dtype_bytes(g->x_dtype), plans->deterministic);
    bool stage_out = !is_aligned(g->out, p.shape.out_stride * (size_t)dtype_bytes(g->out_dtype), plans->deterministic);
    if (stage_x || stage_out) {
        product_run_staged(plans, &p, stage_x, stage_out);
    } else {
        product_run(plans, &p);
    }
}

void cuda_gemm_plans_run(struct cuda_gemm_plans *plans, const struct kernels_gemm *gemms, uint32_t count)
{
    for (uint32_t i = 0; i < count;) {
        struct kernels_gemm gemm;
        struct kernels_matrix weight;
        i += cuda_gemm_merge(gemms + i, count - i, &gemm, &weight);
        if (gemm.rows != 0 && !cuda_queue_failed(plans->queue)) { gemm_run(plans, &gemm); }
    }
}

bool cuda_gemm_plans_forget(struct cuda_gemm_plans *plans, const void *first, size_t bytes)
{
    return cuda_biases_forget(&plans->biases, first, bytes);
}

/* ---- life ----------------------------------------------------------------------------------- */

static size_t workspace_of(const struct cuda_device_info *info)
{
    const size_t wanted = info->arch >= 90 ? WORKSPACE_BYTES_SM90 : WORKSPACE_BYTES;
    const size_t share = (size_t)(info->memory_bytes / WORKSPACE_SHARE) / WORKSPACE_BYTES_MIN * WORKSPACE_BYTES_MIN;
    return share >= wanted ? wanted : share < WORKSPACE_BYTES_MIN ? WORKSPACE_BYTES_MIN : share;
}

status_t cuda_gemm_plans_create(struct cuda_queue *queue, bool deterministic, struct cuda_gemm_plans **ret_plans, struct diag *diag)
{
    const struct cuda_driver *d = queue->driver;
    struct cuda_gemm_plans *plans = calloc(1, sizeof(*plans));
    if (plans == NULL) {
        diag_set(diag, "no memory for the plans of products");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    plans->queue = queue;
    plans->deterministic = deterministic;
    plans->biases.queue = queue;
    plans->workspace_bytes = workspace_of(&d->info);
    for (uint32_t i = 0; i < BINS; i++) { plans->bins[i] = NONE; }
    status_t st = d->mem_alloc(d, plans->workspace_bytes, &plans->workspace, diag);
    if (!failed(st)) { st = d->mem_alloc(d, STAGE_BYTES, &plans->stage, diag); }
    if (failed(st)) {
        cuda_gemm_plans_destroy(plans);
        return st;
    }
    *ret_plans = plans;
    return STATUS_OK;
}

void cuda_gemm_plans_destroy(struct cuda_gemm_plans *plans)
{
    if (plans == NULL) { return; }
    const struct cuda_driver *d = plans->queue->driver;
    for (uint32_t i = 0; i < plans->plan_count; i++) {
        if (plans->plans[i].gemm != NULL) { d->gemm_destroy(d, plans->plans[i].gemm); }
    }
    cuda_biases_fini(&plans->biases);
    d->mem_free(d, plans->workspace);
    d->mem_free(d, plans->stage);
    free(plans->choices);
    free(plans);
}
