/* A listener is told to go, or it is said that it was not: whatever an id holds, and whoever is there. The roots of
 * fake_nccl and of the real library are in fake_nccl_test and nccl_api_test. */
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "transfer/nccl_root.h"

#define VERSION NCCL_CODE(2, 28, 9)
#define MINUTE_NS UINT64_C(60000000000)
#define SHORT_NS UINT64_C(20000000)

struct listener {
    int fd;
    struct nccl_root_handle handle;
    struct nccl_id id;
    const char *answer;
    uint8_t heard[64];
    ssize_t heard_bytes;
};

static void listener_open(struct listener *of, int family)
{
    memset(of, 0, sizeof *of);
    of->handle.magic = UINT64_C(0x0123456789abcdef);
    socklen_t bytes = sizeof of->handle.address.v4;
    if (family == AF_INET6) {
        of->handle.address.v6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
        bytes = sizeof of->handle.address.v6;
    } else {
        of->handle.address.v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    }
    of->fd = socket(family, SOCK_STREAM, 0);
    if (of->fd < 0 || bind(of->fd, &of->handle.address.any, bytes) != 0) {
        print_message("no address of family %d here\n", family);
        if (of->fd >= 0) { close(of->fd); }
        of->fd = -1;
        return;
    }
    assert_int_equal(getsockname(of->fd, &of->handle.address.any, &bytes), 0);
    assert_int_equal(listen(of->fd, 4), 0);
    memcpy(of->id.internal, &of->handle, sizeof of->handle);
}

static void *listen_main(void *user)
{
    struct listener *of = user;
    int fd = accept(of->fd, NULL, NULL);
    of->heard_bytes = recv(fd, of->heard, 12, MSG_WAITALL);
    if (of->answer) { (void)!send(fd, of->answer, strlen(of->answer), MSG_NOSIGNAL); }
    close(fd);
    return NULL;
}

/* What is said is the magic and a kind that is not a rank's, on either kind of address; and an end of the connection, or a
 * word from somebody else, is the sign that it was heard. */
static void words_are_said(void **state)
{
    static const int families[] = {AF_INET, AF_INET6};
    (void)state;
    for (int i = 0; i < 4; i++) {
        struct listener listener;
        pthread_t thread;
        uint64_t magic;
        int32_t kind;
        listener_open(&listener, families[i / 2]);
        if (listener.fd < 0) { continue; }
        listener.answer = i % 2 ? "HTTP/1.1 400" : NULL;
        assert_int_equal(pthread_create(&thread, NULL, listen_main, &listener), 0);
        assert_true(nccl_root_retire(VERSION, &listener.id, MINUTE_NS));
        pthread_join(thread, NULL);
        assert_int_equal(listener.heard_bytes, 12);
        memcpy(&magic, listener.heard, sizeof magic);
        memcpy(&kind, listener.heard + sizeof magic, sizeof kind);
        assert_true(magic == listener.handle.magic);
        assert_int_equal(kind, NCCL_ROOT_KIND_OTHER);
        close(listener.fd);
    }
}

/* One that does not hear is given up at the limit; one that is gone is gone at once. */
static void silence_has_a_limit(void **state)
{
    struct listener listener;
    (void)state;
    listener_open(&listener, AF_INET);
    assert_false(nccl_root_retire(VERSION, &listener.id, SHORT_NS));
    assert_false(nccl_root_retire(VERSION, &listener.id, 0));
    close(listener.fd);
    assert_true(nccl_root_retire(VERSION, &listener.id, MINUTE_NS));
}

/* Versions that nobody looked at, and ids that hold no address, are left alone. */
static void others_are_left_alone(void **state)
{
    static const int versions[] = {0, 2804, NCCL_CODE(2, 18, 6), NCCL_ROOT_VERSION_LAST + 1, NCCL_CODE(2, 30, 7), NCCL_CODE(3, 0, 0)};
    struct listener listener;
    struct nccl_id id;
    (void)state;
    listener_open(&listener, AF_INET);
    for (size_t i = 0; i < sizeof versions / sizeof versions[0]; i++) { assert_false(nccl_root_retire(versions[i], &listener.id, MINUTE_NS)); }
    struct pollfd knock = {.fd = listener.fd, .events = POLLIN};
    assert_int_equal(poll(&knock, 1, 0), 0);
    close(listener.fd);
    for (int fill = 0; fill < 256; fill += 51) {
        memset(&id, fill, sizeof id);
        assert_false(nccl_root_retire(VERSION, &id, MINUTE_NS));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_are_said),
        cmocka_unit_test(silence_has_a_limit),
        cmocka_unit_test(others_are_left_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
