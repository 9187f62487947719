/* fake_libcuda: see fake_cuda.h. */
#include <cuda.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "kernels/cuda/attention_args.h"
#include "kernels/cuda/gemv_args.h"
#include "kernels/cuda/kernel_list.h"
#include "kernels/cuda/kv_args.h"
#include "kernels/cuda/rows_args.h"
#include "kernels/cuda/sample_args.h"
#include "kernels/cuda/slots_args.h"
#include "tests/cuda/fake_cuda.h"

static struct fake_cuda state = {.device_count = 2, .driver_version = 13000};
struct fake_cuda *fake_cuda_state(void);
struct fake_cuda *fake_cuda_state(void) { return &state; }

__attribute__((format(printf, 2, 3))) static CUresult note(const char *name, const char *format, ...)
{
    va_list list;
    state.log_len += (unsigned long)snprintf(state.log + state.log_len, sizeof state.log - state.log_len, "%s ", name);
    va_start(list, format);
    state.log_len += (unsigned long)vsnprintf(state.log + state.log_len, sizeof state.log - state.log_len, format, list);
    va_end(list);
    state.log_len += (unsigned long)snprintf(state.log + state.log_len, sizeof state.log - state.log_len, "\n");
    if (strcmp(name, state.fail_name) == 0 && state.fail_after-- == 0) { return (CUresult)state.fail_code; }
    return CUDA_SUCCESS;
}
#define NAME_OF(name) #name
#define LINKED(name) NAME_OF(name)
#define NOTE(name, ...)                                          \
    do {                                                         \
        CUresult noted_ = note(LINKED(name), __VA_ARGS__);       \
        if (noted_ != CUDA_SUCCESS) { return noted_; }           \
    } while (0)

struct CUstream_st { int capturing; unsigned long nodes; };
struct CUevent_st { unsigned flags; };
struct CUgraph_st { unsigned long nodes; };
struct CUgraphExec_st { unsigned long nodes; };
struct CUmod_st { int number; };
struct CUfunc_st { char name[96]; size_t args_bytes; };
struct CUctx_st { int device; };

static struct CUctx_st the_context;

#define ARGS_BYTES(name, args) {"cuda_" #name, sizeof(struct args)},
static struct CUfunc_st functions[] = {CUDA_KERNELS(ARGS_BYTES) {"", 0}};

CUresult cuInit(unsigned flags) { NOTE(cuInit, "%u", flags); return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { NOTE(cuDriverGetVersion, " "); *version = state.driver_version; return CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult error, const char **name) { *name = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OTHER"; return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult error, const char **text) { (void)error; *text = "a sentence"; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { NOTE(cuDeviceGetCount, " "); *count = state.device_count; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { NOTE(cuDeviceGet, "%d", ordinal); *device = ordinal + 100; return CUDA_SUCCESS; }
CUresult cuDeviceGetName(char *name, int len, CUdevice device) { NOTE(cuDeviceGetName, "%d", device); snprintf(name, (size_t)len, "fake %d", device); return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    NOTE(cuDeviceGetAttribute, "%d %d", attribute, device);
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR            ? 9
             : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR          ? 0
             : attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT              ? 132
             : attribute == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN ? 232448
             : attribute == CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE                     ? 52428800
                                                                                  : -1;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) { NOTE(cuDeviceGetUuid, "%d", device); memset(uuid, 0xab, sizeof *uuid); return CUDA_SUCCESS; }
CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device) { NOTE(cuDeviceTotalMem, "%d", device); *bytes = (size_t)1 << 37; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { NOTE(cuDevicePrimaryCtxRetain, "%d", device); state.contexts++; *context = &the_context; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease(CUdevice device) { NOTE(cuDevicePrimaryCtxRelease, "%d", device); state.contexts--; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { NOTE(cuCtxSetCurrent, "%d", context == &the_context); return CUDA_SUCCESS; }
CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) { NOTE(cuCtxGetStreamPriorityRange, " "); *least = 0; *greatest = -5; return CUDA_SUCCESS; }

CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
    static int number;
    NOTE(cuModuleLoadData, "%x", *(const unsigned *)image);
    *module = calloc(1, sizeof **module);
    (*module)->number = number++;
    state.modules++;
    return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) { NOTE(cuModuleUnload, " "); state.modules--; free(module); return CUDA_SUCCESS; }
/* Each function is in one module only, as it is where several files are compiled. */
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    NOTE(cuModuleGetFunction, "%s", name);
    for (size_t i = 0; functions[i].name[0] != 0; i++) {
        if (strcmp(functions[i].name, name) == 0 && (size_t)module->number % 2 == i % 2) { *function = &functions[i]; return CUDA_SUCCESS; }
    }
    return CUDA_ERROR_NOT_FOUND;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) { NOTE(cuFuncGetAttribute, "%s %d", function->name, attribute); *value = 16; return CUDA_SUCCESS; }
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { NOTE(cuFuncSetAttribute, "%s %d %d", function->name, attribute, value); return CUDA_SUCCESS; }
CUresult cuFuncGetParamInfo(CUfunction function, size_t index, size_t *offset, size_t *bytes) { NOTE(cuFuncGetParamInfo, "%s %zu", function->name, index); *offset = 0; *bytes = function->args_bytes; return CUDA_SUCCESS; }
CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, CUstream stream, void **params, void **extra)
{
    NOTE(cuLaunchKernel, "%s %u %u %u %u %u %u %u %d", function->name, gx, gy, gz, bx, by, bz, shared, extra != NULL);
    if (stream->capturing) { stream->nodes++; }
    memcpy(state.args, params[0], function->args_bytes);
    state.args_bytes = function->args_bytes;
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **params, void **extra)
{
    NOTE(cuLaunchKernelEx, "%s %u %u %u %u %u %u %u %u %d %d %d", function->name, config->gridDimX, config->gridDimY, config->gridDimZ,
         config->blockDimX, config->blockDimY, config->blockDimZ, config->sharedMemBytes, config->numAttrs, config->attrs[0].id,
         config->attrs[0].value.programmaticStreamSerializationAllowed, extra != NULL);
    if (config->hStream->capturing) { config->hStream->nodes++; }
    memcpy(state.args, params[0], function->args_bytes);
    state.args_bytes = function->args_bytes;
    return CUDA_SUCCESS;
}

