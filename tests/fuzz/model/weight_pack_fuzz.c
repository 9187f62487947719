/* weight_pack_fuzz: any bytes as the head of a pack file, its length in the first 8. What is taken is the plan's
 * own head, and nothing else: it is made again and compared. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/check.h"
#include "model/weight_pack.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct weight_pack_item items[3] = {
        {.matrix = {.format = KERNELS_WEIGHT_BF16, .n_out = 20, .n_in = 40}, .offset = 0},
        {.matrix = {.format = KERNELS_WEIGHT_INT4, .n_out = 16, .n_in = 64, .group = 32}, .offset = 4096},
        {.matrix = {.format = KERNELS_WEIGHT_INT8, .n_out = 5, .n_in = 7}, .offset = 8192},
    };
    const struct weight_pack_plan plan = {.items = items, .item_count = 3, .bytes = 8192 + 1152, .fingerprint = {1, 2, 3}, .stamp = 9};
    uint64_t file_bytes = 0, offset = 0;
    if (size < 8) { return 0; }
    memcpy(&file_bytes, data, 8);
    struct diag diag = {{0}};
    status_t st = weight_pack_check(data + 8, size - 8, file_bytes, &plan, &diag, &offset);
    if (failed(st)) {
        CHECK(st.code == ST_DATA_LOSS);
        CHECK(diag.text[0] != '\0');
        return 0;
    }
    CHECK(offset % 4096 == 0);
    CHECK(offset + plan.bytes == file_bytes);
    CHECK(size - 8 >= weight_pack_head_bytes(&plan));
    CHECK(memcmp(data + 8 + 32, plan.fingerprint, sizeof plan.fingerprint) == 0);
    return 0;
}
