#include "transfer/ticket.h"

#include "proto/baton/transfer/v1/kv_link.pb-c.h"
#include "transfer/wire_arena.h"

/* Strings, four byte fields with tag and length, and the numbers at their longest. */
_Static_assert(KV_ADDRESS_CHARS_MAX + 3 + KV_NODE_ID_CHARS_MAX + 2 + 18 + KV_SECRET_BYTES + 2 +
                       2 * (KV_FINGERPRINT_HASH_BYTES + 2) + 9 + 11 + 6 + 6 <= KV_TICKET_BYTES_MAX,
               "the largest ticket fits");

void kv_ticket_encode(const struct kv_ticket *ticket, uint8_t *ret_bytes, size_t *ret_size)
{
    Baton__Transfer__V1__Ticket wire = BATON__TRANSFER__V1__TICKET__INIT;
    struct kv_ticket copy = *ticket; /* the generated struct wants pointers that are not const */
    copy.link_address[KV_ADDRESS_CHARS_MAX] = '\0';
    copy.node_id[KV_NODE_ID_CHARS_MAX] = '\0';
    wire.link_address = copy.link_address;
    wire.xfer_id = (ProtobufCBinaryData){.len = sizeof copy.xfer_id.bytes, .data = copy.xfer_id.bytes};
    wire.node_id = copy.node_id;
    wire.boot_epoch = copy.boot_epoch;
    wire.grant_epoch = copy.grant_epoch;
    wire.secret = (ProtobufCBinaryData){.len = KV_SECRET_BYTES, .data = copy.secret};
    wire.block_count = copy.block_count;
    wire.lease_ms = copy.lease_ms;
    wire.fingerprint_hash = (ProtobufCBinaryData){.len = KV_FINGERPRINT_HASH_BYTES, .data = copy.fingerprint_hash};
    if (copy.converts) { wire.convert_hash = (ProtobufCBinaryData){.len = KV_FINGERPRINT_HASH_BYTES, .data = copy.convert_hash}; }
    *ret_size = baton__transfer__v1__ticket__pack(&wire, ret_bytes);
}

static status_t refuse(struct diag *diag, const char *what)
{
    diag_set(diag, "transfer ticket: %s", what);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
}

/* Names and addresses end up in logs: nothing but visible ASCII. */
static bool text_is_plain(const char *text, size_t chars_max)
{
    size_t chars = strlen(text);
    if (chars == 0 || chars > chars_max) { return false; }
    for (size_t i = 0; i < chars; i++) {
        if (text[i] < 0x21 || text[i] > 0x7e) { return false; }
    }
    return true;
}

status_t kv_ticket_decode(const void *bytes, size_t size, struct diag *diag, struct kv_ticket *ret_ticket)
{
    if (size > KV_TICKET_BYTES_MAX) { return refuse(diag, "longer than any ticket"); }
    _Alignas(16) uint8_t memory[4096];
    struct wire_arena arena;
    wire_arena_init(&arena, memory, sizeof memory);
    Baton__Transfer__V1__Ticket *wire = baton__transfer__v1__ticket__unpack(&arena.allocator, size, bytes);
    if (!wire) { return refuse(diag, "not a baton.transfer.v1.Ticket"); }
    if (!text_is_plain(wire->link_address, KV_ADDRESS_CHARS_MAX)) {
        return refuse(diag, "link_address is empty, too long or not printable");
    }
    if (!text_is_plain(wire->node_id, KV_NODE_ID_CHARS_MAX)) {
        return refuse(diag, "node_id is empty, too long or not printable");
    }
    if (wire->xfer_id.len != sizeof ret_ticket->xfer_id.bytes) { return refuse(diag, "xfer_id is not 16 bytes"); }
    if (wire->secret.len != KV_SECRET_BYTES) { return refuse(diag, "secret is not 32 bytes"); }
    if (wire->fingerprint_hash.len != KV_FINGERPRINT_HASH_BYTES) {
        return refuse(diag, "fingerprint_hash is not 32 bytes");
    }
    if (wire->convert_hash.len != 0 && wire->convert_hash.len != KV_FINGERPRINT_HASH_BYTES) {
        return refuse(diag, "convert_hash is neither empty nor 32 bytes");
    }
    if (wire->block_count == 0 || wire->block_count > KV_TICKET_BLOCKS_MAX) {
        return refuse(diag, "block_count is 0 or too large");
    }
    if (wire->lease_ms == 0 || wire->lease_ms > 3600000u) { return refuse(diag, "lease_ms is not in 1..3600000"); }
    struct kv_ticket ticket = {.boot_epoch = wire->boot_epoch, .grant_epoch = wire->grant_epoch,
                               .block_count = wire->block_count, .lease_ms = wire->lease_ms};
    memcpy(ticket.link_address, wire->link_address, strlen(wire->link_address));
    memcpy(ticket.node_id, wire->node_id, strlen(wire->node_id));
    memcpy(ticket.xfer_id.bytes, wire->xfer_id.data, sizeof ticket.xfer_id.bytes);
    memcpy(ticket.secret, wire->secret.data, KV_SECRET_BYTES);
    memcpy(ticket.fingerprint_hash, wire->fingerprint_hash.data, KV_FINGERPRINT_HASH_BYTES);
    ticket.converts = wire->convert_hash.len != 0;
    if (ticket.converts) { memcpy(ticket.convert_hash, wire->convert_hash.data, KV_FINGERPRINT_HASH_BYTES); }
    *ret_ticket = ticket;
    return STATUS_OK;
}
