"""Runs that take seconds: the notebooks of the fixture `prepare`, and what is looked at while they run."""

import contextlib
import csv
import os
from pathlib import Path

from xmodal import runs

TRAINING = """import json, time
from pathlib import Path

last, rows = Path(out) / "last.json", Path(out) / "metrics.csv"
goes_on = last.is_file()
step = json.loads(last.read_text()) if goes_on else 0
try:
    with open(rows, "a") as file:
        if not goes_on:
            print("step,loss", file=file, flush=True)
        while step < steps:
            step += 1
            print(f"{step},{1 / (1 + step + seed):.4f}", file=file, flush=True)
            print(f"tiny {step}/{steps} ({step / steps:.0%}), 5 step/s, 1 s left", flush=True)
            time.sleep(0 if goes_on else pause)
finally:
    last.write_text(str(len(rows.read_text().splitlines()) - 1))  # a checkpoint; it was stopped between any two lines
results = {"title": "Tiny", "summary": "", "provenance": {}, "measures": {"loss": 1 / (1 + step + seed)}}
(Path(out) / "results.json").write_text(json.dumps(results))"""
AFTER = """import json
from pathlib import Path

(Path(out) / "results.json").write_text(json.dumps({"title": "After", "summary": "", "provenance": {}, "measures": {"seed": seed}}))"""


def now(run):
    return runs.read_run(run["folder"])


def steps_of(run):
    "All steps that its attempts have taken, in their order."
    with contextlib.suppress(FileNotFoundError), open(Path(run["folder"]) / "metrics.csv", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]
    return []


def alive(pid):
    "Is there such a process? One that has ended and that nobody has asked for is none."
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def a_run(folder, state="running", **more):
    runs.write_run(folder, {"state": state, "parameters": {"method": "slidr", "seed": 3}, "pid": os.getpid(), "host": os.uname().nodename} | more)
    return folder
