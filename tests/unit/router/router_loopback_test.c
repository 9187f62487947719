/* Claim: a client of the router gets every token once and in order, whatever its nodes, other
 * clients and its own pace do; and what is refused says why.
 *
 * The whole router runs in this process against fake nodes on loopback. */
#include "tests/unit/router/router_testing.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "proto/baton/v1/inference.pb-c.h"
#include "router/router_run.h"
#include "rpc/rpc.h"
#include "tests/unit/router/fake_node.h"

/* Longer than anything that works takes; reached only when something is broken. */
#define PATIENCE_NS (30 * NS_PER_S)

/* ---- a client ---- */

struct client {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct rpc_call *call;
    bool is_slow; /* stops to read after its first message */
    bool is_done;
    uint8_t code;
    char why[1024], retry[32];
    uint32_t messages;
    size_t text_len[2], tokens, logprobs;
    char text[2][16384];
    uint32_t usage_tokens, cached_tokens, finish, prompt_tokens, resumes;
    uint64_t kv_bytes;
    char prefill[64], decode[64], transport[16], stop_text[64];
    uint8_t *answer; /* of a unary call */
    size_t answer_len;
};

static void client_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    struct client *client = user;
    pthread_mutex_lock(&client->lock);
    Baton__V1__GenerateResponse *response = baton__v1__generate_response__unpack(NULL, len, bytes);
    assert_non_null(response);
    assert_in_range(response->index, 0, 1);
    size_t text_len = strlen(response->text);
    memcpy(client->text[response->index] + client->text_len[response->index], response->text, text_len + 1);
    client->text_len[response->index] += text_len;
    client->tokens += response->n_token_ids;
    client->logprobs += response->n_logprobs;
    client->prompt_tokens += (uint32_t)response->n_prompt_token_ids;
    if (response->finish_reason) { client->finish = response->finish_reason; }
    if (response->stop_text[0]) { snprintf(client->stop_text, sizeof client->stop_text, "%s", response->stop_text); }
    if (response->usage) {
        client->usage_tokens = response->usage->completion_tokens;
        client->cached_tokens = response->usage->cached_prompt_tokens;
    }
    if (response->route) {
        snprintf(client->prefill, sizeof client->prefill, "%s", response->route->prefill_node);
        snprintf(client->decode, sizeof client->decode, "%s", response->route->decode_node);
        snprintf(client->transport, sizeof client->transport, "%s", response->route->transport);
        client->resumes = response->route->resumes;
        client->kv_bytes = response->route->kv_bytes;
    }
    baton__v1__generate_response__free_unpacked(response, NULL);
    client->messages++;
    if (client->is_slow && client->messages == 1) { rpc_call_pause_reads(call); }
    pthread_cond_broadcast(&client->changed);
    pthread_mutex_unlock(&client->lock);
}

static void client_answer(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    (void)call;
    struct client *client = user;
    pthread_mutex_lock(&client->lock);
    client->answer = realloc(client->answer, len + 1);
    assert_non_null(client->answer);
    memcpy(client->answer, bytes, len);
    client->answer_len = len;
    client->messages++;
    pthread_mutex_unlock(&client->lock);
}

static void client_done(void *user, struct rpc_call *call, const struct rpc_outcome *outcome)
{
    (void)call;
    struct client *client = user;
    pthread_mutex_lock(&client->lock);
    client->is_done = true;
    client->code = outcome->code;
    snprintf(client->why, sizeof client->why, "%s", outcome->message);
    for (size_t i = 0; i < outcome->metadata_count; i++) {
        if (strcmp(outcome->metadata[i].key, RPC_RETRY_KEY) != 0) { continue; }
        snprintf(client->retry, sizeof client->retry, "%.*s", (int)outcome->metadata[i].value_len, outcome->metadata[i].value);
    }
    pthread_cond_broadcast(&client->changed);
    pthread_mutex_unlock(&client->lock);
}

