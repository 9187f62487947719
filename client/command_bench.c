/* baton bench: puts load on a router and reports TTFT, TPOT, ITL and goodput.
 *
 * Closed loop (--concurrency): so many requests are open at any time. Open loop (--rate, or
 * --trace): requests leave when it is their time, whether or not earlier ones have come back;
 * only that shows what a queue does. */
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/bench_stats.h"
#include "client/connect_flags.h"
#include "client/message_depth.h"
#include "client/workload.h"
#include "proto/baton/v1/inference.pb-c.h"
#include "rpc/rpc.h"

struct bench_config {
    struct connect_flags connect;
    const char *trace;
    uint32_t requests, concurrency, input_tokens, output_tokens, input_max;
    float rate, length_scale, time_scale, temperature;
    uint64_t seed, slo_ttft_ns, slo_tpot_ns, timeout_ns;
    bool json, stop_at_eos;
};

static const struct flag bench_flags[] = {
    CONNECT_FLAGS(offsetof(struct bench_config, connect)),
    {"requests", FLAG_U32, offsetof(struct bench_config, requests), "64", "N", "Requests in all; with --trace at most so many lines, 0: all.", 0, 0},
    {"concurrency", FLAG_U32, offsetof(struct bench_config, concurrency), "8", "N", "Closed loop: requests open at once.", 1, 100000},
    {"rate", FLAG_F32, offsetof(struct bench_config, rate), "0", "X", "Open loop: requests per second with exponential gaps.", 0, 0},
    {"trace", FLAG_STRING, offsetof(struct bench_config, trace), NULL, "FILE", "Open loop: a Mooncake-format JSONL trace.", 0, 0},
    {"length-scale", FLAG_F32, offsetof(struct bench_config, length_scale), "1", "X", "--trace: multiplies all lengths.", 0, 0},
    {"time-scale", FLAG_F32, offsetof(struct bench_config, time_scale), "1", "X", "--trace: 2 sends twice as fast.", 0, 0},
    {"input-max", FLAG_U32, offsetof(struct bench_config, input_max), "0", "tokens", "--trace: cuts longer prompts; 0: to what the context has room for.", 0, 0},
    {"input-tokens", FLAG_U32, offsetof(struct bench_config, input_tokens), "128", "tokens", "Prompt length.", 1, 10000000},
    {"output-tokens", FLAG_U32, offsetof(struct bench_config, output_tokens), "32", "tokens", "Output length.", 1, 10000000},
    {"temperature", FLAG_F32, offsetof(struct bench_config, temperature), "0", "X", "Sampling temperature.", 0, 0},
    {"stop-at-eos", FLAG_BOOL, offsetof(struct bench_config, stop_at_eos), NULL, NULL, "Let the model's end tokens end an output.", 0, 0},
    {"seed", FLAG_U64, offsetof(struct bench_config, seed), "1", "N", "Of prompts and arrivals.", 0, 0},
    {"slo-ttft", FLAG_DURATION, offsetof(struct bench_config, slo_ttft_ns), "1s", "TIME", "Limit for goodput.", 0, 0},
    {"slo-tpot", FLAG_DURATION, offsetof(struct bench_config, slo_tpot_ns), "100ms", "TIME", "Limit for goodput.", 0, 0},
    {"timeout", FLAG_DURATION, offsetof(struct bench_config, timeout_ns), "600s", "TIME", "Deadline of each request.", 0, 0},
    {"json", FLAG_BOOL, offsetof(struct bench_config, json), NULL, NULL, "One JSON object.", 0, 0},
};

struct bench;

struct flight {
    struct bench *bench;
    uint32_t index;
    struct flight *next_free;
    struct rpc_call *call;
    uint64_t start_ns, first_ns, last_ns;
    uint32_t tokens;
};

