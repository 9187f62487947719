/* cable_ucx: the cable itself: UCX's context, the pool's registration, and the ops. A connection's life,
 * P's half and D's have files of their own; cable_ucx_state.h is what they share. */
#include "transfer/cable_ucx_state.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

/* rc and dc bring ud as the transport that wires them up. Not named: shared memory, for which we have a
 * cable with a fence of its own, and self. With no RDMA device the first list is empty, and UCX
 * says so when it starts. */
#define TLS_RDMA "rc,dc,ud"
#define TLS_TRUST_NETWORK "rc,dc,ud,tcp"
/* Behind them for a pool on a device. It reaches nobody: with it UCX knows CUDA's memory, and has who makes the dma-buf
 * that a card registers. */
#define TLS_DEVICE ",cuda_copy"

#define NO_CUDA                                                                                                       \
    "the KV pool lies on a GPU, and this UCX knows no CUDA memory: it was built without, or its part for it " \
    "(ucx/libuct_cuda.so beside libucp) cannot be loaded. The wheels libucx-cu12, libucx-cu13 and nixl-cu12 have it"
#define NO_GPUDIRECT                                                                                                  \
    "no network card can be given the GPU's KV pool (GPUDirect RDMA takes a card in /sys/class/infiniband, dma-buf (the " \
    "open GPU kernel modules and Linux 5.12) or the module nvidia-peermem, and enough of `ulimit -l`)"

static const char *const settings[][2] = {
    {"KEEPALIVE_INTERVAL", "200ms"}, /* 20 s by itself: how long a dead peer goes unnoticed */
    {"RNDV_THRESH", "inf"},          /* messages are small; a rendezvous would read our memory from the other side */
    {"RCACHE_ENABLE", "n"},          /* of registrations: what we unmap is to be unmapped then, not when a cache is full */
    {"PROTO_ENABLE", "y"},           /* as by itself: the older way of its puts copies out of a GPU's memory by CPU, and faults */
};

static void tls_text(const struct kv_cable_host *host, char ret_text[64])
{
    snprintf(ret_text, 64, "%s%s", host->ucx.mode == KV_UCX_TRUST_NETWORK ? TLS_TRUST_NETWORK : TLS_RDMA,
             host->pool.memory ? TLS_DEVICE : "");
}

/* ---- the context */

static status_t ucx_failed(struct kv_cable *cable, struct diag *diag, const char *what, ucx_status_t st)
{
    char words[200] = "";
    if (!cable->host->ucx.api) { ucx_api_last_words(words, sizeof words); }
    diag_set(diag, "ucx cable: %s: %s%s%s", what, cable->api->status_string(st), words[0] ? "; UCX says: " : "", words);
    return STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_NODE, st);
}

static status_t context_open(struct kv_cable *cable, struct diag *diag)
{
    const struct ucx_api *api = cable->api;
    bool trusts = cable->host->ucx.mode == KV_UCX_TRUST_NETWORK;
    void *config = NULL;
    ucx_status_t st = api->config_read(NULL, NULL, &config);
    if (st != UCX_OK) { return ucx_failed(cable, diag, "its configuration cannot be read", st); }
    /* After the environment was read: which transports are open is ours to say, not UCX_TLS's. */
    char tls[64];
    tls_text(cable->host, tls);
    st = api->config_modify(config, "TLS", tls);
    for (size_t i = 0; i < sizeof settings / sizeof settings[0] && st == UCX_OK; i++) {
        st = api->config_modify(config, settings[i][0], settings[i][1]);
    }
    const struct ucx_params params = {
        .field_mask = UCX_PARAM_FIELD_FEATURES | UCX_PARAM_FIELD_MT_WORKERS_SHARED,
        .features = UCX_FEATURE_RMA | UCX_FEATURE_AM | UCX_FEATURE_WAKEUP,
    };
    /* The interface of 1.19 is what we ask for; a newer library serves it. */
    if (st == UCX_OK) { st = api->init_version(UCX_VERSION_MAJOR, UCX_VERSION_MINOR_MIN, &params, config, &cable->context); }
    api->config_release(config);
    if (st == UCX_ERR_NO_DEVICE) {
        return ucx_failed(cable, diag, trusts ? "no usable network device"
                                              : "no RDMA device that this UCX can use (is one in /sys/class/infiniband, and "
                                                "does the library have its verbs part, libuct_ib?)", st);
    }
    return st == UCX_OK ? STATUS_OK : ucx_failed(cable, diag, "it does not start", st);
}

