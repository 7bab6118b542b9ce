"The page of a sweep: the same query asked of its networks, and what is said where that cannot be done."

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from xmodal.data.datasets import open_dataset, split
from xmodal.data.kitti_write import write_kitti
from xmodal.data.street import Street
from xmodal.experiments import write_json
from xmodal.methods.ppkt import PPKTRecipe
from xmodal.pretrain import pretrain
from xmodal.sweep_report import summarise


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Two networks of two seeds, trained for a step, as a sweep leaves them; and their recordings."
    out = tmp_path_factory.mktemp("sweep")
    world = out.parent / "world"
    write_kitti(Street(frames=4, seed=2, cameras=1, size=(64, 208), beams=16, samples=1, frames_per_drive=2), world)
    recipe = PPKTRecipe.small()
    recipe.pairs, recipe.optimisation.epochs, recipe.network = 64, 1, {"planes": (8,) * 8}
    made = []
    for seed in range(2):
        folder = out / f"pretrain_seed{seed}-0"
        pretrain("ppkt", split(open_dataset("kitti", world))[0], folder, recipe, seed, source={"name": "kitti", "root": str(world)})
        for name in ("loss", "similarity", "pca"):
            (folder / "figures").mkdir(exist_ok=True)
            Image.fromarray(np.full((40, 120, 3), 99 * seed, np.uint8)).save(folder / f"figures/{name}.png")
        figures = [{"title": name, "file": f"figures/{name}.png"} for name in ("loss", "similarity", "pca")]
        write_json(folder / "results.json", {"title": "T", "summary": "S", "provenance": {}, "figures": figures})
        run = {"folder": str(folder), "notebook": "notebooks/pretrain-0.ipynb", "source": "pretrain.ipynb", "stage": 0, "varied": {"seed": seed}, "after": None, "state": "finished"}
        made.append(run | {"parameters": {"seed": seed}, "given": ["seed"], "measures": {"loss": 1.0}, "seconds": 1.0, "digests": {"code": "ab"}, "cwd": "/"})
    return made, world


def test_the_same_query_of_all_runs(runs, monkeypatch):
    import xmodal.viz.similarity as similarity

    asked, figure = [], similarity.queries_figure
    monkeypatch.setattr(similarity, "queries_figure", lambda frame, camera, queries, scale, *how: asked.append((frame.id, queries, scale)) or figure(frame, camera, queries, scale, *how))
    made, _ = runs
    out = Path(made[0]["folder"]).parent
    files = [figure["file"] for figure in summarise(out, made)["figures"]]
    assert files == ["figures/learning_curves.png", "figures/query.jpg", "figures/same_query_1.jpg", "figures/pretrain/pca.png.jpg"]  # not the loss of each run, nor its maps on a scale of their own
    assert all((out / name).is_file() for name in files)
    ((_, queries, (low, high)),) = asked
    assert list(queries) == ["seed 0", "seed 1", "ppkt, random weights"] and len({tuple(query.uv) for query in queries.values()}) == 1
    assert low < min(query.points.min() for query in queries.values()) + 0.2 and high <= 1.001


def test_recordings_that_are_gone(runs):
    made, world = runs
    world.rename(world.with_name("elsewhere"))
    try:
        out = Path(made[0]["folder"]).parent
        results = summarise(out, made)
    finally:
        world.with_name("elsewhere").rename(world)
    assert [figure["file"] for figure in results["figures"]] == ["figures/learning_curves.png", "figures/pretrain/similarity.png.jpg", "figures/pretrain/pca.png.jpg"]
    assert results["appendix"][0]["title"] == "Pictures that could not be made" and str(world) in results["appendix"][0]["text"]
    assert str(world) in (out / "report.html").read_text()


def test_a_damaged_checkpoint_costs_no_map_of_another(runs, capsys):
    made, _ = runs
    out, path = Path(made[0]["folder"]).parent, Path(made[0]["folder"]) / "last.safetensors"
    whole = path.read_bytes()
    for size in (len(whole) // 2, 0):
        path.write_bytes(whole[:size])
        try:
            results = summarise(out, made)
        finally:
            path.write_bytes(whole)
        assert "figures/same_query_1.jpg" in [figure["file"] for figure in results["figures"]]
        assert "asked of 1 of 2 networks" in next(figure["text"] for figure in results["figures"] if figure["file"] == "figures/query.jpg")
        assert "not shown: similarity map of seed 0: " in capsys.readouterr().out and "seed 0" in results["appendix"][0]["text"]


def test_no_picture_costs_the_table(runs, monkeypatch, capsys):
    import torch
    import xmodal.same_query as same_query

    made, _ = runs
    out = Path(made[0]["folder"]).parent

    def full(*_):
        assert json.loads((out / "results.json").read_text())["tables"] and "mean ± standard" in capsys.readouterr().out
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    (out / "results.json").unlink()
    monkeypatch.setattr(same_query, "pixel_to_ask", full)
    (Path(made[0]["folder"]) / "figures/pca.png").write_bytes(b"no picture")
    results = summarise(out, made)
    assert [figure["file"] for figure in results["figures"]] == ["figures/learning_curves.png", "figures/pretrain/similarity.png.jpg", "figures/pretrain/pca.png.jpg"]
    told = results["appendix"][0]["text"]
    assert "similarity maps: OutOfMemoryError CUDA out of memory" in told and "pca.png of seed 0: cannot identify image file" in told


def test_networks_that_may_know_the_frame_are_named(runs, monkeypatch):
    import xmodal.same_query as same_query

    made, _ = runs
    card_in = same_query.checkpoint_in
    text = lambda: next(figure["text"] for figure in summarise(Path(made[0]["folder"]).parent, made)["figures"] if figure["file"] == "figures/query.jpg")
    assert "perhaps" not in text()
    other = lambda card: card | {"data": card["data"] | {"digest": "of others"}}

    def changed(folder):
        path, card = card_in(folder)
        return path, other(card) if "seed1" in str(folder) else card

    monkeypatch.setattr(same_query, "checkpoint_in", changed)
    told = text()
    assert "a frame held out of the training of seed 0, asked" in told and "Of other frames, perhaps of this one too, learned: seed 1." in told
