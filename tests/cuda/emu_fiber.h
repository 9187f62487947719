/* emu_fiber: stacks of their own, and the switch between them.
 * Flow:    emu -> [emu_fiber]
 * Thread:  a fiber stays on the thread that made it.
 * Memory:  one mapping for each, with a page at its end that nobody may touch.
 *
 * On x86-64 a switch is a dozen instructions; elsewhere ucontext, which asks the kernel for its signal mask each time.
 * The sanitizers are told of every switch. */
#ifndef BATON_TESTS_CUDA_EMU_FIBER_H
#define BATON_TESTS_CUDA_EMU_FIBER_H

#include <stddef.h>

struct emu_fiber;

/* The thread's own stack, as a fiber to come back to. */
struct emu_fiber *emu_fiber_create_main(void);
/* enter(user) is called at the first switch to it and never returns. */
struct emu_fiber *emu_fiber_create(void (*enter)(void *user), void *user);
/* Of any but the running one; what is on its stack is forgotten. Takes NULL. */
void emu_fiber_destroy(struct emu_fiber *fiber);
/* Returns when something switches back to `from`, which is the running one. */
void emu_fiber_switch(struct emu_fiber *from, struct emu_fiber *to);

#endif
