#include "base/dtype.h"

static const char *const dtype_names[DTYPE_KV_COUNT] = {"f32", "bf16", "f16", "int8", "fp8_e4m3"};

const char *dtype_name(enum dtype dtype)
{
    return (unsigned)dtype < DTYPE_KV_COUNT ? dtype_names[dtype] : "?";
}

bool dtype_parse(const char *name, enum dtype *ret_dtype)
{
    for (unsigned i = 0; i < DTYPE_KV_COUNT; i++) {
        if (strcmp(name, dtype_names[i]) == 0) { *ret_dtype = (enum dtype)i; return true; }
    }
    return false;
}

float f16_to_f32(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    uint32_t exponent = (bits >> 10) & 0x1fu;
    uint32_t mantissa = bits & 0x3ffu;
    uint32_t wide;
    if (exponent == 0x1f) {
        wide = sign | 0x7f800000u | (mantissa << 13);
    } else if (exponent != 0) {
        wide = sign | ((exponent + 112) << 23) | (mantissa << 13);
    } else if (mantissa == 0) {
        wide = sign;
    } else { /* subnormal: shift until the hidden bit shows */
        exponent = 113;
        while (!(mantissa & 0x400u)) { mantissa <<= 1; exponent--; }
        wide = sign | (exponent << 23) | ((mantissa & 0x3ffu) << 13);
    }
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

uint16_t f32_to_f16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) { return (uint16_t)(sign | 0x7e00u); }
    if (magnitude >= 0x477ff000u) { return (uint16_t)(sign | 0x7c00u); } /* rounds to 65536 or more */
    if (magnitude < 0x33000001u) { return sign; }                        /* 2^-25 and below: zero */
    uint32_t exponent = magnitude >> 23;
    uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    uint32_t shift = exponent < 113 ? 126 - exponent : 13;
    uint32_t base = exponent < 113 ? 0 : ((exponent - 113) << 10);
    uint32_t half = 1u << (shift - 1);
    uint32_t rounded = (mantissa + half - 1 + ((mantissa >> shift) & 1u)) >> shift;
    return (uint16_t)(sign | (base + rounded));
}

float fp8_e4m3_to_f32(uint8_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x80u) << 24, exponent = (bits >> 3) & 0xfu, mantissa = bits & 7u, wide;
    float value;
    if (exponent == 0xf && mantissa == 7) {
        wide = sign | 0x7fc00000u;
    } else if (exponent != 0) {
        wide = sign | ((exponent + 120) << 23) | (mantissa << 20);
    } else { /* mantissa * 2^-9, exact */
        value = (float)mantissa * 0.001953125f;
        return sign != 0 ? -value : value;
    }
    memcpy(&value, &wide, 4);
    return value;
}

uint8_t f32_to_fp8_e4m3(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint8_t sign = (uint8_t)((bits >> 24) & 0x80u);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) { return (uint8_t)(sign | 0x7fu); }
    if (magnitude >= 0x43e00000u) { return (uint8_t)(sign | 0x7eu); } /* 448 and above */
    if (magnitude < 0x3a800000u) { return sign; }                     /* below 2^-10: zero */
    uint32_t exponent = magnitude >> 23;
    uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    uint32_t shift = exponent < 121 ? 141 - exponent : 20;
    uint32_t base = exponent < 121 ? 0 : (exponent - 121) << 3;
    uint32_t rounded = (mantissa + (1u << (shift - 1)) - 1 + ((mantissa >> shift) & 1u)) >> shift;
    return (uint8_t)(sign | (base + rounded));
}
