/* What nccl_pairs.h promises, by example; nccl_pairs_property_test.c has every order of facts. */
#include "transfer/nccl_pairs.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MS UINT64_C(1000000)
#define S (1000 * MS)
#define MIB (UINT64_C(1) << 20)

/* Four pairs of 10 MiB each: 4 of slots, 6 expected of NCCL. */
#define SLOTS (4 * MIB)
static const struct nccl_pairs_config four = {.links_max = 8, .pairs_max = 8, .memory_max = 40 * MIB, .nccl_bytes_first = 6 * MIB};

struct table {
    struct nccl_pairs *pairs;
    void *memory;
    struct nccl_pairs_wishes wishes;
    struct nccl_pairs_wish room[64];
    uint64_t now_ns;
};

static void table_init(struct table *table, struct nccl_pairs_config config)
{
    memset(table, 0, sizeof *table);
    table->memory = aligned_alloc(16, nccl_pairs_bytes(&config));
    assert_non_null(table->memory);
    memset(table->memory, 0, nccl_pairs_bytes(&config));
    table->pairs = nccl_pairs_init(table->memory, &config);
    assert_true(NCCL_PAIRS_WISHES_FOR(&config) <= sizeof table->room / sizeof table->room[0]);
    table->wishes = (struct nccl_pairs_wishes){table->room, 0, NCCL_PAIRS_WISHES_FOR(&config)};
    table->now_ns = 1000 * S;
}

static void table_fini(struct table *table) { free(table->memory); }

static void named(struct table *table, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) { nccl_pairs_link(table->pairs, i, 100 + i, table->now_ns); }
}

static enum nccl_pairs_answer want(struct table *table, uint32_t link)
{
    return nccl_pairs_want(table->pairs, link, SLOTS, table->now_ns, &table->wishes);
}

/* One wish, taken off the front. */
static struct nccl_pairs_wish wished(struct table *table)
{
    assert_true(table->wishes.count > 0);
    struct nccl_pairs_wish first = table->room[0];
    memmove(&table->room[0], &table->room[1], --table->wishes.count * sizeof first);
    assert_true(nccl_pairs_audit(table->pairs));
    return first;
}

static void wished_nothing(struct table *table)
{
    assert_int_equal(table->wishes.count, 0);
    assert_true(nccl_pairs_audit(table->pairs));
}

static uint32_t opening(struct table *table, uint32_t link)
{
    struct nccl_pairs_wish wish = wished(table);
    assert_int_equal(wish.kind, NCCL_PAIRS_OPEN);
    assert_int_equal(wish.link, link);
    assert_int_equal(nccl_pairs_of(table->pairs, link), wish.pair);
    return wish.pair;
}

static uint32_t closing(struct table *table, uint32_t link, enum nccl_pairs_reason reason)
{
    struct nccl_pairs_wish wish = wished(table);
    assert_int_equal(wish.kind, NCCL_PAIRS_CLOSE);
    assert_int_equal(wish.link, link);
    assert_int_equal(wish.reason, reason);
    return wish.pair;
}

static void up(struct table *table, uint32_t pair, uint64_t nccl_bytes)
{
    nccl_pairs_up(table->pairs, pair, nccl_bytes, table->now_ns, &table->wishes);
}

static void ended(struct table *table, uint32_t pair) { nccl_pairs_ended(table->pairs, pair, table->now_ns, &table->wishes); }

static void broke(struct table *table, uint32_t pair) { nccl_pairs_broke(table->pairs, pair, table->now_ns, &table->wishes); }

static uint32_t open_and_up(struct table *table, uint32_t link)
{
    assert_int_equal(want(table, link), NCCL_PAIRS_IS_OPENING);
    uint32_t pair = opening(table, link);
    up(table, pair, 6 * MIB);
    return pair;
}

static uint64_t memory(const struct table *table) { return nccl_pairs_stats(table->pairs)->memory_bytes; }

