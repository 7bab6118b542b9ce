"""Two processes, and two accumulated batches, train as one process does with the doubled batch; they stop, fail and go on together."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn

pytest.importorskip("open3d", reason="the street world is rendered with Open3D")
pytest.importorskip("lightning", reason="training runs on Lightning Fabric")
if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch was built without gloo", allow_module_level=True)

from xmodal.data.street import Street  # noqa: E402
from xmodal.frame import BadData  # noqa: E402
from xmodal.methods.depthcontrast import DepthContrast  # noqa: E402
from xmodal.methods.slidr import SLidR  # noqa: E402
from xmodal.evaluation.kept import weights_digest  # noqa: E402
from xmodal.pretrain import METHODS, method_class, pretrain, recipes  # noqa: E402
from xmodal.training.checkpoint import load  # noqa: E402
from xmodal.training.fit import Machine, Optimisation  # noqa: E402

FRAMES, STEPS = 8, 4  # 2 steps of 4 frames are an epoch


@cache
def street():
    return Street(frames=FRAMES, cameras=1, size=(64, 208), beams=16, samples=1, frames_per_drive=4)


@cache
def frame(i):
    return street()[i]


class World:
    """The street, with frames that cannot be read."""

    name, classes, ids = "street", (), [f"street/{i}" for i in range(FRAMES)]

    def __init__(self, broken=()):
        self.broken = broken

    def __len__(self):
        return FRAMES

    def __getitem__(self, i):
        if i in self.broken:
            raise BadData(self.ids[i], "it is broken", "leave it out")
        return frame(i)


def recipe_of(name, batch_size):
    """The small recipe, smaller still, with the paper's optimiser."""
    recipe = recipes(name)["small"]()
    optimisation = Optimisation(lr=0.01, dampening=0.0, epochs=2, batch_size=batch_size, per_epoch=False)
    if name == "depthcontrast":  # 10 keys: the queue overflows in the midst of a step
        return replace(recipe, queue=10, voxels_network={"voxel": (0.4, 0.4, 0.6), "planes": (8,) * 5}, optimisation=optimisation)
    return replace(
        recipe, network={"planes": (32,) * 8}, channels=16, superpixels=replace(recipe.superpixels, segments=30),
        augmentation=replace(recipe.augmentation, size=(64, 128), min_pairs=32), optimisation=optimisation,
    )


def train(name, folder, batch_size, broken=(), stop_after=None, **machine):
    how = Machine(accelerator="cpu", log_every=1, patience=60.0, **machine)
    return pretrain(name, World(broken), folder, recipe_of(name, batch_size), superpixels=folder.parent / "superpixels", machine=how, stop_after=stop_after)


class Still:
    """In here batch norms do not look at the batch, nor at what they remember: they only scale and shift."""

    def __enter__(self):
        self.kept = {method: method.train for method in (SLidR, DepthContrast)}
        for method in self.kept:
            method.train = self.quiet

    def __exit__(self, *error):
        for method in self.kept:
            del method.train

    @staticmethod
    def quiet(method, mode=True):
        nn.Module.train(method, mode)
        for module in method.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return method


def in_both(folder):
    """What each of the two processes runs."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    for name in ("slidr", "depthcontrast"):
        train(name, folder / name, 2)
    train("slidr", folder / "parts", 2, stop_after=3)
    train("slidr", folder / "parts", 2)
    with Still():
        for name in ("slidr", "depthcontrast"):
            train(name, folder / f"{name}_still", 1, accumulate=2)
    said = ""
    try:
        train("slidr", folder / "none", 2, broken=range(FRAMES))
    except BadData as error:
        said = str(error)
    fitted = train("slidr", folder / "broken", 1, broken=range(0, FRAMES, 2))
    with patch.object(SLidR, "begin_step", stop_second_process):
        stopped = train("slidr", folder / "stopped", 2)
    report = {"none": said, "skipped": fitted.skipped, "faults": fitted.faults, "losses": len(fitted.metrics), "stopped": stopped.step}
    (folder / f"report{rank}.json").write_text(json.dumps(report))


OTHERS = sorted(set(METHODS) - {"slidr", "depthcontrast"})
# PPKT, SimIPU, PointContrast and NCLR draw negatives from the frames of one process: no doubled batch gives the same loss


def two_steps(name, folder):
    """Two steps of a method, small. What its weights are after each."""
    recipe, seen = recipes(name)["small"](), []
    recipe.optimisation = replace(recipe.optimisation, epochs=1, batch_size=1)
    recipe.voxels = replace(recipe.voxels, size=0.8)
    if name == "nclr":
        recipe.size, recipe.sampled = (96, 320), 256
    kind, ends = method_class(name)[0], method_class(name)[0].end_step

    def end(method):
        ends(method)
        seen.append(weights_digest(method))

    with patch.object(kind, "end_step", end):
        pretrain(name, World(), folder / name, recipe, superpixels=folder / "superpixels", machine=Machine(accelerator="cpu", log_every=1), stop_after=2)
    return seen


def each_method(folder):
    """What each of two processes runs."""
    torch.set_num_threads(1)
    seen = {name: two_steps(name, folder) for name in OTHERS}
    (folder / f"seen{os.environ['RANK']}.json").write_text(json.dumps(seen))


def stop_second_process(method, done):
    if os.environ["RANK"] == "1" and done == 1 / STEPS:
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def launched(folder, *command):
    """Two processes, as torchrun would start them. What they say goes to 0.txt and 1.txt."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # they meet here: nobody else can take the port meanwhile
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"}
    processes = []
    try:
        for rank in "01":
            with open(folder / f"{rank}.txt", "w") as said:
                own = {"env": os.environ | common | {"RANK": rank, "LOCAL_RANK": rank}, "stdout": said, "stderr": subprocess.STDOUT}
                processes.append(subprocess.Popen([sys.executable, *map(str, command)], **own))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def carried_out(folder, *command):
    """What two processes have said that ended well."""
    with launched(folder, *command) as processes:
        codes = [process.wait(timeout=600) for process in processes]
    texts = [(folder / f"{rank}.txt").read_text() for rank in "01"]
    assert codes == [0, 0], texts
    return texts


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    texts = carried_out(folder, __file__, folder)
    assert not any("distributed" in text for text in texts), texts  # nobody says hello
    return folder


