/* slow_cable: a cable that warms up, led by a test: its frames travel as messages of the link, and it is ready,
 * holds frames back and breaks when the test says so. Both sides live in one process, so D copies out of P's pool.
 * Thread:  the transfer threads of the two sides; the calls below from the test's.
 * Memory:  tables of fixed size. */
#ifndef BATON_TESTS_UNIT_TRANSFER_SLOW_CABLE_H
#define BATON_TESTS_UNIT_TRANSFER_SLOW_CABLE_H

#include "transfer/transfer.h"

extern const struct kv_cable_ops slow_cable;

enum { SLOW_P, SLOW_D };

/* Before the endpoints are made. */
void slow_cable_reset(void);
/* P: whether a send that starts from now on may use it. Once it may, D hears that it is up. */
void slow_cable_set_ready(bool is_ready);
/* D: frames that come are kept, or those kept are placed. */
void slow_cable_set_held(bool is_held);
/* The connections of a side break: on P with all pushes given back, on D with frames thrown away; the other side is
 * told if `tells`. Waits until it has happened. */
void slow_cable_break(int side, bool tells);
/* P says this to D's cable of the same name. Waits. */
void slow_cable_mutter(int side);

/* What was asked of it so far. */
struct slow_counts { uint32_t connects, asks, pushes, aborts, fences[2], heard[2], held; int used[2]; };
struct slow_counts slow_cable_counts(void);

#endif
