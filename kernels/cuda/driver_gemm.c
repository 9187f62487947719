/* driver_gemm: matrix products of a real device by cuBLASLt.
 *
 * cuBLASLt counts columns first. A row-major matrix is its column-major transpose, so with
 *   A = weight, seen as [n_in x n_out] with leading dimension weight_stride, transposed,
 *   B = x,      seen as [n_in x rows]  with leading dimension x_stride,
 *   D = out,    seen as [n_out x rows] with leading dimension out_stride,
 * D = A^T B is out = x weight^T, and a bias, which it adds along D's columns, is one for each output. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/driver_real.h"

#define BASE_ALIGNMENT 16u /* of every operand; the library would take 256 for granted */

struct cuda_gemm {
    struct cuda_gemm_shape shape;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t weight, x, out;
    const void *bias; /* what the operation has been told last */
};

_Static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(((struct cuda_gemm_algorithm *)0)->opaque),
               "an algorithm is a value that is copied");

status_t real_raise_cublas(const struct real_driver *real, cublasStatus_t result, int line, const char *what,
                           struct diag *diag)
{
    diag_set(diag, "CUDA device %u: %s: %s", real->table.info.device, what, real->lt.cublasLtGetStatusName(result));
    uint8_t code = result == CUBLAS_STATUS_NOT_SUPPORTED || result == CUBLAS_STATUS_ARCH_MISMATCH ? ST_UNIMPLEMENTED
                   : result == CUBLAS_STATUS_INVALID_VALUE                                        ? ST_INVALID_ARGUMENT
                   : result == CUBLAS_STATUS_ALLOC_FAILED                                         ? ST_RESOURCE_EXHAUSTED
                                                                                                  : ST_INTERNAL;
    status_t st = STATUS_CAUSE(code, SCOPE_NODE, CUDA_CAUSE_CUBLAS + (int32_t)result);
    st.line = (uint16_t)line;
    return st;
}

