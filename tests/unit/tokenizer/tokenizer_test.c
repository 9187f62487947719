#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "model/tokenizer/detokenizer.h"
#include "model/tokenizer/tokenizer.h"
#include "tests/unit/tokenizer/token_check.h"

static const struct encode_options plain = {false, true};

/* A file that holds what is given and a model of the letters a, b, c and ab. */
static status_t create_with(const char *fields, const char *config, struct tokenizer **ret_tokenizer, struct diag *diag)
{
    char json[2048];
    int len = snprintf(json, sizeof json, "{%s%s\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3},"
                       "\"merges\":[\"a b\"]}}", fields, *fields ? "," : "");
    return tokenizer_create_from_json(json, (size_t)len, config, config ? strlen(config) : 0, ret_tokenizer, diag);
}

static void refuses(const char *json, uint8_t code, const char *says)
{
    struct diag diag = {{0}};
    struct tokenizer *tokenizer = NULL;
    status_t st = tokenizer_create_from_json(json, strlen(json), NULL, 0, &tokenizer, &diag);
    assert_int_equal(st.code, code);
    if (!strstr(diag.text, says)) { fail_msg("\"%s\" does not say \"%s\"", diag.text, says); }
}

static void refuses_field(const char *fields, uint8_t code, const char *says)
{
    struct diag diag = {{0}};
    struct tokenizer *tokenizer = NULL;
    status_t st = create_with(fields, NULL, &tokenizer, &diag);
    if (!failed(st)) { tokenizer_destroy(tokenizer); }
    assert_int_equal(st.code, code);
    if (!strstr(diag.text, says)) { fail_msg("\"%s\" does not say \"%s\"", diag.text, says); }
}

/* What is not supported is refused by its name, and the text says what is. */
static void unknown_components_are_refused_by_name(void **state)
{
    (void)state;
    refuses("{\"model\":{\"type\":\"WordPiece\"}}", ST_UNIMPLEMENTED, "WordPiece");
    refuses("{\"model\":{\"type\":\"Unigram\"}}", ST_UNIMPLEMENTED, "Unigram");
    refuses_field("\"normalizer\":{\"type\":\"Precompiled\"}", ST_UNIMPLEMENTED, "Precompiled");
    refuses_field("\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Odd\"}]}", ST_UNIMPLEMENTED, "Odd");
    refuses_field("\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}", ST_UNIMPLEMENTED, "UnicodeScripts");
    refuses_field("\"decoder\":{\"type\":\"CTC\"}", ST_UNIMPLEMENTED, "CTC");
    refuses_field("\"post_processor\":{\"type\":\"Odd\"}", ST_UNIMPLEMENTED, "Odd");
}

/* A malformed file is an error that names the place, never a crash. */
static void malformed_files_are_refused(void **state)
{
    (void)state;
    refuses("", ST_INVALID_ARGUMENT, "line 1");
    refuses("{\n\"model\": x}", ST_INVALID_ARGUMENT, "line 2");
    refuses("[]", ST_INVALID_ARGUMENT, "model");
    refuses("{\"model\":{\"type\":\"BPE\",\"vocab\":[],\"merges\":[]}}", ST_INVALID_ARGUMENT, "vocab");
    refuses("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", ST_INVALID_ARGUMENT, "\"a\"");
    refuses("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":4000000000},\"merges\":[]}}", ST_INVALID_ARGUMENT, "16777215");
    refuses("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":{}}}", ST_INVALID_ARGUMENT, "merges");
    refuses("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a\"]}}", ST_INVALID_ARGUMENT, "merge 0");
    refuses("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}}", ST_INVALID_ARGUMENT, "\"aa\"");
    refuses("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\",\"b\"]]}}", ST_INVALID_ARGUMENT, "\"b\"");
    refuses("{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[],\"dropout\":0.1}}", ST_INVALID_ARGUMENT, "dropout");
    refuses_field("\"added_tokens\":[{\"id\":1}]", ST_INVALID_ARGUMENT, "added_tokens[0]");
    refuses_field("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a\"},\"behavior\":\"Isolated\",\"invert\":false}",
                  ST_INVALID_ARGUMENT, "\"(a\"");
    refuses_field("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a&&b]\"},\"behavior\":\"Isolated\",\"invert\":false}",
                  ST_INVALID_ARGUMENT, "[a&&b]");
    refuses_field("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"xy\"}", ST_INVALID_ARGUMENT, "replacement");
    refuses_field("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<q>\"}}]}",
                  ST_INVALID_ARGUMENT, "<q>");
}

