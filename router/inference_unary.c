/* The calls of inference_api that answer with one message. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/version.h"
#include "proto/baton/v1/inference.pb-c.h"
#include "router/inference_api.h"
#include "router/pb_wire.h"
#include "router/request_parse.h"
#include "rpc/reply.h"


static void refuse(struct inference_api *api, struct rpc_call *call, status_t st, const char *why)
{
    router_server_count_refusal(api->server, st.code);
    rpc_call_finish_status(call, st, why, st.code == ST_RESOURCE_EXHAUSTED ? 500 : 0);
}

/* Takes the writer's memory. */
static void answer(struct rpc_call *call, struct pb_writer *writer)
{
    status_t st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    if (!writer->is_broken) { st = rpc_call_send(call, writer->bytes ? writer->bytes : (const uint8_t *)"", writer->len); }
    rpc_call_finish_status(call, st, failed(st) ? "the answer could not be queued" : "", 0);
    pb_writer_fini(writer);
}

/* ---- Tokenize, Detokenize ---- */

static void on_tokenize(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    struct inference_api *api = user;
    struct token_buf ids = {0};
    struct text_buf rendered = {0};
    struct diag diag = {{0}};
    status_t st = request_parse_tokenize(api->model, bytes, len, &ids, &rendered, &diag);
    if (failed(st)) {
        refuse(api, call, st, diag.text);
    } else {
        struct pb_writer writer = {0};
        pb_put_packed(&writer, 1, ids.ids, ids.count);
        for (size_t i = 0; i < ids.count; i++) {
            size_t spelling_len = 0;
            const char *spelling = tokenizer_token_spelling(api->model->tokenizer, ids.ids[i], &spelling_len);
            pb_put_element(&writer, 2, spelling ? spelling : "", spelling_len);
        }
        pb_put_bytes(&writer, 3, rendered.data, rendered.len);
        answer(call, &writer);
    }
    token_buf_fini(&ids);
    text_buf_fini(&rendered);
}

static void on_detokenize(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    struct inference_api *api = user;
    struct text_buf text = {0};
    struct diag diag = {{0}};
    status_t st = request_parse_detokenize(api->model, bytes, len, &text, &diag);
    if (failed(st)) {
        refuse(api, call, st, diag.text);
    } else {
        struct pb_writer writer = {0};
        pb_put_bytes(&writer, 1, text.data, text.len);
        answer(call, &writer);
    }
    text_buf_fini(&text);
}

/* ---- GetModel, GetStatus: on the core thread ---- */

static void answer_model(void *user, struct rpc_call *call, const struct router_view *view)
{
    const struct inference_api *api = user;
    const struct served_model *model = api->model;
    const struct generation_defaults *from = &model->defaults;
    Baton__V1__SamplingParams defaults = BATON__V1__SAMPLING_PARAMS__INIT;
    Baton__V1__Float temperature = BATON__V1__FLOAT__INIT, top_p = BATON__V1__FLOAT__INIT, min_p = BATON__V1__FLOAT__INIT,
                     penalty = BATON__V1__FLOAT__INIT;
    Baton__V1__UInt top_k = BATON__V1__UINT__INIT, max_tokens = BATON__V1__UINT__INIT, n = BATON__V1__UINT__INIT;
    temperature.value = from->has_temperature ? from->temperature : 1.0f;
    if (from->has_do_sample && !from->do_sample) { temperature.value = 0.0f; }
    top_p.value = from->has_top_p ? from->top_p : 1.0f;
    min_p.value = from->has_min_p ? from->min_p : 0.0f;
    penalty.value = from->has_repetition_penalty ? from->repetition_penalty : 1.0f;
    top_k.value = from->has_top_k ? from->top_k : 0;
    max_tokens.value = DEFAULT_MAX_TOKENS;
    n.value = 1;
    defaults.temperature = &temperature;
    defaults.top_p = &top_p;
    defaults.min_p = &min_p;
    defaults.repetition_penalty = &penalty;
    defaults.top_k = &top_k;
    defaults.max_tokens = &max_tokens;
    defaults.n = &n;

    char hash[65] = "";
    for (unsigned i = 0; view->model_hash && i < 32; i++) { snprintf(hash + (size_t)2 * i, 3, "%02x", (unsigned)view->model_hash[i]); }
    uint32_t eos[MODEL_EOS_MAX];
    memcpy(eos, model->config.eos_tokens, sizeof eos);
    char name[sizeof model->name], label[sizeof model->chat_label];
    memcpy(name, model->name, sizeof name);
    memcpy(label, model->chat_label, sizeof label);
    char architecture[64];
    snprintf(architecture, sizeof architecture, "%s", model_architecture_name(model->config.architecture));
    Baton__V1__GetModelResponse response = BATON__V1__GET_MODEL_RESPONSE__INIT;
    response.name = name;
    response.architecture = architecture;
    response.vocab_size = model->config.vocab_size;
    response.context_tokens = model->config.context_tokens;
    response.n_eos_token_ids = model->config.eos_count;
    response.eos_token_ids = eos;
    response.model_hash = hash;
    response.chat_template = label;
    response.defaults = &defaults;
    reply_last(call, &response.base);
}

struct node_text {
    char name[128], address[NODE_TARGET_CHARS_MAX], problem[512];
};

