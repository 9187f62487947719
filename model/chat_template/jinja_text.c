#include "model/chat_template/jinja_text.h"

#include <utf8proc.h>

#include "model/chat_template/jinja_case.h"
#include "model/chat_template/jinja_utf8.h"

static utf8proc_category_t category(uint32_t code) { return utf8proc_category((utf8proc_int32_t)code); }

static bool in_set(struct value set, uint32_t code)
{
    for (uint32_t at = 0; at < set.len;) {
        uint32_t other;
        at += utf8_next(set.u.text + at, set.len - at, &other);
        if (other == code) { return true; }
    }
    return false;
}

struct value text_strip(struct jinja_ctx *ctx, struct value s, const struct value *chars, bool left, bool right)
{
    if (!jinja_charge(ctx, 1)) { return value_str("", 0); }
    uint32_t begin = 0, end = s.len;
    while (left && begin < end && jinja_charge(ctx, chars ? 1 + chars->len / 16 : 0)) {
        uint32_t code;
        uint32_t len = utf8_next(s.u.text + begin, end - begin, &code);
        if (!(chars ? in_set(*chars, code) : text_is_space(code))) { break; }
        begin += len;
    }
    while (right && end > begin && jinja_charge(ctx, chars ? 1 + chars->len / 16 : 0)) {
        uint32_t at = end - 1;
        while (at > begin && ((unsigned char)s.u.text[at] & 0xc0) == 0x80) { at--; }
        uint32_t code;
        utf8_next(s.u.text + at, end - at, &code);
        if (!(chars ? in_set(*chars, code) : text_is_space(code))) { break; }
        end = at;
    }
    struct value result = value_str(s.u.text + begin, end - begin);
    result.safe = s.safe;
    return result;
}

/* ---- case ---- */

static const struct special_case *special_of(uint32_t code)
{
    size_t low = 0, high = sizeof special_cases / sizeof special_cases[0];
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (special_cases[middle].code == code) { return &special_cases[middle]; }
        if (special_cases[middle].code < code) { low = middle + 1; } else { high = middle; }
    }
    return NULL;
}

static void put_code(struct jinja_ctx *ctx, struct text *text, uint32_t code)
{
    char bytes[4];
    text_put(ctx, text, bytes, utf8_put(code, bytes));
}

static void put_upper(struct jinja_ctx *ctx, struct text *text, uint32_t code, bool title)
{
    const struct special_case *special = code < 0x80 ? NULL : special_of(code);
    if (special) {
        const uint16_t *to = title ? special->title : special->upper;
        for (int i = 0; i < 3 && to[i]; i++) { put_code(ctx, text, to[i]); }
        return;
    }
    utf8proc_int32_t c = (utf8proc_int32_t)code;
    put_code(ctx, text, (uint32_t)(title ? utf8proc_totitle(c) : utf8proc_toupper(c)));
}

