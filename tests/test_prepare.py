"""Superpixels of a whole dataset, killed at any moment, by processes and by a Dask cluster: nothing is lost, half or different. And the processes that load."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORKER, address, until
from PIL import Image

from xmodal.frame import BadData
from xmodal.superpixels import LOOKED_AT, SuperpixelCache, Superpixels, cluster
from xmodal.training.batches import Batches
from xmodal.training.checkpoint import load
from xmodal.training.fit import Machine, Optimisation, fit

FRAMES, DRIVE = 32, "2026_01_01/2026_01_01_drive_0001_sync"
SETTINGS = Superpixels(segments=40)
CALIBRATION = {
    "calib_cam_to_cam.txt": "R_rect_00: 1 0 0 0 1 0 0 0 1\nP_rect_02: 200 0 160 0 0 200 60 0 0 0 1 0\n",
    "calib_velo_to_cam.txt": "R: 0 -1 0 0 0 -1 1 0 0\nT: 0 0 0\n",
}
RUN = """
import signal
import sys
from xmodal.data.kitti import KittiRaw
import time
import xmodal.superpixels
from xmodal.superpixels import SuperpixelCache, Superpixels, cluster
signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background begins without it
root, cache = sys.argv[1:]
quick = xmodal.superpixels.superpixels
def slow(image, settings):  # so that no machine is done before it is stopped
    time.sleep(0.05)
    return quick(image, settings)
