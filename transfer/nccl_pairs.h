/* nccl_pairs: decides which links may have an NCCL pair (a two-rank communicator with its slots),
 * so that a node's pairs stay within a number and a size of memory. Facts in, wishes out.
 * Flow:    cable_nccl or simulator -> fact -> [nccl_pairs] -> wishes -> cable_nccl or simulator
 * Thread:  one; pure: reads no clock, heap or log. Every fact brings its time, which never goes back.
 * Memory:  one carve, given by the caller, sized by nccl_pairs_bytes().
 *
 * Both ends of a link have a table of their own. P wants a pair (nccl_pairs_want), D is asked for one
 * (nccl_pairs_ask) and may say no. Nobody waits for a pair: until one is up the link's other cable
 * carries the transfers.
 *
 *   pair   FREE -> OPENING -> UP -> CLOSING -> FREE       OPENING -> FREE: denied by D, nothing was made
 *          OPENING -> CLOSING: it broke, or its link went  CLOSING -> STUCK: its abort does not end
 *
 * A pair is a slot 0 .. pairs_max-1 of this table and outlives its link: a link slot is used anew at
 * once, while the pair it had is still being aborted and its memory still taken. The caller keeps its own
 * data of a pair under the same number. A link has at most one pair that is OPENING or UP; those that
 * are CLOSING or STUCK behind it hold up nothing but the room they take, except that D gives a link no
 * pair while one of its own is CLOSING: else one P could have all of them.
 *
 * Room. A pair is reserved at its slots plus nccl_bytes_expected: the largest of the last eight that
 * were measured, nccl_bytes_first before. When it is up it is charged what was measured. Where there is
 * no room, the least recently used pair is closed for the hottest link that waits: one that carries
 * nothing, has been up for NCCL_PAIRS_UP_MIN_NS, and was either not used for NCCL_PAIRS_IDLE_NS or last
 * used before the waiting link's last transfer but one (the rule of LRU-2; plain LRU would let each of
 * many rare links throw out a busy one). Every change costs a communicator at both ends, so there are at
 * most NCCL_PAIRS_CHANGES at once and then one each NCCL_PAIRS_CHANGE_NS: where more links are used alike
 * than there is room for, those that have a pair keep it, rather than all of them a new one for each
 * transfer.
 *
 * Source   LRU-K: O'Neil, O'Neil and Weikum, "The LRU-K page replacement algorithm", SIGMOD 1993 */
#ifndef BATON_TRANSFER_NCCL_PAIRS_H
#define BATON_TRANSFER_NCCL_PAIRS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NCCL_PAIRS_NONE UINT32_MAX

#define NCCL_PAIRS_UP_MIN_NS UINT64_C(1000000000)       /* up for less: not closed for another */
#define NCCL_PAIRS_IDLE_NS UINT64_C(10000000000)        /* unused for so long: closed for anybody */
#define NCCL_PAIRS_CHANGES 4u                           /* closed for others at once; then one each */
#define NCCL_PAIRS_CHANGE_NS UINT64_C(5000000000)
#define NCCL_PAIRS_WAIT_NS UINT64_C(5000000000)         /* a link that waits and is not heard of: forgotten */
#define NCCL_PAIRS_PAUSE_MIN_NS UINT64_C(1000000000)    /* after a failure; doubles */
#define NCCL_PAIRS_PAUSE_MAX_NS UINT64_C(60000000000)
#define NCCL_PAIRS_STEADY_NS UINT64_C(60000000000)      /* up for so long: the next failure is the first again */

/* What a communicator of two ranks takes for each channel, before one was measured: 52 MB at 8 channels and
 * 100 MB at 16 are known of NCCL 2.2x; half as much again, since too low is worse than too high. */
#define NCCL_PAIRS_CHANNEL_BYTES (UINT64_C(10) << 20)

struct nccl_pairs_config {
    uint32_t links_max;        /* links are slots 0 .. links_max-1, the endpoint's */
    uint32_t pairs_max;        /* at least 1; OPENING, UP, CLOSING and STUCK together */
    uint64_t memory_max;       /* bytes of the device for all of them */
    uint64_t nccl_bytes_first; /* expected of a communicator before one was measured, without slots */
};

