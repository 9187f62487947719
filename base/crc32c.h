/* crc32c: the checksum of KV that leaves the pool, over a cable or to a tier (Castagnoli, reflected).
 * Flow:    P at push, D at landing; kv_tier at store and load
 * Thread:  any.
 * Memory:  12 KiB of tables, made once on first use.
 *
 * A crc of 0 starts; the result of one piece continues the next. "123456789" gives e3069283.
 * Cost: one pass; with SSE4.2 three interleaved streams, above 15 GB/s in cache; else a table,
 * about 1.5 GB/s. Source: the recombination of partial CRCs by multiplication with x^n, as in
 * V. Gopal et al., "Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction", 2011. */
#ifndef BATON_BASE_CRC32C_H
#define BATON_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

uint32_t crc32c(uint32_t crc, const void *data, size_t bytes);

/* Copies and sums in one pass over memory: what is summed is what was written, also when
 * another process changes the source meanwhile. No overlap. */
uint32_t crc32c_copy(uint32_t crc, void *to, const void *from, size_t bytes);

/* The table version, for machines without SSE4.2 and as the other side of the tests. */
uint32_t crc32c_portable(uint32_t crc, const void *data, size_t bytes);

#endif
