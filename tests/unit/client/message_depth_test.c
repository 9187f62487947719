/* Claims on message_depth: what a router of Baton sends is read as the library reads it, what is nested
 * to end the stack is refused with a reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/message_depth.h"
#include "proto/baton/v1/inference.pb-c.h"

#define DESCRIPTOR (&baton__v1__generate_response__descriptor)
enum { LOGPROBS_TAG = 4 << 3 | 2, ALTERNATIVES_TAG = 5 << 3 | 2 };

static struct diag diag;

static bool reads(const uint8_t *bytes, size_t len)
{
    ProtobufCMessage *message;
    diag = (struct diag){{0}};
    status_t st = message_unpack_shallow(DESCRIPTOR, bytes, len, &message, &diag);
    if (failed(st)) {
        assert_int_equal(st.code, ST_DATA_LOSS);
        assert_null(message);
        assert_true(diag.text[0] != '\0');
        return false;
    }
    protobuf_c_message_free_unpacked(message, NULL);
    return true;
}

/* A response of `depth` messages in each other, from the innermost, empty one outwards: it ends at the
 * end of bytes[size]. Returns where it begins. */
static size_t nest(uint8_t *bytes, size_t size, uint32_t depth)
{
    size_t at = size;
    for (uint32_t level = depth; level > 1; level--) {
        uint8_t head[6] = {level == 2 ? LOGPROBS_TAG : ALTERNATIVES_TAG};
        size_t head_len = 1, len = size - at;
        for (; len >= 0x80; len >>= 7) { head[head_len++] = (uint8_t)(len | 0x80); }
        head[head_len++] = (uint8_t)len;
        assert_true(at >= head_len);
        at -= head_len;
        memcpy(bytes + at, head, head_len);
    }
    return at;
}

/* Eight levels are read, nine are not, nor a million, which would end the stack. */
static void nesting_has_an_end(void **state)
{
    (void)state;
    size_t size = 6u << 20;
    uint8_t *bytes = malloc(size);
    assert_non_null(bytes);
    for (uint32_t depth = 1; depth <= MESSAGE_DEPTH_MAX; depth++) {
        size_t at = nest(bytes, size, depth);
        assert_true(reads(bytes + at, size - at));
    }
    static const uint32_t too_deep[] = {MESSAGE_DEPTH_MAX + 1, 1000, 1000000};
    for (size_t i = 0; i < sizeof too_deep / sizeof too_deep[0]; i++) {
        size_t at = nest(bytes, size, too_deep[i]);
        assert_false(reads(bytes + at, size - at));
        assert_non_null(strstr(diag.text, "more than 8 messages in each other"));
    }
    /* Not at the beginning, and behind something that is in order. */
    size_t at = nest(bytes, size, MESSAGE_DEPTH_MAX + 1);
    static const uint8_t first[] = {LOGPROBS_TAG, 2, 1 << 3, 7, 3 << 3, 1};
    at -= sizeof first;
    memcpy(bytes + at, first, sizeof first);
    assert_false(reads(bytes + at, size - at));
    /* The same bytes as a text are a text. */
    at = nest(bytes, size, 20);
    assert_true(size - at < 0x80);
    bytes[at] = 3 << 3 | 2;
    assert_true(reads(bytes + at, size - at));
    free(bytes);
}

/* Whatever is cut off or changed in a byte: read where the library reads it, and else refused. */
static void it_agrees_with_the_library(void **state)
{
    (void)state;
    uint32_t ids[] = {3, 400, 70000};
    char text[] = "once", id[] = "r-1";
    Baton__V1__TokenLogprob likely = BATON__V1__TOKEN_LOGPROB__INIT, chosen = BATON__V1__TOKEN_LOGPROB__INIT;
    Baton__V1__TokenLogprob *alternatives[] = {&likely}, *logprobs[] = {&chosen, &likely};
    Baton__V1__Usage usage = BATON__V1__USAGE__INIT;
    likely.text = text;
    likely.logprob = -0.5f;
    chosen.rank = 300;
    chosen.n_alternatives = 1;
    chosen.alternatives = alternatives;
    usage.prompt_tokens = 900;
    Baton__V1__GenerateResponse response = BATON__V1__GENERATE_RESPONSE__INIT;
    response.token_ids = ids;
    response.n_token_ids = 3;
    response.logprobs = logprobs;
    response.n_logprobs = 2;
    response.usage = &usage;
    response.request_id = id;
    response.seed = UINT64_MAX;
    uint8_t bytes[256];
    size_t len = baton__v1__generate_response__get_packed_size(&response);
    assert_in_range(len, 50, sizeof bytes);
    baton__v1__generate_response__pack(&response, bytes);
    uint32_t refused = 0;
    for (size_t cut = 0; cut <= len; cut++) {
        ProtobufCMessage *want = protobuf_c_message_unpack(DESCRIPTOR, NULL, cut, bytes);
        refused += want == NULL;
        assert_int_equal(reads(bytes, cut), want != NULL);
        if (want) { protobuf_c_message_free_unpacked(want, NULL); }
    }
    for (size_t i = 0; i < len * 255; i++) {
        uint8_t change = (uint8_t)(i % 255 + 1);
        bytes[i / 255] ^= change;
        ProtobufCMessage *want = protobuf_c_message_unpack(DESCRIPTOR, NULL, len, bytes);
        refused += want == NULL;
        if (reads(bytes, len) != (want != NULL)) { fail_msg("byte %zu ^ %u: the library says %d", i / 255, change, want != NULL); }
        if (want) { protobuf_c_message_free_unpacked(want, NULL); }
        bytes[i / 255] ^= change;
    }
    assert_in_range(refused, 100, len * 255);
    assert_true(reads(NULL, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nesting_has_an_end),
        cmocka_unit_test(it_agrees_with_the_library),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
