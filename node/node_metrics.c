#include "node/node_metrics.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/metrics.h"
#include "base/metrics_http.h"
#include "base/net_address.h"
#include "node/tier_service.h"

/* Gauges, in the order of the table below. */
enum { RUNNING, WAITING, KV_USAGE, CACHE_INFO, BLOCKS_FREE, BLOCKS_HELD, BLOCKS_CACHED, BLOCKS_QUARANTINED, BACKLOG,
       KV_HEADROOM, LEGS, DRAINING, GRANTS_LIVE, GRANTS_QUARANTINED, LINKS, UCX_REGISTERED, UCX_REGISTRATION, UCX_WORKERS,
       NCCL_PAIRS_UP, NCCL_PAIRS_OPENING, NCCL_PAIRS_STUCK, NCCL_MEMORY, NCCL_INIT_LAST, NCCL_INIT_MAX, NCCL_ABORT_LAST, NCCL_ABORT_MAX,
       TIER_BLOCKS_HOST, TIER_BLOCKS_DISK, TIER_MAX_HOST, TIER_MAX_DISK, TIER_BYTES_HOST,
       TIER_BYTES_DISK, TIER_LOAD_RATE_HOST, TIER_LOAD_RATE_DISK, TIER_STORE_RATE_HOST, TIER_STORE_RATE_DISK, TIER_DISK_PAUSED,
       GAUGE_COUNT };

/* Counters that only grow: `seen` is what was added so far. */
enum { PROMPT_TOKENS, GENERATION_TOKENS, PREEMPTIONS, FINISHED, FAILED, CANCELLED, REFUSED, LATE, STEPS, CACHE_ASKED, CACHE_FOUND,
       GAVE_WAY_SWAP, GAVE_WAY_RECOMPUTE, GAVE_WAY_SLOT, PREFIX_LOADED, PREFIX_COMPUTED, TIER_TOKENS_LOADED,
       LOAD_PREDICTED_US, LOAD_ACTUAL_US, BYTES_LANDED,
       BYTES_PUSHED, LANDED, XFER_FAILED, ACKED, SEND_FAILED, CRC_ERRORS, SLICES_REFUSED, LINKS_LOST, FENCES_FORCED,
       UCX_PUTS, UCX_PUT_BYTES, UCX_BUSY_US, UCX_LANES_RDMA, UCX_LANES_OTHER, UCX_DRAINS_FORCED,
       NCCL_OPENED, NCCL_CLOSED, NCCL_BROKEN, NCCL_DENIED, NCCL_FRAMES, NCCL_BYTES, NCCL_BUSY_US, NCCL_STALE,
       TIER_STORED_HOST, TIER_STORED_DISK, TIER_LOADED_HOST, TIER_LOADED_DISK, TIER_DROPPED_HOST, TIER_DROPPED_DISK,
       TIER_STORE_FAILED, TIER_LOAD_FAILED, TIER_CHECKSUM_FAILED, COUNTER_COUNT };

struct node_metrics {
    struct metrics *registry;
    struct metrics_http *http;
    struct kv_endpoint *endpoint;
    struct tier_service *tiers;
    uint32_t block_tokens;
    struct gauge *gauges[GAUGE_COUNT];
    struct counter *counters[COUNTER_COUNT];
    uint64_t seen[COUNTER_COUNT]; /* core thread up to LOAD_ACTUAL_US; the scrape from BYTES_LANDED on */
    _Atomic bool is_ready;
};

struct row {
    const char *name, *help, *key, *value; /* key NULL: only model_name */
};

