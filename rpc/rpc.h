/* rpc: gRPC calls that carry bytes, for servers and clients alike.
 * Flow:    peer -> gRPC C core -> [rpc] -> callbacks of the service; sends go the other way
 * Thread:  every function may be called from any thread, also from inside callbacks, unless it
 *          says otherwise. Callbacks run on the runtime's rpc threads: those of one call always
 *          on the same one, so never two at once, and never inside a call into this header.
 *          No lock is held while a callback runs. A callback must not block: it holds up all
 *          calls of its thread. Hand the work to a ring instead.
 * Memory:  calls, queued messages and received messages are on the heap, bounded by the limits
 *          in the configs.
 *
 * One type, struct rpc_call, is both sides of all four gRPC call kinds, since on the wire they
 * are one thing: messages in, messages out, a half close, a status.
 *
 * The life of a call
 *   server  accept callback; then on_message*, on_half_close at most once, on_writable*;
 *           then on_done exactly once. The handler ends the call with rpc_call_finish().
 *   client  rpc_channel_call(); then on_message*, on_writable*; then on_done exactly once.
 * on_done always comes: after a status, a cancel on either side, a lapsed deadline, the death of
 * the peer, shutdown of server or channel. Nothing is called after it.
 *
 * Who keeps a call alive
 *   The library holds a call from its birth until on_done has returned. Whoever uses the
 *   pointer after that, or cannot know whether on_done has come (any other thread), holds a
 *   reference of its own: rpc_call_ref(), rpc_call_unref(). Using a call that is done is safe
 *   with a reference: sends are refused, cancel does nothing. */
#ifndef BATON_RPC_RPC_H
#define BATON_RPC_RPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

struct rpc_runtime; /* the rpc threads of one process */
struct rpc_server;
struct rpc_channel;
struct rpc_call;
struct rpc_buffer; /* refcounted bytes of one message */

/* As a deadline: none. */
#define RPC_NO_DEADLINE UINT64_MAX

/* One metadata pair.
 * key    lower case a-z 0-9 - _ . ; "grpc-" is gRPC's own except grpc-retry-pushback-ms
 * value  printable ASCII; any bytes where the key ends in "-bin". Not terminated. */
struct rpc_metadata {
    const char *key;
    const char *value;
    size_t value_len;
};

/* The hint that goes with RESOURCE_EXHAUSTED: decimal milliseconds until a retry makes sense
 * (gRFC A6 names it). */
#define RPC_RETRY_KEY "grpc-retry-pushback-ms"

/* How a call ended. */
struct rpc_outcome {
    uint8_t code;        /* enum status_code */
    const char *message; /* UTF-8, terminated, never NULL */
    size_t metadata_count;
    const struct rpc_metadata *metadata; /* trailing metadata; client side only, else 0 */
};

/* What the owner of a call hears. NULL members are skipped. */
struct rpc_callbacks {
    /* One message. Borrows: bytes are gone when it returns. len may be 0. */
    void (*on_message)(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len);
    /* Server: the client will send no more. Comes after the last on_message. */
    void (*on_half_close)(void *user, struct rpc_call *call);
    /* The send queue was above half of one of its limits and no longer is. */
    void (*on_writable)(void *user, struct rpc_call *call);
    /* The last callback of the call. Server: code is what was sent by rpc_call_finish() where
     * the transport took it; CANCELLED where the client cancelled or went away, or the call was
     * cancelled here; DEADLINE_EXCEEDED where its deadline lapsed; at once, also when nothing
     * is being written. Client: the server's status, or gRPC's own (UNAVAILABLE: the peer is
     * dead or cannot be reached). A client gets all messages that came before an OK first, so
     * an OK waits while reads are paused; any other status does not wait, and drops the one
     * message that may have been held back. `outcome` is gone when it returns. */
    void (*on_done)(void *user, struct rpc_call *call, const struct rpc_outcome *outcome);
};

/* Bounds of one call's send queue. Zero picks the default. A message always fits into an
 * empty queue, whatever its size. */
struct rpc_send_limits {
    uint32_t messages_max; /* default 1024 */
    size_t bytes_max;      /* default 4 MiB */
};

