/* faulty_disk: pwrite, pread and fallocate of a test program, of which the k-th fails, stops short or kills.
 * Flow:    linking //tests/unit/kv:faulty_disk sends them here; io_uring goes past it
 * Thread:  any; one count for all of them. */
#ifndef BATON_TESTS_UNIT_KV_FAULTY_DISK_H
#define BATON_TESTS_UNIT_KV_FAULTY_DISK_H

#include <stdint.h>

enum disk_fault {
    DISK_SOUND,
    DISK_FULL,        /* ENOSPC; of fallocate too */
    DISK_BROKEN,      /* EIO */
    DISK_STOPS_SHORT, /* half of it is written, then ENOSPC */
    DISK_READ_BROKEN, /* EIO of preads */
    DISK_READ_SHORT,  /* the file ends in the middle */
    PROCESS_DIES,     /* half of it is written, then _exit(9): what kill -9 leaves behind */
};

/* From now on: calls `from` .. `from + count - 1` (the first is 1) meet the fault, of their kind. */
void faulty_disk_plan(enum disk_fault fault, uint64_t from, uint64_t count);

/* Calls of pwrite, of fallocate, since the plan. */
uint64_t faulty_disk_writes(void);
uint64_t faulty_disk_allocations(void);

#endif
