#include "node/node.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "node/node_private.h"

/* ---- facts from other threads ---- */

bool node_on_attach_post(void *user, const struct attach_post *attach)
{
    struct node *node = user;
    struct post post = {.kind = POST_ATTACH, .attach = *attach};
    if (attach->kind == ATTACH_POST_DOWN) {
        mailbox_post_wait(node->mailbox, &post);
        return true;
    }
    return !failed(mailbox_post(node->mailbox, &post));
}

void node_on_step(void *user, const struct step_result *result)
{
    struct node *node = user;
    struct post post = {.kind = POST_STEP, .result = result};
    mailbox_post_wait(node->mailbox, &post);
}

void node_on_layer(void *user, const struct step_plan *plan, uint32_t layer, uint64_t mark)
{
    struct node *node = user;
    if (!node->ops->on_layer) { return; }
    pthread_mutex_lock(&node->wire_lock);
    if (!node->wire_is_closed) { node->ops->on_layer(node->role, plan, layer, mark); }
    pthread_mutex_unlock(&node->wire_lock);
}

void node_on_kv_event(void *user, const struct kv_event *event)
{
    struct node *node = user;
    if (!node->ops->on_xfer(node->role, event)) { return; }
    struct xfer_post *copy = malloc(sizeof *copy + event->payload_bytes);
    CHECK(copy != NULL);
    copy->event = *event;
    snprintf(copy->text, sizeof copy->text, "%s", event->text ? event->text : "");
    snprintf(copy->reason, sizeof copy->reason, "%s", event->stats.reason ? event->stats.reason : "");
    if (event->payload_bytes > 0) { memcpy(copy->payload, event->payload, event->payload_bytes); }
    copy->event.text = copy->text;
    copy->event.stats.reason = copy->reason;
    copy->event.payload = copy->payload;
    struct post post = {.kind = POST_XFER, .xfer = copy};
    mailbox_post_wait(node->mailbox, &post);
}

void node_on_tier_event(void *user, const struct kv_tier_event *event)
{
    struct node *node = user;
    struct post post = {.kind = POST_TIER, .tier = *event};
    mailbox_post_wait(node->mailbox, &post);
}

bool node_on_inspect(void *user, const struct inspect_post *inspect)
{
    struct node *node = user;
    struct post post = {.kind = POST_INSPECT, .inspect = *inspect};
    return !failed(mailbox_post(node->mailbox, &post));
}

/* ---- the core thread ---- */

static status_t handle_bytes(struct node *node, const struct attach_post *attach, uint64_t now_ns)
{
    struct ctl_msg msg;
    struct diag diag = {{0}};
    status_t st = ctl_codec_decode(node->codec, CTL_FROM_ROUTER, attach->bytes, attach->byte_count, &msg, &diag);
    if (failed(st)) {
        attach_server_drop(node->attach, attach->router, diag.text);
        return STATUS_OK;
    }
    if (msg.kind == CTL_ROUTER_HELLO) {
        if (msg.router_hello.protocol_version != CTL_PROTOCOL_VERSION) {
            char why[128];
            snprintf(why, sizeof why, "control protocol: this node speaks version %u, the router %u; update the older one",
                     CTL_PROTOCOL_VERSION, msg.router_hello.protocol_version);
            attach_server_drop(node->attach, attach->router, why);
        }
        return STATUS_OK;
    }
    struct node_fact fact = {.kind = NODE_FACT_MESSAGE, .now_ns = now_ns, .router = attach->router, .msg = &msg};
    return node->ops->on_fact(node->role, &fact);
}

