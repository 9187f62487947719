/* ref_kv: the oracle's part that touches KV blocks.
 * Flow:    ref (ops table) -> [ref_kv]
 * Thread:  the caller's.
 * Memory:  none. */
#ifndef BATON_KERNELS_REF_REF_KV_H
#define BATON_KERNELS_REF_REF_KV_H

#include "kernels/kernels.h"

void ref_kv_write(struct kernels *kernels, const struct kernels_kv_write *args);
void ref_attention(struct kernels *kernels, const struct kernels_attention *args);

#endif
