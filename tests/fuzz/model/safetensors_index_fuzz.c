/* safetensors_index_fuzz: any bytes as model.safetensors.index.json, beside two good shards and
 * one that is cut short. An index that is taken promises only tensors that are there. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "model/safetensors.h"

static char directory[64] = "/tmp/safetensors_index_fuzz.XXXXXX";
static const char *const files[] = {"model.safetensors.index.json", "1.safetensors", "2.safetensors", "cut.safetensors"};

static void path_of(const char *file, char ret_path[128]) { snprintf(ret_path, 128, "%s/%s", directory, file); }

static void write_file(const char *file, const void *bytes, size_t len)
{
    char path[128];
    path_of(file, path);
    FILE *out = fopen(path, "wb");
    CHECK(out != NULL);
    CHECK(fwrite(bytes, 1, len, out) == len);
    CHECK(fclose(out) == 0);
}

static void write_shard(const char *file, const char *header, size_t data_bytes)
{
    uint8_t bytes[256] = {0};
    size_t len = strlen(header);
    CHECK(8 + len + data_bytes <= sizeof bytes);
    bytes[0] = (uint8_t)len;
    memcpy(bytes + 8, header, len);
    write_file(file, bytes, 8 + len + data_bytes);
}

static void clean(void)
{
    char path[128];
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        path_of(files[i], path);
        unlink(path);
    }
    rmdir(directory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool is_ready;
    if (!is_ready) {
        CHECK(mkdtemp(directory) != NULL);
        atexit(clean);
        write_shard(files[1], "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8);
        write_shard(files[2], "{\"b\":{\"dtype\":\"F16\",\"shape\":[1,2],\"data_offsets\":[0,4]}}", 4);
        write_shard(files[3], "{\"c\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7);
        is_ready = true;
    }
    write_file(files[0], data, size);
    struct safetensors *checkpoint = NULL;
    struct diag diag = {{0}};
    if (failed(safetensors_open(directory, &diag, &checkpoint))) {
        CHECK(checkpoint == NULL);
        CHECK(diag.text[0] != '\0');
        return 0;
    }
    const struct safetensors_tensor *a = safetensors_find(checkpoint, "a"), *b = safetensors_find(checkpoint, "b");
    CHECK(!a || (a->bytes == 8 && a->data[7] == 0));
    CHECK(!b || (b->bytes == 4 && b->data[3] == 0));
    CHECK(safetensors_find(checkpoint, "c") == NULL);
    safetensors_close(checkpoint);
    return 0;
}
