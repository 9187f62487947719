/* kernel_list: the entry points of all .cu files, once each.
 * Flow:    an author appends X(name, args) to the section of his area, in the commit that brings the
 *          kernel; enum cuda_kernel, the look-up in the fatbins, the emulator's table and
 *          driver_link_test all follow from this list.
 * Thread:  none; the preprocessor's.
 *
 * X(name, args) stands for
 *     extern "C" __global__ void cuda_<name>(const struct <args> a);
 * so variants that a macro stamps out of one template share one args struct:
 *     X(attention_bf16_128, cuda_attention_args) X(attention_bf16_64, cuda_attention_args)
 * The header that declares the struct is included by whoever needs its size. */
#ifndef BATON_KERNELS_CUDA_KERNEL_LIST_H
#define BATON_KERNELS_CUDA_KERNEL_LIST_H

/* rows.cu and crc32c.cu, args in rows_args.h */
#define CUDA_KERNELS_ROWS(X)                 \
    X(embed, cuda_embed_args)                \
    X(rmsnorm, cuda_rmsnorm_args)            \
    X(layernorm, cuda_layernorm_args)        \
    X(rope, cuda_rope_args)                  \
    X(map, cuda_map_args)                    \
    X(gather_rows, cuda_gather_rows_args)    \
    X(crc32c, cuda_crc32c_args)

/* kv_write.cu, args in kv_args.h */
#define CUDA_KERNELS_KV(X)            \
    X(kv_write, cuda_kv_write_args)   \
    X(qkv_store, cuda_qkv_store_args)

/* slots.cu, args in slots_args.h */
#define CUDA_KERNELS_SLOTS(X)               \
    X(slots_copy, cuda_slots_copy_args)     \
    X(slots_convert, cuda_slots_convert_args)

/* attention_*.cu, args in attention_args.h */
#define CUDA_KERNELS_ATTENTION(X)                           \
    X(attention_plain, cuda_attention_args)                 \
    X(attention_prefill_bf16_64, cuda_attention_args)       \
    X(attention_prefill_bf16_128, cuda_attention_args)      \
    X(attention_prefill_bf16_256, cuda_attention_args)      \
    X(attention_prefill_bf16_fp8_64, cuda_attention_args)   \
    X(attention_prefill_bf16_fp8_128, cuda_attention_args)  \
    X(attention_prefill_bf16_fp8_256, cuda_attention_args)  \
    X(attention_prefill_bf16_int8_64, cuda_attention_args)  \
    X(attention_prefill_bf16_int8_128, cuda_attention_args) \
    X(attention_prefill_bf16_int8_256, cuda_attention_args) \
    X(attention_prefill_f16_64, cuda_attention_args)        \
    X(attention_prefill_f16_128, cuda_attention_args)       \
    X(attention_prefill_f16_256, cuda_attention_args)       \
    X(attention_prefill_f16_fp8_64, cuda_attention_args)    \
    X(attention_prefill_f16_fp8_128, cuda_attention_args)   \
    X(attention_prefill_f16_fp8_256, cuda_attention_args)   \
    X(attention_prefill_f16_int8_64, cuda_attention_args)   \
    X(attention_prefill_f16_int8_128, cuda_attention_args)  \
    X(attention_prefill_f16_int8_256, cuda_attention_args)  \
    X(attention_decode_bf16_64, cuda_attention_args)        \
    X(attention_decode_bf16_128, cuda_attention_args)       \
    X(attention_decode_bf16_256, cuda_attention_args)       \
    X(attention_decode_bf16_fp8_64, cuda_attention_args)    \
    X(attention_decode_bf16_fp8_128, cuda_attention_args)   \
    X(attention_decode_bf16_fp8_256, cuda_attention_args)   \
    X(attention_decode_bf16_int8_64, cuda_attention_args)   \
    X(attention_decode_bf16_int8_128, cuda_attention_args)  \
    X(attention_decode_bf16_int8_256, cuda_attention_args)  \
    X(attention_decode_f16_64, cuda_attention_args)         \
    X(attention_decode_f16_128, cuda_attention_args)        \
    X(attention_decode_f16_256, cuda_attention_args)        \
    X(attention_decode_f16_fp8_64, cuda_attention_args)     \
    X(attention_decode_f16_fp8_128, cuda_attention_args)    \
    X(attention_decode_f16_fp8_256, cuda_attention_args)    \
    X(attention_decode_f16_int8_64, cuda_attention_args)    \
    X(attention_decode_f16_int8_128, cuda_attention_args)   \
    X(attention_decode_f16_int8_256, cuda_attention_args)   \
    X(attention_sm90_bf16_64, cuda_attention_args)          \
    X(attention_sm90_bf16_128, cuda_attention_args)         \
    X(attention_sm90_f16_64, cuda_attention_args)           \
    X(attention_sm90_f16_128, cuda_attention_args)

/* sample*.cu, args in sample_args.h */
#define CUDA_KERNELS_SAMPLE(X)              \
    X(sample_adjust, cuda_sample_args)       \
    X(sample_scan, cuda_sample_args)         \
    X(sample_histogram, cuda_sample_args)    \
    X(sample_select, cuda_sample_args)       \
    X(sample_select_again, cuda_sample_args) \
    X(sample_draw, cuda_sample_args)

/* gemv.cu, args in gemv_args.h */
#define CUDA_KERNELS_GEMV(X)          \
    X(gemv_bf16, cuda_gemv_args)      \
    X(gemv_f16, cuda_gemv_args)       \
    X(gemv_f32, cuda_gemv_args)       \
    X(gemv_silu_bf16, cuda_gemv_args) \
    X(gemv_silu_f16, cuda_gemv_args)  \
    X(gemv_silu_f32, cuda_gemv_args)

#define CUDA_KERNELS(X)       \
    CUDA_KERNELS_ROWS(X)      \
    CUDA_KERNELS_KV(X)        \
    CUDA_KERNELS_SLOTS(X)     \
    CUDA_KERNELS_ATTENTION(X) \
    CUDA_KERNELS_SAMPLE(X)    \
    CUDA_KERNELS_GEMV(X)

/* Those that may start while the launch before them still runs: their texts begin with launch_begin(), or keep what it
 * says (device.cuh). A kernel that is none may stand between them: it starts when all before it is done. */
#define CUDA_KERNELS_EARLY(X) \
    CUDA_KERNELS_ROWS(X)      \
    CUDA_KERNELS_KV(X)        \
    CUDA_KERNELS_ATTENTION(X) \
    CUDA_KERNELS_SAMPLE(X)    \
    CUDA_KERNELS_GEMV(X)

/* CUDA_KERNEL_embed is the kernel cuda_embed. */
#define CUDA_KERNEL_ENUMERATOR(name, args) CUDA_KERNEL_##name,
enum cuda_kernel { CUDA_KERNELS(CUDA_KERNEL_ENUMERATOR) CUDA_KERNEL_COUNT };
#undef CUDA_KERNEL_ENUMERATOR

#endif
