#!/usr/bin/env bash
# Sets up everything that `make demo` and `make test` need, in .venv. Safe to run again: what is done is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${XMODAL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/xmodal}"
say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore DEBIAN_FRONTEND=noninteractive

stamp=".venv/ready-$(cat constraints.txt settings.ini setup.py tools/setup.sh | cksum | cut -d' ' -f1)"
[ -f "$stamp" ] && exit 0

# 1. Debian packages: a compiler and BLAS for MinkowskiEngine, the libraries that Open3D loads.
missing=()
if command -v dpkg-query >/dev/null; then
    for package in g++ python3-dev python3-venv libopenblas-dev libusb-1.0-0 libgl1 libegl1 libgomp1 libx11-6; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
fi
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ]; then
        say "installing Debian packages: ${missing[*]}"
        apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
            say "apt-get could not install them; going on, some parts may not work"
    else
        say "please install these Debian packages (sudo apt-get install ${missing[*]}); going on without them"
    fi
fi

# 2. A virtual environment with Python 3.10 - 3.12.
if [ ! -x .venv/bin/pip ]; then # without python3-venv Debian leaves a .venv with python and no pip
    for python in python3.12 python3.11 python3.10 python3; do
        "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && break || python=
    done
    [ -n "$python" ] || fail "no Python 3.10, 3.11 or 3.12 found; install one (apt-get install python3 python3-venv)"
    say "creating .venv with $("$python" --version)"
    "$python" -m venv .venv || fail "venv failed; install $python-venv (apt-get install $python-venv) and give the same command again"
fi
python=.venv/bin/python

# 3. Python packages.
say "installing Python packages (some minutes, silently)"
"$python" -m pip install -q -c constraints.txt 'setuptools<80' wheel ninja 2>&1 | { grep -v '^WARNING: Location' || true; }
"$python" -m pip install -q -c constraints.txt --no-build-isolation -e '.[train,vit,world,datasets,cluster,lab,dev]' 2>&1 | { grep -v '^WARNING: Location' || true; }

# JupyterLab would ask at every start to be built again for an extension that comes with Open3D and is not needed here.
lab=.venv/etc/jupyter/labconfig/page_config.json
mkdir -p "${lab%/*}"
[ -f "$lab" ] || echo '{"buildCheck": false}' >"$lab"

# 4. MinkowskiEngine, built once into a wheel cache. It is optional: the torch engine does all that it does.
key="$("$python" -c 'import sys, torch; print(f"cp{sys.version_info[0]}{sys.version_info[1]}-torch{torch.__version__}")')"
wheels="$cache/wheels/$key"
mkdir -p "$wheels"
if ! ls "$wheels"/*.whl >/dev/null 2>&1; then
    # a compiler process takes up to 2.2 GB
    jobs=$(awk '/MemAvailable/ {print int($2 / 2200000)}' /proc/meminfo)
    jobs=$((jobs < 1 ? 1 : jobs > $(nproc) ? $(nproc) : jobs))
    say "building MinkowskiEngine once ($jobs jobs, 3-5 minutes on 2 cores; log: $wheels/build.log)"
    build="$(mktemp -d)"
    trap 'rm -rf "$build"' EXIT
    (
        # its setup.py calls pip; without debug symbols it takes half the memory and time
        export PATH="$PWD/.venv/bin:$PATH" MAX_JOBS=$jobs CFLAGS=-g0 CXXFLAGS=-g0
        pip download -q --no-deps --no-binary :all: --no-build-isolation -d "$build" MinkowskiEngine==0.5.4 &&
            tar xzf "$build"/*.tar.gz -C "$build" &&
            cd "$build"/MinkowskiEngine-0.5.4 &&
            python setup.py bdist_wheel --cpu_only --blas=openblas &&
            mv dist/*.whl "$wheels/"
    ) >"$wheels/build.log" 2>&1 || true
fi
if ! "$python" -m pip install -q --no-deps "$wheels"/*.whl >/dev/null 2>&1; then
    say "MinkowskiEngine could not be built (see $wheels/build.log)."
    say "Going on with the torch engine, which gives the same results."
fi

rm -f .venv/ready-*
touch "$stamp"
say "done"
