/* forger: a prefill node made by hand, which can say on the link and the cable what no honest
 * one says. Only for tests.
 * Thread:  the test's; all calls block. */
#ifndef BATON_TESTS_CONFORMANCE_FORGER_H
#define BATON_TESTS_CONFORMANCE_FORGER_H

#include "transfer/link_msg.h"

struct forger {
    int link_fd, cable_fd;
    struct kv_layout layout;
    struct kv_endpoint_pool pool; /* our slices */
    uint8_t *view;                /* the same, as we see them */
    struct forger_ucx *ucx;
    struct forger_nccl *nccl;
    struct kv_ticket ticket;
    struct link_hello_ack ack;
};

/* Dials D as the ticket says and says hello. layers, heads, dim as D's peer was started. */
void forger_open(struct forger *forger, const char *ticket_hex, const struct kv_layout *layout);
/* Opens the cable with this token. False: D closed it. */
bool forger_cable(struct forger *forger, const char *cable, const uint8_t token[KV_CABLE_TOKEN_BYTES]);
void forger_close(struct forger *forger);

/* A message about the ticket's transfer, with these fields. */
void forger_say(struct forger *forger, enum link_msg_kind kind, struct link_xfer xfer);
/* Any message. */
void forger_send(const struct forger *forger, const struct link_msg *msg);
/* The next message, whatever it is; false: the link ended. */
bool forger_hear_any(struct forger *forger, struct link_msg *ret_msg);
/* The next message other than a heartbeat or a cable's; false: the link ended. */
bool forger_hear(struct forger *forger, struct link_msg *ret_msg);

/* One frame whose slices hold the pattern of `seed`; crc_xor 0 for true checksums. False: the
 * cable is closed. */
bool forger_frame(struct forger *forger, const char *cable, const struct kv_frame *frame, uint64_t seed, uint32_t crc_xor);

#endif
