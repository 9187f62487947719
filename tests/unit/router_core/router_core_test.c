#include "tests/unit/router_core/core_fixture.h"

/* ---------------------------------------------------------------- what is refused */

/* A size that the tables cannot have is named before anything is taken. */
static void sizes_out_of_range_are_refused(void **state)
{
    (void)state;
    for (int i = 0; i < 5; i++) {
        struct router_core_config config = config_of();
        if (i == 0) { config.nodes_max = 0; }
        if (i == 1) { config.nodes_max = ROUTER_NODES_MAX + 1; }
        if (i == 2) { config.requests_max = 0; }
        if (i == 3) { config.sequences_max = SAMPLING_N_MAX - 1; }
        if (i == 4) { config.sequences_max = 1u << 23; }
        struct router_core *core = NULL;
        struct diag diag = {{0}};
        assert_int_equal(router_core_create(&config, &core, &diag).code, ST_INVALID_ARGUMENT);
        assert_null(core);
        assert_true(diag.text[0] != '\0');
    }
}

/* Work that cannot be served is refused before any node hears of it. */
static void overload_is_told_before_any_work(void **state)
{
    (void)state;
    struct fixture fx;
    struct router_core_config config = config_of();
    config.requests_max = 2;
    open_with(&fx, config);
    assert_finished(&fx, (submit(&fx), fx.requests), ST_UNAVAILABLE);
    up(&fx, D0);
    submit(&fx);
    submit(&fx);
    uint64_t request = submit(&fx);
    assert_finished(&fx, request, ST_RESOURCE_EXHAUSTED);
    assert_true(told(&fx, ROUTER_ACT_FINISHED)->retry_after_ms > 0);
    assert_int_equal(fx.actions.count, 1);
    step(&fx, (struct router_event){.kind = ROUTER_EV_DRAIN});
    request = submit(&fx);
    assert_finished(&fx, request, ST_UNAVAILABLE);
    assert_int_equal(router_core_stats(fx.core).refused, 3);
    assert_int_equal(router_core_stats(fx.core).live, 2);
    end(&fx);
}

/* Nothing that a node can say ends the router, or reaches a client it is not for. */
static void strange_messages_are_counted_and_ignored(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, P0);
    up(&fx, D0);
    up(&fx, D1);
    submit(&fx);
    struct leg_id leg = reserved_at(&fx, D0), other = leg;
    other.lo += 1u << 24;
    struct leg_id wild[] = {other, {.hi = 1, .lo = leg.lo}, {.hi = leg.hi, .lo = UINT64_MAX}};
    for (unsigned i = 0; i < 3; i++) {
        token(&fx, D0, wild[i], 0, 0, FINISH_STOP);
        assert_int_equal(fx.actions.count, 0);
        leg_failed(&fx, D0, wild[i]);
        assert_int_equal(fx.actions.count, 0);
        reserved(&fx, D0, wild[i]);
        assert_int_equal(fx.actions.count, 0);
    }
    token(&fx, D1, leg, 0, 0, FINISH_STOP); /* the right leg, the wrong node */
    assert_int_equal(fx.actions.count, 0);
    leg_failed(&fx, P0, leg);
    assert_int_equal(fx.actions.count, 0);
    token(&fx, D0, leg, 5, 0, FINISH_STOP); /* no such sequence */
    assert_int_equal(fx.actions.count, 0);
    assert_int_equal(router_core_stats(fx.core).late_messages, 12);
    token(&fx, D0, leg, 0, 3, FINISH_NONE); /* a gap: the node is broken, the leg is not lost */
    assert_non_null(sent(&fx, D0, CTL_CANCEL));
    assert_null(told(&fx, ROUTER_ACT_EMIT));
    assert_int_equal(router_core_stats(fx.core).resumed_legs, 1);
    end(&fx);
}

/* A leg that one node refuses goes to the next under a new id; only when all have refused does
 * the client hear it, in the node's words. */
