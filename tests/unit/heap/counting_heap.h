/* counting_heap: every allocation of a test program is counted, and one of them can be made to fail.
 * Flow:    linking //tests/unit/heap:counting_heap sends malloc, calloc, realloc and aligned_alloc here
 * Thread:  any; one counter for all threads. */
#ifndef BATON_TESTS_UNIT_HEAP_COUNTING_HEAP_H
#define BATON_TESTS_UNIT_HEAP_COUNTING_HEAP_H

#include <stdint.h>

/* Allocations so far, failed ones too. */
uint64_t heap_allocations(void);

/* The k-th allocation from now gives NULL, once; 0: none does. */
void heap_fail_next(uint64_t k);

#endif
