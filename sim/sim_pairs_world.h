/* sim_pairs_world: what the two files of sim_pairs share: the world, its queue of events, and the cable's ends. */
#ifndef BATON_SIM_SIM_PAIRS_WORLD_H
#define BATON_SIM_SIM_PAIRS_WORLD_H

#include <stddef.h>

#include "base/clock.h"
#include "base/rng.h"
#include "sim/event_heap.h"
#include "sim/sim_pairs.h"
#include "transfer/nccl_pairs.h"

#define MS (NS_PER_S / 1000)
#define NOBODY UINT32_MAX

#define DELAY_NS (20 * MS)            /* of a message, at most */
#define DELAY_SLOW_NS (1 * NS_PER_S)  /* on one link in eight: where messages cross that seldom do */
#define INIT_NS (15 * NS_PER_S)       /* then a communicator that is not up is given up */
#define STALL_NS (5 * NS_PER_S)       /* then a frame that does not move is */
#define STUCK_NS (5 * NS_PER_S)       /* then an abort is called stuck */
#define COME_UP_MIN_NS (200 * MS)
#define COME_UP_MAX_NS (3 * NS_PER_S)
#define FRAME_MAX_NS (50 * MS)
#define HOT_MAX 8u

enum { P, D };

enum event_kind {
    EV_TRAFFIC, EV_SHIFT, EV_FAULT, EV_JOIN, EV_GO, EV_TICK, EV_LINK_UP, EV_LINK_GONE, EV_MESSAGE, EV_COMPARE,
    /* of a pair */
    EV_PAIR_UP, EV_PAIR_BREAKS, EV_INIT_LATE, EV_ENDED, EV_OVERDUE, EV_FRAME_PASSED, EV_FRAME_LATE
};

enum message_kind { MSG_OPEN, MSG_OPENED, MSG_DENIED, MSG_UP, MSG_SEND, MSG_READY, MSG_CLOSE, MSG_BROKEN };

struct event {
    uint64_t at_ns, order;
    enum event_kind kind;
    uint32_t node, pair, link;
    uint64_t life, turn; /* of the node, of the pair: who has another by now does not hear of it */
    uint64_t gen;        /* of a message */
    int side;
    enum message_kind message;
    uint32_t comm, transfer;
    uint64_t value;
};

/* One end of a pair: the cable's data under the number of the table's pair. */
enum end_stage { END_NONE, END_ASKED /* P: OPEN is out, nothing made */, END_MADE, END_ENDING };
struct end {
    enum end_stage stage;
    uint64_t gen, turn; /* turn: of this number, in the whole world */
    uint32_t link, comm;
    bool is_up, peer_is_up, never_ends, is_overdue, was_used, told; /* told: the peer said CLOSE or BROKEN, and is not told */
    uint64_t asked_ns, up_ns, used_ns, busy;
    uint64_t holds_bytes; /* of the device, now */
    int64_t device_bytes; /* of the whole node when it began: what NCCL's user can measure from */
    uint32_t first_transfer;
};

struct comm { bool begun[2], ended[2]; uint64_t fate; uint32_t node[2], pair[2]; uint64_t life[2]; uint64_t begun_ns; };

struct transfer { uint32_t link, next, frames; uint64_t began_ns, frame; bool over; };

struct link_of_two {
    uint32_t node[2], slot[2];
    uint64_t life[2];
    bool is_up[2];
    uint64_t delay_ns;
    uint64_t arrives_ns[2]; /* the last message's, to P, to D: they stay in order */
    uint64_t pause_until_ns[2]; /* after a failure there */
    uint64_t asked_gen;
    uint32_t asked_comm;
    uint32_t waiting; /* transfers that wait for the link itself */
};

struct node {
    int side;
    bool is_alive, is_leaving, ticks;
    uint64_t life, gens;
    uint64_t changed_ns; /* when it last closed a pair for another */
    uint32_t links_max;
    uint32_t *slots; /* [links_max] link of a slot, or NOBODY */
    struct nccl_pairs *pairs;
    void *memory;
    struct nccl_pairs_wishes wishes;
    struct end *ends; /* [pairs_max] */
    int64_t device_bytes;
    uint32_t hot[HOT_MAX];
};

struct world {
    struct sim_pairs_options options; /* filled in */
    struct rng rng;
    uint64_t now_ns, turns;
    bool is_over, is_even; /* even: NCCL never takes more than it was thought to */
    struct event_heap heap;
    uint32_t node_count;
    struct node *nodes; /* P first */
    struct link_of_two *links;
    struct comm *comms;
    struct transfer *transfers;
    uint32_t link_count, comm_count, transfer_count, link_room, comm_room, transfer_room;
    struct sim_pairs_result result;
};

/* sim_pairs.c */
_Noreturn void pairs_fail(struct world *world, const char *format, ...) __attribute__((format(printf, 2, 3)));
void pairs_trace(struct world *world, const char *format, ...) __attribute__((format(printf, 2, 3)));
struct event *pairs_at(struct world *world, uint64_t at_ns, enum event_kind kind);
uint64_t pairs_below(struct world *world, uint64_t bound);
uint64_t pairs_between(struct world *world, uint64_t from_ns, uint64_t to_ns);
/* After every fact that a node's table was told: carries its wishes out, then checks the node. */
void pairs_settle(struct world *world, uint32_t node);
void pairs_link_gone(struct world *world, uint32_t link, int side);
void *pairs_grow(void *array, uint32_t *room, uint32_t count, size_t bytes);

/* sim_pairs_end.c: the cable */
void end_wishes(struct world *world, uint32_t node);
void end_message(struct world *world, const struct event *event);
void end_event(struct world *world, const struct event *event);
void end_transfer(struct world *world, uint32_t link);
bool end_is_ready(const struct end *end);
void end_no_room(struct world *world, uint32_t node);

#endif
