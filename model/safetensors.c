#include "model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/json_field.h"

#define INDEX_BYTES_MAX ((size_t)64 << 20)
#define SHARD_MAX 4096u

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are used as they lie in the file");

struct shard {
    char *path;
    void *map; /* NULL: not ours to unmap */
    size_t map_bytes;
    json_t *header; /* the tensors' names live in it */
};

struct safetensors {
    char *source;
    uint32_t shard_count;
    struct shard *shards;
    size_t tensor_count;
    struct safetensors_tensor *tensors; /* sorted by name */
};

void safetensors_shape_text(const uint64_t *shape, uint32_t rank, char *text, size_t text_bytes)
{
    size_t used = (size_t)snprintf(text, text_bytes, "[");
    for (uint32_t i = 0; i < rank && used < text_bytes; i++) {
        used += (size_t)snprintf(text + used, text_bytes - used, "%s%llu", i ? ", " : "",
                                 (unsigned long long)shape[i]);
    }
    if (used < text_bytes) { snprintf(text + used, text_bytes - used, "]"); }
}

/* Bits of one element; 0 for a dtype we do not know. */
static uint32_t element_bits(const char *dtype)
{
    static const struct { const char *name; uint32_t bits; } dtypes[] = {
        {"F32", 32}, {"BF16", 16}, {"F16", 16}, {"F64", 64}, {"I64", 64}, {"U64", 64}, {"I32", 32}, {"U32", 32},
        {"I16", 16}, {"U16", 16}, {"I8", 8}, {"U8", 8}, {"BOOL", 8}, {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8},
        {"F4", 4}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"C64", 64},
    };
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (strcmp(dtype, dtypes[i].name) == 0) { return dtypes[i].bits; }
    }
    return 0;
}

static status_t damaged(struct diag *diag, const char *file, const char *name, const char *what)
{
    if (name) { diag_set(diag, "%s: tensor %.200s: %s", file, name, what); }
    else { diag_set(diag, "%s: %s", file, what); }
    return STATUS(ST_DATA_LOSS, SCOPE_NODE);
}

static status_t parse_shape(const char *file, const char *name, const json_t *shape, struct diag *diag,
                            struct safetensors_tensor *tensor, uint64_t *ret_elements)
{
    if (!json_is_array(shape) || json_array_size(shape) > SAFETENSORS_RANK_MAX) {
        return damaged(diag, file, name, "its shape is not a list of at most 8 sizes");
    }
    uint64_t elements = 1;
    tensor->rank = (uint32_t)json_array_size(shape);
    for (uint32_t i = 0; i < tensor->rank; i++) {
        const json_t *size = json_array_get(shape, i);
        if (!json_is_integer(size) || json_integer_value(size) < 0) {
            return damaged(diag, file, name, "its shape holds something that is not a size");
        }
        tensor->shape[i] = (uint64_t)json_integer_value(size);
        if (__builtin_mul_overflow(elements, tensor->shape[i], &elements)) {
            return damaged(diag, file, name, "its shape overflows 64 bits");
        }
    }
    *ret_elements = elements;
    return STATUS_OK;
}

static status_t parse_tensor(const char *file, const char *name, const json_t *entry, const uint8_t *data,
                             uint64_t data_bytes, struct diag *diag, struct safetensors_tensor *tensor)
{
    const json_t *dtype = json_object_get(entry, "dtype");
    const json_t *offsets = json_object_get(entry, "data_offsets");
    if (!json_is_string(dtype) || json_string_length(dtype) >= sizeof tensor->dtype) {
        return damaged(diag, file, name, "its dtype is missing or not a short string");
    }
    const json_t *begin_json = json_array_get(offsets, 0);
    const json_t *end_json = json_array_get(offsets, 1);
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 || !json_is_integer(begin_json) ||
        !json_is_integer(end_json) || json_integer_value(begin_json) < 0 ||
        json_integer_value(end_json) < json_integer_value(begin_json)) {
        return damaged(diag, file, name, "its data_offsets are not [begin, end]");
    }
    uint64_t elements = 0;
    TRY(parse_shape(file, name, json_object_get(entry, "shape"), diag, tensor, &elements));
    uint64_t begin = (uint64_t)json_integer_value(begin_json);
    uint64_t end = (uint64_t)json_integer_value(end_json);
    char what[256];
    if (end > data_bytes) {
        snprintf(what, sizeof what,
                 "it ends at byte %llu of the data, of which the file has %llu; the file is truncated",
                 (unsigned long long)end, (unsigned long long)data_bytes);
        return damaged(diag, file, name, what);
    }
    strcpy(tensor->dtype, json_string_value(dtype));
    uint32_t bits = element_bits(tensor->dtype);
    uint64_t wanted_bits;
    if (bits != 0 && (__builtin_mul_overflow(elements, bits, &wanted_bits) || wanted_bits % 8 != 0 ||
                      wanted_bits / 8 != end - begin)) {
        char shape[160];
        safetensors_shape_text(tensor->shape, tensor->rank, shape, sizeof shape);
        snprintf(what, sizeof what, "%s %s does not fit its data_offsets, which span %llu bytes", tensor->dtype, shape,
                 (unsigned long long)(end - begin));
        return damaged(diag, file, name, what);
    }
    tensor->name = name;
    tensor->file = file;
    tensor->data = data + begin;
    tensor->bytes = end - begin;
    return STATUS_OK;
}

