/* baton up: the whole split on this machine, until Ctrl-C.
 *
 * Starts one router and the nodes as processes of their own on loopback, says when the model
 * can be talked to, starts a process that died again (so that kill -9 can be tried), and on
 * SIGINT or SIGTERM drains all of them. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/net_address.h"
#include "client/connect_flags.h"
#include "proto/baton/v1/inference.pb-c.h"

#define NODES_MAX 64u
#define ARGS_MAX 40u
#define ARG_CHARS_MAX 4096u

struct up_config {
    const char *model, *load, *listen, *bin_dir, *log_level, *isa, *cables, *chat_template;
    uint32_t prefill, decode, threads;
    uint64_t kv_memory, ready_timeout_ns, drain_timeout_ns;
    const char *node_flags, *prefill_flags, *decode_flags, *router_flags;
};

static const struct flag up_flags[] = {
    {"model", FLAG_STRING, offsetof(struct up_config, model), NULL, "DIR", "Hugging Face model directory.", 0, 0},
    {"prefill", FLAG_U32, offsetof(struct up_config, prefill), "1", "N", "Prefill nodes.", 0, 32},
    {"decode", FLAG_U32, offsetof(struct up_config, decode), "1", "N", "Decode nodes.", 1, 32},
    {"listen", FLAG_STRING, offsetof(struct up_config, listen), ROUTER_DEFAULT, "H:P", "The router's address; port 0 picks one.", 0, 0},
    {"threads", FLAG_U32, offsetof(struct up_config, threads), "0", "N", "Compute threads of each node; 0 shares the cores.", 0, 256},
    {"kv-memory", FLAG_BYTES, offsetof(struct up_config, kv_memory), "256MiB", "SIZE", "KV block pool of each node.", 0, 0},
    {"load", FLAG_STRING, offsetof(struct up_config, load), "auto", "auto|dummy", "dummy: random weights.", 0, 0},
    {"isa", FLAG_STRING, offsetof(struct up_config, isa), "auto", "NAME", "Instruction set of the kernels.", 0, 0},
    {"cables", FLAG_STRING, offsetof(struct up_config, cables), "auto", "auto|shm|tcp", "How KV blocks travel.", 0, 0},
    {"chat-template", FLAG_STRING, offsetof(struct up_config, chat_template), NULL, "NAME|FILE", "Instead of the model's own.", 0, 0},
    {"router-flags", FLAG_STRING, offsetof(struct up_config, router_flags), NULL, "FLAGS", "More flags for the router, between spaces.", 0, 0},
    {"node-flags", FLAG_STRING, offsetof(struct up_config, node_flags), NULL, "FLAGS", "More flags for prefill and decode nodes.", 0, 0},
    {"prefill-flags", FLAG_STRING, offsetof(struct up_config, prefill_flags), NULL, "FLAGS", "More flags for prefill nodes.", 0, 0},
    {"decode-flags", FLAG_STRING, offsetof(struct up_config, decode_flags), NULL, "FLAGS", "More flags for decode nodes.", 0, 0},
    {"bin-dir", FLAG_STRING, offsetof(struct up_config, bin_dir), NULL, "DIR", "Folder of the three binaries; default: beside this one.", 0, 0},
    {"ready-timeout", FLAG_DURATION, offsetof(struct up_config, ready_timeout_ns), "120s", "TIME", "Longest wait until all nodes are attached.", 0, 0},
    {"drain-timeout", FLAG_DURATION, offsetof(struct up_config, drain_timeout_ns), "10s", "TIME", "Longest wait for running requests at the end.", 0, 0},
    {"log-level", FLAG_STRING, offsetof(struct up_config, log_level), "warn", "LEVEL", "Log level of all processes.", 0, 0},
};

struct child {
    const char *role;
    char name[32];
    char address[300];
    char path[ARG_CHARS_MAX];
    char args[ARGS_MAX][ARG_CHARS_MAX];
    uint32_t arg_count;
    pid_t pid;
    uint64_t restart_ns; /* 0: runs */
    uint32_t restarts;
};

static struct child children[NODES_MAX + 1];
static uint32_t child_count;

static status_t too_long(struct diag *diag)
{
    diag_set(diag, "a flag is too long, or there are too many");
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
}

__attribute__((format(printf, 2, 3))) static bool add_arg(struct child *child, const char *format, ...)
{
    if (child->arg_count == ARGS_MAX) { return false; }
    va_list args;
    va_start(args, format);
    int len = vsnprintf(child->args[child->arg_count], ARG_CHARS_MAX, format, args);
    va_end(args);
    if (len < 0 || (size_t)len >= ARG_CHARS_MAX) { return false; }
    child->arg_count++;
    return true;
}