static void missing_directory_is_not_found(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    struct tokenizer *tokenizer = NULL;
    assert_int_equal(tokenizer_create("no/such/dir", &tokenizer, &diag).code, ST_NOT_FOUND);
    assert_non_null(strstr(diag.text, "no/such/dir/tokenizer.json"));
}

/* Input that is not UTF-8 is refused with the byte where it stops being so, and no id is added. */
static void invalid_utf8_names_the_byte(void **state)
{
    (void)state;
    static const struct { const char *text; size_t len; const char *says; } cases[] = {
        {"\xff", 1, "byte 0 (0xff)"}, {"abc\x80", 4, "byte 3 (0x80)"}, {"abcdefgh\xc3", 9, "byte 8 (0xc3)"},
        {"\xc0\xaf", 2, "byte 0"}, {"a\xed\xa0\x80", 4, "byte 1"}, {"\xe4\xbd", 2, "byte 0"},
        {"\xf4\x90\x80\x80", 4, "byte 0"}, {"\xf0\x9f\x98\x80\xf0\x9f\x98", 7, "byte 4"},
    };
    struct tokenizer *tokenizer = load_tokenizer("tests/golden/tokenizer/gpt2");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct token_buf ids = {0};
        struct diag diag = {{0}};
        assert_false(failed(token_buf_append(&ids, 7)));
        status_t st = tokenizer_encode(tokenizer, cases[i].text, cases[i].len, plain, &ids, &diag);
        assert_int_equal(st.code, ST_INVALID_ARGUMENT);
        assert_int_equal(st.scope, SCOPE_REQUEST);
        assert_non_null(strstr(diag.text, cases[i].says));
        assert_int_equal(ids.count, 1);
        token_buf_fini(&ids);
    }
    tokenizer_destroy(tokenizer);
}

static void expect_ids(const struct tokenizer *tokenizer, const char *text, struct encode_options options, size_t count,
                       const uint32_t *expected)
{
    struct token_buf ids = {0};
    struct diag diag = {{0}};
    if (failed(tokenizer_encode(tokenizer, text, strlen(text), options, &ids, &diag))) { fail_msg("%s", diag.text); }
    assert_int_equal(ids.count, count);
    assert_memory_equal(ids.ids, expected, count * sizeof *expected);
    token_buf_fini(&ids);
}

/* A special token written in a text counts only when asked for; other added tokens always do. */
static void special_text_is_text_unless_asked_for(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    struct tokenizer *tokenizer = NULL;
    assert_false(failed(create_with("\"added_tokens\":[{\"id\":4,\"content\":\"cc\",\"special\":true},{\"id\":5,\"content\":\"aa\","
                                    "\"special\":false}]", NULL, &tokenizer, &diag)));
    expect_ids(tokenizer, "accaa", plain, 3, (uint32_t[]){0, 4, 5});
    expect_ids(tokenizer, "accaa", (struct encode_options){false, false}, 4, (uint32_t[]){0, 2, 2, 5});
    assert_int_equal(tokenizer_vocab_size(tokenizer), 6);
    assert_true(tokenizer_is_special(tokenizer, 4));
    assert_false(tokenizer_is_special(tokenizer, 5));
    assert_false(tokenizer_is_special(tokenizer, UINT32_MAX));
    tokenizer_destroy(tokenizer);
}

/* truncation and padding of the file change nothing: a server must not cut a prompt. */
static void truncation_and_padding_are_ignored(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    struct tokenizer *tokenizer = NULL;
    assert_false(failed(create_with("\"truncation\":{\"max_length\":1,\"strategy\":\"LongestFirst\",\"stride\":0},"
                                    "\"padding\":{\"strategy\":{\"Fixed\":9},\"pad_id\":2}", NULL, &tokenizer, &diag)));
    expect_ids(tokenizer, "abcab", plain, 3, (uint32_t[]){3, 2, 3});
    tokenizer_destroy(tokenizer);
}

