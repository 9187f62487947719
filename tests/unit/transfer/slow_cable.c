#include "tests/unit/transfer/slow_cable.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "transfer/loop.h"

enum { PUSHES_MAX = 64, HELD_MAX = 64, LINKS = 64 };

enum said { SAID_UP, SAID_FRAME, SAID_DONE, SAID_BROKEN, SAID_NOTHING };

struct said_frame {
    enum said kind;
    struct kv_frame frame;
    uint32_t blocks[KV_FRAME_BLOCKS_MAX];
};

struct held_frame { uint32_t link; struct said_frame said; };

struct kv_cable {
    struct kv_watch watch;
    const struct kv_cable_host *host;
    int side;
    bool links[LINKS]; /* P: connected; D: heard of */
    bool up[LINKS];
    struct { uint32_t link; struct kv_cable_push *push; } pushes[PUSHES_MAX]; /* P: said, and not answered */
    uint32_t push_count;
    struct held_frame held[HELD_MAX];
    uint32_t held_count;
};

enum order { ORDER_NONE, ORDER_BREAK, ORDER_BREAK_AND_TELL, ORDER_PLACE, ORDER_MUTTER };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
/* under the mutex */
static struct { bool is_ready, is_held; enum order order[2]; uint32_t obeyed[2]; struct slow_counts counts; } script;
static struct kv_cable *cables[2];
static const uint8_t *source; /* P's pool */

static void count(uint32_t *counter)
{
    pthread_mutex_lock(&mutex);
    (*counter)++;
    pthread_mutex_unlock(&mutex);
}

static bool flag(const bool *is)
{
    pthread_mutex_lock(&mutex);
    bool value = *is;
    pthread_mutex_unlock(&mutex);
    return value;
}

static void say(struct kv_cable *cable, uint32_t link, enum said kind)
{
    struct said_frame said = {.kind = kind};
    cable->host->say(cable->host->endpoint, link, &said, sizeof said.kind);
}

/* ---- P */

static void pushes_drop(struct kv_cable *cable, uint32_t link)
{
    uint32_t kept = 0, all = cable->push_count;
    for (uint32_t i = 0; i < all; i++) {
        struct kv_cable_push *push = cable->pushes[i].push;
        if (cable->pushes[i].link != link) {
            cable->pushes[kept++] = cable->pushes[i];
            continue;
        }
        push->dropped = true;
        cable->host->push_done(cable->host->endpoint, push);
    }
    cable->push_count = kept;
}

static void op_used(struct kv_cable *cable, uint32_t link, int change)
{
    CHECK(cable->links[link]);
    pthread_mutex_lock(&mutex);
    script.counts.used[cable->side] += change;
    pthread_mutex_unlock(&mutex);
}

static status_t op_connect(struct kv_cable *cable, uint32_t link, const char *peer_host, const void *offer, size_t offer_bytes,
                           const uint8_t token[KV_CABLE_TOKEN_BYTES])
{
    (void)peer_host, (void)offer, (void)offer_bytes, (void)token;
    count(&script.counts.connects);
    cable->links[link] = true;
    if (cable->host->is_own(cable->host->endpoint, link)) { /* alone it is the link's, and has to come up by itself */
        say(cable, link, SAID_UP);
        cable->up[link] = true;
        cable->host->connected(cable->host->endpoint, link);
    }
    return STATUS_OK;
}

static bool op_ready(struct kv_cable *cable, uint32_t link)
{
    CHECK(cable->links[link]);
    count(&script.counts.asks);
    if (!flag(&script.is_ready)) { return false; }
    if (!cable->up[link]) { say(cable, link, SAID_UP); }
    cable->up[link] = true;
    return true;
}

static void op_push(struct kv_cable *cable, uint32_t link, struct kv_cable_push *push)
{
    CHECK(cable->push_count < PUSHES_MAX);
    count(&script.counts.pushes);
    cable->pushes[cable->push_count].link = link;
    cable->pushes[cable->push_count++].push = push;
    struct said_frame said = {.kind = SAID_FRAME, .frame = push->frame};
    memcpy(said.blocks, push->blocks, sizeof said.blocks);
    cable->host->say(cable->host->endpoint, link, &said, sizeof said);
}

