"""Evaluation on all raw points against plain loops; submissions there and back, and every fault that a check must find."""

import json
import os
import re
import shutil
import warnings
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from xmodal.batch import Voxels
from xmodal.data.class_maps import NUSCENES, SEMANTIC_KITTI, SEMANTIC_KITTI_MOVING
from xmodal.data.nuscenes import NuScenes
from xmodal.data.nuscenes_splits import CATEGORIES
from xmodal.data.nuscenes_write import write_nuscenes
from xmodal.data.semantickitti import SemanticKitti
from xmodal.evaluation.full_points import Voting, evaluate_points, probabilities
from xmodal.evaluation.submission import ORIGINAL_IDS, SCANS, check_submission, format_of, write_submission
from xmodal.frame import BadData, Camera, Frame
from xmodal.losses import class_weights, lovasz_softmax

DATA = Path(os.environ.get("XMODAL_DATA", Path(__file__).parents[2] / "shared/data")) / "semantickitti_crop"
NAMES = ("unlabelled", "road", "car", "tree", "person")


class Linear(torch.nn.Module):
    """Logits that are linear in what `see` finds in the point that each voxel keeps."""

    reads_images = False

    def __init__(self, see, columns, classes=len(NAMES), size=0.5):
        super().__init__()
        self.see, self.voxels, self.linear = see, Voxels(size), torch.nn.Linear(columns, classes)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for values in self.parameters():
                values.normal_(generator=generator)

    def classify(self, batch):
        return self.linear(self.see(batch.points[batch.retained]))[batch.inverse]


def place(points):  # depends on where the point is
    return points / 10


def upright(points):  # turned about z or mirrored, a point is the same
    return torch.stack([points[:, :2].norm(dim=1) / 10, points[:, 2]], 1)


def frame_of(seed, count=1500, labels=range(5)):
    rng = np.random.default_rng(seed)
    points = (rng.normal(size=(count, 3)) * [15, 15, 1]).astype(np.float32)
    return Frame(f"drive/{seed}", points, rng.uniform(0, 1, count).astype(np.float32), semantic=rng.choice(list(labels), count).astype(np.int32))


def by_loops(network, frames):
    """Truth, prediction, confidence and distance of every point, one at a time."""
    rows, weight, bias = [], *(values.detach().double().numpy() for values in network.linear.parameters())
    for frame in frames:
        first = {}
        for point, label in zip(frame.points, frame.semantic):
            kept = first.setdefault(tuple(np.floor(point / network.voxels.size).astype(int)), point)
            score = np.exp(weight @ network.see(torch.from_numpy(kept[None])).double().numpy()[0] + bias)[1:]
            rows.append((label, 1 + score.argmax(), score.max() / score.sum(), np.linalg.norm(point)))
    return map(np.array, zip(*rows))


# --- all points ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [range(5), (0, 2), (1, 2, 3, 4)], ids=["all", "one class", "none unlabelled"])
def test_numbers_agree_with_plain_loops_and_scikit_learn(labels):
    metrics = pytest.importorskip("sklearn.metrics", reason="the comparison needs scikit-learn: pip install -e '.[dev]'")
    network, frames = Linear(place, 3), [frame_of(seed, labels=labels) for seed in range(3)]
    result = evaluate_points(network, frames, NAMES)
    truth, guess, confidence, distance = by_loops(network, frames)
    known = truth > 0
    assert result["confusion"] == metrics.confusion_matrix(truth[known], guess[known], labels=range(5)).tolist()
    present = np.unique(truth[known])
    iou = metrics.jaccard_score(truth[known], guess[known], labels=present, average=None, zero_division=0)
    assert list(result["iou"]) == [NAMES[c] for c in present]
    np.testing.assert_allclose(list(result["iou"].values()), iou, atol=1e-12)
    np.testing.assert_allclose([result["miou"], result["accuracy"]], [iou.mean(), metrics.accuracy_score(truth[known], guess[known])])
    assert result["absent"] == [NAMES[c] for c in range(1, 5) if c not in present]
    for name, (low, high) in {"0-10 m": (0, 10), "10-30 m": (10, 30), "30+ m": (30, np.inf)}.items():
        inside = known & (low <= distance) & (distance < high)
        assert result["by_range"][name]["points"] == inside.sum() > 0
        assert result["by_range"][name]["confusion"] == metrics.confusion_matrix(truth[inside], guess[inside], labels=range(5)).tolist()
    error = 0.0
    for k in range(15):
        inside = known & (k / 15 < confidence) & (confidence <= (k + 1) / 15)
        error += abs((truth == guess)[inside].sum() - confidence[inside].sum()) / known.sum()
    assert result["ece"] == pytest.approx(error, abs=1e-5)
    json.dumps(result, allow_nan=False)


