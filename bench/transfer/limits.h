/* limits: what the cables are held against, measured between their own rounds.
 * Thread:  one; some fork a process for as long as they run. */
#ifndef BATON_BENCH_TRANSFER_LIMITS_H
#define BATON_BENCH_TRANSFER_LIMITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct limit {
    double gbps;     /* bytes by time, 1e9; 0: could not be measured */
    double cpu_gbps; /* bytes by CPU time of all that took part; 0: not known */
};

/* One core copies mib MiB of slices from scattered places to scattered places. The two buffers are kept. */
struct limit limit_memcpy(uint32_t slice_bytes, uint32_t mib);

/* One plain TCP connection over loopback between two processes: mib MiB out of one warm buffer of 128 KiB into another,
 * as iperf3 does it, without any framing or sums. */
struct limit limit_stream(uint32_t mib);

/* The same by iperf3; zeros where it is not installed. */
struct limit limit_iperf3(uint32_t mib);

/* GPU `device` copies slices as limit_memcpy() does, on one stream. False: ret_why says what is missing; that there is no
 * GPU here is one answer. */
bool limit_gpu_copy(uint32_t device, uint32_t slice_bytes, uint32_t mib, struct limit *ret_limit, char *ret_why, size_t why_size);

#endif
