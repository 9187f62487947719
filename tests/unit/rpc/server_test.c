/* Servers and channels: what is refused, how overload is told, how a server drains. */
#include "tests/unit/rpc/rpc_testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

static status_t accept_nothing(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    (void)service;
    (void)call;
    (void)ret_handler;
    diag_set(diag, "the door is shut");
    return STATUS(ST_PERMISSION_DENIED, SCOPE_REQUEST);
}

/* Each wrong piece of a configuration is refused with a sentence that names it. */
static void wrong_configs_are_named(void **state)
{
    (void)state;
    struct rpc_runtime *runtime = NULL;
    assert_false(failed(rpc_runtime_create(1, &runtime)));
    struct rpc_server *server = NULL;
    struct diag diag = {.text = ""};
    const char *const listen[] = {"127.0.0.1:0"};
    struct rpc_server_config config = {.listen = listen};
    assert_int_equal(rpc_server_create(runtime, &config, &server, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "addresses"));
    config.listen_count = 1;
    config.tls = (struct rpc_tls){.enabled = true};
    assert_int_equal(rpc_server_create(runtime, &config, &server, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "certificate"));
    config.tls.cert_file = "/nonexistent/cert.pem";
    assert_int_equal(rpc_server_create(runtime, &config, &server, &diag).code, ST_INVALID_ARGUMENT);
    config.tls.key_file = "/nonexistent/key.pem";
    assert_int_equal(rpc_server_create(runtime, &config, &server, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "/nonexistent/cert.pem"));
    config.tls.cert_file = "/dev/null";
    assert_int_equal(rpc_server_create(runtime, &config, &server, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "PEM"));
    config.tls = (struct rpc_tls){0};
    config.keepalive.time_ms = UINT32_MAX;
    assert_int_equal(rpc_server_create(runtime, &config, &server, &diag).code, ST_INVALID_ARGUMENT);
    config.keepalive.time_ms = 0;
    assert_null(server);

    assert_false(failed(rpc_server_create(runtime, &config, &server, &diag)));
    const char *const methods[] = {"", "/", "a.B/C", "/a.B", "/a.B/", "//C", "/a/b/c"};
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        assert_int_equal(rpc_server_register(server, methods[i], accept_nothing, NULL, &diag).code,
                         ST_INVALID_ARGUMENT);
    }
    assert_false(failed(rpc_server_register(server, "/a.B/C", accept_nothing, NULL, &diag)));
    assert_int_equal(rpc_server_register(server, "/a.B/C", accept_nothing, NULL, &diag).code, ST_ALREADY_EXISTS);
    assert_string_equal(rpc_server_service_name(server, 0), "a.B");
    assert_null(rpc_server_service_name(server, 1));
    rpc_server_destroy(server); /* never started */

    struct rpc_channel *channel = NULL;
    struct rpc_channel_config to = {.target = NULL};
    assert_int_equal(rpc_channel_create(runtime, &to, &channel, &diag).code, ST_INVALID_ARGUMENT);
    to = (struct rpc_channel_config){.target = "x:1", .reconnect_backoff_min_ms = 9, .reconnect_backoff_max_ms = 8};
    assert_int_equal(rpc_channel_create(runtime, &to, &channel, &diag).code, ST_INVALID_ARGUMENT);
    assert_null(channel);
    rpc_channel_destroy(NULL);
    rpc_server_destroy(NULL);
    rpc_runtime_destroy(runtime);
    rpc_runtime_destroy(NULL);
}

/* An address that is taken is refused by name, and the server can still be destroyed. */
static void taken_address_is_refused(void **state)
{
    (void)state;
    struct rig rig;
    rig_init(&rig);
    rig_start(&rig);
    struct diag diag = {.text = ""};
    const char *const listen[] = {"127.0.0.1:0", rig.target};
    struct rpc_server_config config = {.listen = listen, .listen_count = 2};
    struct rpc_server *second = NULL;
    assert_false(failed(rpc_server_create(rig.runtime, &config, &second, &diag)));
    assert_int_equal(rpc_server_start(second, &diag).code, ST_UNAVAILABLE);
    assert_non_null(strstr(diag.text, rig.target));
    rpc_server_destroy(second);
    rig_stop(&rig);
}

