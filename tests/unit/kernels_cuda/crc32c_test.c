/* The checksums of a device are those of base/crc32c, whatever the ranges' lengths and number. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/crc32c.h"
#include "kernels/cuda/rows_args.h"
#include "tests/unit/kernels_cuda/rows_testing.h"

static void check(struct cuda_crc32c_args *args, const unsigned char *memory, const struct cuda_crc32c_range *ranges, uint32_t count,
                  uint32_t bytes_max)
{
    uint32_t crcs[64] = {0};
    assert_true(count <= 63);
    crcs[count] = 77;
    args->base = memory;
    args->ranges = ranges;
    args->range_count = count;
    args->bytes_max = bytes_max;
    args->ret_crcs = crcs;
    struct cuda_launch shape;
    cuda_crc32c_shape(args, &shape);
    launch(CUDA_KERNEL_crc32c, &shape, args, sizeof(*args));
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t want = crc32c(0, memory + ranges[i].offset, ranges[i].bytes);
        if (crcs[i] != want) { fail_msg("range %u of %u bytes: %08x, not %08x", i, ranges[i].bytes, crcs[i], want); }
    }
    assert_int_equal(crcs[count], 77);
}

static void sums_are_those_of_the_host(void **state)
{
    (void)state;
    struct random random = random_from_environment("crc32c");
    const uint32_t memory_bytes = 5 * CUDA_CRC32C_PIECE;
    unsigned char *memory = aligned_alloc(16, memory_bytes);
    struct cuda_crc32c_args *args = calloc(1, sizeof(*args));
    assert_non_null(memory);
    assert_non_null(args);
    for (uint32_t i = 0; i < memory_bytes; i++) { memory[i] = (unsigned char)random_word(&random); }
    cuda_crc32c_prepare(args);
    /* Every edge: none, one vector, a round of all threads and one more or less, a piece and one more or less. */
    const uint32_t round = CUDA_CRC32C_THREADS * 16, piece = CUDA_CRC32C_PIECE;
    const uint32_t lengths[] = {0, 16, 32, 48, round - 16, round, round + 16, 3 * round - 16, piece - 16, piece, piece + 16, 2 * piece, 3 * piece + round + 32};
    struct cuda_crc32c_range ranges[63];
    uint32_t count = 0;
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        ranges[count++] = (struct cuda_crc32c_range){.offset = random_range(&random, 0, (memory_bytes - lengths[i]) / 16) * 16, .bytes = lengths[i]};
    }
    check(args, memory, ranges, count, 4 * piece);
    for (uint32_t turn = 0; turn < 6; turn++) {
        count = random_range(&random, 1, 8);
        for (uint32_t i = 0; i < count; i++) {
            const uint32_t bytes = random_range(&random, 0, 2 * piece / 16) * 16;
            ranges[i] = (struct cuda_crc32c_range){.offset = random_range(&random, 0, (memory_bytes - bytes) / 16) * 16, .bytes = bytes};
        }
        check(args, memory, ranges, count, 2 * piece);
    }
    /* A bit anywhere changes the sum. */
    ranges[0] = (struct cuda_crc32c_range){.offset = 0, .bytes = 4096 + 32};
    for (uint32_t turn = 0; turn < 20; turn++) {
        memory[random_range(&random, 0, 4127)] ^= (unsigned char)(1u << random_range(&random, 0, 7));
        check(args, memory, ranges, 1, 4128);
    }
    memset(memory, 0, memory_bytes); /* zeros, leading ones above all, count */
    count = 0;
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) { ranges[count++] = (struct cuda_crc32c_range){.bytes = lengths[i]}; }
    check(args, memory, ranges, count, 4 * piece);
    check(args, memory, ranges, 0, 4 * piece);
    free(memory);
    free(args);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sums_are_those_of_the_host)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
