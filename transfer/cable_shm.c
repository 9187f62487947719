#include "transfer/cable_shm.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "transfer/little_endian.h"
#include "transfer/loop.h"

#define SOCKET_PREFIX "baton-kv-"
#define PRIVATE_DIR_CHARS_MAX 64u /* a socket's path has 108, and its name takes 36 */
/* Descriptors under way per link: enough that P sums the next frames while D copies, and few
 * enough that D still finds in the shared cache what P has just read (D's copy took 15 % less
 * CPU time with 4 than with 16). D answers every second frame, so that P is never idle. */
enum { WINDOW = 6, STRANGERS_MAX = 16, FRAMES_PER_TURN = 2 };

struct conn {
    struct kv_watch watch; /* first: the callback casts back */
    struct kv_cable *cable;
    uint32_t link; /* UINT32_MAX: a stranger, who has not shown a token */
    bool is_sender, ready;
    uint64_t born; /* strangers: the oldest goes first */
    /* D */
    const uint8_t *map;
    size_t map_bytes;
    uint32_t map_blocks;
    uint32_t done_owed;
    /* P: waiting, then under way; both in order */
    struct kv_cable_push *queue_first, *queue_last;
    struct kv_cable_push *sent_first, *sent_last;
    uint32_t sent_count;
};

struct kv_cable {
    const struct kv_cable_host *host;
    struct kv_watch listener;
    char path[sizeof ((struct sockaddr_un *)0)->sun_path];
    struct conn **conns; /* [links_max] */
    struct conn *strangers[STRANGERS_MAX];
    uint64_t births;
    int lent_fd; /* P: read-only descriptor of the pool; -1 until first used */
};

static void conn_on_ready(struct kv_watch *watch, uint32_t events);

/* ---- connections */

static void pushes_finish(struct conn *conn)
{
    const struct kv_cable_host *host = conn->cable->host;
    struct kv_cable_push **lists[2] = {&conn->sent_first, &conn->queue_first};
    conn->sent_count = 0;
    for (int i = 0; i < 2; i++) {
        while (*lists[i]) {
            struct kv_cable_push *push = *lists[i];
            *lists[i] = push->next;
            push->dropped = true;
            host->push_done(host->endpoint, push);
        }
    }
}

static void conn_destroy(struct conn *conn)
{
    struct kv_cable *cable = conn->cable;
    if (conn->link != UINT32_MAX && cable->conns[conn->link] == conn) { cable->conns[conn->link] = NULL; }
    for (uint32_t i = 0; i < STRANGERS_MAX; i++) {
        if (cable->strangers[i] == conn) { cable->strangers[i] = NULL; }
    }
    kv_loop_remove(cable->host->loop, &conn->watch);
    close(conn->watch.fd);
    if (conn->map) { munmap((void *)(uintptr_t)conn->map, conn->map_bytes); }
    pushes_finish(conn);
    free(conn);
}

static void conn_fail(struct conn *conn, status_t status, const char *text)
{
    const struct kv_cable_host *host = conn->cable->host;
    uint32_t link = conn->link;
    conn_destroy(conn);
    if (link != UINT32_MAX) { host->lost(host->endpoint, link, status, text); }
}

static struct conn *conn_create(struct kv_cable *cable, int fd, uint32_t link, bool is_sender)
{
    struct conn *conn = calloc(1, sizeof *conn);
    if (!conn) { return NULL; }
    conn->cable = cable;
    conn->link = link;
    conn->is_sender = is_sender;
    conn->born = ++cable->births;
    conn->watch.fd = fd;
    conn->watch.on_ready = conn_on_ready;
    if (failed(kv_loop_watch(cable->host->loop, &conn->watch, EPOLLIN))) {
        free(conn);
        return NULL;
    }
    return conn;
}

