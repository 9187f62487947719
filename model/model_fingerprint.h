/* model_fingerprint: 32 bytes that differ where two nodes would compute different tokens.
 * Flow:    config and every tensor while it is loaded -> [model_fingerprint] -> attach handshake
 * Thread:  one.
 * Memory:  one small object from begin to end.
 *
 * SHA-256 over: a version line; the config's fields as text, one "name=value" a line; then per tensor, in
 * the order of the tensor plan, its name without the base prefix, dtype, shape, byte count, and bytes: all
 * of them up to FINGERPRINT_WHOLE_BYTES, else the first and last FINGERPRINT_EDGE_BYTES and
 * FINGERPRINT_PAGE_BYTES at every multiple of FINGERPRINT_STRIDE_BYTES. Hashing a 16 GB checkpoint whole
 * would cost more than loading it; two trainings differ in every page. */
#ifndef BATON_MODEL_MODEL_FINGERPRINT_H
#define BATON_MODEL_MODEL_FINGERPRINT_H

#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "model/model_config.h"

#define FINGERPRINT_BYTES 32u
#define FINGERPRINT_WHOLE_BYTES ((uint64_t)256 << 10)
#define FINGERPRINT_EDGE_BYTES ((uint64_t)16 << 10)
#define FINGERPRINT_PAGE_BYTES ((uint64_t)4 << 10)
#define FINGERPRINT_STRIDE_BYTES ((uint64_t)4 << 20)

struct model_fingerprint_state;

/* ret_state  returns owned: model_fingerprint_end() or model_fingerprint_drop()
 * Errors     RESOURCE_EXHAUSTED (node): no memory; INTERNAL (node): OpenSSL has no SHA-256. */
NODISCARD status_t model_fingerprint_begin(const struct model_config *config, struct diag *diag,
                                           struct model_fingerprint_state **ret_state);

/* Adds one tensor. NULL state: nothing happens. */
void model_fingerprint_add(struct model_fingerprint_state *state, const char *name, const char *dtype,
                           const uint64_t *shape, uint32_t rank, const void *data, uint64_t bytes);

/* Takes the state, also on failure.
 * Errors  INTERNAL (node): a step of the hash failed. */
NODISCARD status_t model_fingerprint_end(struct model_fingerprint_state *state, struct diag *diag,
                                         uint8_t ret_hash[FINGERPRINT_BYTES]);

/* Takes NULL. */
void model_fingerprint_drop(struct model_fingerprint_state *state);

#endif
