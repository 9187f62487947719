/* fake_node: a node that speaks Attach and computes nothing, in this process.
 *
 * Its "model" makes output token i of every sequence the byte 'a' + i % 26. A prefill node
 * sends the first token and tells its decode node that the blocks landed; a decode node sends
 * one token per leg and millisecond, until the position `hold_at`. */
#ifndef BATON_TESTS_UNIT_ROUTER_FAKE_NODE_H
#define BATON_TESTS_UNIT_ROUTER_FAKE_NODE_H

#include <stdbool.h>
#include <stdint.h>

#include "control/ctl_msg.h"

struct fake_node;

struct fake_node_config {
    enum node_role role;
    const char *name;
    uint16_t port;             /* 0 picks */
    uint8_t model_byte;        /* the model hash is 32 times this */
    uint32_t block_tokens;     /* 0: 16 */
    uint32_t vocab_size, context_tokens;
    uint32_t cached_tokens;    /* decode: what it says it has of every prompt */
    uint32_t hold_at;          /* decode: no token at or past this position; UINT32_MAX: none */
};

struct fake_node *fake_node_start(const struct fake_node_config *config);
uint16_t fake_node_port(const struct fake_node *node);
/* The decode node that this prefill node's blocks go to; all of them in turn are tried by leg. */
void fake_node_feeds(struct fake_node *prefill, struct fake_node *const *decodes, uint32_t count);
void fake_node_hold(struct fake_node *node, uint32_t position);
uint32_t fake_node_legs(struct fake_node *node); /* held now */
struct ctl_prefill fake_node_last(struct fake_node *node); /* the last RESERVE or PREFILL; no arrays */
void fake_node_stop(struct fake_node *node);     /* drops every stream, as a death does */

#endif
