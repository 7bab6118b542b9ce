"""Depth evaluation from end to end, and against code that shares nothing with it."""

import json
import math
import os
import re
import signal
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from xmodal.data.datasets import Subset
from xmodal.data.kitti_write import write_kitti
from xmodal.data.street import Street
from xmodal.evaluation import depth
from xmodal.evaluation.depth import DepthNetwork, Start, blind_depth, build_of, compare_depth, depth_encoder, depth_scores, depth_table, evaluate_depth, load_depth, predict_depth
from xmodal.evaluation.depth_frames import DepthProtocol, depth_target, eigen_split, training_sample
from xmodal.evaluation.depth_metrics import METRICS, depth_metrics, inner_mask, mean_metrics, sig_loss, valid_pixels
from xmodal.evaluation.kept import weights_digest
from xmodal.evaluation.protocols import PUBLISHED, simipu
from xmodal.experiments import EXPERIMENTS, run
from xmodal.frame import BadData
from xmodal.models.image import ResNet50
from xmodal.pretrain import build, recipes
from xmodal.training.checkpoint import load, save

KITTI = Path(__file__).parents[2] / "shared/data/kitti_raw"


class Kept(list):
    "Frames rendered once."

    name, classes = "street", ()
    ids = property(lambda self: [frame.id for frame in self])


@pytest.fixture(scope="module")
def street():
    world = Street(8, cameras=1, size=(64, 192), samples=1, beams=16)
    return Kept(world[i] for i in range(len(world)))


TINY = replace(DepthProtocol.laptop(), channels=(16, 16, 8, 8, 8), epochs=3, batch_size=2)


def tiny(seed: int = 0) -> ResNet50:
    torch.manual_seed(seed)
    return ResNet50(False, blocks=(1, 1, 1, 1), width=8)


# metrics


@pytest.mark.parametrize("seed", range(5))
def test_metrics_agree_with_a_loop_over_pixels(seed):
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random((31, 47)) < 0.4, rng.uniform(0, 120, (31, 47)), 0).astype(np.float32)
    predicted = rng.uniform(0, 120, truth.shape).astype(np.float32)
    valid = valid_pixels(truth, 1e-3, 80, "garg")
    sums, n = dict.fromkeys(METRICS, 0.0), 0
    mean_log = 0.0
    for row in range(int(0.40810811 * 31), int(0.99189189 * 31)):
        for col in range(int(0.03594771 * 47), int(0.96405229 * 47)):
            t = float(truth[row, col])
            if not 1e-3 < t < 80:
                continue
            p, n = min(max(float(predicted[row, col]), 1e-3), 80.0), n + 1
            for k in (1, 2, 3):
                sums[f"delta{k}"] += max(p / t, t / p) < 1.25**k
            sums["abs_rel"] += abs(p - t) / t
            sums["sq_rel"] += (p - t) ** 2 / t
            sums["rmse"] += (p - t) ** 2
            sums["rmse_log"] += math.log(p / t) ** 2
            sums["log10"] += abs(math.log10(p / t))
            mean_log += math.log(p / t)
    expected = {key: value / n for key, value in sums.items()}
    expected["silog"] = 100 * math.sqrt(expected["rmse_log"] - (mean_log / n) ** 2)
    expected |= {key: math.sqrt(expected[key]) for key in ("rmse", "rmse_log")}
    found = depth_metrics(predicted, truth, valid)
    assert n == valid.sum() > 100
    assert all(abs(found[key] - expected[key]) < 1e-6 * max(1, expected[key]) for key in METRICS)