/* Several addresses serve at once, a unix socket among them; each port is told. */
static void listens_on_several_addresses(void **state)
{
    (void)state;
    char path[64];
    snprintf(path, sizeof path, "unix:/tmp/rpc_test_%d.sock", (int)getpid());
    const char *const listen[] = {"127.0.0.1:0", "127.0.0.1:0", path};
    struct rig rig;
    rig_init(&rig);
    rig.server_config.listen = listen;
    rig.server_config.listen_count = 3;
    rig_start(&rig);
    assert_int_not_equal(rpc_server_port(rig.server, 0), rpc_server_port(rig.server, 1));
    assert_int_equal(rpc_server_port(rig.server, 2), 0);
    for (uint32_t i = 0; i < 3; i++) {
        char target[64];
        snprintf(target, sizeof target, "127.0.0.1:%u", rpc_server_port(rig.server, i));
        struct rpc_channel_config config = {.target = i == 2 ? path : target};
        struct rpc_channel *channel = NULL;
        assert_false(failed(rpc_channel_create(rig.runtime, &config, &channel, NULL)));
        struct ear ear;
        ear_init(&ear);
        struct rpc_call *call = channel_call(channel, "/test.T/Echo", RPC_NO_DEADLINE, &ear);
        rpc_call_half_close(call);
        ear_wait(&ear, &ear.dones, 1);
        assert_int_equal(ear.outcome.code, ST_OK);
        rpc_call_unref(call);
        rpc_channel_destroy(channel);
        ear_fini(&ear);
    }
    rig_stop(&rig);
    unlink(path + 5);
}

/* A method nobody serves is UNIMPLEMENTED; a refusal by accept carries its code and sentence. */
static void unknown_and_refused_calls(void **state)
{
    (void)state;
    struct rig rig;
    rig_init(&rig);
    rig_start(&rig);
    struct ear unknown, refused;
    ear_init(&unknown);
    ear_init(&refused);
    struct rpc_call *call = rig_call(&rig, "/test.T/Nothing", &unknown);
    (void)!rpc_call_send(call, "x", 1).code;
    ear_wait(&unknown, &unknown.dones, 1);
    assert_int_equal(unknown.outcome.code, ST_UNIMPLEMENTED);
    assert_non_null(strstr(unknown.text, "/test.T/Nothing"));
    rpc_call_unref(call);
    call = rig_call(&rig, "/test.T/Ear", &refused); /* nobody is expected */
    ear_wait(&refused, &refused.dones, 1);
    assert_int_equal(refused.outcome.code, ST_FAILED_PRECONDITION);
    assert_string_equal(refused.text, "nobody expects this call");
    rpc_call_unref(call);
    rig_stop(&rig);
    ear_fini(&unknown);
    ear_fini(&refused);
}

