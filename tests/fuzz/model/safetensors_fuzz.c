/* safetensors_fuzz: any bytes as a safetensors file. What opens must lie inside the bytes. */
#include <stddef.h>
#include <stdint.h>

#include "base/check.h"
#include "model/safetensors.h"

static volatile uint8_t touched; /* so that every byte is read, for the sanitizers to see */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"a", "model.embed_tokens.weight", "lm_head.weight", "wte.weight", "prompt", ""};
    struct safetensors *checkpoint = NULL;
    struct diag diag;
    if (failed(safetensors_parse("fuzz.safetensors", data, size, &diag, &checkpoint))) {
        CHECK(checkpoint == NULL);
        return 0;
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const struct safetensors_tensor *tensor = safetensors_find(checkpoint, names[i]);
        if (!tensor) { continue; }
        CHECK(tensor->data >= data);
        CHECK(tensor->bytes <= size);
        CHECK((size_t)(tensor->data - data) <= size - tensor->bytes);
        for (uint64_t b = 0; b < tensor->bytes; b++) { touched = tensor->data[b]; }
    }
    safetensors_close(checkpoint);
    return 0;
}
