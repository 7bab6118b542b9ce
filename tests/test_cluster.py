"""Beyond one machine: a sweep on Dask workers that die, Slurm's scripts under stand-ins for srun and scontrol, runs told to other trackers, and the live table."""

import contextlib
import csv
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("papermill", reason="runs are notebooks, executed by papermill")
pytest.importorskip("distributed", reason="the workers are Dask's: pip install -e '.[cluster]'")
pytest.importorskip("anywidget", reason="the live table is a widget: pip install -e '.[lab]'")
from conftest import WORKER, address, until, write_notebook  # noqa: E402

from xmodal import runs  # noqa: E402
from xmodal.cluster import Tasks, carry_out, sbatch_options, slurm_array, slurm_training, slurm_workers, submit_training  # noqa: E402
from xmodal.frame import BadData  # noqa: E402
from xmodal.plan import plan  # noqa: E402
from xmodal.runner import Runner  # noqa: E402
from xmodal.superpixels import cluster  # noqa: E402
from xmodal.tracking import mirror  # noqa: E402
from xmodal.viz.runs_view import RunsView, resume, runs_table, stop  # noqa: E402
from xmodal.worker import write_plan  # noqa: E402

TRAINING = """import json, os, sys, time
from pathlib import Path

last, step = Path(out) / "last.json", 0
if last.is_file():
    step = json.loads(last.read_text())
with open(Path(out) / "metrics.csv", "a") as file:
    if not step:
        print("step,loss", file=file, flush=True)
    try:
        while step < steps:
            step += 1
            print(f"{step},{1 / (1 + step + seed):.4f}", file=file, flush=True)
            print(f"tiny {step}/{steps} ({step / steps:.0%}), 5 step/s, 1 s left", flush=True)
            time.sleep(pause)
    finally:
        last.write_text(str(step))  # a checkpoint
results = {"title": "Tiny", "summary": "", "provenance": {}, "measures": {"loss": 1 / (1 + step + seed)}}
(Path(out) / "results.json").write_text(json.dumps(results))"""
AFTER = """import json
from pathlib import Path

(Path(out) / "results.json").write_text(json.dumps({"title": "After", "summary": "", "provenance": {}, "measures": {"seed": seed}}))"""


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    "`prepare(words, then)` makes the folders of a sweep."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_notebook(tmp_path / "tiny.ipynb", 'out = ""\nseed = 0  # 0 or more: of the run\nsteps = 4  # steps\npause = 0.0  # seconds of a step', TRAINING)
    write_notebook(tmp_path / "after.ipynb", 'out = ""\nseed = 0  # 0 or more: of the run', AFTER)
    return lambda words, then=(): write_plan(plan(tmp_path / "tiny.ipynb", words, then, tmp_path / "sweep"))


def now(run):
    return runs.read_run(run["folder"])


def steps_of(run):
    "All steps that its attempts have taken, in their order."
    with contextlib.suppress(FileNotFoundError), open(Path(run["folder"]) / "metrics.csv", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]
    return []


# --- Dask


def test_a_dead_workers_run_goes_elsewhere(prepare, tmp_path, dask, capsys):
    found = prepare(["steps=40", "pause=0.05"])
    dask("scheduler", "--port", "0")
    doomed = dask(*WORKER)
    work = threading.Thread(target=carry_out, args=(found, address(tmp_path)))
    work.start()
    until(lambda: steps_of(found[0]))
    doomed.kill()
    dask(*WORKER)
    work.join(90)
    assert now(found[0])["state"] == "finished" and now(found[0])["attempts"] == 2, capsys.readouterr().out
    assert steps_of(found[0]) == list(range(1, 41))  # it was stopped, and went on: no step twice, none left out


