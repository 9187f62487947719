/* Health and reflection as a client on the wire sees them, and the index under reflection. */
#include "tests/unit/rpc/rpc_testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/grpc/health/v1/health.pb-c.h"
#include "proto/grpc/health/v1/health_descriptor.h"
#include "proto/grpc/reflection/v1/reflection.pb-c.h"
#include "rpc/health.h"
#include "rpc/reflection.h"
#include "rpc/small_request.h"

#define SERVING GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
#define NOT_SERVING GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING
#define SERVICE_UNKNOWN GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN

struct bench {
    struct rpc_runtime *runtime;
    struct rpc_server *server;
    struct rpc_channel *channel;
    struct rpc_health *health;
    struct rpc_reflection *reflection;
};

static int bench_start(void **state)
{
    struct bench *bench = calloc(1, sizeof *bench);
    static const char *const listen[] = {"127.0.0.1:0"};
    struct rpc_server_config config = {.listen = listen, .listen_count = 1};
    struct diag diag = {.text = ""};
    char target[64];
    assert_false(failed(rpc_runtime_create(2, &bench->runtime)));
    if (failed(rpc_server_create(bench->runtime, &config, &bench->server, &diag)) ||
        failed(rpc_health_create(bench->server, &bench->health, &diag)) ||
        failed(rpc_reflection_create(bench->server, NULL, 0, &bench->reflection, &diag)) ||
        failed(rpc_server_start(bench->server, &diag))) {
        fail_msg("%s", diag.text);
    }
    snprintf(target, sizeof target, "127.0.0.1:%u", rpc_server_port(bench->server, 0));
    struct rpc_channel_config to = {.target = target};
    assert_false(failed(rpc_channel_create(bench->runtime, &to, &bench->channel, &diag)));
    *state = bench;
    return 0;
}

static int bench_stop(void **state)
{
    struct bench *bench = *state;
    rpc_channel_destroy(bench->channel);
    rpc_server_destroy(bench->server);
    rpc_health_destroy(bench->health);
    rpc_reflection_destroy(bench->reflection);
    rpc_runtime_destroy(bench->runtime);
    free(bench);
    return 0;
}

/* A request that is all unknown fields, which cost fifty times their bytes once unpacked, is
 * refused by its length. */
static void a_request_far_longer_than_a_name_is_refused(void **state)
{
    struct bench *bench = *state;
    static const char *const methods[] = {
        "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List", "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"};
    static uint8_t bytes[SMALL_REQUEST_BYTES_MAX + 2];
    for (size_t i = 0; i < sizeof bytes; i += 2) {
        bytes[i] = 0x78; /* field 15, a varint: 0 */
    }
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        for (int over = 0; over <= 1; over++) {
            struct ear ear;
            ear_init(&ear);
            struct rpc_call *call = channel_call(bench->channel, methods[i], RPC_NO_DEADLINE, &ear);
            assert_false(failed(rpc_call_send(call, bytes, SMALL_REQUEST_BYTES_MAX + (over ? 2 : 0))));
            if (over) {
                ear_wait(&ear, &ear.dones, 1);
                assert_int_equal(ear.outcome.code, ST_INVALID_ARGUMENT);
                assert_non_null(strstr(ear.text, "8194 bytes"));
            } else {
                ear_wait(&ear, &ear.messages, 1);
                rpc_call_cancel(call);
                ear_wait(&ear, &ear.dones, 1);
            }
            rpc_call_unref(call);
            ear_fini(&ear);
        }
    }
}

static struct rpc_call *ask_health(struct bench *bench, const char *method, const char *service, struct ear *ear)
{
    ear_init(ear);
    struct rpc_call *call = channel_call(bench->channel, method, RPC_NO_DEADLINE, ear);
    Grpc__Health__V1__HealthCheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    request.service = (char *)(uintptr_t)service;
    uint8_t bytes[256];
    size_t len = grpc__health__v1__health_check_request__pack(&request, bytes);
    assert_false(failed(rpc_call_send(call, bytes, len)));
    rpc_call_half_close(call);
    return call;
}

static int last_status(struct ear *ear)
{
    pthread_mutex_lock(&ear->lock);
    Grpc__Health__V1__HealthCheckResponse *response =
        grpc__health__v1__health_check_response__unpack(NULL, ear->last_len, ear->last);
    pthread_mutex_unlock(&ear->lock);
    assert_non_null(response);
    int status = (int)response->status;
    grpc__health__v1__health_check_response__free_unpacked(response, NULL);
    return status;
}

