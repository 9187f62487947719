/* quant_config: what config.json says about weights that were quantized before they were published.
 * Flow:    config.json -> [quant_config] -> quant_matrix, model_weights
 * Thread:  any; a plain value.
 * Memory:  the JSON tree lives during a call.
 *
 * GPTQ and AWQ with 4 bits are read, the two that most published int4 checkpoints are in. Anything else
 * is refused here by name, rather than later as a tensor that is missing. */
#ifndef BATON_MODEL_QUANT_CONFIG_H
#define BATON_MODEL_QUANT_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

enum quant_method {
    QUANT_NONE = 0,
    QUANT_GPTQ = 1,
    QUANT_AWQ = 2,
};

struct quant_config {
    enum quant_method method;
    uint32_t group;          /* inputs that share a scale; 0: all of them */
    bool zeros_are_one_less; /* GPTQ's first format stores zero points less one */
};

/* Reads the field quantization_config of directory/config.json; without the field, quantize_config.json, where
 * older GPTQ checkpoints have it.
 * Errors   INVALID_ARGUMENT (node): the method, the bits or a format is not read here; diag says which are. */
NODISCARD status_t quant_config_load(const char *directory, struct diag *diag, struct quant_config *ret_config);

/* The same from the bytes of a config.json (is_own false) or a quantize_config.json (true). */
NODISCARD status_t quant_config_parse(const char *name, const void *json, size_t json_bytes, bool is_own, struct diag *diag,
                                      struct quant_config *ret_config);

#endif
