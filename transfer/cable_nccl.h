/* cable_nccl: KV blocks from device to device over NCCL, one communicator of two ranks for each link that is worth it.
 * Flow:    P push -> gather into a slot -> SEND? -> D: frame_accept, receive handed to its pair's thread -> READY -> P
 *          sends -> D scatters from its slot into its blocks, checks the sums -> the endpoint's frame_landed
 * Thread:  the transfer thread. Each communicator has a thread of its own (nccl_pair), as has the device's memory.
 * Memory:  of the device: slots, and what NCCL takes for a communicator; counted, and bounded by the configuration.
 *
 * NCCL is a cable between two here, and no cluster: it knows of no third rank, and its control plane is the link, which
 * is authenticated, in order, and sees a peer die. What large groups of ranks suffer from is kept out:
 *
 * - A communicator takes a second or more to make, so it is made beside the link's other cable (warms_up), when a
 *   transfer begins and there is room (nccl_pairs). What breaks it ends just what it carried.
 * - A kernel that waits for an absent peer occupies the device. So P asks first (SEND), D hands its receive to the pair's
 *   thread and says so (READY), and only then P queues its send: each finds the other there within the link's latency,
 *   unless that thread is held in a call of NCCL or of the device. Then P's kernel waits, for stall_ns at most.
 * - Transfers of one pair are one after another, those of several pairs side by side, each on as many SMs as there are
 *   channels. Nothing here knows how many SMs the device has: pairs_max x channels is what can be taken at worst, and is
 *   for who configures to keep to a share of them (24 pairs of 4 channels leave an H100 36 of its 132).
 * - A hung kernel or a call that does not return is ended by an abort of that communicator, on that one's thread. If
 *   not even that returns, the pair stays, with its memory counted and its slots never used again, and the others carry
 *   on; but what waits for the whole device waits for a kernel that never ends too, so a pair that ends then may stay as well.
 * - NCCL never writes into a block. D's receive ends in a slot; whether the grant is still alive is looked at between
 *   the slot and the blocks. So a late transfer lands nowhere, and a grant that is off the table is a fence.
 *
 * A pair (nccl_wire.h has the messages):
 *   P   asked --OPENED--> making --UP of both--> ready --> ending        D   granted --ID--> making ...
 * A slot:
 *   P   free -> gathering -> asked -> sending -> free            D   free -> receiving -> scattering -> free */
#ifndef BATON_TRANSFER_CABLE_NCCL_H
#define BATON_TRANSFER_CABLE_NCCL_H

#include "transfer/transfer.h"

extern const struct kv_cable_ops kv_cable_nccl;

#define NCCL_CHANNELS 4u
#define NCCL_MEMORY_BYTES (UINT64_C(2) << 30)
#define NCCL_INIT_NS (15 * UINT64_C(1000000000))
#define NCCL_STALL_NS (5 * UINT64_C(1000000000))

#endif
