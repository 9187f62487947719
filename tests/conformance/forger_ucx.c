#include "tests/conformance/forger_ucx.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tests/conformance/driver.h"
#include "transfer/cable_tcp.h"
#include "transfer/little_endian.h"
#include "transfer/ucx_api.h"
#include "transfer/ucx_wire.h"

enum { SLICES_MAX = 64, LAYERS_MAX = 8 };

struct forger_ucx {
    const struct ucx_api *api;
    struct kv_layout layout;
    void *context, *worker, *endpoint, *rkey;
    uint64_t base;
    uint32_t block_count;
    bool is_welcome, is_broken;
    uint64_t grant_epoch; /* the only grant of a test */
    uint32_t count, blocks[SLICES_MAX];
    bool was_put[LAYERS_MAX][SLICES_MAX];
};

static void on_error(void *arg, void *endpoint, ucx_status_t status)
{
    (void)endpoint;
    (void)status;
    ((struct forger_ucx *)arg)->is_broken = true;
}

static ucx_status_t on_welcome(void *arg, const void *header, size_t header_bytes, void *data, size_t bytes,
                               const struct ucx_am_recv_param *param)
{
    (void)header;
    (void)header_bytes;
    (void)param;
    ((struct forger_ucx *)arg)->is_welcome = ucx_welcome_read(data, bytes);
    return UCX_OK;
}

static ucx_status_t on_grant(void *arg, const void *header, size_t header_bytes, void *data, size_t bytes,
                             const struct ucx_am_recv_param *param)
{
    (void)header;
    (void)header_bytes;
    (void)param;
    struct forger_ucx *forger = arg;
    struct ucx_grant grant;
    assert_true(ucx_grant_read(data, bytes, forger->block_count, &grant));
    assert_true(grant.count <= SLICES_MAX);
    for (uint32_t i = 0; i < grant.count; i++) { forger->blocks[i] = le32_load(grant.blocks + 4u * i); }
    forger->grant_epoch = grant.grant_epoch;
    forger->count = grant.count;
    return UCX_OK;
}

/* Until the request is over. */
static bool wait_for(struct forger_ucx *forger, ucx_request_t request)
{
    if (!ucx_is_request(request)) { return ucx_status_of(request) == UCX_OK; }
    ucx_status_t st;
    uint64_t end_ns = clock_now_ns() + WAIT_S * NS_PER_S;
    while ((st = forger->api->request_check_status(request)) == UCX_INPROGRESS && clock_now_ns() < end_ns) {
        forger->api->worker_progress(forger->worker);
    }
    forger->api->request_free(request);
    return st == UCX_OK;
}

/* What came meanwhile. */
static void look_around(struct forger_ucx *forger, const bool *until, uint64_t limit_ms)
{
    uint64_t end_ns = clock_now_ns() + limit_ms * NS_PER_MS;
    do {
        forger->api->worker_progress(forger->worker);
    } while (!forger->is_broken && !*until && clock_now_ns() < end_ns);
}

