#include "tests/unit/decode_node/decode_world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/rng.h"
#include "model/stop_rules.h"

static const uint32_t world_eos = WORLD_EOS;

static void perform(struct world *world, const struct decode_action *action, uint32_t *token_messages);

struct decode_core_config world_config(uint32_t block_count, uint32_t batch_max)
{
    return (struct decode_core_config){
        .block_tokens = 4,
        .block_count = block_count,
        .context_tokens = 400,
        .vocab_size = WORLD_VOCAB,
        .batch_max = batch_max,
        .step_rows_max = batch_max + 8,
        .chunk_tokens = 6,
        .waiting_max = 4,
        .legs_max = 32,
        .eos_count = 1,
        .eos_tokens = &world_eos,
        .lease_ns = 1000000000,
    };
}

struct world *world_open(const struct decode_core_config *config)
{
    struct world *world = calloc(1, sizeof *world);
    CHECK(world != NULL);
    CHECK(config->block_tokens <= WORLD_BLOCK_TOKENS_MAX);
    world->config = *config;
    world->now_ns = 1000000000;
    struct diag diag;
    CHECK(!failed(decode_core_create(config, &world->core, &diag)));
    world->model = kv_model_create(config->block_count, config->block_tokens, config->batch_max, WORLD_VOCAB);
    kv_model_set_window(world->model, config->window_tokens);
    world_router_up(world, 0);
    return world;
}

void world_close(struct world *world)
{
    for (uint32_t i = 0; i < world->leg_count; i++) { free(world->legs[i]); }
    free(world->legs);
    kv_model_destroy(world->model);
    decode_core_destroy(world->core);
    free(world);
}

struct world_leg *world_leg(struct world *world, uint32_t router, uint32_t prompt_count, uint32_t max_tokens,
                            uint64_t seed)
{
    CHECK(prompt_count < WORLD_TEXT_MAX);
    CHECK(max_tokens < WORLD_TEXT_MAX);
    if (world->leg_count == world->leg_max) {
        world->leg_max = world->leg_max * 2 + 16;
        world->legs = realloc(world->legs, world->leg_max * sizeof *world->legs);
        CHECK(world->legs != NULL);
    }
    struct world_leg *leg = calloc(1, sizeof *leg);
    CHECK(leg != NULL);
    leg->id = (struct leg_id){.hi = 77 + router, .lo = world->leg_count + 1};
    leg->router = router;
    leg->logprob_next = 1;
    struct rng rng = rng_init(seed);
    for (uint32_t i = 0; i < prompt_count; i++) { leg->prompt[i] = (uint32_t)rng_below(&rng, WORLD_VOCAB); }
    struct ctl_work *work = &leg->reserve.work;
    work->leg = leg->id;
    work->sequence_count = 1;
    work->prompt_count = prompt_count;
    work->prompt = leg->prompt;
    work->output = leg->given;
    work->params = sampling_params_default();
    work->params.max_tokens = max_tokens;
    work->params.seed = seed;
    leg->reserve.wait_ms = 1000;
    world->legs[world->leg_count++] = leg;
    return leg;
}

/* What must come next for sequence `index` of the leg. */
static uint32_t next_token(const struct world *world, const struct world_leg *leg, uint32_t index, uint8_t *ret_finish)
{
    const struct ctl_work *work = &leg->reserve.work;
    uint32_t count = leg->output_count[index];
    uint32_t token = kv_model_next_in_window(world->config.window_tokens, WORLD_VOCAB, &work->params,
                                             work->sequence_first + index, work->prompt, work->prompt_count,
                                             leg->output[index], count);
    struct eos_tokens eos = {.token = &world_eos, .count = 1};
    enum stop_verdict verdict =
        stop_rules_decide(&work->params, eos, token, count + 1, work->prompt_count + count + 1, 400);
    *ret_finish = verdict == STOP_RULES_END_TOKEN ? FINISH_STOP : verdict == STOP_RULES_LENGTH ? FINISH_LENGTH : FINISH_NONE;
    return token;
}

bool world_leg_resume(struct world *world, struct world_leg *leg, uint32_t count)
{
    while (leg->output_count[0] < count) {
        uint8_t finish;
        uint32_t token = next_token(world, leg, 0, &finish);
        if (finish != FINISH_NONE) { return false; }
        leg->given[leg->output_count[0]] = token;
        leg->output[0][leg->output_count[0]++] = token;
    }
    leg->reserve.work.output_count = count;
    leg->reserve.work.resumed = true;
    return true;
}

