/* A pair moves bytes between two devices, says so when something has gone wrong whatever it is, and leaves nothing behind.
 * Over fake_nccl and fake_memory. Limits that are to expire are short, all others a minute. */
#include <dirent.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/rng.h"
#include "tests/kv_memory/fake_memory.h"
#include "tests/nccl/fake_nccl.h"
#include "transfer/nccl_pair.h"

enum { SLOTS = 4, SLOT_BYTES = 8192, CHANNELS = 2 };
#define MINUTE (60 * NS_PER_S)
#define COMM_BYTES (FAKE_NCCL_BYTES_INIT + CHANNELS * FAKE_NCCL_BYTES_CHANNEL)

/* A pair and what it has told. */
struct owner {
    struct kv_memory *memory;
    struct nccl_pair *pair;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    bool has_id, is_up, is_broken, is_ended;
    uint8_t id[NCCL_ID_BYTES];
    uint64_t bytes, facts;
    uint32_t passed[SLOTS], passed_all;
    status_t status;
    char text[256];
};

static const struct nccl_api *api;

static void told(void *user, const struct nccl_pair_fact *fact)
{
    struct owner *owner = user;
    pthread_mutex_lock(&owner->lock);
    owner->facts++;
    assert_false(owner->is_ended);
    switch (fact->kind) {
    case NCCL_PAIR_ID:
        assert_int_equal(owner->facts, 1);
        owner->has_id = true;
        memcpy(owner->id, fact->id, sizeof owner->id);
        break;
    case NCCL_PAIR_UP:
        assert_false(owner->is_up);
        owner->is_up = true;
        owner->bytes = fact->bytes;
        break;
    case NCCL_PAIR_PASSED:
        assert_true(owner->is_up);
        assert_false(owner->is_broken);
        owner->passed[fact->slot]++;
        owner->passed_all++;
        break;
    case NCCL_PAIR_BROKEN:
        assert_false(owner->is_broken);
        owner->is_broken = true;
        owner->status = fact->status;
        memcpy(owner->text, fact->text, sizeof owner->text);
        break;
    case NCCL_PAIR_ENDED: owner->is_ended = true; break;
    }
    pthread_cond_broadcast(&owner->changed);
    pthread_mutex_unlock(&owner->lock);
}

#define AWAIT(owner, condition)                                                                  \
    do {                                                                                         \
        pthread_mutex_lock(&(owner)->lock);                                                      \
        while (!(condition)) { pthread_cond_wait(&(owner)->changed, &(owner)->lock); }           \
        pthread_mutex_unlock(&(owner)->lock);                                                    \
    } while (0)

static struct kv_memory *memory_create(uint64_t seed)
{
    const struct fake_memory_config config = {.pool_bytes = 4096, .seed = seed, .delay_us_max = 30};
    return fake_memory_create(&config);
}

static void start(struct owner *owner, struct kv_memory *memory, uint32_t rank, const uint8_t *id, uint64_t init_ns, uint64_t stall_ns)
{
    struct nccl_pair_config config = {.api = api, .memory = memory, .rank = rank, .channels = CHANNELS, .slot_count = SLOTS,
                                      .slot_bytes = SLOT_BYTES, .init_ns = init_ns, .stall_ns = stall_ns, .told = told, .user = owner};
    struct diag diag = {.text = ""};
    memset(owner, 0, sizeof *owner);
    pthread_mutex_init(&owner->lock, NULL);
    pthread_cond_init(&owner->changed, NULL);
    owner->memory = memory;
    if (id) { memcpy(config.id, id, sizeof config.id); }
    assert_false(failed(nccl_pair_create(&config, &diag, &owner->pair)));
}

static void finish(struct owner *owner)
{
    AWAIT(owner, owner->is_ended);
    nccl_pair_destroy(owner->pair);
    pthread_cond_destroy(&owner->changed);
    pthread_mutex_destroy(&owner->lock);
}

static void end(struct owner *owner)
{
    nccl_pair_end(owner->pair);
    finish(owner);
}

static void options(struct fake_nccl_options of) { fake_nccl_set(&of); }

