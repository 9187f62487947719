/* death_bench: how soon each cable's survivor knows that its peer was killed, was stopped or is cut off, and how soon the
 * blocks of their transfers are free again.
 *
 * Estimate: the kernel tells of a killed process as soon as it has closed its sockets, which it does before it frees the
 * pool: milliseconds. Nothing tells of a stopped process or a cut link: the link is given up after dead_ns of silence,
 * 3 s as nodes have it, heartbeats coming every 250 ms: 2.75 to 3 s, and what the timer's turn adds. From there on blocks
 * are free at once where D places the bytes itself (shm, tcp); with ucx when its worker has let go of what is under way.
 *
 * Run:  death_bench [--cables=auto] [--runs=7] [--what=kill,stop,cut]
 * In the middle of work: of one transfer half is with D, a second is being pushed as fast as it goes. Times are from right
 * before the signal is sent, or the link is pulled, to the endpoint's event: its first failed transfer is when the death
 * is known; the last event that gives blocks back is when they are free. P's sources are free with that same event, but
 * for the last of two. One JSON line a figure, milliseconds: median, least and worst of the runs. A link is cut between two
 * network namespaces, which takes root; what cannot be measured here has a line that says why. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/median.h"
#include "bench/transfer/cut.h"
#include "bench/transfer/forms.h"

enum { LAYERS = 4, SLICE_BYTES = 65536, BLOCKS = 256, HELD_BLOCKS = 64, RUNS_MAX = 64, SIDES = 2, PATIENCE_MS = 30000 };
enum { WARM = 1, HELD, STREAM, XFERS }; /* the transfers of a run */

/* What a survivor said of its two transfers. */
struct watch {
    uint64_t known_ns, free_ns; /* first failure; last end */
    bool ended[XFERS];
};

struct run {
    struct side sides[SIDES]; /* 0: D, 1: P */
    struct watch watches[SIDES];
    uint64_t start_ns;
};

