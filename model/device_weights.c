#include "model/device_weights.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "model/model_weights_storage.h"

#define ALIGNMENT 256u
#define PIECE_BYTES_MAX ((size_t)64 << 20)
#define PIECES_MIN 8u /* even of a small model, so that reading and copying overlap */
#define TASK_BYTES ((size_t)1 << 20) /* much work for a thread, and little of a piece */
#define THREADS_MAX 64u

/* One destination of one entry of the plan, and where it lies on the device. */
struct place {
    uint32_t entry;
    uint32_t row_first; /* among the entry's rows: k lies behind q where a file has them in one */
    size_t offset, row_bytes, bytes;
    bool is_matrix;
    struct model_tensor tensor; /* as it will be, but for the addresses */
    struct model_tensor *dest;
};

/* A few rows of a matrix, or all of a vector. */
struct task {
    uint32_t place, window;
    uint32_t row_first, row_count;
    size_t offset, bytes; /* on the device */
};

/* Consecutive tasks that go to the device together. */
struct window {
    uint32_t task_first, task_end;
    size_t offset, bytes;
};

struct fill {
    const struct model_weights_storage *storage;
    struct place *places;
    struct task *tasks;
    struct window *windows;
    uint32_t place_count, task_count, window_count;
    size_t total_bytes, window_bytes_max;
    size_t piece_bytes; /* of the largest window: a task may be larger than window_bytes_max */
    uint8_t *pieces[2]; /* window w fills pieces[w % 2] */

    pthread_mutex_t mutex; /* guards what follows; with it the bytes of a window change hands */
    pthread_cond_t opened, finished;
    uint32_t next_task;
    uint32_t windows_open; /* how many may be filled so far */
    uint32_t *done;        /* [window_count]: tasks of each */
    bool stop;
};

/* ---- where everything will lie --------------------------------------------------------------- */

