/* Claim: a client's bytes become exactly the tokens that were meant, or a sentence that names
 * what is wrong. */
#include "tests/unit/router/router_testing.h"

#include <string.h>

#include "router/cache_salt.h"
#include "router/request_parse.h"

static struct served_model model;

static int set_up(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    memset(&model, 0, sizeof model);
    model.config.vocab_size = TESTING_VOCAB;
    model.config.context_tokens = TESTING_CONTEXT;
    model.tokenizer = testing_tokenizer();
    return failed(chat_template_builtin("chatml", &model.chat, &diag));
}

static int tear_down(void **state)
{
    (void)state;
    served_model_close(&model);
    return 0;
}

static size_t pack(const ProtobufCMessage *message, uint8_t bytes[4096])
{
    size_t len = protobuf_c_message_get_packed_size(message);
    assert_in_range(len, 0, 4096);
    return protobuf_c_message_pack(message, bytes);
}

/* Bytes that are no message, and a message without a prompt. */
static void nonsense_is_refused(void **state)
{
    (void)state;
    struct request_spec spec;
    struct diag diag = {{0}};
    assert_int_equal(request_parse_generate(&model, (const uint8_t *)"\xff\xff", 2, 1, &spec, &diag).code,
                     ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "GenerateRequest"));
    assert_int_equal(request_parse_generate(&model, NULL, 0, 1, &spec, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "set text or tokens"));
}

/* A NUL is a character of the prompt; in a stop text, which could not be seen, it is refused. */
static void a_nul_is_not_lost(void **state)
{
    (void)state;
    struct request_spec spec;
    struct diag diag = {{0}};
    const uint8_t text[] = {0x0a, 3, 'a', 0, 'b'};
    assert_false(failed(request_parse_generate(&model, text, sizeof text, 1, &spec, &diag)));
    assert_int_equal(spec.prompt_count, 3);
    assert_int_equal(spec.prompt[1], TOKEN_BYTE(0));
    assert_int_equal(spec.prompt[2], TOKEN_BYTE('b'));
    request_spec_fini(&spec);
    const uint8_t stop[] = {0x0a, 1, 'a', 0x1a, 5, 0x6a, 3, 'x', 0, 'y'};
    assert_int_equal(request_parse_generate(&model, stop, sizeof stop, 1, &spec, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "stop"));
    const uint8_t chat[] = {0x0a, 9, 0x0a, 4, 'u', 's', 'e', 'r', 0x12, 1, 0};
    assert_int_equal(request_parse_chat(&model, chat, sizeof chat, 1, &spec, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "NUL"));
}

/* A salt is what was sent, byte for byte; one that is too long is named, and none is the cache
 * that all share. */
static void salts_are_told_apart(void **state)
{
    (void)state;
    const uint8_t plain[] = {0x0a, 1, 'a'}, salted[] = {0x0a, 1, 'a', 0x28, 5, 0x32, 1, 'x'};
    const uint8_t nul[] = {0x0a, 1, 'a', 0x32, 2, 'x', 0}, other[] = {0x0a, 1, 'a', 0x32, 2, 'x', 'y'};
    const struct { const uint8_t *bytes; size_t len; } all[] = {
        {plain, sizeof plain}, {salted, sizeof salted}, {nul, sizeof nul}, {other, sizeof other}};
    uint64_t salts[4];
    struct request_spec spec;
    struct diag diag = {{0}};
    for (unsigned i = 0; i < 4; i++) {
        assert_false(failed(request_parse_generate(&model, all[i].bytes, all[i].len, 1, &spec, &diag)));
        assert_int_equal(spec.priority, i == 1 ? 5 : 0);
        salts[i] = spec.cache_salt;
        request_spec_fini(&spec);
        for (unsigned j = 0; j < i; j++) { assert_true(salts[i] != salts[j]); }
    }
    assert_true(salts[0] == 0);
    static uint8_t large[4 + 3 + 257] = {0x0a, 1, 'a', 0x32, 0x81, 2};
    memset(large + 6, 's', 257);
    assert_int_equal(request_parse_generate(&model, large, 6 + 257, 1, &spec, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "cache_salt"));
    large[4] = 0x80; /* one less */
    assert_false(failed(request_parse_generate(&model, large, 6 + 256, 1, &spec, &diag)));
    request_spec_fini(&spec);
}

/* Text that is empty is a prompt where the tokenizer puts something around it, and named otherwise. */
static void empty_text_needs_a_bos(void **state)
{
    (void)state;
    struct request_spec spec;
    struct diag diag = {{0}};
    const uint8_t plain[] = {0x0a, 0, 0x20, 1};
    assert_int_equal(request_parse_generate(&model, plain, sizeof plain, 1, &spec, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "text is empty"));
}

