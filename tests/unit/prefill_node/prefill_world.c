#include "tests/unit/prefill_node/prefill_world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/rng.h"
#include "model/stop_rules.h"

static const uint32_t world_eos = PWORLD_EOS;

static void perform(struct pworld *world, const struct prefill_action *action);

struct prefill_core_config pworld_config(uint32_t block_count)
{
    return (struct prefill_core_config){
        .block_tokens = 4,
        .block_count = block_count,
        .context_tokens = 250,
        .vocab_size = PWORLD_VOCAB,
        .step_rows_max = 16,
        .chunk_tokens = 10,
        .jobs_max = 16,
        .slot_count = 8,
        .eos_count = 1,
        .eos_tokens = &world_eos,
        .transfer_stall_ns = 1000000000,
    };
}

struct pworld *pworld_open(const struct prefill_core_config *config)
{
    struct pworld *world = calloc(1, sizeof *world);
    CHECK(world != NULL);
    world->config = *config;
    world->now_ns = 1000000000;
    struct diag diag;
    CHECK(!failed(prefill_core_create(config, &world->core, &diag)));
    world->model = kv_model_create(config->block_count, config->block_tokens, config->slot_count, PWORLD_VOCAB);
    kv_model_set_window(world->model, config->window_tokens);
    pworld_router_up(world, 0);
    return world;
}

void pworld_close(struct pworld *world)
{
    for (uint32_t i = 0; i < world->job_count; i++) { free(world->jobs[i]); }
    free(world->jobs);
    kv_model_destroy(world->model);
    prefill_core_destroy(world->core);
    free(world);
}

struct pworld_job *pworld_job(struct pworld *world, uint32_t router, uint32_t prompt_count, uint32_t output_count,
                              uint64_t seed)
{
    CHECK(prompt_count + output_count < PWORLD_TEXT_MAX);
    if (world->job_count == world->job_max) {
        world->job_max = world->job_max * 2 + 16;
        world->jobs = realloc(world->jobs, world->job_max * sizeof *world->jobs);
        CHECK(world->jobs != NULL);
    }
    struct pworld_job *job = calloc(1, sizeof *job);
    CHECK(job != NULL);
    job->id = (struct leg_id){.hi = 77 + router, .lo = world->job_count + 1};
    job->router = router;
    job->logprob_next = 1;
    struct rng rng = rng_init(seed);
    for (uint32_t i = 0; i < prompt_count + output_count; i++) { job->text[i] = (uint32_t)rng_below(&rng, PWORLD_VOCAB); }
    struct ctl_work *work = &job->prefill.work;
    work->leg = job->id;
    work->sequence_count = 1;
    work->prompt_count = prompt_count;
    work->prompt = job->text;
    work->output_count = output_count;
    work->output = job->text + prompt_count;
    work->resumed = output_count > 0;
    work->params = sampling_params_default();
    work->params.max_tokens = output_count + 5;
    work->params.seed = seed;
    job->prefill.ticket = job->ticket;
    job->prefill.ticket_bytes = sizeof job->ticket;
    memset(job->ticket, (int)(job->id.lo & 0xff), sizeof job->ticket);
    world->jobs[world->job_count++] = job;
    return job;
}

void pworld_share(struct pworld_job *job, const struct pworld_job *other, uint32_t count)
{
    memcpy(job->text, other->text, count * sizeof *job->text);
    job->prefill.work.cache_salt = other->prefill.work.cache_salt;
}

static struct pworld_job *find(struct pworld *world, struct leg_id id)
{
    for (uint32_t i = 0; i < world->job_count; i++) {
        if (leg_id_equal(world->jobs[i]->id, id)) { return world->jobs[i]; }
    }
    CHECK(!"no such leg");
    return NULL;
}

static uint32_t total(const struct pworld_job *job) { return job->prefill.work.prompt_count + job->prefill.work.output_count; }

/* What the decode node waits for. */
static uint32_t grant_blocks(const struct pworld *world, const struct pworld_job *job)
{
    return (total(job) + world->config.block_tokens - 1) / world->config.block_tokens - job->prefill.grant_first;
}

