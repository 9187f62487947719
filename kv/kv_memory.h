/* kv_memory: what tiers and cables do with the bytes of a KV pool that may lie on a device.
 * Flow:    kv_tier, the cables -> op -> [kv_memory] -> done
 * Thread:  every call from any thread; none of them waits for the device, except import, release and
 *          what makes and ends slots and queues. Ops are done on a thread of the implementation.
 * Memory:  an op's record is its submitter's, so submitting takes none and is never refused.
 *
 * Implemented by kernels/cuda/device_memory.h; tests/kv_memory/fake_memory.h shows in plain C what each
 * op means. A pool in host memory that tiers and cables read and write themselves has no kv_memory at
 * all: NULL.
 *
 * Marks. A mark is a ticket of kernels_mark(): "all operations queued so far"; 0 has passed. An op
 * with a mark touches the pool only after it. A mark stays good for ever: one that the device has
 * long left behind has passed. Ops have no order among each other, marks or not: who needs one
 * submits the second when the first is done. The device's own work needs a word too: an op that
 * writes is done before anything is queued that reads what it wrote.
 *
 * Slots and queues are for a library that moves device memory by itself, which takes whole pieces and a
 * stream to work on. A slot is device memory beside the pool where an op puts scattered slices together
 * (GATHER) or takes them apart (SCATTER); a queue is a stream of the device. An op and the library's
 * work have no order among each other either: who hands a slot on waits for the op to be done, or for a
 * PASSED behind the library's work.
 *
 * Failure. An op that fails says so in its status; its destination then holds nothing of meaning.
 * INTERNAL (node): the device is lost, this op and every later one end so, and soon. An op is never
 * lost and cannot be called back: who gives up waits for `done` and throws the result away, and
 * holds until then what the op reads and writes: its record, its form, its blocks, its host memory, its
 * slot, its peer.
 *
 * The end. The owner of a kv_memory destroys it after its users, each of which has waited for its
 * own ops and ended its queues; so no op is under way then. Slots that are held even then are those of a
 * transfer that never came to its end: on a device they are left as they are. */
#ifndef BATON_KV_KV_MEMORY_H
#define BATON_KV_KV_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/diag.h"
#include "base/status.h"
#include "kv/kv_layout.h"

#define KV_MEMORY_RANGES_MAX 64u  /* of one op; a cable's frame has as many slices at most */
#define KV_MEMORY_RANGE_BYTES_MAX (1u << 30)
#define KV_MEMORY_ALIGN 16u       /* of offsets, range_bytes and host addresses */
#define KV_MEMORY_ID_BYTES 16u
#define KV_MEMORY_EVENTS 64u      /* interprocess events of one pool */
#define KV_MEMORY_EVENT_NONE UINT32_MAX
#define KV_MEMORY_EXPORT_BYTES_MAX 8192u

struct kv_memory;
struct kv_memory_peer;  /* an imported pool of another process; private to the implementation */
struct kv_memory_queue; /* private too */

enum kv_memory_op_kind {
    KV_MEMORY_READ,     /* ranges -> host */
    KV_MEMORY_WRITE,    /* host -> ranges */
    KV_MEMORY_CHECKSUM, /* CRC32C of the ranges -> crc; then event is recorded, if one is named */
    KV_MEMORY_COPY,     /* the peer's ranges -> ours, after the peer's event, if one is named; then the
                           CRC32C of ours, as they lie there now -> crc */
    KV_MEMORY_GATHER,   /* ranges -> slot; then the CRC32C of each piece as it lies in the slot -> crc */
    KV_MEMORY_SCATTER,  /* slot -> ranges; the CRC32C of each piece as it lay in the slot -> crc; the
                           pieces are placed whatever it is */
    KV_MEMORY_PASSED,   /* done when all that was queued on `queue` before it has passed, good or bad;
                           touches no memory; count and mark are 0. Submitted by whoever queues there */
};

/* The shape of pieces in a slot where it is not the pool's. A range is a slice of `pool`, a piece the
 * same values as a slice of `slot`: dtype and order may differ, the rest is equal. Of one dtype, bits
 * only move. Else a value is widened to f32 (code * scale), then rounded to nearest even, and scales are
 * made anew for each row, as kv_layout.h says; a NaN arrives as one, of the bits 0x7fff.. */
struct kv_memory_form {
    struct kv_layout pool, slot;
};

