"""What it costs to evaluate on all raw points, beside the network's forward pass: one scan of about 120,000 points, MinkUNet34 at the paper's size.

    python benchmarks/full_points.py [--repeats 5] [--views 8] [--size 0.1] [--scan FILE.bin] [--planes ...] [--threads 2]

Forward: the network on a ready batch, its last layer and the way from voxels to points included. Whole: `evaluate_points`, that is voxels, batch, forward,
softmax of all points, confusion by distance, calibration. Both in turn, so that a busy machine slows both; the ratio is the median over the pairs, of seconds on
the clock and of seconds of the processor, which other work on the machine hardly touches (with one thread: --threads 1). A scan of KITTI's (x y z intensity,
float32) has no labels: they are drawn, which costs the same. The parts of the way are timed alone, in the same process.
"""

import argparse
import contextlib
import io
import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from xmodal.batch import Voxels, collate
from xmodal.data.kitti_files import read_scan
from xmodal.data.street import Street
from xmodal.evaluation.full_points import Voting, evaluate_points
from xmodal.evaluation.metrics import calibration_bins, confusion_by_range
from xmodal.frame import Frame
from xmodal.models.minkunet import MinkUNet34
from xmodal.sparse import SparseTensor
from xmodal.views import view_of

CLASSES = tuple(map(str, range(20)))  # as many as SemanticKITTI has


class Network(torch.nn.Module):
    "MinkUNet34 with a linear head on voxels."

    reads_images = False

    def __init__(self, size: float, planes: tuple[int, ...] | None):
        super().__init__()
        self.voxels = Voxels(size)
        self.backbone = MinkUNet34(1, 0, **({"planes": planes} if planes else {}))
        self.head = torch.nn.Linear(self.backbone.channels, len(CLASSES))

    def classify(self, batch):
        return self.head(self.backbone.backbone(SparseTensor(batch.feats, batch.coords)).feats)[batch.inverse]


def scan(path: str | None) -> Frame:
    "The scan of a file with drawn labels, or one of the street world."
    if path is None:
        frame = Street(1, size=(16, 16), cameras=1, beams=64, samples=1, frames_per_drive=1)[0]
        return replace(frame, cameras=[])
    points, intensity = read_scan(Path(path))
    return Frame("scan", points, intensity, semantic=np.random.default_rng(0).integers(0, len(CLASSES), len(points)).astype(np.int32))


def seconds(call) -> np.ndarray:  # (2,): on the clock, of the processor
    start = np.array([time.perf_counter(), time.process_time()])
    call()
    return np.array([time.perf_counter(), time.process_time()]) - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--views", type=int, default=8, help="of the vote that is timed as well; 1 = none")
    parser.add_argument("--size", type=float, default=0.1, help="of the voxels, in metres")
    parser.add_argument("--scan", help="a .bin file instead of the street world's")
    parser.add_argument("--planes", type=int, nargs=8, help="channels of a smaller network")
    parser.add_argument("--threads", type=int, help="of torch; its own choice where left out")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    frame, network = scan(args.scan), Network(args.size, args.planes and tuple(args.planes)).eval()
    batch = collate([view_of(frame)], network.voxels)
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), platform.machine())
    print(f"{len(frame.points):,} points, {len(batch.coords):,} voxels of {args.size:g} m, {sum(p.numel() for p in network.parameters()) / 1e6:.1f} M weights")
    print(f"{model}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads of torch, load {os.getloadavg()[0]:.1f}", flush=True)

    @torch.no_grad()
    def forward():
        return network.classify(batch)

    def whole(voting=Voting()):
        with contextlib.redirect_stdout(io.StringIO()):
            return evaluate_points(network, [frame], CLASSES, voting)

    forward()
    times = {"forward": [], "whole": []}
    for i in range(args.repeats):
        pair = (("forward", forward), ("whole", whole))
        for name, call in pair if i % 2 == 0 else pair[::-1]:
            times[name].append(seconds(call))
    table = {name: np.array(rows) for name, rows in times.items()}
    table["extra"] = table["whole"] / table["forward"] - 1
    print(f"{'':10}{'clock':>10}{'processor':>12}   (lowest-highest)")
    for name, rows in table.items():
        cell = (lambda value: f"{value:.1%}") if name == "extra" else (lambda value: f"{value:.3f} s")
        middle, low, high = np.median(rows, 0), rows.min(0), rows.max(0)
        spread = ", ".join(f"{cell(a)} to {cell(b)}" for a, b in zip(low, high))
        print(f"{name:10}{cell(middle[0]):>10}{cell(middle[1]):>12}   ({spread})", flush=True)
    print(f"the median of {args.repeats} pairs; extra: of the forward pass, at most 15 % is wanted")
    parts(frame, batch, network, forward())
    if args.views > 1:
        many = seconds(lambda: whole(Voting(args.views)))
        ratio = [many / np.median(table[name], 0) for name in ("forward", "whole")]
        print(f"{args.views} views: {many[0]:.3f} s, {many[1]:.3f} s; {ratio[0][0]:.2f}, {ratio[0][1]:.2f} forward passes; {ratio[1][0]:.2f}, {ratio[1][1]:.2f} evaluations of one view")
    print(f"load {os.getloadavg()[0]:.1f} at the end")


def parts(frame: Frame, batch, network: Network, logits: torch.Tensor, repeats: int = 5) -> None:
    "What is beside the forward pass, piece by piece."
    said = logits[:, 1:].softmax(1)
    confidence, predicted = (values.numpy() for values in torch.nn.functional.pad(said, (1, 0)).max(1))
    pieces = {
        "view, voxels, batch": lambda: collate([view_of(frame)], network.voxels),
        "softmax, best class": lambda: torch.nn.functional.pad(logits[:, 1:].softmax(1), (1, 0)).max(1),
        "confusion by distance": lambda: confusion_by_range(frame.semantic, predicted, frame.points, len(CLASSES)),
        "calibration": lambda: calibration_bins(frame.semantic, predicted, np.minimum(confidence, 1)),
    }
    for name, call in pieces.items():
        print(f"  {name:24}{1000 * np.median([seconds(call) for _ in range(repeats)], 0)[1]:8.1f} ms of the processor")


if __name__ == "__main__":
    main()
