#include "base/flags.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

#define FLAGS_MAX 128u
#define ENVIRONMENT_NAME_MAX 96u

struct unit {
    const char *name;
    uint64_t factor;
};

static const struct unit byte_units[] = {
    {"", 1}, {"B", 1},
    {"KiB", UINT64_C(1) << 10}, {"MiB", UINT64_C(1) << 20}, {"GiB", UINT64_C(1) << 30}, {"TiB", UINT64_C(1) << 40},
    {"KB", 1000}, {"MB", 1000000}, {"GB", 1000000000}, {"TB", UINT64_C(1000000000000)},
    {"K", UINT64_C(1) << 10}, {"M", UINT64_C(1) << 20}, {"G", UINT64_C(1) << 30},
    {NULL, 0},
};

static const struct unit time_units[] = {
    {"ns", 1}, {"us", 1000}, {"ms", 1000000}, {"s", 1000000000},
    {"m", UINT64_C(60000000000)}, {"h", UINT64_C(3600000000000)}, {NULL, 0},
};

static bool parse_u64(const char *text, uint64_t *ret_value)
{
    if (!isdigit((unsigned char)text[0])) { return false; }
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || *end != '\0') { return false; }
    *ret_value = value;
    return true;
}

/* Digits, perhaps a point and more digits, then a unit. By hand: strtod would take "0x10" and
 * "1e3", and a double cannot hold every 64-bit size that --print-config may have printed. */
static bool parse_with_unit(const char *text, const struct unit *units, uint64_t *ret_value)
{
    if (!isdigit((unsigned char)text[0])) { return false; }
    char *end;
    errno = 0;
    uint64_t whole = strtoull(text, &end, 10);
    if (errno != 0) { return false; }
    double fraction = 0, place = 0.1;
    if (*end == '.') {
        end++;
        if (!isdigit((unsigned char)*end)) { return false; }
        for (; isdigit((unsigned char)*end); end++, place /= 10) { fraction += (*end - '0') * place; }
    }
    for (; units->name; units++) {
        if (strcmp(end, units->name) != 0) { continue; }
        uint64_t part = (uint64_t)(fraction * (double)units->factor + 0.5), value;
        if (__builtin_mul_overflow(whole, units->factor, &value)) { return false; }
        if (__builtin_add_overflow(value, part, &value) || value > INT64_MAX) { return false; }
        *ret_value = value; /* half the range: clock_now_ns() + a duration never wraps */
        return true;
    }
    return false;
}

/* A bound of a flag's range in the largest unit that divides it: "1ms", "3600s", "1MiB". */
static void bound_text(const struct flag *flag, uint64_t bound, char ret_text[32])
{
    static const struct unit bytes[] = {{"GiB", UINT64_C(1) << 30}, {"MiB", UINT64_C(1) << 20}, {"KiB", UINT64_C(1) << 10}, {"", 1}};
    static const struct unit times[] = {{"s", 1000000000}, {"ms", 1000000}, {"us", 1000}, {"ns", 1}};
    static const struct unit plain[] = {{"", 1}};
    const struct unit *unit = flag->type == FLAG_BYTES || flag->type == FLAG_BYTES_OR_AUTO ? bytes : flag->type == FLAG_DURATION ? times : plain;
    while (unit->factor > 1 && (bound == 0 || bound % unit->factor != 0)) { unit++; }
    snprintf(ret_text, 32, "%" PRIu64 "%s", bound / unit->factor, unit->name);
}

static status_t bad_value(const struct flag *flag, const char *text, struct diag *diag)
{
    static const char *const kinds[] = {
        [FLAG_STRING] = "text", [FLAG_U32] = "a whole number", [FLAG_U64] = "a whole number",
        [FLAG_I32] = "a whole number", [FLAG_F32] = "a number", [FLAG_BYTES] = "a size such as 512MiB",
        [FLAG_BYTES_OR_AUTO] = "auto, or a size such as 512MiB", [FLAG_DURATION] = "a duration such as 250ms or 10s", [FLAG_BOOL] = "true or false", [FLAG_LIST] = "text",
    };
    if (flag->min != 0 || flag->max != 0) {
        if (flag->type == FLAG_I32) {
            diag_set(diag, "--%s=%s: takes %s from %" PRId32 " to %" PRId32, flag->name, text, kinds[flag->type],
                     (int32_t)flag->min, (int32_t)flag->max);
        } else {
            char low[32], high[32];
            bound_text(flag, flag->min, low);
            bound_text(flag, flag->max, high);
            diag_set(diag, "--%s=%s: takes %s from %s to %s", flag->name, text, kinds[flag->type], low, high);
        }
    } else {
        diag_set(diag, "--%s=%s: takes %s", flag->name, text, kinds[flag->type]);
    }
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
}

static bool in_range(const struct flag *flag, uint64_t value)
{
    return (flag->min == 0 && flag->max == 0) || (value >= flag->min && value <= flag->max);
}

