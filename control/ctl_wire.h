/* ctl_wire: the two halves of ctl_codec: values into protobuf-c's structs, and out of them.
 * Flow:    ctl_codec -> [ctl_encode], [ctl_decode]; nobody else
 * Thread:  the codec's.
 * Memory:  the arena's; what the values point to is borrowed. */
#ifndef BATON_CONTROL_CTL_WIRE_H
#define BATON_CONTROL_CTL_WIRE_H

#include <stdbool.h>

#include "base/arena.h"
#include "base/diag.h"
#include "base/status.h"
#include "control/ctl_msg.h"
#include "proto/baton/control/v1/control.pb-c.h"

typedef Baton__Control__V1__LegId pb_leg;
typedef Baton__Control__V1__Sampling pb_sampling;
typedef Baton__Control__V1__LogitBias pb_bias;
typedef Baton__Control__V1__Work pb_work;
typedef Baton__Control__V1__TokenLogprob pb_logprob;
typedef Baton__Control__V1__Token pb_token;
typedef Baton__Control__V1__Failure pb_failure;
typedef Baton__Control__V1__RouterMessage pb_router_message;
typedef Baton__Control__V1__NodeMessage pb_node_message;

/* --- ctl_encode.c: false: no memory, or the kind is the other side's */
bool ctl_build_router_message(struct arena *arena, const struct ctl_msg *msg, pb_router_message *ret);
bool ctl_build_node_message(struct arena *arena, const struct ctl_msg *msg, pb_node_message *ret);

/* --- ctl_decode.c
 * Errors  INVALID_ARGUMENT (peer), diag says what is missing or malformed. */
status_t ctl_read_router_message(struct arena *arena, const pb_router_message *in, struct ctl_msg *out, struct diag *diag);
status_t ctl_read_node_message(struct arena *arena, const pb_node_message *in, struct ctl_msg *out, struct diag *diag);

/* The status of a message that is not one; diag gets `what`. */
status_t ctl_malformed(struct diag *diag, const char *what);

#endif
