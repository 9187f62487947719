#include "node/node.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mailbox.h"
#include "base/net_address.h"
#include "base/version.h"
#include "engine/engine.h"
#include "node/attach_server.h"
#include "node/inspect_server.h"
#include "node/memory_plan.h"
#include "node/node_compute.h"
#include "node/node_metrics.h"
#include "node/tier_service.h"
#include "proto/baton/control/v1/control_descriptor.h"
#include "proto/baton/transfer/v1/kv_link_descriptor.h"
#include "rpc/health.h"
#include "rpc/reflection.h"
#include "rpc/rpc.h"
#include "transfer/cable_ucx.h"
#include "transfer/link_grpc.h"
#include "transfer/nccl_api.h"

#define MAILBOX_CAPACITY 8192u
#define MESSAGE_BYTES_MAX (64u << 20)
#define SERVICE_CONTROL "baton.control.v1.NodeControl"
#define SERVICE_LINK "baton.transfer.v1.KvLink"

enum post_kind { POST_ATTACH, POST_STEP, POST_XFER, POST_TIER, POST_INSPECT, POST_DRAIN, POST_STOP };

/* A transfer's final event, copied off the transfer thread. */
struct xfer_post {
    struct kv_event event;
    char text[256];
    char reason[160]; /* the whole sentence: why a better cable was not taken */
    uint8_t payload[];
};

struct post {
    enum post_kind kind;
    struct attach_post attach;
    const struct step_result *result;
    struct xfer_post *xfer;
    struct kv_tier_event tier;
    struct inspect_post inspect;
};

struct node {
    const struct node_config *config;
    const struct node_role_ops *ops;
    void *role;
    char name[128];
    char advertise[300];
    char listen[300];
    uint64_t boot_epoch;

    struct node_compute compute;
    struct engine *engine;
    struct rpc_runtime *runtime;
    struct rpc_server *server;
    struct rpc_health *health;
    struct rpc_reflection *reflection;
    struct attach_server *attach;
    struct inspect_server *inspect;
    struct rpc_tls tls;
    struct link_grpc *link;
    struct kv_endpoint *endpoint;
    struct tier_service *tiers; /* NULL: none */
    struct node_metrics *metrics;
    struct mailbox *mailbox;
    struct ctl_codec *codec;        /* core thread: what routers say and hear */
    struct ctl_codec *role_codec;   /* core thread: payloads of commits */
    bool *router_is_up;             /* [routers_max], core thread */

    pthread_t core_thread;
    bool core_runs;
    _Atomic bool core_failed;
    _Atomic bool core_idle; /* after a drain: nothing is left */
    pid_t main_pid;
};

/* ---- facts from other threads ---- */

static bool on_attach_post(void *user, const struct attach_post *attach)
{
    struct node *node = user;
    struct post post = {.kind = POST_ATTACH, .attach = *attach};
    if (attach->kind == ATTACH_POST_DOWN) {
        mailbox_post_wait(node->mailbox, &post);
        return true;
    }
    return !failed(mailbox_post(node->mailbox, &post));
}

static void on_step(void *user, const struct step_result *result)
{
    struct node *node = user;
    struct post post = {.kind = POST_STEP, .result = result};
    mailbox_post_wait(node->mailbox, &post);
}

static void on_layer(void *user, const struct step_plan *plan, uint32_t layer, uint64_t mark)
{
    struct node *node = user;
    if (node->ops->on_layer) { node->ops->on_layer(node->role, plan, layer, mark); }
}

static void on_kv_event(void *user, const struct kv_event *event)
{
    struct node *node = user;
    if (!node->ops->on_xfer(node->role, event)) { return; }
    struct xfer_post *copy = malloc(sizeof *copy + event->payload_bytes);
    CHECK(copy != NULL);
    copy->event = *event;
    snprintf(copy->text, sizeof copy->text, "%s", event->text ? event->text : "");
    snprintf(copy->reason, sizeof copy->reason, "%s", event->stats.reason ? event->stats.reason : "");
    if (event->payload_bytes > 0) { memcpy(copy->payload, event->payload, event->payload_bytes); }
    copy->event.text = copy->text;
    copy->event.stats.reason = copy->reason;
    copy->event.payload = copy->payload;
    struct post post = {.kind = POST_XFER, .xfer = copy};
    mailbox_post_wait(node->mailbox, &post);
}

