"""Runs told to other trackers: stand-ins with the documented calls, and the real packages where they are installed."""

import contextlib
import json
import re
import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
from conftest import until
from tiny_runs import a_run

from xmodal.frame import BadData
from xmodal.tracking import mirror


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
    thread.join(180)
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
