#include "router/attach_client.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "control/ctl_codec.h"
#include "transfer/fingerprint.h"

#define METHOD_ATTACH "/baton.control.v1.NodeControl/Attach"
#define MESSAGE_BYTES_MAX (64u << 20)
#define BACKOFF_FIRST_NS (100 * NS_PER_MS)
#define BACKOFF_MAX_NS (2 * NS_PER_S)
/* A node that does not fit needs a person or a restart; asking often helps nobody. */
#define BACKOFF_REFUSED_NS (2 * NS_PER_S)
/* Prompts are a few hundred KiB at most; a node that is this far behind is not coming back. */
#define SEND_QUEUE_BYTES_MAX (64u << 20)
#define SEND_QUEUE_MESSAGES_MAX 65536u

enum entry_state {
    ENTRY_FREE,
    ENTRY_WAITING, /* for next_ns, then dials */
    ENTRY_DIALING, /* a call is open; waits for the hello until next_ns */
    ENTRY_UP,
    ENTRY_CLOSING, /* cancelled by us; waits for its end */
};

struct entry {
    struct attach_client *client;
    uint32_t index;
    enum entry_state state;
    enum node_role role;
    bool is_wanted;      /* a name no longer stands for it otherwise */
    bool was_up;         /* CLOSING: the core knows it as up */
    bool was_refused;
    char source[NODE_TARGET_CHARS_MAX]; /* the name it comes from; "" for a fixed address */
    char host[NET_HOST_CHARS_MAX + 1];  /* of the source: the name in its certificate */
    char target[NODE_TARGET_CHARS_MAX];
    struct rpc_channel *channel;
    struct rpc_call *call;
    uint64_t next_ns;
    uint64_t backoff_ns;
    char name[128];
    char problem[512];
    uint64_t node_id, boot_epoch;
    struct kv_fingerprint fingerprint; /* UP */
};

struct attach_client {
    struct attach_client_config config;
    struct ctl_codec *codec;
    bool is_closing;
    uint32_t up_count;
    uint8_t model_hash[32]; /* of all that are up, while up_count > 0 */
    struct entry entries[];
};

/* ---- rpc threads ---- */

static void post_copy(struct entry *entry, bool is_done, uint8_t code, const void *bytes, size_t len)
{
    struct attach_post post = {.node = entry->index, .is_done = is_done, .code = code, .byte_count = len};
    post.bytes = malloc(len + 1);
    CHECK(post.bytes != NULL);
    if (len > 0) { memcpy(post.bytes, bytes, len); }
    post.bytes[len] = 0;
    entry->client->config.post(entry->client->config.post_user, &post);
}

static void on_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    (void)call;
    post_copy(user, false, 0, bytes, len);
}

static void on_done(void *user, struct rpc_call *call, const struct rpc_outcome *outcome)
{
    (void)call;
    post_copy(user, true, outcome->code, outcome->message, strlen(outcome->message));
}

static const struct rpc_callbacks attach_callbacks = {.on_message = on_message, .on_done = on_done};

/* ---- life ---- */

status_t attach_client_create(const struct attach_client_config *config, struct attach_client **ret_client)
{
    struct attach_client *client = calloc(1, sizeof *client + config->nodes_max * sizeof client->entries[0]);
    if (!client) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    client->config = *config;
    for (uint32_t i = 0; i < config->nodes_max; i++) {
        client->entries[i].client = client;
        client->entries[i].index = i;
    }
    status_t st = ctl_codec_create(MESSAGE_BYTES_MAX, &client->codec);
    if (failed(st)) {
        free(client);
        return st;
    }
    *ret_client = client;
    return STATUS_OK;
}

static void forget(struct entry *entry)
{
    rpc_channel_destroy(entry->channel);
    entry->channel = NULL;
    entry->state = ENTRY_FREE;
}

void attach_client_destroy(struct attach_client *client)
{
    if (!client) { return; }
    for (uint32_t i = 0; i < client->config.nodes_max; i++) {
        CHECK(client->entries[i].call == NULL);
        forget(&client->entries[i]);
    }
    ctl_codec_destroy(client->codec);
    free(client);
}

