/* Pack files: what is saved is loaded, bit for bit; every damaged, short, foreign or outdated file is refused
 * with a reason and packed anew; nothing half written is ever found under the name. */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/model.h"
#include "model/model_weights.h"
#include "model/weight_pack.h"

#define GOLDEN "tests/golden/models/"

static const char *new_folder(void)
{
    static char folder[512];
    const char *base = getenv("TEST_TMPDIR");
    snprintf(folder, sizeof folder, "%s/pack.XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(folder));
    return folder;
}

/* Two small matrices and bytes for them. */
static struct weight_pack_item items[2];
static uint8_t data[(20u << 20) + 4096]; /* three parts of the file's checksums */

static struct weight_pack_plan small_plan(void)
{
    items[0] = (struct weight_pack_item){.matrix = {.format = KERNELS_WEIGHT_BF16, .n_out = 20, .n_in = 40}, .offset = 0};
    items[1] = (struct weight_pack_item){.matrix = {.format = KERNELS_WEIGHT_F32, .n_out = 16, .n_in = 3}, .offset = 4096};
    for (size_t i = 0; i < 8192; i++) { data[i] = (uint8_t)(i * 7 + i / 256); }
    struct weight_pack_plan plan = {.items = items, .item_count = 2, .bytes = 4096 + 192, .stamp = 77};
    for (int i = 0; i < 32; i++) { plan.fingerprint[i] = (uint8_t)(200 + i); }
    return plan;
}

static const char *saved(const struct weight_pack_plan *plan)
{
    static char path[WEIGHT_PACK_PATH_BYTES];
    struct diag diag;
    assert_true(weight_pack_path(new_folder(), "unused", plan, path));
    if (failed(weight_pack_save(path, plan, data, NULL, &diag))) { fail_msg("%s", diag.text); }
    return path;
}

static unsigned files_in(const char *folder)
{
    unsigned count = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) { count += entry->d_name[0] != '.'; }
    closedir(dir);
    return count;
}

/* What is saved is loaded, by one thread or several, at a page's border. */
static void a_round_trip(void **state)
{
    (void)state;
    struct weight_pack_plan plan = small_plan();
    const char *path = saved(&plan);
    for (uint32_t threads = 1; threads <= 3; threads++) {
        void *loaded = NULL;
        struct diag diag;
        assert_false(failed(weight_pack_load(path, &plan, threads, &diag, &loaded)));
        assert_memory_equal(loaded, data, plan.bytes);
        assert_int_equal((uintptr_t)loaded % 4096, 0);
        weight_pack_unload(loaded, plan.bytes);
    }
}

static void load_refuses(const char *path, const struct weight_pack_plan *plan, const char *why)
{
    void *loaded = NULL;
    struct diag diag = {{0}};
    status_t st = weight_pack_load(path, plan, 1, &diag, &loaded);
    assert_int_equal(st.code, ST_DATA_LOSS);
    assert_null(loaded);
    if (!strstr(diag.text, why) || !strstr(diag.text, path)) { fail_msg("\"%s\" does not say \"%s\" and the path", diag.text, why); }
}

/* No file at all is told apart from a bad one. */
static void no_file(void **state)
{
    (void)state;
    struct weight_pack_plan plan = small_plan();
    char path[WEIGHT_PACK_PATH_BYTES];
    void *loaded = NULL;
    struct diag diag;
    assert_true(weight_pack_path(new_folder(), "unused", &plan, path));
    assert_int_equal(weight_pack_load(path, &plan, 1, &diag, &loaded).code, ST_NOT_FOUND);
}

