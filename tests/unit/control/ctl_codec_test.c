/* Claims on the codec of the Attach stream: what is encoded comes back, what is malformed is
 * refused with its reason, and a settled codec allocates nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "control/ctl_codec.h"
#include "tests/unit/control/ctl_samples.h"
#include "tests/unit/heap/counting_heap.h"

static struct ctl_codec *open_codec(size_t bytes_max)
{
    struct ctl_codec *codec;
    assert_false(failed(ctl_codec_create(bytes_max, &codec)));
    return codec;
}

static enum ctl_direction direction_of(const struct ctl_msg *msg)
{
    return msg->kind >= CTL_NODE_HELLO ? CTL_FROM_NODE : CTL_FROM_ROUTER;
}

/* Every kind comes back field by field, with empty arrays and with full ones. */
static void every_kind_round_trips(void **state)
{
    (void)state;
    struct ctl_codec *sender = open_codec(1 << 20), *receiver = open_codec(1 << 20);
    for (enum ctl_kind kind = CTL_ROUTER_HELLO; kind < CTL_KIND_COUNT; kind++) {
        for (uint64_t seed = 0; seed < 200; seed++) {
            struct rng rng = rng_init(seed * 100 + kind);
            struct ctl_msg msg, copy;
            const uint8_t *bytes;
            size_t byte_count;
            struct diag diag = {{0}};
            ctl_sample(kind, &rng, &msg);
            assert_false(failed(ctl_codec_encode(sender, &msg, &bytes, &byte_count)));
            status_t st = ctl_codec_decode(receiver, direction_of(&msg), bytes, byte_count, &copy, &diag);
            if (failed(st)) { fail_msg("%s: %s", ctl_kind_name(kind), diag.text); }
            const char *differs = ctl_difference(&msg, &copy);
            if (differs) { fail_msg("%s of seed %lu differs in %s", ctl_kind_name(kind), (unsigned long)seed, differs); }
        }
    }
    ctl_codec_destroy(sender);
    ctl_codec_destroy(receiver);
    ctl_codec_destroy(NULL);
}

/* A message cut anywhere, with any byte changed, or read as the other direction's, is refused or
 * read as something whole; never a crash. What is refused changes nothing and has a reason. */
static void damage_is_refused_or_harmless(void **state)
{
    (void)state;
    struct ctl_codec *sender = open_codec(1 << 16), *receiver = open_codec(1 << 16);
    struct rng rng = rng_init(5);
    unsigned refused = 0;
    for (enum ctl_kind kind = CTL_ROUTER_HELLO; kind < CTL_KIND_COUNT; kind++) {
        struct ctl_msg msg;
        const uint8_t *bytes;
        size_t byte_count;
        ctl_sample(kind, &rng, &msg);
        assert_false(failed(ctl_codec_encode(sender, &msg, &bytes, &byte_count)));
        for (size_t i = 0; i < 400; i++) {
            size_t len = i % 2 ? byte_count : rng_below(&rng, byte_count + 1);
            uint8_t *damaged = malloc(len + 1);
            memcpy(damaged, bytes, len);
            if (i % 2 && len > 0) { damaged[rng_below(&rng, len)] ^= (uint8_t)(1u << rng_below(&rng, 8)); }
            struct ctl_msg copy = {.kind = CTL_NONE};
            struct diag diag = {{0}};
            enum ctl_direction direction = rng_below(&rng, 4) ? direction_of(&msg) : CTL_FROM_ROUTER;
            status_t st = ctl_codec_decode(receiver, direction, damaged, len, &copy, &diag);
            if (failed(st)) {
                refused++;
                assert_int_equal(st.code, ST_INVALID_ARGUMENT);
                assert_int_equal(st.scope, SCOPE_PEER);
                assert_true(strlen(diag.text) > strlen("Attach message: "));
                assert_int_equal(copy.kind, CTL_NONE);
            } else {
                assert_true(copy.kind > CTL_NONE && copy.kind < CTL_KIND_COUNT);
            }
            free(damaged);
        }
    }
    assert_true(refused > 500);
    ctl_codec_destroy(sender);
    ctl_codec_destroy(receiver);
}

