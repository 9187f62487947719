/* Any bytes are a ticket or are refused; a ticket that is taken encodes to one that is equal. */
#include "transfer/ticket.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kv_ticket ticket, again;
    struct diag diag;
    uint8_t bytes[KV_TICKET_BYTES_MAX];
    size_t wrote;
    if (failed(kv_ticket_decode(data, size, &diag, &ticket))) { return 0; }
    kv_ticket_encode(&ticket, bytes, &wrote);
    if (wrote > sizeof bytes || failed(kv_ticket_decode(bytes, wrote, &diag, &again)) || memcmp(&ticket, &again, sizeof ticket) != 0) {
        abort();
    }
    return 0;
}