/* Pool on a device: whether this UCX knows such memory at all. */
static status_t device_check(struct kv_cable *cable, struct diag *diag)
{
    struct ucx_context_attr attr = {.field_mask = UCX_ATTR_FIELD_MEMORY_TYPES};
    if (!cable->host->pool.memory) { return STATUS_OK; }
    ucx_status_t st = cable->api->context_query(cable->context, &attr);
    if (st != UCX_OK) { return ucx_failed(cable, diag, "it does not say what memory it knows", st); }
    if (attr.memory_types & UINT64_C(1) << UCX_MEMORY_TYPE_CUDA) { return STATUS_OK; }
    snprintf(cable->refusal, sizeof cable->refusal, NO_CUDA);
    return STATUS(ST_UNIMPLEMENTED, SCOPE_NODE);
}

static status_t register_failed(struct kv_cable *cable, struct diag *diag, ucx_status_t st)
{
    if (!cable->host->pool.memory) {
        return ucx_failed(cable, diag, "the pool cannot be registered (does `ulimit -l` allow to lock that much memory?)", st);
    }
    char words[200] = "";
    if (!cable->host->ucx.api) { ucx_api_last_words(words, sizeof words); }
    snprintf(cable->refusal, sizeof cable->refusal, NO_GPUDIRECT ": %s%s%s", cable->api->status_string(st), words[0] ? "; UCX says: " : "", words);
    return STATUS_CAUSE(ST_UNIMPLEMENTED, SCOPE_NODE, st);
}

status_t ucx_pool_register(struct kv_cable *cable, struct diag *diag)
{
    const struct ucx_api *api = cable->api;
    const struct kv_cable_host *host = cable->host;
    const int memory_type = host->pool.memory ? UCX_MEMORY_TYPE_CUDA : UCX_MEMORY_TYPE_HOST;
    const struct ucx_mem_map_params params = {
        .field_mask = UCX_MEM_MAP_PARAM_FIELD_ADDRESS | UCX_MEM_MAP_PARAM_FIELD_LENGTH | UCX_MEM_MAP_PARAM_FIELD_PROT |
                      UCX_MEM_MAP_PARAM_FIELD_MEMORY_TYPE,
        .address = host->pool.base,
        .length = host->pool.bytes,
        .memory_type = memory_type,
        .prot = UCX_MEM_MAP_PROT_LOCAL_READ |
                (host->receives ? (unsigned)UCX_MEM_MAP_PROT_LOCAL_WRITE | UCX_MEM_MAP_PROT_REMOTE_WRITE : 0u),
    };
    /* UCX asks CUDA about the address, on whatever thread this is. */
    if (host->pool.memory) { TRY(kv_memory_thread_bind(host->pool.memory, diag)); }
    uint64_t start_ns = clock_now_ns();
    ucx_status_t st = api->mem_map(cable->context, &params, &cable->memh);
    if (st != UCX_OK) {
        cable->memh = NULL;
        return register_failed(cable, diag, st);
    }
    cable->stats.registration_ns += clock_now_ns() - start_ns;
    cable->stats.registered_bytes = host->pool.bytes;
    void *rkey = NULL;
    size_t bytes = 0;
    st = api->rkey_pack(cable->context, cable->memh, &rkey, &bytes);
    if (st != UCX_OK) { return ucx_failed(cable, diag, "the pool's key cannot be had", st); }
    bool fits = bytes >= 1 && bytes <= sizeof cable->rkey;
    cable->is_direct = ucx_rkey_is_registered(rkey, bytes, memory_type);
    if (fits) { memcpy(cable->rkey, rkey, bytes); }
    cable->rkey_bytes = fits ? (uint32_t)bytes : 0;
    api->rkey_buffer_release(rkey);
    if (!fits) {
        diag_set(diag, "ucx cable: the pool's key has %zu bytes, more than an offer holds: name fewer devices in UCX_NET_DEVICES", bytes);
        return STATUS(ST_UNAVAILABLE, SCOPE_NODE);
    }
    /* UCX maps what no card takes as well, and would carry puts through the memory of both hosts. */
    return host->pool.memory && !cable->is_direct ? register_failed(cable, diag, UCX_ERR_UNSUPPORTED) : STATUS_OK;
}

void ucx_pool_revoke(struct kv_cable *cable)
{
    struct diag diag = {.text = ""};
    if (cable->memh) { cable->api->mem_unmap(cable->context, cable->memh); }
    cable->memh = NULL;
    /* The keys that the other peers hold are void now; their puts would fail one by one. */
    for (uint32_t i = 0; i < cable->host->links_max; i++) {
        if (!cable->conns[i]) { continue; }
        ucx_conn_break(cable->conns[i], UCX_ERR_CANCELED);
        ucx_conn_schedule(cable->conns[i]);
    }
    if (failed(ucx_pool_register(cable, &diag))) {
        cable->rkey_bytes = 0; /* no further offers: peers take the next cable */
        if (cable->memh) { cable->api->mem_unmap(cable->context, cable->memh); }
        cable->memh = NULL;
        LOGF(LOG_ERROR, "ucx_registration_lost", "text=\"%s\"", cable->refusal[0] ? cable->refusal : diag.text);
    }
}

