#include "bench/transfer/limits.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "kernels/cuda/driver.h"

enum { BUFFER_BYTES = 128 * 1024 }; /* iperf3's, for TCP */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double cpu_ns_of(int who)
{
    struct rusage usage;
    getrusage(who, &usage);
    return 1e9 * (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + 1e3 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

/* Returns owned: [count], a permutation. */
static uint32_t *order_make(uint32_t count)
{
    uint32_t *order = malloc(count * sizeof *order);
    unsigned seed = 3;
    if (!order) { die("malloc"); }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = (uint32_t)rand_r(&seed) % (i + 1);
        order[i] = order[at];
        order[at] = i;
    }
    return order;
}

struct limit limit_memcpy(uint32_t slice_bytes, uint32_t mib)
{
    static uint8_t *from, *to;
    static size_t mapped;
    size_t bytes = (size_t)mib * 1024 * 1024;
    if (mapped != bytes) {
        from = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        to = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (from == MAP_FAILED || to == MAP_FAILED) { die("mmap"); }
        mapped = bytes;
    }
    uint32_t slices = (uint32_t)(bytes / slice_bytes);
    uint32_t *order = order_make(slices);
    double cpu_start_ns = cpu_ns_of(RUSAGE_SELF);
    uint64_t start_ns = clock_now_ns();
    for (uint32_t i = 0; i < slices; i++) {
        memcpy(to + (size_t)order[i] * slice_bytes, from + (size_t)order[slices - 1 - i] * slice_bytes, slice_bytes);
    }
    uint64_t duration_ns = clock_now_ns() - start_ns;
    free(order);
    return (struct limit){.gbps = (double)bytes / (double)duration_ns, .cpu_gbps = (double)bytes / (cpu_ns_of(RUSAGE_SELF) - cpu_start_ns)};
}

static void stream_out(const struct sockaddr_in *address, size_t bytes)
{
    static uint8_t buffer[BUFFER_BYTES];
    memset(buffer, 7, sizeof buffer);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (const struct sockaddr *)address, sizeof *address) != 0) { die("connect"); }
    for (size_t at = 0; at < bytes;) {
        ssize_t sent = send(fd, buffer, bytes - at < sizeof buffer ? bytes - at : sizeof buffer, 0);
        if (sent <= 0) { die("send"); }
        at += (size_t)sent;
    }
    _exit(0);
}

struct limit limit_stream(uint32_t mib)
{
    static uint8_t buffer[BUFFER_BYTES];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    size_t bytes = (size_t)mib * 1024 * 1024, got = 0;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0) {
        die("listen");
    }
    double cpu_start_ns = cpu_ns_of(RUSAGE_SELF) + cpu_ns_of(RUSAGE_CHILDREN);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) { stream_out(&address, bytes); }
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    uint64_t start_ns = clock_now_ns();
    for (ssize_t now; fd >= 0 && (now = recv(fd, buffer, sizeof buffer, 0)) > 0;) { got += (size_t)now; }
    uint64_t duration_ns = clock_now_ns() - start_ns;
    while (waitpid(pid, NULL, 0) < 0) { }
    close(fd);
    close(listener);
    double cpu_ns = cpu_ns_of(RUSAGE_SELF) + cpu_ns_of(RUSAGE_CHILDREN) - cpu_start_ns;
    if (got != bytes) { die("the plain stream"); }
    return (struct limit){.gbps = (double)bytes / (double)duration_ns, .cpu_gbps = (double)bytes / cpu_ns};
}

static double number_after(const char *line, const char *key)
{
    const char *at = strstr(line, key);
    return at ? atof(at + strlen(key)) : 0;
}

