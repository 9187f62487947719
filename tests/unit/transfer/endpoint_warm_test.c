/* A link with two cables: one that carries at once (tcp), and a better one that takes its time (slow_cable, led by the
 * test). */
#include "transfer/transfer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/unit/transfer/endpoint_nodes.h"
#include "tests/unit/transfer/slow_cable.h"

extern const struct kv_cable_ops kv_cable_tcp;
static const struct kv_cable_ops *const table[] = {&slow_cable, &kv_cable_tcp, NULL};

static atomic_bool stream_refuses;
static status_t (*socket_send)(void *context, void *stream, const void *message, size_t bytes);

static status_t stream_send(void *context, void *stream, const void *message, size_t bytes)
{
    if (atomic_load(&stream_refuses)) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_PEER); }
    return socket_send(context, stream, message, bytes);
}

static void both(struct kv_endpoint_config *config, bool receives)
{
    config->cable_table = table;
    config->cables = "slow,tcp";
    if (!receives) {
        socket_send = config->stream.send;
        config->stream.send = stream_send;
    }
}

static void alone(struct kv_endpoint_config *config, bool receives)
{
    both(config, receives);
    if (receives) { config->cables = "slow"; }
}

static void only_p_has_it(struct kv_endpoint_config *config, bool receives)
{
    both(config, receives);
    if (receives) { config->cables = "tcp"; }
}

static int start(void (*adjust)(struct kv_endpoint_config *config, bool receives))
{
    slow_cable_reset();
    atomic_store(&stream_refuses, false);
    return nodes_start_with(adjust);
}

static int start_both(void **state)
{
    (void)state;
    return start(both);
}

static int start_alone(void **state)
{
    (void)state;
    return start(alone);
}

static int start_only_p(void **state)
{
    (void)state;
    return start(only_p_has_it);
}

/* A transfer of 4 blocks from `block` on to the same blocks of D; its first layer is pushed. */
static kv_send_t begin(uint8_t id, uint32_t block)
{
    kv_send_t send = {0};
    const kv_xfer_id_t xfer = {{id}};
    memset((uint8_t *)p.pool.base + block * kv_layout_block_bytes(&layout), id, 4 * kv_layout_block_bytes(&layout));
    assert_int_equal(kv_endpoint_grant(d.endpoint, xfer, run + block, 4, 60000, NULL, ticket, &ticket_bytes).code, ST_OK);
    assert_int_equal(kv_endpoint_send_begin(p.endpoint, ticket, ticket_bytes, NULL, NULL, &send).code, ST_OK);
    assert_int_equal(kv_endpoint_push(p.endpoint, send, 0, 0, run + block, 4, 0).code, ST_OK);
    return send;
}

static void finish(kv_send_t send, uint32_t block)
{
    assert_int_equal(kv_endpoint_push(p.endpoint, send, 1, 0, run + block, 4, 0).code, ST_OK);
    assert_int_equal(kv_endpoint_commit(p.endpoint, send, NULL, 0).code, ST_OK);
}

static void transfer(uint8_t id, const char *cable, const char *reason)
{
    finish(begin(id, 0), 0);
    struct kv_event event = event_wait(&p);
    assert_int_equal(event.kind, KV_EVENT_ACKED);
    assert_string_equal(event.stats.cable, cable);
    if (!strstr(event.stats.reason, reason)) { fail_msg("\"%s\" does not say \"%s\"", event.stats.reason, reason); }
    event = event_wait(&d);
    assert_int_equal(event.kind, KV_EVENT_LANDED);
    assert_string_equal(event.stats.cable, cable);
    assert_int_equal(event.stats.bytes, 4 * kv_layout_block_bytes(&layout));
    const uint8_t *bytes = d.pool.base;
    for (size_t i = 0; i < 4 * kv_layout_block_bytes(&layout); i++) { assert_int_equal(bytes[i], id); }
}

static struct kv_endpoint_stats stats_of(const struct node *node)
{
    struct kv_endpoint_stats stats;
    kv_endpoint_stats_get(node->endpoint, &stats);
    return stats;
}

static void wait_for_held(uint32_t frames)
{
    for (int i = 0; slow_cable_counts().held < frames; i++) {
        if (i == 30000) { fail_msg("%u frames never came", frames); }
        clock_sleep_ns(NS_PER_MS);
    }
}

static void wait_for_landed(uint64_t slices)
{
    for (int i = 0; stats_of(&d).slices_landed < slices; i++) {
        if (i == 30000) { fail_msg("%u slices never landed", (unsigned)slices); }
        clock_sleep_ns(NS_PER_MS);
    }
}

/* Transfers go over the link's own cable until the better one is ready, and then over that; the better one is
 * connected once, and asked for with each transfer. */