CUresult cuMemGetInfo(size_t *left, size_t *total) { NOTE(cuMemGetInfo, " "); *left = 5; *total = 7; return CUDA_SUCCESS; }
CUresult cuMemAlloc(CUdeviceptr *address, size_t bytes) { NOTE(cuMemAlloc, "%zu", bytes); *address = (CUdeviceptr)(uintptr_t)calloc(1, bytes); state.allocations++; return CUDA_SUCCESS; }
CUresult cuMemFree(CUdeviceptr address) { NOTE(cuMemFree, " "); free((void *)(uintptr_t)address); state.allocations--; return CUDA_SUCCESS; }
CUresult cuMemHostAlloc(void **host, size_t bytes, unsigned flags) { NOTE(cuMemHostAlloc, "%zu %u", bytes, flags); *host = malloc(bytes); memset(*host, 0x5a, bytes); state.allocations++; return CUDA_SUCCESS; }
CUresult cuMemFreeHost(void *host) { NOTE(cuMemFreeHost, " "); free(host); state.allocations--; return CUDA_SUCCESS; }
CUresult cuMemHostRegister(void *host, size_t bytes, unsigned flags) { (void)host; NOTE(cuMemHostRegister, "%zu %u", bytes, flags); state.allocations++; return CUDA_SUCCESS; }
CUresult cuMemHostUnregister(void *host) { (void)host; NOTE(cuMemHostUnregister, " "); state.allocations--; return CUDA_SUCCESS; }