#define TRY_LT(real, diag, call, ...)                                                                     \
    do {                                                                                                  \
        cublasStatus_t result_ = (real)->lt.call(__VA_ARGS__);                                            \
        if (result_ != CUBLAS_STATUS_SUCCESS) { return real_raise_cublas(real, result_, __LINE__, #call, diag); } \
    } while (0)

static cudaDataType_t type_of(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? CUDA_R_16BF : dtype == DTYPE_F16 ? CUDA_R_16F : CUDA_R_32F;
}

static void gemm_destroy(const struct cuda_driver *self, struct cuda_gemm *gemm)
{
    struct real_driver *real = real_of(self);
    if (gemm == NULL) { return; }
    if (gemm->operation != NULL) { (void)real->lt.cublasLtMatmulDescDestroy(gemm->operation); }
    if (gemm->weight != NULL) { (void)real->lt.cublasLtMatrixLayoutDestroy(gemm->weight); }
    if (gemm->x != NULL) { (void)real->lt.cublasLtMatrixLayoutDestroy(gemm->x); }
    if (gemm->out != NULL) { (void)real->lt.cublasLtMatrixLayoutDestroy(gemm->out); }
    free(gemm);
}

static status_t set_bias(struct real_driver *real, struct cuda_gemm *gemm, const void *bias, struct diag *diag)
{
    if (bias == gemm->bias) { return STATUS_OK; }
    TRY_LT(real, diag, cublasLtMatmulDescSetAttribute, gemm->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
    gemm->bias = bias;
    return STATUS_OK;
}

/* Algorithms are chosen by the alignment of the bias that the operation has been told: any of ours must do. */
static status_t set_least_aligned_bias(struct real_driver *real, struct cuda_gemm *gemm, struct diag *diag)
{
    return gemm->shape.has_bias ? set_bias(real, gemm, (const void *)(uintptr_t)BASE_ALIGNMENT, diag) : STATUS_OK;
}

/* COMPUTE_32F for every dtype: sums in f32, and f32 inputs are not cut to TF32. */
static status_t describe(struct real_driver *real, struct cuda_gemm *gemm, struct diag *diag)
{
    const struct cuda_gemm_shape *shape = &gemm->shape;
    const cublasOperation_t transpose = CUBLAS_OP_T;
    const cublasLtEpilogue_t epilogue = shape->has_bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    const int32_t bias_type = (int32_t)type_of(shape->out_dtype);
    TRY_LT(real, diag, cublasLtMatmulDescCreate, &gemm->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    TRY_LT(real, diag, cublasLtMatmulDescSetAttribute, gemm->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof transpose);
    TRY_LT(real, diag, cublasLtMatmulDescSetAttribute, gemm->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (shape->has_bias) {
        TRY_LT(real, diag, cublasLtMatmulDescSetAttribute, gemm->operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type,
               sizeof bias_type);
    }
    TRY_LT(real, diag, cublasLtMatrixLayoutCreate, &gemm->weight, type_of(shape->dtype), shape->n_in, shape->n_out, shape->weight_stride);
    TRY_LT(real, diag, cublasLtMatrixLayoutCreate, &gemm->x, type_of(shape->dtype), shape->n_in, shape->rows, shape->x_stride);
    TRY_LT(real, diag, cublasLtMatrixLayoutCreate, &gemm->out, type_of(shape->out_dtype), shape->n_out, shape->rows, shape->out_stride);
    return STATUS_OK;
}

static status_t gemm_create(const struct cuda_driver *self, const struct cuda_gemm_shape *shape, struct cuda_gemm **ret_gemm,
                            struct diag *diag)
{
    struct real_driver *real = real_of(self);
    if (shape->rows == 0 || shape->n_out == 0 || shape->n_in == 0 || shape->weight_stride < shape->n_in ||
        shape->x_stride < shape->n_in || shape->out_stride < shape->n_out || shape->dtype > DTYPE_F16 ||
        (shape->out_dtype != shape->dtype && shape->out_dtype != DTYPE_F32)) {
        diag_set(diag, "a product of %u x %u x %u with strides %u, %u, %u is none", shape->rows, shape->n_out, shape->n_in,
                 shape->weight_stride, shape->x_stride, shape->out_stride);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    struct cuda_gemm *gemm = calloc(1, sizeof *gemm);
    if (gemm == NULL) {
        diag_set(diag, "no memory for the plan of a product");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    gemm->shape = *shape;
    status_t st = real_enter(real, diag);
    if (!failed(st)) { st = describe(real, gemm, diag); }
    if (failed(st)) {
        gemm_destroy(self, gemm);
        return st;
    }
    *ret_gemm = gemm;
    return STATUS_OK;
}

static status_t set_preference(struct real_driver *real, cublasLtMatmulPreference_t preference,
                               const struct cuda_gemm_shape *shape, size_t workspace_max, struct diag *diag)
{
    const uint64_t workspace = workspace_max;
    const uint32_t alignment = BASE_ALIGNMENT;
    /* Not OUTPUT_TYPE: parts of a sum would be rounded to bf16 before they are joined. */
    const uint32_t reductions = shape->deterministic
                                    ? CUBLASLT_REDUCTION_SCHEME_NONE
                                    : CUBLASLT_REDUCTION_SCHEME_INPLACE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    TRY_LT(real, diag, cublasLtMatmulPreferenceSetAttribute, preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
           sizeof workspace);
    TRY_LT(real, diag, cublasLtMatmulPreferenceSetAttribute, preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions,
           sizeof reductions);
    for (size_t i = 0; i < sizeof alignments / sizeof alignments[0]; i++) {
        TRY_LT(real, diag, cublasLtMatmulPreferenceSetAttribute, preference, alignments[i], &alignment, sizeof alignment);
    }
    return STATUS_OK;
}

static uint32_t config_of(struct real_driver *real, const cublasLtMatmulAlgo_t *algorithm,
                          cublasLtMatmulAlgoConfigAttributes_t attribute, uint32_t otherwise)
{
    uint32_t value = otherwise;
    size_t written;
    cublasStatus_t result = real->lt.cublasLtMatmulAlgoConfigGetAttribute(algorithm, attribute, &value, sizeof value, &written);
    return result == CUBLAS_STATUS_SUCCESS ? value : otherwise;
}

static void describe_algorithm(struct real_driver *real, const cublasLtMatmulHeuristicResult_t *result,
                               struct cuda_gemm_algorithm *ret_algorithm)
{
    memset(ret_algorithm, 0, sizeof *ret_algorithm);
    memcpy(ret_algorithm->opaque, &result->algo, sizeof result->algo);
    ret_algorithm->workspace_bytes = result->workspaceSize;
    uint32_t parts = config_of(real, &result->algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, 1);
    uint32_t scheme = config_of(real, &result->algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, 0);
    /* Any reduction means parts, whatever their count is said to be. */
    ret_algorithm->split_k = scheme == CUBLASLT_REDUCTION_SCHEME_NONE && parts <= 1 ? 1 : parts < 2 ? 2 : parts;
    ret_algorithm->id = config_of(real, &result->algo, CUBLASLT_ALGO_CONFIG_ID, 0);
    ret_algorithm->tile = config_of(real, &result->algo, CUBLASLT_ALGO_CONFIG_TILE_ID, 0);
    ret_algorithm->stages = config_of(real, &result->algo, CUBLASLT_ALGO_CONFIG_STAGES_ID, 0);
}

static status_t gemm_algorithms(const struct cuda_driver *self, struct cuda_gemm *gemm, size_t workspace_max, uint32_t capacity,
                                struct cuda_gemm_algorithm *ret_algorithms, uint32_t *ret_count, struct diag *diag)
{
    struct real_driver *real = real_of(self);
    cublasLtMatmulHeuristicResult_t results[CUDA_GEMM_ALGORITHMS_MAX];
    cublasLtMatmulPreference_t preference;
    int found = 0, wanted = (int)(capacity < CUDA_GEMM_ALGORITHMS_MAX ? capacity : CUDA_GEMM_ALGORITHMS_MAX);
    TRY(real_enter(real, diag));
    TRY(set_least_aligned_bias(real, gemm, diag));
    TRY_LT(real, diag, cublasLtMatmulPreferenceCreate, &preference);
    status_t st = set_preference(real, preference, &gemm->shape, workspace_max, diag);
    if (!failed(st)) {
        cublasStatus_t result = real->lt.cublasLtMatmulAlgoGetHeuristic(real->lt_handle, gemm->operation, gemm->weight, gemm->x,
                                                                        gemm->out, gemm->out, preference, wanted, results, &found);
        if (result != CUBLAS_STATUS_SUCCESS) {
            st = real_raise_cublas(real, result, __LINE__, "cublasLtMatmulAlgoGetHeuristic", diag);
        }
    }
    (void)real->lt.cublasLtMatmulPreferenceDestroy(preference);
    TRY(st);
    uint32_t count = 0;
    for (int i = 0; i < found; i++) {
        if (results[i].state != CUBLAS_STATUS_SUCCESS) { continue; }
        describe_algorithm(real, &results[i], &ret_algorithms[count]);
        if (gemm->shape.deterministic && ret_algorithms[count].split_k != 1) { continue; }
        count++;
    }
    if (count == 0) {
        diag_set(diag, "cuBLASLt has no algorithm for %u x %u x %u of %s in %zu bytes of workspace%s", gemm->shape.rows,
                 gemm->shape.n_out, gemm->shape.n_in, dtype_name(gemm->shape.dtype), workspace_max,
                 gemm->shape.deterministic ? " without split sums" : "");
        return STATUS_CAUSE(ST_UNIMPLEMENTED, SCOPE_NODE, CUDA_CAUSE_CUBLAS + CUBLAS_STATUS_NOT_SUPPORTED);
    }
    *ret_count = count;
    return STATUS_OK;
}

static status_t gemm_adopt(const struct cuda_driver *self, struct cuda_gemm *gemm, struct cuda_gemm_algorithm *algorithm,
                           struct diag *diag)
{
    struct real_driver *real = real_of(self);
    cublasLtMatmulAlgo_t algo;
    cublasLtMatmulHeuristicResult_t result;
    memset(&result, 0, sizeof result);
    memcpy(&algo, algorithm->opaque, sizeof algo);
    TRY(real_enter(real, diag));
    TRY(set_least_aligned_bias(real, gemm, diag));
    cublasStatus_t checked = real->lt.cublasLtMatmulAlgoCheck(real->lt_handle, gemm->operation, gemm->weight, gemm->x, gemm->out, gemm->out,
                                                              &algo, &result);
    if (checked != CUBLAS_STATUS_SUCCESS) {
        status_t st = real_raise_cublas(real, checked, __LINE__, "cublasLtMatmulAlgoCheck", diag);
        /* The descriptors are good: an "invalid value" says that they are not this algorithm's. */
        return checked == CUBLAS_STATUS_INVALID_VALUE ? STATUS_CAUSE(ST_UNIMPLEMENTED, SCOPE_NODE, st.cause) : st;
    }
    algorithm->workspace_bytes = result.workspaceSize;
    return STATUS_OK;
}

static status_t gemm_run(const struct cuda_driver *self, struct cuda_gemm *gemm, const struct cuda_gemm_algorithm *algorithm,
                         const void *weight, const void *x, const void *bias, void *out, void *workspace, size_t workspace_bytes,
                         struct cuda_stream *stream, struct diag *diag)
{
    struct real_driver *real = real_of(self);
    const float alpha = 1.0f, beta = gemm->shape.accumulate ? 1.0f : 0.0f;
    cublasLtMatmulAlgo_t algo;
    memcpy(&algo, algorithm->opaque, sizeof algo);
    if ((bias != NULL) != gemm->shape.has_bias || workspace_bytes < algorithm->workspace_bytes) {
        diag_set(diag, "a product is run with a bias or a workspace (%zu bytes) that its plan does not have", workspace_bytes);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    TRY(real_enter(real, diag));
    TRY(set_bias(real, gemm, bias, diag));
    TRY_LT(real, diag, cublasLtMatmul, real->lt_handle, gemm->operation, &alpha, weight, gemm->weight, x, gemm->x, &beta, out,
           gemm->out, out, gemm->out, &algo, workspace, workspace_bytes, stream_of(stream));
    return STATUS_OK;
}

void real_gemm_calls(struct cuda_driver *table)
{
    table->gemm_create = gemm_create;
    table->gemm_destroy = gemm_destroy;
    table->gemm_algorithms = gemm_algorithms;
    table->gemm_adopt = gemm_adopt;
    table->gemm_run = gemm_run;
}