/* Returns the code of a Check, and the status in ret_status. */
static int check(struct bench *bench, const char *service, int *ret_status)
{
    struct ear ear;
    struct rpc_call *call = ask_health(bench, "/grpc.health.v1.Health/Check", service, &ear);
    ear_wait(&ear, &ear.dones, 1);
    *ret_status = ear.outcome.code == ST_OK ? last_status(&ear) : -1;
    int code = ear.outcome.code;
    rpc_call_unref(call);
    ear_fini(&ear);
    return code;
}

/* Bytes that are no request, and no bytes at all, are INVALID_ARGUMENT on every method. */
static void garbage_is_refused(void **state)
{
    struct bench *bench = *state;
    static const char *const methods[] = {
        "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List", "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"};
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        for (int empty = 0; empty <= (i < 3); empty++) {
            struct ear ear;
            ear_init(&ear);
            struct rpc_call *call = channel_call(bench->channel, methods[i], RPC_NO_DEADLINE, &ear);
            if (!empty) {
                assert_false(failed(rpc_call_send(call, "\x0a\xff\xff\xff\x7f", 5)));
            }
            rpc_call_half_close(call);
            ear_wait(&ear, &ear.dones, 1);
            assert_int_equal(ear.outcome.code, ST_INVALID_ARGUMENT);
            rpc_call_unref(call);
            ear_fini(&ear);
        }
    }
}

/* Check answers what was set, and NOT_FOUND for a name that was not. */
static void check_follows_set(void **state)
{
    struct bench *bench = *state;
    int status;
    assert_int_equal(check(bench, "baton.v1.Inference", &status), ST_NOT_FOUND);
    assert_int_equal(check(bench, "", &status), ST_OK);
    assert_int_equal(status, NOT_SERVING);
    assert_false(failed(rpc_health_set(bench->health, "", true)));
    assert_false(failed(rpc_health_set(bench->health, "baton.v1.Inference", true)));
    assert_int_equal(check(bench, "", &status), ST_OK);
    assert_int_equal(status, SERVING);
    assert_int_equal(check(bench, "baton.v1.Inference", &status), ST_OK);
    assert_int_equal(status, SERVING);
    struct ear ear;
    struct rpc_call *call = ask_health(bench, "/grpc.health.v1.Health/List", "", &ear);
    ear_wait(&ear, &ear.dones, 1);
    assert_int_equal(ear.outcome.code, ST_OK);
    Grpc__Health__V1__HealthListResponse *list =
        grpc__health__v1__health_list_response__unpack(NULL, ear.last_len, ear.last);
    assert_non_null(list);
    assert_int_equal(list->n_statuses, 2);
    grpc__health__v1__health_list_response__free_unpacked(list, NULL);
    rpc_call_unref(call);
    ear_fini(&ear);
    rpc_health_drain(bench->health);
    assert_false(failed(rpc_health_set(bench->health, "", true))); /* too late */
    assert_int_equal(check(bench, "", &status), ST_OK);
    assert_int_equal(status, NOT_SERVING);
}

/* Watch tells the status now and each change of it once, SERVICE_UNKNOWN before the name exists;
 * a drain ends it. */
static void watch_tells_each_change(void **state)
{
    struct bench *bench = *state;
    struct ear ear, gone;
    struct rpc_call *call = ask_health(bench, "/grpc.health.v1.Health/Watch", "later", &ear);
    struct rpc_call *other = ask_health(bench, "/grpc.health.v1.Health/Watch", "", &gone);
    ear_wait(&ear, &ear.messages, 1);
    assert_int_equal(last_status(&ear), SERVICE_UNKNOWN);
    assert_false(failed(rpc_health_set(bench->health, "later", true)));
    ear_wait(&ear, &ear.messages, 2);
    assert_int_equal(last_status(&ear), SERVING);
    assert_false(failed(rpc_health_set(bench->health, "later", true))); /* no change: no message */
    assert_false(failed(rpc_health_set(bench->health, "other", true)));
    ear_wait(&gone, &gone.messages, 1);
    rpc_call_cancel(other);
    ear_wait(&gone, &gone.dones, 1);
    assert_false(failed(rpc_health_set(bench->health, "later", false)));
    ear_wait(&ear, &ear.messages, 3);
    assert_int_equal(last_status(&ear), NOT_SERVING);
    rpc_health_drain(bench->health);
    ear_wait(&ear, &ear.dones, 1);
    assert_int_equal(ear.messages, 3);
    assert_int_equal(ear.outcome.code, ST_UNAVAILABLE);
    rpc_call_unref(call);
    rpc_call_unref(other);
    ear_fini(&ear);
    ear_fini(&gone);
}