/* A model without a tokenizer takes ids, and says what text would need. */
static void without_a_tokenizer_ids_are_served(void **state)
{
    (void)state;
    struct request_spec spec;
    struct diag diag = {{0}};
    struct served_model bare = {.config = model.config, .text_problem = {.text = "no tokenizer.json"}};
    const uint8_t ids[] = {0x12, 4, 0x0a, 2, 5, 6};
    assert_false(failed(request_parse_generate(&bare, ids, sizeof ids, 1, &spec, &diag)));
    assert_int_equal(spec.prompt_count, 2);
    request_spec_fini(&spec);
    const uint8_t text[] = {0x0a, 1, 'a'}, stop[] = {0x12, 3, 0x0a, 1, 5, 0x1a, 3, 0x6a, 1, 'x'}, answer[] = {0x0a, 1, 5};
    assert_int_equal(request_parse_generate(&bare, text, sizeof text, 1, &spec, &diag).code, ST_FAILED_PRECONDITION);
    assert_non_null(strstr(diag.text, "tokenizer.json"));
    assert_int_equal(request_parse_generate(&bare, stop, sizeof stop, 1, &spec, &diag).code, ST_FAILED_PRECONDITION);
    assert_non_null(strstr(diag.text, "stop"));
    struct text_buf out = {0};
    assert_int_equal(request_parse_detokenize(&bare, answer, sizeof answer, &out, &diag).code, ST_FAILED_PRECONDITION);
    struct token_buf tokens = {0};
    assert_int_equal(request_parse_tokenize(&bare, text, sizeof text, &tokens, &out, &diag).code, ST_FAILED_PRECONDITION);
}

struct chat {
    Baton__V1__ChatRequest request;
    Baton__V1__ChatMessage messages[2], *list[2];
};

static void chat_init(struct chat *chat, const char *user, const char *assistant)
{
    baton__v1__chat_request__init(&chat->request);
    for (unsigned i = 0; i < 2; i++) {
        baton__v1__chat_message__init(&chat->messages[i]);
        chat->list[i] = &chat->messages[i];
    }
    chat->messages[0].role = (char *)"user";
    chat->messages[0].content = (char *)user;
    chat->messages[1].role = (char *)"assistant";
    chat->messages[1].content = (char *)assistant;
    chat->request.messages = chat->list;
    chat->request.n_messages = assistant ? 2 : 1;
}

static status_t tokenize(struct chat *chat, struct text_buf *rendered, size_t *ret_count, struct diag *diag)
{
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    request.input_case = BATON__V1__TOKENIZE_REQUEST__INPUT_CHAT;
    request.chat = &chat->request;
    uint8_t bytes[4096];
    size_t len = pack(&request.base, bytes);
    struct token_buf ids = {0};
    rendered->len = 0;
    status_t st = request_parse_tokenize(&model, bytes, len, &ids, rendered, diag);
    *ret_count = ids.count;
    token_buf_fini(&ids);
    return st;
}

/* A chat is rendered by its template, and Tokenize shows the very tokens that Chat takes. */
static void a_chat_is_rendered(void **state)
{
    (void)state;
    struct chat chat;
    struct text_buf rendered = {0};
    struct diag diag = {{0}};
    size_t count;
    chat_init(&chat, "hi", NULL);
    assert_false(failed(tokenize(&chat, &rendered, &count, &diag)));
    static const char expected[] = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    assert_int_equal(rendered.len, sizeof expected - 1);
    assert_memory_equal(rendered.data, expected, sizeof expected - 1);
    uint8_t bytes[4096];
    chat.request.priority = -3;
    chat.request.cache_salt = (char *)"mine";
    size_t len = pack(&chat.request.base, bytes);
    struct request_spec spec;
    assert_false(failed(request_parse_chat(&model, bytes, len, 1, &spec, &diag)));
    assert_int_equal(spec.prompt_count, count);
    assert_int_equal(spec.priority, -3);
    assert_true(spec.cache_salt == cache_salt_number("mine", 4));
    request_spec_fini(&spec);
    text_buf_fini(&rendered);
}

/* continue_last_message ends the prompt right behind the last message. */
static void the_last_message_is_continued(void **state)
{
    (void)state;
    struct chat chat;
    struct text_buf rendered = {0};
    struct diag diag = {{0}};
    size_t count;
    chat_init(&chat, "hi", "Once upon");
    chat.request.continue_last_message = 1;
    assert_false(failed(tokenize(&chat, &rendered, &count, &diag)));
    assert_true(rendered.len > 9);
    assert_memory_equal(rendered.data + rendered.len - 9, "Once upon", 9);
    chat_init(&chat, "hi", "");
    chat.request.continue_last_message = 1;
    assert_int_equal(tokenize(&chat, &rendered, &count, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "continue_last_message"));
    text_buf_fini(&rendered);
}

/* Each part of a chat that is wrong is named. */
static void bad_chats_are_named(void **state)
{
    (void)state;
    struct chat chat;
    struct text_buf rendered = {0};
    struct diag diag = {{0}};
    size_t count;
    chat_init(&chat, "hi", NULL);
    chat.messages[0].extra_json = (char *)"[1]";
    assert_int_equal(tokenize(&chat, &rendered, &count, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "messages[0].extra_json"));
    chat_init(&chat, "hi", NULL);
    chat.request.tools_json = (char *)"{";
    assert_int_equal(tokenize(&chat, &rendered, &count, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "tools_json"));
    chat_init(&chat, "\xff", NULL);
    assert_int_equal(tokenize(&chat, &rendered, &count, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "messages[0].content"));
    chat_init(&chat, "hi", NULL);
    chat.messages[0].role = (char *)"";
    assert_int_equal(tokenize(&chat, &rendered, &count, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "messages[0].role"));
    text_buf_fini(&rendered);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(salts_are_told_apart), cmocka_unit_test(nonsense_is_refused), cmocka_unit_test(empty_text_needs_a_bos),
        cmocka_unit_test(without_a_tokenizer_ids_are_served), cmocka_unit_test(a_nul_is_not_lost), cmocka_unit_test(a_chat_is_rendered),
        cmocka_unit_test(the_last_message_is_continued), cmocka_unit_test(bad_chats_are_named),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