def test_votes_change_nothing_for_a_network_to_which_the_views_are_the_same():
    network, frame = Linear(upright, 2, size=1e-4), frame_of(0)
    once = probabilities(network, frame)
    torch.testing.assert_close(probabilities(network, frame, Voting(5, True)), once, rtol=1e-3, atol=1e-5)
    assert (once[:, 0] == 0).all() and torch.allclose(once.sum(1), torch.ones(len(once)))
    results = [evaluate_points(network, [frame], NAMES, voting) for voting in (Voting(), Voting(4))]
    assert results[0]["miou"] == pytest.approx(results[1]["miou"], abs=2e-3) and [result["voting"]["views"] for result in results] == [1, 4]


def test_votes_are_the_mean_of_what_is_said_of_each_view():
    network, frame = Linear(place, 3, size=1e-4), frame_of(1)
    turned = [replace(frame, points=(frame.points @ move[:3, :3].T).astype(np.float32)) for move in Voting.twelve().moves()]
    mean = torch.stack([probabilities(network, view) for view in turned]).mean(0)
    torch.testing.assert_close(probabilities(network, frame, Voting.twelve()), mean, rtol=1e-4, atol=1e-6)
    assert (mean - probabilities(network, frame)).abs().max() > 0.05


def test_images_are_given_to_networks_that_read_them_and_to_no_others():
    class Reads(Linear):
        def classify(self, batch):
            self.images = len(batch.images)
            return super().classify(batch)

    network, camera = Reads(place, 3), Camera("front", np.zeros((8, 8, 3), np.uint8), np.diag([8.0, 8, 1]), np.eye(4))
    frame = replace(frame_of(2), cameras=[camera])
    for reads in (False, True):
        network.reads_images = reads
        network.train()
        probabilities(network, frame)
        assert network.images == reads and network.training


def test_nothing_labelled_is_an_error_and_no_number():
    network = Linear(place, 3)
    with pytest.raises(ValueError, match="nothing to measure"):
        evaluate_points(network, [frame_of(0, labels=(0,))], NAMES)
    with pytest.raises(ValueError, match="has no labels"):
        evaluate_points(network, [replace(frame_of(0), semantic=None)], NAMES)
    with pytest.raises(ValueError, match="5 ids apart, these frames have 4"):
        evaluate_points(network, [frame_of(0, labels=range(4))], NAMES[:4])


def test_an_interrupted_evaluation_goes_on_to_the_same_numbers(tmp_path):
    class Stops(list):
        def __getitem__(self, i):
            if i == 2:
                raise BadData("000002.bin", "it was cut short", "copy it again")
            return super().__getitem__(i)

    network, frames, state = Linear(place, 3), [frame_of(seed, 300) for seed in range(4)], tmp_path / "state.json"
    with pytest.raises(BadData, match="cut short"):
        evaluate_points(network, Stops(frames), NAMES, state=state)
    assert json.loads(state.read_text())["done"] == 2
    assert evaluate_points(network, frames, NAMES, state=state) == evaluate_points(network, frames, NAMES)
    for change in (dict(voting=Voting(2)), dict(classes=NAMES[::-1]), dict(network=Linear(place, 3, size=0.4)), dict(test=frames[:3])):
        with pytest.raises(BadData, match="of another network, other frames or other settings"):
            evaluate_points(**dict(network=network, test=frames, classes=NAMES, state=state) | change)
    with torch.no_grad():
        network.linear.bias[0] += 1
    with pytest.raises(BadData, match="of another network"):
        evaluate_points(network, frames, NAMES, state=state)


