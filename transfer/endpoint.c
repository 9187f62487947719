/* endpoint: the callers' half; see endpoint_private.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "transfer/endpoint_private.h"

/* ---- create and destroy */

static uint64_t or_default(uint64_t value, uint64_t standard) { return value ? value : standard; }

static void limits_fill(struct kv_endpoint_limits *limits)
{
    limits->links_max = (uint32_t)or_default(limits->links_max, 64);
    limits->grants_max = (uint32_t)or_default(limits->grants_max, 256);
    limits->grant_blocks_max = (uint32_t)or_default(limits->grant_blocks_max, 8192);
    limits->sends_max = (uint32_t)or_default(limits->sends_max, 256);
    limits->pushes_max = (uint32_t)or_default(limits->pushes_max, 2048);
    limits->ring_commands_max = (uint32_t)or_default(limits->ring_commands_max, 4096);
    limits->heartbeat_ns = or_default(limits->heartbeat_ns, 250 * NS_PER_MS);
    limits->suspect_ns = or_default(limits->suspect_ns, NS_PER_S);
    limits->dead_ns = or_default(limits->dead_ns, 3 * NS_PER_S);
    limits->connect_ns = or_default(limits->connect_ns, 5 * NS_PER_S);
    limits->stall_ns = or_default(limits->stall_ns, 10 * NS_PER_S);
}

static status_t bad_config(struct diag *diag, const char *what)
{
    diag_set(diag, "KV endpoint: %s", what);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

static status_t config_check(const struct kv_endpoint_config *config, struct diag *diag)
{
    const struct kv_layout *layout = &config->fingerprint.layout;
    size_t id_chars = config->node_id ? strlen(config->node_id) : 0;
    if (id_chars == 0 || id_chars > KV_NODE_ID_CHARS_MAX) { return bad_config(diag, "node_id must have 1 to 63 characters"); }
    for (size_t i = 0; i < id_chars; i++) {
        if (config->node_id[i] < 0x21 || config->node_id[i] > 0x7e) {
            return bad_config(diag, "node_id must be printable ASCII without spaces");
        }
    }
    if (!config->link_address || strlen(config->link_address) > KV_ADDRESS_CHARS_MAX) {
        return bad_config(diag, "link_address is missing or longer than 255 characters");
    }
    if (layout->layer_count == 0 || layout->layer_count > LINK_LAYERS_MAX || kv_layout_slice_bytes(layout) == 0 ||
        kv_layout_slice_bytes(layout) > (1u << 30)) {
        return bad_config(diag, "the fingerprint's layout has an empty or absurd dimension");
    }
    if (!config->pool.base || config->pool.bytes < kv_layout_block_bytes(layout)) {
        return bad_config(diag, "the pool holds not even one block");
    }
    if (config->pool.bytes / kv_layout_block_bytes(layout) > UINT32_MAX / 2) {
        return bad_config(diag, "the pool has more blocks than a block number can name");
    }
    if (!config->on_event) { return bad_config(diag, "on_event is missing"); }
    if (!config->stream.send || !config->stream.close) { return bad_config(diag, "stream.send or stream.close is missing"); }
    const struct kv_endpoint_tls *tls = &config->tls;
    bool any_tls = tls->cert_file || tls->key_file || tls->ca_file;
    if (any_tls && (!tls->cert_file || !tls->key_file || !tls->ca_file)) {
        return bad_config(diag, "TLS needs all of the certificate, the key and the CA file, or none");
    }
    const struct kv_endpoint_limits *limits = &config->limits;
    if (limits->links_max > 65536 || limits->grants_max > 65536 || limits->sends_max > 65536 ||
        limits->pushes_max > (1u << 20) || limits->ring_commands_max > (1u << 20) ||
        limits->grant_blocks_max > KV_TICKET_BLOCKS_MAX) {
        return bad_config(diag, "a limit is out of range (links, grants and sends up to 65536, pushes and commands up "
                                "to 1048576, blocks of a grant up to 1048576)");
    }
    return STATUS_OK;
}

/* Two processes of one kernel boot share it; two machines do not, nor does a restarted one. */
static void host_id_read(char ret_id[LINK_HOST_ID_CHARS_MAX + 1])
{
    ret_id[0] = '\0';
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0) { return; } /* then no cable of one host is offered */
    ssize_t got = read(fd, ret_id, LINK_HOST_ID_CHARS_MAX);
    close(fd);
    if (got < 0) { got = 0; }
    ret_id[got] = '\0';
    ret_id[strcspn(ret_id, "\n")] = '\0';
}

