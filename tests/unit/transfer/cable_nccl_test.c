/* The nccl cable: what it refuses, how frames land or do not, what a peer may say, and whose pair makes room. */
#include "tests/unit/transfer/cable_nccl_sides.h"

#include <stdlib.h>
#include <string.h>

/* A configuration that cannot work is refused, by a sentence that says what to do; one that is off is left out. */
static void what_cannot_work_is_refused(void **state)
{
    (void)state;
    for (int field = 0; field < 4; field++) {
        struct kv_nccl_config config = standard();
        struct diag diag = {.text = ""};
        static const struct { uint8_t code; const char *says; } want[] = {{ST_UNIMPLEMENTED, "--nccl=on"}, {ST_UNIMPLEMENTED, "host memory"},
            {ST_INVALID_ARGUMENT, "raise --nccl-memory"}, {ST_FAILED_PRECONDITION, "2.18"}};
        fake_nccl_set(&(struct fake_nccl_options){.version = field == 3 ? 21800 : 0});
        config.is_on = field != 0;
        config.memory_bytes_max = field == 2 ? 1 << 20 : 0;
        status_t st;
        if (field == 1) {
            struct kv_cable *cable = NULL;
            struct kv_cable_host host = {.nccl = config, .layout = &layout, .links_max = 1, .frame_blocks = 1};
            st = kv_cable_nccl.open(&host, &diag, &cable);
        } else {
            st = side_open(&p, &config, &diag);
            p.cable = NULL;
            side_close(&p);
        }
        assert_int_equal(st.code, want[field].code);
        if (!strstr(diag.text, want[field].says)) { fail_msg("case %d: \"%s\"", field, diag.text); }
    }
    fake_nccl_set(&(struct fake_nccl_options){.version = 0});
}

/* Two that NCCL would not let meet do not try: another version, one device for both ranks. */
static void who_cannot_meet_does_not_try(void **state)
{
    (void)state;
    struct kv_cable_offer offer;
    struct nccl_wire_offer said;
    assert_int_equal(kv_cable_nccl.offer(p.cable, LINK, &offer).code, ST_UNIMPLEMENTED); /* P receives nothing */
    assert_false(failed(kv_cable_nccl.offer(d.cable, LINK, &offer)));
    assert_true(nccl_offer_read(offer.bytes, offer.size, &said));
    assert_non_null(kv_cable_nccl.mismatch(p.cable, offer.bytes, offer.size - 1));
    said.nccl_version = 22703;
    nccl_offer_write(&said, &offer);
    const char *why = kv_cable_nccl.mismatch(p.cable, offer.bytes, offer.size);
    assert_non_null(why);
    assert_non_null(strstr(why, "2.28.9 here and 2.27.3 at the receiver"));
    said.nccl_version = 22809;
    memcpy(said.device, p.memory->id, sizeof said.device);
    nccl_offer_write(&said, &offer);
    unsetenv("NCCL_HOSTID");
    why = kv_cable_nccl.mismatch(p.cable, offer.bytes, offer.size);
    assert_non_null(why);
    assert_non_null(strstr(why, "one device"));
    setenv("NCCL_HOSTID", "p", 1);
    assert_null(kv_cable_nccl.mismatch(p.cable, offer.bytes, offer.size));
    unsetenv("NCCL_HOSTID");
}

/* More frames than there are slots all land, once, with the bytes that were sent; both sides count them. */
static void frames_land_whole(void **state)
{
    (void)state;
    join();
    for (uint32_t i = 0; i < 2 * BLOCKS / 4; i++) { push(i, i % 2, i / 2 * 4, 5); } /* before the pair is up, too */
    until(&p.done, 2 * BLOCKS / 4);
    until(&d.landed, 2 * BLOCKS);
    assert_int_equal(d.landed, 2 * BLOCKS);
    assert_int_equal(d.held, 2 * BLOCKS / 4);
    assert_int_equal(d.let_go, d.held);
    assert_int_equal(d.bad_sums + p.dropped + p.lost + d.lost, 0);
    for (uint32_t i = 0; i < 2 * BLOCKS / 4; i++) { assert_true(is_there(i % 2, i / 2 * 4)); }
    assert_int_equal(p.connected, 1);
    assert_int_equal(d.connected, 1);
    struct kv_nccl_stats stats = stats_of(&p);
    assert_int_equal(stats.frames, 2 * BLOCKS / 4);
    assert_int_equal(stats.bytes, 2 * BLOCKS * kv_layout_slice_bytes(&layout));
    assert_true(stats.busy_ns > 0);
    assert_true(stats.init_ns_last > 0);
    assert_int_equal(stats.pairs_up, 1);
    assert_true(stats.memory_bytes >= FAKE_NCCL_BYTES_INIT + FAKE_NCCL_BYTES_CHANNEL);
    assert_int_equal(stats_of(&d).frames, stats.frames);
    assert_int_equal(stats.messages_stale, 0);
}

