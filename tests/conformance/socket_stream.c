#include "tests/conformance/socket_stream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct stream {
    struct socket_streams *all;
    struct stream *next;
    int fd;
    uint64_t link;
    uint32_t references; /* its thread's, and the endpoint's until close */
    bool dialling, closed;
    struct sockaddr_in address;
    uint8_t *early; /* sent before the connection was up */
    size_t early_bytes;
};

struct socket_streams {
    struct kv_endpoint *endpoint; /* mutex */
    int listen_fd;
    char address[64];
    pthread_t acceptor;
    bool acceptor_started;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct stream *streams;
    uint32_t threads, calls; /* running; inside the endpoint */
    bool stopping;
};

static void die(const char *what)
{
    perror(what);
    exit(99);
}

static struct sockaddr_in address_parse(const char *text)
{
    char host[64];
    struct sockaddr_in address = {.sin_family = AF_INET};
    const char *colon = strrchr(text, ':');
    if (!colon) { die("an address without a port"); }
    snprintf(host, sizeof host, "%.*s", (int)(colon - text), text);
    address.sin_port = htons((uint16_t)atoi(colon + 1));
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) { die("inet_pton"); }
    return address;
}

/* Under the mutex. */
static void stream_unref(struct stream *stream)
{
    if (--stream->references > 0) { return; }
    for (struct stream **at = &stream->all->streams; *at; at = &(*at)->next) {
        if (*at == stream) {
            *at = stream->next;
            break;
        }
    }
    if (stream->fd >= 0) { close(stream->fd); }
    free(stream->early);
    free(stream);
}

static bool read_fully(int fd, void *to, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        ssize_t got = recv(fd, (char *)to + at, bytes - at, 0);
        if (got < 0 && errno == EINTR) { continue; }
        if (got <= 0) { return false; }
        at += (size_t)got;
    }
    return true;
}

static struct kv_endpoint *call_enter(struct socket_streams *all)
{
    pthread_mutex_lock(&all->mutex);
    struct kv_endpoint *endpoint = all->stopping ? NULL : all->endpoint;
    all->calls += endpoint != NULL;
    pthread_mutex_unlock(&all->mutex);
    return endpoint;
}

static void call_leave(struct socket_streams *all)
{
    pthread_mutex_lock(&all->mutex);
    all->calls--;
    pthread_cond_broadcast(&all->changed);
    pthread_mutex_unlock(&all->mutex);
}

static void *stream_run(void *arg)
{
    struct stream *stream = arg;
    struct socket_streams *all = stream->all;
    int on = 1;
    bool up = true;
    if (stream->dialling) {
        up = connect(stream->fd, (struct sockaddr *)&stream->address, sizeof stream->address) == 0;
        pthread_mutex_lock(&all->mutex);
        if (up && stream->early_bytes) {
            up = send(stream->fd, stream->early, stream->early_bytes, MSG_NOSIGNAL) == (ssize_t)stream->early_bytes;
        }
        stream->dialling = false;
        pthread_mutex_unlock(&all->mutex);
    }
    setsockopt(stream->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    uint8_t *message = malloc(KV_LINK_MESSAGE_BYTES_MAX);
    while (up && message) {
        uint32_t bytes;
        if (!read_fully(stream->fd, &bytes, sizeof bytes) || bytes > KV_LINK_MESSAGE_BYTES_MAX ||
            !read_fully(stream->fd, message, bytes)) {
            break;
        }
        struct kv_endpoint *endpoint = call_enter(all);
        if (!endpoint) { break; }
        up = !failed(kv_endpoint_stream_message(endpoint, stream->link, message, bytes));
        call_leave(all);
    }
    free(message);
    struct kv_endpoint *endpoint = call_enter(all);
    if (endpoint) {
        kv_endpoint_stream_closed(endpoint, stream->link, STATUS(ST_UNAVAILABLE, SCOPE_PEER));
        call_leave(all);
    }
    pthread_mutex_lock(&all->mutex);
    shutdown(stream->fd, SHUT_RDWR);
    stream_unref(stream);
    all->threads--;
    pthread_cond_broadcast(&all->changed);
    pthread_mutex_unlock(&all->mutex);
    return NULL;
}

/* References: one for the thread, one for the endpoint. */
static struct stream *stream_make(struct socket_streams *all, int fd)
{
    struct stream *stream = calloc(1, sizeof *stream);
    if (!stream) { die("calloc"); }
    stream->all = all;
    stream->fd = fd;
    stream->references = 2;
    pthread_mutex_lock(&all->mutex);
    stream->next = all->streams;
    all->streams = stream;
    pthread_mutex_unlock(&all->mutex);
    return stream;
}

static void stream_start(struct stream *stream)
{
    pthread_t thread;
    pthread_mutex_lock(&stream->all->mutex);
    stream->all->threads++;
    pthread_mutex_unlock(&stream->all->mutex);
    if (pthread_create(&thread, NULL, stream_run, stream) != 0) { die("pthread_create"); }
    pthread_detach(thread);
}

static status_t stream_dial(void *context, const char *address, uint64_t link, void **ret_stream)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) { return STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno); }
    struct stream *stream = stream_make(context, fd);
    stream->link = link;
    stream->dialling = true;
    stream->address = address_parse(address);
    stream_start(stream);
    *ret_stream = stream;
    return STATUS_OK;
}

