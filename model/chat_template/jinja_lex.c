#include "model/chat_template/jinja_lex.h"

#include <errno.h>
#include <stdlib.h>

#include "model/chat_template/jinja_text.h"
#include "model/chat_template/jinja_utf8.h"

struct lexer {
    struct jinja_ctx *ctx;
    const char *source;
    size_t len, at;
    uint32_t line;
    bool line_starting; /* the last thing read ended a line, so leading blanks may be stripped */
    struct token *tokens;
    uint32_t count, capacity;
};

static bool is_alpha(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (unsigned char)c >= 0x80; }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static void push(struct lexer *lex, struct token token)
{
    if (jinja_failed(lex->ctx)) { return; }
    if (lex->count == lex->capacity) {
        uint32_t capacity = lex->capacity ? lex->capacity * 2 : 256;
        struct token *tokens = jinja_alloc(lex->ctx, capacity * sizeof *tokens);
        if (!tokens) { return; }
        if (lex->count) { memcpy(tokens, lex->tokens, lex->count * sizeof *tokens); }
        lex->tokens = tokens;
        lex->capacity = capacity;
    }
    if (token.line == 0) { token.line = lex->line; }
    lex->tokens[lex->count++] = token;
}

static void advance(struct lexer *lex, size_t to)
{
    for (; lex->at < to; lex->at++) { lex->line += lex->source[lex->at] == '\n'; }
    lex->line_starting = to > 0 && lex->source[to - 1] == '\n';
    lex->ctx->line = lex->line;
}

/* Length of the white space at `at`. */
static size_t space_len(const struct lexer *lex, size_t at)
{
    size_t begin = at;
    while (at < lex->len) {
        uint32_t code;
        uint32_t used = utf8_next(lex->source + at, lex->len - at, &code);
        if (!text_is_space(code)) { break; }
        at += used;
    }
    return at - begin;
}

static bool looking_at(const struct lexer *lex, size_t at, const char *text)
{
    size_t len = strlen(text);
    return lex->len - at >= len && memcmp(lex->source + at, text, len) == 0;
}

/* The text before a tag, stripped as the tag's sign and lstrip_blocks say. */
static void push_data(struct lexer *lex, size_t begin, size_t end, char sign, bool is_print, bool line_starting)
{
    if (sign == '-') {
        struct value text = text_strip(lex->ctx, value_str(lex->source + begin, end - begin), NULL, false, true);
        end = begin + text.len;
    } else if (sign != '+' && !is_print) {
        size_t line = end;
        while (line > begin && lex->source[line - 1] != '\n') { line--; }
        if ((line > begin || line_starting) && space_len(lex, line) >= end - line) { end = line; }
    }
    if (end > begin) { push(lex, (struct token){.kind = T_DATA, .value = value_str(lex->source + begin, end - begin)}); }
}

/* After `%}`, `#}`: where the template goes on, or 0 if this is no end.
 * trim: a plain end also takes one line feed. */
static size_t tag_end(const struct lexer *lex, size_t at, const char *end, bool trim)
{
    char sign = lex->source[at];
    if (sign == '-' || sign == '+') {
        if (sign == '+' && !trim) { return 0; } /* only blocks and comments know + */
        if (!looking_at(lex, at + 1, end)) { return 0; }
        at += 3;
        return sign == '-' ? at + space_len(lex, at) : at;
    }
    if (!looking_at(lex, at, end)) { return 0; }
    at += 2;
    return trim && at < lex->len && lex->source[at] == '\n' ? at + 1 : at;
}

static void read_comment(struct lexer *lex)
{
    for (size_t at = lex->at; at < lex->len; at++) {
        size_t end = tag_end(lex, at, "#}", true);
        if (end) {
            advance(lex, end);
            return;
        }
    }
    jinja_fail(lex->ctx, ST_INVALID_ARGUMENT, "Missing end of comment tag");
}

/* Between {% raw %} and {% endraw %}; lex->at is behind the raw tag. */
static void read_raw(struct lexer *lex)
{
    size_t begin = lex->at;
    bool line_starting = lex->line_starting;
    for (size_t at = begin; at + 1 < lex->len; at++) {
        if (!looking_at(lex, at, "{%")) { continue; }
        size_t inner = at + 2;
        char sign = inner < lex->len ? lex->source[inner] : 0;
        if (sign == '-' || sign == '+') { inner++; } else { sign = 0; }
        inner += space_len(lex, inner);
        if (!looking_at(lex, inner, "endraw")) { continue; }
        inner += 6;
        inner += space_len(lex, inner);
        size_t end = inner < lex->len ? tag_end(lex, inner, "%}", true) : 0;
        if (!end) { continue; }
        push_data(lex, begin, at, sign, false, line_starting);
        advance(lex, end);
        return;
    }
    jinja_fail(lex->ctx, ST_INVALID_ARGUMENT, "Missing end of raw directive");
}