static int by_address(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;
    if (x->data != y->data) { return x->data < y->data ? -1 : 1; }
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* an empty one first */
}

static int by_name(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* Parses one file's header and appends its tensors, those that `weight_map` gives to `base` or all
 * where weight_map is NULL. */
static status_t parse_shard(struct safetensors *checkpoint, struct shard *shard, const uint8_t *data, uint64_t bytes,
                            const json_t *weight_map, struct diag *diag)
{
    const char *file = shard->path;
    uint64_t header_bytes;
    if (bytes < 8) { return damaged(diag, file, NULL, "shorter than the 8 bytes of a safetensors header length"); }
    memcpy(&header_bytes, data, 8);
    if (header_bytes > SAFETENSORS_HEADER_BYTES_MAX || header_bytes > bytes - 8) {
        char what[192];
        snprintf(what, sizeof what,
                 "its header says %llu bytes, the file has %llu; truncated, or not a safetensors file",
                 (unsigned long long)header_bytes, (unsigned long long)bytes);
        return damaged(diag, file, NULL, what);
    }
    status_t st = json_parse_object(file, (const char *)data + 8, (size_t)header_bytes, true, diag, &shard->header);
    if (failed(st)) {
        st.code = ST_DATA_LOSS;
        return st;
    }
    size_t room = json_object_size(shard->header);
    struct safetensors_tensor *grown =
        realloc(checkpoint->tensors, (checkpoint->tensor_count + room + 1) * sizeof *grown);
    if (!grown) {
        diag_set(diag, "%s: no memory for %zu tensor entries", file, room);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    checkpoint->tensors = grown;
    struct safetensors_tensor *first = grown + checkpoint->tensor_count;
    size_t count = 0;
    const char *name;
    json_t *entry;
    json_object_foreach(shard->header, name, entry) {
        if (strcmp(name, "__metadata__") == 0) { continue; }
        memset(&first[count], 0, sizeof first[count]);
        TRY(parse_tensor(file, name, entry, data + 8 + header_bytes, bytes - 8 - header_bytes, diag, &first[count]));
        count++;
    }
    qsort(first, count, sizeof *first, by_address);
    for (size_t i = 1; i < count; i++) {
        if (first[i - 1].data + first[i - 1].bytes > first[i].data) {
            char what[320];
            snprintf(what, sizeof what, "its bytes overlap those of tensor %.200s", first[i].name);
            return damaged(diag, file, first[i - 1].name, what);
        }
    }
    if (weight_map) { /* what the index gives to another shard is not this shard's to give */
        const char *base = strrchr(file, '/');
        base = base ? base + 1 : file;
        size_t kept = 0;
        for (size_t i = 0; i < count; i++) {
            const json_t *owner = json_object_get(weight_map, first[i].name);
            if (owner && strcmp(json_string_value(owner), base) == 0) { first[kept++] = first[i]; }
        }
        count = kept;
    }
    checkpoint->tensor_count += count;
    return STATUS_OK;
}

static status_t no_memory(struct diag *diag, const char *file)
{
    diag_set(diag, "%s: no memory for its tensor table", file);
    return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
}

status_t safetensors_parse(const char *file, const uint8_t *data, uint64_t bytes, struct diag *diag,
                           struct safetensors **ret_checkpoint)
{
    struct safetensors *checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint) { return no_memory(diag, file); }
    status_t st;
    checkpoint->source = strdup(file);
    checkpoint->shards = calloc(1, sizeof *checkpoint->shards);
    if (!checkpoint->source || !checkpoint->shards || !(checkpoint->shards[0].path = strdup(file))) {
        st = no_memory(diag, file);
        goto fail;
    }
    checkpoint->shard_count = 1;
    st = parse_shard(checkpoint, &checkpoint->shards[0], data, bytes, NULL, diag);
    if (failed(st)) { goto fail; }
    qsort(checkpoint->tensors, checkpoint->tensor_count, sizeof *checkpoint->tensors, by_name);
    *ret_checkpoint = checkpoint;
    return STATUS_OK;
fail:
    safetensors_close(checkpoint);
    return st;
}

static status_t map_file(const char *path, struct diag *diag, void **ret_map, size_t *ret_bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int cause = errno;
    if (fd < 0) {
        diag_set(diag, "%s: %s", path, strerror(cause));
        return STATUS_CAUSE(cause == ENOENT ? ST_NOT_FOUND : ST_UNAVAILABLE, SCOPE_NODE, cause);
    }
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size < 8) {
        close(fd);
        diag_set(diag, "%s: not a regular file of at least 8 bytes, which a safetensors file is", path);
        return STATUS(ST_DATA_LOSS, SCOPE_NODE);
    }
    void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    cause = errno;
    close(fd);
    if (map == MAP_FAILED) {
        diag_set(diag, "%s: cannot map its %lld bytes: %s", path, (long long)info.st_size, strerror(cause));
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, cause);
    }
    /* No MADV_WILLNEED: on a cold cache it queues the whole file before it returns, for nothing where a pack file
     * has the weights. Else packing reads every page of them. */
    *ret_map = map;
    *ret_bytes = (size_t)info.st_size;
    return STATUS_OK;
}

