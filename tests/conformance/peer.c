#include "tests/conformance/peer.h"

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/conformance/socket_stream.h"
#include "tests/kv_memory/fake_memory.h"
#include "tests/kv_memory/kv_convert.h"
#include "tests/nccl/fake_nccl.h"

enum { XFERS_MAX = 512, EVENTS_MAX = 8192, PUSH_BLOCKS = 48 };
#define CANARY UINT64_C(0xc0de5afec0de5afe)

/* ---- what both sides of a test know */

kv_xfer_id_t peer_xfer_id(uint64_t xfer)
{
    kv_xfer_id_t id;
    for (int i = 0; i < 8; i++) {
        id.bytes[i] = 0xb0;
        id.bytes[8 + i] = (uint8_t)(xfer >> 8 * i);
    }
    return id;
}

uint64_t peer_xfer_of(kv_xfer_id_t id)
{
    uint64_t xfer = 0;
    for (int i = 0; i < 8; i++) { xfer |= (uint64_t)id.bytes[8 + i] << 8 * i; }
    return xfer;
}

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static uint64_t slice_word(uint64_t seed, uint32_t layer, uint32_t index, size_t word)
{
    return mix(seed * 31 + ((uint64_t)layer << 32 | index)) + word * UINT64_C(0x9e3779b97f4a7c15);
}

void peer_slice_fill(uint8_t *slice, size_t bytes, uint64_t seed, uint32_t layer, uint32_t index)
{
    for (size_t at = 0; at < bytes; at += 8) {
        uint64_t word = slice_word(seed, layer, index, at / 8);
        memcpy(slice + at, &word, bytes - at < 8 ? bytes - at : 8);
    }
}

bool peer_slice_matches(const uint8_t *slice, size_t bytes, uint64_t seed, uint32_t layer, uint32_t index)
{
    for (size_t at = 0; at < bytes; at += 8) {
        uint64_t word = slice_word(seed, layer, index, at / 8);
        if (memcmp(slice + at, &word, bytes - at < 8 ? bytes - at : 8) != 0) { return false; }
    }
    return true;
}

size_t hex_decode(const char *text, uint8_t *ret_bytes, size_t capacity)
{
    size_t size = 0;
    unsigned value;
    while (size < capacity && sscanf(text + 2 * size, "%2x", &value) == 1) { ret_bytes[size++] = (uint8_t)value; }
    return size;
}

void hex_encode(const uint8_t *bytes, size_t size, char *ret_text)
{
    for (size_t i = 0; i < size; i++) { sprintf(ret_text + 2 * i, "%02x", bytes[i]); }
    ret_text[2 * size] = '\0';
}

/* ---- the process */

struct told { /* an event, copied on the transfer thread */
    struct kv_event event;
    uint64_t seed; /* LANDED: the payload's first words */
    char text[200], reason[120];
};

struct xfer {
    bool used, sending, half, half_told;
    uint64_t xfer, seed;
    kv_send_t send;
    uint32_t count;
    uint32_t *blocks;
    uint32_t layer, first; /* P: next to push */
    bool committed;
    uint64_t mark; /* P, device pool: when the layer that is being pushed has its bytes, and all before it */
    bool has_mark;
};

struct peer {
    bool is_receiver;
    struct kv_layout layout;
    bool converts;
    struct kv_layout from; /* converts: P's */
    struct kv_endpoint_pool pool;
    uint8_t *view; /* the pool's bytes, as the test sees them */
    uint32_t block_count;
    uint32_t *free_blocks;
    uint32_t free_count;
    uint64_t canary_bad;
    uint64_t random;
    struct kv_endpoint *endpoint;
    struct socket_streams *streams;
    struct xfer xfers[XFERS_MAX];
    int event_fd;
    pthread_mutex_t mutex;
    struct told *events; /* [EVENTS_MAX] ring; mutex */
    uint32_t event_first, event_count;
};

static struct peer peer;