static char *copy_or_null(const char *text) { return text ? strdup(text) : NULL; }

/* Opens what config->cables names, in that order. With "auto" a cable that this machine does
 * not have is left out; one that was asked for by name must work. */
static status_t cables_open(struct kv_endpoint *endpoint, const struct kv_endpoint_config *config, struct diag *diag)
{
    bool is_auto = !config->cables || strcmp(config->cables, "auto") == 0;
    char list[128], known[128] = "";
    const struct kv_cable_ops *const *table = endpoint->cable_table;
    for (uint32_t i = 0; table[i]; i++) {
        snprintf(known + strlen(known), sizeof known - strlen(known), ", %s", table[i]->name);
    }
    if (is_auto) {
        list[0] = '\0';
        for (uint32_t i = 0; table[i]; i++) {
            snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? "," : "", table[i]->name);
        }
    } else if (snprintf(list, sizeof list, "%s", config->cables) >= (int)sizeof list) {
        return bad_config(diag, "the list of cables is too long");
    }
    char *rest = NULL;
    for (char *name = strtok_r(list, ",", &rest); name; name = strtok_r(NULL, ",", &rest)) {
        const struct kv_cable_ops *ops = NULL;
        for (uint32_t i = 0; table[i]; i++) {
            if (strcmp(table[i]->name, name) == 0) { ops = table[i]; }
        }
        if (!ops) {
            diag_set(diag, "KV endpoint: there is no cable \"%s\"; known are auto%s", name, known);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
        }
        for (uint32_t i = 0; i < endpoint->cable_count; i++) {
            if (endpoint->cables[i].ops == ops) { return bad_config(diag, "a cable is named twice"); }
        }
        CHECK(!ops->warms_up || (ops->places_at_destination && ops->message && ops->ready));
        struct cable_slot *slot = &endpoint->cables[endpoint->cable_count];
        slot->endpoint = endpoint;
        slot->ops = ops;
        endpoint_cable_host_init(slot);
        slot->host.receives = endpoint->link_address[0] != '\0';
        slot->host.tcp_listen = endpoint->strings[0] ? endpoint->strings[0] : "";
        slot->host.uds_dir = endpoint->strings[1];
        slot->host.tls = (struct kv_endpoint_tls){endpoint->strings[2], endpoint->strings[3], endpoint->strings[4]};
        slot->host.ucx = config->ucx;
        slot->host.ucx.library = endpoint->strings[5];
        slot->host.nccl = config->nccl;
        slot->host.nccl.library = endpoint->strings[6];
        status_t st = ops->open(&slot->host, diag, &slot->cable);
        /* A wrong address or certificate is an error under "auto" too, and so is a cable that was
         * switched on and cannot be had. */
        bool may_be_left_out = is_auto && (ops->same_host_only || st.code == ST_UNIMPLEMENTED);
        if (failed(st) && !may_be_left_out) { return st; }
        if (!failed(st)) { endpoint->cable_count++; }
    }
    if (endpoint->cable_count == 0) { return bad_config(diag, "no cable is left to move blocks with"); }
    return STATUS_OK;
}

