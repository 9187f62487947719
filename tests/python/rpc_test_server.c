/* A server for tests with other people's clients: /test.T/Echo (any call kind; each message comes
 * back), /test.T/Fail (PERMISSION_DENIED with trailing metadata), health and reflection. Prints
 * its port, and leaves when its standard input closes. */
#include <stdio.h>
#include <unistd.h>

#include "rpc/health.h"
#include "rpc/reflection.h"
#include "rpc/rpc.h"

static void echo_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    (void)user;
    (void)!rpc_call_send(call, bytes, len).code;
}

static void echo_half_close(void *user, struct rpc_call *call)
{
    (void)user;
    rpc_call_finish_status(call, STATUS_OK, "", 0);
}

static const struct rpc_callbacks echo = {.on_message = echo_message, .on_half_close = echo_half_close};

static status_t accept_echo(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    (void)service;
    (void)call;
    (void)diag;
    ret_handler->callbacks = &echo;
    return STATUS_OK;
}

static status_t accept_fail(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    (void)service;
    (void)diag;
    (void)ret_handler;
    size_t len = 0;
    const char *who = rpc_call_metadata(call, "authorization", &len);
    const struct rpc_metadata trailing = {.key = "x-who", .value = who != NULL ? who : "", .value_len = len};
    return rpc_call_finish(call, ST_PERMISSION_DENIED, "not you, h\xc3\xa9", &trailing, 1);
}

int main(void)
{
    static const char *const listen[] = {"127.0.0.1:0"};
    struct rpc_server_config config = {.listen = listen, .listen_count = 1};
    struct rpc_runtime *runtime = NULL;
    struct rpc_server *server = NULL;
    struct rpc_health *health = NULL;
    struct rpc_reflection *reflection = NULL;
    struct diag diag = {.text = "out of memory"};
    status_t st = rpc_runtime_create(2, &runtime);
    if (failed(st) || failed(rpc_server_create(runtime, &config, &server, &diag)) ||
        failed(rpc_server_register(server, "/test.T/Echo", accept_echo, NULL, &diag)) ||
        failed(rpc_server_register(server, "/test.T/Fail", accept_fail, NULL, &diag)) ||
        failed(rpc_health_create(server, &health, &diag)) ||
        failed(rpc_reflection_create(server, NULL, 0, &reflection, &diag)) ||
        failed(rpc_server_start(server, &diag)) || failed(rpc_health_set(health, "test.T", true))) {
        fprintf(stderr, "%s\n", diag.text);
        return 1;
    }
    printf("%u\n", rpc_server_port(server, 0));
    fflush(stdout);
    char line[16];
    while (fgets(line, sizeof line, stdin) != NULL) { /* each line turns test.T over */
        static bool is_serving = true;
        is_serving = !is_serving;
        (void)rpc_health_set(health, "test.T", is_serving).code;
    }
    rpc_health_drain(health);
    rpc_server_shutdown(server, 1000000000);
    rpc_server_destroy(server);
    rpc_health_destroy(health);
    rpc_reflection_destroy(reflection);
    rpc_runtime_destroy(runtime);
    return 0;
}
