/* cable_nccl: the ops of the nccl cable, its links, and its set-up and end; see cable_nccl.h. */
#include "transfer/cable_nccl_state.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

/* ---- the loop's turns */

static void ops_take(struct kv_cable *cable)
{
    struct kv_memory_op *op = kv_memory_inbox_take_all(&cable->inbox);
    while (op) {
        struct pair_slot *slot = (struct pair_slot *)((char *)op - offsetof(struct pair_slot, op));
        struct cable_pair *pair = slot->pair;
        op = op->next; /* the slot may be taken anew below */
        pair->ops++; /* so that its end waits for what the op leads to */
        if (pair->is_sender) { cable_sender_gathered(slot); } else { cable_receiver_scattered(slot); }
        pair->ops--;
        cable_pair_op_done(pair);
        cable_wishes_run(cable);
    }
}

static void mail_take(struct kv_cable *cable)
{
    struct nccl_pair_fact fact;
    cable_mail_seen(cable->mail);
    for (uint32_t i = 0; i < cable->pairs_max; i++) {
        while (cable_mail_take(cable->mail, i, &fact)) {
            cable_pair_fact(&cable->pairs[i], &fact);
            cable_wishes_run(cable);
        }
    }
}

static void inbox_on_ready(struct kv_watch *watch, uint32_t events)
{
    (void)events;
    ops_take((struct kv_cable *)((char *)watch - offsetof(struct kv_cable, inbox_watch)));
}

static void mail_on_ready(struct kv_watch *watch, uint32_t events)
{
    (void)events;
    mail_take((struct kv_cable *)((char *)watch - offsetof(struct kv_cable, mail_watch)));
}

static void tick_on_ready(struct kv_watch *watch, uint32_t events)
{
    (void)events;
    struct kv_cable *cable = (struct kv_cable *)((char *)watch - offsetof(struct kv_cable, tick_watch));
    uint64_t count;
    if (read(watch->fd, &count, sizeof count) == (ssize_t)sizeof count) { cable_pairs_turn(cable, clock_now_ns()); }
}

/* ---- links */

static status_t nccl_offer(struct kv_cable *cable, uint32_t link, struct kv_cable_offer *ret_offer)
{
    (void)link;
    if (!cable->host->receives) { return STATUS(ST_UNIMPLEMENTED, SCOPE_NODE); }
    struct nccl_wire_offer offer = {.identity = cable->identity, .nccl_version = cable->nccl_version};
    memcpy(offer.device, cable->host->pool.memory->id, sizeof offer.device);
    nccl_offer_write(&offer, ret_offer);
    return STATUS_OK;
}

static const char *nccl_mismatch(const struct kv_cable *cable_, const void *bytes, size_t size)
{
    struct kv_cable *cable = (struct kv_cable *)(uintptr_t)cable_; /* for the sentence */
    struct nccl_wire_offer offer;
    if (!nccl_offer_read(bytes, size, &offer)) { return "the receiver's offer is of another version of Baton"; }
    if (offer.nccl_version != cable->nccl_version) { /* NCCL refuses ranks of two versions when they meet */
        snprintf(cable->mismatch, sizeof cable->mismatch, "NCCL is %u.%u.%u here and %u.%u.%u at the receiver; it wants the same version on both",
                 cable->nccl_version / 10000, cable->nccl_version / 100 % 100, cable->nccl_version % 100, offer.nccl_version / 10000,
                 offer.nccl_version / 100 % 100, offer.nccl_version % 100);
        return cable->mismatch;
    }
    /* NCCL tells hosts, and with them devices, apart by this variable where it is set. */
    bool is_same = kv_memory_can_export(cable->host->pool.memory) && memcmp(offer.device, cable->host->pool.memory->id, sizeof offer.device) == 0;
    if (is_same && !getenv("NCCL_HOSTID")) { return "both pools are on one device, which NCCL takes for one rank"; }
    return NULL;
}

