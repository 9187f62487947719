#include "transfer/nccl_root.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

_Static_assert(offsetof(struct nccl_root_handle, address) == 8, "the address follows the magic at once");
_Static_assert(sizeof(struct nccl_root_handle) <= NCCL_ID_BYTES, "a handle fits into an id");

/* False: nothing by then. */
static bool await(int fd, short what, uint64_t deadline_ns)
{
    for (;;) {
        uint64_t now_ns = clock_now_ns();
        if (now_ns >= deadline_ns) { return false; }
        struct pollfd one = {.fd = fd, .events = what};
        uint64_t left_ms = (deadline_ns - now_ns) / NS_PER_MS + 1;
        int ready = poll(&one, 1, left_ms < 60000 ? (int)left_ms : 60000);
        if (ready > 0) { return true; }
        if (ready < 0 && errno != EINTR) { return false; }
    }
}

static bool tell(int fd, const struct nccl_root_handle *root, socklen_t address_bytes, uint64_t deadline_ns)
{
    if (connect(fd, &root->address.any, address_bytes) != 0) {
        if (errno != EINPROGRESS) { return errno == ECONNREFUSED; }
        int error = 0;
        socklen_t bytes = sizeof error;
        if (!await(fd, POLLOUT, deadline_ns)) { return false; }
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes) != 0) { return false; }
        if (error != 0) { return error == ECONNREFUSED; }
    }
    uint8_t words[sizeof root->magic + sizeof(int32_t)];
    const int32_t kind = NCCL_ROOT_KIND_OTHER;
    memcpy(words, &root->magic, sizeof root->magic);
    memcpy(words + sizeof root->magic, &kind, sizeof kind);
    /* The first bytes of a connection always fit. */
    if (send(fd, words, sizeof words, MSG_NOSIGNAL) != (ssize_t)sizeof words) { return errno == ECONNRESET || errno == EPIPE; }
    /* It closes when it has heard. A word back comes from somebody else, who has the port by now. */
    if (!await(fd, POLLIN, deadline_ns)) { return false; }
    uint8_t byte;
    ssize_t got = recv(fd, &byte, sizeof byte, 0);
    return got >= 0 || errno == ECONNRESET;
}

bool nccl_root_retire(int version, const struct nccl_id *id, uint64_t limit_ns)
{
    struct nccl_root_handle root;
    if (version < NCCL_ROOT_VERSION_FIRST || version > NCCL_ROOT_VERSION_LAST) { return false; }
    memcpy(&root, id->internal, sizeof root);
    const int family = root.address.any.sa_family;
    if (family != AF_INET && family != AF_INET6) { return false; }
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) { return false; }
    socklen_t bytes = family == AF_INET ? sizeof root.address.v4 : sizeof root.address.v6;
    bool is_gone = tell(fd, &root, bytes, clock_now_ns() + limit_ns);
    close(fd);
    return is_gone;
}
