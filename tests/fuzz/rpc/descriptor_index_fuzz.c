/* Any bytes as a FileDescriptorSet: refused or indexed, and then every question has an answer. */
#include <stdlib.h>

#include "rpc/descriptor_index.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct descriptor_set set = {.bytes = data, .len = size};
    struct descriptor_index *index = NULL;
    struct diag diag;
    if (failed(descriptor_index_create(&set, 1, &index, &diag))) {
        return 0;
    }
    size_t count = descriptor_index_file_count(index);
    struct descriptor_file *files = calloc(count + 1, sizeof *files);
    for (uint32_t i = 0; files != NULL && i < count; i++) {
        if (descriptor_index_closure(index, i, files) > count) {
            abort();
        }
    }
    free(files);
    (void)descriptor_index_by_symbol(index, "a.B");
    (void)descriptor_index_extensions(index, "a.B", NULL, 0);
    descriptor_index_destroy(index);
    return 0;
}
