#include "tests/conformance/forger_nccl.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tests/conformance/driver.h"
#include "tests/conformance/peer.h"
#include "tests/kv_memory/fake_memory.h"
#include "tests/nccl/fake_nccl.h"
#include "transfer/nccl_pair.h"

enum { DEVICE = 7 };
#define SLOTS_BYTES (16u << 20)

struct forger_nccl {
    struct forger *forger;
    struct kv_memory *memory;
    struct nccl_pair *pair;
    uint64_t gen;
    size_t slice_bytes;
    uint32_t slot_next, slot_count;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    struct nccl_pair_fact id;
    bool has_id, is_up, is_broken, is_ended;
    uint32_t passed;
};

static void told(void *user, const struct nccl_pair_fact *fact)
{
    struct forger_nccl *nccl = user;
    pthread_mutex_lock(&nccl->lock);
    if (fact->kind == NCCL_PAIR_ID) { nccl->id = *fact; }
    nccl->has_id |= fact->kind == NCCL_PAIR_ID;
    nccl->is_up |= fact->kind == NCCL_PAIR_UP;
    nccl->is_broken |= fact->kind == NCCL_PAIR_BROKEN;
    nccl->is_ended |= fact->kind == NCCL_PAIR_ENDED;
    nccl->passed += fact->kind == NCCL_PAIR_PASSED;
    pthread_cond_broadcast(&nccl->changed);
    pthread_mutex_unlock(&nccl->lock);
}

/* False: it broke instead. */
static bool told_wait(struct forger_nccl *nccl, const bool *what)
{
    pthread_mutex_lock(&nccl->lock);
    while (!*what && !nccl->is_broken) { pthread_cond_wait(&nccl->changed, &nccl->lock); }
    bool came = *what;
    pthread_mutex_unlock(&nccl->lock);
    return came;
}

void forger_nccl_say_bytes(struct forger *forger, const void *bytes, size_t count)
{
    struct link_msg msg = {.kind = LINK_CABLE, .body.cable = {.cable = "nccl", .bytes = bytes, .count = count}};
    forger_send(forger, &msg);
}

void forger_nccl_say(struct forger *forger, const struct nccl_wire_msg *msg)
{
    uint8_t bytes[KV_CABLE_MESSAGE_BYTES_MAX];
    forger_nccl_say_bytes(forger, bytes, nccl_wire_write(msg, bytes));
}

bool forger_nccl_hear(struct forger *forger, struct nccl_wire_msg *ret_msg)
{
    struct link_msg msg;
    do {
        if (!forger_hear_any(forger, &msg)) { return false; }
    } while (msg.kind != LINK_CABLE);
    assert_true(nccl_wire_read(msg.body.cable.bytes, msg.body.cable.count, ret_msg));
    return true;
}

struct nccl_wire_open forger_nccl_terms(const struct forger *forger)
{
    size_t slice_bytes = kv_layout_slice_bytes(&forger->layout);
    size_t frame_blocks = (1u << 20) / slice_bytes;
    if (frame_blocks > KV_FRAME_BLOCKS_MAX) { frame_blocks = KV_FRAME_BLOCKS_MAX; }
    if (frame_blocks < 1) { frame_blocks = 1; }
    size_t slot_bytes = (frame_blocks * slice_bytes + 255) / 256 * 256;
    size_t slots = SLOTS_BYTES / slot_bytes;
    return (struct nccl_wire_open){.identity = 0x666, .nccl_version = 22809, .slot_count = (uint32_t)(slots > NCCL_SLOTS_MAX ? NCCL_SLOTS_MAX : slots),
                                   .slot_bytes = slot_bytes, .dtype = (uint32_t)forger->layout.dtype, .order = (uint32_t)forger->layout.order};
}

