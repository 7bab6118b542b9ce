"""How fast frames become batches, where the time goes, what a training step waits, and what the workers hold in memory.

    python benchmarks/loading.py [--frames 16] [--files 1] [--workers 0 1 2] [--cameras 6] [--size 900 1600] [--index 40000] [--steps 6]

The frames are of nuScenes' kind: 6 JPEGs of 1600 x 900 and a scan of about 100,000 points each, of the built-in world. What is done with them is SLidR's as
published: superpixels from the cache, pairs, every augmentation, images of 224 x 416, cylindrical voxels. Set OMP_NUM_THREADS=1 for the stages: a worker
computes on one core, too. A step of the published recipe takes a GPU: with how many workers it waits no longer say the frames a second that one worker makes.
"""

import argparse
import contextlib
import io
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from xmodal.batch import collate
from xmodal.data.street import Street
from xmodal.frame import Camera, Frame
from xmodal.methods.slidr import SLidRRecipe
from xmodal.pretrain import ViewMaker, planner, pretrain
from xmodal.superpixels import SuperpixelCache
from xmodal.training.batches import Batches
from xmodal.training.fit import Machine
from xmodal.views import augment, view_of


class Jpegs:
    "Frames on disk as nuScenes has them. Their files may be fewer: then they serve in turn."

    name, classes = "jpegs", ()

    def __init__(self, folder: Path, frames: int, files: int):
        self.folder, self.files = folder, files
        self.ids = [f"scene-{row // 40:04d}/{row:08d}" for row in range(frames)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, row: int) -> Frame:
        folder = self.folder / str(row % self.files)
        scan = np.fromfile(folder / "scan.bin", np.float32).reshape(-1, 4)
        calibration = np.load(folder / "cameras.npz")
        cameras = []
        for n, (intrinsics, camera_to_ego) in enumerate(zip(calibration["intrinsics"], calibration["camera_to_ego"])):
            with Image.open(folder / f"{n}.jpg") as image:
                cameras.append(Camera(str(n), np.asarray(image.convert("RGB")), intrinsics, camera_to_ego))
        return Frame(self.ids[row], scan[:, :3], scan[:, 3], cameras, calibration["lidar_to_ego"])


def write(folder: Path, frames: int, files: int, cameras: int, size: tuple[int, int]) -> Jpegs:
    "Render and save. The street's rig has 5 cameras: the sixth looks where the first does."
    street = Street(files, cameras=min(cameras, 5), size=size, beams=64, samples=1, frames_per_drive=files)
    for row in range(files):
        frame, here = street[row], folder / str(row)
        here.mkdir()
        shots = (frame.cameras * 2)[:cameras]
        for n, camera in enumerate(shots):
            Image.fromarray(camera.image).save(here / f"{n}.jpg", quality=90)
        np.column_stack([frame.points, frame.intensity]).astype(np.float32).tofile(here / "scan.bin")
        matrices = {key: np.stack([getattr(camera, key) for camera in shots]) for key in ("intrinsics", "camera_to_ego")}
        np.savez(here / "cameras.npz", lidar_to_ego=frame.lidar_to_ego, **matrices)
    return Jpegs(folder, frames, files)


def stages(dataset: Jpegs, cache: SuperpixelCache, recipe: SLidRRecipe) -> None:
    "The processor's time for each part of the way from files to a batch, in one process."
    import cv2

    cv2.setNumThreads(1)
    spent: dict[str, float] = {}

    def timed(name, call):
        start = time.process_time()
        result = call()
        spent[name] = spent.get(name, 0.0) + time.process_time() - start
        return result

    views = []
    count = min(len(dataset), 6)
    dataset[0], cache.of(dataset[0])  # what is read for the first time is slower
    for row in range(count):
        rng = np.random.default_rng(row)
        frame = timed("files: decode images, read scan", lambda: dataset[row])
        timed("check the frame", frame.check)
        ids = timed("superpixels: hash images, read maps", lambda: cache.of(frame))
        view = timed("pairs: project, occlusion", lambda: view_of(frame, ids, recipe.occlusion))
        views.append(timed("augment: turn, cut, resize, flip", lambda: augment(view, rng, recipe.augmentation)))
    timed("collate: voxels, normalise, pack", lambda: collate(views, recipe.voxels))
    total = sum(spent.values())
    print(f"\none process, {count} frames: ms of the processor a frame")
    for name, seconds in spent.items():
        print(f"  {name:38}{1000 * seconds / count:8.1f}  {seconds / total:6.1%}")
    print(f"  {'all':38}{1000 * total / count:8.1f}  = {count / total:.2f} frames a second of one core")
    cv2.setNumThreads(-1)