static const struct row gauge_rows[GAUGE_COUNT] = {
    [RUNNING] = {"vllm:num_requests_running", "Sequences in the running batch.", NULL, NULL},
    [WAITING] = {"vllm:num_requests_waiting", "Sequences that wait for blocks, KV or a slot.", NULL, NULL},
    [KV_USAGE] = {"vllm:kv_cache_usage_perc", "Share of KV blocks that requests hold, 0 to 1; cached ones give way.", NULL, NULL},
    [CACHE_INFO] = {"vllm:cache_config_info", "The KV pool; always 1.", NULL, NULL},
    [BLOCKS_FREE] = {"baton_kv_blocks", "KV blocks by state.", "state", "free"},
    [BLOCKS_HELD] = {"baton_kv_blocks", "KV blocks by state.", "state", "held"},
    [BLOCKS_CACHED] = {"baton_kv_blocks", "KV blocks by state.", "state", "cached"},
    [BLOCKS_QUARANTINED] = {"baton_kv_blocks", "KV blocks by state.", "state", "quarantined"},
    [BACKLOG] = {"baton_prefill_backlog_seconds", "Prompt tokens still to compute here, over the measured rate.", NULL, NULL},
    [KV_HEADROOM] = {"baton_kv_headroom_tokens", "Tokens that the free and the cached blocks hold.", NULL, NULL},
    [LEGS] = {"baton_legs", "Legs held, all states.", NULL, NULL},
    [DRAINING] = {"baton_draining", "1 while the node takes nothing new.", NULL, NULL},
    [GRANTS_LIVE] = {"baton_kv_grants", "Grants by state.", "state", "live"},
    [GRANTS_QUARANTINED] = {"baton_kv_grants", "Grants by state.", "state", "quarantined"},
    [LINKS] = {"baton_kv_links", "Links to peers that are up.", NULL, NULL},
    [UCX_REGISTERED] = {"baton_ucx_registered_bytes", "KV pool that is registered with the network device.", NULL, NULL},
    [UCX_REGISTRATION] = {"baton_ucx_registration_seconds", "What registering it took.", NULL, NULL},
    [UCX_WORKERS] = {"baton_ucx_workers", "UCX workers alive, one a link; more: some did not drain.", NULL, NULL},
    [NCCL_PAIRS_UP] = {"baton_nccl_pairs", "NCCL communicators alive; stuck: an abort that never returned.", "state", "up"},
    [NCCL_PAIRS_OPENING] = {"baton_nccl_pairs", "NCCL communicators alive; stuck: an abort that never returned.", "state", "opening"},
    [NCCL_PAIRS_STUCK] = {"baton_nccl_pairs", "NCCL communicators alive; stuck: an abort that never returned.", "state", "stuck"},
    [NCCL_MEMORY] = {"baton_nccl_memory_bytes", "GPU memory that communicators and their slots take.", NULL, NULL},
    [NCCL_INIT_LAST] = {"baton_nccl_init_seconds", "What a communicator took to come up.", "which", "last"},
    [NCCL_INIT_MAX] = {"baton_nccl_init_seconds", "What a communicator took to come up.", "which", "max"},
    [NCCL_ABORT_LAST] = {"baton_nccl_abort_seconds", "What ending a communicator took.", "which", "last"},
    [NCCL_ABORT_MAX] = {"baton_nccl_abort_seconds", "What ending a communicator took.", "which", "max"},
    [TIER_BLOCKS_HOST] = {"baton_kv_tier_blocks", "KV blocks in the tiers below the pool.", "tier", "host"},
    [TIER_BLOCKS_DISK] = {"baton_kv_tier_blocks", "KV blocks in the tiers below the pool.", "tier", "disk"},
    [TIER_MAX_HOST] = {"baton_kv_tier_blocks_max", "KV blocks that a tier holds at most.", "tier", "host"},
    [TIER_MAX_DISK] = {"baton_kv_tier_blocks_max", "KV blocks that a tier holds at most.", "tier", "disk"},
    [TIER_BYTES_HOST] = {"baton_kv_tier_bytes", "Bytes of KV in the tiers.", "tier", "host"},
    [TIER_BYTES_DISK] = {"baton_kv_tier_bytes", "Bytes of KV in the tiers.", "tier", "disk"},
    [TIER_LOAD_RATE_HOST] = {"baton_kv_tier_load_bytes_per_second", "Measured rate of loads.", "tier", "host"},
    [TIER_LOAD_RATE_DISK] = {"baton_kv_tier_load_bytes_per_second", "Measured rate of loads.", "tier", "disk"},
    [TIER_STORE_RATE_HOST] = {"baton_kv_tier_store_bytes_per_second", "Measured rate of stores.", "tier", "host"},
    [TIER_STORE_RATE_DISK] = {"baton_kv_tier_store_bytes_per_second", "Measured rate of stores.", "tier", "disk"},
    [TIER_DISK_PAUSED] = {"baton_kv_tier_disk_paused", "1 while the disk's writes fail and it is left alone.", NULL, NULL},
};

