"""The effective rank in every method's log, the watch on a training, and diagnostics of what a method has learned."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xmodal.collapse import CollapseWatch, effective_rank
from xmodal.data.datasets import Remembered, Subset
from xmodal.data.street import Street
from xmodal.evaluation.diagnostics import collect, diagnose_features
from xmodal.evaluation.invariance import CHANGES, invariance
from xmodal.evaluation.kept import work_key
from xmodal.experiments import EXPERIMENTS
from xmodal.pretrain import METHODS, build, pretrain, recipes
from xmodal.training.fit import Machine


class Unlabelled(Subset):
    """The frames without what was labelled."""

    def __getitem__(self, i):
        return replace(super().__getitem__(i), semantic=None, instance=None)


class Blind(Subset):
    """The frames without cameras, but for the last."""

    def __getitem__(self, i):
        frame = super().__getitem__(i)
        return frame if i == len(self) - 1 else replace(frame, cameras=[])


@pytest.fixture(scope="module")
def street():
    return Remembered(Street(frames=3, frames_per_drive=3, cameras=1, size=(64, 208), beams=16, samples=1))


def small(name, **changes):
    recipe = replace(recipes(name)["small"](), **changes)
    recipe.optimisation = replace(recipe.optimisation, epochs=2, batch_size=2)
    if name == "simipu":
        recipe = replace(recipe, sample=600, kept=(128, 64, 32))
    if hasattr(recipe, "superpixels"):
        recipe.superpixels = replace(recipe.superpixels, segments=40)
    return recipe


@pytest.mark.parametrize("name", METHODS)
def test_every_method_logs_a_rank_that_means_something(name, street, tmp_path):
    """Far above a collapse (2) and below the channels, in every line of metrics.csv; the watch has nothing to say."""
    fitted = pretrain(name, street, tmp_path, small(name), machine=Machine(accelerator="cpu", log_every=1))
    ranks, watch = [row["effective_rank"] for row in fitted.metrics], CollapseWatch(patience=1)
    channels = {"simipu": 128, "depthcontrast": 128, "scalr": 472}.get(name, 64)
    assert len(ranks) == fitted.total == 2 and all(10 < rank < 0.9 * channels for rank in ranks)
    assert not any(watch.see(row["step"], row) for row in fitted.metrics)
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert [float(row["effective_rank"]) for row in csv.DictReader(file)] == ranks


def test_the_rank_costs_no_chance_and_no_gradient(street):
    """A method whose rank is not computed has the same loss, gradient and random numbers, to the bit."""
    from xmodal.methods import ppkt

    seen, real = [], ppkt.effective_rank
    for measure in (real, lambda features: 0.0):
        ppkt.effective_rank = measure
        try:
            method = build("ppkt", small("ppkt", network={"planes": (8,) * 8}, pairs=200))
            batch = method.collate([method.make_view(frame, np.random.default_rng(0)) for frame in (street[0],)])
            torch.manual_seed(0)
            loss, _ = method.loss(batch, generator := torch.Generator().manual_seed(0))
            loss.backward()
            seen.append((loss, torch.rand(1), torch.rand(1, generator=generator), *(p.grad for p in method.parameters() if p.grad is not None)))
        finally:
            ppkt.effective_rank = real
    assert len(seen[0]) > 10 and all(torch.equal(a, b) for a, b in zip(*seen))


def test_the_watch_speaks_when_a_method_collapses(street):
    """A point network that is told to say the same of every point: the rank in the log falls to 1 and is told once."""
    method, watch, said = build("ppkt", small("ppkt", network={"planes": (8,) * 8}, pairs=200)), CollapseWatch(), []
    batch = method.collate([method.make_view(frame, np.random.default_rng(0)) for frame in (street[0], street[1])])
    optimizer = torch.optim.Adam(method.points.parameters(), 0.05)
    for step in range(30):
        _, log = method.loss(batch)
        if sentence := watch.see(step, log):
            said.append(sentence)
        optimizer.zero_grad()
        points = method.encode_points(batch, batch.pairs.point)
        (1 - points @ points.detach().mean(0)).mean().backward()
        optimizer.step()
    assert len(said) == 1 and "collapsed" in said[0], (said, log)


def test_diagnostics_and_invariance_with_an_image_network_and_without_labels(street, tmp_path):
    run = pretrain("ppkt", street, tmp_path / "run", small("ppkt", network={"planes": (8,) * 8}, pairs=200), stop_after=1)
    bare = Unlabelled(street, [0, 2])
    result = diagnose_features(run.checkpoint, bare, tmp_path / "out", points=100, pairs=80)
    assert result["partners"] == "a point and its pixel" and result["neighbours"] is None and "no labels" in result["left_out"][0]
    assert result["figures"][:4] == ["partners.png", "spectrum.png", "cloud.png", "map.png"] and "neighbours.png" not in result["figures"]
    assert json.loads((tmp_path / "out/diagnostics.json").read_text()) == result
    assert result["frames_with_partners"] == 2 and not result["frames_without_partners"]
    few = {name: replace(CHANGES[name], strengths=(CHANGES[name].strengths[0], *CHANGES[name].strengths[:2])) for name in ("turned", "fewer beams")}
    changes = invariance(run.checkpoint, Subset(bare, [0]), tmp_path / "out", points=200, changes=few)["changes"]
    assert all(abs(change["trained"][1] - 1) < 1e-4 and change["trained"][2] < 1 for change in changes.values())  # no change, computed a second time


def test_diagnostics_say_what_cannot_be_measured(street, tmp_path):
    """One frame has no other one to look for neighbours in; a network that has diverged is refused."""
    run = pretrain("pointcontrast", street, tmp_path / "run", small("pointcontrast", network={"planes": (8,) * 8, "stem": 8}), stop_after=1)
    result = diagnose_features(run.checkpoint, Subset(street, [1]), points=100, pairs=80)
    assert result["partners"] == "a point in two views" and result["neighbours"] is None and "two frames" in result["left_out"][0]
    method = build("pointcontrast", small("pointcontrast", network={"planes": (8,) * 8, "stem": 8})).eval()
    torch.nn.init.constant_(next(method.parameters()), torch.nan)
    with pytest.raises(ValueError, match="diverged"):
        collect(method, [street[0]], 50, 50, 0)
    assert np.isnan(effective_rank(method.encode_points(method.collate([method.make_view(street[0], np.random.default_rng(0))]).first).detach()))


@pytest.mark.parametrize("name", ["ppkt", "slidr"])
def test_frames_without_partners_are_told(name, street):
    """Without a camera no point has a pixel: such frames are counted, with the first's reason; if there are no others, that is the error."""
    method = build(name, small(name, network={"planes": (8,) * 8})).eval()
    sample, alone = collect(method, list(Blind(street, [0, 1, 2])), 50, 50, 0), collect(method, [street[2]], 50, 50, 0)
    assert list(sample.without) == street.ids[:2] and all("no cameras" in why for why in sample.without.values())
    assert len(sample.features) == 150 and len(sample.positives) == len(alone.positives) == 50
    with pytest.raises(ValueError, match=f"no point of 2 frames has a partner; {street.ids[0]}: it has no cameras"):
        collect(method, [replace(street[i], cameras=[]) for i in (0, 1)], 50, 50, 0)