static bool is_up_flag(const char *name, size_t len)
{
    for (size_t i = 0; i < sizeof up_flags / sizeof up_flags[0]; i++) {
        if (strlen(up_flags[i].name) == len && memcmp(up_flags[i].name, name, len) == 0) { return true; }
    }
    return false;
}

/* What is set here already would be "given twice" to the process, which knows nothing of --isa of `baton up`.
 * own_count  the arguments that `child` had before any that were passed on */
static status_t check_is_free(const struct child *child, uint32_t own_count, const char *given_in, const char *flag,
                              size_t len, struct diag *diag)
{
    if (len < 3 || memcmp(flag, "--", 2) != 0) { return STATUS_OK; }
    const char *equals = memchr(flag, '=', len);
    size_t name_len = equals ? (size_t)(equals - flag) : len;
    for (uint32_t i = 1; i < own_count; i++) {
        const char *own = child->args[i];
        if (strcspn(own, "=") != name_len || memcmp(own, flag, name_len) != 0) { continue; }
        bool is_router = strcmp(child->role, "router") == 0;
        /* More nodes for the router are welcome. Where a node listens is nobody's choice: --listen is the router's. */
        if (is_router && (strncmp(own, "--prefill=", 10) == 0 || strncmp(own, "--decode=", 9) == 0)) { continue; }
        bool is_settable = is_up_flag(flag + 2, name_len - 2) && (is_router || strncmp(own, "--listen=", 9) != 0);
        diag_set(diag, is_settable ? "--%s: %.*s is set by `baton up`: give %.*s to `baton up` itself"
                                   : "--%s: %.*s is chosen by `baton up` for each process; leave it out",
                 given_in, (int)name_len, flag, (int)name_len, flag);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    return STATUS_OK;
}

/* "--a=1 --b=2", the value of up's flag `given_in`, to arguments behind the `own_count` ones set here. */
static status_t add_more(struct child *child, uint32_t own_count, const char *given_in, const char *flags, struct diag *diag)
{
    while (flags && *flags) {
        while (*flags == ' ') { flags++; }
        size_t len = strcspn(flags, " ");
        TRY(check_is_free(child, own_count, given_in, flags, len, diag));
        if (len > 0 && !add_arg(child, "%.*s", (int)len, flags)) { return too_long(diag); }
        flags += len;
    }
    return STATUS_OK;
}

static bool is_program(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode) && access(path, X_OK) == 0;
}

/* Bazel puts each binary into a folder of its name; an image puts all into one. */
static bool find_binary(const struct up_config *config, const char *name, char ret_path[ARG_CHARS_MAX])
{
    char self[ARG_CHARS_MAX];
    ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
    if (len <= 0) { return false; }
    self[len] = '\0';
    char *slash = strrchr(self, '/');
    if (slash) { *slash = '\0'; }
    const char *dir = config->bin_dir ? config->bin_dir : self;
    int got = snprintf(ret_path, ARG_CHARS_MAX, "%s/%s", dir, name);
    if (got > 0 && (size_t)got < ARG_CHARS_MAX && is_program(ret_path)) { return true; }
    got = snprintf(ret_path, ARG_CHARS_MAX, "%s/%s/%s", dir, name, name);
    if (got > 0 && (size_t)got < ARG_CHARS_MAX && is_program(ret_path)) { return true; }
    got = snprintf(ret_path, ARG_CHARS_MAX, "%s/../%s/%s", dir, name, name);
    return got > 0 && (size_t)got < ARG_CHARS_MAX && is_program(ret_path);
}

