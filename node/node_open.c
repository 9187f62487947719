/* node_open: makes a node of what the flags say, and takes it apart. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/net_address.h"
#include "node/memory_plan.h"
#include "node/node_private.h"
#include "proto/baton/control/v1/control_descriptor.h"
#include "proto/baton/transfer/v1/kv_link_descriptor.h"

#define MAILBOX_CAPACITY 8192u
#define MESSAGE_BYTES_MAX (64u << 20)
#define SERVICE_CONTROL "baton.control.v1.NodeControl"
#define SERVICE_LINK "baton.transfer.v1.KvLink"

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
        .on_layer = node_on_layer,
        .on_step = node_on_step,
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
                .model_name = node->model_name,
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

static void last_part(const char *path, char *ret_part, size_t size)
{
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/') { len--; }
    size_t start = len;
    while (start > 0 && path[start - 1] != '/') { start--; }
    snprintf(ret_part, size, "%.*s", (int)(len - start), path + start);
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

struct kv_ucx_config node_ucx_config(const struct node_config *config)
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
    fingerprint.converts = node_config_converts(config);
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
    TRY(attach_server_create(config->routers_max, hello, hello_bytes, node_on_attach_post, node, &node->attach));
    TRY(attach_server_register(node->attach, node->server, diag));
    TRY(inspect_server_create(node_on_inspect, node, &node->inspect));
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
        .ucx = node_ucx_config(config),
        .nccl = nccl_config(config),
        .tcp_listen = node->ops->role == NODE_ROLE_DECODE ? config->tcp_listen : "",
        .uds_dir = config->uds_dir,
        .tls = {.cert_file = config->tls_cert, .key_file = config->tls_key, .ca_file = config->tls_ca},
        .on_event = node_on_kv_event,
        .on_event_context = node,
        .stream = link_grpc_stream_ops(),
        .stream_context = node->link,
    };
    TRY(kv_endpoint_create(&endpoint, diag, &node->endpoint));
    link_grpc_attach(node->link, node->endpoint);
    return link_grpc_serve(node->link, node->server, diag);
}

bool node_close(struct node *node)
{
    node_core_stop(node);
    node_metrics_destroy(node->metrics); /* a scrape reads the endpoint */
    pthread_mutex_lock(&node->wire_lock); /* a step may run still, and goes on */
    node->wire_is_closed = true;
    pthread_mutex_unlock(&node->wire_lock);
    if (node->link) { link_grpc_detach(node->link); }
    /* Before the engine: where a kernel of a library does not end, to free memory of the device is to wait for it, and so
     * may be to wait for a step. What is then left, the process's end takes; a disk's tier survives that. */
    if (!kv_endpoint_destroy(node->endpoint)) { return false; }
    engine_destroy(node->engine);
    tier_service_destroy(node->tiers); /* it reads and writes the pool */
    rpc_server_destroy(node->server);
    rpc_health_destroy(node->health);
    rpc_reflection_destroy(node->reflection);
    link_grpc_destroy(node->link);
    rpc_runtime_destroy(node->runtime);
    attach_server_destroy(node->attach);
    inspect_server_destroy(node->inspect);
    if (node->role) { node->ops->destroy(node->role); }
    node_compute_close(&node->compute);
    ctl_codec_destroy(node->codec);
    ctl_codec_destroy(node->role_codec);
    node_posts_drop(node);
    mailbox_destroy(node->mailbox);
    free(node->router_is_up);
    pthread_mutex_destroy(&node->wire_lock);
    return true;
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
        .post = node_on_tier_event,
        .user = node,
    };
    struct kv_fingerprint fingerprint;
    kv_fingerprint_init(&fingerprint, model_fingerprint(node->compute.model), &node->compute.layout, kernels_set_name(node->compute.kernels));
    kv_fingerprint_hash(&fingerprint, tiers.fingerprint_hash);
    return tiers;
}

status_t node_open(struct node *node, struct diag *diag)
{
    const struct node_config *config = node->config;
    last_part(config->model, node->model_name, sizeof node->model_name);
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
        .model_name = node->model_name,
        .endpoint = node->endpoint,
        .tiers = node->tiers,
        .block_tokens = node->compute.layout.block_tokens,
        .block_count = node->compute.block_count,
    };
    TRY(node_metrics_create(&metrics, &node->metrics, diag));
    TRY(node_core_start(node));
    TRY(rpc_health_set(node->health, "", true));
    TRY(rpc_health_set(node->health, SERVICE_CONTROL, true));
    TRY(rpc_health_set(node->health, SERVICE_LINK, true));
    TRY(rpc_server_start(node->server, diag));
    node_metrics_set_ready(node->metrics, true);
    return STATUS_OK;
}