static void op_abort(struct kv_cable *cable, uint32_t link, uint32_t send_slot)
{
    count(&script.counts.aborts);
    for (uint32_t i = 0; i < cable->push_count; i++) {
        struct kv_cable_push *push = cable->pushes[i].push;
        if (cable->pushes[i].link == link && push->send_slot == send_slot) { push->dropped = true; } /* said already */
    }
}

/* ---- D */

static void place(struct kv_cable *cable, const struct held_frame *held)
{
    const struct kv_cable_host *host = cable->host;
    const struct kv_frame *frame = &held->said.frame;
    struct kv_landing landing;
    if (host->frame_accept(host->endpoint, held->link, frame, &landing)) {
        for (uint32_t i = 0; i < frame->count; i++) {
            memcpy((uint8_t *)host->pool.base + kv_layout_slice_offset(host->layout, landing.blocks[i], frame->layer),
                   source + kv_layout_slice_offset(host->layout, held->said.blocks[i], frame->layer), kv_layout_slice_bytes(host->layout));
        }
        host->frame_landed(host->endpoint, held->link, &landing, frame, true);
    }
    say(cable, held->link, SAID_DONE);
}

static void held_place(struct kv_cable *cable)
{
    for (uint32_t i = 0; i < cable->held_count; i++) { place(cable, &cable->held[i]); }
    cable->held_count = 0;
}

static void held_drop(struct kv_cable *cable, uint32_t link)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < cable->held_count; i++) {
        if (cable->held[i].link != link) { cable->held[kept++] = cable->held[i]; }
    }
    cable->held_count = kept;
}

/* ---- both */

static void break_link(struct kv_cable *cable, uint32_t link, bool tells)
{
    if (tells) { say(cable, link, SAID_BROKEN); }
    pushes_drop(cable, link);
    held_drop(cable, link);
    cable->up[link] = false;
    cable->host->lost(cable->host->endpoint, link, STATUS(ST_UNAVAILABLE, SCOPE_REQUEST), "the test broke it");
}

static void op_message(struct kv_cable *cable, uint32_t link, const uint8_t *bytes, size_t size)
{
    struct held_frame held = {.link = link};
    count(&script.counts.heard[cable->side]);
    CHECK(size >= sizeof held.said.kind);
    CHECK(size <= sizeof held.said);
    memcpy(&held.said, bytes, size);
    switch (held.said.kind) {
    case SAID_UP:
        cable->links[link] = cable->up[link] = true;
        cable->host->connected(cable->host->endpoint, link);
        break;
    case SAID_FRAME:
        if (!flag(&script.is_held)) {
            place(cable, &held);
            break;
        }
        CHECK(cable->held_count < HELD_MAX);
        cable->held[cable->held_count++] = held;
        count(&script.counts.held);
        break;
    case SAID_DONE:
        for (uint32_t i = 0; i < cable->push_count; i++) {
            if (cable->pushes[i].link != link) { continue; }
            struct kv_cable_push *push = cable->pushes[i].push;
            memmove(&cable->pushes[i], &cable->pushes[i + 1], (--cable->push_count - i) * sizeof cable->pushes[0]);
            cable->host->push_done(cable->host->endpoint, push);
            break;
        }
        break;
    case SAID_BROKEN: break_link(cable, link, false); break;
    case SAID_NOTHING: break;
    }
}

static void op_fence(struct kv_cable *cable, uint32_t link)
{
    count(&script.counts.fences[cable->side]);
    pushes_drop(cable, link);
    held_drop(cable, link);
    cable->links[link] = cable->up[link] = false;
}