static bool peer_is_our_user(int fd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

/* ---- D: strangers become links */

static void listener_on_ready(struct kv_watch *watch, uint32_t events)
{
    (void)events;
    struct kv_cable *cable = (struct kv_cable *)((char *)watch - offsetof(struct kv_cable, listener));
    int fd = accept4(watch->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) { return; }
    if (!peer_is_our_user(fd)) {
        close(fd);
        return;
    }
    uint32_t at = 0; /* a free place, else the oldest stranger's: who stalls is pushed out */
    for (uint32_t i = 1; i < STRANGERS_MAX && cable->strangers[at]; i++) {
        if (!cable->strangers[i] || cable->strangers[i]->born < cable->strangers[at]->born) { at = i; }
    }
    if (cable->strangers[at]) { conn_destroy(cable->strangers[at]); }
    cable->strangers[at] = conn_create(cable, fd, UINT32_MAX, false);
    if (!cable->strangers[at]) { close(fd); }
}

/* Takes memfd. NULL, or why it is refused. */
static const char *pool_map(struct conn *conn, int memfd, uint64_t pool_bytes)
{
    const char *wrong = NULL;
    struct stat info;
    uint64_t block_bytes = kv_layout_block_bytes(conn->cable->host->layout);
    int seals = fcntl(memfd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK)) {
        wrong = "the pool could shrink under its reader"; /* which would end us with SIGBUS */
    } else if (fstat(memfd, &info) != 0 || (uint64_t)info.st_size < pool_bytes || pool_bytes < block_bytes ||
               pool_bytes / block_bytes > UINT32_MAX / 2) {
        wrong = "the pool is not of the size it is said to be";
    } else {
        void *map = mmap(NULL, pool_bytes, PROT_READ, MAP_SHARED, memfd, 0);
        if (map == MAP_FAILED) {
            wrong = "the pool cannot be mapped";
        } else {
            conn->map = map;
            conn->map_bytes = pool_bytes;
            conn->map_blocks = (uint32_t)(pool_bytes / block_bytes);
        }
    }
    close(memfd);
    return wrong;
}

static void on_hello(struct conn *conn, const uint8_t *packet, size_t bytes, int memfd)
{
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    uint32_t link = 0;
    bool known = bytes == SHM_HELLO_BYTES && memfd >= 0 && le32_load(packet) == SHM_MAGIC &&
                 le32_load(packet + 4) == SHM_HELLO && host->token_link(host->endpoint, packet + 8, &link) &&
                 !cable->conns[link];
    if (!known) {
        if (memfd >= 0) { close(memfd); }
        conn_destroy(conn);
        return;
    }
    uint8_t welcome[8];
    le32_store(welcome, SHM_MAGIC);
    le32_store(welcome + 4, SHM_WELCOME);
    if (pool_map(conn, memfd, le64_load(packet + 40)) != NULL ||
        send(conn->watch.fd, welcome, sizeof welcome, MSG_NOSIGNAL) != (ssize_t)sizeof welcome) {
        conn_destroy(conn); /* P sees the hangup and takes the next cable; the token is still good */
        return;
    }
    for (uint32_t i = 0; i < STRANGERS_MAX; i++) {
        if (cable->strangers[i] == conn) { cable->strangers[i] = NULL; }
    }
    conn->link = link;
    conn->ready = true;
    cable->conns[link] = conn;
    host->connected(host->endpoint, link);
}

/* ---- D: descriptors */

/* False: the packet is none that P sends. */
static bool on_descriptor(struct conn *conn, const uint8_t *packet, size_t bytes)
{
    const struct kv_cable_host *host = conn->cable->host;
    if (bytes < SHM_DESCRIPTOR_HEAD_BYTES || le32_load(packet) != SHM_MAGIC || le32_load(packet + 4) != SHM_DESCRIPTOR) {
        return false;
    }
    struct kv_frame frame = {.grant_epoch = le64_load(packet + 24), .layer = le32_load(packet + 32),
                             .first = le32_load(packet + 36), .count = le32_load(packet + 40)};
    memcpy(frame.xfer_id.bytes, packet + 8, 16);
    if (frame.count == 0 || frame.count > KV_FRAME_BLOCKS_MAX || bytes != SHM_DESCRIPTOR_HEAD_BYTES + 8u * frame.count) {
        return false;
    }
    const uint8_t *blocks = packet + SHM_DESCRIPTOR_HEAD_BYTES;
    const uint8_t *sums = blocks + 4u * frame.count;
    for (uint32_t i = 0; i < frame.count; i++) {
        if (le32_load(blocks + 4u * i) >= conn->map_blocks) { return false; }
    }
    conn->done_owed++;
    struct kv_landing landing;
    if (!host->frame_accept(host->endpoint, conn->link, &frame, &landing)) { return true; }
    size_t slice_bytes = kv_layout_slice_bytes(host->layout);
    bool crc_ok = true;
    for (uint32_t i = 0; i < frame.count; i++) {
        const uint8_t *from = conn->map + kv_layout_slice_offset(host->layout, le32_load(blocks + 4u * i), frame.layer);
        uint8_t *to = (uint8_t *)host->pool.base + kv_layout_slice_offset(host->layout, landing.blocks[i], frame.layer);
        crc_ok &= crc32c_copy(0, to, from, slice_bytes) == le32_load(sums + 4u * i);
    }
    host->frame_landed(host->endpoint, conn->link, &landing, &frame, crc_ok);
    return true;
}

