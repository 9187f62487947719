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
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/crc32c.h"
#include "kv/tier_disk.h"
#include "kv/tier_slots.h"

#define QUEUE_MAX_DEFAULT 256u
#define BLOCK_BYTES_MAX (UINT64_C(1) << 30)
#define SLOTS_MAX (UINT64_C(1) << 29) /* of one tier */

/* Blocks under way on the disk. A block is 100 KB to 2 MB, so that a few of them fill any disk's
 * queue; moves leave half of it to loads. */
#define DISK_DEPTH 16u
#define MOVES_MAX (DISK_DEPTH / 2)

/* A disk whose writes fail is left alone for a while: each try would cost a host entry its life. */
#define WRITE_FAILURES_MAX 4u
#define PAUSE_NS (5 * NS_PER_S)

#define NO_REQUEST UINT32_MAX

enum request_kind { REQUEST_STORE, REQUEST_LOAD, REQUEST_DROP };

struct request {
    enum request_kind kind;
    struct kv_hash hash;
    uint32_t block;
    uint64_t tag;
    uint32_t next;
};

struct request_list {
    uint32_t first, last;
};

enum op_kind { OP_NONE, OP_STORE, OP_LOAD, OP_MOVE };

struct op {
    enum op_kind kind;
    uint32_t request;   /* STORE, LOAD */
    uint32_t slot;      /* the disk's */
    uint32_t host_slot; /* MOVE */
    struct kv_hash hash;
    uint32_t crc;
    uint64_t begin_ns;
};

/* Bytes per second while at least one op of the kind is under way, so that ops side by side count
 * as the disk serves them. */
struct rate {
    double bytes_per_s;
    uint64_t bytes, begin_ns;
    uint32_t ops;
};

enum { RATE_LOAD, RATE_STORE, RATE_COUNT };

struct kv_tier {
    struct kv_tier_config config;
    size_t host_stride;
    uint8_t *host; /* [host slots][host_stride] */
    size_t host_bytes;
    struct tier_disk *disk; /* NULL: no disk tier */
    uint8_t *staging;       /* [DISK_DEPTH][slot bytes] */
    size_t staging_stride;
    struct tier_slots *slots;
    uint32_t moves_ahead; /* free host slots to keep */

    struct op ops[DISK_DEPTH];
    uint32_t ops_unused[DISK_DEPTH];
    uint32_t ops_unused_count, moves;
    struct request_list loads, stores; /* drops go with the stores */
    uint64_t generation;
    uint32_t write_failures; /* in a row */
    uint64_t paused_until_ns;
    struct rate rates[KV_TIER_COUNT][RATE_COUNT];
    struct kv_tier_stats counts;         /* the thread's; published copies it */

    int wake_fd;
    pthread_t thread;
    bool has_thread, has_lock;
    /* Guards what follows. A lock, not a ring: two lists change hands in it at once, and who holds
     * it never waits. */
    pthread_mutex_t lock;
    struct request *requests; /* [queue_max] a request's fields are the owner's of its index */
    uint32_t unused;          /* first of the unused requests */
    uint32_t in_flight;
    struct request_list incoming;
    bool is_asleep, is_stopping;
    struct kv_tier_stats published;
};

/* --- requests: from the core thread to ours */

static void list_add(struct kv_tier *tier, struct request_list *list, uint32_t request)
{
    tier->requests[request].next = NO_REQUEST;
    *(list->first == NO_REQUEST ? &list->first : &tier->requests[list->last].next) = request;
    list->last = request;
}

static uint32_t list_take(struct kv_tier *tier, struct request_list *list)
{
    uint32_t request = list->first;
    if (request != NO_REQUEST) { list->first = tier->requests[request].next; }
    return request;
}

static void wake(struct kv_tier *tier)
{
    uint64_t one = 1;
    ssize_t wrote;
    do { wrote = write(tier->wake_fd, &one, sizeof one); } while (wrote < 0 && errno == EINTR);
}

static status_t post(struct kv_tier *tier, const struct request *wanted)
{
    pthread_mutex_lock(&tier->lock);
    uint32_t request = tier->unused;
    bool must_wake = tier->is_asleep;
    if (request != NO_REQUEST) {
        tier->unused = tier->requests[request].next;
        tier->requests[request] = *wanted;
        list_add(tier, &tier->incoming, request);
        tier->in_flight++;
        tier->is_asleep = false;
    }
    pthread_mutex_unlock(&tier->lock);
    if (request == NO_REQUEST) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
    if (must_wake) { wake(tier); }
    return STATUS_OK;
}