static const struct rpc_callbacks stream_callbacks = {.on_message = client_message, .on_done = client_done};
static const struct rpc_callbacks unary_callbacks = {.on_message = client_answer, .on_done = client_done};

/* ---- the rig ---- */

struct rig {
    char model[256];
    struct router_config config;
    struct router_process *router;
    struct rpc_runtime *runtime;
    struct rpc_channel *channel;
    struct fake_node *prefill, *decodes[2];
    uint32_t decode_count;
    char prefill_flag[64], decode_flag[128];
    struct client clients[4];
};

static void start_router(struct rig *rig)
{
    struct diag diag = {{0}};
    status_t st = router_open(&rig->config, &rig->router, &diag);
    if (failed(st)) { fail_msg("router_open: %s", diag.text); }
    assert_false(failed(rpc_runtime_create(1, &rig->runtime)));
    struct rpc_channel_config channel = {.target = router_listen_address(rig->router)};
    assert_false(failed(rpc_channel_create(rig->runtime, &channel, &rig->channel, &diag)));
}

static uint32_t cached_tokens_of_nodes; /* of those that are started next */

static struct fake_node *node_of(enum node_role role, const char *name, uint16_t port)
{
    struct fake_node_config config = {.role = role, .name = name, .port = port, .model_byte = 7,
                                      .vocab_size = TESTING_VOCAB, .context_tokens = TESTING_CONTEXT,
                                      .cached_tokens = cached_tokens_of_nodes, .hold_at = UINT32_MAX};
    return fake_node_start(&config);
}

/* prefill 0 or 1, decode 0 .. 2 */
static void start_nodes(struct rig *rig, uint32_t prefill, uint32_t decode)
{
    static const char *const names[] = {"d0", "d1"};
    rig->decode_count = decode;
    for (uint32_t i = 0; i < decode; i++) {
        rig->decodes[i] = node_of(NODE_ROLE_DECODE, names[i], 0);
        size_t at = strlen(rig->decode_flag);
        snprintf(rig->decode_flag + at, sizeof rig->decode_flag - at, "%s127.0.0.1:%u", i ? "," : "",
                 (unsigned)fake_node_port(rig->decodes[i]));
    }
    if (decode == 0) { snprintf(rig->decode_flag, sizeof rig->decode_flag, "127.0.0.1:1"); }
    rig->config.decode.values[rig->config.decode.count++] = rig->decode_flag;
    if (prefill == 0) { return; }
    rig->prefill = node_of(NODE_ROLE_PREFILL, "p0", 0);
    fake_node_feeds(rig->prefill, rig->decodes, decode);
    snprintf(rig->prefill_flag, sizeof rig->prefill_flag, "127.0.0.1:%u", (unsigned)fake_node_port(rig->prefill));
    rig->config.prefill.values[rig->config.prefill.count++] = rig->prefill_flag;
}

static int set_up(void **state)
{
    log_set_level(LOG_ERROR);
    struct rig *rig = calloc(1, sizeof *rig);
    assert_non_null(rig);
    testing_model_dir(rig->model, sizeof rig->model);
    char *argv[] = {(char *)"router", NULL};
    bool help;
    struct diag diag = {{0}};
    assert_false(failed(flags_parse(router_flags, router_flag_count, &rig->config, 1, argv, NULL, NULL, &help, &diag)));
    rig->config.model = rig->model;
    rig->config.listen = "127.0.0.1:0";
    for (unsigned i = 0; i < 4; i++) {
        pthread_mutex_init(&rig->clients[i].lock, NULL);
        pthread_cond_init(&rig->clients[i].changed, NULL);
    }
    *state = rig;
    return 0;
}

