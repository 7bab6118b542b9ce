"""Panoptic quality against code that shares nothing with it, and the baseline from end to end."""

import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from xmodal.batch import Voxels
from xmodal.data.class_maps import NUSCENES, SEMANTIC_KITTI
from xmodal.data.nuscenes import NuScenes
from xmodal.data.nuscenes_write import write_nuscenes
from xmodal.data.semantickitti import SemanticKitti
from xmodal.data.semantickitti_write import write_semantickitti
from xmodal.data.street import Street
from xmodal.evaluation.metrics import confusion_matrix
from xmodal.evaluation.panoptic import (
    Panoptic, PanopticNetwork, PanopticSettings, PanopticViews, collate_panoptic, evaluate_panoptic, group, instance_offsets, load_panoptic, objects_of,
    panoptic_quality, panoptic_table, points_only, predict_panoptic,
)  # fmt: skip
from xmodal.evaluation.panoptic_metrics import match_segments, panoptic_counts, panoptic_figure, panoptic_report, panoptic_scores, thing_ids
from xmodal.frame import BadData, Frame
from xmodal.pretrain import build, method_class, recipes
from xmodal.training.checkpoint import load
from xmodal.training.fit import Machine, Optimisation

# metrics


def counts_of(truth, truth_instance, predicted, predicted_instance, classes=4, things=(2, 3), min_points=1):
    return panoptic_counts(match_segments(truth, truth_instance, predicted, predicted_instance, classes, things), classes, min_points)


def by_sets(truth, truth_instance, predicted, predicted_instance, classes=4, things=(2, 3), min_points=1):
    "Sets of points, each with each: tp, sum of IoU, fp, fn."
    known = [i for i in range(len(truth)) if truth[i] != 0]
    found = np.zeros((classes, 4))
    for label in range(1, classes):
        sides = []
        for semantic, instance in ((truth, truth_instance), (predicted, predicted_instance)):
            objects = {}
            for i in known:
                if semantic[i] == label:
                    objects.setdefault(int(instance[i]) if label in things else "all", set()).add(i)
            sides.append(list(objects.values()))
        taken = set()
        for a in sides[0]:
            partner = [j for j, b in enumerate(sides[1]) if 2 * len(a & b) > len(a | b)]
            assert len(partner) <= 1
            if partner:
                b = sides[1][partner[0]]
                found[label, :2] += 1, len(a & b) / len(a | b)
                taken.add(partner[0])
            elif len(a) >= min_points:
                found[label, 3] += 1
        found[label, 2] = sum(len(b) >= min_points for j, b in enumerate(sides[1]) if j not in taken)
    return found


