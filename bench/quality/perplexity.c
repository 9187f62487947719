#include "bench/quality/perplexity.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kv/kv_layout.h"
#include "model/forward.h"
#include "model/model.h"
#include "model/tokenizer/tokenizer.h"

static status_t no_memory(struct diag *diag, const char *what)
{
    diag_set(diag, "no memory for %s", what);
    return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
}

/* ---- text ----------------------------------------------------------------------------------- */

static char *read_file(const char *path, size_t bytes_max, size_t *ret_bytes)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) { return NULL; }
    size_t room = 1 << 16, used = 0, got;
    char *data = malloc(room);
    while (data != NULL && (got = fread(data + used, 1, room - used, file)) > 0) {
        used += got;
        if (used < room) { continue; }
        char *more = realloc(data, room *= 2);
        if (more == NULL) { free(data); }
        data = more;
    }
    fclose(file);
    *ret_bytes = bytes_max != 0 && used > bytes_max ? bytes_max : used;
    return data;
}

/* The line of dashes after `from`, or the end. */
static const char *document_end(const char *from, const char *end, const char **ret_next)
{
    for (const char *line = from; line < end;) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        stop = stop != NULL ? stop : end;
        if (stop - line >= 10 && strspn(line, "-") >= (size_t)(stop - line)) {
            *ret_next = stop < end ? stop + 1 : end;
            return line;
        }
        line = stop + 1;
    }
    *ret_next = end;
    return end;
}

static status_t add_document(const struct tokenizer *tokenizer, const char *from, const char *end, uint32_t context,
                             struct perplexity_text *text, struct diag *diag)
{
    while (end > from && end[-1] == '\n') { end--; }
    if (end == from) { return STATUS_OK; }
    struct token_buf buf = {0};
    status_t st = tokenizer_encode(tokenizer, from, (size_t)(end - from), (struct encode_options){.add_special = true}, &buf, diag);
    uint32_t begin = tokenizer_role_id(tokenizer, TOKENIZER_BOS);
    bool adds_begin = begin != TOKENIZER_NO_ID && (buf.count == 0 || buf.ids[0] != begin);
    uint32_t count = (uint32_t)buf.count + adds_begin;
    count = count < context ? count : context;
    if (!failed(st) && count >= 2) {
        uint32_t used = text->firsts != NULL ? text->firsts[text->documents] : 0;
        uint32_t *ids = realloc(text->ids, ((size_t)used + count) * sizeof *ids);
        uint32_t *firsts = realloc(text->firsts, ((size_t)text->documents + 2) * sizeof *firsts);
        text->ids = ids != NULL ? ids : text->ids;
        text->firsts = firsts != NULL ? firsts : text->firsts;
        if (ids == NULL || firsts == NULL) {
            st = no_memory(diag, "the text");
        } else {
            if (adds_begin) { ids[used] = begin; }
            memcpy(ids + used + adds_begin, buf.ids, (count - adds_begin) * sizeof *ids);
            firsts[text->documents++] = used;
            firsts[text->documents] = used + count;
            text->longest = count > text->longest ? count : text->longest;
        }
    }
    token_buf_fini(&buf);
    return st;
}

