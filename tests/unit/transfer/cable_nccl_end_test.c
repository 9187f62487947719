/* How pairs of the nccl cable end, by a fence, for room, by a device that fails or hangs, by silence: nothing is lost, and
 * nobody waits for ever. */
#include "tests/unit/transfer/cable_nccl_sides.h"

#include <string.h>

/* A link that is fenced while the device is at its slots: what P reads is given back when it is read, what D writes is
 * held until it is written, and the pair ends after both. */
static void a_fence_waits_for_the_device(void **state)
{
    (void)state;
    join();
    until(&p.connected, 1);
    fake_memory_set_held(d.memory, true);
    push(0, 0, 0, 5);
    until(&d.held, 1);
    fake_memory_set_held(p.memory, true);
    for (uint32_t i = 1; i < 12; i++) { push(i, 0, i * 4, 5); }
    uint32_t sent = p.done; /* the first, or not yet */
    kv_cable_nccl.fence(p.cable, LINK);
    kv_cable_nccl.fence(d.cable, LINK);
    assert_int_equal(p.lost + d.lost, 0);
    uint32_t done = p.done;
    assert_true(done < 12);
    settle();
    assert_int_equal(d.let_go, 0);
    assert_int_equal(p.done, done);
    assert_true(fake_nccl_counts().comms > 0);
    join(); /* the same number, another link */
    fake_memory_set_held(p.memory, false);
    fake_memory_set_held(d.memory, false);
    until(&p.done, 12);
    until(&d.let_go, 1);
    until(&p.connected, 2);
    assert_int_equal(d.landed, 0); /* of a link that is closed */
    assert_int_equal(p.dropped, 12 - sent);
    push(0, 1, 0, 5);
    until(&d.landed, 4);
    assert_true(is_there(1, 0));
    while (fake_nccl_counts().comms > 2) { turn(); }
}

/* A D that needs the room says CLOSE: what it was asked for and has not begun is sent over the next pair, once. */
static void a_closed_pair_loses_nothing(void **state)
{
    (void)state;
    join();
    until(&p.connected, 1);
    kept_from = &p;
    kept_kind = NCCL_WIRE_SEND;
    for (uint32_t i = 0; i < 12; i++) { push(i, 0, i * 4, 5); }
    until(&kept_count, 8);
    kept_from = NULL;
    say_to(&p, &(struct nccl_wire_msg){.kind = NCCL_WIRE_CLOSE, .gen = kept.gen});
    assert_int_equal(p.done, 0);
    until(&p.done, 12);
    until(&d.landed, 48);
    assert_int_equal(p.dropped + p.lost + d.lost, 0);
    for (uint32_t i = 0; i < 12; i++) { assert_true(is_there(0, i * 4)); }
    assert_int_equal(stats_of(&p).pairs_opened, 2);
    assert_int_equal(stats_of(&p).pairs_closed, 1);
    say_to(&d, &kept); /* late, and of the pair before */
    say_to(&p, &(struct nccl_wire_msg){.kind = NCCL_WIRE_READY, .gen = kept.gen});
    assert_int_equal(stats_of(&d).messages_stale, 1);
    assert_int_equal(stats_of(&p).messages_stale, 1);
    assert_int_equal(d.accepted, 12);
}

/* A pair that is closed while P gathers for it: what was gathered goes over the next one; over none, if the link is fenced
 * or the send aborted meanwhile. Each is given back once, and not before it is read. */
static void gather_crosses_the_end(void **state)
{
    (void)state;
    enum { CLOSED, FENCED, ABORTED };
    for (int what = CLOSED; what <= ABORTED; what++) {
        assert_int_equal(start(NULL), 0);
        join();
        until(&p.connected, 1);
        fake_memory_set_held(p.memory, true);
        for (uint32_t i = 0; i < 4; i++) { push(i, 0, i * 4, 5); }
        say_to(&p, &(struct nccl_wire_msg){.kind = NCCL_WIRE_CLOSE, .gen = 1});
        if (what == FENCED) {
            kv_cable_nccl.fence(p.cable, LINK);
            kv_cable_nccl.fence(d.cable, LINK);
        }
        if (what == ABORTED) { kv_cable_nccl.abort(p.cable, LINK, 5); }
        settle();
        assert_int_equal(p.done, 0);
        fake_memory_set_held(p.memory, false);
        until(&p.done, 4);
        if (what == CLOSED) { until(&d.landed, 16); }
        for (uint32_t i = 0; what == CLOSED && i < 4; i++) { assert_true(is_there(0, i * 4)); }
        assert_int_equal(p.dropped, what == CLOSED ? 0 : 4);
        assert_int_equal(d.landed, what == CLOSED ? 16 : 0);
        assert_int_equal(p.lost + d.lost, 0);
        assert_int_equal(stop(NULL), 0);
    }
}