static const struct row counter_rows[COUNTER_COUNT] = {
    [PROMPT_TOKENS] = {"baton_node_prompt_tokens_total", "Prompt tokens computed here.", NULL, NULL},
    [GENERATION_TOKENS] = {"baton_node_generation_tokens_total", "Output tokens sampled here.", NULL, NULL},
    [PREEMPTIONS] = {"vllm:num_preemptions_total", "Sequences that gave their blocks up.", NULL, NULL},
    [FINISHED] = {"baton_legs_total", "Legs that ended here, by how.", "outcome", "finished"},
    [FAILED] = {"baton_legs_total", "Legs that ended here, by how.", "outcome", "failed"},
    [CANCELLED] = {"baton_legs_total", "Legs that ended here, by how.", "outcome", "cancelled"},
    [REFUSED] = {"baton_legs_total", "Legs that ended here, by how.", "outcome", "refused"},
    [LATE] = {"baton_late_messages_total", "Messages about legs that were gone.", NULL, NULL},
    [STEPS] = {"baton_engine_steps_total", "Engine steps.", NULL, NULL},
    [CACHE_ASKED] = {"vllm:prefix_cache_queries_total", "Tokens of prompts looked up in the prefix cache.", NULL, NULL},
    [CACHE_FOUND] = {"vllm:prefix_cache_hits_total", "Tokens of prompts found there or in a tier.", NULL, NULL},
    [GAVE_WAY_SWAP] = {"baton_preemptions_total", "Sequences that gave way, by how.", "how", "swap"},
    [GAVE_WAY_RECOMPUTE] = {"baton_preemptions_total", "Sequences that gave way, by how.", "how", "recompute"},
    [GAVE_WAY_SLOT] = {"baton_preemptions_total", "Sequences that gave way, by how.", "how", "slot"},
    [PREFIX_LOADED] = {"baton_kv_tier_prefixes_total", "Prefixes that lay in a tier, by what was predicted cheaper.", "choice", "load"},
    [PREFIX_COMPUTED] = {"baton_kv_tier_prefixes_total", "Prefixes that lay in a tier, by what was predicted cheaper.", "choice", "recompute"},
    [TIER_TOKENS_LOADED] = {"baton_kv_tier_tokens_loaded_total", "Tokens that were loaded rather than computed.", NULL, NULL},
    [LOAD_PREDICTED_US] = {"baton_kv_tier_load_microseconds_total", "Time of loads, predicted and as it was.", "kind", "predicted"},
    [LOAD_ACTUAL_US] = {"baton_kv_tier_load_microseconds_total", "Time of loads, predicted and as it was.", "kind", "actual"},
    [BYTES_LANDED] = {"baton_kv_bytes_total", "KV bytes moved, by direction.", "direction", "in"},
    [BYTES_PUSHED] = {"baton_kv_bytes_total", "KV bytes moved, by direction.", "direction", "out"},
    [LANDED] = {"baton_kv_transfers_total", "Transfers by end.", "outcome", "landed"},
    [XFER_FAILED] = {"baton_kv_transfers_total", "Transfers by end.", "outcome", "receive_failed"},
    [ACKED] = {"baton_kv_transfers_total", "Transfers by end.", "outcome", "acked"},
    [SEND_FAILED] = {"baton_kv_transfers_total", "Transfers by end.", "outcome", "send_failed"},
    [CRC_ERRORS] = {"baton_kv_crc_errors_total", "Slices whose checksum did not hold.", NULL, NULL},
    [SLICES_REFUSED] = {"baton_kv_slices_refused_total", "Slices of unknown grants, out of bounds, or twice.", NULL, NULL},
    [LINKS_LOST] = {"baton_kv_links_lost_total", "Links that broke.", NULL, NULL},
    [FENCES_FORCED] = {"baton_kv_fences_forced_total", "Quarantines that were ended by force.", NULL, NULL},
    [UCX_PUTS] = {"baton_ucx_puts_total", "Slices put into a peer's memory, flushed.", NULL, NULL},
    [UCX_PUT_BYTES] = {"baton_ucx_put_bytes_total", "Their bytes; by the busy time this is the rate reached.", NULL, NULL},
    [UCX_BUSY_US] = {"baton_ucx_busy_microseconds_total", "Time with a put under way, summed over links.", NULL, NULL},
    [UCX_LANES_RDMA] = {"baton_ucx_connections_total", "Connections that came to work, by their lanes.", "lanes", "rdma"},
    [UCX_LANES_OTHER] = {"baton_ucx_connections_total", "Connections that came to work, by their lanes.", "lanes", "other"},
    [UCX_DRAINS_FORCED] = {"baton_ucx_drains_forced_total", "Connections that UCX did not let go of in time.", NULL, NULL},
    [NCCL_OPENED] = {"baton_nccl_pairs_total", "Communicators that came up, were closed for another's sake, broke, or were refused by the peer.", "what", "opened"},
    [NCCL_CLOSED] = {"baton_nccl_pairs_total", "Communicators that came up, were closed for another's sake, broke, or were refused by the peer.", "what", "closed"},
    [NCCL_BROKEN] = {"baton_nccl_pairs_total", "Communicators that came up, were closed for another's sake, broke, or were refused by the peer.", "what", "broken"},
    [NCCL_DENIED] = {"baton_nccl_pairs_total", "Communicators that came up, were closed for another's sake, broke, or were refused by the peer.", "what", "denied"},
    [NCCL_FRAMES] = {"baton_nccl_frames_total", "Frames of slices that went by NCCL, sent or received.", NULL, NULL},
    [NCCL_BYTES] = {"baton_nccl_bytes_total", "Their bytes; by the busy time this is the rate reached.", NULL, NULL},
    [NCCL_BUSY_US] = {"baton_nccl_busy_microseconds_total", "Time with a frame under way, summed over links.", NULL, NULL},
    [NCCL_STALE] = {"baton_nccl_messages_stale_total", "Messages about communicators that were over.", NULL, NULL},
    [TIER_STORED_HOST] = {"baton_kv_tier_stored_total", "Blocks stored in a tier, from the pool or the tier above.", "tier", "host"},
    [TIER_STORED_DISK] = {"baton_kv_tier_stored_total", "Blocks stored in a tier, from the pool or the tier above.", "tier", "disk"},
    [TIER_LOADED_HOST] = {"baton_kv_tier_loaded_total", "Blocks loaded from a tier into the pool.", "tier", "host"},
    [TIER_LOADED_DISK] = {"baton_kv_tier_loaded_total", "Blocks loaded from a tier into the pool.", "tier", "disk"},
    [TIER_DROPPED_HOST] = {"baton_kv_tier_dropped_total", "Blocks that a tier gave up for good.", "tier", "host"},
    [TIER_DROPPED_DISK] = {"baton_kv_tier_dropped_total", "Blocks that a tier gave up for good.", "tier", "disk"},
    [TIER_STORE_FAILED] = {"baton_kv_tier_failures_total", "Stores and loads that failed, and loads whose checksum did not hold.", "kind", "store"},
    [TIER_LOAD_FAILED] = {"baton_kv_tier_failures_total", "Stores and loads that failed, and loads whose checksum did not hold.", "kind", "load"},
    [TIER_CHECKSUM_FAILED] = {"baton_kv_tier_failures_total", "Stores and loads that failed, and loads whose checksum did not hold.", "kind", "checksum"},
};