enum nccl_pairs_wish_kind {
    /* Make a pair for `link` under the number `pair`. P: send OPEN, and make it when D says OPENED. D: make
     * it and say OPENED. Then up, broke or (P) denied must come. */
    NCCL_PAIRS_OPEN,
    /* End `pair`: nccl_pair_end, and tell the peer where it does not know. ended() must come, also when
     * there was nothing to end (P before OPENED): then at once. `link` is the one it was for; with
     * NCCL_PAIRS_GONE that link is no more. */
    NCCL_PAIRS_CLOSE,
};

enum nccl_pairs_reason {
    NCCL_PAIRS_FOR_ROOM, /* another link needs the room: the peer is told CLOSE */
    NCCL_PAIRS_BROKE,    /* broke() */
    NCCL_PAIRS_PEER,     /* peer_closed() */
    NCCL_PAIRS_GONE,     /* link_gone() */
    NCCL_PAIRS_OVERRUN,  /* it took more than was reserved, and that is above memory_max: the peer is told CLOSE */
};

struct nccl_pairs_wish {
    enum nccl_pairs_wish_kind kind;
    uint32_t link, pair;
    enum nccl_pairs_reason reason; /* of CLOSE */
};

/* Carried out in order, from the first, while more are added: facts told meanwhile may use the same list. */
struct nccl_pairs_wishes {
    struct nccl_pairs_wish *wishes;
    uint32_t count, count_max;
};
/* Enough for any one fact and the facts that its wishes lead to at once. */
#define NCCL_PAIRS_WISHES_FOR(config) (8u + 2u * (config)->links_max + 2u * (config)->pairs_max)

enum nccl_pairs_answer {
    NCCL_PAIRS_IS_UP,
    NCCL_PAIRS_IS_OPENING, /* also when the wish to open it was just made */
    NCCL_PAIRS_NO_ROOM,    /* not now; the link waits in line */
    NCCL_PAIRS_PAUSED,     /* after a failure, or D said when to ask again */
    NCCL_PAIRS_TOO_LARGE,  /* one pair alone is above memory_max */
};
/* For logs: "up", "opening", "no room", "paused", "too large". */
const char *nccl_pairs_answer_name(enum nccl_pairs_answer answer);

struct nccl_pairs;

size_t nccl_pairs_bytes(const struct nccl_pairs_config *config);
/* memory  [nccl_pairs_bytes], zeroed, aligned to 16. Borrows it for good. Copies config. */
struct nccl_pairs *nccl_pairs_init(void *memory, const struct nccl_pairs_config *config);

/* ---- links */

/* `link` is now a link to the peer `identity`: a hash of its node id and boot epoch, so that a restarted
 * peer starts without the pause that the one before it earned, and one that just dials again does not. */
void nccl_pairs_link(struct nccl_pairs *pairs, uint32_t link, uint64_t identity, uint64_t now_ns);
/* It is closed; the slot may be used again at once. Its pair, if it has one, is to be closed. A link that
 * was never named is ignored. */
void nccl_pairs_link_gone(struct nccl_pairs *pairs, uint32_t link, uint64_t now_ns, struct nccl_pairs_wishes *ret);

/* P: a transfer is about to start on `link`, once each: also while its pair is up, which counts as use.
 * slots_bytes: of a pair of this link. The wish to open comes now or later, when there is room. */
enum nccl_pairs_answer nccl_pairs_want(struct nccl_pairs *pairs, uint32_t link, uint64_t slots_bytes, uint64_t now_ns,
                                       struct nccl_pairs_wishes *ret);
/* D: P's OPEN came. IS_OPENING: there is a wish to open it, now. Else nothing is opened and *ret_retry_ns is how
 * long P should wait before it asks again; a place in line is kept for NCCL_PAIRS_WAIT_NS. The caller asks
 * only where the link has no pair that is OPENING or UP: an OPEN of a later gen ends the one before
 * (nccl_pairs_peer_closed). */
