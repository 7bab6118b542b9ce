"""PointNet++: farthest point sampling beside Open3D's, ball query beside SciPy's tree, and one training step of each encoder.

Ours and theirs take turns, and the ratio is taken pair by pair, so that it holds on a machine whose speed drifts.

    .venv/bin/python benchmarks/pointnet2.py [--scan SCAN.bin] [--threads 2] [--rounds 5] [--device cpu] [--batch 1]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from xmodal.models.grouping import Ball, ball_query, farthest_points, shells
from xmodal.models.pointnet2 import PointNet2MSG, PointNet2SimIPU, PointNet2SSG

SCANS = Path(__file__).parents[2] / "shared/data/kitti_raw/2011_09_26/2011_09_26_drive_9002_sync/velodyne_points/data"
POINTS, KEPT = 16_384, 4096


def cloud(scan: Path | None) -> tuple[str, torch.Tensor]:
    "What it is, and 16,384 of its points in front of the sensor (SimIPU's input)."
    if scan is None:
        box = np.random.default_rng(0).uniform((0, -40, -3), (70.4, 40, 1), (POINTS, 3))
        return f"{POINTS:,} random points", torch.from_numpy(box).float()
    points = np.fromfile(scan, np.float32).reshape(-1, 4)[:, :3]
    points = points[(points[:, 0] > 0) & (np.abs(points[:, 1]) < 40)]
    rows = np.random.default_rng(0).choice(len(points), POINTS, replace=len(points) < POINTS)
    return f"{scan.name}: {POINTS:,} points in front", torch.from_numpy(points[rows])


def seconds(call: Callable, device: str) -> float:
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(name: str, ours: Callable, theirs: Callable, their_name: str, device: str, rounds: int) -> None:
    "Print the medians and the ratio, pair by pair."
    seconds(ours, device), seconds(theirs, device)  # warm up
    pairs = [(seconds(ours, device), seconds(theirs, device)) for _ in range(rounds)]
    here, there = (statistics.median(column) for column in zip(*pairs))
    ratios = [a / b for a, b in pairs]
    print(f"{name:48}{here:8.3f} s   {their_name} {there:.3f} s   ratio {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = sorted(SCANS.glob("*.bin"))
    parser.add_argument("--scan", type=Path, default=real[0] if real else None, help="KITTI's .bin; without one, random points")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1, help="clouds in a training step")
    options = parser.parse_args()

    import open3d as o3d
    from scipy.spatial import cKDTree

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    name, points = cloud(options.scan)
    print(f"{name}; {options.threads} threads, {options.device}, torch {torch.__version__}, open3d {o3d.__version__}", flush=True)
    xyz, array = points[None].to(options.device), points.double().numpy()
    theirs = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(array))
    title = f"farthest points, {POINTS:,} -> {KEPT:,}"
    compare(title, lambda: farthest_points(xyz, KEPT), lambda: theirs.farthest_point_down_sample(KEPT), "Open3D", options.device, options.rounds)
    title = "farthest points by 131 features, 4,096 -> 1,024"
    features = torch.rand(1, 4096, 131, device=options.device)
    alone = statistics.median(seconds(lambda: farthest_points(features, 1024), options.device) for _ in range(options.rounds))
    print(f"{title:48}{alone:8.3f} s", flush=True)
    centres = farthest_points(xyz, KEPT)
    middle = array[centres[0].cpu()]
    balls = shells((0.2, 0.4, 0.8), (32, 32, 64))
    tree = lambda: cKDTree(array).query_ball_point(middle, 0.8)
    compare("three shells to 0.8 m around those", lambda: ball_query(xyz, centres, balls), tree, "SciPy (one ball)", options.device, options.rounds)
    wide = (Ball(4.8, 64),)
    tree = lambda: cKDTree(array).query_ball_point(middle, 4.8)
    compare("a ball of 4.8 m around those", lambda: ball_query(xyz, centres, wide), tree, "SciPy", options.device, options.rounds)

    packed, offsets = points.repeat(options.batch, 1).to(options.device), (POINTS * torch.arange(options.batch + 1)).to(options.device)
    intensity = torch.rand(len(packed), 1, device=options.device)
    networks = {"PointNet2SSG(1)": PointNet2SSG(1), "PointNet2SSG(4)": PointNet2SSG(4), "PointNet2MSG(1)": PointNet2MSG(1), "PointNet2SimIPU()": PointNet2SimIPU()}
    print(f"{f'a step, {options.batch} x {POINTS:,} points':28}{'parameters':>12}{'forward [s]':>14}{'backward [s]':>14}")
    for name, model in networks.items():
        model.to(options.device)
        feats = intensity if model.in_channels else None
        runs = []
        for _ in range(3):
            out = []
            forward = seconds(lambda: out.append(model(packed, offsets, feats).pooled().square().mean()), options.device)
            runs.append((forward, seconds(out[0].backward, options.device)))
        forward, backward = (min(column) for column in zip(*runs))
        print(f"{name:28}{sum(p.numel() for p in model.parameters()):12,}{forward:14.2f}{backward:14.2f}", flush=True)


if __name__ == "__main__":
    main()
