/* kv_convert: a slice of KV in another shape, in plain C. For tests: the oracle of kernels/cuda/slots.cu.
 * Flow:    fake_memory, slots_test -> [kv_convert]
 * Thread:  any.
 * Memory:  none.
 *
 * What kv_memory.h says of struct kv_memory_form, value by value as kv/kv_layout.h places them. */
#ifndef BATON_TESTS_KV_MEMORY_KV_CONVERT_H
#define BATON_TESTS_KV_MEMORY_KV_CONVERT_H

#include "kv/kv_layout.h"

/* from, to  slices of layouts that differ in dtype and order alone; no overlap */
void kv_convert(const struct kv_layout *from_layout, const unsigned char *from, const struct kv_layout *to_layout, unsigned char *to);

#endif
