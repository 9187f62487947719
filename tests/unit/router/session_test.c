/* Claim: what a client reads is final, complete, once, and says why it ended; and the bytes
 * are those that the generated code of inference.proto reads. */
#include "tests/unit/router/router_testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/baton/v1/inference.pb-c.h"
#include "router/session.h"

static const uint32_t eos_list[] = {TOKEN_EOS};

struct bench {
    struct tokenizer *tokenizer;
    struct session *session;
    struct pb_writer writer;
    char text[4][4096];
    size_t text_len[4];
    uint32_t ids[4][4096], id_count[4];
    uint32_t messages, finish[4];
    Baton__V1__GenerateResponse *last;
};

static struct sampling_params params_of(uint32_t max_tokens)
{
    struct sampling_params params = sampling_params_default();
    params.max_tokens = max_tokens;
    params.seed = 7;
    return params;
}

static void start(struct bench *bench, const struct sampling_params *params, const char *stop, bool include_stop)
{
    struct request_spec spec = {.prompt_count = 2, .params = *params, .include_stop = include_stop};
    spec.prompt = malloc(2 * sizeof *spec.prompt);
    assert_non_null(spec.prompt);
    spec.prompt[0] = TOKEN_BYTE('h');
    spec.prompt[1] = TOKEN_BYTE('i');
    if (stop) {
        spec.stop_count = 1;
        spec.stops[0] = (struct stop_string){.bytes = stop, .len = strlen(stop)};
    }
    struct session_model model = {.tokenizer = bench->tokenizer, .eos = {.token = eos_list, .count = 1},
                                  .context_tokens = TESTING_CONTEXT};
    assert_false(failed(session_create(&model, &spec, 1000000, &bench->session)));
    assert_null(spec.prompt); /* taken */
    session_set_id(bench->session, "r-1");
}

static bool push(struct bench *bench, uint32_t sequence, uint32_t token)
{
    struct ctl_token message = {.sequence = sequence, .token = token};
    bool stopped;
    assert_false(failed(session_token(bench->session, &message, 2000000, &stopped)));
    return stopped;
}

static void end(struct bench *bench, uint32_t sequence, uint32_t token, uint8_t finish)
{
    struct ctl_token message = {.sequence = sequence, .token = token, .finish = finish};
    assert_false(failed(session_sequence_end(bench->session, &message)));
}

static void finish(struct bench *bench)
{
    struct session_route route = {.prefill_node = "p0", .decode_node = "d0", .transport = "shm", .kv_bytes = 640,
                                  .resumes = 1, .prefill_queue_ns = 1000000, .prefill_compute_ns = 2000000,
                                  .transfer_ns = 3000000, .cached_prompt_tokens = 1, .prefill_cached_tokens = 4};
    session_finish(bench->session, true, &route, 5000000);
}

/* Reads the next message; false: there is none. */
static bool read_one(struct bench *bench)
{
    bench->writer.len = 0;
    if (!session_pack(bench->session, &bench->writer)) { return false; }
    session_sent(bench->session);
    if (bench->last) { baton__v1__generate_response__free_unpacked(bench->last, NULL); }
    bench->last = baton__v1__generate_response__unpack(NULL, bench->writer.len, bench->writer.bytes);
    assert_non_null(bench->last);
    uint32_t index = bench->last->index;
    assert_in_range(index, 0, 3);
    size_t len = strlen(bench->last->text);
    memcpy(bench->text[index] + bench->text_len[index], bench->last->text, len + 1);
    bench->text_len[index] += len;
    for (size_t i = 0; i < bench->last->n_token_ids; i++) {
        bench->ids[index][bench->id_count[index]++] = bench->last->token_ids[i];
    }
    if (bench->last->finish_reason) { bench->finish[index] = bench->last->finish_reason; }
    bench->messages++;
    return true;
}

static void read_all(struct bench *bench)
{
    while (read_one(bench)) {}
}

static int set_up(void **state)
{
    struct bench *bench = calloc(1, sizeof *bench);
    assert_non_null(bench);
    bench->tokenizer = testing_tokenizer();
    *state = bench;
    return 0;
}

static int tear_down(void **state)
{
    struct bench *bench = *state;
    session_destroy(bench->session);
    if (bench->last) { baton__v1__generate_response__free_unpacked(bench->last, NULL); }
    pb_writer_fini(&bench->writer);
    tokenizer_destroy(bench->tokenizer);
    free(bench);
    return 0;
}

