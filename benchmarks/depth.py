"""Scratch against pre-trained on KITTI: one image network, two sets of weights, the same depth training.

A small SimIPU learns from the training drives without labels; then depth networks are trained and measured, truth from projected LiDAR.
Frames, steps, order and decoder of a row depend on the seed alone. The first table has a depth map for each training frame, the second
for every fifth: pre-training sees all of them without. A run that was stopped goes on where it was. Pictures are never written.

    python benchmarks/depth.py --root KITTI_RAW [--out runs/depth_kitti] [--seeds 3] [--steps 60] [--pretrain-steps 1000] [--lists TRAIN.txt TEST.txt]

Without the lists of the Eigen split every fourth drive is held out. Two drives with 33 frames take half an hour on one core; the numbers
of another recording or size stand for that one alone.
"""

import argparse
import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import torch

from xmodal.data.datasets import Remembered, Subset
from xmodal.data.kitti import KittiRaw
from xmodal.evaluation.depth import Start, blind_depth, compare_depth, depth_table, score_depth, show_table
from xmodal.evaluation.depth_frames import DepthProtocol, eigen_split
from xmodal.evaluation.protocols import PUBLISHED, simipu
from xmodal.pretrain import pretrain, recipes

PAPER = {"ResNet, scratch": "scratch", "ResNet, SimIPU": "SimIPU-KITTI", "Lite0, ImageNet": "ImageNet"}  # row's name -> the paper's, of ResNet-50


def epochs(frames: Remembered | Subset, batch_size: int, steps: int) -> int:
    "That make at least so many steps."
    return -(-steps // max(len(frames) // batch_size, 1))


def pretrained(frames: Remembered, folder: Path, steps: int) -> Path:
    "A checkpoint of the small SimIPU: no intensity, images at a quarter to half of their size, of which the depth networks see a quarter."
    recipe = recipes("simipu")["small"]()
    recipe.xyz, recipe.image_size = True, ((94, 311), (188, 621))
    recipe.optimisation.epochs = epochs(frames, recipe.optimisation.batch_size, steps)
    run = pretrain("simipu", frames, folder, recipe)
    if not run.finished:
        raise KeyboardInterrupt(f"stopped at step {run.step} of {run.total} of the pre-training; the same command goes on from there")
    return run.checkpoint


def starts(checkpoint: Path, more: bool) -> dict[str, Start]:
    rows = {"ResNet, scratch": Start(checkpoint, False), "ResNet, SimIPU": Start(checkpoint)}
    frozen = {"frozen ResNet, scratch": Start(checkpoint, False, True), "frozen ResNet, SimIPU": Start(checkpoint, True, True)}
    return rows | (frozen | {"Lite0, scratch": Start("imagenet", False), "Lite0, ImageNet": Start("imagenet")} if more else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="KITTI's raw recordings: the folder of days")
    parser.add_argument("--out", type=Path, default=Path("runs/depth_kitti"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="of each depth network, at least")
    parser.add_argument("--pretrain-steps", type=int, default=1000)
    parser.add_argument("--lists", nargs=2, metavar=("TRAIN", "TEST"), default=(None, None), help="of the Eigen split")
    options = parser.parse_args()

    train, test = map(Remembered, eigen_split(KittiRaw(options.root, cameras=("image_02",)), *options.lists))
    began = time.monotonic()
    checkpoint = pretrained(train, options.out / "simipu", options.pretrain_steps)
    few = Subset(train, range(0, len(train), 5))
    few.name = f"{train.name}, every fifth frame"
    base = replace(DepthProtocol.laptop(DepthProtocol.kitti()), shrink=4)
    papers = {result.method: result for result in PUBLISHED if result.protocol is simipu and result.dataset == "kitti"}
    cores = f"{torch.get_num_threads()} of {os.cpu_count()} cores" if not torch.cuda.is_available() else torch.cuda.get_device_name()
    print(f"{platform.machine()}, {cores}, torch {torch.__version__}; measured on {len(test)} frames: {test.name}")
    for labelled, name in ((train, "all"), (few, "few")):
        protocol = replace(base, epochs=epochs(labelled, base.batch_size, options.steps))
        runs = compare_depth(starts(checkpoint, name == "all"), labelled, test, protocol, options.out / name, options.seeds)
        guess = blind_depth(labelled, protocol)
        blind = score_depth(lambda image: guess, test, protocol)
        total = next(iter(runs.values()))[0]["total"]
        print(f"\n{len(labelled)} labelled frames, {total} steps of {protocol.batch_size}; protocol {protocol.hash[:12]}; SimIPU: {options.pretrain_steps} steps on {len(train)} frames")
        print(show_table(depth_table(runs, blind, {row: papers[method] for row, method in PAPER.items() if row in runs})))
    print(f"\n{(time.monotonic() - began) / 60:.0f} min of this call")


if __name__ == "__main__":
    main()
