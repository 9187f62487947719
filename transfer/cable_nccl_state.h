/* cable_nccl_state: what the files of the nccl cable share: a link, a pair, a slot, the cable, and the moves between them.
 * Flow:    cable_nccl (ops, links), cable_nccl_pair (a pair's life), cable_nccl_send (P), cable_nccl_receive (D),
 *          cable_nccl_mail (facts of the pairs' threads)
 * Thread:  the transfer thread.
 * Memory:  tables from open on; a pair's slots when it is opened. */
#ifndef BATON_TRANSFER_CABLE_NCCL_STATE_H
#define BATON_TRANSFER_CABLE_NCCL_STATE_H

#include <pthread.h>

#include "kv/kv_memory_inbox.h"
#include "transfer/cable_nccl.h"
#include "transfer/loop.h"
#include "transfer/nccl_api.h"
#include "transfer/nccl_pair.h"
#include "transfer/nccl_pairs.h"
#include "transfer/nccl_wire.h"

#define NCCL_TICK_NS UINT64_C(100000000)
#define NCCL_LINK_GONE UINT32_MAX

enum pair_state {
    PAIR_FREE,
    PAIR_ASKED,   /* P: waits for D's OPENED */
    PAIR_GRANTED, /* D: waits for P's id */
    PAIR_MAKING,  /* waits for both ranks */
    PAIR_READY,
    PAIR_ENDING,  /* waits for ops on its slots, then for its end; perhaps for ever */
};

enum slot_state {
    SLOT_FREE,
    SLOT_GATHERING, /* P: its op is under way */
    SLOT_ASKED,     /* P: waits for READY or REFUSED */
    SLOT_SENDING,   /* P: waits until it has passed */
    SLOT_RECEIVING, /* D: the same */
    SLOT_SCATTERING, /* D: its op is under way, and its landing held */
};

/* D: what P asks to send. */
struct slot_frame {
    struct kv_frame frame;
    uint32_t crc[KV_FRAME_BLOCKS_MAX];
};

/* What the slots of a link's pairs are; both ends make the same of the two pools' layouts. */
struct nccl_shape {
    struct kv_memory_form form; /* pool: ours; slot: that of the two whose slices are smaller, of equals P's */
    bool converts;              /* they differ */
    size_t piece_bytes, slot_bytes;
    uint32_t slot_count;
};

struct pair_slot {
    struct kv_memory_op op;
    struct cable_pair *pair;
    enum slot_state state;
    uint64_t since_ns;          /* ASKED */
    size_t bytes;               /* of what lies in it */
    struct kv_cable_push *push; /* P; NULL: given back, for its send was aborted after the gather */
    struct slot_frame now;      /* D: RECEIVING, SCATTERING */
    struct kv_landing landing;
    bool has_next;              /* D: P asks while the slot is not free; it knows of its own end only */
    struct slot_frame next;
};

/* A place of nccl_pairs' table, of the same number. */
struct cable_pair {
    struct kv_cable *cable;
    uint32_t number;
    enum pair_state state;
    uint32_t link; /* NCCL_LINK_GONE: it was closed */
    bool is_sender;
    uint64_t gen;
    uint64_t since_ns; /* of the opening, then of the end */
    bool up_here, up_there;
    struct nccl_pair *pair; /* NULL: not made */
    struct nccl_shape shape; /* of its link */
    struct pair_slot *slots; /* [NCCL_SLOTS_MAX], shape.slot_count of them used */
    uint32_t ops;            /* on slots, under way */
    bool is_ended;           /* nccl_pair_end was called */
    bool is_stuck;
    uint64_t frames, bytes;
    char why[256];           /* ENDING */
};

struct nccl_link {
    bool is_known, is_sender, is_own;
    bool is_wanting;   /* P, is_own: no pair has come up yet */
    uint64_t gen_last; /* D: of P's opens */
    struct nccl_shape shape;
    uint32_t users;    /* transfers on it */
    /* P */
    struct kv_cable_push *queue_first, *queue_last;
    uint64_t starved_ns; /* since when pushes wait without a pair; 0: none do */
};

/* Where the pairs' threads leave facts. A heap object of its own: a stuck pair outlives the cable. */
#define NCCL_BOX_FACTS 16u /* ID, UP, BROKEN, ENDED, and PASSED of each slot */
struct nccl_box {
    struct nccl_mail *mail;
    struct nccl_pair_fact facts[NCCL_BOX_FACTS]; /* the mail's lock */
    uint32_t first, count;
};
struct nccl_mail {
    pthread_mutex_t lock; /* guards the boxes; held for a copy */
    int fd;               /* readable while a fact is there */
    struct nccl_box *boxes; /* [pairs_max] */
};

