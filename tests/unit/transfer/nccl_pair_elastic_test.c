/* Pairs that come and go, of one process and of two, take what they say and leave nothing behind.
 * Over fake_nccl and fake_memory. */
#include <dirent.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/rng.h"
#include "tests/unit/transfer/nccl_pair_sides.h"

/* ---- two processes, and the memory that is counted ----------------------------------------------- */

/* D in a process of its own: a pair for each id that comes, until there are none. */
static void be_d(int ids_fd, int up_fd)
{
    static struct owner owners[16];
    uint8_t id[NCCL_ID_BYTES];
    struct kv_memory *memory = memory_create(3);
    uint64_t left = left_of(memory);
    uint32_t count = 0;
    while (read(ids_fd, id, sizeof id) == (ssize_t)sizeof id) {
        struct owner *owner = &owners[count++];
        start(owner, memory, NCCL_RANK_D, id, MINUTE, MINUTE);
    }
    for (uint32_t i = 0; i < count; i++) { AWAIT(&owners[i], owners[i].is_up); }
    if (write(up_fd, "u", 1) != 1) { _exit(1); }
    for (uint32_t i = 0; i < count; i++) {
        AWAIT(&owners[i], owners[i].is_broken);
        end(&owners[i]);
    }
    _exit(left_of(memory) == left && fake_nccl_end() ? 0 : 1);
}

static pid_t fork_d(int *ret_ids, int *ret_up)
{
    int ids[2], up[2];
    assert_int_equal(pipe(ids), 0);
    assert_int_equal(pipe(up), 0);
    pid_t child = fork();
    if (child == 0) {
        close(ids[1]);
        close(up[0]);
        be_d(ids[0], up[1]);
    }
    close(ids[0]);
    close(up[1]);
    *ret_ids = ids[1];
    *ret_up = up[0];
    return child;
}

/* What a communicator took of the device is exact where one comes up alone, and of many that come up at once each says
 * what one took, not what all did. */
static void memory_is_counted(void **state)
{
    (void)state;
    enum { MANY = 8 };
    for (uint32_t count = 1; count <= MANY; count += MANY - 1) {
        struct owner owners[MANY];
        int ids_fd, up_fd;
        char up = 0;
        pid_t child = fork_d(&ids_fd, &up_fd);
        struct kv_memory *memory = memory_create(4);
        uint64_t left = left_of(memory);
        for (uint32_t i = 0; i < count; i++) { start(&owners[i], memory, NCCL_RANK_P, NULL, MINUTE, MINUTE); }
        for (uint32_t i = 0; i < count; i++) {
            AWAIT(&owners[i], owners[i].has_id);
            assert_int_equal(write(ids_fd, owners[i].id, NCCL_ID_BYTES), (int)NCCL_ID_BYTES);
        }
        close(ids_fd);
        for (uint32_t i = 0; i < count; i++) {
            AWAIT(&owners[i], owners[i].is_up);
            assert_int_equal(owners[i].bytes, COMM_BYTES);
        }
        assert_int_equal(left - left_of(memory), count * (COMM_BYTES + SLOTS * SLOT_BYTES));
        assert_int_equal(read(up_fd, &up, 1), 1);
        for (uint32_t i = 0; i < count; i++) { nccl_pair_end(owners[i].pair); }
        for (uint32_t i = 0; i < count; i++) { finish(&owners[i]); }
        int status = 0;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        assert_int_equal(left_of(memory), left);
        fake_memory_destroy(memory);
        close(up_fd);
        assert_true(fake_nccl_end());
    }
}

/* kill -9 of the other side: seen as an error of NCCL's where it sees it, and where it does not by what no longer moves. */
static void death_is_told_either_way(void **state)
{
    (void)state;
    for (int unseen = 0; unseen < 2; unseen++) {
        struct owner p;
        int ids_fd, up_fd, status;
        char up;
        pid_t child = fork_d(&ids_fd, &up_fd);
        options((struct fake_nccl_options){.death_unseen = unseen});
        struct kv_memory *memory = memory_create(5);
        uint64_t left = left_of(memory);
        start(&p, memory, NCCL_RANK_P, NULL, MINUTE, unseen ? NS_PER_S / 5 : MINUTE);
        AWAIT(&p, p.has_id);
        assert_int_equal(write(ids_fd, p.id, sizeof p.id), (int)sizeof p.id);
        close(ids_fd);
        AWAIT(&p, p.is_up);
        assert_int_equal(read(up_fd, &up, 1), 1);
        nccl_pair_transfer(p.pair, 2, 4096); /* that nobody receives */
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &status, 0), child);
        AWAIT(&p, p.is_broken);
        assert_int_equal(p.status.code, unseen ? ST_DEADLINE_EXCEEDED : ST_UNAVAILABLE);
        assert_int_equal(p.status.scope, SCOPE_PEER);
        assert_non_null(strstr(p.text, unseen ? "1 transfers have not moved for 200 ms" : "remote process exited"));
        assert_int_equal(p.passed_all, 0);
        end(&p);
        assert_int_equal(left_of(memory), left);
        fake_memory_destroy(memory);
        close(up_fd);
        assert_true(fake_nccl_end());
    }
    options((struct fake_nccl_options){.version = 0});
}