/* PEM files. All NULL with enabled = false: plain text. Borrows: read in create. */
struct rpc_tls {
    bool enabled;
    const char *cert_file; /* own chain; a server must have one; a client for mTLS */
    const char *key_file;
    const char *ca_file; /* server: clients must show a certificate of this CA (mTLS).
                            client: the server's CA; NULL uses the system's roots. */
    const char *server_name; /* client: the name to expect in the certificate; NULL: the target's */
};

/* How soon a silent peer is found dead: time + timeout. Zero picks the default.
 * Both sides may ping at these rates: neither side punishes pings. */
struct rpc_keepalive {
    uint32_t time_ms;    /* silence before a ping; default 2000 */
    uint32_t timeout_ms; /* then without an answer the connection is dropped; default 2000 */
};

/* ---- runtime ---------------------------------------------------------------------------- */

/* Starts `thread_count` rpc threads (0: 2). Calls are spread over them.
 * ret_runtime  Returns owned.
 * Errors       RESOURCE_EXHAUSTED (node): no thread could be started. */
NODISCARD status_t rpc_runtime_create(uint32_t thread_count, struct rpc_runtime **ret_runtime);

/* Waits for the last call's on_done, then stops the threads. Destroy its servers and channels
 * first. Not from a callback. NULL is fine. */
void rpc_runtime_destroy(struct rpc_runtime *runtime);

/* ---- server ----------------------------------------------------------------------------- */

struct rpc_server_config {
    const char *const *listen; /* [listen_count] "host:port", "[::]:port", "unix:/path"; port 0 picks */
    uint32_t listen_count;     /* 1 .. RPC_LISTEN_MAX */
    struct rpc_tls tls;
    uint32_t message_bytes_max; /* longest message taken; 0: 4 MiB; a longer one ends its call */
    uint32_t calls_max;         /* calls open at once; 0: 4096; over it: RESOURCE_EXHAUSTED */
    uint32_t retry_hint_ms;     /* the hint sent with that; 0: 100 */
    struct rpc_keepalive keepalive;
    struct rpc_send_limits send_limits; /* of every call, until rpc_call_set_send_limits() */
};
#define RPC_LISTEN_MAX 16u

/* What a new call gets. Filled by the accept callback. */
struct rpc_handler {
    const struct rpc_callbacks *callbacks; /* Holds until on_done has returned */
    void *user;
};

/* A client called. Fill *ret_handler and return OK, or refuse: the client gets the status code
 * and diag's text, and no callback comes (calls that only need a refusal with metadata accept,
 * then rpc_call_finish()). Metadata, peer and deadline can be read here already; sending and
 * finishing are allowed too. Thread: an rpc thread, that of the call's later callbacks. */
typedef status_t (*rpc_accept_fn)(void *service, struct rpc_call *call, struct rpc_handler *ret_handler,
                                  struct diag *diag);

/* Makes a server on `runtime`, which it Holds until rpc_server_destroy(). Nothing listens yet.
 * config   Borrows.
 * Errors   INVALID_ARGUMENT (node): a limit or a PEM file is wrong; diag names it. */
NODISCARD status_t rpc_server_create(struct rpc_runtime *runtime, const struct rpc_server_config *config,
                                     struct rpc_server **ret_server, struct diag *diag);

/* Serves `method` ("/package.Service/Method", copied). Before rpc_server_start().
 * service  handed to `accept`; Holds until rpc_server_destroy().
 * Errors   INVALID_ARGUMENT: not of that form. ALREADY_EXISTS. FAILED_PRECONDITION: started. */
NODISCARD status_t rpc_server_register(struct rpc_server *server, const char *method, rpc_accept_fn accept,
                                       void *service, struct diag *diag);

/* Binds all addresses and starts to take calls. A method nobody registered is answered with
 * UNIMPLEMENTED.
 * Errors   UNAVAILABLE (node): an address cannot be bound; diag names it. The server can only
 *          be destroyed then. */
NODISCARD status_t rpc_server_start(struct rpc_server *server, struct diag *diag);

/* The port bound for config->listen[index]; 0 before start and for unix sockets. */
uint16_t rpc_server_port(const struct rpc_server *server, uint32_t index);

/* Calls open now. */
uint32_t rpc_server_call_count(const struct rpc_server *server);

