#!/usr/bin/env bash
# What the benchmark needs beside the engine: matplotlib from pip, and wrk, which is only to be had from the system.
# Usage: set_up_bench.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
"$1" -c 'import matplotlib' 2>/dev/null ||
    "$1" -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
if ! command -v wrk >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "bench: install the package wrk first" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends wrk >/dev/null
fi
