/* safetensors files as they should be, damaged in every way we could think of, and in shards. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/safetensors.h"

struct image {
    uint8_t *bytes;
    size_t size;
};

/* A file with this header and `data_bytes` of data 0, 1, 2 ... */
static struct image make_image(const char *header, size_t data_bytes)
{
    uint64_t header_bytes = strlen(header);
    struct image image = {.size = 8 + header_bytes + data_bytes};
    image.bytes = malloc(image.size); /* exact, so that a sanitizer sees a read past the end */
    assert_non_null(image.bytes);
    memcpy(image.bytes, &header_bytes, 8);
    memcpy(image.bytes + 8, header, header_bytes);
    for (size_t i = 0; i < data_bytes; i++) { image.bytes[8 + header_bytes + i] = (uint8_t)i; }
    return image;
}

static void refuse(const char *header, size_t data_bytes, const char *word, const char *other)
{
    struct image image = make_image(header, data_bytes);
    struct safetensors *checkpoint = NULL;
    struct diag diag = {{0}};
    status_t st = safetensors_parse("dir/x.safetensors", image.bytes, image.size, &diag, &checkpoint);
    if (!failed(st)) { fail_msg("not refused: %s", header); }
    assert_int_equal(st.code, ST_DATA_LOSS);
    assert_int_equal(st.scope, SCOPE_NODE);
    assert_null(checkpoint);
    if (!strstr(diag.text, "dir/x.safetensors") || !strstr(diag.text, word) || !strstr(diag.text, other)) {
        fail_msg("\"%s\" does not say \"%s\" and \"%s\"", diag.text, word, other);
    }
    free(image.bytes);
}

#define T(name, dtype, shape, begin, end) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

/* A header that lies about its tensors is refused, naming the file and the tensor. */
static void damaged_headers_are_refused(void **state)
{
    (void)state;
    refuse("", 0, "not valid JSON", "");
    refuse("[]", 0, "not an object", "");
    refuse("{\"a\":1", 0, "not valid JSON", "");
    refuse("{\"a\":1}", 0, "tensor a", "dtype");
    refuse("{\"a\":{}}", 0, "tensor a", "dtype");
    refuse("{\"a\":{\"dtype\":\"F32\"}}", 8, "tensor a", "data_offsets");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "tensor a", "data_offsets");
    refuse("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "tensor a", "shape");
    refuse("{\"a\":{\"dtype\":\"AN_ENDLESS_DTYPE_NAME\",\"shape\":[],\"data_offsets\":[0,8]}}", 8, "tensor a", "dtype");
    refuse("{" T("a", "F32", "[2]", 0, 12) "}", 8, "tensor a", "truncated");
    refuse("{" T("a", "F32", "[3]", 0, 8) "}", 8, "F32 [3]", "8 bytes");
    refuse("{" T("a", "F32", "[2]", 8, 0) "}", 8, "tensor a", "[begin, end]");
    refuse("{" T("a", "F32", "[2]", -8, 0) "}", 8, "tensor a", "[begin, end]");
    refuse("{" T("a", "F32", "[2]", 0.0, 8.0) "}", 8, "tensor a", "[begin, end]");
    refuse("{" T("a", "F32", "[-2]", 0, 8) "}", 8, "tensor a", "size");
    refuse("{" T("a", "F32", "[2.0]", 0, 8) "}", 8, "tensor a", "size");
    refuse("{" T("a", "F32", "{}", 0, 8) "}", 8, "tensor a", "shape");
    refuse("{" T("a", "F32", "[1,1,1,1,1,1,1,1,2]", 0, 8) "}", 8, "tensor a", "at most 8");
    refuse("{" T("a", "F32", "[4294967296,4294967296,1]", 0, 8) "}", 8, "tensor a", "overflows");
    refuse("{" T("a", "F32", "[4611686018427387904]", 0, 0) "}", 8, "tensor a", "does not fit");
    refuse("{" T("a", "F32", "[2]", 0, 9223372036854775807) "}", 8, "tensor a", "truncated");
    refuse("{" T("a", "F32", "[2]", 0, 8) "," T("a", "F32", "[2]", 8, 16) "}", 16, "duplicate", "");
    refuse("{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[2]", 4, 12) "}", 16, "overlap", "tensor a");
    refuse("{" T("b", "F32", "[2]", 4, 12) "," T("a", "F32", "[4]", 0, 16) "}", 16, "overlap", "b");
    refuse("{" T("a", "U8", "[1]", 0, 1) "," T("b", "U8", "[1]", 0, 1) "}", 1, "overlap", "");
}