static status_t stream_send(void *context, void *handle, const void *message, size_t bytes)
{
    struct socket_streams *all = context;
    struct stream *stream = handle;
    uint8_t *framed = malloc(bytes + 4);
    if (!framed) { die("malloc"); }
    uint32_t length = (uint32_t)bytes;
    memcpy(framed, &length, 4);
    memcpy(framed + 4, message, bytes);
    status_t st = STATUS_OK;
    pthread_mutex_lock(&all->mutex);
    if (stream->dialling) {
        stream->early = realloc(stream->early, stream->early_bytes + bytes + 4);
        if (!stream->early) { die("realloc"); }
        memcpy(stream->early + stream->early_bytes, framed, bytes + 4);
        stream->early_bytes += bytes + 4;
    } else if (send(stream->fd, framed, bytes + 4, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)(bytes + 4)) {
        st = STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno);
    }
    pthread_mutex_unlock(&all->mutex);
    free(framed);
    return st;
}

static void stream_close(void *context, void *handle)
{
    struct socket_streams *all = context;
    struct stream *stream = handle;
    pthread_mutex_lock(&all->mutex);
    stream->closed = true;
    shutdown(stream->fd, SHUT_RDWR);
    stream_unref(stream);
    pthread_mutex_unlock(&all->mutex);
}

struct kv_stream_ops socket_stream_ops(void)
{
    return (struct kv_stream_ops){.dial = stream_dial, .send = stream_send, .close = stream_close};
}

struct socket_streams *socket_streams_create(const char *listen_at)
{
    struct socket_streams *all = calloc(1, sizeof *all);
    if (!all) { die("calloc"); }
    pthread_mutex_init(&all->mutex, NULL);
    pthread_cond_init(&all->changed, NULL);
    all->listen_fd = -1;
    if (!listen_at) { return all; }
    struct sockaddr_in address = address_parse(listen_at);
    socklen_t size = sizeof address;
    int on = 1;
    all->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(all->listen_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(all->listen_fd, (struct sockaddr *)&address, size) != 0) { die("bind"); }
    if (listen(all->listen_fd, 64) != 0) { die("listen"); }
    if (getsockname(all->listen_fd, (struct sockaddr *)&address, &size) != 0) { die("getsockname"); }
    char host[32];
    inet_ntop(AF_INET, &address.sin_addr, host, sizeof host);
    snprintf(all->address, sizeof all->address, "%s:%u", host, ntohs(address.sin_port));
    return all;
}

const char *socket_streams_address(const struct socket_streams *all) { return all->address; }

static void *accept_run(void *arg)
{
    struct socket_streams *all = arg;
    for (;;) {
        int fd = accept4(all->listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) { return NULL; } /* shut down */
        struct kv_endpoint *endpoint = call_enter(all);
        if (!endpoint) {
            close(fd);
            return NULL;
        }
        struct stream *stream = stream_make(all, fd);
        if (failed(kv_endpoint_stream_accept(endpoint, stream, &stream->link))) {
            pthread_mutex_lock(&all->mutex);
            stream->references = 1;
            stream_unref(stream);
            pthread_mutex_unlock(&all->mutex);
        } else {
            stream_start(stream);
        }
        call_leave(all);
    }
}

void socket_streams_start(struct socket_streams *all, struct kv_endpoint *endpoint)
{
    pthread_mutex_lock(&all->mutex);
    all->endpoint = endpoint;
    pthread_mutex_unlock(&all->mutex);
    if (all->listen_fd >= 0) {
        if (pthread_create(&all->acceptor, NULL, accept_run, all) != 0) { die("pthread_create"); }
        all->acceptor_started = true;
    }
}

void socket_streams_stop(struct socket_streams *all)
{
    pthread_mutex_lock(&all->mutex);
    all->stopping = true;
    if (all->listen_fd >= 0) { shutdown(all->listen_fd, SHUT_RDWR); }
    for (struct stream *stream = all->streams; stream; stream = stream->next) { shutdown(stream->fd, SHUT_RDWR); }
    while (all->threads > 0 || all->calls > 0) { pthread_cond_wait(&all->changed, &all->mutex); }
    pthread_mutex_unlock(&all->mutex);
    if (all->acceptor_started) { pthread_join(all->acceptor, NULL); }
}

void socket_streams_destroy(struct socket_streams *all)
{
    if (!all) { return; }
    while (all->streams) { /* the endpoint is gone; its references are ours */
        struct stream *stream = all->streams;
        stream->references = 1;
        stream_unref(stream);
    }
    if (all->listen_fd >= 0) { close(all->listen_fd); }
    pthread_mutex_destroy(&all->mutex);
    pthread_cond_destroy(&all->changed);
    free(all);
}
