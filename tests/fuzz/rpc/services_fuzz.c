/* services_fuzz: any bytes as the request of a method of health or of reflection.
 *
 * The first byte picks the method, the rest is the message. rpc is replaced by the functions
 * below, so that millions of messages need no connection: each message must end in an answer
 * that can be packed or in an end of the call that says why, and never in both twice. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "rpc/health.h"
#include "rpc/reflection.h"

#define METHODS_MAX 8u

struct rpc_server {
    rpc_accept_fn accepts[METHODS_MAX];
    void *services[METHODS_MAX];
    uint32_t count;
};

struct rpc_call {
    uint32_t answers, ends;
};

struct rpc_buffer {
    size_t len;
    uint8_t bytes[];
};

status_t rpc_server_register(struct rpc_server *server, const char *method, rpc_accept_fn accept, void *service,
                             struct diag *diag)
{
    (void)method;
    (void)diag;
    CHECK(server->count < METHODS_MAX);
    server->accepts[server->count] = accept;
    server->services[server->count++] = service;
    return STATUS_OK;
}

const char *rpc_server_service_name(const struct rpc_server *server, uint32_t index)
{
    static const char *const names[] = {"a.Service", "a.Service", "grpc.health.v1.Health"};
    (void)server;
    return index < sizeof names / sizeof names[0] ? names[index] : NULL;
}

void rpc_call_finish_status(struct rpc_call *call, status_t status, const char *message, uint32_t retry_ms)
{
    (void)retry_ms;
    CHECK(!failed(status) || message[0] != '\0');
    call->ends++;
}

void rpc_call_cancel(struct rpc_call *call) { call->ends++; }

status_t rpc_buffer_create(size_t len, struct rpc_buffer **ret_buffer, uint8_t **ret_bytes)
{
    struct rpc_buffer *buffer = malloc(sizeof *buffer + len);
    CHECK(buffer != NULL);
    buffer->len = len;
    *ret_buffer = buffer;
    *ret_bytes = buffer->bytes;
    return STATUS_OK;
}

void rpc_buffer_unref(struct rpc_buffer *buffer) { free(buffer); }

status_t rpc_call_send_buffer(struct rpc_call *call, struct rpc_buffer *buffer)
{
    call->answers++;
    rpc_buffer_unref(buffer);
    return STATUS_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct rpc_server server;
    static struct rpc_health *health;
    static struct rpc_reflection *reflection;
    if (!health) {
        struct diag diag;
        CHECK(!failed(rpc_health_create(&server, &health, &diag)));
        CHECK(!failed(rpc_health_set(health, "a.Service", true)));
        CHECK(!failed(rpc_reflection_create(&server, NULL, 0, &reflection, &diag)));
    }
    if (size == 0) { return 0; }
    uint32_t method = data[0] % server.count;
    struct rpc_call call = {0};
    struct rpc_handler handler;
    struct diag diag;
    CHECK(!failed(server.accepts[method](server.services[method], &call, &handler, &diag)));
    /* Twice: a stream may send another, and a unary client may break the rule. */
    handler.callbacks->on_message(handler.user, &call, data + 1, size - 1);
    CHECK(call.answers + call.ends >= 1 && call.answers <= 1 && call.ends <= 1);
    handler.callbacks->on_message(handler.user, &call, data + 1, size - 1);
    handler.callbacks->on_half_close(handler.user, &call);
    if (handler.callbacks->on_done) {
        struct rpc_outcome outcome = {.message = ""};
        handler.callbacks->on_done(handler.user, &call, &outcome);
    }
    return 0;
}
