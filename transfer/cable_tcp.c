#include "transfer/cable_tcp.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "transfer/crc32c.h"
#include "transfer/little_endian.h"
#include "transfer/loop.h"
#include "transfer/tcp_io.h"

enum { STRANGERS_MAX = 64 };
/* One turn of one connection, so that many links share the thread. */
#define TURN_BYTES (4u * 1024u * 1024u)

enum conn_state {
    CS_RESOLVING,  /* P: waits for the name's address */
    CS_CONNECTING, /* P: waits for TCP */
    CS_TLS,        /* waits for the handshake */
    CS_HELLO,      /* P: sends the token; D: waits for it */
    CS_WELCOME,    /* P: waits for the answer; D: sends it */
    CS_READY,
};

enum receive_state { RS_HEADER, RS_CRCS, RS_SLICES, RS_DRAIN };

struct conn {
    struct kv_watch watch; /* first: the callback casts back */
    struct kv_cable *cable;
    uint32_t link; /* UINT32_MAX: a stranger, who has not shown a token */
    bool is_sender;
    enum conn_state state;
    uint64_t born;
    struct tcp_io io;
    /* small fixed messages of the set-up, and heads of frames */
    uint8_t head[TCP_HEAD_BYTES_MAX];
    size_t head_bytes, head_at;
    /* D: the frame that is coming in */
    enum receive_state receive;
    struct kv_frame frame;
    struct kv_landing landing;
    uint64_t body_at;   /* bytes of the slices received */
    uint32_t crc_now;   /* of the slice that is coming in */
    bool crc_ok;
    /* P */
    struct kv_cable_push *queue_first, *queue_last;
    uint64_t sent_at; /* bytes of the first push's frame that the kernel has taken; its head included */
    bool head_made;
    uint16_t peer_port; /* while resolving */
    uint8_t token[KV_CABLE_TOKEN_BYTES];
};

struct kv_cable {
    const struct kv_cable_host *host;
    struct kv_watch listener;
    struct tcp_tls *tls; /* NULL: plain */
    char address[KV_ADDRESS_CHARS_MAX + 1];
    char offer_host[KV_ADDRESS_CHARS_MAX + 1]; /* "": any of ours; the peer takes the ticket's */
    uint16_t port;
    uint64_t slice_bytes;
    struct conn **conns; /* [links_max] */
    struct conn *strangers[STRANGERS_MAX];
    uint64_t births;
};

static void conn_on_ready(struct kv_watch *watch, uint32_t events);

/* ---- connections */

static void conn_destroy(struct conn *conn)
{
    struct kv_cable *cable = conn->cable;
    if (conn->link != UINT32_MAX && cable->conns[conn->link] == conn) { cable->conns[conn->link] = NULL; }
    for (uint32_t i = 0; i < STRANGERS_MAX; i++) {
        if (cable->strangers[i] == conn) { cable->strangers[i] = NULL; }
    }
    kv_loop_remove(cable->host->loop, &conn->watch);
    tcp_io_fini(&conn->io);
    if (conn->watch.fd >= 0) { close(conn->watch.fd); }
    while (conn->queue_first) {
        struct kv_cable_push *push = conn->queue_first;
        conn->queue_first = push->next;
        push->dropped = true;
        cable->host->push_done(cable->host->endpoint, push);
    }
    memset(conn->token, 0, sizeof conn->token);
    free(conn);
}

static void conn_fail(struct conn *conn, status_t status, const char *text)
{
    const struct kv_cable_host *host = conn->cable->host;
    uint32_t link = conn->link;
    conn_destroy(conn);
    if (link != UINT32_MAX) { host->lost(host->endpoint, link, status, text); }
}

static struct conn *conn_create(struct kv_cable *cable, int fd, uint32_t link, bool is_sender, enum conn_state state)
{
    struct conn *conn = calloc(1, sizeof *conn);
    if (!conn) { return NULL; }
    conn->cable = cable;
    conn->link = link;
    conn->is_sender = is_sender;
    conn->state = state;
    conn->born = ++cable->births;
    conn->watch.fd = fd;
    conn->watch.on_ready = conn_on_ready;
    return conn;
}

/* A peer that vanishes without a word is given up after about a second when data is under way,
 * two to four when not. (The window of a stopped peer closes; that ends it as well.) */