@pytest.mark.parametrize("seed", range(60))
def test_counts_agree_with_sets_of_points(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 250))
    truth, instance = rng.integers(0, 4, n), rng.integers(0, 5, n) * int(rng.integers(1, 2**29))
    kept = rng.random(n) < rng.random()
    arrays = truth, instance, np.where(kept, truth, rng.integers(0, 4, n)), np.where(kept, instance // 3, rng.integers(0, 5, n))
    min_points = int(rng.integers(1, 15))
    ours, theirs = counts_of(*arrays, min_points=min_points), by_sets(*arrays, min_points=min_points)
    assert np.abs(ours[:, :4] - theirs).max() < 1e-12
    # and the numbers made of them, by the formula of the paper
    scores = panoptic_scores(ours, confusion_matrix(truth, arrays[2], 4), ("unlabelled", "road", "car", "person"), (2, 3))
    for i, name in enumerate(("unlabelled", "road", "car", "person")):
        if name in scores["classes"]:
            tp, iou, fp, fn = theirs[i]
            assert abs(scores["classes"][name]["pq"] - iou / (tp + fp / 2 + fn / 2)) < 1e-12
            assert abs(scores["classes"][name]["pq"] - scores["classes"][name]["sq"] * scores["classes"][name]["rq"]) < 1e-12


def test_the_example_of_the_paper():
    "Persons as in figure 2 of Kirillov et al.: of three true ones two are found, one of them joined with the third; and a dog that is called a person."
    repeat = lambda *runs: np.repeat([v for v, _ in runs], [n for _, n in runs])
    names = ("ignored", "grass", "sky", "person", "dog")
    truth = repeat((0, 50), (1, 50), (2, 50), (4, 50), (3, 300)), repeat((0, 150), (22, 50), (33, 150), (42, 50), (11, 100))
    guess = repeat((0, 50), (1, 40), (2, 10), (2, 40), (1, 10), (3, 50), (3, 300)), repeat((0, 150), (35, 50), (8, 200), (95, 100))
    counts = counts_of(*truth, *guess, classes=5, things=(3, 4))
    scores = panoptic_scores(counts, confusion_matrix(truth[0], guess[0], 5), names, (3, 4))
    # grass and sky: 40 of 60 in common; persons: IoU 150 / 200 and 1, one false positive (the dog) and one false negative
    assert scores["classes"]["grass"]["pq"] == scores["classes"]["sky"]["pq"] == 2 / 3
    person = scores["classes"]["person"]
    assert person["sq"] == 0.875 and person["rq"] == 2 / 3 and abs(person["pq"] - 0.875 * 2 / 3) < 1e-15 and scores["classes"]["dog"]["pq"] == 0
    assert abs(scores["pq"] - 0.47916666666666663) < 1e-12 and abs(scores["sq"] - 0.5520833333333333) < 1e-12 and abs(scores["rq"] - 2 / 3) < 1e-12
    assert abs(scores["miou"] - 0.5476190476190476) < 1e-12


def test_edges():
    ten = np.full(10, 2)
    halves = np.repeat([1, 2], 5)
    assert counts_of(ten, ten, ten, halves)[2].tolist() == [0, 0, 2, 1, 1]  # exactly one half is no match
    assert counts_of(ten, halves, ten, ten)[2].tolist() == [0, 0, 1, 2, 2]  # two merged
    assert counts_of(ten, ten, ten, halves, min_points=6)[2].tolist() == [0, 0, 0, 1, 1]
    assert counts_of(ten, ten, ten, halves, min_points=11)[2].tolist() == [0, 0, 0, 0, 0]
    assert not counts_of(0 * ten, ten, ten, halves).any() and not counts_of(*[ten[:0]] * 4).any()
    assert counts_of(ten, 0 * ten, ten, 0 * ten)[2].tolist() == [1, 1, 0, 0, 1]  # a thing without an instance is one segment
    assert counts_of(ten - 1, halves, ten - 1, ten)[1].tolist() == [1, 1, 0, 0, 1]  # the instances of stuff are not looked at
    both = np.repeat([2, 3], 5)  # one number for two objects of different classes
    assert counts_of(both, ten, both, ten)[2:, 0].tolist() == [1, 1]
    far = np.array([0, 2**32 - 1] * 5)
    assert counts_of(ten, far, ten, far)[2].tolist() == [2, 2, 0, 0, 2]


def test_frames_add_up(monkeypatch):
    "Counts are summed over the frames before anything is divided."
    rng = np.random.default_rng(0)
    labels = [[rng.integers(0, 4, n) for _ in range(4)] for n in (60, 15, 40)]
    for truth, truth_instance, predicted, predicted_instance in labels:
        known = rng.random(len(truth)) < 0.8
        predicted[known], predicted_instance[known] = truth[known], truth_instance[known]
    frames = [Frame(str(i), np.zeros((len(of[0]), 3), np.float32), np.zeros(len(of[0]), np.float32), semantic=of[0], instance=of[1]) for i, of in enumerate(labels)]
    answers = {frame.id: Panoptic(*of[2:], np.zeros((len(of[0]), 3))) for frame, of in zip(frames, labels)}
    monkeypatch.setattr("xmodal.evaluation.panoptic.predict_panoptic", lambda network, frame: answers[frame.id])
    network = SimpleNamespace(classes=("unlabelled", "road", "car", "person"), things=(2, 3), settings=PanopticSettings(min_points=3))
    result = panoptic_quality(network, frames)
    each = [by_sets(*of, min_points=3) for of in labels]
    assert np.allclose(np.array(result["counts"])[:, :4], sum(each), atol=1e-12)
    quality = lambda counts: counts[1:, 1] / (counts[1:, 0] + counts[1:, 2:].sum(1) / 2)
    assert abs(result["pq"] - quality(sum(each)).mean()) < 1e-12
    assert abs(result["pq"] - np.mean([quality(counts) for counts in each])) > 1e-3  # the mean over frames is another number
    confusion = np.zeros((4, 4), int)
    for truth, _, predicted, _ in labels:
        for t, p in zip(truth, predicted):
            confusion[t, p] += t > 0
    assert result["confusion"] == confusion.tolist()


def test_what_does_not_occur_is_none_and_survives_json():
    road = [np.ones(5, int)] * 4
    scores = panoptic_scores(counts_of(*road), confusion_matrix(road[0], road[0], 4), ("unlabelled", "road", "car", "person"), (2, 3))
    nothing = panoptic_scores(np.zeros((4, 5)), np.zeros((4, 4), int), ("unlabelled", "road", "car", "person"), (2, 3))
    assert scores["pq"] == 1 and scores["things"] == {"pq": None, "sq": None, "rq": None} and nothing["pq"] is nothing["miou"] is None
    for some in (scores, nothing):
        assert json.loads(json.dumps(some, allow_nan=False)) == some
    assert "nan" not in panoptic_report(nothing).lower() and "None" not in panoptic_report(nothing)
    assert "things -, stuff 100.0" in " ".join(text.get_text() for text in panoptic_figure(scores, ("car", "person")).axes[0].texts)
    keys = dict.fromkeys(("settings", "classes", "train", "test", "total"))
    assert panoptic_table({"one": [keys | {"metrics": scores}]})[1][2:] == ["100.0", "100.0", "100.0", "100.0", "-", "100.0", "100.0"]
    assert panoptic_table({"two": [keys | {"metrics": scores}] * 2})[1][5:7] == ["100.0 ± 0.0", "-"]


def test_wrong_labels_are_named():
    a = np.ones(4, int)
    for arrays, message in (
        ((a, a, a[:3], a), r"shapes \(4,\), \(4,\), \(3,\), \(4,\)"),
        ((a * 4, a, a, a), "class ids go from 4 to 4, expected 0 to 3"),
        ((a, -a, a, a), "instance ids go from -1 to -1"),
        ((a, a, a, a * 2**32), "instance ids"),
        ((a[None], a[None], a[None], a[None]), "shapes"),
    ):
        with pytest.raises(ValueError, match=message):
            match_segments(*arrays, 4, (2, 3))
    with pytest.raises(ValueError, match="3 names, counts of 4 classes"):
        panoptic_scores(np.zeros((4, 5)), np.zeros((4, 4), int), ("a", "b", "c"), (1,))
    with pytest.raises(ValueError, match="which of these classes are things"):
        thing_ids(("unlabelled", "sheep", "meadow"))
    with pytest.raises(ValueError, match="which of these classes are things.*bus"):  # all of the street's, and one more
        thing_ids((*Street(1).classes, "bus"))
    assert thing_ids(("unlabelled", "sheep", "meadow"), ("sheep",)) == (1,)
    assert thing_ids(SEMANTIC_KITTI.names) == tuple(range(1, 9)) and thing_ids(NUSCENES.names) == tuple(range(1, 11))


def test_report_and_figure_name_every_class():
    arrays = [np.repeat([1, 2, 3], 20)] * 4
    scores = panoptic_scores(counts_of(*arrays), confusion_matrix(arrays[0], arrays[0], 4), ("unlabelled", "road", "car", "person"), (2, 3))
    report = panoptic_report(scores)
    assert report.count("100.0") >= 3 * 4 + 2 * 3 + 4 + 1 and "left out" not in report
    texts = [text.get_text() for ax in panoptic_figure(scores, ("car", "person")).axes for text in ax.get_yticklabels()]
    assert texts == ["car", "person", "road"]
    with pytest.raises(ValueError, match="nothing to draw"):
        panoptic_figure(panoptic_scores(np.zeros((2, 5)), np.zeros((2, 2), int), ("unlabelled", "road"), ()), ())


# objects


def test_points_of_one_object_are_never_torn_by_true_offsets():
    rng = np.random.default_rng(3)
    semantic, instance = rng.integers(0, 4, 4000), rng.integers(0, 6, 4000)
    centre = rng.uniform(-40, 40, (4, 6, 3))
    points = (centre[semantic, instance] + rng.normal(0, 0.8, (4000, 3))).astype(np.float32)
    offset, member = instance_offsets(points, semantic, instance, (2, 3))
    assert (member == ((semantic >= 2) & (instance > 0))).all() and not offset[~member].any()
    assert not instance_offsets(points, semantic, 0 * instance, (2, 3))[1].any()
    known = np.where(member | (semantic < 2), semantic, 0)
    answer = objects_of(points, known, offset, (2, 3), PanopticSettings())
    assert counts_of(known, instance, *answer, things=(2, 3))[2:, 2:4].sum() == 0


def test_every_thing_point_has_an_object_and_every_object_one_class():
    rng = np.random.default_rng(1)
    points, semantic = rng.uniform(-10, 10, (3000, 3)), rng.integers(1, 4, 3000)
    classes, instance = objects_of(points, semantic, np.zeros((3000, 3)), (2, 3), PanopticSettings())
    assert ((instance > 0) == (semantic >= 2)).all() and (classes[semantic == 1] == 1).all()
    for number in np.unique(instance[instance > 0]):
        mine = instance == number
        assert len(set(classes[mine])) == 1 and (semantic[mine] == classes[mine][0]).mean() >= 0.5
    nothing = objects_of(points[:0], semantic[:0], points[:0], (2, 3), PanopticSettings())
    assert all(len(part) == 0 for part in nothing)


def test_groups_agree_with_a_dbscan_of_loops():
    rng = np.random.default_rng(5)
    points = np.unique(rng.integers(0, 25, (120, 3)) * [1, 1, 0], axis=0) * 0.35 + 0.01  # each has a cell of its own
    near = np.linalg.norm(points[:, None] - points, axis=2) <= 0.6
    core = near.sum(1) >= 4
    label = np.arange(len(points))
    for _ in range(len(points)):
        for i in np.flatnonzero(core):
            label[near[i] & core] = label[near[i] & core].min()
    ours = group(points, 0.6, 4)
    assert ((ours[core][:, None] == ours[core]) == (label[core][:, None] == label[core])).all()
    lonely = ~core & ~(near & core).any(1)
    assert lonely.any() and not np.isin(ours[lonely], ours[~lonely]).any()


# the baseline


class Kept(list):
    "Frames rendered once."

    name, classes = "street", Street(1).classes
    ids = property(lambda self: [frame.id for frame in self])


@pytest.fixture(scope="module")
def street():
    world = Street(6, cameras=1, size=(16, 16), samples=1, beams=16, frames_per_drive=6)
    thinned = lambda frame: {name: getattr(frame, name)[::3] for name in ("points", "intensity", "semantic", "instance")}
    return Kept(replace(world[i], cameras=[], **thinned(world[i])) for i in range(len(world)))


def tiny(seed: int = 0, name: str = "ppkt") -> nn.Module:
    recipe = recipes(name)["small"]()
    recipe.network = {"planes": (8, 8, 8, 8, 8, 8, 8, 8)}
    return build(name, recipe, seed)


SHORT = PanopticSettings(min_points=15, optimisation=Optimisation("adamw", lr=5e-3, epochs=2, batch_size=1, per_epoch=False))


def test_a_stopped_run_ends_like_one_that_was_not(street, tmp_path, monkeypatch):
    train, test = Kept(street[:3]), Kept(street[3:5])
    run = lambda name, **more: evaluate_panoptic(tiny(), train, test, tmp_path / name, SHORT, **more)
    whole = run("whole")
    assert whole["step"] == whole["total"] == 6 and 0 <= whole["metrics"]["pq"] <= 1 and json.loads((tmp_path / "whole/results.json").read_text()) == whole

    seen, loss = [], PanopticNetwork.loss

    def interrupted(self, *arguments):
        seen.append(None)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, *arguments)

    with monkeypatch.context() as patch:  # Ctrl-C in the second step, then two steps, then the rest
        patch.setattr(PanopticNetwork, "loss", interrupted)
        assert run("parts")["step"] == 2
    assert run("parts", stop_after=2)["metrics"] is None
    parts = run("parts")
    assert parts["metrics"] == whole["metrics"]
    ours, theirs = (load(tmp_path / name / "last.safetensors")[0] for name in ("whole", "parts"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)

    assert run("whole") == whole  # only read
    with pytest.raises(BadData, match="it is of another run: seed was 0, is 1"):
        run("whole", seed=1)
    with pytest.raises(BadData, match="another run: weights was"):
        evaluate_panoptic(tiny(1), train, test, tmp_path / "whole", SHORT)

    network = load_panoptic(whole["checkpoint"])
    assert network.settings == SHORT
    wider = evaluate_panoptic(tiny(), train, test, tmp_path / "whole", replace(SHORT, radius=3.0))  # measured again, not trained again
    assert wider["step"] == 6 and all(torch.equal(ours[key], value) for key, value in load(tmp_path / "whole/last.safetensors")[0].items())
    assert load_panoptic(whole["checkpoint"]).settings.radius == 3.0
    assert not network.training and panoptic_quality(network, test)["counts"] == whole["metrics"]["counts"]
    answer = predict_panoptic(network, test[0])
    assert len(answer.semantic) == len(answer.instance) == len(answer.offset) == len(test[0].points)
    assert answer.semantic.min() >= 1 and ((answer.instance > 0) == np.isin(answer.semantic, network.things)).all()
    assert panoptic_table({"tiny": [whole]})[1][:2] == ["tiny", "1"]

    written, told = tmp_path / "whole/results.json", json.dumps(wider)
    (tmp_path / "whole/last.safetensors").unlink()
    with pytest.raises(BadData, match="another run: seed"):  # also without its checkpoint nothing is written over
        run("whole", seed=1)
    written.write_text(told[:-9])
    with pytest.raises(BadData, match="no results of a run .JSONDecodeError"):
        run("whole")


def test_a_network_learns_classes_and_offsets(street):
    torch.manual_seed(0)
    network = PanopticNetwork(tiny(), street.classes, SHORT).train()
    views, rng = PanopticViews(network.method), np.random.default_rng(0)
    batch = collate_panoptic([views(street[3], rng)], Voxels(0.4), network.things)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-2)
    values = []
    for _ in range(25):
        loss, parts = network.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(parts)
    assert values[-1]["offset"] < 0.6 * values[0]["offset"] and values[-1]["cross_entropy"] < 0.5 * values[0]["cross_entropy"]
    assert values[-1]["lovasz"] < values[0]["lovasz"] and values[-1]["accuracy"] > 0.7


