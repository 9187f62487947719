/* One leg's life: taken, landed or computed, forked, ended. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "decode_node/decode_state.h"
#include "model/stop_rules.h"
#include "sched/work_copy.h"

static struct list *list_for_new_leg(struct decode_core *core, const struct decode_leg *leg);
static void seq_inherit(struct decode_core *core, struct decode_seq *heir);
static void seq_share(struct decode_core *core, struct decode_seq *seq, const struct decode_seq *heir);
static void seq_quarantine(struct decode_core *core, struct decode_seq *seq);
static void leg_note_ended(struct decode_core *core, struct decode_leg *leg);

struct decode_leg *leg_take(struct decode_core *core, uint32_t router, const struct ctl_reserve *reserve)
{
    const struct ctl_work *work = &reserve->work;
    uint32_t output_max = work->params.max_tokens;
    uint32_t table_max = blocks_for(core, work->prompt_count + output_max);
    uint32_t seq_count = work->sequence_count;
    size_t seqs_bytes = seq_count * sizeof(struct decode_seq);
    size_t lists_bytes = (size_t)seq_count * ((size_t)output_max + table_max) * sizeof(uint32_t);
    size_t names_bytes = (size_t)seq_count * table_max * sizeof(struct kv_hash);
    struct decode_leg *leg = calloc(1, sizeof *leg + seqs_bytes + names_bytes + lists_bytes + work_copy_bytes(work));
    if (leg == NULL) { return NULL; }

    leg->id = work->leg;
    leg->router = router;
    leg->birth_ns = core->now_ns > work->age_ns ? core->now_ns - work->age_ns : 0;
    leg->arrival = core->arrivals++;
    leg->wait_until_ns = work->resumed ? UINT64_MAX : core->now_ns + reserve->wait_ms * UINT64_C(1000000);
    leg->lease_until_ns = UINT64_MAX;
    leg->shared_block = NO_BLOCK;
    leg->output_max = output_max;
    leg->table_max = table_max;
    leg->seq_count = seq_count;
    leg->seqs = (struct decode_seq *)(void *)(leg + 1);
    leg->root = kv_hash_root(work->cache_salt);
    leg->local_max_tokens = reserve->local_max_tokens;
    struct kv_hash *names = (struct kv_hash *)(void *)(leg->seqs + seq_count);
    uint32_t *at = (uint32_t *)(void *)(names + (size_t)seq_count * table_max);
    for (uint32_t i = 0; i < seq_count; i++) {
        struct decode_seq *seq = &leg->seqs[i];
        seq->leg = leg;
        seq->index = i;
        seq->state = SEQ_FORKING;
        seq->slot = NO_SLOT;
        seq->spare = NO_BLOCK;
        seq->copy_source = NO_BLOCK;
        seq->output = at;
        at += output_max;
        seq->blocks = at;
        at += table_max;
        seq->hashes = names;
        names += table_max;
    }
    leg->work = work_copy(work, at);
    leg->is_remote = true;
    leg->logprobs_next = work->prompt_count;
    if (reserve->local_prefill) { leg_compute_here(leg); }
    if (work->output_count > 0) {
        memcpy(leg->seqs[0].output, work->output, work->output_count * sizeof *work->output);
        leg->seqs[0].output_count = work->output_count;
    }
    leg_index_add(core->index, leg->id, leg);
    list_append(&core->legs, &leg->link);
    seq_enter(core, &leg->seqs[0], SEQ_WAITING, list_for_new_leg(core, leg));
    return leg;
}

static struct list *list_for_new_leg(struct decode_core *core, const struct decode_leg *leg)
{
    return leg->work.resumed ? &core->resumed : &core->fresh;
}

void leg_compute_here(struct decode_leg *leg)
{
    leg->is_remote = false;
    if (leg->work.params.prompt_logprobs >= 0) { leg->logprobs_next = 1; }
}

bool leg_will_be_granted(const struct decode_core *core, const struct decode_leg *leg, uint32_t missing)
{
    if (leg->was_admitted || !leg->is_remote) { return false; }
    /* A batch that is too small for all of its sequences could never take the last row. */
    return missing > leg->local_max_tokens || leg->seq_count > core->config.batch_max;
}

