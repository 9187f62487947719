/* emu: the scheduler of a block's threads, and what their meetings do. See emu.h and emu_device.h. */
#include "tests/cuda/emu.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

#include "kernels/cuda/device.cuh"
#include "tests/cuda/emu_fiber.h"

#define THREADS_MAX 1024u
#define WARPS_MAX (THREADS_MAX / CUDA_WARP)
#define NAMED_MAX 16u
/* Beside shared memory on both sides, filled with CANARY. */
#define GUARD_BYTES 1024u
#define CANARY 0xC5
/* A thread that yields more often than this waits for what will never come. */
#define YIELDS_MAX 20000000u

__thread struct emu_context *emu_now;

namespace {

const char *const op_names[EMU_OP_COUNT] = {"warp_sync", "a shuffle", "a vote", "mma_bf16", "mma_f16", "ldmatrix", "ldmatrix_trans"};

/* One instruction must be executed by the whole warp: ".aligned" in the PTX manual. */
bool op_is_aligned(emu_op op) { return op >= EMU_MMA_BF16; }

enum thread_state : uint8_t { THREAD_NEW, THREAD_READY, THREAD_IN_WARP_OP, THREAD_AT_BARRIER, THREAD_AT_NAMED, THREAD_LEFT };

struct late_copy {
    void *to;
    const void *from;
    bool valid;
    uint32_t group;
};

struct device_thread {
    struct emu_fiber *fiber; /* NULL while NEW or LEFT */
    thread_state state;
    emu_op op;
    int line;
    emu_lane *lane;
    uint32_t group; /* copies started now belong to it */
    bool has_waited; /* for the launches before */
    std::vector<late_copy> copies;
};

struct warp {
    uint32_t ready;   /* lanes that are NEW or READY */
    uint32_t arrived; /* lanes in the operation */
    uint32_t left;
};

struct named_barrier {
    uint32_t expected, arrived;
    uint32_t waiting[WARPS_MAX];
};

uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* What one thread of this machine needs to play blocks. The first member is what device code sees of it. */
struct machine {
    emu_context now = {};
    const emu_kernel *kernel = nullptr;
    const void *args = nullptr;
    uint32_t threads = 0, warps = 0;
    uint32_t left = 0;
    uint32_t at_barrier = 0;
    int barrier_line = 0;
    uint32_t ready_warps = 0;
    uint32_t yields = 0;
    uint32_t warp_now = 0, turn = 0; /* the warp that runs, and where among its lanes the next is looked for */
    bool down = false;
    uint64_t random = 0;
    device_thread *current = nullptr;
    struct emu_fiber *running = nullptr;
    struct emu_fiber *home = nullptr;
    std::vector<struct emu_fiber *> idle, all;
    unsigned char *arena = nullptr;
    device_thread *thread = nullptr;
    warp warp_of[WARPS_MAX] = {};
    named_barrier named[NAMED_MAX] = {};
    bool broken = false;
    emu_fault *fault = nullptr;

    machine();
    ~machine();
    machine(const machine &) = delete;
    machine &operator=(const machine &) = delete;