static void a_refused_leg_tries_every_node_once(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, D0);
    up(&fx, D1);
    uint64_t request = submit(&fx);
    struct leg_id first = reserved_at(&fx, D0);
    refused(&fx, D0, first, ST_RESOURCE_EXHAUSTED);
    struct leg_id second = reserved_at(&fx, D1);
    assert_false(leg_id_equal(first, second));
    refused(&fx, D0, first, ST_RESOURCE_EXHAUSTED); /* the same again means nothing */
    assert_int_equal(fx.actions.count, 0);
    refused(&fx, D1, second, ST_RESOURCE_EXHAUSTED);
    assert_finished(&fx, request, ST_RESOURCE_EXHAUSTED);
    assert_string_equal(told(&fx, ROUTER_ACT_FINISHED)->message, "no room");
    assert_int_equal(told(&fx, ROUTER_ACT_FINISHED)->retry_after_ms, 7);
    end(&fx);
}

/* ---------------------------------------------------------------- the life of a request */

/* Reserve, prefill with the ticket, first token from the prefill node; the decode node's copy
 * of it is dropped, and the request ends with its last token. */
static void a_request_goes_through_both_pools(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, P0);
    up(&fx, D0);
    uint64_t request = submit(&fx);
    struct leg_id leg = reserved_at(&fx, D0);
    assert_false(sent(&fx, D0, CTL_RESERVE)->reserve.local_prefill);
    reserved(&fx, D0, leg);
    assert_string_equal((const char *)sent(&fx, P0, CTL_PREFILL)->prefill.ticket, "ticket");
    reserved(&fx, D0, leg); /* repeated */
    assert_int_equal(fx.actions.count, 0);
    token(&fx, P0, leg, 0, 0, FINISH_NONE);
    assert_int_equal(told(&fx, ROUTER_ACT_EMIT)->token.token, 100);
    token(&fx, D0, leg, 0, 0, FINISH_NONE);
    assert_int_equal(fx.actions.count, 0);
    for (int i = 0; i < 2; i++) { /* a repeated report counts once */
        message(&fx, P0, (struct ctl_msg){.kind = CTL_PREFILL_DONE, .prefill_done = {.leg = leg, .cable = "shm", .bytes = 640}});
    }
    token(&fx, D0, leg, 0, 1, FINISH_STOP);
    assert_non_null(told(&fx, ROUTER_ACT_EMIT));
    assert_int_equal(told(&fx, ROUTER_ACT_SEQUENCE_END)->token.finish, FINISH_STOP);
    assert_finished(&fx, request, ST_OK);
    const struct router_route *route = &told(&fx, ROUTER_ACT_FINISHED)->route;
    assert_int_equal(route->prefill_node, P0);
    assert_int_equal(route->decode_node, D0);
    assert_int_equal(route->kv_bytes, 640);
    assert_string_equal(route->cable, "shm");
    token(&fx, D0, leg, 0, 2, FINISH_NONE);
    assert_int_equal(fx.actions.count, 0);
    end(&fx);
}

/* What the decode node has cached is not asked of the prefill node, and the client is told. */
static void a_grant_begins_behind_what_is_cached(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, P0);
    up(&fx, D0);
    uint64_t request = submit(&fx); /* 10 tokens in blocks of 4 */
    struct leg_id leg = reserved_at(&fx, D0);
    reserved_with(&fx, D0, (struct ctl_reserved){.leg = leg, .cached_tokens = 8, .grant_first = 2});
    assert_int_equal(sent(&fx, P0, CTL_PREFILL)->prefill.grant_first, 2);
    token(&fx, P0, leg, 0, 0, FINISH_NONE);
    message(&fx, P0, (struct ctl_msg){.kind = CTL_PREFILL_DONE,
                                      .prefill_done = {.leg = leg, .cable = "shm", .bytes = 64, .cached_tokens = 4}});
    token(&fx, D0, leg, 0, 1, FINISH_STOP);
    assert_finished(&fx, request, ST_OK);
    assert_int_equal(told(&fx, ROUTER_ACT_FINISHED)->route.cached_prompt_tokens, 8);
    assert_int_equal(told(&fx, ROUTER_ACT_FINISHED)->route.prefill_cached_tokens, 4);
    end(&fx);
}

