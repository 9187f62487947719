/* device_gemm: matrix products of the emulated device, in plain C, by several algorithms that round differently.
 *
 *   0  one sum from the first product to the last
 *   1  sums of 32 products each, joined from the last to the first; rows at most 4096
 *   2  split over n_in in 2 parts, joined in the workspace
 *   3  split in 4 parts; rows at most 64 */
#include <stdlib.h>
#include <string.h>

#include "tests/cuda/device_internal.h"

enum { ALGORITHMS = 4 };
static const uint32_t parts_of[ALGORITHMS] = {1, 1, 2, 4};
static const uint32_t rows_max_of[ALGORITHMS] = {UINT32_MAX, 4096, UINT32_MAX, 64};

static size_t workspace_of(const struct cuda_gemm_shape *shape, uint32_t id)
{
    return parts_of[id] == 1 ? 0 : sizeof(float) * parts_of[id] * shape->rows * shape->n_out;
}

static float load(const void *from, enum dtype dtype, size_t at)
{
    if (dtype == DTYPE_F32) { return ((const float *)from)[at]; }
    uint16_t bits = ((const uint16_t *)from)[at];
    return dtype == DTYPE_BF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

static void store(void *to, enum dtype dtype, size_t at, float value)
{
    if (dtype == DTYPE_F32) {
        ((float *)to)[at] = value;
    } else {
        ((uint16_t *)to)[at] = dtype == DTYPE_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
    }
}

static void load_row(const void *from, enum dtype dtype, size_t first, uint32_t count, float *ret_row)
{
    for (uint32_t i = 0; i < count; i++) { ret_row[i] = load(from, dtype, first + i); }
}

static float sum_forward(const float *a, const float *b, uint32_t first, uint32_t last)
{
    float sum = 0;
    for (uint32_t i = first; i < last; i++) { sum += a[i] * b[i]; }
    return sum;
}

static float sum_blocks_backward(const float *a, const float *b, uint32_t count)
{
    float sum = 0;
    for (uint32_t first = (count - 1) / 32 * 32;; first -= 32) {
        sum += sum_forward(a, b, first, first + 32 < count ? first + 32 : count);
        if (first == 0) { return sum; }
    }
}

/* The parts go to the workspace and are joined there, so one that is too small or shared shows. */
static float sum_parts(const float *a, const float *b, uint32_t count, uint32_t parts, float *workspace)
{
    for (uint32_t p = 0; p < parts; p++) {
        workspace[p] = sum_forward(a, b, (uint32_t)((uint64_t)count * p / parts), (uint32_t)((uint64_t)count * (p + 1) / parts));
    }
    float sum = workspace[parts - 1];
    for (uint32_t p = parts - 1; p-- > 0;) { sum += workspace[p]; }
    return sum;
}

void device_gemm_compute(const struct op *op)
{
    const struct cuda_gemm_shape *shape = &op->u.gemm.shape;
    uint32_t id = op->u.gemm.id, n_in = shape->n_in;
    float *x = malloc(sizeof(float) * n_in * shape->rows), *weight = malloc(sizeof(float) * n_in);
    if (x == NULL || weight == NULL) { device_violation("no memory"); }
    if (workspace_of(shape, id) > 0) { memset(op->u.gemm.workspace, 0xff, workspace_of(shape, id)); }
    for (uint32_t row = 0; row < shape->rows; row++) {
        load_row(op->u.gemm.x, shape->dtype, (size_t)row * shape->x_stride, n_in, x + (size_t)row * n_in);
    }
    for (uint32_t o = 0; o < shape->n_out; o++) {
        load_row(op->u.gemm.weight, shape->dtype, (size_t)o * shape->weight_stride, n_in, weight);
        for (uint32_t row = 0; row < shape->rows; row++) {
            const float *one = x + (size_t)row * n_in;
            float *own = (float *)op->u.gemm.workspace + ((size_t)row * shape->n_out + o) * parts_of[id];
            float sum = parts_of[id] > 1 ? sum_parts(one, weight, n_in, parts_of[id], own)
                        : id == 1        ? sum_blocks_backward(one, weight, n_in)
                                         : sum_forward(one, weight, 0, n_in);
            size_t at = (size_t)row * shape->out_stride + o;
            if (shape->accumulate) { sum += load(op->u.gemm.out, shape->out_dtype, at); }
            if (shape->has_bias) { sum += load(op->u.gemm.bias, shape->out_dtype, o); }
            store(op->u.gemm.out, shape->out_dtype, at, sum);
        }
    }
    free(x);
    free(weight);
}

static status_t gemm_create(const struct cuda_driver *self, const struct cuda_gemm_shape *shape, struct cuda_gemm **ret_gemm,
                            struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_GEMM, diag));
    status_t st = STATUS_OK;
    if (shape->rows == 0 || shape->n_out == 0 || shape->n_in == 0 || shape->weight_stride < shape->n_in || shape->x_stride < shape->n_in ||
        shape->out_stride < shape->n_out || shape->dtype > DTYPE_F16 || (shape->out_dtype != shape->dtype && shape->out_dtype != DTYPE_F32)) {
        st = device_raise(device, CAUSE_INVALID_VALUE, diag, "a product of %u x %u x %u with strides %u, %u, %u", shape->rows, shape->n_out,
                          shape->n_in, shape->weight_stride, shape->x_stride, shape->out_stride);
    } else {
        struct cuda_gemm *gemm = calloc(1, sizeof *gemm);
        if (gemm == NULL) { device_violation("no memory"); }
        gemm->shape = *shape;
        device->gemms++;
        *ret_gemm = gemm;
    }
    device_leave(device);
    return st;
}

