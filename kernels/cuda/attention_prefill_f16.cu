/* attention_prefill_f16: the prefill kernels of f16 activations; see attention_prefill.cuh. */
#include "kernels/cuda/attention_prefill.cuh"

ATTENTION_PREFILL_KERNELS(f16, kv_plain<as_f16>)
ATTENTION_PREFILL_KERNELS(f16_fp8, kv_fp8<as_f16>)
ATTENTION_PREFILL_KERNELS(f16_int8, kv_int8<as_f16>)
