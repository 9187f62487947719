#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>

void check_failed(const char *cond, const char *file, int line)
{
    fprintf(stderr, "level=fatal event=check_failed at=%s:%d cond=\"%s\"\n", file, line, cond);
    fflush(stderr);
    abort();
}
