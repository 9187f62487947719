/* Claims on flags: what is taken, what is refused and how the refusal reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/flags.h"

struct config {
    const char *listen;
    uint32_t threads;
    uint64_t seed;
    int32_t offset;
    float rate;
    uint64_t memory;
    uint64_t lease;
    bool check;
    struct flag_list stop;
};

#define AT(field) offsetof(struct config, field)
static const struct flag table[] = {
    {"listen", FLAG_STRING, AT(listen), "127.0.0.1:0", "H:P", "Where.", 0, 0},
    {"threads", FLAG_U32, AT(threads), "1", "N", "How many.", 0, 256},
    {"seed", FLAG_U64, AT(seed), NULL, "N", "Seed.", 0, 0},
    {"offset", FLAG_I32, AT(offset), "-3", "N", "Signed.", (uint64_t)-10, 10},
    {"rate", FLAG_F32, AT(rate), "0.5", "X", "Rate.", 0, 0},
    {"kv-memory", FLAG_BYTES, AT(memory), "256MiB", "SIZE", "Memory.", 1u << 20, UINT64_C(1) << 40},
    {"lease", FLAG_DURATION, AT(lease), "30s", "TIME", "Lease.", 1000000, UINT64_C(3600000000000)},
    {"check", FLAG_BOOL, AT(check), NULL, NULL, "Only check.", 0, 0},
    {"stop", FLAG_LIST, AT(stop), NULL, "TEXT", "Stops.", 0, 0},
};
#define COUNT (sizeof table / sizeof table[0])

static struct diag diag;
static struct config config;
static bool wants_help;

/* Parses words (NULL-ended) and returns the status. */
static status_t parse(const char *const *words, const char **positional, uint32_t *positional_count)
{
    static char copies[80][160];
    static char *argv[81];
    int argc = 1;
    argv[0] = copies[0];
    strcpy(copies[0], "tool");
    for (; words[argc - 1]; argc++) {
        snprintf(copies[argc], sizeof copies[argc], "%s", words[argc - 1]);
        argv[argc] = copies[argc];
    }
    memset(&config, 0x5a, sizeof config);
    memset(&diag, 0, sizeof diag);
    return flags_parse(table, COUNT, &config, argc, argv, positional, positional_count, &wants_help, &diag);
}

#define PARSE(...) parse((const char *const[]){__VA_ARGS__, NULL}, NULL, NULL)
#define GOOD(...) assert_false(failed(PARSE(__VA_ARGS__)))
#define BAD(word, ...)                                        \
    do {                                                      \
        status_t st_ = PARSE(__VA_ARGS__);                    \
        assert_int_equal(st_.code, ST_INVALID_ARGUMENT);      \
        if (!strstr(diag.text, (word))) { fail_msg("\"%s\" is not in: %s", (word), diag.text); } \
    } while (0)

/* A flag that is unknown, repeated, without a value or not of its kind is refused by name. */
static void mistakes_are_named(void **state)
{
    (void)state;
    BAD("--lisen: no such flag, did you mean --listen", "--lisen=x");
    BAD("--kv_memory: no such flag, did you mean --kv-memory", "--kv_memory=1MiB"); /* as the API spells fields */
    BAD("--zzz: no such flag; see", "--zzz");
    BAD("--: no such flag", "--=3");
    BAD("--threads: given twice", "--threads=1", "--threads=1");
    BAD("--check: given twice", "--check", "--check=false");
    BAD("--listen: needs a value, --listen=H:P", "--listen");
    BAD("--listen: needs a value", "--listen", "--threads=2"); /* not an address named --threads=2 */
    BAD("\"-x\": not a flag", "-x");
    BAD("\"word\": not a flag", "word");
    BAD("\"false\": not a flag", "--check", "false"); /* a switch takes no second word */
    BAD("--check=yes: takes true or false", "--check=yes");
    BAD("--threads=: takes a whole number", "--threads=");
}

