/* What fake_nccl promises of NCCL: tests of the nccl cable believe it. Over fake_memory. */
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

#include "tests/kv_memory/fake_memory.h"
#include "tests/nccl/fake_nccl.h"
#include "transfer/nccl_root.h"

enum { SLOTS = 4, SLOT_BYTES = 1 << 16 };
#define MINUTE_NS UINT64_C(60000000000)

static const struct nccl_api *api;

struct side {
    struct kv_memory *memory;
    uint8_t *slots;
    struct kv_memory_queue *queue;
    void *stream;
    nccl_comm_t comm;
    pthread_mutex_t lock; /* guards passed */
    pthread_cond_t changed;
    uint32_t passed;
    struct kv_memory_op ops[8];
    uint32_t op_count;
};

static void side_open(struct side *side, uint64_t seed)
{
    const struct fake_memory_config config = {.pool_bytes = 4096, .seed = seed, .delay_us_max = 50};
    memset(side, 0, sizeof *side);
    pthread_mutex_init(&side->lock, NULL);
    pthread_cond_init(&side->changed, NULL);
    side->memory = fake_memory_create(&config);
    assert_false(failed(kv_memory_slots_alloc(side->memory, SLOTS * SLOT_BYTES, &side->slots, NULL)));
    assert_false(failed(kv_memory_queue_create(side->memory, &side->queue, NULL)));
    side->stream = kv_memory_queue_handle(side->memory, side->queue);
}

static void side_close(struct side *side)
{
    kv_memory_queue_destroy(side->memory, side->queue);
    kv_memory_slots_free(side->memory, side->slots);
    fake_memory_destroy(side->memory);
    pthread_cond_destroy(&side->changed);
    pthread_mutex_destroy(&side->lock);
}

static void on_passed(struct kv_memory_op *op)
{
    struct side *side = op->user;
    pthread_mutex_lock(&side->lock);
    side->passed++;
    pthread_cond_broadcast(&side->changed);
    pthread_mutex_unlock(&side->lock);
}

/* What is queued now has passed when side->passed has grown. */
static void mark(struct side *side)
{
    struct kv_memory_op *op = &side->ops[side->op_count++ % 8];
    *op = (struct kv_memory_op){.kind = KV_MEMORY_PASSED, .queue = side->queue, .done = on_passed, .user = side};
    kv_memory_submit(side->memory, op);
}

static uint32_t passed(struct side *side)
{
    pthread_mutex_lock(&side->lock);
    uint32_t count = side->passed;
    pthread_mutex_unlock(&side->lock);
    return count;
}

static void await_passed(struct side *side, uint32_t count)
{
    pthread_mutex_lock(&side->lock);
    while (side->passed < count) { pthread_cond_wait(&side->changed, &side->lock); }
    pthread_mutex_unlock(&side->lock);
}

struct init {
    struct side *side;
    int ranks, rank;
    struct nccl_id id;
    nccl_result_t result;
};

static void *init_main(void *user)
{
    struct init *init = user;
    struct nccl_config config = nccl_config_make(2);
    assert_false(failed(kv_memory_thread_bind(init->side->memory, NULL)));
    init->result = api->comm_init_rank_config(&init->side->comm, init->ranks, init->id, init->rank, &config);
    return NULL;
}

/* By a thread of its own: two at once may not be one's. */
static nccl_result_t init(struct side *side, int ranks, const struct nccl_id *id, int rank)
{
    struct init init = {.side = side, .ranks = ranks, .rank = rank, .id = *id};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, init_main, &init), 0);
    pthread_join(thread, NULL);
    return init.result;
}

static nccl_result_t state_of(struct side *side)
{
    nccl_result_t error = NCCL_SUCCESS;
    assert_int_equal(api->comm_get_async_error(side->comm, &error), NCCL_SUCCESS);
    return error;
}

static nccl_result_t settle(struct side *side)
{
    nccl_result_t state;
    while ((state = state_of(side)) == NCCL_IN_PROGRESS) { sched_yield(); }
    return state;
}

