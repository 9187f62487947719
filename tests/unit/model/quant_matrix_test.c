/* GPTQ and AWQ matrices: every weight comes back as scale * (code - zero), where the file has it; what
 * makes no sense is refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/rng.h"
#include "model/quant_matrix.h"

#define FILE_BYTES ((size_t)1 << 20)

struct file {
    uint8_t *bytes; /* of a safetensors file */
    size_t used;    /* of its data */
    char header[4096];
    struct safetensors *checkpoint;
};

/* What the matrix is, apart from any format. */
struct truth {
    uint32_t n_out, n_in, group, groups;
    uint8_t *codes;      /* [n_out][n_in] */
    uint8_t *zeros;      /* [groups][n_out] */
    uint16_t *scales;    /* [groups][n_out] */
    uint32_t *groups_of; /* [n_in] */
};

static uint32_t pick(struct rng *rng, uint32_t count) { return (uint32_t)rng_below(rng, count); }

static struct truth truth_make(struct rng *rng, uint32_t n_out, uint32_t n_in, uint32_t group, bool is_symmetric, bool is_shuffled)
{
    struct truth t = {.n_out = n_out, .n_in = n_in, .group = group, .groups = (n_in + group - 1) / group};
    t.codes = malloc((size_t)n_out * n_in);
    t.zeros = malloc((size_t)t.groups * n_out);
    t.scales = malloc((size_t)t.groups * n_out * 2);
    t.groups_of = malloc((size_t)n_in * 4);
    for (size_t i = 0; i < (size_t)n_out * n_in; i++) { t.codes[i] = (uint8_t)pick(rng, 16); }
    for (size_t i = 0; i < (size_t)t.groups * n_out; i++) {
        t.zeros[i] = is_symmetric ? 8 : (uint8_t)pick(rng, 16);
        t.scales[i] = f32_to_f16((float)(1 + pick(rng, 1000)) / 4096.0f);
    }
    for (uint32_t k = 0; k < n_in; k++) { t.groups_of[k] = k / group; }
    for (uint32_t k = n_in; is_shuffled && k > 1; k--) {
        uint32_t other = pick(rng, k), swap = t.groups_of[other];
        t.groups_of[other] = t.groups_of[k - 1];
        t.groups_of[k - 1] = swap;
    }
    return t;
}

static void truth_free(struct truth *t)
{
    free(t->codes);
    free(t->zeros);
    free(t->scales);
    free(t->groups_of);
}

static uint8_t *file_add(struct file *f, const char *name, const char *dtype, uint64_t rows, uint64_t cols, size_t bytes)
{
    char entry[256], shape[64];
    if (cols != 0) {
        snprintf(shape, sizeof shape, "[%llu,%llu]", (unsigned long long)rows, (unsigned long long)cols);
    } else {
        snprintf(shape, sizeof shape, "[%llu]", (unsigned long long)rows);
    }
    snprintf(entry, sizeof entry, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
             f->header[0] != '\0' ? "," : "{", name, dtype, shape, f->used, f->used + bytes);
    strcat(f->header, entry);
    uint8_t *at = f->bytes + 8 + sizeof f->header + f->used;
    f->used += bytes;
    assert_true(8 + sizeof f->header + f->used <= FILE_BYTES);
    return at;
}

static struct file file_begin(void)
{
    struct file f = {.bytes = calloc(1, FILE_BYTES)};
    return f;
}

static void file_end(struct file *f)
{
    strcat(f->header, "}");
    uint64_t length = sizeof f->header;
    memcpy(f->bytes, &length, 8);
    memset(f->bytes + 8, ' ', sizeof f->header);
    memcpy(f->bytes + 8, f->header, strlen(f->header));
    struct diag diag;
    if (failed(safetensors_parse("model.safetensors", f->bytes, 8 + sizeof f->header + f->used, &diag, &f->checkpoint))) {
        fail_msg("%s", diag.text);
    }
}

static void file_drop(struct file *f)
{
    safetensors_close(f->checkpoint);
    free(f->bytes);
}