static void socket_tune(int fd)
{
    int on = 1, user_timeout_ms = 1000, idle_s = 1, every_s = 1, probes = 3;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every_s, sizeof every_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout_ms, sizeof user_timeout_ms);
}

/* ---- D: what comes in */

static void hello_received(struct conn *conn)
{
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    uint32_t link = 0;
    if (le32_load(conn->head) != TCP_HELLO_MAGIC || le32_load(conn->head + 4) != TCP_VERSION ||
        !host->token_link(host->endpoint, conn->head + 8, &link) || cable->conns[link]) {
        conn_destroy(conn);
        return;
    }
    for (uint32_t i = 0; i < STRANGERS_MAX; i++) {
        if (cable->strangers[i] == conn) { cable->strangers[i] = NULL; }
    }
    conn->link = link;
    cable->conns[link] = conn;
    conn->state = CS_READY;
    conn->receive = RS_HEADER;
    conn->head_at = 0;
    /* D is ready before P can know it, so P's first begin finds the link so. Eight bytes
     * always fit into the buffer of a new connection. */
    host->connected(host->endpoint, link);
    if (cable->conns[link] != conn) { return; }
    uint8_t welcome[TCP_WELCOME_BYTES];
    le32_store(welcome, TCP_HELLO_MAGIC);
    le32_store(welcome + 4, TCP_VERSION);
    struct iovec iov = {.iov_base = welcome, .iov_len = sizeof welcome};
    if (tcp_io_write(&conn->io, &iov, 1) != (ssize_t)sizeof welcome) {
        conn_fail(conn, STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno), "the welcome could not be sent");
    }
}

/* Where bytes [body_at, end) of the frame belong. Returns the number of pieces. */
static int body_iov(const struct conn *conn, struct iovec iov[KV_FRAME_BLOCKS_MAX])
{
    const struct kv_cable_host *host = conn->cable->host;
    uint64_t slice_bytes = conn->cable->slice_bytes;
    uint64_t within = conn->body_at % slice_bytes;
    int pieces = 0;
    for (uint32_t i = (uint32_t)(conn->body_at / slice_bytes); i < conn->frame.count; i++) {
        uint8_t *slice = (uint8_t *)host->pool.base +
                         kv_layout_slice_offset(host->layout, conn->landing.blocks[i], conn->frame.layer);
        iov[pieces].iov_base = slice + within;
        iov[pieces++].iov_len = slice_bytes - within;
        within = 0;
    }
    return pieces;
}

/* Sums what has just arrived, while it is in the cache. */
static void body_sum(struct conn *conn, const struct iovec *iov, uint64_t bytes)
{
    uint64_t slice_bytes = conn->cable->slice_bytes;
    for (; bytes > 0; iov++) {
        uint64_t piece = bytes < iov->iov_len ? bytes : iov->iov_len;
        conn->crc_now = crc32c(conn->crc_now, iov->iov_base, piece);
        conn->body_at += piece;
        bytes -= piece;
        if (conn->body_at % slice_bytes == 0) {
            uint32_t index = (uint32_t)(conn->body_at / slice_bytes) - 1;
            conn->crc_ok &= conn->crc_now == le32_load(conn->head + TCP_HEADER_BYTES + 4u * index);
            conn->crc_now = 0;
        }
    }
}

enum step { STEP_ON, STEP_BLOCKED, STEP_BROKEN, STEP_CORRUPT, STEP_GONE };

static enum step step_of(ssize_t got)
{
    if (got > 0) { return STEP_ON; }
    return got < 0 && (errno == EAGAIN || errno == EINTR) ? STEP_BLOCKED : STEP_BROKEN;
}

static enum step head_receive(struct conn *conn, size_t bytes)
{
    struct iovec iov = {.iov_base = conn->head + conn->head_at, .iov_len = bytes - conn->head_at};
    ssize_t got = tcp_io_read(&conn->io, &iov, 1);
    if (got > 0) { conn->head_at += (size_t)got; }
    return step_of(got);
}

