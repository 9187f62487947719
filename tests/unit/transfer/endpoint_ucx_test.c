/* Two endpoints in one process over the ucx cable, with a fake UCX and pools on fake devices: that what the cable holds
 * back, the endpoint's events wait for; and which cable is taken where RDMA cannot have the GPU's memory. The cable by
 * itself: cable_ucx_device_test. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/kv_memory/fake_memory.h"
#include "tests/ucx/fake_ucx.h"
#include "tests/unit/transfer/endpoint_nodes.h" /* last: it names the nodes d and p */

enum { COUNT = 48 };

/* What the next start makes: [0] of D, [1] of P. */
static bool is_device[2], is_direct[2];
static struct kv_memory *memory[2];
static uint8_t *view[2];

static void adjust(struct kv_endpoint_config *config, bool receives)
{
    const int side = receives ? 0 : 1;
    static const struct ucx_api *api;
    if (receives) { api = fake_ucx_begin(); }
    fake_ucx.is_direct = is_direct[side];
    config->cables = "ucx,tcp";
    config->ucx = (struct kv_ucx_config){.mode = KV_UCX_RDMA, .api = api};
    memory[side] = NULL;
    view[side] = config->pool.base;
    if (is_device[side]) {
        const struct fake_memory_config device = {.pool_bytes = config->pool.bytes, .device = 1, .seed = 5, .delay_us_max = 500};
        memory[side] = fake_memory_create(&device);
        view[side] = fake_memory_view(memory[side]);
        config->pool = (struct kv_endpoint_pool){.base = fake_memory_base(memory[side]), .bytes = config->pool.bytes, .memfd = -1,
                                                 .memory = memory[side]};
        fake_ucx_device(config->pool.base, config->pool.bytes, view[side]);
    }
    for (size_t i = 0; i < config->pool.bytes; i++) { view[side][i] = receives ? 0xc5 : (uint8_t)(i * 2654435761u >> 13); }
}

static void start(bool d_device, bool p_device)
{
    is_device[0] = d_device;
    is_device[1] = p_device;
    is_direct[0] = is_direct[1] = true;
    assert_int_equal(nodes_start_with(adjust), 0);
}

static int stop(void **state)
{
    nodes_stop(state);
    for (int side = 0; side < 2; side++) { fake_memory_destroy(memory[side]); }
    return fake_ucx_end() ? 0 : -1;
}

static uint32_t d_block(uint32_t i) { return (7 * i + 3) % BLOCKS; }

static kv_send_t begin(void)
{
    uint32_t blocks[COUNT];
    kv_send_t send;
    for (uint32_t i = 0; i < COUNT; i++) { blocks[i] = d_block(i); }
    assert_false(failed(kv_endpoint_grant(d.endpoint, id1, blocks, COUNT, 60000, NULL, ticket, &ticket_bytes)));
    assert_false(failed(kv_endpoint_send_begin(p.endpoint, ticket, ticket_bytes, NULL, NULL, &send)));
    return send;
}

/* may_end: the transfer may fail meanwhile, and what is said of it then is refused as stale. */
static void push_layers(kv_send_t send, bool may_end)
{
    status_t st = STATUS_OK;
    for (uint32_t layer = 0; layer < LAYERS && !failed(st); layer++) {
        uint64_t mark = memory[1] ? fake_memory_mark(memory[1], NULL, NULL) : 0;
        st = kv_endpoint_push(p.endpoint, send, layer, 0, run, COUNT, mark);
    }
    if (!failed(st)) { st = kv_endpoint_commit(p.endpoint, send, "first", 5); }
    assert_true(!failed(st) || (may_end && st.code == ST_INVALID_ARGUMENT));
}

static void push_all(kv_send_t send) { push_layers(send, false); }

static bool all_is_there(void)
{
    bool same = true;
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (uint32_t i = 0; i < COUNT; i++) {
            same &= memcmp(view[0] + kv_layout_slice_offset(&layout, d_block(i), layer),
                           view[1] + kv_layout_slice_offset(&layout, run[i], layer), kv_layout_slice_bytes(&layout)) == 0;
        }
    }
    return same;
}

/* Until ops are at the device, all of which wait. */
static void ops_wait(struct kv_memory *at)
{
    uint64_t end_ns = clock_now_ns() + 20 * NS_PER_S;
    while (fake_memory_under_way(at) == 0) {
        assert_true(clock_now_ns() < end_ns);
        clock_sleep_ns(NS_PER_MS);
    }
}

static bool has_event(struct node *node)
{
    pthread_mutex_lock(&node->mutex);
    bool any = node->seen < node->count;
    pthread_mutex_unlock(&node->mutex);
    return any;
}

/* From GPU to GPU, and between a GPU and host memory either way round, KV goes by ucx. */
static void pools_of_either_kind_meet(void **state)
{
    for (int kind = 0; kind < 4; kind++) {
        start(kind & 1, kind & 2);
        push_all(begin());
        struct kv_event landed = event_wait(&d), acked = event_wait(&p);
        assert_int_equal(landed.kind, KV_EVENT_LANDED);
        assert_int_equal(acked.kind, KV_EVENT_ACKED);
        assert_string_equal(acked.stats.cable, "ucx");
        assert_string_equal(acked.stats.reason, "first choice");
        assert_true(all_is_there());
        struct kv_endpoint_stats stats;
        kv_endpoint_stats_get(p.endpoint, &stats);
        assert_int_equal(stats.ucx.puts, LAYERS * COUNT);
        assert_int_equal(stop(state), 0);
    }
    start(true, true); /* for the teardown */
}

