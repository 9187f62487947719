/* Claim: --version is found before "--" and answered with one line; nothing else prints. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "base/version.h"

static void asks(char *const *argv, int argc, const char *expected)
{
    char text[64] = {0};
    FILE *out = fmemopen(text, sizeof text, "w");
    assert_non_null(out);
    assert_int_equal(version_is_asked(argc, argv, "tool", out), expected[0] != '\0');
    fclose(out);
    assert_string_equal(text, expected);
}

static void version_is_one_line(void **state)
{
    (void)state;
    asks((char *[]){"tool"}, 1, "");
    asks((char *[]){"--version"}, 1, ""); /* its own name is no word */
    asks((char *[]){"tool", "--versions", "version"}, 3, "");
    asks((char *[]){"tool", "--", "--version"}, 3, "");
    asks((char *[]){"tool", "--x=1", "--version", "--version"}, 4, "tool " BATON_VERSION "\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(version_is_one_line)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
