/* Inside: one thread and a loop. Requests come in through a bounded list under a lock; everything
 * else is the thread's own. Each turn of the loop does what can be done at once: results of the disk,
 * all loads (somebody waits for them), one store, then moves of the host tier's coldest entries to
 * disk, so that a store finds a free slot rather than waits for the disk. Then it sleeps on two
 * descriptors, the requests' and the disk's.
 *
 * What the disk does is an op: a LOAD from a slot into staging, checked and copied into the pool; a
 * STORE from the pool through staging into a slot, where there is no host tier; a MOVE from a host
 * slot into a disk slot. A slot with an op on it is busy and not given up before the op is over. */
#include "kv/kv_tier.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/check.h"
#include "kv/tier_state.h"

#define QUEUE_MAX_DEFAULT 256u
#define BLOCK_BYTES_MAX (UINT64_C(1) << 30)
#define SLOTS_MAX (UINT64_C(1) << 29) /* of one tier */

/* --- the thread */

/* Takes what has come in. True: there is nothing and nothing is asked but to stop. */
static bool take_incoming(struct kv_tier *tier, bool may_sleep)
{
    pthread_mutex_lock(&tier->lock);
    struct request_list incoming = tier->incoming;
    tier->incoming = (struct request_list){NO_REQUEST, NO_REQUEST};
    tier->is_asleep = may_sleep && incoming.first == NO_REQUEST && !tier->is_stopping;
    bool is_over = tier->is_stopping && incoming.first == NO_REQUEST;
    pthread_mutex_unlock(&tier->lock);
    uint32_t request;
    while ((request = tier_list_take(tier, &incoming)) != NO_REQUEST) {
        tier_list_add(tier, tier->requests[request].kind == REQUEST_LOAD ? &tier->loads : &tier->stores, request);
    }
    return is_over;
}

static void sleep_until_something(struct kv_tier *tier)
{
    struct pollfd fds[2] = {{.fd = tier->wake_fd, .events = POLLIN}, {.fd = -1, .events = POLLIN}};
    bool has_ops = tier->ops_unused_count < DISK_DEPTH;
    if (has_ops) { fds[1].fd = tier_disk_event_fd(tier->disk); }
    if (has_ops && fds[1].fd < 0) { return; } /* their results are there already */
    (void)poll(fds, 2, -1); /* an interruption is a turn of the loop too many, no more */
    uint64_t count;
    if (fds[0].revents & POLLIN) {
        ssize_t got = read(tier->wake_fd, &count, sizeof count);
        (void)got;
    }
}

static bool has_work(const struct kv_tier *tier)
{
    return tier->loads.first != NO_REQUEST || tier->stores.first != NO_REQUEST || tier->ops_unused_count < DISK_DEPTH;
}

static void *thread_main(void *user)
{
    struct kv_tier *tier = user;
    bool is_idle = false;
    for (;;) {
        bool is_over = take_incoming(tier, is_idle);
        bool did = tier_reap(tier);
        while (tier_start_load(tier)) { did = true; }
        did |= tier_start_store(tier);
        /* When the end has come, entries stay where they are: the host's are lost anyway. */
        while (!is_over && tier_start_move(tier)) { did = true; }
        tier_publish(tier);
        if (is_over && !has_work(tier)) { break; }
        bool was_idle = is_idle;
        is_idle = !did && !is_over;
        if (did) { continue; }
        if (!is_over && !was_idle) {
            /* Nothing to do: touches take their place, and one more look before the sleep, now with
             * the word that a new request must wake us. */
            tier_slots_settle(tier->slots);
            continue;
        }
        sleep_until_something(tier);
        is_idle = false;
    }
    return NULL;
}

/* --- start and end */

static uint32_t clamp_slots(uint64_t slots) { return (uint32_t)(slots < SLOTS_MAX ? slots : SLOTS_MAX); }

static bool has_disk(const struct kv_tier_config *config) { return config->disk_path != NULL && config->disk_path[0] != '\0'; }

/* Whole pages where slots go to disk from here, or a cache line. */
static size_t host_stride_for(const struct kv_tier_config *config)
{
    size_t align = has_disk(config) ? TIER_DISK_ALIGN : 64;
    return (config->block_bytes + align - 1) / align * align;
}

static uint32_t host_slots_for(const struct kv_tier_config *config)
{
    return config->block_bytes == 0 ? 0 : clamp_slots(config->host_bytes / host_stride_for(config));
}

static uint32_t disk_slots_for(const struct kv_tier_config *config)
{
    if (!has_disk(config) || config->block_bytes == 0) { return 0; }
    return clamp_slots(tier_file_slots_in(config->disk_bytes, config->block_bytes));
}

