/* weight_pack: the file that keeps packed weight matrices for the next start.
 * Flow:    model_weights (what should be in it) -> [weight_pack] -> memory; and back, once, in the background
 * Thread:  any; two processes may load and save one path at once.
 * Memory:  a load maps the file; a save holds a thread until weight_pack_saver_join(). A file that is cut short
 *          by someone while it is mapped ends the process by SIGBUS, as with any mapped file; one that is
 *          replaced by name does no harm.
 *
 * A pack file belongs to one model: its name and its header carry the model's fingerprint, a stamp of
 * the files it was made from, and the formats. A head that does not match to the byte, or data whose
 * checksums do not hold, is refused with a reason and packed anew, so a cache can only save time. It is
 * written to a file without a name, synced, and named when it is whole: who reads finds all of it or
 * nothing. The checksums find what a disk or a copy spoilt; they are no proof against who means harm.
 *
 *   bytes 0..8     "BATONPAK"
 *         8..12    u32 version: file version * 1000 + KERNELS_MATRIX_VERSION
 *         12..16   u32 item count
 *         16..24   u64 offset of the data, a multiple of 4096
 *         24..32   u64 bytes of the data; the file ends behind them
 *         32..64   model fingerprint
 *         64..72   u64 stamp of the source files
 *         72..76   u32 crc32c of the items and the checksums behind them
 *         76..80   u32 crc32c of bytes 0..76
 *         80..     items of 40 bytes: u32 format, n_out, n_in, group, flags (1 zeros, 2 order), 0; u64
 *                  offset in the data; u64 bytes
 *         then     u32 crc32c of every 8 MiB of the data, the last part shorter
 * All little endian. Source of the ways to lose a file: "All File Systems Are Not Created Equal",
 * T. S. Pillai et al., OSDI 2014: sync before the name. */
#ifndef BATON_MODEL_WEIGHT_PACK_H
#define BATON_MODEL_WEIGHT_PACK_H

#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kernels/matrix.h"

#define WEIGHT_PACK_FINGERPRINT_BYTES 32u
#define WEIGHT_PACK_PATH_BYTES 4096u
/* With "auto" smaller models are packed anew each time: it takes milliseconds. */
#define WEIGHT_PACK_AUTO_BYTES_MIN ((uint64_t)64 << 20)

struct weight_pack_item {
    struct kernels_matrix matrix; /* its data is not used */
    uint64_t offset;              /* in the data, a multiple of 64 */
};

/* What a file must hold, in order. */
struct weight_pack_plan {
    const struct weight_pack_item *items; /* [item_count] */
    uint32_t item_count;
    uint64_t bytes; /* of the data */
    uint8_t fingerprint[WEIGHT_PACK_FINGERPRINT_BYTES];
    uint64_t stamp;
};

/* Where the file of a plan lies.
 * choice   "off", "auto" or a folder. auto: beside the model where that is writable, else the folder baton in
 *          $XDG_CACHE_HOME or ~/.cache, and only from WEIGHT_PACK_AUTO_BYTES_MIN on
 * Returns  false: nowhere. Makes the folder (not its parents' parents). */
bool weight_pack_path(const char *choice, const char *model_directory, const struct weight_pack_plan *plan,
                      char ret_path[WEIGHT_PACK_PATH_BYTES]);

/* Checks the beginning of a file against a plan. The parser of foreign bytes.
 * head        [head_bytes], as much of the file as there is, at least weight_pack_head_bytes() if it is whole
 * Errors   DATA_LOSS (node): not a pack file, damaged, short, or of another model, format or version; diag says which. */
NODISCARD status_t weight_pack_check(const uint8_t *head, size_t head_bytes, uint64_t file_bytes,
                                     const struct weight_pack_plan *plan, struct diag *diag, uint64_t *ret_data_offset);

size_t weight_pack_head_bytes(const struct weight_pack_plan *plan);

/* Maps the data, has every page of it present and checks every checksum, with `threads` threads.
 * ret_data  returns owned, [plan->bytes], read-only, at a page's border: weight_pack_unload()
 * Errors   NOT_FOUND (node): no file; DATA_LOSS as above; INTERNAL (node): it cannot be read.
 * Cost     0.08 to 0.21 s a GB that is in the page cache, one thread of a Zen 5; 0.003 to 0.18 without the sums.
 *          Reading it into memory of our own on 2 MiB pages was ruled out: 0.14 to 2.3 s a GB there, no faster
 *          afterwards (4 streams read 33 to 35 GB/s from the mapping, 33 to 36 from 2 MiB pages), and two nodes of
 *          one host would hold it twice. */
NODISCARD status_t weight_pack_load(const char *path, const struct weight_pack_plan *plan, uint32_t threads,
                                    struct diag *diag, void **ret_data);

/* Takes NULL. */
void weight_pack_unload(void *data, uint64_t bytes);

/* Writes the file. stop  may be NULL; set by another thread, it ends the write without a file.
 * Errors   INTERNAL (node): cannot be written, diag says why; CANCELLED (node): stopped. */
NODISCARD status_t weight_pack_save(const char *path, const struct weight_pack_plan *plan, const void *data,
                                    const _Atomic bool *stop, struct diag *diag);

/* The same on a thread of its own, at idle priority. Nobody waits for it and nothing but the next start's speed
 * depends on it, so that a failure is told here: event=pack_not_saved, once; a write that is stopped tells nothing.
 * Holds data until weight_pack_saver_join(), copies plan.
 * ret_saver  returns owned; NULL where no thread could be had. */
struct weight_pack_saver;
void weight_pack_save_later(const char *path, const struct weight_pack_plan *plan, const void *data,
                            struct weight_pack_saver **ret_saver);

/* Stops the write if it goes on. Takes NULL. */
void weight_pack_saver_join(struct weight_pack_saver *saver);

/* Waits for the write to end. Takes NULL; join follows. */
void weight_pack_saver_wait(struct weight_pack_saver *saver);

#endif
