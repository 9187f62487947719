#include "router/inference_api.h"

#include <stdlib.h>
#include <sys/random.h>

#include "base/clock.h"
#include "router/request_parse.h"
#include "rpc/reply.h"

/* A stream's queue is small: what a slow client has not taken waits in its session, where new
 * tokens join what is there and cost no message of their own. */
#define STREAM_MESSAGES_MAX 32u
#define STREAM_BYTES_MAX ((size_t)256 << 10)

typedef status_t (*parse_fn)(const struct served_model *model, const uint8_t *bytes, size_t len, uint64_t drawn_seed,
                             struct request_spec *ret_spec, struct diag *diag);

/* One Generate or Chat call, on its rpc thread. */
struct stream_call {
    struct inference_api *api;
    parse_fn parse;
    struct router_client *client;
    bool has_request, is_submitted;
};

static uint64_t draw_seed(void)
{
    uint64_t seed = clock_now_ns();
    /* Never blocks after boot; where it fails the clock will do: a seed is no secret. */
    if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed) { seed ^= clock_wall_ns(); }
    return seed;
}

static status_t start(struct stream_call *stream, const uint8_t *bytes, size_t len, struct diag *diag)
{
    struct inference_api *api = stream->api;
    uint64_t arrival_ns = clock_now_ns();
    struct request_spec spec = {0};
    TRY(stream->parse(api->model, bytes, len, draw_seed(), &spec, diag));
    struct session_model model = {
        .tokenizer = api->model->tokenizer,
        .eos = {.token = api->model->config.eos_tokens, .count = api->model->config.eos_count},
        .context_tokens = api->model->config.context_tokens,
    };
    status_t st = session_create(&model, &spec, arrival_ns, &stream->client->session);
    if (failed(st)) {
        request_spec_fini(&spec);
        diag_set(diag, "the router is out of memory; try again later");
        return st;
    }
    stream->client->deadline_ns = rpc_call_deadline_ns(stream->client->call);
    st = router_server_submit(api->server, stream->client);
    if (failed(st)) {
        diag_set(diag, "the router's queue is full; try again later");
        return st;
    }
    stream->is_submitted = true;
    return STATUS_OK;
}

static void on_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    struct stream_call *stream = user;
    if (stream->has_request) { return; } /* a client that streams requests: the first one counts */
    stream->has_request = true;
    struct diag diag = {{0}};
    status_t st = start(stream, bytes, len, &diag);
    if (!failed(st)) { return; }
    router_server_count_refusal(stream->api->server, st.code);
    rpc_call_finish_status(call, st, diag.text[0] ? diag.text : "the router is out of memory; try again later",
                           st.code == ST_RESOURCE_EXHAUSTED ? 500 : 0);
}

static void on_half_close(void *user, struct rpc_call *call)
{
    struct stream_call *stream = user;
    if (!stream->has_request) { reply_no_message(NULL, call); }
}

static void on_writable(void *user, struct rpc_call *call)
{
    (void)call;
    struct stream_call *stream = user;
    if (stream->is_submitted) { router_server_writable(stream->api->server, stream->client); }
}

static void on_done(void *user, struct rpc_call *call, const struct rpc_outcome *outcome)
{
    (void)call;
    (void)outcome;
    struct stream_call *stream = user;
    if (stream->is_submitted) {
        router_server_gone(stream->api->server, stream->client);
    } else {
        router_client_destroy(stream->client);
    }
    free(stream);
}

static const struct rpc_callbacks stream_callbacks = {
    .on_message = on_message,
    .on_half_close = on_half_close,
    .on_writable = on_writable,
    .on_done = on_done,
};

static status_t accept_stream(struct inference_api *api, parse_fn parse, struct rpc_call *call,
                              struct rpc_handler *ret_handler, struct diag *diag)
{
    struct stream_call *stream = calloc(1, sizeof *stream);
    struct router_client *client = calloc(1, sizeof *client);
    if (!stream || !client) {
        free(stream);
        free(client);
        diag_set(diag, "the router is out of memory; try again later");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    }
    rpc_call_ref(call);
    client->call = call;
    *stream = (struct stream_call){.api = api, .parse = parse, .client = client};
    struct rpc_send_limits limits = {.messages_max = STREAM_MESSAGES_MAX, .bytes_max = STREAM_BYTES_MAX};
    rpc_call_set_send_limits(call, &limits);
    ret_handler->callbacks = &stream_callbacks;
    ret_handler->user = stream;
    return STATUS_OK;
}

static status_t accept_generate(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    return accept_stream(service, request_parse_generate, call, ret_handler, diag);
}

static status_t accept_chat(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    return accept_stream(service, request_parse_chat, call, ret_handler, diag);
}

status_t inference_api_register(struct inference_api *api, struct rpc_server *rpc, struct diag *diag)
{
    TRY(rpc_server_register(rpc, "/" INFERENCE_SERVICE "/Generate", accept_generate, api, diag));
    TRY(rpc_server_register(rpc, "/" INFERENCE_SERVICE "/Chat", accept_chat, api, diag));
    return inference_unary_register(api, rpc, diag);
}
