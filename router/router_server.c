#include "router/router_server.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mailbox.h"
#include "router/prefix_guess.h"
#include "router/resolver.h"

#define MAILBOX_CAPACITY 16384u
#define POSTS_PER_TURN 256u
/* A finished answer that its client does not take for so long is thrown away. */
#define SLOW_CLIENT_NS (60 * NS_PER_S)
#define SLOT_BITS 20u

enum post_kind { POST_NODE, POST_RESOLVED, POST_SUBMIT, POST_WRITABLE, POST_GONE, POST_ASK, POST_DRAIN, POST_STOP };

struct post {
    enum post_kind kind;
    union {
        struct attach_post node;
        struct resolver_answer *resolved;
        struct router_client *client;
        struct {
            struct rpc_call *call;
            router_answer_fn answer;
            void *user;
        } ask;
    };
};

struct stop_event {
    uint64_t request;
    uint32_t sequence;
    bool is_whole; /* the whole request, not one sequence */
};

struct router_server {
    struct router_server_config config;
    struct mailbox *mailbox;
    struct router_core *core;
    struct attach_client *nodes;
    struct resolver *resolver;
    pthread_t thread;
    bool has_thread;
    uint64_t start_ns;
    _Atomic bool is_idle;
    _Atomic uint32_t name_block_tokens; /* of the nodes; 0: prompts need no names. Read by rpc threads, which
                                           name a prompt before they post it */
    _Atomic uint64_t refused_here;

    /* the core thread's */
    uint64_t now_ns;
    struct router_client **clients; /* [slot_count] by the low bits of the handle */
    uint32_t slot_count, slot_cursor, client_count;
    uint64_t handle_counter;
    struct router_client **dirty; /* [slot_count] */
    uint32_t dirty_count;
    struct stop_event *stops;
    uint32_t stop_count, stop_capacity;
    uint32_t running, blocked;
    uint64_t slow_check_ns;
    bool is_draining, is_serving, loads_changed, stopping;
    struct pb_writer writer;
};

/* ---- other threads ---- */

static void on_node_post(void *user, const struct attach_post *attach)
{
    struct router_server *server = user;
    struct post post = {.kind = POST_NODE, .node = *attach};
    /* Waiting here holds up only other streams of nodes, which feed the same mailbox. */
    mailbox_post_wait(server->mailbox, &post);
}

static void on_resolved(void *user, struct resolver_answer *answer)
{
    struct router_server *server = user;
    struct post post = {.kind = POST_RESOLVED, .resolved = answer};
    mailbox_post_wait(server->mailbox, &post);
}

/* Where there is no memory the core does without, or names it itself. */
static void name_prompt(struct router_server *server, struct router_client *client)
{
    const struct request_spec *spec = session_spec(client->session);
    uint32_t block_tokens = atomic_load(&server->name_block_tokens);
    uint32_t count = block_tokens > 0 ? spec->prompt_count / block_tokens : 0;
    if (count == 0 || client->names) { return; }
    client->names = malloc(count * sizeof *client->names);
    if (!client->names) { return; }
    client->name_block_tokens = block_tokens;
    prefix_guess_names(spec->cache_salt, spec->prompt, block_tokens, count, client->names);
}

status_t router_server_submit(struct router_server *server, struct router_client *client)
{
    name_prompt(server, client);
    struct post post = {.kind = POST_SUBMIT, .client = client};
    return mailbox_post(server->mailbox, &post);
}

void router_server_writable(struct router_server *server, struct router_client *client)
{
    struct post post = {.kind = POST_WRITABLE, .client = client};
    mailbox_post_wait(server->mailbox, &post);
}

void router_server_gone(struct router_server *server, struct router_client *client)
{
    struct post post = {.kind = POST_GONE, .client = client};
    mailbox_post_wait(server->mailbox, &post);
}

bool router_server_ask(struct router_server *server, struct rpc_call *call, router_answer_fn answer, void *user)
{
    struct post post = {.kind = POST_ASK, .ask = {.call = call, .answer = answer, .user = user}};
    rpc_call_ref(call);
    if (!failed(mailbox_post(server->mailbox, &post))) { return true; }
    rpc_call_unref(call);
    return false;
}

void router_server_count_refusal(struct router_server *server, uint8_t code)
{
    atomic_fetch_add(&server->refused_here, 1);
    router_metrics_refused(server->config.metrics, code);
}

void router_client_destroy(struct router_client *client)
{
    if (!client) { return; }
    rpc_call_unref(client->call);
    session_destroy(client->session);
    free(client->names);
    free(client);
}

