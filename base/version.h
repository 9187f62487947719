/* version: the one number of all our programs, as --version and GetStatus tell it.
 * Thread:  any. Memory: none. */
#ifndef BATON_BASE_VERSION_H
#define BATON_BASE_VERSION_H

#include <stdbool.h>
#include <stdio.h>

#define BATON_VERSION "0.1.0"

/* Prints "program 0.1.0" where --version stands among the words before any "--"; then the
 * program is done. No row of a flags table: BATON_VERSION in an environment would set it. */
bool version_is_asked(int argc, char *const *argv, const char *program, FILE *out);

/* Its line under the others of --help. */
void version_print_help(FILE *out);

#endif
