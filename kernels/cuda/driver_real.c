/* driver_real: opens a device of this machine and does its memory, kernels and handles for other processes. */
#define CUDA_DRIVER_IMPLEMENTATION
#include "kernels/cuda/driver_real.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/driver_environment.h"
#include "kernels/cuda/driver_library.h"
#include "kernels/cuda/fatbin.h"

#define KERNEL_NAME(name, args) "cuda_" #name,
static const char *const kernel_names[CUDA_KERNEL_COUNT + 1] = {CUDA_KERNELS(KERNEL_NAME) NULL};

_Static_assert(sizeof(CUipcMemHandle) == sizeof(struct cuda_ipc_handle), "a handle is bytes that are copied");
_Static_assert(sizeof(CUipcEventHandle) == sizeof(struct cuda_ipc_handle), "a handle is bytes that are copied");
_Static_assert(sizeof(CUuuid) == 16, "cuda_device_info.uuid");
_Static_assert(sizeof(CUdeviceptr) == sizeof(void *), "device addresses travel as pointers");

status_t real_enter(struct real_driver *real, struct diag *diag)
{
    static _Thread_local uint64_t entered; /* serial of the opening whose context is current; 0: none */
    if (entered == real->serial) { return STATUS_OK; }
    TRY_CU(real, diag, cuCtxSetCurrent, real->context);
    entered = real->serial;
    return STATUS_OK;
}

static uint8_t code_of(CUresult result)
{
    switch (result) {
    case CUDA_ERROR_OUT_OF_MEMORY: return ST_RESOURCE_EXHAUSTED;
    case CUDA_ERROR_INVALID_VALUE:
    case CUDA_ERROR_INVALID_HANDLE: return ST_INVALID_ARGUMENT;
    case CUDA_ERROR_INVALID_CONTEXT: /* a process opens its own IPC handle */
    case CUDA_ERROR_NO_DEVICE:
    case CUDA_ERROR_INVALID_DEVICE:
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
    case CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED:
    case CUDA_ERROR_STREAM_CAPTURE_INVALIDATED:
    case CUDA_ERROR_STREAM_CAPTURE_MERGE:
    case CUDA_ERROR_STREAM_CAPTURE_UNMATCHED:
    case CUDA_ERROR_STREAM_CAPTURE_UNJOINED:
    case CUDA_ERROR_STREAM_CAPTURE_ISOLATION:
    case CUDA_ERROR_STREAM_CAPTURE_IMPLICIT:
    case CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD:
    case CUDA_ERROR_CAPTURED_EVENT: return ST_FAILED_PRECONDITION;
    default: return ST_INTERNAL;
    }
}

status_t real_raise(const struct real_driver *real, CUresult result, int line, const char *what, struct diag *diag)
{
    const char *name = NULL, *sentence = NULL;
    if (real->cu.cuGetErrorName(result, &name) != CUDA_SUCCESS || name == NULL) { name = "an error without a name"; }
    if (real->cu.cuGetErrorString(result, &sentence) != CUDA_SUCCESS || sentence == NULL) { sentence = "no more is known"; }
    diag_set(diag, "CUDA device %u: %s: %s (%s)", real->table.info.device, what, name, sentence);
    status_t st = STATUS_CAUSE(code_of(result), SCOPE_NODE, result);
    st.line = (uint16_t)line;
    return st;
}

static const char *error_name(const struct cuda_driver *self, int32_t cause)
{
    const struct real_driver *real = real_of(self);
    const char *name = NULL;
    if (cause >= CUDA_CAUSE_CUBLAS) {
        return real->lt.cublasLtGetStatusName((cublasStatus_t)(cause - CUDA_CAUSE_CUBLAS));
    }
    return real->cu.cuGetErrorName((CUresult)cause, &name) == CUDA_SUCCESS && name != NULL ? name : "?";
}

/* Whatever the thread has called since our own calls saw it last. */
static status_t thread_bind(const struct cuda_driver *self, struct diag *diag)
{
    struct real_driver *real = real_of(self);
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuCtxSetCurrent, real->context);
    return STATUS_OK;
}

