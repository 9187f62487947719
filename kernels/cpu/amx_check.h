/* amx_check: may this process use AMX, and does it compute what it should?
 * Flow:    cpu_backend at create -> [amx_check]
 * Thread:  any; permission once granted holds for the whole process and threads to come.
 * Memory:  the stack and one short-lived block. */
#ifndef BATON_KERNELS_CPU_AMX_CHECK_H
#define BATON_KERNELS_CPU_AMX_CHECK_H

#include <stdbool.h>

#include "base/diag.h"
#include "base/status.h"
#include "kernels/cpu/set.h"

/* By CPUID and XGETBV: tiles with bf16, or with int8, and an operating system that saves them. */
bool amx_has_bf16(void);
bool amx_has_int8(void);

/* Asks Linux for the tiles (arch_prctl, ARCH_REQ_XCOMP_PERM).
 * Errors  FAILED_PRECONDITION (node): refused, diag says so. */
NODISCARD status_t amx_ask_permission(struct diag *diag);

/* Multiplies small matrices of awkward shapes by `piece` and compares each element with the exact sum.
 * Errors  FAILED_PRECONDITION (node): an element is wrong; RESOURCE_EXHAUSTED. */
NODISCARD status_t amx_self_check(void (*piece)(const struct set_gemm_piece *piece, struct set_scratch *scratch), struct diag *diag);

#endif
