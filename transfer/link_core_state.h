/* link_core_state: what the files of the link core share: its tables, and the moves between them.
 * Flow:    link_core (links, time), link_core_grant (D), link_core_send (P), link_core_message
 * Thread:  one, as link_core.h says.
 * Memory:  the core's carve. */
#ifndef BATON_TRANSFER_LINK_CORE_STATE_H
#define BATON_TRANSFER_LINK_CORE_STATE_H

#include "transfer/link_core.h"

enum link_state { LS_FREE, LS_WAIT_HELLO, LS_WAIT_CABLE, LS_READY };

struct core_link {
    enum link_state state;
    bool is_sender; /* we are P on it */
    bool is_suspect;
    char address[KV_ADDRESS_CHARS_MAX + 1]; /* P: as dialled */
    char peer_id[KV_NODE_ID_CHARS_MAX + 1];
    uint64_t peer_epoch;
    uint64_t since_ns, heard_ns, sent_ns;
};

enum grant_state {
    GS_FREE,
    GS_GRANTED,    /* waits for a begin */
    GS_RECEIVING,  /* waits for slices and the commit */
    GS_COMMITTED,  /* waits for the last slices */
    GS_QUARANTINE, /* over, but the cable has not said that nothing can land any more */
};

struct core_grant {
    enum grant_state state;
    kv_xfer_id_t xfer_id;
    uint64_t grant_epoch;
    uint8_t secret[KV_SECRET_BYTES];
    uint32_t block_count;
    uint32_t link;
    uint64_t lease_ns;
    uint64_t deadline_ns;
    uint64_t landed; /* slices, checked */
    uint64_t *taken; /* [layer][block] bits: accepted by frame_accept */
    /* QUARANTINE: why; code OK means that we revoked it ourselves. */
    status_t end_status;
    const char *end_text;
    bool end_told;       /* FAILED without a fence was sent */
    bool end_answer_due; /* the peer waits for our ABORT_ACK */
};

enum send_state {
    SS_FREE,
    SS_WAIT_LINK, /* waits for the link to be ready */
    SS_BEGUN,     /* waits for begin_ack */
    SS_STREAMING, /* waits for the node's commit */
    SS_COMMITTED, /* waits for the ack */
    SS_ABORTING,  /* waits for abort_ack */
};

struct core_send {
    enum send_state state;
    kv_xfer_id_t xfer_id;
    uint64_t grant_epoch;
    uint32_t link;
    bool commit_asked;
    uint64_t deadline_ns;
    status_t end_status; /* ABORTING: why */
    const char *end_text;
};

/* What we remember of a peer that failed: until when nobody dials it. */
struct suspicion {
    char node_id[KV_NODE_ID_CHARS_MAX + 1];
    uint64_t boot_epoch;
    uint64_t until_ns, span_ns; /* span 0: unused */
};

struct link_core {
    struct link_core_config config;
    struct core_link *links;
    struct core_grant *grants;
    struct core_send *sends;
    struct suspicion *suspicions; /* [links_max] */
    size_t grant_words;           /* of one bitmap */
    uint64_t ticked_ns;
    struct kv_endpoint_stats stats;
};

static inline uint64_t link_core_grant_slices(const struct link_core *core, const struct core_grant *grant)
{
    return (uint64_t)grant->block_count * core->config.layer_count;
}

/* ---- link_core.c: wishes */
/* One more wish, zeroed but for these; the caller fills in the rest. */
struct link_wish *link_core_wish(struct link_wishes *ret, enum link_wish_kind kind, uint32_t link);
struct link_wish *link_core_wish_send(struct link_core *core, struct link_wishes *ret, uint32_t link,
                                      enum link_msg_kind kind, uint64_t now_ns);
void link_core_wish_answer(struct link_core *core, struct link_wishes *ret, uint32_t link, enum link_msg_kind kind,
                           kv_xfer_id_t xfer_id, uint64_t grant_epoch, status_t status, uint64_t now_ns);
struct link_wish *link_core_wish_event(struct link_wishes *ret, enum kv_event_kind event, uint32_t slot,
                                       kv_xfer_id_t xfer_id, uint64_t grant_epoch);

/* ---- link_core.c: links */
/* NULL: nothing is held against it. */
struct suspicion *link_core_suspicion_find(struct link_core *core, const char *node_id, uint64_t boot_epoch);
/* Every grant and send on it ends; what was begun is fenced first. text: static, or the caller's
 * until its wishes are carried out. suspicious: P does not dial that peer again for a while. */
void link_core_link_close(struct link_core *core, uint32_t link_slot, status_t status, const char *text, bool suspicious,
                          uint64_t now_ns, struct link_wishes *ret);

/* ---- link_core_grant.c */
/* Ends a grant that cannot land; tell_peer sends P an abort. */
void link_core_grant_quarantine(struct link_core *core, struct core_grant *grant, status_t status, const char *text,
                                bool tell_peer, uint64_t now_ns, struct link_wishes *ret);
/* The end of a quarantine: nothing can land any more, and the slot is free. */
void link_core_grant_finish(struct link_core *core, struct core_grant *grant, uint64_t now_ns, struct link_wishes *ret);
void link_core_grant_message(struct link_core *core, uint32_t link, const struct link_msg *msg, uint64_t now_ns,
                             struct link_wishes *ret);

/* ---- link_core_send.c */
/* event: ACKED or SEND_FAILED. The slot is free afterwards. */
void link_core_send_finish(struct link_core *core, struct core_send *send, enum kv_event_kind event, status_t status,
                           const char *text, struct link_wishes *ret);
void link_core_send_do_begin(struct link_core *core, struct core_send *send, uint64_t now_ns, struct link_wishes *ret);
/* Tells D and waits for its word; one that never left ends at once. */
void link_core_send_give_up(struct link_core *core, struct core_send *send, status_t status, const char *text,
                            uint64_t now_ns, struct link_wishes *ret);
void link_core_send_message(struct link_core *core, uint32_t link, const struct link_msg *msg, uint64_t now_ns,
                            struct link_wishes *ret);

#endif
