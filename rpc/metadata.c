/* metadata: copies of metadata on the way in and out, so that no caller depends on when the
 * C core frees its own.
 * Thread: the caller's. Memory: one block per copy. */
#include "rpc/rpc_internal.h"

#include <stdlib.h>
#include <string.h>

status_t metadata_check(const struct rpc_metadata *pairs, size_t count, struct diag *diag)
{
    for (size_t i = 0; i < count; i++) {
        if (pairs[i].key == NULL || (pairs[i].value == NULL && pairs[i].value_len > 0)) {
            diag_set(diag, "metadata pair %zu has no key or no value", i);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
        }
        grpc_slice key = grpc_slice_from_static_string(pairs[i].key);
        grpc_slice value = grpc_slice_from_static_buffer(pairs[i].value, pairs[i].value_len);
        if (!grpc_header_key_is_legal(key) || pairs[i].key[0] == ':') {
            diag_set(diag, "metadata key \"%.64s\" is not allowed: use a-z 0-9 - _ .", pairs[i].key);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
        }
        if (!grpc_is_binary_header(key) && !grpc_header_nonbin_value_is_legal(value)) {
            diag_set(diag, "metadata \"%.64s\" holds bytes that are not printable ASCII: end its key in \"-bin\"",
                     pairs[i].key);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
        }
    }
    return STATUS_OK;
}

status_t metadata_out_init(struct metadata_out *out, const struct rpc_metadata *pairs, size_t count)
{
    *out = (struct metadata_out){0};
    if (count == 0) {
        return STATUS_OK;
    }
    out->pairs = calloc(count, sizeof *out->pairs);
    if (out->pairs == NULL) {
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    }
    out->count = count;
    for (size_t i = 0; i < count; i++) {
        out->pairs[i].key = grpc_slice_from_copied_string(pairs[i].key);
        out->pairs[i].value = grpc_slice_from_copied_buffer(pairs[i].value, pairs[i].value_len);
    }
    return STATUS_OK;
}

void metadata_out_fini(struct metadata_out *out)
{
    for (size_t i = 0; i < out->count; i++) {
        grpc_slice_unref(out->pairs[i].key);
        grpc_slice_unref(out->pairs[i].value);
    }
    free(out->pairs);
    *out = (struct metadata_out){0};
}

status_t metadata_copy_init(struct metadata_copy *copy, const grpc_metadata_array *array)
{
    *copy = (struct metadata_copy){0};
    if (array->count == 0) {
        return STATUS_OK;
    }
    size_t bytes = array->count * sizeof(struct rpc_metadata);
    for (size_t i = 0; i < array->count; i++) {
        bytes += GRPC_SLICE_LENGTH(array->metadata[i].key) + 1 + GRPC_SLICE_LENGTH(array->metadata[i].value);
    }
    copy->pairs = malloc(bytes);
    if (copy->pairs == NULL) {
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    }
    copy->count = array->count;
    char *at = (char *)(copy->pairs + array->count);
    for (size_t i = 0; i < array->count; i++) {
        grpc_slice *key = &array->metadata[i].key;
        grpc_slice *value = &array->metadata[i].value;
        copy->pairs[i].key = at;
        memcpy(at, GRPC_SLICE_START_PTR(*key), GRPC_SLICE_LENGTH(*key));
        at += GRPC_SLICE_LENGTH(*key);
        *at++ = '\0';
        copy->pairs[i].value = at;
        copy->pairs[i].value_len = GRPC_SLICE_LENGTH(*value);
        memcpy(at, GRPC_SLICE_START_PTR(*value), GRPC_SLICE_LENGTH(*value));
        at += GRPC_SLICE_LENGTH(*value);
    }
    return STATUS_OK;
}

void metadata_copy_fini(struct metadata_copy *copy)
{
    free(copy->pairs);
    *copy = (struct metadata_copy){0};
}
