/* A trace file from bytes. What is taken must have sane numbers, and prompts that can be made. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "client/workload.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { INPUT_MAX = 2000, VOCAB = 100 };
    static int fd = -1;
    static char path[64];
    static uint32_t tokens[INPUT_MAX];
    if (fd < 0) { /* a file without a name on disk, read through /proc */
        FILE *file = tmpfile();
        CHECK(file != NULL);
        fd = fileno(file);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    CHECK(ftruncate(fd, 0) == 0);
    CHECK(pwrite(fd, data, size, 0) == (ssize_t)size);
    struct workload workload;
    struct diag diag = {{0}};
    status_t st = workload_read_trace(path, 0.5, 2, 50, INPUT_MAX, 7, &workload, &diag);
    if (failed(st)) {
        CHECK(diag.text[0] != '\0');
        return 0;
    }
    CHECK(workload.count > 0 && workload.count <= 50);
    for (uint32_t i = 0; i < workload.count; i++) {
        CHECK(workload.requests[i].input_tokens >= 1 && workload.requests[i].input_tokens <= INPUT_MAX);
        CHECK(workload.requests[i].output_tokens >= 1);
        workload_prompt(&workload, i, VOCAB, tokens);
        for (uint32_t t = 0; t < workload.requests[i].input_tokens; t++) { CHECK(tokens[t] < VOCAB); }
    }
    workload_fini(&workload);
    return 0;
}
