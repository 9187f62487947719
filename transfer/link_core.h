/* link_core: decides who may write into which grant, when a transfer is complete and when a
 * peer is dead. Facts in, wishes out.
 * Flow:    endpoint or simulator -> fact -> [link_core] -> wishes -> endpoint or simulator
 * Thread:  one; pure: reads no clock, socket or heap. Every fact brings its time.
 * Memory:  one carve, given by the caller, sized by link_core_bytes().
 *
 * One core holds both halves. As D it owns grants: slots that map (xfer_id, grant_epoch) to a
 * run of block indices and a bitmap of the slices that came. As P it owns sends. Slot numbers
 * of links, grants and sends are the caller's (its tables have the same length), so the caller
 * finds its own data by the same number.
 *
 *   link   D: WAIT_HELLO -> WAIT_CABLE -> READY      P: WAIT_HELLO -> WAIT_CABLE -> READY
 *          any -> FREE by loss, refusal, silence of dead_ns, or a setup longer than connect_ns
 *   grant  GRANTED -> RECEIVING -> COMMITTED -> FREE (landed)
 *          any -> QUARANTINE -> FREE (fenced)
 *   send   WAIT_LINK -> BEGUN -> STREAMING -> COMMITTED -> FREE (acked)
 *          any -> ABORTING -> FREE */
#ifndef BATON_TRANSFER_LINK_CORE_H
#define BATON_TRANSFER_LINK_CORE_H

#include "transfer/link_msg.h"

#define LINK_NONE UINT32_MAX

struct link_core_config {
    char node_id[KV_NODE_ID_CHARS_MAX + 1];
    uint64_t boot_epoch;
    uint8_t fingerprint[KV_FINGERPRINT_WIRE_BYTES];
    uint32_t layer_count;
    uint64_t slice_bytes;
    uint32_t links_max, grants_max, grant_blocks_max, sends_max;
    uint64_t heartbeat_ns, suspect_ns, dead_ns, connect_ns, stall_ns;
    uint64_t suspicion_min_ns, suspicion_max_ns; /* time to live of a suspicion: doubles */
};

enum link_wish_kind {
    /* Open a stream to `address` for `link`, a slot the caller named in send_begin. */
    LINK_WISH_DIAL,
    /* Send msg_kind on `link`. Of P, ABORT and ABORT_ACK mean "from here on none of my bytes can
     * land": with a one-sided cable the caller holds them back until its puts are over. HELLO and HELLO_ACK: the caller writes them; the code of the
     * latter is `status`. BEGIN and COMMIT are about `slot` (a send); the rest carry xfer_id,
     * grant_epoch and status. */
    LINK_WISH_SEND,
    /* P: connect a cable of the hello_ack that just came. */
    LINK_WISH_CONNECT_CABLE,
    /* The message that just came is for a cable of `link`, which is being set up or ready. */
    LINK_WISH_CABLE_MESSAGE,
    /* Close stream and cable of `link` by force; the slot is free afterwards. Whatever that
     * peer was writing is fenced when this is done. */
    LINK_WISH_CLOSE_LINK,
    /* D: the cable may land slices of grant `slot`. */
    LINK_WISH_CABLE_GRANT,
    /* D: no longer. Answer with link_core_fence_answer(). */
    LINK_WISH_CABLE_REVOKE,
    /* P: hand the pushes of send `slot` to the cable from now on. */
    LINK_WISH_STREAM,
    /* P: drop the pushes of send `slot`. */
    LINK_WISH_DROP,
    /* Tell the node. `link` is the one it was about, perhaps closed by now, or LINK_NONE. The slot is free after LANDED, FENCED, FAILED with fenced, ACKED and
     * SEND_FAILED. */
    LINK_WISH_EVENT,
};

struct link_wish {
    enum link_wish_kind kind;
    uint32_t link;
    uint32_t slot;
    enum link_msg_kind msg_kind;
    enum kv_event_kind event;
    kv_xfer_id_t xfer_id;
    uint64_t grant_epoch;
    status_t status;
    bool fenced;
    const char *text;    /* static, or "" */
    const char *address; /* DIAL: borrows from the core */
};

/* Carried out in order. count_max wishes fit; LINK_WISHES_FOR is enough for any one fact and
 * the answers to its wishes. */
