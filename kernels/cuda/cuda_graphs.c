#include "kernels/cuda/cuda_graphs.h"

#include "base/check.h"
#include "base/log.h"

static void entry_clear(struct cuda_graphs *graphs, struct cuda_graph_entry *entry)
{
    if (entry->graph != NULL) {
        const struct cuda_driver *driver = graphs->queue->driver;
        (void)driver->stream_sync(driver, graphs->queue->stream, NULL); /* it may be running; an error is sticky */
        driver->graph_destroy(driver, entry->graph);
    }
    *entry = (struct cuda_graph_entry){0};
}

/* The key's entry; else a free one, or the one unused for longest, cleared. */
static struct cuda_graph_entry *entry_of(struct cuda_graphs *graphs, uint64_t key)
{
    struct cuda_graph_entry *oldest = &graphs->entries[0];
    for (uint32_t i = 0; i < CUDA_GRAPHS_MAX; i++) {
        struct cuda_graph_entry *entry = &graphs->entries[i];
        if (entry->used_at != 0 && entry->key == key) { return entry; }
        if (entry->used_at < oldest->used_at) { oldest = entry; }
    }
    entry_clear(graphs, oldest);
    oldest->key = key;
    return oldest;
}

static void launch(struct cuda_graphs *graphs, struct cuda_graph *graph)
{
    struct cuda_queue *queue = graphs->queue;
    if (cuda_queue_failed(queue)) { return; }
    struct diag text = {{0}};
    queue->operation = "graph";
    status_t st = queue->driver->graph_launch(queue->driver, graph, queue->stream, &text);
    if (failed(st)) { cuda_queue_fail(queue, st, &text); }
    graphs->launched++;
}

/* A capture that came to nothing; its operations have been queued one by one. */
static void count_failure(struct cuda_graphs *graphs, struct cuda_graph_entry *entry)
{
    entry->failures++;
    if (entry->failures != CUDA_GRAPH_TRIES) { return; }
    LOGF(LOG_WARN, "cuda_graph_not_used", "key=%llx tries=%u why=\"%s\"", (unsigned long long)entry->key, CUDA_GRAPH_TRIES,
         graphs->queue->abandon_text.text);
}

bool cuda_graphs_begin(struct cuda_graphs *graphs, uint64_t key)
{
    CHECK(graphs->open == NULL);
    struct cuda_graph_entry *entry = entry_of(graphs, key);
    bool is_new = entry->used_at == 0;
    entry->used_at = ++graphs->clock;
    if (entry->graph != NULL) {
        launch(graphs, entry->graph);
        return false;
    }
    graphs->open = entry;
    graphs->is_tried = !is_new && entry->failures < CUDA_GRAPH_TRIES && !cuda_queue_failed(graphs->queue);
    if (graphs->is_tried) { (void)cuda_queue_capture_begin(graphs->queue); } /* end sees what came of it */
    return true;
}

void cuda_graphs_end(struct cuda_graphs *graphs)
{
    CHECK(graphs->open != NULL);
    struct cuda_graph_entry *entry = graphs->open;
    graphs->open = NULL;
    if (!graphs->is_tried) { return; }
    if (graphs->queue->is_capturing) { entry->graph = cuda_queue_capture_end(graphs->queue); }
    if (entry->graph == NULL) {
        count_failure(graphs, entry);
        return;
    }
    graphs->captured++;
    launch(graphs, entry->graph);
}

void cuda_graphs_drop(struct cuda_graphs *graphs)
{
    CHECK(graphs->open == NULL);
    for (uint32_t i = 0; i < CUDA_GRAPHS_MAX; i++) { entry_clear(graphs, &graphs->entries[i]); }
}
