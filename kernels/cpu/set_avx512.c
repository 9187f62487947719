/* set_avx512: the set of AVX-512 F, BW, DQ, VL; compiled with those flags, run only where CPUID shows them. */
#include "kernels/cpu/vec_avx512.h"

#define SET_SYMBOL set_avx512
#define SET_ISA "avx512"
#define SET_NAME "cpu-fma16-v2"
#define GEMM_PANELS 4

#include "kernels/cpu/set_impl.h"