struct link_wishes {
    struct link_wish *wishes;
    uint32_t count, count_max;
};
#define LINK_WISHES_FOR(config) \
    (16u + 4u * (config)->links_max + 5u * (config)->grants_max + 5u * (config)->sends_max)

struct link_core;

size_t link_core_bytes(const struct link_core_config *config);
/* memory  [link_core_bytes], zeroed, aligned to 16. Borrows it for good. Copies config. */
struct link_core *link_core_init(void *memory, const struct link_core_config *config);

/* ---- D's facts */
/* Errors: ALREADY_EXISTS while xfer_id is live. */
NODISCARD status_t link_core_grant(struct link_core *core, uint32_t slot, kv_xfer_id_t xfer_id, uint64_t grant_epoch,
                                   const uint8_t secret[KV_SECRET_BYTES], uint32_t block_count, uint64_t lease_ns,
                                   uint64_t now_ns);
void link_core_revoke(struct link_core *core, kv_xfer_id_t xfer_id, uint64_t now_ns, struct link_wishes *ret);
void link_core_accepted(struct link_core *core, uint32_t link, uint64_t now_ns);
/* The answer to CABLE_REVOKE: true when nothing can land any more. A later true is the fence
 * of a one-sided cable. */
void link_core_fence_answer(struct link_core *core, uint32_t slot, uint64_t grant_epoch, bool fenced, uint64_t now_ns,
                            struct link_wishes *ret);
/* May these slices be placed? True marks them as taken. */
bool link_core_frame_accept(struct link_core *core, uint32_t link, const struct kv_frame *frame, uint32_t *ret_slot);
bool link_core_grant_is_live(const struct link_core *core, uint32_t slot, uint64_t grant_epoch);
void link_core_frame_landed(struct link_core *core, uint32_t slot, uint64_t grant_epoch, const struct kv_frame *frame,
                            bool crc_ok, uint64_t now_ns, struct link_wishes *ret);
/* The cable that carried it broke, and the link lives on another. A grant that is over is left alone. text: until the
 * grant's last event. */
void link_core_grant_broke(struct link_core *core, uint32_t slot, uint64_t grant_epoch, status_t status, const char *text,
                           uint64_t now_ns, struct link_wishes *ret);

/* ---- P's facts */
/* spare_link: a free link slot to dial with, or LINK_NONE. Returns the link that the send uses:
 * spare_link, another, or LINK_NONE when it failed at once. */
uint32_t link_core_send_begin(struct link_core *core, uint32_t slot, const struct kv_ticket *ticket,
                              uint32_t spare_link, uint64_t now_ns, struct link_wishes *ret);
void link_core_commit(struct link_core *core, uint32_t slot, uint64_t now_ns, struct link_wishes *ret);
/* The cable that carried it broke, and the link lives on another. text: until the send's last event. */
void link_core_send_broke(struct link_core *core, uint32_t slot, status_t status, const char *text, uint64_t now_ns,
                          struct link_wishes *ret);
void link_core_abort(struct link_core *core, uint32_t slot, uint64_t now_ns, struct link_wishes *ret);
void link_core_send_progress(struct link_core *core, uint32_t slot, uint64_t now_ns);

/* ---- facts of both */
void link_core_message(struct link_core *core, uint32_t link, const struct link_msg *msg, uint64_t now_ns,
                       struct link_wishes *ret);
void link_core_cable_up(struct link_core *core, uint32_t link, uint64_t now_ns, struct link_wishes *ret);
/* The stream or the cable broke, or the peer said something that no peer says. */
void link_core_link_lost(struct link_core *core, uint32_t link, status_t status, const char *text, uint64_t now_ns,
                         struct link_wishes *ret);
void link_core_heard(struct link_core *core, uint32_t link, uint64_t now_ns);
/* At least every heartbeat_ns / 2. A gap of more than suspect_ns between two ticks means that
 * we stood still ourselves: it is not counted against the peers. */
void link_core_tick(struct link_core *core, uint64_t now_ns, struct link_wishes *ret);

/* ---- what it knows */
bool link_core_link_is_used(const struct link_core *core, uint32_t link);
const struct kv_endpoint_stats *link_core_stats(const struct link_core *core);
/* Scans everything; false breaks an invariant that header transfer.h states. */
bool link_core_audit(const struct link_core *core);

#endif