struct forger_ucx *forger_ucx_open(const struct kv_cable_offer *bytes, const struct kv_layout *layout,
                                   const uint8_t token[KV_CABLE_TOKEN_BYTES])
{
    struct ucx_offer offer;
    struct forger_ucx *forger = calloc(1, sizeof *forger);
    assert_true(ucx_offer_read(bytes->bytes, bytes->size, &offer));
    assert_false(failed(ucx_api_load(getenv("BATON_UCX_LIBRARY"), NULL, &forger->api)));
    const struct ucx_api *api = forger->api;
    forger->layout = *layout;
    forger->base = offer.base;
    forger->block_count = (uint32_t)(offer.pool_bytes / kv_layout_block_bytes(layout));
    void *config = NULL;
    assert_int_equal(api->config_read(NULL, NULL, &config), UCX_OK);
    assert_int_equal(api->config_modify(config, "TLS", "rc,ud,tcp"), UCX_OK);
    const struct ucx_params params = {.field_mask = UCX_PARAM_FIELD_FEATURES,
                                      .features = UCX_FEATURE_RMA | UCX_FEATURE_AM | UCX_FEATURE_WAKEUP};
    assert_int_equal(api->init_version(UCX_VERSION_MAJOR, UCX_VERSION_MINOR_MIN, &params, config, &forger->context), UCX_OK);
    api->config_release(config);
    const struct ucx_worker_params worker = {.field_mask = UCX_WORKER_PARAM_FIELD_THREAD_MODE,
                                             .thread_mode = UCX_THREAD_MODE_SERIALIZED};
    assert_int_equal(api->worker_create(forger->context, &worker, &forger->worker), UCX_OK);
    struct ucx_am_handler_param handler = {
        .field_mask = UCX_AM_HANDLER_PARAM_FIELD_ID | UCX_AM_HANDLER_PARAM_FIELD_FLAGS |
                      UCX_AM_HANDLER_PARAM_FIELD_CB | UCX_AM_HANDLER_PARAM_FIELD_ARG,
        .id = UCX_MSG_WELCOME, .flags = UCX_AM_FLAG_WHOLE_MSG, .cb = on_welcome, .arg = forger};
    assert_int_equal(api->worker_set_am_recv_handler(forger->worker, &handler), UCX_OK);
    handler.id = UCX_MSG_GRANT;
    handler.cb = on_grant;
    assert_int_equal(api->worker_set_am_recv_handler(forger->worker, &handler), UCX_OK);
    struct ucx_worker_attr ours = {.field_mask = UCX_WORKER_ATTR_FIELD_ADDRESS | UCX_WORKER_ATTR_FIELD_ADDRESS_FLAGS,
                                   .address_flags = UCX_WORKER_ADDRESS_FLAG_NET_ONLY};
    assert_int_equal(api->worker_query(forger->worker, &ours), UCX_OK);
    const struct ucx_ep_params endpoint = {
        .field_mask = UCX_EP_PARAM_FIELD_REMOTE_ADDRESS | UCX_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCX_EP_PARAM_FIELD_ERR_HANDLER,
        .address = offer.address, .err_mode = UCX_ERR_HANDLING_MODE_PEER, .err_handler = {on_error, forger}};
    assert_int_equal(api->ep_create(forger->worker, &endpoint, &forger->endpoint), UCX_OK);
    assert_int_equal(api->ep_rkey_unpack(forger->endpoint, offer.rkey, &forger->rkey), UCX_OK);
    uint8_t hello[UCX_HELLO_HEAD_BYTES + UCX_ADDRESS_BYTES_MAX];
    const struct ucx_hello says = {.token = token, .address = ours.address, .address_bytes = (uint32_t)ours.address_length};
    size_t size = ucx_hello_write(&says, hello);
    const struct ucx_request_param eager = {.op_attr_mask = UCX_OP_ATTR_FIELD_FLAGS, .flags = UCX_AM_SEND_FLAG_EAGER};
    bool sent = wait_for(forger, api->am_send_nbx(forger->endpoint, UCX_MSG_HELLO, NULL, 0, hello, size, &eager));
    api->worker_release_address(forger->worker, ours.address);
    /* D does not answer a wrong token, so here the wait is the check; a true one is answered in milliseconds. */
    if (sent) { look_around(forger, &forger->is_welcome, 1500); }
    if (forger->is_welcome) { return forger; }
    forger_ucx_close(forger);
    return NULL;
}

void forger_ucx_close(struct forger_ucx *forger)
{
    if (!forger) { return; }
    const struct ucx_request_param force = {.op_attr_mask = UCX_OP_ATTR_FIELD_FLAGS, .flags = UCX_EP_CLOSE_FLAG_FORCE};
    forger->api->rkey_destroy(forger->rkey);
    (void)wait_for(forger, forger->api->ep_close_nbx(forger->endpoint, &force));
    forger->api->worker_destroy(forger->worker);
    forger->api->cleanup(forger->context);
    free(forger);
}

bool forger_ucx_frame(struct forger_ucx *forger, const struct kv_frame *frame, const uint8_t *slices, const uint32_t *crc)
{
    size_t slice_bytes = kv_layout_slice_bytes(&forger->layout);
    const struct ucx_request_param plain = {0};
    uint8_t head[TCP_HEAD_BYTES_MAX];
    bool never = false;
    look_around(forger, &never, 50); /* D's list of blocks, if it is on its way */
    bool inside = frame->grant_epoch == forger->grant_epoch && frame->layer < forger->layout.layer_count &&
                  frame->first < forger->count && frame->count <= forger->count - frame->first;
    for (uint32_t i = 0; i < frame->count && inside; i++) { inside = !forger->was_put[frame->layer][frame->first + i]; }
    for (uint32_t i = 0; i < frame->count && inside; i++) {
        forger->was_put[frame->layer][frame->first + i] = true;
        uint64_t to = forger->base + kv_layout_slice_offset(&forger->layout, forger->blocks[frame->first + i], frame->layer);
        ucx_request_t put = forger->api->put_nbx(forger->endpoint, slices + i * slice_bytes, slice_bytes, to, forger->rkey, &plain);
        if (!wait_for(forger, put)) { return false; }
    }
    if (!wait_for(forger, forger->api->ep_flush_nbx(forger->endpoint, &plain))) { return false; }
    size_t bytes = tcp_frame_head_write(frame, (uint32_t)slice_bytes, crc, head);
    const struct ucx_request_param eager = {.op_attr_mask = UCX_OP_ATTR_FIELD_FLAGS, .flags = UCX_AM_SEND_FLAG_EAGER};
    bool sent = wait_for(forger, forger->api->am_send_nbx(forger->endpoint, UCX_MSG_FRAME, NULL, 0, head, bytes, &eager));
    return wait_for(forger, forger->api->ep_flush_nbx(forger->endpoint, &plain)) && sent && !forger->is_broken;
}
