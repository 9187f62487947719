#include "kernels/cuda/cuda_exchange.h"

#include "base/check.h"

void cuda_exchange_fini(struct cuda_exchange *exchange)
{
    for (uint32_t i = 0; i < KERNELS_EXCHANGES_MAX; i++) {
        if (exchange->regions[i].host != NULL) { cuda_exchange_free(exchange, exchange->regions[i].host); }
    }
}

status_t cuda_exchange_alloc(struct cuda_exchange *exchange, size_t bytes, void **ret_host, struct diag *diag)
{
    const struct cuda_driver *driver = exchange->driver;
    struct cuda_exchange_region *region = exchange->regions;
    while (region < exchange->regions + KERNELS_EXCHANGES_MAX && region->host != NULL) { region++; }
    if (region == exchange->regions + KERNELS_EXCHANGES_MAX) {
        diag_set(diag, "a handle has at most %u exchange regions", KERNELS_EXCHANGES_MAX);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    size_t room = bytes == 0 ? 1 : bytes;
    void *host = NULL, *device = NULL;
    status_t st = driver->host_alloc(driver, room, &host, diag);
    if (failed(st)) { return st; }
    st = driver->mem_alloc(driver, room, &device, diag);
    if (failed(st)) {
        driver->host_free(driver, host);
        return st;
    }
    *region = (struct cuda_exchange_region){.host = host, .device = device, .bytes = room};
    *ret_host = host;
    return STATUS_OK;
}

void cuda_exchange_free(struct cuda_exchange *exchange, void *host)
{
    if (host == NULL) { return; }
    for (uint32_t i = 0; i < KERNELS_EXCHANGES_MAX; i++) {
        struct cuda_exchange_region *region = &exchange->regions[i];
        if (region->host != host) { continue; }
        exchange->driver->mem_free(exchange->driver, region->device);
        exchange->driver->host_free(exchange->driver, region->host);
        *region = (struct cuda_exchange_region){0};
        return;
    }
    CHECK(host == NULL); /* not a region of this handle */
}

const struct cuda_exchange_region *cuda_exchange_find(const struct cuda_exchange *exchange, const void *host, size_t bytes)
{
    for (uint32_t i = 0; i < KERNELS_EXCHANGES_MAX; i++) {
        const struct cuda_exchange_region *region = &exchange->regions[i];
        if (region->host == NULL || (uintptr_t)host < (uintptr_t)region->host) { continue; }
        size_t offset = (uintptr_t)host - (uintptr_t)region->host;
        if (offset <= region->bytes && bytes <= region->bytes - offset && (offset < region->bytes || bytes == 0)) { return region; }
    }
    return NULL;
}

void *cuda_exchange_device(const struct cuda_exchange *exchange, const void *host, size_t bytes)
{
    if (host == NULL) { return NULL; }
    const struct cuda_exchange_region *region = cuda_exchange_find(exchange, host, bytes);
    CHECK(region != NULL);
    return region->device + ((uintptr_t)host - (uintptr_t)region->host);
}