    uint64_t draw()
    {
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        return random >> 33;
    }
    uint32_t index_of(const device_thread *t) const { return (uint32_t)(t - thread); }
    void make_ready(uint32_t index)
    {
        thread[index].state = THREAD_READY;
        warp_of[index / CUDA_WARP].ready |= 1u << index % CUDA_WARP;
        ready_warps |= 1u << index / CUDA_WARP;
    }
    void make_unready(device_thread *t, thread_state state)
    {
        const uint32_t index = index_of(t);
        t->state = state;
        warp_of[index / CUDA_WARP].ready &= ~(1u << index % CUDA_WARP);
        if (warp_of[index / CUDA_WARP].ready == 0) { ready_warps &= ~(1u << index / CUDA_WARP); }
    }
    void pick_warp();
    device_thread *next();
    void go(bool may_stay);
    void run_threads();
    bool run_block(emu_dim3 block_index);
    void warp_done(device_thread *t);
    void stuck();
    [[noreturn]] void report(const device_thread *t, const char *format, ...) __attribute__((format(printf, 3, 4)));
    void check_canary();
    void forget_fibers();
};

machine::machine()
{
    arena = (unsigned char *)aligned_alloc(128, EMU_SHARED_BYTES_MAX + 2 * GUARD_BYTES + 128);
    if (arena == NULL) { abort(); }
    thread = new device_thread[THREADS_MAX]();
    home = emu_fiber_create_main();
}

machine::~machine()
{
    forget_fibers();
    emu_fiber_destroy(home);
    delete[] thread;
    free(arena);
}

void machine::forget_fibers()
{
    for (struct emu_fiber *fiber : all) { emu_fiber_destroy(fiber); }
    all.clear();
    idle.clear();
}

/* Ends the launch: control goes home and never comes back to any of the block's fibers. */
void machine::report(const device_thread *t, const char *format, ...)
{
    char what[384];
    va_list list;
    va_start(list, format);
    (void)vsnprintf(what, sizeof(what), format, list);
    va_end(list);
    (void)snprintf(fault->text, sizeof(fault->text), "%s: block (%u, %u, %u), thread %u: %s", kernel->name, now.block_index.x,
                   now.block_index.y, now.block_index.z, index_of(t), what);
    broken = true;
    emu_fiber_switch(running, home);
    abort();
}

void machine::pick_warp()
{
    uint32_t skip = (uint32_t)draw() % (uint32_t)__builtin_popcount(ready_warps), rest = ready_warps;
    while (skip-- != 0) { rest &= rest - 1; }
    warp_now = (uint32_t)__builtin_ctz(rest);
    turn = (uint32_t)draw() % CUDA_WARP;
    down = draw() % 2 != 0;
}

/* The thread that goes on, or NULL. A warp runs on while it can, mostly: so another is seen far ahead of it or far
 * behind. */
device_thread *machine::next()
{
    if (ready_warps == 0) { return nullptr; }
    if (warp_of[warp_now].ready == 0) { pick_warp(); }
    const uint32_t ready = warp_of[warp_now].ready;
    const uint32_t turned = ready >> turn | (turn == 0 ? 0 : ready << (CUDA_WARP - turn));
    const uint32_t lane = ((down ? 31u - (uint32_t)__builtin_clz(turned) : (uint32_t)__builtin_ctz(turned)) + turn) % CUDA_WARP;
    return &thread[warp_now * CUDA_WARP + lane];
}

const char *state_text(const device_thread &t)
{
    switch (t.state) {
    case THREAD_IN_WARP_OP: return op_names[t.op];
    case THREAD_AT_BARRIER: return "block_sync";
    case THREAD_AT_NAMED: return "named_sync";
    case THREAD_LEFT: return "the end of the kernel";
    default: return "nothing";
    }
}

/* Nobody can go on and not all have left: says where the first waits, and where the first that is elsewhere. */
void machine::stuck()
{
    const device_thread *first = nullptr, *other = nullptr;
    for (uint32_t i = 0; i < threads; i++) {
        const device_thread &t = thread[i];
        if (t.state == THREAD_LEFT) { continue; }
        if (first == nullptr) { first = &t; }
    }
    for (uint32_t i = 0; i < threads && other == nullptr; i++) {
        if (thread[i].state != first->state || thread[i].line != first->line) { other = &thread[i]; }
    }
    if (other == nullptr) {
        report(first, "waits in %s, line %d, for threads that never come", state_text(*first), first->line);
    }
    report(first, "waits in %s, line %d, while thread %u is at %s, line %d", state_text(*first), first->line, index_of(other),
           state_text(*other), other->line);
}

/* From a fiber whose thread cannot or need not go on. Returns when that thread's turn comes. */
void machine::go(bool may_stay)
{
    device_thread *self = current, *to = next();
    if (to == nullptr) { stuck(); }
    if (to == self && may_stay) { return; }
    struct emu_fiber *from = running;
    if (to->state == THREAD_NEW) {
        if (idle.empty()) {
            struct emu_fiber *fiber = emu_fiber_create([](void *user) { ((machine *)user)->run_threads(); }, this);
            all.push_back(fiber);
            idle.push_back(fiber);
        }
        running = idle.back();
        idle.pop_back();
    } else {
        current = to;
        running = to->fiber;
    }
    emu_fiber_switch(from, running);
    now.thread_index.x = index_of(current);
}

/* The life of a fiber: takes new threads as long as there are any, and in between lets the others finish. */
void machine::run_threads()
{
    for (;;) {
        device_thread *t = next();
        if (t != nullptr && t->state == THREAD_NEW) {
            current = t;
            t->fiber = running;
            t->state = THREAD_READY;
            now.thread_index = {index_of(t), 0, 0};
            kernel->enter(args);
            const uint32_t w = index_of(t) / CUDA_WARP;
            if (kernel->is_early && !t->has_waited) { report(t, "leaves the kernel, which may start early, without launch_wait()"); }
            if (warp_of[w].arrived != 0) {
                const device_thread *other = &thread[w * CUDA_WARP];
                while (other->state != THREAD_IN_WARP_OP) { other++; }
                report(t, "leaves the kernel while thread %u of its warp waits in %s, line %d", index_of(other), op_names[other->op], other->line);
            }
            if (at_barrier != 0) { report(t, "leaves the kernel while %u threads wait in block_sync, line %d", at_barrier, barrier_line); }
            make_unready(t, THREAD_LEFT);
            t->fiber = nullptr;
            t->copies.clear();
            warp_of[w].left++;
            left++;
            continue;
        }
        struct emu_fiber *self = running;
        if (t == nullptr) {
            if (left != threads) { stuck(); }
            running = home;
        } else {
            current = t;
            now.thread_index.x = index_of(t);
            running = t->fiber;
        }
        idle.push_back(self);
        emu_fiber_switch(self, running);
        /* Somebody wants a new thread to start here, or the next block does. */
    }
}

void machine::check_canary()
{
    const unsigned char *before = now.shared - GUARD_BYTES, *after = now.shared + now.shared_bytes;
    for (uint32_t i = 0; i < GUARD_BYTES; i++) {
        if (before[i] == CANARY && after[i] == CANARY) { continue; }
        const long at = before[i] != CANARY ? (long)i - (long)GUARD_BYTES : (long)now.shared_bytes + (long)i;
        (void)snprintf(fault->text, sizeof(fault->text), "%s: block (%u, %u, %u): somebody wrote to byte %ld of %u bytes of shared memory",
                       kernel->name, now.block_index.x, now.block_index.y, now.block_index.z, at, now.shared_bytes);
        broken = true;
        return;
    }
}

bool machine::run_block(emu_dim3 block_index)
{
    now.block_index = block_index;
    memset(now.shared, 0xff, now.shared_bytes);
    left = at_barrier = yields = 0;
    for (uint32_t i = 0; i < threads; i++) {
        thread[i].state = THREAD_NEW;
        thread[i].group = 0;
        thread[i].has_waited = false;
        thread[i].line = 0;
    }
    for (uint32_t w = 0; w < warps; w++) { warp_of[w] = {0xffffffffu, 0, 0}; }
    for (named_barrier &barrier : named) {
        if (barrier.expected != 0 || barrier.arrived != 0) { barrier = {}; }
    }
    ready_warps = warps == 32 ? 0xffffffffu : (1u << warps) - 1u;
    pick_warp();
    if (idle.empty()) {
        struct emu_fiber *fiber = emu_fiber_create([](void *user) { ((machine *)user)->run_threads(); }, this);
        all.push_back(fiber);
        idle.push_back(fiber);
    }
    running = idle.back();
    idle.pop_back();
    emu_fiber_switch(home, running);
    if (!broken && now.shared_bytes != 0) { check_canary(); }
    return !broken;
}

/* ---- operations of a warp ------------------------------------------------------------------- */

void mma(device_thread *lanes, bool of_bf16)
{
    float a[16][16], b[16][8];
    for (uint32_t lane = 0; lane < CUDA_WARP; lane++) {
        const uint32_t g = lane / 4, t = lane % 4;
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t pair = lanes[lane].lane->a[i], row = g + (i % 2) * 8, k = 2 * t + (i / 2) * 8;
            a[row][k] = of_bf16 ? f32_of_bf16_low(pair) : f32_of_f16_low(pair);
            a[row][k + 1] = of_bf16 ? f32_of_bf16_high(pair) : f32_of_f16_high(pair);
        }
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t pair = lanes[lane].lane->b[i], k = 2 * t + i * 8;
            b[k][g] = of_bf16 ? f32_of_bf16_low(pair) : f32_of_f16_low(pair);
            b[k + 1][g] = of_bf16 ? f32_of_bf16_high(pair) : f32_of_f16_high(pair);
        }
    }
    /* A product of two 16-bit values is exact in f32; the manual leaves the order of the sum open. */
    for (uint32_t row = 0; row < 16; row++) {
        float sum[8] = {};
        for (uint32_t k = 0; k < 16; k++) {
            for (uint32_t n = 0; n < 8; n++) { sum[n] += a[row][k] * b[k][n]; }
        }
        for (uint32_t n = 0; n < 8; n++) { lanes[row % 8 * 4 + n / 2].lane->d[row / 8 * 2 + n % 2] += sum[n]; }
    }
}

