/* Claims on api_call and answer over a real connection: every message in order however slowly it
 * is read, the call's status with what to do, and a router that talks nonsense does no harm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "client/answer.h"
#include "client/api_call.h"
#include "rpc/rpc.h"

/* ---- a router of small behaviours, named by the text of the prompt */

static void reply(struct rpc_call *call, const Baton__V1__GenerateResponse *part)
{
    uint8_t bytes[4096];
    size_t len = baton__v1__generate_response__get_packed_size(part);
    assert_true(len <= sizeof bytes);
    baton__v1__generate_response__pack(part, bytes);
    assert_false(failed(rpc_call_send(call, bytes, len)));
}

static Baton__V1__GenerateResponse part_of(uint32_t index, char *text, uint32_t *ids, size_t id_count)
{
    Baton__V1__GenerateResponse part = BATON__V1__GENERATE_RESPONSE__INIT;
    part.index = index;
    part.text = text;
    part.token_ids = ids;
    part.n_token_ids = id_count;
    return part;
}

/* Two sequences in turns, log-probabilities with a minus infinity and half a character, the end
 * with usage and route, twice. */
static void serve_story(struct rpc_call *call)
{
    uint32_t ids[] = {3, 4, UINT32_MAX};
    Baton__V1__TokenLogprob likely = BATON__V1__TOKEN_LOGPROB__INIT, never = BATON__V1__TOKEN_LOGPROB__INIT;
    Baton__V1__TokenLogprob *alternatives[] = {&likely}, *logprobs[] = {&never, &likely};
    char word[] = "once", half[] = "\xc3", once[] = "Once ", upon[] = "upon", other[] = "Two ", end[] = "END", id[] = "r-1";
    likely.text = word;
    likely.logprob = -0.5f;
    likely.rank = 1;
    never.text = half;
    never.logprob = -1.0f / 0.0f;
    never.token = UINT32_MAX;
    never.alternatives = alternatives;
    never.n_alternatives = 1;
    Baton__V1__GenerateResponse part = part_of(0, once, ids, 1);
    uint32_t prompt_ids[] = {1, 2};
    part.prompt_token_ids = prompt_ids;
    part.n_prompt_token_ids = 2;
    part.request_id = id;
    part.seed = UINT64_MAX;
    part.logprobs = logprobs;
    part.n_logprobs = 2;
    reply(call, &part);
    part = part_of(1, other, ids + 1, 2);
    reply(call, &part);
    part = part_of(0, upon, ids + 1, 1);
    part.finish_reason = BATON__V1__FINISH_REASON__FINISH_REASON_STOP;
    part.stop_text = end;
    reply(call, &part);
    Baton__V1__Usage usage = BATON__V1__USAGE__INIT;
    Baton__V1__Route route = BATON__V1__ROUTE__INIT;
    char prefill[] = "p0", decode[] = "d0", cable[] = "shm";
    usage.prompt_tokens = 2;
    usage.completion_tokens = 4;
    usage.cached_prompt_tokens = 1;
    route.prefill_node = prefill;
    route.decode_node = decode;
    route.transport = cable;
    route.kv_bytes = UINT64_C(5) << 32;
    route.prefill_cached_tokens = 3;
    route.ttft_ms = 1.0 / 0.0;
    part = part_of(1, word, NULL, 0);
    part.finish_reason = BATON__V1__FINISH_REASON__FINISH_REASON_LENGTH;
    part.usage = &usage;
    part.route = &route;
    reply(call, &part);
    reply(call, &part);
    rpc_call_finish_status(call, STATUS_OK, "", 0);
}

enum { FLOOD = 5000 };

