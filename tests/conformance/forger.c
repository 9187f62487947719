#include "tests/conformance/forger.h"

#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/conformance/driver.h"
#include "tests/conformance/forger_nccl.h"
#include "tests/conformance/forger_ucx.h"
#include "base/clock.h"
#include "kv/kv_memory_inbox.h"
#include "tests/conformance/peer.h"
#include "tests/kv_memory/fake_memory.h"
#include "transfer/cable_shm.h"
#include "transfer/cable_tcp.h"
#include "base/crc32c.h"
#include "transfer/link_wire.h"
#include "transfer/little_endian.h"

static int dial(const char *host, uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    assert_int_equal(inet_pton(AF_INET, host, &address.sin_addr), 1);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static bool read_fully(int fd, void *to, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        if (poll(&ready, 1, WAIT_S * 1000) != 1) { return false; }
        ssize_t got = recv(fd, (char *)to + at, bytes - at, 0);
        if (got <= 0) { return false; }
        at += (size_t)got;
    }
    return true;
}

void forger_send(const struct forger *forger, const struct link_msg *msg)
{
    static uint8_t bytes[KV_LINK_MESSAGE_BYTES_MAX + 4];
    uint32_t size = (uint32_t)link_wire_encode(msg, bytes + 4, KV_LINK_MESSAGE_BYTES_MAX);
    assert_true(size > 0);
    memcpy(bytes, &size, 4);
    ssize_t sent = send(forger->link_fd, bytes, size + 4, MSG_NOSIGNAL);
    (void)sent; /* an ended link shows when we listen */
}

bool forger_hear_any(struct forger *forger, struct link_msg *ret_msg)
{
    static uint8_t bytes[KV_LINK_MESSAGE_BYTES_MAX];
    static _Alignas(64) uint8_t scratch[LINK_WIRE_SCRATCH_BYTES];
    uint32_t size;
    if (!read_fully(forger->link_fd, &size, 4) || size > sizeof bytes || !read_fully(forger->link_fd, bytes, size)) { return false; }
    return !failed(link_wire_decode(bytes, size, scratch, NULL, ret_msg));
}

bool forger_hear(struct forger *forger, struct link_msg *ret_msg)
{
    do {
        if (!forger_hear_any(forger, ret_msg)) { return false; }
    } while (ret_msg->kind == LINK_HEARTBEAT || ret_msg->kind == LINK_CABLE);
    return true;
}

static void host_id_read(char *ret_id)
{
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%63s", ret_id), 1);
    fclose(file);
}

void forger_open(struct forger *forger, const char *ticket_hex, const struct kv_layout *layout)
{
    uint8_t bytes[KV_TICKET_BYTES_MAX];
    char host[KV_ADDRESS_CHARS_MAX + 1];
    memset(forger, 0, sizeof *forger);
    forger->cable_fd = -1;
    forger->layout = *layout;
    size_t size = hex_decode(ticket_hex, bytes, sizeof bytes);
    assert_false(failed(kv_ticket_decode(bytes, size, NULL, &forger->ticket)));
    size_t pool_bytes = KV_FRAME_BLOCKS_MAX * kv_layout_block_bytes(layout);
    if (pools_on_device && strcmp(cable_name, "shm") == 0) {
        struct kv_memory *memory = fake_memory_create(&(struct fake_memory_config){.pool_bytes = pool_bytes, .device = 1});
        forger->pool = (struct kv_endpoint_pool){.bytes = pool_bytes, .memfd = -1, .memory = memory};
        forger->view = fake_memory_view(memory);
    } else {
        assert_false(failed(kv_endpoint_pool_alloc(pool_bytes, NULL, &forger->pool)));
        forger->view = forger->pool.base;
    }
    const char *colon = strrchr(forger->ticket.link_address, ':');
    snprintf(host, sizeof host, "%.*s", (int)(colon - forger->ticket.link_address), forger->ticket.link_address);
    forger->link_fd = dial(host, (uint16_t)atoi(colon + 1));
    struct link_msg msg = {.kind = LINK_HELLO};
    struct link_hello *hello = &msg.body.hello;
    struct kv_fingerprint fingerprint;
    const uint8_t model_hash[32] = {42};
    kv_fingerprint_init(&fingerprint, model_hash, layout, "test-1");
    kv_fingerprint_encode(&fingerprint, hello->fingerprint);
    hello->protocol = LINK_PROTOCOL;
    /* Each liar is somebody new, whom nobody holds an earlier one's deeds against. */
    snprintf(hello->node_id, sizeof hello->node_id, "forger-%lu", (unsigned long)peer_xfer_of(forger->ticket.xfer_id));
    hello->boot_epoch = 1;
    memcpy(hello->expect_node_id, forger->ticket.node_id, sizeof hello->expect_node_id);
    hello->expect_boot_epoch = forger->ticket.boot_epoch;
    host_id_read(hello->host_id);
    hello->cable_count = 1;
    snprintf(hello->cables[0], sizeof hello->cables[0], "%s", cable_name);
    forger_send(forger, &msg);
    assert_true(forger_hear(forger, &msg));
    assert_int_equal(msg.kind, LINK_HELLO_ACK);
    forger->ack = msg.body.hello_ack;
}

