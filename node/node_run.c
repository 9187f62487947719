/* node_run: the process of a node: flags, signals, its drain and its exit status. */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/flags.h"
#include "base/log.h"
#include "base/version.h"
#include "kernels/cuda/driver_environment.h"
#include "node/node_private.h"
#include "transfer/cable_ucx.h"
#include "transfer/nccl_api.h"

/* Waits until what is here has ended, at most the drain timeout. A second signal cuts it short. */
static void drain(struct node *node, const sigset_t *signals)
{
    LOGF(LOG_INFO, "draining", "timeout_s=%" PRIu64, node->config->drain_timeout_ns / NS_PER_S);
    rpc_health_drain(node->health);
    node_metrics_set_ready(node->metrics, false);
    struct post post = {.kind = POST_DRAIN};
    mailbox_post_wait(node->mailbox, &post);
    uint64_t deadline_ns = clock_now_ns() + node->config->drain_timeout_ns;
    while (clock_now_ns() < deadline_ns && !atomic_load(&node->core_idle) && !atomic_load(&node->core_failed)) {
        struct timespec wait = {.tv_nsec = 20000000};
        if (sigtimedwait(signals, NULL, &wait) > 0) { LOGF(LOG_WARN, "drain_cut", "signal=again"); break; }
    }
}

/* Libraries that set variables of the environment, so before there is any thread; what is missing is told at once. */
static status_t prepare_libraries(const struct node_config *config, struct diag *diag)
{
    const struct kv_ucx_config ucx = node_ucx_config(config);
    const struct nccl_api *nccl;
    if (node_config_wants_device(config)) { cuda_driver_environment_set(); }
    TRY(kv_ucx_prepare(&ucx, diag));
    if (!node_config_wants_nccl(config)) { return STATUS_OK; }
    status_t st = nccl_api_load(config->nccl_library, diag, &nccl);
    if (failed(st)) { diag_prefix(diag, "--nccl=on"); }
    return st;
}

/* Returns the process's exit status, or ends the process with it where something of it would never end. */
static int node_end(struct node *node, int status)
{
    if (node_close(node)) { return status; }
    LOGF(LOG_INFO, "stopped", "role=%s text=\"the device is left to the process's end\"", node->ops->name);
    fflush(NULL); /* log lines are written already; what a library printed may not be */
    _exit(status);
}

int node_run(const struct node_config *config, const struct node_role_ops *ops)
{
    enum log_level level;
    struct diag diag = {{0}};
    if (!log_level_parse(config->log_level, &level)) {
        fprintf(stderr, "--log-level=%s: takes error, warn, info or debug\n", config->log_level);
        return 2;
    }
    log_set_level(level);
    status_t st = node_config_check(config, &diag);
    if (failed(st)) { fprintf(stderr, "%s\n", diag.text); return 2; }
    st = prepare_libraries(config, &diag);
    if (failed(st)) { fprintf(stderr, "%s\n", diag.text); return 1; }

    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL); /* before any thread: all inherit it */
    signal(SIGPIPE, SIG_IGN);

    uint64_t start_ns = clock_now_ns();
    struct node node = {.config = config, .ops = ops, .boot_epoch = clock_wall_ns(), .main_pid = getpid(),
                        .compute = {.pool = {.memfd = -1}}, .wire_lock = PTHREAD_MUTEX_INITIALIZER};
    st = node_open(&node, &diag);
    if (failed(st)) {
        LOGF(LOG_ERROR, "start_failed", "code=%s line=%u why=\"%s\"", status_code_name(st.code), st.line, diag.text);
        return node_end(&node, st.code == ST_INVALID_ARGUMENT ? 2 : 1);
    }
    if (config->check) { return node_end(&node, 0); }
    char device[32] = ""; /* of the CPU there is nothing to add */
    if (node_compute_is_on_device(&node.compute)) { snprintf(device, sizeof device, " device=%u", config->device); }
    LOGF(LOG_INFO, "ready", "role=%s name=%s listen=%s advertise=%s backend=%s%s isa=%s kernel_set=%s threads=%u ms=%" PRIu64,
         ops->name, node.name, node.listen, node.advertise, config->backend ? config->backend : "cpu", device, kernels_isa_name(node.compute.kernels),
         kernels_set_name(node.compute.kernels), kernels_threads(node.compute.kernels), (clock_now_ns() - start_ns) / NS_PER_MS);
    int signal_number;
    sigwait(&signals, &signal_number);
    if (!atomic_load(&node.core_failed)) { drain(&node, &signals); }
    bool was_failed = atomic_load(&node.core_failed);
    rpc_server_shutdown(node.server, 200 * NS_PER_MS);
    int status = node_end(&node, was_failed ? 1 : 0);
    LOGF(LOG_INFO, "stopped", "role=%s", ops->name);
    return status;
}

int node_main(int argc, char **argv, const struct node_role_ops *ops)
{
    struct node_config config;
    struct diag diag = {{0}};
    bool wants_help;
    char program[32];
    snprintf(program, sizeof program, "%s_node", ops->name);
    if (version_is_asked(argc, argv, program, stdout)) { return 0; }
    status_t st = flags_parse(node_flags, node_flag_count, &config, argc, argv, NULL, NULL, &wants_help, &diag);
    if (failed(st)) {
        fprintf(stderr, "%s: %s\n", program, diag.text);
        return 2;
    }
    if (wants_help) {
        char usage[96];
        snprintf(usage, sizeof usage, "%s --listen=H:P --model=DIR [--flag=value ...]", program);
        flags_print_help(node_flags, node_flag_count, usage, stdout);
        version_print_help(stdout);
        return 0;
    }
    if (config.print_config) {
        flags_print_config(node_flags, node_flag_count, &config, stdout);
        return 0;
    }
    return node_run(&config, ops);
}
