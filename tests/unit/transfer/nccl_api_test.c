/* A library that will not do is refused by name, and the real one, where it is, has all that the table asks for and
 * answers without a device. */
#include <dirent.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "transfer/nccl_api.h"
#include "transfer/nccl_root.h"

#define FAKES "tests/nccl/"

/* What no loader finds is named, with where to get it; and the next try is a new one. */
static void missing_library_is_named(void **state)
{
    struct diag diag = {.text = ""};
    const struct nccl_api *api = NULL;
    (void)state;
    for (int i = 0; i < 2; i++) {
        status_t st = nccl_api_load("/nowhere/libnccl.so.2", &diag, &api);
        assert_int_equal(st.code, ST_UNAVAILABLE);
        assert_int_equal(st.scope, SCOPE_NODE);
        assert_null(api);
        assert_non_null(strstr(diag.text, "/nowhere/libnccl.so.2"));
        assert_non_null(strstr(diag.text, "NCCL 2.19 or newer is needed"));
        assert_non_null(strstr(diag.text, "libnccl2"));
        assert_non_null(strstr(diag.text, "--nccl-library"));
    }
}

/* A library that is none says which function it lacks. */
static void what_is_no_nccl_is_named(void **state)
{
    struct diag diag = {.text = ""};
    const struct nccl_api *api = NULL;
    (void)state;
    status_t st = nccl_api_load("libc.so.6", &diag, &api);
    assert_int_equal(st.code, ST_UNAVAILABLE);
    assert_null(api);
    assert_non_null(strstr(diag.text, "libc.so.6 has no ncclGetVersion"));
}

/* One that is too old is refused by its number, even where it lacks functions that a later one has. */
static void old_versions_are_refused_by_number(void **state)
{
    struct diag diag = {.text = ""};
    const struct nccl_api *api = NULL;
    (void)state;
    status_t st = nccl_api_load(FAKES "libnccl_2_18_6.so", &diag, &api);
    assert_int_equal(st.code, ST_FAILED_PRECONDITION);
    assert_int_equal(st.scope, SCOPE_NODE);
    assert_null(api);
    assert_non_null(strstr(diag.text, "this is NCCL 2.18.6. NCCL 2.19 or newer is needed"));
    st = nccl_api_load(FAKES "libnccl_2_8_4.so", &diag, &api);
    assert_int_equal(st.code, ST_FAILED_PRECONDITION);
    assert_null(api);
    assert_non_null(strstr(diag.text, "this is NCCL 2.8.4."));
}

/* One that is new enough but not whole: the function. */
static void lacking_function_is_named(void **state)
{
    struct diag diag = {.text = ""};
    const struct nccl_api *api = NULL;
    (void)state;
    status_t st = nccl_api_load(FAKES "libnccl_lacking.so", &diag, &api);
    assert_int_equal(st.code, ST_UNAVAILABLE);
    assert_null(api);
    assert_non_null(strstr(diag.text, "libnccl_lacking.so has no ncclGetUniqueId"));
}

/* One that cannot say its version: its own words, on one line and without our quotes. */
static void failing_version_is_said_in_its_own_words(void **state)
{
    struct diag diag = {.text = ""};
    const struct nccl_api *api = NULL;
    (void)state;
    status_t st = nccl_api_load(FAKES "libnccl_failing.so", &diag, &api);
    assert_int_equal(st.code, ST_INTERNAL);
    assert_int_equal(st.cause, NCCL_INTERNAL_ERROR);
    assert_null(api);
    assert_string_equal(diag.text, "ncclGetVersion: internal error (3): a 'line' of a log");
}