static void take_counter(struct node_metrics *metrics, unsigned index, uint64_t now)
{
    if (now <= metrics->seen[index]) { return; }
    counter_add(metrics->counters[index], now - metrics->seen[index]);
    metrics->seen[index] = now;
}

void node_metrics_publish(struct node_metrics *metrics, const struct ctl_load *load, const struct node_totals *totals)
{
    double total = load->blocks_total > 0 ? load->blocks_total : 1;
    gauge_set(metrics->gauges[RUNNING], load->sequences_running);
    gauge_set(metrics->gauges[WAITING], load->sequences_waiting);
    gauge_set(metrics->gauges[KV_USAGE], (load->blocks_total - load->blocks_free - load->blocks_cached) / total);
    gauge_set(metrics->gauges[BLOCKS_FREE], load->blocks_free);
    gauge_set(metrics->gauges[BLOCKS_HELD], load->blocks_held);
    gauge_set(metrics->gauges[BLOCKS_CACHED], load->blocks_cached);
    gauge_set(metrics->gauges[BLOCKS_QUARANTINED], load->blocks_quarantined);
    gauge_set(metrics->gauges[BACKLOG], load->tokens_per_s > 0 ? (double)load->tokens_queued / load->tokens_per_s : 0);
    gauge_set(metrics->gauges[KV_HEADROOM], ((double)load->blocks_free + load->blocks_cached) * metrics->block_tokens);
    gauge_set(metrics->gauges[LEGS], totals->legs);
    gauge_set(metrics->gauges[DRAINING], load->draining);
    take_counter(metrics, PROMPT_TOKENS, totals->prompt_tokens);
    take_counter(metrics, GENERATION_TOKENS, totals->generation_tokens);
    take_counter(metrics, PREEMPTIONS, totals->preemptions);
    take_counter(metrics, FINISHED, totals->legs_finished);
    take_counter(metrics, FAILED, totals->legs_failed);
    take_counter(metrics, CANCELLED, totals->legs_cancelled);
    take_counter(metrics, REFUSED, totals->legs_refused);
    take_counter(metrics, LATE, totals->late_messages);
    take_counter(metrics, STEPS, totals->steps);
    take_counter(metrics, CACHE_ASKED, load->cache_tokens_asked);
    take_counter(metrics, CACHE_FOUND, load->cache_tokens_found);
    take_counter(metrics, GAVE_WAY_SWAP, totals->swaps);
    take_counter(metrics, GAVE_WAY_RECOMPUTE, totals->preemptions - totals->swaps);
    take_counter(metrics, GAVE_WAY_SLOT, totals->slot_preemptions);
    take_counter(metrics, PREFIX_LOADED, totals->loads_chosen);
    take_counter(metrics, PREFIX_COMPUTED, totals->loads_declined);
    take_counter(metrics, TIER_TOKENS_LOADED, totals->tier_tokens_loaded);
    take_counter(metrics, LOAD_PREDICTED_US, totals->load_predicted_ns / 1000);
    take_counter(metrics, LOAD_ACTUAL_US, totals->load_actual_ns / 1000);
}

