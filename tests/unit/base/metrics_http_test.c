/* Scrapes and probes over loopback. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/metrics_http.h"

struct process {
    struct metrics *metrics;
    struct metrics_http *http;
    struct gauge *gauge;
    atomic_bool is_ready;
};

static bool is_ready(void *user)
{
    struct process *process = user;
    return atomic_load(&process->is_ready);
}

static void refresh(void *user)
{
    struct process *process = user;
    gauge_add(process->gauge, 1);
}

static int start(void **state)
{
    static struct process process;
    memset(&process, 0, sizeof process);
    struct metrics_http_config config = {
        .address = "127.0.0.1", .connections_max = 4, .is_ready = is_ready, .refresh = refresh, .user = &process};
    struct diag diag = {.text = ""};
    assert_false(failed(metrics_create(&process.metrics)));
    assert_false(failed(metrics_add_gauge(process.metrics, "scrapes", "so far", NULL, &process.gauge, NULL)));
    if (failed(metrics_http_create(process.metrics, &config, &process.http, &diag))) {
        fail_msg("%s", diag.text);
    }
    *state = &process;
    return 0;
}

static int stop(void **state)
{
    struct process *process = *state;
    metrics_http_destroy(process->http);
    metrics_destroy(process->metrics);
    return 0;
}

static int dial(uint16_t port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    struct timeval patience = {.tv_sec = 20};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return fd;
}

/* Sends `request` and reads until the server closes. Returns the HTTP status, 0 without one. */
static int ask(struct process *process, const char *request, char *ret_text, size_t cap)
{
    int fd = dial(metrics_http_port(process->http));
    assert_int_equal(send(fd, request, strlen(request), MSG_NOSIGNAL), (ssize_t)strlen(request));
    size_t len = 0;
    ssize_t got;
    while (len + 1 < cap && (got = read(fd, ret_text + len, cap - 1 - len)) > 0) {
        len += (size_t)got;
    }
    ret_text[len] = '\0';
    close(fd);
    int status = 0;
    (void)!sscanf(ret_text, "HTTP/1.1 %d", &status);
    return status;
}

#define GET(path) "GET " path " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

/* Wrong methods, paths and bytes get their codes, and the server goes on. */
static void bad_requests_get_their_codes(void **state)
{
    char text[4096];
    assert_int_equal(ask(*state, GET("/"), text, sizeof text), 404);
    assert_int_equal(ask(*state, GET("/metrics/x"), text, sizeof text), 404);
    assert_int_equal(ask(*state, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
                         text, sizeof text), 405);
    assert_non_null(strstr(text, "Allow: GET, HEAD"));
    assert_int_equal(ask(*state, "DELETE /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", text, sizeof text), 405);
    assert_int_not_equal(ask(*state, "\x16\x03\x01 garbage\r\n\r\n", text, sizeof text), 200);
    assert_int_equal(ask(*state, GET("/healthz"), text, sizeof text), 200);
}

/* A scrape gives the text format with its content type, fresh each time; HEAD has no body. */
static void scrape_gives_the_metrics(void **state)
{
    char text[4096];
    assert_int_equal(ask(*state, GET("/metrics"), text, sizeof text), 200);
    assert_non_null(strstr(text, "Content-Type: text/plain; version=0.0.4"));
    assert_non_null(strstr(text, "\r\n\r\n# HELP scrapes so far\n# TYPE scrapes gauge\nscrapes 1\n"));
    assert_int_equal(ask(*state, "HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", text, sizeof text), 200);
    assert_null(strstr(text, "# HELP"));
    assert_int_equal(ask(*state, GET("/metrics"), text, sizeof text), 200);
    assert_non_null(strstr(text, "scrapes 3\n"));
}

/* Probes follow the process's own answer; one that was not given says yes. */
static void probes_follow_the_process(void **state)
{
    struct process *process = *state;
    char text[4096];
    assert_int_equal(ask(process, GET("/healthz"), text, sizeof text), 200);
    assert_int_equal(ask(process, GET("/readyz"), text, sizeof text), 503);
    atomic_store(&process->is_ready, true);
    assert_int_equal(ask(process, GET("/readyz"), text, sizeof text), 200);
}

/* A connection over the bound is not served while the others hold their places; when one goes,
 * it is. */
static void connections_are_bounded(void **state)
{
    struct process *process = *state;
    int idle[4];
    for (int i = 0; i < 4; i++) {
        idle[i] = dial(metrics_http_port(process->http));
        /* A byte each, and an answer to none, so that each holds its place. */
        assert_int_equal(send(idle[i], "G", 1, MSG_NOSIGNAL), 1);
    }
    int fifth = dial(metrics_http_port(process->http));
    assert_true(send(fifth, GET("/healthz"), sizeof GET("/healthz") - 1, MSG_NOSIGNAL) > 0);
    struct pollfd answer = {.fd = fifth, .events = POLLIN};
    assert_int_equal(poll(&answer, 1, 200), 0);
    close(idle[0]);
    char text[16] = "";
    assert_true(read(fifth, text, sizeof text - 1) > 0);
    assert_memory_equal(text, "HTTP/1.1 200", 12);
    close(fifth);
    for (int i = 1; i < 4; i++) {
        close(idle[i]);
    }
}

/* An address that is none, or that is taken, is an error that names it. */
static void bad_addresses_are_refused(void **state)
{
    struct process *process = *state;
    struct metrics_http *second = NULL;
    struct diag diag;
    struct metrics_http_config config = {.address = "localhost"};
    assert_int_equal(metrics_http_create(process->metrics, &config, &second, &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "localhost"));
    config.address = "127.0.0.1";
    config.port = metrics_http_port(process->http);
    assert_int_equal(metrics_http_create(process->metrics, &config, &second, &diag).code, ST_UNAVAILABLE);
    assert_non_null(strstr(diag.text, "127.0.0.1"));
    assert_null(second);
    metrics_http_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(bad_requests_get_their_codes, start, stop),
        cmocka_unit_test_setup_teardown(scrape_gives_the_metrics, start, stop),
        cmocka_unit_test_setup_teardown(probes_follow_the_process, start, stop),
        cmocka_unit_test_setup_teardown(connections_are_bounded, start, stop),
        cmocka_unit_test_setup_teardown(bad_addresses_are_refused, start, stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
