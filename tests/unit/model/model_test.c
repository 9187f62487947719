/* A model directory as a whole: tensors that are missing or wrong, names with and without prefix, tied
 * heads, alignment, fingerprints, dummy weights, KV layout. Directories are made from the golden models. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>
#include <math.h>

#include "model/json_field.h"
#include "model/model.h"
#include "model/model_weights.h"
#include "model/safetensors.h"

#define GOLDEN "tests/golden/models/"

/* ---- directories to break ------------------------------------------------------------------- */

/* A checkpoint in memory: header and data, to be changed and written anywhere. */
struct checkpoint {
    json_t *header;
    char *file;
    uint8_t *data;
    size_t data_bytes;
};

static void checkpoint_read(const char *model, struct checkpoint *ret)
{
    char path[256];
    size_t bytes;
    uint64_t header_bytes;
    struct diag diag = {{0}};
    snprintf(path, sizeof path, GOLDEN "%s/model.safetensors", model);
    if (failed(json_read_file(path, 4 << 20, &diag, &ret->file, &bytes))) { fail_msg("%s", diag.text); }
    memcpy(&header_bytes, ret->file, 8);
    assert_false(failed(json_parse_object(path, ret->file + 8, header_bytes, true, &diag, &ret->header)));
    ret->data = (uint8_t *)ret->file + 8 + header_bytes;
    ret->data_bytes = bytes - 8 - header_bytes;
}

static void checkpoint_free(struct checkpoint *checkpoint)
{
    json_decref(checkpoint->header);
    free(checkpoint->file);
}

static json_t *entry_of(struct checkpoint *checkpoint, const char *name)
{
    json_t *entry = json_object_get(checkpoint->header, name);
    assert_non_null(entry);
    return entry;
}

static uint8_t *bytes_of(struct checkpoint *checkpoint, const char *name)
{
    json_t *offsets = json_object_get(entry_of(checkpoint, name), "data_offsets");
    return checkpoint->data + json_integer_value(json_array_get(offsets, 0));
}