static int tear_down(void **state)
{
    struct rig *rig = *state;
    for (unsigned i = 0; i < 4; i++) {
        if (rig->clients[i].call) { rpc_call_cancel(rig->clients[i].call); }
        rpc_call_unref(rig->clients[i].call);
    }
    rpc_channel_destroy(rig->channel);
    rpc_runtime_destroy(rig->runtime);
    router_close(rig->router);
    fake_node_stop(rig->prefill);
    for (uint32_t i = 0; i < 2; i++) { fake_node_stop(rig->decodes[i]); }
    testing_model_dir_remove(rig->model);
    for (unsigned i = 0; i < 4; i++) {
        free(rig->clients[i].answer);
        pthread_cond_destroy(&rig->clients[i].changed);
        pthread_mutex_destroy(&rig->clients[i].lock);
    }
    free(rig);
    return 0;
}

static struct client *call(struct rig *rig, unsigned index, const char *method, const ProtobufCMessage *message,
                           bool is_stream)
{
    struct client *client = &rig->clients[index];
    char path[64];
    snprintf(path, sizeof path, "/baton.v1.Inference/%s", method);
    struct rpc_call_options options = {.method = path, .wait_for_ready = true, .user = client,
                                       .callbacks = is_stream ? &stream_callbacks : &unary_callbacks};
    struct diag diag = {{0}};
    rpc_call_unref(client->call);
    client->call = NULL;
    client->is_done = false;
    assert_false(failed(rpc_channel_call(rig->channel, &options, &client->call, &diag)));
    uint8_t bytes[16384];
    size_t len = protobuf_c_message_get_packed_size(message);
    assert_in_range(len, 0, sizeof bytes);
    protobuf_c_message_pack(message, bytes);
    assert_false(failed(rpc_call_send(client->call, bytes, len)));
    rpc_call_half_close(client->call);
    return client;
}

struct ask {
    uint32_t max_tokens, n;
    uint32_t logprobs;
    const char *stop;
    const char *text; /* NULL: "hello" */
    int32_t priority;
    const char *salt;
};

static struct client *generate(struct rig *rig, unsigned index, struct ask ask)
{
    Baton__V1__GenerateRequest request = BATON__V1__GENERATE_REQUEST__INIT;
    Baton__V1__SamplingParams sampling = BATON__V1__SAMPLING_PARAMS__INIT;
    Baton__V1__UInt max_tokens = BATON__V1__UINT__INIT, n = BATON__V1__UINT__INIT,
                    logprobs = BATON__V1__UINT__INIT;
    char *stops[1] = {(char *)ask.stop};
    max_tokens.value = ask.max_tokens;
    n.value = ask.n ? ask.n : 1;
    sampling.max_tokens = &max_tokens;
    sampling.n = &n;
    logprobs.value = ask.logprobs;
    if (ask.logprobs) { sampling.logprobs = &logprobs; }
    if (ask.stop) {
        sampling.n_stop = 1;
        sampling.stop = stops;
    }
    request.prompt_case = BATON__V1__GENERATE_REQUEST__PROMPT_TEXT;
    request.text = (char *)(ask.text ? ask.text : "hello");
    request.priority = ask.priority;
    if (ask.salt) { request.cache_salt = (char *)ask.salt; }
    request.sampling = &sampling;
    return call(rig, index, "Generate", &request.base, true);
}

static void wait_locked(struct client *client)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)(PATIENCE_NS / NS_PER_S);
    if (pthread_cond_timedwait(&client->changed, &client->lock, &until) != 0) { fail_msg("nothing came"); }
}

static void wait_done(struct client *client)
{
    pthread_mutex_lock(&client->lock);
    while (!client->is_done) { wait_locked(client); }
    pthread_mutex_unlock(&client->lock);
}

static void wait_tokens(struct client *client, size_t tokens)
{
    pthread_mutex_lock(&client->lock);
    while (client->tokens < tokens && !client->is_done) { wait_locked(client); }
    assert_true(client->tokens >= tokens);
    pthread_mutex_unlock(&client->lock);
}

