/* transfer_bench: how fast each cable moves KV slices between two processes, beside a
 * scattered memcpy and one iperf3 loopback stream of the same minutes.
 *
 * Estimate: shm reads each byte once to sum it (P), and once to copy and sum it (D), so with a
 * core each it runs at the speed of D's copy: one scattered memcpy, less what the sum costs
 * beside it (CRC32C runs at 3 to 5 times memcpy's speed). tcp copies twice, once in each
 * kernel half, as iperf3 does; the receiver sums what is still in its cache and its copies go
 * to cold blocks instead of one warm buffer.
 *
 * Run:  transfer_bench [--rounds=5] [--cables=shm,tcp,ucx] [--slices=65536,4096] [--mib=256] [--iperf3=no]
 * ucx is measured when it is named: over TCP lanes, by the library of BATON_UCX_LIBRARY.
 * One JSON line per figure: the median of the rounds, in GB/s (1e9), and the ratio to its
 * yardstick. Rounds are interleaved, so that all see the same machine. The cpu_gbps figures
 * divide by CPU time instead: on a machine with other work they still compare. */
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench/median.h"
#include "tests/conformance/peer.h"
#include "tests/conformance/socket_stream.h"

enum { LAYERS = 4, ROUNDS_MAX = 64, PUSH_BLOCKS = 64 };

/* What one side says of one transfer. */
struct answer {
    double gbps;
    double cpu_gbps; /* bytes by this process's own CPU time: what it could do with a core to itself */
};

