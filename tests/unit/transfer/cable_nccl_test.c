/* The two halves of the nccl cable, in one process over fakes of NCCL and of the device, with a link that is the test's:
 * it can keep back what one half says, and say what the other never would. */
#include "transfer/cable_nccl.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/kv_memory/fake_memory.h"
#include "tests/nccl/fake_nccl.h"
#include "transfer/cable_nccl_state.h"

enum { BLOCKS = 64, LAYERS = 2, LINKS = 4, QUEUE = 256, PUSHES = 64, LINK = 1 };

static const struct kv_layout layout = {.block_tokens = 16, .layer_count = LAYERS, .kv_heads = 1, .head_dim = 64, .dtype = DTYPE_F32};

struct said { uint32_t link; uint8_t bytes[KV_CABLE_MESSAGE_BYTES_MAX]; size_t count; };

struct side {
    struct kv_cable_host host;
    struct kv_cable *cable;
    struct kv_loop *loop;
    struct kv_memory *memory;
    uint8_t *view;
    struct said said[QUEUE];
    uint32_t said_first, said_count;
    uint32_t heard_kind[16]; /* of the peer's messages, by kind */
    bool is_own, is_kept;
    uint32_t connected, lost;
    status_t lost_status;
    char lost_text[256];
    /* D */
    bool refuses, is_dead; /* no grant; a grant that ends before its slices have come */
    uint32_t blocks[BLOCKS];
    uint32_t accepted, landed, bad_sums, held, let_go;
    /* P */
    uint32_t done, dropped;
};

static struct side p, d;
static struct kv_cable_push pushes[PUSHES];
/* What is kept from whom: messages of one kind, all, or none. */
static enum nccl_wire_kind kept_kind;
static struct side *kept_from;
static struct nccl_wire_msg kept; /* the last one */
static uint32_t kept_count;

/* ---- the endpoint */

static bool host_is_own(void *side, uint32_t link) { return link == LINK && ((struct side *)side)->is_own; }
static bool host_is_sender(void *side, uint32_t link) { return link == LINK && side == &p; }
static uint64_t host_peer_identity(void *side, uint32_t link)
{
    assert_ptr_equal(side, &d);
    return 40 + link;
}
static const struct kv_layout *host_peer_layout(void *side, uint32_t link)
{
    assert_int_equal(link, LINK);
    return ((struct side *)side)->host.layout;
}
static void host_connected(void *side, uint32_t link)
{
    assert_int_equal(link, LINK);
    ((struct side *)side)->connected++;
}
static void host_lost(void *side_, uint32_t link, status_t status, const char *text)
{
    struct side *side = side_;
    assert_int_equal(link, LINK);
    side->lost++;
    side->lost_status = status;
    snprintf(side->lost_text, sizeof side->lost_text, "%s", text);
}
static void host_say(void *side_, uint32_t link, const void *bytes, size_t count)
{
    struct side *side = side_;
    assert_true(side->said_count < QUEUE);
    struct said *said = &side->said[(side->said_first + side->said_count++) % QUEUE];
    said->link = link;
    said->count = count;
    memcpy(said->bytes, bytes, count);
}
static bool host_frame_accept(void *side_, uint32_t link, const struct kv_frame *frame, struct kv_landing *ret_landing)
{
    struct side *side = side_;
    assert_int_equal(link, LINK);
    if (side->refuses) { return false; }
    side->accepted++;
    *ret_landing = (struct kv_landing){.grant_epoch = frame->grant_epoch, .blocks = side->blocks + frame->first};
    return true;
}
static bool host_landing_is_live(void *side, const struct kv_landing *landing)
{
    (void)landing;
    return !((struct side *)side)->is_dead;
}
static void host_frame_landed(void *side_, uint32_t link, const struct kv_landing *landing, const struct kv_frame *frame, bool crc_ok)
{
    struct side *side = side_;
    (void)landing;
    assert_int_equal(link, LINK);
    side->landed += frame->count;
    side->bad_sums += !crc_ok;
}
static void host_hold(void *side, const struct kv_landing *landing)
{
    (void)landing;
    ((struct side *)side)->held++;
}
static void host_let_go(void *side, const struct kv_landing *landing)
{
    (void)landing;
    ((struct side *)side)->let_go++;
}
static void host_push_done(void *side_, struct kv_cable_push *push)
{
    struct side *side = side_;
    assert_true(push->frame.count > 0);
    side->done++;
    side->dropped += push->dropped;
    push->frame.count = 0; /* the endpoint's again */
}
static void host_memory_kept(void *side) { ((struct side *)side)->is_kept = true; }

