/* attention_decode_f16: the decode kernels of f16 activations; see attention_decode.cuh. */
#include "kernels/cuda/attention_decode.cuh"

ATTENTION_DECODE_KERNELS(f16, kv_plain<as_f16>)
ATTENTION_DECODE_KERNELS(f16_fp8, kv_fp8<as_f16>)
ATTENTION_DECODE_KERNELS(f16_int8, kv_int8<as_f16>)
