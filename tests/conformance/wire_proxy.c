#include "tests/conformance/wire_proxy.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "transfer/link_wire.h"

enum { PUMPS_MAX = 16 };

struct pump {
    struct wire_proxy *proxy;
    pthread_t thread;
    int from, to;
    enum { PUMP_LINK_TO_P, PUMP_PLAIN, PUMP_FLIP } kind;
};

struct wire_proxy {
    int link_fd, cable_fd;
    char link_address[64];
    uint16_t cable_port;
    struct sockaddr_in real_link, real_cable;
    uint64_t flip_at;
    pthread_t acceptors[2];
    struct pump pumps[PUMPS_MAX];
    uint32_t pump_count; /* mutex */
    pthread_mutex_t mutex;
};

static void die(const char *what)
{
    perror(what);
    exit(99);
}

static struct sockaddr_in address_of(const char *text)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    char host[64];
    unsigned port = 0;
    if (sscanf(text, "%63[^:]:%u", host, &port) != 2 || inet_pton(AF_INET, host, &address.sin_addr) != 1) { die("address"); }
    address.sin_port = htons((uint16_t)port);
    return address;
}

static int listen_any(uint16_t *ret_port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(fd, (struct sockaddr *)&address, size) != 0 || listen(fd, 8) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) != 0) {
        die("listen");
    }
    *ret_port = ntohs(address.sin_port);
    return fd;
}

static bool read_fully(int fd, void *to, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        ssize_t got = recv(fd, (char *)to + at, bytes - at, 0);
        if (got <= 0) { return false; }
        at += (size_t)got;
    }
    return true;
}

static bool write_fully(int fd, const void *from, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        ssize_t sent = send(fd, (const char *)from + at, bytes - at, MSG_NOSIGNAL);
        if (sent <= 0) { return false; }
        at += (size_t)sent;
    }
    return true;
}

static void pump_link(const struct pump *pump)
{
    uint8_t *bytes = malloc(KV_LINK_MESSAGE_BYTES_MAX + 4);
    uint8_t *scratch = aligned_alloc(64, (LINK_WIRE_SCRATCH_BYTES + 63) / 64 * 64);
    struct link_msg *msg = malloc(sizeof *msg);
    uint32_t size;
    while (bytes && scratch && msg && read_fully(pump->from, &size, 4) && size <= KV_LINK_MESSAGE_BYTES_MAX &&
           read_fully(pump->from, bytes + 4, size)) {
        if (!failed(link_wire_decode(bytes + 4, size, scratch, NULL, msg)) && msg->kind == LINK_HELLO_ACK) {
            for (uint32_t i = 0; i < msg->body.hello_ack.offer_count; i++) {
                if (strcmp(msg->body.hello_ack.offers[i].cable, "tcp") != 0) { continue; }
                uint8_t *offer = msg->body.hello_ack.offers[i].offer.bytes;
                offer[0] = (uint8_t)pump->proxy->cable_port;
                offer[1] = (uint8_t)(pump->proxy->cable_port >> 8);
            }
            size = (uint32_t)link_wire_encode(msg, bytes + 4, KV_LINK_MESSAGE_BYTES_MAX);
        }
        memcpy(bytes, &size, 4);
        if (!write_fully(pump->to, bytes, size + 4)) { break; }
    }
    free(bytes);
    free(scratch);
    free(msg);
}

static void *pump_run(void *arg)
{
    struct pump *pump = arg;
    static _Thread_local uint8_t bytes[65536];
    uint64_t at = 0;
    if (pump->kind == PUMP_LINK_TO_P) { pump_link(pump); }
    while (pump->kind != PUMP_LINK_TO_P) {
        ssize_t got = recv(pump->from, bytes, sizeof bytes, 0);
        if (got <= 0) { break; }
        uint64_t flip_at = pump->proxy->flip_at;
        if (pump->kind == PUMP_FLIP && flip_at >= at && flip_at - at < (uint64_t)got) { bytes[flip_at - at] ^= 0x10; }
        at += (uint64_t)got;
        if (!write_fully(pump->to, bytes, (size_t)got)) { break; }
    }
    shutdown(pump->to, SHUT_RDWR);
    shutdown(pump->from, SHUT_RDWR);
    return NULL;
}

