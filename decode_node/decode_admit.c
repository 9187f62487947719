/* Blocks and slots: who grows, who is admitted, who gives way. */
#include "base/check.h"
#include "decode_node/decode_state.h"

static bool make_room(struct decode_core *core, struct decode_seq *seq);
static void preempt(struct decode_core *core, struct decode_seq *seq);
static struct decode_seq *youngest_holder(const struct decode_core *core);
static void admit(struct decode_core *core, struct decode_seq *seq);

/* ---------------------------------------------------------------- blocks */

uint32_t seq_blocks_needed(const struct decode_core *core, const struct decode_seq *seq)
{
    uint32_t blocks = blocks_for(core, seq_total(seq) + 1);
    return seq->leg->is_forked ? blocks : blocks + leg_live_count(seq->leg) - 1;
}

bool seq_has_block_for_next_row(const struct decode_core *core, const struct decode_seq *seq)
{
    return blocks_for(core, seq_total(seq)) <= seq->block_count;
}

/* Oldest claim first; each may take from the younger ones behind it. */
void admit_growth(struct decode_core *core)
{
    struct list_link *link = list_first(&core->running);
    while (link != NULL) {
        struct decode_seq *seq = seq_of(link);
        if (!seq_has_block_for_next_row(core, seq) && make_room(core, seq)) {
            CHECK(seq->block_count < seq->leg->table_max);
            status_t st = kv_pool_reserve(core->pool, 1, &seq->blocks[seq->block_count]);
            CHECK(!failed(st));
            seq->block_count++;
            CHECK(seq_has_block_for_next_row(core, seq));
        }
        /* A sequence that was preempted just now was the last one of the list. */
        link = seq->state == SEQ_RUNNING ? list_next(&core->running, link) : NULL;
    }
}

/* Preempts until one block is free. False: `seq` itself gave way, or it is the only one that
 * holds blocks and waits, with all it has, for those that a grant or a fence will give back. */
static bool make_room(struct decode_core *core, struct decode_seq *seq)
{
    while (kv_pool_free_count(core->pool) == 0) {
        struct decode_seq *victim = youngest_holder(core);
        if (victim == seq && core->running.count + core->ready.count == 1) { return false; }
        preempt(core, victim);
        if (victim == seq) { return false; }
    }
    return true;
}

static struct decode_seq *youngest_holder(const struct decode_core *core)
{
    struct decode_seq *running = seq_of(list_last(&core->running));
    struct decode_seq *ready = seq_of(list_last(&core->ready));
    if (running == NULL) { return ready; }
    if (ready == NULL) { return running; }
    return seq_claim_is_older(running, ready) ? ready : running;
}

/* Only while no step is in flight: nobody reads the blocks now. Its KV is computed again
 * later; the tokens that it has are input then and are not sent again. */
static void preempt(struct decode_core *core, struct decode_seq *seq)
{
    struct decode_leg *leg = seq->leg;
    CHECK(!core->step.is_in_flight);
    seq_release(core, seq);
    seq->computed = 0;
    if (!leg->is_forked) {
        for (uint32_t i = 1; i < leg->seq_count; i++) { seq_release(core, &leg->seqs[i]); }
    }
    core->preemptions++;
    seq_enter(core, seq, SEQ_WAITING, &core->preempted);
}

/* Strictly in order: the head waits for its blocks and everybody behind it waits with it. */
void admit_waiting(struct decode_core *core)
{
    struct list *queues[] = {&core->preempted, &core->resumed, &core->fresh};
    for (uint32_t i = 0; i < 3; i++) {
        struct decode_seq *seq;
        while ((seq = seq_of(list_first(queues[i]))) != NULL) {
            if (seq_blocks_needed(core, seq) > kv_pool_free_count(core->pool)) { return; }
            admit(core, seq);
        }
    }
}

static void admit(struct decode_core *core, struct decode_seq *seq)
{
    struct decode_leg *leg = seq->leg;
    uint32_t total = seq_total(seq);
    uint32_t count = blocks_for(core, total + 1);
    bool is_first = !leg->was_admitted;
    CHECK(count <= leg->table_max);
    status_t st = kv_pool_reserve(core->pool, count, seq->blocks);
    CHECK(!failed(st));
    seq->block_count = count;
    /* One spare for each live sequence but one: that one inherits the carrier's table. */
    uint32_t spares = leg->is_forked ? 0 : leg_live_count(leg) - 1;
    for (uint32_t i = leg->seq_count; i-- > 1 && spares > 0;) {
        if (leg->seqs[i].is_over) { continue; }
        st = kv_pool_reserve(core->pool, 1, &leg->seqs[i].spare);
        CHECK(!failed(st));
        spares--;
    }
    if (is_first) {
        leg->was_admitted = true;
        leg->admitted_ns = core->now_ns;
        leg->wait_until_ns = UINT64_MAX;
    }
    if (!is_first || !leg->is_remote) {
        seq_enter(core, seq, SEQ_READY, &core->ready);
        return;
    }
    leg->lease_until_ns = later_ns(core->now_ns, core->config.lease_ns);
    seq_enter(core, seq, SEQ_GRANTED, &core->granted);
    struct decode_action *action = action_add(core, DECODE_ACT_GRANT);
    action->router = leg->router;
    action->leg = leg->id;
    action->block_count = blocks_for(core, total);
    action->blocks = seq->blocks;
    action->lease_ns = core->config.lease_ns;
}

/* ---------------------------------------------------------------- slots */

/* By claim, without overtaking. A carrier takes the slots of all its sequences before it
 * computes, so that the end of a prompt never waits with everything computed. */
void admit_to_slots(struct decode_core *core)
{
    struct decode_seq *seq;
    while ((seq = seq_of(list_first(&core->ready))) != NULL) {
        struct decode_leg *leg = seq->leg;
        uint32_t needed = leg->is_forked ? 1 : leg_live_count(leg);
        if (needed > core->slot_free_count) { return; }
        if (leg->is_forked) {
            seq->slot = core->slots_free[--core->slot_free_count];
        } else {
            for (uint32_t i = 0; i < leg->seq_count; i++) {
                if (leg->seqs[i].is_over) { continue; }
                leg->seqs[i].slot = core->slots_free[--core->slot_free_count];
            }
        }
        seq_enter(core, seq, SEQ_RUNNING, &core->running);
    }
}
