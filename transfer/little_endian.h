/* little_endian: fixed-width numbers of our own wire formats.
 * Thread: any; no memory. */
#ifndef BATON_TRANSFER_LITTLE_ENDIAN_H
#define BATON_TRANSFER_LITTLE_ENDIAN_H

#include <stdint.h>

static inline void le32_store(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++) { at[i] = (uint8_t)(value >> 8 * i); }
}

static inline uint32_t le32_load(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static inline void le64_store(uint8_t *at, uint64_t value)
{
    le32_store(at, (uint32_t)value);
    le32_store(at + 4, (uint32_t)(value >> 32));
}

static inline uint64_t le64_load(const uint8_t *at)
{
    return (uint64_t)le32_load(at) | (uint64_t)le32_load(at + 4) << 32;
}

#endif
