/* What a decode node's sequences hold, for whoever looks. */
#include "decode_node/decode_state.h"

static const char *state_word(enum seq_state state)
{
    switch (state) {
    case SEQ_FORKING: return "forking";
    case SEQ_WAITING: return "waiting";
    case SEQ_LOADING: return "loading";
    case SEQ_SWAPPING: return "swapping";
    case SEQ_GRANTED: return "granted";
    case SEQ_FENCING: return "fencing";
    case SEQ_READY: return "ready";
    case SEQ_RUNNING: return "running";
    case SEQ_LEAVING: return "leaving";
    case SEQ_ENDED: return "ended";
    case SEQ_STATE_COUNT: break;
    }
    return "?";
}

static void visit(const struct decode_core *core, const struct decode_seq *seq, inspect_fn visit_entry, void *user)
{
    const struct decode_leg *leg = seq->leg;
    struct inspect_entry entry = {
        .leg = leg->id,
        .router = leg->router,
        .sequence = leg->work.sequence_first + seq->index,
        .state = state_word(seq->state),
        .priority = leg->work.priority,
        .age_ns = core->now_ns > leg->birth_ns ? core->now_ns - leg->birth_ns : 0,
        .tokens = seq_total(seq),
        .tokens_computed = seq->computed,
        .tokens_cached = leg->cached_tokens,
        .block_count = seq->block_count - seq->block_first,
        .blocks = seq->blocks + seq->block_first,
    };
    visit_entry(user, &entry);
}

void decode_core_inspect(const struct decode_core *core, inspect_fn visit_entry, void *user)
{
    for (struct list_link *link = list_first(&core->legs); link != NULL; link = list_next(&core->legs, link)) {
        const struct decode_leg *leg = LIST_OWNER(link, struct decode_leg, link);
        for (uint32_t i = 0; i < leg->seq_count; i++) {
            if (leg->seqs[i].state != SEQ_ENDED) { visit(core, &leg->seqs[i], visit_entry, user); }
        }
    }
}

struct kv_cache_stats decode_core_cache_stats(const struct decode_core *core) { return kv_cache_stats(core->cache); }
