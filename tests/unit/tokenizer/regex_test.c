#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/tokenizer/regex.h"
#include "model/tokenizer/unicode_props.h"
#include "model/tokenizer/utf8.h"

/* Writes all matches as "start-end " pairs. */
static void expect_matches(const char *pattern, bool literal, const char *text, const char *expected)
{
    struct regex *regex = NULL;
    struct regex_scratch *scratch = NULL;
    struct diag diag = {{0}};
    char found_all[512] = "";
    if (failed(regex_create(pattern, strlen(pattern), literal, &regex, &diag))) { fail_msg("%s", diag.text); }
    assert_false(failed(regex_scratch_create(regex, &scratch)));
    assert_false(failed(regex_start(scratch, regex, text, strlen(text))));
    for (;;) {
        bool found;
        size_t start, end;
        if (failed(regex_next(scratch, &found, &start, &end, &diag))) { fail_msg("%s", diag.text); }
        if (!found) { break; }
        snprintf(found_all + strlen(found_all), sizeof found_all - strlen(found_all), "%zu-%zu ", start, end);
    }
    assert_string_equal(found_all, expected);
    regex_scratch_destroy(scratch);
    regex_destroy(regex);
}

static void refuses(const char *pattern, const char *says)
{
    struct regex *regex = NULL;
    struct diag diag = {{0}};
    status_t st = regex_create(pattern, strlen(pattern), false, &regex, &diag);
    if (!failed(st)) { regex_destroy(regex); }
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
    if (!strstr(diag.text, pattern) || !strstr(diag.text, says)) { fail_msg("\"%s\" does not name %s and %s", diag.text, pattern, says); }
}

/* What PCRE2 cannot say the same way is refused, and the pattern named. */
static void what_cannot_be_said_is_refused(void **state)
{
    (void)state;
    refuses("[a-z&&[^b]]", "&&");
    refuses("[a[^b]]", "negated class");
    refuses("[\\W]", "\\W");
    refuses("[[:graph:]]", "POSIX");
    refuses("(?x) a", "(?x)");
    refuses("[abc", "unfinished");
    refuses("\\p{L", "unfinished");
    refuses("\\u12", "\\u");
    refuses("a\\", "backslash");
    refuses("(a", "compiled");
    refuses("a**+{", "compiled");
    refuses("\\p{Nonsense}", "compiled");
}

static void a_pattern_nested_too_deep_is_refused(void **state)
{
    (void)state;
    char pattern[500];
    memset(pattern, '(', sizeof pattern - 1);
    pattern[sizeof pattern - 1] = '\0';
    refuses(pattern, "deep");
}

/* Ruby's reading holds where it is not PCRE2's. */
static void ruby_syntax_is_kept(void **state)
{
    (void)state;
    expect_matches("\\s", false, "a\u180e \u00a0", "4-5 5-7 "); /* U+180E is no space */
    expect_matches("\\S", false, "\u180e ", "0-3 ");
    expect_matches("[^\\s]", false, "\u180e ", "0-3 ");
    expect_matches("[\\S]", false, "\u180e ", "0-3 ");
    expect_matches("\\w+", false, "a\u0301b\u203fc-d", "0-8 9-10 "); /* marks and connectors are in words */
    expect_matches("\\W", false, "a\u0301-", "3-4 ");
    expect_matches("\\bb", false, "a\u0301b b", "5-6 ");
    expect_matches("\\h+", false, "xAf9 ", "1-4 ");
    expect_matches("\\v", false, "\n\v", "1-2 ");
    expect_matches("\\u0041\\u{1F600}", false, "A\U0001F600", "0-5 ");
    expect_matches("a{2}+b", false, "aaaab", "0-5 "); /* (a{2})+ and not possessive */
    expect_matches("a{,2}b", false, "aab", "0-3 ");
    expect_matches("(?:ab){2}?c", false, "c", "0-1 ");
    expect_matches("a{x}", false, "a{x}", "0-4 ");
    expect_matches("a++b", false, "aab", "0-3 ");
    expect_matches("(?m:a.b)", false, "a\nb", "0-3 ");
    expect_matches("a.b", false, "a\nb", "");
    expect_matches("^b$", false, "a\nb\nc", "2-3 ");
    expect_matches("[]a]+", false, "]a", "0-2 ");
    expect_matches("[a[bc]d]+", false, "abcd]", "0-4 ");
    expect_matches("[\\s-x]+", false, "a- x", "1-4 ");
    expect_matches("[[:punct:]]+", false, "a+,b", "1-3 "); /* symbols too */
    expect_matches("\\p{Han}", false, "\u3001\u4e00", "3-6 "); /* the Script, not its extensions */
    expect_matches("\\p{^L}", false, "a1", "1-2 ");
    expect_matches("\\p{Letter}+", false, "1ab", "1-3 ");
    expect_matches("(?i:'s)", false, "'S 's '\u017f", "0-2 3-5 6-9 ");
}

