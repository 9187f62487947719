/* What a template may not do, and what the caller is told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "model/chat_template/chat_template.h"

static status_t compile(const char *source, struct chat_template **ret_chat, struct diag *diag)
{
    return chat_template_compile(source, strlen(source), ret_chat, diag);
}

/* Compiles and renders with one user message; the text, or NULL with st and diag. */
static char *render(const char *source, const struct chat_options *options, status_t *ret_st, struct diag *diag)
{
    static const struct chat_message hello = {"user", "Hello"};
    static const struct chat_options plain;
    struct chat_template *chat = NULL;
    char *text = NULL;
    size_t len = 0;
    *ret_st = compile(source, &chat, diag);
    if (!failed(*ret_st)) {
        json_t *messages = chat_messages_json(&hello, 1);
        *ret_st = chat_template_render(chat, messages, options ? options : &plain, &text, &len, diag);
        json_decref(messages);
    }
    chat_template_destroy(chat);
    if (text) { assert_int_equal(strlen(text), len); }
    return text;
}

static void assert_renders(const char *source, const char *want)
{
    struct diag diag = {{0}};
    status_t st;
    char *text = render(source, NULL, &st, &diag);
    if (!text) { fail_msg("%s: %s", source, diag.text); }
    assert_string_equal(text, want);
    free(text);
}

static void assert_fails(const char *source, int code, const char *words)
{
    struct diag diag = {{0}};
    status_t st;
    char *text = render(source, NULL, &st, &diag);
    assert_null(text);
    if (st.code != code || !strstr(diag.text, words)) { fail_msg("%.80s: %s, %s", source, status_code_name(st.code), diag.text); }
}

/* What is not known is refused when the template is read, with its name, its line and the flag. */
static void unknown_is_refused_by_name_and_line(void **state)
{
    (void)state;
    const char *choose = "; choose a built-in family with --chat-template=chatml|llama2|llama3|mistral|zephyr|qwen";
    assert_fails("a\nb\n{{ messages | xyz }}", ST_UNIMPLEMENTED, "unsupported filter 'xyz' at line 3");
    assert_fails("a\n{{ messages | xyz }}", ST_UNIMPLEMENTED, choose);
    assert_fails("\n{{ 1 is purple }}", ST_UNIMPLEMENTED, "unsupported test 'purple' at line 2");
    assert_fails("{% include 'x' %}", ST_UNIMPLEMENTED, "unsupported tag 'include' at line 1");
    assert_fails("{% if false %}{{ 1 | truncate }}{% endif %}", ST_UNIMPLEMENTED, "'truncate'");
    assert_fails("\n{{ '{}'.format(1) }}", ST_UNIMPLEMENTED, "unsupported method 'format' of str at line 2");
    assert_fails("{{ '%s' % 1 }}", ST_UNIMPLEMENTED, "unsupported operator %");
    assert_fails("{{ cycler('a') }}", ST_UNIMPLEMENTED, "unsupported function 'cycler'");
}

/* raise_exception's own words reach the caller and nothing else. */
static void raised_text_is_passed_on_as_it_is(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    status_t st;
    assert_null(render("{{ raise_exception('Roles must alternate!') }}", NULL, &st, &diag));
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
    assert_string_equal(diag.text, "Roles must alternate!");
}