static void gemm_destroy(const struct cuda_driver *self, struct cuda_gemm *gemm)
{
    struct device *device = device_of(self);
    if (gemm == NULL) { return; }
    device_enter_void(device);
    device->gemms--;
    free(gemm);
    device_leave(device);
}

static void describe(const struct cuda_gemm_shape *shape, uint32_t id, struct cuda_gemm_algorithm *ret_algorithm)
{
    memset(ret_algorithm, 0, sizeof *ret_algorithm);
    ret_algorithm->opaque[0] = 0xa190000u + id;
    ret_algorithm->workspace_bytes = workspace_of(shape, id);
    ret_algorithm->split_k = parts_of[id];
    ret_algorithm->id = id;
}

/* Few rows: the split ones first, as the library would to fill the chip; many: the plain one. In between it starts with the
 * other plain one: so that who does not fix an algorithm has other bits at another number of rows. */
static status_t gemm_algorithms(const struct cuda_driver *self, struct cuda_gemm *gemm, size_t workspace_max, uint32_t capacity,
                                struct cuda_gemm_algorithm *ret_algorithms, uint32_t *ret_count, struct diag *diag)
{
    static const uint32_t few[] = {3, 2, 1, 0}, some[] = {1, 2, 0, 3}, many[] = {0, 2, 1, 3};
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_GEMM, diag));
    const struct cuda_gemm_shape *shape = &gemm->shape;
    const uint32_t *order = shape->rows <= 4 ? few : shape->rows <= 32 ? some : many;
    uint32_t count = 0;
    for (uint32_t i = 0; i < ALGORITHMS && count < capacity; i++) {
        uint32_t id = order[i];
        if (shape->rows > rows_max_of[id] || workspace_of(shape, id) > workspace_max) { continue; }
        if (shape->deterministic && parts_of[id] > 1) { continue; }
        describe(shape, id, &ret_algorithms[count++]);
    }
    status_t st = count > 0 ? STATUS_OK : device_raise(device, CAUSE_GEMM_NOT_SUPPORTED, diag, "no algorithm");
    device_leave(device);
    if (count > 0) { *ret_count = count; }
    return st;
}

static status_t check_algorithm(struct device *device, const struct cuda_gemm *gemm, const struct cuda_gemm_algorithm *algorithm,
                                struct diag *diag)
{
    uint32_t id = (uint32_t)algorithm->opaque[0] - 0xa190000u;
    if (id >= ALGORITHMS) { return device_raise(device, CAUSE_INVALID_VALUE, diag, "an algorithm that gemm_algorithms did not give"); }
    if (gemm->shape.rows > rows_max_of[id]) {
        return device_raise(device, CAUSE_GEMM_NOT_SUPPORTED, diag, "algorithm %u does up to %u rows, not %u", id, rows_max_of[id], gemm->shape.rows);
    }
    return STATUS_OK;
}