enum nccl_pairs_answer nccl_pairs_ask(struct nccl_pairs *pairs, uint32_t link, uint64_t slots_bytes, uint64_t now_ns,
                                      uint64_t *ret_retry_ns, struct nccl_pairs_wishes *ret);

/* ---- pairs. Of one that is CLOSING or STUCK, up, broke and peer_closed are ignored: they crossed the wish. */

/* nccl_bytes: of the device, that the communicator took, without slots; 0: not known. It is believed only
 * where no other pair was opening or closing meanwhile: the measure is of the whole device. */
void nccl_pairs_up(struct nccl_pairs *pairs, uint32_t pair, uint64_t nccl_bytes, uint64_t now_ns,
                   struct nccl_pairs_wishes *ret);
/* One more, or one less, transfer or frame is on it. A pair that is busy is not closed for another. One that
 * is CLOSING or STUCK may count down still. */
void nccl_pairs_busy(struct nccl_pairs *pairs, uint32_t pair, int change, uint64_t now_ns);
/* It failed, here or at the peer's. The link pauses: 1 s, doubling. */
void nccl_pairs_broke(struct nccl_pairs *pairs, uint32_t pair, uint64_t now_ns, struct nccl_pairs_wishes *ret);
/* P: D said no to OPEN; nothing was made here. The link pauses for retry_ns (at least 100 ms, at most
 * NCCL_PAIRS_PAUSE_MAX_NS), and not longer the next time. */
void nccl_pairs_denied(struct nccl_pairs *pairs, uint32_t pair, uint64_t retry_ns, uint64_t now_ns,
                       struct nccl_pairs_wishes *ret);
/* The peer closed it. One that was up: for room; no failure, no pause. One that was not: a failure as any
 * other, for a peer that asks and gives up costs a communicator each time. */
void nccl_pairs_peer_closed(struct nccl_pairs *pairs, uint32_t pair, uint64_t now_ns, struct nccl_pairs_wishes *ret);
/* The answer to CLOSE: its memory is free. Also of one that was called stuck. */
void nccl_pairs_ended(struct nccl_pairs *pairs, uint32_t pair, uint64_t now_ns, struct nccl_pairs_wishes *ret);
/* The end of a CLOSING pair is overdue. Its slot and bytes stay taken, perhaps for good, and nobody waits for them. */
void nccl_pairs_stuck(struct nccl_pairs *pairs, uint32_t pair, uint64_t now_ns, struct nccl_pairs_wishes *ret);

/* At least every 250 ms while nccl_pairs_stats()->waiting > 0: a pair may have come of age to be closed. */
void nccl_pairs_tick(struct nccl_pairs *pairs, uint64_t now_ns, struct nccl_pairs_wishes *ret);

/* ---- what it knows */

/* The link's pair that is OPENING or UP, or NCCL_PAIRS_NONE. */
uint32_t nccl_pairs_of(const struct nccl_pairs *pairs, uint32_t link);

struct nccl_pairs_stats {
    uint32_t opening, up, closing, stuck, waiting; /* now */
    uint64_t memory_bytes;        /* now: counted, reserved or charged, stuck ones included */
    uint64_t memory_bytes_most;   /* ever */
    uint64_t nccl_bytes_expected; /* now: of the next communicator */
    uint64_t opened, came_up, closed_for_room, broke, denied, no_room, overran; /* denied: by D; no_room: answers */
};
const struct nccl_pairs_stats *nccl_pairs_stats(const struct nccl_pairs *pairs);

/* Scans everything; false breaks an invariant:
 * - OPENING + UP + CLOSING + STUCK <= pairs_max;
 * - memory_bytes is the sum over the pairs; it is at most memory_max, but for what a communicator took beyond
 *   its reserve: a pair whose excess is above memory_max is CLOSING or STUCK, never UP;
 * - a link has at most one pair OPENING or UP, and that pair has no other link. */
bool nccl_pairs_audit(const struct nccl_pairs *pairs);

#endif
