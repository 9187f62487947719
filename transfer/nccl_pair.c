#include "transfer/nccl_pair.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/check.h"
#include "base/clock.h"
#include "kv/kv_memory.h"
#include "transfer/nccl_api.h"
#include "transfer/nccl_root.h"

#define RANKS 2
#define POLL_NS_MIN UINT64_C(20000)   /* between two looks at a call that goes on inside NCCL; doubles to the most */
#define POLL_NS_MAX UINT64_C(5000000)
#define RETIRE_NS UINT64_C(1000000000) /* an id's listener is of this process: it hears at once or not at all */

struct transfer {
    struct nccl_pair *pair;
    uint32_t slot;
    size_t bytes;
    bool is_busy; /* from its call until PASSED */
    struct kv_memory_op op; /* its PASSED */
};

struct nccl_pair {
    struct nccl_pair_config config;
    pthread_t thread;
    bool has_thread, has_lock, has_wake;

    /* the thread's own */
    nccl_comm_t comm;
    struct kv_memory_queue *queue;
    uint8_t *slots; /* written before UP, then read by any */
    struct nccl_id id;
    bool has_id;    /* rank 0: made, and its listener may still wait */
    bool is_made;   /* the communicator: its abort frees all of it */
    uint32_t leaks; /* see nccl_pair_fact */
    uint64_t created_ns, looked_ns;

    /* Guards what follows: transfers and the end come from any thread, PASSED from the memory's. Facts are told under it,
     * which is what makes BROKEN the last but ENDED. */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct transfer transfers[NCCL_SLOTS_MAX];
    uint32_t posted[NCCL_SLOTS_MAX]; /* slots whose transfer is not yet queued: a ring */
    uint32_t posted_first, posted_count;
    uint32_t busy;        /* transfers that have not passed */
    uint32_t ops;         /* PASSED that are not done */
    uint64_t progress_ns; /* when the oldest busy one could begin to pass */
    uint64_t call_ns;     /* since when the thread is inside a call that may block; 0: it is not */
    uint64_t ending_ns;   /* 0: not */
    bool is_up, is_broken, is_aborting, is_ended;
    status_t device_status; /* of an op that failed */
};

/* ---- small things ---------------------------------------------------------------------------- */

static void tell(struct nccl_pair *pair, const struct nccl_pair_fact *fact) { pair->config.told(pair->config.user, fact); }

/* Under the lock: sleeps for so long, or until something is posted. */
static void doze(struct nccl_pair *pair, uint64_t ns)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    uint64_t nanoseconds = (uint64_t)at.tv_nsec + ns;
    at.tv_sec += (time_t)(nanoseconds / NS_PER_S);
    at.tv_nsec = (long)(nanoseconds % NS_PER_S);
    pthread_cond_timedwait(&pair->wake, &pair->lock, &at);
}

/* Around everything that may block, for nccl_pair_is_stuck(). */
static void call_begins(struct nccl_pair *pair)
{
    pthread_mutex_lock(&pair->lock);
    pair->call_ns = clock_now_ns();
    pthread_mutex_unlock(&pair->lock);
}

static void call_ends(struct nccl_pair *pair)
{
    pthread_mutex_lock(&pair->lock);
    pair->call_ns = 0;
    pthread_mutex_unlock(&pair->lock);
}

static nccl_result_t async_error(struct nccl_pair *pair, nccl_comm_t comm)
{
    nccl_result_t error = NCCL_SUCCESS;
    call_begins(pair);
    nccl_result_t result = pair->config.api->comm_get_async_error(comm, &error);
    call_ends(pair);
    return result != NCCL_SUCCESS ? result : error;
}

