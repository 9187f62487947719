/* fake_nccl: see fake_nccl.h. The calls, and what a caller may not do; the communicators are fake_comm.c. */
#include "tests/nccl/fake_nccl.h"

#include <string.h>
#include <time.h>

#include "tests/nccl/fake_internal.h"

struct fake_world fake_world = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static pthread_mutex_t comms_lock = PTHREAD_MUTEX_INITIALIZER;
static struct comm *comms; /* so that a handle that was aborted is known for one */

static _Thread_local uint64_t thread_number; /* 0: it made no communicator yet. A thread's handle may be another's later */
static _Thread_local uint32_t group_depth;
static _Thread_local struct op *group_first;

/* ---- the world ------------------------------------------------------------------------------- */

void fake_count(uint32_t *counter, int by)
{
    pthread_mutex_lock(&fake_world.lock);
    *counter += (uint32_t)by;
    pthread_cond_broadcast(&fake_world.changed);
    pthread_mutex_unlock(&fake_world.lock);
}

void fake_count_total(uint64_t *counter)
{
    pthread_mutex_lock(&fake_world.lock);
    ++*counter;
    pthread_mutex_unlock(&fake_world.lock);
}

static void hang(void)
{
    pthread_mutex_lock(&fake_world.lock);
    fake_world.counts.hanging++;
    while (!fake_world.is_let_go) { pthread_cond_wait(&fake_world.changed, &fake_world.lock); }
    fake_world.counts.hanging--;
    pthread_mutex_unlock(&fake_world.lock);
}

void fake_nccl_set(const struct fake_nccl_options *options)
{
    pthread_mutex_lock(&fake_world.lock);
    fake_world.options = *options;
    fake_world.is_let_go = false;
    pthread_mutex_unlock(&fake_world.lock);
}

void fake_nccl_let_go(void)
{
    pthread_mutex_lock(&fake_world.lock);
    fake_world.is_let_go = true;
    pthread_cond_broadcast(&fake_world.changed);
    pthread_mutex_unlock(&fake_world.lock);
}

struct fake_nccl_counts fake_nccl_counts(void)
{
    pthread_mutex_lock(&fake_world.lock);
    struct fake_nccl_counts counts = fake_world.counts;
    pthread_mutex_unlock(&fake_world.lock);
    return counts;
}

bool fake_nccl_end(void)
{
    struct fake_nccl_counts counts = fake_nccl_counts();
    if (counts.comms == 0 && counts.roots == 0 && counts.kernels == 0) { return true; }
    fprintf(stderr, "fake_nccl: left over: %u communicators, %u roots, %u kernels\n", counts.comms, counts.roots, counts.kernels);
    return false;
}

/* ---- calls ----------------------------------------------------------------------------------- */

/* A handle that the process was given and has not aborted, with nobody inside it. */
static struct comm *enter(nccl_comm_t handle, const char *call)
{
    pthread_mutex_lock(&comms_lock);
    struct comm *comm = comms;
    while (comm && comm != handle) { comm = comm->next; }
    RULE(comm != NULL, "%s on a communicator that is aborted, or never was", call);
    pthread_mutex_lock(&comm->lock);
    RULE(comm->inside == NULL, "%s while another thread is inside %s of the same communicator", call, comm->inside);
    comm->inside = call;
    pthread_mutex_unlock(&comm->lock);
    pthread_mutex_unlock(&comms_lock);
    return comm;
}

static void leave(struct comm *comm)
{
    pthread_mutex_lock(&comm->lock);
    comm->inside = NULL;
    pthread_mutex_unlock(&comm->lock);
}

static nccl_result_t state_of(struct comm *comm)
{
    pthread_mutex_lock(&comm->lock);
    nccl_result_t state = comm->state;
    pthread_mutex_unlock(&comm->lock);
    return state;
}

static nccl_result_t get_version(int *ret_version)
{
    pthread_mutex_lock(&fake_world.lock);
    *ret_version = fake_world.options.version ? fake_world.options.version : NCCL_CODE(2, 28, 9);
    pthread_mutex_unlock(&fake_world.lock);
    return NCCL_SUCCESS;
}

static nccl_result_t get_unique_id(struct nccl_id *ret_id)
{
    pthread_mutex_lock(&fake_world.lock);
    nccl_result_t fails = fake_world.options.id_fails;
    pthread_mutex_unlock(&fake_world.lock);
    return fails ? fails : fake_root_create(ret_id);
}

/* Before 2.27 a thread has one place for the work of a group, from a group's end until that work is done. */
static uint64_t caller_of_init(void)
{
    static uint64_t threads;
    pthread_mutex_lock(&comms_lock);
    if (thread_number == 0) { thread_number = ++threads; }
    for (struct comm *comm = comms; comm; comm = comm->next) {
        pthread_mutex_lock(&comm->lock);
        RULE(comm->caller != thread_number || comm->is_settled, "ncclCommInitRankConfig by a thread whose other one is in progress");
        pthread_mutex_unlock(&comm->lock);
    }
    pthread_mutex_unlock(&comms_lock);
    return thread_number;
}