void pworld_event(struct pworld *world, const struct prefill_event *event)
{
    struct prefill_event timed = *event;
    timed.now_ns = world->now_ns;
    struct prefill_actions actions;
    world->status = prefill_core_step(world->core, &timed, &actions);
    for (uint32_t i = 0; i < actions.count; i++) { perform(world, &actions.list[i]); }
    prefill_core_audit(world->core);
    struct prefill_core_stats stats = prefill_core_stats(world->core);
    CHECK(stats.blocks_free + stats.blocks_held + stats.blocks_cached + stats.blocks_quarantined == stats.blocks_total);
    /* Another node may still be reading these. */
    for (uint32_t i = 0; i < world->job_count; i++) {
        const struct pworld_job *job = world->jobs[i];
        if (!job->has_transfer) { continue; }
        for (uint32_t b = 0; b < grant_blocks(world, job); b++) {
            if (!job->is_pushed[b]) { continue; }
            uint32_t first = (job->prefill.grant_first + b) * world->config.block_tokens;
            CHECK(kv_model_holds(world->model, job->pushed[b], job->text, first, total(job)));
        }
    }
}

static uint32_t expected_token(const struct pworld_job *job, uint32_t window, uint32_t index)
{
    const struct ctl_work *work = &job->prefill.work;
    return kv_model_next_in_window(window, PWORLD_VOCAB, &work->params, work->sequence_first + index, work->prompt, work->prompt_count,
                         work->output, work->output_count);
}

static void check_token(const struct pworld *world, const struct pworld_job *job, const struct ctl_token *token, uint32_t index)
{
    const struct ctl_work *work = &job->prefill.work;
    CHECK(leg_id_equal(token->leg, job->id));
    CHECK(index < work->sequence_count);
    CHECK(token->position == work->output_count);
    CHECK(token->token == expected_token(job, world->config.window_tokens, index));
    struct eos_tokens eos = {.token = &world_eos, .count = 1};
    enum stop_verdict verdict = stop_rules_decide(&work->params, eos, token->token, work->output_count + 1,
                                                  total(job) + 1, 250);
    CHECK((token->finish != FINISH_NONE) == (verdict != STOP_RULES_CONTINUE));
}

/* Nothing is found that nobody with the same salt has sent here before. */
static void check_cached(const struct pworld *world, const struct pworld_job *job)
{
    uint32_t cached = job->done.cached_tokens, known = 0;
    CHECK(cached % world->config.block_tokens == 0);
    CHECK(cached < total(job));
    for (uint32_t i = 0; i < world->job_count; i++) {
        const struct pworld_job *other = world->jobs[i];
        if (other == job || other->prefill.work.cache_salt != job->prefill.work.cache_salt) { continue; }
        uint32_t same = 0;
        while (same < total(other) && same < total(job) && other->text[same] == job->text[same]) { same++; }
        if (same > known) { known = same; }
    }
    CHECK(cached <= known);
}

static void take_message(struct pworld *world, const struct prefill_action *action)
{
    const struct ctl_msg *msg = &action->msg;
    CHECK(world->router_is_up[action->router]);
    switch (msg->kind) {
    case CTL_TOKENS:
        for (uint32_t i = 0; i < msg->tokens.count; i++) {
            const struct ctl_token *token = &msg->tokens.tokens[i];
            struct pworld_job *job = find(world, token->leg);
            CHECK(job->router == action->router);
            CHECK(job->end == PWORLD_OPEN);
            uint32_t index = token->sequence - job->prefill.work.sequence_first;
            check_token(world, job, token, index);
            CHECK(!job->has_token[index]);
            CHECK(!job->is_cancelled[index]);
            job->has_token[index] = true;
            if (job->prefill.work.params.prompt_logprobs >= 0) { CHECK(job->logprob_next == job->prefill.work.prompt_count); }
        }
        break;
    case CTL_PROMPT_LOGPROBS: {
        struct pworld_job *job = find(world, msg->prompt_logprobs.leg);
        CHECK(job->end == PWORLD_OPEN);
        CHECK(job->prefill.work.params.prompt_logprobs >= 0);
        CHECK(msg->prompt_logprobs.count > 0);
        for (uint32_t i = 0; i < msg->prompt_logprobs.count; i++) {
            CHECK(msg->prompt_logprobs.first + i == job->logprob_next);
            CHECK(msg->prompt_logprobs.entries[i].logprob == kv_model_prompt_logprob_in_window(world->config.window_tokens, job->text,
                                                                                              job->logprob_next));
            job->logprob_next++;
        }
        break;
    }
    case CTL_REFUSED:
    case CTL_PREFILL_FAILED: {
        struct pworld_job *job = find(world, msg->failure.leg);
        CHECK(job->router == action->router);
        CHECK(job->end == PWORLD_OPEN);
        job->end = msg->kind == CTL_REFUSED ? PWORLD_REFUSED : PWORLD_FAILED;
        job->code = msg->failure.code;
        job->retry_after_ms = msg->failure.retry_after_ms;
        snprintf(job->message, sizeof job->message, "%s", msg->failure.message);
        break;
    }
    case CTL_PREFILL_DONE: {
        struct pworld_job *job = find(world, msg->prefill_done.leg);
        CHECK(job->end == PWORLD_OPEN);
        CHECK(job->is_committed);
        job->end = PWORLD_DONE;
        job->done = msg->prefill_done;
        CHECK(strcmp(msg->prefill_done.cable, "tcp") == 0);
        job->done.cable = NULL;
        check_cached(world, job);
        break;
    }
    case CTL_LOAD:
        world->loads[action->router]++;
        if (action->router == 0) { world->load = msg->load; }
        break;
    default:
        CHECK(!"a prefill core sends no such message");
    }
}

