#include "bench/transfer/side.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "tests/conformance/peer.h"
#include "tests/conformance/socket_stream.h"

enum { PUSH_BLOCKS = 64, XFERS = 4, WAIT_MS = 30000 };

/* What the process is. */
struct process {
    struct side_config config;
    struct kv_layout layout;
    struct bench_pool pool;
    uint32_t *blocks; /* a permutation: scattered */
    struct kv_endpoint *endpoint;
    int fd;
    pthread_mutex_t mutex; /* what the endpoint's thread tells the one that pushes */
    pthread_cond_t changed;
    uint32_t pushes_done;
    bool ended[XFERS];
    double cpu_start_ns[XFERS];
};

static struct process process;

static double cpu_ns(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return 1e9 * (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + 1e3 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static void die(const char *what)
{
    fprintf(stderr, "%s side, %s: %s\n", process.config.receives ? "D" : "P", process.config.cable, what);
    _exit(1);
}

static void say(const struct side_fact *fact)
{
    if (send(process.fd, fact, sizeof *fact, MSG_NOSIGNAL) != (ssize_t)sizeof *fact) { _exit(0); } /* the bench is gone */
}

static void on_event(void *context, const struct kv_event *event)
{
    (void)context;
    uint64_t xfer = peer_xfer_of(event->xfer_id);
    struct side_fact fact = {.xfer = xfer, .at_ns = clock_now_ns(), .fenced = event->fenced};
    switch (event->kind) {
    case KV_EVENT_PUSH_DONE: break;
    case KV_EVENT_LANDED: fact.kind = SIDE_LANDED; break;
    case KV_EVENT_FAILED: fact.kind = SIDE_FAILED; break;
    case KV_EVENT_FENCED: fact.kind = SIDE_FENCED; break;
    case KV_EVENT_ACKED: fact.kind = SIDE_ACKED; break;
    case KV_EVENT_SEND_FAILED: fact.kind = SIDE_SEND_FAILED; break;
    }
    pthread_mutex_lock(&process.mutex);
    if (event->kind == KV_EVENT_PUSH_DONE) {
        process.pushes_done++;
    } else {
        process.ended[xfer % XFERS] = true;
    }
    pthread_cond_signal(&process.changed);
    pthread_mutex_unlock(&process.mutex);
    if (event->kind == KV_EVENT_PUSH_DONE) { return; }
    snprintf(fact.text, sizeof fact.text, "%s %.200s", status_code_name(event->status.code), event->text);
    if (event->stats.duration_ns > 0) {
        fact.gbps = (double)event->stats.bytes / (double)event->stats.duration_ns;
        fact.cpu_gbps = (double)event->stats.bytes / (cpu_ns() - process.cpu_start_ns[xfer % XFERS]);
    }
    say(&fact);
}

static void enter_netns(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "/run/netns/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, CLONE_NEWNET) != 0) { die("no such network namespace"); }
    close(fd);
    /* A /sys of its own besides, as "ip netns exec" has it: UCX looks for devices there. */
    if (unshare(CLONE_NEWNS) != 0 || mount("", "/", "none", MS_SLAVE | MS_REC, NULL) != 0) { die("no mount namespace"); }
    (void)umount2("/sys", MNT_DETACH);
    if (mount(name, "/sys", "sysfs", 0, NULL) != 0) { die("no sysfs"); }
}

static status_t endpoint_open(struct diag *diag)
{
    const struct side_config *config = &process.config;
    const uint8_t model_hash[32] = {7};
    char at[64];
    snprintf(at, sizeof at, "%s:0", config->ip ? config->ip : "127.0.0.1");
    struct socket_streams *streams = socket_streams_create(config->receives ? at : NULL);
    struct kv_endpoint_config endpoint = {
        .node_id = config->receives ? "d" : "p",
        .boot_epoch = clock_wall_ns(),
        .link_address = socket_streams_address(streams),
        .pool = process.pool.pool,
        .cables = config->cable,
        .ucx = {.mode = strcmp(config->cable, "ucx") == 0 ? KV_UCX_TRUST_NETWORK : KV_UCX_OFF, .library = config->ucx_library},
        .nccl = {.is_on = strcmp(config->cable, "nccl") == 0, .library = getenv("BATON_NCCL_LIBRARY")},
        .tcp_listen = config->receives ? at : NULL,
        .on_event = on_event,
        .stream = socket_stream_ops(),
        .stream_context = streams,
        .limits = {.grant_blocks_max = config->block_count, .grants_max = 4, .pushes_max = 64}, /* few, so that there is back-pressure */
    };
    if (endpoint.nccl.is_on) { endpoint.limits.connect_ns = 30 * NS_PER_S; } /* alone, a link waits for its communicator */
    kv_fingerprint_init(&endpoint.fingerprint, model_hash, &process.layout, "bench");
    TRY(kv_endpoint_create(&endpoint, diag, &process.endpoint));
    socket_streams_start(streams, process.endpoint);
    return STATUS_OK;
}

static void blocks_scatter(void)
{
    uint32_t count = process.config.block_count;
    unsigned seed = process.config.receives ? 1 : 2;
    process.blocks = malloc(count * sizeof *process.blocks);
    if (!process.blocks) { die("out of memory"); }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = (uint32_t)rand_r(&seed) % (i + 1);
        process.blocks[i] = process.blocks[at];
        process.blocks[at] = i;
    }
}

static void pool_fill(void)
{
    size_t slice_bytes = kv_layout_slice_bytes(&process.layout);
    for (uint32_t layer = 0; layer < process.layout.layer_count; layer++) {
        for (uint32_t i = 0; i < process.config.block_count; i++) {
            size_t offset = kv_layout_slice_offset(&process.layout, process.blocks[i], layer);
            peer_slice_fill(bench_pool_begin(&process.pool, offset), slice_bytes, 1, layer, i);
            bench_pool_put(&process.pool, offset, slice_bytes);
        }
    }
}

/* ---- orders */

static void do_grant(const struct side_order *order, struct side_fact *fact)
{
    size_t size = 0;
    process.ended[order->xfer % XFERS] = false;
    process.cpu_start_ns[order->xfer % XFERS] = cpu_ns();
    if (failed(kv_endpoint_grant(process.endpoint, peer_xfer_id(order->xfer), process.blocks + order->first, order->count, 120000,
                                 NULL, fact->ticket, &size))) {
        die("a grant was refused");
    }
    fact->kind = SIDE_TICKET;
    fact->ticket_bytes = (uint32_t)size;
}

/* False: the transfer is over. */
static bool push_one(kv_send_t send, const struct side_order *order, uint32_t layer, uint32_t first)
{
    uint32_t count = order->count - first < PUSH_BLOCKS ? order->count - first : PUSH_BLOCKS;
    bool *ended = &process.ended[order->xfer % XFERS];
    for (;;) {
        pthread_mutex_lock(&process.mutex);
        uint32_t seen = process.pushes_done;
        bool over = *ended;
        pthread_mutex_unlock(&process.mutex);
        if (over) { return false; }
        status_t st = kv_endpoint_push(process.endpoint, send, layer, first, process.blocks + order->first + first, count, 0);
        if (st.code != ST_RESOURCE_EXHAUSTED) { return !failed(st); }
        pthread_mutex_lock(&process.mutex);
        while (process.pushes_done == seen && !*ended) { pthread_cond_wait(&process.changed, &process.mutex); }
        pthread_mutex_unlock(&process.mutex);
    }
}

static void do_send(const struct side_order *order, struct side_fact *fact)
{
    struct diag diag = {.text = ""};
    kv_send_t send;
    bool goes_on = true;
    process.ended[order->xfer % XFERS] = false;
    process.cpu_start_ns[order->xfer % XFERS] = cpu_ns();
    if (failed(kv_endpoint_send_begin(process.endpoint, order->ticket, order->ticket_bytes, NULL, &diag, &send))) { die(diag.text); }
    for (uint32_t layer = 0; goes_on && layer < order->layers; layer++) {
        for (uint32_t first = 0; goes_on && first < order->count; first += PUSH_BLOCKS) { goes_on = push_one(send, order, layer, first); }
    }
    if (goes_on && order->layers == process.layout.layer_count) {
        goes_on = !failed(kv_endpoint_commit(process.endpoint, send, "", 0));
    }
    fact->kind = SIDE_PUSHED;
    fact->value = goes_on;
}

static void do_check(const struct side_order *order, struct side_fact *fact)
{
    size_t slice_bytes = kv_layout_slice_bytes(&process.layout);
    fact->kind = SIDE_CHECKED;
    for (uint32_t layer = 0; layer < process.layout.layer_count; layer++) {
        for (uint32_t i = 0; i < order->count; i++) {
            size_t offset = kv_layout_slice_offset(&process.layout, process.blocks[order->first + i], layer);
            fact->value += !peer_slice_matches(bench_pool_get(&process.pool, offset, slice_bytes), slice_bytes, 1, layer, order->first + i);
        }
    }
}

static void process_run(void)
{
    struct diag diag = {.text = ""};
    const struct side_config *config = &process.config;
    struct side_fact first = {.kind = SIDE_READY};
    log_set_level(getenv("BENCH_LOG") ? LOG_DEBUG : LOG_WARN); /* deaths are what is done here */
    if (config->netns) { enter_netns(config->netns); }
    if (config->nccl_host) { setenv("NCCL_HOSTID", config->nccl_host, 1); }
    process.layout = (struct kv_layout){.block_tokens = 16, .layer_count = config->layers, .kv_heads = config->slice_bytes / 4096,
                                        .head_dim = 64, .dtype = DTYPE_BF16}; /* 2 * 16 * 64 * 2 bytes a head and slice */
    status_t st = bench_pool_open(config->pool, config->block_count * kv_layout_block_bytes(&process.layout), config->device, &diag,
                                  &process.pool);
    if (!failed(st)) {
        blocks_scatter();
        if (config->is_filled && !config->receives) { pool_fill(); }
        st = endpoint_open(&diag);
    }
    if (failed(st)) {
        first.kind = SIDE_ABSENT;
        snprintf(first.text, sizeof first.text, "%.255s", diag.text[0] ? diag.text : status_code_name(st.code));
    }
    say(&first);
    struct side_order order;
    while (!failed(st) && recv(process.fd, &order, sizeof order, 0) == (ssize_t)sizeof order) {
        struct side_fact fact = {.xfer = order.xfer};
        switch (order.kind) {
        case SIDE_GRANT: do_grant(&order, &fact); break;
        case SIDE_SEND: do_send(&order, &fact); break;
        case SIDE_CHECK: do_check(&order, &fact); break;
        case SIDE_STATS: {
            struct kv_endpoint_stats stats;
            kv_endpoint_stats_get(process.endpoint, &stats);
            fact.kind = SIDE_COUNT;
            fact.value = stats.slices_landed;
            break;
        }
        }
        say(&fact);
    }
    _exit(0);
}

/* ---- the bench's end */

bool side_start(const struct side_config *config, struct side *ret_side, char *ret_why, size_t why_size)
{
    int fds[2];
    struct side_fact fact = {.text = "it ended at once"};
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) {
        perror("socketpair");
        exit(1);
    }
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* nothing is left behind when the bench is killed */
        close(fds[0]);
        process.config = *config;
        process.fd = fds[1];
        pthread_mutex_init(&process.mutex, NULL);
        pthread_cond_init(&process.changed, NULL);
        process_run();
    }
    close(fds[1]);
    *ret_side = (struct side){.pid = pid, .fd = fds[0]};
    if (pid < 0 || !side_hear(ret_side, WAIT_MS, &fact) || fact.kind != SIDE_READY) {
        snprintf(ret_why, why_size, "%s", fact.text);
        side_end(ret_side);
        return false;
    }
    return true;
}