/* The rows of one kind lie side by side, host before disk, as in enum kv_tier_kind. */
static void refresh_tiers(struct node_metrics *metrics)
{
    struct kv_tier_stats stats;
    if (!tier_service_stats(metrics->tiers, &stats)) { return; }
    for (unsigned tier = 0; tier < KV_TIER_COUNT; tier++) {
        gauge_set(metrics->gauges[TIER_BLOCKS_HOST + tier], (double)stats.entries[tier]);
        gauge_set(metrics->gauges[TIER_MAX_HOST + tier], (double)stats.entries_max[tier]);
        gauge_set(metrics->gauges[TIER_BYTES_HOST + tier], (double)stats.bytes[tier]);
        gauge_set(metrics->gauges[TIER_LOAD_RATE_HOST + tier], (double)stats.bytes_per_s_load[tier]);
        gauge_set(metrics->gauges[TIER_STORE_RATE_HOST + tier], (double)stats.bytes_per_s_store[tier]);
        take_counter(metrics, TIER_STORED_HOST + tier, stats.stored[tier]);
        take_counter(metrics, TIER_LOADED_HOST + tier, stats.loaded[tier]);
        take_counter(metrics, TIER_DROPPED_HOST + tier, stats.dropped[tier]);
    }
    gauge_set(metrics->gauges[TIER_DISK_PAUSED], stats.is_disk_paused);
    take_counter(metrics, TIER_STORE_FAILED, stats.store_failures);
    take_counter(metrics, TIER_LOAD_FAILED, stats.load_failures);
    take_counter(metrics, TIER_CHECKSUM_FAILED, stats.checksum_failures);
}

