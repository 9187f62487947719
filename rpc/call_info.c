/* call_info: what is known of a call without moving it: the peer, its certificate, method, metadata.
 * Flow:    services -> [call_info] -> the C core's call, or what was kept of it
 * Thread:  anywhere.
 * Memory:  the call's own. */
#include "rpc/rpc_internal.h"

#include <stdio.h>
#include <string.h>

void rpc_call_peer(struct rpc_call *call, char *ret_peer, size_t cap)
{
    pthread_mutex_lock(&call->lock);
    char *fresh = call->grpc != NULL ? grpc_call_get_peer(call->grpc) : NULL;
    const char *peer = fresh != NULL ? fresh : call->peer;
    snprintf(ret_peer, cap, "%s", peer != NULL ? peer : "");
    pthread_mutex_unlock(&call->lock);
    gpr_free(fresh);
}

bool rpc_call_peer_identity(struct rpc_call *call, char *ret_identity, size_t cap)
{
    static const char *const names[] = {GRPC_X509_SAN_PROPERTY_NAME, GRPC_X509_CN_PROPERTY_NAME};
    ret_identity[0] = '\0';
    bool found = false;
    pthread_mutex_lock(&call->lock);
    grpc_auth_context *context = call->grpc != NULL ? grpc_call_auth_context(call->grpc) : NULL;
    for (size_t i = 0; context != NULL && !found && i < sizeof names / sizeof names[0]; i++) {
        grpc_auth_property_iterator it = grpc_auth_context_find_properties_by_name(context, names[i]);
        const grpc_auth_property *property = grpc_auth_property_iterator_next(&it);
        if (property != NULL && property->value_length > 0) {
            snprintf(ret_identity, cap, "%.*s", (int)property->value_length, property->value);
            found = true;
        }
    }
    if (context != NULL) {
        grpc_auth_context_release(context);
    }
    pthread_mutex_unlock(&call->lock);
    return found;
}

const char *rpc_call_method(const struct rpc_call *call)
{
    return call->method;
}

uint64_t rpc_call_deadline_ns(const struct rpc_call *call)
{
    return call->deadline_ns;
}

const char *rpc_call_metadata(const struct rpc_call *call, const char *key, size_t *ret_len)
{
    for (size_t i = 0; i < call->head.count; i++) {
        if (strcmp(call->head.pairs[i].key, key) == 0) {
            *ret_len = call->head.pairs[i].value_len;
            return call->head.pairs[i].value;
        }
    }
    *ret_len = 0;
    return NULL;
}
