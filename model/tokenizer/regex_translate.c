/* regex_translate: Oniguruma's Ruby syntax said in PCRE2's.
 * Where they agree the pattern is copied. Where they differ:
 *   \s \S        PCRE2's also take U+180E, which is no space since Unicode 6.3
 *   \w \W \b \B  PCRE2 10.42's lack marks, connectors and Other_Alphabetic
 *   \h \H        a hexadecimal digit; horizontal space in PCRE2
 *   \v           a vertical tab; any line break in PCRE2
 *   \uHHHH       unknown to PCRE2
 *   \p{Han}      the Script; Script_Extensions in PCRE2
 *   (?m)         dot matches newlines, which PCRE2 calls s
 *   {n,m}+       repeats the repeat; possessive in PCRE2. {,m} is {0,m}. {n}? is optional
 *   [a[b]]       nested classes; [[:punct:]] has symbols too
 *   [a&&b]       cannot be said in PCRE2: refused
 * Source: oniguruma/doc/RE, OnigSyntaxRuby; pcre2pattern(3). */
#include <ctype.h>
#include <string.h>

#include "model/tokenizer/regex.h"
#include "model/tokenizer/utf8.h"

#define SPACE_ITEMS "\\p{Z}\\t-\\r\\x{85}"
/* The digits of Latin-1 that are no decimals are in by an old table of Oniguruma. */
#define WORD_ITEMS "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"
#define GROUP_DEPTH_MAX 200

struct translation {
    const char *text;
    size_t len;
    size_t at;
    struct text_buf *out;
    struct diag *diag;
};

static status_t put(struct translation *t, const char *words) { return text_buf_append(t->out, words, strlen(words)); }

static status_t copy(struct translation *t, size_t count)
{
    if (count > t->len - t->at) { count = t->len - t->at; }
    TRY(text_buf_append(t->out, t->text + t->at, count));
    t->at += count;
    return STATUS_OK;
}

static int peek(const struct translation *t, size_t ahead)
{
    return ahead < t->len - t->at ? (unsigned char)t->text[t->at + ahead] : -1;
}

