/* Calls between a real server and a real client over loopback: messages, queues, ends. */
#include "tests/unit/rpc/rpc_testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

/* Malformed methods and metadata are refused before anything is sent, with a sentence. */
static void malformed_calls_are_refused(void **state)
{
    (void)state;
    struct rig rig;
    rig_init(&rig);
    rig_start(&rig);
    struct rpc_call *call = NULL;
    const struct rpc_metadata bad[] = {
        {.key = "Upper", .value = "x", .value_len = 1},
        {.key = ":path", .value = "x", .value_len = 1},
        {.key = "", .value = "x", .value_len = 1},
        {.key = "x-text", .value = "a\nb", .value_len = 3},
        {.key = "x-null", .value = NULL, .value_len = 3},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct diag diag = {.text = ""};
        struct rpc_call_options options = {.method = "/test.T/Echo", .metadata = &bad[i], .metadata_count = 1};
        assert_int_equal(rpc_channel_call(rig.channel, &options, &call, &diag).code, ST_INVALID_ARGUMENT);
        assert_string_not_equal(diag.text, "");
        assert_null(call);
    }
    const char *const methods[] = {NULL, "", "Echo", "/Echo"};
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        struct diag diag = {.text = ""};
        struct rpc_call_options options = {.method = methods[i]};
        assert_int_equal(rpc_channel_call(rig.channel, &options, &call, &diag).code, ST_INVALID_ARGUMENT);
        assert_string_not_equal(diag.text, "");
    }
    rig_stop(&rig);
}

/* A message comes back whole, whatever its size, empty ones too; then OK. */
static void echo_keeps_every_byte(void **state)
{
    (void)state;
    struct rig rig;
    rig_init(&rig);
    rig_start(&rig);
    const size_t sizes[] = {0, 1, 5, 1000, 16384, 100000, 3000000};
    struct ear ear;
    ear_init(&ear);
    struct rpc_call *call = rig_call(&rig, "/test.T/Echo", &ear);
    size_t total = 0;
    for (uint32_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        uint8_t *bytes = malloc(sizes[i] + 1);
        memset(bytes, (int)(0x40 + i), sizes[i] + 1);
        assert_false(failed(rpc_call_send(call, bytes, sizes[i])));
        free(bytes);
        total += sizes[i];
        ear_wait(&ear, &ear.messages, i + 1);
        if (sizes[i] > 0) {
            assert_int_equal(ear.last[ear.last_len - 1], 0x40 + i);
        }
    }
    rpc_call_half_close(call);
    rpc_call_half_close(call); /* once more is nothing */
    ear_wait(&ear, &ear.dones, 1);
    assert_int_equal(ear.outcome.code, ST_OK);
    assert_int_equal(ear.bytes, total);
    assert_int_equal(rpc_call_send(call, "x", 1).code, ST_CANCELLED);
    rpc_call_unref(call);
    rig_stop(&rig);
    assert_int_equal(ear.dones, 1);
    ear_fini(&ear);
}

/* A server reads what the client sent along: metadata, deadline, peer; and its status, message
 * and trailing metadata arrive as given. */