static uint32_t text_at(const struct world_leg *leg, uint32_t index, uint32_t position)
{
    uint32_t prompt_count = leg->reserve.work.prompt_count;
    return position < prompt_count ? leg->prompt[position] : leg->output[index][position - prompt_count];
}

void world_leg_extend(struct world_leg *leg, const struct world_leg *earlier, uint32_t index, uint32_t count)
{
    uint32_t had = earlier->reserve.work.prompt_count + earlier->output_count[index];
    if (count > had) { count = had; }
    if (count > leg->reserve.work.prompt_count) { count = leg->reserve.work.prompt_count; }
    for (uint32_t p = 0; p < count; p++) { leg->prompt[p] = text_at(earlier, index, p); }
}

static struct world_leg *find(struct world *world, struct leg_id id)
{
    for (uint32_t i = 0; i < world->leg_count; i++) {
        if (leg_id_equal(world->legs[i]->id, id)) { return world->legs[i]; }
    }
    return NULL;
}

void world_event(struct world *world, const struct decode_event *event)
{
    /* So does a load until it has ended. */
    for (uint32_t i = 0; i < world->request_count; i++) {
        if (world->requests[i].is_load) { kv_model_scribble(world->model, world->requests[i].block, world->garbage++); }
    }
    /* Whoever has a grant may write at any time until it is landed or fenced. */
    for (uint32_t i = 0; i < world->leg_count; i++) {
        struct world_leg *leg = world->legs[i];
        if (!leg->has_grant) { continue; }
        for (uint32_t b = 0; b < leg->granted_count; b++) {
            kv_model_scribble(world->model, leg->granted[b], world->garbage++);
        }
    }
    struct decode_event timed = *event;
    timed.now_ns = world->now_ns;
    struct decode_actions actions;
    world->status = decode_core_step(world->core, &timed, &actions);
    uint32_t token_messages[WORLD_ROUTERS] = {0};
    for (uint32_t i = 0; i < actions.count; i++) { perform(world, &actions.list[i], token_messages); }
    decode_core_audit(world->core);
    struct decode_core_stats stats = decode_core_stats(world->core);
    CHECK(stats.blocks_free + stats.blocks_held + stats.blocks_cached + stats.blocks_quarantined == stats.blocks_total);
}

static void take_tokens(struct world *world, uint32_t router, const struct ctl_tokens *tokens)
{
    CHECK(tokens->count > 0);
    for (uint32_t i = 0; i < tokens->count; i++) {
        const struct ctl_token *token = &tokens->tokens[i];
        struct world_leg *leg = find(world, token->leg);
        CHECK(leg != NULL);
        CHECK(leg->router == router);
        CHECK(leg->end == WORLD_OPEN);
        uint32_t index = token->sequence - leg->reserve.work.sequence_first;
        CHECK(index < leg->reserve.work.sequence_count);
        CHECK(!leg->is_cancelled[index]);
        CHECK(leg->finish[index] == FINISH_NONE);
        CHECK(token->position == leg->output_count[index]);
        uint8_t finish;
        CHECK(token->token == next_token(world, leg, index, &finish));
        CHECK(token->finish == finish);
        leg->output[index][leg->output_count[index]++] = token->token;
        leg->finish[index] = finish;
        bool wants_prompt = (leg->reserve.local_prefill || leg->is_local) && leg->reserve.work.params.prompt_logprobs >= 0;
        if (wants_prompt) { CHECK(leg->logprob_next == leg->reserve.work.prompt_count); }
    }
}

static bool has_text(const struct world_leg *has, uint32_t index, const struct world_leg *of, uint32_t count)
{
    if (has->reserve.work.prompt_count + has->output_count[index] < count) { return false; }
    for (uint32_t p = 0; p < count; p++) {
        if (text_at(has, index, p) != text_at(of, 0, p)) { return false; }
    }
    return true;
}