static nccl_result_t comm_init_rank_config(nccl_comm_t *ret_comm, int ranks, struct nccl_id id, int rank, struct nccl_config *config)
{
    *ret_comm = NULL;
    bool is_whole = config->size >= sizeof *config && config->magic == NCCL_CONFIG_MAGIC && config->version >= NCCL_CODE(2, 17, 0);
    if (!is_whole || ranks < 1 || ranks > 2 || rank < 0 || rank >= ranks || config->max_ctas < 1 || config->min_ctas > config->max_ctas) {
        return NCCL_INVALID_ARGUMENT;
    }
    RULE(config->blocking == 0, "a communicator that blocks");
    pthread_mutex_lock(&fake_world.lock);
    const struct fake_nccl_device *vtable = fake_world.device;
    struct fake_nccl_options options = fake_world.options;
    fake_world.counts.inits++;
    pthread_mutex_unlock(&fake_world.lock);
    void *device = vtable->bound();
    if (!device) { return NCCL_UNHANDLED_CUDA_ERROR; }
    uint64_t caller = caller_of_init();
    struct comm *comm = calloc(1, sizeof *comm);
    RULE(comm != NULL, "no memory");
    comm->caller = caller;
    comm->options = options;
    comm->vtable = vtable;
    comm->device = device;
    comm->id = id;
    comm->ranks = ranks;
    comm->rank = rank;
    comm->channels = (uint32_t)config->max_ctas;
    comm->root_fd = comm->meet_fd = comm->fd = -1;
    comm->state = NCCL_IN_PROGRESS;
    fake_count(&fake_world.counts.comms, 1);
    fake_comm_start(comm);
    pthread_mutex_lock(&comms_lock);
    comm->next = comms;
    comms = comm;
    pthread_mutex_unlock(&comms_lock);
    *ret_comm = comm;
    return NCCL_IN_PROGRESS;
}

static nccl_result_t comm_get_async_error(nccl_comm_t handle, nccl_result_t *ret_error)
{
    struct comm *comm = enter(handle, "ncclCommGetAsyncError");
    *ret_error = state_of(comm);
    fake_count_total(&fake_world.counts.looks);
    leave(comm);
    return NCCL_SUCCESS;
}

static nccl_result_t comm_count(nccl_comm_t handle, int *ret_ranks)
{
    struct comm *comm = enter(handle, "ncclCommCount");
    RULE(state_of(comm) != NCCL_IN_PROGRESS, "ncclCommCount while the communicator is in progress");
    *ret_ranks = comm->options.ranks ? comm->options.ranks : comm->ranks;
    leave(comm);
    return NCCL_SUCCESS;
}

static nccl_result_t comm_abort(nccl_comm_t handle)
{
    if (!handle) { return NCCL_SUCCESS; }
    struct comm *comm = enter(handle, "ncclCommAbort");
    fake_count_total(&fake_world.counts.aborts);
    if (comm->options.abort_hangs) { hang(); }
    if (comm->options.abort_ms) {
        struct timespec wait = {.tv_sec = comm->options.abort_ms / 1000, .tv_nsec = (long)(comm->options.abort_ms % 1000) * 1000000};
        nanosleep(&wait, NULL);
    }
    fake_comm_stop(comm);
    if (!comm->is_made) { fake_count_total(&fake_world.counts.given_up); }
    pthread_mutex_lock(&comms_lock);
    struct comm **link = &comms;
    while (*link != comm) { link = &(*link)->next; }
    *link = comm->next;
    pthread_mutex_unlock(&comms_lock);
    fake_comm_free(comm);
    fake_count(&fake_world.counts.comms, -1);
    return NCCL_SUCCESS;
}

/* ---- sends and receives ------------------------------------------------------------------------ */

static nccl_result_t group_start(void)
{
    group_depth++;
    return NCCL_SUCCESS;
}

/* A send to oneself and its receive become one op; false: one is without the other. */
static bool join_own(struct op **list)
{
    for (struct op *send = *list; send; send = send->next) {
        if (send->comm->ranks != 1 || !send->is_send) { continue; }
        struct op **link = list;
        while (*link && ((*link)->comm != send->comm || (*link)->is_send)) { link = &(*link)->next; }
        struct op *recv = *link;
        if (!recv) { return false; }
        RULE(recv->bytes == send->bytes, "a send of %zu bytes to oneself meets a receive of %zu", send->bytes, recv->bytes);
        RULE(recv->stream == send->stream, "a send to oneself on another stream than its receive");
        send->to = recv->at;
        *link = recv->next;
        free(recv);
    }
    for (struct op *op = *list; op; op = op->next) {
        if (op->comm->ranks == 1 && !op->to) { return false; }
    }
    return true;
}