static void on_tier_event(void *user, const struct kv_tier_event *event)
{
    struct node *node = user;
    struct post post = {.kind = POST_TIER, .tier = *event};
    mailbox_post_wait(node->mailbox, &post);
}

static bool on_inspect(void *user, const struct inspect_post *inspect)
{
    struct node *node = user;
    struct post post = {.kind = POST_INSPECT, .inspect = *inspect};
    return !failed(mailbox_post(node->mailbox, &post));
}

/* ---- the core thread ---- */

static status_t handle_bytes(struct node *node, const struct attach_post *attach, uint64_t now_ns)
{
    struct ctl_msg msg;
    struct diag diag = {{0}};
    status_t st = ctl_codec_decode(node->codec, CTL_FROM_ROUTER, attach->bytes, attach->byte_count, &msg, &diag);
    if (failed(st)) {
        attach_server_drop(node->attach, attach->router, diag.text);
        return STATUS_OK;
    }
    if (msg.kind == CTL_ROUTER_HELLO) {
        if (msg.router_hello.protocol_version != CTL_PROTOCOL_VERSION) {
            char why[128];
            snprintf(why, sizeof why, "control protocol: this node speaks version %u, the router %u; update the older one",
                     CTL_PROTOCOL_VERSION, msg.router_hello.protocol_version);
            attach_server_drop(node->attach, attach->router, why);
        }
        return STATUS_OK;
    }
    struct node_fact fact = {.kind = NODE_FACT_MESSAGE, .now_ns = now_ns, .router = attach->router, .msg = &msg};
    return node->ops->on_fact(node->role, &fact);
}

static status_t handle_attach(struct node *node, const struct attach_post *attach, uint64_t now_ns)
{
    struct node_fact fact = {.now_ns = now_ns, .router = attach->router};
    status_t st = STATUS_OK;
    switch (attach->kind) {
    case ATTACH_POST_UP:
        node->router_is_up[attach->router] = true;
        fact.kind = NODE_FACT_ROUTER_UP;
        return node->ops->on_fact(node->role, &fact);
    case ATTACH_POST_DOWN:
        if (node->router_is_up[attach->router]) {
            node->router_is_up[attach->router] = false;
            fact.kind = NODE_FACT_ROUTER_DOWN;
            st = node->ops->on_fact(node->role, &fact);
        }
        attach_server_forget(node->attach, attach->router);
        return st;
    case ATTACH_POST_BYTES:
        if (node->router_is_up[attach->router]) { st = handle_bytes(node, attach, now_ns); }
        free(attach->bytes);
        return st;
    }
    return STATUS_OK;
}

static void publish(struct node *node)
{
    struct ctl_load load = {0};
    struct node_totals totals = {0};
    node->ops->report(node->role, &load, &totals);
    node_metrics_publish(node->metrics, &load, &totals);
    atomic_store(&node->core_idle, load.draining && totals.idle);
}

static status_t tell_tier(struct node *node, const struct kv_tier_event *event, uint64_t now_ns)
{
    struct node_fact fact = {.kind = NODE_FACT_TIER, .now_ns = now_ns, .tier = event};
    return node->ops->on_fact(node->role, &fact);
}

/* The core asks again when it hears of a refusal, and may be refused again: those wait a turn. */
static status_t tell_refused(struct node *node, uint64_t now_ns)
{
    struct kv_tier_event event;
    uint32_t count = tier_service_refused_count(node->tiers);
    for (; count > 0 && tier_service_next_refused(node->tiers, &event); count--) { TRY(tell_tier(node, &event, now_ns)); }
    return STATUS_OK;
}

