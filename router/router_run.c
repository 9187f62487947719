#include "proto/baton/v1/inference_descriptor.h"
#include "router/router_run.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/net_address.h"
#include "router/inference_api.h"
#include "router/node_address.h"
#include "router/router_metrics.h"
#include "router/router_server.h"
#include "router/served_model.h"
#include "rpc/health.h"
#include "rpc/reflection.h"
#include "rpc/rpc.h"

#define HELLO_WAIT_NS (5 * NS_PER_S)
#define SUSPECT_TTL_NS (5 * NS_PER_S)
/* A request has one sequence mostly, 64 at most: a table for four each, and room for a few
 * large ones in a small router. */
#define SEQUENCES_PER_REQUEST 4u
/* Of each node, and no more than it has: 10 MiB for a node with so many blocks. */
#define GUESS_BLOCKS_MAX (1u << 18)

struct router_process {
    const struct router_config *config;
    char listen[300];
    struct served_model model;
    struct node_address_list nodes;
    struct router_metrics *metrics;
    struct rpc_runtime *api_runtime;  /* clients: they tokenize on its threads */
    struct rpc_runtime *node_runtime; /* nodes: a long prompt must not hold up their tokens */
    struct rpc_server *rpc;
    struct rpc_health *health;
    struct rpc_reflection *reflection;
    struct router_server *server;
    struct inference_api api;
    bool is_started;
};

static void on_serving(void *user, bool is_serving)
{
    struct router_process *process = user;
    LOGF(LOG_INFO, "serving", "ready=%s", is_serving ? "true" : "false");
    (void)rpc_health_set(process->health, INFERENCE_SERVICE, is_serving);
}

static struct rpc_tls tls_of(const struct router_config *config)
{
    return (struct rpc_tls){.enabled = config->tls_cert != NULL,
                            .cert_file = config->tls_cert,
                            .key_file = config->tls_key,
                            .ca_file = config->tls_ca};
}

static status_t open_rpc(struct router_process *process, struct diag *diag)
{
    const struct router_config *config = process->config;
    TRY(rpc_runtime_create(config->api_threads, &process->api_runtime));
    TRY(rpc_runtime_create(1, &process->node_runtime));
    const char *addresses[] = {process->listen};
    struct rpc_server_config server = {
        .listen = addresses,
        .listen_count = 1,
        .tls = tls_of(config),
        /* Requests, and as many again for questions and for answers that are still being read. */
        .calls_max = config->requests_max * 3 + 256,
    };
    TRY(rpc_server_create(process->api_runtime, &server, &process->rpc, diag));
    TRY(rpc_health_create(process->rpc, &process->health, diag));
    struct descriptor_set sets[] = {{.bytes = inference_descriptor, .len = inference_descriptor_len}};
    TRY(rpc_reflection_create(process->rpc, sets, 1, &process->reflection, diag));
    /* "" is the process: restarting a router brings no decode node back. The service is what
     * depends on nodes. */
    TRY(rpc_health_set(process->health, "", true));
    return rpc_health_set(process->health, INFERENCE_SERVICE, false);
}

static status_t open_server(struct router_process *process, struct diag *diag)
{
    const struct router_config *config = process->config;
    uint64_t boot_id = clock_wall_ns();
    if (getrandom(&boot_id, sizeof boot_id, 0) != (ssize_t)sizeof boot_id) { boot_id = clock_wall_ns(); }
    uint32_t sequences = config->requests_max * SEQUENCES_PER_REQUEST;
    bool predict_local;
    uint32_t local_prefill_tokens;
    (void)router_config_local_prefill(config, &predict_local, &local_prefill_tokens); /* checked at start */
    struct router_server_config server = {
        .core =
            {
                .router_boot_id = boot_id,
                .requests_max = config->requests_max,
                .sequences_max = sequences < 4 * SAMPLING_N_MAX ? 4 * SAMPLING_N_MAX : sequences,
                .nodes_max = ROUTER_NODES_MAX,
                .local_prefill_tokens = local_prefill_tokens,
                .predict_local = predict_local,
                .guess_blocks_max = strcmp(config->prefix_cache, "on") == 0 ? GUESS_BLOCKS_MAX : 0,
                .reserve_wait_ns = config->reserve_wait_ns,
                .resume_wait_ns = config->resume_wait_ns,
                .suspect_ttl_ns = SUSPECT_TTL_NS,
            },
        .attach =
            {
                .runtime = process->node_runtime,
                .tls = tls_of(config),
                .vocab_size = process->model.config.vocab_size,
                .context_tokens = process->model.config.context_tokens,
                .hello_wait_ns = HELLO_WAIT_NS,
            },
        .nodes = &process->nodes,
        .resolve_interval_ns = config->resolve_interval_ns,
        .metrics = process->metrics,
        .on_serving = on_serving,
        .user = process,
    };
    return router_server_create(&server, &process->server, diag);
}

