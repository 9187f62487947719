#include "kernels/matrix.h"

#include <string.h>

#include "base/check.h"
#include "kernels/int_layout.h"

/* 4 words at any address; gcc and clang turn shuffles of it into unpack instructions. */
typedef uint32_t words4 __attribute__((vector_size(16)));

static const char *const names[KERNELS_WEIGHT_COUNT] = {"f32", "bf16", "f16", "int8", "int4"};

const char *kernels_weight_name(enum kernels_weight format) { return names[format]; }

bool kernels_weight_parse(const char *name, enum kernels_weight *ret_format)
{
    for (int i = 0; i < KERNELS_WEIGHT_COUNT; i++) {
        if (strcmp(name, names[i]) == 0) {
            *ret_format = (enum kernels_weight)i;
            return true;
        }
    }
    return false;
}

static uint32_t round_up(uint32_t value, uint32_t step) { return (value + step - 1) / step * step; }

uint32_t kernels_matrix_depth(const struct kernels_matrix *matrix)
{
    switch (matrix->format) {
    case KERNELS_WEIGHT_BF16: return round_up(matrix->n_in, 32);
    case KERNELS_WEIGHT_F16: return round_up(matrix->n_in, 2);
    case KERNELS_WEIGHT_INT8: return round_up(matrix->n_in, 64);
    case KERNELS_WEIGHT_INT4: return round_up(matrix->n_in, matrix->group);
    default: return matrix->n_in;
    }
}

size_t kernels_matrix_panel_bytes(const struct kernels_matrix *matrix)
{
    size_t depth = kernels_matrix_depth(matrix);
    switch (matrix->format) {
    case KERNELS_WEIGHT_F32: return depth * KERNELS_PANEL * 4;
    case KERNELS_WEIGHT_INT8: return int8_panel_bytes(matrix->n_in);
    case KERNELS_WEIGHT_INT4: return int4_panel_bytes(matrix);
    default: return depth * KERNELS_PANEL * 2;
    }
}

size_t kernels_matrix_bytes(const struct kernels_matrix *matrix)
{
    if (matrix->order == KERNELS_ORDER_ROWS) {
        return (size_t)matrix->n_out * matrix->stride * (matrix->format == KERNELS_WEIGHT_F32 ? 4 : 2);
    }
    size_t bytes = kernels_matrix_panel_bytes(matrix) * kernels_matrix_panels(matrix);
    return matrix->format == KERNELS_WEIGHT_INT4 ? bytes + int4_order_bytes(matrix) : bytes;
}

/* ---- packing ------------------------------------------------------------------------------- */

