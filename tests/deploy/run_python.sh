#!/usr/bin/env bash
# Runs a Python test with the Python that has the test packages, else with the system's: each
# test says itself what it skips.
exec "${BATON_PYTHON:-python3}" "$@"