def test_scale_moves_what_it_should(street):
    depth = street[0].cameras[0].depth
    valid = valid_pixels(depth)
    guess = depth * np.random.default_rng(0).uniform(0.8, 1.2, depth.shape)
    one, two = (depth_metrics(s * guess, s * depth, valid, 0, np.inf) for s in (1, 3))
    assert all(np.isclose(one[key], two[key]) for key in METRICS if key not in ("sq_rel", "rmse"))
    assert np.isclose(two["rmse"], 3 * one["rmse"]) and np.isclose(two["sq_rel"], 3 * one["sq_rel"])
    assert np.isclose(depth_metrics(1.3 * guess, depth, valid, 0, np.inf)["silog"], one["silog"])  # blind to a factor, and no other is
    assert depth_metrics(1.3 * guess, depth, valid)["abs_rel"] > 2 * one["abs_rel"]


def test_mean_is_over_images():
    t = np.full((2, 2), 4.0)
    images = [depth_metrics(2 * t, t, t > 0), depth_metrics(t, t, np.array([[True, False], [False, False]])), depth_metrics(t, t, t < 0)]
    mean = mean_metrics(images)
    assert mean["abs_rel"] == 0.5 and (mean["images"], mean["without_truth"]) == (2, 1)


def test_regions_in_the_papers_numbers():
    rows, cols = np.nonzero(inner_mask((375, 1242), "garg"))
    assert (rows.min(), rows.max() + 1, cols.min(), cols.max() + 1) == (153, 371, 44, 1197)
    rows, cols = np.nonzero(inner_mask((480, 640), "nyu"))
    assert (rows.min(), rows.max() + 1, cols.min(), cols.max() + 1) == (45, 471, 41, 601)


def test_sig_loss_has_the_right_slope():
    rng = np.random.default_rng(0)
    t = torch.from_numpy(np.where(rng.random((3, 5, 6)) < 0.5, rng.uniform(0.5, 90, (3, 5, 6)), 0))
    p = torch.from_numpy(rng.uniform(0.5, 80, (3, 5, 6))).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: sig_loss(p, t), p)
    sig_loss(p, t).backward()
    assert (p.grad[(t == 0) | (t > 80)] == 0).all()
    g = np.log(p.detach().numpy() + 1e-3) - np.log(t.numpy() + 1e-3)
    g = g[((t > 0) & (t <= 80)).numpy()]
    assert abs(sig_loss(p, t).item() - np.sqrt(np.var(g) + 0.15 * np.mean(g) ** 2)) < 1e-12


# data


def test_augmentation_is_a_function_of_its_seed(street):
    a, b, c = (training_sample(street[0], np.random.default_rng(seed), DepthProtocol.street()) for seed in (1, 1, 2))
    assert all(np.array_equal(x, y) for x, y in zip(a, b)) and not np.array_equal(a[0], c[0])
    changed = {training_sample(street[0], np.random.default_rng(seed), DepthProtocol.street())[0].tobytes() for seed in range(12)}
    assert len(changed) > 6  # one in eight is left as it is


def test_every_camera_is_drawn_and_measured():
    frame = Street(1, cameras=3, size=(32, 64), samples=1, beams=16)[0]
    plain = replace(DepthProtocol.street(), chance=0.0)
    drawn = {training_sample(frame, np.random.default_rng(seed), plain)[0].tobytes() for seed in range(20)}
    assert len(drawn) == 3
    assert depth_scores(DepthNetwork(tiny(), TINY), [frame], TINY)["images"] == 3


def test_projected_truth_is_said(street):
    blind = Kept(replace(frame, cameras=[replace(frame.cameras[0], depth=None)]) for frame in street)
    network = DepthNetwork(tiny(), TINY)
    result = depth_scores(network, blind[:2], TINY)
    assert result["truth"] == {"depth maps": 0, "projected points": 2} and np.isfinite(result["abs_rel"]) and network.training
    assert (depth_target(blind[0], 0) > 0).sum() > 100


# training