static bool tables_alloc(struct kv_endpoint *e)
{
    const struct kv_endpoint_limits *limits = &e->limits;
    /* Beyond what callers may fill: one revoke per grant, one abort per send, one accept and
     * one closing per link. Those cannot be refused. Three times that, since a slot can end and
     * be taken anew while the command of its former life is still in the ring. */
    e->ring_size = limits->ring_commands_max + 3 * (limits->grants_max + limits->sends_max + 2 * limits->links_max);
    e->ring = calloc(e->ring_size, sizeof *e->ring);
    e->grants = calloc(limits->grants_max, sizeof *e->grants);
    e->sends = calloc(limits->sends_max, sizeof *e->sends);
    e->links = calloc(limits->links_max, sizeof *e->links);
    e->pushes = calloc(limits->pushes_max, sizeof *e->pushes);
    e->granted = calloc((e->block_count + 63u) / 64u, sizeof *e->granted);
    e->wire_buffer = malloc(KV_LINK_MESSAGE_BYTES_MAX);
    e->wire_scratch = aligned_alloc(64, (LINK_WIRE_SCRATCH_BYTES + 63u) / 64u * 64u);
    /* Large and touched only where used. */
    e->grant_blocks = calloc((size_t)limits->grants_max * limits->grant_blocks_max, sizeof *e->grant_blocks);
    e->send_layers = calloc((size_t)limits->sends_max * e->layout.layer_count, sizeof *e->send_layers);
    if (!e->ring || !e->grants || !e->sends || !e->links || !e->pushes || !e->granted || !e->wire_buffer ||
        !e->wire_scratch || !e->grant_blocks || !e->send_layers) {
        return false;
    }
    for (uint32_t i = 0; i < limits->grants_max; i++) {
        e->grants[i].blocks = e->grant_blocks + (size_t)i * limits->grant_blocks_max;
        e->grants[i].next_free = i + 1 < limits->grants_max ? i + 1 : LINK_NONE;
    }
    for (uint32_t i = 0; i < limits->sends_max; i++) {
        e->sends[i].generation = 1;
        e->sends[i].layer_slices = e->send_layers + (size_t)i * e->layout.layer_count;
        e->sends[i].next_free = i + 1 < limits->sends_max ? i + 1 : LINK_NONE;
    }
    for (uint32_t i = 0; i < limits->links_max; i++) {
        e->links[i].generation = 1;
        e->links[i].next_free = i + 1 < limits->links_max ? i + 1 : LINK_NONE;
    }
    for (uint32_t i = 0; i < limits->pushes_max; i++) {
        e->pushes[i].next = e->free_push;
        e->free_push = &e->pushes[i];
    }
    e->free_push_count = limits->pushes_max;
    return true;
}

static status_t core_make(struct kv_endpoint *e)
{
    struct link_core_config config = {
        .boot_epoch = e->boot_epoch,
        .layer_count = e->layout.layer_count,
        .slice_bytes = e->slice_bytes,
        .links_max = e->limits.links_max,
        .grants_max = e->limits.grants_max,
        .grant_blocks_max = e->limits.grant_blocks_max,
        .sends_max = e->limits.sends_max,
        .heartbeat_ns = e->limits.heartbeat_ns,
        .suspect_ns = e->limits.suspect_ns,
        .dead_ns = e->limits.dead_ns,
        .connect_ns = e->limits.connect_ns,
        .stall_ns = e->limits.stall_ns,
        .suspicion_min_ns = NS_PER_S,
        .suspicion_max_ns = 60 * NS_PER_S,
    };
    memcpy(config.node_id, e->node_id, sizeof config.node_id);
    kv_fingerprint_encode(&e->fingerprint, config.fingerprint);
    e->core_memory = calloc(1, link_core_bytes(&config));
    e->wishes.count_max = 2 * LINK_WISHES_FOR(&config);
    e->wishes.wishes = calloc(e->wishes.count_max, sizeof *e->wishes.wishes);
    if (!e->core_memory || !e->wishes.wishes) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    e->core = link_core_init(e->core_memory, &config);
    return STATUS_OK;
}