void ldmatrix(device_thread *lanes, bool transposed)
{
    for (uint32_t matrix = 0; matrix < 4; matrix++) {
        uint16_t m[8][8];
        for (uint32_t row = 0; row < 8; row++) { memcpy(m[row], lanes[matrix * 8 + row].lane->row, 16); }
        for (uint32_t lane = 0; lane < CUDA_WARP; lane++) {
            const uint32_t row = lane / 4, column = lane % 4 * 2;
            lanes[lane].lane->r[matrix] = transposed ? m[column][row] | (uint32_t)m[column + 1][row] << 16
                                                     : m[row][column] | (uint32_t)m[row][column + 1] << 16;
        }
    }
}

/* All lanes have arrived: their results, and all may go on. */
void machine::warp_done(device_thread *t)
{
    const uint32_t w = index_of(t) / CUDA_WARP;
    device_thread *lanes = &thread[w * CUDA_WARP];
    switch (t->op) {
    case EMU_SHUFFLE:
        for (uint32_t i = 0; i < CUDA_WARP; i++) { lanes[i].lane->result = lanes[lanes[i].lane->source].lane->value; }
        break;
    case EMU_VOTE: {
        uint64_t ballot = 0;
        for (uint32_t i = 0; i < CUDA_WARP; i++) { ballot |= (uint64_t)(lanes[i].lane->value != 0) << i; }
        for (uint32_t i = 0; i < CUDA_WARP; i++) { lanes[i].lane->result = ballot; }
        break;
    }
    case EMU_MMA_BF16: mma(lanes, true); break;
    case EMU_MMA_F16: mma(lanes, false); break;
    case EMU_LDMATRIX: ldmatrix(lanes, false); break;
    case EMU_LDMATRIX_TRANS: ldmatrix(lanes, true); break;
    default: break;
    }
    for (uint32_t i = 0; i < CUDA_WARP; i++) { lanes[i].state = THREAD_READY; }
    warp_of[w].arrived = 0;
    warp_of[w].ready = 0xffffffffu;
    ready_warps |= 1u << w;
}