static status_t nccl_connect(struct kv_cable *cable, uint32_t number, const char *peer_host, const void *bytes, size_t size,
                             const uint8_t token[KV_CABLE_TOKEN_BYTES])
{
    (void)peer_host;
    (void)token; /* the link, over which all is said, is authenticated */
    struct nccl_wire_offer offer;
    if (!nccl_offer_read(bytes, size, &offer)) { return STATUS(ST_INVALID_ARGUMENT, SCOPE_PEER); }
    struct nccl_link *link = &cable->links[number];
    const struct kv_cable_host *host = cable->host;
    *link = (struct nccl_link){.is_known = true, .is_sender = true, .is_own = host->is_own(host->endpoint, number),
                               .shape = cable_shape(host, host->layout, host->peer_layout(host->endpoint, number))};
    nccl_pairs_link(cable->table, number, offer.identity, clock_now_ns());
    if (link->is_own) { /* nothing else carries until it is there */
        link->is_wanting = true;
        (void)cable_link_want(cable, number);
    }
    return STATUS_OK;
}

static bool nccl_ready(struct kv_cable *cable, uint32_t link)
{
    enum nccl_pairs_answer answer = cable_link_want(cable, link);
    const struct cable_pair *pair = answer == NCCL_PAIRS_IS_UP ? cable_pair_of(cable, link) : NULL;
    return pair && pair->state == PAIR_READY;
}

static void nccl_message(struct kv_cable *cable, uint32_t link, const uint8_t *bytes, size_t count)
{
    struct nccl_wire_msg msg;
    bool is_read = nccl_wire_read(bytes, count, &msg);
    struct cable_pair *pair = cable_pair_of(cable, link);
    bool may_ask = cable->host->receives && !cable->host->is_sender(cable->host->endpoint, link); /* from offer on, ours or the peer's */
    if (is_read && msg.kind == NCCL_WIRE_OPEN && may_ask) {
        cable_pair_asked(cable, link, &msg);
    } else if (pair && (!is_read || msg.gen == pair->gen)) {
        static const struct nccl_wire_msg nonsense = {.kind = NCCL_WIRE_OPEN};
        cable_pair_message(pair, is_read ? &msg : &nonsense);
    } else {
        cable->stats.messages_stale++;
    }
    cable_wishes_run(cable);
}

/* A transfer on the link keeps its pair, between two frames too. */
static void nccl_used(struct kv_cable *cable, uint32_t number, int change)
{
    struct nccl_link *link = &cable->links[number];
    struct cable_pair *pair = cable_pair_of(cable, number);
    CHECK(change > 0 || link->users > 0);
    link->users += (uint32_t)change;
    if (!pair || !pair->up_here) { return; } /* it is told of them when it is up */
    nccl_pairs_busy(cable->table, pair->number, change, clock_now_ns());
}

static void nccl_push(struct kv_cable *cable, uint32_t link, struct kv_cable_push *push)
{
    cable_sender_push(cable, link, push);
    cable_wishes_run(cable);
}

static void nccl_abort(struct kv_cable *cable, uint32_t link, uint32_t send_slot)
{
    cable_sender_abort(cable, link, send_slot);
    cable_wishes_run(cable);
}

static void nccl_fence(struct kv_cable *cable, uint32_t number)
{
    struct nccl_link *link = &cable->links[number];
    if (!link->is_known) { return; }
    if (link->is_sender) { cable_sender_queue_drop(cable, number); }
    nccl_pairs_link_gone(cable->table, number, clock_now_ns(), &cable->wishes);
    cable_wishes_run(cable);
    for (uint32_t i = 0; i < cable->pairs_max; i++) { /* those that were on their way out already */
        struct cable_pair *pair = &cable->pairs[i];
        if (pair->state == PAIR_FREE || pair->link != number) { continue; }
        if (pair->is_sender) { cable_sender_end(pair, false); }
        pair->link = NCCL_LINK_GONE;
    }
    *link = (struct nccl_link){.is_known = false};
}

/* ---- set-up and end */

static status_t nccl_unavailable(struct diag *diag, status_t status, const char *what)
{
    diag_set(diag, "the nccl cable %s", what);
    return status;
}

static bool watch_start(struct kv_cable *cable, struct kv_watch *watch, int fd, void (*on_ready)(struct kv_watch *watch, uint32_t events))
{
    watch->fd = fd;
    watch->on_ready = on_ready;
    return fd >= 0 && !failed(kv_loop_watch(cable->host->loop, watch, EPOLLIN));
}

