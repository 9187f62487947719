#include "kernels/ref/ref.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/ref/ref_int.h"
#include "kernels/ref/ref_kv.h"

struct ref {
    struct kernels base; /* first */
    float weights[KERNELS_GEMM_IN_MAX]; /* of one output */
};

static struct ref *ref(struct kernels *kernels) { return (struct ref *)kernels; }

static double element(const void *data, enum dtype dtype, size_t index)
{
    switch (dtype) {
    case DTYPE_BF16: return (double)bf16_to_f32(((const uint16_t *)data)[index]);
    case DTYPE_F16: return (double)f16_to_f32(((const uint16_t *)data)[index]);
    default: return (double)((const float *)data)[index];
    }
}

static void ref_gemm(struct kernels *kernels, const struct kernels_gemm *gemms, uint32_t count)
{
    float *weights = ref(kernels)->weights;
    for (uint32_t i = 0; i < count; i++) {
        const struct kernels_gemm *g = &gemms[i];
        if (g->weight->format >= KERNELS_WEIGHT_INT8) {
            ref_int_gemm(g);
            continue;
        }
        for (uint32_t n = 0; n < g->weight->n_out; n++) {
            kernels_matrix_read(g->weight, n, 0, g->weight->n_in, weights);
            for (uint32_t m = 0; m < g->rows; m++) {
                const float *x = (const float *)g->x + m * g->x_stride;
                double sum = 0;
                for (uint32_t k = 0; k < g->weight->n_in; k++) { sum += (double)x[k] * (double)weights[k]; }
                if (g->bias != NULL) { sum += element(g->bias, g->bias_dtype, n); }
                float *out = (float *)g->out + m * g->out_stride + n;
                *out = (float)(g->accumulate ? sum + (double)*out : sum);
            }
        }
    }
}

static void ref_rmsnorm(struct kernels *kernels, const struct kernels_rmsnorm *a)
{
    (void)kernels;
    for (size_t v = 0; v < (size_t)a->rows * a->heads; v++) {
        size_t row = v / a->heads, head = v % a->heads;
        const float *x = (const float *)a->x + row * a->x_stride + head * a->dim;
        float *out = (float *)a->out + row * a->out_stride + head * a->dim;
        double square = 0;
        for (uint32_t i = 0; i < a->dim; i++) { square += (double)x[i] * (double)x[i]; }
        double factor = 1 / sqrt(square / a->dim + (double)a->eps);
        for (uint32_t i = 0; i < a->dim; i++) {
            out[i] = (float)((double)x[i] * factor * element(a->weight, a->weight_dtype, i));
        }
    }
}

static void ref_layernorm(struct kernels *kernels, const struct kernels_layernorm *a)
{
    (void)kernels;
    for (uint32_t row = 0; row < a->rows; row++) {
        const float *x = (const float *)a->x + row * a->x_stride;
        float *out = (float *)a->out + row * a->out_stride;
        double mean = 0, var = 0;
        for (uint32_t i = 0; i < a->dim; i++) { mean += (double)x[i]; }
        mean /= a->dim;
        for (uint32_t i = 0; i < a->dim; i++) { var += ((double)x[i] - mean) * ((double)x[i] - mean); }
        double factor = 1 / sqrt(var / a->dim + (double)a->eps);
        for (uint32_t i = 0; i < a->dim; i++) {
            double bias = a->bias != NULL ? element(a->bias, a->dtype, i) : 0;
            out[i] = (float)(((double)x[i] - mean) * factor * element(a->weight, a->dtype, i) + bias);
        }
    }
}

static void ref_rope(struct kernels *kernels, const struct kernels_rope *a)
{
    (void)kernels;
    uint32_t half = a->rotary_dim / 2;
    for (uint32_t row = 0; row < a->rows; row++) {
        const float *cos_row = a->cos + (size_t)a->positions[row] * half;
        const float *sin_row = a->sin + (size_t)a->positions[row] * half;
        for (uint32_t h = 0; h < a->heads; h++) {
            float *x = (float *)a->x + row * a->x_stride + (size_t)h * a->head_dim;
            for (uint32_t i = 0; i < half; i++) {
                double c = (double)cos_row[i], s = (double)sin_row[i];
                double lo = (double)x[i], hi = (double)x[i + half];
                x[i] = (float)(lo * c - hi * s);
                x[i + half] = (float)(hi * c + lo * s);
            }
        }
    }
}