/* ---- memory ------------------------------------------------------------------------------- */

static status_t memory_left(const struct cuda_driver *self, uint64_t *ret_free, uint64_t *ret_total, struct diag *diag)
{
    struct real_driver *real = real_of(self);
    size_t left, total;
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuMemGetInfo, &left, &total);
    *ret_free = left;
    *ret_total = total;
    return STATUS_OK;
}

static status_t mem_alloc(const struct cuda_driver *self, size_t bytes, void **ret_device, struct diag *diag)
{
    struct real_driver *real = real_of(self);
    CUdeviceptr address;
    TRY(real_enter(real, diag));
    CUresult result = real->cu.cuMemAlloc(&address, bytes);
    if (result != CUDA_SUCCESS) {
        char what[64];
        snprintf(what, sizeof what, "cuMemAlloc of %zu bytes", bytes);
        return real_raise(real, result, __LINE__, what, diag);
    }
    *ret_device = (void *)(uintptr_t)address;
    return STATUS_OK;
}

static void mem_free(const struct cuda_driver *self, void *device)
{
    struct real_driver *real = real_of(self);
    if (device == NULL || failed(real_enter(real, NULL))) { return; }
    (void)real->cu.cuMemFree(device_address(device)); /* a device that failed before says so again: nothing to add */
}

static status_t host_alloc(const struct cuda_driver *self, size_t bytes, void **ret_pinned, struct diag *diag)
{
    struct real_driver *real = real_of(self);
    void *pinned;
    TRY(real_enter(real, diag));
    CUresult result = real->cu.cuMemHostAlloc(&pinned, bytes, CU_MEMHOSTALLOC_PORTABLE);
    if (result != CUDA_SUCCESS) {
        char what[64];
        snprintf(what, sizeof what, "cuMemHostAlloc of %zu bytes", bytes);
        return real_raise(real, result, __LINE__, what, diag);
    }
    memset(pinned, 0, bytes);
    *ret_pinned = pinned;
    return STATUS_OK;
}

static void host_free(const struct cuda_driver *self, void *pinned)
{
    struct real_driver *real = real_of(self);
    if (pinned == NULL || failed(real_enter(real, NULL))) { return; }
    (void)real->cu.cuMemFreeHost(pinned);
}

static status_t host_register(const struct cuda_driver *self, void *host, size_t bytes, struct diag *diag)
{
    struct real_driver *real = real_of(self);
    TRY(real_enter(real, diag));
    /* cuMemHostAlloc maps whatever the flags say; of registering no document says so. */
    TRY_CU(real, diag, cuMemHostRegister, host, bytes, CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP);
    return STATUS_OK;
}

static void host_unregister(const struct cuda_driver *self, void *host)
{
    struct real_driver *real = real_of(self);
    if (host == NULL || failed(real_enter(real, NULL))) { return; }
    (void)real->cu.cuMemHostUnregister(host);
}

/* ---- between processes -------------------------------------------------------------------- */

static status_t ipc_export_memory(const struct cuda_driver *self, void *device, struct cuda_ipc_handle *ret_handle,
                                  struct diag *diag)
{
    struct real_driver *real = real_of(self);
    CUipcMemHandle handle;
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuIpcGetMemHandle, &handle, device_address(device));
    memcpy(ret_handle, &handle, sizeof handle);
    return STATUS_OK;
}

static status_t ipc_import_memory(const struct cuda_driver *self, const struct cuda_ipc_handle *handle, void **ret_device,
                                  struct diag *diag)
{
    struct real_driver *real = real_of(self);
    CUipcMemHandle bytes;
    CUdeviceptr address;
    memcpy(&bytes, handle, sizeof bytes);
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuIpcOpenMemHandle, &address, bytes, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
    *ret_device = (void *)(uintptr_t)address;
    return STATUS_OK;
}

static void ipc_close_memory(const struct cuda_driver *self, void *device)
{
    struct real_driver *real = real_of(self);
    if (device == NULL || failed(real_enter(real, NULL))) { return; }
    (void)real->cu.cuIpcCloseMemHandle(device_address(device));
}