/* A sum that differs is told of; a frame that no grant takes, or whose grant ends while it travels, lands nowhere, and
 * its slot serves again. */
static void what_is_not_wanted_lands_nowhere(void **state)
{
    (void)state;
    join();
    d.refuses = true;
    push(0, 0, 0, 5);
    until(&p.done, 1);
    assert_int_equal(p.heard_kind[NCCL_WIRE_REFUSED], 1);
    assert_int_equal(p.dropped, 0);
    d.refuses = false;
    d.is_dead = true;
    push(1, 0, 4, 5);
    until(&p.done, 2);
    settle();
    assert_int_equal(d.accepted, 1);
    assert_int_equal(d.landed + d.held, 0);
    assert_int_equal(d.view[kv_layout_slice_offset(&layout, d.blocks[4], 0)], 0xdd);
    d.is_dead = false;
    kept_from = &p;
    kept_kind = NCCL_WIRE_SEND;
    push(2, 0, 8, 5);
    until(&kept_count, 1);
    kept_from = NULL;
    kept.crc[2] ^= 1;
    say_to(&d, &kept);
    until(&d.landed, 4);
    assert_int_equal(d.bad_sums, 1);
    push(3, 0, 12, 5);
    until(&d.landed, 8);
    assert_int_equal(d.bad_sums, 1);
    assert_true(is_there(0, 12));
}

/* An abort gives back at once what is queued or has been gathered, and the rest when its gather is over. What D was
 * asked for is sent all the same: its receive is queued. */
static void aborts_leave_no_receive_alone(void **state)
{
    (void)state;
    join();
    until(&p.connected, 1);
    fake_memory_set_held(p.memory, true);
    for (uint32_t i = 0; i < 10; i++) { push(i, 0, i * 4, 5); } /* 8 slots */
    push(10, 1, 0, 6);
    kv_cable_nccl.abort(p.cable, LINK, 5);
    assert_int_equal(p.done, 2);
    fake_memory_set_held(p.memory, false);
    until(&p.done, 11);
    assert_int_equal(p.dropped, 10);
    until(&d.landed, 4);
    assert_int_equal(d.heard_kind[NCCL_WIRE_SEND], 1);
    assert_true(is_there(1, 0));
    kept_from = &d;
    kept_kind = NCCL_WIRE_READY;
    push(11, 1, 4, 7);
    until(&kept_count, 1);
    d.is_dead = true; /* as D hears of the abort */
    kv_cable_nccl.abort(p.cable, LINK, 7);
    assert_int_equal(p.done, 12);
    assert_int_equal(p.dropped, 11);
    kept_from = NULL;
    say_to(&p, &kept);
    push(12, 1, 8, 8);
    until(&p.done, 13);
    settle();
    assert_int_equal(d.landed, 4);
    assert_int_equal(stats_of(&p).frames, 3);
    d.is_dead = false;
    push(13, 1, 12, 8);
    until(&d.landed, 8);
    assert_int_equal(p.lost + d.lost, 0);
}

/* Who sends on a link is asked for nothing on it, though it may receive on others. */
static void a_sender_is_not_asked(void **state)
{
    (void)state;
    p.host.receives = true;
    say_to(&p, &(struct nccl_wire_msg){.kind = NCCL_WIRE_OPEN, .gen = 1});
    assert_int_equal(stats_of(&p).messages_stale, 1);
    assert_int_equal(p.said_count, 0);
    join();
    until(&p.connected, 1);
}

/* What no peer says breaks the pair on both sides, whatever it is, and nothing but the pair. */
static void nonsense_breaks_the_pair(void **state)
{
    (void)state;
    for (int what = 0; what < 9; what++) {
        struct side *at = what < 6 ? &d : &p;
        assert_int_equal(start(NULL), 0);
        join();
        kept_from = &p;
        kept_kind = NCCL_WIRE_SEND;
        push(0, 0, 0, 5);
        until(&kept_count, 1);
        struct nccl_wire_msg msg = kept;
        switch (what) {
        case 0: msg.slot = 8; break;
        case 1: msg.frame.count = 5; break; /* more than a slot takes */
        case 2: /* asked thrice */
            d.is_dead = true;
            say_to(&d, &msg);
            say_to(&d, &msg);
            break;
        case 3: msg.kind = NCCL_WIRE_OPENED; break;
        case 4: msg.kind = NCCL_WIRE_READY; break;
        case 5: msg.kind = NCCL_WIRE_ID; break;
        case 6: msg.kind = NCCL_WIRE_SEND; break;
        case 7: /* ready for a slot that asked nothing */
            msg.kind = NCCL_WIRE_READY;
            msg.slot = 3;
            break;
        default: msg.kind = NCCL_WIRE_UP; break;
        }
        say_to(at, &msg);
        if (at->lost != 1) { fail_msg("case %d was taken", what); }
        assert_int_equal(at->lost_status.code, ST_UNAVAILABLE);
        until(at == &d ? &p.lost : &d.lost, 1);
        until(&p.done, 1);
        assert_int_equal(p.dropped, 1);
        assert_int_equal(d.landed, 0);
        uint8_t bytes[] = "BNCL, but no message";
        kv_cable_nccl.message(at->cable, LINK, bytes, sizeof bytes); /* with no pair it is only counted */
        assert_int_equal(stats_of(at).messages_stale, 1);
        assert_int_equal(stop(NULL), 0);
    }
}

