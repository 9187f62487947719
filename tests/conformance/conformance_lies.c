/* conformance_lies: forged frames, wrong sums and flipped bits land nowhere. */
#include <stdio.h>

#include "tests/conformance/forger.h"
#include "tests/conformance/peer.h"
#include "tests/conformance/wire_proxy.h"
#include "tests/conformance/conformance.h" /* last: it names the peers d and p */

/* Nothing that a liar says on link or cable puts a byte into D's pool, or spoils the transfer of
 * the one who holds the ticket. */
void forged_frames_land_nowhere(void **state)
{
    (void)state;
    const struct kv_layout layout = {.block_tokens = 16, .layer_count = 2, .kv_heads = 1, .head_dim = 64, .dtype = DTYPE_BF16};
    struct forger liar;
    struct link_msg msg;
    proc_start(&d, NULL, "role=d layers=2 blocks=32 dead_ms=60000");
    forger_open(&liar, grant(&d, 1, 8, 60000), &layout);
    assert_int_equal(liar.ack.code, ST_OK);

    /* A wrong token opens no cable, and the true one still does. */
    uint8_t token[KV_CABLE_TOKEN_BYTES];
    memcpy(token, liar.ack.token, sizeof token);
    token[31] ^= 1;
    assert_false(forger_cable(&liar, cable_name, token));
    assert_true(forger_cable(&liar, cable_name, liar.ack.token));

    /* Slices before the begin. */
    uint64_t refused = 0;
    struct kv_frame frame = {.xfer_id = liar.ticket.xfer_id, .grant_epoch = liar.ticket.grant_epoch, .layer = 0, .first = 0, .count = 8};
    assert_true(forger_frame(&liar, cable_name, &frame, 666, 0));
    stat_wait(&d, "slices_refused", refused += 8);

    /* Begins with a wrong secret, a wrong epoch, a wrong size, an unknown id. */
    struct link_xfer begin = {.xfer_id = liar.ticket.xfer_id, .grant_epoch = liar.ticket.grant_epoch, .block_count = 8};
    memcpy(begin.secret, liar.ticket.secret, sizeof begin.secret);
    static const uint32_t codes[] = {ST_PERMISSION_DENIED, ST_NOT_FOUND, ST_INVALID_ARGUMENT, ST_NOT_FOUND};
    for (int i = 0; i < 4; i++) {
        struct link_xfer wrong = begin;
        if (i == 0) { wrong.secret[0] ^= 1; }
        if (i == 1) { wrong.grant_epoch++; }
        if (i == 2) { wrong.block_count++; }
        if (i == 3) { wrong.xfer_id.bytes[3] ^= 1; }
        forger_say(&liar, LINK_BEGIN, wrong);
        assert_true(forger_hear(&liar, &msg));
        assert_int_equal(msg.kind, LINK_BEGIN_ACK);
        assert_int_equal(msg.body.xfer.code, codes[i]);
        assert_true(forger_frame(&liar, cable_name, &frame, 666, 0)); /* and it changed nothing */
        stat_wait(&d, "slices_refused", refused += 8);
    }
    assert_int_equal(stat_of(&d, "secrets_refused"), 1);
    assert_int_equal(stat_of(&d, "canary_bad"), 0);

    /* With the ticket's secret, the grant opens; frames outside it still land nowhere. */
    forger_say(&liar, LINK_BEGIN, begin);
    assert_true(forger_hear(&liar, &msg));
    assert_int_equal(msg.body.xfer.code, ST_OK);
    const struct kv_frame outside[] = {
        {.layer = 2, .first = 0, .count = 1},  {.layer = UINT32_MAX, .first = 0, .count = 1},
        {.layer = 0, .first = 8, .count = 1},  {.layer = 0, .first = 7, .count = 2},
        {.layer = 0, .first = UINT32_MAX, .count = 2}, {.layer = 0, .first = UINT32_MAX - 3, .count = 8},
    };
    for (size_t i = 0; i < sizeof outside / sizeof outside[0]; i++) {
        frame = outside[i];
        frame.xfer_id = liar.ticket.xfer_id;
        frame.grant_epoch = liar.ticket.grant_epoch;
        assert_true(forger_frame(&liar, cable_name, &frame, 666, 0));
        stat_wait(&d, "slices_refused", refused += frame.count);
    }
    frame = (struct kv_frame){.xfer_id = liar.ticket.xfer_id, .grant_epoch = liar.ticket.grant_epoch + 1, .count = 8};
    assert_true(forger_frame(&liar, cable_name, &frame, 666, 0));
    stat_wait(&d, "slices_refused", refused += 8);

    /* True slices land; the same again, or overlapping, with other bytes, do not. */
    frame.grant_epoch--;
    frame.count = 4;
    assert_true(forger_frame(&liar, cable_name, &frame, 5, 0));
    stat_wait(&d, "slices_landed", 4);
    assert_true(forger_frame(&liar, cable_name, &frame, 666, 0));
    stat_wait(&d, "slices_refused", refused += 4);
    frame.first = 3;
    frame.count = 5;
    assert_true(forger_frame(&liar, cable_name, &frame, 666, 0));
    stat_wait(&d, "slices_refused", refused += 5);

    /* The rest, and the commit: what lies there is what was sent first, whole. */
    frame.first = 4;
    frame.count = 4;
    assert_true(forger_frame(&liar, cable_name, &frame, 5, 0));
    frame.layer = 1;
    frame.first = 0;
    frame.count = 8;
    const uint32_t layer_slices[2] = {8, 8};
    const uint64_t payload[2] = {5, 1};
    struct link_xfer commit = {.xfer_id = begin.xfer_id, .grant_epoch = begin.grant_epoch, .layer_slices = layer_slices,
                               .layer_count = 2, .bytes_total = 16 * 4096, .payload = (const uint8_t *)payload, .payload_bytes = 16};
    forger_say(&liar, LINK_COMMIT, commit); /* before the last slices: it waits for them */
    assert_true(forger_frame(&liar, cable_name, &frame, 5, 0));
    assert_true(forger_hear(&liar, &msg));
    assert_int_equal(msg.kind, LINK_ACK);
    assert_int_equal(strncmp(expect(&d, "landed %016llx", 1ULL), "good", 4), 0);

    /* Late frames and a second commit of a transfer that is over are counted, and that is all. */
    assert_true(forger_frame(&liar, cable_name, &frame, 666, 0));
    stat_wait(&d, "slices_refused", refused += 8);
    forger_say(&liar, LINK_COMMIT, commit);
    forger_say(&liar, LINK_ABORT, begin);
    assert_true(forger_hear(&liar, &msg));
    assert_int_equal(msg.kind, LINK_ABORT_ACK);
    forger_close(&liar);
    audit_quiet(&d);
    proc_quit(&d);
}