/* A stop string that two tokens make together ends the sequence; neither part is shown. */
static void a_stop_across_tokens_is_not_shown(void **state)
{
    struct bench *bench = *state;
    struct sampling_params params = params_of(16);
    start(bench, &params, "stop!", false);
    assert_false(push(bench, 0, TOKEN_BYTE('a')));
    assert_false(push(bench, 0, TOKEN_STO));
    read_all(bench);
    assert_string_equal(bench->text[0], "a"); /* "sto" may still become the stop */
    assert_true(push(bench, 0, TOKEN_P));
    assert_false(push(bench, 0, TOKEN_BYTE('z'))); /* late: ignored */
    finish(bench);
    read_all(bench);
    assert_string_equal(bench->text[0], "a");
    assert_int_equal(bench->id_count[0], 3);
    assert_int_equal(bench->finish[0], BATON__V1__FINISH_REASON__FINISH_REASON_STOP);
    assert_string_equal(bench->last->stop_text, "stop!");
    assert_null(bench->last->stop_token);
    assert_non_null(bench->last->usage);
    assert_int_equal(bench->last->usage->completion_tokens, 3);
    assert_true(session_is_flushed(bench->session));
}

/* include_stop shows the stop and nothing after it. */
static void include_stop_shows_it(void **state)
{
    struct bench *bench = *state;
    struct sampling_params params = params_of(16);
    start(bench, &params, "top", true);
    (void)push(bench, 0, TOKEN_STO);
    assert_true(push(bench, 0, TOKEN_P));
    finish(bench);
    read_all(bench);
    assert_string_equal(bench->text[0], "stop");
}

/* The end token is among the ids; its text is not shown, nor named as a stop token. */
static void the_end_token_is_hidden(void **state)
{
    struct bench *bench = *state;
    struct sampling_params params = params_of(16);
    start(bench, &params, NULL, true);
    (void)push(bench, 0, TOKEN_BYTE('a'));
    (void)push(bench, 0, TOKEN_EOS);
    end(bench, 0, TOKEN_EOS, FINISH_STOP);
    finish(bench);
    read_all(bench);
    assert_string_equal(bench->text[0], "a");
    assert_int_equal(bench->id_count[0], 2);
    assert_int_equal(bench->ids[0][1], TOKEN_EOS);
    assert_string_equal(bench->last->stop_text, "");
    assert_null(bench->last->stop_token);
}

/* A stop token of the request is named, and shown only with include_stop. */
static void a_stop_token_is_named(void **state)
{
    struct bench *bench = *state;
    static const uint32_t stops[] = {TOKEN_BYTE('x')};
    for (int include = 0; include < 2; include++) {
        struct sampling_params params = params_of(16);
        params.stop_tokens = stops;
        params.stop_token_count = 1;
        session_destroy(bench->session);
        bench->text_len[0] = 0;
        start(bench, &params, NULL, include == 1);
        (void)push(bench, 0, TOKEN_BYTE('a'));
        (void)push(bench, 0, TOKEN_BYTE('x'));
        end(bench, 0, TOKEN_BYTE('x'), FINISH_STOP);
        finish(bench);
        read_all(bench);
        assert_string_equal(bench->text[0], include ? "ax" : "a");
        assert_non_null(bench->last->stop_token);
        assert_int_equal(bench->last->stop_token->value, TOKEN_BYTE('x'));
    }
}

/* Before min_tokens neither a stop text nor a stop token ends anything. */
static void min_tokens_holds_stops_off(void **state)
{
    struct bench *bench = *state;
    struct sampling_params params = params_of(16);
    params.min_tokens = 2;
    start(bench, &params, "p!", false);
    assert_false(push(bench, 0, TOKEN_STO));
    assert_false(push(bench, 0, TOKEN_P));
    assert_true(push(bench, 0, TOKEN_P));
    finish(bench);
    read_all(bench);
    assert_string_equal(bench->text[0], "stop!");
}