/* A new directory with the model's config.json and this checkpoint; `padding` spaces shift its data. */
static const char *write_directory(const char *model, struct checkpoint *checkpoint, unsigned padding)
{
    static char directory[512];
    char path[1024];
    struct diag diag;
    char *config;
    size_t config_bytes;
    const char *base = getenv("TEST_TMPDIR");
    snprintf(directory, sizeof directory, "%s/model.XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof path, GOLDEN "%s/config.json", model);
    assert_false(failed(json_read_file(path, 1 << 20, &diag, &config, &config_bytes)));
    snprintf(path, sizeof path, "%s/config.json", directory);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fwrite(config, 1, config_bytes, file);
    fclose(file);
    free(config);
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    file = fopen(path, "wb");
    assert_non_null(file);
    char *header = json_dumps(checkpoint->header, JSON_COMPACT);
    uint64_t header_bytes = (strlen(header) + 7) / 8 * 8 + padding;
    fwrite(&header_bytes, 8, 1, file);
    fprintf(file, "%-*s", (int)header_bytes, header);
    fwrite(checkpoint->data, 1, checkpoint->data_bytes, file);
    assert_int_equal(fclose(file), 0);
    free(header);
    return directory;
}

static struct model *open_model(const char *directory)
{
    struct model *model;
    struct diag diag = {{0}};
    if (failed(model_create(directory, MODEL_LOAD_FILES, &diag, &model))) { fail_msg("%s", diag.text); }
    return model;
}

static void refuse(const char *directory, const char *word, const char *other)
{
    struct model *model = NULL;
    struct diag diag = {{0}};
    status_t st = model_create(directory, MODEL_LOAD_FILES, &diag, &model);
    assert_int_equal(st.code, ST_DATA_LOSS);
    assert_int_equal(st.scope, SCOPE_NODE);
    assert_null(model);
    if (!strstr(diag.text, "model.safetensors") || !strstr(diag.text, word) || !strstr(diag.text, other)) {
        fail_msg("\"%s\" does not say \"%s\" and \"%s\"", diag.text, word, other);
    }
}

/* Every tensor of a checkpoint is needed: without it the error names it and the shape it should have. */
static void each_missing_tensor_is_named(void **state)
{
    (void)state;
    static const char *const names[] = {"llama_linear_bias_tied_bf16", "qwen3_f16", "gpt2_unscaled_untied_f16"};
    for (size_t i = 0; i < 3; i++) {
        struct checkpoint checkpoint;
        checkpoint_read(names[i], &checkpoint);
        json_t *whole = json_deep_copy(checkpoint.header);
        const char *name;
        json_t *entry;
        unsigned tried = 0;
        json_object_foreach(whole, name, entry) {
            if (strcmp(name, "__metadata__") == 0 || tried++ % 3 != 0) { continue; } /* a third is enough */
            json_decref(checkpoint.header);
            checkpoint.header = json_deep_copy(whole);
            json_object_del(checkpoint.header, name);
            char expected[128];
            snprintf(expected, sizeof expected, "tensor %s is missing", name);
            refuse(write_directory(names[i], &checkpoint, 0), expected, "[");
        }
        assert_true(tried > 10);
        json_decref(whole);
        checkpoint_free(&checkpoint);
    }
}

/* A misshapen tensor or one of a foreign dtype is an error with the shape found and the one asked for. */
static void wrong_tensors_are_named(void **state)
{
    (void)state;
    struct checkpoint checkpoint;
    checkpoint_read("qwen3_f16", &checkpoint);
    json_t *entry = entry_of(&checkpoint, "model.layers.1.self_attn.k_proj.weight");
    json_t *shape = json_object_get(entry, "shape");
    json_object_set_new(entry, "shape", json_pack("[i,i]", 24, 96));
    refuse(write_directory("qwen3_f16", &checkpoint, 0), "model.layers.1.self_attn.k_proj.weight has shape [24, 96]",
           "asks for [48, 48]");
    json_object_set_new(entry, "shape", json_pack("[i]", 2304));
    refuse(write_directory("qwen3_f16", &checkpoint, 0), "has shape [2304]", "asks for [48, 48]");
    (void)shape;
    json_object_set_new(entry, "shape", json_pack("[i,i]", 48, 48));
    json_object_set_new(entry, "dtype", json_string("I16"));
    refuse(write_directory("qwen3_f16", &checkpoint, 0), "model.layers.1.self_attn.k_proj.weight", "dtype I16");
    checkpoint_free(&checkpoint);
}

/* Tensors nobody asked for are passed over: buffers of old checkpoints. */
static void extra_tensors_are_ignored(void **state)
{
    (void)state;
    struct checkpoint checkpoint;
    checkpoint_read("qwen3_f16", &checkpoint);
    json_object_set_new(checkpoint.header, "model.layers.0.self_attn.rotary_emb.inv_freq",
                        json_pack("{s:s,s:[i],s:[i,i]}", "dtype", "I64", "shape", 0, "data_offsets", 0, 0));
    struct model *extra = open_model(write_directory("qwen3_f16", &checkpoint, 0));
    struct model *plain = open_model(GOLDEN "qwen3_f16");
    assert_memory_equal(model_fingerprint(extra), model_fingerprint(plain), MODEL_FINGERPRINT_BYTES);
    model_destroy(extra);
    model_destroy(plain);
    checkpoint_free(&checkpoint);
}

/* Weights are packed the same wherever the file has them, aligned or not; the file is not kept mapped. */
static void alignment_does_not_show(void **state)
{
    (void)state;
    uint64_t mapped, owned, shifted_owned;
    struct checkpoint checkpoint;
    checkpoint_read("qwen3_f16", &checkpoint);
    struct model *aligned = open_model(write_directory("qwen3_f16", &checkpoint, 0));
    model_memory(aligned, &mapped, &owned);
    assert_int_equal(mapped, 0);
    assert_true(owned >= checkpoint.data_bytes);
    struct model *shifted = open_model(write_directory("qwen3_f16", &checkpoint, 1));
    model_memory(shifted, &mapped, &shifted_owned);
    assert_int_equal(owned, shifted_owned);
    const struct model_tensor *here = &model_get_weights(aligned)->layers[2].down;
    const struct model_tensor *there = &model_get_weights(shifted)->layers[2].down;
    assert_int_equal((uintptr_t)there->matrix.data % 64, 0);
    assert_memory_equal(here->matrix.data, there->matrix.data, kernels_matrix_bytes(&here->matrix));
    const uint16_t *stored = (const void *)bytes_of(&checkpoint, "model.layers.2.mlp.down_proj.weight");
    for (uint32_t out = 0; out < here->rows; out++) {
        float row[512];
        kernels_matrix_read(&here->matrix, out, 0, here->cols, row);
        for (uint32_t in = 0; in < here->cols; in++) {
            assert_true(row[in] == f16_to_f32(stored[(size_t)out * here->cols + in]));
        }
    }
    assert_memory_equal(model_fingerprint(aligned), model_fingerprint(shifted), MODEL_FINGERPRINT_BYTES);
    model_destroy(aligned);
    model_destroy(shifted);
    checkpoint_free(&checkpoint);
}

/* GPT-2's [in][out] matrices arrive as [out][in], and q, k and v are parts of one. */
static void conv1d_is_transposed_and_split(void **state)
{
    (void)state;
    struct checkpoint checkpoint;
    checkpoint_read("gpt2_f32", &checkpoint);
    struct model *model = open_model(GOLDEN "gpt2_f32");
    const struct model_layer *layer = &model_get_weights(model)->layers[1];
    uint32_t hidden = model_get_config(model)->hidden_size;
    const uint8_t *stored = bytes_of(&checkpoint, "transformer.h.1.attn.c_attn.weight");
    const struct model_tensor *parts[] = {&layer->q, &layer->k, &layer->v};
    for (uint32_t part = 0; part < 3; part++) {
        assert_int_equal(parts[part]->rows, hidden);
        assert_int_equal(parts[part]->cols, hidden);
        for (uint32_t out = 0; out < hidden; out++) {
            float row[256];
            kernels_matrix_read(&parts[part]->matrix, out, 0, hidden, row);
            for (uint32_t in = 0; in < hidden; in++) {
                assert_memory_equal(&row[in],
                                    stored + 4 * ((size_t)in * 3 * hidden + part * hidden + out), 4);
            }
        }
    }
    assert_memory_equal(layer->v_bias.data, bytes_of(&checkpoint, "transformer.h.1.attn.c_attn.bias") + 8 * hidden,
                        4 * hidden);
    model_destroy(model);
    checkpoint_free(&checkpoint);
}

/* A norm's factor and bias in different formats meet in f32. */
static void layer_norms_may_mix_formats(void **state)
{
    (void)state;
    struct checkpoint checkpoint;
    checkpoint_read("gpt2_f32", &checkpoint);
    json_t *entry = entry_of(&checkpoint, "transformer.ln_f.weight");
    json_t *offsets = json_object_get(entry, "data_offsets");
    json_int_t begin = json_integer_value(json_array_get(offsets, 0));
    float *values = (float *)(void *)(checkpoint.data + begin);
    float wanted[40];
    for (int i = 0; i < 40; i++) { /* in place: a bf16 is the upper half of a float */
        uint16_t half = f32_to_bf16(values[i]);
        wanted[i] = bf16_to_f32(half);
        memcpy(checkpoint.data + begin + 2 * i, &half, 2);
    }
    json_object_set_new(entry, "dtype", json_string("BF16"));
    json_array_set_new(offsets, 1, json_integer(begin + 80));
    struct model *model = open_model(write_directory("gpt2_f32", &checkpoint, 0));
    assert_int_equal(model_get_weights(model)->final_norm.dtype, DTYPE_F32);
    assert_memory_equal(model_get_weights(model)->final_norm.data, wanted, sizeof wanted);
    model_destroy(model);
    checkpoint_free(&checkpoint);
}

static void rename_entry(struct checkpoint *checkpoint, const char *from, const char *to)
{
    json_t *entry = json_incref(entry_of(checkpoint, from));
    json_object_del(checkpoint->header, from);
    json_object_set_new(checkpoint->header, to, entry);
}

/* In a tied model a head that equals the embedding changes nothing, one that differs is believed, and one
 * that is there alone serves as both. */
static void tied_heads(void **state)
{
    (void)state;
    struct checkpoint checkpoint;
    checkpoint_read("qwen3_f16", &checkpoint);
    struct model *tied = open_model(GOLDEN "qwen3_f16");
    assert_ptr_equal(model_get_weights(tied)->head.data, model_get_weights(tied)->embedding.data);

    /* The embedding's bytes once more at the end of the data. */
    size_t bytes = 97 * 48 * 2;
    json_t *head = json_pack("{s:s,s:[i,i],s:[i,i]}", "dtype", "F16", "shape", 97, 48, "data_offsets",
                             (int)checkpoint.data_bytes, (int)(checkpoint.data_bytes + bytes));
    uint8_t *grown = malloc(checkpoint.data_bytes + bytes);
    assert_non_null(grown);
    memcpy(grown, checkpoint.data, checkpoint.data_bytes);
    checkpoint.data = grown;
    memcpy(grown + checkpoint.data_bytes, bytes_of(&checkpoint, "model.embed_tokens.weight"), bytes);
    checkpoint.data_bytes += bytes;
    json_object_set_new(checkpoint.header, "lm_head.weight", head);
    struct model *both = open_model(write_directory("qwen3_f16", &checkpoint, 0));
    assert_ptr_equal(model_get_weights(both)->head.data, model_get_weights(both)->embedding.data);
    assert_memory_equal(model_fingerprint(both), model_fingerprint(tied), MODEL_FINGERPRINT_BYTES);
    model_destroy(both);

    grown[checkpoint.data_bytes - 2] ^= 1;
    both = open_model(write_directory("qwen3_f16", &checkpoint, 0));
    assert_ptr_not_equal(model_get_weights(both)->head.data, model_get_weights(both)->embedding.data);
    assert_memory_not_equal(model_fingerprint(both), model_fingerprint(tied), MODEL_FINGERPRINT_BYTES);
    model_destroy(both);

    json_object_del(checkpoint.header, "lm_head.weight");
    rename_entry(&checkpoint, "model.embed_tokens.weight", "lm_head.weight");
    struct model *lone = open_model(write_directory("qwen3_f16", &checkpoint, 0));
    assert_memory_equal(model_get_weights(lone)->embedding.data, model_get_weights(tied)->embedding.data, bytes);
    model_destroy(lone);
    model_destroy(tied);
    free(grown);
    checkpoint_free(&checkpoint);
}

/* A checkpoint of the bare base model, without "model.", is the same model. */
static void the_prefix_may_be_absent(void **state)
{
    (void)state;
    struct checkpoint checkpoint;
    checkpoint_read("qwen3_f16", &checkpoint);
    json_t *renamed = json_object();
    const char *name;
    json_t *entry;
    json_object_foreach(checkpoint.header, name, entry) {
        json_object_set(renamed, strncmp(name, "model.", 6) == 0 ? name + 6 : name, entry);
    }
    json_decref(checkpoint.header);
    checkpoint.header = renamed;
    struct model *bare = open_model(write_directory("qwen3_f16", &checkpoint, 0));
    struct model *full = open_model(GOLDEN "qwen3_f16");
    assert_memory_equal(model_fingerprint(bare), model_fingerprint(full), MODEL_FINGERPRINT_BYTES);
    model_destroy(bare);
    model_destroy(full);
    checkpoint_free(&checkpoint);
}

/* The tensors of a sharded golden model in one checkpoint of one file. */
static void merge_shards(const char *model, struct checkpoint *ret)
{
    char path[256];
    struct diag diag;
    char *text;
    size_t bytes;
    json_t *index;
    struct safetensors *shards;
    snprintf(path, sizeof path, GOLDEN "%s", model);
    assert_false(failed(safetensors_open(path, &diag, &shards)));
    snprintf(path, sizeof path, GOLDEN "%s/model.safetensors.index.json", model);
    assert_false(failed(json_read_file(path, 1 << 20, &diag, &text, &bytes)));
    assert_false(failed(json_parse_object(path, text, bytes, true, &diag, &index)));
    free(text);
    *ret = (struct checkpoint){.header = json_object(), .file = malloc(1 << 20)};
    assert_non_null(ret->file);
    ret->data = (uint8_t *)ret->file;
    const char *name;
    json_t *owner;
    json_object_foreach(json_object_get(index, "weight_map"), name, owner) {
        const struct safetensors_tensor *tensor = safetensors_find(shards, name);
        assert_non_null(tensor);
        assert_true(ret->data_bytes + tensor->bytes <= 1 << 20);
        memcpy(ret->data + ret->data_bytes, tensor->data, tensor->bytes);
        json_t *shape = json_array();
        for (uint32_t i = 0; i < tensor->rank; i++) { json_array_append_new(shape, json_integer((json_int_t)tensor->shape[i])); }
        json_object_set_new(ret->header, name,
                            json_pack("{s:s,s:o,s:[I,I]}", "dtype", tensor->dtype, "shape", shape, "data_offsets",
                                      (json_int_t)ret->data_bytes, (json_int_t)(ret->data_bytes + tensor->bytes)));
        ret->data_bytes += tensor->bytes;
    }
    json_decref(index);
    safetensors_close(shards);
}

/* The same weights in shards or in one file are the same model. */
static void shards_do_not_show(void **state)
{
    (void)state;
    struct checkpoint checkpoint;
    merge_shards("llama_gelu_sharded_f16", &checkpoint);
    struct model *one = open_model(write_directory("llama_gelu_sharded_f16", &checkpoint, 0));
    struct model *many = open_model(GOLDEN "llama_gelu_sharded_f16");
    assert_memory_equal(model_fingerprint(one), model_fingerprint(many), MODEL_FINGERPRINT_BYTES);
    model_destroy(one);
    model_destroy(many);
    checkpoint_free(&checkpoint);
}

/* One changed bit of one weight, or another config, is another fingerprint. */
static void fingerprints_tell_models_apart(void **state)
{
    (void)state;
    struct checkpoint checkpoint;
    checkpoint_read("qwen3_f16", &checkpoint);
    struct model *a = open_model(write_directory("qwen3_f16", &checkpoint, 0));
    bytes_of(&checkpoint, "model.layers.0.mlp.up_proj.weight")[100] ^= 4;
    struct model *b = open_model(write_directory("qwen3_f16", &checkpoint, 0));
    assert_memory_not_equal(model_fingerprint(a), model_fingerprint(b), MODEL_FINGERPRINT_BYTES);
    model_destroy(a);
    model_destroy(b);
    checkpoint_free(&checkpoint);
}

/* Dummy weights need config.json alone, are the same every time, and keep activations in bounds. */
static void dummy_weights_are_fixed_and_sane(void **state)
{
    (void)state;
    static const char *const names[] = {GOLDEN "llama_llama3_gqa_f32", GOLDEN "gpt2_f32", GOLDEN "qwen2_tied_bf16"};
    for (size_t i = 0; i < 3; i++) {
        struct model *a, *b;
        struct diag diag = {{0}};
        if (failed(model_create(names[i], MODEL_LOAD_DUMMY, &diag, &a))) { fail_msg("%s", diag.text); }
        assert_false(failed(model_create(names[i], MODEL_LOAD_DUMMY, &diag, &b)));
        assert_memory_equal(model_fingerprint(a), model_fingerprint(b), MODEL_FINGERPRINT_BYTES);
        struct model *real = open_model(names[i]);
        assert_memory_not_equal(model_fingerprint(a), model_fingerprint(real), MODEL_FINGERPRINT_BYTES);
        assert_int_equal(model_weight_dtype(a), DTYPE_BF16);
        const struct model_tensor *down = &model_get_weights(a)->layers[1].down;
        const struct model_tensor *other = &model_get_weights(a)->layers[0].down;
        assert_int_equal(down->rows, model_get_weights(real)->layers[1].down.rows);
        assert_int_equal(down->cols, model_get_weights(real)->layers[1].down.cols);
        size_t count = (size_t)down->rows * down->cols;
        assert_memory_not_equal(down->data, other->data, kernels_matrix_bytes(&down->matrix));
        double sum = 0.0, squares = 0.0;
        float row[512];
        for (size_t k = 0; k < count; k++) {
            if (k % down->cols == 0) { kernels_matrix_read(&down->matrix, (uint32_t)(k / down->cols), 0, down->cols, row); }
            double value = (double)row[k % down->cols];
            sum += value;
            squares += value * value;
        }
        /* Variance 1/n_in: the mean of count samples is off by 1/sqrt(count) of a deviation, its square
         * by sqrt(0.8/count) for a uniform variable; six of each. */
        double deviation = 1.0 / sqrt((double)down->cols);
        assert_true(fabs(sum / (double)count) < 6.0 * deviation / sqrt((double)count));
        assert_true(fabs(squares / (double)count * down->cols - 1.0) < 6.0 * sqrt(0.8 / (double)count) + 0x1p-8);
        model_destroy(real);
        model_destroy(a);
        model_destroy(b);
    }
}

/* --kv-dtype=auto is the weights' format as soon as a whole context in f32 exceeds 4 MiB. */
static void large_contexts_keep_the_weights_format(void **state)
{
    (void)state;
    struct checkpoint checkpoint;
    checkpoint_read("qwen3_f16", &checkpoint);
    const char *directory = write_directory("qwen3_f16", &checkpoint, 0);
    char path[1024];
    snprintf(path, sizeof path, "%s/config.json", directory);
    /* 2 * 3 layers * 2 heads * 24 * 4 bytes = 1,152 a token: 3,640 tokens are the last that fit. */
    static const struct { int context; enum dtype want; } cases[] = {{3640, DTYPE_F32}, {3641, DTYPE_F16}};
    for (size_t i = 0; i < 2; i++) {
        json_t *config = json_load_file(path, 0, NULL);
        assert_int_equal(json_object_set_new(config, "max_position_embeddings", json_integer(cases[i].context)), 0);
        assert_int_equal(json_dump_file(config, path, 0), 0);
        json_decref(config);
        struct model *model = open_model(directory);
        struct diag diag;
        enum dtype dtype;
        assert_false(failed(model_kv_dtype(model, "auto", &diag, &dtype)));
        assert_int_equal(dtype, cases[i].want);
        model_destroy(model);
    }
    checkpoint_free(&checkpoint);
}

/* The words of --load, --kv-dtype and block sizes: what is known is taken, the rest refused by name. */
static void layouts_and_words(void **state)
{
    (void)state;
    enum model_load load;
    assert_true(model_load_parse("dummy", &load) && load == MODEL_LOAD_DUMMY);
    assert_true(model_load_parse("auto", &load) && load == MODEL_LOAD_FILES);
    assert_true(model_load_parse("files", &load) && load == MODEL_LOAD_FILES);
    assert_false(model_load_parse("lazy", &load));
    struct model *model = open_model(GOLDEN "qwen3_f16");
    struct diag diag = {{0}};
    enum dtype dtype;
    struct kv_layout layout;
    assert_int_equal(model_kv_dtype(model, "int4", &diag, &dtype).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "\"int4\""));
    static const struct { const char *name; enum dtype want; } words[] = {
        {"bf16", DTYPE_BF16}, {"f16", DTYPE_F16}, {"int8", DTYPE_INT8}, {"fp8", DTYPE_FP8_E4M3}, {"fp8_e4m3", DTYPE_FP8_E4M3}};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        assert_false(failed(model_kv_dtype(model, words[i].name, &diag, &dtype)));
        assert_int_equal(dtype, words[i].want);
    }
    assert_false(failed(model_kv_dtype(model, "auto", &diag, &dtype)));
    assert_int_equal(dtype, DTYPE_F32); /* a context of 128 tokens: rounding would save nothing */
    assert_false(failed(model_kv_dtype(model, "f32", &diag, &dtype)));
    assert_int_equal(dtype, DTYPE_F32);
    assert_int_equal(model_kv_layout(model, 24, dtype, &diag, &layout).code, ST_INVALID_ARGUMENT);
    assert_false(failed(model_kv_layout(model, 32, DTYPE_BF16, &diag, &layout)));
    assert_int_equal(layout.layer_count, 3);
    assert_int_equal(layout.kv_heads, 2);
    assert_int_equal(layout.head_dim, 24);
    assert_int_equal(kv_layout_block_bytes(&layout), 3 * 2 * 2 * 32 * 24 * 2);
    layout.dtype = DTYPE_FP8_E4M3; /* and a scale of 2 bytes beside every 24 values */
    assert_int_equal(kv_layout_block_bytes(&layout), 3 * 2 * 2 * 32 * (24 + 2));
    model_destroy(model);
    model_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_missing_tensor_is_named),
        cmocka_unit_test(wrong_tensors_are_named),
        cmocka_unit_test(extra_tensors_are_ignored),
        cmocka_unit_test(alignment_does_not_show),
        cmocka_unit_test(conv1d_is_transposed_and_split),
        cmocka_unit_test(layer_norms_may_mix_formats),
        cmocka_unit_test(tied_heads),
        cmocka_unit_test(the_prefix_may_be_absent),
        cmocka_unit_test(shards_do_not_show),
        cmocka_unit_test(fingerprints_tell_models_apart),
        cmocka_unit_test(dummy_weights_are_fixed_and_sane),
        cmocka_unit_test(large_contexts_keep_the_weights_format), cmocka_unit_test(layouts_and_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
