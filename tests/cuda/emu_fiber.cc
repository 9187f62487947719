#include "tests/cuda/emu_fiber.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#if !defined(__x86_64__) || defined(EMU_UCONTEXT)
#define USE_UCONTEXT 1
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define USE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define USE_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define USE_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define USE_TSAN 1
#endif
#endif

#ifdef USE_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef USE_TSAN
#include <sanitizer/tsan_interface.h>
#endif

/* Untouched pages of a stack cost nothing. A sanitizer's frames are several times larger. */
#if defined(USE_ASAN) || defined(USE_TSAN)
#define STACK_BYTES ((size_t)512 * 1024)
#else
#define STACK_BYTES ((size_t)128 * 1024)
#endif

struct emu_fiber {
    void *mapping; /* NULL of the main fiber */
    size_t mapping_bytes;
    void *stack; /* lowest usable address; of the main fiber known after the first switch away from it */
    size_t stack_bytes;
    void (*enter)(void *user);
    void *user;
#ifdef USE_UCONTEXT
    ucontext_t context;
#else
    void *sp;
#endif
    struct emu_fiber *came_from; /* at the first switch */
#ifdef USE_ASAN
    void *fake_stack;
#endif
#ifdef USE_TSAN
    void *tsan;
#endif
};

#ifndef USE_UCONTEXT
/* Saves what the System V ABI lets a callee keep, in six pushes; the first switch to a new stack returns into
 * emu_fiber_first. Rounding modes are not saved: no kernel changes them. */
extern "C" void emu_fiber_swap(void **save_sp, void *to_sp);
asm(".text\n"
    ".globl emu_fiber_swap\n"
    ".hidden emu_fiber_swap\n"
    ".type emu_fiber_swap, @function\n"
    "emu_fiber_swap:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size emu_fiber_swap, .-emu_fiber_swap\n");
#endif

/* The fiber that the first switch goes to. It has no argument of its own in either form of switch. */
static __thread struct emu_fiber *starting;

static void fiber_first(void)
{
    struct emu_fiber *self = starting;
#ifdef USE_ASAN
    const void *bottom = NULL;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(NULL, &bottom, &bytes);
    if (self->came_from->mapping == NULL) {
        self->came_from->stack = (void *)(uintptr_t)bottom;
        self->came_from->stack_bytes = bytes;
    }
#endif
    self->enter(self->user);
    abort(); /* enter never returns */
}

struct emu_fiber *emu_fiber_create_main(void)
{
    struct emu_fiber *fiber = (struct emu_fiber *)calloc(1, sizeof(*fiber));
    if (fiber == NULL) { abort(); }
#ifdef USE_TSAN
    fiber->tsan = __tsan_get_current_fiber();
#endif
    return fiber;
}

struct emu_fiber *emu_fiber_create(void (*enter)(void *user), void *user)
{
    struct emu_fiber *fiber = (struct emu_fiber *)calloc(1, sizeof(*fiber));
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (fiber == NULL) { abort(); }
    fiber->mapping_bytes = STACK_BYTES + page;
    fiber->mapping = mmap(NULL, fiber->mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fiber->mapping == MAP_FAILED || mprotect(fiber->mapping, page, PROT_NONE) != 0) { abort(); }
    fiber->stack = (unsigned char *)fiber->mapping + page;
    fiber->stack_bytes = STACK_BYTES;
    fiber->enter = enter;
    fiber->user = user;
#ifdef USE_UCONTEXT
    if (getcontext(&fiber->context) != 0) { abort(); }
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = fiber->stack_bytes;
    fiber->context.uc_link = NULL;
    makecontext(&fiber->context, fiber_first, 0);
#else
    /* From above: an end for whoever walks the frames, the address that `ret` takes, six registers. The stack pointer
     * after `ret` is 8 below a multiple of 16, as after any call. */
    void **top = (void **)(void *)((unsigned char *)fiber->stack + fiber->stack_bytes - 16);
    top[0] = NULL;
    top[1] = NULL;
    void **at = top;
    *--at = NULL;
    void (*first)(void) = fiber_first;
    *--at = (void *)(uintptr_t)first;
    for (int i = 0; i < 6; i++) { *--at = NULL; }
    fiber->sp = at;
#endif
#ifdef USE_TSAN
    fiber->tsan = __tsan_create_fiber(0);
#endif
    return fiber;
}

void emu_fiber_destroy(struct emu_fiber *fiber)
{
    if (fiber == NULL) { return; }
    if (fiber->mapping != NULL) {
#ifdef USE_ASAN
        __asan_unpoison_memory_region(fiber->mapping, fiber->mapping_bytes); /* what lay there may be mapped again */
#endif
#ifdef USE_TSAN
        __tsan_destroy_fiber(fiber->tsan);
#endif
        (void)munmap(fiber->mapping, fiber->mapping_bytes);
    }
    free(fiber);
}

void emu_fiber_switch(struct emu_fiber *from, struct emu_fiber *to)
{
    starting = to;
    if (to->came_from == NULL) { to->came_from = from; }
#ifdef USE_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
#ifdef USE_TSAN
    __tsan_switch_to_fiber(to->tsan, 0);
#endif
#ifdef USE_UCONTEXT
    if (swapcontext(&from->context, &to->context) != 0) { abort(); }
#else
    emu_fiber_swap(&from->sp, to->sp);
#endif
#ifdef USE_ASAN
    __sanitizer_finish_switch_fiber(from->fake_stack, NULL, NULL);
#endif
}
