/* Claims on the mailbox: order, bounds, and that no message and no wake-up is lost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>

#include "base/clock.h"
#include "base/mailbox.h"

struct message {
    uint32_t poster, number;
    char rest[12];
};

static struct mailbox *open_box(uint32_t capacity)
{
    struct mailbox *mailbox;
    assert_false(failed(mailbox_create(capacity, sizeof(struct message), &mailbox)));
    return mailbox;
}

/* A full ring refuses, changes nothing, and takes again as soon as one was taken out. */
static void a_full_ring_refuses(void **state)
{
    (void)state;
    struct mailbox *mailbox = open_box(3);
    struct message message = {0};
    for (uint32_t lap = 0; lap < 10; lap++) {
        for (uint32_t i = 0; i < 3; i++) {
            message.number = lap * 3 + i;
            assert_false(failed(mailbox_post(mailbox, &message)));
        }
        message.number = 999;
        status_t st = mailbox_post(mailbox, &message);
        assert_int_equal(st.code, ST_RESOURCE_EXHAUSTED);
        assert_int_equal(st.scope, SCOPE_REQUEST);
        for (uint32_t i = 0; i < 3; i++) {
            assert_true(mailbox_take(mailbox, &message));
            assert_int_equal(message.number, lap * 3 + i);
        }
        assert_false(mailbox_take(mailbox, &message));
    }
    mailbox_destroy(mailbox);
    mailbox_destroy(NULL);
}

/* A wait ends at its deadline, also one that has passed, and at once where something is there. */
static void waits_end(void **state)
{
    (void)state;
    struct mailbox *mailbox = open_box(2);
    struct message message = {0};
    assert_false(mailbox_wait(mailbox, 0));
    uint64_t deadline_ns = clock_now_ns() + 5 * NS_PER_MS;
    assert_false(mailbox_wait(mailbox, deadline_ns));
    assert_true(clock_now_ns() >= deadline_ns);
    assert_false(failed(mailbox_post(mailbox, &message)));
    assert_true(mailbox_wait(mailbox, 0));
    assert_true(mailbox_wait(mailbox, UINT64_MAX));
    mailbox_destroy(mailbox);
}

enum { POSTERS = 4, EACH = 3000 };

struct poster {
    struct mailbox *mailbox;
    uint32_t index;
};

static void *post_all(void *user)
{
    struct poster *poster = user;
    for (uint32_t i = 0; i < EACH; i++) {
        struct message message = {.poster = poster->index, .number = i};
        /* Both ways in: a post that is refused may be made again with patience. */
        if (i % 2 == 0 || failed(mailbox_post(poster->mailbox, &message))) {
            mailbox_post_wait(poster->mailbox, &message);
        }
    }
    return NULL;
}

/* Many posters into a ring of one or two: nobody sleeps for ever, each one's messages come in
 * order, and none is lost or doubled. */
static void posters_all_get_through(void **state)
{
    (void)state;
    for (uint32_t capacity = 1; capacity <= 2; capacity++) {
        struct mailbox *mailbox = open_box(capacity);
        struct poster posters[POSTERS];
        pthread_t threads[POSTERS];
        uint32_t next[POSTERS] = {0};
        for (uint32_t i = 0; i < POSTERS; i++) {
            posters[i] = (struct poster){mailbox, i};
            assert_int_equal(pthread_create(&threads[i], NULL, post_all, &posters[i]), 0);
        }
        for (uint32_t got = 0; got < POSTERS * EACH;) {
            assert_true(mailbox_wait(mailbox, UINT64_MAX));
            struct message message;
            while (mailbox_take(mailbox, &message)) {
                assert_in_range(message.poster, 0, POSTERS - 1);
                assert_int_equal(message.number, next[message.poster]);
                next[message.poster]++;
                got++;
            }
        }
        for (uint32_t i = 0; i < POSTERS; i++) { pthread_join(threads[i], NULL); }
        assert_false(mailbox_wait(mailbox, 0));
        mailbox_destroy(mailbox);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_ring_refuses),
        cmocka_unit_test(waits_end),
        cmocka_unit_test(posters_all_get_through),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
