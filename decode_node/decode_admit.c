/* Blocks and slots: who grows, who is admitted, who gives way. */
#include "base/check.h"
#include "decode_node/decode_state.h"

static void grow(struct decode_core *core, struct decode_seq *seq);
static bool take_blocks(struct decode_core *core, struct decode_seq *seq, bool may_preempt);
static bool is_hopeless(const struct decode_core *core, const struct decode_seq *seq);
static void note_miss(struct decode_core *core, const struct decode_seq *seq);
static void admit(struct decode_core *core, struct decode_seq *seq);
static void note_admitted(struct decode_core *core, struct decode_seq *seq);

/* ---------------------------------------------------------------- blocks */

uint32_t seq_rows_covered(const struct decode_core *core, const struct decode_seq *seq)
{
    uint32_t left = seq_total(seq) - seq->computed;
    uint32_t covered = seq->block_count * core->config.block_tokens - seq->computed;
    return covered < left ? covered : left;
}

/* Strongest claim first; each may take from the weaker ones behind it, but only for its next row. */
void admit_growth(struct decode_core *core)
{
    core->growth_waiters = 0;
    struct list_link *link = list_first(&core->running);
    while (link != NULL) {
        struct decode_seq *seq = seq_of(link);
        uint32_t left = seq_total(seq) - seq->computed;
        uint32_t wanted = left < core->config.chunk_tokens ? left : core->config.chunk_tokens;
        while (seq_rows_covered(core, seq) < wanted) {
            bool is_urgent = seq_rows_covered(core, seq) == 0;
            bool has_room = is_urgent ? preempt_for_growth(core, seq) : kv_cache_available(core->cache) > 0;
            if (!has_room) { break; }
            grow(core, seq);
        }
        /* A sequence that was preempted just now was the last one of the list. */
        link = seq->state == SEQ_RUNNING ? list_next(&core->running, link) : NULL;
    }
}

static void grow(struct decode_core *core, struct decode_seq *seq)
{
    CHECK(seq->block_count < seq->leg->table_max);
    status_t st = kv_cache_reserve(core->cache, 1, &seq->blocks[seq->block_count]);
    CHECK(!failed(st));
    seq->block_count++;
}

/* Strictly in order: the head waits for its blocks and everybody behind it waits with it. */
void admit_waiting(struct decode_core *core)
{
    struct decode_seq *seq;
    while ((seq = admit_head(core)) != NULL) {
        bool may_preempt = preempt_has_weaker(core, seq);
        if (is_hopeless(core, seq) && !may_preempt) { return; }
        if (!take_blocks(core, seq, may_preempt)) {
            note_miss(core, seq);
            return;
        }
        admit(core, seq);
    }
}

/* The highest priority; among equals preempted ones, then those that resume, then new ones. */
struct decode_seq *admit_head(const struct decode_core *core)
{
    const struct list *queues[] = {&core->preempted, &core->resumed, &core->fresh};
    struct decode_seq *head = NULL;
    for (uint32_t i = 0; i < 3; i++) {
        struct decode_seq *seq = seq_of(list_first(queues[i]));
        if (seq == NULL) { continue; }
        if (head == NULL || seq->leg->work.priority > head->leg->work.priority) { head = seq; }
    }
    return head;
}

/* What is cached of its text, the rest of its tokens and one more, and one spare for each live
 * sequence but one, which inherits the carrier's table. All or none. */
static bool take_blocks(struct decode_core *core, struct decode_seq *seq, bool may_preempt)
{
    struct decode_leg *leg = seq->leg;
    uint32_t count = blocks_for(core, seq_total(seq) + 1);
    uint32_t spares = leg->is_forked ? 0 : leg_live_count(leg) - 1;
    CHECK(count <= leg->table_max);
    uint32_t cached = seq_take_cached(core, seq);
    uint32_t first = seq->block_count;
    uint32_t window_end = seq->block_first + (window_blocks_max(core) < count ? window_blocks_max(core) : count);
    if (count > window_end) { count = window_end; }
    uint32_t needed = count - first + spares;
    if (may_preempt && needed > kv_cache_available(core->cache)) { preempt_for_priority(core, seq, needed); }
    if (needed > kv_cache_available(core->cache)) {
        seq_release(core, seq);
        return false;
    }
    status_t st = kv_cache_reserve(core->cache, count - first, seq->blocks + first);
    CHECK(!failed(st));
    seq->block_count = count;
    seq->computed = cached * core->config.block_tokens;
    for (uint32_t i = leg->seq_count; i-- > 1 && spares > 0;) {
        if (leg->seqs[i].is_over) { continue; }
        st = kv_cache_reserve(core->cache, 1, &leg->seqs[i].spare);
        CHECK(!failed(st));
        spares--;
    }
    return true;
}

