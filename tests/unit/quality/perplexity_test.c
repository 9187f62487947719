/* What int8 and int4 weights and small KV cost in quality stays within stated bounds, on a trained model and
 * a text of its kind that it has not seen. A fault in a quantizer or a kernel costs far more.
 *
 * The divergence may be twice what was measured on this text: each token adds to it, so that it hardly moves.
 * The change of perplexity is a sum of both signs, of which most cancels: where nothing but chance is left it is about
 * sqrt(2 divergence / tokens), which is what was measured for all but int4 weights, and a machine that rounds otherwise
 * draws it anew. So four times that is allowed, 3 to 7 times what was measured; and for int4 twice what was measured. */
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
    print_message("perplexity %.4f, %+.3f %%, divergence %.7f, same best %.4f, %.2f bits\n", result.perplexity,
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

/* change, divergence: at most. */
static struct perplexity_result stays_near(const struct fixture *f, enum model_weight_format weights, const char *kv, double change,
                                           double divergence)
{
    struct perplexity_result r = measure(f, weights, kv);
    assert_true(fabs(r.perplexity / f->base.perplexity - 1) < change);
    assert_true(r.divergence > 0); /* else the format was not used */
    assert_true(r.divergence < divergence);
    return r;
}

static void int8_weights_stay_near(void **state)
{
    struct perplexity_result r = stays_near(*state, MODEL_WEIGHTS_INT8, "f32", 0.0015, 0.00036); /* measured 0.00048, 0.00018 */
    assert_true(r.bits_per_weight < 8.5);
}

static void int4_weights_stay_near(void **state)
{
    struct perplexity_result r = stays_near(*state, MODEL_WEIGHTS_INT4, "f32", 0.015, 0.008); /* 0.0072, 0.0042 */
    assert_true(r.bits_per_weight < 5.5); /* 4.5, and 8 of the table, which is a fifth of this model */
}

static void small_kv_stays_near(void **state)
{
    (void)stays_near(*state, MODEL_WEIGHTS_AUTO, "bf16", 0.00014, 0.000003);   /* 0.00002, 0.0000015 */
    (void)stays_near(*state, MODEL_WEIGHTS_AUTO, "int8", 0.0004, 0.000025);    /* 0.00011, 0.000012 */
    (void)stays_near(*state, MODEL_WEIGHTS_AUTO, "fp8_e4m3", 0.0018, 0.00054); /* 0.00043, 0.00027 */
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
