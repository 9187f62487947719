#include "router/cache_salt.h"

#include "base/check.h"
#include "kv/kv_hash.h"

uint64_t cache_salt_number(const void *bytes, size_t len)
{
    if (len == 0) { return 0; }
    CHECK(len <= CACHE_SALT_BYTES_MAX);
    /* One byte a word: then no two texts give the same words, whatever their lengths. */
    uint32_t words[CACHE_SALT_BYTES_MAX];
    for (size_t i = 0; i < len; i++) { words[i] = ((const uint8_t *)bytes)[i]; }
    struct kv_hash hash = kv_hash_next(kv_hash_root(0), words, (uint32_t)len);
    uint64_t number = 0;
    for (uint32_t i = 0; i < 8; i++) { number |= (uint64_t)hash.bytes[i] << (8 * i); }
    return number != 0 ? number : 1;
}
