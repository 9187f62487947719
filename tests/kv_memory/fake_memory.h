/* fake_memory: a kv_memory that behaves as badly as a device may. For tests.
 * Flow:    conformance peers, tier tests -> [fake_memory], in place of kernels/cuda/device_memory.h
 * Thread:  one does the ops, one the operations that marks stand for, one for each queue; calls from any.
 * Memory:  the pool is a memfd, mapped twice: where nobody can touch it (the device's address), and
 *          where the fake itself, and a test that looks at the bytes, can. Slots likewise.
 *
 * Ops end late and in any order. What an op writes is first spoilt, then written piece by piece, so
 * that whoever looks before `done`, or gives blocks back before it, is found out. Marks pass late:
 * each stands for a job that runs on the fake's compute thread, in order. Rules of kv_memory.h that
 * are broken end the process with a word on standard error: host memory that was not allocated here,
 * an event that had not passed, a slot of two ops at once, a queue destroyed with work on it, a pool
 * destroyed while somebody alive has it imported. */
#ifndef BATON_TESTS_KV_MEMORY_FAKE_MEMORY_H
#define BATON_TESTS_KV_MEMORY_FAKE_MEMORY_H

#include "kv/kv_memory.h"

struct fake_memory_config {
    size_t pool_bytes;
    uint8_t device;        /* makes the id; 0: cannot be exported */
    uint64_t seed;
    uint32_t delay_us_max; /* of an op, and of a job; 0: as quick as threads are */
    uint64_t fail_from;    /* the device is lost at this op, counted from 1; 0: never */
    bool is_held;          /* ops wait for fake_memory_set_held() */
    uint64_t memory_bytes; /* of the device, the pool apart: for slots and fake_memory_take(); 0: 4 GiB */
};

struct kv_memory *fake_memory_create(const struct fake_memory_config *config);
/* When no op is under way and all jobs are done. Takes NULL. */
void fake_memory_destroy(struct kv_memory *memory);

void *fake_memory_base(struct kv_memory *memory);    /* touching it is a fault */
uint8_t *fake_memory_view(struct kv_memory *memory); /* the same bytes, to look at and to fill */

/* Queues a job on the compute thread; its mark passes when it has run. job NULL: nothing to do. */
uint64_t fake_memory_mark(struct kv_memory *memory, void (*job)(void *user), void *user);
void fake_memory_wait(struct kv_memory *memory, uint64_t mark); /* until it has passed */

uint64_t fake_memory_ops(struct kv_memory *memory);     /* submitted so far */
uint32_t fake_memory_under_way(struct kv_memory *memory);
uint32_t fake_memory_imports(struct kv_memory *memory); /* of our pool, now, by the living */
/* Lets all ops go, or holds those that come from here on and touch memory. */
void fake_memory_set_held(struct kv_memory *memory, bool is_held);
/* No mark passes while they are held. */
void fake_memory_hold_marks(struct kv_memory *memory, bool are_held);
/* From here on the device is lost. */
void fake_memory_lose(struct kv_memory *memory);

/* ---- for a library that moves device memory by itself, or a fake of one */

/* Runs fn on the queue's own thread, after all that was queued there before; it may wait as long as it likes, other queues
 * go on meanwhile. queue_handle  what kv_memory_queue_handle() gave */
void fake_memory_queue_run(void *queue_handle, void (*fn)(void *user), void *user);

/* Where the bytes at an address within slots can be read and written, of whatever fake_memory they are. NULL: these are no slots. */
uint8_t *fake_memory_reach(const void *slot_address);

/* The memory that the calling thread has bound itself to (kv_memory_thread_bind()); NULL: none. */
struct kv_memory *fake_memory_bound(void);

/* Device memory that the library takes for itself, as kv_memory_left() shows. False: there is not so much, and none was taken. */
bool fake_memory_take(struct kv_memory *memory, uint64_t bytes);
void fake_memory_give_back(struct kv_memory *memory, uint64_t bytes);

#endif