/* A required submessage that is missing, and a count past its bound, are named. */
static void what_is_missing_is_named(void **state)
{
    (void)state;
    static const struct { enum ctl_direction direction; uint8_t bytes[12]; size_t count; const char *reason; } cases[] = {
        {CTL_FROM_ROUTER, {0}, 0, "of no kind"},
        {CTL_FROM_NODE, {0}, 0, "of no kind"},
        {CTL_FROM_ROUTER, {0x12, 0x00}, 2, "no work"},                      /* reserve {} */
        {CTL_FROM_ROUTER, {0x12, 0x02, 0x0a, 0x00}, 4, "work without a leg"},
        {CTL_FROM_ROUTER, {0x12, 0x04, 0x0a, 0x02, 0x0a, 0x00}, 6, "without sampling parameters"},
        {CTL_FROM_ROUTER, {0x1a, 0x00}, 2, "no work"},                      /* prefill {} */
        {CTL_FROM_ROUTER, {0x2a, 0x00}, 2, "a cancel without a leg"},
        {CTL_FROM_NODE, {0x0a, 0x00}, 2, "model_hash is not 32 bytes"},
        {CTL_FROM_NODE, {0x12, 0x00}, 2, "a reservation without a leg"},
        {CTL_FROM_NODE, {0x1a, 0x00}, 2, "a failure without a leg"},
        {CTL_FROM_NODE, {0x1a, 0x02, 0x0a, 0x00}, 4, "a code that is none"}, /* OK is no failure */
        {CTL_FROM_NODE, {0x3a, 0x04, 0x0a, 0x00, 0x10, 0x11}, 6, "a code that is none"},
        {CTL_FROM_NODE, {0x22, 0x00}, 2, "log-probabilities without a leg"},
        {CTL_FROM_NODE, {0x2a, 0x02, 0x0a, 0x00}, 4, "a token without a leg"},
        {CTL_FROM_NODE, {0x2a, 0x06, 0x0a, 0x04, 0x0a, 0x00, 0x28, 0x03}, 8, "a finish reason that is none"},
        {CTL_FROM_NODE, {0x32, 0x00}, 2, "a finished prefill without a leg"},
        {CTL_FROM_NODE, {0x22, 0x09, 0x0a, 0x00, 0x1a, 0x05, 0x1a, 0x01, 0x07, 0x10, 0x01}, 11, "without their log-prob"},
        {CTL_FROM_NODE, {0x0a, 0x05}, 2, "not a protobuf message"},
    };
    struct ctl_codec *codec = open_codec(4096);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct ctl_msg msg;
        struct diag diag = {{0}};
        status_t st = ctl_codec_decode(codec, cases[i].direction, cases[i].bytes, cases[i].count, &msg, &diag);
        assert_int_equal(st.code, ST_INVALID_ARGUMENT);
        if (!strstr(diag.text, cases[i].reason)) { fail_msg("case %zu: \"%s\" not in \"%s\"", i, cases[i].reason, diag.text); }
    }
    ctl_codec_destroy(codec);
}

/* More than the limit is refused either way; a bomb of empty submessages stays within the
 * decoder's memory and is refused; the codec works on after each. */
static void limits_hold(void **state)
{
    (void)state;
    enum { LIMIT = 4096 };
    static uint32_t prompt[LIMIT * 2];
    struct ctl_codec *codec = open_codec(LIMIT);
    struct rng rng = rng_init(1);
    struct ctl_msg msg, copy;
    struct diag diag = {{0}};
    const uint8_t *bytes;
    size_t byte_count;
    ctl_sample(CTL_RESERVE, &rng, &msg);
    for (size_t i = 0; i < LIMIT * 2; i++) { prompt[i] = 1; }
    msg.reserve.work.prompt = prompt;
    msg.reserve.work.prompt_count = LIMIT;
    status_t st = ctl_codec_encode(codec, &msg, &bytes, &byte_count);
    assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
    msg.reserve.work.prompt_count = 100;
    assert_false(failed(ctl_codec_encode(codec, &msg, &bytes, &byte_count)));

    uint8_t bomb[LIMIT + 1];
    st = ctl_codec_decode(codec, CTL_FROM_NODE, bomb, LIMIT + 1, &copy, &diag);
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "larger than the limit"));
    bomb[0] = 0x2a; /* tokens, of 2 * 2046 bytes */
    bomb[1] = 0x80 | (4090 & 0x7f);
    bomb[2] = 4090 >> 7;
    for (size_t i = 3; i < LIMIT; i += 2) { bomb[i] = 0x0a; bomb[i + 1] = 0x00; }
    st = ctl_codec_decode(codec, CTL_FROM_NODE, bomb, 3 + 4090, &copy, &diag);
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
    assert_false(failed(ctl_codec_decode(codec, CTL_FROM_ROUTER, bytes, byte_count, &copy, &diag)));
    assert_int_equal(copy.reserve.work.prompt_count, 100);
    ctl_codec_destroy(codec);
}

