/* tier_disk: the disk tier's file, opened, locked, and its slots read and written.
 * Flow:    kv_tier -> [tier_disk] -> tier_file's bytes, disk_io
 * Thread:  create on any; then its owner's, which is kv_tier's own.
 * Memory:  taken at create.
 *
 * It knows slots and labels, not which of them are worth keeping. Blocks go by disk_io, past the
 * page cache where the file system can (O_DIRECT); labels go by plain pwrite through a second
 * descriptor: 64 bytes that the kernel has when the call returns, whatever becomes of us. The two
 * never share a page. */
#ifndef BATON_KV_TIER_DISK_H
#define BATON_KV_TIER_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kv/disk_io.h"
#include "kv/tier_file.h"

struct tier_disk;

struct tier_disk_config {
    const char *path;
    uint64_t bytes;
    uint64_t block_bytes;
    uint8_t fingerprint_hash[32];
    uint32_t depth;        /* blocks under way */
    bool is_without_uring;
};

/* Buffers for blocks: this alignment, and slot_bytes long. */
#define TIER_DISK_ALIGN 4096u

/* Opens or makes the file, takes its whole size on the disk, locks it for this process.
 * Errors  INVALID_ARGUMENT (node): not one block fits, or the file is none of ours;
 *         RESOURCE_EXHAUSTED (node): no room on the disk, no memory;
 *         UNAVAILABLE (node): it cannot be opened, or another process has it. diag says which. */
NODISCARD status_t tier_disk_create(const struct tier_disk_config *config, struct tier_disk **ret_disk, struct diag *diag);

/* Flushes and closes. Nothing may be under way. Takes NULL. */
void tier_disk_destroy(struct tier_disk *disk);

uint64_t tier_disk_slot_count(const struct tier_disk *disk);
uint32_t tier_disk_slot_bytes(const struct tier_disk *disk);
enum tier_file_verdict tier_disk_verdict(const struct tier_disk *disk); /* what create met */
const char *tier_disk_io_name(const struct tier_disk *disk);
bool tier_disk_is_direct(const struct tier_disk *disk);

/* Calls `found` for each slot with a good label, and wipes the bad ones: torn, or of a slot that a
 * shortened file no longer holds.
 * Errors  UNAVAILABLE (node): the labels cannot be read. */
typedef void (*tier_disk_found_fn)(void *user, uint32_t slot, const struct tier_file_label *label);
NODISCARD status_t tier_disk_scan(struct tier_disk *disk, tier_disk_found_fn found, void *user);

/* One block; the result comes by tier_disk_reap. buffer  [slot_bytes], held until then */
void tier_disk_submit(struct tier_disk *disk, bool is_write, uint32_t slot, void *buffer, uint32_t cookie);
uint32_t tier_disk_reap(struct tier_disk *disk, struct disk_io_result *ret_results, uint32_t max);
int tier_disk_event_fd(const struct tier_disk *disk);

/* Returns errno, 0 when it is done. */
int tier_disk_label(struct tier_disk *disk, uint32_t slot, const struct tier_file_label *label);
int tier_disk_wipe(struct tier_disk *disk, uint32_t slot);

#endif