bool admit_fits(struct decode_core *core, struct decode_seq *seq)
{
    CHECK(seq->state == SEQ_WAITING);
    if (is_hopeless(core, seq)) { return false; }
    if (!take_blocks(core, seq, false)) {
        note_miss(core, seq);
        return false;
    }
    seq_give_blocks_back(core, seq);
    return true;
}

/* It did not fit, and since then it needs no fewer blocks, no block came free, none was named, and no cached one that it may
 * have counted on was taken by others: it does not fit now. */
static bool is_hopeless(const struct decode_core *core, const struct decode_seq *seq)
{
    const struct admit_miss *miss = &core->miss;
    struct kv_cache_stats stats = kv_cache_stats(core->cache);
    return miss->is_set && miss->arrival == seq->leg->arrival && miss->index == seq->index &&
           miss->live == leg_live_count(seq->leg) &&
           kv_cache_available(core->cache) <= miss->available && stats.blocks_published == miss->published &&
           stats.blocks_taken == miss->taken;
}

static void note_miss(struct decode_core *core, const struct decode_seq *seq)
{
    struct kv_cache_stats stats = kv_cache_stats(core->cache);
    core->miss = (struct admit_miss){
        .is_set = true,
        .arrival = seq->leg->arrival,
        .index = seq->index,
        .live = leg_live_count(seq->leg),
        .available = kv_cache_available(core->cache),
        .published = stats.blocks_published,
        .taken = stats.blocks_taken,
    };
}

/* It has its blocks: what lies in a tier is loaded first. */
static void admit(struct decode_core *core, struct decode_seq *seq)
{
    seq_note_cached(core, seq);
    tier_note_used(core, seq);
    if (seq->load_is_declined) { tier_note_declined(core); }
    if (seq->load_end > seq->load_first) {
        tier_begin_load(core, seq);
    } else {
        admit_with_content(core, seq);
    }
}

/* What is still missing in its blocks is computed here, or lands. */
void admit_with_content(struct decode_core *core, struct decode_seq *seq)
{
    struct decode_leg *leg = seq->leg;
    bool is_first = !leg->was_admitted;
    if (is_first) { note_admitted(core, seq); }
    leg->was_admitted = true;
    if (!is_first || !leg->is_remote) {
        seq_enter(core, seq, SEQ_READY, &core->ready);
        return;
    }
    leg->grant_first = seq->published > seq->block_first ? seq->published : seq->block_first;
    leg->lease_until_ns = later_ns(core->now_ns, core->config.lease_ns);
    seq_enter(core, seq, SEQ_GRANTED, &core->granted);
    struct decode_action *action = action_add(core, DECODE_ACT_GRANT);
    action->router = leg->router;
    action->leg = leg->id;
    action->block_count = blocks_for(core, seq_total(seq)) - leg->grant_first;
    action->blocks = seq->blocks + leg->grant_first;
    action->cached_tokens = leg->cached_tokens;
    action->grant_first = leg->grant_first;
    action->lease_ns = core->config.lease_ns;
}

static void note_admitted(struct decode_core *core, struct decode_seq *seq)
{
    struct decode_leg *leg = seq->leg;
    uint32_t total = seq_total(seq);
    leg->admitted_ns = core->now_ns;
    leg->wait_until_ns = UINT64_MAX;
    leg->cached_tokens = seq->computed;
    core->cache_tokens_asked += total;
    core->cache_tokens_found += seq->computed;
    core->cache_blocks_taken += seq->load_first - seq->block_first; /* what was loaded begins there */
    if (leg_will_be_granted(core, leg, total - seq->computed)) { return; } /* the grant says it */
    if (!leg->is_remote && !core->config.prefix_cache) { return; }          /* there is nothing to say */
    if (leg->is_remote) { leg_compute_here(leg); }
    struct decode_action *action = action_add(core, DECODE_ACT_SEND);
    action->router = leg->router;
    action->leg = leg->id;
    action->msg.kind = CTL_RESERVED;
    action->msg.reserved =
        (struct ctl_reserved){.leg = leg->id, .is_local = true, .cached_tokens = leg->cached_tokens};
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
        if (needed > core->slot_free_count) { preempt_slots(core, seq, needed); }
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
