#include "tests/unit/model/forward_harness.h"

#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

const char *harness_dummy_model(const struct harness_dummy *shape)
{
    static char directory[512];
    const char *where = getenv("TEST_TMPDIR");
    snprintf(directory, sizeof directory, "%s/dummy", where ? where : "/tmp");
    (void)mkdir(directory, 0700);
    char path[600], window[64] = "";
    snprintf(path, sizeof path, "%s/config.json", directory);
    if (shape->window) { snprintf(window, sizeof window, " \"sliding_window\": %u,", shape->window); }
    const bool is_mistral = shape->window != 0; /* the Llama with a window goes by that name */
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "{\"architectures\": [\"%s\"], \"model_type\": \"%s\", \"hidden_act\": \"silu\","
            " \"hidden_size\": 64, \"intermediate_size\": 128, \"num_hidden_layers\": %u, \"num_attention_heads\": %u,"
            " \"num_key_value_heads\": %u, \"head_dim\": 16, \"vocab_size\": %u, \"max_position_embeddings\": 131072,%s"
            " \"rms_norm_eps\": 1e-5, \"rope_theta\": 500000.0, \"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\"}\n",
            is_mistral ? "MistralForCausalLM" : "LlamaForCausalLM", is_mistral ? "mistral" : "llama", shape->layers, shape->q_heads,
            shape->kv_heads, shape->vocab, window);
    assert_int_equal(fclose(file), 0);
    return directory;
}

void harness_open(const char *directory, const struct harness_options *options, struct harness *ret_harness)
{
    struct diag diag = {{0}};
    struct harness harness = {0};
    harness.kernels = options->kernels;
    const bool on_device = harness.kernels && !kernels_uses_host_memory(harness.kernels);
    struct model_options model = {.load = options->load, .weights = options->weights, .is_for_device = on_device};
    status_t st = model_open(directory, &model, &diag, &harness.model);
    if (failed(st)) { fail_msg("%s", diag.text); }
    harness.config = model_get_config(harness.model);
    struct kernels_config kernels = {.isa = options->isa, .threads = options->threads, .compute = options->compute};
    if (!harness.kernels) { st = kernels_create(&kernels, &harness.kernels, &diag); }
    if (failed(st)) { fail_msg("%s", diag.text); }
    if (on_device) { st = model_to_device(harness.model, harness.kernels, 2, &diag); }
    if (failed(st)) { fail_msg("%s", diag.text); }
    st = model_kv_layout(harness.model, 16, options->kv_dtype, &diag, &harness.layout);
    if (failed(st)) { fail_msg("%s", diag.text); }
    harness.layout.order = kernels_kv_order(harness.kernels);
    struct forward_limits limits = {.rows_max = options->rows_max ? options->rows_max : HARNESS_TOKENS_MAX,
                                    .spans_max = 16};
    st = forward_create(harness.model, harness.kernels, &harness.layout, &limits, &diag, &harness.forward);
    if (failed(st)) { fail_msg("%s", diag.text); }
    harness.block_count = options->block_count ? options->block_count : 8 * HARNESS_BLOCKS_MAX;
    harness.pool_bytes = harness.block_count * kv_layout_block_bytes(&harness.layout);
    void *pool = NULL;
    st = kernels_buffer_alloc(harness.kernels, harness.pool_bytes, &pool, &diag);
    if (failed(st)) { fail_msg("%s", diag.text); }
    harness.pool = pool;
    if (on_device) {
        void *logits = NULL;
        harness.logits_bytes = (size_t)limits.rows_max * harness.config->vocab_size * sizeof(float);
        st = kernels_buffer_alloc(harness.kernels, harness.logits_bytes, &logits, &diag);
        if (failed(st)) { fail_msg("%s", diag.text); }
        harness.logits = logits;
    }
    harness_poison(&harness);
    *ret_harness = harness;
}

void harness_close(struct harness *harness)
{
    kernels_buffer_free(harness->kernels, harness->pool, harness->pool_bytes);
    if (harness->logits) { kernels_buffer_free(harness->kernels, harness->logits, harness->logits_bytes); }
    forward_destroy(harness->forward);
    model_off_device(harness->model);
    kernels_destroy(harness->kernels);
    model_destroy(harness->model);
}

void harness_poison(struct harness *harness)
{
    harness->blocks_used = 0;
    if (!harness->logits) {
        memset(harness->pool, 0xff, harness->pool_bytes); /* a NaN in f32, bf16 and f16 */
        return;
    }
    void *bits = malloc(harness->pool_bytes);
    assert_non_null(bits);
    memset(bits, 0xff, harness->pool_bytes);
    kernels_upload(harness->kernels, harness->pool, bits, harness->pool_bytes);
    assert_false(failed(kernels_sync(harness->kernels)));
    free(bits);
}