/* What the disk kept from an earlier life, before anything else. */
static status_t tell_found(struct node *node)
{
    const struct kv_tier_event *event;
    while ((event = tier_service_next_found(node->tiers)) != NULL) { TRY(tell_tier(node, event, clock_now_ns())); }
    return STATUS_OK;
}

static uint64_t core_deadline_ns(struct node *node)
{
    return tier_service_refused_count(node->tiers) > 0 ? 0 : node->ops->deadline_ns(node->role);
}

static const char *last_part(const char *path)
{
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/') { len--; }
    size_t start = len;
    while (start > 0 && path[start - 1] != '/') { start--; }
    static char part[256];
    snprintf(part, sizeof part, "%.*s", (int)(len - start), path + start);
    return part;
}

static void answer_inspect(struct node *node, const struct inspect_post *post)
{
    struct kv_tier_stats tiers;
    struct inspect_about about = {
        .name = node->name,
        .role = node->ops->name,
        .model = last_part(node->config->model),
        .block_tokens = node->compute.layout.block_tokens,
        .block_bytes = kv_layout_block_bytes(&node->compute.layout),
        .boot_epoch = node->boot_epoch,
        .tiers = tier_service_stats(node->tiers, &tiers) ? &tiers : NULL,
    };
    struct ctl_load load = {0};
    struct node_totals totals = {0};
    node->ops->report(node->role, &load, &totals);
    inspect_answer(post, &about, &load, node->ops->inspect, node->role);
}

static void *core_main(void *user)
{
    struct node *node = user;
    bool stop = false;
    status_t st = tell_found(node);
    publish(node);
    while (!stop) {
        if (!failed(st)) { mailbox_wait(node->mailbox, core_deadline_ns(node)); }
        uint64_t now_ns = clock_now_ns();
        struct post post;
        if (!failed(st)) { st = tell_refused(node, now_ns); }
        /* Bounded, so that a flood of messages does not hold up the clock. */
        for (unsigned i = 0; i < 256 && !failed(st) && mailbox_take(node->mailbox, &post); i++) {
            struct node_fact fact = {.now_ns = now_ns};
            switch (post.kind) {
            case POST_ATTACH:
                st = handle_attach(node, &post.attach, now_ns);
                break;
            case POST_STEP:
                fact.kind = NODE_FACT_STEP;
                fact.result = post.result;
                st = node->ops->on_fact(node->role, &fact);
                break;
            case POST_XFER:
                fact.kind = NODE_FACT_XFER;
                fact.xfer = &post.xfer->event;
                st = node->ops->on_fact(node->role, &fact);
                free(post.xfer);
                break;
            case POST_TIER:
                st = tell_tier(node, &post.tier, now_ns);
                break;
            case POST_INSPECT:
                answer_inspect(node, &post.inspect);
                break;
            case POST_DRAIN:
                fact.kind = NODE_FACT_DRAIN;
                st = node->ops->on_fact(node->role, &fact);
                break;
            case POST_STOP:
                stop = true;
                break;
            }
        }
        if (!failed(st) && node->ops->deadline_ns(node->role) <= now_ns) {
            struct node_fact tick = {.kind = NODE_FACT_TICK, .now_ns = now_ns};
            st = node->ops->on_fact(node->role, &tick);
        }
        if (failed(st)) {
            LOGF(LOG_ERROR, "node_failed", "code=%s line=%u cause=%d", status_code_name(st.code), st.line, st.cause);
            atomic_store(&node->core_failed, true);
            kill(node->main_pid, SIGTERM);
            break;
        }
        publish(node);
    }
    return NULL;
}

void node_send(struct node *node, uint32_t router, const struct ctl_msg *msg)
{
    const uint8_t *bytes;
    size_t byte_count;
    if (!node->router_is_up[router]) { return; }
    status_t st = ctl_codec_encode(node->codec, msg, &bytes, &byte_count);
    if (failed(st)) {
        LOGF(LOG_ERROR, "message_too_large", "router=%u kind=%s", router, ctl_kind_name(msg->kind));
        attach_server_drop(node->attach, router, "a message of ours is over the size limit");
        return;
    }
    attach_server_send(node->attach, router, bytes, byte_count);
}

