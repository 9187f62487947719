/* launch_on_device: the kernel tests' way to launch a kernel, on the chip instead of the emulator.
 * Flow:    tests/unit/kernels_cuda -> emu.h -> [launch_on_device] -> driver.h -> a GPU
 * Thread:  the test's one.
 * Memory:  the program's own heap, stack and variables are pinned where they lie, so that the kernels follow the same
 *          addresses as under the emulator: the chip reads and writes registered memory over the bus. Slow, and right.
 *
 * tests/gpu/build.sh links the tests with this file in place of tests/cuda. BATON_CUDA_DEVICE: which GPU. */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/driver.h"
#include "tests/cuda/emu.h"

enum { REGIONS_MAX = 64 };
#define HEAP_AHEAD ((size_t)256 << 20) /* in one piece from the start: what grows later is another region */

static const struct cuda_driver *driver;
static struct cuda_stream *stream;
static struct { unsigned long first, last; } regions[REGIONS_MAX];
static uint32_t region_count;

/* Before main: no allocation may have a mapping of its own. */
__attribute__((constructor)) static void heap_in_one_piece(void)
{
    mallopt(M_MMAP_MAX, 0);
    mallopt(M_TRIM_THRESHOLD, (int)(HEAP_AHEAD * 2));
    free(malloc(HEAP_AHEAD)); /* so much at once: the libraries' constructors have left room for a little one */
}

static bool region_pin(unsigned long first, unsigned long last, struct emu_fault *ret_fault)
{
    struct diag diag = {{0}};
    for (uint32_t i = 0; i < region_count; i++) {
        if (regions[i].first <= first && first < regions[i].last) { first = regions[i].last; }
    }
    for (uint32_t i = 0; i < region_count; i++) { /* a stack grows down, to what is pinned already */
        if (first < regions[i].first && regions[i].first < last) { last = regions[i].first; }
    }
    if (first >= last) { return true; }
    if (region_count == REGIONS_MAX || failed(driver->host_register(driver, (void *)first, last - first, &diag))) {
        snprintf(ret_fault->text, sizeof ret_fault->text, "cannot pin %lx-%lx: %.300s", first, last, diag.text);
        return false;
    }
    regions[region_count].first = first;
    regions[region_count++].last = last;
    return true;
}

/* The heap, the stack, and what is writable of the program itself. */
static bool memory_pin(struct emu_fault *ret_fault)
{
    static char line[4096], program[4096];
    unsigned long program_end = 0; /* of its mappings so far, if the one before this was its own */
    FILE *maps = fopen("/proc/self/maps", "r");
    bool is_good = maps != NULL;
    while (is_good && fgets(line, sizeof line, maps)) {
        unsigned long first, last;
        char flags[8] = "", path[2048] = "";
        if (sscanf(line, "%lx-%lx %7s %*s %*s %*s %2047[^\n]", &first, &last, flags, path) < 3) { continue; }
        if (!program[0]) { snprintf(program, sizeof program, "%s", path); } /* the first mapping is the program's */
        /* Variables that start as zeros lie behind the others, in a mapping without a name. */
        bool is_program = strcmp(path, program) == 0 || (path[0] == '\0' && first == program_end);
        bool is_ours = strcmp(path, "[heap]") == 0 || strcmp(path, "[stack]") == 0 || is_program;
        program_end = is_program ? last : 0;
        if (is_ours && flags[1] == 'w') { is_good = region_pin(first, last, ret_fault); }
    }
    if (maps) { fclose(maps); }
    return is_good;
}

bool emu_launch(enum cuda_kernel kernel, const struct cuda_launch *shape, const void *args, size_t args_bytes,
                struct emu_fault *ret_fault)
{
    struct diag diag = {{0}};
    status_t st = STATUS_OK;
    ret_fault->text[0] = '\0';
    if (!driver) {
        const char *device = getenv("BATON_CUDA_DEVICE");
        st = cuda_driver_open(device ? (uint32_t)strtoul(device, NULL, 10) : 0, &driver, &diag);
        if (!failed(st)) { st = driver->stream_create(driver, false, &stream, &diag); }
    }
    if (!failed(st) && !memory_pin(ret_fault)) { return false; }
    if (!failed(st)) { st = driver->launch(driver, kernel, shape, args, args_bytes, stream, &diag); }
    if (!failed(st)) { st = driver->stream_sync(driver, stream, &diag); }
    if (failed(st)) { snprintf(ret_fault->text, sizeof ret_fault->text, "%.500s", diag.text); }
    return !failed(st);
}

/* The chip's order is its own. */
void emu_seed(uint64_t seed) { (void)seed; }
void emu_threads(uint32_t threads) { (void)threads; }
