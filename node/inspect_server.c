#include "node/inspect_server.h"

#include <stdlib.h>

#include "proto/baton/control/v1/control.pb-c.h"
#include "rpc/reply.h"

typedef Baton__Control__V1__InspectRequest request_t;
typedef Baton__Control__V1__InspectResponse response_t;
typedef Baton__Control__V1__KvHolder holder_t;
typedef Baton__Control__V1__KvTier tier_t;

struct inspect_server {
    inspect_post_fn post;
    void *user;
};

static void on_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    struct inspect_server *server = user;
    /* One flag: anything longer is not for us (protobuf-c makes an entry of every field that it does not know). */
    request_t *request = len <= 256 ? baton__control__v1__inspect_request__unpack(NULL, len, bytes) : NULL;
    if (request == NULL) {
        rpc_call_finish_status(call, STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST), "not a baton.control.v1.InspectRequest", 0);
        return;
    }
    struct inspect_post post = {.call = call, .with_blocks = request->with_blocks};
    baton__control__v1__inspect_request__free_unpacked(request, NULL);
    rpc_call_ref(call);
    if (server->post(server->user, &post)) { return; }
    rpc_call_unref(call);
    rpc_call_finish_status(call, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST), "the node is busy; ask again", 100);
}

static const struct rpc_callbacks callbacks = {.on_message = on_message};

static status_t accept_inspect(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    (void)call;
    (void)diag;
    *ret_handler = (struct rpc_handler){.callbacks = &callbacks, .user = service};
    return STATUS_OK;
}

status_t inspect_server_create(inspect_post_fn post, void *user, struct inspect_server **ret_server)
{
    struct inspect_server *server = calloc(1, sizeof *server);
    if (server == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    *server = (struct inspect_server){.post = post, .user = user};
    *ret_server = server;
    return STATUS_OK;
}

status_t inspect_server_register(struct inspect_server *server, struct rpc_server *rpc, struct diag *diag)
{
    return rpc_server_register(rpc, "/baton.control.v1.NodeControl/Inspect", accept_inspect, server, diag);
}

void inspect_server_destroy(struct inspect_server *server) { free(server); }

/* --- the answer */

struct holder_list {
    holder_t *holders;
    Baton__Control__V1__LegId *legs;
    uint32_t count, max;
    bool with_blocks, has_failed;
};

static bool grow(struct holder_list *list)
{
    uint32_t max = list->max == 0 ? 64 : 2 * list->max;
    holder_t *holders = realloc(list->holders, max * sizeof *holders);
    if (holders != NULL) { list->holders = holders; }
    Baton__Control__V1__LegId *legs = realloc(list->legs, max * sizeof *legs);
    if (legs != NULL) { list->legs = legs; }
    if (holders == NULL || legs == NULL) { return false; }
    list->max = max;
    return true;
}

static void add_holder(void *user, const struct inspect_entry *from)
{
    struct holder_list *list = user;
    if (list->has_failed || (list->count == list->max && !grow(list))) {
        list->has_failed = true;
        return;
    }
    Baton__Control__V1__LegId *leg = &list->legs[list->count];
    baton__control__v1__leg_id__init(leg);
    leg->hi = from->leg.hi;
    leg->lo = from->leg.lo;
    holder_t *to = &list->holders[list->count++];
    baton__control__v1__kv_holder__init(to);
    to->sequence = from->sequence;
    to->state = (char *)from->state;
    to->priority = from->priority;
    to->age_ns = from->age_ns;
    to->tokens = from->tokens;
    to->tokens_computed = from->tokens_computed;
    to->tokens_cached = from->tokens_cached;
    to->block_count = from->block_count;
    if (list->with_blocks && from->block_count > 0) {
        to->blocks = (uint32_t *)(uintptr_t)from->blocks; /* packed before the core moves on */
        to->n_blocks = from->block_count;
    }
}

static void fill_tier(tier_t *to, const char *name, const struct kv_tier_stats *from, enum kv_tier_kind kind)
{
    baton__control__v1__kv_tier__init(to);
    to->name = (char *)name;
    to->entries = from->entries[kind];
    to->entries_max = from->entries_max[kind];
    to->bytes = from->bytes[kind];
    to->stored = from->stored[kind];
    to->loaded = from->loaded[kind];
    to->dropped = from->dropped[kind];
    to->load_bytes_per_s = from->bytes_per_s_load[kind];
    to->store_bytes_per_s = from->bytes_per_s_store[kind];
    if (kind == KV_TIER_DISK) {
        to->io = (char *)from->disk_io;
        to->file_state = (char *)from->disk_state;
        to->paused = from->is_disk_paused;
        to->found = from->found;
    }
}

static void fill_node(response_t *to, const struct inspect_about *about, const struct ctl_load *load, const struct node_cache_numbers *numbers)
{
    to->node_name = (char *)about->name;
    to->role = (char *)about->role;
    to->model_name = (char *)about->model;
    to->boot_epoch = about->boot_epoch;
    to->block_tokens = about->block_tokens;
    to->block_bytes = about->block_bytes;
    to->blocks_total = load->blocks_total;
    to->blocks_free = load->blocks_free;
    to->blocks_held = load->blocks_held;
    to->blocks_cached = load->blocks_cached;
    to->blocks_quarantined = load->blocks_quarantined;
    to->cache_tokens_asked = load->cache_tokens_asked;
    to->cache_tokens_found = load->cache_tokens_found;
    to->blocks_published = numbers->blocks_published;
    to->blocks_taken = numbers->blocks_taken;
    to->blocks_evicted = numbers->blocks_evicted;
    to->tier_tokens_loaded = numbers->tier_tokens_loaded;
    to->loads_chosen = numbers->loads_chosen;
    to->loads_declined = numbers->loads_declined;
}

void inspect_answer(const struct inspect_post *post, const struct inspect_about *about, const struct ctl_load *load,
                    node_inspect_fn inspect, void *role)
{
    struct holder_list list = {.with_blocks = post->with_blocks};
    struct node_cache_numbers numbers = {0};
    response_t response = BATON__CONTROL__V1__INSPECT_RESPONSE__INIT;
    tier_t tiers[KV_TIER_COUNT];
    tier_t *tier_pointers[KV_TIER_COUNT];
    inspect(role, &numbers, add_holder, &list);
    fill_node(&response, about, load, &numbers);
    static const char *const names[KV_TIER_COUNT] = {[KV_TIER_HOST] = "host", [KV_TIER_DISK] = "disk"};
    for (uint32_t kind = 0; about->tiers != NULL && kind < KV_TIER_COUNT; kind++) {
        if (about->tiers->entries_max[kind] == 0) { continue; }
        fill_tier(&tiers[kind], names[kind], about->tiers, (enum kv_tier_kind)kind);
        tier_pointers[response.n_tiers++] = &tiers[kind];
    }
    response.tiers = tier_pointers;
    holder_t **pointers = calloc(list.count + 1, sizeof *pointers);
    for (uint32_t i = 0; pointers != NULL && i < list.count; i++) {
        list.holders[i].leg = &list.legs[i];
        pointers[i] = &list.holders[i];
    }
    response.n_holders = list.count;
    response.holders = pointers;
    if (list.has_failed || pointers == NULL) {
        rpc_call_finish_status(post->call, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST), "no memory for the answer", 0);
    } else {
        reply_last(post->call, &response.base);
    }
    free(pointers);
    free(list.holders);
    free(list.legs);
    rpc_call_unref(post->call);
}

void inspect_drop(const struct inspect_post *post) { rpc_call_unref(post->call); }