xmodal.superpixels.superpixels = slow
if __name__ == "__main__":  # the workers of a local cluster import this file
    SuperpixelCache(cache, Superpixels(segments=40)).prepare(KittiRaw(root), workers=2)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "Noise with blobs, each image different, in KITTI's layout."
    root, rng = tmp_path_factory.mktemp("recording"), np.random.default_rng(0)
    for folder in ("velodyne_points", "image_02"):
        (root / DRIVE / folder / "data").mkdir(parents=True)
    for name, text in CALIBRATION.items():
        (root / DRIVE).parent.joinpath(name).write_text(text)
    for row in range(FRAMES):
        coarse = rng.integers(0, 255, (6, 16, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((320, 120)).save(root / DRIVE / f"image_02/data/{row:010d}.png")
        rng.uniform((5, -3, -2, 0), (30, 3, 1, 1), (2000, 4)).astype(np.float32).tofile(root / DRIVE / f"velodyne_points/data/{row:010d}.bin")
    return root


@pytest.fixture(scope="module")
def dataset(root):
    from xmodal.data.kitti import KittiRaw

    return KittiRaw(root)


def maps(cache):
    "Every map, byte for byte."
    return {path.relative_to(cache.folder): path.read_bytes() for path in cache.folder.glob("*/*.png")}


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    cache = SuperpixelCache(tmp_path_factory.mktemp("undisturbed"), SETTINGS)
    assert cache.prepare(dataset) == [] and cache.verify(dataset) == []
    assert len(maps(cache)) == FRAMES
    return maps(cache)


def count(folder):
    return sum(1 for _ in folder.glob("*/*/*.png"))


def test_killed_at_any_moment(root, dataset, undisturbed, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    cache, rng, kept = SuperpixelCache(tmp_path / "cache", SETTINGS), random.Random(0), []
    for _ in range(4):
        run = subprocess.Popen([sys.executable, script, root, tmp_path / "cache"], env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        before = count(tmp_path / "cache")
        until(lambda: count(tmp_path / "cache") > before or run.poll() is not None)
        time.sleep(rng.uniform(0, 0.08))
        run.kill()
        run.wait()
        now = maps(cache)
        assert now.items() <= undisturbed.items()  # none is half, none is wrong
        kept.append(len(now))
    assert kept == sorted(kept) and 0 < kept[0] < FRAMES, kept
    assert cache.prepare(dataset) == [] and cache.verify(dataset) == []
    assert maps(cache) == undisturbed


def test_ctrl_c_stops_at_once_and_keeps_what_is_done(root, undisturbed, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    run = subprocess.Popen([sys.executable, script, root, tmp_path / "cache"], stderr=subprocess.PIPE, text=True)
    until(lambda: count(tmp_path / "cache"))
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=10)[1]
    assert run.returncode != 0 and said.rstrip().endswith("KeyboardInterrupt")
    cache = SuperpixelCache(tmp_path / "cache", SETTINGS)
    assert not cache.left_over() and 0 < len(maps(cache)) < FRAMES and maps(cache).items() <= undisturbed.items()


def test_two_at_once(root, dataset, undisturbed, tmp_path):
    """Neither stumbles over the other's unfinished files, nor over a line of the list that is none."""
    (tmp_path / "run.py").write_text(RUN)
    cache = SuperpixelCache(tmp_path / "cache", SETTINGS)
    cache.folder.mkdir(parents=True)
    (cache.folder / "frames.jsonl").write_text('5\n["x"\n')
    runs = [subprocess.Popen([sys.executable, tmp_path / "run.py", root, tmp_path / "cache"], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait(60) for run in runs] == [0, 0]
    assert cache.verify(dataset) == [] and maps(cache) == undisturbed


class Opened:
    "Which frames of a dataset are opened."

    def __init__(self, dataset):
        self.dataset, self.name, self.ids, self.rows = dataset, dataset.name, dataset.ids, []

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, row):
        self.rows.append(row)
        return self.dataset[row]


def test_a_second_run_opens_a_few_frames(dataset, tmp_path):
    cache = SuperpixelCache(tmp_path, SETTINGS)
    cache.prepare(dataset)
    opened = Opened(dataset)
    assert cache.prepare(opened) == [] and len(opened.rows) == LOOKED_AT and {0, FRAMES - 1} < set(opened.rows)
    cache.path(dataset[5].cameras[0].image).unlink()
    opened.rows.clear()
    cache.prepare(opened)
    assert 5 in opened.rows and len(opened.rows) == LOOKED_AT + 1 and not cache.verify(dataset)


def test_processes_make_the_same(root, dataset, undisturbed, tmp_path):
    """Two processes that nobody else can reach; a frame cannot be read."""
    import psutil

    other = tmp_path / "recording"
    shutil.copytree(root, other)
    (other / DRIVE / "image_02/data/0000000007.png").write_bytes(b"no image")
    from xmodal.data.kitti import KittiRaw

    cache = SuperpixelCache(tmp_path / "cache", SETTINGS)
    with cluster("local", 2) as client:
        mine = psutil.Process().children(recursive=True)
        ports = {c.laddr for p in [psutil.Process(), *mine] for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        assert {address.ip for address in ports} <= {"127.0.0.1", "::1"}, ports
        faults = cache.prepare(KittiRaw(other), client=client)
        assert [Path(fault.path).name for fault in faults] == ["0000000007.png"]
        assert [fault.path for fault in cache.verify(KittiRaw(other), client=client)] == [faults[0].path]
    assert len(maps(cache)) == FRAMES - 1 and maps(cache).items() <= undisturbed.items()


def test_a_cluster_whose_worker_is_killed(dataset, undisturbed, tmp_path, dask):
    dask("scheduler", "--port", "0")
    at = address(tmp_path)
    doomed = dask(*WORKER)
    cache = SuperpixelCache(tmp_path / "cache", SETTINGS)
    with cluster(at) as client:
        with ThreadPoolExecutor(1) as pool:
            faults = pool.submit(cache.prepare, dataset, client=client)
            until(lambda: count(tmp_path / "cache") >= 5)
            doomed.kill()
            doomed.wait()
            some = count(tmp_path / "cache")
            dask(*WORKER)
            assert faults.result(60) == [] and some < FRAMES
        assert cache.verify(dataset, client=client) == []
    assert maps(cache) == undisturbed


def test_no_cluster(dataset, tmp_path, dask):
    with pytest.raises(BadData, match="no Dask scheduler answers"):
        with cluster("tcp://127.0.0.1:9", patience=0.2):
            pass
    scheduler = dask("scheduler", "--port", "0")
    with pytest.raises(BadData, match="no workers"):
        with cluster(address(tmp_path), patience=0.2):
            pass
    dask(*WORKER)
    with cluster(address(tmp_path)) as client:
        cache = SuperpixelCache(tmp_path / "cache", SETTINGS)
        with ThreadPoolExecutor(1) as pool:
            faults = pool.submit(cache.prepare, dataset, client=client)
            until(lambda: count(tmp_path / "cache") >= 2)
            scheduler.kill()
            with pytest.raises(BadData, match="scheduler is gone"):
                faults.result(60)


@dataclass
class Numbers:
    x: torch.Tensor
    frame_ids: list

    def to(self, device):
        return self


class Mean(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def loss(self, batch, generator):
        return (self.weight - batch.x).square().mean(), {}

    def begin_step(self, done):
        pass

    end_step = lambda self: None


def number(frame, rng):  # a worker imports it by name
    row, doom = frame
    if row == 7 and doom and os.path.exists(doom):
        os.remove(doom)
        os.kill(os.getpid(), signal.SIGKILL)
    return row + rng.normal()


def numbers(views):
    return Numbers(torch.tensor(views), [str(view) for view in views])


def train(folder, doom, workers):
    batches, method = Batches([(row, doom) for row in range(20)], number, numbers, batch_size=2, seed=1), Mean()
    machine = Machine(accelerator="cpu", workers=workers, prefetch=1, log_every=1)
    return fit(method, batches, Optimisation(lr=0.1, epochs=2, batch_size=2), folder, {"method": "mean"}, machine), method.weight.item()


def test_a_worker_that_is_killed(tmp_path):
    """One error that says what happened; what was learned is saved, and the run goes on from there as if nothing had been."""
    doom = tmp_path / "doom"
    doom.touch()
    with pytest.raises(BadData, match="a process that prepares batches died") as raised:
        train(tmp_path / "run", str(doom), workers=1)
    assert "fewer workers" in raised.value.mend
    done = load(tmp_path / "run/last.safetensors")[1]["step"]
    assert 0 < done < 20
    fitted, weight = train(tmp_path / "run", None, workers=0)
    whole, same = train(tmp_path / "whole", None, workers=0)
    assert fitted.finished and weight == same
    assert (tmp_path / "run/metrics.csv").read_bytes() == (tmp_path / "whole/metrics.csv").read_bytes()


def test_batches_do_not_depend_on_workers_or_global_seeds(dataset):
    from xmodal.pretrain import ViewMaker, method_class, planner

    plan = planner("ppkt", method_class("ppkt")[1].small())
    batches = Batches(dataset, ViewMaker(plan, None), plan.collate, batch_size=2, seed=3)
    made = []
    for seed, workers in ((0, 0), (1, 2), (2, 2)):
        torch.manual_seed(seed)
        np.random.seed(seed)
        made.append([batch for batch, _ in batches.loader(range(4), workers)])
    for other in made[1:]:
        for a, b in zip(made[0], other, strict=True):
            assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("coords", "inverse", "points", "intensity", "images"))
            assert torch.equal(a.pairs.point, b.pairs.point) and torch.equal(a.pairs.uv, b.pairs.uv) and a.frame_ids == b.frame_ids


def memory(pid, kind):
    "MB of a process, pages that it shares with others counted in parts."
    return next(int(line.split()[1]) / 1024 for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith(kind))


class Many:
    name, classes = "many", ()

    def __init__(self, count):
        self.ids = [f"2026_01_01/2026_01_01_drive_{row // 400:04d}_sync/{row:010d}" for row in range(count)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, row):
        return len(self.ids[row]), None


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's account of shared memory")
def test_workers_share_the_index():
    used = []
    for count in (1000, 200_000):
        batches = iter(Batches(Many(count), number, tuple, batch_size=1).loader(range(100), workers=2))
        for _ in range(20):
            next(batches)
        used.append(memory(batches._workers[0].pid, "Private_Dirty:"))
    assert used[1] - used[0] < 8, used  # a list of 200,000 ids takes 24 MB