static void what_travels_beside_messages(void **state)
{
    (void)state;
    struct rig rig;
    rig_init(&rig);
    rig_start(&rig);
    struct ear server, client;
    rig_expect(&rig, &server);
    ear_init(&client);
    const struct rpc_metadata head[] = {
        {.key = "authorization", .value = "Bearer abc", .value_len = 10},
        {.key = "x-raw-bin", .value = "\0\xff\1", .value_len = 3},
    };
    uint64_t deadline = clock_now_ns() + 30 * NS_PER_S;
    struct rpc_call_options options = {.method = "/test.T/Ear", .deadline_ns = deadline, .metadata = head,
                                       .metadata_count = 2, .callbacks = &ear_callbacks, .user = &client};
    struct rpc_call *call = NULL;
    assert_false(failed(rpc_channel_call(rig.channel, &options, &call, NULL)));
    ear_wait(&server, &server.next, 1);

    size_t len = 0;
    const char *value = rpc_call_metadata(server.call, "authorization", &len);
    assert_non_null(value);
    assert_int_equal(len, 10);
    assert_memory_equal(value, "Bearer abc", 10);
    value = rpc_call_metadata(server.call, "x-raw-bin", &len);
    assert_int_equal(len, 3);
    assert_memory_equal(value, "\0\xff\1", 3);
    assert_null(rpc_call_metadata(server.call, "x-none", &len));
    assert_string_equal(rpc_call_method(server.call), "/test.T/Ear");
    char peer[128];
    rpc_call_peer(server.call, peer, sizeof peer);
    assert_memory_equal(peer, "ipv4:127.0.0.1:", 15);
    char identity[64];
    assert_false(rpc_call_peer_identity(server.call, identity, sizeof identity));
    /* gRPC rounds what is left, here to 100 ms, so the server's copy is a little off. */
    int64_t off = (int64_t)(rpc_call_deadline_ns(server.call) - deadline);
    assert_true(llabs(off) < (int64_t)NS_PER_S);
    assert_int_equal(rpc_call_deadline_ns(call), deadline);

    const struct rpc_metadata bad = {.key = "Bad Key", .value = "", .value_len = 0};
    assert_int_equal(rpc_call_finish(server.call, ST_ABORTED, "x", &bad, 1).code, ST_INVALID_ARGUMENT);
    assert_int_equal(rpc_call_finish(call, ST_OK, "", NULL, 0).code, ST_FAILED_PRECONDITION);
    const struct rpc_metadata trailing = {.key = "x-trailing", .value = "the end", .value_len = 7};
    assert_false(failed(rpc_call_finish(server.call, ST_ABORTED, "because 100 % of it\nis h\xc3\xa9re", &trailing, 1)));
    assert_int_equal(rpc_call_finish(server.call, ST_OK, "", NULL, 0).code, ST_FAILED_PRECONDITION);
    assert_true(rpc_call_send(server.call, "x", 1).code == ST_FAILED_PRECONDITION ||
                ear_get(&server, &server.dones) == 1);
    ear_wait(&client, &client.dones, 1);
    ear_wait(&server, &server.dones, 1);
    assert_int_equal(client.outcome.code, ST_ABORTED);
    assert_string_equal(client.text, "because 100 % of it\nis h\xc3\xa9re");
    assert_string_equal(client.trailing, "the end");
    assert_int_equal(server.outcome.code, ST_ABORTED);
    rpc_call_unref(call);
    rig_stop(&rig);
    /* A reference outlives the connection and the server: reading is still safe. */
    assert_int_equal(client.dones, 1);
    ear_fini(&client);
}

static void fill_queue(struct ear *ear, struct rpc_call *call)
{
    uint8_t bytes[512] = {0};
    while (ear->next <= 20000) {
        uint32_t number = ear->next - 1;
        memcpy(bytes, &number, sizeof number);
        status_t st = rpc_call_send(call, bytes, sizeof bytes);
        if (st.code == ST_RESOURCE_EXHAUSTED) {
            return; /* on_writable comes */
        }
        if (failed(st)) {
            break;
        }
        ear->next++;
    }
    rpc_call_finish_status(call, STATUS_OK, "", 0);
}

static void fill_on_half_close(struct ear *ear, struct rpc_call *call)
{
    ear->next = 1;
    fill_queue(ear, call);
}

/* A sender that is told RESOURCE_EXHAUSTED is told later that it may go on; 20,000 messages
 * through a queue of 64 arrive in order, none lost, none twice. */
