#include "model/tokenizer/utf8.h"

#include <stdbool.h>
#include <string.h>

size_t utf8_valid_prefix(const char *text, size_t len)
{
    size_t at = 0;
    while (at < len) {
        uint64_t eight;
        while (len - at >= sizeof eight) { /* most text is ASCII: eight bytes at a time */
            memcpy(&eight, text + at, sizeof eight);
            if (eight & UINT64_C(0x8080808080808080)) { break; }
            at += sizeof eight;
        }
        if (at == len) { break; }
        size_t bytes;
        if (utf8_read(text + at, len - at, &bytes) != UTF8_WHOLE) { return at; }
        at += bytes;
    }
    return len;
}

static bool stands_for_itself(uint32_t byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
}

uint32_t byte_alphabet_code(uint8_t byte)
{
    if (stands_for_itself(byte)) { return byte; }
    if (byte <= 0x20) { return 0x100u + byte; }
    if (byte <= 0xa0) { return 0x100u + 33 + (byte - 0x7fu); } /* 33: bytes 0x00 .. 0x20 came before */
    return 0x143; /* 0xad, the last */
}

int byte_alphabet_byte(uint32_t code)
{
    if (code < 0x100) { return stands_for_itself(code) ? (int)code : -1; }
    if (code <= 0x120) { return (int)(code - 0x100); }
    if (code <= 0x142) { return (int)(code - 0x121 + 0x7f); }
    return code == 0x143 ? 0xad : -1;
}
