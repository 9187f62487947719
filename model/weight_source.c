#include "model/weight_source.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool entry_is_f32(const struct tensor_plan_entry *entry)
{
    return entry->role == TENSOR_NORM_AS_F32 || entry->role == TENSOR_BIAS_AS_F32;
}

uint64_t weight_source_elements(const struct tensor_plan_entry *entry)
{
    return entry->rank == 2 ? entry->shape[0] * entry->shape[1] : entry->shape[0];
}

static bool parse_dtype(const char *name, enum dtype *ret_dtype)
{
    static const struct { const char *name; enum dtype dtype; } names[] = {
        {"F32", DTYPE_F32}, {"BF16", DTYPE_BF16}, {"F16", DTYPE_F16}};
    for (size_t i = 0; i < 3; i++) {
        if (strcmp(name, names[i].name) == 0) {
            *ret_dtype = names[i].dtype;
            return true;
        }
    }
    return false;
}

const struct safetensors_tensor *weight_source_find(const struct safetensors *checkpoint, const char *prefix,
                                                    const struct tensor_plan_entry *entry)
{
    char name[128];
    snprintf(name, sizeof name, "%s%s", entry->is_in_base ? prefix : "", entry->name);
    const struct safetensors_tensor *tensor = safetensors_find(checkpoint, name);
    return tensor ? tensor : safetensors_find(checkpoint, entry->name);
}

status_t weight_source_resolve(const struct safetensors *checkpoint, const char *prefix,
                               const struct tensor_plan_entry *entry, struct diag *diag,
                               struct weight_source *ret_source)
{
    char wanted[64], found[192];
    safetensors_shape_text(entry->shape, entry->rank, wanted, sizeof wanted);
    const struct safetensors_tensor *tensor = weight_source_find(checkpoint, prefix, entry);
    if (!tensor) {
        diag_set(diag, "%s: tensor %s%s is missing; config.json asks for it with shape %s",
                 safetensors_source(checkpoint), entry->is_in_base ? prefix : "", entry->name, wanted);
        return STATUS(ST_DATA_LOSS, SCOPE_NODE);
    }
    if (tensor->rank != entry->rank || memcmp(tensor->shape, entry->shape, entry->rank * sizeof entry->shape[0])) {
        safetensors_shape_text(tensor->shape, tensor->rank, found, sizeof found);
        diag_set(diag, "%s: tensor %s has shape %s; config.json asks for %s", tensor->file, tensor->name, found,
                 wanted);
        return STATUS(ST_DATA_LOSS, SCOPE_NODE);
    }
    struct weight_source source = {.tensor = tensor};
    if (!parse_dtype(tensor->dtype, &source.file_dtype)) {
        diag_set(diag, "%s: tensor %s, shape %s, has dtype %s; supported are F32, BF16 and F16", tensor->file,
                 tensor->name, wanted, tensor->dtype);
        return STATUS(ST_DATA_LOSS, SCOPE_NODE);
    }
    source.dtype = entry_is_f32(entry) ? DTYPE_F32 : source.file_dtype;
    *ret_source = source;
    return STATUS_OK;
}

status_t weight_source_resolve_quantized(const struct safetensors *checkpoint, const struct quant_config *config,
                                         const char *prefix, const struct tensor_plan_entry *entry, struct diag *diag,
                                         bool *ret_found, struct weight_source *ret_source)
{
    struct weight_source source = {.file_dtype = DTYPE_F16, .dtype = DTYPE_F16, .is_quantized = true};
    *ret_found = false;
    if (config->method == QUANT_NONE || entry->role != TENSOR_MATRIX || entry->dest_count != 1) { return STATUS_OK; }
    TRY(quant_matrix_find(checkpoint, config, entry->is_in_base ? prefix : "", entry->name, (uint32_t)entry->shape[0],
                          (uint32_t)entry->shape[1], diag, ret_found, &source.quant));
    if (!*ret_found) { return STATUS_OK; }
    source.tensor = source.quant.codes;
    *ret_source = source;
    return STATUS_OK;
}

