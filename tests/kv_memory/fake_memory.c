#include "tests/kv_memory/fake_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "tests/kv_memory/kv_convert.h"

#define EXPORT_MAGIC UINT64_C(0x6d656d656b6166)

uint64_t fake_random_next(struct fake *fake)
{
    fake->random += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t x = fake->random;
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

void fake_dawdle(uint64_t random, uint32_t delay_us_max)
{
    if (delay_us_max == 0) { return; }
    struct timespec wait = {.tv_nsec = (long)(random % delay_us_max) * 1000};
    nanosleep(&wait, NULL);
}

/* ---- ops */

static void spoil(struct fake *fake, const struct kv_memory_op *op, uint8_t *slot)
{
    if (op->kind == KV_MEMORY_GATHER) { memset(slot, 0xee, op->count * kv_memory_piece_bytes(op)); }
    if (op->kind == KV_MEMORY_READ) { memset(op->host, 0xee, op->count * op->range_bytes); }
    if (op->kind == KV_MEMORY_WRITE || op->kind == KV_MEMORY_COPY || op->kind == KV_MEMORY_SCATTER) {
        for (uint32_t i = 0; i < op->count; i++) { memset(fake->view + op->offsets[i], 0xee, op->range_bytes); }
    }
}

static void piece_run(struct fake *fake, struct kv_memory_op *op, uint32_t i, uint8_t *piece)
{
    uint8_t *range = fake->view + op->offsets[i];
    switch (op->kind) {
    case KV_MEMORY_READ: memcpy(op->host + i * op->range_bytes, range, op->range_bytes); break;
    case KV_MEMORY_WRITE: memcpy(range, op->host + i * op->range_bytes, op->range_bytes); break;
    case KV_MEMORY_COPY:
        memcpy(range, op->peer->map + op->peer_offsets[i], op->range_bytes);
        op->crc[i] = crc32c(0, range, op->range_bytes);
        break;
    case KV_MEMORY_CHECKSUM: op->crc[i] = crc32c(0, range, op->range_bytes); break;
    case KV_MEMORY_GATHER:
        if (op->form) {
            kv_convert(&op->form->pool, range, &op->form->slot, piece);
        } else {
            memcpy(piece, range, op->range_bytes);
        }
        op->crc[i] = crc32c(0, piece, kv_memory_piece_bytes(op));
        break;
    case KV_MEMORY_SCATTER:
        op->crc[i] = crc32c(0, piece, kv_memory_piece_bytes(op));
        if (op->form) {
            kv_convert(&op->form->slot, piece, &op->form->pool, range);
        } else {
            memcpy(range, piece, op->range_bytes);
        }
        break;
    case KV_MEMORY_PASSED: break;
    }
}

static void op_run(struct fake *fake, struct kv_memory_op *op, uint64_t random)
{
    if (op->kind == KV_MEMORY_COPY) {
        if (op->event != KV_MEMORY_EVENT_NONE) {
            RULE(atomic_load(&op->peer->shared->event_has_passed[op->event]), "a copy waits for event %u, which has not passed", op->event);
        }
        for (uint32_t i = 0; i < op->count; i++) {
            RULE(op->peer_offsets[i] + op->range_bytes <= op->peer->pool_bytes, "a copy from outside of the peer's pool");
        }
    }
    uint8_t *slot = fake_uses_slot(op) ? fake_memory_reach(op->slot) : NULL;
    spoil(fake, op, slot);
    fake_dawdle(random, fake->config.delay_us_max);
    for (uint32_t i = 0; i < op->count; i++) { piece_run(fake, op, i, slot ? slot + i * kv_memory_piece_bytes(op) : NULL); }
    if (op->kind == KV_MEMORY_CHECKSUM && op->event != KV_MEMORY_EVENT_NONE) {
        atomic_store(&fake->shared->event_has_passed[op->event], 1);
    }
}

/* Under the lock: any of the ops that may go; NULL: none. */
static struct kv_memory_op *op_pick(struct fake *fake)
{
    struct kv_memory_op **chosen = NULL;
    uint32_t seen = 0;
    for (struct kv_memory_op **at = &fake->first; *at; at = &(*at)->next) {
        bool is_held = fake->is_held && (*at)->kind != KV_MEMORY_PASSED;
        bool may_go = fake->is_lost || ((*at)->mark <= fake->passed && !is_held && fake_queue_has_passed(*at));
        if (may_go && fake_random_next(fake) % ++seen == 0) { chosen = at; }
    }
    if (!chosen) { return NULL; }
    struct kv_memory_op *op = *chosen;
    *chosen = op->next;
    return op;
}

static void *worker_main(void *user)
{
    struct fake *fake = user;
    pthread_mutex_lock(&fake->lock);
    for (;;) {
        struct kv_memory_op *op = op_pick(fake);
        if (!op) {
            if (fake->is_stopping) { break; }
            pthread_cond_wait(&fake->changed, &fake->lock);
            continue;
        }
        bool is_lost = fake->is_lost;
        fake->running = op;
        uint64_t random = fake_random_next(fake);
        pthread_mutex_unlock(&fake->lock);
        if (is_lost) {
            op->status = STATUS(ST_INTERNAL, SCOPE_NODE);
        } else {
            op_run(fake, op, random);
            op->status = STATUS_OK;
        }
        pthread_mutex_lock(&fake->lock);
        fake->under_way--;
        fake->running = NULL;
        pthread_mutex_unlock(&fake->lock);
        op->next = NULL;
        op->done(op);
        pthread_mutex_lock(&fake->lock);
    }
    pthread_mutex_unlock(&fake->lock);
    return NULL;
}

static void submit(struct kv_memory *head, struct kv_memory_op *op)
{
    struct fake *fake = fake_of(head);
    kv_memory_op_check(head, op);
    pthread_mutex_lock(&fake->lock);
    RULE(op->mark <= fake->marks, "mark %llu was never given out", (unsigned long long)op->mark);
    if (op->kind == KV_MEMORY_READ || op->kind == KV_MEMORY_WRITE) {
        bool is_ours = false;
        for (int i = 0; i < HOSTS_MAX; i++) {
            size_t at = (size_t)(op->host - fake->hosts[i].at);
            is_ours |= fake->hosts[i].at && op->host >= fake->hosts[i].at && at + op->count * op->range_bytes <= fake->hosts[i].bytes;
        }
        RULE(is_ours, "host memory that was not allocated here");
    }
    if (fake_uses_slot(op)) { fake_check_slot(fake, op); }
    if (op->kind == KV_MEMORY_PASSED) { fake_queue_note(fake, op); }
    if (op->kind == KV_MEMORY_CHECKSUM && op->event != KV_MEMORY_EVENT_NONE) {
        atomic_store(&fake->shared->event_has_passed[op->event], 0);
    }
    fake->ops++;
    fake->is_lost |= fake->config.fail_from != 0 && fake->ops >= fake->config.fail_from;
    fake->under_way++;
    op->next = fake->first;
    fake->first = op;
    pthread_cond_broadcast(&fake->changed);
    pthread_mutex_unlock(&fake->lock);
}

/* ---- marks */

static void *compute_main(void *user)
{
    struct fake *fake = user;
    pthread_mutex_lock(&fake->lock);
    for (;;) {
        if (fake->passed == fake->marks || fake->marks_are_held) {
            if (fake->is_stopping) { break; }
            pthread_cond_wait(&fake->changed, &fake->lock);
            continue;
        }
        struct job job = fake->jobs[fake->passed % JOBS_MAX];
        uint64_t random = fake_random_next(fake);
        pthread_mutex_unlock(&fake->lock);
        fake_dawdle(random, fake->config.delay_us_max);
        if (job.run) { job.run(job.user); }
        pthread_mutex_lock(&fake->lock);
        fake->passed++;
        pthread_cond_broadcast(&fake->changed);
    }
    pthread_mutex_unlock(&fake->lock);
    return NULL;
}

uint64_t fake_memory_mark(struct kv_memory *head, void (*run)(void *user), void *user)
{
    struct fake *fake = fake_of(head);
    pthread_mutex_lock(&fake->lock);
    while (fake->marks - fake->passed == JOBS_MAX) { pthread_cond_wait(&fake->changed, &fake->lock); }
    fake->jobs[fake->marks % JOBS_MAX] = (struct job){.run = run, .user = user};
    uint64_t mark = ++fake->marks;
    pthread_cond_broadcast(&fake->changed);
    pthread_mutex_unlock(&fake->lock);
    return mark;
}

void fake_memory_wait(struct kv_memory *head, uint64_t mark)
{
    struct fake *fake = fake_of(head);
    pthread_mutex_lock(&fake->lock);
    while (fake->passed < mark) { pthread_cond_wait(&fake->changed, &fake->lock); }
    pthread_mutex_unlock(&fake->lock);
}

/* ---- host memory */

static status_t host_alloc(struct kv_memory *head, size_t bytes, void **ret_host, struct diag *diag)
{
    struct fake *fake = fake_of(head);
    void *host = mmap(NULL, fake_page_up(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (host == MAP_FAILED) {
        diag_set(diag, "no memory for %zu bytes of copy buffers", bytes);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    pthread_mutex_lock(&fake->lock);
    int at = 0;
    while (at < HOSTS_MAX && fake->hosts[at].at) { at++; }
    RULE(at < HOSTS_MAX, "more host buffers than anybody needs");
    fake->hosts[at].at = host;
    fake->hosts[at].bytes = bytes;
    pthread_mutex_unlock(&fake->lock);
    *ret_host = host;
    return STATUS_OK;
}

static void host_free(struct kv_memory *head, void *host)
{
    struct fake *fake = fake_of(head);
    if (!host) { return; }
    pthread_mutex_lock(&fake->lock);
    int at = 0;
    while (at < HOSTS_MAX && fake->hosts[at].at != host) { at++; }
    RULE(at < HOSTS_MAX, "a host buffer freed twice");
    munmap(host, fake_page_up(fake->hosts[at].bytes));
    fake->hosts[at].at = NULL;
    pthread_mutex_unlock(&fake->lock);
}

/* ---- between processes */

static status_t export_pool(struct kv_memory *head, uint8_t *ret_bytes, size_t *ret_count, struct diag *diag)
{
    struct fake *fake = fake_of(head);
    if (fake->config.device == 0) {
        diag_set(diag, "this device lends nothing");
        return STATUS(ST_UNIMPLEMENTED, SCOPE_NODE);
    }
    struct export_bytes bytes = {.magic = EXPORT_MAGIC, .pid = getpid(), .fd = fake->fd, .pool_bytes = head->pool_bytes};
    memcpy(bytes.id, head->id, sizeof bytes.id);
    memcpy(ret_bytes, &bytes, sizeof bytes);
    *ret_count = sizeof bytes;
    return STATUS_OK;
}

static status_t import_pool(struct kv_memory *head, const uint8_t *foreign, size_t count, struct kv_memory_peer **ret_peer,
                            size_t *ret_pool_bytes, struct diag *diag)
{
    struct export_bytes bytes;
    char path[64];
    if (count != sizeof bytes) { goto odd; }
    memcpy(&bytes, foreign, sizeof bytes);
    if (bytes.magic != EXPORT_MAGIC || bytes.pool_bytes == 0) { goto odd; }
    if (memcmp(bytes.id, head->id, sizeof bytes.id) != 0 || bytes.pid == getpid()) {
        diag_set(diag, "the peer's pool is on another device, or of this very process");
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_PEER);
    }
    snprintf(path, sizeof path, "/proc/%d/fd/%d", bytes.pid, bytes.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    size_t map_bytes = fake_page_up(bytes.pool_bytes) + fake_page_up(sizeof(struct shared));
    off_t end = fd >= 0 ? lseek(fd, 0, SEEK_END) : -1;
    uint8_t *map = end == (off_t)map_bytes ? mmap(NULL, map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (fd >= 0) { close(fd); }
    if (map == MAP_FAILED) {
        diag_set(diag, "the device refuses the peer's pool");
        return STATUS(ST_UNAVAILABLE, SCOPE_PEER);
    }
    mprotect(map, fake_page_up(bytes.pool_bytes), PROT_READ);
    struct kv_memory_peer *peer = calloc(1, sizeof *peer);
    RULE(peer != NULL, "no memory");
    *peer = (struct kv_memory_peer){.map = map, .pool_bytes = bytes.pool_bytes, .map_bytes = map_bytes,
                                    .shared = (struct shared *)(map + fake_page_up(bytes.pool_bytes))};
    for (;; peer->slot++) {
        int32_t none = 0;
        RULE(peer->slot < IMPORTERS_MAX, "more imports than anybody needs");
        if (atomic_compare_exchange_strong(&peer->shared->importers[peer->slot], &none, getpid())) { break; }
    }
    *ret_peer = peer;
    *ret_pool_bytes = bytes.pool_bytes;
    return STATUS_OK;
odd:
    diag_set(diag, "these are not the bytes of an export");
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_PEER);
}

static void release_peer(struct kv_memory *head, struct kv_memory_peer *peer)
{
    struct fake *fake = fake_of(head);
    pthread_mutex_lock(&fake->lock);
    for (const struct kv_memory_op *op = fake->first; op; op = op->next) { RULE(op->peer != peer, "a pool released while it is copied from"); }
    pthread_mutex_unlock(&fake->lock);
    atomic_store(&peer->shared->importers[peer->slot], 0);
    munmap(peer->map, peer->map_bytes);
    free(peer);
}

/* A zombie is as dead as one that is gone: its memory is. */
static bool is_alive(pid_t pid)
{
    char path[64], state = '?';
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    if (!file) { return false; }
    int got = fscanf(file, "%*d (%*[^)]) %c", &state);
    fclose(file);
    return got == 1 && state != 'Z' && state != 'X';
}

uint32_t fake_memory_imports(struct kv_memory *head)
{
    struct fake *fake = fake_of(head);
    uint32_t count = 0;
    for (int i = 0; i < IMPORTERS_MAX; i++) {
        int32_t pid = atomic_load(&fake->shared->importers[i]);
        if (pid != 0 && is_alive(pid)) { count++; }
    }
    return count;
}

/* ---- begin and end */

static const struct kv_memory_ops fake_ops = {
    .submit = submit,
    .host_alloc = host_alloc,
    .host_free = host_free,
    .export_pool = export_pool,
    .import_pool = import_pool,
    .release_peer = release_peer,
    .slots_alloc = fake_slots_alloc,
    .slots_free = fake_slots_free,
    .queue_create = fake_queue_create,
    .queue_destroy = fake_queue_destroy,
    .queue_handle = fake_queue_handle,
    .thread_bind = fake_thread_bind,
    .memory_left = fake_memory_left,
};

struct kv_memory *fake_memory_create(const struct fake_memory_config *config)
{
    struct fake *fake = calloc(1, sizeof *fake);
    RULE(fake != NULL, "no memory");
    fake->head = (struct kv_memory){.ops = &fake_ops, .pool_bytes = config->pool_bytes};
    if (config->device != 0) { memset(fake->head.id, config->device, sizeof fake->head.id); }
    fake->config = *config;
    if (config->memory_bytes == 0) { fake->config.memory_bytes = UINT64_C(4) << 30; }
    fake->random = config->seed;
    fake->is_held = config->is_held;
    fake->map_bytes = fake_page_up(config->pool_bytes) + fake_page_up(sizeof(struct shared));
    fake->fd = memfd_create("fake-device", MFD_CLOEXEC);
    RULE(fake->fd >= 0 && ftruncate(fake->fd, (off_t)fake->map_bytes) == 0, "no memfd of %zu bytes: %d", fake->map_bytes, errno);
    fake->view = mmap(NULL, fake->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fake->fd, 0);
    fake->base = mmap(NULL, fake->map_bytes, PROT_NONE, MAP_SHARED, fake->fd, 0);
    RULE(fake->view != MAP_FAILED && fake->base != MAP_FAILED, "no address space");
    fake->shared = (struct shared *)(fake->view + fake_page_up(config->pool_bytes));
    pthread_mutex_init(&fake->lock, NULL);
    pthread_cond_init(&fake->changed, NULL);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    RULE(pthread_create(&fake->worker, NULL, worker_main, fake) == 0, "no thread");
    RULE(pthread_create(&fake->compute, NULL, compute_main, fake) == 0, "no thread");
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return &fake->head;
}

void fake_memory_destroy(struct kv_memory *head)
{
    struct fake *fake = fake_of(head);
    if (!head) { return; }
    RULE(fake_memory_imports(head) == 0, "the pool ends while somebody alive has it imported");
    pthread_mutex_lock(&fake->lock);
    RULE(fake->under_way == 0, "the pool ends with %u ops under way", fake->under_way);
    RULE(!fake->queues, "a queue was never destroyed");
    RULE(!fake->slots, "slots were never freed");
    RULE(fake->taken == 0, "%llu bytes of device memory were never given back", (unsigned long long)fake->taken);
    fake->is_stopping = true;
    pthread_cond_broadcast(&fake->changed);
    pthread_mutex_unlock(&fake->lock);
    pthread_join(fake->worker, NULL);
    pthread_join(fake->compute, NULL);
    for (int i = 0; i < HOSTS_MAX; i++) { RULE(!fake->hosts[i].at, "a host buffer was never freed"); }
    munmap(fake->view, fake->map_bytes);
    munmap(fake->base, fake->map_bytes);
    close(fake->fd);
    pthread_cond_destroy(&fake->changed);
    pthread_mutex_destroy(&fake->lock);
    free(fake);
}

void *fake_memory_base(struct kv_memory *head) { return fake_of(head)->base; }
uint8_t *fake_memory_view(struct kv_memory *head) { return fake_of(head)->view; }

static void change(struct kv_memory *head, bool is_held, bool loses)
{
    struct fake *fake = fake_of(head);
    pthread_mutex_lock(&fake->lock);
    fake->is_held = is_held;
    fake->is_lost |= loses;
    pthread_cond_broadcast(&fake->changed);
    pthread_mutex_unlock(&fake->lock);
}

void fake_memory_set_held(struct kv_memory *head, bool is_held) { change(head, is_held, false); }
void fake_memory_lose(struct kv_memory *head) { change(head, fake_of(head)->is_held, true); }

void fake_memory_hold_marks(struct kv_memory *head, bool are_held)
{
    struct fake *fake = fake_of(head);
    pthread_mutex_lock(&fake->lock);
    fake->marks_are_held = are_held;
    pthread_cond_broadcast(&fake->changed);
    pthread_mutex_unlock(&fake->lock);
}

uint64_t fake_memory_ops(struct kv_memory *head)
{
    struct fake *fake = fake_of(head);
    pthread_mutex_lock(&fake->lock);
    uint64_t ops = fake->ops;
    pthread_mutex_unlock(&fake->lock);
    return ops;
}

uint32_t fake_memory_under_way(struct kv_memory *head)
{
    struct fake *fake = fake_of(head);
    pthread_mutex_lock(&fake->lock);
    uint32_t under_way = fake->under_way;
    pthread_mutex_unlock(&fake->lock);
    return under_way;
}
