#include "tests/unit/rpc/rpc_testing.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

static void note_late(struct ear *ear)
{
    if (ear->dones > 0) {
        ear->out_of_order++;
    }
}

static void hear_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    struct ear *ear = user;
    pthread_mutex_lock(&ear->lock);
    note_late(ear);
    if (ear->counts_messages) {
        uint32_t number = UINT32_MAX;
        if (len >= sizeof number) {
            memcpy(&number, bytes, sizeof number);
        }
        ear->out_of_order += number != ear->messages;
    }
    ear->messages++;
    ear->bytes += len;
    ear->last_len = len < sizeof ear->last ? len : sizeof ear->last;
    memcpy(ear->last, bytes, ear->last_len);
    pthread_cond_broadcast(&ear->changed);
    pthread_mutex_unlock(&ear->lock);
    if (ear->react != NULL) {
        ear->react(ear, call, bytes, len);
    }
}

static void hear_half_close(void *user, struct rpc_call *call)
{
    struct ear *ear = user;
    pthread_mutex_lock(&ear->lock);
    note_late(ear);
    ear->half_closes++;
    pthread_cond_broadcast(&ear->changed);
    pthread_mutex_unlock(&ear->lock);
    if (ear->react_half_close != NULL) {
        ear->react_half_close(ear, call);
    }
}

static void hear_writable(void *user, struct rpc_call *call)
{
    struct ear *ear = user;
    pthread_mutex_lock(&ear->lock);
    note_late(ear);
    ear->writables++;
    pthread_cond_broadcast(&ear->changed);
    pthread_mutex_unlock(&ear->lock);
    if (ear->react_writable != NULL) {
        ear->react_writable(ear, call);
    }
}

static void copy_value(char *out, size_t cap, const struct rpc_metadata *pair)
{
    snprintf(out, cap, "%.*s", (int)pair->value_len, pair->value);
}

static void hear_done(void *user, struct rpc_call *call, const struct rpc_outcome *outcome)
{
    (void)call;
    struct ear *ear = user;
    pthread_mutex_lock(&ear->lock);
    ear->dones++;
    ear->outcome.code = outcome->code;
    ear->outcome.metadata_count = outcome->metadata_count;
    snprintf(ear->text, sizeof ear->text, "%s", outcome->message);
    for (size_t i = 0; i < outcome->metadata_count; i++) {
        if (strcmp(outcome->metadata[i].key, RPC_RETRY_KEY) == 0) {
            copy_value(ear->retry_hint, sizeof ear->retry_hint, &outcome->metadata[i]);
        }
        if (strcmp(outcome->metadata[i].key, "x-trailing") == 0) {
            copy_value(ear->trailing, sizeof ear->trailing, &outcome->metadata[i]);
        }
    }
    pthread_cond_broadcast(&ear->changed);
    pthread_mutex_unlock(&ear->lock);
}

const struct rpc_callbacks ear_callbacks = {
    .on_message = hear_message,
    .on_half_close = hear_half_close,
    .on_writable = hear_writable,
    .on_done = hear_done,
};

void ear_init(struct ear *ear)
{
    memset(ear, 0, sizeof *ear);
    pthread_mutex_init(&ear->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&ear->changed, &attr);
    pthread_condattr_destroy(&attr);
}

void ear_fini(struct ear *ear)
{
    rpc_call_unref(ear->call);
    pthread_cond_destroy(&ear->changed);
    pthread_mutex_destroy(&ear->lock);
}

uint32_t ear_get(struct ear *ear, const uint32_t *field)
{
    pthread_mutex_lock(&ear->lock);
    uint32_t value = *field;
    pthread_mutex_unlock(&ear->lock);
    return value;
}

void ear_wait(struct ear *ear, const uint32_t *field, uint32_t value)
{
    uint64_t end_ns = clock_now_ns() + PATIENCE_NS;
    struct timespec end = {.tv_sec = (time_t)(end_ns / NS_PER_S), .tv_nsec = (long)(end_ns % NS_PER_S)};
    pthread_mutex_lock(&ear->lock);
    int err = 0;
    while (*field < value && err == 0) {
        err = pthread_cond_timedwait(&ear->changed, &ear->lock, &end);
    }
    uint32_t got = *field;
    pthread_mutex_unlock(&ear->lock);
    if (got < value) {
        fail_msg("waited in vain: %u of %u (messages %u, half closes %u, done %u)", got, value, ear->messages,
                 ear->half_closes, ear->dones);
    }
}

static status_t accept_ear(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    struct rig *rig = service;
    uint32_t index = atomic_fetch_add(&rig->ear_count, 1);
    if (index >= atomic_load(&rig->ear_total)) {
        diag_set(diag, "nobody expects this call");
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_REQUEST);
    }
    struct ear *ear = rig->ears[index];
    rpc_call_ref(call);
    pthread_mutex_lock(&ear->lock);
    ear->call = call;
    ear->next = 1;
    pthread_cond_broadcast(&ear->changed);
    pthread_mutex_unlock(&ear->lock);
    *ret_handler = (struct rpc_handler){.callbacks = &ear_callbacks, .user = ear};
    return STATUS_OK;
}

static void echo_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    (void)user;
    (void)!rpc_call_send(call, bytes, len).code;
}

static void echo_half_close(void *user, struct rpc_call *call)
{
    (void)user;
    rpc_call_finish_status(call, STATUS_OK, "", 0);
}

static const struct rpc_callbacks echo_callbacks = {.on_message = echo_message, .on_half_close = echo_half_close};

static status_t accept_echo(void *service, struct rpc_call *call, struct rpc_handler *ret_handler, struct diag *diag)
{
    (void)service;
    (void)call;
    (void)diag;
    ret_handler->callbacks = &echo_callbacks;
    return STATUS_OK;
}