/* A commit that does not add up, and a slice whose checksum is wrong, are DATA_LOSS; the blocks
 * are free again, and the link goes on. */
void wrong_sums_are_data_loss(void **state)
{
    (void)state;
    const struct kv_layout layout = {.block_tokens = 16, .layer_count = 2, .kv_heads = 1, .head_dim = 64, .dtype = DTYPE_BF16};
    struct forger liar;
    struct link_msg msg;
    proc_start(&d, NULL, "role=d layers=2 blocks=32 dead_ms=60000");
    forger_open(&liar, grant(&d, 1, 8, 60000), &layout);
    assert_true(forger_cable(&liar, cable_name, liar.ack.token));
    struct link_xfer about = {.xfer_id = liar.ticket.xfer_id, .grant_epoch = liar.ticket.grant_epoch, .block_count = 8};
    memcpy(about.secret, liar.ticket.secret, sizeof about.secret);
    forger_say(&liar, LINK_BEGIN, about);
    assert_true(forger_hear(&liar, &msg));
    struct kv_frame frame = {.xfer_id = about.xfer_id, .grant_epoch = about.grant_epoch, .layer = 1, .first = 2, .count = 3};
    assert_true(forger_frame(&liar, cable_name, &frame, 5, 1));
    assert_true(forger_hear(&liar, &msg));
    assert_int_equal(msg.kind, LINK_ABORT);
    assert_int_equal(msg.body.xfer.code, ST_DATA_LOSS);
    forger_say(&liar, LINK_ABORT_ACK, about);
    expect_failed_fenced(1, "DATA_LOSS");
    assert_int_equal(stat_of(&d, "crc_errors"), 1);

    uint8_t ticket[KV_TICKET_BYTES_MAX];
    size_t size = hex_decode(grant(&d, 2, 4, 60000), ticket, sizeof ticket);
    assert_false(failed(kv_ticket_decode(ticket, size, NULL, &liar.ticket)));
    about = (struct link_xfer){.xfer_id = liar.ticket.xfer_id, .grant_epoch = liar.ticket.grant_epoch, .block_count = 4};
    memcpy(about.secret, liar.ticket.secret, sizeof about.secret);
    forger_say(&liar, LINK_BEGIN, about);
    assert_true(forger_hear(&liar, &msg));
    const uint32_t layer_slices[2] = {4, 3};
    about.layer_slices = layer_slices;
    about.layer_count = 2;
    about.bytes_total = 7 * 4096;
    forger_say(&liar, LINK_COMMIT, about);
    assert_true(forger_hear(&liar, &msg));
    assert_int_equal(msg.kind, LINK_ABORT);
    forger_say(&liar, LINK_ABORT_ACK, about);
    expect_failed_fenced(2, "DATA_LOSS");
    forger_close(&liar);
    audit_quiet(&d);
    proc_quit(&d);
}

