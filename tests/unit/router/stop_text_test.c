/* Claim: where a text ends depends on the text alone, not on how it was cut into tokens, and
 * no byte is shown that a stop string takes back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/stop_text.h"

static struct stop_string stop_of(const char *text) { return (struct stop_string){.bytes = text, .len = strlen(text)}; }

struct result {
    char shown[512];
    size_t len;
    bool stopped;
    uint32_t index;
};

static void take(struct stop_text *text, struct result *result)
{
    memcpy(result->shown + result->len, text->buffer, text->final_len);
    result->len += text->final_len;
    result->shown[result->len] = '\0';
    stop_text_take(text);
}

/* Pushes `text` cut where bit i of `cuts` is set behind byte i. */
static struct result run(const struct stop_string *stops, uint32_t count, bool include, const char *text, uint64_t cuts)
{
    struct stop_text state;
    struct result result = {.len = 0};
    stop_text_init(&state, stops, count, include);
    size_t len = strlen(text), start = 0;
    for (size_t i = 0; i < len; i++) {
        if (i + 1 < len && !(cuts >> i & 1)) { continue; }
        assert_false(failed(stop_text_push(&state, text + start, i + 1 - start, true)));
        start = i + 1;
        if (state.len > 0) { take(&state, &result); }
    }
    stop_text_finish(&state);
    if (state.len > 0) { take(&state, &result); }
    result.stopped = state.stopped;
    result.index = state.stop_index;
    stop_text_fini(&state);
    return result;
}

/* Every one of the 2^(n-1) ways to cut a text gives the same end. */
static void every_split_gives_the_same(void **state)
{
    (void)state;
    struct stop_string stops[] = {stop_of("stop"), stop_of("top it"), stop_of("\n\n"), stop_of("aab")};
    static const struct {
        const char *text, *shown, *with_stop;
        int index; /* -1: none */
    } cases[] = {
        {"go and stop it", "go and ", "go and stop", 0},
        {"sstop", "s", "sstop", 0},
        {"ststotop", "ststotop", "ststotop", -1},
        {"stostop", "sto", "stostop", 0},
        {"x\n\ny", "x", "x\n\n", 2},
        {"aaaab", "aa", "aaaab", 3},
        {"a top it!", "a ", "a top it", 1},
        {"sto", "sto", "sto", -1},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        size_t len = strlen(cases[c].text);
        for (uint64_t cuts = 0; cuts < UINT64_C(1) << (len - 1); cuts++) {
            struct result plain = run(stops, 4, false, cases[c].text, cuts);
            struct result with = run(stops, 4, true, cases[c].text, cuts);
            assert_string_equal(plain.shown, cases[c].shown);
            assert_string_equal(with.shown, cases[c].with_stop);
            assert_int_equal(plain.stopped, cases[c].index >= 0);
            if (cases[c].index >= 0) { assert_int_equal(plain.index, cases[c].index); }
        }
    }
}

/* What was shown is never part of the stop, checked against the whole text in random cases. */
static void random_cuts_match_a_naive_search(void **state)
{
    (void)state;
    unsigned seed = 20241;
    printf("seed %u\n", seed);
    srand(seed);
    for (unsigned round = 0; round < 20000; round++) {
        char text[41], words[3][5];
        struct stop_string stops[3];
        for (unsigned i = 0; i < 40; i++) { text[i] = (char)('a' + rand() % 2); }
        text[40] = '\0';
        for (unsigned s = 0; s < 3; s++) {
            unsigned len = 1 + (unsigned)rand() % 4 + (s == 0 ? 0 : 0);
            for (unsigned i = 0; i < len; i++) { words[s][i] = (char)('a' + rand() % 3); }
            words[s][len] = '\0';
            stops[s] = stop_of(words[s]);
        }
        size_t best_end = SIZE_MAX, best_start = 0;
        for (unsigned s = 0; s < 3; s++) {
            const char *at = strstr(text, words[s]);
            if (!at) { continue; }
            size_t start = (size_t)(at - text), end = start + stops[s].len;
            if (end < best_end || (end == best_end && start < best_start)) { best_end = end; best_start = start; }
        }
        uint64_t cuts = (uint64_t)rand() << 31 ^ (uint64_t)rand();
        struct result result = run(stops, 3, false, text, cuts);
        assert_int_equal(result.stopped, best_end != SIZE_MAX);
        assert_int_equal(result.len, best_end != SIZE_MAX ? best_start : 40);
        assert_memory_equal(result.shown, text, result.len);
    }
}

/* Text that may not stop (min_tokens) passes through, and is no beginning of a stop either. */
static void text_that_may_not_match_passes(void **state)
{
    (void)state;
    struct stop_string stops[] = {stop_of("stop")};
    struct stop_text text;
    stop_text_init(&text, stops, 1, false);
    assert_false(failed(stop_text_push(&text, "stop st", 7, false)));
    assert_int_equal(text.final_len, 7);
    assert_false(failed(stop_text_push(&text, "op", 2, true)));
    assert_false(text.stopped);
    assert_int_equal(text.final_len, 9);
    assert_false(failed(stop_text_push(&text, " stop", 5, true)));
    assert_true(text.stopped);
    assert_int_equal(text.final_len, 10);
    assert_false(failed(stop_text_push(&text, "more", 4, true)));
    assert_int_equal(text.len, 10);
    stop_text_fini(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_split_gives_the_same),
        cmocka_unit_test(random_cuts_match_a_naive_search),
        cmocka_unit_test(text_that_may_not_match_passes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
