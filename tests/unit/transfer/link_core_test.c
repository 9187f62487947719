/* Two cores, P's and D's, with a world between them that this test makes: messages and frames
 * that travel in order and take their time, links that break, processes that sleep. */
#include "transfer/link_core.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#define MS UINT64_C(1000000)

enum { LAYERS = 2, LINKS = 4, GRANTS = 8, BLOCKS = 8, SENDS = 8, QUEUE = 4096, XFERS = 4000 };

enum { P, D };

struct travelling {
    struct link_msg msg;
    struct kv_frame frame;
    bool corrupt;
};

/* One link from P's slot to D's slot. */
struct world_link {
    bool up;
    uint32_t d_link;
    struct travelling *to[2];
    uint32_t first[2], count[2]; /* messages to P, to D */
    struct travelling *frames;
    uint32_t frame_first, frame_count;
};

struct side_xfer { int state, finals; bool landed, fenced; uint64_t xfer; };

struct world {
    struct link_core *core[2];
    void *memory[2];
    struct link_wishes wishes[2];
    uint64_t now_ns;
    bool slow_fence; /* D's cable is one-sided: a revoke fences later */
    bool slow_cable; /* connecting takes until the test says so */
    uint32_t cable_messages[2];
    struct world_link links[LINKS]; /* by P's slot */
    uint32_t fence_slot[GRANTS];
    uint64_t fence_epoch[GRANTS];
    uint32_t fence_count;
    /* by slot */
    uint64_t grant_xfer[GRANTS], send_xfer[SENDS];
    bool grant_used[GRANTS], send_used[SENDS], send_streams[SENDS];
    uint32_t send_pushed[SENDS]; /* slices */
    struct kv_ticket tickets[SENDS];
    uint32_t grant_blocks[GRANTS];
    /* ends, by xfer */
    uint8_t d_ends[XFERS], p_ends[XFERS], d_told[XFERS];
    enum kv_event_kind d_last[XFERS], p_last[XFERS];
    uint8_t d_code[XFERS], p_code[XFERS];
};

static struct world w;

static kv_xfer_id_t id_of(uint64_t xfer)
{
    kv_xfer_id_t id;
    memset(&id, 0x77, sizeof id);
    memcpy(id.bytes, &xfer, sizeof xfer);
    return id;
}

static uint64_t xfer_of(kv_xfer_id_t id)
{
    uint64_t xfer;
    memcpy(&xfer, id.bytes, sizeof xfer);
    return xfer;
}

static struct kv_fingerprint fingerprints[2]; /* of a test that looks at them */
static bool has_fingerprints;

static struct link_core_config config_of(int side)
{
    struct link_core_config config = {.boot_epoch = 10, .layer_count = LAYERS, .slice_bytes = 100, .links_max = LINKS,
        .grants_max = GRANTS, .grant_blocks_max = BLOCKS, .sends_max = SENDS, .heartbeat_ns = 250 * MS, .suspect_ns = 1000 * MS,
        .dead_ns = 3000 * MS, .connect_ns = 5000 * MS, .stall_ns = 10000 * MS, .suspicion_min_ns = 1000 * MS,
        .suspicion_max_ns = 60000 * MS};
    strcpy(config.node_id, side == D ? "d0" : "p0");
    memset(config.fingerprint, 1, sizeof config.fingerprint);
    if (has_fingerprints) { kv_fingerprint_encode(&fingerprints[side], config.fingerprint); }
    return config;
}

static void world_end(void)
{
    for (int side = 0; side < 2; side++) {
        free(w.memory[side]);
        free(w.wishes[side].wishes);
    }
    for (int i = 0; i < LINKS; i++) {
        free(w.links[i].to[0]);
        free(w.links[i].to[1]);
        free(w.links[i].frames);
    }
}

static void world_begin(void)
{
    world_end();
    memset(&w, 0, sizeof w);
    w.now_ns = 1000 * MS;
    for (int side = 0; side < 2; side++) {
        struct link_core_config config = config_of(side);
        w.memory[side] = calloc(1, link_core_bytes(&config));
        w.core[side] = link_core_init(w.memory[side], &config);
        w.wishes[side].count_max = 2 * LINK_WISHES_FOR(&config);
        w.wishes[side].wishes = calloc(w.wishes[side].count_max, sizeof(struct link_wish));
    }
    for (int i = 0; i < LINKS; i++) {
        w.links[i].to[0] = calloc(QUEUE, sizeof(struct travelling));
        w.links[i].to[1] = calloc(QUEUE, sizeof(struct travelling));
        w.links[i].frames = calloc(QUEUE, sizeof(struct travelling));
    }
}

