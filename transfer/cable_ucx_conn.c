/* cable_ucx_conn: a connection's life: its worker and endpoint, its turns, and its end.
 * Flow:    the loop -> a worker's event fd, the cable's turns and ticks -> [cable_ucx_conn] -> P's half or D's
 * Thread:  the transfer thread.
 * Memory:  the connection, P's frames, and one buffer per message under way. */
#include "transfer/cable_ucx_state.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

static void conn_turn(struct conn *conn);

/* ---- what calls turns */

void ucx_conn_schedule(struct conn *conn)
{
    struct kv_cable *cable = conn->cable;
    if (conn->turn_due || conn->is_gone) { return; }
    conn->turn_due = true;
    conn->turn_next = NULL;
    if (cable->due_first) { cable->due_last->turn_next = conn; } else { cable->due_first = conn; }
    cable->due_last = conn;
    uint64_t one = 1;
    ssize_t wrote = write(cable->turns.fd, &one, sizeof one);
    (void)wrote; /* EAGAIN only: the counter is full, so it is readable */
}

static void unschedule(struct conn *conn)
{
    struct kv_cable *cable = conn->cable;
    struct conn **at = &cable->due_first, *last = NULL;
    while (*at) {
        if (*at == conn) {
            *at = conn->turn_next;
        } else {
            last = *at;
            at = &(*at)->turn_next;
        }
    }
    cable->due_last = last;
    conn->turn_due = false;
}

void ucx_on_turns(struct kv_watch *watch, uint32_t events)
{
    (void)events;
    struct kv_cable *cable = (struct kv_cable *)((char *)watch - offsetof(struct kv_cable, turns));
    uint64_t count;
    ssize_t got = read(watch->fd, &count, sizeof count);
    (void)got;
    /* Those that are due now; who becomes due in these turns waits for the loop to come round. */
    struct conn *last = cable->due_last;
    while (cable->due_first) {
        struct conn *conn = cable->due_first;
        bool is_last = conn == last;
        unschedule(conn);
        conn_turn(conn);
        if (is_last) { break; }
    }
    if (cable->due_first) {
        uint64_t one = 1;
        ssize_t wrote = write(watch->fd, &one, sizeof one);
        (void)wrote;
    }
}

static void on_worker_ready(struct kv_watch *watch, uint32_t events)
{
    (void)events;
    conn_turn((struct conn *)watch);
}

void ucx_ticks_set(struct kv_cable *cable, bool on)
{
    if (cable->ticking == on) { return; }
    struct itimerspec every = {.it_interval = {.tv_nsec = on ? TICK_MS * 1000000L : 0}};
    every.it_value = every.it_interval;
    timerfd_settime(cable->ticks.fd, 0, &every, NULL);
    cable->ticking = on;
}

/* ---- creation */

void ucx_conn_break(struct conn *conn, ucx_status_t status)
{
    if (conn->is_broken) { return; }
    conn->is_broken = true;
    conn->broken_status = status;
}

static void on_endpoint_error(void *arg, void *endpoint, ucx_status_t status)
{
    (void)endpoint;
    ucx_conn_break(arg, status); /* from inside progress: the turn that called it goes on to report it */
}

static ucx_status_t on_message(struct conn *conn, enum ucx_message kind, const void *data, size_t bytes,
                               const struct ucx_am_recv_param *param)
{
    struct mail *mail = NULL;
    if (conn->is_gone || conn->is_broken || conn->state == CS_LATE) { return UCX_OK; }
    bool too_much = (param->recv_attr & UCX_AM_RECV_ATTR_FLAG_RNDV) || conn->mail_count == MAIL_MAX || bytes > 1u << 20;
    if (!too_much) { mail = malloc(sizeof *mail + bytes); }
    if (!mail) {
        ucx_conn_break(conn, -1);
        return UCX_OK;
    }
    mail->next = NULL;
    mail->kind = kind;
    mail->bytes = bytes;
    if (bytes) { memcpy(mail->data, data, bytes); }
    if (conn->mail_first) { conn->mail_last->next = mail; } else { conn->mail_first = mail; }
    conn->mail_last = mail;
    conn->mail_count++;
    return UCX_OK;
}

#define ON_MESSAGE(name, kind)                                                                                      \
    static ucx_status_t name(void *arg, const void *header, size_t header_bytes, void *data, size_t bytes,          \
                             const struct ucx_am_recv_param *param)                                                 \
    {                                                                                                               \
        (void)header;                                                                                               \
        (void)header_bytes;                                                                                         \
        return on_message(arg, kind, data, bytes, param);                                                           \
    }
