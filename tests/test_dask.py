"""A sweep on Dask workers that die, under a scheduler that goes away, and stopped with Ctrl-C."""

import contextlib
import sys
import threading

import pytest

pytest.importorskip("papermill", reason="runs are notebooks, executed by papermill")
pytest.importorskip("distributed", reason="the workers are Dask's: pip install -e '.[cluster]'")
from conftest import WORKER, address, until  # noqa: E402
from tiny_runs import now, steps_of  # noqa: E402

from xmodal.cluster import Tasks, carry_out  # noqa: E402
from xmodal.frame import BadData  # noqa: E402
from xmodal.runner import Runner  # noqa: E402
from xmodal.superpixels import cluster  # noqa: E402
from xmodal.viz.runs_view import stop  # noqa: E402


def ready(tmp_path):
    "Where the scheduler is, once it has a worker: that may take longer than who works with it would wait."
    at = address(tmp_path)
    with cluster(at, patience=180):
        return at


def test_a_dead_workers_run_goes_elsewhere(prepare, tmp_path, dask, capsys):
    found = prepare(["steps=400", "pause=0.5"])
    dask("scheduler", "--port", "0")
    doomed = dask(*WORKER)
    work = threading.Thread(target=carry_out, args=(found, ready(tmp_path)))
    work.start()
    until(lambda: steps_of(found[0]))
    doomed.kill()
    dask(*WORKER)
    work.join(180)
    assert now(found[0])["state"] == "finished" and now(found[0])["attempts"] == 2, capsys.readouterr().out
    assert steps_of(found[0]) == list(range(1, 401))  # it was stopped, and went on: no step twice, none left out


def test_no_scheduler(prepare, tmp_path, dask):
    with pytest.raises(BadData, match="pip install dask-jobqueue"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "dask_jobqueue", None)
        carry_out(prepare([]), "slurm")
    found, said = prepare(["steps=400", "pause=0.5"]), []
    scheduler = dask("scheduler", "--port", "0")
    dask(*WORKER)

    def work():
        with pytest.raises(BadData, match="scheduler is gone"), cluster(ready(tmp_path), patience=5) as client:
            Runner(found, Tasks(client), 0).carry_out()
        said.append("it said so")

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: steps_of(found[0]))
    scheduler.kill()
    thread.join(180)
    assert said
    with contextlib.suppress(ValueError):  # its worker may have ended already
        stop(found[0]["folder"])
    until(lambda: now(found[0])["state"] == "stopped")


def test_ctrl_c_does_not_wait_for_a_run_that_no_worker_has(prepare, tmp_path, dask):
    found = prepare(["seed=0,1", "steps=400", "pause=0.5"])
    dask("scheduler", "--port", "0")
    doomed = dask(*WORKER)
    with cluster(ready(tmp_path)) as client:
        crew = Tasks(client)
        crew.give(found[0])
        until(lambda: steps_of(found[0]))
        doomed.kill()  # its run is given to the next worker, and there is none
        until(lambda: not client.nthreads())
        crew.give(found[1])
        thread = threading.Thread(target=crew.end, daemon=True)
        thread.start()
        thread.join(180)
        assert not thread.is_alive()
        until(lambda: now(found[0])["state"] == "stopped")
        dask(*WORKER)
        until(lambda: client.nthreads())
        until(lambda: client.run_on_scheduler(lambda dask_scheduler: not dask_scheduler.tasks))
        assert now(found[1])["state"] == "waiting" and now(found[0])["attempts"] == 1  # taken back


def test_ctrl_c_stops_what_a_worker_has_begun(prepare, tmp_path, dask):
    found = prepare(["steps=400", "pause=0.5"])
    dask("scheduler", "--port", "0")
    dask(*WORKER)
    with cluster(ready(tmp_path)) as client:
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
        Runner(found, Tasks(client), 1).carry_out()
    said = capsys.readouterr().out
    assert said.count("running  ") == 4 and "OSError: [Errno 12] Cannot allocate memory; it is tried again" in said, said
