/* transfer_bench: how fast each cable moves KV slices between two processes, beside what the machine's memory and a plain
 * TCP stream do in the same minutes.
 *
 * Estimate: shm reads each byte once to sum it (P), and once to copy and sum it (D), so with a core each it runs at the
 * speed of D's copy: one scattered memcpy, less what the sum costs beside it (CRC32C runs at 3 to 5 times memcpy's
 * speed). tcp copies twice, once in each kernel half, as a plain stream does; the receiver sums what is still in its
 * cache and its copies go to cold blocks instead of one warm buffer. ucx over TCP lanes copies into and out of buffers of
 * its own besides. shm with pools on a GPU is one copy on the device and two sums.
 *
 * Run:  transfer_bench [--cables=auto] [--slices=4096,16384,65536,262144,1048576] [--rounds=5] [--mib=256] [--iperf3=no]
 * Pools of `mib` are larger than the caches, and blocks lie scattered, so memory is cold. Rounds are interleaved, so that
 * all see the same machine; a ratio is the median of the ratios within a round. One JSON line a figure, GB/s are 1e9,
 * medians of the rounds. The cpu_gbps figures divide by CPU time instead: on a machine with other work they still
 * compare. What cannot be measured here has a line that says why. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/median.h"
#include "bench/transfer/forms.h"
#include "bench/transfer/limits.h"

enum { LAYERS = 4, ROUNDS_MAX = 64, SLICES_MAX = 8 };

static uint32_t rounds, mib;

struct pair {
    const struct form *form;
    struct side d, p;
    uint32_t block_count;
    uint64_t xfers;
    double gbps[ROUNDS_MAX], d_cpu[ROUNDS_MAX], p_cpu[ROUNDS_MAX];
};

static void pair_measure(struct pair *pair, uint32_t round)
{
    struct side_fact ticket, landed, acked;
    struct side_order order = {.kind = SIDE_GRANT, .xfer = ++pair->xfers, .count = pair->block_count, .layers = LAYERS};
    side_tell(&pair->d, &order);
    side_expect(&pair->d, SIDE_TICKET, &ticket);
    order.kind = SIDE_SEND;
    order.ticket_bytes = ticket.ticket_bytes;
    memcpy(order.ticket, ticket.ticket, sizeof order.ticket);
    side_tell(&pair->p, &order);
    side_expect(&pair->d, SIDE_LANDED, &landed);
    side_expect(&pair->p, SIDE_ACKED, &acked);
    pair->gbps[round] = landed.gbps;
    pair->d_cpu[round] = landed.cpu_gbps;
    pair->p_cpu[round] = acked.cpu_gbps;
}

/* Warm, and every byte of the first transfer looked at. */
static void pair_start(struct pair *pair, const struct form *form, uint32_t slice_bytes)
{
    char why[256];
    struct side_fact checked;
    *pair = (struct pair){.form = form, .block_count = (uint32_t)((uint64_t)mib * 1024 * 1024 / slice_bytes / LAYERS)};
    for (int receives = 1; receives >= 0; receives--) {
        struct side_config config = form_side(form, receives);
        config.slice_bytes = slice_bytes;
        config.layers = LAYERS;
        config.block_count = pair->block_count;
        config.is_filled = true;
        if (!side_start(&config, receives ? &pair->d : &pair->p, why, sizeof why)) {
            fprintf(stderr, "%s: %s\n", form->name, why);
            exit(1);
        }
    }
    pair_measure(pair, 0);
    side_tell(&pair->d, &(struct side_order){.kind = SIDE_CHECK, .count = pair->block_count});
    side_expect(&pair->d, SIDE_CHECKED, &checked);
    if (checked.value > 0) {
        fprintf(stderr, "%s: %llu slices are wrong\n", form->name, (unsigned long long)checked.value);
        exit(1);
    }
}

/* The limits of one size of slices, by round. */
struct limits {
    struct limit copy[ROUNDS_MAX], stream[ROUNDS_MAX], iperf3[ROUNDS_MAX], gpu[ROUNDS_MAX];
    bool has_gpu;
};

static double column(const struct limit *limits, bool cpu)
{
    double values[ROUNDS_MAX];
    for (uint32_t i = 0; i < rounds; i++) { values[i] = cpu ? limits[i].cpu_gbps : limits[i].gbps; }
    return bench_median(values, rounds);
}

static double share(const struct pair *pair, const struct limit *limits)
{
    double values[ROUNDS_MAX];
    for (uint32_t i = 0; i < rounds; i++) { values[i] = limits[i].gbps > 0 ? pair->gbps[i] / limits[i].gbps : 0; }
    return bench_median(values, rounds);
}

static void limit_print(const char *bench, uint32_t slice_bytes, const struct limit *limits)
{
    printf("{\"bench\":\"%s\",\"slice_bytes\":%u,\"gbps\":%.2f,\"cpu_gbps\":%.2f,\"rounds\":%u}\n", bench, slice_bytes,
           column(limits, false), column(limits, true), rounds);
}

