/* net_address: "host:port" texts: where to listen, and what to tell others.
 * Flow:    flags -> [net_address] -> rpc server, tickets
 * Thread:  start-up only. */
#ifndef BATON_BASE_NET_ADDRESS_H
#define BATON_BASE_NET_ADDRESS_H

#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

#define NET_HOST_CHARS_MAX 255u

/* Splits "host:port", "[v6]:port"; the brackets are taken off.
 * Errors  INVALID_ARGUMENT (node): no port, a port over 65535, no host; diag names the text. */
NODISCARD status_t net_address_split(const char *text, char ret_host[NET_HOST_CHARS_MAX + 1], uint16_t *ret_port,
                                     struct diag *diag);

/* The same as a check of a flag's value: diag names the flag as well.
 * text  may be NULL: a flag that is not set */
NODISCARD status_t net_address_check(const char *flag, const char *text, struct diag *diag);

/* Copies `text`; a port of 0 is replaced by one that is free now.
 * Errors  INVALID_ARGUMENT as above, and where ret_text is too small; UNAVAILABLE (node): the
 *         port is 0 and the host is not an address of this machine. */
NODISCARD status_t net_address_listen(const char *text, char *ret_text, size_t capacity, struct diag *diag);

/* What others can dial: `listen` itself, or for a wildcard host this machine's first address
 * that is not loopback: IPv4 first, then IPv6 where the wildcard is [::] (127.0.0.1 where there
 * is none).
 * Errors  as net_address_listen. */
NODISCARD status_t net_address_advertise(const char *listen, char *ret_text, size_t capacity, struct diag *diag);

#endif
