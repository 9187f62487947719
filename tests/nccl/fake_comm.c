/* fake_comm: a communicator of fake_nccl. Its first thread makes it and queues its kernels; its second reads what the peer
 * says. Kernels wait on the communicator's condition. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/nccl/fake_internal.h"

enum message_kind { SAYS_CONNECT = 1, SAYS_WANT, SAYS_DATA };
struct message_head { uint32_t kind; uint64_t number, bytes; };
struct message {
    struct message *next;
    struct message_head head;
    uint8_t data[];
};

/* ---- messages -------------------------------------------------------------------------------- */

/* False: the way is gone. */
static bool say(struct comm *comm, enum message_kind kind, uint64_t number, const void *data, uint64_t bytes)
{
    const struct message_head head = {.kind = kind, .number = number, .bytes = bytes};
    const struct { const void *at; size_t bytes; } parts[2] = {{&head, sizeof head}, {data, data ? bytes : 0}};
    bool is_there = true;
    pthread_mutex_lock(&comm->write_lock);
    for (int i = 0; i < 2; i++) {
        for (size_t at = 0; is_there && at < parts[i].bytes;) {
            ssize_t sent = send(comm->fd, (const uint8_t *)parts[i].at + at, parts[i].bytes - at, MSG_NOSIGNAL);
            if (sent < 0 && errno == EINTR) { continue; }
            is_there = sent > 0;
            at += is_there ? (size_t)sent : 0;
        }
    }
    pthread_mutex_unlock(&comm->write_lock);
    return is_there;
}

/* False: the way is gone. A stop of the process may cut a wait for all of it short. */
static bool hear(struct comm *comm, void *to, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        ssize_t got = recv(comm->fd, (uint8_t *)to + at, bytes - at, MSG_WAITALL);
        if (got < 0 && errno == EINTR) { continue; }
        if (got <= 0) { return false; }
        at += (size_t)got;
    }
    return true;
}

static void *reader_main(void *user)
{
    struct comm *comm = user;
    for (;;) {
        struct message_head head;
        if (!hear(comm, &head, sizeof head)) { break; }
        const size_t bytes = head.kind == SAYS_DATA ? head.bytes : 0;
        struct message *message = malloc(sizeof *message + bytes);
        RULE(message != NULL, "no memory");
        message->head = head;
        bool is_whole = hear(comm, message->data, bytes);
        pthread_mutex_lock(&comm->lock);
        if (!is_whole || head.kind == SAYS_CONNECT) {
            comm->peer_connects |= is_whole;
            free(message);
        } else {
            message->next = comm->messages;
            comm->messages = message;
        }
        pthread_cond_broadcast(&comm->changed);
        pthread_mutex_unlock(&comm->lock);
        if (!is_whole) { break; }
    }
    pthread_mutex_lock(&comm->lock);
    comm->is_gone = true;
    if (!comm->options.death_unseen && !comm->is_aborting) {
        if (comm->state == NCCL_SUCCESS || comm->state == NCCL_IN_PROGRESS) { comm->state = NCCL_REMOTE_ERROR; }
    }
    pthread_cond_broadcast(&comm->changed);
    pthread_mutex_unlock(&comm->lock);
    return NULL;
}

/* Waits for the peer's word on this transfer; NULL: an abort came. */
static struct message *await(struct comm *comm, enum message_kind kind, uint64_t number)
{
    struct message *found = NULL;
    pthread_mutex_lock(&comm->lock);
    while (!found && !comm->is_aborting) {
        struct message **link = &comm->messages;
        while (*link && ((*link)->head.kind != kind || (*link)->head.number != number)) { link = &(*link)->next; }
        found = *link;
        if (found) {
            *link = found->next;
        } else {
            pthread_cond_wait(&comm->changed, &comm->lock);
        }
    }
    pthread_mutex_unlock(&comm->lock);
    return found;
}

/* ---- kernels, on the stream's thread ---------------------------------------------------------- */

static void spin_until_abort(struct comm *comm)
{
    pthread_mutex_lock(&comm->lock);
    while (!comm->is_aborting) { pthread_cond_wait(&comm->changed, &comm->lock); }
    pthread_mutex_unlock(&comm->lock);
}

