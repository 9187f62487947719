/* Graphs of the emulated device: what they replay, and what spoils a capture. */
#include <string.h>

#include "tests/unit/kernels_cuda/emulated_testing.h"

static bool graphs_replay_what_was_said(struct bench *t)
{
    struct cuda_graph *graph;
    const uint32_t values[6] = {10, 11, 20, 21, 1, 0};
    emulated_device_poke(t->d, t->device, values, sizeof values);
    uint64_t before = emulated_device_operations_run(t->d);
    OK(t->d->capture_begin(t->d, t->a, &diag));
    OK(to_device(t, t->device, t->pinned, 8, t->a, &diag));
    OK(gather(t, t->device, t->device + 4, t->other, t->a, &diag));
    OK(t->d->capture_end(t->d, t->a, &graph, &diag));
    bool right = emulated_device_operations_run(t->d) == before && emulated_device_operations_left(t->d) == 0;
    for (uint32_t i = 0; i < 3; i++) {
        t->pinned[0] = 100 + i; /* read when the graph runs, from where it lay */
        OK(t->d->graph_launch(t->d, graph, t->a, &diag));
        OK(t->d->stream_sync(t->d, t->a, &diag));
        right = right && word(t, t->other, 2) == 100 + i && word(t, t->other, 0) == 20;
    }
    OK(t->d->graph_launch(t->d, graph, t->a, &diag));
    t->d->graph_destroy(t->d, graph); /* a launch that is queued outlives it */
    OK(t->d->stream_sync(t->d, t->a, &diag));
    return right;
}

/* Two streams of one capture: joined by an event, they are ordered in the replay; without, they are not. */
static bool fork_and_join(struct bench *t, bool with_event_between)
{
    struct cuda_graph *graph;
    struct cuda_event *fork_event, *join_event, *between;
    OK(t->d->event_create(t->d, CUDA_EVENT_ORDER, &fork_event, &diag));
    OK(t->d->event_create(t->d, CUDA_EVENT_ORDER, &join_event, &diag));
    OK(t->d->event_create(t->d, CUDA_EVENT_ORDER, &between, &diag));
    OK(t->d->capture_begin(t->d, t->a, &diag));
    OK(t->d->fill(t->d, t->device, 1, 4, t->a, &diag));
    OK(t->d->event_record(t->d, fork_event, t->a, &diag));
    OK(t->d->stream_wait_event(t->d, t->b, fork_event, &diag));
    OK(t->d->fill(t->d, t->device, 2, 4, t->a, &diag));
    OK(t->d->event_record(t->d, between, t->a, &diag));
    if (with_event_between) { OK(t->d->stream_wait_event(t->d, t->b, between, &diag)); }
    OK(on_device(t, t->other, t->device, 4, t->b, &diag));
    OK(t->d->event_record(t->d, join_event, t->b, &diag));
    OK(t->d->stream_wait_event(t->d, t->a, join_event, &diag));
    OK(t->d->capture_end(t->d, t->a, &graph, &diag));
    OK(t->d->graph_launch(t->d, graph, t->b, &diag));
    OK(t->d->stream_sync(t->d, t->b, &diag));
    t->d->graph_destroy(t->d, graph);
    t->d->event_destroy(t->d, fork_event);
    t->d->event_destroy(t->d, join_event);
    t->d->event_destroy(t->d, between);
    return word(t, t->other, 0) == 0x02020202u;
}
static bool forked_streams_with_an_event(struct bench *t) { return fork_and_join(t, true); }
static bool forked_streams_without(struct bench *t) { return fork_and_join(t, false); }

static void graphs(void **state)
{
    (void)state;
    holds(graphs_replay_what_was_said);
    holds(forked_streams_with_an_event);
    shows(forked_streams_without);
}

struct spoil {
    const char *says;
    status_t (*doing)(struct bench *t, struct diag *why);
};