static struct world_link *link_at(int side, uint32_t slot)
{
    if (side == P) { return w.links[slot].up ? &w.links[slot] : NULL; }
    for (int i = 0; i < LINKS; i++) {
        if (w.links[i].up && w.links[i].d_link == slot) { return &w.links[i]; }
    }
    return NULL;
}

static void carry_out(int side);

static void link_break(struct world_link *link)
{
    uint32_t p_link = (uint32_t)(link - w.links), d_link = link->d_link;
    if (!link->up) { return; }
    link->up = false;
    link->count[0] = link->count[1] = link->frame_count = 0;
    if (link_core_link_is_used(w.core[P], p_link)) {
        link_core_link_lost(w.core[P], p_link, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "broke", w.now_ns, &w.wishes[P]);
        carry_out(P);
    }
    if (link_core_link_is_used(w.core[D], d_link)) {
        link_core_link_lost(w.core[D], d_link, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "broke", w.now_ns, &w.wishes[D]);
        carry_out(D);
    }
}

static void post(struct world_link *link, int to, const struct link_msg *msg)
{
    assert_true(link->count[to] < QUEUE);
    struct travelling *item = &link->to[to][(link->first[to] + link->count[to]++) % QUEUE];
    item->msg = *msg;
}

static void message_make(int side, const struct link_wish *wish, struct link_msg *msg)
{
    static const uint32_t layer_slices[BLOCKS + 1][LAYERS] = {{0, 0}, {1, 1}, {2, 2}, {3, 3}, {4, 4}, {5, 5}, {6, 6}, {7, 7}, {8, 8}};
    memset(msg, 0, sizeof *msg);
    msg->kind = wish->msg_kind;
    if (wish->msg_kind == LINK_HELLO) {
        struct link_core_config config = config_of(side);
        msg->body.hello.protocol = LINK_PROTOCOL;
        strcpy(msg->body.hello.node_id, "p0");
        msg->body.hello.boot_epoch = 10;
        strcpy(msg->body.hello.expect_node_id, "d0");
        msg->body.hello.expect_boot_epoch = 10;
        memcpy(msg->body.hello.fingerprint, config.fingerprint, sizeof config.fingerprint);
    } else if (wish->msg_kind == LINK_HELLO_ACK) {
        msg->body.hello_ack.code = wish->status.code;
        strcpy(msg->body.hello_ack.node_id, "d0");
        msg->body.hello_ack.boot_epoch = 10;
    } else if (wish->msg_kind != LINK_HEARTBEAT) {
        struct link_xfer *xfer = &msg->body.xfer;
        xfer->xfer_id = wish->xfer_id;
        xfer->grant_epoch = wish->grant_epoch;
        xfer->code = wish->status.code;
        if (wish->msg_kind == LINK_BEGIN || wish->msg_kind == LINK_COMMIT) {
            const struct kv_ticket *ticket = &w.tickets[wish->slot];
            memcpy(xfer->secret, ticket->secret, sizeof xfer->secret);
            xfer->block_count = ticket->block_count;
            xfer->layer_slices = layer_slices[ticket->block_count];
            xfer->layer_count = LAYERS;
            xfer->bytes_total = (uint64_t)ticket->block_count * LAYERS * 100;
        }
    }
}

static void event_note(int side, const struct link_wish *wish)
{
    uint64_t xfer = xfer_of(wish->xfer_id);
    bool is_final = wish->event != KV_EVENT_FAILED || wish->fenced;
    assert_true(xfer < XFERS);
    if (side == D) {
        w.d_last[xfer] = wish->event;
        if (failed(wish->status)) { w.d_code[xfer] = wish->status.code; }
        if (is_final) {
            w.d_ends[xfer]++;
            assert_true(w.grant_used[wish->slot]);
            w.grant_used[wish->slot] = false;
        } else {
            w.d_told[xfer]++;
        }
    } else {
        w.p_last[xfer] = wish->event;
        w.p_code[xfer] = wish->status.code;
        w.p_ends[xfer]++;
        assert_true(w.send_used[wish->slot]);
        w.send_used[wish->slot] = w.send_streams[wish->slot] = false;
    }
}

