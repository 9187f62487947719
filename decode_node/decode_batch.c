/* Steps: what the engine does next, and what came of it. */
#include "base/check.h"
#include "decode_node/decode_state.h"
#include "sched/work_copy.h"

static void plan_step(struct decode_core *core);
static void plan_copies(struct decode_core *core);
static void plan_span(struct decode_core *core, struct decode_seq *seq, uint32_t row_count);
static void plan_samples(struct decode_core *core, struct decode_seq *seq, struct step_span *span);
static void take_prompt_logprobs(struct decode_core *core, struct decode_leg *leg, const struct step_span *span,
                                 const struct token_logprob *entries);

static uint32_t rows_left_of(const struct decode_seq *seq) { return seq_total(seq) - seq->computed; }

/* Running sequences grow before anybody is admitted: otherwise new legs could take every
 * block that comes free, and the one that waits for its next block would starve. */
void batch_schedule(struct decode_core *core)
{
    bool may_plan = !core->step.is_in_flight;
    if (may_plan) { admit_growth(core); }
    admit_waiting(core);
    if (!may_plan) { return; }
    admit_to_slots(core);
    plan_step(core);
}

/* ---------------------------------------------------------------- the plan */

/* One row for each sequence that decodes, then chunks of prompts while rows are left and those that
 * decode are not held up for too long. */
static void plan_step(struct decode_core *core)
{
    struct decode_plan *step = &core->step;
    step->plan = (struct step_plan){.id = step->plan.id,
                                    .opens = step->opens, .copies = step->copies, .spans = step->spans};
    step->sample_count = 0;
    step->token_count = 0;
    step->prompt_rows = 0;
    step->chunk_rows = 0;
    step->logprob_count = 0;

    for (struct list_link *link = list_first(&core->running); link != NULL; link = list_next(&core->running, link)) {
        struct decode_seq *seq = seq_of(link);
        if (rows_left_of(seq) != 1 || seq_rows_covered(core, seq) == 0) { continue; }
        plan_span(core, seq, 1);
        step->prompt_rows += !seq->leg->is_forked; /* the last row of a prompt that was cached so far */
    }
    step->decode_rows = step->token_count;
    uint32_t room = core->config.step_rows_max - step->token_count;
    uint32_t paced = decode_pace_rows(&core->pace, step->decode_rows, core->config.itl_stretch_percent);
    if (room > paced) { room = paced; }
    for (struct list_link *link = list_first(&core->running); link != NULL; link = list_next(&core->running, link)) {
        struct decode_seq *seq = seq_of(link);
        uint32_t rows = seq_rows_covered(core, seq);
        if (rows_left_of(seq) == 1 || rows == 0 || room == 0) { continue; }
        if (rows > core->config.chunk_tokens) { rows = core->config.chunk_tokens; }
        if (rows > room) { rows = room; }
        plan_span(core, seq, rows);
        step->prompt_rows += rows;
        step->chunk_rows += rows;
        room -= rows;
    }
    if (step->plan.span_count == 0) { return; }
    plan_copies(core);

    /* A block that two sequences see is never written, but for the copies' source: the step
     * copies it before it computes. Nor is one that has a name: others may find it any time. */
    for (uint32_t i = 0; i < step->plan.span_count; i++) {
        const struct decode_seq *seq = step->span_seqs[i];
        const struct step_span *span = &step->spans[i];
        uint32_t last = (span->first_position + span->row_count - 1) / core->config.block_tokens;
        for (uint32_t b = span->first_position / core->config.block_tokens; b <= last; b++) {
            uint32_t copies = seq->blocks[b] == seq->leg->shared_block ? seq->leg->copies_in_step : 0;
            CHECK(kv_cache_refs(core->cache, seq->blocks[b]) == 1 + copies);
            CHECK(b >= seq->published);
        }
    }
    step->plan.id++;
    step->is_in_flight = true;
    struct decode_action *action = action_add(core, DECODE_ACT_STEP);
    action->plan = &step->plan;
}

/* All that are pending, also of sequences without a slot: afterwards every sequence owns what
 * it writes. The reference to the source moves to the plan until the step is done. */