static void on_event(void *context, const struct kv_event *event)
{
    (void)context;
    uint64_t one = 1;
    pthread_mutex_lock(&peer.mutex);
    if (event->kind == KV_EVENT_PUSH_DONE) { /* wakes the pump; nothing to tell */
    } else if (peer.event_count == EVENTS_MAX) {
        fprintf(stderr, "peer: too many events\n");
        _exit(98);
    } else {
        struct told *told = &peer.events[(peer.event_first + peer.event_count++) % EVENTS_MAX];
        told->event = *event;
        told->seed = 0;
        if (event->kind == KV_EVENT_LANDED && event->payload_bytes >= 8) { memcpy(&told->seed, event->payload, 8); }
        snprintf(told->text, sizeof told->text, "%s", event->text);
        snprintf(told->reason, sizeof told->reason, "%s", event->stats.reason);
    }
    pthread_mutex_unlock(&peer.mutex);
    if (write(peer.event_fd, &one, sizeof one) != sizeof one) { _exit(97); }
}

static uint8_t *block_at(uint32_t block) { return peer.view + block * kv_layout_block_bytes(&peer.layout); }

static void block_canary_put(uint32_t block)
{
    uint64_t word = CANARY + block;
    for (size_t at = 0; at < kv_layout_block_bytes(&peer.layout); at += 8) { memcpy(block_at(block) + at, &word, 8); }
}

static void block_canary_check(uint32_t block)
{
    uint64_t word = CANARY + block;
    for (size_t at = 0; at < kv_layout_block_bytes(&peer.layout); at += 8) {
        if (memcmp(block_at(block) + at, &word, 8) != 0) {
            peer.canary_bad++;
            return;
        }
    }
}

static struct xfer *xfer_find(uint64_t id)
{
    for (int i = 0; i < XFERS_MAX; i++) {
        if (peer.xfers[i].used && peer.xfers[i].xfer == id) { return &peer.xfers[i]; }
    }
    return NULL;
}

static struct xfer *xfer_make(uint64_t id, uint32_t count)
{
    for (int i = 0; i < XFERS_MAX && count <= peer.free_count; i++) {
        struct xfer *xfer = &peer.xfers[i];
        if (xfer->used) { continue; }
        memset(xfer, 0, sizeof *xfer);
        xfer->used = true;
        xfer->xfer = id;
        xfer->count = count;
        xfer->blocks = malloc(count * sizeof *xfer->blocks);
        for (uint32_t k = 0; k < count; k++) { /* scattered on purpose */
            peer.random = mix(peer.random + 1);
            uint32_t pick = (uint32_t)(peer.random % peer.free_count);
            xfer->blocks[k] = peer.free_blocks[pick];
            peer.free_blocks[pick] = peer.free_blocks[--peer.free_count];
            if (peer.is_receiver) { block_canary_check(xfer->blocks[k]); }
        }
        return xfer;
    }
    return NULL;
}

static void xfer_end(struct xfer *xfer)
{
    if (xfer->mark) { fake_memory_wait(peer.pool.memory, xfer->mark); } /* a node keeps the blocks of a step that runs */
    for (uint32_t k = 0; k < xfer->count; k++) {
        /* From here on a late byte would show. On P it would show as a bad checksum. */
        block_canary_put(xfer->blocks[k]);
        peer.free_blocks[peer.free_count++] = xfer->blocks[k];
    }
    free(xfer->blocks);
    xfer->used = false;
}

/* Numbers of some size rather than bits, which are of all sizes and none. */
static void numbers_fill(const struct kv_layout *layout, uint8_t *slice, uint64_t seed, uint32_t layer, uint32_t index)
{
    struct kv_layout wide = *layout;
    wide.dtype = DTYPE_F32;
    size_t count = kv_layout_slice_bytes(&wide) / sizeof(float);
    float *numbers = malloc(count * sizeof *numbers);
    for (size_t i = 0; i < count; i++) { numbers[i] = (float)(mix(slice_word(seed, layer, index, i)) >> 40) / 2e6f - 4.0f; }
    kv_convert(&wide, (const uint8_t *)numbers, layout, slice);
    free(numbers);
}

