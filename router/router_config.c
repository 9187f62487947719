#include "router/router_config.h"

#include <stddef.h>

#include "base/net_address.h"

#define AT(field) offsetof(struct router_config, field)
#define HOUR_NS UINT64_C(3600000000000)

const struct flag router_flags[] = {
    {"listen", FLAG_STRING, AT(listen), "127.0.0.1:0", "H:P", "Address for clients; port 0 picks one.", 0, 0},
    {"model", FLAG_STRING, AT(model), NULL, "DIR",
     "Hugging Face model directory; only its config and tokenizer are read.", 0, 0},
    {"prefill", FLAG_LIST, AT(prefill), NULL, "H:P,...",
     "Prefill nodes; may be repeated. A name stands for all its addresses.", 0, 0},
    {"decode", FLAG_LIST, AT(decode), NULL, "H:P,...", "Decode nodes; as --prefill. At least one.", 0, 0},
    {"name", FLAG_STRING, AT(name), NULL, "NAME", "Name of the model to clients; default: the directory's.", 0, 0},
    {"chat-template", FLAG_STRING, AT(chat_template), NULL, "NAME|FILE",
     "Chat template in place of the model's own: a built-in family or a file.", 0, 0},
    {"requests-max", FLAG_U32, AT(requests_max), "1024", "N", "Requests at once; one more is refused.", 1, 65536},
    /* 0 by default: a decode node that computes prompts lengthens every running stream's step,
     * which is what the split is there to prevent, and a prefill node's first token does not
     * wait for the transfer. It pays where the network is slow and prompts are a few tokens. */
    {"local-prefill-tokens", FLAG_U32, AT(local_prefill_tokens), "0", "tokens",
     "Prompts up to this length are computed on the decode node; 0: only without a prefill node.", 0, 1048576},
    {"reserve-wait", FLAG_DURATION, AT(reserve_wait_ns), "10s", "TIME",
     "Longest wait of new work for free blocks before it is refused.", 1, HOUR_NS},
    {"resume-wait", FLAG_DURATION, AT(resume_wait_ns), "120s", "TIME",
     "Longest wait of a broken request for a node to resume on.", 1, HOUR_NS},
    {"resolve-interval", FLAG_DURATION, AT(resolve_interval_ns), "5s", "TIME",
     "How often names in --prefill and --decode are resolved again.", 10000000, HOUR_NS},
    {"api-threads", FLAG_U32, AT(api_threads), "2", "N", "Threads for clients' calls; they tokenize too.", 1, 64},
    {"metrics-listen", FLAG_STRING, AT(metrics_listen), NULL, "H:P", "Serve /metrics here; default: off.", 0, 0},
    {"tls-cert", FLAG_STRING, AT(tls_cert), NULL, "FILE", "PEM certificate; with key and CA: mutual TLS everywhere.", 0, 0},
    {"tls-key", FLAG_STRING, AT(tls_key), NULL, "FILE", "PEM key of --tls-cert.", 0, 0},
    {"tls-ca", FLAG_STRING, AT(tls_ca), NULL, "FILE", "PEM certificates of the CA that peers must show.", 0, 0},
    {"drain-timeout", FLAG_DURATION, AT(drain_timeout_ns), "60s", "TIME", "After SIGTERM: longest wait for what is here.", 0, 0},
    {"log-level", FLAG_STRING, AT(log_level), "info", "LEVEL", "error, warn, info or debug.", 0, 0},
    {"print-config", FLAG_BOOL, AT(print_config), NULL, NULL, "Print every flag as it is set, then exit.", 0, 0},
    {"check", FLAG_BOOL, AT(check), NULL, NULL, "Read the model and every flag, then exit.", 0, 0},
};

const uint32_t router_flag_count = sizeof router_flags / sizeof router_flags[0];

static status_t bad(struct diag *diag, const char *text)
{
    diag_set(diag, "%s", text);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

status_t router_config_check(const struct router_config *config, struct diag *diag)
{
    if (!config->model) { return bad(diag, "--model: needed, a Hugging Face model directory"); }
    if (config->decode.count == 0) { return bad(diag, "--decode: needed, the address of at least one decode node"); }
    TRY(net_address_check("listen", config->listen, diag));
    TRY(net_address_check("metrics-listen", config->metrics_listen, diag));
    int tls = (config->tls_cert != NULL) + (config->tls_key != NULL) + (config->tls_ca != NULL);
    if (tls != 0 && tls != 3) { return bad(diag, "--tls-cert, --tls-key and --tls-ca go together"); }
    return STATUS_OK;
}
