#include "tests/unit/router/router_testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/tokenizer/utf8.h"

static void add(char **text, size_t *len, const char *more)
{
    size_t more_len = strlen(more);
    *text = realloc(*text, *len + more_len + 1);
    assert_non_null(*text);
    memcpy(*text + *len, more, more_len + 1);
    *len += more_len;
}

static void add_entry(char **text, size_t *len, const char *bytes, uint32_t id)
{
    char entry[512] = ", \"";
    size_t at = strlen(entry);
    for (const char *c = bytes; *c; c++) {
        uint32_t code = byte_alphabet_code((uint8_t)*c);
        if (code == '"' || code == '\\') { entry[at++] = '\\'; }
        at += utf8_encode(code, entry + at);
    }
    snprintf(entry + at, sizeof entry - at, "\": %u", id);
    add(text, len, entry);
}

char *testing_tokenizer_json(size_t *ret_len)
{
    char *text = NULL;
    size_t len = 0;
    add(&text, &len, "{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, \"added_tokens\": ["
        "{\"id\": 0, \"content\": \"<s>\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false,"
        " \"normalized\": false, \"special\": true},"
        "{\"id\": 1, \"content\": \"</s>\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false,"
        " \"normalized\": false, \"special\": true}],"
        "\"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false,"
        " \"trim_offsets\": true, \"use_regex\": true}, \"post_processor\": null,"
        "\"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": true},"
        "\"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, \"continuing_subword_prefix\": null,"
        " \"end_of_word_suffix\": null, \"fuse_unk\": false, \"byte_fallback\": false, \"merges\": [], \"vocab\": {"
        "\"<s>\": 0, \"</s>\": 1");
    for (unsigned byte = 0; byte < 256; byte++) {
        char entry[64] = ", \"";
        size_t at = strlen(entry);
        uint32_t code = byte_alphabet_code((uint8_t)byte);
        if (code == '"' || code == '\\') { entry[at++] = '\\'; }
        at += utf8_encode(code, entry + at);
        snprintf(entry + at, sizeof entry - at, "\": %u", TOKEN_BYTE(byte));
        add(&text, &len, entry);
    }
    add_entry(&text, &len, "sto", TOKEN_STO);
    add_entry(&text, &len, "p!", TOKEN_P);
    add_entry(&text, &len, "\xe2\x98\x83", TOKEN_SNOW);
    char longest[201];
    memset(longest, 'x', 200);
    longest[200] = '\0';
    add_entry(&text, &len, longest, TOKEN_LONG);
    add(&text, &len, "}}}");
    *ret_len = len;
    return text;
}

struct tokenizer *testing_tokenizer(void)
{
    size_t len;
    char *json = testing_tokenizer_json(&len);
    struct tokenizer *tokenizer = NULL;
    struct diag diag = {{0}};
    status_t st = tokenizer_create_from_json(json, len, NULL, 0, &tokenizer, &diag);
    free(json);
    if (failed(st)) { fail_msg("the test's tokenizer: %s", diag.text); }
    return tokenizer;
}

static void write_file(const char *dir, const char *name, const char *text, size_t len)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, len, file), len);
    assert_int_equal(fclose(file), 0);
}

void testing_model_dir(char *ret_path, size_t capacity)
{
    const char *base = getenv("TEST_TMPDIR");
    snprintf(ret_path, capacity, "%s/router_model_XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(ret_path));
    char config[512];
    snprintf(config, sizeof config,
             "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": %u,"
             " \"hidden_size\": 16, \"intermediate_size\": 32, \"num_hidden_layers\": 1, \"num_attention_heads\": 2,"
             " \"num_key_value_heads\": 2, \"max_position_embeddings\": %u, \"bos_token_id\": 0, \"eos_token_id\": 1,"
             " \"rms_norm_eps\": 1e-5, \"hidden_act\": \"silu\"}", TESTING_VOCAB, TESTING_CONTEXT);
    write_file(ret_path, "config.json", config, strlen(config));
    const char *generation = "{\"do_sample\": false, \"eos_token_id\": 1}";
    write_file(ret_path, "generation_config.json", generation, strlen(generation));
    size_t len;
    char *json = testing_tokenizer_json(&len);
    write_file(ret_path, "tokenizer.json", json, len);
    free(json);
}

void testing_model_dir_remove(const char *path)
{
    static const char *const names[] = {"config.json", "generation_config.json", "tokenizer.json"};
    for (unsigned i = 0; i < 3; i++) {
        char file[600];
        snprintf(file, sizeof file, "%s/%s", path, names[i]);
        unlink(file);
    }
    rmdir(path);
}
