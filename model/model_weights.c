#include "model/model_weights.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/check.h"
#include "model/model_fingerprint.h"
#include "model/safetensors.h"
#include "model/tensor_plan.h"

#define OWNED_ALIGNMENT 64u

struct model_weights_storage {
    struct safetensors *checkpoint; /* keeps the mappings; NULL for dummy weights */
    void *owned;                    /* one anonymous mapping for all copies */
    size_t owned_bytes;
};

/* How one tensor of the plan is had. */
struct source {
    const struct safetensors_tensor *tensor; /* NULL: made up */
    enum dtype file_dtype;
    enum dtype dtype;    /* as the forward pass sees it */
    size_t owned_offset; /* of the copy */
};

/* Matrices are packed; the table of positions is read by row and added, so it stays as it is. */
static bool entry_is_matrix(const struct tensor_plan_entry *entry, const struct model_weights *weights)
{
    return entry->rank == 2 && entry->dest[0] != &weights->positions;
}

static bool entry_is_f32(const struct tensor_plan_entry *entry)
{
    return entry->role == TENSOR_NORM_AS_F32 || entry->role == TENSOR_BIAS_AS_F32;
}

static uint64_t entry_elements(const struct tensor_plan_entry *entry)
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

static const char *const file_dtype_names[DTYPE_COUNT] = {"F32", "BF16", "F16"};

/* With the base model's prefix, or as checkpoints of the bare base model have it. */
static const struct safetensors_tensor *find_tensor(const struct safetensors *checkpoint, const char *prefix,
                                                    const struct tensor_plan_entry *entry)
{
    char name[128];
    snprintf(name, sizeof name, "%s%s", entry->is_in_base ? prefix : "", entry->name);
    const struct safetensors_tensor *tensor = safetensors_find(checkpoint, name);
    return tensor ? tensor : safetensors_find(checkpoint, entry->name);
}

/* The tensor of a plan entry, checked against what the config asks for. */
static status_t resolve(const struct safetensors *checkpoint, const char *prefix,
                        const struct tensor_plan_entry *entry, struct diag *diag, struct source *ret_source)
{
    char wanted[64], found[192];
    safetensors_shape_text(entry->shape, entry->rank, wanted, sizeof wanted);
    const struct safetensors_tensor *tensor = find_tensor(checkpoint, prefix, entry);
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
    struct source source = {.tensor = tensor};
    if (!parse_dtype(tensor->dtype, &source.file_dtype)) {
        diag_set(diag, "%s: tensor %s, shape %s, has dtype %s; supported are F32, BF16 and F16", tensor->file,
                 tensor->name, wanted, tensor->dtype);
        return STATUS(ST_DATA_LOSS, SCOPE_NODE);
    }
    source.dtype = entry_is_f32(entry) ? DTYPE_F32 : source.file_dtype;
    *ret_source = source;
    return STATUS_OK;
}

/* Rows and columns of one destination: [out][in]. */
static void dest_shape(const struct tensor_plan_entry *entry, uint32_t *ret_rows, uint32_t *ret_cols)
{
    bool is_transposed = entry->role == TENSOR_CONV1D;
    uint64_t rows = entry->rank == 1 ? 1 : is_transposed ? entry->shape[1] : entry->shape[0];
    uint64_t cols = entry->rank == 1 || is_transposed ? entry->shape[0] : entry->shape[1];
    if (entry->rank == 1) { cols /= entry->dest_count; }
    else { rows /= entry->dest_count; }
    *ret_rows = (uint32_t)rows;
    *ret_cols = (uint32_t)cols;
}

static struct kernels_matrix dest_matrix(const struct tensor_plan_entry *entry, enum dtype dtype)
{
    struct kernels_matrix matrix = {.format = (enum kernels_weight)dtype};
    dest_shape(entry, &matrix.n_out, &matrix.n_in);
    return matrix;
}

static size_t align_up(size_t bytes) { return (bytes + OWNED_ALIGNMENT - 1) / OWNED_ALIGNMENT * OWNED_ALIGNMENT; }