static void carry_out(int side)
{
    struct link_wishes *wishes = &w.wishes[side];
    for (uint32_t i = 0; i < wishes->count; i++) {
        struct link_wish wish = wishes->wishes[i];
        struct world_link *link = wish.link != LINK_NONE ? link_at(side, wish.link) : NULL;
        struct link_msg msg;
        switch (wish.kind) {
        case LINK_WISH_DIAL: {
            link = &w.links[wish.link];
            link->up = true;
            link->d_link = LINK_NONE;
            link->count[0] = link->count[1] = link->frame_count = 0;
            for (uint32_t k = 0; k < LINKS && link->d_link == LINK_NONE; k++) {
                bool taken = link_core_link_is_used(w.core[D], k);
                for (int m = 0; m < LINKS; m++) { taken |= &w.links[m] != link && w.links[m].up && w.links[m].d_link == k; }
                if (!taken) { link->d_link = k; }
            }
            assert_int_not_equal(link->d_link, LINK_NONE);
            link_core_accepted(w.core[D], link->d_link, w.now_ns);
            break;
        }
        case LINK_WISH_SEND:
            if (!link) { break; }
            message_make(side, &wish, &msg);
            post(link, !side, &msg);
            break;
        case LINK_WISH_CONNECT_CABLE: /* D sees the cable first, as the real ones do */
            if (!link || w.slow_cable) { break; }
            link_core_cable_up(w.core[D], link->d_link, w.now_ns, &w.wishes[D]);
            link_core_cable_up(w.core[P], wish.link, w.now_ns, wishes);
            break;
        case LINK_WISH_CLOSE_LINK:
            if (link) { /* the other side hears of it later: see world_step */
                link->up = false;
                uint32_t other = side == P ? link->d_link : (uint32_t)(link - w.links);
                if (link_core_link_is_used(w.core[!side], other)) {
                    link_core_link_lost(w.core[!side], other, STATUS(ST_UNAVAILABLE, SCOPE_PEER), "closed", w.now_ns, &w.wishes[!side]);
                }
            }
            break;
        case LINK_WISH_CABLE_REVOKE:
            if (w.slow_fence) {
                w.fence_slot[w.fence_count] = wish.slot;
                w.fence_epoch[w.fence_count++] = wish.grant_epoch;
                link_core_fence_answer(w.core[D], wish.slot, wish.grant_epoch, false, w.now_ns, wishes);
            } else {
                link_core_fence_answer(w.core[D], wish.slot, wish.grant_epoch, true, w.now_ns, wishes);
            }
            break;
        case LINK_WISH_STREAM: w.send_streams[wish.slot] = true; break;
        case LINK_WISH_DROP: w.send_streams[wish.slot] = false; break;
        case LINK_WISH_EVENT: event_note(side, &wish); break;
        case LINK_WISH_CABLE_MESSAGE: w.cable_messages[side]++; break;
        case LINK_WISH_CABLE_GRANT: break;
        }
    }
    wishes->count = 0;
    assert_true(link_core_audit(w.core[side]));
    if (w.wishes[!side].count) { carry_out(!side); }
}

/* Delivers one message; false: there was none. */
static bool deliver_message(struct world_link *link, int to)
{
    if (!link->up || link->count[to] == 0) { return false; }
    struct link_msg msg = link->to[to][link->first[to]].msg;
    link->first[to] = (link->first[to] + 1) % QUEUE;
    link->count[to]--;
    uint32_t slot = to == P ? (uint32_t)(link - w.links) : link->d_link;
    link_core_message(w.core[to], slot, &msg, w.now_ns, &w.wishes[to]);
    carry_out(to);
    return true;
}

static bool deliver_frame(struct world_link *link)
{
    if (!link->up || link->frame_count == 0) { return false; }
    struct travelling item = link->frames[link->frame_first];
    link->frame_first = (link->frame_first + 1) % QUEUE;
    link->frame_count--;
    uint32_t slot;
    if (link_core_frame_accept(w.core[D], link->d_link, &item.frame, &slot)) {
        uint64_t xfer = xfer_of(item.frame.xfer_id);
        assert_int_equal(w.d_ends[xfer], 0); /* nothing lands after the end */
        assert_int_equal(w.d_told[xfer], 0);
        assert_true(w.grant_used[slot]);
        assert_int_equal(w.grant_xfer[slot], xfer);
        assert_in_range(item.frame.first + item.frame.count, 1, w.grant_blocks[slot]);
        link_core_frame_landed(w.core[D], slot, item.frame.grant_epoch, &item.frame, !item.corrupt, w.now_ns, &w.wishes[D]);
        carry_out(D);
    }
    return true;
}

