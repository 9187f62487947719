#include "base/crc32c.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The published check values hold, for both ways of computing. RFC 3720, B.4. */
static void known_values(void **state)
{
    (void)state;
    uint8_t bytes[32];
    assert_int_equal(crc32c(0, "", 0), 0);
    assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
    memset(bytes, 0, sizeof bytes);
    assert_int_equal(crc32c(0, bytes, 32), 0x8a9136aa);
    memset(bytes, 0xff, sizeof bytes);
    assert_int_equal(crc32c(0, bytes, 32), 0x62a8ab43);
    for (uint8_t i = 0; i < 32; i++) { bytes[i] = i; }
    assert_int_equal(crc32c(0, bytes, 32), 0x46dd794e);
    assert_int_equal(crc32c_portable(0, bytes, 32), 0x46dd794e);
}

/* Every length around the lane borders, at odd addresses, gives what the table gives; a copy
 * gives the same sum and the same bytes, and touches nothing beside them. */
static void lanes_equal_the_table(void **state)
{
    (void)state;
    enum { SIZE = 70000 };
    uint8_t *from = malloc(SIZE + 16), *to = malloc(SIZE + 16);
    srand(7);
    for (size_t i = 0; i < SIZE + 16; i++) { from[i] = (uint8_t)rand(); }
    static const size_t borders[] = {0, 8, 168 * 3, 1344 * 3, 5440 * 3, 5440 * 6 + 1344 * 3 + 168 * 3, 65536, 4096};
    for (size_t b = 0; b < sizeof borders / sizeof borders[0]; b++) {
        for (size_t add = 0; add < 20; add++) {
            size_t bytes = borders[b] + add >= 10 ? borders[b] + add - 10 : 0;
            size_t shift = (add * 5) % 8;
            uint32_t want = crc32c_portable(0x1234, from + shift, bytes);
            assert_int_equal(crc32c(0x1234, from + shift, bytes), want);
            memset(to, 0xa5, SIZE + 16);
            size_t at = add % 2 ? 8 : 3; /* aligned, and not */
            assert_int_equal(crc32c_copy(0x1234, to + at, from + shift, bytes), want);
            assert_memory_equal(to + at, from + shift, bytes);
            assert_int_equal(to[at - 1], 0xa5);
            assert_int_equal(to[at + bytes], 0xa5);
        }
    }
    free(from);
    free(to);
}

/* A sum may be made in pieces, cut anywhere. */
static void pieces_make_the_whole(void **state)
{
    (void)state;
    uint8_t bytes[20000];
    for (size_t i = 0; i < sizeof bytes; i++) { bytes[i] = (uint8_t)(i * i >> 3); }
    uint32_t whole = crc32c(0, bytes, sizeof bytes);
    for (size_t cut = 0; cut <= sizeof bytes; cut += 777) {
        assert_int_equal(crc32c(crc32c(0, bytes, cut), bytes + cut, sizeof bytes - cut), whole);
    }
}

/* Any single flipped bit changes the sum. */
static void flipped_bits_change_it(void **state)
{
    (void)state;
    uint8_t bytes[4096] = {1, 2, 3};
    uint32_t whole = crc32c(0, bytes, sizeof bytes);
    for (size_t bit = 0; bit < 8 * sizeof bytes; bit += 13) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_not_equal(crc32c(0, bytes, sizeof bytes), whole);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_values),
        cmocka_unit_test(lanes_equal_the_table),
        cmocka_unit_test(pieces_make_the_whole),
        cmocka_unit_test(flipped_bits_change_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