static void full_queue_is_refused_then_writable(void **state)
{
    (void)state;
    struct rig rig;
    rig_init(&rig);
    rig.server_config.send_limits = (struct rpc_send_limits){.messages_max = 64, .bytes_max = 20000};
    rig_start(&rig);
    struct ear server, client;
    rig_expect(&rig, &server);
    server.react_half_close = fill_on_half_close;
    server.react_writable = fill_queue;
    ear_init(&client);
    client.counts_messages = true;
    struct rpc_call *call = rig_call(&rig, "/test.T/Ear", &client);
    rpc_call_half_close(call);
    ear_wait(&client, &client.dones, 1);
    assert_int_equal(client.outcome.code, ST_OK);
    assert_int_equal(client.messages, 20000);
    assert_int_equal(client.out_of_order, 0);
    ear_wait(&server, &server.dones, 1);
    assert_true(server.writables > 0);
    rpc_call_unref(call);
    rig_stop(&rig);
    ear_fini(&client);
}

/* A reader that pauses stops the sender by flow control; the sender's queue fills; after the
 * resume everything arrives. */
static void paused_reader_stops_the_sender(void **state)
{
    (void)state;
    struct rig rig;
    rig_init(&rig);
    rig.channel_config.send_limits = (struct rpc_send_limits){.messages_max = 100000, .bytes_max = 1 << 20};
    rig_start(&rig);
    struct ear server, client;
    rig_expect(&rig, &server);
    ear_init(&client);
    struct rpc_call *call = rig_call(&rig, "/test.T/Ear", &client);
    ear_wait(&server, &server.next, 1);
    rpc_call_pause_reads(server.call);
    rpc_call_pause_reads(server.call);
    uint8_t bytes[32768] = {0};
    uint32_t sent = 0;
    for (int quiet = 0; quiet < 20;) { /* until the queue stays full */
        status_t st = rpc_call_send(call, bytes, sizeof bytes);
        if (failed(st)) {
            assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
            quiet++;
            clock_sleep_ns(5 * NS_PER_MS);
        } else {
            sent++;
            quiet = 0;
            assert_true(sent < 10000); /* 320 MiB: the pause does not hold */
        }
    }
    assert_true(ear_get(&server, &server.messages) <= 1);
    size_t queued = 0;
    rpc_call_send_queue(call, &queued, NULL);
    assert_true(queued > (size_t)1 << 19);
    rpc_call_half_close(call);
    rpc_call_resume_reads(server.call);
    ear_wait(&server, &server.half_closes, 1);
    assert_int_equal(server.messages, sent);
    assert_false(failed(rpc_call_finish(server.call, ST_OK, NULL, NULL, 0)));
    ear_wait(&client, &client.dones, 1);
    assert_int_equal(client.outcome.code, ST_OK);
    rpc_call_send_queue(call, &queued, NULL);
    assert_int_equal(queued, 0);
    rpc_call_unref(call);
    rig_stop(&rig);
    ear_fini(&client);
}

/* A message that came during the pause is delivered after the resume, by another thread too;
 * an OK waits for it; an error does not. */
static void pause_holds_ok_but_not_errors(void **state)
{
    (void)state;
    for (int with_error = 0; with_error <= 1; with_error++) {
        struct rig rig;
        rig_init(&rig);
        rig_start(&rig);
        struct ear server, client;
        rig_expect(&rig, &server);
        ear_init(&client);
        struct rpc_call *call = rig_call(&rig, "/test.T/Ear", &client);
        rpc_call_pause_reads(call); /* one read is out already: its message is held back */
        ear_wait(&server, &server.next, 1);
        assert_false(failed(rpc_call_send(server.call, "held", 4)));
        assert_false(failed(rpc_call_finish(server.call, with_error ? ST_ABORTED : ST_OK, "e", NULL, 0)));
        ear_wait(&server, &server.dones, 1);
        if (with_error) {
            ear_wait(&client, &client.dones, 1);
            assert_int_equal(client.outcome.code, ST_ABORTED);
            assert_int_equal(client.messages, 0);
        } else {
            clock_sleep_ns(50 * NS_PER_MS);
            assert_int_equal(ear_get(&client, &client.dones), 0);
            rpc_call_resume_reads(call);
            ear_wait(&client, &client.dones, 1);
            assert_int_equal(client.outcome.code, ST_OK);
            assert_int_equal(client.messages, 1);
        }
        rpc_call_resume_reads(call);
        rpc_call_unref(call);
        rig_stop(&rig);
        ear_fini(&client);
    }
}

