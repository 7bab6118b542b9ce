"""The command line: what it explains, what it refuses, and a session from an empty folder to a report."""

import inspect
import json
import re
import subprocess
import sys
from dataclasses import fields
from typing import get_args, get_type_hints

import numpy as np
import pytest
from conftest import refusal

pytest.importorskip("tyro", reason="the command line is parsed with tyro")

from xmodal import cli  # noqa: E402
from xmodal.pretrain import METHODS  # noqa: E402

COMMANDS = {command.__name__.lower(): command for command in get_args(cli.Command)}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "Relative folders, such as the default `runs/`, are the test's own."
    monkeypatch.chdir(tmp_path)


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_shows_all_commands_in_the_order_of_use(capsys):
    shown = help_of(capsys)
    names = ["world", "datasets", "check", "superpixels", "methods", "pretrain", "evaluate", "report", "explore", "calibrate", "survey", "sweep", "runs", "compare", "demo"]
    assert list(COMMANDS) == names
    places = [shown.index(f"• {name} ") for name in names]
    assert places == sorted(places)
    for command in COMMANDS.values():
        assert len(command.__doc__) < 60 and command.__doc__ in shown  # in one line of a terminal of 80 columns
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 0 and capsys.readouterr().out == shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name, capsys):
    shown = " ".join(help_of(capsys, name).replace("│", " ").split())
    source = inspect.getsource(COMMANDS[name])
    for field in fields(COMMANDS[name]):
        words = field.name.replace("_", "-")
        comment = re.search(rf"^    {field.name}: .*  # (.+)$", source, re.MULTILINE)[1]
        assert (f"{'-' if len(words) == 1 else '--'}{words}" in shown or words.upper() in shown) and comment in shown
    assert "{None}" not in shown


def test_choices_are_those_of_the_package():
    from xmodal.data.datasets import open_dataset

    assert get_args(get_type_hints(cli.Pretrain)["method"]) == tuple(METHODS)
    for name in get_args(cli.Data):
        try:
            open_dataset(name)
        except ValueError as error:
            assert "unknown" not in str(error)


def test_methods_says_of_each_what_it_is(capsys):
    assert cli.main(["methods"]) == 0
    parts = re.split(r"^(\w+): ", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    assert tuple(parts[::2]) == tuple(METHODS)
    for text in parts[1::2]:
        said = dict(re.findall(r"^  (paper|learns from|needs|networks|recipes) +(.+)$", text, re.MULTILINE))
        assert len(said) == 5 and re.search(r"\d{4}\.\d{5}", said["paper"]), said  # an arXiv number
        assert "paper" in said["recipes"].split(", ") and "small" in said["recipes"].split(", ")


BROKEN = "2026_01_01/2026_01_01_drive_0001_sync/velodyne_points/data"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("wrld", "wrld; Available subcommands: world, datasets"),
        ("world", "OUT"),
        ("world out --foo 1", "--foo, 1 (see xmodal world --help)"),
        ("world out --frame 3", "--frame, 3; Perhaps you meant: --frames INT"),
        ("world out --frames many", "--frames: invalid literal for int() with base 10: 'many'"),
        ("world out --frames", "--frames"),
        ("world out --size 64", "'--size'. Expected 2 values"),
        ("world out --layout waymo", "'waymo' for argument '--layout'"),
        ("world out --frames 0", "frames = 0 cannot be; ask for at least one"),
        ("world out --cameras 9", "the rig has 1 to 5"),
        ("world a-file", "a-file/2026_01_01: Not a directory"),
        ("superpixels nowhere", "nowhere: there is no such folder"),
        ("superpixels .", ".: it looks like none of kitti, kitti-object"),
        ("superpixels . --data kitti-object", ".: no KITTI object set here"),
        ("superpixels broken", "calib_cam_to_cam.txt"),
        ("superpixels broken --segments 0", "--segments 0 cannot be; give at least 1"),
        ("superpixels broken --workers 0", "--workers 0 cannot be; give at least 1"),
        ("pretrain slide", "'slide'"),
        ("pretrain slidr --frames 3", "--frames"),
        ("pretrain slidr", "give the folder of the recordings (--root)"),
        ("pretrain slidr --root nowhere", "nowhere: there is no such folder"),
        ("pretrain slidr --root broken --epochs 0", "--epochs 0 cannot be"),
        ("pretrain slidr --root broken --batch-size -2", "--batch-size -2 cannot be"),
        ("pretrain slidr --root broken --seed -1", "--seed -1 cannot be"),
        ("pretrain slidr --root broken --lr nan", "--lr nan cannot be"),
        ("pretrain ppkt --root broken --recipe large", "recipe = large: ppkt has paper, small"),
        ("pretrain pointcontrast --root broken --image-weights a.pth", "pointcontrast starts from no image weights"),
        ("pretrain slidr --root broken --stop-after 0", "--stop-after 0 cannot be"),
        ("pretrain ppkt --root broken --segments 9", "ppkt uses no superpixels"),
        ("evaluate nowhere", "nowhere: there is no last.safetensors here"),
        ("evaluate torn", "torn/last.safetensors: not a whole safetensors file"),
        ("report nowhere", "nowhere/results.json: there are no results"),
        ("explore nowhere", "nowhere: there is no last.safetensors here"),
        ("explore torn", "torn/last.safetensors: not a whole safetensors file"),
        ("explore torn --frames 0", "--frames 0 cannot be; give at least 1"),
        ("demo --seeds 0", "--seeds 0 cannot be; give at least 1"),
        ("demo --data kitti", "needs the folder of the recordings"),
        ("demo --data kiti --root broken", "unknown dataset 'kiti'; did you mean 'kitti'?"),
        ("pretrain slidr --data street --root torn", "torn: it holds something else (last.safetensors)"),
        ("compare nowhere broken", "nowhere: there is no such folder"),
        ("compare broken broken", "broken: no run here: neither run.json"),
    ],
)
def test_refusals_are_one_line(words, expected, capsys, tmp_path):
    (tmp_path / "a-file").touch()
    (tmp_path / "broken" / BROKEN).mkdir(parents=True)
    (tmp_path / "broken" / BROKEN / "0000000000.bin").touch()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/last.safetensors").write_bytes(b"\x09")
    assert expected in refusal(capsys, *words.split())


