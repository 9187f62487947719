#include "engine/logits_rows.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "model/sampler.h"
#include "model/sampler_adjust.h"

/* Rows computed at once. The head's weights are read once per chunk, so it should hold a whole decode batch:
 * 64 rows of a 152k vocabulary are 39 MB, 256 on a device 156 MB. */
#define CHUNK_ROWS_HOST 64u
#define CHUNK_ROWS_DEVICE 256u
/* Tokens with a bias, a mask or a penalty of all rows of a chunk: 1 MiB. A row that does not fit goes to the host. */
#define ADJUSTS_MAX 65536u
#define GRAPH_KEY_SAMPLING (UINT64_C(1) << 63)

/* What lies in the exchange. */
struct talk {
    struct kernels_sample_result results[CHUNK_ROWS_DEVICE];
    struct kernels_sample_row params[CHUNK_ROWS_DEVICE];
    struct kernels_sample_adjust adjusts[ADJUSTS_MAX];
};

struct logits_rows {
    struct kernels *kernels;
    struct forward *forward;
    uint32_t vocab_size;
    uint32_t chunk_rows;
    float *logits; /* [chunk_rows][vocab_size] */
    uint64_t graph_key;

    /* NULL where the kernels do not sample. */
    struct talk *talk;
    uint32_t adjust_count;
    /* NULL where the host reads the logits as they are. */
    float *host; /* [LOGITS_HOST_ROWS][vocab_size] */

    uint32_t first, count, added;
    const struct sampler_state *states[CHUNK_ROWS_DEVICE]; /* NULL: a row for the host */
    uint32_t host_rows[CHUNK_ROWS_DEVICE];                 /* which rows go to the host, in order */
    uint32_t host_count;
    uint32_t host_window;     /* the first of them that is in `host` */
    uint32_t host_next;       /* that will be read next */
};

static uint32_t chunk_rows_of(const struct kernels *kernels, uint32_t rows_max)
{
    uint32_t most = kernels_uses_host_memory(kernels) ? CHUNK_ROWS_HOST : CHUNK_ROWS_DEVICE;
    return rows_max < most ? rows_max : most;
}

static size_t row_bytes(uint32_t vocab_size) { return (size_t)vocab_size * sizeof(float); }

uint64_t logits_rows_bytes(const struct kernels *kernels, uint32_t vocab_size, uint32_t rows_max)
{
    uint64_t bytes = sizeof(struct logits_rows) + row_bytes(vocab_size) * chunk_rows_of(kernels, rows_max);
    if (kernels_can_sample(kernels)) { bytes += sizeof(struct talk); }
    if (!kernels_uses_host_memory(kernels)) { bytes += row_bytes(vocab_size) * LOGITS_HOST_ROWS; }
    return bytes;
}

