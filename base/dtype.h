/* dtype: the number formats of weights and KV blocks.
 * Thread: any; plain values. */
#ifndef BATON_BASE_DTYPE_H
#define BATON_BASE_DTYPE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* The numbers go over the wire in layout fingerprints: append only. The last two are for KV blocks
 * alone and mean nothing without the scale that lies beside them (see kv/kv_layout.h). */
enum dtype { DTYPE_F32 = 0, DTYPE_BF16 = 1, DTYPE_F16 = 2, DTYPE_INT8 = 3, DTYPE_FP8_E4M3 = 4 };

#define DTYPE_COUNT 3    /* those that a weight, a bias or an activation may have come first */
#define DTYPE_KV_COUNT 5 /* all: those that a KV block may have */

/* Of one value, without the scale of int8 and fp8: the size of KV is kv_layout's to say. */
static inline uint32_t dtype_bytes(enum dtype dtype)
{
    return dtype == DTYPE_F32 ? 4 : dtype == DTYPE_INT8 || dtype == DTYPE_FP8_E4M3 ? 1 : 2;
}

/* "f32", "bf16", "f16", "int8", "fp8_e4m3". */
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

/* The least bf16 that is not below a finite value >= 0. */
static inline uint16_t f32_to_bf16_up(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0xffffu) >> 16);
}

float f16_to_f32(uint16_t bits);

/* Round to nearest, ties to even; overflow gives infinity. */
uint16_t f32_to_f16(float value);

/* FP8 E4M3 as machine learning uses it (OCP 8-bit floating point, "E4M3"; no infinity; S.1111.111 is
 * NaN; the largest is 448, the least above zero 2^-9). */
float fp8_e4m3_to_f32(uint8_t bits);

/* Round to nearest, ties to even; what would round past 448 becomes 448, NaN stays NaN. */
uint8_t f32_to_fp8_e4m3(float value);

#endif