void leg_drop(struct decode_core *core, struct decode_leg *leg, enum leg_outcome outcome)
{
    if (leg->outcome == LEG_OPEN) { leg->outcome = outcome; }
    /* All facts first: the carrier stays as long as one sequence goes on. */
    for (uint32_t i = 0; i < leg->seq_count; i++) { leg->seqs[i].is_over = true; }
    for (uint32_t i = 0; i < leg->seq_count; i++) { seq_move(core, &leg->seqs[i]); }
}

void leg_give_up(struct decode_core *core, struct decode_leg *leg, enum leg_outcome outcome, uint8_t code,
                 const char *message)
{
    if (leg->outcome == LEG_OPEN) {
        struct decode_action *action = action_add(core, DECODE_ACT_SEND);
        action->router = leg->router;
        action->leg = leg->id;
        action->msg.kind = outcome == LEG_REFUSED ? CTL_REFUSED : CTL_LEG_FAILED;
        action->msg.failure = (struct ctl_failure){
            .leg = leg->id,
            .code = code,
            .retry_after_ms = code == ST_RESOURCE_EXHAUSTED ? retry_after_ms(core) : 0,
            .message = message,
        };
    }
    leg_drop(core, leg, outcome);
}

void leg_cancel_seq(struct decode_core *core, struct decode_leg *leg, uint32_t index)
{
    struct decode_seq *seq = &leg->seqs[index];
    if (seq->is_over) { return; }
    seq->is_over = true;
    if (leg_live_count(leg) == 0) {
        leg_drop(core, leg, LEG_CANCELLED);
        return;
    }
    seq_move(core, seq);
}

void seq_take_token(struct decode_core *core, struct decode_seq *seq, uint32_t token, bool has_logprob,
                    const struct token_logprob *logprob)
{
    struct decode_leg *leg = seq->leg;
    CHECK(token < core->config.vocab_size);
    CHECK(seq->output_count < leg->output_max);
    uint32_t position = seq->output_count;
    seq->output[seq->output_count++] = token;
    core->tokens_generated++;

    struct eos_tokens eos = {.token = core->eos_tokens, .count = core->config.eos_count};
    enum stop_verdict verdict = stop_rules_decide(&leg->work.params, eos, token, seq->output_count, seq_total(seq),
                                                  core->config.context_tokens);
    uint8_t finish = verdict == STOP_RULES_END_TOKEN ? FINISH_STOP
                     : verdict == STOP_RULES_LENGTH  ? FINISH_LENGTH
                                                     : FINISH_NONE;
    seq->is_over = finish != FINISH_NONE;
    if (seq->is_over && leg_live_count(leg) == 0 && leg->outcome == LEG_OPEN) { leg->outcome = LEG_FINISHED; }

    struct ctl_token *out = token_list_add(core->tokens, leg->router);
    out->leg = leg->id;
    out->sequence = leg->work.sequence_first + seq->index;
    out->position = position;
    out->token = token;
    out->finish = finish;
    out->has_logprob = has_logprob;
    if (has_logprob) { out->logprob = *logprob; }
}

/* The heir, the first sequence that goes on, takes over the carrier's table as it is. The
 * others share its full blocks and own their spare: for the part-filled block's copy, or,
 * where the prompt ends with a full block, for the next token. */
void leg_fork(struct decode_core *core, struct decode_leg *leg)
{
    CHECK(!leg->is_forked);
    leg->is_forked = true;
    struct decode_seq *heir = NULL;
    for (uint32_t i = 0; i < leg->seq_count; i++) {
        struct decode_seq *seq = &leg->seqs[i];
        if (seq->is_over) { continue; }
        if (heir == NULL) {
            heir = seq;
            seq_inherit(core, seq);
        } else {
            seq_share(core, seq, heir);
        }
        bool has_slot = seq->slot != NO_SLOT;
        seq_enter(core, seq, has_slot ? SEQ_RUNNING : SEQ_READY, has_slot ? &core->running : &core->ready);
    }
    for (uint32_t i = 0; i < leg->seq_count; i++) { seq_move(core, &leg->seqs[i]); }
}

static void seq_inherit(struct decode_core *core, struct decode_seq *heir)
{
    struct decode_seq *carrier = &heir->leg->seqs[0];
    if (heir == carrier) { return; }
    if (heir->spare != NO_BLOCK) { kv_cache_release(core->cache, 1, &heir->spare); }
    heir->spare = NO_BLOCK;
    memcpy(heir->blocks, carrier->blocks, carrier->block_count * sizeof *heir->blocks);
    heir->block_first = carrier->block_first;
    heir->block_count = carrier->block_count;
    heir->computed = carrier->computed;
    seq_share_names(heir, carrier);
    carrier->block_first = 0;
    carrier->block_count = 0;
}

