/* cable_ucx_sides: the ucx cable's two halves over a fake UCX, one loop, one thread, with the endpoint's part
 * played by the test: what cable_ucx_test and cable_ucx_device_test share.
 * Thread:  the test's.
 * Memory:  a pool per side, in host memory or on a fake device; freed by both_close(). */
#ifndef BATON_TESTS_UNIT_TRANSFER_CABLE_UCX_SIDES_H
#define BATON_TESTS_UNIT_TRANSFER_CABLE_UCX_SIDES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/kv_memory/fake_memory.h"
#include "tests/ucx/fake_ucx.h"
#include "transfer/cable_ucx.h"
#include "transfer/loop.h"

enum { BLOCKS = 16, LAYERS = 3, LINKS = 4, PUSHES = 64 };
#define CANARY 0xc5

extern const struct kv_layout layout;
extern const uint8_t token[KV_CABLE_TOKEN_BYTES];
extern const struct ucx_api *api; /* what fake_ucx_begin() gave */
extern struct kv_loop *loop;
extern struct kv_cable_push pushes[PUSHES];

struct side {
    struct kv_cable_host host;
    struct kv_cable *cable;
    struct kv_memory *memory; /* the fake device that the pool lies on; NULL: host memory */
    uint8_t *pool;            /* its bytes, to look at and to fill */
    uint32_t connected, lost, landed, bad_sums, refused, pushes_done, dropped, held, let_go, frames;
    status_t lost_status;
    bool accepts;                /* D: the grant is open */
    uint32_t blocks[BLOCKS];     /* D: of the grant */
    uint32_t granted;            /* D: how many */
    bool fence_in_landed;        /* D: answers a report with a fence */
    char text[512];
};
extern struct side d, p;

/* A side with its pool; P's has its bytes, D's canaries. device  NULL: host memory. The text of a refusal is in side->text. */
status_t side_open_on(struct side *side, bool receives, const struct fake_memory_config *device);
status_t side_open(struct side *side, bool receives); /* in host memory */
/* Offers, connects, and waits until both sides know. False: something was refused. */
bool join(void);
void both_open(void); /* in host memory, and joined */
void both_close(void);

/* Turns of the loop until nothing more happens that the loop alone brings about. */
void settle(void);
void settle_ms(uint64_t ms);
/* Until *value is `at_least`; fails the test after 10 s. Devices end their work on threads of their own. */
void until(const uint32_t *value, uint32_t at_least);

struct kv_landing the_grant(void); /* number 9, of d.blocks */
void grant_open_of(uint32_t count);
void grant_open(void); /* of 4 blocks */
/* Every layer of those 4, one push a layer, of send 5, out of P's blocks 0 to 3. */
void push_all_after(uint64_t mark);
void push_all(void);
bool all_is_there(void); /* of d.granted blocks */
bool pool_is_untouched(void); /* D's */

int sides_set_up(void **state);
int sides_tear_down(void **state);

#endif