static enum step receive_step(struct conn *conn, uint64_t *taken)
{
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    uint64_t body_bytes = conn->frame.count * cable->slice_bytes;
    enum step step = STEP_ON;
    switch (conn->receive) {
    case RS_HEADER:
        step = head_receive(conn, TCP_HEADER_BYTES);
        if (step != STEP_ON || conn->head_at < TCP_HEADER_BYTES) { return step; }
        if (!tcp_frame_header_read(conn->head, (uint32_t)cable->slice_bytes, &conn->frame)) { return STEP_CORRUPT; }
        conn->receive = RS_CRCS;
        return STEP_ON;
    case RS_CRCS: {
        size_t head_bytes = TCP_HEADER_BYTES + 4u * (size_t)conn->frame.count;
        step = head_receive(conn, head_bytes);
        if (step != STEP_ON || conn->head_at < head_bytes) { return step; }
        if (!tcp_frame_head_check(conn->head, conn->frame.count)) { return STEP_CORRUPT; }
        conn->head_at = 0;
        conn->body_at = 0;
        conn->crc_now = 0;
        conn->crc_ok = true;
        bool accepted = host->frame_accept(host->endpoint, conn->link, &conn->frame, &conn->landing);
        conn->receive = accepted ? RS_SLICES : RS_DRAIN;
        return STEP_ON;
    }
    case RS_SLICES: {
        if (!host->landing_is_live(host->endpoint, &conn->landing)) { /* revoked in mid-frame */
            conn->receive = RS_DRAIN;
            return STEP_ON;
        }
        struct iovec iov[KV_FRAME_BLOCKS_MAX];
        int pieces = body_iov(conn, iov);
        ssize_t got = tcp_io_read(&conn->io, iov, pieces);
        if (got <= 0) { return step_of(got); }
        *taken += (uint64_t)got;
        body_sum(conn, iov, (uint64_t)got);
        if (conn->body_at < body_bytes) { return STEP_ON; }
        conn->receive = RS_HEADER;
        uint32_t link = conn->link;
        host->frame_landed(host->endpoint, link, &conn->landing, &conn->frame, conn->crc_ok);
        return cable->conns[link] == conn ? STEP_ON : STEP_GONE;
    }
    case RS_DRAIN: {
        ssize_t got = tcp_io_discard(&conn->io, body_bytes - conn->body_at);
        if (got <= 0) { return step_of(got); }
        *taken += (uint64_t)got;
        conn->body_at += (uint64_t)got;
        if (conn->body_at == body_bytes) { conn->receive = RS_HEADER; }
        return STEP_ON;
    }
    }
    return STEP_BROKEN;
}

static void receiver_run(struct conn *conn)
{
    const struct kv_cable_host *host = conn->cable->host;
    uint64_t taken = 0;
    enum step step = STEP_ON;
    host->heard(host->endpoint, conn->link);
    /* TLS may hold bytes that epoll knows nothing of, so there only blocking ends a turn. */
    while (step == STEP_ON && (taken < TURN_BYTES || conn->io.ssl)) { step = receive_step(conn, &taken); }
    if (step == STEP_BROKEN) {
        conn_fail(conn, STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno), "the peer hung up");
    } else if (step == STEP_CORRUPT) {
        conn_fail(conn, STATUS(ST_DATA_LOSS, SCOPE_PEER), "a frame's header is corrupt");
    }
}

/* ---- P: what goes out */

static void frame_make(struct conn *conn, struct kv_cable_push *push)
{
    const struct kv_cable_host *host = conn->cable->host;
    for (uint32_t i = 0; i < push->frame.count; i++) {
        const uint8_t *from =
            (const uint8_t *)host->pool.base + kv_layout_slice_offset(host->layout, push->blocks[i], push->frame.layer);
        push->crc[i] = crc32c(0, from, conn->cable->slice_bytes);
    }
    conn->head_bytes = tcp_frame_head_write(&push->frame, (uint32_t)conn->cable->slice_bytes, push->crc, conn->head);
    conn->head_made = true;
    conn->sent_at = 0;
}