static void on_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    (void)user;
    Baton__V1__GenerateRequest *request = baton__v1__generate_request__unpack(NULL, len, bytes);
    assert_non_null(request);
    const char *what = request->prompt_case == BATON__V1__GENERATE_REQUEST__PROMPT_TEXT ? request->text : "";
    char text[16];
    Baton__V1__GenerateResponse part;
    if (strcmp(what, "story") == 0) {
        serve_story(call);
    } else if (strcmp(what, "flood") == 0) {
        struct rpc_send_limits limits = {.messages_max = FLOOD + 1, .bytes_max = 1 << 28};
        rpc_call_set_send_limits(call, &limits);
        for (uint32_t i = 0; i < FLOOD; i++) {
            snprintf(text, sizeof text, "%u", i);
            part = part_of(0, text, &i, 1);
            reply(call, &part);
        }
        rpc_call_finish_status(call, STATUS_OK, "", 0);
    } else if (strcmp(what, "busy") == 0) {
        rpc_call_finish_status(call, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST), "no room; try another router", 250);
    } else if (strcmp(what, "half") == 0) {
        part = part_of(0, strcpy(text, "some"), NULL, 0);
        reply(call, &part);
        rpc_call_finish_status(call, STATUS(ST_UNAVAILABLE, SCOPE_REQUEST), "gone", 0);
    } else if (strcmp(what, "index") == 0) {
        part = part_of(UINT32_MAX, strcpy(text, "x"), NULL, 0);
        reply(call, &part);
        rpc_call_finish_status(call, STATUS_OK, "", 0);
    } else if (strcmp(what, "garbage") == 0) {
        assert_false(failed(rpc_call_send(call, "\xff\xff\xff\xff", 4)));
        rpc_call_finish_status(call, STATUS_OK, "", 0);
    } else if (strcmp(what, "nested") == 0) { /* 9 messages in each other */
        assert_false(failed(rpc_call_send(call, "\x22\x0e\x2a\x0c\x2a\x0a\x2a\x08\x2a\x06\x2a\x04\x2a\x02\x2a", 16)));
        rpc_call_finish_status(call, STATUS_OK, "", 0);
    } else if (strcmp(what, "nothing") == 0) {
        rpc_call_finish_status(call, STATUS_OK, "", 0);
    } /* "hang": no answer */
    baton__v1__generate_request__free_unpacked(request, NULL);
}

static const struct rpc_callbacks callbacks = {.on_message = on_message};

static status_t accept_call(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    (void)service;
    (void)call;
    (void)diag;
    ret_handler->callbacks = &callbacks;
    return STATUS_OK;
}

static struct rpc_runtime *runtime;
static struct rpc_server *server;
static struct api *api;
static struct diag diag;
static struct answer answer;

static int start(void **state)
{
    (void)state;
    const char *listen[] = {"127.0.0.1:0"};
    char target[64];
    struct rpc_server_config config = {.listen = listen, .listen_count = 1};
    assert_false(failed(rpc_runtime_create(1, &runtime)));
    assert_false(failed(rpc_server_create(runtime, &config, &server, &diag)));
    assert_false(failed(rpc_server_register(server, "/baton.v1.Inference/Generate", accept_call, NULL, &diag)));
    assert_false(failed(rpc_server_start(server, &diag)));
    snprintf(target, sizeof target, "127.0.0.1:%u", rpc_server_port(server, 0));
    assert_false(failed(api_open(target, NULL, &api, &diag)));
    return 0;
}

static int stop(void **state)
{
    (void)state;
    api_close(api);
    api_close(NULL);
    rpc_server_destroy(server);
    rpc_runtime_destroy(runtime);
    return 0;
}

static struct api_call *call_with(const char *text, uint64_t deadline_ns)
{
    char copy[32];
    Baton__V1__GenerateRequest request = BATON__V1__GENERATE_REQUEST__INIT;
    struct api_call *call = NULL;
    snprintf(copy, sizeof copy, "%s", text);
    request.prompt_case = BATON__V1__GENERATE_REQUEST__PROMPT_TEXT;
    request.text = copy;
    memset(&diag, 0, sizeof diag);
    assert_false(failed(api_call_start(api, "/baton.v1.Inference/Generate", &request.base, deadline_ns, true, &call, &diag)));
    return call;
}

static status_t read_answer(const char *text)
{
    struct api_call *call = call_with(text, UINT64_MAX);
    answer = (struct answer){.wants_json = true};
    status_t st = answer_read(&answer, call, &diag);
    api_call_end(call);
    return st;
}

