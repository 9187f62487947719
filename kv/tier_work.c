/* What the tiers' thread does: copies between pool and host, blocks to and from the disk, and what is
 * given up for what. */
#include <errno.h>

#include "base/check.h"
#include "base/clock.h"
#include "kv/tier_state.h"

/* Moves leave half of the disk's queue to loads. */
#define MOVES_MAX (DISK_DEPTH / 2)

/* A disk whose writes fail is left alone for a while: each try would cost a host entry its life. */
#define WRITE_FAILURES_MAX 4u
#define PAUSE_NS (5 * NS_PER_S)

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
    tier_tell_about(tier, KV_TIER_DROPPED, hash, where);
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

static uint32_t rate_of(const struct op *op) { return op->kind == OP_LOAD ? RATE_LOAD : RATE_STORE; }

static void op_start(struct kv_tier *tier, const struct op *wanted, void *buffer, uint32_t index)
{
    struct op *op = &tier->ops[index];
    *op = *wanted;
    op->begin_ns = clock_now_ns();
    tier_slots_busy(tier->slots, op->slot);
    rate_begin(&tier->rates[KV_TIER_DISK][rate_of(op)], op->begin_ns);
    tier_disk_submit(tier->disk, op->kind != OP_LOAD, tier_slots_number(tier->slots, op->slot), buffer, index);
}

static uint32_t op_take(struct kv_tier *tier) { return tier->ops_unused[--tier->ops_unused_count]; }

/* The block is on the disk: its label makes it an entry. Returns errno. */
static int label_slot(struct kv_tier *tier, const struct op *op)
{
    struct tier_file_label label = {.hash = op->hash, .generation = ++tier->generation, .crc = op->crc};
    return tier_disk_label(tier->disk, tier_slots_number(tier->slots, op->slot), &label);
}

/* from_ns  since when the time counts as this block's own */
static void end_store_op(struct kv_tier *tier, const struct op *op, int error, uint64_t from_ns)
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
        tier_tell_failed(tier, op->request, KV_TIER_STORE_FAILED, disk_status(error));
        return;
    }
    tier_tell(tier, op->request,
         &(struct kv_tier_event){.kind = KV_TIER_STORED, .tier = KV_TIER_DISK, .bytes = tier->config.block_bytes, .elapsed_ns = clock_now_ns() - from_ns});
}

static void end_load_op(struct kv_tier *tier, const struct op *op, uint8_t *staging, int error, uint64_t from_ns)
{
    uint32_t crc = 0;
    status_t st = error != 0 ? disk_status(error) : tier_pool_write(tier, tier->requests[op->request].block, staging, true, &crc);
    if (!failed(st) && crc != op->crc) {
        tier->counts.checksum_failures++;
        st = STATUS(ST_DATA_LOSS, SCOPE_REQUEST);
    }
    if (failed(st) && tier_slots_is_kept(tier->slots, op->slot)) { drop_entry(tier, op->slot); }
    unbusy(tier, op->slot);
    if (failed(st)) {
        tier_tell_failed(tier, op->request, KV_TIER_LOAD_FAILED, st);
        return;
    }
    tier->counts.loaded[KV_TIER_DISK]++;
    tier_tell(tier, op->request,
         &(struct kv_tier_event){.kind = KV_TIER_LOADED, .tier = KV_TIER_DISK, .bytes = tier->config.block_bytes, .elapsed_ns = clock_now_ns() - from_ns});
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
        tier_tell_about(tier, KV_TIER_MOVED, op->hash, KV_TIER_DISK);
    }
    unbusy(tier, op->host_slot);
}

/* What each op of a kind took of those that ended together. */
static void share_time(struct kv_tier *tier, const struct disk_io_result *results, uint32_t count, uint64_t *ret_share_ns)
{
    uint64_t begin_ns[RATE_COUNT] = {UINT64_MAX, UINT64_MAX};
    uint32_t ended[RATE_COUNT] = {0};
    for (uint32_t i = 0; i < count; i++) {
        const struct op *op = &tier->ops[results[i].cookie];
        uint32_t rate = rate_of(op);
        ended[rate]++;
        if (op->begin_ns < begin_ns[rate]) { begin_ns[rate] = op->begin_ns; }
    }
    uint64_t now_ns = clock_now_ns();
    for (uint32_t rate = 0; rate < RATE_COUNT; rate++) {
        ret_share_ns[rate] = busy_time_share(&tier->busy[rate], begin_ns[rate], ended[rate], now_ns);
    }
}