/* add_bos_token and add_eos_token of a Llama class decide over the post-processor, of others not. */
static void llama_configuration_decides_on_bos_and_eos(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    struct tokenizer *tokenizer = NULL;
    assert_false(failed(create_with("", "{\"tokenizer_class\":\"LlamaTokenizer\",\"bos_token\":{\"content\":\"c\"},\"eos_token\":\"b\","
                                    "\"add_bos_token\":true,\"add_eos_token\":true,\"model_max_length\":1000000000000000019884624838656}",
                                    &tokenizer, &diag)));
    expect_ids(tokenizer, "a", (struct encode_options){true, true}, 3, (uint32_t[]){2, 0, 1});
    expect_ids(tokenizer, "", (struct encode_options){true, true}, 2, (uint32_t[]){2, 1});
    assert_string_equal(tokenizer_role_text(tokenizer, TOKENIZER_BOS), "c");
    assert_int_equal(tokenizer_role_id(tokenizer, TOKENIZER_EOS), 1);
    assert_int_equal(tokenizer_role_id(tokenizer, TOKENIZER_PAD), TOKENIZER_NO_ID);
    tokenizer_destroy(tokenizer);
    assert_false(failed(create_with("", "{\"tokenizer_class\":\"GPT2Tokenizer\",\"bos_token\":\"c\",\"add_bos_token\":true}", &tokenizer,
                                    &diag)));
    expect_ids(tokenizer, "a", (struct encode_options){true, true}, 1, (uint32_t[]){0});
    tokenizer_destroy(tokenizer);
}

static void chat_templates_are_found_by_name(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    struct tokenizer *tokenizer = NULL;
    assert_false(failed(create_with("", "{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"T\"},{\"name\":\"default\",\"template\":\"D\"}]}",
                                    &tokenizer, &diag)));
    assert_int_equal(tokenizer_chat_template_count(tokenizer), 2);
    assert_string_equal(tokenizer_chat_template(tokenizer, NULL), "D");
    assert_string_equal(tokenizer_chat_template(tokenizer, "tool_use"), "T");
    assert_null(tokenizer_chat_template(tokenizer, "rag"));
    assert_string_equal(tokenizer_chat_template_name(tokenizer, 0), "tool_use");
    tokenizer_destroy(tokenizer);
}

/* jansson has no keys with zero bytes; our vocabularies do. */
static void zero_bytes_in_tokens_survive(void **state)
{
    (void)state;
    static const char json[] = "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"\\u0000\":0,\"a\":1,\"a\\u0000\":2,\"\\\\u0000\":3},"
                               "\"merges\":[[\"a\",\"\\u0000\"]]}}";
    struct diag diag = {{0}};
    struct tokenizer *tokenizer = NULL;
    struct token_buf ids = {0};
    if (failed(tokenizer_create_from_json(json, sizeof json - 1, NULL, 0, &tokenizer, &diag))) { fail_msg("%s", diag.text); }
    assert_false(failed(tokenizer_encode(tokenizer, "a\0\0a", 4, plain, &ids, &diag)));
    assert_int_equal(ids.count, 3);
    assert_memory_equal(ids.ids, ((uint32_t[]){2, 0, 1}), 12);
    assert_int_equal(tokenizer_token_id(tokenizer, "\\u0000", 6), 3);
    token_buf_fini(&ids);
    tokenizer_destroy(tokenizer);
}