static void push(struct pworld *world, struct pworld_job *job, uint32_t first, const uint32_t *blocks, uint32_t count)
{
    CHECK(!job->is_committed);
    if (!job->has_transfer) { return; } /* it ended while the step ran */
    for (uint32_t b = 0; b < count; b++) {
        CHECK(first + b < grant_blocks(world, job));
        CHECK(!job->is_pushed[first + b]);
        job->is_pushed[first + b] = true;
        job->pushed[first + b] = blocks[b];
        job->pushed_count++;
    }
}

static void begin_operation(struct pworld *world, const struct prefill_action *action)
{
    CHECK(world->config.tier_entries_max > 0);
    CHECK(world->operation_count < PWORLD_TIER_MAX);
    struct pworld_operation *operation = &world->operations[world->operation_count++];
    *operation = (struct pworld_operation){.is_load = action->kind == PREFILL_ACT_TIER_LOAD, .hash = action->hash,
                                           .block = action->block, .tag = action->tag};
    if (operation->is_load) {
        kv_model_scribble(world->model, action->block, action->tag); /* whoever reads it now reads garbage */
    } else {
        kv_model_save(world->model, action->block, operation->marks);
    }
}

static uint32_t find_entry(const struct pworld *world, struct kv_hash hash)
{
    uint32_t at = 0;
    while (at < world->entry_count && !kv_hash_equal(world->entries[at].hash, hash)) { at++; }
    return at;
}

static void tell_tier(struct pworld *world, struct kv_tier_event tier)
{
    tier.bytes = 1;
    tier.elapsed_ns = 5000;
    pworld_event(world, &(struct prefill_event){.kind = PREFILL_EV_TIER, .tier = &tier});
}

static void forget_entry(struct pworld *world, uint32_t entry)
{
    struct kv_hash hash = world->entries[entry].hash;
    world->entries[entry] = world->entries[--world->entry_count];
    tell_tier(world, (struct kv_tier_event){.kind = KV_TIER_DROPPED, .hash = hash});
}

void pworld_tier_drop(struct pworld *world, uint32_t entry) { forget_entry(world, entry); }

void pworld_tier_move(struct pworld *world, uint32_t entry)
{
    world->entries[entry].tier = KV_TIER_DISK;
    tell_tier(world, (struct kv_tier_event){.kind = KV_TIER_MOVED, .hash = world->entries[entry].hash, .tier = KV_TIER_DISK});
}

void pworld_tier_end(struct pworld *world, uint32_t index, bool is_ok)
{
    struct pworld_operation operation = world->operations[index];
    memmove(&world->operations[index], &world->operations[index + 1],
            (--world->operation_count - index) * sizeof operation);
    struct kv_tier_event event = {.tag = operation.tag, .hash = operation.hash, .block = operation.block};
    uint32_t at = find_entry(world, operation.hash);
    if (operation.is_load) {
        is_ok = is_ok && at < world->entry_count;
        if (!is_ok && at < world->entry_count) { forget_entry(world, at); }
        if (is_ok) { kv_model_restore(world->model, operation.block, world->entries[at].marks); }
        event.kind = is_ok ? KV_TIER_LOADED : KV_TIER_LOAD_FAILED;
        if (is_ok) { event.tier = world->entries[at].tier; }
    } else {
        uint64_t marks[PWORLD_BLOCK_TOKENS_MAX];
        kv_model_save(world->model, operation.block, marks);
        CHECK(memcmp(marks, operation.marks, world->config.block_tokens * sizeof *marks) == 0); /* nobody wrote it meanwhile */
        event.kind = is_ok ? KV_TIER_STORED : KV_TIER_STORE_FAILED;
        if (is_ok && at == world->entry_count) {
            CHECK(world->entry_count < PWORLD_TIER_MAX);
            struct pworld_entry *entry = &world->entries[world->entry_count++];
            *entry = (struct pworld_entry){.hash = operation.hash, .tier = KV_TIER_HOST};
            memcpy(entry->marks, marks, sizeof marks);
        }
    }
    tell_tier(world, event);
}

