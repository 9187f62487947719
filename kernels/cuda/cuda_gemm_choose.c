#include "kernels/cuda/cuda_gemm_choose.h"

#include <string.h>

#include "base/log.h"

#define FAST_CANDIDATES 6u
#define FAST_ROUNDS 3u
#define FLUSH_WEIGHT_BYTES ((size_t)1 << 20)
#define EXACT_CANDIDATES 16u
#define COMPARED_COLUMNS 2048u /* every tile of an algorithm does the same sums: the first ones speak for all */

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

static status_t run(const struct cuda_gemm_trial *t, struct cuda_gemm *gemm, const struct cuda_gemm_algorithm *algorithm, const void *x,
                    void *out, struct diag *diag)
{
    return t->driver->gemm_run(t->driver, gemm, algorithm, t->weight, x, t->bias, out, t->workspace, t->workspace_bytes, t->stream, diag);
}

/* One that the library offers and then does not run, which happens, is passed over. */
static bool is_refused(status_t st) { return st.code == ST_UNIMPLEMENTED || (st.code == ST_INVALID_ARGUMENT && st.cause >= CUDA_CAUSE_CUBLAS); }

/* ---- by the clock --------------------------------------------------------------------------- */

struct stopwatch {
    struct cuda_event *first, *last;
    void *flush; /* written before each run, so that the weights come from memory as they do in a model; or NULL */
    size_t flush_bytes;
};

static void stopwatch_fini(const struct cuda_driver *d, struct stopwatch *watch)
{
    d->event_destroy(d, watch->first);
    d->event_destroy(d, watch->last);
    d->mem_free(d, watch->flush);
}

/* weight_bytes  less than FLUSH_WEIGHT_BYTES is not worth the memory: such products do not live on bandwidth. */
static status_t stopwatch_init(const struct cuda_driver *d, size_t weight_bytes, struct stopwatch *watch, struct diag *diag)
{
    TRY(d->event_create(d, CUDA_EVENT_TIMING, &watch->first, diag));
    TRY(d->event_create(d, CUDA_EVENT_TIMING, &watch->last, diag));
    watch->flush_bytes = (size_t)d->info.l2_bytes * 2;
    if (watch->flush_bytes == 0 || weight_bytes < FLUSH_WEIGHT_BYTES || failed(d->mem_alloc(d, watch->flush_bytes, &watch->flush, NULL))) { watch->flush = NULL; }
    return STATUS_OK;
}

static status_t time_one(const struct cuda_gemm_trial *t, const struct stopwatch *watch, struct cuda_gemm *gemm,
                         const struct cuda_gemm_algorithm *algorithm, void *out, float *ret_ms, struct diag *diag)
{
    const struct cuda_driver *d = t->driver;
    float best = 0;
    for (uint32_t round = 0; round <= FAST_ROUNDS; round++) { /* the first only loads code */
        if (watch->flush != NULL) { TRY(d->fill(d, watch->flush, 0, watch->flush_bytes, t->stream, diag)); }
        TRY(d->event_record(d, watch->first, t->stream, diag));
        TRY(run(t, gemm, algorithm, t->x, out, diag));
        TRY(d->event_record(d, watch->last, t->stream, diag));
        TRY(d->event_sync(d, watch->last, diag));
        float ms = 0;
        TRY(d->event_elapsed(d, watch->first, watch->last, &ms, diag));
        if (round == 1 || (round > 1 && ms < best)) { best = ms; }
    }
    *ret_ms = best;
    return STATUS_OK;
}

/* *ret_best stays where none runs, and so says the status. */
static status_t time_all(const struct cuda_gemm_trial *t, size_t weight_bytes, struct cuda_gemm *gemm,
                         const struct cuda_gemm_algorithm *algorithms, uint32_t count, void *out, uint32_t *ret_best, float *ret_ms,
                         struct diag *diag)
{
    struct stopwatch watch = {0};
    bool has_best = false;
    status_t st = stopwatch_init(t->driver, weight_bytes, &watch, diag);
    for (uint32_t i = 0; i < count && (!failed(st) || is_refused(st)); i++) {
        float ms = 0;
        st = time_one(t, &watch, gemm, &algorithms[i], out, &ms, diag);
        if (failed(st) || (has_best && ms >= *ret_ms)) { continue; }
        has_best = true;
        *ret_best = i;
        *ret_ms = ms;
    }
    stopwatch_fini(t->driver, &watch);
    return has_best && is_refused(st) ? STATUS_OK : st;
}