struct bench {
    const struct bench_config *config;
    struct workload workload;
    struct rpc_channel *channel;
    uint32_t vocab_size;
    pthread_mutex_t mutex; /* guards everything below */
    pthread_cond_t landed;
    struct samples ttft_ms, tpot_ms, itl_ms, e2e_ms;
    uint64_t input_tokens, output_tokens;
    uint32_t open, finished, good, failures[17];
    char first_failure[512];
};

static void on_message(void *user, struct rpc_call *call, const uint8_t *bytes, size_t len)
{
    (void)call;
    struct flight *flight = user;
    uint64_t now_ns = clock_now_ns();
    struct diag diag = {{0}};
    ProtobufCMessage *message;
    status_t st = message_unpack_shallow(&baton__v1__generate_response__descriptor, bytes, len, &message, &diag);
    if (failed(st)) { return; }
    uint32_t count = (uint32_t)((const Baton__V1__GenerateResponse *)message)->n_token_ids;
    protobuf_c_message_free_unpacked(message, NULL);
    if (count == 0) { return; }
    if (flight->tokens > 0) {
        pthread_mutex_lock(&flight->bench->mutex);
        samples_add(&flight->bench->itl_ms, (double)(now_ns - flight->last_ns) * 1e-6);
        pthread_mutex_unlock(&flight->bench->mutex);
    } else {
        flight->first_ns = now_ns;
    }
    flight->last_ns = now_ns;
    flight->tokens += count;
}

static void on_done(void *user, struct rpc_call *call, const struct rpc_outcome *outcome)
{
    (void)call;
    struct flight *flight = user;
    struct bench *bench = flight->bench;
    const struct workload_request *request = &bench->workload.requests[flight->index];
    pthread_mutex_lock(&bench->mutex);
    bench->open--;
    bench->finished++;
    if (outcome->code == ST_OK && flight->tokens > 0) {
        double ttft_ms = (double)(flight->first_ns - flight->start_ns) * 1e-6;
        double tpot_ms = flight->tokens > 1 ? (double)(flight->last_ns - flight->first_ns) * 1e-6 / (flight->tokens - 1) : 0;
        samples_add(&bench->ttft_ms, ttft_ms);
        if (flight->tokens > 1) { samples_add(&bench->tpot_ms, tpot_ms); }
        samples_add(&bench->e2e_ms, (double)(flight->last_ns - flight->start_ns) * 1e-6);
        bench->input_tokens += request->input_tokens;
        bench->output_tokens += flight->tokens;
        bench->good += ttft_ms <= (double)bench->config->slo_ttft_ns * 1e-6 &&
                       tpot_ms <= (double)bench->config->slo_tpot_ns * 1e-6;
    } else {
        bench->failures[outcome->code < 17 ? outcome->code : 2]++;
        if (bench->first_failure[0] == '\0') {
            snprintf(bench->first_failure, sizeof bench->first_failure, "%s: %s", status_code_name(outcome->code),
                     outcome->message);
        }
    }
    pthread_cond_signal(&bench->landed);
    pthread_mutex_unlock(&bench->mutex);
    free(flight);
}

static const struct rpc_callbacks callbacks = {.on_message = on_message, .on_done = on_done};

