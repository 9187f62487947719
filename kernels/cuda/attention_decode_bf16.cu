/* attention_decode_bf16: the decode kernels of bf16 activations; see attention_decode.cuh. */
#include "kernels/cuda/attention_decode.cuh"

ATTENTION_DECODE_KERNELS(bf16, kv_plain<as_bf16>)
ATTENTION_DECODE_KERNELS(bf16_fp8, kv_fp8<as_bf16>)
ATTENTION_DECODE_KERNELS(bf16_int8, kv_int8<as_bf16>)