/* What came of a call: waits while it goes on inside NCCL. ST_CANCELLED (request): the end was asked for. */
static status_t settled(struct nccl_pair *pair, nccl_comm_t comm, const char *call, nccl_result_t result, uint64_t deadline_ns,
                        struct diag *diag)
{
    for (uint64_t pause_ns = POLL_NS_MIN; result == NCCL_IN_PROGRESS; pause_ns = pause_ns < POLL_NS_MAX ? 2 * pause_ns : POLL_NS_MAX) {
        pthread_mutex_lock(&pair->lock);
        if (!pair->ending_ns) { doze(pair, pause_ns); }
        bool ends = pair->ending_ns != 0;
        pthread_mutex_unlock(&pair->lock);
        if (ends) { return STATUS(ST_CANCELLED, SCOPE_REQUEST); }
        if (clock_now_ns() >= deadline_ns) {
            diag_set(diag, "%s went on inside NCCL past its limit: the peer never came, or the network that NCCL chose does not reach it (NCCL_SOCKET_IFNAME, NCCL_DEBUG=INFO)", call);
            return STATUS(ST_DEADLINE_EXCEEDED, SCOPE_PEER);
        }
        result = async_error(pair, comm);
    }
    if (result != NCCL_SUCCESS) { return nccl_api_status(pair->config.api, comm, call, result, diag); }
    return STATUS_OK;
}

/* ---- what a communicator takes ---------------------------------------------------------------- */

/* Free memory of a device, before and after, says what a communicator took only if no other one came or went meanwhile.
 * Where that was so, the last that was measured alone stands for it. All pairs of a process have like numbers. */
static struct {
    pthread_mutex_t lock;
    uint32_t under_way;
    uint64_t begun;
    uint64_t bytes_alone;
} measure = {.lock = PTHREAD_MUTEX_INITIALIZER};

struct measuring {
    uint64_t begun;
    uint64_t left; /* bytes */
    bool is_alone, is_known;
};

static void measuring_begin(struct nccl_pair *pair, struct measuring *ret)
{
    pthread_mutex_lock(&measure.lock);
    ret->is_alone = measure.under_way++ == 0;
    ret->begun = ++measure.begun;
    pthread_mutex_unlock(&measure.lock);
    ret->is_known = !failed(kv_memory_left(pair->config.memory, &ret->left, NULL));
}

static uint64_t measuring_end(struct nccl_pair *pair, const struct measuring *of, bool is_up)
{
    uint64_t left = 0, bytes = 0;
    bool is_known = of->is_known && is_up && !failed(kv_memory_left(pair->config.memory, &left, NULL));
    if (is_known && left < of->left) { bytes = of->left - left; }
    pthread_mutex_lock(&measure.lock);
    measure.under_way--;
    if (is_known && of->is_alone && measure.begun == of->begun) {
        measure.bytes_alone = bytes;
    } else if (is_up && measure.bytes_alone != 0) {
        bytes = measure.bytes_alone;
    }
    pthread_mutex_unlock(&measure.lock);
    return bytes;
}

/* ---- transfers, on the thread ------------------------------------------------------------------ */

/* On a thread of the memory's. */
static void passed(struct kv_memory_op *op)
{
    struct transfer *transfer = op->user;
    struct nccl_pair *pair = transfer->pair;
    pthread_mutex_lock(&pair->lock);
    pair->ops--;
    if (failed(op->status)) {
        pair->device_status = op->status;
    } else if (!pair->is_broken && !pair->is_aborting) {
        /* Behind an abort all passes, whether its bytes came or not. */
        transfer->is_busy = false;
        pair->busy--;
        pair->progress_ns = clock_now_ns();
        if (pair->is_up) {
            const struct nccl_pair_fact fact = {.kind = NCCL_PAIR_PASSED, .slot = transfer->slot};
            tell(pair, &fact);
        }
    }
    pthread_cond_signal(&pair->wake);
    pthread_mutex_unlock(&pair->lock);
}

static void passed_submit(struct nccl_pair *pair, struct transfer *transfer)
{
    transfer->op = (struct kv_memory_op){.kind = KV_MEMORY_PASSED, .queue = pair->queue, .done = passed, .user = transfer};
    pthread_mutex_lock(&pair->lock);
    pair->ops++;
    pthread_mutex_unlock(&pair->lock);
    kv_memory_submit(pair->config.memory, &transfer->op);
}

