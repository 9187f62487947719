#include "kernels/cuda/cuda_bias.h"

#include <stdlib.h>

#include "kernels/cuda/rows_args.h"

#define PIECE_BYTES ((size_t)1 << 20)
#define ALIGNMENT 256u

void cuda_biases_fini(struct cuda_biases *biases)
{
    for (uint32_t i = 0; i < biases->piece_count; i++) { biases->queue->driver->mem_free(biases->queue->driver, biases->pieces[i]); }
    free(biases->pieces);
    free(biases->entries);
    *biases = (struct cuda_biases){0};
}

/* Room for one more element of an array that doubles; false: no memory. */
static bool has_room(void **array, uint32_t count, uint32_t *capacity, size_t element_bytes)
{
    if (count < *capacity) { return true; }
    uint32_t grown = *capacity == 0 ? 64 : *capacity * 2;
    void *bigger = realloc(*array, grown * element_bytes);
    if (bigger == NULL) { return false; }
    *array = bigger;
    *capacity = grown;
    return true;
}

static void *take(struct cuda_biases *biases, size_t bytes, struct diag *diag, status_t *ret_status)
{
    const struct cuda_driver *driver = biases->queue->driver;
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (biases->piece_left < bytes) {
        void *array = biases->pieces;
        if (!has_room(&array, biases->piece_count, &biases->piece_capacity, sizeof(*biases->pieces))) {
            diag_set(diag, "no memory to list copies of biases");
            *ret_status = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
            return NULL;
        }
        biases->pieces = array;
        size_t piece = bytes > PIECE_BYTES ? bytes : PIECE_BYTES;
        *ret_status = driver->mem_alloc(driver, piece, &biases->pieces[biases->piece_count], diag);
        if (failed(*ret_status)) { return NULL; }
        biases->piece_count++;
        biases->piece_left = piece;
    }
    size_t piece_end = biases->piece_left;
    biases->piece_left -= bytes;
    /* Handed out from the far end, so that what is left tells where the next one begins. */
    return (uint8_t *)biases->pieces[biases->piece_count - 1] + (piece_end - bytes);
}

static struct cuda_bias *find(const struct cuda_biases *biases, const void *bias, uint32_t count, enum dtype from_dtype, enum dtype dtype)
{
    for (uint32_t i = 0; i < biases->entry_count; i++) {
        struct cuda_bias *entry = &biases->entries[i];
        if (entry->from == bias && entry->count == count && entry->from_dtype == from_dtype && entry->dtype == dtype) { return entry; }
    }
    return NULL;
}

static struct cuda_bias *add(struct cuda_biases *biases, const void *bias, uint32_t count, enum dtype from_dtype, enum dtype dtype)
{
    struct diag text = {{0}};
    status_t st = STATUS_OK;
    void *array = biases->entries, *copy = NULL;
    if (!has_room(&array, biases->entry_count, &biases->entry_capacity, sizeof(*biases->entries))) {
        diag_set(&text, "no memory to list copies of biases");
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    } else {
        biases->entries = array;
        copy = take(biases, (size_t)count * dtype_bytes(dtype), &text, &st);
    }
    if (failed(st)) {
        cuda_queue_fail(biases->queue, st, &text);
        return NULL;
    }
    biases->entries[biases->entry_count] =
        (struct cuda_bias){.from = bias, .count = count, .from_dtype = from_dtype, .dtype = dtype, .copy = copy};
    return &biases->entries[biases->entry_count++];
}

const void *cuda_biases_get(struct cuda_biases *biases, const void *bias, uint32_t count, enum dtype from_dtype, enum dtype dtype)
{
    if (bias == NULL || (from_dtype == dtype && (uintptr_t)bias % 16 == 0)) { return bias; }
    struct cuda_bias *entry = find(biases, bias, count, from_dtype, dtype);
    if (entry != NULL && entry->is_made) { return entry->copy; }
    cuda_queue_capture_abandon(biases->queue, "a bias is seen for the first time");
    if (entry == NULL) { entry = add(biases, bias, count, from_dtype, dtype); }
    if (entry == NULL) { return NULL; }
    struct cuda_map_args args = {.map = CUDA_MAP_CONVERT, .rows = 1, .dim = count, .dtype = from_dtype, .out_dtype = dtype, .a = bias,
                                 .a_stride = count, .out = entry->copy, .out_stride = count};
    struct cuda_launch shape;
    cuda_map_shape(&args, &shape);
    cuda_queue_launch(biases->queue, CUDA_KERNEL_map, &shape, &args, sizeof(args));
    entry->is_made = true;
    return entry->copy;
}

bool cuda_biases_forget(struct cuda_biases *biases, const void *first, size_t bytes)
{
    bool any = false;
    const uintptr_t begin = (uintptr_t)first, end = begin + bytes;
    for (uint32_t i = 0; i < biases->entry_count; i++) {
        struct cuda_bias *entry = &biases->entries[i];
        uintptr_t from = (uintptr_t)entry->from, to = from + (size_t)entry->count * dtype_bytes(entry->from_dtype);
        if (!entry->is_made || to <= begin || end <= from) { continue; }
        entry->is_made = false;
        any = true;
    }
    return any;
}