/* ---- P */

static void push_pop_sent(struct conn *conn)
{
    const struct kv_cable_host *host = conn->cable->host;
    struct kv_cable_push *push = conn->sent_first;
    conn->sent_first = push->next;
    conn->sent_count--;
    host->push_done(host->endpoint, push);
}

static size_t descriptor_write(const struct kv_cable_host *host, struct kv_cable_push *push, uint8_t *packet)
{
    size_t slice_bytes = kv_layout_slice_bytes(host->layout);
    le32_store(packet, SHM_MAGIC);
    le32_store(packet + 4, SHM_DESCRIPTOR);
    memcpy(packet + 8, push->frame.xfer_id.bytes, 16);
    le64_store(packet + 24, push->frame.grant_epoch);
    le32_store(packet + 32, push->frame.layer);
    le32_store(packet + 36, push->frame.first);
    le32_store(packet + 40, push->frame.count);
    uint8_t *blocks = packet + SHM_DESCRIPTOR_HEAD_BYTES;
    uint8_t *sums = blocks + 4u * push->frame.count;
    for (uint32_t i = 0; i < push->frame.count; i++) {
        const uint8_t *from =
            (const uint8_t *)host->pool.base + kv_layout_slice_offset(host->layout, push->blocks[i], push->frame.layer);
        push->crc[i] = crc32c(0, from, slice_bytes);
        le32_store(blocks + 4u * i, push->blocks[i]);
        le32_store(sums + 4u * i, push->crc[i]);
    }
    return SHM_DESCRIPTOR_HEAD_BYTES + 8u * push->frame.count;
}

/* Sends descriptors while the window is open. False: the socket is broken. */
static bool queue_pump(struct conn *conn)
{
    uint8_t packet[SHM_PACKET_BYTES_MAX];
    bool blocked = false;
    while (conn->queue_first && conn->sent_count < WINDOW) {
        struct kv_cable_push *push = conn->queue_first;
        size_t bytes = descriptor_write(conn->cable->host, push, packet);
        ssize_t sent = send(conn->watch.fd, packet, bytes, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
            blocked = true;
            break;
        }
        if (sent != (ssize_t)bytes) { return false; }
        conn->queue_first = push->next;
        push->next = NULL;
        if (conn->sent_first) { conn->sent_last->next = push; } else { conn->sent_first = push; }
        conn->sent_last = push;
        conn->sent_count++;
    }
    return !failed(kv_loop_watch(conn->cable->host->loop, &conn->watch, EPOLLIN | (blocked ? (uint32_t)EPOLLOUT : 0u)));
}

/* ---- both */

/* Tells P what was copied. False: broken. When P does not read, it is told later. */
static bool done_send(struct conn *conn)
{
    bool blocked = false;
    if (conn->done_owed) {
        uint8_t packet[12];
        le32_store(packet, SHM_MAGIC);
        le32_store(packet + 4, SHM_DONE);
        le32_store(packet + 8, conn->done_owed);
        ssize_t sent = send(conn->watch.fd, packet, sizeof packet, MSG_NOSIGNAL);
        blocked = sent < 0 && (errno == EAGAIN || errno == EINTR);
        if (sent != (ssize_t)sizeof packet && !blocked) { return false; }
        if (!blocked) { conn->done_owed = 0; }
    }
    return !failed(kv_loop_watch(conn->cable->host->loop, &conn->watch, EPOLLIN | (blocked ? (uint32_t)EPOLLOUT : 0u)));
}