def test_a_diagnosis_counts_the_frames_its_cosines_are_of(street, tmp_path):
    run = pretrain("ppkt", street, tmp_path / "run", small("ppkt", network={"planes": (8,) * 8}, pairs=200), stop_after=1)
    result = diagnose_features(run.checkpoint, Blind(street, [0, 1, 2]), points=60, pairs=40)
    assert (result["frames_with_partners"], result["frames_without_partners"]) == (1, 2)
    assert f"2 of 3 frames have no partners; the first, {street.ids[0]}: it has no cameras" in result["left_out"][0]


def cell_with(text, name):
    "The code cell of an experiment's notebook that has this text."
    (found,) = [source for cell in json.loads((EXPERIMENTS / f"{name}.ipynb").read_text())["cells"] if cell["cell_type"] == "code" and text in (source := "".join(cell["source"]))]
    return found


@pytest.mark.parametrize("name", ["probe", "features", "robustness"])
def test_what_is_kept_is_of_this_code_and_these_recordings(name, tmp_path):
    """The line that makes the key, with other code, another folder, other frames, another seed: each is other work."""
    (line,) = re.findall(r"work_key\(.*\)$", cell_with("work_key(Path", name), re.MULTILINE)
    (tmp_path / "last.safetensors").write_bytes(b"weights")
    frames = SimpleNamespace(name="street", ids=["a"])
    settings = dict.fromkeys(("queries", "points", "pairs", "neighbours", "head", "names", "measure"), 1)
    given = settings | {"work_key": work_key, "Path": Path, "checkpoint": tmp_path / "last.safetensors", "train": frames, "test": frames, "changes": {}, "seed": 0}
    given |= {"code_digest": lambda: "code", "source": {"name": "kitti", "root": "here"}}
    others = {"code_digest": lambda: "mended", "source": {"name": "kitti", "root": "there"}, "test": SimpleNamespace(name="street", ids=["b"]), "seed": 1}
    assert len({eval(line, given | other) for other in ({}, *({key: value} for key, value in others.items()))}) == 5


def test_a_class_that_no_vote_was_about_has_no_number():
    """All points are asked of the probe, some are drawn for the vote: perhaps none of a rare class, which is no IoU of 0."""
    both = lambda iou: {which: {"iou": iou, "miou": 0.5} for which in ("trained", "random")}
    exec(cell_with("told(measure[which]", "probe"), names := {"scores": {"linear_probe": both({"car": 0.5, "sign": 0.0}), "knn": both({"car": 0.25})}})
    assert names["classes"][1:3] == [["car", "50.0", "50.0", "25.0", "25.0"], ["sign", "0.0", "0.0", "", ""]]