/* A decode node that was told to compute the prompt may say what it found; that is all it says. */
static void a_local_reservation_tells_what_was_cached(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, D0);
    uint64_t request = submit(&fx);
    struct leg_id leg = reserved_at(&fx, D0);
    assert_true(sent(&fx, D0, CTL_RESERVE)->reserve.local_prefill);
    reserved(&fx, D0, leg); /* a ticket, where none was wanted */
    assert_int_equal(fx.actions.count, 0);
    message(&fx, D0, (struct ctl_msg){.kind = CTL_RESERVED, .reserved = {.leg = leg, .is_local = true, .cached_tokens = 4}});
    assert_int_equal(fx.actions.count, 0);
    message(&fx, D0, (struct ctl_msg){.kind = CTL_RESERVED, .reserved = {.leg = leg, .is_local = true, .cached_tokens = 9}});
    assert_int_equal(router_core_stats(fx.core).late_messages, 2);
    token(&fx, D0, leg, 0, 0, FINISH_STOP);
    assert_finished(&fx, request, ST_OK);
    assert_int_equal(told(&fx, ROUTER_ACT_FINISHED)->route.cached_prompt_tokens, 4);
    assert_string_equal(told(&fx, ROUTER_ACT_FINISHED)->route.cable, "local");
    end(&fx);
}

/* A reservation that cannot be true takes the leg from the node that sent it, and from no other;
 * the request goes on. */
static void a_reservation_that_cannot_be_true_loses_the_leg(void **state)
{
    (void)state;
    const struct ctl_reserved wild[] = {
        {.cached_tokens = 10}, {.cached_tokens = UINT32_MAX}, {.grant_first = 3}, {.grant_first = UINT32_MAX},
        {.is_local = true},    {.ticket_bytes = 1u << 20},
    };
    for (unsigned i = 0; i < sizeof wild / sizeof wild[0]; i++) {
        struct fixture fx;
        open(&fx);
        up(&fx, P0);
        up(&fx, D0);
        submit(&fx);
        struct ctl_reserved reservation = wild[i];
        reservation.leg = reserved_at(&fx, D0);
        reserved_with(&fx, D0, reservation);
        assert_true(leg_id_equal(sent(&fx, D0, CTL_CANCEL)->cancel.leg, reservation.leg));
        assert_null(sent(&fx, P0, CTL_PREFILL));
        assert_null(told(&fx, ROUTER_ACT_FINISHED));
        struct leg_id next = reserved_at(&fx, D0);
        assert_false(leg_id_equal(next, reservation.leg));
        reserved(&fx, D0, next);
        assert_non_null(sent(&fx, P0, CTL_PREFILL));
        end(&fx);
    }
}

/* The decode node's word on the transfer comes ahead of its tokens, so a route names its cable even
 * where the prefill node's word is late; and two words are one transfer. */
static void a_transfer_is_known_from_either_end(void **state)
{
    (void)state;
    struct fixture fx;
    struct ctl_msg done = {.kind = CTL_PREFILL_DONE, .prefill_done = {.cable = "tcp", .bytes = 640}};
    for (int both = 0; both < 2; both++) {
        open(&fx);
        up(&fx, P0);
        up(&fx, D0);
        uint64_t request = submit(&fx);
        struct leg_id leg = reserved_at(&fx, D0);
        reserved(&fx, D0, leg);
        done.prefill_done.leg = leg;
        message(&fx, D0, done);
        if (both) { message(&fx, P0, done); }
        token(&fx, D0, leg, 0, 0, FINISH_STOP);
        assert_finished(&fx, request, ST_OK);
        const struct router_route *route = &told(&fx, ROUTER_ACT_FINISHED)->route;
        assert_int_equal(route->kv_bytes, 640);
        assert_string_equal(route->cable, "tcp");
        end(&fx);
    }
}

