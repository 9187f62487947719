/* device_run: what one operation does, when its turn has come. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cuda/device_internal.h"
#include "tests/cuda/emu.h"

static bool run_launch(const struct op *op, char *text, size_t text_bytes)
{
    struct emu_fault fault = {.text = ""};
    if (emu_launch(op->u.launch.kernel, &op->u.launch.shape, op->tail, op->u.launch.args_bytes, &fault)) { return true; }
    snprintf(text, text_bytes, "%s", fault.text);
    fprintf(stderr, "emulated CUDA device: %s\n", fault.text); /* whoever syncs may be far away, or gone */
    return false;
}

static void run_copy(const struct cuda_copy_2d *copy)
{
    for (size_t row = 0; row < copy->rows; row++) {
        memmove((unsigned char *)copy->to + row * copy->to_pitch, (const unsigned char *)copy->from + row * copy->from_pitch, copy->row_bytes);
    }
}

/* In any order that the graph allows. */
static bool run_graph(struct device *device, const struct cuda_graph *graph, struct rng *rng, char *text, size_t text_bytes)
{
    if (graph->is_chain) {
        for (uint32_t i = 0; i < graph->count; i++) {
            if (graph->nodes[i].op != NULL && !device_run(device, graph->nodes[i].op, rng, text, text_bytes)) { return false; }
        }
        return true;
    }
    bool *done = calloc(graph->count + 1, sizeof *done);
    bool sound = true;
    if (done == NULL) { device_violation("no memory"); }
    for (uint32_t left = graph->count; left > 0 && sound; left--) {
        uint32_t chosen = NODE_NONE;
        uint64_t ready = 0;
        for (uint32_t i = 0; i < graph->count; i++) {
            const uint32_t *after = graph->nodes[i].after;
            if (!done[i] && (after[0] == NODE_NONE || done[after[0]]) && (after[1] == NODE_NONE || done[after[1]]) &&
                rng_below(rng, ++ready) == 0) {
                chosen = i;
            }
        }
        done[chosen] = true;
        if (graph->nodes[chosen].op != NULL) { sound = device_run(device, graph->nodes[chosen].op, rng, text, text_bytes); }
    }
    free(done);
    return sound;
}

bool device_run(struct device *device, const struct op *op, struct rng *rng, char *text, size_t text_bytes)
{
    switch (op->kind) {
    case OP_COPY: run_copy(&op->u.copy); return true;
    case OP_FILL: memset(op->u.fill.device, op->u.fill.value, op->u.fill.bytes); return true;
    case OP_LAUNCH: return run_launch(op, text, text_bytes);
    case OP_GEMM: device_gemm_compute(op); return true;
    case OP_GRAPH: return run_graph(device, op->u.graph, rng, text, text_bytes);
    case OP_RECORD:
    case OP_WAIT:
    case OP_CALLBACK:
    case OP_FOREIGN: break; /* device_queue.c's */
    }
    return true;
}