static bool converted_matches(const uint8_t *slice, uint64_t seed, uint32_t layer, uint32_t index)
{
    size_t bytes = kv_layout_slice_bytes(&peer.layout);
    uint8_t *source = malloc(kv_layout_slice_bytes(&peer.from)), *want = malloc(bytes);
    numbers_fill(&peer.from, source, seed, layer, index);
    kv_convert(&peer.from, source, &peer.layout, want);
    bool matches = memcmp(want, slice, bytes) == 0;
    free(source);
    free(want);
    return matches;
}

static void slices_fill(uint64_t seed, uint32_t layer, const uint32_t *blocks, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *slice = peer.view + kv_layout_slice_offset(&peer.layout, blocks[i], layer);
        if (peer.converts) { numbers_fill(&peer.layout, slice, seed, layer, i); } else { peer_slice_fill(slice, kv_layout_slice_bytes(&peer.layout), seed, layer, i); }
    }
}

/* What a step's layer is on a device: its bytes are there some time after it was queued. */
struct layer_job {
    uint64_t seed;
    uint32_t layer, count;
    uint32_t blocks[];
};

static void layer_run(void *user)
{
    struct layer_job *job = user;
    slices_fill(job->seed, job->layer, job->blocks, job->count);
    free(job);
}

static void layer_queue(struct xfer *xfer)
{
    struct layer_job *job = malloc(sizeof *job + xfer->count * sizeof job->blocks[0]);
    *job = (struct layer_job){.seed = xfer->seed, .layer = xfer->layer, .count = xfer->count};
    memcpy(job->blocks, xfer->blocks, xfer->count * sizeof job->blocks[0]);
    xfer->mark = fake_memory_mark(peer.pool.memory, layer_run, job);
    xfer->has_mark = true;
}

static void xfer_pump(struct xfer *xfer)
{
    uint32_t layers = xfer->half ? (peer.layout.layer_count + 1) / 2 : peer.layout.layer_count;
    while (xfer->layer < layers) {
        uint32_t now = xfer->count - xfer->first < PUSH_BLOCKS ? xfer->count - xfer->first : PUSH_BLOCKS;
        if (peer.pool.memory && !xfer->has_mark) { layer_queue(xfer); }
        status_t st = kv_endpoint_push(peer.endpoint, xfer->send, xfer->layer, xfer->first, xfer->blocks + xfer->first, now, xfer->mark);
        if (st.code == ST_RESOURCE_EXHAUSTED || st.code == ST_INVALID_ARGUMENT) { return; } /* full, or it is over */
        xfer->first += now;
        if (xfer->first == xfer->count) {
            xfer->first = 0;
            xfer->layer++;
            xfer->has_mark = false;
        }
    }
    if (xfer->half && !xfer->half_told) {
        xfer->half_told = true;
        printf("half %016llx\n", (unsigned long long)xfer->xfer);
    } else if (!xfer->half && !xfer->committed) {
        uint64_t payload[2] = {xfer->seed, xfer->xfer};
        status_t st = kv_endpoint_commit(peer.endpoint, xfer->send, payload, sizeof payload);
        xfer->committed = !failed(st);
    }
}

static void on_told(const struct told *told)
{
    const struct kv_event *event = &told->event;
    unsigned long long id = peer_xfer_of(event->xfer_id);
    struct xfer *xfer = xfer_find(id);
    if (!xfer) {
        printf("stray %d %016llx\n", event->kind, id);
        return;
    }
    bool good = true;
    size_t slice_bytes = kv_layout_slice_bytes(&peer.layout);
    switch (event->kind) {
    case KV_EVENT_LANDED:
        for (uint32_t layer = 0; layer < peer.layout.layer_count; layer++) {
            for (uint32_t i = 0; i < xfer->count; i++) {
                const uint8_t *slice = peer.view + kv_layout_slice_offset(&peer.layout, xfer->blocks[i], layer);
                good &= peer.converts ? converted_matches(slice, told->seed, layer, i) : peer_slice_matches(slice, slice_bytes, told->seed, layer, i);
            }
        }
        printf("landed %016llx %s %llu\n", id, good ? "good" : "bad", (unsigned long long)event->stats.bytes);
        break;
    case KV_EVENT_FAILED:
        printf("failed %016llx %s %s %s\n", id, status_code_name(event->status.code), event->fenced ? "fenced" : "unfenced",
               told->text);
        if (!event->fenced) { return; }
        break;
    case KV_EVENT_FENCED: printf("fenced %016llx\n", id); break;
    case KV_EVENT_ACKED:
        printf("acked %016llx %s %llu %llu %s\n", id, event->stats.cable, (unsigned long long)event->stats.bytes,
               (unsigned long long)event->stats.duration_ns, told->reason);
        break;
    case KV_EVENT_SEND_FAILED:
        printf("send_failed %016llx %s %s\n", id, status_code_name(event->status.code), told->text);
        break;
    case KV_EVENT_PUSH_DONE: return;
    }
    xfer_end(xfer);
}

