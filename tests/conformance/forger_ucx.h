/* forger_ucx: the forger's half of the ucx cable. It has D's key, as every sender has, and puts only
 * where and once where an honest one would: what a liar could do with the key, no cable can refuse,
 * and the operator's closed network is about that. It lies in the notices.
 * Thread:  the test's; all calls block. */
#ifndef BATON_TESTS_CONFORMANCE_FORGER_UCX_H
#define BATON_TESTS_CONFORMANCE_FORGER_UCX_H

#include "transfer/transfer.h"

struct forger_ucx;

/* Connects to the offer and shows the token. NULL: not welcomed. */
struct forger_ucx *forger_ucx_open(const struct kv_cable_offer *offer, const struct kv_layout *layout,
                                   const uint8_t token[KV_CABLE_TOKEN_BYTES]);
void forger_ucx_close(struct forger_ucx *forger); /* takes NULL */

/* Puts the frame's slices, if D has told a place for all of them and none was put yet, and sends the
 * notice. slices [frame->count][slice bytes]. False: the connection broke. */
bool forger_ucx_frame(struct forger_ucx *forger, const struct kv_frame *frame, const uint8_t *slices, const uint32_t *crc);

#endif
