"""Learning from labels: what a protocol says is what is done, and what it does not have is refused."""

import base64
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("lightning", reason="training runs on Lightning Fabric")
pytest.importorskip("open3d", reason="the street world is rendered with Open3D")

from xmodal.batch import collate
from xmodal.data.datasets import Remembered, Subset, open_dataset, split
from xmodal.data.kitti_write import write_kitti
from xmodal.data.street import Street
from xmodal.evaluation.depth import Start, compare_depth, evaluate_depth
from xmodal.evaluation.depth_frames import DepthProtocol
from xmodal.evaluation.downstream import TERMS, LabelledView, Segmenter, chosen_frames, finetune, width_of
from xmodal.evaluation.full_points import Voting
from xmodal.evaluation.panoptic import evaluate_panoptic
from xmodal.evaluation.protocols import also, quick_on, slidr
from xmodal.frame import BadData
from xmodal.methods.ppkt import PPKTRecipe
from xmodal.methods.slidr import SLidRRecipe
from xmodal.pretrain import build, digest, marks, pretrain, recipes, seen_before, unseen
from xmodal.training.checkpoint import load, save
from xmodal.training.fit import make_optimizers


def tiny_street(name: str) -> Street:
    return Street(6, 1, cameras=1, size=(64, 208), beams=16, samples=1, frames_per_drive=2, name=name)


def tiny_recipe() -> PPKTRecipe:
    recipe = PPKTRecipe.small()
    recipe.network, recipe.optimisation.epochs = {"planes": (8,) * 8, "stem": 8}, 1
    return recipe


@pytest.fixture(scope="module")
def street() -> Remembered:
    return Remembered(tiny_street("tiny"))


@pytest.fixture(scope="module")
def checkpoint(street, tmp_path_factory):
    "Of the four frames that are not held out."
    return pretrain("ppkt", split(street)[0], tmp_path_factory.mktemp("ppkt"), tiny_recipe()).checkpoint


def segmenter(street, protocol, **options) -> Segmenter:
    method = build("ppkt", tiny_recipe(), pretrained=False)
    return Segmenter(method, width_of(method, street[0]), len(street.classes), protocol, **{"frozen": False} | options)


def test_the_head_learns_at_its_own_rate(street):
    protocol = quick_on("tiny", street.classes)
    network = segmenter(street, replace(slidr, settings=protocol.settings))
    view = LabelledView(network.backbone, [])
    batch = collate([view(street[0], np.random.default_rng(0))], network.voxels)
    optimisation = slidr.recipe("nuscenes", "fine-tuning", 1).optimisation()
    groups = make_optimizers(optimisation, network)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    network.train().loss(batch)[0].backward()
    for _, optimizer in groups:
        optimizer.step()
    moved = {name: (before[name] - value.detach()).norm() / value.grad.norm() for name, value in network.named_parameters() if value.grad is not None and value.grad.norm() > 0}
    assert moved["head.bias"] == pytest.approx(2.0, rel=1e-3)  # SLidR: 2 for the head ...
    others = [float(rate) for name, rate in moved.items() if not name.startswith("head.") and before[name].norm() == 0]  # nothing to decay
    assert others and others == pytest.approx([0.02] * len(others), rel=1e-3)  # ... and 0.02 for the rest, on 1 % of nuScenes
    probe = make_optimizers(slidr.recipe("nuscenes", "linear probe", 100).optimisation(), segmenter(street, slidr, frozen=True))
    assert [len(optimizer.param_groups[0]["params"]) for _, optimizer in probe] == [2]


def test_rare_classes_count_more_where_the_protocol_says_so(street):
    logits, labels = torch.randn(50, 4), torch.arange(50) % 4
    weights = torch.tensor([0.0, 1.0, 2.0, 5.0])
    expected = sum(weights[k] * F.cross_entropy(logits[labels == k], labels[labels == k], reduction="sum") for k in (1, 2, 3))
    expected /= sum(weights[k] * (labels == k).sum() for k in (1, 2, 3))
    assert torch.allclose(TERMS["cross-entropy weighted by class"](logits, labels, weights), expected, atol=1e-5)
    plain = F.cross_entropy(logits[labels > 0], labels[labels > 0])
    assert torch.allclose(TERMS["cross-entropy"](logits, labels, weights), plain, atol=1e-6)


