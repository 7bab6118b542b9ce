"""The main job, end to end: a street world, pre-training, measurements, a report."""

import json
import re

import pytest

from xmodal.demo import demo, in_percent
from xmodal.experiments import RunFailed
from xmodal.pretrain import load_method


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A shorter demo: one seed, fewer frames and steps."
    out = tmp_path_factory.mktemp("demo")
    return out, demo(out=out, seeds=1, steps=45, frames=24)


def test_training_beats_chance_and_the_random_network(run):
    recall, miou = run[1]["retrieval"]["recall_at_10"], run[1]["linear_probe"]["miou"]
    assert recall["trained"][0] > 3 * recall["random"][0] and recall["trained"][0] > 0.008
    assert 0.1 < miou["trained"][0] < 0.9  # half a minute of training is too short to promise more


def test_results_are_where_they_are_said_to_be(run):
    out, results = run
    assert json.loads((out / "results.json").read_text()) == results
    assert results["report"] == str(out / "report.html")
    method, card = load_method(results["checkpoint"])
    assert card["step"] == card["total"] and card["method"] == "slidr"


def test_report_needs_no_network_and_holds_the_pictures(run):
    page = (run[0] / "report.html").read_text()
    assert "default-src 'none'" in page and not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert page.count("data:image/png;base64,") == 6 and page.count("<iframe ") == 1 and "explorer-state" in page and "retrieval recall@10" in page
    assert in_percent(run[1]["retrieval"]["recall_at_10"]["trained"]) in page


def test_a_finished_demo_is_not_trained_again(run, capfd):
    out, results = run
    again = demo(out=out, seeds=1, steps=45, frames=24)
    assert "going on from step 45 of 45" in capfd.readouterr().out
    assert again["retrieval"] == results["retrieval"] and again["linear_probe"] == results["linear_probe"]


def test_another_run_in_the_same_folder_is_refused(run):
    with pytest.raises(RunFailed, match="it is of another run.*give another folder"):
        demo(out=run[0], seeds=1, steps=18, frames=24)
