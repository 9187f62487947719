/* What int8 and int4 weights and small KV cost in quality stays within stated bounds, on a trained model and
 * a text of its kind that it has not seen. The bounds are about twice what was measured (see bench/quality/README.md):
 * a fault in a quantizer or a kernel costs far more, rounding differences between machines far less. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>

#include "bench/quality/perplexity.h"

#define MODEL "models/baton-tiny"
#define TEXT_BYTES 12000u /* of 41,000: enough tokens to hold the bounds, and quick */

struct fixture {
    struct perplexity_text text;
    struct perplexity_reference reference;
    struct perplexity_result base;
};

static struct perplexity_result measure(const struct fixture *f, enum model_weight_format weights, const char *kv)
{
    struct diag diag;
    struct perplexity_result result;
    struct perplexity_options options = {.model_directory = MODEL, .weights = weights, .kv_dtype = kv, .isa = "auto", .threads = 1};
    if (failed(perplexity_measure(&options, &f->text, &f->reference, &diag, &result, NULL))) { fail_msg("%s", diag.text); }
    print_message("perplexity %.4f, %+.3f %%, divergence %.5f, same best %.4f, %.2f bits\n", result.perplexity,
                  100 * (result.perplexity / f->base.perplexity - 1), result.divergence, result.agreement, result.bits_per_weight);
    return result;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct diag diag;
    struct perplexity_options options = {.model_directory = MODEL, .kv_dtype = "f32", .isa = "auto", .threads = 1};
    if (failed(perplexity_text_load(MODEL, "bench/quality/relay.txt", 512, TEXT_BYTES, &diag, &f->text))
        || failed(perplexity_measure(&options, &f->text, NULL, &diag, &f->base, &f->reference))) {
        print_error("%s\n", diag.text);
        return -1;
    }
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    perplexity_text_drop(&f->text);
    free(f->reference.logits);
    free(f);
    return 0;
}

/* The model knows its text: far better than one of 2,048 tokens by chance; and is itself again. */
static void the_reference_is_sane(void **state)
{
    const struct fixture *f = *state;
    assert_true(f->base.tokens > 2000);
    assert_true(f->base.perplexity > 1);
    assert_true(f->base.perplexity < 20);
    struct perplexity_result again = measure(f, MODEL_WEIGHTS_AUTO, "f32");
    assert_true(again.perplexity == f->base.perplexity);
    assert_true(fabs(again.divergence) < 1e-12);
    assert_true(again.agreement == 1);
    assert_true(again.bits_per_weight == 16);
}

static void int8_weights_stay_near(void **state)
{
    struct perplexity_result r = measure(*state, MODEL_WEIGHTS_INT8, "f32");
    const struct fixture *f = *state;
    assert_true(fabs(r.perplexity / f->base.perplexity - 1) < 0.004);
    assert_true(r.divergence < 0.0005);
    assert_true(r.bits_per_weight < 8.5);
}

static void int4_weights_stay_near(void **state)
{
    struct perplexity_result r = measure(*state, MODEL_WEIGHTS_INT4, "f32");
    const struct fixture *f = *state;
    assert_true(fabs(r.perplexity / f->base.perplexity - 1) < 0.02);
    assert_true(r.divergence < 0.008);
    assert_true(r.bits_per_weight < 5.5); /* 4.5, and 8 of the table, which is a fifth of this model */
}

static void small_kv_stays_near(void **state)
{
    const struct fixture *f = *state;
    static const struct { const char *kv; double change, divergence; } cases[] = {
        {"bf16", 0.0005, 0.00001}, {"int8", 0.001, 0.00005}, {"fp8_e4m3", 0.004, 0.0007}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct perplexity_result r = measure(f, MODEL_WEIGHTS_AUTO, cases[i].kv);
        assert_true(fabs(r.perplexity / f->base.perplexity - 1) < cases[i].change);
        assert_true(r.divergence < cases[i].divergence);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_reference_is_sane),
        cmocka_unit_test(int8_weights_stay_near),
        cmocka_unit_test(int4_weights_stay_near),
        cmocka_unit_test(small_kv_stays_near),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