/* Where the first token is the last one, a decode node that dies before it repeats it leaves
 * nothing that could be resumed: then the prefill node's word is enough (sim). */
static void a_first_token_may_be_the_last(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, P0);
    up(&fx, D0);
    up(&fx, D1);
    uint64_t request = submit(&fx);
    struct leg_id leg = reserved_at(&fx, D0);
    reserved(&fx, D0, leg);
    token(&fx, P0, leg, 0, 0, FINISH_LENGTH);
    assert_non_null(told(&fx, ROUTER_ACT_EMIT)); /* the client has the token at once */
    assert_null(told(&fx, ROUTER_ACT_FINISHED)); /* the end waits for what was moved */
    down(&fx, D0);
    assert_non_null(told(&fx, ROUTER_ACT_SEQUENCE_END));
    assert_finished(&fx, request, ST_OK);
    assert_null(sent(&fx, D1, CTL_RESERVE)); /* there is nothing left to resume */
    end(&fx);
}

/* A prompt that no prefill node can ever take is computed on the decode node; where that cannot
 * either, its own words reach the client, not an invitation to try again. */
static void too_large_for_every_prefill_node(void **state)
{
    (void)state;
    for (int decode_can = 0; decode_can < 2; decode_can++) {
        struct fixture fx;
        open(&fx);
        up(&fx, P0);
        up(&fx, D0);
        uint64_t request = submit(&fx);
        struct leg_id leg = reserved_at(&fx, D0);
        reserved(&fx, D0, leg);
        message(&fx, P0, (struct ctl_msg){.kind = CTL_REFUSED, .failure = {.leg = leg, .code = ST_INVALID_ARGUMENT,
                                                                          .message = "raise --kv-memory"}});
        assert_null(told(&fx, ROUTER_ACT_FINISHED));
        assert_non_null(sent(&fx, D0, CTL_CANCEL));
        const struct ctl_msg *again = sent(&fx, D0, CTL_RESERVE);
        assert_non_null(again);
        assert_true(again->reserve.local_prefill);
        assert_false(leg_id_equal(again->reserve.work.leg, leg));
        struct leg_id second = again->reserve.work.leg;
        if (decode_can) {
            token(&fx, D0, second, 0, 0, FINISH_STOP);
            assert_finished(&fx, request, ST_OK);
        } else {
            message(&fx, D0, (struct ctl_msg){.kind = CTL_REFUSED, .failure = {.leg = second, .code = ST_INVALID_ARGUMENT,
                                                                              .message = "needs 9 blocks"}});
            assert_finished(&fx, request, ST_INVALID_ARGUMENT);
        }
        end(&fx);
    }
}

/* Prompt log-probabilities go before the output, whichever stream is faster; and where their
 * node is lost with them, the prompt is computed again rather than answered without (sim). */
static void prompt_logprobs_come_before_the_output(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, P0);
    up(&fx, D0);
    fx.params.prompt_logprobs = 0;
    submit(&fx);
    struct leg_id leg = reserved_at(&fx, D0);
    assert_int_equal(sent(&fx, D0, CTL_RESERVE)->reserve.work.params.prompt_logprobs, 0);
    reserved(&fx, D0, leg);
    logprobs(&fx, P0, leg, 1, 4);
    token(&fx, D0, leg, 0, 0, FINISH_NONE);
    token(&fx, D0, leg, 0, 1, FINISH_NONE);
    assert_int_equal(fx.actions.count, 0);
    logprobs(&fx, P0, leg, 3, 7); /* two of them known */
    assert_int_equal(fx.actions.count, 3);
    assert_int_equal(fx.actions.list[0].kind, ROUTER_ACT_PROMPT_LOGPROBS);
    assert_int_equal(fx.actions.list[0].logprobs.first, 5);
    assert_int_equal(fx.actions.list[0].logprobs.count, 5);
    assert_int_equal(fx.actions.list[1].token.position, 0);
    assert_int_equal(fx.actions.list[2].token.position, 1);

    submit(&fx);
    leg = reserved_at(&fx, D0);
    reserved(&fx, D0, leg);
    token(&fx, D0, leg, 0, 0, FINISH_LENGTH);
    assert_int_equal(fx.actions.count, 0);
    down(&fx, P0);
    assert_int_equal(sent(&fx, D0, CTL_RESERVE)->reserve.work.params.prompt_logprobs, 0);
    assert_false(leg_id_equal(leg, reserved_at(&fx, D0)));
    end(&fx);
}

