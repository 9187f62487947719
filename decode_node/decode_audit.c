/* Everything that must hold of the tables at any time. */
#include <string.h>

#include "base/check.h"
#include "decode_node/decode_state.h"

static void own(const struct decode_core *core, uint32_t count, const uint32_t *blocks)
{
    for (uint32_t i = 0; i < count; i++) {
        CHECK(blocks[i] < core->config.block_count);
        core->audit_owners[blocks[i]]++;
    }
}

/* A block has the name of what it holds, and none before it holds it. */
static void audit_names(const struct decode_core *core, const struct decode_seq *seq)
{
    for (uint32_t b = seq->block_first; b < seq->block_count; b++) {
        struct kv_hash name;
        bool has_name = kv_cache_name(core->cache, seq->blocks[b], &name);
        if (b >= seq->published) { CHECK(!has_name); }
        if (has_name) { CHECK(kv_hash_equal(name, seq->hashes[b])); }
    }
}

static void audit_seq(const struct decode_core *core, const struct decode_seq *seq, uint32_t *ret_slots, uint32_t *ret_loads)
{
    const struct decode_leg *leg = seq->leg;
    const struct list *lists[SEQ_STATE_COUNT] = {
        [SEQ_LOADING] = &core->loading, [SEQ_SWAPPING] = &core->swapping, [SEQ_GRANTED] = &core->granted,
        [SEQ_READY] = &core->ready,     [SEQ_RUNNING] = &core->running,
    };
    if (seq->state == SEQ_WAITING) {
        CHECK(seq->list == &core->preempted || seq->list == &core->resumed || seq->list == &core->fresh);
        CHECK(seq->block_count == 0);
        CHECK(seq->computed == 0);
    } else {
        CHECK(seq->list == lists[seq->state]);
    }
    CHECK(list_link_is_in(&seq->link) == (seq->list != NULL));
    CHECK(seq->block_first <= seq->block_count);
    CHECK(seq->block_count <= leg->table_max);
    CHECK(seq->published <= seq->hash_count);
    CHECK(seq->hash_count <= leg->table_max);
    CHECK(seq->published * core->config.block_tokens <= seq->computed);
    CHECK(seq->state == SEQ_SWAPPING || seq_own_count(seq) <= window_blocks_max(core));
    CHECK(seq->state == SEQ_SWAPPING || seq->state == SEQ_FENCING || seq->block_first <= window_first(core, seq_total(seq)));
    if (seq->state != SEQ_FENCING) { audit_names(core, seq); }
    CHECK(seq->output_count <= leg->output_max);
    CHECK(seq->computed <= seq_total(seq));
    bool is_carrier = seq->index == 0;
    switch (seq->state) {
    case SEQ_FORKING:
        CHECK(!leg->is_forked);
        CHECK(!is_carrier);
        CHECK(!seq->is_over);
        CHECK(seq->block_count == 0);
        break;
    case SEQ_LOADING:
        CHECK(seq->load_first == seq->published);
        CHECK(seq->load_end <= seq->block_count);
        CHECK(seq->load_next <= seq->load_end);
        CHECK(seq->loads_pending <= seq->load_next - seq->load_first);
        *ret_loads += seq->loads_pending;
        break;
    case SEQ_SWAPPING:
        CHECK(!seq->is_in_step);
        CHECK(seq->block_first < seq->block_count);
        CHECK(seq->slot == NO_SLOT);
        break;
    case SEQ_GRANTED:
        CHECK(is_carrier);
        CHECK(leg->is_remote);
        CHECK(!leg->is_forked);
        break;
    case SEQ_FENCING:
        CHECK(seq->is_over);
        CHECK(!leg->is_fenced);
        break;
    case SEQ_READY:
        CHECK(seq->slot == NO_SLOT);
        CHECK(seq->block_count > 0);
        break;
    case SEQ_RUNNING:
        CHECK(seq->block_count > 0);
        CHECK(seq->computed < seq_total(seq));
        break;
    case SEQ_LEAVING:
        CHECK(seq->is_over);
        CHECK(seq->is_in_step);
        break;
    case SEQ_ENDED:
        CHECK(seq->is_over);
        CHECK(seq->block_count == 0);
        CHECK(seq->slot == NO_SLOT);
        CHECK(seq->spare == NO_BLOCK);
        break;
    default:
        break;
    }
    if (seq->is_in_step) { CHECK(core->step.is_in_flight); }
    if (seq->slot != NO_SLOT) { (*ret_slots)++; }
    if (seq->state != SEQ_FENCING) { own(core, seq_own_count(seq), seq_own_blocks(seq)); }
    if (seq->spare != NO_BLOCK) { own(core, 1, &seq->spare); }
    if (seq->copy_source != NO_BLOCK) { own(core, 1, &seq->copy_source); }
}

void decode_core_audit(const struct decode_core *core)
{
    const struct list *lists[] = {&core->preempted, &core->resumed, &core->fresh,
                                  &core->loading,   &core->granted, &core->swapping,
                                  &core->ready,     &core->running};
    memset(core->audit_owners, 0, core->config.block_count * sizeof *core->audit_owners);
    uint32_t slots = 0;
    uint32_t loads = 0;
    uint32_t listed = 0;
    uint32_t quarantined = 0;
    CHECK(core->ended.count == 0);
    CHECK(core->legs.count == leg_index_live_count(core->index));
    for (struct list_link *link = list_first(&core->legs); link != NULL; link = list_next(&core->legs, link)) {
        const struct decode_leg *leg = LIST_OWNER(link, struct decode_leg, link);
        CHECK(leg_index_find(core->index, leg->id) == leg);
        uint32_t ended = 0;
        for (uint32_t i = 0; i < leg->seq_count; i++) {
            const struct decode_seq *seq = &leg->seqs[i];
            audit_seq(core, seq, &slots, &loads);
            ended += seq->state == SEQ_ENDED;
            listed += seq->list != NULL;
            if (seq->state == SEQ_FENCING) { quarantined += seq_own_count(seq); }
        }
        CHECK(ended == leg->ended_count);
        CHECK(ended < leg->seq_count);
    }
    uint32_t in_lists = 0;
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) { in_lists += lists[i]->count; }
    CHECK(in_lists == listed);
    CHECK(slots + core->slot_free_count == core->config.batch_max);
    if (core->step.is_in_flight) {
        for (uint32_t i = 0; i < core->step.plan.copy_count; i++) { own(core, 1, &core->step.copies[i].source_block); }
    }
    CHECK(loads == tier_desk_stats(core->tiers).loads_under_way);
    tier_desk_audit(core->tiers, core->audit_owners);
    kv_cache_audit(core->cache, core->audit_owners);
    struct kv_pool_counts counts = kv_cache_counts(core->cache);
    CHECK(counts.free + counts.held + counts.cached + counts.quarantined == counts.total);
    CHECK(counts.quarantined == quarantined);
}
