/* vec_common: what every vector type of set_impl.h needs from the compiler. */
#ifndef BATON_KERNELS_CPU_VEC_COMMON_H
#define BATON_KERNELS_CPU_VEC_COMMON_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/dtype.h"

/* Registers need everything inlined. Arrays in a debug or sanitizer build do not: instrumented and
 * inlined they take the compiler minutes. */
#if defined(VEC_IS_ARRAY) && defined(BATON_DCHECK)
#define VEC_FN static inline __attribute__((unused))
#else
#define VEC_FN static inline __attribute__((always_inline, unused))
#endif

/* Before a loop of constant length over vectors: they stay in registers only if it is unrolled. A
 * type that is an array stays in memory anyway, and unrolled would take the compiler minutes. */
#if defined(VEC_IS_ARRAY)
#define VEC_UNROLL
#elif defined(__clang__)
#define VEC_UNROLL _Pragma("clang loop unroll(full)")
#else
#define VEC_UNROLL _Pragma("GCC unroll 16")
#endif

#endif