status_t kv_endpoint_create(const struct kv_endpoint_config *config, struct diag *diag, struct kv_endpoint **ret_endpoint)
{
    TRY(config_check(config, diag));
    struct kv_endpoint *e = calloc(1, sizeof *e);
    if (!e) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    status_t st = STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM);
    e->fingerprint = config->fingerprint;
    e->layout = config->fingerprint.layout;
    kv_fingerprint_hash(&e->fingerprint, e->fingerprint_hash);
    kv_fingerprint_convert_hash(&e->fingerprint, e->convert_hash);
    snprintf(e->node_id, sizeof e->node_id, "%s", config->node_id);
    e->boot_epoch = config->boot_epoch;
    snprintf(e->link_address, sizeof e->link_address, "%s", config->link_address);
    host_id_read(e->host_id);
    e->pool = config->pool;
    e->block_count = (uint32_t)(config->pool.bytes / kv_layout_block_bytes(&e->layout));
    e->slice_bytes = kv_layout_slice_bytes(&e->layout);
    e->frame_blocks = kv_frame_blocks(&e->layout);
    e->limits = config->limits;
    /* Where nothing else carries meanwhile, as on a link whose P has nothing else, or nothing else that converts. */
    bool waits_for_nccl = (config->cables && strcmp(config->cables, "nccl") == 0) ||
                          (config->nccl.is_on && (e->link_address[0] || e->fingerprint.converts));
    if (e->limits.connect_ns == 0 && waits_for_nccl) {
        e->limits.connect_ns = or_default(config->nccl.init_ns, 15 * NS_PER_S) + 5 * NS_PER_S;
    }
    limits_fill(&e->limits);
    e->on_event = config->on_event;
    e->on_event_context = config->on_event_context;
    e->stream = config->stream;
    e->stream_context = config->stream_context;
    e->cable_table = config->cable_table ? config->cable_table : kv_cables;
    e->next_grant_epoch = 1;
    const char *const strings[ENDPOINT_STRINGS] = {config->tcp_listen, config->uds_dir, config->tls.cert_file,
                                                   config->tls.key_file, config->tls.ca_file, config->ucx.library,
                                                   config->nccl.library};
    for (int i = 0; i < ENDPOINT_STRINGS; i++) {
        e->strings[i] = copy_or_null(strings[i]);
        if (strings[i] && !e->strings[i]) { goto fail; }
    }
    e->mutex_made = pthread_mutex_init(&e->mutex, NULL) == 0;
    if (!e->mutex_made || !tables_alloc(e)) { goto fail; }
    st = core_make(e);
    if (failed(st)) { goto fail; }
    st = kv_loop_create(&e->loop);
    if (failed(st)) { goto fail; }
    st = cables_open(e, config, diag);
    if (failed(st)) { goto fail; }
    int cause = pthread_create(&e->thread, NULL, endpoint_thread_main, e);
    if (cause != 0) {
        st = STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, cause);
        diag_set(diag, "KV endpoint: the transfer thread did not start: %s", strerror(cause));
        goto fail;
    }
    e->thread_started = true;
    *ret_endpoint = e;
    return STATUS_OK;
fail:
    kv_endpoint_destroy(e);
    return st;
}

bool kv_endpoint_destroy(struct kv_endpoint *e)
{
    if (!e) { return true; }
    if (e->thread_started) {
        atomic_store(&e->stop, true);
        kv_loop_wake(e->loop);
        pthread_join(e->thread, NULL); /* it closes links and cables on its way out */
    } else {
        for (uint32_t i = 0; i < e->cable_count; i++) { e->cables[i].ops->close(e->cables[i].cable); }
    }
    while (e->ring_count) {
        struct command *command = &e->ring[e->ring_first];
        if (command->kind == CMD_COMMIT || command->kind == CMD_STREAM_MESSAGE) { free(command->pointer); }
        if (command->kind == CMD_STREAM_ACCEPT) { e->stream.close(e->stream_context, command->pointer); }
        e->ring_first = (e->ring_first + 1) % e->ring_size;
        e->ring_count--;
    }
    kv_loop_destroy(e->loop);
    for (uint32_t i = 0; e->grants && i < e->limits.grants_max; i++) { free(e->grants[i].payload); }
    for (uint32_t i = 0; e->sends && i < e->limits.sends_max; i++) { free(e->sends[i].payload); }
    if (e->mutex_made) { pthread_mutex_destroy(&e->mutex); }
    for (int i = 0; i < ENDPOINT_STRINGS; i++) { free(e->strings[i]); }
    free(e->ring);
    free(e->grants);
    free(e->sends);
    free(e->links);
    free(e->pushes);
    free(e->granted);
    free(e->grant_blocks);
    free(e->send_layers);
    free(e->core_memory);
    free(e->wishes.wishes);
    free(e->wire_buffer);
    free(e->wire_scratch);
    bool lets_go = !e->memory_is_kept;
    free(e);
    return lets_go;
}