void node_step(struct node *node, const struct step_plan *plan) { engine_submit(node->engine, plan); }
struct kv_endpoint *node_endpoint(struct node *node) { return node->endpoint; }

void node_tier_store(struct node *node, struct kv_hash hash, uint32_t block, uint64_t tag)
{
    tier_service_store(node->tiers, hash, block, tag);
}

void node_tier_load(struct node *node, struct kv_hash hash, uint32_t block, uint64_t tag)
{
    tier_service_load(node->tiers, hash, block, tag);
}

struct ctl_codec *node_codec(struct node *node) { return node->role_codec; }

kv_xfer_id_t node_xfer_id(struct leg_id leg)
{
    kv_xfer_id_t id;
    for (unsigned i = 0; i < 8; i++) {
        id.bytes[i] = (uint8_t)(leg.hi >> (8 * i));
        id.bytes[8 + i] = (uint8_t)(leg.lo >> (8 * i));
    }
    return id;
}

struct leg_id node_leg_id(kv_xfer_id_t id)
{
    struct leg_id leg = {0, 0};
    for (unsigned i = 0; i < 8; i++) {
        leg.hi |= (uint64_t)id.bytes[i] << (8 * i);
        leg.lo |= (uint64_t)id.bytes[8 + i] << (8 * i);
    }
    return leg;
}

/* ---- start-up ---- */

static struct engine_config engine_shape(struct node *node)
{
    const struct node_config *config = node->config;
    return (struct engine_config){
        .model = node->compute.model,
        .kernels = node->compute.kernels,
        .layout = node->compute.layout,
        .kv_pool = node->compute.pool.base,
        .block_count = node->compute.block_count,
        .rows_max = config->step_tokens,
        .spans_max = config->step_tokens,
        .slot_count = config->batch_max * node->ops->slot_count_of_batch,
        .warms_up = !config->check,
        .on_layer = on_layer,
        .on_step = on_step,
        .user = node,
    };
}

static status_t make_hello(struct node *node, const struct kv_fingerprint *fingerprint, const uint8_t **ret_bytes,
                           size_t *ret_byte_count)
{
    uint8_t wire[KV_FINGERPRINT_WIRE_BYTES];
    kv_fingerprint_encode(fingerprint, wire);
    const struct model_config *model = model_get_config(node->compute.model);
    struct ctl_msg hello = {
        .kind = CTL_NODE_HELLO,
        .node_hello =
            {
                .protocol_version = CTL_PROTOCOL_VERSION,
                .node_id = XXH3_64bits(node->name, strlen(node->name)),
                .boot_epoch = node->boot_epoch,
                .role = (uint32_t)node->ops->role,
                .node_name = node->name,
                .model_name = last_part(node->config->model),
                .fingerprint_bytes = sizeof wire,
                .fingerprint = wire,
                .vocab_size = model->vocab_size,
                .context_tokens = model->context_tokens,
                .block_tokens = node->compute.layout.block_tokens,
                .block_count = node->compute.block_count,
                .sequences_max = node->config->batch_max,
            },
    };
    memcpy(hello.node_hello.model_hash, model_fingerprint(node->compute.model), sizeof hello.node_hello.model_hash);
    return ctl_codec_encode(node->codec, &hello, ret_bytes, ret_byte_count);
}

static status_t open_addresses(struct node *node, struct diag *diag)
{
    const struct node_config *config = node->config;
    TRY(net_address_listen(config->listen, node->listen, sizeof node->listen, diag));
    if (config->advertise) {
        snprintf(node->advertise, sizeof node->advertise, "%s", config->advertise);
    } else {
        TRY(net_address_advertise(node->listen, node->advertise, sizeof node->advertise, diag));
    }
    if (config->name) {
        snprintf(node->name, sizeof node->name, "%.63s", config->name);
    } else {
        char host[40] = "node";
        gethostname(host, sizeof host - 1);
        const char *port = strrchr(node->listen, ':');
        snprintf(node->name, sizeof node->name, "%s-%.39s-%.10s", node->ops->name, host, port ? port + 1 : "");
    }
    return STATUS_OK;
}

