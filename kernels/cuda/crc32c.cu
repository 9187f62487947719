/* crc32c: checksums of ranges of device memory, a block of threads for each piece of a range. See rows_args.h.
 *
 * A checksum is a remainder in GF(2)[x] modulo P, so it is linear: what a vector of 16 bytes adds depends on the vector
 * and on how many bytes follow it. Thread t takes the vectors t, t + T, t + 2T ... counted so that the last round is
 * full, and goes on by Horner's rule: what it has so far moves T vectors further with each of its own, by 16 look-ups.
 * At the end it stands (T vectors) too far by t vectors, which a product with x^(-128 t) takes back; the sums of all
 * threads are joined by exclusive or, moved past the bytes of the range that follow the piece, and joined with those of
 * the other pieces.
 *
 * Bytes  the ranges once; 16 look-ups in shared memory for each 16 bytes, some 3 of them at once in one bank, make
 *        about 9 bytes a cycle on each SM.
 * Source V. Gopal et al., "Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction", 2011, for joining. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/rows_args.h"

#define POLYNOMIAL 0x82f63b78u /* reflected: bit 31 is x^0 */

DEVICE_FN uint32_t times_x(uint32_t a) { return a >> 1 ^ (a & 1u ? POLYNOMIAL : 0u); }

DEVICE_FN uint32_t product(uint32_t a, uint32_t b)
{
    uint32_t sum = 0;
    for (uint32_t bit = 0; bit < 32; bit++) {
        sum ^= a & 0x80000000u >> bit ? b : 0u;
        b = times_x(b);
    }
    return sum;
}

/* Warp: the exclusive or over the lanes, in all. */
DEVICE_FN uint32_t warp_joined(uint32_t v)
{
    for (uint32_t mask = 1; mask < CUDA_WARP; mask *= 2) { v ^= shuffle_xor(v, mask); }
    return v;
}

extern "C" __global__ void __launch_bounds__(CUDA_CRC32C_THREADS) cuda_crc32c(const __grid_constant__ struct cuda_crc32c_args a)
{
    launch_begin();
    uint32_t(*table)[256] = (uint32_t(*)[256])(void *)device_shared(); /* [16 bytes of a vector][value] */
    uint32_t *partial = (uint32_t *)(void *)(device_shared() + 16 * 256 * 4);
    const struct cuda_crc32c_range range = a.ranges[blockIdx.y];
    const uint32_t piece_first = blockIdx.x * CUDA_CRC32C_PIECE;
    if (piece_first >= range.bytes) { return; }
    const uint32_t piece_bytes = range.bytes - piece_first < CUDA_CRC32C_PIECE ? range.bytes - piece_first : CUDA_CRC32C_PIECE;
    const uint32_t after = range.bytes - piece_first - piece_bytes;

    for (uint32_t byte = 0; byte < 16; byte++) { /* CUDA_CRC32C_THREADS values each, one a thread */
        uint32_t sum = 0;
#pragma unroll
        for (uint32_t bit = 0; bit < 8; bit++) { sum ^= threadIdx.x >> bit & 1u ? a.stride_basis[8 * byte + bit] : 0u; }
        table[byte][threadIdx.x] = sum;
    }
    block_sync();

    const unsigned char *data = (const unsigned char *)a.base + range.offset + piece_first;
    const uint32_t vectors = piece_bytes / 16, rounds = (vectors + CUDA_CRC32C_THREADS - 1) / CUDA_CRC32C_THREADS;
    const uint32_t missing = rounds * CUDA_CRC32C_THREADS - vectors; /* in the first round */
    uint32_t state = 0;
    for (uint32_t round = 0; round < rounds; round++) {
        const uint32_t n = round * CUDA_CRC32C_THREADS + threadIdx.x;
        if (n < missing) { continue; } /* zeros before all else change nothing */
        words4 v = load16(data + (uint64_t)(n - missing) * 16);
        /* The register starts as all ones, which is the same as turning over the first four bytes. */
        if (piece_first == 0 && n == missing) { v.w[0] ^= 0xffffffffu; }
        v.w[0] ^= state;
        state = 0;
#pragma unroll
        for (uint32_t word = 0; word < 4; word++) {
#pragma unroll
            for (uint32_t byte = 0; byte < 4; byte++) { state ^= table[4 * word + byte][v.w[word] >> 8 * byte & 0xffu]; }
        }
    }
    state = warp_joined(product(state, a.lane_shift[threadIdx.x]));
    if (lane_id() == 0) { partial[warp_id()] = state; }
    block_sync();
    if (warp_id() != 0) { return; }
    state = warp_joined(lane_id() < CUDA_CRC32C_THREADS / CUDA_WARP ? partial[lane_id()] : 0u);

    /* x^(8 * after), a factor in each lane for a bit of `after`. */
    uint32_t power = after >> lane_id() & 1u ? a.byte_power[lane_id()] : 0x80000000u;
    for (uint32_t mask = 1; mask < CUDA_WARP; mask *= 2) { power = product(power, shuffle_xor(power, mask)); }
    if (lane_id() == 0) { (void)atomic_xor_u32(&a.ret_crcs[blockIdx.y], product(state, power) ^ (piece_first == 0 ? 0xffffffffu : 0u)); }
}