/* Over calls_max a call is refused with a hint; when one ends, there is room again. */
static void overload_is_told_with_a_hint(void **state)
{
    (void)state;
    struct rig rig;
    rig_init(&rig);
    rig.server_config.calls_max = 2;
    rig.server_config.retry_hint_ms = 250;
    rig_start(&rig);
    struct ear server[3], client[4];
    struct rpc_call *calls[4];
    for (int i = 0; i < 3; i++) {
        rig_expect(&rig, &server[i]);
    }
    for (int i = 0; i < 4; i++) {
        ear_init(&client[i]);
    }
    for (int i = 0; i < 2; i++) {
        calls[i] = rig_call(&rig, "/test.T/Ear", &client[i]);
        ear_wait(&server[i], &server[i].next, 1);
    }
    assert_int_equal(rpc_server_call_count(rig.server), 2);
    calls[2] = rig_call(&rig, "/test.T/Ear", &client[2]);
    ear_wait(&client[2], &client[2].dones, 1);
    assert_int_equal(client[2].outcome.code, ST_RESOURCE_EXHAUSTED);
    assert_string_equal(client[2].retry_hint, "250");
    assert_non_null(strstr(client[2].text, "2 calls"));
    assert_false(failed(rpc_call_finish(server[0].call, ST_OK, "", NULL, 0)));
    ear_wait(&server[0], &server[0].dones, 1);
    uint64_t end = clock_now_ns() + PATIENCE_NS;
    while (rpc_server_call_count(rig.server) > 1 && clock_now_ns() < end) {
        clock_sleep_ns(NS_PER_MS);
    }
    calls[3] = rig_call(&rig, "/test.T/Ear", &client[3]);
    ear_wait(&server[2], &server[2].next, 1);
    rpc_channel_destroy(rig.channel); /* cancels what is open */
    rig.channel = NULL;
    for (int i = 0; i < 4; i++) {
        ear_wait(&client[i], &client[i].dones, 1);
        rpc_call_unref(calls[i]);
    }
    ear_wait(&server[1], &server[1].dones, 1);
    ear_wait(&server[2], &server[2].dones, 1);
    assert_int_equal(client[1].outcome.code, ST_CANCELLED);
    assert_int_equal(server[2].outcome.code, ST_CANCELLED);
    rig_stop(&rig);
    for (int i = 0; i < 4; i++) {
        ear_fini(&client[i]);
    }
}

static void *finish_later(void *arg)
{
    struct ear *ear = arg;
    clock_sleep_ns(100 * NS_PER_MS);
    (void)!rpc_call_send(ear->call, "last", 4).code;
    (void)!rpc_call_finish(ear->call, ST_OK, "", NULL, 0).code;
    return NULL;
}

/* A drain lets a call finish within the grace, takes no new one, and then returns. */
static void drain_lets_calls_finish(void **state)
{
    (void)state;
    struct rig rig;
    rig_init(&rig);
    rig_start(&rig);
    struct ear server, client, late;
    rig_expect(&rig, &server);
    ear_init(&client);
    ear_init(&late);
    struct rpc_call *call = rig_call(&rig, "/test.T/Ear", &client);
    ear_wait(&server, &server.next, 1);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, finish_later, &server), 0);
    rpc_server_shutdown(rig.server, PATIENCE_NS);
    pthread_join(thread, NULL);
    assert_int_equal(server.dones, 1);
    assert_int_equal(server.outcome.code, ST_OK);
    assert_int_equal(rpc_server_call_count(rig.server), 0);
    ear_wait(&client, &client.dones, 1);
    assert_int_equal(client.outcome.code, ST_OK);
    assert_int_equal(client.messages, 1);
    struct rpc_call *second = rig_call(&rig, "/test.T/Echo", &late);
    ear_wait(&late, &late.dones, 1);
    assert_int_equal(late.outcome.code, ST_UNAVAILABLE);
    rpc_server_shutdown(rig.server, PATIENCE_NS); /* once more is nothing */
    rpc_call_unref(call);
    rpc_call_unref(second);
    rig_stop(&rig);
    ear_fini(&client);
    ear_fini(&late);
}

/* Calls that outlast the grace are cancelled; shutdown returns after the last on_done. */
static void drain_cancels_the_rest(void **state)
{
    (void)state;
    struct rig rig;
    rig_init(&rig);
    rig_start(&rig);
    struct ear server[5], client[5];
    struct rpc_call *calls[5];
    for (int i = 0; i < 5; i++) {
        rig_expect(&rig, &server[i]);
        ear_init(&client[i]);
    }
    for (int i = 0; i < 5; i++) {
        calls[i] = rig_call(&rig, "/test.T/Ear", &client[i]);
        ear_wait(&server[i], &server[i].next, 1);
    }
    rpc_server_shutdown(rig.server, 50 * NS_PER_MS);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(server[i].dones, 1);
        assert_int_equal(server[i].outcome.code, ST_CANCELLED);
        ear_wait(&client[i], &client[i].dones, 1);
        assert_int_not_equal(client[i].outcome.code, ST_OK);
        rpc_call_unref(calls[i]);
    }
    rig_stop(&rig);
    for (int i = 0; i < 5; i++) {
        ear_fini(&client[i]);
    }
}