/* A device that fails under a pair that ends: what it was at is lost to somebody, who is told. */
static void a_device_fails_at_the_end(void **state)
{
    (void)state;
    for (int is_d = 0; is_d < 2; is_d++) {
        assert_int_equal(start(NULL), 0);
        struct side *side = is_d ? &d : &p;
        join();
        until(&p.connected, 1);
        until(&d.connected, 1);
        fake_memory_set_held(side->memory, true);
        push(0, 0, 0, 5);
        if (is_d) { until(&d.held, 1); }
        say_to(side, &(struct nccl_wire_msg){.kind = NCCL_WIRE_CLOSE, .gen = 1});
        fake_memory_lose(side->memory);
        fake_memory_set_held(side->memory, false);
        until(is_d ? &d.let_go : &p.done, 1);
        assert_int_equal(side->lost, 1);
        assert_non_null(strstr(side->lost_text, is_d ? "does not scatter" : "does not gather"));
        assert_int_equal(p.dropped, !is_d);
        assert_int_equal(d.landed, 0);
        assert_int_equal(stop(NULL), 0);
    }
}

/* A device that is not done with its slots makes its pair a stuck one, which is over when the device is done after all. */
static void a_device_that_hangs_is_told_of(void **state)
{
    (void)state;
    join();
    until(&d.connected, 1);
    until(&p.connected, 1);
    fake_memory_set_held(d.memory, true);
    push(0, 0, 0, 5);
    until(&d.held, 1);
    kv_cable_nccl.fence(d.cable, LINK);
    cable_pairs_turn(d.cable, clock_now_ns() + NCCL_ABORT_NS / 2);
    assert_int_equal(stats_of(&d).pairs_stuck, 0);
    cable_pairs_turn(d.cable, clock_now_ns() + NCCL_ABORT_NS + NS_PER_S);
    assert_int_equal(stats_of(&d).pairs_stuck, 1);
    assert_true(stats_of(&d).memory_bytes > 0);
    fake_memory_set_held(d.memory, false);
    until(&d.let_go, 1);
    while (stats_of(&d).memory_bytes > 0) { turn(); }
    assert_int_equal(stats_of(&d).pairs_stuck, 0);
}

/* Nor does the cable's end wait for such a device for ever: it leaves it what it may still write, and says so. */
static void a_device_that_hangs_does_not_hold_up_the_end(void **state)
{
    (void)state;
    static struct kv_cable *left; /* for good */
    join();
    until(&d.connected, 1);
    until(&p.connected, 1);
    fake_memory_set_held(d.memory, true);
    push(0, 0, 0, 5);
    until(&d.held, 1);
    kv_cable_nccl.fence(d.cable, LINK);
    kv_cable_nccl.close(d.cable);
    assert_true(d.is_kept);
    assert_int_equal(d.let_go, 0);
    left = d.cable;
    d.cable = NULL;
    fake_memory_set_held(d.memory, false);
    kv_memory_inbox_wait(&left->inbox);
    /* What the process's end does elsewhere. */
    struct nccl_pair_fact fact = {.kind = NCCL_PAIR_ID};
    nccl_pair_end(left->pairs[0].pair);
    while (fact.kind != NCCL_PAIR_ENDED) { (void)cable_mail_take(left->mail, 0, &fact); }
    nccl_pair_destroy(left->pairs[0].pair);
}

/* A P that asks anew and anew, and gives each up, gets one pair and then a pause, by whatever name it calls itself and on
 * its next link too. */
static void who_gives_up_each_time_is_paused(void **state)
{
    (void)state;
    kept_from = &p;
    kept_kind = NCCL_WIRE_OPEN;
    join();
    until(&kept_count, 1);
    uint32_t said[16] = {0};
    for (uint64_t gen = 10; gen < 30; gen++) {
        struct nccl_wire_msg msg = kept;
        msg.gen = gen;
        msg.open.identity = gen;
        say_to(&d, &msg);
        if (gen == 20) { kv_cable_nccl.fence(d.cable, LINK); }
        for (; d.said_count > 0; d.said_count--, d.said_first = (d.said_first + 1) % QUEUE) {
            assert_true(nccl_wire_read(d.said[d.said_first].bytes, d.said[d.said_first].count, &msg));
            said[msg.kind]++;
        }
    }
    assert_int_equal(said[NCCL_WIRE_OPENED], 1);
    assert_int_equal(said[NCCL_WIRE_DENIED], 19);
    assert_int_equal(stats_of(&d).pairs_denied, 19);
}