static status_t add_child(const struct up_config *config, const char *binary, const char *role, uint32_t index,
                          const char *listen, struct child **ret_child, struct diag *diag)
{
    struct child *child = &children[child_count];
    memset(child, 0, sizeof *child);
    child->role = role;
    snprintf(child->name, sizeof child->name, strcmp(role, "router") == 0 ? "%s" : "%s-%u", role, index);
    if (!find_binary(config, binary, child->path)) {
        diag_set(diag, "the program \"%s\" is not beside this one; build it, or name its folder with --bin-dir", binary);
        return STATUS(ST_NOT_FOUND, SCOPE_REQUEST);
    }
    TRY(net_address_listen(listen, child->address, sizeof child->address, diag));
    if (!add_arg(child, "%s", child->path) || !add_arg(child, "--listen=%s", child->address) ||
        !add_arg(child, "--model=%s", config->model) || !add_arg(child, "--log-level=%s", config->log_level)) {
        diag_set(diag, "a flag is too long");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    child_count++;
    *ret_child = child;
    return STATUS_OK;
}

static uint32_t threads_of(const struct up_config *config)
{
    if (config->threads > 0) { return config->threads; }
    cpu_set_t set;
    CPU_ZERO(&set);
    uint32_t cores = sched_getaffinity(0, sizeof set, &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1;
    uint32_t share = cores / (config->prefill + config->decode);
    return share > 0 ? share : 1;
}

static status_t add_node(const struct up_config *config, const char *role, uint32_t index, const char *more,
                         struct diag *diag)
{
    char binary[32], more_flag[32];
    snprintf(binary, sizeof binary, "%s_node", role);
    snprintf(more_flag, sizeof more_flag, "%s-flags", role);
    struct child *child;
    TRY(add_child(config, binary, role, index, "127.0.0.1:0", &child, diag));
    bool ok = add_arg(child, "--name=%s", child->name) && add_arg(child, "--threads=%u", threads_of(config)) &&
              add_arg(child, "--kv-memory=%llu", (unsigned long long)config->kv_memory) && add_arg(child, "--load=%s", config->load) &&
              add_arg(child, "--isa=%s", config->isa) && add_arg(child, "--cables=%s", config->cables) &&
              add_arg(child, "--tcp-listen=127.0.0.1:0") &&
              add_arg(child, "--drain-timeout=%lluns", (unsigned long long)config->drain_timeout_ns);
    if (!ok) { return too_long(diag); }
    uint32_t own_count = child->arg_count;
    TRY(add_more(child, own_count, "node-flags", config->node_flags, diag));
    return add_more(child, own_count, more_flag, more, diag);
}

/* "--prefill=a,b" of the nodes that were added with that role. */
static bool add_node_list(struct child *router, const char *role)
{
    char list[ARG_CHARS_MAX] = "";
    size_t len = 0;
    for (uint32_t i = 0; i < child_count; i++) {
        if (strcmp(children[i].role, role) != 0) { continue; }
        int got = snprintf(list + len, sizeof list - len, "%s%s", len > 0 ? "," : "", children[i].address);
        if (got < 0 || (size_t)got >= sizeof list - len) { return false; }
        len += (size_t)got;
    }
    return len == 0 || add_arg(router, "--%s=%s", role, list);
}

static status_t plan(const struct up_config *config, struct diag *diag)
{
    for (uint32_t i = 0; i < config->prefill; i++) { TRY(add_node(config, "prefill", i, config->prefill_flags, diag)); }
    for (uint32_t i = 0; i < config->decode; i++) { TRY(add_node(config, "decode", i, config->decode_flags, diag)); }
    struct child *router;
    TRY(add_child(config, "router", "router", 0, config->listen, &router, diag));
    bool ok = add_node_list(router, "prefill") && add_node_list(router, "decode") &&
              (!config->chat_template || add_arg(router, "--chat-template=%s", config->chat_template)) &&
              add_arg(router, "--drain-timeout=%lluns", (unsigned long long)config->drain_timeout_ns);
    return ok ? add_more(router, router->arg_count, "router-flags", config->router_flags, diag) : too_long(diag);
}

static bool start(struct child *child)
{
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid < 0) { return false; }
    if (pid == 0) {
        /* A supervisor that is killed takes its processes along. */
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent) { _exit(1); }
        /* Ctrl-C reaches the whole terminal; the supervisor alone decides the order. */
        setpgid(0, 0);
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        char *argv[ARGS_MAX + 1];
        for (uint32_t i = 0; i < child->arg_count; i++) { argv[i] = child->args[i]; }
        argv[child->arg_count] = NULL;
        execv(child->path, argv);
        fprintf(stderr, "%s: %s\n", child->path, strerror(errno));
        _exit(127);
    }
    child->pid = pid;
    child->restart_ns = 0;
    return true;
}

/* Notes who ended. Returns false when one could not even start: then all must stop. */
static bool reap(bool stopping, uint64_t now_ns)
{
    int how;
    for (pid_t pid; (pid = waitpid(-1, &how, WNOHANG)) > 0;) {
        for (uint32_t i = 0; i < child_count; i++) {
            struct child *child = &children[i];
            if (child->pid != pid) { continue; }
            child->pid = 0;
            if (stopping) { continue; }
            if (WIFEXITED(how) && (WEXITSTATUS(how) == 2 || WEXITSTATUS(how) == 127 || child->restarts == 0) &&
                WEXITSTATUS(how) != 0) {
                fprintf(stderr, "baton up: %s could not start (exit status %d)\n", child->name, WEXITSTATUS(how));
                return false;
            }
            child->restarts++;
            child->restart_ns = now_ns + 500 * NS_PER_MS;
            fprintf(stderr, "baton up: %s ended (%s %d); it is started again\n", child->name,
                    WIFSIGNALED(how) ? "signal" : "exit status", WIFSIGNALED(how) ? WTERMSIG(how) : WEXITSTATUS(how));
        }
    }
    for (uint32_t i = 0; i < child_count && !stopping; i++) {
        if (children[i].restart_ns != 0 && children[i].restart_ns <= now_ns && !start(&children[i])) { return false; }
    }
    return true;
}

