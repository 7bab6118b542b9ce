"""SLIC as used here beside scikit-image's, at the same number of superpixels: time, and whether the borders lie as well.

    python benchmarks/superpixels.py [--street 1] [--real 2] [--data ../shared/data] [--size 900 1600]

Times are of the processor, on one core, so that other work on the machine counts little; the whole machine's is beside them. Agreement is with scikit-image's map
of the same image: the part of its borders that has one of ours within 2 pixels, and the other way round; the adjusted Rand index; how much of the image a map can
say right of the other (ASA). What SLIC itself leaves open shows the row of scikit-image asked for a tenth more, what chance gives the row that is shifted. On images of the built-in
world, whose things are known to the pixel, each map is judged by them: the true borders that it has within 2 pixels, ASA, and the part that spills over (UE).
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from skimage.segmentation import slic
from sklearn.metrics import adjusted_rand_score

from xmodal.data.street import Street
from xmodal.frame import Camera, Frame
from xmodal.superpixels import LOOKED_AT, SuperpixelCache, Superpixels, compact, superpixels

NUSCENES = 34_149 * 6  # images of the key frames of trainval


def borders(ids: np.ndarray) -> np.ndarray:  # (H, W) bool
    return (np.diff(ids, axis=0, prepend=ids[:1]) != 0) | (np.diff(ids, axis=1, prepend=ids[:, :1]) != 0)


def near(a: np.ndarray, b: np.ndarray, reach: int = 2) -> float:
    "The part of a's borders that has one of b's in reach."
    wide = cv2.dilate(borders(b).astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8))
    return float(wide[borders(a)].mean())


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # (A, B) pixels
    return np.bincount((a.astype(np.int64) * (b.max() + 1) + b).reshape(-1), minlength=(a.max() + 1) * (b.max() + 1)).reshape(a.max() + 1, b.max() + 1)


def achievable(a: np.ndarray, truth: np.ndarray) -> float:
    "Each of a's regions takes the thing that it holds most of: the part of the pixels that is then right."
    return overlaps(a, truth).max(1).sum() / a.size


def spill(a: np.ndarray, truth: np.ndarray) -> float:
    "Undersegmentation error (Neubert and Protzel 2012): what regions that reach over the border of a thing have on its smaller side."
    inside = overlaps(a, truth)
    return np.minimum(inside, inside.sum(1, keepdims=True) - inside)[inside > 0].sum() / a.size


def timed(call: Callable) -> tuple[np.ndarray, float, float]:  # result, seconds of the processor, seconds on the clock
    clock, used = time.perf_counter(), time.process_time()
    result = call()
    return result, time.process_time() - used, time.perf_counter() - clock


def same_number(image: np.ndarray, wanted: int) -> Callable:
    "scikit-image's SLIC, asked for so many that it gives about `wanted`: it makes fewer than it is asked for."
    asked = wanted
    for _ in range(3):
        found = len(np.unique(slic(image, round(asked), 6.0, sigma=3.0, start_label=0, max_num_iter=2)))
        asked *= wanted / found
    return lambda more=1.0: slic(image, round(asked * more), 6.0, sigma=3.0, start_label=0)


def street_images(frames: int, size: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:  # image, true regions
    street = Street(frames, seed=1, cameras=1, size=size, beams=16, frames_per_drive=1)
    cameras = [street[row].cameras[0] for row in range(frames)]
    return [(camera.image, compact(camera.semantic.astype(np.int64) * 100_000 + camera.instance)) for camera in cameras]


def real_images(data: Path, each: int) -> dict[str, list[tuple[np.ndarray, None]]]:
    found = {"nuScenes": sorted(data.glob("nuscenes_keyframe/samples/*/*.jpg")), "KITTI": sorted(data.glob("kitti_raw/*/*/image_02/data/*.png"))}
    spread = lambda paths: [paths[i] for i in np.linspace(0, len(paths) - 1, min(each, len(paths))).astype(int)]
    return {name: [(np.asarray(Image.open(path).convert("RGB")), None) for path in spread(paths)] for name, paths in found.items() if paths}


def compare(name: str, images: list[tuple[np.ndarray, np.ndarray | None]]) -> None:
    "One table."
    rows: dict[str, list[dict[str, float]]] = {}
    for image, truth in images:
        cv2.setNumThreads(1)
        ours = timed(lambda: superpixels(image))
        reference = same_number(image, ours[0].max() + 1)
        theirs = timed(reference)
        made = {
            "scikit-image SLIC": theirs,
            "SLIC": ours,
            "SEEDS": timed(lambda: superpixels(image, Superpixels("seeds"))),
            "scikit-image, a tenth more": timed(lambda: reference(1.1)),
            "SLIC, shifted": (np.roll(ours[0], (image.shape[0] // 2 + 31, image.shape[1] // 2 + 47), (0, 1)), np.nan, np.nan),
        }
        cv2.setNumThreads(-1)
        clock = timed(lambda: superpixels(image))[2]
        for row, (ids, used, _) in made.items():
            judged = {"number": len(np.unique(ids)), "seconds": used, "times": theirs[1] / used, "all cores": clock if row == "SLIC" else np.nan}
            judged |= {"theirs near": near(theirs[0], ids), "ours near": near(ids, theirs[0]), "Rand": adjusted_rand_score(theirs[0].ravel(), ids.ravel()), "ASA": achievable(ids, theirs[0])}
            if truth is not None:
                judged |= {"true borders": near(truth, ids), "true ASA": achievable(ids, truth), "true UE": spill(ids, truth)}
            rows.setdefault(row, []).append(judged)
    height, width = images[0][0].shape[:2]
    columns = list(rows["SLIC"][0])
    print(f"\n{name}: {len(images)} images of {width} x {height}\n{'':28}" + "".join(f"{column:>13}" for column in columns))
    for row, every in rows.items():
        means = [statistics.fmean(judged[column] for judged in every) for column in columns]
        print(f"{row:28}" + "".join(f"{'' if np.isnan(mean) else f'{mean:.3g}' if mean >= 100 else f'{mean:.3f}':>13}" for mean in means), flush=True)


class Jpegs:
    "One file, as often as wanted, each time as another image."

    name = "jpegs"

    def __init__(self, path: Path, count: int):
        self.path, self.ids = path, [f"{i:06d}" for i in range(count)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, row: int) -> Frame:
        image = np.array(Image.open(self.path).convert("RGB"))
        image[0, 0] = row
        return Frame(self.ids[row], np.zeros((1, 3), np.float32), cameras=[Camera("a", image, np.eye(3), np.eye(4))])


def whole_dataset(image: np.ndarray, count: int = 12) -> None:
    "From JPEG files to maps on disk: the first run, the second, and a look at every map."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        Image.fromarray(image).save(path, quality=90)
        dataset, cores = Jpegs(path, count), os.cpu_count()
        print(f"\nwhole datasets: {count} JPEGs, {cores} threads")
        for method in ("slic", "seeds"):
            cache = SuperpixelCache(folder, Superpixels(method))
            first, used, clock = timed(lambda: cache.prepare(dataset))
            seen = timed(lambda: cache.verify(dataset))[1]
            listed = timed(lambda: cache.prepare(dataset))[1]
            hours = NUSCENES * used / count / 3600
            print(f"{method:6}{used / count:7.3f} s an image of one core, {clock / count:.3f} on the clock; nuScenes' {NUSCENES:,} images: {hours:.1f} h on one core, {hours / 16:.1f} on 16")
            print(f"{'':7}of that time, reading every map again (--verify) takes {seen / used:.1%}; a second run opens {min(count, LOOKED_AT)} frames, however many there are: {listed:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--street", type=int, default=1, help="images of the built-in world")
    parser.add_argument("--real", type=int, default=2, help="images of each real recording that is there")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("XMODAL_DATA", Path(__file__).parents[2] / "shared/data")))
    parser.add_argument("--size", type=int, nargs=2, default=(900, 1600), metavar=("HEIGHT", "WIDTH"))
    args = parser.parse_args()
    street = street_images(args.street, tuple(args.size))
    compare("street", street)
    for name, images in real_images(args.data, args.real).items():
        compare(name, images)
    whole_dataset(street[0][0])


if __name__ == "__main__":
    main()
