/* connect_flags: how every command finds its router. */
#ifndef BATON_CLIENT_CONNECT_FLAGS_H
#define BATON_CLIENT_CONNECT_FLAGS_H

#include <stddef.h>

#include "client/api_call.h"
#include "client/commands.h"

struct connect_flags {
    const char *router;
    const char *tls_cert, *tls_key, *tls_ca;
};

#define CONNECT_FLAGS(base)                                                                                           \
    {"router", FLAG_STRING, (base) + offsetof(struct connect_flags, router), ROUTER_DEFAULT, "H:P", "The router.", 0, 0}, \
    {"tls-ca", FLAG_STRING, (base) + offsetof(struct connect_flags, tls_ca), NULL, "FILE", "Speak TLS; PEM of the CA.", 0, 0}, \
    {"tls-cert", FLAG_STRING, (base) + offsetof(struct connect_flags, tls_cert), NULL, "FILE", "Own certificate, for mutual TLS.", 0, 0}, \
    {"tls-key", FLAG_STRING, (base) + offsetof(struct connect_flags, tls_key), NULL, "FILE", "Own key, for mutual TLS.", 0, 0}

static inline status_t connect_open(const struct connect_flags *flags, struct api **ret_api, struct diag *diag)
{
    struct api_tls tls = {.cert_file = flags->tls_cert, .key_file = flags->tls_key, .ca_file = flags->tls_ca};
    return api_open(flags->router, &tls, ret_api, diag);
}

#endif