static void tcp_carries_until_it_is_ready(void **state)
{
    (void)state;
    transfer(1, "tcp", "slow is not up yet");
    transfer(2, "tcp", "slow is not up yet");
    assert_int_equal(slow_cable_counts().connects, 1);
    assert_int_equal(slow_cable_counts().asks, 2);
    slow_cable_set_ready(true);
    assert_int_equal(slow_cable_counts().used[SLOW_P], 0);
    transfer(3, "slow", "first choice");
    kv_send_t send = begin(4, 0);
    wait_for_landed(3 * 8 + 4);
    assert_int_equal(slow_cable_counts().used[SLOW_P], 1);
    assert_int_equal(slow_cable_counts().used[SLOW_D], 1);
    finish(send, 0);
    assert_int_equal(event_wait(&p).kind, KV_EVENT_ACKED);
    assert_int_equal(event_wait(&d).kind, KV_EVENT_LANDED);
    assert_int_equal(slow_cable_counts().used[SLOW_P], 0);
    assert_int_equal(slow_cable_counts().used[SLOW_D], 0);
    slow_cable_set_ready(false);
    transfer(5, "tcp", "slow is not up yet");
    assert_int_equal(slow_cable_counts().connects, 1);
    assert_int_equal(stats_of(&p).links_up, 1);
    assert_int_equal(stats_of(&p).links_lost, 0);
}

/* A better cable that breaks in mid-transfer ends what it carried, on both sides and with its blocks free, and nothing
 * else: what tcp carries goes on, and the next transfer takes tcp. The same whichever side sees it first, and whether
 * or not it can tell the other. */
static void a_break_ends_what_it_carried(void **state)
{
    (void)state;
    uint8_t id = 10;
    for (int side = SLOW_P; side <= SLOW_D; side++) {
        for (int tells = 0; tells < 2; tells++) {
            uint64_t landed = stats_of(&d).slices_landed;
            slow_cable_set_ready(false);
            kv_send_t by_tcp = begin(id++, 0);
            wait_for_landed(landed + 4);
            slow_cable_set_ready(true);
            kv_send_t by_slow = begin(id++, 8); /* one slice lands, so that D knows whose it is */
            wait_for_landed(landed + 8);
            uint32_t held = slow_cable_counts().held;
            slow_cable_set_held(true);
            assert_int_equal(kv_endpoint_push(p.endpoint, by_slow, 1, 0, run + 8, 2, 0).code, ST_OK);
            wait_for_held(held + 1);
            slow_cable_set_ready(false);
            slow_cable_break(side, tells);
            struct kv_event event;
            if (side == SLOW_D && !tells) { /* P keeps its bytes until its own half has let go of them */
                assert_int_equal(event_wait(&d).kind, KV_EVENT_FAILED);
                pthread_mutex_lock(&p.mutex);
                assert_int_equal(p.seen, p.count);
                pthread_mutex_unlock(&p.mutex);
                slow_cable_break(SLOW_P, false);
                d.seen--;
            }
            event = event_wait(&p);
            assert_int_equal(event.kind, KV_EVENT_SEND_FAILED);
            assert_true(event.send.value == by_slow.value);
            assert_int_equal(event.status.code, ST_UNAVAILABLE);
            assert_string_equal(event.stats.cable, "slow");
            if (side == SLOW_P) { assert_non_null(strstr(event.text, "the slow cable broke: the test broke it")); }
            event = event_wait(&d);
            assert_int_equal(event.kind, KV_EVENT_FAILED);
            assert_int_equal(event.xfer_id.bytes[0], id - 1);
            assert_true(event.fenced);
            assert_true(event.status.code == ST_UNAVAILABLE || event.status.code == ST_ABORTED); /* seen, or told by P */
            slow_cable_set_held(false);
            finish(by_tcp, 0);
            assert_int_equal(event_wait(&p).kind, KV_EVENT_ACKED);
            assert_int_equal(event_wait(&d).kind, KV_EVENT_LANDED);
            transfer(id++, "tcp", "slow is not up yet");
            slow_cable_set_ready(true);
            if (side == SLOW_P && !tells) { slow_cable_break(SLOW_D, false); } /* with nothing on it */
            transfer(id++, "slow", "first choice");
        }
    }
    assert_int_equal(stats_of(&p).links_lost, 0);
    assert_int_equal(stats_of(&d).links_lost, 0);
    assert_int_equal(stats_of(&d).quarantined, 0);
    assert_int_equal(slow_cable_counts().used[SLOW_P], 0);
    assert_int_equal(slow_cable_counts().used[SLOW_D], 0);
}

