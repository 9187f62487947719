/* Any bytes are a link message or are refused; one that is taken encodes again, and a core that
 * hears it in any state keeps its books. */
#include "transfer/link_core.h"
#include "transfer/link_wire.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static _Alignas(64) uint8_t scratch[LINK_WIRE_SCRATCH_BYTES];
static uint8_t encoded[KV_LINK_MESSAGE_BYTES_MAX + 4096];

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct link_msg msg;
    struct diag diag;
    if (failed(link_wire_decode(data, size, scratch, &diag, &msg))) { return 0; }
    (void)link_wire_encode(&msg, encoded, sizeof encoded);
    struct link_core_config config = {.boot_epoch = 1, .layer_count = 2, .slice_bytes = 8, .links_max = 2, .grants_max = 2,
        .grant_blocks_max = 4, .sends_max = 2, .heartbeat_ns = 1, .suspect_ns = 10, .dead_ns = 30, .connect_ns = 50, .stall_ns = 99,
        .suspicion_min_ns = 1, .suspicion_max_ns = 60};
    strcpy(config.node_id, "d0");
    if (msg.kind == LINK_HELLO) { memcpy(config.fingerprint, msg.body.hello.fingerprint, sizeof config.fingerprint); }
    void *memory = calloc(1, link_core_bytes(&config));
    static struct link_wish wishes[256];
    struct link_wishes ret = {.wishes = wishes, .count_max = 256};
    if (!memory) { return 0; }
    struct link_core *core = link_core_init(memory, &config);
    kv_xfer_id_t id = msg.kind > LINK_HELLO_ACK && msg.kind < LINK_HEARTBEAT ? msg.body.xfer.xfer_id : (kv_xfer_id_t){{1}};
    uint64_t epoch = msg.kind > LINK_HELLO_ACK && msg.kind < LINK_HEARTBEAT ? msg.body.xfer.grant_epoch : 1;
    const uint8_t secret[KV_SECRET_BYTES] = {0};
    (void)!failed(link_core_grant(core, 0, id, epoch, secret, 4, 1000, 1));
    for (uint32_t link = 0; link < 2; link++) {
        link_core_accepted(core, link, 1);
        if (link == 1) { /* one that is ready */
            struct link_msg hello = {.kind = LINK_HELLO};
            hello.body.hello.protocol = LINK_PROTOCOL;
            strcpy(hello.body.hello.expect_node_id, "d0");
            hello.body.hello.expect_boot_epoch = 1;
            memcpy(hello.body.hello.fingerprint, config.fingerprint, sizeof config.fingerprint);
            link_core_message(core, link, &hello, 2, &ret);
            link_core_cable_up(core, link, 2, &ret);
        }
        for (int i = 0; i < 2; i++) { link_core_message(core, link, &msg, 3, &ret); }
        if (!link_core_audit(core)) { abort(); }
    }
    link_core_tick(core, 2000, &ret);
    if (!link_core_audit(core)) { abort(); }
    free(memory);
    return 0;
}