/* Points the destinations at the bytes. */
static void place(const struct tensor_plan_entry *entry, enum dtype dtype, bool is_matrix, const void *data)
{
    const uint8_t *at = data;
    for (uint32_t i = 0; i < entry->dest_count; i++) {
        struct model_tensor tensor = {.data = at, .dtype = dtype};
        dest_shape(entry, &tensor.rows, &tensor.cols);
        if (is_matrix) {
            tensor.matrix = dest_matrix(entry, dtype);
            tensor.matrix.data = at;
            at += kernels_matrix_bytes(&tensor.matrix);
        } else {
            at += (size_t)tensor.rows * tensor.cols * dtype_bytes(dtype);
        }
        *entry->dest[i] = tensor;
    }
}

/* Packs row-major [out][in] of all destinations together. */
static void pack_rows(const struct tensor_plan_entry *entry, enum dtype dtype, const uint8_t *rows, uint8_t *out)
{
    struct kernels_matrix matrix = dest_matrix(entry, dtype);
    for (uint32_t i = 0; i < entry->dest_count; i++) {
        kernels_matrix_pack(&matrix, rows, matrix.n_in, dtype, 0, kernels_matrix_panels(&matrix), out);
        rows += (size_t)matrix.n_out * matrix.n_in * dtype_bytes(dtype);
        out += kernels_matrix_bytes(&matrix);
    }
}