status_t cuda_gemm_choose_fast(const struct cuda_gemm_trial *t, const struct cuda_gemm_shape *shape,
                               struct cuda_gemm_algorithm *ret_algorithm, struct diag *diag)
{
    const struct cuda_driver *d = t->driver;
    struct cuda_gemm *gemm = NULL;
    struct cuda_gemm_algorithm algorithms[FAST_CANDIDATES];
    uint32_t count = 0, best = 0;
    float ms = 0;
    void *scratch = NULL;
    TRY(d->gemm_create(d, shape, &gemm, diag));
    status_t st = d->gemm_algorithms(d, gemm, t->workspace_bytes, FAST_CANDIDATES, algorithms, &count, diag);
    if (failed(st)) { goto done; }
    void *out = t->out;
    if (out == NULL && count > 1) { /* it is added to: the trial must not */
        size_t bytes = (size_t)shape->rows * shape->out_stride * dtype_bytes(shape->out_dtype);
        out = failed(d->mem_alloc(d, bytes, &scratch, NULL)) ? NULL : scratch;
    }
    const size_t weight_bytes = (size_t)shape->n_out * shape->weight_stride * dtype_bytes(shape->dtype);
    if (out != NULL && count > 1) { st = time_all(t, weight_bytes, gemm, algorithms, count, out, &best, &ms, diag); }
    if (failed(st)) { goto done; }
    *ret_algorithm = algorithms[best];
    LOGF(LOG_DEBUG, "cuda_gemm", "rows=%u n_out=%u n_in=%u dtype=%s out=%s algorithm=%u tile=%u stages=%u split=%u choice=%u/%u ms=%.4f",
         shape->rows, shape->n_out, shape->n_in, dtype_name(shape->dtype), dtype_name(shape->out_dtype), ret_algorithm->id,
         ret_algorithm->tile, ret_algorithm->stages, ret_algorithm->split_k, best + 1, count, (double)ms);
done:
    if (scratch != NULL) { d->mem_free(d, scratch); } /* waits for what still writes there */
    d->gemm_destroy(d, gemm);
    return st;
}

/* ---- by bits -------------------------------------------------------------------------------- */

/* Tried and compared; the last is the one that the others are held to. */
static const uint32_t rows_run[] = {1, 2, 7, 16, 33, 64};
/* Only asked for: what a big prefill needs. */
static const uint32_t rows_asked[] = {3, 256, 1000, 8192};

struct exact_trial {
    const struct cuda_gemm_trial *t;
    const struct cuda_gemm_shape *shape;
    void *x, *out;             /* device */
    uint8_t *host_x;           /* pinned */
    uint8_t *expected, *found; /* pinned, [rows][columns] */
    uint32_t columns;
    size_t row_bytes; /* of expected and found */
};

/* Numbers of both signs whose products do not sum exactly, so that another order shows. */
static void fill_x(uint8_t *to, size_t count, enum dtype dtype)
{
    uint32_t state = 20931;
    for (size_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        float value = ((float)(state >> 8) / 8388608.0f - 1.0f) * (1.0f + (float)(state & 7u));
        uint16_t half = dtype == DTYPE_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
        if (dtype == DTYPE_F32) { memcpy(to + i * 4, &value, 4); } else { memcpy(to + i * 2, &half, 2); }
    }
}

static void exact_fini(struct exact_trial *e)
{
    const struct cuda_driver *d = e->t->driver;
    (void)d->stream_sync(d, e->t->stream, NULL);
    d->mem_free(d, e->x);
    d->mem_free(d, e->out);
    d->host_free(d, e->host_x);
    d->host_free(d, e->expected);
    d->host_free(d, e->found);
}

static status_t exact_init(struct exact_trial *e, struct diag *diag)
{
    const struct cuda_driver *d = e->t->driver;
    const struct cuda_gemm_shape *s = e->shape;
    const size_t x_count = (size_t)s->rows * s->x_stride, x_bytes = x_count * dtype_bytes(s->dtype);
    void *host_x = NULL, *expected = NULL, *found = NULL;
    e->columns = min_u32(s->n_out, COMPARED_COLUMNS);
    e->row_bytes = (size_t)e->columns * dtype_bytes(s->out_dtype);
    TRY(d->mem_alloc(d, x_bytes, &e->x, diag));
    TRY(d->mem_alloc(d, (size_t)s->rows * s->out_stride * dtype_bytes(s->out_dtype), &e->out, diag));
    TRY(d->host_alloc(d, x_bytes, &host_x, diag));
    e->host_x = host_x;
    TRY(d->host_alloc(d, s->rows * e->row_bytes, &expected, diag));
    e->expected = expected;
    TRY(d->host_alloc(d, s->rows * e->row_bytes, &found, diag));
    e->found = found;
    fill_x(e->host_x, x_count, s->dtype);
    return d->copy(d, CUDA_COPY_TO_DEVICE, e->x, e->host_x, x_bytes, e->t->stream, diag);
}

