"""Every method, one way: trains, stops, goes on, is loaded and measured, on the street and on real recordings."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xmodal.data.datasets import Subset, has_intensity, open_dataset
from xmodal.data.street import Street
from xmodal.evaluation.compare import compare
from xmodal.evaluation.segmentation import backbone_features
from xmodal.features import extract, sees_images
from xmodal.pretrain import METHODS, build, load_method, pretrain, recipes, without_intensity
from xmodal.training.checkpoint import load
from xmodal.training.fit import Machine

REAL = Path(os.environ.get("XMODAL_DATA", Path(__file__).parents[2] / "shared/data")) / "kitti_raw"


class Kept(Subset):
    "Frames in memory: the street would render them again each time."

    def __init__(self, frames, rows):
        super().__init__(frames, rows)
        self.frames = [frames[row] for row in rows]

    def __getitem__(self, i):
        return self.frames[i]


@pytest.fixture(scope="module")
def street():
    return Kept(Street(frames=5, frames_per_drive=5, cameras=2, size=(64, 208), beams=32, samples=1), range(5))


def recipe_of(name, epochs=1, **changes):
    """The small recipe, two frames a step."""
    recipe = replace(recipes(name)["small"](), **changes)
    recipe.optimisation = replace(recipe.optimisation, epochs=epochs, batch_size=2)
    if hasattr(recipe, "superpixels"):
        recipe.superpixels = replace(recipe.superpixels, segments=40)
    return recipe


def weights_of(checkpoint):
    return load(checkpoint)[0]


CASES = [(name, {}) for name in METHODS] + [
    ("slidr", {"tolerate": 0.1, "balance": 0.5, "temporal": 0.5}),
    ("simipu", {"contrast": "queue", "queue": 100}),
    ("simipu", {"contrast": "simsiam"}),
    ("depthcontrast", {"formats": ("points", "voxels"), "points_network": {"points": (512, 256, 64, 16)}}),
    ("pointcontrast", {"objective": "hardest"}),
    ("nclr", {"pose_from": 0.0}),
]


@pytest.mark.parametrize(("name", "changes"), CASES, ids=[" ".join([name, *changes]) for name, changes in CASES])
def test_stopped_in_the_middle_a_run_goes_on_to_the_same_bits(name, changes, street, tmp_path):
    """Two batches a step, so that what a step collects (keys for a queue) is collected over both; one method with a worker process."""
    machine = Machine(accelerator="cpu", accumulate=2, log_every=1, workers=int(name == "scalr"))
    recipe = lambda: recipe_of(name, epochs=2, **changes)
    train = lambda folder, stop_after=None: pretrain(name, street, tmp_path / folder, recipe(), superpixels=tmp_path / "ids", machine=machine, stop_after=stop_after)
    whole = train("whole")
    assert train("parts", 1).step == 1 and train("parts").finished and whole.total == 2
    a, b = weights_of(tmp_path / "whole/last.safetensors"), weights_of(tmp_path / "parts/last.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert (tmp_path / "whole/metrics.csv").read_text() == (tmp_path / "parts/metrics.csv").read_text()
    start = load_method(whole.checkpoint)[0].state_dict()
    assert all(torch.isfinite(value).all() for value in start.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_is_measured_beside_its_twin(name, street, tmp_path):
    fitted = pretrain(name, Subset(street, [0, 1]), tmp_path / "run", recipe_of(name), stop_after=1)
    scores = compare(fitted.checkpoint, Subset(street, [0]), Subset(street, [1]), queries=50)
    method, card = load_method(fitted.checkpoint)
    assert bool(scores["retrieval"]) == sees_images(method) == (name not in ("depthcontrast", "pointcontrast"))
    for measure in ("knn", "linear_probe"):
        assert 0 < scores[measure]["trained"]["miou"] <= 1 and scores[measure]["trained"]["confusion"] != scores[measure]["random"]["confusion"]
    frame = street[2]
    points = extract(method, frame).points
    assert points.shape[0] == len(frame.points) and torch.allclose(points.norm(dim=1), torch.ones(len(points)), atol=1e-4)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no KITTI recordings in {REAL}")
@pytest.mark.parametrize("name", METHODS)
def test_real_recordings(name, tmp_path):
    recordings = open_dataset("kitti", REAL)
    few = Subset(recordings, [len(recordings) - 2, len(recordings) - 1])
    recipe = recipe_of(name) if has_intensity(few) else without_intensity(recipe_of(name))
    fitted = pretrain(name, few, tmp_path / "run", recipe, machine=Machine(accelerator="cpu", log_every=1))
    assert fitted.finished and fitted.skipped == 0 and fitted.metrics[0]["loss"] > 0 and fitted.metrics[0]["gradient_norm"] > 0


def test_a_cloud_that_is_read_with_its_colours_is_measured_with_them(street):
    method = build("depthcontrast", recipe_of("depthcontrast", inputs="colour"))
    frame = street[0]
    dark = replace(frame, cameras=[replace(camera, image=camera.image // 4) for camera in frame.cameras])
    for see in (lambda frame: extract(method, frame).points, lambda frame: backbone_features(method, frame)):
        assert not torch.equal(see(frame), see(dark))


def test_training_helps(street, tmp_path):
    """A few steps on few frames: the loss falls and points find their pixels better than before."""
    recipe = recipe_of("ppkt", epochs=25, network={"planes": (16,) * 8}, pairs=512)
    fitted = pretrain("ppkt", Subset(street, [0, 1, 2, 3]), tmp_path / "run", recipe, machine=Machine(accelerator="cpu", log_every=1))
    losses = [row["loss"] for row in fitted.metrics]
    assert sum(losses[-4:]) < sum(losses[:4])
    scores = compare(fitted.checkpoint, Subset(street, [0]), Subset(street, [4]), queries=200)
    rank = scores["retrieval"]["point_to_pixel"]
    assert rank["trained"]["median_rank"] < 0.8 * rank["random"]["median_rank"]
