/* Blocks from and to the pool: by the CPU, or, where the pool lies on a device, by its kv_memory. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "kv/tier_state.h"

static uint8_t *pool_block(struct kv_tier *tier, uint32_t block) { return (uint8_t *)tier->config.pool + (size_t)block * tier->config.block_bytes; }

status_t tier_pool_open(struct kv_tier *tier, struct diag *diag)
{
    if (tier->config.memory == NULL) { return STATUS_OK; }
    void *bounce = NULL;
    tier->op = calloc(1, sizeof *tier->op);
    if (tier->op == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    TRY(kv_memory_inbox_init(&tier->inbox));
    TRY(kv_memory_host_alloc(tier->config.memory, tier->config.block_bytes, &bounce, diag));
    tier->bounce = bounce;
    return STATUS_OK;
}

void tier_pool_close(struct kv_tier *tier)
{
    if (tier->config.memory == NULL) { return; }
    if (tier->bounce != NULL) { kv_memory_host_free(tier->config.memory, tier->bounce); }
    kv_memory_inbox_fini(&tier->inbox);
    free(tier->op);
}

status_t tier_staging_alloc(struct kv_tier *tier, size_t bytes, struct diag *diag)
{
    void *staging = NULL;
    if (tier->config.memory != NULL) {
        TRY(kv_memory_host_alloc(tier->config.memory, bytes, &staging, diag));
    } else if (posix_memalign(&staging, TIER_DISK_ALIGN, bytes) != 0) {
        diag_set(diag, "disk tier: no memory for its buffers");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    } else {
        memset(staging, 0, bytes); /* what rounds a block up is written too */
    }
    tier->staging = staging;
    return STATUS_OK;
}

void tier_staging_free(struct kv_tier *tier)
{
    if (tier->staging == NULL) { return; }
    if (tier->config.memory != NULL) {
        kv_memory_host_free(tier->config.memory, tier->staging);
    } else {
        free(tier->staging);
    }
}

/* Blocks that tiers hold are final, and those they fill are nobody else's: there is no mark to wait for. */
static status_t op_do(struct kv_tier *tier, enum kv_memory_op_kind kind, uint32_t block, uint8_t *host)
{
    struct kv_memory_op *op = tier->op;
    op->kind = kind;
    op->count = 1;
    op->range_bytes = tier->config.block_bytes;
    op->mark = 0;
    op->offsets[0] = (uint64_t)block * tier->config.block_bytes;
    op->host = host;
    op->event = KV_MEMORY_EVENT_NONE;
    op->done = kv_memory_inbox_put;
    op->user = &tier->inbox;
    kv_memory_submit(tier->config.memory, op);
    while (kv_memory_inbox_take_all(&tier->inbox) == NULL) { kv_memory_inbox_wait(&tier->inbox); }
    return op->status;
}

status_t tier_pool_read(struct kv_tier *tier, uint32_t block, uint8_t *to, bool is_staging, uint32_t *ret_crc)
{
    const size_t bytes = tier->config.block_bytes;
    if (tier->config.memory == NULL) {
        *ret_crc = crc32c_copy(0, to, pool_block(tier, block), bytes);
        return STATUS_OK;
    }
    TRY(op_do(tier, KV_MEMORY_READ, block, is_staging ? to : tier->bounce));
    *ret_crc = is_staging ? crc32c(0, to, bytes) : crc32c_copy(0, to, tier->bounce, bytes);
    return STATUS_OK;
}

status_t tier_pool_write(struct kv_tier *tier, uint32_t block, uint8_t *from, bool is_staging, uint32_t *ret_crc)
{
    const size_t bytes = tier->config.block_bytes;
    if (tier->config.memory == NULL) {
        *ret_crc = crc32c_copy(0, pool_block(tier, block), from, bytes);
        return STATUS_OK;
    }
    *ret_crc = is_staging ? crc32c(0, from, bytes) : crc32c_copy(0, tier->bounce, from, bytes);
    return op_do(tier, KV_MEMORY_WRITE, block, is_staging ? from : tier->bounce);
}
