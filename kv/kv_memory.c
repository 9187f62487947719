#include "kv/kv_memory.h"

#include "base/check.h"

/* GATHER and SCATTER whose pieces are not the ranges' bytes. */
static void check_form(const struct kv_memory_op *op)
{
    const struct kv_layout *pool = &op->form->pool, *slot = &op->form->slot;
    CHECK(pool->block_tokens == slot->block_tokens);
    CHECK(pool->block_tokens % KV_TILE_TOKENS == 0);
    CHECK(pool->layer_count == slot->layer_count);
    CHECK(pool->kv_heads == slot->kv_heads);
    CHECK(pool->head_dim == slot->head_dim);
    CHECK(pool->head_dim % 2 == 0);
    CHECK((unsigned)pool->dtype < DTYPE_KV_COUNT);
    CHECK((unsigned)slot->dtype < DTYPE_KV_COUNT);
    CHECK((unsigned)pool->order < KV_ORDER_COUNT);
    CHECK((unsigned)slot->order < KV_ORDER_COUNT);
    CHECK(op->range_bytes == kv_layout_slice_bytes(pool));
    CHECK(kv_layout_slice_bytes(slot) <= KV_MEMORY_RANGE_BYTES_MAX);
}

void kv_memory_op_check(const struct kv_memory *memory, const struct kv_memory_op *op)
{
    CHECK(op->done != NULL);
    if (op->kind == KV_MEMORY_PASSED) {
        CHECK(op->count == 0);
        CHECK(op->mark == 0);
        CHECK(op->queue != NULL);
        return;
    }
    CHECK(op->count >= 1);
    CHECK(op->count <= KV_MEMORY_RANGES_MAX);
    CHECK(op->range_bytes > 0);
    CHECK(op->range_bytes <= KV_MEMORY_RANGE_BYTES_MAX);
    CHECK(op->range_bytes <= memory->pool_bytes);
    CHECK(op->range_bytes % KV_MEMORY_ALIGN == 0);
    for (uint32_t i = 0; i < op->count; i++) {
        CHECK(op->offsets[i] % KV_MEMORY_ALIGN == 0);
        CHECK(op->offsets[i] <= memory->pool_bytes - op->range_bytes);
        if (op->kind == KV_MEMORY_COPY) { CHECK(op->peer_offsets[i] % KV_MEMORY_ALIGN == 0); }
    }
    bool uses_host = op->kind == KV_MEMORY_READ || op->kind == KV_MEMORY_WRITE;
    bool uses_slot = op->kind == KV_MEMORY_GATHER || op->kind == KV_MEMORY_SCATTER;
    if (uses_host) { CHECK(op->host != NULL); }
    if (uses_host) { CHECK((uintptr_t)op->host % KV_MEMORY_ALIGN == 0); }
    if (uses_slot) { CHECK(op->slot != NULL); }
    if (uses_slot) { CHECK((uintptr_t)op->slot % KV_MEMORY_ALIGN == 0); }
    if (uses_slot && op->form != NULL) { check_form(op); }
    if (op->kind == KV_MEMORY_COPY) { CHECK(op->peer != NULL); }
    if (op->kind == KV_MEMORY_CHECKSUM || op->kind == KV_MEMORY_COPY) {
        CHECK(op->event < KV_MEMORY_EVENTS || op->event == KV_MEMORY_EVENT_NONE);
    }
}
