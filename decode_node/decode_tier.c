/* The KV tiers as sequences see them: what is loaded rather than computed, and what is saved first.
 *
 * LOADING: has its blocks; those of its text that lie in a tier are being written. It goes on when all
 * loads have ended; where one failed the chain ends, and the rest is computed.
 * SWAPPING: gives its blocks up one by one, each as soon as its store is under way: the store holds
 * it from then on, so that the sequence may wait in a queue, or come back, before they have ended. */
#include "base/check.h"
#include "decode_node/decode_state.h"

static void issue_loads(struct decode_core *core);
static void issue_swaps(struct decode_core *core);
static void issue_ahead(struct decode_core *core);
static void add_request(struct decode_core *core, enum decode_action_kind kind, const struct tier_request *request);
static void finish_load(struct decode_core *core, struct decode_seq *seq);

/* ---------------------------------------------------------------- loads */

void tier_plan_load(struct decode_core *core, struct decode_seq *seq, uint32_t most)
{
    seq->load_first = seq->load_next = seq->load_end = seq->load_good = seq->block_count;
    seq->load_is_declined = false;
    if (core->tiers == NULL) { return; }
    uint32_t blocks[KV_TIER_COUNT] = {0};
    uint32_t count = 0;
    enum kv_tier_kind tier;
    for (; seq->load_first + count < most; count++) {
        seq_name_blocks(core, seq, seq->load_first + count + 1);
        if (!tier_desk_find(core->tiers, seq->hashes[seq->load_first + count], &tier)) { break; }
        blocks[tier]++;
    }
    if (count == 0) { return; }
    uint64_t rate = token_rate_per_s(&core->prefill_rate);
    uint64_t token_ns = rate == 0 ? 0 : UINT64_C(1000000000) / rate;
    seq->load_is_declined = !tier_desk_load_is_cheaper(core->tiers, blocks, count * core->config.block_tokens, token_ns,
                                                       &seq->load_predicted_ns);
    if (seq->load_is_declined) {
        uint32_t probe = tier_desk_probe_blocks(core->tiers);
        if (count > probe) { count = probe; }
        seq->load_predicted_ns = 0; /* that was for all of it */
    }
    seq->load_end += count;
    seq->load_good = seq->load_end;
}

/* Not at every try to admit it: a block that is worth storing again is stored, which changes what is
 * available, which is a reason to try again. */
void tier_note_used(struct decode_core *core, const struct decode_seq *seq)
{
    if (core->tiers == NULL) { return; }
    for (uint32_t b = seq->block_first; b < seq->published; b++) {
        tier_desk_note_use(core->tiers, seq->blocks[b], seq->hashes[b]);
    }
}

void tier_note_declined(struct decode_core *core)
{
    core->loads_declined++;
    tier_desk_note_declined(core->tiers);
}

void tier_begin_load(struct decode_core *core, struct decode_seq *seq)
{
    CHECK(seq->load_next < seq->load_end);
    seq->load_began_ns = core->now_ns;
    core->loads_chosen += !seq->load_is_declined;
    seq_enter(core, seq, SEQ_LOADING, &core->loading);
}

/* In the order of their coming, as many at once as the tiers take. */
static void issue_loads(struct decode_core *core)
{
    for (struct list_link *link = list_first(&core->loading); link != NULL; link = list_next(&core->loading, link)) {
        struct decode_seq *seq = seq_of(link);
        for (; seq->load_next < seq->load_good && seq_goes_on(seq); seq->load_next++) {
            uint32_t b = seq->load_next;
            struct tier_request request;
            if (!tier_desk_load(core->tiers, seq->hashes[b], seq->blocks[b], seq, b, &request)) { return; }
            seq->loads_pending++;
            add_request(core, DECODE_ACT_TIER_LOAD, &request);
        }
    }
}

void tier_take(struct decode_core *core, const struct kv_tier_event *event)
{
    struct tier_load_end end;
    if (core->tiers == NULL) {
        core->late_messages++;
        return;
    }
    if (!tier_desk_take(core->tiers, event, &end)) { return; }
    struct decode_seq *seq = end.owner;
    CHECK(seq->state == SEQ_LOADING);
    CHECK(seq->loads_pending > 0);
    seq->loads_pending--;
    if (!end.is_loaded && end.index < seq->load_good) { seq->load_good = end.index; }
    if (seq->loads_pending > 0) { return; }
    if (!seq_goes_on(seq)) {
        seq_move(core, seq);
    } else if (seq->load_next >= seq->load_good) {
        finish_load(core, seq);
    }
}

static void finish_load(struct decode_core *core, struct decode_seq *seq)
{
    for (; seq->published < seq->load_good; seq->published++) {
        uint32_t b = seq->published;
        kv_cache_publish(core->cache, seq->blocks[b], seq->hashes[b], seq_name_before(seq, b));
        kv_cache_mark_stored(core->cache, seq->blocks[b], true);
    }
    seq->computed = seq->published * core->config.block_tokens;
    core->tier_tokens_loaded += (uint64_t)(seq->load_good - seq->load_first) * core->config.block_tokens;
    bool is_whole = seq->load_good == seq->load_end;
    if (is_whole && seq->load_predicted_ns > 0) {
        core->load_predicted_ns += seq->load_predicted_ns;
        core->load_actual_ns += core->now_ns - seq->load_began_ns;
    }
    admit_with_content(core, seq);
}