static void or_word(uint8_t *words, size_t index, uint32_t bits)
{
    uint32_t word;
    memcpy(&word, words + index * 4, 4);
    word |= bits;
    memcpy(words + index * 4, &word, 4);
}

static const uint32_t awq_holds[8] = {0, 2, 4, 6, 1, 3, 5, 7}; /* the output in each nibble, from the lowest */

/* Writes the matrix as the two formats' packing functions do, nibble by nibble. */
static struct file write_gptq(const struct truth *t, bool zeros_are_one_less, bool with_groups)
{
    struct file f = file_begin();
    uint8_t *codes = file_add(&f, "model.a.qweight", "I32", t->n_in / 8, t->n_out, (size_t)t->n_in / 8 * t->n_out * 4);
    uint8_t *zeros = file_add(&f, "model.a.qzeros", "I32", t->groups, t->n_out / 8, (size_t)t->groups * t->n_out / 8 * 4);
    uint8_t *scales = file_add(&f, "model.a.scales", "F16", t->groups, t->n_out, (size_t)t->groups * t->n_out * 2);
    for (uint32_t n = 0; n < t->n_out; n++) {
        for (uint32_t k = 0; k < t->n_in; k++) {
            or_word(codes, (size_t)(k / 8) * t->n_out + n, (uint32_t)t->codes[(size_t)n * t->n_in + k] << (k % 8 * 4));
        }
        for (uint32_t g = 0; g < t->groups; g++) {
            uint32_t zero = ((uint32_t)t->zeros[(size_t)g * t->n_out + n] - (zeros_are_one_less ? 1u : 0u)) & 15u;
            or_word(zeros, (size_t)g * (t->n_out / 8) + n / 8, zero << (n % 8 * 4));
        }
    }
    memcpy(scales, t->scales, (size_t)t->groups * t->n_out * 2);
    if (with_groups) { memcpy(file_add(&f, "model.a.g_idx", "I32", t->n_in, 0, (size_t)t->n_in * 4), t->groups_of, (size_t)t->n_in * 4); }
    file_end(&f);
    return f;
}

static struct file write_awq(const struct truth *t)
{
    struct file f = file_begin();
    uint8_t *codes = file_add(&f, "model.a.qweight", "I32", t->n_in, t->n_out / 8, (size_t)t->n_in * t->n_out / 8 * 4);
    uint8_t *zeros = file_add(&f, "model.a.qzeros", "I32", t->groups, t->n_out / 8, (size_t)t->groups * t->n_out / 8 * 4);
    uint8_t *scales = file_add(&f, "model.a.scales", "F16", t->groups, t->n_out, (size_t)t->groups * t->n_out * 2);
    for (uint32_t word = 0; word < t->n_out / 8; word++) {
        for (uint32_t nibble = 0; nibble < 8; nibble++) {
            uint32_t n = word * 8 + awq_holds[nibble];
            for (uint32_t k = 0; k < t->n_in; k++) {
                or_word(codes, (size_t)k * (t->n_out / 8) + word, (uint32_t)t->codes[(size_t)n * t->n_in + k] << (nibble * 4));
            }
            for (uint32_t g = 0; g < t->groups; g++) {
                or_word(zeros, (size_t)g * (t->n_out / 8) + word, (uint32_t)t->zeros[(size_t)g * t->n_out + n] << (nibble * 4));
            }
        }
    }
    memcpy(scales, t->scales, (size_t)t->groups * t->n_out * 2);
    file_end(&f);
    return f;
}

static struct quant_config config_of(enum quant_method method, uint32_t group, bool zeros_are_one_less)
{
    return (struct quant_config){.method = method, .group = group, .zeros_are_one_less = zeros_are_one_less};
}

