#include "kv/tier_disk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/check.h"

struct tier_disk {
    struct tier_file_shape shape;
    enum tier_file_verdict verdict;
    uint64_t bytes_found; /* the file's size when it was opened */
    int fd;       /* labels and the first page */
    int block_fd; /* blocks; O_DIRECT where that works */
    bool is_direct;
    struct disk_io *io;
};

/* Returns errno; 0: all of it. */
static int write_all(int fd, const void *bytes, size_t count, uint64_t offset)
{
    size_t done = 0;
    while (done < count) {
        ssize_t moved = pwrite(fd, (const char *)bytes + done, count - done, (off_t)(offset + done));
        if (moved < 0 && errno == EINTR) { continue; }
        if (moved < 0) { return errno; }
        if (moved == 0) { return EIO; }
        done += (size_t)moved;
    }
    return 0;
}

/* Reads until the file ends; returns errno. */
static int read_some(int fd, void *ret_bytes, size_t count, uint64_t offset, size_t *ret_count)
{
    *ret_count = 0;
    while (*ret_count < count) {
        ssize_t moved = pread(fd, (char *)ret_bytes + *ret_count, count - *ret_count, (off_t)(offset + *ret_count));
        if (moved < 0 && errno == EINTR) { continue; }
        if (moved < 0) { return errno; }
        if (moved == 0) { return 0; }
        *ret_count += (size_t)moved;
    }
    return 0;
}