static int frame_iov(const struct conn *conn, const struct kv_cable_push *push, struct iovec iov[KV_FRAME_BLOCKS_MAX + 1])
{
    const struct kv_cable_host *host = conn->cable->host;
    uint64_t slice_bytes = conn->cable->slice_bytes;
    int pieces = 0;
    uint64_t body_at = 0;
    if (conn->sent_at < conn->head_bytes) {
        iov[pieces].iov_base = (void *)(uintptr_t)(conn->head + conn->sent_at);
        iov[pieces++].iov_len = conn->head_bytes - conn->sent_at;
    } else {
        body_at = conn->sent_at - conn->head_bytes;
    }
    uint64_t within = body_at % slice_bytes;
    for (uint32_t i = (uint32_t)(body_at / slice_bytes); i < push->frame.count; i++) {
        uint8_t *slice =
            (uint8_t *)host->pool.base + kv_layout_slice_offset(host->layout, push->blocks[i], push->frame.layer);
        iov[pieces].iov_base = slice + within;
        iov[pieces++].iov_len = slice_bytes - within;
        within = 0;
    }
    return pieces;
}

/* Hands the kernel what it takes. False: broken. */
static bool sender_pump(struct conn *conn)
{
    const struct kv_cable_host *host = conn->cable->host;
    uint64_t turn_bytes = 0;
    bool blocked = false;
    while (conn->queue_first && !blocked && turn_bytes < TURN_BYTES) {
        struct kv_cable_push *push = conn->queue_first;
        if (!conn->head_made) { frame_make(conn, push); }
        struct iovec iov[KV_FRAME_BLOCKS_MAX + 1];
        int pieces = frame_iov(conn, push, iov);
        ssize_t sent = tcp_io_write(&conn->io, iov, pieces);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
            blocked = true;
            break;
        }
        if (sent <= 0) { return false; }
        conn->sent_at += (uint64_t)sent;
        turn_bytes += (uint64_t)sent;
        if (conn->sent_at == conn->head_bytes + push->frame.count * conn->cable->slice_bytes) {
            conn->queue_first = push->next;
            conn->head_made = false;
            host->push_done(host->endpoint, push);
        }
    }
    bool more = conn->queue_first != NULL;
    return !failed(kv_loop_watch(host->loop, &conn->watch, EPOLLIN | (more ? (uint32_t)EPOLLOUT : 0u)));
}

/* D says nothing after the welcome: anything readable is the end, or under TLS a session
 * ticket, which the library consumes. */
static bool sender_peer_lives(struct conn *conn)
{
    uint8_t byte;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    ssize_t got = tcp_io_read(&conn->io, &iov, 1);
    return got < 0 && (errno == EAGAIN || errno == EINTR);
}

/* ---- set-up */

static void sender_tcp_is_up(struct conn *conn);

/* Moves a connection that is being set up as far as it goes. */
static void setup_step(struct conn *conn)
{
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    if (conn->state == CS_CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(conn->watch.fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error != 0) {
            conn_fail(conn, STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, error), strerror(error));
            return;
        }
        sender_tcp_is_up(conn);
        return;
    }
    if (conn->state == CS_TLS) {
        uint32_t wants = 0;
        char why[160] = "";
        enum tcp_handshake result = tcp_io_handshake(&conn->io, &wants, why, sizeof why);
        if (result == TCP_HANDSHAKE_FAILED) {
            conn_fail(conn, STATUS(ST_UNAUTHENTICATED, SCOPE_PEER), why);
            return;
        }
        if (failed(kv_loop_watch(host->loop, &conn->watch, result == TCP_HANDSHAKE_DONE ? EPOLLIN : wants))) {
            conn_fail(conn, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_PEER), "the loop is full");
            return;
        }
        if (result == TCP_HANDSHAKE_WAITS) { return; }
        conn->state = CS_HELLO;
        conn->head_at = 0;
    }
    if (conn->state == CS_HELLO && conn->is_sender) {
        uint8_t hello[TCP_HELLO_BYTES];
        le32_store(hello, TCP_HELLO_MAGIC);
        le32_store(hello + 4, TCP_VERSION);
        memcpy(hello + 8, conn->token, KV_CABLE_TOKEN_BYTES);
        struct iovec iov = {.iov_base = hello, .iov_len = sizeof hello};
        if (tcp_io_write(&conn->io, &iov, 1) != (ssize_t)sizeof hello) { /* an empty buffer takes it whole */
            conn_fail(conn, STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno), "the token could not be sent");
            return;
        }
        conn->state = CS_WELCOME;
        conn->head_at = 0;
        if (failed(kv_loop_watch(host->loop, &conn->watch, EPOLLIN))) {
            conn_fail(conn, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_PEER), "the loop is full");
        }
        return;
    }
    size_t need = conn->is_sender ? TCP_WELCOME_BYTES : TCP_HELLO_BYTES;
    enum step step = STEP_ON;
    while (step == STEP_ON && conn->head_at < need) { step = head_receive(conn, need); }
    if (step == STEP_BROKEN) {
        conn_fail(conn, STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno), "the peer hung up before it welcomed us");
    } else if (conn->head_at == need && !conn->is_sender) {
        hello_received(conn);
    } else if (conn->head_at == need) {
        if (le32_load(conn->head) != TCP_HELLO_MAGIC || le32_load(conn->head + 4) != TCP_VERSION) {
            conn_fail(conn, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the peer did not welcome us");
            return;
        }
        conn->state = CS_READY;
        host->connected(host->endpoint, conn->link);
    }
}