static void stats_print(void)
{
    struct kv_endpoint_stats s;
    kv_endpoint_stats_get(peer.endpoint, &s);
    for (uint32_t i = 0; peer.is_receiver && i < peer.free_count; i++) { block_canary_check(peer.free_blocks[i]); }
    const struct { const char *name; uint64_t value; } all[] = {
        {"grants", s.grants}, {"landed", s.landed}, {"failed", s.failed}, {"revoked", s.revoked}, {"live", s.live},
        {"quarantined", s.quarantined}, {"blocks_granted", s.blocks_granted}, {"blocks_landed", s.blocks_landed},
        {"blocks_failed", s.blocks_failed}, {"blocks_revoked", s.blocks_revoked}, {"blocks_live", s.blocks_live},
        {"blocks_quarantined", s.blocks_quarantined}, {"sends", s.sends}, {"acked", s.acked},
        {"send_failed", s.send_failed}, {"sends_live", s.sends_live}, {"slices_landed", s.slices_landed},
        {"slices_refused", s.slices_refused}, {"crc_errors", s.crc_errors}, {"secrets_refused", s.secrets_refused},
        {"hellos_refused", s.hellos_refused}, {"cables_refused", s.cables_refused}, {"bytes_landed", s.bytes_landed},
        {"bytes_pushed", s.bytes_pushed}, {"free_blocks", peer.free_count}, {"total_blocks", peer.block_count},
        {"canary_bad", peer.canary_bad},
        {"ops_under_way", peer.pool.memory ? fake_memory_under_way(peer.pool.memory) : 0},
        {"links_up", s.links_up}, {"links_lost", s.links_lost}, {"messages_ignored", s.messages_ignored},
        {"nccl_up", s.nccl.pairs_up}, {"nccl_opening", s.nccl.pairs_opening}, {"nccl_stuck", s.nccl.pairs_stuck},
        {"nccl_opened", s.nccl.pairs_opened}, {"nccl_closed", s.nccl.pairs_closed}, {"nccl_broken", s.nccl.pairs_broken},
        {"nccl_denied", s.nccl.pairs_denied}, {"nccl_memory", s.nccl.memory_bytes}, {"nccl_frames", s.nccl.frames},
        {"nccl_bytes", s.nccl.bytes}, {"nccl_stale", s.nccl.messages_stale}, {"nccl_init_us", s.nccl.init_ns_last / 1000},
        {"nccl_abort_us", s.nccl.abort_ns_last / 1000}, {"nccl_comms", fake_nccl_counts().comms},
        {"nccl_hanging", fake_nccl_counts().hanging},
        {"imports", peer.pool.memory ? fake_memory_imports(peer.pool.memory) : 0},
    };
    printf("stats");
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) { printf(" %s=%llu", all[i].name, (unsigned long long)all[i].value); }
    printf("\n");
}

