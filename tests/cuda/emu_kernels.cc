/* emu_kernels: the kernels of kernel_list.h by their number. A new one needs its row in that list and, if it brings a
 * new header of arguments, an include here. */
#include "tests/cuda/emu.h"

#include "kernels/cuda/kv_args.h"
#include "kernels/cuda/rows_args.h"
#if __has_include("kernels/cuda/attention_args.h")
#include "kernels/cuda/attention_args.h"
#endif
#if __has_include("kernels/cuda/sample_args.h")
#include "kernels/cuda/sample_args.h"
#endif
#if __has_include("kernels/cuda/gemv_args.h")
#include "kernels/cuda/gemv_args.h"
#endif
#include "kernels/cuda/slots_args.h"

#define DECLARE(name, args) extern "C" void cuda_##name(const struct args a);
CUDA_KERNELS(DECLARE)
#undef DECLARE

namespace {

#define ENTER(name, args) \
    void enter_##name(const void *a) { cuda_##name(*static_cast<const struct args *>(a)); }
CUDA_KERNELS(ENTER)
#undef ENTER

/* Whether a kernel is in the list of those that may start early. */
#define NUMBER(name, args) CUDA_KERNEL_##name,
const enum cuda_kernel early[] = {CUDA_KERNELS_EARLY(NUMBER)};
#undef NUMBER
constexpr bool is_early(enum cuda_kernel kernel)
{
    for (enum cuda_kernel one : early) {
        if (one == kernel) { return true; }
    }
    return false;
}

#define ROW(name, args) {#name, enter_##name, sizeof(struct args), is_early(CUDA_KERNEL_##name)},
const emu_kernel kernels[CUDA_KERNEL_COUNT + 1] = {CUDA_KERNELS(ROW){nullptr, nullptr, 0, false}};
#undef ROW

} // namespace

const struct emu_kernel *emu_kernel_of(enum cuda_kernel kernel) { return &kernels[kernel]; }

bool emu_launch(enum cuda_kernel kernel, const struct cuda_launch *shape, const void *args, size_t args_bytes, struct emu_fault *ret_fault)
{
    return emu_launch_kernel(emu_kernel_of(kernel), shape, args, args_bytes, ret_fault);
}