status_t logits_rows_create(struct kernels *kernels, struct forward *forward, uint32_t vocab_size, uint32_t rows_max,
                            struct diag *diag, struct logits_rows **ret_rows)
{
    static _Atomic uint64_t created;
    struct logits_rows *rows = calloc(1, sizeof *rows);
    if (!rows) {
        diag_set(diag, "engine: no memory for the table of logits");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    rows->kernels = kernels;
    rows->forward = forward;
    rows->vocab_size = vocab_size;
    rows->chunk_rows = chunk_rows_of(kernels, rows_max);
    rows->graph_key = GRAPH_KEY_SAMPLING | (atomic_fetch_add(&created, 1) + 1) << 32;
    void *memory = NULL;
    status_t st = kernels_buffer_alloc(kernels, row_bytes(vocab_size) * rows->chunk_rows, &memory, diag);
    if (failed(st)) { goto fail; }
    rows->logits = memory;
    if (kernels_can_sample(kernels)) {
        st = kernels_exchange_alloc(kernels, sizeof *rows->talk, &memory, diag);
        if (failed(st)) { goto fail; }
        rows->talk = memory;
    }
    if (!kernels_uses_host_memory(kernels)) {
        st = kernels_pinned_alloc(kernels, row_bytes(vocab_size) * LOGITS_HOST_ROWS, &memory, diag);
        if (failed(st)) { goto fail; }
        rows->host = memory;
    }
    *ret_rows = rows;
    return STATUS_OK;
fail:
    logits_rows_destroy(rows);
    return st;
}

void logits_rows_destroy(struct logits_rows *rows)
{
    if (!rows) { return; }
    struct kernels *kernels = rows->kernels;
    if (rows->logits) { kernels_buffer_free(kernels, rows->logits, row_bytes(rows->vocab_size) * rows->chunk_rows); }
    kernels_exchange_free(kernels, rows->talk, sizeof *rows->talk);
    kernels_pinned_free(kernels, rows->host, row_bytes(rows->vocab_size) * LOGITS_HOST_ROWS);
    free(rows);
}

/* ---- what is asked for ---------------------------------------------------------------------- */

uint32_t logits_rows_begin(struct logits_rows *rows, uint32_t first, uint32_t wanted)
{
    CHECK(first <= wanted);
    rows->first = first;
    rows->count = wanted - first < rows->chunk_rows ? wanted - first : rows->chunk_rows;
    rows->added = rows->adjust_count = rows->host_count = rows->host_window = rows->host_next = 0;
    return rows->count;
}

void logits_rows_add(struct logits_rows *rows, const struct sampler_state *state)
{
    CHECK(rows->added < rows->count);
    const uint32_t index = rows->added++;
    rows->states[index] = NULL;
    if (rows->talk) {
        /* Rows that are not sampled go through greedily, which changes nothing in them. */
        rows->talk->params[index] = (struct kernels_sample_row){.top_p = 1, .repetition = 1};
        uint32_t count = 0;
        if (state && sampler_adjust_list(state, ADJUSTS_MAX - rows->adjust_count, rows->talk->adjusts + rows->adjust_count, &count)) {
            rows->talk->params[index] = sampler_adjust_row(state);
            rows->talk->params[index].adjust_first = rows->adjust_count;
            rows->talk->params[index].adjust_count = count;
            rows->adjust_count += count;
            rows->states[index] = state;
        }
    }
    if (!rows->states[index]) { rows->host_rows[rows->host_count++] = index; }
}

/* ---- the work ------------------------------------------------------------------------------- */

static status_t queue_logits(struct logits_rows *rows, uint32_t count, struct diag *diag)
{
    TRY(forward_logits(rows->forward, rows->first, count, diag, rows->logits));
    if (!rows->talk) { return STATUS_OK; }
    kernels_sample(rows->kernels, &(struct kernels_sample){.rows = count, .vocab = rows->vocab_size, .logits = rows->logits,
                                                           .stride = rows->vocab_size, .params = rows->talk->params,
                                                           .adjusts = rows->talk->adjusts, .results = rows->talk->results});
    return STATUS_OK;
}

/* Brings the next rows for the host into `host`. */
static void queue_downloads(struct logits_rows *rows, uint32_t window)
{
    rows->host_window = window;
    for (uint32_t i = window; i < rows->host_count && i < window + LOGITS_HOST_ROWS; i++) {
        kernels_download(rows->kernels, rows->host + (size_t)(i - window) * rows->vocab_size,
                         rows->logits + (size_t)rows->host_rows[i] * rows->vocab_size, row_bytes(rows->vocab_size));
    }
}

status_t logits_rows_run(struct logits_rows *rows, struct diag *diag)
{
    CHECK(rows->added == rows->count);
    const uint32_t ready = forward_ready_rows(rows->forward);
    const bool is_recorded = forward_is_recorded(rows->forward) && rows->first == 0 && ready <= rows->chunk_rows;
    if (rows->talk) {
        for (uint32_t i = rows->count; is_recorded && i < ready; i++) {
            rows->talk->params[i] = (struct kernels_sample_row){.top_p = 1, .repetition = 1};
        }
        const unsigned char *from = (const unsigned char *)rows->talk->params;
        kernels_exchange_send(rows->kernels, from, (size_t)((const unsigned char *)(rows->talk->adjusts + rows->adjust_count) - from));
    }
    if (!is_recorded) {
        TRY(queue_logits(rows, rows->count, diag));
    } else if (kernels_graph_begin(rows->kernels, rows->graph_key | ready)) {
        status_t st = queue_logits(rows, ready, diag);
        kernels_graph_end(rows->kernels);
        if (failed(st)) { return st; }
    }
    if (rows->host) { queue_downloads(rows, 0); }
    return kernels_sync(rows->kernels);
}

status_t logits_rows_warm(struct logits_rows *rows, struct diag *diag)
{
    const uint32_t count = logits_rows_begin(rows, 0, forward_ready_rows(rows->forward));
    for (uint32_t i = 0; i < count; i++) { logits_rows_add(rows, NULL); }
    rows->host_count = 0;
    return logits_rows_run(rows, diag);
}

/* ---- what came out -------------------------------------------------------------------------- */

bool logits_rows_is_sampled(const struct logits_rows *rows, uint32_t index)
{
    CHECK(index < rows->count);
    return rows->states[index] != NULL;
}

status_t logits_rows_token(const struct logits_rows *rows, uint32_t index, struct diag *diag, uint32_t *ret_token)
{
    CHECK(logits_rows_is_sampled(rows, index));
    const struct kernels_sample_result *result = &rows->talk->results[index];
    switch (result->fault) {
    case KERNELS_SAMPLE_OK: break;
    case KERNELS_SAMPLE_NAN: return sampler_logit_is_nan(rows->states[index], result->fault_at, diag);
    case KERNELS_SAMPLE_NONE: return sampler_nothing_to_choose(rows->states[index], diag);
    default:
        diag_set(diag, "the device's sampler says fault %u, which does not exist", result->fault);
        return STATUS(ST_INTERNAL, SCOPE_NODE);
    }
    if (result->token >= rows->vocab_size) {
        diag_set(diag, "the device sampled token %u; the vocabulary has %u", result->token, rows->vocab_size);
        return STATUS(ST_INTERNAL, SCOPE_NODE);
    }
    *ret_token = result->token;
    return STATUS_OK;
}

status_t logits_rows_host(struct logits_rows *rows, uint32_t index, const float **ret_logits)
{
    CHECK(!logits_rows_is_sampled(rows, index));
    if (!rows->host) {
        *ret_logits = rows->logits + (size_t)index * rows->vocab_size;
        return STATUS_OK;
    }
    while (rows->host_rows[rows->host_next] != index) {
        rows->host_next++;
        CHECK(rows->host_next < rows->host_count);
    }
    if (rows->host_next >= rows->host_window + LOGITS_HOST_ROWS) {
        queue_downloads(rows, rows->host_next);
        TRY(kernels_sync(rows->kernels));
    }
    *ret_logits = rows->host + (size_t)(rows->host_next - rows->host_window) * rows->vocab_size;
    return STATUS_OK;
}