def test_no_scheduler(prepare, tmp_path, dask):
    with pytest.raises(BadData, match="pip install dask-jobqueue"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "dask_jobqueue", None)
        carry_out(prepare([]), "slurm")
    found, said = prepare(["steps=400", "pause=0.05"]), []
    scheduler = dask("scheduler", "--port", "0")
    dask(*WORKER)

    def work():
        with pytest.raises(BadData, match="scheduler is gone"), cluster(address(tmp_path), patience=3) as client:
            runner = Runner(found, [], 0)
            runner.crew = Tasks(client)
            runner.carry_out()
        said.append("it said so")

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: steps_of(found[0]))
    scheduler.kill()
    thread.join(60)
    assert said
    with contextlib.suppress(ValueError):  # its worker may have ended already
        stop(found[0]["folder"])
    until(lambda: now(found[0])["state"] == "stopped")


def test_ctrl_c_does_not_wait_for_a_run_that_no_worker_has(prepare, tmp_path, dask):
    found = prepare(["seed=0,1", "steps=400", "pause=0.05"])
    dask("scheduler", "--port", "0")
    doomed = dask(*WORKER)
    with cluster(address(tmp_path)) as client:
        crew = Tasks(client)
        crew.give(found[0])
        until(lambda: steps_of(found[0]))
        doomed.kill()  # its run is given to the next worker, and there is none
        until(lambda: not client.nthreads())
        crew.give(found[1])
        thread = threading.Thread(target=crew.end, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        until(lambda: now(found[0])["state"] == "stopped")
        dask(*WORKER)
        until(lambda: client.nthreads())
        time.sleep(1)
        assert now(found[1])["state"] == "waiting" and now(found[0])["attempts"] == 1  # taken back


def test_ctrl_c_stops_what_a_worker_has_begun(prepare, tmp_path, dask):
    found = prepare(["steps=400", "pause=0.05"])
    dask("scheduler", "--port", "0")
    dask(*WORKER)
    with cluster(address(tmp_path)) as client:
        crew = Tasks(client)
        crew.give(found[0])
        until(lambda: steps_of(found[0]))
        crew.end()
        assert now(found[0])["state"] == "stopped" and len(steps_of(found[0])) < 400


def test_trouble_of_a_run_is_not_the_schedulers(prepare, monkeypatch, capsys):
    import distributed

    def no_memory(env):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("xmodal.cluster.Worker", no_memory)
    found = prepare(["seed=0,1"])
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        runner = Runner(found, [], 1)
        runner.crew = Tasks(client)
        runner.carry_out()
    said = capsys.readouterr().out
    assert said.count("running  ") == 4 and "OSError: [Errno 12] Cannot allocate memory; it is tried again" in said, said


# --- Slurm's scripts, under stand-ins


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    "Commands of Slurm that note how they are called; `slurm(text)` starts a script as Slurm would."
    commands = tmp_path / "bin"
    commands.mkdir()
    bodies = {
        "scontrol": '[ "$1" != show ] || printf "node7\\nnode8\\n"',
        # as the real one: on SIGTERM it kills its step, other signals it passes on
        "srun": f'shift; [ "$1" = {sys.executable} ] || exit 0\nbash "{tmp_path}/step" & echo $! > "{tmp_path}/step.pid"\ntrap "kill -KILL $!" TERM; trap "kill -USR1 $!" USR1\n'
        "while wait $!; code=$?; kill -0 $! 2>/dev/null; do :; done; exit $code",
        "sbatch": f'[ "$1" != --test-only ] || {{ cat > "{tmp_path}/tried.sh"; exit; }}\ncp "$1" "{tmp_path}/$$.sh"\nsetsid bash "{tmp_path}/$$.sh" > "{tmp_path}/$$.log" 2>&1 &\n'
        f'echo $! >> "{tmp_path}/submitted"\necho Submitted batch job $!',
        "scancel": f'if [ "$1" = --signal=TERM ]; then kill -TERM "$(cat "{tmp_path}/step.pid")"; else kill -TERM -- "-$1"; fi',  # steps alone; the job
    }
    for name, body in bodies.items():
        (commands / name).write_text(f'#!/bin/bash\necho {name} "$@" >> "{tmp_path}/calls"\n{body}\n')
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    given = {"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "70", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_CPUS_PER_TASK": "32"}

    def start(text, element=0):
        assert sbatch_options(text)["requeue"] == ""
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        (tmp_path / "job.sh").write_text(text)
        return subprocess.Popen(["bash", str(tmp_path / "job.sh")], env=os.environ | given | {"SLURM_ARRAY_TASK_ID": str(element)}, start_new_session=True)

    yield start
    for job in submitted(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job, signal.SIGKILL)


def submitted(tmp_path):
    "The jobs that sbatch was given."
    return [int(line) for line in (tmp_path / "submitted").read_text().splitlines()] if (tmp_path / "submitted").is_file() else []


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").is_file() else []


def test_an_array_is_stopped_queued_again_and_goes_on(prepare, tmp_path, slurm):
    found = prepare(["seed=0,1", "steps=30", "pause=0.05"], ["after"])
    text = slurm_array(found, tmp_path, at_once=2, time="4:00:00", partition="gpu", gpus_per_node=1)
    options = sbatch_options(text)
    assert options["array"] == "0-1%2" and options["time"] == "4:00:00" and options["output"] == f"{tmp_path}/%A_%a.log"
    second = [run for run in found if run["parameters"]["seed"] == 1]

    job = slurm(text, 1)  # its time is nearly over
    until(lambda: steps_of(second[0]))
    job.send_signal(signal.SIGUSR1)
    job.wait(60)
    assert now(second[0])["state"] == "stopped" and calls(tmp_path) == ["scontrol requeue 70_1"]
    assert slurm(text, 1).wait(90) == 0  # the same again: it goes on, and the run that follows is done too
    assert [now(run)["state"] for run in second] == ["finished"] * 2 and steps_of(second[0]) == list(range(1, 31))
    assert {now(run)["state"] for run in found if run not in second} == {"waiting"} and len(calls(tmp_path)) == 1


def test_scancel_ends_it_for_good(prepare, tmp_path, slurm):
    found = prepare(["steps=400", "pause=0.05"], ["after"])
    job = slurm(slurm_array(found, tmp_path))
    until(lambda: steps_of(found[0]))
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 1 and [now(run)["state"] for run in found] == ["stopped", "waiting"] and calls(tmp_path) == []


WORKER_OF_ITS_OWN = """#!/bin/bash
trap : TERM  # it is nearly done, and ends well
echo began $3 >> "{calls}"
while ! [ -e "{calls}.go" ]; do sleep 0.05; done
exit 0
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_while_a_run_ends_well(number, tmp_path, slurm, monkeypatch):
    "The run that follows it is left: it is not forgotten."
    path = tmp_path / "a python"
    path.write_text(WORKER_OF_ITS_OWN.format(calls=tmp_path / "calls"))
    path.chmod(0o755)
    monkeypatch.setattr("xmodal.cluster.sys", SimpleNamespace(executable=str(path)))
    text = slurm_array([{"folder": "/r/a-1", "after": None}, {"folder": "/r/b-2", "after": "a-1"}], tmp_path)
    job = slurm(text)
    until(lambda: calls(tmp_path))
    job.send_signal(number)
    time.sleep(0.3)
    (tmp_path / "calls.go").touch()
    code, again = job.wait(30), ["scontrol requeue 70_0"] if number == signal.SIGUSR1 else []
    assert calls(tmp_path) == ["began /r/a-1", *again] and (again or code == 1)
    assert slurm(text).wait(30) == 0 and calls(tmp_path)[-2:] == ["began /r/a-1", "began /r/b-2"]


def test_a_training_over_two_nodes(tmp_path, slurm):
    text = slurm_training(["xmodal", "pretrain", "slidr", "--out", "a b"], tmp_path, nodes=2, processes=8, time="24:00:00", gpus_per_node="a100:8")
    options = sbatch_options(text)
    assert options["nodes"] == "2" and options["ntasks-per-node"] == "1" and options["gpus-per-node"] == "a100:8" and options["open-mode"] == "append"
    (tmp_path / "step").write_text(f"trap 'echo saved >> \"{tmp_path}/calls\"; exit 1' TERM\necho cores $SRUN_CPUS_PER_TASK >> '{tmp_path}/calls'\ntouch '{tmp_path}/began'\nwhile :; do sleep 0.05; done")
    job = slurm(text)
    until((tmp_path / "began").exists)
    job.send_signal(signal.SIGTERM)  # Slurm tells the steps itself, too: the script only waits
    time.sleep(0.3)
    assert job.poll() is None and "saved" not in calls(tmp_path)
    job.send_signal(signal.SIGUSR1)
    job.wait(30)
    step = f"{sys.executable} -m torch.distributed.run --nnodes 2 --rdzv-backend c10d --rdzv-id 77 --rdzv-endpoint node7:20077 --nproc-per-node 8 --shutdown-timeout 90 --no-python xmodal pretrain slidr --out a b"
    assert calls(tmp_path) == ["scontrol show hostnames node[7-8]", f"srun --kill-on-bad-exit=0 {step}", "cores 32", "scancel --signal=TERM 77", "saved", "scontrol requeue 77"]
    (tmp_path / "step").write_text("exit 0")
    assert slurm(text).wait(30) == 0 and len(calls(tmp_path)) == 8  # not queued again
    with pytest.raises(ValueError, match="did you mean 'partition'"):
        slurm_training(["xmodal"], tmp_path, partitoin="gpu")


def test_workers_that_are_jobs(prepare, tmp_path, slurm, monkeypatch):
    """`--scheduler slurm`: a job ends before its run does; another is asked for, where the run goes on. In the end no job is left."""
    pytest.importorskip("dask_jobqueue", reason="Slurm's workers need dask-jobqueue: pip install -e '.[cluster]'")
    import dask

    monkeypatch.setattr("xmodal.cluster.LOOK", 0.2)
    found = prepare(["steps=40", "pause=0.05"])
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "0.1s", "distributed.scheduler.allowed-failures": 0}):
        work = threading.Thread(target=carry_out, args=(found, "slurm", 1, 2, 0))
        work.start()
        until(lambda: steps_of(found[0]))
        os.killpg(submitted(tmp_path)[0], signal.SIGKILL)
        work.join(90)
    assert now(found[0])["state"] == "finished" and now(found[0])["attempts"] == 2 and steps_of(found[0]) == list(range(1, 41))
    first, second = submitted(tmp_path)
    until(lambda: not Path(f"/proc/{second}").exists())
    scripts = [sbatch_options(path.read_text()) for path in tmp_path.glob("*.sh")]
    assert len(scripts) == 3 and all(given == scripts[0] for given in scripts) and scripts[0]["cpus-per-task"] == "2" and scripts[0]["mem"] == "15G"


def test_slurm_refuses_the_workers(tmp_path, slurm, monkeypatch):
    pytest.importorskip("dask_jobqueue", reason="Slurm's workers need dask-jobqueue: pip install -e '.[cluster]'")
    (tmp_path / "bin/sbatch").write_text('#!/bin/bash\necho "sbatch: error: invalid partition specified: gpux" >&2\nexit 1\n')
    with pytest.raises(BadData, match="slurm: it would refuse the workers' jobs: sbatch: error: invalid partition"), slurm_workers(1, queue="gpux", walltime="08:00:00"):
        pass
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BadData, match="this machine has no sbatch"), slurm_workers(1):
        pass


SAVES = """import os, signal, sys, time

def save(*_):
    open(os.environ["WHERE"] + "/" + os.environ["RANK"], "a").write("saved ")
    sys.exit(0)

signal.signal(signal.SIGTERM, save)
open(os.environ["WHERE"] + "/" + os.environ["RANK"], "a").write("began ")
time.sleep(0 if os.path.exists(os.environ["WHERE"] + "/again") else 60)"""


def test_the_line_for_torchrun_works(tmp_path):
    from xmodal.cluster import torchrun

    line = torchrun([sys.executable, "-c", SAVES], 1, 2)
    process = subprocess.Popen(["bash", "-c", f"exec {line}"], env=os.environ | {"WHERE": str(tmp_path)}, stderr=subprocess.DEVNULL)
    said = lambda: [path.read_text() if path.is_file() else "" for path in (tmp_path / "0", tmp_path / "1")]
    until(lambda: said() == ["began "] * 2)
    process.terminate()
    assert process.wait(60) != 0 and said() == ["began saved "] * 2


TRAINS = """import sys, time, torch
from types import SimpleNamespace
from xmodal.training.batches import Batches
from xmodal.training.fit import Machine, Optimisation, fit

class Mean(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
    def loss(self, batch, generator):
        time.sleep(float(sys.argv[2]))
        return (self.weight - batch.x).square().mean(), {}
    begin_step = lambda self, done: None
    end_step = lambda self: None

def pack(views):
    batch = SimpleNamespace(x=torch.tensor(views).float(), frame_ids=[str(view) for view in views])
    batch.to = lambda device: batch
    return batch

batches = Batches([*range(20)], lambda row, rng: row + rng.normal(), pack, 2, seed=1)
fitted = fit(Mean(), batches, Optimisation(lr=0.01, epochs=4), sys.argv[1], machine=Machine(accelerator="cpu", log_every=1))
sys.exit(not fitted.finished)"""


def test_submitit_puts_an_interrupted_training_back(tmp_path):
    pytest.importorskip("submitit", reason="needs submitit: pip install -e '.[cluster]'")
    (tmp_path / "train.py").write_text(TRAINS)
    job = submit_training([sys.executable, str(tmp_path / "train.py"), str(tmp_path / "parts"), "0.1"], tmp_path / "jobs", cluster="local", timeout_min=5)
    rows = lambda: (tmp_path / "parts/metrics.csv").read_text().splitlines() if (tmp_path / "parts/metrics.csv").is_file() else []
    until(lambda: len(rows()) > 3)
    controller = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()
    began = time.monotonic()
    os.kill(int(controller[0]), signal.SIGUSR2)  # as submitit itself tells a job that its time is over
    until(lambda: "Requeued job" in job.stdout())
    assert time.monotonic() - began < 40 and len(rows()) < 41  # not the 80 s that it may take at most
    assert job.result() == 0 and "going on from step" in job.stdout()
    assert [row.split(",")[0] for row in rows()] == ["step", *map(str, range(40))]


def test_what_submitit_gives_to_slurm(tmp_path, slurm):
    with pytest.raises(BadData, match="pip install submitit"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        submit_training(["xmodal"], tmp_path)
    pytest.importorskip("submitit", reason="what follows needs submitit: pip install -e '.[cluster]'")
    job = submit_training(["xmodal", "pretrain", "slidr"], tmp_path / "jobs", 2, 8, cluster="slurm", slurm_partition="gpu", cpus_per_task=32)
    assert [job.job_id] == [str(number) for number in submitted(tmp_path)]
    given = sbatch_options((tmp_path / f"jobs/{job.job_id}_submission.sh").read_text())
    wanted = {"nodes": "2", "ntasks-per-node": "1", "gpus-per-node": "8", "cpus-per-task": "32", "partition": "gpu", "time": "1440", "signal": "USR2@90", "open-mode": "append"}
    assert wanted.items() <= given.items(), given
    task = pickle.loads((tmp_path / f"jobs/{job.job_id}_submitted.pkl").read_bytes())  # of our own making
    assert task.function.line.endswith("--nproc-per-node 8 --shutdown-timeout 90 --no-python xmodal pretrain slidr") and task._timeout_countdown == 1000


# --- other trackers


def a_run(folder, state="running", **more):
    runs.write_run(folder, {"state": state, "parameters": {"method": "slidr", "seed": 3}, "pid": os.getpid(), "host": os.uname().nodename} | more)
    return folder


def stand_in_for_mlflow(monkeypatch, told):
    "The calls of mlflow.MlflowClient that are used, with the signatures of its documentation."

    class MlflowClient:
        def __init__(self, tracking_uri=None, registry_uri=None):
            told.append(tracking_uri)

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name, artifact_location=None, tags=None):
            return "1"

        def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
            return SimpleNamespace(info=SimpleNamespace(run_id=f"{run_name} in {experiment_id}"))

        def update_run(self, run_id, status=None, name=None):
            told.append((run_id, status))

        def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
            assert len(metrics) <= 1000 and len(params) <= 100
            for key, *_ in [*metrics, *params]:
                assert re.fullmatch(r"[/\w.\- ]+", key), f'Invalid value "{key}" for parameter \'name\' supplied'
            told.extend([*metrics, *params])

        def set_terminated(self, run_id, status=None, end_time=None):
            told.append((run_id, status))

    package, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    package.MlflowClient, package.entities = MlflowClient, entities
    entities.Metric = lambda key, value, timestamp, step: (key, value, step)
    entities.Param = lambda key, value: (key, value)
    monkeypatch.setitem(sys.modules, "alembic", ModuleType("alembic"))
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)


def test_mirror_follows_a_run(tmp_path, monkeypatch):
    told, folder = [], a_run(tmp_path / "sweep/tiny_seed3-aa")
    stand_in_for_mlflow(monkeypatch, told)
    (folder / "metrics.csv").write_text("step,loss\n0,4.0\n")
    counts = []
    thread = threading.Thread(target=lambda: counts.append(mirror(folder, "mlflow", every=0.05)))
    thread.start()
    until(lambda: ("loss", 4.0, 0) in told)
    with open(folder / "metrics.csv", "a") as file:
        file.write("10,3.0\n20,2")
    until(lambda: ("loss", 3.0, 10) in told)
    with open(folder / "metrics.csv", "a") as file:
        file.write(".5\n")
    (folder / "results.json").write_text(json.dumps({"measures": {"recall@10, points to pixels": 0.5}}))
    a_run(folder, "finished")
    thread.join(10)
    assert counts == [3] and told[0] == f"sqlite:///{tmp_path}/sweep/mlflow-files/mlflow.db" and ("method", "slidr") in told
    assert told[-3:] == [("loss", 2.5, 20), ("result.recall_10_ points to pixels", 0.5, 0), ("tiny_seed3-aa in 1", "FINISHED")]
    assert mirror(folder, "mlflow") == 0  # goes on: no second run, nothing twice
    assert told[-3] == ("tiny_seed3-aa in 1", "RUNNING") and told[-1] == ("tiny_seed3-aa in 1", "FINISHED")


def test_mirror_is_interrupted(tmp_path, monkeypatch):
    "Whatever ends it while it tells something: Ctrl-C is no traceback, and the next attempt goes on in the same run."
    told, folder = [], a_run(tmp_path / "sweep/tiny_seed3-aa")
    stand_in_for_mlflow(monkeypatch, told)
    (folder / "metrics.csv").write_text("step,loss\n0,4.0\n")
    client, works = sys.modules["mlflow"].MlflowClient, sys.modules["mlflow"].MlflowClient.log_batch
    for trouble in (KeyboardInterrupt(), ConnectionError("the server is away")):

        def fails(self, run_id, metrics=(), params=(), trouble=trouble):
            if metrics:
                raise trouble

        monkeypatch.setattr(client, "log_batch", fails)
        with contextlib.nullcontext() if isinstance(trouble, KeyboardInterrupt) else pytest.raises(ConnectionError):
            assert mirror(folder, "mlflow") == 0
    monkeypatch.setattr(client, "log_batch", works)
    assert mirror(folder, "mlflow", follow=False) == 1
    assert json.loads((folder / "tracking.json").read_text()) == {"mlflow": {"step": 0, "id": "tiny_seed3-aa in 1"}}
    assert told.count(("tiny_seed3-aa in 1", "RUNNING")) == 2  # the first made it, the others took it up


@pytest.mark.parametrize("to", ["mlflow", "wandb"])
def test_mirror_refuses(to, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, to, None)
    with pytest.raises(BadData, match=f"pip install {to}"):
        mirror(a_run(tmp_path / "run"), to)
    with pytest.raises(FileNotFoundError, match="no run here"):
        mirror(tmp_path, to)
    with pytest.raises(ValueError, match="there are mlflow, wandb"):
        mirror(tmp_path, "neptune")


def test_mirror_refuses_an_mlflow_that_has_no_database(tmp_path, monkeypatch):
    stand_in_for_mlflow(monkeypatch, [])
    monkeypatch.setitem(sys.modules, "alembic", None)
    with pytest.raises(BadData, match="mlflow: it is not there (.*alembic.*); pip install mlflow"):
        mirror(a_run(tmp_path / "run"), "mlflow")


@pytest.mark.parametrize("to", ["mlflow", "wandb"])
def test_mirror_with_the_real_package(to, tmp_path):
    package = pytest.importorskip(to, reason=f"needs {to} itself: pip install -e '.[tracking]'")
    folder = a_run(tmp_path / "sweep/tiny_seed3-aa", "finished")
    (folder / "metrics.csv").write_text("step,loss\n0,4.0\n10,3.0\n")
    (folder / "results.json").write_text(json.dumps({"measures": {"recall@10, points to pixels": 0.5, "rotation [°], mean ± std": 2.0}}))
    assert mirror(folder, to) == 2 and mirror(folder, to) == 0
    if to == "mlflow":
        client = package.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/sweep/mlflow-files/mlflow.db")
        (found,) = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
        assert found.data.metrics == {"loss": 3.0, "result.recall_10_ points to pixels": 0.5, "result.rotation ____ mean _ std": 2.0}
        assert found.data.params["seed"] == "3" and found.info.status == "FINISHED"
    else:
        assert list((tmp_path / "sweep/wandb-files").glob("wandb/offline-run-*/*.wandb"))


# --- the live table


def test_stop_and_resume(prepare):
    run = prepare(["steps=60", "pause=0.05"])[0]
    with pytest.raises(ValueError, match="is waiting: there is nothing to stop"):
        stop(run["folder"])
    view, heard = RunsView(run["folder"], every=0.1), []
    view.send = lambda news, buffers=None: heard.append(news)
    press = lambda act: view._hear(None, {"act": act, "run": run["folder"]}, [])
    press("show")
    press("resume")
    until(lambda: len(steps_of(run)) > 3)
    until(lambda: any(">running<" in row[1] and "/ 60" in row[1] and "<svg" in row[1] and row[2] == "stop" for news in heard for row in news["rows"]))
    press("resume")  # a second time: refused, and said
    assert "is running: there is nothing to resume" in heard[-1]["said"]
    press("stop")
    until(lambda: now(run)["state"] == "stopped")
    taken = len(steps_of(run))
    assert taken < 60
    until(lambda: heard[-1]["rows"] and ">stopped<" in heard[-1]["rows"][-1][1] and heard[-1]["rows"][-1][2] == "resume")
    press("resume")
    until(lambda: now(run)["state"] == "finished")
    assert steps_of(run) == list(range(1, 61)) and now(run)["attempts"] == 2
    until(lambda: ">finished<" in heard[-1]["rows"][-1][1] if heard[-1]["rows"] else False)
    press("hide")
    until(lambda: not any("_keep_looking" in thread.name for thread in threading.enumerate()), 10)
    view.close()


def test_the_table_survives_a_file_that_is_not_what_it_should_be(tmp_path):
    for name in "ab":
        (a_run(tmp_path / name, "finished") / "metrics.csv").write_text("step,loss\n1,4.0\n2,3.0\n")
    view, heard = RunsView(tmp_path, every=0.05), []
    view.send = lambda news, buffers=None: heard.append(news)
    (tmp_path / "b/metrics.csv").write_text("step,loss\none,4.0\ntwo,3.0\n")
    view._hear(None, {"act": "show"}, [])
    until(lambda: heard and "ValueError" in heard[-1]["said"], 10)  # not in silence
    (tmp_path / "b/metrics.csv").write_text("step,loss\n1,4.0\n2,1.0\n")
    until(lambda: heard[-1]["said"] == "2 runs: 2 finished" and len(heard[-1]["rows"]) == 2, 10)  # all of it, also what was read before the trouble
    view.close()


def test_a_run_elsewhere_is_not_ours_to_stop(tmp_path):
    a_run(tmp_path / "far", host="node7", heartbeat=time.time())
    with pytest.raises(ValueError, match="runs on node7: stop it there"):
        stop(tmp_path / "far")
    a_run(tmp_path / "bad", "failed", error="<b>no</b>", parameters={"seed": "<i>"})
    text = runs_table(tmp_path)
    assert "<b>no</b>" not in text and "&lt;b&gt;no" in text and "<i>" not in text
    with pytest.raises(ValueError, match="is not there"):
        resume(tmp_path / "none")


def test_the_table_in_jupyterlab(lab, browser, tmp_path, prepare):
    from conftest import IS_OPEN, RUN_ALL

    found = prepare(["seed=0..2", "steps=2000", "pause=0.1"])
    code = f"from xmodal.viz.runs_view import RunsView\nview = RunsView({str(tmp_path / 'sweep')!r}, every=0.3)\nview"
    cells = [{"cell_type": "code", "id": "cell-0", "metadata": {}, "source": code, "outputs": [], "execution_count": None}]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (lab.work / "runs.ipynb").write_text(json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}))
    page, errors = browser.new_context(viewport={"width": 1300, "height": 500}).new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{lab.url}/lab/workspaces/runs/tree/runs.ipynb?token={lab.token}")
    page.wait_for_function(IS_OPEN, timeout=60_000)
    page.wait_for_timeout(2000)  # JupyterLab learns to show widgets a moment after it has opened a notebook
    page.evaluate(RUN_ALL)
    page.wait_for_function("window.ran !== undefined", timeout=60_000)
    assert page.evaluate("window.ran") == "all", lab.tail()
    row = page.locator(f".xm-runs tr[data-run='{found[0]['folder']}']")
    page.wait_for_selector(".xm-runs tbody tr:nth-child(3)")
    row.locator("button:has-text('start')").click()
    row.locator("svg").wait_for(timeout=60_000)
    row.locator("button:has-text('stop')").wait_for()
    if place := os.environ.get("XMODAL_PICTURE"):
        page.wait_for_timeout(3000)
        page.screenshot(path=place)
    place, told = row.locator("button:has-text('stop')").bounding_box(), row.inner_text()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    page.mouse.down()  # a slow finger: the row changes below it
    page.wait_for_function("([row, told]) => row.innerText !== told", arg=[row.element_handle(), told])
    page.mouse.up()
    row.locator(".state:has-text('stopped')").wait_for(timeout=60_000)
    assert now(found[0])["state"] == "stopped" and page.locator(".xm-runs .state:has-text('waiting')").count() == 2
    page.context.close()
    lab.end_sessions()
    assert not errors, errors
