/* ctl_samples: random messages of every kind, and where two of them differ.
 * Flow:    ctl_codec_test, ctl_codec_fuzz -> [ctl_samples]
 * Thread:  one; the samples' arrays are static and live until the next ctl_sample(). */
#ifndef BATON_TESTS_UNIT_CONTROL_CTL_SAMPLES_H
#define BATON_TESTS_UNIT_CONTROL_CTL_SAMPLES_H

#include "base/rng.h"
#include "control/ctl_msg.h"

/* A message whose values span their types; arrays are empty now and then. */
void ctl_sample(enum ctl_kind kind, struct rng *rng, struct ctl_msg *ret_msg);

/* The first field in which they differ, compared bit by bit (a NaN equals itself); NULL: none. */
const char *ctl_difference(const struct ctl_msg *a, const struct ctl_msg *b);

#endif