/* What is cached of a leg is full blocks, not all of it, and somebody with its salt has had it. */
static void take_cached(struct world *world, struct world_leg *leg, uint32_t cached)
{
    const struct ctl_work *work = &leg->reserve.work;
    leg->cached_tokens = cached;
    CHECK(cached % world->config.block_tokens == 0);
    CHECK(cached < work->prompt_count + work->output_count);
    if (cached == 0 || world->has_past) { return; }
    CHECK(world->config.prefix_cache);
    CHECK(work->params.prompt_logprobs < 0);
    for (uint32_t i = 0; i < world->leg_count; i++) {
        const struct world_leg *has = world->legs[i];
        if (has == leg || has->reserve.work.cache_salt != work->cache_salt) { continue; }
        for (uint32_t s = 0; s < has->reserve.work.sequence_count; s++) {
            if (has_text(has, s, leg, cached)) { return; }
        }
    }
    CHECK(!"nobody with this salt has had that text");
}

static void take_message(struct world *world, const struct decode_action *action, uint32_t *token_messages)
{
    const struct ctl_msg *msg = &action->msg;
    CHECK(action->router < WORLD_ROUTERS);
    CHECK(world->router_is_up[action->router]);
    switch (msg->kind) {
    case CTL_TOKENS:
        CHECK(token_messages[action->router]++ == 0);
        world->token_messages++;
        take_tokens(world, action->router, &msg->tokens);
        break;
    case CTL_REFUSED:
    case CTL_LEG_FAILED: {
        struct world_leg *leg = find(world, msg->failure.leg);
        CHECK(leg != NULL);
        CHECK(leg->router == action->router);
        CHECK(leg->end == WORLD_OPEN);
        if (msg->kind == CTL_LEG_FAILED) { CHECK(!world_leg_is_complete(leg)); }
        CHECK(msg->failure.message != NULL);
        leg->end = msg->kind == CTL_REFUSED ? WORLD_REFUSED : WORLD_FAILED;
        leg->code = msg->failure.code;
        leg->retry_after_ms = msg->failure.retry_after_ms;
        snprintf(leg->message, sizeof leg->message, "%s", msg->failure.message);
        break;
    }
    case CTL_RESERVED: {
        struct world_leg *leg = find(world, msg->reserved.leg);
        CHECK(leg != NULL);
        CHECK(leg->router == action->router);
        CHECK(leg->end == WORLD_OPEN);
        CHECK(msg->reserved.is_local);
        CHECK(!leg->is_local);
        CHECK(leg->output_count[0] == leg->reserve.work.output_count);
        uint32_t missing = leg->reserve.work.prompt_count + leg->reserve.work.output_count - msg->reserved.cached_tokens;
        CHECK(leg->reserve.local_prefill || missing <= leg->reserve.local_max_tokens);
        take_cached(world, leg, msg->reserved.cached_tokens);
        leg->is_local = true;
        break;
    }
    case CTL_PROMPT_LOGPROBS: {
        struct world_leg *leg = find(world, msg->prompt_logprobs.leg);
        CHECK(leg != NULL);
        CHECK(leg->reserve.work.params.prompt_logprobs >= 0);
        CHECK(leg->output_count[0] == 0);
        CHECK(msg->prompt_logprobs.count > 0);
        for (uint32_t i = 0; i < msg->prompt_logprobs.count; i++) {
            CHECK(msg->prompt_logprobs.first + i == leg->logprob_next);
            CHECK(leg->logprob_next < leg->reserve.work.prompt_count);
            CHECK(msg->prompt_logprobs.entries[i].logprob ==
                  kv_model_prompt_logprob_in_window(world->config.window_tokens, leg->prompt, leg->logprob_next));
            leg->logprob_next++;
        }
        break;
    }
    case CTL_LOAD:
        world->loads[action->router]++;
        if (action->router == 0) { world->load = msg->load; }
        CHECK(msg->load.blocks_free + msg->load.blocks_held + msg->load.blocks_cached + msg->load.blocks_quarantined ==
              msg->load.blocks_total);
        break;
    default:
        CHECK(!"a decode core sends no such message");
    }
}