static struct kv_ucx_config ucx_config(const struct node_config *config)
{
    enum kv_ucx_mode mode = strcmp(config->ucx, "rdma") == 0            ? KV_UCX_RDMA
                            : strcmp(config->ucx, "trust-network") == 0 ? KV_UCX_TRUST_NETWORK
                                                                        : KV_UCX_OFF;
    return (struct kv_ucx_config){.mode = mode, .library = config->ucx_library};
}

static struct kv_nccl_config nccl_config(const struct node_config *config)
{
    return (struct kv_nccl_config){
        .is_on = node_config_wants_nccl(config),
        .library = config->nccl_library,
        .channels = config->nccl_channels,
        .pairs_max = config->nccl_pairs_max,
        .memory_bytes_max = config->nccl_memory,
        .init_ns = config->nccl_init_timeout_ns,
    };
}

static status_t open_wire(struct node *node, struct diag *diag)
{
    const struct node_config *config = node->config;
    struct kv_fingerprint fingerprint;
    kv_fingerprint_init(&fingerprint, model_fingerprint(node->compute.model), &node->compute.layout, kernels_set_name(node->compute.kernels));
    TRY(ctl_codec_create(MESSAGE_BYTES_MAX, &node->codec));
    TRY(ctl_codec_create(KV_PAYLOAD_BYTES_MAX, &node->role_codec));
    TRY(rpc_runtime_create(2, &node->runtime));
    node->tls = (struct rpc_tls){.enabled = config->tls_cert != NULL, .cert_file = config->tls_cert,
                                 .key_file = config->tls_key, .ca_file = config->tls_ca};
    const char *addresses[] = {node->listen};
    struct rpc_server_config server = {
        .listen = addresses,
        .listen_count = 1,
        .tls = node->tls,
        .message_bytes_max = MESSAGE_BYTES_MAX,
    };
    TRY(rpc_server_create(node->runtime, &server, &node->server, diag));
    TRY(rpc_health_create(node->server, &node->health, diag));
    const struct descriptor_set sets[] = {{control_descriptor, control_descriptor_len},
                                          {kv_link_descriptor, kv_link_descriptor_len}};
    TRY(rpc_reflection_create(node->server, sets, sizeof sets / sizeof sets[0], &node->reflection, diag));
    const uint8_t *hello;
    size_t hello_bytes;
    TRY(make_hello(node, &fingerprint, &hello, &hello_bytes));
    TRY(attach_server_create(config->routers_max, hello, hello_bytes, on_attach_post, node, &node->attach));
    TRY(attach_server_register(node->attach, node->server, diag));
    TRY(inspect_server_create(on_inspect, node, &node->inspect));
    if (node->ops->inspect) { TRY(inspect_server_register(node->inspect, node->server, diag)); }
    TRY(link_grpc_create(node->runtime, config->tls_cert ? &node->tls : NULL, &node->link));
    /* As many grants or sends as the core has legs, so that its own bounds are what refuses. */
    uint64_t legs = (uint64_t)config->batch_max * 2 + config->waiting_max;
    uint32_t transfers_max = legs < 256 ? 256 : legs > 65536 ? 65536 : (uint32_t)legs;
    struct kv_endpoint_config endpoint = {
        .node_id = node->name,
        .limits = {.grants_max = node->ops->role == NODE_ROLE_DECODE ? transfers_max : 1,
                   .sends_max = node->ops->role == NODE_ROLE_DECODE ? 1 : transfers_max},
        .boot_epoch = node->boot_epoch,
        .link_address = node->ops->role == NODE_ROLE_DECODE ? node->advertise : "",
        .fingerprint = fingerprint,
        .pool = node->compute.pool,
        .cables = config->cables,
        .ucx = ucx_config(config),
        .nccl = nccl_config(config),
        .tcp_listen = node->ops->role == NODE_ROLE_DECODE ? config->tcp_listen : "",
        .uds_dir = config->uds_dir,
        .tls = {.cert_file = config->tls_cert, .key_file = config->tls_key, .ca_file = config->tls_ca},
        .on_event = on_kv_event,
        .on_event_context = node,
        .stream = link_grpc_stream_ops(),
        .stream_context = node->link,
    };
    TRY(kv_endpoint_create(&endpoint, diag, &node->endpoint));
    link_grpc_attach(node->link, node->endpoint);
    return link_grpc_serve(node->link, node->server, diag);
}

