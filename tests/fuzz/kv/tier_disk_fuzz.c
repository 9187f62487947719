/* tier_disk: any bytes as the file of an earlier life. It is refused and left alone, or opened; what
 * is found lies in the file; a second life finds the same; and every slot can be read. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/check.h"
#include "kv/tier_disk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { BLOCK_BYTES = 100, SLOTS = 6 };

struct life {
    bool is_here[SLOTS];
    struct tier_file_label labels[SLOTS];
    uint32_t count;
};

static void on_found(void *user, uint32_t slot, const struct tier_file_label *label)
{
    struct life *life = user;
    CHECK(slot < SLOTS);
    CHECK(!life->is_here[slot]);
    life->is_here[slot] = true;
    life->labels[slot] = *label;
    life->count++;
}

static bool live(const struct tier_disk_config *config, struct life *ret_life)
{
    struct tier_disk *disk;
    struct diag diag = {{0}};
    memset(ret_life, 0, sizeof *ret_life);
    if (failed(tier_disk_create(config, &disk, &diag))) {
        CHECK(diag.text[0] != '\0');
        return false;
    }
    CHECK(tier_disk_slot_count(disk) == SLOTS);
    CHECK(!failed(tier_disk_scan(disk, on_found, ret_life)));
    void *buffer = aligned_alloc(TIER_DISK_ALIGN, tier_disk_slot_bytes(disk));
    CHECK(buffer != NULL);
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        struct disk_io_result result;
        tier_disk_submit(disk, false, slot, buffer, slot);
        CHECK(tier_disk_reap(disk, &result, 1) == 1);
        CHECK(result.cookie == slot);
        CHECK(result.error == 0);
    }
    free(buffer);
    tier_disk_destroy(disk);
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int file = memfd_create("tier", 0);
    CHECK(file >= 0);
    if (size > 0) { CHECK(write(file, data, size) == (ssize_t)size); }
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    struct tier_disk_config config = {
        .path = path,
        .bytes = 2 * TIER_FILE_PAGE + SLOTS * (TIER_FILE_PAGE + TIER_FILE_LABEL),
        .block_bytes = BLOCK_BYTES,
        .fingerprint_hash = {1, 2, 3},
        .depth = 1,
        .is_without_uring = true,
    };
    struct life first, second;
    if (live(&config, &first)) {
        CHECK(live(&config, &second));
        CHECK(memcmp(&first, &second, sizeof first) == 0);
    } else {
        CHECK(lseek(file, 0, SEEK_END) == (off_t)size);
    }
    close(file);
    return 0;
}
