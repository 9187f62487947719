/* Bytes of a client to the router's four parsers: whatever comes, the answer is a request that
 * holds its own rules or a sentence. The first byte chooses the parser. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "router/request_parse.h"

static struct served_model model;

static const char tokenizer_json[] =
    "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":0,\"content\":\"<s>\",\"single_word\":false,\"lstrip\":false,"
    "\"rstrip\":false,\"normalized\":false,\"special\":true}],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\","
    "\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true},\"post_processor\":null,\"decoder\":{\"type\":"
    "\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},\"model\":{\"type\":\"BPE\",\"merges\":[],"
    "\"vocab\":{\"<s>\":0,\"a\":1,\"b\":2,\"h\":3,\"i\":4,\"e\":5,\"l\":6,\"o\":7,\"u\":8,\"s\":9,\"r\":10}}}";

static void open_model(void)
{
    struct diag diag = {{0}};
    memset(&model, 0, sizeof model);
    model.config.vocab_size = 11;
    model.config.context_tokens = 64;
    model.config.eos_count = 1;
    CHECK(!failed(tokenizer_create_from_json(tokenizer_json, sizeof tokenizer_json - 1, NULL, 0, &model.tokenizer, &diag)));
    CHECK(!failed(chat_template_builtin("chatml", &model.chat, &diag)));
}

static void check_spec(struct request_spec *spec)
{
    CHECK(spec->prompt_count > 0);
    CHECK(spec->prompt_count < model.config.context_tokens);
    for (uint32_t i = 0; i < spec->prompt_count; i++) { CHECK(spec->prompt[i] < model.config.vocab_size); }
    CHECK(spec->params.max_tokens <= model.config.context_tokens - spec->prompt_count);
    CHECK(spec->stop_count <= STOP_STRINGS_MAX);
    struct diag diag = {{0}};
    CHECK(!failed(sampling_params_validate(&spec->params, model.config.vocab_size, model.config.context_tokens,
                                           spec->prompt_count, &diag)));
    request_spec_fini(spec);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!model.tokenizer) { open_model(); }
    if (size == 0) { return 0; }
    struct diag diag = {{0}};
    struct request_spec spec = {0};
    struct token_buf ids = {0};
    struct text_buf text = {0};
    status_t st = STATUS_OK;
    switch (data[0] % 4) {
    case 0:
        st = request_parse_generate(&model, data + 1, size - 1, 1, &spec, &diag);
        if (!failed(st)) { check_spec(&spec); }
        break;
    case 1:
        st = request_parse_chat(&model, data + 1, size - 1, 1, &spec, &diag);
        if (!failed(st)) { check_spec(&spec); }
        break;
    case 2:
        st = request_parse_tokenize(&model, data + 1, size - 1, &ids, &text, &diag);
        break;
    case 3:
        st = request_parse_detokenize(&model, data + 1, size - 1, &text, &diag);
        break;
    }
    /* A refusal for what the client sent is never without its sentence. */
    if (st.code == ST_INVALID_ARGUMENT) { CHECK(diag.text[0] != '\0'); }
    token_buf_fini(&ids);
    text_buf_fini(&text);
    return 0;
}