ON_MESSAGE(on_hello, UCX_MSG_HELLO)
ON_MESSAGE(on_welcome, UCX_MSG_WELCOME)
ON_MESSAGE(on_grant, UCX_MSG_GRANT)
ON_MESSAGE(on_frame, UCX_MSG_FRAME)

static ucx_status_t listen_to(struct conn *conn, enum ucx_message kind, ucx_am_recv_fn on_it)
{
    const struct ucx_am_handler_param param = {
        .field_mask = UCX_AM_HANDLER_PARAM_FIELD_ID | UCX_AM_HANDLER_PARAM_FIELD_FLAGS |
                      UCX_AM_HANDLER_PARAM_FIELD_CB | UCX_AM_HANDLER_PARAM_FIELD_ARG,
        .id = kind, .flags = UCX_AM_FLAG_WHOLE_MSG, .cb = on_it, .arg = conn,
    };
    return conn->cable->api->worker_set_am_recv_handler(conn->worker, &param);
}

static void conn_free(struct conn *conn)
{
    ucx_sender_fini(conn);
    free(conn->sums);
    while (conn->mail_first) {
        struct mail *mail = conn->mail_first;
        conn->mail_first = mail->next;
        free(mail);
    }
    memset(conn->token, 0, sizeof conn->token);
    free(conn);
}

status_t ucx_conn_create(struct kv_cable *cable, uint32_t link, bool is_sender, struct conn **ret_conn)
{
    const struct ucx_api *api = cable->api;
    struct conn *conn = calloc(1, sizeof *conn);
    if (!conn) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_PEER, ENOMEM); }
    conn->cable = cable;
    conn->link = link;
    conn->is_sender = is_sender;
    conn->state = is_sender ? CS_HELLO : CS_OFFERED;
    conn->watch.fd = -1;
    conn->watch.on_ready = on_worker_ready;
    conn->since_ns = clock_now_ns();
    if (is_sender) { conn->frames = calloc(FRAMES_MAX, sizeof *conn->frames); }
    bool made = ucx_sums_make(conn) && (conn->frames || !is_sender);
    /* Serialized and not single: the context was made on the thread that created the endpoint. */
    const struct ucx_worker_params params = {.field_mask = UCX_WORKER_PARAM_FIELD_THREAD_MODE,
                                             .thread_mode = UCX_THREAD_MODE_SERIALIZED};
    struct ucx_worker_attr attr = {.field_mask = UCX_WORKER_ATTR_FIELD_ADDRESS | UCX_WORKER_ATTR_FIELD_ADDRESS_FLAGS,
                                   .address_flags = UCX_WORKER_ADDRESS_FLAG_NET_ONLY};
    ucx_status_t st = made ? api->worker_create(cable->context, &params, &conn->worker) : -1;
    if (st == UCX_OK) {
        cable->stats.workers_kept++;
        st = api->worker_get_efd(conn->worker, &conn->watch.fd);
    }
    if (st == UCX_OK) { st = listen_to(conn, UCX_MSG_HELLO, on_hello); }
    if (st == UCX_OK) { st = listen_to(conn, UCX_MSG_WELCOME, on_welcome); }
    if (st == UCX_OK) { st = listen_to(conn, UCX_MSG_GRANT, on_grant); }
    if (st == UCX_OK) { st = listen_to(conn, UCX_MSG_FRAME, on_frame); }
    if (st == UCX_OK) { st = api->worker_query(conn->worker, &attr); }
    if (st == UCX_OK) {
        conn->address = attr.address;
        conn->address_bytes = attr.address_length;
    }
    if (st != UCX_OK || conn->address_bytes > UCX_ADDRESS_BYTES_MAX ||
        failed(kv_loop_watch(cable->host->loop, &conn->watch, EPOLLIN))) {
        if (conn->worker) {
            if (conn->address) { api->worker_release_address(conn->worker, conn->address); }
            api->worker_destroy(conn->worker);
            cable->stats.workers_kept--;
        }
        conn_free(conn);
        return STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, st);
    }
    cable->conns[link] = conn;
    ucx_ticks_set(cable, true);
    ucx_conn_schedule(conn); /* the first arming */
    *ret_conn = conn;
    return STATUS_OK;
}