static void node_close(struct node *node)
{
    if (node->core_runs) {
        struct post stop = {.kind = POST_STOP};
        mailbox_post_wait(node->mailbox, &stop);
        pthread_join(node->core_thread, NULL);
    }
    node_metrics_destroy(node->metrics); /* a scrape reads the endpoint */
    engine_destroy(node->engine);
    if (node->link) { link_grpc_detach(node->link); }
    bool lets_go = kv_endpoint_destroy(node->endpoint);
    tier_service_destroy(node->tiers); /* it reads and writes the pool */
    rpc_server_destroy(node->server);
    rpc_health_destroy(node->health);
    rpc_reflection_destroy(node->reflection);
    link_grpc_destroy(node->link);
    rpc_runtime_destroy(node->runtime);
    attach_server_destroy(node->attach);
    inspect_server_destroy(node->inspect);
    if (node->role) { node->ops->destroy(node->role); }
    if (lets_go) { node_compute_close(&node->compute); } /* else it would wait for a device that never ends */
    ctl_codec_destroy(node->codec);
    ctl_codec_destroy(node->role_codec);
    struct post post;
    while (node->mailbox && mailbox_take(node->mailbox, &post)) {
        if (post.kind == POST_ATTACH) { free(post.attach.bytes); }
        if (post.kind == POST_XFER) { free(post.xfer); }
        if (post.kind == POST_INSPECT) { inspect_drop(&post.inspect); }
    }
    mailbox_destroy(node->mailbox);
    free(node->router_is_up);
}

static bool has_unused_tiers(const struct node *node)
{
    return node->ops->role == NODE_ROLE_DECODE && model_config_window_of_all(model_get_config(node->compute.model)) > 0 &&
           (node->config->kv_host_memory > 0 || node->config->kv_disk > 0);
}

static struct tier_service_config tiers_shape(struct node *node)
{
    struct tier_service_config tiers = {
        .flags = node->config,
        .block_bytes = kv_layout_block_bytes(&node->compute.layout),
        .block_count = node->compute.block_count,
        .is_unused = has_unused_tiers(node),
        .post = on_tier_event,
        .user = node,
    };
    struct kv_fingerprint fingerprint;
    kv_fingerprint_init(&fingerprint, model_fingerprint(node->compute.model), &node->compute.layout, kernels_set_name(node->compute.kernels));
    kv_fingerprint_hash(&fingerprint, tiers.fingerprint_hash);
    return tiers;
}

