#include "base/diag.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void diag_set(struct diag *diag, const char *format, ...)
{
    if (!diag) { return; }
    va_list args;
    va_start(args, format);
    vsnprintf(diag->text, sizeof diag->text, format, args);
    va_end(args);
}

void diag_prefix(struct diag *diag, const char *format, ...)
{
    if (!diag) { return; }
    char inner[sizeof diag->text];
    memcpy(inner, diag->text, sizeof inner);
    inner[sizeof inner - 1] = '\0';
    va_list args;
    va_start(args, format);
    int len = vsnprintf(diag->text, sizeof diag->text, format, args);
    va_end(args);
    if (len < 0 || (size_t)len + 3 >= sizeof diag->text) { return; }
    snprintf(diag->text + len, sizeof diag->text - (size_t)len, ": %.*s",
             (int)(sizeof diag->text - (size_t)len - 3), inner);
}