/* A prompt of one token has no log-probabilities to wait for. */
static void one_prompt_token_has_no_logprobs(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, D0);
    fx.params.prompt_logprobs = 3;
    step(&fx, (struct router_event){.kind = ROUTER_EV_SUBMIT, .request = 1, .prompt = prompt, .prompt_count = 1, .params = &fx.params,
                                    .deadline_ns = UINT64_MAX});
    token(&fx, D0, reserved_at(&fx, D0), 0, 0, FINISH_NONE);
    assert_non_null(told(&fx, ROUTER_ACT_EMIT));
    end(&fx);
}

/* Priority and salt reach both nodes, with every leg. */
static void priority_and_salt_reach_both_nodes(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, P0);
    up(&fx, D0);
    step(&fx, (struct router_event){.kind = ROUTER_EV_SUBMIT, .request = 1, .prompt = prompt, .prompt_count = 10, .params = &fx.params,
                                    .priority = -7, .cache_salt = UINT64_MAX, .deadline_ns = UINT64_MAX});
    for (int leg = 0; leg < 2; leg++) {
        struct leg_id id = reserved_at(&fx, D0);
        const struct ctl_work *work = &sent(&fx, D0, CTL_RESERVE)->reserve.work;
        assert_true(work->priority == -7 && work->cache_salt == UINT64_MAX);
        reserved(&fx, D0, id);
        work = &sent(&fx, P0, CTL_PREFILL)->prefill.work;
        assert_true(work->priority == -7 && work->cache_salt == UINT64_MAX);
        down(&fx, D0);
        up(&fx, D0);
    }
    end(&fx);
}

/* A client that goes frees both nodes at once, and hears one answer. */
static void a_cancel_reaches_both_nodes(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, P0);
    up(&fx, D0);
    uint64_t request = submit(&fx);
    struct leg_id leg = reserved_at(&fx, D0);
    reserved(&fx, D0, leg);
    step(&fx, (struct router_event){.kind = ROUTER_EV_CLIENT_GONE, .request = request});
    assert_finished(&fx, request, ST_CANCELLED);
    assert_true(leg_id_equal(sent(&fx, D0, CTL_CANCEL)->cancel.leg, leg));
    assert_true(leg_id_equal(sent(&fx, P0, CTL_CANCEL)->cancel.leg, leg));
    step(&fx, (struct router_event){.kind = ROUTER_EV_CLIENT_GONE, .request = request});
    assert_int_equal(fx.actions.count, 0);
    end(&fx);
}

/* A stop string ends one sequence; the last of them ends the leg and the request. */
static void a_stop_string_ends_one_sequence(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, D0);
    fx.params.n = 2;
    uint64_t request = submit(&fx);
    struct leg_id leg = reserved_at(&fx, D0);
    token(&fx, D0, leg, 0, 0, FINISH_NONE);
    token(&fx, D0, leg, 1, 0, FINISH_NONE);
    step(&fx, (struct router_event){.kind = ROUTER_EV_SEQUENCE_STOP, .request = request, .sequence = 1});
    assert_true(sent(&fx, D0, CTL_CANCEL)->cancel.one_sequence);
    assert_int_equal(sent(&fx, D0, CTL_CANCEL)->cancel.sequence, 1);
    token(&fx, D0, leg, 1, 1, FINISH_NONE);
    assert_int_equal(fx.actions.count, 0);
    step(&fx, (struct router_event){.kind = ROUTER_EV_SEQUENCE_STOP, .request = request, .sequence = 0});
    assert_false(sent(&fx, D0, CTL_CANCEL)->cancel.one_sequence);
    assert_finished(&fx, request, ST_OK);
    end(&fx);
}

