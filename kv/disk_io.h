/* disk_io: whole-block reads and writes of one file, several under way from one thread.
 * Flow:    tier_disk -> [disk_io] -> kernel -> results
 * Thread:  its owner's, which is kv_tier's own.
 * Memory:  the rings, taken at create; buffers are the caller's until their result.
 *
 * io_uring where the kernel lets us; containers often do not, then pread and pwrite, one at a time,
 * inside submit. */
#ifndef BATON_KV_DISK_IO_H
#define BATON_KV_DISK_IO_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct disk_io;

struct disk_io_result {
    uint32_t cookie;
    int32_t error; /* errno; 0: every byte was moved */
};

/* depth     how many may be under way, 1 .. 1024
 * Errors    RESOURCE_EXHAUSTED (node): no memory. */
NODISCARD status_t disk_io_create(uint32_t depth, bool is_without_uring, struct disk_io **ret_io);
void disk_io_destroy(struct disk_io *io); /* nothing may be under way; takes NULL */

struct disk_io_command {
    int fd;
    bool is_write;
    void *buffer;    /* holds until the result */
    uint32_t bytes;  /* at most 2^30 */
    uint64_t offset;
    uint32_t cookie; /* comes back with the result */
};

/* At most `depth` without a reaped result. */
void disk_io_submit(struct disk_io *io, const struct disk_io_command *command);

/* Results that are there, at most `max`, without waiting. */
uint32_t disk_io_reap(struct disk_io *io, struct disk_io_result *ret_results, uint32_t max);

/* Readable when a result may be there; -1: reap gives everything that was submitted. */
int disk_io_event_fd(const struct disk_io *io);

const char *disk_io_name(const struct disk_io *io); /* "io_uring", "pread/pwrite" */

#endif