/* One packet and, on a hello, a descriptor. 0: hangup; -1 with errno. */
static ssize_t packet_receive(int fd, uint8_t *packet, size_t size, int *ret_fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(4 * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = packet, .iov_len = size};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    *ret_fd = -1;
    ssize_t got = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0) { return got; }
    for (struct cmsghdr *part = CMSG_FIRSTHDR(&msg); part; part = CMSG_NXTHDR(&msg, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) { continue; }
        for (size_t i = 0; i < (part->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
            int one;
            memcpy(&one, CMSG_DATA(part) + i * sizeof(int), sizeof one);
            if (*ret_fd < 0) { *ret_fd = one; } else { close(one); }
        }
    }
    return got;
}

static void conn_on_ready(struct kv_watch *watch, uint32_t events)
{
    (void)events; /* reading tells all: data, hangup or error */
    struct conn *conn = (struct conn *)watch;
    struct kv_cable *cable = conn->cable;
    const struct kv_cable_host *host = cable->host;
    const char *wrong = NULL;
    for (int turn = 0; turn < FRAMES_PER_TURN && !wrong; turn++) {
        uint8_t packet[SHM_PACKET_BYTES_MAX];
        int fd = -1;
        ssize_t got = packet_receive(watch->fd, packet, sizeof packet, &fd);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) { break; }
        if (got <= 0) {
            if (fd >= 0) { close(fd); }
            wrong = "the peer hung up";
            break;
        }
        if (!conn->is_sender && !conn->ready) {
            on_hello(conn, packet, (size_t)got, fd);
            return; /* the connection may be gone */
        }
        if (fd >= 0) { close(fd); }
        host->heard(host->endpoint, conn->link);
        if (!conn->is_sender) {
            uint32_t link = conn->link;
            bool understood = on_descriptor(conn, packet, (size_t)got);
            if (cable->conns[link] != conn) { return; } /* what landed ended the link */
            if (!understood) { wrong = "the peer sent a descriptor that is none"; }
        } else if (!conn->ready) {
            if (got != 8 || le32_load(packet) != SHM_MAGIC || le32_load(packet + 4) != SHM_WELCOME) {
                wrong = "the peer did not welcome us";
                break;
            }
            conn->ready = true;
            uint32_t link = conn->link;
            host->connected(host->endpoint, link);
            if (cable->conns[link] != conn) { return; }
        } else {
            uint32_t done = got == 12 ? le32_load(packet + 8) : UINT32_MAX;
            if (le32_load(packet) != SHM_MAGIC || le32_load(packet + 4) != SHM_DONE || done > conn->sent_count) {
                wrong = "the peer answered what was not asked";
                break;
            }
            while (done--) { push_pop_sent(conn); }
        }
    }
    if (!wrong && conn->ready && !(conn->is_sender ? queue_pump(conn) : done_send(conn))) { wrong = "the socket broke"; }
    if (wrong) { conn_fail(conn, STATUS(ST_UNAVAILABLE, SCOPE_PEER), wrong); }
}

/* ---- the ops */

/* A socket file outlives its process after kill -9. One that nobody listens on is removed. */
static void stale_sockets_remove(const char *dir)
{
    DIR *folder = opendir(dir);
    if (!folder) { return; }
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        if (strncmp(entry->d_name, SOCKET_PREFIX, strlen(SOCKET_PREFIX)) != 0) { continue; }
        int chars = snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", dir, entry->d_name);
        if (chars < 0 || (size_t)chars >= sizeof address.sun_path) { continue; }
        struct stat info;
        if (lstat(address.sun_path, &info) != 0 || !S_ISSOCK(info.st_mode) || info.st_uid != geteuid()) { continue; }
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) { break; }
        if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0 && errno == ECONNREFUSED) {
            unlink(address.sun_path);
        }
        close(fd);
    }
    closedir(folder);
}

static void shm_close(struct kv_cable *cable)
{
    if (!cable) { return; }
    for (uint32_t i = 0; i < STRANGERS_MAX; i++) {
        if (cable->strangers[i]) { conn_destroy(cable->strangers[i]); }
    }
    for (uint32_t i = 0; cable->conns && i < cable->host->links_max; i++) {
        if (cable->conns[i]) { conn_destroy(cable->conns[i]); }
    }
    if (cable->listener.fd >= 0) {
        kv_loop_remove(cable->host->loop, &cable->listener);
        close(cable->listener.fd);
        unlink(cable->path);
    }
    if (cable->lent_fd >= 0) { close(cable->lent_fd); }
    free(cable->conns);
    free(cable);
}