/* out[c - col_first][r] = in[r][c]; in tiles, so that neither side misses the cache on every element. */
static void transpose(const uint8_t *in, size_t rows, size_t cols, size_t col_first, size_t col_end, uint32_t element_bytes,
                      uint8_t *out)
{
    enum { TILE = 32 };
    for (size_t r0 = 0; r0 < rows; r0 += TILE) {
        for (size_t c0 = col_first; c0 < col_end; c0 += TILE) {
            size_t r1 = r0 + TILE < rows ? r0 + TILE : rows;
            size_t c1 = c0 + TILE < col_end ? c0 + TILE : col_end;
            for (size_t c = c0; c < c1; c++) {
                for (size_t r = r0; r < r1; r++) {
                    memcpy(out + ((c - col_first) * rows + r) * element_bytes, in + (r * cols + c) * element_bytes, element_bytes);
                }
            }
        }
    }
}

static void convert_to_f32(const uint8_t *in, enum dtype dtype, size_t count, float *out)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t half;
        switch (dtype) {
        case DTYPE_BF16:
            memcpy(&half, in + 2 * i, 2);
            out[i] = bf16_to_f32(half);
            break;
        case DTYPE_F16:
            memcpy(&half, in + 2 * i, 2);
            out[i] = f16_to_f32(half);
            break;
        default:
            memcpy(&out[i], in + 4 * i, 4);
            break;
        }
    }
}

static uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

enum { LANES = 16 }; /* generators side by side, two numbers of each at a time */

static inline uint32_t xorshift(uint32_t x)
{
    x ^= x << 13;
    x ^= x >> 17;
    return x ^ x << 5;
}

/* Moves generators on by any number of steps: a step is linear over bits, so it is a matrix, and steps are its power. */
static void xorshift_jump(uint32_t state[LANES], uint64_t steps)
{
    uint32_t power[32], square[32]; /* what each bit becomes */
    for (int bit = 0; bit < 32; bit++) { power[bit] = xorshift(UINT32_C(1) << bit); }
    for (; steps != 0; steps >>= 1) {
        for (int i = 0; i < LANES && (steps & 1); i++) {
            uint32_t moved = 0;
            for (int bit = 0; bit < 32; bit++) { moved ^= (state[i] >> bit & 1u) != 0 ? power[bit] : 0; }
            state[i] = moved;
        }
        for (int bit = 0; bit < 32; bit++) {
            square[bit] = 0;
            for (int b = 0; b < 32; b++) { square[bit] ^= (power[bit] >> b & 1u) != 0 ? power[b] : 0; }
        }
        memcpy(power, square, sizeof power);
    }
}

/* Uniform in -half_width .. half_width, as bf16: numbers `first` and on, a multiple of 2 * LANES. Sixteen xorshift
 * generators, so that the compiler can use vectors: gigabytes of it are asked for.
 * Source: Marsaglia, "Xorshift RNGs", 2003, the triple 13, 17, 5. */
static void fill_uniform_bf16(uint64_t seed, float half_width, size_t first, size_t count, uint16_t *out)
{
    uint32_t state[LANES];
    for (int i = 0; i < LANES; i++) { state[i] = (uint32_t)splitmix64(&seed) | 1u; }
    xorshift_jump(state, first / (2 * LANES));
    float step = half_width / 32768.0f;
    uint16_t chunk[2 * LANES];
    for (size_t at = 0; at < count; at += 2 * LANES) {
        for (int i = 0; i < LANES; i++) {
            uint32_t x = xorshift(state[i]);
            state[i] = x;
            float low = (float)(int16_t)(x & 0xffffu) * step;
            float high = (float)(int16_t)(x >> 16) * step;
            uint32_t low_bits, high_bits;
            memcpy(&low_bits, &low, 4);
            memcpy(&high_bits, &high, 4);
            chunk[i] = (uint16_t)((low_bits + 0x8000u) >> 16);
            chunk[LANES + i] = (uint16_t)((high_bits + 0x8000u) >> 16);
        }
        size_t left = count - at;
        memcpy(out + at, chunk, (left < 2 * LANES ? left : 2 * LANES) * sizeof *out);
    }
}

/* A product of n_in terms keeps the size of its input when its weights have variance 1/n_in; a uniform
 * variable on -w .. w has variance w^2/3. */
static float made_up_half_width(const struct tensor_plan_entry *entry)
{
    uint64_t n_in = entry->role == TENSOR_CONV1D ? entry->shape[0] : entry->shape[1];
    return entry->rank == 1 ? 0.02f : (float)sqrt(3.0 / (double)n_in);
}

