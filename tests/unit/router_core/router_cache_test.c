/* Claims on where a request goes when its prompt may be cached: to where it is, as long as that is
 * worth more than the queue there; and on when the decode node is told to compute what is missing. */
#include "base/rng.h"
#include "tests/unit/router_core/core_fixture.h"

enum { TEXT_MAX = 64 };

static void open_guessing(struct fixture *fx)
{
    struct router_core_config config = config_of();
    config.guess_blocks_max = 64;
    config.predict_local = true;
    open_with(fx, config);
    for (uint32_t node = P0; node <= D1; node++) { up(fx, node); }
}

static void fill(uint32_t *text, uint32_t count, uint64_t seed)
{
    struct rng rng = rng_init(seed);
    for (uint32_t i = 0; i < count; i++) { text[i] = (uint32_t)rng_below(&rng, 1000); }
}

static void ask_with(struct fixture *fx, const uint32_t *text, uint32_t count, struct router_event more)
{
    more.kind = ROUTER_EV_SUBMIT;
    more.request = ++fx->requests;
    more.prompt = text;
    more.prompt_count = count;
    more.params = &fx->params;
    more.deadline_ns = UINT64_MAX;
    step(fx, more);
}

static void ask(struct fixture *fx, const uint32_t *text, uint32_t count) { ask_with(fx, text, count, (struct router_event){0}); }

/* Where the RESERVE of the last event went. */
static uint32_t placed_on(const struct fixture *fx)
{
    for (uint32_t node = D0; node <= D1; node++) {
        if (sent(fx, node, CTL_RESERVE)) { return node; }
    }
    return NONE;
}

static uint32_t prefilled_on(const struct fixture *fx)
{
    for (uint32_t node = P0; node <= P1; node++) {
        if (sent(fx, node, CTL_PREFILL)) { return node; }
    }
    return NONE;
}

/* From the RESERVE of the last event to the end, with outputs 100, 101, ...; returns the prefill node. */
static uint32_t run(struct fixture *fx, uint32_t decode, uint32_t output_count)
{
    struct leg_id leg = reserved_at(fx, decode);
    reserved(fx, decode, leg);
    uint32_t prefill = prefilled_on(fx);
    token(fx, prefill, leg, 0, 0, FINISH_NONE);
    message(fx, prefill, (struct ctl_msg){.kind = CTL_PREFILL_DONE, .prefill_done = {.leg = leg, .cable = "shm"}});
    for (uint32_t i = 0; i < output_count; i++) { token(fx, decode, leg, 0, i, i + 1 == output_count ? FINISH_STOP : FINISH_NONE); }
    return prefill;
}

static void prefill_rate(struct fixture *fx, uint32_t node, uint32_t tokens_per_s, uint32_t tokens_queued)
{
    message(fx, node, (struct ctl_msg){.kind = CTL_LOAD, .load = {.blocks_total = 64, .blocks_free = 64, .tokens_per_s = tokens_per_s,
                                                                  .tokens_queued = tokens_queued}});
}

/* The next turn of a conversation goes to the decode node that has the last one, prompt and output,
 * although another one is a little less loaded; a stranger goes to that. */