static void perform(struct world *world, const struct decode_action *action, uint32_t *token_messages)
{
    switch (action->kind) {
    case DECODE_ACT_SEND:
        take_message(world, action, token_messages);
        break;
    case DECODE_ACT_GRANT: {
        struct world_leg *leg = find(world, action->leg);
        CHECK(leg != NULL);
        CHECK(!leg->has_grant);
        CHECK(!leg->has_landed);
        CHECK(!leg->reserve.local_prefill);
        CHECK(!leg->is_local);
        uint32_t tokens = leg->reserve.work.prompt_count + leg->reserve.work.output_count;
        uint32_t blocks = (tokens + world->config.block_tokens - 1) / world->config.block_tokens;
        CHECK(action->grant_first < blocks);
        CHECK(action->block_count == blocks - action->grant_first);
        uint32_t cached_blocks = action->cached_tokens / world->config.block_tokens;
        uint32_t unseen = 0; /* blocks before the window of the first token that follows */
        if (world->config.window_tokens > 0 && tokens >= world->config.window_tokens) {
            unseen = (tokens + 1 - world->config.window_tokens) / world->config.block_tokens;
        }
        CHECK(action->grant_first == (cached_blocks > unseen ? cached_blocks : unseen));
        CHECK(tokens - action->cached_tokens > leg->reserve.local_max_tokens ||
              leg->reserve.work.sequence_count > world->config.batch_max);
        take_cached(world, leg, action->cached_tokens);
        leg->grant_first = action->grant_first;
        CHECK(action->block_count <= WORLD_BLOCKS_MAX);
        memcpy(leg->granted, action->blocks, action->block_count * sizeof *action->blocks);
        leg->granted_count = action->block_count;
        leg->has_grant = true;
        break;
    }
    case DECODE_ACT_REVOKE: {
        struct world_leg *leg = find(world, action->leg);
        CHECK(leg != NULL);
        CHECK(!leg->is_revoked);
        leg->is_revoked = true;
        break;
    }
    case DECODE_ACT_TIER_STORE:
    case DECODE_ACT_TIER_LOAD:
        CHECK(world->config.tier_entries_max > 0);
        CHECK(world->request_count < world->config.tier_queue_max || world->config.tier_queue_max == 0);
        for (uint32_t i = 0; i < world->request_count; i++) { CHECK(world->requests[i].tag != action->tag); }
        world->requests[world->request_count++] = (struct world_tier_request){
            .is_load = action->kind == DECODE_ACT_TIER_LOAD, .hash = action->hash, .block = action->block, .tag = action->tag};
        *(action->kind == DECODE_ACT_TIER_LOAD ? &world->tier_loads : &world->tier_stores) += 1;
        break;
    case DECODE_ACT_STEP:
        CHECK(world->plan == NULL);
        world->plan = action->plan;
        world->copies += action->plan->copy_count;
        CHECK(action->plan->span_count > 0);
        CHECK(action->plan->span_count <= world->config.batch_max);
        uint32_t rows = 0;
        bool chunks_began = false;
        for (uint32_t i = 0; i < action->plan->span_count; i++) {
            const struct step_span *span = &action->plan->spans[i];
            rows += span->row_count;
            CHECK(span->row_count <= world->config.chunk_tokens);
            if (span->row_count > 1) { chunks_began = true; }
            if (chunks_began) { continue; }
            CHECK(span->row_count == 1);
        }
        CHECK(rows <= world->config.step_rows_max);
        if (rows > world->rows_max) { world->rows_max = rows; }
        break;
    }
}

void world_message(struct world *world, uint32_t router, const struct ctl_msg *msg)
{
    world_event(world, &(struct decode_event){.kind = DECODE_EV_MESSAGE, .router = router, .msg = msg});
}

void world_reserve(struct world *world, struct world_leg *leg)
{
    struct ctl_msg msg = {.kind = CTL_RESERVE, .reserve = leg->reserve};
    world_message(world, leg->router, &msg);
}

void world_cancel(struct world *world, struct world_leg *leg)
{
    struct ctl_msg msg = {.kind = CTL_CANCEL, .cancel = {.leg = leg->id}};
    if (leg->end == WORLD_OPEN) { leg->end = WORLD_DROPPED; }
    world_message(world, leg->router, &msg);
}

void world_cancel_seq(struct world *world, struct world_leg *leg, uint32_t index)
{
    struct ctl_msg msg = {.kind = CTL_CANCEL,
                          .cancel = {.leg = leg->id, .one_sequence = true,
                                     .sequence = leg->reserve.work.sequence_first + index}};
    leg->is_cancelled[index] = true;
    if (leg->end == WORLD_OPEN && world_leg_is_complete(leg)) { leg->end = WORLD_DROPPED; }
    world_message(world, leg->router, &msg);
}

