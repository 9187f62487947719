/* amx_tile: the operations on AMX tiles that our products use, on the hardware or worked out in C.
 * Flow:    gemm_amx_impl.h (bf16), gemm_int's AMX set (int8) -> [amx_tile]
 * Thread:  tiles belong to a thread, as registers do.
 * Memory:  none; the emulation has 8 KiB a thread.
 *
 * Defined by the file that includes it: AMX_TILE_EMULATED 1 for the emulation, whose file names and config
 * are those of the hardware, else the compiler's intrinsics (-mamx-tile -mamx-bf16 -mamx-int8). The
 * emulation does what the manual's pseudocode says, sum by sum, so that packing, blocking, tails
 * and configurations are held to the bit on machines without AMX, and it checks what the hardware would
 * raise #GP or #UD for.
 * Tile numbers are literals 0 .. 7.
 * Source  Intel 64 and IA-32 Architectures Software Developer's Manual, vol. 2: LDTILECFG, TDPBF16PS, TDPBSSD. */
#ifndef BATON_KERNELS_CPU_AMX_TILE_H
#define BATON_KERNELS_CPU_AMX_TILE_H

#include <stdint.h>

/* Palette 1: 8 tiles of up to 16 rows of up to 64 bytes. A configuration must be `static const`: gcc 12
 * believes that the load reads 8 bytes of it, and drops stores that fill the rest. */
struct amx_config {
    uint8_t palette, start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct amx_config) == 64, "as LDTILECFG reads it");

#if !AMX_TILE_EMULATED

#include <immintrin.h>

#define amx_configure(config) _tile_loadconfig(config)
#define amx_release() _tile_release()
#define amx_zero(tile) _tile_zero(tile)
#define amx_load(tile, from, stride) _tile_loadd(tile, from, stride)
/* For what is read once: a hint. */
#define amx_stream(tile, from, stride) _tile_stream_loadd(tile, from, stride)
#define amx_store(tile, to, stride) _tile_stored(tile, to, stride)
/* sum[m][n] += over pairs k of x[m][2k] w[k][2n] and x[m][2k+1] w[k][2n+1], bf16 into f32. */
#define amx_dot_bf16(sum, x, w) _tile_dpbf16ps(sum, x, w)
/* sum[m][n] += over fours of signed bytes, exact in i32. */
#define amx_dot_int8(sum, x, w) _tile_dpbssd(sum, x, w)

#else

#include <math.h>
#include <string.h>

#include "base/check.h"
#include "base/dtype.h"

struct amx_tiles {
    struct amx_config config;
    unsigned char tile[8][16][64];
};

static _Thread_local struct amx_tiles amx;

static inline void amx_configure(const struct amx_config *config)
{
    CHECK(config->palette == 1);
    CHECK(config->start_row == 0);
    for (int i = 0; i < 16; i++) {
        CHECK(config->row_bytes[i] <= (i < 8 ? 64 : 0));
        CHECK(config->rows[i] <= (i < 8 ? 16 : 0));
        CHECK((config->row_bytes[i] == 0) == (config->rows[i] == 0));
    }
    memset(&amx, 0, sizeof(amx));
    amx.config = *config;
}

static inline void amx_release(void) { memset(&amx, 0, sizeof(amx)); }

static inline uint32_t amx_rows(int tile)
{
    CHECK(amx.config.palette == 1);
    CHECK(amx.config.rows[tile] != 0);
    return amx.config.rows[tile];
}

static inline void amx_zero(int tile)
{
    (void)amx_rows(tile);
    memset(amx.tile[tile], 0, sizeof(amx.tile[tile]));
}

static inline void amx_load(int tile, const void *from, size_t stride)
{
    uint32_t rows = amx_rows(tile);
    memset(amx.tile[tile], 0, sizeof(amx.tile[tile])); /* what the configuration leaves out reads as zero */
    for (uint32_t r = 0; r < rows; r++) { memcpy(amx.tile[tile][r], (const unsigned char *)from + r * stride, amx.config.row_bytes[tile]); }
}

static inline void amx_stream(int tile, const void *from, size_t stride) { amx_load(tile, from, stride); }

static inline void amx_store(int tile, void *to, size_t stride)
{
    for (uint32_t r = 0; r < amx_rows(tile); r++) { memcpy((unsigned char *)to + r * stride, amx.tile[tile][r], amx.config.row_bytes[tile]); }
}

/* A product of C = A B needs A's bytes to be B's rows of 4, and C to have the outer sizes: else #UD. */
static inline void amx_shapes_fit(int sum, int x, int w)
{
    CHECK(amx_rows(sum) == amx_rows(x));
    CHECK(amx.config.row_bytes[sum] == amx.config.row_bytes[w]);
    CHECK(amx.config.row_bytes[x] == 4 * amx_rows(w));
}

/* Subnormal numbers are taken for zero and become zero, whatever MXCSR says. */
static inline float amx_flush(float value) { return fabsf(value) < 0x1p-126f ? copysignf(0.0f, value) : value; }

static inline float amx_bf16(const unsigned char *at)
{
    uint16_t bits;
    memcpy(&bits, at, 2);
    return amx_flush(bf16_to_f32(bits));
}

static inline float amx_f32(const unsigned char *at)
{
    float value;
    memcpy(&value, at, 4);
    return amx_flush(value);
}

/* The even and the odd elements of a row are two chains of fused sums from zero; they are added to each other,
 * then to what was there. */
static inline void amx_dot_bf16(int sum, int x, int w)
{
    amx_shapes_fit(sum, x, w);
    for (uint32_t m = 0; m < amx_rows(sum); m++) {
        for (uint32_t n = 0; n < amx.config.row_bytes[sum] / 4u; n++) {
            float chain[2] = {0, 0};
            for (uint32_t k = 0; k < amx_rows(w); k++) {
                for (uint32_t i = 0; i < 2; i++) {
                    chain[i] = amx_flush(fmaf(amx_bf16(&amx.tile[x][m][4 * k + 2 * i]), amx_bf16(&amx.tile[w][k][4 * n + 2 * i]), chain[i]));
                }
            }
            float value = amx_flush(amx_f32(&amx.tile[sum][m][4 * n]) + amx_flush(chain[0] + chain[1]));
            memcpy(&amx.tile[sum][m][4 * n], &value, 4);
        }
    }
}

static inline void amx_dot_int8(int sum, int x, int w)
{
    amx_shapes_fit(sum, x, w);
    for (uint32_t m = 0; m < amx_rows(sum); m++) {
        for (uint32_t n = 0; n < amx.config.row_bytes[sum] / 4u; n++) {
            uint32_t value;
            memcpy(&value, &amx.tile[sum][m][4 * n], 4);
            for (uint32_t k = 0; k < amx_rows(w); k++) {
                for (uint32_t i = 0; i < 4; i++) {
                    value += (uint32_t)((int8_t)amx.tile[x][m][4 * k + i] * (int8_t)amx.tile[w][k][4 * n + i]); /* wraps */
                }
            }
            memcpy(&amx.tile[sum][m][4 * n], &value, 4);
        }
    }
}

#endif

#endif