def test_it_learns_goes_on_and_is_reproducible(street, tmp_path, capsys):
    train, test = Subset(street, range(6)), Subset(street, [6, 7])
    whole = evaluate_depth(tiny(), train, test, TINY, tmp_path / "whole", seed=1)
    for steps in (1, 4, None):
        pieces = evaluate_depth(tiny(), train, test, TINY, tmp_path / "pieces", seed=1, stop_after=steps)
    a, b = (load(tmp_path / name / "last.safetensors")[0] for name in ("whole", "pieces"))
    assert all(torch.equal(a[key], b[key]) for key in a) and a.keys() == b.keys()
    assert whole["metrics"] == pieces["metrics"] and "going on from step 5" in capsys.readouterr().out
    assert json.loads((tmp_path / "whole/results.json").read_text())["metrics"] == whole["metrics"]
    other = evaluate_depth(tiny(), train, test, TINY, tmp_path / "other", seed=2)
    assert other["metrics"] != whole["metrics"]
    assert depth_table({"a": [whole, other]})[1][1] == "2"


def test_a_killed_run_goes_on(street, tmp_path, monkeypatch):
    "SIGTERM in the middle: the step is finished, a checkpoint is written, and the next call ends with the bits of an undisturbed run."
    train, test, step = Subset(street, range(6)), Subset(street, [6, 7]), depth.depth_step

    def killed(*arguments):
        if arguments[-1] == "step 3":
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(depth, "depth_step", killed)
        result = evaluate_depth(tiny(), train, test, TINY, tmp_path / "killed")
        assert result["metrics"] is None and (result["step"], result["total"]) == (4, 9)
    killed, whole = (evaluate_depth(tiny(), train, test, TINY, tmp_path / name) for name in ("killed", "whole"))
    assert killed["metrics"] == whole["metrics"] and killed["step"] == whole["step"] == 9


def test_a_frozen_encoder_stays_as_it_is_and_the_callers_too(street, tmp_path):
    train, test, before = Subset(street, range(6)), Subset(street, [6]), tiny().state_dict()
    for name, encoder in (("still", tiny().freeze()), ("learning", tiny())):
        result = evaluate_depth(encoder, train, test, replace(TINY, epochs=1), tmp_path / name)
        after = load_depth(result["checkpoint"])[0].encoder.state_dict()
        assert all(torch.equal(after[key], before[key]) for key in before) == (name == "still") == result["encoder"].get("frozen", False)
        assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_a_damaged_training_frame_is_skipped_and_told(street, tmp_path):
    damaged = Kept([replace(street[0], cameras=[]), *street[1:6]])
    result = evaluate_depth(tiny(), damaged, Subset(street, [6]), TINY, tmp_path)
    assert result["skipped"] == 3 and "no camera" in (tmp_path / "faults.csv").read_text()
    none = Kept(replace(frame, cameras=[]) for frame in street[:3])
    with pytest.raises(BadData, match="none of the 3 frames"):
        evaluate_depth(tiny(), none, Subset(street, [6]), TINY, tmp_path / "none")


def test_overlap_and_mixtures_are_refused(street, tmp_path):
    with pytest.raises(ValueError, match="training and in the test set"):
        evaluate_depth(tiny(), street, Subset(street, [6]), TINY, tmp_path)
    run = {"protocol": {"name": "a"}, "train": 1, "test": 1, "total": 1, "metrics": dict.fromkeys(METRICS, 1.0)}
    for key, value in (("protocol", {"name": "b"}), ("test", 2), ("train", 2), ("total", 2)):
        with pytest.raises(ValueError, match=key):
            depth_table({"a": [run], "b": [run | {key: value}]})