/* Maps a file as the next shard and takes its tensors. */
static status_t add_shard(struct safetensors *checkpoint, const char *path, const json_t *weight_map,
                          struct diag *diag)
{
    struct shard *shard = &checkpoint->shards[checkpoint->shard_count];
    TRY(map_file(path, diag, &shard->map, &shard->map_bytes));
    checkpoint->shard_count++;
    shard->path = strdup(path);
    if (!shard->path) { return no_memory(diag, path); }
    return parse_shard(checkpoint, shard, shard->map, shard->map_bytes, weight_map, diag);
}

/* Every file name of the index once, checked to be a name and not a path. */
static status_t open_shards(struct safetensors *checkpoint, const char *directory, const json_t *weight_map,
                            struct diag *diag)
{
    json_t *seen = json_object();
    checkpoint->shards = calloc(SHARD_MAX, sizeof *checkpoint->shards);
    status_t st = STATUS_OK;
    if (!seen || !checkpoint->shards) {
        st = no_memory(diag, checkpoint->source);
        goto done;
    }
    const char *name;
    json_t *owner;
    json_object_foreach((json_t *)weight_map, name, owner) {
        const char *file = json_string_value(owner);
        if (!file || file[0] == '\0' || strchr(file, '/') || file[0] == '.') {
            diag_set(diag, "%s: tensor %.200s: its file must be the name of a file in the same directory",
                     checkpoint->source, name);
            st = STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
            goto done;
        }
        if (json_object_get(seen, file)) { continue; }
        char path[PATH_MAX];
        if (checkpoint->shard_count == SHARD_MAX || json_object_set_new(seen, file, json_true()) != 0 ||
            snprintf(path, sizeof path, "%s/%s", directory, file) >= (int)sizeof path) {
            diag_set(diag, "%s: more than %u shards, or a path too long", checkpoint->source, SHARD_MAX);
            st = STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
            goto done;
        }
        st = add_shard(checkpoint, path, weight_map, diag);
        if (st.code == ST_NOT_FOUND) {
            diag_set(diag, "%s: not found, but %s puts tensor %.200s there", path, checkpoint->source, name);
        }
        if (failed(st)) { goto done; }
    }
done:
    json_decref(seen);
    return st;
}

