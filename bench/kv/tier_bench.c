/* tier_bench: how fast KV blocks go to host memory and disk and come back, and what the prefix cache
 * costs per block.
 *
 * Estimate: a host store reads and writes each byte once and sums it on the way (crc32c_copy), so it
 * should run at a memcpy's speed between cold blocks, one thread. The disk tier stages each block
 * (one more copy, at memory speed) and writes 64 bytes of label beside it, so it should run at what
 * the device gives raw: the same number of blocks under way, the same size, O_DIRECT.
 *
 * Run:  tier_bench --path=FILE [--block=192KiB] [--total=512MiB] [--rounds=5]
 * One JSON line per figure: median, least and most of the rounds in GB/s (1e9), and the median of the
 * ratios to the yardstick of the same round. Yardstick and tier alternate within a round. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/flags.h"
#include "bench/median.h"
#include "kv/disk_io.h"
#include "kv/kv_cache.h"
#include "kv/kv_tier.h"

enum { ROUNDS_MAX = 64, DEPTH = 16, UNDER_WAY = 64 };

struct bench_config {
    const char *path;
    uint64_t block, total;
    uint32_t rounds;
};

#define AT(field) offsetof(struct bench_config, field)
static const struct flag flags[] = {
    {"path", FLAG_STRING, AT(path), "/tmp/tier_bench", "FILE", "Where the disk tier's file and the raw one are made.", 0, 0},
    {"block", FLAG_BYTES, AT(block), "192KiB", "SIZE", "A block; 192KiB: 16 tokens of Qwen2.5-0.5B in bf16.", 4096, 1u << 26},
    {"total", FLAG_BYTES, AT(total), "512MiB", "SIZE", "What is moved each way in a round.", 1u << 20, UINT64_C(1) << 40},
    {"rounds", FLAG_U32, AT(rounds), "5", "N", "Rounds.", 1, ROUNDS_MAX},
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "tier_bench: %s: %s\n", what, why);
    exit(1);
}

struct bench {
    struct bench_config config;
    uint32_t blocks; /* of the pool, of each tier and of a round */
    uint8_t *pool;
    struct kv_tier *tier;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    uint64_t answers, failures;
};

static void on_event(void *user, const struct kv_tier_event *event)
{
    struct bench *bench = user;
    if (event->kind > KV_TIER_LOAD_FAILED) { return; }
    pthread_mutex_lock(&bench->lock);
    bench->answers++;
    bench->failures += event->kind == KV_TIER_STORE_FAILED || event->kind == KV_TIER_LOAD_FAILED;
    pthread_cond_signal(&bench->changed);
    pthread_mutex_unlock(&bench->lock);
}

static double gbps(const struct bench *bench, uint64_t elapsed_ns) { return (double)bench->blocks * (double)bench->config.block / (double)elapsed_ns; }

static struct kv_hash name_of(uint32_t round, uint32_t block)
{
    uint32_t tokens[2] = {round, block};
    return kv_hash_next(kv_hash_root(0), tokens, 2);
}

/* Blocks are not visited in the order of their addresses: 7919 is prime to what a pool has. */
static uint32_t scattered(const struct bench *bench, uint32_t i) { return (uint32_t)((uint64_t)i * 7919 % bench->blocks); }

static double run_tier(struct bench *bench, uint32_t round, bool is_load)
{
    uint64_t before = bench->answers;
    uint64_t begin_ns = clock_now_ns();
    for (uint32_t i = 0; i < bench->blocks; i++) {
        pthread_mutex_lock(&bench->lock);
        while (before + i >= bench->answers + UNDER_WAY) { pthread_cond_wait(&bench->changed, &bench->lock); }
        pthread_mutex_unlock(&bench->lock);
        uint32_t block = scattered(bench, i);
        status_t st = is_load ? kv_tier_load(bench->tier, name_of(round, i), block, i) : kv_tier_store(bench->tier, name_of(round, i), block, i);
        if (failed(st)) { die("tier", status_code_name(st.code)); }
    }
    pthread_mutex_lock(&bench->lock);
    while (bench->answers < before + bench->blocks) { pthread_cond_wait(&bench->changed, &bench->lock); }
    pthread_mutex_unlock(&bench->lock);
    return gbps(bench, clock_now_ns() - begin_ns);
}

static void open_tier(struct bench *bench, bool on_disk)
{
    struct kv_tier_config config = {
        .pool = bench->pool,
        .block_bytes = bench->config.block,
        .block_count = bench->blocks,
        .host_bytes = on_disk ? 0 : bench->blocks * (bench->config.block + 4096),
        .disk_path = on_disk ? bench->config.path : NULL,
        .disk_bytes = on_disk ? bench->blocks * (bench->config.block + 8192) + 65536 : 0,
        .on_event = on_event,
        .user = bench,
    };
    struct diag diag = {{0}};
    if (failed(kv_tier_create(&config, &bench->tier, &diag))) { die("tier", diag.text); }
}

