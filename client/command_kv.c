/* baton kv: who holds which KV blocks, how often the cache hits, what the tiers keep. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/clock.h"
#include "client/connect_flags.h"
#include "proto/baton/control/v1/control.pb-c.h"
#include "proto/baton/v1/inference.pb-c.h"

typedef Baton__Control__V1__InspectResponse view_t;
typedef Baton__Control__V1__KvHolder holder_t;
typedef Baton__Control__V1__KvTier tier_t;

struct kv_config {
    struct connect_flags connect;
    struct flag_list nodes;
    uint64_t timeout_ns;
    bool json, blocks;
};

static const struct flag kv_flags[] = {
    CONNECT_FLAGS(offsetof(struct kv_config, connect)),
    {"node", FLAG_LIST, offsetof(struct kv_config, nodes), NULL, "H:P", "A node to ask; may be repeated. Default: those that the router knows.", 0, 0},
    {"timeout", FLAG_DURATION, offsetof(struct kv_config, timeout_ns), "5s", "TIME", "Longest wait for each.", 0, 0},
    {"blocks", FLAG_BOOL, offsetof(struct kv_config, blocks), NULL, NULL, "Name every block of every holder.", 0, 0},
    {"json", FLAG_BOOL, offsetof(struct kv_config, json), NULL, NULL, "One JSON object.", 0, 0},
};

/* Slots of held blocks that no token will fill: the rest of each last block. A block that several
 * share is full, or is about to be copied. */
static uint64_t slots_unused(const view_t *view)
{
    uint64_t unused = 0;
    for (size_t i = 0; i < view->n_holders; i++) {
        uint64_t slots = (uint64_t)view->holders[i]->block_count * view->block_tokens;
        if (slots > view->holders[i]->tokens) { unused += slots - view->holders[i]->tokens; }
    }
    return unused;
}

static double share(uint64_t part, uint64_t whole) { return whole > 0 ? (double)part / (double)whole : 0; }

/* --- JSON */

static json_t *holder_json(const holder_t *holder)
{
    char leg[40];
    snprintf(leg, sizeof leg, "%016" PRIx64 "%016" PRIx64, holder->leg ? holder->leg->hi : 0, holder->leg ? holder->leg->lo : 0);
    json_t *object = json_pack("{s:s, s:i, s:s, s:i, s:f, s:I, s:I, s:I, s:I}", "leg", leg, "sequence", (int)holder->sequence, "state",
                               holder->state, "priority", (int)holder->priority, "age_s", (double)holder->age_ns / NS_PER_S, "tokens",
                               (json_int_t)holder->tokens, "tokens_computed", (json_int_t)holder->tokens_computed, "tokens_cached",
                               (json_int_t)holder->tokens_cached, "block_count", (json_int_t)holder->block_count);
    if (holder->n_blocks == 0) { return object; }
    json_t *blocks = json_array();
    for (size_t i = 0; i < holder->n_blocks; i++) { json_array_append_new(blocks, json_integer(holder->blocks[i])); }
    json_object_set_new(object, "blocks", blocks);
    return object;
}

static json_t *tier_json(const tier_t *tier)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s, s:b, s:I}", "name", tier->name, "entries",
                     (json_int_t)tier->entries, "entries_max", (json_int_t)tier->entries_max, "bytes", (json_int_t)tier->bytes, "stored",
                     (json_int_t)tier->stored, "loaded", (json_int_t)tier->loaded, "dropped", (json_int_t)tier->dropped,
                     "load_bytes_per_s", (json_int_t)tier->load_bytes_per_s, "store_bytes_per_s", (json_int_t)tier->store_bytes_per_s,
                     "io", tier->io, "file_state", tier->file_state, "paused", tier->paused, "found", (json_int_t)tier->found);
}

