/* status_map: our status numbers are gRPC's, checked when this file is compiled, so that a code
 * goes to the wire and comes back without a table. */
#include <grpc/status.h>

#include "base/status.h"

#define SAME(name) _Static_assert((int)ST_##name == (int)GRPC_STATUS_##name, "status " #name " is not gRPC's number")

SAME(OK);
SAME(CANCELLED);
SAME(UNKNOWN);
SAME(INVALID_ARGUMENT);
SAME(DEADLINE_EXCEEDED);
SAME(NOT_FOUND);
SAME(ALREADY_EXISTS);
SAME(PERMISSION_DENIED);
SAME(RESOURCE_EXHAUSTED);
SAME(FAILED_PRECONDITION);
SAME(ABORTED);
SAME(OUT_OF_RANGE);
SAME(UNIMPLEMENTED);
SAME(INTERNAL);
SAME(UNAVAILABLE);
SAME(DATA_LOSS);
SAME(UNAUTHENTICATED);
