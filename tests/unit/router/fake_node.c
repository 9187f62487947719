#include "tests/unit/router/fake_node.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "control/ctl_codec.h"
#include "rpc/rpc.h"
#include "tests/unit/router/router_testing.h"
#include "transfer/fingerprint.h"

#define LEGS_MAX 256u
#define MESSAGE_BYTES_MAX (4u << 20)

struct fake_leg {
    bool taken, runs;
    struct leg_id id;
    uint32_t first, count, position, max_tokens;
    int32_t logprobs;
    struct rpc_call *call;
};

struct fake_node {
    struct fake_node_config config;
    struct rpc_runtime *runtime;
    struct rpc_server *server;
    pthread_t thread;
    pthread_mutex_t lock; /* guards the rest */
    struct ctl_codec *codec;
    bool stop;
    uint32_t hold_at;
    struct ctl_prefill last; /* its pointers are stale */
    struct fake_leg legs[LEGS_MAX];
    struct fake_node *const *decodes;
    uint32_t decode_count;
};

static void send_locked(struct fake_node *node, struct rpc_call *call, const struct ctl_msg *msg)
{
    const uint8_t *bytes;
    size_t len;
    assert_false(failed(ctl_codec_encode(node->codec, msg, &bytes, &len)));
    (void)!failed(rpc_call_send(call, bytes, len));
}

static struct fake_leg *find(struct fake_node *node, struct leg_id id)
{
    for (uint32_t i = 0; i < LEGS_MAX; i++) {
        if (node->legs[i].taken && leg_id_equal(node->legs[i].id, id)) { return &node->legs[i]; }
    }
    return NULL;
}

static void drop(struct fake_leg *leg)
{
    rpc_call_unref(leg->call);
    leg->taken = false;
}

static void add(struct fake_node *node, struct rpc_call *call, const struct ctl_work *work, bool runs)
{
    for (uint32_t i = 0; i < LEGS_MAX; i++) {
        if (node->legs[i].taken) { continue; }
        node->legs[i] = (struct fake_leg){.taken = true, .runs = runs, .id = work->leg, .first = work->sequence_first,
                                          .count = work->sequence_count, .position = work->output_count,
                                          .max_tokens = work->params.max_tokens, .logprobs = work->params.logprobs,
                                          .call = call};
        rpc_call_ref(call);
        return;
    }
    fail_msg("a fake node holds at most %u legs", LEGS_MAX);
}

/* One token of each of the leg's sequences. True: that was the last one. */
static bool emit(struct fake_node *node, const struct leg_id id, struct rpc_call *call, uint32_t first, uint32_t count,
                 uint32_t position, uint32_t max_tokens, int32_t logprobs, bool may_finish)
{
    struct ctl_token tokens[8];
    assert_in_range(count, 1, 8);
    bool last = may_finish && position + 1 == max_tokens;
    for (uint32_t s = 0; s < count; s++) {
        tokens[s] = (struct ctl_token){.leg = id, .sequence = first + s, .position = position,
                                       .token = TOKEN_BYTE('a' + (char)(position % 26)),
                                       .finish = last ? FINISH_LENGTH : FINISH_NONE,
                                       .has_logprob = logprobs >= 0};
        for (int32_t i = 0; i < logprobs; i++) {
            tokens[s].logprob.alternatives[i] = (struct token_alternative){.token = TOKEN_LONG, .logprob = -1.0f};
            tokens[s].logprob.alternative_count++;
        }
    }
    struct ctl_msg msg = {.kind = CTL_TOKENS, .tokens = {.count = count, .tokens = tokens}};
    send_locked(node, call, &msg);
    return last;
}

static bool land(struct fake_node *decode, struct leg_id id)
{
    pthread_mutex_lock(&decode->lock);
    struct fake_leg *leg = decode->stop ? NULL : find(decode, id);
    if (leg) { leg->runs = true; }
    pthread_mutex_unlock(&decode->lock);
    return leg != NULL;
}

