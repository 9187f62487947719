#include "bench/transfer/cut.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

__attribute__((format(printf, 1, 2))) static bool shell(const char *format, ...)
{
    char command[512], full[600];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    snprintf(full, sizeof full, "(%s) >/dev/null 2>&1", command);
    return system(full) == 0;
}

/* What a bench that gives up would leave behind; the processes that it forked leave it alone. */
static struct cut made_last;
static pid_t maker;

static void end_at_exit(void)
{
    if (maker == getpid()) { cut_end(&made_last); }
}

bool cut_make(struct cut *ret_cut)
{
    const char *d = ret_cut->netns[0], *p = ret_cut->netns[1];
    ret_cut->ip[0] = "10.231.9.1";
    ret_cut->ip[1] = "10.231.9.2";
    snprintf(ret_cut->netns[0], sizeof ret_cut->netns[0], "bnd%d", (int)getpid() % 1000000);
    snprintf(ret_cut->netns[1], sizeof ret_cut->netns[1], "bnp%d", (int)getpid() % 1000000);
    if (geteuid() != 0) { return false; }
    if (maker == 0) { (void)atexit(end_at_exit); }
    maker = getpid();
    made_last = *ret_cut;
    bool made = shell("ip netns add %s && ip netns add %s", d, p) && shell("ip link add %s type veth peer name %s", d, p);
    for (int i = 0; made && i < 2; i++) {
        const char *name = ret_cut->netns[i];
        made = shell("ip link set %s netns %s && ip netns exec %s ip addr add %s/24 dev %s && ip netns exec %s ip link set %s up", name,
                     name, name, ret_cut->ip[i], name, name, name);
    }
    if (!made) { cut_end(ret_cut); }
    return made;
}

void cut_pull(const struct cut *cut)
{
    if (!shell("ip netns exec %s ip link set %s down", cut->netns[0], cut->netns[0])) {
        fprintf(stderr, "the link could not be cut\n");
        exit(1);
    }
}

void cut_end(const struct cut *cut) { (void)shell("ip netns del %s; ip netns del %s", cut->netns[0], cut->netns[1]); }
