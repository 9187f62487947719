#include "tests/unit/transfer/cable_ucx_sides.h"

#include <stdio.h>
#include <stdlib.h>

const struct kv_layout layout = {.block_tokens = 16, .layer_count = LAYERS, .kv_heads = 1, .head_dim = 8, .dtype = DTYPE_BF16};
const uint8_t token[KV_CABLE_TOKEN_BYTES] = {7, 7, 7};
const struct ucx_api *api;
struct side d, p;
struct kv_loop *loop;
struct kv_cable_push pushes[PUSHES];

/* ---- the endpoint's part */

static bool token_link(void *side, const uint8_t shown[KV_CABLE_TOKEN_BYTES], uint32_t *ret)
{
    (void)side;
    *ret = 1;
    return memcmp(shown, token, sizeof token) == 0;
}
static void connected(void *side, uint32_t link)
{
    assert_int_equal(link, 1);
    ((struct side *)side)->connected++;
}
static void lost(void *side, uint32_t link, status_t status, const char *text)
{
    (void)link;
    assert_true(failed(status));
    ((struct side *)side)->lost_status = status;
    snprintf(((struct side *)side)->text, sizeof d.text, "%s", text);
    ((struct side *)side)->lost++;
}
static void heard(void *side, uint32_t link)
{
    (void)side;
    (void)link;
}
static bool frame_accept(void *side_, uint32_t link, const struct kv_frame *frame, struct kv_landing *ret)
{
    struct side *side = side_;
    (void)link;
    if (!side->accepts || frame->grant_epoch != 9 || frame->first + frame->count > side->granted || frame->layer >= LAYERS) {
        side->refused++;
        return false;
    }
    *ret = (struct kv_landing){.slot = 0, .grant_epoch = 9, .blocks = side->blocks + frame->first};
    return true;
}
static bool landing_is_live(void *side, const struct kv_landing *landing)
{
    (void)landing;
    return ((struct side *)side)->accepts;
}
static void frame_landed(void *side_, uint32_t link, const struct kv_landing *landing, const struct kv_frame *frame, bool crc_ok)
{
    struct side *side = side_;
    (void)landing;
    side->frames++;
    if (side->memory) { assert_true(side->let_go >= side->frames); } /* of each, before it is told of */
    side->landed += crc_ok ? frame->count : 0;
    side->bad_sums += !crc_ok;
    if (side->fence_in_landed) { kv_cable_ucx.fence(side->cable, link); }
}
static void push_done(void *side_, struct kv_cable_push *push)
{
    struct side *side = side_;
    side->pushes_done++;
    side->dropped += push->dropped;
}

static void hold(void *side, const struct kv_landing *landing)
{
    assert_int_equal(landing->grant_epoch, 9);
    ((struct side *)side)->held++;
}
static void let_go(void *side_, const struct kv_landing *landing)
{
    struct side *side = side_;
    assert_int_equal(landing->grant_epoch, 9);
    assert_true(++side->let_go <= side->held);
}

status_t side_open_on(struct side *side, bool receives, const struct fake_memory_config *device)
{
    size_t bytes = BLOCKS * kv_layout_block_bytes(&layout);
    memset(side, 0, sizeof *side);
    struct kv_endpoint_pool pool = {.bytes = bytes, .memfd = -1};
    if (device) {
        struct fake_memory_config config = *device;
        config.pool_bytes = bytes;
        side->memory = pool.memory = fake_memory_create(&config);
        side->pool = fake_memory_view(side->memory);
        pool.base = fake_memory_base(side->memory);
        fake_ucx_device(pool.base, bytes, side->pool);
    } else {
        pool.base = side->pool = malloc(bytes);
    }
    memset(side->pool, receives ? CANARY : 0, bytes);
    side->host = (struct kv_cable_host){
        .endpoint = side, .loop = loop, .layout = &layout, .pool = pool,
        .block_count = BLOCKS, .frame_blocks = 4, .links_max = LINKS, .connect_ns = NS_PER_S, .receives = receives, .tcp_listen = "",
        .ucx = {.mode = KV_UCX_RDMA, .api = api}, .token_link = token_link, .connected = connected, .lost = lost,
        .heard = heard, .frame_accept = frame_accept, .landing_is_live = landing_is_live, .frame_landed = frame_landed,
        .hold = hold, .let_go = let_go, .push_done = push_done,
    };
    for (uint32_t i = 0; i < BLOCKS; i++) { side->blocks[i] = (5 * i + 1) % BLOCKS; } /* each once */
    for (size_t i = 0; i < bytes && !receives; i++) { side->pool[i] = (uint8_t)(i * 2654435761u >> 13); }
    struct diag diag = {.text = ""};
    status_t st = kv_cable_ucx.open(&side->host, &diag, &side->cable);
    snprintf(side->text, sizeof side->text, "%.*s", (int)sizeof side->text - 1, diag.text);
    return st;
}