def test_a_run_under_weights_votes_and_voxels(street, checkpoint, tmp_path):
    train, test = split(street)
    protocol = replace(quick_on("tiny", street.classes), name="mine", loss=(("cross-entropy weighted by class", 1.0),), labels="points")
    one = finetune(checkpoint, train, test, tmp_path / "one", protocol, "linear probe", 50)
    many = finetune(checkpoint, train, test, tmp_path / "many", protocol, "linear probe", 50, voting=Voting(2, True))
    assert one["total"] == many["total"] and (one["split"], one["test"]) == (many["split"], many["test"])
    assert (one["protocol"], many["protocol"]) == ("mine", "mine, 4 views") and one["protocol_hash"] != many["protocol_hash"]
    assert one["scores"]["voting"]["views"] == 1 and many["scores"]["voting"]["views"] == 4 and one["scores"]["ece"] != many["scores"]["ece"]
    assert one["values"] == [100 * one["scores"]["miou"]] and set(one["scores"]["iou"]) | set(one["scores"]["absent"]) == set(street.classes[1:])


def test_a_protocol_is_not_run_on_other_labels(checkpoint, tmp_path):
    for name, protocol, percent, words in (("nuscenes", slidr, 1, "7 of the 7 scenes"), ("semantickitti", also, 1, "published list")):
        part = tiny_street(name)
        part.classes = protocol.on(name).classes
        free = replace(protocol, settings=tuple(replace(setting, voxels=None) for setting in protocol.settings))
        with pytest.raises(BadData, match=words):
            finetune(checkpoint, part, part, tmp_path, free, "fine-tuning", percent)
        with pytest.raises(ValueError, match="pre-train with its voxels"):
            finetune(checkpoint, part, part, tmp_path, protocol, "fine-tuning", percent)
    other = tiny_street("tiny")
    other.classes = ("unlabelled", "car", "road")
    with pytest.raises(ValueError, match="other classes"):
        finetune(checkpoint, other, other, tmp_path, quick_on("tiny", Street().classes))
    with pytest.raises(ValueError, match="not defined on tiny"):
        finetune(checkpoint, tiny_street("tiny"), tiny_street("tiny"), tmp_path, slidr)
    with pytest.raises(ValueError, match="no 3 %"):
        finetune(checkpoint, tiny_street("tiny"), tiny_street("tiny"), tmp_path, quick_on("tiny", Street().classes), percent=3)


def test_training_and_test_frames_are_apart(street, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="both"):
        finetune(checkpoint, street, street, tmp_path, quick_on("tiny", street.classes))


def test_semanticposs_is_split_by_its_sequences(checkpoint, tmp_path):
    scans = tiny_street("semanticposs")
    scans.ids = ["00/000000", "01/000000", "02/000000", "03/000000", "04/000000", "05/000000"]
    scans.classes = also.on("semanticposs").classes
    labels, held = chosen_frames(also, scans, scans, 100, None)
    assert held.ids == ("03/000000",) and len(labels.ids) == 5 and held.ids[0] not in labels.ids


@pytest.fixture(scope="module")
def saw_all(street, tmp_path_factory):
    "A checkpoint of a temporal recipe, whose batches are pairs of frames."
    recipe = SLidRRecipe.small()
    recipe.network, recipe.optimisation.epochs, recipe.temporal = {"planes": (8,) * 8}, 1, 0.5
    return pretrain("slidr", street, tmp_path_factory.mktemp("slidr"), recipe).checkpoint