static status_t set_value(const struct flag *flag, void *config, const char *text, struct diag *diag)
{
    void *target = (char *)config + flag->offset;
    uint64_t number = 0;
    char *end;
    switch (flag->type) {
    case FLAG_STRING:
        *(const char **)target = text;
        return STATUS_OK;
    case FLAG_LIST: {
        struct flag_list *list = target;
        if (list->count == sizeof list->values / sizeof list->values[0]) {
            diag_set(diag, "--%s: given more than %zu times", flag->name, sizeof list->values / sizeof list->values[0]);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
        }
        list->values[list->count++] = text;
        return STATUS_OK;
    }
    case FLAG_U32:
        if (!parse_u64(text, &number) || number > UINT32_MAX || !in_range(flag, number)) { break; }
        *(uint32_t *)target = (uint32_t)number;
        return STATUS_OK;
    case FLAG_U64:
        if (!parse_u64(text, &number) || !in_range(flag, number)) { break; }
        *(uint64_t *)target = number;
        return STATUS_OK;
    case FLAG_I32: {
        errno = 0;
        if (!isdigit((unsigned char)text[text[0] == '-'])) { break; } /* strtol() takes spaces and a plus sign */
        long value = strtol(text, &end, 10);
        if (errno != 0 || *end != '\0' || value < INT32_MIN || value > INT32_MAX) { break; }
        if ((flag->min != 0 || flag->max != 0) && (value < (int32_t)flag->min || value > (int32_t)flag->max)) { break; }
        *(int32_t *)target = (int32_t)value;
        return STATUS_OK;
    }
    case FLAG_F32: {
        errno = 0;
        float value = strtof(text, &end);
        if (end == text || isspace((unsigned char)text[0]) || *end != '\0' || !isfinite(value)) { break; }
        *(float *)target = value;
        return STATUS_OK;
    }
    case FLAG_BYTES:
    case FLAG_BYTES_OR_AUTO:
        if (flag->type == FLAG_BYTES_OR_AUTO && strcmp(text, "auto") == 0) { *(uint64_t *)target = FLAG_AUTO; return STATUS_OK; }
        if (!parse_with_unit(text, byte_units, &number) || !in_range(flag, number)) { break; }
        *(uint64_t *)target = number;
        return STATUS_OK;
    case FLAG_DURATION:
        if (!parse_with_unit(text, time_units, &number) || !in_range(flag, number)) { break; }
        *(uint64_t *)target = number;
        return STATUS_OK;
    case FLAG_BOOL:
        if (strcmp(text, "true") == 0 || strcmp(text, "1") == 0) { *(bool *)target = true; return STATUS_OK; }
        if (strcmp(text, "false") == 0 || strcmp(text, "0") == 0) { *(bool *)target = false; return STATUS_OK; }
        break;
    }
    return bad_value(flag, text, diag);
}

static void clear_value(const struct flag *flag, void *config)
{
    static const size_t sizes[] = {
        [FLAG_STRING] = sizeof(char *), [FLAG_U32] = 4, [FLAG_U64] = 8, [FLAG_I32] = 4, [FLAG_F32] = 4,
        [FLAG_BYTES] = 8, [FLAG_BYTES_OR_AUTO] = 8, [FLAG_DURATION] = 8, [FLAG_BOOL] = sizeof(bool), [FLAG_LIST] = sizeof(struct flag_list),
    };
    memset((char *)config + flag->offset, 0, sizes[flag->type]);
}

/* What BATON_<KEY> says, and how it is spelled. */
static const char *environment_value(const struct flag *flag, char name[ENVIRONMENT_NAME_MAX])
{
    size_t len = (size_t)snprintf(name, ENVIRONMENT_NAME_MAX, "BATON_");
    for (const char *c = flag->name; *c && len + 1 < ENVIRONMENT_NAME_MAX; c++) {
        name[len++] = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
    }
    name[len] = '\0';
    return getenv(name);
}

static const struct flag *find_flag(const struct flag *flags, size_t flag_count, const char *name, size_t name_len)
{
    for (size_t i = 0; i < flag_count; i++) {
        if (strlen(flags[i].name) == name_len && memcmp(flags[i].name, name, name_len) == 0) { return &flags[i]; }
    }
    return NULL;
}

/* The flag that shares the longest beginning with what was typed, for the error's hint. The
 * API's fields are spelled with '_', so that is what many type. */
static const char *nearest_flag(const struct flag *flags, size_t flag_count, const char *name)
{
    const char *best = NULL;
    size_t best_len = 1;
    for (size_t i = 0; i < flag_count; i++) {
        size_t len = 0;
        while (name[len] && (name[len] == '_' ? '-' : name[len]) == flags[i].name[len]) { len++; }
        if (len > best_len) { best_len = len; best = flags[i].name; }
    }
    return best;
}