static status_t tables_make(struct kv_cable *cable, uint64_t memory_max)
{
    const struct nccl_pairs_config config = {.links_max = cable->host->links_max, .pairs_max = cable->pairs_max, .memory_max = memory_max,
                                             .nccl_bytes_first = cable->channels * NCCL_PAIRS_CHANNEL_BYTES};
    cable->links = calloc(config.links_max, sizeof *cable->links);
    cable->pairs = calloc(config.pairs_max, sizeof *cable->pairs);
    cable->table_memory = calloc(1, nccl_pairs_bytes(&config));
    cable->wishes.count_max = NCCL_PAIRS_WISHES_FOR(&config) * 2;
    cable->wishes.wishes = calloc(cable->wishes.count_max, sizeof *cable->wishes.wishes);
    if (!cable->links || !cable->pairs || !cable->table_memory || !cable->wishes.wishes) {
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM);
    }
    cable->table = nccl_pairs_init(cable->table_memory, &config);
    for (uint32_t i = 0; i < config.pairs_max; i++) { /* touched when a pair is opened */
        cable->pairs[i].slots = calloc(NCCL_SLOTS_MAX, sizeof *cable->pairs[i].slots);
        if (!cable->pairs[i].slots) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    }
    return cable_mail_create(config.pairs_max, &cable->mail);
}

static void watches_remove(struct kv_cable *cable)
{
    struct kv_watch *const watches[] = {&cable->mail_watch, &cable->inbox_watch, &cable->tick_watch};
    for (size_t i = 0; i < sizeof watches / sizeof watches[0]; i++) {
        if (watches[i]->watched) { kv_loop_remove(cable->host->loop, watches[i]); }
    }
}

static void nccl_free(struct kv_cable *cable)
{
    watches_remove(cable);
    if (cable->tick_watch.fd > 0) { close(cable->tick_watch.fd); }
    kv_memory_inbox_fini(&cable->inbox);
    for (uint32_t i = 0; cable->pairs && i < cable->pairs_max; i++) { free(cable->pairs[i].slots); }
    free(cable->pairs);
    free(cable->links);
    free(cable->table_memory);
    free(cable->wishes.wishes);
    free(cable);
}

static status_t nccl_open(const struct kv_cable_host *host, struct diag *diag, struct kv_cable **ret_cable)
{
    const struct kv_nccl_config *config = &host->nccl;
    const status_t off = STATUS(ST_UNIMPLEMENTED, SCOPE_NODE);
    if (!config->is_on) { return nccl_unavailable(diag, off, "is switched off; --nccl=on switches it on"); }
    if (!host->pool.memory) { /* left out by "auto", but it was asked for */
        LOGF(LOG_WARN, "nccl_left_out", "text=\"the pool is in host memory; NCCL moves pools on devices\"");
        return nccl_unavailable(diag, off, "moves pools on devices, and this pool is in host memory");
    }
    const struct nccl_api *api = config->api;
    int version = 0;
    if (!api) { TRY(nccl_api_load(config->library, diag, &api)); }
    TRY(nccl_api_check_version(api, &version, diag));
    struct kv_cable *cable = calloc(1, sizeof *cable);
    if (!cable) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    cable->host = host;
    cable->api = api;
    cable->inbox.fd = -1;
    cable->nccl_version = (uint32_t)version;
    cable->channels = config->channels ? config->channels : NCCL_CHANNELS;
    cable->pairs_max = config->pairs_max && config->pairs_max < host->links_max ? config->pairs_max : host->links_max;
    cable->init_ns = config->init_ns ? config->init_ns : NCCL_INIT_NS;
    cable->stall_ns = config->stall_ns ? config->stall_ns : NCCL_STALL_NS;
    cable->slice_bytes = kv_layout_slice_bytes(host->layout);
    const struct nccl_shape shape = cable_shape(host, host->layout, host->layout);
    uint64_t memory_max = config->memory_bytes_max ? config->memory_bytes_max : NCCL_MEMORY_BYTES;
    uint64_t one = shape.slot_count * shape.slot_bytes + cable->channels * NCCL_PAIRS_CHANNEL_BYTES;
    status_t st = STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    if (one > memory_max) {
        diag_set(diag, "the nccl cable may take %lu MiB of the device, and one pair with %u channels takes about %lu: raise --nccl-memory or lower "
                 "--nccl-channels", (unsigned long)(memory_max >> 20), cable->channels, (unsigned long)(one >> 20) + 1);
        goto fail;
    }
    st = STATUS_CAUSE(ST_INTERNAL, SCOPE_NODE, EIO);
    if (getrandom(&cable->identity, sizeof cable->identity, 0) != (ssize_t)sizeof cable->identity) { goto fail; }
    st = tables_make(cable, memory_max);
    if (failed(st)) { goto fail; }
    st = kv_memory_inbox_init(&cable->inbox);
    if (failed(st)) { goto fail; }
    const struct itimerspec often = {.it_interval = {.tv_nsec = NCCL_TICK_NS}, .it_value = {.tv_nsec = NCCL_TICK_NS}};
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (!watch_start(cable, &cable->tick_watch, timer, tick_on_ready) || timerfd_settime(timer, 0, &often, NULL) != 0 ||
        !watch_start(cable, &cable->inbox_watch, cable->inbox.fd, inbox_on_ready) ||
        !watch_start(cable, &cable->mail_watch, cable->mail->fd, mail_on_ready)) {
        st = STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, errno);
        goto fail;
    }
    LOGF(LOG_INFO, "nccl_ready", "version=%u.%u.%u channels=%u slots=%u slot_bytes=%zu pairs_max=%u memory_mib_max=%lu", cable->nccl_version / 10000,
         cable->nccl_version / 100 % 100, cable->nccl_version % 100, cable->channels, shape.slot_count, shape.slot_bytes, cable->pairs_max,
         (unsigned long)(memory_max >> 20));
    *ret_cable = cable;
    return STATUS_OK;
