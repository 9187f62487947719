#include "base/metrics_http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define CONNECTIONS_DEFAULT 16u
#define IDLE_SECONDS 10u
#define CONNECTION_BYTES ((size_t)8 << 10) /* request line and headers; a scraper's are a few hundred */

struct metrics_http {
    struct MHD_Daemon *daemon;
    struct metrics *metrics;
    struct metrics_http_config config;
};

static enum MHD_Result answer(struct MHD_Connection *connection, unsigned status, const char *text)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(strlen(text), (void *)(uintptr_t)text, MHD_RESPMEM_PERSISTENT);
    if (response == NULL) {
        return MHD_NO; /* closes the connection */
    }
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, "text/plain; charset=utf-8");
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED) {
        (void)MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    }
    enum MHD_Result result = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result answer_metrics(struct metrics_http *http, struct MHD_Connection *connection)
{
    if (http->config.refresh != NULL) {
        http->config.refresh(http->config.user);
    }
    char *text = NULL;
    size_t len = 0;
    if (failed(metrics_render(http->metrics, &text, &len))) {
        return answer(connection, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory\n");
    }
    struct MHD_Response *response = MHD_create_response_from_buffer(len, text, MHD_RESPMEM_MUST_FREE);
    if (response == NULL) {
        free(text);
        return MHD_NO;
    }
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, METRICS_CONTENT_TYPE);
    enum MHD_Result result = MHD_queue_response(connection, MHD_HTTP_OK, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result answer_probe(struct metrics_http *http, struct MHD_Connection *connection,
                                    bool (*is_well)(void *user))
{
    bool ok = is_well == NULL || is_well(http->config.user);
    return answer(connection, ok ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE, ok ? "ok\n" : "no\n");
}

static enum MHD_Result handle(void *user, struct MHD_Connection *connection, const char *url, const char *method,
                              const char *version, const char *body, size_t *body_len, void **state)
{
    (void)version;
    (void)body;
    struct metrics_http *http = user;
    static char seen;
    if (*state == NULL) { /* the headers only; answering here would close the connection */
        *state = &seen;
        return MHD_YES;
    }
    if (*body_len > 0) { /* thrown away */
        *body_len = 0;
        return MHD_YES;
    }
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0) {
        return answer(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n");
    }
    if (strcmp(url, "/metrics") == 0) {
        return answer_metrics(http, connection);
    }
    if (strcmp(url, "/healthz") == 0) {
        return answer_probe(http, connection, http->config.is_alive);
    }
    if (strcmp(url, "/readyz") == 0) {
        return answer_probe(http, connection, http->config.is_ready);
    }
    return answer(connection, MHD_HTTP_NOT_FOUND, "try /metrics, /healthz or /readyz\n");
}

static status_t parse_address(const char *address, uint16_t port, struct sockaddr_storage *ret_address, struct diag *diag)
{
    memset(ret_address, 0, sizeof *ret_address);
    struct sockaddr_in *four = (struct sockaddr_in *)ret_address;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)ret_address;
    if (inet_pton(AF_INET, address != NULL ? address : "0.0.0.0", &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons(port);
        return STATUS_OK;
    }
    if (inet_pton(AF_INET6, address, &six->sin6_addr) == 1) {
        six->sin6_family = AF_INET6;
        six->sin6_port = htons(port);
        return STATUS_OK;
    }
    diag_set(diag, "the metrics address \"%s\" is not an IPv4 or IPv6 address", address);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

/* Where MHD's own complaints about bad requests go: the answer tells the client, that is enough. */
static void ignore_log(void *user, const char *format, va_list args)
{
    (void)user;
    (void)format;
    (void)args;
}

status_t metrics_http_create(struct metrics *metrics, const struct metrics_http_config *config,
                             struct metrics_http **ret_http, struct diag *diag)
{
    struct sockaddr_storage address;
    TRY(parse_address(config->address, config->port, &address, diag));
    struct metrics_http *http = calloc(1, sizeof *http);
    if (http == NULL) {
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    http->metrics = metrics;
    http->config = *config;
    http->config.address = NULL;
    unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_AUTO | MHD_USE_ERROR_LOG;
    if (address.ss_family == AF_INET6) {
        flags |= MHD_USE_IPv6;
    }
    errno = 0;
    http->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, handle, http, MHD_OPTION_EXTERNAL_LOGGER, ignore_log, NULL, MHD_OPTION_SOCK_ADDR,
        (struct sockaddr *)&address, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)(config->connections_max != 0 ? config->connections_max : CONNECTIONS_DEFAULT),
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_SECONDS, MHD_OPTION_CONNECTION_MEMORY_LIMIT, CONNECTION_BYTES,
        MHD_OPTION_END);
    if (http->daemon == NULL) {
        int err = errno;
        diag_set(diag, "the metrics server cannot listen on %s port %u: %s",
                 config->address != NULL ? config->address : "0.0.0.0", config->port,
                 err != 0 ? strerror(err) : "the address is in use or not of this host");
        free(http);
        return STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_NODE, err);
    }
    *ret_http = http;
    return STATUS_OK;
}

uint16_t metrics_http_port(const struct metrics_http *http)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(http->daemon, MHD_DAEMON_INFO_BIND_PORT);
    return info != NULL ? info->port : 0;
}

void metrics_http_destroy(struct metrics_http *http)
{
    if (http == NULL) {
        return;
    }
    MHD_stop_daemon(http->daemon);
    free(http);
}