static nccl_result_t send_slot(struct side *side, uint32_t slot, size_t bytes)
{
    return api->send(side->slots + slot * SLOT_BYTES, bytes, NCCL_UINT8, 1, side->comm, side->stream);
}

static nccl_result_t recv_slot(struct side *side, uint32_t slot, size_t bytes)
{
    return api->recv(side->slots + slot * SLOT_BYTES, bytes, NCCL_UINT8, 0, side->comm, side->stream);
}

static void fill(struct side *side, uint32_t slot, uint8_t seed)
{
    uint8_t *view = fake_memory_reach(side->slots + slot * SLOT_BYTES);
    for (uint32_t i = 0; i < SLOT_BYTES; i++) { view[i] = (uint8_t)(seed + i * 2654435761u / 65536); }
}

static bool holds(struct side *side, uint32_t slot, uint8_t seed, size_t bytes)
{
    const uint8_t *view = fake_memory_reach(side->slots + slot * SLOT_BYTES);
    for (uint32_t i = 0; i < bytes; i++) {
        if (view[i] != (uint8_t)(seed + i * 2654435761u / 65536)) { return false; }
    }
    return bytes == SLOT_BYTES || view[bytes] == 0xee; /* as fake_memory leaves what nobody wrote */
}

static void options(struct fake_nccl_options of) { fake_nccl_set(&of); }

/* Two communicators of one process, up. */
static void up(struct side *p, struct side *d)
{
    struct nccl_id id;
    side_open(p, 1);
    side_open(d, 2);
    assert_int_equal(api->get_unique_id(&id), NCCL_SUCCESS);
    assert_int_equal(init(p, 2, &id, 0), NCCL_IN_PROGRESS);
    assert_int_equal(init(d, 2, &id, 1), NCCL_IN_PROGRESS);
    assert_int_equal(settle(p), NCCL_SUCCESS);
    assert_int_equal(settle(d), NCCL_SUCCESS);
}

static void down(struct side *side)
{
    if (side->comm) { assert_int_equal(api->comm_abort(side->comm), NCCL_SUCCESS); }
    mark(side);
    await_passed(side, side->op_count);
    side_close(side);
}

/* ---- what works ------------------------------------------------------------------------------- */

/* Init is over only when both have come; then both have taken memory, and an abort gives it back. */
static void init_waits_for_both(void **state)
{
    struct side p, d;
    struct nccl_id id;
    uint64_t before, after;
    int ranks = 0;
    (void)state;
    side_open(&p, 1);
    side_open(&d, 2);
    assert_false(failed(kv_memory_left(p.memory, &before, NULL)));
    assert_int_equal(api->get_unique_id(&id), NCCL_SUCCESS);
    assert_int_equal(init(&p, 2, &id, 0), NCCL_IN_PROGRESS);
    /* Another pair comes up meanwhile, which takes its time: the first has not. */
    struct side other_p, other_d;
    up(&other_p, &other_d);
    assert_int_equal(state_of(&p), NCCL_IN_PROGRESS);
    assert_int_equal(init(&d, 2, &id, 1), NCCL_IN_PROGRESS);
    assert_int_equal(settle(&p), NCCL_SUCCESS);
    assert_int_equal(settle(&d), NCCL_SUCCESS);
    assert_int_equal(api->comm_count(p.comm, &ranks), NCCL_SUCCESS);
    assert_int_equal(ranks, 2);
    assert_false(failed(kv_memory_left(p.memory, &after, NULL)));
    assert_int_equal(before - after, FAKE_NCCL_BYTES_INIT);
    assert_int_equal(api->comm_abort(p.comm), NCCL_SUCCESS);
    p.comm = NULL;
    assert_false(failed(kv_memory_left(p.memory, &after, NULL)));
    assert_int_equal(before, after);
    down(&p);
    down(&d);
    down(&other_p);
    down(&other_d);
    assert_true(fake_nccl_end());
}