def test_a_result_names_its_protocol_and_a_table_what_is_published(street, tmp_path):
    train, test = Subset(street, range(6)), Subset(street, [6])
    runs = compare_depth({"scratch": Start("imagenet", False)}, train, test, replace(TINY, epochs=1), tmp_path, seeds=1)
    (result,) = runs["scratch"]
    assert result["protocol_hash"] == replace(TINY, epochs=1).hash != TINY.hash and result["protocol"]["name"] == TINY.name
    papers = {r.method: r for r in PUBLISHED if r.protocol is simipu and r.dataset == "nyu"}
    heading, row = depth_table(runs, published={"scratch": papers["SimIPU-KITTI"]})
    assert heading[-1] == "published, simipu nyu: Abs Rel" and row[-1] == "0.178 (SimIPU-KITTI)" and len(heading) == len(row) == 3 + len(METRICS)
    for strange in ({"other": papers["scratch"]}, {"scratch": papers["scratch"], "mean depth, no image": next(r for r in PUBLISHED if r.dataset == "kitti")}):
        with pytest.raises(ValueError, match="no row|two datasets"):
            depth_table(runs, dict.fromkeys(METRICS, 1.0), strange)


def test_a_comparison_that_is_stopped_says_so_and_goes_on(street, tmp_path, monkeypatch):
    train, test, step = Subset(street, range(6)), Subset(street, [6]), depth.depth_step
    monkeypatch.setattr(depth, "depth_encoder", lambda weights, pretrained, seed: tiny(seed))
    starts = {"a": Start(None), "b": Start(None, frozen=True)}

    def killed(*arguments):
        if arguments[-1] == "step 1" and len(list(tmp_path.glob("cut/*"))) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="step 2 of .*b_0"):
        patch.setattr(depth, "depth_step", killed)
        compare_depth(starts, train, test, TINY, tmp_path / "cut", seeds=1)
    with monkeypatch.context() as patch:  # with another number of threads too: the frozen encoder's statistics are those of the checkpoint
        patch.setattr(depth, "settled", lambda *_: pytest.fail("settled again"))
        cut = compare_depth(starts, train, test, TINY, tmp_path / "cut", seeds=1)
    whole = compare_depth(starts, train, test, TINY, tmp_path / "whole", seeds=1)
    assert depth_table(cut) == depth_table(whole) and cut["b"][0]["encoder"]["frozen"]


def test_a_guess_without_looking_is_the_mean_of_the_logarithm(street):
    frames = [frame for frame in street if frame.cameras[0].size == (64, 192)][:3]
    truth = np.stack([frame.cameras[0].depth for frame in frames])
    guess, known = blind_depth(frames, DepthProtocol.street(), blur=1e-9), valid_pixels(truth)  # no blur: pixel by pixel
    for row, col in np.random.default_rng(0).integers((64, 192), size=(50, 2)):
        logs = [math.log(truth[i, row, col]) for i in range(3) if known[i, row, col]]
        if logs:
            assert math.isclose(guess[row, col], math.exp(sum(logs) / len(logs)), rel_tol=1e-4)
    with pytest.raises(ValueError, match="nothing to guess"):
        blind_depth([replace(frames[0], cameras=[replace(frames[0].cameras[0], depth=np.zeros((64, 192)))])], DepthProtocol.street())


def test_the_notebook_with_a_frozen_encoder_and_images_of_two_sizes(tmp_path, capfd):
    """Slow, half a minute. The weights are known by what they were before the batch norms settled; where images differ in size there is no mean image, and all else is told."""
    pytest.importorskip("papermill", reason="runs are notebooks, executed by papermill")
    world = write_kitti(Street(4, cameras=1, size=(64, 192), beams=16, samples=1, frames_per_drive=1), tmp_path / "world")
    other = write_kitti(Street(1, cameras=1, size=(60, 192), beams=16, samples=1), tmp_path / "other")  # the fifth drive: the first is held out, and so is this
    (other / "2026_01_01").rename(world / "2026_01_02")
    (world / "2026_01_02/2026_01_01_drive_0001_sync").rename(world / "2026_01_02/2026_01_02_drive_0001_sync")
    asked = {"encoder": "imagenet", "random": "only", "data": "kitti", "root": str(world), "frozen": True, "budget": "smoke"}
    result = run(EXPERIMENTS / "depth.ipynb", tmp_path / "out", asked)["runs"]["random weights"]
    assert result["settled"] and result["encoder"]["frozen"] and result["weights"] == weights_digest(depth_encoder("imagenet", False))
    assert "no row without an image" in capfd.readouterr().out and result["metrics"]["images"] == 2