/* The service of registered method `index` ("package.Service"); NULL past the last. The same
 * name comes once per method. */
const char *rpc_server_service_name(const struct rpc_server *server, uint32_t index);

/* Stops listening, tells clients to go elsewhere (GOAWAY), waits for open calls for `grace_ns`,
 * then cancels the rest. Returns when every call's on_done has returned. Once; later calls
 * return at once. Not from a callback. */
void rpc_server_shutdown(struct rpc_server *server, uint64_t grace_ns);

/* Shuts down without grace where that has not happened, then frees. NULL is fine. Not from a
 * callback. Objects that registered methods outlive it. */
void rpc_server_destroy(struct rpc_server *server);

/* ---- client ----------------------------------------------------------------------------- */

enum rpc_channel_state {
    RPC_CHANNEL_IDLE,
    RPC_CHANNEL_CONNECTING,
    RPC_CHANNEL_READY,
    RPC_CHANNEL_TRANSIENT_FAILURE, /* will try again by itself */
    RPC_CHANNEL_SHUTDOWN,
};

struct rpc_channel_config {
    const char *target; /* "host:port", "ipv4:a.b.c.d:port", "unix:/path", "dns:///name:port" */
    struct rpc_tls tls;
    struct rpc_keepalive keepalive;
    uint32_t message_bytes_max;        /* longest message taken; 0: 4 MiB */
    uint32_t reconnect_backoff_min_ms; /* 0: 100 */
    uint32_t reconnect_backoff_max_ms; /* 0: 1000 */
    struct rpc_send_limits send_limits;
    /* Optional. Connects at once, and is told every change of state, on an rpc thread. */
    void (*on_state)(void *user, struct rpc_channel *channel, enum rpc_channel_state state);
    void *on_state_user; /* Holds until rpc_channel_destroy() has returned */
};

/* A connection to one target, made when first needed (or at once with on_state), and made again
 * by itself. Channels share no connection with one another. No retries, no proxies, no service
 * config: what happens to a call is the caller's decision.
 * config   Borrows.
 * Errors   INVALID_ARGUMENT (node): target missing, or a PEM file; diag names it. A target that
 *          cannot be resolved shows as UNAVAILABLE on its calls. */
NODISCARD status_t rpc_channel_create(struct rpc_runtime *runtime, const struct rpc_channel_config *config,
                                      struct rpc_channel **ret_channel, struct diag *diag);

/* Cancels its open calls (each gets its on_done, perhaps after this returns) and frees it once
 * they are gone. NULL is fine. on_state is not called after it returned, unless it is called
 * from a callback. */
void rpc_channel_destroy(struct rpc_channel *channel);

/* try_connect  starts to connect where it is idle. */
enum rpc_channel_state rpc_channel_state(struct rpc_channel *channel, bool try_connect);

struct rpc_call_options {
    const char *method;   /* "/package.Service/Method" */
    uint64_t deadline_ns; /* on the clock of clock_now_ns(); RPC_NO_DEADLINE; 0 is none too */
    bool wait_for_ready;  /* false: UNAVAILABLE at once while the target cannot be reached */
    const struct rpc_metadata *metadata; /* [metadata_count] Borrows */
    size_t metadata_count;
    const struct rpc_callbacks *callbacks; /* Holds until on_done has returned */
    void *user;
};

/* Starts a call.
 * options   Borrows.
 * ret_call  Returns owned: one reference, to be given back with rpc_call_unref(), also after
 *           on_done. Callbacks may run before this returns. May be NULL: fire and forget.
 * Errors    INVALID_ARGUMENT: method or metadata is malformed; no callback comes. */
NODISCARD status_t rpc_channel_call(struct rpc_channel *channel, const struct rpc_call_options *options,
                                    struct rpc_call **ret_call, struct diag *diag);

/* ---- calls ------------------------------------------------------------------------------ */

void rpc_call_ref(struct rpc_call *call);
void rpc_call_unref(struct rpc_call *call); /* NULL is fine */

/* Queues one message; messages leave in the order of the calls.
 * bytes   Borrows (copied).
 * Errors  all (request), nothing was queued:
 *         RESOURCE_EXHAUSTED: the queue is full; on_writable will come, unless on_done does.
 *         FAILED_PRECONDITION: this side has half-closed or finished already.
 *         CANCELLED: the call is over, or is being cancelled; on_done has come or will.
 * Cost    one allocation and one copy. */
