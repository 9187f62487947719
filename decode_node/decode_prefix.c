/* The prefix cache as a sequence sees it: what of its text is there, and what it leaves behind.
 *
 * A sequence's full blocks have names, seq->hashes, that say all tokens up to their end. It takes
 * the blocks of its text that are there under their names, and publishes its own as soon as their
 * bytes are final: after the step that filled them, or when they have landed. One token is always
 * left to compute, or nothing could be sampled: of a text that is cached whole, the last block is
 * not taken. */
#include <string.h>

#include "base/check.h"
#include "decode_node/decode_state.h"
#include "sched/work_copy.h"

static bool prefix_is_wanted(const struct decode_leg *leg);
static uint32_t take_cached(struct decode_core *core, struct decode_seq *seq, uint32_t most);
static uint32_t take_windowed(struct decode_core *core, struct decode_seq *seq, uint32_t most);

uint32_t seq_take_cached(struct decode_core *core, struct decode_seq *seq)
{
    CHECK(seq->block_count == 0);
    CHECK(seq->published == 0);
    bool is_wanted = core->config.prefix_cache && prefix_is_wanted(seq->leg);
    uint32_t most = is_wanted ? (seq_total(seq) - 1) / core->config.block_tokens : 0;
    uint32_t found = core->config.window_tokens == 0 ? take_cached(core, seq, most) : take_windowed(core, seq, most);
    seq->published = found;
    seq->block_count = found > seq->block_first ? found : seq->block_first;
    tier_plan_load(core, seq, most);
    return found;
}

void seq_note_cached(struct decode_core *core, const struct decode_seq *seq)
{
    for (uint32_t b = seq->block_first; b < seq->published; b++) { kv_cache_note_use(core->cache, seq->blocks[b]); }
}

/* Whoever wants the log-probabilities of the prompt needs its rows computed. */
static bool prefix_is_wanted(const struct decode_leg *leg)
{
    return leg->work.params.prompt_logprobs < 0 || leg->is_forked;
}

static uint32_t take_cached(struct decode_core *core, struct decode_seq *seq, uint32_t most)
{
    uint32_t taken = 0;
    while (taken < most) {
        seq_name_blocks(core, seq, taken + 1);
        if (!kv_cache_try(core->cache, seq->hashes[taken], &seq->blocks[taken])) { break; }
        taken++;
    }
    return taken;
}

/* What is granted needs only what is seen from behind its end, what is computed here what is seen from
 * where that begins. */
static uint32_t take_windowed(struct decode_core *core, struct decode_seq *seq, uint32_t most)
{
    uint32_t found = window_find_cached(core, seq, most);
    uint32_t total = seq_total(seq);
    uint32_t computed = found * core->config.block_tokens;
    seq->block_first = window_first(core, leg_will_be_granted(core, seq->leg, total - computed) ? total : computed);
    for (uint32_t b = seq->block_first; b < found; b++) {
        bool is_there = kv_cache_try(core->cache, seq->hashes[b], &seq->blocks[b]);
        CHECK(is_there);
    }
    return found;
}

void seq_publish(struct decode_core *core, struct decode_seq *seq)
{
    if (!core->config.prefix_cache) { return; }
    uint32_t full = seq->computed / core->config.block_tokens;
    if (full <= seq->published) { return; }
    seq_name_blocks(core, seq, full);
    for (; seq->published < full; seq->published++) {
        uint32_t b = seq->published;
        if (b < seq->block_first) { continue; }
        kv_cache_publish(core->cache, seq->blocks[b], seq->hashes[b], seq_name_before(seq, b));
    }
}

void seq_share_names(struct decode_seq *seq, const struct decode_seq *heir)
{
    uint32_t named = heir->published;
    memcpy(seq->hashes, heir->hashes, named * sizeof *seq->hashes);
    seq->hash_count = named;
    seq->published = named;
}

/* The text only grows, so a name once found holds. */
void seq_name_blocks(struct decode_core *core, struct decode_seq *seq, uint32_t count)
{
    uint32_t block_tokens = core->config.block_tokens;
    for (; seq->hash_count < count; seq->hash_count++) {
        uint32_t b = seq->hash_count;
        work_tokens(&seq->leg->work, seq->output, b * block_tokens, block_tokens, core->block_text);
        seq->hashes[b] = kv_hash_next(seq_name_before(seq, b), core->block_text, block_tokens);
    }
}

struct kv_hash seq_name_before(const struct decode_seq *seq, uint32_t index)
{
    return index == 0 ? seq->leg->root : seq->hashes[index - 1];
}
