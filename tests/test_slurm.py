"""Slurm's scripts under stand-ins for its commands: arrays of runs, workers that are jobs, and trainings that are interrupted, also by submitit."""

import contextlib
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("papermill", reason="runs are notebooks, executed by papermill")
from conftest import until  # noqa: E402
from tiny_runs import alive, now, steps_of  # noqa: E402

from xmodal.cluster import Resumable, carry_out, slurm_array, slurm_training, slurm_workers, submit_training  # noqa: E402
from xmodal.frame import BadData  # noqa: E402
from xmodal.sbatch import sbatch_options  # noqa: E402


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    "Commands of Slurm that note how they are called; `slurm(text)` starts a script as Slurm would."
    commands = tmp_path / "bin"
    commands.mkdir()
    bodies = {
        "scontrol": '[ "$1" != show ] || printf "node7\\nnode8\\n"',
        # as the real one: on SIGTERM it kills its step, other signals it passes on
        "srun": f'shift; [ "$1" = {sys.executable} ] || exit 0\ntrap "kill -KILL \\$!" TERM; trap "kill -USR1 \\$!" USR1\nbash "{tmp_path}/step" &\n'
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
        with open(tmp_path / "job.log", "w") as log:  # -x: it says what it does
            return subprocess.Popen(["bash", "-x", str(tmp_path / "job.sh")], stderr=log, env=os.environ | given | {"SLURM_ARRAY_TASK_ID": str(element)}, start_new_session=True)

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
    found = prepare(["seed=0,1", "steps=400", "pause=0.5"], ["after"])
    text = slurm_array(found, tmp_path, at_once=2, time="4:00:00", partition="gpu", gpus_per_node=1)
    options = sbatch_options(text)
    assert options["array"] == "0-1%2" and options["time"] == "4:00:00" and options["output"] == f"{tmp_path}/%A_%a.log"
    second = [run for run in found if run["parameters"]["seed"] == 1]

    job = slurm(text, 1)  # its time is nearly over
    until(lambda: steps_of(second[0]))
    job.send_signal(signal.SIGUSR1)
    job.wait(180)
    assert now(second[0])["state"] == "stopped" and calls(tmp_path) == ["scontrol requeue 70_1"]
    assert slurm(text, 1).wait(180) == 0  # the same again: it goes on, and the run that follows is done too
    assert [now(run)["state"] for run in second] == ["finished"] * 2 and steps_of(second[0]) == list(range(1, 401))
    assert {now(run)["state"] for run in found if run not in second} == {"waiting"} and len(calls(tmp_path)) == 1


def test_scancel_ends_it_for_good(prepare, tmp_path, slurm):
    found = prepare(["steps=400", "pause=0.5"], ["after"])
    job = slurm(slurm_array(found, tmp_path))
    until(lambda: steps_of(found[0]))
    job.send_signal(signal.SIGTERM)
    assert job.wait(180) == 1 and [now(run)["state"] for run in found] == ["stopped", "waiting"] and calls(tmp_path) == []


WORKER_OF_ITS_OWN = """#!/bin/bash
trap 'touch "{calls}.told"' TERM  # it is nearly done, and ends well
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
    until((tmp_path / "calls.told").exists)
    (tmp_path / "calls.go").touch()
    code, again = job.wait(180), ["scontrol requeue 70_0"] if number == signal.SIGUSR1 else []
    assert calls(tmp_path) == ["began /r/a-1", *again] and (again or code == 1)
    assert slurm(text).wait(180) == 0 and calls(tmp_path)[-2:] == ["began /r/a-1", "began /r/b-2"]


def test_a_training_over_two_nodes(tmp_path, slurm):
    text = slurm_training(["xmodal", "pretrain", "slidr", "--out", "a b"], tmp_path, nodes=2, processes=8, time="24:00:00", gpus_per_node="a100:8")
    options = sbatch_options(text)
    assert options["nodes"] == "2" and options["ntasks-per-node"] == "1" and options["gpus-per-node"] == "a100:8" and options["open-mode"] == "append"
    (tmp_path / "step").write_text(f"echo $$ > '{tmp_path}/step.pid'\ntrap 'echo saved >> \"{tmp_path}/calls\"; exit 1' TERM\necho cores $SRUN_CPUS_PER_TASK >> '{tmp_path}/calls'\ntouch '{tmp_path}/began'\nwhile :; do sleep 0.05; done")
    job = slurm(text)
    until((tmp_path / "began").exists)
    job.send_signal(signal.SIGTERM)  # Slurm tells the steps itself, too: the script only waits
    until(lambda: "+ asked=end\n" in (tmp_path / "job.log").read_text())
    assert job.poll() is None and "saved" not in calls(tmp_path)
    job.send_signal(signal.SIGUSR1)
    job.wait(180)
    step = f"{sys.executable} -m torch.distributed.run --nnodes 2 --rdzv-backend c10d --rdzv-id 77 --rdzv-endpoint node7:20077 --nproc-per-node 8 --shutdown-timeout 90 --no-python xmodal pretrain slidr --out a b"
    assert calls(tmp_path) == ["scontrol show hostnames node[7-8]", f"srun --kill-on-bad-exit=0 {step}", "cores 32", "scancel --signal=TERM 77", "saved", "scontrol requeue 77"]
    (tmp_path / "step").write_text("exit 0")
    assert slurm(text).wait(180) == 0 and len(calls(tmp_path)) == 8  # not queued again
    with pytest.raises(ValueError, match="did you mean 'partition'"):
        slurm_training(["xmodal"], tmp_path, partitoin="gpu")


def test_workers_that_are_jobs(prepare, tmp_path, slurm, monkeypatch):
    """`--scheduler slurm`: a job ends before its run does; another is asked for, where the run goes on. In the end no job is left."""
    pytest.importorskip("dask_jobqueue", reason="Slurm's workers need dask-jobqueue: pip install -e '.[cluster]'")
    import dask

    monkeypatch.setattr("xmodal.cluster.LOOK", 0.2)
    found = prepare(["steps=400", "pause=0.5"])
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "0.1s", "distributed.scheduler.allowed-failures": 0}):
        work = threading.Thread(target=carry_out, args=(found, "slurm", 1, 2, 0))
        work.start()
        until(lambda: steps_of(found[0]))
        os.killpg(submitted(tmp_path)[0], signal.SIGKILL)
        work.join(180)
    assert now(found[0])["state"] == "finished" and now(found[0])["attempts"] == 2 and steps_of(found[0]) == list(range(1, 401))
    jobs = submitted(tmp_path)
    until(lambda: not any(map(alive, jobs)))
    scripts = [sbatch_options(path.read_text()) for path in tmp_path.glob("*.sh")]
    assert len(jobs) > 1 and len(scripts) == len(jobs) + 1 and all(given == scripts[0] for given in scripts) and scripts[0]["cpus-per-task"] == "2" and scripts[0]["mem"] == "15G"


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
time.sleep(600)"""


def test_the_line_for_torchrun_works(tmp_path):
    from xmodal.cluster import torchrun

    line = torchrun([sys.executable, "-c", SAVES], 1, 2)
    process = subprocess.Popen(["bash", "-c", f"exec {line}"], env=os.environ | {"WHERE": str(tmp_path)}, stderr=subprocess.DEVNULL)
    said = lambda: [path.read_text() if path.is_file() else "" for path in (tmp_path / "0", tmp_path / "1")]
    until(lambda: said() == ["began "] * 2)
    process.terminate()
    assert process.wait(180) != 0 and said() == ["began saved "] * 2


TRAINS = """import os, sys, time, torch
from types import SimpleNamespace
from xmodal.training.batches import Batches
from xmodal.training.fit import Machine, Optimisation, fit

pause = 0.0 if os.path.exists(sys.argv[1]) else 0.5  # until it goes on where it was interrupted

class Mean(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
    def loss(self, batch, generator):
        time.sleep(pause)
        return (self.weight - batch.x).square().mean(), {}
    begin_step = lambda self, done: None
    end_step = lambda self: None

def pack(views):
    batch = SimpleNamespace(x=torch.tensor(views).float(), frame_ids=[str(view) for view in views])
    batch.to = lambda device: batch
    return batch

batches = Batches([*range(20)], lambda row, rng: row + rng.normal(), pack, 2, seed=1)
fitted = fit(Mean(), batches, Optimisation(lr=0.01, epochs=20), sys.argv[1], machine=Machine(accelerator="cpu", log_every=1))
sys.exit(not fitted.finished)"""


def test_submitit_puts_an_interrupted_training_back(tmp_path):
    pytest.importorskip("submitit", reason="needs submitit: pip install -e '.[cluster]'")
    (tmp_path / "train.py").write_text(TRAINS)
    job = submit_training([sys.executable, str(tmp_path / "train.py"), str(tmp_path / "parts")], tmp_path / "jobs", cluster="local", timeout_min=30)
    rows = lambda: (tmp_path / "parts/metrics.csv").read_text().splitlines() if (tmp_path / "parts/metrics.csv").is_file() else []
    until(lambda: len(rows()) > 3)
    controller = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()
    os.kill(int(controller[0]), signal.SIGUSR2)  # as submitit itself tells a job that its time is over
    until(lambda: "Requeued job" in job.stdout())
    assert job.result() == 0 and 3 <= int(re.search(r"going on from step (\d+)", job.stdout())[1]) < 200
    assert [row.split(",")[0] for row in rows()] == ["step", *map(str, range(200))]


def test_an_interrupted_job_hears_that_its_command_has_ended():
    "It is interrupted, as by submitit, where it waits for the command; it shall not wait for it in vain until its 80 s are over."
    pytest.importorskip("submitit", reason="needs submitit: pip install -e '.[cluster]'")
    job, heard = Resumable("sleep 600"), []
    before = signal.signal(signal.SIGUSR2, lambda *_: (job.checkpoint(), heard.append(job.process.returncode)))
    threading.Thread(target=lambda: (until(lambda: job.process), os.kill(os.getpid(), signal.SIGUSR2)), daemon=True).start()
    with pytest.raises(subprocess.CalledProcessError):
        job()
    signal.signal(signal.SIGUSR2, before)
    assert heard == [-signal.SIGTERM]


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
