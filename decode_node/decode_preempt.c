/* Who gives way: blocks to sequences that run, blocks and slots to a higher priority.
 *
 * Only while no step is in flight: nobody reads the blocks then. What a sequence gives up is saved in a
 * tier first (decode_tier.c), or computed again later; the tokens that it has are input then and are not
 * sent again. */
#include "base/check.h"
#include "decode_node/decode_state.h"

static struct decode_seq *weakest_holder(const struct decode_core *core);
static void preempt(struct decode_core *core, struct decode_seq *seq);
static uint32_t count_freed(struct decode_core *core, const struct decode_seq *seq);
static bool weaker_would_do(struct decode_core *core, const struct decode_seq *seq, uint32_t missing);
static bool is_weaker(const struct decode_seq *victim, const struct decode_seq *seq);
static uint32_t slots_of(const struct decode_seq *seq);
static void give_slots_back(struct decode_core *core, struct decode_seq *seq);

bool preempt_for_growth(struct decode_core *core, struct decode_seq *seq)
{
    while (kv_cache_available(core->cache) == 0) {
        /* One of the blocks that are being saved is as good as free. */
        if (core->growth_waiters < tier_blocks_coming(core)) {
            core->growth_waiters++;
            return false;
        }
        struct decode_seq *victim = weakest_holder(core);
        if (victim == seq && core->running.count + core->ready.count == 1) { return false; }
        preempt(core, victim);
        if (victim == seq) { return false; }
    }
    return true;
}

static struct decode_seq *weakest_holder(const struct decode_core *core)
{
    struct decode_seq *running = seq_of(list_last(&core->running));
    struct decode_seq *ready = seq_of(list_last(&core->ready));
    if (running == NULL) { return ready; }
    if (ready == NULL) { return running; }
    return seq_claim_is_stronger(running, ready) ? ready : running;
}

static void preempt(struct decode_core *core, struct decode_seq *seq)
{
    CHECK(!core->step.is_in_flight);
    core->preemptions++;
    if (tier_begin_swap(core, seq)) { return; }
    seq_give_blocks_back(core, seq);
    seq_enter(core, seq, SEQ_WAITING, &core->preempted);
}

/* ---------------------------------------------------------------- priority */

static bool is_weaker(const struct decode_seq *victim, const struct decode_seq *seq)
{
    return victim->leg->work.priority < seq->leg->work.priority;
}

bool preempt_has_weaker(const struct decode_core *core, const struct decode_seq *seq)
{
    if (core->step.is_in_flight) { return false; }
    const struct decode_seq *victim = weakest_holder(core);
    return victim != NULL && is_weaker(victim, seq);
}

void preempt_for_priority(struct decode_core *core, const struct decode_seq *seq, uint32_t needed)
{
    uint32_t coming = kv_cache_available(core->cache) + tier_blocks_coming(core);
    if (coming >= needed || !weaker_would_do(core, seq, needed - coming)) { return; }
    while (kv_cache_available(core->cache) + tier_blocks_coming(core) < needed) {
        struct decode_seq *victim = weakest_holder(core);
        /* What was coming may stay with a sequence that shares it; then it takes more than was counted. */
        if (victim == NULL || !is_weaker(victim, seq)) { return; }
        preempt(core, victim);
    }
}

/* Nobody gives way in vain: do all of lower priority together have enough? `seq` holds what it
 * found cached already, so what it shares with a victim does not count. */
static bool weaker_would_do(struct decode_core *core, const struct decode_seq *seq, uint32_t missing)
{
    struct list *holders[] = {&core->running, &core->ready};
    uint32_t freed = 0;
    for (uint32_t i = 0; i < 2; i++) {
        for (struct list_link *link = list_last(holders[i]); link != NULL; link = list_previous(holders[i], link)) {
            const struct decode_seq *victim = seq_of(link);
            if (!is_weaker(victim, seq)) { break; }
            freed += count_freed(core, victim);
        }
    }
    for (uint32_t i = 0; i < 2; i++) {
        for (struct list_link *link = list_last(holders[i]); link != NULL; link = list_previous(holders[i], link)) {
            const struct decode_seq *victim = seq_of(link);
            if (!is_weaker(victim, seq)) { break; }
            uint32_t *blocks = seq_own_blocks(victim);
            for (uint32_t b = 0; b < seq_own_count(victim); b++) { core->victim_refs[blocks[b]] = 0; }
        }
    }
    return freed >= missing;
}

/* Blocks whose last reference is this victim's, those of the victims before it taken away. */
static uint32_t count_freed(struct decode_core *core, const struct decode_seq *seq)
{
    uint32_t freed = 0;
    for (uint32_t b = seq->block_first; b < seq->block_count; b++) {
        uint32_t block = seq->blocks[b];
        freed += ++core->victim_refs[block] == kv_cache_refs(core->cache, block);
    }
    for (uint32_t i = 1; i < seq->leg->seq_count && !seq->leg->is_forked; i++) {
        freed += seq->leg->seqs[i].spare != NO_BLOCK;
    }
    return freed;
}

/* A sequence keeps its blocks when it gives its slot: it goes on where it stands. */
void preempt_slots(struct decode_core *core, const struct decode_seq *seq, uint32_t needed)
{
    CHECK(!core->step.is_in_flight);
    uint32_t slots = core->slot_free_count;
    for (struct list_link *link = list_last(&core->running); link != NULL; link = list_previous(&core->running, link)) {
        if (!is_weaker(seq_of(link), seq)) { break; }
        slots += slots_of(seq_of(link));
    }
    if (slots < needed) { return; }
    while (core->slot_free_count < needed) {
        struct decode_seq *victim = seq_of(list_last(&core->running));
        give_slots_back(core, victim);
        core->slot_preemptions++;
        seq_enter(core, victim, SEQ_READY, &core->ready);
    }
}

static uint32_t slots_of(const struct decode_seq *seq)
{
    return seq->leg->is_forked ? 1 : leg_live_count(seq->leg);
}

static void give_slots_back(struct decode_core *core, struct decode_seq *seq)
{
    struct decode_leg *leg = seq->leg;
    if (leg->is_forked) {
        seq_release_slot(core, seq);
        return;
    }
    for (uint32_t i = 0; i < leg->seq_count; i++) { seq_release_slot(core, &leg->seqs[i]); }
}
