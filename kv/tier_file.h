/* tier_file: the bytes of the disk tier's file.
 * Flow:    a file, perhaps of another life, another model or another program -> [tier_file] -> tier_disk
 * Thread:  any; pure.
 * Memory:  the caller's.
 *
 *   page 0       what the file is: version, layout, size
 *   then         one label of 64 bytes for each slot: what the slot holds; zero: nothing
 *   then         the slots, one block each, a whole number of pages
 *
 * The labels lie together so that a start reads 64 bytes for each block and not the blocks: 2 GB/s
 * of disk find 100 GB of cache in 20 ms. A label is written after its block's bytes and wiped
 * before they change, so that after the death of the process at any moment every label tells the
 * truth. After a loss of power it may not: then the checksum in it says so when the block is loaded.
 * Numbers are in the machine's own order: the file does not travel, and on a machine of the other
 * order its magic is another. */
#ifndef BATON_KV_TIER_FILE_H
#define BATON_KV_TIER_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kv/kv_hash.h"

#define TIER_FILE_PAGE 4096u
#define TIER_FILE_LABEL 64u
#define TIER_FILE_VERSION 1u

struct tier_file_shape {
    uint64_t block_bytes; /* 1 .. 2^30 */
    uint64_t slot_count;  /* 1 .. 2^29 */
    uint8_t fingerprint_hash[32];
};

struct tier_file_label {
    struct kv_hash hash;
    uint64_t generation; /* counts stores: the younger one is greater */
    uint32_t crc;        /* CRC32C of the block */
};

/* The greatest number of slots that fits into `bytes`; 0: not even one. */
uint64_t tier_file_slots_in(uint64_t bytes, uint64_t block_bytes);

uint64_t tier_file_slot_bytes(const struct tier_file_shape *shape); /* whole pages */
uint64_t tier_file_label_offset(uint64_t slot);
uint64_t tier_file_slot_offset(const struct tier_file_shape *shape, uint64_t slot);
uint64_t tier_file_bytes(const struct tier_file_shape *shape);

enum tier_file_verdict {
    TIER_FILE_OURS,     /* this shape: its labels count */
    TIER_FILE_EMPTY,    /* zeros, or nothing */
    TIER_FILE_DAMAGED,  /* a tier's file, its first page torn */
    TIER_FILE_OTHER_VERSION,
    TIER_FILE_OTHER_LAYOUT,
    TIER_FILE_OTHER_SIZE,
    TIER_FILE_FOREIGN,  /* no tier's file at all: not to be touched */
};

/* Judges the first page; byte_count less than TIER_FILE_PAGE: the file is that short. */
enum tier_file_verdict tier_file_judge(const uint8_t *page, size_t byte_count, const struct tier_file_shape *wanted);
const char *tier_file_verdict_text(enum tier_file_verdict verdict);

/* ret_page     [TIER_FILE_PAGE]
 * is_complete  false: judged damaged, for the time in which the labels are being wiped */
void tier_file_head(const struct tier_file_shape *shape, bool is_complete, uint8_t *ret_page);

/* ret_bytes  [TIER_FILE_LABEL] */
void tier_file_label_encode(const struct tier_file_shape *shape, uint64_t slot, const struct tier_file_label *label, uint8_t *ret_bytes);

/* bytes  [TIER_FILE_LABEL]. False: there is no label, or it is torn, or of another slot or layout. */
bool tier_file_label_decode(const struct tier_file_shape *shape, uint64_t slot, const uint8_t *bytes, struct tier_file_label *ret_label);

#endif