status_t kv_tier_store(struct kv_tier *tier, struct kv_hash hash, uint32_t block, uint64_t tag)
{
    CHECK(block < tier->config.block_count);
    return post(tier, &(struct request){.kind = REQUEST_STORE, .hash = hash, .block = block, .tag = tag});
}

status_t kv_tier_load(struct kv_tier *tier, struct kv_hash hash, uint32_t block, uint64_t tag)
{
    CHECK(block < tier->config.block_count);
    return post(tier, &(struct request){.kind = REQUEST_LOAD, .hash = hash, .block = block, .tag = tag});
}

void kv_tier_drop(struct kv_tier *tier, struct kv_hash hash)
{
    status_t st = post(tier, &(struct request){.kind = REQUEST_DROP, .hash = hash});
    (void)st; /* a full queue: it ages like any other */
}

void kv_tier_stats_get(struct kv_tier *tier, struct kv_tier_stats *ret_stats)
{
    pthread_mutex_lock(&tier->lock);
    *ret_stats = tier->published;
    ret_stats->in_flight = tier->in_flight;
    ret_stats->is_idle = tier->is_asleep && ret_stats->in_flight == 0 && ret_stats->disk_ops == 0;
    pthread_mutex_unlock(&tier->lock);
}

/* --- events: from our thread to the core. A request ends before its event is told, so that who
 * hears of it may ask for the next thing at once. */

static void publish_locked(struct kv_tier *tier)
{
    struct kv_tier_stats *stats = &tier->counts;
    for (uint32_t where = 0; where < KV_TIER_COUNT; where++) {
        stats->entries[where] = tier_slots_kept(tier->slots, (enum kv_tier_kind)where);
        stats->bytes[where] = stats->entries[where] * tier->config.block_bytes;
        stats->bytes_per_s_load[where] = (uint64_t)tier->rates[where][RATE_LOAD].bytes_per_s;
        stats->bytes_per_s_store[where] = (uint64_t)tier->rates[where][RATE_STORE].bytes_per_s;
    }
    stats->is_disk_paused = tier->paused_until_ns != 0;
    stats->disk_ops = DISK_DEPTH - tier->ops_unused_count;
    tier->published = *stats;
}

static void end_request(struct kv_tier *tier, uint32_t request)
{
    pthread_mutex_lock(&tier->lock);
    publish_locked(tier);
    tier->requests[request].next = tier->unused;
    tier->unused = request;
    tier->in_flight--;
    pthread_mutex_unlock(&tier->lock);
}

static void tell(struct kv_tier *tier, uint32_t request, struct kv_tier_event *event)
{
    event->tag = tier->requests[request].tag;
    event->hash = tier->requests[request].hash;
    event->block = tier->requests[request].block;
    end_request(tier, request);
    tier->config.on_event(tier->config.user, event);
}

static void tell_failed(struct kv_tier *tier, uint32_t request, enum kv_tier_event_kind kind, status_t status)
{
    *(kind == KV_TIER_LOAD_FAILED ? &tier->counts.load_failures : &tier->counts.store_failures) += 1;
    tell(tier, request, &(struct kv_tier_event){.kind = kind, .status = status});
}

static void tell_moved(struct kv_tier *tier, enum kv_tier_event_kind kind, struct kv_hash hash, enum kv_tier_kind where)
{
    tier->config.on_event(tier->config.user, &(struct kv_tier_event){.kind = kind, .hash = hash, .tier = where});
}

/* --- rates */

static void rate_begin(struct rate *rate, uint64_t now_ns)
{
    if (rate->ops++ == 0) { rate->begin_ns = now_ns; }
}

static void rate_end(struct rate *rate, uint64_t bytes, uint64_t now_ns)
{
    const uint64_t enough = UINT64_C(32) << 20; /* a busy disk is never idle: then a sample for each so many bytes */
    rate->bytes += bytes;
    if (--rate->ops > 0 && rate->bytes < enough) { return; }
    uint64_t elapsed_ns = now_ns > rate->begin_ns ? now_ns - rate->begin_ns : 1;
    double sample = (double)rate->bytes * (double)NS_PER_S / (double)elapsed_ns;
    if (rate->bytes > 0) { rate->bytes_per_s += (sample - rate->bytes_per_s) * (rate->bytes_per_s == 0 ? 1.0 : 0.125); }
    rate->bytes = 0;
    rate->begin_ns = now_ns;
}