static void settle_world(void)
{
    for (bool any = true; any;) {
        any = false;
        for (int i = 0; i < LINKS; i++) { any |= deliver_message(&w.links[i], D) || deliver_message(&w.links[i], P) || deliver_frame(&w.links[i]); }
    }
}

static void tick(uint64_t step_ns)
{
    w.now_ns += step_ns;
    for (int side = 0; side < 2; side++) {
        link_core_tick(w.core[side], w.now_ns, &w.wishes[side]);
        carry_out(side);
    }
}

/* D grants and P begins. Returns the send's slot, or -1 when a table is full. */
static int xfer_begin(uint64_t xfer, uint32_t blocks, uint64_t lease_ns)
{
    int g = -1, s = -1;
    for (int i = 0; i < GRANTS; i++) { g = !w.grant_used[i] ? i : g; }
    for (int i = 0; i < SENDS; i++) { s = !w.send_used[i] ? i : s; }
    if (g < 0 || s < 0) { return -1; }
    struct kv_ticket ticket = {.link_address = "d0:1", .node_id = "d0", .boot_epoch = 10, .block_count = blocks,
                               .grant_epoch = xfer + 5, .lease_ms = 1000};
    ticket.xfer_id = id_of(xfer);
    memset(ticket.secret, (int)xfer, sizeof ticket.secret);
    w.tickets[s] = ticket;
    w.grant_used[g] = w.send_used[s] = true;
    w.grant_xfer[g] = w.send_xfer[s] = xfer;
    w.grant_blocks[g] = blocks;
    w.send_pushed[s] = 0;
    assert_false(failed(link_core_grant(w.core[D], (uint32_t)g, ticket.xfer_id, ticket.grant_epoch, ticket.secret, blocks, lease_ns, w.now_ns)));
    uint32_t spare = LINK_NONE;
    for (uint32_t i = 0; i < LINKS; i++) { spare = link_core_link_is_used(w.core[P], i) || w.links[i].up ? spare : i; }
    (void)link_core_send_begin(w.core[P], (uint32_t)s, &ticket, spare, w.now_ns, &w.wishes[P]);
    carry_out(P);
    return s;
}

/* The next slice of a send goes on the cable; after the last one the commit is asked for. */
static void push_one(int s, bool corrupt)
{
    if (!w.send_used[s] || !w.send_streams[s]) { return; }
    const struct kv_ticket *ticket = &w.tickets[s];
    struct world_link *link = NULL;
    for (int i = 0; i < LINKS; i++) { link = w.links[i].up ? &w.links[i] : link; }
    if (!link || w.send_pushed[s] >= ticket->block_count * LAYERS || link->frame_count == QUEUE) { return; }
    struct travelling *item = &link->frames[(link->frame_first + link->frame_count++) % QUEUE];
    item->frame = (struct kv_frame){.xfer_id = ticket->xfer_id, .grant_epoch = ticket->grant_epoch,
                                    .layer = w.send_pushed[s] / ticket->block_count, .first = w.send_pushed[s] % ticket->block_count, .count = 1};
    item->corrupt = corrupt;
    if (++w.send_pushed[s] == ticket->block_count * LAYERS) {
        link_core_commit(w.core[P], (uint32_t)s, w.now_ns, &w.wishes[P]);
        carry_out(P);
    }
}

static int full_transfer(uint64_t xfer, uint32_t blocks)
{
    int s = xfer_begin(xfer, blocks, 30000 * MS);
    assert_true(s >= 0);
    settle_world();
    for (uint32_t i = 0; i < blocks * LAYERS; i++) { push_one(s, false); }
    settle_world();
    return s;
}

/* ---- the claims */

/* A transfer of which every slice lands and whose commit came ends as LANDED and ACKED. */
static void a_whole_transfer_lands(void **state)
{
    (void)state;
    world_begin();
    (void)full_transfer(1, 5);
    assert_int_equal(w.d_last[1], KV_EVENT_LANDED);
    assert_int_equal(w.p_last[1], KV_EVENT_ACKED);
    assert_int_equal(link_core_stats(w.core[D])->slices_landed, 10);
}