/* Packs in two cuts and reads every weight back. */
static void check_weights(const struct truth *t, const struct file *f, const struct quant_config *config)
{
    struct diag diag;
    bool is_found;
    struct quant_matrix q;
    status_t st = quant_matrix_find(f->checkpoint, config, "model.", "a.weight", t->n_out, t->n_in, &diag, &is_found, &q);
    if (failed(st)) { fail_msg("%s", diag.text); }
    assert_true(is_found);
    uint8_t *data = aligned_alloc(64, (kernels_matrix_bytes(&q.matrix) + 63) / 64 * 64);
    memset(data, 0xa5, kernels_matrix_bytes(&q.matrix));
    uint32_t panels = kernels_matrix_panels(&q.matrix);
    assert_false(failed(quant_matrix_pack(&q, panels / 2, panels - panels / 2, &diag, data)));
    if (panels / 2 != 0) { assert_false(failed(quant_matrix_pack(&q, 0, panels / 2, &diag, data))); }
    struct kernels_matrix m = q.matrix;
    m.data = data;
    float *row = malloc((size_t)t->n_in * sizeof *row);
    for (uint32_t n = 0; n < t->n_out; n++) {
        kernels_matrix_read(&m, n, 0, t->n_in, row);
        for (uint32_t k = 0; k < t->n_in; k++) {
            size_t at = (size_t)t->groups_of[k] * t->n_out + n;
            float want = f16_to_f32(t->scales[at]) * (float)((int)t->codes[(size_t)n * t->n_in + k] - (int)t->zeros[at]);
            if (row[k] != want) { fail_msg("weight %u, %u is %g and not %g", n, k, (double)row[k], (double)want); }
        }
    }
    free(row);
    free(data);
}

/* Each format, with and without zero points, act-order and a last group that is short, gives its weights
 * to the bit; symmetric ones need no zero points, ordered ones no order. */
static void weights_come_back(void **state)
{
    (void)state;
    struct rng rng = rng_init(77);
    print_message("weights_come_back: seed 77\n");
    static const uint32_t groups[] = {32, 64, 128, 256, 0};
    for (int round = 0; round < 60; round++) {
        uint32_t group = groups[pick(&rng, 5)], n_in = 8 * (1 + pick(&rng, 60)), n_out = 8 * (1 + pick(&rng, 8));
        bool is_symmetric = pick(&rng, 2), is_shuffled = pick(&rng, 2), one_less = pick(&rng, 2);
        uint32_t file_group = group != 0 && group < n_in ? group : n_in;
        struct truth t = truth_make(&rng, n_out, n_in, file_group, is_symmetric, is_shuffled);
        struct quant_config config = config_of(QUANT_GPTQ, group, one_less);
        struct file f = write_gptq(&t, one_less, is_shuffled || pick(&rng, 2));
        check_weights(&t, &f, &config);
        file_drop(&f);
        truth_free(&t);

        t = truth_make(&rng, n_out, n_in, file_group, is_symmetric, false);
        config = config_of(QUANT_AWQ, group, false);
        f = write_awq(&t);
        check_weights(&t, &f, &config);
        struct diag diag;
        bool is_found;
        struct quant_matrix q;
        assert_false(failed(quant_matrix_find(f.checkpoint, &config, "model.", "a.weight", n_out, n_in, &diag, &is_found, &q)));
        assert_int_equal(q.matrix.has_order, false);
        if (is_symmetric) { assert_false(q.matrix.has_zeros); }
        file_drop(&f);
        truth_free(&t);
    }
}

static void expect_refused(const struct file *f, const struct quant_config *config, uint32_t n_out, uint32_t n_in, const char *word)
{
    struct diag diag;
    bool is_found;
    struct quant_matrix q;
    status_t st = quant_matrix_find(f->checkpoint, config, "model.", "a.weight", n_out, n_in, &diag, &is_found, &q);
    assert_int_equal(st.code, ST_DATA_LOSS);
    if (strstr(diag.text, word) == NULL) { fail_msg("\"%s\" does not say \"%s\"", diag.text, word); }
}

