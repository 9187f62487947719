/* baton chat: a conversation on the terminal, or one question and its answer. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/answer.h"
#include "client/connect_flags.h"
#include "client/sampling_flags.h"
#include "client/sharing_flags.h"

#define MESSAGES_MAX 1024u

struct chat_config {
    struct connect_flags connect;
    struct sampling_flags sampling;
    struct sharing_flags sharing;
    const char *system, *message;
    const char *tools, *variables;
    bool json, quiet;
};

static const struct flag chat_flags[] = {
    CONNECT_FLAGS(offsetof(struct chat_config, connect)),
    {"system", FLAG_STRING, offsetof(struct chat_config, system), NULL, "TEXT", "The system message.", 0, 0},
    {"message", FLAG_STRING, offsetof(struct chat_config, message), NULL, "TEXT", "One question; without it, lines are read until the end of input.", 0, 0},
    {"tools", FLAG_STRING, offsetof(struct chat_config, tools), NULL, "JSON", "Tools for the template, a JSON array.", 0, 0},
    {"template-variables", FLAG_STRING, offsetof(struct chat_config, variables), NULL, "JSON", "Further template variables, a JSON object.", 0, 0},
    SAMPLING_FLAGS(offsetof(struct chat_config, sampling)),
    SHARING_FLAGS(offsetof(struct chat_config, sharing)),
    {"json", FLAG_BOOL, offsetof(struct chat_config, json), NULL, NULL, "One JSON object an answer.", 0, 0},
    {"quiet", FLAG_BOOL, offsetof(struct chat_config, quiet), NULL, NULL, "Text only, not where it ran.", 0, 0},
};

struct conversation {
    size_t count;
    Baton__V1__ChatMessage messages[MESSAGES_MAX];
    Baton__V1__ChatMessage *pointers[MESSAGES_MAX];
};

static char role_system[] = "system", role_user[] = "user", role_assistant[] = "assistant", empty[] = "";

static status_t add(struct conversation *conversation, char *role, const char *content, struct diag *diag)
{
    if (conversation->count == MESSAGES_MAX) {
        diag_set(diag, "the conversation is longer than %u messages", MESSAGES_MAX);
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_REQUEST);
    }
    char *copy = strdup(content);
    if (!copy) {
        diag_set(diag, "no memory for a message of %zu bytes", strlen(content));
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    Baton__V1__ChatMessage *message = &conversation->messages[conversation->count];
    *message = (Baton__V1__ChatMessage)BATON__V1__CHAT_MESSAGE__INIT;
    message->role = role;
    message->content = copy;
    conversation->pointers[conversation->count++] = message;
    return STATUS_OK;
}

static status_t ask(struct api *api, const struct chat_config *config, struct conversation *conversation,
                    struct answer *answer, struct diag *diag)
{
    Baton__V1__ChatRequest request = BATON__V1__CHAT_REQUEST__INIT;
    request.n_messages = conversation->count;
    request.messages = conversation->pointers;
    Baton__V1__SamplingParams sampling = config->sampling.message;
    request.sampling = &sampling;
    char *tools = config->tools ? strdup(config->tools) : NULL;
    char *variables = config->variables ? strdup(config->variables) : NULL;
    char *salt = config->sharing.cache_salt ? strdup(config->sharing.cache_salt) : NULL;
    request.tools_json = tools ? tools : empty;
    request.template_variables_json = variables ? variables : empty;
    request.priority = config->sharing.priority;
    request.cache_salt = salt ? salt : empty;
    answer->start_ns = clock_now_ns();
    struct api_call *call = NULL;
    status_t st = api_call_start(api, "/baton.v1.Inference/Chat", &request.base, UINT64_MAX, false, &call, diag);
    if (!failed(st)) { st = answer_read(answer, call, diag); }
    api_call_end(call);
    free(tools);
    free(variables);
    free(salt);
    return st;
}

static status_t turn(struct api *api, const struct chat_config *config, struct conversation *conversation,
                     const char *question, struct diag *diag)
{
    TRY(add(conversation, role_user, question, diag));
    struct answer answer = {.wants_json = config->json, .stream_text = !config->json};
    status_t st = ask(api, config, conversation, &answer, diag);
    if (!failed(st) && config->json) {
        json_t *object = answer_json(&answer);
        json_dumpf(object, stdout, JSON_COMPACT | JSON_ENSURE_ASCII);
        fputc('\n', stdout);
        json_decref(object);
    } else if (!config->json && answer.sequence_count > 0) {
        fputc('\n', stdout);
        fflush(stdout);
        if (!failed(st) && !config->quiet) { answer_print_route(&answer, stderr); }
    }
    if (!failed(st) && answer.sequence_count > 0) {
        st = add(conversation, role_assistant, answer.sequences[0].text ? answer.sequences[0].text : "", diag);
    }
    answer_fini(&answer);
    return st;
}

int command_chat(int argc, char **argv)
{
    static struct chat_config config;
    static struct conversation conversation;
    int exit_status;
    if (!command_flags(chat_flags, sizeof chat_flags / sizeof chat_flags[0],
                       "baton chat --router=H:P [--system=TEXT] [--message=TEXT] [sampling flags]", &config, argc, argv,
                       &exit_status)) {
        return exit_status;
    }
    struct diag diag = {{0}};
    struct api *api = NULL;
    status_t st = sampling_flags_build(&config.sampling, &diag);
    if (!failed(st)) { st = connect_open(&config.connect, &api, &diag); }
    if (!failed(st) && config.system) { st = add(&conversation, role_system, config.system, &diag); }
    if (!failed(st) && config.message) {
        st = turn(api, &config, &conversation, config.message, &diag);
    } else if (!failed(st)) {
        bool is_terminal = isatty(STDIN_FILENO) != 0;
        char *line = NULL;
        size_t capacity = 0;
        for (;;) {
            if (is_terminal) { fputs("> ", stdout); fflush(stdout); }
            ssize_t len = getline(&line, &capacity, stdin);
            if (len < 0) { break; }
            if (len > 0 && line[len - 1] == '\n') { line[--len] = '\0'; }
            if (len == 0) { continue; }
            st = turn(api, &config, &conversation, line, &diag);
            if (failed(st)) { break; }
        }
        free(line);
    }
    api_close(api);
    for (size_t i = 0; i < conversation.count; i++) { free(conversation.messages[i].content); }
    return failed(st) ? command_fail("chat", st, &diag) : 0;
}
