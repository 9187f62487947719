/* side: one side of a link, in a process of its own, and how the bench speaks with it.
 * Flow:    bench -> order -> [side] -> endpoint -> cable -> the other side; its events -> fact -> bench
 * Thread:  the bench's one. In the process: one takes orders, the endpoint's tells what happens.
 * Memory:  the process's. It ends when the bench does.
 *
 * The link's stream is a plain socket (tests/conformance/socket_stream.h), as the conformance suite has it; a node's is
 * gRPC. Orders and facts are messages of one fixed size over a socket pair. Times are of the machine's one monotonic
 * clock, so what one process saw can be held against when another was killed. */
#ifndef BATON_BENCH_TRANSFER_SIDE_H
#define BATON_BENCH_TRANSFER_SIDE_H

#include <sys/types.h>

#include "bench/transfer/bench_pool.h"

struct side_config {
    bool receives;
    const char *cable;           /* the only one: "shm", "tcp", "ucx", "nccl" */
    enum bench_pool_kind pool;
    uint32_t device;             /* GPU or fake device */
    uint32_t slice_bytes;        /* a multiple of 4096 */
    uint32_t layers, block_count;
    const char *ip;              /* where it listens; NULL: loopback */
    const char *netns;           /* a network namespace to live in, or NULL */
    const char *ucx_library;     /* NULL or "": the loader's search */
    const char *nccl_host;       /* the host that NCCL is to take it for, or NULL: where it is */
    bool is_filled;              /* transfer 1 can be checked when it has landed */
};

struct side_order {
    enum { SIDE_GRANT, SIDE_SEND, SIDE_STATS, SIDE_CHECK } kind;
    uint64_t xfer;
    uint32_t first, count; /* of the side's scattered blocks */
    uint32_t layers;       /* SEND: that many are pushed, and committed if it is all */
    uint32_t ticket_bytes; /* SEND */
    uint8_t ticket[KV_TICKET_BYTES_MAX];
};

struct side_fact {
    enum {
        SIDE_READY, SIDE_ABSENT, /* the first: it is there, or cannot be, and text says why */
        SIDE_TICKET,             /* answers GRANT */
        SIDE_PUSHED,             /* answers SEND: all is with the cable, value 1; or the transfer is over, 0 */
        SIDE_COUNT,              /* answers STATS: value is slices_landed */
        SIDE_CHECKED,            /* answers CHECK: value is how many slices are wrong */
        SIDE_LANDED, SIDE_FAILED, SIDE_FENCED, SIDE_ACKED, SIDE_SEND_FAILED, /* the endpoint's */
    } kind;
    uint64_t xfer, value;
    uint64_t at_ns;        /* when the endpoint told it */
    bool fenced;           /* FAILED */
    double gbps, cpu_gbps; /* LANDED, ACKED: bytes by time, and by the CPU time of this process since GRANT or SEND */
    char text[256];
    uint32_t ticket_bytes;
    uint8_t ticket[KV_TICKET_BYTES_MAX];
};

struct side {
    pid_t pid; /* 0: none */
    int fd;
};

/* Forks it and waits for its first word. False: it cannot be on this machine, and ret_why says why; it is gone. */
bool side_start(const struct side_config *config, struct side *ret_side, char *ret_why, size_t why_size);
void side_tell(const struct side *side, const struct side_order *order);
/* False: nothing came for wait_ms, or it has ended. */
bool side_hear(const struct side *side, int wait_ms, struct side_fact *ret_fact);
/* Hears until a fact of this kind, and drops the others. Ends the bench where it does not come within half a minute, or
 * where a transfer fails instead. */
void side_expect(const struct side *side, int kind, struct side_fact *ret_fact);
/* Ends it by force, in whatever state it is. Takes one that is gone. */
void side_end(struct side *side);

#endif
