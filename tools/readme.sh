#!/usr/bin/env bash
# README.md is nbs/index.ipynb as Markdown, seen from the repository's root.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/jupyter nbconvert --log-level ERROR --to markdown --stdout nbs/index.ipynb | sed 's|(images/|(nbs/images/|' >"${1:-README.md}"
