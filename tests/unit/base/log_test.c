/* Claims on log and check: one line per event whatever it is given, and a CHECK that stops. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

static char captured[1 << 20];
static size_t captured_len;

/* Runs `write_lines` with standard error in a file, and reads it. */
static void capture(void (*write_lines)(void))
{
    FILE *file = tmpfile();
    assert_non_null(file);
    fflush(stderr);
    int saved = dup(STDERR_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    write_lines();
    fflush(stderr);
    dup2(saved, STDERR_FILENO);
    close(saved);
    rewind(file);
    captured_len = fread(captured, 1, sizeof captured - 1, file);
    captured[captured_len] = '\0';
    fclose(file);
}

static size_t line_count(void)
{
    size_t count = 0;
    for (size_t i = 0; i < captured_len; i++) { count += captured[i] == '\n'; }
    return count;
}

static void write_hostile(void)
{
    LOGF(LOG_WARN, "peer_said", "text=\"%s\"", "line one\nlevel=error event=forged\r\x1b[31m\x7f");
}

/* Foreign text cannot begin a line of its own or colour a terminal. */
static void foreign_text_stays_in_its_line(void **state)
{
    (void)state;
    capture(write_hostile);
    assert_int_equal(line_count(), 1);
    assert_int_equal(captured[captured_len - 1], '\n');
    assert_null(strchr(captured, 0x1b));
    assert_null(strchr(captured, 0x7f));
    assert_non_null(strstr(captured, "level=warn event=peer_said text=\"line one?level=error"));
    assert_non_null(strstr(captured, " at=tests/unit/base/log_test.c:"));
}

static void write_long(void)
{
    static char text[5000];
    memset(text, 'y', sizeof text - 1);
    errno = EAGAIN;
    LOGF(LOG_INFO, "long", "text=%s", text);
    assert_int_equal(errno, EAGAIN); /* whoever logs may read errno afterwards */
    log_write(LOG_INFO, text, 1, text, "%s", text);
}

/* A line too long is cut and still ends with where it came from. */
static void long_lines_are_cut(void **state)
{
    (void)state;
    capture(write_long);
    assert_int_equal(line_count(), 2);
    assert_true(captured_len < 2 * 2048);
    assert_non_null(strstr(captured, "yyy at=tests/unit/base/log_test.c:"));
}

static int evaluated;

static int evaluate(void) { return ++evaluated; }

static void write_levels(void)
{
    log_set_level(LOG_WARN);
    LOGF(LOG_INFO, "quiet", "n=%d", evaluate());
    LOGF(LOG_WARN, "loud", "n=%d", evaluate());
    LOGF(LOG_ERROR, "louder", "n=%d", evaluate());
    log_set_level(LOG_INFO);
}

/* What the level leaves out is not written and not computed. */
static void levels_filter(void **state)
{
    (void)state;
    evaluated = 0;
    capture(write_levels);
    assert_int_equal(line_count(), 2);
    assert_int_equal(evaluated, 2);
    assert_null(strstr(captured, "quiet"));
    enum log_level level = LOG_INFO;
    assert_true(log_level_parse("debug", &level));
    assert_int_equal(level, LOG_DEBUG);
    assert_false(log_level_parse("DEBUG", &level));
    assert_false(log_level_parse("", &level));
}

enum { THREADS = 4, LINES = 300 };

static void *write_many(void *user)
{
    for (int i = 0; i < LINES; i++) { LOGF(LOG_INFO, "many", "thread=%d line=%d end=1", *(int *)user, i); }
    return NULL;
}

static void write_from_threads(void)
{
    pthread_t threads[THREADS];
    int names[THREADS];
    for (int i = 0; i < THREADS; i++) {
        names[i] = i;
        assert_int_equal(pthread_create(&threads[i], NULL, write_many, &names[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) { pthread_join(threads[i], NULL); }
}

/* Lines of several threads never mix. */
static void lines_of_threads_do_not_mix(void **state)
{
    (void)state;
    capture(write_from_threads);
    assert_int_equal(line_count(), THREADS * LINES);
    for (char *line = strtok(captured, "\n"); line; line = strtok(NULL, "\n")) {
        assert_int_equal(strncmp(line, "ts=2", 4), 0);
        assert_non_null(strstr(line, " end=1 at="));
        assert_null(strstr(line + 1, "ts=2"));
    }
}

/* A CHECK that holds costs nothing; one that does not says so and aborts, in release builds too. */
static void a_failed_check_aborts(void **state)
{
    (void)state;
    CHECK(evaluate() > 0);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr)) { _exit(3); }
        CHECK(evaluate() < 0);
        _exit(0);
    }
    int how = 0;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFSIGNALED(how));
    assert_int_equal(WTERMSIG(how), SIGABRT);
}

/* The monotonic clock does not go back, and a sleep is not cut short. */
static void sleeping_takes_time(void **state)
{
    (void)state;
    uint64_t before = clock_now_ns();
    clock_sleep_ns(2 * NS_PER_MS);
    assert_true(clock_now_ns() >= before + 2 * NS_PER_MS);
    assert_true(clock_wall_ns() > UINT64_C(1600000000) * NS_PER_S);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(foreign_text_stays_in_its_line), cmocka_unit_test(long_lines_are_cut),
        cmocka_unit_test(levels_filter),                  cmocka_unit_test(lines_of_threads_do_not_mix),
        cmocka_unit_test(a_failed_check_aborts),          cmocka_unit_test(sleeping_takes_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
