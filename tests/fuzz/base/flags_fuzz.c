/* A command line from bytes: words are separated by zero bytes. Whatever is taken must print as a
 * command line (--print-config) that gives the same values again. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/flags.h"

struct config {
    const char *text;
    uint32_t u32;
    uint64_t u64;
    int32_t i32;
    float f32;
    uint64_t bytes, duration;
    bool is_on;
    struct flag_list list;
};

#define AT(field) offsetof(struct config, field)
static const struct flag table[] = {
    {"text", FLAG_STRING, AT(text), "default", "TEXT", "", 0, 0},
    {"u32", FLAG_U32, AT(u32), "1", "N", "", 0, 4096},
    {"u64", FLAG_U64, AT(u64), NULL, "N", "", 0, 0},
    {"i32", FLAG_I32, AT(i32), NULL, "N", "", (uint64_t)-100, 100},
    {"f32", FLAG_F32, AT(f32), "1", "X", "", 0, 0},
    {"bytes", FLAG_BYTES, AT(bytes), "1MiB", "SIZE", "", 0, 0},
    {"duration", FLAG_DURATION, AT(duration), "30s", "TIME", "", 1, UINT64_C(3600000000000)},
    {"is-on", FLAG_BOOL, AT(is_on), NULL, NULL, "", 0, 0},
    {"list", FLAG_LIST, AT(list), NULL, "TEXT", "", 0, 0},
};
#define COUNT (sizeof table / sizeof table[0])
#define WORDS_MAX 96

static status_t parse(char *bytes, size_t size, char separator, struct config *config)
{
    static char program[] = "fuzz";
    char *argv[WORDS_MAX] = {program};
    const char *words[8];
    uint32_t word_count = 8;
    int argc = 1;
    bool wants_help;
    struct diag diag = {{0}};
    for (size_t at = 0; at < size && argc < WORDS_MAX; argc++) {
        argv[argc] = bytes + at;
        while (at < size && bytes[at] != separator) { at++; }
        bytes[at++] = '\0';
    }
    memset(config, 0, sizeof *config);
    status_t st = flags_parse(table, COUNT, config, argc, argv, words, &word_count, &wants_help, &diag);
    CHECK(failed(st) == (diag.text[0] != '\0'));
    CHECK(word_count <= 8);
    return wants_help ? STATUS(ST_CANCELLED, SCOPE_REQUEST) : st;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct config first, second;
    char *bytes = malloc(size + 1), *printed = NULL;
    size_t printed_len = 0;
    CHECK(bytes != NULL);
    memcpy(bytes, data, size);
    bytes[size] = '\0';
    bool is_printable = memchr(data, '\n', size) == NULL; /* one value a line: a newline inside cannot come back */
    if (!failed(parse(bytes, size, '\0', &first))) {
        CHECK(first.u32 <= 4096);
        CHECK(first.i32 >= -100 && first.i32 <= 100);
        CHECK(first.duration >= 1);
        FILE *out = open_memstream(&printed, &printed_len);
        CHECK(out != NULL);
        flags_print_config(table, COUNT, &first, out);
        fclose(out);
        if (is_printable) {
            CHECK(!failed(parse(printed, printed_len, '\n', &second)));
            CHECK(strcmp(first.text, second.text) == 0);
            CHECK(first.u32 == second.u32);
            CHECK(first.u64 == second.u64);
            CHECK(first.i32 == second.i32);
            CHECK(first.f32 == second.f32);
            CHECK(first.bytes == second.bytes);
            CHECK(first.duration == second.duration);
            CHECK(first.is_on == second.is_on);
            CHECK(first.list.count == second.list.count);
        }
        free(printed);
    }
    free(bytes);
    return 0;
}
