/* The interpreter writes, byte for byte, what transformers and jinja2 write. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <dirent.h>
#include <jansson.h>

#include "model/chat_template/chat_template.h"

#define NOW_S INT64_C(1721995200) /* 2024-07-26 12:00 UTC */
#define GOLDEN "tests/golden/chat_template/"

static json_t *load(const char *path)
{
    json_error_t error;
    /* Real configs hold model_max_length 10^30, which is no 64-bit integer. */
    size_t flags = JSON_ALLOW_NUL | (strstr(path, "tokenizer_config") ? JSON_DECODE_INT_AS_REAL : 0);
    json_t *json = json_load_file(path, flags, &error);
    if (!json) { fail_msg("%s: %s", path, error.text); }
    return json;
}

/* Renders and compares with the case's rendered, raised or error; returns whether it agrees,
 * and says on stdout how it does not. */
static bool agrees(const char *family, const char *source, const json_t *variables, const json_t *expected, const char *label)
{
    struct diag diag = {{0}};
    struct chat_template *chat = NULL;
    char *text = NULL;
    size_t len = 0;
    status_t st = family ? chat_template_builtin(family, &chat, &diag) : chat_template_compile(source, strlen(source), &chat, &diag);
    if (!failed(st)) {
        struct chat_options options = {.variables = variables, .now_s = NOW_S};
        st = chat_template_render(chat, json_object_get(variables, "messages"), &options, &text, &len, &diag);
    }
    const json_t *rendered = json_object_get(expected, "rendered");
    const json_t *raised = json_object_get(expected, "raised");
    bool same;
    if (rendered) {
        same = !failed(st) && len == json_string_length(rendered) && memcmp(text, json_string_value(rendered), len) == 0;
    } else if (raised) {
        same = st.code == ST_INVALID_ARGUMENT && strcmp(diag.text, json_string_value(raised)) == 0;
    } else {
        same = failed(st) && strlen(diag.text) > 0; /* our words for an error may differ, that it is one may not */
    }
    if (!same) {
        char *want = json_dumps(expected, JSON_ENCODE_ANY);
        printf("%s\n  got  %s: %s\n  want %s\n", label, status_code_name(st.code), text ? text : diag.text, want);
        free(want);
    }
    free(text);
    chat_template_destroy(chat);
    return same;
}

/* Every feature that the stored small templates use. */
static void language_is_jinja(void **state)
{
    (void)state;
    json_t *file = load(GOLDEN "language.json");
    const json_t *cases = json_object_get(file, "cases"), *variables = json_object_get(file, "variables");
    size_t wrong = 0;
    assert_true(json_array_size(cases) > 120);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i);
        const char *source = json_string_value(json_object_get(c, "template"));
        wrong += !agrees(NULL, source, variables, c, source);
    }
    json_decref(file);
    assert_int_equal(wrong, 0);
}

/* The built-in families write the formats that make.py writes by plain string operations. */
static void families_are_their_formats(void **state)
{
    (void)state;
    json_t *file = load(GOLDEN "families.json");
    const json_t *cases = json_object_get(file, "cases");
    size_t wrong = 0;
    assert_true(json_array_size(cases) > 100);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        json_t *c = json_array_get(cases, i);
        json_object_set(c, "bos_token", json_object_get(file, "bos_token"));
        json_object_set(c, "eos_token", json_object_get(file, "eos_token"));
        wrong += !agrees(json_string_value(json_object_get(c, "family")), NULL, c, c, json_string_value(json_object_get(c, "name")));
    }
    json_decref(file);
    assert_int_equal(wrong, 0);
}

