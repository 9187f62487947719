#include <stdio.h>

#include "base/version.h"
#include "router/router_config.h"
#include "router/router_run.h"

int main(int argc, char **argv)
{
    struct router_config config;
    struct diag diag = {{0}};
    bool wants_help;
    if (version_is_asked(argc, argv, "router", stdout)) { return 0; }
    status_t st = flags_parse(router_flags, router_flag_count, &config, argc, argv, NULL, NULL, &wants_help, &diag);
    if (failed(st)) {
        fprintf(stderr, "router: %s\n", diag.text);
        return 2;
    }
    if (wants_help) {
        flags_print_help(router_flags, router_flag_count,
                         "router --listen=H:P --model=DIR --prefill=H:P,... --decode=H:P,... [--flag=value ...]", stdout);
        version_print_help(stdout);
        return 0;
    }
    if (config.print_config) {
        flags_print_config(router_flags, router_flag_count, &config, stdout);
        return 0;
    }
    return router_run(&config);
}