static void set_problem(struct entry *entry, const char *problem)
{
    if (strcmp(entry->problem, problem) == 0) { return; }
    snprintf(entry->problem, sizeof entry->problem, "%s", problem);
    if (problem[0] == '\0') { return; }
    LOGF(LOG_WARN, "node_problem", "node=%s address=%s role=%s problem=\"%s\"", entry->name[0] ? entry->name : "?",
         entry->target, entry->role == NODE_ROLE_PREFILL ? "prefill" : "decode", entry->problem);
}

static struct entry *add(struct attach_client *client, enum node_role role, const char *source, const char *host,
                         const char *target)
{
    for (uint32_t i = 0; i < client->config.nodes_max; i++) {
        struct entry *entry = &client->entries[i];
        if (entry->state != ENTRY_FREE) { continue; }
        *entry = (struct entry){.client = client, .index = i, .state = ENTRY_WAITING, .role = role, .is_wanted = true};
        snprintf(entry->source, sizeof entry->source, "%s", source);
        snprintf(entry->host, sizeof entry->host, "%s", host);
        snprintf(entry->target, sizeof entry->target, "%s", target);
        snprintf(entry->problem, sizeof entry->problem, "not dialled yet");
        return entry;
    }
    LOGF(LOG_WARN, "node_left_out", "address=%s why=\"the router serves at most %u nodes\"", target,
         client->config.nodes_max);
    return NULL;
}

void attach_client_add(struct attach_client *client, const struct node_address *address)
{
    char target[NODE_TARGET_CHARS_MAX];
    node_address_target(address->host, address->port, target);
    (void)add(client, address->role, "", address->host, target);
}

static bool is_among(const char *target, uint32_t count, const char (*targets)[NODE_TARGET_CHARS_MAX])
{
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(targets[i], target) == 0) { return true; }
    }
    return false;
}

static void leave(struct entry *entry)
{
    LOGF(LOG_INFO, "node_left", "address=%s name=%s why=\"%s no longer names it\"", entry->target, entry->name,
         entry->source);
    forget(entry);
}

void attach_client_resolved(struct attach_client *client, const struct node_address *name, uint32_t count,
                            const char (*targets)[NODE_TARGET_CHARS_MAX])
{
    if (client->is_closing) { return; }
    char source[NODE_TARGET_CHARS_MAX];
    node_address_target(name->host, name->port, source);
    for (uint32_t i = 0; i < client->config.nodes_max; i++) {
        struct entry *entry = &client->entries[i];
        if (entry->state == ENTRY_FREE || entry->role != name->role || strcmp(entry->source, source) != 0) { continue; }
        entry->is_wanted = is_among(entry->target, count, targets);
        if (!entry->is_wanted && entry->state == ENTRY_WAITING) { leave(entry); }
    }
    for (uint32_t t = 0; t < count; t++) {
        bool known = false;
        for (uint32_t i = 0; i < client->config.nodes_max && !known; i++) {
            const struct entry *entry = &client->entries[i];
            known = entry->state != ENTRY_FREE && entry->role == name->role && strcmp(entry->target, targets[t]) == 0;
        }
        if (known) { continue; }
        LOGF(LOG_INFO, "node_found", "name=%s address=%s role=%s", source, targets[t],
             name->role == NODE_ROLE_PREFILL ? "prefill" : "decode");
        (void)add(client, name->role, source, name->host, targets[t]);
    }
}

/* ---- dialling ---- */

static void wait_and_redial(struct entry *entry, uint64_t now_ns)
{
    entry->state = ENTRY_WAITING;
    entry->backoff_ns = entry->backoff_ns == 0 ? BACKOFF_FIRST_NS : entry->backoff_ns * 2;
    if (entry->backoff_ns > BACKOFF_MAX_NS) { entry->backoff_ns = BACKOFF_MAX_NS; }
    entry->next_ns = now_ns + (entry->was_refused ? BACKOFF_REFUSED_NS : entry->backoff_ns);
}

