"""A sweep: what it refuses before it begins, and that whatever kills it, the same command ends with the same table and nobody stays behind."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import refusal, until, write_notebook
from tiny_runs import alive

papermill = pytest.importorskip("papermill", reason="runs are notebooks, executed by papermill")
pytest.importorskip("matplotlib", reason="a sweep draws its report")
import nbformat  # noqa: E402

from xmodal import cli, runs  # noqa: E402
from xmodal.experiments import EXPERIMENTS, Parameter, parameters_of  # noqa: E402
from xmodal.plan import plan  # noqa: E402
from xmodal.results import read_results  # noqa: E402
from xmodal.runner import stopped_by_signals  # noqa: E402
from xmodal.sweep import sweep  # noqa: E402
from xmodal.worker import Busy, lock, run_one, write_plan  # noqa: E402

PARAMETERS = """out = "runs/tiny"  # folder of this run
method = "slidr"  # one of slidr, ppkt: how it learns
seed = 0  # 0 or more: of the run
steps = 4  # 1 to 100: of "training"
pause = 0.0  # 0 to 60: seconds of a step
trouble = ""  # what goes wrong
root = ""  # folder of the recordings"""
TRAINING = """import json, os, random, signal, subprocess, sys, time
from pathlib import Path

out = Path(out)
checkpoint = out / "last.json"
state = json.loads(checkpoint.read_text()) if checkpoint.is_file() else {"step": 0, "loss": 10.0, "starts": 0}
state["starts"] += 1
if trouble == "child":
    (out / "child.part").write_text(str(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid))
    os.replace(out / "child.part", out / "child")
if trouble == "error":
    raise ArithmeticError("the loss is nan")
if trouble == "data":
    raise FileNotFoundError("/data: there is no such folder")
while state["step"] < steps:
    state["loss"] *= 1 - random.Random(f"{method} {seed} {state['step']}").random() / 4
    state["step"] += 1
    checkpoint.with_suffix(".part").write_text(json.dumps(state))
    os.replace(checkpoint.with_suffix(".part"), checkpoint)
    with open(out / "metrics.csv", "a") as file:
        print(f"step,loss\\n{state['step']},{state['loss']}" if state["step"] == 1 else f"{state['step']},{state['loss']}", file=file)
    print(f"step {state['step']}: loss {state['loss']:.3f}")
    if trouble == "killed" and state["starts"] == 1 and state["step"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "disk":
        (out / "big").write_bytes(bytes(8_000_000))
    time.sleep(600 if trouble == "child" and state["starts"] == 1 else pause)"""