static void ref_embed(struct kernels *kernels, const struct kernels_embed *a)
{
    (void)kernels;
    for (uint32_t row = 0; row < a->rows; row++) {
        const uint32_t dim = a->table->n_in;
        float *out = a->out + row * a->out_stride;
        kernels_matrix_read(a->table, a->ids[row], 0, dim, out);
        if (a->position_table == NULL) { continue; }
        for (uint32_t i = 0; i < dim; i++) {
            size_t at = (size_t)a->positions[row] * dim + i;
            out[i] = (float)((double)out[i] + element(a->position_table, a->position_dtype, at));
        }
    }
}

static void ref_silu_mul(struct kernels *kernels, const struct kernels_silu_mul *a)
{
    (void)kernels;
    for (size_t row = 0; row < a->rows; row++) {
        const float *gate = (const float *)a->gate + row * a->gate_stride, *up = (const float *)a->up + row * a->up_stride;
        float *out = (float *)a->out + row * a->out_stride;
        for (uint32_t i = 0; i < a->dim; i++) {
            double g = (double)gate[i];
            out[i] = (float)(g / (1 + exp(-g)) * (double)up[i]);
        }
    }
}

static void ref_mul(struct kernels *kernels, const struct kernels_mul *m)
{
    (void)kernels;
    for (size_t row = 0; row < m->rows; row++) {
        const float *a = (const float *)m->a + row * m->a_stride, *b = (const float *)m->b + row * m->b_stride;
        float *out = (float *)m->out + row * m->out_stride;
        for (uint32_t i = 0; i < m->dim; i++) { out[i] = a[i] * b[i]; }
    }
}

static void ref_gelu(struct kernels *kernels, const struct kernels_gelu *a)
{
    (void)kernels;
    for (size_t row = 0; row < a->rows; row++) {
        const float *x = (const float *)a->x + row * a->x_stride;
        float *out = (float *)a->out + row * a->out_stride;
        for (uint32_t i = 0; i < a->dim; i++) {
            double v = (double)x[i];
            /* 1 + erf(y) is erfc(-y) and 1 + tanh(u) is 2 / (1 + exp(-2u)): no digits cancel. */
            double u = 0.79788456080286536 * (v + 0.044715 * v * v * v);
            out[i] = (float)(a->form == KERNELS_GELU_ERF ? v / 2 * erfc(v * -0.70710678118654752) : v / (1 + exp(-2 * u)));
        }
    }
}

static void ref_gather_rows(struct kernels *kernels, const struct kernels_gather_rows *a)
{
    (void)kernels;
    for (size_t row = 0; row < a->rows; row++) {
        memcpy((float *)a->out + row * a->out_stride, (const float *)a->x + a->from[row] * a->x_stride, a->dim * sizeof(float));
    }
}

static void ref_destroy(struct kernels *kernels) { free(ref(kernels)); }

static const struct kernels_backend ref_ops = {
    .destroy = ref_destroy,
    KERNELS_HOST_OPERATIONS,
    .gemm = ref_gemm,
    .rmsnorm = ref_rmsnorm,
    .layernorm = ref_layernorm,
    .rope = ref_rope,
    .embed = ref_embed,
    .silu_mul = ref_silu_mul,
    .gelu = ref_gelu,
    .mul = ref_mul,
    .gather_rows = ref_gather_rows,
    .kv_write = ref_kv_write,
    .attention = ref_attention,
};

status_t ref_create(struct kernels **ret_kernels, struct diag *diag)
{
    struct ref *handle = calloc(1, sizeof(*handle));
    if (handle == NULL) {
        diag_set(diag, "no memory for the reference kernels");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    handle->base = (struct kernels){.ops = &ref_ops, .set_name = "ref-double-v1", .isa_name = "ref", .threads = 1,
                                .uses_host_memory = true, .takes_any_order = true};
    *ret_kernels = &handle->base;
    return STATUS_OK;
}