const char *kv_endpoint_tcp_address(const struct kv_endpoint *e)
{
    for (uint32_t i = 0; i < e->cable_count; i++) {
        if (strcmp(e->cables[i].ops->name, "tcp") == 0) { return e->cables[i].ops->address(e->cables[i].cable); }
    }
    return "";
}

/* ---- the ring; all under the mutex */

static void post(struct kv_endpoint *e, const struct command *command)
{
    CHECK(e->ring_count < e->ring_size);
    e->ring[(e->ring_first + e->ring_count) % e->ring_size] = *command;
    e->ring_count++;
}

static bool ring_has_room(const struct kv_endpoint *e) { return e->ring_count < e->limits.ring_commands_max; }

/* Unlocks, and wakes the thread unless somebody has since it last looked. */
static void unlock_and_wake(struct kv_endpoint *e)
{
    bool wake = e->ring_count > 0 && !e->wake_posted;
    if (wake) { e->wake_posted = true; }
    pthread_mutex_unlock(&e->mutex);
    if (wake) { kv_loop_wake(e->loop); }
}

/* ---- D */

static bool blocks_are_free(const struct kv_endpoint *e, const uint32_t *blocks, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (blocks[i] >= e->block_count || (e->granted[blocks[i] / 64] >> (blocks[i] % 64) & 1u)) { return false; }
    }
    return true;
}

static void blocks_mark(struct kv_endpoint *e, const uint32_t *blocks, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) { e->granted[blocks[i] / 64] |= UINT64_C(1) << (blocks[i] % 64); }
}

static void blocks_unmark(struct kv_endpoint *e, const uint32_t *blocks, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) { e->granted[blocks[i] / 64] &= ~(UINT64_C(1) << (blocks[i] % 64)); }
}

/* Marks them; false, with nothing marked, if one is granted already or named twice. */
static bool blocks_take(struct kv_endpoint *e, const uint32_t *blocks, uint32_t count)
{
    if (!blocks_are_free(e, blocks, count)) { return false; }
    for (uint32_t i = 0; i < count; i++) {
        if (e->granted[blocks[i] / 64] >> (blocks[i] % 64) & 1u) { /* marked by this very loop: named twice */
            blocks_unmark(e, blocks, i);
            return false;
        }
        blocks_mark(e, blocks + i, 1);
    }
    return true;
}

