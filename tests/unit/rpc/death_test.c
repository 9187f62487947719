/* Peers that die: killed, cut off, or silent. Each side hears of it exactly once, in time. */
#include "tests/unit/rpc/rpc_testing.h"

#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

extern char **environ;

/* A client whose connection is cut shows as CANCELLED on the server, though nobody writes; the
 * client hears UNAVAILABLE. */
static void cut_connection_is_seen_by_both(void **state)
{
    (void)state;
    struct rig rig;
    rig_init(&rig);
    rig_start(&rig);
    struct relay *relay = relay_start(rpc_server_port(rig.server, 0));
    char target[64];
    snprintf(target, sizeof target, "127.0.0.1:%u", relay_port(relay));
    struct rpc_channel_config config = {.target = target};
    struct rpc_channel *channel = NULL;
    assert_false(failed(rpc_channel_create(rig.runtime, &config, &channel, NULL)));
    struct ear server, client;
    rig_expect(&rig, &server);
    ear_init(&client);
    struct rpc_call *call = channel_call(channel, "/test.T/Ear", RPC_NO_DEADLINE, &client);
    ear_wait(&server, &server.next, 1);
    assert_false(failed(rpc_call_send(call, "a", 1)));
    ear_wait(&server, &server.messages, 1);
    uint64_t start = clock_now_ns();
    relay_cut(relay);
    ear_wait(&server, &server.dones, 1);
    ear_wait(&client, &client.dones, 1);
    print_message("cut: both sides told after %.1f ms\n", (double)(clock_now_ns() - start) / 1e6);
    assert_int_equal(server.outcome.code, ST_CANCELLED);
    assert_int_equal(server.half_closes, 0);
    assert_int_equal(client.outcome.code, ST_UNAVAILABLE);
    rpc_call_unref(call);
    rpc_channel_destroy(channel);
    rig_stop(&rig);
    relay_stop(relay);
    ear_fini(&client);
}

/* A network that goes silent without closing anything is found by keepalive, from both sides,
 * also while a client's queue is full of unsent messages. */
static void silent_connection_is_found_by_keepalive(void **state)
{
    (void)state;
    for (int busy = 0; busy <= 1; busy++) {
        struct rig rig;
        rig_init(&rig);
        struct rpc_keepalive keepalive = {.time_ms = 300, .timeout_ms = 3000}; /* a starved machine answers late, too */
        rig.server_config.keepalive = keepalive;
        rig_start(&rig);
        struct relay *relay = relay_start(rpc_server_port(rig.server, 0));
        char target[64];
        snprintf(target, sizeof target, "127.0.0.1:%u", relay_port(relay));
        struct rpc_channel_config config = {.target = target, .keepalive = keepalive};
        struct rpc_channel *channel = NULL;
        assert_false(failed(rpc_channel_create(rig.runtime, &config, &channel, NULL)));
        struct ear server, client;
        rig_expect(&rig, &server);
        ear_init(&client);
        struct rpc_call *call = channel_call(channel, "/test.T/Ear", RPC_NO_DEADLINE, &client);
        ear_wait(&server, &server.next, 1);
        /* Healthy silence is not death: five times the keepalive, and the call still works. */
        clock_sleep_ns(1500 * NS_PER_MS);
        assert_false(failed(rpc_call_send(call, "a", 1)));
        ear_wait(&server, &server.messages, 1);
        uint64_t start = clock_now_ns();
        relay_freeze(relay);
        static const uint8_t bytes[65536];
        while (busy && !failed(rpc_call_send(call, bytes, sizeof bytes))) {
        }
        ear_wait(&client, &client.dones, 1);
        double client_ms = (double)(clock_now_ns() - start) / 1e6;
        ear_wait(&server, &server.dones, 1);
        print_message("silence (%s): client told after %.0f ms, server after %.0f ms\n", busy ? "busy" : "idle",
                      client_ms, (double)(clock_now_ns() - start) / 1e6);
        assert_int_equal(client.outcome.code, ST_UNAVAILABLE);
        assert_int_equal(server.outcome.code, ST_CANCELLED);
        rpc_call_unref(call);
        rpc_channel_destroy(channel);
        rig_stop(&rig);
        relay_stop(relay);
        ear_fini(&client);
    }
}

