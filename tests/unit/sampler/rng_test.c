/* rng, counter_rng: published vectors, and that every value can come. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include "base/counter_rng.h"
#include "base/rng.h"

/* Philox4x32-10 gives the known answers that Random123, the paper's software, publishes. */
static void philox_gives_the_published_answers(void **state)
{
    (void)state;
    static const struct {
        struct counter_rng_block counter;
        uint32_t key[2];
        struct counter_rng_block want;
    } cases[] = {
        {{{0, 0, 0, 0}}, {0, 0}, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
        {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
         {0xffffffff, 0xffffffff},
         {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
        {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
         {0xa4093822, 0x299f31d0},
         {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct counter_rng_block got = counter_rng_philox(cases[i].counter, cases[i].key[0], cases[i].key[1]);
        for (unsigned w = 0; w < 4; w++) { assert_int_equal(got.word[w], cases[i].want.word[w]); }
    }
}

/* The mapping of seed, stream and position to words never changes: users hold seeds. */
static void draw_maps_its_key_as_promised(void **state)
{
    (void)state;
    assert_int_equal(counter_rng_draw(0, 0, 0), 0xe169c58d6627e8d5u);
    struct counter_rng_block block = counter_rng_philox((struct counter_rng_block){{7, 3, 0, 0}}, 0x55667788, 0x11223344);
    uint64_t want = block.word[0] | (uint64_t)block.word[1] << 32;
    assert_int_equal(counter_rng_draw(0x1122334455667788u, 3, 7), want);
    assert_true(counter_rng_draw(1, 0, 1) != counter_rng_draw(1, 1, 0));
}

/* xoshiro256** from the state 1, 2, 3, 4 gives the outputs of the authors' code. */
static void xoshiro_gives_the_published_outputs(void **state)
{
    (void)state;
    struct rng rng = {{1, 2, 3, 4}};
    static const uint64_t want[] = {11520u, 0u, 1509978240u, 1215971899390074240u, 1216172134540287360u,
                                    607988272756665600u, 16172922978634559625u, 8476171486693032832u,
                                    10595114339597558777u, 2904607092377533576u};
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) { assert_true(rng_next(&rng) == want[i]); }
}

/* splitmix64 from 1234567 gives its well-known first outputs. */
static void splitmix_gives_the_published_outputs(void **state)
{
    (void)state;
    uint64_t seed = 1234567;
    assert_true(rng_splitmix64(&seed) == 6457827717110365317u);
    assert_true(rng_splitmix64(&seed) == 3203168211198807973u);
    assert_true(rng_splitmix64(&seed) == 9817491932198370423u);
}

/* rng_below stays below, reaches every value evenly, and takes the edge bounds. */
static void below_is_even(void **state)
{
    (void)state;
    struct rng rng = rng_init(1);
    uint32_t seen[7] = {0};
    for (unsigned i = 0; i < 70000; i++) { seen[rng_below(&rng, 7)]++; }
    double chi = 0;
    for (unsigned i = 0; i < 7; i++) { chi += (seen[i] - 10000.0) * (seen[i] - 10000.0) / 10000.0; }
    assert_true(chi < 22.46); /* chi-square, 6 degrees of freedom, 0.999 */
    assert_int_equal(rng_below(&rng, 1), 0);
    for (unsigned i = 0; i < 100; i++) { assert_true(rng_below(&rng, 0x8000000000000001u) <= 0x8000000000000000u); }
}

/* rng_unit is in [0, 1) and centred; equal seeds agree, others do not. */
static void unit_and_seed(void **state)
{
    (void)state;
    struct rng a = rng_init(5), b = rng_init(5), c = rng_init(6);
    double sum = 0;
    for (unsigned i = 0; i < 10000; i++) {
        double u = rng_unit(&a);
        assert_true(u >= 0.0 && u < 1.0);
        assert_true(u == rng_unit(&b));
        sum += u;
    }
    assert_true(sum > 4885 && sum < 5115); /* 4 standard deviations of 29 */
    assert_true(rng_next(&a) != rng_next(&c));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_published_answers), cmocka_unit_test(draw_maps_its_key_as_promised),
        cmocka_unit_test(xoshiro_gives_the_published_outputs), cmocka_unit_test(splitmix_gives_the_published_outputs),
        cmocka_unit_test(below_is_even), cmocka_unit_test(unit_and_seed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
