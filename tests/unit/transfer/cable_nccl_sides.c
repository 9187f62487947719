#include "tests/unit/transfer/cable_nccl_sides.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct kv_layout layout = {.block_tokens = 16, .layer_count = LAYERS, .kv_heads = 1, .head_dim = 64, .dtype = DTYPE_F32};

struct side p, d;
struct kv_cable_push pushes[PUSHES];
enum nccl_wire_kind kept_kind;
struct side *kept_from;
struct nccl_wire_msg kept;
uint32_t kept_count;

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

status_t side_open(struct side *side, const struct kv_nccl_config *config, struct diag *diag)
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

void side_close(struct side *side)
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

void turn(void)
{
    deliver(&p, &d);
    deliver(&d, &p);
    kv_loop_run_once(p.loop, 0);
    kv_loop_run_once(d.loop, 1);
}

void until_at(const uint32_t *counter, uint32_t value, int line)
{
    for (uint64_t end_ns = clock_now_ns() + 30 * NS_PER_S; *counter < value;) {
        if (clock_now_ns() > end_ns) { fail_msg("line %d: %u never became %u", line, *counter, value); }
        turn();
    }
}
void settle(void)
{
    for (int i = 0; i < 50; i++) { turn(); }
}

void say_to(struct side *to, const struct nccl_wire_msg *msg)
{
    uint8_t bytes[KV_CABLE_MESSAGE_BYTES_MAX];
    size_t count = nccl_wire_write(msg, bytes);
    kv_cable_nccl.message(to->cable, LINK, bytes, count);
}

void join(void)
{
    struct kv_cable_offer offer;
    static const uint8_t token[KV_CABLE_TOKEN_BYTES];
    assert_false(failed(kv_cable_nccl.offer(d.cable, LINK, &offer)));
    assert_null(kv_cable_nccl.mismatch(p.cable, offer.bytes, offer.size));
    assert_false(failed(kv_cable_nccl.connect(p.cable, LINK, "", offer.bytes, offer.size, token)));
}

void push(uint32_t number, uint32_t layer, uint32_t first, uint32_t send_slot)
{
    pushes[number] = (struct kv_cable_push){.frame = {.grant_epoch = 9, .layer = layer, .first = first, .count = 4}, .send_slot = send_slot};
    for (uint32_t i = 0; i < 4; i++) { pushes[number].blocks[i] = first + i; }
    kv_cable_nccl.push(p.cable, LINK, &pushes[number]);
}

bool is_there(uint32_t layer, uint32_t first)
{
    for (uint32_t i = 0; i < 4; i++) {
        if (memcmp(d.view + kv_layout_slice_offset(&layout, d.blocks[first + i], layer), p.view + kv_layout_slice_offset(&layout, first + i, layer),
                   kv_layout_slice_bytes(&layout)) != 0) {
            return false;
        }
    }
    return true;
}

struct kv_nccl_stats stats_of(const struct side *side)
{
    struct kv_endpoint_stats stats = {.grants = 0};
    kv_cable_nccl.stats(side->cable, &stats);
    return stats.nccl;
}

struct kv_nccl_config standard(void) { return (struct kv_nccl_config){.is_on = true, .channels = 1, .api = fake_nccl_api(&fake_nccl_on_memory)}; }

int start_with(const struct kv_nccl_config *config)
{
    kept_from = NULL;
    kept_count = 0;
    fake_nccl_set(&(struct fake_nccl_options){.version = 0});
    if (failed(side_open(&d, config, NULL)) || failed(side_open(&p, config, NULL))) { return -1; }
    return 0;
}

int start(void **state)
{
    (void)state;
    struct kv_nccl_config config = standard();
    return start_with(&config);
}

int start_impatient(void **state)
{
    (void)state;
    struct kv_nccl_config config = standard();
    config.stall_ns = 100 * NS_PER_MS;
    config.init_ns = 400 * NS_PER_MS;
    return start_with(&config);
}

int start_with_little_patience(void **state)
{
    (void)state;
    struct kv_nccl_config config = standard();
    config.init_ns = 2 * NS_PER_S; /* many times what a denied one waits */
    config.stall_ns = 50 * NS_PER_MS;
    return start_with(&config);
}

int stop(void **state)
{
    (void)state;
    side_close(&p);
    side_close(&d);
    return fake_nccl_end() ? 0 : -1;
}