static json_t *view_json(const char *address, const view_t *view)
{
    json_t *holders = json_array();
    for (size_t i = 0; i < view->n_holders; i++) { json_array_append_new(holders, holder_json(view->holders[i])); }
    json_t *tiers = json_array();
    for (size_t i = 0; i < view->n_tiers; i++) { json_array_append_new(tiers, tier_json(view->tiers[i])); }
    uint64_t unused = slots_unused(view);
    json_t *object = json_pack(
        "{s:s, s:s, s:s, s:s, s:I, s:i, s:I, s:I, s:I, s:I, s:I, s:I}", "address", address, "name", view->node_name, "role", view->role,
        "model", view->model_name, "boot_epoch", (json_int_t)view->boot_epoch, "block_tokens", (int)view->block_tokens, "block_bytes",
        (json_int_t)view->block_bytes, "blocks_total", (json_int_t)view->blocks_total, "blocks_free", (json_int_t)view->blocks_free,
        "blocks_held", (json_int_t)view->blocks_held, "blocks_cached", (json_int_t)view->blocks_cached, "blocks_quarantined",
        (json_int_t)view->blocks_quarantined);
    json_t *more = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "cache_tokens_asked", (json_int_t)view->cache_tokens_asked,
        "cache_tokens_found", (json_int_t)view->cache_tokens_found, "blocks_published", (json_int_t)view->blocks_published, "blocks_taken",
        (json_int_t)view->blocks_taken, "blocks_evicted", (json_int_t)view->blocks_evicted, "tier_tokens_loaded",
        (json_int_t)view->tier_tokens_loaded, "loads_chosen", (json_int_t)view->loads_chosen, "loads_declined",
        (json_int_t)view->loads_declined, "slots_unused", (json_int_t)unused, "fragmentation_of_held",
        share(unused, (uint64_t)view->blocks_held * view->block_tokens), "fragmentation_of_pool",
        share(unused, (uint64_t)view->blocks_total * view->block_tokens));
    json_object_update(object, more);
    json_decref(more);
    json_object_set_new(object, "tiers", tiers);
    json_object_set_new(object, "holders", holders);
    return object;
}

/* --- text */

