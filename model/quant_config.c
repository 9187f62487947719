#include "model/quant_config.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/json_field.h"

#define CONFIG_BYTES_MAX ((size_t)4 << 20)
#define GROUP_MAX 131072u

static status_t refuse(const struct json_reader *reader, const char *key, const char *wanted)
{
    return json_field_refuse(reader, key, json_field(reader, key), wanted);
}

/* -1 is every input; older AWQ files call it q_group_size. */
static status_t read_group(const struct json_reader *reader, uint32_t *ret_group)
{
    const char *key = json_field(reader, "group_size") != NULL ? "group_size" : "q_group_size";
    const json_t *value = json_field(reader, key);
    if (value == NULL) { return refuse(reader, "group_size", "the inputs that share a scale, or -1, are needed"); }
    if (json_is_integer(value) && json_integer_value(value) == -1) {
        *ret_group = 0;
        return STATUS_OK;
    }
    TRY(json_field_u32(reader, key, 1, GROUP_MAX, NULL, ret_group));
    if (*ret_group % 32 != 0) { return refuse(reader, key, "supported are multiples of 32, and -1"); }
    return STATUS_OK;
}

static status_t read_bits(const struct json_reader *reader)
{
    uint32_t bits;
    const char *key = json_field(reader, "bits") != NULL ? "bits" : "w_bit";
    TRY(json_field_u32(reader, key, 1, 64, NULL, &bits));
    return bits == 4 ? STATUS_OK : refuse(reader, key, "supported is 4");
}

static status_t read_gptq(const struct json_reader *reader, struct quant_config *config)
{
    const char *format;
    config->method = QUANT_GPTQ;
    TRY(json_field_string(reader, "checkpoint_format", &format));
    config->zeros_are_one_less = format == NULL || strcmp(format, "gptq") == 0;
    if (!config->zeros_are_one_less && strcmp(format, "gptq_v2") != 0) {
        return refuse(reader, "checkpoint_format", "supported are \"gptq\" and \"gptq_v2\"");
    }
    return STATUS_OK;
}

static status_t read_awq(const struct json_reader *reader, struct quant_config *config)
{
    const char *version;
    bool has_zeros;
    config->method = QUANT_AWQ;
    TRY(json_field_string(reader, "version", &version));
    if (version != NULL && strcmp(version, "gemm") != 0 && strcmp(version, "GEMM") != 0) {
        return refuse(reader, "version", "supported is \"gemm\"");
    }
    TRY(json_field_bool(reader, "zero_point", true, &has_zeros));
    return has_zeros ? STATUS_OK : refuse(reader, "zero_point", "supported is true");
}

static status_t read_object(const struct json_reader *reader, bool is_own, struct quant_config *config)
{
    const char *method;
    TRY(json_field_string(reader, "quant_method", &method));
    bool is_gptq = method != NULL ? strcmp(method, "gptq") == 0 : is_own; /* quantize_config.json is GPTQ's alone */
    bool is_awq = method != NULL && strcmp(method, "awq") == 0;
    if (!is_gptq && !is_awq) {
        return refuse(reader, "quant_method", "supported are \"gptq\" and \"awq\" with 4 bits; --weights=int8 or int4 quantizes an "
                                              "unquantized checkpoint");
    }
    TRY(read_bits(reader));
    TRY(read_group(reader, &config->group));
    return is_gptq ? read_gptq(reader, config) : read_awq(reader, config);
}

status_t quant_config_parse(const char *name, const void *json, size_t json_bytes, bool is_own, struct diag *diag,
                            struct quant_config *ret_config)
{
    json_t *tree;
    TRY(json_parse_object(name, json, json_bytes, false, diag, &tree));
    struct quant_config config = {.method = QUANT_NONE};
    struct json_reader whole = {.file = name, .prefix = "", .object = tree, .diag = diag};
    struct json_reader reader = whole;
    if (!is_own) {
        reader.prefix = "quantization_config.";
        reader.object = json_field(&whole, "quantization_config");
    }
    status_t st = STATUS_OK;
    if (reader.object != NULL && !json_is_object(reader.object)) {
        st = refuse(&whole, "quantization_config", "it must be an object");
    } else if (reader.object != NULL) {
        st = read_object(&reader, is_own, &config);
    }
    json_decref(tree);
    if (failed(st)) { return st; }
    *ret_config = config;
    return STATUS_OK;
}

/* ret_config unchanged where there is no such file. */
static status_t load_one(const char *directory, const char *file, bool is_own, struct diag *diag, struct quant_config *ret_config)
{
    char path[PATH_MAX];
    char *data;
    size_t bytes;
    if (snprintf(path, sizeof path, "%s/%s", directory, file) >= (int)sizeof path) {
        diag_set(diag, "the path of the model directory is longer than %d bytes", PATH_MAX);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    status_t st = json_read_file(path, CONFIG_BYTES_MAX, diag, &data, &bytes);
    if (st.code == ST_NOT_FOUND) { return STATUS_OK; }
    if (failed(st)) { return st; }
    st = quant_config_parse(path, data, bytes, is_own, diag, ret_config);
    free(data);
    return st;
}

status_t quant_config_load(const char *directory, struct diag *diag, struct quant_config *ret_config)
{
    struct quant_config config = {.method = QUANT_NONE};
    TRY(load_one(directory, "config.json", false, diag, &config));
    if (config.method == QUANT_NONE) { TRY(load_one(directory, "quantize_config.json", true, diag, &config)); }
    *ret_config = config;
    return STATUS_OK;
}