static void the_next_turn_goes_back(void **state)
{
    (void)state;
    struct fixture fx;
    open_guessing(&fx);
    uint32_t text[TEXT_MAX], other[TEXT_MAX];
    fill(text, TEXT_MAX, 1);
    fill(other, TEXT_MAX, 2);
    ask(&fx, text, 21);
    assert_int_equal(placed_on(&fx), D0);
    assert_int_equal(sent(&fx, D0, CTL_RESERVE)->reserve.local_max_tokens, 0); /* nothing of it is cached */
    (void)run(&fx, D0, 10);
    load(&fx, D0, 62, 0, false);
    load(&fx, D1, 64, 0, false);
    ask(&fx, other, 40);
    assert_int_equal(placed_on(&fx), D1);
    (void)run(&fx, D1, 1);
    load(&fx, D1, 64, 0, false);
    for (uint32_t i = 0; i < 10; i++) { text[21 + i] = 100 + i; }
    ask(&fx, text, 40);
    assert_int_equal(placed_on(&fx), D0);
    assert_true(sent(&fx, D0, CTL_RESERVE)->reserve.local_max_tokens >= 12); /* 28 of 40 are there */
    message(&fx, D0, (struct ctl_msg){.kind = CTL_RESERVED,
                                      .reserved = {.leg = reserved_at(&fx, D0), .is_local = true, .cached_tokens = 28}});
    struct router_core_stats stats = router_core_stats(fx.core);
    assert_int_equal(stats.cache_tokens_asked, 21 + 40 + 40);
    assert_int_equal(stats.cache_tokens_guessed, 28); /* 30 were computed: the last output token never was */
    assert_int_equal(stats.cache_tokens_found, 28);
    end(&fx);
}

/* Another salt is another text; who wants the prompt's log-probabilities has it computed anyway; and a
 * node that went has nothing when it comes back. */
static void what_cannot_be_used_is_not_looked_for(void **state)
{
    (void)state;
    for (int how = 0; how < 4; how++) {
        struct fixture fx;
        open_guessing(&fx);
        uint32_t text[TEXT_MAX];
        fill(text, TEXT_MAX, 1);
        ask(&fx, text, 40);
        (void)run(&fx, D0, 1);
        load(&fx, D0, 62, 0, false);
        load(&fx, D1, 64, 0, false);
        struct router_event more = {.cache_salt = how == 1};
        if (how == 2) { fx.params.prompt_logprobs = 0; }
        if (how == 3) {
            down(&fx, D0);
            up(&fx, D0);
            load(&fx, D0, 62, 0, false);
        }
        ask_with(&fx, text, 40, more);
        assert_int_equal(placed_on(&fx), how == 0 ? D0 : D1);
        end(&fx);
    }
}

/* A node whose hello has no block size that makes sense is served without a guess, and spoils nobody
 * else's; so is one whose size is another than the others'. */
static void a_strange_block_size_spoils_nothing(void **state)
{
    (void)state;
    const uint32_t strange[] = {0, 1u << 20, 8};
    for (unsigned i = 0; i < 3; i++) {
        struct fixture fx;
        struct router_core_config config = config_of();
        config.guess_blocks_max = 64;
        open_with(&fx, config);
        struct ctl_msg hello = {.kind = CTL_NODE_HELLO, .node_hello = {.role = NODE_ROLE_DECODE, .block_tokens = strange[i],
                                                                       .block_count = 64, .sequences_max = 8, .node_name = "odd"}};
        if (i < 2) { step(&fx, (struct router_event){.kind = ROUTER_EV_NODE_UP, .node = D1, .msg = &hello}); }
        up(&fx, P0);
        up(&fx, D0);
        if (i == 2) { step(&fx, (struct router_event){.kind = ROUTER_EV_NODE_UP, .node = D1, .msg = &hello}); }
        load(&fx, D0, 63, 0, false);
        load(&fx, D1, 30, 0, false);
        uint32_t text[TEXT_MAX];
        fill(text, TEXT_MAX, 1);
        ask(&fx, text, 40);
        (void)run(&fx, D0, 1);
        load(&fx, D0, 60, 0, false);
        load(&fx, D1, 55, 0, false); /* more than D0 would have without what it has cached */
        ask(&fx, text, 40);
        assert_int_equal(placed_on(&fx), D0);
        end(&fx);
    }
}

/* A prefix that everybody wants is worth a queue, and not more: the decode node that has it gets the
 * first ones, the other one the next, and then has it too. */