static status_t gemm_adopt(const struct cuda_driver *self, struct cuda_gemm *gemm, struct cuda_gemm_algorithm *algorithm, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_GEMM, diag));
    status_t st = check_algorithm(device, gemm, algorithm, diag);
    if (!failed(st)) { algorithm->workspace_bytes = workspace_of(&gemm->shape, (uint32_t)algorithm->opaque[0] - 0xa190000u); }
    device_leave(device);
    return st;
}

/* An operand: `rows` of `count` elements, aligned as a plan takes it to be. */
static status_t check_operand(struct device *device, const char *name, const void *first, uint32_t rows, uint32_t stride, uint32_t count,
                              enum dtype dtype, struct diag *diag)
{
    size_t bytes = ((size_t)(rows - 1) * stride + count) * dtype_bytes(dtype);
    if ((uintptr_t)first % 16 != 0) { return device_raise(device, CAUSE_INVALID_VALUE, diag, "the %s of a product at %p is not 16-byte aligned", name, first); }
    if (device_range_of(device, first, bytes) == NULL) {
        return device_raise(device, CAUSE_INVALID_VALUE, diag, "the %s of a product, %zu bytes at %p, is not within one piece of device memory", name,
                            bytes, first);
    }
    return STATUS_OK;
}

static status_t check_run(struct device *device, const struct cuda_gemm *gemm, const struct cuda_gemm_algorithm *algorithm, const void *weight,
                          const void *x, const void *bias, const void *out, const void *workspace, size_t workspace_bytes, struct diag *diag)
{
    const struct cuda_gemm_shape *shape = &gemm->shape;
    TRY(check_algorithm(device, gemm, algorithm, diag));
    TRY(check_operand(device, "weight", weight, shape->n_out, shape->weight_stride, shape->n_in, shape->dtype, diag));
    TRY(check_operand(device, "x", x, shape->rows, shape->x_stride, shape->n_in, shape->dtype, diag));
    TRY(check_operand(device, "out", out, shape->rows, shape->out_stride, shape->n_out, shape->out_dtype, diag));
    if ((bias != NULL) != shape->has_bias) { return device_raise(device, CAUSE_INVALID_VALUE, diag, "a product with a bias where its plan has none, or without"); }
    if (bias != NULL) { TRY(check_operand(device, "bias", bias, 1, 0, shape->n_out, shape->out_dtype, diag)); }
    size_t needed = workspace_of(shape, (uint32_t)algorithm->opaque[0] - 0xa190000u);
    if (needed > workspace_bytes || (needed > 0 && (uintptr_t)workspace % 256 != 0) ||
        (workspace_bytes > 0 && device_range_of(device, workspace, workspace_bytes) == NULL)) {
        return device_raise(device, CAUSE_INVALID_VALUE, diag, "a product's workspace of %zu bytes at %p: %zu are needed, aligned to 256, of device memory",
                            workspace_bytes, workspace, needed);
    }
    return STATUS_OK;
}

static status_t gemm_run(const struct cuda_driver *self, struct cuda_gemm *gemm, const struct cuda_gemm_algorithm *algorithm,
                         const void *weight, const void *x, const void *bias, void *out, void *workspace, size_t workspace_bytes,
                         struct cuda_stream *stream, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_GEMM, diag));
    status_t st = check_run(device, gemm, algorithm, weight, x, bias, out, workspace, workspace_bytes, diag);
    if (!failed(st)) {
        struct op *op = device_op_create(OP_GEMM, NULL, 0);
        op->u.gemm.shape = gemm->shape;
        op->u.gemm.id = (uint32_t)algorithm->opaque[0] - 0xa190000u;
        op->u.gemm.weight = weight;
        op->u.gemm.x = x;
        op->u.gemm.bias = bias;
        op->u.gemm.out = out;
        op->u.gemm.workspace = workspace;
        op->u.gemm.workspace_bytes = workspace_bytes;
        device_queue(device, stream, op);
    }
    device_leave(device);
    return st;
}

void device_gemm_calls(struct cuda_driver *table)
{
    table->gemm_create = gemm_create;
    table->gemm_destroy = gemm_destroy;
    table->gemm_algorithms = gemm_algorithms;
    table->gemm_adopt = gemm_adopt;
    table->gemm_run = gemm_run;
}
