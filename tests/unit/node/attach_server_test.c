/* Claims on the node's end of Attach: the hello comes first, every stream that came ends in one
 * DOWN, and a router that overruns the node or reads nothing loses its stream, not the node. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <pthread.h>

#include "base/clock.h"
#include "base/mailbox.h"
#include "node/attach_server.h"

#define METHOD "/baton.control.v1.NodeControl/Attach"
#define PATIENCE_NS (20 * NS_PER_S) /* never reached unless something is broken */

enum { ROUTERS = 3 };

/* ---- the node: a mailbox, as in node.c */

static struct mailbox *mailbox;
static struct attach_server *attach;
static struct rpc_runtime *runtime;
static struct rpc_server *server;
static struct rpc_channel *channel;
static _Atomic bool mailbox_is_full; /* pretend */

static bool post(void *user, const struct attach_post *message)
{
    (void)user;
    if (message->kind != ATTACH_POST_DOWN && mailbox_is_full) { return false; }
    mailbox_post_wait(mailbox, message);
    return true;
}

static struct attach_post next_post(void)
{
    struct attach_post message;
    assert_true(mailbox_wait(mailbox, clock_now_ns() + PATIENCE_NS));
    assert_true(mailbox_take(mailbox, &message));
    return message;
}

/* ---- a router: what one call heard */

struct ear {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint32_t messages, dones;
    uint64_t bytes;
    uint8_t first[16], last[16];
    size_t first_len, last_len;
    uint8_t code;
    char text[256];
};

static void ear_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    (void)call;
    struct ear *ear = user;
    pthread_mutex_lock(&ear->mutex);
    size_t kept = len < sizeof ear->last ? len : sizeof ear->last;
    memcpy(ear->last, bytes, kept);
    ear->last_len = len;
    if (ear->messages++ == 0) {
        memcpy(ear->first, bytes, kept);
        ear->first_len = len;
    }
    ear->bytes += len;
    pthread_cond_broadcast(&ear->changed);
    pthread_mutex_unlock(&ear->mutex);
}

static void ear_done(void *user, struct rpc_call *call, const struct rpc_outcome *outcome)
{
    (void)call;
    struct ear *ear = user;
    pthread_mutex_lock(&ear->mutex);
    ear->dones++;
    ear->code = outcome->code;
    snprintf(ear->text, sizeof ear->text, "%s", outcome->message);
    pthread_cond_broadcast(&ear->changed);
    pthread_mutex_unlock(&ear->mutex);
}

static const struct rpc_callbacks ear_callbacks = {.on_message = ear_message, .on_done = ear_done};

static struct rpc_call *dial(struct ear *ear)
{
    struct rpc_call *call = NULL;
    struct diag diag;
    memset(ear, 0, sizeof *ear);
    pthread_mutex_init(&ear->mutex, NULL);
    pthread_cond_init(&ear->changed, NULL);
    struct rpc_call_options options = {.method = METHOD, .wait_for_ready = true, .callbacks = &ear_callbacks, .user = ear};
    assert_false(failed(rpc_channel_call(channel, &options, &call, &diag)));
    return call;
}

static void ear_wait(struct ear *ear, const uint32_t *field, uint32_t value)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)(PATIENCE_NS / NS_PER_S);
    pthread_mutex_lock(&ear->mutex);
    while (*field < value) { assert_int_equal(pthread_cond_timedwait(&ear->changed, &ear->mutex, &until), 0); }
    pthread_mutex_unlock(&ear->mutex);
}

static int start(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    const char *listen[] = {"127.0.0.1:0"};
    char target[64];
    struct rpc_server_config config = {.listen = listen, .listen_count = 1};
    mailbox_is_full = false;
    assert_false(failed(mailbox_create(256, sizeof(struct attach_post), &mailbox)));
    assert_false(failed(rpc_runtime_create(2, &runtime)));
    assert_false(failed(rpc_server_create(runtime, &config, &server, &diag)));
    assert_false(failed(attach_server_create(ROUTERS, (const uint8_t *)"hello", 5, post, NULL, &attach)));
    assert_false(failed(attach_server_register(attach, server, &diag)));
    assert_false(failed(rpc_server_start(server, &diag)));
    snprintf(target, sizeof target, "127.0.0.1:%u", rpc_server_port(server, 0));
    struct rpc_channel_config channel_config = {.target = target};
    assert_false(failed(rpc_channel_create(runtime, &channel_config, &channel, &diag)));
    return 0;
}