/* A file cut anywhere, or with any header length, is refused and never read past its end. */
static void truncated_files_are_refused(void **state)
{
    (void)state;
    struct image image = make_image("{" T("a", "F32", "[2]", 0, 8) "}", 8);
    for (size_t size = 0; size < image.size; size++) {
        uint8_t *cut = malloc(size ? size : 1);
        struct safetensors *checkpoint = NULL;
        struct diag diag;
        memcpy(cut, image.bytes, size);
        status_t st = safetensors_parse("x", cut, size, &diag, &checkpoint);
        assert_int_equal(st.code, ST_DATA_LOSS);
        free(cut);
    }
    static const uint64_t lengths[] = {0, 1, 1000, UINT64_MAX, UINT64_MAX - 8, INT64_MAX, SAFETENSORS_HEADER_BYTES_MAX + 1};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        struct safetensors *checkpoint = NULL;
        struct diag diag;
        memcpy(image.bytes, &lengths[i], 8);
        assert_int_equal(safetensors_parse("x", image.bytes, image.size, &diag, &checkpoint).code, ST_DATA_LOSS);
    }
    free(image.bytes);
}

/* Metadata, padding, holes, scalars, empty tensors and unknown dtypes are fine; tensors are found by name. */
static void odd_but_good_files_open(void **state)
{
    (void)state;
    struct image image =
        make_image("{\"__metadata__\":{\"format\":\"pt\"}," T("w", "BF16", "[2,3]", 4, 16) "," T("scalar", "F32", "[]", 0, 4)
                   "," T("empty", "F32", "[0,7]", 16, 16) "," T("odd", "Q3_K", "[9]", 20, 31) "}   ", 40);
    struct safetensors *checkpoint;
    struct diag diag = {{0}};
    status_t st = safetensors_parse("x", image.bytes, image.size, &diag, &checkpoint);
    if (failed(st)) { fail_msg("%s", diag.text); }
    const struct safetensors_tensor *w = safetensors_find(checkpoint, "w");
    assert_non_null(w);
    assert_string_equal(w->dtype, "BF16");
    assert_int_equal(w->rank, 2);
    assert_int_equal(w->shape[1], 3);
    assert_int_equal(w->bytes, 12);
    assert_int_equal(w->data[0], 4);
    assert_non_null(safetensors_find(checkpoint, "scalar"));
    assert_int_equal(safetensors_find(checkpoint, "empty")->bytes, 0);
    assert_non_null(safetensors_find(checkpoint, "odd"));
    assert_null(safetensors_find(checkpoint, "__metadata__"));
    assert_null(safetensors_find(checkpoint, "nothing"));
    safetensors_close(checkpoint);
    free(image.bytes);
    image = make_image("{}", 0);
    assert_false(failed(safetensors_parse("x", image.bytes, image.size, &diag, &checkpoint)));
    assert_null(safetensors_find(checkpoint, "w"));
    safetensors_close(checkpoint);
    safetensors_close(NULL);
    free(image.bytes);
}

/* ---- directories ---------------------------------------------------------------------------- */

static char *temporary_directory(void)
{
    const char *base = getenv("TEST_TMPDIR");
    static char path[512];
    snprintf(path, sizeof path, "%s/safetensors.XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(path));
    return path;
}

static void write_file(const char *directory, const char *name, const void *bytes, size_t size)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    fclose(file);
}

static void write_shard(const char *directory, const char *name, const char *header, size_t data_bytes)
{
    struct image image = make_image(header, data_bytes);
    write_file(directory, name, image.bytes, image.size);
    free(image.bytes);
}

