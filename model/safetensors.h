/* safetensors: the tensors of a checkpoint, mapped and found by name.
 * Flow:    model.safetensors, or model.safetensors.index.json and its shards -> [safetensors] -> model_weights
 * Thread:  opening and closing on one thread; finding and reading from any.
 * Memory:  files are mapped read-only and private; only names and shapes are held. A file that is cut
 *          short by someone while it is mapped ends the process by SIGBUS, as with any mapped file.
 *
 * A file is 8 bytes of header length N (little endian), N bytes of JSON, then the data. The JSON maps
 * a tensor's name to {"dtype", "shape", "data_offsets": [begin, end]}, offsets from the start of the data.
 * Source: the safetensors format, README of huggingface/safetensors, "Format". */
#ifndef BATON_MODEL_SAFETENSORS_H
#define BATON_MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

#define SAFETENSORS_RANK_MAX 8u
#define SAFETENSORS_HEADER_BYTES_MAX ((uint64_t)64 << 20)

struct safetensors; /* one file, or all shards of one checkpoint */

struct safetensors_tensor {
    const char *name;
    const char *file;      /* path of the file that holds it */
    char dtype[16];        /* as written: "BF16", "F32", "I64" ... */
    uint32_t rank;
    uint64_t shape[SAFETENSORS_RANK_MAX];
    const uint8_t *data;   /* in the mapping; any alignment */
    uint64_t bytes;
};

/* Opens directory/model.safetensors where it is there, else the index and all shards it names.
 * Every tensor of every file is checked: its range lies in the file, its size is its shape's, and no
 * two overlap. Holes are allowed, and dtypes that we cannot compute with, as long as nobody asks for them.
 * Errors   NOT_FOUND (node): neither is there, or a shard is missing; DATA_LOSS (node): a file is
 *          truncated or its header is damaged; diag names file and tensor, what was expected and found.
 * Cost     parses the headers; reads no data. */
NODISCARD status_t safetensors_open(const char *directory, struct diag *diag, struct safetensors **ret_checkpoint);

/* Takes NULL. */
void safetensors_close(struct safetensors *checkpoint);

/* NULL where there is no such tensor. Borrowed until close. O(log tensors). */
const struct safetensors_tensor *safetensors_find(const struct safetensors *checkpoint, const char *name);

/* The file a missing tensor should have been in: the single file, or the index. */
const char *safetensors_source(const struct safetensors *checkpoint);

/* One file's bytes, checked the same way; tensors point into `data`, which it holds until close.
 * For tests and fuzzing: safetensors_open() does this to each mapped file. */
NODISCARD status_t safetensors_parse(const char *file, const uint8_t *data, uint64_t bytes, struct diag *diag,
                                     struct safetensors **ret_checkpoint);

/* Writes "[3, 4]". */
void safetensors_shape_text(const uint64_t *shape, uint32_t rank, char *text, size_t text_bytes);

#endif
