/* attention_prefill_bf16: the prefill kernels of bf16 activations; see attention_prefill.cuh. */
#include "kernels/cuda/attention_prefill.cuh"

ATTENTION_PREFILL_KERNELS(bf16, kv_plain<as_bf16>)
ATTENTION_PREFILL_KERNELS(bf16_fp8, kv_fp8<as_bf16>)
ATTENTION_PREFILL_KERNELS(bf16_int8, kv_int8<as_bf16>)