static void pump_start(struct wire_proxy *proxy, int from, int to, int kind)
{
    pthread_mutex_lock(&proxy->mutex);
    if (proxy->pump_count == PUMPS_MAX) { die("too many connections"); }
    struct pump *pump = &proxy->pumps[proxy->pump_count++];
    pump->proxy = proxy;
    pump->from = from;
    pump->to = to;
    pump->kind = kind;
    if (pthread_create(&pump->thread, NULL, pump_run, pump) != 0) { die("pthread_create"); }
    pthread_mutex_unlock(&proxy->mutex);
}

static void accept_all(struct wire_proxy *proxy, int listener, const struct sockaddr_in *real, int to_p, int to_d)
{
    for (;;) {
        int p = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (p < 0) { return; }
        int d = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(d, (const struct sockaddr *)real, sizeof *real) != 0) {
            close(p);
            close(d);
            continue;
        }
        pump_start(proxy, d, p, to_p);
        pump_start(proxy, p, d, to_d);
    }
}

static void *accept_link(void *arg)
{
    struct wire_proxy *proxy = arg;
    accept_all(proxy, proxy->link_fd, &proxy->real_link, PUMP_LINK_TO_P, PUMP_PLAIN);
    return NULL;
}

static void *accept_cable(void *arg)
{
    struct wire_proxy *proxy = arg;
    accept_all(proxy, proxy->cable_fd, &proxy->real_cable, PUMP_PLAIN, PUMP_FLIP);
    return NULL;
}

struct wire_proxy *wire_proxy_create(const char *link_address, const char *tcp_address, uint64_t flip_at)
{
    struct wire_proxy *proxy = calloc(1, sizeof *proxy);
    uint16_t link_port;
    if (!proxy) { die("calloc"); }
    pthread_mutex_init(&proxy->mutex, NULL);
    proxy->real_link = address_of(link_address);
    proxy->real_cable = address_of(tcp_address);
    proxy->flip_at = flip_at;
    proxy->link_fd = listen_any(&link_port);
    proxy->cable_fd = listen_any(&proxy->cable_port);
    snprintf(proxy->link_address, sizeof proxy->link_address, "127.0.0.1:%u", link_port);
    if (pthread_create(&proxy->acceptors[0], NULL, accept_link, proxy) != 0 ||
        pthread_create(&proxy->acceptors[1], NULL, accept_cable, proxy) != 0) {
        die("pthread_create");
    }
    return proxy;
}

const char *wire_proxy_link_address(const struct wire_proxy *proxy) { return proxy->link_address; }

void wire_proxy_destroy(struct wire_proxy *proxy)
{
    shutdown(proxy->link_fd, SHUT_RDWR);
    shutdown(proxy->cable_fd, SHUT_RDWR);
    for (int i = 0; i < 2; i++) { pthread_join(proxy->acceptors[i], NULL); }
    for (uint32_t i = 0; i < proxy->pump_count; i++) {
        shutdown(proxy->pumps[i].from, SHUT_RDWR);
        shutdown(proxy->pumps[i].to, SHUT_RDWR);
    }
    for (uint32_t i = 0; i < proxy->pump_count; i++) { pthread_join(proxy->pumps[i].thread, NULL); }
    for (uint32_t i = 0; i < proxy->pump_count; i += 2) { /* each pair of pumps shares two sockets */
        close(proxy->pumps[i].from);
        close(proxy->pumps[i].to);
    }
    close(proxy->link_fd);
    close(proxy->cable_fd);
    pthread_mutex_destroy(&proxy->mutex);
    free(proxy);
}