/* A cable that takes longer to connect than a silent peer is given is no silent peer. */
static void a_cable_may_take_longer_than_silence(void **state)
{
    (void)state;
    world_begin();
    w.slow_cable = true;
    int s = xfer_begin(1, 2, 30000 * MS);
    settle_world();
    for (int i = 0; i < 40; i++) { tick(100 * MS); } /* dead_ns is 3 s, connect_ns 5 s */
    struct world_link *link = NULL;
    uint32_t p_slot = 0;
    for (uint32_t i = 0; i < LINKS; i++) {
        if (w.links[i].up) { link = &w.links[p_slot = i]; }
    }
    assert_non_null(link);
    link_core_cable_up(w.core[D], link->d_link, w.now_ns, &w.wishes[D]);
    carry_out(D);
    tick(50 * MS);
    link_core_cable_up(w.core[P], p_slot, w.now_ns, &w.wishes[P]);
    carry_out(P);
    tick(50 * MS);
    settle_world();
    for (int i = 0; i < 4; i++) { push_one(s, false); }
    settle_world();
    assert_int_equal(w.d_last[1], KV_EVENT_LANDED);
    assert_int_equal(w.p_last[1], KV_EVENT_ACKED);
    w.slow_cable = false;
}

/* What a cable says is passed on once the hellos are over, also while the cable is being set up; before
 * that no peer says it, and the link ends. */
static void cables_speak_after_the_hello(void **state)
{
    (void)state;
    const struct link_msg msg = {.kind = LINK_CABLE, .body.cable = {.cable = "nccl"}};
    world_begin();
    w.slow_cable = true;
    (void)xfer_begin(1, 2, 30000 * MS);
    settle_world();
    uint32_t p_slot = 0;
    while (!w.links[p_slot].up) { p_slot++; }
    struct world_link *link = &w.links[p_slot];
    for (int round = 0; round < 2; round++) { /* waiting for the cable; ready */
        post(link, P, &msg);
        post(link, D, &msg);
        settle_world();
        assert_int_equal(w.cable_messages[P], round + 1);
        assert_int_equal(w.cable_messages[D], round + 1);
        link_core_cable_up(w.core[D], link->d_link, w.now_ns, &w.wishes[D]);
        link_core_cable_up(w.core[P], p_slot, w.now_ns, &w.wishes[P]);
        carry_out(P);
    }
    assert_int_equal(link_core_stats(w.core[P])->links_lost, 0);
    world_begin();
    (void)xfer_begin(1, 2, 30000 * MS);
    for (p_slot = 0; !w.links[p_slot].up;) { p_slot++; }
    link = &w.links[p_slot];
    link_core_message(w.core[D], link->d_link, &msg, w.now_ns, &w.wishes[D]); /* ahead of the hello */
    carry_out(D);
    assert_int_equal(w.cable_messages[D], 0);
    assert_int_equal(link_core_stats(w.core[D])->links_lost, 1);
}

/* Layouts that are not the same meet only where both convert, and only if numbers alone differ. */
static void layouts_meet_if_both_convert(void **state)
{
    (void)state;
    for (int says = 0; says < 4; says++) {
        for (int field = 0; field < 3; field++) { /* none, the dtype, more */
            const uint8_t model_hash[32] = {1};
            const struct kv_layout layout = {.block_tokens = 16, .layer_count = LAYERS, .kv_heads = 1, .head_dim = 64, .dtype = DTYPE_BF16};
            for (int side = 0; side < 2; side++) {
                kv_fingerprint_init(&fingerprints[side], model_hash, &layout, "k");
                fingerprints[side].converts = says >> side & 1;
            }
            if (field >= 1) { fingerprints[D].layout.dtype = DTYPE_FP8_E4M3; }
            if (field == 2) { fingerprints[D].layout.head_dim = 32; }
            has_fingerprints = true;
            world_begin();
            (void)xfer_begin(1, 2, 30000 * MS);
            settle_world();
            bool meets = field == 0 || (field == 1 && says == 3);
            assert_int_equal(link_core_stats(w.core[D])->hellos_refused, !meets);
            assert_int_equal(link_core_stats(w.core[D])->links_up, meets);
            has_fingerprints = false;
        }
    }
}