/* Numbers are whole words of their kind; signs, blanks, hex and rests are refused, with the range. */
static void numbers_are_strict(void **state)
{
    (void)state;
    static const char *const wrong[] = {"--threads=-1", "--threads=+1", "--threads= 1", "--threads=1 ", "--threads=0x10",
                                        "--threads=1.5", "--threads=257", "--threads=4294967297",
                                        "--threads=99999999999999999999"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) { BAD("a whole number from 0 to 256", wrong[i]); }
    GOOD("--threads=256");
    assert_int_equal(config.threads, 256);
    GOOD("--threads=0");
    GOOD("--seed=18446744073709551615");
    assert_true(config.seed == UINT64_MAX);
    BAD("--seed", "--seed=18446744073709551616");
    BAD("from -10 to 10", "--offset=-11");
    BAD("from -10 to 10", "--offset=4294967290"); /* -6 if it wrapped */
    static const char *const wrong_signed[] = {"--offset=", "--offset= 1", "--offset=\t-1", "--offset=+1", "--offset=1 ", "--offset=- 1",
                                               "--offset=--1", "--offset=-", "--offset=0x1", "--offset=1.5"};
    for (size_t i = 0; i < sizeof wrong_signed / sizeof wrong_signed[0]; i++) { BAD("from -10 to 10", wrong_signed[i]); }
    GOOD("--offset=-10");
    assert_int_equal(config.offset, -10);
    GOOD("--offset", "-7"); /* a negative number is a value, not a flag */
    assert_int_equal(config.offset, -7);
    BAD("--rate=nan: takes a number", "--rate=nan");
    BAD("--rate", "--rate=1e999");
    BAD("--rate", "--rate=1,5");
    GOOD("--rate=-1.25e-3");
    assert_true(config.rate == -1.25e-3f);
}

/* Sizes and durations: units, fractions and limits; the exact number where it is whole. */
static void sizes_and_durations(void **state)
{
    (void)state;
    static const struct { const char *text; uint64_t want; } sizes[] = {
        {"1048576", 1048576}, {"1600KiB", 1600 * 1024}, {"1.5MiB", 1572864}, {"2GiB", UINT64_C(2) << 30},
        {"100MB", 100000000}, {"3G", UINT64_C(3) << 30}, {"1TiB", UINT64_C(1) << 40}, {"2097153B", 2097153},
    };
    char word[64];
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        snprintf(word, sizeof word, "--kv-memory=%s", sizes[i].text);
        GOOD(word);
        assert_true(config.memory == sizes[i].want);
    }
    static const char *const wrong[] = {"1mib", "1 MiB", "MiB", "-1MiB", "0x100000", "1e9", "1.MiB", ".5GiB", "1..5GiB",
                                        "999KiB", "2TiB", "16777217TiB", "99999999999999999999", "infGiB", "1MiBB", ""};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        snprintf(word, sizeof word, "--kv-memory=%s", wrong[i]);
        BAD("a size such as 512MiB from 1MiB to 1024GiB", word);
    }
    static const struct { const char *text; uint64_t want; } times[] = {
        {"250ms", 250000000}, {"1.5s", 1500000000}, {"1500000ns", 1500000}, {"5m", UINT64_C(300000000000)},
        {"1h", UINT64_C(3600000000000)}, {"0.1s", 100000000}, {"1234567us", 1234567000},
    };
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++) {
        snprintf(word, sizeof word, "--lease=%s", times[i].text);
        GOOD(word);
        assert_true(config.lease == times[i].want);
    }
    BAD("a duration such as 250ms or 10s from 1ms to 3600s", "--lease=10");
    BAD("from 1ms to 3600s", "--lease=2h");
    BAD("from 1ms to 3600s", "--lease=999us");
    BAD("from 1ms to 3600s", "--lease=5124095576030431h"); /* wraps to a small number */
    struct flag unbounded = {"lease", FLAG_DURATION, AT(lease), NULL, "TIME", "", 0, 0};
    char last[] = "--lease=9223372036854775807ns", past[] = "--lease=9223372036854775808ns", *argv[] = {word, last};
    assert_false(failed(flags_parse(&unbounded, 1, &config, 2, argv, NULL, NULL, &wants_help, &diag)));
    argv[1] = past;
    assert_true(failed(flags_parse(&unbounded, 1, &config, 2, argv, NULL, NULL, &wants_help, &diag)));
}

