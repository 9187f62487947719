/* buffer: bytes that many calls send without a copy each.
 * Flow:    whoever encodes once for many -> [buffer] -> call_send
 * Thread:  any; the count of references is atomic, since the C core drops its own on its threads.
 * Memory:  one block, gone with the last reference. */
#include "rpc/rpc_internal.h"

#include <stdlib.h>

status_t rpc_buffer_create(size_t len, struct rpc_buffer **ret_buffer, uint8_t **ret_bytes)
{
    struct rpc_buffer *buffer = len <= INT32_MAX ? malloc(sizeof *buffer + len) : NULL;
    if (buffer == NULL) {
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    }
    atomic_init(&buffer->refs, 1);
    buffer->len = len;
    *ret_buffer = buffer;
    *ret_bytes = buffer->bytes;
    return STATUS_OK;
}

void rpc_buffer_ref(struct rpc_buffer *buffer)
{
    atomic_fetch_add_explicit(&buffer->refs, 1, memory_order_relaxed);
}

void rpc_buffer_unref(struct rpc_buffer *buffer)
{
    if (buffer != NULL && atomic_fetch_sub_explicit(&buffer->refs, 1, memory_order_acq_rel) == 1) {
        free(buffer);
    }
}