static uint32_t gcd(uint32_t a, uint32_t b)
{
    while (b) { uint32_t rest = a % b; a = b; b = rest; }
    return a;
}

/* The n-th block in an order that visits all of them with a stride. */
static uint32_t scattered_block(const struct harness *harness, uint32_t n)
{
    uint32_t stride = harness->block_count * 5 / 8 + 1;
    while (gcd(stride, harness->block_count) != 1) { stride++; }
    return (uint32_t)(((uint64_t)n * stride + 3) % harness->block_count);
}

void sequence_start(struct harness *harness, const uint32_t *tokens, uint32_t count, struct sequence *ret_sequence)
{
    memset(ret_sequence, 0xff, sizeof *ret_sequence); /* a block not handed out yet is no block */
    memcpy(ret_sequence->tokens, tokens, count * sizeof *tokens);
    ret_sequence->count = count;
    ret_sequence->computed = 0;
    (void)harness;
}

static void grow_blocks(struct harness *harness, struct sequence *sequence, uint32_t tokens)
{
    uint32_t have = kv_layout_blocks_for(&harness->layout, sequence->computed);
    uint32_t want = kv_layout_blocks_for(&harness->layout, tokens);
    for (; have < want; have++) {
        assert_true(harness->blocks_used < harness->block_count);
        sequence->blocks[have] = scattered_block(harness, harness->blocks_used++);
    }
}

void sequence_advance(struct harness *harness, struct sequence *sequence, uint32_t rows, enum forward_want want,
                      float *ret_logits)
{
    struct diag diag = {{0}};
    assert_true(sequence->computed + rows <= sequence->count);
    grow_blocks(harness, sequence, sequence->computed + rows);
    struct forward_span span = {.tokens = sequence->tokens + sequence->computed,
                                .row_count = rows,
                                .first_position = sequence->computed,
                                .block_table = sequence->blocks,
                                .want = want};
    struct forward_step step = {
        .spans = &span, .span_count = 1, .kv_pool = harness->pool, .kv_block_count = harness->block_count};
    uint32_t wanted = 0;
    status_t st = forward_run(harness->forward, &step, &diag, &wanted);
    if (failed(st)) { fail_msg("%s", diag.text); }
    sequence->computed += rows;
    assert_int_equal(wanted, want == FORWARD_WANT_ALL ? rows : want == FORWARD_WANT_LAST ? 1 : 0);
    harness_logits(harness, ret_logits ? wanted : 0, ret_logits);
}

void harness_logits(struct harness *harness, uint32_t count, float *ret_logits)
{
    struct diag diag = {{0}};
    if (count > 0) {
        status_t st = forward_logits(harness->forward, 0, count, &diag, harness->logits ? harness->logits : ret_logits);
        if (failed(st)) { fail_msg("%s", diag.text); }
        if (harness->logits) {
            kernels_download(harness->kernels, ret_logits, harness->logits, count * harness->config->vocab_size * sizeof(float));
        }
    }
    assert_false(failed(kernels_sync(harness->kernels)));
}

void sequence_prefill(struct harness *harness, struct sequence *sequence, uint32_t chunk, float *ret_logits)
{
    while (sequence->computed < sequence->count) {
        uint32_t left = sequence->count - sequence->computed;
        bool is_last = left <= chunk;
        sequence_advance(harness, sequence, is_last ? left : chunk, is_last ? FORWARD_WANT_LAST : FORWARD_WANT_NONE,
                         is_last ? ret_logits : NULL);
    }
}

uint32_t argmax(const float *logits, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++) {
        if (logits[i] > logits[best]) { best = i; }
    }
    return best;
}

const char *shared_data(void)
{
    static char found[PATH_MAX + 64];
    const char *named = getenv("BATON_SHARED_DATA");
    if (named && *named) {
        snprintf(found, sizeof found, "%s/MANIFEST.md", named);
        return access(found, R_OK) == 0 ? named : NULL;
    }
    /* The real path of a source file, seen through the symlinks of a test's runfiles, else this folder. */
    char path[PATH_MAX];
    if (!realpath("tests/unit/model/forward_harness.c", path) && !realpath(".", path)) { return NULL; }
    for (char *slash; (slash = strrchr(path, '/')) != NULL;) {
        *slash = '\0';
        snprintf(found, sizeof found, "%s/shared/data/MANIFEST.md", path);
        if (access(found, R_OK) == 0) {
            snprintf(found, sizeof found, "%s/shared/data", path);
            return found;
        }
    }
    return NULL;
}