/* An honest message of the worst ratio, log-probabilities without alternatives, fits at the limit. */
static void the_densest_honest_message_fits(void **state)
{
    (void)state;
    enum { LIMIT = 1 << 16, COUNT = LIMIT / 10 };
    static struct token_logprob entries[COUNT];
    struct ctl_codec *codec = open_codec(LIMIT);
    struct ctl_msg msg = {.kind = CTL_PROMPT_LOGPROBS}, copy;
    struct diag diag = {{0}};
    const uint8_t *bytes;
    size_t byte_count;
    for (size_t i = 0; i < COUNT; i++) { entries[i] = (struct token_logprob){.logprob = -1, .rank = 1}; }
    msg.prompt_logprobs = (struct ctl_prompt_logprobs){.first = 1, .count = COUNT, .entries = entries};
    assert_false(failed(ctl_codec_encode(codec, &msg, &bytes, &byte_count)));
    assert_true(byte_count > LIMIT * 8 / 10);
    status_t st = ctl_codec_decode(codec, CTL_FROM_NODE, bytes, byte_count, &copy, &diag);
    if (failed(st)) { fail_msg("%s", diag.text); }
    assert_int_equal(copy.prompt_logprobs.count, COUNT);
    ctl_codec_destroy(codec);
}

/* After the first rounds, encoding and decoding every kind calls malloc no more. */
static void a_settled_codec_allocates_nothing(void **state)
{
    (void)state;
    struct ctl_codec *codec = open_codec(1 << 20);
    uint64_t settled = 0;
    for (int round = 0; round < 100; round++) {
        if (round == 10) { settled = heap_allocations(); }
        struct rng rng = rng_init(3);
        for (enum ctl_kind kind = CTL_ROUTER_HELLO; kind < CTL_KIND_COUNT; kind++) {
            struct ctl_msg msg, copy;
            struct diag diag = {{0}};
            const uint8_t *bytes;
            size_t byte_count;
            ctl_sample(kind, &rng, &msg);
            assert_false(failed(ctl_codec_encode(codec, &msg, &bytes, &byte_count)));
            assert_false(failed(ctl_codec_decode(codec, direction_of(&msg), bytes, byte_count, &copy, &diag)));
        }
    }
    assert_true(settled > 0); /* the counter counts */
    assert_int_equal(heap_allocations(), settled);
    ctl_codec_destroy(codec);
}

/* Every kind has a name of its own. */
static void kinds_have_names(void **state)
{
    (void)state;
    for (int i = 0; i < CTL_KIND_COUNT; i++) {
        for (int k = 0; k < i; k++) { assert_string_not_equal(ctl_kind_name((enum ctl_kind)i), ctl_kind_name((enum ctl_kind)k)); }
    }
    assert_string_equal(ctl_kind_name(CTL_LOAD), "LOAD");
    assert_string_equal(ctl_kind_name(CTL_RESERVE), "RESERVE");
    assert_string_equal(ctl_kind_name(CTL_KIND_COUNT), "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_round_trips),          cmocka_unit_test(damage_is_refused_or_harmless),
        cmocka_unit_test(what_is_missing_is_named),        cmocka_unit_test(limits_hold),
        cmocka_unit_test(the_densest_honest_message_fits), cmocka_unit_test(a_settled_codec_allocates_nothing),
        cmocka_unit_test(kinds_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
