/* cable_ucx: RDMA through UCX. P puts slices straight into D's blocks; D's CPU only checks them.
 * Flow:    D: grant -> block numbers to P; P push -> CRC32C, one put a slice, flush, then a frame notice
 *          -> D checks the sums of what landed -> the endpoint's frame_landed
 * Thread:  the transfer thread. UCX has a thread of its own for timers and wire-up; a device's threads only say what is done.
 * Memory:  one UCX worker per link, both sides; UCX does not say how large. The pool is registered once, at start.
 *
 * A pool may lie on a device, on either side or both (GPUDirect RDMA): it is registered as CUDA memory, so the cards read
 * and write it themselves. The CPU touches no byte of it: P's device sums the slices after the push's mark, and its puts go
 * when that is done; D's device sums them when the notice is there, with the landing held. Summing cannot be called
 * back, so a push that is dropped, or a grant or link that ends meanwhile, waits for it. When D's device is behind, D stops
 * taking messages, and P stops with it. It takes a UCX that knows CUDA and a card that can be given the device's memory
 * (the kernel's dma-buf, or the module nvidia-peermem). Without either the cable offers nothing, and its mismatch() says why:
 * UCX maps such memory all the same, but copies puts through both hosts, and its packed key shows that no card has it.
 *
 * This is the one cable where P writes into D's memory by address. What keeps a byte from landing late:
 *
 * - P learns block numbers only for a grant that D has opened to it on the link (secret and all), and
 *   puts each slice of it once. A notice follows the flush of its puts, so a grant whose notices are all
 *   there has no put under way: after LANDED nothing of it can come.
 * - A grant that ends early: P says on the link that it is quiet (ABORT, ABORT_ACK) only when its cable
 *   has no put of that transfer under way; till then D's blocks are in quarantine.
 * - A P that does not say so (dead, stopped, cut off): D destroys its worker for that link. All that can
 *   place bytes for this P hangs on that worker: the queue pairs (RC), the target (DC), the software
 *   handlers (UD, TCP), which run only when we let that worker progress. One worker for all peers would
 *   be cheaper, and then DC and everything emulated could be fenced off from one peer only by
 *   taking it from all of them. The next connection of the same P gets a new worker, whose numbers it
 *   cannot know from the old one.
 * - A worker that does not let itself be emptied in time is not destroyed (UCX would stop the process
 *   for that): then the pool's registration is taken away, which ends every access of every peer in
 *   the hardware; the worker is not progressed again, which ends those in software; and the pool
 *   is registered anew for the next links. Counted as drains_forced.
 * What remains: packets of a dead P's old queue pair that arrive after D has given the same queue pair
 * number to a new one, with just the next sequence number, within the fabric's packet lifetime.
 *
 * Who may use it: UCX's software handlers, which every worker has, copy to any address that a connected
 * peer names, and the registration covers the pool. So UCX wants a network that only trusted hosts are on.
 * With KV_UCX_RDMA no TCP lane is opened at all, not even for wire-up: an open TCP lane of UCX
 * answers put requests from whoever connects to its port, whatever it was opened for. RC and DC lanes
 * wire up over UD there. */
#ifndef BATON_TRANSFER_CABLE_UCX_H
#define BATON_TRANSFER_CABLE_UCX_H

#include "transfer/transfer.h"

extern const struct kv_cable_ops kv_cable_ucx;

/* Loads the library and checks its version, without opening a device: for a program's start, before it
 * has threads. OK when mode is off. Errors: as ucx_api_load(). */
NODISCARD status_t kv_ucx_prepare(const struct kv_ucx_config *config, struct diag *diag);

#endif
