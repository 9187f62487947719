#include "transfer/ucx_wire.h"

#include <string.h>

#include "base/crc32c.h"
#include "transfer/little_endian.h"

static void le16_store(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}
static uint32_t le16_load(const uint8_t *at) { return (uint32_t)at[0] | (uint32_t)at[1] << 8; }

static void mark_store(uint8_t *at)
{
    le32_store(at, UCX_WIRE_MAGIC);
    le16_store(at + 4, UCX_WIRE_VERSION);
}
static bool mark_holds(const uint8_t *at) { return le32_load(at) == UCX_WIRE_MAGIC && le16_load(at + 4) == UCX_WIRE_VERSION; }

bool ucx_rkey_is_registered(const void *rkey, size_t size, int memory_type)
{
    const uint8_t *bytes = rkey;
    size_t at = 9;
    bool any = false;
    if (size < at || bytes[8] != memory_type) { return false; }
    /* Of this machine and not of a peer, so in its own order of bytes, which is little-endian as all of Baton's. */
    for (uint64_t domains = le64_load(bytes); domains; domains &= domains - 1) {
        if (at >= size || bytes[at] > size - at - 1) { return false; }
        any |= bytes[at] > 0;
        at += 1u + bytes[at];
    }
    return any;
}

bool ucx_offer_write(const struct ucx_offer *offer, struct kv_cable_offer *ret_offer)
{
    if (offer->rkey_bytes > UCX_RKEY_BYTES_MAX || offer->address_bytes > UCX_ADDRESS_BYTES_MAX) { return false; }
    uint8_t *at = ret_offer->bytes;
    mark_store(at);
    le16_store(at + 6, offer->rkey_bytes);
    le16_store(at + 8, offer->address_bytes);
    le16_store(at + 10, 0);
    le64_store(at + 12, offer->base);
    le64_store(at + 20, offer->pool_bytes);
    memcpy(at + UCX_OFFER_HEAD_BYTES, offer->rkey, offer->rkey_bytes);
    memcpy(at + UCX_OFFER_HEAD_BYTES + offer->rkey_bytes, offer->address, offer->address_bytes);
    ret_offer->size = UCX_OFFER_HEAD_BYTES + offer->rkey_bytes + offer->address_bytes;
    return true;
}

bool ucx_offer_read(const void *bytes, size_t size, struct ucx_offer *ret)
{
    const uint8_t *at = bytes;
    if (size < UCX_OFFER_HEAD_BYTES || !mark_holds(at)) { return false; }
    ret->rkey_bytes = le16_load(at + 6);
    ret->address_bytes = le16_load(at + 8);
    ret->base = le64_load(at + 12);
    ret->pool_bytes = le64_load(at + 20);
    ret->rkey = at + UCX_OFFER_HEAD_BYTES;
    ret->address = ret->rkey + ret->rkey_bytes;
    return ret->rkey_bytes >= 1 && ret->rkey_bytes <= UCX_RKEY_BYTES_MAX && ret->address_bytes >= 1 &&
           ret->address_bytes <= UCX_ADDRESS_BYTES_MAX && ret->base != 0 &&
           ret->pool_bytes <= UINT64_MAX - ret->base &&
           size == (size_t)UCX_OFFER_HEAD_BYTES + ret->rkey_bytes + ret->address_bytes;
}

size_t ucx_hello_write(const struct ucx_hello *hello, uint8_t *ret_bytes)
{
    mark_store(ret_bytes);
    le16_store(ret_bytes + 6, hello->address_bytes);
    memcpy(ret_bytes + 8, hello->token, KV_CABLE_TOKEN_BYTES);
    memcpy(ret_bytes + UCX_HELLO_HEAD_BYTES, hello->address, hello->address_bytes);
    return UCX_HELLO_HEAD_BYTES + hello->address_bytes;
}

bool ucx_hello_read(const void *bytes, size_t size, struct ucx_hello *ret)
{
    const uint8_t *at = bytes;
    if (size < UCX_HELLO_HEAD_BYTES || !mark_holds(at)) { return false; }
    ret->address_bytes = le16_load(at + 6);
    ret->token = at + 8;
    ret->address = at + UCX_HELLO_HEAD_BYTES;
    return ret->address_bytes >= 1 && ret->address_bytes <= UCX_ADDRESS_BYTES_MAX &&
           size == (size_t)UCX_HELLO_HEAD_BYTES + ret->address_bytes;
}

void ucx_welcome_write(uint8_t ret_bytes[UCX_WELCOME_BYTES])
{
    mark_store(ret_bytes);
    le16_store(ret_bytes + 6, 0);
}

bool ucx_welcome_read(const void *bytes, size_t size) { return size == UCX_WELCOME_BYTES && mark_holds(bytes); }

static uint32_t grant_sum(const uint8_t *at, size_t size) { return crc32c(crc32c(0, at, 4), at + 8, size - 8); }

size_t ucx_grant_write(uint64_t grant_epoch, const uint32_t *blocks, uint32_t count, uint8_t *ret_bytes)
{
    size_t size = UCX_GRANT_HEAD_BYTES + 4u * (size_t)count;
    le32_store(ret_bytes, count);
    le64_store(ret_bytes + 8, grant_epoch);
    for (uint32_t i = 0; i < count; i++) { le32_store(ret_bytes + UCX_GRANT_HEAD_BYTES + 4u * (size_t)i, blocks[i]); }
    le32_store(ret_bytes + 4, grant_sum(ret_bytes, size));
    return size;
}

bool ucx_grant_read(const void *bytes, size_t size, uint32_t block_count, struct ucx_grant *ret)
{
    const uint8_t *at = bytes;
    if (size < UCX_GRANT_HEAD_BYTES || le32_load(at) != (size - UCX_GRANT_HEAD_BYTES) / 4u || size % 4u != 0 ||
        le32_load(at + 4) != grant_sum(at, size)) {
        return false;
    }
    ret->count = le32_load(at);
    ret->grant_epoch = le64_load(at + 8);
    ret->blocks = at + UCX_GRANT_HEAD_BYTES;
    for (uint32_t i = 0; i < ret->count; i++) {
        if (le32_load(ret->blocks + 4u * (size_t)i) >= block_count) { return false; }
    }
    return true;
}