/* False: quit. */
static bool on_line(char *line)
{
    char verb[16] = "";
    unsigned long long id = 0, seed = 0;
    unsigned count = 0, lease_ms = 0;
    if (sscanf(line, "%15s %llx", verb, &id) < 1) { return true; }
    if (strcmp(verb, "quit") == 0) { return false; }
    if (strcmp(verb, "stats") == 0) {
        stats_print();
    } else if (strcmp(verb, "grant") == 0 && sscanf(line, "%*s %*s %u %u", &count, &lease_ms) == 2) {
        struct xfer *xfer = xfer_make(id, count);
        uint8_t ticket[KV_TICKET_BYTES_MAX];
        char text[2 * KV_TICKET_BYTES_MAX + 1];
        size_t size = 0;
        status_t st = xfer ? kv_endpoint_grant(peer.endpoint, peer_xfer_id(id), xfer->blocks, count, lease_ms, NULL, ticket, &size)
                           : STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
        if (failed(st)) {
            printf("refused %016llx %s\n", id, status_code_name(st.code));
            if (xfer) { xfer_end(xfer); }
        } else {
            hex_encode(ticket, size, text);
            printf("ticket %016llx %s\n", id, text);
        }
    } else if (strcmp(verb, "revoke") == 0) {
        kv_endpoint_revoke(peer.endpoint, peer_xfer_id(id));
    } else if (strcmp(verb, "send") == 0) {
        static char text[2 * KV_TICKET_BYTES_MAX + 64];
        char mode[16] = "";
        if (sscanf(line, "%*s %*s %llx %1343s %15s", &seed, text, mode) != 3) { return true; }
        uint8_t ticket[KV_TICKET_BYTES_MAX + 32];
        size_t size = hex_decode(text, ticket, sizeof ticket);
        struct kv_ticket decoded;
        struct diag diag = {.text = ""};
        kv_send_t send = {0};
        status_t st = kv_ticket_decode(ticket, size, &diag, &decoded);
        struct xfer *xfer = failed(st) ? NULL : xfer_make(id, decoded.block_count);
        if (!failed(st) && !xfer) { st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST); }
        if (!failed(st)) { st = kv_endpoint_send_begin(peer.endpoint, ticket, size, NULL, &diag, &send); }
        if (failed(st)) {
            printf("refused %016llx %s %s\n", id, status_code_name(st.code), diag.text);
            if (xfer) { xfer_end(xfer); }
            return true;
        }
        xfer->send = send;
        xfer->sending = true;
        xfer->seed = seed;
        xfer->half = strcmp(mode, "half") == 0;
        for (uint32_t layer = 0; !peer.pool.memory && layer < peer.layout.layer_count; layer++) {
            slices_fill(seed, layer, xfer->blocks, xfer->count);
        }
        printf("begun %016llx\n", id);
    } else if (strcmp(verb, "abort") == 0) {
        const struct xfer *xfer = xfer_find(id);
        if (xfer) { kv_endpoint_abort(peer.endpoint, xfer->send); }
    } else if (strcmp(verb, "hold") == 0 || strcmp(verb, "unhold") == 0) {
        fake_memory_set_held(peer.pool.memory, verb[0] == 'h');
    } else if (strcmp(verb, "compute") == 0) {
        fake_memory_hold_marks(peer.pool.memory, id == 0);
    } else if (strcmp(verb, "letgo") == 0) {
        fake_nccl_let_go();
    } else if (strcmp(verb, "lose") == 0) {
        fake_memory_lose(peer.pool.memory);
    } else {
        printf("what %s\n", verb);
    }
    return true;
}

static const char *argument(int argc, char **argv, const char *key, const char *standard)
{
    size_t chars = strlen(key);
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], key, chars) == 0 && argv[i][chars] == '=') { return argv[i] + chars + 1; }
    }
    return standard;
}

/* "fp8", "bf16-rows" */
static void layout_take(const char *text, struct kv_layout *layout)
{
    char name[16];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(text, "-"), text);
    if (!dtype_parse(strcmp(name, "fp8") == 0 ? "fp8_e4m3" : name, &layout->dtype)) { _exit(95); }
    layout->order = strstr(text, "-rows") ? KV_ORDER_ROWS : KV_ORDER_TILES;
}

