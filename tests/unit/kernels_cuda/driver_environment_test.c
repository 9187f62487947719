/* Claims on the driver's environment: what is not set is set, and what the operator has set stays, an empty word too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/cuda/driver_environment.h"

#define VARIABLE "CUDA_DEVICE_MAX_CONNECTIONS"

static void the_operator_has_the_last_word(void **state)
{
    (void)state;
    static const char *const words[] = {"8", "32", ""};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        assert_int_equal(setenv(VARIABLE, words[i], 1), 0);
        cuda_driver_environment_set();
        assert_string_equal(getenv(VARIABLE), words[i]);
    }
}

static void all_queues_are_asked_for(void **state)
{
    (void)state;
    assert_int_equal(unsetenv(VARIABLE), 0);
    cuda_driver_environment_set();
    assert_string_equal(getenv(VARIABLE), "32");
    cuda_driver_environment_set();
    assert_string_equal(getenv(VARIABLE), "32");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_operator_has_the_last_word),
        cmocka_unit_test(all_queues_are_asked_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
