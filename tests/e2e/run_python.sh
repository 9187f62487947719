#!/usr/bin/env bash
# Runs a Python test of real processes with whatever Python there is: they use no package.
exec "${BATON_PYTHON:-python3}" "$@"