static status_t queue_transfer(struct nccl_pair *pair, struct transfer *transfer, uint64_t deadline_ns, struct diag *diag)
{
    const struct nccl_api *api = pair->config.api;
    const bool sends = pair->config.rank == NCCL_RANK_P;
    uint8_t *slot = nccl_pair_slot(pair, transfer->slot);
    void *stream = kv_memory_queue_handle(pair->config.memory, pair->queue);
    /* One at a time and never two in a group: what is in a group has to be in one group on the other side too. */
    call_begins(pair);
    nccl_result_t result = sends ? api->send(slot, transfer->bytes, NCCL_UINT8, RANKS - 1, pair->comm, stream)
                                 : api->recv(slot, transfer->bytes, NCCL_UINT8, 0, pair->comm, stream);
    call_ends(pair);
    TRY(settled(pair, pair->comm, sends ? "ncclSend" : "ncclRecv", result, deadline_ns, diag));
    passed_submit(pair, transfer);
    return STATUS_OK;
}

/* Whether something has gone wrong by itself, or has not moved for so long. */
static status_t look(struct nccl_pair *pair, uint64_t stall_ns, struct diag *diag)
{
    pthread_mutex_lock(&pair->lock);
    status_t st = pair->device_status;
    uint64_t now = clock_now_ns();
    bool is_late = pair->busy > 0 && now - pair->progress_ns >= stall_ns;
    uint32_t busy = pair->busy;
    pthread_mutex_unlock(&pair->lock);
    pair->looked_ns = now;
    if (failed(st)) {
        diag_set(diag, "the device failed behind NCCL's work");
        return st;
    }
    nccl_result_t error = async_error(pair, pair->comm);
    if (error != NCCL_SUCCESS && error != NCCL_IN_PROGRESS) {
        return nccl_api_status(pair->config.api, pair->comm, "ncclCommGetAsyncError", error, diag);
    }
    if (is_late) {
        diag_set(diag, "%u transfers have not moved for %u ms: the peer, its device or the network has stopped", busy,
                 (unsigned)(stall_ns / NS_PER_MS));
        return STATUS(ST_DEADLINE_EXCEEDED, SCOPE_PEER);
    }
    return STATUS_OK;
}

/* ---- life of the communicator, on the thread --------------------------------------------------- */

/* NCCL connects two ranks, and takes the buffers for it, with their first transfer. */
static status_t first_bytes(struct nccl_pair *pair, uint64_t deadline_ns, struct diag *diag)
{
    struct transfer *transfer = &pair->transfers[0];
    pthread_mutex_lock(&pair->lock);
    transfer->bytes = NCCL_SLOT_BYTES_MIN;
    transfer->is_busy = true;
    pair->busy = 1;
    pair->progress_ns = clock_now_ns();
    pthread_mutex_unlock(&pair->lock);
    TRY(queue_transfer(pair, transfer, deadline_ns, diag));
    for (;;) {
        pthread_mutex_lock(&pair->lock);
        if (!pair->ending_ns && pair->busy && !failed(pair->device_status)) { doze(pair, POLL_NS_MAX); }
        bool ends = pair->ending_ns != 0, has_passed = pair->busy == 0;
        pthread_mutex_unlock(&pair->lock);
        if (ends) { return STATUS(ST_CANCELLED, SCOPE_REQUEST); }
        if (has_passed) { return STATUS_OK; }
        if (clock_now_ns() >= deadline_ns) {
            diag_set(diag, "the communicator is made, but its first bytes have not passed in time");
            return STATUS(ST_DEADLINE_EXCEEDED, SCOPE_PEER);
        }
        TRY(look(pair, UINT64_MAX, diag)); /* the limit here is deadline_ns */
    }
}

