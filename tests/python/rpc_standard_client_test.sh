#!/bin/sh
# Runs rpc_standard_client.py with the first Python that has grpcio: $BATON_PYTHON, else python3.
for python in ${BATON_PYTHON:-} python3; do
    if "$python" -c 'import grpc' 2>/dev/null; then
        exec "$python" "$1" "$2"
    fi
done
echo "SKIPPED: no Python with grpcio; set BATON_PYTHON to one (pip install grpcio grpcio-health-checking grpcio-reflection)"
