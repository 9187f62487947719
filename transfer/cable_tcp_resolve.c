/* cable_tcp_resolve: P's way from a receiver's host name to a connection under way.
 * Flow:    tcp_connect -> [cable_tcp_resolve] -> a socket that connects -> cable_tcp.c's set-up
 * Thread:  the transfer thread; getaddrinfo blocks, so it runs on a thread of its own, which answers
 *          through a pipe and shares nothing with us. If we are gone by then, its write fails and
 *          that is all.
 * Memory:  one small record per look-up, the look-up thread's to free. */
#include "transfer/cable_tcp_state.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct lookup {
    int pipe_fd;
    char host[KV_ADDRESS_CHARS_MAX + 1];
};

struct lookup_answer {
    uint32_t size; /* 0: no such name */
    struct sockaddr_storage address;
};

static void *lookup_run(void *arg)
{
    struct lookup *lookup = arg;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    struct lookup_answer answer = {.size = 0};
    if (getaddrinfo(lookup->host, NULL, &hints, &found) == 0 && found && found->ai_addrlen <= sizeof answer.address) {
        memcpy(&answer.address, found->ai_addr, found->ai_addrlen);
        answer.size = found->ai_addrlen;
    }
    if (found) { freeaddrinfo(found); }
    ssize_t wrote = write(lookup->pipe_fd, &answer, sizeof answer); /* less than PIPE_BUF: whole or not at all */
    (void)wrote;
    close(lookup->pipe_fd);
    free(lookup);
    return NULL;
}

/* Begins a connection to an address that is known. */
static status_t sender_connect(struct conn *conn, const struct sockaddr *address, socklen_t size)
{
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) { return STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno); }
    conn->watch.fd = fd;
    conn->state = CS_CONNECTING;
    if (connect(fd, address, size) != 0 && errno != EINPROGRESS) { return STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno); }
    return kv_loop_watch(conn->cable->host->loop, &conn->watch, EPOLLOUT); /* also when it is up already */
}

static void port_set(struct sockaddr *address, uint16_t port)
{
    if (address->sa_family == AF_INET6) {
        ((struct sockaddr_in6 *)address)->sin6_port = htons(port);
    } else {
        ((struct sockaddr_in *)address)->sin_port = htons(port);
    }
}

status_t tcp_sender_resolve(struct conn *conn, const char *name)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST};
    struct addrinfo *found = NULL;
    if (getaddrinfo(name, NULL, &hints, &found) == 0) { /* digits: no look-up, no wait */
        port_set(found->ai_addr, conn->peer_port);
        status_t st = sender_connect(conn, found->ai_addr, found->ai_addrlen);
        freeaddrinfo(found);
        return st;
    }
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) { return STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno); }
    conn->watch.fd = ends[0];
    conn->state = CS_RESOLVING;
    struct lookup *lookup = calloc(1, sizeof *lookup);
    pthread_attr_t attr;
    pthread_t thread;
    if (!lookup || pthread_attr_init(&attr) != 0) {
        free(lookup);
        close(ends[1]);
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_PEER, ENOMEM);
    }
    lookup->pipe_fd = ends[1];
    snprintf(lookup->host, sizeof lookup->host, "%s", name);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    int cause = pthread_create(&thread, &attr, lookup_run, lookup); /* with our blocked signals: no SIGPIPE */
    pthread_attr_destroy(&attr);
    if (cause != 0) {
        free(lookup);
        close(ends[1]);
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_PEER, cause);
    }
    return kv_loop_watch(conn->cable->host->loop, &conn->watch, EPOLLIN);
}

void tcp_lookup_answered(struct conn *conn)
{
    struct lookup_answer answer;
    ssize_t got = read(conn->watch.fd, &answer, sizeof answer);
    if (got < 0 && errno == EAGAIN) { return; }
    kv_loop_remove(conn->cable->host->loop, &conn->watch);
    close(conn->watch.fd);
    conn->watch.fd = -1;
    if (got != (ssize_t)sizeof answer || answer.size == 0) {
        tcp_conn_fail(conn, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the receiver's host name has no address");
        return;
    }
    port_set((struct sockaddr *)&answer.address, conn->peer_port);
    status_t st = sender_connect(conn, (struct sockaddr *)&answer.address, answer.size);
    if (failed(st)) { tcp_conn_fail(conn, st, "the receiver cannot be reached"); }
}
