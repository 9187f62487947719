/* fake_root: the bootstrap of fake_nccl. Each rank goes to the root's socket; when all have come the root hands each one
 * end of a new connection, and is gone. Ranks that go away again meanwhile are not noticed, as in NCCL. */
#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/nccl/fake_internal.h"

enum { RANKS_MAX = 2 };
#define HELLO_MAGIC 0x4c43434eu

struct hello { uint32_t magic; int32_t ranks, rank; };

/* In the abstract namespace, so that nothing is left of it on a disk. */
static socklen_t address_of(const struct nccl_id *id, struct sockaddr_un *ret)
{
    memset(ret, 0, sizeof *ret);
    ret->sun_family = AF_UNIX;
    size_t length = strnlen(id->internal, sizeof ret->sun_path - 1);
    memcpy(ret->sun_path + 1, id->internal, length);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
}

static void answer(int rank_fd, int fd)
{
    char byte = fd >= 0;
    union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
    memset(&control, 0, sizeof control);
    struct iovec part = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    (void)!sendmsg(rank_fd, &message, MSG_NOSIGNAL); /* a rank that has gone away meanwhile */
}

static void *root_main(void *user)
{
    int listen_fd = (int)(intptr_t)user, ranks[RANKS_MAX] = {-1, -1}, come = 0, expected = RANKS_MAX;
    while (come < expected) {
        struct hello hello;
        int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) { continue; }
        bool is_good = recv(fd, &hello, sizeof hello, MSG_WAITALL) == (ssize_t)sizeof hello && hello.magic == HELLO_MAGIC;
        is_good &= is_good && hello.ranks >= 1 && hello.ranks <= RANKS_MAX && hello.rank >= 0 && hello.rank < hello.ranks;
        is_good &= is_good && (come == 0 || hello.ranks == expected) && ranks[hello.rank] < 0;
        if (!is_good) { /* one that does not fit ends it, and nobody gets an answer */
            close(fd);
            break;
        }
        expected = hello.ranks;
        ranks[hello.rank] = fd;
        come++;
    }
    int ends[2] = {-1, -1};
    if (come == expected) {
        if (expected == 2) { RULE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "no sockets: %s", strerror(errno)); }
        for (int i = 0; i < expected; i++) { answer(ranks[i], ends[i]); }
    }
    for (int i = 0; i < RANKS_MAX; i++) {
        if (ends[i] >= 0) { close(ends[i]); }
        if (ranks[i] >= 0) { close(ranks[i]); }
    }
    close(listen_fd);
    pthread_mutex_lock(&fake_world.lock);
    fake_world.counts.roots--;
    pthread_cond_broadcast(&fake_world.changed);
    pthread_mutex_unlock(&fake_world.lock);
    return NULL;
}

nccl_result_t fake_root_create(struct nccl_id *ret_id)
{
    struct sockaddr_un address;
    uint64_t number = 0;
    RULE(getrandom(&number, sizeof number, 0) == (ssize_t)sizeof number, "no random number");
    memset(ret_id, 0, sizeof *ret_id);
    snprintf(ret_id->internal, sizeof ret_id->internal, "fake-nccl-%d-%016llx", (int)getpid(), (unsigned long long)number);
    socklen_t bytes = address_of(ret_id, &address);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, bytes) != 0 || listen(fd, 8) != 0) {
        if (fd >= 0) { close(fd); }
        return NCCL_SYSTEM_ERROR;
    }
    pthread_mutex_lock(&fake_world.lock);
    fake_world.counts.roots++;
    pthread_mutex_unlock(&fake_world.lock);
    pthread_t thread;
    RULE(pthread_create(&thread, NULL, root_main, (void *)(intptr_t)fd) == 0, "no thread");
    pthread_detach(thread);
    return NCCL_SUCCESS;
}

int fake_root_connect(const struct nccl_id *id, int ranks, int rank)
{
    struct sockaddr_un address;
    const struct hello hello = {.magic = HELLO_MAGIC, .ranks = ranks, .rank = rank};
    socklen_t bytes = address_of(id, &address);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    RULE(fd >= 0, "no socket: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&address, bytes) == 0 && send(fd, &hello, sizeof hello, MSG_NOSIGNAL) == (ssize_t)sizeof hello) {
        return fd;
    }
    close(fd);
    return -1;
}

bool fake_root_wait(int root_fd, int *ret_fd)
{
    char byte = 0;
    union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
    struct iovec part = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t got;
    do { got = recvmsg(root_fd, &message, MSG_CMSG_CLOEXEC); } while (got < 0 && errno == EINTR);
    if (got != 1) { return false; }
    *ret_fd = -1;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header && header->cmsg_type == SCM_RIGHTS) { memcpy(ret_fd, CMSG_DATA(header), sizeof *ret_fd); }
    return true;
}