/* More messages than the queue holds, read after a pause: all come, in order, then the end. */
static void a_slow_reader_gets_everything(void **state)
{
    (void)state;
    struct api_call *call = call_with("flood", UINT64_MAX);
    clock_sleep_ns(50 * NS_PER_MS);
    for (uint32_t i = 0; i <= FLOOD; i++) {
        ProtobufCMessage *message;
        uint64_t at_ns = 0;
        assert_false(failed(api_call_next(call, &baton__v1__generate_response__descriptor, &message, &at_ns, &diag)));
        if (i == FLOOD) { assert_null(message); break; }
        assert_non_null(message);
        assert_true(at_ns > 0 && at_ns <= clock_now_ns());
        assert_int_equal(((Baton__V1__GenerateResponse *)message)->token_ids[0], i);
        protobuf_c_message_free_unpacked(message, NULL);
    }
    api_call_end(call);
}

/* A call may be ended at any time: unread, half read, or before anything came. */
static void a_call_may_end_early(void **state)
{
    (void)state;
    for (int i = 0; i < 5; i++) {
        struct api_call *call = call_with(i % 2 ? "flood" : "hang", UINT64_MAX);
        ProtobufCMessage *message = NULL;
        if (i == 3) {
            assert_false(failed(api_call_next(call, &baton__v1__generate_response__descriptor, &message, NULL, &diag)));
            protobuf_c_message_free_unpacked(message, NULL);
        }
        if (i == 1) { clock_sleep_ns(30 * NS_PER_MS); }
        api_call_end(call);
    }
    api_call_end(NULL);
}

/* A failure carries the code's name, the router's sentence and its hint; what came before stays. */
static void failures_say_what_to_do(void **state)
{
    (void)state;
    status_t st = read_answer("busy");
    assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
    assert_string_equal(diag.text, "RESOURCE_EXHAUSTED: no room; try another router (retry in 250 ms)");
    answer_fini(&answer);
    st = read_answer("half");
    assert_int_equal(st.code, ST_UNAVAILABLE);
    assert_int_equal(answer.sequence_count, 1);
    assert_string_equal(answer.sequences[0].text, "some");
    answer_fini(&answer);
    struct api_call *call = call_with("hang", clock_now_ns() + 20 * NS_PER_MS);
    ProtobufCMessage *message;
    st = api_call_next(call, &baton__v1__generate_response__descriptor, &message, NULL, &diag);
    assert_int_equal(st.code, ST_DEADLINE_EXCEEDED);
    assert_null(message);
    api_call_end(call);
}

/* A part with an absurd index, bytes that are no message, and messages without end in each other are refused. */
static void nonsense_is_refused(void **state)
{
    (void)state;
    status_t st = read_answer("index");
    assert_int_equal(st.code, ST_DATA_LOSS);
    assert_non_null(strstr(diag.text, "4294967295"));
    answer_fini(&answer);
    st = read_answer("garbage");
    assert_int_equal(st.code, ST_DATA_LOSS);
    assert_non_null(strstr(diag.text, "another version"));
    answer_fini(&answer);
    st = read_answer("nested");
    assert_int_equal(st.code, ST_DATA_LOSS);
    assert_non_null(strstr(diag.text, "in each other"));
    answer_fini(&answer);
}

/* One request, one response: none is an error, and a timeout without end does not wrap. */
static void a_unary_call_needs_an_answer(void **state)
{
    (void)state;
    char text[] = "nothing", story[] = "half";
    Baton__V1__GenerateRequest request = BATON__V1__GENERATE_REQUEST__INIT;
    request.prompt_case = BATON__V1__GENERATE_REQUEST__PROMPT_TEXT;
    request.text = text;
    ProtobufCMessage *message;
    status_t st = api_unary(api, "/baton.v1.Inference/Generate", &request.base, &baton__v1__generate_response__descriptor,
                            UINT64_MAX - 5, &message, &diag);
    assert_int_equal(st.code, ST_INTERNAL);
    assert_null(message);
    request.text = story;
    st = api_unary(api, "/baton.v1.Inference/Generate", &request.base, &baton__v1__generate_response__descriptor,
                   5 * NS_PER_S, &message, &diag);
    assert_false(failed(st));
    protobuf_c_message_free_unpacked(message, NULL);
    st = api_unary(api, "/baton.v1.Inference/Absent", &request.base, &baton__v1__generate_response__descriptor,
                   5 * NS_PER_S, &message, &diag);
    assert_int_equal(st.code, ST_UNIMPLEMENTED);
}