static void obey(struct kv_watch *watch, uint32_t events)
{
    struct kv_cable *cable = (struct kv_cable *)watch;
    (void)events;
    uint64_t orders;
    CHECK(read(watch->fd, &orders, sizeof orders) == sizeof orders);
    pthread_mutex_lock(&mutex);
    enum order order = script.order[cable->side];
    pthread_mutex_unlock(&mutex);
    if (order == ORDER_PLACE) { held_place(cable); }
    for (uint32_t link = 0; link < LINKS; link++) {
        if (order == ORDER_MUTTER && cable->links[link]) { say(cable, link, SAID_NOTHING); }
        if ((order == ORDER_BREAK || order == ORDER_BREAK_AND_TELL) && cable->up[link]) { break_link(cable, link, order == ORDER_BREAK_AND_TELL); }
    }
    pthread_mutex_lock(&mutex);
    script.order[cable->side] = ORDER_NONE;
    script.obeyed[cable->side]++;
    pthread_mutex_unlock(&mutex);
}

static status_t op_open(const struct kv_cable_host *host, struct diag *diag, struct kv_cable **ret_cable)
{
    (void)diag;
    struct kv_cable *cable = calloc(1, sizeof *cable);
    CHECK(cable != NULL);
    cable->host = host;
    cable->side = host->receives ? SLOW_D : SLOW_P;
    cable->watch.fd = eventfd(0, EFD_CLOEXEC);
    cable->watch.on_ready = obey;
    CHECK(!failed(kv_loop_watch(host->loop, &cable->watch, EPOLLIN)));
    cables[cable->side] = cable;
    if (cable->side == SLOW_P) { source = host->pool.base; }
    *ret_cable = cable;
    return STATUS_OK;
}

static status_t op_offer(struct kv_cable *cable, uint32_t link, struct kv_cable_offer *ret_offer)
{
    (void)cable, (void)link;
    ret_offer->size = 0;
    return STATUS_OK;
}

static void op_close(struct kv_cable *cable)
{
    CHECK(cable->push_count == 0);
    kv_loop_remove(cable->host->loop, &cable->watch);
    close(cable->watch.fd);
    cables[cable->side] = NULL;
    free(cable);
}

static const char *op_address(const struct kv_cable *cable)
{
    (void)cable;
    return "";
}

const struct kv_cable_ops slow_cable = {
    .name = "slow", .places_at_destination = true, .warms_up = true, .open = op_open, .offer = op_offer, .connect = op_connect,
    .message = op_message, .ready = op_ready, .used = op_used, .push = op_push, .abort = op_abort, .fence = op_fence, .close = op_close,
    .address = op_address,
};

/* ---- the test's side */

void slow_cable_reset(void) { memset(&script, 0, sizeof script); }

void slow_cable_set_ready(bool is_ready)
{
    pthread_mutex_lock(&mutex);
    script.is_ready = is_ready;
    pthread_mutex_unlock(&mutex);
}

static void order_and_wait(int side, enum order order)
{
    uint64_t one = 1;
    pthread_mutex_lock(&mutex);
    uint32_t before = script.obeyed[side];
    script.order[side] = order;
    pthread_mutex_unlock(&mutex);
    CHECK(write(cables[side]->watch.fd, &one, sizeof one) == sizeof one);
    for (bool done = false; !done;) {
        clock_sleep_ns(NS_PER_MS / 10);
        pthread_mutex_lock(&mutex);
        done = script.obeyed[side] != before;
        pthread_mutex_unlock(&mutex);
    }
}

void slow_cable_set_held(bool is_held)
{
    pthread_mutex_lock(&mutex);
    script.is_held = is_held;
    pthread_mutex_unlock(&mutex);
    if (!is_held && cables[SLOW_D]) { order_and_wait(SLOW_D, ORDER_PLACE); }
}

void slow_cable_break(int side, bool tells) { order_and_wait(side, tells ? ORDER_BREAK_AND_TELL : ORDER_BREAK); }

void slow_cable_mutter(int side) { order_and_wait(side, ORDER_MUTTER); }

struct slow_counts slow_cable_counts(void)
{
    pthread_mutex_lock(&mutex);
    struct slow_counts counts = script.counts;
    pthread_mutex_unlock(&mutex);
    return counts;
}