def test_a_missing_package_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)  # importing it fails as if it were not installed
    text = refusal(capsys, "world", "out", "--frames", 1)
    assert "open3d" in text and "pip install" in text


def test_many_lines_of_a_message_become_one(capsys, monkeypatch):
    def run(self):
        raise OSError("no space\n  left on\ndevice")

    monkeypatch.setattr(cli.Demo, "run", run)
    assert refusal(capsys, "demo") == "xmodal: no space left on device"


@pytest.mark.parametrize("bug", [lambda: np.zeros(3) + np.zeros(4), lambda: int("x"), lambda: {}["key"], lambda: __import__("xmodal.nothing")])
def test_bugs_keep_their_traceback(bug, monkeypatch):
    monkeypatch.setattr(cli.Report, "run", lambda self: bug())
    with pytest.raises((ValueError, KeyError, ImportError)):
        cli.main(["report", "run"])


def test_a_value_error_from_below_the_package_is_a_bug(monkeypatch):
    from xmodal.data import street

    monkeypatch.setattr(street.Street, "__post_init__", lambda self: np.zeros(3) + np.zeros(4))
    with pytest.raises(ValueError, match="broadcast"):
        cli.main(["world", "out"])


def test_ctrl_c(capsys, monkeypatch):
    def run(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Demo, "run", run)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "xmodal: stopped; what is done is kept, give the same command again to go on\n"


@pytest.fixture
def measured(tmp_path, monkeypatch):
    "For `xmodal evaluate runs/x`: its folder, what each measure raises instead of taking time, and a training to a step."
    import torch

    from xmodal import experiments
    from xmodal.results import state_of
    from xmodal.training.checkpoint import save

    run_folder, raised = tmp_path / "runs/x", {}

    def measure(notebook, out, parameters):
        out.mkdir(parents=True, exist_ok=True)
        if error := raised.get(notebook.stem):
            raise error
        results = {"title": notebook.stem, "summary": "", "headlines": [], "measures": {f"{notebook.stem}, score": 1.0}, "provenance": state_of(parameters["checkpoint"])}
        experiments.write_json(out / "results.json", results)
        return results

    def train(step):
        return save(run_folder / "last.safetensors", {"weight": torch.full((2,), float(step))}, {"method": "slidr", "step": step, "seed": 0})

    monkeypatch.setattr(experiments, "run", measure)
    monkeypatch.setattr(cli, "trained", lambda folder, *_: (folder / "last.safetensors", {"method": "slidr", "seed": 0}, {"name": "kitti"}))
    train(100)
    return run_folder, raised, train


@pytest.mark.parametrize("sign", ["run.json", "results.json"])
def test_evaluate_keeps_what_a_run_has_left(sign, measured, capsys):
    folder, *_ = measured
    own = '{"title": "Pre-training", "summary": "", "state": "finished", "measures": {"loss at the end": 2.5}, "provenance": {}}'
    (folder / sign).write_text(own)
    for _ in range(2):
        assert cli.main("evaluate runs/x".split()) == 0
        assert "report: runs/x/evaluation/report.html" in capsys.readouterr().out
    assert (folder / sign).read_text() == own and {path.name for path in folder.iterdir()} == {sign, "last.json", "last.safetensors", "evaluation"}
    assert "What x has learned" in (folder / "evaluation/report.html").read_text()