def test_what_was_pretrained_on_is_not_measured_on(saw_all, checkpoint, street, tmp_path):
    "Whatever larger set it was part of then; random weights have seen nothing."
    train, test = split(street)
    protocol = quick_on("tiny", street.classes)
    protocol = replace(protocol, settings=tuple(replace(setting, voxels=None) for setting in protocol.settings))
    card = load(saw_all)[1]
    assert card["data"] == {"dataset": "tiny", "frames": 6, "digest": digest(street)} and seen_before(card, test) == test.ids
    with pytest.raises(ValueError, match="pre-trained on 2 of the 2 test frames"):
        finetune(saw_all, train, test, tmp_path / "a", protocol)
    assert finetune(saw_all, train, test, tmp_path / "a", protocol, random=True, stop_after=1)["step"] == 1
    assert seen_before(load(checkpoint)[1], street) == train.ids
    with pytest.raises(ValueError, match="pre-trained on 1 of the 2 test frames"):
        finetune(checkpoint, Subset(street, [0, 3]), Subset(street, [1, 2]), tmp_path / "b", protocol)
    with pytest.raises(ValueError, match="pre-trained on 2 of the 2 test frames"):
        evaluate_panoptic(saw_all, train, test, tmp_path / "c")
    ours = save(tmp_path / "simipu.safetensors", build("simipu", recipes("simipu")["small"]()).state_dict(), card | {"method": "simipu", "recipe": asdict(recipes("simipu")["small"]())})
    for measure in (lambda: evaluate_depth(ours, train, test, DepthProtocol.laptop(), tmp_path / "d"), lambda: compare_depth({"ours": Start(ours)}, train, test, DepthProtocol.laptop(), tmp_path / "d")):
        with pytest.raises(ValueError, match="pre-trained on 2 of the 2 test frames"):
            measure()
    assert not (tmp_path / "b").exists() and not (tmp_path / "d").exists()


def test_a_card_from_before_it_named_its_frames_is_compared_as_a_whole(checkpoint, street, tmp_path):
    tensors, card = load(checkpoint)
    older = save(tmp_path / "older.safetensors", tensors, {key: value for key, value in card.items() if key != "seen"})
    train, test = split(street)
    with pytest.raises(ValueError, match="pre-trained on 4 of the 4 test frames"):
        finetune(older, test, train, tmp_path / "a", quick_on("tiny", street.classes))
    assert finetune(older, train, test, tmp_path / "b", quick_on("tiny", street.classes), stop_after=1)["step"] == 1


def test_what_is_left_of_a_recording_was_not_seen(checkpoint, tmp_path):
    root = write_kitti(tiny_street("tiny"), tmp_path / "kitti")
    frames, source = open_dataset("kitti", root), {"name": "kitti", "root": str(root)}
    told = lambda part: {"source": source, **of(part)}
    of = lambda part: {"seen": base64.b64encode(b"".join(sorted(marks(part)))).decode(), "data": {"digest": digest(part)}}
    train, test = split(frames)
    assert unseen("x", told(train), "kitti", root)[1].ids == test.ids
    for part in (frames, Subset(frames, [*train.rows, test.rows[0]])):
        with pytest.raises(BadData, match=f"trained on {len(part) - len(train)} of the {len(test)} frames"):
            unseen("x", told(part), "kitti", root)
    with pytest.raises(BadData, match=f"trained on {len(test)} of the {len(test)} frames"):
        unseen("x", {"source": source, "data": {"digest": digest(frames)}}, "kitti", root)  # an older card
    unseen("x", {"source": {"name": "kitti", "root": "/elsewhere"}, **of(frames)}, "kitti", root)


@pytest.mark.parametrize("name", ["depthcontrast", "simipu", "scalr", "nclr"])
def test_every_kind_of_network_learns(name, street):
    method = build(name, recipes(name)["small"](), pretrained=False)
    network = Segmenter(method, width_of(method, street[0]), len(street.classes), quick_on("tiny", street.classes), frozen=False)
    view = LabelledView(method, [])
    loss, values = network.train().loss(collate([view(street[i], np.random.default_rng(0)) for i in (0, 1)], network.voxels))
    loss.backward()
    assert torch.isfinite(loss) and 0 <= values["accuracy"] <= 1
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for key, p in network.named_parameters() if key.startswith("backbone"))