static void sender_tcp_is_up(struct conn *conn)
{
    socket_tune(conn->watch.fd);
    if (!tcp_io_init(&conn->io, conn->watch.fd, conn->cable->tls, true)) {
        conn_fail(conn, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_PEER), "no memory for TLS");
        return;
    }
    conn->state = conn->io.ssl ? CS_TLS : CS_HELLO;
    setup_step(conn);
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

/* ---- P: names. getaddrinfo blocks, so it runs on a thread, which answers through a pipe and
 * shares nothing with us. If we are gone by then, its write fails and that is all. */

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

static void port_set(struct sockaddr *address, uint16_t port)
{
    if (address->sa_family == AF_INET6) {
        ((struct sockaddr_in6 *)address)->sin6_port = htons(port);
    } else {
        ((struct sockaddr_in *)address)->sin_port = htons(port);
    }
}

static status_t sender_resolve(struct conn *conn, const char *name)
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

static void lookup_answered(struct conn *conn)
{
    struct lookup_answer answer;
    ssize_t got = read(conn->watch.fd, &answer, sizeof answer);
    if (got < 0 && errno == EAGAIN) { return; }
    kv_loop_remove(conn->cable->host->loop, &conn->watch);
    close(conn->watch.fd);
    conn->watch.fd = -1;
    if (got != (ssize_t)sizeof answer || answer.size == 0) {
        conn_fail(conn, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the receiver's host name has no address");
        return;
    }
    port_set((struct sockaddr *)&answer.address, conn->peer_port);
    status_t st = sender_connect(conn, (struct sockaddr *)&answer.address, answer.size);
    if (failed(st)) { conn_fail(conn, st, "the receiver cannot be reached"); }
}

static void conn_on_ready(struct kv_watch *watch, uint32_t events)
{
    struct conn *conn = (struct conn *)watch;
    if (conn->state == CS_RESOLVING) {
        lookup_answered(conn);
    } else if (conn->state != CS_READY) {
        setup_step(conn);
    } else if (!conn->is_sender) {
        receiver_run(conn);
    } else if (((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && !sender_peer_lives(conn)) || !sender_pump(conn)) {
        conn_fail(conn, STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno), "the peer hung up");
    }
}

static void listener_on_ready(struct kv_watch *watch, uint32_t events)
{
    (void)events;
    struct kv_cable *cable = (struct kv_cable *)((char *)watch - offsetof(struct kv_cable, listener));
    int fd = accept4(watch->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) { return; }
    socket_tune(fd);
    uint32_t at = 0; /* a free place, else the oldest stranger's: who stalls is pushed out */
    for (uint32_t i = 1; i < STRANGERS_MAX && cable->strangers[at]; i++) {
        if (!cable->strangers[i] || cable->strangers[i]->born < cable->strangers[at]->born) { at = i; }
    }
    if (cable->strangers[at]) { conn_destroy(cable->strangers[at]); }
    struct conn *conn = conn_create(cable, fd, UINT32_MAX, false, cable->tls ? CS_TLS : CS_HELLO);
    if (!conn) {
        close(fd);
        return;
    }
    cable->strangers[at] = conn;
    if (!tcp_io_init(&conn->io, fd, cable->tls, false) || failed(kv_loop_watch(cable->host->loop, &conn->watch, EPOLLIN))) {
        conn_destroy(conn);
    }
}

/* ---- the ops */

static void tcp_close(struct kv_cable *cable)
{
    if (!cable) { return; }
    for (uint32_t i = 0; i < STRANGERS_MAX; i++) {
        if (cable->strangers[i]) { conn_destroy(cable->strangers[i]); }
    }
    for (uint32_t i = 0; cable->conns && i < cable->host->links_max; i++) {
        if (cable->conns[i]) { conn_destroy(cable->conns[i]); }
    }
    if (cable->listener.fd >= 0) {
        kv_loop_remove(cable->host->loop, &cable->listener);
        close(cable->listener.fd);
    }
    tcp_tls_destroy(cable->tls);
    free(cable->conns);
    free(cable);
}

static status_t listener_open(struct kv_cable *cable, struct diag *diag)
{
    const char *listen_at = cable->host->tcp_listen;
    char host[KV_ADDRESS_CHARS_MAX + 1];
    const char *colon = strrchr(listen_at, ':');
    size_t chars = colon ? (size_t)(colon - listen_at) : 0;
    bool bracketed = chars >= 2 && listen_at[0] == '[' && listen_at[chars - 1] == ']';
    if (!colon || chars == 0 || chars > KV_ADDRESS_CHARS_MAX) {
        diag_set(diag, "tcp cable: \"%s\" is not host:port", listen_at);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    snprintf(host, sizeof host, "%.*s", (int)(bracketed ? chars - 2 : chars), listen_at + bracketed);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    int wrong = getaddrinfo(host, colon + 1, &hints, &found);
    if (wrong != 0) {
        diag_set(diag, "tcp cable: cannot listen at %s: %s", listen_at, gai_strerror(wrong));
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int on = 1;
    struct sockaddr_storage bound;
    socklen_t bound_size = sizeof bound;
    bool works = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
                 bind(fd, found->ai_addr, found->ai_addrlen) == 0 && listen(fd, 128) == 0 &&
                 getsockname(fd, (struct sockaddr *)&bound, &bound_size) == 0;
    int cause = errno;
    freeaddrinfo(found);
    if (!works) {
        if (fd >= 0) { close(fd); }
        diag_set(diag, "tcp cable: cannot listen at %s: %s", listen_at, strerror(cause));
        return STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_NODE, cause);
    }
    bool any = false;
    if (bound.ss_family == AF_INET6) {
        const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)&bound;
        cable->port = ntohs(six->sin6_port);
        any = IN6_IS_ADDR_UNSPECIFIED(&six->sin6_addr);
    } else {
        const struct sockaddr_in *four = (const struct sockaddr_in *)&bound;
        cable->port = ntohs(four->sin_port);
        any = four->sin_addr.s_addr == htonl(INADDR_ANY);
    }
    if (!any) { memcpy(cable->offer_host, host, sizeof host); }
    int wrote = snprintf(cable->address, sizeof cable->address, bracketed ? "[%s]:%u" : "%s:%u", host, cable->port);
    if (wrote < 0 || (size_t)wrote >= sizeof cable->address) { cable->address[0] = '\0'; }
    cable->listener.fd = fd;
    cable->listener.on_ready = listener_on_ready;
    return kv_loop_watch(cable->host->loop, &cable->listener, EPOLLIN);
}

static status_t tcp_open(const struct kv_cable_host *host, struct diag *diag, struct kv_cable **ret_cable)
{
    struct kv_cable *cable = calloc(1, sizeof *cable);
    if (!cable) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    cable->host = host;
    cable->listener.fd = -1;
    cable->slice_bytes = kv_layout_slice_bytes(host->layout);
    cable->conns = calloc(host->links_max, sizeof(struct conn *));
    status_t st = cable->conns ? STATUS_OK : STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM);
    if (!failed(st) && host->tls.cert_file) { st = tcp_tls_create(&host->tls, diag, &cable->tls); }
    if (!failed(st) && host->tcp_listen[0]) { st = listener_open(cable, diag); }
    if (failed(st)) {
        tcp_close(cable);
        return st;
    }
    *ret_cable = cable;
    return STATUS_OK;
}