/* Variables under which no pair can work are refused by name, before a library is looked for. */
static void environment_is_refused_by_name(void **state)
{
    static const struct { const char *name, *value; bool is_refused; } cases[] = {
        {"NCCL_COMM_BLOCKING", "1", true}, {"NCCL_COMM_BLOCKING", "", true}, {"NCCL_COMM_BLOCKING", "0", false},
        {"NCCL_COMM_ID", "127.0.0.1:23456", true}, {"NCCL_COMM_ID", "", true}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct diag diag = {.text = ""};
        const struct nccl_api *api = NULL;
        char words[100];
        setenv(cases[i].name, cases[i].value, 1);
        status_t st = nccl_api_load("/nowhere/libnccl.so.2", &diag, &api);
        unsetenv(cases[i].name);
        assert_null(api);
        assert_int_equal(st.code, cases[i].is_refused ? ST_FAILED_PRECONDITION : ST_UNAVAILABLE);
        assert_int_equal(st.scope, SCOPE_NODE);
        snprintf(words, sizeof words, "%s is \"%s\" in the environment", cases[i].name, cases[i].value);
        assert_int_equal(strstr(diag.text, words) != NULL, cases[i].is_refused);
        if (cases[i].is_refused) { assert_non_null(strstr(diag.text, "Unset it")); }
    }
}

/* What a peer or a network can cause is UNAVAILABLE, the rest INTERNAL, and no more than the pair is lost. */
static void results_have_codes(void **state)
{
    (void)state;
    const struct nccl_api nothing = {.get_version = NULL};
    for (nccl_result_t result = NCCL_UNHANDLED_CUDA_ERROR; result < NCCL_IN_PROGRESS; result++) {
        struct diag diag = {.text = ""};
        status_t st = nccl_api_status(&nothing, NULL, "ncclSend", result, &diag);
        assert_int_equal(st.code, result == NCCL_REMOTE_ERROR || result == NCCL_SYSTEM_ERROR ? ST_UNAVAILABLE : ST_INTERNAL);
        assert_int_equal(st.scope, SCOPE_PEER);
        assert_int_equal(st.cause, result);
        assert_non_null(strstr(diag.text, "ncclSend: an error without a name"));
    }
    status_t st = nccl_api_status(&nothing, NULL, "ncclSend", NCCL_REMOTE_ERROR, NULL);
    assert_int_equal(st.code, ST_UNAVAILABLE);
}

/* ---- the real library, in a process that has loaded no other */

static const char *real_library(void)
{
    static char path[512];
    const char *named = getenv("BATON_NCCL_LIBRARY");
    if (named && named[0]) { return named; }
#ifdef NCCL_TOOLKIT
    static const char *const folders[] = {"lib64", "lib", "targets/x86_64-linux/lib"};
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        snprintf(path, sizeof path, "%s/%s/libnccl.so.2", NCCL_TOOLKIT, folders[i]);
        FILE *file = fopen(path, "rb");
        if (file) {
            fclose(file);
            return path;
        }
    }
#endif
    snprintf(path, sizeof path, "libnccl.so.2");
    return path;
}

/* Every function is found, the version will do, a unique id is made and is another one each time, and a communicator
 * on a machine without a device fails at once, with words. With a device it comes up and goes. */
static void real_library_answers(void **state)
{
    struct diag diag = {.text = ""};
    const struct nccl_api *api = NULL, *again = NULL;
    int version = 0;
    (void)state;
    status_t st = nccl_api_load(real_library(), &diag, &api);
    if (st.code == ST_UNAVAILABLE) {
        print_message("no NCCL here (%s): the real library was not looked at\n", diag.text);
        skip();
    }
    if (failed(st)) { fail_msg("%s", diag.text); }
    for (size_t i = 0; i < sizeof *api / sizeof(void *); i++) {
        void *function = NULL;
        memcpy(&function, (const char *)api + i * sizeof function, sizeof function);
        assert_non_null(function);
    }
    st = nccl_api_load("/nowhere/libnccl.so.2", &diag, &again);
    assert_false(failed(st));
    assert_ptr_equal(again, api);

    st = nccl_api_check_version(api, &version, &diag);
    assert_false(failed(st));
    assert_in_range(version, NCCL_VERSION_MIN, NCCL_CODE(3, 0, 0) - 1);
    assert_string_equal(getenv("NCCL_RAS_ENABLE"), "0");
    assert_string_equal(getenv("NCCL_COMM_BLOCKING"), "0");
    assert_string_equal(api->get_error_string(NCCL_SUCCESS), "no error");

    /* One machine without another network is enough for the id. */
    setenv("NCCL_SOCKET_IFNAME", "=lo", 1);
    struct nccl_id ids[2];
    memset(ids, 0, sizeof ids);
    for (int i = 0; i < 2; i++) { assert_int_equal(api->get_unique_id(&ids[i]), NCCL_SUCCESS); }
    assert_memory_not_equal(&ids[0], &ids[1], sizeof ids[0]);

    struct nccl_config config = nccl_config_make(2);
    nccl_comm_t comm = NULL;
    nccl_result_t result = api->comm_init_rank_config(&comm, 1, ids[0], 0, &config);
    while (result == NCCL_IN_PROGRESS && comm) { assert_int_equal(api->comm_get_async_error(comm, &result), NCCL_SUCCESS); }
    if (result == NCCL_SUCCESS) {
        int ranks = 0;
        assert_int_equal(api->comm_count(comm, &ranks), NCCL_SUCCESS);
        assert_int_equal(ranks, 1);
        print_message("NCCL %d with a device: a communicator of one rank came up\n", version);
    } else {
        st = nccl_api_status(api, comm, "ncclCommInitRankConfig", result, &diag);
        assert_int_equal(st.code, ST_INTERNAL);
        assert_int_equal(st.cause, result);
        assert_non_null(strstr(diag.text, "ncclCommInitRankConfig: "));
        print_message("NCCL %d without a device: %s\n", version, diag.text);
    }
    if (comm) { assert_int_equal(api->comm_abort(comm), NCCL_SUCCESS); }
}