/* Filled in by the submitter and left alone by him until done; nothing here is copied. */
struct kv_memory_op {
    enum kv_memory_op_kind kind;
    uint32_t count;     /* ranges, 1 to KV_MEMORY_RANGES_MAX; PASSED: 0 */
    size_t range_bytes; /* of each; a multiple of KV_MEMORY_ALIGN, at most KV_MEMORY_RANGE_BYTES_MAX */
    uint64_t mark;      /* of our own device's work; all that touch the pool wait for it alike */
    uint64_t offsets[KV_MEMORY_RANGES_MAX]; /* in our pool; no two ranges that are written overlap */
    uint8_t *host; /* READ, WRITE: [count][range_bytes], in memory of kv_memory_host_alloc() */
    struct kv_memory_peer *peer;                 /* COPY */
    uint64_t peer_offsets[KV_MEMORY_RANGES_MAX]; /* COPY */
    uint32_t event; /* CHECKSUM: ours, to record; COPY: the peer's, to wait for; or KV_MEMORY_EVENT_NONE */
    uint8_t *slot;  /* GATHER, SCATTER: [count][kv_memory_piece_bytes()], within one kv_memory_slots_alloc() */
    const struct kv_memory_form *form; /* GATHER, SCATTER: NULL: a piece is the range's bytes, as they are */
    struct kv_memory_queue *queue;     /* PASSED */

    /* On a thread of the implementation, never from inside kv_memory_submit(), and once. It must not
     * block and may call nothing of this header: it puts the op where its owner's loop finds it
     * (kv_memory_inbox.h). From its call on the op is the submitter's again. */
    void (*done)(struct kv_memory_op *op);
    void *user;

    /* the answer */
    status_t status;
    uint32_t crc[KV_MEMORY_RANGES_MAX]; /* CHECKSUM, COPY, GATHER, SCATTER; only with an OK status */

    struct kv_memory_op *next; /* the implementation's until done, then the submitter's */
};

struct kv_memory_ops {
    void (*submit)(struct kv_memory *memory, struct kv_memory_op *op);
    status_t (*host_alloc)(struct kv_memory *memory, size_t bytes, void **ret_host, struct diag *diag);
    void (*host_free)(struct kv_memory *memory, void *host);
    status_t (*export_pool)(struct kv_memory *memory, uint8_t *ret_bytes, size_t *ret_count, struct diag *diag);
    status_t (*import_pool)(struct kv_memory *memory, const uint8_t *bytes, size_t count, struct kv_memory_peer **ret_peer,
                       size_t *ret_pool_bytes, struct diag *diag);
    void (*release_peer)(struct kv_memory *memory, struct kv_memory_peer *peer);
    status_t (*slots_alloc)(struct kv_memory *memory, size_t bytes, uint8_t **ret_slots, struct diag *diag);
    void (*slots_free)(struct kv_memory *memory, uint8_t *slots);
    status_t (*queue_create)(struct kv_memory *memory, struct kv_memory_queue **ret_queue, struct diag *diag);
    void (*queue_destroy)(struct kv_memory *memory, struct kv_memory_queue *queue);
    void *(*queue_handle)(struct kv_memory *memory, struct kv_memory_queue *queue);
    status_t (*thread_bind)(struct kv_memory *memory, struct diag *diag);
    status_t (*memory_left)(struct kv_memory *memory, uint64_t *ret_free, struct diag *diag);
};

/* The head of an implementation's own struct. */
struct kv_memory {
    const struct kv_memory_ops *ops;
    size_t pool_bytes;
    /* Whose memory it is: the device's UUID. Two pools of one machine whose ids are equal can be
     * copied from one to the other by export and import; all zeros: it cannot be exported. */
    uint8_t id[KV_MEMORY_ID_BYTES];
};

/* Begins an op. Its end, good or bad, is `done`. Our own mistakes (a range outside of the pool, a
 * size that is no multiple) are CHECKed; a peer's numbers are to be checked by the caller.
 * Cost  O(count), no allocation. */
static inline void kv_memory_submit(struct kv_memory *memory, struct kv_memory_op *op) { memory->ops->submit(memory, op); }

/* What every submit begins with: CHECKs an op against the pool. In kv_memory.c. */
void kv_memory_op_check(const struct kv_memory *memory, const struct kv_memory_op *op);

/* Of a piece in a slot. */
static inline size_t kv_memory_piece_bytes(const struct kv_memory_op *op)
{
    return op->form != NULL ? kv_layout_slice_bytes(&op->form->slot) : op->range_bytes;
}

static inline bool kv_memory_op_has_crcs(const struct kv_memory_op *op)
{
    return op->kind == KV_MEMORY_CHECKSUM || op->kind == KV_MEMORY_COPY || op->kind == KV_MEMORY_GATHER || op->kind == KV_MEMORY_SCATTER;
}

