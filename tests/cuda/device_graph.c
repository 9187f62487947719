/* device_graph: capture, and launches of what was captured. */
#include <stdlib.h>

#include "tests/cuda/device_internal.h"

/* The capture that this thread has begun, for all the rules that are the thread's. */
static _Thread_local struct {
    uint64_t serial;
    struct cuda_graph *graph;
} capture_here;

struct cuda_graph *device_capture_here(const struct device *device)
{
    return capture_here.serial == device->serial ? capture_here.graph : NULL;
}

uint32_t device_graph_add(struct device *device, struct cuda_graph *graph, struct op *op, uint32_t after0, uint32_t after1)
{
    (void)device;
    if (graph->count == graph->capacity) {
        graph->capacity = graph->capacity == 0 ? 64 : graph->capacity * 2;
        graph->nodes = realloc(graph->nodes, graph->capacity * sizeof *graph->nodes);
        if (graph->nodes == NULL) { device_violation("no memory"); }
    }
    graph->nodes[graph->count] = (struct node){.op = op, .after = {after0, after1}};
    if (after1 != NODE_NONE || after0 != (graph->count == 0 ? NODE_NONE : graph->count - 1)) { graph->is_chain = false; }
    return graph->count++;
}

void device_graph_unref(struct device *device, struct cuda_graph *graph)
{
    if (graph == NULL || --graph->refs > 0) { return; }
    for (uint32_t i = 0; i < graph->count; i++) { device_op_free(device, graph->nodes[i].op); }
    free(graph->nodes);
    free(graph);
}

static status_t capture_begin(const struct cuda_driver *self, struct cuda_stream *stream, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_GRAPH, diag));
    status_t st = STATUS_OK;
    if (stream->capture != NULL || device_capture_here(device) != NULL) {
        st = device_raise(device, CAUSE_CAPTURE_UNSUPPORTED, diag, "capture_begin within a capture");
    } else {
        struct cuda_graph *graph = calloc(1, sizeof *graph);
        if (graph == NULL) { device_violation("no memory"); }
        graph->refs = 1;
        graph->is_chain = true;
        graph->origin = stream;
        stream->capture = graph;
        stream->last_node = NODE_NONE;
        capture_here.serial = device->serial;
        capture_here.graph = graph;
    }
    device_leave(device);
    return st;
}

/* Nodes come after what they wait for, so one pass from the end marks all that `last` waits for. */
static bool are_all_joined(const struct device *device, const struct cuda_graph *graph, uint32_t last)
{
    bool *waited_for = calloc(graph->count + 1, sizeof *waited_for);
    bool joined = true;
    if (waited_for == NULL) { device_violation("no memory"); }
    if (last != NODE_NONE) { waited_for[last] = true; }
    for (uint32_t i = graph->count; i-- > 0;) {
        for (int k = 0; k < 2 && waited_for[i]; k++) {
            if (graph->nodes[i].after[k] != NODE_NONE) { waited_for[graph->nodes[i].after[k]] = true; }
        }
    }
    for (const struct cuda_stream *stream = device->streams; stream != NULL; stream = stream->next) {
        if (stream->capture == graph && stream->last_node != NODE_NONE && !waited_for[stream->last_node]) { joined = false; }
    }
    free(waited_for);
    return joined;
}

static status_t capture_end(const struct cuda_driver *self, struct cuda_stream *stream, struct cuda_graph **ret_graph, struct diag *diag)
{
    struct device *device = device_of(self);
    struct cuda_graph *graph = stream->capture;
    status_t st = device_enter(device, EMULATED_GRAPH, diag);
    if (failed(st)) { device_enter_void(device); } /* the capture ends whatever happened */
    if (graph == NULL || graph->origin != stream || device_capture_here(device) != graph) {
        st = device_raise(device, CAUSE_CAPTURE_UNMATCHED, diag, "capture_end of a stream that this thread does not capture");
        device_leave(device);
        return st;
    }
    if (!failed(st) && graph->spoiled != NULL) {
        st = device_raise(device, CAUSE_CAPTURE_INVALIDATED, diag, "the capture was spoiled by %s", graph->spoiled);
    }
    if (!failed(st) && !are_all_joined(device, graph, stream->last_node)) {
        st = device_raise(device, CAUSE_CAPTURE_UNJOINED, diag, "a stream that the capture took in has not been waited for");
    }
    for (struct cuda_stream *other = device->streams; other != NULL; other = other->next) {
        if (other->capture == graph) {
            other->capture = NULL;
            other->last_node = NODE_NONE;
        }
    }
    graph->has_ended = true;
    capture_here.graph = NULL;
    if (failed(st)) {
        device_graph_unref(device, graph);
    } else {
        device->graphs++;
        *ret_graph = graph;
    }
    device_leave(device);
    return st;
}

static status_t graph_launch(const struct cuda_driver *self, struct cuda_graph *graph, struct cuda_stream *stream, struct diag *diag)
{
    struct device *device = device_of(self);
    TRY(device_enter(device, EMULATED_GRAPH, diag));
    status_t st = STATUS_OK;
    if (stream->capture != NULL) {
        stream->capture->spoiled = "graph_launch";
        st = device_raise(device, CAUSE_CAPTURE_UNSUPPORTED, diag, "graph_launch on a stream that is capturing");
    } else {
        struct op *op = device_op_create(OP_GRAPH, NULL, 0);
        op->u.graph = graph;
        graph->refs++;
        device_queue(device, stream, op);
    }
    device_leave(device);
    return st;
}

static void graph_destroy(const struct cuda_driver *self, struct cuda_graph *graph)
{
    struct device *device = device_of(self);
    if (graph == NULL) { return; }
    device_enter_void(device);
    device->graphs--;
    device_graph_unref(device, graph);
    device_leave(device);
}

void device_graph_calls(struct cuda_driver *table)
{
    table->capture_begin = capture_begin;
    table->capture_end = capture_end;
    table->graph_launch = graph_launch;
    table->graph_destroy = graph_destroy;
}
