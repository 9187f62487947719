#include "base/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 16u
#define FIRST_CHUNK_BYTES 4096u

struct arena_chunk {
    struct arena_chunk *older;
    size_t capacity;
    _Alignas(ALIGNMENT) unsigned char bytes[];
};

void arena_init(struct arena *arena, size_t limit_bytes)
{
    *arena = (struct arena){.limit_bytes = limit_bytes};
}

static void free_chunks(struct arena_chunk *chunk)
{
    while (chunk) {
        struct arena_chunk *older = chunk->older;
        free(chunk);
        chunk = older;
    }
}

void arena_fini(struct arena *arena)
{
    free_chunks(arena->chunks);
    *arena = (struct arena){0};
}

static struct arena_chunk *chunk_create(size_t capacity)
{
    if (capacity > PTRDIFF_MAX - sizeof(struct arena_chunk)) { return NULL; } /* no object is larger */
    struct arena_chunk *chunk = malloc(sizeof *chunk + capacity);
    if (!chunk) { return NULL; }
    chunk->older = NULL;
    chunk->capacity = capacity;
    return chunk;
}

void arena_reset(struct arena *arena)
{
    if (arena->chunks && arena->chunks->older) {
        /* More than one chunk was needed: next time one of the full size will do. */
        size_t total = 0;
        for (struct arena_chunk *chunk = arena->chunks; chunk; chunk = chunk->older) { total += chunk->capacity; }
        struct arena_chunk *merged = chunk_create(total);
        if (merged) {
            free_chunks(arena->chunks);
            arena->chunks = merged;
        } else {
            free_chunks(arena->chunks->older);
            arena->chunks->older = NULL;
        }
    }
    arena->used = 0;
    arena->taken_bytes = 0;
}

void *arena_take(struct arena *arena, size_t bytes)
{
    if (bytes > SIZE_MAX - ALIGNMENT) { return NULL; }
    size_t padded = (bytes + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
    if (padded == 0) { padded = ALIGNMENT; }
    if (padded > arena->limit_bytes - arena->taken_bytes) { return NULL; }
    struct arena_chunk *chunk = arena->chunks;
    if (!chunk || chunk->capacity - arena->used < padded) {
        size_t capacity = !chunk ? FIRST_CHUNK_BYTES : chunk->capacity <= SIZE_MAX / 2 ? chunk->capacity * 2 : SIZE_MAX;
        /* More than the limit is never handed out, so it need not be there. */
        if (capacity > arena->limit_bytes - arena->taken_bytes) { capacity = arena->limit_bytes - arena->taken_bytes; }
        if (capacity < padded) { capacity = padded; }
        struct arena_chunk *fresh = chunk_create(capacity);
        if (!fresh) { return NULL; }
        fresh->older = chunk;
        arena->chunks = chunk = fresh;
        arena->used = 0;
    }
    void *memory = chunk->bytes + arena->used;
    arena->used += padded;
    arena->taken_bytes += padded;
    return memory;
}

void *arena_take_array(struct arena *arena, size_t count, size_t element_bytes)
{
    if (element_bytes != 0 && count > SIZE_MAX / element_bytes) { return NULL; }
    void *memory = arena_take(arena, count * element_bytes);
    if (memory) { memset(memory, 0, count * element_bytes); }
    return memory;
}