fail:
    cable_mail_destroy(cable->mail);
    nccl_free(cable);
    return st;
}

/* Ops and aborts are waited for as long as they may take where nothing is stuck. */
static void nccl_close(struct kv_cable *cable)
{
    uint64_t end_ns = clock_now_ns() + NCCL_ABORT_NS + NS_PER_S;
    uint32_t left, ops;
    for (;;) {
        left = ops = 0;
        for (uint32_t i = 0; i < cable->pairs_max; i++) {
            left += cable->pairs[i].state != PAIR_FREE;
            ops += cable->pairs[i].ops;
        }
        if (left == 0 || clock_now_ns() >= end_ns) { break; }
        struct pollfd fds[2] = {{.fd = cable->inbox.fd, .events = POLLIN}, {.fd = cable->mail->fd, .events = POLLIN}};
        poll(fds, 2, 50);
        ops_take(cable);
        mail_take(cable);
    }
    if (left > 0) {
        cable->host->memory_kept(cable->host->endpoint);
        LOGF(LOG_ERROR, "nccl_pairs_left", "count=%u ops=%u text=\"aborts that do not return, or a device that does not; the process's end frees them\"",
             left, ops);
    }
    watches_remove(cable);
    if (ops > 0) { return; } /* theirs are slots and inbox */
    if (left == 0) { cable_mail_destroy(cable->mail); } /* else it is the pairs' threads', which may still tell */
    nccl_free(cable);
}

static const char *nccl_address(const struct kv_cable *cable)
{
    (void)cable;
    return "";
}

static void nccl_stats(const struct kv_cable *cable, struct kv_endpoint_stats *stats)
{
    const struct nccl_pairs_stats *pairs = nccl_pairs_stats(cable->table);
    stats->nccl = cable->stats;
    stats->nccl.pairs_up = pairs->up;
    stats->nccl.pairs_opening = pairs->opening;
    stats->nccl.pairs_stuck = pairs->stuck;
    stats->nccl.pairs_opened = pairs->came_up;
    stats->nccl.pairs_broken = pairs->broke;
    stats->nccl.memory_bytes = pairs->memory_bytes;
    if (cable->frames_under_way > 0) { stats->nccl.busy_ns += clock_now_ns() - cable->busy_since_ns; }
}

const struct kv_cable_ops kv_cable_nccl = {
    .name = "nccl",
    .same_host_only = false,
    .needs_source_memfd = false,
    .places_at_destination = true,
    .converts = true,
    .warms_up = true,
    .open = nccl_open,
    .offer = nccl_offer,
    .mismatch = nccl_mismatch,
    .connect = nccl_connect,
    .message = nccl_message,
    .ready = nccl_ready,
    .used = nccl_used,
    .push = nccl_push,
    .abort = nccl_abort,
    .fence = nccl_fence,
    .close = nccl_close,
    .address = nccl_address,
    .stats = nccl_stats,
};