void world_prefill_lost(struct world *world, struct world_leg *leg)
{
    struct ctl_msg msg = {.kind = CTL_PREFILL_LOST, .prefill_lost = leg->id};
    world_message(world, leg->router, &msg);
}

void world_land(struct world *world, struct world_leg *leg)
{
    CHECK(leg->has_grant);
    const struct ctl_work *work = &leg->reserve.work;
    uint32_t block_tokens = world->config.block_tokens;
    uint32_t text[2 * WORLD_TEXT_MAX];
    memcpy(text, work->prompt, work->prompt_count * sizeof *text);
    memcpy(text + work->prompt_count, work->output, work->output_count * sizeof *text);
    for (uint32_t p = leg->grant_first * block_tokens; p < work->prompt_count + work->output_count; p++) {
        kv_model_write(world->model, leg->granted[p / block_tokens - leg->grant_first], p % block_tokens, text, p);
    }
    leg->has_grant = false;
    leg->has_landed = true;
    struct ctl_token tokens[WORLD_SEQS_MAX] = {0};
    for (uint32_t i = 0; i < work->sequence_count; i++) {
        uint32_t sequence = work->sequence_first + i;
        tokens[i] = (struct ctl_token){
            .leg = leg->id,
            .sequence = sequence,
            .position = work->output_count,
            .token = kv_model_next_in_window(world->config.window_tokens, WORLD_VOCAB, &work->params, sequence,
                                             work->prompt, work->prompt_count, leg->given, work->output_count),
        };
    }
    world_event(world, &(struct decode_event){.kind = DECODE_EV_XFER_LANDED,
                                              .leg = leg->id,
                                              .token_count = work->sequence_count,
                                              .tokens = tokens});
}

void world_fail_transfer(struct world *world, struct world_leg *leg)
{
    world_event(world, &(struct decode_event){.kind = DECODE_EV_XFER_FAILED,
                                              .leg = leg->id,
                                              .status = STATUS(ST_DATA_LOSS, SCOPE_PEER)});
}

void world_fence(struct world *world, struct world_leg *leg)
{
    leg->has_grant = false;
    world_event(world, &(struct decode_event){.kind = DECODE_EV_XFER_FENCED, .leg = leg->id});
}

void world_router_up(struct world *world, uint32_t router)
{
    world->router_is_up[router] = true;
    world_event(world, &(struct decode_event){.kind = DECODE_EV_ROUTER_UP, .router = router});
}

void world_router_down(struct world *world, uint32_t router)
{
    world->router_is_up[router] = false;
    for (uint32_t i = 0; i < world->leg_count; i++) {
        struct world_leg *leg = world->legs[i];
        if (leg->router == router && leg->end == WORLD_OPEN && !world_leg_is_complete(leg)) { leg->end = WORLD_DROPPED; }
    }
    world_event(world, &(struct decode_event){.kind = DECODE_EV_ROUTER_DOWN, .router = router});
}

void world_tick(struct world *world, uint64_t later_ns)
{
    world->now_ns += later_ns;
    world_event(world, &(struct decode_event){.kind = DECODE_EV_TICK});
}

void world_step_done(struct world *world)
{
    CHECK(world->plan != NULL);
    struct step_result result = kv_model_run(world->model, world->plan);
    world->plan = NULL;
    result.compute_ns += world->step_extra_ns;
    world->now_ns += result.compute_ns;
    world_event(world, &(struct decode_event){.kind = DECODE_EV_STEP_DONE, .result = &result});
}

void world_step_failed(struct world *world, uint8_t scope)
{
    CHECK(world->plan != NULL);
    struct step_result result = {.id = world->plan->id, .status = STATUS(ST_INTERNAL, scope)};
    world->plan = NULL;
    world_event(world, &(struct decode_event){.kind = DECODE_EV_STEP_DONE, .result = &result});
}

/* ---------------------------------------------------------------- tiers */

static uint32_t find_entry(const struct world *world, struct kv_hash hash)
{
    for (uint32_t i = 0; i < world->entry_count; i++) {
        if (kv_hash_equal(world->entries[i].hash, hash)) { return i; }
    }
    return UINT32_MAX;
}

static void tier_event(struct world *world, struct kv_tier_event event)
{
    world_event(world, &(struct decode_event){.kind = DECODE_EV_TIER, .tier = &event});
}