/* The n-th send goes to the n-th receive, each waits for the other, and nothing but those bytes is written. The first
 * takes the channels' memory. */
static void transfers_match_in_order(void **state)
{
    struct side p, d;
    uint64_t before, after;
    (void)state;
    up(&p, &d);
    assert_false(failed(kv_memory_left(d.memory, &before, NULL)));
    for (uint32_t i = 0; i < SLOTS; i++) {
        fill(&p, i, (uint8_t)(40 + i));
        /* The receiver takes the slots from the other end. */
        assert_int_equal(recv_slot(&d, SLOTS - 1 - i, 1000 + i), NCCL_IN_PROGRESS);
        assert_int_equal(send_slot(&p, i, 1000 + i), NCCL_IN_PROGRESS);
        assert_int_equal(settle(&d), NCCL_SUCCESS);
        assert_int_equal(settle(&p), NCCL_SUCCESS);
    }
    mark(&p);
    mark(&d);
    await_passed(&p, 1);
    await_passed(&d, 1);
    for (uint32_t i = 0; i < SLOTS; i++) { assert_true(holds(&d, SLOTS - 1 - i, (uint8_t)(40 + i), 1000 + i)); }
    assert_false(failed(kv_memory_left(d.memory, &after, NULL)));
    assert_int_equal(before - after, 2 * FAKE_NCCL_BYTES_CHANNEL);
    down(&p);
    down(&d);
    assert_true(fake_nccl_end());
}

/* A kernel whose peer does not come spins; what is queued behind it waits; an abort ends it, and the bytes never come. */
static void kernel_spins_until_its_peer_or_an_abort(void **state)
{
    struct side p, d, other_p, other_d;
    (void)state;
    up(&p, &d);
    assert_int_equal(recv_slot(&d, 0, 512), NCCL_IN_PROGRESS);
    assert_int_equal(send_slot(&p, 0, 512), NCCL_IN_PROGRESS);
    assert_int_equal(settle(&p), NCCL_SUCCESS);
    assert_int_equal(settle(&d), NCCL_SUCCESS);
    assert_int_equal(recv_slot(&d, 1, 512), NCCL_IN_PROGRESS);
    assert_int_equal(settle(&d), NCCL_SUCCESS);
    mark(&d);
    /* A whole other pair moves bytes; this one does not. */
    up(&other_p, &other_d);
    assert_int_equal(recv_slot(&other_d, 0, 512), NCCL_IN_PROGRESS);
    assert_int_equal(send_slot(&other_p, 0, 512), NCCL_IN_PROGRESS);
    assert_int_equal(settle(&other_d), NCCL_SUCCESS);
    assert_int_equal(settle(&other_p), NCCL_SUCCESS);
    mark(&other_d);
    await_passed(&other_d, 1);
    assert_int_equal(passed(&d), 0);
    assert_int_equal(fake_nccl_counts().kernels, 1);
    assert_int_equal(api->comm_abort(d.comm), NCCL_SUCCESS);
    d.comm = NULL;
    await_passed(&d, 1);
    assert_int_equal(*fake_memory_reach(d.slots + SLOT_BYTES), 0xee);
    down(&d);
    while (state_of(&p) != NCCL_REMOTE_ERROR) { sched_yield(); }
    down(&p);
    down(&other_p);
    down(&other_d);
    assert_true(fake_nccl_end());
}