@pytest.mark.parametrize("layout", ["semantickitti", "nuscenes"])
def test_recordings_in_the_benchmarks_layouts_can_be_measured(layout, tmp_path):
    "The street, written and read again: true classes and offsets give the true objects."
    world = Street(2, cameras=1, size=(32, 64), samples=1, beams=16, frames_per_drive=2)
    if layout == "semantickitti":
        read = SemanticKitti(write_semantickitti(world, tmp_path / "data", progress=False), cameras=())
    else:
        read = NuScenes(write_nuscenes(world, tmp_path / "data", progress=False), cache=tmp_path / "cache")
    for frame in read:
        things = thing_ids(read.classes)
        assert set(frame.semantic[frame.instance > 0]) <= set(things)
        offset, _ = instance_offsets(frame.points, frame.semantic, frame.instance, things)
        answer = objects_of(frame.points, frame.semantic, offset, things, SHORT)
        counts = counts_of(frame.semantic, frame.instance, *answer, len(read.classes), things, 15)
        assert counts[:, 0].sum() >= 10 and counts[:, 2:4].sum() == 0 and np.allclose(counts[:, 1], counts[:, 0])


def test_rows_stay_in_order_under_rotation_and_flips(street):
    frame = street[0]
    view, instance = PanopticViews(None)(frame, np.random.default_rng(7))
    batch = collate_panoptic([(view, instance)], Voxels(0.2), (1, 2, 3, 4))
    assert (view.index == np.arange(len(frame.points))).all() and (instance == frame.instance).all() and (batch.semantic.numpy() == frame.semantic).all()
    assert np.allclose(np.linalg.norm(view.points, axis=1), np.linalg.norm(frame.points, axis=1), atol=1e-4)
    moved = (batch.points + batch.offset)[batch.member].numpy()
    for number in np.unique(instance[batch.member.numpy()]):
        mine = view.points[(instance == number) & batch.member.numpy()]
        assert np.allclose(moved[instance[batch.member.numpy()] == number], (mine.min(0) + mine.max(0)) / 2, atol=1e-4)


