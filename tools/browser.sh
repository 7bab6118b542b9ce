#!/usr/bin/env bash
# Chromium for the browser tests. Not a part of setup.sh: it is some 100 MB with its libraries, and `make demo` does without.
set -euo pipefail
say() { printf 'browser: %s\n' "$*"; }

for program in chromium chromium-browser google-chrome; do
    command -v "$program" >/dev/null && exit 0
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    say "no Chromium found (sudo apt-get install chromium): the browser tests will be skipped"
    exit 0
fi
say "installing the Debian package chromium"
export DEBIAN_FRONTEND=noninteractive
{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >/dev/null ||
    say "apt-get could not install it: the browser tests will be skipped"
