#include "base/net_address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static status_t bad_address(struct diag *diag, const char *text, const char *why)
{
    diag_set(diag, "address \"%s\": %s; write host:port or [v6]:port", text, why);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

status_t net_address_split(const char *text, char ret_host[NET_HOST_CHARS_MAX + 1], uint16_t *ret_port,
                           struct diag *diag)
{
    const char *colon = strrchr(text, ':');
    if (!colon) { return bad_address(diag, text, "has no port"); }
    const char *host = text;
    size_t host_len = (size_t)(colon - text);
    bool in_brackets = host_len >= 2 && host[0] == '[' && host[host_len - 1] == ']';
    if (in_brackets) {
        host++;
        host_len -= 2;
    } else if (text[0] != '[' && memchr(host, ':', host_len)) {
        return bad_address(diag, text, "has more than one colon outside brackets");
    }
    if (memchr(host, '[', host_len) || memchr(host, ']', host_len)) {
        return bad_address(diag, text, "has brackets that do not enclose the host");
    }
    if (in_brackets && host_len > 0 && !memchr(host, ':', host_len)) {
        return bad_address(diag, text, "has a host in brackets that is no IPv6 address");
    }
    if (host_len == 0) { return bad_address(diag, text, "has no host"); }
    if (host_len > NET_HOST_CHARS_MAX) { return bad_address(diag, text, "has a host over 255 characters"); }
    if (colon[1] < '0' || colon[1] > '9') { return bad_address(diag, text, "has no port number"); }
    char *end;
    unsigned long port = strtoul(colon + 1, &end, 10);
    if (*end != '\0' || port > 65535) { return bad_address(diag, text, "has a port that is not 0 to 65535"); }
    memcpy(ret_host, host, host_len);
    ret_host[host_len] = '\0';
    *ret_port = (uint16_t)port;
    return STATUS_OK;
}

static status_t join(char *ret_text, size_t capacity, const char *host, unsigned port, struct diag *diag)
{
    int len = snprintf(ret_text, capacity, strchr(host, ':') ? "[%s]:%u" : "%s:%u", host, port);
    if (len < 0 || (size_t)len >= capacity) { return bad_address(diag, host, "is too long"); }
    return STATUS_OK;
}

/* Binds to port 0 and reads what the kernel chose. Another process could take it before the
 * server binds; then the server says so. */
static status_t free_port(const char *host, uint16_t *ret_port, struct diag *diag)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    int rc = getaddrinfo(host, "0", &hints, &found);
    if (rc != 0) {
        diag_set(diag, "address host \"%s\": %s", host, gai_strerror(rc));
        return STATUS(ST_UNAVAILABLE, SCOPE_NODE);
    }
    status_t st = STATUS_OK;
    struct sockaddr_storage bound;
    socklen_t bound_len = sizeof bound;
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, found->ai_addr, found->ai_addrlen) != 0 ||
        getsockname(fd, (struct sockaddr *)&bound, &bound_len) != 0) {
        st = STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_NODE, errno);
        diag_set(diag, "address host \"%s\": cannot listen: %s", host, strerror(errno));
    } else if (bound.ss_family == AF_INET6) {
        *ret_port = ntohs(((struct sockaddr_in6 *)&bound)->sin6_port);
    } else {
        *ret_port = ntohs(((struct sockaddr_in *)&bound)->sin_port);
    }
    if (fd >= 0) { close(fd); }
    freeaddrinfo(found);
    return st;
}

status_t net_address_check(const char *flag, const char *text, struct diag *diag)
{
    if (!text) { return STATUS_OK; }
    char host[NET_HOST_CHARS_MAX + 1];
    uint16_t port;
    status_t st = net_address_split(text, host, &port, diag);
    if (failed(st)) { diag_prefix(diag, "--%s", flag); }
    return st;
}

status_t net_address_listen(const char *text, char *ret_text, size_t capacity, struct diag *diag)
{
    char host[NET_HOST_CHARS_MAX + 1];
    uint16_t port;
    TRY(net_address_split(text, host, &port, diag));
    if (port == 0) { TRY(free_port(host, &port, diag)); }
    return join(ret_text, capacity, host, port, diag);
}

/* An address that other machines may dial, or NULL. Link-local IPv6 needs an interface beside it. */
static const char *dialable(const struct ifaddrs *each, int family, char *text, socklen_t capacity)
{
    if (!each->ifa_addr || each->ifa_addr->sa_family != family) { return NULL; }
    if ((each->ifa_flags & IFF_LOOPBACK) != 0 || (each->ifa_flags & IFF_UP) == 0) { return NULL; }
    if (family == AF_INET) {
        return inet_ntop(family, &((struct sockaddr_in *)each->ifa_addr)->sin_addr, text, capacity);
    }
    const struct in6_addr *v6 = &((struct sockaddr_in6 *)each->ifa_addr)->sin6_addr;
    return IN6_IS_ADDR_LINKLOCAL(v6) ? NULL : inet_ntop(family, v6, text, capacity);
}

status_t net_address_advertise(const char *listen, char *ret_text, size_t capacity, struct diag *diag)
{
    char host[NET_HOST_CHARS_MAX + 1];
    uint16_t port;
    TRY(net_address_split(listen, host, &port, diag));
    bool is_v6 = strcmp(host, "::") == 0;
    if (strcmp(host, "0.0.0.0") != 0 && !is_v6) { return join(ret_text, capacity, host, port, diag); }
    char best[INET6_ADDRSTRLEN] = "127.0.0.1";
    struct ifaddrs *list = NULL;
    if (getifaddrs(&list) == 0) {
        const char *found = NULL;
        for (struct ifaddrs *each = list; each && !found; each = each->ifa_next) {
            found = dialable(each, AF_INET, best, sizeof best);
        }
        /* A cluster may have IPv6 only; then the listener is on it. */
        for (struct ifaddrs *each = list; each && !found && is_v6; each = each->ifa_next) {
            found = dialable(each, AF_INET6, best, sizeof best);
        }
        freeifaddrs(list);
    }
    return join(ret_text, capacity, best, port, diag);
}