static int stop(void **state)
{
    (void)state;
    rpc_channel_destroy(channel);
    rpc_server_destroy(server);
    attach_server_destroy(attach);
    attach_server_destroy(NULL);
    rpc_runtime_destroy(runtime);
    struct attach_post message;
    while (mailbox_take(mailbox, &message)) {
        if (message.kind == ATTACH_POST_BYTES) { free(message.bytes); }
    }
    mailbox_destroy(mailbox);
    return 0;
}

/* The node speaks first. UP comes with the router's first message, then each message whole and in
 * order, also an empty one; what the node sends arrives; the end is one DOWN. */
static void a_stream_lives_and_ends(void **state)
{
    (void)state;
    static struct ear ear; /* lives until the runtime has ended its last call */
    struct rpc_call *call = dial(&ear);
    ear_wait(&ear, &ear.messages, 1);
    assert_int_equal(ear.first_len, 5);
    assert_memory_equal(ear.first, "hello", 5);
    assert_false(failed(rpc_call_send(call, "one", 3)));
    assert_false(failed(rpc_call_send(call, "", 0)));
    struct attach_post up = next_post(), one = next_post(), empty = next_post();
    assert_int_equal(up.kind, ATTACH_POST_UP);
    assert_int_equal(one.kind, ATTACH_POST_BYTES);
    assert_int_equal(one.router, up.router);
    assert_int_equal(one.byte_count, 3);
    assert_memory_equal(one.bytes, "one", 3);
    assert_int_equal(empty.byte_count, 0);
    free(one.bytes);
    free(empty.bytes);
    attach_server_send(attach, up.router, (const uint8_t *)"tokens", 6);
    ear_wait(&ear, &ear.messages, 2);
    assert_memory_equal(ear.last, "tokens", 6);
    rpc_call_half_close(call);
    struct attach_post down = next_post();
    assert_int_equal(down.kind, ATTACH_POST_DOWN);
    assert_int_equal(down.router, up.router);
    attach_server_send(attach, up.router, (const uint8_t *)"late", 4); /* between DOWN and forget: no harm */
    attach_server_forget(attach, down.router);
    ear_wait(&ear, &ear.dones, 1);
    assert_int_equal(ear.code, ST_OK);
    assert_int_equal(ear.messages, 2);
    rpc_call_unref(call);
}

/* One more router than there is room for is refused with what to do; a handle is used again only
 * after forget. */
static void handles_are_bounded_and_reused(void **state)
{
    (void)state;
    static struct ear ears[ROUTERS], extra, early, late; /* one each: a callback may still be returning */
    struct rpc_call *calls[ROUTERS];
    bool seen[ROUTERS] = {false};
    for (int i = 0; i < ROUTERS; i++) {
        calls[i] = dial(&ears[i]);
        assert_false(failed(rpc_call_send(calls[i], "x", 1)));
        struct attach_post up = next_post(), bytes = next_post();
        assert_int_equal(up.kind, ATTACH_POST_UP);
        assert_in_range(up.router, 0, ROUTERS - 1);
        assert_false(seen[up.router]);
        seen[up.router] = true;
        free(bytes.bytes);
    }
    struct rpc_call *call = dial(&extra);
    ear_wait(&extra, &extra.dones, 1);
    assert_int_equal(extra.code, ST_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(extra.text, "--routers-max"));
    rpc_call_unref(call);

    rpc_call_cancel(calls[1]);
    struct attach_post down = next_post();
    assert_int_equal(down.kind, ATTACH_POST_DOWN);
    call = dial(&early); /* not forgotten yet */
    ear_wait(&early, &early.dones, 1);
    assert_int_equal(early.code, ST_RESOURCE_EXHAUSTED);
    rpc_call_unref(call);
    attach_server_forget(attach, down.router);
    call = dial(&late);
    ear_wait(&late, &late.messages, 1);
    assert_false(failed(rpc_call_send(call, "x", 1)));
    struct attach_post up = next_post();
    assert_int_equal(up.router, down.router);
    rpc_call_unref(call);
    for (int i = 0; i < ROUTERS; i++) { rpc_call_unref(calls[i]); }
}

