/* emu: runs the kernels of kernels/cuda on this machine's processor, one device thread after another.
 * Flow:    the emulated device, tests of kernels -> [emu] -> a kernel's text, compiled by the C++ compiler
 * Thread:  any; launches on several threads at once are independent. A launch uses the caller's thread, and as many
 *          more as emu_threads() asked for.
 * Memory:  a pool of stacks for each thread that ever launched, freed when that thread ends.
 *
 * A block's threads are fibers. A fiber runs until it meets the others (a barrier, a shuffle, a matrix product), then
 * another goes on: which one follows from a seed, so that a kernel that needs a barrier it does not have computes
 * something else for some seed, and always the same for one seed.
 *
 * What is held against a kernel, with its name, block, thread and line: a barrier or a warp's operation that not all
 * reach; that they reach at different lines where the chip wants one instruction; an address that is not aligned, or
 * lies beside the block's shared memory; a thread of an early kernel that touches memory before launch_wait(), or leaves without. Shared memory starts as NaN (all bits set). A copy_async lands at the last
 * moment at which it may, and what it overwrites is gone at the first. */
#ifndef BATON_TESTS_CUDA_EMU_H
#define BATON_TESTS_CUDA_EMU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/kernel_list.h"
#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EMU_SHARED_BYTES_MAX 232448u /* of sm_90 */

struct emu_fault {
    char text[512]; /* a sentence */
};

/* A kernel that is in no list: those of tests. */
struct emu_kernel {
    const char *name;
    void (*enter)(const void *args); /* calls the kernel with a copy of *args */
    size_t args_bytes;
    bool is_early; /* of CUDA_KERNELS_EARLY: each thread must launch_wait(), and touch nothing before */
};

/* Runs all blocks of a kernel. Borrows. A shape without blocks runs nothing.
 * False: the kernel broke a rule, or the shape or args_bytes are none that the device would take; blocks may have run. */
bool emu_launch_kernel(const struct emu_kernel *kernel, const struct cuda_launch *shape, const void *args, size_t args_bytes,
                       struct emu_fault *ret_fault);

/* The same of a kernel of kernel_list.h. In emu_kernels.cc, with the texts of all of them. */
bool emu_launch(enum cuda_kernel kernel, const struct cuda_launch *shape, const void *args, size_t args_bytes,
                struct emu_fault *ret_fault);
const struct emu_kernel *emu_kernel_of(enum cuda_kernel kernel);

/* Order of everything from here on, on all threads. The first seed is that of the environment's EMU_SEED, or 1. */
void emu_seed(uint64_t seed);

/* Over how many threads of this machine the blocks of one launch are shared out; 1 at first. */
void emu_threads(uint32_t threads);

#ifdef __cplusplus
}
#endif

#endif