status_t side_open(struct side *side, bool receives) { return side_open_on(side, receives, NULL); }

void settle(void)
{
    for (int i = 0; i < 40; i++) { kv_loop_run_once(loop, 0); }
}
void settle_ms(uint64_t ms)
{
    for (uint64_t end_ns = clock_now_ns() + ms * NS_PER_MS; clock_now_ns() < end_ns;) { kv_loop_run_once(loop, 5); }
}

void until(const uint32_t *value, uint32_t at_least)
{
    uint64_t end_ns = clock_now_ns() + 10 * NS_PER_S;
    while (*value < at_least) {
        kv_loop_run_once(loop, 5);
        if (clock_now_ns() > end_ns) { fail_msg("waited for %u, it is %u", at_least, *value); }
    }
}

struct kv_landing the_grant(void)
{
    return (struct kv_landing){.slot = 0, .grant_epoch = 9, .blocks = d.blocks};
}

bool join(void)
{
    struct kv_cable_offer offer = {.size = 0};
    if (failed(kv_cable_ucx.offer(d.cable, 1, &offer))) { return false; }
    if (failed(kv_cable_ucx.connect(p.cable, 1, "", offer.bytes, offer.size, token))) { return false; }
    settle();
    return d.connected == 1 && p.connected == 1;
}
void grant_open_of(uint32_t count)
{
    const struct kv_landing landing = the_grant();
    d.accepts = true;
    d.granted = count;
    kv_cable_ucx.grant(d.cable, 1, &landing, count);
}
void grant_open(void) { grant_open_of(4); }

void push_all_after(uint64_t mark)
{
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        pushes[layer] = (struct kv_cable_push){.frame = {.grant_epoch = 9, .layer = layer, .first = 0, .count = 4}, .mark = mark, .send_slot = 5};
        for (uint32_t i = 0; i < 4; i++) { pushes[layer].blocks[i] = i; }
        kv_cable_ucx.push(p.cable, 1, &pushes[layer]);
    }
}
void push_all(void) { push_all_after(0); }

bool all_is_there(void)
{
    bool same = true;
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (uint32_t i = 0; i < d.granted; i++) {
            same &= memcmp(d.pool + kv_layout_slice_offset(&layout, d.blocks[i], layer),
                           p.pool + kv_layout_slice_offset(&layout, i, layer), kv_layout_slice_bytes(&layout)) == 0;
        }
    }
    return same;
}
bool pool_is_untouched(void)
{
    for (size_t i = 0; i < d.host.pool.bytes; i++) {
        if (d.pool[i] != CANARY) { return false; }
    }
    return true;
}
static void side_close(struct side *side)
{
    if (side->cable) { kv_cable_ucx.close(side->cable); }
    side->cable = NULL;
    if (side->memory) { fake_memory_destroy(side->memory); } else { free(side->pool); }
    side->memory = NULL;
    side->pool = NULL;
}
void both_close(void)
{
    side_close(&p);
    side_close(&d);
}
void both_open(void)
{
    assert_false(failed(side_open(&d, true)));
    assert_false(failed(side_open(&p, false)));
    assert_true(join());
}

int sides_set_up(void **state)
{
    (void)state;
    api = fake_ucx_begin();
    memset(&d, 0, sizeof d);
    memset(&p, 0, sizeof p);
    return failed(kv_loop_create(&loop)) ? -1 : 0;
}
int sides_tear_down(void **state)
{
    (void)state;
    both_close();
    kv_loop_destroy(loop);
    return 0;
}
