/* descriptor_index: finds .proto files by name, by what they define, by extension.
 * Flow:    FileDescriptorSets linked into the binary -> [descriptor_index] -> reflection
 * Thread:  any once built; it does not change.
 * Memory:  the sets stay where they are; names and tables are allocated in create.
 *
 * Reads the few fields it needs of google/protobuf/descriptor.proto, bounds-checked: a set that is
 * cut or wrong is refused. */
#ifndef BATON_RPC_DESCRIPTOR_INDEX_H
#define BATON_RPC_DESCRIPTOR_INDEX_H

#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

struct descriptor_set {
    const uint8_t *bytes; /* serialized google.protobuf.FileDescriptorSet */
    size_t len;
};

/* One serialized FileDescriptorProto inside a set. */
struct descriptor_file {
    const uint8_t *bytes;
    size_t len;
};

#define DESCRIPTOR_NONE UINT32_MAX

struct descriptor_index;

/* sets       Holds their bytes until destroy. A file that is in several sets counts once.
 * ret_index  Returns owned.
 * Errors     INVALID_ARGUMENT (node): malformed; diag says which set. */
NODISCARD status_t descriptor_index_create(const struct descriptor_set *sets, size_t count,
                                           struct descriptor_index **ret_index, struct diag *diag);
void descriptor_index_destroy(struct descriptor_index *index); /* NULL is fine */

/* Indices of files, or DESCRIPTOR_NONE. */
uint32_t descriptor_index_by_filename(const struct descriptor_index *index, const char *name);
uint32_t descriptor_index_by_symbol(const struct descriptor_index *index, const char *symbol);
uint32_t descriptor_index_by_extension(const struct descriptor_index *index, const char *type, int32_t number);

/* The file and all that it imports, itself first, each once.
 * ret_files  [capacity of descriptor_index_file_count()]
 * Returns    how many. */
size_t descriptor_index_closure(const struct descriptor_index *index, uint32_t file, struct descriptor_file *ret_files);
size_t descriptor_index_file_count(const struct descriptor_index *index);

/* Extension numbers of a message type: the first `capacity` into ret_numbers (may be NULL with
 * capacity 0). Returns how many there are. */
size_t descriptor_index_extensions(const struct descriptor_index *index, const char *type, int32_t *ret_numbers,
                                   size_t capacity);

#endif