/* A deadline ends the request when it passes, and the core asks for the tick. */
static void a_deadline_ends_the_request(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, D0);
    step(&fx, (struct router_event){.kind = ROUTER_EV_SUBMIT, .request = 1, .prompt = prompt, .prompt_count = 10, .params = &fx.params,
                                    .deadline_ns = 50 * NS_PER_MS});
    assert_int_equal(router_core_deadline_ns(fx.core), 50 * NS_PER_MS);
    tick(&fx, 50 * NS_PER_MS - 1);
    assert_int_equal(fx.actions.count, 0);
    tick(&fx, 1);
    assert_finished(&fx, 1, ST_DEADLINE_EXCEEDED);
    assert_non_null(sent(&fx, D0, CTL_CANCEL));
    assert_true(router_core_deadline_ns(fx.core) == UINT64_MAX);
    end(&fx);
}

/* ---------------------------------------------------------------- deaths */

/* When a decode node dies its requests go on elsewhere after the tokens that were sent, each
 * sequence that has some alone. */
static void a_decode_death_resumes_after_the_last_token(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, D0);
    up(&fx, D1);
    fx.params.n = 3;
    submit(&fx);
    struct leg_id leg = reserved_at(&fx, D0);
    token(&fx, D0, leg, 1, 0, FINISH_NONE);
    token(&fx, D0, leg, 1, 1, FINISH_NONE);
    down(&fx, D0);
    uint32_t resumed = 0, sequences = 0;
    for (uint32_t i = 0; i < fx.actions.count; i++) {
        const struct ctl_work *work = &fx.actions.list[i].msg.reserve.work;
        assert_int_equal(fx.actions.list[i].node, D1);
        assert_int_equal(fx.actions.list[i].msg.kind, CTL_RESERVE);
        assert_true(work->resumed);
        assert_false(leg_id_equal(work->leg, leg));
        assert_int_equal(work->output_count, work->sequence_first == 1 ? 2 : 0);
        if (work->output_count == 2) { assert_int_equal(work->output[1], 101); }
        resumed++;
        sequences += work->sequence_count;
    }
    assert_int_equal(resumed, 3);
    assert_int_equal(sequences, 3);
    token(&fx, D0, leg, 1, 2, FINISH_NONE); /* the dead one's last words */
    assert_int_equal(fx.actions.count, 0);
    end(&fx);
}

/* With no decode node left an accepted request waits: it is placed at once when one comes, and
 * fails only when resume_wait_ns is over. */
static void a_broken_request_waits_for_a_node(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, D0);
    uint64_t request = submit(&fx);
    token(&fx, D0, reserved_at(&fx, D0), 0, 0, FINISH_NONE);
    down(&fx, D0);
    assert_int_equal(fx.actions.count, 0);
    tick(&fx, 5 * NS_PER_S);
    assert_int_equal(fx.actions.count, 0);
    up(&fx, D1);
    assert_int_equal(sent(&fx, D1, CTL_RESERVE)->reserve.work.output_count, 1);
    down(&fx, D1);
    tick(&fx, 4 * NS_PER_S);
    assert_int_equal(fx.actions.count, 0);
    tick(&fx, 2 * NS_PER_S);
    assert_finished(&fx, request, ST_UNAVAILABLE);
    end(&fx);
}

/* A node that is too small for a request that runs is no reason to fail it: another that had
 * room for it may come back. */
static void a_resumed_request_waits_for_a_node_that_fits(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, D0);
    submit(&fx);
    token(&fx, D0, reserved_at(&fx, D0), 0, 0, FINISH_NONE);
    up(&fx, D1);
    down(&fx, D0);
    refused(&fx, D1, reserved_at(&fx, D1), ST_INVALID_ARGUMENT);
    assert_null(told(&fx, ROUTER_ACT_FINISHED));
    up(&fx, D0);
    assert_non_null(sent(&fx, D0, CTL_RESERVE));
    end(&fx);
}