/* A folder that only this user can look into: the session's own where there is one, else a
 * folder of ours in /tmp. One that somebody else made there first, or that others can enter, is
 * refused and not used. */
static status_t private_dir(char ret_dir[PRIVATE_DIR_CHARS_MAX], struct diag *diag)
{
    struct stat info;
    const char *session = getenv("XDG_RUNTIME_DIR");
    bool fits = session && session[0] == '/' && strlen(session) < PRIVATE_DIR_CHARS_MAX;
    if (fits && lstat(session, &info) == 0 && S_ISDIR(info.st_mode) && info.st_uid == geteuid() &&
        (info.st_mode & 077) == 0 && access(session, W_OK | X_OK) == 0) {
        strcpy(ret_dir, session);
        return STATUS_OK;
    }
    snprintf(ret_dir, PRIVATE_DIR_CHARS_MAX, "/tmp/baton-%u", (unsigned)geteuid());
    if (mkdir(ret_dir, 0700) != 0 && errno != EEXIST) {
        int cause = errno;
        diag_set(diag, "shm cable: cannot make the folder %s: %s; --uds-dir names another", ret_dir, strerror(cause));
        return STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_NODE, cause);
    }
    if (lstat(ret_dir, &info) != 0 || !S_ISDIR(info.st_mode) || info.st_uid != geteuid() || (info.st_mode & 077) != 0) {
        diag_set(diag, "shm cable: %s is not a folder of this user alone; remove it, or --uds-dir names another", ret_dir);
        return STATUS(ST_UNAVAILABLE, SCOPE_NODE);
    }
    return STATUS_OK;
}

static status_t listener_open(struct kv_cable *cable, struct diag *diag)
{
    char own_dir[PRIVATE_DIR_CHARS_MAX];
    const char *dir = cable->host->uds_dir;
    if (!dir) {
        TRY(private_dir(own_dir, diag));
        dir = own_dir;
    }
    uint64_t random = 0;
    if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random) { return STATUS_CAUSE(ST_INTERNAL, SCOPE_NODE, errno); }
    int chars = snprintf(cable->path, sizeof cable->path, "%s/" SOCKET_PREFIX "%d-%016llx", dir, (int)getpid(),
                         (unsigned long long)random);
    if (chars < 0 || (size_t)chars >= sizeof cable->path) {
        diag_set(diag, "shm cable: the folder %s has too long a name for a Unix socket", dir);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    stale_sockets_remove(dir);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, cable->path, sizeof address.sun_path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* The token and the user check keep others out; the mode keeps them from trying. */
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || chmod(cable->path, 0600) != 0 ||
        listen(fd, 64) != 0) {
        int cause = errno;
        if (fd >= 0) { close(fd); }
        diag_set(diag, "shm cable: cannot listen at %s: %s", cable->path, strerror(cause));
        return STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_NODE, cause);
    }
    cable->listener.fd = fd;
    cable->listener.on_ready = listener_on_ready;
    return kv_loop_watch(cable->host->loop, &cable->listener, EPOLLIN);
}

static status_t shm_open_cable(const struct kv_cable_host *host, struct diag *diag, struct kv_cable **ret_cable)
{
    struct kv_cable *cable = calloc(1, sizeof *cable);
    if (!cable) { return STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM); }
    cable->host = host;
    cable->listener.fd = cable->lent_fd = -1;
    cable->conns = calloc(host->links_max, sizeof(struct conn *));
    status_t st = cable->conns ? STATUS_OK : STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_NODE, ENOMEM);
    if (!failed(st) && host->receives) { st = listener_open(cable, diag); }
    if (failed(st)) {
        shm_close(cable);
        return st;
    }
    *ret_cable = cable;
    return STATUS_OK;
}

static status_t shm_offer(struct kv_cable *cable, uint32_t link, struct kv_cable_offer *ret_offer)
{
    (void)link;
    if (cable->listener.fd < 0) { return STATUS(ST_UNIMPLEMENTED, SCOPE_PEER); }
    ret_offer->size = (uint32_t)strlen(cable->path);
    memcpy(ret_offer->bytes, cable->path, ret_offer->size);
    return STATUS_OK;
}