def test_lovasz_is_the_mean_iou_for_hard_predictions_and_falls_under_descent():
    metrics = pytest.importorskip("sklearn.metrics", reason="the comparison needs scikit-learn: pip install -e '.[dev]'")
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        truth, guess = torch.randint(0, 2 + seed % 5, (200,), generator=generator), torch.randint(0, 6, (200,), generator=generator)
        known = truth > 0
        iou = metrics.jaccard_score(truth[known], guess[known], labels=truth[known].unique(), average="macro", zero_division=0)
        assert lovasz_softmax(1e4 * torch.nn.functional.one_hot(guess, 6).float(), truth).item() == pytest.approx(1 - iou, abs=1e-5)
    scores = torch.zeros(200, 6, requires_grad=True)
    optimizer = torch.optim.Adam([scores], 0.3)
    for _ in range(60):
        optimizer.zero_grad()
        lovasz_softmax(scores, truth).backward()
        optimizer.step()
    assert lovasz_softmax(scores, truth) < 0.02 and not scores[~known].any()  # nothing is learned from what has no label
    assert class_weights(torch.bincount(truth, minlength=6))[0] == 0


# --- the original ids ------------------------------------------------------------------------------------------------

PUBLISHED = {  # learning_map_inv of the API's semantic-kitti-all.yaml; to 19 also of semantic-kitti.yaml
    0: 0, 1: 10, 2: 11, 3: 15, 4: 18, 5: 20, 6: 30, 7: 31, 8: 32, 9: 40, 10: 44, 11: 48, 12: 49, 13: 50, 14: 51, 15: 70, 16: 71, 17: 72, 18: 80, 19: 81,
    20: 252, 21: 253, 22: 254, 23: 255, 24: 259, 25: 258,
}  # fmt: skip


def test_the_inverse_map_is_the_published_one():
    assert dict(enumerate(ORIGINAL_IDS)) == PUBLISHED
    for classes in (SEMANTIC_KITTI, SEMANTIC_KITTI_MOVING):
        assert all(classes.raw[PUBLISHED[c]] == c for c in range(len(classes.names)))
    assert sum(SCANS[f"{n:02d}"] for n in range(11, 22)) == 20351


# --- submissions -----------------------------------------------------------------------------------------------------


class Few(list):
    name = "few"

    def __init__(self, frames, classes):
        super().__init__(frames)
        self.ids, self.classes = [frame.id for frame in frames], classes


