/* link_msg: the messages of the link as plain values.
 * Flow:    link core -> endpoint -> [link_msg] -> link_wire -> stream, and back
 * Thread:  a plain value.
 * Memory:  pointers borrow from whoever made the message. */
#ifndef BATON_TRANSFER_LINK_MSG_H
#define BATON_TRANSFER_LINK_MSG_H

#include "transfer/transfer.h"

#define LINK_PROTOCOL 1u
#define LINK_HOST_ID_CHARS_MAX 63u
#define LINK_CABLES_MAX 8u
#define LINK_CABLE_NAME_CHARS_MAX 15u
#define LINK_TEXT_CHARS_MAX 511u
#define LINK_LAYERS_MAX 4096u

enum link_msg_kind {
    LINK_HELLO, LINK_HELLO_ACK, LINK_BEGIN, LINK_BEGIN_ACK, LINK_COMMIT, LINK_ACK, LINK_ABORT, LINK_ABORT_ACK,
    LINK_HEARTBEAT, LINK_CABLE, LINK_MSG_KIND_COUNT,
};

struct link_hello {
    uint32_t protocol;
    char node_id[KV_NODE_ID_CHARS_MAX + 1];
    uint64_t boot_epoch;
    char expect_node_id[KV_NODE_ID_CHARS_MAX + 1];
    uint64_t expect_boot_epoch;
    uint8_t fingerprint[KV_FINGERPRINT_WIRE_BYTES];
    char host_id[LINK_HOST_ID_CHARS_MAX + 1];
    uint32_t cable_count;
    char cables[LINK_CABLES_MAX][LINK_CABLE_NAME_CHARS_MAX + 1];
};

struct link_hello_ack {
    uint32_t code;
    char text[LINK_TEXT_CHARS_MAX + 1];
    char node_id[KV_NODE_ID_CHARS_MAX + 1];
    uint64_t boot_epoch;
    char host_id[LINK_HOST_ID_CHARS_MAX + 1];
    uint32_t offer_count;
    struct {
        char cable[LINK_CABLE_NAME_CHARS_MAX + 1];
        struct kv_cable_offer offer;
    } offers[LINK_CABLES_MAX];
    uint8_t token[KV_CABLE_TOKEN_BYTES];
    bool converts; /* the layouts differ, both convert, and fingerprint is D's */
    uint8_t fingerprint[KV_FINGERPRINT_WIRE_BYTES];
};

/* Every message about one transfer; each kind uses the fields that the proto gives it. */
struct link_xfer {
    kv_xfer_id_t xfer_id;
    uint64_t grant_epoch;
    uint32_t code;
    uint8_t secret[KV_SECRET_BYTES];
    uint32_t block_count;
    const uint32_t *layer_slices; /* [layer_count] */
    uint32_t layer_count;
    uint64_t bytes_total;
    const uint8_t *payload;
    size_t payload_bytes;
};

/* From one side's cable to the other's of that name. */
struct link_cable_msg {
    char cable[LINK_CABLE_NAME_CHARS_MAX + 1];
    const uint8_t *bytes; /* [count], count up to KV_CABLE_MESSAGE_BYTES_MAX */
    size_t count;
};

struct link_msg {
    enum link_msg_kind kind;
    union {
        struct link_hello hello;
        struct link_hello_ack hello_ack;
        struct link_xfer xfer;
        struct link_cable_msg cable;
        uint64_t heartbeat;
    } body;
};

#endif