def test_evaluate_combines_one_state_of_the_checkpoint(measured, capsys):
    folder, _, train = measured
    assert cli.main("evaluate runs/x --measures probe finetune".split()) == 0
    assert "report: runs/x/report.html" in capsys.readouterr().out
    train(200)
    assert cli.main("evaluate runs/x".split()) == 0
    assert "left out: finetune was measured at step 100, the checkpoint is at step 200: measure it again" in capsys.readouterr().out
    assert json.loads((folder / "results.json").read_text())["measures"] == {"probe, score": 1.0}
    assert cli.main("evaluate runs/x --measures finetune".split()) == 0
    assert "left out" not in capsys.readouterr().out
    assert set(json.loads((folder / "results.json").read_text())["parts"]) == {"probe", "finetune"}


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)])
def test_a_measure_that_is_stopped_leaves_the_one_before(error, code, measured):
    folder, raised, _ = measured
    assert cli.main("evaluate runs/x".split()) == 0
    before = (folder / "probe/results.json").read_text()
    raised["probe"] = error
    assert cli.main("evaluate runs/x".split()) == code
    assert (folder / "probe/results.json").read_text() == before


def test_help_loads_nothing_heavy():
    code = """
import sys
from xmodal.cli import main
try:
    main(["--help"])
except SystemExit:
    print(*(name for name in ("torch", "scipy", "cv2", "open3d", "PIL", "lightning", "papermill", "matplotlib") if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == [] and "xmodal world streets" in done.stdout


def test_from_an_empty_folder_to_a_report(tmp_path, capsys):
    pytest.importorskip("open3d", reason="the street world is rendered with Open3D")
    pytest.importorskip("cv2", reason="superpixels need OpenCV")
    pytest.importorskip("papermill", reason="the evaluation is a notebook")

    def done(words):
        assert cli.main(words.split()) == 0
        return capsys.readouterr().out

    assert "4 frames in streets" in done("world streets --frames 4 --frames-per-drive 2 --size 64 208 --beams 16 --layout kitti")
    scans = sorted((tmp_path / "streets").rglob("velodyne_points/data/*.bin"))
    assert len(scans) == 4
    assert "superpixels of 4 frames" in done("superpixels streets --segments 40")
    assert len(list((tmp_path / "runs/superpixels").rglob("*.png"))) == 8  # two cameras

    train = "pretrain slidr --root streets --out runs/first --segments 40 --epochs 1 --batch-size 1"
    assert "step 1 of 2" in done(f"{train} --stop-after 1")
    assert "xmodal evaluate runs/first" in done(train)
    assert len(list((tmp_path / "runs/superpixels").rglob("*.png"))) == 8  # those were used, no others made
    card = json.loads((tmp_path / "runs/first/last.json").read_text())
    assert card["step"] == card["total"] == 2 and card["data"]["frames"] == 2 and card["recipe"]["superpixels"]["segments"] == 40
    assert "another run" in refusal(capsys, *train.split(), "--lr", 0.1)
    assert "nowhere: there is no such folder" in refusal(capsys, "evaluate", "runs/first", "--root", "nowhere")

    done("pretrain slidr --root streets --out runs/second --segments 40 --epochs 1 --batch-size 1 --seed 1 --stop-after 1")
    listed = done("runs")
    assert re.search(r"finished +first .*step 2 of 2, loss", listed) and re.search(r"stopped +second .*step 1 of 2", listed) and "2 runs: 1 finished, 1 stopped" in listed
    differ = done("compare runs/first runs/second")
    assert "parameter seed" in differ and "runs/first is not evaluated yet: xmodal evaluate runs/first" in differ and "runs/second is not finished: stopped at step 1 of 2" in differ

    assert "linear probe, mIoU" in done("evaluate runs/first")
    results = json.loads((tmp_path / "runs/first/probe/results.json").read_text())
    assert set(results["retrieval"]["point_to_pixel"]) == {"trained", "random"}
    page = tmp_path / "runs/first/report.html"
    page.unlink(missing_ok=True)
    assert "runs/first/report.html" in done("report runs/first")
    assert "<svg" in page.read_text() or "<img" in page.read_text()
    assert "runs/first/explorer.html" in done("explore runs/first --frames 2 --twin")
    page = (tmp_path / "runs/first/explorer.html").read_text()
    assert all(f'id="{key}"' in page for key in ("scene/1", "features/0/slidr", "features/1/random")) and 'id="scene/2"' not in page

    assert "is of slidr, which does not calibrate; train nclr" in refusal(capsys, "calibrate", "runs/first")

    done("pretrain ppkt --root streets --out runs/all --epochs 1 --batch-size 4 --no-hold-out")
    assert "none is left to measure on" in refusal(capsys, "evaluate", "runs/all")