/* One rank alone is up at once, and sends to itself in a group with its receive, but not without. */
static void one_rank_sends_to_itself(void **state)
{
    struct side one;
    struct nccl_id id;
    (void)state;
    side_open(&one, 3);
    assert_int_equal(api->get_unique_id(&id), NCCL_SUCCESS);
    assert_int_equal(init(&one, 1, &id, 0), NCCL_IN_PROGRESS);
    assert_int_equal(settle(&one), NCCL_SUCCESS);
    fill(&one, 0, 9);
    assert_int_equal(api->group_start(), NCCL_SUCCESS);
    assert_int_equal(api->send(one.slots, 4096, NCCL_UINT8, 0, one.comm, one.stream), NCCL_SUCCESS);
    assert_int_equal(api->recv(one.slots + SLOT_BYTES, 4096, NCCL_UINT8, 0, one.comm, one.stream), NCCL_SUCCESS);
    assert_int_equal(api->group_end(), NCCL_IN_PROGRESS);
    assert_int_equal(settle(&one), NCCL_SUCCESS);
    mark(&one);
    await_passed(&one, 1);
    assert_true(holds(&one, 1, 9, 4096));
    assert_int_equal(api->send(one.slots, 4096, NCCL_UINT8, 0, one.comm, one.stream), NCCL_INVALID_USAGE);
    down(&one);
    assert_true(fake_nccl_end());
}

/* Without a device of its own a thread makes no communicator; nor with a configuration that is none. */
static void init_needs_a_device_and_a_configuration(void **state)
{
    struct nccl_config config = nccl_config_make(2);
    struct nccl_id id = {.internal = "nobody"};
    nccl_comm_t comm = &config;
    (void)state;
    if (fake_memory_bound() == NULL) {
        assert_int_equal(api->comm_init_rank_config(&comm, 2, id, 0, &config), NCCL_UNHANDLED_CUDA_ERROR);
        assert_null(comm);
    }
    config.magic = 0;
    assert_int_equal(api->comm_init_rank_config(&comm, 2, id, 0, &config), NCCL_INVALID_ARGUMENT);
    assert_null(comm);
}

/* An id whose root is gone, and memory that is not there, are errors behind the call. */
static void init_fails_behind_the_call(void **state)
{
    struct nccl_id id = {.internal = "nobody"};
    struct side p;
    (void)state;
    side_open(&p, 1);
    assert_int_equal(init(&p, 2, &id, 0), NCCL_IN_PROGRESS);
    assert_int_equal(settle(&p), NCCL_SYSTEM_ERROR);
    assert_int_equal(send_slot(&p, 0, 512), NCCL_SYSTEM_ERROR);
    assert_int_equal(api->comm_abort(p.comm), NCCL_SUCCESS);
    uint64_t left;
    assert_false(failed(kv_memory_left(p.memory, &left, NULL)));
    assert_true(fake_memory_take(p.memory, left));
    assert_int_equal(api->get_unique_id(&id), NCCL_SUCCESS);
    assert_int_equal(init(&p, 1, &id, 0), NCCL_IN_PROGRESS);
    assert_int_equal(settle(&p), NCCL_UNHANDLED_CUDA_ERROR);
    fake_memory_give_back(p.memory, left);
    down(&p);
    assert_true(fake_nccl_end());
}

/* A root stays while a rank is missing, whoever has given up meanwhile or comes without knowing its id, and goes when one
 * comes that does not fit, be it a rank or not. */
static void root_waits_for_all_or_a_stranger(void **state)
{
    (void)state;
    for (int has_come = 0; has_come < 2; has_come++) {
        const uint64_t given_up = fake_nccl_counts().given_up;
        struct side p, stranger;
        struct nccl_id id;
        side_open(&p, 1);
        side_open(&stranger, 2);
        assert_int_equal(api->get_unique_id(&id), NCCL_SUCCESS);
        if (has_come) {
            assert_int_equal(init(&p, 2, &id, 0), NCCL_IN_PROGRESS);
            assert_int_equal(api->comm_abort(p.comm), NCCL_SUCCESS);
            p.comm = NULL;
        }
        struct nccl_id guessed = id;
        guessed.internal[0] ^= 1;
        assert_true(nccl_root_retire(NCCL_ROOT_VERSION_LAST, &guessed, MINUTE_NS)); /* it closes, as to a word from nobody */
        assert_int_equal(fake_nccl_counts().given_up - given_up, (uint64_t)has_come);
        assert_int_equal(fake_nccl_counts().roots, 1);
        assert_int_equal(init(&stranger, 1, &id, 0), NCCL_IN_PROGRESS);
        while (fake_nccl_counts().roots > 0) { sched_yield(); }
        down(&p);
        down(&stranger);
        assert_true(fake_nccl_end());
    }
}

