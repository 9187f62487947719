/* quant_matrix_fuzz: any bytes as a config.json, a NUL, and a safetensors file with a matrix "a" in it. What
 * is found must pack without leaving its bytes, and read back. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "kernels/matrix.h"
#include "model/quant_config.h"
#include "model/quant_matrix.h"
#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void pack(const struct quant_matrix *quant)
{
    struct diag diag;
    size_t bytes = kernels_matrix_bytes(&quant->matrix);
    uint8_t *packed = aligned_alloc(64, (bytes + 63) / 64 * 64);
    float *row = malloc((size_t)quant->matrix.n_in * sizeof *row);
    CHECK(packed != NULL);
    CHECK(row != NULL);
    CHECK(!failed(quant_matrix_pack(quant, 0, kernels_matrix_panels(&quant->matrix), &diag, packed)));
    struct kernels_matrix matrix = quant->matrix;
    matrix.data = packed;
    for (uint32_t k = 0; k < matrix.n_in; k++) { row[k] = 1e30f; }
    kernels_matrix_read(&matrix, matrix.n_out - 1, 0, matrix.n_in, row);
    for (uint32_t k = 0; k < matrix.n_in; k++) { CHECK(row[k] != 1e30f); } /* each input is somebody's */
    free(row);
    free(packed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t shapes[][2] = {{8, 8}, {16, 64}, {24, 160}, {8, 256}}; /* out, in */
    const uint8_t *end = memchr(data, 0, size);
    if (end == NULL) { return 0; }
    struct diag diag;
    struct quant_config config;
    if (failed(quant_config_parse("config.json", data, (size_t)(end - data), false, &diag, &config))) { return 0; }
    if (config.method == QUANT_NONE) { return 0; }
    struct safetensors *checkpoint = NULL;
    const size_t used = (size_t)(end - data) + 1;
    if (failed(safetensors_parse("fuzz.safetensors", data + used, size - used, &diag, &checkpoint))) { return 0; }
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct quant_matrix quant;
        bool is_found;
        status_t st = quant_matrix_find(checkpoint, &config, "model.", "a.weight", shapes[i][0], shapes[i][1], &diag, &is_found, &quant);
        if (!failed(st) && is_found) { pack(&quant); }
    }
    safetensors_close(checkpoint);
    return 0;
}