static status_t open_call(struct entry *entry, struct diag *diag)
{
    struct attach_client *client = entry->client;
    if (!entry->channel) {
        struct rpc_channel_config config = {
            .target = entry->target,
            .tls = client->config.tls,
            .message_bytes_max = MESSAGE_BYTES_MAX,
            .reconnect_backoff_min_ms = 100,
            .reconnect_backoff_max_ms = 1000,
            .send_limits = {.messages_max = SEND_QUEUE_MESSAGES_MAX, .bytes_max = SEND_QUEUE_BYTES_MAX},
        };
        if (config.tls.enabled && entry->source[0]) { config.tls.server_name = entry->host; }
        TRY(rpc_channel_create(client->config.runtime, &config, &entry->channel, diag));
    }
    struct rpc_call_options options = {
        .method = METHOD_ATTACH,
        .deadline_ns = RPC_NO_DEADLINE,
        .callbacks = &attach_callbacks,
        .user = entry,
    };
    TRY(rpc_channel_call(entry->channel, &options, &entry->call, diag));
    struct ctl_msg hello = {.kind = CTL_ROUTER_HELLO,
                            .router_hello = {.protocol_version = CTL_PROTOCOL_VERSION,
                                             .router_boot_id = client->config.router_boot_id}};
    const uint8_t *bytes;
    size_t byte_count;
    TRY(ctl_codec_encode(client->codec, &hello, &bytes, &byte_count));
    /* A call that is over already tells so by its end. */
    status_t st = rpc_call_send(entry->call, bytes, byte_count);
    return st.code == ST_CANCELLED ? STATUS_OK : st;
}

static void dial(struct entry *entry, uint64_t now_ns)
{
    struct diag diag = {{0}};
    status_t st = open_call(entry, &diag);
    if (!failed(st)) {
        entry->state = ENTRY_DIALING;
        entry->next_ns = now_ns + entry->client->config.hello_wait_ns;
        return;
    }
    set_problem(entry, diag.text[0] ? diag.text : status_code_name(st.code));
    if (entry->call) {
        entry->state = ENTRY_CLOSING;
        rpc_call_cancel(entry->call);
    } else {
        wait_and_redial(entry, now_ns);
    }
}

/* The stream ends by our wish; what was attached stays known as up until its end came. */
static void hang_up(struct entry *entry, const char *problem)
{
    if (!entry->client->is_closing) { set_problem(entry, problem); }
    entry->was_up = entry->state == ENTRY_UP;
    entry->state = ENTRY_CLOSING;
    rpc_call_cancel(entry->call);
}

void attach_client_tick(struct attach_client *client, uint64_t now_ns)
{
    if (client->is_closing) { return; }
    for (uint32_t i = 0; i < client->config.nodes_max; i++) {
        struct entry *entry = &client->entries[i];
        if (entry->state == ENTRY_WAITING && entry->next_ns <= now_ns) { dial(entry, now_ns); }
        if (entry->state == ENTRY_DIALING && entry->next_ns <= now_ns) {
            char problem[128];
            snprintf(problem, sizeof problem, "no hello within %" PRIu64 " ms: is it a node of Baton, and alive?",
                     client->config.hello_wait_ns / NS_PER_MS);
            hang_up(entry, problem);
        }
    }
}

uint64_t attach_client_deadline_ns(const struct attach_client *client)
{
    uint64_t deadline_ns = UINT64_MAX;
    for (uint32_t i = 0; !client->is_closing && i < client->config.nodes_max; i++) {
        const struct entry *entry = &client->entries[i];
        bool has_deadline = entry->state == ENTRY_WAITING || entry->state == ENTRY_DIALING;
        if (has_deadline && entry->next_ns < deadline_ns) { deadline_ns = entry->next_ns; }
    }
    return deadline_ns;
}

/* ---- hellos ---- */

static status_t refuse(struct diag *diag, const char *what, uint64_t node, uint64_t router, const char *advice)
{
    diag_set(diag, "%s: this node %" PRIu64 ", the router %" PRIu64 "; %s", what, node, router, advice);
    return STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER);
}

static status_t check_twin(const struct entry *entry, const struct ctl_node_hello *hello, struct diag *diag)
{
    const struct attach_client *client = entry->client;
    for (uint32_t i = 0; i < client->config.nodes_max; i++) {
        const struct entry *other = &client->entries[i];
        if (other == entry || other->state != ENTRY_UP) { continue; }
        if (other->node_id != hello->node_id || other->boot_epoch != hello->boot_epoch) { continue; }
        diag_set(diag, "is the node \"%s\" that is attached as %s already; list it once", other->name, other->target);
        return STATUS(ST_ALREADY_EXISTS, SCOPE_PEER);
    }
    return STATUS_OK;
}