static size_t align_up(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* Whether a tensor lies right behind the one placed before it, so that one product can take both. */
static bool joins(const struct model_weights *weights, const struct place *place, const struct place *before)
{
    static const struct { size_t first, second; } pairs[] = {
        {offsetof(struct model_layer, q), offsetof(struct model_layer, k)},
        {offsetof(struct model_layer, k), offsetof(struct model_layer, v)},
        {offsetof(struct model_layer, gate), offsetof(struct model_layer, up)},
        {offsetof(struct model_layer, q_bias), offsetof(struct model_layer, k_bias)},
        {offsetof(struct model_layer, k_bias), offsetof(struct model_layer, v_bias)},
        {offsetof(struct model_layer, gate_bias), offsetof(struct model_layer, up_bias)},
    };
    for (uint32_t i = 0; i < weights->storage->layer_count; i++) {
        const char *layer = (const char *)&weights->layers[i];
        for (size_t p = 0; p < sizeof pairs / sizeof pairs[0]; p++) {
            if ((const char *)before->dest == layer + pairs[p].first && (const char *)place->dest == layer + pairs[p].second) {
                return true;
            }
        }
    }
    return false;
}

static void place_all(struct model_weights *weights, struct fill *fill)
{
    const struct model_weights_storage *storage = weights->storage;
    for (uint32_t i = 0; i < storage->plan.count; i++) {
        const struct tensor_plan_entry *entry = &storage->plan.entries[i];
        const struct weight_source *source = &storage->sources[i];
        for (uint32_t d = 0; d < entry->dest_count; d++) {
            struct place *place = &fill->places[fill->place_count++];
            *place = (struct place){.entry = i, .dest = entry->dest[d], .is_matrix = model_weights_entry_is_matrix(entry, weights)};
            struct model_tensor *tensor = &place->tensor;
            model_weights_dest_shape(entry, &tensor->rows, &tensor->cols);
            tensor->dtype = source->dtype;
            place->row_bytes = (size_t)tensor->cols * dtype_bytes(tensor->dtype);
            if (place->is_matrix) {
                tensor->matrix = storage->items[storage->entry_first_item[i] + d].matrix;
                tensor->dtype = source->file_dtype;
                place->row_first = d * tensor->rows;
                place->row_bytes = (size_t)tensor->matrix.stride * dtype_bytes((enum dtype)tensor->matrix.format);
            }
            place->bytes = place->row_bytes * tensor->rows;
            if (fill->place_count == 1 || !joins(weights, place, place - 1)) { fill->total_bytes = align_up(fill->total_bytes); }
            place->offset = fill->total_bytes;
            fill->total_bytes += place->bytes;
        }
    }
}

static uint32_t rows_of_task(const struct place *place)
{
    if (!place->is_matrix) { return place->tensor.rows; } /* a vector has one, the table of positions few */
    size_t rows = TASK_BYTES / place->row_bytes;
    return rows == 0 ? 1 : rows > place->tensor.rows ? place->tensor.rows : (uint32_t)rows;
}

/* Cuts places into tasks, and tasks into windows. */
static void cut_all(struct fill *fill)
{
    const size_t part = fill->total_bytes / PIECES_MIN;
    fill->window_bytes_max = part < PIECE_BYTES_MAX ? part : PIECE_BYTES_MAX;
    for (uint32_t p = 0; p < fill->place_count; p++) {
        const struct place *place = &fill->places[p];
        const uint32_t step = rows_of_task(place);
        /* The later destinations of a split vector come with the first. */
        const bool is_whole = place->is_matrix || fill->storage->plan.entries[place->entry].dest[0] == place->dest;
        for (uint32_t row = 0; row < place->tensor.rows && is_whole; row += step) {
            struct task *task = &fill->tasks[fill->task_count];
            const uint32_t left = place->tensor.rows - row;
            *task = (struct task){.place = p, .row_first = row, .row_count = left < step ? left : step,
                                  .offset = place->offset + row * place->row_bytes};
            task->bytes = task->row_count * place->row_bytes;
            if (!place->is_matrix) { task->bytes *= fill->storage->plan.entries[place->entry].dest_count; }
            struct window *window = fill->window_count > 0 ? &fill->windows[fill->window_count - 1] : NULL;
            if (!window || task->offset + task->bytes - window->offset > fill->window_bytes_max) {
                window = &fill->windows[fill->window_count++];
                *window = (struct window){.task_first = fill->task_count, .offset = task->offset};
            }
            window->task_end = fill->task_count + 1;
            window->bytes = task->offset + task->bytes - window->offset;
            if (window->bytes > fill->piece_bytes) { fill->piece_bytes = window->bytes; }
            task->window = fill->window_count - 1;
            fill->task_count++;
        }
    }
}

static void fill_free(struct fill *fill)
{
    free(fill->places);
    free(fill->tasks);
    free(fill->windows);
    free(fill->done);
}

static status_t fill_plan(struct model_weights *weights, struct fill *fill, struct diag *diag)
{
    const struct model_weights_storage *storage = weights->storage;
    size_t place_room = 0, task_room = 0;
    for (uint32_t i = 0; i < storage->plan.count; i++) { place_room += storage->plan.entries[i].dest_count; }
    fill->storage = storage;
    fill->places = calloc(place_room, sizeof *fill->places);
    if (!fill->places) { goto no_memory; }
    place_all(weights, fill);
    for (uint32_t p = 0; p < fill->place_count; p++) { task_room += fill->places[p].tensor.rows / rows_of_task(&fill->places[p]) + 1; }
    fill->tasks = calloc(task_room, sizeof *fill->tasks);
    fill->windows = calloc(task_room, sizeof *fill->windows);
    fill->done = calloc(task_room, sizeof *fill->done);
    if (!fill->tasks || !fill->windows || !fill->done) { goto no_memory; }
    cut_all(fill);
    return STATUS_OK;
no_memory:
    diag_set(diag, "no memory for a list of %u tensors", storage->plan.count);
    return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
}

/* ---- filling --------------------------------------------------------------------------------- */

static float as_f32(const uint8_t *values, enum dtype dtype, size_t index)
{
    uint16_t half;
    float value;
    if (dtype == DTYPE_F32) {
        memcpy(&value, values + 4 * index, 4);
        return value;
    }
    memcpy(&half, values + 2 * index, 2);
    return dtype == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

/* One row in another format, as kernels_matrix_pack() rounds. */
static void convert_row(const uint8_t *from, enum dtype dtype, uint32_t count, enum dtype to_dtype, uint8_t *to)
{
    for (uint32_t i = 0; i < count; i++) {
        const float value = as_f32(from, dtype, i);
        const uint16_t half = to_dtype == DTYPE_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
        if (to_dtype == DTYPE_F32) { memcpy(to + 4 * (size_t)i, &value, 4); } else { memcpy(to + 2 * (size_t)i, &half, 2); }
    }
}

static void fill_matrix(const struct fill *fill, const struct task *task, uint8_t *out, uint8_t *row)
{
    const struct place *place = &fill->places[task->place];
    const struct tensor_plan_entry *entry = &fill->storage->plan.entries[place->entry];
    const struct weight_source *source = &fill->storage->sources[place->entry];
    const struct kernels_matrix *matrix = &place->tensor.matrix;
    const enum dtype format = (enum dtype)matrix->format;
    const uint32_t first = place->row_first + task->row_first;
    if (matrix->stride == matrix->n_in && format == source->file_dtype) {
        weight_source_read(entry, source, first, task->row_count, out);
        return;
    }
    const size_t used = (size_t)matrix->n_in * dtype_bytes(format);
    for (uint32_t r = 0; r < task->row_count; r++, out += place->row_bytes) {
        weight_source_read(entry, source, first + r, 1, row);
        convert_row(row, source->file_dtype, matrix->n_in, format, out);
        memset(out + used, 0, place->row_bytes - used);
    }
}

static void fill_task(const struct fill *fill, const struct task *task, uint8_t *row)
{
    const struct place *place = &fill->places[task->place];
    const struct window *window = &fill->windows[task->window];
    uint8_t *piece = fill->pieces[task->window % 2], *out = piece + (task->offset - window->offset);
    if (place->is_matrix) {
        fill_matrix(fill, task, out, row);
    } else {
        weight_source_values(&fill->storage->plan.entries[place->entry], &fill->storage->sources[place->entry], out);
    }
    /* Up to the next task nothing is written: the same bytes every time. */
    const struct task *next = task + 1;
    const bool is_last = next == fill->tasks + window->task_end;
    if (!is_last) { memset(out + task->bytes, 0, next->offset - (task->offset + task->bytes)); }
}

static size_t row_bytes_max(const struct fill *fill)
{
    size_t most = 1;
    for (uint32_t p = 0; p < fill->place_count; p++) {
        const size_t bytes = (size_t)fill->places[p].tensor.cols * sizeof(float);
        if (fill->places[p].is_matrix && bytes > most) { most = bytes; }
    }
    return most;
}

struct worker {
    struct fill *fill;
    uint8_t *row; /* of any matrix, in any dtype */
    pthread_t id;
};

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    struct fill *fill = worker->fill;
    pthread_mutex_lock(&fill->mutex);
    while (!fill->stop && fill->next_task < fill->task_count) {
        const struct task *task = &fill->tasks[fill->next_task++];
        while (!fill->stop && task->window >= fill->windows_open) { pthread_cond_wait(&fill->opened, &fill->mutex); }
        if (fill->stop) { break; }
        pthread_mutex_unlock(&fill->mutex);
        fill_task(fill, task, worker->row);
        pthread_mutex_lock(&fill->mutex);
        const struct window *window = &fill->windows[task->window];
        if (++fill->done[task->window] == window->task_end - window->task_first) { pthread_cond_signal(&fill->finished); }
    }
    pthread_mutex_unlock(&fill->mutex);
    return NULL;
}

static void open_windows(struct fill *fill, uint32_t count)
{
    pthread_mutex_lock(&fill->mutex);
    fill->windows_open = count;
    pthread_cond_broadcast(&fill->opened);
    pthread_mutex_unlock(&fill->mutex);
}

/* Sends window after window; a piece is filled again once its last copy has been done. */
static status_t send_windows(struct fill *fill, struct kernels *kernels, uint8_t *device)
{
    uint64_t sent = 0; /* mark of the window before */
    open_windows(fill, 1);
    for (uint32_t w = 0; w < fill->window_count; w++) {
        const struct window *window = &fill->windows[w];
        status_t st = kernels_wait(kernels, sent);
        if (failed(st)) { return st; }
        open_windows(fill, w + 2);
        pthread_mutex_lock(&fill->mutex);
        while (fill->done[w] < window->task_end - window->task_first) { pthread_cond_wait(&fill->finished, &fill->mutex); }
        pthread_mutex_unlock(&fill->mutex);
        kernels_upload(kernels, device + window->offset, fill->pieces[w % 2], window->bytes);
        sent = kernels_mark(kernels);
    }
    return kernels_sync(kernels);
}

static status_t run_fill(struct fill *fill, struct kernels *kernels, uint32_t threads, uint8_t *device, struct diag *diag)
{
    struct worker workers[THREADS_MAX];
    const size_t row_bytes = row_bytes_max(fill);
    uint32_t started = 0;
    sigset_t all, before; /* signals belong to the process's main loop */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (started < threads && started < THREADS_MAX) {
        struct worker *worker = &workers[started];
        *worker = (struct worker){.fill = fill, .row = malloc(row_bytes)};
        if (!worker->row || pthread_create(&worker->id, NULL, worker_main, worker) != 0) {
            free(worker->row);
            break;
        }
        started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    status_t st;
    if (started == 0) {
        diag_set(diag, "no thread, or no memory for one, to load weights");
        st = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    } else {
        st = send_windows(fill, kernels, device);
        if (failed(st)) { diag_set(diag, "the device failed while the weights were copied to it"); }
    }
    pthread_mutex_lock(&fill->mutex);
    fill->stop = true;
    pthread_cond_broadcast(&fill->opened);
    pthread_mutex_unlock(&fill->mutex);
    for (uint32_t i = 0; i < started; i++) {
        pthread_join(workers[i].id, NULL);
        free(workers[i].row);
    }
    return st;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static void point_at_device(struct model_weights *weights, const struct fill *fill)
{
    for (uint32_t p = 0; p < fill->place_count; p++) {
        const struct place *place = &fill->places[p];
        *place->dest = place->tensor;
        place->dest->data = (const uint8_t *)weights->storage->device + place->offset;
        if (place->is_matrix) { place->dest->matrix.data = place->dest->data; }
    }
    /* A tied head is the embedding; its description has been copied already. */
    if (!weights->head.data) { weights->head = weights->embedding; }
}

status_t device_weights_fill(struct model_weights *weights, struct kernels *kernels, uint32_t threads, struct diag *diag)
{
    struct model_weights_storage *storage = weights->storage;
    CHECK(!storage->device);
    const uint64_t start_ns = clock_now_ns();
    struct fill fill = {.mutex = PTHREAD_MUTEX_INITIALIZER, .opened = PTHREAD_COND_INITIALIZER, .finished = PTHREAD_COND_INITIALIZER};
    void *device = NULL, *pieces[2] = {NULL, NULL};
    status_t st = fill_plan(weights, &fill, diag);
    if (failed(st)) { goto done; }
    st = kernels_buffer_alloc(kernels, fill.total_bytes, &device, diag);
    if (failed(st)) {
        diag_prefix(diag, "%.1f GB of weights", (double)fill.total_bytes * 1e-9);
        goto done;
    }
    for (int i = 0; i < 2 && !failed(st); i++) {
        st = kernels_pinned_alloc(kernels, fill.piece_bytes, &pieces[i], diag);
        fill.pieces[i] = pieces[i];
    }
    if (failed(st)) { goto done; }
    st = run_fill(&fill, kernels, threads > 0 ? threads : 1, device, diag);
    if (failed(st)) { goto done; }
    storage->kernels = kernels;
    storage->device = device;
    storage->device_bytes = fill.total_bytes;
    device = NULL;
    point_at_device(weights, &fill);
    weights->device_bytes = fill.total_bytes;
    snprintf(weights->note, sizeof weights->note, "on the device: %.2f GB in %.2f s", (double)fill.total_bytes * 1e-9,
             (double)(clock_now_ns() - start_ns) * 1e-9);
    safetensors_close(storage->checkpoint); /* everything is copied */
    storage->checkpoint = NULL;
done:
    for (int i = 0; i < 2; i++) { kernels_pinned_free(kernels, pieces[i], fill.piece_bytes); }
    if (device) { kernels_buffer_free(kernels, device, fill.total_bytes); }
    fill_free(&fill);
    return st;
}

uint64_t device_weights_bytes(const struct model_weights *weights)
{
    const struct model_weights_storage *storage = weights->storage;
    uint64_t bytes = 0;
    if (storage->device) { return storage->device_bytes; }
    for (uint32_t i = 0; i < storage->plan.count; i++) {
        const struct tensor_plan_entry *entry = &storage->plan.entries[i];
        const struct model_tensor *tensor = entry->dest[0];
        const uint64_t one = model_weights_entry_is_matrix(entry, weights) ? kernels_matrix_bytes(&tensor->matrix)
                                                                           : (uint64_t)tensor->rows * tensor->cols * dtype_bytes(tensor->dtype);
        bytes += one * entry->dest_count;
    }
    return bytes;
}

static void forget(struct model_tensor *tensor) { tensor->data = tensor->matrix.data = NULL; }

void device_weights_drop(struct model_weights *weights)
{
    struct model_weights_storage *storage = weights->storage;
    if (!storage->device) { return; }
    for (uint32_t i = 0; i < storage->plan.count; i++) {
        for (uint32_t d = 0; d < storage->plan.entries[i].dest_count; d++) { forget(storage->plan.entries[i].dest[d]); }
    }
    forget(&weights->head);
    kernels_buffer_free(storage->kernels, storage->device, storage->device_bytes);
    storage->device = NULL;
    storage->kernels = NULL;
    weights->device_bytes = 0;
}
