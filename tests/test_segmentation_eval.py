"""Segmentation metrics, protocols, corruptions and robustness: against scikit-learn, the specification's text and real scans."""

import json
import os
import re
import warnings
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xmodal.data.street import Street
from xmodal.evaluation import metrics
from xmodal.evaluation.corruptions import CORRUPTIONS, Corrupted, beams_of, vehicles_of
from xmodal.evaluation.protocols import PUBLISHED, SCANS, MixedProtocols, Result, Split, also, depthcontrast, quick, simipu, slidr, subset, table
from xmodal.evaluation.robustness import Robustness, corruption_errors, robustness
from xmodal.frame import BadData, Frame

SHARED = Path(os.environ.get("XMODAL_DATA", Path(__file__).parents[2] / "shared/data")).parent
SPEC = SHARED / "spec/protocols.md"


# metrics


@pytest.mark.parametrize("seed", range(40))
def test_metrics_agree_with_scikit_learn(seed):
    judge = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    classes, n = rng.integers(2, 12), rng.integers(0, 400)
    low = rng.integers(0, classes)
    truth = rng.integers(0, low + 1, n)  # classes above `low` are absent, and predicted
    predicted = np.where(rng.random(n) < rng.random(), truth, rng.integers(0, classes, n))
    scores = metrics.segmentation_scores(metrics.confusion_matrix(truth, predicted, classes), tuple(map(str, range(classes))))
    known = truth > 0
    truth, predicted, there = truth[known], predicted[known], sorted(set(truth[known].tolist()))
    assert scores["points"] == len(truth) and sorted(map(int, scores["absent"] + list(scores["iou"]))) == list(range(1, classes))
    if not there:
        assert np.isnan([scores[key] for key in ("miou", "fwiou", "accuracy", "class_accuracy")]).all()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are only predicted
        theirs = {
            "miou": judge.jaccard_score(truth, predicted, labels=there, average="macro"),
            "fwiou": judge.jaccard_score(truth, predicted, labels=there, average="weighted"),
            "accuracy": judge.accuracy_score(truth, predicted),
            "class_accuracy": judge.recall_score(truth, predicted, labels=there, average="macro"),
        }
    assert {key: pytest.approx(value, abs=1e-6) for key, value in theirs.items()} == {key: scores[key] for key in theirs}


def test_calibration_error_is_the_formula():
    rng = np.random.default_rng(0)
    truth, confidence = rng.integers(0, 4, 3000), np.r_[rng.random(2990), np.arange(10) / 9]
    predicted = rng.integers(1, 4, 3000)
    total = 0.0
    for m in range(15):
        inside = (truth > 0) & (confidence > m / 15) & (confidence <= (m + 1) / 15) | (truth > 0) & (m == 0) & (confidence == 0)
        total += abs((truth == predicted)[inside].sum() - confidence[inside].sum())
    ours = metrics.expected_calibration_error(metrics.calibration_bins(truth, predicted, confidence))
    assert ours == pytest.approx(total / (truth > 0).sum(), abs=1e-6)


def test_points_on_a_bound_count_once_and_far():
    points = np.zeros((4, 3))
    points[:, 0] = 0, 10, 30, 9.999
    parts = metrics.confusion_by_range([1, 1, 1, 1], [1, 1, 1, 1], points, 2)
    assert parts[:, 1, 1].tolist() == [2, 1, 1]


# protocols


@pytest.fixture(scope="module")
def spec():
    if not SPEC.is_file():
        pytest.skip(f"the specification is not here: {SPEC}")
    return SPEC.read_text()


def numbers(text, pattern):
    "The numbers that a pattern captures; it must be there."
    found = re.search(pattern, text, re.DOTALL)
    assert found, f"the specification does not say {pattern}"
    return tuple(float(value) for value in found.groups())