/* A token shown alone gives its bytes, even those that are half a character. */
static void token_texts_are_bytes(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = load_tokenizer("tests/golden/tokenizer/llama2");
    struct text_buf text = {0};
    uint32_t id = tokenizer_token_id(tokenizer, "<0xE4>", 6);
    assert_int_not_equal(id, TOKENIZER_NO_ID);
    assert_false(failed(tokenizer_token_text(tokenizer, id, &text)));
    assert_int_equal(text.len, 1);
    assert_memory_equal(text.data, "\xe4", 1);
    text.len = 0;
    assert_false(failed(tokenizer_token_text(tokenizer, tokenizer_token_id(tokenizer, "▁the", 6), &text)));
    assert_memory_equal(text.data, " the", 4);
    text.len = 0;
    assert_false(failed(tokenizer_token_text(tokenizer, 1, &text)));
    assert_memory_equal(text.data, "<s>", 3);
    text.len = 0;
    assert_false(failed(tokenizer_token_text(tokenizer, UINT32_MAX, &text)));
    assert_int_equal(text.len, 0);
    text_buf_fini(&text);
    tokenizer_destroy(tokenizer);
}

/* A run of byte tokens is shown when it ends; an unfinished character at the end is U+FFFD each
 * byte, and unknown ids are nothing. */
static void streamed_bytes_wait_for_their_run(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = load_tokenizer("tests/golden/tokenizer/llama2");
    struct detokenizer *detokenizer = NULL;
    struct text_buf out = {0};
    uint32_t bytes[3] = {tokenizer_token_id(tokenizer, "<0xE4>", 6), tokenizer_token_id(tokenizer, "<0xBD>", 6),
                         tokenizer_token_id(tokenizer, "<0xA0>", 6)};
    assert_false(failed(detokenizer_create(tokenizer, true, &detokenizer)));
    for (size_t i = 0; i < 3; i++) {
        assert_false(failed(detokenizer_push(detokenizer, bytes[i], &out)));
        assert_int_equal(out.len, 0);
    }
    assert_false(failed(detokenizer_push(detokenizer, tokenizer_id_end(tokenizer) + 5, &out)));
    assert_false(failed(detokenizer_push(detokenizer, 1, &out))); /* <s>, skipped */
    assert_int_equal(out.len, 0);
    assert_false(failed(detokenizer_push(detokenizer, tokenizer_token_id(tokenizer, "▁", 3), &out)));
    assert_memory_equal(out.data, "\xe4\xbd\xa0 ", 4);
    out.len = 0;
    assert_false(failed(detokenizer_push(detokenizer, bytes[0], &out)));
    assert_false(failed(detokenizer_push(detokenizer, bytes[1], &out)));
    assert_int_equal(out.len, 0);
    assert_false(failed(detokenizer_flush(detokenizer, &out)));
    assert_int_equal(out.len, 6);
    assert_memory_equal(out.data, "\xef\xbf\xbd\xef\xbf\xbd", 6);
    detokenizer_destroy(detokenizer);
    text_buf_fini(&out);
    tokenizer_destroy(tokenizer);
}

/* A million letters without a space come back unchanged; work that grew with the square of a
 * word's length would run into the test's limit. */
static void a_word_of_a_million_letters_ends(void **state)
{
    const char *dir = *state;
    struct tokenizer *tokenizer = load_tokenizer(dir);
    size_t len = 1000000;
    char *text = malloc(len);
    struct token_buf ids = {0};
    struct text_buf back = {0};
    struct diag diag = {{0}};
    assert_non_null(text);
    for (size_t i = 0; i < len; i++) { text[i] = "abtheron"[(i * i + i / 7) % 8]; }
    assert_false(failed(tokenizer_encode(tokenizer, text, len, plain, &ids, &diag)));
    assert_false(failed(tokenizer_decode(tokenizer, ids.ids, ids.count, false, &back)));
    assert_int_equal(back.len, len);
    assert_memory_equal(back.data, text, len);
    free(text);
    token_buf_fini(&ids);
    text_buf_fini(&back);
    tokenizer_destroy(tokenizer);
}

struct worker { const struct tokenizer *tokenizer; struct token_buf expected; bool same; };

static void *encode_again(void *argument)
{
    struct worker *worker = argument;
    static const char text[] = "It's a relay: Läufer, бегун, 走者 \xf0\x9f\x8f\x83 hand over 1,234 batons.<|end|>";
    struct token_buf ids = {0};
    worker->same = true;
    for (unsigned i = 0; i < 200; i++) {
        ids.count = 0;
        if (failed(tokenizer_encode(worker->tokenizer, text, sizeof text - 1, plain, &ids, NULL))) { worker->same = false; break; }
        if (worker->expected.count == 0) {
            for (size_t k = 0; k < ids.count; k++) { (void)!failed(token_buf_append(&worker->expected, ids.ids[k])); }
        }
        worker->same = worker->same && ids.count == worker->expected.count &&
                       memcmp(ids.ids, worker->expected.ids, ids.count * sizeof *ids.ids) == 0;
    }
    token_buf_fini(&ids);
    return NULL;
}