ucx_status_t ucx_conn_dial(struct conn *conn, const void *address)
{
    /* PEER: requests end in errors, not in silence, when the peer dies. No loopback: two endpoints of
     * one process are still two. */
    const struct ucx_ep_params params = {
        .field_mask = UCX_EP_PARAM_FIELD_REMOTE_ADDRESS | UCX_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCX_EP_PARAM_FIELD_ERR_HANDLER | UCX_EP_PARAM_FIELD_FLAGS,
        .address = address,
        .err_mode = UCX_ERR_HANDLING_MODE_PEER,
        .err_handler = {.cb = on_endpoint_error, .arg = conn},
        .flags = UCX_EP_PARAMS_FLAGS_NO_LOOPBACK,
    };
    ucx_status_t st = conn->cable->api->ep_create(conn->worker, &params, &conn->endpoint);
    if (st != UCX_OK) { conn->endpoint = NULL; }
    return st;
}

static void on_parcel_sent(void *request, ucx_status_t status, void *user)
{
    struct parcel *parcel = user;
    struct conn *conn = parcel->conn;
    conn->cable->api->request_free(request);
    conn->open--;
    if (status != UCX_OK) { ucx_conn_break(conn, status); }
    free(parcel);
}

bool ucx_conn_send(struct conn *conn, enum ucx_message kind, const void *bytes, size_t size)
{
    struct parcel *parcel = malloc(sizeof *parcel + size);
    if (!parcel) {
        ucx_conn_break(conn, -1);
        return false;
    }
    parcel->conn = conn;
    memcpy(parcel->data, bytes, size);
    const struct ucx_request_param param = {
        .op_attr_mask = UCX_OP_ATTR_FIELD_CALLBACK | UCX_OP_ATTR_FIELD_USER_DATA | UCX_OP_ATTR_FIELD_FLAGS,
        .flags = UCX_AM_SEND_FLAG_EAGER,
        .cb.send = on_parcel_sent,
        .user_data = parcel,
    };
    ucx_request_t request = conn->cable->api->am_send_nbx(conn->endpoint, kind, NULL, 0, parcel->data, size, &param);
    ucx_status_t st = ucx_status_of(request);
    if (st == UCX_INPROGRESS) {
        conn->open++;
    } else {
        free(parcel);
        if (st != UCX_OK) { ucx_conn_break(conn, st); }
    }
    ucx_conn_schedule(conn);
    return !conn->is_broken;
}

bool ucx_conn_lanes(const struct conn *conn, char *ret_text, size_t size)
{
    struct ucx_transport_entry entries[16];
    struct ucx_ep_attr attr = {.field_mask = UCX_EP_ATTR_FIELD_TRANSPORTS,
                               .transports = {.entries = entries, .num_entries = 16, .entry_size = sizeof entries[0]}};
    ret_text[0] = '\0';
    if (conn->cable->api->ep_query(conn->endpoint, &attr) != UCX_OK) { return false; }
    bool all_rdma = attr.transports.num_entries > 0;
    size_t chars = 0;
    for (unsigned i = 0; i < attr.transports.num_entries && chars < size; i++) {
        const char *name = entries[i].transport_name;
        all_rdma &= strncmp(name, "rc_", 3) == 0 || strncmp(name, "dc_", 3) == 0 || strncmp(name, "ud_", 3) == 0;
        int wrote = snprintf(ret_text + chars, size - chars, "%s%s/%s", i ? " " : "", name, entries[i].device_name);
        chars += wrote > 0 ? (size_t)wrote : 0;
    }
    return all_rdma;
}

/* ---- the end */

static bool is_empty(const struct conn *conn) { return conn->open == 0 && conn->closing == NULL; }

/* Lets UCX end what it has of this connection. False: not in time. */
static bool drain(struct conn *conn, uint64_t limit_ns)
{
    const struct ucx_api *api = conn->cable->api;
    uint64_t until_ns = clock_now_ns() + limit_ns;
    do {
        if (conn->closing && api->request_check_status(conn->closing) != UCX_INPROGRESS) {
            api->request_free(conn->closing);
            conn->closing = NULL;
        }
        if (is_empty(conn)) { return true; }
        api->worker_progress(conn->worker);
    } while (clock_now_ns() < until_ns);
    return false;
}

static void worker_end(struct conn *conn)
{
    conn->cable->api->worker_destroy(conn->worker);
    conn->worker = NULL;
    conn->cable->stats.workers_kept--;
}

static void log_closed(const struct conn *conn)
{
    if (conn->state != CS_READY) { return; }
    /* Bytes by the time with puts under way; no put, no figure. */
    double gb_s = conn->busy_ns ? (double)conn->put_bytes / (double)conn->busy_ns : 0;
    LOGF(LOG_INFO, "ucx_closed", "link=%u role=%s s=%.1f put_bytes=%lu gb_s=%.2f", conn->link, conn->is_sender ? "p" : "d",
         (double)(clock_now_ns() - conn->since_ns) / (double)NS_PER_S, (unsigned long)conn->put_bytes, gb_s);
}

