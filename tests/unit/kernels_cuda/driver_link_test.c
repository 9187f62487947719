/* The real driver's table fits the libraries it is found in, and the fatbins hold what the table asks for. Needs the
 * toolkit, no GPU; without the toolkit each test says so and is skipped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/driver.h"
#include "kernels/cuda/fatbin.h"

#ifdef DRIVER_TOOLKIT
#include "kernels/cuda/driver_library.h"

#define STUB DRIVER_TOOLKIT "/lib64/stubs/libcuda.so"
#define STUB_OF_WHEELS DRIVER_TOOLKIT "/lib/stubs/libcuda.so"

static const char *readable(const char *first, const char *second)
{
    const char *paths[] = {first, second};
    for (int i = 0; i < 2; i++) {
        FILE *file = fopen(paths[i], "rb");
        if (file != NULL) {
            fclose(file);
            return paths[i];
        }
    }
    return NULL;
}

/* Every function that the table names is in libcuda, under the name that cuda.h links. */
static void libcuda_has_all(void **state)
{
    struct cuda_api api;
    struct diag diag = {.text = ""};
    const char *stub = readable(STUB, STUB_OF_WHEELS);
    (void)state;
    if (stub == NULL) {
        print_message("no stub of libcuda in this toolkit\n");
        skip();
    }
    memset(&api, 0, sizeof api);
    status_t st = driver_library_load_cuda(stub, &api, &diag);
    if (failed(st)) { fail_msg("%s", diag.text); }
#define IS_THERE(name) assert_non_null(api.name);
    CUDA_SYMBOLS(IS_THERE)
}

/* Every function of cuBLASLt too, in the library that a node would find; and it answers. */
static void libcublaslt_has_all(void **state)
{
    struct cublaslt_api api;
    struct diag diag = {.text = ""};
    (void)state;
    setenv("CUDA_HOME", DRIVER_TOOLKIT, 1);
    memset(&api, 0, sizeof api);
    status_t st = driver_library_load_cublaslt(NULL, &api, &diag);
    if (failed(st)) { fail_msg("%s", diag.text); }
    CUBLASLT_SYMBOLS(IS_THERE)
    assert_in_range(api.cublasLtGetVersion(), 130000, 139999);
    assert_string_equal(api.cublasLtGetStatusName(CUBLAS_STATUS_NOT_SUPPORTED), "CUBLAS_STATUS_NOT_SUPPORTED");
}

/* A library that is not there is named, and so is a function that it lacks. */
static void what_lacks_is_named(void **state)
{
    struct cuda_api cuda;
    struct cublaslt_api cublaslt;
    struct diag diag;
    (void)state;
    status_t st = driver_library_load_cuda("/nowhere/libcuda.so.1", &cuda, &diag);
    assert_int_equal(st.code, ST_FAILED_PRECONDITION);
    assert_non_null(strstr(diag.text, "/nowhere/libcuda.so.1 is not here: no NVIDIA driver"));
    st = driver_library_load_cuda("libc.so.6", &cuda, &diag);
    assert_int_equal(st.code, ST_FAILED_PRECONDITION);
    assert_non_null(strstr(diag.text, "has no cuInit"));
    st = driver_library_load_cublaslt("/nowhere/libcublasLt.so.13", &cublaslt, &diag);
    assert_int_equal(st.code, ST_FAILED_PRECONDITION);
    assert_non_null(strstr(diag.text, "/nowhere/libcublasLt.so.13 is not here"));
    assert_non_null(strstr(diag.text, "pip install nvidia-cublas"));
}

/* Opening a device of a machine says what is missing there, or works; it never goes on with half. */
static void opening_is_all_or_a_sentence(void **state)
{
    const struct cuda_driver *driver = NULL;
    struct diag diag = {.text = ""};
    (void)state;
    status_t st = cuda_driver_open(0, &driver, &diag);
    if (failed(st)) {
        assert_null(driver);
        assert_int_equal(st.code, ST_FAILED_PRECONDITION);
        assert_int_equal(st.scope, SCOPE_NODE);
        assert_non_null(strstr(diag.text, "libcuda.so.1"));
        return;
    }
    assert_true(driver->info.arch >= 80);
    driver->close(driver);
}

/* ---- what nvcc made ----------------------------------------------------------------------- */

/* A fatbin is a header and entries, each a header and an image; the fields here are those that nvcc 13.0 writes.
 * A change of the form shows as a failure of this test, not of a node. */
struct fatbin_head {
    uint32_t magic;
    uint16_t version, head_bytes;
    uint64_t bytes;
};
struct fatbin_entry {
    uint16_t kind, version;
    uint32_t head_bytes;
    uint64_t bytes;
    uint32_t compressed_bytes, name_offset, ptx_version, arch;
};
enum { KIND_PTX = 1, KIND_CUBIN = 2 };

typedef void (*entry_fn)(void *user, const struct fatbin_entry *entry, const unsigned char *image);

