#include "router/router_config.h"

#include <stddef.h>
#include <string.h>

#include "base/net_address.h"

#define AT(field) offsetof(struct router_config, field)
#define HOUR_NS UINT64_C(3600000000000)
#define LOCAL_PREFILL_TOKENS_MAX 1048576u

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
    {"prefix-cache", FLAG_STRING, AT(prefix_cache), "on", "on|off",
     "Place requests where their prompts are cached; off: by load alone.", 0, 0},
    /* A decode node that computes prompts lengthens every running stream's step, which is what the
     * split is there to prevent, and a prefill node's first token does not wait for the transfer.
     * "auto" therefore speaks only of what is missing behind a cached prefix. A number pays where the
     * network is slow and prompts are a few tokens. */
    {"local-prefill-tokens", FLAG_STRING, AT(local_prefill_tokens), "auto", "auto|tokens",
     "The decode node computes a prompt itself where at most so many tokens are missing from its cache; auto: behind a cached prefix, as many as are predicted to be faster there; 0: only without a prefill node.", 0, 0},
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

bool router_config_local_prefill(const struct router_config *config, bool *ret_predict, uint32_t *ret_tokens)
{
    const char *text = config->local_prefill_tokens;
    *ret_predict = text && strcmp(text, "auto") == 0;
    *ret_tokens = 0;
    if (*ret_predict) { return true; }
    uint64_t value = 0;
    for (const char *at = text; at && *at; at++) {
        if (*at < '0' || *at > '9') { return false; }
        value = value * 10 + (uint64_t)(*at - '0');
        if (value > LOCAL_PREFILL_TOKENS_MAX) { return false; }
    }
    *ret_tokens = (uint32_t)value;
    return text && text[0] != '\0';
}

static status_t bad(struct diag *diag, const char *text)
{
    diag_set(diag, "%s", text);
    return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
}

status_t router_config_check(const struct router_config *config, struct diag *diag)
{
    if (!config->model) { return bad(diag, "--model: needed, a Hugging Face model directory"); }
    if (config->decode.count == 0) { return bad(diag, "--decode: needed, the address of at least one decode node"); }
    bool predict;
    uint32_t tokens;
    if (!router_config_local_prefill(config, &predict, &tokens)) {
        diag_set(diag, "--local-prefill-tokens=%s: takes auto, or a number from 0 to %u",
                 config->local_prefill_tokens ? config->local_prefill_tokens : "", LOCAL_PREFILL_TOKENS_MAX);
        return STATUS(ST_INVALID_ARGUMENT, SCOPE_NODE);
    }
    if (!config->prefix_cache || (strcmp(config->prefix_cache, "on") != 0 && strcmp(config->prefix_cache, "off") != 0)) {
        return bad(diag, "--prefix-cache: takes on or off");
    }
    TRY(net_address_check("listen", config->listen, diag));
    TRY(net_address_check("metrics-listen", config->metrics_listen, diag));
    int tls = (config->tls_cert != NULL) + (config->tls_key != NULL) + (config->tls_ca != NULL);
    if (tls != 0 && tls != 3) { return bad(diag, "--tls-cert, --tls-key and --tls-ca go together"); }
    return STATUS_OK;
}