/* --- slots */

static uint8_t *pool_block(struct kv_tier *tier, uint32_t block) { return (uint8_t *)tier->config.pool + (size_t)block * tier->config.block_bytes; }
static uint8_t *host_slot(struct kv_tier *tier, uint32_t slot) { return tier->host + (size_t)slot * tier->host_stride; }
static uint8_t *op_staging(struct kv_tier *tier, uint32_t op) { return tier->staging + (size_t)op * tier->staging_stride; }

/* A taken slot is free again, unless its label on the disk cannot be wiped: then it is out of use,
 * or a later life would find under that label what we write next. */
static void free_slot(struct kv_tier *tier, uint32_t slot, bool must_wipe)
{
    if (must_wipe && tier_disk_wipe(tier->disk, tier_slots_number(tier->slots, slot)) != 0) { return; }
    tier_slots_give_back(tier->slots, slot);
}

/* The op is over; where the entry was dropped meanwhile the slot is free now. A disk slot's label
 * was wiped when it was dropped. */
static void unbusy(struct kv_tier *tier, uint32_t slot)
{
    if (tier_slots_unbusy(tier->slots, slot) && !tier_slots_is_kept(tier->slots, slot)) { tier_slots_give_back(tier->slots, slot); }
}

static void drop_entry(struct kv_tier *tier, uint32_t slot)
{
    enum kv_tier_kind where = tier_slots_tier(tier->slots, slot);
    struct kv_hash hash = tier_slots_hash(tier->slots, slot);
    tier_slots_unname(tier->slots, slot);
    tier->counts.dropped[where]++;
    if (!tier_slots_is_busy(tier->slots, slot)) {
        free_slot(tier, slot, where == KV_TIER_DISK);
    } else if (where == KV_TIER_DISK && tier_disk_wipe(tier->disk, tier_slots_number(tier->slots, slot)) != 0) {
        tier_slots_busy(tier->slots, slot); /* for ever: out of use */
    }
    tell_moved(tier, KV_TIER_DROPPED, hash, where);
}

/* A slot of the tier, given up by its coldest entry if need be; NO_SLOT: all of them are busy. */
static uint32_t make_slot(struct kv_tier *tier, enum kv_tier_kind where)
{
    uint32_t slot = tier_slots_take(tier->slots, where);
    if (slot != NO_SLOT) { return slot; }
    uint32_t victim = tier_slots_coldest(tier->slots, where);
    if (victim == NO_SLOT) { return NO_SLOT; }
    drop_entry(tier, victim);
    return tier_slots_take(tier->slots, where);
}

/* --- the disk */

static bool disk_takes_writes(struct kv_tier *tier)
{
    if (tier->disk == NULL) { return false; }
    if (tier->paused_until_ns != 0 && clock_now_ns() >= tier->paused_until_ns) {
        tier->paused_until_ns = 0;
        tier->write_failures = WRITE_FAILURES_MAX - 1; /* one more pauses it again */
    }
    return tier->paused_until_ns == 0;
}

static void write_ended(struct kv_tier *tier, int error)
{
    if (error == 0) {
        tier->write_failures = 0;
    } else if (++tier->write_failures >= WRITE_FAILURES_MAX) {
        tier->paused_until_ns = clock_now_ns() + PAUSE_NS;
    }
}

static status_t disk_status(int error)
{
    bool is_full = error == ENOSPC || error == EDQUOT || error == EFBIG;
    return STATUS_CAUSE(is_full ? ST_RESOURCE_EXHAUSTED : ST_UNAVAILABLE, SCOPE_REQUEST, error);
}

static void op_start(struct kv_tier *tier, const struct op *wanted, void *buffer, uint32_t index)
{
    struct op *op = &tier->ops[index];
    *op = *wanted;
    op->begin_ns = clock_now_ns();
    tier_slots_busy(tier->slots, op->slot);
    rate_begin(&tier->rates[KV_TIER_DISK][op->kind == OP_LOAD ? RATE_LOAD : RATE_STORE], op->begin_ns);
    tier_disk_submit(tier->disk, op->kind != OP_LOAD, tier_slots_number(tier->slots, op->slot), buffer, index);
}

static uint32_t op_take(struct kv_tier *tier) { return tier->ops_unused[--tier->ops_unused_count]; }

/* The block is on the disk: its label makes it an entry. Returns errno. */
static int label_slot(struct kv_tier *tier, const struct op *op)
{
    struct tier_file_label label = {.hash = op->hash, .generation = ++tier->generation, .crc = op->crc};
    return tier_disk_label(tier->disk, tier_slots_number(tier->slots, op->slot), &label);
}

