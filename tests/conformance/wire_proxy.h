/* wire_proxy: stands between P and D on link and tcp cable, and flips one bit on the way.
 * The link's hello_ack is rewritten so that P connects its cable to the proxy too.
 * Thread:  its own; one for each direction of each connection. */
#ifndef BATON_TESTS_CONFORMANCE_WIRE_PROXY_H
#define BATON_TESTS_CONFORMANCE_WIRE_PROXY_H

#include <stdint.h>

struct wire_proxy;

/* link_address, tcp_address: D's. flip_at: which byte of P's cable bytes is changed;
 * UINT64_MAX: none. */
struct wire_proxy *wire_proxy_create(const char *link_address, const char *tcp_address, uint64_t flip_at);
const char *wire_proxy_link_address(const struct wire_proxy *proxy);
void wire_proxy_destroy(struct wire_proxy *proxy);

#endif