/* The bundled model's own template. */
static void bundled_template_renders(void **state)
{
    (void)state;
    json_t *config = load("models/baton-tiny/tokenizer_config.json");
    json_t *variables = json_pack("{s:[{s:s,s:s}], s:b, s:O}", "messages", "role", "user", "content", " Hi ", "add_generation_prompt", 1, "bos_token",
                                  json_object_get(config, "bos_token"));
    json_t *want = json_pack("{s:s}", "rendered", "<|begin_of_text|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    assert_true(agrees(NULL, json_string_value(json_object_get(config, "chat_template")), variables, want, "baton-tiny"));
    json_object_set_new(json_array_get(json_object_get(variables, "messages"), 0), "role", json_string("tool"));
    json_decref(want);
    want = json_pack("{s:s}", "raised", "This model knows the roles system, user and assistant");
    assert_true(agrees(NULL, json_string_value(json_object_get(config, "chat_template")), variables, want, "baton-tiny"));
    json_decref(want);
    json_decref(variables);
    json_decref(config);
}

/* ---- templates of real models, where their data is at hand ---- */

/* $BATON_SHARED_DATA, else shared/data in a folder above the sources. */
static bool shared_data(char *ret_path, size_t size)
{
    const char *given = getenv("BATON_SHARED_DATA");
    if (given && *given) {
        snprintf(ret_path, size, "%s", given);
        return true;
    }
    char at[PATH_MAX], probe[PATH_MAX + 64];
    assert_true(size > sizeof at + 16);
    if (!realpath(GOLDEN "language.json", at)) { return false; } /* a link into the sources under Bazel */
    for (char *slash; (slash = strrchr(at, '/')) != NULL && slash != at;) {
        *slash = '\0';
        snprintf(probe, sizeof probe, "%s/shared/data/MANIFEST.md", at);
        if (access(probe, R_OK) == 0) {
            snprintf(ret_path, size, "%s/shared/data", at);
            return true;
        }
    }
    return false;
}

/* "tokenizers/x/tokenizer_config.json: chat_template" or the path of a .jinja file. */
static char *load_source(const char *folder, const char *where)
{
    char path[PATH_MAX + 256];
    const char *colon = strchr(where, ':');
    snprintf(path, sizeof path, "%s/%.*s", folder, colon ? (int)(colon - where) : (int)strlen(where), where);
    if (colon) {
        json_t *config = load(path);
        char *source = strdup(json_string_value(json_object_get(config, "chat_template")));
        json_decref(config);
        return source;
    }
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    char *source = calloc(1, 65536);
    assert_non_null(source);
    assert_true(fread(source, 1, 65535, file) > 0);
    fclose(file);
    return source;
}

static size_t check_model(const char *folder, const char *name, size_t *ret_count)
{
    char path[PATH_MAX + 640];
    snprintf(path, sizeof path, "%s/expected/chat/%s", folder, name);
    json_t *file = load(path);
    char *source = load_source(folder, json_string_value(json_object_get(file, "template")));
    const char *family = strcmp(name, "mistral-7b.json") == 0 ? "mistral" : strcmp(name, "Qwen-Qwen2.5-7B-Instruct.json") == 0 ? "qwen" : NULL;
    const json_t *cases = json_object_get(file, "cases");
    size_t wrong = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        json_t *c = json_array_get(cases, i), *raised = json_object_get(c, "error");
        if (raised) { json_object_set(c, "raised", raised); }
        wrong += !agrees(NULL, source, json_object_get(c, "variables"), c, name);
        if (family) { wrong += !agrees(family, NULL, json_object_get(c, "variables"), c, family); }
        ++*ret_count;
    }
    free(source);
    json_decref(file);
    return wrong;
}

/* Templates that real models ship, on every stored conversation. */
static void real_templates_render_exactly(void **state)
{
    (void)state;
    char folder[PATH_MAX + 64], path[PATH_MAX + 128];
    if (!shared_data(folder, sizeof folder)) {
        printf("skipped: no reference data; set BATON_SHARED_DATA to the folder that holds its MANIFEST.md\n");
        skip();
    }
    snprintf(path, sizeof path, "%s/expected/chat", folder);
    DIR *dir = opendir(path);
    assert_non_null(dir);
    size_t wrong = 0, count = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (strstr(entry->d_name, ".json")) { wrong += check_model(folder, entry->d_name, &count); }
    }
    closedir(dir);
    printf("%zu cases of real templates\n", count);
    assert_true(count >= 260);
    assert_int_equal(wrong, 0);
}

int main(void)
{
    setenv("TZ", "UTC", 1); /* strftime_now shows local time */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(language_is_jinja),
        cmocka_unit_test(families_are_their_formats),
        cmocka_unit_test(bundled_template_renders),
        cmocka_unit_test(real_templates_render_exactly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