/* A pair that is denied, breaks, or never comes up counts from the wish to open it until its memory is free. */
static void memory_is_counted_from_the_wish_to_the_end(void **state)
{
    (void)state;
    struct table table;
    table_init(&table, four);
    named(&table, 2);
    assert_int_equal(want(&table, 0), NCCL_PAIRS_IS_OPENING);
    uint32_t a = opening(&table, 0);
    assert_int_equal(memory(&table), 10 * MIB);
    assert_int_equal(want(&table, 0), NCCL_PAIRS_IS_OPENING); /* and no second wish */
    wished_nothing(&table);
    nccl_pairs_denied(table.pairs, a, 300 * MS, table.now_ns, &table.wishes);
    assert_int_equal(memory(&table), 0);
    assert_int_equal(nccl_pairs_of(table.pairs, 0), NCCL_PAIRS_NONE);

    uint32_t b = open_and_up(&table, 1);
    assert_int_equal(want(&table, 1), NCCL_PAIRS_IS_UP);
    broke(&table, b);
    broke(&table, b); /* told twice: here and by the peer */
    assert_int_equal(closing(&table, 1, NCCL_PAIRS_BROKE), b);
    wished_nothing(&table);
    assert_int_equal(memory(&table), 10 * MIB);
    ended(&table, b);
    assert_int_equal(memory(&table), 0);
    assert_int_equal(nccl_pairs_stats(table.pairs)->memory_bytes_most, 10 * MIB);
    assert_int_equal(nccl_pairs_stats(table.pairs)->broke, 1);
    table_fini(&table);
}

/* D's refusal is kept for as long as D said, at least 100 ms and at most the longest pause, and never doubles. */
static void a_denial_pauses_for_what_it_said(void **state)
{
    (void)state;
    const struct { uint64_t said_ns, kept_ns; } cases[] = {
        {300 * MS, 300 * MS}, {0, 100 * MS}, {UINT64_MAX, NCCL_PAIRS_PAUSE_MAX_NS}, {300 * MS, 300 * MS}};
    struct table table;
    table_init(&table, four);
    named(&table, 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(want(&table, 0), NCCL_PAIRS_IS_OPENING);
        nccl_pairs_denied(table.pairs, opening(&table, 0), cases[i].said_ns, table.now_ns, &table.wishes);
        table.now_ns += cases[i].kept_ns - 1;
        assert_int_equal(want(&table, 0), NCCL_PAIRS_PAUSED);
        wished_nothing(&table);
        table.now_ns += 1;
    }
    assert_int_equal(nccl_pairs_stats(table.pairs)->denied, 4);
    table_fini(&table);
}

/* Failures pause a link for 1 s, 2, 4 .. 60 s; a pair that was up for 60 s starts that anew. */
static void failures_pause_longer_each_time(void **state)
{
    (void)state;
    struct table table;
    table_init(&table, four);
    named(&table, 1);
    uint64_t pause_ns = 1 * S;
    for (int i = 0; i < 9; i++) {
        uint32_t pair;
        if (i % 2) {
            pair = open_and_up(&table, 0);
            table.now_ns += NCCL_PAIRS_STEADY_NS - 1;
        } else {
            want(&table, 0);
            pair = opening(&table, 0);
        }
        broke(&table, pair);
        closing(&table, 0, NCCL_PAIRS_BROKE);
        ended(&table, pair);
        table.now_ns += pause_ns - 1;
        assert_int_equal(want(&table, 0), NCCL_PAIRS_PAUSED);
        wished_nothing(&table);
        table.now_ns += 1;
        pause_ns = pause_ns * 2 < 60 * S ? pause_ns * 2 : 60 * S;
    }
    uint32_t pair = open_and_up(&table, 0);
    table.now_ns += NCCL_PAIRS_STEADY_NS;
    broke(&table, pair);
    closing(&table, 0, NCCL_PAIRS_BROKE);
    ended(&table, pair);
    table.now_ns += 1 * S;
    assert_int_equal(want(&table, 0), NCCL_PAIRS_IS_OPENING);
    table_fini(&table);
}

/* A peer that dials again keeps its pause; one that was restarted, and any other on the same slot, has none. */
static void pause_is_the_peers_not_the_slots(void **state)
{
    (void)state;
    struct table table;
    table_init(&table, four);
    named(&table, 2);
    want(&table, 0);
    uint32_t pair = opening(&table, 0);
    broke(&table, pair);
    closing(&table, 0, NCCL_PAIRS_BROKE);
    nccl_pairs_link_gone(table.pairs, 0, table.now_ns, &table.wishes);
    wished_nothing(&table); /* it was told to end already */
    nccl_pairs_link(table.pairs, 0, 777, table.now_ns);
    nccl_pairs_link(table.pairs, 5, 100, table.now_ns);
    assert_int_equal(want(&table, 5), NCCL_PAIRS_PAUSED);
    assert_int_equal(want(&table, 0), NCCL_PAIRS_IS_OPENING);
    assert_int_not_equal(opening(&table, 0), pair);
    ended(&table, pair);
    nccl_pairs_link_gone(table.pairs, 5, table.now_ns, &table.wishes);
    /* Long after, nothing is held against it: the next failure is the first. */
    table.now_ns += 62 * S;
    nccl_pairs_link(table.pairs, 5, 100, table.now_ns);
    assert_int_equal(want(&table, 5), NCCL_PAIRS_IS_OPENING);
    broke(&table, opening(&table, 5));
    closing(&table, 5, NCCL_PAIRS_BROKE);
    table.now_ns += 1 * S;
    assert_int_equal(want(&table, 5), NCCL_PAIRS_IS_OPENING);
    table_fini(&table);
}