static uint8_t *read_device(const struct op *op)
{
    uint8_t *bytes = malloc(op->bytes);
    RULE(bytes != NULL, "no memory");
    RULE(op->comm->vtable->peek(op->comm->device, op->at, bytes, op->bytes), "a send from memory that is not the device's");
    return bytes;
}

static void write_device(const struct op *op, uint8_t *at, const uint8_t *bytes)
{
    RULE(op->comm->vtable->poke(op->comm->device, at, bytes, op->bytes), "a receive into memory that is not the device's");
}

static void kernel_send(struct op *op)
{
    struct comm *comm = op->comm;
    struct message *want = await(comm, SAYS_WANT, op->number);
    if (!want) { return; }
    RULE(want->head.bytes == op->bytes, "a send of %zu bytes meets a receive of %llu", op->bytes, (unsigned long long)want->head.bytes);
    free(want);
    uint8_t *bytes = read_device(op);
    bool is_there = say(comm, SAYS_DATA, op->number, bytes, op->bytes);
    free(bytes);
    if (!is_there) { spin_until_abort(comm); }
}

static void kernel_recv(struct op *op)
{
    struct comm *comm = op->comm;
    if (!say(comm, SAYS_WANT, op->number, NULL, op->bytes)) {
        spin_until_abort(comm);
        return;
    }
    struct message *data = await(comm, SAYS_DATA, op->number);
    if (!data) { return; }
    write_device(op, op->at, data->data);
    free(data);
}

static void kernel_main(void *user)
{
    struct op *op = user;
    struct comm *comm = op->comm;
    if (op->call == comm->options.error_at) {
        pthread_mutex_lock(&comm->lock);
        comm->state = comm->options.error ? comm->options.error : NCCL_REMOTE_ERROR;
        pthread_mutex_unlock(&comm->lock);
        spin_until_abort(comm);
    } else if (op->call == comm->options.hang_at) {
        spin_until_abort(comm);
    } else if (op->to) {
        uint8_t *bytes = read_device(op);
        write_device(op, op->to, bytes);
        free(bytes);
    } else if (op->is_send) {
        kernel_send(op);
    } else {
        kernel_recv(op);
    }
    free(op);
    fake_count(&fake_world.counts.kernels, -1);
    /* The last that is touched of it: who aborts waits for this. */
    pthread_mutex_lock(&comm->lock);
    comm->kernels--;
    pthread_cond_broadcast(&comm->changed);
    pthread_mutex_unlock(&comm->lock);
}

/* ---- a communicator's first thread ------------------------------------------------------------ */

static bool take_memory(struct comm *comm, uint64_t bytes)
{
    if (!comm->vtable->take(comm->device, bytes)) { return false; }
    pthread_mutex_lock(&comm->lock);
    comm->bytes_taken += bytes;
    pthread_mutex_unlock(&comm->lock);
    return true;
}

static nccl_result_t make(struct comm *comm)
{
    if (comm->options.init_fails) { return comm->options.init_fails; }
    if (comm->options.init_hangs) { return NCCL_IN_PROGRESS; }
    int meet_fd = -1, root_fd = fake_root_connect(&comm->id, comm->ranks, comm->rank, &meet_fd), fd = -1;
    if (root_fd < 0) { return NCCL_SYSTEM_ERROR; }
    pthread_mutex_lock(&comm->lock);
    comm->root_fd = root_fd;
    comm->meet_fd = meet_fd;
    if (comm->is_aborting) { shutdown(root_fd, SHUT_RDWR); }
    if (comm->is_aborting && meet_fd >= 0) { shutdown(meet_fd, SHUT_RDWR); }
    pthread_mutex_unlock(&comm->lock);
    if (!fake_root_wait(root_fd, meet_fd, &comm->id, comm->ranks, &fd)) { return NCCL_IN_PROGRESS; }
    pthread_mutex_lock(&comm->lock);
    comm->fd = fd;
    if (comm->is_aborting && fd >= 0) { shutdown(fd, SHUT_RDWR); }
    pthread_mutex_unlock(&comm->lock);
    if (fd >= 0) {
        RULE(pthread_create(&comm->reader, NULL, reader_main, comm) == 0, "no thread");
        comm->has_reader = true;
    }
    return take_memory(comm, FAKE_NCCL_BYTES_INIT) ? NCCL_SUCCESS : NCCL_UNHANDLED_CUDA_ERROR;
}