/* A size that may be left to the program: the word alone, no case of it, and no size means the same. */
static void a_size_may_be_auto(void **state)
{
    (void)state;
    struct flag flag = {"room", FLAG_BYTES_OR_AUTO, AT(memory), "auto", "auto|SIZE", "", 1u << 20, UINT64_C(1) << 40};
    char tool[] = "tool", *argv[2] = {tool};
    assert_false(failed(flags_parse(&flag, 1, &config, 1, argv, NULL, NULL, &wants_help, &diag)));
    assert_true(config.memory == FLAG_AUTO);
    static const struct { const char *text; bool is_good; uint64_t want; } cases[] = {
        {"--room=auto", true, FLAG_AUTO}, {"--room=2MiB", true, 2u << 20}, {"--room=1048576", true, 1u << 20},
        {"--room=Auto", false, 0}, {"--room=auto ", false, 0}, {"--room=", false, 0}, {"--room=1KiB", false, 0},
        {"--room=18446744073709551615", false, 0}, {"--room=automatic", false, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char word[64];
        snprintf(word, sizeof word, "%s", cases[i].text);
        argv[1] = word;
        status_t st = flags_parse(&flag, 1, &config, 2, argv, NULL, NULL, &wants_help, &diag);
        assert_int_equal(failed(st), !cases[i].is_good);
        if (failed(st)) {
            assert_non_null(strstr(diag.text, "takes auto, or a size such as 512MiB from 1MiB to 1024GiB"));
            continue;
        }
        assert_true(config.memory == cases[i].want);
        char *text = NULL, line[64];
        size_t bytes = 0;
        FILE *out = open_memstream(&text, &bytes);
        flags_print_config(&flag, 1, &config, out);
        fclose(out);
        if (config.memory == FLAG_AUTO) {
            snprintf(line, sizeof line, "--room=auto\n");
        } else {
            snprintf(line, sizeof line, "--room=%llu\n", (unsigned long long)config.memory);
        }
        assert_string_equal(text, line);
        free(text);
    }
    flag.type = FLAG_BYTES; /* only where the table says so */
    char word[] = "--room=auto";
    argv[1] = word;
    flag.default_text = NULL;
    assert_true(failed(flags_parse(&flag, 1, &config, 2, argv, NULL, NULL, &wants_help, &diag)));
}

/* Every way to spell a value; the last words win nothing, order means nothing. */
static void both_spellings(void **state)
{
    (void)state;
    GOOD("--threads", "4", "--listen", "h:1", "--check");
    assert_int_equal(config.threads, 4);
    assert_string_equal(config.listen, "h:1");
    assert_true(config.check);
    GOOD("--check=false", "--listen=--odd", "--stop=", "--stop", "a b", "--stop=c=d");
    assert_false(config.check);
    assert_string_equal(config.listen, "--odd");
    assert_int_equal(config.stop.count, 3);
    assert_string_equal(config.stop.values[0], "");
    assert_string_equal(config.stop.values[1], "a b");
    assert_string_equal(config.stop.values[2], "c=d");
}

/* Without words every field is its default, and zero where it has none. */
static void defaults_fill_everything(void **state)
{
    (void)state;
    assert_false(failed(parse((const char *const[]){NULL}, NULL, NULL)));
    assert_string_equal(config.listen, "127.0.0.1:0");
    assert_int_equal(config.threads, 1);
    assert_true(config.seed == 0);
    assert_int_equal(config.offset, -3);
    assert_true(config.rate == 0.5f);
    assert_true(config.memory == 256u << 20);
    assert_true(config.lease == UINT64_C(30000000000));
    assert_false(config.check);
    assert_int_equal(config.stop.count, 0);
}

/* BATON_KV_MEMORY stands for --kv-memory; the command line wins; a bad one is named as what it is. */
static void the_environment_comes_second(void **state)
{
    (void)state;
    setenv("BATON_KV_MEMORY", "3MiB", 1);
    setenv("BATON_CHECK", "1", 1);
    setenv("BATON_STOP", "never", 1);
    GOOD("--check=false");
    assert_true(config.memory == 3u << 20);
    assert_false(config.check);
    assert_int_equal(config.stop.count, 0); /* lists come from the command line only */
    GOOD("--kv-memory=5MiB"); /* not "given twice" */
    assert_true(config.memory == 5u << 20);
    setenv("BATON_KV_MEMORY", "lots", 1);
    BAD("BATON_KV_MEMORY: --kv-memory=lots: takes a size", "--threads=1");
    unsetenv("BATON_KV_MEMORY");
    unsetenv("BATON_CHECK");
    unsetenv("BATON_STOP");
}

/* --help is found wherever it stands, before anything is judged; behind "--" it is a word. */
static void help_and_words(void **state)
{
    (void)state;
    GOOD("--nonsense", "--help");
    assert_true(wants_help);
    const char *words[3];
    uint32_t count = 3;
    assert_false(failed(parse((const char *const[]){"one", "--threads=2", "--", "--help", "-x", NULL}, words, &count)));
    assert_false(wants_help);
    assert_int_equal(count, 3);
    assert_string_equal(words[0], "one");
    assert_string_equal(words[1], "--help");
    assert_string_equal(words[2], "-x");
    count = 1;
    status_t st = parse((const char *const[]){"one", "two", NULL}, words, &count);
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
}

/* A list has room for 64 and refuses the next. */
static void lists_are_bounded(void **state)
{
    (void)state;
    const char *words[67];
    for (int i = 0; i < 66; i++) { words[i] = i < 65 ? "--stop=x" : NULL; }
    status_t st = parse(words, NULL, NULL);
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "--stop: given more than 64 times"));
    words[64] = NULL;
    assert_false(failed(parse(words, NULL, NULL)));
    assert_int_equal(config.stop.count, 64);
}