def test_recipes_are_those_of_the_specification(spec):
    momentum, dampening, decay, epochs = numbers(spec, r"Fine-tuning: SGD momentum ([\d.]+) dampening ([\d.]+) wd (\S+), cosine per epoch, (\d+) epochs")
    nuscenes = numbers(spec, r"nuScenes 1 %: batch (\d+), lr ([\d.]+), head lr ([\d.]+)")
    kitti = numbers(spec, r"KITTI 1 %: batch (\d+), lr ([\d.]+), head lr ([\d.]+)")
    (scratch,) = numbers(spec, r"random init: lr ([\d.]+), one lr")
    for dataset, wanted in (("nuscenes", nuscenes), ("semantickitti", kitti)):
        recipe = slidr.recipe(dataset, "fine-tuning", 1)
        assert (recipe.batch_size, recipe.lr, recipe.head_lr) == wanted
        assert (recipe.optimizer, recipe.momentum, recipe.dampening, recipe.weight_decay, recipe.epochs, recipe.schedule) == ("sgd", momentum, dampening, decay, epochs, "cosine")
        assert (slidr.recipe(dataset, "from scratch", 1).lr, slidr.recipe(dataset, "from scratch", 1).head_lr) == (scratch, None)
    lr, batch, epochs = numbers(spec, r"Linear probing: lr ([\d.]+), all labels.*?batch (\d+), (\d+) epochs")
    probe = slidr.recipe("nuscenes", "linear probe")
    assert (probe.lr, probe.batch_size, probe.epochs) == (lr, batch, epochs) and slidr.loss[0][1] == slidr.loss[1][1] == 1
    with pytest.raises(ValueError, match="linear probe"):
        slidr.recipe("nuscenes", "linear probe", 1)  # all labels only

    lr, nuscenes, kitti, batch, poss = numbers(spec, r"AdamW (\S+) \(nuScenes wd (\S+); KITTI ([\d.]+)\), cosine per epoch, batch (\d+) \(POSS (\d+)\), cross-entropy only")
    epochs = numbers(spec, r"100 % (\d+); 50 % (\d+); 10 % (\d+); 1 % (\d+); 0.1 % (\d+)")
    for dataset, decay, size in (("nuscenes", nuscenes, batch), ("semantickitti", kitti, batch), ("semanticposs", kitti, poss)):
        recipe = also.recipe(dataset, "fine-tuning")
        assert (recipe.lr, recipe.weight_decay, recipe.batch_size, recipe.head_lr) == (lr, decay, size, None)
    assert tuple(also.recipe("nuscenes", "fine-tuning", p).epochs for p in (100, 50, 10, 1, 0.1)) == epochs
    assert tuple(p for p in slidr.on("nuscenes").percents) == numbers(spec, r"skipping: (\d+), (\d+), (\d+), (\d+), (\d+) %")
    assert (len(also.split("nuscenes").ids), *(dict(also.on("semantickitti").train.counts)[p] for p in (1, 0.1))) == numbers(spec, r"every Nth of (\d+) scenes.*?1 % = (\d+) scans, 0.1 % = (\d+)\)")
    assert also.labels == "points" and slidr.labels == "voxels" and also.loss == (("cross-entropy", 1.0),)


def published(protocol, dataset, percent, mode="fine-tuning"):
    column = {"fine-tuning": ("fine-tuning", "from scratch")}.get(mode, (mode,))
    return {r.method: r.values[0] for r in PUBLISHED if r.protocol is protocol and r.dataset == dataset and r.percent == percent and r.mode in column}


def test_published_numbers_are_those_of_the_specification(spec):
    _, first, second, *_ = spec.split("\n## ")
    value = r"\d+\.\d+"
    three = re.findall(rf"(\w+) ({value}) / ({value}) / ({value})", first.split("Published, nuScenes LP")[1])
    assert len(three) == 5
    for method, probe, one, kitti in three:
        assert published(slidr, "nuscenes", 100, "linear probe")[method] == float(probe)
        assert (published(slidr, "nuscenes", 1)[method], published(slidr, "semantickitti", 1)[method]) == (float(one), float(kitti))
    five = re.findall(rf"(random|SLidR) ({value}(?:/{value}){{4}})", first)
    assert len(five) == 2
    for method, line in five:
        ours = [published(slidr, "nuscenes", p)[method] for p in (1, 5, 10, 25, 100)]
        assert ours[1:] == [float(v) for v in line.split("/")][1:]  # 1 % of SLidR is in two tables, 38.3 and 39.0
    nuscenes, kitti = second.split("SemanticKITTI: random")
    for dataset, text, count in (("nuscenes", nuscenes, 5), ("semantickitti", "random" + kitti, 8)):
        lines = re.findall(rf"(\w+)\s+({value}(?:/{value}){{4}})", text)
        assert len(lines) == count
        for method, line in lines:
            assert [published(also, dataset, p)[method] for p in (0.1, 1, 10, 50, 100)] == [float(v) for v in line.split("/")]
    line = spec.split("MonoDepth")[1].split("\n")[0]
    depth = re.findall(rf"(scratch|ImageNet|SimIPU-KITTI|SimIPU-Waymo 1/5)(?: \(\d+\))? ({value}) / ({value})", line)
    assert len(depth) == 4
    for method, kitti, nyu in depth:
        assert (published(simipu, "kitti", 100)[method], published(simipu, "nyu", 100)[method]) == (float(kitti), float(nyu))
    assert tuple(published(depthcontrast, "scannet", 100).values()) == numbers(spec, rf"PointNet\+\+ 1x/2x/3x/4x: ({value}) / ({value}) / ({value}) / ({value})")


