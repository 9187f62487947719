#include "bench/transfer/forms.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/transfer/limits.h"
#include "tests/conformance/ucx_library.h"

static const struct form all[] = {
    {"shm", "shm", BENCH_POOL_HOST, false},
    {"tcp", "tcp", BENCH_POOL_HOST, true},
    {"ucx", "ucx", BENCH_POOL_HOST, true},
    {"shm@gpu", "shm", BENCH_POOL_GPU, false},
    {"tcp@gpu", "tcp", BENCH_POOL_GPU, true},
    {"ucx@gpu", "ucx", BENCH_POOL_GPU, true},
    {"nccl@gpu", "nccl", BENCH_POOL_GPU, true},
    {"shm@fake", "shm", BENCH_POOL_FAKE, false},
    {"tcp@fake", "tcp", BENCH_POOL_FAKE, true},
};

static bool is_named(const char *names, const char *name)
{
    size_t chars = strlen(name);
    for (const char *at = names; *at; at += strcspn(at, ","), at += *at == ',') {
        if (strcspn(at, ",") == chars && strncmp(at, name, chars) == 0) { return true; }
    }
    return false;
}

uint32_t forms_parse(const char *names, const struct form **ret_forms)
{
    uint32_t count = 0, named = 0;
    bool is_auto = strcmp(names, "auto") == 0;
    for (const char *at = names; *at; at += strcspn(at, ","), at += *at == ',') { named++; }
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (is_auto ? all[i].pool != BENCH_POOL_FAKE : is_named(names, all[i].name)) { ret_forms[count++] = &all[i]; }
    }
    if (count == 0 || (!is_auto && count != named)) {
        fprintf(stderr, "--cables=%s: takes auto, or some of:", names);
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) { fprintf(stderr, " %s", all[i].name); }
        fprintf(stderr, "\n");
        exit(2);
    }
    return count;
}

const char *forms_ucx_library(void)
{
    static char library[512];
    char why[512];
    if (library[0] == '\0' && !ucx_library_find(library, sizeof library, why, sizeof why)) { library[0] = '\0'; }
    return library;
}

struct side_config form_side(const struct form *form, bool receives)
{
    unsigned devices[2] = {0, 0};
    const char *named = getenv("BENCH_DEVICES");
    if (named && sscanf(named, "%u,%u", &devices[0], &devices[1]) != 2) {
        fprintf(stderr, "BENCH_DEVICES=%s: takes the GPUs of D and P, as 0,1\n", named);
        exit(2);
    }
    struct side_config config = {.receives = receives, .cable = form->cable, .pool = form->pool, .device = devices[receives ? 0 : 1]};
    if (form->pool == BENCH_POOL_FAKE) { config.device = 1; }
    if (strcmp(form->cable, "nccl") == 0) { config.nccl_host = devices[0] != devices[1] ? NULL : receives ? "bench-d" : "bench-p"; }
    if (strcmp(form->cable, "ucx") == 0) { config.ucx_library = forms_ucx_library(); }
    return config;
}

/* By a receiver with two blocks, which opens all that it needs. */
static bool form_is_here(const struct form *form, char *ret_why, size_t why_size)
{
    struct side_config config = form_side(form, true);
    struct side side;
    struct limit limit;
    char why[256];
    config.slice_bytes = 4096;
    config.layers = 1;
    config.block_count = 2;
    if (form->pool == BENCH_POOL_GPU && !limit_gpu_copy(config.device, 4096, 1, &limit, why, sizeof why)) {
        snprintf(ret_why, why_size, "no GPU here that can be used: %s", why);
        return false;
    }
    if (!side_start(&config, &side, ret_why, why_size)) { return false; }
    side_end(&side);
    return true;
}

uint32_t forms_here(const struct form **forms, uint32_t count)
{
    uint32_t here = 0;
    char why[512];
    for (uint32_t i = 0; i < count; i++) {
        if (form_is_here(forms[i], why, sizeof why)) {
            forms[here++] = forms[i];
            continue;
        }
        for (char *at = why; *at; at++) { /* as JSON has it */
            if (*at == '"' || *at == '\\' || (unsigned char)*at < ' ') { *at = '\''; }
        }
        printf("{\"bench\":\"absent\",\"form\":\"%s\",\"why\":\"%s\"}\n", forms[i]->name, why);
    }
    return here;
}

const char *bench_option(int argc, char **argv, const char *key, const char *standard)
{
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], key, strlen(key)) == 0) { return argv[i] + strlen(key); }
    }
    return standard;
}