def agree(one, other, tolerance=1e-4):
    """The same losses, of as many superpixels, and the same weights, queues and running averages."""
    rows = [list(csv.DictReader((folder / "metrics.csv").open())) for folder in (one, other)]
    assert len(rows[0]) == len(rows[1]) == STEPS
    for key in {"loss", "superpixels"} & set(rows[0][0]):
        losses = torch.tensor([[float(row[key]) for row in some] for some in rows], dtype=torch.float64)
        assert (losses[0] - losses[1]).abs().max() <= tolerance, f"{key} {losses}"
        assert losses[0].std() > 0.01
    first, second = ({key: value for key, value in load(folder / "last.safetensors")[0].items() if "num_batches" not in key} for folder in (one, other))
    assert first.keys() == second.keys()
    far = {key: float((first[key].double() - second[key].double()).abs().max()) for key in first if not key.startswith("optimizer")}
    assert max(far.values()) <= tolerance, max(far.items(), key=lambda item: item[1])


@pytest.mark.parametrize("name", ["slidr", "depthcontrast"])
def test_two_processes_are_one_with_the_doubled_batch(both, name):
    train(name, both / f"{name}_alone", 4)
    agree(both / name, both / f"{name}_alone")


@pytest.mark.parametrize("name", ["slidr", "depthcontrast"])
def test_two_accumulated_batches_are_the_doubled_batch(both, name):
    """Where the norm layers do not look at the batch; see nbs/training/03_processes.ipynb. Alone, and on two processes."""
    with Still():
        train(name, both / f"{name}_still_alone", 4)
        train(name, both / f"{name}_twice", 2, accumulate=2)
    agree(both / f"{name}_twice", both / f"{name}_still_alone")
    agree(both / f"{name}_still", both / f"{name}_still_alone")


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    carried_out(folder, __file__, folder, "methods")
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_every_method_has_the_same_weights_on_both(methods, name):
    here, there = (json.loads((methods / f"seen{rank}.json").read_text())[name] for rank in (0, 1))
    assert len(here) == 2 and here == there and here[0] != here[1]
    losses = [float(row["loss"]) for row in csv.DictReader((methods / name / "metrics.csv").open())]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)