static void seq_share(struct decode_core *core, struct decode_seq *seq, const struct decode_seq *heir)
{
    struct decode_leg *leg = seq->leg;
    uint32_t full = heir->computed / core->config.block_tokens;
    memcpy(seq->blocks, heir->blocks, full * sizeof *seq->blocks);
    seq->block_first = heir->block_first;
    for (uint32_t b = seq->block_first; b < full; b++) { kv_cache_ref(core->cache, seq->blocks[b]); }
    seq_share_names(seq, heir);
    CHECK(seq->spare != NO_BLOCK);
    seq->blocks[full] = seq->spare;
    seq->block_count = full + 1;
    seq->spare = NO_BLOCK;
    seq->computed = heir->computed;
    if (heir->computed % core->config.block_tokens == 0) { return; }
    leg->shared_block = heir->blocks[full];
    seq->copy_source = leg->shared_block;
    kv_cache_ref(core->cache, leg->shared_block);
}

/* Until the fork the carrier stands for all: it goes on while one of them does. */
bool seq_goes_on(const struct decode_seq *seq)
{
    return !seq->is_over || (!seq->leg->is_forked && seq->index == 0 && leg_live_count(seq->leg) > 0);
}

void seq_move(struct decode_core *core, struct decode_seq *seq)
{
    struct decode_leg *leg = seq->leg;
    if (seq_goes_on(seq)) { return; }
    enum seq_state before;
    do {
        before = seq->state;
        switch (seq->state) {
        case SEQ_FORKING:
        case SEQ_WAITING:
            seq_release(core, seq);
            seq_enter(core, seq, SEQ_ENDED, NULL);
            break;
        case SEQ_LOADING:
            if (seq->loads_pending > 0) { break; }
            seq_release(core, seq);
            seq_enter(core, seq, SEQ_ENDED, NULL);
            break;
        case SEQ_SWAPPING:
            seq_release(core, seq);
            seq_enter(core, seq, SEQ_ENDED, NULL);
            break;
        case SEQ_GRANTED: {
            struct decode_action *action = action_add(core, DECODE_ACT_REVOKE);
            action->router = leg->router;
            action->leg = leg->id;
            seq_quarantine(core, seq);
            seq_enter(core, seq, SEQ_FENCING, NULL);
            break;
        }
        case SEQ_FENCING:
            if (!leg->is_fenced) { break; }
            kv_cache_fence(core->cache, seq_own_count(seq), seq_own_blocks(seq));
            seq->block_first = 0;
            seq->block_count = 0;
            seq_enter(core, seq, SEQ_ENDED, NULL);
            break;
        case SEQ_READY:
        case SEQ_RUNNING:
            seq_enter(core, seq, SEQ_LEAVING, NULL);
            break;
        case SEQ_LEAVING:
            if (seq->is_in_step) { break; }
            seq_release(core, seq);
            seq_enter(core, seq, SEQ_ENDED, NULL);
            break;
        case SEQ_ENDED:
        case SEQ_STATE_COUNT:
            break;
        }
    } while (seq->state != before);
}

/* Queues of legs go by priority, then arrival, which is the order of their entering; grants, loads
 * and swaps by nothing; all others by claim. */
static bool goes_before(const struct decode_core *core, const struct list *list, const struct decode_seq *seq,
                        const struct decode_seq *other)
{
    if (list == &core->granted || list == &core->loading || list == &core->swapping) { return false; }
    if (list == &core->resumed || list == &core->fresh) { return seq->leg->work.priority > other->leg->work.priority; }
    return seq_claim_is_stronger(seq, other);
}

void seq_enter(struct decode_core *core, struct decode_seq *seq, enum seq_state state, struct list *list)
{
    if (seq->list != NULL) { list_remove(seq->list, &seq->link); }
    seq->list = list;
    bool was_ended = seq->state == SEQ_ENDED;
    seq->state = state;
    if (list != NULL) {
        struct list_link *after = list_last(list);
        while (after != NULL && goes_before(core, list, seq, seq_of(after))) { after = list_previous(list, after); }
        list_insert(list, after, &seq->link);
    }
    if (state == SEQ_ENDED && !was_ended && ++seq->leg->ended_count == seq->leg->seq_count) {
        leg_note_ended(core, seq->leg);
    }
}

