/* The nccl cable's offer and messages: any bytes are taken or refused, nothing is read past them, and what is taken
 * is what is written again from it, but for characters that no log line may hold. */
#include "transfer/nccl_wire.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct nccl_wire_offer offer;
    if (nccl_offer_read(data, size, &offer)) {
        struct kv_cable_offer wrote;
        nccl_offer_write(&offer, &wrote);
        if (wrote.size != size || memcmp(wrote.bytes, data, size) != 0) { abort(); }
    }
    static struct nccl_wire_msg msg, twin;
    static uint8_t again[KV_CABLE_MESSAGE_BYTES_MAX], third[KV_CABLE_MESSAGE_BYTES_MAX];
    uint8_t *exact = malloc(size ? size : 1); /* so that a byte too far is found out */
    if (size) { memcpy(exact, data, size); }
    memset(&msg, 0x5a, sizeof msg);
    bool taken = nccl_wire_read(exact, size, &msg);
    free(exact);
    if (!taken) { return 0; }
    if (nccl_wire_write(&msg, again) != size) { abort(); }
    bool has_text = msg.kind == NCCL_WIRE_DENIED || msg.kind == NCCL_WIRE_BROKEN;
    if (!has_text && memcmp(again, data, size) != 0) { abort(); }
    if (has_text && strlen(msg.text) > NCCL_WIRE_TEXT_CHARS_MAX) { abort(); }
    if (!nccl_wire_read(again, size, &twin) || nccl_wire_write(&twin, third) != size || memcmp(third, again, size) != 0) { abort(); }
    return 0;
}
