/* gemm_amx: see gemm_amx.h; compiled with the tiles' flags, run only where amx_check.h allows it. */
#define AMX_TILE_EMULATED 0
#define GEMM_AMX_PIECE gemm_amx_piece
#include "kernels/cpu/gemm_amx_impl.h"
