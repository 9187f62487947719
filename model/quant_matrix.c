#include "model/quant_matrix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/int_layout.h"
#include "kernels/quantize.h"

/* AWQ: the output, of a word's eight, that each nibble holds, turned round: the nibble of each output. */
static const uint32_t awq_nibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};

static uint32_t word_at(const struct safetensors_tensor *tensor, size_t index)
{
    uint32_t word;
    memcpy(&word, tensor->data + index * 4, 4);
    return word;
}

static uint8_t code_at(const struct quant_matrix *q, uint32_t out, uint32_t k)
{
    if (q->config.method == QUANT_GPTQ) {
        return (uint8_t)(word_at(q->codes, (size_t)(k / 8) * q->matrix.n_out + out) >> (k % 8 * 4) & 15u);
    }
    return (uint8_t)(word_at(q->codes, (size_t)k * (q->matrix.n_out / 8) + out / 8) >> (awq_nibble[out % 8] * 4) & 15u);
}

static uint8_t zero_at(const struct quant_matrix *q, uint32_t out, uint32_t group)
{
    uint32_t word = word_at(q->zeros, (size_t)group * (q->matrix.n_out / 8) + out / 8);
    if (q->config.method == QUANT_AWQ) { return (uint8_t)(word >> (awq_nibble[out % 8] * 4) & 15u); }
    return (uint8_t)(((word >> (out % 8 * 4) & 15u) + (q->config.zeros_are_one_less ? 1u : 0u)) & 15u);
}

static uint32_t file_groups(const struct quant_matrix *q)
{
    return (q->matrix.n_in + q->file_group - 1) / q->file_group;
}

/* ---- finding -------------------------------------------------------------------------------- */

static status_t find_part(const struct safetensors *checkpoint, const char *stem, const char *part, const char *dtype,
                          const uint64_t *shape, uint32_t rank, struct diag *diag, const struct safetensors_tensor **ret_tensor)
{
    char name[160], wanted[64], found[192];
    snprintf(name, sizeof name, "%s%s", stem, part);
    const struct safetensors_tensor *tensor = safetensors_find(checkpoint, name);
    safetensors_shape_text(shape, rank, wanted, sizeof wanted);
    if (tensor == NULL) {
        diag_set(diag, "%s: tensor %s is missing; its matrix asks for it with shape %s", safetensors_source(checkpoint), name, wanted);
        return STATUS(ST_DATA_LOSS, SCOPE_NODE);
    }
    if (tensor->rank != rank || memcmp(tensor->shape, shape, rank * sizeof shape[0]) != 0 || strcmp(tensor->dtype, dtype) != 0) {
        safetensors_shape_text(tensor->shape, tensor->rank, found, sizeof found);
        diag_set(diag, "%s: tensor %s is %s %s; its matrix asks for %s %s", tensor->file, name, tensor->dtype, found, dtype, wanted);
        return STATUS(ST_DATA_LOSS, SCOPE_NODE);
    }
    *ret_tensor = tensor;
    return STATUS_OK;
}