static void end_store_op(struct kv_tier *tier, const struct op *op, int error, uint64_t elapsed_ns)
{
    tier_slots_unbusy(tier->slots, op->slot);
    uint32_t other;
    bool is_here = tier_slots_find(tier->slots, op->hash, &other); /* two stores of one hash ran side by side */
    bool has_label = error == 0 && !is_here;
    if (has_label) { error = label_slot(tier, op); }
    write_ended(tier, error);
    if (error != 0 || is_here) {
        free_slot(tier, op->slot, has_label);
    } else {
        tier_slots_keep(tier->slots, op->slot, op->hash, op->crc);
        tier->counts.stored[KV_TIER_DISK]++;
    }
    if (error != 0) {
        tell_failed(tier, op->request, KV_TIER_STORE_FAILED, disk_status(error));
        return;
    }
    tell(tier, op->request,
         &(struct kv_tier_event){.kind = KV_TIER_STORED, .tier = KV_TIER_DISK, .bytes = tier->config.block_bytes, .elapsed_ns = elapsed_ns});
}

static void end_load_op(struct kv_tier *tier, const struct op *op, const uint8_t *staging, int error, uint64_t elapsed_ns)
{
    status_t st = STATUS_OK;
    if (error != 0) {
        st = disk_status(error);
    } else if (crc32c_copy(0, pool_block(tier, tier->requests[op->request].block), staging, tier->config.block_bytes) != op->crc) {
        tier->counts.checksum_failures++;
        st = STATUS(ST_DATA_LOSS, SCOPE_REQUEST);
    }
    if (failed(st) && tier_slots_is_kept(tier->slots, op->slot)) { drop_entry(tier, op->slot); }
    unbusy(tier, op->slot);
    if (failed(st)) {
        tell_failed(tier, op->request, KV_TIER_LOAD_FAILED, st);
        return;
    }
    tier->counts.loaded[KV_TIER_DISK]++;
    tell(tier, op->request,
         &(struct kv_tier_event){.kind = KV_TIER_LOADED, .tier = KV_TIER_DISK, .bytes = tier->config.block_bytes, .elapsed_ns = elapsed_ns});
}

static void end_move_op(struct kv_tier *tier, const struct op *op, int error)
{
    tier->moves--;
    tier_slots_unbusy(tier->slots, op->slot);
    bool is_wanted = tier_slots_is_kept(tier->slots, op->host_slot); /* else it was dropped meanwhile */
    bool has_label = error == 0 && is_wanted;
    if (has_label) { error = label_slot(tier, op); }
    write_ended(tier, error);
    if (error != 0 || !is_wanted) {
        free_slot(tier, op->slot, has_label);
        if (error != 0) { tier->counts.store_failures++; }
        if (is_wanted) { drop_entry(tier, op->host_slot); }
    } else {
        tier_slots_unname(tier->slots, op->host_slot);
        tier_slots_keep(tier->slots, op->slot, op->hash, op->crc);
        tier->counts.stored[KV_TIER_DISK]++;
        tier->counts.moved++;
        tell_moved(tier, KV_TIER_MOVED, op->hash, KV_TIER_DISK);
    }
    unbusy(tier, op->host_slot);
}

static bool reap(struct kv_tier *tier)
{
    struct disk_io_result results[DISK_DEPTH];
    if (tier->disk == NULL || tier->ops_unused_count == DISK_DEPTH) { return false; }
    uint32_t count = tier_disk_reap(tier->disk, results, DISK_DEPTH);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t index = results[i].cookie;
        struct op op = tier->ops[index];
        uint64_t now_ns = clock_now_ns();
        int error = results[i].error;
        rate_end(&tier->rates[KV_TIER_DISK][op.kind == OP_LOAD ? RATE_LOAD : RATE_STORE], error == 0 ? tier->config.block_bytes : 0, now_ns);
        switch (op.kind) {
        case OP_STORE: end_store_op(tier, &op, error, now_ns - op.begin_ns); break;
        case OP_LOAD: end_load_op(tier, &op, op_staging(tier, index), error, now_ns - op.begin_ns); break;
        case OP_MOVE: end_move_op(tier, &op, error); break;
        case OP_NONE: CHECK(op.kind != OP_NONE); break;
        }
        tier->ops[index].kind = OP_NONE;
        tier->ops_unused[tier->ops_unused_count++] = index;
    }
    return count > 0;
}