static status_t node_open(struct node *node, struct diag *diag)
{
    const struct node_config *config = node->config;
    TRY(open_addresses(node, diag));
    TRY(node_compute_open(config, diag, &node->compute));
    struct engine_config engine = engine_shape(node);
    TRY(node_compute_plan(config, engine_memory_bytes(&engine), diag, &node->compute));
    uint64_t mapped_bytes, owned_bytes;
    model_memory(node->compute.model, &mapped_bytes, &owned_bytes);
    struct memory_plan plan = {
        .weights_mapped_bytes = mapped_bytes,
        .weights_owned_bytes = owned_bytes,
        .kv_bytes = node_compute_pool_bytes(&node->compute),
        .engine_bytes = engine_memory_bytes(&engine),
    };
    struct tier_service_config tiers = tiers_shape(node);
    TRY(tier_service_check(&tiers, diag));
    if (tiers.is_unused) {
        LOGF(LOG_WARN, "kv_tiers_not_used", "why=\"every layer of this model has a sliding window: what is evicted is computed again\"");
    }
    plan.tier_bytes = tier_service_memory_bytes(&tiers);
    bool is_on_device = node_compute_is_on_device(&node->compute);
    struct memory_plan host_plan = plan;
    if (is_on_device) { host_plan.kv_bytes = host_plan.engine_bytes = 0; } /* those are in the device's plan */
    TRY(memory_plan_check(&host_plan, diag));
    LOGF(LOG_INFO, "memory_plan", "where=%s weights_mapped=%" PRIu64 " weights_owned=%" PRIu64 " kv=%" PRIu64 " engine=%" PRIu64
         " tiers=%" PRIu64 " blocks=%u block_tokens=%u kv_dtype=%s", is_on_device ? "device" : "host", mapped_bytes, owned_bytes, plan.kv_bytes, plan.engine_bytes, plan.tier_bytes,
         node->compute.block_count, node->compute.layout.block_tokens, dtype_name(node->compute.layout.dtype));
    if (config->check && !is_on_device) { return STATUS_OK; }
    TRY(node_compute_load(config, diag, &node->compute));
    TRY(node_compute_take_pool(&node->compute, diag));
    engine = engine_shape(node);
    TRY(engine_create(&engine, &node->engine, diag));
    if (config->check) { return STATUS_OK; } /* a device was asked by taking it */
    node->router_is_up = calloc(config->routers_max, sizeof *node->router_is_up);
    if (!node->router_is_up) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    TRY(mailbox_create(MAILBOX_CAPACITY, sizeof(struct post), &node->mailbox));
    tiers.pool = node->compute.pool.base;
    tiers.memory = node->compute.pool.memory;
    TRY(tier_service_create(&tiers, &node->tiers, diag));
    struct node_shape shape = {.config = config, .model = model_get_config(node->compute.model), .layout = node->compute.layout,
                               .block_count = node->compute.block_count, .tier_entries_max = tier_service_entries_max(&tiers)};
    TRY(node->ops->create(node, &shape, &node->role, diag));
    TRY(open_wire(node, diag));
    struct node_metrics_config metrics = {
        .listen = config->metrics_listen,
        .role = node->ops->name,
        .model_name = last_part(config->model),
        .endpoint = node->endpoint,
        .tiers = node->tiers,
        .block_tokens = node->compute.layout.block_tokens,
        .block_count = node->compute.block_count,
    };
    TRY(node_metrics_create(&metrics, &node->metrics, diag));
    if (pthread_create(&node->core_thread, NULL, core_main, node) != 0) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    node->core_runs = true;
    TRY(rpc_health_set(node->health, "", true));
    TRY(rpc_health_set(node->health, SERVICE_CONTROL, true));
    TRY(rpc_health_set(node->health, SERVICE_LINK, true));
    TRY(rpc_server_start(node->server, diag));
    node_metrics_set_ready(node->metrics, true);
    return STATUS_OK;
}

/* Waits until what is here has ended, at most the drain timeout. A second signal cuts it short. */
static void drain(struct node *node, const sigset_t *signals)
{
    LOGF(LOG_INFO, "draining", "timeout_s=%" PRIu64, node->config->drain_timeout_ns / NS_PER_S);
    rpc_health_drain(node->health);
    node_metrics_set_ready(node->metrics, false);
    struct post post = {.kind = POST_DRAIN};
    mailbox_post_wait(node->mailbox, &post);
    uint64_t deadline_ns = clock_now_ns() + node->config->drain_timeout_ns;
    while (clock_now_ns() < deadline_ns && !atomic_load(&node->core_idle) && !atomic_load(&node->core_failed)) {
        struct timespec wait = {.tv_nsec = 20000000};
        if (sigtimedwait(signals, NULL, &wait) > 0) { LOGF(LOG_WARN, "drain_cut", "signal=again"); break; }
    }
}

