/* sim: runs seeds of the simulated cluster, or with --pairs of its NCCL pairs. See sim/sim.h, sim/sim_pairs.h. */
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/flags.h"
#include "sim/sim.h"
#include "sim/sim_pairs.h"
#include "transfer/nccl_pairs.h"

struct sim_config {
    uint64_t seed, seeds;
    bool trace, calm;
    bool pairs;
    uint32_t prefill, decode, nccl_channels, nccl_pairs_max, hot;
    uint64_t nccl_memory, nccl_slots, nccl_bytes, transfers_per_min, shift_ns, span_ns;
};

static const struct flag flags[] = {
    {"seed", FLAG_U64, offsetof(struct sim_config, seed), "1", "N", "First seed.", 0, 0},
    {"seeds", FLAG_U64, offsetof(struct sim_config, seeds), "1", "COUNT", "How many seeds to run, one after the other.", 1, UINT64_C(1) << 40},
    {"trace", FLAG_BOOL, offsetof(struct sim_config, trace), "false", NULL, "Print one line an event.", 0, 0},
    {"calm", FLAG_BOOL, offsetof(struct sim_config, calm), "false", NULL, "The same clusters and requests, without faults.", 0, 0},
    {"pairs", FLAG_BOOL, offsetof(struct sim_config, pairs), "false", NULL, "NCCL pairs instead of requests.", 0, 0},
    {"prefill", FLAG_U32, offsetof(struct sim_config, prefill), "0", "N", "With --pairs: so many prefill nodes; 0: all of the cluster is from the seed.", 0, 512},
    {"decode", FLAG_U32, offsetof(struct sim_config, decode), "64", "N", "With --prefill: decode nodes.", 1, 512},
    {"nccl-memory", FLAG_BYTES, offsetof(struct sim_config, nccl_memory), "2GiB", "SIZE", "With --prefill: each node's, for all of its pairs.", 1, UINT64_C(1) << 50},
    {"nccl-pairs-max", FLAG_U32, offsetof(struct sim_config, nccl_pairs_max), "0", "N", "With --prefill: each node's; 0: one for each link.", 0, 4096},
    {"nccl-channels", FLAG_U32, offsetof(struct sim_config, nccl_channels), "4", "N", "With --prefill: of a communicator.", 1, 32},
    {"nccl-slots", FLAG_BYTES, offsetof(struct sim_config, nccl_slots), "16MiB", "SIZE", "With --prefill: staging slots of a pair.", 0, UINT64_C(1) << 40},
    {"nccl-bytes", FLAG_BYTES, offsetof(struct sim_config, nccl_bytes), "0", "SIZE", "With --prefill: what a communicator takes, as mib= in nccl_pair_up tells; 0: what is expected of its channels.", 0, UINT64_C(1) << 40},
    {"transfers-per-min", FLAG_U64, offsetof(struct sim_config, transfers_per_min), "120", "N", "With --prefill: of each prefill node.", 1, 100000},
    {"hot", FLAG_U32, offsetof(struct sim_config, hot), "0", "N", "With --prefill: decode nodes that get 19 of 20 transfers of a prefill node; 0: all get the same.", 0, 8},
    {"shift", FLAG_DURATION, offsetof(struct sim_config, shift_ns), "0s", "TIME", "With --hot: how often those are others; 0: never.", 0, 0},
    {"span", FLAG_DURATION, offsetof(struct sim_config, span_ns), "2m", "TIME", "With --prefill: of traffic.", 1, UINT64_C(1) << 50},
};

/* A failed CHECK inside a core: say which seed it was. The process is about to die and its
 * heap is whole, so stdio is safe enough. */
static void on_abort(int signal_number)
{
    (void)signal_number;
    sim_print_failure(stderr);
    sim_pairs_print_failure(stderr);
}

static void run_pairs(const struct sim_config *config)
{
    struct sim_pairs_result sum = {0};
    for (uint64_t i = 0; i < config->seeds; i++) {
        uint64_t expected = config->nccl_channels * NCCL_PAIRS_CHANNEL_BYTES;
        struct sim_pairs_options options = {
            .seed = config->seed + i,
            .trace = config->trace ? stdout : NULL,
            .calm = config->calm,
            .prefill_count = config->prefill,
            .decode_count = config->decode,
            .pairs_max = config->nccl_pairs_max,
            .memory_max = config->nccl_memory,
            .slots_bytes = config->nccl_slots,
            .nccl_bytes = config->nccl_bytes ? config->nccl_bytes : expected,
            .nccl_bytes_first = config->nccl_bytes > expected ? config->nccl_bytes : expected,
            .transfers_per_min = config->transfers_per_min,
            .hot_count = config->hot,
            .shift_ns = config->shift_ns,
            .span_ns = config->span_ns,
        };
        struct sim_pairs_result result;
        sim_pairs_run(&options, &result);
        sim_pairs_result_add(&sum, &result);
    }
    sim_pairs_result_print(&sum, config->seeds, stdout);
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
        flags_print_help(flags, sizeof flags / sizeof flags[0], "sim [--seed=N] [--seeds=COUNT] [--trace] [--calm] [--pairs [--prefill=N ..]]", stdout);
        return 0;
    }
    signal(SIGABRT, on_abort);
    signal(SIGSEGV, on_abort);
    if (config.pairs) {
        run_pairs(&config);
        return 0;
    }
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
