/* perplexity: how well a model, with some format of weights and of KV, foretells a text.
 * Flow:    text, model directory -> [perplexity] -> quality_bench, tests
 * Thread:  one, with the kernels' own workers.
 * Memory:  a measurement holds the model; the reference keeps its logits, tokens * vocabulary * 4 bytes. */
#ifndef BATON_BENCH_QUALITY_PERPLEXITY_H
#define BATON_BENCH_QUALITY_PERPLEXITY_H

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/model_weights.h"

/* A text as a model's tokens: documents that are separated by lines of dashes, each begun by the token
 * that begins texts, and cut where `context` tokens are full. */
struct perplexity_text {
    uint32_t *ids;
    uint32_t *firsts; /* [documents + 1], into ids */
    uint32_t documents;
    uint32_t longest; /* tokens */
};

/* text_bytes_max  of the file; 0: all
 * ret_text  returns owned: perplexity_text_drop() */
NODISCARD status_t perplexity_text_load(const char *model_directory, const char *path, uint32_t context, size_t text_bytes_max,
                                        struct diag *diag, struct perplexity_text *ret_text);
void perplexity_text_drop(struct perplexity_text *text); /* takes a zeroed one */

struct perplexity_options {
    const char *model_directory;
    enum model_weight_format weights;
    const char *kv_dtype; /* as --kv-dtype */
    const char *isa;      /* as --isa */
    uint32_t threads;
};

/* Logits of every token that foretells another: what others are compared with. */
struct perplexity_reference {
    float *logits; /* [foretold tokens][vocab] */
};

struct perplexity_result {
    uint64_t tokens;        /* foretold */
    double perplexity;      /* exp of the mean of -log p(token), natural logarithm */
    double divergence;      /* mean of KL(reference || this), nats a token; 0 without a reference */
    double agreement;       /* share of tokens whose likeliest is the reference's; 1 without */
    double bits_per_weight; /* of the matrices, tables of scales included, padding not counted off */
    const char *set_name;
};

/* reference      NULL: nothing to compare with
 * ret_reference  NULL, or returns owned: free(ret_reference->logits) */
NODISCARD status_t perplexity_measure(const struct perplexity_options *options, const struct perplexity_text *text,
                                      const struct perplexity_reference *reference, struct diag *diag,
                                      struct perplexity_result *ret_result, struct perplexity_reference *ret_reference);

#endif
