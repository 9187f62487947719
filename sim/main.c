/* sim: runs seeds of the simulated cluster. See sim/sim.h. */
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/flags.h"
#include "sim/sim.h"

struct sim_config {
    uint64_t seed, seeds;
    bool trace, calm;
};

static const struct flag flags[] = {
    {"seed", FLAG_U64, offsetof(struct sim_config, seed), "1", "N", "First seed.", 0, 0},
    {"seeds", FLAG_U64, offsetof(struct sim_config, seeds), "1", "COUNT", "How many seeds to run, one after the other.", 1, UINT64_C(1) << 40},
    {"trace", FLAG_BOOL, offsetof(struct sim_config, trace), "false", NULL, "Print one line an event.", 0, 0},
    {"calm", FLAG_BOOL, offsetof(struct sim_config, calm), "false", NULL, "The same clusters and requests, without faults.", 0, 0},
};

/* A failed CHECK inside a core: say which seed it was. The process is about to die and its
 * heap is whole, so stdio is safe enough. */
static void on_abort(int signal_number)
{
    (void)signal_number;
    sim_print_failure(stderr);
}

int main(int argc, char **argv)
{
    struct sim_config config;
    struct diag diag = {{0}};
    bool wants_help = false;
    status_t st = flags_parse(flags, sizeof flags / sizeof flags[0], &config, argc, argv, NULL, NULL, &wants_help, &diag);
    if (failed(st)) {
        fprintf(stderr, "sim: %s\n", diag.text);
        return 2;
    }
    if (wants_help) {
        flags_print_help(flags, sizeof flags / sizeof flags[0], "sim [--seed=N] [--seeds=COUNT] [--trace] [--calm]", stdout);
        return 0;
    }
    signal(SIGABRT, on_abort);
    signal(SIGSEGV, on_abort);
    struct sim_result sum = {0};
    for (uint64_t i = 0; i < config.seeds; i++) {
        struct sim_options options = {.seed = config.seed + i, .trace = config.trace ? stdout : NULL, .calm = config.calm};
        struct sim_result result;
        sim_run(&options, &result);
        sim_result_add(&sum, &result);
    }
    sim_result_print(&sum, config.seeds, stdout);
    return 0;
}
