/* Claims on diag and status: texts are cut, never overrun, and codes have their gRPC names. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/diag.h"
#include "base/status.h"

/* Who passes NULL wants no text, and gets none. */
static void nobody_needs_a_diag(void **state)
{
    (void)state;
    diag_set(NULL, "%d", 1);
    diag_prefix(NULL, "%d", 1);
}

/* A text that is too long is cut and terminated. */
static void long_texts_are_cut(void **state)
{
    (void)state;
    static char text[4000];
    struct diag diag;
    memset(text, 'x', sizeof text - 1);
    diag_set(&diag, "%s", text);
    assert_int_equal(strlen(diag.text), sizeof diag.text - 1);
    diag_prefix(&diag, "file %d", 7);
    assert_int_equal(strncmp(diag.text, "file 7: xxx", 11), 0);
    assert_true(strlen(diag.text) < sizeof diag.text);
    diag_prefix(&diag, "%s", text);
    assert_int_equal(strlen(diag.text), sizeof diag.text - 1);
}

/* Outer steps come first. */
static void prefixes_stack_up(void **state)
{
    (void)state;
    struct diag diag;
    diag_set(&diag, "no tensor \"%s\"", "lm_head");
    diag_prefix(&diag, "%s", "model.safetensors");
    diag_prefix(&diag, "--model=%s", "dir");
    assert_string_equal(diag.text, "--model=dir: model.safetensors: no tensor \"lm_head\"");
}

/* TRY hands the first failure up as it was raised; a success goes on. */
static int steps;

static status_t step(status_t st)
{
    steps++;
    return st;
}

static status_t three_steps(status_t second)
{
    TRY(step(STATUS_OK));
    TRY(step(second));
    TRY(step(STATUS_OK));
    return STATUS_OK;
}

static void try_returns_the_first_failure(void **state)
{
    (void)state;
    steps = 0;
    status_t raised = STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, -25);
    status_t st = three_steps(raised);
    assert_int_equal(steps, 2);
    assert_memory_equal(&st, &raised, sizeof st);
    assert_true(st.line > 0);
    assert_int_equal(st.cause, -25);
    assert_false(failed(three_steps(STATUS_OK)));
}

/* The numbers are gRPC's, and one past them has no name. */
static void codes_have_names(void **state)
{
    (void)state;
    assert_string_equal(status_code_name(0), "OK");
    assert_string_equal(status_code_name(8), "RESOURCE_EXHAUSTED");
    assert_string_equal(status_code_name(14), "UNAVAILABLE");
    assert_string_equal(status_code_name(16), "UNAUTHENTICATED");
    assert_string_equal(status_code_name(17), "?");
    assert_string_equal(status_code_name(255), "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nobody_needs_a_diag),
        cmocka_unit_test(long_texts_are_cut),
        cmocka_unit_test(prefixes_stack_up),
        cmocka_unit_test(try_returns_the_first_failure),
        cmocka_unit_test(codes_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