/* The link is gone at once, its pair is not: the slot's next link opens a pair of its own beside it. */
static void a_pair_outlives_its_link(void **state)
{
    (void)state;
    struct table table;
    table_init(&table, four);
    named(&table, 1);
    uint32_t old = open_and_up(&table, 0);
    nccl_pairs_busy(table.pairs, old, 1, table.now_ns);
    nccl_pairs_link_gone(table.pairs, 0, table.now_ns, &table.wishes);
    assert_int_equal(closing(&table, 0, NCCL_PAIRS_GONE), old);
    assert_int_equal(nccl_pairs_of(table.pairs, 0), NCCL_PAIRS_NONE);
    nccl_pairs_link_gone(table.pairs, 0, table.now_ns, &table.wishes);
    nccl_pairs_link(table.pairs, 0, 100, table.now_ns);
    uint32_t young = open_and_up(&table, 0);
    assert_int_not_equal(young, old);
    assert_int_equal(memory(&table), 20 * MIB);
    /* What crossed the wish on its way is about the old one, and changes nothing. */
    broke(&table, old);
    up(&table, old, 0);
    nccl_pairs_peer_closed(table.pairs, old, table.now_ns, &table.wishes);
    wished_nothing(&table);
    nccl_pairs_busy(table.pairs, old, -1, table.now_ns);
    ended(&table, old);
    assert_int_equal(nccl_pairs_of(table.pairs, 0), young);
    assert_int_equal(memory(&table), 10 * MIB);
    table_fini(&table);
}

/* A full table says "not now", closes who has been idle the longest, one for one, and opens when that has
 * ended: not before. */
static void make_room_in(struct nccl_pairs_config config)
{
    struct table table;
    table_init(&table, config);
    named(&table, 8);
    uint32_t pair[4];
    for (uint32_t i = 0; i < 4; i++) { pair[i] = open_and_up(&table, i); }
    table.now_ns += 1 * MS;
    assert_int_equal(want(&table, 2), NCCL_PAIRS_IS_UP); /* so 3 is older */
    table.now_ns += 1 * S - 1 * MS;
    assert_int_equal(want(&table, 0), NCCL_PAIRS_IS_UP);
    nccl_pairs_busy(table.pairs, pair[1], 1, table.now_ns);
    table.now_ns += NCCL_PAIRS_IDLE_NS - 1 * S - 1;
    assert_int_equal(want(&table, 5), NCCL_PAIRS_NO_ROOM);
    wished_nothing(&table); /* nobody was idle for long enough */
    table.now_ns += 2 * MS; /* 2 and 3 were */
    nccl_pairs_tick(table.pairs, table.now_ns, &table.wishes);
    assert_int_equal(closing(&table, 3, NCCL_PAIRS_FOR_ROOM), pair[3]); /* 1 is older but busy */
    nccl_pairs_tick(table.pairs, table.now_ns, &table.wishes);
    assert_int_equal(want(&table, 5), NCCL_PAIRS_NO_ROOM);
    wished_nothing(&table); /* one is enough */
    assert_int_equal(memory(&table), 40 * MIB);
    ended(&table, pair[3]);
    opening(&table, 5);
    wished_nothing(&table);
    assert_int_equal(memory(&table), 40 * MIB);
    assert_int_equal(nccl_pairs_stats(table.pairs)->closed_for_room, 1);
    table_fini(&table);
}

static void room_in_memory_is_made_by_closing_the_least_recently_used(void **state)
{
    (void)state;
    make_room_in(four);
}

static void room_in_number_is_made_by_closing_the_least_recently_used(void **state)
{
    (void)state;
    struct nccl_pairs_config config = four;
    config.pairs_max = 4;
    config.memory_max = UINT64_MAX;
    make_room_in(config);
}