static const char *bytes_text(uint64_t bytes, char *ret_text, size_t size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    unsigned unit = 0;
    while (value >= 1024 && unit < 4) {
        value /= 1024;
        unit++;
    }
    snprintf(ret_text, size, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return ret_text;
}

static void print_tier(const tier_t *tier)
{
    char bytes[32], load[32], store[32];
    printf("  %-10s %" PRIu64 " of %" PRIu64 " blocks, %s; stored %" PRIu64 ", loaded %" PRIu64 ", dropped %" PRIu64, tier->name, tier->entries,
           tier->entries_max, bytes_text(tier->bytes, bytes, sizeof bytes), tier->stored, tier->loaded, tier->dropped);
    if (tier->store_bytes_per_s > 0) { printf("; stores %s/s", bytes_text(tier->store_bytes_per_s, store, sizeof store)); }
    if (tier->load_bytes_per_s > 0) { printf("; loads %s/s", bytes_text(tier->load_bytes_per_s, load, sizeof load)); }
    if (tier->io[0]) { printf("; %s, file %s, %" PRIu64 " found at start", tier->io, tier->file_state, tier->found); }
    printf("%s\n", tier->paused ? "; paused: its writes failed, they are tried again within seconds" : "");
}

static void print_holder(const holder_t *holder)
{
    printf("  %08" PRIx32 "/%-4" PRIu64 " %4u %-10s %8d %9.1f %9u %9u %9u %8u", (uint32_t)(holder->leg ? holder->leg->hi : 0),
           holder->leg ? holder->leg->lo : 0, holder->sequence, holder->state, holder->priority, (double)holder->age_ns / NS_PER_S,
           holder->tokens, holder->tokens_computed, holder->tokens_cached, holder->block_count);
    /* Runs, since neighbours are often handed out together. */
    for (size_t i = 0; i < holder->n_blocks;) {
        size_t end = i + 1;
        while (end < holder->n_blocks && holder->blocks[end] == holder->blocks[end - 1] + 1) { end++; }
        printf(end - i > 1 ? " %u-%u" : " %u", holder->blocks[i], holder->blocks[end - 1]);
        i = end;
    }
    printf("\n");
}

static void print_view(const char *address, const view_t *view)
{
    char bytes[32];
    uint64_t unused = slots_unused(view);
    printf("%s node %s at %s, model %s\n", view->role, view->node_name, address, view->model_name);
    printf("  %-10s %u of %s (%u tokens): %u free, %u held, %u cached, %u in quarantine\n", "blocks", view->blocks_total,
           bytes_text(view->block_bytes, bytes, sizeof bytes), view->block_tokens, view->blocks_free, view->blocks_held,
           view->blocks_cached, view->blocks_quarantined);
    printf("  %-10s %" PRIu64 " of %" PRIu64 " prompt tokens found (%.1f %%), %" PRIu64 " tokens loaded from a tier; blocks: %" PRIu64
           " named, %" PRIu64 " found again, %" PRIu64 " evicted\n", "cache", view->cache_tokens_found, view->cache_tokens_asked,
           100 * share(view->cache_tokens_found, view->cache_tokens_asked), view->tier_tokens_loaded, view->blocks_published,
           view->blocks_taken, view->blocks_evicted);
    printf("  %-10s %" PRIu64 " slots of last blocks stay empty: %.2f %% of what is held, %.2f %% of the pool\n", "fragments", unused,
           100 * share(unused, (uint64_t)view->blocks_held * view->block_tokens),
           100 * share(unused, (uint64_t)view->blocks_total * view->block_tokens));
    for (size_t i = 0; i < view->n_tiers; i++) { print_tier(view->tiers[i]); }
    if (view->n_tiers > 0) {
        printf("  %-10s %" PRIu64 " prefixes loaded from a tier, %" PRIu64 " computed again because that was cheaper\n", "choice",
               view->loads_chosen, view->loads_declined);
    }
    if (view->n_holders == 0) {
        printf("  nobody holds a block\n");
        return;
    }
    printf("  %-13s %4s %-10s %8s %9s %9s %9s %9s %8s\n", "leg", "seq", "state", "priority", "age s", "tokens", "computed", "cached", "blocks");
    for (size_t i = 0; i < view->n_holders; i++) { print_holder(view->holders[i]); }
}

/* --- asking */

static status_t ask_node(const struct kv_config *config, const char *address, json_t *nodes, struct diag *diag)
{
    struct connect_flags connect = config->connect;
    connect.router = address;
    struct api *api = NULL;
    Baton__Control__V1__InspectRequest request = BATON__CONTROL__V1__INSPECT_REQUEST__INIT;
    request.with_blocks = config->blocks;
    ProtobufCMessage *message = NULL;
    status_t st = connect_open(&connect, &api, diag);
    if (!failed(st)) {
        st = api_unary(api, "/baton.control.v1.NodeControl/Inspect", &request.base, &baton__control__v1__inspect_response__descriptor,
                       config->timeout_ns, &message, diag);
    }
    api_close(api);
    if (failed(st)) {
        diag_prefix(diag, "node %s", address);
        return st;
    }
    const view_t *view = (const view_t *)message;
    if (config->json) {
        json_array_append_new(nodes, view_json(address, view));
    } else {
        print_view(address, view);
    }
    protobuf_c_message_free_unpacked(message, NULL);
    return STATUS_OK;
}

/* Asks each; one that does not answer is said and does not hide the others. */
static int ask_all(const struct kv_config *config, size_t count, const char *const *addresses)
{
    int exit_status = 0;
    json_t *nodes = json_array();
    for (size_t i = 0; i < count; i++) {
        struct diag diag = {{0}};
        status_t st = ask_node(config, addresses[i], nodes, &diag);
        if (failed(st)) { exit_status = command_fail("kv", st, &diag); }
    }
    if (config->json) {
        json_t *object = json_pack("{s:O}", "nodes", nodes);
        json_dumpf(object, stdout, JSON_INDENT(2));
        fputc('\n', stdout);
        json_decref(object);
    }
    json_decref(nodes);
    return exit_status;
}

static int ask_router(const struct kv_config *config)
{
    struct diag diag = {{0}};
    struct api *api = NULL;
    Baton__V1__GetStatusRequest request = BATON__V1__GET_STATUS_REQUEST__INIT;
    ProtobufCMessage *message = NULL;
    status_t st = connect_open(&config->connect, &api, &diag);
    if (!failed(st)) {
        st = api_unary(api, "/baton.v1.Inference/GetStatus", &request.base, &baton__v1__get_status_response__descriptor,
                       config->timeout_ns, &message, &diag);
    }
    api_close(api);
    if (failed(st)) { return command_fail("kv", st, &diag); }
    const Baton__V1__GetStatusResponse *status = (const Baton__V1__GetStatusResponse *)message;
    const char **addresses = calloc(status->n_nodes + 1, sizeof *addresses);
    if (addresses == NULL) { return 1; }
    size_t count = 0;
    for (size_t i = 0; i < status->n_nodes; i++) {
        if (status->nodes[i]->attached) { addresses[count++] = status->nodes[i]->address; }
    }
    int exit_status = ask_all(config, count, addresses);
    if (count == 0 && !config->json) { printf("the router has no node attached\n"); }
    free(addresses);
    protobuf_c_message_free_unpacked(message, NULL);
    return exit_status;
}

int command_kv(int argc, char **argv)
{
    struct kv_config config;
    int exit_status;
    if (!command_flags(kv_flags, sizeof kv_flags / sizeof kv_flags[0], "baton kv --router=H:P | --node=H:P ... [--blocks] [--json]", &config,
                       argc, argv, &exit_status)) {
        return exit_status;
    }
    return config.nodes.count > 0 ? ask_all(&config, config.nodes.count, config.nodes.values) : ask_router(&config);
}
