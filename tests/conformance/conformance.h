/* conformance: what the files of the suite share: the two peers of a test, and the tests themselves.
 * Thread:  the test's. */
#ifndef BATON_TESTS_CONFORMANCE_CONFORMANCE_H
#define BATON_TESTS_CONFORMANCE_CONFORMANCE_H

#include "base/clock.h"
#include "tests/conformance/driver.h"

/* The receiver and the sender of the test that runs. */
extern struct proc d, p;

uint64_t elapsed_ms(uint64_t start_ns);

/* Nothing is left on either side; then both end. */
void pair_quit(void);

/* P is in the middle of a transfer: half of the layers are with D. */
void half_way(uint64_t xfer, uint32_t count, uint32_t lease_ms);

/* A grant fails with this code and its blocks are free: at once where D places the bytes, after the
 * sender's word where he does. */
void expect_failed_fenced(unsigned long long id, const char *code);

/* conformance_death.c */
void killed_sender_frees_the_blocks(void **state);
void killed_receiver_and_its_successor(void **state);
void stopped_sender_writes_nothing_when_it_wakes(void **state);
void stopped_receiver_finds_the_transfer_over(void **state);
void slow_reader_gets_everything(void **state);
void lease_ends_a_grant(void **state);
void abort_storm(void **state);
void cut_link_is_seen(void **state);

/* conformance_lies.c */
void forged_frames_land_nowhere(void **state);
void wrong_sums_are_data_loss(void **state);
void flipped_bits_are_seen(void **state);

/* conformance_nccl.c */
/* Transfers of one block from `from` to d, until one goes over nccl. xfer: the next id, moved on. */
void nccl_carries(struct proc *from, uint64_t *xfer);
void broken_pairs_end_what_they_carried(void **state);
void an_abort_that_never_returns_holds_up_nobody(void **state);
void a_pair_that_does_not_come_up_is_given_up(void **state);
void few_pairs_serve_many_links(void **state);
void pools_of_two_formats_are_converted(void **state);
void a_format_is_converted_only_where_both_say_so(void **state);
void forged_messages_break_at_most_their_own_pair(void **state);

/* conformance_device.c */
void copies_under_way_hold_their_blocks(void **state);
void slices_leave_after_their_mark(void **state);
void a_pool_ends_after_its_last_reader(void **state);
void a_lost_device_ends_the_link(void **state);

#endif
