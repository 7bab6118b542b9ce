#!/usr/bin/env bash
# All tests: notebooks and package agree, every notebook runs, then tests/.
set -euo pipefail
cd "$(dirname "$0")/.."
cores="$(env -u OMP_NUM_THREADS nproc)"  # with that variable it tells its value
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MPLBACKEND=agg

echo "== notebooks and package agree"
copy="$(mktemp -d)"
trap 'rm -rf "$copy"' EXIT
cp -r nbs xmodal settings.ini setup.py README.md "$copy/"
(cd "$copy" && nbdev_clean && nbdev_export)
diff -r -x __pycache__ -x .ipynb_checkpoints nbs "$copy/nbs" && diff -r -x __pycache__ xmodal "$copy/xmodal" || {
    echo "run 'nbdev_clean && nbdev_export' and commit the result" >&2
    exit 1
}
tools/readme.sh "$copy/README.made" && diff README.md "$copy/README.made" || {
    echo "run tools/readme.sh and commit the result" >&2
    exit 1
}

echo "== every notebook runs"
nbdev_test --n_workers 1 --timing --do_print

echo "== tests/"
tools/browser.sh
pytest -q -rs -n "$cores" --dist loadfile tests