struct answer {
    Grpc__Reflection__V1__ServerReflectionResponse *response;
};

static void take_answer(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    (void)call;
    struct answer *answer = user;
    answer->response = grpc__reflection__v1__server_reflection_response__unpack(NULL, len, bytes);
}

static struct ear answered;

static void answer_done(void *user, struct rpc_call *call, const struct rpc_outcome *outcome)
{
    (void)user;
    ear_callbacks.on_done(&answered, call, outcome);
}

/* One question, one answer. Returns owned. */
static Grpc__Reflection__V1__ServerReflectionResponse *reflect(struct bench *bench,
                                                              Grpc__Reflection__V1__ServerReflectionRequest *request)
{
    static const struct rpc_callbacks callbacks = {.on_message = take_answer, .on_done = answer_done};
    struct answer answer = {NULL};
    ear_init(&answered);
    uint8_t bytes[512];
    size_t len = grpc__reflection__v1__server_reflection_request__pack(request, bytes);
    struct rpc_call_options options = {.method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                                       .callbacks = &callbacks, .user = &answer};
    struct rpc_call *call = NULL;
    assert_false(failed(rpc_channel_call(bench->channel, &options, &call, NULL)));
    assert_false(failed(rpc_call_send(call, bytes, len)));
    rpc_call_half_close(call);
    ear_wait(&answered, &answered.dones, 1);
    assert_int_equal(answered.outcome.code, ST_OK);
    rpc_call_unref(call);
    ear_fini(&answered);
    assert_non_null(answer.response);
    assert_non_null(answer.response->original_request);
    assert_int_equal(answer.response->original_request->message_request_case, request->message_request_case);
    return answer.response;
}

/* Reflection names the services once each, finds files by name and symbol, and answers what it
 * does not hold with an error on a stream that goes on. */
static void reflection_answers(void **state)
{
    struct bench *bench = *state;
    typedef Grpc__Reflection__V1__ServerReflectionRequest request_t;
    typedef Grpc__Reflection__V1__ServerReflectionResponse response_t;
    char text[] = "grpc.health.v1.Health.Check";
    char file[] = "grpc/health/v1/health.proto";
    char wrong[] = "no.Such";

    request_t request = GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
    response_t *response = reflect(bench, &request);
    assert_int_equal(response->message_response_case,
                     GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE);
    assert_int_equal(response->error_response->error_code, ST_INVALID_ARGUMENT);
    grpc__reflection__v1__server_reflection_response__free_unpacked(response, NULL);

    request.message_request_case = GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL;
    request.file_containing_symbol = wrong;
    response = reflect(bench, &request);
    assert_int_equal(response->error_response->error_code, ST_NOT_FOUND);
    grpc__reflection__v1__server_reflection_response__free_unpacked(response, NULL);

    request.file_containing_symbol = text;
    response = reflect(bench, &request);
    assert_int_equal(response->file_descriptor_response->n_file_descriptor_proto, 1);
    /* The set is one field: a tag, a two-byte length, the file. */
    ProtobufCBinaryData *got = &response->file_descriptor_response->file_descriptor_proto[0];
    assert_int_equal(got->len, health_descriptor_len - 3);
    assert_memory_equal(got->data, health_descriptor + 3, got->len);
    grpc__reflection__v1__server_reflection_response__free_unpacked(response, NULL);

    request.message_request_case = GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME;
    request.file_by_filename = file;
    response = reflect(bench, &request);
    assert_int_equal(response->file_descriptor_response->n_file_descriptor_proto, 1);
    grpc__reflection__v1__server_reflection_response__free_unpacked(response, NULL);

    request.message_request_case = GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES;
    request.list_services = wrong;
    response = reflect(bench, &request);
    assert_int_equal(response->list_services_response->n_service, 3);
    assert_string_equal(response->list_services_response->service[0]->name, "grpc.health.v1.Health");
    grpc__reflection__v1__server_reflection_response__free_unpacked(response, NULL);
}

