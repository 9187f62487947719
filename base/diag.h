/* diag: the sentence beside a failed status: what is wrong, where, and what to do.
 * Flow:    the caller of a parser or a start-up step lends one; the first to fail fills it.
 * Thread:  the caller's.
 * Memory:  the caller's; fixed size, longer text is cut. */
#ifndef BATON_BASE_DIAG_H
#define BATON_BASE_DIAG_H

struct diag {
    char text[1024];
};

/* Writes the sentence; diag may be NULL, then nobody wants to know. */
__attribute__((format(printf, 2, 3))) void diag_set(struct diag *diag, const char *format, ...);

/* Puts "format: " before what is there, so that an outer step can say which file it was. */
__attribute__((format(printf, 2, 3))) void diag_prefix(struct diag *diag, const char *format, ...);

#endif
