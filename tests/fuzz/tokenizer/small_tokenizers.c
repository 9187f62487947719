#include "tests/fuzz/tokenizer/small_tokenizers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer/utf8.h"

static const char bytes_head[] =
    "{\"added_tokens\":[{\"id\":9,\"content\":\"<s>\",\"special\":true},{\"id\":9,\"content\":\"  \",\"special\":false,\"normalized\":true},"
    "{\"id\":9,\"content\":\"Word\",\"special\":false,\"single_word\":true}],"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
    "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},"
    "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]},"
    "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{";

static const char fallback_head[] =
    "{\"added_tokens\":[{\"id\":9,\"content\":\"<s>\",\"special\":true},{\"id\":9,\"content\":\"<l>\",\"lstrip\":true},"
    "{\"id\":9,\"content\":\"<r>\",\"rstrip\":true,\"special\":true}],"
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFKC\"},{\"type\":\"Prepend\",\"prepend\":\"▁\"},"
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"▁\"}]},"
    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"▁\"},\"content\":\" \"},"
    "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},"
    "\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"fuse_unk\":true,\"unk_token\":\"<s>\",\"vocab\":{\"<s>\":0,\"▁\":1,\"a\":2,\"▁a\":3,"
    "\"aa\":4,\"▁▁\":5";

static const char words[] =
    "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"StripAccents\"},{\"type\":\"Lowercase\"},"
    "{\"type\":\"Strip\"}]},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Metaspace\",\"replacement\":\"▁\","
    "\"prepend_scheme\":\"first\"},{\"type\":\"Punctuation\",\"behavior\":\"MergedWithPrevious\"},{\"type\":\"Digits\"},"
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\b\\\\w\"},\"behavior\":\"MergedWithNext\",\"invert\":true},"
    "{\"type\":\"Whitespace\"}]},\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"BPEDecoder\",\"suffix\":\"/\"},"
    "{\"type\":\"Fuse\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\"aa\"},\"content\":\"b\"},{\"type\":\"Strip\",\"content\":\"a\","
    "\"start\":2,\"stop\":3}]},\"model\":{\"type\":\"BPE\",\"unk_token\":\"?\",\"end_of_word_suffix\":\"/\",\"vocab\":{\"?\":0,\"a\":1,\"a/\":2,"
    "\"aa\":3,\"aa/\":4,\"▁\":5,\"▁/\":6,\"b/\":7},\"merges\":[\"a a\",\"a a/\"]}}";

static void spell_bytes(FILE *file)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        char letter[4];
        size_t len = utf8_encode(byte_alphabet_code((uint8_t)byte), letter);
        const char *escape = byte == '"' || byte == '\\' ? "\\" : "";
        fprintf(file, "%s\"%s%.*s\":%u", byte ? "," : "", escape, (int)len, letter, byte);
    }
    fprintf(file, ",\"th\":256,\"the\":257,\"\u0120the\":258,\"aa\":259,\"aaaa\":260},"
                  "\"merges\":[\"t h\",\"th e\",\"\u0120 the\",\"a a\",\"aa aa\"]}}");
}

static void spell_fallback(FILE *file)
{
    for (unsigned byte = 0; byte < 256; byte++) { fprintf(file, ",\"<0x%02X>\":%u", byte, byte + 6); }
    fprintf(file, "},\"merges\":[[\"▁\",\"a\"],[\"a\",\"a\"],[\"▁\",\"▁\"]]}}");
}

const struct tokenizer *small_tokenizer(unsigned which)
{
    static struct tokenizer *kept[SMALL_COUNT];
    if (kept[which]) { return kept[which]; }
    char *json = NULL;
    size_t len = 0;
    struct diag diag = {{0}};
    FILE *file = open_memstream(&json, &len);
    if (!file) { abort(); }
    fputs(which == SMALL_BYTES ? bytes_head : which == SMALL_FALLBACK ? fallback_head : words, file);
    if (which == SMALL_BYTES) { spell_bytes(file); }
    if (which == SMALL_FALLBACK) { spell_fallback(file); }
    fclose(file);
    if (failed(tokenizer_create_from_json(json, len, NULL, 0, &kept[which], &diag))) {
        fprintf(stderr, "%s\n", diag.text);
        abort();
    }
    free(json);
    return kept[which];
}
