#include "model/tokenizer/regex.h"

#include <errno.h>
#include <pcre2.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer/unicode_props.h"
#include "model/tokenizer/utf8.h"

struct regex {
    pcre2_code *code; /* NULL when literal */
    char *pattern;    /* as given, zero-terminated, for diags and literals */
    size_t pattern_len;
    bool jit;
};

struct regex_scratch {
    pcre2_match_data *match;
    struct text_buf shadow; /* the text with stand-ins for code points newer than PCRE2 */
    const struct regex *regex;
    const char *text;
    size_t len;
    size_t at;
    size_t last_end; /* of the match before; SIZE_MAX before the first */
};

static status_t compile(struct regex *regex, struct diag *diag)
{
    struct text_buf words = {0};
    status_t st = regex_translate(regex->pattern, regex->pattern_len, &words, diag);
    if (failed(st)) { goto out; }
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context) { st = STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); goto out; }
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    /* Ruby's ^ and $ always look at lines. */
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    int error = 0;
    PCRE2_SIZE offset = 0;
    regex->code = pcre2_compile((PCRE2_SPTR)(words.data ? words.data : ""), words.len, options, &error, &offset,
                                context);
    pcre2_compile_context_free(context);
    if (!regex->code) {
        PCRE2_UCHAR message[160] = "";
        pcre2_get_error_message(error, message, sizeof message);
        diag_set(diag, "the regular expression \"%s\" cannot be compiled: %s (at byte %zu of \"%.*s\")", regex->pattern,
                 (const char *)message, (size_t)offset, (int)words.len, words.data ? words.data : "");
        st = STATUS_CAUSE(ST_INVALID_ARGUMENT, SCOPE_NODE, error);
        goto out;
    }
    regex->jit = pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE) == 0; /* slower without, not wrong */
out:
    text_buf_fini(&words);
    return st;
}

status_t regex_create(const char *pattern, size_t len, bool literal, struct regex **ret_regex, struct diag *diag)
{
    struct regex *regex = calloc(1, sizeof *regex);
    if (!regex) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    regex->pattern = malloc(len + 1);
    if (!regex->pattern) {
        regex_destroy(regex);
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM);
    }
    memcpy(regex->pattern, pattern, len);
    regex->pattern[len] = '\0';
    regex->pattern_len = len;
    if (!literal || len == 0) { /* an empty literal matches between all characters, as an empty regex does */
        status_t st = compile(regex, diag);
        if (failed(st)) { regex_destroy(regex); return st; }
    }
    *ret_regex = regex;
    return STATUS_OK;
}

void regex_destroy(struct regex *regex)
{
    if (!regex) { return; }
    pcre2_code_free(regex->code);
    free(regex->pattern);
    free(regex);
}

status_t regex_scratch_create(const struct regex *regex, struct regex_scratch **ret_scratch)
{
    struct regex_scratch *scratch = calloc(1, sizeof *scratch);
    if (!scratch) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, ENOMEM); }
    if (regex->code) {
        scratch->match = pcre2_match_data_create(1, NULL);
        if (!scratch->match) {
            free(scratch);
            return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, ENOMEM);
        }
    }
    *ret_scratch = scratch;
    return STATUS_OK;
}

void regex_scratch_destroy(struct regex_scratch *scratch)
{
    if (!scratch) { return; }
    pcre2_match_data_free(scratch->match);
    text_buf_fini(&scratch->shadow);
    free(scratch);
}

status_t regex_start(struct regex_scratch *scratch, const struct regex *regex, const char *text, size_t len)
{
    scratch->regex = regex;
    scratch->text = text;
    scratch->len = len;
    scratch->at = 0;
    scratch->last_end = SIZE_MAX;
    if (!regex->code) { return STATUS_OK; }
    /* A stand-in has as many bytes as what it stands for, so offsets stay true. The first
     * code point that needs one is U+0897, lead byte 0xe0. */
    bool copied = false;
    for (size_t at = 0; at < len;) {
        unsigned char first = (unsigned char)text[at];
        if (first < 0xe0) { at++; continue; } /* also continuation bytes of two-byte characters */
        size_t bytes;
        uint32_t code = utf8_decode(text + at, &bytes);
        bool plain = code >= 0x3041 && code <= 0x9ffc; /* most of CJK is old */
        uint32_t to = plain ? code : unicode_stand_in(code);
        if (to != code) {
            if (!copied) {
                scratch->shadow.len = 0;
                TRY(text_buf_append(&scratch->shadow, text, len));
                scratch->text = scratch->shadow.data;
                copied = true;
            }
            utf8_encode(to, scratch->shadow.data + at);
        }
        at += bytes;
    }
    return STATUS_OK;
}

static status_t search(struct regex_scratch *scratch, size_t from, bool *ret_found, size_t *ret_start,
                       size_t *ret_end, struct diag *diag)
{
    const struct regex *regex = scratch->regex;
    if (!regex->code) {
        const char *hit = memmem(scratch->text + from, scratch->len - from, regex->pattern, regex->pattern_len);
        *ret_found = hit != NULL;
        if (hit) {
            *ret_start = (size_t)(hit - scratch->text);
            *ret_end = *ret_start + regex->pattern_len;
        }
        return STATUS_OK;
    }
    PCRE2_SPTR subject = (PCRE2_SPTR)scratch->text;
    /* The text was checked when it came in, and nothing of ours makes it invalid. */
    int rc = regex->jit ? pcre2_jit_match(regex->code, subject, scratch->len, from, PCRE2_NO_UTF_CHECK, scratch->match,
                                          NULL)
                        : pcre2_match(regex->code, subject, scratch->len, from, PCRE2_NO_UTF_CHECK, scratch->match,
                                      NULL);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) { /* the interpreter keeps its frames on the heap */
        rc = pcre2_match(regex->code, subject, scratch->len, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, scratch->match,
                         NULL);
    }
    if (rc == PCRE2_ERROR_NOMATCH) { *ret_found = false; return STATUS_OK; }
    if (rc < 0) {
        diag_set(diag, "the regular expression \"%s\" gave up at byte %zu of the text (PCRE2 error %d): it backtracks "
                       "too far", regex->pattern, from, rc);
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, rc);
    }
    const PCRE2_SIZE *offsets = pcre2_get_ovector_pointer(scratch->match);
    *ret_found = true;
    *ret_start = offsets[0];
    *ret_end = offsets[1] < offsets[0] ? offsets[0] : offsets[1]; /* \K in a lookahead can cross them */
    return STATUS_OK;
}

status_t regex_next(struct regex_scratch *scratch, bool *ret_found, size_t *ret_start, size_t *ret_end,
                    struct diag *diag)
{
    while (scratch->at <= scratch->len) {
        size_t start = 0, end = 0;
        TRY(search(scratch, scratch->at, ret_found, &start, &end, diag));
        if (!*ret_found) { return STATUS_OK; }
        if (start == end && end == scratch->last_end) {
            scratch->at += scratch->at < scratch->len ? utf8_char_bytes((unsigned char)scratch->text[scratch->at]) : 1;
            continue;
        }
        scratch->at = end;
        scratch->last_end = end;
        *ret_start = start;
        *ret_end = end;
        return STATUS_OK;
    }
    *ret_found = false;
    return STATUS_OK;
}
