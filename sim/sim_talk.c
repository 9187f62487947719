/* sim_talk: requests that have something in common: turns of a conversation, shared prefixes.
 * Flow:    sim_plan.c draws a request -> [sim_talk] gives it the words of an earlier one
 *          an answer -> [sim_talk] -> the next turn is submitted
 *
 * A turn's prompt is its predecessor's prompt, its whole output and some more; a branch is a
 * prefix of the one or the other, cut anywhere, and then goes its own way. Some say the very same
 * once more. Most of them share the salt as well; where they do not, the same words must not meet. */
#include <string.h>

#include "base/check.h"
#include "sim/sim_world.h"

/* The conversation so far: prompt, and what sequence `s` said. Returns the count. */
static uint32_t said(const struct sim_request *request, uint32_t s, uint32_t *ret_tokens)
{
    memcpy(ret_tokens, request->prompt, request->prompt_count * sizeof *ret_tokens);
    memcpy(ret_tokens + request->prompt_count, request->expected[s], request->expected_count[s] * sizeof *ret_tokens);
    return request->prompt_count + request->expected_count[s];
}

/* In a named scenario: the request goes on where the one before ended, at_ns after its answer. */
void sim_talk_turn(struct sim_world *world, uint32_t index)
{
    struct sim_request *request = &world->requests[index];
    uint32_t words[2 * CONTEXT], count = said(&world->requests[index - 1], 0, words);
    CHECK(count + request->prompt_count < CONTEXT);
    memmove(request->prompt + count, request->prompt, request->prompt_count * sizeof *words);
    memcpy(request->prompt, words, count * sizeof *words);
    request->prompt_count += count;
    request->follows = index - 1;
    request->think_ns = request->arrival_ns;
}

void sim_talk_plan(struct sim_world *world, uint32_t index)
{
    struct sim_request *request = &world->requests[index];
    const struct sim_features *features = &world->features;
    if (features->has_salts && sim_chance(world, 150)) { request->cache_salt = sim_pick(world, 1, 2); }
    /* Short enough that something fits behind it. */
    if (request->prompt_count > CONTEXT / 3) { request->prompt_count = sim_pick(world, 1, CONTEXT / 3); }
    if (index == 0 || !sim_chance(world, features->talk_per_mille)) { return; }

    uint32_t before = sim_pick(world, 0, index - 1);
    const struct sim_request *earlier = &world->requests[before];
    uint32_t words[2 * CONTEXT], count = said(earlier, sim_pick(world, 0, earlier->params.n - 1), words);
    bool is_turn = count + 4 < CONTEXT && sim_chance(world, 600);
    if (!is_turn) { count = sim_chance(world, 200) ? earlier->prompt_count : sim_pick(world, 1, count); }
    uint32_t more = is_turn ? sim_pick(world, 1, 8) : sim_pick(world, 0, 8);
    if (count > CONTEXT - 4) { count = CONTEXT - 4; }
    if (more > CONTEXT - 2 - count) { more = CONTEXT - 2 - count; }
    for (uint32_t i = 0; i < more; i++) { words[count + i] = sim_pick(world, 0, VOCAB - 1); }
    request->prompt_count = count + more;
    CHECK(request->prompt_count < CONTEXT);
    memcpy(request->prompt, words, request->prompt_count * sizeof *words);
    if (sim_chance(world, 850)) { request->cache_salt = earlier->cache_salt; }
    if (sim_chance(world, 500)) { request->router = earlier->router; }
    if (!is_turn) { return; }
    request->follows = before;
    request->think_ns = rng_below(&world->rng, 40) * NS_PER_MS;
}

/* The request has its answer, or its client knows that none will come: those who waited for it
 * say their next words. */
void sim_talk_go_on(struct sim_world *world, uint32_t index)
{
    for (uint32_t i = 0; i < world->request_count; i++) {
        if (world->requests[i].follows != index || world->requests[i].is_submitted) { continue; }
        sim_submit_at(world, i, world->now_ns + world->requests[i].think_ns);
    }
}