static void plan_copies(struct decode_core *core)
{
    struct decode_plan *step = &core->step;
    struct list *holders[] = {&core->running, &core->ready};
    for (uint32_t i = 0; i < 2; i++) {
        for (struct list_link *link = list_first(holders[i]); link != NULL; link = list_next(holders[i], link)) {
            struct decode_seq *seq = seq_of(link);
            if (seq->copy_source == NO_BLOCK) { continue; }
            uint32_t at = step->plan.copy_count++;
            CHECK(at < core->config.block_count);
            step->copies[at] = (struct step_copy){
                .source_block = seq->copy_source,
                .destination_block = seq->blocks[seq->computed / core->config.block_tokens],
            };
            step->copy_seqs[at] = seq;
            seq->copy_source = NO_BLOCK;
            seq->is_in_step = true;
            seq->leg->copies_in_step++;
        }
    }
}

static void plan_span(struct decode_core *core, struct decode_seq *seq, uint32_t row_count)
{
    struct decode_plan *step = &core->step;
    struct decode_leg *leg = seq->leg;
    CHECK(step->plan.span_count < core->config.batch_max);
    CHECK(step->token_count + row_count <= core->config.step_rows_max);
    uint32_t *tokens = step->tokens + step->token_count;
    work_tokens(&leg->work, seq->output, seq->computed, row_count, tokens);
    step->token_count += row_count;

    uint32_t end = seq->computed + row_count;
    uint32_t at = step->plan.span_count++;
    struct step_span *span = &step->spans[at];
    *span = (struct step_span){
        .first_position = seq->computed,
        .row_count = row_count,
        .tokens = tokens,
        .block_count = blocks_for(core, end),
        .block_table = seq->blocks,
        .sample_slots = step->sample_slots + step->sample_count,
        .prompt_logprobs = -1,
        .leg = leg->id,
    };
    if (end < leg->work.prompt_count) {
        span->has_next_token = true;
        span->next_token = leg->work.prompt[end];
    }
    /* After a preemption the first chunks repeat rows whose log-probabilities were sent. */
    uint32_t reported_end = span->has_next_token ? end + 1 : end;
    if (leg->logprobs_next < leg->work.prompt_count && reported_end > leg->logprobs_next) {
        span->prompt_logprobs = leg->work.params.prompt_logprobs;
        step->logprob_count += row_count - !span->has_next_token;
    }
    step->span_seqs[at] = seq;
    seq->is_in_step = true;
    if (end == seq_total(seq)) { plan_samples(core, seq, span); }
}

static void plan_samples(struct decode_core *core, struct decode_seq *seq, struct step_span *span)
{
    struct decode_plan *step = &core->step;
    struct decode_leg *leg = seq->leg;
    uint32_t first = leg->is_forked ? seq->index : 0;
    uint32_t last = leg->is_forked ? seq->index : leg->seq_count - 1;
    for (uint32_t i = first; i <= last; i++) {
        struct decode_seq *sampled = &leg->seqs[i];
        if (sampled->is_over) { continue; }
        CHECK(sampled->slot != NO_SLOT);
        CHECK(step->sample_count < core->config.batch_max);
        step->sample_slots[step->sample_count] = sampled->slot;
        step->sample_seqs[step->sample_count++] = sampled;
        span->sample_count++;
        if (sampled->slot_is_open) { continue; }
        sampled->slot_is_open = true;
        step->opens[step->plan.open_count++] = (struct step_open){
            .slot = sampled->slot,
            .sequence = leg->work.sequence_first + sampled->index,
            .params = &leg->work.params,
            .prompt_count = leg->work.prompt_count,
            .prompt = leg->work.prompt,
            .output_count = sampled->output_count,
            .output = sampled->output,
        };
    }
}

/* ---------------------------------------------------------------- the result */

