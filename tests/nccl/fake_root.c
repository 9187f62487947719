/* fake_root: the bootstrap of fake_nccl. Each rank goes to the root's socket; when all have come the root tells each, and
 * is gone; then they go to each other. Ranks that go away again meanwhile are not noticed, as in NCCL. */
#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/nccl/fake_internal.h"
#include "transfer/nccl_root.h"

enum { RANKS_MAX = 2 };

struct hello { int32_t ranks, rank; };
struct root { int fd; uint64_t magic; };

static bool hear(int fd, void *to, size_t bytes) { return recv(fd, to, bytes, MSG_WAITALL) == (ssize_t)bytes; }
static bool say(int fd, const void *from, size_t bytes) { return send(fd, from, bytes, MSG_NOSIGNAL) == (ssize_t)bytes; }

/* ---- the root -------------------------------------------------------------------------------- */

/* Somebody who knows the magic; who does not is let go. *ret_fits: he says that he is a rank. */
static int next_caller(const struct root *root, bool *ret_fits)
{
    for (;;) {
        uint64_t magic = 0;
        int32_t kind = 0;
        int fd = accept4(root->fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) { continue; }
        if (!hear(fd, &magic, sizeof magic) || magic != root->magic) {
            close(fd);
            continue;
        }
        *ret_fits = hear(fd, &kind, sizeof kind) && kind == NCCL_ROOT_KIND_RANK;
        return fd;
    }
}

static void *root_main(void *user)
{
    struct root *root = user;
    int ranks[RANKS_MAX] = {-1, -1}, come = 0, expected = RANKS_MAX;
    while (come < expected) {
        struct hello hello;
        bool fits;
        int fd = next_caller(root, &fits);
        fits = fits && hear(fd, &hello, sizeof hello);
        fits = fits && hello.ranks >= 1 && hello.ranks <= RANKS_MAX && hello.rank >= 0 && hello.rank < hello.ranks;
        fits = fits && (come == 0 || hello.ranks == expected) && ranks[hello.rank] < 0;
        if (!fits) { /* one that does not fit ends it, and nobody gets an answer */
            close(fd);
            break;
        }
        expected = hello.ranks;
        ranks[hello.rank] = fd;
        come++;
    }
    for (int i = 0; i < RANKS_MAX; i++) {
        if (come == expected && ranks[i] >= 0) { (void)say(ranks[i], "", 1); } /* or it has gone away meanwhile */
        if (ranks[i] >= 0) { close(ranks[i]); }
    }
    close(root->fd);
    free(root);
    pthread_mutex_lock(&fake_world.lock);
    fake_world.counts.roots--;
    pthread_cond_broadcast(&fake_world.changed);
    pthread_mutex_unlock(&fake_world.lock);
    return NULL;
}

nccl_result_t fake_root_create(struct nccl_id *ret_id)
{
    struct nccl_root_handle handle;
    memset(&handle, 0, sizeof handle);
    handle.address.v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof handle.address.v4;
    RULE(getrandom(&handle.magic, sizeof handle.magic, 0) == (ssize_t)sizeof handle.magic, "no random number");
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, &handle.address.any, bytes) != 0 || listen(fd, 8) != 0 || getsockname(fd, &handle.address.any, &bytes) != 0) {
        if (fd >= 0) { close(fd); }
        return NCCL_SYSTEM_ERROR;
    }
    memset(ret_id, 0, sizeof *ret_id);
    memcpy(ret_id->internal, &handle, sizeof handle);
    struct root *root = malloc(sizeof *root);
    RULE(root != NULL, "no memory");
    *root = (struct root){.fd = fd, .magic = handle.magic};
    pthread_mutex_lock(&fake_world.lock);
    fake_world.counts.roots++;
    pthread_mutex_unlock(&fake_world.lock);
    pthread_t thread;
    RULE(pthread_create(&thread, NULL, root_main, root) == 0, "no thread");
    pthread_detach(thread);
    return NCCL_SUCCESS;
}

/* ---- a rank ---------------------------------------------------------------------------------- */

/* Where rank 1 finds rank 0. In the abstract namespace, so that nothing is left of it on a disk. */
static socklen_t meeting_point(const struct nccl_root_handle *handle, struct sockaddr_un *ret)
{
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    int length = snprintf(ret->sun_path + 1, sizeof ret->sun_path - 1, "fake-nccl-%016llx", (unsigned long long)handle->magic);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
}

static int meeting_open(const struct nccl_root_handle *handle)
{
    struct sockaddr_un address;
    socklen_t bytes = meeting_point(handle, &address);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    RULE(fd >= 0, "no socket: %s", strerror(errno));
    if (bind(fd, (struct sockaddr *)&address, bytes) == 0 && listen(fd, 1) == 0) { return fd; }
    close(fd); /* another rank 0 is there */
    return -1;
}

int fake_root_connect(const struct nccl_id *id, int ranks, int rank, int *ret_meet_fd)
{
    struct nccl_root_handle handle;
    const struct hello hello = {.ranks = ranks, .rank = rank};
    const int32_t kind = NCCL_ROOT_KIND_RANK;
    memcpy(&handle, id->internal, sizeof handle);
    if (handle.address.any.sa_family != AF_INET) { return -1; }
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    RULE(fd >= 0, "no socket: %s", strerror(errno));
    *ret_meet_fd = ranks == 2 && rank == 0 ? meeting_open(&handle) : -1;
    if (connect(fd, &handle.address.any, sizeof handle.address.v4) == 0 && say(fd, &handle.magic, sizeof handle.magic) &&
        say(fd, &kind, sizeof kind) && say(fd, &hello, sizeof hello)) {
        return fd;
    }
    if (*ret_meet_fd >= 0) { close(*ret_meet_fd); }
    *ret_meet_fd = -1;
    close(fd);
    return -1;
}

bool fake_root_wait(int root_fd, int meet_fd, const struct nccl_id *id, int ranks, int *ret_fd)
{
    char byte = 0;
    *ret_fd = -1;
    if (!hear(root_fd, &byte, 1)) { return false; }
    if (ranks == 1) { return true; }
    if (meet_fd >= 0) {
        do { *ret_fd = accept4(meet_fd, NULL, NULL, SOCK_CLOEXEC); } while (*ret_fd < 0 && errno == EINTR);
        return *ret_fd >= 0;
    }
    struct nccl_root_handle handle;
    struct sockaddr_un address;
    memcpy(&handle, id->internal, sizeof handle);
    socklen_t bytes = meeting_point(&handle, &address);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    RULE(fd >= 0, "no socket: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&address, bytes) != 0) { /* rank 0 has gone */
        close(fd);
        return false;
    }
    *ret_fd = fd;
    return true;
}