/* A character in three tokens is shown when it is whole; half of one at the end as U+FFFD. */
static void half_characters_are_held(void **state)
{
    struct bench *bench = *state;
    struct sampling_params params = params_of(5);
    start(bench, &params, NULL, false);
    const uint8_t snowman[] = {0xe2, 0x98, 0x83, 0xe2, 0x98};
    for (unsigned i = 0; i < 5; i++) {
        (void)push(bench, 0, TOKEN_BYTE(snowman[i]));
        read_all(bench);
        assert_string_equal(bench->text[0], i < 2 ? "" : "\xe2\x98\x83");
    }
    end(bench, 0, TOKEN_BYTE(0x98), FINISH_LENGTH);
    finish(bench);
    read_all(bench);
    assert_string_equal(bench->text[0], "\xe2\x98\x83\xef\xbf\xbd");
    assert_int_equal(bench->finish[0], BATON__V1__FINISH_REASON__FINISH_REASON_LENGTH);
}

/* Tokens that nobody read yet leave in one message; head first, tail last, both once. */
static void pending_tokens_merge(void **state)
{
    struct bench *bench = *state;
    struct sampling_params params = params_of(1000);
    start(bench, &params, NULL, false);
    for (unsigned i = 0; i < 1000; i++) { (void)push(bench, 0, TOKEN_BYTE('a' + (char)(i % 26))); }
    assert_true(read_one(bench));
    assert_int_equal(bench->messages, 1);
    assert_int_equal(bench->id_count[0], 1000);
    assert_int_equal(bench->last->n_prompt_token_ids, 2);
    assert_string_equal(bench->last->request_id, "r-1");
    assert_int_equal(bench->last->seed, 7);
    assert_null(bench->last->usage);
    assert_false(read_one(bench));
    end(bench, 0, 0, FINISH_LENGTH);
    finish(bench);
    assert_true(read_one(bench));
    assert_int_equal(bench->last->n_prompt_token_ids, 0);
    assert_string_equal(bench->last->request_id, "");
    assert_int_equal(bench->last->usage->prompt_tokens, 2);
    assert_int_equal(bench->last->usage->completion_tokens, 1000);
    assert_int_equal(bench->last->usage->cached_prompt_tokens, 1);
    const Baton__V1__Route *route = bench->last->route;
    assert_string_equal(route->prefill_node, "p0");
    assert_string_equal(route->decode_node, "d0");
    assert_string_equal(route->transport, "shm");
    assert_int_equal(route->kv_bytes, 640);
    assert_int_equal(route->resumes, 1);
    assert_int_equal(route->prefill_cached_tokens, 4);
    assert_true(route->prefill_queue_ms == 1 && route->prefill_ms == 2 && route->transfer_ms == 3);
    assert_true(route->ttft_ms == 1 && route->total_ms == 4);
    assert_false(read_one(bench));
}

/* A message that found no room is packed again with what came meanwhile; nothing is lost. */
static void an_unsent_message_is_packed_again(void **state)
{
    struct bench *bench = *state;
    struct sampling_params params = params_of(10);
    start(bench, &params, NULL, false);
    (void)push(bench, 0, TOKEN_BYTE('a'));
    assert_true(session_pack(bench->session, &bench->writer));
    (void)push(bench, 0, TOKEN_BYTE('b'));
    read_all(bench);
    assert_string_equal(bench->text[0], "ab");
    assert_int_equal(bench->id_count[0], 2);
}

/* Two sequences end by themselves; usage comes once, with the very last message. */
static void two_sequences_have_one_tail(void **state)
{
    struct bench *bench = *state;
    struct sampling_params params = params_of(10);
    params.n = 2;
    start(bench, &params, NULL, false);
    (void)push(bench, 0, TOKEN_BYTE('a'));
    (void)push(bench, 1, TOKEN_BYTE('b'));
    end(bench, 0, 0, FINISH_LENGTH);
    end(bench, 1, 0, FINISH_LENGTH);
    finish(bench);
    assert_true(read_one(bench));
    assert_null(bench->last->usage);
    assert_true(read_one(bench));
    assert_non_null(bench->last->usage);
    assert_false(read_one(bench));
    assert_string_equal(bench->text[0], "a");
    assert_string_equal(bench->text[1], "b");
}

