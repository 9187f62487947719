/* one_gpu_pair: nccl_pair between this process and a second one, which is this program again. NCCL takes them for two hosts
 * (NCCL_HOSTID), else it would not give one GPU to both, and so moves bytes by its sockets. The test's own socket between
 * the two plays the link: id, SEND, READY. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/nccl/one_gpu.h"
#include "transfer/nccl_pair.h"

enum { SLOTS = 4, SLICE_BYTES = 64 * 1024 };
#define SLOT_BYTES ((size_t)RANGES * SLICE_BYTES)
#define POOL_BYTES ((size_t)16 * SLOT_BYTES)
#define INIT_NS (30 * NS_PER_S)
#define STALL_NS (2 * NS_PER_S) /* of who is to notice a death; else INIT_NS */

enum word_kind { W_HERE, W_START, W_ID, W_UP, W_SEND, W_READY, W_LANDED, W_END, W_ENDED };
struct word {
    uint32_t kind, slot;
    uint64_t frame, bytes, duration_ns;
    uint32_t sums[RANGES];
    uint8_t id[NCCL_ID_BYTES];
};

/* One of the two processes. */
struct side {
    struct one_gpu *gpu;
    int fd;      /* to the other */
    int facts[2]; /* a pipe: what the pair tells */
    uint32_t rank, channels;
    uint64_t stall_ns;
    struct nccl_pair *pair;
    bool is_up, is_broken, is_ended, other_is_up, other_has_ended, other_is_gone;
    uint64_t init_ns, bytes, abort_ns, broken_ns; /* broken_ns: when */
    uint64_t other_init_ns, other_abort_ns;
    char text[256];
    uint64_t frames, asked, landed; /* P: to send; sent; D has placed them */
    uint32_t slot_waits[SLOTS]; /* P: for PASSED here and LANDED there, before the slot is used again */
    uint64_t slot_frame[SLOTS];
    uint32_t slot_sums[SLOTS][RANGES];
};

static void told(void *user, const struct nccl_pair_fact *fact)
{
    struct side *side = user;
    /* Shorter than what a pipe takes in one piece, and never so many that it is full. */
    STOP_UNLESS(write(side->facts[1], fact, sizeof *fact) == (ssize_t)sizeof *fact, "the pipe: %s", strerror(errno));
}

static void say(struct side *side, const struct word *word)
{
    (void)!send(side->fd, word, sizeof *word, MSG_NOSIGNAL); /* to who may be dead by now */
}

static void say_kind(struct side *side, enum word_kind kind)
{
    const struct word word = {.kind = kind};
    say(side, &word);
}

static void side_open(struct side *side, struct one_gpu *gpu, int fd, uint32_t rank, uint32_t channels)
{
    *side = (struct side){.gpu = gpu, .fd = fd, .rank = rank, .channels = channels, .stall_ns = INIT_NS};
    STOP_UNLESS(pipe(side->facts) == 0, "no pipe");
}

static void side_start(struct side *side, const uint8_t *id)
{
    struct diag diag = {.text = ""};
    struct nccl_pair_config config = {.api = side->gpu->api, .memory = side->gpu->memory, .rank = side->rank, .channels = side->channels,
                                      .slot_count = SLOTS, .slot_bytes = SLOT_BYTES, .init_ns = INIT_NS, .stall_ns = side->stall_ns, .told = told, .user = side};
    if (id) { memcpy(config.id, id, sizeof config.id); }
    stop(nccl_pair_create(&config, &diag, &side->pair), "a pair", &diag);
}

static void frame_offsets(uint64_t frame, uint64_t *ret_offsets)
{
    one_gpu_scatter(0, POOL_BYTES, SLICE_BYTES, frame * RANGES, RANGES, ret_offsets);
}

/* P: what it has not sent yet, through the slots that are free. */
static void send_frames(struct side *side)
{
    for (uint32_t slot = 0; slot < SLOTS && side->asked < side->frames; slot++) {
        if (side->slot_waits[slot] > 0) { continue; }
        struct kv_memory_op op = {.kind = KV_MEMORY_GATHER, .count = RANGES, .range_bytes = SLICE_BYTES, .slot = nccl_pair_slot(side->pair, slot)};
        frame_offsets(side->asked, op.offsets);
        one_gpu_do(side->gpu, &op);
        struct word word = {.kind = W_SEND, .slot = slot, .frame = side->asked++};
        memcpy(word.sums, op.crc, sizeof word.sums);
        side->slot_waits[slot] = 2;
        say(side, &word);
    }
}