static void make_up(const struct tensor_plan_entry *entry, const struct weight_source *source, void *out)
{
    size_t count = (size_t)weight_source_elements(entry);
    bool is_norm = entry->role == TENSOR_NORM || entry->role == TENSOR_NORM_AS_F32;
    if (source->dtype == DTYPE_F32) {
        float *values = out;
        for (size_t i = 0; i < count; i++) { values[i] = is_norm ? 1.0f : 0.0f; }
    } else if (is_norm) {
        uint16_t *values = out;
        for (size_t i = 0; i < count; i++) { values[i] = f32_to_bf16(1.0f); }
    } else {
        fill_uniform_bf16(source->seed, made_up_half_width(entry), 0, count, out);
    }
}

struct weight_source weight_source_made_up(const struct tensor_plan_entry *entry, uint64_t seed, uint32_t index)
{
    uint64_t own = seed + index;
    enum dtype dtype = entry_is_f32(entry) ? DTYPE_F32 : DTYPE_BF16;
    return (struct weight_source){.file_dtype = dtype, .dtype = dtype, .seed = splitmix64(&own)};
}

status_t weight_source_rows(const struct tensor_plan_entry *entry, const struct weight_source *source, struct diag *diag,
                            const void **ret_rows, void **ret_owned)
{
    *ret_owned = NULL;
    if (source->tensor && entry->role != TENSOR_CONV1D) {
        *ret_rows = source->tensor->data;
        return STATUS_OK;
    }
    uint32_t element_bytes = dtype_bytes(source->file_dtype);
    void *owned = malloc((size_t)weight_source_elements(entry) * element_bytes);
    if (!owned) {
        diag_set(diag, "no memory to make the rows of %s", entry->name);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    if (!source->tensor) {
        make_up(entry, source, owned); /* [out][in] whatever the role */
    } else if (element_bytes == 2) { /* the two element sizes apart, so that the copy of one is a move and not a call */
        transpose(source->tensor->data, entry->shape[0], entry->shape[1], 0, entry->shape[1], 2, owned);
    } else {
        transpose(source->tensor->data, entry->shape[0], entry->shape[1], 0, entry->shape[1], 4, owned);
    }
    *ret_rows = *ret_owned = owned;
    return STATUS_OK;
}

void weight_source_read(const struct tensor_plan_entry *entry, const struct weight_source *source, uint32_t row_first,
                        uint32_t rows, void *ret_rows)
{
    const bool is_turned = entry->role == TENSOR_CONV1D;
    const size_t n_in = (size_t)entry->shape[is_turned ? 0 : 1];
    const size_t first = row_first * n_in, count = rows * n_in;
    const uint32_t element_bytes = dtype_bytes(source->file_dtype);
    if (!source->tensor) {
        uint16_t *out = ret_rows;
        const size_t step = 2 * LANES, before = first % step; /* a stream is entered at whole steps */
        const float half_width = made_up_half_width(entry);
        if (before != 0) {
            uint16_t chunk[2 * LANES];
            const size_t head = count < step - before ? count : step - before;
            fill_uniform_bf16(source->seed, half_width, first - before, step, chunk);
            memcpy(out, chunk + before, head * sizeof *out);
            if (head == count) { return; }
            fill_uniform_bf16(source->seed, half_width, first - before + step, count - head, out + head);
            return;
        }
        fill_uniform_bf16(source->seed, half_width, first, count, out);
    } else if (!is_turned) {
        memcpy(ret_rows, source->tensor->data + first * element_bytes, count * element_bytes);
    } else if (element_bytes == 2) {
        transpose(source->tensor->data, n_in, (size_t)entry->shape[1], row_first, (size_t)row_first + rows, 2, ret_rows);
    } else {
        transpose(source->tensor->data, n_in, (size_t)entry->shape[1], row_first, (size_t)row_first + rows, 4, ret_rows);
    }
}

void weight_source_values(const struct tensor_plan_entry *entry, const struct weight_source *source, void *ret_values)
{
    if (!source->tensor) {
        make_up(entry, source, ret_values);
    } else if (source->dtype != source->file_dtype) {
        convert_to_f32(source->tensor->data, source->file_dtype, (size_t)weight_source_elements(entry), ret_values);
    } else {
        memcpy(ret_values, source->tensor->data, (size_t)source->tensor->bytes);
    }
}
