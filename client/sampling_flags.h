/* sampling_flags: the sampling flags of the command line, named as the fields of the API.
 * Flow:    argv -> [sampling_flags] -> SamplingParams of a request
 * Thread:  the command's.
 * Memory:  the message points into the struct, which must stay where it is. */
#ifndef BATON_CLIENT_SAMPLING_FLAGS_H
#define BATON_CLIENT_SAMPLING_FLAGS_H

#include <stddef.h>

#include "base/diag.h"
#include "base/flags.h"
#include "base/status.h"
#include "proto/baton/v1/inference.pb-c.h"

struct sampling_flags {
    /* as given; "" or NULL: absent */
    const char *temperature, *top_k, *top_p, *min_p, *repetition_penalty, *presence_penalty, *frequency_penalty;
    const char *seed, *max_tokens, *min_tokens, *logprobs, *prompt_logprobs, *n;
    const char *stop_token_ids;
    struct flag_list stop;
    struct flag_list logit_bias;
    bool ignore_eos, include_stop, show_special_tokens;

    /* the message and its parts */
    Baton__V1__SamplingParams message;
    Baton__V1__Float floats[6];
    Baton__V1__UInt uints[5];
    Baton__V1__Seed seed_value;
    Baton__V1__SamplingParams__LogitBiasEntry bias_entries[64];
    Baton__V1__SamplingParams__LogitBiasEntry *bias_pointers[64];
    char *stop_pointers[64];
    uint32_t stop_tokens[64];
};

/* The rows for a command's flag table; `base` is the offset of the struct in its config. */
#define SAMPLING_FLAGS(base)                                                                                         \
    {"max-tokens", FLAG_STRING, (base) + offsetof(struct sampling_flags, max_tokens), NULL, "N",                     \
     "Most output tokens of one sequence.", 0, 0},                                                                   \
    {"min-tokens", FLAG_STRING, (base) + offsetof(struct sampling_flags, min_tokens), NULL, "N",                     \
     "No end before this many tokens.", 0, 0},                                                                       \
    {"temperature", FLAG_STRING, (base) + offsetof(struct sampling_flags, temperature), NULL, "X",                   \
     "0 is greedy.", 0, 0},                                                                                          \
    {"top-k", FLAG_STRING, (base) + offsetof(struct sampling_flags, top_k), NULL, "N", "The N likeliest only; 0 off.", 0, 0}, \
    {"top-p", FLAG_STRING, (base) + offsetof(struct sampling_flags, top_p), NULL, "X", "Nucleus; 1 off.", 0, 0},     \
    {"min-p", FLAG_STRING, (base) + offsetof(struct sampling_flags, min_p), NULL, "X", "Relative to the best; 0 off.", 0, 0}, \
    {"repetition-penalty", FLAG_STRING, (base) + offsetof(struct sampling_flags, repetition_penalty), NULL, "X",     \
     "1 is off.", 0, 0},                                                                                             \
    {"presence-penalty", FLAG_STRING, (base) + offsetof(struct sampling_flags, presence_penalty), NULL, "X",         \
     "-2 to 2.", 0, 0},                                                                                              \
    {"frequency-penalty", FLAG_STRING, (base) + offsetof(struct sampling_flags, frequency_penalty), NULL, "X",       \
     "-2 to 2.", 0, 0},                                                                                              \
    {"logit-bias", FLAG_LIST, (base) + offsetof(struct sampling_flags, logit_bias), NULL, "TOKEN:X",                 \
     "Added to a token's logit; may be repeated.", 0, 0},                                                            \
    {"seed", FLAG_STRING, (base) + offsetof(struct sampling_flags, seed), NULL, "N", "Same seed, same tokens.", 0, 0}, \
    {"stop", FLAG_LIST, (base) + offsetof(struct sampling_flags, stop), NULL, "TEXT",                                \
     "Ends the output; may be repeated.", 0, 0},                                                                     \
    {"stop-token-ids", FLAG_STRING, (base) + offsetof(struct sampling_flags, stop_token_ids), NULL, "1,2,3",         \
     "Tokens that end the output.", 0, 0},                                                                           \
    {"include-stop", FLAG_BOOL, (base) + offsetof(struct sampling_flags, include_stop), NULL, NULL,                  \
     "Show the stop text too.", 0, 0},                                                                               \
    {"ignore-eos", FLAG_BOOL, (base) + offsetof(struct sampling_flags, ignore_eos), NULL, NULL,                      \
     "The model's end tokens end nothing.", 0, 0},                                                                   \
    {"show-special-tokens", FLAG_BOOL, (base) + offsetof(struct sampling_flags, show_special_tokens), NULL, NULL,    \
     "Show special tokens in the text.", 0, 0},                                                                      \
    {"logprobs", FLAG_STRING, (base) + offsetof(struct sampling_flags, logprobs), NULL, "K",                         \
     "Log-probabilities with K alternatives.", 0, 0},                                                                \
    {"prompt-logprobs", FLAG_STRING, (base) + offsetof(struct sampling_flags, prompt_logprobs), NULL, "K",           \
     "The same for the prompt.", 0, 0},                                                                              \
    {"n", FLAG_STRING, (base) + offsetof(struct sampling_flags, n), NULL, "N", "Sequences that share the prompt.", 0, 0}

/* Fills `message` from what was given; absent flags stay absent, so that the model's own
 * defaults hold. Ranges are the router's to check.
 * Errors  INVALID_ARGUMENT (request): not a number; diag names the flag. */
NODISCARD status_t sampling_flags_build(struct sampling_flags *flags, struct diag *diag);

/* "1,2,3" to numbers. `what` is the flag's name for the error. *ret_ids is malloc'd. */
NODISCARD status_t token_list_parse(const char *text, const char *what, uint32_t **ret_ids, size_t *ret_count,
                                    struct diag *diag);

#endif