RESULTS = """results = {"title": "Tiny", "summary": "A walk.", "provenance": {"versions": {"tiny": "1"}}, "measures": {"loss": state["loss"]}, "tables": [{"title": "Walk", "rows": [["step", "loss"], [state["step"], state["loss"]]]}], "checkpoint": str(checkpoint)}
(out / "results.json").write_text(json.dumps(results))"""
AFTER = """import json
from pathlib import Path

loss = json.loads(Path(checkpoint).read_text())["loss"]
results = {"title": "After", "summary": "", "provenance": {}, "measures": {"doubled": 2 * loss, "seed": seed}}
(Path(out) / "results.json").write_text(json.dumps(results))"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    "A notebook that takes steps and keeps a checkpoint, and one that follows it."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_notebook(tmp_path / "after.ipynb", 'out = ""\ncheckpoint = "none"  # of the run before\nseed = 0  # 0 or more: of the run', AFTER)
    return write_notebook(tmp_path / "tiny.ipynb", PARAMETERS, TRAINING, RESULTS)


def state_of(folder):
    return {Path(run["folder"]).name.rpartition("-")[0]: run["state"] for run in runs.runs_in(folder)}


# --- before anything runs


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tiny.ipynb -p sed=0..2", "tiny.ipynb has no parameter sed; did you mean 'seed'? there is method, seed, steps"),
        ("tiny.ipynb -p method=slidr,ppt", "method = 'ppt': did you mean 'ppkt'? it is one of slidr, ppkt"),
        ("tiny.ipynb -p seed=0,two", "seed = 'two': it is a whole number, such as 0"),
        ("tiny.ipynb -p seed=-2..2", "seed = -2: it is 0 or more"),
        ("tiny.ipynb -p steps=500", "steps = 500: it is 1 to 100"),
        ("tiny.ipynb -p seed", "-p seed: give a name and its values"),
        ("tiny.ipynb -p seed=1 -p seed=2", "seed is given twice"),
        ("tiny.ipynb -p out=here", "give the one for all with --out"),
        ("tiny.ipynb -p root=nowhere", "root = nowhere: there is no such folder"),
        ("tiny.ipynb -p seed=", "seed = '': it is a whole number, such as 0"),
        ("tiny.ipynb -p method=slidr,", "there is nothing between two commas, or at an end"),
        ("tiny.ipynb -p pause=Infinity", "pause = inf: it is a finite number"),
        ("after.ipynb", "checkpoint = none: there is no such file; give one that is there"),
        ("after.ipynb -p checkpoint=", "checkpoint is empty: give one"),
        ("tiny.ipynb --out tiny.ipynb", "tiny.ipynb: this is a file: no runs can be kept in it"),
        ("tiny.ipynb --then probe", "probe.ipynb: there is no such notebook"),
        ("tiny.ipynb --workers 0", "--workers 0 cannot be; give at least 1"),
        ("none.ipynb", "none.ipynb: there is no such notebook"),
        ("bare.ipynb", "bare.ipynb: no cell is tagged `parameters`"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(words, expected, tiny, tmp_path, capsys):
    write_notebook(tmp_path / "bare.ipynb", "x = 1", tags=())
    out = [] if "--out" in words else ["--out", tmp_path / "sweep"]
    assert expected in refusal(capsys, "sweep", *words.split(), *out, "--dry-run")
    assert expected in refusal(capsys, "sweep", *words.split(), *out) and not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("pretrain -p data=kiti -p root=drives", "unknown dataset 'kiti'; did you mean 'kitti'?"),
        ("pretrain -p data=nuscenes:trian -p root=drives", "nuscenes has no split 'trian'; it has train"),
        ("pretrain -p data=kitti", "the dataset 'kitti' needs the folder of its recordings"),
        ("pretrain -p data=kitti -p root=empty", "empty: "),
        ("pretrain -p root=nowhere", "nowhere: there is no such folder"),
        ("pretrain -p root=empty", "empty: it looks like none of kitti"),
        ("pretrain -p data=street -p root=drives", "drives: it holds something else (2011_09_26): nothing is written into it"),
        ("pretrain -p data=mine.py -p root=drives", "mine.py: it has no function dataset(root)"),
        ("pretrain -p recipe=smal -p method=ppkt", "recipe = smal: did you mean 'small'? ppkt has paper"),
        ("pretrain -p recipe=st_slidr -p method=slidr,ppkt", "recipe = st_slidr: ppkt has paper"),
        ("probe -p checkpoint=nowhere.safetensors", "checkpoint = nowhere.safetensors: there is no such file"),
        ("depth -p checkpoint=mine.py -p test_list=nowhere", "test_list = nowhere: there is no such file"),
        ("compare", "runs = []: give two or more"),
        ("compare -p runs=[drives,nowhere]", "runs = nowhere: there is no such folder"),
    ],
)
def test_what_the_experiments_cannot_do_is_refused_by_the_plan(words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drives/2011_09_26").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.py").write_text("1")
    name, *others = words.replace(" -p ", " ").split()
    with pytest.raises((ValueError, FileNotFoundError)) as told:
        plan(EXPERIMENTS / f"{name}.ipynb", others, [], "sweep")
    assert expected in str(told.value) and sorted(path.name for path in tmp_path.rglob("*")) == ["2011_09_26", "drives", "empty", "mine.py"]


def test_recordings_belong_to_the_key_by_whatever_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scans = tmp_path / "scannet/scan.bin"
    scans.parent.mkdir()
    scans.write_bytes(b"1")
    key = lambda: plan(EXPERIMENTS / "table_depthcontrast.ipynb", ["scannet=scannet"], [], "sweep")[0]["key"]
    before = key()
    assert key() == before
    scans.write_bytes(b"12")
    assert key() != before
    text = json.dumps({"__metadata__": {"card": json.dumps({"method": "slidr", "source": {"name": "sweeps", "root": str(scans.parent)}})}}).encode()
    Path("c.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    monkeypatch.setattr("xmodal.data.datasets.check_dataset", lambda *_: None)
    probe = lambda: plan(EXPERIMENTS / "probe.ipynb", ["checkpoint=c.safetensors"], [], "sweep")[0]["key"]  # its root is the checkpoint's
    before = probe()
    scans.write_bytes(b"1")
    assert probe() != before


def test_the_plan_and_its_keys(tiny, tmp_path):
    planned = plan(tiny, ["method=slidr,ppkt", "seed=0..2"], ["after"], tmp_path / "sweep")
    names = [Path(run["folder"]).name.rpartition("-")[0] for run in planned]
    assert names[:3] == ["tiny_slidr_seed0", "tiny_slidr_seed1", "tiny_slidr_seed2"] and names[6] == "after_slidr_seed0" and len(names) == 12
    assert planned[6]["after"] == Path(planned[0]["folder"]).name and planned[8]["parameters"]["seed"] == 2  # the seed goes on

    def keys(*words, then=()):
        return [run["key"] for run in plan(tiny, list(words), list(then), tmp_path / "sweep")]

    before = keys("seed=0")
    assert before == keys() == keys("method=slidr") != keys("seed=1")
    assert keys("seed=0,0,0") == before  # each once
    assert keys("seed=0", then=["after"])[1] != keys("seed=1", then=["after"])[1]
    (tmp_path / "data").mkdir()
    there = keys("root=data")
    (tmp_path / "data/scan.bin").write_bytes(b"123")
    assert keys("root=data") != there
    book = nbformat.read(tiny, 4)
    book.cells.append(nbformat.v4.new_markdown_cell("prose"))
    nbformat.write(book, tiny)
    assert keys() == before
    book.cells[1].source += "\n1 + 1"
    nbformat.write(book, tiny)
    assert keys() != before


def test_dry_run_does_nothing(tiny, tmp_path, capsys):
    assert cli.main(["sweep", "tiny.ipynb", "-p", "method=slidr,ppkt", "-p", "seed=0..2", "--then", "after", "--out", "sweep", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("waiting") == 12 and "12 runs: 0 finished, 12 to do" in said and not (tmp_path / "sweep").exists()


def test_the_experiment_names_all_methods():
    from xmodal.pretrain import METHODS

    assert parameters_of(EXPERIMENTS / "pretrain.ipynb")["method"].choices == list(METHODS)


# --- runs


def quietly(*args, **options):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        found = sweep(*args, **options)
    return found, said.getvalue()


def test_a_sweep_ends_in_a_table_and_is_not_done_twice(tiny, tmp_path, capsys):
    grid = ["method=slidr,ppkt", "seed=0..1"]
    found, said = quietly(tiny, grid, ["after"], "sweep", workers=2)
    assert [run["state"] for run in found] == ["finished"] * 8
    results = read_results("sweep")
    after = [group for group in results["groups"] if group["notebook"] == "after"]
    assert [group["point"] for group in after] == [{"method": "slidr"}, {"method": "ppkt"}] and all(group["n"] == 2 for group in after)
    assert after[0]["measures"]["doubled"]["mean"] == 2 * results["groups"][0]["measures"]["loss"]["mean"]
    page = Path("sweep/report.html").read_text()
    assert "Learning curves" in page and "Commands" in page and "http:" not in page.replace("http://www.w3.org", "")
    assert "step 4: loss" in (Path(found[0]["folder"]) / "log.txt").read_text()
    assert "doubled" in said and found[0]["attempts"] == 1 and found[0]["peak_memory"] > 10

    again, said = quietly(tiny, grid, ["after"], "sweep")
    assert "8 runs: 8 finished, 0 to do" in said and [run["ended"] for run in again] == [run["ended"] for run in found]
    (Path(found[0]["folder"]) / "results.json").write_text('{"title": ')  # not finished after all
    again, said = quietly(tiny, grid, [], "sweep")
    assert "4 runs: 3 finished, 1 to do" in said and again[0]["state"] == "finished" and again[0]["ended"] > found[0]["ended"]

    assert cli.main(["runs", "sweep"]) == 0
    assert "8 runs: 8 finished" in capsys.readouterr().out
    assert cli.main(["compare", found[0]["folder"], found[1]["folder"]]) == 0
    said = capsys.readouterr().out
    assert "parameter seed" in said and re.search(r"measures\.loss .*%\)", said) and "digest" not in said


def test_what_a_run_leaves_goes_on_to_all_that_follow(tiny, tmp_path):
    found, _ = quietly(tiny, ["seed=0"], ["after", "after"], "chain")
    assert [run["state"] for run in found] == ["finished"] * 3 and found[1]["measures"] == found[2]["measures"]
    write_notebook(tmp_path / "first.ipynb", 'out = ""\nseed = 0  # 0 or more: of the run', AFTER.replace("json.loads(Path(checkpoint).read_text())", '{"loss": 1}'))
    found, _ = quietly(tmp_path / "first.ipynb", [], ["after"], "none")
    assert [run["state"] for run in found] == ["finished", "failed"] and "no run before it has left a checkpoint; give one: -p checkpoint=" in found[1]["error"] and found[1]["attempts"] == 1


def test_errors_are_told_once_and_runs_that_follow_are_left_out(tiny):
    found, said = quietly(tiny, ["trouble=error,data", "seed=0,1"], ["after"], "sweep", workers=1, retries=1)
    by_trouble = {trouble: [run for run in found if run["parameters"].get("trouble") == trouble] for trouble in ("error", "data")}
    assert [run["attempts"] for run in by_trouble["error"]] == [2, 2] and [run["attempts"] for run in by_trouble["data"]] == [1, 1]
    run = by_trouble["error"][0]
    assert run["state"] == "failed" and "ArithmeticError: the loss is nan (in cell [3], which begins 'import json" in run["error"]
    assert 'raise ArithmeticError("the loss is nan")' in run["log"]
    assert said.count("ArithmeticError: the loss is nan (in") == 2 + 1 and "the same as tiny_error_seed0" in said  # at once, and in the table of failures
    assert said.count("left out") == 4 and "Not finished" in said


def test_a_killed_kernel_is_noticed_and_tried_again(tiny):
    found, said = quietly(tiny, ["trouble=killed"], [], "sweep")
    assert found[0]["state"] == "finished" and found[0]["attempts"] == 2 and "was killed; most often the memory" in said
    assert json.loads((Path(found[0]["folder"]) / "last.json").read_text())["starts"] == 2  # it went on from its checkpoint
    assert found[0]["measures"] == quietly(tiny, [], [], "other")[0][0]["measures"]


def test_the_time_limit_ends_children_too(tiny):
    for limit in (3.0, 12.0, 60.0, 240.0):  # where it takes longer until the kernel has begun, it must be longer
        run = quietly(tiny, ["trouble=child"], [], "sweep", time_limit=limit)[0][0]
        assert run["state"] == "timed out" and run["error"] == f"it was longer than its limit of {limit} s"
        if (child := Path(run["folder"]) / "child").is_file():
            break
    assert not alive(int(child.read_text())) and "trouble" in run["parameters"] and run["kernel"] is None


def test_a_single_run_tells_its_own_tables(tiny):
    "As the notebooks of published tables are asked."
    titles = lambda folder: [table["title"] for table in read_results(folder)["tables"]]
    assert "\nWalk\nstep  loss\n4" in quietly(tiny, [], [], "one")[1] and titles("one")[-1] == "Walk"
    quietly(tiny, ["seed=0,1"], [], "two")
    assert "Walk" not in titles("two")


def test_the_energy_of_a_gpu(tiny, tmp_path, monkeypatch):
    "From a card that draws 100 W all the time."
    card = tmp_path / "bin/nvidia-smi"
    card.parent.mkdir()
    card.write_text(f"#!/bin/sh\ndate +%s.%N >> {tmp_path}/asked\necho 2048, 100.0\n")
    card.chmod(0o755)
    monkeypatch.setenv("PATH", f"{card.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (run,) = sweep(tiny, ["pause=0.5"], workers=1, out=tmp_path / "sweep")
    asked, end = [float(line) for line in (tmp_path / "asked").read_text().split()], os.path.getmtime(f"{run['folder']}/results.json")
    assert run["gpu_memory"] == 2048 and run["energy"]["of"] == "GPU 0"
    assert end - asked[0] - 0.05 <= run["energy"]["joules"] / 100 <= asked[-1] - run["started"] + 0.05  # from the first question to the last, each of which takes its time
    assert any("Wh" in cell for table in read_results(tmp_path / "sweep")["tables"] + read_results(tmp_path / "sweep")["appendix"] for row in table.get("rows", []) for cell in row)


def test_a_run_is_done_by_one_process_at_a_time(tiny, capsys):
    folder = write_plan(plan(tiny, [], [], "sweep"))[0]["folder"]
    with lock(folder), pytest.raises(Busy):
        run_one(folder)
    done = subprocess.run([sys.executable, "-m", "xmodal.worker", folder], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("finished: tiny-") and done.stderr == ""
    assert runs.read_run(folder)["state"] == "finished" and run_one(folder)["attempts"] == 1
    assert subprocess.run([sys.executable, "-m", "xmodal.worker", "nowhere"], capture_output=True).returncode == 2


def test_a_full_disk(tiny, tmp_path, capsys):
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", small], capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root alone")
    try:
        assert "small/sweep: the disk is full; make room" in refusal(capsys, "sweep", "tiny.ipynb", "-p", "trouble=disk", "--out", "small/sweep")
        assert "finished" not in state_of(small / "sweep").values() and not list(small.rglob("results.json"))
    finally:
        subprocess.run(["umount", "-l", small], check=True)


# --- whatever kills it


LEFT = []  # by a test that fails: how to end it


@pytest.fixture(autouse=True)
def nobody_is_left():
    yield
    while LEFT:
        with contextlib.suppress(ProcessLookupError):
            LEFT.pop()()


def begin(grid, out="sweep", workers=2, notebook="tiny.ipynb"):
    "The command in the background, in a session of its own."
    command = [sys.executable, "-c", "import sys; from xmodal.cli import main; sys.exit(main())", "sweep", str(notebook), *(word for pair in grid for word in ("-p", pair)), "--out", out, "--workers", str(workers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    LEFT.append(process.kill)
    return process


def running(out="sweep"):
    "Runs at work whose kernels have taken a step since they began, and have more than one before them."
    found = [run for run in runs.runs_in(out) if run["state"] == "running" and run.get("kernel") and runs.last_row(run["folder"])]
    return [run for run in found if os.path.getmtime(f"{run['folder']}/metrics.csv") > run["started"] and runs.last_row(run["folder"])["step"] + 2 < run["parameters"]["steps"]]


def hold(held, count):
    "Interrupt kernels in the midst of their steps, until there are so many: these runs cannot end, however slow this test is."
    for run in running():
        if run["kernel"] not in (one["kernel"] for one in held):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run["kernel"], signal.SIGSTOP)
                LEFT.append(partial(os.killpg, run["kernel"], signal.SIGCONT))
                if run["kernel"] in (one["kernel"] for one in running()):
                    held.append(run)
                else:  # it was faster
                    os.killpg(run["kernel"], signal.SIGCONT)
    return len(held) >= count


def let_stop(held):
    "Kernels on hold go on once they are asked to stop: they do not take all of their steps before they hear of it."
    for run in held:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended, by force
            until(lambda: int(re.search(r"ShdPnd:\s*(\w+)", Path(f"/proc/{run['kernel']}/status").read_text())[1], 16) >> signal.SIGINT - 1 & 1)
            os.killpg(run["kernel"], signal.SIGCONT)


def disturbed(grid, notebook):
    "A sweep of six, killed twice and stopped once."
    first, held = begin(grid, notebook=notebook), []  # the runner is killed
    until(lambda: hold(held, 2))
    first.send_signal(signal.SIGKILL)
    let_stop(held)
    first.communicate()
    until(lambda: not any(alive(run[name]) for run in held for name in ("pid", "kernel")))

    second, held = begin(grid, notebook=notebook), []  # a kernel is killed, then Ctrl-C
    until(lambda: hold(held, 2))
    victim, other = held
    os.killpg(victim["kernel"], signal.SIGKILL)
    until(lambda: runs.read_run(victim["folder"])["attempts"] > victim["attempts"])  # it is noticed, and the run is tried again
    until(lambda: sum(state == "finished" for state in state_of("sweep").values()) >= 2)
    second.send_signal(signal.SIGINT)
    let_stop([other])
    said = second.communicate(timeout=300)[0]
    assert second.returncode == 130 and "killed  " in said and "tried again" in said and "give the same command again to go on" in said
    assert "running" not in state_of("sweep").values() and "Traceback" not in said
    before = {run["folder"]: run["ended"] for run in runs.runs_in("sweep") if run["state"] == "finished"}

    third = begin(grid, notebook=notebook)
    said = third.communicate(timeout=300)[0]
    assert third.returncode == 0, said
    after = runs.runs_in("sweep")
    assert len(after) == 6 and all(run["state"] == "finished" for run in after)
    assert all(run["ended"] == before.get(run["folder"], run["ended"]) for run in after)  # what was finished was not done again
    assert sum(run["attempts"] for run in after) >= 6 + 4  # of six runs four were cut off, one of them perhaps twice
    return after


def the_same_table(notebook, grid):
    "As of a sweep that nobody disturbs."
    quietly(notebook, grid, [], "other", workers=2)
    a, b = (read_results(folder) for folder in ("sweep", "other"))
    return json.dumps(a["groups"]) == json.dumps(b["groups"]) and a["tables"][0] == b["tables"][0]


def test_killed_twice_and_stopped_once_it_ends_with_the_same_table(tiny):
    grid = ["method=slidr,ppkt", "seed=0..2", "steps=60", "pause=0.02"]
    after = disturbed(grid, tiny)
    assert any(json.loads((Path(run["folder"]) / "last.json").read_text())["starts"] > 1 for run in after)  # they went on from a checkpoint
    assert the_same_table(tiny, grid)


def test_trainings_that_are_killed_and_stopped_end_with_the_same_table(tmp_path, monkeypatch):
    "Two methods with three seeds on the built-in world."
    pytest.importorskip("lightning", reason="training runs on Lightning Fabric")
    pytest.importorskip("open3d", reason="the street world is rendered with Open3D")
    from xmodal.data.kitti_write import write_kitti
    from xmodal.data.street import Street

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_kitti(Street(8, cameras=1, size=(64, 208), beams=16, samples=1, frames_per_drive=2), tmp_path / "world")
    grid = ["root=world", "method=slidr,ppkt", "seed=0..2", "steps=12"]
    disturbed(grid, EXPERIMENTS / "pretrain.ipynb")
    assert the_same_table(EXPERIMENTS / "pretrain.ipynb", grid)


def test_what_a_dead_kernel_has_left_is_ended(tiny):
    "Runner, worker and kernel are killed at once; what the kernel had started holds the lock of the run."
    first = begin(["trouble=child"], workers=1)
    run = until(running)[0]
    child = int((Path(run["folder"]) / "child").read_text())
    for number in (signal.SIGSTOP, signal.SIGKILL):  # so that none of them sees another die, and ends the child
        for pid in (first.pid, run["pid"], run["kernel"]):
            os.kill(pid, number)
    first.communicate()
    until(lambda: not alive(run["pid"]) and not alive(run["kernel"]))
    assert alive(child)
    said = begin(["trouble=child"], workers=1).communicate(timeout=300)[0]
    assert "finished   tiny" in said and not alive(child)


def test_a_sweep_that_is_terminated_keeps_checkpoints(tiny):
    sweeping = begin(["pause=5", "steps=100"], workers=1)
    folder = until(running)[0]["folder"]
    sweeping.send_signal(signal.SIGTERM)
    assert "stopping 1 run" in sweeping.communicate(timeout=300)[0] and runs.read_run(folder)["state"] == "stopped"


def test_two_signals_at_once_are_one(monkeypatch):
    "As `timeout` sends them, however long it takes until they are heard."
    now = [1000.0]
    monkeypatch.setattr("xmodal.runner.time", SimpleNamespace(monotonic=lambda: now[0]))
    with stopped_by_signals():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        now[0] += 0.9
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        now[0] += 0.2  # Ctrl-C again
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_two_runners_share_the_work(tiny):
    grid, held = ["seed=0..3", "steps=40", "pause=0.02"], []
    both = [begin(grid, workers=1)]
    until(lambda: hold(held, 1))
    both.append(begin(grid, workers=1))
    until(lambda: any(run["state"] == "finished" and run["pid"] != held[0]["pid"] for run in runs.runs_in("sweep")))
    os.killpg(held[0]["kernel"], signal.SIGCONT)
    said = [one.communicate(timeout=300)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert all(run["state"] == "finished" and run["attempts"] == 1 for run in runs.runs_in("sweep"))
    assert all("finished   tiny_seed" in one for one in said)


def test_listing_loads_nothing_heavy(tmp_path):
    runs.write_run(tmp_path / "a-0", {"state": "finished", "notebook": "n-0.ipynb", "parameters": {}, "measures": {"loss": 0.5}, "seconds": 1.0})
    code = f"""
import sys
from xmodal.cli import main
main(["runs", {str(tmp_path)!r}])
print(*(name for name in ("torch", "numpy", "scipy", "PIL", "papermill", "matplotlib") if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == [] and "1 run: 1 finished" in done.stdout


def test_a_parameter_in_words():
    assert Parameter("x", 1, "1e-3 to 1: part").limits == (1e-3, 1.0) and Parameter("x", "", "folder: one of two").choices == []