/* No template, however it is written, runs for long, takes much memory or crashes. */
static void hostile_templates_end_with_an_error(void **state)
{
    (void)state;
    const char *nest = "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}{% endfor %}{% endfor %}{% endfor %}";
    assert_fails(nest, ST_RESOURCE_EXHAUSTED, ""); /* work or memory, whichever ends first */
    assert_fails("{% for a in range(100000) %}{{ range(300) | sum }}{{ range(300) | max }}{% endfor %}", ST_RESOURCE_EXHAUSTED, "");
    assert_fails("{% set s = 'ab' * 100000 %}{% for a in range(100000) %}{% if s.rfind(s + 'c') %}{% endif %}{% endfor %}", ST_RESOURCE_EXHAUSTED, "");
    assert_fails("{{ 'x' * 9999999999 }}", ST_RESOURCE_EXHAUSTED, "");
    assert_fails("{{ [0] * 9999999999 }}", ST_RESOURCE_EXHAUSTED, "");
    assert_fails("{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", ST_RESOURCE_EXHAUSTED, "");
    assert_fails("{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}", ST_RESOURCE_EXHAUSTED, "");
    assert_fails("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", ST_INVALID_ARGUMENT, "nested deeper");
    assert_fails("{% set ns = namespace(l=[]) %}{% for i in range(1000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}", ST_INVALID_ARGUMENT, "nested deeper");
    assert_fails("{% set ns = namespace(l=[]) %}{% for i in range(1000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l | tojson }}", ST_INVALID_ARGUMENT, "nested deeper");
    assert_fails("{% set ns = namespace(a=[], b=[]) %}{% for i in range(1000) %}{% set ns.a = [ns.a] %}{% set ns.b = [ns.b] %}{% endfor %}{{ ns.a == ns.b }}", ST_INVALID_ARGUMENT, "nested deeper");
    assert_fails("{{ range(100001) }}", ST_INVALID_ARGUMENT, "Range too big");
    assert_fails("{{ 9223372036854775807 + 1 }}", ST_OUT_OF_RANGE, "64 bits");
    assert_fails("{{ 10 ** 100 }}", ST_OUT_OF_RANGE, "64 bits");
    assert_fails("{{ -9223372036854775807 - 2 }}", ST_OUT_OF_RANGE, "64 bits");
    assert_fails("{{ (-9223372036854775807 - 1) // -1 }}", ST_OUT_OF_RANGE, "64 bits");
    assert_fails("{{ 'x' | center(99999999999) }}", ST_RESOURCE_EXHAUSTED, "");
    assert_fails("{{ messages | tojson(indent=100000) }}", ST_INVALID_ARGUMENT, "indent");
    assert_fails("{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}", ST_INVALID_ARGUMENT, "nested deeper");
    assert_fails("{{ messages | map('string') | e }}", ST_INVALID_ARGUMENT, "generator"); /* a failed text, used further */
    assert_fails("{{ strftime_now('%200000000d') }}", ST_UNIMPLEMENTED, "date format");
}

/* Deep nesting in the source is refused while parsing, in each of the ways to nest. */
static void deep_sources_are_refused(void **state)
{
    (void)state;
    static const char *const parts[][3] = {
        {"{{ ", "(", ""},      {"{{ ", "[", ""},    {"{{ ", "not ", "1 }}"}, {"{{ ", "-", "1 }}"},      {"{{ 1", " + 1", " }}"}, {"{{ x", ".x", " }}"},
        {"{{ x", "[0]", " }}"}, {"{{ x", "|e", " }}"}, {"", "{% if 1 %}", ""},  {"{{ ", "1 if 1 else ", "1 }}"}, {"{{ 1", " or 1", " }}"}, {"{{ 1", " if 1", " }}"},
        {"{{ x", "()", " }}"},  {"{{ ", "{1:", ""},  {"", "{% for a in b %}", ""}, {"{% set ", "(", ""},
    };
    char *source = malloc(400000);
    assert_non_null(source);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        char *at = source + sprintf(source, "%s", parts[i][0]);
        for (int k = 0; k < 20000; k++) { at += sprintf(at, "%s", parts[i][1]); }
        sprintf(at, "%s", parts[i][2]);
        struct chat_template *chat = NULL;
        struct diag diag = {{0}};
        status_t st = compile(source, &chat, &diag);
        if (st.code != ST_INVALID_ARGUMENT || !strstr(diag.text, "nested deeper")) { fail_msg("%s: %s", parts[i][1], diag.text); }
    }
    free(source);
}

/* Branches of an elif chain do not nest, so a long one is no deep one. */
static void long_sources_are_fine(void **state)
{
    (void)state;
    char *source = malloc(400000);
    assert_non_null(source);
    char *at = source + sprintf(source, "{%% if false %%}");
    for (int k = 0; k < 2000; k++) { at += sprintf(at, "{%% elif false %%}%d", k); }
    sprintf(at, "{%% else %%}last{%% endif %%}");
    assert_renders(source, "last");
    at = source + sprintf(source, "{{ 'a'");
    for (int k = 0; k < 5000; k++) { at += sprintf(at, " ~ 'b'"); }
    sprintf(at, " | length }}");
    struct diag diag = {{0}};
    status_t st;
    char *text = render(source, NULL, &st, &diag);
    assert_non_null(text);
    assert_int_equal(strlen(text), 5001);
    free(text);
    free(source);
}

