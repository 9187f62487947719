/* gemm_int_amx: see gemm_int_amx_impl.h; compiled with the tiles' flags, run only where gemm_int.c allows it. */
#include <stddef.h>

#define AMX_TILE_EMULATED 0
#define INT_AMX_SYMBOL gemm_int_amx
#define INT_AMX_NAME "amx"
#include "kernels/cpu/gemm_int_amx_impl.h"