static uint64_t left_of(struct kv_memory *memory)
{
    uint64_t left = 0;
    assert_false(failed(kv_memory_left(memory, &left, NULL)));
    return left;
}

/* Two ends in one process, each with a device of its own. */
struct two {
    struct kv_memory *memory_p, *memory_d;
    struct owner p, d;
    uint64_t left;
};

static void begin_with(struct two *two, uint64_t init_ns, uint64_t stall_ns)
{
    two->memory_p = memory_create(1);
    two->memory_d = memory_create(2);
    two->left = left_of(two->memory_p);
    start(&two->p, two->memory_p, NCCL_RANK_P, NULL, init_ns, stall_ns);
    AWAIT(&two->p, two->p.has_id || two->p.is_broken);
    start(&two->d, two->memory_d, NCCL_RANK_D, two->p.id, init_ns, stall_ns);
}

static void begin(struct two *two)
{
    begin_with(two, MINUTE, MINUTE);
    AWAIT(&two->p, two->p.is_up);
    AWAIT(&two->d, two->d.is_up);
}

/* Both devices are as before, and NCCL has nothing left. */
static void nothing_is_left(struct two *two)
{
    assert_int_equal(left_of(two->memory_p), two->left);
    assert_int_equal(left_of(two->memory_d), two->left);
    fake_memory_destroy(two->memory_p);
    fake_memory_destroy(two->memory_d);
    assert_true(fake_nccl_end());
    options((struct fake_nccl_options){.version = 0});
}

static void close_two(struct two *two)
{
    nccl_pair_end(two->p.pair);
    nccl_pair_end(two->d.pair);
    finish(&two->p);
    finish(&two->d);
    nothing_is_left(two);
}

static uint8_t byte_of(uint32_t number, size_t at) { return (uint8_t)(number * 131 + at * 2654435761u / 65536); }

static void fill(struct owner *owner, uint32_t slot, uint32_t number, size_t bytes)
{
    uint8_t *view = fake_memory_reach(nccl_pair_slot(owner->pair, slot));
    for (size_t i = 0; i < bytes; i++) { view[i] = byte_of(number, i); }
}

static bool holds(struct owner *owner, uint32_t slot, uint32_t number, size_t bytes)
{
    const uint8_t *view = fake_memory_reach(nccl_pair_slot(owner->pair, slot));
    for (size_t i = 0; i < bytes; i++) {
        if (view[i] != byte_of(number, i)) { return false; }
    }
    return true;
}

/* As the cable does it: the receiver first. */
static void move(struct two *two, uint32_t slot_p, uint32_t slot_d, size_t bytes)
{
    nccl_pair_transfer(two->d.pair, slot_d, bytes);
    nccl_pair_transfer(two->p.pair, slot_p, bytes);
}

/* ---- what works ------------------------------------------------------------------------------- */

/* Bytes arrive whole and in the order of the calls, whatever slots they go through; both ends hear of each, and slots are
 * used over and over. Random, against what was written. */
static void bytes_arrive_in_order(void **state)
{
    (void)state;
    struct two two;
    const uint64_t seed = 20261122;
    struct rng rng = rng_init(seed);
    print_message("seed %llu\n", (unsigned long long)seed);
    begin(&two);
    uint32_t of_p[SLOTS] = {0}, of_d[SLOTS] = {0}, number = 0;
    for (int round = 0; round < 60; round++) {
        uint32_t count = 1 + (uint32_t)rng_below(&rng, SLOTS), first_p = (uint32_t)rng_below(&rng, SLOTS), first_d = (uint32_t)rng_below(&rng, SLOTS);
        size_t bytes[SLOTS];
        for (uint32_t i = 0; i < count; i++) {
            bytes[i] = 1 + rng_below(&rng, SLOT_BYTES);
            fill(&two.p, (first_p + i) % SLOTS, number + i, bytes[i]);
        }
        for (uint32_t i = 0; i < count; i++) { move(&two, (first_p + i) % SLOTS, (first_d + i) % SLOTS, bytes[i]); }
        for (uint32_t i = 0; i < count; i++) {
            uint32_t slot_p = (first_p + i) % SLOTS, slot_d = (first_d + i) % SLOTS;
            of_p[slot_p]++;
            of_d[slot_d]++;
            AWAIT(&two.p, two.p.passed[slot_p] == of_p[slot_p]);
            AWAIT(&two.d, two.d.passed[slot_d] == of_d[slot_d]);
            assert_true(holds(&two.d, slot_d, number + i, bytes[i]));
        }
        number += count;
    }
    assert_false(two.p.is_broken);
    assert_false(two.d.is_broken);
    close_two(&two);
}

