/* The cables of this build, best first. */
#include "transfer/cable_nccl.h"
#include "transfer/cable_shm.h"
#include "transfer/cable_tcp.h"
#include "transfer/cable_ucx.h"

const struct kv_cable_ops *const kv_cables[] = {&kv_cable_shm, &kv_cable_nccl, &kv_cable_ucx, &kv_cable_tcp, NULL};
