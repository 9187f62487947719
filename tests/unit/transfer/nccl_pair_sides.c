#include "tests/unit/transfer/nccl_pair_sides.h"

#include <string.h>

static const struct nccl_api *api;

static void told(void *user, const struct nccl_pair_fact *fact)
{
    struct owner *owner = user;
    pthread_mutex_lock(&owner->lock);
    owner->facts++;
    assert_false(owner->is_ended);
    switch (fact->kind) {
    case NCCL_PAIR_ID:
        assert_int_equal(owner->facts, 1);
        owner->has_id = true;
        memcpy(owner->id, fact->id, sizeof owner->id);
        break;
    case NCCL_PAIR_UP:
        assert_false(owner->is_up);
        owner->is_up = true;
        owner->bytes = fact->bytes;
        break;
    case NCCL_PAIR_PASSED:
        assert_true(owner->is_up);
        assert_false(owner->is_broken);
        owner->passed[fact->slot]++;
        owner->passed_all++;
        break;
    case NCCL_PAIR_BROKEN:
        assert_false(owner->is_broken);
        owner->is_broken = true;
        owner->status = fact->status;
        memcpy(owner->text, fact->text, sizeof owner->text);
        break;
    case NCCL_PAIR_ENDED:
        owner->is_ended = true;
        owner->leaks = fact->leaks;
        break;
    }
    pthread_cond_broadcast(&owner->changed);
    pthread_mutex_unlock(&owner->lock);
}

struct kv_memory *memory_create(uint64_t seed)
{
    const struct fake_memory_config config = {.pool_bytes = 4096, .seed = seed, .delay_us_max = 30};
    return fake_memory_create(&config);
}

void start(struct owner *owner, struct kv_memory *memory, uint32_t rank, const uint8_t *id, uint64_t init_ns, uint64_t stall_ns)
{
    struct nccl_pair_config config = {.api = api, .memory = memory, .rank = rank, .channels = CHANNELS, .slot_count = SLOTS,
                                      .slot_bytes = SLOT_BYTES, .init_ns = init_ns, .stall_ns = stall_ns, .told = told, .user = owner};
    struct diag diag = {.text = ""};
    memset(owner, 0, sizeof *owner);
    pthread_mutex_init(&owner->lock, NULL);
    pthread_cond_init(&owner->changed, NULL);
    owner->memory = memory;
    if (id) { memcpy(config.id, id, sizeof config.id); }
    assert_false(failed(nccl_pair_create(&config, &diag, &owner->pair)));
}

void finish(struct owner *owner)
{
    AWAIT(owner, owner->is_ended);
    if (owner->is_up) { assert_int_equal(owner->leaks, 0); }
    nccl_pair_destroy(owner->pair);
    pthread_cond_destroy(&owner->changed);
    pthread_mutex_destroy(&owner->lock);
}

void end(struct owner *owner)
{
    nccl_pair_end(owner->pair);
    finish(owner);
}

void options(struct fake_nccl_options of) { fake_nccl_set(&of); }

uint64_t left_of(struct kv_memory *memory)
{
    uint64_t left = 0;
    assert_false(failed(kv_memory_left(memory, &left, NULL)));
    return left;
}

void begin_with(struct two *two, uint64_t init_ns, uint64_t stall_ns)
{
    two->memory_p = memory_create(1);
    two->memory_d = memory_create(2);
    two->left = left_of(two->memory_p);
    start(&two->p, two->memory_p, NCCL_RANK_P, NULL, init_ns, stall_ns);
    AWAIT(&two->p, two->p.has_id || two->p.is_broken);
    start(&two->d, two->memory_d, NCCL_RANK_D, two->p.id, init_ns, stall_ns);
}

void begin(struct two *two)
{
    begin_with(two, MINUTE, MINUTE);
    AWAIT(&two->p, two->p.is_up);
    AWAIT(&two->d, two->d.is_up);
}

void nothing_is_left(struct two *two)
{
    assert_int_equal(left_of(two->memory_p), two->left);
    assert_int_equal(left_of(two->memory_d), two->left);
    fake_memory_destroy(two->memory_p);
    fake_memory_destroy(two->memory_d);
    assert_true(fake_nccl_end());
    options((struct fake_nccl_options){.version = 0});
}

void close_two(struct two *two)
{
    nccl_pair_end(two->p.pair);
    nccl_pair_end(two->d.pair);
    finish(&two->p);
    finish(&two->d);
    nothing_is_left(two);
}

static uint8_t byte_of(uint32_t number, size_t at) { return (uint8_t)(number * 131 + at * 2654435761u / 65536); }

void fill(struct owner *owner, uint32_t slot, uint32_t number, size_t bytes)
{
    uint8_t *view = fake_memory_reach(nccl_pair_slot(owner->pair, slot));
    for (size_t i = 0; i < bytes; i++) { view[i] = byte_of(number, i); }
}

bool holds(struct owner *owner, uint32_t slot, uint32_t number, size_t bytes)
{
    const uint8_t *view = fake_memory_reach(nccl_pair_slot(owner->pair, slot));
    for (size_t i = 0; i < bytes; i++) {
        if (view[i] != byte_of(number, i)) { return false; }
    }
    return true;
}

void move(struct two *two, uint32_t slot_p, uint32_t slot_d, size_t bytes)
{
    nccl_pair_transfer(two->d.pair, slot_d, bytes);
    nccl_pair_transfer(two->p.pair, slot_p, bytes);
}

int sides_setup(void **state)
{
    (void)state;
    api = fake_nccl_api(&fake_nccl_on_memory);
    return 0;
}