/* A pair that is idle has nothing that could stall, however short the limit, and ends without its peer, to which that
 * shows as a rank that has gone. */
static void idle_pair_stays_and_ends_alone(void **state)
{
    (void)state;
    struct two two;
    begin_with(&two, MINUTE, 1);
    AWAIT(&two.p, two.p.is_up);
    AWAIT(&two.d, two.d.is_up);
    uint64_t looks = fake_nccl_counts().looks + 6; /* at least two of each */
    while (fake_nccl_counts().looks < looks) { sched_yield(); }
    assert_false(two.p.is_broken || two.d.is_broken);
    end(&two.p);
    AWAIT(&two.d, two.d.is_broken);
    assert_int_equal(two.d.status.code, ST_UNAVAILABLE);
    assert_int_equal(two.d.status.cause, NCCL_REMOTE_ERROR);
    end(&two.d);
    nothing_is_left(&two);
}

/* ---- two processes, and the memory that is counted ----------------------------------------------- */

/* D in a process of its own: a pair for each id that comes, until there are none. */
static void be_d(int ids_fd, int up_fd)
{
    static struct owner owners[16];
    uint8_t id[NCCL_ID_BYTES];
    struct kv_memory *memory = memory_create(3);
    uint64_t left = left_of(memory);
    uint32_t count = 0;
    while (read(ids_fd, id, sizeof id) == (ssize_t)sizeof id) {
        struct owner *owner = &owners[count++];
        start(owner, memory, NCCL_RANK_D, id, MINUTE, MINUTE);
    }
    for (uint32_t i = 0; i < count; i++) { AWAIT(&owners[i], owners[i].is_up); }
    if (write(up_fd, "u", 1) != 1) { _exit(1); }
    for (uint32_t i = 0; i < count; i++) {
        AWAIT(&owners[i], owners[i].is_broken);
        end(&owners[i]);
    }
    _exit(left_of(memory) == left && fake_nccl_end() ? 0 : 1);
}

static pid_t fork_d(int *ret_ids, int *ret_up)
{
    int ids[2], up[2];
    assert_int_equal(pipe(ids), 0);
    assert_int_equal(pipe(up), 0);
    pid_t child = fork();
    if (child == 0) {
        close(ids[1]);
        close(up[0]);
        be_d(ids[0], up[1]);
    }
    close(ids[0]);
    close(up[1]);
    *ret_ids = ids[1];
    *ret_up = up[0];
    return child;
}

/* What a communicator took of the device is exact where one comes up alone, and of many that come up at once each says
 * what one took, not what all did. */
static void memory_is_counted(void **state)
{
    (void)state;
    enum { MANY = 8 };
    for (uint32_t count = 1; count <= MANY; count += MANY - 1) {
        struct owner owners[MANY];
        int ids_fd, up_fd;
        char up = 0;
        pid_t child = fork_d(&ids_fd, &up_fd);
        struct kv_memory *memory = memory_create(4);
        uint64_t left = left_of(memory);
        for (uint32_t i = 0; i < count; i++) { start(&owners[i], memory, NCCL_RANK_P, NULL, MINUTE, MINUTE); }
        for (uint32_t i = 0; i < count; i++) {
            AWAIT(&owners[i], owners[i].has_id);
            assert_int_equal(write(ids_fd, owners[i].id, NCCL_ID_BYTES), (int)NCCL_ID_BYTES);
        }
        close(ids_fd);
        for (uint32_t i = 0; i < count; i++) {
            AWAIT(&owners[i], owners[i].is_up);
            assert_int_equal(owners[i].bytes, COMM_BYTES);
        }
        assert_int_equal(left - left_of(memory), count * (COMM_BYTES + SLOTS * SLOT_BYTES));
        assert_int_equal(read(up_fd, &up, 1), 1);
        for (uint32_t i = 0; i < count; i++) { nccl_pair_end(owners[i].pair); }
        for (uint32_t i = 0; i < count; i++) { finish(&owners[i]); }
        int status = 0;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        assert_int_equal(left_of(memory), left);
        fake_memory_destroy(memory);
        close(up_fd);
        assert_true(fake_nccl_end());
    }
}