/* Logprobs: one per token, texts are valid UTF-8 even where a token is half a character. */
static void logprobs_are_one_per_token(void **state)
{
    struct bench *bench = *state;
    struct sampling_params params = params_of(10);
    params.logprobs = 2;
    params.prompt_logprobs = 0;
    start(bench, &params, NULL, false);
    struct token_logprob prompt_entry = {.logprob = -0.5f, .rank = 3};
    struct ctl_prompt_logprobs prompt = {.first = 1, .count = 1, .entries = &prompt_entry};
    assert_false(failed(session_prompt_logprobs(bench->session, &prompt)));
    struct ctl_token token = {.token = TOKEN_BYTE(0xe2), .has_logprob = true,
                              .logprob = {.logprob = -1.5f, .rank = 1, .alternative_count = 2,
                                          .alternatives = {{TOKEN_BYTE(0xe2), -1.5f}, {TOKEN_SNOW, -2.5f}}}};
    bool stopped;
    assert_false(failed(session_token(bench->session, &token, 2000000, &stopped)));
    read_all(bench);
    assert_int_equal(bench->messages, 1);
    assert_int_equal(bench->last->n_logprobs, 1);
    const Baton__V1__TokenLogprob *first = bench->last->logprobs[0];
    assert_string_equal(first->text, "\xef\xbf\xbd");
    assert_true(first->logprob == -1.5f);
    assert_int_equal(first->n_alternatives, 2);
    assert_string_equal(first->alternatives[1]->text, "\xe2\x98\x83");
    assert_int_equal(first->alternatives[1]->rank, 2);
    assert_int_equal(bench->last->n_prompt_logprobs, 1);
    assert_int_equal(bench->last->prompt_logprobs[0]->token, TOKEN_BYTE('i'));
    assert_int_equal(bench->last->prompt_logprobs[0]->rank, 3);
}

/* Logprobs of many tokens go into several messages, each below what clients take. */
static void logprobs_are_split_by_bytes(void **state)
{
    struct bench *bench = *state;
    struct sampling_params params = params_of(1000);
    params.logprobs = 20;
    start(bench, &params, NULL, false);
    struct ctl_token token = {.token = TOKEN_LONG, .has_logprob = true, .logprob = {.alternative_count = 20}};
    for (unsigned i = 0; i < 20; i++) { token.logprob.alternatives[i].token = TOKEN_LONG; }
    bool stopped;
    for (unsigned i = 0; i < 1000; i++) {
        assert_false(failed(session_token(bench->session, &token, 2000000 + i, &stopped)));
    }
    end(bench, 0, TOKEN_LONG, FINISH_LENGTH);
    finish(bench);
    size_t logprobs = 0, tails = 0;
    bench->writer.len = 0;
    while (session_pack(bench->session, &bench->writer)) {
        session_sent(bench->session);
        assert_in_range(bench->writer.len, 1, 3u << 20);
        Baton__V1__GenerateResponse *response =
            baton__v1__generate_response__unpack(NULL, bench->writer.len, bench->writer.bytes);
        assert_non_null(response);
        assert_int_equal(response->n_logprobs, response->n_token_ids);
        logprobs += response->n_logprobs;
        tails += response->usage != NULL;
        assert_int_equal(response->finish_reason != 0, logprobs == 1000);
        baton__v1__generate_response__free_unpacked(response, NULL);
        bench->writer.len = 0;
    }
    assert_int_equal(logprobs, 1000);
    assert_int_equal(tails, 1);
}

/* A NUL in the output is a character like any other. */
static void a_nul_does_not_cut_the_text(void **state)
{
    struct bench *bench = *state;
    struct sampling_params params = params_of(10);
    start(bench, &params, NULL, false);
    (void)push(bench, 0, TOKEN_BYTE('a'));
    (void)push(bench, 0, TOKEN_BYTE(0));
    (void)push(bench, 0, TOKEN_BYTE('b'));
    assert_true(session_pack(bench->session, &bench->writer));
    const uint8_t *text;
    size_t len;
    assert_true(pb_find_bytes(bench->writer.bytes, bench->writer.len, 2, &text, &len));
    assert_int_equal(len, 3);
    assert_memory_equal(text, "a\0b", 3);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_stop_across_tokens_is_not_shown), T(include_stop_shows_it), T(the_end_token_is_hidden),
        T(a_stop_token_is_named), T(min_tokens_holds_stops_off), T(half_characters_are_held), T(pending_tokens_merge),
        T(an_unsent_message_is_packed_again), T(two_sequences_have_one_tail), T(logprobs_are_one_per_token), T(logprobs_are_split_by_bytes),
        T(a_nul_does_not_cut_the_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