static void slot_waited(struct side *side, uint32_t slot)
{
    if (--side->slot_waits[slot] == 0) { send_frames(side); }
}

/* D: a slot is full. */
static void place(struct side *side, uint32_t slot)
{
    struct kv_memory_op op = {.kind = KV_MEMORY_SCATTER, .count = RANGES, .range_bytes = SLICE_BYTES, .slot = nccl_pair_slot(side->pair, slot)};
    frame_offsets(side->slot_frame[slot], op.offsets);
    one_gpu_do(side->gpu, &op);
    STOP_UNLESS(memcmp(op.crc, side->slot_sums[slot], sizeof side->slot_sums[slot]) == 0, "frame %llu came with other bytes than were sent",
                (unsigned long long)side->slot_frame[slot]);
    const struct word word = {.kind = W_LANDED, .slot = slot};
    say(side, &word);
}

static void on_fact(struct side *side, const struct nccl_pair_fact *fact)
{
    struct word word = {.duration_ns = fact->duration_ns};
    switch (fact->kind) {
    case NCCL_PAIR_ID:
        word.kind = W_ID;
        memcpy(word.id, fact->id, sizeof word.id);
        say(side, &word);
        break;
    case NCCL_PAIR_UP:
        side->is_up = true;
        side->init_ns = fact->duration_ns;
        side->bytes = fact->bytes;
        word.kind = W_UP;
        say(side, &word);
        break;
    case NCCL_PAIR_PASSED:
        if (side->rank == NCCL_RANK_D) {
            place(side, fact->slot);
        } else {
            slot_waited(side, fact->slot);
        }
        break;
    case NCCL_PAIR_BROKEN:
        side->is_broken = true;
        side->broken_ns = clock_now_ns();
        memcpy(side->text, fact->text, sizeof side->text);
        break;
    case NCCL_PAIR_ENDED:
        side->is_ended = true;
        side->abort_ns = fact->duration_ns;
        word.kind = W_ENDED;
        say(side, &word);
        break;
    }
}

static void on_word(struct side *side, const struct word *word)
{
    switch ((enum word_kind)word->kind) {
    case W_HERE: break;
    case W_START:
        side->frames = word->frame;
        if (side->rank == NCCL_RANK_P) { side_start(side, NULL); }
        break;
    case W_ID: side_start(side, word->id); break;
    case W_UP:
        side->other_is_up = true;
        side->other_init_ns = word->duration_ns;
        break;
    case W_SEND:
        side->slot_frame[word->slot] = word->frame;
        memcpy(side->slot_sums[word->slot], word->sums, sizeof word->sums);
        nccl_pair_transfer(side->pair, word->slot, SLOT_BYTES);
        const struct word ready = {.kind = W_READY, .slot = word->slot};
        say(side, &ready);
        break;
    case W_READY: nccl_pair_transfer(side->pair, word->slot, SLOT_BYTES); break;
    case W_LANDED:
        side->landed++;
        slot_waited(side, word->slot);
        break;
    case W_END: nccl_pair_end(side->pair); break;
    case W_ENDED:
        side->other_has_ended = true;
        side->other_abort_ns = word->duration_ns;
        break;
    }
}

/* One fact or word; false: the other is gone. */
static bool turn(struct side *side)
{
    struct pollfd fds[2] = {{.fd = side->facts[0], .events = POLLIN}, {.fd = side->other_is_gone ? -1 : side->fd, .events = POLLIN}};
    STOP_UNLESS(poll(fds, 2, 60000) > 0, "nothing has happened for a minute: up %d and %d, broken %d %s", side->is_up, side->other_is_up,
                side->is_broken, side->text);
    if (fds[0].revents & POLLIN) {
        struct nccl_pair_fact fact;
        STOP_UNLESS(read(side->facts[0], &fact, sizeof fact) == (ssize_t)sizeof fact, "half a fact");
        on_fact(side, &fact);
    }
    if (fds[1].revents & (POLLIN | POLLHUP)) {
        struct word word;
        side->other_is_gone = recv(side->fd, &word, sizeof word, 0) != (ssize_t)sizeof word;
        if (!side->other_is_gone) { on_word(side, &word); }
    }
    return !side->other_is_gone;
}

/* What only goes on while the other is there. */
static void await(struct side *side, const bool *flag)
{
    while (!*flag) {
        STOP_UNLESS(turn(side), "the other process is gone");
        STOP_UNLESS(!side->is_broken, "the pair broke: %s", side->text);
    }
}

