/* vec_common: what every vector type of set_impl.h needs from the compiler. */
#ifndef BATON_KERNELS_CPU_VEC_COMMON_H
#define BATON_KERNELS_CPU_VEC_COMMON_H

#include <stdint.h>
#include <string.h>

#include "base/dtype.h"

#define VEC_FN static inline __attribute__((always_inline, unused))

/* Before a loop of constant length over vectors: they stay in registers only if it is unrolled. */
#if defined(__clang__)
#define VEC_UNROLL _Pragma("clang loop unroll(full)")
#else
#define VEC_UNROLL _Pragma("GCC unroll 16")
#endif

#endif
