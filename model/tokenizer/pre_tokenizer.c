#include "model/tokenizer/pre_tokenizer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer/json_field.h"
#include "model/tokenizer/pattern.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/unicode_props.h"
#include "model/tokenizer/utf8.h"

#define STEPS_MAX 32

/* The words of GPT-2; source: encoder.py of openai/gpt-2. */
static const char gpt2_words[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

enum step_kind {
    STEP_REGEX,     /* cuts at matches */
    STEP_CLASS,     /* cuts at characters of a class */
    STEP_WORDS,     /* Whitespace: runs of \w and runs of what is neither \w nor space */
    STEP_METASPACE, /* spaces become a letter that starts words */
    STEP_BYTES,     /* spells in the byte alphabet */
    STEP_PREFIX,    /* a space in front */
};

enum split_behavior { SPLIT_REMOVED, SPLIT_ISOLATED, SPLIT_PREVIOUS, SPLIT_NEXT, SPLIT_CONTIGUOUS };

enum prepend_scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };

struct step {
    enum step_kind kind;
    enum split_behavior behavior;
    bool invert;
    struct regex *regex;
    bool (*in_class)(uint32_t code);
    char letter[4]; /* STEP_METASPACE; STEP_CLASS without in_class: that one character */
    size_t letter_len;
    enum prepend_scheme prepend;
    bool split;
};

struct pre_tokenizer {
    struct step steps[STEPS_MAX];
    size_t count;
    bool gives_bytes;
};

struct pre_tokenizer_scratch {
    struct regex_scratch *regexes[STEPS_MAX];
    struct text_buf buffers[STEPS_MAX];
    size_t count;
};

/* ---- loading ---- */

static status_t new_step(struct pre_tokenizer *pre, enum step_kind kind, struct step **ret_step, struct diag *diag)
{
    if (pre->count == STEPS_MAX) {
        diag_set(diag, "more than %d pre-tokenizers", STEPS_MAX);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    *ret_step = &pre->steps[pre->count++];
    (*ret_step)->kind = kind;
    (*ret_step)->behavior = SPLIT_ISOLATED;
    return STATUS_OK;
}

static status_t read_behavior(const json_t *json, enum split_behavior *ret_behavior, struct diag *diag)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    struct json_text text;
    TRY(tok_json_text(json, "behavior", &text, diag));
    if (!text.data) { return STATUS_OK; }
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(text.data, names[i]) == 0) { *ret_behavior = (enum split_behavior)i; return STATUS_OK; }
    }
    diag_set(diag, "behavior \"%.60s\" must be Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous",
             text.data);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

static status_t read_split(struct pre_tokenizer *pre, const json_t *json, struct diag *diag)
{
    struct step *step;
    struct pattern_json pattern;
    TRY(new_step(pre, STEP_REGEX, &step, diag));
    TRY(read_behavior(json, &step->behavior, diag));
    TRY(tok_json_bool(json, "invert", false, &step->invert, diag));
    TRY(pattern_read(json_object_get(json, "pattern"), &pattern, diag));
    return regex_create(pattern.text.data, pattern.text.len, pattern.literal, &step->regex, diag);
}

static status_t read_byte_level(struct pre_tokenizer *pre, const json_t *json, struct diag *diag)
{
    bool prefix, words;
    struct step *step;
    TRY(tok_json_bool(json, "add_prefix_space", true, &prefix, diag));
    TRY(tok_json_bool(json, "use_regex", true, &words, diag));
    if (prefix) { TRY(new_step(pre, STEP_PREFIX, &step, diag)); }
    if (words) {
        TRY(new_step(pre, STEP_REGEX, &step, diag));
        TRY(regex_create(gpt2_words, sizeof gpt2_words - 1, false, &step->regex, diag));
    }
    return new_step(pre, STEP_BYTES, &step, diag);
}

