/* tier_file: any bytes as a first page and labels. What passes is, bit for bit, what we would have
 * written. The first byte of the input says whose checksums are made right first, so that the
 * search gets past them. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/crc32c.h"
#include "kv/tier_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { HEAD_SUM = 68, LABEL_SUM = TIER_FILE_LABEL - 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) { return 0; }
    uint8_t mends = *data++;
    size--;
    struct tier_file_shape shape = {.block_bytes = 5000, .slot_count = 6, .fingerprint_hash = {1, 2, 3}};
    uint8_t page[TIER_FILE_PAGE] = {0};
    size_t page_bytes = size < sizeof page ? size : sizeof page;
    memcpy(page, data, page_bytes);
    if (mends & 1) {
        uint32_t sum = crc32c(0, page, HEAD_SUM);
        memcpy(page + HEAD_SUM, &sum, sizeof sum);
    }
    if (tier_file_judge(page, page_bytes, &shape) == TIER_FILE_OURS) {
        uint8_t ours[TIER_FILE_PAGE];
        tier_file_head(&shape, true, ours);
        /* The reserved word may hold anything that the sum covers. */
        memcpy(ours + 64, page + 64, HEAD_SUM + 4 - 64);
        CHECK(memcmp(ours, page, HEAD_SUM + 4) == 0);
    }
    for (uint64_t slot = 0; slot < shape.slot_count && size >= TIER_FILE_LABEL; slot++) {
        uint8_t bytes[TIER_FILE_LABEL];
        uint8_t ours[TIER_FILE_LABEL];
        struct tier_file_label label;
        memcpy(bytes, data, sizeof bytes);
        data += TIER_FILE_LABEL;
        size -= TIER_FILE_LABEL;
        if (mends & 2) {
            uint32_t sum = crc32c(0, bytes, LABEL_SUM);
            memcpy(bytes + LABEL_SUM, &sum, sizeof sum);
        }
        if (!tier_file_label_decode(&shape, slot, bytes, &label)) { continue; }
        tier_file_label_encode(&shape, slot, &label, ours);
        CHECK(memcmp(ours, bytes, 52) == 0); /* up to the reserved words */
    }
    return 0;
}
