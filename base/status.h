/* status: the one error type of Baton.
 * Flow:    every call that can fail returns one; the core that decides logs it, once.
 * Thread:  any; a plain value.
 * Memory:  none. The text for a person travels beside it in a diag (base/diag.h). */
#ifndef BATON_BASE_STATUS_H
#define BATON_BASE_STATUS_H

#include <stdbool.h>
#include <stdint.h>

#define NODISCARD __attribute__((warn_unused_result))

/* The gRPC status numbers; rpc/status_map.c asserts that they are. */
enum status_code {
    ST_OK = 0,
    ST_CANCELLED = 1,
    ST_UNKNOWN = 2,
    ST_INVALID_ARGUMENT = 3,
    ST_DEADLINE_EXCEEDED = 4,
    ST_NOT_FOUND = 5,
    ST_ALREADY_EXISTS = 6,
    ST_PERMISSION_DENIED = 7,
    ST_RESOURCE_EXHAUSTED = 8,
    ST_FAILED_PRECONDITION = 9,
    ST_ABORTED = 10,
    ST_OUT_OF_RANGE = 11,
    ST_UNIMPLEMENTED = 12,
    ST_INTERNAL = 13,
    ST_UNAVAILABLE = 14,
    ST_DATA_LOSS = 15,
    ST_UNAUTHENTICATED = 16,
};

/* The largest thing that is unusable now. It decides the answer: fail this request; drop
 * the link to the peer and retry elsewhere; drain the node and exit. */
enum status_scope { SCOPE_REQUEST = 0, SCOPE_PEER = 1, SCOPE_NODE = 2 };

typedef struct {
    uint8_t code;  /* enum status_code */
    uint8_t scope; /* enum status_scope */
    uint16_t line; /* where it was first raised */
    int32_t cause; /* errno, cudaError_t, ucs_status_t or ncclResult_t; 0 if ours */
} status_t;

_Static_assert(sizeof(status_t) == 8, "a status is passed in one register");

#define STATUS_OK ((status_t){0})

/* Raises a status here. */
#define STATUS(code_, scope_) \
    ((status_t){.code = (uint8_t)(code_), .scope = (uint8_t)(scope_), .line = (uint16_t)__LINE__})
#define STATUS_CAUSE(code_, scope_, cause_)                                  \
    ((status_t){.code = (uint8_t)(code_), .scope = (uint8_t)(scope_),        \
                .line = (uint16_t)__LINE__, .cause = (int32_t)(cause_)})

static inline bool failed(status_t st) { return st.code != ST_OK; }

/* For functions that hold nothing that must be given back. */
#define TRY(call)                       \
    do {                                \
        status_t st_try_ = (call);      \
        if (failed(st_try_)) {          \
            return st_try_;             \
        }                               \
    } while (0)

/* The code's gRPC name, "RESOURCE_EXHAUSTED"; "?" for a number that is none. */
const char *status_code_name(uint8_t code);

#endif