/* --- loads, stores, moves: each starts one and says whether it did */

static void load_from_host(struct kv_tier *tier, uint32_t request, uint32_t slot)
{
    struct rate *rate = &tier->rates[KV_TIER_HOST][RATE_LOAD];
    size_t bytes = tier->config.block_bytes;
    uint64_t begin_ns = clock_now_ns();
    rate_begin(rate, begin_ns);
    uint32_t crc = crc32c_copy(0, pool_block(tier, tier->requests[request].block), host_slot(tier, slot), bytes);
    uint64_t end_ns = clock_now_ns();
    rate_end(rate, bytes, end_ns);
    if (crc != tier_slots_crc(tier->slots, slot)) {
        tier->counts.checksum_failures++;
        drop_entry(tier, slot);
        tell_failed(tier, request, KV_TIER_LOAD_FAILED, STATUS(ST_DATA_LOSS, SCOPE_REQUEST));
        return;
    }
    tier_slots_touch(tier->slots, slot);
    tier->counts.loaded[KV_TIER_HOST]++;
    tell(tier, request, &(struct kv_tier_event){.kind = KV_TIER_LOADED, .tier = KV_TIER_HOST, .bytes = bytes, .elapsed_ns = end_ns - begin_ns});
}

static bool start_load(struct kv_tier *tier)
{
    uint32_t request = tier->loads.first;
    uint32_t slot;
    if (request == NO_REQUEST) { return false; }
    struct kv_hash hash = tier->requests[request].hash;
    bool is_here = tier_slots_find(tier->slots, hash, &slot);
    bool is_on_disk = is_here && tier_slots_tier(tier->slots, slot) == KV_TIER_DISK;
    if (is_on_disk && tier->ops_unused_count == 0) { return false; }
    list_take(tier, &tier->loads);
    if (!is_here) {
        tell_moved(tier, KV_TIER_DROPPED, hash, KV_TIER_HOST);
        tell_failed(tier, request, KV_TIER_LOAD_FAILED, STATUS(ST_NOT_FOUND, SCOPE_REQUEST));
    } else if (!is_on_disk) {
        load_from_host(tier, request, slot);
    } else {
        tier_slots_touch(tier->slots, slot);
        uint32_t index = op_take(tier);
        struct op op = {.kind = OP_LOAD, .request = request, .slot = slot, .hash = hash, .crc = tier_slots_crc(tier->slots, slot)};
        op_start(tier, &op, op_staging(tier, index), index);
    }
    return true;
}

static void store_to_host(struct kv_tier *tier, uint32_t request, uint32_t slot)
{
    struct rate *rate = &tier->rates[KV_TIER_HOST][RATE_STORE];
    size_t bytes = tier->config.block_bytes;
    uint64_t begin_ns = clock_now_ns();
    rate_begin(rate, begin_ns);
    uint32_t crc = crc32c_copy(0, host_slot(tier, slot), pool_block(tier, tier->requests[request].block), bytes);
    uint64_t end_ns = clock_now_ns();
    rate_end(rate, bytes, end_ns);
    tier_slots_keep(tier->slots, slot, tier->requests[request].hash, crc);
    tier->counts.stored[KV_TIER_HOST]++;
    tell(tier, request, &(struct kv_tier_event){.kind = KV_TIER_STORED, .tier = KV_TIER_HOST, .bytes = bytes, .elapsed_ns = end_ns - begin_ns});
}

static void store_to_disk(struct kv_tier *tier, uint32_t request, uint32_t slot)
{
    uint32_t index = op_take(tier);
    struct op op = {.kind = OP_STORE, .request = request, .slot = slot, .hash = tier->requests[request].hash};
    op.crc = crc32c_copy(0, op_staging(tier, index), pool_block(tier, tier->requests[request].block), tier->config.block_bytes);
    op_start(tier, &op, op_staging(tier, index), index);
}

static bool start_move(struct kv_tier *tier)
{
    if (tier->host == NULL || !disk_takes_writes(tier)) { return false; }
    if (tier->moves >= MOVES_MAX || tier->ops_unused_count == 0) { return false; }
    if (tier_slots_free(tier->slots, KV_TIER_HOST) + tier->moves >= tier->moves_ahead) { return false; }
    uint32_t from = tier_slots_coldest(tier->slots, KV_TIER_HOST);
    if (from == NO_SLOT) { return false; }
    uint32_t to = make_slot(tier, KV_TIER_DISK);
    if (to == NO_SLOT) { return false; }
    struct op op = {.kind = OP_MOVE, .slot = to, .host_slot = from};
    op.hash = tier_slots_hash(tier->slots, from);
    op.crc = tier_slots_crc(tier->slots, from);
    tier_slots_busy(tier->slots, from);
    tier->moves++;
    op_start(tier, &op, host_slot(tier, from), op_take(tier));
    return true;
}