NODISCARD status_t rpc_call_send(struct rpc_call *call, const void *bytes, size_t len);

/* The same without a copy. Takes one reference of `buffer` on success; the bytes must not
 * change any more. One buffer may be sent on many calls. */
NODISCARD status_t rpc_call_send_buffer(struct rpc_call *call, struct rpc_buffer *buffer);

/* Replaces the bounds of the send queue; what is queued stays. */
void rpc_call_set_send_limits(struct rpc_call *call, const struct rpc_send_limits *limits);

/* Bytes and messages that wait in this call's queue or are being written. ret_ may be NULL. */
void rpc_call_send_queue(struct rpc_call *call, size_t *ret_bytes, uint32_t *ret_messages);

/* Back-pressure inwards: after a pause inside a callback of this call no on_message comes until
 * resume (from another thread: one may just be running). The peer is stopped by HTTP/2 flow
 * control once about a window is buffered. Pausing twice is pausing once. */
void rpc_call_pause_reads(struct rpc_call *call);
void rpc_call_resume_reads(struct rpc_call *call);

/* Client: no more messages from this side; queued ones still leave. Repeating it does nothing.
 * Server: does nothing; a server ends with rpc_call_finish(). */
void rpc_call_half_close(struct rpc_call *call);

/* Server: ends the call with a status, after the queued messages. on_done follows.
 * message   copied; NULL is "".
 * metadata  [count] Borrows; trailing metadata, for example RPC_RETRY_KEY. May be NULL.
 * Errors    INVALID_ARGUMENT: metadata is malformed; the call goes on.
 *           FAILED_PRECONDITION: finished already, or a client's call.
 *           CANCELLED: the call is over. */
NODISCARD status_t rpc_call_finish(struct rpc_call *call, uint8_t code, const char *message,
                                   const struct rpc_metadata *metadata, size_t count);

/* The short form: a status from inside with its sentence; a failure to send it is none, since
 * then on_done comes anyway. retry_ms > 0 adds RPC_RETRY_KEY. */
void rpc_call_finish_status(struct rpc_call *call, status_t status, const char *message, uint32_t retry_ms);

/* Ends the call now, from either side: queued messages are dropped, the peer sees CANCELLED,
 * on_done(CANCELLED) follows here. Does nothing on a call that is over. */
void rpc_call_cancel(struct rpc_call *call);

/* "ipv4:127.0.0.1:54321". Written and terminated within cap (cap >= 1), cut if longer. Before a
 * client is connected: the target. */
void rpc_call_peer(struct rpc_call *call, char *ret_peer, size_t cap);

/* The name that the peer's certificate proved (mTLS): its first subject alternative name, else
 * the common name. "" and false without TLS or without a certificate. */
bool rpc_call_peer_identity(struct rpc_call *call, char *ret_identity, size_t cap);

/* The server side's method, "/package.Service/Method"; the client side's too. Lives as long as
 * the call. */
const char *rpc_call_method(const struct rpc_call *call);

/* On the clock of clock_now_ns(); RPC_NO_DEADLINE. */
uint64_t rpc_call_deadline_ns(const struct rpc_call *call);

/* The first value of `key` in what the peer sent first: on a server the request metadata
 * ("authorization" and custom keys), on a client the response's, from its first on_message or
 * on_done on. NULL: none. Not terminated; lives as long as the call.
 * Thread: in callbacks of this call; on a server from any thread. */
const char *rpc_call_metadata(const struct rpc_call *call, const char *key, size_t *ret_len);

/* ---- buffers ---------------------------------------------------------------------------- */

/* One message to be filled in place: pack straight into ret_bytes [len].
 * ret_buffer  Returns owned (one reference).
 * Errors      RESOURCE_EXHAUSTED (request): no memory. */
NODISCARD status_t rpc_buffer_create(size_t len, struct rpc_buffer **ret_buffer, uint8_t **ret_bytes);
void rpc_buffer_ref(struct rpc_buffer *buffer);
void rpc_buffer_unref(struct rpc_buffer *buffer); /* NULL is fine */

#endif