/* What does not fit config.json is refused, naming the tensor. */
static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    struct rng rng = rng_init(5);
    struct truth t = truth_make(&rng, 16, 128, 32, false, true);
    struct quant_config config = config_of(QUANT_GPTQ, 32, true);
    struct file f = write_gptq(&t, true, true);
    expect_refused(&f, &config, 24, 128, "qweight");
    expect_refused(&f, &config, 16, 136, "qweight");
    expect_refused(&f, &config, 16, 132, "multiples of 8");
    struct quant_config other = config_of(QUANT_GPTQ, 64, true);
    expect_refused(&f, &other, 16, 128, "qzeros");
    other = config_of(QUANT_AWQ, 32, false);
    expect_refused(&f, &other, 16, 128, "qweight");
    file_drop(&f);

    uint32_t was = t.groups_of[9];
    t.groups_of[9] = 4; /* of 0..3 */
    f = write_gptq(&t, true, true);
    expect_refused(&f, &config, 16, 128, "g_idx");
    file_drop(&f);
    t.groups_of[9] = (was + 1) % 4; /* one too many in a group */
    f = write_gptq(&t, true, true);
    expect_refused(&f, &config, 16, 128, "g_idx");
    file_drop(&f);
    truth_free(&t);

    f = file_begin();
    file_add(&f, "model.a.qweight", "I32", 16, 16, 16 * 16 * 4);
    file_end(&f);
    expect_refused(&f, &config, 16, 128, "qzeros");
    bool is_found = true;
    struct diag diag;
    struct quant_matrix q;
    assert_false(failed(quant_matrix_find(f.checkpoint, &config, "model.", "b.weight", 16, 128, &diag, &is_found, &q)));
    assert_false(is_found);
    file_drop(&f);
}

static status_t parse(const char *json, bool is_own, struct quant_config *ret_config, struct diag *diag)
{
    return quant_config_parse("config.json", json, strlen(json), is_own, diag, ret_config);
}

/* The fields of published checkpoints are understood; other methods are refused by what they say. */
static void configs_are_understood(void **state)
{
    (void)state;
    struct diag diag;
    struct quant_config c;
    assert_false(failed(parse("{\"model_type\":\"llama\"}", false, &c, &diag)));
    assert_int_equal(c.method, QUANT_NONE);
    assert_false(failed(parse("{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":128,\"desc_act\":true,"
                              "\"sym\":true,\"damp_percent\":0.01}}", false, &c, &diag)));
    assert_int_equal(c.method, QUANT_GPTQ);
    assert_int_equal(c.group, 128);
    assert_true(c.zeros_are_one_less);
    assert_false(failed(parse("{\"bits\":4,\"group_size\":-1,\"desc_act\":false}", true, &c, &diag)));
    assert_int_equal(c.group, 0);
    assert_false(failed(parse("{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32,"
                              "\"checkpoint_format\":\"gptq_v2\"}}", false, &c, &diag)));
    assert_false(c.zeros_are_one_less);
    assert_false(failed(parse("{\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":64,\"zero_point\":true,"
                              "\"version\":\"gemm\"}}", false, &c, &diag)));
    assert_int_equal(c.method, QUANT_AWQ);
    assert_false(failed(parse("{\"quantization_config\":{\"quant_method\":\"awq\",\"w_bit\":4,\"q_group_size\":128}}", false, &c, &diag)));
    static const struct { const char *json, *word; } refused[] = {
        {"{\"quantization_config\":{\"quant_method\":\"fp8\"}}", "quant_method"},
        {"{\"quantization_config\":{}}", "quant_method"},
        {"{\"quantization_config\":7}", "quantization_config"},
        {"{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":8,\"group_size\":128}}", "bits"},
        {"{\"quantization_config\":{\"quant_method\":\"gptq\",\"group_size\":128}}", "w_bit"},
        {"{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4}}", "group_size"},
        {"{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":48}}", "group_size"},
        {"{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":0}}", "group_size"},
        {"{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32,\"checkpoint_format\":\"marlin\"}}", "marlin"},
        {"{\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":32,\"version\":\"gemv\"}}", "gemv"},
        {"{\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":32,\"zero_point\":false}}", "zero_point"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        assert_int_equal(parse(refused[i].json, false, &c, &diag).code, ST_INVALID_ARGUMENT);
        if (strstr(diag.text, refused[i].word) == NULL) { fail_msg("\"%s\" does not say \"%s\"", diag.text, refused[i].word); }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(configs_are_understood),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(weights_come_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