/* Where no card can be given a side's GPU memory the link goes by tcp, and says why. */
static void without_gpudirect_tcp_is_taken(void **state)
{
    static const char *const why[2] = {"ucx is not offered by the receiver", "ucx: no network card can be given the GPU's KV pool"};
    for (int side = 0; side < 2; side++) {
        is_device[0] = is_device[1] = true;
        is_direct[side] = false;
        is_direct[1 - side] = true;
        assert_int_equal(nodes_start_with(adjust), 0);
        push_all(begin());
        assert_int_equal(event_wait(&d).kind, KV_EVENT_LANDED);
        struct kv_event acked = event_wait(&p);
        assert_int_equal(acked.kind, KV_EVENT_ACKED);
        assert_string_equal(acked.stats.cable, "tcp");
        if (strncmp(acked.stats.reason, why[side], strlen(why[side])) != 0) { fail_msg("side %d: %s", side, acked.stats.reason); }
        assert_true(all_is_there());
        assert_int_equal(stop(state), 0);
    }
    start(true, true);
}

/* D's blocks are its own again when its device has read them to the end, not when P has gone quiet. */
static void revoked_blocks_wait_for_the_device(void **state)
{
    (void)state;
    start(true, true);
    fake_memory_set_held(memory[0], true);
    push_all(begin());
    ops_wait(memory[0]);
    kv_endpoint_revoke(d.endpoint, id1);
    assert_int_equal(event_wait(&p).kind, KV_EVENT_SEND_FAILED); /* P has said that it is quiet */
    struct kv_endpoint_stats stats = {.revoked = 0};
    for (int i = 0; i < 20000 && (stats.revoked == 0 || stats.quarantined > 0); i++) {
        kv_endpoint_stats_get(d.endpoint, &stats);
        clock_sleep_ns(NS_PER_MS);
    }
    assert_int_equal(stats.revoked, 1);
    assert_int_equal(stats.quarantined, 0);
    assert_false(has_event(&d));
    fake_memory_set_held(memory[0], false);
    assert_int_equal(event_wait(&d).kind, KV_EVENT_FENCED);
}

/* P's blocks, likewise, after an abort. */
static void aborted_blocks_wait_for_the_device(void **state)
{
    (void)state;
    start(true, true);
    fake_memory_set_held(memory[1], true);
    kv_send_t send = begin();
    push_all(send);
    ops_wait(memory[1]);
    kv_endpoint_abort(p.endpoint, send);
    /* Another transfer, begun after it and ended before it, has the link go on. */
    const uint32_t other = d_block(COUNT);
    assert_false(failed(kv_endpoint_grant(d.endpoint, id2, &other, 1, 60000, NULL, ticket, &ticket_bytes)));
    kv_endpoint_revoke(d.endpoint, id2);
    assert_int_equal(event_wait(&d).kind, KV_EVENT_FENCED);
    assert_false(has_event(&p));
    fake_memory_set_held(memory[1], false);
    struct kv_event failed_event = event_wait(&p);
    assert_int_equal(failed_event.kind, KV_EVENT_SEND_FAILED);
    assert_int_equal(failed_event.status.code, ST_ABORTED);
    struct kv_event ended = event_wait(&d);
    assert_int_equal(ended.kind, KV_EVENT_FAILED);
    if (!ended.fenced) { assert_int_equal(event_wait(&d).kind, KV_EVENT_FENCED); }
}

/* A lost device ends the transfers of its side with INTERNAL, the peer's with UNAVAILABLE, and all blocks come back. */
static void a_lost_device_ends_the_link(void **state)
{
    for (int side = 0; side < 2; side++) {
        start(true, true);
        fake_memory_lose(memory[side]);
        push_layers(begin(), true);
        struct kv_event at_d = event_wait(&d), at_p = event_wait(&p);
        assert_int_equal(at_d.kind, KV_EVENT_FAILED);
        assert_int_equal(at_p.kind, KV_EVENT_SEND_FAILED);
        assert_int_equal(at_d.status.code, side == 0 ? ST_INTERNAL : ST_UNAVAILABLE);
        assert_int_equal(at_p.status.code, side == 0 ? ST_UNAVAILABLE : ST_INTERNAL);
        if (!at_d.fenced) { assert_int_equal(event_wait(&d).kind, KV_EVENT_FENCED); }
        assert_int_equal(stop(state), 0);
    }
    start(true, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(pools_of_either_kind_meet, stop),
        cmocka_unit_test_teardown(without_gpudirect_tcp_is_taken, stop),
        cmocka_unit_test_teardown(revoked_blocks_wait_for_the_device, stop),
        cmocka_unit_test_teardown(aborted_blocks_wait_for_the_device, stop),
        cmocka_unit_test_teardown(a_lost_device_ends_the_link, stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