static status_t communicator_make(struct nccl_pair *pair, uint64_t deadline_ns, struct diag *diag)
{
    const struct nccl_api *api = pair->config.api;
    if (pair->config.rank == NCCL_RANK_P) {
        call_begins(pair);
        nccl_result_t result = api->get_unique_id(&pair->id);
        call_ends(pair);
        if (result != NCCL_SUCCESS) { return nccl_api_status(api, NULL, "ncclGetUniqueId", result, diag); }
        pair->has_id = true;
        struct nccl_pair_fact fact = {.kind = NCCL_PAIR_ID};
        memcpy(fact.id, pair->id.internal, sizeof fact.id);
        pthread_mutex_lock(&pair->lock);
        tell(pair, &fact);
        pthread_mutex_unlock(&pair->lock);
    } else {
        memcpy(pair->id.internal, pair->config.id, sizeof pair->id.internal);
    }
    struct nccl_config config = nccl_config_make(pair->config.channels);
    call_begins(pair);
    nccl_result_t result = api->comm_init_rank_config(&pair->comm, RANKS, pair->id, (int)pair->config.rank, &config);
    call_ends(pair);
    if (result == NCCL_IN_PROGRESS) { CHECK(pair->comm != NULL); }
    TRY(settled(pair, pair->comm, "ncclCommInitRankConfig", result, deadline_ns, diag));
    pair->has_id = false; /* all have come, so its listener is gone */
    pair->is_made = true;
    int ranks = 0;
    result = api->comm_count(pair->comm, &ranks);
    if (result != NCCL_SUCCESS) { return nccl_api_status(api, pair->comm, "ncclCommCount", result, diag); }
    if (ranks != RANKS) {
        diag_set(diag, "NCCL made a communicator of %d ranks where two were asked for", ranks);
        return STATUS(ST_INTERNAL, SCOPE_PEER);
    }
    return first_bytes(pair, deadline_ns, diag);
}

static status_t come_up(struct nccl_pair *pair, uint64_t *ret_bytes, struct diag *diag)
{
    const struct nccl_pair_config *config = &pair->config;
    uint64_t deadline_ns = pair->created_ns + config->init_ns;
    call_begins(pair);
    status_t st = kv_memory_thread_bind(config->memory, diag);
    if (!failed(st)) { st = kv_memory_slots_alloc(config->memory, config->slot_count * config->slot_bytes, &pair->slots, diag); }
    if (!failed(st)) { st = kv_memory_queue_create(config->memory, &pair->queue, diag); }
    call_ends(pair);
    TRY(st);
    struct measuring measuring;
    measuring_begin(pair, &measuring);
    st = communicator_make(pair, deadline_ns, diag);
    *ret_bytes = measuring_end(pair, &measuring, !failed(st));
    return st;
}

/* Where rank 1 never came the listener of the id still waits for it. */
static void id_retire(struct nccl_pair *pair)
{
    int version = 0;
    call_begins(pair);
    bool is_gone = pair->config.api->get_version(&version) == NCCL_SUCCESS && nccl_root_retire(version, &pair->id, RETIRE_NS);
    call_ends(pair);
    if (!is_gone) { pair->leaks++; }
    pair->has_id = false;
}

static void all_passed(struct kv_memory_op *op)
{
    struct nccl_pair *pair = op->user;
    pthread_mutex_lock(&pair->lock);
    pair->ops--;
    pthread_cond_signal(&pair->wake);
    pthread_mutex_unlock(&pair->lock);
}

static void go_down(struct nccl_pair *pair)
{
    const struct nccl_pair_config *config = &pair->config;
    struct measuring measuring;
    measuring_begin(pair, &measuring);
    if (pair->comm != NULL) {
        pthread_mutex_lock(&pair->lock);
        pair->is_aborting = true; /* before: what passes from here on may have been cut short */
        pthread_mutex_unlock(&pair->lock);
        call_begins(pair);
        /* Whatever it says, it is the last that can be done about it. */
        (void)config->api->comm_abort(pair->comm);
        call_ends(pair);
        pair->comm = NULL;
        if (!pair->is_made) { pair->leaks++; }
    }
    if (pair->has_id) { id_retire(pair); }
    if (pair->queue != NULL) {
        /* The abort tells kernels to stop; that they have is for the queue to say. */
        struct kv_memory_op op = {.kind = KV_MEMORY_PASSED, .queue = pair->queue, .done = all_passed, .user = pair};
        pthread_mutex_lock(&pair->lock);
        pair->ops++;
        pthread_mutex_unlock(&pair->lock);
        kv_memory_submit(config->memory, &op);
        pthread_mutex_lock(&pair->lock);
        while (pair->ops > 0) { pthread_cond_wait(&pair->wake, &pair->lock); }
        pthread_mutex_unlock(&pair->lock);
    }
    call_begins(pair);
    kv_memory_queue_destroy(config->memory, pair->queue);
    kv_memory_slots_free(config->memory, pair->slots);
    call_ends(pair);
    (void)measuring_end(pair, &measuring, false);
}