static status_t read_letter(const json_t *json, const char *field, struct step *step, struct diag *diag)
{
    struct json_text text;
    TRY(tok_json_need_text(json, field, &text, diag));
    if (text.len == 0 || text.len > 4 || utf8_char_bytes((unsigned char)text.data[0]) != text.len) {
        diag_set(diag, "field \"%s\" must be one character", field);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    memcpy(step->letter, text.data, text.len);
    step->letter_len = text.len;
    return STATUS_OK;
}

static status_t read_metaspace(struct pre_tokenizer *pre, const json_t *json, struct diag *diag)
{
    struct step *step;
    struct json_text scheme;
    bool prefix;
    TRY(new_step(pre, STEP_METASPACE, &step, diag));
    TRY(read_letter(json, "replacement", step, diag));
    TRY(tok_json_bool(json, "split", true, &step->split, diag));
    TRY(tok_json_bool(json, "add_prefix_space", true, &prefix, diag)); /* how older files say it */
    TRY(tok_json_text(json, "prepend_scheme", &scheme, diag));
    const char *name = scheme.data ? scheme.data : prefix ? "always" : "never";
    if (strcmp(name, "always") == 0) {
        step->prepend = PREPEND_ALWAYS;
    } else if (strcmp(name, "first") == 0) {
        step->prepend = PREPEND_FIRST;
    } else if (strcmp(name, "never") == 0) {
        step->prepend = PREPEND_NEVER;
    } else {
        diag_set(diag, "prepend_scheme \"%.60s\" must be always, first or never", name);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (!prefix && step->prepend != PREPEND_NEVER) {
        diag_set(diag, "add_prefix_space is false, but prepend_scheme is \"%s\"", name);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    return STATUS_OK;
}

static status_t read_class(struct pre_tokenizer *pre, bool (*in_class)(uint32_t), enum split_behavior behavior,
                           struct diag *diag)
{
    struct step *step;
    TRY(new_step(pre, STEP_CLASS, &step, diag));
    step->in_class = in_class;
    step->behavior = behavior;
    return STATUS_OK;
}

static status_t read_step(struct pre_tokenizer *pre, const json_t *json, unsigned depth, struct diag *diag)
{
    struct step *step;
    const char *type = tok_json_type_name(json);
    if (!type) {
        diag_set(diag, "the pre-tokenizer must be an object with a field \"type\"");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (strcmp(type, "Split") == 0) { return read_split(pre, json, diag); }
    if (strcmp(type, "ByteLevel") == 0) { return read_byte_level(pre, json, diag); }
    if (strcmp(type, "Metaspace") == 0) { return read_metaspace(pre, json, diag); }
    if (strcmp(type, "Whitespace") == 0) { return new_step(pre, STEP_WORDS, &step, diag); }
    if (strcmp(type, "WhitespaceSplit") == 0) { return read_class(pre, unicode_is_space, SPLIT_REMOVED, diag); }
    if (strcmp(type, "Digits") == 0) {
        bool each;
        TRY(tok_json_bool(json, "individual_digits", false, &each, diag));
        return read_class(pre, unicode_is_numeric, each ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, diag);
    }
    if (strcmp(type, "Punctuation") == 0) {
        enum split_behavior behavior = SPLIT_ISOLATED;
        TRY(read_behavior(json, &behavior, diag));
        return read_class(pre, unicode_is_punctuation, behavior, diag);
    }
    if (strcmp(type, "BertPreTokenizer") == 0) {
        TRY(read_class(pre, unicode_is_space, SPLIT_REMOVED, diag));
        return read_class(pre, unicode_is_punctuation, SPLIT_ISOLATED, diag);
    }
    if (strcmp(type, "CharDelimiterSplit") == 0 || strcmp(type, "Delimiter") == 0) {
        TRY(new_step(pre, STEP_CLASS, &step, diag));
        step->behavior = SPLIT_REMOVED;
        return read_letter(json, "delimiter", step, diag);
    }
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(json, "pretokenizers");
        if (!json_is_array(list) || depth > 8) {
            diag_set(diag, "a pre-tokenizer Sequence needs an array \"pretokenizers\", nested at most 8 deep");
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
        }
        for (size_t i = 0; i < json_array_size(list); i++) {
            TRY(read_step(pre, json_array_get(list, i), depth + 1, diag));
        }
        return STATUS_OK;
    }
    diag_set(diag, "the pre-tokenizer \"%.60s\" is not supported; known are Split, ByteLevel, Metaspace, Digits, "
                   "Whitespace, WhitespaceSplit, Punctuation, BertPreTokenizer, CharDelimiterSplit and Sequence", type);
    return STATUS(ST_UNIMPLEMENTED, SCOPE_NODE);
}

status_t pre_tokenizer_create(const json_t *json, bool may_give_bytes, struct pre_tokenizer **ret_pre,
                              struct diag *diag)
{
    struct pre_tokenizer *pre = calloc(1, sizeof *pre);
    if (!pre) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    status_t st = json && !json_is_null(json) ? read_step(pre, json, 0, diag) : STATUS_OK;
    if (failed(st)) { pre_tokenizer_destroy(pre); return st; }
    if (may_give_bytes && pre->count > 0 && pre->steps[pre->count - 1].kind == STEP_BYTES) {
        pre->gives_bytes = true;
        pre->count--;
    }
    *ret_pre = pre;
    return STATUS_OK;
}

void pre_tokenizer_destroy(struct pre_tokenizer *pre)
{
    if (!pre) { return; }
    for (size_t i = 0; i < STEPS_MAX; i++) { regex_destroy(pre->steps[i].regex); }
    free(pre);
}

bool pre_tokenizer_gives_bytes(const struct pre_tokenizer *pre) { return pre->gives_bytes; }

status_t pre_tokenizer_scratch_create(const struct pre_tokenizer *pre, struct pre_tokenizer_scratch **ret_scratch)
{
    struct pre_tokenizer_scratch *scratch = calloc(1, sizeof *scratch);
    if (!scratch) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST, ENOMEM); }
    scratch->count = pre->count;
    for (size_t i = 0; i < pre->count; i++) {
        if (!pre->steps[i].regex) { continue; }
        status_t st = regex_scratch_create(pre->steps[i].regex, &scratch->regexes[i]);
        if (failed(st)) { pre_tokenizer_scratch_destroy(scratch); return st; }
    }
    *ret_scratch = scratch;
    return STATUS_OK;
}

void pre_tokenizer_scratch_destroy(struct pre_tokenizer_scratch *scratch)
{
    if (!scratch) { return; }
    for (size_t i = 0; i < scratch->count; i++) {
        regex_scratch_destroy(scratch->regexes[i]);
        text_buf_fini(&scratch->buffers[i]);
    }
    free(scratch);
}

/* ---- cutting ---- */

struct run {
    const struct pre_tokenizer *pre;
    struct pre_tokenizer_scratch *scratch;
    word_sink sink;
    void *context;
    struct diag *diag;
};

static status_t run_step(const struct run *run, size_t number, const char *text, size_t len, bool at_start);

/* Turns spans, which alternate between matches and what lies between, into words. */
struct splitter {
    const struct run *run;
    size_t number; /* the step after */
    const char *text;
    bool at_start;
    enum split_behavior behavior;
    bool has_held; /* a word that the next span may still join */
    size_t held_start, held_end;
    bool held_match;     /* the held word is one match, for SPLIT_NEXT */
    bool previous_match; /* the span before was a match */
};

static status_t emit(const struct splitter *splitter, size_t start, size_t end)
{
    if (start == end) { return STATUS_OK; }
    return run_step(splitter->run, splitter->number, splitter->text + start, end - start,
                    splitter->at_start && start == 0);
}

static status_t release(struct splitter *splitter)
{
    if (!splitter->has_held) { return STATUS_OK; }
    splitter->has_held = false;
    return emit(splitter, splitter->held_start, splitter->held_end);
}

static void hold(struct splitter *splitter, size_t start, size_t end, bool is_match)
{
    splitter->has_held = true;
    splitter->held_start = start;
    splitter->held_end = end;
    splitter->held_match = is_match;
}

static status_t add_span(struct splitter *splitter, size_t start, size_t end, bool is_match)
{
    bool previous = splitter->previous_match;
    splitter->previous_match = is_match;
    switch (splitter->behavior) {
    case SPLIT_ISOLATED: return emit(splitter, start, end);
    case SPLIT_REMOVED: return is_match ? STATUS_OK : emit(splitter, start, end);
    case SPLIT_CONTIGUOUS:
        if (splitter->has_held && is_match == previous) { splitter->held_end = end; return STATUS_OK; }
        break;
    case SPLIT_PREVIOUS:
        if (splitter->has_held && is_match && !previous) { splitter->held_end = end; return STATUS_OK; }
        break;
    case SPLIT_NEXT:
        if (splitter->has_held && splitter->held_match && !is_match) {
            splitter->held_end = end;
            splitter->held_match = false;
            return STATUS_OK;
        }
        break;
    }
    TRY(release(splitter));
    hold(splitter, start, end, is_match);
    return STATUS_OK;
}

static status_t split_by_regex(const struct run *run, const struct step *step, struct regex_scratch *regex,
                               struct splitter *splitter, size_t len)
{
    size_t from = 0;
    TRY(regex_start(regex, step->regex, splitter->text, len));
    for (;;) {
        bool found;
        size_t start = 0, end = 0;
        TRY(regex_next(regex, &found, &start, &end, run->diag));
        if (!found) { break; }
        if (from != start) { TRY(add_span(splitter, from, start, step->invert)); }
        TRY(add_span(splitter, start, end, !step->invert));
        from = end;
    }
    if (from != len) { TRY(add_span(splitter, from, len, step->invert)); }
    return release(splitter);
}

static status_t split_by_class(const struct step *step, struct splitter *splitter, size_t len)
{
    size_t from = 0;
    for (size_t at = 0, bytes; at < len; at += bytes) {
        uint32_t code = utf8_decode(splitter->text + at, &bytes);
        bool hit = step->in_class ? step->in_class(code)
                                  : bytes == step->letter_len && memcmp(splitter->text + at, step->letter, bytes) == 0;
        if (!hit) { continue; }
        if (from < at) { TRY(add_span(splitter, from, at, false)); }
        TRY(add_span(splitter, at, at + bytes, true));
        from = at + bytes;
    }
    if (from < len) { TRY(add_span(splitter, from, len, false)); }
    return release(splitter);
}

static status_t split_words(struct splitter *splitter, size_t len)
{
    size_t start = 0;
    int before = 0; /* 0: space, 1: \w, 2: neither */
    for (size_t at = 0, bytes; at < len; at += bytes) {
        uint32_t code = utf8_decode(splitter->text + at, &bytes);
        int kind = unicode_is_word(code) ? 1 : unicode_is_space(code) ? 0 : 2;
        if (kind != before) {
            if (before) { TRY(emit(splitter, start, at)); }
            start = at;
            before = kind;
        }
    }
    return before ? emit(splitter, start, len) : STATUS_OK;
}

static bool starts_with_letter(const struct step *step, const char *text, size_t len)
{
    return len >= step->letter_len && memcmp(text, step->letter, step->letter_len) == 0;
}

static status_t metaspace(const struct step *step, struct text_buf *out, struct splitter *splitter, size_t len)
{
    const char *text = splitter->text;
    out->len = 0;
    TRY(text_buf_reserve(out, len + 16));
    bool starts = (len > 0 && text[0] == ' ') || starts_with_letter(step, text, len);
    bool prepend = step->prepend == PREPEND_ALWAYS || (step->prepend == PREPEND_FIRST && splitter->at_start);
    if (prepend && !starts) { TRY(text_buf_append(out, step->letter, step->letter_len)); }
    for (size_t from = 0; from < len;) {
        const char *space = memchr(text + from, ' ', len - from);
        size_t to = space ? (size_t)(space - text) : len;
        TRY(text_buf_append(out, text + from, to - from));
        if (space) { TRY(text_buf_append(out, step->letter, step->letter_len)); }
        from = to + 1;
    }
    splitter->text = out->data;
    if (!step->split) { return emit(splitter, 0, out->len); }
    /* A letter joins what follows it; of several in a row all but the last are alone. */
    size_t start = 0;
    for (size_t at = 0; at < out->len; at++) {
        if (at == start || !starts_with_letter(step, out->data + at, out->len - at)) { continue; }
        TRY(emit(splitter, start, at));
        start = at;
    }
    return emit(splitter, start, out->len);
}

static status_t run_step(const struct run *run, size_t number, const char *text, size_t len, bool at_start)
{
    if (len == 0) { return STATUS_OK; }
    if (number == run->pre->count) { return run->sink(run->context, text, len, run->diag); }
    const struct step *step = &run->pre->steps[number];
    struct text_buf *buffer = &run->scratch->buffers[number];
    struct splitter splitter = {.run = run, .number = number + 1, .text = text, .at_start = at_start,
                                .behavior = step->behavior};
    switch (step->kind) {
    case STEP_REGEX: return split_by_regex(run, step, run->scratch->regexes[number], &splitter, len);
    case STEP_CLASS: return split_by_class(step, &splitter, len);
    case STEP_WORDS: return split_words(&splitter, len);
    case STEP_METASPACE: return metaspace(step, buffer, &splitter, len);
    case STEP_PREFIX:
        if (text[0] == ' ') { return run_step(run, number + 1, text, len, at_start); }
        buffer->len = 0;
        TRY(text_buf_append(buffer, " ", 1));
        TRY(text_buf_append(buffer, text, len));
        return run_step(run, number + 1, buffer->data, buffer->len, at_start);
    case STEP_BYTES:
        buffer->len = 0;
        TRY(text_buf_reserve(buffer, 2 * len));
        for (size_t i = 0; i < len; i++) {
            buffer->len += utf8_encode(byte_alphabet_code((uint8_t)text[i]), buffer->data + buffer->len);
        }
        return run_step(run, number + 1, buffer->data, buffer->len, at_start);
    }
    return STATUS(ST_INTERNAL, SCOPE_REQUEST);
}

status_t pre_tokenizer_run(const struct pre_tokenizer *pre, struct pre_tokenizer_scratch *scratch, const char *text,
                           size_t len, bool at_start, word_sink sink, void *context, struct diag *diag)
{
    struct run run = {pre, scratch, sink, context, diag};
    return run_step(&run, 0, text, len, at_start);
}
