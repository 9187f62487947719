/* matrix: a weight matrix in the order that the products read it: panels of 16 outputs, or rows for a device.
 * Flow:    model_weights (packs once at load, or maps a pack file) -> [matrix] -> kernels_gemm, kernels_embed
 * Thread:  any; packing writes disjoint panels, so several threads may share one matrix.
 * Memory:  the caller's: `data`, 64-byte aligned, kernels_matrix_bytes() long.
 *
 * The order of bytes is the same for every instruction set, for it goes into files. A panel holds
 * 16 consecutive outputs over the whole depth; panels follow each other without gaps, each a
 * multiple of 64 bytes. With k the input and o the output inside a panel:
 *   F32   [k][16]
 *   BF16  [k/2][16][2]: pairs side by side, as vdpbf16ps takes them and as a tile of AMX lies in
 *         memory (16 pairs x 16 outputs = 1 KiB); k is filled up to a multiple of 32
 *   F16   [k][16]: vcvtph2ps turns 16 neighbours into floats; k filled up to a multiple of 2
 *   INT8  [k/4][16][4], k filled up to a multiple of 64; then f32 scale[16] and i32 sum[16] of the
 *         integers over k (for unsigned times signed products). Packed by quantize.h
 *   INT4  blocks of 4 groups of inputs, see int_layout.h; k filled up to whole groups. With has_order
 *         a u32 for each input of that depth follows the last panel. By quantize.h
 * What is filled up, outputs past n_out and inputs past n_in, is zero and adds nothing.
 *
 * KERNELS_ORDER_ROWS, for devices: F32, BF16 or F16 as [n_out][stride], row-major; inputs past n_in are zero. */
#ifndef BATON_KERNELS_MATRIX_H
#define BATON_KERNELS_MATRIX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"

#define KERNELS_PANEL 16u /* outputs */
/* Of the byte order above: part of a pack file's identity. Raise it with any change. */
#define KERNELS_MATRIX_VERSION 1u

/* The numbers go into pack files: append only. The first three are enum dtype's. */
enum kernels_weight {
    KERNELS_WEIGHT_F32 = 0,
    KERNELS_WEIGHT_BF16 = 1,
    KERNELS_WEIGHT_F16 = 2,
    KERNELS_WEIGHT_INT8 = 3,
    KERNELS_WEIGHT_INT4 = 4,
    KERNELS_WEIGHT_COUNT,
};

enum kernels_order {
    KERNELS_ORDER_PANELS = 0,
    KERNELS_ORDER_ROWS = 1,
};

struct kernels_matrix {
    enum kernels_weight format;
    uint32_t n_out; /* >= 1 */
    uint32_t n_in;  /* >= 1 */
    uint32_t group; /* INT4: inputs that share a scale: 32, 64 or 128; else 0 */
    bool has_zeros; /* INT4: each group has zero points of its own; else the zero point is 8 */
    bool has_order; /* INT4: groups are of inputs out of order: see int_layout.h */
    enum kernels_order order;
    uint32_t stride; /* ROWS: kernels_matrix_rows_stride(n_in), elements; else 0 */
    const void *data; /* PANELS: 64-byte aligned; ROWS: 16-byte aligned, of the device */
};

/* "f32", "bf16", "f16", "int8", "int4". */
const char *kernels_weight_name(enum kernels_weight format);

/* Takes the names above; false for any other. */
bool kernels_weight_parse(const char *name, enum kernels_weight *ret_format);

/* From one output to the next of KERNELS_ORDER_ROWS: what 16-byte loads of 2-byte values need. */
static inline uint32_t kernels_matrix_rows_stride(uint32_t n_in) { return (n_in + 7) / 8 * 8; }

static inline uint32_t kernels_matrix_panels(const struct kernels_matrix *matrix)
{
    return matrix->n_out / KERNELS_PANEL + (matrix->n_out % KERNELS_PANEL != 0);
}

/* Inputs with those that fill up the depth. */
uint32_t kernels_matrix_depth(const struct kernels_matrix *matrix);

/* Bytes of one panel (PANELS) and of all, in either order; `data` is not read. */
size_t kernels_matrix_panel_bytes(const struct kernels_matrix *matrix);
size_t kernels_matrix_bytes(const struct kernels_matrix *matrix);

/* Packs panels panel_first .. panel_first + panel_count - 1 out of a row-major matrix. Order PANELS.
 * matrix  the shape; format F32, BF16 or F16; its `data` is not read
 * rows    output 0 of the whole matrix, at any alignment; stride in elements, >= n_in. Another dtype
 *         than the format's is converted, to nearest, ties to even
 * data    panel 0 of the whole matrix
 * Cost    about the speed of memory where dtype and format agree. */
void kernels_matrix_pack(const struct kernels_matrix *matrix, const void *rows, size_t stride, enum dtype dtype,
                         uint32_t panel_first, uint32_t panel_count, void *data);

/* Reads inputs in_first .. in_first + count - 1 of one output as f32: the embedding of a token, tests.
 * INT8 and INT4 give scale * integer. A line of memory is touched for every 1 to 8 values of panels. Either
 * order, where the data is host memory. */
void kernels_matrix_read(const struct kernels_matrix *matrix, uint32_t out, uint32_t in_first, uint32_t count,
                         float *ret_values);

#endif