static double cpu_ns(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return 1e9 * (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + 1e3 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* ---- the two processes; each takes one line of work at a time from its pipe */

struct side {
    struct kv_layout layout;
    struct kv_endpoint_pool pool;
    uint32_t block_count;
    uint32_t *blocks; /* a permutation: scattered */
    struct kv_endpoint *endpoint;
    struct socket_streams *streams;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint32_t pushes_done;
    bool ended;
    bool good;
    uint64_t duration_ns;
    char cable[16];
};

static void on_event(void *context, const struct kv_event *event)
{
    struct side *side = context;
    pthread_mutex_lock(&side->mutex);
    if (event->kind == KV_EVENT_PUSH_DONE) {
        side->pushes_done++;
    } else {
        side->ended = true;
        side->good = event->kind == KV_EVENT_LANDED || event->kind == KV_EVENT_ACKED;
        side->duration_ns = event->stats.duration_ns;
        snprintf(side->cable, sizeof side->cable, "%s", event->stats.cable);
        if (!side->good) { fprintf(stderr, "transfer failed: %s %s\n", status_code_name(event->status.code), event->text); }
    }
    pthread_cond_signal(&side->changed);
    pthread_mutex_unlock(&side->mutex);
}

static struct kv_layout layout_of(uint32_t slice_bytes)
{
    uint32_t heads = slice_bytes / 4096; /* 2 * 16 slots * 64 dims * 2 bytes each */
    return (struct kv_layout){.block_tokens = 16, .layer_count = LAYERS, .kv_heads = heads, .head_dim = 64, .dtype = DTYPE_BF16};
}

static void side_start(struct side *side, bool receives, const char *cable, uint32_t slice_bytes, uint32_t mib)
{
    struct diag diag = {.text = ""};
    const uint8_t model_hash[32] = {7};
    side->layout = layout_of(slice_bytes);
    side->block_count = (uint32_t)((uint64_t)mib * 1024 * 1024 / kv_layout_block_bytes(&side->layout));
    pthread_mutex_init(&side->mutex, NULL);
    pthread_cond_init(&side->changed, NULL);
    if (failed(kv_endpoint_pool_alloc(side->block_count * kv_layout_block_bytes(&side->layout), &diag, &side->pool))) { die(diag.text); }
    side->blocks = malloc(side->block_count * sizeof *side->blocks);
    if (!side->blocks) { die("malloc"); }
    unsigned seed = receives ? 1 : 2;
    for (uint32_t i = 0; i < side->block_count; i++) {
        uint32_t at = (uint32_t)rand_r(&seed) % (i + 1);
        side->blocks[i] = side->blocks[at];
        side->blocks[at] = i;
    }
    side->streams = socket_streams_create(receives ? "127.0.0.1:0" : NULL);
    struct kv_endpoint_config config = {.node_id = receives ? "d" : "p", .boot_epoch = 1,
        .link_address = socket_streams_address(side->streams), .pool = side->pool, .cables = cable,
        .ucx = {.mode = strcmp(cable, "ucx") == 0 ? KV_UCX_TRUST_NETWORK : KV_UCX_OFF, .library = getenv("BATON_UCX_LIBRARY")},
        .tcp_listen = receives ? "127.0.0.1:0" : NULL, .on_event = on_event, .on_event_context = side,
        .stream = socket_stream_ops(), .stream_context = side->streams};
    config.limits.grant_blocks_max = side->block_count;
    config.limits.grants_max = 4;
    config.limits.pushes_max = 64; /* small, so that the figure has back-pressure in it */
    kv_fingerprint_init(&config.fingerprint, model_hash, &side->layout, "bench");
    if (failed(kv_endpoint_create(&config, &diag, &side->endpoint))) { die(diag.text); }
    socket_streams_start(side->streams, side->endpoint);
}

static void end_wait(struct side *side)
{
    pthread_mutex_lock(&side->mutex);
    while (!side->ended) { pthread_cond_wait(&side->changed, &side->mutex); }
    side->ended = false;
    pthread_mutex_unlock(&side->mutex);
    if (!side->good) { exit(1); }
}

static void receiver_run(struct side *side, uint64_t number, int ticket_fd, int answer_fd)
{
    uint8_t ticket[KV_TICKET_BYTES_MAX];
    size_t size = 0;
    double cpu_start_ns = cpu_ns();
    if (failed(kv_endpoint_grant(side->endpoint, peer_xfer_id(number), side->blocks, side->block_count, 30000, NULL, ticket, &size)) ||
        write(ticket_fd, ticket, size) != (ssize_t)size) {
        die("grant");
    }
    end_wait(side);
    double bytes = (double)(side->block_count * kv_layout_block_bytes(&side->layout));
    struct answer answer = {.gbps = bytes / (double)side->duration_ns, .cpu_gbps = bytes / (cpu_ns() - cpu_start_ns)};
    for (uint32_t layer = 0; number == 1 && layer < LAYERS; layer++) { /* right before fast */
        for (uint32_t i = 0; i < side->block_count; i++) {
            if (!peer_slice_matches((uint8_t *)side->pool.base + kv_layout_slice_offset(&side->layout, side->blocks[i], layer),
                                    kv_layout_slice_bytes(&side->layout), 1, layer, i)) {
                fprintf(stderr, "slice %u of layer %u is wrong\n", i, layer);
                exit(1);
            }
        }
    }
    if (write(answer_fd, &answer, sizeof answer) != sizeof answer) { die("answer"); }
}

static void sender_run(struct side *side, const uint8_t *ticket, size_t size, int answer_fd)
{
    double cpu_start_ns = cpu_ns();
    kv_send_t send;
    struct diag diag;
    if (failed(kv_endpoint_send_begin(side->endpoint, ticket, size, NULL, &diag, &send))) { die(diag.text); }
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (uint32_t first = 0; first < side->block_count; first += PUSH_BLOCKS) {
            uint32_t count = side->block_count - first < PUSH_BLOCKS ? side->block_count - first : PUSH_BLOCKS;
            pthread_mutex_lock(&side->mutex);
            uint32_t seen = side->pushes_done;
            pthread_mutex_unlock(&side->mutex);
            while (kv_endpoint_push(side->endpoint, send, layer, first, side->blocks + first, count, 0).code == ST_RESOURCE_EXHAUSTED) {
                pthread_mutex_lock(&side->mutex);
                while (side->pushes_done == seen && !side->ended) { pthread_cond_wait(&side->changed, &side->mutex); }
                seen = side->pushes_done;
                pthread_mutex_unlock(&side->mutex);
            }
        }
    }
    if (failed(kv_endpoint_commit(side->endpoint, send, "", 0))) { die("commit"); }
    end_wait(side);
    double bytes = (double)(side->block_count * kv_layout_block_bytes(&side->layout));
    struct answer answer = {.gbps = bytes / (double)side->duration_ns, .cpu_gbps = bytes / (cpu_ns() - cpu_start_ns)};
    if (write(answer_fd, &answer, sizeof answer) != sizeof answer) { die("answer"); }
}

static void child_main(bool receives, const char *cable, uint32_t slice_bytes, uint32_t mib, int work_fd, int out_fd, int answer_fd)
{
    struct side side = {.ended = false};
    uint64_t number = 0;
    uint8_t work[KV_TICKET_BYTES_MAX];
    side_start(&side, receives, cable, slice_bytes, mib);
    for (uint32_t layer = 0; !receives && layer < LAYERS; layer++) {
        for (uint32_t i = 0; i < side.block_count; i++) {
            peer_slice_fill((uint8_t *)side.pool.base + kv_layout_slice_offset(&side.layout, side.blocks[i], layer),
                            kv_layout_slice_bytes(&side.layout), 1, layer, i);
        }
    }
    for (ssize_t got; (got = read(work_fd, work, sizeof work)) > 0;) {
        if (receives) {
            receiver_run(&side, ++number, out_fd, answer_fd);
        } else {
            sender_run(&side, work, (size_t)got, answer_fd);
        }
    }
    exit(0);
}

struct pair {
    const char *cable;
    uint32_t slice_bytes;
    int go_fd, receiver_fd, sender_fd;
    double gbps[ROUNDS_MAX], receiver_cpu[ROUNDS_MAX], sender_cpu[ROUNDS_MAX];
};

static void pair_start(struct pair *pair, uint32_t mib)
{
    int go[2], ticket[2], receiver[2], sender[2];
    if (pipe(go) != 0 || pipe(ticket) != 0 || pipe(receiver) != 0 || pipe(sender) != 0) { die("pipe"); }
    fflush(stdout);
    if (fork() == 0) {
        close(go[1]);
        close(ticket[0]);
        close(sender[1]);
        child_main(true, pair->cable, pair->slice_bytes, mib, go[0], ticket[1], receiver[1]);
    }
    if (fork() == 0) {
        close(go[1]);
        close(ticket[1]);
        close(receiver[1]);
        child_main(false, pair->cable, pair->slice_bytes, mib, ticket[0], -1, sender[1]);
    }
    close(go[0]);
    close(ticket[0]);
    close(ticket[1]);
    close(receiver[1]);
    close(sender[1]);
    pair->go_fd = go[1];
    pair->receiver_fd = receiver[0];
    pair->sender_fd = sender[0];
}

static void pair_measure(struct pair *pair, uint32_t round)
{
    struct answer receiver, sender;
    if (write(pair->go_fd, "g", 1) != 1 || read(pair->receiver_fd, &receiver, sizeof receiver) != sizeof receiver ||
        read(pair->sender_fd, &sender, sizeof sender) != sizeof sender) {
        fprintf(stderr, "the %s pair ended early\n", pair->cable);
        exit(1);
    }
    pair->gbps[round] = receiver.gbps;
    pair->receiver_cpu[round] = receiver.cpu_gbps;
    pair->sender_cpu[round] = sender.cpu_gbps;
}

/* ---- yardsticks */

static struct answer memcpy_measure(uint32_t slice_bytes, uint32_t mib)
{
    static uint8_t *from, *to;
    static size_t mapped;
    size_t bytes = (size_t)mib * 1024 * 1024;
    if (mapped != bytes) {
        from = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        to = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (from == MAP_FAILED || to == MAP_FAILED) { die("mmap"); }
        mapped = bytes;
    }
    uint32_t slices = (uint32_t)(bytes / slice_bytes);
    uint32_t *order = malloc(slices * sizeof *order);
    if (!order) { die("malloc"); }
    unsigned seed = 3;
    for (uint32_t i = 0; i < slices; i++) {
        uint32_t at = (uint32_t)rand_r(&seed) % (i + 1);
        order[i] = order[at];
        order[at] = i;
    }
    double cpu_start_ns = cpu_ns();
    uint64_t start_ns = clock_now_ns();
    for (uint32_t i = 0; i < slices; i++) {
        memcpy(to + (size_t)order[i] * slice_bytes, from + (size_t)order[slices - 1 - i] * slice_bytes, slice_bytes);
    }
    uint64_t duration_ns = clock_now_ns() - start_ns;
    free(order);
    return (struct answer){.gbps = (double)bytes / (double)duration_ns, .cpu_gbps = (double)bytes / (cpu_ns() - cpu_start_ns)};
}

static double number_after(const char *line, const char *key)
{
    const char *at = strstr(line, key);
    return at ? atof(at + strlen(key)) : 0;
}

/* One stream over loopback for a second; 0 when iperf3 is not installed. cpu_gbps is by the CPU
 * time of both ends together. */
static struct answer iperf3_measure(void)
{
    FILE *pipe_file = popen("iperf3 -s -1 -p 5271 >/dev/null 2>&1 & sleep 0.3; iperf3 -c 127.0.0.1 -p 5271 -t 1 -J 2>/dev/null", "r");
    if (!pipe_file) { return (struct answer){0, 0}; }
    char line[512];
    double bits = 0, cpu_percent = 0;
    bool received = false;
    while (fgets(line, sizeof line, pipe_file)) {
        received |= strstr(line, "\"sum_received\"") != NULL;
        if (received && bits == 0) { bits = number_after(line, "\"bits_per_second\":"); }
        cpu_percent += number_after(line, "\"host_total\":") + number_after(line, "\"remote_total\":");
    }
    pclose(pipe_file);
    return (struct answer){.gbps = bits / 8e9, .cpu_gbps = cpu_percent > 0 ? bits / 8e9 / (cpu_percent / 100) : 0};
}

static const char *option(int argc, char **argv, const char *key, const char *standard)
{
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], key, strlen(key)) == 0) { return argv[i] + strlen(key); }
    }
    return standard;
}

