/* cuda_exchange: host memory that operations may name, and its mirror on the device.
 * Flow:    kernels_exchange_* -> [cuda_exchange] -> addresses in the kernels' arguments
 * Thread:  the handle's caller.
 * Memory:  pinned and device memory of each region, taken in alloc.
 *
 * A region and its mirror have equal offsets. An operation that names host memory outside of every region is
 * our own mistake: the device would read what is not there. */
#ifndef BATON_KERNELS_CUDA_CUDA_EXCHANGE_H
#define BATON_KERNELS_CUDA_CUDA_EXCHANGE_H

#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "kernels/cuda/driver.h"
#include "kernels/kernels.h"

struct cuda_exchange_region {
    uint8_t *host; /* NULL: none */
    uint8_t *device;
    size_t bytes;
};

struct cuda_exchange {
    const struct cuda_driver *driver;
    struct cuda_exchange_region regions[KERNELS_EXCHANGES_MAX];
};

void cuda_exchange_fini(struct cuda_exchange *exchange); /* takes a zeroed one */

/* ret_host  zeroed, page-aligned. Nothing is queued: the mirror holds nothing until it is sent.
 * Errors    RESOURCE_EXHAUSTED (node): no memory, or KERNELS_EXCHANGES_MAX regions are there already. */
NODISCARD status_t cuda_exchange_alloc(struct cuda_exchange *exchange, size_t bytes, void **ret_host, struct diag *diag);
/* Takes NULL; CHECKs that it is the start of a region. The device must be done with it. */
void cuda_exchange_free(struct cuda_exchange *exchange, void *host);

/* The region that holds all of host .. host+bytes-1, or NULL. */
const struct cuda_exchange_region *cuda_exchange_find(const struct cuda_exchange *exchange, const void *host, size_t bytes);

/* Where host .. host+bytes-1 lies on the device. CHECKs that one region holds it. NULL stays NULL. */
void *cuda_exchange_device(const struct cuda_exchange *exchange, const void *host, size_t bytes);

#endif