static Baton__V1__GetStatusResponse *get_status(struct rig *rig)
{
    Baton__V1__GetStatusRequest request = BATON__V1__GET_STATUS_REQUEST__INIT;
    struct client *client = call(rig, 3, "GetStatus", &request.base, false);
    wait_done(client);
    assert_int_equal(client->code, ST_OK);
    Baton__V1__GetStatusResponse *response = baton__v1__get_status_response__unpack(NULL, client->answer_len, client->answer);
    assert_non_null(response);
    return response;
}

static void wait_attached(struct rig *rig, size_t count)
{
    uint64_t give_up_ns = clock_now_ns() + PATIENCE_NS;
    for (;;) {
        Baton__V1__GetStatusResponse *response = get_status(rig);
        size_t attached = 0;
        for (size_t i = 0; i < response->n_nodes; i++) { attached += response->nodes[i]->attached; }
        baton__v1__get_status_response__free_unpacked(response, NULL);
        if (attached == count) { return; }
        if (clock_now_ns() > give_up_ns) { fail_msg("%zu of %zu nodes attached", attached, count); }
        clock_sleep_ns(5 * NS_PER_MS);
    }
}

static void start(struct rig *rig, uint32_t prefill, uint32_t decode)
{
    start_nodes(rig, prefill, decode);
    start_router(rig);
    wait_attached(rig, prefill + decode);
}

static void assert_alphabet(const char *text, size_t len)
{
    assert_int_equal(strlen(text), len);
    for (size_t i = 0; i < len; i++) { assert_int_equal(text[i], 'a' + (int)(i % 26)); }
}

static void wait_legs(struct fake_node *node, uint32_t legs)
{
    uint64_t give_up_ns = clock_now_ns() + PATIENCE_NS;
    while (fake_node_legs(node) != legs) {
        if (clock_now_ns() > give_up_ns) { fail_msg("%u legs are held, not %u", fake_node_legs(node), legs); }
        clock_sleep_ns(NS_PER_MS);
    }
}

/* The standard health check of a service: 1 is SERVING, 2 is NOT_SERVING. */
static int health(struct rig *rig, const char *service)
{
    struct client *client = &rig->clients[2];
    struct rpc_call_options options = {.method = "/grpc.health.v1.Health/Check", .wait_for_ready = true, .user = client,
                                       .callbacks = &unary_callbacks};
    struct diag diag = {{0}};
    rpc_call_unref(client->call);
    client->call = NULL;
    client->is_done = false;
    assert_false(failed(rpc_channel_call(rig->channel, &options, &client->call, &diag)));
    uint8_t bytes[64] = {0x0a, (uint8_t)strlen(service)};
    memcpy(bytes + 2, service, strlen(service));
    assert_false(failed(rpc_call_send(client->call, bytes, strlen(service) > 0 ? 2 + strlen(service) : 0)));
    rpc_call_half_close(client->call);
    wait_done(client);
    assert_int_equal(client->code, ST_OK);
    assert_int_equal(client->answer_len, 2);
    assert_int_equal(client->answer[0], 0x08);
    return client->answer[1];
}

/* The core thread says so at the end of the turn in which it learns it. */
static void wait_health(struct rig *rig, const char *service, int wanted)
{
    uint64_t give_up_ns = clock_now_ns() + PATIENCE_NS;
    while (health(rig, service) != wanted) {
        if (clock_now_ns() > give_up_ns) { fail_msg("the health of \"%s\" is not %d", service, wanted); }
        clock_sleep_ns(NS_PER_MS);
    }
}

/* ---- the tests ---- */

/* The service serves while a decode node is attached: not with a prefill node alone. The process
 * is well all the while: restarting it would bring no node back. */
static void health_follows_the_decode_nodes(void **state)
{
    struct rig *rig = *state;
    start(rig, 1, 1);
    wait_health(rig, "", 1);
    wait_health(rig, "baton.v1.Inference", 1);
    fake_node_stop(rig->decodes[0]);
    rig->decodes[0] = NULL;
    fake_node_feeds(rig->prefill, NULL, 0);
    wait_attached(rig, 1);
    wait_health(rig, "baton.v1.Inference", 2);
    wait_health(rig, "", 1);
}