/* ---- the thread -------------------------------------------------------------------------------- */

static void break_down(struct nccl_pair *pair, status_t st, const struct diag *diag)
{
    struct nccl_pair_fact fact = {.kind = NCCL_PAIR_BROKEN, .status = st};
    snprintf(fact.text, sizeof fact.text, "%.*s", (int)sizeof fact.text - 1, diag->text);
    pthread_mutex_lock(&pair->lock);
    pair->is_broken = true;
    pair->posted_count = 0;
    if (!pair->ending_ns) { tell(pair, &fact); }
    pthread_mutex_unlock(&pair->lock);
}

struct turn {
    bool has_slot, is_due, ends; /* something to queue; a look; the end */
    uint32_t slot;
};

/* What is to be done next; sleeps until there is something. */
static struct turn next_turn(struct nccl_pair *pair)
{
    struct turn turn = {.has_slot = false};
    pthread_mutex_lock(&pair->lock);
    for (;;) {
        uint64_t due_ns = pair->looked_ns + (pair->busy > 0 ? NCCL_WATCH_NS : NCCL_WATCH_IDLE_NS), now = clock_now_ns();
        turn.ends = pair->ending_ns != 0;
        turn.is_due = now >= due_ns || failed(pair->device_status);
        turn.has_slot = pair->posted_count > 0;
        if (turn.ends || turn.is_due || turn.has_slot) { break; }
        doze(pair, due_ns - now);
    }
    if (turn.has_slot) {
        turn.slot = pair->posted[pair->posted_first];
        pair->posted_first = (pair->posted_first + 1) % NCCL_SLOTS_MAX;
        pair->posted_count--;
    }
    pthread_mutex_unlock(&pair->lock);
    return turn;
}

static status_t serve(struct nccl_pair *pair, struct diag *diag)
{
    const uint64_t stall_ns = pair->config.stall_ns;
    for (;;) {
        struct turn turn = next_turn(pair);
        if (turn.ends) { return STATUS_OK; }
        if (turn.has_slot) { TRY(queue_transfer(pair, &pair->transfers[turn.slot], clock_now_ns() + stall_ns, diag)); }
        if (turn.is_due) { TRY(look(pair, stall_ns, diag)); }
    }
}

static void *thread_main(void *user)
{
    struct nccl_pair *pair = user;
    struct diag diag = {.text = ""};
    struct nccl_pair_fact fact = {.kind = NCCL_PAIR_UP};
    status_t st = come_up(pair, &fact.bytes, &diag);
    if (!failed(st)) {
        pthread_mutex_lock(&pair->lock);
        pair->is_up = true;
        pair->looked_ns = clock_now_ns();
        fact.duration_ns = pair->looked_ns - pair->created_ns;
        if (!pair->ending_ns) { tell(pair, &fact); }
        pthread_mutex_unlock(&pair->lock);
        st = serve(pair, &diag);
    }
    if (failed(st)) { break_down(pair, st, &diag); }
    pthread_mutex_lock(&pair->lock);
    while (!pair->ending_ns) { pthread_cond_wait(&pair->wake, &pair->lock); }
    pthread_mutex_unlock(&pair->lock);
    go_down(pair);
    pthread_mutex_lock(&pair->lock);
    pair->is_ended = true;
    fact = (struct nccl_pair_fact){.kind = NCCL_PAIR_ENDED, .duration_ns = clock_now_ns() - pair->ending_ns, .leaks = pair->leaks};
    tell(pair, &fact);
    pthread_mutex_unlock(&pair->lock);
    return NULL;
}

/* ---- calls of any thread ----------------------------------------------------------------------- */

uint8_t *nccl_pair_slot(const struct nccl_pair *pair, uint32_t slot)
{
    CHECK(slot < pair->config.slot_count);
    return pair->slots + slot * pair->config.slot_bytes;
}