machine *self() { return reinterpret_cast<machine *>(emu_now); }

} // namespace

void emu_broken(const char *what, int line) { self()->report(self()->current, "%s, line %d", what, line); }

void emu_warp_op(emu_op op, emu_lane *lane, int line)
{
    machine *m = self();
    device_thread *t = m->current;
    const uint32_t w = m->index_of(t) / CUDA_WARP;
    warp &own = m->warp_of[w];
    if (own.left != 0) { m->report(t, "%s, line %d, when lanes of its warp have left the kernel", op_names[op], line); }
    if (op >= EMU_LDMATRIX) {
        emu_check16(lane->row, op_names[op], line);
        if ((uintptr_t)lane->row < (uintptr_t)m->now.shared || (uintptr_t)lane->row + 16 > (uintptr_t)m->now.shared + m->now.shared_bytes) {
            m->report(t, "%s, line %d, of an address outside of shared memory", op_names[op], line);
        }
    }
    t->op = op;
    t->line = line;
    t->lane = lane;
    if (own.arrived != 0) {
        const device_thread *other = &m->thread[w * CUDA_WARP];
        while (other->state != THREAD_IN_WARP_OP) { other++; }
        if (other->op != op || (op_is_aligned(op) && other->line != line)) {
            m->report(t, "%s, line %d, while thread %u of its warp is in %s, line %d", op_names[op], line, m->index_of(other),
                      op_names[other->op], other->line);
        }
    }
    own.arrived++;
    if (own.arrived == CUDA_WARP) {
        m->warp_done(t);
        /* Mostly the warp goes on; now and then others overtake it here. */
        if (m->draw() % 16 == 0) {
            m->pick_warp();
            m->go(true);
        }
        return;
    }
    m->make_unready(t, THREAD_IN_WARP_OP);
    m->go(false);
}

