/* one_gpu: what the nccl cable stands on, on a machine with one GPU, as JSON lines. Run by tests/nccl/one_gpu.sh.
 *   one_gpu --what=loop|pairs|deaths [--device=N] [--bytes=SIZE] [--nccl-library=FILE]
 * loop    one rank that sends to itself: gather, send and receive in a group, scatter, over several slots and two streams
 * pairs   nccl_pair between two processes, over NCCL's sockets: bytes, and what a communicator costs in memory and time
 * deaths  kill -9 and SIGSTOP of one of the two: how long until the other has ended its pair
 *
 * Estimate, for an H200 (4.3 TB/s read and written, so 2.1 TB/s copied): in the loop a byte is copied three times, gather,
 * send to oneself, scatter, and read twice more for its sums: at best 2.1 / 4 = 0.5 TB/s. Between two processes of one GPU a
 * byte goes to host memory, through a socket of this machine and back, 1 to 3 GB/s, and their kernels take turns on the
 * GPU in slices of milliseconds: the figure says that it works, not how fast the cable is between two GPUs. */
#include "tests/nccl/one_gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/flags.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/kernels.h"

struct one_gpu_config {
    const char *what, *library;
    uint32_t device, child_rank, child_channels;
    uint32_t child_fd;
    uint64_t bytes;
};

#define AT(field) offsetof(struct one_gpu_config, field)
static const struct flag one_gpu_flags[] = {
    {"what", FLAG_STRING, AT(what), NULL, "loop|pairs|deaths", "Which part.", 0, 0},
    {"device", FLAG_U32, AT(device), "0", "N", "Which GPU.", 0, 255},
    {"bytes", FLAG_BYTES, AT(bytes), "1GiB", "SIZE", "To move for each figure of the loop; a sixteenth of it between processes.", 1u << 20, UINT64_C(1) << 40},
    {"nccl-library", FLAG_STRING, AT(library), NULL, "FILE", "As the nodes' flag.", 0, 0},
    {"child-fd", FLAG_U32, AT(child_fd), "0", "N", "Of the second process: its own.", 0, 0},
    {"child-rank", FLAG_U32, AT(child_rank), "0", "N", "", 0, 0},
    {"child-channels", FLAG_U32, AT(child_channels), "0", "N", "", 0, 0},
};

void stop(status_t st, const char *what, const struct diag *diag)
{
    if (!failed(st)) { return; }
    fprintf(stderr, "one_gpu: %s: %s: %s\n", what, status_code_name(st.code), diag ? diag->text : "");
    exit(1);
}

void one_gpu_open(struct one_gpu *gpu, size_t pool_bytes)
{
    struct diag diag = {.text = ""};
    const struct kernels_config shape = {.backend = "cuda", .threads = 1, .device = gpu->device, .activations = DTYPE_BF16};
    stop(kernels_create(&shape, &gpu->kernels, &diag), "the device", &diag);
    stop(kernels_buffer_alloc(gpu->kernels, pool_bytes, &gpu->pool, &diag), "a pool", &diag);
    gpu->pool_bytes = pool_bytes;
    stop(device_memory_create(gpu->kernels, gpu->pool, pool_bytes, &gpu->memory, &diag), "a pool", &diag);
    stop(nccl_api_load(gpu->library, &diag, &gpu->api), "NCCL", &diag);
    stop(kv_memory_thread_bind(gpu->memory, &diag), "the thread", &diag);
    stop(kv_memory_inbox_init(&gpu->inbox), "an inbox", NULL);
    gpu->host_bytes = pool_bytes < (size_t)64 << 20 ? pool_bytes : (size_t)64 << 20;
    void *host = NULL;
    stop(kv_memory_host_alloc(gpu->memory, gpu->host_bytes, &host, &diag), "host memory", &diag);
    gpu->host = host;
}

void one_gpu_close(struct one_gpu *gpu)
{
    kv_memory_host_free(gpu->memory, gpu->host);
    kv_memory_inbox_fini(&gpu->inbox);
    device_memory_destroy(gpu->memory);
    kernels_buffer_free(gpu->kernels, gpu->pool, gpu->pool_bytes);
    kernels_destroy(gpu->kernels);
}

void one_gpu_do(struct one_gpu *gpu, struct kv_memory_op *op)
{
    op->done = kv_memory_inbox_put;
    op->user = &gpu->inbox;
    kv_memory_submit(gpu->memory, op);
    kv_memory_inbox_wait(&gpu->inbox);
    STOP_UNLESS(kv_memory_inbox_take_all(&gpu->inbox) == op, "an op that is not ours has ended");
    stop(op->status, "an op on the device", NULL);
}