void world_tier_drop(struct world *world, uint32_t index)
{
    struct kv_tier_event event = {.kind = KV_TIER_DROPPED, .hash = world->entries[index].hash};
    world->entries[index] = world->entries[--world->entry_count];
    tier_event(world, event);
}

void world_tier_move(struct world *world, uint32_t index)
{
    world->entries[index].tier = KV_TIER_DISK;
    tier_event(world, (struct kv_tier_event){.kind = KV_TIER_MOVED, .hash = world->entries[index].hash, .tier = KV_TIER_DISK});
}

void world_tier_find(struct world *world, const struct world_tier_entry *entry)
{
    CHECK(world->entry_count < WORLD_TIER_MAX);
    world->has_past = true;
    world->entries[world->entry_count++] = *entry;
    tier_event(world, (struct kv_tier_event){.kind = KV_TIER_FOUND, .hash = entry->hash, .tier = entry->tier});
}

static void end_store(struct world *world, const struct world_tier_request *request, bool is_good)
{
    struct kv_tier_event event = {.kind = KV_TIER_STORED, .tag = request->tag, .hash = request->hash,
                                  .block = request->block, .tier = world->store_tier, .bytes = 64,
                                  .elapsed_ns = 500 + world->tier_extra_ns};
    struct world_tier_entry entry = {.hash = request->hash, .tier = world->store_tier};
    kv_model_save(world->model, request->block, entry.marks);
    uint32_t at = find_entry(world, request->hash);
    if (at != UINT32_MAX) {
        /* Equal names are equal bytes. */
        CHECK(memcmp(entry.marks, world->entries[at].marks, sizeof entry.marks) == 0);
        event.bytes = 0;
    } else if (!is_good || world->entry_count == WORLD_TIER_MAX) {
        event.kind = KV_TIER_STORE_FAILED;
        event.status = STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    } else {
        world->entries[world->entry_count++] = entry;
    }
    tier_event(world, event);
}

static void end_load(struct world *world, const struct world_tier_request *request, bool is_good)
{
    struct kv_tier_event event = {.kind = KV_TIER_LOADED, .tag = request->tag, .hash = request->hash,
                                  .block = request->block, .bytes = 64, .elapsed_ns = 500 + world->tier_extra_ns};
    uint32_t at = find_entry(world, request->hash);
    if (at != UINT32_MAX && is_good) {
        event.tier = world->entries[at].tier;
        kv_model_restore(world->model, request->block, world->entries[at].marks);
    } else {
        if (at != UINT32_MAX) { world_tier_drop(world, at); }
        event.kind = KV_TIER_LOAD_FAILED;
        event.status = STATUS(ST_DATA_LOSS, SCOPE_REQUEST);
    }
    tier_event(world, event);
}

void world_tier_end(struct world *world, uint32_t index, bool is_good)
{
    CHECK(index < world->request_count);
    struct world_tier_request request = world->requests[index];
    memmove(world->requests + index, world->requests + index + 1, (world->request_count - index - 1) * sizeof request);
    world->request_count--;
    world->now_ns += 500 + world->tier_extra_ns;
    if (request.is_load) { end_load(world, &request, is_good); } else { end_store(world, &request, is_good); }
}

void world_tier_end_all(struct world *world)
{
    while (world->request_count > 0) { world_tier_end(world, 0, true); }
}

void world_finish(struct world *world)
{
    for (uint32_t round = 0; round < 100000; round++) {
        bool moved = false;
        for (uint32_t i = 0; i < world->leg_count; i++) {
            struct world_leg *leg = world->legs[i];
            if (!leg->has_grant) { continue; }
            moved = true;
            if (leg->is_revoked) { world_fence(world, leg); } else { world_land(world, leg); }
        }
        if (world->plan != NULL) {
            world_step_done(world);
            moved = true;
        }
        if (world->request_count > 0) {
            world_tier_end(world, 0, true);
            moved = true;
        }
        if (!moved && decode_core_stats(world->core).idle) { return; }
        if (!moved) { world_tick(world, 100000000); }
    }
    CHECK(!"the core never came to rest");
}

bool world_leg_is_complete(const struct world_leg *leg)
{
    for (uint32_t i = 0; i < leg->reserve.work.sequence_count; i++) {
        if (leg->finish[i] == FINISH_NONE && !leg->is_cancelled[i]) { return false; }
    }
    return true;
}

struct decode_core_stats world_stats(const struct world *world) { return decode_core_stats(world->core); }