static void a_hot_prefix_does_not_pile_up(void **state)
{
    (void)state;
    struct fixture fx;
    open_guessing(&fx);
    uint32_t text[TEXT_MAX];
    fill(text, TEXT_MAX, 1);
    prefill_rate(&fx, P0, 100, 0);
    prefill_rate(&fx, P1, 100, 0);
    ask(&fx, text, 40);
    (void)run(&fx, D0, 1);
    uint32_t on[4] = {0};
    for (uint32_t i = 0; i < 8; i++) {
        ask(&fx, text, 40);
        uint32_t node = placed_on(&fx);
        if (i == 0) { assert_int_equal(node, D0); }
        on[node]++;
        message(&fx, node, (struct ctl_msg){.kind = CTL_RESERVED, .reserved = {.leg = reserved_at(&fx, node), .is_local = true,
                                                                               .cached_tokens = node == D0 || on[D1] > 1 ? 36 : 0}});
    }
    assert_true(on[D0] > on[D1]);
    assert_true(on[D1] >= 2);
    end(&fx);
}

/* Of two prefill nodes the one that has the prompt is chosen, until its queue is longer than the work
 * that it saves. */
static void a_prefill_node_with_the_prompt_goes_first(void **state)
{
    (void)state;
    struct fixture fx;
    open_guessing(&fx);
    uint32_t text[TEXT_MAX];
    fill(text, TEXT_MAX, 1);
    prefill_rate(&fx, P0, 1000, 1);
    prefill_rate(&fx, P1, 1000, 0);
    ask(&fx, text, 40);
    assert_int_equal(run(&fx, D0, 1), P1);
    const struct { uint32_t queued, node; } cases[] = {{0, P1}, {30, P1}, {50, P0}};
    for (unsigned i = 0; i < 3; i++) {
        prefill_rate(&fx, P0, 1000, 0);
        prefill_rate(&fx, P1, 1000, cases[i].queued);
        uint32_t once[TEXT_MAX];
        memcpy(once, text, sizeof once);
        ask(&fx, once, 39);
        assert_int_equal(run(&fx, placed_on(&fx), 1), cases[i].node);
    }
    end(&fx);
}

/* While the prompt is being computed nobody can share it: a burst spreads over the prefill nodes. */
static void a_burst_of_one_prompt_spreads_out(void **state)
{
    (void)state;
    struct fixture fx;
    open_guessing(&fx);
    uint32_t on[2] = {0, 0};
    for (uint32_t i = 0; i < 4; i++) {
        ask(&fx, prompt, 40);
        uint32_t decode = placed_on(&fx);
        reserved(&fx, decode, reserved_at(&fx, decode));
        on[prefilled_on(&fx)]++;
    }
    assert_int_equal(on[P0], 2);
    assert_int_equal(on[P1], 2);
    end(&fx);
}

static uint32_t local_max(struct fixture *fx, const uint32_t *text, uint32_t count)
{
    ask(fx, text, count);
    uint32_t node = placed_on(fx);
    uint32_t tokens = sent(fx, node, CTL_RESERVE)->reserve.local_max_tokens;
    step(fx, (struct router_event){.kind = ROUTER_EV_CLIENT_GONE, .request = fx->requests});
    return tokens;
}

/* How much a decode node shall compute itself grows with the prefill nodes' queues and its own rate,
 * halves while it generates, and is never more than there is; nothing cached: nothing. */
