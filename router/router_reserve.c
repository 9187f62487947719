/* router_reserve: what a decode node's RESERVED means for its leg.
 * Flow:    RESERVED -> [router_reserve] -> PREFILL, or nothing more: the decode node computes it
 * Thread:  the router's core thread.
 * Memory:  none of its own.
 *
 * A reservation that does not fit what was asked is a broken node's: it loses the leg, and the
 * request goes on elsewhere. */
#include <stdio.h>
#include <string.h>

#include "router/router_state.h"

/* NULL: nothing is wrong. */
static const char *wrong_in(const struct router_core *core, const struct leg *leg, const struct ctl_reserved *reserved)
{
    uint32_t total = router_leg_tokens(leg);
    /* Somebody must compute at least one token: nothing could be sampled otherwise. */
    if (reserved->cached_tokens >= total) { return "a decode node has more of the prompt cached than there is"; }
    if (reserved->is_local) {
        bool was_asked = leg->local || leg->local_max_tokens > 0;
        return was_asked ? NULL : "a decode node computes a prompt that it was not asked to";
    }
    uint32_t block_tokens = core->nodes[leg->decode_node].block_tokens;
    if (reserved->grant_first > (total - 1) / (block_tokens > 0 ? block_tokens : 1)) {
        return "a decode node's grant begins after the prompt";
    }
    if (reserved->ticket_bytes == 0 || reserved->ticket_bytes > TICKET_BYTES_MAX) {
        return "a decode node sent a ticket of an impossible size";
    }
    return NULL;
}

void router_reserved(struct router_core *core, uint32_t node, const struct ctl_reserved *reserved)
{
    struct leg *leg = router_leg_find(core, reserved->leg);
    bool is_awaited = leg && leg->decode_node == node && leg->phase == LEG_RESERVING && (reserved->is_local || !leg->local);
    if (!is_awaited) { core->stats.late_messages++; return; }
    const char *wrong = wrong_in(core, leg, reserved);
    if (wrong) { router_leg_take_back(core, leg, wrong); return; }
    struct request *request = leg->request;
    core->stats.cache_tokens_asked += router_leg_tokens(leg);
    core->stats.cache_tokens_guessed += leg->guessed_tokens;
    core->stats.cache_tokens_found += reserved->cached_tokens;
    router_cache_prompt_is_at(core, leg, node);
    leg->is_known_there = true;
    if (request->sequences[leg->sequence_first].output_count == 0) {
        request->route.cached_prompt_tokens = reserved->cached_tokens;
    }
    if (reserved->is_local) {
        leg->local = true;
        leg->phase = LEG_DECODING;
        snprintf(request->cable, sizeof request->cable, "local");
        return;
    }
    leg->grant_first = reserved->grant_first;
    leg->ticket_bytes = reserved->ticket_bytes;
    memcpy(leg->ticket, reserved->ticket, reserved->ticket_bytes);
    router_leg_prefill(core, leg);
}