/* A name stands for its addresses: they are found, dialled and shown. */
static void a_name_is_resolved(void **state)
{
    struct rig *rig = *state;
    rig->decodes[0] = node_of(NODE_ROLE_DECODE, "d0", 0);
    snprintf(rig->decode_flag, sizeof rig->decode_flag, "localhost:%u", (unsigned)fake_node_port(rig->decodes[0]));
    rig->config.decode.values[rig->config.decode.count++] = rig->decode_flag;
    start_router(rig);
    wait_attached(rig, 1);
    struct client *client = generate(rig, 0, (struct ask){.max_tokens = 3});
    wait_done(client);
    assert_int_equal(client->code, ST_OK);
    assert_string_equal(client->decode, "d0");
}

/* A request through both pools: every token once, and the last message says where it ran. */
static void generate_streams_through_both_pools(void **state)
{
    struct rig *rig = *state;
    start(rig, 1, 1);
    struct client *client = generate(rig, 0, (struct ask){.max_tokens = 60});
    wait_done(client);
    assert_int_equal(client->code, ST_OK);
    assert_alphabet(client->text[0], 60);
    assert_int_equal(client->tokens, 60);
    assert_int_equal(client->usage_tokens, 60);
    assert_int_equal(client->finish, BATON__V1__FINISH_REASON__FINISH_REASON_LENGTH);
    assert_int_equal(client->prompt_tokens, 5);
    assert_string_equal(client->prefill, "p0");
    assert_string_equal(client->decode, "d0");
    assert_string_equal(client->transport, "shm");
    assert_int_equal(client->kv_bytes, 4096);
    assert_int_equal(client->resumes, 0);
}

/* What the decode node had is in the usage, the prefill node is told where the grant begins, and
 * priority and salt come to both. */
static void what_is_cached_is_told(void **state)
{
    struct rig *rig = *state;
    cached_tokens_of_nodes = 32;
    start(rig, 1, 1);
    cached_tokens_of_nodes = 0;
    struct ask question = {.max_tokens = 3, .text = "a prompt of a few blocks, so that some may be there", .priority = -4, .salt = "s"};
    struct client *client = generate(rig, 0, question);
    wait_done(client);
    assert_int_equal(client->code, ST_OK);
    assert_int_equal(client->cached_tokens, 32);
    struct ctl_prefill seen[2] = {fake_node_last(rig->decodes[0]), fake_node_last(rig->prefill)};
    assert_int_equal(seen[1].grant_first, 2);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(seen[i].work.priority, -4);
        assert_true(seen[i].work.cache_salt != 0);
    }
    assert_true(seen[0].work.cache_salt == seen[1].work.cache_salt);
}

/* Without a prefill node the decode node computes the prompt; two sequences share it. */
static void local_prefill_serves_two_sequences(void **state)
{
    struct rig *rig = *state;
    start(rig, 0, 1);
    struct client *client = generate(rig, 0, (struct ask){.max_tokens = 10, .n = 2});
    wait_done(client);
    assert_int_equal(client->code, ST_OK);
    assert_alphabet(client->text[0], 10);
    assert_alphabet(client->text[1], 10);
    assert_int_equal(client->usage_tokens, 20);
    assert_string_equal(client->prefill, "");
    assert_string_equal(client->transport, "local");
}

/* A stop string ends the request, and the node is told to free it. */
static void a_stop_string_frees_the_node(void **state)
{
    struct rig *rig = *state;
    start(rig, 1, 1);
    fake_node_hold(rig->decodes[0], 12);
    struct client *client = generate(rig, 0, (struct ask){.max_tokens = 100, .stop = "hij"});
    wait_done(client);
    assert_int_equal(client->code, ST_OK);
    assert_string_equal(client->text[0], "abcdefg");
    assert_string_equal(client->stop_text, "hij");
    assert_int_equal(client->finish, BATON__V1__FINISH_REASON__FINISH_REASON_STOP);
    wait_legs(rig->decodes[0], 0);
}

