/* What goes wrong before a pair is up is told, once, and ends as all else; what NCCL keeps then is counted.
 * Over fake_nccl and fake_memory. Limits that are to expire are short, all others a minute. */
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/unit/transfer/nccl_pair_sides.h"
#include "transfer/nccl_root.h"

/* ---- what goes wrong before it is up -------------------------------------------------------------- */

/* Whatever fails before a pair is up is told once, with a sentence; and nothing is left of it, nor of the id's listener, but
 * what NCCL keeps of a communicator that was not made, which is counted. */
static void failures_before_up_are_told(void **state)
{
    static const struct {
        struct fake_nccl_options options;
        uint64_t bytes_left; /* of P's device; 0: enough */
        uint8_t code, scope;
        bool has_id;
        uint32_t leaks;
        const char *words;
    } cases[] = {
        {{.id_fails = NCCL_SYSTEM_ERROR}, 0, ST_UNAVAILABLE, SCOPE_PEER, false, 0, "ncclGetUniqueId: unhandled system error (2)"},
        {{.init_fails = NCCL_INTERNAL_ERROR}, 0, ST_INTERNAL, SCOPE_PEER, true, 1, "ncclCommInitRankConfig: internal error (3)"},
        {{.init_hangs = true}, 0, ST_DEADLINE_EXCEEDED, SCOPE_PEER, true, 1, "ncclCommInitRankConfig went on inside NCCL past its limit"},
        {{.version = 0}, 0, ST_DEADLINE_EXCEEDED, SCOPE_PEER, true, 1, "the peer never came"}, /* as it does not here */
        {{.version = 0}, SLOTS * SLOT_BYTES - 1, ST_RESOURCE_EXHAUSTED, SCOPE_NODE, false, 0, "slots"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct owner p;
        uint64_t given_up = fake_nccl_counts().given_up, inits = fake_nccl_counts().inits;
        options(cases[i].options);
        struct kv_memory *memory = memory_create(6);
        uint64_t left = left_of(memory), taken = cases[i].bytes_left ? left - cases[i].bytes_left : 0;
        assert_true(fake_memory_take(memory, taken));
        start(&p, memory, NCCL_RANK_P, NULL, NS_PER_S / 5, MINUTE);
        AWAIT(&p, p.is_broken);
        if (!strstr(p.text, cases[i].words)) { fail_msg("\"%s\" instead of \"%s\"", p.text, cases[i].words); }
        assert_int_equal(p.status.code, cases[i].code);
        assert_int_equal(p.status.scope, cases[i].scope);
        assert_int_equal(p.has_id, cases[i].has_id);
        assert_false(p.is_up);
        options((struct fake_nccl_options){.version = 0});
        end(&p);
        assert_int_equal(p.leaks, cases[i].leaks);
        assert_int_equal(fake_nccl_counts().given_up - given_up, cases[i].leaks);
        assert_true(fake_nccl_counts().inits - inits <= 1); /* none but its own, which might be in progress */
        assert_int_equal(left_of(memory), left - taken);
        fake_memory_give_back(memory, taken);
        fake_memory_destroy(memory);
        while (fake_nccl_counts().roots > 0) { sched_yield(); }
        assert_true(fake_nccl_end());
    }
}

/* No memory for the communicator, or for the channels, which NCCL takes with the first transfer: both are failures before
 * up, told in NCCL's words on the one side, and by its limit on the other, which nobody told. */
static void no_device_memory_for_nccl(void **state)
{
    (void)state;
    for (int has_comm = 0; has_comm < 2; has_comm++) {
        struct two two = {.memory_p = memory_create(1), .memory_d = memory_create(2)};
        two.left = left_of(two.memory_p);
        uint64_t taken = two.left - SLOTS * SLOT_BYTES - (has_comm ? FAKE_NCCL_BYTES_INIT : 0);
        assert_true(fake_memory_take(two.memory_p, taken));
        start(&two.p, two.memory_p, NCCL_RANK_P, NULL, MINUTE, MINUTE);
        AWAIT(&two.p, two.p.has_id);
        start(&two.d, two.memory_d, NCCL_RANK_D, two.p.id, NS_PER_S, MINUTE);
        AWAIT(&two.p, two.p.is_broken);
        assert_int_equal(two.p.status.code, ST_INTERNAL);
        assert_int_equal(two.p.status.cause, NCCL_UNHANDLED_CUDA_ERROR);
        assert_non_null(strstr(two.p.text, has_comm ? "ncclSend: unhandled cuda error (1)" : "ncclCommInitRankConfig: unhandled cuda error (1)"));
        AWAIT(&two.d, two.d.is_broken);
        assert_int_equal(two.d.status.code, ST_DEADLINE_EXCEEDED);
        assert_false(two.p.is_up || two.d.is_up);
        fake_memory_give_back(two.memory_p, taken);
        close_two(&two);
        assert_int_equal(two.p.leaks, has_comm ? 0 : 1);
    }
}

/* A communicator whose first bytes do not pass is not up. */
static void first_bytes_are_part_of_coming_up(void **state)
{
    (void)state;
    struct two two;
    options((struct fake_nccl_options){.hang_at = 1});
    begin_with(&two, NS_PER_S, MINUTE);
    AWAIT(&two.d, two.d.is_broken);
    assert_int_equal(two.d.status.code, ST_DEADLINE_EXCEEDED);
    assert_non_null(strstr(two.d.text, "its first bytes have not passed in time"));
    AWAIT(&two.p, two.p.is_broken);
    assert_false(two.p.is_up || two.d.is_up);
    close_two(&two);
    assert_int_equal(two.p.leaks + two.d.leaks, 0);
}

/* A communicator of another size than was asked for is refused. */
static void other_size_is_refused(void **state)
{
    (void)state;
    struct two two;
    options((struct fake_nccl_options){.ranks = 3});
    begin_with(&two, MINUTE, MINUTE);
    AWAIT(&two.d, two.d.is_broken);
    AWAIT(&two.p, two.p.is_broken);
    assert_int_equal(two.p.status.code, ST_INTERNAL);
    assert_non_null(strstr(two.p.text, "a communicator of 3 ranks"));
    close_two(&two);
    assert_int_equal(two.p.leaks + two.d.leaks, 0); /* it was made */
}

static struct nccl_id id_of(const struct owner *owner)
{
    struct nccl_id id;
    memcpy(id.internal, owner->id, sizeof id.internal);
    return id;
}

/* The id of a pair whose peer did not come: of a version whose listeners were looked at it is nobody's when the pair has
 * ended, of others the listener is left alone and counted. So is one that a peer keeps busy, by saying nothing. */
static void listener_is_ended_or_counted(void **state)
{
    static const struct { int version; bool is_busy; uint32_t leaks; } cases[] = {
        {NCCL_ROOT_VERSION_FIRST, false, 1}, {NCCL_ROOT_VERSION_LAST, false, 1}, {NCCL_ROOT_VERSION_LAST + 1, false, 2}, {NCCL_ROOT_VERSION_LAST, true, 2}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct owner p;
        struct nccl_root_handle root;
        options((struct fake_nccl_options){.version = cases[i].version});
        struct kv_memory *memory = memory_create(8);
        int silent = socket(AF_INET, SOCK_STREAM, 0);
        start(&p, memory, NCCL_RANK_P, NULL, MINUTE, MINUTE);
        AWAIT(&p, p.has_id);
        memcpy(&root, p.id, sizeof root);
        if (cases[i].is_busy) {
            assert_int_equal(connect(silent, &root.address.any, sizeof root.address.v4), 0);
            assert_int_equal(send(silent, &root.magic, sizeof root.magic, 0), (int)sizeof root.magic);
        }
        while (fake_nccl_counts().comms == 0) { sched_yield(); }
        end(&p);
        assert_int_equal(p.leaks, cases[i].leaks);
        fake_memory_destroy(memory);
        close(silent); /* which ends what it kept busy */
        if (cases[i].leaks == 2 && !cases[i].is_busy) {
            struct nccl_id id = id_of(&p);
            assert_int_equal(fake_nccl_counts().roots, 1);
            assert_true(nccl_root_retire(NCCL_ROOT_VERSION_LAST, &id, MINUTE));
        }
        while (fake_nccl_counts().roots > 0) { sched_yield(); }
        assert_true(fake_nccl_end());
    }
    options((struct fake_nccl_options){.version = 0});
}

/* The end may come at any time before up: no BROKEN, ENDED, nothing left. */
static void end_before_up(void **state)
{
    (void)state;
    for (int when = 0; when < 3; when++) {
        struct owner p;
        struct kv_memory *memory = memory_create(7);
        uint64_t left = left_of(memory);
        start(&p, memory, NCCL_RANK_P, NULL, MINUTE, MINUTE);
        if (when == 1) { AWAIT(&p, p.has_id); }
        while (when == 2 && fake_nccl_counts().comms == 0) { sched_yield(); }
        end(&p);
        assert_false(p.is_broken);
        assert_false(p.is_up);
        assert_true(p.leaks <= 1);
        if (when == 2) { assert_int_equal(p.leaks, 1); }
        assert_int_equal(left_of(memory), left);
        fake_memory_destroy(memory);
        while (fake_nccl_counts().roots > 0) { sched_yield(); }
        assert_true(fake_nccl_end());
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(failures_before_up_are_told),
        cmocka_unit_test(no_device_memory_for_nccl),
        cmocka_unit_test(first_bytes_are_part_of_coming_up),
        cmocka_unit_test(other_size_is_refused),
        cmocka_unit_test(listener_is_ended_or_counted),
        cmocka_unit_test(end_before_up),
    };
    return cmocka_run_group_tests(tests, sides_setup, NULL);
}
