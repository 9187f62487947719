/* rpc_bench: what a message over gRPC costs on loopback, beside a plain TCP socket in the same run.
 *
 * Estimate: a message crosses the C core twice (a batch and a queue event on each side, about 2 us
 * each) and shares a system call with its neighbours when the queue is long, so 100,000 to 300,000
 * small messages/s on a core or two; a lone message and its echo pay four thread wake-ups and four
 * system calls, so 40 to 150 us where plain TCP pays 15 to 30. Large messages are bound by copies:
 * into the socket, out of it, and once to join slices.
 *
 * Prints one JSON line per case. Checks counts and bytes before it prints. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "rpc/rpc.h"

#define WINDOW_BYTES ((size_t)8 << 20)

struct side {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t messages, bytes;
    bool is_writable, is_done;
    uint8_t code;
};

static void side_init(struct side *side)
{
    memset(side, 0, sizeof *side);
    pthread_mutex_init(&side->lock, NULL);
    pthread_cond_init(&side->changed, NULL);
}

static void count_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    (void)call;
    (void)bytes;
    struct side *side = user;
    pthread_mutex_lock(&side->lock);
    side->messages++;
    side->bytes += len;
    pthread_cond_signal(&side->changed);
    pthread_mutex_unlock(&side->lock);
}

static void note_writable(void *user, struct rpc_call *call)
{
    (void)call;
    struct side *side = user;
    pthread_mutex_lock(&side->lock);
    side->is_writable = true;
    pthread_cond_signal(&side->changed);
    pthread_mutex_unlock(&side->lock);
}

static void note_done(void *user, struct rpc_call *call, const struct rpc_outcome *outcome)
{
    (void)call;
    struct side *side = user;
    pthread_mutex_lock(&side->lock);
    side->is_done = true;
    side->code = outcome->code;
    pthread_cond_signal(&side->changed);
    pthread_mutex_unlock(&side->lock);
}

static const struct rpc_callbacks client_callbacks = {
    .on_message = count_message, .on_writable = note_writable, .on_done = note_done};

static struct side sink_side;

static void sink_half_close(void *user, struct rpc_call *call)
{
    (void)user;
    rpc_call_finish_status(call, STATUS_OK, "", 0);
}

static const struct rpc_callbacks sink_callbacks = {.on_message = count_message, .on_half_close = sink_half_close};

static void echo_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    (void)user;
    (void)!rpc_call_send(call, bytes, len).code;
}

static const struct rpc_callbacks echo_callbacks = {.on_message = echo_message, .on_half_close = sink_half_close};

static status_t accept_any(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    (void)call;
    (void)diag;
    *ret_handler = (struct rpc_handler){.callbacks = service, .user = &sink_side};
    return STATUS_OK;
}

static struct rpc_call *call_start(struct rpc_channel *channel, const char *method, struct side *side)
{
    struct rpc_call_options options = {.method = method, .callbacks = &client_callbacks, .user = side};
    struct rpc_call *call = NULL;
    if (failed(rpc_channel_call(channel, &options, &call, NULL))) {
        abort();
    }
    return call;
}

static void finish(struct rpc_call *call, struct side *side)
{
    rpc_call_half_close(call);
    pthread_mutex_lock(&side->lock);
    while (!side->is_done) {
        pthread_cond_wait(&side->changed, &side->lock);
    }
    pthread_mutex_unlock(&side->lock);
    if (side->code != ST_OK) {
        fprintf(stderr, "the call ended with %s\n", status_code_name(side->code));
        exit(1);
    }
    rpc_call_unref(call);
}

static void stream_case(struct rpc_channel *channel, size_t len, uint64_t count)
{
    struct side side;
    side_init(&side);
    side_init(&sink_side);
    uint8_t *bytes = calloc(1, len);
    struct rpc_call *call = call_start(channel, "/bench.T/Sink", &side);
    uint64_t start = clock_now_ns();
    for (uint64_t i = 0; i < count;) {
        status_t st = rpc_call_send(call, bytes, len);
        if (st.code == ST_RESOURCE_EXHAUSTED) {
            pthread_mutex_lock(&side.lock);
            while (!side.is_writable) {
                pthread_cond_wait(&side.changed, &side.lock);
            }
            side.is_writable = false;
            pthread_mutex_unlock(&side.lock);
        } else if (failed(st)) {
            abort();
        } else {
            i++;
        }
    }
    finish(call, &side);
    double seconds = (double)(clock_now_ns() - start) / 1e9;
    if (sink_side.messages != count || sink_side.bytes != count * len) {
        fprintf(stderr, "messages were lost\n");
        exit(1);
    }
    printf("{\"bench\":\"rpc_stream\",\"message_bytes\":%zu,\"messages_per_s\":%.0f,\"gb_per_s\":%.3f}\n", len,
           (double)count / seconds, (double)(count * len) / seconds / 1e9);
    free(bytes);
}

static int compare_ns(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a;
    uint64_t right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

static void print_latency(const char *name, uint64_t *ns, size_t count)
{
    qsort(ns, count, sizeof *ns, compare_ns);
    printf("{\"bench\":\"%s\",\"p50_us\":%.1f,\"p99_us\":%.1f}\n", name, (double)ns[count / 2] / 1e3,
           (double)ns[count * 99 / 100] / 1e3);
}

/* Round trips one at a time: on one open stream, or a call for each. */
static void latency_case(struct rpc_channel *channel, bool one_call, size_t count)
{
    uint64_t *ns = calloc(count, sizeof *ns);
    struct side side;
    side_init(&side);
    struct rpc_call *call = one_call ? call_start(channel, "/bench.T/Echo", &side) : NULL;
    for (size_t i = 0; i < count; i++) {
        uint64_t start = clock_now_ns();
        if (!one_call) {
            side_init(&side);
            call = call_start(channel, "/bench.T/Echo", &side);
        }
        (void)!rpc_call_send(call, "0123456789abcdef", 16).code;
        if (one_call) {
            pthread_mutex_lock(&side.lock);
            while (side.messages <= i) {
                pthread_cond_wait(&side.changed, &side.lock);
            }
            pthread_mutex_unlock(&side.lock);
        } else {
            finish(call, &side);
        }
        ns[i] = clock_now_ns() - start;
    }
    if (one_call) {
        finish(call, &side);
    }
    print_latency(one_call ? "rpc_stream_round_trip" : "rpc_call_round_trip", ns, count);
    free(ns);
}

