/* set_scalar: the set of plain C, for any machine. */
#include "kernels/cpu/vec_scalar.h"

#define SET_SYMBOL set_scalar
#define SET_ISA "scalar"
#define SET_NAME "cpu-plain16-v2"
#define GEMM_PANELS 1

#include "kernels/cpu/set_impl.h"
