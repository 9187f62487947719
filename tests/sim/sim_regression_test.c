/* Seeds that once broke a promise.
 * Claim: none of tests/sim/regression_seeds.txt does so again. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "sim/sim.h"

static void old_seeds_stay_good(void **state)
{
    (void)state;
    FILE *file = fopen("tests/sim/regression_seeds.txt", "r");
    assert_non_null(file);
    char line[512];
    unsigned count = 0;
    while (fgets(line, sizeof line, file)) {
        if (line[0] == '#' || line[0] == '\n') { continue; }
        char mode[16];
        unsigned long long seed;
        assert_int_equal(sscanf(line, "%llu %15s", &seed, mode), 2);
        struct sim_options options = {.seed = seed, .calm = strcmp(mode, "calm") == 0};
        struct sim_result result;
        sim_run(&options, &result);
        count++;
    }
    fclose(file);
    assert_true(count > 0);
}

static void on_abort(int signal_number)
{
    (void)signal_number;
    sim_print_failure(stderr);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(old_seeds_stay_good)};
    signal(SIGABRT, on_abort);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