/* ---- patterns */

static uint32_t word_of(uint32_t seed, uint64_t at) { return (uint32_t)((at / 4 + 1) * 2654435761u) ^ seed * 0x9e3779b9u; }

/* Calls `each` for pieces of the host buffer's size. */
static void in_pieces(struct one_gpu *gpu, uint64_t at, uint64_t bytes, uint32_t seed,
                      void (*each)(struct one_gpu *gpu, uint64_t at, uint64_t done, size_t bytes, uint32_t seed))
{
    for (uint64_t done = 0; done < bytes;) {
        size_t piece = bytes - done < gpu->host_bytes ? (size_t)(bytes - done) : gpu->host_bytes;
        each(gpu, at + done, done, piece, seed);
        done += piece;
    }
}

static void fill_piece(struct one_gpu *gpu, uint64_t at, uint64_t done, size_t bytes, uint32_t seed)
{
    for (size_t i = 0; i < bytes; i += 4) {
        uint32_t word = word_of(seed, done + i);
        memcpy(gpu->host + i, &word, sizeof word);
    }
    struct kv_memory_op op = {.kind = KV_MEMORY_WRITE, .count = 1, .range_bytes = bytes, .offsets = {at}, .host = gpu->host};
    one_gpu_do(gpu, &op);
}

static void verify_piece(struct one_gpu *gpu, uint64_t at, uint64_t done, size_t bytes, uint32_t seed)
{
    struct kv_memory_op op = {.kind = KV_MEMORY_READ, .count = 1, .range_bytes = bytes, .offsets = {at}, .host = gpu->host};
    one_gpu_do(gpu, &op);
    for (size_t i = 0; i < bytes; i += 4) {
        uint32_t word;
        memcpy(&word, gpu->host + i, sizeof word);
        STOP_UNLESS(word == word_of(seed, done + i), "the word at %llu of the pool is %08x instead of %08x", (unsigned long long)(at + i), word,
                    word_of(seed, done + i));
    }
}

void one_gpu_fill(struct one_gpu *gpu, uint64_t at, uint64_t bytes, uint32_t seed) { in_pieces(gpu, at, bytes, seed, fill_piece); }
void one_gpu_verify(struct one_gpu *gpu, uint64_t at, uint64_t bytes, uint32_t seed) { in_pieces(gpu, at, bytes, seed, verify_piece); }

void one_gpu_scatter(uint64_t at, uint64_t bytes, size_t slice_bytes, uint64_t first, uint32_t count, uint64_t *ret_offsets)
{
    /* The number of slices is a power of two, so an odd step meets each once. */
    uint64_t slices = bytes / slice_bytes;
    STOP_UNLESS(slices >= count && (slices & (slices - 1)) == 0, "%llu slices", (unsigned long long)slices);
    for (uint32_t i = 0; i < count; i++) { ret_offsets[i] = at + (first + i) * 2654435761u % slices * slice_bytes; }
}

int main(int argc, char **argv)
{
    struct one_gpu_config config;
    struct diag diag = {.text = ""};
    bool wants_help = false;
    const size_t count = sizeof one_gpu_flags / sizeof one_gpu_flags[0];
    if (failed(flags_parse(one_gpu_flags, count, &config, argc, argv, NULL, NULL, &wants_help, &diag))) {
        fprintf(stderr, "%s\n", diag.text);
        return 2;
    }
    struct one_gpu gpu = {.device = config.device, .library = config.library, .bytes = config.bytes};
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (config.child_fd != 0) {
        one_gpu_child(&gpu, (int)config.child_fd, config.child_rank, config.child_channels);
    } else if (!wants_help && config.what && strcmp(config.what, "loop") == 0) {
        one_gpu_loop(&gpu);
    } else if (!wants_help && config.what && strcmp(config.what, "pairs") == 0) {
        one_gpu_pairs(&gpu, argv[0]);
    } else if (!wants_help && config.what && strcmp(config.what, "deaths") == 0) {
        one_gpu_deaths(&gpu, argv[0]);
    } else {
        flags_print_help(one_gpu_flags, count, "one_gpu --what=loop|pairs|deaths [flags]", stdout);
        return wants_help ? 0 : 2;
    }
    return 0;
}