/* Whether the table would close LINK's pair for another link that wants one when it has long been idle. It is left as if
 * that other had never been, but for the pair if it was closed. */
static bool is_closable_later(void)
{
    struct nccl_pairs_wish room[64];
    struct nccl_pairs_wishes wishes = {.wishes = room, .count_max = 64};
    uint64_t later_ns = clock_now_ns() + 2 * NCCL_PAIRS_IDLE_NS;
    nccl_pairs_link(p.cable->table, LINK + 1, 99, later_ns);
    enum nccl_pairs_answer answer = nccl_pairs_want(p.cable->table, LINK + 1, 1, later_ns, &wishes);
    assert_int_equal(answer, NCCL_PAIRS_NO_ROOM);
    nccl_pairs_link_gone(p.cable->table, LINK + 1, later_ns, &wishes);
    for (uint32_t i = 0; i < wishes.count; i++) { p.cable->wishes.wishes[p.cable->wishes.count++] = room[i]; }
    return wishes.count > 0;
}

static int start_with_one_pair(void **state)
{
    (void)state;
    struct kv_nccl_config config = standard();
    config.pairs_max = 1;
    return start_with(&config);
}

/* Beside another cable a pair is made when a transfer begins, and not before; while one is on it, it is not closed. */
static void warm_it_is_made_when_it_is_asked_for(void **state)
{
    (void)state;
    p.is_own = false;
    join();
    settle();
    assert_int_equal(d.heard_kind[NCCL_WIRE_OPEN], 0);
    assert_false(kv_cable_nccl.ready(p.cable, LINK));
    kv_cable_nccl.used(p.cable, LINK, 1); /* a transfer that the other cable carries has no part in it; one of ours has */
    until(&p.connected, 1);
    assert_true(kv_cable_nccl.ready(p.cable, LINK));
    assert_false(is_closable_later());
    kv_cable_nccl.used(p.cable, LINK, 1);
    kv_cable_nccl.used(p.cable, LINK, -1);
    assert_false(is_closable_later());
    kv_cable_nccl.used(p.cable, LINK, -1);
    kv_cable_nccl.used(p.cable, LINK, 1);
    assert_false(is_closable_later());
    say_to(&p, &(struct nccl_wire_msg){.kind = NCCL_WIRE_BROKEN, .gen = 1, .code = ST_INTERNAL, .text = "why"});
    assert_int_equal(p.lost, 1);
    assert_non_null(strstr(p.lost_text, "the receiver says: why"));
    assert_false(kv_cable_nccl.ready(p.cable, LINK)); /* after a pause */
    kv_cable_nccl.used(p.cable, LINK, -1);
    settle();
    assert_int_equal(d.heard_kind[NCCL_WIRE_OPEN], 1);
}

/* One that no transfer is on any more is closed, where another link waits. */
static void the_idle_makes_room(void **state)
{
    (void)state;
    p.is_own = false;
    join();
    kv_cable_nccl.used(p.cable, LINK, 1);
    assert_false(kv_cable_nccl.ready(p.cable, LINK));
    until(&p.connected, 1);
    assert_false(is_closable_later());
    kv_cable_nccl.used(p.cable, LINK, -1);
    assert_true(is_closable_later());
    uint32_t closes = d.heard_kind[NCCL_WIRE_CLOSE];
    (void)kv_cable_nccl.ready(p.cable, LINK); /* carries it out */
    until(&d.heard_kind[NCCL_WIRE_CLOSE], closes + 1);
    assert_int_equal(p.lost + d.lost, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_work_is_refused),
        cmocka_unit_test_setup_teardown(who_cannot_meet_does_not_try, start, stop),
        cmocka_unit_test_setup_teardown(what_is_not_wanted_lands_nowhere, start, stop),
        cmocka_unit_test_setup_teardown(aborts_leave_no_receive_alone, start, stop),
        cmocka_unit_test(nonsense_breaks_the_pair),
        cmocka_unit_test_setup_teardown(warm_it_is_made_when_it_is_asked_for, start_with_one_pair, stop),
        cmocka_unit_test_setup_teardown(the_idle_makes_room, start_with_one_pair, stop),
        cmocka_unit_test_setup_teardown(a_sender_is_not_asked, start, stop),
        cmocka_unit_test_setup_teardown(frames_land_whole, start, stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