void ucx_conn_destroy(struct conn *conn)
{
    struct kv_cable *cable = conn->cable;
    const struct ucx_api *api = cable->api;
    log_closed(conn);
    cable->conns[conn->link] = NULL;
    unschedule(conn);
    kv_loop_remove(cable->host->loop, &conn->watch);
    conn->is_gone = true;
    /* First what is only queued; the endpoint may answer with a push or an abort of another's. */
    ucx_sender_drop_queues(conn);
    if (conn->rkey) { api->rkey_destroy(conn->rkey); }
    conn->rkey = NULL;
    if (conn->address) { api->worker_release_address(conn->worker, conn->address); }
    conn->address = NULL;
    if (conn->endpoint) {
        const struct ucx_request_param force = {.op_attr_mask = UCX_OP_ATTR_FIELD_FLAGS, .flags = UCX_EP_CLOSE_FLAG_FORCE};
        ucx_request_t closing = api->ep_close_nbx(conn->endpoint, &force);
        conn->closing = ucx_is_request(closing) ? closing : NULL;
        conn->endpoint = NULL;
    }
    bool drained = drain(conn, DRAIN_NS);
    ucx_sender_collect(conn);
    if (drained) {
        worker_end(conn);
    } else {
        cable->stats.drains_forced++;
        LOGF(LOG_WARN, "ucx_drain_forced", "link=%u role=%s requests=%u ms=%u", conn->link, conn->is_sender ? "p" : "d",
             conn->open, DRAIN_NS / 1000000u);
        if (!conn->is_sender) {
            /* Its worker is left alone from here on, and costs what it costs: D must know that nothing lands. */
            ucx_pool_revoke(cable);
        }
        conn->state = CS_LATE;
        conn->late_until_ns = clock_now_ns() + LATE_DRAIN_NS;
        conn->late_next = cable->late;
        cable->late = conn;
        ucx_ticks_set(cable, true);
        return;
    }
    conn->state = CS_OVER;
    ucx_conn_release(conn);
}

void ucx_conn_release(struct conn *conn)
{
    if (conn->state == CS_OVER && !conn->in_turn && !conn->in_sum && conn->sums_busy == 0) { conn_free(conn); }
}

void ucx_conn_fail(struct conn *conn, status_t status, const char *text)
{
    const struct kv_cable_host *host = conn->cable->host;
    uint32_t link = conn->link;
    LOGF(LOG_INFO, "ucx_lost", "link=%u role=%s cause=%d text=\"%s\"", link, conn->is_sender ? "p" : "d", status.cause, text);
    ucx_conn_destroy(conn);
    host->lost(host->endpoint, link, status, text);
}

/* P's connections that were fenced with requests under way: their sources are read until they end. */
static bool late_step(struct conn *conn)
{
    struct kv_cable *cable = conn->cable;
    bool given_up = clock_now_ns() >= conn->late_until_ns;
    if (conn->is_sender && !drain(conn, 0) && !given_up) {
        ucx_sender_collect(conn);
        return false;
    }
    ucx_sender_collect(conn);
    if (conn->is_sender && is_empty(conn)) {
        worker_end(conn);
    } else if (conn->is_sender) {
        /* No hardware retries for this long. UCX has lost a request: the worker is left where it is. */
        for (uint32_t i = 0; i < FRAMES_MAX; i++) {
            struct kv_cable_push *push = conn->frames[i].push;
            conn->frames[i].push = NULL;
            if (!push) { continue; }
            push->dropped = true;
            cable->host->push_done(cable->host->endpoint, push);
        }
        return true; /* the memory stays with the requests that point to it */
    } else {
        return given_up; /* D's: never progressed again, so never emptied */
    }
    conn->state = CS_OVER;
    ucx_conn_release(conn);
    return true;
}

static void late_run(struct kv_cable *cable)
{
    struct conn *rest = cable->late;
    cable->late = NULL;
    while (rest) {
        struct conn *conn = rest;
        rest = conn->late_next;
        if (late_step(conn)) { continue; }
        conn->late_next = cable->late;
        cable->late = conn;
    }
}

void ucx_late_end(struct kv_cable *cable)
{
    uint64_t until_ns = clock_now_ns() + NS_PER_S;
    while (cable->late && clock_now_ns() < until_ns) { late_run(cable); }
    for (struct conn *conn = cable->late; conn; conn = conn->late_next) { conn->late_until_ns = 0; }
    late_run(cable);
}

/* ---- turns */

