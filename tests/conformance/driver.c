#include "tests/conformance/driver.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

const char *cable_name = "tcp";
const char *cable_beside;
char carried_by[16];
bool pools_on_device;

enum { PROCS_MAX = 16, ARGS_MAX = 40 };
static struct proc *running[PROCS_MAX];

void proc_start(struct proc *proc, const char *netns, const char *args)
{
    int in[2], out[2];
    char self[512], copy[1024], cables[32];
    char *argv[ARGS_MAX];
    int argc = 0;
    ssize_t chars = readlink("/proc/self/exe", self, sizeof self - 1);
    assert_true(chars > 0);
    self[chars] = '\0';
    if (netns) {
        argv[argc++] = (char *)(uintptr_t)"ip";
        argv[argc++] = (char *)(uintptr_t)"netns";
        argv[argc++] = (char *)(uintptr_t)"exec";
        argv[argc++] = (char *)(uintptr_t)netns;
    }
    argv[argc++] = self;
    argv[argc++] = (char *)(uintptr_t)"peer";
    snprintf(copy, sizeof copy, "%s", args);
    char *rest = NULL;
    for (char *arg = strtok_r(copy, " ", &rest); arg && argc < ARGS_MAX - 4; arg = strtok_r(NULL, " ", &rest)) { argv[argc++] = arg; }
    snprintf(cables, sizeof cables, "cables=%s%s%s", cable_name, cable_beside ? "," : "", cable_beside ? cable_beside : "");
    if (!strstr(args, "cables=")) { argv[argc++] = cables; }
    if (pools_on_device && !strstr(args, "memory=")) { argv[argc++] = (char *)(uintptr_t)"memory=fake"; }
    /* Two ranks of NCCL are on two devices. */
    bool is_second = strcmp(cable_name, "nccl") == 0 && strstr(args, "role=p") && !strstr(args, "device=");
    if (is_second) { argv[argc++] = (char *)(uintptr_t)"device=2"; }
    argv[argc] = NULL;
    memset(proc, 0, sizeof *proc);
    assert_int_equal(pipe(in), 0);
    assert_int_equal(pipe(out), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* nothing is left behind when the test is killed */
        dup2(in[0], STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        for (int fd = 3; fd < 256; fd++) { close(fd); }
        execvp(argv[0], argv);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    proc->pid = pid;
    proc->in = in[1];
    proc->out = out[0];
    for (int i = 0; i < PROCS_MAX; i++) {
        if (!running[i]) {
            running[i] = proc;
            break;
        }
    }
    const char *ready = expect(proc, "ready");
    sscanf(ready, "%63s %63s", proc->link_address, proc->tcp_address);
}

static int proc_reap(struct proc *proc)
{
    int status = 0;
    while (waitpid(proc->pid, &status, 0) < 0 && errno == EINTR) { }
    close(proc->in);
    close(proc->out);
    proc->pid = 0;
    for (int i = 0; i < PROCS_MAX; i++) {
        if (running[i] == proc) { running[i] = NULL; }
    }
    return status;
}

void proc_kill(struct proc *proc, int signal_number)
{
    assert_int_equal(kill(proc->pid, signal_number), 0);
    if (signal_number == SIGKILL) { (void)proc_reap(proc); }
}

void proc_quit(struct proc *proc)
{
    tell(proc, "quit 0");
    proc_ends(proc);
}

void proc_ends(struct proc *proc)
{
    int status = proc_reap(proc);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) { fail_msg("a peer ended with wait status %#x", (unsigned)status); }
}

int procs_end(void **state)
{
    (void)state;
    for (int i = 0; i < PROCS_MAX; i++) {
        struct proc *proc = running[i];
        if (!proc) { continue; }
        kill(proc->pid, SIGCONT);
        kill(proc->pid, SIGKILL);
        (void)proc_reap(proc);
    }
    return 0;
}

void tell(struct proc *proc, const char *format, ...)
{
    char line[LINE_MAX_CHARS];
    va_list args;
    va_start(args, format);
    int chars = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    assert_in_range(chars, 1, sizeof line - 2);
    line[chars++] = '\n';
    ssize_t wrote = write(proc->in, line, (size_t)chars);
    if (wrote != chars) { fail_msg("a peer takes no more commands: it has ended"); }
}

bool line_next(struct proc *proc, int wait_ms, char ret_line[LINE_MAX_CHARS])
{
    uint64_t end_ns = clock_now_ns() + (uint64_t)wait_ms * NS_PER_MS;
    for (;;) {
        char *end = memchr(proc->buffer, '\n', proc->filled);
        if (end) {
            size_t chars = (size_t)(end - proc->buffer);
            snprintf(ret_line, LINE_MAX_CHARS, "%.*s", (int)chars, proc->buffer);
            proc->filled -= chars + 1;
            memmove(proc->buffer, end + 1, proc->filled);
            return true;
        }
        uint64_t now_ns = clock_now_ns();
        struct pollfd fd = {.fd = proc->out, .events = POLLIN};
        int left_ms = now_ns < end_ns ? (int)((end_ns - now_ns) / NS_PER_MS) : 0;
        if (poll(&fd, 1, left_ms) <= 0) { return false; }
        ssize_t got = read(proc->out, proc->buffer + proc->filled, sizeof proc->buffer - proc->filled);
        if (got <= 0) { return false; }
        proc->filled += (size_t)got;
    }
}

const char *expect(struct proc *proc, const char *format, ...)
{
    static char line[LINE_MAX_CHARS];
    char prefix[256], seen[1024] = "";
    va_list args;
    va_start(args, format);
    vsnprintf(prefix, sizeof prefix, format, args);
    va_end(args);
    while (line_next(proc, WAIT_S * 1000, line)) {
        if (strncmp(line, prefix, strlen(prefix)) == 0) {
            const char *rest = line + strlen(prefix);
            return *rest == ' ' ? rest + 1 : rest;
        }
        snprintf(seen + strlen(seen), sizeof seen - strlen(seen), "\n  %.200s", line);
    }
    fail_msg("waited for \"%s\", saw:%s", prefix, seen);
    return "";
}

/* Lines of events may come in between: they are kept for later, in order. */
static const char *stats_line(struct proc *proc)
{
    static char line[LINE_MAX_CHARS];
    static char kept[sizeof proc->buffer];
    size_t kept_bytes = 0;
    tell(proc, "stats 0");
    while (line_next(proc, WAIT_S * 1000, line)) {
        if (strncmp(line, "stats ", 6) == 0) {
            assert_true(kept_bytes + proc->filled <= sizeof kept);
            memcpy(kept + kept_bytes, proc->buffer, proc->filled);
            proc->filled += kept_bytes;
            memcpy(proc->buffer, kept, proc->filled);
            return line;
        }
        size_t chars = strlen(line);
        assert_true(kept_bytes + chars + 1 <= sizeof kept);
        memcpy(kept + kept_bytes, line, chars);
        kept[kept_bytes + chars] = '\n';
        kept_bytes += chars + 1;
    }
    fail_msg("a peer does not answer");
    return "";
}

static uint64_t stat_in(const char *line, const char *name)
{
    char key[64];
    snprintf(key, sizeof key, " %s=", name);
    const char *at = strstr(line, key);
    if (!at) { fail_msg("no counter %s", name); }
    return strtoull(at + strlen(key), NULL, 10);
}

uint64_t stat_of(struct proc *proc, const char *name) { return stat_in(stats_line(proc), name); }

void stat_wait(struct proc *proc, const char *name, uint64_t value)
{
    uint64_t end_ns = clock_now_ns() + WAIT_S * NS_PER_S;
    while (stat_of(proc, name) < value) {
        if (clock_now_ns() > end_ns) { fail_msg("%s never reached %llu", name, (unsigned long long)value); }
        clock_sleep_ns(2 * NS_PER_MS);
    }
}

void audit_quiet(struct proc *proc)
{
    char line[LINE_MAX_CHARS];
    snprintf(line, sizeof line, "%s", stats_line(proc));
    assert_int_equal(stat_in(line, "grants"), stat_in(line, "landed") + stat_in(line, "failed") + stat_in(line, "revoked"));
    assert_int_equal(stat_in(line, "blocks_granted"),
                     stat_in(line, "blocks_landed") + stat_in(line, "blocks_failed") + stat_in(line, "blocks_revoked"));
    assert_int_equal(stat_in(line, "live") + stat_in(line, "quarantined"), 0);
    assert_int_equal(stat_in(line, "blocks_live") + stat_in(line, "blocks_quarantined"), 0);
    assert_int_equal(stat_in(line, "sends"), stat_in(line, "acked") + stat_in(line, "send_failed"));
    assert_int_equal(stat_in(line, "sends_live"), 0);
    assert_int_equal(stat_in(line, "free_blocks"), stat_in(line, "total_blocks"));
    assert_int_equal(stat_in(line, "canary_bad"), 0);
}

const char *grant(struct proc *d, uint64_t xfer, uint32_t count, uint32_t lease_ms)
{
    static char ticket[LINE_MAX_CHARS];
    tell(d, "grant %016llx %u %u", (unsigned long long)xfer, count, lease_ms);
    snprintf(ticket, sizeof ticket, "%s", expect(d, "ticket %016llx", (unsigned long long)xfer));
    return ticket;
}

void transfer_checked(struct proc *d, struct proc *p, uint64_t xfer, uint32_t count)
{
    unsigned long long id = xfer;
    tell(p, "send %016llx %llx %s full", id, id * 7 + 1, grant(d, xfer, count, 20000));
    const char *landed = expect(d, "landed %016llx", id);
    if (strncmp(landed, "good", 4) != 0) { fail_msg("transfer %llx landed wrong bytes", id); }
    const char *acked = expect(p, "acked %016llx", id);
    snprintf(carried_by, sizeof carried_by, "%.*s", (int)strcspn(acked, " "), acked);
    bool is_beside = cable_beside && strncmp(acked, cable_beside, strlen(cable_beside)) == 0;
    if (strcmp(cable_name, "auto") != 0 && !is_beside && strncmp(acked, cable_name, strlen(cable_name)) != 0) {
        fail_msg("went over another cable: %s", acked);
    }
}
