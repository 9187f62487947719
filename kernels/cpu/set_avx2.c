/* set_avx2: the set of AVX2 with FMA and F16C; compiled with those flags, run only where CPUID shows them. */
#include "kernels/cpu/vec_avx2.h"

#define SET_SYMBOL set_avx2
#define SET_ISA "avx2"
#define SET_NAME "cpu-fma16-v2"
#define GEMM_PANELS 1

#include "kernels/cpu/set_impl.h"
