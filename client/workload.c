#include "client/workload.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/rng.h"

#define TRACE_HASH_TOKENS 512.0

/* A number of nanoseconds, cut at a hundred years. */
static uint64_t to_ns(double value) { return value < 3e18 ? (uint64_t)value : UINT64_C(3000000000000000000); }

status_t workload_uniform(uint32_t count, uint32_t input_tokens, uint32_t output_tokens, double rate, uint64_t seed,
                          struct workload *ret_workload)
{
    struct workload_request *requests = calloc(count ? count : 1, sizeof *requests);
    if (!requests) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    struct rng rng = rng_init(seed);
    double at_s = 0;
    for (uint32_t i = 0; i < count; i++) {
        requests[i] = (struct workload_request){.at_ns = to_ns(at_s * 1e9), .input_tokens = input_tokens,
                                                .output_tokens = output_tokens};
        if (rate > 0) { at_s += -log(1.0 - rng_unit(&rng)) / rate; }
    }
    *ret_workload = (struct workload){.count = count, .requests = requests, .seed = seed};
    return STATUS_OK;
}

static status_t bad_line(struct diag *diag, const char *path, uint32_t line, const char *what)
{
    diag_set(diag, "%s:%u: %s", path, line, what);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
}

/* At least 1; at most max (0: UINT32_MAX). A double past the type's end must not be converted. */
static uint32_t scaled(double value, double scale, uint32_t max)
{
    double result = value * scale;
    if (max == 0) { max = UINT32_MAX; }
    if (!(result >= 1)) { return 1; }
    return result >= max ? max : (uint32_t)result;
}

static status_t read_line(const char *path, uint32_t line, const json_t *object, double length_scale, double time_scale,
                          uint32_t input_max, struct workload_request *ret, struct diag *diag)
{
    const json_t *timestamp = json_object_get(object, "timestamp");
    const json_t *input = json_object_get(object, "input_length");
    const json_t *output = json_object_get(object, "output_length");
    const json_t *hashes = json_object_get(object, "hash_ids");
    if (!json_is_number(timestamp) || json_number_value(timestamp) < 0) { return bad_line(diag, path, line, "\"timestamp\" must be a number of milliseconds"); }
    if (!json_is_number(input) || json_number_value(input) < 0) { return bad_line(diag, path, line, "\"input_length\" must be a number of tokens"); }
    if (!json_is_number(output) || json_number_value(output) < 0) { return bad_line(diag, path, line, "\"output_length\" must be a number of tokens"); }
    ret->at_ns = to_ns(json_number_value(timestamp) * 1e6 / time_scale);
    ret->input_tokens = scaled(json_number_value(input), length_scale, input_max);
    ret->output_tokens = scaled(json_number_value(output), length_scale, 0);
    if (hashes && !json_is_array(hashes)) { return bad_line(diag, path, line, "\"hash_ids\" must be a list of whole numbers"); }
    size_t count = json_array_size(hashes);
    if (count == 0) { return STATUS_OK; }
    ret->hashes = calloc(count, sizeof *ret->hashes);
    if (!ret->hashes) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    ret->hash_count = (uint32_t)count;
    for (size_t i = 0; i < count; i++) {
        const json_t *hash = json_array_get(hashes, i);
        if (!json_is_integer(hash)) { return bad_line(diag, path, line, "\"hash_ids\" must be a list of whole numbers"); }
        ret->hashes[i] = (uint64_t)json_integer_value(hash);
    }
    return STATUS_OK;
}

status_t workload_read_trace(const char *path, double length_scale, double time_scale, uint32_t count_max,
                             uint32_t input_max, uint64_t seed, struct workload *ret_workload, struct diag *diag)
{
    if (!(length_scale > 0) || !(time_scale > 0) || isinf(length_scale) || isinf(time_scale)) {
        diag_set(diag, "--length-scale and --time-scale must be above 0");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    FILE *file = fopen(path, "r");
    if (!file) {
        diag_set(diag, "--trace=%s: %s", path, strerror(errno));
        return STATUS(ST_NOT_FOUND, SCOPE_REQUEST);
    }
    struct workload workload = {.seed = seed, .hash_tokens = scaled(TRACE_HASH_TOKENS, length_scale, 0)};
    uint32_t capacity = 0, line = 0;
    char *text = NULL;
    size_t text_capacity = 0;
    ssize_t len;
    status_t st = STATUS_OK;
    while ((count_max == 0 || workload.count < count_max) && (len = getline(&text, &text_capacity, file)) >= 0) {
        line++;
        if (text[strspn(text, " \t\r\n")] == '\0') { continue; }
        if (workload.count == capacity) {
            capacity = capacity ? capacity * 2 : 1024;
            struct workload_request *grown = realloc(workload.requests, capacity * sizeof *grown);
            if (!grown) { st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); break; }
            workload.requests = grown;
        }
        json_error_t error;
        json_t *object = json_loadb(text, (size_t)len, JSON_REJECT_DUPLICATES, &error);
        if (!object) { st = bad_line(diag, path, line, error.text); break; }
        struct workload_request *request = &workload.requests[workload.count];
        memset(request, 0, sizeof *request);
        workload.count++;
        st = read_line(path, line, object, length_scale, time_scale, input_max, request, diag);
        json_decref(object);
        if (failed(st)) { break; }
    }
    free(text);
    if (!failed(st) && ferror(file)) {
        diag_set(diag, "--trace=%s: %s", path, strerror(errno));
        st = STATUS_CAUSE(ST_NOT_FOUND, SCOPE_REQUEST, errno);
    }
    fclose(file);
    if (!failed(st) && workload.count == 0) { st = bad_line(diag, path, line, "the trace is empty"); }
    if (failed(st)) { workload_fini(&workload); return st; }
    *ret_workload = workload;
    return STATUS_OK;
}

void workload_prompt(const struct workload *workload, uint32_t index, uint32_t vocab_size, uint32_t *ret_tokens)
{
    const struct workload_request *request = &workload->requests[index];
    struct rng own = rng_init(workload->seed * 1000003u + index + 1);
    struct rng shared = own;
    for (uint32_t i = 0; i < request->input_tokens; i++) {
        uint32_t block = workload->hash_tokens > 0 ? i / workload->hash_tokens : 0;
        bool is_shared = block < request->hash_count;
        if (is_shared && i % workload->hash_tokens == 0) { shared = rng_init(request->hashes[block] ^ workload->seed); }
        /* The first few ids of many vocabularies are control tokens. */
        uint32_t low = vocab_size > 64 ? 32 : 0;
        ret_tokens[i] = low + (uint32_t)rng_below(is_shared ? &shared : &own, vocab_size - low);
    }
}

void workload_fini(struct workload *workload)
{
    for (uint32_t i = 0; i < workload->count; i++) { free(workload->requests[i].hashes); }
    free(workload->requests);
    memset(workload, 0, sizeof *workload);
}
