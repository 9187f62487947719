/* node_address: the lists of --prefill and --decode, entry by entry.
 * Flow:    flags -> [node_address] -> attach_client (numeric), resolver (names)
 * Thread:  start-up only.
 * Memory:  the caller's list. */
#ifndef BATON_ROUTER_NODE_ADDRESS_H
#define BATON_ROUTER_NODE_ADDRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/flags.h"
#include "base/net_address.h"
#include "base/status.h"
#include "control/ctl_msg.h"

#define NODE_ADDRESSES_MAX 256u
#define NODE_TARGET_CHARS_MAX (NET_HOST_CHARS_MAX + 9u) /* "[host]:65535" and NUL */

struct node_address {
    enum node_role role;
    char host[NET_HOST_CHARS_MAX + 1]; /* without brackets */
    uint16_t port;
    bool is_numeric; /* one fixed node; else a name, and all its addresses are nodes */
};

struct node_address_list {
    uint32_t count;
    struct node_address entries[NODE_ADDRESSES_MAX];
};

/* Adds the entries of a repeatable, comma-separated flag.
 * flag   its name, for errors
 * Errors INVALID_ARGUMENT (node), diag names the flag and the entry: an empty entry, no port,
 *        port 0, an address given twice, more than NODE_ADDRESSES_MAX. */
NODISCARD status_t node_address_add(struct node_address_list *list, enum node_role role, const char *flag,
                                    const struct flag_list *values, struct diag *diag);

/* "10.0.0.1:7000", "[::1]:7000". */
void node_address_target(const char *host, uint16_t port, char ret_target[NODE_TARGET_CHARS_MAX]);

#endif
