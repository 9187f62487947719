/* arena: memory that is handed out piece by piece and taken back all at once.
 * Flow:    codecs and parsers take from it; the end of a message or request resets it.
 * Thread:  one at a time.
 * Memory:  grows by chunks up to a limit; reset keeps what it has grown to, as one chunk, so
 *          that a settled loop allocates nothing. */
#ifndef BATON_BASE_ARENA_H
#define BATON_BASE_ARENA_H

#include <stddef.h>

struct arena_chunk;

struct arena {
    struct arena_chunk *chunks; /* newest first */
    size_t used;                /* of the newest chunk */
    size_t taken_bytes;         /* over all chunks, padding too */
    size_t limit_bytes;
};

/* Starts empty. limit_bytes bounds all that is taken between two resets. */
void arena_init(struct arena *arena, size_t limit_bytes);
void arena_fini(struct arena *arena);

/* Forgets everything; pointers into it are dead. */
void arena_reset(struct arena *arena);

/* 16-byte aligned, not cleared. NULL: over the limit, or the machine has no memory. */
void *arena_take(struct arena *arena, size_t bytes);

/* As arena_take for count elements, cleared; NULL also when the product overflows. */
void *arena_take_array(struct arena *arena, size_t count, size_t element_bytes);

#endif