/* What is left, unless the connection is over, waits for a sum of D's device. */
static void mail_read(struct conn *conn)
{
    while (conn->mail_first && !conn->is_gone && !conn->is_broken) {
        struct mail *mail = conn->mail_first;
        conn->mail_first = mail->next;
        conn->mail_count--;
        bool was_read = true;
        if (conn->is_sender) { ucx_sender_mail(conn, mail); } else { was_read = ucx_receiver_mail(conn, mail); }
        if (was_read) {
            free(mail);
            continue;
        }
        mail->next = conn->mail_first;
        if (!conn->mail_first) { conn->mail_last = mail; }
        conn->mail_first = mail;
        conn->mail_count++;
        return;
    }
}

static void report_broken(struct conn *conn)
{
    char text[160], words[100];
    ucx_status_t status = conn->broken_status;
    ucx_api_last_words(words, sizeof words);
    bool told = words[0] != '\0' && conn->cable->host->ucx.api == NULL;
    snprintf(text, sizeof text, "%s%s%s", conn->cable->api->status_string(status), told ? "; UCX says: " : "", told ? words : "");
    ucx_conn_fail(conn, STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, status), text);
}

static void conn_turn(struct conn *conn)
{
    const struct ucx_api *api = conn->cable->api;
    CHECK(!conn->in_turn);
    conn->in_turn = true;
    bool again = false;
    unsigned steps = 0;
    mail_read(conn);
    /* While mail waits the worker stands still: what P sends then waits at its end, and P with it. */
    while (!conn->is_gone && !conn->is_broken && !conn->mail_first && steps < PROGRESS_MAX) {
        unsigned moved = api->worker_progress(conn->worker);
        steps++;
        if (conn->is_broken) { break; }
        again = false;
        if (conn->is_sender) { again = ucx_sender_run(conn); }
        if (!conn->is_gone) { mail_read(conn); }
        if (moved == 0 || conn->is_gone || again) { break; }
    }
    if (!conn->is_gone && conn->is_broken) { report_broken(conn); }
    if (!conn->is_gone && failed(kv_loop_watch(conn->cable->host->loop, &conn->watch, conn->mail_first ? 0 : EPOLLIN))) {
        ucx_conn_break(conn, -1);
        report_broken(conn);
    }
    if (!conn->is_gone && !conn->mail_first) {
        /* What is there already keeps the worker from being armed: then it has another turn. */
        ucx_status_t armed = again || steps == PROGRESS_MAX ? UCX_ERR_BUSY : api->worker_arm(conn->worker);
        if (armed == UCX_ERR_BUSY) {
            ucx_conn_schedule(conn);
        } else if (armed != UCX_OK) {
            ucx_conn_break(conn, armed);
            report_broken(conn);
        }
    }
    conn->in_turn = false;
    ucx_conn_release(conn);
}

void ucx_on_tick(struct kv_watch *watch, uint32_t events)
{
    (void)events;
    struct kv_cable *cable = (struct kv_cable *)((char *)watch - offsetof(struct kv_cable, ticks));
    uint64_t count;
    ssize_t got = read(watch->fd, &count, sizeof count);
    (void)got; /* several at once count as one: we stood still, not the peer */
    late_run(cable);
    bool any = cable->late != NULL;
    /* Of the link's time to connect the next cable must have some left. */
    uint32_t connect_ticks = (uint32_t)(cable->host->connect_ns * 2 / 5 / (TICK_MS * NS_PER_MS));
    uint32_t stall_ticks = (uint32_t)(cable->host->connect_ns / (TICK_MS * NS_PER_MS));
    for (uint32_t i = 0; i < cable->host->links_max; i++) {
        struct conn *conn = cable->conns[i];
        if (!conn) { continue; }
        bool connecting = conn->state == CS_HELLO, sending = conn->frames_busy > 0;
        any |= connecting || sending || conn->state == CS_OFFERED;
        /* A UD lane, which wires up the others, may hand its messages to UCX's own thread, and that one does not
         * always signal the worker's descriptor: seen over Soft-RoCE, where a welcome took 6 s. */
        if (connecting || sending || conn->state == CS_OFFERED) { ucx_conn_schedule(conn); }
        conn->ticks = connecting || sending ? conn->ticks + 1 : 0;
        if (connecting && conn->ticks > connect_ticks) {
            ucx_conn_fail(conn, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "the peer did not answer in time");
        } else if (sending && conn->ticks > stall_ticks) {
            ucx_conn_fail(conn, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "puts are under way and none ends");
        }
    }
    if (!any) { ucx_ticks_set(cable, false); }
}