status_t kv_endpoint_grant(struct kv_endpoint *e, kv_xfer_id_t xfer_id, const uint32_t *blocks, uint32_t count,
                           uint32_t lease_ms, void *user, uint8_t *ret_ticket, size_t *ret_ticket_bytes)
{
    if (count == 0 || count > e->limits.grant_blocks_max || lease_ms == 0 || lease_ms > 3600000u ||
        e->link_address[0] == '\0') {
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    struct kv_ticket ticket = {.xfer_id = xfer_id, .boot_epoch = e->boot_epoch, .block_count = count, .lease_ms = lease_ms};
    if (getrandom(ticket.secret, sizeof ticket.secret, 0) != (ssize_t)sizeof ticket.secret) {
        return STATUS_CAUSE(ST_INTERNAL, SCOPE_NODE, errno);
    }
    memcpy(ticket.link_address, e->link_address, sizeof ticket.link_address);
    memcpy(ticket.node_id, e->node_id, sizeof ticket.node_id);
    memcpy(ticket.fingerprint_hash, e->fingerprint_hash, sizeof ticket.fingerprint_hash);
    ticket.converts = e->fingerprint.converts;
    memcpy(ticket.convert_hash, e->convert_hash, sizeof ticket.convert_hash);

    status_t st = STATUS_OK;
    pthread_mutex_lock(&e->mutex);
    uint32_t slot = e->free_grant;
    for (uint32_t i = 0; i < e->limits.grants_max && !failed(st); i++) {
        if (e->grants[i].used && kv_xfer_id_equal(e->grants[i].xfer_id, xfer_id)) {
            st = STATUS(ST_ALREADY_EXISTS, SCOPE_REQUEST);
        }
    }
    if (!failed(st) && (slot == LINK_NONE || !ring_has_room(e))) { st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
    if (!failed(st) && !blocks_take(e, blocks, count)) { st = STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST); }
    if (!failed(st)) {
        struct grant_data *grant = &e->grants[slot];
        e->free_grant = grant->next_free;
        memcpy(grant->blocks, blocks, count * sizeof *blocks);
        grant->count = count;
        grant->user = user;
        grant->lease_ms = lease_ms;
        grant->grant_epoch = ticket.grant_epoch = e->next_grant_epoch++;
        memcpy(grant->secret, ticket.secret, sizeof grant->secret);
        grant->used = true;
        grant->revoke_posted = false;
        grant->xfer_id = xfer_id;
        post(e, &(struct command){.kind = CMD_GRANT, .slot = slot});
    }
    unlock_and_wake(e);
    if (!failed(st)) { kv_ticket_encode(&ticket, ret_ticket, ret_ticket_bytes); }
    return st;
}

void kv_endpoint_revoke(struct kv_endpoint *e, kv_xfer_id_t xfer_id)
{
    bool posted = false;
    pthread_mutex_lock(&e->mutex);
    for (uint32_t i = 0; i < e->limits.grants_max && !posted; i++) {
        struct grant_data *grant = &e->grants[i];
        if (!grant->used || grant->revoke_posted || !kv_xfer_id_equal(grant->xfer_id, xfer_id)) { continue; }
        grant->revoke_posted = true;
        post(e, &(struct command){.kind = CMD_REVOKE, .slot = i, .grant_epoch = grant->grant_epoch});
        posted = true;
    }
    if (!posted) { e->ignored_calls++; }
    unlock_and_wake(e);
}

/* ---- P */

static kv_send_t send_handle(uint32_t slot, uint32_t generation)
{
    return (kv_send_t){.value = (uint64_t)generation << 32 | slot};
}

/* Under the mutex; NULL for a stale or invented handle. */
static struct send_data *send_of(struct kv_endpoint *e, kv_send_t handle, uint32_t *ret_slot)
{
    uint32_t slot = (uint32_t)handle.value;
    if (slot >= e->limits.sends_max) { return NULL; }
    struct send_data *send = &e->sends[slot];
    if (!send->open || send->generation != (uint32_t)(handle.value >> 32)) { return NULL; }
    *ret_slot = slot;
    return send;
}

status_t kv_endpoint_send_begin(struct kv_endpoint *e, const void *ticket_bytes, size_t size, void *user,
                                struct diag *diag, kv_send_t *ret_send)
{
    struct kv_ticket ticket;
    TRY(kv_ticket_decode(ticket_bytes, size, diag, &ticket));
    if (!e->stream.dial) {
        diag_set(diag, "KV endpoint: this process only receives");
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_REQUEST);
    }
    bool converts = e->fingerprint.converts && ticket.converts && memcmp(ticket.convert_hash, e->convert_hash, sizeof ticket.convert_hash) == 0;
    if (!converts && memcmp(ticket.fingerprint_hash, e->fingerprint_hash, sizeof ticket.fingerprint_hash) != 0) {
        diag_set(diag, "transfer ticket: %s keeps its KV blocks in another layout than %s; model, dtype, block size and "
                 "kernel set of both pools must be the same", ticket.node_id, e->node_id);
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_REQUEST);
    }
    status_t st = STATUS_OK;
    pthread_mutex_lock(&e->mutex);
    uint32_t slot = e->free_send;
    if (slot == LINK_NONE || !ring_has_room(e)) {
        diag_set(diag, "KV endpoint: too many transfers under way");
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    } else {
        struct send_data *send = &e->sends[slot];
        e->free_send = send->next_free;
        send->ticket = ticket;
        send->user = user;
        send->open = true;
        send->committed = send->abort_posted = false;
        send->slices_pushed = 0;
        memset(send->layer_slices, 0, e->layout.layer_count * sizeof *send->layer_slices);
        *ret_send = send_handle(slot, send->generation);
        post(e, &(struct command){.kind = CMD_SEND_BEGIN, .slot = slot, .generation = send->generation});
    }
    unlock_and_wake(e);
    return st;
}

