#include "kv/kv_memory.h"

#include "base/check.h"

void kv_memory_op_check(const struct kv_memory *memory, const struct kv_memory_op *op)
{
    CHECK(op->count >= 1);
    CHECK(op->count <= KV_MEMORY_RANGES_MAX);
    CHECK(op->range_bytes > 0);
    CHECK(op->range_bytes <= KV_MEMORY_RANGE_BYTES_MAX);
    CHECK(op->range_bytes <= memory->pool_bytes);
    CHECK(op->range_bytes % KV_MEMORY_ALIGN == 0);
    CHECK(op->done != NULL);
    for (uint32_t i = 0; i < op->count; i++) {
        CHECK(op->offsets[i] % KV_MEMORY_ALIGN == 0);
        CHECK(op->offsets[i] <= memory->pool_bytes - op->range_bytes);
        if (op->kind == KV_MEMORY_COPY) { CHECK(op->peer_offsets[i] % KV_MEMORY_ALIGN == 0); }
    }
    bool uses_host = op->kind == KV_MEMORY_READ || op->kind == KV_MEMORY_WRITE;
    if (uses_host) { CHECK(op->host != NULL); }
    if (uses_host) { CHECK((uintptr_t)op->host % KV_MEMORY_ALIGN == 0); }
    if (op->kind == KV_MEMORY_COPY) { CHECK(op->peer != NULL); }
    if (op->kind == KV_MEMORY_CHECKSUM || op->kind == KV_MEMORY_COPY) {
        CHECK(op->event < KV_MEMORY_EVENTS || op->event == KV_MEMORY_EVENT_NONE);
    }
}