/* A root goes when somebody comes who knows its id and is no rank, whether ranks have come or not. */
static void root_is_retired(void **state)
{
    (void)state;
    for (int has_come = 0; has_come < 2; has_come++) {
        struct side p;
        struct nccl_id id;
        side_open(&p, 1);
        assert_int_equal(api->get_unique_id(&id), NCCL_SUCCESS);
        if (has_come) { assert_int_equal(init(&p, 2, &id, 0), NCCL_IN_PROGRESS); }
        assert_true(nccl_root_retire(NCCL_ROOT_VERSION_FIRST, &id, MINUTE_NS));
        while (fake_nccl_counts().roots > 0) { sched_yield(); }
        assert_true(nccl_root_retire(NCCL_ROOT_VERSION_FIRST, &id, MINUTE_NS)); /* nobody is there any more */
        down(&p);
        assert_true(fake_nccl_end());
    }
}

/* ---- what goes wrong on demand ------------------------------------------------------------------ */

/* An async error comes with the op that was named, and its kernel spins; another op hangs; both end by abort. */
static void errors_and_hangs_come_at_their_op(void **state)
{
    (void)state;
    for (int hangs = 0; hangs < 2; hangs++) {
        struct side p, d;
        options(hangs ? (struct fake_nccl_options){.hang_at = 2} : (struct fake_nccl_options){.error_at = 2, .error = NCCL_SYSTEM_ERROR});
        up(&p, &d);
        for (uint32_t i = 0; i < 2; i++) {
            assert_int_equal(recv_slot(&d, i, 512), NCCL_IN_PROGRESS);
            assert_int_equal(send_slot(&p, i, 512), NCCL_IN_PROGRESS);
            nccl_result_t of_d = settle(&d), of_p = settle(&p);
            if (i == 0 || hangs) { assert_int_equal(of_d, NCCL_SUCCESS); }
            if (i == 0 || hangs) { assert_int_equal(of_p, NCCL_SUCCESS); }
            if (i == 0) {
                mark(&d);
                await_passed(&d, 1);
            }
        }
        while (!hangs && state_of(&p) != NCCL_SYSTEM_ERROR) { sched_yield(); }
        mark(&d);
        assert_int_equal(passed(&d), 1);
        assert_int_equal(fake_nccl_counts().kernels, 2);
        down(&p);
        down(&d);
        assert_true(fake_nccl_end());
    }
    options((struct fake_nccl_options){.version = 0});
}

/* An init that hangs is ended by an abort; one that fails says what it was told to. */
static void init_hangs_or_fails_as_told(void **state)
{
    struct side p;
    struct nccl_id id = {.internal = "nobody"};
    (void)state;
    options((struct fake_nccl_options){.init_hangs = true});
    side_open(&p, 1);
    assert_int_equal(init(&p, 2, &id, 0), NCCL_IN_PROGRESS);
    assert_int_equal(state_of(&p), NCCL_IN_PROGRESS);
    assert_int_equal(api->comm_abort(p.comm), NCCL_SUCCESS);
    options((struct fake_nccl_options){.init_fails = NCCL_INTERNAL_ERROR});
    assert_int_equal(init(&p, 2, &id, 0), NCCL_IN_PROGRESS);
    assert_int_equal(settle(&p), NCCL_INTERNAL_ERROR);
    down(&p);
    options((struct fake_nccl_options){.id_fails = NCCL_SYSTEM_ERROR});
    assert_int_equal(api->get_unique_id(&id), NCCL_SYSTEM_ERROR);
    options((struct fake_nccl_options){.version = 21805});
    int version = 0;
    assert_int_equal(api->get_version(&version), NCCL_SUCCESS);
    assert_int_equal(version, 21805);
    options((struct fake_nccl_options){.version = 0});
    assert_true(fake_nccl_end());
}

