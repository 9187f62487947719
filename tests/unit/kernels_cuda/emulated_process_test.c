/* Memory and events of one emulated device in two processes. */
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/kernels_cuda/emulated_testing.h"

struct parcel {
    struct cuda_ipc_handle memory, event;
};

static void send_bytes(int fd, const void *bytes, size_t count) { assert_int_equal(write(fd, bytes, count), (ssize_t)count); }

static void receive_bytes(int fd, void *bytes, size_t count)
{
    size_t got = 0;
    while (got < count) {
        ssize_t part = read(fd, (char *)bytes + got, count - got);
        assert_true(part > 0);
        got += (size_t)part;
    }
}

/* The other process: fills, records, and never waits; ends when it is told to, or is killed. */
static void export_from(int to_parent, int from_parent)
{
    struct bench t;
    struct parcel parcel;
    struct cuda_event *event;
    char turn;
    open_bench(&t, 9);
    OK(t.d->event_create(t.d, CUDA_EVENT_INTERPROCESS, &event, &diag));
    OK(t.d->ipc_export_memory(t.d, t.device, &parcel.memory, &diag));
    OK(t.d->ipc_export_event(t.d, event, &parcel.event, &diag));
    send_bytes(to_parent, &parcel, sizeof parcel);
    for (uint8_t round = 1; read(from_parent, &turn, 1) == 1 && turn != 'q'; round++) {
        OK(t.d->fill(t.d, t.device, round, COUNT * 4, t.a, &diag));
        OK(t.d->event_record(t.d, event, t.a, &diag));
        send_bytes(to_parent, &turn, 1);
    }
    t.d->event_destroy(t.d, event);
    close_bench(&t);
    _exit(0);
}

static pid_t start_exporter(int *ret_to, int *ret_from)
{
    int up[2], down[2];
    assert_int_equal(pipe(up), 0);
    assert_int_equal(pipe(down), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) { export_from(up[1], down[0]); }
    close(up[1]);
    close(down[0]);
    *ret_to = down[1];
    *ret_from = up[0];
    return child;
}

/* Memory and events work from one process to another: after the imported event the bytes are there, though the exporter never
 * waits itself. */