struct limit limit_iperf3(uint32_t mib)
{
    char command[256], line[512];
    snprintf(command, sizeof command,
             "iperf3 -s -1 -p 5271 >/dev/null 2>&1 & sleep 0.2; iperf3 -c 127.0.0.1 -p 5271 -n %uM -J 2>/dev/null", mib);
    double bits = 0, cpu_percent = 0;
    bool received = false;
    if (system("command -v iperf3 >/dev/null 2>&1") != 0) { return (struct limit){0, 0}; }
    FILE *pipe_file = popen(command, "r");
    if (!pipe_file) { return (struct limit){0, 0}; }
    while (fgets(line, sizeof line, pipe_file)) {
        received |= strstr(line, "\"sum_received\"") != NULL;
        if (received && bits == 0) { bits = number_after(line, "\"bits_per_second\":"); }
        cpu_percent += number_after(line, "\"host_total\":") + number_after(line, "\"remote_total\":");
    }
    pclose(pipe_file);
    return (struct limit){.gbps = bits / 8e9, .cpu_gbps = cpu_percent > 0 ? bits / 8e9 / (cpu_percent / 100) : 0};
}

/* ---- on a GPU, in a process of its own: CUDA does not live through a fork */

struct gpu_answer {
    struct limit limit;
    char why[256];
};

static status_t gpu_copy(uint32_t device, uint32_t slice_bytes, uint32_t mib, struct limit *limit, struct diag *diag)
{
    const struct cuda_driver *driver = NULL;
    struct cuda_stream *stream = NULL;
    void *from = NULL, *to = NULL;
    size_t bytes = (size_t)mib * 1024 * 1024;
    uint32_t slices = (uint32_t)(bytes / slice_bytes);
    if (cuda_driver_open == NULL) { /* a weak reference */
        diag_set(diag, "this program has no driver");
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    TRY(cuda_driver_open(device, &driver, diag));
    TRY(driver->mem_alloc(driver, bytes, &from, diag));
    TRY(driver->mem_alloc(driver, bytes, &to, diag));
    TRY(driver->stream_create(driver, false, &stream, diag));
    uint32_t *order = order_make(slices);
    struct cuda_copy *copies = calloc(slices, sizeof *copies);
    if (!copies) { die("calloc"); }
    for (uint32_t i = 0; i < slices; i++) {
        copies[i] = (struct cuda_copy){.to = (uint8_t *)to + (size_t)order[i] * slice_bytes,
                                       .from = (uint8_t *)from + (size_t)order[slices - 1 - i] * slice_bytes, .bytes = slice_bytes};
    }
    for (int round = 0; round < 2; round++) { /* the first one warms up */
        uint64_t start_ns = clock_now_ns();
        TRY(driver->copy_batch(driver, CUDA_COPY_ON_DEVICE, copies, slices, stream, diag));
        TRY(driver->stream_sync(driver, stream, diag));
        limit->gbps = (double)bytes / (double)(clock_now_ns() - start_ns);
    }
    return STATUS_OK; /* the process ends, and all of it */
}

bool limit_gpu_copy(uint32_t device, uint32_t slice_bytes, uint32_t mib, struct limit *ret_limit, char *ret_why, size_t why_size)
{
    int fds[2];
    struct gpu_answer answer = {.why = "it ended without a word"};
    if (pipe(fds) != 0) { die("pipe"); }
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        struct diag diag = {.text = ""};
        answer.why[0] = '\0';
        if (failed(gpu_copy(device, slice_bytes, mib, &answer.limit, &diag))) { snprintf(answer.why, sizeof answer.why, "%.255s", diag.text); }
        _exit(write(fds[1], &answer, sizeof answer) == (ssize_t)sizeof answer ? 0 : 1);
    }
    close(fds[1]);
    if (read(fds[0], &answer, sizeof answer) != (ssize_t)sizeof answer) { answer.limit.gbps = 0; }
    close(fds[0]);
    while (waitpid(pid, NULL, 0) < 0) { }
    *ret_limit = answer.limit;
    snprintf(ret_why, why_size, "%s", answer.why);
    return answer.why[0] == '\0';
}