status_t kv_ucx_prepare(const struct kv_ucx_config *config, struct diag *diag)
{
    const struct ucx_api *api = NULL;
    if (config->mode == KV_UCX_OFF) { return STATUS_OK; }
    return config->api ? ucx_api_check_version(config->api, diag) : ucx_api_load(config->library, diag, &api);
}

/* ---- the ops */

static void context_close(struct kv_cable *cable)
{
    if (cable->memh) { cable->api->mem_unmap(cable->context, cable->memh); }
    if (cable->context) { cable->api->cleanup(cable->context); }
    cable->memh = cable->context = NULL;
    cable->rkey_bytes = 0;
}

static void ucx_close(struct kv_cable *cable)
{
    if (!cable) { return; }
    for (uint32_t i = 0; cable->conns && i < cable->host->links_max; i++) {
        if (cable->conns[i]) { ucx_conn_destroy(cable->conns[i]); }
    }
    ucx_sums_close(cable);
    ucx_late_end(cable);
    /* A worker that could not be emptied still points into the context, so that one stays too. */
    if (cable->stats.workers_kept == 0) { context_close(cable); }
    struct kv_watch *const watches[2] = {&cable->turns, &cable->ticks};
    for (int i = 0; i < 2; i++) {
        kv_loop_remove(cable->host->loop, watches[i]);
        if (watches[i]->fd >= 0) { close(watches[i]->fd); }
    }
    free(cable->conns);
    free(cable);
}

static status_t ucx_open(const struct kv_cable_host *host, struct diag *diag, struct kv_cable **ret_cable)
{
    if (host->ucx.mode == KV_UCX_OFF) {
        diag_set(diag, "ucx cable: it is off; --ucx=rdma turns it on for RDMA hardware, --ucx=trust-network with TCP lanes too");
        return STATUS(ST_UNIMPLEMENTED, SCOPE_NODE);
    }
    const struct ucx_api *api = host->ucx.api;
    TRY(kv_ucx_prepare(&host->ucx, diag));
    if (!api) { TRY(ucx_api_load(host->ucx.library, diag, &api)); }
    struct kv_cable *cable = calloc(1, sizeof *cable);
    if (!cable) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    cable->host = host;
    cable->api = api;
    cable->slice_bytes = kv_layout_slice_bytes(host->layout);
    cable->conns = calloc(host->links_max, sizeof(struct conn *));
    cable->turns.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    cable->turns.on_ready = ucx_on_turns;
    cable->ticks.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    cable->ticks.on_ready = ucx_on_tick;
    bool made = cable->conns && cable->turns.fd >= 0 && cable->ticks.fd >= 0;
    status_t st = made ? context_open(cable, diag) : STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, errno);
    if (!failed(st)) { st = device_check(cable, diag); }
    if (!failed(st)) { st = ucx_pool_register(cable, diag); }
    if (!failed(st)) { st = ucx_sums_open(cable); }
    if (!failed(st)) { st = kv_loop_watch(host->loop, &cable->turns, EPOLLIN); }
    if (!failed(st)) { st = kv_loop_watch(host->loop, &cable->ticks, EPOLLIN); }
    if (failed(st) && cable->refusal[0] == '\0') {
        ucx_close(cable);
        return st;
    }
    *ret_cable = cable;
    if (failed(st)) {
        /* No fault of the configuration, which is the same for all nodes: this one goes on without. The cable is
         * there to say so to P's links. */
        LOGF(LOG_WARN, "ucx_left_out", "text=\"%s\"", cable->refusal);
        context_close(cable);
        cable->stats = (struct kv_ucx_stats){.puts = 0};
        return STATUS_OK;
    }
    char tls[64];
    tls_text(host, tls);
    unsigned major, minor, release;
    api->get_version(&major, &minor, &release);
    LOGF(LOG_INFO, "ucx_ready", "version=%u.%u.%u tls=%s memory=%s direct=%s pool_bytes=%lu registration_ms=%.1f", major, minor,
         release, tls, host->pool.memory ? "cuda" : "host", cable->is_direct ? "yes" : "no", (unsigned long)host->pool.bytes,
         (double)cable->stats.registration_ns / (double)NS_PER_MS);
    return STATUS_OK;
}

static const char *ucx_mismatch(const struct kv_cable *cable, const void *offer, size_t offer_bytes)
{
    (void)offer; /* D's pool may lie where it likes: its key says where */
    (void)offer_bytes;
    return cable->refusal[0] ? cable->refusal : NULL;
}