/* A client that cancels holds nothing anywhere any more. */
static void a_cancel_frees_the_nodes(void **state)
{
    struct rig *rig = *state;
    start(rig, 1, 1);
    fake_node_hold(rig->decodes[0], 5);
    struct client *client = generate(rig, 0, (struct ask){.max_tokens = 100});
    wait_tokens(client, 5);
    assert_int_equal(fake_node_legs(rig->decodes[0]), 1);
    rpc_call_cancel(client->call);
    wait_done(client);
    wait_legs(rig->decodes[0], 0);
    Baton__V1__GetStatusResponse *status = get_status(rig);
    assert_int_equal(status->requests_cancelled, 1);
    assert_int_equal(status->requests_live, 0);
    baton__v1__get_status_response__free_unpacked(status, NULL);
}

/* The decode node dies half way: the other one goes on, no token is repeated or missing. */
static void a_death_is_resumed_elsewhere(void **state)
{
    struct rig *rig = *state;
    start(rig, 1, 2);
    fake_node_hold(rig->decodes[0], 7);
    fake_node_hold(rig->decodes[1], 7);
    struct client *client = generate(rig, 0, (struct ask){.max_tokens = 40});
    wait_tokens(client, 7);
    uint32_t victim = fake_node_legs(rig->decodes[0]) == 1 ? 0 : 1;
    fake_node_hold(rig->decodes[1 - victim], UINT32_MAX);
    struct fake_node *dead = rig->decodes[victim];
    /* The prefill node's blocks can only go to the one that is left. */
    fake_node_feeds(rig->prefill, &rig->decodes[1 - victim], 1);
    fake_node_stop(dead);
    rig->decodes[victim] = NULL;
    wait_done(client);
    assert_int_equal(client->code, ST_OK);
    assert_alphabet(client->text[0], 40);
    assert_int_equal(client->tokens, 40);
    assert_int_equal(client->resumes, 1);
    assert_string_equal(client->decode, victim == 0 ? "d1" : "d0");
}

/* A node that died and came back on its address is attached again. */
static void a_restarted_node_is_attached_again(void **state)
{
    struct rig *rig = *state;
    start(rig, 0, 1);
    uint16_t port = fake_node_port(rig->decodes[0]);
    fake_node_stop(rig->decodes[0]);
    rig->decodes[0] = NULL;
    wait_attached(rig, 0);
    struct client *refused = generate(rig, 0, (struct ask){.max_tokens = 3});
    wait_done(refused);
    assert_int_equal(refused->code, ST_UNAVAILABLE);
    rig->decodes[0] = node_of(NODE_ROLE_DECODE, "d0", port);
    wait_attached(rig, 1);
    struct client *client = generate(rig, 1, (struct ask){.max_tokens = 3});
    wait_done(client);
    assert_int_equal(client->code, ST_OK);
    assert_alphabet(client->text[0], 3);
}

