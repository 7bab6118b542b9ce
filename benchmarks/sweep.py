"""What a sweep costs beside papermill itself, and how long a list of many runs takes.

    python benchmarks/sweep.py [--runs 200] [--folders 2000]

Each tiny notebook is executed twice in turn, by papermill here and by the sweep's worker, so that both see the same machine. Planning, the first start of the
worker and the report are counted, too: all of it divided by the runs.
"""

import argparse
import contextlib
import io
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import papermill

from xmodal.runs import write_run
from xmodal.plan import plan
from xmodal.runner import Crew, Runner, places
from xmodal.sweep_report import summarise
from xmodal.worker import write_plan

PARAMETERS = "out = ''\nseed = 0  # 0 or more: of the run"
RESULTS = """import json, pathlib
results = {"title": "Tiny", "summary": "", "provenance": {}, "measures": {"seed": seed}}
pathlib.Path(out, "results.json").write_text(json.dumps(results))"""


def write_notebook(folder: Path) -> Path:
    book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    book.cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(RESULTS)]
    nbformat.write(book, folder / "tiny.ipynb")
    return folder / "tiny.ipynb"


def overhead(folder: Path, runs: int) -> None:
    notebook, alone, through = write_notebook(folder), [], []
    (folder / "alone").mkdir()
    quiet = contextlib.redirect_stdout(io.StringIO())
    clock = time.perf_counter
    start = clock()
    with quiet:
        planned = write_plan(plan(notebook, [f"seed=0..{runs - 1}"], [], folder / "sweep"))
        runner = Runner(planned, Crew(places(runs, 1, 1)), retries=0)
    around = clock() - start
    for i in range(runs):
        start = clock()
        papermill.execute_notebook(notebook, folder / "alone/notebook.ipynb", {"seed": i, "out": str(folder / "alone")}, progress_bar=False)
        alone.append(clock() - start)
        start = clock()
        with quiet:
            while runner.progress.done <= i:
                runner.step()
        through.append(clock() - start)
        if sys.stderr.isatty():
            print(f"\r{i + 1}/{runs}", end="", file=sys.stderr)
    start = clock()
    with quiet:
        runner.crew.end()
        summarise(folder / "sweep", runner.runs.values())
    around += clock() - start
    assert all(run["state"] == "finished" for run in runner.runs.values())
    first = through[0] - alone[0]  # papermill's own import has been paid here, not yet there
    differences = [b - a for a, b in zip(alone[1:], through[1:])]
    each = (sum(through) - sum(alone) + around) / runs
    print(f"{runs} runs, s of each               papermill   sweep   difference")
    print(f"  median{'':28}{statistics.median(alone):9.3f}{statistics.median(through):8.3f}{statistics.median(differences):13.3f}")
    print(f"  mean, first start of the worker, plan and report with it{'':9}{each:13.3f}")
    print(f"  once: first start {first:.1f} s, plan and report {around:.1f} s")


def listing(folder: Path, folders: int) -> None:
    for i in range(folders):
        write_run(folder / f"many/tiny_seed{i}-0123456789", {
            "state": "finished", "key": "0" * 64, "notebook": "notebooks/tiny-0123456789.ipynb", "parameters": {"seed": i, "data": "street", "root": "", "method": "slidr", "steps": 120},
            "varied": {"seed": i}, "measures": {"loss": 1 / (i + 1), "recall": 0.5}, "seconds": 12.0, "attempts": 1, "digests": dict.fromkeys(("code", "notebook"), "0" * 64), "log": "x" * 1500,
        })  # fmt: skip
    command = [sys.executable, "-c", "import sys; from xmodal.cli import main; sys.exit(main())", "runs", str(folder / "many")]
    took, computed = [], []
    for _ in range(5):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(time.perf_counter() - start)
        computed.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print(f"xmodal runs, {folders} folders: {min(took):.2f} s at best of {len(took)}, of it the processor's {min(computed):.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--folders", type=int, default=2000)
    args = parser.parse_args()
    os.environ["XMODAL_BATCH"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        listing(Path(folder), args.folders)
        if args.runs:
            overhead(Path(folder), args.runs)


if __name__ == "__main__":
    main()