/* The other process of the next test: serves until it is killed. */
static _Noreturn void serve_until_killed(void)
{
    static struct ear ears[4];
    struct rig rig;
    rig_init(&rig);
    for (size_t i = 0; i < sizeof ears / sizeof ears[0]; i++) {
        rig_expect(&rig, &ears[i]);
    }
    rig_start(&rig);
    printf("%u\n", rpc_server_port(rig.server, 0));
    fflush(stdout);
    for (;;) {
        pause();
    }
}

/* kill -9 of the server process gives its clients UNAVAILABLE at once. */
static void killed_server_is_unavailable(void **state)
{
    (void)state;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fds[1], 1);
    char name[] = "/proc/self/exe";
    char role[] = "serve";
    char *args[] = {name, role, NULL};
    pid_t child = 0;
    assert_int_equal(posix_spawn(&child, name, &actions, NULL, args, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(fds[1]);
    FILE *from_child = fdopen(fds[0], "r");
    unsigned port = 0;
    assert_int_equal(fscanf(from_child, "%u", &port), 1);
    fclose(from_child);

    struct rpc_runtime *runtime = NULL;
    struct rpc_channel *channel = NULL;
    char target[64];
    snprintf(target, sizeof target, "127.0.0.1:%u", port);
    struct rpc_channel_config config = {.target = target};
    assert_false(failed(rpc_runtime_create(0, &runtime)));
    assert_false(failed(rpc_channel_create(runtime, &config, &channel, NULL)));
    struct ear waiting, paused, echo;
    ear_init(&waiting);
    ear_init(&paused);
    ear_init(&echo);
    struct rpc_call *calls[3] = {
        channel_call(channel, "/test.T/Ear", RPC_NO_DEADLINE, &waiting),
        channel_call(channel, "/test.T/Ear", RPC_NO_DEADLINE, &paused),
        channel_call(channel, "/test.T/Echo", RPC_NO_DEADLINE, &echo),
    };
    rpc_call_pause_reads(calls[1]);
    assert_false(failed(rpc_call_send(calls[2], "x", 1)));
    ear_wait(&echo, &echo.messages, 1);
    uint64_t start = clock_now_ns();
    assert_int_equal(kill(child, SIGKILL), 0);
    ear_wait(&waiting, &waiting.dones, 1);
    ear_wait(&paused, &paused.dones, 1);
    ear_wait(&echo, &echo.dones, 1);
    print_message("kill -9: told after %.1f ms\n", (double)(clock_now_ns() - start) / 1e6);
    assert_int_equal(waiting.outcome.code, ST_UNAVAILABLE);
    assert_int_equal(paused.outcome.code, ST_UNAVAILABLE);
    assert_int_equal(echo.outcome.code, ST_UNAVAILABLE);
    assert_int_equal(waitpid(child, NULL, 0), child);
    for (int i = 0; i < 3; i++) {
        rpc_call_unref(calls[i]);
    }
    rpc_channel_destroy(channel);
    rpc_runtime_destroy(runtime);
    ear_fini(&waiting);
    ear_fini(&paused);
    ear_fini(&echo);
}

/* An address where nothing listens is UNAVAILABLE, not a wait. */
static void nobody_listens(void **state)
{
    (void)state;
    struct rig rig;
    rig_init(&rig);
    rig_start(&rig);
    rpc_server_destroy(rig.server);
    rig.server = NULL;
    struct ear client;
    ear_init(&client);
    struct rpc_call *call = rig_call(&rig, "/test.T/Echo", &client);
    ear_wait(&client, &client.dones, 1);
    assert_int_equal(client.outcome.code, ST_UNAVAILABLE);
    rpc_call_unref(call);
    rig_stop(&rig);
    ear_fini(&client);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "serve") == 0) {
        serve_until_killed();
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cut_connection_is_seen_by_both),
        cmocka_unit_test(silent_connection_is_found_by_keepalive),
        cmocka_unit_test(killed_server_is_unavailable),
        cmocka_unit_test(nobody_listens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
