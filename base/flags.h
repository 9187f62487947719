/* flags: one table feeds parsing, --help, --print-config and the environment.
 * Flow:    main -> [flags] -> a config struct
 * Thread:  start-up only.
 * Memory:  string values point into argv or the environment.
 *
 * --key=value or --key value; a value that itself begins with -- needs the first form. An
 * unknown, repeated or out-of-range flag is an error that names it and its range. BATON_<KEY>
 * with '-' as '_' sets the same flag, lists excepted; the command line wins. */
#ifndef BATON_BASE_FLAGS_H
#define BATON_BASE_FLAGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/diag.h"
#include "base/status.h"

enum flag_type {
    FLAG_STRING,   /* const char *; NULL default: unset */
    FLAG_U32,      /* uint32_t, min .. max */
    FLAG_U64,      /* uint64_t, min .. max */
    FLAG_I32,      /* int32_t; min and max are cast */
    FLAG_F32,      /* float; no range */
    FLAG_BYTES,    /* uint64_t; 1024, 64KiB, 1.5GiB, 100MB; min .. max in bytes */
    FLAG_BYTES_OR_AUTO, /* uint64_t; the same, or the word auto: FLAG_AUTO, which no size is */
    FLAG_DURATION, /* uint64_t nanoseconds; 250ms, 1.5s, 5m, 1h; min .. max in nanoseconds */
    FLAG_BOOL,     /* bool; --key alone is true, --key=false */
    FLAG_LIST,     /* struct flag_list: the flag may be repeated */
};

#define FLAG_AUTO UINT64_MAX

struct flag_list {
    uint32_t count;
    const char *values[64];
};

struct flag {
    const char *name; /* long name without dashes */
    enum flag_type type;
    size_t offset;    /* of the value in the config struct */
    const char *default_text; /* NULL: zero, unset */
    const char *value_name;   /* "H:P", "tokens" */
    const char *help;
    uint64_t min, max; /* both 0: no range */
};

/* Fills `config` with defaults, then environment, then argv[1..].
 * positional      [*count] in: room; out: how many words without -- there were. NULL: none allowed.
 * ret_wants_help  --help was given before any "--"; nothing else was checked
 * Errors  INVALID_ARGUMENT (request), diag names flag or variable, value and range. */
NODISCARD status_t flags_parse(const struct flag *flags, size_t flag_count, void *config, int argc, char **argv,
                               const char **positional, uint32_t *positional_count, bool *ret_wants_help,
                               struct diag *diag);

/* usage  "router --listen=H:P ..." */
void flags_print_help(const struct flag *flags, size_t flag_count, const char *usage, FILE *out);

/* One --key=value a line, as it would have to be given. */
void flags_print_config(const struct flag *flags, size_t flag_count, const void *config, FILE *out);

#endif