/* An abort reaches the cable that carries the transfer, and only that one; D's revoke ends it as well. */
static void aborts_reach_the_right_cable(void **state)
{
    (void)state;
    kv_send_t by_tcp = begin(1, 0);
    wait_for_landed(4);
    slow_cable_set_ready(true);
    slow_cable_set_held(true);
    kv_send_t by_slow = begin(2, 8);
    wait_for_held(1);
    kv_endpoint_abort(p.endpoint, by_tcp);
    struct kv_event event = event_wait(&p);
    assert_true(event.send.value == by_tcp.value);
    assert_int_equal(event.kind, KV_EVENT_SEND_FAILED);
    assert_int_equal(event_wait(&d).kind, KV_EVENT_FAILED);
    assert_int_equal(slow_cable_counts().aborts, 0);
    kv_endpoint_abort(p.endpoint, by_slow);
    event = event_wait(&d);
    assert_int_equal(event.kind, KV_EVENT_FAILED);
    assert_int_equal(event.xfer_id.bytes[0], 2);
    assert_true(event.fenced);
    assert_true(slow_cable_counts().aborts > 0);
    /* P's end waits until its bytes are no longer read: D's placing, which finds the grant over. */
    slow_cable_set_held(false);
    event = event_wait(&p);
    assert_true(event.send.value == by_slow.value);
    assert_int_equal(event.kind, KV_EVENT_SEND_FAILED);
    assert_int_equal(event.status.code, ST_ABORTED);
    assert_int_equal(stats_of(&d).slices_landed, 4);
    assert_int_equal(stats_of(&d).slices_refused, 4);
    uint32_t aborts = slow_cable_counts().aborts;
    slow_cable_set_held(true);
    (void)begin(3, 8);
    wait_for_held(2);
    const kv_xfer_id_t third = {{3}};
    kv_endpoint_revoke(d.endpoint, third);
    assert_int_equal(event_wait(&d).kind, KV_EVENT_FENCED);
    slow_cable_set_held(false);
    assert_int_equal(event_wait(&p).kind, KV_EVENT_SEND_FAILED);
    assert_true(slow_cable_counts().aborts > aborts);
}

/* The link's end fences both cables on both sides, and ends what each carried. */
static void closing_fences_both(void **state)
{
    (void)state;
    (void)begin(1, 0);
    wait_for_landed(4);
    slow_cable_set_ready(true);
    slow_cable_set_held(true);
    (void)begin(2, 8);
    wait_for_held(1);
    socket_streams_stop(p.streams); /* the link breaks, the processes live */
    for (int i = 0; i < 2; i++) {
        struct kv_event event = event_wait(&d);
        assert_int_equal(event.kind, KV_EVENT_FAILED);
        assert_true(event.fenced);
        assert_int_equal(event.status.code, ST_UNAVAILABLE);
    }
    kv_endpoint_destroy(p.endpoint);
    p.endpoint = NULL;
    assert_int_equal(slow_cable_counts().fences[SLOW_P], 1);
    assert_int_equal(slow_cable_counts().fences[SLOW_D], 1);
    slow_cable_set_held(false); /* what was held is gone */
    assert_int_equal(stats_of(&d).slices_landed, 4);
}

/* Where no other cable is, it is the link's own: the link is ready when it is, and ends when it breaks. */
static void alone_it_is_the_links_own(void **state)
{
    (void)state;
    slow_cable_set_ready(true);
    transfer(1, "slow", "first choice");
    assert_int_equal(slow_cable_counts().asks, 0);
    slow_cable_set_held(true);
    (void)begin(2, 8);
    wait_for_held(1);
    slow_cable_break(SLOW_P, true);
    struct kv_event event = event_wait(&p);
    assert_int_equal(event.kind, KV_EVENT_SEND_FAILED);
    assert_int_equal(event.status.code, ST_UNAVAILABLE);
    event = event_wait(&d);
    assert_int_equal(event.kind, KV_EVENT_FAILED);
    assert_true(event.fenced);
    assert_int_equal(stats_of(&p).links_lost, 1);
}

/* A peer that has not offered the cable is not spoken to, and one that speaks to a cable that is not there is not
 * heard. */
static void what_is_not_offered_is_not_used(void **state)
{
    (void)state;
    slow_cable_set_ready(true);
    transfer(1, "tcp", "slow is not offered by the receiver");
    assert_int_equal(slow_cable_counts().connects, 0);
    assert_int_equal(slow_cable_counts().asks, 0);
}

/* The link is closed when its stream refuses what a cable says, and only when the cable has returned. */
static void a_deaf_stream_ends_the_link(void **state)
{
    (void)state;
    transfer(1, "tcp", "slow is not up yet");
    slow_cable_mutter(SLOW_P);
    atomic_store(&stream_refuses, true);
    slow_cable_mutter(SLOW_P);
    for (int i = 0; stats_of(&p).links_lost == 0; i++) {
        if (i == 30000) { fail_msg("the link lives on"); }
        clock_sleep_ns(NS_PER_MS);
    }
    assert_int_equal(slow_cable_counts().fences[SLOW_P], 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(tcp_carries_until_it_is_ready, start_both, nodes_stop),
        cmocka_unit_test_setup_teardown(a_break_ends_what_it_carried, start_both, nodes_stop),
        cmocka_unit_test_setup_teardown(aborts_reach_the_right_cable, start_both, nodes_stop),
        cmocka_unit_test_setup_teardown(closing_fences_both, start_both, nodes_stop),
        cmocka_unit_test_setup_teardown(alone_it_is_the_links_own, start_alone, nodes_stop),
        cmocka_unit_test_setup_teardown(what_is_not_offered_is_not_used, start_only_p, nodes_stop),
        cmocka_unit_test_setup_teardown(a_deaf_stream_ends_the_link, start_both, nodes_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