/* Libraries that set variables of the environment, so before there is any thread; what is missing is told at once. */
static status_t prepare_libraries(const struct node_config *config, struct diag *diag)
{
    const struct kv_ucx_config ucx = ucx_config(config);
    const struct nccl_api *nccl;
    TRY(kv_ucx_prepare(&ucx, diag));
    if (!node_config_wants_nccl(config)) { return STATUS_OK; }
    status_t st = nccl_api_load(config->nccl_library, diag, &nccl);
    if (failed(st)) { diag_prefix(diag, "--nccl=on"); }
    return st;
}

int node_run(const struct node_config *config, const struct node_role_ops *ops)
{
    enum log_level level;
    struct diag diag = {{0}};
    if (!log_level_parse(config->log_level, &level)) {
        fprintf(stderr, "--log-level=%s: takes error, warn, info or debug\n", config->log_level);
        return 2;
    }
    log_set_level(level);
    status_t st = node_config_check(config, &diag);
    if (failed(st)) { fprintf(stderr, "%s\n", diag.text); return 2; }
    st = prepare_libraries(config, &diag);
    if (failed(st)) { fprintf(stderr, "%s\n", diag.text); return 1; }

    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL); /* before any thread: all inherit it */
    signal(SIGPIPE, SIG_IGN);

    uint64_t start_ns = clock_now_ns();
    struct node node = {.config = config, .ops = ops, .boot_epoch = clock_wall_ns(), .main_pid = getpid(),
                        .compute = {.pool = {.memfd = -1}}};
    st = node_open(&node, &diag);
    if (failed(st)) {
        LOGF(LOG_ERROR, "start_failed", "code=%s line=%u why=\"%s\"", status_code_name(st.code), st.line, diag.text);
        node_close(&node);
        return st.code == ST_INVALID_ARGUMENT ? 2 : 1;
    }
    if (config->check) { node_close(&node); return 0; }
    char device[32] = ""; /* of the CPU there is nothing to add */
    if (node_compute_is_on_device(&node.compute)) { snprintf(device, sizeof device, " device=%u", config->device); }
    LOGF(LOG_INFO, "ready", "role=%s name=%s listen=%s advertise=%s backend=%s%s isa=%s kernel_set=%s threads=%u ms=%" PRIu64,
         ops->name, node.name, node.listen, node.advertise, config->backend ? config->backend : "cpu", device, kernels_isa_name(node.compute.kernels),
         kernels_set_name(node.compute.kernels), kernels_threads(node.compute.kernels), (clock_now_ns() - start_ns) / NS_PER_MS);
    int signal_number;
    sigwait(&signals, &signal_number);
    if (!atomic_load(&node.core_failed)) { drain(&node, &signals); }
    bool was_failed = atomic_load(&node.core_failed);
    rpc_server_shutdown(node.server, 200 * NS_PER_MS);
    node_close(&node);
    LOGF(LOG_INFO, "stopped", "role=%s", ops->name);
    return was_failed ? 1 : 0;
}

int node_main(int argc, char **argv, const struct node_role_ops *ops)
{
    struct node_config config;
    struct diag diag = {{0}};
    bool wants_help;
    char program[32];
    snprintf(program, sizeof program, "%s_node", ops->name);
    if (version_is_asked(argc, argv, program, stdout)) { return 0; }
    status_t st = flags_parse(node_flags, node_flag_count, &config, argc, argv, NULL, NULL, &wants_help, &diag);
    if (failed(st)) {
        fprintf(stderr, "%s: %s\n", program, diag.text);
        return 2;
    }
    if (wants_help) {
        char usage[96];
        snprintf(usage, sizeof usage, "%s --listen=H:P --model=DIR [--flag=value ...]", program);
        flags_print_help(node_flags, node_flag_count, usage, stdout);
        version_print_help(stdout);
        return 0;
    }
    if (config.print_config) {
        flags_print_config(node_flags, node_flag_count, &config, stdout);
        return 0;
    }
    return node_run(&config, ops);
}
