/* forms: the cables by the memory that they are measured with, and which of them this machine has.
 * Thread:  one. */
#ifndef BATON_BENCH_TRANSFER_FORMS_H
#define BATON_BENCH_TRANSFER_FORMS_H

#include "bench/transfer/side.h"

struct form {
    const char *name;  /* "shm", "tcp@gpu": as --cables of the benches takes it, and as results name it */
    const char *cable;
    enum bench_pool_kind pool;
    bool crosses_network; /* so a link can be cut */
};

#define FORMS_MAX 16u

/* names  "auto": all but those on the fake device, which have to be named; or names with commas between.
 * ret_forms  [FORMS_MAX]
 * Ends the bench where a name is unknown. */
uint32_t forms_parse(const char *names, const struct form **ret_forms);

/* Leaves in forms [count] those that this machine can run, and returns how many; prints for each of the others a JSON line
 * {"bench":"absent","form":NAME,"why":TEXT}. */
uint32_t forms_here(const struct form **forms, uint32_t count);

/* Where UCX's library is, or ""; as the conformance suite finds it. */
const char *forms_ucx_library(void);

/* What the two sides of a form are started with, but for slices and blocks. With one GPU both have it, and NCCL is
 * told that they are two hosts, since it takes one GPU for one rank; BENCH_DEVICES=0,1 gives them two. */
struct side_config form_side(const struct form *form, bool receives);

/* "--key=value" among the arguments, else standard. key: with its "=". */
const char *bench_option(int argc, char **argv, const char *key, const char *standard);

#endif