/* kill -9 of the other side: seen as an error of NCCL's where it sees it, and where it does not by what no longer moves. */
static void death_is_told_either_way(void **state)
{
    (void)state;
    for (int unseen = 0; unseen < 2; unseen++) {
        struct owner p;
        int ids_fd, up_fd, status;
        char up;
        pid_t child = fork_d(&ids_fd, &up_fd);
        options((struct fake_nccl_options){.death_unseen = unseen});
        struct kv_memory *memory = memory_create(5);
        uint64_t left = left_of(memory);
        start(&p, memory, NCCL_RANK_P, NULL, MINUTE, unseen ? NS_PER_S / 5 : MINUTE);
        AWAIT(&p, p.has_id);
        assert_int_equal(write(ids_fd, p.id, sizeof p.id), (int)sizeof p.id);
        close(ids_fd);
        AWAIT(&p, p.is_up);
        assert_int_equal(read(up_fd, &up, 1), 1);
        nccl_pair_transfer(p.pair, 2, 4096); /* that nobody receives */
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &status, 0), child);
        AWAIT(&p, p.is_broken);
        assert_int_equal(p.status.code, unseen ? ST_DEADLINE_EXCEEDED : ST_UNAVAILABLE);
        assert_int_equal(p.status.scope, SCOPE_PEER);
        assert_non_null(strstr(p.text, unseen ? "1 transfers have not moved for 200 ms" : "remote process exited"));
        assert_int_equal(p.passed_all, 0);
        end(&p);
        assert_int_equal(left_of(memory), left);
        fake_memory_destroy(memory);
        close(up_fd);
        assert_true(fake_nccl_end());
    }
    options((struct fake_nccl_options){.version = 0});
}

/* ---- what goes wrong before it is up -------------------------------------------------------------- */

