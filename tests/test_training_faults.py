"""Damaged frames in a training run: each is named, told once, counted and skipped, and everything else is trained on."""

import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("open3d", reason="the street world is rendered with Open3D")

from xmodal.data.kitti import KittiRaw  # noqa: E402
from xmodal.data.kitti_write import write_kitti  # noqa: E402
from xmodal.data.street import Street  # noqa: E402
from xmodal.frame import BadData  # noqa: E402
from xmodal.pretrain import method_class, pretrain  # noqa: E402
from xmodal.training.fit import Machine  # noqa: E402

EPOCHS, FRAMES = 2, 10
DAY = "2026_01_01"


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    street = Street(frames=FRAMES, cameras=1, size=(64, 208), beams=16, samples=1, frames_per_drive=5)
    return write_kitti(street, tmp_path_factory.mktemp("street"), progress=False)


@pytest.fixture
def root(clean, tmp_path):
    shutil.copytree(clean, tmp_path / "kitti")
    return tmp_path / "kitti"


def file(root, frame, kind):
    """A file of frame 0 to 9; five frames a drive."""
    drive = root / DAY / f"{DAY}_drive_{frame // 5 + 1:04d}_sync"
    return drive / {"scan": "velodyne_points/data/{}.bin", "image": "image_02/data/{}.png"}[kind].format(f"{frame % 5:010d}")


def change_scan(path, change):
    scan = np.fromfile(path, np.float32).reshape(-1, 4)
    change(scan)
    scan.tofile(path)


def nan_points(path):
    change_scan(path, lambda scan: scan.__setitem__((slice(0, 3), 0), np.nan))


def stray_point(path):
    change_scan(path, lambda scan: scan.__setitem__((5, 1), 1e30))  # one flipped bit of the exponent


def all_behind(path):
    change_scan(path, lambda scan: scan.__setitem__((slice(None), 0), -np.abs(scan[:, 0]) - 1))


FAULTS = {  # frame: (file, what is done to it, what the cause must say)
    1: ("scan", lambda path: path.write_bytes(path.read_bytes()[:-7]), "cut short"),
    2: ("image", Path.unlink, "missing"),
    4: ("image", lambda path: Image.open(path).resize((60, 20)).save(path), "60 x 20"),
    5: ("scan", lambda path: path.write_bytes(b""), "empty"),
    7: ("scan", nan_points, "3 of"),
    8: ("scan", all_behind, "no LiDAR point"),
    9: ("scan", stray_point, "farther than"),
}
SOUND = [i for i in range(FRAMES) if i not in FAULTS]


class Watched(KittiRaw):
    """A recording that remembers which of its frames could be read."""

    def __init__(self, root):
        super().__init__(root)
        self.given = set()

    def __getitem__(self, i):
        frame = super().__getitem__(i).check()
        self.given.add(i)
        return frame


def recipe_of(name, epochs=EPOCHS):
    """The small recipe, smaller still. One frame a step, so that every frame has its turn in every epoch."""
    recipe = method_class(name)[1].small()
    changes = {"network": {"planes": (8,) * 8}, "channels": 16}
    if name == "slidr":
        changes["superpixels"] = replace(recipe.superpixels, segments=30)
    return replace(
        recipe, **changes,
        augmentation=replace(recipe.augmentation, size=(64, 128), min_pairs=32),
        optimisation=replace(recipe.optimisation, epochs=epochs, batch_size=1),
    )


def train(name, root, folder, **settings):
    return pretrain(name, Watched(root), folder, recipe_of(name), machine=Machine(accelerator="cpu", log_every=1), **settings)


def told(text):
    return [line for line in text.splitlines() if line.startswith("skipped: ")]


