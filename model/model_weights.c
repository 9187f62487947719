#include "model/model_weights.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/check.h"
#include "base/log.h"
#include "kernels/quantize.h"
#include "model/device_weights.h"
#include "model/huge_memory.h"
#include "model/model_fingerprint.h"
#include "model/model_weights_storage.h"
#include "model/quant_config.h"
#include "model/quant_matrix.h"

#define ALIGNMENT 64u
#define INT4_GROUP 32u
#define FILL_THREADS_MAX 64u
/* Of one piece of work where a matrix can be packed in parts: a few hundred KB. */
#define PIECE_PANELS 32u

static size_t align_up(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

bool model_weights_entry_is_matrix(const struct tensor_plan_entry *entry, const struct model_weights *weights)
{
    return entry->rank == 2 && entry->dest[0] != &weights->positions;
}

void model_weights_dest_shape(const struct tensor_plan_entry *entry, uint32_t *ret_rows, uint32_t *ret_cols)
{
    bool is_transposed = entry->role == TENSOR_CONV1D;
    uint64_t rows = entry->rank == 1 ? 1 : is_transposed ? entry->shape[1] : entry->shape[0];
    uint64_t cols = entry->rank == 1 || is_transposed ? entry->shape[0] : entry->shape[1];
    if (entry->rank == 1) { cols /= entry->dest_count; }
    else { rows /= entry->dest_count; }
    *ret_rows = (uint32_t)rows;
    *ret_cols = (uint32_t)cols;
}

static struct kernels_matrix dest_matrix(const struct tensor_plan_entry *entry, const struct model_weights *weights,
                                         enum model_weight_format format, bool is_quantized_file, const struct weight_source *source)
{
    if (source->is_quantized) { return source->quant.matrix; }
    struct kernels_matrix matrix = {0};
    bool is_table = entry->dest[0] == &weights->embedding || entry->dest[0] == &weights->head;
    model_weights_dest_shape(entry, &matrix.n_out, &matrix.n_in);
    /* What such a file leaves as it was, bar the tables, was left for a reason. */
    if (is_quantized_file && !is_table) { format = MODEL_WEIGHTS_AUTO; }
    switch (format) {
    case MODEL_WEIGHTS_AUTO: matrix.format = (enum kernels_weight)source->file_dtype; break;
    case MODEL_WEIGHTS_BF16: matrix.format = KERNELS_WEIGHT_BF16; break;
    case MODEL_WEIGHTS_INT8: matrix.format = KERNELS_WEIGHT_INT8; break;
    case MODEL_WEIGHTS_INT4:
        /* The head chooses the token: of all matrices it forgives least. */
        matrix.format = is_table ? KERNELS_WEIGHT_INT8 : KERNELS_WEIGHT_INT4;
        matrix.group = is_table ? 0 : INT4_GROUP;
        break;
    }
    return matrix;
}

/* A device multiplies activations by weights of their own dtype alone: all matrices take the format of the first layer's
 * q, or the one that is asked for. */
static struct kernels_matrix device_matrix(const struct tensor_plan_entry *entry, const struct model_weights *weights,
                                           enum model_weight_format format)
{
    const struct model_weights_storage *storage = weights->storage;
    struct kernels_matrix matrix = {.format = KERNELS_WEIGHT_BF16, .order = KERNELS_ORDER_ROWS};
    for (uint32_t i = 0; i < storage->plan.count && format == MODEL_WEIGHTS_AUTO; i++) {
        if (storage->plan.entries[i].dest[0] != &weights->layers[0].q) { continue; }
        matrix.format = (enum kernels_weight)storage->sources[i].file_dtype;
        break;
    }
    model_weights_dest_shape(entry, &matrix.n_out, &matrix.n_in);
    matrix.stride = kernels_matrix_rows_stride(matrix.n_in);
    return matrix;
}

static status_t check_device_format(const struct model_weights_options *options, bool is_quantized_file, struct diag *diag)
{
    if (is_quantized_file) {
        diag_set(diag, "%s: its weights are int4 (GPTQ or AWQ), which --backend=cuda does not compute with; give the "
                 "checkpoint that it was made from, or --backend=cpu", options->directory);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (options->format != MODEL_WEIGHTS_AUTO && options->format != MODEL_WEIGHTS_BF16) {
        diag_set(diag, "--weights=%s: --backend=cuda computes with bf16, f16 and f32; take --weights=auto or bf16, or "
                 "--backend=cpu", options->format == MODEL_WEIGHTS_INT8 ? "int8" : "int4");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    return STATUS_OK;
}

/* ---- open ----------------------------------------------------------------------------------- */

/* A checkpoint of a tied model may hold the head too, or only the head. As in transformers 5: where both
 * are there and differ, the file is believed and not the config; a lone head serves as embedding. */
static void settle_tie(const struct safetensors *checkpoint, const struct model_config *config,
                       struct tensor_plan *plan, struct model_weights *weights)
{
    if (!config->embeddings_are_tied) { return; }
    const struct safetensors_tensor *head = safetensors_find(checkpoint, "lm_head.weight");
    if (!head) { return; }
    const struct safetensors_tensor *embedding = weight_source_find(checkpoint, plan->prefix, &plan->entries[0]);
    if (!embedding) {
        strcpy(plan->entries[0].name, "lm_head.weight");
        plan->entries[0].is_in_base = false;
    } else if (head->bytes != embedding->bytes || strcmp(head->dtype, embedding->dtype) != 0 ||
               memcmp(head->data, embedding->data, (size_t)head->bytes) != 0) { /* the plan keeps one entry free for this */
        struct tensor_plan_entry *own = &plan->entries[plan->count++];
        *own = plan->entries[0];
        strcpy(own->name, "lm_head.weight");
        own->is_in_base = false;
        own->dest[0] = &weights->head;
    }
}

static status_t weights_alloc(const struct model_config *config, struct diag *diag, struct model_weights **ret_weights)
{
    struct model_weights *weights = calloc(1, sizeof *weights);
    if (weights) {
        weights->layers = calloc(config->layer_count, sizeof *weights->layers);
        weights->storage = calloc(1, sizeof *weights->storage);
    }
    if (!weights || !weights->layers || !weights->storage) {
        model_weights_destroy(weights);
        diag_set(diag, "no memory for the table of %u layers", config->layer_count);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    *ret_weights = weights;
    return STATUS_OK;
}

static void fingerprint_add(struct model_fingerprint_state *fingerprint, const struct tensor_plan_entry *entry,
                            const struct weight_source *source)
{
    if (source->tensor) {
        const struct safetensors_tensor *tensor = source->tensor;
        model_fingerprint_add(fingerprint, entry->name, tensor->dtype, tensor->shape, tensor->rank, tensor->data, tensor->bytes);
        if (!source->is_quantized) { return; }
        const struct safetensors_tensor *const parts[] = {source->quant.zeros, source->quant.scales, source->quant.groups_of};
        for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
            if (!parts[i]) { continue; }
            model_fingerprint_add(fingerprint, parts[i]->name, parts[i]->dtype, parts[i]->shape, parts[i]->rank, parts[i]->data,
                                  parts[i]->bytes);
        }
        const uint64_t how[3] = {source->quant.config.method, source->quant.config.zeros_are_one_less, source->quant.file_group};
        model_fingerprint_add(fingerprint, "quantization", "codes", how, 3, NULL, 0);
    } else {
        model_fingerprint_add(fingerprint, entry->name, dtype_name(source->file_dtype), entry->shape, entry->rank, NULL, 0);
    }
}

/* Finds what the plan asks for, and lists the matrices that will be packed. */
static status_t resolve_all(struct model_weights *weights, const struct model_weights_options *options,
                            struct model_fingerprint_state *fingerprint, struct diag *diag)
{
    struct model_weights_storage *storage = weights->storage;
    struct quant_config quant = {.method = QUANT_NONE};
    if (!options->is_dummy) { TRY(quant_config_load(options->directory, diag, &quant)); }
    bool is_quantized_file = quant.method != QUANT_NONE;
    if (is_quantized_file && options->format != MODEL_WEIGHTS_AUTO && options->format != MODEL_WEIGHTS_INT4) {
        diag_set(diag, "%s: its weights are int4 (%s); --weights takes auto or int4 for it", options->directory,
                 quant.method == QUANT_GPTQ ? "GPTQ" : "AWQ");
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    if (options->is_for_device) { TRY(check_device_format(options, is_quantized_file, diag)); }
    for (uint32_t i = 0; i < storage->plan.count; i++) {
        const struct tensor_plan_entry *entry = &storage->plan.entries[i];
        struct weight_source *source = &storage->sources[i];
        if (options->is_dummy) {
            *source = weight_source_made_up(entry, options->dummy_seed, i);
        } else {
            bool is_found;
            TRY(weight_source_resolve_quantized(storage->checkpoint, &quant, storage->plan.prefix, entry, diag, &is_found, source));
            if (!is_found) { TRY(weight_source_resolve(storage->checkpoint, storage->plan.prefix, entry, diag, source)); }
        }
        fingerprint_add(fingerprint, entry, source);
    }
    for (uint32_t i = 0; i < storage->plan.count; i++) {
        const struct tensor_plan_entry *entry = &storage->plan.entries[i];
        const struct weight_source *source = &storage->sources[i];
        if (!model_weights_entry_is_matrix(entry, weights)) { continue; }
        storage->entry_first_item[i] = storage->item_count;
        for (uint32_t d = 0; d < entry->dest_count; d++) {
            struct weight_pack_item *item = &storage->items[storage->item_count++];
            item->matrix = options->is_for_device ? device_matrix(entry, weights, options->format)
                                                  : dest_matrix(entry, weights, options->format, is_quantized_file, source);
            item->offset = storage->packed_bytes;
            storage->packed_bytes += align_up(kernels_matrix_bytes(&item->matrix));
        }
    }
    if (options->is_dummy) {
        model_fingerprint_add(fingerprint, WEIGHT_SOURCE_GENERATOR, "seed", &options->dummy_seed, 1, NULL, 0);
    }
    /* KV that other numbers computed is other KV: formats that are not the checkpoint's own count. */
    for (uint32_t i = 0; i < storage->plan.count; i++) {
        const struct tensor_plan_entry *entry = &storage->plan.entries[i];
        if (!model_weights_entry_is_matrix(entry, weights)) { continue; }
        const struct kernels_matrix *matrix = &storage->items[storage->entry_first_item[i]].matrix;
        if ((int)matrix->format == (int)storage->sources[i].file_dtype) { continue; }
        const uint64_t shape[4] = {matrix->n_out, matrix->n_in, matrix->group, QUANTIZE_VERSION};
        model_fingerprint_add(fingerprint, entry->name, kernels_weight_name(matrix->format), shape, 4, NULL, 0);
    }
    return STATUS_OK;
}

/* Shapes and dtypes, before there is data: what is asked of a model while its weights are still to come. */
static void describe_all(struct model_weights *weights)
{
    const struct model_weights_storage *storage = weights->storage;
    for (uint32_t i = 0; i < storage->plan.count; i++) {
        const struct tensor_plan_entry *entry = &storage->plan.entries[i];
        const bool is_matrix = model_weights_entry_is_matrix(entry, weights);
        for (uint32_t d = 0; d < entry->dest_count; d++) {
            struct model_tensor tensor = {.dtype = is_matrix ? storage->sources[i].file_dtype : storage->sources[i].dtype};
            model_weights_dest_shape(entry, &tensor.rows, &tensor.cols);
            if (is_matrix) { tensor.matrix = storage->items[storage->entry_first_item[i] + d].matrix; }
            *entry->dest[d] = tensor;
        }
    }
    if (weights->head.rows == 0) { weights->head = weights->embedding; }
}

status_t model_weights_open(const struct model_weights_options *options, const struct model_config *config,
                            struct model_fingerprint_state *fingerprint, struct diag *diag,
                            struct model_weights **ret_weights)
{
    struct model_weights *weights;
    TRY(weights_alloc(config, diag, &weights));
    struct model_weights_storage *storage = weights->storage;
    status_t st = options->is_dummy ? STATUS_OK : safetensors_open(options->directory, diag, &storage->checkpoint);
    if (failed(st)) { goto fail; }
    st = tensor_plan_make(config, weights, diag, &storage->plan);
    if (failed(st)) { goto fail; }
    if (storage->checkpoint) { settle_tie(storage->checkpoint, config, &storage->plan, weights); }
    storage->layer_count = config->layer_count;
    storage->sources = calloc(storage->plan.count, sizeof *storage->sources);
    storage->entry_first_item = calloc(storage->plan.count, sizeof *storage->entry_first_item);
    storage->items = calloc((size_t)storage->plan.count * 3, sizeof *storage->items);
    if (!storage->sources || !storage->entry_first_item || !storage->items) {
        diag_set(diag, "no memory for a list of %u tensors", storage->plan.count);
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
        goto fail;
    }
    st = resolve_all(weights, options, fingerprint, diag);
    if (failed(st)) { goto fail; }
    describe_all(weights);
    if (options->is_for_device) { snprintf(weights->note, sizeof weights->note, "left where they are, for the device"); }
    *ret_weights = weights;
    return STATUS_OK;
fail:
    model_weights_destroy(weights);
    return st;
}

/* ---- pack ----------------------------------------------------------------------------------- */

/* Panels of one destination, out of row-major [out][in] of all destinations of the entry. */
static void pack_panels(const struct kernels_matrix *matrix, const void *rows, enum dtype dtype, uint32_t panel_first,
                        uint32_t panel_count, void *out)
{
    const struct quantize_rows in = {.data = rows, .dtype = dtype, .stride = matrix->n_in, .n_out = matrix->n_out, .n_in = matrix->n_in};
    switch (matrix->format) {
    case KERNELS_WEIGHT_INT8: quantize_int8(&in, panel_first, panel_count, out); break;
    case KERNELS_WEIGHT_INT4: quantize_int4(&in, matrix, panel_first, panel_count, out); break;
    default: kernels_matrix_pack(matrix, rows, matrix->n_in, dtype, panel_first, panel_count, out); break;
    }
}

/* A matrix that lies in a file in its own order is packed in parts; one that must be turned or made first,
 * as a whole. */
struct fill_piece {
    uint32_t entry;
    uint32_t panel_first, panel_count; /* of the only destination; count 0: all of every destination */
};

struct fill_job {
    const struct model_weights_storage *storage;
    const struct fill_piece *pieces;
    uint32_t piece_count;
    _Atomic uint32_t next;
    _Atomic bool has_failed;
    pthread_mutex_t mutex; /* guards status and diag, which the first failure writes */
    status_t status;
    struct diag diag;
};

static status_t fill_piece(const struct model_weights_storage *storage, const struct fill_piece *piece, struct diag *diag)
{
    const struct tensor_plan_entry *entry = &storage->plan.entries[piece->entry];
    const struct weight_source *source = &storage->sources[piece->entry];
    const struct weight_pack_item *item = &storage->items[storage->entry_first_item[piece->entry]];
    if (source->is_quantized) {
        return quant_matrix_pack(&source->quant, piece->panel_first, piece->panel_count, diag, (uint8_t *)storage->packed + item->offset);
    }
    const void *rows = NULL;
    void *owned = NULL;
    TRY(weight_source_rows(entry, source, diag, &rows, &owned));
    if (piece->panel_count != 0) {
        pack_panels(&item->matrix, rows, source->file_dtype, piece->panel_first, piece->panel_count,
                    (uint8_t *)storage->packed + item->offset);
    } else {
        for (uint32_t d = 0; d < entry->dest_count; d++, item++) {
            pack_panels(&item->matrix, rows, source->file_dtype, 0, kernels_matrix_panels(&item->matrix),
                        (uint8_t *)storage->packed + item->offset);
            rows = (const uint8_t *)rows + (size_t)item->matrix.n_out * item->matrix.n_in * dtype_bytes(source->file_dtype);
        }
    }
    free(owned);
    return STATUS_OK;
}

static void *fill_main(void *arg)
{
    struct fill_job *job = arg;
    for (uint32_t i; (i = atomic_fetch_add(&job->next, 1)) < job->piece_count && !atomic_load(&job->has_failed);) {
        struct diag diag;
        status_t st = fill_piece(job->storage, &job->pieces[i], &diag);
        if (!failed(st)) { continue; }
        pthread_mutex_lock(&job->mutex);
        if (!atomic_exchange(&job->has_failed, true)) {
            job->status = st;
            job->diag = diag;
        }
        pthread_mutex_unlock(&job->mutex);
    }
    return NULL;
}

static status_t run_fill(const struct model_weights_storage *storage, const struct fill_piece *pieces, uint32_t piece_count,
                         uint32_t threads, struct diag *diag)
{
    struct fill_job job = {.storage = storage, .pieces = pieces, .piece_count = piece_count, .mutex = PTHREAD_MUTEX_INITIALIZER};
    pthread_t ids[FILL_THREADS_MAX];
    uint32_t started = 0;
    sigset_t all, before; /* signals belong to the process's main loop */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (started + 1 < threads && started < FILL_THREADS_MAX && pthread_create(&ids[started], NULL, fill_main, &job) == 0) { started++; }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    fill_main(&job);
    for (uint32_t i = 0; i < started; i++) { pthread_join(ids[i], NULL); }
    if (!atomic_load(&job.has_failed)) { return STATUS_OK; }
    *diag = job.diag;
    return job.status;
}

static status_t pack_all(struct model_weights *weights, uint32_t threads, struct diag *diag)
{
    struct model_weights_storage *storage = weights->storage;
    uint32_t count = 0, room = 0;
    for (uint32_t i = 0; i < storage->item_count; i++) { room += kernels_matrix_panels(&storage->items[i].matrix) / PIECE_PANELS + 1; }
    struct fill_piece *pieces = calloc(room + 1, sizeof *pieces);
    if (!pieces) {
        diag_set(diag, "no memory for a list of %u pieces of work", room);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    status_t st = huge_memory_alloc(storage->packed_bytes, diag, &storage->packed);
    if (failed(st)) {
        free(pieces);
        return st;
    }
    for (uint32_t i = 0; i < storage->plan.count; i++) {
        const struct tensor_plan_entry *entry = &storage->plan.entries[i];
        if (!model_weights_entry_is_matrix(entry, weights)) { continue; }
        const struct kernels_matrix *matrix = &storage->items[storage->entry_first_item[i]].matrix;
        const uint32_t panels = kernels_matrix_panels(matrix);
        if (!storage->sources[i].tensor || entry->role == TENSOR_CONV1D) {
            pieces[count++] = (struct fill_piece){.entry = i};
            continue;
        }
        for (uint32_t p = 0; p < panels; p += PIECE_PANELS) {
            CHECK(count <= room);
            pieces[count++] = (struct fill_piece){.entry = i, .panel_first = p, .panel_count = panels - p < PIECE_PANELS ? panels - p : PIECE_PANELS};
        }
    }
    st = run_fill(storage, pieces, count, threads, diag);
    free(pieces);
    return st;
}

/* ---- fill ----------------------------------------------------------------------------------- */

/* Differs when a source file was written to: the fingerprint samples large tensors. */
static uint64_t source_stamp(const struct model_weights_storage *storage)
{
    const char *last = NULL;
    uint64_t stamp = 0;
    for (uint32_t i = 0; i < storage->plan.count; i++) {
        const struct safetensors_tensor *tensor = storage->sources[i].tensor;
        struct stat info;
        if (!tensor || tensor->file == last || stat(tensor->file, &info) != 0) { continue; }
        last = tensor->file;
        const uint64_t parts[3] = {(uint64_t)info.st_size, (uint64_t)info.st_mtim.tv_sec, (uint64_t)info.st_mtim.tv_nsec};
        for (int k = 0; k < 3; k++) { stamp = (stamp ^ parts[k]) * UINT64_C(0x9e3779b97f4a7c15); }
    }
    return stamp;
}

static status_t fill_vectors(struct model_weights *weights, struct diag *diag)
{
    struct model_weights_storage *storage = weights->storage;
    size_t bytes = 0;
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1) { TRY(huge_memory_alloc(bytes, diag, &storage->vectors)); }
        storage->vectors_bytes = bytes;
        size_t at = 0;
        for (uint32_t i = 0; i < storage->plan.count; i++) {
            const struct tensor_plan_entry *entry = &storage->plan.entries[i];
            const struct weight_source *source = &storage->sources[i];
            if (model_weights_entry_is_matrix(entry, weights)) { continue; }
            uint8_t *out = pass == 0 ? NULL : (uint8_t *)storage->vectors + at;
            at += align_up((size_t)weight_source_elements(entry) * dtype_bytes(source->dtype));
            if (pass == 0) { continue; }
            weight_source_values(entry, source, out);
            for (uint32_t d = 0; d < entry->dest_count; d++) {
                struct model_tensor tensor = {.data = out, .dtype = source->dtype};
                model_weights_dest_shape(entry, &tensor.rows, &tensor.cols);
                out += (size_t)tensor.rows * tensor.cols * dtype_bytes(source->dtype);
                *entry->dest[d] = tensor;
            }
        }
        bytes = at;
    }
    return STATUS_OK;
}

static void place_matrices(struct model_weights *weights)
{
    const struct model_weights_storage *storage = weights->storage;
    for (uint32_t i = 0; i < storage->plan.count; i++) {
        const struct tensor_plan_entry *entry = &storage->plan.entries[i];
        if (!model_weights_entry_is_matrix(entry, weights)) { continue; }
        for (uint32_t d = 0; d < entry->dest_count; d++) {
            const struct weight_pack_item *item = &storage->items[storage->entry_first_item[i] + d];
            struct model_tensor tensor = {.data = (uint8_t *)storage->packed + item->offset, .dtype = storage->sources[i].file_dtype,
                                          .rows = item->matrix.n_out, .cols = item->matrix.n_in, .matrix = item->matrix};
            tensor.matrix.data = tensor.data;
            *entry->dest[d] = tensor;
        }
    }
    if (!weights->head.data) { weights->head = weights->embedding; }
}

static status_t fill_matrices(struct model_weights *weights, const struct model_weights_options *options,
                              const uint8_t *fingerprint, struct diag *diag)
{
    struct model_weights_storage *storage = weights->storage;
    const uint32_t threads = options->threads != 0 ? options->threads : 1;
    struct weight_pack_plan plan = {.items = storage->items, .item_count = storage->item_count, .bytes = storage->packed_bytes,
                                    .stamp = source_stamp(storage)};
    memcpy(plan.fingerprint, fingerprint, sizeof plan.fingerprint);
    static _Thread_local char path[WEIGHT_PACK_PATH_BYTES];
    bool has_path = weight_pack_path(options->pack_cache, options->directory, &plan, path);
    if (has_path) {
        struct diag why = {{0}};
        status_t st = weight_pack_load(path, &plan, threads, &why, &storage->packed);
        if (!failed(st)) {
            storage->packed_is_mapped = true;
            snprintf(weights->note, sizeof weights->note, "loaded %.200s", path);
            return STATUS_OK;
        }
        if (st.code == ST_RESOURCE_EXHAUSTED) {
            *diag = why;
            return st;
        }
        if (st.code == ST_NOT_FOUND) {
            snprintf(weights->note, sizeof weights->note, "packed; writing %.200s", path);
        } else {
            snprintf(weights->note, sizeof weights->note, "packed anew: %.240s", why.text);
        }
    } else {
        snprintf(weights->note, sizeof weights->note, "packed; not kept");
        const bool is_folder = options->pack_cache && strcmp(options->pack_cache, "off") != 0 && strcmp(options->pack_cache, "auto") != 0;
        const bool is_large = options->pack_cache && strcmp(options->pack_cache, "auto") == 0 && plan.bytes >= WEIGHT_PACK_AUTO_BYTES_MIN;
        if (is_folder || is_large) {
            LOGF(LOG_WARN, "pack_not_saved", "why=\"--pack-cache=%s: no folder that can be written\"", options->pack_cache);
        }
    }
    TRY(pack_all(weights, threads, diag));
    if (has_path) { weight_pack_save_later(path, &plan, storage->packed, &storage->saver); }
    return STATUS_OK;
}

status_t model_weights_fill(struct model_weights *weights, const struct model_weights_options *options,
                            const uint8_t *fingerprint, struct diag *diag)
{
    struct model_weights_storage *storage = weights->storage;
    TRY(fill_vectors(weights, diag));
    TRY(fill_matrices(weights, options, fingerprint, diag));
    place_matrices(weights);
    weights->mapped_bytes = storage->packed_is_mapped ? storage->packed_bytes : 0;
    weights->owned_bytes = storage->vectors_bytes + storage->packed_bytes - weights->mapped_bytes;
    safetensors_close(storage->checkpoint); /* everything is copied: its pages must not count as ours */
    storage->checkpoint = NULL;
    return STATUS_OK;
}

void model_weights_settle(struct model_weights *weights) { weight_pack_saver_wait(weights->storage->saver); }

void model_weights_destroy(struct model_weights *weights)
{
    if (!weights) { return; }
    struct model_weights_storage *storage = weights->storage;
    if (storage) {
        weight_pack_saver_join(storage->saver);
        safetensors_close(storage->checkpoint);
        if (storage->packed_is_mapped) {
            weight_pack_unload(storage->packed, storage->packed_bytes);
        } else {
            huge_memory_free(storage->packed, storage->packed_bytes);
        }
        huge_memory_free(storage->vectors, storage->vectors_bytes);
        free(storage->sources);
        free(storage->items);
        free(storage->entry_first_item);
        free(storage->plan.entries);
    }
    free(storage);
    free(weights->layers);
    free(weights);
}