status_t kv_endpoint_push(struct kv_endpoint *e, kv_send_t handle, uint32_t layer, uint32_t first,
                          const uint32_t *src_blocks, uint32_t count, uint64_t mark)
{
    if (layer >= e->layout.layer_count || count == 0) { return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST); }
    for (uint32_t i = 0; i < count; i++) {
        if (src_blocks[i] >= e->block_count) { return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST); }
    }
    uint32_t need = (count - 1) / e->frame_blocks + 1;
    status_t st = STATUS_OK;
    pthread_mutex_lock(&e->mutex);
    uint32_t slot = 0;
    struct send_data *send = send_of(e, handle, &slot);
    if (!send || send->committed || first >= send->ticket.block_count || count > send->ticket.block_count - first ||
        count > send->ticket.block_count - send->layer_slices[layer]) {
        st = STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    } else if (e->free_push_count < need || !ring_has_room(e)) {
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    } else {
        struct kv_cable_push *chain = NULL, **tail = &chain;
        for (uint32_t done = 0; done < count;) {
            struct kv_cable_push *push = e->free_push;
            e->free_push = push->next;
            uint32_t now = count - done < e->frame_blocks ? count - done : e->frame_blocks;
            push->frame = (struct kv_frame){.xfer_id = send->ticket.xfer_id, .grant_epoch = send->ticket.grant_epoch,
                                            .layer = layer, .first = first + done, .count = now};
            memcpy(push->blocks, src_blocks + done, now * sizeof *src_blocks);
            push->send_slot = slot;
            push->mark = mark;
            push->dropped = false;
            push->push_first = first;
            push->push_count = count;
            done += now;
            push->last = done == count;
            push->next = NULL;
            *tail = push;
            tail = &push->next;
        }
        e->free_push_count -= need;
        send->layer_slices[layer] += count;
        send->slices_pushed += count;
        post(e, &(struct command){.kind = CMD_PUSH, .slot = slot, .generation = send->generation, .pointer = chain});
    }
    unlock_and_wake(e);
    return st;
}

status_t kv_endpoint_commit(struct kv_endpoint *e, kv_send_t handle, const void *payload, size_t payload_bytes)
{
    if (payload_bytes > KV_PAYLOAD_BYTES_MAX) { return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST); }
    uint8_t *copy = malloc(payload_bytes ? payload_bytes : 1);
    if (!copy) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, ENOMEM); }
    if (payload_bytes) { memcpy(copy, payload, payload_bytes); }
    status_t st = STATUS_OK;
    pthread_mutex_lock(&e->mutex);
    uint32_t slot = 0;
    struct send_data *send = send_of(e, handle, &slot);
    if (!send || send->committed || send->slices_pushed != (uint64_t)send->ticket.block_count * e->layout.layer_count) {
        st = STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    } else if (!ring_has_room(e)) {
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    } else {
        send->committed = true;
        post(e, &(struct command){.kind = CMD_COMMIT, .slot = slot, .generation = send->generation, .pointer = copy,
                                  .bytes = payload_bytes});
        copy = NULL;
    }
    unlock_and_wake(e);
    free(copy);
    return st;
}