static void refresh_nccl(struct node_metrics *metrics, const struct kv_nccl_stats *stats)
{
    gauge_set(metrics->gauges[NCCL_PAIRS_UP], (double)stats->pairs_up);
    gauge_set(metrics->gauges[NCCL_PAIRS_OPENING], (double)stats->pairs_opening);
    gauge_set(metrics->gauges[NCCL_PAIRS_STUCK], (double)stats->pairs_stuck);
    gauge_set(metrics->gauges[NCCL_MEMORY], (double)stats->memory_bytes);
    gauge_set(metrics->gauges[NCCL_INIT_LAST], (double)stats->init_ns_last / 1e9);
    gauge_set(metrics->gauges[NCCL_INIT_MAX], (double)stats->init_ns_max / 1e9);
    gauge_set(metrics->gauges[NCCL_ABORT_LAST], (double)stats->abort_ns_last / 1e9);
    gauge_set(metrics->gauges[NCCL_ABORT_MAX], (double)stats->abort_ns_max / 1e9);
    take_counter(metrics, NCCL_OPENED, stats->pairs_opened);
    take_counter(metrics, NCCL_CLOSED, stats->pairs_closed);
    take_counter(metrics, NCCL_BROKEN, stats->pairs_broken);
    take_counter(metrics, NCCL_DENIED, stats->pairs_denied);
    take_counter(metrics, NCCL_FRAMES, stats->frames);
    take_counter(metrics, NCCL_BYTES, stats->bytes);
    take_counter(metrics, NCCL_BUSY_US, stats->busy_ns / 1000u);
    take_counter(metrics, NCCL_STALE, stats->messages_stale);
}

/* What is read rather than kept, when somebody scrapes. */
static void refresh(void *user)
{
    struct node_metrics *metrics = user;
    struct kv_endpoint_stats stats;
    kv_endpoint_stats_get(metrics->endpoint, &stats);
    gauge_set(metrics->gauges[GRANTS_LIVE], (double)stats.live);
    gauge_set(metrics->gauges[GRANTS_QUARANTINED], (double)stats.quarantined);
    gauge_set(metrics->gauges[LINKS], stats.links_up > stats.links_lost ? (double)(stats.links_up - stats.links_lost) : 0);
    take_counter(metrics, BYTES_LANDED, stats.bytes_landed);
    take_counter(metrics, BYTES_PUSHED, stats.bytes_pushed);
    take_counter(metrics, LANDED, stats.landed);
    take_counter(metrics, XFER_FAILED, stats.failed);
    take_counter(metrics, ACKED, stats.acked);
    take_counter(metrics, SEND_FAILED, stats.send_failed);
    take_counter(metrics, CRC_ERRORS, stats.crc_errors);
    take_counter(metrics, SLICES_REFUSED, stats.slices_refused);
    take_counter(metrics, LINKS_LOST, stats.links_lost);
    take_counter(metrics, FENCES_FORCED, stats.fences_forced);
    take_counter(metrics, UCX_PUTS, stats.ucx.puts);
    take_counter(metrics, UCX_PUT_BYTES, stats.ucx.put_bytes);
    take_counter(metrics, UCX_BUSY_US, stats.ucx.busy_ns / 1000u);
    take_counter(metrics, UCX_LANES_RDMA, stats.ucx.connections_rdma);
    take_counter(metrics, UCX_LANES_OTHER, stats.ucx.connections - stats.ucx.connections_rdma);
    take_counter(metrics, UCX_DRAINS_FORCED, stats.ucx.drains_forced);
    gauge_set(metrics->gauges[UCX_REGISTERED], (double)stats.ucx.registered_bytes);
    gauge_set(metrics->gauges[UCX_REGISTRATION], (double)stats.ucx.registration_ns / 1e9);
    gauge_set(metrics->gauges[UCX_WORKERS], (double)stats.ucx.workers_kept);
    refresh_nccl(metrics, &stats.nccl);
    refresh_tiers(metrics);
}