void nccl_pair_transfer(struct nccl_pair *pair, uint32_t slot, size_t bytes)
{
    CHECK(slot < pair->config.slot_count);
    CHECK(bytes > 0);
    CHECK(bytes <= pair->config.slot_bytes);
    struct transfer *transfer = &pair->transfers[slot];
    pthread_mutex_lock(&pair->lock);
    CHECK(pair->is_up);
    CHECK(!transfer->is_busy);
    transfer->is_busy = true;
    transfer->bytes = bytes;
    if (pair->busy++ == 0) { pair->progress_ns = clock_now_ns(); }
    if (!pair->is_broken) {
        pair->posted[(pair->posted_first + pair->posted_count) % NCCL_SLOTS_MAX] = slot;
        pair->posted_count++;
        pthread_cond_signal(&pair->wake);
    }
    pthread_mutex_unlock(&pair->lock);
}

void nccl_pair_end(struct nccl_pair *pair)
{
    pthread_mutex_lock(&pair->lock);
    CHECK(pair->ending_ns == 0);
    pair->ending_ns = clock_now_ns();
    pthread_cond_signal(&pair->wake);
    pthread_mutex_unlock(&pair->lock);
}

bool nccl_pair_is_stuck(const struct nccl_pair *pair, uint64_t now_ns)
{
    /* A question is no change, but the lock is one. */
    struct nccl_pair *locked = (struct nccl_pair *)(uintptr_t)pair;
    pthread_mutex_lock(&locked->lock);
    /* The first call of a process looks at every network card there is. */
    uint64_t call_max_ns = pair->is_up || pair->config.init_ns < NCCL_ABORT_NS ? NCCL_ABORT_NS : pair->config.init_ns;
    bool in_call = pair->call_ns != 0 && now_ns > pair->call_ns && now_ns - pair->call_ns >= call_max_ns;
    bool in_end = pair->ending_ns != 0 && now_ns > pair->ending_ns && now_ns - pair->ending_ns >= NCCL_ABORT_NS;
    bool is = !pair->is_ended && (in_call || in_end);
    pthread_mutex_unlock(&locked->lock);
    return is;
}

static void pair_free(struct nccl_pair *pair)
{
    if (pair->has_wake) { pthread_cond_destroy(&pair->wake); }
    if (pair->has_lock) { pthread_mutex_destroy(&pair->lock); }
    free(pair);
}

static int thread_start(struct nccl_pair *pair)
{
    int error = pthread_mutex_init(&pair->lock, NULL);
    if (error != 0) { return error; }
    pair->has_lock = true;
    pthread_condattr_t attributes;
    error = pthread_condattr_init(&attributes);
    if (error != 0) { return error; }
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    error = pthread_cond_init(&pair->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    if (error != 0) { return error; }
    pair->has_wake = true;
    sigset_t all, before; /* signals are the main thread's */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&pair->thread, NULL, thread_main, pair);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pair->has_thread = error == 0;
    return error;
}

status_t nccl_pair_create(const struct nccl_pair_config *config, struct diag *diag, struct nccl_pair **ret_pair)
{
    CHECK(config->rank == NCCL_RANK_P || config->rank == NCCL_RANK_D);
    CHECK(config->channels >= 1 && config->channels <= 32);
    CHECK(config->slot_count >= 1 && config->slot_count <= NCCL_SLOTS_MAX);
    CHECK(config->slot_bytes >= NCCL_SLOT_BYTES_MIN);
    CHECK(config->slot_bytes % 256 == 0);
    CHECK(config->init_ns > 0);
    CHECK(config->stall_ns > 0);
    CHECK(config->told != NULL);
    struct nccl_pair *pair = calloc(1, sizeof *pair);
    if (!pair) {
        diag_set(diag, "no memory for an NCCL pair");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    pair->config = *config;
    pair->created_ns = clock_now_ns();
    for (uint32_t i = 0; i < NCCL_SLOTS_MAX; i++) {
        pair->transfers[i].pair = pair;
        pair->transfers[i].slot = i;
    }
    int error = thread_start(pair);
    if (error != 0) {
        diag_set(diag, "no thread for an NCCL pair: %s", strerror(error));
        pair_free(pair);
        return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, error);
    }
    *ret_pair = pair;
    return STATUS_OK;
}

void nccl_pair_destroy(struct nccl_pair *pair)
{
    if (!pair) { return; }
    pthread_join(pair->thread, NULL);
    pthread_mutex_lock(&pair->lock);
    CHECK(pair->is_ended);
    pthread_mutex_unlock(&pair->lock);
    pair_free(pair);
}
