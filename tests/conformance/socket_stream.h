/* socket_stream: the link's stream over plain sockets, for tests: messages with a length
 * before them, one thread per connection.
 * Flow:    endpoint -> [socket_stream] -> peer's socket_stream -> endpoint
 * Thread:  any; see transfer.h for what the endpoint asks. */
#ifndef BATON_TESTS_CONFORMANCE_SOCKET_STREAM_H
#define BATON_TESTS_CONFORMANCE_SOCKET_STREAM_H

#include "transfer/transfer.h"

struct socket_streams;

/* listen_at "host:port" (port 0 picks one), or NULL. Ends the process if it cannot: a test. */
struct socket_streams *socket_streams_create(const char *listen_at);
/* Where it listens: "127.0.0.1:40111". */
const char *socket_streams_address(const struct socket_streams *streams);
/* What the endpoint is created with; the context is the streams. */
struct kv_stream_ops socket_stream_ops(void);
/* Calls go to `endpoint` from now on; accepting starts. */
void socket_streams_start(struct socket_streams *streams, struct kv_endpoint *endpoint);
/* Before the endpoint is destroyed: no call into it comes after this returns. */
void socket_streams_stop(struct socket_streams *streams);
void socket_streams_destroy(struct socket_streams *streams);

#endif
