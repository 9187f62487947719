/* quant_matrix: one weight matrix as GPTQ or AWQ publishes it, checked and turned into int4 panels.
 * Flow:    safetensors -> [quant_matrix] -> model_weights -> kernels
 * Thread:  any; read-only once found, so that several threads may pack one matrix.
 * Memory:  tensors stay in the mapped file; a call takes working memory on the heap.
 *
 * Both store codes of 0 .. 15 in words of 32 bits, the lowest nibble first, scales as f16, and
 * weight = scale * (code - zero):
 *   GPTQ  qweight i32 [n_in/8][n_out]: eight inputs of one output a word. qzeros i32 [groups][n_out/8]:
 *         eight outputs a word; the first format stores them less one, modulo 16. g_idx i32 [n_in], where
 *         it is there: the group of each input ("act-order": inputs that matter are grouped together).
 *   AWQ   qweight i32 [n_in][n_out/8], qzeros i32 [groups][n_out/8]: eight outputs a word, in the order
 *         0 2 4 6 1 3 5 7 from the lowest nibble.
 *   both  scales f16 [groups][n_out]
 * Groups longer than 128 inputs become several that share scale and zero; where each group's inputs lie
 * apart, the matrix gets an order and the product gathers its activations by it. All are exact: the
 * weights are those of the file, to the bit of scale, code and zero.
 * Source  GPTQ, arXiv 2210.17323, and AWQ, arXiv 2306.00978; the bytes as AutoGPTQ's and AutoAWQ's
 *         packing functions write them. */
#ifndef BATON_MODEL_QUANT_MATRIX_H
#define BATON_MODEL_QUANT_MATRIX_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kernels/matrix.h"
#include "model/quant_config.h"
#include "model/safetensors.h"

struct quant_matrix {
    struct quant_config config;
    const struct safetensors_tensor *codes, *zeros, *scales;
    const struct safetensors_tensor *groups_of; /* g_idx; NULL where there is none */
    uint32_t file_group;          /* inputs of a group of the file */
    struct kernels_matrix matrix; /* the shape that it is packed to */
};

/* Finds PREFIXNAME.qweight and its companions; name is that of a plan's entry, "... .weight".
 * ret_found  false: there is no such qweight, and nothing else was looked at
 * Errors   DATA_LOSS (node): a companion is missing, has another shape or dtype than the matrix's, or its
 *          bytes make no sense; diag names tensor, expected and found. */
NODISCARD status_t quant_matrix_find(const struct safetensors *checkpoint, const struct quant_config *config,
                                     const char *prefix, const char *name, uint32_t n_out, uint32_t n_in, struct diag *diag,
                                     bool *ret_found, struct quant_matrix *ret_matrix);

/* Panels panel_first .. panel_first + panel_count - 1 of quant->matrix, and with the first its order.
 * data  panel 0
 * Errors  RESOURCE_EXHAUSTED (node). */
NODISCARD status_t quant_matrix_pack(const struct quant_matrix *quant, uint32_t panel_first, uint32_t panel_count,
                                     struct diag *diag, void *data);

#endif
