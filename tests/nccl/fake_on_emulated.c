/* fake_on_emulated: fake_nccl over the emulated device, as the NCCL that a program finds: nodes that are run whole link it
 * in place of nccl_api's own search for a library. */
#include "tests/cuda/device_emulated.h"
#include "tests/nccl/fake_nccl.h"

static void *bound(void) { return (void *)(uintptr_t)emulated_device_bound(); }
static bool take(void *device, uint64_t bytes) { return emulated_device_take(device, bytes); }
static void give_back(void *device, uint64_t bytes) { emulated_device_give_back(device, bytes); }
static void run(void *device, void *stream, void (*fn)(void *user), void *user) { emulated_device_stream_run(device, stream, fn, user); }
static bool peek(void *device, const void *at, void *ret_bytes, size_t bytes) { return emulated_device_peek(device, at, ret_bytes, bytes); }
static bool poke(void *device, void *at, const void *from, size_t bytes) { return emulated_device_poke(device, at, from, bytes); }

const struct fake_nccl_device fake_nccl_on_emulated = {
    .bound = bound, .take = take, .give_back = give_back, .run = run, .peek = peek, .poke = poke};

status_t nccl_api_load(const char *library, struct diag *diag, const struct nccl_api **ret_api)
{
    (void)library;
    const struct nccl_api *api = fake_nccl_api(&fake_nccl_on_emulated);
    TRY(nccl_api_check_environment(diag));
    TRY(nccl_api_check_version(api, NULL, diag));
    *ret_api = api;
    return STATUS_OK;
}