/* Bytes that are no UTF-8, and sources that are too long, are refused before they are read. */
static void sources_are_checked(void **state)
{
    (void)state;
    struct chat_template *chat = NULL;
    struct diag diag = {{0}};
    assert_int_equal(chat_template_compile("a\xff", 2, &chat, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "UTF-8"));
    char *big = calloc(1, (1 << 20) + 1);
    assert_non_null(big);
    memset(big, 'a', (1 << 20) + 1);
    assert_int_equal(chat_template_compile(big, (1 << 20) + 1, &chat, &diag).code, ST_INVALID_ARGUMENT);
    assert_null(chat);
    free(big);
}

/* Messages must be a list; what the template reads and does not find is undefined or an error. */
static void messages_are_checked(void **state)
{
    (void)state;
    struct chat_template *chat = NULL;
    struct diag diag = {{0}};
    struct chat_options options = {0};
    char *text = NULL;
    size_t len = 0;
    assert_int_equal(compile("{{ messages[0].content + '!' }}", &chat, &diag).code, ST_OK);
    json_t *object = json_object();
    assert_int_equal(chat_template_render(chat, object, &options, &text, &len, &diag).code, ST_INVALID_ARGUMENT);
    assert_int_equal(chat_template_render(chat, NULL, &options, &text, &len, &diag).code, ST_INVALID_ARGUMENT);
    json_t *array = json_pack("[{s:s}]", "role", "user");
    assert_int_equal(chat_template_render(chat, array, &options, &text, &len, &diag).code, ST_INVALID_ARGUMENT);
    assert_string_equal(diag.text, "chat template: line 1: 'dict object' has no attribute 'content'");
    json_t *deep = json_array();
    for (int i = 0; i < 1000; i++) {
        json_t *outer = json_array();
        json_array_append_new(outer, deep);
        deep = outer;
    }
    assert_int_equal(chat_template_render(chat, deep, &options, &text, &len, &diag).code, ST_INVALID_ARGUMENT);
    options.bos_token = "\xff";
    assert_int_equal(chat_template_render(chat, array, &options, &text, &len, &diag).code, ST_INVALID_ARGUMENT);
    assert_null(text);
    static const struct chat_message bad = {"user", "\xff"};
    assert_null(chat_messages_json(&bad, 1));
    json_decref(object);
    json_decref(array);
    json_decref(deep);
    chat_template_destroy(chat);
}

/* Each option reaches the template, and further variables win over them. */
static void options_are_variables(void **state)
{
    (void)state;
    json_t *tools = json_pack("[{s:s}]", "name", "f"), *more = json_pack("{s:s, s:b}", "pad_token", "<pad>", "enable_thinking", 0);
    struct chat_options options = {.add_generation_prompt = true, .bos_token = "<s>", .eos_token = "</s>", .tools = tools, .variables = more};
    struct diag diag = {{0}};
    status_t st;
    char *text = render("{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ add_generation_prompt }}{{ enable_thinking is false }}{{ tools[0].name }}"
                        "{{ documents is none }}{{ nothing is defined }}{{ messages[0].content }}",
                        &options, &st, &diag);
    assert_string_equal(text, "<s></s><pad>TrueTruefTrueFalseHello");
    free(text);
    json_object_set_new(more, "bos_token", json_string("<b>"));
    text = render("{{ bos_token }}", &options, &st, &diag);
    assert_string_equal(text, "<b>");
    free(text);
    json_decref(tools);
    json_decref(more);
    assert_renders("[{{ bos_token }}][{{ tools is none }}]", "[][True]");
}

/* One compiled template may be rendered many times: nothing of a render stays in it. */
static void renders_do_not_touch_the_template(void **state)
{
    (void)state;
    struct chat_template *chat = NULL;
    struct diag diag = {{0}};
    struct chat_options options = {0};
    assert_int_equal(compile("{% set x = 'abc' 'def' %}{% set x = x + messages[0].content %}{% macro f(a='q' 'r') %}{{ a + '!' }}{% endmacro %}{{ x }}{{ f() }}", &chat, &diag).code, ST_OK);
    for (int i = 0; i < 3; i++) {
        static const struct chat_message messages[] = {{"user", "1"}, {"user", "22"}};
        json_t *array = chat_messages_json(&messages[i % 2], 1);
        char *text = NULL;
        size_t len = 0;
        assert_int_equal(chat_template_render(chat, array, &options, &text, &len, &diag).code, ST_OK);
        assert_string_equal(text, i % 2 ? "abcdef22qr!" : "abcdef1qr!");
        free(text);
        json_decref(array);
    }
    chat_template_destroy(chat);
}