static void walk(const struct cuda_fatbin *fatbin, entry_fn visit, void *user)
{
    const unsigned char *bytes = fatbin->image;
    struct fatbin_head head;
    memcpy(&head, bytes, sizeof head);
    assert_int_equal(head.magic, 0xba55ed50u);
    assert_true(head.head_bytes + head.bytes <= fatbin->bytes);
    uint64_t end = head.head_bytes + head.bytes;
    for (uint64_t at = head.head_bytes; at < end;) {
        struct fatbin_entry entry;
        assert_true(at + sizeof entry <= end);
        memcpy(&entry, bytes + at, sizeof entry);
        assert_true(entry.head_bytes >= sizeof entry);
        assert_true(at + entry.head_bytes + entry.bytes <= end);
        visit(user, &entry, bytes + at + entry.head_bytes);
        at += entry.head_bytes + entry.bytes;
    }
}

static const uint32_t archs[] = DRIVER_ARCHS; /* those that were asked for; all of cuda.bzl as a rule */
enum { ARCHS = sizeof archs / sizeof archs[0] };

struct holdings {
    bool has_cubin[ARCHS];
    bool has_ptx_of_lowest;
};

static void note_entry(void *user, const struct fatbin_entry *entry, const unsigned char *image)
{
    struct holdings *holdings = user;
    (void)image;
    for (int i = 0; i < ARCHS; i++) {
        if (entry->kind == KIND_CUBIN && entry->arch == archs[i]) { holdings->has_cubin[i] = true; }
    }
    if (entry->kind == KIND_PTX && entry->arch == archs[0]) { holdings->has_ptx_of_lowest = true; }
}

/* Each .cu has machine code for every architecture, and PTX for those to come. */
static void code_for_each_architecture(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < cuda_fatbin_count; i++) {
        struct holdings holdings = {.has_ptx_of_lowest = false};
        walk(&cuda_fatbins[i], note_entry, &holdings);
        for (int arch = 0; arch < ARCHS; arch++) {
            if (!holdings.has_cubin[arch]) { fail_msg("%s has no code for sm_%u", cuda_fatbins[i].source, archs[arch]); }
        }
        if (!holdings.has_ptx_of_lowest) { fail_msg("%s has no PTX", cuda_fatbins[i].source); }
    }
}

struct search {
    const char *section; /* ".text.cuda_x", with its zero byte */
    size_t bytes;
    uint32_t found[ARCHS];
};

static void find_section(void *user, const struct fatbin_entry *entry, const unsigned char *image)
{
    struct search *search = user;
    if (entry->kind != KIND_CUBIN) { return; }
    assert_int_equal(entry->compressed_bytes, 0); /* else the names in it could not be read; see cuda_kernels() */
    for (int i = 0; i < ARCHS; i++) {
        if (entry->arch == archs[i] && memmem(image, entry->bytes, search->section, search->bytes) != NULL) { search->found[i]++; }
    }
}

#define KERNEL_SECTION(name, args) ".text.cuda_" #name,
static const char *const sections[] = {CUDA_KERNELS(KERNEL_SECTION) NULL};

/* Each kernel of the list is in one fatbin, for every architecture. */
static void every_kernel_is_compiled(void **state)
{
    (void)state;
    for (size_t k = 0; sections[k] != NULL; k++) {
        struct search search = {.section = sections[k], .bytes = strlen(sections[k]) + 1};
        for (uint64_t i = 0; i < cuda_fatbin_count; i++) { walk(&cuda_fatbins[i], find_section, &search); }
        for (int i = 0; i < ARCHS; i++) {
            if (search.found[i] != 1) { fail_msg("%s is there %u times for sm_%u", sections[k] + 6, search.found[i], archs[i]); }
        }
    }
}

#else

/* A program that was built without CUDA says so, and how to mend it. */
static void says_that_it_has_no_cuda(void **state)
{
    const struct cuda_driver *driver = NULL;
    struct diag diag = {.text = ""};
    (void)state;
    status_t st = cuda_driver_open(3, &driver, &diag);
    assert_int_equal(st.code, ST_FAILED_PRECONDITION);
    assert_null(driver);
    assert_non_null(strstr(diag.text, "no device 3"));
    assert_non_null(strstr(diag.text, "built without CUDA"));
    assert_non_null(strstr(diag.text, "install_deps.sh cuda"));
    assert_int_equal(cuda_fatbin_count, 0);
    print_message("no CUDA toolkit where this was built: the libraries and the fatbins were not looked at\n");
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
#ifdef DRIVER_TOOLKIT
        cmocka_unit_test(what_lacks_is_named),
        cmocka_unit_test(opening_is_all_or_a_sentence),
        cmocka_unit_test(libcuda_has_all),
        cmocka_unit_test(libcublaslt_has_all),
        cmocka_unit_test(code_for_each_architecture),
        cmocka_unit_test(every_kernel_is_compiled),
#else
        cmocka_unit_test(says_that_it_has_no_cuda),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