@pytest.mark.parametrize("name", ["slidr", "pointcontrast", "depthcontrast", "scalr", "nclr"])
def test_any_point_network_can_carry_the_heads(name, street):
    recipe = recipes(name)["small"]()
    if name in ("slidr", "pointcontrast", "nclr"):
        recipe.network = {"planes": (8, 8, 8, 8, 8, 8, 8, 8)}
    method = build(name, recipe, pretrained=False) if name != "depthcontrast" else method_class(name)[0].from_recipe(recipe, pretrained=False)
    small, width = points_only(method)
    assert not hasattr(small, "image") or small.image is None
    network = PanopticNetwork(method, street.classes, SHORT).train()
    loss, _ = network.loss(collate_panoptic([PanopticViews(method)(street[0], np.random.default_rng(0))], method.recipe.voxels, network.things))
    loss.backward()
    assert network.semantic.in_features == width and all((p.grad is not None) == p.requires_grad for p in network.parameters())


def test_what_cannot_be_learnt_from_is_named(street, tmp_path):
    train, test = Kept(street[:2]), Kept(street[2:3])
    bare = Kept(replace(frame, instance=None) for frame in train)
    with pytest.raises(BadData, match="its points have no instance labels.*SemanticKITTI"):
        evaluate_panoptic(tiny(), bare, test, tmp_path / "a", SHORT)
    with pytest.raises(BadData, match="no semantic and no instance"):
        evaluate_panoptic(tiny(), train, Kept(replace(frame, instance=None, semantic=None) for frame in test), tmp_path / "b", SHORT)
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    with pytest.raises(ValueError, match="1 frames are in the training and in the test set"):
        evaluate_panoptic(tiny(), train, Kept(street[1:3]), tmp_path / "c", SHORT)
    other = Kept(street[2:3])
    other.classes = ("unlabelled", "car")
    with pytest.raises(ValueError, match="classes to train on and to test on differ"):
        evaluate_panoptic(tiny(), train, other, tmp_path / "d", SHORT)
    with pytest.raises(BadData, match="no such checkpoint"):
        evaluate_panoptic(tmp_path / "none.safetensors", train, test, tmp_path / "e", SHORT)
    wrong = replace(train[0], instance=train[0].instance[:-1])
    with pytest.raises(BadData, match=r"instance has shape \(\d+,\) for \d+ points"):
        PanopticViews(None)(wrong, np.random.default_rng(0))
    with pytest.raises(ValueError, match="radius = 0"):
        PanopticSettings(radius=0)
    with pytest.raises(ValueError, match="no such class: tram"):
        PanopticNetwork(tiny(), street.classes, PanopticSettings(things=("tram",)))
    colour = method_class("depthcontrast")[1].small()
    colour.inputs = "colour"
    with pytest.raises(ValueError, match="colours its points from images"):
        points_only(method_class("depthcontrast")[0].from_recipe(colour, pretrained=False))


def test_a_scan_without_labels_is_skipped_and_told(street, tmp_path, capsys):
    train = Kept([street[0], replace(street[1], semantic=0 * street[1].semantic)])
    once = replace(SHORT, optimisation=replace(SHORT.optimisation, epochs=1))
    result = evaluate_panoptic(tiny(), train, Kept(street[2:3]), tmp_path, once, machine=Machine(log_every=1))
    assert result["skipped"] == 1 and result["step"] == 2 and "none of its points is labelled" in capsys.readouterr().out


def test_a_scan_without_objects_has_a_loss(street):
    network = PanopticNetwork(tiny(), street.classes, SHORT).train()
    flat = replace(street[0], semantic=np.full_like(street[0].semantic, 5), instance=0 * street[0].instance)
    loss, values = network.loss(collate_panoptic([PanopticViews(None)(flat, np.random.default_rng(0))], Voxels(0.4), network.things))
    loss.backward()
    assert values["offset"] == 0 and torch.isfinite(loss)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    from xmodal.training.checkpoint import save

    save(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {"method": "ppkt"})
    with pytest.raises(BadData, match="it is of 'ppkt', not of a panoptic network"):
        load_panoptic(tmp_path / "x.safetensors")