static bool is_ready(void *user)
{
    struct node_metrics *metrics = user;
    return atomic_load(&metrics->is_ready);
}

void node_metrics_set_ready(struct node_metrics *metrics, bool ready) { atomic_store(&metrics->is_ready, ready); }

static status_t add_rows(struct node_metrics *metrics, const struct node_metrics_config *config, struct diag *diag)
{
    char block_tokens[16], block_count[16];
    snprintf(block_tokens, sizeof block_tokens, "%u", config->block_tokens);
    snprintf(block_count, sizeof block_count, "%u", config->block_count);
    for (unsigned i = 0; i < GAUGE_COUNT; i++) {
        const struct row *row = &gauge_rows[i];
        metric_labels_t labels =
            i == CACHE_INFO ? METRIC_LABELS("model_name", config->model_name, "block_size", block_tokens,
                                            "num_gpu_blocks", block_count)
            : row->key      ? METRIC_LABELS("model_name", config->model_name, row->key, row->value)
                            : METRIC_LABELS("model_name", config->model_name);
        TRY(metrics_add_gauge(metrics->registry, row->name, row->help, labels, &metrics->gauges[i], diag));
    }
    gauge_set(metrics->gauges[CACHE_INFO], 1);
    for (unsigned i = 0; i < COUNTER_COUNT; i++) {
        const struct row *row = &counter_rows[i];
        metric_labels_t labels = row->key ? METRIC_LABELS("model_name", config->model_name, row->key, row->value)
                                          : METRIC_LABELS("model_name", config->model_name);
        TRY(metrics_add_counter(metrics->registry, row->name, row->help, labels, &metrics->counters[i], diag));
    }
    return STATUS_OK;
}

status_t node_metrics_create(const struct node_metrics_config *config, struct node_metrics **ret_metrics,
                             struct diag *diag)
{
    struct node_metrics *metrics = calloc(1, sizeof *metrics);
    if (!metrics) { return STATUS(ST_RESOURCE_EXHAUSTED, SCOPE_NODE); }
    metrics->endpoint = config->endpoint;
    metrics->tiers = config->tiers;
    metrics->block_tokens = config->block_tokens;
    status_t st = metrics_create(&metrics->registry);
    if (!failed(st)) { st = add_rows(metrics, config, diag); }
    if (!failed(st) && config->listen) {
        char host[NET_HOST_CHARS_MAX + 1];
        uint16_t port;
        st = net_address_split(config->listen, host, &port, diag);
        if (failed(st)) { diag_prefix(diag, "--metrics-listen"); goto fail; }
        struct metrics_http_config http = {.address = host, .port = port, .is_ready = is_ready, .refresh = refresh,
                                           .user = metrics};
        st = metrics_http_create(metrics->registry, &http, &metrics->http, diag);
    }
    if (failed(st)) { goto fail; }
    *ret_metrics = metrics;
    return STATUS_OK;
fail:
    node_metrics_destroy(metrics);
    return st;
}

void node_metrics_destroy(struct node_metrics *metrics)
{
    if (!metrics) { return; }
    metrics_http_destroy(metrics->http);
    metrics_destroy(metrics->registry);
    free(metrics);
}
