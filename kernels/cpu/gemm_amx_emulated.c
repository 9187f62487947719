/* gemm_amx_emulated: see gemm_amx.h; needs AVX-512 for what surrounds the tiles. */
#define AMX_TILE_EMULATED 1
#define GEMM_AMX_PIECE gemm_amx_emulated_piece
#include "kernels/cpu/gemm_amx_impl.h"