static status_t handle_attach(struct node *node, const struct attach_post *attach, uint64_t now_ns)
{
    struct node_fact fact = {.now_ns = now_ns, .router = attach->router};
    status_t st = STATUS_OK;
    switch (attach->kind) {
    case ATTACH_POST_UP:
        node->router_is_up[attach->router] = true;
        fact.kind = NODE_FACT_ROUTER_UP;
        return node->ops->on_fact(node->role, &fact);
    case ATTACH_POST_DOWN:
        if (node->router_is_up[attach->router]) {
            node->router_is_up[attach->router] = false;
            fact.kind = NODE_FACT_ROUTER_DOWN;
            st = node->ops->on_fact(node->role, &fact);
        }
        attach_server_forget(node->attach, attach->router);
        return st;
    case ATTACH_POST_BYTES:
        if (node->router_is_up[attach->router]) { st = handle_bytes(node, attach, now_ns); }
        free(attach->bytes);
        return st;
    }
    return STATUS_OK;
}

static void publish(struct node *node)
{
    struct ctl_load load = {0};
    struct node_totals totals = {0};
    node->ops->report(node->role, &load, &totals);
    node_metrics_publish(node->metrics, &load, &totals);
    atomic_store(&node->core_idle, load.draining && totals.idle);
}

static status_t tell_tier(struct node *node, const struct kv_tier_event *event, uint64_t now_ns)
{
    struct node_fact fact = {.kind = NODE_FACT_TIER, .now_ns = now_ns, .tier = event};
    return node->ops->on_fact(node->role, &fact);
}

/* The core asks again when it hears of a refusal, and may be refused again: those wait a turn. */
static status_t tell_refused(struct node *node, uint64_t now_ns)
{
    struct kv_tier_event event;
    uint32_t count = tier_service_refused_count(node->tiers);
    for (; count > 0 && tier_service_next_refused(node->tiers, &event); count--) { TRY(tell_tier(node, &event, now_ns)); }
    return STATUS_OK;
}

/* What the disk kept from an earlier life, before anything else. */
static status_t tell_found(struct node *node)
{
    const struct kv_tier_event *event;
    while ((event = tier_service_next_found(node->tiers)) != NULL) { TRY(tell_tier(node, event, clock_now_ns())); }
    return STATUS_OK;
}

static uint64_t core_deadline_ns(struct node *node)
{
    return tier_service_refused_count(node->tiers) > 0 ? 0 : node->ops->deadline_ns(node->role);
}

static void answer_inspect(struct node *node, const struct inspect_post *post)
{
    struct kv_tier_stats tiers;
    struct inspect_about about = {
        .name = node->name,
        .role = node->ops->name,
        .model = node->model_name,
        .block_tokens = node->compute.layout.block_tokens,
        .block_bytes = kv_layout_block_bytes(&node->compute.layout),
        .boot_epoch = node->boot_epoch,
        .tiers = tier_service_stats(node->tiers, &tiers) ? &tiers : NULL,
    };
    struct ctl_load load = {0};
    struct node_totals totals = {0};
    node->ops->report(node->role, &load, &totals);
    inspect_answer(post, &about, &load, node->ops->inspect, node->role);
}