/* Hands an op to the thread that queues kernels. */
static nccl_result_t hand_on(struct op *op)
{
    struct comm *comm = enter(op->comm, "ncclGroupEnd");
    op->next = NULL;
    pthread_mutex_lock(&comm->lock);
    if (comm->state == NCCL_SUCCESS) { comm->state = NCCL_IN_PROGRESS; }
    struct op **link = &comm->launch;
    while (*link) { link = &(*link)->next; }
    *link = op;
    nccl_result_t state = comm->state;
    pthread_cond_broadcast(&comm->changed);
    pthread_mutex_unlock(&comm->lock);
    leave(comm);
    return state;
}

static nccl_result_t group_end(void)
{
    RULE(group_depth > 0, "ncclGroupEnd outside of a group");
    if (--group_depth > 0) { return NCCL_SUCCESS; }
    struct op *first = group_first;
    group_first = NULL;
    const bool is_whole = join_own(&first);
    nccl_result_t result = is_whole ? NCCL_SUCCESS : NCCL_INVALID_USAGE;
    while (first) {
        struct op *op = first;
        first = op->next;
        if (is_whole) {
            result = hand_on(op);
        } else {
            free(op);
        }
    }
    return result;
}

static nccl_result_t transfer(bool is_send, void *device, size_t count_, int type, int peer, nccl_comm_t handle, void *stream)
{
    const char *call = is_send ? "ncclSend" : "ncclRecv";
    struct comm *comm = enter(handle, call);
    nccl_result_t state = state_of(comm);
    RULE(state != NCCL_IN_PROGRESS, "%s while the communicator is in progress", call);
    if (state == NCCL_SUCCESS && (type != NCCL_UINT8 || peer != comm->ranks - 1 - comm->rank)) { state = NCCL_INVALID_ARGUMENT; }
    if (state != NCCL_SUCCESS) {
        leave(comm);
        return state;
    }
    struct op *op = calloc(1, sizeof *op);
    RULE(op != NULL, "no memory");
    *op = (struct op){.comm = comm, .is_send = is_send, .at = device, .bytes = count_, .stream = stream, .call = ++comm->calls};
    if (op->call == comm->options.call_hangs_at) { hang(); }
    leave(comm);
    struct op **link = &group_first;
    while (*link) { link = &(*link)->next; }
    *link = op;
    if (group_depth > 0) { return NCCL_SUCCESS; }
    group_depth = 1;
    return group_end();
}

static nccl_result_t send_to(const void *device, size_t count_, int type, int peer, nccl_comm_t comm, void *stream)
{
    return transfer(true, (void *)(uintptr_t)device, count_, type, peer, comm, stream);
}

static nccl_result_t recv_from(void *device, size_t count_, int type, int peer, nccl_comm_t comm, void *stream)
{
    return transfer(false, device, count_, type, peer, comm, stream);
}

static const char *get_error_string(nccl_result_t result)
{
    static const char *const names[] = {"no error", "unhandled cuda error", "unhandled system error", "internal error",
                                        "invalid argument", "invalid usage",
                                        "remote process exited or there was a network error", "NCCL operation in progress"};
    return (unsigned)result < sizeof names / sizeof names[0] ? names[result] : "unknown result code";
}

static const char *get_last_error(nccl_comm_t comm)
{
    (void)comm;
    return "";
}

static const struct nccl_api table = {
    .get_version = get_version,
    .get_unique_id = get_unique_id,
    .comm_init_rank_config = comm_init_rank_config,
    .comm_get_async_error = comm_get_async_error,
    .comm_abort = comm_abort,
    .comm_count = comm_count,
    .group_start = group_start,
    .group_end = group_end,
    .send = send_to,
    .recv = recv_from,
    .get_error_string = get_error_string,
    .get_last_error = get_last_error,
};

/* ---- options of the environment ---------------------------------------------------------------- */

static void options_read(struct fake_nccl_options *ret, const char *text)
{
    char copy[512], *rest = copy;
    RULE(strlen(text) < sizeof copy, "FAKE_NCCL is too long");
    strcpy(copy, text);
    for (char *word; (word = strsep(&rest, ",")) != NULL;) {
        char *value = word;
        const char *name = strsep(&value, "=");
        unsigned long number = value ? strtoul(value, NULL, 10) : 1;
        if (!name[0]) { continue; }
#define OPTION(field) \
    if (strcmp(name, #field) == 0) { ret->field = (__typeof__(ret->field))number; continue; }
        OPTION(version)
        OPTION(id_fails)
        OPTION(init_hangs)
        OPTION(init_fails)
        OPTION(ranks)
        OPTION(error_at)
        OPTION(error)
        OPTION(hang_at)
        OPTION(call_hangs_at)
        OPTION(abort_ms)
        OPTION(abort_hangs)
        OPTION(death_unseen)
#undef OPTION
        RULE(false, "FAKE_NCCL: there is no option %s", name);
    }
}

const struct nccl_api *fake_nccl_api(const struct fake_nccl_device *device)
{
    const char *text = getenv("FAKE_NCCL");
    pthread_mutex_lock(&fake_world.lock);
    RULE(!fake_world.device || fake_world.device == device, "one process, two kinds of device");
    if (!fake_world.device && text) { options_read(&fake_world.options, text); }
    fake_world.device = device;
    pthread_mutex_unlock(&fake_world.lock);
    return &table;
}