static void side_close(struct side *side)
{
    nccl_pair_destroy(side->pair);
    close(side->facts[0]);
    close(side->facts[1]);
    close(side->fd);
}

/* ---- the second process */

void one_gpu_child(struct one_gpu *gpu, int fd, uint32_t rank, uint32_t channels)
{
    struct side side;
    bool has_begun = false;
    one_gpu_open(gpu, POOL_BYTES);
    if (rank == NCCL_RANK_P) { one_gpu_fill(gpu, 0, POOL_BYTES, channels); }
    side_open(&side, gpu, fd, rank, channels);
    say_kind(&side, W_HERE);
    while (!side.is_ended) {
        STOP_UNLESS(turn(&side), "the first process is gone");
        if (side.is_up && side.other_is_up && rank == NCCL_RANK_P && !has_begun) {
            has_begun = true;
            send_frames(&side);
        }
    }
    if (rank == NCCL_RANK_D && side.frames > 0) { one_gpu_verify(gpu, 0, POOL_BYTES, channels); }
    side_close(&side);
    one_gpu_close(gpu);
    exit(0);
}

/* ---- the first process */

static void environment_set(void)
{
    /* Of both: sockets of this machine and nothing else, where the operator has not said otherwise. */
    setenv("NCCL_MNNVL_ENABLE", "0", 0);
    setenv("NCCL_IB_DISABLE", "1", 0);
    setenv("NCCL_SOCKET_IFNAME", "lo", 0);
    setenv("NCCL_P2P_DISABLE", "1", 0);
    setenv("NCCL_SHM_DISABLE", "1", 0);
    setenv("NCCL_HOSTID", "baton-one-gpu-first", 1);
}

static pid_t child_start(const struct one_gpu *gpu, const char *program, uint32_t rank, uint32_t channels, int *ret_fd)
{
    int ends[2];
    char words[4][64], library[4200];
    STOP_UNLESS(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0 && fcntl(ends[0], F_SETFD, FD_CLOEXEC) == 0, "no sockets");
    snprintf(words[0], sizeof words[0], "--child-fd=%d", ends[1]);
    snprintf(words[1], sizeof words[1], "--child-rank=%u", rank);
    snprintf(words[2], sizeof words[2], "--child-channels=%u", channels);
    snprintf(words[3], sizeof words[3], "--device=%u", gpu->device);
    snprintf(library, sizeof library, "--nccl-library=%s", gpu->library ? gpu->library : "");
    char *const argv[] = {(char *)(uintptr_t)program, words[0], words[1], words[2], words[3], gpu->library ? library : NULL, NULL};
    setenv("NCCL_HOSTID", "baton-one-gpu-second", 1);
    pid_t child = fork();
    STOP_UNLESS(child >= 0, "no process");
    if (child == 0) {
        execv("/proc/self/exe", argv);
        _exit(127);
    }
    setenv("NCCL_HOSTID", "baton-one-gpu-first", 1); /* NCCL reads it once, when the first communicator is made */
    close(ends[1]);
    *ret_fd = ends[0];
    return child;
}

/* Both processes, with their pools and their contexts on the GPU, and no pair yet. */
static pid_t both_here(struct side *side, struct one_gpu *gpu, const char *program, uint32_t rank, uint32_t channels)
{
    int fd;
    struct word word = {.kind = 0};
    pid_t child = child_start(gpu, program, 1 - rank, channels, &fd);
    side_open(side, gpu, fd, rank, channels);
    STOP_UNLESS(recv(fd, &word, sizeof word, 0) == (ssize_t)sizeof word && word.kind == W_HERE, "the second process did not start");
    return child;
}

static void both_start(struct side *side, uint64_t frames)
{
    const struct word start = {.kind = W_START, .frame = frames};
    say(side, &start);
    side->frames = frames;
    if (side->rank == NCCL_RANK_P) { side_start(side, NULL); }
    await(side, &side->is_up);
    await(side, &side->other_is_up);
}

static void reap(pid_t child, bool was_killed)
{
    int status = 0;
    STOP_UNLESS(waitpid(child, &status, 0) == child && (was_killed || status == 0), "the second process ended with status %d", status);
}

static uint64_t left_of(struct one_gpu *gpu)
{
    uint64_t left = 0;
    struct diag diag = {.text = ""};
    stop(kv_memory_left(gpu->memory, &left, &diag), "free memory", &diag);
    return left;
}

