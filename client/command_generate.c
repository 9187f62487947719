/* baton generate: continues one prompt and shows what came of it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "client/answer.h"
#include "client/connect_flags.h"
#include "client/sampling_flags.h"
#include "client/sharing_flags.h"
#include "client/text_file.h"

struct generate_config {
    struct connect_flags connect;
    struct sampling_flags sampling;
    struct sharing_flags sharing;
    const char *prompt, *prompt_file, *tokens;
    uint64_t timeout_ns;
    bool no_special_tokens, json, quiet, wait;
};

static const struct flag generate_flags[] = {
    CONNECT_FLAGS(offsetof(struct generate_config, connect)),
    {"prompt", FLAG_STRING, offsetof(struct generate_config, prompt), NULL, "TEXT", "The text to continue.", 0, 0},
    {"prompt-file", FLAG_STRING, offsetof(struct generate_config, prompt_file), NULL, "FILE", "The same from a file; - is standard input.", 0, 0},
    {"tokens", FLAG_STRING, offsetof(struct generate_config, tokens), NULL, "1,2,3", "The same as token ids, taken as they are.", 0, 0},
    {"no-special-tokens", FLAG_BOOL, offsetof(struct generate_config, no_special_tokens), NULL, NULL, "Do not put BOS and the like around the text.", 0, 0},
    SAMPLING_FLAGS(offsetof(struct generate_config, sampling)),
    SHARING_FLAGS(offsetof(struct generate_config, sharing)),
    {"timeout", FLAG_DURATION, offsetof(struct generate_config, timeout_ns), "0s", "TIME", "Deadline of the request; 0s: none.", 0, 0},
    {"wait", FLAG_BOOL, offsetof(struct generate_config, wait), NULL, NULL, "Wait for the router to come up.", 0, 0},
    {"json", FLAG_BOOL, offsetof(struct generate_config, json), NULL, NULL, "One JSON object instead of text.", 0, 0},
    {"quiet", FLAG_BOOL, offsetof(struct generate_config, quiet), NULL, NULL, "Text only, not where it ran.", 0, 0},
};

static status_t build_prompt(const struct generate_config *config, Baton__V1__GenerateRequest *request,
                             Baton__V1__TokenIds *tokens, char **ret_text, struct diag *diag)
{
    int given = (config->prompt != NULL) + (config->prompt_file != NULL) + (config->tokens != NULL);
    if (given != 1) {
        diag_set(diag, "give exactly one of --prompt, --prompt-file and --tokens");
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
    }
    if (config->tokens) {
        request->prompt_case = BATON__V1__GENERATE_REQUEST__PROMPT_TOKENS;
        request->tokens = tokens;
        return token_list_parse(config->tokens, "tokens", &tokens->ids, &tokens->n_ids, diag);
    }
    request->prompt_case = BATON__V1__GENERATE_REQUEST__PROMPT_TEXT;
    if (config->prompt_file) {
        size_t len;
        TRY(text_file_read(config->prompt_file, ret_text, &len, diag));
        if (strlen(*ret_text) != len) {
            diag_set(diag, "%s: has a zero byte, which no prompt may", config->prompt_file);
            return STATUS(ST_INVALID_ARGUMENT, SCOPE_REQUEST);
        }
    } else {
        *ret_text = strdup(config->prompt);
    }
    request->text = *ret_text;
    return STATUS_OK;
}

static status_t run(struct generate_config *config, const Baton__V1__GenerateRequest *request, struct answer *answer,
                    struct diag *diag)
{
    struct api *api;
    TRY(connect_open(&config->connect, &api, diag));
    answer->start_ns = clock_now_ns();
    uint64_t deadline_ns = config->timeout_ns > 0 ? answer->start_ns + config->timeout_ns : UINT64_MAX;
    struct api_call *call = NULL;
    status_t st = api_call_start(api, "/baton.v1.Inference/Generate", &request->base, deadline_ns, config->wait, &call, diag);
    if (!failed(st)) { st = answer_read(answer, call, diag); }
    api_call_end(call);
    api_close(api);
    return st;
}

int command_generate(int argc, char **argv)
{
    static struct generate_config config;
    int exit_status;
    if (!command_flags(generate_flags, sizeof generate_flags / sizeof generate_flags[0],
                       "baton generate --router=H:P --prompt=TEXT [sampling flags] [--json]", &config, argc, argv,
                       &exit_status)) {
        return exit_status;
    }
    struct diag diag = {{0}};
    Baton__V1__GenerateRequest request = BATON__V1__GENERATE_REQUEST__INIT;
    Baton__V1__TokenIds tokens = BATON__V1__TOKEN_IDS__INIT;
    char *text = NULL, *salt = strdup(config.sharing.cache_salt ? config.sharing.cache_salt : "");
    status_t st = build_prompt(&config, &request, &tokens, &text, &diag);
    if (!failed(st)) { st = sampling_flags_build(&config.sampling, &diag); }
    struct answer answer = {.wants_json = config.json, .stream_text = !config.json};
    if (!failed(st)) {
        request.sampling = &config.sampling.message;
        request.no_special_tokens = config.no_special_tokens;
        request.priority = config.sharing.priority;
        if (salt) { request.cache_salt = salt; }
        st = run(&config, &request, &answer, &diag);
    }
    if (!failed(st) && config.json) {
        json_t *object = answer_json(&answer);
        json_dumpf(object, stdout, JSON_COMPACT | JSON_ENSURE_ASCII);
        fputc('\n', stdout);
        json_decref(object);
    } else if (answer.sequence_count > 0 && !config.json) {
        fputc('\n', stdout);
        for (uint32_t i = 1; i < answer.sequence_count; i++) {
            printf("--- %u\n%s\n", i, answer.sequences[i].text ? answer.sequences[i].text : "");
        }
        if (!failed(st) && !config.quiet) {
            fflush(stdout);
            answer_print_route(&answer, stderr);
        }
    }
    fflush(stdout);
    answer_fini(&answer);
    free(text);
    free(salt);
    free(tokens.ids);
    return failed(st) ? command_fail("generate", st, &diag) : 0;
}
