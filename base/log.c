#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static _Atomic int current_level = LOG_INFO;

static const char *const level_names[] = {"error", "warn", "info", "debug"};

void log_set_level(enum log_level level) { atomic_store_explicit(&current_level, (int)level, memory_order_relaxed); }

bool log_level_parse(const char *name, enum log_level *ret_level)
{
    for (int i = 0; i < 4; i++) {
        if (strcmp(name, level_names[i]) == 0) { *ret_level = (enum log_level)i; return true; }
    }
    return false;
}

bool log_enabled(enum log_level level)
{
    return (int)level <= atomic_load_explicit(&current_level, memory_order_relaxed);
}

void log_write(enum log_level level, const char *file, int line, const char *event, const char *format, ...)
{
    char text[2048];
    int saved_errno = errno; /* a caller may log before it reads it */
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t len = strftime(text, sizeof text, "ts=%Y-%m-%dT%H:%M:%S", &utc);
    len += (size_t)snprintf(text + len, sizeof text - len, ".%03ldZ level=%s event=%.200s ", now.tv_nsec / 1000000,
                            level_names[level], event);
    va_list args;
    va_start(args, format);
    int wrote = vsnprintf(text + len, sizeof text - len, format, args);
    va_end(args);
    if (wrote > 0) { len += (size_t)wrote; }
    if (len > sizeof text - 128) { len = sizeof text - 128; }
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f) { text[i] = '?'; }
    }
    len += (size_t)snprintf(text + len, sizeof text - len, " at=%.80s:%d\n", file, line);
    /* One write, so that lines of several threads and processes do not mix. */
    ssize_t ignored = write(STDERR_FILENO, text, len);
    (void)ignored;
    errno = saved_errno;
}
