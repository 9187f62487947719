/* dtype: the number formats of weights and KV blocks.
 * Thread: any; plain values. */
#ifndef BATON_BASE_DTYPE_H
#define BATON_BASE_DTYPE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* The numbers go over the wire in layout fingerprints: append only. */
enum dtype { DTYPE_F32 = 0, DTYPE_BF16 = 1, DTYPE_F16 = 2, DTYPE_COUNT };

static inline uint32_t dtype_bytes(enum dtype dtype) { return dtype == DTYPE_F32 ? 4 : 2; }

/* "f32", "bf16", "f16". */
const char *dtype_name(enum dtype dtype);

/* Takes the names above; false for any other. */
bool dtype_parse(const char *name, enum dtype *ret_dtype);

static inline float bf16_to_f32(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

/* Round to nearest, ties to even; a NaN stays a NaN. */
static inline uint16_t f32_to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) { return (uint16_t)((bits >> 16) | 0x40u); }
    bits += 0x7fffu + ((bits >> 16) & 1u);
    return (uint16_t)(bits >> 16);
}

float f16_to_f32(uint16_t bits);

/* Round to nearest, ties to even; overflow gives infinity. */
uint16_t f32_to_f16(float value);

#endif