struct kv_cable {
    const struct kv_cable_host *host;
    const struct nccl_api *api;
    uint32_t nccl_version, channels, pairs_max;
    size_t slice_bytes; /* of the pool */
    uint64_t init_ns, stall_ns;
    uint64_t identity; /* random: of this start */
    uint64_t gen_next;
    struct nccl_link *links;  /* [links_max] */
    struct cable_pair *pairs; /* [pairs_max] */
    void *table_memory;
    struct nccl_pairs *table;
    struct nccl_pairs_wishes wishes;
    bool is_wishing;
    struct nccl_mail *mail;
    struct kv_memory_inbox inbox;
    struct kv_watch mail_watch, inbox_watch, tick_watch;
    uint32_t frames_under_way; /* P */
    uint64_t busy_since_ns;
    struct kv_nccl_stats stats; /* what the table does not count */
    char mismatch[160];
};

/* ---- cable_nccl_pair.c */
/* prefill, decode  the layouts of the pools, host's one of them */
struct nccl_shape cable_shape(const struct kv_cable_host *host, const struct kv_layout *prefill, const struct kv_layout *decode);
/* Tells the table that a transfer begins on P's link. */
enum nccl_pairs_answer cable_link_want(struct kv_cable *cable, uint32_t link);
/* The link's pair that is being made or ready; NULL: none. */
struct cable_pair *cable_pair_of(struct kv_cable *cable, uint32_t link);
/* Carries out what the table wishes; from within itself it leaves that to the outer call. */
void cable_wishes_run(struct kv_cable *cable);
/* It is of no more use: the peer is told if it does not know, the table, and last the endpoint, which may fence the
 * link: nothing of the pair may be relied on after the call. */
void cable_pair_broke(struct cable_pair *pair, status_t status, const char *text, bool tells);
/* An op on a slot failed: the pair breaks. Of one that is ending what the op was for is lost all the same, and the
 * endpoint told; it may fence the link. */
void cable_pair_op_failed(struct cable_pair *pair, status_t status, const char *text, bool loses);
void cable_pair_message(struct cable_pair *pair, const struct nccl_wire_msg *msg);
/* D: P wants a pair. */
void cable_pair_asked(struct kv_cable *cable, uint32_t link, const struct nccl_wire_msg *msg);
void cable_pair_fact(struct cable_pair *pair, const struct nccl_pair_fact *fact);
void cable_pairs_turn(struct kv_cable *cable, uint64_t now_ns);
/* Begins it: a slice of each of `blocks` and what lies in the slot. */
void cable_slot_submit(struct pair_slot *slot, enum kv_memory_op_kind kind, const struct kv_frame *frame, const uint32_t *blocks, uint64_t mark);
/* One op less on its slots. */
void cable_pair_op_done(struct cable_pair *pair);
void cable_say(struct cable_pair *pair, struct nccl_wire_msg *msg);
void cable_say_kind(struct cable_pair *pair, enum nccl_wire_kind kind);
void cable_say_slot(struct cable_pair *pair, enum nccl_wire_kind kind, const struct pair_slot *slot);

/* ---- cable_nccl_send.c, P */
void cable_sender_push(struct kv_cable *cable, uint32_t link, struct kv_cable_push *push);
void cable_sender_abort(struct kv_cable *cable, uint32_t link, uint32_t send_slot);
/* Begins to gather what waits, as far as there are slots. */
void cable_sender_pump(struct cable_pair *pair);
void cable_sender_gathered(struct pair_slot *slot);
void cable_sender_passed(struct pair_slot *slot);
void cable_sender_answered(struct pair_slot *slot, bool is_ready);
/* The pair ends. requeues: what has not left yet waits for the link's next one; else it is dropped. */
void cable_sender_end(struct cable_pair *pair, bool requeues);
void cable_sender_queue_drop(struct kv_cable *cable, uint32_t link);

/* ---- cable_nccl_receive.c, D */
/* False: no peer of ours asks that. */
bool cable_receiver_asked(struct cable_pair *pair, const struct nccl_wire_msg *msg);
void cable_receiver_passed(struct pair_slot *slot);
void cable_receiver_scattered(struct pair_slot *slot);
void cable_receiver_end(struct cable_pair *pair);

/* ---- cable_nccl_mail.c */
status_t cable_mail_create(uint32_t boxes, struct nccl_mail **ret_mail);
void cable_mail_destroy(struct nccl_mail *mail); /* takes NULL */
/* A pair's `told`, whose user is its box. */
void cable_mail_put(void *box, const struct nccl_pair_fact *fact);
/* The oldest fact of that box. */
bool cable_mail_take(struct nccl_mail *mail, uint32_t box, struct nccl_pair_fact *ret_fact);
void cable_mail_seen(struct nccl_mail *mail); /* before the boxes are looked at */

#endif
