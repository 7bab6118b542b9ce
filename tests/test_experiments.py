"""The experiment notebooks: each says what its parameters may be, refuses before any work what it cannot measure, and leaves sound results."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

pytest.importorskip("papermill", reason="runs are notebooks, executed by papermill")
pytest.importorskip("lightning", reason="training runs on Lightning Fabric")
pytest.importorskip("open3d", reason="the street world is rendered with Open3D")
matplotlib = pytest.importorskip("matplotlib", reason="the notebooks draw figures")

from xmodal.data.datasets import open_dataset, split  # noqa: E402
from xmodal.data.kitti_write import write_kitti  # noqa: E402
from xmodal.data.nuscenes_splits import SPLITS  # noqa: E402
from xmodal.data.nuscenes_write import write_nuscenes  # noqa: E402
from xmodal.data.street import Street  # noqa: E402
from xmodal.evaluation.depth_frames import DepthProtocol  # noqa: E402
from xmodal.evaluation.protocols import PUBLISHED, SLIDR_FRACTIONS, also, slidr  # noqa: E402
from xmodal.experiments import EXPERIMENTS, RunFailed, faults_of, parameters_of, run  # noqa: E402
from xmodal.frame import BadData  # noqa: E402
from xmodal.methods.ppkt import PPKTRecipe  # noqa: E402
from xmodal.pretrain import pretrain, recipes  # noqa: E402
from xmodal.plan import plan  # noqa: E402
from xmodal.results import state_of  # noqa: E402
from xmodal.tables import planned  # noqa: E402

NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.ipynb"))
TABLES = tuple(name for name in NAMES if name.startswith("table_"))
MEASURES = ("probe", "finetune", "depth", "panoptic", "robustness", "features", "calibrate", "explore")  # of a checkpoint, with a budget


def sources(name):
    "The code cells of a notebook: the parameters, and what follows."
    cells = [cell for cell in json.loads((EXPERIMENTS / f"{name}.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    first = next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", []))
    return ["".join(cell["source"]) for cell in cells[first:]]


def begin(name, out, **parameters):
    "Execute a notebook here until it has told what will be done. Raises what it raises."
    parameter_cell, *others = sources(name)
    names = {"display": print}
    exec(parameter_cell, names)
    assert parameters.keys() <= names.keys()
    names |= parameters | {"out": str(out)}
    for source in others:
        if "figures.mkdir" in source or "trained = pretrained(" in source:  # from here on it works
            return names
        exec(compile(source, f"{name}.ipynb", "exec"), names)
    raise AssertionError(f"{name}.ipynb has no folder for figures")


def refused(name, out, **parameters):
    "What a table says instead of beginning."
    with pytest.raises((ValueError, FileNotFoundError)) as told:
        begin(name, out, **parameters)
    assert not out.exists()
    return str(told.value)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_kitti(Street(4, cameras=1, size=(64, 208), beams=16, samples=1, frames_per_drive=2), tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def unlabelled(world, tmp_path_factory):
    "The same recordings as a car brings them home."
    copy = tmp_path_factory.mktemp("copy") / "world"
    shutil.copytree(world, copy)
    truth = ("labels", "boxes", "proj_depth", "semantic", "instance")
    for path in sorted(copy.rglob("*"), reverse=True):
        if path.name in truth or path.name == "tracklet_labels.xml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert open_dataset("kitti", copy)[0].semantic is None
    return copy


@pytest.fixture(scope="module")
def checkpoint(world, tmp_path_factory):
    "Two steps of PPKT, with a network that is quick."
    recipe = PPKTRecipe.small()
    recipe.network, recipe.optimisation.epochs, recipe.optimisation.batch_size = {"planes": (8,) * 8, "stem": 8}, 1, 1
    train = split(open_dataset("kitti", world))[0]
    return str(pretrain("ppkt", train, tmp_path_factory.mktemp("ppkt"), recipe, source={"name": "kitti", "root": str(world)}).checkpoint)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_explained(name):
    known = parameters_of(EXPERIMENTS / f"{name}.ipynb")
    assert all(parameter.comment for parameter in known.values()), [p.name for p in known.values() if not p.comment]
    for parameter in known.values():
        assert parameter.check(parameter.default) == parameter.default
    assert known["seed"].limits[0] == 0


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_is_asked_in_the_same_way(name):
    known = parameters_of(EXPERIMENTS / f"{name}.ipynb")
    assert {"out", "checkpoint", "data", "root", "seed", "budget"} <= known.keys()
    assert known["budget"].choices == ["smoke", "laptop", "paper"] and known["budget"].default == "laptop"
    book = json.loads((EXPERIMENTS / f"{name}.ipynb").read_text())
    head = "".join(book["cells"][0]["source"])
    assert head.startswith("# Experiment: ") and "\n> " in head and "- skip_exec: true" in head
    assert any("".join(cell["source"]).startswith("## What will be done") for cell in book["cells"])
    assert "report(out)" in sources(name)[-1]


# --- refused before any work


@pytest.mark.parametrize("name", MEASURES)
def test_a_checkpoint_that_is_not_there(name, tmp_path):
    with pytest.raises(BadData, match="nowhere.safetensors: there is no such|nowhere.safetensors: .*no such file"):
        begin(name, tmp_path / "out", checkpoint=str(tmp_path / "nowhere.safetensors"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name in MEASURES if name not in ("depth", "calibrate")])  # those two first ask which method it is of
def test_a_dataset_that_is_not_known(name, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="unknown dataset 'kity'"):
        begin(name, tmp_path / "out", checkpoint=checkpoint, data="kity", root=str(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "cause"),
    [("finetune", "its points have no labels"), ("robustness", "its points have no labels"), ("panoptic", "its points have no semantic and no instance labels")],
)
def test_recordings_without_labels(name, cause, checkpoint, unlabelled, tmp_path):
    with pytest.raises(BadData, match=cause):
        begin(name, tmp_path / "out", checkpoint=checkpoint, root=str(unlabelled))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "parameters", "cause"),
    [
        ("depth", {}, "ppkt does not train an image network"),
        ("calibrate", {}, "is of ppkt, which does not calibrate; train nclr"),
        ("finetune", {"protocol": "slidr"}, "the protocol slidr, smoke is not defined on kitti_raw; it is on nuscenes, semantickitti"),
        ("finetune", {"percent": 3.0}, "the protocol quick, smoke has no training for linear probe, 3 % on kitti_raw"),
        ("finetune", {"intensity": [1.0]}, "give a scale and a shift"),
        ("robustness", {"corruptions": ["fogg"]}, "there is no fogg; choose from fog, "),
        ("panoptic", {"things": ["cart"]}, "no such class: cart"),
        ("probe", {"frame": 2}, "frame = 2: it is -1 to 1, for the 2 held-out frames"),
        ("probe", {"pixel": [208, 3]}, "it is .u, v., two numbers in an image of 208 x 64 pixels"),
    ],
)
def test_what_a_measure_cannot_do(name, parameters, cause, checkpoint, tmp_path):
    with pytest.raises(ValueError, match=cause):
        begin(name, tmp_path / "out", checkpoint=checkpoint, budget="smoke", **parameters)
    assert not (tmp_path / "out").exists()


def test_what_will_be_done_is_told(checkpoint, tmp_path, capsys):
    shortened = begin("finetune", tmp_path / "out", checkpoint=checkpoint, mode="fine-tuning", budget="smoke")["agreed"]
    said = capsys.readouterr().out
    assert "under the protocol quick, smoke" in said and "2 frames; measured on 2 frames" in said and "from scratch" in said
    whole = begin("finetune", tmp_path / "out", checkpoint=checkpoint, mode="fine-tuning")["agreed"]
    assert (shortened.name, whole.name) == ("quick, smoke", "quick") and shortened.hash != whole.hash
    assert {recipe.epochs for *_, recipe in shortened.settings[0].recipes} == {1}
    begin("robustness", tmp_path / "out", checkpoint=checkpoint, budget="smoke", corruptions=["fog", "snow"])
    assert "on 1 held-out frame under fog, snow, each at 3 severities" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["probe", "panoptic", "robustness", "features", "calibrate", "explore"])
def test_by_hand_parameters_are_looked_at_too(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="budget = 'smok': did you mean 'smoke'"):
        begin(name, tmp_path / "out", budget="smok")
    with pytest.raises(BadData, match=f"no such checkpoint below {tmp_path}; train first .all cells of nbs/experiments/pretrain.ipynb"):
        begin(name, tmp_path / "out")


def test_depth_by_hand_says_how_to_train_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadData, match='runs/simipu/last.safetensors: there is no such checkpoint; train simipu first: .* out = "runs/simipu"'):
        begin("depth", tmp_path / "out")


ONE_IMAGE_NETWORK = {"encoder": "imagenet", "random": "only", "data": "kitti"}  # for depth, which asks PPKT nothing


@pytest.mark.parametrize("name", ["probe", "finetune", "depth", "panoptic", "robustness", "features", "explore"])
def test_time_and_memory_are_told(name, checkpoint, world, tmp_path, capsys):
    given = ONE_IMAGE_NETWORK | {"root": str(world)} if name == "depth" else {}
    begin(name, tmp_path / "out", checkpoint=checkpoint, budget="smoke", **given)
    said = capsys.readouterr().out
    assert re.search(r"about (\d+ min )?\d+ s and [\d,]+ MB of memory on this machine", said) and "budget smoke, seed 0" in said


# --- tables of the literature, and runs beside each other


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_asked_in_the_same_way(name):
    known = parameters_of(EXPERIMENTS / f"{name}.ipynb")
    assert {"out", "seeds", "seed", "workers", "budget"} <= known.keys() and known["seeds"].limits[0] == 1
    assert known["budget"].choices == ["smoke", "laptop", "paper"] and known["budget"].default == "laptop"
    text = (EXPERIMENTS / f"{name}.ipynb").read_text()
    assert "- skip_exec: true" in text and "## What will be done" in text and re.search(r"^(report|write_table)\(", sources(name)[-1], re.M)


@pytest.mark.parametrize(
    ("name", "first"),
    [("table_slidr_few_shot", "nuscenes"), ("table_slidr_fractions", "nuscenes"), ("table_nclr_fractions", "nuscenes"), ("table_simipu_depth", "pretraining"), ("table_depthcontrast", "scannet")],
)
def test_a_table_without_its_data(name, first, tmp_path):
    assert refused(name, tmp_path / "out") == f"{first} is empty: this table is measured on recordings; give their folder: {first}=/path/to/them"
    assert refused(name, tmp_path / "out", **{first: str(tmp_path / "nowhere")}).endswith("there is no such folder of recordings")
    assert refused(name, tmp_path / "out", seeds=0) == "seeds = 0: it is 1 or more"
    assert refused(name, tmp_path / "out", budget="laptp") == "budget = 'laptp': did you mean 'laptop'? it is one of smoke, laptop, paper"


def test_a_table_with_the_wrong_recordings(world, tmp_path):
    nuscenes = write_nuscenes(Street(2, cameras=1, size=(64, 208), beams=16, samples=1), tmp_path / "nuscenes")
    shutil.rmtree(nuscenes / "lidarseg")
    for name in ("table_slidr_few_shot", "table_slidr_fractions", "table_nclr_fractions"):
        assert "no tables of nuScenes here" in refused(name, tmp_path / "out", nuscenes=str(world))
        assert "the labels are missing" in refused(name, tmp_path / "out", nuscenes=str(nuscenes))
    assert "no KITTI raw recording here" in refused("table_simipu_depth", tmp_path / "out", pretraining=str(world), kitti=str(nuscenes))


def test_a_table_tells_what_it_will_do(tmp_path, capsys):
    nuscenes = write_nuscenes(Street(2, cameras=1, size=(64, 208), beams=16, samples=1), tmp_path / "nuscenes")
    names = begin("table_slidr_fractions", tmp_path / "out", nuscenes=str(nuscenes), budget="smoke", seeds=1)
    said = capsys.readouterr().out
    assert "1 pre-training and 10 measures, each with 1 seed, under quick, smoke" in said
    assert "weights and optimiser" in said and "MB before the network" in said and "all, with 1 seed: about " in said
    assert [(row, column[2]) for row, network, column in names["cells"]] == [(row, percent) for row in ("random", "SLidR") for percent in (1, 5, 10, 25, 100)]


def test_what_a_table_under_paper_would_do():
    "Recipes, epochs, scenes, and what a network must look like to be measured."
    parts = (0.1, 1, 10, 50, 100)
    epochs = lambda protocol, data, mode, percents: [protocol.recipe(data, mode, percent).epochs for percent in percents]
    assert epochs(slidr, "nuscenes", "fine-tuning", (1, 5, 10, 25, 100)) == [100] * 5 and epochs(slidr, "nuscenes", "linear probe", (100,)) == [100]
    assert epochs(also, "nuscenes", "fine-tuning", parts) == epochs(also, "semantickitti", "fine-tuning", parts) == [1000, 500, 100, 50, 30]
    assert (len(slidr.split("nuscenes", 1).ids), len(also.split("nuscenes", 1).ids), len(SPLITS["parametrizing"]), len(SPLITS["verifying"])) == (7, 6, 600, 100)
    assert set(SPLITS["parametrizing"]) | set(SPLITS["verifying"]) == set(SPLITS["train"])
    for method, recipe, protocol, data in (("slidr", "paper", slidr, "nuscenes"), ("ppkt", "paper", slidr, "nuscenes"), ("pointcontrast", "nuscenes", slidr, "semantickitti"), ("nclr", "nuscenes", also, "nuscenes"), ("nclr", "kitti", also, "semantickitti")):
        made = recipes(method)[recipe]()
        assert made.voxels == protocol.on(data).voxels and made.optimisation.epochs == 50
    assert (recipes("simipu")["kitti"]().optimisation.epochs, recipes("simipu")["waymo"]().optimisation.epochs, recipes("depthcontrast")["scannet"]().optimisation.epochs) == (100, 50, 400)
    assert (DepthProtocol.kitti().epochs, DepthProtocol.kitti().batch_size, DepthProtocol.kitti().lr, DepthProtocol.nyu().max_depth) == (24, 8, 1e-4, 10.0)


def test_published_numbers_of_the_tables():
    "The papers' tables, typed a second time: protocol, dataset, linear probe?, fractions -> rows."
    parts = (0.1, 1, 10, 50, 100)
    lines = {
        ("slidr", "nuscenes", True, (100,)): "random 8.1; PointContrast 21.9; DepthContrast 22.1; PPKT 36.4; SLidR 38.8",
        ("slidr", "nuscenes", False, (1,)): "PointContrast 32.5; DepthContrast 31.7; PPKT 37.8",
        ("slidr", "nuscenes", False, (1, 5, 10, 25, 100)): "random 30.3 47.7 56.6 64.8 74.2; SLidR 38.3 52.2 58.8 66.2 74.6",
        ("slidr", "semantickitti", False, (1,)): "random 39.5; PointContrast 41.1; DepthContrast 41.5; PPKT 43.9; SLidR 44.6",
        ("also", "nuscenes", False, parts): "random 21.6 35.0 57.3 69.0 71.2; PointContrast 27.1 37.0 58.9 69.4 71.1; DepthContrast 21.7 34.6 57.4 69.2 71.2; ALSO 26.2 37.4 59.0 69.8 71.8; NCLR 26.6 37.8 59.5 71.2 72.7",
        ("also", "semantickitti", False, parts): "random 30.0 46.2 57.6 61.8 62.7; PointContrast 32.4 47.9 59.7 62.7 63.4; SegContrast 32.3 48.9 58.7 62.1 62.3; DepthContrast 32.5 49.0 60.3 62.9 63.9; STSSL 32.0 49.4 60.0 62.9 63.3; ALSO 35.0 50.0 60.5 63.4 63.6; TARL 37.9 52.5 61.2 63.4 63.7; NCLR 39.2 53.4 61.4 63.5 63.9",
        ("simipu", "kitti", False, (100,)): "scratch 0.087; ImageNet 0.060; SimIPU-KITTI 0.075; SimIPU-Waymo 1/5 0.066",
        ("simipu", "nyu", False, (100,)): "scratch 0.205; ImageNet 0.143; SimIPU-KITTI 0.178; SimIPU-Waymo 1/5 0.166",
        ("depthcontrast", "scannet", False, (100,)): "PointNet++ 1x 61.9; PointNet++ 2x 63.3; PointNet++ 3x 64.1; PointNet++ 4x 63.8",
    }
    typed = {}
    for (protocol, dataset, linear, percents), line in lines.items():
        for row in line.split("; "):
            method, *values = row.rsplit(" ", len(percents))
            typed |= {(protocol, dataset, method, linear, percent): float(value) for percent, value in zip(percents, values, strict=True)}
    assert typed == {(r.protocol.name, r.dataset, r.method, r.mode == "linear probe", r.percent): r.values[0] for r in PUBLISHED}
    fractions = {key: value for key, value in typed.items() if key[0] == "slidr" and key[1] == "nuscenes" and key[2] in ("random", "SLidR") and not key[3]}
    fractions["slidr", "nuscenes", "SLidR", False, 1] = 39.0  # in a table of its own
    assert fractions == {(r.protocol.name, r.dataset, r.method, False, r.percent): r.values[0] for r in SLIDR_FRACTIONS}


def test_a_table_of_two_datasets_opens_each_in_its_own_folder(world, tmp_path):
    nuscenes = write_nuscenes(Street(2, cameras=1, size=(64, 208), beams=16, samples=1, frames_per_drive=1), tmp_path / "nuscenes", progress=False)
    of = [("kitti", str(world), 0), ("kitti", str(world), 1), ("nuscenes", str(nuscenes), 0), ("nuscenes", str(nuscenes), 1)]
    runs = planned("pretrain", [({"row": data, "seed": seed}, {"data": data, "root": root, "seed": seed}) for data, root, seed in of], tmp_path / "out")
    assert [tuple(run["parameters"][name] for name in ("data", "root", "seed")) for run in runs] == of and len({run["folder"] for run in runs}) == 4
    assert runs[0]["digests"]["root"] == runs[1]["digests"]["root"] != runs[2]["digests"]["root"] == runs[3]["digests"]["root"]


def test_published_numbers_want_what_was_published(world, tmp_path):
    nuscenes = str(write_nuscenes(Street(4, cameras=1, size=(64, 208), beams=16, samples=1, frames_per_drive=2), tmp_path / "nuscenes"))
    for name, scenes in (("table_slidr_few_shot", "700 of the 700 scenes or scans of nuscenes train"), ("table_slidr_fractions", "700 of the 700 scenes"), ("table_nclr_fractions", "600 of the 600 scenes or scans of nuscenes parametrizing")):
        told = refused(name, tmp_path / "out", nuscenes=nuscenes, budget="paper")
        assert scenes in told and "are not here (scene-" in told
    assert "the protocol is defined by the published lists" in refused("table_simipu_depth", tmp_path / "out", pretraining=str(world), kitti=str(world), budget="paper")
    lists = {name: str(tmp_path / name) for name in ("train_list", "test_list")}
    for path in lists.values():
        Path(path).write_text("2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000000.png none 721.5\n")
    assert "has 1 ids" in (told := refused("table_simipu_depth", tmp_path / "out", pretraining=str(world), kitti=str(world), budget="paper", **lists)) and "expected 23158" in told
    assert "it holds kitti" in refused("table_depthcontrast", tmp_path / "out", scannet=str(world), budget="paper")


def test_a_table_is_carried_out_to_its_end(world, tmp_path, capfd):
    """Slow, about a minute: one pre-training and two measures, each a notebook of its own; cards, tables and page are made of what they left."""
    asked = {"pretraining": str(world), "kitti": str(world), "seeds": 1, "seed": 5, "workers": 1, "budget": "smoke"}
    results = run(EXPERIMENTS / "table_simipu_depth.ipynb", tmp_path / "out", asked)
    assert faults_of(results, tmp_path / "out") == [] and results["protocol"]["ours"] == ["simipu street 80 m, smoke"] and len(results["runs"]) == 3
    values = {card["row"]: card["value"] for card in results["cards"]}
    assert values.keys() == {"scratch", "SimIPU-KITTI"} and list(results["measures"].values()) == [card["value"] for card in results["cards"]]
    kitti, nyu = results["tables"]
    assert kitti["rows"][0][2:] == ["ours: simipu street 80 m, smoke", "published: simipu"] and "do not compare" in kitti["text"]
    assert {row[1]: row[2:] for row in kitti["rows"][1:]} == {
        "scratch": [f"{values['scratch']:.3f} (n 1)", "0.087"], "SimIPU-KITTI": [f"{values['SimIPU-KITTI']:.3f} (n 1)", "0.075"],
        "ImageNet": ["", "0.060"], "SimIPU-Waymo 1/5": ["", "0.066"],
    }
    assert "No number of ours for SimIPU-Waymo 1/5: no recordings of Waymo were given." in kitti["text"] and nyu["rows"][0][2] == "ours: not measured"
    (depth,) = (tmp_path / "out").glob("depth_SimIPU-KITTI_*")
    (found,) = json.loads((depth / "results.json").read_text())["runs"].values()
    assert found["metrics"]["abs_rel"] == values["SimIPU-KITTI"] and "seed 5" in next(iter(results["measures"])) and "do not compare" in (tmp_path / "out/report.html").read_text()


def test_depthcontrasts_table_says_what_is_missing(world, tmp_path, capsys):
    begin("table_depthcontrast", tmp_path / "out", scannet=str(world), budget="smoke")
    assert "not measured: mAP@0.25 [%] under depthcontrast: VoteNet is not part of this library" in capsys.readouterr().out


def test_runs_beside_each_other(checkpoint, tmp_path):
    for runs, cause in (([], "two runs or more"), (["a", "./a"], "given twice"), (["a", "b"], "there is no such folder")):
        with pytest.raises((ValueError, FileNotFoundError), match=cause):
            begin("compare", tmp_path / "out", runs=runs)
    one, two = (tmp_path / name for name in ("one", "two"))
    for folder, loss in ((one, 2.0), (two, 1.5)):
        shutil.copytree(Path(checkpoint).parent, folder)
        (folder / "results.json").write_text(json.dumps({"measures": {"loss": loss}, "provenance": {}}))
    results = run(EXPERIMENTS / "compare.ipynb", tmp_path / "out", {"runs": [str(one), str(two)]})
    assert faults_of(results, tmp_path / "out") == [] and results["checkpoints"].keys() == {"one", "two"}
    assert ["loss", "2", "1.5", "0.5"] in results["tables"][-1]["rows"]
    assert {path.name for path in (tmp_path / "out/figures").iterdir()} == {"curves.png", "query.png", "similarity.png"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"budget": "smoke"}, "recipe small, budget smoke: 2 epochs of 1 step,"),
        ({"budget": "laptop"}, "recipe small, budget laptop: 120 epochs of 1 step,"),
        ({"budget": "smoke", "steps": 7}, "recipe small, budget smoke: 7 epochs of 1 step,"),  # what is given wins
        ({"budget": "laptop", "steps": 0}, "recipe small, budget laptop: 10 epochs of 1 step,"),
    ],
)
def test_a_budget_is_a_recipe_and_steps(given, said, world, tmp_path, capsys):
    begin("pretrain", tmp_path / "out", data="kitti", root=str(world), method="ppkt", **given)
    told = capsys.readouterr().out
    assert said in told and "weights and optimiser" in told and "s on this machine's CPU" in told


def test_a_recipe_is_refused_in_the_words_of_the_plan(tmp_path):
    assert refused("pretrain", tmp_path / "out", method="ppkt", recipe="smal") == "recipe = smal: did you mean 'small'? ppkt has paper, small"


# --- through the runner


def test_the_runner_tells_why_in_one_line(unlabelled, checkpoint, tmp_path, capsys):
    with pytest.raises(RunFailed, match="robustness.ipynb stopped with BadData: .*its points have no labels"):
        run(EXPERIMENTS / "robustness.ipynb", tmp_path / "run", {"checkpoint": checkpoint, "root": str(unlabelled), "budget": "smoke"})
    assert not (tmp_path / "run/results.json").exists()
    with pytest.raises(ValueError, match="budget = 'smok': did you mean 'smoke'"):
        run(EXPERIMENTS / "robustness.ipynb", tmp_path / "run", {"budget": "smok"})


def test_finetuning_leaves_sound_results(checkpoint, tmp_path):
    results = run(EXPERIMENTS / "finetune.ipynb", tmp_path, {"checkpoint": checkpoint, "mode": "fine-tuning", "budget": "smoke"})
    assert faults_of(results, tmp_path) == [] and results["protocol"]["name"] == "quick, smoke"
    assert set(results["runs"]) == {"trained", "random"} and results["runs"]["random"]["mode"] == "from scratch"
    means, by_class, by_range = (table["rows"] for table in results["tables"])
    assert means[0][1].endswith("(quick, smoke)") and [row[0] for row in means[1:]] == ["ppkt", "random"]  # nothing published stands beside another protocol
    scores = results["runs"]["trained"]["scores"]
    assert results["measures"]["mIoU [%], fine-tuning, 100 %, quick, smoke"] == 100 * scores["miou"]
    assert {row[0] for row in by_class} >= set(scores["iou"]) and sum(row[-1] for row in by_range[1:]) == scores["points"]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"confusion.png", "errors.png"}
    page = Path(results["report"]).read_text()
    assert "Near and far" in page and "calibration error" in page


def test_features_are_kept(checkpoint, tmp_path, capsys):
    given = {"checkpoint": checkpoint, "budget": "smoke"}
    results = run(EXPERIMENTS / "features.ipynb", tmp_path, given)
    assert faults_of(results, tmp_path) == [] and results["provenance"].items() >= state_of(checkpoint).items()
    capsys.readouterr()
    known = begin("features", tmp_path, **given)["known"]
    assert "nothing has changed since the scores were measured" in capsys.readouterr().out
    assert (known["found"], known["kept"]) == (results["diagnostics"], results["invariance"])
    begin("features", tmp_path, **given, neighbours=9)
    assert "nothing has changed" not in capsys.readouterr().out


def test_a_probe_is_kept_and_can_be_asked_again(checkpoint, tmp_path, capsys):
    results = run(EXPERIMENTS / "probe.ipynb", tmp_path, {"checkpoint": checkpoint, "budget": "smoke", "queries": 20})
    assert faults_of(results, tmp_path) == [] and results["checkpoint"] == checkpoint and results["figures"]
    assert "the numbers mean nothing" in (tmp_path / "report.html").read_text()
    assert {"recall@10 [%], point to pixel", "linear probe, mIoU [%]", "nearest features, mIoU [%]"} <= results["measures"].keys()
    words = shlex.split(results["provenance"]["command"])
    assert words[:3] == ["xmodal", "sweep", "nbs/experiments/probe.ipynb"]
    (again,) = plan(EXPERIMENTS / "probe.ipynb", words[4::2], (), tmp_path / "sweep")
    assert again["parameters"] | {"cache": ""} == {name: p.default for name, p in parameters_of(EXPERIMENTS / "probe.ipynb").items() if name != "out"} | {"checkpoint": checkpoint, "budget": "smoke", "queries": 20}
    capsys.readouterr()
    assert begin("probe", tmp_path, checkpoint=checkpoint, budget="smoke", queries=20)["known"]["scores"]["retrieval"] == results["retrieval"]
    assert "nothing has changed since the scores were measured" in capsys.readouterr().out
    begin("probe", tmp_path, checkpoint=checkpoint, budget="smoke", queries=21)
    assert "nothing has changed" not in capsys.readouterr().out