static void what_is_computed_locally_is_predicted(void **state)
{
    (void)state;
    struct fixture fx;
    struct router_core_config config = config_of();
    config.guess_blocks_max = 64;
    config.predict_local = true;
    open_with(&fx, config);
    up(&fx, P0);
    up(&fx, D0);
    uint32_t text[TEXT_MAX];
    fill(text, TEXT_MAX, 1);
    prefill_rate(&fx, P0, 1000, 0);
    assert_int_equal(local_max(&fx, text, 60), 0);
    ask(&fx, text, 40);
    (void)run(&fx, D0, 1);
    uint32_t idle = local_max(&fx, text, 60);
    assert_in_range(idle, 18, 24); /* the prefill node has 40 of 60 as well: 20 ms of work, and the way */
    prefill_rate(&fx, P0, 1000, 20);
    uint32_t queued = local_max(&fx, text, 60);
    assert_in_range(queued, idle + 18, idle + 22);
    struct ctl_msg msg = {.kind = CTL_LOAD, .load = {.blocks_total = 64, .blocks_free = 64, .sequences_running = 1}};
    message(&fx, D0, msg);
    assert_in_range(local_max(&fx, text, 60), queued / 2 - 1, queued / 2 + 1);
    msg.load.tokens_per_s = 500;
    message(&fx, D0, msg);
    assert_in_range(local_max(&fx, text, 60), queued / 4 - 1, queued / 4 + 1);
    msg.load.tokens_queued = 100;
    message(&fx, D0, msg);
    assert_int_equal(local_max(&fx, text, 60), 0);
    prefill_rate(&fx, P0, 1000, 100000);
    assert_int_equal(local_max(&fx, text, 60), 60);
    end(&fx);
}

/* --local-prefill-tokens holds for what is missing, and alone where nothing is predicted. */
static void a_fixed_limit_holds_for_what_is_missing(void **state)
{
    (void)state;
    struct fixture fx;
    struct router_core_config config = config_of();
    config.guess_blocks_max = 64;
    config.local_prefill_tokens = 7;
    open_with(&fx, config);
    up(&fx, P0);
    up(&fx, D0);
    ask(&fx, prompt, 40);
    assert_false(sent(&fx, D0, CTL_RESERVE)->reserve.local_prefill);
    assert_int_equal(sent(&fx, D0, CTL_RESERVE)->reserve.local_max_tokens, 7);
    ask(&fx, prompt, 7);
    assert_true(sent(&fx, D0, CTL_RESERVE)->reserve.local_prefill);
    assert_int_equal(sent(&fx, D0, CTL_RESERVE)->reserve.local_max_tokens, 0);
    end(&fx);
}

/* Names that come with the request save the hashing and change nothing; names of another block size
 * are not used. */
static void names_may_come_with_the_request(void **state)
{
    (void)state;
    uint32_t text[TEXT_MAX];
    fill(text, TEXT_MAX, 1);
    struct kv_hash names[2][TEXT_MAX / 4];
    for (uint32_t salt = 0; salt < 2; salt++) {
        struct kv_hash name = kv_hash_root(salt);
        for (uint32_t i = 0; i < TEXT_MAX / 4; i++) { names[salt][i] = name = kv_hash_next(name, text + 4 * i, 4); }
    }
    for (int how = 0; how < 3; how++) {
        struct fixture fx;
        open_guessing(&fx);
        ask(&fx, text, 40);
        (void)run(&fx, D0, 1);
        load(&fx, D0, 62, 0, false);
        load(&fx, D1, 64, 0, false);
        /* 0: the right ones; 1: wrong ones, which shows that they are used; 2: of another size */
        struct router_event more = {.names = names[how > 0], .name_block_tokens = how == 2 ? 5 : 4};
        ask_with(&fx, text, 40, more);
        assert_int_equal(placed_on(&fx), how == 1 ? D1 : D0);
        end(&fx);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_next_turn_goes_back),
        cmocka_unit_test(what_cannot_be_used_is_not_looked_for),
        cmocka_unit_test(a_strange_block_size_spoils_nothing),
        cmocka_unit_test(a_hot_prefix_does_not_pile_up),
        cmocka_unit_test(a_prefill_node_with_the_prompt_goes_first),
        cmocka_unit_test(a_burst_of_one_prompt_spreads_out),
        cmocka_unit_test(what_is_computed_locally_is_predicted),
        cmocka_unit_test(a_fixed_limit_holds_for_what_is_missing),
        cmocka_unit_test(names_may_come_with_the_request),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
