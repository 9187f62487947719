#include "tests/unit/heap/counting_heap.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

static _Atomic uint64_t allocations;
static _Atomic uint64_t fails_at; /* by number; 0: none */

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *old, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);

static bool fails(void) { return atomic_fetch_add(&allocations, 1) + 1 == atomic_load(&fails_at); }

void *__wrap_malloc(size_t bytes) { return fails() ? NULL : __real_malloc(bytes); }

void *__wrap_calloc(size_t count, size_t bytes) { return fails() ? NULL : __real_calloc(count, bytes); }

void *__wrap_realloc(void *old, size_t bytes) { return fails() ? NULL : __real_realloc(old, bytes); }

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, bytes);
}

uint64_t heap_allocations(void) { return atomic_load(&allocations); }

void heap_fail_next(uint64_t k) { atomic_store(&fails_at, k == 0 ? 0 : atomic_load(&allocations) + k); }
