/* fake_on_memory: fake_nccl over the slots and queues of fake_memory. */
#include <string.h>

#include "tests/kv_memory/fake_memory.h"
#include "tests/nccl/fake_nccl.h"

static void *bound(void) { return fake_memory_bound(); }
static bool take(void *device, uint64_t bytes) { return fake_memory_take(device, bytes); }
static void give_back(void *device, uint64_t bytes) { fake_memory_give_back(device, bytes); }

static void run(void *device, void *stream, void (*fn)(void *user), void *user)
{
    (void)device;
    fake_memory_queue_run(stream, fn, user);
}

static bool peek(void *device, const void *at, void *ret_bytes, size_t bytes)
{
    const uint8_t *view = fake_memory_reach(at);
    (void)device;
    if (view) { memcpy(ret_bytes, view, bytes); }
    return view != NULL;
}

static bool poke(void *device, void *at, const void *from, size_t bytes)
{
    uint8_t *view = fake_memory_reach(at);
    (void)device;
    if (view) { memcpy(view, from, bytes); }
    return view != NULL;
}

const struct fake_nccl_device fake_nccl_on_memory = {
    .bound = bound, .take = take, .give_back = give_back, .run = run, .peek = peek, .poke = poke};
