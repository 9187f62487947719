/* Requests come from the core thread, events go back to it. */
#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "base/check.h"
#include "kv/tier_state.h"

void tier_list_add(struct kv_tier *tier, struct request_list *list, uint32_t request)
{
    tier->requests[request].next = NO_REQUEST;
    *(list->first == NO_REQUEST ? &list->first : &tier->requests[list->last].next) = request;
    list->last = request;
}

uint32_t tier_list_take(struct kv_tier *tier, struct request_list *list)
{
    uint32_t request = list->first;
    if (request != NO_REQUEST) { list->first = tier->requests[request].next; }
    return request;
}

void tier_wake(struct kv_tier *tier)
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
        tier_list_add(tier, &tier->incoming, request);
        tier->in_flight++;
        tier->is_asleep = false;
    }
    pthread_mutex_unlock(&tier->lock);
    if (request == NO_REQUEST) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
    if (must_wake) { tier_wake(tier); }
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

/* --- from our thread to the core */

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

void tier_publish(struct kv_tier *tier)
{
    pthread_mutex_lock(&tier->lock);
    publish_locked(tier);
    pthread_mutex_unlock(&tier->lock);
}

void tier_end_request(struct kv_tier *tier, uint32_t request)
{
    pthread_mutex_lock(&tier->lock);
    publish_locked(tier);
    tier->requests[request].next = tier->unused;
    tier->unused = request;
    tier->in_flight--;
    pthread_mutex_unlock(&tier->lock);
}

void tier_tell(struct kv_tier *tier, uint32_t request, struct kv_tier_event *event)
{
    event->tag = tier->requests[request].tag;
    event->hash = tier->requests[request].hash;
    event->block = tier->requests[request].block;
    tier_end_request(tier, request);
    tier->config.on_event(tier->config.user, event);
}

void tier_tell_failed(struct kv_tier *tier, uint32_t request, enum kv_tier_event_kind kind, status_t status)
{
    *(kind == KV_TIER_LOAD_FAILED ? &tier->counts.load_failures : &tier->counts.store_failures) += 1;
    tier_tell(tier, request, &(struct kv_tier_event){.kind = kind, .status = status});
}

void tier_tell_about(struct kv_tier *tier, enum kv_tier_event_kind kind, struct kv_hash hash, enum kv_tier_kind where)
{
    tier->config.on_event(tier->config.user, &(struct kv_tier_event){.kind = kind, .hash = hash, .tier = where});
}