/* What is lent cannot be written through, whatever the receiver does with it. */
static int lent_fd_open(struct kv_cable *cable)
{
    if (cable->lent_fd < 0) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", cable->host->pool.memfd);
        cable->lent_fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    return cable->lent_fd;
}

static bool hello_send(struct kv_cable *cable, int fd, const uint8_t *token)
{
    int lent = lent_fd_open(cable);
    if (lent < 0) { return false; }
    uint8_t packet[SHM_HELLO_BYTES];
    le32_store(packet, SHM_MAGIC);
    le32_store(packet + 4, SHM_HELLO);
    memcpy(packet + 8, token, KV_CABLE_TOKEN_BYTES);
    le64_store(packet + 40, cable->host->pool.bytes);
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct iovec iov = {.iov_base = packet, .iov_len = sizeof packet};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    struct cmsghdr *part = CMSG_FIRSTHDR(&msg);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(part), &lent, sizeof lent);
    return sendmsg(fd, &msg, MSG_NOSIGNAL) == (ssize_t)sizeof packet;
}

static status_t shm_connect(struct kv_cable *cable, uint32_t link, const char *peer_host, const void *offer,
                            size_t offer_bytes, const uint8_t token[KV_CABLE_TOKEN_BYTES])
{
    (void)peer_host;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (offer_bytes == 0 || offer_bytes >= sizeof address.sun_path) { return STATUS(ST_INVALID_ARGUMENT, SCOPE_PEER); }
    memcpy(address.sun_path, offer, offer_bytes);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) { return STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno); }
    status_t st = STATUS_OK;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        st = STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno);
    } else if (!peer_is_our_user(fd)) {
        st = STATUS(ST_PERMISSION_DENIED, SCOPE_PEER);
    } else if (!hello_send(cable, fd, token)) {
        st = STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_PEER, errno);
    }
    struct conn *conn = failed(st) ? NULL : conn_create(cable, fd, link, true);
    if (!conn) {
        close(fd);
        return failed(st) ? st : STATUS_CAUSE(ST_RESOURCE_EXHAUSTED, SCOPE_PEER, ENOMEM);
    }
    cable->conns[link] = conn;
    return STATUS_OK;
}

static void shm_push(struct kv_cable *cable, uint32_t link, struct kv_cable_push *push)
{
    struct conn *conn = cable->conns[link];
    if (!conn) { /* it broke, and the endpoint has not heard of it yet */
        push->dropped = true;
        cable->host->push_done(cable->host->endpoint, push);
        return;
    }
    push->next = NULL;
    if (conn->queue_first) { conn->queue_last->next = push; } else { conn->queue_first = push; }
    conn->queue_last = push;
    /* A broken socket shows itself to the loop right after. */
    if (conn->ready && !queue_pump(conn)) { shutdown(conn->watch.fd, SHUT_RDWR); }
}

static void shm_abort(struct kv_cable *cable, uint32_t link, uint32_t send_slot)
{
    struct conn *conn = cable->conns[link];
    if (!conn) { return; }
    for (struct kv_cable_push *push = conn->sent_first; push; push = push->next) {
        if (push->send_slot == send_slot) { push->dropped = true; }
    }
    struct kv_cable_push *queue = conn->queue_first;
    conn->queue_first = conn->queue_last = NULL;
    while (queue) {
        struct kv_cable_push *push = queue;
        queue = push->next;
        push->next = NULL;
        if (push->send_slot == send_slot) {
            push->dropped = true;
            cable->host->push_done(cable->host->endpoint, push);
            continue;
        }
        if (conn->queue_first) { conn->queue_last->next = push; } else { conn->queue_first = push; }
        conn->queue_last = push;
    }
}

static void shm_fence(struct kv_cable *cable, uint32_t link)
{
    if (cable->conns[link]) { conn_destroy(cable->conns[link]); }
}

static const char *shm_address(const struct kv_cable *cable) { return cable->path; }

const struct kv_cable_ops kv_cable_shm = {
    .name = "shm",
    .same_host_only = true,
    .needs_source_memfd = true,
    .places_at_destination = true,
    .open = shm_open_cable,
    .offer = shm_offer,
    .connect = shm_connect,
    .push = shm_push,
    .abort = shm_abort,
    .fence = shm_fence,
    .close = shm_close,
    .address = shm_address,
};