/* Every changed byte of the head is noticed, and every length that is not the right one. */
static void damage_is_noticed(void **state)
{
    (void)state;
    struct weight_pack_plan plan = small_plan();
    const char *path = saved(&plan);
    const size_t head_bytes = weight_pack_head_bytes(&plan);
    uint8_t head[1024];
    int fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, head, head_bytes, 0), (ssize_t)head_bytes);
    struct stat info;
    assert_int_equal(fstat(fd, &info), 0);
    uint64_t offset;
    struct diag diag;
    assert_false(failed(weight_pack_check(head, head_bytes, (uint64_t)info.st_size, &plan, &diag, &offset)));
    for (size_t i = 0; i < head_bytes; i++) {
        for (int bit = 0; bit < 8; bit++) {
            head[i] ^= (uint8_t)(1 << bit);
            assert_true(failed(weight_pack_check(head, head_bytes, (uint64_t)info.st_size, &plan, &diag, &offset)));
            head[i] ^= (uint8_t)(1 << bit);
        }
    }
    for (size_t cut = 0; cut < head_bytes; cut++) {
        assert_true(failed(weight_pack_check(head, cut, cut, &plan, &diag, &offset)));
    }
    assert_int_equal(ftruncate(fd, info.st_size - 1), 0);
    load_refuses(path, &plan, "bytes");
    assert_int_equal(ftruncate(fd, info.st_size + 1), 0);
    load_refuses(path, &plan, "bytes");
    assert_int_equal(ftruncate(fd, 100), 0);
    load_refuses(path, &plan, "cut short");
    assert_int_equal(ftruncate(fd, 0), 0);
    load_refuses(path, &plan, "no pack file");
    close(fd);
}

static void flip_bit(int fd, uint64_t at, unsigned bit)
{
    uint8_t byte;
    assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
    byte ^= (uint8_t)(1u << bit);
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
}

/* One bit that is not as it was written, anywhere in the data, is noticed by one thread and by several; with the
 * bit turned back the file is good again. */
static void a_flipped_bit_of_the_data_is_noticed(void **state)
{
    (void)state;
    struct weight_pack_plan plan = small_plan();
    for (size_t i = 0; i < sizeof data; i++) { data[i] = (uint8_t)((i * UINT32_C(2654435761)) >> 24); }
    plan.bytes = sizeof data - 1; /* no whole number of pages, words or parts */
    const uint64_t part = 8u << 20, places[] = {0, 1, 4095, 4096 + 200, part - 1, part, part + 12345, 2 * part - 1, 2 * part, plan.bytes - 4096, plan.bytes - 1};
    const char *path = saved(&plan);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    struct stat info;
    assert_int_equal(fstat(fd, &info), 0);
    const uint64_t begin = (uint64_t)info.st_size - plan.bytes;
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        flip_bit(fd, begin + places[i], (unsigned)i % 8);
        for (uint32_t threads = 1; threads <= 3; threads += 2) {
            void *loaded = NULL;
            struct diag diag = {{0}};
            assert_int_equal(weight_pack_load(path, &plan, threads, &diag, &loaded).code, ST_DATA_LOSS);
            assert_null(loaded);
            if (!strstr(diag.text, "its data is damaged") || !strstr(diag.text, path)) { fail_msg("%s", diag.text); }
        }
        flip_bit(fd, begin + places[i], (unsigned)i % 8);
    }
    void *loaded = NULL;
    struct diag diag;
    assert_false(failed(weight_pack_load(path, &plan, 3, &diag, &loaded)));
    assert_memory_equal(loaded, data, plan.bytes);
    weight_pack_unload(loaded, plan.bytes);
    close(fd);
}

/* Another model, other source files, other shapes, another number of matrices: each is named. */
static void foreign_files_are_refused(void **state)
{
    (void)state;
    struct weight_pack_plan plan = small_plan(), other = plan;
    const char *path = saved(&plan);
    other.fingerprint[31] ^= 1;
    load_refuses(path, &other, "another model");
    other = plan;
    other.stamp++;
    load_refuses(path, &other, "files have changed");
    other = plan;
    other.item_count = 1;
    load_refuses(path, &other, "number of matrices");
    items[1].matrix.format = KERNELS_WEIGHT_INT8;
    load_refuses(path, &plan, "matrix 1");
    items[1].matrix.format = KERNELS_WEIGHT_F32;
    char folder_as_file[WEIGHT_PACK_PATH_BYTES];
    snprintf(folder_as_file, sizeof folder_as_file, "%s", new_folder());
    load_refuses(folder_as_file, &plan, "regular file");
}