/* Four are closed for others at once, then one each 5 s, however many wait. */
static void changes_are_rationed(void **state)
{
    (void)state;
    struct table table;
    struct nccl_pairs_config config = {.links_max = 12, .pairs_max = 6, .memory_max = UINT64_MAX, .nccl_bytes_first = 6 * MIB};
    table_init(&table, config);
    named(&table, 12);
    uint32_t pair[6];
    for (uint32_t i = 0; i < 6; i++) { pair[i] = open_and_up(&table, i); }
    table.now_ns += NCCL_PAIRS_IDLE_NS;
    for (uint32_t i = 6; i < 12; i++) { assert_int_equal(want(&table, i), NCCL_PAIRS_NO_ROOM); }
    for (uint32_t i = 0; i < 4; i++) { assert_int_equal(closing(&table, i, NCCL_PAIRS_FOR_ROOM), pair[i]); }
    wished_nothing(&table);
    table.now_ns += NCCL_PAIRS_CHANGE_NS - 1;
    for (uint32_t i = 6; i < 12; i++) { want(&table, i); }
    wished_nothing(&table);
    table.now_ns += 1;
    nccl_pairs_tick(table.pairs, table.now_ns, &table.wishes);
    assert_int_equal(closing(&table, 4, NCCL_PAIRS_FOR_ROOM), pair[4]);
    wished_nothing(&table);
    table.now_ns += NCCL_PAIRS_CHANGE_NS;
    for (uint32_t i = 6; i < 12; i++) { want(&table, i); }
    assert_int_equal(closing(&table, 5, NCCL_PAIRS_FOR_ROOM), pair[5]);
    table_fini(&table);
}

/* A pair that came up less than a second ago is left alone, however idle; a busy one too. */
static void the_young_and_the_busy_are_left_alone(void **state)
{
    (void)state;
    struct table table;
    struct nccl_pairs_config one = four;
    one.pairs_max = 1;
    table_init(&table, one);
    named(&table, 2);
    want(&table, 0);
    uint32_t pair = opening(&table, 0);
    table.now_ns += 12 * S; /* it took long to come up: unused for all that time */
    up(&table, pair, 6 * MIB);
    table.now_ns += 1 * S - 1;
    want(&table, 1);
    wished_nothing(&table);
    nccl_pairs_busy(table.pairs, pair, 1, table.now_ns);
    nccl_pairs_busy(table.pairs, pair, 1, table.now_ns);
    nccl_pairs_busy(table.pairs, pair, -1, table.now_ns);
    for (int i = 0; i < 5; i++) {
        table.now_ns += 4 * S;
        want(&table, 1);
        wished_nothing(&table);
    }
    nccl_pairs_busy(table.pairs, pair, -1, table.now_ns);
    wished_nothing(&table); /* last used now, and nobody waits who used his more recently */
    table.now_ns += 2 * S;
    want(&table, 1);
    wished_nothing(&table);
    table.now_ns += 1 * S;
    want(&table, 1); /* its use before this one is later than the other's last */
    assert_int_equal(closing(&table, 0, NCCL_PAIRS_FOR_ROOM), pair);
    table_fini(&table);
}

/* A rare link, even one with a burst, does not throw out a pair that is used; a link that is used more
 * does. */
static void the_rare_do_not_throw_out_the_used(void **state)
{
    (void)state;
    struct table table;
    struct nccl_pairs_config one = four;
    one.pairs_max = 1;
    table_init(&table, one);
    named(&table, 2);
    uint32_t pair = open_and_up(&table, 0);
    for (int i = 0; i < 20; i++) {
        table.now_ns += 3 * S;
        assert_int_equal(want(&table, 0), NCCL_PAIRS_IS_UP);
        if (i % 4 == 0) {
            for (int k = 0; k < 5; k++) {
                table.now_ns += 100 * MS;
                assert_int_equal(want(&table, 1), NCCL_PAIRS_NO_ROOM);
                wished_nothing(&table);
            }
        }
    }
    for (int i = 0; i < 2; i++) {
        table.now_ns += 1200 * MS;
        want(&table, 1);
    }
    assert_int_equal(closing(&table, 0, NCCL_PAIRS_FOR_ROOM), pair);
    table_fini(&table);
}

/* Fills the table with four pairs that cannot be closed for others. */
static void fill(struct table *table, uint32_t pair[4])
{
    for (uint32_t i = 0; i < 4; i++) {
        pair[i] = open_and_up(table, i);
        nccl_pairs_busy(table->pairs, pair[i], 1, table->now_ns);
    }
}

