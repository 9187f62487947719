#include "model/tokenizer/json_nul.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer/utf8.h"

/* U+FDD0 .. U+FDEF are noncharacters: no text has a use for them. */
#define STAND_IN_FIRST 0xfdd0u
#define STAND_IN_LAST 0xfdefu

/* The next escape of four hexadecimal digits from `at` on; len when there is none. */
static size_t next_code_escape(const char *json, size_t len, size_t at)
{
    while (at + 6 <= len) {
        const char *slash = memchr(json + at, '\\', len - at);
        if (!slash) { break; }
        at = (size_t)(slash - json);
        if (at + 6 > len) { break; }
        if (json[at + 1] == 'u') { return at; }
        at += 2; /* also over an escaped backslash, whose u would be a letter */
    }
    return len;
}

static bool code_at(const char *json, size_t at, const char *digits) { return strncasecmp(json + at + 2, digits, 4) == 0; }

static bool is_used(const char *json, size_t len, uint32_t code)
{
    char spelled[4], digits[8];
    size_t bytes = utf8_encode(code, spelled);
    snprintf(digits, sizeof digits, "%04x", (unsigned)code);
    if (memmem(json, len, spelled, bytes)) { return true; }
    for (size_t at = 0; (at = next_code_escape(json, len, at)) < len; at += 6) {
        if (code_at(json, at, digits)) { return true; }
    }
    return false;
}

static status_t put_zero_back(json_t *value, const struct json_nul *nul)
{
    const char *key;
    json_t *child;
    size_t index;
    if (json_is_object(value)) {
        json_object_foreach(value, key, child) { TRY(put_zero_back(child, nul)); }
    } else if (json_is_array(value)) {
        json_array_foreach(value, index, child) { TRY(put_zero_back(child, nul)); }
    } else if (json_is_string(value) && strstr(json_string_value(value), nul->spelled)) {
        char *text = malloc(json_string_length(value) + 1);
        if (!text) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
        size_t len = json_nul_copy_key(nul, json_string_value(value), text);
        int rc = json_string_setn_nocheck(value, text, len);
        free(text);
        if (rc != 0) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    }
    return STATUS_OK;
}

status_t json_nul_load(char *json, size_t len, json_t **ret_root, struct json_nul *ret_nul, struct diag *diag)
{
    *ret_nul = (struct json_nul){{0}};
    size_t at = 0;
    while ((at = next_code_escape(json, len, at)) < len && !code_at(json, at, "0000")) { at += 6; }
    if (at < len) {
        uint32_t code = STAND_IN_FIRST;
        while (code <= STAND_IN_LAST && is_used(json, len, code)) { code++; }
        if (code > STAND_IN_LAST) {
            diag_set(diag, "the file uses \\u0000 and every noncharacter from U+FDD0 to U+FDEF");
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
        }
        char digits[8];
        snprintf(digits, sizeof digits, "%04x", (unsigned)code);
        utf8_encode(code, ret_nul->spelled);
        for (; at < len; at = next_code_escape(json, len, at + 6)) {
            if (code_at(json, at, "0000")) { memcpy(json + at + 2, digits, 4); }
        }
    }
    json_error_t error;
    json_t *root = json_loadb(json ? json : "", len, 0, &error);
    if (!root) {
        diag_set(diag, "%s (line %d, column %d)", error.text, error.line, error.column);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    status_t st = ret_nul->spelled[0] ? put_zero_back(root, ret_nul) : STATUS_OK;
    if (failed(st)) { json_decref(root); return st; }
    *ret_root = root;
    return STATUS_OK;
}

size_t json_nul_copy_key(const struct json_nul *nul, const char *key, char *out)
{
    size_t len = 0, spelled = strlen(nul->spelled);
    while (*key) {
        bool zero = spelled > 0 && strncmp(key, nul->spelled, spelled) == 0;
        out[len++] = zero ? '\0' : *key;
        key += zero ? spelled : 1;
    }
    return len;
}
