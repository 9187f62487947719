/* fragmentation: how much of a KV pool lies idle under a real trace, by how room is handed out, as JSON lines.
 *   fragmentation --trace=azure-llm-2023-conv.csv [--pool-tokens=N] [--block-tokens=16]
 *
 * The pool is the same for all: so many tokens. Requests arrive as in the trace, wait in a queue,
 * hold room from their admission to their last token, and gain one token a step once admitted.
 * paged    blocks of kv_pool, one more whenever a sequence outgrows its last: what Baton does
 * max      one run of neighbouring tokens a request, as long as the longest request of the trace
 * exact    the same, as long as this request will turn out to be: no server knows that beforehand
 * Idle is room that a request holds and has not filled (idle_held), and room that nobody holds although
 * a request waits (idle_free: too short for it, or kept back so that running ones can grow). It is
 * measured while somebody waits: a pool that nobody waits for wastes nothing. */
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/flags.h"
#include "kv/kv_pool.h"

#define REQUESTS_MAX 65536u
#define BLOCKS_OF_ONE_MAX 4096u

struct config {
    const char *trace;
    uint32_t pool_tokens, block_tokens, step_ms, requests;
};

#define AT(field) offsetof(struct config, field)
static const struct flag flags[] = {
    {"trace", FLAG_STRING, AT(trace), NULL, "FILE", "Azure LLM trace: TIMESTAMP,ContextTokens,GeneratedTokens.", 0, 0},
    {"pool-tokens", FLAG_U32, AT(pool_tokens), "65536", "tokens", "Size of the pool.", 16, 1u << 30},
    {"block-tokens", FLAG_U32, AT(block_tokens), "16", "tokens", "Size of a block.", 1, 1024},
    {"step-ms", FLAG_U32, AT(step_ms), "30", "ms", "Time of a step, in which every admitted sequence gains a token.", 1, 10000},
    {"requests", FLAG_U32, AT(requests), "4000", "N", "Rows of the trace that are used.", 1, REQUESTS_MAX},
};

struct request {
    double at_s;
    uint32_t prompt, total;
};

enum policy { PAGED, MAX, EXACT, POLICY_COUNT };
static const char *const policy_names[POLICY_COUNT] = {"paged", "max", "exact"};

struct running {
    const struct request *request;
    uint32_t tokens;
    uint32_t start, room;                      /* runs */
    uint32_t blocks[BLOCKS_OF_ONE_MAX], count; /* paged */
};

static struct request requests[REQUESTS_MAX];
static uint32_t request_count, longest;

static double seconds_of(const char *text)
{
    int hour = 0, minute = 0;
    double second = 0;
    if (sscanf(text, "%*d-%*d-%*d %d:%d:%lf", &hour, &minute, &second) != 3) { return -1; }
    return hour * 3600.0 + minute * 60.0 + second;
}

static bool read_trace(const struct config *config)
{
    FILE *file = fopen(config->trace, "r");
    if (!file) { return false; }
    char line[256];
    double first = -1;
    while (request_count < config->requests && fgets(line, sizeof line, file)) {
        const char *comma = strchr(line, ',');
        double at = seconds_of(line);
        uint32_t prompt, output;
        if (at < 0 || !comma || sscanf(comma + 1, "%u,%u", &prompt, &output) != 2 || output == 0) { continue; }
        if (first < 0) { first = at; }
        requests[request_count] = (struct request){at - first, prompt, prompt + output};
        if (prompt + output > longest) { longest = prompt + output; }
        request_count++;
    }
    fclose(file);
    return request_count > 0;
}

/* First fit: the lowest start of `room` free tokens between the runs, which are in order of start. */
static bool find_run(struct running *const *sorted, uint32_t count, uint32_t pool, uint32_t room, uint32_t *ret_start)
{
    uint32_t at = 0;
    for (uint32_t i = 0; i <= count; i++) {
        uint32_t end = i < count ? sorted[i]->start : pool;
        if (end - at >= room) {
            *ret_start = at;
            return true;
        }
        if (i < count) { at = sorted[i]->start + sorted[i]->room; }
    }
    return false;
}

struct tally {
    double idle_held, idle_free, filled; /* sums of shares of the pool over measured steps */
    uint64_t steps_measured, steps, running;
    uint32_t finished;
};

static uint32_t blocks_for(const struct config *config, uint32_t tokens)
{
    return (tokens + config->block_tokens - 1) / config->block_tokens;
}