static double run_memcpy(struct bench *bench, uint8_t *other)
{
    uint64_t begin_ns = clock_now_ns();
    for (uint32_t i = 0; i < bench->blocks; i++) {
        size_t block = bench->config.block;
        memcpy(other + i * block, bench->pool + scattered(bench, i) * block, block);
    }
    return gbps(bench, clock_now_ns() - begin_ns);
}

/* The device by the tier's own way to it, without anything above. */
static double run_raw(struct bench *bench, struct disk_io *io, int fd, bool is_write)
{
    uint64_t begin_ns = clock_now_ns();
    uint32_t begun = 0, ended = 0;
    while (ended < bench->blocks) {
        while (begun < bench->blocks && begun - ended < DEPTH) {
            struct disk_io_command command = {.fd = fd, .is_write = is_write, .buffer = bench->pool + begun * bench->config.block,
                                              .bytes = (uint32_t)bench->config.block, .offset = begun * bench->config.block, .cookie = begun};
            disk_io_submit(io, &command);
            begun++;
        }
        struct disk_io_result results[DEPTH];
        uint32_t count = disk_io_reap(io, results, DEPTH);
        for (uint32_t i = 0; i < count; i++) {
            if (results[i].error != 0) { die("raw", strerror(results[i].error)); }
        }
        ended += count;
        if (count == 0) { usleep(20); }
    }
    return gbps(bench, clock_now_ns() - begin_ns);
}

static void report(const struct bench *bench, const char *what, const double *values, const char *yardstick, const double *beside)
{
    uint32_t count = bench->config.rounds;
    double least = values[0], most = values[0], ratios[ROUNDS_MAX];
    for (uint32_t i = 0; i < count; i++) {
        least = values[i] < least ? values[i] : least;
        most = values[i] > most ? values[i] : most;
        ratios[i] = beside ? values[i] / beside[i] : 1;
    }
    printf("{\"bench\": \"kv_tier\", \"what\": \"%s\", \"block\": %llu, \"gbps\": %.3f, \"least\": %.3f, \"most\": %.3f", what,
           (unsigned long long)bench->config.block, bench_median(values, count), least, most);
    if (beside) { printf(", \"beside\": \"%s\", \"ratio\": %.3f", yardstick, bench_median(ratios, count)); }
    printf("}\n");
}

static void bench_host(struct bench *bench)
{
    double copies[ROUNDS_MAX], stores[ROUNDS_MAX], loads[ROUNDS_MAX];
    uint8_t *other = malloc(bench->blocks * bench->config.block);
    if (other == NULL) { die("memory", "not enough"); }
    open_tier(bench, false);
    (void)run_memcpy(bench, other); /* the pages are there from now on */
    (void)run_tier(bench, UINT32_MAX, false);
    for (uint32_t r = 0; r < bench->config.rounds; r++) {
        copies[r] = run_memcpy(bench, other);
        stores[r] = run_tier(bench, r, false);
        loads[r] = run_tier(bench, r, true);
    }
    kv_tier_destroy(bench->tier);
    free(other);
    report(bench, "memcpy", copies, NULL, NULL);
    report(bench, "host_store", stores, "memcpy", copies);
    report(bench, "host_load", loads, "memcpy", copies);
}

static void bench_disk(struct bench *bench)
{
    double raw_writes[ROUNDS_MAX], raw_reads[ROUNDS_MAX], stores[ROUNDS_MAX], loads[ROUNDS_MAX];
    char raw_path[4096];
    snprintf(raw_path, sizeof raw_path, "%s.raw", bench->config.path);
    int fd = open(raw_path, O_RDWR | O_CREAT | O_CLOEXEC | O_DIRECT, 0600);
    if (fd < 0 && errno == EINVAL) { fd = open(raw_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600); }
    if (fd < 0) { die(raw_path, strerror(errno)); }
    off_t bytes = (off_t)(bench->blocks * bench->config.block);
    if (fallocate(fd, 0, 0, bytes) != 0) { die(raw_path, strerror(errno)); }
    struct disk_io *io;
    if (failed(disk_io_create(DEPTH, false, &io))) { die("disk_io", "no memory"); }
    open_tier(bench, true);
    (void)run_raw(bench, io, fd, true); /* first writes of a set aside file are slower */
    (void)run_tier(bench, UINT32_MAX, false);
    for (uint32_t r = 0; r < bench->config.rounds; r++) {
        raw_writes[r] = run_raw(bench, io, fd, true);
        stores[r] = run_tier(bench, r, false);
        raw_reads[r] = run_raw(bench, io, fd, false);
        loads[r] = run_tier(bench, r, true);
    }
    struct kv_tier_stats stats;
    kv_tier_stats_get(bench->tier, &stats);
    printf("{\"bench\": \"kv_tier\", \"disk_io\": \"%s\", \"direct\": %s, \"raw_io\": \"%s\", \"depth\": %d}\n", stats.disk_io,
           stats.is_disk_direct ? "true" : "false", disk_io_name(io), DEPTH);
    kv_tier_destroy(bench->tier);
    disk_io_destroy(io);
    close(fd);
    unlink(raw_path);
    unlink(bench->config.path);
    report(bench, "raw_write", raw_writes, NULL, NULL);
    report(bench, "disk_store", stores, "raw_write", raw_writes);
    report(bench, "raw_read", raw_reads, NULL, NULL);
    report(bench, "disk_load", loads, "raw_read", raw_reads);
}