static status_t side_open(struct side *side, const struct kv_nccl_config *config, struct diag *diag)
{
    bool is_d = side == &d;
    *side = (struct side){.is_own = true};
    size_t bytes = BLOCKS * kv_layout_block_bytes(&layout);
    side->memory = fake_memory_create(&(struct fake_memory_config){.pool_bytes = bytes, .device = is_d ? 1 : 2, .seed = is_d + 5});
    side->view = fake_memory_view(side->memory);
    for (uint32_t i = 0; i < BLOCKS; i++) { side->blocks[i] = BLOCKS - 1 - i; }
    memset(side->view, is_d ? 0xdd : 0x11, bytes);
    for (size_t i = 0; !is_d && i < bytes; i += 64) { memcpy(side->view + i, &i, sizeof i); }
    assert_false(failed(kv_loop_create(&side->loop)));
    side->host = (struct kv_cable_host){
        .endpoint = side, .loop = side->loop, .layout = &layout,
        .pool = {.base = fake_memory_base(side->memory), .bytes = bytes, .memfd = -1, .memory = side->memory},
        .block_count = BLOCKS, .frame_blocks = 4, .links_max = LINKS, .connect_ns = NS_PER_S, .receives = is_d, .nccl = *config,
        .peer_layout = host_peer_layout, .is_own = host_is_own, .is_sender = host_is_sender, .peer_identity = host_peer_identity, .connected = host_connected, .lost = host_lost, .say = host_say, .frame_accept = host_frame_accept,
        .landing_is_live = host_landing_is_live, .frame_landed = host_frame_landed, .hold = host_hold, .let_go = host_let_go,
        .push_done = host_push_done, .memory_kept = host_memory_kept,
    };
    return kv_cable_nccl.open(&side->host, diag, &side->cable);
}

static void side_close(struct side *side)
{
    if (side->cable) {
        fake_memory_set_held(side->memory, false);
        kv_cable_nccl.fence(side->cable, LINK);
        kv_cable_nccl.close(side->cable);
    }
    side->cable = NULL;
    kv_loop_destroy(side->loop);
    fake_memory_destroy(side->memory);
}

/* ---- the link */

static void deliver(struct side *from, struct side *to)
{
    while (from->said_count > 0) {
        struct said said = from->said[from->said_first];
        struct nccl_wire_msg msg;
        from->said_first = (from->said_first + 1) % QUEUE;
        from->said_count--;
        assert_true(nccl_wire_read(said.bytes, said.count, &msg));
        if (from == kept_from && msg.kind == kept_kind) {
            kept = msg;
            kept_count++;
            continue;
        }
        to->heard_kind[msg.kind]++;
        kv_cable_nccl.message(to->cable, said.link, said.bytes, said.count);
    }
}

static void turn(void)
{
    deliver(&p, &d);
    deliver(&d, &p);
    kv_loop_run_once(p.loop, 0);
    kv_loop_run_once(d.loop, 1);
}

static void until_at(const uint32_t *counter, uint32_t value, int line)
{
    for (uint64_t end_ns = clock_now_ns() + 30 * NS_PER_S; *counter < value;) {
        if (clock_now_ns() > end_ns) { fail_msg("line %d: %u never became %u", line, *counter, value); }
        turn();
    }
}
#define until(counter, value) until_at(counter, value, __LINE__)

static void settle(void)
{
    for (int i = 0; i < 50; i++) { turn(); }
}

static void say_to(struct side *to, const struct nccl_wire_msg *msg)
{
    uint8_t bytes[KV_CABLE_MESSAGE_BYTES_MAX];
    size_t count = nccl_wire_write(msg, bytes);
    kv_cable_nccl.message(to->cable, LINK, bytes, count);
}