/* What --print-config prints is a command line that gives the same config. */
static void print_config_round_trips(void **state)
{
    (void)state;
    GOOD("--listen=h:9", "--threads=7", "--seed=18446744073709551615", "--offset=-9", "--rate=0.123456789",
         "--kv-memory=1099511627775", "--lease=3599999999999ns", "--check", "--stop=a", "--stop=b");
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    flags_print_config(table, COUNT, &config, out);
    fclose(out);
    const char *words[32];
    int count = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) { words[count++] = line; }
    words[count] = NULL;
    struct config first = config;
    assert_false(failed(parse(words, NULL, NULL)));
    assert_string_equal(config.listen, first.listen);
    assert_int_equal(config.threads, first.threads);
    assert_true(config.seed == first.seed);
    assert_int_equal(config.offset, first.offset);
    assert_true(config.rate == first.rate);
    assert_true(config.memory == first.memory);
    assert_true(config.lease == first.lease);
    assert_true(config.check);
    assert_int_equal(config.stop.count, 2);
    free(text);
}

/* --help names every flag with its default. */
static void help_lists_every_flag(void **state)
{
    (void)state;
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    flags_print_help(table, COUNT, "tool [--flags]", out);
    fclose(out);
    for (size_t i = 0; i < COUNT; i++) {
        char word[64];
        snprintf(word, sizeof word, "--%s", table[i].name);
        assert_non_null(strstr(text, word));
        assert_non_null(strstr(text, table[i].help));
    }
    assert_non_null(strstr(text, "usage: tool [--flags]"));
    assert_non_null(strstr(text, "[256MiB]"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mistakes_are_named),       cmocka_unit_test(numbers_are_strict),
        cmocka_unit_test(sizes_and_durations),      cmocka_unit_test(a_size_may_be_auto), cmocka_unit_test(both_spellings),
        cmocka_unit_test(defaults_fill_everything), cmocka_unit_test(the_environment_comes_second),
        cmocka_unit_test(help_and_words),           cmocka_unit_test(lists_are_bounded),
        cmocka_unit_test(print_config_round_trips), cmocka_unit_test(help_lists_every_flag),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
