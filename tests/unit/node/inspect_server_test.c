/* Claims on Inspect: what the core says is what arrives, block by block where that was asked for; a
 * node without room refuses and goes on; garbage is refused; a call that nobody answers any more is
 * let go of. */
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
#include "node/inspect_server.h"
#include "proto/baton/control/v1/control.pb-c.h"

#define METHOD "/baton.control.v1.NodeControl/Inspect"

enum { HOLDERS = 150 }; /* more than the answer's first room */

static struct rpc_runtime *runtime;
static struct rpc_server *server;
static struct rpc_channel *channel;
static struct inspect_server *inspect;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool has_post, is_full, is_done;
static struct inspect_post posted;
static uint8_t code;
static size_t answer_bytes;
static uint8_t answer[1 << 16];

static bool post(void *user, const struct inspect_post *message)
{
    (void)user;
    pthread_mutex_lock(&lock);
    bool takes = !is_full;
    if (takes) {
        posted = *message;
        has_post = true;
        pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&lock);
    return takes;
}

static void on_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    (void)user;
    (void)call;
    assert_true(len <= sizeof answer);
    memcpy(answer, bytes, len);
    answer_bytes = len;
}

static void on_done(void *user, struct rpc_call *call, const struct rpc_outcome *outcome)
{
    (void)user;
    (void)call;
    pthread_mutex_lock(&lock);
    code = outcome->code;
    is_done = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static const struct rpc_callbacks client = {.on_message = on_message, .on_done = on_done};

static void ask(const void *bytes, size_t len)
{
    struct diag diag = {{0}};
    struct rpc_call *call = NULL;
    struct rpc_call_options options = {.method = METHOD, .deadline_ns = clock_now_ns() + 20 * NS_PER_S, .wait_for_ready = true, .callbacks = &client};
    has_post = is_done = false;
    answer_bytes = 0;
    assert_false(failed(rpc_channel_call(channel, &options, &call, &diag)));
    assert_false(failed(rpc_call_send(call, bytes, len)));
    rpc_call_half_close(call);
    rpc_call_unref(call);
}

static void wait_for(const bool *what)
{
    pthread_mutex_lock(&lock);
    while (!*what) { pthread_cond_wait(&changed, &lock); }
    pthread_mutex_unlock(&lock);
}

static int start(void **state)
{
    (void)state;
    struct diag diag = {{0}};
    const char *addresses[] = {"127.0.0.1:0"};
    struct rpc_server_config config = {.listen = addresses, .listen_count = 1};
    is_full = false;
    assert_false(failed(rpc_runtime_create(1, &runtime)));
    assert_false(failed(rpc_server_create(runtime, &config, &server, &diag)));
    assert_false(failed(inspect_server_create(post, NULL, &inspect)));
    assert_false(failed(inspect_server_register(inspect, server, &diag)));
    assert_false(failed(rpc_server_start(server, &diag)));
    char target[64];
    snprintf(target, sizeof target, "127.0.0.1:%u", rpc_server_port(server, 0));
    struct rpc_channel_config to = {.target = target};
    assert_false(failed(rpc_channel_create(runtime, &to, &channel, &diag)));
    return 0;
}

static int stop(void **state)
{
    (void)state;
    rpc_channel_destroy(channel);
    rpc_server_destroy(server);
    rpc_runtime_destroy(runtime);
    inspect_server_destroy(inspect);
    return 0;
}

/* The role: holder i has i % 5 blocks, numbered from 10 * i. */
static void role_inspect(void *role, struct node_cache_numbers *ret_numbers, inspect_fn visit, void *user)
{
    assert_ptr_equal(role, &inspect);
    *ret_numbers = (struct node_cache_numbers){.blocks_published = 11, .blocks_taken = 12, .blocks_evicted = 13, .tier_tokens_loaded = 14, .loads_chosen = 15, .loads_declined = 16};
    for (uint32_t i = 0; i < HOLDERS; i++) {
        static uint32_t kept[HOLDERS][4]; /* as a core's tables, there until the answer is packed */
        for (uint32_t b = 0; b < 4; b++) { kept[i][b] = 10 * i + b; }
        struct inspect_entry entry = {.leg = {7, i}, .sequence = i, .state = i % 2 ? "running" : "waiting", .priority = -3, .age_ns = i * NS_PER_S,
                                      .tokens = 100 + i, .tokens_computed = 50 + i, .tokens_cached = i, .block_count = i % 5, .blocks = kept[i]};
        visit(user, &entry);
    }
}

static void answer_now(void)
{
    struct kv_tier_stats tiers = {.entries = {1, 2}, .entries_max = {3, 0}, .bytes = {5, 6}, .disk_io = "", .disk_state = ""};
    struct ctl_load load = {.blocks_total = 100, .blocks_free = 1, .blocks_held = 2, .blocks_cached = 90, .blocks_quarantined = 7, .cache_tokens_asked = 1000, .cache_tokens_found = 640};
    struct inspect_about about = {.name = "d0", .role = "decode", .model = "tiny", .block_tokens = 16, .block_bytes = 4096, .boot_epoch = 99, .tiers = &tiers};
    inspect_answer(&posted, &about, &load, role_inspect, &inspect);
}

static void the_answer_is_what_the_core_says(void **state)
{
    (void)state;
    static const uint8_t with_blocks[] = {0x08, 0x01};
    for (uint32_t round = 0; round < 2; round++) {
        ask(with_blocks, round == 0 ? 0 : sizeof with_blocks);
        wait_for(&has_post);
        assert_int_equal(posted.with_blocks, round == 1);
        answer_now();
        wait_for(&is_done);
        assert_int_equal(code, ST_OK);
        Baton__Control__V1__InspectResponse *view = baton__control__v1__inspect_response__unpack(NULL, answer_bytes, answer);
        assert_non_null(view);
        assert_string_equal(view->node_name, "d0");
        assert_string_equal(view->role, "decode");
        assert_int_equal(view->block_tokens, 16);
        assert_int_equal(view->blocks_total, view->blocks_free + view->blocks_held + view->blocks_cached + view->blocks_quarantined);
        assert_int_equal(view->cache_tokens_found, 640);
        assert_int_equal(view->blocks_evicted, 13);
        assert_int_equal(view->loads_declined, 16);
        assert_int_equal(view->n_tiers, 1); /* there is no disk tier */
        assert_string_equal(view->tiers[0]->name, "host");
        assert_int_equal(view->n_holders, HOLDERS);
        for (uint32_t i = 0; i < HOLDERS; i++) {
            const Baton__Control__V1__KvHolder *holder = view->holders[i];
            assert_int_equal(holder->leg->hi, 7);
            assert_int_equal(holder->leg->lo, i);
            assert_string_equal(holder->state, i % 2 ? "running" : "waiting");
            assert_int_equal(holder->priority, -3);
            assert_int_equal(holder->tokens_computed, 50 + i);
            assert_int_equal(holder->block_count, i % 5);
            assert_int_equal(holder->n_blocks, round == 0 ? 0 : i % 5);
            for (uint32_t b = 0; b < holder->n_blocks; b++) { assert_int_equal(holder->blocks[b], 10 * i + b); }
        }
        baton__control__v1__inspect_response__free_unpacked(view, NULL);
    }
}

static void a_full_node_refuses_and_goes_on(void **state)
{
    (void)state;
    is_full = true;
    ask("", 0);
    wait_for(&is_done);
    assert_int_equal(code, ST_RESOURCE_EXHAUSTED);
    is_full = false;
    ask("", 0);
    wait_for(&has_post);
    answer_now();
    wait_for(&is_done);
    assert_int_equal(code, ST_OK);
}

static void garbage_is_refused(void **state)
{
    (void)state;
    static uint8_t zeros[300];
    ask("\xff\xff\xff", 3);
    wait_for(&is_done);
    assert_int_equal(code, ST_INVALID_ARGUMENT);
    ask(zeros, sizeof zeros);
    wait_for(&is_done);
    assert_int_equal(code, ST_INVALID_ARGUMENT);
    assert_false(has_post);
}

/* The node ends with a request in its mailbox: the reference is given back, and nothing waits. */
static void an_unanswered_call_is_let_go(void **state)
{
    (void)state;
    ask("", 0);
    wait_for(&has_post);
    rpc_server_shutdown(server, 0);
    wait_for(&is_done);
    assert_int_not_equal(code, ST_OK);
    inspect_drop(&posted);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_answer_is_what_the_core_says, start, stop),
        cmocka_unit_test_setup_teardown(a_full_node_refuses_and_goes_on, start, stop),
        cmocka_unit_test_setup_teardown(garbage_is_refused, start, stop),
        cmocka_unit_test_setup_teardown(an_unanswered_call_is_let_go, start, stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