def rates(dataset: Jpegs, make_view: ViewMaker, collate, counts: list[int], frames: int = 40) -> None:
    "Frames a second, one frame a batch, after those that the workers have ready when the clock starts."
    print("\nworkers   frames a second   to the first batch")
    for workers in counts:
        ready = 2 * workers + 1
        start = time.perf_counter()
        loader = iter(Batches(dataset, make_view, collate, batch_size=1).loader(range(ready + frames), workers))
        next(loader)
        first = time.perf_counter() - start
        for _ in range(ready - 1):
            next(loader)
        start = time.perf_counter()
        taken = sum(1 for _ in loader)
        print(f"{workers:7}{taken / (time.perf_counter() - start):18.2f}{first:19.1f} s", flush=True)


def waits(dataset: Jpegs, cache: Path, counts: list[int], steps: int) -> None:
    "Training with SLidR's small recipe."
    recipe = SLidRRecipe.small()
    recipe = replace(recipe, optimisation=replace(recipe.optimisation, epochs=100))
    print("\nworkers   s a step   of it waiting   (SLidR's small recipe, 2 frames a step)")
    for workers in counts:
        with tempfile.TemporaryDirectory() as run, contextlib.redirect_stdout(io.StringIO()):
            fitted = pretrain("slidr", dataset, run, recipe, superpixels=cache, machine=Machine(workers=workers), stop_after=steps)
        print(f"{workers:7}{fitted.seconds / steps:11.2f}{fitted.waited:16.1%}", flush=True)


class Names:
    "An index and nothing behind it."

    name, classes = "names", ()

    def __init__(self, frames: int):
        self.ids = [f"2011_09_26/2011_09_26_drive_{row // 400:04d}_sync/{row:010d}" for row in range(frames)]
        self.files = [(f"drive_{row // 400:04d}", f"{row:010d}.bin", f"{row:010d}.png") for row in range(frames)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, row: int):
        return self.files[row]


def nothing(frame, rng):
    return frame


def proportional(pid: int) -> float:  # MB
    "What a process holds in memory; what it shares with others is counted in parts."
    return next(int(line.split()[1]) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:")) / 1024


def memory(frames: int, workers: int = 8) -> None:
    "What the workers hold, as they are begun here and as fresh processes (spawn), with an index of few frames and of many."
    print(f"\n{workers} workers{'frames':>16}   MB of each   to the first batch")
    for context in (None, "spawn"):
        for count in (100, frames):
            start = time.perf_counter()
            loader = Batches(Names(count), nothing, tuple, batch_size=1).loader(range(6 * workers), workers)
            if context:
                loader.multiprocessing_context = context
                loader.dataset.dataset = Names(count)
            batches = iter(loader)
            next(batches)
            first = time.perf_counter() - start
            for _ in range(3 * workers):
                next(batches)
            each = [proportional(worker.pid) for worker in batches._workers]
            print(f"{context or 'here':9}{count:16,}{np.mean(each):13.1f}{first:19.1f} s", flush=True)
            del batches, loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--files", type=int, default=1, help="frames that are rendered; they serve in turn")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cameras", type=int, default=6)
    parser.add_argument("--size", type=int, nargs=2, default=(900, 1600), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--index", type=int, default=40_000, help="frames of the index whose memory is measured")
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*worker processes in total.*")
    memory(args.index)
    with tempfile.TemporaryDirectory() as folder:
        folder, recipe = Path(folder), SLidRRecipe()
        dataset = write(folder, args.frames, args.files, args.cameras, tuple(args.size))
        cache = SuperpixelCache(folder / "superpixels", recipe.superpixels)
        cache.prepare(dataset)
        stages(dataset, cache, recipe)
        plan = planner("slidr", recipe)
        rates(dataset, ViewMaker(plan, cache), plan.collate, args.workers)
        waits(dataset, folder / "superpixels", args.workers, args.steps)


if __name__ == "__main__":
    main()
