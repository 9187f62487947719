#include "model/json_field.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

status_t json_read_file(const char *path, size_t max_bytes, struct diag *diag, char **ret_data, size_t *ret_bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        int cause = errno;
        diag_set(diag, "%s: %s", path, strerror(cause));
        return STATUS_CAUSE(cause == ENOENT ? ST_NOT_FOUND : ST_UNAVAILABLE, SCOPE_NODE, cause);
    }
    char *data = NULL;
    status_t st = STATUS_OK;
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        diag_set(diag, "%s: not a regular file", path);
        st = STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
        goto done;
    }
    if ((uint64_t)info.st_size > max_bytes) {
        diag_set(diag, "%s: %lld bytes; at most %zu are read", path, (long long)info.st_size, max_bytes);
        st = STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
        goto done;
    }
    size_t size = (size_t)info.st_size;
    data = malloc(size + 1);
    if (!data) {
        diag_set(diag, "%s: no memory for its %zu bytes", path, size);
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
        goto done;
    }
    size_t used = 0;
    while (used < size) {
        ssize_t got = read(fd, data + used, size - used);
        if (got < 0 && errno == EINTR) { continue; }
        if (got <= 0) {
            int cause = got < 0 ? errno : EIO;
            diag_set(diag, "%s: read stopped at byte %zu of %zu: %s", path, used, size, strerror(cause));
            st = STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_NODE, cause);
            goto done;
        }
        used += (size_t)got;
    }
    data[size] = '\0';
    *ret_data = data;
    *ret_bytes = size;
    data = NULL;
done:
    free(data);
    close(fd);
    return st;
}

status_t json_parse_object(const char *file, const char *data, size_t bytes, bool keys_are_unique, struct diag *diag,
                           json_t **ret_object)
{
    json_error_t error;
    json_t *tree = json_loadb(data, bytes, keys_are_unique ? JSON_REJECT_DUPLICATES : 0, &error);
    if (!tree) {
        diag_set(diag, "%s: not valid JSON at line %d, column %d: %s", file, error.line, error.column, error.text);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (!json_is_object(tree)) {
        json_decref(tree);
        diag_set(diag, "%s: the JSON is not an object", file);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    *ret_object = tree;
    return STATUS_OK;
}

const json_t *json_field(const struct json_reader *reader, const char *key)
{
    const json_t *value = json_object_get(reader->object, key);
    return json_is_null(value) ? NULL : value;
}

status_t json_field_refuse(const struct json_reader *reader, const char *key, const json_t *value, const char *wanted)
{
    if (!value) {
        diag_set(reader->diag, "%s: field %s%s is missing; %s", reader->file, reader->prefix, key, wanted);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    /* The value is a stranger's: escaped by the encoder, and cut. */
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(9));
    diag_set(reader->diag, "%s: field %s%s is %.120s; %s", reader->file, reader->prefix, key, text ? text : "?",
             wanted);
    free(text);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

status_t json_field_u32(const struct json_reader *reader, const char *key, uint32_t min, uint32_t max,
                        const uint32_t *otherwise, uint32_t *ret_value)
{
    const json_t *value = json_field(reader, key);
    if (!value && otherwise) {
        *ret_value = *otherwise;
        return STATUS_OK;
    }
    /* 4096.0 is 4096: some writers keep every number as a float. */
    double number = json_is_number(value) ? json_number_value(value) : -1.0;
    if (number >= min && number <= max && number == floor(number)) {
        *ret_value = (uint32_t)number;
        return STATUS_OK;
    }
    char wanted[96];
    snprintf(wanted, sizeof wanted, "a whole number from %u to %u is needed", min, max);
    return json_field_refuse(reader, key, value, wanted);
}

status_t json_field_f64(const struct json_reader *reader, const char *key, double min, double max,
                        const double *otherwise, double *ret_value)
{
    const json_t *value = json_field(reader, key);
    if (!value && otherwise) {
        *ret_value = *otherwise;
        return STATUS_OK;
    }
    if (json_is_number(value)) {
        double number = json_number_value(value);
        if (number >= min && number <= max) {
            *ret_value = number;
            return STATUS_OK;
        }
    }
    char wanted[96];
    snprintf(wanted, sizeof wanted, "a number from %g to %g is needed", min, max);
    return json_field_refuse(reader, key, value, wanted);
}

status_t json_field_bool(const struct json_reader *reader, const char *key, bool otherwise, bool *ret_value)
{
    const json_t *value = json_field(reader, key);
    if (value && !json_is_boolean(value)) { return json_field_refuse(reader, key, value, "true or false is needed"); }
    *ret_value = value ? json_is_true(value) : otherwise;
    return STATUS_OK;
}

status_t json_field_string(const struct json_reader *reader, const char *key, const char **ret_value)
{
    const json_t *value = json_field(reader, key);
    if (value && !json_is_string(value)) { return json_field_refuse(reader, key, value, "a string is needed"); }
    *ret_value = value ? json_string_value(value) : NULL;
    return STATUS_OK;
}