/* u16 port, u8 TLS, then the host, or nothing for "the one you dialled". */
static status_t tcp_offer(struct kv_cable *cable, struct kv_cable_offer *ret_offer)
{
    if (cable->listener.fd < 0) { return STATUS(ST_UNIMPLEMENTED, SCOPE_PEER); }
    size_t chars = strlen(cable->offer_host);
    ret_offer->bytes[0] = (uint8_t)cable->port;
    ret_offer->bytes[1] = (uint8_t)(cable->port >> 8);
    ret_offer->bytes[2] = cable->tls != NULL;
    memcpy(ret_offer->bytes + 3, cable->offer_host, chars);
    ret_offer->size = (uint32_t)(3 + chars);
    return STATUS_OK;
}

static status_t tcp_connect(struct kv_cable *cable, uint32_t link, const char *peer_host, const void *offer_,
                            size_t offer_bytes, const uint8_t token[KV_CABLE_TOKEN_BYTES])
{
    const uint8_t *offer = offer_;
    if (offer_bytes < 3 || offer_bytes - 3 > KV_ADDRESS_CHARS_MAX) { return STATUS(ST_INVALID_ARGUMENT, SCOPE_PEER); }
    /* Never less than what we were told to use: the peer cannot talk us out of TLS. */
    if ((offer[2] != 0) != (cable->tls != NULL)) { return STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER); }
    char host[KV_ADDRESS_CHARS_MAX + 1];
    if (offer_bytes > 3) {
        snprintf(host, sizeof host, "%.*s", (int)(offer_bytes - 3), (const char *)offer + 3);
    } else {
        snprintf(host, sizeof host, "%s", peer_host);
    }
    struct conn *conn = conn_create(cable, -1, link, true, CS_RESOLVING);
    if (!conn) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_PEER, ENOMEM); }
    conn->peer_port = (uint16_t)(offer[0] | offer[1] << 8);
    memcpy(conn->token, token, sizeof conn->token);
    cable->conns[link] = conn;
    status_t st = sender_resolve(conn, host);
    if (failed(st)) { conn_destroy(conn); }
    return st;
}

