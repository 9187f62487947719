/* forger_nccl: the forger's half of the nccl cable: a true rank of NCCL, over the link's messages, which can say what no
 * honest one says. Only for tests.
 * Thread:  the test's; all calls block. */
#ifndef BATON_TESTS_CONFORMANCE_FORGER_NCCL_H
#define BATON_TESTS_CONFORMANCE_FORGER_NCCL_H

#include "tests/conformance/forger.h"
#include "transfer/nccl_wire.h"

struct forger_nccl;

/* Opens a pair with D, both ranks up. NULL: denied, which is_wrong asks for by slots that D does not have. */
struct forger_nccl *forger_nccl_open(struct forger *forger, bool is_wrong);
/* One frame through a slot. False: D has broken the pair. slices: [count][slice_bytes]. */
bool forger_nccl_frame(struct forger_nccl *nccl, const struct kv_frame *frame, const uint8_t *slices, const uint32_t *crc);
void forger_nccl_close(struct forger_nccl *nccl); /* takes NULL */

/* A message of the cable as it is, and as bytes. */
void forger_nccl_say(struct forger *forger, const struct nccl_wire_msg *msg);
void forger_nccl_say_bytes(struct forger *forger, const void *bytes, size_t count);
/* The next message of D's cable; all else on the link is passed over. False: the link ended. */
bool forger_nccl_hear(struct forger *forger, struct nccl_wire_msg *ret_msg);
/* What D's own open would say. */
struct nccl_wire_open forger_nccl_terms(const struct forger *forger);

#endif