/* With each that is up: of those that convert two may differ and yet not fit a third. */
static status_t check_layout(const struct attach_client *client, const struct kv_fingerprint *fingerprint, struct diag *diag)
{
    char text[384];
    for (uint32_t i = 0; i < client->config.nodes_max; i++) {
        const struct entry *other = &client->entries[i];
        bool is_up = other->state == ENTRY_UP || (other->state == ENTRY_CLOSING && other->was_up);
        if (!is_up || kv_fingerprint_fit(&other->fingerprint, fingerprint) != KV_FIT_NONE) { continue; }
        kv_fingerprint_diff(&other->fingerprint, fingerprint, text, sizeof text);
        diag_set(diag, "layout differs from node %s (\"ours\"): %s; start both with the same model and flags", other->name, text);
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER);
    }
    return STATUS_OK;
}

static status_t check_hello(const struct entry *entry, const struct ctl_node_hello *hello,
                            struct kv_fingerprint *ret_fingerprint, struct diag *diag)
{
    const struct attach_client *client = entry->client;
    if (hello->protocol_version != CTL_PROTOCOL_VERSION) {
        return refuse(diag, "control protocol", hello->protocol_version, CTL_PROTOCOL_VERSION, "update the older one");
    }
    if (hello->role != (uint32_t)entry->role) {
        diag_set(diag, "role: listed under --%s, but this is a %s node; list it under --%s",
                 entry->role == NODE_ROLE_PREFILL ? "prefill" : "decode",
                 hello->role == NODE_ROLE_PREFILL ? "prefill" : hello->role == NODE_ROLE_DECODE ? "decode" : "strange",
                 entry->role == NODE_ROLE_PREFILL ? "decode" : "prefill");
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER);
    }
    const char *same_model = "give both the same --model";
    if (hello->vocab_size != client->config.vocab_size) {
        return refuse(diag, "vocab_size", hello->vocab_size, client->config.vocab_size, same_model);
    }
    if (hello->context_tokens != client->config.context_tokens) {
        return refuse(diag, "context_tokens", hello->context_tokens, client->config.context_tokens, same_model);
    }
    TRY(kv_fingerprint_decode(hello->fingerprint, hello->fingerprint_bytes, diag, ret_fingerprint));
    if (memcmp(ret_fingerprint->model_hash, hello->model_hash, sizeof hello->model_hash) != 0) {
        diag_set(diag, "model_hash: its hello and its fingerprint name two different models");
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER);
    }
    TRY(check_twin(entry, hello, diag));
    return check_layout(client, ret_fingerprint, diag);
}

static enum attach_event greet(struct entry *entry, const struct ctl_msg *msg)
{
    struct attach_client *client = entry->client;
    if (msg->kind != CTL_NODE_HELLO) {
        hang_up(entry, "its first message is not a hello: is it a node of Baton?");
        return ATTACH_NOTHING;
    }
    const struct ctl_node_hello *hello = &msg->node_hello;
    snprintf(entry->name, sizeof entry->name, "%s", hello->node_name ? hello->node_name : "");
    struct kv_fingerprint fingerprint;
    struct diag diag = {{0}};
    if (failed(check_hello(entry, hello, &fingerprint, &diag))) {
        entry->was_refused = true;
        hang_up(entry, diag.text);
        return ATTACH_NOTHING;
    }
    if (client->up_count++ == 0) { memcpy(client->model_hash, fingerprint.model_hash, sizeof client->model_hash); }
    entry->fingerprint = fingerprint;
    entry->state = ENTRY_UP;
    entry->backoff_ns = 0;
    entry->was_refused = false;
    entry->node_id = hello->node_id;
    entry->boot_epoch = hello->boot_epoch;
    set_problem(entry, "");
    LOGF(LOG_INFO, "node_up", "node=%s address=%s role=%s handle=%u node_id=%016" PRIx64 " boot_epoch=%" PRIu64
         " blocks=%u block_tokens=%u", entry->name, entry->target, entry->role == NODE_ROLE_PREFILL ? "prefill" : "decode",
         entry->index, entry->node_id, entry->boot_epoch, hello->block_count, hello->block_tokens);
    return ATTACH_UP;
}