static void tcp_push(struct kv_cable *cable, uint32_t link, struct kv_cable_push *push)
{
    struct conn *conn = cable->conns[link];
    if (!conn) { /* it broke, and the endpoint has not heard of it yet */
        push->dropped = true;
        cable->host->push_done(cable->host->endpoint, push);
        return;
    }
    push->next = NULL;
    bool was_idle = conn->queue_first == NULL;
    if (conn->queue_first) { conn->queue_last->next = push; } else { conn->queue_first = push; }
    conn->queue_last = push;
    /* Not sent from here: the loop does it in turns, and a failure has one place to show. */
    if (was_idle && failed(kv_loop_watch(cable->host->loop, &conn->watch, EPOLLIN | EPOLLOUT))) {
        shutdown(conn->watch.fd, SHUT_RDWR);
    }
}

static void tcp_abort(struct kv_cable *cable, uint32_t link, uint32_t send_slot)
{
    struct conn *conn = cable->conns[link];
    if (!conn) { return; }
    struct kv_cable_push *rest = conn->queue_first;
    struct kv_cable_push *half = NULL;
    if (rest && conn->head_made && (conn->sent_at > 0 || conn->io.write_waits)) { /* the frame must be finished, or the stream has no meaning */
        half = rest;
        rest = rest->next;
        half->next = NULL;
        if (half->send_slot == send_slot) { half->dropped = true; }
    } else {
        conn->head_made = false;
    }
    conn->queue_first = conn->queue_last = half;
    while (rest) {
        struct kv_cable_push *push = rest;
        rest = push->next;
        push->next = NULL;
        if (push->send_slot == send_slot) {
            push->dropped = true;
            cable->host->push_done(cable->host->endpoint, push);
            continue;
        }
        if (conn->queue_first) { conn->queue_last->next = push; } else { conn->queue_first = push; }
        conn->queue_last = push;
    }
}

static void tcp_fence(struct kv_cable *cable, uint32_t link)
{
    if (cable->conns[link]) { conn_destroy(cable->conns[link]); }
}

static const char *tcp_address(const struct kv_cable *cable) { return cable->address; }

const struct kv_cable_ops kv_cable_tcp = {
    .name = "tcp",
    .places_at_destination = true,
    .open = tcp_open,
    .offer = tcp_offer,
    .connect = tcp_connect,
    .push = tcp_push,
    .abort = tcp_abort,
    .fence = tcp_fence,
    .close = tcp_close,
    .address = tcp_address,
};