/* A prompt of 128 blocks that is found, held and given back, over and over, in a pool of 65,536; and
 * one that is new each time, so that it evicts. In ns per block. */
static void bench_cache(const struct bench *bench)
{
    enum { POOL = 65536, PROMPT = 128, PASSES = 2000 };
    struct kv_cache *cache;
    struct kv_cache_config config = {.block_count = POOL, .is_enabled = true};
    if (failed(kv_cache_create(&config, &cache))) { die("kv_cache", "no memory"); }
    static struct kv_hash names[PROMPT + 1];
    static uint32_t blocks[PROMPT];
    double new_ns[ROUNDS_MAX], found_ns[ROUNDS_MAX], hash_ns[ROUNDS_MAX];
    uint32_t tokens[16] = {0};
    for (uint32_t r = 0; r < bench->config.rounds; r++) {
        uint64_t spent_new = 0, spent_found = 0, spent_hash = 0;
        for (uint32_t pass = 0; pass < PASSES; pass++) {
            uint64_t t0 = clock_now_ns();
            names[0] = kv_hash_root(r * (uint64_t)PASSES + pass);
            for (uint32_t i = 0; i < PROMPT; i++) { names[i + 1] = kv_hash_next(names[i], tokens, 16); }
            uint64_t t1 = clock_now_ns();
            if (failed(kv_cache_reserve(cache, PROMPT, blocks))) { die("kv_cache", "full"); }
            for (uint32_t i = 0; i < PROMPT; i++) { (void)kv_cache_publish(cache, blocks[i], names[i + 1], names[i]); }
            kv_cache_release(cache, PROMPT, blocks);
            uint64_t t2 = clock_now_ns();
            for (uint32_t i = 0; i < PROMPT; i++) {
                if (!kv_cache_take(cache, names[i + 1], &blocks[i])) { die("kv_cache", "lost a block"); }
            }
            kv_cache_release(cache, PROMPT, blocks);
            uint64_t t3 = clock_now_ns();
            spent_hash += t1 - t0;
            spent_new += t2 - t1;
            spent_found += t3 - t2;
        }
        double all = (double)PASSES * PROMPT;
        hash_ns[r] = (double)spent_hash / all;
        new_ns[r] = (double)spent_new / all;
        found_ns[r] = (double)spent_found / all;
    }
    kv_cache_destroy(cache);
    uint32_t rounds = bench->config.rounds;
    printf("{\"bench\": \"kv_cache\", \"hash_ns_per_block\": %.0f, \"new_ns_per_block\": %.0f, \"found_ns_per_block\": %.0f}\n",
           bench_median(hash_ns, rounds), bench_median(new_ns, rounds), bench_median(found_ns, rounds));
}

int main(int argc, char **argv)
{
    static struct bench bench;
    struct diag diag = {{0}};
    bool wants_help;
    if (failed(flags_parse(flags, sizeof flags / sizeof flags[0], &bench.config, argc, argv, NULL, NULL, &wants_help, &diag))) { die("flags", diag.text); }
    if (wants_help) {
        flags_print_help(flags, sizeof flags / sizeof flags[0], "tier_bench --path=FILE", stdout);
        return 0;
    }
    bench.blocks = (uint32_t)(bench.config.total / bench.config.block);
    bench.config.block = bench.config.block / 4096 * 4096;
    void *pool = NULL;
    if (bench.blocks < 2 || posix_memalign(&pool, 4096, bench.blocks * bench.config.block) != 0) { die("memory", "not enough for --total"); }
    memset(pool, 1, bench.blocks * bench.config.block);
    bench.pool = pool;
    pthread_mutex_init(&bench.lock, NULL);
    pthread_cond_init(&bench.changed, NULL);
    bench_cache(&bench);
    bench_host(&bench);
    bench_disk(&bench);
    if (bench.failures > 0) { die("tier", "blocks failed"); }
    free(pool);
    return 0;
}