/* A call cancelled by its caller ends with CANCELLED on both sides, though nothing is sent. */
static void cancel_reaches_both_sides(void **state)
{
    (void)state;
    for (int by_server = 0; by_server <= 1; by_server++) {
        struct rig rig;
        rig_init(&rig);
        rig_start(&rig);
        struct ear server, client;
        rig_expect(&rig, &server);
        ear_init(&client);
        struct rpc_call *call = rig_call(&rig, "/test.T/Ear", &client);
        ear_wait(&server, &server.next, 1);
        uint64_t start = clock_now_ns();
        rpc_call_cancel(by_server ? server.call : call);
        rpc_call_cancel(by_server ? server.call : call);
        ear_wait(&server, &server.dones, 1);
        ear_wait(&client, &client.dones, 1);
        print_message("cancel by the %s: both told after %.2f ms\n", by_server ? "server" : "client",
                      (double)(clock_now_ns() - start) / 1e6);
        assert_int_equal(server.outcome.code, ST_CANCELLED);
        assert_int_equal(client.outcome.code, ST_CANCELLED);
        assert_int_equal(server.half_closes, 0);
        assert_int_equal(rpc_call_send(server.call, "x", 1).code, ST_CANCELLED);
        assert_int_equal(rpc_call_finish(server.call, ST_OK, "", NULL, 0).code, ST_CANCELLED);
        rpc_call_pause_reads(server.call);
        rpc_call_resume_reads(server.call);
        rpc_call_unref(call);
        rig_stop(&rig);
        ear_fini(&client);
    }
}

/* A lapsed deadline is DEADLINE_EXCEEDED on both sides. */
static void deadline_ends_both_sides(void **state)
{
    (void)state;
    struct rig rig;
    rig_init(&rig);
    rig_start(&rig);
    struct ear server, client;
    rig_expect(&rig, &server);
    ear_init(&client);
    struct rpc_call *call = channel_call(rig.channel, "/test.T/Ear", clock_now_ns() + 100 * NS_PER_MS, &client);
    ear_wait(&client, &client.dones, 1);
    assert_int_equal(client.outcome.code, ST_DEADLINE_EXCEEDED);
    if (atomic_load(&rig.ear_count) > 0) { /* a very slow machine may never have got there */
        ear_wait(&server, &server.dones, 1);
        assert_true(server.outcome.code == ST_DEADLINE_EXCEEDED || server.outcome.code == ST_CANCELLED);
    }
    rpc_call_unref(call);
    rig_stop(&rig);
    ear_fini(&client);
}

/* A message over the receiver's bound ends the call with RESOURCE_EXHAUSTED, not the process. */
static void oversized_message_ends_its_call(void **state)
{
    (void)state;
    struct rig rig;
    rig_init(&rig);
    rig.server_config.message_bytes_max = 1000;
    rig_start(&rig);
    struct ear client;
    ear_init(&client);
    struct rpc_call *call = rig_call(&rig, "/test.T/Echo", &client);
    uint8_t bytes[1001] = {0};
    assert_false(failed(rpc_call_send(call, bytes, sizeof bytes)));
    ear_wait(&client, &client.dones, 1);
    assert_int_equal(client.outcome.code, ST_RESOURCE_EXHAUSTED);
    rpc_call_unref(call);
    rig_stop(&rig);
    ear_fini(&client);
}

static void cancel_self(struct ear *ear, struct rpc_call *call)
{
    (void)ear;
    rpc_call_cancel(call);
}

static void cancel_self_on_message(struct ear *ear, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    (void)bytes;
    (void)len;
    cancel_self(ear, call);
}