status_t batch_finish_step(struct decode_core *core, const struct step_result *result)
{
    struct decode_plan *step = &core->step;
    step->is_in_flight = false;
    core->steps++;
    for (uint32_t i = 0; i < step->plan.span_count; i++) { step->span_seqs[i]->is_in_step = false; }
    for (uint32_t i = 0; i < step->plan.copy_count; i++) {
        step->copy_seqs[i]->is_in_step = false;
        step->copy_seqs[i]->leg->copies_in_step = 0;
        kv_cache_release(core->cache, 1, &step->copies[i].source_block);
    }
    status_t st = result->status;
    if (!failed(st) && (result->sample_count != step->sample_count ||
                        result->prompt_logprob_count != step->logprob_count)) {
        st = STATUS(ST_INTERNAL, SCOPE_NODE);
    }
    if (failed(st)) {
        for (uint32_t i = 0; i < step->plan.span_count; i++) { step->span_seqs[i]->leg->is_in_failed_step = true; }
        for (uint32_t i = 0; i < step->plan.copy_count; i++) { step->copy_seqs[i]->leg->is_in_failed_step = true; }
        struct list_link *next;
        for (struct list_link *link = list_first(&core->legs); link != NULL; link = next) {
            next = list_next(&core->legs, link);
            struct decode_leg *leg = LIST_OWNER(link, struct decode_leg, link);
            if (!leg->is_in_failed_step) { continue; }
            leg_give_up(core, leg, LEG_FAILED, ST_INTERNAL,
                        "the decode node's engine failed in this step; its log says why");
        }
        return st.scope == SCOPE_NODE ? st : STATUS_OK;
    }

    core->prompt_tokens_computed += step->prompt_rows;
    decode_pace_learn(&core->pace, step->decode_rows, step->chunk_rows, result->compute_ns);
    if (step->chunk_rows > 0) { token_rate_add(&core->prefill_rate, step->chunk_rows, result->compute_ns); }
    const struct step_sample *sample = result->samples;
    const struct token_logprob *logprob = result->prompt_logprobs;
    struct decode_seq **sampled = step->sample_seqs;
    for (uint32_t i = 0; i < step->plan.span_count; i++) {
        const struct step_span *span = &step->spans[i];
        struct decode_seq *seq = step->span_seqs[i];
        bool goes_on = seq->state == SEQ_RUNNING;
        if (goes_on) {
            seq->computed += span->row_count;
            seq_publish(core, seq);
            window_slide(core, seq);
        }
        if (span->prompt_logprobs >= 0) {
            if (goes_on) { take_prompt_logprobs(core, seq->leg, span, logprob); }
            logprob += span->row_count - !span->has_next_token;
        }
        for (uint32_t s = 0; s < span->sample_count; s++, sample++, sampled++) {
            if ((*sampled)->is_over) { continue; }
            seq_take_token(core, *sampled, sample->token, sample->has_logprob, &sample->logprob);
        }
        if (goes_on && span->sample_count > 0 && !seq->leg->is_forked) {
            leg_fork(core, seq->leg);
        } else {
            seq_move(core, seq);
        }
    }
    for (uint32_t i = 0; i < step->plan.copy_count; i++) { seq_move(core, step->copy_seqs[i]); }
    return STATUS_OK;
}

/* The entries are copied: the engine may use its result's memory again before the message
 * has been sent. */
static void take_prompt_logprobs(struct decode_core *core, struct decode_leg *leg, const struct step_span *span,
                                 const struct token_logprob *entries)
{
    uint32_t first = span->first_position + 1;
    uint32_t count = span->row_count - !span->has_next_token;
    if (first < leg->logprobs_next) {
        uint32_t known = leg->logprobs_next - first;
        first += known;
        count -= known;
        entries += known;
    }
    CHECK(core->logprob_count + count <= core->config.step_rows_max);
    struct token_logprob *copied = core->logprobs + core->logprob_count;
    for (uint32_t i = 0; i < count; i++) { copied[i] = entries[i]; }
    core->logprob_count += count;
    leg->logprobs_next = first + count;
    struct decode_action *action = action_add(core, DECODE_ACT_SEND);
    action->router = leg->router;
    action->leg = leg->id;
    action->msg.kind = CTL_PROMPT_LOGPROBS;
    action->msg.prompt_logprobs =
        (struct ctl_prompt_logprobs){.leg = leg->id, .first = first, .count = count, .entries = copied};
}