static uint32_t queue_max_for(const struct kv_tier_config *config) { return config->queue_max > 0 ? config->queue_max : QUEUE_MAX_DEFAULT; }

uint32_t kv_tier_entries_max(const struct kv_tier_config *config) { return host_slots_for(config) + disk_slots_for(config); }

uint64_t kv_tier_memory_bytes(const struct kv_tier_config *config)
{
    uint32_t host_slots = host_slots_for(config);
    uint32_t disk_slots = disk_slots_for(config);
    if (host_slots + disk_slots == 0) { return 0; }
    uint64_t bytes = sizeof(struct kv_tier) + queue_max_for(config) * sizeof(struct request);
    bytes += (uint64_t)host_slots * host_stride_for(config) + tier_slots_bytes(host_slots, disk_slots);
    if (disk_slots > 0) { bytes += (uint64_t)DISK_DEPTH * host_stride_for(config); }
    if (config->memory != NULL) { bytes += config->block_bytes; }
    return bytes;
}

static status_t check_config(const struct kv_tier_config *config, struct diag *diag)
{
    status_t st = STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    if (config->block_bytes == 0 || config->block_bytes > BLOCK_BYTES_MAX) {
        diag_set(diag, "KV blocks of %zu bytes: the tiers keep blocks of 1 byte to 1 GiB", config->block_bytes);
        return st;
    }
    if (config->host_bytes > 0 && host_slots_for(config) == 0) {
        diag_set(diag, "host tier of %" PRIu64 " bytes: does not hold one block of %zu bytes; give it more", config->host_bytes,
                 config->block_bytes);
        return st;
    }
    if (config->host_bytes == 0 && !has_disk(config)) {
        diag_set(diag, "neither a host tier nor a disk tier is asked for");
        return st;
    }
    return STATUS_OK;
}

static status_t open_host(struct kv_tier *tier, struct diag *diag)
{
    uint32_t count = host_slots_for(&tier->config);
    if (count == 0) { return STATUS_OK; }
    tier->host_bytes = (size_t)count * tier->host_stride;
    void *host = mmap(NULL, tier->host_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (host == MAP_FAILED) {
        diag_set(diag, "host tier: no memory for %zu bytes", tier->host_bytes);
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, errno);
    }
    (void)madvise(host, tier->host_bytes, MADV_HUGEPAGE);
    tier->host = host;
    /* A sixteenth is on its way out at any time, 64 blocks at most. */
    tier->moves_ahead = count / 16 < 1 ? 1 : count / 16 > 64 ? 64 : count / 16;
    return STATUS_OK;
}

static status_t open_disk(struct kv_tier *tier, struct diag *diag)
{
    if (!has_disk(&tier->config)) { return STATUS_OK; }
    struct tier_disk_config config = {
        .path = tier->config.disk_path,
        .bytes = tier->config.disk_bytes,
        .block_bytes = tier->config.block_bytes,
        .depth = DISK_DEPTH,
        .is_without_uring = tier->config.is_without_uring,
    };
    memcpy(config.fingerprint_hash, tier->config.fingerprint_hash, sizeof config.fingerprint_hash);
    TRY(tier_disk_create(&config, &tier->disk, diag));
    tier->staging_stride = tier_disk_slot_bytes(tier->disk);
    return tier_staging_alloc(tier, DISK_DEPTH * tier->staging_stride, diag);
}

/* What the file had, to be kept in the order of its age. */
struct found {
    struct tier_file_label label;
    uint32_t slot;
};

struct found_list {
    struct found *found; /* [max] */
    uint32_t count, max;
};

static void on_found(void *user, uint32_t slot, const struct tier_file_label *label)
{
    struct found_list *list = user;
    CHECK(list->count < list->max);
    list->found[list->count++] = (struct found){.label = *label, .slot = slot};
}

static int by_generation(const void *a, const void *b)
{
    const struct found *left = a;
    const struct found *right = b;
    if (left->label.generation != right->label.generation) { return left->label.generation < right->label.generation ? -1 : 1; }
    return left->slot < right->slot ? -1 : 1;
}