/* Whatever fails before a pair is up is told once, with a sentence; and nothing is left of it, nor of the id's listener. */
static void failures_before_up_are_told(void **state)
{
    static const struct {
        struct fake_nccl_options options;
        uint64_t bytes_left; /* of P's device; 0: enough */
        uint8_t code, scope;
        bool has_id;
        const char *words;
    } cases[] = {
        {{.id_fails = NCCL_SYSTEM_ERROR}, 0, ST_UNAVAILABLE, SCOPE_PEER, false, "ncclGetUniqueId: unhandled system error (2)"},
        {{.init_fails = NCCL_INTERNAL_ERROR}, 0, ST_INTERNAL, SCOPE_PEER, true, "ncclCommInitRankConfig: internal error (3)"},
        {{.init_hangs = true}, 0, ST_DEADLINE_EXCEEDED, SCOPE_PEER, true, "ncclCommInitRankConfig went on inside NCCL past its limit"},
        {{.version = 0}, 0, ST_DEADLINE_EXCEEDED, SCOPE_PEER, true, "the peer never came"}, /* as it does not here */
        {{.version = 0}, SLOTS * SLOT_BYTES - 1, ST_RESOURCE_EXHAUSTED, SCOPE_NODE, false, "slots"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct owner p;
        options(cases[i].options);
        struct kv_memory *memory = memory_create(6);
        uint64_t left = left_of(memory), taken = cases[i].bytes_left ? left - cases[i].bytes_left : 0;
        assert_true(fake_memory_take(memory, taken));
        start(&p, memory, NCCL_RANK_P, NULL, NS_PER_S / 5, MINUTE);
        AWAIT(&p, p.is_broken);
        if (!strstr(p.text, cases[i].words)) { fail_msg("\"%s\" instead of \"%s\"", p.text, cases[i].words); }
        assert_int_equal(p.status.code, cases[i].code);
        assert_int_equal(p.status.scope, cases[i].scope);
        assert_int_equal(p.has_id, cases[i].has_id);
        assert_false(p.is_up);
        options((struct fake_nccl_options){.version = 0}); /* a stranger comes to the listener without trouble */
        end(&p);
        assert_int_equal(left_of(memory), left - taken);
        fake_memory_give_back(memory, taken);
        fake_memory_destroy(memory);
        while (fake_nccl_counts().roots > 0) { sched_yield(); }
        assert_true(fake_nccl_end());
    }
}

/* No memory for the communicator, or for the channels, which NCCL takes with the first transfer: both are failures before
 * up, told in NCCL's words on the one side, and by its limit on the other, which nobody told. */
static void no_device_memory_for_nccl(void **state)
{
    (void)state;
    for (int has_comm = 0; has_comm < 2; has_comm++) {
        struct two two = {.memory_p = memory_create(1), .memory_d = memory_create(2)};
        two.left = left_of(two.memory_p);
        uint64_t taken = two.left - SLOTS * SLOT_BYTES - (has_comm ? FAKE_NCCL_BYTES_INIT : 0);
        assert_true(fake_memory_take(two.memory_p, taken));
        start(&two.p, two.memory_p, NCCL_RANK_P, NULL, MINUTE, MINUTE);
        AWAIT(&two.p, two.p.has_id);
        start(&two.d, two.memory_d, NCCL_RANK_D, two.p.id, NS_PER_S, MINUTE);
        AWAIT(&two.p, two.p.is_broken);
        assert_int_equal(two.p.status.code, ST_INTERNAL);
        assert_int_equal(two.p.status.cause, NCCL_UNHANDLED_CUDA_ERROR);
        assert_non_null(strstr(two.p.text, has_comm ? "ncclSend: unhandled cuda error (1)" : "ncclCommInitRankConfig: unhandled cuda error (1)"));
        AWAIT(&two.d, two.d.is_broken);
        assert_int_equal(two.d.status.code, ST_DEADLINE_EXCEEDED);
        assert_false(two.p.is_up || two.d.is_up);
        fake_memory_give_back(two.memory_p, taken);
        close_two(&two);
    }
}

/* A communicator whose first bytes do not pass is not up. */
static void first_bytes_are_part_of_coming_up(void **state)
{
    (void)state;
    struct two two;
    options((struct fake_nccl_options){.hang_at = 1});
    begin_with(&two, NS_PER_S, MINUTE);
    AWAIT(&two.d, two.d.is_broken);
    assert_int_equal(two.d.status.code, ST_DEADLINE_EXCEEDED);
    assert_non_null(strstr(two.d.text, "its first bytes have not passed in time"));
    AWAIT(&two.p, two.p.is_broken);
    assert_false(two.p.is_up || two.d.is_up);
    close_two(&two);
}

/* A communicator of another size than was asked for is refused. */
static void other_size_is_refused(void **state)
{
    (void)state;
    struct two two;
    options((struct fake_nccl_options){.ranks = 3});
    begin_with(&two, MINUTE, MINUTE);
    AWAIT(&two.d, two.d.is_broken);
    AWAIT(&two.p, two.p.is_broken);
    assert_int_equal(two.p.status.code, ST_INTERNAL);
    assert_non_null(strstr(two.p.text, "a communicator of 3 ranks"));
    close_two(&two);
}

/* The end may come at any time before up: no BROKEN, ENDED, nothing left. */
static void end_before_up(void **state)
{
    (void)state;
    for (int when = 0; when < 3; when++) {
        struct owner p;
        struct kv_memory *memory = memory_create(7);
        uint64_t left = left_of(memory);
        start(&p, memory, NCCL_RANK_P, NULL, MINUTE, MINUTE);
        if (when == 1) { AWAIT(&p, p.has_id); }
        while (when == 2 && fake_nccl_counts().comms == 0) { sched_yield(); }
        end(&p);
        assert_false(p.is_broken);
        assert_false(p.is_up);
        assert_int_equal(left_of(memory), left);
        fake_memory_destroy(memory);
        while (fake_nccl_counts().roots > 0) { sched_yield(); }
        assert_true(fake_nccl_end());
    }
}

/* ---- what goes wrong in use ------------------------------------------------------------------------ */

/* An async error and a hang at the third transfer: what came before has passed, the third never does, on neither side, and
 * BROKEN says which of the two it was. */
static void failures_in_use_are_told(void **state)
{
    (void)state;
    for (int hangs = 0; hangs < 2; hangs++) {
        struct two two;
        options(hangs ? (struct fake_nccl_options){.hang_at = 4} : (struct fake_nccl_options){.error_at = 4}); /* 1: the first bytes */
        begin_with(&two, MINUTE, NS_PER_S);
        AWAIT(&two.p, two.p.is_up);
        AWAIT(&two.d, two.d.is_up);
        for (uint32_t i = 0; i < 4; i++) {
            fill(&two.p, i, i, 2000);
            move(&two, i, i, 2000);
            if (i < 2) { AWAIT(&two.d, two.d.passed[i] == 1); }
        }
        AWAIT(&two.d, two.d.is_broken);
        AWAIT(&two.p, two.p.is_broken);
        assert_int_equal(two.d.status.code, hangs ? ST_DEADLINE_EXCEEDED : ST_UNAVAILABLE);
        assert_non_null(strstr(two.d.text, hangs ? "2 transfers have not moved for 1000 ms" : "remote process exited"));
        assert_int_equal(two.d.passed_all, 2);
        assert_true(two.p.passed_all <= 2);
        nccl_pair_transfer(two.d.pair, 0, 2000); /* a cable that has not heard yet */
        close_two(&two);
        assert_int_equal(two.d.passed_all, 2);
    }
}

/* Transfers that an abort cuts short do not pass, though their queue goes on: neither one that is on the device, nor those
 * behind it. */
static void cut_transfers_do_not_pass(void **state)
{
    (void)state;
    for (uint32_t count = 1; count <= SLOTS; count += SLOTS - 1) {
        struct two two;
        begin(&two);
        for (uint32_t i = 0; i < count; i++) { nccl_pair_transfer(two.d.pair, i, 512); } /* that nobody sends */
        while (fake_memory_under_way(two.memory_d) < count) { sched_yield(); } /* the PASSED of each */
        end(&two.d);
        assert_int_equal(two.d.passed_all, 0);
        assert_false(two.d.is_broken);
        end(&two.p);
        nothing_is_left(&two);
    }
}

/* Bytes that come after a pair was given up come into its slot, and nobody hears of them. */
static void late_bytes_are_not_told(void **state)
{
    (void)state;
    struct two two;
    begin_with(&two, MINUTE, NS_PER_S / 10);
    AWAIT(&two.p, two.p.is_up);
    AWAIT(&two.d, two.d.is_up);
    nccl_pair_transfer(two.d.pair, 0, 512);
    AWAIT(&two.d, two.d.is_broken);
    assert_int_equal(two.d.status.code, ST_DEADLINE_EXCEEDED);
    fill(&two.p, 3, 1, 512);
    nccl_pair_transfer(two.p.pair, 3, 512);
    while (fake_memory_under_way(two.memory_d) > 0) { sched_yield(); }
    assert_true(holds(&two.d, 0, 1, 512));
    assert_int_equal(two.d.passed_all, 0);
    close_two(&two);
}

/* The device is lost: so is the pair, and it ends all the same. */
static void lost_device_breaks_the_pair(void **state)
{
    (void)state;
    struct two two;
    begin(&two);
    fake_memory_lose(two.memory_d);
    move(&two, 0, 0, 512);
    AWAIT(&two.d, two.d.is_broken);
    assert_int_equal(two.d.status.code, ST_INTERNAL);
    assert_int_equal(two.d.status.scope, SCOPE_NODE);
    end(&two.d);
    end(&two.p);
    assert_true(fake_nccl_end());
    fake_memory_destroy(two.memory_p);
    fake_memory_destroy(two.memory_d);
}

/* ---- what NCCL does not give back -------------------------------------------------------------------- */

/* An abort that does not return: the pair is stuck after its limit and not before, its memory stays taken, and others are
 * made, work and end meanwhile. Should it return after all, the pair ends. */
static void abort_that_hangs_holds_up_nobody(void **state)
{
    (void)state;
    struct two stuck, other;
    options((struct fake_nccl_options){.abort_hangs = true});
    begin(&stuck);
    nccl_pair_transfer(stuck.d.pair, 0, 512);
    while (fake_nccl_counts().kernels < 1) { sched_yield(); }
    assert_false(nccl_pair_is_stuck(stuck.d.pair, clock_now_ns()));
    nccl_pair_end(stuck.d.pair);
    while (fake_nccl_counts().hanging < 1) { sched_yield(); }
    assert_false(nccl_pair_is_stuck(stuck.d.pair, clock_now_ns() - NS_PER_S));
    assert_true(nccl_pair_is_stuck(stuck.d.pair, clock_now_ns() + NCCL_ABORT_NS));
    assert_false(nccl_pair_is_stuck(stuck.p.pair, clock_now_ns()));

    options((struct fake_nccl_options){.version = 0});
    begin(&other);
    fill(&other.p, 0, 8, 512);
    move(&other, 0, 0, 512);
    AWAIT(&other.d, other.d.passed[0] == 1);
    assert_true(holds(&other.d, 0, 8, 512));
    nccl_pair_end(other.p.pair);
    nccl_pair_end(other.d.pair);
    finish(&other.p);
    finish(&other.d);
    assert_int_equal(left_of(other.memory_d), other.left);
    fake_memory_destroy(other.memory_p);
    fake_memory_destroy(other.memory_d);

    assert_false(stuck.d.is_ended);
    assert_int_equal(left_of(stuck.memory_d), stuck.left - COMM_BYTES - SLOTS * SLOT_BYTES);
    nccl_pair_end(stuck.p.pair);
    fake_nccl_let_go();
    AWAIT(&stuck.d, stuck.d.is_ended);
    assert_false(nccl_pair_is_stuck(stuck.d.pair, clock_now_ns() + MINUTE));
    finish(&stuck.d);
    finish(&stuck.p);
    nothing_is_left(&stuck);
}

/* A call that does not return makes a pair stuck as well, before anybody told it to end. */
static void call_that_hangs_is_stuck(void **state)
{
    (void)state;
    struct two two;
    options((struct fake_nccl_options){.call_hangs_at = 2});
    begin(&two);
    nccl_pair_transfer(two.d.pair, 0, 512);
    while (fake_nccl_counts().hanging < 1) { sched_yield(); }
    assert_false(nccl_pair_is_stuck(two.d.pair, clock_now_ns()));
    assert_true(nccl_pair_is_stuck(two.d.pair, clock_now_ns() + NCCL_ABORT_NS));
    assert_false(nccl_pair_is_stuck(two.p.pair, clock_now_ns()));
    fake_nccl_let_go();
    close_two(&two);
}

/* ---- elastic ------------------------------------------------------------------------------------------ */

static uint32_t entries(const char *folder)
{
    uint32_t count = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    while (readdir(dir)) { count++; }
    closedir(dir);
    return count;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static size_t heap(void) { return 0; } /* theirs, and they look for themselves */
#else
static size_t heap(void) { return mallinfo2().uordblks; }
#endif

enum { PAIRS = 64 };
static struct owner many_p[PAIRS], many_d[PAIRS];

/* 64 pairs, at once, of one process that has both ends: some end idle, some under way, some with their peer gone first, some
 * before they are up, and each third fails in its own way. */
static void join_and_leave(struct kv_memory *memory_p, struct kv_memory *memory_d, struct rng *rng)
{
    for (uint32_t i = 0; i < PAIRS; i++) {
        uint64_t which = rng_below(rng, 9);
        options(which == 0   ? (struct fake_nccl_options){.error_at = 2}
                : which == 1 ? (struct fake_nccl_options){.hang_at = 2}
                : which == 2 ? (struct fake_nccl_options){.abort_ms = 5}
                             : (struct fake_nccl_options){.version = 0});
        start(&many_p[i], memory_p, NCCL_RANK_P, NULL, MINUTE, MINUTE);
        AWAIT(&many_p[i], many_p[i].has_id);
        start(&many_d[i], memory_d, NCCL_RANK_D, many_p[i].id, MINUTE, MINUTE);
    }
    for (uint32_t i = 0; i < PAIRS; i++) {
        uint64_t how = rng_below(rng, 4);
        struct owner *first = rng_below(rng, 2) ? &many_p[i] : &many_d[i], *second = first == &many_p[i] ? &many_d[i] : &many_p[i];
        if (how > 0) {
            AWAIT(&many_p[i], many_p[i].is_up);
            AWAIT(&many_d[i], many_d[i].is_up);
        }
        if (how > 1) {
            nccl_pair_transfer(many_d[i].pair, 1, 700);
            if (how > 2) { nccl_pair_transfer(many_p[i].pair, 3, 700); }
        }
        nccl_pair_end(first->pair);
        nccl_pair_end(second->pair);
    }
    for (uint32_t i = 0; i < PAIRS; i++) {
        finish(&many_p[i]);
        finish(&many_d[i]);
    }
    while (fake_nccl_counts().roots > 0) { sched_yield(); }
    assert_true(fake_nccl_end());
}

/* Rounds of 64 pairs that join and leave, in every state, leave no thread, descriptor, slot or byte. */
static void elastic_pairs_leak_nothing(void **state)
{
    (void)state;
    const uint64_t seed = 64;
    struct rng rng = rng_init(seed);
    print_message("seed %llu\n", (unsigned long long)seed);
    struct kv_memory *memory_p = memory_create(8), *memory_d = memory_create(9);
    uint64_t left = left_of(memory_p);
    uint32_t threads = 0, descriptors = 0;
    size_t bytes = 0;
    for (int round = 0; round < 4; round++) {
        join_and_leave(memory_p, memory_d, &rng);
        assert_int_equal(left_of(memory_p), left);
        assert_int_equal(left_of(memory_d), left);
        if (round == 0) { /* what the C library keeps for itself is there now */
            threads = entries("/proc/self/task");
            descriptors = entries("/proc/self/fd");
            bytes = heap();
        }
        /* A thread that has been joined may be in the list for a moment. */
        while (entries("/proc/self/task") > threads) { sched_yield(); }
        assert_int_equal(entries("/proc/self/fd"), descriptors);
        assert_true(heap() <= bytes + 64 * 1024);
    }
    fake_memory_destroy(memory_p);
    fake_memory_destroy(memory_d);
    options((struct fake_nccl_options){.version = 0});
}

static int setup(void **state)
{
    (void)state;
    api = fake_nccl_api(&fake_nccl_on_memory);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_counted),
        cmocka_unit_test(death_is_told_either_way),
        cmocka_unit_test(failures_before_up_are_told),
        cmocka_unit_test(no_device_memory_for_nccl),
        cmocka_unit_test(first_bytes_are_part_of_coming_up),
        cmocka_unit_test(other_size_is_refused),
        cmocka_unit_test(end_before_up),
        cmocka_unit_test(failures_in_use_are_told),
        cmocka_unit_test(cut_transfers_do_not_pass),
        cmocka_unit_test(late_bytes_are_not_told),
        cmocka_unit_test(lost_device_breaks_the_pair),
        cmocka_unit_test(abort_that_hangs_holds_up_nobody),
        cmocka_unit_test(call_that_hangs_is_stuck),
        cmocka_unit_test(bytes_arrive_in_order),
        cmocka_unit_test(idle_pair_stays_and_ends_alone),
        cmocka_unit_test(elastic_pairs_leak_nothing),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
