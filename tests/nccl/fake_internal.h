/* fake_internal: what the files of fake_nccl share. */
#ifndef BATON_TESTS_NCCL_FAKE_INTERNAL_H
#define BATON_TESTS_NCCL_FAKE_INTERNAL_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/nccl/fake_nccl.h"

#define RULE(cond, ...)                               \
    do {                                              \
        if (!(cond)) {                                \
            fprintf(stderr, "fake_nccl: " __VA_ARGS__); \
            fputc('\n', stderr);                      \
            abort();                                  \
        }                                             \
    } while (0)

struct fake_world {
    pthread_mutex_t lock; /* guards all of it */
    pthread_cond_t changed;
    const struct fake_nccl_device *device;
    struct fake_nccl_options options;
    struct fake_nccl_counts counts;
    bool is_let_go;
};
extern struct fake_world fake_world;

void fake_count(uint32_t *counter, int by);
void fake_count_total(uint64_t *counter);

/* ---- fake_comm.c: a communicator */

struct message; /* private to fake_comm.c */

struct op {
    struct op *next;
    struct comm *comm;
    bool is_send;
    uint8_t *at;
    uint8_t *to; /* to oneself: where the matching receive wants it; then this op is both */
    size_t bytes;
    void *stream;
    uint64_t call;   /* of the communicator's sends and receives, from 1 */
    uint64_t number; /* of those in this direction */
};

struct comm {
    struct comm *next;
    struct fake_nccl_options options;
    const struct fake_nccl_device *vtable;
    void *device;
    struct nccl_id id;
    int ranks, rank;
    uint32_t channels;
    uint64_t caller; /* the thread that made it */
    pthread_t maker, reader;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    const char *inside; /* the call that a thread is in; NULL: none */
    nccl_result_t state;
    bool is_settled, is_made; /* its making has come to an end; to a good one */
    bool is_aborting, has_reader, is_connected, peer_connects, is_gone;
    int root_fd, meet_fd, fd;
    struct op *launch;
    struct message *messages;
    uint32_t kernels;
    uint64_t calls, sends, recvs, bytes_taken;
    pthread_mutex_t write_lock; /* one message at a time; taken without the other */
};

void fake_comm_start(struct comm *comm); /* its threads */
void fake_comm_stop(struct comm *comm);  /* kernels and threads have ended when it returns */
void fake_comm_free(struct comm *comm);

/* ---- fake_root.c: how ranks find each other */

/* A new id with a root behind it. */
nccl_result_t fake_root_create(struct nccl_id *ret_id);

/* Goes to the root; -1: nobody is there. *ret_meet_fd: rank 0 of two: where rank 1 will come; else -1. Descriptors are the
 * caller's, who may shut them down to end fake_root_wait. */
int fake_root_connect(const struct nccl_id *id, int ranks, int rank, int *ret_meet_fd);

/* Waits for the root's answer, then for the other rank. *ret_fd: the way to that; -1 where there is none. False: none will
 * come. */
bool fake_root_wait(int root_fd, int meet_fd, const struct nccl_id *id, int ranks, int *ret_fd);

#endif