/* ---- elastic ------------------------------------------------------------------------------------------ */

static uint32_t entries(const char *folder)
{
    uint32_t count = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    while (readdir(dir)) { count++; }
    closedir(dir);
    return count;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static size_t heap(void) { return 0; } /* theirs, and they look for themselves */
#else
static size_t heap(void) { return mallinfo2().uordblks; }
#endif

enum { PAIRS = 64 };
static struct owner many_p[PAIRS], many_d[PAIRS];

/* 64 pairs, at once, of one process that has both ends: some end idle, some under way, some with their peer gone first, some
 * before they are up, and each third fails in its own way. */
static void join_and_leave(struct kv_memory *memory_p, struct kv_memory *memory_d, struct rng *rng)
{
    const uint64_t given_up = fake_nccl_counts().given_up;
    for (uint32_t i = 0; i < PAIRS; i++) {
        uint64_t which = rng_below(rng, 9);
        options(which == 0   ? (struct fake_nccl_options){.error_at = 2}
                : which == 1 ? (struct fake_nccl_options){.hang_at = 2}
                : which == 2 ? (struct fake_nccl_options){.abort_ms = 5}
                             : (struct fake_nccl_options){.version = 0});
        start(&many_p[i], memory_p, NCCL_RANK_P, NULL, MINUTE, MINUTE);
        AWAIT(&many_p[i], many_p[i].has_id);
        start(&many_d[i], memory_d, NCCL_RANK_D, many_p[i].id, MINUTE, MINUTE);
    }
    for (uint32_t i = 0; i < PAIRS; i++) {
        uint64_t how = rng_below(rng, 4);
        struct owner *first = rng_below(rng, 2) ? &many_p[i] : &many_d[i], *second = first == &many_p[i] ? &many_d[i] : &many_p[i];
        if (how > 0) {
            AWAIT(&many_p[i], many_p[i].is_up);
            AWAIT(&many_d[i], many_d[i].is_up);
        }
        if (how > 1) {
            nccl_pair_transfer(many_d[i].pair, 1, 700);
            if (how > 2) { nccl_pair_transfer(many_p[i].pair, 3, 700); }
        }
        nccl_pair_end(first->pair);
        nccl_pair_end(second->pair);
    }
    uint64_t leaks = 0;
    for (uint32_t i = 0; i < PAIRS; i++) {
        finish(&many_p[i]);
        finish(&many_d[i]);
        leaks += many_p[i].leaks + many_d[i].leaks;
    }
    assert_true(leaks >= fake_nccl_counts().given_up - given_up); /* a pair cannot know of one that was just made */
    while (fake_nccl_counts().roots > 0) { sched_yield(); }
    assert_true(fake_nccl_end());
}

/* Rounds of 64 pairs that join and leave, in every state, leave no thread, descriptor, slot or byte. */
static void elastic_pairs_leak_nothing(void **state)
{
    (void)state;
    const uint64_t seed = 64;
    struct rng rng = rng_init(seed);
    print_message("seed %llu\n", (unsigned long long)seed);
    struct kv_memory *memory_p = memory_create(8), *memory_d = memory_create(9);
    uint64_t left = left_of(memory_p);
    uint32_t threads = 0, descriptors = 0;
    size_t bytes = 0;
    for (int round = 0; round < 4; round++) {
        join_and_leave(memory_p, memory_d, &rng);
        assert_int_equal(left_of(memory_p), left);
        assert_int_equal(left_of(memory_d), left);
        if (round == 0) { /* what the C library keeps for itself is there now */
            threads = entries("/proc/self/task");
            descriptors = entries("/proc/self/fd");
            bytes = heap();
        }
        /* A thread that has been joined may be in the list for a moment. */
        while (entries("/proc/self/task") > threads) { sched_yield(); }
        assert_int_equal(entries("/proc/self/fd"), descriptors);
        assert_true(heap() <= bytes + 64 * 1024);
    }
    fake_memory_destroy(memory_p);
    fake_memory_destroy(memory_d);
    options((struct fake_nccl_options){.version = 0});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_counted),
        cmocka_unit_test(death_is_told_either_way),
        cmocka_unit_test(elastic_pairs_leak_nothing),
    };
    return cmocka_run_group_tests(tests, sides_setup, NULL);
}
