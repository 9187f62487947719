/* quality_bench: what smaller weights and smaller KV cost in quality, as JSON lines.
 *   quality_bench --model=DIR --text=FILE [--weights=auto,bf16,int8,int4] [--kv=f32,bf16,f16,int8,fp8_e4m3]
 *                 [--isa=NAME] [--threads=N] [--context=N]
 * Every format of weights is measured with f32 KV, every format of KV with the file's own weights, and the
 * last of both together. The reference is the file's own weights with f32 KV.
 *
 * Expect: rounding a weight to n steps of its largest adds noise of about 1/(n sqrt 12) of it. int8: 127 steps,
 * perplexity up by some hundredths of a percent; int4: 8 steps of a group of 32, some percent on models as
 * small as these, less on large ones. KV in bf16 or with 127 steps a head: below a tenth of a percent. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"
#include "base/flags.h"
#include "bench/quality/perplexity.h"
#include "model/model.h"

#define LIST_MAX 8u

struct options {
    const char *model, *text, *weights, *kv, *isa;
    uint32_t threads, context;
};

static const struct flag flags[] = {
    {"model", FLAG_STRING, offsetof(struct options, model), NULL, "DIR", "Hugging Face model directory.", 0, 0},
    {"text", FLAG_STRING, offsetof(struct options, text), NULL, "FILE", "Text; documents are separated by lines of dashes.", 0, 0},
    {"weights", FLAG_STRING, offsetof(struct options, weights), "auto,bf16,int8,int4", "LIST", "Formats of weights.", 0, 0},
    {"kv", FLAG_STRING, offsetof(struct options, kv), "f32,bf16,f16,int8,fp8_e4m3", "LIST", "Formats of KV.", 0, 0},
    {"isa", FLAG_STRING, offsetof(struct options, isa), "auto", "NAME", "Instruction set of the kernels.", 0, 0},
    {"threads", FLAG_U32, offsetof(struct options, threads), "1", "N", "Threads.", 1, 256},
    {"context", FLAG_U32, offsetof(struct options, context), "512", "tokens", "Most tokens of a document.", 2, 65536},
};

struct bench {
    struct options options;
    struct perplexity_text text;
    struct perplexity_reference reference;
    double base;
};

static status_t run_one(struct bench *b, const char *weights, const char *kv, struct diag *diag)
{
    struct perplexity_options options = {.model_directory = b->options.model, .kv_dtype = kv, .isa = b->options.isa,
                                         .threads = b->options.threads};
    if (!model_weight_format_parse(weights, &options.weights)) {
        diag_set(diag, "--weights: \"%s\" is none of auto, bf16, int8, int4", weights);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    bool is_first = b->reference.logits == NULL;
    struct perplexity_result r;
    TRY(perplexity_measure(&options, &b->text, is_first ? NULL : &b->reference, diag, &r, is_first ? &b->reference : NULL));
    if (is_first) { b->base = r.perplexity; }
    printf("{\"bench\": \"quality\", \"model\": \"%s\", \"text\": \"%s\", \"weights\": \"%s\", \"kv\": \"%s\", \"set\": \"%s\", "
           "\"tokens\": %llu, \"bits_per_weight\": %.3f, \"perplexity\": %.5f, \"change_percent\": %.4f, \"divergence\": %.6f, "
           "\"same_best\": %.5f}\n",
           b->options.model, b->options.text, weights, kv, r.set_name, (unsigned long long)r.tokens, r.bits_per_weight, r.perplexity,
           100 * (r.perplexity / b->base - 1), r.divergence, r.agreement);
    fflush(stdout);
    return STATUS_OK;
}

static uint32_t split(const char *list, char parts[LIST_MAX][16])
{
    uint32_t count = 0;
    while (*list != '\0' && count < LIST_MAX) {
        size_t length = strcspn(list, ",");
        snprintf(parts[count++], sizeof parts[0], "%.*s", (int)(length < 15 ? length : 15), list);
        list += length + (list[length] == ',');
    }
    return count;
}

static status_t run_all(struct bench *b, struct diag *diag)
{
    char weights[LIST_MAX][16], kv[LIST_MAX][16];
    uint32_t weights_count = split(b->options.weights, weights), kv_count = split(b->options.kv, kv);
    TRY(perplexity_text_load(b->options.model, b->options.text, b->options.context, 0, diag, &b->text));
    TRY(run_one(b, "auto", "f32", diag));
    for (uint32_t i = 0; i < weights_count; i++) {
        if (strcmp(weights[i], "auto") != 0) { TRY(run_one(b, weights[i], "f32", diag)); }
    }
    for (uint32_t i = 0; i < kv_count; i++) {
        if (strcmp(kv[i], "f32") != 0) { TRY(run_one(b, "auto", kv[i], diag)); }
    }
    for (uint32_t i = 0; i < kv_count; i++) {
        if (strcmp(kv[i], "int8") == 0 && weights_count > 0) { TRY(run_one(b, weights[weights_count - 1], kv[i], diag)); }
    }
    return STATUS_OK;
}

int main(int argc, char **argv)
{
    struct bench bench = {0};
    struct diag diag = {{0}};
    bool wants_help = false;
    status_t st = flags_parse(flags, sizeof flags / sizeof flags[0], &bench.options, argc, argv, NULL, NULL, &wants_help, &diag);
    if (!failed(st) && wants_help) {
        flags_print_help(flags, sizeof flags / sizeof flags[0], "quality_bench --model=DIR --text=FILE [flags]", stdout);
        return 0;
    }
    if (!failed(st) && (bench.options.model == NULL || bench.options.text == NULL)) {
        diag_set(&diag, "--model and --text are needed");
        st = STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (!failed(st)) { st = run_all(&bench, &diag); }
    if (failed(st)) { fprintf(stderr, "quality_bench: %s\n", diag.text); }
    perplexity_text_drop(&bench.text);
    free(bench.reference.logits);
    return failed(st) ? 1 : 0;
}
