/* OpenSSL's EVP calls allocate a context and look their algorithm up each time; a block is named
 * in the token loop, which allocates nothing. The older calls below take their state from the
 * stack. They are deprecated for being tied to one implementation, which is what we want. */
#define OPENSSL_SUPPRESS_DEPRECATED

#include "kv/kv_hash.h"

#include <openssl/sha.h>

/* Other chains that somebody may build from the same hash must not meet ours. */
static const char root_text[] = "baton kv chain 1";

static struct kv_hash hash_finish(SHA256_CTX *sha)
{
    uint8_t digest[SHA256_DIGEST_LENGTH];
    SHA256_Final(digest, sha);
    struct kv_hash hash;
    memcpy(hash.bytes, digest, sizeof hash.bytes);
    return hash;
}

struct kv_hash kv_hash_root(uint64_t salt)
{
    uint8_t salt_bytes[8];
    for (uint32_t i = 0; i < 8; i++) { salt_bytes[i] = (uint8_t)(salt >> (8 * i)); }
    SHA256_CTX sha;
    SHA256_Init(&sha);
    SHA256_Update(&sha, root_text, sizeof root_text - 1);
    SHA256_Update(&sha, salt_bytes, sizeof salt_bytes);
    return hash_finish(&sha);
}

struct kv_hash kv_hash_next(struct kv_hash parent, const uint32_t *tokens, uint32_t block_tokens)
{
    enum { CHUNK = 32 };
    uint8_t bytes[4 * CHUNK]; /* little endian everywhere: names outlive the process, in a tier's file */
    SHA256_CTX sha;
    SHA256_Init(&sha);
    SHA256_Update(&sha, parent.bytes, sizeof parent.bytes);
    while (block_tokens > 0) {
        uint32_t count = block_tokens < CHUNK ? block_tokens : CHUNK;
        for (uint32_t i = 0; i < count; i++) {
            bytes[4 * i] = (uint8_t)tokens[i];
            bytes[4 * i + 1] = (uint8_t)(tokens[i] >> 8);
            bytes[4 * i + 2] = (uint8_t)(tokens[i] >> 16);
            bytes[4 * i + 3] = (uint8_t)(tokens[i] >> 24);
        }
        SHA256_Update(&sha, bytes, 4 * (size_t)count);
        tokens += count;
        block_tokens -= count;
    }
    return hash_finish(&sha);
}