static void run(void)
{
    static char line[16384];
    size_t filled = 0;
    for (;;) {
        struct pollfd fds[2] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = peer.event_fd, .events = POLLIN}};
        poll(fds, 2, 100);
        if (fds[1].revents) {
            uint64_t count;
            if (read(peer.event_fd, &count, sizeof count) < 0) { _exit(96); }
        }
        for (;;) {
            pthread_mutex_lock(&peer.mutex);
            bool any = peer.event_count > 0;
            static struct told told;
            if (any) {
                told = peer.events[peer.event_first];
                peer.event_first = (peer.event_first + 1) % EVENTS_MAX;
                peer.event_count--;
            }
            pthread_mutex_unlock(&peer.mutex);
            if (!any) { break; }
            on_told(&told);
        }
        if (fds[0].revents) {
            ssize_t got = read(STDIN_FILENO, line + filled, sizeof line - 1 - filled);
            if (got <= 0) { return; }
            filled += (size_t)got;
            line[filled] = '\0';
            char *start = line;
            for (char *end; (end = strchr(start, '\n')) != NULL; start = end + 1) {
                *end = '\0';
                if (!on_line(start)) { return; }
            }
            filled = strlen(start);
            memmove(line, start, filled + 1);
        }
        for (int i = 0; i < XFERS_MAX; i++) {
            if (peer.xfers[i].used && peer.xfers[i].sending) { xfer_pump(&peer.xfers[i]); }
        }
        fflush(stdout);
    }
}

