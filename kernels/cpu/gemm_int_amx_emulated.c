/* gemm_int_amx_emulated: see gemm_int_amx_impl.h; needs AVX-512 for what surrounds the tiles. */
#include <stddef.h>

#define AMX_TILE_EMULATED 1
#define INT_AMX_SYMBOL gemm_int_amx_emulated
#define INT_AMX_NAME "amx-emulated"
#include "kernels/cpu/gemm_int_amx_impl.h"