static void join(void)
{
    struct kv_cable_offer offer;
    static const uint8_t token[KV_CABLE_TOKEN_BYTES];
    assert_false(failed(kv_cable_nccl.offer(d.cable, LINK, &offer)));
    assert_null(kv_cable_nccl.mismatch(p.cable, offer.bytes, offer.size));
    assert_false(failed(kv_cable_nccl.connect(p.cable, LINK, "", offer.bytes, offer.size, token)));
}

static void push(uint32_t number, uint32_t layer, uint32_t first, uint32_t send_slot)
{
    pushes[number] = (struct kv_cable_push){.frame = {.grant_epoch = 9, .layer = layer, .first = first, .count = 4}, .send_slot = send_slot};
    for (uint32_t i = 0; i < 4; i++) { pushes[number].blocks[i] = first + i; }
    kv_cable_nccl.push(p.cable, LINK, &pushes[number]);
}

static bool is_there(uint32_t layer, uint32_t first)
{
    for (uint32_t i = 0; i < 4; i++) {
        if (memcmp(d.view + kv_layout_slice_offset(&layout, d.blocks[first + i], layer), p.view + kv_layout_slice_offset(&layout, first + i, layer),
                   kv_layout_slice_bytes(&layout)) != 0) {
            return false;
        }
    }
    return true;
}

static struct kv_nccl_stats stats_of(const struct side *side)
{
    struct kv_endpoint_stats stats = {.grants = 0};
    kv_cable_nccl.stats(side->cable, &stats);
    return stats.nccl;
}

static struct kv_nccl_config standard(void) { return (struct kv_nccl_config){.is_on = true, .channels = 1, .api = fake_nccl_api(&fake_nccl_on_memory)}; }

static int start_with(const struct kv_nccl_config *config)
{
    kept_from = NULL;
    kept_count = 0;
    fake_nccl_set(&(struct fake_nccl_options){.version = 0});
    if (failed(side_open(&d, config, NULL)) || failed(side_open(&p, config, NULL))) { return -1; }
    return 0;
}

static int start(void **state)
{
    (void)state;
    struct kv_nccl_config config = standard();
    return start_with(&config);
}

static int start_impatient(void **state)
{
    (void)state;
    struct kv_nccl_config config = standard();
    config.stall_ns = 100 * NS_PER_MS;
    config.init_ns = 400 * NS_PER_MS;
    return start_with(&config);
}

static int start_with_little_patience(void **state)
{
    (void)state;
    struct kv_nccl_config config = standard();
    config.init_ns = 2 * NS_PER_S; /* many times what a denied one waits */
    config.stall_ns = 50 * NS_PER_MS;
    return start_with(&config);
}

static int stop(void **state)
{
    (void)state;
    side_close(&p);
    side_close(&d);
    return fake_nccl_end() ? 0 : -1;
}

/* ---- the claims */

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
        if (!is_so && ++tries == 5) { fail_msg("case %zu, %u kept: \"%s\"", i, kept_count, p.lost_text); }
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
        cmocka_unit_test_setup_teardown(a_fence_waits_for_the_device, start, stop),
        cmocka_unit_test_setup_teardown(a_closed_pair_loses_nothing, start, stop),
        cmocka_unit_test(nonsense_breaks_the_pair),
        cmocka_unit_test(silence_has_limits),
        cmocka_unit_test_setup_teardown(nobody_waits_for_ever, start_with_little_patience, stop),
        cmocka_unit_test_setup_teardown(warm_it_is_made_when_it_is_asked_for, start_with_one_pair, stop),
        cmocka_unit_test_setup_teardown(the_idle_makes_room, start_with_one_pair, stop),
        cmocka_unit_test(gather_crosses_the_end),
        cmocka_unit_test(a_device_fails_at_the_end),
        cmocka_unit_test_setup_teardown(a_device_that_hangs_is_told_of, start, stop),
        cmocka_unit_test_setup_teardown(a_device_that_hangs_does_not_hold_up_the_end, start, stop),
        cmocka_unit_test_setup_teardown(who_gives_up_each_time_is_paused, start, stop),
        cmocka_unit_test_setup_teardown(a_sender_is_not_asked, start, stop),
        cmocka_unit_test_setup_teardown(frames_land_whole, start, stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
