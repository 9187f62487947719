/* prefix_hits: what a prefix cache finds again in a public trace, by its size and by turn, as JSON lines.
 *   prefix_hits --trace=mooncake-conversation.jsonl
 *
 * The trace names each 512 tokens of a prompt by an id, equal ids meaning equal text up to there. Each
 * request goes through kv_cache as a node would do it: take what is found from the first block on,
 * reserve the rest, publish it, release. One block here is one id, so sizes are in tokens / 512.
 * Requests go one after the other: while many run at once their blocks are held, and a small cache
 * finds a little less than what is shown.
 *
 * A request's turn is one more than that of the request which first had its last known id; ids that
 * follow the trace's common beginning (one block or less) make no turn. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/flags.h"
#include "kv/kv_cache.h"

#define ID_TOKENS 512u
#define IDS_MAX (1u << 20)
#define BLOCKS_OF_ONE_MAX 4096u
#define TURNS_MAX 16u

struct config {
    const char *trace;
};

static const struct flag flags[] = {
    {"trace", FLAG_STRING, offsetof(struct config, trace), NULL, "FILE", "Mooncake trace.", 0, 0},
};

struct request {
    uint32_t tokens, count, turn;
    uint32_t *ids;
};

static struct request *requests;
static uint32_t request_count, turn_of_id[IDS_MAX];

static void read_trace(FILE *file)
{
    char *line = NULL;
    size_t capacity = 0;
    uint32_t room = 0;
    while (getline(&line, &capacity, file) > 0) {
        const char *length = strstr(line, "\"input_length\":"), *at = strstr(line, "\"hash_ids\": [");
        if (!length || !at) { continue; }
        uint32_t ids[BLOCKS_OF_ONE_MAX], count = 0;
        at += strlen("\"hash_ids\": [");
        for (char *end; count < BLOCKS_OF_ONE_MAX && (ids[count] = (uint32_t)strtoul(at, &end, 10), end != at); count++) {
            at = end + (*end == ',');
        }
        if (count == 0) { continue; }
        if (request_count == room) {
            room = room ? room * 2 : 1024;
            requests = realloc(requests, room * sizeof *requests);
            CHECK(requests != NULL);
        }
        struct request *r = &requests[request_count++];
        *r = (struct request){.tokens = (uint32_t)strtoul(length + strlen("\"input_length\":"), NULL, 10), .count = count};
        r->ids = malloc(count * sizeof *r->ids);
        CHECK(r->ids != NULL);
        memcpy(r->ids, ids, count * sizeof *ids);
        uint32_t known = 0;
        for (uint32_t i = 0; i < r->count; i++) {
            CHECK(r->ids[i] < IDS_MAX);
            if (known == i && turn_of_id[r->ids[i]] != 0) { known = i + 1; }
        }
        r->turn = known > 1 ? turn_of_id[r->ids[known - 1]] + 1 : 1;
        for (uint32_t i = known; i < r->count; i++) { turn_of_id[r->ids[i]] = r->turn; }
    }
    free(line);
}

/* Tokens of the first `count` blocks: the last id of a prompt stands for what is left of it. */
static uint64_t tokens_of(const struct request *r, uint32_t count)
{
    uint64_t tokens = (uint64_t)count * ID_TOKENS;
    return tokens < r->tokens ? tokens : r->tokens;
}

static void replay(uint32_t block_count)
{
    static uint32_t table[BLOCKS_OF_ONE_MAX];
    static struct kv_hash names[BLOCKS_OF_ONE_MAX];
    struct kv_cache *cache = NULL;
    const struct kv_cache_config config = {.block_count = block_count, .is_enabled = true};
    CHECK(!failed(kv_cache_create(&config, &cache)));
    uint64_t asked = 0, found = 0, turn_asked[TURNS_MAX + 1] = {0}, turn_found[TURNS_MAX + 1] = {0};
    uint32_t turn_requests[TURNS_MAX + 1] = {0}, refused = 0;
    for (uint32_t i = 0; i < request_count; i++) {
        const struct request *r = &requests[i];
        uint32_t hit = 0;
        struct kv_hash parent = kv_hash_root(0);
        for (uint32_t k = 0; k < r->count; k++) { parent = names[k] = kv_hash_next(parent, &r->ids[k], 1); }
        while (hit < r->count && kv_cache_take(cache, names[hit], &table[hit])) { hit++; }
        uint32_t turn = r->turn < TURNS_MAX ? r->turn : TURNS_MAX;
        asked += r->tokens;
        found += tokens_of(r, hit);
        turn_asked[turn] += r->tokens;
        turn_found[turn] += tokens_of(r, hit);
        turn_requests[turn]++;
        if (failed(kv_cache_reserve(cache, r->count - hit, table + hit))) {
            kv_cache_release(cache, hit, table);
            refused++;
            continue;
        }
        for (uint32_t k = hit; k < r->count; k++) {
            kv_cache_publish(cache, table[k], names[k], k > 0 ? names[k - 1] : kv_hash_root(0));
        }
        kv_cache_release(cache, r->count, table);
    }
    kv_cache_audit(cache, NULL);
    printf("{\"bench\":\"prefix_hits\",\"cache_tokens\":%llu,\"requests\":%u,\"refused\":%u,\"asked_tokens\":%llu,\"found_tokens\":%llu,\"hit_rate\":%.4f}\n",
           (unsigned long long)block_count * ID_TOKENS, request_count, refused, (unsigned long long)asked,
           (unsigned long long)found, (double)found / (double)asked);
    for (uint32_t turn = 1; turn <= TURNS_MAX; turn++) {
        if (turn_asked[turn] == 0) { continue; }
        printf("{\"bench\":\"prefix_turn\",\"cache_tokens\":%llu,\"turn\":%u,\"requests\":%u,\"prompt_tokens\":%.0f,\"hit_rate\":%.4f}\n",
               (unsigned long long)block_count * ID_TOKENS, turn, turn_requests[turn],
               (double)turn_asked[turn] / turn_requests[turn], (double)turn_found[turn] / (double)turn_asked[turn]);
    }
    kv_cache_destroy(cache);
}

int main(int argc, char **argv)
{
    struct config config;
    struct diag diag = {{0}};
    bool wants_help = false;
    const size_t count = sizeof flags / sizeof flags[0];
    if (failed(flags_parse(flags, count, &config, argc, argv, NULL, NULL, &wants_help, &diag))) {
        fprintf(stderr, "%s\n", diag.text);
        return 2;
    }
    if (wants_help) {
        flags_print_help(flags, count, "prefix_hits --trace=FILE", stdout);
        return 0;
    }
    FILE *file = config.trace ? fopen(config.trace, "r") : NULL;
    if (!file) {
        fprintf(stderr, "--trace=%s cannot be opened\n", config.trace ? config.trace : "");
        return 1;
    }
    read_trace(file);
    fclose(file);
    for (uint32_t blocks = 512; blocks <= 131072; blocks *= 2) { replay(blocks); }
    for (uint32_t i = 0; i < request_count; i++) { free(requests[i].ids); }
    free(requests);
    return 0;
}
