#!/usr/bin/env bash
# Make a virtual environment and install the engine into it, with its embedded stores and what the tests need.
# Usage: set_up.sh VENV_DIRECTORY. Set PYTHON to choose an interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1

supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if command -v "$candidate" >/dev/null && "$candidate" -c "$supported" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "set-up: no Python from 3.11 to 3.13 found${PYTHON:+ at $PYTHON}; install the package python3" >&2
    return 1
}

# Debian ships Python without ensurepip, and keeps it in a package of its own.
make_venv() {
    local python=$1 package
    package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -m venv --clear "$venv"
    elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "set-up: installing $package" >&2
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$package" >/dev/null
        "$python" -m venv --clear "$venv"
    elif "$python" -m virtualenv --version >/dev/null 2>&1; then
        "$python" -m virtualenv --quiet --clear "$venv"
    elif "$python" -m pip --version >/dev/null 2>&1; then
        make_venv_by_pip "$python"
    else
        echo "set-up: this Python cannot make a virtual environment; install the package $package" >&2
        return 1
    fi
}

# Into a directory of its own, which also a Python that is managed by the system allows.
make_venv_by_pip() {
    local python=$1 scratch
    scratch=$(mktemp -d)
    "$python" -m pip install --quiet --target "$scratch" virtualenv
    PYTHONPATH=$scratch "$python" -m virtualenv --quiet --clear "$venv"
    rm -rf "$scratch"
}

if ! "$venv/bin/python" -c "$supported; import pip" 2>/dev/null; then
    python=$(find_python)
    echo "set-up: making $venv with $python" >&2
    make_venv "$python"
fi
echo "set-up: installing packages" >&2
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[embedded,test,load]'
bash scripts/provide_redis.sh "$venv/bin/python"
