/* fake_slots: device memory beside the pool, and streams, of fake_memory. */
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/kv_memory/fake_internal.h"

struct fake_slots {
    struct fake_slots *next;     /* of one fake; its lock guards the list */
    struct fake_slots *next_all; /* of the process */
    uint8_t *base, *view;
    size_t bytes, map_bytes;
};

struct queue_job {
    struct queue_job *next;
    void (*run)(void *user);
    void *user;
};

struct kv_memory_queue {
    struct kv_memory_queue *next;
    struct fake *fake; /* whose lock guards what follows */
    pthread_t thread;
    struct queue_job *first, *last;
    uint64_t queued, passed;
    bool is_stopping;
};

/* An address says nothing of whose it is, so all are in one list. Never held while another lock is taken. */
static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static struct fake_slots *all_slots;

static _Thread_local struct kv_memory *bound;

/* ---- slots */

static status_t lost(struct fake *fake, struct diag *diag)
{
    pthread_mutex_lock(&fake->lock);
    bool is_lost = fake->is_lost;
    pthread_mutex_unlock(&fake->lock);
    if (!is_lost) { return STATUS_OK; }
    diag_set(diag, "the device is lost");
    return STATUS(ST_INTERNAL, SCOPE_NODE);
}

bool fake_memory_take(struct kv_memory *head, uint64_t bytes)
{
    struct fake *fake = fake_of(head);
    pthread_mutex_lock(&fake->lock);
    bool is_there = bytes <= fake->config.memory_bytes - fake->taken;
    if (is_there) { fake->taken += bytes; }
    pthread_mutex_unlock(&fake->lock);
    return is_there;
}

void fake_memory_give_back(struct kv_memory *head, uint64_t bytes)
{
    struct fake *fake = fake_of(head);
    pthread_mutex_lock(&fake->lock);
    RULE(bytes <= fake->taken, "%llu bytes of device memory given back of %llu", (unsigned long long)bytes, (unsigned long long)fake->taken);
    fake->taken -= bytes;
    pthread_mutex_unlock(&fake->lock);
}

status_t fake_memory_left(struct kv_memory *head, uint64_t *ret_free, struct diag *diag)
{
    struct fake *fake = fake_of(head);
    TRY(lost(fake, diag));
    pthread_mutex_lock(&fake->lock);
    *ret_free = fake->config.memory_bytes - fake->taken;
    pthread_mutex_unlock(&fake->lock);
    return STATUS_OK;
}

