#include "kv/disk_io.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/check.h"

struct disk_io {
    bool has_ring;
    struct io_uring ring;
    uint32_t depth;
    uint32_t *bytes;                /* [depth] asked for, by cookie slot */
    uint32_t *cookies;              /* [depth] */
    uint32_t *unused;               /* [depth] a stack of the two above */
    uint32_t unused_count;
    struct disk_io_result *results; /* [depth] of commands that were done inside submit */
    uint32_t result_count;
};

status_t disk_io_create(uint32_t depth, bool is_without_uring, struct disk_io **ret_io)
{
    CHECK(depth >= 1);
    CHECK(depth <= 1024);
    struct disk_io *io = calloc(1, sizeof *io);
    if (io == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    io->depth = depth;
    io->bytes = calloc(depth, sizeof *io->bytes);
    io->cookies = calloc(depth, sizeof *io->cookies);
    io->unused = calloc(depth, sizeof *io->unused);
    io->results = calloc(depth, sizeof *io->results);
    if (io->bytes == NULL || io->cookies == NULL || io->unused == NULL || io->results == NULL) {
        disk_io_destroy(io);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    for (uint32_t i = 0; i < depth; i++) { io->unused[i] = i; }
    io->unused_count = depth;
    /* Forbidden, unknown to the kernel, or no locked memory left: all mean the other way. */
    io->has_ring = !is_without_uring && io_uring_queue_init(depth, &io->ring, 0) == 0;
    *ret_io = io;
    return STATUS_OK;
}

void disk_io_destroy(struct disk_io *io)
{
    if (io == NULL) { return; }
    if (io->has_ring) { io_uring_queue_exit(&io->ring); }
    free(io->results);
    free(io->unused);
    free(io->cookies);
    free(io->bytes);
    free(io);
}

/* All bytes or an error. A file that ends early is an error too: EIO. */
static int move_now(const struct disk_io_command *command)
{
    uint32_t done = 0;
    while (done < command->bytes) {
        char *at = (char *)command->buffer + done;
        size_t left = command->bytes - done;
        off_t offset = (off_t)(command->offset + done);
        ssize_t moved = command->is_write ? pwrite(command->fd, at, left, offset) : pread(command->fd, at, left, offset);
        if (moved < 0 && errno == EINTR) { continue; }
        if (moved < 0) { return errno; }
        if (moved == 0) { return EIO; }
        done += (uint32_t)moved;
    }
    return 0;
}

static void finish_now(struct disk_io *io, const struct disk_io_command *command)
{
    CHECK(io->result_count < io->depth);
    io->results[io->result_count++] = (struct disk_io_result){.cookie = command->cookie, .error = move_now(command)};
}

void disk_io_submit(struct disk_io *io, const struct disk_io_command *command)
{
    if (!io->has_ring) {
        finish_now(io, command);
        return;
    }
    CHECK(io->unused_count > 0);
    struct io_uring_sqe *entry = io_uring_get_sqe(&io->ring);
    CHECK(entry != NULL); /* the ring has `depth` entries and each submit empties it */
    uint32_t slot = io->unused[--io->unused_count];
    io->bytes[slot] = command->bytes;
    io->cookies[slot] = command->cookie;
    if (command->is_write) {
        io_uring_prep_write(entry, command->fd, command->buffer, command->bytes, command->offset);
    } else {
        io_uring_prep_read(entry, command->fd, command->buffer, command->bytes, command->offset);
    }
    io_uring_sqe_set_data64(entry, slot);
    /* EINTR and a kernel short of memory take nothing and leave the entry in the ring. */
    int submitted;
    do { submitted = io_uring_submit(&io->ring); } while (submitted == -EINTR || submitted == -EAGAIN || submitted == -EBUSY);
    CHECK(submitted >= 0);
}

uint32_t disk_io_reap(struct disk_io *io, struct disk_io_result *ret_results, uint32_t max)
{
    uint32_t count = 0;
    while (count < max && io->result_count > 0) { ret_results[count++] = io->results[--io->result_count]; }
    struct io_uring_cqe *entry;
    while (io->has_ring && count < max && io_uring_peek_cqe(&io->ring, &entry) == 0) {
        uint32_t slot = (uint32_t)io_uring_cqe_get_data64(entry);
        CHECK(slot < io->depth);
        /* Part of a block is no block: a full disk and a short file end here. */
        int32_t moved = entry->res;
        int32_t error = moved < 0 ? -moved : (uint32_t)moved == io->bytes[slot] ? 0 : EIO;
        ret_results[count++] = (struct disk_io_result){.cookie = io->cookies[slot], .error = error};
        io->unused[io->unused_count++] = slot;
        io_uring_cqe_seen(&io->ring, entry);
    }
    return count;
}

int disk_io_event_fd(const struct disk_io *io) { return io->has_ring ? io->ring.ring_fd : -1; }

const char *disk_io_name(const struct disk_io *io) { return io->has_ring ? "io_uring" : "pread/pwrite"; }
