#include "kernels/cuda/cuda_scratch.h"

#include "base/check.h"

void cuda_scratch_fini(struct cuda_scratch *scratch, const struct cuda_driver *driver)
{
    for (uint32_t i = 0; i < scratch->count; i++) { driver->mem_free(driver, scratch->pieces[i]); }
    *scratch = (struct cuda_scratch){0};
}

void *cuda_scratch_get(struct cuda_scratch *scratch, struct cuda_queue *queue, size_t bytes, bool is_zeroed)
{
    if (bytes == 0) { return NULL; }
    if (bytes <= scratch->bytes) { return scratch->pieces[scratch->count - 1]; }
    CHECK(scratch->count < CUDA_SCRATCH_PIECES);
    cuda_queue_capture_abandon(queue, "an operation needs more scratch than any before");
    if (cuda_queue_failed(queue)) { return NULL; }
    size_t room = bytes > scratch->bytes * 2 ? bytes : scratch->bytes * 2;
    struct diag text = {{0}};
    status_t st = queue->driver->mem_alloc(queue->driver, room, &scratch->pieces[scratch->count], &text);
    if (failed(st)) {
        cuda_queue_fail(queue, st, &text);
        return NULL;
    }
    scratch->count++;
    scratch->bytes = room;
    void *piece = scratch->pieces[scratch->count - 1];
    if (is_zeroed) { cuda_queue_fill(queue, piece, 0, room); }
    return cuda_queue_failed(queue) ? NULL : piece;
}