static void break_and_end(struct table *table, uint32_t link, uint32_t pair)
{
    broke(table, pair);
    closing(table, link, NCCL_PAIRS_BROKE);
    ended(table, pair);
}

/* Room goes to the link whose last transfer but one is the latest, not to who asked first. */
static void the_hottest_is_served_first(void **state)
{
    (void)state;
    struct table table;
    table_init(&table, four);
    named(&table, 8);
    uint32_t pair[4];
    fill(&table, pair);
    const uint32_t order[] = {4, 6, 5, 7};
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 4; i++) {
            table.now_ns += 1 * MS;
            assert_int_equal(want(&table, order[i]), NCCL_PAIRS_NO_ROOM);
        }
        table.now_ns += 2 * S;
    }
    want(&table, 6); /* 2 s ago; the others 4 s ago, 7 the latest of them */
    wished_nothing(&table);
    break_and_end(&table, 0, pair[0]);
    opening(&table, 6);
    break_and_end(&table, 1, pair[1]);
    opening(&table, 7);
    break_and_end(&table, 2, pair[2]);
    opening(&table, 5);
    wished_nothing(&table);
    table_fini(&table);
}

/* Among links that had no transfer before, the first to come is the first to be served; one that is not heard of for
 * 5 s is no longer in line. */
static void newcomers_are_served_in_turn(void **state)
{
    (void)state;
    struct table table;
    table_init(&table, four);
    named(&table, 8);
    uint32_t pair[4];
    fill(&table, pair);
    const uint32_t order[] = {6, 4, 7, 5};
    for (int i = 0; i < 4; i++) {
        want(&table, order[i]);
        table.now_ns += 1 * MS;
    }
    for (uint32_t i = 0; i < 3; i++) {
        break_and_end(&table, i, pair[i]);
        opening(&table, order[i]);
    }
    assert_int_equal(nccl_pairs_stats(table.pairs)->waiting, 1);
    table.now_ns += NCCL_PAIRS_WAIT_NS;
    break_and_end(&table, 3, pair[3]);
    wished_nothing(&table);
    assert_int_equal(nccl_pairs_stats(table.pairs)->waiting, 0);
    table_fini(&table);
}

/* D opens only as an answer: a link that was told "not now" has its room kept until it asks again, or for
 * 5 s. */
static void d_keeps_the_place_of_who_asked(void **state)
{
    (void)state;
    struct table table;
    struct nccl_pairs_config one = four;
    one.pairs_max = 1;
    table_init(&table, one);
    named(&table, 4);
    uint64_t retry_ns = 0;
    uint32_t pair = open_and_up(&table, 0);
    table.now_ns += NCCL_PAIRS_IDLE_NS - 1;
    assert_int_equal(nccl_pairs_ask(table.pairs, 1, SLOTS, table.now_ns, &retry_ns, &table.wishes), NCCL_PAIRS_NO_ROOM);
    assert_int_equal(retry_ns, 1 * S);
    table.now_ns += 1;
    assert_int_equal(nccl_pairs_ask(table.pairs, 1, SLOTS, table.now_ns, &retry_ns, &table.wishes), NCCL_PAIRS_NO_ROOM);
    assert_int_equal(retry_ns, 500 * MS); /* room is on its way */
    closing(&table, 0, NCCL_PAIRS_FOR_ROOM);
    ended(&table, pair);
    wished_nothing(&table);
    assert_int_equal(nccl_pairs_ask(table.pairs, 2, SLOTS, table.now_ns, &retry_ns, &table.wishes), NCCL_PAIRS_NO_ROOM);
    wished_nothing(&table);
    assert_int_equal(nccl_pairs_ask(table.pairs, 1, SLOTS, table.now_ns, &retry_ns, &table.wishes), NCCL_PAIRS_IS_OPENING);
    assert_int_equal(retry_ns, 0);
    ended(&table, (broke(&table, opening(&table, 1)), closing(&table, 1, NCCL_PAIRS_BROKE)));
    table.now_ns += NCCL_PAIRS_WAIT_NS + 1; /* 2 did not ask again */
    assert_int_equal(nccl_pairs_ask(table.pairs, 3, SLOTS, table.now_ns, &retry_ns, &table.wishes), NCCL_PAIRS_IS_OPENING);
    opening(&table, 3);
    table_fini(&table);
}

