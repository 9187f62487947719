/* fake_libcublaslt: see fake_cuda.h. Matrices are columns first, as the library's are. */
#include <cublasLt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cuda/fake_cuda.h"

static struct fake_cuda *state;
void fake_cublaslt_use(struct fake_cuda *shared);
void fake_cublaslt_use(struct fake_cuda *shared) { state = shared; }

static cublasStatus_t note(const char *name)
{
    if (state == NULL) { return CUBLAS_STATUS_SUCCESS; }
    state->log_len += (unsigned long)snprintf(state->log + state->log_len, sizeof state->log - state->log_len, "%s\n", name);
    return strcmp(name, state->fail_name) == 0 && state->fail_after-- == 0 ? (cublasStatus_t)state->fail_code : CUBLAS_STATUS_SUCCESS;
}
#define NOTE(name)                                                        \
    do {                                                                  \
        cublasStatus_t noted_ = note(#name);                              \
        if (noted_ != CUBLAS_STATUS_SUCCESS) { return noted_; }           \
    } while (0)
static void *made(size_t bytes, int *count)
{
    if (count != NULL) { ++*count; }
    return calloc(1, bytes);
}

struct operation { int transpose_a, epilogue, bias_type; const float *bias; };
struct layout { cudaDataType type; uint64_t rows, columns; int64_t ld; };
struct preference { uint64_t workspace; uint32_t reductions, alignment[4]; };

size_t cublasLtGetVersion(void) { return 130000; }
const char *cublasLtGetStatusName(cublasStatus_t status) { return status == CUBLAS_STATUS_NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED" : "CUBLAS_STATUS_OTHER"; }
cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) { NOTE(cublasLtCreate); *handle = made(8, state ? &state->handles : NULL); return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { if (state) { state->handles--; } free(handle); return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute, cudaDataType_t scale)
{
    NOTE(cublasLtMatmulDescCreate);
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) { return CUBLAS_STATUS_INVALID_VALUE; }
    *desc = made(sizeof(struct operation), state ? &state->descriptions : NULL);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) { if (state) { state->descriptions--; } free(desc); return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, const void *value, size_t bytes)
{
    NOTE(cublasLtMatmulDescSetAttribute);
    struct operation *operation = (void *)desc;
    void *field = attribute == CUBLASLT_MATMUL_DESC_TRANSA           ? (void *)&operation->transpose_a
                  : attribute == CUBLASLT_MATMUL_DESC_EPILOGUE       ? (void *)&operation->epilogue
                  : attribute == CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE ? (void *)&operation->bias_type
                  : attribute == CUBLASLT_MATMUL_DESC_BIAS_POINTER   ? (void *)&operation->bias
                                                                     : NULL;
    if (field == NULL || bytes != (attribute == CUBLASLT_MATMUL_DESC_BIAS_POINTER ? 8 : 4)) { return CUBLAS_STATUS_INVALID_VALUE; }
    memcpy(field, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows, uint64_t columns, int64_t ld)
{
    NOTE(cublasLtMatrixLayoutCreate);
    if (ld < (int64_t)rows) { return CUBLAS_STATUS_INVALID_VALUE; }
    struct layout *one = made(sizeof *one, state ? &state->descriptions : NULL);
    *one = (struct layout){type, rows, columns, ld};
    *layout = (void *)one;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { if (state) { state->descriptions--; } free(layout); return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) { NOTE(cublasLtMatmulPreferenceCreate); *preference = made(sizeof(struct preference), state ? &state->descriptions : NULL); return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) { if (state) { state->descriptions--; } free(preference); return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, const void *value, size_t bytes)
{
    NOTE(cublasLtMatmulPreferenceSetAttribute);
    struct preference *one = (void *)preference;
    void *field = attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES         ? (void *)&one->workspace
                  : attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK     ? (void *)&one->reductions
                  : attribute == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES     ? (void *)&one->alignment[0]
                  : attribute == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES     ? (void *)&one->alignment[1]
                  : attribute == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES     ? (void *)&one->alignment[2]
                  : attribute == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES     ? (void *)&one->alignment[3]
                                                                                : NULL;
    if (field == NULL || bytes != (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES ? 8 : 4)) { return CUBLAS_STATUS_INVALID_VALUE; }
    memcpy(field, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

/* Three algorithms: a split one, one that this shape cannot have, and a plain one. A split one is offered whatever was asked for, as a
 * library might. data[0]: parts. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int wanted, cublasLtMatmulHeuristicResult_t results[], int *count)
{
    (void)handle; (void)a; (void)b; (void)c; (void)d;
    NOTE(cublasLtMatmulAlgoGetHeuristic);
    const struct operation *operation = (void *)desc;
    const struct preference *one = (void *)preference;
    if ((operation->epilogue == CUBLASLT_EPILOGUE_BIAS && (uintptr_t)operation->bias % 32 != 16) || one->alignment[0] != 16 || one->alignment[3] != 16) { return CUBLAS_STATUS_INVALID_VALUE; }
    if (wanted < 3) { *count = 0; return CUBLAS_STATUS_SUCCESS; }
    memset(results, 0, 3 * sizeof results[0]);
    for (int i = 0; i < 3; i++) {
        results[i].algo.data[0] = i == 0 ? 4 : 1;
        results[i].algo.data[1] = (uint64_t)i;
        results[i].workspaceSize = i == 0 ? 1024 : 0;
        results[i].state = i == 1 ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
    }
    *count = 3;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t *algo, cublasLtMatmulHeuristicResult_t *result)
{
    (void)handle; (void)desc; (void)a; (void)c; (void)d; (void)algo;
    NOTE(cublasLtMatmulAlgoCheck);
    result->workspaceSize = 512;
    return ((struct layout *)(void *)b)->columns > 64 ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo, cublasLtMatmulAlgoConfigAttributes_t attribute, void *value, size_t bytes, size_t *written)
{
    NOTE(cublasLtMatmulAlgoConfigGetAttribute);
    uint32_t is = attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM          ? (uint32_t)algo->data[0]
                  : attribute == CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME  ? (algo->data[0] > 1 ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : 0)
                                                                        : (uint32_t)algo->data[1];
    if (bytes != 4) { return CUBLAS_STATUS_INVALID_VALUE; }
    memcpy(value, &is, 4);
    *written = 4;
    return CUBLAS_STATUS_SUCCESS;
}

static float at(const void *matrix, const struct layout *layout, uint64_t row, uint64_t column)
{
    return ((const float *)matrix)[row + (uint64_t)layout->ld * column];
}
/* f32 alone: D = alpha op(A) B + beta C, then the bias along the columns. */
cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *A, cublasLtMatrixLayout_t Adesc, const void *B, cublasLtMatrixLayout_t Bdesc, const void *beta, const void *C, cublasLtMatrixLayout_t Cdesc, void *D, cublasLtMatrixLayout_t Ddesc, const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    (void)handle; (void)algo; (void)workspace; (void)workspace_bytes; (void)stream;
    NOTE(cublasLtMatmul);
    const struct operation *operation = (void *)desc;
    const struct layout *a = (void *)Adesc, *b = (void *)Bdesc, *c = (void *)Cdesc, *d = (void *)Ddesc;
    uint64_t rows = operation->transpose_a == CUBLAS_OP_T ? a->columns : a->rows, inner = operation->transpose_a == CUBLAS_OP_T ? a->rows : a->columns;
    if (a->type != CUDA_R_32F || rows != d->rows || inner != b->rows || b->columns != d->columns || c->rows != d->rows || c->ld != d->ld) { return CUBLAS_STATUS_INVALID_VALUE; }
    for (uint64_t j = 0; j < d->columns; j++) {
        for (uint64_t i = 0; i < d->rows; i++) {
            float sum = 0;
            for (uint64_t k = 0; k < inner; k++) { sum += (operation->transpose_a == CUBLAS_OP_T ? at(A, a, k, i) : at(A, a, i, k)) * at(B, b, k, j); }
            sum *= *(const float *)alpha;
            if (*(const float *)beta != 0) { sum += *(const float *)beta * at(C, c, i, j); }
            if (operation->epilogue == CUBLASLT_EPILOGUE_BIAS) { sum += operation->bias[i]; }
            ((float *)D)[i + (uint64_t)d->ld * j] = sum;
        }
    }
    return CUBLAS_STATUS_SUCCESS;
}