/* out[word][16] = in[16 rows][word], for 4 words of each row. */
static void turn_words(const unsigned char *const in[KERNELS_PANEL], size_t at, unsigned char *out)
{
    for (uint32_t r = 0; r < KERNELS_PANEL; r += 4) {
        words4 a, b, c, d;
        memcpy(&a, in[r] + at, 16);
        memcpy(&b, in[r + 1] + at, 16);
        memcpy(&c, in[r + 2] + at, 16);
        memcpy(&d, in[r + 3] + at, 16);
        words4 ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        words4 cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        const words4 turned[4] = {
            __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
            __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
        for (uint32_t i = 0; i < 4; i++) { memcpy(out + i * 64 + r * 4, &turned[i], 16); }
    }
}

/* 4 bytes of each of 16 rows lie side by side in `words`; f16 wants them as two lines of 16. */
static void split_pairs(const unsigned char *words, uint32_t count, unsigned char *out)
{
    for (uint32_t i = 0; i < count; i++, words += 64, out += 64) {
        uint16_t pairs[2 * KERNELS_PANEL], lines[2 * KERNELS_PANEL];
        memcpy(pairs, words, 64);
        for (uint32_t o = 0; o < KERNELS_PANEL; o++) {
            lines[o] = pairs[2 * o];
            lines[KERNELS_PANEL + o] = pairs[2 * o + 1];
        }
        memcpy(out, lines, 64);
    }
}

static float element_as_f32(const unsigned char *row, size_t index, enum dtype dtype)
{
    uint16_t half;
    float value;
    switch (dtype) {
    case DTYPE_BF16: memcpy(&half, row + 2 * index, 2); return bf16_to_f32(half);
    case DTYPE_F16: memcpy(&half, row + 2 * index, 2); return f16_to_f32(half);
    default: memcpy(&value, row + 4 * index, 4); return value;
    }
}

static void element_store(unsigned char *to, float value, enum kernels_weight format)
{
    uint16_t half = format == KERNELS_WEIGHT_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
    if (format == KERNELS_WEIGHT_F32) { memcpy(to, &value, 4); } else { memcpy(to, &half, 2); }
}

/* Byte of input k of output o inside a panel; formats of whole elements. */
static size_t element_offset(enum kernels_weight format, uint32_t k, uint32_t o)
{
    switch (format) {
    case KERNELS_WEIGHT_BF16: return ((size_t)(k / 2) * KERNELS_PANEL + o) * 4 + k % 2 * 2;
    case KERNELS_WEIGHT_F16: return ((size_t)k * KERNELS_PANEL + o) * 2;
    default: return ((size_t)k * KERNELS_PANEL + o) * 4;
    }
}

static void pack_panel(const struct kernels_matrix *matrix, const unsigned char *rows, size_t row_bytes, enum dtype dtype,
                       uint32_t outs, unsigned char *to)
{
    uint32_t k = 0;
    if ((int)dtype == (int)matrix->format && outs == KERNELS_PANEL) {
        const unsigned char *in[KERNELS_PANEL];
        for (uint32_t o = 0; o < KERNELS_PANEL; o++) { in[o] = rows + o * row_bytes; }
        const uint32_t step = 16 / dtype_bytes(dtype); /* inputs in 4 words */
        for (; k + step <= matrix->n_in; k += step) {
            unsigned char *line = to + element_offset(matrix->format, k, 0);
            if (matrix->format == KERNELS_WEIGHT_F16) {
                unsigned char words[256];
                turn_words(in, (size_t)k * 2, words);
                split_pairs(words, 4, line);
            } else {
                turn_words(in, (size_t)k * dtype_bytes(dtype), line);
            }
        }
    }
    if (k == matrix->n_in && k == kernels_matrix_depth(matrix)) { return; }
    size_t begin = element_offset(matrix->format, k / 2 * 2, 0);
    if (k % 2 == 0) { memset(to + begin, 0, kernels_matrix_panel_bytes(matrix) - begin); }
    for (; k < matrix->n_in; k++) {
        for (uint32_t o = 0; o < outs; o++) {
            element_store(to + element_offset(matrix->format, k, o), element_as_f32(rows + o * row_bytes, k, dtype), matrix->format);
        }
    }
}

void kernels_matrix_pack(const struct kernels_matrix *matrix, const void *rows, size_t stride, enum dtype dtype,
                         uint32_t panel_first, uint32_t panel_count, void *data)
{
    CHECK(matrix->format <= KERNELS_WEIGHT_F16);
    CHECK(matrix->order == KERNELS_ORDER_PANELS);
    CHECK(stride >= matrix->n_in);
    CHECK(panel_first + panel_count <= kernels_matrix_panels(matrix));
    const size_t row_bytes = stride * dtype_bytes(dtype), panel_bytes = kernels_matrix_panel_bytes(matrix);
    for (uint32_t p = panel_first; p < panel_first + panel_count; p++) {
        uint32_t out = p * KERNELS_PANEL;
        uint32_t outs = matrix->n_out - out < KERNELS_PANEL ? matrix->n_out - out : KERNELS_PANEL;
        pack_panel(matrix, (const unsigned char *)rows + out * row_bytes, row_bytes, dtype, outs,
                   (unsigned char *)data + p * panel_bytes);
    }
}

/* ---- reading ------------------------------------------------------------------------------- */

static void read_int8(const struct kernels_matrix *matrix, const unsigned char *panel, uint32_t o, uint32_t k, uint32_t count,
                      float *values)
{
    float scale;
    memcpy(&scale, panel + (size_t)kernels_matrix_depth(matrix) * KERNELS_PANEL + o * 4, 4);
    for (uint32_t i = 0; i < count; i++, k++) {
        values[i] = scale * (float)(int8_t)panel[((size_t)(k / 4) * KERNELS_PANEL + o) * 4 + k % 4];
    }
}

static void read_int4(const struct kernels_matrix *matrix, const unsigned char *panel, uint32_t o, uint32_t first, uint32_t count,
                      float *values)
{
    const unsigned char *order = (const unsigned char *)matrix->data + kernels_matrix_panel_bytes(matrix) * kernels_matrix_panels(matrix);
    /* Out of order, the wanted inputs may lie anywhere. */
    uint32_t k = matrix->has_order ? 0 : first, end = matrix->has_order ? int4_k(matrix) : first + count;
    for (; k < end; k++) {
        uint32_t input = k, group = k / matrix->group, in_group = k % matrix->group;
        if (matrix->has_order) { memcpy(&input, order + (size_t)k * 4, 4); }
        if (input < first || input - first >= count) { continue; }
        unsigned byte = panel[int4_codes_at(matrix, group) + (size_t)(in_group / 8) * 64 + o * 4 + in_group % 4];
        unsigned nibble = in_group % 8 < 4 ? byte & 15u : byte >> 4;
        uint16_t scale;
        memcpy(&scale, panel + int4_scales_at(matrix, group) + o * 2, 2);
        int zero = matrix->has_zeros ? panel[int4_zeros_at(matrix, group) + o] : INT4_ZERO_SYMMETRIC;
        values[input - first] = f16_to_f32(scale) * (float)((int)nibble - zero);
    }
}

void kernels_matrix_read(const struct kernels_matrix *matrix, uint32_t out, uint32_t in_first, uint32_t count,
                         float *ret_values)
{
    CHECK(out < matrix->n_out);
    CHECK(in_first + count <= matrix->n_in);
    if (matrix->order == KERNELS_ORDER_ROWS) {
        const size_t first = (size_t)out * matrix->stride + in_first;
        for (uint32_t i = 0; i < count; i++) {
            ret_values[i] = element_as_f32(matrix->data, first + i, (enum dtype)matrix->format);
        }
        return;
    }
    const unsigned char *panel = (const unsigned char *)matrix->data + out / KERNELS_PANEL * kernels_matrix_panel_bytes(matrix);
    const uint32_t o = out % KERNELS_PANEL;
    switch (matrix->format) {
    case KERNELS_WEIGHT_INT8: read_int8(matrix, panel, o, in_first, count, ret_values); return;
    case KERNELS_WEIGHT_INT4: read_int4(matrix, panel, o, in_first, count, ret_values); return;
    default:
        for (uint32_t i = 0; i < count; i++) {
            ret_values[i] = element_as_f32(panel + element_offset(matrix->format, in_first + i, o), 0, (enum dtype)matrix->format);
        }
    }
}