/* Nodes of the wrong role and of another layout are kept off, and the difference is shown. */
static void a_misfit_is_kept_off_with_words(void **state)
{
    struct rig *rig = *state;
    start_nodes(rig, 0, 1);
    struct fake_node_config odd = {.role = NODE_ROLE_PREFILL, .name = "p-odd", .model_byte = 7, .block_tokens = 32,
                                   .vocab_size = TESTING_VOCAB, .context_tokens = TESTING_CONTEXT, .hold_at = UINT32_MAX};
    rig->prefill = fake_node_start(&odd);
    odd.role = NODE_ROLE_DECODE;
    odd.name = "d-odd";
    rig->decodes[1] = fake_node_start(&odd);
    snprintf(rig->prefill_flag, sizeof rig->prefill_flag, "127.0.0.1:%u,127.0.0.1:%u",
             (unsigned)fake_node_port(rig->prefill), (unsigned)fake_node_port(rig->decodes[1]));
    rig->config.prefill.values[rig->config.prefill.count++] = rig->prefill_flag;
    start_router(rig);
    uint64_t give_up_ns = clock_now_ns() + PATIENCE_NS;
    bool role_seen = false, layout_seen = false;
    while (!(role_seen && layout_seen)) {
        Baton__V1__GetStatusResponse *status = get_status(rig);
        for (size_t i = 0; i < status->n_nodes; i++) {
            const char *problem = status->nodes[i]->problem;
            role_seen = role_seen || (strstr(problem, "role") && strstr(problem, "list it under --decode"));
            layout_seen = layout_seen || strstr(problem, "block_tokens");
        }
        baton__v1__get_status_response__free_unpacked(status, NULL);
        if (clock_now_ns() > give_up_ns) { fail_msg("role %d layout %d", role_seen, layout_seen); }
        clock_sleep_ns(5 * NS_PER_MS);
    }
}

/* One client that does not read holds up nobody, and gets its whole answer when it does. */
static void a_slow_client_holds_up_nobody(void **state)
{
    struct rig *rig = *state;
    start(rig, 0, 1);
    rig->clients[0].is_slow = true;
    struct client *slow = generate(rig, 0, (struct ask){.max_tokens = 3000, .logprobs = 20});
    for (unsigned i = 0; i < 3; i++) {
        rig->clients[1].text_len[0] = 0;
        struct client *quick = generate(rig, 1, (struct ask){.max_tokens = 50});
        wait_done(quick);
        assert_int_equal(quick->code, ST_OK);
        assert_alphabet(quick->text[0], 50);
    }
    wait_legs(rig->decodes[0], 0); /* computed to its end, though nobody reads */
    pthread_mutex_lock(&slow->lock);
    assert_false(slow->is_done);
    pthread_mutex_unlock(&slow->lock);
    rpc_call_resume_reads(slow->call);
    wait_done(slow);
    assert_int_equal(slow->code, ST_OK);
    assert_alphabet(slow->text[0], 3000);
    assert_int_equal(slow->logprobs, 3000);
    /* About twelve megabytes: far more than the stream's window and queue take, so most of it waited
     * in the session, and left in few messages. */
    assert_in_range(slow->messages, 2, 1500);
}

/* A drain refuses what is new and finishes what is there. */
static void a_drain_finishes_what_is_there(void **state)
{
    struct rig *rig = *state;
    start(rig, 1, 1);
    fake_node_hold(rig->decodes[0], 4);
    struct client *running = generate(rig, 0, (struct ask){.max_tokens = 20});
    wait_tokens(running, 4);
    router_drain(rig->router);
    struct client *late = generate(rig, 1, (struct ask){.max_tokens = 20});
    wait_done(late);
    assert_int_equal(late->code, ST_UNAVAILABLE);
    assert_non_null(strstr(late->why, "draining"));
    wait_health(rig, "", 2);
    assert_false(router_is_idle(rig->router));
    fake_node_hold(rig->decodes[0], UINT32_MAX);
    wait_done(running);
    assert_int_equal(running->code, ST_OK);
    assert_alphabet(running->text[0], 20);
    uint64_t give_up_ns = clock_now_ns() + PATIENCE_NS;
    while (!router_is_idle(rig->router)) {
        if (clock_now_ns() > give_up_ns) { fail_msg("the drained router is not idle"); }
        clock_sleep_ns(NS_PER_MS);
    }
}

