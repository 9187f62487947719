/* commands: the words of the `baton` command line tool, one file each.
 * Every command takes argv from its own word on and returns the process's exit status:
 * 0 done, 1 the router or a node said no, 2 the command line is wrong. */
#ifndef BATON_CLIENT_COMMANDS_H
#define BATON_CLIENT_COMMANDS_H

#include "base/diag.h"
#include "base/flags.h"
#include "base/status.h"

int command_up(int argc, char **argv);
int command_generate(int argc, char **argv);
int command_chat(int argc, char **argv);
int command_status(int argc, char **argv);
int command_kv(int argc, char **argv);
int command_tokenize(int argc, char **argv);
int command_bench(int argc, char **argv);

#define ROUTER_DEFAULT "127.0.0.1:7070"

/* Parses flags; true: go on. False: *ret_exit is the exit status (help was printed, or the
 * error). */
bool command_flags(const struct flag *flags, size_t flag_count, const char *usage, void *config, int argc, char **argv,
                   int *ret_exit);

/* Prints "baton WORD: text" and returns the exit status for the status. */
int command_fail(const char *word, status_t st, const struct diag *diag);

#endif