/* {% raw %}: where its content starts, or 0. */
static size_t raw_begin(const struct lexer *lex, size_t at)
{
    at += space_len(lex, at);
    if (!looking_at(lex, at, "raw")) { return 0; }
    at += 3;
    at += space_len(lex, at);
    if (looking_at(lex, at, "-%}")) { return at + 3 + space_len(lex, at + 3); }
    return looking_at(lex, at, "%}") ? at + 2 : 0;
}

static int hex_value(char c)
{
    if (is_digit(c)) { return c - '0'; }
    if (c >= 'a' && c <= 'f') { return c - 'a' + 10; }
    if (c >= 'A' && c <= 'F') { return c - 'A' + 10; }
    return -1;
}

/* One backslash escape of Python's; returns bytes used of text[0..len), text[0] being '\\'. */
static size_t read_escape(struct lexer *lex, const char *text, size_t len, struct text *out)
{
    static const char plain[] = "\\\\''\"\"a\ab\bf\fn\nr\rt\tv\v";
    char c = text[1];
    for (size_t i = 0; plain[i]; i += 2) {
        if (plain[i] == c) {
            text_putc(lex->ctx, out, plain[i + 1]);
            return 2;
        }
    }
    if (c == '\n') { return 2; }
    uint32_t code = 0;
    size_t used = 2;
    if (c >= '0' && c <= '7') {
        for (used = 1; used < 4 && used < len && text[used] >= '0' && text[used] <= '7'; used++) { code = code * 8 + (uint32_t)(text[used] - '0'); }
    } else if (c == 'x' || c == 'u' || c == 'U') {
        size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        for (; used < 2 + digits; used++) {
            int digit = used < len ? hex_value(text[used]) : -1;
            if (digit < 0) {
                jinja_fail(lex->ctx, ST_INVALID_ARGUMENT, "truncated \\%c escape in a string", c);
                return len;
            }
            code = code * 16 + (uint32_t)digit;
        }
    } else if (c == 'N') {
        jinja_fail(lex->ctx, ST_UNIMPLEMENTED, "unsupported escape '\\N' in a string");
        return len;
    } else {
        text_putc(lex->ctx, out, '\\'); /* not an escape: the backslash stays */
        return 1;
    }
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) {
        jinja_fail(lex->ctx, ST_INVALID_ARGUMENT, "escape \\%c in a string names no character", c);
        return len;
    }
    char bytes[4];
    text_put(lex->ctx, out, bytes, utf8_put(code, bytes));
    return used;
}

static void read_string(struct lexer *lex)
{
    char quote = lex->source[lex->at];
    size_t begin = lex->at + 1, end = begin;
    bool escaped = false;
    while (end < lex->len && lex->source[end] != quote) {
        escaped |= lex->source[end] == '\\';
        end += lex->source[end] == '\\' ? 2 : 1;
    }
    if (end >= lex->len) {
        jinja_fail(lex->ctx, ST_INVALID_ARGUMENT, "a string is not closed");
        return;
    }
    struct value value = value_str(lex->source + begin, end - begin);
    if (escaped) {
        struct text out = {0};
        for (size_t at = begin; at < end && !jinja_failed(lex->ctx);) {
            if (lex->source[at] == '\\') {
                at += read_escape(lex, lex->source + at, end - at, &out);
            } else {
                size_t run = at;
                while (run < end && lex->source[run] != '\\') { run++; }
                text_put(lex->ctx, &out, lex->source + at, run - at);
                at = run;
            }
        }
        value = text_value(lex->ctx, &out);
    }
    push(lex, (struct token){.kind = T_STRING, .value = value});
    advance(lex, end + 1);
}

static void read_number(struct lexer *lex)
{
    char digits[64];
    size_t len = 0, at = lex->at;
    int base = 10;
    bool real = false;
    if (lex->source[at] == '0' && at + 1 < lex->len && strchr("xXoObB", lex->source[at + 1]) && lex->source[at + 1]) {
        char c = (char)(lex->source[at + 1] | 0x20);
        base = c == 'x' ? 16 : c == 'o' ? 8 : 2;
        at += 2;
    }
    /* After a dot the number is an index, as in a.0.1, and takes no fraction. */
    bool after_dot = lex->count && lex->tokens[lex->count - 1].kind == T_OP && lex->tokens[lex->count - 1].op == '.';
    for (; at < lex->len && len < sizeof digits - 1; at++) {
        char c = lex->source[at];
        char next = at + 1 < lex->len ? lex->source[at + 1] : 0;
        if (c == '_' && (is_digit(next) || (base == 16 && hex_value(next) >= 0))) { continue; }
        if (base == 16 ? hex_value(c) >= 0 : is_digit(c)) { digits[len++] = c; continue; }
        if (base != 10 || after_dot) { break; }
        if (c == '.' && !real && is_digit(next)) {
            real = true;
            digits[len++] = c;
        } else if ((c == 'e' || c == 'E') && len && !memchr(digits, 'e', len) &&
                   (is_digit(next) || ((next == '+' || next == '-') && at + 2 < lex->len && is_digit(lex->source[at + 2])))) {
            real = true;
            digits[len++] = 'e';
            if (!is_digit(next)) {
                digits[len++] = next;
                at++;
            }
        } else {
            break;
        }
    }
    digits[len] = '\0';
    errno = 0;
    char *end = NULL;
    struct value value = real ? value_float(strtod(digits, &end)) : value_int(strtoll(digits, &end, base));
    if (len == 0 || *end != '\0' || (!real && errno == ERANGE) || len >= sizeof digits - 1) {
        jinja_fail(lex->ctx, ST_INVALID_ARGUMENT, "a number is malformed or too large for 64 bits");
        return;
    }
    push(lex, (struct token){.kind = T_NUMBER, .value = value});
    advance(lex, at);
}

