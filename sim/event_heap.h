/* event_heap: what will happen in a simulated world, the earliest first; what is due at one time, in the order in which
 * it was added, so that a seed always gives the same run.
 * Flow:    a world adds events -> [event_heap] -> its loop takes the next
 * Thread:  one.
 * Memory:  one array that grows; it ends the process where there is no more. */
#ifndef BATON_SIM_EVENT_HEAP_H
#define BATON_SIM_EVENT_HEAP_H

#include <stddef.h>
#include <stdint.h>

/* All zero but event_bytes: empty. A world's event is a struct that begins with `uint64_t at_ns, order;`. */
struct event_heap {
    size_t event_bytes, count, room;
    unsigned char *events; /* [room][event_bytes] */
    uint64_t order;        /* of the one that was added last */
};

/* Copies *event, and numbers the copy's `order`. The copy, to be filled in but for at_ns and order: valid until the next
 * call. Cost: O(log count). */
void *event_heap_add(struct event_heap *heap, const void *event);

/* Takes out the earliest; there must be one. */
void event_heap_take(struct event_heap *heap, void *ret_event);

/* Those that are in it, 0 .. count-1, in no order that means anything. Valid until the next call that changes it. */
void *event_heap_get(const struct event_heap *heap, size_t index);

/* What the events point to is the caller's. */
void event_heap_fini(struct event_heap *heap);

#endif