static status_t ucx_offer(struct kv_cable *cable, uint32_t link, struct kv_cable_offer *ret_offer)
{
    if (!cable->host->receives || cable->rkey_bytes == 0) { return STATUS(ST_UNIMPLEMENTED, SCOPE_PEER); }
    struct conn *conn = NULL;
    TRY(ucx_conn_create(cable, link, false, &conn));
    const struct ucx_offer offer = {
        .base = (uint64_t)(uintptr_t)cable->host->pool.base, .pool_bytes = cable->host->pool.bytes, .rkey = cable->rkey,
        .rkey_bytes = cable->rkey_bytes, .address = conn->address, .address_bytes = (uint32_t)conn->address_bytes,
    };
    return ucx_offer_write(&offer, ret_offer) ? STATUS_OK : STATUS(ST_INTERNAL, SCOPE_PEER);
}

static status_t ucx_connect(struct kv_cable *cable, uint32_t link, const char *peer_host, const void *offer_bytes,
                            size_t offer_size, const uint8_t token[KV_CABLE_TOKEN_BYTES])
{
    (void)peer_host; /* the worker's address names all ways to it */
    struct ucx_offer offer;
    if (!cable->memh) { return STATUS(ST_UNAVAILABLE, SCOPE_NODE); } /* our own registration was lost */
    if (!ucx_offer_read(offer_bytes, offer_size, &offer)) { return STATUS(ST_INVALID_ARGUMENT, SCOPE_PEER); }
    struct conn *conn = NULL;
    uint8_t *blob = calloc(1, UCX_ADDRESS_BYTES_MAX + UCX_BLOB_TAIL_BYTES);
    if (!blob) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_PEER, ENOMEM); }
    status_t st = ucx_conn_create(cable, link, true, &conn);
    if (failed(st)) { goto done; }
    uint64_t blocks = offer.pool_bytes / kv_layout_block_bytes(cable->host->layout);
    conn->remote_base = offer.base;
    conn->remote_blocks = blocks < UINT32_MAX ? (uint32_t)blocks : UINT32_MAX;
    memcpy(blob, offer.address, offer.address_bytes);
    ucx_status_t ucx_st = ucx_conn_dial(conn, blob);
    if (ucx_st == UCX_OK) {
        memset(blob, 0, UCX_ADDRESS_BYTES_MAX);
        memcpy(blob, offer.rkey, offer.rkey_bytes);
        ucx_st = cable->api->ep_rkey_unpack(conn->endpoint, blob, &conn->rkey);
    }
    uint8_t hello[UCX_HELLO_HEAD_BYTES + UCX_ADDRESS_BYTES_MAX];
    if (ucx_st == UCX_OK) {
        const struct ucx_hello ours = {.token = token, .address = conn->address, .address_bytes = (uint32_t)conn->address_bytes};
        if (!ucx_conn_send(conn, UCX_MSG_HELLO, hello, ucx_hello_write(&ours, hello))) { ucx_st = conn->broken_status; }
    }
    memset(hello, 0, sizeof hello); /* the token */
    if (ucx_st != UCX_OK) {
        ucx_conn_destroy(conn);
        st = STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, ucx_st);
    }
done:
    free(blob);
    return st;
}

void ucx_conn_is_ready(struct conn *conn)
{
    char lanes[160];
    bool is_rdma = ucx_conn_lanes(conn, lanes, sizeof lanes);
    conn->state = CS_READY;
    conn->cable->stats.connections++;
    conn->cable->stats.connections_rdma += is_rdma;
    LOGF(LOG_INFO, "ucx_connected", "link=%u role=%s lanes=\"%s\" rdma=%s ms=%.1f", conn->link, conn->is_sender ? "p" : "d",
         lanes, is_rdma ? "yes" : "no", (double)(clock_now_ns() - conn->since_ns) / (double)NS_PER_MS);
}

static void ucx_fence(struct kv_cable *cable, uint32_t link)
{
    if (cable->conns[link]) { ucx_conn_destroy(cable->conns[link]); }
}

static const char *ucx_address(const struct kv_cable *cable)
{
    (void)cable;
    return "";
}

static void ucx_stats(const struct kv_cable *cable, struct kv_endpoint_stats *stats) { stats->ucx = cable->stats; }

const struct kv_cable_ops kv_cable_ucx = {
    .name = "ucx",
    .places_at_destination = false,
    .open = ucx_open,
    .offer = ucx_offer,
    .mismatch = ucx_mismatch,
    .connect = ucx_connect,
    .grant = ucx_receiver_grant,
    .revoke = ucx_receiver_revoke,
    .push = ucx_sender_push,
    .abort = ucx_sender_abort,
    .fence = ucx_fence,
    .close = ucx_close,
    .address = ucx_address,
    .stats = ucx_stats,
};
