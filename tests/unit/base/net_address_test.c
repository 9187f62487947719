/* Claims on host:port texts: what splits, what is refused, and what others are told to dial. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/net_address.h"

static struct diag diag;
static char host[NET_HOST_CHARS_MAX + 1];
static uint16_t port;

/* What is not host:port is refused with the text and the form it should have. */
static void what_is_no_address_is_refused(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "", "host", ":80", "host:", "host:x", "host:-1", "host:+1", "host: 1", "host:65536", "host:80 ", "host:0x50",
        "host:99999999999999999999", "::1:80", "::1", "a:b:80", "[]:80", "[::1]", "[::1]80", "[::1:80", "::1]:80",
        "[[::1]]:80", "[host]:80", "[host:80",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        memset(&diag, 0, sizeof diag);
        host[0] = '!';
        status_t st = net_address_split(wrong[i], host, &port, &diag);
        if (st.code != ST_INVALID_ARGUMENT) { fail_msg("\"%s\" was taken", wrong[i]); }
        assert_int_equal(host[0], '!'); /* outputs only on success */
        char quoted[64];
        snprintf(quoted, sizeof quoted, "\"%s\"", wrong[i]);
        assert_non_null(strstr(diag.text, quoted));
        assert_non_null(strstr(diag.text, "host:port"));
    }
}

/* Names, IPv4 and IPv6 in brackets split; a host of 255 characters fits, one of 256 does not. */
static void addresses_split(void **state)
{
    (void)state;
    static const struct { const char *text, *host; uint16_t port; } good[] = {
        {"localhost:0", "localhost", 0},       {"0.0.0.0:65535", "0.0.0.0", 65535},
        {"[::1]:7000", "::1", 7000},           {"[fe80::1%eth0]:1", "fe80::1%eth0", 1},
        {"decode-0.decode.ns.svc:00080", "decode-0.decode.ns.svc", 80},
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        assert_false(failed(net_address_split(good[i].text, host, &port, &diag)));
        assert_string_equal(host, good[i].host);
        assert_int_equal(port, good[i].port);
    }
    char text[300];
    memset(text, 'h', sizeof text);
    strcpy(text + 255, ":1");
    assert_false(failed(net_address_split(text, host, &port, &diag)));
    assert_int_equal(strlen(host), 255);
    memset(text, 'h', 256);
    strcpy(text + 256, ":1");
    assert_true(failed(net_address_split(text, host, &port, &diag)));
}

/* Port 0 becomes one that can be bound; any other stays, and needs no network to be copied. */
static void port_0_becomes_a_free_one(void **state)
{
    (void)state;
    char text[300];
    assert_false(failed(net_address_listen("127.0.0.1:0", text, sizeof text, &diag)));
    assert_false(failed(net_address_split(text, host, &port, &diag)));
    assert_string_equal(host, "127.0.0.1");
    assert_true(port != 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    close(fd);
    assert_false(failed(net_address_listen("[::1]:7001", text, sizeof text, &diag)));
    assert_string_equal(text, "[::1]:7001");
    /* 192.0.2.0/24 is for documents: nobody has it. */
    status_t st = net_address_listen("192.0.2.1:0", text, sizeof text, &diag);
    assert_int_equal(st.code, ST_UNAVAILABLE);
    assert_non_null(strstr(diag.text, "192.0.2.1"));
}

/* A text that does not fit is refused, not cut: a cut port is another port. */
static void nothing_is_cut(void **state)
{
    (void)state;
    char text[12];
    status_t st = net_address_listen("10.0.0.1:7001", text, sizeof text, &diag);
    assert_int_equal(st.code, ST_INVALID_ARGUMENT);
    assert_true(failed(net_address_advertise("10.0.0.1:7001", text, sizeof text, &diag)));
    assert_false(failed(net_address_listen("10.0.0.1:70", text, sizeof text, &diag)));
}

/* A wildcard is nobody's address: others are told a real one, with the same port. */
static void a_wildcard_is_not_advertised(void **state)
{
    (void)state;
    static const char *const wild[] = {"0.0.0.0:7001", "[::]:7001"};
    char text[300];
    for (size_t i = 0; i < 2; i++) {
        assert_false(failed(net_address_advertise(wild[i], text, sizeof text, &diag)));
        assert_string_not_equal(text, wild[i]);
        assert_false(failed(net_address_split(text, host, &port, &diag)));
        assert_int_equal(port, 7001);
        unsigned char bytes[16];
        assert_true(inet_pton(AF_INET, host, bytes) == 1 || inet_pton(AF_INET6, host, bytes) == 1);
    }
    assert_false(failed(net_address_advertise("node-3:7001", text, sizeof text, &diag)));
    assert_string_equal(text, "node-3:7001");
    assert_false(failed(net_address_advertise("[2001:db8::5]:7001", text, sizeof text, &diag)));
    assert_string_equal(text, "[2001:db8::5]:7001");
}

/* A flag's value that is no address is refused with the flag's name; one that is not set is fine. */
static void a_flag_is_named(void **state)
{
    (void)state;
    assert_int_equal(net_address_check("metrics-listen", "nonsense", &diag).code, ST_INVALID_ARGUMENT);
    assert_non_null(strstr(diag.text, "--metrics-listen"));
    assert_non_null(strstr(diag.text, "nonsense"));
    assert_false(failed(net_address_check("metrics-listen", NULL, &diag)));
    assert_false(failed(net_address_check("metrics-listen", "[::1]:80", &diag)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_no_address_is_refused), cmocka_unit_test(addresses_split),
        cmocka_unit_test(port_0_becomes_a_free_one),     cmocka_unit_test(nothing_is_cut),
        cmocka_unit_test(a_wildcard_is_not_advertised), cmocka_unit_test(a_flag_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
