/* driver_symbols: every function that Baton calls in libcuda and libcublasLt, once each, and the tables they
 * are found into. Private to driver_*.c and its test; needs the toolkit's headers.
 * Flow:    [driver_symbols] -> driver_library.c fills the tables -> driver_real.c, driver_gemm.c call through them
 * Thread:  constant after loading.
 *
 * A name passes through the preprocessor before it becomes a field, a type and a string, so cuMemAlloc is
 * cuMemAlloc_v2 in all three, as cuda.h would have it linked; the type is the header's own declaration. */
#ifndef BATON_KERNELS_CUDA_DRIVER_SYMBOLS_H
#define BATON_KERNELS_CUDA_DRIVER_SYMBOLS_H

#include <cublasLt.h>
#include <cuda.h>

#define CUDA_SYMBOLS(X)                                                                                     \
    X(cuInit) X(cuDriverGetVersion) X(cuGetErrorName) X(cuGetErrorString)                                   \
    X(cuDeviceGetCount) X(cuDeviceGet) X(cuDeviceGetName) X(cuDeviceGetAttribute) X(cuDeviceGetUuid)        \
    X(cuDeviceTotalMem) X(cuDevicePrimaryCtxRetain) X(cuDevicePrimaryCtxRelease) X(cuCtxSetCurrent)         \
    X(cuCtxGetStreamPriorityRange) X(cuModuleLoadData) X(cuModuleUnload) X(cuModuleGetFunction)             \
    X(cuFuncGetAttribute) X(cuFuncSetAttribute) X(cuFuncGetParamInfo) X(cuLaunchKernel) X(cuLaunchKernelEx) \
    X(cuMemGetInfo) X(cuMemAlloc) X(cuMemFree) X(cuMemHostAlloc) X(cuMemFreeHost) X(cuMemHostRegister)      \
    X(cuMemHostUnregister) X(cuMemcpyHtoDAsync) X(cuMemcpyDtoHAsync) X(cuMemcpyDtoDAsync)                   \
    X(cuMemcpy2DAsync) X(cuMemcpyBatchAsync) X(cuMemsetD8Async)                                             \
    X(cuStreamCreateWithPriority) X(cuStreamDestroy) X(cuStreamSynchronize)                                 \
    X(cuStreamWaitEvent) X(cuStreamAddCallback) X(cuStreamIsCapturing)                                      \
    X(cuEventCreate) X(cuEventDestroy) X(cuEventRecord) X(cuEventSynchronize) X(cuEventElapsedTime)         \
    X(cuIpcGetMemHandle) X(cuIpcOpenMemHandle) X(cuIpcCloseMemHandle) X(cuIpcGetEventHandle)                \
    X(cuIpcOpenEventHandle)                                                                                 \
    X(cuStreamBeginCapture) X(cuStreamEndCapture) X(cuGraphInstantiateWithFlags) X(cuGraphUpload)           \
    X(cuGraphLaunch) X(cuGraphDestroy) X(cuGraphExecDestroy)

#define CUBLASLT_SYMBOLS(X)                                                                                 \
    X(cublasLtGetVersion) X(cublasLtGetStatusName) X(cublasLtCreate) X(cublasLtDestroy)                     \
    X(cublasLtMatmulDescCreate) X(cublasLtMatmulDescDestroy) X(cublasLtMatmulDescSetAttribute)              \
    X(cublasLtMatrixLayoutCreate) X(cublasLtMatrixLayoutDestroy) X(cublasLtMatmulPreferenceCreate)          \
    X(cublasLtMatmulPreferenceDestroy) X(cublasLtMatmulPreferenceSetAttribute)                              \
    X(cublasLtMatmulAlgoGetHeuristic) X(cublasLtMatmulAlgoCheck) X(cublasLtMatmulAlgoConfigGetAttribute)    \
    X(cublasLtMatmul)

#define DRIVER_SYMBOL_FIELD(name) __typeof__(&name) name;
struct cuda_api {
    CUDA_SYMBOLS(DRIVER_SYMBOL_FIELD)
};
struct cublaslt_api {
    CUBLASLT_SYMBOLS(DRIVER_SYMBOL_FIELD)
};
#undef DRIVER_SYMBOL_FIELD

#endif
