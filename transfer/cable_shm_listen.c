/* cable_shm_listen: where D's socket lies: a folder that only this user can look into.
 * Flow:    cable_shm's open -> [cable_shm_listen] -> the loop
 * Thread:  the transfer thread, before it starts. */
#include "transfer/cable_shm_state.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define SOCKET_PREFIX "baton-kv-"
#define PRIVATE_DIR_CHARS_MAX 64u /* a socket's path has 108, and its name takes 36 */

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

status_t shm_listener_open(struct kv_cable *cable, struct diag *diag)
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
    return kv_loop_watch(cable->host->loop, &cable->listener, EPOLLIN);
}

void shm_listener_close(struct kv_cable *cable)
{
    if (cable->listener.fd < 0) { return; }
    kv_loop_remove(cable->host->loop, &cable->listener);
    close(cable->listener.fd);
    unlink(cable->path);
    cable->listener.fd = -1;
}