/* ---- two processes ------------------------------------------------------------------------------ */

static void child_dies(pid_t child, int signal_number)
{
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), signal_number);
}

/* Rank 1 in a process of its own: receives one, says so, and waits to be killed inside the second. */
static void be_rank_1(int id_fd, int told_fd)
{
    struct side d;
    struct nccl_id id;
    if (read(id_fd, &id, sizeof id) != (ssize_t)sizeof id) { _exit(1); }
    side_open(&d, 2);
    init(&d, 2, &id, 1);
    settle(&d);
    recv_slot(&d, 0, 4096);
    settle(&d);
    mark(&d);
    await_passed(&d, 1);
    char is_good = holds(&d, 0, 77, 4096);
    if (write(told_fd, &is_good, 1) != 1) { _exit(1); }
    for (;;) { pause(); }
}

/* Between processes the same; kill -9 of one is a remote error of the other, or nothing at all, and its kernel spins. */
static void death_is_seen_or_not(void **state)
{
    (void)state;
    for (int unseen = 0; unseen < 2; unseen++) {
        struct side p;
        struct nccl_id id;
        int ids[2], told[2];
        char is_good = 0;
        assert_int_equal(pipe(ids), 0);
        assert_int_equal(pipe(told), 0);
        pid_t child = fork();
        if (child == 0) { be_rank_1(ids[0], told[1]); }
        options((struct fake_nccl_options){.death_unseen = unseen});
        side_open(&p, 1);
        fill(&p, 0, 77);
        assert_int_equal(api->get_unique_id(&id), NCCL_SUCCESS);
        assert_int_equal(write(ids[1], &id, sizeof id), (int)sizeof id);
        assert_int_equal(init(&p, 2, &id, 0), NCCL_IN_PROGRESS);
        assert_int_equal(settle(&p), NCCL_SUCCESS);
        assert_int_equal(send_slot(&p, 0, 4096), NCCL_IN_PROGRESS);
        assert_int_equal(settle(&p), NCCL_SUCCESS);
        assert_int_equal(read(told[0], &is_good, 1), 1);
        assert_true(is_good);
        assert_int_equal(send_slot(&p, 1, 4096), NCCL_IN_PROGRESS);
        assert_int_equal(settle(&p), NCCL_SUCCESS);
        kill(child, SIGKILL);
        child_dies(child, SIGKILL);
        while (!unseen && state_of(&p) != NCCL_REMOTE_ERROR) { sched_yield(); }
        assert_int_equal(state_of(&p), unseen ? NCCL_SUCCESS : NCCL_REMOTE_ERROR);
        assert_int_equal(fake_nccl_counts().kernels, 1);
        down(&p);
        assert_true(fake_nccl_end());
        for (int i = 0; i < 2; i++) {
            close(ids[i]);
            close(told[i]);
        }
    }
    options((struct fake_nccl_options){.version = 0});
}

/* ---- what ends the process ---------------------------------------------------------------------- */

static void *call_that_hangs(void *user)
{
    send_slot(user, 0, 512);
    return NULL;
}

static void while_in_progress(void)
{
    struct side p;
    struct nccl_id id;
    side_open(&p, 1);
    api->get_unique_id(&id);
    init(&p, 2, &id, 0);
    send_slot(&p, 0, 512);
}

static void two_of_a_thread(void)
{
    struct side p;
    struct init one = {.side = &p, .ranks = 2, .rank = 0}, other = {.side = &p, .ranks = 1, .rank = 0};
    side_open(&p, 1);
    api->get_unique_id(&one.id);
    api->get_unique_id(&other.id);
    init_main(&one);
    init_main(&other);
}

static void after_abort(void)
{
    struct side p, d;
    up(&p, &d);
    api->comm_abort(p.comm);
    state_of(&p);
}