static status_t open_parts(struct router_process *process, struct diag *diag)
{
    const struct router_config *config = process->config;
    TRY(node_address_add(&process->nodes, NODE_ROLE_PREFILL, "prefill", &config->prefill, diag));
    TRY(node_address_add(&process->nodes, NODE_ROLE_DECODE, "decode", &config->decode, diag));
    status_t st = net_address_listen(config->listen, process->listen, sizeof process->listen, diag);
    if (failed(st)) {
        diag_prefix(diag, "--listen=%s", config->listen);
        return st;
    }
    st = served_model_open(config->model, config->name, config->chat_template, &process->model, diag);
    if (failed(st)) {
        diag_prefix(diag, "--model=%s", config->model);
        return st;
    }
    if (!process->model.tokenizer) { LOGF(LOG_WARN, "no_tokenizer", "why=\"%s\"", process->model.text_problem.text); }
    if (!process->model.chat && process->model.tokenizer) { LOGF(LOG_WARN, "no_chat", "why=\"%s\"", process->model.chat_problem.text); }
    if (config->check) { return STATUS_OK; }
    struct router_metrics_config metrics = {.listen = config->metrics_listen, .model_name = process->model.name};
    TRY(router_metrics_create(&metrics, &process->metrics, diag));
    TRY(open_rpc(process, diag));
    TRY(open_server(process, diag));
    process->api = (struct inference_api){.model = &process->model, .server = process->server};
    TRY(inference_api_register(&process->api, process->rpc, diag));
    TRY(rpc_server_start(process->rpc, diag));
    process->is_started = true;
    return STATUS_OK;
}

status_t router_open(const struct router_config *config, struct router_process **ret_process, struct diag *diag)
{
    TRY(router_config_check(config, diag));
    struct router_process *process = calloc(1, sizeof *process);
    if (!process) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    process->config = config;
    status_t st = open_parts(process, diag);
    if (failed(st)) {
        router_close(process);
        return st;
    }
    *ret_process = process;
    return STATUS_OK;
}

const char *router_listen_address(const struct router_process *process) { return process->listen; }

void router_drain(struct router_process *process)
{
    rpc_health_drain(process->health);
    router_server_drain(process->server);
}

bool router_is_idle(const struct router_process *process) { return router_server_is_idle(process->server); }

void router_close(struct router_process *process)
{
    if (!process) { return; }
    /* Clients first: their ends are the core thread's to take. Then nodes, then the threads. */
    if (process->is_started) { rpc_server_shutdown(process->rpc, 200 * NS_PER_MS); }
    router_server_stop(process->server);
    rpc_server_destroy(process->rpc);
    router_server_destroy(process->server);
    rpc_reflection_destroy(process->reflection);
    rpc_health_destroy(process->health);
    rpc_runtime_destroy(process->api_runtime);
    rpc_runtime_destroy(process->node_runtime);
    router_metrics_destroy(process->metrics);
    served_model_close(&process->model);
    free(process);
}

/* A second signal cuts the wait short. */
static void wait_until_idle(struct router_process *process, const sigset_t *signals)
{
    uint64_t deadline_ns = clock_now_ns() + process->config->drain_timeout_ns;
    while (clock_now_ns() < deadline_ns && !router_is_idle(process)) {
        struct timespec wait = {.tv_nsec = 20000000};
        if (sigtimedwait(signals, NULL, &wait) > 0) {
            LOGF(LOG_WARN, "drain_cut", "signal=again");
            return;
        }
    }
    if (!router_is_idle(process)) { LOGF(LOG_WARN, "drain_timeout", "what is left is cut off"); }
}

int router_run(const struct router_config *config)
{
    enum log_level level;
    if (!log_level_parse(config->log_level, &level)) {
        fprintf(stderr, "router: --log-level=%s: takes error, warn, info or debug\n", config->log_level);
        return 2;
    }
    log_set_level(level);
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL); /* before any thread: all inherit it */
    signal(SIGPIPE, SIG_IGN);

    uint64_t start_ns = clock_now_ns();
    struct router_process *process = NULL;
    struct diag diag = {{0}};
    status_t st = router_open(config, &process, &diag);
    if (failed(st)) {
        if (st.code == ST_INVALID_ARGUMENT) {
            fprintf(stderr, "router: %s\n", diag.text);
            return 2;
        }
        LOGF(LOG_ERROR, "start_failed", "code=%s line=%u why=\"%s\"", status_code_name(st.code), st.line, diag.text);
        return 1;
    }
    if (!config->check) {
        LOGF(LOG_INFO, "ready", "role=router listen=%s model=%s prefill=%u decode=%u chat_template=%s ms=%" PRIu64,
             process->listen, process->model.name, config->prefill.count, config->decode.count,
             process->model.chat_label[0] ? process->model.chat_label : "none", (clock_now_ns() - start_ns) / NS_PER_MS);
        int signal_number;
        sigwait(&signals, &signal_number);
        LOGF(LOG_INFO, "draining", "timeout_s=%" PRIu64, config->drain_timeout_ns / NS_PER_S);
        router_drain(process);
        wait_until_idle(process, &signals);
    }
    router_close(process);
    LOGF(LOG_INFO, "stopped", "role=router");
    return 0;
}