/* A prefill death is told to the decode node that waits for the blocks; the leg is cut anew
 * when that one has let go. After two transfers that failed, no third is tried. */
static void a_lost_prefill_is_tried_again_then_computed_there(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, P0);
    up(&fx, P1);
    up(&fx, D0);
    submit(&fx);
    struct leg_id leg = reserved_at(&fx, D0);
    reserved(&fx, D0, leg);
    assert_non_null(sent(&fx, P0, CTL_PREFILL));
    down(&fx, P0);
    assert_true(leg_id_equal(sent(&fx, D0, CTL_PREFILL_LOST)->prefill_lost, leg));
    leg_failed(&fx, D0, leg);
    for (int i = 0; i < 2; i++) { /* transfers that fail, on either node's word */
        leg = reserved_at(&fx, D0);
        assert_false(sent(&fx, D0, CTL_RESERVE)->reserve.local_prefill);
        reserved(&fx, D0, leg);
        assert_non_null(sent(&fx, P1, CTL_PREFILL));
        if (i == 0) {
            struct ctl_msg failure = {.kind = CTL_PREFILL_FAILED, .failure = {.leg = leg, .code = ST_UNAVAILABLE, .message = "cut"}};
            message(&fx, P1, failure);
            assert_non_null(sent(&fx, D0, CTL_PREFILL_LOST));
            message(&fx, P1, failure);
            assert_int_equal(fx.actions.count, 0);
        }
        fx.now_ns += 2 * NS_PER_S; /* the suspicion of the pair is over */
        leg_failed(&fx, D0, leg);
        if (i == 1) { assert_non_null(sent(&fx, P1, CTL_CANCEL)); }
    }
    assert_true(sent(&fx, D0, CTL_RESERVE)->reserve.local_prefill);
    end(&fx);
}

/* A pair whose transfer failed is avoided for a while: the next leg takes another prefill node. */
static void a_suspected_pair_is_avoided(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, P0);
    up(&fx, P1);
    up(&fx, D0);
    submit(&fx);
    struct leg_id leg = reserved_at(&fx, D0);
    reserved(&fx, D0, leg);
    assert_non_null(sent(&fx, P0, CTL_PREFILL));
    leg_failed(&fx, D0, leg);
    reserved(&fx, D0, reserved_at(&fx, D0));
    assert_non_null(sent(&fx, P1, CTL_PREFILL));
    end(&fx);
}

/* A request whose legs break again and again without a token is poison: it fails rather than
 * take every node down in turn. A token starts the count again. */
static void poison_is_given_up(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, D0);
    uint64_t request = submit(&fx);
    uint32_t legs = 0;
    for (; legs < 100; legs++) {
        struct leg_id leg = reserved_at(&fx, D0);
        if (legs == 10) { token(&fx, D0, leg, 0, 0, FINISH_NONE); }
        leg_failed(&fx, D0, leg);
        if (told(&fx, ROUTER_ACT_FINISHED)) { break; }
    }
    assert_finished(&fx, request, ST_UNAVAILABLE);
    assert_in_range(legs, 20, 30);
    end(&fx);
}

/* ---------------------------------------------------------------- placement */

/* Work goes to the decode node with more free blocks and the prefill node with the shorter
 * queue, and never to one that drains. */
static void the_least_loaded_node_is_chosen(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    for (uint32_t node = P0; node <= D1; node++) { up(&fx, node); }
    load(&fx, P0, 64, 500, false);
    load(&fx, P1, 64, 10, false);
    load(&fx, D0, 10, 0, false);
    load(&fx, D1, 60, 0, false);
    submit(&fx);
    reserved(&fx, D1, reserved_at(&fx, D1));
    assert_non_null(sent(&fx, P1, CTL_PREFILL));
    load(&fx, D1, 60, 0, true);
    load(&fx, P1, 64, 10, true);
    submit(&fx);
    reserved(&fx, D0, reserved_at(&fx, D0));
    assert_non_null(sent(&fx, P0, CTL_PREFILL));
    load(&fx, D0, 60, 0, true);
    uint64_t request = submit(&fx);
    assert_finished(&fx, request, ST_UNAVAILABLE);
    end(&fx);
}

