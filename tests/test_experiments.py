"""The experiment notebooks: each says what its parameters may be, refuses before any work what it cannot measure, and leaves sound results."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("papermill", reason="runs are notebooks, executed by papermill")
pytest.importorskip("lightning", reason="training runs on Lightning Fabric")
pytest.importorskip("open3d", reason="the street world is rendered with Open3D")
matplotlib = pytest.importorskip("matplotlib", reason="the notebooks draw figures")

from xmodal.data.datasets import open_dataset, split  # noqa: E402
from xmodal.data.kitti_write import write_kitti  # noqa: E402
from xmodal.data.nuscenes_write import write_nuscenes  # noqa: E402
from xmodal.data.street import Street  # noqa: E402
from xmodal.demo import EXPERIMENTS  # noqa: E402
from xmodal.experiments import RunFailed, faults_of, parameters_of, run  # noqa: E402
from xmodal.frame import BadData  # noqa: E402
from xmodal.methods.ppkt import PPKTRecipe  # noqa: E402
from xmodal.pretrain import pretrain  # noqa: E402

NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.ipynb"))
TABLES = tuple(name for name in NAMES if name.startswith("table_"))
MEASURES = ("finetune", "depth", "panoptic", "robustness", "features", "calibrate", "explore")  # of a checkpoint, with a budget


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
        if "figures.mkdir" in source or "carry_out(" in source:  # from here on it works
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
    ],
)
def test_what_a_measure_cannot_do(name, parameters, cause, checkpoint, tmp_path):
    with pytest.raises(ValueError, match=cause):
        begin(name, tmp_path / "out", checkpoint=checkpoint, budget="smoke", **parameters)
    assert not (tmp_path / "out").exists()


def test_what_will_be_done_is_told(checkpoint, tmp_path, capsys):
    shortened = begin("finetune", tmp_path / "out", checkpoint=checkpoint, mode="fine-tuning", budget="smoke")["asked"]
    said = capsys.readouterr().out
    assert "under the protocol quick, smoke" in said and "2 frames; measured on 2 frames" in said and "from scratch" in said and "min from" in said
    whole = begin("finetune", tmp_path / "out", checkpoint=checkpoint, mode="fine-tuning")["asked"]
    assert (shortened.name, whole.name) == ("quick, smoke", "quick") and shortened.hash != whole.hash
    assert {recipe.epochs for *_, recipe in shortened.settings[0].recipes} == {1}
    begin("robustness", tmp_path / "out", checkpoint=checkpoint, budget="smoke", corruptions=["fog", "snow"])
    assert "on 1 held-out frames under fog, snow, each at 3 severities" in capsys.readouterr().out


# --- tables of the literature, and runs beside each other


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_asked_in_the_same_way(name):
    known = parameters_of(EXPERIMENTS / f"{name}.ipynb")
    assert {"out", "seeds", "seed", "workers", "budget"} <= known.keys() and known["seeds"].limits[0] == 1
    assert known["budget"].choices == ["smoke", "laptop", "paper"] and known["budget"].default == "laptop"
    text = (EXPERIMENTS / f"{name}.ipynb").read_text()
    assert "- skip_exec: true" in text and "## What will be done" in text and "report(out)" in sources(name)[-1]


@pytest.mark.parametrize(
    ("name", "first"),
    [("table_slidr_few_shot", "nuscenes"), ("table_slidr_fractions", "nuscenes"), ("table_nclr_fractions", "nuscenes"), ("table_simipu_depth", "pretraining"), ("table_depthcontrast", "scannet")],
)
def test_a_table_without_its_data(name, first, tmp_path):
    assert refused(name, tmp_path / "out") == f"{first} is empty: this table is measured on recordings; give their folder: {first}=/path/to/them"
    assert refused(name, tmp_path / "out", **{first: str(tmp_path / "nowhere")}).endswith("there is no such folder of recordings")
    assert "at least one network" in refused(name, tmp_path / "out", seeds=0)


def test_published_numbers_want_what_was_published(world, tmp_path):
    nuscenes = str(write_nuscenes(Street(4, cameras=1, size=(64, 208), beams=16, samples=1, frames_per_drive=2), tmp_path / "nuscenes"))
    for name in ("table_slidr_few_shot", "table_slidr_fractions", "table_nclr_fractions"):
        assert "comes with other classes than the protocol" in refused(name, tmp_path / "out", nuscenes=nuscenes, budget="paper")
    assert "the protocol is defined by the published lists" in refused("table_simipu_depth", tmp_path / "out", pretraining=str(world), kitti=str(world), budget="paper")
    assert "it holds kitti" in refused("table_depthcontrast", tmp_path / "out", scannet=str(world), budget="paper")


def test_depthcontrasts_table_says_what_is_missing(world, tmp_path, capsys):
    begin("table_depthcontrast", tmp_path / "out", scannet=str(world), budget="smoke")
    assert "not measured: mAP@0.25 [%] under depthcontrast: VoteNet is not part of this library" in capsys.readouterr().out


def test_runs_beside_each_other(checkpoint, tmp_path):
    for runs, cause in (([], "two runs or more"), (["a", "./a"], "given twice"), (["a", "b"], "no run here")):
        with pytest.raises((ValueError, FileNotFoundError), match=cause):
            begin("compare", tmp_path / "out", runs=runs)
    one, two = (tmp_path / name for name in ("one", "two"))
    for folder, loss in ((one, 2.0), (two, 1.5)):
        shutil.copytree(Path(checkpoint).parent, folder)
        (folder / "results.json").write_text(json.dumps({"measures": {"loss": loss}, "provenance": {}}))
    results = run(EXPERIMENTS / "compare.ipynb", tmp_path / "out", {"runs": [str(one), str(two)]})
    assert faults_of(results, tmp_path / "out") == [] and results["checkpoints"].keys() == {"one", "two"}
    assert ["measures.loss", "2", "1.5", "0.5"] in results["tables"][-1]["rows"]
    assert {path.name for path in (tmp_path / "out/figures").iterdir()} == {"curves.png", "similarity.png"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"budget": "smoke"}, "recipe small, budget smoke: 2 epochs of 1 steps"),
        ({"budget": "laptop"}, "recipe small, budget laptop: 120 epochs of 1 steps"),
        ({"budget": "smoke", "steps": 7}, "recipe small, budget smoke: 7 epochs of 1 steps"),  # what is given wins
        ({"budget": "laptop", "steps": 0}, "recipe small, budget laptop: 10 epochs of 1 steps"),
    ],
)
def test_a_budget_is_a_recipe_and_steps(given, said, world, tmp_path, capsys):
    begin("pretrain", tmp_path / "out", data="kitti", root=str(world), method="ppkt", **given)
    told = capsys.readouterr().out
    assert said in told and "weights and optimiser" in told and "s on this machine's CPU" in told


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
    assert results["measures"]["mIoU, fine-tuning, 100 %, quick, smoke"] == scores["miou"]
    assert {row[0] for row in by_class} >= set(scores["iou"]) and sum(row[-1] for row in by_range[1:]) == scores["points"]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"confusion.png", "errors.png"}
    page = Path(results["report"]).read_text()
    assert "Near and far" in page and "calibration error" in page