/* D holds up a P that does not pause after a failure, and not one that does. */
static void d_holds_up_who_does_not_pause(void **state)
{
    (void)state;
    struct table table;
    table_init(&table, four);
    named(&table, 1);
    uint64_t retry_ns = 0;
    nccl_pairs_ask(table.pairs, 0, SLOTS, table.now_ns, &retry_ns, &table.wishes);
    uint32_t pair = opening(&table, 0);
    broke(&table, pair);
    closing(&table, 0, NCCL_PAIRS_BROKE);
    ended(&table, pair);
    table.now_ns += 400 * MS;
    assert_int_equal(nccl_pairs_ask(table.pairs, 0, SLOTS, table.now_ns, &retry_ns, &table.wishes), NCCL_PAIRS_PAUSED);
    assert_int_equal(retry_ns, 100 * MS);
    wished_nothing(&table);
    table.now_ns += 500 * MS; /* P heard of it 100 ms before D */
    assert_int_equal(nccl_pairs_ask(table.pairs, 0, SLOTS, table.now_ns, &retry_ns, &table.wishes), NCCL_PAIRS_IS_OPENING);
    table_fini(&table);
}

/* A P that asks and gives up before the pair is up pauses as after a failure, longer each time; one that closes a pair
 * that was up does not. */
static void giving_up_is_a_failure(void **state)
{
    (void)state;
    struct table table;
    table_init(&table, four);
    named(&table, 1);
    uint64_t retry_ns = 0;
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(nccl_pairs_ask(table.pairs, 0, SLOTS, table.now_ns, &retry_ns, &table.wishes), NCCL_PAIRS_IS_OPENING);
        uint32_t pair = opening(&table, 0);
        nccl_pairs_peer_closed(table.pairs, pair, table.now_ns, &table.wishes);
        closing(&table, 0, NCCL_PAIRS_PEER);
        ended(&table, pair);
        assert_int_equal(nccl_pairs_ask(table.pairs, 0, SLOTS, table.now_ns, &retry_ns, &table.wishes), NCCL_PAIRS_PAUSED);
        assert_int_equal(retry_ns, (NCCL_PAIRS_PAUSE_MIN_NS << i) / 2);
        table.now_ns += retry_ns;
    }
    assert_int_equal(nccl_pairs_ask(table.pairs, 0, SLOTS, table.now_ns, &retry_ns, &table.wishes), NCCL_PAIRS_IS_OPENING);
    uint32_t pair = opening(&table, 0);
    up(&table, pair, 0);
    nccl_pairs_peer_closed(table.pairs, pair, table.now_ns, &table.wishes);
    closing(&table, 0, NCCL_PAIRS_PEER);
    ended(&table, pair);
    assert_int_equal(nccl_pairs_ask(table.pairs, 0, SLOTS, table.now_ns, &retry_ns, &table.wishes), NCCL_PAIRS_IS_OPENING);
    opening(&table, 0);
    table_fini(&table);
}

/* D gives a link no pair while the one before is ending, so that no P has all of them; one that is stuck, or another
 * link's, is no reason. */
static void a_link_ends_one_before_the_next(void **state)
{
    (void)state;
    struct table table;
    table_init(&table, four);
    named(&table, 2);
    uint64_t retry_ns = 0;
    uint32_t pair[2];
    for (uint32_t i = 0; i < 2; i++) { /* the second is not waited for: it gets stuck */
        pair[i] = open_and_up(&table, 0);
        nccl_pairs_peer_closed(table.pairs, pair[i], table.now_ns, &table.wishes);
        closing(&table, 0, NCCL_PAIRS_PEER);
        assert_int_equal(nccl_pairs_ask(table.pairs, 0, SLOTS, table.now_ns, &retry_ns, &table.wishes), NCCL_PAIRS_NO_ROOM);
        assert_int_equal(retry_ns, 500 * MS);
        wished_nothing(&table);
        assert_int_equal(nccl_pairs_stats(table.pairs)->waiting, 0);
        if (i == 0) { ended(&table, pair[i]); } else { nccl_pairs_stuck(table.pairs, pair[i], table.now_ns, &table.wishes); }
    }
    assert_int_equal(nccl_pairs_ask(table.pairs, 0, SLOTS, table.now_ns, &retry_ns, &table.wishes), NCCL_PAIRS_IS_OPENING);
    uint32_t third = opening(&table, 0);
    up(&table, third, 0);
    nccl_pairs_peer_closed(table.pairs, third, table.now_ns, &table.wishes);
    closing(&table, 0, NCCL_PAIRS_PEER);
    assert_int_equal(nccl_pairs_ask(table.pairs, 1, SLOTS, table.now_ns, &retry_ns, &table.wishes), NCCL_PAIRS_IS_OPENING);
    opening(&table, 1);
    table_fini(&table);
}