/* Between two load reports the router counts what it has placed itself: a burst spreads out. */
static void a_burst_spreads_out(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, D0);
    up(&fx, D1);
    uint32_t placed[2] = {0, 0};
    for (int i = 0; i < 8; i++) {
        submit(&fx);
        for (uint32_t d = 0; d < 2; d++) { placed[d] += sent(&fx, D0 + d, CTL_RESERVE) != NULL; }
    }
    assert_int_equal(placed[0], 4);
    assert_int_equal(placed[1], 4);
    end(&fx);
}

/* A full prefill pool refuses new work, and lets work that a client reads go on without it. */
static void a_full_prefill_pool_refuses_only_new_work(void **state)
{
    (void)state;
    struct fixture fx;
    open(&fx);
    up(&fx, P0);
    up(&fx, D0);
    uint64_t request = submit(&fx);
    struct leg_id leg = reserved_at(&fx, D0);
    reserved(&fx, D0, leg);
    refused(&fx, P0, leg, ST_RESOURCE_EXHAUSTED);
    assert_finished(&fx, request, ST_RESOURCE_EXHAUSTED);
    assert_non_null(sent(&fx, D0, CTL_CANCEL));

    submit(&fx);
    leg = reserved_at(&fx, D0);
    reserved(&fx, D0, leg);
    token(&fx, P0, leg, 0, 0, FINISH_NONE);
    up(&fx, D1);
    down(&fx, D0);
    assert_non_null(sent(&fx, P0, CTL_CANCEL));
    leg = reserved_at(&fx, D1);
    reserved(&fx, D1, leg);
    refused(&fx, P0, leg, ST_RESOURCE_EXHAUSTED);
    assert_null(told(&fx, ROUTER_ACT_FINISHED));
    end(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_out_of_range_are_refused),
        cmocka_unit_test(overload_is_told_before_any_work),
        cmocka_unit_test(strange_messages_are_counted_and_ignored),
        cmocka_unit_test(a_refused_leg_tries_every_node_once),
        cmocka_unit_test(a_request_goes_through_both_pools),
        cmocka_unit_test(a_grant_begins_behind_what_is_cached),
        cmocka_unit_test(a_local_reservation_tells_what_was_cached),
        cmocka_unit_test(a_reservation_that_cannot_be_true_loses_the_leg),
        cmocka_unit_test(a_transfer_is_known_from_either_end),
        cmocka_unit_test(a_first_token_may_be_the_last),
        cmocka_unit_test(too_large_for_every_prefill_node),
        cmocka_unit_test(prompt_logprobs_come_before_the_output),
        cmocka_unit_test(one_prompt_token_has_no_logprobs),
        cmocka_unit_test(priority_and_salt_reach_both_nodes),
        cmocka_unit_test(a_cancel_reaches_both_nodes),
        cmocka_unit_test(a_stop_string_ends_one_sequence),
        cmocka_unit_test(a_deadline_ends_the_request),
        cmocka_unit_test(a_decode_death_resumes_after_the_last_token),
        cmocka_unit_test(a_broken_request_waits_for_a_node),
        cmocka_unit_test(a_resumed_request_waits_for_a_node_that_fits),
        cmocka_unit_test(a_lost_prefill_is_tried_again_then_computed_there),
        cmocka_unit_test(a_suspected_pair_is_avoided),
        cmocka_unit_test(poison_is_given_up),
        cmocka_unit_test(the_least_loaded_node_is_chosen),
        cmocka_unit_test(a_burst_spreads_out),
        cmocka_unit_test(a_full_prefill_pool_refuses_only_new_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