/* Groups hold as many inputs as config.json says, each input one; in order, or not. */
static status_t check_groups(const struct quant_matrix *q, struct diag *diag, bool *ret_is_in_order)
{
    uint32_t groups = file_groups(q);
    uint32_t *counts = calloc(groups, sizeof *counts);
    if (counts == NULL) {
        diag_set(diag, "no memory to count %u groups", groups);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    bool is_in_order = true;
    status_t st = STATUS_OK;
    for (uint32_t k = 0; k < q->matrix.n_in; k++) {
        uint32_t group = word_at(q->groups_of, k);
        if (group >= groups) {
            diag_set(diag, "%s: tensor %s puts input %u in group %u of %u", q->groups_of->file, q->groups_of->name, k, group, groups);
            st = STATUS(ST_DATA_LOSS, SCOPE_NODE);
            goto done;
        }
        counts[group]++;
        is_in_order = is_in_order && group == k / q->file_group;
    }
    for (uint32_t group = 0; group < groups; group++) {
        uint32_t rest = q->matrix.n_in - group * q->file_group, wanted = rest < q->file_group ? rest : q->file_group;
        if (counts[group] != wanted) {
            diag_set(diag, "%s: tensor %s puts %u inputs in group %u; groups of %u are supported", q->groups_of->file,
                     q->groups_of->name, counts[group], group, wanted);
            st = STATUS(ST_DATA_LOSS, SCOPE_NODE);
            goto done;
        }
    }
    *ret_is_in_order = is_in_order;
done:
    free(counts);
    return st;
}

static bool zeros_are_symmetric(const struct quant_matrix *q)
{
    for (uint32_t group = 0; group < file_groups(q); group++) {
        for (uint32_t out = 0; out < q->matrix.n_out; out++) {
            if (zero_at(q, out, group) != INT4_ZERO_SYMMETRIC) { return false; }
        }
    }
    return true;
}

/* The longest group of ours that the file's groups are whole multiples of. */
static uint32_t packed_group(const struct quant_matrix *q)
{
    if (q->file_group >= q->matrix.n_in) { return 128; } /* one scale for all: any cut will do */
    return q->file_group % 128 == 0 ? 128 : q->file_group % 64 == 0 ? 64 : 32;
}

status_t quant_matrix_find(const struct safetensors *checkpoint, const struct quant_config *config, const char *prefix,
                           const char *name, uint32_t n_out, uint32_t n_in, struct diag *diag, bool *ret_found,
                           struct quant_matrix *ret_matrix)
{
    char stem[144], full[160];
    size_t length = strlen(name), suffix = strlen("weight");
    *ret_found = false;
    if (length < suffix || strcmp(name + length - suffix, "weight") != 0) { return STATUS_OK; }
    for (int with_prefix = 1; ; with_prefix--) {
        if (with_prefix < 0) { return STATUS_OK; }
        snprintf(stem, sizeof stem, "%s%.*s", with_prefix ? prefix : "", (int)(length - suffix), name);
        snprintf(full, sizeof full, "%sqweight", stem);
        if (safetensors_find(checkpoint, full) != NULL) { break; }
    }
    struct quant_matrix q = {.config = *config, .matrix = {.format = KERNELS_WEIGHT_INT4, .n_out = n_out, .n_in = n_in}};
    if (n_in % 8 != 0 || n_out % 8 != 0) {
        diag_set(diag, "%s: %s is %u by %u; quantized matrices come in multiples of 8", safetensors_source(checkpoint), full, n_out, n_in);
        return STATUS(ST_DATA_LOSS, SCOPE_NODE);
    }
    q.file_group = config->group != 0 && config->group < n_in ? config->group : n_in;
    q.matrix.group = packed_group(&q);
    const uint64_t groups = file_groups(&q);
    const uint64_t codes_gptq[2] = {n_in / 8, n_out}, codes_awq[2] = {n_in, n_out / 8}, zeros[2] = {groups, n_out / 8};
    const uint64_t scales[2] = {groups, n_out}, groups_of[1] = {n_in};
    const bool is_gptq = config->method == QUANT_GPTQ;
    TRY(find_part(checkpoint, stem, "qweight", "I32", is_gptq ? codes_gptq : codes_awq, 2, diag, &q.codes));
    TRY(find_part(checkpoint, stem, "qzeros", "I32", zeros, 2, diag, &q.zeros));
    TRY(find_part(checkpoint, stem, "scales", "F16", scales, 2, diag, &q.scales));
    snprintf(full, sizeof full, "%sg_idx", stem);
    if (is_gptq && safetensors_find(checkpoint, full) != NULL) {
        bool is_in_order;
        TRY(find_part(checkpoint, stem, "g_idx", "I32", groups_of, 1, diag, &q.groups_of));
        TRY(check_groups(&q, diag, &is_in_order));
        q.matrix.has_order = !is_in_order;
    }
    q.matrix.has_zeros = !zeros_are_symmetric(&q);
    *ret_matrix = q;
    *ret_found = true;
    return STATUS_OK;
}

/* ---- packing -------------------------------------------------------------------------------- */

/* order[k] is the input that comes k-th: the inputs of group 0 as they follow each other, then group 1's. */
static status_t make_order(const struct quant_matrix *q, struct diag *diag, uint32_t **ret_order)
{
    const uint32_t n_in = q->matrix.n_in, groups = file_groups(q);
    uint32_t *order = malloc((size_t)n_in * sizeof *order), *next = malloc((size_t)groups * sizeof *next);
    if (order == NULL || next == NULL) {
        free(order);
        free(next);
        diag_set(diag, "no memory for the order of %u inputs", n_in);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    for (uint32_t group = 0; group < groups; group++) { next[group] = group * q->file_group; }
    for (uint32_t k = 0; k < n_in; k++) {
        uint32_t group = q->matrix.has_order ? word_at(q->groups_of, k) : k / q->file_group;
        order[next[group]++] = k;
    }
    free(next);
    *ret_order = order;
    return STATUS_OK;
}

static void pack_panel(const struct quant_matrix *q, uint32_t panel, const uint32_t *order, uint8_t *codes, uint16_t *scales,
                       uint8_t *zeros, void *data)
{
    const struct kernels_matrix *m = &q->matrix;
    const uint32_t groups = int4_groups(m);
    for (uint32_t i = 0; i < KERNELS_PANEL && panel * KERNELS_PANEL + i < m->n_out; i++) {
        const uint32_t out = panel * KERNELS_PANEL + i;
        for (uint32_t k = 0; k < m->n_in; k++) { codes[(size_t)i * m->n_in + k] = code_at(q, out, order[k]); }
        for (uint32_t group = 0; group < groups; group++) {
            uint32_t from = group * m->group / q->file_group;
            memcpy(&scales[(size_t)i * groups + group], q->scales->data + ((size_t)from * m->n_out + out) * 2, 2);
            zeros[(size_t)i * groups + group] = zero_at(q, out, from);
        }
    }
    quantize_int4_panel(m, panel, codes, scales, m->has_zeros ? zeros : NULL, data);
}

status_t quant_matrix_pack(const struct quant_matrix *q, uint32_t panel_first, uint32_t panel_count, struct diag *diag, void *data)
{
    const struct kernels_matrix *m = &q->matrix;
    const uint32_t groups = int4_groups(m);
    uint32_t *order = NULL;
    TRY(make_order(q, diag, &order));
    uint8_t *codes = malloc((size_t)KERNELS_PANEL * m->n_in), *zeros = malloc((size_t)KERNELS_PANEL * groups);
    uint16_t *scales = malloc((size_t)KERNELS_PANEL * groups * sizeof *scales);
    status_t st = STATUS_OK;
    if (codes == NULL || zeros == NULL || scales == NULL) {
        diag_set(diag, "no memory to unpack 16 outputs of %u inputs", m->n_in);
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
        goto done;
    }
    for (uint32_t p = panel_first; p < panel_first + panel_count; p++) { pack_panel(q, p, order, codes, scales, zeros, data); }
    if (m->has_order && panel_first == 0) {
        unsigned char *to = (unsigned char *)data + kernels_matrix_panel_bytes(m) * kernels_matrix_panels(m);
        for (uint32_t k = 0; k < int4_k(m); k++) { memcpy(to + (size_t)k * 4, k < m->n_in ? &order[k] : &m->n_in, 4); }
    }
done:
    free(order);
    free(codes);
    free(zeros);
    free(scales);
    return st;
}