/* An abort that never ends keeps its bytes and its slot, and nobody waits for it: others are closed
 * instead, its own link opens another, and what is left is all that can be had. */
static void the_stuck_hold_up_nobody(void **state)
{
    (void)state;
    struct table table;
    table_init(&table, four);
    named(&table, 8);
    uint32_t pair[4];
    for (uint32_t i = 0; i < 4; i++) { pair[i] = open_and_up(&table, i); }
    table.now_ns += NCCL_PAIRS_IDLE_NS;
    want(&table, 1);
    want(&table, 2);
    want(&table, 5);
    assert_int_equal(closing(&table, 0, NCCL_PAIRS_FOR_ROOM), pair[0]);
    nccl_pairs_stuck(table.pairs, pair[0], table.now_ns, &table.wishes);
    assert_int_equal(closing(&table, 3, NCCL_PAIRS_FOR_ROOM), pair[3]);
    ended(&table, pair[3]);
    uint32_t fifth = opening(&table, 5);
    up(&table, fifth, 6 * MIB);
    assert_int_equal(memory(&table), 40 * MIB);
    /* All get stuck but one: what is left is not enough for a fifth, and it is not tried. */
    for (int i = 0; i < 3; i++) {
        uint32_t which = i == 0 ? pair[1] : i == 1 ? pair[2] : fifth;
        broke(&table, which);
        wished(&table);
        nccl_pairs_stuck(table.pairs, which, table.now_ns, &table.wishes);
    }
    wished_nothing(&table);
    assert_int_equal(nccl_pairs_stats(table.pairs)->stuck, 4);
    assert_int_equal(want(&table, 6), NCCL_PAIRS_TOO_LARGE);
    ended(&table, fifth); /* after all */
    assert_int_equal(want(&table, 6), NCCL_PAIRS_IS_OPENING);
    opening(&table, 6);
    assert_int_equal(memory(&table), 40 * MIB);
    table_fini(&table);
}

/* What a communicator takes is learnt from those that were measured alone, upwards at once, downwards after eight. */
static void cost_is_the_largest_of_the_last_eight(void **state)
{
    (void)state;
    struct table table;
    table_init(&table, four);
    named(&table, 2);
    const uint64_t sizes[] = {7, 5, 5, 5, 5, 5, 5, 5}; /* MiB */
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        want(&table, 0);
        uint32_t pair = opening(&table, 0);
        up(&table, pair, sizes[i] * MIB);
        assert_int_equal(memory(&table), (4 + sizes[i]) * MIB);
        assert_int_equal(nccl_pairs_stats(table.pairs)->nccl_bytes_expected, 7 * MIB);
        nccl_pairs_peer_closed(table.pairs, pair, table.now_ns, &table.wishes);
        closing(&table, 0, NCCL_PAIRS_PEER);
        ended(&table, pair);
    }
    /* Two at once: neither's measure is its own; not that of one beside an abort either; nor none at all. */
    want(&table, 0);
    uint32_t a = opening(&table, 0);
    want(&table, 1);
    uint32_t b = opening(&table, 1);
    up(&table, a, 9 * MIB);
    up(&table, b, 1 * MIB);
    assert_int_equal(memory(&table), 22 * MIB);
    broke(&table, b);
    closing(&table, 1, NCCL_PAIRS_BROKE);
    broke(&table, a);
    closing(&table, 0, NCCL_PAIRS_BROKE);
    ended(&table, a);
    table.now_ns += 1 * S;
    want(&table, 0);
    a = opening(&table, 0);
    up(&table, a, 9 * MIB);
    assert_int_equal(memory(&table), 22 * MIB);
    ended(&table, b);
    want(&table, 1);
    b = opening(&table, 1);
    up(&table, b, 0);
    assert_int_equal(memory(&table), 22 * MIB);
    assert_int_equal(nccl_pairs_stats(table.pairs)->nccl_bytes_expected, 7 * MIB);
    nccl_pairs_peer_closed(table.pairs, b, table.now_ns, &table.wishes);
    closing(&table, 1, NCCL_PAIRS_PEER);
    ended(&table, b);
    want(&table, 1);
    b = opening(&table, 1);
    up(&table, b, 5 * MIB); /* the eighth of 5 */
    assert_int_equal(nccl_pairs_stats(table.pairs)->nccl_bytes_expected, 5 * MIB);
    table_fini(&table);
}