static void pair_print(const struct pair *pair, uint32_t slice_bytes, const struct limits *limits)
{
    double least = pair->gbps[0], most = pair->gbps[0];
    for (uint32_t i = 1; i < rounds; i++) {
        if (pair->gbps[i] < least) { least = pair->gbps[i]; }
        if (pair->gbps[i] > most) { most = pair->gbps[i]; }
    }
    printf("{\"bench\":\"kv_transfer\",\"form\":\"%s\",\"cable\":\"%s\",\"slice_bytes\":%u,\"mib\":%u,\"gbps\":%.2f,\"gbps_min\":%.2f,"
           "\"gbps_max\":%.2f,\"of_memcpy\":%.3f,\"of_stream\":%.3f,\"of_iperf3\":%.3f,\"of_gpu_copy\":%.4f,\"receiver_cpu_gbps\":%.2f,"
           "\"sender_cpu_gbps\":%.2f,\"rounds\":%u}\n",
           pair->form->name, pair->form->cable, slice_bytes, mib, bench_median(pair->gbps, rounds), least, most,
           share(pair, limits->copy), share(pair, limits->stream), share(pair, limits->iperf3),
           limits->has_gpu ? share(pair, limits->gpu) : 0.0, bench_median(pair->d_cpu, rounds), bench_median(pair->p_cpu, rounds), rounds);
}

/* One size of slices: its pairs live only as long, so that memory holds a few pools at a time. */
static void slices_measure(uint32_t slice_bytes, const struct form **forms, uint32_t form_count, bool wants_iperf3)
{
    static struct pair pairs[FORMS_MAX];
    static struct limits limits;
    char why[256];
    memset(&limits, 0, sizeof limits);
    for (uint32_t i = 0; i < form_count; i++) {
        pair_start(&pairs[i], forms[i], slice_bytes);
        limits.has_gpu |= forms[i]->pool == BENCH_POOL_GPU;
    }
    for (uint32_t round = 0; round < rounds; round++) {
        limits.copy[round] = limit_memcpy(slice_bytes, mib);
        limits.stream[round] = limit_stream(mib);
        if (wants_iperf3) { limits.iperf3[round] = limit_iperf3(mib); }
        if (limits.has_gpu && !limit_gpu_copy(form_side(forms[form_count - 1], true).device, slice_bytes, mib, &limits.gpu[round], why, sizeof why)) {
            fprintf(stderr, "%s\n", why);
            exit(1);
        }
        for (uint32_t i = 0; i < form_count; i++) { pair_measure(&pairs[i], round); }
    }
    limit_print("memcpy_scattered", slice_bytes, limits.copy);
    limit_print("stream_loopback", slice_bytes, limits.stream);
    if (limits.iperf3[0].gbps > 0) { limit_print("iperf3_loopback", slice_bytes, limits.iperf3); }
    if (limits.has_gpu) { limit_print("gpu_copy_scattered", slice_bytes, limits.gpu); }
    for (uint32_t i = 0; i < form_count; i++) {
        pair_print(&pairs[i], slice_bytes, &limits);
        side_end(&pairs[i].p);
        side_end(&pairs[i].d);
    }
}

int main(int argc, char **argv)
{
    const struct form *forms[FORMS_MAX];
    uint32_t slices[SLICES_MAX], slice_count = 0;
    rounds = (uint32_t)atoi(bench_option(argc, argv, "--rounds=", "5"));
    mib = (uint32_t)atoi(bench_option(argc, argv, "--mib=", "256"));
    const bool wants_iperf3 = strcmp(bench_option(argc, argv, "--iperf3=", "yes"), "no") != 0;
    uint32_t form_count = forms_parse(bench_option(argc, argv, "--cables=", "auto"), forms);
    const char *list = bench_option(argc, argv, "--slices=", "4096,16384,65536,262144,1048576");
    for (const char *at = list; *at && slice_count < SLICES_MAX; at += strcspn(at, ","), at += *at == ',') {
        slices[slice_count++] = (uint32_t)atoi(at);
        if (slices[slice_count - 1] == 0 || slices[slice_count - 1] % 4096 || slices[slice_count - 1] > BENCH_POOL_PIECE_BYTES) {
            fprintf(stderr, "--slices=%s: takes multiples of 4096, up to %u\n", list, BENCH_POOL_PIECE_BYTES);
            return 2;
        }
    }
    if (rounds < 1 || rounds > ROUNDS_MAX || mib < 16 || slice_count == 0) {
        fprintf(stderr, "--rounds is 1 to %d, --mib 16 or more\n", ROUNDS_MAX);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    form_count = forms_here(forms, form_count);
    for (uint32_t i = 0; i < slice_count; i++) {
        slices_measure(slices[i], forms, form_count, wants_iperf3);
        fflush(stdout);
    }
    return 0;
}