static void print_talk(const struct up_config *config, const char *router)
{
    printf("Baton serves %s with %u prefill and %u decode node%s.\n", config->model, config->prefill, config->decode,
           config->prefill + config->decode > 1 ? "s" : "");
    printf("  router   %s\n", router);
    for (uint32_t i = 0; i < child_count; i++) {
        printf("  %-10s %-22s pid %d\n", children[i].name, children[i].address, (int)children[i].pid);
    }
    printf("Talk to it:\n  baton generate --router=%s --prompt=\"...\"\n  baton chat --router=%s\n  baton status --router=%s\n"
           "Ctrl-C stops it.\n", router, router, router);
    fflush(stdout);
}

/* Nodes that are attached, or -1 while the router does not answer. */
static int attached_nodes(const char *router)
{
    struct diag diag = {{0}};
    struct api *api;
    Baton__V1__GetStatusRequest request = BATON__V1__GET_STATUS_REQUEST__INIT;
    ProtobufCMessage *message = NULL;
    if (failed(api_open(router, NULL, &api, &diag))) { return -1; }
    status_t st = api_unary(api, "/baton.v1.Inference/GetStatus", &request.base,
                            &baton__v1__get_status_response__descriptor, 2 * NS_PER_S, &message, &diag);
    api_close(api);
    if (failed(st)) { return -1; }
    const Baton__V1__GetStatusResponse *status = (const Baton__V1__GetStatusResponse *)message;
    int count = 0;
    for (size_t i = 0; i < status->n_nodes; i++) { count += status->nodes[i]->attached; }
    protobuf_c_message_free_unpacked(message, NULL);
    return count;
}

static void stop_all(uint64_t timeout_ns)
{
    /* The router first: it refuses new work while the nodes finish the old. */
    uint64_t deadline_ns = clock_now_ns() + timeout_ns + 2 * NS_PER_S;
    for (uint32_t i = child_count; i-- > 0;) {
        if (children[i].pid > 0) { kill(children[i].pid, SIGTERM); }
        while (strcmp(children[i].role, "router") == 0 && children[i].pid > 0 && clock_now_ns() < deadline_ns) {
            clock_sleep_ns(5 * NS_PER_MS);
            (void)reap(true, 0);
        }
    }
    for (bool any = true; any;) {
        any = false;
        (void)reap(true, 0);
        for (uint32_t i = 0; i < child_count; i++) {
            if (children[i].pid <= 0) { continue; }
            any = true;
            if (clock_now_ns() > deadline_ns) { kill(children[i].pid, SIGKILL); }
        }
        clock_sleep_ns(5 * NS_PER_MS);
    }
}

int command_up(int argc, char **argv)
{
    static struct up_config config;
    int exit_status;
    if (!command_flags(up_flags, sizeof up_flags / sizeof up_flags[0],
                       "baton up --model=DIR [--prefill=N] [--decode=N] [--listen=H:P]", &config, argc, argv, &exit_status)) {
        return exit_status;
    }
    struct diag diag = {{0}};
    if (!config.model) {
        diag_set(&diag, "--model: needed, a Hugging Face model directory");
        return command_fail("up", STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST), &diag);
    }
    status_t st = plan(&config, &diag);
    if (failed(st)) { return command_fail("up", st, &diag); }
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGHUP);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    bool ok = true;
    for (uint32_t i = 0; i < child_count && ok; i++) { ok = start(&children[i]); }
    const char *router = children[child_count - 1].address;
    int wanted = (int)(config.prefill + config.decode);
    uint64_t deadline_ns = clock_now_ns() + config.ready_timeout_ns, next_look_ns = 0;
    bool is_ready = false;
    while (ok) {
        struct timespec wait = {.tv_nsec = 50000000};
        if (sigtimedwait(&signals, NULL, &wait) > 0) { break; }
        uint64_t now_ns = clock_now_ns();
        ok = reap(false, now_ns);
        if (ok && !is_ready && now_ns >= next_look_ns) {
            int attached = attached_nodes(router);
            is_ready = attached == wanted;
            next_look_ns = now_ns + 100 * NS_PER_MS;
            if (is_ready) { print_talk(&config, router); }
            if (!is_ready && now_ns > deadline_ns) {
                fprintf(stderr, "baton up: only %d of %d nodes were attached in time; see `baton status --router=%s`\n",
                        attached < 0 ? 0 : attached, wanted, router);
                ok = false;
            }
        }
    }
    stop_all(config.drain_timeout_ns);
    return ok ? 0 : 1;
}
