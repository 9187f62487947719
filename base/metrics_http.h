/* metrics_http: a small HTTP server: /metrics for Prometheus, /healthz and /readyz for probes.
 * Flow:    scrapers and probes -> [metrics_http] -> metrics, and the process's own state
 * Thread:  one of its own; the callbacks run on it.
 * Memory:  a rendering per scrape; connections are bounded. */
#ifndef BATON_BASE_METRICS_HTTP_H
#define BATON_BASE_METRICS_HTTP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/metrics.h"

struct metrics_http;

struct metrics_http_config {
    const char *address; /* "0.0.0.0", "127.0.0.1", "::", "::1"; NULL: all IPv4 */
    uint16_t port;       /* 0 picks */
    uint32_t connections_max; /* 0: 16 */
    /* 200 or 503 at /healthz (is the process alive?) and /readyz (can it take requests?); NULL
     * says yes. Called on the server's thread. */
    bool (*is_alive)(void *user);
    bool (*is_ready)(void *user);
    /* Optional: called before each rendering, to set gauges that are read rather than kept. */
    void (*refresh)(void *user);
    void *user;
};

/* Starts to serve. GET and HEAD only (else 405); other paths are 404.
 * config    Borrows; metrics and user: Holds until destroy
 * ret_http  Returns owned
 * Errors    INVALID_ARGUMENT (node): the address. UNAVAILABLE (node): it cannot be bound. */
NODISCARD status_t metrics_http_create(struct metrics *metrics, const struct metrics_http_config *config,
                                       struct metrics_http **ret_http, struct diag *diag);
uint16_t metrics_http_port(const struct metrics_http *http);
void metrics_http_destroy(struct metrics_http *http); /* NULL is fine; waits for its thread */

#endif