/* One bit flipped on the wire, anywhere in header, checksums or slices, is DATA_LOSS at D. */
void flipped_bits_are_seen(void **state)
{
    (void)state;
    if (strcmp(cable_name, "tcp") != 0) {
        print_message("  %s has no wire to flip bits on\n", cable_name);
        skip();
    }
    /* The token takes 40 bytes; the first frame's head is 48 + 4 * 8. */
    static const uint64_t where[] = {40, 50, 70, 84, 90, 40 + 80, 40 + 80 + 4096, 40 + 80 + 8 * 4096 + 20, 40 + 2 * (80 + 8 * 4096) - 1};
    for (size_t i = 0; i < sizeof where / sizeof where[0]; i++) {
        char ticket_hex[LINE_MAX_CHARS];
        uint8_t bytes[KV_TICKET_BYTES_MAX];
        struct kv_ticket ticket;
        proc_start(&d, NULL, "role=d layers=2 blocks=8");
        proc_start(&p, NULL, "role=p layers=2 blocks=8");
        struct wire_proxy *proxy = wire_proxy_create(d.link_address, d.tcp_address, where[i]);
        size_t size = hex_decode(grant(&d, 1, 8, 20000), bytes, sizeof bytes);
        assert_false(failed(kv_ticket_decode(bytes, size, NULL, &ticket)));
        snprintf(ticket.link_address, sizeof ticket.link_address, "%s", wire_proxy_link_address(proxy));
        kv_ticket_encode(&ticket, bytes, &size);
        hex_encode(bytes, size, ticket_hex);
        tell(&p, "send %016x 5 %s full", 1, ticket_hex);
        const char *how = expect(&d, "failed %016llx", 1ULL);
        if (strncmp(how, "DATA_LOSS fenced", 16) != 0) { fail_msg("byte %llu: %s", (unsigned long long)where[i], how); }
        (void)expect(&p, "send_failed %016llx", 1ULL);
        pair_quit();
        wire_proxy_destroy(proxy);
    }
}
