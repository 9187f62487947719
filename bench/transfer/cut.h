/* cut: two network namespaces with one cable between them, that can be pulled out. Needs root and veth devices.
 * Thread:  one. */
#ifndef BATON_BENCH_TRANSFER_CUT_H
#define BATON_BENCH_TRANSFER_CUT_H

#include <stdbool.h>

struct cut {
    char netns[2][32]; /* 0: D's, 1: P's */
    const char *ip[2];
};

/* False: not on this machine; what was made is gone again. */
bool cut_make(struct cut *ret_cut);
void cut_pull(const struct cut *cut); /* ends the bench where it cannot be */
void cut_end(const struct cut *cut);  /* after the processes in there have ended */

#endif