static status_t find_entries(struct kv_tier *tier, struct diag *diag)
{
    uint32_t max = (uint32_t)tier_disk_slot_count(tier->disk);
    struct found_list list = {.max = max, .found = calloc(max, sizeof *list.found)};
    if (list.found == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    status_t st = tier_disk_scan(tier->disk, on_found, &list);
    if (failed(st)) {
        diag_set(diag, "%s: its labels cannot be read: %s", tier->config.disk_path, strerror(st.cause));
        goto end;
    }
    qsort(list.found, list.count, sizeof *list.found, by_generation);
    for (uint32_t i = 0; i < list.count; i++) {
        const struct found *found = &list.found[i];
        uint32_t slot = tier_slots_at(tier->slots, KV_TIER_DISK, found->slot);
        uint32_t same;
        tier->generation = found->label.generation;
        if (tier_slots_find(tier->slots, found->label.hash, &same)) { continue; } /* the same content twice: one is enough */
        tier_slots_take_at(tier->slots, slot);
        tier_slots_keep(tier->slots, slot, found->label.hash, found->label.crc);
        tier->counts.found++;
        tier_tell_about(tier, KV_TIER_FOUND, found->label.hash, KV_TIER_DISK);
    }
    for (uint32_t i = 0; i < list.count && !failed(st); i++) {
        uint32_t slot = tier_slots_at(tier->slots, KV_TIER_DISK, list.found[i].slot);
        int error = tier_slots_is_kept(tier->slots, slot) ? 0 : tier_disk_wipe(tier->disk, list.found[i].slot);
        if (error != 0) {
            diag_set(diag, "%s: %s", tier->config.disk_path, strerror(error));
            st = STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_NODE, error);
        }
    }
end:
    free(list.found);
    return st;
}

static status_t open_thread(struct kv_tier *tier)
{
    uint32_t queue_max = queue_max_for(&tier->config);
    tier->requests = calloc(queue_max, sizeof *tier->requests);
    if (tier->requests == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    for (uint32_t i = 0; i < queue_max; i++) { tier->requests[i].next = i + 1 < queue_max ? i + 1 : NO_REQUEST; }
    for (uint32_t i = 0; i < DISK_DEPTH; i++) { tier->ops_unused[i] = i; }
    tier->ops_unused_count = DISK_DEPTH;
    tier->incoming = tier->loads = tier->stores = (struct request_list){NO_REQUEST, NO_REQUEST};
    tier->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (tier->wake_fd < 0) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, errno); }
    if (pthread_mutex_init(&tier->lock, NULL) != 0) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    tier->has_lock = true;
    tier_publish(tier);
    /* Signals are the main thread's. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&tier->thread, NULL, thread_main, tier);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, error); }
    tier->has_thread = true;
    return STATUS_OK;
}

status_t kv_tier_create(const struct kv_tier_config *config, struct kv_tier **ret_tier, struct diag *diag)
{
    TRY(check_config(config, diag));
    struct kv_tier *tier = calloc(1, sizeof *tier);
    if (tier == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    tier->config = *config;
    tier->host_stride = host_stride_for(config);
    tier->wake_fd = -1;
    status_t st = tier_pool_open(tier, diag);
    if (failed(st)) { goto fail; }
    st = open_host(tier, diag);
    if (failed(st)) { goto fail; }
    st = open_disk(tier, diag);
    if (failed(st)) { goto fail; }
    uint32_t disk_slots = tier->disk != NULL ? (uint32_t)tier_disk_slot_count(tier->disk) : 0;
    st = tier_slots_create(host_slots_for(config), disk_slots, &tier->slots);
    if (failed(st)) { goto fail; }
    tier->counts.entries_max[KV_TIER_HOST] = host_slots_for(config);
    tier->counts.entries_max[KV_TIER_DISK] = disk_slots;
    tier->counts.disk_io = tier->disk != NULL ? tier_disk_io_name(tier->disk) : "";
    tier->counts.disk_state = tier->disk != NULL ? tier_file_verdict_text(tier_disk_verdict(tier->disk)) : "";
    tier->counts.is_disk_direct = tier->disk != NULL && tier_disk_is_direct(tier->disk);
    if (tier->disk != NULL) { st = find_entries(tier, diag); }
    if (failed(st)) { goto fail; }
    st = open_thread(tier);
    if (failed(st)) { goto fail; }
    *ret_tier = tier;
    return STATUS_OK;
fail:
    if (diag != NULL && diag->text[0] == '\0') { diag_set(diag, "KV tiers: no memory for their tables"); }
    kv_tier_destroy(tier);
    return st;
}

void kv_tier_destroy(struct kv_tier *tier)
{
    if (tier == NULL) { return; }
    if (tier->has_thread) {
        pthread_mutex_lock(&tier->lock);
        tier->is_stopping = true;
        pthread_mutex_unlock(&tier->lock);
        tier_wake(tier);
        pthread_join(tier->thread, NULL);
    }
    if (tier->has_lock) { pthread_mutex_destroy(&tier->lock); }
    if (tier->wake_fd >= 0) { close(tier->wake_fd); }
    free(tier->requests);
    tier_slots_destroy(tier->slots);
    tier_disk_destroy(tier->disk);
    tier_staging_free(tier);
    tier_pool_close(tier);
    if (tier->host != NULL) { munmap(tier->host, tier->host_bytes); }
    free(tier);
}
