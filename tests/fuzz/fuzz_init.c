/* fuzz_init: gives libFuzzer a folder of its own to write what it finds into.
 * Bazel says where only in the environment, and does not expand that in a test's arguments, so
 * the argument {TEST_TMPDIR} is replaced here, before libFuzzer reads its command line. */
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    char *folder = getenv("TEST_TMPDIR");
    for (int i = 1; i < *argc && folder; i++) {
        if (strcmp((*argv)[i], "{TEST_TMPDIR}") == 0) { (*argv)[i] = folder; }
    }
    return 0;
}