static uint32_t entries(const char *folder)
{
    uint32_t count = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    while (readdir(dir)) { count++; }
    closedir(dir);
    return count;
}

/* The listeners of the real library's ids end when they are told to, with thread and sockets; those of a version that
 * nobody looked at are left alone. Eight at a time, so that an id that kept one descriptor would show. */
static void real_listeners_are_ended(void **state)
{
    enum { IDS = 8 };
    struct diag diag = {.text = ""};
    const struct nccl_api *api = NULL;
    struct nccl_id ids[IDS];
    int version = 0;
    (void)state;
    if (failed(nccl_api_load(real_library(), &diag, &api))) { skip(); }
    assert_false(failed(nccl_api_check_version(api, &version, &diag)));
    if (version < NCCL_ROOT_VERSION_FIRST || version > NCCL_ROOT_VERSION_LAST) {
        print_message("NCCL %d: listeners of this version are left alone\n", version);
        skip();
    }
    setenv("NCCL_SOCKET_IFNAME", "=lo", 1);
    assert_int_equal(api->get_unique_id(&ids[0]), NCCL_SUCCESS); /* what the library keeps for itself is there now */
    assert_true(nccl_root_retire(version, &ids[0], UINT64_C(60000000000)));
    uint32_t threads = entries("/proc/self/task"), descriptors = entries("/proc/self/fd");
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < IDS; i++) { assert_int_equal(api->get_unique_id(&ids[i]), NCCL_SUCCESS); }
        assert_true(entries("/proc/self/task") >= threads - 1 + IDS); /* the first one's may just be ending */
        assert_false(nccl_root_retire(NCCL_ROOT_VERSION_LAST + 1, &ids[0], UINT64_C(60000000000)));
        for (int i = 0; i < IDS; i++) { assert_true(nccl_root_retire(version, &ids[i], UINT64_C(60000000000))); }
        /* It closes its own after the caller's. */
        while (entries("/proc/self/task") > threads || entries("/proc/self/fd") > descriptors) { sched_yield(); }
        for (int i = 0; i < IDS; i++) { assert_true(nccl_root_retire(version, &ids[i], UINT64_C(60000000000))); } /* nobody there */
    }
    print_message("NCCL %d: listeners of %d ids ended, %u threads and %u descriptors as before\n", version, 2 * IDS, threads, descriptors);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(missing_library_is_named),
        cmocka_unit_test(what_is_no_nccl_is_named),
        cmocka_unit_test(old_versions_are_refused_by_number),
        cmocka_unit_test(lacking_function_is_named),
        cmocka_unit_test(failing_version_is_said_in_its_own_words),
        cmocka_unit_test(environment_is_refused_by_name),
        cmocka_unit_test(results_have_codes),
        cmocka_unit_test(real_listeners_are_ended), /* the last: what is loaded stays */
        cmocka_unit_test(real_library_answers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