static void fill_node(Baton__V1__NodeStatus *status, struct node_text *text, const struct attach_node *node,
                      const struct ctl_load *load)
{
    static char prefill[] = "prefill", decode[] = "decode";
    baton__v1__node_status__init(status);
    snprintf(text->name, sizeof text->name, "%s", node->name);
    snprintf(text->address, sizeof text->address, "%s", node->address);
    snprintf(text->problem, sizeof text->problem, "%s", node->problem);
    status->name = text->name;
    status->address = text->address;
    status->problem = text->problem;
    status->role = node->role == NODE_ROLE_PREFILL ? prefill : decode;
    status->attached = node->is_attached;
    status->boot_epoch = node->boot_epoch;
    status->blocks_total = load->blocks_total;
    status->blocks_free = load->blocks_free;
    status->blocks_held = load->blocks_held;
    status->blocks_cached = load->blocks_cached;
    status->blocks_quarantined = load->blocks_quarantined;
    status->sequences_running = load->sequences_running;
    status->sequences_waiting = load->sequences_waiting;
    status->tokens_queued = load->tokens_queued;
    status->tokens_per_s = load->tokens_per_s;
    status->draining = load->draining;
    status->cache_tokens_asked = load->cache_tokens_asked;
    status->cache_tokens_found = load->cache_tokens_found;
}

static void answer_status(void *user, struct rpc_call *call, const struct router_view *view)
{
    (void)user;
    static char version[] = BATON_VERSION;
    Baton__V1__NodeStatus *nodes = calloc(view->nodes_max, sizeof *nodes);
    Baton__V1__NodeStatus **list = calloc(view->nodes_max, sizeof *list);
    struct node_text *texts = calloc(view->nodes_max, sizeof *texts);
    if (!nodes || !list || !texts) {
        rpc_call_finish_status(call, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST), "the router is out of memory", 500);
    } else {
        Baton__V1__GetStatusResponse response = BATON__V1__GET_STATUS_RESPONSE__INIT;
        for (uint32_t i = 0; i < view->nodes_max; i++) {
            struct attach_node node;
            struct ctl_load load = {0};
            if (!attach_client_node(view->nodes, i, &node)) { continue; }
            if (node.is_attached) { (void)router_core_node(view->core, i, &load); }
            size_t at = response.n_nodes++;
            fill_node(&nodes[at], &texts[at], &node, &load);
            list[at] = &nodes[at];
        }
        response.nodes = list;
        response.version = version;
        response.ready = view->is_serving;
        response.draining = view->is_draining;
        response.uptime_s = (double)(view->now_ns - view->start_ns) / (double)NS_PER_S;
        response.requests_live = view->stats.live;
        response.requests_waiting = view->stats.waiting;
        response.requests_accepted = view->stats.accepted;
        response.requests_finished = view->stats.finished;
        response.requests_failed = view->stats.failed;
        response.requests_cancelled = view->stats.cancelled;
        response.requests_refused = view->stats.refused + view->refused_here;
        response.legs_resumed = view->stats.resumed_legs;
        reply_last(call, &response.base);
    }
    free(nodes);
    free(list);
    free(texts);
}

static void ask(struct inference_api *api, struct rpc_call *call, router_answer_fn fn)
{
    if (router_server_ask(api->server, call, fn, api)) { return; }
    refuse(api, call, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST), "the router's queue is full; try again later");
}

/* The requests of both are empty, so the end of the client's side is all there is to wait for. */
static void on_get_model(void *user, struct rpc_call *call) { ask(user, call, answer_model); }

static void on_get_status(void *user, struct rpc_call *call) { ask(user, call, answer_status); }

/* ---- registration ---- */

struct unary {
    const char *method;
    rpc_accept_fn accept;
};

static const struct rpc_callbacks tokenize_callbacks = {.on_message = on_tokenize, .on_half_close = reply_no_message};
static const struct rpc_callbacks detokenize_callbacks = {.on_message = on_detokenize, .on_half_close = reply_no_message};
static const struct rpc_callbacks get_model_callbacks = {.on_half_close = on_get_model};
static const struct rpc_callbacks get_status_callbacks = {.on_half_close = on_get_status};

static status_t accept_tokenize(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    (void)call;
    (void)diag;
    *ret_handler = (struct rpc_handler){.callbacks = &tokenize_callbacks, .user = service};
    return STATUS_OK;
}

static status_t accept_detokenize(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    (void)call;
    (void)diag;
    *ret_handler = (struct rpc_handler){.callbacks = &detokenize_callbacks, .user = service};
    return STATUS_OK;
}

static status_t accept_get_model(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    (void)call;
    (void)diag;
    *ret_handler = (struct rpc_handler){.callbacks = &get_model_callbacks, .user = service};
    return STATUS_OK;
}

static status_t accept_get_status(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    (void)call;
    (void)diag;
    *ret_handler = (struct rpc_handler){.callbacks = &get_status_callbacks, .user = service};
    return STATUS_OK;
}

status_t inference_unary_register(struct inference_api *api, struct rpc_server *rpc, struct diag *diag)
{
    static const struct unary methods[] = {
        {"/" INFERENCE_SERVICE "/Tokenize", accept_tokenize},
        {"/" INFERENCE_SERVICE "/Detokenize", accept_detokenize},
        {"/" INFERENCE_SERVICE "/GetModel", accept_get_model},
        {"/" INFERENCE_SERVICE "/GetStatus", accept_get_status},
    };
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        TRY(rpc_server_register(rpc, methods[i].method, methods[i].accept, api, diag));
    }
    return STATUS_OK;
}
