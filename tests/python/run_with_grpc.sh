#!/bin/sh
# Runs a program with the first Python that has grpcio: $BATON_PYTHON, else python3.
for python in ${BATON_PYTHON:-} python3; do
    if "$python" -c 'import grpc, grpc_health, grpc_reflection' 2>/dev/null; then
        exec "$python" "$@"
    fi
done
echo "SKIPPED: no Python with grpcio; set BATON_PYTHON to one (pip install -r tests/python/requirements.txt)"