def test_label_fractions():
    assert [len(slidr.split("nuscenes", p).ids) for p in (1, 5, 10, 25, 100)] == [7, 35, 70, 175, 700]
    assert [len(slidr.split("semantickitti", p).ids) for p in (1, 5, 10, 25, 100)] == [192, 957, 1913, 4783, 19130]
    assert [len(also.split("nuscenes", p).ids) for p in (0.1, 1, 10, 50, 100)] == [1, 6, 60, 300, 600]
    # the order of the dataset's own table decides: here the scenes are stored backwards
    names = tuple(reversed(slidr.split("nuscenes").ids))
    other = slidr.split("nuscenes", 1, names=names)
    assert other.ids == names[99::100] and other.hash != slidr.split("nuscenes", 1).hash and slidr.split("nuscenes", names=names).hash == slidr.split("nuscenes").hash
    assert not set(also.split("nuscenes").ids) & set(also.test("nuscenes").ids) and not set(slidr.split("semantickitti").ids) & set(slidr.test("semantickitti").ids)


def test_a_list_is_known_by_its_hash(tmp_path):
    lists = {"0.01": {}}
    rng = np.random.default_rng(0)
    for sequence, scans in SCANS.items():
        if sequence != "08":
            drawn = rng.permutation(scans)[: max(1, scans // 100)]
            lists["0.01"][sequence] = {"points": [f"Datasets/SemanticKITTI/dataset/sequences/{sequence}/velodyne/{i:06d}.bin" for i in drawn]}
    path = tmp_path / "percentiles_split.json"
    path.write_text(json.dumps(lists))
    with pytest.raises(BadData, match="has 188 ids and the hash"):  # as many, and others
        also.split("semantickitti", 1, lists=path)
    path.write_text("[]")
    with pytest.raises(BadData, match="holds no list"):
        also.split("semantickitti", 1, lists=path)
    with pytest.raises(BadData, match="get percentiles_split.json"):
        also.split("semantickitti", 1)


def test_subset_takes_scenes_and_scans():
    dataset = SimpleNamespace(name="nuscenes", classes=(), ids=[f"{scene}/{k:03d}" for scene in slidr.split("nuscenes").ids for k in range(2)])
    assert len(subset(dataset, slidr.split("nuscenes", 1))) == 14
    dataset.ids = dataset.ids[:100]
    with pytest.raises(BadData, match="7 of the 7 scenes"):
        subset(dataset, slidr.split("nuscenes", 1))
    kitti = SimpleNamespace(name="semantickitti", classes=(), ids=["00/000000", "00/000001", "00/000100"])
    assert subset(kitti, Split("semantickitti", 1, "three", ("00/000100", "00/000000"))).rows == [0, 2]


def test_protocols_do_not_change_or_mix():
    for protocol in (slidr, also, simipu, depthcontrast, quick):
        for field in fields(protocol):
            with pytest.raises(AttributeError):
                setattr(protocol, field.name, None)
    assert len({p.hash for p in (slidr, also, simipu, depthcontrast, quick)}) == 5
    ours = Result("ours", also, "nuscenes", "fine-tuning", (36.0, 37.0), 1)
    rows = table([*(r for r in PUBLISHED if r.protocol is also), ours])
    assert rows[-1][0] == "ours" and "36.5 ± 0.7 (2)" in rows[-1]
    with pytest.raises(MixedProtocols, match="slidr.*also|also.*slidr"):
        table([*PUBLISHED])
    with pytest.raises(MixedProtocols, match="nuscenes, fine-tuning, 1 %, mIoU.*under slidr and ours under also"):
        table([*(r for r in PUBLISHED if r.protocol is slidr), ours])


# corruptions


def scan_of(points, intensity):
    return Frame("real", points, intensity, semantic=np.ones(len(points), np.int32), instance=np.ones(len(points), np.int32))


@pytest.fixture(scope="module")
def kitti():
    from xmodal.data.kitti_files import read_scan

    path = next(iter(sorted((SHARED / "data/kitti_raw").glob("*/*9001*/velodyne_points/data/*.bin"))), None)
    if path is None:
        pytest.skip("no recording of KITTI here")
    return scan_of(*read_scan(path))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_of_a_real_scan(kitti, name):
    options = {"vehicles": (1,)} if name == "incomplete_echo" else {}
    before = kitti.points.copy()
    counts = []
    for severity in (1, 2, 3):
        new = CORRUPTIONS[name](kitti, severity, np.random.default_rng(0), **options).check()
        counts.append((new.semantic == 1).sum())
        assert len(new.points) == len(new.intensity) == len(new.semantic) == len(new.instance) and not np.shares_memory(new.points, kitti.points)
    assert np.array_equal(kitti.points, before)
    if name == "motion_blur":
        assert counts == [len(before)] * 3
    else:
        assert len(before) > counts[0] > counts[1] > counts[2] > 0


def test_bands_are_the_rings_of_a_real_sensor():
    path = next(iter(sorted((SHARED / "data/nuscenes_keyframe").glob("samples/LIDAR_TOP/*.bin"))), None)
    if path is None:
        pytest.skip("no key frame of nuScenes here")
    rows = np.fromfile(path, np.float32).reshape(-1, 5)
    far = np.linalg.norm(rows[:, :3], axis=1) > 2.5  # what is nearer is the car itself
    band, ring = beams_of(rows[:, :3], bands=32)[far], rows[far, 4].astype(int)
    own = [np.bincount(band[ring == k], minlength=32).max() / (ring == k).sum() for k in range(32)]
    assert np.mean(own) > 0.8 and np.median(own) == 1, own  # a ring lies mostly in one band


def test_labels_stay_with_their_points():
    street = Street(frames=1, cameras=1, size=(16, 32), beams=16, samples=1)
    frame = street[0]
    frame.instance = np.arange(1, len(frame.points) + 1, dtype=np.int32)  # a number for each point, to follow it
    for name in CORRUPTIONS:
        new = Corrupted(street, name, 3).apply(frame, 0)
        there = new.instance > 0
        source = new.instance[there] - 1
        assert np.array_equal(new.semantic[there], frame.semantic[source]) and len(np.unique(source)) == len(source)
        assert (new.semantic[~there] == 0).all()
        if name != "motion_blur":
            assert np.array_equal(new.points[there], frame.points[source])
        if name in ("fog", "snow"):  # what hangs in the air lies on a beam, in front of what was there
            assert (np.linalg.norm(new.points[~there], axis=1) < np.linalg.norm(frame.points, axis=1).max()).all()
    assert vehicles_of(("unlabelled", "car", "road", "bicycle")) == (1, 3)


# robustness


def test_errors_relative_to_itself_are_one():
    miou = np.random.default_rng(0).uniform(0.1, 0.9, (8, 3))
    assert np.allclose(corruption_errors(miou, miou), 1)
    result = Robustness(tuple(CORRUPTIONS), {"trained": 0.5, "random": 0.5}, {"trained": miou, "random": miou})
    assert result.mce == pytest.approx(1) and result.mrr() == pytest.approx(miou.mean() / 0.5) and len(result.rows()) == 11


def test_robustness_of_a_checkpoint(tmp_path):
    from xmodal.data.datasets import Subset
    from xmodal.pretrain import build, recipes
    from xmodal.training.checkpoint import save

    class Bare(Subset):
        def __getitem__(self, i):
            return replace(super().__getitem__(i), semantic=None)

    recipe = recipes("pointcontrast")["small"]()
    recipe.network = {"planes": (8,) * 8}
    method = build("pointcontrast", recipe)
    path = save(tmp_path / "random.safetensors", dict(method.state_dict()), {"method": "pointcontrast", "recipe": asdict(recipe)})
    world = Street(frames=2, frames_per_drive=1, cameras=1, size=(16, 32), beams=16, samples=1)
    train, test = Subset(world, [0]), Subset(world, [1])
    result = robustness(path, train, test, corruptions=("crosstalk",), points=300)
    assert result.mce == pytest.approx(1)  # seed 0 is its own twin
    with pytest.raises(ValueError, match="has no labels"):
        robustness(path, train, Bare(world, [1]), corruptions=("crosstalk",), points=300)
