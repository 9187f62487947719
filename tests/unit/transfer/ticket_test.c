#include "transfer/ticket.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static struct kv_ticket sample(void)
{
    struct kv_ticket ticket;
    memset(&ticket, 0, sizeof ticket);
    strcpy(ticket.link_address, "d0.decode.svc:7102");
    strcpy(ticket.node_id, "d0");
    memset(ticket.xfer_id.bytes, 0x11, sizeof ticket.xfer_id.bytes);
    memset(ticket.secret, 0x22, sizeof ticket.secret);
    memset(ticket.fingerprint_hash, 0x33, sizeof ticket.fingerprint_hash);
    ticket.boot_epoch = UINT64_MAX - 1;
    ticket.grant_epoch = 77;
    ticket.block_count = 12;
    ticket.lease_ms = 30000;
    return ticket;
}

/* A ticket cut anywhere is refused or, where protobuf cannot know, lacks a field and is refused. */
static void cut_tickets_are_refused(void **state)
{
    (void)state;
    struct kv_ticket ticket = sample(), out;
    uint8_t bytes[KV_TICKET_BYTES_MAX];
    size_t size;
    kv_ticket_encode(&ticket, bytes, &size);
    for (size_t cut = 0; cut < size; cut++) {
        assert_int_equal(kv_ticket_decode(bytes, cut, NULL, &out).code, ST_INVALID_ARGUMENT);
    }
    assert_int_equal(kv_ticket_decode(bytes, KV_TICKET_BYTES_MAX + 1, NULL, &out).code, ST_INVALID_ARGUMENT);
}

/* A field out of its bounds is refused by name, and nothing is written. */
static void fields_out_of_bounds_are_refused(void **state)
{
    (void)state;
    uint8_t bytes[KV_TICKET_BYTES_MAX];
    size_t size;
    struct diag diag;
    for (int field = 0; field < 7; field++) {
        struct kv_ticket ticket = sample(), out;
        const char *want = "";
        switch (field) {
        case 0: ticket.link_address[0] = '\0'; want = "link_address"; break;
        case 1: ticket.link_address[3] = '\n'; want = "link_address"; break;
        case 2: ticket.node_id[0] = '\0'; want = "node_id"; break;
        case 3: ticket.node_id[1] = ' '; want = "node_id"; break;
        case 4: ticket.block_count = 0; want = "block_count"; break;
        case 5: ticket.block_count = KV_TICKET_BLOCKS_MAX + 1; want = "block_count"; break;
        default: ticket.lease_ms = 3600001; want = "lease_ms"; break;
        }
        kv_ticket_encode(&ticket, bytes, &size);
        memset(&out, 0xee, sizeof out);
        assert_int_equal(kv_ticket_decode(bytes, size, &diag, &out).code, ST_INVALID_ARGUMENT);
        assert_non_null(strstr(diag.text, want));
        assert_int_equal(out.block_count, 0xeeeeeeee);
    }
}

/* What is minted comes back whole, the longest one too. */
static void round_trip(void **state)
{
    (void)state;
    uint8_t bytes[KV_TICKET_BYTES_MAX];
    size_t size;
    for (int longest = 0; longest < 2; longest++) {
        struct kv_ticket ticket = sample(), out;
        if (longest) {
            memset(ticket.link_address, 'a', KV_ADDRESS_CHARS_MAX);
            memset(ticket.node_id, 'b', KV_NODE_ID_CHARS_MAX);
            ticket.grant_epoch = UINT64_MAX;
            ticket.block_count = KV_TICKET_BLOCKS_MAX;
            ticket.lease_ms = 3600000;
            ticket.converts = true;
            memset(ticket.convert_hash, 0x44, sizeof ticket.convert_hash);
        }
        kv_ticket_encode(&ticket, bytes, &size);
        assert_true(size <= sizeof bytes);
        assert_int_equal(kv_ticket_decode(bytes, size, NULL, &out).code, ST_OK);
        assert_memory_equal(&ticket, &out, sizeof out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cut_tickets_are_refused),
        cmocka_unit_test(fields_out_of_bounds_are_refused),
        cmocka_unit_test(round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