struct states {
    pthread_mutex_t lock;
    uint32_t ready, failure, after_destroy;
    bool is_destroyed;
};

static void note_state(void *user, struct rpc_channel *channel, enum rpc_channel_state state)
{
    (void)channel;
    struct states *states = user;
    pthread_mutex_lock(&states->lock);
    states->ready += state == RPC_CHANNEL_READY;
    states->failure += state == RPC_CHANNEL_TRANSIENT_FAILURE;
    states->after_destroy += states->is_destroyed;
    pthread_mutex_unlock(&states->lock);
}

static void wait_states(struct states *states, const uint32_t *field, uint32_t value)
{
    uint64_t end = clock_now_ns() + PATIENCE_NS;
    for (;;) {
        pthread_mutex_lock(&states->lock);
        bool has = *field >= value;
        pthread_mutex_unlock(&states->lock);
        if (has) {
            return;
        }
        assert_true(clock_now_ns() < end);
        clock_sleep_ns(NS_PER_MS);
    }
}

/* A watched channel connects by itself, tells when the server goes, connects again to a new one
 * on the same address; a call that waits for ready runs then, one that does not fails at once. */
static void channel_reconnects_by_itself(void **state)
{
    (void)state;
    struct states states = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct rig rig;
    rig_init(&rig);
    rig.channel_config.on_state = note_state;
    rig.channel_config.on_state_user = &states;
    rig_start(&rig);
    wait_states(&states, &states.ready, 1);
    rpc_server_destroy(rig.server);
    rig.server = NULL;
    wait_states(&states, &states.failure, 1);
    struct ear eager, patient;
    ear_init(&eager);
    ear_init(&patient);
    struct rpc_call *call = rig_call(&rig, "/test.T/Echo", &eager);
    ear_wait(&eager, &eager.dones, 1);
    assert_int_equal(eager.outcome.code, ST_UNAVAILABLE);
    rpc_call_unref(call);

    struct rpc_call_options options = {.method = "/a.B/C", .wait_for_ready = true, .callbacks = &ear_callbacks,
                                       .user = &patient};
    assert_false(failed(rpc_channel_call(rig.channel, &options, NULL, NULL)));
    const char *const listen[] = {rig.target};
    struct rpc_server_config config = {.listen = listen, .listen_count = 1};
    struct diag diag = {.text = ""};
    assert_false(failed(rpc_server_create(rig.runtime, &config, &rig.server, &diag)));
    assert_false(failed(rpc_server_register(rig.server, "/a.B/C", accept_nothing, NULL, &diag)));
    if (failed(rpc_server_start(rig.server, &diag))) {
        fail_msg("%s", diag.text);
    }
    ear_wait(&patient, &patient.dones, 1);
    assert_int_equal(patient.outcome.code, ST_PERMISSION_DENIED);
    assert_string_equal(patient.text, "the door is shut");
    wait_states(&states, &states.ready, 2);
    rpc_channel_destroy(rig.channel);
    pthread_mutex_lock(&states.lock);
    states.is_destroyed = true;
    pthread_mutex_unlock(&states.lock);
    rig.channel = NULL;
    rig_stop(&rig);
    assert_int_equal(states.after_destroy, 0);
    ear_fini(&eager);
    ear_fini(&patient);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_configs_are_named),
        cmocka_unit_test(taken_address_is_refused),
        cmocka_unit_test(listens_on_several_addresses),
        cmocka_unit_test(unknown_and_refused_calls),
        cmocka_unit_test(overload_is_told_with_a_hint),
        cmocka_unit_test(drain_lets_calls_finish),
        cmocka_unit_test(drain_cancels_the_rest),
        cmocka_unit_test(channel_reconnects_by_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