/* An op of ours, waited for. */
static void sum_wait(struct forger *forger, struct kv_memory_op *op)
{
    struct kv_memory_inbox inbox;
    assert_false(failed(kv_memory_inbox_init(&inbox)));
    op->done = kv_memory_inbox_put;
    op->user = &inbox;
    kv_memory_submit(forger->pool.memory, op);
    while (!kv_memory_inbox_take_all(&inbox)) { kv_memory_inbox_wait(&inbox); }
    kv_memory_inbox_fini(&inbox);
}

static bool shm_device_connect(struct forger *forger, const uint8_t *token)
{
    uint8_t packet[SHM_DEVICE_HELLO_BYTES_MAX], welcome[8];
    size_t export_bytes = 0;
    assert_false(failed(kv_memory_export(forger->pool.memory, packet + SHM_DEVICE_HELLO_HEAD_BYTES, &export_bytes, NULL)));
    le32_store(packet, SHM_MAGIC);
    le32_store(packet + 4, SHM_DEVICE_HELLO);
    memcpy(packet + 8, token, KV_CABLE_TOKEN_BYTES);
    le64_store(packet + 40, forger->pool.bytes);
    le32_store(packet + 48, (uint32_t)export_bytes);
    return send(forger->cable_fd, packet, SHM_DEVICE_HELLO_HEAD_BYTES + export_bytes, MSG_NOSIGNAL) > 0 &&
           read_fully(forger->cable_fd, welcome, sizeof welcome);
}

static bool shm_connect(struct forger *forger, const struct kv_cable_offer *offer, const uint8_t *token)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, offer->bytes, strnlen((const char *)offer->bytes, offer->size));
    forger->cable_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(forger->cable_fd, (struct sockaddr *)&address, sizeof address), 0);
    if (forger->pool.memory) { return shm_device_connect(forger, token); }
    uint8_t packet[SHM_HELLO_BYTES], welcome[8];
    le32_store(packet, SHM_MAGIC);
    le32_store(packet + 4, SHM_HELLO);
    memcpy(packet + 8, token, KV_CABLE_TOKEN_BYTES);
    le64_store(packet + 40, forger->pool.bytes);
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct iovec iov = {.iov_base = packet, .iov_len = sizeof packet};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    struct cmsghdr *part = CMSG_FIRSTHDR(&msg);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(part), &forger->pool.memfd, sizeof(int));
    return sendmsg(forger->cable_fd, &msg, MSG_NOSIGNAL) > 0 && read_fully(forger->cable_fd, welcome, sizeof welcome);
}

bool forger_cable(struct forger *forger, const char *cable, const uint8_t token[KV_CABLE_TOKEN_BYTES])
{
    assert_int_equal(forger->ack.offer_count, 1);
    const struct kv_cable_offer *offer = &forger->ack.offers[0].offer;
    if (forger->cable_fd >= 0) { close(forger->cable_fd); }
    if (strcmp(cable, "ucx") == 0) {
        forger->ucx = forger_ucx_open(offer, &forger->layout, token);
        return forger->ucx != NULL;
    }
    if (strcmp(cable, "nccl") == 0) { /* it has no token; what it can get wrong are its terms */
        forger->nccl = forger_nccl_open(forger, memcmp(token, forger->ack.token, KV_CABLE_TOKEN_BYTES) != 0);
        return forger->nccl != NULL;
    }
    if (strcmp(cable, "shm") == 0) { return shm_connect(forger, offer, token); }
    char host[KV_ADDRESS_CHARS_MAX + 1];
    snprintf(host, sizeof host, "%.*s", (int)offer->size - 3, (const char *)offer->bytes + 3);
    forger->cable_fd = dial(host, (uint16_t)(offer->bytes[0] | offer->bytes[1] << 8));
    uint8_t hello[TCP_HELLO_BYTES], welcome[TCP_WELCOME_BYTES];
    le32_store(hello, TCP_HELLO_MAGIC);
    le32_store(hello + 4, TCP_VERSION);
    memcpy(hello + 8, token, KV_CABLE_TOKEN_BYTES);
    return send(forger->cable_fd, hello, sizeof hello, MSG_NOSIGNAL) == (ssize_t)sizeof hello &&
           read_fully(forger->cable_fd, welcome, sizeof welcome);
}

void forger_close(struct forger *forger)
{
    close(forger->link_fd);
    forger_ucx_close(forger->ucx);
    forger_nccl_close(forger->nccl);
    if (forger->cable_fd >= 0) { close(forger->cable_fd); }
    if (forger->pool.memory) {
        while (fake_memory_imports(forger->pool.memory) > 0) { clock_sleep_ns(NS_PER_MS); } /* D lets go by itself */
        fake_memory_destroy(forger->pool.memory);
        return;
    }
    kv_endpoint_pool_free(&forger->pool);
}

void forger_say(struct forger *forger, enum link_msg_kind kind, struct link_xfer xfer)
{
    struct link_msg msg = {.kind = kind};
    msg.body.xfer = xfer;
    forger_send(forger, &msg);
}

