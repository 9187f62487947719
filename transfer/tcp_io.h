/* tcp_io: reads and writes of one TCP connection, plain or TLS, behind one face.
 * Thread:  the transfer thread.
 * Memory:  OpenSSL's own, per connection; none when plain.
 *
 * All calls are non-blocking and answer as read and write do: bytes, 0 at the end, or -1 with
 * errno, EAGAIN when it would block. */
#ifndef BATON_TRANSFER_TCP_IO_H
#define BATON_TRANSFER_TCP_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "transfer/transfer.h"

struct tcp_tls; /* certificates; shared by all connections of a cable */

/* Reads the PEM files. Errors: INVALID_ARGUMENT (node); diag names the file. */
NODISCARD status_t tcp_tls_create(const struct kv_endpoint_tls *files, struct diag *diag, struct tcp_tls **ret_tls);
void tcp_tls_destroy(struct tcp_tls *tls); /* takes NULL */

struct tcp_io {
    int fd;
    void *ssl; /* NULL: plain */
    bool write_waits; /* TLS: a record is made and must go out before any other */
};

/* fd stays the caller's. tls NULL: plain. False: no memory. */
bool tcp_io_init(struct tcp_io *io, int fd, struct tcp_tls *tls, bool is_client);
void tcp_io_fini(struct tcp_io *io);

enum tcp_handshake { TCP_HANDSHAKE_DONE, TCP_HANDSHAKE_WAITS, TCP_HANDSHAKE_FAILED };
/* ret_epoll: what to wait for. ret_why: a sentence, when it failed. */
enum tcp_handshake tcp_io_handshake(struct tcp_io *io, uint32_t *ret_epoll, char *ret_why, size_t why_bytes);

ssize_t tcp_io_read(struct tcp_io *io, struct iovec *iov, int pieces);
ssize_t tcp_io_write(struct tcp_io *io, struct iovec *iov, int pieces);
/* Reads up to `bytes` and throws them away. */
ssize_t tcp_io_discard(struct tcp_io *io, uint64_t bytes);

#endif