/* A D that never answers is given up, at each point where P waits for its word; a P that never comes, by D. */
static void silence_has_limits(void **state)
{
    (void)state;
    static const struct { enum nccl_wire_kind kind; bool of_p, pushes; const char *says, *or_says; } silent[] = {
        {NCCL_WIRE_OPENED, false, true, "the peer's part of the pair did not come in time", NULL},
        {NCCL_WIRE_UP, false, false, "the peer's part of the pair did not come in time", NULL},
        {NCCL_WIRE_UP, false, true, "no pair came up again in time", NULL},
        /* For P the same as a READY that is kept, but then D waits too, and says so first. */
        {NCCL_WIRE_REFUSED, false, true, "the receiver does not say that it is ready", NULL},
        {NCCL_WIRE_ID, true, false, "the receiver says: the peer's part of the pair did not come in time", "past its limit: the peer never came"},
        {NCCL_WIRE_UP, true, false, "the receiver says: the peer's part of the pair did not come in time", NULL}};
    uint32_t tries = 0;
    for (size_t i = 0; i < sizeof silent / sizeof silent[0];) {
        assert_int_equal(start_impatient(NULL), 0);
        kept_from = silent[i].of_p ? &p : &d;
        kept_kind = silent[i].kind;
        d.refuses = silent[i].kind == NCCL_WIRE_REFUSED;
        join();
        if (silent[i].pushes) { push(0, 0, 0, 5); }
        until(&p.lost, 1);
        assert_int_equal(p.lost_status.code, ST_UNAVAILABLE);
        assert_int_equal(p.done, silent[i].pushes);
        assert_int_equal(p.dropped, silent[i].pushes);
        assert_int_equal(d.landed, 0);
        bool is_so = kept_count == 1 && (strstr(p.lost_text, silent[i].says) || (silent[i].or_says && strstr(p.lost_text, silent[i].or_says)));
        if (!is_so && ++tries == 30) { fail_msg("case %zu, %u kept: \"%s\"", i, kept_count, p.lost_text); }
        kept_from = NULL;
        i += is_so; /* on a slow machine a pair may be late by itself: once more */
        assert_int_equal(stop(NULL), 0);
    }
}

/* Where no pair can be had what waits for one is given back in the end, with a word that says so. */
static void nobody_waits_for_ever(void **state)
{
    (void)state;
    join();
    kept_from = &p;
    kept_kind = NCCL_WIRE_OPEN;
    push(0, 0, 0, 5);
    for (uint32_t answered = 0; p.lost == 0;) {
        turn();
        if (kept_count == answered) { continue; }
        answered = kept_count;
        say_to(&p, &(struct nccl_wire_msg){.kind = NCCL_WIRE_DENIED, .gen = kept.gen, .code = ST_RESOURCE_EXHAUSTED, .retry_ms = 100, .text = "no room"});
    }
    assert_true(kept_count > 1);
    assert_int_equal(p.done, 1);
    assert_int_equal(p.dropped, 1);
    assert_int_equal(p.lost_status.code, ST_UNAVAILABLE);
    assert_int_equal(stats_of(&p).pairs_denied, kept_count);
    assert_int_equal(stats_of(&p).memory_bytes, 0);
    assert_int_equal(p.lost, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_fence_waits_for_the_device, start, stop),
        cmocka_unit_test_setup_teardown(a_closed_pair_loses_nothing, start, stop),
        cmocka_unit_test(silence_has_limits),
        cmocka_unit_test_setup_teardown(nobody_waits_for_ever, start_with_little_patience, stop),
        cmocka_unit_test(gather_crosses_the_end),
        cmocka_unit_test(a_device_fails_at_the_end),
        cmocka_unit_test_setup_teardown(a_device_that_hangs_is_told_of, start, stop),
        cmocka_unit_test_setup_teardown(a_device_that_hangs_does_not_hold_up_the_end, start, stop),
        cmocka_unit_test_setup_teardown(who_gives_up_each_time_is_paused, start, stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