# protocols


@pytest.mark.parametrize("dataset", ["kitti", "nyu"])
def test_the_protocol_of_tables_is_the_protocol_of_training(dataset):
    "`protocols.simipu` describes what `DepthProtocol` does: neither may change without the other."
    ours, said, recipe = getattr(DepthProtocol, dataset)(), simipu.on(dataset), simipu.recipe(dataset, "fine-tuning")
    assert simipu.recipe(dataset, "from scratch") == recipe and ours.name.split()[:2] == [simipu.name, dataset]
    assert (recipe.optimizer, recipe.lr, recipe.betas, recipe.weight_decay, recipe.epochs, recipe.batch_size) == ("adamw", ours.lr, ours.betas, ours.weight_decay, ours.epochs, ours.batch_size)
    assert recipe.schedule == "one-cycle" and recipe.head_lr is None
    number = lambda text, pattern: tuple(float(value) for value in re.search(pattern, text).groups())
    assert number(said.inputs, r"training: (\d+) x (\d+)") == ours.train_size
    assert number(said.inputs, r"depth ([\d.]+) to (\d+) m") == (ours.min_depth, ours.max_depth)
    if dataset == "kitti":
        assert number(said.inputs, r"cropped to (\d+) x (\d+)") == ours.window and ours.region == "garg" and "Garg crop (KITTI)" in simipu.evaluation
    else:
        top, bottom, left, right = ours.border
        assert ours.window is None and ours.region == "nyu" and (bottom - top, right - left) == (427, 565)
    rotation, colours, flip = (next(line for line in simipu.augmentation if word in line) for word in ("rotation", "gamma", "flip"))
    assert number(rotation, r"U\((-?[\d.]+), ([\d.]+)\) degrees") == (-ours.rotation, ours.rotation)
    assert number(colours, r"U\(([\d.]+), ([\d.]+)\)") == ours.colours and number(flip, r"p = ([\d.]+)") == (ours.chance,)
    assert "random crop" in simipu.augmentation and len(simipu.augmentation) == 4
    assert number(simipu.remarks, r"lr / (\d+) to .* clipped at (\d+), (\d+) images") == (ours.div, ours.clip, ours.batch_size)
    assert simipu.loss == (("SigLoss", 1.0),) and depth.sig_loss is sig_loss  # what `depth_step` calls
    assert ours.flip_test and "mirror image" in simipu.evaluation and simipu.metric == "Abs Rel" and ours.shrink == 1


SPEC = Path(__file__).parents[2] / "shared/spec/simipu.md"


def test_training_is_the_specifications():
    if not SPEC.is_file():
        pytest.skip(f"the specification is not here: {SPEC}")
    text, ours, nyu = SPEC.read_text(), DepthProtocol.kitti(), DepthProtocol.nyu()
    numbers = lambda pattern: tuple(float(value) for value in re.search(pattern, text).groups())
    assert numbers(r"AdamW (1e-4) \(([\d.]+), ([\d.]+)\), wd ([\d.]+), one-cycle \(div (\d+), final (\d+)\), (\d+) epochs, batch (\d+) a GPU, clip (\d+)") == (
        ours.lr, *ours.betas, ours.weight_decay, ours.div, ours.final_div, ours.epochs, ours.batch_size, ours.clip
    )  # fmt: skip
    assert numbers(r"rotation \+-([\d.]+) degrees, flip, gamma / brightness / colour ([\d.]+)-([\d.]+)") == (ours.rotation, *ours.colours)
    assert numbers(r"crop (\d+) x (\d+), train crop (\d+) x (\d+); Garg") == (*ours.window, *ours.train_size)
    assert numbers(r"NYU: train crop \[(\d+):(\d+), (\d+):(\d+)\] -> (\d+) x (\d+)") == (*nyu.border, *nyu.train_size)
    assert numbers(r"to (\d+) / (\d+) / (\d+) / (\d+); depth") == ours.channels[1:] == nyu.channels[1:]


