/* request_spec: what a client asked for, complete and checked: no field is absent any more.
 * Flow:    unpacked request -> [request_spec] -> session, router_core
 * Thread:  any; pure.
 * Memory:  one block per request, freed by request_spec_fini.
 *
 * An absent field takes the model's generation_config.json, and where that names none the
 * default that proto/baton/v1/inference.proto states. */
#ifndef BATON_ROUTER_REQUEST_SPEC_H
#define BATON_ROUTER_REQUEST_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/model_config.h"
#include "model/sampling_params.h"
#include "proto/baton/v1/inference.pb-c.h"
#include "router/stop_text.h"

#define DEFAULT_MAX_TOKENS 256u

/* What the checks need to know of the model. */
struct request_limits {
    uint32_t vocab_size;
    uint32_t context_tokens;
    const struct generation_defaults *defaults;
};

struct request_spec {
    uint32_t prompt_count;
    uint32_t *prompt; /* [prompt_count] */
    struct sampling_params params;
    uint32_t stop_count;
    struct stop_string stops[STOP_STRINGS_MAX];
    bool include_stop;
    bool show_special_tokens;
    int32_t priority;
    uint64_t cache_salt; /* cache_salt_number(); request_parse sets both, after request_spec_init */
    void *block; /* params' arrays and the stops' bytes */
};

/* sampling     may be NULL: all defaults
 * prompt       [prompt_count] Takes (malloc'd) on success
 * drawn_seed   used where the client gave none
 * Errors  INVALID_ARGUMENT (request), diag names the proto's field, its value and its range.
 *         RESOURCE_EXHAUSTED (request): no memory. */
NODISCARD status_t request_spec_init(struct request_spec *spec, const Baton__V1__SamplingParams *sampling,
                                     const struct request_limits *limits, uint32_t *prompt, size_t prompt_count,
                                     uint64_t drawn_seed, struct diag *diag);
void request_spec_fini(struct request_spec *spec); /* takes a zeroed one */

/* Token ids of a client's prompt.
 * Errors  INVALID_ARGUMENT (request), diag names the first that is no token. */
NODISCARD status_t request_spec_check_ids(const char *field, const uint32_t *ids, size_t count, uint32_t vocab_size,
                                          struct diag *diag);

#endif
