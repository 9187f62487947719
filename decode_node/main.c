#include "decode_node/decode_server.h"

int main(int argc, char **argv) { return node_main(argc, argv, &decode_server_role); }