static void perform(struct pworld *world, const struct prefill_action *action)
{
    switch (action->kind) {
    case PREFILL_ACT_SEND:
        take_message(world, action);
        break;
    case PREFILL_ACT_XFER_BEGIN: {
        struct pworld_job *job = find(world, action->leg);
        CHECK(!job->has_transfer);
        CHECK(action->ticket_bytes == sizeof job->ticket);
        CHECK(action->ticket != job->ticket);
        CHECK(memcmp(action->ticket, job->ticket, sizeof job->ticket) == 0);
        CHECK(action->block_count == grant_blocks(world, job));
        job->has_transfer = true;
        break;
    }
    case PREFILL_ACT_PUSH_CACHED: {
        struct pworld_job *job = find(world, action->leg);
        CHECK(world->config.prefix_cache);
        CHECK(action->block_count > 0);
        CHECK(!job->is_aborted);
        push(world, job, action->grant_index, action->blocks, action->block_count);
        job->cached_pushed += action->block_count;
        break;
    }
    case PREFILL_ACT_TIER_STORE:
    case PREFILL_ACT_TIER_LOAD:
        begin_operation(world, action);
        break;
    case PREFILL_ACT_XFER_COMMIT: {
        struct pworld_job *job = find(world, action->leg);
        CHECK(job->has_transfer);
        CHECK(!job->is_committed);
        CHECK(!job->is_aborted);
        CHECK(job->pushed_count == grant_blocks(world, job));
        CHECK(action->token_count == job->prefill.work.sequence_count);
        for (uint32_t i = 0; i < action->token_count; i++) { check_token(world, job, &action->tokens[i], i); }
        job->is_committed = true;
        break;
    }
    case PREFILL_ACT_XFER_ABORT: {
        struct pworld_job *job = find(world, action->leg);
        CHECK(job->has_transfer);
        CHECK(!job->is_aborted);
        job->is_aborted = true;
        break;
    }
    case PREFILL_ACT_STEP: {
        CHECK(world->plan == NULL);
        world->plan = action->plan;
        CHECK(action->plan->span_count > 0);
        CHECK(action->plan->open_count <= world->config.slot_count);
        if (action->plan->span_count > world->spans_max) { world->spans_max = action->plan->span_count; }
        uint32_t rows = 0;
        for (uint32_t i = 0; i < action->plan->span_count; i++) {
            rows += action->plan->spans[i].row_count;
            CHECK(action->plan->spans[i].row_count <= world->config.chunk_tokens);
        }
        CHECK(rows <= world->config.step_rows_max);
        break;
    }
    }
}

void pworld_message(struct pworld *world, uint32_t router, const struct ctl_msg *msg)
{
    pworld_event(world, &(struct prefill_event){.kind = PREFILL_EV_MESSAGE, .router = router, .msg = msg});
}

void pworld_send(struct pworld *world, struct pworld_job *job)
{
    struct ctl_msg msg = {.kind = CTL_PREFILL, .prefill = job->prefill};
    pworld_message(world, job->router, &msg);
}

void pworld_cancel(struct pworld *world, struct pworld_job *job)
{
    struct ctl_msg msg = {.kind = CTL_CANCEL, .cancel = {.leg = job->id}};
    if (job->end == PWORLD_OPEN) { job->end = PWORLD_DROPPED; }
    pworld_message(world, job->router, &msg);
}

void pworld_cancel_seq(struct pworld *world, struct pworld_job *job, uint32_t index)
{
    const struct ctl_work *work = &job->prefill.work;
    struct ctl_msg msg = {.kind = CTL_CANCEL,
                          .cancel = {.leg = job->id, .one_sequence = true, .sequence = work->sequence_first + index}};
    job->is_cancelled[index] = true;
    bool all = true;
    for (uint32_t i = 0; i < work->sequence_count; i++) { all = all && job->is_cancelled[i]; }
    if (all && job->end == PWORLD_OPEN) { job->end = PWORLD_DROPPED; }
    pworld_message(world, job->router, &msg);
}

void pworld_ack(struct pworld *world, struct pworld_job *job)
{
    job->has_transfer = false;
    pworld_event(world, &(struct prefill_event){.kind = PREFILL_EV_XFER_ACKED, .leg = job->id, .cable = "tcp",
                                                .bytes = 4096, .transfer_ns = 77});
}