void emu_block_sync(int line)
{
    machine *m = self();
    device_thread *t = m->current;
    if (m->left != 0) { m->report(t, "block_sync, line %d, when %u threads have left the kernel", line, m->left); }
    if (m->at_barrier != 0 && m->barrier_line != line) {
        m->report(t, "block_sync, line %d, while other threads are in the one of line %d", line, m->barrier_line);
    }
    m->barrier_line = t->line = line;
    m->make_unready(t, THREAD_AT_BARRIER);
    if (++m->at_barrier == m->threads) {
        m->at_barrier = 0;
        for (uint32_t i = 0; i < m->threads; i++) { m->thread[i].state = THREAD_READY; }
        for (uint32_t w = 0; w < m->warps; w++) { m->warp_of[w].ready = 0xffffffffu; }
        m->ready_warps = m->warps == 32 ? 0xffffffffu : (1u << m->warps) - 1u;
        m->pick_warp();
    }
    m->go(true);
}

void emu_named_sync(uint32_t id, uint32_t threads, int line)
{
    machine *m = self();
    device_thread *t = m->current;
    if (id == 0 || id >= NAMED_MAX || threads == 0 || threads % CUDA_WARP != 0 || threads > m->threads) {
        m->report(t, "named_sync, line %d: no barrier %u of %u threads", line, id, threads);
    }
    named_barrier &barrier = m->named[id];
    if (barrier.arrived != 0 && barrier.expected != threads) {
        m->report(t, "named_sync, line %d: barrier %u of %u threads, others say %u", line, id, threads, barrier.expected);
    }
    barrier.expected = threads;
    t->line = line;
    const uint32_t index = m->index_of(t);
    barrier.waiting[index / CUDA_WARP] |= 1u << index % CUDA_WARP;
    m->make_unready(t, THREAD_AT_NAMED);
    if (++barrier.arrived == threads) {
        for (uint32_t w = 0; w < m->warps; w++) {
            /* The chip counts warps: one that came in part would be counted whole. */
            if (barrier.waiting[w] != 0 && barrier.waiting[w] != 0xffffffffu) {
                m->report(t, "named_sync, line %d: of warp %u only lanes %08x came", line, w, barrier.waiting[w]);
            }
            for (uint32_t lane = 0; lane < CUDA_WARP; lane++) {
                if (barrier.waiting[w] >> lane & 1u) { m->make_ready(w * CUDA_WARP + lane); }
            }
        }
        barrier = {};
        m->pick_warp();
    }
    m->go(true);
}

void emu_yield(int line)
{
    machine *m = self();
    m->current->line = line;
    if (++m->yields > YIELDS_MAX) { m->report(m->current, "waits in a loop, line %d, for what never comes", line); }
    m->pick_warp();
    m->go(true);
}

/* ---- memory --------------------------------------------------------------------------------- */

void emu_check16(const void *p, const char *what, int line)
{
    machine *m = self();
    const uintptr_t at = (uintptr_t)p, shared = (uintptr_t)m->now.shared;
    if (at % 16 != 0) { m->report(m->current, "%s, line %d, of an address that is %u past a multiple of 16", what, line, (unsigned)(at % 16)); }
    if (at + GUARD_BYTES < shared || at >= shared + m->now.shared_bytes + GUARD_BYTES) { return; } /* global memory */
    if (at < shared || at + 16 > shared + m->now.shared_bytes) {
        m->report(m->current, "%s, line %d, of byte %ld of %u bytes of shared memory", what, line, (long)(at - shared), m->now.shared_bytes);
    }
}