static void refuse_directory(const char *directory, uint8_t code, const char *word, const char *other)
{
    struct safetensors *checkpoint = NULL;
    struct diag diag = {{0}};
    status_t st = safetensors_open(directory, &diag, &checkpoint);
    assert_int_equal(st.code, code);
    assert_null(checkpoint);
    if (!strstr(diag.text, word) || !strstr(diag.text, other)) {
        fail_msg("\"%s\" does not say \"%s\" and \"%s\"", diag.text, word, other);
    }
}

#define INDEX "model.safetensors.index.json"

static void write_index(const char *directory, const char *text) { write_file(directory, INDEX, text, strlen(text)); }

/* Shards are found through the index; whatever is amiss with it is said with the tensor and the file. */
static void shards_open_and_fail_by_name(void **state)
{
    (void)state;
    char *directory = temporary_directory();
    refuse_directory(directory, ST_NOT_FOUND, "model.safetensors.index.json", "--load=dummy");
    write_index(directory, "{}");
    refuse_directory(directory, ST_INVALID_ARGUMENT, "weight_map", INDEX);
    write_index(directory, "{\"weight_map\":{\"a\":\"../secret\"}}");
    refuse_directory(directory, ST_INVALID_ARGUMENT, "tensor a", "same directory");
    write_index(directory, "{\"weight_map\":{\"a\":\"..\"}}");
    refuse_directory(directory, ST_INVALID_ARGUMENT, "tensor a", "same directory");
    write_index(directory, "{\"weight_map\":{\"a\":7}}");
    refuse_directory(directory, ST_INVALID_ARGUMENT, "tensor a", "same directory");
    write_index(directory, "{\"weight_map\":{\"a\":\"one\",\"b\":\"two\",\"c\":\"one\"}}");
    write_shard(directory, "one", "{" T("a", "F32", "[1]", 0, 4) "," T("c", "F32", "[1]", 4, 8) "}", 8);
    refuse_directory(directory, ST_NOT_FOUND, "two", "tensor b");
    write_shard(directory, "two", "{" T("x", "F32", "[1]", 0, 4) "}", 4);
    refuse_directory(directory, ST_DATA_LOSS, "tensor b", "two");
    write_shard(directory, "two", "{" T("b", "F32", "[1]", 0, 4) "}", 3);
    refuse_directory(directory, ST_DATA_LOSS, "tensor b", "truncated");
    /* The same name in another shard than the index says is passed over. */
    write_shard(directory, "two", "{" T("a", "F16", "[1]", 0, 2) "," T("b", "F16", "[1]", 2, 4) "}", 4);
    struct safetensors *checkpoint;
    struct diag diag = {{0}};
    if (failed(safetensors_open(directory, &diag, &checkpoint))) { fail_msg("%s", diag.text); }
    assert_string_equal(safetensors_find(checkpoint, "a")->dtype, "F32");
    assert_string_equal(safetensors_find(checkpoint, "b")->dtype, "F16");
    assert_non_null(strstr(safetensors_find(checkpoint, "b")->file, "/two"));
    assert_non_null(safetensors_find(checkpoint, "c"));
    safetensors_close(checkpoint);
    /* A single file wins over an index. */
    write_shard(directory, "model.safetensors", "{" T("only", "F32", "[1]", 0, 4) "}", 4);
    if (failed(safetensors_open(directory, &diag, &checkpoint))) { fail_msg("%s", diag.text); }
    assert_null(safetensors_find(checkpoint, "a"));
    assert_non_null(safetensors_find(checkpoint, "only"));
    safetensors_close(checkpoint);
    write_file(directory, "model.safetensors", "abc", 3);
    refuse_directory(directory, ST_DATA_LOSS, "model.safetensors", "8 bytes");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damaged_headers_are_refused),
        cmocka_unit_test(truncated_files_are_refused),
        cmocka_unit_test(odd_but_good_files_open),
        cmocka_unit_test(shards_open_and_fail_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