static void unequal_sizes(void)
{
    struct side p, d;
    up(&p, &d);
    recv_slot(&d, 0, 512);
    send_slot(&p, 0, 513);
    for (;;) { pause(); }
}

static void two_threads(void)
{
    struct side p, d;
    pthread_t thread;
    options((struct fake_nccl_options){.call_hangs_at = 1});
    up(&p, &d);
    pthread_create(&thread, NULL, call_that_hangs, &p);
    while (fake_nccl_counts().hanging == 0) { sched_yield(); }
    state_of(&p);
}

static void foreign_memory(void)
{
    struct side p, d;
    static uint8_t host[512];
    up(&p, &d);
    api->recv(host, sizeof host, NCCL_UINT8, 0, d.comm, d.stream);
    send_slot(&p, 0, sizeof host);
    for (;;) { pause(); }
}

static void unknown_option(void)
{
    setenv("FAKE_NCCL", "hang_at=2,hang_on", 1);
    fake_nccl_api(&fake_nccl_on_memory);
}

/* A broken rule is a death with the word for it. A process each, made before this one has threads. */
static void broken_rules_end_the_process(void **state)
{
    static const struct { void (*break_it)(void); const char *word; bool is_bare; } rules[] = {
        {while_in_progress, "ncclSend while the communicator is in progress", false},
        {two_of_a_thread, "ncclCommInitRankConfig by a thread whose other one is in progress", false},
        {after_abort, "ncclCommGetAsyncError on a communicator that is aborted, or never was", false},
        {unequal_sizes, "a send of 513 bytes meets a receive of 512", false},
        {two_threads, "ncclCommGetAsyncError while another thread is inside ncclSend", false},
        {foreign_memory, "a receive into memory that is not the device's", false},
        {unknown_option, "FAKE_NCCL: there is no option hang_on", true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        int words[2];
        char text[4096];
        size_t length = 0;
        assert_int_equal(pipe(words), 0);
        pid_t child = fork();
        if (child == 0) {
            signal(SIGABRT, SIG_DFL); /* a test framework may have its own */
            dup2(words[1], STDERR_FILENO);
            close(words[0]);
            close(words[1]);
            if (!rules[i].is_bare) { api = fake_nccl_api(&fake_nccl_on_memory); }
            rules[i].break_it();
            _exit(0);
        }
        close(words[1]);
        for (ssize_t got; length < sizeof text - 1 && (got = read(words[0], text + length, sizeof text - 1 - length)) > 0;) { length += (size_t)got; }
        text[length] = 0;
        close(words[0]);
        child_dies(child, SIGABRT);
        if (!strstr(text, rules[i].word)) { fail_msg("\"%s\" instead of \"%s\"", text, rules[i].word); }
    }
}

/* The same words in the environment. */
static void options_of_the_environment(void **state)
{
    (void)state;
    setenv("FAKE_NCCL", "version=21903,,abort_ms=0,init_hangs", 1);
    api = fake_nccl_api(&fake_nccl_on_memory);
    int version = 0;
    assert_int_equal(api->get_version(&version), NCCL_SUCCESS);
    assert_int_equal(version, 21903);
    unsetenv("FAKE_NCCL");
    options((struct fake_nccl_options){.version = 0});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_rules_end_the_process),
        cmocka_unit_test(options_of_the_environment),
        cmocka_unit_test(init_needs_a_device_and_a_configuration),
        cmocka_unit_test(death_is_seen_or_not),
        cmocka_unit_test(init_waits_for_both),
        cmocka_unit_test(transfers_match_in_order),
        cmocka_unit_test(kernel_spins_until_its_peer_or_an_abort),
        cmocka_unit_test(one_rank_sends_to_itself),
        cmocka_unit_test(init_fails_behind_the_call),
        cmocka_unit_test(root_waits_for_all_or_a_stranger),
        cmocka_unit_test(root_is_retired),
        cmocka_unit_test(errors_and_hangs_come_at_their_op),
        cmocka_unit_test(init_hangs_or_fails_as_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
