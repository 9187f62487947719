/* driver: starts peers, speaks with them, and waits for what they say. Every wait has a
 * generous deadline and ends as soon as its condition holds.
 * Thread:  the test's. */
#ifndef BATON_TESTS_CONFORMANCE_DRIVER_H
#define BATON_TESTS_CONFORMANCE_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* cmocka wants these before it */
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

enum { LINE_MAX_CHARS = 4096, WAIT_S = 30 };

struct proc {
    pid_t pid; /* 0: not running */
    int in, out;
    char buffer[65536];
    size_t filled;
    char link_address[64], tcp_address[64];
};

/* cable of this run: "shm", "tcp" */
extern const char *cable_name;
/* Another that carries too: nccl warms up beside it. NULL: none. */
extern const char *cable_beside;
/* Whether pools lie on a fake device, unless the arguments say memory=. */
extern bool pools_on_device;

/* args: "key=value ..." for peer_main; cables= is added. netns: NULL, or a network namespace.
 * Waits until it is ready. */
void proc_start(struct proc *proc, const char *netns, const char *args);
void proc_kill(struct proc *proc, int signal_number); /* SIGKILL also reaps it */
void proc_quit(struct proc *proc);                    /* and checks that it ends well */
void proc_ends(struct proc *proc);                    /* the same for one that was told to quit before */
/* Ends all that still run; for teardown. */
int procs_end(void **state);

__attribute__((format(printf, 2, 3))) void tell(struct proc *proc, const char *format, ...);
/* The next line within wait_ms; false: none, or the process ended. */
bool line_next(struct proc *proc, int wait_ms, char ret_line[LINE_MAX_CHARS]);
/* Skips lines until one begins so; fails the test after WAIT_S. Returns the rest of the line. */
__attribute__((format(printf, 2, 3))) const char *expect(struct proc *proc, const char *format, ...);

uint64_t stat_of(struct proc *proc, const char *name);
/* Waits until it is at least `value`. */
void stat_wait(struct proc *proc, const char *name, uint64_t value);
/* grants == landed + failed + revoked + live + quarantined, the same of blocks, free + live ==
 * total, sends add up, and no canary was touched. Also that nothing is under way. */
void audit_quiet(struct proc *proc);

/* D grants, P sends. Returns the ticket's text, static. */
const char *grant(struct proc *d, uint64_t xfer, uint32_t count, uint32_t lease_ms);
/* A whole transfer, checked at both ends. carried_by: the cable of the last one. */
extern char carried_by[16];
void transfer_checked(struct proc *d, struct proc *p, uint64_t xfer, uint32_t count);

#endif