struct forger_nccl *forger_nccl_open(struct forger *forger, bool is_wrong)
{
    static uint64_t gen;
    struct nccl_wire_msg msg = {.kind = NCCL_WIRE_OPEN, .gen = ++gen, .open = forger_nccl_terms(forger)}, answer;
    uint32_t slot_count = msg.open.slot_count;
    size_t slot_bytes = msg.open.slot_bytes;
    msg.open.slot_bytes += is_wrong;
    forger_nccl_say(forger, &msg);
    assert_true(forger_nccl_hear(forger, &answer));
    assert_true(answer.gen == gen);
    if (answer.kind == NCCL_WIRE_DENIED) { return NULL; }
    assert_int_equal(answer.kind, NCCL_WIRE_OPENED);
    struct forger_nccl *nccl = calloc(1, sizeof *nccl);
    nccl->forger = forger;
    nccl->gen = gen;
    nccl->slice_bytes = kv_layout_slice_bytes(&forger->layout);
    nccl->slot_count = slot_count;
    pthread_mutex_init(&nccl->lock, NULL);
    pthread_cond_init(&nccl->changed, NULL);
    nccl->memory = fake_memory_create(&(struct fake_memory_config){.pool_bytes = 4096, .device = DEVICE});
    struct nccl_pair_config config = {.api = fake_nccl_api(&fake_nccl_on_memory), .memory = nccl->memory, .rank = NCCL_RANK_P, .channels = 1,
        .slot_count = nccl->slot_count, .slot_bytes = slot_bytes, .init_ns = WAIT_S * NS_PER_S, .stall_ns = WAIT_S * NS_PER_S,
        .told = told, .user = nccl};
    assert_false(failed(nccl_pair_create(&config, NULL, &nccl->pair)));
    assert_true(told_wait(nccl, &nccl->has_id));
    msg = (struct nccl_wire_msg){.kind = NCCL_WIRE_ID, .gen = gen};
    memcpy(msg.id, nccl->id.id, sizeof msg.id);
    forger_nccl_say(forger, &msg);
    assert_true(told_wait(nccl, &nccl->is_up));
    msg.kind = NCCL_WIRE_UP;
    forger_nccl_say(forger, &msg);
    assert_true(forger_nccl_hear(forger, &answer));
    assert_int_equal(answer.kind, NCCL_WIRE_UP);
    return nccl;
}

bool forger_nccl_frame(struct forger_nccl *nccl, const struct kv_frame *frame, const uint8_t *slices, const uint32_t *crc)
{
    struct nccl_wire_msg msg = {.kind = NCCL_WIRE_SEND, .gen = nccl->gen, .slot = nccl->slot_next, .frame = *frame}, answer;
    nccl->slot_next = (nccl->slot_next + 1) % nccl->slot_count;
    memcpy(fake_memory_reach(nccl_pair_slot(nccl->pair, msg.slot)), slices, frame->count * nccl->slice_bytes);
    memcpy(msg.crc, crc, frame->count * sizeof *crc);
    forger_nccl_say(nccl->forger, &msg);
    if (!forger_nccl_hear(nccl->forger, &answer) || answer.kind == NCCL_WIRE_BROKEN) { return false; }
    assert_int_equal(answer.slot, msg.slot);
    if (answer.kind == NCCL_WIRE_REFUSED) { return true; }
    assert_int_equal(answer.kind, NCCL_WIRE_READY);
    pthread_mutex_lock(&nccl->lock);
    uint32_t before = nccl->passed;
    pthread_mutex_unlock(&nccl->lock);
    nccl_pair_transfer(nccl->pair, msg.slot, frame->count * nccl->slice_bytes);
    pthread_mutex_lock(&nccl->lock);
    while (nccl->passed == before && !nccl->is_broken) { pthread_cond_wait(&nccl->changed, &nccl->lock); }
    bool went = nccl->passed != before;
    pthread_mutex_unlock(&nccl->lock);
    return went;
}

void forger_nccl_close(struct forger_nccl *nccl)
{
    if (!nccl) { return; }
    nccl_pair_end(nccl->pair);
    pthread_mutex_lock(&nccl->lock);
    while (!nccl->is_ended) { pthread_cond_wait(&nccl->changed, &nccl->lock); }
    pthread_mutex_unlock(&nccl->lock);
    nccl_pair_destroy(nccl->pair);
    fake_memory_destroy(nccl->memory);
    pthread_cond_destroy(&nccl->changed);
    pthread_mutex_destroy(&nccl->lock);
    free(nccl);
}
