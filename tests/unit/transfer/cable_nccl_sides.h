/* cable_nccl_sides: the two halves of the nccl cable in one process, over fakes of NCCL and of the device, with a link that is
 * the test's: it can keep back what one half says, and say what the other never would.
 * Thread:  the test's; it turns both loops.
 * Memory:  a device for each half, from start to stop. */
#ifndef BATON_TESTS_UNIT_TRANSFER_CABLE_NCCL_SIDES_H
#define BATON_TESTS_UNIT_TRANSFER_CABLE_NCCL_SIDES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/kv_memory/fake_memory.h"
#include "tests/nccl/fake_nccl.h"
#include "transfer/cable_nccl.h"
#include "transfer/cable_nccl_state.h"

enum { BLOCKS = 64, LAYERS = 2, LINKS = 4, QUEUE = 256, PUSHES = 64, LINK = 1 };

extern const struct kv_layout layout;

struct said { uint32_t link; uint8_t bytes[KV_CABLE_MESSAGE_BYTES_MAX]; size_t count; };

struct side {
    struct kv_cable_host host;
    struct kv_cable *cable;
    struct kv_loop *loop;
    struct kv_memory *memory;
    uint8_t *view;
    struct said said[QUEUE];
    uint32_t said_first, said_count;
    uint32_t heard_kind[16]; /* of the peer's messages, by kind */
    bool is_own, is_kept;
    uint32_t connected, lost;
    status_t lost_status;
    char lost_text[256];
    /* D */
    bool refuses, is_dead; /* no grant; a grant that ends before its slices have come */
    uint32_t blocks[BLOCKS];
    uint32_t accepted, landed, bad_sums, held, let_go;
    /* P */
    uint32_t done, dropped;
};

extern struct side p, d;
extern struct kv_cable_push pushes[PUSHES];
/* What is kept from whom: messages of one kind, or none. */
extern enum nccl_wire_kind kept_kind;
extern struct side *kept_from;
extern struct nccl_wire_msg kept; /* the last one */
extern uint32_t kept_count;

status_t side_open(struct side *side, const struct kv_nccl_config *config, struct diag *diag);
void side_close(struct side *side);

/* One round of all that can happen; until: rounds until a counter is so large, or the test fails. */
void turn(void);
void until_at(const uint32_t *counter, uint32_t value, int line);
#define until(counter, value) until_at(counter, value, __LINE__)
void settle(void); /* fifty rounds, for what should not come */
void say_to(struct side *to, const struct nccl_wire_msg *msg);
void join(void); /* P connects by D's offer */
/* P's push `number`: four slices from block `first` on. is_there: whether D has them. */
void push(uint32_t number, uint32_t layer, uint32_t first, uint32_t send_slot);
bool is_there(uint32_t layer, uint32_t first);
struct kv_nccl_stats stats_of(const struct side *side);

struct kv_nccl_config standard(void);
int start_with(const struct kv_nccl_config *config);
/* For cmocka's set-up and teardown. */
int start(void **state);
int start_impatient(void **state);
int start_with_little_patience(void **state);
int stop(void **state);

#endif