void kv_endpoint_abort(struct kv_endpoint *e, kv_send_t handle)
{
    pthread_mutex_lock(&e->mutex);
    uint32_t slot = 0;
    struct send_data *send = send_of(e, handle, &slot);
    if (send && !send->abort_posted) {
        send->abort_posted = true;
        post(e, &(struct command){.kind = CMD_ABORT, .slot = slot, .generation = send->generation});
    } else {
        e->ignored_calls++;
    }
    unlock_and_wake(e);
}

/* ---- streams */

uint32_t endpoint_link_take(struct kv_endpoint *e)
{
    uint32_t link = e->free_link;
    if (link == LINK_NONE) { return LINK_NONE; }
    e->free_link = e->links[link].next_free;
    e->links[link].used = true;
    e->links[link].closed_posted = false;
    return link;
}

void endpoint_link_release(struct kv_endpoint *e, uint32_t link)
{
    e->links[link].used = false;
    e->links[link].generation++;
    e->links[link].next_free = e->free_link;
    e->free_link = link;
}

/* Under the mutex. */
static bool link_of(const struct kv_endpoint *e, uint64_t id, uint32_t *ret_link)
{
    uint32_t link = (uint32_t)id;
    if (link >= e->limits.links_max || !e->links[link].used || e->links[link].generation != (uint32_t)(id >> 32)) {
        return false;
    }
    *ret_link = link;
    return true;
}

status_t kv_endpoint_stream_accept(struct kv_endpoint *e, void *stream, uint64_t *ret_link)
{
    status_t st = STATUS_OK;
    pthread_mutex_lock(&e->mutex);
    uint32_t link = endpoint_link_take(e);
    if (link == LINK_NONE) {
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_PEER);
    } else {
        *ret_link = (uint64_t)e->links[link].generation << 32 | link;
        post(e, &(struct command){.kind = CMD_STREAM_ACCEPT, .slot = link, .generation = e->links[link].generation,
                                  .pointer = stream});
    }
    unlock_and_wake(e);
    return st;
}

status_t kv_endpoint_stream_message(struct kv_endpoint *e, uint64_t id, const void *message, size_t bytes)
{
    if (bytes > KV_LINK_MESSAGE_BYTES_MAX) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_PEER); }
    uint8_t *copy = malloc(bytes ? bytes : 1);
    if (!copy) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_PEER, ENOMEM); }
    if (bytes) { memcpy(copy, message, bytes); }
    status_t st = STATUS_OK;
    pthread_mutex_lock(&e->mutex);
    uint32_t link = 0;
    if (!link_of(e, id, &link)) {
        e->ignored_calls++; /* late: the link was closed meanwhile */
    } else if (!ring_has_room(e)) {
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_PEER);
    } else {
        post(e, &(struct command){.kind = CMD_STREAM_MESSAGE, .slot = link, .generation = e->links[link].generation,
                                  .pointer = copy, .bytes = bytes});
        copy = NULL;
    }
    unlock_and_wake(e);
    free(copy);
    return st;
}

void kv_endpoint_stream_closed(struct kv_endpoint *e, uint64_t id, status_t status)
{
    pthread_mutex_lock(&e->mutex);
    uint32_t link = 0;
    if (link_of(e, id, &link) && !e->links[link].closed_posted) {
        e->links[link].closed_posted = true;
        post(e, &(struct command){.kind = CMD_STREAM_CLOSED, .slot = link, .generation = e->links[link].generation,
                                  .status = status});
    }
    unlock_and_wake(e);
}

void kv_endpoint_stats_get(struct kv_endpoint *e, struct kv_endpoint_stats *ret_stats)
{
    pthread_mutex_lock(&e->mutex);
    *ret_stats = e->published;
    ret_stats->messages_ignored += e->ignored_calls;
    pthread_mutex_unlock(&e->mutex);
}