/* False: its turn has not come, everything that could hold it is busy. */
static bool start_new_store(struct kv_tier *tier, uint32_t request)
{
    bool has_host = tier->host != NULL;
    if (!has_host && !disk_takes_writes(tier)) {
        list_take(tier, &tier->stores);
        tell_failed(tier, request, KV_TIER_STORE_FAILED, STATUS(ST_UNAVAILABLE, SCOPE_REQUEST));
        return true;
    }
    if (!has_host && tier->ops_unused_count == 0) { return false; }
    /* The host's coldest go to disk: it waits for that rather than lose one, while the disk works. */
    if (has_host && tier_slots_free(tier->slots, KV_TIER_HOST) == 0 && disk_takes_writes(tier)) {
        if (tier->moves > 0 || tier->ops_unused_count == 0 || start_move(tier)) { return false; }
    }
    uint32_t slot = make_slot(tier, has_host ? KV_TIER_HOST : KV_TIER_DISK);
    bool has_ops = tier->ops_unused_count < DISK_DEPTH;
    if (slot == NO_SLOT && has_ops) { return false; } /* they end, and then there is one */
    list_take(tier, &tier->stores);
    if (slot == NO_SLOT) { /* every slot of the disk is out of use */
        tell_failed(tier, request, KV_TIER_STORE_FAILED, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST));
        return true;
    }
    if (has_host) {
        store_to_host(tier, request, slot);
    } else {
        store_to_disk(tier, request, slot);
    }
    return true;
}

static bool start_store(struct kv_tier *tier)
{
    uint32_t request = tier->stores.first;
    uint32_t slot;
    if (request == NO_REQUEST) { return false; }
    bool is_here = tier_slots_find(tier->slots, tier->requests[request].hash, &slot);
    if (tier->requests[request].kind == REQUEST_DROP) {
        list_take(tier, &tier->stores);
        end_request(tier, request);
        if (is_here) { drop_entry(tier, slot); }
        return true;
    }
    if (!is_here) { return start_new_store(tier, request); }
    list_take(tier, &tier->stores);
    tier_slots_touch(tier->slots, slot);
    tell(tier, request, &(struct kv_tier_event){.kind = KV_TIER_STORED, .tier = tier_slots_tier(tier->slots, slot)});
    return true;
}

/* --- the thread */

static void publish(struct kv_tier *tier)
{
    pthread_mutex_lock(&tier->lock);
    publish_locked(tier);
    pthread_mutex_unlock(&tier->lock);
}

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
    while ((request = list_take(tier, &incoming)) != NO_REQUEST) {
        list_add(tier, tier->requests[request].kind == REQUEST_LOAD ? &tier->loads : &tier->stores, request);
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
        bool did = reap(tier);
        while (start_load(tier)) { did = true; }
        did |= start_store(tier);
        /* When the end has come, entries stay where they are: the host's are lost anyway. */
        while (!is_over && start_move(tier)) { did = true; }
        publish(tier);
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
    void *staging = NULL;
    if (posix_memalign(&staging, TIER_DISK_ALIGN, DISK_DEPTH * tier->staging_stride) != 0) {
        diag_set(diag, "disk tier: no memory for its buffers");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    memset(staging, 0, DISK_DEPTH * tier->staging_stride); /* what rounds a block up is written too */
    tier->staging = staging;
    return STATUS_OK;
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
        tell_moved(tier, KV_TIER_FOUND, found->label.hash, KV_TIER_DISK);
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
    publish(tier);
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
    status_t st = open_host(tier, diag);
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
        wake(tier);
        pthread_join(tier->thread, NULL);
    }
    if (tier->has_lock) { pthread_mutex_destroy(&tier->lock); }
    if (tier->wake_fd >= 0) { close(tier->wake_fd); }
    free(tier->requests);
    tier_slots_destroy(tier->slots);
    tier_disk_destroy(tier->disk);
    free(tier->staging);
    if (tier->host != NULL) { munmap(tier->host, tier->host_bytes); }
    free(tier);
}