/* The other end of the plain socket: echoes 16-byte messages until the first byte is 1, then
 * counts bytes. */
static void *tcp_end(void *arg)
{
    int fd = *(int *)arg;
    static uint8_t bytes[1 << 20];
    uint64_t total = 0;
    ssize_t got;
    while ((got = read(fd, bytes, 16)) == 16 && bytes[0] == 0) {
        if (write(fd, bytes, 16) != 16) {
            abort();
        }
    }
    while ((got = read(fd, bytes, sizeof bytes)) > 0) {
        total += (uint64_t)got;
    }
    (void)!write(fd, &total, sizeof total);
    return NULL;
}

static void tcp_case(size_t count)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int out = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, len) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &len) != 0 ||
        connect(out, (struct sockaddr *)&address, len) != 0) {
        perror("loopback");
        exit(1);
    }
    int in = accept(listener, NULL, NULL);
    int on = 1;
    setsockopt(in, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(out, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    pthread_t thread;
    pthread_create(&thread, NULL, tcp_end, &in);
    uint64_t *ns = calloc(count, sizeof *ns);
    static uint8_t bytes[1 << 16];
    for (size_t i = 0; i < count; i++) {
        uint64_t start = clock_now_ns();
        if (write(out, bytes, 16) != 16 || read(out, bytes, 16) != 16) {
            abort();
        }
        ns[i] = clock_now_ns() - start;
    }
    print_latency("tcp_round_trip", ns, count);
    free(ns);
    bytes[0] = 1;
    if (write(out, bytes, 16) != 16) {
        abort();
    }
    uint64_t total = (uint64_t)2 << 30, sent = 0;
    uint64_t start = clock_now_ns();
    while (sent < total) {
        ssize_t put = write(out, bytes, sizeof bytes);
        if (put <= 0) {
            abort();
        }
        sent += (uint64_t)put;
    }
    shutdown(out, SHUT_WR);
    uint64_t landed = 0;
    if (read(out, &landed, sizeof landed) != sizeof landed || landed != sent) {
        fprintf(stderr, "bytes were lost\n");
        exit(1);
    }
    printf("{\"bench\":\"tcp_stream\",\"write_bytes\":65536,\"gb_per_s\":%.3f}\n",
           (double)sent / ((double)(clock_now_ns() - start) / 1e9) / 1e9);
    pthread_join(thread, NULL);
    close(in);
    close(out);
    close(listener);
}

int main(void)
{
    static const char *const listen_on[] = {"127.0.0.1:0"};
    struct rpc_server_config config = {.listen = listen_on, .listen_count = 1};
    struct rpc_runtime *runtime = NULL;
    struct rpc_server *server = NULL;
    struct rpc_channel *channel = NULL;
    struct diag diag = {.text = ""};
    if (failed(rpc_runtime_create(2, &runtime)) || failed(rpc_server_create(runtime, &config, &server, &diag)) ||
        failed(rpc_server_register(server, "/bench.T/Sink", accept_any, (void *)(uintptr_t)&sink_callbacks, &diag)) ||
        failed(rpc_server_register(server, "/bench.T/Echo", accept_any, (void *)(uintptr_t)&echo_callbacks, &diag)) ||
        failed(rpc_server_start(server, &diag))) {
        fprintf(stderr, "%s\n", diag.text);
        return 1;
    }
    char target[64];
    snprintf(target, sizeof target, "127.0.0.1:%u", rpc_server_port(server, 0));
    struct rpc_channel_config to = {.target = target, .send_limits.bytes_max = WINDOW_BYTES};
    if (failed(rpc_channel_create(runtime, &to, &channel, &diag))) {
        fprintf(stderr, "%s\n", diag.text);
        return 1;
    }
    side_init(&sink_side);
    latency_case(channel, true, 500); /* warm-up; its line is printed too, and says how cold it was */
    latency_case(channel, true, 5000);
    latency_case(channel, false, 3000);
    stream_case(channel, 64, 200000);
    stream_case(channel, 1024, 200000);
    stream_case(channel, 65536, 8000);
    stream_case(channel, 1 << 20, 500);
    tcp_case(5000);
    rpc_channel_destroy(channel);
    rpc_server_destroy(server);
    rpc_runtime_destroy(runtime);
    return 0;
}
