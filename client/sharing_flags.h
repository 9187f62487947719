/* sharing_flags: how a request shares the nodes with others: what goes first, whose cache it sees. */
#ifndef BATON_CLIENT_SHARING_FLAGS_H
#define BATON_CLIENT_SHARING_FLAGS_H

#include <stddef.h>
#include <stdint.h>

#include "base/flags.h"

struct sharing_flags {
    int32_t priority;
    const char *cache_salt;
};

#define SHARING_FLAGS(base)                                                                                          \
    {"priority", FLAG_I32, (base) + offsetof(struct sharing_flags, priority), "0", "N",                              \
     "Higher goes first where requests wait.", 0, 0},                                                                \
    {"cache-salt", FLAG_STRING, (base) + offsetof(struct sharing_flags, cache_salt), NULL, "TEXT",                   \
     "Share cached prompts only with requests of the same salt.", 0, 0}

#endif