static CUresult move(CUstream stream, void *to, const void *from, size_t bytes)
{
    if (stream->capturing) { stream->nodes++; } else { memcpy(to, from, bytes); }
    return CUDA_SUCCESS;
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) { NOTE(cuMemcpyHtoDAsync, "%zu", bytes); return move(stream, (void *)(uintptr_t)to, from, bytes); }
CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream stream) { NOTE(cuMemcpyDtoHAsync, "%zu", bytes); return move(stream, to, (void *)(uintptr_t)from, bytes); }
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) { NOTE(cuMemcpyDtoDAsync, "%zu", bytes); return move(stream, (void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes); }
CUresult cuMemcpy2DAsync(const CUDA_MEMCPY2D *copy, CUstream stream)
{
    NOTE(cuMemcpy2DAsync, "%d %d", copy->srcMemoryType, copy->dstMemoryType);
    const char *from = copy->srcMemoryType == CU_MEMORYTYPE_HOST ? copy->srcHost : (const void *)(uintptr_t)copy->srcDevice;
    char *to = copy->dstMemoryType == CU_MEMORYTYPE_HOST ? copy->dstHost : (void *)(uintptr_t)copy->dstDevice;
    for (size_t row = 0; row < copy->Height; row++) { (void)move(stream, to + (copy->dstY + row) * copy->dstPitch + copy->dstXInBytes, from + (copy->srcY + row) * copy->srcPitch + copy->srcXInBytes, copy->WidthInBytes); }
    return CUDA_SUCCESS;
}
CUresult cuMemcpyBatchAsync(CUdeviceptr *to, CUdeviceptr *from, size_t *bytes, size_t count, CUmemcpyAttributes *attributes, size_t *first, size_t attribute_count, CUstream stream)
{
    NOTE(cuMemcpyBatchAsync, "%zu %d %zu %zu", count, attributes[0].srcAccessOrder, first[0], attribute_count);
    for (size_t i = 0; i < count; i++) { (void)move(stream, (void *)(uintptr_t)to[i], (void *)(uintptr_t)from[i], bytes[i]); }
    return CUDA_SUCCESS;
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) { NOTE(cuMemsetD8Async, "%u %zu", value, bytes); (void)stream; memset((void *)(uintptr_t)to, value, bytes); return CUDA_SUCCESS; }

CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int priority) { NOTE(cuStreamCreateWithPriority, "%u %d", flags, priority); *stream = calloc(1, sizeof **stream); state.streams++; return CUDA_SUCCESS; }
CUresult cuStreamDestroy(CUstream stream) { NOTE(cuStreamDestroy, " "); free(stream); state.streams--; return CUDA_SUCCESS; }
CUresult cuStreamSynchronize(CUstream stream) { (void)stream; NOTE(cuStreamSynchronize, " "); return CUDA_SUCCESS; }
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) { (void)stream; (void)event; NOTE(cuStreamWaitEvent, "%u", flags); return CUDA_SUCCESS; }
CUresult cuStreamAddCallback(CUstream stream, CUstreamCallback callback, void *user, unsigned flags) { NOTE(cuStreamAddCallback, "%u", flags); callback(stream, (CUresult)state.device_count == 77 ? CUDA_ERROR_ILLEGAL_ADDRESS : CUDA_SUCCESS, user); return CUDA_SUCCESS; }
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) { NOTE(cuStreamIsCapturing, " "); *status = stream->capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE; return CUDA_SUCCESS; }
CUresult cuEventCreate(CUevent *event, unsigned flags) { NOTE(cuEventCreate, "%u", flags); *event = calloc(1, sizeof **event); state.events++; return CUDA_SUCCESS; }
CUresult cuEventDestroy(CUevent event) { NOTE(cuEventDestroy, " "); free(event); state.events--; return CUDA_SUCCESS; }
CUresult cuEventRecord(CUevent event, CUstream stream) { (void)event; (void)stream; NOTE(cuEventRecord, " "); return CUDA_SUCCESS; }
CUresult cuEventSynchronize(CUevent event) { (void)event; NOTE(cuEventSynchronize, " "); return CUDA_SUCCESS; }
CUresult cuEventElapsedTime(float *ms, CUevent first, CUevent last) { (void)first; (void)last; NOTE(cuEventElapsedTime, " "); *ms = 1.5f; return CUDA_SUCCESS; }

CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr address) { NOTE(cuIpcGetMemHandle, " "); memset(handle, 7, sizeof *handle); memcpy(handle, &address, sizeof address); return CUDA_SUCCESS; }
CUresult cuIpcOpenMemHandle(CUdeviceptr *address, CUipcMemHandle handle, unsigned flags) { NOTE(cuIpcOpenMemHandle, "%u %d", flags, handle.reserved[63]); memcpy(address, &handle, sizeof *address); return CUDA_SUCCESS; }
CUresult cuIpcCloseMemHandle(CUdeviceptr address) { (void)address; NOTE(cuIpcCloseMemHandle, " "); return CUDA_SUCCESS; }
CUresult cuIpcGetEventHandle(CUipcEventHandle *handle, CUevent event) { (void)event; NOTE(cuIpcGetEventHandle, " "); memset(handle, 9, sizeof *handle); return CUDA_SUCCESS; }
CUresult cuIpcOpenEventHandle(CUevent *event, CUipcEventHandle handle) { NOTE(cuIpcOpenEventHandle, "%d", handle.reserved[63]); *event = calloc(1, sizeof **event); state.events++; return CUDA_SUCCESS; }

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) { NOTE(cuStreamBeginCapture, "%d", mode); stream->capturing = 1; stream->nodes = 0; return CUDA_SUCCESS; }
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) { stream->capturing = 0; NOTE(cuStreamEndCapture, " "); *graph = calloc(1, sizeof **graph); (*graph)->nodes = stream->nodes; state.graphs++; return CUDA_SUCCESS; }
CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) { NOTE(cuGraphInstantiateWithFlags, "%llu", flags); *exec = calloc(1, sizeof **exec); (*exec)->nodes = graph->nodes; state.graphs++; return CUDA_SUCCESS; }
CUresult cuGraphUpload(CUgraphExec exec, CUstream stream) { (void)exec; (void)stream; NOTE(cuGraphUpload, " "); return CUDA_SUCCESS; }
CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) { (void)stream; NOTE(cuGraphLaunch, "%lu", exec->nodes); return CUDA_SUCCESS; }
CUresult cuGraphDestroy(CUgraph graph) { NOTE(cuGraphDestroy, " "); free(graph); state.graphs--; return CUDA_SUCCESS; }
CUresult cuGraphExecDestroy(CUgraphExec exec) { NOTE(cuGraphExecDestroy, " "); free(exec); state.graphs--; return CUDA_SUCCESS; }