status_t perplexity_text_load(const char *model_directory, const char *path, uint32_t context, size_t text_bytes_max,
                              struct diag *diag, struct perplexity_text *ret_text)
{
    struct tokenizer *tokenizer = NULL;
    struct perplexity_text text = {0};
    size_t bytes = 0;
    char *data = read_file(path, text_bytes_max, &bytes);
    if (data == NULL) {
        diag_set(diag, "%s: cannot be read", path);
        return STATUS(ST_NOT_FOUND, SCOPE_NODE);
    }
    status_t st = tokenizer_create(model_directory, &tokenizer, diag);
    for (const char *at = data, *next; !failed(st) && at < data + bytes; at = next) {
        const char *end = document_end(at, data + bytes, &next);
        st = add_document(tokenizer, at, end, context, &text, diag);
    }
    if (!failed(st) && text.documents == 0) {
        diag_set(diag, "%s: holds no text", path);
        st = STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    tokenizer_destroy(tokenizer);
    free(data);
    if (failed(st)) {
        perplexity_text_drop(&text);
        return st;
    }
    *ret_text = text;
    return STATUS_OK;
}

void perplexity_text_drop(struct perplexity_text *text)
{
    free(text->ids);
    free(text->firsts);
    memset(text, 0, sizeof *text);
}

/* ---- measurement ---------------------------------------------------------------------------- */

struct run {
    struct model *model;
    struct kernels *kernels;
    struct forward *forward;
    struct kv_layout layout;
    uint32_t block_count;
    void *pool;
    size_t pool_bytes;
    uint32_t *blocks;
    float *logits; /* [longest][vocab] */
};

static void run_close(struct run *run)
{
    if (run->kernels != NULL && run->pool != NULL) { kernels_buffer_free(run->kernels, run->pool, run->pool_bytes); }
    forward_destroy(run->forward);
    kernels_destroy(run->kernels);
    model_destroy(run->model);
    free(run->blocks);
    free(run->logits);
}

static status_t run_open(const struct perplexity_options *options, uint32_t longest, struct diag *diag, struct run *run)
{
    const struct model_options model_options = {.weights = options->weights, .threads = options->threads};
    TRY(model_open(options->model_directory, &model_options, diag, &run->model));
    const struct kernels_config kernels = {.isa = options->isa, .threads = options->threads};
    TRY(kernels_create(&kernels, &run->kernels, diag));
    enum dtype dtype;
    TRY(model_kv_dtype(run->model, options->kv_dtype, diag, &dtype));
    TRY(model_kv_layout(run->model, 16, dtype, diag, &run->layout));
    const struct forward_limits limits = {.rows_max = longest, .spans_max = 1};
    TRY(forward_create(run->model, run->kernels, &run->layout, &limits, diag, &run->forward));
    run->block_count = kv_layout_blocks_for(&run->layout, longest);
    run->pool_bytes = run->block_count * kv_layout_block_bytes(&run->layout);
    TRY(kernels_buffer_alloc(run->kernels, run->pool_bytes, &run->pool, diag));
    const size_t vocab = model_get_config(run->model)->vocab_size;
    run->blocks = malloc(run->block_count * sizeof *run->blocks);
    run->logits = aligned_alloc(64, (longest * vocab * sizeof *run->logits + 63) / 64 * 64);
    if (run->blocks == NULL || run->logits == NULL) { return no_memory(diag, "logits"); }
    for (uint32_t i = 0; i < run->block_count; i++) { run->blocks[i] = i; }
    return STATUS_OK;
}

static double log_sum_exp(const float *logits, uint32_t vocab, uint32_t *ret_best)
{
    uint32_t best = 0;
    double sum = 0;
    for (uint32_t i = 1; i < vocab; i++) { best = logits[i] > logits[best] ? i : best; }
    for (uint32_t i = 0; i < vocab; i++) { sum += exp((double)logits[i] - (double)logits[best]); }
    *ret_best = best;
    return (double)logits[best] + log(sum);
}

struct sums {
    uint64_t tokens, agreed;
    double loss, divergence;
};

/* Adds one token that `logits` should have foretold. */
static void add_token(const float *logits, const float *reference, uint32_t vocab, uint32_t token, struct sums *sums)
{
    uint32_t best, reference_best;
    double norm = log_sum_exp(logits, vocab, &best);
    sums->tokens++;
    sums->loss += norm - (double)logits[token];
    if (reference == NULL) {
        sums->agreed++;
        return;
    }
    double reference_norm = log_sum_exp(reference, vocab, &reference_best);
    sums->agreed += best == reference_best;
    for (uint32_t i = 0; i < vocab; i++) {
        double log_p = (double)reference[i] - reference_norm, log_q = (double)logits[i] - norm;
        sums->divergence += exp(log_p) * (log_p - log_q);
    }
}

static void add_matrix(const struct model_tensor *tensor, double *bits, double *weights)
{
    if (tensor->data == NULL) { return; }
    *bits += 8.0 * (double)kernels_matrix_bytes(&tensor->matrix);
    *weights += (double)tensor->rows * tensor->cols;
}

static double bits_per_weight(const struct model *model)
{
    const struct model_weights *w = model_get_weights(model);
    double bits = 0, weights = 0;
    add_matrix(&w->embedding, &bits, &weights);
    if (w->head.data != w->embedding.data) { add_matrix(&w->head, &bits, &weights); }
    for (uint32_t i = 0; i < model_get_config(model)->layer_count; i++) {
        const struct model_layer *l = &w->layers[i];
        const struct model_tensor *const matrices[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
        for (size_t m = 0; m < sizeof matrices / sizeof matrices[0]; m++) { add_matrix(matrices[m], &bits, &weights); }
    }
    return bits / weights;
}

static status_t measure_document(struct run *run, const uint32_t *ids, uint32_t count, const float *reference, float *keep,
                                 struct diag *diag, struct sums *sums)
{
    const uint32_t vocab = model_get_config(run->model)->vocab_size;
    const struct forward_span span = {.tokens = ids, .row_count = count - 1, .block_table = run->blocks, .want = FORWARD_WANT_ALL};
    const struct forward_step step = {.spans = &span, .span_count = 1, .kv_pool = run->pool, .kv_block_count = run->block_count};
    uint32_t rows = 0;
    TRY(forward_run(run->forward, &step, diag, &rows));
    TRY(forward_logits(run->forward, 0, rows, diag, run->logits));
    TRY(kernels_sync(run->kernels));
    for (uint32_t i = 0; i < rows; i++) {
        add_token(run->logits + (size_t)i * vocab, reference != NULL ? reference + (size_t)i * vocab : NULL, vocab, ids[i + 1], sums);
    }
    if (keep != NULL) { memcpy(keep, run->logits, (size_t)rows * vocab * sizeof *keep); }
    return STATUS_OK;
}

static status_t measure(struct run *run, const struct perplexity_text *text, const struct perplexity_reference *reference,
                        float *keep, struct diag *diag, struct perplexity_result *ret_result)
{
    const uint32_t vocab = model_get_config(run->model)->vocab_size;
    struct sums sums = {0};
    for (uint32_t d = 0; d < text->documents; d++) {
        const uint32_t first = text->firsts[d], count = text->firsts[d + 1] - first;
        const size_t at = (size_t)sums.tokens * vocab;
        TRY(measure_document(run, text->ids + first, count, reference != NULL ? reference->logits + at : NULL,
                             keep != NULL ? keep + at : NULL, diag, &sums));
    }
    *ret_result = (struct perplexity_result){
        .tokens = sums.tokens,
        .perplexity = exp(sums.loss / (double)sums.tokens),
        .divergence = sums.divergence / (double)sums.tokens,
        .agreement = (double)sums.agreed / (double)sums.tokens,
        .bits_per_weight = bits_per_weight(run->model),
        .set_name = kernels_set_name(run->kernels),
    };
    return STATUS_OK;
}

status_t perplexity_measure(const struct perplexity_options *options, const struct perplexity_text *text,
                            const struct perplexity_reference *reference, struct diag *diag,
                            struct perplexity_result *ret_result, struct perplexity_reference *ret_reference)
{
    struct run run = {0};
    float *keep = NULL;
    status_t st = run_open(options, text->longest, diag, &run);
    if (!failed(st) && ret_reference != NULL) {
        size_t tokens = text->firsts[text->documents] - text->documents;
        keep = malloc(tokens * model_get_config(run.model)->vocab_size * sizeof *keep);
        if (keep == NULL) { st = no_memory(diag, "the reference"); }
    }
    if (!failed(st)) { st = measure(&run, text, reference, keep, diag, ret_result); }
    run_close(&run);
    if (failed(st)) {
        free(keep);
        return st;
    }
    if (ret_reference != NULL) { ret_reference->logits = keep; }
    return STATUS_OK;
}