/* A write that is stopped or cannot happen leaves no file, under no name. */
static void nothing_is_left_of_a_stopped_write(void **state)
{
    (void)state;
    struct weight_pack_plan plan = small_plan();
    const char *folder = new_folder();
    char path[WEIGHT_PACK_PATH_BYTES];
    struct diag diag;
    _Atomic bool stop = true;
    assert_true(weight_pack_path(folder, "unused", &plan, path));
    assert_int_equal(weight_pack_save(path, &plan, data, &stop, &diag).code, ST_CANCELLED);
    assert_int_equal(files_in(folder), 0);
    assert_int_equal(weight_pack_save("/no/such/folder/x.batonpack", &plan, data, NULL, &diag).code, ST_INTERNAL);
    assert_non_null(strstr(diag.text, "/no/such/folder"));
    assert_int_equal(weight_pack_save(path, &plan, data, NULL, &diag).code, ST_OK);
    assert_int_equal(files_in(folder), 1);
}

/* Standard error while a pack is written in the background. */
static const char *log_of_saver(const char *path, const struct weight_pack_plan *plan)
{
    static char text[2048];
    char file[600];
    snprintf(file, sizeof file, "%s/log", new_folder());
    int fd = open(file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), before = dup(2);
    assert_true(fd >= 0 && before >= 0);
    assert_int_equal(dup2(fd, 2), 2);
    struct weight_pack_saver *saver;
    weight_pack_save_later(path, plan, data, &saver);
    weight_pack_saver_wait(saver);
    weight_pack_saver_join(saver);
    assert_int_equal(dup2(before, 2), 2);
    close(before);
    ssize_t got = pread(fd, text, sizeof text - 1, 0);
    assert_true(got >= 0);
    text[got] = '\0';
    close(fd);
    return text;
}

/* A pack that cannot be written is told of once, with the file and the reason; one that is written is not. */
static void what_is_not_saved_is_told(void **state)
{
    (void)state;
    struct weight_pack_plan plan = small_plan();
    const char *text = log_of_saver("/no/such/folder/x.batonpack", &plan);
    const char *line = strstr(text, "event=pack_not_saved");
    if (!line || !strstr(text, "level=warn") || !strstr(text, "/no/such/folder/x.batonpack") || !strstr(text, "No such file")) { fail_msg("%s", text); }
    assert_null(strstr(line + 1, "event="));
    char path[WEIGHT_PACK_PATH_BYTES];
    assert_true(weight_pack_path(new_folder(), "unused", &plan, path));
    assert_string_equal(log_of_saver(path, &plan), "");
    assert_int_equal(access(path, R_OK), 0);
}

struct writer {
    const char *path;
    const struct weight_pack_plan *plan;
};

static void *write_often(void *arg)
{
    const struct writer *writer = arg;
    struct diag diag;
    for (int i = 0; i < 20; i++) {
        if (failed(weight_pack_save(writer->path, writer->plan, data, NULL, &diag))) { return arg; }
    }
    return NULL;
}

/* Whoever loads while others save finds a whole file each time. */
static void starts_may_meet(void **state)
{
    (void)state;
    struct weight_pack_plan plan = small_plan();
    struct writer writer = {.path = saved(&plan), .plan = &plan};
    pthread_t id;
    assert_int_equal(pthread_create(&id, NULL, write_often, &writer), 0);
    for (int i = 0; i < 50; i++) {
        void *loaded = NULL;
        struct diag diag;
        status_t st = weight_pack_load(writer.path, &plan, 1, &diag, &loaded);
        if (failed(st)) { fail_msg("%s", diag.text); }
        assert_memory_equal(loaded, data, plan.bytes);
        weight_pack_unload(loaded, plan.bytes);
    }
    void *failed_writer = NULL;
    pthread_join(id, &failed_writer);
    assert_null(failed_writer);
    weight_pack_unload(NULL, 5);
}