static nccl_result_t connect_channels(struct comm *comm)
{
    if (!take_memory(comm, comm->channels * FAKE_NCCL_BYTES_CHANNEL)) { return NCCL_UNHANDLED_CUDA_ERROR; }
    if (comm->fd >= 0) {
        (void)say(comm, SAYS_CONNECT, 0, NULL, 0); /* a peer that is gone shows in what it does not say */
        pthread_mutex_lock(&comm->lock);
        while (!comm->peer_connects && !comm->is_aborting) { pthread_cond_wait(&comm->changed, &comm->lock); }
        pthread_mutex_unlock(&comm->lock);
    }
    comm->is_connected = true;
    return NCCL_SUCCESS;
}

/* What a thread of NCCL's does behind a group's end. */
static void launch(struct comm *comm, struct op *first)
{
    nccl_result_t result = comm->is_connected ? NCCL_SUCCESS : connect_channels(comm);
    while (first) {
        struct op *op = first;
        first = op->next;
        pthread_mutex_lock(&comm->lock);
        bool goes = result == NCCL_SUCCESS && !comm->is_aborting;
        if (goes) {
            op->number = op->is_send ? ++comm->sends : ++comm->recvs;
            comm->kernels++;
        }
        pthread_mutex_unlock(&comm->lock);
        if (goes) {
            fake_count(&fake_world.counts.kernels, 1);
            fake_count_total(&fake_world.counts.transfers);
            comm->vtable->run(comm->device, op->stream, kernel_main, op);
        } else {
            free(op);
        }
    }
    pthread_mutex_lock(&comm->lock);
    if (comm->state == NCCL_IN_PROGRESS) { comm->state = result; }
    pthread_mutex_unlock(&comm->lock);
}

static void *maker_main(void *user)
{
    struct comm *comm = user;
    nccl_result_t made = make(comm);
    pthread_mutex_lock(&comm->lock);
    comm->is_settled = made != NCCL_IN_PROGRESS;
    comm->is_made = made == NCCL_SUCCESS;
    if (comm->state == NCCL_IN_PROGRESS) { comm->state = made; }
    for (;;) {
        struct op *first = comm->launch;
        if (first) {
            comm->launch = NULL;
            pthread_mutex_unlock(&comm->lock);
            launch(comm, first);
            pthread_mutex_lock(&comm->lock);
        } else if (comm->is_aborting) {
            break;
        } else {
            pthread_cond_wait(&comm->changed, &comm->lock);
        }
    }
    pthread_mutex_unlock(&comm->lock);
    return NULL;
}

/* ---- its life ---------------------------------------------------------------------------------- */

void fake_comm_start(struct comm *comm)
{
    pthread_mutex_init(&comm->lock, NULL);
    pthread_mutex_init(&comm->write_lock, NULL);
    pthread_cond_init(&comm->changed, NULL);
    RULE(pthread_create(&comm->maker, NULL, maker_main, comm) == 0, "no thread");
}

void fake_comm_stop(struct comm *comm)
{
    pthread_mutex_lock(&comm->lock);
    comm->is_aborting = true;
    if (comm->root_fd >= 0) { shutdown(comm->root_fd, SHUT_RDWR); }
    if (comm->meet_fd >= 0) { shutdown(comm->meet_fd, SHUT_RDWR); }
    if (comm->fd >= 0) { shutdown(comm->fd, SHUT_RDWR); }
    pthread_cond_broadcast(&comm->changed);
    pthread_mutex_unlock(&comm->lock);
    pthread_join(comm->maker, NULL);
    if (comm->has_reader) { pthread_join(comm->reader, NULL); }
    pthread_mutex_lock(&comm->lock);
    while (comm->kernels > 0) { pthread_cond_wait(&comm->changed, &comm->lock); }
    pthread_mutex_unlock(&comm->lock);
}

void fake_comm_free(struct comm *comm)
{
    while (comm->messages) {
        struct message *message = comm->messages;
        comm->messages = message->next;
        free(message);
    }
    if (comm->fd >= 0) { close(comm->fd); }
    if (comm->root_fd >= 0) { close(comm->root_fd); }
    if (comm->meet_fd >= 0) { close(comm->meet_fd); }
    comm->vtable->give_back(comm->device, comm->bytes_taken);
    pthread_cond_destroy(&comm->changed);
    pthread_mutex_destroy(&comm->write_lock);
    pthread_mutex_destroy(&comm->lock);
    free(comm);
}
