"""SLidR's options beside SLidR itself: tolerant negatives and balancing (ST-SLidR), temporal agreement; same street, same steps, same seeds.

Each row: trained from scratch on drives of the built-in world, then asked on other streets: is the right superpixel of a superpoint
among the 10 most similar (retrieval), and what class have the 20 most similar points (kNN, behind the head), or does a linear map of
the features before the head give (probe)? The last row is the network before training. A short run says what an option costs and that
it learns; it does not rank the options: look at the spread over seeds.

    .venv/bin/python benchmarks/slidr_options.py [--steps 24] [--seeds 0 1 ...] [--frames 16] [--cameras 1] [--height 96] [--beams 16] [--only NAME ...]
"""

import argparse
import contextlib
import io
import statistics
import tempfile
from dataclasses import replace

import torch

from xmodal.batch import Voxels
from xmodal.data.datasets import Successors
from xmodal.data.street import Street
from xmodal.evaluation.retrieval import retrieval
from xmodal.evaluation.segmentation import knn, linear_probe
from xmodal.methods.slidr import SLidRRecipe
from xmodal.pretrain import load_method, pretrain, random_twin
from xmodal.superpixels import Superpixels, superpixels
from xmodal.training.fit import Fitted, Machine
from xmodal.views import Augmentation

OPTIONS = {  # 1 % of the 60 superpixels of so small a batch would be none: 5 %
    "SLidR": {},
    "tolerate 5 %": {"tolerate": 0.05},
    "balance": {"balance": 0.5},
    "tolerate, balance": {"tolerate": 0.05, "balance": 0.5},
    "temporal": {"temporal": 1.0},
    "all": {"tolerate": 0.05, "balance": 0.5, "temporal": 1.0},
}
SHORT = ("SLidR", "tolerate, balance", "temporal")


class Held(list):
    "Frames in memory: the street would render them again each time."

    def __init__(self, street: Street):
        super().__init__(street[i] for i in range(len(street)))
        self.name, self.ids, self.classes = street.name, street.ids, street.classes


def scores(method, train: Held, test: Held) -> list[float]:
    "Of 100: recall of the right superpixel among the first 10, kNN mIoU, probe mIoU."
    segments = lambda frame, i: superpixels(frame.cameras[i].image, method.recipe.superpixels)
    found = retrieval(method, test, segments, queries=300)["superpoint_to_superpixel"]["recall_at_10"]
    return [100 * found, *(100 * probe(method, train[::4], test, train.classes)["miou"] for probe in (knn, linear_probe))]


def trained(change: dict, options: argparse.Namespace, train: Held, seed: int) -> tuple[torch.nn.Module, Fitted]:
    "A method after its training, and what the run came to."
    base = SLidRRecipe.small()
    pairs = len(Successors(train)) if "temporal" in change else len(train)
    recipe = replace(
        base,
        network={"planes": (16, 32, 48, 64, 48, 32, 32, 32)},
        voxels=Voxels(size=0.4),
        superpixels=Superpixels(segments=options.height * 2 // 3),
        augmentation=Augmentation(size=(options.height, options.height * 13 // 7), min_pairs=256),
        optimisation=replace(base.optimisation, epochs=max(round(options.steps * base.optimisation.batch_size / pairs), 1)),
        **change,
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        fitted = pretrain("slidr", train, folder, recipe, seed, machine=Machine(save_every=1e9))
        if not fitted.finished:  # a signal ends a training in good order; its half is no result
            raise SystemExit(f"stopped after {fitted.step} of {fitted.total} steps")
        return load_method(fitted.checkpoint)[0], fitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24, help="a multiple of 24 with 16 frames, so that all options have the same number")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--frames", type=int, default=16, help="to train on; 8 others to test")
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--height", type=int, default=96, help="of the images, in pixels")
    parser.add_argument("--beams", type=int, default=16, choices=(16, 32, 64), help="of the LiDAR")
    parser.add_argument("--only", nargs="*", default=SHORT, choices=list(OPTIONS), help="which options")
    options = parser.parse_args()
    sizes = dict(frames_per_drive=4, beams=options.beams, cameras=options.cameras, size=(options.height, options.height * 10 // 3), samples=1)
    train, test = Held(Street(options.frames, seed=1, **sizes)), Held(Street(8, seed=2, **sizes))
    print(f"{'':24}steps  s/step   recall@10   kNN mIoU   probe mIoU   (of 100, seeds {', '.join(map(str, options.seeds))}: mean (lowest-highest))")
    rows, twins = {}, []
    for name in options.only:
        rows[name] = []
        for seed in options.seeds:
            method, fitted = trained(OPTIONS[name], options, train, seed)
            rows[name].append(scores(method, train, test))
            if name == options.only[0]:
                twins.append(scores(random_twin(method, "slidr", seed), train, test))
        show(name, rows[name], f"{fitted.step:5}  {fitted.seconds / fitted.step:6.2f}")
    show("before training", twins, " " * 13)


def show(name: str, table: list[list[float]], run: str) -> None:
    cells = [f"{statistics.mean(column):5.1f} ({min(column):.1f}-{max(column):.1f})" for column in zip(*table)]
    print(f"{name:24}{run}   " + "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()