static void simulate(const struct config *config, enum policy policy, bool prints_time, struct tally *t)
{
    struct kv_pool *pool = NULL;
    const uint32_t block_count = config->pool_tokens / config->block_tokens;
    CHECK(!failed(kv_pool_create(block_count, &pool)));
    struct running **running = calloc(request_count, sizeof *running); /* runs: in order of start */
    CHECK(running != NULL);
    uint32_t running_count = 0, next = 0;
    double now_s = 0;
    memset(t, 0, sizeof *t);
    while (t->finished < request_count) {
        /* Admission in order of arrival; the first who does not fit keeps the others waiting. */
        while (next < request_count && requests[next].at_s <= now_s) {
            const struct request *r = &requests[next];
            uint32_t room = policy == MAX ? longest : r->total, start = 0;
            struct running *one = calloc(1, sizeof *one);
            CHECK(one != NULL);
            *one = (struct running){.request = r, .tokens = r->prompt, .room = room};
            if (policy == PAGED) {
                one->count = blocks_for(config, r->prompt + 1);
                CHECK(one->count <= BLOCKS_OF_ONE_MAX);
                /* One block a running sequence is kept back for growth, so that few have to give way. */
                if (kv_pool_free_count(pool) < one->count + running_count ||
                    failed(kv_pool_reserve(pool, one->count, one->blocks))) {
                    free(one);
                    break;
                }
                running[running_count++] = one;
            } else {
                if (!find_run(running, running_count, config->pool_tokens, room, &start)) {
                    free(one);
                    break;
                }
                one->start = start;
                uint32_t i = running_count++;
                while (i > 0 && running[i - 1]->start > start) {
                    running[i] = running[i - 1];
                    i--;
                }
                running[i] = one;
            }
            next++;
        }
        bool somebody_waits = next < request_count && requests[next].at_s <= now_s;
        uint64_t filled = 0, held = 0;
        for (uint32_t i = 0; i < running_count; i++) {
            filled += running[i]->tokens;
            held += policy == PAGED ? (uint64_t)running[i]->count * config->block_tokens : running[i]->room;
        }
        if (somebody_waits && running_count > 0) {
            t->idle_held += (double)(held - filled) / config->pool_tokens;
            t->idle_free += (double)(config->pool_tokens - held) / config->pool_tokens;
            t->filled += (double)filled / config->pool_tokens;
            t->running += running_count;
            t->steps_measured++;
        }
        if (prints_time && t->steps % 400 == 0) {
            printf("{\"bench\":\"fragmentation_time\",\"policy\":\"%s\",\"seconds\":%.1f,\"filled\":%.4f,\"held\":%.4f,\"running\":%u}\n",
                   policy_names[policy], now_s, (double)filled / config->pool_tokens, (double)held / config->pool_tokens,
                   running_count);
        }
        /* One step: everybody gains a token; who has all leaves. A sequence whose block is not to be
         * had waits for the next step with what it holds. */
        uint32_t kept = 0;
        for (uint32_t i = 0; i < running_count; i++) {
            struct running *one = running[i];
            bool grows = true;
            if (policy == PAGED && blocks_for(config, one->tokens + 1) > one->count) {
                CHECK(one->count < BLOCKS_OF_ONE_MAX);
                grows = !failed(kv_pool_reserve(pool, 1, &one->blocks[one->count]));
                one->count += grows;
            }
            one->tokens += grows;
            if (one->tokens >= one->request->total) {
                if (policy == PAGED) { kv_pool_release(pool, one->count, one->blocks); }
                free(one);
                t->finished++;
            } else {
                running[kept++] = one;
            }
        }
        running_count = kept;
        t->steps++;
        now_s += config->step_ms / 1e3;
        CHECK(t->steps < 100000000u);
    }
    kv_pool_audit(pool, NULL);
    kv_pool_destroy(pool);
    free(running);
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
        flags_print_help(flags, count, "fragmentation --trace=FILE [flags]", stdout);
        return 0;
    }
    if (!config.trace || !read_trace(&config)) {
        fprintf(stderr, "--trace=%s: no request could be read\n", config.trace ? config.trace : "");
        return 1;
    }
    if (longest >= config.pool_tokens || longest / config.block_tokens + 2 > BLOCKS_OF_ONE_MAX) {
        fprintf(stderr, "the longest request has %u tokens, which --pool-tokens=%u cannot hold\n", longest, config.pool_tokens);
        return 1;
    }
    for (enum policy policy = PAGED; policy < POLICY_COUNT; policy++) {
        struct tally t;
        simulate(&config, policy, true, &t);
        double steps = t.steps_measured ? (double)t.steps_measured : 1;
        printf("{\"bench\":\"fragmentation\",\"policy\":\"%s\",\"pool_tokens\":%u,\"block_tokens\":%u,\"requests\":%u,\"longest\":%u,"
               "\"idle_held\":%.4f,\"idle_free\":%.4f,\"filled\":%.4f,\"running_mean\":%.1f,\"steps\":%llu,\"steps_measured\":%llu,"
               "\"seconds\":%.1f}\n",
               policy_names[policy], config.pool_tokens, config.block_tokens, request_count, longest, t.idle_held / steps,
               t.idle_free / steps, t.filled / steps, (double)t.running / steps, (unsigned long long)t.steps,
               (unsigned long long)t.steps_measured, (double)t.steps * config.step_ms / 1e3);
    }
    return 0;
}