/* One missing slice is enough not to land; the stall deadline ends it on both sides. */
static void one_slice_short_does_not_land(void **state)
{
    (void)state;
    world_begin();
    int s = xfer_begin(1, 3, 30000 * MS);
    settle_world();
    for (int i = 0; i < 6; i++) { push_one(s, false); }
    for (int i = 0; i < LINKS; i++) { /* the last frame is lost */
        if (w.links[i].frame_count) { w.links[i].frame_count--; }
    }
    settle_world();
    assert_int_equal(w.d_ends[1], 0);
    for (int i = 0; i < 200 && (!w.d_ends[1] || !w.p_ends[1]); i++) {
        tick(100 * MS);
        settle_world();
    }
    assert_int_equal(w.d_code[1], ST_DEADLINE_EXCEEDED);
    assert_int_equal(w.p_code[1], ST_DEADLINE_EXCEEDED);
    assert_int_equal(w.d_last[1], KV_EVENT_FAILED);
}

/* A frame lands only where the whole of it lies inside its grant: one block past the end, a sum
 * that wraps, a layer too many and no block at all are refused, counted, and take nothing. */
static void a_frame_outside_its_grant_is_refused(void **state)
{
    (void)state;
    world_begin();
    int s = xfer_begin(1, 4, 30000 * MS);
    settle_world();
    struct world_link *link = NULL;
    for (int i = 0; i < LINKS; i++) { link = w.links[i].up ? &w.links[i] : link; }
    assert_non_null(link);
    struct kv_frame frame = {.xfer_id = w.tickets[s].xfer_id, .grant_epoch = w.tickets[s].grant_epoch};
    static const struct { uint32_t layer, first, count; } bad[] = {
        {0, 3, 2}, {0, 1, 4}, {LAYERS - 1, 3, 2}, {0, 0, 5}, {0, 4, 1}, {0, 0, 0}, {LAYERS, 0, 1}, {UINT32_MAX, 0, 1},
        {0, UINT32_MAX, 1}, {0, UINT32_MAX, 2}, {0, UINT32_MAX - 1, 4}, {0, 2, UINT32_MAX}, {0, 1, UINT32_MAX},
    };
    uint32_t slot;
    uint64_t refused = 0;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        frame.layer = bad[i].layer;
        frame.first = bad[i].first;
        frame.count = bad[i].count;
        if (link_core_frame_accept(w.core[D], link->d_link, &frame, &slot)) {
            fail_msg("layer %u, blocks %u + %u of 4 were accepted", frame.layer, frame.first, frame.count);
        }
        refused += frame.count;
    }
    assert_int_equal(link_core_stats(w.core[D])->slices_refused, refused);
    for (frame.layer = 0; frame.layer < LAYERS; frame.layer++) { /* up to the very edge it fits, once */
        frame.first = 3;
        frame.count = 1;
        assert_true(link_core_frame_accept(w.core[D], link->d_link, &frame, &slot));
        assert_false(link_core_frame_accept(w.core[D], link->d_link, &frame, &slot));
        frame.first = 0;
        frame.count = 3;
        assert_true(link_core_frame_accept(w.core[D], link->d_link, &frame, &slot));
    }
}

/* A wrong checksum fails this transfer with DATA_LOSS on both sides, and no other. */
static void corruption_fails_one_transfer(void **state)
{
    (void)state;
    world_begin();
    int bad = xfer_begin(1, 2, 30000 * MS), good = xfer_begin(2, 2, 30000 * MS);
    settle_world();
    for (int i = 0; i < 4; i++) {
        push_one(bad, i == 2);
        push_one(good, false);
    }
    settle_world();
    assert_int_equal(w.d_code[1], ST_DATA_LOSS);
    assert_int_equal(w.p_code[1], ST_DATA_LOSS);
    assert_int_equal(w.d_last[2], KV_EVENT_LANDED);
    assert_int_equal(link_core_stats(w.core[D])->crc_errors, 1);
}

/* Silence makes a peer suspect after a second, dead after three; its transfers end, and a new
 * one is refused until the suspicion has run out, then tried. */
