/* The ucx cable's offer and messages: any bytes are taken or refused, nothing is read past them, and
 * what is taken is what is written again from it. */
#include "transfer/ucx_wire.h"

#include <stdlib.h>
#include <string.h>

#include "transfer/little_endian.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t again[KV_OFFER_BYTES_MAX + UCX_HELLO_HEAD_BYTES];

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ucx_offer offer;
    struct ucx_hello hello;
    struct ucx_grant grant;
    if (ucx_offer_read(data, size, &offer)) {
        struct kv_cable_offer wrote;
        if (!ucx_offer_write(&offer, &wrote) || wrote.size != size) { abort(); }
        le32_store(wrote.bytes + 8, le32_load(data + 8)); /* two bytes are kept for later */
        if (memcmp(wrote.bytes, data, size) != 0) { abort(); }
    }
    if (ucx_hello_read(data, size, &hello) && (ucx_hello_write(&hello, again) != size || memcmp(again, data, size) != 0)) { abort(); }
    if (size >= UCX_WELCOME_BYTES && ucx_welcome_read(data, size) && size != UCX_WELCOME_BYTES) { abort(); }
    if (ucx_grant_read(data, size, 1000, &grant)) {
        uint32_t *blocks = malloc(grant.count ? grant.count * sizeof *blocks : 1);
        uint8_t *bytes = malloc(size);
        for (uint32_t i = 0; i < grant.count; i++) {
            blocks[i] = le32_load(grant.blocks + 4u * (size_t)i);
            if (blocks[i] >= 1000) { abort(); }
        }
        if (ucx_grant_write(grant.grant_epoch, blocks, grant.count, bytes) != size || memcmp(bytes, data, size) != 0) { abort(); }
        free(bytes);
        free(blocks);
    }
    return 0;
}