bool forger_frame(struct forger *forger, const char *cable, const struct kv_frame *frame, uint64_t seed, uint32_t crc_xor)
{
    size_t slice_bytes = kv_layout_slice_bytes(&forger->layout);
    uint32_t crc[KV_FRAME_BLOCKS_MAX];
    /* A layer that the layout does not have is told of, not used. */
    uint32_t layer_here = frame->layer % forger->layout.layer_count;
    for (uint32_t i = 0; i < frame->count; i++) {
        uint8_t *slice = forger->view + kv_layout_slice_offset(&forger->layout, i, layer_here);
        peer_slice_fill(slice, slice_bytes, seed, frame->layer, frame->first + i);
        crc[i] = crc32c(0, slice, slice_bytes) ^ crc_xor;
    }
    if (forger->pool.memory) {
        struct kv_memory_op op = {.kind = KV_MEMORY_CHECKSUM, .count = frame->count, .range_bytes = slice_bytes, .event = 5};
        for (uint32_t i = 0; i < frame->count; i++) { op.offsets[i] = kv_layout_slice_offset(&forger->layout, i, layer_here); }
        sum_wait(forger, &op);
        uint8_t packet[SHM_PACKET_BYTES_MAX], done[12];
        le32_store(packet, SHM_MAGIC);
        le32_store(packet + 4, SHM_DEVICE_DESCRIPTOR);
        memcpy(packet + 8, frame->xfer_id.bytes, 16);
        le64_store(packet + 24, frame->grant_epoch);
        le32_store(packet + 32, frame->layer);
        le32_store(packet + 36, frame->first);
        le32_store(packet + 40, frame->count);
        le32_store(packet + 44, 3);
        le32_store(packet + 48, op.event);
        for (uint32_t i = 0; i < frame->count; i++) {
            assert_int_equal(op.crc[i] ^ crc_xor, crc[i]);
            le32_store(packet + SHM_DEVICE_DESCRIPTOR_HEAD_BYTES + 4u * i, i);
            le32_store(packet + SHM_DEVICE_DESCRIPTOR_HEAD_BYTES + 4u * (frame->count + i), crc[i]);
        }
        size_t bytes = SHM_DEVICE_DESCRIPTOR_HEAD_BYTES + 8u * frame->count;
        return send(forger->cable_fd, packet, bytes, MSG_NOSIGNAL) == (ssize_t)bytes && read_fully(forger->cable_fd, done, sizeof done);
    }
    if (strcmp(cable, "ucx") == 0 || strcmp(cable, "nccl") == 0) {
        static uint8_t slices[1u << 20];
        assert_true(frame->count * slice_bytes <= sizeof slices);
        for (uint32_t i = 0; i < frame->count; i++) {
            memcpy(slices + i * slice_bytes, forger->view + kv_layout_slice_offset(&forger->layout, i, layer_here), slice_bytes);
        }
        return forger->nccl ? forger_nccl_frame(forger->nccl, frame, slices, crc) : forger_ucx_frame(forger->ucx, frame, slices, crc);
    }
    if (strcmp(cable, "shm") == 0) {
        uint8_t packet[SHM_PACKET_BYTES_MAX];
        le32_store(packet, SHM_MAGIC);
        le32_store(packet + 4, SHM_DESCRIPTOR);
        memcpy(packet + 8, frame->xfer_id.bytes, 16);
        le64_store(packet + 24, frame->grant_epoch);
        le32_store(packet + 32, frame->layer);
        le32_store(packet + 36, frame->first);
        le32_store(packet + 40, frame->count);
        for (uint32_t i = 0; i < frame->count; i++) {
            le32_store(packet + SHM_DESCRIPTOR_HEAD_BYTES + 4u * i, i);
            le32_store(packet + SHM_DESCRIPTOR_HEAD_BYTES + 4u * (frame->count + i), crc[i]);
        }
        size_t bytes = SHM_DESCRIPTOR_HEAD_BYTES + 8u * frame->count;
        uint8_t done[12];
        return send(forger->cable_fd, packet, bytes, MSG_NOSIGNAL) == (ssize_t)bytes &&
               read_fully(forger->cable_fd, done, sizeof done); /* or the next would change what D copies */
    }
    uint8_t head[TCP_HEAD_BYTES_MAX];
    size_t head_bytes = tcp_frame_head_write(frame, (uint32_t)slice_bytes, crc, head);
    if (send(forger->cable_fd, head, head_bytes, MSG_NOSIGNAL) != (ssize_t)head_bytes) { return false; }
    for (uint32_t i = 0; i < frame->count; i++) {
        const uint8_t *slice = forger->view + kv_layout_slice_offset(&forger->layout, i, layer_here);
        for (size_t at = 0; at < slice_bytes;) {
            ssize_t sent = send(forger->cable_fd, slice + at, slice_bytes - at, MSG_NOSIGNAL);
            if (sent <= 0) { return false; }
            at += (size_t)sent;
        }
    }
    return true;
}
