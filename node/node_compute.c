#include "node/node_compute.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/device_space.h"
#include "node/device_plan.h"
#include "transfer/nccl_pairs.h"

static uint32_t usable_cores(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0) { return 1; }
    int count = CPU_COUNT(&set);
    return count < 1 ? 1 : (uint32_t)count;
}

static status_t pick_compute(const char *word, const struct model *model, struct diag *diag, enum kernels_compute *ret_compute)
{
    if (strcmp(word, "auto") == 0) {
        *ret_compute = model_suits_bf16(model) ? KERNELS_COMPUTE_BF16 : KERNELS_COMPUTE_F32;
    } else if (strcmp(word, "f32") == 0) {
        *ret_compute = KERNELS_COMPUTE_F32;
    } else if (strcmp(word, "bf16") == 0) {
        *ret_compute = KERNELS_COMPUTE_BF16;
    } else {
        diag_set(diag, "--compute=%s: takes auto, f32 or bf16", word);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    return STATUS_OK;
}

static status_t open_kernels(const struct node_config *config, uint32_t threads, struct diag *diag, struct node_compute *compute)
{
    struct kernels_config kernels = {.backend = config->backend, .isa = config->isa, .threads = threads};
    if (!node_config_wants_device(config)) {
        TRY(pick_compute(config->compute, compute->model, diag, &kernels.compute));
        status_t st = kernels_create(&kernels, &compute->kernels, diag);
        if (failed(st)) { diag_prefix(diag, "--isa=%s", config->isa); }
        return st;
    }
    kernels.device = config->device;
    kernels.deterministic = config->deterministic;
    kernels.activations = model_activation_dtype(compute->model);
    status_t st = kernels_create(&kernels, &compute->kernels, diag);
    if (failed(st)) { diag_prefix(diag, "--backend=%s --device=%u", config->backend, config->device); }
    return st;
}

static uint32_t thread_count(const struct node_config *config) { return config->threads ? config->threads : usable_cores(); }

status_t node_compute_open(const struct node_config *config, struct diag *diag, struct node_compute *compute)
{
    enum model_load load;
    if (!model_load_parse(config->load, &load)) {
        diag_set(diag, "--load=%s: takes auto or dummy", config->load);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    uint32_t threads = thread_count(config);
    struct model_options options = {.load = load, .threads = threads, .pack_cache = config->pack_cache,
                                    .is_for_device = node_config_wants_device(config)};
    if (!model_weight_format_parse(config->weights, &options.weights)) {
        diag_set(diag, "--weights=%s: takes auto, bf16, int8 or int4", config->weights);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    TRY(model_open(config->model, &options, diag, &compute->model));
    if (!node_config_wants_device(config)) { LOGF(LOG_INFO, "weights", "\"%s\"", model_weights_note(compute->model)); }
    TRY(open_kernels(config, threads, diag, compute));
    enum dtype dtype;
    TRY(model_kv_dtype(compute->model, config->kv_dtype, diag, &dtype));
    TRY(model_kv_layout(compute->model, config->block_tokens, dtype, diag, &compute->layout));
    compute->layout.order = kernels_kv_order(compute->kernels);
    return STATUS_OK;
}

static status_t take_count(const char *flag, uint64_t kv_bytes, struct diag *diag, struct node_compute *compute)
{
    uint64_t block_bytes = kv_layout_block_bytes(&compute->layout), count = kv_bytes / block_bytes;
    if (count < 2) {
        diag_set(diag, "%s: holds %" PRIu64 " blocks of %" PRIu64 " bytes; give it at least two", flag, count, block_bytes);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    compute->block_count = count > UINT32_MAX ? UINT32_MAX : (uint32_t)count;
    return STATUS_OK;
}

status_t node_compute_plan(const struct node_config *config, uint64_t engine_bytes, struct diag *diag, struct node_compute *compute)
{
    char flag[96];
    snprintf(flag, sizeof flag, "--kv-memory=%" PRIu64, config->kv_memory);
    if (!node_config_wants_device(config)) { return take_count(flag, config->kv_memory, diag, compute); }
    struct device_plan plan = {.device = config->device,
                               .weights_bytes = model_device_bytes(compute->model),
                               .engine_bytes = engine_bytes,
                               .nccl_bytes = node_config_wants_nccl(config) ? config->nccl_memory : 0};
    if (node_config_wants_nccl(config)) { /* the cable, which knows its slots, may want more; two slices at least */
        plan.nccl_pair_bytes_min = config->nccl_channels * NCCL_PAIRS_CHANNEL_BYTES + 2 * kv_layout_slice_bytes(&compute->layout);
    }
    TRY(device_space_left(compute->kernels, &plan.free_bytes, &plan.total_bytes, diag));
    bool is_auto = config->kv_memory == FLAG_AUTO;
    uint64_t kv_bytes = config->kv_memory;
    if (is_auto) {
        kv_bytes = device_plan_kv_auto(&plan);
        if (kv_bytes == 0) { TRY(device_plan_check(&plan, diag)); } /* without a pool it does not fit either: that text is better */
        snprintf(flag, sizeof flag, "--kv-memory=auto: what is free on --device=%u", config->device);
    }
    TRY(take_count(flag, kv_bytes, diag, compute));
    plan.kv_bytes = node_compute_pool_bytes(compute);
    TRY(device_plan_check(&plan, diag));
    LOGF(LOG_INFO, "device_plan", "device=%u total=%" PRIu64 " free=%" PRIu64 " weights=%" PRIu64 " engine=%" PRIu64 " nccl=%" PRIu64 " kv=%" PRIu64
         " kv_is=%s", plan.device, plan.total_bytes, plan.free_bytes, plan.weights_bytes, plan.engine_bytes, plan.nccl_bytes, plan.kv_bytes,
         is_auto ? "auto" : "given");
    return STATUS_OK;
}

status_t node_compute_load(const struct node_config *config, struct diag *diag, struct node_compute *compute)
{
    if (!node_config_wants_device(config)) { return STATUS_OK; }
    status_t st = model_to_device(compute->model, compute->kernels, thread_count(config), diag);
    if (failed(st)) {
        diag_prefix(diag, "weights of %" PRIu64 " MiB to --device=%u", model_device_bytes(compute->model) >> 20, config->device);
        return st;
    }
    LOGF(LOG_INFO, "weights", "\"%s\"", model_weights_note(compute->model));
    return STATUS_OK;
}

bool node_compute_is_on_device(const struct node_compute *compute)
{
    return compute->kernels && !kernels_uses_host_memory(compute->kernels);
}

status_t node_compute_take_pool(struct node_compute *compute, struct diag *diag)
{
    uint64_t bytes = node_compute_pool_bytes(compute);
    if (!node_compute_is_on_device(compute)) { return kv_endpoint_pool_alloc((size_t)bytes, diag, &compute->pool); }
    compute->pool = (struct kv_endpoint_pool){.bytes = (size_t)bytes, .memfd = -1};
    status_t st = kernels_buffer_alloc(compute->kernels, (size_t)bytes, &compute->pool.base, diag);
    if (!failed(st)) { st = device_memory_create(compute->kernels, compute->pool.base, (size_t)bytes, &compute->pool.memory, diag); }
    if (failed(st)) { diag_prefix(diag, "--kv-memory=%" PRIu64 " MiB on the device", bytes >> 20); }
    return st;
}

void node_compute_close(struct node_compute *compute)
{
    if (node_compute_is_on_device(compute)) {
        device_memory_destroy(compute->pool.memory);
        kernels_buffer_free(compute->kernels, compute->pool.base, compute->pool.bytes);
        model_off_device(compute->model);
    } else {
        kv_endpoint_pool_free(&compute->pool);
    }
    kernels_destroy(compute->kernels);
    model_destroy(compute->model);
    *compute = (struct node_compute){.pool = {.memfd = -1}};
}