static void silence_suspicion_and_probe(void **state)
{
    (void)state;
    world_begin();
    int s = xfer_begin(1, 4, 60000 * MS);
    settle_world();
    push_one(s, false);
    settle_world();
    uint64_t start_ns = w.now_ns;
    while (!w.p_ends[1]) { /* messages pile up, none arrives */
        tick(50 * MS);
        if (w.now_ns - start_ns == 1500 * MS) {
            int later = xfer_begin(2, 1, 60000 * MS);
            assert_true(later >= 0);
            assert_int_equal(w.p_code[2], ST_UNAVAILABLE);
        }
    }
    assert_in_range((w.now_ns - start_ns) / MS, 2900, 3200);
    assert_int_equal(w.p_code[1], ST_UNAVAILABLE);
    assert_int_equal(w.d_code[1], ST_UNAVAILABLE);
    (void)xfer_begin(3, 1, 60000 * MS);
    assert_int_equal(w.p_code[3], ST_UNAVAILABLE);
    link_core_revoke(w.core[D], id_of(2), w.now_ns, &w.wishes[D]);
    link_core_revoke(w.core[D], id_of(3), w.now_ns, &w.wishes[D]);
    carry_out(D);
    for (int i = 0; i < 11; i++) { tick(100 * MS); }
    (void)full_transfer(4, 2); /* the probe */
    assert_int_equal(w.p_last[4], KV_EVENT_ACKED);
}

/* A core that stood still itself blames nobody for the silence. */
static void our_own_sleep_is_not_silence(void **state)
{
    (void)state;
    world_begin();
    (void)full_transfer(1, 1);
    tick(50 * MS);
    tick(60000 * MS);
    settle_world();
    tick(50 * MS);
    settle_world();
    assert_int_equal(link_core_stats(w.core[P])->links_lost, 0);
    assert_int_equal(link_core_stats(w.core[D])->links_lost, 0);
}

/* With a one-sided cable a revoked grant stays in quarantine until the writer said it is quiet,
 * or its link was closed by force after twice the lease. */
static void quarantine_ends_by_ack_or_by_force(void **state)
{
    (void)state;
    for (int by_force = 0; by_force < 2; by_force++) {
        world_begin();
        w.slow_fence = true;
        int s = xfer_begin(1, 4, 2000 * MS);
        settle_world();
        push_one(s, false);
        settle_world();
        link_core_revoke(w.core[D], id_of(1), w.now_ns, &w.wishes[D]);
        carry_out(D);
        assert_int_equal(w.d_ends[1], 0);
        assert_int_equal(link_core_stats(w.core[D])->quarantined, 1);
        assert_int_equal(link_core_stats(w.core[D])->blocks_quarantined, 4);
        if (!by_force) {
            settle_world(); /* abort there, abort_ack back */
            assert_int_equal(w.d_last[1], KV_EVENT_FENCED);
        } else {
            uint64_t start_ns = w.now_ns;
            while (!w.d_ends[1]) { /* P lives, but never answers */
                tick(100 * MS);
                for (int i = 0; i < LINKS; i++) { w.links[i].count[D] = w.links[i].count[P] = 0; }
                link_core_heard(w.core[D], w.links[LINKS - 1].d_link < LINKS ? w.links[LINKS - 1].d_link : 0, w.now_ns);
                for (uint32_t i = 0; i < LINKS; i++) {
                    if (link_core_link_is_used(w.core[D], i)) { link_core_heard(w.core[D], i, w.now_ns); }
                    if (link_core_link_is_used(w.core[P], i)) { link_core_heard(w.core[P], i, w.now_ns); }
                }
            }
            assert_in_range((w.now_ns - start_ns) / MS, 3900, 4200);
            assert_int_equal(link_core_stats(w.core[D])->fences_forced, 1);
            assert_int_equal(w.d_last[1], KV_EVENT_FENCED);
        }
        assert_int_equal(w.d_ends[1], 1);
    }
}

/* Whatever happens in whatever order: each grant and each send ends exactly once, nothing lands
 * after an end, and all counters add up after every step. */