static status_t refuse(const struct translation *t, const char *what)
{
    diag_set(t->diag, "the regular expression \"%.*s\" uses %s at byte %zu, which is not supported", (int)t->len, t->text,
             what, t->at);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

static bool is_hex(int c) { return c >= 0 && c < 0x80 && isxdigit(c); }

struct property_name {
    const char *long_name;
    const char *ours;
};

/* Long names of general categories and the POSIX names, which PCRE2 has only in brackets. */
static const struct property_name properties[] = {
    {"letter", "L"}, {"casedletter", "L&"}, {"uppercaseletter", "Lu"}, {"lowercaseletter", "Ll"},
    {"titlecaseletter", "Lt"}, {"modifierletter", "Lm"}, {"otherletter", "Lo"}, {"mark", "M"},
    {"nonspacingmark", "Mn"}, {"spacingmark", "Mc"}, {"enclosingmark", "Me"}, {"number", "N"},
    {"decimalnumber", "Nd"}, {"letternumber", "Nl"}, {"othernumber", "No"}, {"punctuation", "P"},
    {"connectorpunctuation", "Pc"}, {"dashpunctuation", "Pd"}, {"openpunctuation", "Ps"},
    {"closepunctuation", "Pe"}, {"initialpunctuation", "Pi"}, {"finalpunctuation", "Pf"},
    {"otherpunctuation", "Po"}, {"symbol", "S"}, {"mathsymbol", "Sm"}, {"currencysymbol", "Sc"},
    {"modifiersymbol", "Sk"}, {"othersymbol", "So"}, {"separator", "Z"}, {"spaceseparator", "Zs"},
    {"lineseparator", "Zl"}, {"paragraphseparator", "Zp"}, {"other", "C"}, {"control", "Cc"}, {"format", "Cf"},
    {"privateuse", "Co"}, {"unassigned", "Cn"}, {"digit", "Nd"}, {"alpha", "Alphabetic"}, {"upper", "Uppercase"},
    {"lower", "Lowercase"}, {"cntrl", "Cc"}, {"any", "Any"}, {"alphabetic", "Alphabetic"},
    {"uppercase", "Uppercase"}, {"lowercase", "Lowercase"}, {"whitespace", "White_Space"},
    {"space", "White_Space"}, {"ideographic", "Ideographic"}, {"emoji", "Emoji"}, {"math", "Math"},
    {"extendedpictographic", "Extended_Pictographic"}, {"emojipresentation", "Emoji_Presentation"},
    {"emojimodifier", "Emoji_Modifier"},
};

/* \p{..}, \P{..}: `at` is on the backslash. */
static status_t property(struct translation *t)
{
    size_t end = t->at + 3;
    if (peek(t, 2) != '{') { return copy(t, 3); }
    while (end < t->len && t->text[end] != '}') { end++; }
    if (end >= t->len) { return refuse(t, "an unfinished \\p{"); }
    char name[64];
    size_t name_len = 0;
    bool negated = t->text[t->at + 1] == 'P';
    for (size_t i = t->at + 3; i < end && name_len + 1 < sizeof name; i++) {
        char c = t->text[i];
        if (c == '^') { negated = !negated; continue; }
        if (c != ' ' && c != '_' && c != '-') { name[name_len++] = (char)tolower((unsigned char)c); }
    }
    name[name_len] = '\0';
    TRY(put(t, negated ? "\\P{" : "\\p{"));
    const char *ours = NULL;
    for (size_t i = 0; i < sizeof properties / sizeof properties[0]; i++) {
        if (strcmp(name, properties[i].long_name) == 0) { ours = properties[i].ours; }
    }
    if (ours) {
        TRY(put(t, ours));
    } else {
        bool script = name_len > 2 && !strchr(name, '='); /* one and two letters are categories */
        if (script) { TRY(put(t, "sc:")); }
        for (size_t i = t->at + 3; i < end; i++) {
            if (t->text[i] != '^') { TRY(text_buf_append(t->out, t->text + i, 1)); }
        }
    }
    TRY(put(t, "}"));
    t->at = end + 1;
    return STATUS_OK;
}

/* \uHHHH and \u{H..}: `at` is on the backslash. */
static status_t code_escape(struct translation *t)
{
    size_t start = t->at + 2, end = start;
    if (peek(t, 2) == '{') {
        start++;
        end = start;
        while (end < t->len && is_hex((unsigned char)t->text[end])) { end++; }
        if (end == start || end >= t->len || t->text[end] != '}') { return refuse(t, "a malformed \\u"); }
        t->at = end + 1;
    } else {
        while (end < t->len && end < start + 4 && is_hex((unsigned char)t->text[end])) { end++; }
        if (end != start + 4) { return refuse(t, "a malformed \\u"); }
        t->at = end;
    }
    TRY(put(t, "\\x{"));
    TRY(text_buf_append(t->out, t->text + start, end - start));
    return put(t, "}");
}

/* Any other escape: the backslash and the whole character after it. */
static status_t plain_escape(struct translation *t)
{
    if (t->len - t->at < 2) { return refuse(t, "a trailing backslash"); }
    return copy(t, 1 + utf8_char_bytes((unsigned char)t->text[t->at + 1]));
}

static status_t replace_escape(struct translation *t, const char *words)
{
    t->at += 2;
    return put(t, words);
}

static status_t escape(struct translation *t)
{
    switch (peek(t, 1)) {
    case 's': return replace_escape(t, "[" SPACE_ITEMS "]");
    case 'S': return replace_escape(t, "[^" SPACE_ITEMS "]");
    case 'w': return replace_escape(t, "[" WORD_ITEMS "]");
    case 'W': return replace_escape(t, "[^" WORD_ITEMS "]");
    case 'b': return replace_escape(t, "(?:(?<=[" WORD_ITEMS "])(?![" WORD_ITEMS "])|(?<![" WORD_ITEMS "])(?=[" WORD_ITEMS
                                       "]))");
    case 'B': return replace_escape(t, "(?:(?<=[" WORD_ITEMS "])(?=[" WORD_ITEMS "])|(?<![" WORD_ITEMS "])(?![" WORD_ITEMS
                                       "]))");
    case 'h': return replace_escape(t, "[0-9A-Fa-f]");
    case 'H': return replace_escape(t, "[^0-9A-Fa-f]");
    case 'v': return replace_escape(t, "\\x{0b}");
    case 'u': return code_escape(t);
    case 'p':
    case 'P': return property(t);
    default: return plain_escape(t);
    }
}

static status_t posix_class(struct translation *t)
{
    static const struct property_name names[] = {
        {"alpha", "\\p{Alphabetic}"}, {"digit", "\\p{Nd}"}, {"alnum", "\\p{Alphabetic}\\p{Nd}"},
        {"upper", "\\p{Uppercase}"}, {"lower", "\\p{Lowercase}"}, {"punct", "\\p{P}\\p{S}"}, {"space", SPACE_ITEMS},
        {"blank", "\\p{Zs}\\t"}, {"cntrl", "\\p{Cc}"}, {"word", WORD_ITEMS}, {"xdigit", "0-9A-Fa-f"},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        size_t name_len = strlen(names[i].long_name);
        if (t->len - t->at >= name_len + 4 && memcmp(t->text + t->at + 2, names[i].long_name, name_len) == 0 &&
            memcmp(t->text + t->at + 2 + name_len, ":]", 2) == 0) {
            t->at += name_len + 4;
            return put(t, names[i].ours);
        }
    }
    return refuse(t, "a POSIX class that PCRE2 says otherwise");
}

static status_t class_escape(struct translation *t, bool *ret_is_class)
{
    int c = peek(t, 1);
    *ret_is_class = c == 's' || c == 'S' || c == 'w' || c == 'd' || c == 'D' || c == 'h' || c == 'p' || c == 'P';
    switch (c) {
    case 's': return replace_escape(t, SPACE_ITEMS);
    case 'S': return replace_escape(t, "\\S\\x{180e}");
    case 'w': return replace_escape(t, WORD_ITEMS);
    case 'W': return refuse(t, "\\W inside a class");
    case 'h': return replace_escape(t, "0-9A-Fa-f");
    case 'H': return refuse(t, "\\H inside a class");
    case 'b': return replace_escape(t, "\\x{08}");
    case 'v': return replace_escape(t, "\\x{0b}");
    case 'u': return code_escape(t);
    case 'p':
    case 'P': return property(t);
    default: return plain_escape(t);
    }
}

/* A bracketed class: `at` is on its bracket. Nested classes that are not negated melt into it. */
static status_t class(struct translation *t)
{
    unsigned depth = 1;
    bool first = true, after_class = false;
    TRY(copy(t, 1));
    if (peek(t, 0) == '^') { TRY(copy(t, 1)); }
    while (depth > 0) {
        int c = peek(t, 0);
        bool is_class = false;
        if (c < 0) { return refuse(t, "an unfinished ["); }
        if (c == ']' && !first) {
            depth--;
            if (depth == 0) { TRY(put(t, "]")); }
            t->at++;
        } else if (c == ']') {
            TRY(put(t, "\\]"));
            t->at++;
        } else if (c == '[' && peek(t, 1) == ':') {
            TRY(posix_class(t));
            is_class = true;
        } else if (c == '[') {
            if (peek(t, 1) == '^') { return refuse(t, "a negated class inside a class"); }
            depth++;
            t->at++;
        } else if (c == '&' && peek(t, 1) == '&') {
            return refuse(t, "an intersection of classes (&&)");
        } else if (c == '\\') {
            TRY(class_escape(t, &is_class));
        } else if (c == '-' && after_class) {
            TRY(put(t, "\\-")); /* no range starts at a class */
            t->at++;
        } else {
            TRY(copy(t, utf8_char_bytes((unsigned char)c)));
        }
        first = false;
        after_class = is_class;
    }
    return STATUS_OK;
}

/* Reads {n}, {n,}, {,m} or {n,m}; false when the brace is a plain character. */
static bool interval(const struct translation *t, size_t *ret_end, bool *ret_open_start, bool *ret_exact)
{
    size_t at = t->at + 1, low = 0, high = 0;
    bool comma = false;
    while (at < t->len && isdigit((unsigned char)t->text[at])) { at++; low++; }
    if (at < t->len && t->text[at] == ',') {
        comma = true;
        at++;
        while (at < t->len && isdigit((unsigned char)t->text[at])) { at++; high++; }
    }
    if (at >= t->len || t->text[at] != '}' || (low == 0 && high == 0)) { return false; }
    *ret_end = at + 1;
    *ret_open_start = low == 0;
    *ret_exact = !comma;
    return true;
}

/* `atom`: where in `out` the thing to repeat starts. */
static status_t repeat(struct translation *t, size_t atom)
{
    size_t end = 0;
    bool open_start = false, exact = false;
    if (!interval(t, &end, &open_start, &exact)) {
        t->at++;
        return put(t, "\\{");
    }
    bool again = end < t->len && (t->text[end] == '+' || (t->text[end] == '?' && exact));
    if (again) { /* make room for "(?:" before the atom */
        TRY(put(t, "(?:"));
        memmove(t->out->data + atom + 3, t->out->data + atom, t->out->len - 3 - atom);
        memcpy(t->out->data + atom, "(?:", 3);
    }
    TRY(put(t, open_start ? "{0" : "{"));
    t->at++;
    TRY(copy(t, end - t->at));
    if (again) {
        TRY(put(t, ")"));
        TRY(copy(t, 1));
    }
    return STATUS_OK;
}

/* The head of a group: `at` is on its parenthesis. Flags are renamed, the rest copied. */
static status_t group_head(struct translation *t)
{
    TRY(copy(t, 1));
    if (peek(t, 0) != '?') { return STATUS_OK; }
    TRY(copy(t, 1));
    int c = peek(t, 0);
    if (c == '#') {
        while (t->at < t->len && t->text[t->at] != ')') { TRY(copy(t, 1)); }
        return STATUS_OK;
    }
    if (c != 'i' && c != 'm' && c != 'x' && c != '-') { return copy(t, 1); }
    for (; (c = peek(t, 0)) >= 0 && c != ':' && c != ')'; t->at++) {
        if (c == 'x') { return refuse(t, "extended syntax, (?x)"); }
        if (c != 'i' && c != 'm' && c != '-') { return refuse(t, "an unknown flag"); }
        TRY(put(t, c == 'm' ? "s" : c == 'i' ? "i" : "-"));
    }
    if (c == ':') { return copy(t, 1); }
    return STATUS_OK;
}

status_t regex_translate(const char *pattern, size_t len, struct text_buf *out, struct diag *diag)
{
    struct translation t = {.text = pattern, .len = len, .out = out, .diag = diag};
    size_t groups[GROUP_DEPTH_MAX];
    size_t depth = 0, atom = out->len;
    while (t.at < t.len) {
        int c = peek(&t, 0);
        size_t start = out->len;
        if (c == '\\') {
            TRY(escape(&t));
        } else if (c == '[') {
            TRY(class(&t));
        } else if (c == '(') {
            if (depth == GROUP_DEPTH_MAX) { return refuse(&t, "groups nested too deep"); }
            groups[depth++] = start;
            TRY(group_head(&t));
        } else if (c == ')') {
            start = depth > 0 ? groups[--depth] : start;
            TRY(copy(&t, 1));
        } else if (c == '{') {
            TRY(repeat(&t, atom));
            continue;
        } else if (c == '*' || c == '+' || c == '?') {
            TRY(copy(&t, 1));
            continue; /* the atom stays: {n} after it repeats the whole */
        } else {
            TRY(copy(&t, utf8_char_bytes((unsigned char)c)));
        }
        atom = start;
    }
    return STATUS_OK;
}
