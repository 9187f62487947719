#include "transfer/tcp_io.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

struct tcp_tls {
    SSL_CTX *client;
    SSL_CTX *server;
};

static SSL_CTX *context_make(const SSL_METHOD *method, const struct kv_endpoint_tls *files, struct diag *diag)
{
    SSL_CTX *context = SSL_CTX_new(method);
    const char *wrong = NULL;
    const char *file = "";
    if (!context) {
        wrong = "no TLS context";
    } else if (SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1) {
        wrong = "no TLS 1.3";
    } else if (SSL_CTX_use_certificate_chain_file(context, file = files->cert_file) != 1) {
        wrong = "not a readable certificate chain in PEM";
    } else if (SSL_CTX_use_PrivateKey_file(context, file = files->key_file, SSL_FILETYPE_PEM) != 1 ||
               SSL_CTX_check_private_key(context) != 1) {
        wrong = "not a readable private key in PEM, or not of the certificate";
    } else if (SSL_CTX_load_verify_locations(context, file = files->ca_file, NULL) != 1) {
        wrong = "not a readable CA file in PEM";
    }
    if (wrong) {
        diag_set(diag, "tcp cable: %s: %s", file, wrong);
        SSL_CTX_free(context);
        return NULL;
    }
    /* Both pools share one CA; whoever shows a certificate of it may open a connection, and
     * the token says for which link. So names are not compared. */
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(context, 0); /* links are few and long: no resumption */
    return context;
}

status_t tcp_tls_create(const struct kv_endpoint_tls *files, struct diag *diag, struct tcp_tls **ret_tls)
{
    struct tcp_tls *tls = calloc(1, sizeof *tls);
    if (!tls) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    tls->client = context_make(TLS_client_method(), files, diag);
    tls->server = tls->client ? context_make(TLS_server_method(), files, diag) : NULL;
    ERR_clear_error();
    if (!tls->server) {
        tcp_tls_destroy(tls);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    *ret_tls = tls;
    return STATUS_OK;
}

void tcp_tls_destroy(struct tcp_tls *tls)
{
    if (!tls) { return; }
    SSL_CTX_free(tls->client);
    SSL_CTX_free(tls->server);
    free(tls);
}

bool tcp_io_init(struct tcp_io *io, int fd, struct tcp_tls *tls, bool is_client)
{
    io->fd = fd;
    io->ssl = NULL;
    io->write_waits = false;
    if (!tls) { return true; }
    SSL *ssl = SSL_new(is_client ? tls->client : tls->server);
    if (!ssl || SSL_set_fd(ssl, fd) != 1) {
        SSL_free(ssl);
        return false;
    }
    if (is_client) { SSL_set_connect_state(ssl); } else { SSL_set_accept_state(ssl); }
    io->ssl = ssl;
    return true;
}

void tcp_io_fini(struct tcp_io *io)
{
    SSL_free(io->ssl); /* by force: no close_notify, which could block */
    io->ssl = NULL;
}

enum tcp_handshake tcp_io_handshake(struct tcp_io *io, uint32_t *ret_epoll, char *ret_why, size_t why_bytes)
{
    ERR_clear_error();
    int result = SSL_do_handshake(io->ssl);
    if (result == 1) { return TCP_HANDSHAKE_DONE; }
    int reason = SSL_get_error(io->ssl, result);
    if (reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_WANT_WRITE) {
        *ret_epoll = reason == SSL_ERROR_WANT_READ ? EPOLLIN : EPOLLOUT;
        return TCP_HANDSHAKE_WAITS;
    }
    const char *text = ERR_reason_error_string(ERR_peek_last_error());
    long verified = SSL_get_verify_result(io->ssl);
    snprintf(ret_why, why_bytes, "TLS: %s%s%s", text ? text : "the peer hung up", verified != X509_V_OK ? ": " : "",
             verified != X509_V_OK ? X509_verify_cert_error_string(verified) : "");
    ERR_clear_error();
    return TCP_HANDSHAKE_FAILED;
}

/* OpenSSL's answer as read and write give it. */
static ssize_t tls_result(struct tcp_io *io, int result)
{
    int reason = SSL_get_error(io->ssl, result);
    if (reason == SSL_ERROR_ZERO_RETURN) { return 0; }
    /* A key update may make a write wait for input, or the other way round; the connection
     * is watched for input always, and the peer's next bytes bring us back here. */
    int cause = errno;
    errno = reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_WANT_WRITE ? EAGAIN
            : reason == SSL_ERROR_SYSCALL && cause != 0                     ? cause
                                                                            : EPROTO;
    ERR_clear_error();
    return -1;
}

ssize_t tcp_io_read(struct tcp_io *io, struct iovec *iov, int pieces)
{
    if (!io->ssl) {
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)pieces};
        return recvmsg(io->fd, &msg, MSG_DONTWAIT);
    }
    size_t bytes = iov[0].iov_len < (1u << 30) ? iov[0].iov_len : 1u << 30;
    ERR_clear_error();
    int got = SSL_read(io->ssl, iov[0].iov_base, (int)bytes);
    return got > 0 ? got : tls_result(io, got);
}

ssize_t tcp_io_write(struct tcp_io *io, struct iovec *iov, int pieces)
{
    if (!io->ssl) {
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)pieces};
        return sendmsg(io->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    size_t bytes = iov[0].iov_len < (1u << 30) ? iov[0].iov_len : 1u << 30;
    ERR_clear_error();
    int sent = SSL_write(io->ssl, iov[0].iov_base, (int)bytes);
    io->write_waits = sent <= 0;
    return sent > 0 ? sent : tls_result(io, sent);
}

ssize_t tcp_io_discard(struct tcp_io *io, uint64_t bytes)
{
    size_t want = bytes < (1u << 20) ? (size_t)bytes : 1u << 20;
    if (!io->ssl) { return recv(io->fd, NULL, want, MSG_DONTWAIT | MSG_TRUNC); } /* TCP: dropped in the kernel */
    uint8_t scratch[16384];
    struct iovec iov = {.iov_base = scratch, .iov_len = want < sizeof scratch ? want : sizeof scratch};
    return tcp_io_read(io, &iov, 1);
}
