/* cache_salt: a client's cache_salt as the number that nodes know it by.
 * Flow:    request_parse -> [cache_salt] -> work.cache_salt -> kv_hash_root on the nodes
 * Thread:  any; pure.
 * Memory:  none. */
#ifndef BATON_ROUTER_CACHE_SALT_H
#define BATON_ROUTER_CACHE_SALT_H

#include <stddef.h>
#include <stdint.h>

#define CACHE_SALT_BYTES_MAX 256u

/* Empty: 0, the cache that all share. Anything else: not 0, and the same for the same bytes on
 * every router. It is cut from a cryptographic hash: whoever does not know a salt cannot aim for
 * its number. bytes  [len], len <= CACHE_SALT_BYTES_MAX. */
uint64_t cache_salt_number(const void *bytes, size_t len);

#endif
