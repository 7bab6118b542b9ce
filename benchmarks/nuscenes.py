"""Opening nuScenes: time and memory of our columns, beside loading its tables with json.load.

    python benchmarks/nuscenes.py [--frames 20000] [--workers 8] [--folder /tmp] [--no-plain]

Tables are made in a temporary folder in the proportions of v1.0-trainval: 77 rows of sample_data and ego_pose and 34 boxes a key frame, 68 instances a scene (20,000 key frames have 680,000 boxes of 34,000 instances), texts as long as the original's;
all rows name the same small scan and image. 20,000 key frames take 1.5 GB of disk for the tables, 0.4 GB for the columns, and json.load 4.7 GB of memory.
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SWEEPS = {"LIDAR_TOP": 9} | dict.fromkeys(("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT"), 5)
SWEEPS |= dict.fromkeys(("RADAR_FRONT", "RADAR_FRONT_LEFT", "RADAR_FRONT_RIGHT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT"), 5)
SWEEPS["RADAR_BACK_RIGHT"] = 6  # 65 between two key frames
BOXES, PER_SCENE = 34, 40
TABLES = ("scene", "sample", "sensor", "calibrated_sensor", "ego_pose", "sample_data", "category", "instance", "sample_annotation")


def hexes(kind: int, i: int) -> str:  # a token that looks random
    return f"{(i * 0x9E3779B97F4A7C15 + kind) & (2**64 - 1):016x}{i * 2654435761 & (2**32 - 1):08x}{kind:02x}{i & 0xFFFFFF:06x}"


def row(**fields) -> str:
    "One object in the official formatting."
    return json.dumps(fields, indent=0)


def pose(number: int) -> str:
    "Fields of a pose, of as many digits as in the original."
    angle = number * 1e-4
    numbers = [np.cos(angle), 0.0, 0.0, np.sin(angle)]
    rotation = ",\n".join(repr(float(value)) for value in numbers)
    return f'"rotation": [\n{rotation}\n],\n"translation": [\n{411.3039245605469 + number * 1e-3!r},\n{1180.8903791765!r},\n0.0\n]'


def sample_data(root: Path, frames: int) -> None:
    "The two large tables, row by row."
    with open(root / "ego_pose.json", "w") as poses, open(root / "sample_data.json", "w") as data:
        poses.write("["), data.write("[")
        number, per_frame = 0, sum(SWEEPS.values()) + len(SWEEPS)
        for k in range(frames):
            scene = k // PER_SCENE
            for c, (channel, sweeps) in enumerate(SWEEPS.items()):
                camera = channel.startswith("CAM")
                ending = "jpg" if camera else "pcd.bin" if channel == "LIDAR_TOP" else "pcd"
                name = f"{channel}/n015-2018-07-24-11-22-45+0800__{channel}__1532402927647951.{ending}"
                for s in range(sweeps + 1):
                    token, moment, comma = hexes(1, number), 1532402927647951 + k * 500_000 + s * 50_000, "," if number else ""
                    before = hexes(1, number - 1) if s else hexes(1, number - per_frame + sweeps) if k % PER_SCENE else ""
                    poses.write(f'{comma}\n{{\n"token": "{token}",\n"timestamp": {moment},\n{pose(number)}\n}}')
                    data.write(
                        f'{comma}\n{{\n"token": "{token}",\n"sample_token": "{hexes(2, k)}",\n"ego_pose_token": "{token}",\n'
                        f'"calibrated_sensor_token": "{hexes(3, scene * len(SWEEPS) + c)}",\n"timestamp": {moment},\n"fileformat": "{"jpg" if camera else "pcd"}",\n'
                        f'"is_key_frame": {"true" if s == 0 else "false"},\n"height": {90 if camera else 0},\n"width": {160 if camera else 0},\n'
                        f'"filename": "{"samples" if s == 0 else "sweeps"}/{name}",\n"prev": "{before}",\n"next": "{hexes(1, number + 1)}"\n}}'
                    )
                    number += 1
        poses.write("\n]"), data.write("\n]")


def annotations(root: Path, frames: int) -> None:
    "Boxes; an instance is seen for 20 key frames, half of its scene (in the original: for 18)."
    with open(root / "sample_annotation.json", "w") as boxes:
        boxes.write("[")
        for number in range(frames * BOXES):
            k, b = divmod(number, BOXES)
            who = k // 20 * BOXES + b
            boxes.write(
                f'{"," if number else ""}\n{{\n"token": "{hexes(4, number)}",\n"sample_token": "{hexes(2, k)}",\n"instance_token": "{hexes(5, who)}",\n'
                f'"visibility_token": "4",\n"attribute_tokens": [\n"{hexes(6, b)}"\n],\n"size": [\n0.621,\n0.669,\n1.642\n],\n{pose(number)},\n'
                f'"prev": "{hexes(4, number - 1)}",\n"next": "{hexes(4, number + 1)}",\n"num_lidar_pts": {b},\n"num_radar_pts": 0\n}}'
            )
        boxes.write("\n]")
    ends = dict(nbr_annotations=20, first_annotation_token=hexes(4, 0), last_annotation_token=hexes(4, 1))
    save(root / "instance.json", (row(token=hexes(5, i), category_token=hexes(7, i % 23), **ends) for i in range(-(-frames // 20) * BOXES)))


def save(path: Path, rows) -> None:
    with open(path, "w") as file:
        file.write("[\n" + ",\n".join(rows) + "\n]")


def make(root: Path, frames: int) -> None:
    "The tables, one scan and one image a camera."
    from PIL import Image

    from xmodal.data.nuscenes_splits import CATEGORIES

    folder, scenes = root / "v1.0-trainval", range(-(-frames // PER_SCENE))
    folder.mkdir(parents=True)
    modality = {"C": "camera", "L": "lidar", "R": "radar"}
    samples = ((k, 1532402927647951 + k * 500_000, hexes(8, k // PER_SCENE)) for k in range(frames))
    save(folder / "scene.json", (row(token=hexes(8, i), name=f"scene-{i:04d}", description="Parked truck, intersection", nbr_samples=PER_SCENE) for i in scenes))
    save(folder / "sample.json", (row(token=hexes(2, k), timestamp=at, prev="", next=hexes(2, k + 1), scene_token=scene) for k, at, scene in samples))
    save(folder / "sensor.json", (row(token=hexes(9, c), channel=name, modality=modality[name[0]]) for c, name in enumerate(SWEEPS)))
    save(folder / "category.json", (row(token=hexes(7, i), name=name, description="", index=i) for i, name in enumerate(CATEGORIES)))
    intrinsics = [[126.6, 0, 81.6], [0, 126.6, 49.1], [0, 0, 1]]
    fields = dict(translation=[0.94, 0.0, 1.84], rotation=[0.5, -0.5, 0.5, -0.5])
    calibrations = [(scene * len(SWEEPS) + c, c, intrinsics if "CAM" in name else []) for scene in scenes for c, name in enumerate(SWEEPS)]
    save(folder / "calibrated_sensor.json", (row(token=hexes(3, i), sensor_token=hexes(9, c), camera_intrinsic=k, **fields) for i, c, k in calibrations))
    sample_data(folder, frames)
    annotations(folder, frames)
    for channel in SWEEPS:
        path = root / f"samples/{channel}/n015-2018-07-24-11-22-45+0800__{channel}__1532402927647951"
        path.parent.mkdir(parents=True)
        if channel == "LIDAR_TOP":
            np.random.default_rng(0).uniform(0, 50, (1000, 5)).astype("<f4").tofile(f"{path}.pcd.bin")
        elif "CAM" in channel:
            Image.new("RGB", (160, 90)).save(f"{path}.jpg")


# what fresh processes run; each prints what it measured as JSON
PEAK = "import json, re, time; peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1e3\nstart = time.perf_counter()\n"
OPEN = PEAK + """
from xmodal.data.nuscenes import NuScenes
imported = time.perf_counter() - start
dataset = NuScenes({root!r}, cache={cache!r})
dataset[len(dataset) // 2]
print(json.dumps(dict(seconds=time.perf_counter() - start, imported=imported, peak=peak())))
"""
PLAIN = PEAK + """
tables = {{name: json.load(open({folder!r} + "/" + name + ".json")) for name in {tables!r}}}
rows = {{name: {{row["token"]: i for i, row in enumerate(table)}} for name, table in tables.items()}}
print(json.dumps(dict(seconds=time.perf_counter() - start, peak=peak())))
"""


def fresh(code: str, **names) -> dict:
    "What a new process prints at its end."
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code.format(**names)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(out.stdout.splitlines()[-1]) | {"wall": time.perf_counter() - start}


def shared_memory(dataset, seed: int, ready, out) -> None:
    "A worker: reads frames here and there, then tells its memory while all others still have theirs."
    import PIL.Image  # what every worker has loaded, with or without a dataset

    import xmodal.data.nuscenes  # noqa: F401

    for i in np.random.default_rng(seed).integers(0, len(dataset), 200) if dataset else ():
        dataset[i]
    ready.wait()
    maps, mine, in_columns = Path("/proc/self/smaps").read_text(), 0, 0
    for entry in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", maps):
        size = int(re.search(r"\nPss: +(\d+)", entry)[1])
        mine, in_columns = mine + size, in_columns + (size if ".npy" in entry.partition("\n")[0] else 0)
    out.put((mine / 1e3, in_columns / 1e3))
    ready.wait()


def workers(dataset, count: int) -> np.ndarray:  # (count, 2) MB: proportional share of all memory, and of the columns
    context = multiprocessing.get_context("spawn")
    ready, out = context.Barrier(count), context.Queue()
    started = [context.Process(target=shared_memory, args=(dataset, seed, ready, out)) for seed in range(count)]
    [process.start() for process in started]
    told = np.array([out.get() for _ in started])
    [process.join() for process in started]
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=20_000, help="key frames; v1.0-trainval has 34,149")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--no-plain", action="store_true", help="leave out json.load")
    args = parser.parse_args()
    from xmodal.data.nuscenes import NuScenes

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root, cache = Path(folder, "root"), Path(folder, "cache")
        start = time.perf_counter()
        make(root, args.frames)
        sizes = {path.stem: path.stat().st_size / 1e6 for path in (root / "v1.0-trainval").iterdir()}
        large = ", ".join(f"{name} {size:,.0f}" for name, size in sizes.items() if size > 100)
        print(f"{args.frames:,} key frames, {sum(sizes.values()):,.0f} MB of tables ({large}), made in {time.perf_counter() - start:.0f} s")
        print(f"{len(os.sched_getaffinity(0))} cores, {' / '.join(f'{load:.1f}' for load in os.getloadavg())} processes waiting", flush=True)
        first = fresh(OPEN, root=str(root), cache=str(cache))
        again = [fresh(OPEN, root=str(root), cache=str(cache)) for _ in range(3)]
        middle = sorted(again, key=lambda told: told["seconds"])[1]
        columns = sum(path.stat().st_size for path in cache.rglob("*.npy")) / 1e6
        told, bare = workers(NuScenes(root, cache=cache), args.workers), workers(None, args.workers)
        plain = None if args.no_plain else fresh(PLAIN, folder=str(root / "v1.0-trainval"), tables=TABLES)
        report(first, middle, columns, told, bare, plain, args.workers)


def report(first: dict, again: dict, columns: float, told: np.ndarray, bare: np.ndarray, plain: dict | None, count: int) -> None:
    beside = lambda ours, key: f"{plain[key]:10.1f}{plain[key] / ours:8.1f}x" if plain else ""
    share = (told - bare)[:, 0].mean()
    print(f"{'':56}{'ours':>9}{' json.load   ratio' if plain else ''}")
    print(f"{'tables read for the first time, to the first frame [s]':56}{first['seconds']:9.1f}{beside(first['seconds'], 'seconds')}")
    print(f"{'  peak memory of that process [MB]':56}{first['peak']:9.0f}{beside(first['peak'], 'peak')}")
    print(f"{'  columns on disk [MB]':56}{columns:9.0f}")
    print(f"{'opened again, fresh process, to the first frame [s]':56}{again['seconds']:9.2f}{beside(again['seconds'], 'seconds')}")
    print(f"{'  of this importing [s]':56}{again['imported']:9.2f}")
    print(f"{'  with the start of Python [s]':56}{again['wall']:9.2f}")
    print(f"{'  peak memory of that process [MB]':56}{again['peak']:9.0f}{beside(again['peak'], 'peak')}")
    print(f"{f'memory of each of {count} workers, 200 frames read (PSS) [MB]':56}{told[:, 0].mean():9.0f}{beside(told[:, 0].mean(), 'peak')}")
    print(f"{'  of this more than a worker without a dataset [MB]':56}{share:9.1f}{beside(share, 'peak')}")
    print(f"{'  of this its share of the columns [MB]':56}{told[:, 1].mean():9.1f}")


if __name__ == "__main__":
    main()