int main(int argc, char **argv)
{
    uint32_t rounds = (uint32_t)atoi(option(argc, argv, "--rounds=", "5"));
    uint32_t mib = (uint32_t)atoi(option(argc, argv, "--mib=", "256"));
    const char *cables = option(argc, argv, "--cables=", "shm,tcp");
    const char *slices = option(argc, argv, "--slices=", "65536,4096");
    const bool wants_iperf3 = strcmp(option(argc, argv, "--iperf3=", "yes"), "no") != 0;
    if (rounds < 1 || rounds > ROUNDS_MAX || mib < 1) { die("--rounds or --mib is out of range"); }
    signal(SIGPIPE, SIG_IGN);
    struct pair pairs[24];
    uint32_t pair_count = 0, slice_sizes[8], slice_count = 0;
    static const char *const known[] = {"shm", "tcp", "ucx"};
    for (const char *at = slices; *at && slice_count < 8; at += strcspn(at, ","), at += *at == ',') {
        slice_sizes[slice_count] = (uint32_t)atoi(at);
        if (slice_sizes[slice_count] == 0 || slice_sizes[slice_count] % 4096) { die("--slices takes multiples of 4096"); }
        for (uint32_t k = 0; k < 3; k++) {
            if (!strstr(cables, known[k])) { continue; }
            pairs[pair_count] = (struct pair){.cable = known[k], .slice_bytes = slice_sizes[slice_count]};
            pair_start(&pairs[pair_count++], mib);
        }
        slice_count++;
    }
    double copies[8][ROUNDS_MAX], copies_cpu[8][ROUNDS_MAX], iperf[ROUNDS_MAX], iperf_cpu[ROUNDS_MAX];
    for (uint32_t i = 0; i < pair_count; i++) { pair_measure(&pairs[i], 0); } /* warm-up, and the check of every byte */
    for (uint32_t round = 0; round < rounds; round++) {
        for (uint32_t i = 0; i < slice_count; i++) {
            struct answer copy = memcpy_measure(slice_sizes[i], mib);
            copies[i][round] = copy.gbps;
            copies_cpu[i][round] = copy.cpu_gbps;
        }
        struct answer stream = wants_iperf3 ? iperf3_measure() : (struct answer){.gbps = 0};
        iperf[round] = stream.gbps;
        iperf_cpu[round] = stream.cpu_gbps;
        for (uint32_t i = 0; i < pair_count; i++) { pair_measure(&pairs[i], round); }
    }
    double iperf_median = bench_median(iperf, rounds);
    printf("{\"bench\":\"iperf3_loopback\",\"gbps\":%.2f,\"both_cpu_gbps\":%.2f,\"rounds\":%u}\n", iperf_median, bench_median(iperf_cpu, rounds), rounds);
    for (uint32_t s = 0; s < slice_count; s++) {
        double copy = bench_median(copies[s], rounds);
        printf("{\"bench\":\"memcpy_scattered\",\"slice_bytes\":%u,\"gbps\":%.2f,\"cpu_gbps\":%.2f,\"rounds\":%u}\n", slice_sizes[s], copy,
               bench_median(copies_cpu[s], rounds), rounds);
        for (uint32_t i = 0; i < pair_count; i++) {
            if (pairs[i].slice_bytes != slice_sizes[s]) { continue; }
            double gbps = bench_median(pairs[i].gbps, rounds);
            printf("{\"bench\":\"kv_transfer\",\"cable\":\"%s\",\"slice_bytes\":%u,\"mib\":%u,\"gbps\":%.2f,\"of_memcpy\":%.2f,"
                   "\"of_iperf3\":%.2f,\"receiver_cpu_gbps\":%.2f,\"sender_cpu_gbps\":%.2f,\"rounds\":%u}\n",
                   pairs[i].cable, slice_sizes[s], mib, gbps, gbps / copy, iperf_median > 0 ? gbps / iperf_median : 0.0,
                   bench_median(pairs[i].receiver_cpu, rounds), bench_median(pairs[i].sender_cpu, rounds), rounds);
        }
    }
    for (uint32_t i = 0; i < pair_count; i++) { close(pairs[i].go_fd); }
    while (wait(NULL) > 0) { }
    return 0;
}