/* off is nowhere, a folder is made, auto passes small models by and falls back to the user's cache. */
static void where_files_lie(void **state)
{
    (void)state;
    struct weight_pack_plan plan = small_plan();
    char path[WEIGHT_PACK_PATH_BYTES], folder[600];
    assert_false(weight_pack_path("off", "/tmp", &plan, path));
    assert_false(weight_pack_path(NULL, "/tmp", &plan, path));
    assert_false(weight_pack_path("auto", new_folder(), &plan, path));
    assert_false(weight_pack_path("/proc/no/such", "/tmp", &plan, path));
    snprintf(folder, sizeof folder, "%s/made", new_folder());
    assert_true(weight_pack_path(folder, "/tmp", &plan, path));
    assert_int_equal(strncmp(path, folder, strlen(folder)), 0);
    assert_int_equal(access(folder, W_OK), 0);
    char name[WEIGHT_PACK_PATH_BYTES];
    items[0].matrix.format = KERNELS_WEIGHT_INT8; /* the other formats' file is kept beside */
    assert_true(weight_pack_path(folder, "/tmp", &plan, name));
    assert_string_not_equal(name, path);
    plan.bytes = WEIGHT_PACK_AUTO_BYTES_MIN;
    const char *model = new_folder();
    assert_true(weight_pack_path("auto", model, &plan, path));
    assert_int_equal(strncmp(path, model, strlen(model)), 0);
    snprintf(folder, sizeof folder, "%s", model);
    setenv("XDG_CACHE_HOME", new_folder(), 1);
    assert_true(weight_pack_path("auto", "/no/such/model", &plan, path));
    assert_int_equal(strncmp(path, getenv("XDG_CACHE_HOME"), strlen(getenv("XDG_CACHE_HOME"))), 0);
    assert_non_null(strstr(path, "/baton/"));
    unsetenv("XDG_CACHE_HOME");
    setenv("HOME", new_folder(), 1);
    assert_true(weight_pack_path("auto", "/no/such/model", &plan, path));
    assert_non_null(strstr(path, "/.cache/baton/"));
    unsetenv("HOME");
    assert_false(weight_pack_path("auto", "/no/such/model", &plan, path));
}

static void compare_matrices(const struct model *a, const struct model *b)
{
    const struct model_weights *x = model_get_weights(a), *y = model_get_weights(b);
    assert_memory_equal(x->head.data, y->head.data, kernels_matrix_bytes(&x->head.matrix));
    for (uint32_t i = 0; i < model_get_config(a)->layer_count; i++) {
        const struct model_tensor *p[] = {&x->layers[i].q, &x->layers[i].v, &x->layers[i].down};
        const struct model_tensor *q[] = {&y->layers[i].q, &y->layers[i].v, &y->layers[i].down};
        for (int k = 0; k < 3; k++) { assert_memory_equal(p[k]->data, q[k]->data, kernels_matrix_bytes(&p[k]->matrix)); }
        assert_memory_equal(x->layers[i].ffn_norm.data, y->layers[i].ffn_norm.data, x->layers[i].ffn_norm.cols * dtype_bytes(x->layers[i].ffn_norm.dtype));
    }
}

/* A model's second start reads the file and has the same bytes as the first and as one without a file; also made
 * up, quantized, transposed, or packed by several threads. A file that was damaged is written anew. */