static status_t open_file(struct tier_disk *disk, const char *path, struct diag *diag)
{
    disk->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (disk->fd < 0) {
        status_t st = STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_NODE, errno);
        diag_set(diag, "%s: cannot be opened: %s; name a file in a folder that this process may write", path, strerror(st.cause));
        return st;
    }
    if (flock(disk->fd, LOCK_EX | LOCK_NB) != 0) {
        status_t st = STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_NODE, errno);
        diag_set(diag, "%s: another process uses it: %s; give each node a file of its own", path, strerror(st.cause));
        return st;
    }
    struct stat info;
    if (fstat(disk->fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        diag_set(diag, "%s: is no plain file; name a file, it is made where there is none", path);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    disk->bytes_found = (uint64_t)info.st_size;
    return STATUS_OK;
}

static status_t no_room(const char *path, uint64_t bytes, int error, struct diag *diag)
{
    bool is_full = error == ENOSPC || error == EDQUOT || error == EFBIG;
    diag_set(diag, "%s: no room for %" PRIu64 " bytes: %s; give the tier less or another disk", path, bytes, strerror(error));
    return STATUS_CAUSE(is_full ? ST_RESOURCE_EXHAUSTED : ST_UNAVAILABLE, SCOPE_NODE, error);
}

/* The whole size is set aside now, so that no write meets a full disk later. Asked first: a file
 * system that runs out half way has filled the disk for everybody else. Where it cannot set room
 * aside, the file grows hole by hole, and an entry that meets a full disk fails by itself. */
static status_t take_room(struct tier_disk *disk, const char *path, struct diag *diag)
{
    uint64_t bytes = tier_file_bytes(&disk->shape);
    struct stat info;
    struct statvfs room;
    if (fstat(disk->fd, &info) != 0 || fstatvfs(disk->fd, &room) != 0) { return no_room(path, bytes, errno, diag); }
    uint64_t has = (uint64_t)info.st_blocks * 512;
    /* In units of f_frsize, so that nothing overflows. */
    if (bytes > has && (bytes - has) / room.f_frsize >= room.f_bavail) { return no_room(path, bytes, ENOSPC, diag); }
    if (fallocate(disk->fd, 0, 0, (off_t)bytes) != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
        int error = errno;
        int gave_back = ftruncate(disk->fd, info.st_size);
        (void)gave_back;
        return no_room(path, bytes, error, diag);
    }
    if (ftruncate(disk->fd, (off_t)bytes) != 0) { return no_room(path, bytes, errno, diag); }
    return STATUS_OK;
}

/* In this order a stop half way leaves a file that is reset again, and never labels that could pass
 * for this shape's. */
static int reset_file(struct tier_disk *disk)
{
    static const uint8_t zeros[TIER_FILE_PAGE];
    uint8_t page[TIER_FILE_PAGE];
    tier_file_head(&disk->shape, false, page);
    int error = write_all(disk->fd, page, sizeof page, 0);
    uint64_t end = tier_file_slot_offset(&disk->shape, 0);
    for (uint64_t at = TIER_FILE_PAGE; error == 0 && at < end; at += sizeof zeros) { error = write_all(disk->fd, zeros, sizeof zeros, at); }
    tier_file_head(&disk->shape, true, page);
    if (error == 0) { error = write_all(disk->fd, page, sizeof page, 0); }
    return error;
}

static status_t adopt_or_reset(struct tier_disk *disk, const char *path, struct diag *diag)
{
    uint8_t page[TIER_FILE_PAGE];
    size_t count;
    int error = read_some(disk->fd, page, sizeof page, 0, &count);
    if (error != 0) { goto fail; }
    disk->verdict = tier_file_judge(page, count, &disk->shape);
    if (disk->verdict == TIER_FILE_FOREIGN) {
        diag_set(diag, "%s: holds something that is not ours; remove it or name another file", path);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    TRY(take_room(disk, path, diag));
    if (disk->verdict == TIER_FILE_OURS) { return STATUS_OK; }
    error = reset_file(disk);
    if (error == 0) { return STATUS_OK; }
fail:
    diag_set(diag, "%s: %s", path, strerror(error));
    return STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_NODE, error);
}

/* Some file systems take the flag and refuse the first transfer. */
static void open_for_blocks(struct tier_disk *disk, const char *path)
{
    disk->block_fd = open(path, O_RDWR | O_CLOEXEC | O_DIRECT);
    void *page = NULL;
    if (disk->block_fd >= 0 && posix_memalign(&page, TIER_DISK_ALIGN, TIER_FILE_PAGE) == 0) {
        ssize_t got = pread(disk->block_fd, page, TIER_FILE_PAGE, (off_t)tier_file_slot_offset(&disk->shape, 0));
        disk->is_direct = got == (ssize_t)TIER_FILE_PAGE;
    }
    free(page);
    if (disk->is_direct) { return; }
    if (disk->block_fd >= 0) { close(disk->block_fd); }
    disk->block_fd = -1;
}

status_t tier_disk_create(const struct tier_disk_config *config, struct tier_disk **ret_disk, struct diag *diag)
{
    uint64_t slots = tier_file_slots_in(config->bytes, config->block_bytes);
    if (slots == 0) {
        diag_set(diag, "disk tier of %" PRIu64 " bytes: does not hold one block of %" PRIu64 " bytes; give it more", config->bytes,
                 config->block_bytes);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (slots > UINT64_C(1) << 29) { slots = UINT64_C(1) << 29; }
    struct tier_disk *disk = calloc(1, sizeof *disk);
    if (disk == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    disk->fd = disk->block_fd = -1;
    disk->shape = (struct tier_file_shape){.block_bytes = config->block_bytes, .slot_count = slots};
    memcpy(disk->shape.fingerprint_hash, config->fingerprint_hash, sizeof disk->shape.fingerprint_hash);
    status_t st = open_file(disk, config->path, diag);
    if (failed(st)) { goto fail; }
    st = adopt_or_reset(disk, config->path, diag);
    if (failed(st)) { goto fail; }
    open_for_blocks(disk, config->path);
    st = disk_io_create(config->depth, config->is_without_uring, &disk->io);
    if (failed(st)) { goto fail; }
    *ret_disk = disk;
    return STATUS_OK;
fail:
    tier_disk_destroy(disk);
    return st;
}

void tier_disk_destroy(struct tier_disk *disk)
{
    if (disk == NULL) { return; }
    disk_io_destroy(disk->io);
    /* Nobody is left to tell of an error, and nothing depends on it: the sums do not trust the disk. */
    if (disk->block_fd >= 0) { close(disk->block_fd); }
    if (disk->fd >= 0) {
        (void)fdatasync(disk->fd);
        close(disk->fd);
    }
    free(disk);
}

uint64_t tier_disk_slot_count(const struct tier_disk *disk) { return disk->shape.slot_count; }
uint32_t tier_disk_slot_bytes(const struct tier_disk *disk) { return (uint32_t)tier_file_slot_bytes(&disk->shape); }
enum tier_file_verdict tier_disk_verdict(const struct tier_disk *disk) { return disk->verdict; }
const char *tier_disk_io_name(const struct tier_disk *disk) { return disk_io_name(disk->io); }
bool tier_disk_is_direct(const struct tier_disk *disk) { return disk->is_direct; }

status_t tier_disk_scan(struct tier_disk *disk, tier_disk_found_fn found, void *user)
{
    enum { CHUNK = 1024 };
    static const uint8_t nothing[TIER_FILE_LABEL];
    uint8_t *labels = malloc((size_t)CHUNK * TIER_FILE_LABEL);
    if (labels == NULL) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    int error = 0;
    for (uint64_t first = 0; first < disk->shape.slot_count && error == 0; first += CHUNK) {
        uint64_t left = disk->shape.slot_count - first;
        uint32_t count = left < CHUNK ? (uint32_t)left : CHUNK;
        size_t got;
        error = read_some(disk->fd, labels, (size_t)count * TIER_FILE_LABEL, tier_file_label_offset(first), &got);
        if (error == 0 && got < (size_t)count * TIER_FILE_LABEL) { error = EIO; }
        for (uint32_t i = 0; i < count && error == 0; i++) {
            const uint8_t *bytes = labels + (size_t)i * TIER_FILE_LABEL;
            uint32_t slot = (uint32_t)(first + i);
            struct tier_file_label label;
            bool is_whole = tier_file_slot_offset(&disk->shape, slot + UINT64_C(1)) <= disk->bytes_found;
            if (is_whole && tier_file_label_decode(&disk->shape, slot, bytes, &label)) {
                found(user, slot, &label);
            } else if (memcmp(bytes, nothing, sizeof nothing) != 0) {
                error = tier_disk_wipe(disk, slot);
            }
        }
    }
    free(labels);
    return error == 0 ? STATUS_OK : STATUS_CAUSE(ST_UNAVAILABLE, SCOPE_NODE, error);
}

void tier_disk_submit(struct tier_disk *disk, bool is_write, uint32_t slot, void *buffer, uint32_t cookie)
{
    CHECK(slot < disk->shape.slot_count);
    CHECK(!disk->is_direct || (uintptr_t)buffer % TIER_DISK_ALIGN == 0);
    struct disk_io_command command = {
        .fd = disk->is_direct ? disk->block_fd : disk->fd,
        .is_write = is_write,
        .buffer = buffer,
        .bytes = tier_disk_slot_bytes(disk),
        .offset = tier_file_slot_offset(&disk->shape, slot),
        .cookie = cookie,
    };
    disk_io_submit(disk->io, &command);
}

uint32_t tier_disk_reap(struct tier_disk *disk, struct disk_io_result *ret_results, uint32_t max)
{
    return disk_io_reap(disk->io, ret_results, max);
}

int tier_disk_event_fd(const struct tier_disk *disk) { return disk_io_event_fd(disk->io); }

int tier_disk_label(struct tier_disk *disk, uint32_t slot, const struct tier_file_label *label)
{
    uint8_t bytes[TIER_FILE_LABEL];
    tier_file_label_encode(&disk->shape, slot, label, bytes);
    return write_all(disk->fd, bytes, sizeof bytes, tier_file_label_offset(slot));
}

int tier_disk_wipe(struct tier_disk *disk, uint32_t slot)
{
    static const uint8_t zeros[TIER_FILE_LABEL];
    return write_all(disk->fd, zeros, sizeof zeros, tier_file_label_offset(slot));
}