def labelled(name, ids, rng):
    count = int(rng.integers(50, 80))
    points = rng.uniform(-20, 20, (count, 3)).astype(np.float32)
    return Frame(name, points, np.ones(count, np.float32), semantic=rng.choice(ids, count).astype(np.int32), instance=rng.integers(0, 9, count).astype(np.int32))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("11/000000", "11/000001", "12/000000"):
        frame = labelled(name, [raw for raw, c in SEMANTIC_KITTI.raw.items() if c], rng)
        for folder, end, content in (
            ("velodyne", "bin", np.column_stack([frame.points, frame.intensity])),
            ("labels", "label", frame.semantic.astype("<u4") | frame.instance.astype("<u4") << 16),
        ):
            path = root / f"kitti/sequences/{name[:2]}/{folder}/{name[3:]}.{end}"
            path.parent.mkdir(parents=True, exist_ok=True)
            content.tofile(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frames = [labelled(f"scene-00{n}/0", [raw for raw, c in NUSCENES.raw.items() if c], rng) for n in (77, 78, 79)]
        write_nuscenes(Few(frames, CATEGORIES), root / "nuscenes", "v1.0-test", progress=False)
        return {"semantickitti": SemanticKitti(root / "kitti"), "nuscenes": NuScenes(root / "nuscenes", cache=root / "cache")}


nobody = torch.nn.Identity()  # the truth comes from no network
KINDS = [("semantickitti", False), ("semantickitti", True), ("nuscenes", False), ("nuscenes", True)]
IDS = ["kitti", "kitti panoptic", "lidarseg", "nuscenes panoptic"]


@pytest.fixture(scope="module")
def entries(datasets, tmp_path_factory):
    """The truth handed in: the folder of each kind."""
    root, made = tmp_path_factory.mktemp("entries"), {}
    for name, panoptic in KINDS:
        made[name, panoptic] = root / f"{name}{panoptic}"
        write_submission(made[name, panoptic], datasets[name], lambda f: (f.semantic, f.instance) if panoptic else f.semantic, nobody, panoptic=panoptic)
    return made


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_the_truth_handed_in_is_right_at_every_point(kind, datasets, entries):
    dataset, folder = datasets[kind[0]], entries[kind]
    with zipfile.ZipFile(f"{folder}.zip") as packed:
        for frame, name in zip(dataset, format_of(dataset, kind[1], "test").points):
            content = packed.read(name)
            assert content == (folder / name).read_bytes()
            if kind[0] == "semantickitti":
                assert [SEMANTIC_KITTI.raw[raw] for raw in np.frombuffer(content, "<u4") & 0xFFFF] == frame.semantic.tolist()
            elif kind[1]:
                assert (np.load(BytesIO(content))["data"] // 1000).tolist() == frame.semantic.tolist()
            else:
                assert np.frombuffer(content, np.uint8).tolist() == frame.semantic.tolist()


def changed(folder, name, change):
    path = folder / name
    if name.endswith(".npz"):
        np.savez_compressed(path, **change(np.load(path)["data"]))
    else:
        path.write_bytes(change(path.read_bytes()))


def first(values, value, count=3):
    new = values.copy()
    new[:count] = value
    return new


ANY = {  # fault -> what is done to a folder (its files in order), what the check must say; {0} is the first file
    "a scan is missing": (lambda folder, names: (folder / names[0]).unlink(), "1 file missing"),
    "a file too many": (lambda folder, names: (folder / names[0]).with_name("more.label").write_bytes(b""), "1 file too many: more.label"),
    "a file at the top": (lambda folder, names: (folder / "notes.md").write_text("x"), "at the top: 1 file too many: notes.md"),
    "a folder is missing": (lambda folder, names: shutil.rmtree((folder / names[-1]).parent), "the folder is missing"),
    "all in one folder": (lambda folder, names: [shutil.move(path, folder / "entry" / path.name) for path in [*folder.iterdir()] if (folder / "entry").mkdir(exist_ok=True) is None], "everything lies in entry/"),
}
BYTES = {
    "one point short": (lambda folder, names: changed(folder, names[0], lambda content: content[:-1]), "{0}: "),
    "empty": (lambda folder, names: changed(folder, names[0], lambda content: b""), "{0}: 0 bytes"),
    "of another width": (lambda folder, names: changed(folder, names[0], lambda content: content * 2), "{0}: "),
}
KITTI = {
    "class ids": (lambda folder, names: changed(folder, names[0], lambda c: first(np.frombuffer(c, "<u4"), 9).tobytes()), "{0}: ids that SemanticKITTI does not have: 9"),
    "not in the configuration": (lambda folder, names: changed(folder, names[0], lambda c: first(np.frombuffer(c, "<u4"), 260).tobytes()), "does not have: 260"),
    "unlabelled": (lambda folder, names: changed(folder, names[0], lambda c: first(np.frombuffer(c, "<u4"), 0).tobytes()), "{0}: ids that stand for no class, and are scored as wrong: 0$"),
    "an id of class 0": (lambda folder, names: changed(folder, names[0], lambda c: first(np.frombuffer(c, "<u4"), [1, 52, 99]).tobytes()), "{0}: ids that stand for no class, and are scored as wrong: 1, 52, 99$"),
}
JSON = {
    "no submission.json": (lambda folder, names: (folder / "test/submission.json").unlink(), "test: the folder is missing|test: 1 file missing: submission.json"),
    "no JSON": (lambda folder, names: (folder / "test/submission.json").write_text("{"), "test/submission.json: no JSON"),
    "no meta": (lambda folder, names: (folder / "test/submission.json").write_text("{}"), "test/submission.json: no JSON with an entry meta"),
    "a flag is missing": (lambda folder, names: edit(folder, lambda meta: meta.pop("use_map")), "use_map is missing"),
    "a flag too many": (lambda folder, names: edit(folder, lambda meta: meta.update(use_sonar=False)), "use_sonar is unknown"),
    "a flag in words": (lambda folder, names: edit(folder, lambda meta: meta.update(use_map="no")), "use_map is 'no', not true or false"),
}
LIDARSEG = {
    "class 0": (lambda folder, names: changed(folder, names[0], lambda c: first(np.frombuffer(c, np.uint8), 0).tobytes()), "{0}: 3 points are of class 0"),
    "a category": (lambda folder, names: changed(folder, names[0], lambda c: first(np.frombuffer(c, np.uint8), 24).tobytes()), "{0}: class ids up to 24"),
}
PANOPTIC = {
    "no task": (lambda folder, names: edit(folder, lambda meta: meta.pop("task")), "task is missing"),
    "another task": (lambda folder, names: edit(folder, lambda meta: meta.update(task="detection")), "task is 'detection'"),
    "no archive": (lambda folder, names: (folder / names[0]).write_bytes(b"data"), "{0}: no .npz with an entry data"),
    "another entry": (lambda folder, names: changed(folder, names[0], lambda values: {"labels": values}), "{0}: no .npz with an entry data"),
    "int32": (lambda folder, names: changed(folder, names[0], lambda values: {"data": values.astype(np.int32)}), "{0}: int32 of shape"),
    "one point short": (lambda folder, names: changed(folder, names[0], lambda values: {"data": values[1:]}), r"{0}: \d+ labels for \d+ points"),
    "a category": (lambda folder, names: changed(folder, names[0], lambda values: {"data": first(values, 24000)}), "{0}: class ids up to 24"),
    "a thing without instance": (lambda folder, names: changed(folder, names[0], lambda values: {"data": first(values, 4000)}), "{0}: 3 points of things have instance 0"),
    "stuff with instance": (lambda folder, names: changed(folder, names[0], lambda values: {"data": first(values, 11001)}), "{0}: 3 points that are of no thing have an instance"),
}
PLANTED = {
    KINDS[0]: ANY | BYTES | KITTI, KINDS[1]: ANY | BYTES | KITTI, KINDS[2]: ANY | BYTES | JSON | LIDARSEG, KINDS[3]: ANY | JSON | PANOPTIC,
}  # fmt: skip


def edit(folder, change):
    path = folder / "test/submission.json"
    content = json.loads(path.read_text())
    change(content["meta"])
    path.write_text(json.dumps(content))


def zipped(folder):
    """Of all that is in it, with entries for the folders."""
    return Path(shutil.make_archive(str(folder), "zip", folder))


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_every_planted_fault_is_found_and_nothing_else(kind, datasets, entries, tmp_path):
    dataset, names = datasets[kind[0]], list(format_of(datasets[kind[0]], kind[1], "test").points)
    for path in (entries[kind], Path(f"{entries[kind]}.zip"), zipped(shutil.copytree(entries[kind], tmp_path / "whole"))):
        assert check_submission(path, dataset, kind[1], whole=False) == []
    for number, (fault, (plant, expected)) in enumerate(PLANTED[kind].items()):
        folder = shutil.copytree(entries[kind], tmp_path / str(number))
        plant(folder, names)
        expected = expected.replace("{0}", re.escape(names[0]))
        for path in (folder, zipped(folder)):
            lines = check_submission(path, dataset, kind[1], whole=False)
            assert len(lines) == 1 and re.search(expected, lines[0]) and "\n" not in lines[0], (fault, path.suffix, lines)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_an_interrupted_submission_goes_on_with_the_same_network_and_with_no_other(kind, datasets, tmp_path):
    dataset, network, asked = datasets[kind[0]], torch.nn.Linear(2, 2), []

    def predict(frame, more=0):  # `more`: rounding finds an object more, and all that follow get another number
        asked.append(frame.id)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return (frame.semantic, frame.instance + more) if kind[1] else frame.semantic

    write = lambda network=network, predict=predict, **more: write_submission(tmp_path / "entry", dataset, predict, network, **({"settings": "1 view", "panoptic": kind[1]} | more))
    with pytest.raises(KeyboardInterrupt):
        write()
    for change in (dict(network=torch.nn.Linear(2, 2)), dict(settings="12 views")):
        with pytest.raises(BadData, match="another network, or were made in another way"):
            write(**change)
    note = tmp_path / "entry.json"
    known = note.read_text()
    for damage in ("{", "[1]", "3"):
        note.write_text(damage)
        with pytest.raises(BadData, match="does not say what the predictions beside it come from"):
            write()
    note.write_text(known)
    assert asked == list(dataset.ids)[:2]
    packed = write(predict=lambda frame: predict(frame, 1))
    assert asked == [*dataset.ids[:2], *dataset.ids[1:]]  # what is done is not made again, nor looked at
    layout = format_of(dataset, kind[1], "test")
    assert {name for name in zipfile.ZipFile(packed).namelist() if not name.endswith("/")} == {*layout.points, *layout.beside}
    for path in (packed, tmp_path / "entry"):
        assert check_submission(path, dataset, kind[1], whole=False) == []
    shutil.rmtree(tmp_path / "entry")  # an empty folder belongs to nobody
    write(network=torch.nn.Linear(2, 2))


def test_class_0_is_refused_where_the_rules_do(datasets, tmp_path):
    "Panoptic nuScenes takes points of no class, as the example in its rules has one."
    for (name, panoptic), taken in zip(KINDS, (False, False, False, True)):
        blank = lambda frame: (first(frame.semantic, 0), frame.instance) if panoptic else first(frame.semantic, 0)
        write = lambda: write_submission(tmp_path / f"{name}{panoptic}", datasets[name], blank, nobody, panoptic=panoptic)
        if taken:
            assert check_submission(write(), datasets[name], panoptic, whole=False) == []
        else:
            with pytest.raises(ValueError, match="3 points are of class 0"):
                write()


def test_faults_of_archives(datasets, entries, tmp_path):
    kitti, folder = datasets["semantickitti"], entries[KINDS[0]]
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]

    def pack(name, again=(), entries=()):
        with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / name, "w") as packed:
            warnings.simplefilter("ignore")
            for entry in entries:
                packed.writestr(entry, b"")
            for path in (*files, *again):
                packed.write(path, path.relative_to(folder))
        return check_submission(tmp_path / name, kitti, whole=False)

    every = ("sequences/", *(f"sequences/{n}/{end}" for n in (11, 12) for end in ("", "predictions/")))
    assert pack("whole.zip", entries=every) == []
    assert sorted(line.split(":")[0] for line in pack("flat.zip")) == sorted(every)  # the official check wants them
    assert [line for line in pack("twice.zip", files[:1], every)] == [f"{files[0].relative_to(folder)}: it is in the archive twice"]
    assert pack("whole.tar", entries=every) == ["whole.tar: the name must end with .zip"]
    damaged = bytearray((tmp_path / "whole.zip").read_bytes())
    with zipfile.ZipFile(tmp_path / "whole.zip") as packed:
        info = packed.infolist()[-1]
    damaged[info.header_offset + 30 + len(info.filename) + 5] ^= 0xFF
    (tmp_path / "damaged.zip").write_bytes(damaged)
    (line,) = check_submission(tmp_path / "damaged.zip", kitti, whole=False)
    assert line.startswith(f"{info.filename}: it cannot be read")
    for content in (b"", b"PK\x03\x04 no more"):
        (tmp_path / "broken.zip").write_bytes(content)
        (line,) = check_submission(tmp_path / "broken.zip", kitti, whole=False)
        assert "neither a folder nor an archive" in line
    (line,) = check_submission(tmp_path / "nowhere", kitti, whole=False)
    assert "neither a folder nor an archive" in line