struct times {
    double known_ms[RUNS_MAX], free_ms[RUNS_MAX];
    uint32_t count;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void take(struct watch *watch, const struct side_fact *fact)
{
    if (fact->xfer != HELD && fact->xfer != STREAM) { return; }
    switch (fact->kind) {
    case SIDE_FAILED:
    case SIDE_SEND_FAILED:
        if (watch->known_ns == 0) { watch->known_ns = fact->at_ns; }
        if (fact->kind == SIDE_FAILED && !fact->fenced) { return; }
        break;
    case SIDE_FENCED: break;
    case SIDE_LANDED:
    case SIDE_ACKED: watch->ended[fact->xfer] = true; return; /* it was quicker than the death */
    default: return;
    }
    watch->ended[fact->xfer] = true;
    watch->free_ns = fact->at_ns;
}

/* Until a fact of this kind; what else comes is noted. False: a transfer failed, or nothing comes. */
static bool comes(struct run *run, int side, int kind, struct side_fact *ret_fact)
{
    snprintf(ret_fact->text, sizeof ret_fact->text, "a side does not answer");
    while (side_hear(&run->sides[side], PATIENCE_MS, ret_fact)) {
        take(&run->watches[side], ret_fact);
        if ((int)ret_fact->kind == kind) { return true; }
        if (ret_fact->kind == SIDE_FAILED || ret_fact->kind == SIDE_SEND_FAILED) { return false; }
    }
    return false;
}

static void await(struct run *run, int side, int kind, struct side_fact *ret_fact)
{
    if (!comes(run, side, kind, ret_fact)) { die("before the death", ret_fact->text); }
}

static uint64_t slices_landed(struct run *run)
{
    struct side_fact fact;
    side_tell(&run->sides[0], &(struct side_order){.kind = SIDE_STATS});
    await(run, 0, SIDE_COUNT, &fact);
    return fact.value;
}

static void transfer_begin(struct run *run, uint64_t xfer, uint32_t first, uint32_t count, uint32_t layers)
{
    struct side_fact ticket;
    struct side_order order = {.kind = SIDE_GRANT, .xfer = xfer, .first = first, .count = count, .layers = layers};
    side_tell(&run->sides[0], &order);
    await(run, 0, SIDE_TICKET, &ticket);
    order.kind = SIDE_SEND;
    order.ticket_bytes = ticket.ticket_bytes;
    memcpy(order.ticket, ticket.ticket, sizeof order.ticket);
    side_tell(&run->sides[1], &order);
}

/* False: the first transfer did not come through. */
static bool run_start(struct run *run, const struct form *form, const struct cut *cut)
{
    char why[256];
    struct side_fact fact;
    memset(run, 0, sizeof *run);
    for (int i = 0; i < SIDES; i++) {
        struct side_config config = form_side(form, i == 0);
        config.slice_bytes = SLICE_BYTES;
        config.layers = LAYERS;
        config.block_count = BLOCKS;
        if (cut) {
            config.netns = cut->netns[i];
            config.ip = cut->ip[i];
        }
        if (!side_start(&config, &run->sides[i], why, sizeof why)) { die(form->name, why); }
    }
    transfer_begin(run, WARM, 0, 8, LAYERS);
    if (comes(run, 0, SIDE_LANDED, &fact) && comes(run, 1, SIDE_ACKED, &fact)) { return true; }
    fprintf(stderr, "%s: %s\n", form->name, fact.text);
    return false;
}

/* D holds half of one transfer and is in the midst of another. */
static void run_to_the_middle(struct run *run)
{
    struct side_fact fact;
    uint64_t before = slices_landed(run), held = HELD_BLOCKS * LAYERS / 2;
    transfer_begin(run, HELD, 0, HELD_BLOCKS, LAYERS / 2);
    await(run, 1, SIDE_PUSHED, &fact);
    while (slices_landed(run) < before + held) { }
    transfer_begin(run, STREAM, HELD_BLOCKS, BLOCKS - HELD_BLOCKS, LAYERS);
    while (slices_landed(run) == before + held) { } /* then D knows of both: a grant that nobody came for ends by its lease alone */
}

static void survivor_watch(struct run *run, int side, struct times *times)
{
    struct watch *watch = &run->watches[side];
    struct side_fact fact;
    while (!watch->ended[HELD] || !watch->ended[STREAM]) {
        if (!side_hear(&run->sides[side], PATIENCE_MS, &fact)) { die("a death", "was not seen in half a minute"); }
        take(watch, &fact);
    }
    times->known_ms[times->count] = (double)(watch->known_ns - run->start_ns) / NS_PER_MS;
    times->free_ms[times->count++] = (double)(watch->free_ns - run->start_ns) / NS_PER_MS;
}

static void run_end(struct run *run)
{
    for (int i = 0; i < SIDES; i++) { side_end(&run->sides[i]); }
}

static double least(const double *values, uint32_t count)
{
    double value = values[0];
    for (uint32_t i = 1; i < count; i++) { value = values[i] < value ? values[i] : value; }
    return value;
}

static double worst(const double *values, uint32_t count)
{
    double value = values[0];
    for (uint32_t i = 1; i < count; i++) { value = values[i] > value ? values[i] : value; }
    return value;
}

static void times_print(const struct form *form, const char *what, int survivor, const struct times *times)
{
    uint32_t n = times->count;
    printf("{\"bench\":\"death\",\"form\":\"%s\",\"what\":\"%s\",\"survivor\":\"%s\",\"known_ms\":%.1f,\"known_ms_min\":%.1f,"
           "\"known_ms_max\":%.1f,\"free_ms\":%.1f,\"free_ms_min\":%.1f,\"free_ms_max\":%.1f,\"runs\":%u}\n",
           form->name, what, survivor == 0 ? "D" : "P", bench_median(times->known_ms, n), least(times->known_ms, n),
           worst(times->known_ms, n), bench_median(times->free_ms, n), least(times->free_ms, n), worst(times->free_ms, n), n);
    fflush(stdout);
}

/* A signal to one side; the other is watched. Stops are waited for together: seconds pass in which nobody works. */
static void signal_measure(const struct form *form, uint32_t runs, int signal_number, int survivor)
{
    static struct run all[RUNS_MAX];
    struct times times = {.count = 0};
    uint32_t together = signal_number == SIGKILL ? 1 : runs;
    for (uint32_t done = 0; done < runs; done += together) {
        for (uint32_t i = 0; i < together; i++) {
            if (!run_start(&all[i], form, NULL)) { die(form->name, "does not transfer"); }
        }
        for (uint32_t i = 0; i < together; i++) {
            run_to_the_middle(&all[i]);
            all[i].start_ns = clock_now_ns();
            kill(all[i].sides[1 - survivor].pid, signal_number);
        }
        for (uint32_t i = 0; i < together; i++) { survivor_watch(&all[i], survivor, &times); }
        for (uint32_t i = 0; i < together; i++) { run_end(&all[i]); }
    }
    times_print(form, signal_number == SIGKILL ? "kill -9" : "SIGSTOP", survivor, &times);
}

static void cut_absent(const struct form *form, const char *why)
{
    printf("{\"bench\":\"absent\",\"form\":\"%s, cut link\",\"why\":\"%s\"}\n", form->name, why);
}

static void cut_measure(const struct form *form, uint32_t runs)
{
    static struct run all[RUNS_MAX];
    struct times times[SIDES] = {{.count = 0}, {.count = 0}};
    struct cut cut;
    uint32_t started = 0;
    if (!form->crosses_network) { return; }
    if (!cut_make(&cut)) {
        cut_absent(form, "needs root and veth devices");
        return;
    }
    while (started < runs && run_start(&all[started], form, &cut)) { started++; }
    if (started < runs) { /* a library that does not take such a network */
        cut_absent(form, "it does not come up between two network namespaces");
        for (uint32_t i = 0; i <= started; i++) { run_end(&all[i]); }
        cut_end(&cut);
        return;
    }
    for (uint32_t i = 0; i < runs; i++) { run_to_the_middle(&all[i]); }
    uint64_t start_ns = clock_now_ns();
    cut_pull(&cut);
    for (uint32_t i = 0; i < runs; i++) {
        all[i].start_ns = start_ns;
        for (int side = 0; side < SIDES; side++) { survivor_watch(&all[i], side, &times[side]); }
    }
    for (uint32_t i = 0; i < runs; i++) { run_end(&all[i]); }
    cut_end(&cut);
    for (int side = 0; side < SIDES; side++) { times_print(form, "cut link", side, &times[side]); }
}

int main(int argc, char **argv)
{
    const struct form *forms[FORMS_MAX];
    uint32_t runs = (uint32_t)atoi(bench_option(argc, argv, "--runs=", "7"));
    const char *what = bench_option(argc, argv, "--what=", "kill,stop,cut");
    uint32_t count = forms_parse(bench_option(argc, argv, "--cables=", "auto"), forms);
    if (runs < 1 || runs > RUNS_MAX) { die("--runs", "1 to 64"); }
    signal(SIGPIPE, SIG_IGN);
    count = forms_here(forms, count);
    for (uint32_t i = 0; i < count; i++) {
        for (int survivor = 0; strstr(what, "kill") && survivor < SIDES; survivor++) { signal_measure(forms[i], runs, SIGKILL, survivor); }
        for (int survivor = 0; strstr(what, "stop") && survivor < SIDES; survivor++) { signal_measure(forms[i], runs, SIGSTOP, survivor); }
        if (strstr(what, "cut")) { cut_measure(forms[i], runs); }
    }
    return 0;
}