int peer_main(int argc, char **argv)
{
    peer.is_receiver = strcmp(argument(argc, argv, "role", "d"), "d") == 0;
    peer.layout = (struct kv_layout){.block_tokens = 16, .layer_count = (uint32_t)atoi(argument(argc, argv, "layers", "2")),
                                     .kv_heads = (uint32_t)atoi(argument(argc, argv, "heads", "1")),
                                     .head_dim = (uint32_t)atoi(argument(argc, argv, "dim", "64")), .dtype = DTYPE_BF16};
    const char *from = argument(argc, argv, "from", NULL);
    if (from) {
        peer.converts = true;
        peer.from = peer.layout;
        layout_take(from, &peer.from);
        layout_take(peer.is_receiver ? argument(argc, argv, "to", from) : from, &peer.layout);
    }
    peer.block_count = (uint32_t)atoi(argument(argc, argv, "blocks", "64"));
    peer.event_fd = eventfd(0, EFD_CLOEXEC);
    peer.events = calloc(EVENTS_MAX, sizeof *peer.events);
    peer.random = clock_wall_ns();
    pthread_mutex_init(&peer.mutex, NULL);
    struct diag diag = {.text = ""};
    size_t pool_bytes = peer.block_count * kv_layout_block_bytes(&peer.layout);
    bool is_device = strcmp(argument(argc, argv, "memory", "host"), "fake") == 0;
    if (is_device) {
        struct fake_memory_config device = {.pool_bytes = pool_bytes, .device = (uint8_t)atoi(argument(argc, argv, "device", "1")),
                                            .seed = peer.random, .delay_us_max = 200};
        peer.pool = (struct kv_endpoint_pool){.bytes = pool_bytes, .memfd = -1, .memory = fake_memory_create(&device)};
        peer.pool.base = fake_memory_base(peer.pool.memory);
        peer.view = fake_memory_view(peer.pool.memory);
    } else if (failed(kv_endpoint_pool_alloc(pool_bytes, &diag, &peer.pool))) {
        fprintf(stderr, "%s\n", diag.text);
        return 1;
    } else {
        peer.view = peer.pool.base;
    }
    peer.free_blocks = malloc(peer.block_count * sizeof *peer.free_blocks);
    for (uint32_t i = 0; i < peer.block_count; i++) {
        peer.free_blocks[peer.free_count++] = i;
        block_canary_put(i);
    }
    const char *cables = argument(argc, argv, "cables", "auto");
    const char *tls = argument(argc, argv, "tls", NULL); /* a folder with cert.pem, key.pem, ca.pem */
    char cert[256], key[256], ca[256];
    peer.streams = socket_streams_create(peer.is_receiver ? argument(argc, argv, "listen", "127.0.0.1:0") : NULL);
    struct kv_endpoint_config config = {
        .node_id = argument(argc, argv, "node", peer.is_receiver ? "d0" : "p0"),
        .boot_epoch = strtoull(argument(argc, argv, "epoch", "1"), NULL, 10),
        .link_address = socket_streams_address(peer.streams),
        .pool = peer.pool,
        .cables = cables,
        .tcp_listen = peer.is_receiver ? argument(argc, argv, "tcp", "127.0.0.1:0") : NULL,
        .uds_dir = argument(argc, argv, "uds", NULL),
        .ucx = {.mode = (enum kv_ucx_mode)atoi(argument(argc, argv, "ucx", getenv("BATON_UCX_MODE") ? getenv("BATON_UCX_MODE") : "0")),
                .library = getenv("BATON_UCX_LIBRARY")},
        .nccl = {.is_on = is_device && strstr(cables, "nccl") != NULL,
                 .channels = (uint32_t)atoi(argument(argc, argv, "channels", "1")),
                 .pairs_max = (uint32_t)atoi(argument(argc, argv, "pairs", "0")),
                 .memory_bytes_max = strtoull(argument(argc, argv, "nccl_mib", "0"), NULL, 10) << 20,
                 .init_ns = strtoull(argument(argc, argv, "init_ms", "0"), NULL, 10) * NS_PER_MS,
                 .stall_ns = strtoull(argument(argc, argv, "stall_ms", "0"), NULL, 10) * NS_PER_MS},
        .on_event = on_event,
        .stream = socket_stream_ops(),
        .stream_context = peer.streams,
    };
    if (config.nccl.is_on) {
        const char *faults = argument(argc, argv, "faults", NULL);
        if (faults) { setenv("FAKE_NCCL", faults, 1); }
        config.nccl.api = fake_nccl_api(&fake_nccl_on_memory);
    }
    config.limits.dead_ns = strtoull(argument(argc, argv, "dead_ms", "0"), NULL, 10) * NS_PER_MS;
    /* Where every instruction is emulated, setting up takes longer than peers wait. */
    const char *patience = getenv("BATON_TEST_PATIENCE");
    if (patience) { config.limits.connect_ns = strtoull(patience, NULL, 10) * 5 * NS_PER_S; }
    config.limits.pushes_max = (uint32_t)atoi(argument(argc, argv, "pushes", "0"));
    if (tls) {
        snprintf(cert, sizeof cert, "%s/cert.pem", tls);
        snprintf(key, sizeof key, "%s/key.pem", tls);
        snprintf(ca, sizeof ca, "%s/ca.pem", tls);
        config.tls = (struct kv_endpoint_tls){cert, key, ca};
    }
    /* Two sides on one host that are to meet over the network: each its own device. */
    const char *devices = getenv(peer.is_receiver ? "BATON_UCX_DEVICES_D" : "BATON_UCX_DEVICES_P");
    if (devices) { setenv("UCX_NET_DEVICES", devices, 1); }
    const uint8_t model_hash[32] = {42};
    kv_fingerprint_init(&config.fingerprint, model_hash, &peer.layout, argument(argc, argv, "kernels", "test-1"));
    config.fingerprint.converts = peer.converts && strcmp(argument(argc, argv, "says", "yes"), "yes") == 0;
    if (failed(kv_endpoint_create(&config, &diag, &peer.endpoint))) {
        fprintf(stderr, "%s\n", diag.text);
        return 1;
    }
    socket_streams_start(peer.streams, peer.endpoint);
    printf("ready %s %s\n", peer.is_receiver ? socket_streams_address(peer.streams) : "-", kv_endpoint_tcp_address(peer.endpoint));
    fflush(stdout);
    run();
    socket_streams_stop(peer.streams);
    bool lets_go = kv_endpoint_destroy(peer.endpoint);
    socket_streams_destroy(peer.streams);
    if (!lets_go) { syscall(SYS_exit_group, 0); } /* past sanitizers, too: its threads never end */
    for (int i = 0; i < XFERS_MAX; i++) {
        if (peer.xfers[i].used) { free(peer.xfers[i].blocks); }
    }
    if (is_device) {
        fake_memory_destroy(peer.pool.memory);
    } else {
        kv_endpoint_pool_free(&peer.pool);
    }
    free(peer.free_blocks);
    free(peer.events);
    close(peer.event_fd);
    return 0;
}