/* Host memory that the device reads and writes at full speed, page-aligned and zeroed. Returns owned.
 * Errors  RESOURCE_EXHAUSTED (node). */
NODISCARD static inline status_t kv_memory_host_alloc(struct kv_memory *memory, size_t bytes, void **ret_host, struct diag *diag)
{
    return memory->ops->host_alloc(memory, bytes, ret_host, diag);
}

static inline void kv_memory_host_free(struct kv_memory *memory, void *host) /* takes NULL */
{
    memory->ops->host_free(memory, host);
}

static inline bool kv_memory_can_export(const struct kv_memory *memory)
{
    static const uint8_t none[KV_MEMORY_ID_BYTES];
    return memcmp(memory->id, none, sizeof none) != 0;
}

/* What another process of this machine needs to import the pool and its events. May be called again.
 * ret_bytes  [KV_MEMORY_EXPORT_BYTES_MAX], ret_count of them written
 * Errors     UNIMPLEMENTED (node): it cannot be exported; INTERNAL (node): the device. */
NODISCARD static inline status_t kv_memory_export(struct kv_memory *memory, uint8_t *ret_bytes, size_t *ret_count, struct diag *diag)
{
    return memory->ops->export_pool(memory, ret_bytes, ret_count, diag);
}

/* Makes another process's pool readable from here. Foreign bytes: all of them are checked.
 * The exporter keeps its memory until it has heard that the import is released, or that the importer
 * is dead. When the exporter dies the import stays readable until its release; an event of his that
 * had not been reached by then may never be, so only an event that has passed already may be named
 * in a COPY: the cable says it to its peer after the CHECKSUM that recorded it was done.
 * ret_pool_bytes  how much can be read
 * Errors          INVALID_ARGUMENT (peer): not such bytes; FAILED_PRECONDITION (peer): of another
 *                 device, or of this very process; UNAVAILABLE (peer): the device refuses it. */
NODISCARD static inline status_t kv_memory_import(struct kv_memory *memory, const uint8_t *bytes, size_t count,
                                                  struct kv_memory_peer **ret_peer, size_t *ret_pool_bytes, struct diag *diag)
{
    return memory->ops->import_pool(memory, bytes, count, ret_peer, ret_pool_bytes, diag);
}

/* After the last COPY from it is done. */
static inline void kv_memory_release(struct kv_memory *memory, struct kv_memory_peer *peer)
{
    memory->ops->release_peer(memory, peer);
}

/* Device memory for slots, 256-aligned, of unknown content: an address of the device. Returns owned.
 * May take some milliseconds.
 * Errors  RESOURCE_EXHAUSTED (node): the device has none left; INTERNAL (node): the device. */
NODISCARD static inline status_t kv_memory_slots_alloc(struct kv_memory *memory, size_t bytes, uint8_t **ret_slots, struct diag *diag)
{
    return memory->ops->slots_alloc(memory, bytes, ret_slots, diag);
}

/* When nothing reads or writes it any more. Takes NULL. May wait for the device: not on a loop's thread. */
static inline void kv_memory_slots_free(struct kv_memory *memory, uint8_t *slots) { memory->ops->slots_free(memory, slots); }

/* A stream of the device, of those that go first. Returns owned.
 * Errors  RESOURCE_EXHAUSTED (node); INTERNAL (node): the device. */
NODISCARD static inline status_t kv_memory_queue_create(struct kv_memory *memory, struct kv_memory_queue **ret_queue, struct diag *diag)
{
    return memory->ops->queue_create(memory, ret_queue, diag);
}

/* When all that was queued on it has passed, each PASSED included. Takes NULL. */
static inline void kv_memory_queue_destroy(struct kv_memory *memory, struct kv_memory_queue *queue)
{
    memory->ops->queue_destroy(memory, queue);
}

/* What a library that queues its own work takes: a CUstream. One thread at a time queues on it. */
static inline void *kv_memory_queue_handle(struct kv_memory *memory, struct kv_memory_queue *queue)
{
    return memory->ops->queue_handle(memory, queue);
}

/* Makes the device the calling thread's, for such a library.
 * Errors  INTERNAL (node): the device. */
NODISCARD static inline status_t kv_memory_thread_bind(struct kv_memory *memory, struct diag *diag)
{
    return memory->ops->thread_bind(memory, diag);
}

/* Bytes of the device that are free now; other processes take of them too.
 * Errors  INTERNAL (node): the device. */
NODISCARD static inline status_t kv_memory_left(struct kv_memory *memory, uint64_t *ret_free, struct diag *diag)
{
    return memory->ops->memory_left(memory, ret_free, diag);
}

#endif
