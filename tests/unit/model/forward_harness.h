/* forward_harness: a model, its kernels and a small KV pool, for tests that run steps.
 * Flow:    test -> [forward_harness] -> model, forward
 * Thread:  the test's.
 * Memory:  harness_open to harness_close; a sequence is a plain value. */
#ifndef BATON_TESTS_UNIT_MODEL_FORWARD_HARNESS_H
#define BATON_TESTS_UNIT_MODEL_FORWARD_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "kernels/kernels.h"
#include "kv/kv_layout.h"
#include "model/forward.h"
#include "model/model.h"

#define HARNESS_TOKENS_MAX 520u
#define HARNESS_BLOCKS_MAX 33u

struct harness {
    struct model *model;
    const struct model_config *config;
    struct kernels *kernels;
    struct forward *forward;
    struct kv_layout layout;
    uint8_t *pool;
    size_t pool_bytes;
    uint32_t block_count;
    uint32_t blocks_used;
    float *logits; /* [rows_max][vocab], of a device; NULL where the host has them at once */
    size_t logits_bytes;
};

struct harness_options {
    const char *isa;
    uint32_t threads;
    enum dtype kv_dtype;
    enum model_load load;
    enum model_weight_format weights;
    enum kernels_compute compute;
    uint32_t rows_max;    /* 0: HARNESS_TOKENS_MAX */
    uint32_t block_count; /* 0: 8 sequences of the longest kind */
    struct kernels *kernels; /* taken; NULL: of isa, threads and compute */
};

/* One sequence's tokens and blocks; blocks are handed out far apart and out of order. */
struct sequence {
    uint32_t tokens[HARNESS_TOKENS_MAX];
    uint32_t count;    /* tokens known */
    uint32_t computed; /* of them, whose KV is in the pool */
    uint32_t blocks[HARNESS_BLOCKS_MAX];
};

/* A Llama of bf16 weights that are made up (MODEL_LOAD_DUMMY): hidden 64, ffn 128, heads of 16, a context of 131,072. */
struct harness_dummy {
    uint32_t layers, q_heads, kv_heads, vocab;
    uint32_t window; /* 0: none */
};

/* Writes its config.json into a folder of the test. Returns the folder, static text until the next call. */
const char *harness_dummy_model(const struct harness_dummy *shape);

/* Fails the test with the diag's sentence when something cannot be opened. */
void harness_open(const char *directory, const struct harness_options *options, struct harness *ret_harness);
void harness_close(struct harness *harness);

/* Fills the pool with NaN bits, so that a read of what was never written shows, and forgets all blocks. */
void harness_poison(struct harness *harness);

void sequence_start(struct harness *harness, const uint32_t *tokens, uint32_t count, struct sequence *ret_sequence);

/* Computes the next `rows` tokens; logits [wanted rows][vocab] or NULL. */
void sequence_advance(struct harness *harness, struct sequence *sequence, uint32_t rows, enum forward_want want,
                      float *ret_logits);

/* Waits for the step that ran, and reads the logits of its first `count` rows. */
void harness_logits(struct harness *harness, uint32_t count, float *ret_logits);

/* The whole prompt in chunks of `chunk` rows; logits of its last row. */
void sequence_prefill(struct harness *harness, struct sequence *sequence, uint32_t chunk, float *ret_logits);

uint32_t argmax(const float *logits, uint32_t count);

/* The folder of the shared test data, or NULL: BATON_SHARED_DATA, else shared/data above this folder. */
const char *shared_data(void);

#endif
