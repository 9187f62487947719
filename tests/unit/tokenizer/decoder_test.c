#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/tokenizer/decoder.h"
#include "model/tokenizer/utf8.h"

#define FFFD "\xef\xbf\xbd"

/* Pushes tokens; after each, what came so far must be the given text, and the last entry is
 * what the flush leaves. */
static void expect_stream(const char *json, const char *const *tokens, const char *const *so_far, size_t count)
{
    struct decoder *decoder = NULL;
    struct decoder_state *stream = NULL;
    struct diag diag = {{0}};
    json_t *root = json ? json_loads(json, 0, NULL) : NULL;
    if (failed(decoder_create(root, &decoder, &diag))) { fail_msg("%s", diag.text); }
    assert_false(failed(decoder_state_create(decoder, &stream)));
    for (unsigned twice = 0; twice < 2; twice++) { /* a flushed state is as new */
        struct text_buf out = {0};
        for (size_t i = 0; i <= count; i++) {
            status_t st = i < count ? decoder_push(stream, tokens[i], strlen(tokens[i]), &out) : decoder_flush(stream, &out);
            assert_false(failed(st));
            if (out.len != strlen(so_far[i]) || memcmp(out.data ? out.data : "", so_far[i], out.len) != 0) {
                fail_msg("after %zu tokens: \"%.*s\", not \"%s\"", i + 1, (int)out.len, out.data ? out.data : "", so_far[i]);
            }
        }
        text_buf_fini(&out);
    }
    decoder_state_destroy(stream);
    decoder_destroy(decoder);
    json_decref(root);
}

#define STREAM(json, tokens, ...)                                                        \
    do {                                                                                 \
        static const char *const tokens_[] = tokens;                                     \
        static const char *const so_far_[] = {__VA_ARGS__};                              \
        _Static_assert(sizeof so_far_ == sizeof tokens_ + sizeof so_far_[0], "one more"); \
        expect_stream(json, tokens_, so_far_, sizeof tokens_ / sizeof tokens_[0]);       \
    } while (0)
#define TOKENS(...) {__VA_ARGS__}

#define LLAMA "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"▁\"},\"content\":\" \"}," \
              "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}"

/* The bytes of a character come one by one; nothing is shown until it is whole. */
static void byte_level_waits_for_whole_characters(void **state)
{
    (void)state;
    STREAM("{\"type\":\"ByteLevel\"}", TOKENS("a", "ä½", "ł", "Ġb"), "a", "a", "a\xe4\xbd\xa0", "a\xe4\xbd\xa0 b", "a\xe4\xbd\xa0 b");
}

/* Broken bytes become U+FFFD, one for each maximal subpart, the last at the flush. */
static void byte_level_replaces_broken_bytes(void **state)
{
    (void)state;
    STREAM("{\"type\":\"ByteLevel\"}", TOKENS("ä½", "a", "ÿ", "ð"), "", FFFD "a", FFFD "a" FFFD, FFFD "a" FFFD, FFFD "a" FFFD FFFD);
    STREAM("{\"type\":\"ByteLevel\"}", TOKENS("<x y>", "ÿ y"), "<x y>", "<x y>ÿ y", "<x y>ÿ y"); /* a space is no letter */
}

static void byte_runs_are_shown_when_they_end(void **state)
{
    (void)state;
    STREAM(LLAMA, TOKENS("▁", "<0xE4>", "<0xBD>", "<0xA0>", "x"), "", "", "", "", "\xe4\xbd\xa0x", "\xe4\xbd\xa0x");
    /* One bad byte spoils the run before it, and a spoilt run needs no waiting. */
    STREAM(LLAMA, TOKENS("a", "<0x41>", "<0xFF>", "<0x42>", "c"), "a", "a", "a" FFFD FFFD, "a" FFFD FFFD FFFD, "a" FFFD FFFD FFFD "c",
           "a" FFFD FFFD FFFD "c");
    STREAM(LLAMA, TOKENS("a", "<0xE4>", "<0xBD>"), "a", "a", "a", "a" FFFD FFFD);
    STREAM(LLAMA, TOKENS("<0x4g>", "<0x41>"), "<0x4g>", "<0x4g>", "<0x4g>A");
}

static void only_the_first_space_is_stripped(void **state)
{
    (void)state;
    STREAM(LLAMA, TOKENS("▁", "▁a", "▁b"), "", " a", " a b", " a b");
    STREAM("{\"type\":\"Metaspace\",\"replacement\":\"▁\",\"prepend_scheme\":\"always\"}", TOKENS("▁a", "▁b"), "a", "a b", "a b");
    STREAM("{\"type\":\"Metaspace\",\"replacement\":\"▁\",\"prepend_scheme\":\"never\"}", TOKENS("▁a", "▁b"), " a", " a b", " a b");
    STREAM("{\"type\":\"Metaspace\",\"replacement\":\"▁\",\"add_prefix_space\":false}", TOKENS("▁a", "▁b"), " a", " a b", " a b");
}

#define FUSED(stage) "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"}," stage "]}"

/* Letters that a strip may still take from the end are held back, and no more than those. */
static void trailing_letters_are_held(void **state)
{
    (void)state;
    STREAM(FUSED("{\"type\":\"Strip\",\"content\":\".\",\"start\":0,\"stop\":2}"), TOKENS("a.", ".", ".", "b", "."), "a", "a", "a.", "a...b", "a...b",
           "a...b");
}

/* A literal that spans pieces is replaced; what may be its start waits. */
static void replace_sees_across_pieces(void **state)
{
    (void)state;
    STREAM(FUSED("{\"type\":\"Replace\",\"pattern\":{\"String\":\"abc\"},\"content\":\"-\"}"), TOKENS("xa", "b", "cab", "z"), "x", "x", "x-", "x-abz",
           "x-abz");
    STREAM(FUSED("{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"b+\"},\"content\":\"-\"}"), TOKENS("ab", "bc"), "", "", "a-c");
    STREAM("{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"b+\"},\"content\":\"-\"}", TOKENS("ab", "bc"), "a-", "a--c", "a--c");
}

static void suffixes_and_prefixes_make_spaces(void **state)
{
    (void)state;
    STREAM("{\"type\":\"BPEDecoder\",\"suffix\":\"</w>\"}", TOKENS("a</w>", "b", "c</w>"), "", "a ", "a b", "a bc");
    STREAM("{\"type\":\"WordPiece\",\"prefix\":\"##\",\"cleanup\":true}", TOKENS("a", "##b", "c", "."), "a", "ab", "ab c", "ab c.", "ab c.");
    STREAM(NULL, TOKENS("a", "b"), "a", "a b", "a b");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(byte_level_waits_for_whole_characters),
        cmocka_unit_test(byte_level_replaces_broken_bytes),
        cmocka_unit_test(byte_runs_are_shown_when_they_end),
        cmocka_unit_test(only_the_first_space_is_stripped),
        cmocka_unit_test(trailing_letters_are_held),
        cmocka_unit_test(replace_sees_across_pieces),
        cmocka_unit_test(suffixes_and_prefixes_make_spaces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
