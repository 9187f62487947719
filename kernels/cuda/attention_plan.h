/* attention_plan: which kernels one kernels_attention() becomes on a device, and their launches.
 * Flow:    cuda_backend (kernels_attention) -> [attention_plan] -> driver.launch
 * Thread:  any; pure.
 * Memory:  none; the backend owns the scratch.
 *
 * Rows of sequences with more than one row go to the prefill kernel: a block for every 64 packed rows (token x q
 * head of a kv head). Those with one row go to the decode kernel, whose warps share out the contexts of all of
 * them and join what they found. A call with both launches both. What tensor cores do not take (f32, a head_dim
 * that is no multiple of 16, a KV dtype of another 16-bit kind than the activations) goes to a plain kernel, a
 * warp for each row and head.
 * Nothing here looks at what pointers lead to: a launch recorded in a graph serves any sequences. */
#ifndef BATON_KERNELS_CUDA_ATTENTION_PLAN_H
#define BATON_KERNELS_CUDA_ATTENTION_PLAN_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/cuda/attention_args.h"
#include "kernels/cuda/kernel_list.h"
#include "kernels/cuda/launch.h"
#include "kernels/kernels.h"

/* What does not change while a handle lives. */
struct cuda_attention_device {
    uint32_t arch;             /* as cuda_device_info */
    uint32_t sm_count;
    uint32_t shared_bytes_max;
    bool deterministic;
    bool use_sm90; /* the Hopper kernel, once it has been found to compute right on this chip */
};

/* Device memory for the calls of one handle, one call at a time (one stream). */
struct cuda_attention_scratch {
    void *pieces;   /* 16-byte aligned; any content */
    size_t piece_bytes;
    void *arrivals; /* 16-byte aligned; zero-filled once by the backend; every launch leaves it zero */
    size_t arrival_bytes;
};

/* Bytes of both areas for every call with these shapes (kv.layout, q_heads and dtype of `call` are read, no
 * pointers) and up to `sequences_max` sequences; `context_max` tokens in the longest. The pointers of
 * *ret_scratch are left NULL. Where the pieces of deterministic decoding would need more than 64 MiB,
 * less is asked for, and longer batches are walked with less parallelism, to the same bits. */
void cuda_attention_scratch_need(const struct cuda_attention_device *device, const struct kernels_attention *call,
                                 uint32_t sequences_max, uint32_t context_max,
                                 struct cuda_attention_scratch *ret_scratch);

#define CUDA_ATTENTION_LAUNCHES_MAX 2u

struct cuda_attention_launch {
    enum cuda_kernel kernel;
    struct cuda_launch shape;
    struct cuda_attention_args args;
};

/* Writes the launches of a call, to be queued in order on one stream.
 * call           `kv.pool`, q and out are device addresses; `sequences` is the host's address in the exchange,
 *                which is translated; kv.layout.order is KV_ORDER_ROWS. rows, row_count_max and sequence_count
 *                size the launches.
 * exchange_host, exchange_device  where the exchange that holds the sequences and tables starts
 * scratch        of at least cuda_attention_scratch_need()
 * Returns their number, 0 .. CUDA_ATTENTION_LAUNCHES_MAX. */
uint32_t cuda_attention_plan(const struct cuda_attention_device *device, const struct kernels_attention *call,
                             const void *exchange_host, const void *exchange_device,
                             const struct cuda_attention_scratch *scratch,
                             struct cuda_attention_launch ret_launches[CUDA_ATTENTION_LAUNCHES_MAX]);

#endif
