/* Named runs whose traces people can read.
 * Claim: each still happens line by line as tests/sim/golden/<name>.txt tells it.
 * To take a new trace after a wanted change: bazel run //tests/sim:sim_scenario_test --
 * --write=DIR, and read what changed. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "sim/sim.h"

static const char *write_folder;

static void compare(const char *name, const struct sim_scenario *scenario)
{
    char *trace = NULL;
    size_t trace_bytes = 0;
    FILE *out = open_memstream(&trace, &trace_bytes);
    assert_non_null(out);
    struct sim_options options = {.seed = 1, .trace = out, .scenario = scenario};
    struct sim_result result;
    sim_run(&options, &result);
    fclose(out);

    char path[512];
    snprintf(path, sizeof path, "%s/%s.txt", write_folder ? write_folder : "tests/sim/golden", name);
    FILE *file = fopen(path, write_folder ? "w" : "r");
    if (!file) { fail_msg("cannot open %s", path); }
    if (write_folder) {
        fwrite(trace, 1, trace_bytes, file);
    } else {
        char expected[256];
        const char *at = trace;
        for (unsigned line = 1; fgets(expected, sizeof expected, file); line++) {
            size_t length = strlen(expected);
            if (strncmp(at, expected, length) == 0) { at += length; continue; }
            fail_msg("%s line %u: expected\n  %sand it was\n  %.*s", name, line, expected, (int)strcspn(at, "\n"), at);
        }
        if (*at != '\0') { fail_msg("%s goes on: %.*s", name, (int)strcspn(at, "\n"), at); }
    }
    fclose(file);
    free(trace);
}

/* A prompt is computed on one node and its output on the other; each layer's blocks land
 * while the next layer is computed, and the first token comes from the prefill node. */
static void one_request_through_both_pools(void **state)
{
    (void)state;
    const struct sim_scenario scenario = {
        .prefill_count = 1, .decode_count = 1, .block_tokens = 8, .block_count = 16, .request_count = 1,
        .requests = {{.at_ns = 2 * NS_PER_MS, .prompt_count = 30, .max_tokens = 4, .n = 1}},
    };
    compare("one_request", &scenario);
}

/* The decode node dies in the middle of an output: the other goes on after the last token. */
static void a_decode_node_dies(void **state)
{
    (void)state;
    const struct sim_scenario scenario = {
        .prefill_count = 1, .decode_count = 2, .block_tokens = 8, .block_count = 16, .request_count = 1,
        .requests = {{.at_ns = 2 * NS_PER_MS, .prompt_count = 20, .max_tokens = 6, .n = 1}},
        .fault_count = 1,
        .faults = {{.kind = FAULT_DIE, .at_ns = 16 * NS_PER_MS, .node = 1, .for_ns = 20 * NS_PER_MS}},
    };
    compare("decode_node_dies", &scenario);
}

/* The prefill node dies between two layers: the grant is taken back, and the decode node
 * computes the prompt itself. */
static void a_prefill_node_dies(void **state)
{
    (void)state;
    const struct sim_scenario scenario = {
        .prefill_count = 1, .decode_count = 1, .block_tokens = 8, .block_count = 16, .request_count = 1,
        .requests = {{.at_ns = 2 * NS_PER_MS, .prompt_count = 20, .max_tokens = 3, .n = 1}},
        .fault_count = 1,
        .faults = {{.kind = FAULT_DIE, .at_ns = 5 * NS_PER_MS + NS_PER_MS / 4, .node = 0, .for_ns = 20 * NS_PER_MS}},
    };
    compare("prefill_node_dies", &scenario);
}

/* A client goes while slices are on their way: they land in quarantined blocks, and those are
 * free only after the fence. */
static void a_client_cancels_during_the_transfer(void **state)
{
    (void)state;
    const struct sim_scenario scenario = {
        .prefill_count = 1, .decode_count = 1, .block_tokens = 8, .block_count = 16, .request_count = 1,
        .requests = {{.at_ns = 2 * NS_PER_MS, .prompt_count = 30, .max_tokens = 4, .n = 2, .cancel_ns = 5 * NS_PER_MS - NS_PER_MS / 4}},
    };
    compare("cancel_during_transfer", &scenario);
}

/* Two sequences share a prompt, then their pool is too small for both: the younger gives way,
 * computes its tokens again, and sends none twice. */
static void two_sequences_in_a_small_pool(void **state)
{
    (void)state;
    const struct sim_scenario scenario = {
        .prefill_count = 0, .decode_count = 1, .block_tokens = 4, .block_count = 7, .local_prefill_tokens = 100, .request_count = 1,
        .requests = {{.at_ns = 2 * NS_PER_MS, .prompt_count = 10, .max_tokens = 12, .n = 2}},
    };
    compare("small_pool", &scenario);
}

/* The second turn of a chat: the decode node has prompt and answer, the prefill node the prompt;
 * only the blocks that the decode node lacks are sent, and of these only what neither has is
 * computed. */
static void a_second_turn_sends_what_is_new(void **state)
{
    (void)state;
    const struct sim_scenario scenario = {
        .prefill_count = 1, .decode_count = 1, .block_tokens = 8, .block_count = 24, .prefix_cache = true, .request_count = 2,
        .requests = {{.at_ns = 2 * NS_PER_MS, .prompt_count = 30, .max_tokens = 4, .n = 1},
                     {.at_ns = 5 * NS_PER_MS, .prompt_count = 18, .max_tokens = 3, .n = 1, .is_turn = true}},
    };
    compare("second_turn", &scenario);
}

static void on_abort(int signal_number)
{
    (void)signal_number;
    sim_print_failure(stderr);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strncmp(argv[1], "--write=", 8) == 0) { write_folder = argv[1] + 8; }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_request_through_both_pools),
        cmocka_unit_test(a_decode_node_dies),
        cmocka_unit_test(a_prefill_node_dies),
        cmocka_unit_test(a_client_cancels_during_the_transfer),
        cmocka_unit_test(two_sequences_in_a_small_pool),
        cmocka_unit_test(a_second_turn_sends_what_is_new),
    };
    signal(SIGABRT, on_abort);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