/* ---- clients ---- */

static struct router_client *find_client(struct router_server *server, uint64_t handle)
{
    struct router_client *client = server->clients[handle & ((1u << SLOT_BITS) - 1)];
    return client && client->handle == handle ? client : NULL;
}

static bool take_slot(struct router_server *server, struct router_client *client)
{
    if (server->client_count == server->slot_count) { return false; }
    uint32_t slot = server->slot_cursor;
    while (server->clients[slot]) { slot = (slot + 1) % server->slot_count; }
    server->slot_cursor = (slot + 1) % server->slot_count;
    server->clients[slot] = client;
    server->client_count++;
    client->handle = ++server->handle_counter << SLOT_BITS | slot;
    return true;
}

static void mark_dirty(struct router_server *server, struct router_client *client)
{
    if (client->is_dirty || client->is_gone) { return; }
    client->is_dirty = true;
    server->dirty[server->dirty_count++] = client;
}

static void unblock(struct router_server *server, struct router_client *client)
{
    if (!client->is_blocked) { return; }
    client->is_blocked = false;
    server->blocked--;
}

static void free_client(struct router_server *server, struct router_client *client)
{
    unblock(server, client);
    if (client->handle != 0) {
        server->clients[client->handle & ((1u << SLOT_BITS) - 1)] = NULL;
        server->client_count--;
    }
    router_client_destroy(client);
}

