#include "base/version.h"

#include <string.h>

bool version_is_asked(int argc, char *const *argv, const char *program, FILE *out)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--version") != 0) { continue; }
        fprintf(out, "%s " BATON_VERSION "\n", program);
        return true;
    }
    return false;
}

void version_print_help(FILE *out) { fprintf(out, "  %-32s %s\n", "--version", "Print the version, then exit."); }
