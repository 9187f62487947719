/* node_config: the flags that a prefill node and a decode node share, and their table.
 * Flow:    main -> [node_config] -> node_run
 * Thread:  start-up only. */
#ifndef BATON_NODE_NODE_CONFIG_H
#define BATON_NODE_NODE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/flags.h"
#include "base/status.h"

struct node_config {
    const char *listen;
    const char *advertise;
    const char *name;
    const char *model;
    const char *load;
    const char *backend; /* "cpu", "cuda" */
    uint32_t device;
    bool deterministic;
    const char *isa;
    const char *compute;
    const char *weights;
    const char *pack_cache;
    const char *kv_dtype;
    const char *cables;
    const char *ucx; /* "off", "rdma", "trust-network" */
    const char *ucx_library;
    const char *nccl; /* "off", "on"; NULL: off */
    const char *nccl_library;
    uint32_t nccl_channels;  /* of a communicator */
    uint32_t nccl_pairs_max; /* 0: one for each link */
    uint64_t nccl_memory;    /* of the device, for all communicators together */
    uint64_t nccl_init_timeout_ns;
    const char *kv_convert; /* "off", "on"; NULL: off */
    const char *tcp_listen;
    const char *uds_dir;
    const char *metrics_listen;
    const char *tls_cert, *tls_key, *tls_ca;
    const char *log_level;
    const char *prefix_cache; /* "on", "off" */
    const char *preempt;      /* "auto", "swap", "recompute" */
    float itl_stretch;        /* 0: no limit */
    uint32_t threads;
    uint32_t block_tokens;
    uint32_t step_tokens;
    uint32_t chunk_tokens;
    uint32_t batch_max;   /* decode: sequences in one step; prefill: first tokens of one step */
    uint32_t waiting_max; /* legs beyond batch_max */
    uint32_t routers_max;
    uint64_t kv_memory; /* FLAG_AUTO: what a device has left */
    uint64_t kv_host_memory, kv_disk; /* tiers below the pool; 0: none */
    const char *kv_disk_path;
    uint64_t lease_ns;
    uint64_t drain_timeout_ns;
    bool print_config;
    bool check; /* do everything up to listening, then exit */
};

extern const struct flag node_flags[];
extern const uint32_t node_flag_count;

/* Whether --backend is one with a device of its own. */
bool node_config_wants_device(const struct node_config *config);
/* Whether the nccl cable is turned on. */
bool node_config_wants_nccl(const struct node_config *config);
/* Whether peers may keep KV in another number format. */
bool node_config_converts(const struct node_config *config);

/* What no single flag can check: cross-checks between flags.
 * Errors  INVALID_ARGUMENT (node), diag names both flags. */
NODISCARD status_t node_config_check(const struct node_config *config, struct diag *diag);

#endif
