/* baton: the command line tool.
 * Flow:    argv -> [main] -> one command_<word>.c */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/version.h"
#include "client/commands.h"

static const struct {
    const char *word;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"up", command_up, "run router, prefill and decode nodes on this machine until Ctrl-C"},
    {"generate", command_generate, "continue a prompt"},
    {"chat", command_chat, "talk to the model"},
    {"status", command_status, "the router and its nodes, now"},
    {"kv", command_kv, "who holds which KV blocks, hit rates, tiers, fragmentation"},
    {"tokenize", command_tokenize, "text to token ids and back"},
    {"bench", command_bench, "load the router and report TTFT, TPOT, ITL and goodput"},
};

static void print_help(FILE *out)
{
    fprintf(out, "usage: baton COMMAND [--flag=value ...]\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        fprintf(out, "  %-10s %s\n", commands[i].word, commands[i].help);
    }
    fprintf(out, "\nbaton COMMAND --help lists its flags; baton --version prints the version.\n");
}

bool command_flags(const struct flag *flags, size_t flag_count, const char *usage, void *config, int argc, char **argv,
                   int *ret_exit)
{
    struct diag diag = {{0}};
    bool wants_help;
    status_t st = flags_parse(flags, flag_count, config, argc, argv, NULL, NULL, &wants_help, &diag);
    if (failed(st)) {
        fprintf(stderr, "baton %s: %s\n", argv[0], diag.text);
        *ret_exit = 2;
        return false;
    }
    if (wants_help) {
        flags_print_help(flags, flag_count, usage, stdout);
        *ret_exit = 0;
        return false;
    }
    return true;
}

int command_fail(const char *word, status_t st, const struct diag *diag)
{
    fprintf(stderr, "baton %s: %s\n", word, diag->text[0] ? diag->text : status_code_name(st.code));
    return st.code == ST_INVALID_ARGUMENT && st.scope == SCOPE_REQUEST ? 2 : 1;
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(argc < 2 ? stderr : stdout);
        return argc < 2 ? 2 : 0;
    }
    if (version_is_asked(2, argv, "baton", stdout)) { return 0; } /* only as the command: a prompt may hold the word */
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(argv[1], commands[i].word) == 0) { return commands[i].run(argc - 1, argv + 1); }
    }
    fprintf(stderr, "baton: \"%s\" is not a command\n\n", argv[1]);
    print_help(stderr);
    return 2;
}