/* Refusals name the field, the limit, or when to come back. */
static void refusals_say_what_to_do(void **state)
{
    struct rig *rig = *state;
    rig->config.requests_max = 1;
    start(rig, 0, 1);
    struct client *client = generate(rig, 0, (struct ask){.max_tokens = 0});
    wait_done(client);
    assert_int_equal(client->code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(client->why, "max_tokens"));
    client = generate(rig, 0, (struct ask){.max_tokens = TESTING_CONTEXT});
    wait_done(client);
    assert_int_equal(client->code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(client->why, "4091")); /* the room after five tokens */
    fake_node_hold(rig->decodes[0], 2);
    struct client *first = generate(rig, 1, (struct ask){.max_tokens = 10});
    wait_tokens(first, 2);
    client = generate(rig, 0, (struct ask){.max_tokens = 10});
    wait_done(client);
    assert_int_equal(client->code, ST_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(client->why, "--requests-max"));
    assert_true(atoi(client->retry) > 0);
    Baton__V1__ChatRequest chat = BATON__V1__CHAT_REQUEST__INIT;
    client = call(rig, 0, "Chat", &chat.base, true);
    wait_done(client);
    assert_int_equal(client->code, ST_FAILED_PRECONDITION);
    assert_non_null(strstr(client->why, "--chat-template"));
}

/* Text to ids and back over the wire, and the model's description. */
static void the_unary_calls_answer(void **state)
{
    struct rig *rig = *state;
    start(rig, 0, 1);
    Baton__V1__TokenizeRequest tokenize = BATON__V1__TOKENIZE_REQUEST__INIT;
    tokenize.input_case = BATON__V1__TOKENIZE_REQUEST__INPUT_TEXT;
    tokenize.text = (char *)"hi!";
    struct client *client = call(rig, 0, "Tokenize", &tokenize.base, false);
    wait_done(client);
    assert_int_equal(client->code, ST_OK);
    Baton__V1__TokenizeResponse *ids = baton__v1__tokenize_response__unpack(NULL, client->answer_len, client->answer);
    assert_non_null(ids);
    assert_int_equal(ids->n_ids, 3);
    assert_int_equal(ids->ids[0], TOKEN_BYTE('h'));
    assert_int_equal(ids->n_texts, 3);
    assert_string_equal(ids->texts[2], "!");
    Baton__V1__DetokenizeRequest detokenize = BATON__V1__DETOKENIZE_REQUEST__INIT;
    detokenize.n_ids = ids->n_ids;
    detokenize.ids = ids->ids;
    client = call(rig, 0, "Detokenize", &detokenize.base, false);
    baton__v1__tokenize_response__free_unpacked(ids, NULL);
    wait_done(client);
    Baton__V1__DetokenizeResponse *text = baton__v1__detokenize_response__unpack(NULL, client->answer_len, client->answer);
    assert_non_null(text);
    assert_string_equal(text->text, "hi!");
    baton__v1__detokenize_response__free_unpacked(text, NULL);
    Baton__V1__GetModelRequest get = BATON__V1__GET_MODEL_REQUEST__INIT;
    client = call(rig, 0, "GetModel", &get.base, false);
    wait_done(client);
    Baton__V1__GetModelResponse *model = baton__v1__get_model_response__unpack(NULL, client->answer_len, client->answer);
    assert_non_null(model);
    assert_string_equal(model->architecture, "LlamaForCausalLM");
    assert_int_equal(model->vocab_size, TESTING_VOCAB);
    assert_int_equal(model->eos_token_ids[0], TOKEN_EOS);
    assert_int_equal(strlen(model->model_hash), 64);
    assert_memory_equal(model->model_hash, "0707", 4);
    assert_true(model->defaults->temperature->value == 0); /* do_sample is false */
    baton__v1__get_model_response__free_unpacked(model, NULL);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(generate_streams_through_both_pools), T(what_is_cached_is_told), T(local_prefill_serves_two_sequences), T(a_stop_string_frees_the_node),
        T(a_cancel_frees_the_nodes), T(a_death_is_resumed_elsewhere), T(a_restarted_node_is_attached_again),
        T(a_misfit_is_kept_off_with_words), T(a_slow_client_holds_up_nobody), T(a_drain_finishes_what_is_there),
        T(health_follows_the_decode_nodes), T(a_name_is_resolved), T(refusals_say_what_to_do), T(the_unary_calls_answer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