static void on_prefill(struct fake_node *node, struct rpc_call *call, const struct ctl_prefill *prefill)
{
    const struct ctl_work *work = &prefill->work;
    (void)emit(node, work->leg, call, work->sequence_first, work->sequence_count, work->output_count,
               work->params.max_tokens, work->params.logprobs, false);
    bool landed = false;
    for (uint32_t i = 0; i < node->decode_count && !landed; i++) { landed = land(node->decodes[i], work->leg); }
    struct ctl_msg msg = {.kind = landed ? CTL_PREFILL_DONE : CTL_PREFILL_FAILED};
    if (landed) {
        msg.prefill_done = (struct ctl_prefill_done){.leg = work->leg, .cable = "shm", .bytes = 4096, .queue_ns = 1000,
                                                     .compute_ns = 2000, .transfer_ns = 3000};
    } else {
        msg.failure = (struct ctl_failure){.leg = work->leg, .code = ST_UNAVAILABLE, .message = "nobody took the blocks"};
    }
    send_locked(node, call, &msg);
}

static void on_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    struct fake_node *node = user;
    struct ctl_msg msg;
    struct diag diag = {{0}};
    pthread_mutex_lock(&node->lock);
    status_t st = ctl_codec_decode(node->codec, CTL_FROM_ROUTER, bytes, len, &msg, &diag);
    assert_false(failed(st));
    if (msg.kind == CTL_PREFILL) { node->last = msg.prefill; }
    if (msg.kind == CTL_RESERVE) {
        node->last = (struct ctl_prefill){.work = msg.reserve.work};
        add(node, call, &msg.reserve.work, msg.reserve.local_prefill);
        if (!msg.reserve.local_prefill) {
            static const uint8_t ticket[] = "ticket";
            struct ctl_msg reserved = {.kind = CTL_RESERVED,
                                       .reserved = {.leg = msg.reserve.work.leg, .ticket = ticket,
                                                    .cached_tokens = node->config.cached_tokens,
                                                    .grant_first = node->config.cached_tokens / node->config.block_tokens,
                                                    .ticket_bytes = sizeof ticket}};
            send_locked(node, call, &reserved);
        }
    } else if (msg.kind == CTL_PREFILL) {
        /* The message's arrays live in the codec, which sends use too, but only other buffers. */
        on_prefill(node, call, &msg.prefill);
    } else if (msg.kind == CTL_CANCEL && !msg.cancel.one_sequence) {
        struct fake_leg *leg = find(node, msg.cancel.leg);
        if (leg) { drop(leg); }
    } else if (msg.kind == CTL_PREFILL_LOST) {
        struct fake_leg *leg = find(node, msg.prefill_lost);
        if (leg && !leg->runs) {
            struct ctl_msg failure = {.kind = CTL_LEG_FAILED, .failure = {.leg = leg->id, .code = ST_UNAVAILABLE,
                                                                          .message = "its prefill node is gone"}};
            drop(leg);
            send_locked(node, call, &failure);
        }
    }
    pthread_mutex_unlock(&node->lock);
}

static void on_half_close(void *user, struct rpc_call *call)
{
    (void)user;
    rpc_call_finish_status(call, STATUS_OK, "", 0);
}

static void on_done(void *user, struct rpc_call *call, const struct rpc_outcome *outcome)
{
    (void)outcome;
    struct fake_node *node = user;
    pthread_mutex_lock(&node->lock);
    for (uint32_t i = 0; i < LEGS_MAX; i++) {
        if (node->legs[i].taken && node->legs[i].call == call) { drop(&node->legs[i]); }
    }
    pthread_mutex_unlock(&node->lock);
}

static const struct rpc_callbacks callbacks = {.on_message = on_message, .on_half_close = on_half_close, .on_done = on_done};

static void say_hello(struct fake_node *node, struct rpc_call *call)
{
    struct kv_fingerprint fingerprint;
    uint8_t hash[32], wire[KV_FINGERPRINT_WIRE_BYTES];
    memset(hash, node->config.model_byte, sizeof hash);
    struct kv_layout layout = {.dtype = DTYPE_F32, .block_tokens = node->config.block_tokens, .layer_count = 1,
                               .kv_heads = 2, .head_dim = 8};
    kv_fingerprint_init(&fingerprint, hash, &layout, "fake-1");
    kv_fingerprint_encode(&fingerprint, wire);
    struct ctl_msg hello = {.kind = CTL_NODE_HELLO,
                            .node_hello = {.protocol_version = CTL_PROTOCOL_VERSION, .role = (uint32_t)node->config.role,
                                           .node_name = node->config.name, .model_name = "fake", .boot_epoch = 1,
                                           .fingerprint = wire, .fingerprint_bytes = sizeof wire,
                                           .vocab_size = node->config.vocab_size,
                                           .context_tokens = node->config.context_tokens,
                                           .block_tokens = node->config.block_tokens, .block_count = 1000,
                                           .sequences_max = 64}};
    for (const char *c = node->config.name; *c; c++) { hello.node_hello.node_id = hello.node_hello.node_id * 31 + (uint8_t)*c; }
    memcpy(hello.node_hello.model_hash, hash, sizeof hash);
    struct ctl_msg load = {.kind = CTL_LOAD, .load = {.blocks_total = 1000, .blocks_free = 1000}};
    pthread_mutex_lock(&node->lock);
    send_locked(node, call, &hello);
    send_locked(node, call, &load);
    pthread_mutex_unlock(&node->lock);
}

