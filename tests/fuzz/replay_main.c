/* replay_main: runs a fuzz target once over every file of the folders it is given.
 * Flow:    the plain build's stand-in for libFuzzer's main, so that every stored input is
 *          a regression test in every compiler and sanitizer.
 * Memory:  one input at a time. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) { perror(path); return 1; }
    uint8_t *data = NULL;
    size_t size = 0, capacity = 0;
    for (;;) {
        if (size == capacity) {
            capacity = capacity ? capacity * 2 : 4096;
            data = realloc(data, capacity);
            if (!data) { abort(); }
        }
        size_t got = fread(data + size, 1, capacity - size, file);
        if (got == 0) { break; }
        size += got;
    }
    fclose(file);
    /* An exact copy, so that a sanitizer sees a read past the end. */
    uint8_t *exact = malloc(size ? size : 1);
    if (!exact) { abort(); }
    memcpy(exact, data, size);
    (void)LLVMFuzzerTestOneInput(exact, size);
    free(exact);
    free(data);
    return 0;
}

static int replay_path(const char *path, unsigned *count)
{
    struct stat info;
    if (stat(path, &info) != 0) { perror(path); return 1; }
    if (!S_ISDIR(info.st_mode)) { ++*count; return replay_file(path); }
    DIR *dir = opendir(path);
    if (!dir) { perror(path); return 1; }
    int rc = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.') { continue; }
        char child[4096];
        int len = snprintf(child, sizeof child, "%s/%s", path, entry->d_name);
        if (len < 0 || (size_t)len >= sizeof child) { rc = 1; continue; }
        rc |= replay_path(child, count);
    }
    closedir(dir);
    return rc;
}

int main(int argc, char **argv)
{
    unsigned count = 0;
    int rc = 0;
    for (int i = 1; i < argc; i++) { rc |= replay_path(argv[i], &count); }
    printf("replayed %u inputs\n", count);
    if (count == 0) { fprintf(stderr, "the corpus is empty\n"); return 1; }
    return rc;
}