status_t flags_parse(const struct flag *flags, size_t flag_count, void *config, int argc, char **argv,
                     const char **positional, uint32_t *positional_count, bool *ret_wants_help, struct diag *diag)
{
    bool seen[FLAGS_MAX] = {false};
    uint32_t words_max = positional ? *positional_count : 0, words = 0;
    CHECK(flag_count <= FLAGS_MAX);
    *ret_wants_help = false;
    for (size_t i = 0; i < flag_count; i++) {
        clear_value(&flags[i], config);
        if (flags[i].default_text) { TRY(set_value(&flags[i], config, flags[i].default_text, diag)); }
    }
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0) { *ret_wants_help = true; return STATUS_OK; }
    }
    for (size_t i = 0; i < flag_count; i++) {
        char name[ENVIRONMENT_NAME_MAX];
        const char *text = environment_value(&flags[i], name);
        if (!text || flags[i].type == FLAG_LIST) { continue; }
        status_t st = set_value(&flags[i], config, text, diag);
        if (failed(st)) { diag_prefix(diag, "environment variable %s", name); return st; }
    }
    bool only_words = false;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (!only_words && strcmp(word, "--") == 0) { only_words = true; continue; }
        if (only_words || strncmp(word, "--", 2) != 0) {
            if (words == words_max) {
                diag_set(diag, "\"%s\": not a flag; flags are --name=value, see --help", word);
                return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
            }
            positional[words++] = word;
            continue;
        }
        const char *name = word + 2;
        const char *equals = strchr(name, '=');
        size_t name_len = equals ? (size_t)(equals - name) : strlen(name);
        const struct flag *flag = find_flag(flags, flag_count, name, name_len);
        if (!flag) {
            const char *near = nearest_flag(flags, flag_count, name);
            diag_set(diag, "--%.*s: no such flag%s%s; see --help", (int)name_len, name, near ? ", did you mean --" : "",
                     near ? near : "");
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
        }
        const char *value = equals ? equals + 1 : NULL;
        if (!value && flag->type == FLAG_BOOL) { value = "true"; }
        /* "--key value" is what other tools take. But "--listen --model=DIR" is a value forgotten. */
        if (!value && i + 1 < argc && strncmp(argv[i + 1], "--", 2) != 0) { value = argv[++i]; }
        if (!value) {
            diag_set(diag, "--%s: needs a value, --%s=%s", flag->name, flag->name,
                     flag->value_name ? flag->value_name : "VALUE");
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
        }
        size_t index = (size_t)(flag - flags);
        if (seen[index] && flag->type != FLAG_LIST) {
            diag_set(diag, "--%s: given twice", flag->name);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
        }
        seen[index] = true;
        TRY(set_value(flag, config, value, diag));
    }
    if (positional_count) { *positional_count = words; }
    return STATUS_OK;
}

void flags_print_help(const struct flag *flags, size_t flag_count, const char *usage, FILE *out)
{
    fprintf(out, "usage: %s\n\n", usage);
    for (size_t i = 0; i < flag_count; i++) {
        const struct flag *flag = &flags[i];
        char left[64];
        if (flag->type == FLAG_BOOL) {
            snprintf(left, sizeof left, "--%s", flag->name);
        } else {
            snprintf(left, sizeof left, "--%s=%s", flag->name, flag->value_name ? flag->value_name : "VALUE");
        }
        fprintf(out, "  %-32s %s", left, flag->help);
        if (flag->default_text) { fprintf(out, " [%s]", flag->default_text); }
        fputc('\n', out);
    }
}

void flags_print_config(const struct flag *flags, size_t flag_count, const void *config, FILE *out)
{
    for (size_t i = 0; i < flag_count; i++) {
        const struct flag *flag = &flags[i];
        const void *value = (const char *)config + flag->offset;
        switch (flag->type) {
        case FLAG_STRING:
            if (*(const char *const *)value) { fprintf(out, "--%s=%s\n", flag->name, *(const char *const *)value); }
            break;
        case FLAG_LIST: {
            const struct flag_list *list = value;
            for (uint32_t k = 0; k < list->count; k++) { fprintf(out, "--%s=%s\n", flag->name, list->values[k]); }
            break;
        }
        case FLAG_U32: fprintf(out, "--%s=%" PRIu32 "\n", flag->name, *(const uint32_t *)value); break;
        case FLAG_I32: fprintf(out, "--%s=%" PRId32 "\n", flag->name, *(const int32_t *)value); break;
        case FLAG_F32: fprintf(out, "--%s=%.9g\n", flag->name, (double)*(const float *)value); break;
        case FLAG_BYTES_OR_AUTO:
            if (*(const uint64_t *)value == FLAG_AUTO) {
                fprintf(out, "--%s=auto\n", flag->name);
            } else {
                fprintf(out, "--%s=%" PRIu64 "\n", flag->name, *(const uint64_t *)value);
            }
            break;
        case FLAG_U64:
        case FLAG_BYTES: fprintf(out, "--%s=%" PRIu64 "\n", flag->name, *(const uint64_t *)value); break;
        case FLAG_DURATION: fprintf(out, "--%s=%" PRIu64 "ns\n", flag->name, *(const uint64_t *)value); break;
        case FLAG_BOOL: fprintf(out, "--%s=%s\n", flag->name, *(const bool *)value ? "true" : "false"); break;
        }
    }
}
