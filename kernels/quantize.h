/* quantize: makes int8 and int4 weight matrices out of numbers, or out of codes that a file brings.
 * Flow:    a checkpoint's rows -> [quantize] -> packed panels (int_layout.h) -> kernels_gemm
 * Thread:  any; panels are independent, so that several threads may pack one matrix.
 * Memory:  writes the caller's panels; a call takes its own working memory on the stack. */
#ifndef BATON_KERNELS_QUANTIZE_H
#define BATON_KERNELS_QUANTIZE_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "kernels/int_layout.h"

/* Of the codes that weights and activations become: part of a model's fingerprint, and so of the names of pack
 * files and of what KV blocks two nodes exchange. Raise it with any change to what this file defines. */
#define QUANTIZE_VERSION 2u

/* Rows of a weight matrix as a checkpoint has them. Borrowed. */
struct quantize_rows {
    const void *data; /* [n_out][n_in], any alignment */
    enum dtype dtype;
    size_t stride;    /* elements from one row to the next */
    uint32_t n_out, n_in;
};

/* Panels [panel_first, panel_first + panels) of an INT8 matrix at `data`.
 * scale = (largest |w| of the output) / 127, and at least 2^-100; code = w / scale to nearest, ties to
 * even. So each weight errs by at most scale / 2. An output with a weight that is not finite gets the
 * scale NaN: its products are NaN and not silently wrong.
 * Cost  two passes over the rows, 1 to 2 ns a weight. */
void quantize_int8(const struct quantize_rows *rows, uint32_t panel_first, uint32_t panels, void *data);

/* The same for int4 without zero points. The scale of a group is the best, by the sum of squared errors,
 * of five about (the weight of the largest |w|) / -8, rounded to f16, which is what is then divided by;
 * code = 8 + w / scale to nearest, held to 0 .. 15.
 * matrix  its shape, without zeros and order; n_out and n_in those of rows
 * Cost    5 to 6 ns a weight, which a pack file spares the next start. */
void quantize_int4(const struct quantize_rows *rows, const struct kernels_matrix *matrix, uint32_t panel_first,
                   uint32_t panels, void *data);

/* One panel of codes that somebody else chose.
 * codes   [16][n_in], each 0 .. 15, in the order that groups want (see has_order)
 * scales  [16][groups] f16
 * zeros   [16][groups], each 0 .. 15; NULL unless matrix->has_zeros
 * Outputs past n_out are not read: they become zeros. */
void quantize_int4_panel(const struct kernels_matrix *matrix, uint32_t panel, const uint8_t *codes, const uint16_t *scales,
                         const uint8_t *zeros, void *data);

/* What an activation row becomes, here so that every backend does the same: with m = max(|x|) over the
 * row (int8) or the group (int4), and at least 2^-100: code = x * (127 / m) to nearest, ties to even;
 * scale = m * (1/127). All in f32, one rounding an operation. A row with a value that is not finite:
 * codes 0, scale NaN. */
void quantize_x(const float *x, uint32_t count, int8_t *ret_codes, float *ret_scale);

#endif
