#include "sim/event_heap.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

struct when { uint64_t at_ns, order; };

static bool is_before(const void *a_, const void *b_)
{
    struct when a, b;
    memcpy(&a, a_, sizeof a);
    memcpy(&b, b_, sizeof b);
    return a.at_ns != b.at_ns ? a.at_ns < b.at_ns : a.order < b.order;
}

void *event_heap_get(const struct event_heap *heap, size_t index) { return heap->events + index * heap->event_bytes; }

static void move(struct event_heap *heap, size_t to, size_t from)
{
    memcpy(event_heap_get(heap, to), event_heap_get(heap, from), heap->event_bytes);
}

void *event_heap_add(struct event_heap *heap, const void *event)
{
    if (heap->count == heap->room) {
        heap->room = heap->room ? heap->room * 2 : 256;
        heap->events = realloc(heap->events, heap->room * heap->event_bytes);
        CHECK(heap->events != NULL);
    }
    struct when when;
    memcpy(&when, event, sizeof when);
    when.order = ++heap->order;
    size_t at = heap->count++;
    while (at > 0 && is_before(&when, event_heap_get(heap, (at - 1) / 2))) {
        move(heap, at, (at - 1) / 2);
        at = (at - 1) / 2;
    }
    void *place = event_heap_get(heap, at);
    memcpy(place, event, heap->event_bytes);
    memcpy(place, &when, sizeof when);
    return place;
}

void event_heap_take(struct event_heap *heap, void *ret_event)
{
    CHECK(heap->count > 0);
    memcpy(ret_event, heap->events, heap->event_bytes);
    heap->count--;
    const void *last = event_heap_get(heap, heap->count);
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= heap->count) { break; }
        if (child + 1 < heap->count && is_before(event_heap_get(heap, child + 1), event_heap_get(heap, child))) { child++; }
        if (!is_before(event_heap_get(heap, child), last)) { break; }
        move(heap, at, child);
        at = child;
    }
    if (at != heap->count) { memcpy(event_heap_get(heap, at), last, heap->event_bytes); }
}

void event_heap_fini(struct event_heap *heap) { free(heap->events); }