void side_tell(const struct side *side, const struct side_order *order)
{
    if (send(side->fd, order, sizeof *order, MSG_NOSIGNAL) != (ssize_t)sizeof *order) {
        fprintf(stderr, "a side takes no more orders: it has ended\n");
        exit(1);
    }
}

bool side_hear(const struct side *side, int wait_ms, struct side_fact *ret_fact)
{
    struct pollfd fd = {.fd = side->fd, .events = POLLIN};
    return poll(&fd, 1, wait_ms) == 1 && recv(side->fd, ret_fact, sizeof *ret_fact, 0) == (ssize_t)sizeof *ret_fact;
}

void side_expect(const struct side *side, int kind, struct side_fact *ret_fact)
{
    while (side_hear(side, WAIT_MS, ret_fact)) {
        if ((int)ret_fact->kind == kind) { return; }
        if (ret_fact->kind == SIDE_FAILED || ret_fact->kind == SIDE_SEND_FAILED) {
            fprintf(stderr, "a transfer failed: %s\n", ret_fact->text);
            exit(1);
        }
    }
    fprintf(stderr, "a side does not answer\n");
    exit(1);
}

void side_end(struct side *side)
{
    if (side->pid <= 0) { return; }
    kill(side->pid, SIGKILL);
    while (waitpid(side->pid, NULL, 0) < 0) { }
    close(side->fd);
    side->pid = 0;
}
