#include <stdio.h>

#include "prefill_node/prefill_server.h"
#include "node/node.h"
#include "node/node_config.h"

int main(int argc, char **argv)
{
    struct node_config config;
    struct diag diag = {{0}};
    bool wants_help;
    status_t st = flags_parse(node_flags, node_flag_count, &config, argc, argv, NULL, NULL, &wants_help, &diag);
    if (failed(st)) {
        fprintf(stderr, "prefill_node: %s\n", diag.text);
        return 2;
    }
    if (wants_help) {
        flags_print_help(node_flags, node_flag_count, "prefill_node --listen=H:P --model=DIR [--flag=value ...]", stdout);
        return 0;
    }
    if (config.print_config) {
        flags_print_config(node_flags, node_flag_count, &config, stdout);
        return 0;
    }
    return node_run(&config, &prefill_server_role);
}
