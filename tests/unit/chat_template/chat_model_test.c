/* What a model directory says about chats is found, in every way in which directories say it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/chat_template/chat_model.h"

struct folder {
    char path[64], config[128], jinja[128];
};

static void put_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fputs(text, file) >= 0, 1);
    fclose(file);
}

static int setup(void **state)
{
    struct folder *f = calloc(1, sizeof *f);
    if (!f) { return 1; }
    strcpy(f->path, "/tmp/chat_model_test_XXXXXX");
    if (!mkdtemp(f->path)) { return 1; }
    snprintf(f->config, sizeof f->config, "%s/tokenizer_config.json", f->path);
    snprintf(f->jinja, sizeof f->jinja, "%s/chat_template.jinja", f->path);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct folder *f = *state;
    unlink(f->config);
    unlink(f->jinja);
    rmdir(f->path);
    free(f);
    return 0;
}

/* Loads and renders one message; the text, or NULL with the status and diag. */
static char *render(const char *path, const char *choice, const struct chat_options *options, status_t *ret_st, struct diag *diag)
{
    static const struct chat_message hello = {"user", "Hi"};
    struct chat_options plain = {0};
    struct chat_model *model = NULL;
    char *text = NULL;
    size_t len = 0;
    *ret_st = chat_model_load(path, choice, &model, diag);
    if (!failed(*ret_st)) {
        json_t *messages = chat_messages_json(&hello, 1);
        *ret_st = chat_model_render(model, messages, options ? options : &plain, &text, &len, diag);
        json_decref(messages);
    }
    chat_model_destroy(model);
    return text;
}

static void assert_text(const char *path, const char *choice, const struct chat_options *options, const char *want)
{
    struct diag diag = {{0}};
    status_t st;
    char *text = render(path, choice, options, &st, &diag);
    if (!text) { fail_msg("%s", diag.text); }
    assert_string_equal(text, want);
    free(text);
}

/* A folder without a config, and one whose config is no object, name the file. */
static void broken_folders_are_named(void **state)
{
    struct folder *f = *state;
    struct diag diag = {{0}};
    status_t st;
    assert_null(render(f->path, NULL, NULL, &st, &diag));
    assert_int_equal(st.code, ST_NOT_FOUND);
    assert_non_null(strstr(diag.text, f->config));
    put_file(f->config, "[1]");
    assert_null(render(f->path, NULL, NULL, &st, &diag));
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
    put_file(f->config, "{\"a\":\n}");
    assert_null(render(f->path, NULL, NULL, &st, &diag));
    assert_non_null(strstr(diag.text, "line 2"));
}

/* A model without a template loads, and says at the first chat what to do. */
static void no_template_names_the_flag(void **state)
{
    struct folder *f = *state;
    struct diag diag = {{0}};
    status_t st;
    put_file(f->config, "{\"bos_token\": \"<s>\", \"model_max_length\": 1000000000000000019884624838656}");
    assert_null(render(f->path, NULL, NULL, &st, &diag));
    assert_int_equal(st.code, ST_FAILED_PRECONDITION);
    assert_non_null(strstr(diag.text, "--chat-template=" CHAT_TEMPLATE_FAMILIES));
    assert_text(f->path, "llama3", NULL, "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>");
}

/* A template that is not known is refused when the model is loaded; the flag still helps. */
static void unknown_template_is_refused_at_load(void **state)
{
    struct folder *f = *state;
    struct diag diag = {{0}};
    status_t st;
    put_file(f->config, "{\"chat_template\": \"{{ 1 | strange }}\"}");
    assert_null(render(f->path, NULL, NULL, &st, &diag));
    assert_int_equal(st.code, ST_UNIMPLEMENTED);
    assert_non_null(strstr(diag.text, "unsupported filter 'strange' at line 1"));
    assert_non_null(strstr(diag.text, f->path));
    assert_text(f->path, "chatml", NULL, "<|im_start|>user\nHi<|im_end|>\n");
}

/* Tokens may be texts or objects; lists of templates have a default; a .jinja file wins. */
static void every_spelling_is_read(void **state)
{
    struct folder *f = *state;
    put_file(f->config, "{\"bos_token\": {\"content\": \"<s>\"}, \"eos_token\": \"</s>\", \"pad_token\": null, \"unk_token\": \"<unk>\","
                        " \"chat_template\": [{\"name\": \"tool_use\", \"template\": \"tools\"},"
                        " {\"name\": \"default\", \"template\": \"{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ unk_token }}{{ pad_token is defined }}\"}]}");
    assert_text(f->path, NULL, NULL, "<s>Hi</s><unk>False");
    assert_text(f->path, "", NULL, "<s>Hi</s><unk>False");
    json_t *more = json_pack("{s:s, s:s}", "eos_token", "<e>", "pad_token", "p");
    struct chat_options options = {.bos_token = "<b>", .eos_token = "<x>", .variables = more};
    assert_text(f->path, NULL, &options, "<b>Hi<e><unk>True");
    json_decref(more);
    put_file(f->jinja, "file {{ messages[0].role }}\n");
    assert_text(f->path, NULL, NULL, "file user");
    assert_text(f->path, "chatml", NULL, "<|im_start|>user\nHi<|im_end|>\n");
}

static void bundled_model_loads(void **state)
{
    (void)state;
    struct chat_options options = {.add_generation_prompt = true};
    assert_text("models/baton-tiny", NULL, &options, "<|begin_of_text|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(broken_folders_are_named, setup, teardown),
        cmocka_unit_test_setup_teardown(no_template_names_the_flag, setup, teardown),
        cmocka_unit_test_setup_teardown(unknown_template_is_refused_at_load, setup, teardown),
        cmocka_unit_test_setup_teardown(every_spelling_is_read, setup, teardown),
        cmocka_unit_test(bundled_model_loads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
