"""Sparse convolution: the torch engine against MinkowskiEngine.

Map building + forward + backward of a MinkUNet on one LiDAR scan. The engines take turns, and the ratio is taken pair by pair, so that it
holds on a machine whose speed drifts. Memory is what the first pass adds to the process, each engine in a process of its own.

    .venv/bin/python benchmarks/sparse.py [--scan SCAN.bin] [--model MinkUNet18] [--threads 2]
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from xmodal.models import minkunet
from xmodal.sparse import SparseTensor
from xmodal.sparse.minkowski_engine import is_available

SCANS = Path(__file__).parents[2] / "shared/data/kitti_raw/2011_09_26/2011_09_26_drive_9002_sync/velodyne_points/data"


def synthetic_scan(points: int = 120_000, seed: int = 0) -> np.ndarray:
    "Points (N, 3) of 64 beams on the ground and the walls of a street: about as many voxels as a KITTI scan."
    rng = np.random.default_rng(seed)
    azimuth = rng.uniform(-np.pi, np.pi, points)
    elevation = np.radians(np.linspace(-24.8, 2, 64))[rng.integers(0, 64, points)]
    ground = np.where(elevation < 0, 1.73 / np.maximum(-np.tan(elevation), 1e-3), 1e3)
    wall = 7.5 / np.maximum(np.abs(np.sin(azimuth)), 0.05) * (1 + 0.05 * np.sin(40 * azimuth))
    reach = np.minimum(np.minimum(ground, wall), 75) + rng.normal(0, 0.02, points)
    return np.stack([reach * np.cos(azimuth), reach * np.sin(azimuth), reach * np.tan(elevation)], 1)


def voxelised(scan: Path | None, voxel_size: float) -> tuple[str, torch.Tensor]:
    "What it is, and its voxels (V, 4)."
    points = np.fromfile(scan, np.float32).reshape(-1, 4)[:, :3] if scan else synthetic_scan()
    voxels = torch.from_numpy(np.unique(np.floor(points / voxel_size).astype(np.int32), axis=0))
    name = scan.name if scan else "synthetic scan"
    return f"{name}: {len(points):,} points, {len(voxels):,} voxels of {voxel_size} m", torch.nn.functional.pad(voxels, (1, 0))


def one_pass(engine: str, model: torch.nn.Module, feats: torch.Tensor, coords: torch.Tensor) -> tuple[float, float]:
    "Seconds of maps + forward, and of backward."
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    out = model(SparseTensor(feats, coords, engine))
    middle = time.perf_counter()
    out.square().mean().backward()
    return middle - start, time.perf_counter() - middle


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = sorted(SCANS.glob("*.bin"))
    parser.add_argument("--scan", type=Path, default=real[0] if real else None, help="KITTI's .bin; without one, a synthetic scan")
    parser.add_argument("--model", default="MinkUNet18", choices=["MinkUNet14", "MinkUNet18", "MinkUNet34"])
    parser.add_argument("--voxel-size", type=float, default=0.1, help="metres")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9, help="pairs of passes")
    parser.add_argument("--memory-of", choices=["torch", "minkowski"], help="one pass of one engine; print the megabytes it adds")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    name, coords = voxelised(options.scan, options.voxel_size)
    feats, model = torch.rand(len(coords), 1), getattr(minkunet, options.model)()
    engines = ["torch", "minkowski"] if is_available() else ["torch"]
    if options.memory_of:
        before = peak_megabytes()
        one_pass(options.memory_of, model, feats, coords)
        print(peak_megabytes() - before)
        return

    print(f"{name}, {options.model}, {options.threads} threads, torch {torch.__version__}", flush=True)
    memory = {e: float(subprocess.check_output([sys.executable, *sys.argv, "--memory-of", e], text=True).split()[-1]) for e in engines}
    times = {engine: [] for engine in engines}
    for engine in engines:
        one_pass(engine, model, feats, coords)  # warm up
    for i in range(options.rounds):
        for engine in engines if i % 2 else engines[::-1]:
            times[engine].append(one_pass(engine, model, feats, coords))
    print(f"{'engine':12}{'maps + forward [s]':>20}{'backward [s]':>15}{'sum [s]':>10}{'memory [MB]':>14}")
    for engine, runs in times.items():
        forward, backward = (statistics.median(part) for part in zip(*runs))
        print(f"{engine:12}{forward:20.3f}{backward:15.3f}{statistics.median(map(sum, runs)):10.3f}{memory[engine]:14.0f}")
    if len(engines) == 2:
        ratios = [sum(a) / sum(b) for a, b in zip(times["torch"], times["minkowski"])]
        print(f"torch / minkowski, pair by pair: median {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")
    else:
        print("MinkowskiEngine is not installed: nothing to compare with")


if __name__ == "__main__":
    main()