def complaints(folder):
    with open(folder / "faults.csv", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("name", ["slidr", "ppkt"])
def test_damaged_frames_are_skipped_and_told(root, tmp_path, capsys, name):
    for frame, (kind, plant, _) in FAULTS.items():
        plant(file(root, frame, kind))
    dataset = Watched(root)
    fitted = pretrain(name, dataset, tmp_path / "run", recipe_of(name), machine=Machine(accelerator="cpu", log_every=1))
    assert fitted.finished and fitted.step == EPOCHS * FRAMES
    assert fitted.skipped == EPOCHS * len(FAULTS) and fitted.faults == len(FAULTS)
    assert dataset.given == set(SOUND)
    assert len(fitted.metrics) == EPOCHS * len(SOUND)  # one line a step that could be used
    assert all(math.isfinite(row["loss"]) and row["gradient_norm"] > 0 for row in fitted.metrics)

    rows = complaints(tmp_path / "run")
    assert len(rows) == len(FAULTS)
    for frame, (kind, _, cause) in FAULTS.items():
        row, = (row for row in rows if str(file(root, frame, kind)) in row["path"])
        assert cause in row["cause"] and row["mend"]
    lines = told(capsys.readouterr().out)
    for row in rows:
        assert lines.count(f"skipped: {row['path']}: {row['cause']}; {row['mend']}") == 1


def test_preparing_superpixels_counts_and_skips(root, tmp_path):
    from xmodal.superpixels import SuperpixelCache

    for frame, (kind, plant, _) in FAULTS.items():
        plant(file(root, frame, kind))
    cache = SuperpixelCache(tmp_path, recipe_of("slidr").superpixels)
    faults = cache.prepare(Watched(root), workers=2)
    assert {fault.path.split(" ")[0] for fault in faults} == {str(file(root, frame, kind)) for frame, (kind, *_) in FAULTS.items()}
    assert len(list(cache.folder.glob("*/*.png"))) == len(SOUND)


def test_a_damaged_calibration_spoils_only_its_day(root, tmp_path):
    """A calibration holds for a whole day: its drives are skipped, those of another day train."""
    other = root / "2026_01_02" / "2026_01_02_drive_0002_sync"
    shutil.copytree(root / DAY, other.parent, ignore=lambda folder, names: [n for n in names if n.startswith(DAY)])
    shutil.move(root / DAY / f"{DAY}_drive_0002_sync", other)
    calibration = root / DAY / "calib_velo_to_cam.txt"
    calibration.write_text("R: 0 0 0 0 0 0 0 0 0\nT: 0 0 0\n")
    fitted = train("ppkt", root, tmp_path / "run")
    assert fitted.finished and len(fitted.metrics) == EPOCHS * 5
    assert fitted.skipped == EPOCHS * 5 and fitted.faults == 1  # one complaint, however many frames it spoils
    row, = complaints(tmp_path / "run")
    assert row["path"] == str(calibration) and "not a rotation" in row["cause"] and row["mend"]


@pytest.mark.parametrize("name", ["slidr", "ppkt"])
@pytest.mark.parametrize("numbers, cause", [("nan " * 12, "NaN"), ("0 " * 12, "singular")])
def test_nothing_usable_is_one_error_and_no_checkpoint(root, tmp_path, name, numbers, cause):
    calibration = root / DAY / "calib_cam_to_cam.txt"
    lines = calibration.read_text().splitlines()
    calibration.write_text("\n".join(f"P_rect_02: {numbers}" if line.startswith("P_rect_02") else line for line in lines))
    with pytest.raises(BadData, match="none of the 10 frames") as raised:
        train(name, root, tmp_path / "run")
    assert raised.value.path == str(calibration) and cause in raised.value.cause and raised.value.mend
    assert not (tmp_path / "run/last.safetensors").exists()


def test_one_usable_frame_is_enough(root, tmp_path):
    for frame in range(FRAMES - 1):
        file(root, frame, "scan").write_bytes(b"")
    fitted = train("ppkt", root, tmp_path / "run")
    assert fitted.finished and len(fitted.metrics) == EPOCHS and fitted.faults == FRAMES - 1


def test_a_resumed_run_tells_nothing_twice(root, tmp_path, capsys):
    file(root, 3, "scan").write_bytes(b"")
    train("ppkt", root, tmp_path / "run", stop_after=FRAMES)  # an epoch: every frame had its turn
    fitted = train("ppkt", root, tmp_path / "run")
    assert fitted.finished and fitted.skipped == 1 and fitted.faults == 1
    assert len(complaints(tmp_path / "run")) == 1 and len(told(capsys.readouterr().out)) == 1


def test_a_recording_that_vanishes_ends_the_run_and_keeps_the_work(root, tmp_path):
    """The disk is pulled out after the first epoch: the run must not count empty steps to its end."""
    train("ppkt", root, tmp_path / "run", stop_after=FRAMES)
    before = (tmp_path / "run/last.safetensors").read_bytes()
    dataset = Watched(root)
    shutil.rmtree(root)
    with pytest.raises(BadData, match="none of the 10 frames"):
        pretrain("ppkt", dataset, tmp_path / "run", recipe_of("ppkt"), machine=Machine(accelerator="cpu", log_every=1))
    assert (tmp_path / "run/last.safetensors").read_bytes() == before


def test_the_notebook_shows_another_frame_if_the_first_is_damaged(root, tmp_path):
    pytest.importorskip("papermill", reason="the experiment is a notebook")
    from xmodal.experiments import EXPERIMENTS, run

    file(root, 5, "scan").write_bytes(b"")  # the first to train on: the drive before is held out
    results = run(EXPERIMENTS / "pretrain.ipynb", tmp_path / "run", {"data": "kitti", "root": str(root), "steps": 1})
    assert results["finished"] and results["steps"] == 1
