"""One optimiser step of every method: time and memory, as ratios to SLidR's in the same run.

    python benchmarks/methods.py                  # small recipes, two frames: any machine
    python benchmarks/methods.py --recipe paper   # the published networks, image sizes and batches: a GPU

Frames come from the built-in street. Image networks have random weights: a step costs the same. What is
timed is forward, backward and the optimiser's step, the faster of the second and third; making the views
is not. Each method has a process of its own; memory is the GPU's peak, or on a CPU the process's.
"""

import argparse
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from xmodal.data.street import Street
from xmodal.experiments import write_json
from xmodal.pretrain import METHODS, build, recipes
from xmodal.training.checkpoint import provenance
from xmodal.training.fit import make_optimizers


def peak(device):
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def step_of(name, recipe_name, device):
    """Seconds of a step, megabytes, parameters that learn, frames a batch."""
    large = recipe_name != "small"
    frames = list(Street(frames=2, cameras=5 if large else 2, size=(450, 800) if large else (192, 640), beams=64 if large else 32))
    recipe = recipes(name)[recipe_name]()
    method = build(name, recipe, pretrained=False).to(device).train()
    optimizers = [optimizer for _, optimizer in make_optimizers(recipe.optimisation, method)]
    size = recipe.optimisation.batch_size if large else 2
    rng = np.random.default_rng(0)
    views = [method.make_view(frame, rng, grid_superpixels(frame)) for frame in (frames[i % len(frames)] for i in range(size))]
    batch = method.collate(views).to(device)
    seconds = []
    for step in range(3):
        began = time.perf_counter()
        method.begin_step(0.95)  # late enough for the losses that begin late
        method.zero_grad(set_to_none=True)
        method.loss(batch, torch.Generator().manual_seed(step))[0].backward()
        for optimizer in optimizers:
            optimizer.step()
        method.end_step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:]), peak(device), sum(p.numel() for p in method.parameters() if p.requires_grad), size


def grid_superpixels(frame):
    """About 150 squares an image: the loss costs the same whatever their shape."""
    ids = []
    for camera in frame.cameras:
        height, width = camera.size
        side = max(int((height * width / 150) ** 0.5), 1)
        rows, cols = np.arange(height) // side, np.arange(width) // side
        ids.append((rows[:, None] * (cols[-1] + 1) + cols).astype(np.int32))
    return ids


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None, help="default: benchmarks/results/methods_DEVICE_RECIPE.json")
    args = parser.parse_args()
    print(f"{args.recipe} recipes on {torch.cuda.get_device_name() if args.device == 'cuda' else 'CPU'}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'method':14} {'batch':>5} {'learning':>10} {'s a step':>9} {'/ SLidR':>8} {'MB':>7}")
    reference, rows = None, []
    for name in ["slidr", *(n for n in args.methods if n != "slidr")]:  # SLidR is the measure of the others
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            seconds, memory, parameters, size = process.submit(step_of, name, args.recipe, args.device).result()
        reference = reference or seconds
        rows.append({"method": name, "batch": size, "parameters": parameters, "seconds": seconds, "to_slidr": seconds / reference, "megabytes": memory})
        print(f"{name:14} {size:5} {parameters / 1e6:8.2f} M {seconds:9.3f} {seconds / reference:8.2f} {memory:7.0f}", flush=True)
    out = args.out or Path(__file__).parent / "results" / f"methods_{args.device}_{args.recipe}.json"
    print(write_json(out, {"steps": rows} | provenance()))


if __name__ == "__main__":
    main()
