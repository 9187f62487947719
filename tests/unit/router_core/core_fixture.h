/* core_fixture: a router_core with hand-made nodes around it, one event at a time.
 * Everything is static inline: each test file takes what it needs. The books are audited after
 * every event. */
#ifndef BATON_TESTS_UNIT_ROUTER_CORE_CORE_FIXTURE_H
#define BATON_TESTS_UNIT_ROUTER_CORE_CORE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "router/router_core.h"

/* Nodes 0 and 1 prefill, 2 and 3 decode; a test brings up those it needs. */
enum { P0, P1, D0, D1 };
#define NONE UINT32_MAX

struct fixture {
    struct router_core *core;
    struct router_actions actions; /* of the last event */
    uint64_t now_ns;
    uint64_t requests;
    struct sampling_params params;
};

static const uint32_t prompt[40] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};

static inline struct router_core_config config_of(void)
{
    return (struct router_core_config){.router_boot_id = 77, .requests_max = 8, .sequences_max = SAMPLING_N_MAX, .nodes_max = 4,
                                       .reserve_wait_ns = NS_PER_S, .resume_wait_ns = 10 * NS_PER_S, .suspect_ttl_ns = NS_PER_S};
}

static inline void open_with(struct fixture *fx, struct router_core_config config)
{
    struct diag diag = {{0}};
    memset(fx, 0, sizeof *fx);
    fx->params = sampling_params_default();
    assert_false(failed(router_core_create(&config, &fx->core, &diag)));
}

static inline void open(struct fixture *fx) { open_with(fx, config_of()); }

static inline void step(struct fixture *fx, struct router_event event)
{
    event.now_ns = fx->now_ns;
    assert_false(failed(router_core_step(fx->core, &event, &fx->actions)));
    router_core_audit(fx->core);
}

/* Ends the test: whatever it left, the books must balance. */
static inline void end(struct fixture *fx)
{
    router_core_audit(fx->core);
    router_core_destroy(fx->core);
}

static inline void message(struct fixture *fx, uint32_t node, struct ctl_msg msg)
{
    step(fx, (struct router_event){.kind = ROUTER_EV_MESSAGE, .node = node, .msg = &msg});
}

static inline void up(struct fixture *fx, uint32_t node)
{
    struct ctl_msg msg = {.kind = CTL_NODE_HELLO,
                          .node_hello = {.role = node < D0 ? NODE_ROLE_PREFILL : NODE_ROLE_DECODE, .block_tokens = 4, .block_count = 64,
                                         .sequences_max = 8, .node_name = "n"}};
    step(fx, (struct router_event){.kind = ROUTER_EV_NODE_UP, .node = node, .msg = &msg});
}

static inline void down(struct fixture *fx, uint32_t node) { step(fx, (struct router_event){.kind = ROUTER_EV_NODE_DOWN, .node = node}); }

static inline uint64_t submit(struct fixture *fx)
{
    step(fx, (struct router_event){.kind = ROUTER_EV_SUBMIT, .request = ++fx->requests, .prompt = prompt, .prompt_count = 10,
                                   .params = &fx->params, .deadline_ns = UINT64_MAX});
    return fx->requests;
}

static inline void tick(struct fixture *fx, uint64_t after_ns)
{
    fx->now_ns += after_ns;
    step(fx, (struct router_event){.kind = ROUTER_EV_TICK});
}

/* The only message of that kind that was sent to the node in the last event; NULL: none. */
static const struct ctl_msg *sent(const struct fixture *fx, uint32_t node, enum ctl_kind kind)
{
    const struct ctl_msg *found = NULL;
    for (uint32_t i = 0; i < fx->actions.count; i++) {
        const struct router_action *action = &fx->actions.list[i];
        if (action->kind != ROUTER_ACT_SEND || action->node != node || action->msg.kind != kind) { continue; }
        assert_null(found);
        found = &action->msg;
    }
    return found;
}

static const struct router_action *told(const struct fixture *fx, enum router_action_kind kind)
{
    const struct router_action *found = NULL;
    for (uint32_t i = 0; i < fx->actions.count; i++) {
        if (fx->actions.list[i].kind != kind) { continue; }
        assert_null(found);
        found = &fx->actions.list[i];
    }
    return found;
}

static inline struct leg_id reserved_at(const struct fixture *fx, uint32_t node)
{
    const struct ctl_msg *msg = sent(fx, node, CTL_RESERVE);
    assert_non_null(msg);
    return msg->reserve.work.leg;
}

static inline void reserved_with(struct fixture *fx, uint32_t node, struct ctl_reserved reservation)
{
    static const uint8_t ticket[] = "ticket";
    if (reservation.ticket_bytes == 0) { reservation.ticket_bytes = sizeof ticket; }
    reservation.ticket = ticket;
    message(fx, node, (struct ctl_msg){.kind = CTL_RESERVED, .reserved = reservation});
}

static inline void reserved(struct fixture *fx, uint32_t node, struct leg_id leg)
{
    reserved_with(fx, node, (struct ctl_reserved){.leg = leg});
}

static inline void refused(struct fixture *fx, uint32_t node, struct leg_id leg, uint8_t code)
{
    message(fx, node, (struct ctl_msg){.kind = CTL_REFUSED, .failure = {.leg = leg, .code = code, .retry_after_ms = 7, .message = "no room"}});
}

static inline void leg_failed(struct fixture *fx, uint32_t node, struct leg_id leg)
{
    message(fx, node, (struct ctl_msg){.kind = CTL_LEG_FAILED, .failure = {.leg = leg, .code = ST_UNAVAILABLE, .message = "lost"}});
}

static inline void token(struct fixture *fx, uint32_t node, struct leg_id leg, uint32_t sequence, uint32_t position, uint8_t finish)
{
    struct ctl_token one = {.leg = leg, .sequence = sequence, .position = position, .token = 100 + position, .finish = finish};
    message(fx, node, (struct ctl_msg){.kind = CTL_TOKENS, .tokens = {.count = 1, .tokens = &one}});
}

static inline void logprobs(struct fixture *fx, uint32_t node, struct leg_id leg, uint32_t first, uint32_t count)
{
    struct token_logprob entries[40] = {{0}};
    for (uint32_t i = 0; i < count; i++) { entries[i].rank = first + i; }
    message(fx, node, (struct ctl_msg){.kind = CTL_PROMPT_LOGPROBS, .prompt_logprobs = {.leg = leg, .first = first, .count = count, .entries = entries}});
}

static inline void assert_finished(const struct fixture *fx, uint64_t request, uint8_t code)
{
    const struct router_action *action = told(fx, ROUTER_ACT_FINISHED);
    assert_non_null(action);
    assert_int_equal(action->request, request);
    assert_int_equal(action->code, code);
    assert_non_null(action->message);
}

static inline void load(struct fixture *fx, uint32_t node, uint32_t blocks_free, uint32_t tokens_queued, bool draining)
{
    message(fx, node, (struct ctl_msg){.kind = CTL_LOAD, .load = {.blocks_total = 64, .blocks_free = blocks_free,
                                                                  .tokens_queued = tokens_queued, .draining = draining}});
}

#endif