static status_t send_message(struct router_server *server, struct router_client *client)
{
    struct pb_writer *writer = &server->writer;
    if (writer->is_broken) {
        writer->is_broken = false;
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    return rpc_call_send(client->call, writer->bytes ? writer->bytes : (const uint8_t *)"", writer->len);
}

/* Sends what the stream takes. */
static void flush(struct router_server *server, struct router_client *client)
{
    if (client->is_finished || client->is_blocked) { return; }
    for (;;) {
        server->writer.len = 0;
        if (!session_pack(client->session, &server->writer)) { break; }
        status_t st = send_message(server, client);
        if (failed(st) && st.code == ST_RESOURCE_EXHAUSTED) {
            client->is_blocked = true;
            client->blocked_ns = server->now_ns;
            server->blocked++;
            return;
        }
        if (failed(st)) { return; } /* the call is over; its end is on the way here */
        session_sent(client->session);
    }
    if (!client->core_is_done) { return; }
    client->is_finished = true;
    status_t st = {.code = client->code, .scope = SCOPE_REQUEST};
    rpc_call_finish_status(client->call, st, client->message, client->retry_ms);
}

static void flush_dirty(struct router_server *server)
{
    for (uint32_t i = 0; i < server->dirty_count; i++) {
        struct router_client *client = server->dirty[i];
        client->is_dirty = false;
        if (client->is_gone) {
            if (client->core_is_done) { free_client(server, client); }
            continue;
        }
        flush(server, client);
    }
    server->dirty_count = 0;
}

static void drop_slow_clients(struct router_server *server)
{
    if (server->blocked == 0 || server->now_ns < server->slow_check_ns) { return; }
    server->slow_check_ns = server->now_ns + NS_PER_S;
    for (uint32_t i = 0; i < server->slot_count; i++) {
        struct router_client *client = server->clients[i];
        if (!client || !client->is_blocked || !client->core_is_done) { continue; }
        if (server->now_ns - client->blocked_ns < SLOW_CLIENT_NS) { continue; }
        LOGF(LOG_WARN, "client_too_slow", "req=%s dropped: it took nothing of its answer for a minute",
             session_id(client->session));
        rpc_call_cancel(client->call);
    }
}

/* ---- what the core wishes ---- */

static void want_stop(struct router_server *server, uint64_t request, uint32_t sequence, bool is_whole)
{
    if (server->stop_count == server->stop_capacity) {
        uint32_t capacity = server->stop_capacity ? server->stop_capacity * 2 : 64;
        struct stop_event *grown = realloc(server->stops, capacity * sizeof *grown);
        CHECK(grown != NULL);
        server->stops = grown;
        server->stop_capacity = capacity;
    }
    server->stops[server->stop_count++] = (struct stop_event){.request = request, .sequence = sequence, .is_whole = is_whole};
}

static void fail_here(struct router_server *server, struct router_client *client)
{
    if (client->own_code != 0) { return; }
    client->own_code = ST_RESOURCE_EXHAUSTED;
    want_stop(server, client->handle, 0, true);
}

static void on_emit(struct router_server *server, const struct router_action *action)
{
    struct router_client *client = find_client(server, action->request);
    if (!client || client->is_gone) { return; }
    uint32_t before = session_times(client->session).completion_tokens;
    bool stopped;
    if (failed(session_token(client->session, &action->token, server->now_ns, &stopped))) {
        fail_here(server, client);
        return;
    }
    if (stopped) { want_stop(server, client->handle, action->token.sequence, false); }
    struct session_times times = session_times(client->session);
    if (times.completion_tokens > before) {
        router_metrics_tokens(server->config.metrics, 0, 1);
        if (times.last_gap_ns != UINT64_MAX) { router_metrics_token_gap(server->config.metrics, times.last_gap_ns); }
    }
    if (!client->has_token) {
        client->has_token = true;
        server->running++;
        router_metrics_first_token(server->config.metrics, server->now_ns - times.arrival_ns);
    }
    mark_dirty(server, client);
}

static const char *node_name(const struct router_server *server, uint32_t node)
{
    struct attach_node view;
    return attach_client_node(server->nodes, node, &view) ? view.name : "";
}

static void count_end(struct router_server *server, const struct router_client *client)
{
    struct session_times times = session_times(client->session);
    enum router_end end = ROUTER_END_ERROR;
    if (client->code == ST_OK) {
        end = times.any_stop ? ROUTER_END_STOP : ROUTER_END_LENGTH;
    } else if (client->code == ST_CANCELLED) {
        end = ROUTER_END_ABORT;
    }
    const struct request_spec *spec = session_spec(client->session);
    struct router_metrics_request request = {
        .end = end,
        .e2e_ns = times.end_ns - times.arrival_ns,
        .ttft_ns = times.first_token_ns > 0 ? times.first_token_ns - times.arrival_ns : 0,
        .prefill_compute_ns = times.resumes == 0 ? times.prefill_compute_ns : 0,
        .transfer_ns = times.transfer_ns,
        .prompt_tokens = spec->prompt_count,
        .generation_tokens = times.completion_tokens,
        .max_tokens = spec->params.max_tokens,
        .sequence_count = spec->params.n,
    };
    router_metrics_end(server->config.metrics, &request);
}

static void log_end(const struct router_client *client)
{
    struct session_times times = session_times(client->session);
    LOGF(LOG_DEBUG, "request_end", "req=%s code=%s prompt=%u tokens=%u ttft_us=%" PRIu64 " total_us=%" PRIu64
         " message=\"%s\"", session_id(client->session), status_code_name(client->code),
         session_spec(client->session)->prompt_count, times.completion_tokens,
         times.first_token_ns ? (times.first_token_ns - times.arrival_ns) / NS_PER_US : 0,
         (times.end_ns - times.arrival_ns) / NS_PER_US, client->message);
}

static void end_client(struct router_server *server, struct router_client *client, uint8_t code, const char *message,
                       uint32_t retry_ms, const struct session_route *route)
{
    client->core_is_done = true;
    client->code = code;
    client->retry_ms = retry_ms;
    snprintf(client->message, sizeof client->message, "%s", message);
    session_finish(client->session, code == ST_OK, route, server->now_ns);
    if (client->is_accepted) { count_end(server, client); }
    if (client->has_token) { server->running--; }
    log_end(client);
    mark_dirty(server, client);
}

static void on_finished(struct router_server *server, const struct router_action *action)
{
    struct router_client *client = find_client(server, action->request);
    if (!client) { return; }
    const struct router_route *route = &action->route;
    bool is_local = route->prefill_node == UINT32_MAX;
    struct session_route names = {
        .prefill_node = is_local ? "" : node_name(server, route->prefill_node),
        .decode_node = node_name(server, route->decode_node),
        .transport = is_local ? "local" : route->cable,
        .kv_bytes = route->kv_bytes,
        .resumes = route->legs > 0 ? route->legs - 1 : 0,
        .prefill_queue_ns = route->prefill_queue_ns,
        .prefill_compute_ns = route->prefill_compute_ns,
        .transfer_ns = route->transfer_ns,
        .handover_ns = route->handover_ns,
        .cached_prompt_tokens = route->cached_prompt_tokens,
        .prefill_cached_tokens = route->prefill_cached_tokens,
    };
    if (client->own_code != 0) {
        end_client(server, client, client->own_code, "the router is out of memory; try again later", 1000, &names);
    } else {
        end_client(server, client, action->code, action->message, action->retry_after_ms, &names);
    }
}

static void carry_out(struct router_server *server, const struct router_action *action)
{
    struct router_client *client;
    switch (action->kind) {
    case ROUTER_ACT_SEND:
        attach_client_send(server->nodes, action->node, &action->msg);
        break;
    case ROUTER_ACT_EMIT:
        on_emit(server, action);
        break;
    case ROUTER_ACT_SEQUENCE_END:
        client = find_client(server, action->request);
        if (client && !client->is_gone) {
            if (failed(session_sequence_end(client->session, &action->token))) { fail_here(server, client); }
            mark_dirty(server, client);
        }
        break;
    case ROUTER_ACT_PROMPT_LOGPROBS:
        client = find_client(server, action->request);
        if (client && !client->is_gone) {
            if (failed(session_prompt_logprobs(client->session, &action->logprobs))) { fail_here(server, client); }
            mark_dirty(server, client);
        }
        break;
    case ROUTER_ACT_FINISHED:
        on_finished(server, action);
        break;
    }
}

static void step_once(struct router_server *server, const struct router_event *event)
{
    struct router_actions actions;
    status_t st = router_core_step(server->core, event, &actions);
    /* The core fails no event: what goes wrong with a request is its FINISHED. */
    CHECK(!failed(st));
    for (uint32_t i = 0; i < actions.count; i++) { carry_out(server, &actions.list[i]); }
}

static void step(struct router_server *server, struct router_event event)
{
    event.now_ns = server->now_ns;
    step_once(server, &event);
    while (server->stop_count > 0) {
        struct stop_event stop = server->stops[--server->stop_count];
        struct router_event next = {
            .kind = stop.is_whole ? ROUTER_EV_CLIENT_GONE : ROUTER_EV_SEQUENCE_STOP,
            .now_ns = server->now_ns,
            .request = stop.request,
            .sequence = stop.sequence,
        };
        step_once(server, &next);
    }
}

/* ---- facts ---- */

static void on_submit(struct router_server *server, struct router_client *client)
{
    static const struct session_route nowhere = {.prefill_node = "", .decode_node = "", .transport = ""};
    if (!take_slot(server, client)) {
        router_server_count_refusal(server, ST_RESOURCE_EXHAUSTED);
        end_client(server, client, ST_RESOURCE_EXHAUSTED,
                   "the router holds as many requests as --requests-max allows, and as many answers that are not read yet",
                   500, &nowhere);
        return;
    }
    char id[SESSION_ID_CHARS];
    snprintf(id, sizeof id, "%016" PRIx64 "-%" PRIx64, server->config.core.router_boot_id, client->handle);
    session_set_id(client->session, id);
    const struct request_spec *spec = session_spec(client->session);
    uint64_t accepted = router_core_stats(server->core).accepted;
    struct router_event event = {
        .kind = ROUTER_EV_SUBMIT,
        .request = client->handle,
        .prompt_count = spec->prompt_count,
        .prompt = spec->prompt,
        .params = &spec->params,
        .priority = spec->priority,
        .cache_salt = spec->cache_salt,
        .names = client->names,
        .name_block_tokens = client->names ? client->name_block_tokens : 0,
        .deadline_ns = client->deadline_ns,
    };
    step(server, event);
    free(client->names); /* copied, if it was of use */
    client->names = NULL;
    if (router_core_stats(server->core).accepted == accepted) {
        router_metrics_refused(server->config.metrics, client->code);
        return;
    }
    client->is_accepted = true;
    session_placed(client->session, server->now_ns);
    if (client->core_is_done) { count_end(server, client); } /* it ended in the step that took it */
    router_metrics_tokens(server->config.metrics, spec->prompt_count, 0);
}

static void on_gone(struct router_server *server, struct router_client *client)
{
    client->is_gone = true;
    if (!client->core_is_done) {
        step(server, (struct router_event){.kind = ROUTER_EV_CLIENT_GONE, .request = client->handle});
        CHECK(client->core_is_done);
    }
    /* On the dirty list it is freed when that is walked. */
    if (!client->is_dirty) { free_client(server, client); }
}

static void on_node(struct router_server *server, struct attach_post *post)
{
    struct ctl_msg msg;
    uint32_t node = post->node;
    enum attach_event event = attach_client_take(server->nodes, post, server->now_ns, &msg);
    switch (event) {
    case ATTACH_NOTHING:
        return;
    case ATTACH_UP:
        if (server->config.core.guess_blocks_max > 0) {
            atomic_store(&server->name_block_tokens, msg.node_hello.block_tokens);
        }
        step(server, (struct router_event){.kind = ROUTER_EV_NODE_UP, .node = node, .msg = &msg});
        break;
    case ATTACH_DOWN:
        step(server, (struct router_event){.kind = ROUTER_EV_NODE_DOWN, .node = node});
        break;
    case ATTACH_MESSAGE:
        step(server, (struct router_event){.kind = ROUTER_EV_MESSAGE, .node = node, .msg = &msg});
        if (msg.kind != CTL_LOAD) { return; }
        break;
    }
    server->loads_changed = true;
}

static void on_ask(struct router_server *server, const struct post *post)
{
    struct router_view view = {
        .stats = router_core_stats(server->core),
        .refused_here = atomic_load(&server->refused_here),
        .start_ns = server->start_ns,
        .now_ns = server->now_ns,
        .is_serving = server->is_serving,
        .is_draining = server->is_draining,
        .model_hash = attach_client_model_hash(server->nodes),
        .core = server->core,
        .nodes = server->nodes,
        .nodes_max = server->config.core.nodes_max,
    };
    post->ask.answer(post->ask.user, post->ask.call, &view);
    rpc_call_unref(post->ask.call);
}

static void handle(struct router_server *server, struct post *post)
{
    switch (post->kind) {
    case POST_NODE: on_node(server, &post->node); break;
    case POST_RESOLVED:
        attach_client_resolved(server->nodes, post->resolved->name, post->resolved->count,
                               (const char(*)[NODE_TARGET_CHARS_MAX])post->resolved->targets);
        free(post->resolved);
        break;
    case POST_SUBMIT: on_submit(server, post->client); break;
    case POST_WRITABLE:
        unblock(server, post->client);
        mark_dirty(server, post->client);
        break;
    case POST_GONE: on_gone(server, post->client); break;
    case POST_ASK: on_ask(server, post); break;
    case POST_DRAIN:
        server->is_draining = true;
        server->loads_changed = true;
        step(server, (struct router_event){.kind = ROUTER_EV_DRAIN});
        break;
    case POST_STOP:
        server->stopping = true;
        attach_client_close(server->nodes);
        break;
    }
}

/* ---- what others see ---- */

static void publish_nodes(struct router_server *server, struct router_gauges *gauges, bool *ret_serving)
{
    double queued = 0, rate = 0, blocks_free = 0, blocks = 0;
    *ret_serving = false;
    /* Those that are away first: a node may be listed twice, and then one entry is always away. */
    for (uint32_t i = 0; i < server->config.core.nodes_max; i++) {
        struct attach_node node;
        if (!attach_client_node(server->nodes, i, &node) || node.is_attached || !node.name[0]) { continue; }
        router_metrics_node(server->config.metrics, node.name, node.role == NODE_ROLE_PREFILL, NULL);
    }
    for (uint32_t i = 0; i < server->config.core.nodes_max; i++) {
        struct attach_node node;
        struct ctl_load load;
        if (!attach_client_node(server->nodes, i, &node)) { continue; }
        bool is_up = node.is_attached && router_core_node(server->core, i, &load);
        if (!is_up) { continue; }
        router_metrics_node(server->config.metrics, node.name, node.role == NODE_ROLE_PREFILL, &load);
        if (node.role == NODE_ROLE_PREFILL) {
            queued += (double)load.tokens_queued;
            rate += load.tokens_per_s;
        } else {
            blocks_free += (double)load.blocks_free + load.blocks_cached;
            blocks += load.blocks_total;
            *ret_serving = *ret_serving || !load.draining;
        }
    }
    gauges->prefill_backlog_s = rate > 0 ? queued / rate : 0;
    gauges->decode_kv_headroom = blocks > 0 ? blocks_free / blocks : 0;
}

static void publish(struct router_server *server, struct router_gauges *gauges)
{
    gauges->stats = router_core_stats(server->core);
    gauges->running = server->running;
    gauges->waiting = gauges->stats.live > server->running ? gauges->stats.live - server->running : 0;
    if (server->loads_changed) {
        server->loads_changed = false;
        bool can_serve;
        publish_nodes(server, gauges, &can_serve);
        can_serve = can_serve && !server->is_draining;
        if (can_serve != server->is_serving) {
            server->is_serving = can_serve;
            router_metrics_set_ready(server->config.metrics, can_serve);
            if (server->config.on_serving) { server->config.on_serving(server->config.user, can_serve); }
        }
    }
    router_metrics_publish(server->config.metrics, gauges);
    atomic_store(&server->is_idle, server->is_draining && server->client_count == 0);
}

static uint64_t next_deadline_ns(const struct router_server *server)
{
    uint64_t core_ns = router_core_deadline_ns(server->core);
    uint64_t nodes_ns = attach_client_deadline_ns(server->nodes);
    uint64_t deadline_ns = core_ns < nodes_ns ? core_ns : nodes_ns;
    if (server->blocked > 0 && server->slow_check_ns < deadline_ns) { deadline_ns = server->slow_check_ns; }
    return deadline_ns;
}

static void *core_main(void *user)
{
    struct router_server *server = user;
    struct router_gauges gauges = {0};
    while (!(server->stopping && attach_client_is_closed(server->nodes))) {
        mailbox_wait(server->mailbox, next_deadline_ns(server));
        server->now_ns = clock_now_ns();
        struct post post;
        /* Bounded, so that a flood of messages holds up neither the clock nor the clients. */
        for (unsigned i = 0; i < POSTS_PER_TURN && mailbox_take(server->mailbox, &post); i++) { handle(server, &post); }
        if (router_core_deadline_ns(server->core) <= server->now_ns) {
            step(server, (struct router_event){.kind = ROUTER_EV_TICK});
        }
        attach_client_tick(server->nodes, server->now_ns);
        flush_dirty(server);
        drop_slow_clients(server);
        publish(server, &gauges);
    }
    return NULL;
}

/* ---- life ---- */

static status_t open_tables(struct router_server *server)
{
    /* Twice: an answer that is complete may still be read while another request runs. */
    server->slot_count = server->config.core.requests_max * 2;
    server->clients = calloc(server->slot_count, sizeof *server->clients);
    /* Clients refused for want of a slot are dirty without one, POSTS_PER_TURN at most. */
    server->dirty = calloc(server->slot_count + POSTS_PER_TURN, sizeof *server->dirty);
    if (!server->clients || !server->dirty) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    return mailbox_create(MAILBOX_CAPACITY, sizeof(struct post), &server->mailbox);
}

status_t router_server_create(const struct router_server_config *config, struct router_server **ret_server,
                              struct diag *diag)
{
    CHECK(config->core.requests_max <= 1u << (SLOT_BITS - 1));
    struct router_server *server = calloc(1, sizeof *server);
    if (!server) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    server->config = *config;
    server->config.attach.post = on_node_post;
    server->config.attach.post_user = server;
    server->config.attach.nodes_max = config->core.nodes_max;
    server->config.attach.router_boot_id = config->core.router_boot_id;
    server->start_ns = clock_now_ns();
    status_t st = open_tables(server);
    if (failed(st)) { goto fail; }
    st = router_core_create(&config->core, &server->core, diag);
    if (failed(st)) { goto fail; }
    st = attach_client_create(&server->config.attach, &server->nodes);
    if (failed(st)) { goto fail; }
    for (uint32_t i = 0; i < config->nodes->count; i++) {
        if (config->nodes->entries[i].is_numeric) { attach_client_add(server->nodes, &config->nodes->entries[i]); }
    }
    if (pthread_create(&server->thread, NULL, core_main, server) != 0) {
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
        goto fail;
    }
    server->has_thread = true;
    st = resolver_create(config->nodes, config->resolve_interval_ns, on_resolved, server, &server->resolver);
    if (failed(st)) { goto fail; }
    *ret_server = server;
    return STATUS_OK;
fail:
    router_server_destroy(server);
    return st;
}

void router_server_drain(struct router_server *server)
{
    struct post post = {.kind = POST_DRAIN};
    mailbox_post_wait(server->mailbox, &post);
}

bool router_server_is_idle(const struct router_server *server) { return atomic_load(&server->is_idle); }

void router_server_stop(struct router_server *server)
{
    if (!server) { return; }
    resolver_destroy(server->resolver);
    server->resolver = NULL;
    if (!server->has_thread) { return; }
    struct post post = {.kind = POST_STOP};
    mailbox_post_wait(server->mailbox, &post);
    pthread_join(server->thread, NULL);
    server->has_thread = false;
}

void router_server_destroy(struct router_server *server)
{
    if (!server) { return; }
    router_server_stop(server);
    attach_client_destroy(server->nodes);
    router_core_destroy(server->core);
    mailbox_destroy(server->mailbox);
    pb_writer_fini(&server->writer);
    free(server->clients);
    free(server->dirty);
    free(server->stops);
    free(server);
}