/* One buffer goes out on many calls without being copied, and is freed when all have sent it. */
static void one_buffer_on_many_calls(void **state)
{
    (void)state;
    struct rig rig;
    rig_init(&rig);
    rig_start(&rig);
    struct rpc_buffer *buffer = NULL;
    uint8_t *bytes = NULL;
    assert_false(failed(rpc_buffer_create(100000, &buffer, &bytes)));
    memset(bytes, 7, 100000);
    struct ear ears[8];
    struct rpc_call *calls[8];
    for (int i = 0; i < 8; i++) {
        ear_init(&ears[i]);
        if (i == 3) {
            ears[i].react = cancel_self_on_message;
        }
        calls[i] = rig_call(&rig, "/test.T/Echo", &ears[i]);
        rpc_buffer_ref(buffer);
        assert_false(failed(rpc_call_send_buffer(calls[i], buffer)));
        rpc_call_half_close(calls[i]);
        rpc_buffer_ref(buffer);
        assert_true(failed(rpc_call_send_buffer(calls[i], buffer))); /* refused: still ours */
        rpc_buffer_unref(buffer);
    }
    rpc_buffer_unref(buffer);
    for (int i = 0; i < 8; i++) {
        ear_wait(&ears[i], &ears[i].dones, 1);
        assert_int_equal(ears[i].bytes, 100000);
        assert_true(ears[i].outcome.code == ST_OK || i == 3);
        rpc_call_unref(calls[i]);
    }
    rig_stop(&rig);
    for (int i = 0; i < 8; i++) {
        ear_fini(&ears[i]);
    }
}

/* Any mix of sends, pauses, cancels and lost references gives each call exactly one on_done. */
static void random_endings_end_once(void **state)
{
    (void)state;
    unsigned seed = (unsigned)clock_now_ns();
    const char *given = getenv("BATON_TEST_SEED");
    if (given != NULL) {
        seed = (unsigned)strtoul(given, NULL, 10);
    }
    print_message("BATON_TEST_SEED=%u\n", seed);
    struct rig rig;
    rig_init(&rig);
    rig_start(&rig);
    enum { CALLS = 400 };
    struct ear *ears = calloc(CALLS, sizeof *ears);
    for (int i = 0; i < CALLS; i++) {
        ear_init(&ears[i]);
        uint64_t deadline = rand_r(&seed) % 5 == 0 ? clock_now_ns() + rand_r(&seed) % 5000000 : RPC_NO_DEADLINE;
        struct rpc_call *call = channel_call(rig.channel, "/test.T/Echo", deadline, &ears[i]);
        int steps = rand_r(&seed) % 8;
        for (int k = 0; k < steps; k++) {
            switch (rand_r(&seed) % 8) {
            case 0: rpc_call_pause_reads(call); break;
            case 1: rpc_call_resume_reads(call); break;
            case 2:
                if (rand_r(&seed) % 4 == 0) {
                    rpc_call_cancel(call);
                }
                break;
            default: (void)!rpc_call_send(call, "abcd", 4).code; break;
            }
        }
        if (rand_r(&seed) % 3 == 0) {
            rpc_call_cancel(call);
        } else {
            rpc_call_resume_reads(call);
            rpc_call_half_close(call);
        }
        rpc_call_unref(call);
    }
    for (int i = 0; i < CALLS; i++) {
        ear_wait(&ears[i], &ears[i].dones, 1);
    }
    rig_stop(&rig);
    for (int i = 0; i < CALLS; i++) {
        assert_int_equal(ears[i].dones, 1);
        assert_int_equal(ears[i].out_of_order, 0);
        ear_fini(&ears[i]);
    }
    free(ears);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(malformed_calls_are_refused),
        cmocka_unit_test(echo_keeps_every_byte),
        cmocka_unit_test(what_travels_beside_messages),
        cmocka_unit_test(full_queue_is_refused_then_writable),
        cmocka_unit_test(paused_reader_stops_the_sender),
        cmocka_unit_test(pause_holds_ok_but_not_errors),
        cmocka_unit_test(cancel_reaches_both_sides),
        cmocka_unit_test(deadline_ends_both_sides),
        cmocka_unit_test(oversized_message_ends_its_call),
        cmocka_unit_test(one_buffer_on_many_calls),
        cmocka_unit_test(random_endings_end_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
