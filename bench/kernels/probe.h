/* probe: what the machine can do at most, measured beside what is judged by it.
 * Thread:  starts its own; one call at a time.
 * Memory:  the caller's buffer. */
#ifndef BATON_BENCH_KERNELS_PROBE_H
#define BATON_BENCH_KERNELS_PROBE_H

#include <stddef.h>
#include <stdint.h>

/* The clock that the probes and what is judged by them are timed with: this process's CPU time for
 * one thread, so that a slice lost to a neighbour on the same core counts for neither side; the
 * monotonic clock for several, whose waiting for each other is part of the result. */
uint64_t probe_now_ns(uint32_t threads);

/* Bytes a second that `threads` threads read, each from its own part of the buffer, which it walks
 * as `streams` (1..8) equal runs side by side. Sums what it reads. One pass. */
double probe_read_bytes_per_s(const void *buffer, size_t bytes, uint32_t threads, uint32_t streams);

/* f32 multiplications and additions a second of fused multiply-adds on registers alone, all
 * threads together, at the widest vectors that the machine has. Some 20 ms. */
double probe_fma_flops(uint32_t threads);

/* The same of bf16 dot products (vdpbf16ps); 0 where the machine has none. */
double probe_dot_flops(uint32_t threads);

/* The same of AMX tiles: bf16 products (tdpbf16ps), and multiplications and additions of bytes (tdpbssd). 0
 * where the machine has none or the system does not grant them. Some 10 ms.
 * Written without a machine that has AMX: nobody has seen its figures yet. */
double probe_amx_bf16_flops(uint32_t threads);
double probe_amx_int8_ops(uint32_t threads);

#endif