static bool is_cased(uint32_t code)
{
    switch (category(code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT: return true;
    default:
        return code == 0xaa || code == 0xba || (code >= 0x2160 && code <= 0x217f) || (code >= 0x24b6 && code <= 0x24e9);
    }
}

static bool is_case_ignorable(uint32_t code)
{
    switch (category(code)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK: return true;
    default:
        return code == '\'' || code == '.' || code == ':' || code == 0xb7 || code == 0x2018 || code == 0x2019 || code == 0x2024 ||
               code == 0x2027;
    }
}

/* Unicode's Final_Sigma: after a cased letter and not before one, marks and such skipped. */
static bool sigma_is_final(struct value s, uint32_t at, uint32_t len)
{
    uint32_t code, back = at;
    bool before = false;
    while (back > 0) {
        do { back--; } while (back > 0 && ((unsigned char)s.u.text[back] & 0xc0) == 0x80);
        utf8_next(s.u.text + back, s.len - back, &code);
        if (is_case_ignorable(code)) { continue; }
        before = is_cased(code);
        break;
    }
    if (!before) { return false; }
    for (uint32_t next = at + len; next < s.len;) {
        next += utf8_next(s.u.text + next, s.len - next, &code);
        if (is_case_ignorable(code)) { continue; }
        return !is_cased(code);
    }
    return true;
}

static void put_lower(struct jinja_ctx *ctx, struct text *text, struct value s, uint32_t at, uint32_t len, uint32_t code)
{
    if (code == 0x130) {
        text_put(ctx, text, "i\xcc\x87", 3);
    } else if (code == 0x3a3) {
        jinja_charge(ctx, s.len / 4); /* the scan both ways */
        put_code(ctx, text, sigma_is_final(s, at, len) ? 0x3c2 : 0x3c3);
    } else {
        put_code(ctx, text, (uint32_t)utf8proc_tolower((utf8proc_int32_t)code));
    }
}

enum casing { CASE_UPPER, CASE_LOWER, CASE_CAPITALIZE, CASE_TITLE, CASE_TITLE_WORDS };

static bool splits_words(uint32_t code)
{
    return code == '-' || code == '(' || code == '{' || code == '[' || code == '<' || text_is_space(code);
}

static struct value recase(struct jinja_ctx *ctx, struct value s, enum casing casing)
{
    struct text text = {0};
    bool first = true; /* of the string, or of a word */
    /* In Jinja's title filter each word is a string of its own, which matters to the sigma. */
    uint32_t word = 0;
    for (uint32_t at = 0; at < s.len && jinja_charge(ctx, 1);) {
        uint32_t code;
        uint32_t len = utf8_next(s.u.text + at, s.len - at, &code);
        if (casing == CASE_TITLE_WORDS && splits_words(code)) {
            text_put(ctx, &text, s.u.text + at, len);
            first = true;
            at += len;
            continue;
        }
        if (casing == CASE_UPPER || (first && casing != CASE_LOWER)) {
            put_upper(ctx, &text, code, casing == CASE_CAPITALIZE || casing == CASE_TITLE);
            word = at + len;
        } else if (casing == CASE_TITLE_WORDS) {
            uint32_t end = at;
            while (end < s.len) {
                uint32_t other;
                uint32_t step = utf8_next(s.u.text + end, s.len - end, &other);
                if (splits_words(other)) { break; }
                end += step;
            }
            for (struct value rest = value_str(s.u.text + word, end - word); at < end && jinja_charge(ctx, 1); at += len) {
                len = utf8_next(s.u.text + at, end - at, &code);
                put_lower(ctx, &text, rest, at - word, len, code);
            }
            continue;
        } else {
            put_lower(ctx, &text, s, at, len, code);
        }
        first = casing == CASE_TITLE ? !is_cased(code) : false;
        at += len;
    }
    struct value result = text_value(ctx, &text);
    result.safe = s.safe;
    return result;
}

struct value text_upper(struct jinja_ctx *ctx, struct value s) { return recase(ctx, s, CASE_UPPER); }
struct value text_lower(struct jinja_ctx *ctx, struct value s) { return recase(ctx, s, CASE_LOWER); }
struct value text_capitalize(struct jinja_ctx *ctx, struct value s) { return recase(ctx, s, CASE_CAPITALIZE); }
struct value text_title(struct jinja_ctx *ctx, struct value s) { return recase(ctx, s, CASE_TITLE); }
struct value text_title_words(struct jinja_ctx *ctx, struct value s) { return recase(ctx, s, CASE_TITLE_WORDS); }

static bool has_case(struct value s, bool upper)
{
    bool seen = false;
    for (uint32_t at = 0; at < s.len;) {
        uint32_t code;
        at += utf8_next(s.u.text + at, s.len - at, &code);
        if (!is_cased(code)) { continue; }
        utf8proc_int32_t c = (utf8proc_int32_t)code;
        bool is_lower = category(code) == UTF8PROC_CATEGORY_LL || code == 0xaa || code == 0xba || (utf8proc_toupper(c) != c && category(code) != UTF8PROC_CATEGORY_LT);
        if (category(code) == UTF8PROC_CATEGORY_LT || is_lower == upper) { return false; }
        seen = true;
    }
    return seen;
}

bool text_is_upper(struct value s) { return has_case(s, true); }
bool text_is_lower(struct value s) { return has_case(s, false); }

bool text_is_all(struct value s, char which)
{
    for (uint32_t at = 0; at < s.len;) {
        uint32_t code;
        at += utf8_next(s.u.text + at, s.len - at, &code);
        utf8proc_category_t c = category(code);
        bool alpha = c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
        bool digit = c == UTF8PROC_CATEGORY_ND || code == 0xb2 || code == 0xb3 || code == 0xb9 || code == 0x2070 ||
                     (code >= 0x2074 && code <= 0x2079) || (code >= 0x2080 && code <= 0x2089);
        bool numeric = c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO;
        bool ok = which == 'a' ? alpha : which == 'd' ? digit : which == 'n' ? alpha || numeric : text_is_space(code);
        if (!ok) { return false; }
    }
    return s.len > 0;
}

/* ---- pieces ---- */

static bool ends_line(uint32_t code)
{
    return (code >= 10 && code <= 13) || (code >= 0x1c && code <= 0x1e) || code == 0x85 || code == 0x2028 || code == 0x2029;
}

struct list *text_splitlines(struct jinja_ctx *ctx, struct value s, bool keep_ends)
{
    struct list *lines = list_new(ctx, 0);
    uint32_t begin = 0;
    for (uint32_t at = 0; at < s.len && jinja_charge(ctx, 1);) {
        uint32_t code;
        uint32_t end = at;
        at += utf8_next(s.u.text + at, s.len - at, &code);
        if (!ends_line(code)) { continue; }
        if (code == '\r' && at < s.len && s.u.text[at] == '\n') { at++; }
        list_push(ctx, lines, value_str(s.u.text + begin, (keep_ends ? at : end) - begin));
        begin = at;
    }
    if (begin < s.len) { list_push(ctx, lines, value_str(s.u.text + begin, s.len - begin)); }
    return lines;
}

struct value text_replace(struct jinja_ctx *ctx, struct value s, struct value from, struct value to, int64_t count)
{
    struct text text = {0};
    uint32_t at = 0;
    if (!jinja_charge(ctx, 1 + s.len / 64)) { return value_str("", 0); }
    if (from.len == 0) { /* Python puts `to` before every character and at the end */
        while (count != 0 && jinja_charge(ctx, 1)) {
            text_put(ctx, &text, to.u.text, to.len);
            count--;
            if (at == s.len) { break; }
            uint32_t code;
            uint32_t len = utf8_next(s.u.text + at, s.len - at, &code);
            text_put(ctx, &text, s.u.text + at, len);
            at += len;
        }
    } else {
        while (count != 0 && s.len - at >= from.len && jinja_charge(ctx, 1)) {
            const char *hit = memmem(s.u.text + at, s.len - at, from.u.text, from.len);
            if (!hit) { break; }
            text_put(ctx, &text, s.u.text + at, (size_t)(hit - (s.u.text + at)));
            text_put(ctx, &text, to.u.text, to.len);
            at = (uint32_t)(hit - s.u.text) + from.len;
            count--;
        }
        if (at == 0) { return value_str(s.u.text, s.len); }
    }
    text_put(ctx, &text, s.u.text + at, s.len - at);
    return text_value(ctx, &text);
}

struct value text_escape(struct jinja_ctx *ctx, struct value s)
{
    if (s.safe) { return s; }
    struct text text = {0};
    uint32_t begin = 0;
    for (uint32_t at = 0; at < s.len && !jinja_failed(ctx); at++) {
        const char *entity = NULL;
        switch (s.u.text[at]) {
        case '&': entity = "&amp;"; break;
        case '<': entity = "&lt;"; break;
        case '>': entity = "&gt;"; break;
        case '\'': entity = "&#39;"; break;
        case '"': entity = "&#34;"; break;
        default: continue;
        }
        text_put(ctx, &text, s.u.text + begin, at - begin);
        text_puts(ctx, &text, entity);
        begin = at + 1;
    }
    text_put(ctx, &text, s.u.text + begin, s.len - begin);
    struct value result = text_value(ctx, &text);
    result.safe = true;
    return result;
}