static status_t spoil_sync(struct bench *t, struct diag *why) { return t->d->stream_sync(t->d, t->a, why); }
static status_t spoil_sync_other(struct bench *t, struct diag *why) { return t->d->stream_sync(t->d, t->b, why); }
static status_t spoil_alloc(struct bench *t, struct diag *why)
{
    void *memory;
    return t->d->mem_alloc(t->d, 16, &memory, why);
}
static status_t spoil_host_alloc(struct bench *t, struct diag *why)
{
    void *memory;
    return t->d->host_alloc(t->d, 16, &memory, why);
}
static status_t spoil_pageable(struct bench *t, struct diag *why)
{
    uint32_t heap = 1;
    return t->d->copy_from_pageable(t->d, t->device, &heap, 4, t->a, why);
}
static status_t spoil_batch(struct bench *t, struct diag *why)
{
    struct cuda_copy copy = {t->device, t->pinned, 4};
    return t->d->copy_batch(t->d, CUDA_COPY_TO_DEVICE, &copy, 1, t->a, why);
}
static status_t spoil_callback(struct bench *t, struct diag *why) { return t->d->stream_callback(t->d, t->a, note_done, NULL, why); }
static status_t spoil_outside(struct bench *t, struct diag *why)
{
    struct cuda_event *event;
    OK(t->d->event_create(t->d, CUDA_EVENT_ORDER, &event, &diag));
    OK(t->d->event_record(t->d, event, t->b, &diag));
    status_t st = t->d->stream_wait_event(t->d, t->a, event, why);
    t->d->event_destroy(t->d, event);
    return st;
}
static status_t spoil_event_sync(struct bench *t, struct diag *why)
{
    struct cuda_event *event;
    OK(t->d->event_create(t->d, CUDA_EVENT_ORDER, &event, &diag));
    OK(t->d->event_record(t->d, event, t->a, &diag));
    status_t st = t->d->event_sync(t->d, event, why);
    t->d->event_destroy(t->d, event);
    return st;
}
static status_t spoil_interprocess(struct bench *t, struct diag *why)
{
    struct cuda_event *event;
    OK(t->d->event_create(t->d, CUDA_EVENT_INTERPROCESS, &event, &diag));
    status_t st = t->d->event_record(t->d, event, t->a, why);
    t->d->event_destroy(t->d, event);
    return st;
}

/* What CUDA refuses in a capture is refused, the capture is lost, and the stream goes on without it. */
static void captures_are_spoiled(void **state)
{
    static const struct spoil spoils[] = {
        {"stream_sync", spoil_sync},         {"stream_sync", spoil_sync_other},
        {"mem_alloc", spoil_alloc},          {"host_alloc", spoil_host_alloc},  {"copy_from_pageable", spoil_pageable},
        {"copy_batch", spoil_batch},         {"stream_callback", spoil_callback}, {"outside", spoil_outside},
        {"event_sync", spoil_event_sync},    {"interprocess", spoil_interprocess},
    };
    struct bench t;
    struct cuda_graph *graph = NULL;
    (void)state;
    open_bench(&t, 5);
    for (size_t i = 0; i < sizeof spoils / sizeof spoils[0]; i++) {
        OK(t.d->capture_begin(t.d, t.a, &diag));
        OK(t.d->fill(t.d, t.device, 9, 4, t.a, &diag));
        struct diag why = {.text = ""};
        status_t st = spoils[i].doing(&t, &why);
        if (st.code != ST_FAILED_PRECONDITION) { fail_msg("spoil %zu: %s", i, why.text); }
        REFUSED(ST_FAILED_PRECONDITION, spoils[i].says, t.d->capture_end(t.d, t.a, &graph, &diag));
        assert_null(graph);
    }
    OK(t.d->stream_sync(t.d, t.a, &diag));
    assert_int_equal(word(&t, t.device, 0), 0xffffffffu); /* none of it ran */
    close_bench(&t);
}

/* A stream that a capture took in must come back before its end; and an event of a capture is none outside. */
static void captures_end_whole(void **state)
{
    struct bench t;
    struct cuda_graph *graph = NULL;
    struct cuda_event *event;
    (void)state;
    open_bench(&t, 5);
    OK(t.d->event_create(t.d, CUDA_EVENT_ORDER, &event, &diag));
    OK(t.d->capture_begin(t.d, t.a, &diag));
    OK(t.d->fill(t.d, t.device, 9, 4, t.a, &diag));
    OK(t.d->event_record(t.d, event, t.a, &diag));
    OK(t.d->stream_wait_event(t.d, t.b, event, &diag));
    OK(t.d->fill(t.d, t.other, 9, 4, t.b, &diag));
    REFUSED(ST_FAILED_PRECONDITION, "has not been waited for", t.d->capture_end(t.d, t.a, &graph, &diag));
    REFUSED(ST_FAILED_PRECONDITION, "CAPTURED_EVENT", t.d->stream_wait_event(t.d, t.b, event, &diag));
    REFUSED(ST_FAILED_PRECONDITION, "CAPTURED_EVENT", t.d->event_sync(t.d, event, &diag));
    REFUSED(ST_FAILED_PRECONDITION, "does not capture", t.d->capture_end(t.d, t.a, &graph, &diag));
    OK(t.d->event_record(t.d, event, t.a, &diag)); /* and is one again */
    OK(t.d->event_sync(t.d, event, &diag));
    t.d->event_destroy(t.d, event);
    close_bench(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(graphs),
        cmocka_unit_test(captures_are_spoiled),
        cmocka_unit_test(captures_end_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