static const char *const loopback[] = {"127.0.0.1:0"};

void rig_init(struct rig *rig)
{
    memset(rig, 0, sizeof *rig);
    rig->server_config.listen = loopback;
    rig->server_config.listen_count = 1;
}

void rig_start(struct rig *rig)
{
    struct diag diag = {.text = ""};
    assert_false(failed(rpc_runtime_create(2, &rig->runtime)));
    if (failed(rpc_server_create(rig->runtime, &rig->server_config, &rig->server, &diag)) ||
        failed(rpc_server_register(rig->server, "/test.T/Ear", accept_ear, rig, &diag)) ||
        failed(rpc_server_register(rig->server, "/test.T/Echo", accept_echo, rig, &diag)) ||
        failed(rpc_server_start(rig->server, &diag))) {
        fail_msg("%s", diag.text);
    }
    snprintf(rig->target, sizeof rig->target, "127.0.0.1:%u", rpc_server_port(rig->server, 0));
    rig->channel_config.target = rig->target;
    if (failed(rpc_channel_create(rig->runtime, &rig->channel_config, &rig->channel, &diag))) {
        fail_msg("%s", diag.text);
    }
}

void rig_stop(struct rig *rig)
{
    rpc_channel_destroy(rig->channel);
    rpc_server_destroy(rig->server);
    rpc_runtime_destroy(rig->runtime);
    for (uint32_t i = 0; i < rig->ear_total; i++) {
        assert_true(rig->ears[i]->dones <= 1);
        assert_int_equal(rig->ears[i]->out_of_order, 0);
        ear_fini(rig->ears[i]);
    }
}

void rig_expect(struct rig *rig, struct ear *ear)
{
    ear_init(ear);
    uint32_t index = atomic_load(&rig->ear_total);
    rig->ears[index] = ear;
    atomic_store(&rig->ear_total, index + 1); /* publishes the line above to the rpc threads */
}

struct rpc_call *channel_call(struct rpc_channel *channel, const char *method, uint64_t deadline_ns, struct ear *ear)
{
    struct diag diag = {.text = ""};
    struct rpc_call *call = NULL;
    struct rpc_call_options options = {
        .method = method,
        .deadline_ns = deadline_ns,
        .callbacks = &ear_callbacks,
        .user = ear,
    };
    if (failed(rpc_channel_call(channel, &options, &call, &diag))) {
        fail_msg("%s", diag.text);
    }
    return call;
}

struct rpc_call *rig_call(struct rig *rig, const char *method, struct ear *ear)
{
    return channel_call(rig->channel, method, RPC_NO_DEADLINE, ear);
}

/* ---- the relay: one connection at a time ---- */

struct relay {
    int listener;
    uint16_t port, to_port;
    pthread_t thread;
    atomic_bool is_frozen, is_cut, is_stopped;
};

static void close_with_rst(int fd)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(fd);
}

static bool pass(int from, int to)
{
    char bytes[65536];
    ssize_t got = read(from, bytes, sizeof bytes);
    for (ssize_t at = 0; at < got;) {
        ssize_t put = send(to, bytes + at, (size_t)(got - at), MSG_NOSIGNAL);
        if (put <= 0) {
            return false;
        }
        at += put;
    }
    return got > 0;
}

static void relay_serve(struct relay *relay, int in)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(relay->to_port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int out = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool is_open = connect(out, (struct sockaddr *)&address, sizeof address) == 0;
    while (is_open && !atomic_load(&relay->is_cut) && !atomic_load(&relay->is_stopped)) {
        struct pollfd fds[2] = {{.fd = in, .events = POLLIN}, {.fd = out, .events = POLLIN}};
        if (atomic_load(&relay->is_frozen)) {
            poll(NULL, 0, 5);
            continue;
        }
        if (poll(fds, 2, 5) <= 0) {
            continue;
        }
        if ((fds[0].revents != 0 && !pass(in, out)) || (fds[1].revents != 0 && !pass(out, in))) {
            is_open = false;
        }
    }
    close_with_rst(in);
    close_with_rst(out);
}

static void *relay_run(void *arg)
{
    struct relay *relay = arg;
    while (!atomic_load(&relay->is_stopped)) {
        struct pollfd fd = {.fd = relay->listener, .events = POLLIN};
        if (poll(&fd, 1, 5) <= 0) {
            continue;
        }
        int in = accept(relay->listener, NULL, NULL);
        if (in >= 0 && !atomic_load(&relay->is_cut)) {
            relay_serve(relay, in);
        } else if (in >= 0) {
            close_with_rst(in);
        }
    }
    return NULL;
}

struct relay *relay_start(uint16_t to_port)
{
    struct relay *relay = calloc(1, sizeof *relay);
    assert_non_null(relay);
    relay->to_port = to_port;
    relay->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    assert_int_equal(bind(relay->listener, (struct sockaddr *)&address, len), 0);
    assert_int_equal(listen(relay->listener, 8), 0);
    assert_int_equal(getsockname(relay->listener, (struct sockaddr *)&address, &len), 0);
    relay->port = ntohs(address.sin_port);
    assert_int_equal(pthread_create(&relay->thread, NULL, relay_run, relay), 0);
    return relay;
}

uint16_t relay_port(const struct relay *relay)
{
    return relay->port;
}

void relay_freeze(struct relay *relay)
{
    atomic_store(&relay->is_frozen, true);
}

void relay_cut(struct relay *relay)
{
    atomic_store(&relay->is_cut, true);
}

void relay_stop(struct relay *relay)
{
    atomic_store(&relay->is_stopped, true);
    pthread_join(relay->thread, NULL);
    close(relay->listener);
    free(relay);
}
