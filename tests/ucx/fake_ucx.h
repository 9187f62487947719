/* fake_ucx: a table of UCX's functions that works inside one process, for what a network does not show
 * on demand: any call that fails, completions that come late or never, an error callback at any point.
 * It is strict where UCX stops the process: a worker destroyed with requests under way, or anything used
 * after its end, is a failed CHECK.
 *
 * A put is delivered when it ends: then, and only if the receiving worker lives and the key is of a
 * registration that stands, its bytes land. So a put that is held is one that is late.
 *
 * Memory of a device (fake_ucx_device) is reached as a card reaches it, not by the address that the CPU
 * would fault at. It must be registered as what it is, and host memory too.
 * Thread:  any for the functions; the world is to be looked at and changed while nobody calls them.
 * Memory:  freed by its own calls; fake_ucx_end() tells what was not. */
#ifndef BATON_TESTS_UCX_FAKE_UCX_H
#define BATON_TESTS_UCX_FAKE_UCX_H

#include "transfer/ucx_api.h"

struct fake_ucx_world {
    uint64_t calls;       /* of functions that can fail, so far */
    uint64_t fail_at;     /* this one does; 0: none */
    uint64_t refuse_from; /* from this one on all do */
    bool hold;            /* what is posted from now on ends only by fake_ucx_release() */
    bool hold_for_ever;   /* closing by force does not end it either */
    bool at_once;         /* puts and messages end inside their call */
    unsigned version_minor;
    uint32_t contexts, workers, endpoints, rkeys, memhs, requests, buffers; /* alive */
    uint32_t workers_most;
    uint64_t puts_landed, puts_dropped, puts_posted;
    uint64_t maps;
    char tls[64];
    bool knows_cuda;    /* built with CUDA, and asked for it */
    bool is_direct;     /* a card registers a device's memory; else only UCX's own copies know it */
    bool maps_no_cuda;  /* its driver refuses */
    uint32_t maps_cuda; /* of `maps` */
    uint64_t break_in_put; /* this put, counted from 1, finds its endpoint broken, and ends in itself all that is under way there */
    uint32_t flips;     /* so many of the puts to come arrive with a bit changed */
};
extern struct fake_ucx_world fake_ucx;

const struct ucx_api *fake_ucx_begin(void); /* zeroes the world; version 1.19; knows CUDA, and directly */
/* False, with what is left over printed. */
bool fake_ucx_end(void);
void fake_ucx_release(void); /* what was held ends in the next progress, in order */
/* Memory at `base` lies on a device; `view` shows the same bytes. Until fake_ucx_begin(). */
void fake_ucx_device(const void *base, size_t bytes, uint8_t *view);
/* Every endpoint of the workers in use fails: callbacks in their next progress. */
void fake_ucx_break(ucx_status_t status);

#endif