static void between_processes(void **state)
{
    struct bench t;
    struct parcel parcel;
    struct cuda_event *event;
    uint32_t *imported;
    int to, from, status;
    char turn = 'g';
    (void)state;
    pid_t child = start_exporter(&to, &from); /* before this process has threads */
    open_bench(&t, 4);
    receive_bytes(from, &parcel, sizeof parcel);
    OK(t.d->ipc_import_memory(t.d, &parcel.memory, (void **)&imported, &diag));
    OK(t.d->ipc_import_event(t.d, &parcel.event, &event, &diag));
    for (uint32_t round = 1; round <= 10; round++) {
        send_bytes(to, &turn, 1);
        receive_bytes(from, &turn, 1);
        OK(t.d->stream_wait_event(t.d, t.a, event, &diag));
        OK(on_device(&t, t.other, imported, COUNT * 4, t.a, &diag));
        OK(t.d->stream_sync(t.d, t.a, &diag));
        assert_int_equal(word(&t, t.other, COUNT - 1), round * 0x01010101u);
        OK(t.d->event_sync(t.d, event, &diag));
    }
    REFUSED(ST_INVALID_ARGUMENT, "is recorded", t.d->event_record(t.d, event, t.a, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "did not give", t.d->ipc_export_memory(t.d, imported, &parcel.memory, &diag));
    t.d->ipc_close_memory(t.d, imported);
    turn = 'q';
    send_bytes(to, &turn, 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    REFUSED(ST_INVALID_ARGUMENT, "gone", t.d->ipc_import_memory(t.d, &parcel.memory, (void **)&imported, &diag));
    t.d->event_destroy(t.d, event);
    close_bench(&t);
    close(to);
    close(from);
}

/* Whoever imported from a process that is killed goes on. */
static void a_killed_exporter_holds_nobody(void **state)
{
    struct bench t;
    struct parcel parcel;
    struct cuda_event *event;
    uint32_t *imported;
    int to, from, status;
    (void)state;
    pid_t child = start_exporter(&to, &from);
    open_bench(&t, 4);
    receive_bytes(from, &parcel, sizeof parcel);
    OK(t.d->ipc_import_memory(t.d, &parcel.memory, (void **)&imported, &diag));
    OK(t.d->ipc_import_event(t.d, &parcel.event, &event, &diag));
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    OK(t.d->stream_wait_event(t.d, t.a, event, &diag));
    OK(on_device(&t, t.other, imported, COUNT * 4, t.a, &diag));
    OK(t.d->stream_sync(t.d, t.a, &diag));
    OK(t.d->event_sync(t.d, event, &diag));
    t.d->ipc_close_memory(t.d, imported);
    t.d->event_destroy(t.d, event);
    close_bench(&t);
    close(to);
    close(from);
}

static void *close_imported_under_copy_memory;
static void close_under_copy(struct bench *t)
{
    (void)on_device(t, t->other, close_imported_under_copy_memory, 4, t->a, NULL);
    t->d->ipc_close_memory(t->d, close_imported_under_copy_memory);
}

/* Two devices of one process are as two processes; one device does not take its own handles, nor garbage. */
static void handles_are_checked(void **state)
{
    struct bench t, other;
    struct cuda_ipc_handle handle, garbage = {{1}};
    struct cuda_event *event, *imported_event;
    void *imported;
    (void)state;
    /* A seed that runs nothing by itself, for the death of close_under_copy. */
    open_bench(&t, 1);
    for (uint64_t seed = 1;; seed++) {
        open_bench(&other, seed);
        for (int i = 0; i < 40; i++) { OK(other.d->fill(other.d, other.device, 0, 4, other.a, &diag)); }
        if (emulated_device_operations_left(other.d) == 40) { break; }
        close_bench(&other);
    }
    REFUSED(ST_INVALID_ARGUMENT, "did not give", t.d->ipc_export_memory(t.d, t.device + 1, &handle, &diag));
    OK(t.d->ipc_export_memory(t.d, t.device, &handle, &diag));
    REFUSED(ST_FAILED_PRECONDITION, "its own", t.d->ipc_import_memory(t.d, &handle, &imported, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "another kind", other.d->ipc_import_event(other.d, &handle, &event, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "another kind", other.d->ipc_import_memory(other.d, &garbage, &imported, &diag));
    OK(other.d->ipc_import_memory(other.d, &handle, &imported, &diag));
    close_imported_under_copy_memory = imported;
    dies(close_under_copy, &other, SIGABRT);
    OK(t.d->event_create(t.d, CUDA_EVENT_ORDER, &event, &diag));
    REFUSED(ST_INVALID_ARGUMENT, "not interprocess", t.d->ipc_export_event(t.d, event, &handle, &diag));
    t.d->event_destroy(t.d, event);
    OK(t.d->event_create(t.d, CUDA_EVENT_INTERPROCESS, &event, &diag));
    OK(t.d->ipc_export_event(t.d, event, &handle, &diag));
    OK(other.d->ipc_import_event(other.d, &handle, &imported_event, &diag));
    OK(other.d->event_sync(other.d, imported_event, &diag)); /* never recorded: at once */
    OK(t.d->fill(t.d, t.device, 5, COUNT * 4, t.a, &diag));
    OK(t.d->event_record(t.d, event, t.a, &diag));
    OK(other.d->stream_wait_event(other.d, other.b, imported_event, &diag));
    OK(on_device(&other, other.other, imported, COUNT * 4, other.b, &diag));
    OK(other.d->stream_sync(other.d, other.b, &diag));
    assert_int_equal(word(&other, other.other, 3), 0x05050505u);
    other.d->event_destroy(other.d, imported_event);
    t.d->event_destroy(t.d, event);
    other.d->ipc_close_memory(other.d, imported);
    close_bench(&other);
    close_bench(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(between_processes),
        cmocka_unit_test(a_killed_exporter_holds_nobody),
        cmocka_unit_test(handles_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