/* out[c][r] = in[r][c]; in tiles, so that neither side misses the cache on every element. */
static void transpose(const uint8_t *in, size_t rows, size_t cols, uint32_t element_bytes, uint8_t *out)
{
    enum { TILE = 32 };
    for (size_t r0 = 0; r0 < rows; r0 += TILE) {
        for (size_t c0 = 0; c0 < cols; c0 += TILE) {
            size_t r1 = r0 + TILE < rows ? r0 + TILE : rows;
            size_t c1 = c0 + TILE < cols ? c0 + TILE : cols;
            for (size_t c = c0; c < c1; c++) {
                for (size_t r = r0; r < r1; r++) {
                    memcpy(out + (c * rows + r) * element_bytes, in + (r * cols + c) * element_bytes, element_bytes);
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

static status_t copy_tensor(const struct tensor_plan_entry *entry, const struct source *source, bool is_matrix,
                            struct diag *diag, uint8_t *out)
{
    const struct safetensors_tensor *tensor = source->tensor;
    uint32_t element_bytes = dtype_bytes(source->file_dtype);
    if (entry->role == TENSOR_CONV1D) {
        uint8_t *turned = malloc((size_t)tensor->bytes);
        if (!turned) {
            diag_set(diag, "no memory to transpose %s", tensor->name);
            return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
        }
        /* The two element sizes apart, so that the copy of one element is a move and not a call. */
        if (element_bytes == 2) { transpose(tensor->data, entry->shape[0], entry->shape[1], 2, turned); }
        else { transpose(tensor->data, entry->shape[0], entry->shape[1], 4, turned); }
        pack_rows(entry, source->dtype, turned, out);
        free(turned);
    } else if (is_matrix) {
        pack_rows(entry, source->dtype, tensor->data, out);
    } else if (source->dtype != source->file_dtype) {
        convert_to_f32(tensor->data, source->file_dtype, (size_t)entry_elements(entry), (float *)(void *)out);
    } else {
        memcpy(out, tensor->data, (size_t)tensor->bytes);
    }
    return STATUS_OK;
}

static status_t take_owned(struct model_weights_storage *storage, size_t bytes, struct diag *diag)
{
    if (bytes == 0) { return STATUS_OK; }
    void *owned = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (owned == MAP_FAILED) {
        int cause = errno;
        diag_set(diag, "no memory for %zu bytes of weights: %s", bytes, strerror(cause));
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, cause);
    }
    (void)madvise(owned, bytes, MADV_HUGEPAGE); /* fewer TLB misses; works without */
    storage->owned = owned;
    storage->owned_bytes = bytes;
    return STATUS_OK;
}

/* Gives every tensor its offset in the one mapping. */
static size_t lay_out(const struct model_weights *weights, const struct tensor_plan *plan, struct source *sources)
{
    size_t used = 0;
    for (uint32_t i = 0; i < plan->count; i++) {
        const struct tensor_plan_entry *entry = &plan->entries[i];
        sources[i].owned_offset = used;
        size_t bytes = (size_t)entry_elements(entry) * dtype_bytes(sources[i].dtype);
        if (entry_is_matrix(entry, weights)) {
            struct kernels_matrix matrix = dest_matrix(entry, sources[i].dtype);
            bytes = kernels_matrix_bytes(&matrix) * entry->dest_count;
        }
        used += align_up(bytes);
    }
    return used;
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

/* A checkpoint of a tied model may hold the head too, or only the head. As in transformers 5: where both
 * are there and differ, the file is believed and not the config; a lone head serves as embedding. */
static void settle_tie(const struct safetensors *checkpoint, const struct model_config *config,
                       const struct tensor_plan *plan, bool *ret_head_is_own, bool *ret_head_is_all)
{
    *ret_head_is_own = false;
    *ret_head_is_all = false;
    if (!config->embeddings_are_tied) { return; }
    const struct safetensors_tensor *head = safetensors_find(checkpoint, "lm_head.weight");
    if (!head) { return; }
    const struct safetensors_tensor *embedding = find_tensor(checkpoint, plan->prefix, &plan->entries[0]);
    if (!embedding) {
        *ret_head_is_all = true;
        return;
    }
    *ret_head_is_own = head->bytes != embedding->bytes || strcmp(head->dtype, embedding->dtype) != 0 ||
                       memcmp(head->data, embedding->data, (size_t)head->bytes) != 0;
}

static status_t load_plan(struct model_weights *weights, const struct model_config *config, struct tensor_plan *plan,
                          struct source *sources, struct model_fingerprint_state *fingerprint, struct diag *diag)
{
    struct model_weights_storage *storage = weights->storage;
    bool head_is_own, head_is_all;
    settle_tie(storage->checkpoint, config, plan, &head_is_own, &head_is_all);
    if (head_is_all) {
        strcpy(plan->entries[0].name, "lm_head.weight");
        plan->entries[0].is_in_base = false;
    }
    if (head_is_own) { /* the plan keeps one entry free for this */
        struct tensor_plan_entry *head = &plan->entries[plan->count++];
        *head = plan->entries[0];
        strcpy(head->name, "lm_head.weight");
        head->is_in_base = false;
        head->dest[0] = &weights->head;
    }
    for (uint32_t i = 0; i < plan->count; i++) {
        TRY(resolve(storage->checkpoint, plan->prefix, &plan->entries[i], diag, &sources[i]));
    }
    TRY(take_owned(storage, lay_out(weights, plan, sources), diag));
    for (uint32_t i = 0; i < plan->count; i++) {
        const struct tensor_plan_entry *entry = &plan->entries[i];
        const struct safetensors_tensor *tensor = sources[i].tensor;
        model_fingerprint_add(fingerprint, entry->name, tensor->dtype, tensor->shape, tensor->rank, tensor->data,
                              tensor->bytes);
        uint8_t *out = (uint8_t *)storage->owned + sources[i].owned_offset;
        bool is_matrix = entry_is_matrix(entry, weights);
        TRY(copy_tensor(entry, &sources[i], is_matrix, diag, out));
        place(entry, sources[i].dtype, is_matrix, out);
    }
    if (!weights->head.data) { weights->head = weights->embedding; }
    weights->owned_bytes = storage->owned_bytes;
    safetensors_close(storage->checkpoint); /* everything is copied: its pages must not count as ours */
    storage->checkpoint = NULL;
    return STATUS_OK;
}

status_t model_weights_load(const char *directory, const struct model_config *config,
                            struct model_fingerprint_state *fingerprint, struct diag *diag,
                            struct model_weights **ret_weights)
{
    struct model_weights *weights;
    struct tensor_plan plan = {0};
    struct source *sources = NULL;
    TRY(weights_alloc(config, diag, &weights));
    status_t st = safetensors_open(directory, diag, &weights->storage->checkpoint);
    if (failed(st)) { goto fail; }
    st = tensor_plan_make(config, weights, diag, &plan);
    if (failed(st)) { goto fail; }
    sources = calloc(plan.count + 1, sizeof *sources);
    if (!sources) {
        diag_set(diag, "no memory for a list of %u tensors", plan.count);
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
        goto fail;
    }
    st = load_plan(weights, config, &plan, sources, fingerprint, diag);
    if (failed(st)) { goto fail; }
    free(sources);
    free(plan.entries);
    *ret_weights = weights;
    return STATUS_OK;
fail:
    free(sources);
    free(plan.entries);
    model_weights_destroy(weights);
    return st;
}

static uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Uniform in -half_width .. half_width, as bf16. Sixteen xorshift generators side by side, so that the
 * compiler can use vectors: gigabytes of it are asked for.
 * Source: Marsaglia, "Xorshift RNGs", 2003, the triple 13, 17, 5. */
static void fill_uniform_bf16(uint64_t seed, float half_width, size_t count, uint16_t *out)
{
    enum { LANES = 16 };
    uint32_t state[LANES];
    for (int i = 0; i < LANES; i++) { state[i] = (uint32_t)splitmix64(&seed) | 1u; }
    float step = half_width / 32768.0f;
    uint16_t chunk[2 * LANES];
    for (size_t at = 0; at < count; at += 2 * LANES) {
        for (int i = 0; i < LANES; i++) {
            uint32_t x = state[i];
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
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
 * variable on -w .. w has variance w^2/3. Norm factors are 1, biases small. */
static void make_up(const struct tensor_plan_entry *entry, enum dtype dtype, uint64_t seed, void *out)
{
    size_t count = (size_t)entry_elements(entry);
    bool is_norm = entry->role == TENSOR_NORM || entry->role == TENSOR_NORM_AS_F32;
    if (dtype == DTYPE_F32) {
        float *values = out;
        for (size_t i = 0; i < count; i++) { values[i] = is_norm ? 1.0f : 0.0f; }
    } else if (is_norm) {
        uint16_t *values = out;
        for (size_t i = 0; i < count; i++) { values[i] = f32_to_bf16(1.0f); }
    } else {
        uint64_t n_in = entry->role == TENSOR_CONV1D ? entry->shape[0] : entry->shape[1];
        float half_width = entry->rank == 1 ? 0.02f : (float)sqrt(3.0 / (double)n_in);
        fill_uniform_bf16(seed, half_width, count, out);
    }
}

status_t model_weights_dummy(const struct model_config *config, uint64_t seed,
                             struct model_fingerprint_state *fingerprint, struct diag *diag,
                             struct model_weights **ret_weights)
{
    struct model_weights *weights;
    struct tensor_plan plan = {0};
    TRY(weights_alloc(config, diag, &weights));
    struct source *sources = NULL;
    status_t st = tensor_plan_make(config, weights, diag, &plan);
    if (failed(st)) { goto fail; }
    sources = calloc(plan.count + 1, sizeof *sources);
    if (!sources) {
        diag_set(diag, "no memory for a list of %u tensors", plan.count);
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
        goto fail;
    }
    for (uint32_t i = 0; i < plan.count; i++) {
        sources[i].dtype = entry_is_f32(&plan.entries[i]) ? DTYPE_F32 : DTYPE_BF16;
    }
    st = take_owned(weights->storage, lay_out(weights, &plan, sources), diag);
    if (failed(st)) { goto fail; }
    for (uint32_t i = 0; i < plan.count; i++) {
        const struct tensor_plan_entry *entry = &plan.entries[i];
        uint8_t *out = (uint8_t *)weights->storage->owned + sources[i].owned_offset;
        uint64_t tensor_seed = seed + i; /* each tensor its own stream */
        bool is_matrix = entry_is_matrix(entry, weights);
        uint64_t bytes = entry_elements(entry) * dtype_bytes(sources[i].dtype);
        uint8_t *rows = is_matrix ? malloc(bytes) : out;
        if (!rows) {
            diag_set(diag, "no memory for %s", entry->name);
            st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
            goto fail;
        }
        make_up(entry, sources[i].dtype, splitmix64(&tensor_seed), rows);
        model_fingerprint_add(fingerprint, entry->name, file_dtype_names[sources[i].dtype], entry->shape, entry->rank,
                              rows, bytes);
        if (is_matrix) {
            pack_rows(entry, sources[i].dtype, rows, out);
            free(rows);
        }
        place(entry, sources[i].dtype, is_matrix, out);
    }
    if (!weights->head.data) { weights->head = weights->embedding; }
    weights->owned_bytes = weights->storage->owned_bytes;
    free(sources);
    free(plan.entries);
    *ret_weights = weights;
    return STATUS_OK;
fail:
    free(sources);
    free(plan.entries);
    model_weights_destroy(weights);
    return st;
}

void model_weights_destroy(struct model_weights *weights)
{
    if (!weights) { return; }
    if (weights->storage) {
        safetensors_close(weights->storage->checkpoint);
        if (weights->storage->owned) { munmap(weights->storage->owned, weights->storage->owned_bytes); }
    }
    free(weights->storage);
    free(weights->layers);
    free(weights);
}