void emu_touch(const void *p, int line)
{
    machine *m = self();
    const uintptr_t at = (uintptr_t)p, shared = (uintptr_t)m->now.shared;
    if (!m->kernel->is_early || m->current->has_waited || (at >= shared && at < shared + m->now.shared_bytes)) { return; }
    m->report(m->current, "line %d, touches memory before launch_wait(), while launches before it may still run", line);
}

void emu_launch_wait(void) { self()->current->has_waited = true; }

void emu_copy_async(void *smem, const void *global, bool valid, int line)
{
    machine *m = self();
    device_thread *t = m->current;
    emu_touch(global, line);
    emu_check16(smem, "copy_async16 to shared memory", line);
    const uintptr_t at = (uintptr_t)smem, shared = (uintptr_t)m->now.shared;
    if (at < shared || at >= shared + m->now.shared_bytes) { m->report(t, "copy_async16, line %d, to an address outside of shared memory", line); }
    if ((uintptr_t)global % 16 != 0) { m->report(t, "copy_async16, line %d, from an address that is no multiple of 16", line); }
    memset(smem, 0xff, 16);
    t->copies.push_back({smem, global, valid, t->group});
}

void emu_copy_commit(void) { self()->current->group++; }

void emu_copy_wait(uint32_t groups_left)
{
    device_thread *t = self()->current;
    size_t kept = 0;
    for (const late_copy &copy : t->copies) {
        /* Not committed, or among the newest: still under way. */
        if (copy.group >= t->group || t->group - copy.group <= groups_left) {
            t->copies[kept++] = copy;
        } else if (copy.valid) {
            memcpy(copy.to, copy.from, 16);
        } else {
            memset(copy.to, 0, 16);
        }
    }
    t->copies.resize(kept);
}

/* ---- launches ------------------------------------------------------------------------------- */

namespace {

uint64_t seed_now;
uint64_t launch_number;
uint32_t thread_count = 1;
pthread_once_t seed_once = PTHREAD_ONCE_INIT;

void seed_first(void)
{
    const char *text = getenv("EMU_SEED");
    __atomic_store_n(&seed_now, text != NULL ? strtoull(text, NULL, 0) : 1, __ATOMIC_RELAXED);
}

struct launch {
    const emu_kernel *kernel;
    const cuda_launch *shape;
    const void *args;
    uint64_t seed;
    uint64_t blocks;
    uint64_t next; /* the next block that nobody plays yet, in the order of `start` and `step` */
    uint64_t start, step;
    bool broken;
    emu_fault fault; /* the first, guarded by `lock` */
    pthread_mutex_t lock;
};

/* Blocks come in an order of their own: start + n * step, step and the number of blocks without a common divisor. */
uint64_t step_for(uint64_t blocks, uint64_t random)
{
    for (uint64_t step = random % blocks; ; step++) {
        uint64_t a = blocks, b = step % blocks;
        while (b != 0) {
            const uint64_t rest = a % b;
            a = b;
            b = rest;
        }
        if (a == 1) { return step % blocks; }
    }
}

machine &own_machine()
{
    static thread_local machine instance;
    return instance;
}

void play(launch *l)
{
    machine &m = own_machine();
    emu_fault fault;
    m.kernel = l->kernel;
    m.args = l->args;
    m.fault = &fault;
    m.broken = false;
    m.threads = l->shape->block[0];
    m.warps = m.threads / CUDA_WARP;
    m.now.block_dim = {l->shape->block[0], 1, 1};
    m.now.grid_dim = {l->shape->grid[0], l->shape->grid[1], l->shape->grid[2]};
    /* The end of shared memory is where the launch said, to the byte. */
    m.now.shared = m.arena + GUARD_BYTES;
    m.now.shared_bytes = l->shape->shared_bytes;
    memset(m.arena, CANARY, GUARD_BYTES);
    memset(m.now.shared + m.now.shared_bytes, CANARY, GUARD_BYTES);
    emu_context *before = emu_now;
    emu_now = &m.now;
    for (;;) {
        const uint64_t n = __atomic_fetch_add(&l->next, 1, __ATOMIC_RELAXED);
        if (n >= l->blocks || __atomic_load_n(&l->broken, __ATOMIC_RELAXED)) { break; }
        const uint64_t block = (l->start + n * l->step) % l->blocks;
        m.random = mix(l->seed ^ mix(block));
        const uint32_t x = l->shape->grid[0], y = l->shape->grid[1];
        if (!m.run_block({(uint32_t)(block % x), (uint32_t)(block / x % y), (uint32_t)(block / x / y)})) {
            m.forget_fibers();
            (void)pthread_mutex_lock(&l->lock);
            if (!l->broken) {
                l->fault = fault;
                __atomic_store_n(&l->broken, true, __ATOMIC_RELAXED);
            }
            (void)pthread_mutex_unlock(&l->lock);
            break;
        }
    }
    emu_now = before;
}

void *play_thread(void *user)
{
    play((launch *)user);
    return NULL;
}

bool refuse(emu_fault *ret_fault, const char *name, const char *what)
{
    (void)snprintf(ret_fault->text, sizeof(ret_fault->text), "%s: %s", name, what);
    return false;
}

} // namespace