/* One tokenizer serves many threads at once, and all get the same ids. */
static void threads_share_a_tokenizer(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = load_tokenizer("tests/golden/tokenizer/qwen");
    struct worker workers[4];
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++) {
        workers[i] = (struct worker){.tokenizer = tokenizer};
        assert_int_equal(pthread_create(&threads[i], NULL, encode_again, &workers[i]), 0);
    }
    for (size_t i = 0; i < 4; i++) { pthread_join(threads[i], NULL); }
    for (size_t i = 0; i < 4; i++) {
        assert_true(workers[i].same);
        assert_int_equal(workers[i].expected.count, workers[0].expected.count);
        assert_memory_equal(workers[i].expected.ids, workers[0].expected.ids, workers[0].expected.count * sizeof(uint32_t));
    }
    for (size_t i = 0; i < 4; i++) { token_buf_fini(&workers[i].expected); }
    tokenizer_destroy(tokenizer);
}

/* Random text goes to ids and back unchanged for a byte-level tokenizer without normalizer. */
static void byte_level_round_trip_is_exact(void **state)
{
    (void)state;
    uint64_t seed = clock_now_ns();
    const char *given = getenv("BATON_SEED");
    if (given) { seed = strtoull(given, NULL, 10); }
    printf("seed %llu\n", (unsigned long long)seed);
    struct tokenizer *tokenizer = load_tokenizer("tests/golden/tokenizer/gpt2");
    static const char *const parts[] = {"a", "the ", " ", "\n", "é", "你", "\xf0\x9f\x98\x80", "0", "'s", "<|end|>", "\t", "Z", "\xcc\x81", "="};
    struct text_buf text = {0}, back = {0};
    struct token_buf ids = {0};
    for (unsigned round = 0; round < 300; round++) {
        text.len = back.len = ids.count = 0;
        for (unsigned i = 0; i < round; i++) {
            seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            const char *part = parts[(seed >> 33) % (sizeof parts / sizeof parts[0])];
            assert_false(failed(text_buf_append(&text, part, strlen(part))));
        }
        assert_false(failed(tokenizer_encode(tokenizer, text.data ? text.data : "", text.len, plain, &ids, NULL)));
        assert_false(failed(tokenizer_decode(tokenizer, ids.ids, ids.count, false, &back)));
        assert_int_equal(back.len, text.len);
        assert_memory_equal(back.data ? back.data : "", text.data ? text.data : "", text.len);
    }
    text_buf_fini(&text);
    text_buf_fini(&back);
    token_buf_fini(&ids);
    tokenizer_destroy(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unknown_components_are_refused_by_name),
        cmocka_unit_test(malformed_files_are_refused),
        cmocka_unit_test(missing_directory_is_not_found),
        cmocka_unit_test(invalid_utf8_names_the_byte),
        cmocka_unit_test(special_text_is_text_unless_asked_for),
        cmocka_unit_test(truncation_and_padding_are_ignored),
        cmocka_unit_test(llama_configuration_decides_on_bos_and_eos),
        cmocka_unit_test(chat_templates_are_found_by_name),
        cmocka_unit_test(zero_bytes_in_tokens_survive),
        cmocka_unit_test(token_texts_are_bytes),
        cmocka_unit_test(streamed_bytes_wait_for_their_run),
        {"a million letters, byte-level", a_word_of_a_million_letters_ends, NULL, NULL, (void *)"tests/golden/tokenizer/gpt2"},
        {"a million letters, byte fallback", a_word_of_a_million_letters_ends, NULL, NULL, (void *)"tests/golden/tokenizer/llama2"},
        cmocka_unit_test(threads_share_a_tokenizer),
        cmocka_unit_test(byte_level_round_trip_is_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
