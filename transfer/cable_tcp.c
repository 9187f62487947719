/* cable_tcp: a connection's life from set-up to end, the listener, and the cable's ops.
 * What D receives, what P sends, and P's look-up of names have files of their own;
 * cable_tcp_state.h is what they share. */
#include "transfer/cable_tcp_state.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "transfer/little_endian.h"

static void conn_on_ready(struct kv_watch *watch, uint32_t events);

/* ---- connections */

void tcp_conn_destroy(struct conn *conn)
{
    struct kv_cable *cable = conn->cable;
    if (conn->link != UINT32_MAX && cable->conns[conn->link] == conn) { cable->conns[conn->link] = NULL; }
    for (uint32_t i = 0; i < STRANGERS_MAX; i++) {
        if (cable->strangers[i] == conn) { cable->strangers[i] = NULL; }
    }
    kv_loop_remove(cable->host->loop, &conn->watch);
    tcp_io_fini(&conn->io);
    if (conn->watch.fd >= 0) { close(conn->watch.fd); }
    tcp_stages_end(conn);
    while (conn->queue_first) {
        struct kv_cable_push *push = conn->queue_first;
        conn->queue_first = push->next;
        push->dropped = true;
        cable->host->push_done(cable->host->endpoint, push);
    }
    memset(conn->token, 0, sizeof conn->token);
    free(conn);
}

void tcp_conn_fail(struct conn *conn, status_t status, const char *text)
{
    const struct kv_cable_host *host = conn->cable->host;
    uint32_t link = conn->link;
    tcp_conn_destroy(conn);
    if (link != UINT32_MAX) { host->lost(host->endpoint, link, status, text); }
}

struct conn *tcp_conn_create(struct kv_cable *cable, int fd, uint32_t link, bool is_sender, enum conn_state state)
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

/* ---- set-up */

static void hello_received(struct conn *conn)
{
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    uint32_t link = 0;
    if (le32_load(conn->head) != TCP_HELLO_MAGIC || le32_load(conn->head + 4) != TCP_VERSION ||
        !host->token_link(host->endpoint, conn->head + 8, &link) || cable->conns[link]) {
        tcp_conn_destroy(conn);
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
        tcp_conn_fail(conn, STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno), "the welcome could not be sent");
    }
}

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
            tcp_conn_fail(conn, STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, error), strerror(error));
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
            tcp_conn_fail(conn, STATUS(ST_UNAUTHENTICATED, SCOPE_PEER), why);
            return;
        }
        if (failed(kv_loop_watch(host->loop, &conn->watch, result == TCP_HANDSHAKE_DONE ? EPOLLIN : wants))) {
            tcp_conn_fail(conn, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_PEER), "the loop is full");
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
            tcp_conn_fail(conn, STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno), "the token could not be sent");
            return;
        }
        conn->state = CS_WELCOME;
        conn->head_at = 0;
        if (failed(kv_loop_watch(host->loop, &conn->watch, EPOLLIN))) {
            tcp_conn_fail(conn, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_PEER), "the loop is full");
        }
        return;
    }
    size_t need = conn->is_sender ? TCP_WELCOME_BYTES : TCP_HELLO_BYTES;
    enum tcp_step step = STEP_ON;
    while (step == STEP_ON && conn->head_at < need) { step = tcp_head_receive(conn, need); }
    if (step == STEP_BROKEN) {
        tcp_conn_fail(conn, STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno), "the peer hung up before it welcomed us");
    } else if (conn->head_at == need && !conn->is_sender) {
        hello_received(conn);
    } else if (conn->head_at == need) {
        if (le32_load(conn->head) != TCP_HELLO_MAGIC || le32_load(conn->head + 4) != TCP_VERSION) {
            tcp_conn_fail(conn, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the peer did not welcome us");
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
        tcp_conn_fail(conn, STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_PEER), "no memory for TLS");
        return;
    }
    conn->state = conn->io.ssl ? CS_TLS : CS_HELLO;
    setup_step(conn);
}

static void conn_on_ready(struct kv_watch *watch, uint32_t events)
{
    struct conn *conn = (struct conn *)watch;
    if (conn->state == CS_RESOLVING) {
        tcp_lookup_answered(conn);
    } else if (conn->state != CS_READY) {
        setup_step(conn);
    } else if (conn->waits_for_stage) { /* nothing is asked for but the end, or it would be told for ever */
        tcp_conn_fail(conn, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the peer hung up");
    } else if (!conn->is_sender) {
        tcp_receiver_run(conn);
    } else if (((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && !tcp_sender_peer_lives(conn)) || !tcp_sender_pump(conn)) {
        tcp_conn_fail(conn, STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno), "the peer hung up");
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
    if (cable->strangers[at]) { tcp_conn_destroy(cable->strangers[at]); }
    struct conn *conn = tcp_conn_create(cable, fd, UINT32_MAX, false, cable->tls ? CS_TLS : CS_HELLO);
    if (!conn) {
        close(fd);
        return;
    }
    cable->strangers[at] = conn;
    if (!tcp_io_init(&conn->io, fd, cable->tls, false) || failed(kv_loop_watch(cable->host->loop, &conn->watch, EPOLLIN))) {
        tcp_conn_destroy(conn);
    }
}

/* ---- the ops */

static void tcp_close(struct kv_cable *cable)
{
    if (!cable) { return; }
    for (uint32_t i = 0; i < STRANGERS_MAX; i++) {
        if (cable->strangers[i]) { tcp_conn_destroy(cable->strangers[i]); }
    }
    for (uint32_t i = 0; cable->conns && i < cable->host->links_max; i++) {
        if (cable->conns[i]) { tcp_conn_destroy(cable->conns[i]); }
    }
    if (cable->listener.fd >= 0) {
        kv_loop_remove(cable->host->loop, &cable->listener);
        close(cable->listener.fd);
    }
    tcp_stages_close(cable);
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
    if (!failed(st)) { st = tcp_stages_open(cable, diag); }
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
static status_t tcp_offer(struct kv_cable *cable, uint32_t link, struct kv_cable_offer *ret_offer)
{
    (void)link;
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
    struct conn *conn = tcp_conn_create(cable, -1, link, true, CS_RESOLVING);
    if (!conn) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_PEER, ENOMEM); }
    conn->peer_port = (uint16_t)(offer[0] | offer[1] << 8);
    memcpy(conn->token, token, sizeof conn->token);
    cable->conns[link] = conn;
    status_t st = tcp_sender_resolve(conn, host);
    if (failed(st)) { tcp_conn_destroy(conn); }
    return st;
}

static void tcp_fence(struct kv_cable *cable, uint32_t link)
{
    if (cable->conns[link]) { tcp_conn_destroy(cable->conns[link]); }
}

static const char *tcp_address(const struct kv_cable *cable) { return cable->address; }

const struct kv_cable_ops kv_cable_tcp = {
    .name = "tcp",
    .places_at_destination = true,
    .open = tcp_open,
    .offer = tcp_offer,
    .connect = tcp_connect,
    .push = tcp_sender_push,
    .abort = tcp_sender_abort,
    .fence = tcp_fence,
    .close = tcp_close,
    .address = tcp_address,
};