static void *core_main(void *user)
{
    struct node *node = user;
    bool stop = false;
    status_t st = tell_found(node);
    publish(node);
    while (!stop) {
        if (!failed(st)) { mailbox_wait(node->mailbox, core_deadline_ns(node)); }
        uint64_t now_ns = clock_now_ns();
        struct post post;
        if (!failed(st)) { st = tell_refused(node, now_ns); }
        /* Bounded, so that a flood of messages does not hold up the clock. */
        for (unsigned i = 0; i < 256 && !failed(st) && mailbox_take(node->mailbox, &post); i++) {
            struct node_fact fact = {.now_ns = now_ns};
            switch (post.kind) {
            case POST_ATTACH:
                st = handle_attach(node, &post.attach, now_ns);
                break;
            case POST_STEP:
                fact.kind = NODE_FACT_STEP;
                fact.result = post.result;
                st = node->ops->on_fact(node->role, &fact);
                break;
            case POST_XFER:
                fact.kind = NODE_FACT_XFER;
                fact.xfer = &post.xfer->event;
                st = node->ops->on_fact(node->role, &fact);
                free(post.xfer);
                break;
            case POST_TIER:
                st = tell_tier(node, &post.tier, now_ns);
                break;
            case POST_INSPECT:
                answer_inspect(node, &post.inspect);
                break;
            case POST_DRAIN:
                fact.kind = NODE_FACT_DRAIN;
                st = node->ops->on_fact(node->role, &fact);
                break;
            case POST_STOP:
                stop = true;
                break;
            }
        }
        if (!failed(st) && node->ops->deadline_ns(node->role) <= now_ns) {
            struct node_fact tick = {.kind = NODE_FACT_TICK, .now_ns = now_ns};
            st = node->ops->on_fact(node->role, &tick);
        }
        if (failed(st)) {
            LOGF(LOG_ERROR, "node_failed", "code=%s line=%u cause=%d", status_code_name(st.code), st.line, st.cause);
            atomic_store(&node->core_failed, true);
            kill(node->main_pid, SIGTERM);
            break;
        }
        publish(node);
    }
    return NULL;
}

status_t node_core_start(struct node *node)
{
    if (pthread_create(&node->core_thread, NULL, core_main, node) != 0) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    node->core_runs = true;
    return STATUS_OK;
}

void node_core_stop(struct node *node)
{
    if (!node->core_runs) { return; }
    struct post stop = {.kind = POST_STOP};
    mailbox_post_wait(node->mailbox, &stop);
    pthread_join(node->core_thread, NULL);
    node->core_runs = false;
}

void node_posts_drop(struct node *node)
{
    struct post post;
    while (node->mailbox && mailbox_take(node->mailbox, &post)) {
        if (post.kind == POST_ATTACH) { free(post.attach.bytes); }
        if (post.kind == POST_XFER) { free(post.xfer); }
        if (post.kind == POST_INSPECT) { inspect_drop(&post.inspect); }
    }
}

/* ---- what roles ask for ---- */

void node_send(struct node *node, uint32_t router, const struct ctl_msg *msg)
{
    const uint8_t *bytes;
    size_t byte_count;
    if (!node->router_is_up[router]) { return; }
    status_t st = ctl_codec_encode(node->codec, msg, &bytes, &byte_count);
    if (failed(st)) {
        LOGF(LOG_ERROR, "message_too_large", "router=%u kind=%s", router, ctl_kind_name(msg->kind));
        attach_server_drop(node->attach, router, "a message of ours is over the size limit");
        return;
    }
    attach_server_send(node->attach, router, bytes, byte_count);
}

void node_step(struct node *node, const struct step_plan *plan) { engine_submit(node->engine, plan); }
struct kv_endpoint *node_endpoint(struct node *node) { return node->endpoint; }

void node_tier_store(struct node *node, struct kv_hash hash, uint32_t block, uint64_t tag)
{
    tier_service_store(node->tiers, hash, block, tag);
}

void node_tier_load(struct node *node, struct kv_hash hash, uint32_t block, uint64_t tag)
{
    tier_service_load(node->tiers, hash, block, tag);
}

struct ctl_codec *node_codec(struct node *node) { return node->role_codec; }

kv_xfer_id_t node_xfer_id(struct leg_id leg)
{
    kv_xfer_id_t id;
    for (unsigned i = 0; i < 8; i++) {
        id.bytes[i] = (uint8_t)(leg.hi >> (8 * i));
        id.bytes[8 + i] = (uint8_t)(leg.lo >> (8 * i));
    }
    return id;
}

struct leg_id node_leg_id(kv_xfer_id_t id)
{
    struct leg_id leg = {0, 0};
    for (unsigned i = 0; i < 8; i++) {
        leg.hi |= (uint64_t)id.bytes[i] << (8 * i);
        leg.lo |= (uint64_t)id.bytes[8 + i] << (8 * i);
    }
    return leg;
}
