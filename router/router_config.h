/* router_config: the router's flags, their table, and what they say together.
 * Flow:    main -> [router_config] -> router_run
 * Thread:  start-up only. */
#ifndef BATON_ROUTER_ROUTER_CONFIG_H
#define BATON_ROUTER_ROUTER_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/flags.h"
#include "base/status.h"

struct router_config {
    const char *listen;
    const char *model;
    const char *name;
    const char *chat_template;
    const char *metrics_listen;
    const char *tls_cert, *tls_key, *tls_ca;
    const char *log_level;
    struct flag_list prefill;
    struct flag_list decode;
    uint32_t requests_max;
    const char *prefix_cache;         /* "on", "off" */
    const char *local_prefill_tokens; /* "auto", or a number */
    uint32_t api_threads;
    uint64_t resolve_interval_ns;
    uint64_t reserve_wait_ns;
    uint64_t resume_wait_ns;
    uint64_t drain_timeout_ns;
    bool print_config;
    bool check; /* open the model and read every flag, then exit */
};

extern const struct flag router_flags[];
extern const uint32_t router_flag_count;

/* local_prefill_tokens as the core takes it. False: it is neither "auto" nor a number. */
bool router_config_local_prefill(const struct router_config *config, bool *ret_predict, uint32_t *ret_tokens);

/* What no single flag can check.
 * Errors  INVALID_ARGUMENT (node), diag names the flags. */
NODISCARD status_t router_config_check(const struct router_config *config, struct diag *diag);

#endif
