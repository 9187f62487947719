#include "kernels/cuda/cuda_backend.h"

status_t cuda_backend_create(const struct kernels_config *config, struct kernels **ret_kernels, struct diag *diag)
{
    (void)config;
    (void)ret_kernels;
    diag_set(diag, "this build has no CUDA backend; use --backend=cpu");
    return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
}