static enum attach_event end_call(struct entry *entry, const struct attach_post *post, uint64_t now_ns)
{
    struct attach_client *client = entry->client;
    rpc_call_unref(entry->call);
    entry->call = NULL;
    bool was_up = entry->state == ENTRY_UP || (entry->state == ENTRY_CLOSING && entry->was_up);
    entry->was_up = false;
    if (was_up) { client->up_count--; }
    if (entry->state != ENTRY_CLOSING) {
        char problem[384];
        const char *why = (const char *)post->bytes;
        snprintf(problem, sizeof problem, "%s: %s", status_code_name(post->code), why[0] ? why : "the stream ended");
        if (was_up) { LOGF(LOG_WARN, "node_down", "node=%s address=%s handle=%u", entry->name, entry->target, entry->index); }
        set_problem(entry, problem);
    }
    wait_and_redial(entry, now_ns);
    if (!entry->is_wanted && !client->is_closing) { leave(entry); }
    return was_up ? ATTACH_DOWN : ATTACH_NOTHING;
}

static enum attach_event take_bytes(struct entry *entry, const struct attach_post *post, struct ctl_msg *ret_msg)
{
    if (entry->state != ENTRY_UP && entry->state != ENTRY_DIALING) { return ATTACH_NOTHING; }
    struct diag diag = {{0}};
    status_t st = ctl_codec_decode(entry->client->codec, CTL_FROM_NODE, post->bytes, post->byte_count, ret_msg, &diag);
    if (failed(st)) {
        hang_up(entry, diag.text);
        return ATTACH_NOTHING;
    }
    if (entry->state == ENTRY_DIALING) { return greet(entry, ret_msg); }
    if (ret_msg->kind == CTL_NODE_HELLO) {
        hang_up(entry, "sent a second hello");
        return ATTACH_NOTHING;
    }
    return ATTACH_MESSAGE;
}

enum attach_event attach_client_take(struct attach_client *client, struct attach_post *post, uint64_t now_ns,
                                     struct ctl_msg *ret_msg)
{
    struct entry *entry = &client->entries[post->node];
    enum attach_event event = post->is_done ? end_call(entry, post, now_ns) : take_bytes(entry, post, ret_msg);
    free(post->bytes);
    post->bytes = NULL;
    return event;
}

void attach_client_send(struct attach_client *client, uint32_t node, const struct ctl_msg *msg)
{
    struct entry *entry = &client->entries[node];
    if (entry->state != ENTRY_UP) { return; }
    const uint8_t *bytes;
    size_t byte_count;
    status_t st = ctl_codec_encode(client->codec, msg, &bytes, &byte_count);
    if (!failed(st)) { st = rpc_call_send(entry->call, bytes, byte_count); }
    if (failed(st) && st.code == ST_RESOURCE_EXHAUSTED) {
        hang_up(entry, "reads so slowly that its queue is full");
    }
}

void attach_client_close(struct attach_client *client)
{
    client->is_closing = true;
    for (uint32_t i = 0; i < client->config.nodes_max; i++) {
        struct entry *entry = &client->entries[i];
        if (entry->call && entry->state != ENTRY_CLOSING) { hang_up(entry, "the router stops"); }
    }
}

bool attach_client_is_closed(const struct attach_client *client)
{
    for (uint32_t i = 0; i < client->config.nodes_max; i++) {
        if (client->entries[i].call) { return false; }
    }
    return true;
}

bool attach_client_node(const struct attach_client *client, uint32_t node, struct attach_node *ret_node)
{
    if (node >= client->config.nodes_max) { return false; }
    const struct entry *entry = &client->entries[node];
    if (entry->state == ENTRY_FREE) { return false; }
    *ret_node = (struct attach_node){
        .name = entry->name,
        .address = entry->target,
        .role = entry->role,
        .is_attached = entry->state == ENTRY_UP,
        .problem = entry->problem,
        .boot_epoch = entry->boot_epoch,
    };
    return true;
}

const uint8_t *attach_client_model_hash(const struct attach_client *client)
{
    return client->up_count > 0 ? client->model_hash : NULL;
}