/* A tensor that the index promises and its shard lacks. */
static status_t check_promises(const struct safetensors *checkpoint, const json_t *weight_map, struct diag *diag)
{
    const char *name;
    json_t *owner;
    json_object_foreach((json_t *)weight_map, name, owner) {
        if (!safetensors_find(checkpoint, name)) {
            diag_set(diag, "%s: tensor %.200s should be in %.200s, which does not have it", checkpoint->source, name,
                     json_string_value(owner));
            return STATUS(ST_DATA_LOSS, SCOPE_NODE);
        }
    }
    return STATUS_OK;
}

static status_t open_index(struct safetensors *checkpoint, const char *directory, struct diag *diag)
{
    char *text = NULL;
    size_t text_bytes = 0;
    json_t *tree = NULL;
    status_t st = json_read_file(checkpoint->source, INDEX_BYTES_MAX, diag, &text, &text_bytes);
    if (st.code == ST_NOT_FOUND) {
        diag_set(diag,
                 "%s: neither model.safetensors nor model.safetensors.index.json is there; weights are needed, "
                 "unless --load=dummy asks for random ones",
                 directory);
    }
    if (failed(st)) { goto done; }
    st = json_parse_object(checkpoint->source, text, text_bytes, true, diag, &tree);
    if (failed(st)) { goto done; }
    const json_t *weight_map = json_object_get(tree, "weight_map");
    if (!json_is_object(weight_map)) {
        diag_set(diag, "%s: field weight_map is missing or not an object; it maps each tensor to its file",
                 checkpoint->source);
        st = STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
        goto done;
    }
    st = open_shards(checkpoint, directory, weight_map, diag);
    if (failed(st)) { goto done; }
    if (checkpoint->tensor_count > 0) {
        qsort(checkpoint->tensors, checkpoint->tensor_count, sizeof *checkpoint->tensors, by_name);
    }
    st = check_promises(checkpoint, weight_map, diag);
done:
    json_decref(tree);
    free(text);
    return st;
}

status_t safetensors_open(const char *directory, struct diag *diag, struct safetensors **ret_checkpoint)
{
    char single[PATH_MAX], index[PATH_MAX];
    if (snprintf(single, sizeof single, "%s/model.safetensors", directory) >= (int)sizeof single ||
        snprintf(index, sizeof index, "%s/model.safetensors.index.json", directory) >= (int)sizeof index) {
        diag_set(diag, "the path of the model directory is longer than %d bytes", PATH_MAX);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    struct safetensors *checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint) { return no_memory(diag, single); }
    bool has_single = access(single, F_OK) == 0;
    status_t st = STATUS_OK;
    checkpoint->source = strdup(has_single ? single : index);
    if (!checkpoint->source) {
        st = no_memory(diag, single);
        goto fail;
    }
    if (has_single) {
        checkpoint->shards = calloc(1, sizeof *checkpoint->shards);
        st = checkpoint->shards ? add_shard(checkpoint, single, NULL, diag) : no_memory(diag, single);
        if (failed(st)) { goto fail; }
        qsort(checkpoint->tensors, checkpoint->tensor_count, sizeof *checkpoint->tensors, by_name);
    } else {
        st = open_index(checkpoint, directory, diag);
        if (failed(st)) { goto fail; }
    }
    *ret_checkpoint = checkpoint;
    return STATUS_OK;
fail:
    safetensors_close(checkpoint);
    return st;
}

void safetensors_close(struct safetensors *checkpoint)
{
    if (!checkpoint) { return; }
    for (uint32_t i = 0; i < checkpoint->shard_count; i++) {
        struct shard *shard = &checkpoint->shards[i];
        json_decref(shard->header);
        if (shard->map) { munmap(shard->map, shard->map_bytes); }
        free(shard->path);
    }
    free(checkpoint->shards);
    free(checkpoint->tensors);
    free(checkpoint->source);
    free(checkpoint);
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *checkpoint, const char *name)
{
    struct safetensors_tensor wanted = {.name = name};
    if (checkpoint->tensor_count == 0) { return NULL; }
    return bsearch(&wanted, checkpoint->tensors, checkpoint->tensor_count, sizeof wanted, by_name);
}

const char *safetensors_source(const struct safetensors *checkpoint) { return checkpoint->source; }