/* One that took more than there was is closed itself, at once and with a pause; the others stay; and the next
 * is only opened where there is room for as much. */
static void who_takes_too_much_goes_again(void **state)
{
    (void)state;
    struct table table;
    table_init(&table, four);
    named(&table, 8);
    for (uint32_t i = 0; i < 3; i++) { open_and_up(&table, i); }
    want(&table, 3);
    uint32_t large = opening(&table, 3);
    up(&table, large, 7 * MIB);
    assert_int_equal(closing(&table, 3, NCCL_PAIRS_OVERRUN), large);
    assert_int_equal(memory(&table), 41 * MIB);
    wished_nothing(&table);
    assert_int_equal(want(&table, 3), NCCL_PAIRS_PAUSED);
    ended(&table, large);
    assert_int_equal(memory(&table), 30 * MIB);
    table.now_ns += 1 * S;
    assert_int_equal(want(&table, 3), NCCL_PAIRS_NO_ROOM);
    wished_nothing(&table);
    assert_int_equal(nccl_pairs_stats(table.pairs)->overran, 1);
    table_fini(&table);
}

/* A wrong measure above the cap does not end pairs for good: the next is tried when everything is free. */
static void one_wrong_measure_is_not_believed_for_good(void **state)
{
    (void)state;
    struct table table;
    table_init(&table, four);
    named(&table, 8);
    want(&table, 0);
    uint32_t wrong = opening(&table, 0);
    up(&table, wrong, 500 * MIB);
    closing(&table, 0, NCCL_PAIRS_OVERRUN);
    ended(&table, wrong);
    assert_int_equal(want(&table, 1), NCCL_PAIRS_IS_OPENING);
    uint32_t probe = opening(&table, 1);
    assert_int_equal(memory(&table), 40 * MIB); /* all of it: it may be true */
    assert_int_equal(want(&table, 2), NCCL_PAIRS_NO_ROOM);
    up(&table, probe, 6 * MIB);
    assert_int_equal(nccl_pairs_stats(table.pairs)->nccl_bytes_expected, 6 * MIB);
    opening(&table, 2); /* what the probe did not need serves who waits */
    /* Slots that do not fit at all, and sizes that would wrap, are told so. */
    assert_int_equal(nccl_pairs_want(table.pairs, 3, 41 * MIB, table.now_ns, &table.wishes), NCCL_PAIRS_TOO_LARGE);
    assert_int_equal(nccl_pairs_want(table.pairs, 3, UINT64_MAX, table.now_ns, &table.wishes), NCCL_PAIRS_TOO_LARGE);
    assert_int_equal(nccl_pairs_want(table.pairs, 3, 34 * MIB + 1, table.now_ns, &table.wishes), NCCL_PAIRS_TOO_LARGE);
    wished_nothing(&table);
    table_fini(&table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_counted_from_the_wish_to_the_end),
        cmocka_unit_test(a_denial_pauses_for_what_it_said),
        cmocka_unit_test(failures_pause_longer_each_time),
        cmocka_unit_test(pause_is_the_peers_not_the_slots),
        cmocka_unit_test(a_pair_outlives_its_link),
        cmocka_unit_test(room_in_memory_is_made_by_closing_the_least_recently_used),
        cmocka_unit_test(room_in_number_is_made_by_closing_the_least_recently_used),
        cmocka_unit_test(changes_are_rationed),
        cmocka_unit_test(the_young_and_the_busy_are_left_alone),
        cmocka_unit_test(the_rare_do_not_throw_out_the_used),
        cmocka_unit_test(the_hottest_is_served_first),
        cmocka_unit_test(newcomers_are_served_in_turn),
        cmocka_unit_test(d_keeps_the_place_of_who_asked),
        cmocka_unit_test(d_holds_up_who_does_not_pause),
        cmocka_unit_test(giving_up_is_a_failure),
        cmocka_unit_test(a_link_ends_one_before_the_next),
        cmocka_unit_test(the_stuck_hold_up_nobody),
        cmocka_unit_test(cost_is_the_largest_of_the_last_eight),
        cmocka_unit_test(who_takes_too_much_goes_again),
        cmocka_unit_test(one_wrong_measure_is_not_believed_for_good),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