def test_a_part_of_the_benchmark_is_told(datasets, entries):
    lines = check_submission(entries[KINDS[0]], datasets["semantickitti"])
    assert "sequences/11/predictions: of its 921 scans 2 are in the dataset here, only these can be checked" in lines
    assert [line for line in lines if "the folder is missing" in line] == [f"sequences/{n}: the folder is missing" for n in range(13, 22)]
    (line,) = check_submission(entries[KINDS[2]], datasets["nuscenes"])
    assert "of its 6008 scans 3 are in the dataset here" in line
    with pytest.raises(ValueError, match="open the dataset with split='val'"):
        check_submission(entries[KINDS[0]], datasets["semantickitti"], part="val")


def test_many_faulty_files_end_the_check(datasets, entries, tmp_path):
    folder, kitti = shutil.copytree(entries[KINDS[0]], tmp_path / "entry"), datasets["semantickitti"]
    for path in folder.rglob("*.label"):
        path.write_bytes(b"")
    assert len(check_submission(folder, kitti, whole=False)) == 3
    assert check_submission(folder, kitti, whole=False, most=2)[-1] == "the check ended after 2 files with faults"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the SemanticKITTI sample at {DATA} (set XMODAL_DATA to the folder above it)")
def test_a_real_scan_there_and_back(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = SemanticKitti(DATA, cameras=())
    part = "train" if dataset.ids[0][:2] in SemanticKitti.splits["train"] else "val"
    predict = lambda frame: np.where(frame.semantic > 0, frame.semantic, 1)
    packed = write_submission(tmp_path / "entry", dataset, predict, nobody, part=part)
    assert check_submission(packed, dataset, part=part, whole=False) == []
    frame, name = dataset[0], next(iter(format_of(dataset, False, part).points))
    raw = np.frombuffer(zipfile.ZipFile(packed).read(name), "<u4")
    known = frame.semantic > 0
    assert known.any() and (np.array([SEMANTIC_KITTI.raw[i] for i in raw])[known] == frame.semantic[known]).all()