/* ---------------------------------------------------------------- swaps */

/* Full blocks that would be lost: named, nobody else's, and in no tier. */
static uint32_t count_unsaved(const struct decode_core *core, const struct decode_seq *seq)
{
    uint32_t count = 0;
    enum kv_tier_kind tier;
    for (uint32_t b = seq->block_first; b < seq->published; b++) {
        count += kv_cache_refs(core->cache, seq->blocks[b]) == 1 && !tier_desk_find(core->tiers, seq->hashes[b], &tier);
    }
    return count;
}

/* Where all of its blocks would be loaded from: those that no tier has yet, from where stores go. */
static void count_by_tier(const struct decode_core *core, const struct decode_seq *seq, uint32_t *ret_blocks)
{
    for (uint32_t b = seq->block_first; b < seq->published; b++) {
        enum kv_tier_kind tier;
        if (!tier_desk_find(core->tiers, seq->hashes[b], &tier)) { tier = tier_desk_store_tier(core->tiers); }
        ret_blocks[tier]++;
    }
}

static bool swap_is_cheaper(const struct decode_core *core, const struct decode_seq *seq, uint32_t unsaved)
{
    if (core->config.preempt != DECODE_PREEMPT_AUTO) { return core->config.preempt == DECODE_PREEMPT_SWAP; }
    uint32_t blocks[KV_TIER_COUNT] = {0};
    count_by_tier(core, seq, blocks);
    uint64_t store_ns = tier_desk_store_ns(core->tiers, unsaved);
    uint64_t load_ns = tier_desk_load_ns(core->tiers, blocks);
    uint64_t rate = token_rate_per_s(&core->prefill_rate);
    if (store_ns == 0 || load_ns == 0 || rate == 0) { return true; } /* so that it gets measured */
    uint64_t compute_ns = (uint64_t)seq->computed * (UINT64_C(1000000000) / rate);
    return store_ns + load_ns <= compute_ns;
}

bool tier_begin_swap(struct decode_core *core, struct decode_seq *seq)
{
    if (core->tiers == NULL || seq->published <= seq->block_first) { return false; }
    uint32_t unsaved = count_unsaved(core, seq);
    if (unsaved == 0 || !swap_is_cheaper(core, seq, unsaved)) { return false; }
    /* What is not full is computed again in any case. */
    uint32_t first = seq->block_first;
    uint32_t kept = seq->published;
    kv_cache_release(core->cache, seq->block_count - kept, seq->blocks + kept);
    seq->block_count = first; /* the rest of what it holds goes as in any preemption */
    seq_give_blocks_back(core, seq);
    seq->block_first = first;
    seq->block_count = kept;
    seq->published = kept;
    seq->computed = kept * core->config.block_tokens;
    core->swaps++;
    seq_enter(core, seq, SEQ_SWAPPING, &core->swapping);
    issue_swaps(core);
    return true;
}

static void issue_swaps(struct decode_core *core)
{
    struct decode_seq *seq;
    while ((seq = seq_of(list_first(&core->swapping))) != NULL) {
        for (; seq->block_first < seq->block_count; seq->block_first++) {
            uint32_t block = seq->blocks[seq->block_first];
            struct kv_hash hash = seq->hashes[seq->block_first];
            enum kv_tier_kind tier;
            bool is_saved = tier_desk_find(core->tiers, hash, &tier) || kv_cache_refs(core->cache, block) > 1 ||
                            !kv_cache_name(core->cache, block, &hash);
            struct tier_request request;
            if (is_saved) {
                kv_cache_release(core->cache, 1, &block);
            } else if (tier_desk_store(core->tiers, hash, block, &request)) {
                add_request(core, DECODE_ACT_TIER_STORE, &request);
            } else {
                return;
            }
        }
        seq->block_first = 0;
        seq->block_count = 0;
        seq->published = 0;
        seq->computed = 0;
        seq_enter(core, seq, SEQ_WAITING, &core->preempted);
    }
}

uint32_t tier_blocks_coming(const struct decode_core *core)
{
    uint32_t count = tier_desk_store_count(core->tiers);
    for (struct list_link *link = list_first(&core->swapping); link != NULL; link = list_next(&core->swapping, link)) {
        count += seq_own_count(seq_of(link));
    }
    return count;
}

/* ---------------------------------------------------------------- requests */

/* Loads first: somebody waits for them. Stores ahead of need take what room is left. */
void tier_issue(struct decode_core *core)
{
    if (core->tiers == NULL) { return; }
    issue_loads(core);
    issue_swaps(core);
    issue_ahead(core);
}

static void issue_ahead(struct decode_core *core)
{
    struct tier_request request;
    while (tier_desk_store_ahead(core->tiers, &request)) { add_request(core, DECODE_ACT_TIER_STORE, &request); }
}

static void add_request(struct decode_core *core, enum decode_action_kind kind, const struct tier_request *request)
{
    struct decode_action *action = action_add(core, kind);
    action->hash = request->hash;
    action->block = request->block;
    action->tag = request->tag;
}