/* A descriptor set cut anywhere is refused or indexed in part, never read past its end. */
static void cut_descriptors_are_refused(void **state)
{
    (void)state;
    for (size_t len = 0; len < health_descriptor_len; len++) {
        uint8_t *copy = malloc(len + 1); /* exact, so that a sanitizer sees one byte too many */
        memcpy(copy, health_descriptor, len);
        struct descriptor_set set = {.bytes = copy, .len = len};
        struct descriptor_index *index = NULL;
        struct diag diag = {.text = ""};
        status_t st = descriptor_index_create(&set, 1, &index, &diag);
        assert_int_equal(st.code, len == 0 ? ST_OK : ST_INVALID_ARGUMENT);
        descriptor_index_destroy(index);
        free(copy);
    }
    struct descriptor_set twice[2] = {{health_descriptor, health_descriptor_len}, {health_descriptor, health_descriptor_len}};
    struct descriptor_index *index = NULL;
    assert_false(failed(descriptor_index_create(twice, 2, &index, NULL)));
    assert_int_equal(descriptor_index_file_count(index), 1);
    static const char *const known[] = {"grpc.health.v1.Health", "grpc.health.v1.HealthCheckRequest",
                                        "grpc.health.v1.HealthCheckRequest.service",
                                        "grpc.health.v1.HealthCheckResponse.ServingStatus",
                                        "grpc.health.v1.HealthCheckResponse.SERVING", ".grpc.health.v1.Health.Watch"};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        assert_int_equal(descriptor_index_by_symbol(index, known[i]), 0);
    }
    assert_int_equal(descriptor_index_by_symbol(index, "Health"), DESCRIPTOR_NONE);
    assert_int_equal(descriptor_index_extensions(index, "grpc.health.v1.HealthCheckRequest", NULL, 0), 0);
    descriptor_index_destroy(index);
}

/* protoc --include_imports --descriptor_set_out of i.proto, `syntax="proto2";`, and x.proto:
 *   syntax="proto2"; package a; import "i.proto";
 *   message B { extensions 5 to 9; message C { enum E { X=0; } } oneof o { int32 f=1; } }
 *   extend B { optional int32 g = 6; } */
static const uint8_t extensions[] = {
    10, 9, 10, 7, 105, 46, 112, 114, 111, 116, 111, 10, 90, 10, 7, 120, 46, 112, 114, 111,
    116, 111, 18, 1, 97, 26, 7, 105, 46, 112, 114, 111, 116, 111, 34, 47, 10, 1, 66, 18,
    14, 10, 1, 102, 24, 1, 32, 1, 40, 5, 72, 0, 82, 1, 102, 26, 15, 10, 1, 67,
    34, 10, 10, 1, 69, 18, 5, 10, 1, 88, 16, 0, 42, 4, 8, 5, 16, 10, 66, 3,
    10, 1, 111, 58, 18, 10, 1, 103, 18, 4, 46, 97, 46, 66, 24, 6, 32, 1, 40, 5,
    82, 1, 103};

/* Extensions, nested names and imports are found; an enum's values are named beside the enum. */
static void extensions_and_imports_are_found(void **state)
{
    (void)state;
    struct descriptor_set set = {.bytes = extensions, .len = sizeof extensions};
    struct descriptor_index *index = NULL;
    assert_false(failed(descriptor_index_create(&set, 1, &index, NULL)));
    assert_int_equal(descriptor_index_file_count(index), 2);
    uint32_t file = descriptor_index_by_filename(index, "x.proto");
    assert_int_not_equal(file, DESCRIPTOR_NONE);
    static const char *const names[] = {"a.B", "a.B.C", "a.B.C.E", "a.B.C.X", "a.B.o", "a.B.f", "a.g"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        assert_int_equal(descriptor_index_by_symbol(index, names[i]), file);
    }
    assert_int_equal(descriptor_index_by_extension(index, "a.B", 6), file);
    assert_int_equal(descriptor_index_by_extension(index, "a.B", 7), DESCRIPTOR_NONE);
    int32_t number = 0;
    assert_int_equal(descriptor_index_extensions(index, "a.B", &number, 1), 1);
    assert_int_equal(number, 6);
    struct descriptor_file files[2];
    assert_int_equal(descriptor_index_closure(index, file, files), 2);
    assert_int_equal(descriptor_index_closure(index, descriptor_index_by_filename(index, "i.proto"), files), 1);
    descriptor_index_destroy(index);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(garbage_is_refused, bench_start, bench_stop),
        cmocka_unit_test_setup_teardown(a_request_far_longer_than_a_name_is_refused, bench_start, bench_stop),
        cmocka_unit_test_setup_teardown(check_follows_set, bench_start, bench_stop),
        cmocka_unit_test_setup_teardown(watch_tells_each_change, bench_start, bench_stop),
        cmocka_unit_test_setup_teardown(reflection_answers, bench_start, bench_stop),
        cmocka_unit_test(cut_descriptors_are_refused),
        cmocka_unit_test(extensions_and_imports_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
