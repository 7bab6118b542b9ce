"""The street world's speed: frames a second, and its rays a second against bare ray casting of the same camera rays.

    python benchmarks/street.py [--frames 6] [--cameras 2] [--size 192 640] [--beams 32]

Of each camera pixel three rays are cast and shaded; casting alone is the bound that no shading can pass. Set OMP_NUM_THREADS to choose the number of cores.
"""

import argparse
import os
import time

import numpy as np

from xmodal.data.street import Street
from xmodal.projection import compose
from xmodal.world.camera import SAMPLES, pixel_rays
from xmodal.world.lidar import directions


def bare(street: Street, repeats: int = 3) -> float:  # rays a second
    "The front camera's rays, cast at the still part of the first street, and nothing done with the hits."
    import open3d.core as o3c

    camera = street[0].cameras[0]
    to_world = compose(camera.camera_to_ego, camera.ego_to_world)
    sets = []
    for offset in SAMPLES[: street.samples]:
        direction, _ = pixel_rays(to_world[:3, :3] @ np.linalg.inv(camera.intrinsics), street.size, offset)
        origin = np.broadcast_to(np.float32(to_world[:3, 3]), direction.shape)
        sets.append(o3c.Tensor.from_numpy(np.concatenate([origin, direction], 1)))
    scene = street.scene(0).still
    start = time.perf_counter()
    for _ in range(repeats):
        for rays in sets:
            scene.cast_rays(rays)
    return repeats * sum(len(rays) for rays in sets) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(192, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--beams", type=int, default=32)
    args = parser.parse_args()
    street = Street(frames=args.frames + 1, cameras=args.cameras, size=tuple(args.size), beams=args.beams, frames_per_drive=args.frames + 1)

    start = time.perf_counter()
    street[0]
    first = time.perf_counter() - start
    start, used = time.perf_counter(), time.process_time()
    for i in range(1, args.frames + 1):
        street[i]
    seconds, used = (time.perf_counter() - start) / args.frames, (time.process_time() - used) / args.frames

    rays = street.samples * args.cameras * args.size[0] * args.size[1] + len(directions(args.beams))
    alone = bare(street)
    cores, asked = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS", "not set")
    print(f"{args.cameras} cameras of {args.size[1]} x {args.size[0]} pixels, {args.beams} beams; {cores} cores, OMP_NUM_THREADS {asked}")
    print(f"frames       {1 / seconds:8.2f} /s   ({used:.2f} s of processor time a frame; {first:.2f} s for the first frame of a street)")
    print(f"rays         {rays / seconds / 1e6:8.2f} M/s of camera and LiDAR, shaded, shadow rays not counted")
    print(f"bare casting {alone / 1e6:8.2f} M/s")
    print(f"ratio        {rays / seconds / alone:8.2f}")


if __name__ == "__main__":
    main()