/* Parts of two sequences come together; the JSON has every field of the issue, and null where JSON
 * has no number or text. */
static void an_answer_comes_together(void **state)
{
    (void)state;
    status_t st = read_answer("story");
    if (failed(st)) { fail_msg("%s", diag.text); }
    json_t *object = answer_json(&answer);
    char *printed = json_dumps(object, JSON_COMPACT);
    assert_non_null(printed);
    free(printed);
    assert_string_equal(json_string_value(json_object_get(object, "text")), "Once upon");
    assert_string_equal(json_string_value(json_object_get(object, "finish_reason")), "stop");
    assert_string_equal(json_string_value(json_object_get(object, "stop_text")), "END");
    assert_string_equal(json_string_value(json_object_get(object, "seed")), "18446744073709551615");
    assert_int_equal(json_array_size(json_object_get(object, "token_ids")), 2);
    assert_int_equal(json_array_size(json_object_get(object, "prompt_token_ids")), 2);
    json_t *sequences = json_object_get(object, "sequences");
    assert_int_equal(json_array_size(sequences), 2);
    json_t *second = json_array_get(sequences, 1);
    assert_string_equal(json_string_value(json_object_get(second, "text")), "Two onceonce");
    assert_string_equal(json_string_value(json_object_get(second, "finish_reason")), "length");
    assert_true(json_integer_value(json_array_get(json_object_get(second, "token_ids"), 1)) == UINT32_MAX);
    json_t *logprobs = json_object_get(object, "logprobs");
    assert_int_equal(json_array_size(logprobs), 2);
    json_t *never = json_array_get(logprobs, 0);
    assert_true(json_is_null(json_object_get(never, "logprob")));
    assert_true(json_is_null(json_object_get(never, "text"))); /* half a character is no text */
    assert_true(json_integer_value(json_object_get(never, "token")) == UINT32_MAX);
    assert_int_equal(json_array_size(json_object_get(never, "alternatives")), 1);
    json_t *usage = json_object_get(object, "usage");
    assert_int_equal(json_integer_value(json_object_get(usage, "prompt_tokens")), 2);
    assert_int_equal(json_integer_value(json_object_get(usage, "total_tokens")), 6);
    assert_int_equal(json_integer_value(json_object_get(usage, "cached_prompt_tokens")), 1);
    json_t *route = json_object_get(object, "route");
    assert_string_equal(json_string_value(json_object_get(route, "prefill_node")), "p0");
    assert_true(json_integer_value(json_object_get(route, "kv_bytes")) == INT64_C(5) << 32);
    assert_int_equal(json_integer_value(json_object_get(route, "prefill_cached_tokens")), 3);
    assert_true(json_is_null(json_object_get(json_object_get(object, "timing"), "ttft_ms")));
    json_decref(object);

    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    assert_non_null(out);
    answer_print_route(&answer, out);
    fclose(out);
    assert_non_null(strstr(text, "prefill    p0"));
    assert_non_null(strstr(text, "shm, 21474836480 bytes"));
    assert_non_null(strstr(text, "finish stop"));
    free(text);
    answer_fini(&answer);
}

/* An answer of nothing is an object all the same. */
static void an_empty_answer_prints(void **state)
{
    (void)state;
    assert_false(failed(read_answer("nothing")));
    json_t *object = answer_json(&answer);
    assert_int_equal(json_array_size(json_object_get(object, "sequences")), 0);
    assert_true(json_is_object(json_object_get(object, "timing")));
    json_decref(object);
    answer_print_route(&answer, stdout);
    answer_fini(&answer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_slow_reader_gets_everything), cmocka_unit_test(a_call_may_end_early),
        cmocka_unit_test(failures_say_what_to_do),       cmocka_unit_test(nonsense_is_refused),
        cmocka_unit_test(a_unary_call_needs_an_answer),  cmocka_unit_test(an_answer_comes_together),
        cmocka_unit_test(an_empty_answer_prints),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
