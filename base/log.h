/* log: one event per line on standard error, key=value, the event's name first.
 * Flow:    the one who decides what a failure means logs it, once; libraries do not log.
 * Thread:  any; a line is written by one write call.
 * Memory:  the stack.
 *
 * error: a node or peer is lost; warn: odd, and what we did instead; info: the life of the
 * process; debug: the life of a request. */
#ifndef BATON_BASE_LOG_H
#define BATON_BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_ERROR = 0, LOG_WARN = 1, LOG_INFO = 2, LOG_DEBUG = 3 };

void log_set_level(enum log_level level);
bool log_level_parse(const char *name, enum log_level *ret_level);
bool log_enabled(enum log_level level);

/* LOGF(LOG_WARN, "kv_push_retry", "leg=%016lx layer=%u", ...): values that may hold spaces
 * are put in quotes by the caller; control characters become '?'. */
__attribute__((format(printf, 5, 6))) void log_write(enum log_level level, const char *file, int line,
                                                     const char *event, const char *format, ...);

#define LOGF(level, event, ...)                                          \
    do {                                                                 \
        if (log_enabled(level)) {                                        \
            log_write((level), __FILE__, __LINE__, (event), __VA_ARGS__); \
        }                                                                \
    } while (0)

#endif