void one_gpu_pairs(struct one_gpu *gpu, const char *program)
{
    static const uint32_t channels[] = {1, 2, 4};
    struct diag diag = {.text = ""};
    int version = 0;
    environment_set();
    one_gpu_open(gpu, POOL_BYTES);
    stop(nccl_api_check_version(gpu->api, &version, &diag), "NCCL", &diag);
    for (size_t i = 0; i < sizeof channels / sizeof channels[0]; i++) {
        struct side side;
        uint64_t frames = gpu->bytes / 16 / SLOT_BYTES + 16; /* all of the pool, at least */
        one_gpu_fill(gpu, 0, POOL_BYTES, channels[i]);
        pid_t child = both_here(&side, gpu, program, NCCL_RANK_P, channels[i]);
        uint64_t before = left_of(gpu);
        both_start(&side, frames);
        /* Both communicators are on the one GPU. */
        double mib = ((double)(before - left_of(gpu)) / 2 - (double)(SLOTS * SLOT_BYTES)) / (1 << 20);
        uint64_t start_ns = clock_now_ns();
        send_frames(&side);
        while (side.landed < frames) {
            STOP_UNLESS(turn(&side), "the other process is gone");
            STOP_UNLESS(!side.is_broken, "the pair broke: %s", side.text);
        }
        double seconds = (double)(clock_now_ns() - start_ns) / (double)NS_PER_S;
        say_kind(&side, W_END);
        nccl_pair_end(side.pair);
        while (!side.is_ended || !side.other_has_ended) { STOP_UNLESS(turn(&side) || side.other_has_ended, "the other process is gone"); }
        printf("{\"bench\":\"nccl_pair\",\"nccl\":%d,\"channels\":%u,\"mib\":%.1f,\"mib_told\":%.1f,\"init_ms\":%.1f,\"init_ms_other\":%.1f,\"frames\":%llu,\"frame_bytes\":%zu,"
               "\"gb_s\":%.3f,\"abort_ms\":%.2f,\"abort_ms_other\":%.2f,\"verified\":true}\n",
               version, channels[i], mib, (double)side.bytes / (1 << 20), (double)side.init_ns / 1e6, (double)side.other_init_ns / 1e6,
               (unsigned long long)frames, SLOT_BYTES, (double)frames * (double)SLOT_BYTES / seconds / 1e9, (double)side.abort_ns / 1e6,
               (double)side.other_abort_ns / 1e6);
        side_close(&side);
        reap(child, false);
    }
    one_gpu_close(gpu);
}

/* The first process has a transfer under way that the second will not join. */
static void death(struct one_gpu *gpu, const char *program, uint32_t rank, int signal_number)
{
    struct side side;
    const bool is_stop = signal_number == SIGSTOP;
    pid_t child = both_here(&side, gpu, program, rank, 2);
    side.stall_ns = STALL_NS;
    both_start(&side, 0);
    uint64_t start_ns = clock_now_ns();
    kill(child, signal_number);
    nccl_pair_transfer(side.pair, 0, SLOT_BYTES);
    while (!side.is_broken) { (void)turn(&side); }
    nccl_pair_end(side.pair);
    while (!side.is_ended) { (void)turn(&side); }
    uint64_t ended_ns = clock_now_ns();
    printf("{\"bench\":\"nccl_death\",\"how\":\"%s\",\"survivor\":\"%s\",\"stall_limit_ms\":%.0f,\"broken_ms\":%.1f,\"abort_ms\":%.2f,\"ended_ms\":%.1f,\"why\":\"%s\"}\n",
           is_stop ? "SIGSTOP" : "kill -9", rank == NCCL_RANK_P ? "P" : "D", (double)STALL_NS / 1e6, (double)(side.broken_ns - start_ns) / 1e6,
           (double)side.abort_ns / 1e6, (double)(ended_ns - start_ns) / 1e6, side.text);
    if (is_stop) { kill(child, SIGKILL); }
    side_close(&side);
    reap(child, true);
}

void one_gpu_deaths(struct one_gpu *gpu, const char *program)
{
    environment_set();
    one_gpu_open(gpu, POOL_BYTES);
    for (uint32_t rank = NCCL_RANK_P; rank <= NCCL_RANK_D; rank++) {
        death(gpu, program, rank, SIGKILL);
        death(gpu, program, rank, SIGSTOP);
    }
    one_gpu_close(gpu);
}
