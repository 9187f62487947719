/* cuda_graphs: runs of operations recorded as graphs, found again by key.
 * Flow:    kernels_graph_begin/end -> [cuda_graphs] -> cuda_queue, driver
 * Thread:  the handle's caller.
 * Memory:  the table; a graph each for up to CUDA_GRAPHS_MAX keys. The one unused for longest gives way.
 *
 * A key's first run is plain: it chooses plans and takes the scratch that a capture must not. The second is
 * captured and launched, all later ones are launched. A key whose captures come to nothing CUDA_GRAPH_TRIES
 * times runs plainly for ever; the log says so once for each key. */
#ifndef BATON_KERNELS_CUDA_CUDA_GRAPHS_H
#define BATON_KERNELS_CUDA_CUDA_GRAPHS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/cuda/cuda_queue.h"

#define CUDA_GRAPHS_MAX 128u
#define CUDA_GRAPH_TRIES 3u

struct cuda_graph_entry {
    uint64_t key;
    uint64_t used_at;         /* 0: the entry is free */
    struct cuda_graph *graph; /* NULL: not yet, or never */
    uint32_t failures;
};

struct cuda_graphs {
    struct cuda_queue *queue;
    struct cuda_graph_entry entries[CUDA_GRAPHS_MAX];
    struct cuda_graph_entry *open; /* between begin and end */
    bool is_tried;                 /* a capture was to be begun for it */
    uint64_t clock;
    uint64_t launched, captured; /* since create; for tests and logs */
};

/* As kernels_graph_begin and _end. */
bool cuda_graphs_begin(struct cuda_graphs *graphs, uint64_t key);
void cuda_graphs_end(struct cuda_graphs *graphs);

/* Forgets all of them, when addresses that they hold are about to change. Waits for the stream. */
void cuda_graphs_drop(struct cuda_graphs *graphs);

#endif