void pworld_fail(struct pworld *world, struct pworld_job *job)
{
    job->has_transfer = false;
    pworld_event(world, &(struct prefill_event){.kind = PREFILL_EV_XFER_FAILED, .leg = job->id,
                                                .status = STATUS(ST_DATA_LOSS, SCOPE_PEER),
                                                .message = "slice 3 came with a wrong checksum"});
}

void pworld_ended(struct pworld *world, struct pworld_job *job)
{
    job->has_transfer = false;
    pworld_event(world, &(struct prefill_event){.kind = PREFILL_EV_XFER_ENDED, .leg = job->id});
}

void pworld_router_up(struct pworld *world, uint32_t router)
{
    world->router_is_up[router] = true;
    pworld_event(world, &(struct prefill_event){.kind = PREFILL_EV_ROUTER_UP, .router = router});
}

void pworld_router_down(struct pworld *world, uint32_t router)
{
    world->router_is_up[router] = false;
    for (uint32_t i = 0; i < world->job_count; i++) {
        if (world->jobs[i]->router == router && world->jobs[i]->end == PWORLD_OPEN) { world->jobs[i]->end = PWORLD_DROPPED; }
    }
    pworld_event(world, &(struct prefill_event){.kind = PREFILL_EV_ROUTER_DOWN, .router = router});
}

void pworld_tick(struct pworld *world, uint64_t later_ns)
{
    world->now_ns += later_ns;
    pworld_event(world, &(struct prefill_event){.kind = PREFILL_EV_TICK});
}

void pworld_step_done(struct pworld *world)
{
    CHECK(world->plan != NULL);
    const struct step_plan *plan = world->plan;
    struct step_result result = kv_model_run(world->model, plan);
    result.compute_ns *= 1 + world->slowness;
    /* The slices leave while the step computes. */
    for (uint32_t i = 0; i < plan->span_count; i++) {
        const struct step_span *span = &plan->spans[i];
        struct pworld_job *job = find(world, span->leg);
        CHECK(span->grant_first == job->prefill.grant_first);
        CHECK(span->push_first + span->push_count <= span->block_count);
        if (span->push_count == 0) { continue; }
        CHECK(span->push_first >= span->grant_first);
        push(world, job, span->push_first - span->grant_first, span->block_table + span->push_first, span->push_count);
    }
    world->plan = NULL;
    world->now_ns += result.compute_ns;
    pworld_event(world, &(struct prefill_event){.kind = PREFILL_EV_STEP_DONE, .result = &result});
}

void pworld_step_failed(struct pworld *world, uint8_t scope)
{
    CHECK(world->plan != NULL);
    struct step_result result = {.id = world->plan->id, .status = STATUS(ST_INTERNAL, scope)};
    world->plan = NULL;
    pworld_event(world, &(struct prefill_event){.kind = PREFILL_EV_STEP_DONE, .result = &result});
}

void pworld_finish(struct pworld *world)
{
    for (uint32_t round = 0; round < 100000; round++) {
        bool moved = false;
        for (uint32_t i = 0; i < world->job_count; i++) {
            struct pworld_job *job = world->jobs[i];
            if (!job->has_transfer) { continue; }
            if (job->is_aborted) {
                pworld_ended(world, job);
                moved = true;
            } else if (job->is_committed) {
                pworld_ack(world, job);
                moved = true;
            }
        }
        if (world->plan != NULL) {
            pworld_step_done(world);
            moved = true;
        }
        while (world->operation_count > 0) {
            pworld_tier_end(world, 0, true);
            moved = true;
        }
        if (!moved && prefill_core_stats(world->core).idle) { return; }
        if (!moved) { pworld_tick(world, 100000000); }
    }
    CHECK(!"the core never came to rest");
}

struct prefill_core_stats pworld_stats(const struct pworld *world) { return prefill_core_stats(world->core); }

struct pworld_job *pworld_next_turn(struct pworld *world, const struct pworld_job *before, uint32_t shared, uint32_t prompt_count,
                                    uint32_t grant_first)
{
    struct pworld_job *job = pworld_job(world, 0, prompt_count, 0, world->job_count + 100);
    pworld_share(job, before, shared);
    job->prefill.grant_first = grant_first;
    return job;
}

uint64_t pworld_computed_by(struct pworld *world, struct pworld_job *job)
{
    uint64_t before = pworld_stats(world).prompt_tokens_computed;
    pworld_send(world, job);
    pworld_finish(world);
    CHECK(job->end == PWORLD_DONE);
    return pworld_stats(world).prompt_tokens_computed - before;
}
