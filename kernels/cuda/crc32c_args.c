#include <stddef.h>

#include "base/check.h"
#include "kernels/cuda/rows_args.h"

#define POLYNOMIAL 0x82f63b78u /* reflected: bit 31 is x^0 */
#define ONE 0x80000000u
#define VECTOR_BITS 128u

static uint32_t times_x(uint32_t a) { return a & 1u ? a >> 1 ^ POLYNOMIAL : a >> 1; }
/* x has an inverse, since P has a constant term. */
static uint32_t over_x(uint32_t a) { return a & ONE ? (a ^ POLYNOMIAL) << 1 | 1u : a << 1; }

static uint32_t product(uint32_t a, uint32_t b)
{
    uint32_t sum = 0;
    for (uint32_t bit = 0; bit < 32; bit++) {
        if (a & ONE >> bit) { sum ^= b; }
        b = times_x(b);
    }
    return sum;
}

void cuda_crc32c_prepare(struct cuda_crc32c_args *args)
{
    /* Bit k of a vector, counted as it is summed (the low bit of the first byte first), stands 127 - k bits before the
     * vector's end; 32 bits of zeros go in behind a message, and then the vectors of the other threads. */
    uint32_t power = ONE; /* x^n */
    for (uint32_t n = 0; n < 32 + (CUDA_CRC32C_THREADS - 1) * VECTOR_BITS; n++) { power = times_x(power); }
    for (uint32_t k = VECTOR_BITS; k-- > 0;) {
        args->stride_basis[k] = power;
        power = times_x(power);
    }
    power = ONE;
    for (uint32_t t = 0; t < CUDA_CRC32C_THREADS; t++) {
        args->lane_shift[t] = power;
        for (uint32_t n = 0; n < VECTOR_BITS; n++) { power = over_x(power); }
    }
    power = ONE;
    for (uint32_t n = 0; n < 8; n++) { power = times_x(power); }
    for (uint32_t k = 0; k < 32; k++) {
        args->byte_power[k] = power;
        power = product(power, power);
    }
}

void cuda_crc32c_shape(const struct cuda_crc32c_args *args, struct cuda_launch *ret_launch)
{
    CHECK((uintptr_t)args->base % 16 == 0);
    CHECK(args->range_count <= CUDA_CRC32C_RANGES_MAX);
    CHECK(args->bytes_max % 16 == 0);
    const uint32_t pieces = args->bytes_max / CUDA_CRC32C_PIECE + (args->bytes_max % CUDA_CRC32C_PIECE != 0);
    *ret_launch = (struct cuda_launch){.grid = {pieces, args->range_count, 1},
                                       .block = {CUDA_CRC32C_THREADS, 1, 1},
                                       .shared_bytes = 16 * 256 * 4 + CUDA_CRC32C_THREADS / 32 * 4};
}