/* Only the blocks of the grant can still be written from outside: the cached ones before them
 * and the one for the next token are given back at once. */
static void seq_quarantine(struct decode_core *core, struct decode_seq *seq)
{
    uint32_t first = seq->leg->grant_first;
    uint32_t end = blocks_for(core, seq_total(seq));
    CHECK(seq->block_first <= first);
    kv_cache_release(core->cache, first - seq->block_first, seq_own_blocks(seq));
    if (seq->block_count > end) {
        kv_cache_release(core->cache, seq->block_count - end, seq->blocks + end);
        seq->block_count = end;
    }
    seq->block_first = first;
    seq->published = 0;
    kv_cache_quarantine(core->cache, seq_own_count(seq), seq_own_blocks(seq));
}

void seq_release(struct decode_core *core, struct decode_seq *seq)
{
    kv_cache_release(core->cache, seq_own_count(seq), seq_own_blocks(seq));
    seq->block_first = 0;
    seq->block_count = 0;
    seq->published = 0;
    if (seq->spare != NO_BLOCK) { kv_cache_release(core->cache, 1, &seq->spare); }
    seq->spare = NO_BLOCK;
    if (seq->copy_source != NO_BLOCK) { kv_cache_release(core->cache, 1, &seq->copy_source); }
    seq->copy_source = NO_BLOCK;
    seq_release_slot(core, seq);
}

void seq_give_blocks_back(struct decode_core *core, struct decode_seq *seq)
{
    struct decode_leg *leg = seq->leg;
    seq_release(core, seq);
    seq->computed = 0;
    if (leg->is_forked) { return; }
    for (uint32_t i = 1; i < leg->seq_count; i++) { seq_release(core, &leg->seqs[i]); }
}

void seq_release_slot(struct decode_core *core, struct decode_seq *seq)
{
    if (seq->slot != NO_SLOT) { core->slots_free[core->slot_free_count++] = seq->slot; }
    seq->slot = NO_SLOT;
    seq->slot_is_open = false;
}

bool seq_claim_is_stronger(const struct decode_seq *a, const struct decode_seq *b)
{
    if (a->leg->work.priority != b->leg->work.priority) { return a->leg->work.priority > b->leg->work.priority; }
    if (a->leg->birth_ns != b->leg->birth_ns) { return a->leg->birth_ns < b->leg->birth_ns; }
    if (a->leg->arrival != b->leg->arrival) { return a->leg->arrival < b->leg->arrival; }
    return a->index < b->index;
}

uint32_t leg_live_count(const struct decode_leg *leg)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < leg->seq_count; i++) { count += !leg->seqs[i].is_over; }
    return count;
}

/* As many legs end per second as hold blocks, divided by how long one holds them. */
uint32_t retry_after_ms(const struct decode_core *core)
{
    if (core->hold_mean_ns == 0) { return 1000; }
    uint64_t waiting = (uint64_t)core->preempted.count + core->resumed.count + core->fresh.count;
    uint64_t holding = core->legs.count > waiting ? core->legs.count - waiting : 1;
    return retry_hint_ms(core->hold_mean_ns / holding * (waiting + 1));
}

static void leg_note_ended(struct decode_core *core, struct decode_leg *leg)
{
    switch (leg->outcome) {
    case LEG_OPEN: /* the last sequences were cancelled one by one, after others had finished */
    case LEG_FINISHED: core->legs_finished++; break;
    case LEG_FAILED: core->legs_failed++; break;
    case LEG_CANCELLED: core->legs_cancelled++; break;
    case LEG_REFUSED: core->legs_refused++; break;
    }
    if (leg->was_admitted) { core->hold_mean_ns = rate_mean(core->hold_mean_ns, core->now_ns - leg->admitted_ns); }
    leg_index_remove(core->index, leg->id);
    list_remove(&core->legs, &leg->link);
    list_append(&core->ended, &leg->link);
}

void legs_reap(struct decode_core *core)
{
    struct list_link *link;
    while ((link = list_first(&core->ended)) != NULL) {
        list_remove(&core->ended, link);
        free(LIST_OWNER(link, struct decode_leg, link));
    }
}