/* The first columns of `rows` rows by `algorithm`. UNIMPLEMENTED: it does not take so many. */
static status_t exact_run(const struct exact_trial *e, const struct cuda_gemm_algorithm *algorithm, uint32_t rows, uint8_t *to,
                          struct diag *diag)
{
    const struct cuda_driver *d = e->t->driver;
    struct cuda_gemm_shape shape = *e->shape;
    shape.rows = rows;
    struct cuda_gemm *gemm = NULL;
    struct cuda_gemm_algorithm own = *algorithm;
    const size_t out_pitch = (size_t)shape.out_stride * dtype_bytes(shape.out_dtype);
    TRY(d->gemm_create(d, &shape, &gemm, diag));
    status_t st = d->gemm_adopt(d, gemm, &own, diag);
    if (!failed(st) && own.workspace_bytes > e->t->workspace_bytes) { st = STATUS(ST_UNIMPLEMENTED, SCOPE_NODE); }
    if (failed(st) || to == NULL) { goto done; }
    st = d->fill(d, e->out, 0, rows * out_pitch, e->t->stream, diag);
    if (failed(st)) { goto done; }
    st = run(e->t, gemm, &own, e->x, e->out, diag);
    if (failed(st)) { goto done; }
    const struct cuda_copy_2d copy = {.kind = CUDA_COPY_TO_HOST, .to = to, .to_pitch = e->row_bytes, .from = e->out,
                                      .from_pitch = out_pitch, .row_bytes = e->row_bytes, .rows = rows};
    st = d->copy_2d(d, &copy, e->t->stream, diag);
    if (failed(st)) { goto done; }
    st = d->stream_sync(d, e->t->stream, diag);
done:
    d->gemm_destroy(d, gemm);
    return st;
}

/* OK: its rows keep their bits. UNIMPLEMENTED: they do not, diag says where. */
static status_t exact_examine(const struct exact_trial *e, const struct cuda_gemm_algorithm *algorithm, struct diag *diag)
{
    if (algorithm->split_k > 1) {
        diag_set(diag, "it sums in %u parts", algorithm->split_k);
        return STATUS(ST_UNIMPLEMENTED, SCOPE_NODE);
    }
    for (size_t i = 0; i < sizeof(rows_asked) / sizeof(rows_asked[0]); i++) { TRY(exact_run(e, algorithm, rows_asked[i], NULL, diag)); }
    TRY(exact_run(e, algorithm, e->shape->rows, e->expected, diag));
    for (size_t i = 0; i < sizeof(rows_run) / sizeof(rows_run[0]); i++) {
        TRY(exact_run(e, algorithm, rows_run[i], e->found, diag));
        if (memcmp(e->expected, e->found, rows_run[i] * e->row_bytes) != 0) {
            diag_set(diag, "a row's bits among %u rows are not those among %u", rows_run[i], e->shape->rows);
            return STATUS(ST_UNIMPLEMENTED, SCOPE_NODE);
        }
    }
    return STATUS_OK;
}

static status_t exact_pick(const struct exact_trial *e, const struct cuda_gemm_algorithm *algorithms, uint32_t count,
                           struct cuda_gemm_algorithm *ret_algorithm, struct diag *diag)
{
    const struct cuda_gemm_shape *s = e->shape;
    struct diag why = {{0}};
    for (uint32_t i = 0; i < count; i++) {
        status_t st = exact_examine(e, &algorithms[i], &why);
        if (failed(st) && !is_refused(st)) {
            *diag = why;
            return st;
        }
        if (failed(st)) {
            LOGF(LOG_DEBUG, "cuda_gemm_not_exact", "n_out=%u n_in=%u choice=%u/%u algorithm=%u why=\"%s\"", s->n_out, s->n_in, i + 1, count,
                 algorithms[i].id, why.text);
            continue;
        }
        *ret_algorithm = algorithms[i];
        LOGF(LOG_DEBUG, "cuda_gemm_exact", "n_out=%u n_in=%u dtype=%s out=%s algorithm=%u tile=%u stages=%u choice=%u/%u", s->n_out, s->n_in,
             dtype_name(s->dtype), dtype_name(s->out_dtype), algorithms[i].id, algorithms[i].tile, algorithms[i].stages, i + 1, count);
        return STATUS_OK;
    }
    diag_set(diag, "none of %u algorithms for n_out=%u n_in=%u %s gives a row the same bits among any number of rows (the last: %s); start "
             "without --deterministic", count, s->n_out, s->n_in, dtype_name(s->dtype), why.text);
    return STATUS(ST_UNIMPLEMENTED, SCOPE_NODE);
}

status_t cuda_gemm_choose_exact(const struct cuda_gemm_trial *t, const struct cuda_gemm_shape *shape,
                                struct cuda_gemm_algorithm *ret_algorithm, struct diag *diag)
{
    const struct cuda_driver *d = t->driver;
    struct cuda_gemm *gemm = NULL;
    struct cuda_gemm_algorithm algorithms[EXACT_CANDIDATES];
    uint32_t count = 0;
    TRY(d->gemm_create(d, shape, &gemm, diag));
    status_t st = d->gemm_algorithms(d, gemm, t->workspace_bytes, EXACT_CANDIDATES, algorithms, &count, diag);
    d->gemm_destroy(d, gemm);
    if (failed(st)) { return st; }
    struct exact_trial e = {.t = t, .shape = shape};
    struct diag local = {{0}};
    st = exact_init(&e, &local);
    if (!failed(st)) { st = exact_pick(&e, algorithms, count, ret_algorithm, &local); }
    exact_fini(&e);
    if (failed(st) && diag != NULL) { *diag = local; }
    return st;
}
