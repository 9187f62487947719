/* check: stops the process on our own mistakes, and on nothing else.
 * The outside world (clients, peers, files) gives a status, never a CHECK. */
#ifndef BATON_BASE_CHECK_H
#define BATON_BASE_CHECK_H

/* Prints the condition and aborts; stays on in release. One condition per CHECK. */
#define CHECK(cond)                                      \
    do {                                                 \
        if (__builtin_expect(!(cond), 0)) {              \
            check_failed(#cond, __FILE__, __LINE__);     \
        }                                                \
    } while (0)

/* For scans and hot loops: on in debug, sanitizer and simulation builds. */
#ifdef BATON_DCHECK
#define DCHECK(cond) CHECK(cond)
#else
#define DCHECK(cond)            \
    do {                        \
        if (0) { (void)(cond); } \
    } while (0)
#endif

_Noreturn void check_failed(const char *cond, const char *file, int line);

#endif
