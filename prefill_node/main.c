#include "prefill_node/prefill_server.h"

int main(int argc, char **argv) { return node_main(argc, argv, &prefill_server_role); }