bool tier_reap(struct kv_tier *tier)
{
    struct disk_io_result results[DISK_DEPTH];
    if (tier->disk == NULL || tier->ops_unused_count == DISK_DEPTH) { return false; }
    uint32_t count = tier_disk_reap(tier->disk, results, DISK_DEPTH);
    uint64_t share_ns[RATE_COUNT];
    share_time(tier, results, count, share_ns);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t index = results[i].cookie;
        struct op op = tier->ops[index];
        uint64_t now_ns = clock_now_ns();
        uint64_t from_ns = now_ns - share_ns[rate_of(&op)];
        int error = results[i].error;
        rate_end(&tier->rates[KV_TIER_DISK][rate_of(&op)], error == 0 ? tier->config.block_bytes : 0, now_ns);
        switch (op.kind) {
        case OP_STORE: end_store_op(tier, &op, error, from_ns); break;
        case OP_LOAD: end_load_op(tier, &op, op_staging(tier, index), error, from_ns); break;
        case OP_MOVE: end_move_op(tier, &op, error); break;
        case OP_NONE: CHECK(op.kind != OP_NONE); break;
        }
        tier->busy[rate_of(&op)].until_ns = clock_now_ns(); /* with the copy or the label, which its event counted */
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
    uint32_t crc = 0;
    status_t st = tier_pool_write(tier, tier->requests[request].block, host_slot(tier, slot), false, &crc);
    uint64_t end_ns = clock_now_ns();
    rate_end(rate, bytes, end_ns);
    if (!failed(st) && crc != tier_slots_crc(tier->slots, slot)) {
        tier->counts.checksum_failures++;
        st = STATUS(ST_DATA_LOSS, SCOPE_REQUEST);
    }
    if (failed(st)) {
        drop_entry(tier, slot);
        tier_tell_failed(tier, request, KV_TIER_LOAD_FAILED, st);
        return;
    }
    tier_slots_touch(tier->slots, slot);
    tier->counts.loaded[KV_TIER_HOST]++;
    tier_tell(tier, request, &(struct kv_tier_event){.kind = KV_TIER_LOADED, .tier = KV_TIER_HOST, .bytes = bytes, .elapsed_ns = end_ns - begin_ns});
}

bool tier_start_load(struct kv_tier *tier)
{
    uint32_t request = tier->loads.first;
    uint32_t slot;
    if (request == NO_REQUEST) { return false; }
    struct kv_hash hash = tier->requests[request].hash;
    bool is_here = tier_slots_find(tier->slots, hash, &slot);
    bool is_on_disk = is_here && tier_slots_tier(tier->slots, slot) == KV_TIER_DISK;
    if (is_on_disk && tier->ops_unused_count == 0) { return false; }
    tier_list_take(tier, &tier->loads);
    if (!is_here) {
        tier_tell_about(tier, KV_TIER_DROPPED, hash, KV_TIER_HOST);
        tier_tell_failed(tier, request, KV_TIER_LOAD_FAILED, STATUS(ST_NOT_FOUND, SCOPE_REQUEST));
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
    uint32_t crc = 0;
    status_t st = tier_pool_read(tier, tier->requests[request].block, host_slot(tier, slot), false, &crc);
    uint64_t end_ns = clock_now_ns();
    rate_end(rate, bytes, end_ns);
    if (failed(st)) {
        tier_slots_give_back(tier->slots, slot);
        tier_tell_failed(tier, request, KV_TIER_STORE_FAILED, st);
        return;
    }
    tier_slots_keep(tier->slots, slot, tier->requests[request].hash, crc);
    tier->counts.stored[KV_TIER_HOST]++;
    tier_tell(tier, request, &(struct kv_tier_event){.kind = KV_TIER_STORED, .tier = KV_TIER_HOST, .bytes = bytes, .elapsed_ns = end_ns - begin_ns});
}

static void store_to_disk(struct kv_tier *tier, uint32_t request, uint32_t slot)
{
    uint32_t index = op_take(tier);
    struct op op = {.kind = OP_STORE, .request = request, .slot = slot, .hash = tier->requests[request].hash};
    status_t st = tier_pool_read(tier, tier->requests[request].block, op_staging(tier, index), true, &op.crc);
    if (failed(st)) {
        tier->ops_unused[tier->ops_unused_count++] = index;
        tier_slots_give_back(tier->slots, slot);
        tier_tell_failed(tier, request, KV_TIER_STORE_FAILED, st);
        return;
    }
    op_start(tier, &op, op_staging(tier, index), index);
}

bool tier_start_move(struct kv_tier *tier)
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
        tier_list_take(tier, &tier->stores);
        tier_tell_failed(tier, request, KV_TIER_STORE_FAILED, STATUS(ST_UNAVAILABLE, SCOPE_REQUEST));
        return true;
    }
    if (!has_host && tier->ops_unused_count == 0) { return false; }
    /* The host's coldest go to disk: it waits for that rather than lose one, while the disk works. */
    if (has_host && tier_slots_free(tier->slots, KV_TIER_HOST) == 0 && disk_takes_writes(tier)) {
        if (tier->moves > 0 || tier->ops_unused_count == 0 || tier_start_move(tier)) { return false; }
    }
    uint32_t slot = make_slot(tier, has_host ? KV_TIER_HOST : KV_TIER_DISK);
    bool has_ops = tier->ops_unused_count < DISK_DEPTH;
    if (slot == NO_SLOT && has_ops) { return false; } /* they end, and then there is one */
    tier_list_take(tier, &tier->stores);
    if (slot == NO_SLOT) { /* every slot of the disk is out of use */
        tier_tell_failed(tier, request, KV_TIER_STORE_FAILED, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST));
        return true;
    }
    if (has_host) {
        store_to_host(tier, request, slot);
    } else {
        store_to_disk(tier, request, slot);
    }
    return true;
}

bool tier_start_store(struct kv_tier *tier)
{
    uint32_t request = tier->stores.first;
    uint32_t slot;
    if (request == NO_REQUEST) { return false; }
    bool is_here = tier_slots_find(tier->slots, tier->requests[request].hash, &slot);
    if (tier->requests[request].kind == REQUEST_DROP) {
        tier_list_take(tier, &tier->stores);
        tier_end_request(tier, request);
        if (is_here) { drop_entry(tier, slot); }
        return true;
    }
    if (!is_here) { return start_new_store(tier, request); }
    tier_list_take(tier, &tier->stores);
    tier_slots_touch(tier->slots, slot);
    tier_tell(tier, request, &(struct kv_tier_event){.kind = KV_TIER_STORED, .tier = tier_slots_tier(tier->slots, slot)});
    return true;
}
