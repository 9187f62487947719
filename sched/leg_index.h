/* leg_index: finds a leg by its id, and remembers the ids of legs that have ended.
 * Flow:    messages and transfer events -> [leg_index] -> the leg they speak of
 * Thread:  the core's.
 * Memory:  two tables taken in create; nothing afterwards.
 *
 * The memory of ended legs lets a duplicate of an old RESERVE be known as late: it would
 * otherwise hold blocks for a leg that nobody reads any more. */
#ifndef BATON_SCHED_LEG_INDEX_H
#define BATON_SCHED_LEG_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "control/ctl_msg.h"

struct leg_index;

/* live_max   legs held at once
 * ended_max  ended legs remembered, the oldest is forgotten first
 * Errors     RESOURCE_EXHAUSTED (node): no memory. */
NODISCARD status_t leg_index_create(uint32_t live_max, uint32_t ended_max, struct leg_index **ret_index);
void leg_index_destroy(struct leg_index *index); /* takes NULL */

/* The leg is not in the index, and there is room (CHECKs). Holds `leg` until removed. */
void leg_index_add(struct leg_index *index, struct leg_id id, void *leg);

/* The leg has ended: find gives NULL from now on, and is_known stays true for a while. */
void leg_index_remove(struct leg_index *index, struct leg_id id);

/* The leg was not taken; a duplicate of its message shall not be either. Not in the index (CHECK). */
void leg_index_remember(struct leg_index *index, struct leg_id id);

/* NULL: no such leg is live. */
void *leg_index_find(const struct leg_index *index, struct leg_id id);

/* Live, or ended not long ago. */
bool leg_index_is_known(const struct leg_index *index, struct leg_id id);

uint32_t leg_index_live_count(const struct leg_index *index);

#endif