void emu_seed(uint64_t seed)
{
    (void)pthread_once(&seed_once, seed_first);
    __atomic_store_n(&seed_now, seed, __ATOMIC_RELAXED);
    __atomic_store_n(&launch_number, 0, __ATOMIC_RELAXED);
}

void emu_threads(uint32_t threads) { __atomic_store_n(&thread_count, threads, __ATOMIC_RELAXED); }

bool emu_launch_kernel(const struct emu_kernel *kernel, const struct cuda_launch *shape, const void *args, size_t args_bytes,
                       struct emu_fault *ret_fault)
{
    (void)pthread_once(&seed_once, seed_first);
    if (args_bytes != kernel->args_bytes) { return refuse(ret_fault, kernel->name, "the argument struct has another size"); }
    if (shape->grid[0] == 0 || shape->grid[1] == 0 || shape->grid[2] == 0) { return true; }
    if (shape->grid[0] > 0x7fffffffu || shape->grid[1] > 65535 || shape->grid[2] > 65535) {
        return refuse(ret_fault, kernel->name, "the grid has more blocks than a device takes");
    }
    if (shape->block[1] != 1 || shape->block[2] != 1 || shape->block[0] == 0 || shape->block[0] > THREADS_MAX ||
        shape->block[0] % CUDA_WARP != 0) {
        return refuse(ret_fault, kernel->name, "a block must be 32 .. 1024 threads of one dimension, whole warps");
    }
    if (shape->shared_bytes > EMU_SHARED_BYTES_MAX) { return refuse(ret_fault, kernel->name, "more shared memory than an SM has for a block"); }

    launch l = {};
    l.kernel = kernel;
    l.shape = shape;
    l.args = args;
    l.seed = mix(__atomic_load_n(&seed_now, __ATOMIC_RELAXED) + mix(__atomic_fetch_add(&launch_number, 1, __ATOMIC_RELAXED)));
    l.blocks = (uint64_t)shape->grid[0] * shape->grid[1] * shape->grid[2];
    l.start = mix(l.seed) % l.blocks;
    l.step = step_for(l.blocks, mix(l.seed + 1));
    (void)pthread_mutex_init(&l.lock, NULL);
    const uint32_t wanted = __atomic_load_n(&thread_count, __ATOMIC_RELAXED);
    std::vector<pthread_t> others;
    for (uint32_t i = 1; i < wanted && i < l.blocks; i++) {
        pthread_t other;
        if (pthread_create(&other, NULL, play_thread, &l) != 0) { break; }
        others.push_back(other);
    }
    play(&l);
    for (pthread_t other : others) { (void)pthread_join(other, NULL); }
    (void)pthread_mutex_destroy(&l.lock);
    if (l.broken) { *ret_fault = l.fault; }
    return !l.broken;
}