status_t fake_slots_alloc(struct kv_memory *head, size_t bytes, uint8_t **ret_slots, struct diag *diag)
{
    struct fake *fake = fake_of(head);
    TRY(lost(fake, diag));
    RULE(bytes > 0, "slots of no bytes");
    if (!fake_memory_take(head, bytes)) {
        diag_set(diag, "the device has no %zu bytes left for slots", bytes);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    struct fake_slots *slots = calloc(1, sizeof *slots);
    RULE(slots != NULL, "no memory");
    slots->bytes = bytes;
    slots->map_bytes = fake_page_up(bytes);
    int fd = memfd_create("fake-slots", MFD_CLOEXEC);
    RULE(fd >= 0 && ftruncate(fd, (off_t)slots->map_bytes) == 0, "no memfd of %zu bytes", slots->map_bytes);
    slots->view = mmap(NULL, slots->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    slots->base = mmap(NULL, slots->map_bytes, PROT_NONE, MAP_SHARED, fd, 0);
    RULE(slots->view != MAP_FAILED && slots->base != MAP_FAILED, "no address space");
    close(fd);
    memset(slots->view, 0xee, slots->map_bytes);
    pthread_mutex_lock(&fake->lock);
    slots->next = fake->slots;
    fake->slots = slots;
    pthread_mutex_unlock(&fake->lock);
    pthread_mutex_lock(&all_lock);
    slots->next_all = all_slots;
    all_slots = slots;
    pthread_mutex_unlock(&all_lock);
    *ret_slots = slots->base;
    return STATUS_OK;
}

static bool is_within(const struct fake_slots *slots, const uint8_t *at, size_t bytes)
{
    return at >= slots->base && at < slots->base + slots->bytes && bytes <= (size_t)(slots->base + slots->bytes - at);
}

static bool overlap(const struct kv_memory_op *one, const uint8_t *at, size_t bytes)
{
    return fake_uses_slot(one) && one->slot < at + bytes && at < one->slot + one->count * kv_memory_piece_bytes(one);
}

void fake_slots_free(struct kv_memory *head, uint8_t *at)
{
    struct fake *fake = fake_of(head);
    if (!at) { return; }
    pthread_mutex_lock(&fake->lock);
    struct fake_slots **link = &fake->slots;
    while (*link && (*link)->base != at) { link = &(*link)->next; }
    struct fake_slots *slots = *link;
    RULE(slots != NULL, "slots freed that were not allocated, or twice");
    for (const struct kv_memory_op *op = fake->first; op; op = op->next) { RULE(!overlap(op, at, slots->bytes), "slots freed before an op on them is done"); }
    RULE(!fake->running || !overlap(fake->running, at, slots->bytes), "slots freed while an op is on them");
    *link = slots->next;
    fake->taken -= slots->bytes;
    pthread_mutex_unlock(&fake->lock);
    pthread_mutex_lock(&all_lock);
    for (link = &all_slots; *link != slots;) { link = &(*link)->next_all; }
    *link = slots->next_all;
    pthread_mutex_unlock(&all_lock);
    munmap(slots->base, slots->map_bytes);
    munmap(slots->view, slots->map_bytes);
    free(slots);
}

uint8_t *fake_memory_reach(const void *slot_address)
{
    uint8_t *view = NULL;
    pthread_mutex_lock(&all_lock);
    for (const struct fake_slots *slots = all_slots; slots && !view; slots = slots->next_all) {
        if (is_within(slots, slot_address, 1)) { view = slots->view + ((const uint8_t *)slot_address - slots->base); }
    }
    pthread_mutex_unlock(&all_lock);
    return view;
}

void fake_check_slot(const struct fake *fake, const struct kv_memory_op *op)
{
    const size_t bytes = op->count * kv_memory_piece_bytes(op);
    bool is_ours = false;
    for (const struct fake_slots *slots = fake->slots; slots; slots = slots->next) { is_ours |= is_within(slots, op->slot, bytes); }
    RULE(is_ours, "a slot that is not one of ours");
    for (const struct kv_memory_op *other = fake->first; other; other = other->next) { RULE(!overlap(other, op->slot, bytes), "a slot of two ops at once"); }
    RULE(!fake->running || !overlap(fake->running, op->slot, bytes), "a slot of two ops at once");
}

/* ---- queues */

static void *queue_main(void *user)
{
    struct kv_memory_queue *queue = user;
    struct fake *fake = queue->fake;
    pthread_mutex_lock(&fake->lock);
    for (;;) {
        struct queue_job *job = queue->first;
        if (!job) {
            if (queue->is_stopping) { break; }
            pthread_cond_wait(&fake->changed, &fake->lock);
            continue;
        }
        uint64_t random = fake_random_next(fake);
        pthread_mutex_unlock(&fake->lock);
        fake_dawdle(random, fake->config.delay_us_max);
        job->run(job->user);
        pthread_mutex_lock(&fake->lock);
        queue->first = job->next;
        queue->passed++;
        free(job);
        pthread_cond_broadcast(&fake->changed);
    }
    pthread_mutex_unlock(&fake->lock);
    return NULL;
}

void fake_memory_queue_run(void *queue_handle, void (*fn)(void *user), void *user)
{
    struct kv_memory_queue *queue = queue_handle;
    struct fake *fake = queue->fake;
    struct queue_job *job = calloc(1, sizeof *job);
    RULE(job != NULL, "no memory");
    *job = (struct queue_job){.run = fn, .user = user};
    pthread_mutex_lock(&fake->lock);
    *(queue->first ? &queue->last->next : &queue->first) = job;
    queue->last = job;
    queue->queued++;
    pthread_cond_broadcast(&fake->changed);
    pthread_mutex_unlock(&fake->lock);
}

/* The answer is ours until the op is done, and a PASSED has no sums in it. */
void fake_queue_note(struct fake *fake, struct kv_memory_op *op)
{
    RULE(op->queue->fake == fake, "a queue of another device");
    memcpy(op->crc, &op->queue->queued, sizeof op->queue->queued);
}

bool fake_queue_has_passed(const struct kv_memory_op *op)
{
    uint64_t queued;
    if (op->kind != KV_MEMORY_PASSED) { return true; }
    memcpy(&queued, op->crc, sizeof queued);
    return op->queue->passed >= queued;
}

status_t fake_queue_create(struct kv_memory *head, struct kv_memory_queue **ret_queue, struct diag *diag)
{
    struct fake *fake = fake_of(head);
    TRY(lost(fake, diag));
    struct kv_memory_queue *queue = calloc(1, sizeof *queue);
    RULE(queue != NULL, "no memory");
    queue->fake = fake;
    pthread_mutex_lock(&fake->lock);
    queue->next = fake->queues;
    fake->queues = queue;
    pthread_mutex_unlock(&fake->lock);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    RULE(pthread_create(&queue->thread, NULL, queue_main, queue) == 0, "no thread");
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    *ret_queue = queue;
    return STATUS_OK;
}

/* A lost device ends a PASSED before its queue has passed. */
void fake_queue_destroy(struct kv_memory *head, struct kv_memory_queue *queue)
{
    struct fake *fake = fake_of(head);
    if (!queue) { return; }
    pthread_mutex_lock(&fake->lock);
    RULE(fake->is_lost || queue->passed == queue->queued, "a queue destroyed with work on it");
    for (const struct kv_memory_op *op = fake->first; op; op = op->next) {
        RULE(op->kind != KV_MEMORY_PASSED || op->queue != queue, "a queue destroyed before an op on it is done");
    }
    struct kv_memory_queue **link = &fake->queues;
    while (*link && *link != queue) { link = &(*link)->next; }
    RULE(*link != NULL, "a queue destroyed that was not created, or twice");
    *link = queue->next;
    queue->is_stopping = true;
    pthread_cond_broadcast(&fake->changed);
    pthread_mutex_unlock(&fake->lock);
    pthread_join(queue->thread, NULL);
    free(queue);
}

void *fake_queue_handle(struct kv_memory *head, struct kv_memory_queue *queue)
{
    RULE(queue->fake == fake_of(head), "a queue of another device");
    return queue;
}

/* ---- threads */

status_t fake_thread_bind(struct kv_memory *head, struct diag *diag)
{
    TRY(lost(fake_of(head), diag));
    bound = head;
    return STATUS_OK;
}

struct kv_memory *fake_memory_bound(void) { return bound; }