/* A router that leaves without a word still ends in a DOWN, so that its handle comes back. */
static void silence_ends_in_down_too(void **state)
{
    (void)state;
    static struct ear ears[3 * ROUTERS];
    for (int i = 0; i < 3 * ROUTERS; i++) {
        struct rpc_call *call = dial(&ears[i]);
        ear_wait(&ears[i], &ears[i].messages, 1);
        rpc_call_cancel(call);
        struct attach_post down = next_post();
        assert_int_equal(down.kind, ATTACH_POST_DOWN);
        attach_server_forget(attach, down.router);
        rpc_call_unref(call);
    }
}

/* Where the mailbox is full the router loses its stream, and DOWN comes all the same. */
static void a_full_mailbox_drops_the_router(void **state)
{
    (void)state;
    static struct ear ear; /* lives until the runtime has ended its last call */
    struct rpc_call *call = dial(&ear);
    assert_false(failed(rpc_call_send(call, "x", 1)));
    struct attach_post up = next_post(), bytes = next_post();
    free(bytes.bytes);
    mailbox_is_full = true;
    assert_false(failed(rpc_call_send(call, "y", 1)));
    struct attach_post down = next_post();
    assert_int_equal(down.kind, ATTACH_POST_DOWN);
    assert_int_equal(down.router, up.router);
    ear_wait(&ear, &ear.dones, 1);
    assert_int_not_equal(ear.code, ST_OK);
    rpc_call_unref(call);
}

/* The core may drop a router by name of the fault; the router is told. */
static void a_dropped_router_is_told_why(void **state)
{
    (void)state;
    static struct ear ear; /* lives until the runtime has ended its last call */
    struct rpc_call *call = dial(&ear);
    assert_false(failed(rpc_call_send(call, "x", 1)));
    struct attach_post up = next_post(), bytes = next_post();
    free(bytes.bytes);
    attach_server_drop(attach, up.router, "speak version 1");
    ear_wait(&ear, &ear.dones, 1);
    assert_int_equal(ear.code, ST_INVALID_ARGUMENT);
    assert_string_equal(ear.text, "speak version 1");
    assert_int_equal(next_post().kind, ATTACH_POST_DOWN);
    rpc_call_unref(call);
}

/* A router that reads nothing is dropped when its queue is full; the memory it took is bounded. */
static void a_router_that_does_not_read_is_dropped(void **state)
{
    (void)state;
    static uint8_t chunk[1 << 20];
    static struct ear ear; /* lives until the runtime has ended its last call */
    struct rpc_call *call = dial(&ear);
    ear_wait(&ear, &ear.messages, 1);
    assert_false(failed(rpc_call_send(call, "x", 1)));
    struct attach_post up = next_post(), bytes = next_post();
    free(bytes.bytes);
    rpc_call_pause_reads(call);
    struct attach_post message = {.kind = ATTACH_POST_UP};
    uint32_t sent = 0;
    for (; sent < 1000 && message.kind != ATTACH_POST_DOWN; sent++) {
        attach_server_send(attach, up.router, chunk, sizeof chunk);
        if (mailbox_wait(mailbox, clock_now_ns() + NS_PER_MS)) { message = next_post(); }
    }
    assert_int_equal(message.kind, ATTACH_POST_DOWN);
    assert_true(sent < 200); /* 32 MiB of queue, and what the connection's windows hold */
    rpc_call_resume_reads(call);
    ear_wait(&ear, &ear.dones, 1);
    rpc_call_unref(call);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_stream_lives_and_ends, start, stop),
        cmocka_unit_test_setup_teardown(handles_are_bounded_and_reused, start, stop),
        cmocka_unit_test_setup_teardown(silence_ends_in_down_too, start, stop),
        cmocka_unit_test_setup_teardown(a_full_mailbox_drops_the_router, start, stop),
        cmocka_unit_test_setup_teardown(a_dropped_router_is_told_why, start, stop),
        cmocka_unit_test_setup_teardown(a_router_that_does_not_read_is_dropped, start, stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
