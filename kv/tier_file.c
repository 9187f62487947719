#include "kv/tier_file.h"

#include <string.h>

#include "base/check.h"
#include "base/crc32c.h"

static const uint8_t file_magic[8] = {'B', 'A', 'T', 'O', 'N', 'K', 'V', '\n'};
#define ORDER_MARK UINT32_C(0x01020304)
#define LABEL_MAGIC UINT32_C(0x6c6b7642)

struct head {
    uint8_t magic[8];
    uint32_t order;
    uint32_t version;
    uint64_t block_bytes;
    uint64_t slot_count;
    uint8_t fingerprint_hash[32];
    uint32_t reserved;
    uint32_t crc; /* of all before it */
};
_Static_assert(sizeof(struct head) == 72, "the head has no padding");
_Static_assert(sizeof(struct head) <= TIER_FILE_PAGE, "the head fits into its page");

struct label {
    uint32_t magic;
    uint32_t slot;
    uint8_t hash[16];
    uint8_t layout[16]; /* the fingerprint's first half: a label of an earlier layout cannot pass */
    uint64_t generation;
    uint32_t block_crc;
    uint32_t reserved[2];
    uint32_t crc; /* of all before it */
};
_Static_assert(sizeof(struct label) == TIER_FILE_LABEL, "a label has no padding");

static uint64_t round_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

uint64_t tier_file_slot_bytes(const struct tier_file_shape *shape) { return round_up(shape->block_bytes, TIER_FILE_PAGE); }

uint64_t tier_file_label_offset(uint64_t slot) { return TIER_FILE_PAGE + slot * TIER_FILE_LABEL; }

uint64_t tier_file_slot_offset(const struct tier_file_shape *shape, uint64_t slot)
{
    uint64_t labels = round_up(shape->slot_count * TIER_FILE_LABEL, TIER_FILE_PAGE);
    return TIER_FILE_PAGE + labels + slot * tier_file_slot_bytes(shape);
}

uint64_t tier_file_bytes(const struct tier_file_shape *shape) { return tier_file_slot_offset(shape, shape->slot_count); }

uint64_t tier_file_slots_in(uint64_t bytes, uint64_t block_bytes)
{
    uint64_t fixed = 2 * TIER_FILE_PAGE; /* the first page, and what rounds the labels up */
    if (bytes <= fixed) { return 0; }
    return (bytes - fixed) / (round_up(block_bytes, TIER_FILE_PAGE) + TIER_FILE_LABEL);
}

static bool is_zero(const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (bytes[i] != 0) { return false; }
    }
    return true;
}

enum tier_file_verdict tier_file_judge(const uint8_t *page, size_t byte_count, const struct tier_file_shape *wanted)
{
    if (is_zero(page, byte_count)) { return TIER_FILE_EMPTY; }
    struct head head;
    if (byte_count < sizeof head.magic || memcmp(page, file_magic, sizeof file_magic) != 0) { return TIER_FILE_FOREIGN; }
    if (byte_count < TIER_FILE_PAGE) { return TIER_FILE_DAMAGED; }
    memcpy(&head, page, sizeof head);
    /* The version comes before the sum: another one may sum otherwise. */
    if (head.order != ORDER_MARK || head.version != TIER_FILE_VERSION) { return TIER_FILE_OTHER_VERSION; }
    if (head.crc != crc32c(0, page, offsetof(struct head, crc))) { return TIER_FILE_DAMAGED; }
    if (memcmp(head.fingerprint_hash, wanted->fingerprint_hash, sizeof head.fingerprint_hash) != 0) { return TIER_FILE_OTHER_LAYOUT; }
    if (head.block_bytes != wanted->block_bytes) { return TIER_FILE_OTHER_LAYOUT; }
    if (head.slot_count != wanted->slot_count) { return TIER_FILE_OTHER_SIZE; }
    return TIER_FILE_OURS;
}

const char *tier_file_verdict_text(enum tier_file_verdict verdict)
{
    switch (verdict) {
    case TIER_FILE_OURS: return "kept";
    case TIER_FILE_EMPTY: return "new";
    case TIER_FILE_DAMAGED: return "reset: its first page is torn";
    case TIER_FILE_OTHER_VERSION: return "reset: of another version";
    case TIER_FILE_OTHER_LAYOUT: return "reset: of another model or KV layout";
    case TIER_FILE_OTHER_SIZE: return "reset: of another size";
    case TIER_FILE_FOREIGN: return "no tier file";
    }
    return "?";
}

void tier_file_head(const struct tier_file_shape *shape, bool is_complete, uint8_t *ret_page)
{
    struct head head = {.order = ORDER_MARK, .version = TIER_FILE_VERSION, .block_bytes = shape->block_bytes, .slot_count = shape->slot_count};
    memcpy(head.magic, file_magic, sizeof head.magic);
    memcpy(head.fingerprint_hash, shape->fingerprint_hash, sizeof head.fingerprint_hash);
    head.crc = crc32c(0, &head, offsetof(struct head, crc));
    if (!is_complete) { head.crc = ~head.crc; }
    memset(ret_page, 0, TIER_FILE_PAGE);
    memcpy(ret_page, &head, sizeof head);
}

void tier_file_label_encode(const struct tier_file_shape *shape, uint64_t slot, const struct tier_file_label *label, uint8_t *ret_bytes)
{
    CHECK(slot < shape->slot_count);
    struct label bytes = {.magic = LABEL_MAGIC, .slot = (uint32_t)slot, .generation = label->generation, .block_crc = label->crc};
    memcpy(bytes.hash, label->hash.bytes, sizeof bytes.hash);
    memcpy(bytes.layout, shape->fingerprint_hash, sizeof bytes.layout);
    bytes.crc = crc32c(0, &bytes, offsetof(struct label, crc));
    memcpy(ret_bytes, &bytes, sizeof bytes);
}

bool tier_file_label_decode(const struct tier_file_shape *shape, uint64_t slot, const uint8_t *bytes, struct tier_file_label *ret_label)
{
    struct label label;
    memcpy(&label, bytes, sizeof label);
    if (label.magic != LABEL_MAGIC || label.slot != slot) { return false; }
    if (memcmp(label.layout, shape->fingerprint_hash, sizeof label.layout) != 0) { return false; }
    if (label.crc != crc32c(0, bytes, offsetof(struct label, crc))) { return false; }
    memcpy(ret_label->hash.bytes, label.hash, sizeof label.hash);
    ret_label->generation = label.generation;
    ret_label->crc = label.block_crc;
    return true;
}