static void second_starts_have_the_same_weights(void **state)
{
    (void)state;
    static const struct { const char *name; struct model_options options; } cases[] = {
        {GOLDEN "qwen3_f16", {.threads = 1}},
        {GOLDEN "gpt2_f32", {.threads = 3}},
        {GOLDEN "llama_gelu_sharded_f16", {.threads = 2, .weights = MODEL_WEIGHTS_INT8}},
        {GOLDEN "qwen2_tied_bf16", {.threads = 2, .weights = MODEL_WEIGHTS_INT4}},
        {GOLDEN "gpt2_f32", {.threads = 2, .weights = MODEL_WEIGHTS_BF16}},
        {GOLDEN "qwen2_tied_bf16", {.load = MODEL_LOAD_DUMMY, .threads = 3}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *folder = new_folder();
        struct model_options options = cases[i].options, plain = options;
        options.pack_cache = folder;
        plain.threads = 1;
        struct model *without, *first, *second, *third;
        struct diag diag;
        assert_false(failed(model_open(cases[i].name, &plain, &diag, &without)));
        assert_false(failed(model_open(cases[i].name, &options, &diag, &first)));
        assert_non_null(strstr(model_weights_note(first), "writing"));
        model_settle(first);
        assert_int_equal(files_in(folder), 1);
        assert_false(failed(model_open(cases[i].name, &options, &diag, &second)));
        if (!strstr(model_weights_note(second), "loaded")) { fail_msg("%s", model_weights_note(second)); }
        uint64_t mapped, owned, all, none;
        model_memory(second, &mapped, &owned);
        model_memory(first, &none, &all);
        assert_int_equal(none, 0);
        assert_int_equal(mapped + owned, all); /* nothing is held twice */
        assert_true(mapped > owned);
        compare_matrices(without, first);
        compare_matrices(without, second);
        assert_memory_equal(model_fingerprint(without), model_fingerprint(second), MODEL_FINGERPRINT_BYTES);

        char path[WEIGHT_PACK_PATH_BYTES];
        snprintf(path, sizeof path, "%s", strstr(model_weights_note(second), "/"));
        model_destroy(second); /* before its mapping is cut short */
        int fd = open(path, O_RDWR | O_CLOEXEC);
        assert_true(fd >= 0);
        flip_bit(fd, 4096 + mapped / 2, 6);
        close(fd);
        assert_false(failed(model_open(cases[i].name, &options, &diag, &third)));
        if (!strstr(model_weights_note(third), "damaged")) { fail_msg("%s", model_weights_note(third)); }
        compare_matrices(without, third);
        model_settle(third);
        model_destroy(third);
        assert_int_equal(truncate(path, 5000), 0);
        assert_false(failed(model_open(cases[i].name, &options, &diag, &third)));
        if (!strstr(model_weights_note(third), "packed anew")) { fail_msg("%s", model_weights_note(third)); }
        compare_matrices(without, third);
        model_settle(third);
        model_destroy(third);
        assert_false(failed(model_open(cases[i].name, &options, &diag, &third)));
        assert_non_null(strstr(model_weights_note(third), "loaded"));
        model_destroy(third);
        model_destroy(first);
        model_destroy(without);
    }
}

/* Weights in another format are another model: their KV must not meet. */
static void formats_are_in_the_fingerprint(void **state)
{
    (void)state;
    uint8_t hashes[4][MODEL_FINGERPRINT_BYTES];
    for (int i = 0; i < 4; i++) {
        struct model *model;
        struct diag diag;
        struct model_options options = {.weights = (enum model_weight_format)i};
        assert_false(failed(model_open(GOLDEN "qwen3_f16", &options, &diag, &model)));
        memcpy(hashes[i], model_fingerprint(model), sizeof hashes[i]);
        for (int k = 0; k < i; k++) { assert_memory_not_equal(hashes[i], hashes[k], sizeof hashes[i]); }
        model_destroy(model);
    }
    struct model *own, *named; /* bf16 asked of a bf16 checkpoint changes nothing */
    struct diag diag;
    assert_false(failed(model_open(GOLDEN "qwen2_tied_bf16", &(struct model_options){0}, &diag, &own)));
    assert_false(failed(model_open(GOLDEN "qwen2_tied_bf16", &(struct model_options){.weights = MODEL_WEIGHTS_BF16}, &diag, &named)));
    assert_memory_equal(model_fingerprint(own), model_fingerprint(named), MODEL_FINGERPRINT_BYTES);
    model_destroy(own);
    model_destroy(named);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_file),
        cmocka_unit_test(damage_is_noticed),
        cmocka_unit_test(a_flipped_bit_of_the_data_is_noticed),
        cmocka_unit_test(foreign_files_are_refused),
        cmocka_unit_test(nothing_is_left_of_a_stopped_write),
        cmocka_unit_test(what_is_not_saved_is_told),
        cmocka_unit_test(a_round_trip),
        cmocka_unit_test(starts_may_meet),
        cmocka_unit_test(where_files_lie),
        cmocka_unit_test(second_starts_have_the_same_weights),
        cmocka_unit_test(formats_are_in_the_fingerprint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