def test_stopped_and_continued_is_the_same_to_the_last_bit(both):
    whole, parts = (load(both / name / "last.safetensors")[0] for name in ("slidr", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    assert (both / "slidr/metrics.csv").read_text() == (both / "parts/metrics.csv").read_text()


def test_a_run_of_two_processes_is_not_continued_by_one(both):
    with pytest.raises(BadData, match="one of 2 processes, this is one of 1; start 2 again"):
        train("slidr", both / "slidr", 2)


def test_faults_of_all_processes_are_counted_and_none_waits_for_frames_that_are_not_there(both):
    reports = [json.loads((both / f"report{rank}.json").read_text()) for rank in (0, 1)]
    for report in reports:
        assert "none of the 8 frames that were tried can be used" in report["none"]
        assert report["skipped"] == FRAMES and report["faults"] == FRAMES // 2
    assert FRAMES // 2 <= reports[0]["losses"] <= FRAMES and reports[0]["losses"] == reports[1]["losses"]
    assert len((both / "broken/faults.csv").read_text().splitlines()) == 1 + FRAMES // 2
    assert not (both / "none/last.safetensors").exists()


def test_a_signal_to_one_stops_both_after_the_same_step(both):
    assert [json.loads((both / f"report{rank}.json").read_text())["stopped"] for rank in (0, 1)] == [2, 2]
    assert load(both / "stopped/last.safetensors")[1]["step"] == 2


TOY = """
import os, sys, time, torch
from dataclasses import dataclass
from torch import nn
from xmodal.training.batches import Batches
from xmodal.training.fit import Machine, Optimisation, fit

what, folder, patience = sys.argv[1], sys.argv[2], float(sys.argv[3])

@dataclass
class Points:
    x: torch.Tensor
    frame_ids: list
    def to(self, device):
        return self

class Line(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(int(os.environ["RANK"]))  # the weights of process 0 count
        self.net, self.steps = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), 0
    def loss(self, batch, generator):
        y = self.net(batch.x)
        if self.steps == 3 and os.environ["RANK"] == "1":
            if what == "dies":
                os._exit(9)
            if what == "hangs":
                time.sleep(1000)
        if what == "waits":
            print("step", self.steps, flush=True)
            time.sleep(0.2)
        return (y - batch.x).square().mean(), {}
    def begin_step(self, done):
        self.steps += 1
    def end_step(self):
        pass

def view(frame, rng):
    return frame / 10 + 0.01 * rng.normal()

def pack(views):
    return Points(torch.tensor(views)[:, None], [f"{v:.2f}" for v in views])

method = Line()
how, machine = Optimisation(lr=0.01, epochs=100), Machine(accelerator="cpu", log_every=1, save_every=0.0, patience=patience)
fitted = fit(method, Batches(list(range(8)), view, pack, 2, seed=3), how, folder, machine=machine, stop_after=None if what == "waits" else 5)
print("weights", sum(p.double().sum().item() for p in method.parameters()), fitted.step, flush=True)
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy.py"
    path.write_text(TOY)
    return path


@pytest.mark.parametrize("what", ["dies", "hangs"])
def test_a_lost_process_ends_the_other_soon_and_is_named(toy, tmp_path, what):
    with launched(tmp_path, toy, what, tmp_path, 30) as (first, _):  # 30 s: on a busy machine one comes to the meeting much later than the other
        assert first.wait(timeout=180) == 1
    assert "training: process 0 of 2 waits for another in vain: it has ended, or not answered for 30 s; " in (tmp_path / "0.txt").read_text()
    assert load(tmp_path / "last.safetensors")[1]["step"] == 2  # the last step that both have made


def test_ctrl_c_for_torchrun_stops_both_and_keeps_the_work(toy, tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", toy, "waits", tmp_path, "60"]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([sys.executable, *map(str, command)], env=os.environ | {"OMP_NUM_THREADS": "1"}, **settings) as torchrun:
        while "step 4" not in torchrun.stdout.readline():
            assert torchrun.poll() is None
        torchrun.send_signal(signal.SIGINT)
        text, _ = torchrun.communicate(timeout=120)
    ends = {line for line in text.splitlines() if line.startswith("weights")}
    assert len(ends) == 1, text  # both say the same
    assert 4 <= load(tmp_path / "last.safetensors")[1]["step"] == int(ends.pop().split()[-1]) < 100 * 2


# two hosts

NEEDED = "two hosts are made with network namespaces, which need root and `ip`"


@pytest.fixture
def hosts():
    """Two network namespaces with a cable between them."""
    if not (hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("ip")):
        pytest.skip(NEEDED)
    names = [f"xm{os.getpid()}{side}" for side in "ab"]
    ip = lambda *words: subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "xmodal0", "netns", names[0], "type", "veth", "peer", "name", "xmodal0", "netns", names[1])
            for number, name in enumerate(names, 1):
                ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "xmodal0")
                ip("-n", name, "link", "set", "xmodal0", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"{NEEDED}: {error.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_two_hosts_train_one_model(hosts, toy, tmp_path):
    meeting = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=10.77.0.1", "--master-port=29511"]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = []
    for number, name in enumerate(hosts, 1):
        command = [sys.executable, "-m", "torch.distributed.run", *meeting, f"--node-rank={number - 1}", toy, "trains", tmp_path / name, "30"]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "xmodal0", "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen(["ip", "netns", "exec", name, *map(str, command)], env=environment, **settings))
    texts = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], texts
    ends = [next(line for line in text.splitlines() if line.startswith("weights")) for text in texts]
    assert ends[0] == ends[1] and ends[0].endswith(" 5")
    assert [(tmp_path / name / "last.safetensors").exists() for name in hosts] in ([True, False], [False, True])  # one of them writes


if __name__ == "__main__":
    (each_method if sys.argv[2:] == ["methods"] else in_both)(Path(sys.argv[1]))