static void literals_are_not_patterns(void **state)
{
    (void)state;
    expect_matches(".", true, "a.b", "1-2 ");
    expect_matches("aa", true, "aaaaa", "0-2 2-4 ");
    expect_matches("", true, "ab", "0-0 1-1 2-2 ");
}

/* An empty match right after a match does not count. */
static void empty_matches_advance_by_a_character(void **state)
{
    (void)state;
    expect_matches("x*", false, "x\u00e9x", "0-1 3-4 ");
    expect_matches("b*", false, "\u00e9", "0-0 2-2 ");
}

/* Letters newer than PCRE2's tables are letters, and offsets stay true. */
static void newer_characters_match_their_class(void **state)
{
    (void)state;
    expect_matches("\\p{L}+", false, "a\U00031350\U000105c0b1", "0-10 ");
    expect_matches("\\p{N}", false, "\U00010d40", "0-4 ");
    expect_matches("\\p{M}", false, "\u0897", "0-3 ");
    for (uint32_t code = 0; code < 0x110000; code++) {
        uint32_t to = unicode_stand_in(code);
        char one[4], two[4];
        if (to != code) { assert_int_equal(utf8_encode(code, one), utf8_encode(to, two)); }
    }
}

static void expect_normal(enum unicode_form form, const char *text, const char *expected)
{
    struct text_buf out = {0};
    assert_false(failed(unicode_normalize(form, text, strlen(text), &out)));
    assert_int_equal(out.len, strlen(expected));
    assert_memory_equal(out.data, expected, out.len);
    text_buf_fini(&out);
}

/* The shortcut of NFC, which copies what cannot change, gives what composing everything gives. */
static void normal_forms_hold_at_the_borders_of_stretches(void **state)
{
    (void)state;
    expect_normal(FORM_NFC, "e\u0301", "\u00e9");
    expect_normal(FORM_NFC, "xe\u0301\u0301y", "x\u00e9\u0301y");
    expect_normal(FORM_NFC, "\u0301e", "\u0301e");
    expect_normal(FORM_NFC, "q\u0307\u0323q", "q\u0323\u0307q");
    expect_normal(FORM_NFC, "\u1112\u1161\u11ab\u11ab", "\ud55c\u11ab");
    expect_normal(FORM_NFC, "\uac00\u11a8", "\uac01");
    expect_normal(FORM_NFC, "\u212b", "\u00c5");
    expect_normal(FORM_NFD, "\u00e9\uac01", "e\u0301\u1100\u1161\u11a8");
    expect_normal(FORM_NFKC, "\ufb01\uff21", "fiA");
    expect_normal(FORM_NFKD, "\u00bd", "1\u20442");
}

/* A run of marks longer than the short sort takes is ordered by class, equals as they came. */
static void long_runs_of_marks_are_sorted(void **state)
{
    (void)state;
    struct text_buf text = {0}, out = {0};
    assert_false(failed(text_buf_append(&text, "x", 1)));
    for (unsigned i = 0; i < 20000; i++) {
        const char *mark = i % 3 == 0 ? "\u0345" : i % 3 == 1 ? "\u0316" : "\u0334"; /* 240, 220, 1 */
        assert_false(failed(text_buf_append(&text, mark, 2)));
    }
    assert_false(failed(unicode_normalize(FORM_NFD, text.data, text.len, &out)));
    assert_int_equal(out.len, text.len);
    for (size_t i = 1, seen = 0; i < out.len; i += 2) {
        size_t class = memcmp(out.data + i, "\u0334", 2) == 0 ? 1 : memcmp(out.data + i, "\u0316", 2) == 0 ? 220 : 240;
        assert_true(class >= seen);
        seen = class;
    }
    text_buf_fini(&text);
    text_buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_be_said_is_refused),
        cmocka_unit_test(a_pattern_nested_too_deep_is_refused),
        cmocka_unit_test(ruby_syntax_is_kept),
        cmocka_unit_test(literals_are_not_patterns),
        cmocka_unit_test(empty_matches_advance_by_a_character),
        cmocka_unit_test(newer_characters_match_their_class),
        cmocka_unit_test(normal_forms_hold_at_the_borders_of_stretches),
        cmocka_unit_test(long_runs_of_marks_are_sorted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