/* A family's name, a file, and what is neither. */
static void choose_takes_a_family_or_a_file(void **state)
{
    (void)state;
    struct chat_template *chat = NULL;
    struct diag diag = {{0}};
    assert_int_equal(chat_template_builtin("gpt9", &chat, &diag).code, ST_NOT_FOUND);
    assert_non_null(strstr(diag.text, "'gpt9'"));
    assert_non_null(strstr(diag.text, CHAT_TEMPLATE_FAMILIES));
    status_t st = chat_template_choose("/nowhere/x.jinja", &chat, &diag);
    assert_int_equal(st.code, ST_NOT_FOUND);
    assert_int_not_equal(st.cause, 0);
    assert_null(chat);
    char path[] = "/tmp/chat_template_test_XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, "{{ 1 | nope }}", 14), 14);
    close(file);
    assert_int_equal(chat_template_choose(path, &chat, &diag).code, ST_UNIMPLEMENTED);
    assert_non_null(strstr(diag.text, path));
    unlink(path);
    assert_int_equal(chat_template_choose("llama3", &chat, &diag).code, ST_OK);
    chat_template_destroy(chat);
    char families[] = CHAT_TEMPLATE_FAMILIES;
    for (char *name = strtok(families, "|"); name; name = strtok(NULL, "|")) { assert_non_null(chat_template_builtin_source(name)); }
    assert_null(chat_template_builtin_source("chatm"));
}

/* Content that is null or a list of parts is refused by the families rather than printed. */
static void families_want_text(void **state)
{
    (void)state;
    char families[] = CHAT_TEMPLATE_FAMILIES;
    json_t *messages[] = {json_pack("[{s:s, s:n}]", "role", "user", "content"), json_pack("[{s:s, s:[{s:s}]}]", "role", "user", "content", "text", "a")};
    for (char *name = strtok(families, "|"); name; name = strtok(NULL, "|")) {
        struct chat_template *chat = NULL;
        struct chat_options options = {.bos_token = "<s>", .eos_token = "</s>"};
        assert_int_equal(chat_template_builtin(name, &chat, NULL).code, ST_OK);
        for (int i = 0; i < 2; i++) {
            char *text = NULL;
            size_t len = 0;
            status_t st = chat_template_render(chat, messages[i], &options, &text, &len, NULL);
            /* Llama 3's format passes content through the trim filter, which makes text of it. */
            assert_int_equal(st.code, strcmp(name, "llama3") == 0 ? ST_OK : ST_INVALID_ARGUMENT);
            free(text);
        }
        chat_template_destroy(chat);
    }
    json_decref(messages[0]);
    json_decref(messages[1]);
}

/* A zero byte in a message is text like any other. */
static void zero_bytes_are_text(void **state)
{
    (void)state;
    json_t *messages = json_loads("[{\"role\":\"user\",\"content\":\"a\\u0000b\"}]", JSON_ALLOW_NUL, NULL);
    struct chat_template *chat = NULL;
    struct chat_options options = {0};
    char *text = NULL;
    size_t len = 0;
    assert_int_equal(compile("{{ messages[0].content }}{{ messages[0].content | tojson }}", &chat, NULL).code, ST_OK);
    assert_int_equal(chat_template_render(chat, messages, &options, &text, &len, NULL).code, ST_OK);
    assert_int_equal(len, 3 + 10);
    assert_memory_equal(text, "a\0b\"a\\u0000b\"", 13);
    free(text);
    json_decref(messages);
    chat_template_destroy(chat);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unknown_is_refused_by_name_and_line),
        cmocka_unit_test(raised_text_is_passed_on_as_it_is),
        cmocka_unit_test(hostile_templates_end_with_an_error),
        cmocka_unit_test(deep_sources_are_refused),
        cmocka_unit_test(long_sources_are_fine),
        cmocka_unit_test(sources_are_checked),
        cmocka_unit_test(messages_are_checked),
        cmocka_unit_test(options_are_variables),
        cmocka_unit_test(renders_do_not_touch_the_template),
        cmocka_unit_test(choose_takes_a_family_or_a_file),
        cmocka_unit_test(families_want_text),
        cmocka_unit_test(zero_bytes_are_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