static status_t take_off(struct bench *bench, uint32_t index, struct diag *diag)
{
    const struct workload_request *request = &bench->workload.requests[index];
    struct flight *flight = calloc(1, sizeof *flight);
    uint32_t *tokens = malloc(request->input_tokens * sizeof *tokens);
    if (!flight || !tokens) {
        free(flight);
        free(tokens);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    workload_prompt(&bench->workload, index, bench->vocab_size, tokens);
    Baton__V1__GenerateRequest message = BATON__V1__GENERATE_REQUEST__INIT;
    Baton__V1__TokenIds ids = BATON__V1__TOKEN_IDS__INIT;
    Baton__V1__SamplingParams sampling = BATON__V1__SAMPLING_PARAMS__INIT;
    Baton__V1__UInt max_tokens = BATON__V1__UINT__INIT;
    Baton__V1__Float temperature = BATON__V1__FLOAT__INIT;
    Baton__V1__Seed seed = BATON__V1__SEED__INIT;
    ids.n_ids = request->input_tokens;
    ids.ids = tokens;
    message.prompt_case = BATON__V1__GENERATE_REQUEST__PROMPT_TOKENS;
    message.tokens = &ids;
    message.sampling = &sampling;
    max_tokens.value = request->output_tokens;
    sampling.max_tokens = &max_tokens;
    sampling.ignore_eos = !bench->config->stop_at_eos;
    temperature.value = bench->config->temperature;
    sampling.temperature = &temperature;
    seed.value = bench->config->seed + index;
    sampling.seed = &seed;
    size_t len = baton__v1__generate_request__get_packed_size(&message);
    uint8_t *bytes = malloc(len);
    if (!bytes) {
        free(flight);
        free(tokens);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    baton__v1__generate_request__pack(&message, bytes);
    free(tokens);
    flight->bench = bench;
    flight->index = index;
    pthread_mutex_lock(&bench->mutex);
    bench->open++;
    pthread_mutex_unlock(&bench->mutex);
    flight->start_ns = clock_now_ns();
    struct rpc_call_options options = {.method = "/baton.v1.Inference/Generate",
                                       .deadline_ns = flight->start_ns + bench->config->timeout_ns,
                                       .callbacks = &callbacks, .user = flight};
    struct rpc_call *call;
    status_t st = rpc_channel_call(bench->channel, &options, &call, diag);
    if (failed(st)) { /* no on_done will come for it */
        pthread_mutex_lock(&bench->mutex);
        bench->open--;
        pthread_mutex_unlock(&bench->mutex);
        free(bytes);
        free(flight);
        return st;
    }
    st = rpc_call_send(call, bytes, len);
    free(bytes);
    if (failed(st)) { rpc_call_cancel(call); } else { rpc_call_half_close(call); }
    rpc_call_unref(call);
    return STATUS_OK;
}

static void show_progress(struct bench *bench, uint64_t start_ns, bool last)
{
    static uint64_t shown_ns;
    uint64_t now_ns = clock_now_ns();
    if (!isatty(STDERR_FILENO) || (!last && now_ns - shown_ns < 200 * NS_PER_MS)) { return; }
    shown_ns = now_ns;
    fprintf(stderr, "\r%u of %u requests, %u open, %.1f s %s", bench->finished, bench->workload.count, bench->open,
            (double)(now_ns - start_ns) * 1e-9, last ? "\n" : "");
}

/* Waits for a landing, or until `until_ns`. With the mutex held. */
static void wait_landing(struct bench *bench, uint64_t until_ns)
{
    struct timespec until = {.tv_sec = (time_t)(until_ns / NS_PER_S), .tv_nsec = (long)(until_ns % NS_PER_S)};
    pthread_cond_timedwait(&bench->landed, &bench->mutex, &until);
}

static status_t fly(struct bench *bench, struct diag *diag)
{
    bool is_open_loop = bench->config->trace != NULL || bench->config->rate > 0;
    uint64_t start_ns = clock_now_ns();
    uint32_t next = 0;
    status_t st = STATUS_OK;
    for (;;) {
        uint64_t now_ns = clock_now_ns();
        bool may_go = next < bench->workload.count && !failed(st);
        pthread_mutex_lock(&bench->mutex);
        show_progress(bench, start_ns, false);
        if (!may_go && bench->open == 0) { pthread_mutex_unlock(&bench->mutex); break; }
        uint64_t wake_ns = now_ns + 200 * NS_PER_MS;
        if (may_go && is_open_loop) {
            uint64_t at_ns = start_ns + bench->workload.requests[next].at_ns;
            may_go = at_ns <= now_ns;
            if (!may_go && at_ns < wake_ns) { wake_ns = at_ns; }
        } else if (may_go) {
            may_go = bench->open < bench->config->concurrency;
        }
        if (!may_go) { wait_landing(bench, wake_ns); }
        pthread_mutex_unlock(&bench->mutex);
        if (may_go) { st = take_off(bench, next++, diag); }
    }
    show_progress(bench, start_ns, true);
    return st;
}

static json_t *report(struct bench *bench, double seconds)
{
    json_t *object = json_object();
    json_t *failures = json_object();
    uint32_t failed_count = 0;
    for (unsigned i = 0; i < 17; i++) {
        if (bench->failures[i] == 0) { continue; }
        failed_count += bench->failures[i];
        json_object_set_new(failures, status_code_name((uint8_t)i), json_integer(bench->failures[i]));
    }
    json_object_set_new(object, "requests", json_integer(bench->finished));
    json_object_set_new(object, "ok", json_integer(bench->finished - failed_count));
    json_object_set_new(object, "failures", failures);
    if (bench->first_failure[0]) { json_object_set_new(object, "first_failure", json_string(bench->first_failure)); }
    json_object_set_new(object, "seconds", json_real(seconds));
    json_object_set_new(object, "input_tokens_per_s", json_real((double)bench->input_tokens / seconds));
    json_object_set_new(object, "output_tokens_per_s", json_real((double)bench->output_tokens / seconds));
    json_object_set_new(object, "requests_per_s", json_real((bench->finished - failed_count) / seconds));
    json_object_set_new(object, "goodput_requests_per_s", json_real(bench->good / seconds));
    json_object_set_new(object, "goodput_share", json_real(bench->finished ? (double)bench->good / bench->finished : 0));
    json_object_set_new(object, "ttft_ms", samples_json(&bench->ttft_ms));
    json_object_set_new(object, "tpot_ms", samples_json(&bench->tpot_ms));
    json_object_set_new(object, "itl_ms", samples_json(&bench->itl_ms));
    json_object_set_new(object, "e2e_ms", samples_json(&bench->e2e_ms));
    return object;
}

static void print_row(const char *name, const json_t *object)
{
    printf("%-8s", name);
    const char *keys[] = {"p50", "p90", "p99", "mean", "max"};
    for (unsigned i = 0; i < 5; i++) { printf(" %10.2f", json_number_value(json_object_get(object, keys[i]))); }
    putchar('\n');
}

static void print_text(const json_t *object, const struct bench_config *config)
{
    printf("requests %d, ok %d, %.2f s\n", (int)json_integer_value(json_object_get(object, "requests")),
           (int)json_integer_value(json_object_get(object, "ok")), json_number_value(json_object_get(object, "seconds")));
    const char *failure = json_string_value(json_object_get(object, "first_failure"));
    if (failure) { printf("first failure: %s\n", failure); }
    printf("tokens/s %.1f in, %.1f out; requests/s %.2f; goodput %.2f/s (%.0f %%) at TTFT %.0f ms, TPOT %.0f ms\n",
           json_number_value(json_object_get(object, "input_tokens_per_s")),
           json_number_value(json_object_get(object, "output_tokens_per_s")),
           json_number_value(json_object_get(object, "requests_per_s")),
           json_number_value(json_object_get(object, "goodput_requests_per_s")),
           100 * json_number_value(json_object_get(object, "goodput_share")), (double)config->slo_ttft_ns * 1e-6,
           (double)config->slo_tpot_ns * 1e-6);
    printf("%-8s %10s %10s %10s %10s %10s\n", "ms", "p50", "p90", "p99", "mean", "max");
    print_row("TTFT", json_object_get(object, "ttft_ms"));
    print_row("TPOT", json_object_get(object, "tpot_ms"));
    print_row("ITL", json_object_get(object, "itl_ms"));
    print_row("E2E", json_object_get(object, "e2e_ms"));
}

static status_t make_workload(const struct bench_config *config, uint32_t context_tokens, struct workload *ret,
                              struct diag *diag)
{
    if (!config->trace) {
        if ((uint64_t)config->input_tokens + config->output_tokens > context_tokens) {
            diag_set(diag, "--input-tokens=%u and --output-tokens=%u: the model's context has room for %u",
                     config->input_tokens, config->output_tokens, context_tokens);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
        }
        return workload_uniform(config->requests, config->input_tokens, config->output_tokens, (double)config->rate,
                                config->seed, ret);
    }
    if (!(config->length_scale > 0) || !(config->time_scale > 0)) {
        diag_set(diag, "--length-scale and --time-scale must be greater than 0");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    uint32_t input_max = config->input_max > 0 && config->input_max < context_tokens ? config->input_max : context_tokens - 1;
    TRY(workload_read_trace(config->trace, (double)config->length_scale, (double)config->time_scale, config->requests,
                            input_max, config->seed, ret, diag));
    for (uint32_t i = 0; i < ret->count; i++) {
        uint32_t room = context_tokens - ret->requests[i].input_tokens;
        if (ret->requests[i].output_tokens > room) { ret->requests[i].output_tokens = room; }
    }
    return STATUS_OK;
}

int command_bench(int argc, char **argv)
{
    struct bench_config config;
    int exit_status;
    if (!command_flags(bench_flags, sizeof bench_flags / sizeof bench_flags[0],
                       "baton bench --router=H:P [--concurrency=N | --rate=X | --trace=FILE] [--json]", &config, argc,
                       argv, &exit_status)) {
        return exit_status;
    }
    struct diag diag = {{0}};
    struct api *api = NULL;
    struct bench bench = {.config = &config};
    Baton__V1__GetModelRequest request = BATON__V1__GET_MODEL_REQUEST__INIT;
    ProtobufCMessage *message = NULL;
    status_t st = connect_open(&config.connect, &api, &diag);
    if (!failed(st)) {
        st = api_unary(api, "/baton.v1.Inference/GetModel", &request.base, &baton__v1__get_model_response__descriptor,
                       10 * NS_PER_S, &message, &diag);
    }
    if (!failed(st)) {
        const Baton__V1__GetModelResponse *model = (const Baton__V1__GetModelResponse *)message;
        bench.vocab_size = model->vocab_size;
        if (model->vocab_size == 0 || model->context_tokens < 2) { /* from the network: prompts are made of it */
            diag_set(&diag, "the router says its model has %u tokens and a context of %u; is it another version?",
                     model->vocab_size, model->context_tokens);
            st = STATUS(ST_DATA_LOSS, SCOPE_PEER);
        }
        if (!failed(st)) { st = make_workload(&config, model->context_tokens, &bench.workload, &diag); }
        protobuf_c_message_free_unpacked(message, NULL);
    }
    if (failed(st)) {
        api_close(api);
        return command_fail("bench", st, &diag);
    }
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&bench.mutex, NULL);
    pthread_cond_init(&bench.landed, &attr);
    pthread_condattr_destroy(&attr);
    bench.channel = api_channel(api);
    uint64_t start_ns = clock_now_ns();
    st = fly(&bench, &diag);
    double seconds = (double)(clock_now_ns() - start_ns) * 1e-9;
    api_close(api); /* after the last on_done */
    json_t *object = report(&bench, seconds);
    if (config.json) {
        json_dumpf(object, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        print_text(object, &config);
    }
    bool all_ok = json_object_size(json_object_get(object, "failures")) == 0;
    json_decref(object);
    samples_fini(&bench.ttft_ms);
    samples_fini(&bench.tpot_ms);
    samples_fini(&bench.itl_ms);
    samples_fini(&bench.e2e_ms);
    workload_fini(&bench.workload);
    pthread_cond_destroy(&bench.landed);
    pthread_mutex_destroy(&bench.mutex);
    if (failed(st)) { return command_fail("bench", st, &diag); }
    return all_ok ? 0 : 1;
}