# encoders


def checkpoint_of(name: str, path: Path, **changes) -> Path:
    "A checkpoint as `pretrain` writes it, of a method with weights of its own."
    recipe = replace(recipes(name)["small"](), **changes)
    return save(path, build(name, recipe, seed=7).state_dict(), {"method": name, "recipe": asdict(recipe)})


def test_encoders_from_every_source(street, tmp_path):
    checkpoint = checkpoint_of("simipu", tmp_path / "simipu.safetensors")
    trained, twin = depth_encoder(checkpoint), depth_encoder(checkpoint, pretrained=False)
    assert build_of(trained) == build_of(twin) == {"network": "resnet", "blocks": [1, 1, 1, 1], "width": 16, "bn_eps": 1e-3}
    small = recipes("simipu")["small"]()
    for encoder, seed in ((trained, 7), (twin, 0)):
        assert torch.equal(encoder.layer4[0].conv3.weight, build("simipu", small, seed).image.layer4[0].conv3.weight)
    result = evaluate_depth(checkpoint, Subset(street, range(6)), Subset(street, [6]), replace(TINY, epochs=1), tmp_path / "depth")
    network, protocol = load_depth(result["checkpoint"])
    assert network.encoder.bn1.eps == 1e-3 and depth_scores(network, Subset(street, [6]), protocol) == result["metrics"]
    image = street[6].cameras[0].image
    assert predict_depth(network, image).shape == image.shape[:2]

    torch.save({"state_dict": ResNet50(False).state_dict()}, tmp_path / "published.pth")
    published, random = depth_encoder(tmp_path / "published.pth"), depth_encoder(None, seed=3)
    assert published.stride == random.stride == 32 and not torch.equal(random.conv1.weight, published.conv1.weight)
    assert torch.equal(random.conv1.weight, depth_encoder(tmp_path / "published.pth", False, 3).conv1.weight)
    (tmp_path / "text.safetensors").write_text("no weights")
    for wrong in (tmp_path / "absent.safetensors", tmp_path / "text.safetensors"):
        with pytest.raises(BadData):
            depth_encoder(wrong)
    with pytest.raises(BadData, match="depthcontrast does not train an image network"):
        depth_encoder(checkpoint_of("depthcontrast", tmp_path / "points.safetensors"))
    with pytest.raises(BadData, match="not of a depth network"):
        load_depth(checkpoint)


# real recordings


def test_kitti_recordings(tmp_path):
    if not KITTI.is_dir():
        pytest.skip("needs KITTI recordings in ../shared/data/kitti_raw")
    from xmodal.data.kitti import KittiRaw

    dataset = KittiRaw(KITTI, cameras=("image_02",))
    train, test = eigen_split(dataset)
    assert "not the Eigen split" in test.name and not set(train.ids) & set(test.ids)
    frame = train[0]
    target = depth_target(frame, 0)
    assert 10_000 < (target > 0).sum() < 25_000 and target[target > 0].min() > 1  # an HDL-64 fills about 5 % of the pixels
    image, depth = training_sample(frame, np.random.default_rng(0), DepthProtocol.kitti())
    assert image.shape == (352, 704, 3) and (depth > 0).sum() > 3000
    protocol = replace(TINY, name="kitti", window=(352, 1216), region="garg", shrink=8, epochs=1)
    result = evaluate_depth(tiny(), Subset(train, [0, 1]), Subset(test, [0]), protocol, tmp_path)
    assert result["metrics"]["truth"] == {"depth maps": 0, "projected points": 1} and 0 < result["metrics"]["abs_rel"] < 5