static status_t accept(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    (void)diag;
    struct fake_node *node = service;
    *ret_handler = (struct rpc_handler){.callbacks = &callbacks, .user = node};
    say_hello(node, call);
    return STATUS_OK;
}

static void *run(void *user)
{
    struct fake_node *node = user;
    for (;;) {
        clock_sleep_ns(NS_PER_MS);
        pthread_mutex_lock(&node->lock);
        bool stop = node->stop;
        for (uint32_t i = 0; i < LEGS_MAX && !stop; i++) {
            struct fake_leg *leg = &node->legs[i];
            if (!leg->taken || !leg->runs || leg->position >= node->hold_at) { continue; }
            bool last = emit(node, leg->id, leg->call, leg->first, leg->count, leg->position, leg->max_tokens,
                             leg->logprobs, true);
            leg->position++;
            if (last) { drop(leg); }
        }
        pthread_mutex_unlock(&node->lock);
        if (stop) { return NULL; }
    }
}

struct fake_node *fake_node_start(const struct fake_node_config *config)
{
    struct fake_node *node = calloc(1, sizeof *node);
    assert_non_null(node);
    node->config = *config;
    if (node->config.block_tokens == 0) { node->config.block_tokens = 16; }
    node->hold_at = config->hold_at;
    pthread_mutex_init(&node->lock, NULL);
    assert_false(failed(ctl_codec_create(MESSAGE_BYTES_MAX, &node->codec)));
    assert_false(failed(rpc_runtime_create(1, &node->runtime)));
    char listen[64];
    snprintf(listen, sizeof listen, "127.0.0.1:%u", (unsigned)config->port);
    const char *addresses[] = {listen};
    struct rpc_server_config server = {.listen = addresses, .listen_count = 1};
    struct diag diag = {{0}};
    assert_false(failed(rpc_server_create(node->runtime, &server, &node->server, &diag)));
    assert_false(failed(rpc_server_register(node->server, "/baton.control.v1.NodeControl/Attach", accept, node, &diag)));
    status_t st = rpc_server_start(node->server, &diag);
    if (failed(st)) { fail_msg("%s", diag.text); }
    assert_int_equal(pthread_create(&node->thread, NULL, run, node), 0);
    return node;
}

uint16_t fake_node_port(const struct fake_node *node) { return rpc_server_port(node->server, 0); }

void fake_node_feeds(struct fake_node *prefill, struct fake_node *const *decodes, uint32_t count)
{
    pthread_mutex_lock(&prefill->lock);
    prefill->decodes = decodes;
    prefill->decode_count = count;
    pthread_mutex_unlock(&prefill->lock);
}

void fake_node_hold(struct fake_node *node, uint32_t position)
{
    pthread_mutex_lock(&node->lock);
    node->hold_at = position;
    pthread_mutex_unlock(&node->lock);
}

uint32_t fake_node_legs(struct fake_node *node)
{
    uint32_t count = 0;
    pthread_mutex_lock(&node->lock);
    for (uint32_t i = 0; i < LEGS_MAX; i++) { count += node->legs[i].taken; }
    pthread_mutex_unlock(&node->lock);
    return count;
}

struct ctl_prefill fake_node_last(struct fake_node *node)
{
    pthread_mutex_lock(&node->lock);
    struct ctl_prefill last = node->last;
    pthread_mutex_unlock(&node->lock);
    return last;
}

void fake_node_stop(struct fake_node *node)
{
    if (!node) { return; }
    pthread_mutex_lock(&node->lock);
    node->stop = true;
    pthread_mutex_unlock(&node->lock);
    pthread_join(node->thread, NULL);
    rpc_server_destroy(node->server);
    rpc_runtime_destroy(node->runtime);
    ctl_codec_destroy(node->codec);
    pthread_mutex_destroy(&node->lock);
    free(node);
}