static status_t ipc_export_event(const struct cuda_driver *self, struct cuda_event *event,
                                 struct cuda_ipc_handle *ret_handle, struct diag *diag)
{
    struct real_driver *real = real_of(self);
    CUipcEventHandle handle;
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuIpcGetEventHandle, &handle, event_of(event));
    memcpy(ret_handle, &handle, sizeof handle);
    return STATUS_OK;
}

static status_t ipc_import_event(const struct cuda_driver *self, const struct cuda_ipc_handle *handle,
                                 struct cuda_event **ret_event, struct diag *diag)
{
    struct real_driver *real = real_of(self);
    CUipcEventHandle bytes;
    CUevent event;
    memcpy(&bytes, handle, sizeof bytes);
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuIpcOpenEventHandle, &event, bytes);
    *ret_event = (struct cuda_event *)(void *)event;
    return STATUS_OK;
}

/* ---- kernels ------------------------------------------------------------------------------ */

static status_t launch(const struct cuda_driver *self, enum cuda_kernel kernel, const struct cuda_launch *shape,
                       const void *args, size_t args_bytes, struct cuda_stream *stream, struct diag *diag)
{
    struct real_driver *real = real_of(self);
    if ((uint32_t)kernel >= CUDA_KERNEL_COUNT || args_bytes != real->args_bytes[kernel]) {
        diag_set(diag, "CUDA kernel number %u was given %zu bytes of arguments: not what it was compiled with",
                 (unsigned)kernel, args_bytes);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (shape->grid[0] == 0 || shape->grid[1] == 0 || shape->grid[2] == 0) { return STATUS_OK; }
    TRY(real_enter(real, diag));
    void *params[] = {(void *)(uintptr_t)args}; /* read only, but cuda.h does not say const */
    CUresult result;
    if (real->starts_early[kernel]) {
        CUlaunchAttribute early = {.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                                   .value = {.programmaticStreamSerializationAllowed = 1}};
        const CUlaunchConfig config = {.gridDimX = shape->grid[0], .gridDimY = shape->grid[1], .gridDimZ = shape->grid[2],
                                       .blockDimX = shape->block[0], .blockDimY = shape->block[1], .blockDimZ = shape->block[2],
                                       .sharedMemBytes = shape->shared_bytes, .hStream = stream_of(stream), .attrs = &early,
                                       .numAttrs = 1};
        result = real->cu.cuLaunchKernelEx(&config, real->functions[kernel], params, NULL);
    } else {
        result = real->cu.cuLaunchKernel(real->functions[kernel], shape->grid[0], shape->grid[1], shape->grid[2],
                                         shape->block[0], shape->block[1], shape->block[2], shape->shared_bytes,
                                         stream_of(stream), params, NULL);
    }
    if (result != CUDA_SUCCESS) {
        char what[256];
        snprintf(what, sizeof what, "launch of %s, grid %u %u %u, block %u %u %u, %u bytes of shared memory",
                 kernel_names[kernel], shape->grid[0], shape->grid[1], shape->grid[2], shape->block[0], shape->block[1],
                 shape->block[2], shape->shared_bytes);
        return real_raise(real, result, __LINE__, what, diag);
    }
    return STATUS_OK;
}

/* Every kernel may have all the dynamic shared memory that the device gives a block. That also loads its code now, as
 * loading while a stream captures could spoil the capture. All want an SM cut alike, mostly shared memory: an SM changes its
 * cut only when it is empty, which would keep the next kernel off it until then. */
static status_t prepare_kernel(struct real_driver *real, int kernel, struct diag *diag)
{
    CUfunction function = real->functions[kernel];
    int fixed;
    size_t offset, bytes;
    TRY_CU(real, diag, cuFuncGetAttribute, &fixed, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function);
    TRY_CU(real, diag, cuFuncSetAttribute, function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
           (int)real->table.info.shared_bytes_max - fixed);
    TRY_CU(real, diag, cuFuncSetAttribute, function, CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, CU_SHAREDMEM_CARVEOUT_MAX_SHARED);
    TRY_CU(real, diag, cuFuncGetParamInfo, function, 0, &offset, &bytes);
    real->args_bytes[kernel] = bytes;
    return STATUS_OK;
}

/* Chips before sm_90 wait for the launch before in any case. BATON_CUDA_LAUNCH=serial in the environment: all do. */
static void find_early(struct real_driver *real)
{
#define KERNEL_NUMBER(name, args) CUDA_KERNEL_##name,
    static const enum cuda_kernel early[] = {CUDA_KERNELS_EARLY(KERNEL_NUMBER)};
#undef KERNEL_NUMBER
    const char *choice = getenv("BATON_CUDA_LAUNCH");
    if (real->table.info.arch < 90 || (choice != NULL && strcmp(choice, "serial") == 0)) { return; }
    for (size_t i = 0; i < sizeof early / sizeof early[0]; i++) { real->starts_early[early[i]] = true; }
}

static status_t load_kernels(struct real_driver *real, struct diag *diag)
{
    real->modules = calloc(cuda_fatbin_count + 1, sizeof *real->modules);
    if (real->modules == NULL) {
        diag_set(diag, "no memory for the list of CUDA modules");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    for (uint64_t i = 0; i < cuda_fatbin_count; i++) {
        CUresult result = real->cu.cuModuleLoadData(&real->modules[i], cuda_fatbins[i].image);
        if (result != CUDA_SUCCESS) {
            char what[256];
            snprintf(what, sizeof what, "loading %s, which has code for sm_%s and newer, on sm_%u", cuda_fatbins[i].source,
                     DRIVER_ARCHS, real->table.info.arch);
            return real_raise(real, result, __LINE__, what, diag);
        }
    }
    for (int kernel = 0; kernel < CUDA_KERNEL_COUNT; kernel++) {
        CUresult result = CUDA_ERROR_NOT_FOUND;
        for (uint64_t i = 0; i < cuda_fatbin_count && result == CUDA_ERROR_NOT_FOUND; i++) {
            result = real->cu.cuModuleGetFunction(&real->functions[kernel], real->modules[i], kernel_names[kernel]);
        }
        if (result != CUDA_SUCCESS) { return real_raise(real, result, __LINE__, kernel_names[kernel], diag); }
        TRY(prepare_kernel(real, kernel, diag));
    }
    return STATUS_OK;
}

/* ---- opening and closing ------------------------------------------------------------------ */

static void close_driver(const struct cuda_driver *self)
{
    if (self == NULL) { return; }
    struct real_driver *real = real_of(self);
    if (real->lt_handle != NULL && !failed(real_enter(real, NULL))) { (void)real->lt.cublasLtDestroy(real->lt_handle); }
    for (uint64_t i = 0; real->modules != NULL && i < cuda_fatbin_count; i++) {
        if (real->modules[i] != NULL) { (void)real->cu.cuModuleUnload(real->modules[i]); }
    }
    free(real->modules);
    if (real->context != NULL) { (void)real->cu.cuDevicePrimaryCtxRelease(real->device); }
    while (real->callbacks_free != NULL) {
        struct real_callback *next = real->callbacks_free->next;
        free(real->callbacks_free);
        real->callbacks_free = next;
    }
    pthread_mutex_destroy(&real->callbacks_lock);
    free(real);
}

static status_t read_info(struct real_driver *real, struct diag *diag)
{
    struct cuda_device_info *info = &real->table.info;
    int major, minor, sms, shared, l2;
    size_t memory;
    CUuuid uuid;
    TRY_CU(real, diag, cuDeviceGetName, info->name, (int)sizeof info->name, real->device);
    TRY_CU(real, diag, cuDeviceGetAttribute, &major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, real->device);
    TRY_CU(real, diag, cuDeviceGetAttribute, &minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, real->device);
    TRY_CU(real, diag, cuDeviceGetAttribute, &sms, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, real->device);
    TRY_CU(real, diag, cuDeviceGetAttribute, &shared, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, real->device);
    TRY_CU(real, diag, cuDeviceGetAttribute, &l2, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, real->device);
    TRY_CU(real, diag, cuDeviceTotalMem, &memory, real->device);
    TRY_CU(real, diag, cuDeviceGetUuid, &uuid, real->device);
    info->arch = (uint32_t)(major * 10 + minor);
    info->sm_count = (uint32_t)sms;
    info->shared_bytes_max = (uint32_t)shared;
    info->l2_bytes = (uint32_t)l2;
    info->memory_bytes = memory;
    memcpy(info->uuid, &uuid, sizeof uuid);
    return STATUS_OK;
}

static status_t find_device(struct real_driver *real, uint32_t device, struct diag *diag)
{
    int version = 0, count = 0;
    TRY_CU(real, diag, cuInit, 0);
    TRY_CU(real, diag, cuDriverGetVersion, &version);
    if (version < DRIVER_CUDA_VERSION_MIN) {
        diag_set(diag, "the NVIDIA driver of this machine is for CUDA %d.%d; Baton needs one for 13.0 (580 or newer)",
                 version / 1000, version % 1000 / 10);
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    TRY_CU(real, diag, cuDeviceGetCount, &count);
    if (device >= (uint32_t)count) {
        diag_set(diag, "there is no device %u: this machine shows %d (CUDA_VISIBLE_DEVICES hides the others)",
                 device, count);
        return STATUS(ST_FAILED_PRECONDITION, SCOPE_NODE);
    }
    real->table.info.driver_version = (uint32_t)version;
    TRY_CU(real, diag, cuDeviceGet, &real->device, (int)device);
    return read_info(real, diag);
}

static status_t open_driver(struct real_driver *real, uint32_t device, struct diag *diag)
{
    TRY(driver_library_load_cuda(NULL, &real->cu, diag));
    TRY(find_device(real, device, diag));
    TRY(driver_library_load_cublaslt(NULL, &real->lt, diag));
    TRY_CU(real, diag, cuDevicePrimaryCtxRetain, &real->context, real->device);
    TRY(real_enter(real, diag));
    TRY_CU(real, diag, cuCtxGetStreamPriorityRange, &real->priority_least, &real->priority_greatest);
    TRY(load_kernels(real, diag));
    find_early(real);
    cublasStatus_t result = real->lt.cublasLtCreate(&real->lt_handle);
    return result == CUBLAS_STATUS_SUCCESS ? STATUS_OK
                                           : real_raise_cublas(real, result, __LINE__, "cublasLtCreate", diag);
}

status_t cuda_driver_open(uint32_t device, const struct cuda_driver **ret_driver, struct diag *diag)
{
    static _Atomic uint64_t openings;
    cuda_driver_environment_set();
    struct real_driver *real = calloc(1, sizeof *real);
    if (real == NULL) {
        diag_set(diag, "no memory for the CUDA driver's table");
        return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE);
    }
    real->serial = atomic_fetch_add(&openings, 1) + 1;
    pthread_mutex_init(&real->callbacks_lock, NULL);
    struct cuda_driver *table = &real->table;
    table->context = real;
    table->info.device = device;
    table->close = close_driver;
    table->error_name = error_name;
    table->thread_bind = thread_bind;
    table->memory_left = memory_left;
    table->mem_alloc = mem_alloc;
    table->mem_free = mem_free;
    table->host_alloc = host_alloc;
    table->host_free = host_free;
    table->host_register = host_register;
    table->host_unregister = host_unregister;
    table->ipc_export_memory = ipc_export_memory;
    table->ipc_import_memory = ipc_import_memory;
    table->ipc_close_memory = ipc_close_memory;
    table->ipc_export_event = ipc_export_event;
    table->ipc_import_event = ipc_import_event;
    table->launch = launch;
    real_queue_calls(table);
    real_gemm_calls(table);
    status_t st = open_driver(real, device, diag);
    if (failed(st)) {
        close_driver(table);
        return st;
    }
    *ret_driver = table;
    return STATUS_OK;
}