static void random_worlds_add_up(void **state)
{
    (void)state;
    unsigned seed = (unsigned)time(NULL);
    const char *given = getenv("BATON_TEST_SEED");
    if (given) { seed = (unsigned)strtoul(given, NULL, 10); }
    printf("  seed %u\n", seed);
    uint32_t landed = 0, ended = 0;
    for (int round = 0; round < 60; round++) {
        world_begin();
        w.slow_fence = round % 2 == 1;
        uint64_t next = 1;
        for (int step = 0; step < 3000; step++) {
            int s = (int)(rand_r(&seed) % SENDS);
            struct world_link *link = &w.links[rand_r(&seed) % LINKS];
            switch (rand_r(&seed) % 24) {
            case 0: case 1:
                if (next < XFERS && xfer_begin(next, rand_r(&seed) % BLOCKS + 1, (rand_r(&seed) % 5000 + 200) * MS) >= 0) { next++; }
                break;
            case 2:
                if (rand_r(&seed) % 6) { break; }
                link_core_revoke(w.core[D], id_of(next > 8 ? next - rand_r(&seed) % 8 : 1), w.now_ns, &w.wishes[D]);
                carry_out(D);
                break;
            case 3:
                if (rand_r(&seed) % 6) { break; }
                link_core_abort(w.core[P], (uint32_t)s, w.now_ns, &w.wishes[P]);
                carry_out(P);
                break;
            case 4: tick(rand_r(&seed) % 100 * MS); break;
            case 5:
                if (rand_r(&seed) % 20 == 0) { link_break(link); }
                break;
            case 6:
                if (w.fence_count) { /* the one-sided cable answers late, or twice */
                    w.fence_count--;
                    link_core_fence_answer(w.core[D], w.fence_slot[w.fence_count], w.fence_epoch[w.fence_count], true, w.now_ns, &w.wishes[D]);
                    carry_out(D);
                }
                break;
            case 7:
                if (link->up && link->count[D] && rand_r(&seed) % 4 == 0) { /* a duplicate */
                    struct link_msg again = link->to[D][link->first[D]].msg;
                    if (again.kind > LINK_HELLO_ACK) { post(link, D, &again); }
                }
                break;
            case 8:
                if (link->up && link->frame_count && link->frame_count < QUEUE) { /* and of a frame */
                    struct travelling again = link->frames[link->frame_first];
                    link->frames[(link->frame_first + link->frame_count++) % QUEUE] = again;
                }
                break;
            case 9: case 10: case 11: case 12: case 13:
                for (int i = 0; i < 4; i++) { push_one(s, rand_r(&seed) % 400 == 0); }
                break;
            case 14: case 15: case 16:
                for (int i = 0; i < 8; i++) { (void)deliver_frame(link); }
                break;
            default:
                for (int i = 0; i < 3; i++) { (void)deliver_message(link, (int)(rand_r(&seed) % 2)); }
                break;
            }
            if (w.fence_count == GRANTS) { w.fence_count = 0; }
        }
        for (int i = 0; i < 1500; i++) { /* time alone must end everything */
            bool open = false;
            for (int k = 0; k < GRANTS; k++) { open |= w.grant_used[k] || w.send_used[k]; }
            if (!open) { break; }
            tick(100 * MS);
            settle_world();
            if (i > 100) { /* sends that nobody commits are the node's to abort */
                for (uint32_t k = 0; k < SENDS; k++) { link_core_abort(w.core[P], k, w.now_ns, &w.wishes[P]); }
                carry_out(P);
            }
        }
        for (uint64_t xfer = 1; xfer < next; xfer++) {
            if (w.d_ends[xfer] != 1 || w.p_ends[xfer] != 1) {
                fail_msg("round %d: transfer %u ended %u times at D, %u at P", round, (unsigned)xfer, w.d_ends[xfer], w.p_ends[xfer]);
            }
            if (w.p_last[xfer] == KV_EVENT_ACKED) { assert_int_equal(w.d_last[xfer], KV_EVENT_LANDED); }
            landed += w.d_last[xfer] == KV_EVENT_LANDED;
            ended++;
        }
        assert_int_equal(link_core_stats(w.core[D])->live + link_core_stats(w.core[D])->quarantined, 0);
        assert_int_equal(link_core_stats(w.core[P])->sends_live, 0);
    }
    printf("  %u of %u landed\n", landed, ended);
    assert_true(landed > 100);
    assert_true(ended > landed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_whole_transfer_lands),
        cmocka_unit_test(a_cable_may_take_longer_than_silence),      cmocka_unit_test(cables_speak_after_the_hello), cmocka_unit_test(layouts_meet_if_both_convert), cmocka_unit_test(one_slice_short_does_not_land),
        cmocka_unit_test(a_frame_outside_its_grant_is_refused),
        cmocka_unit_test(corruption_fails_one_transfer), cmocka_unit_test(silence_suspicion_and_probe),
        cmocka_unit_test(our_own_sleep_is_not_silence), cmocka_unit_test(quarantine_ends_by_ack_or_by_force),
        cmocka_unit_test(random_worlds_add_up),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    world_end();
    return rc;
}