/* From behind {{ or {% to behind its end. */
static void read_inside(struct lexer *lex, bool is_print)
{
    char open[JINJA_DEPTH_MAX];
    uint32_t depth = 0;
    const char *closing = is_print ? "}}" : "%}";
    while (!jinja_failed(lex->ctx)) {
        advance(lex, lex->at + space_len(lex, lex->at));
        if (lex->at >= lex->len) {
            jinja_fail(lex->ctx, ST_INVALID_ARGUMENT, "unexpected end of template, '%s' is missing", closing);
            return;
        }
        char c = lex->source[lex->at];
        size_t end = depth == 0 ? tag_end(lex, lex->at, closing, !is_print) : 0;
        if (end) {
            push(lex, (struct token){.kind = is_print ? T_END_PRINT : T_END_BLOCK});
            advance(lex, end);
            return;
        }
        if (is_digit(c)) {
            read_number(lex);
        } else if (is_alpha(c)) {
            size_t stop = lex->at;
            while (stop < lex->len && (is_alpha(lex->source[stop]) || is_digit(lex->source[stop]))) { stop++; }
            push(lex, (struct token){.kind = T_NAME, .value = value_str(lex->source + lex->at, stop - lex->at)});
            advance(lex, stop);
        } else if (c == '\'' || c == '"') {
            read_string(lex);
        } else {
            static const char *const two[] = {"//", "**", "==", "!=", ">=", "<="};
            uint16_t op = 0;
            for (size_t i = 0; i < sizeof two / sizeof two[0]; i++) {
                if (looking_at(lex, lex->at, two[i])) { op = (uint16_t)((unsigned char)two[i][0] | ((unsigned)two[i][1] << 8)); }
            }
            if (!op && c && strchr("+-*/%~[](){}<>=.:|,;", c)) { op = (unsigned char)c; }
            if (!op) {
                jinja_fail(lex->ctx, ST_INVALID_ARGUMENT, "unexpected char '%c'", c >= 0x20 && c < 0x7f ? c : '?');
                return;
            }
            if (c == '(' || c == '[' || c == '{') {
                if (depth == JINJA_DEPTH_MAX) {
                    jinja_fail(lex->ctx, ST_INVALID_ARGUMENT, "brackets are nested deeper than %u", JINJA_DEPTH_MAX);
                    return;
                }
                open[depth++] = c == '(' ? ')' : c == '[' ? ']' : '}';
            } else if (c == ')' || c == ']' || c == '}') {
                if (depth == 0 || open[--depth] != c) {
                    jinja_fail(lex->ctx, ST_INVALID_ARGUMENT, "unexpected '%c'", c);
                    return;
                }
            }
            push(lex, (struct token){.kind = T_OP, .op = op});
            advance(lex, lex->at + (op > 0xff ? 2 : 1));
        }
    }
}

struct token *jinja_lex(struct jinja_ctx *ctx, const char *source, size_t len, uint32_t *ret_count)
{
    struct lexer lex = {.ctx = ctx, .source = source, .len = len, .line = 1, .line_starting = true};
    ctx->line = 1;
    while (!jinja_failed(ctx)) {
        size_t begin = lex.at;
        bool line_starting = lex.line_starting;
        const char *brace = NULL;
        for (size_t at = begin; at + 1 < len; at++) {
            if (source[at] == '{' && (source[at + 1] == '{' || source[at + 1] == '%' || source[at + 1] == '#')) {
                brace = source + at;
                break;
            }
        }
        if (!brace) {
            if (begin < len) { push(&lex, (struct token){.kind = T_DATA, .value = value_str(source + begin, len - begin)}); }
            break;
        }
        size_t at = (size_t)(brace - source), inner = at + 2;
        char what = brace[1];
        char sign = inner < len && (source[inner] == '-' || source[inner] == '+') ? source[inner] : 0;
        if (sign) { inner++; }
        push_data(&lex, begin, at, sign, what == '{', line_starting);
        size_t raw = what == '%' ? raw_begin(&lex, inner) : 0;
        advance(&lex, raw ? raw : inner);
        if (what == '#') {
            read_comment(&lex);
        } else if (raw) {
            read_raw(&lex);
        } else {
            push(&lex, (struct token){.kind = what == '{' ? T_BEGIN_PRINT : T_BEGIN_BLOCK});
            read_inside(&lex, what == '{');
        }
    }
    push(&lex, (struct token){.kind = T_EOF});
    *ret_count = lex.count;
    return jinja_failed(ctx) ? NULL : lex.tokens;
}
