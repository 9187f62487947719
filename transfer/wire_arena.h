/* wire_arena: unpacks a protobuf message into a buffer of fixed size, so that foreign bytes
 * can never make us allocate.
 * Thread:  the caller's.
 * Memory:  the caller's buffer; a message that needs more fails to unpack. */
#ifndef BATON_TRANSFER_WIRE_ARENA_H
#define BATON_TRANSFER_WIRE_ARENA_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

struct wire_arena {
    ProtobufCAllocator allocator; /* give this to <message>__unpack */
    uint8_t *memory;
    size_t size, used;
};

static inline void *wire_arena_alloc(void *data, size_t size)
{
    struct wire_arena *arena = data;
    size_t start = (arena->used + 15) & ~(size_t)15;
    if (start > arena->size || size > arena->size - start) { return NULL; }
    arena->used = start + size;
    return arena->memory + start;
}

static inline void wire_arena_free(void *data, void *pointer)
{
    (void)data; /* the whole buffer goes at once */
    (void)pointer;
}

/* memory must be aligned to 16 bytes. */
static inline void wire_arena_init(struct wire_arena *arena, void *memory, size_t size)
{
    arena->allocator = (ProtobufCAllocator){.alloc = wire_arena_alloc, .free = wire_arena_free, .allocator_data = arena};
    arena->memory = memory;
    arena->size = size;
    arena->used = 0;
}

#endif
