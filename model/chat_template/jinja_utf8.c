#include "model/chat_template/jinja_utf8.h"

#include <utf8proc.h>

uint32_t utf8_next(const char *text, size_t len, uint32_t *ret_code)
{
    utf8proc_int32_t code;
    utf8proc_ssize_t used = utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)(len < 4 ? len : 4), &code);
    if (used <= 0) {
        *ret_code = 0xfffd;
        return 1;
    }
    *ret_code = (uint32_t)code;
    return (uint32_t)used;
}

uint32_t utf8_put(uint32_t code, char ret_bytes[4])
{
    return (uint32_t)utf8proc_encode_char((utf8proc_int32_t)code, (utf8proc_uint8_t *)ret_bytes);
}

int64_t utf8_count(const char *text, size_t len)
{
    int64_t count = 0;
    for (size_t i = 0; i < len; i++) { count += ((unsigned char)text[i] & 0xc0) != 0x80; }
    return count;
}

size_t utf8_offset(const char *text, size_t len, int64_t index)
{
    size_t at = 0;
    while (index > 0 && at < len) {
        at++;
        while (at < len && ((unsigned char)text[at] & 0xc0) == 0x80) { at++; }
        index--;
    }
    return at;
}

bool utf8_is_valid(const char *text, size_t len)
{
    while (len) {
        if ((unsigned char)*text < 0x80) {
            text++;
            len--;
            continue;
        }
        utf8proc_int32_t code;
        utf8proc_ssize_t used = utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)(len < 4 ? len : 4), &code);
        if (used <= 0) { return false; }
        text += used;
        len -= (size_t)used;
    }
    return true;
}

bool text_is_space(uint32_t code)
{
    return (code >= 9 && code <= 13) || (code >= 0x1c && code <= 0x20) || code == 0x85 || code == 0xa0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f ||
           code == 0x3000;
}

bool text_is_printable(uint32_t code)
{
    if (code < 0x80) { return code >= 0x20 && code != 0x7f; }
    switch (utf8proc_category((utf8proc_int32_t)code)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS: return false;
    default: return true;
    }
}
