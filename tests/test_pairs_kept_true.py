"""Known patterns are moved through every augmentation, alone and combined; each pair must still point at its pattern."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest

from xmodal import views
from xmodal.batch import MEAN, STD, Voxels, collate
from xmodal.frame import Camera, Frame
from xmodal.projection import inverse, project, rigid, rotation_z, transform, unproject
from xmodal.superpixels import Superpixels, superpixels

pytest.importorskip("cv2", reason="views resize with OpenCV")

HEIGHT, WIDTH, BLOCK = 180, 320, 20
FORWARD = rigid(np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0.0]]))  # x forward, y left, z up -> camera axes
EASY = views.Augmentation(size=(112, 208), min_pairs=100)


def sloping_frame(seed: int = 0, cameras: int = 3, points: int = 600) -> tuple[Frame, list, np.ndarray]:
    "Images whose red is the column and green the row, superpixels of 20 x 20 blocks, points anywhere (not on pixel centres)."
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([u * 255 / (WIDTH - 1), v * 255 / (HEIGHT - 1), np.full_like(u, 90)], -1).round().astype(np.uint8)
    intrinsics = np.array([[190, 0, 158.3], [0, 185, 92.1], [0, 0, 1.0]])
    rig, clouds, homes = [], [], []
    for i in range(cameras):
        camera_to_ego = rigid(rotation_z(2 * np.pi * i / cameras), [0.3, 0.1 * i, 1.5]) @ inverse(FORWARD)
        uv = rng.uniform([1, 1], [WIDTH - 2, HEIGHT - 2], (points, 2))
        clouds.append(transform(camera_to_ego, unproject(uv, rng.uniform(3, 30, points), intrinsics)))
        homes.append(uv)
        rig.append(Camera(f"camera {i}", image, intrinsics, camera_to_ego))
    cloud = np.concatenate(clouds).astype(np.float32)
    frame = Frame(f"slope {seed}", cloud, np.arange(len(cloud), dtype=np.float32), rig)
    return frame, [((v // BLOCK * (WIDTH // BLOCK) + u // BLOCK) * 1000).astype(np.int32)] * cameras, np.concatenate(homes)


def start_of(frame: Frame, ids: list | None) -> tuple[views.View, dict]:
    "The untouched view, and where each (point, camera matrix) pair was in the frame's image."
    view = views.view_of(frame, ids, occlusion=False)
    view.semantic = np.arange(len(view.points), dtype=np.int32)
    return view, {(p, c): uv for p, c, uv in zip(view.pairs.point, view.pairs.camera, view.pairs.uv)}


def sample(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    "Bilinear, pixel centres at whole numbers, borders repeated."
    uv = np.clip(uv, 0, [image.shape[1] - 1, image.shape[0] - 1])
    low = np.minimum(np.floor(uv).astype(int), [image.shape[1] - 2, image.shape[0] - 2])
    part = uv - low
    image, (u, v), (a, b) = image.astype(float), low.T, part.T[..., None]
    return (image[v, u] * (1 - a) + image[v, u + 1] * a) * (1 - b) + (image[v + 1, u] * (1 - a) + image[v + 1, u + 1] * a) * b


def check(view: views.View, homes: dict, camera_of: np.ndarray) -> None:
    "Pixels, calibration, superpixels and per-point values of every pair against where it came from."
    assert np.array_equal(view.index, view.semantic) and len(view.points) == len(view.index)
    assert view.intensity is None or np.array_equal(view.intensity, view.index)
    errors = [np.zeros((0, 2))]
    for i, image in enumerate(view.images):
        mine = view.pairs.select(view.pairs.camera == i)
        home = np.array([homes[view.index[p], camera_of[i]] for p in mine.point]).reshape(-1, 2)
        in_camera = transform(view.lidar_to_camera[i], view.points[mine.point].astype(float))
        uv, depth = project(in_camera, view.intrinsics[i])
        assert np.abs(uv - mine.uv).max(initial=0) < 0.01 and (depth > 1).all()
        assert (mine.row >= 0).all() and (mine.row < image.shape[0]).all()
        assert (mine.col >= 0).all() and (mine.col < image.shape[1]).all()
        truth = home * 255 / [WIDTH - 1, HEIGHT - 1]
        errors.append((sample(image, mine.uv)[:, :2] - truth) * ([WIDTH - 1, HEIGHT - 1] / np.array([255.0, 255.0])))
        if view.superpixels is not None:
            inner = (np.abs((home + 0.5) % BLOCK - BLOCK / 2) < BLOCK / 2 - 2.5).all(1)  # away from the blocks' borders
            block = (home[:, 1] + 0.5) // BLOCK * (WIDTH // BLOCK) + (home[:, 0] + 0.5) // BLOCK
            assert np.array_equal(view.superpixels[i][mine.row, mine.col][inner], 1000 * block[inner])
            assert (view.superpixels[i] % 1000 == 0).all()  # an id between two ids would be nobody's
    errors = np.concatenate(errors)  # in pixels of the frame's image
    assert np.abs(errors).max(initial=0) < 2.5
    if len(errors) > 100:  # no shift, not even by half a pixel
        assert np.abs(errors.mean(0)).max() < 0.2, errors.mean(0)


STEPS = {
    "rotate_z": views.rotate_z,
    "flip_points": views.flip_points,
    "drop_cuboid": partial(views.drop_cuboid, side=0.5, min_pairs=100),
    "resized_crop": partial(views.resized_crop, size=EASY.size, min_pairs=100),
    "enlarging crop": partial(views.resized_crop, size=(300, 500), min_pairs=100),
    "strongly reducing crop": partial(views.resized_crop, size=(60, 104), scale=(0.9, 1.0), min_pairs=100),
    "flip_images": views.flip_images,
    "resize": lambda view, rng: views.resize(view, (97, 171)),
    "all five": partial(views.augment, settings=replace(EASY, shuffle_cameras=False)),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("with_superpixels", [True, False])
def test_pairs_point_at_their_patterns(name, with_superpixels):
    frame, ids, _ = sloping_frame()
    view, homes = start_of(frame, ids if with_superpixels else None)
    for seed in range(6):
        check(STEPS[name](view, np.random.default_rng(seed)), homes, np.arange(3))


def test_steps_in_any_order_and_twice():
    frame, ids, _ = sloping_frame(1)
    view, homes = start_of(frame, ids)
    cloud_steps = [STEPS[name] for name in ("rotate_z", "flip_points", "drop_cuboid", "flip_images")]
    for seed in range(6):
        rng = np.random.default_rng(seed)
        moved = view
        for k in rng.integers(len(cloud_steps), size=6):
            moved = cloud_steps[k](moved, rng)
        check(STEPS["resized_crop"](moved, rng), homes, np.arange(3))


def test_shuffled_cameras_keep_their_pairs():
    frame, ids, _ = sloping_frame(2)
    for i, camera in enumerate(frame.cameras):  # blue tells the cameras apart
        camera.image = np.dstack([camera.image[..., :2], np.full((HEIGHT, WIDTH), 60 * i, np.uint8)])
    view, homes = start_of(frame, ids)
    orders = set()
    for seed in range(12):
        moved = views.augment(view, np.random.default_rng(seed), EASY)
        order = np.array([int(image[0, 0, 2]) // 60 for image in moved.images])
        orders.add(tuple(order))
        check(moved, homes, order)
    assert len(orders) > 2


def test_the_same_seed_gives_the_same_view_and_leaves_the_frame_alone():
    frame, ids, _ = sloping_frame(3)
    before = frame.points.copy(), frame.cameras[0].image.copy(), ids[0].copy()
    view, _ = start_of(frame, ids)
    uv = view.pairs.uv.copy()
    a, b = (views.augment(view, np.random.default_rng(5), EASY) for _ in range(2))
    for x, y in zip((a.points, a.pairs.uv, *a.images, *a.superpixels), (b.points, b.pairs.uv, *b.images, *b.superpixels)):
        assert np.array_equal(x, y)
    for x, y in zip((*before, uv), (frame.points, frame.cameras[0].image, ids[0], view.pairs.uv)):
        assert np.array_equal(x, y)


def test_a_mirrored_cloud_has_a_mirroring_calibration():
    view, _ = start_of(*sloping_frame()[:2])
    signs = {round(np.linalg.det(views.flip_points(view, np.random.default_rng(s)).lidar_to_camera[0][:3, :3])) for s in range(20)}
    assert signs == {-1, 1}


def test_a_crop_keeps_enough_pairs_or_the_whole_image():
    view, _ = start_of(*sloping_frame(4)[:2])
    whole = views.resize(view, EASY.size)
    for seed in range(20):
        cropped = views.resized_crop(view, np.random.default_rng(seed), EASY.size, min_pairs=400)
        for i in range(3):
            kept = (cropped.pairs.camera == i).sum()
            assert kept > 400 or kept > 0.75 * (view.pairs.camera == i).sum()
    never = views.resized_crop(view, np.random.default_rng(0), EASY.size, min_pairs=10**9, min_part=2.0)
    assert all(map(np.array_equal, never.images, whole.images))


def test_the_draws_are_the_published_ones():
    "SLidR: turn U(0, 2 pi), flips with 1/2, cuboid sides U(0, 0.2) of the extent, crops of 0.3 to 1 of the area and 14/9 to 17/9, 224 x 416, 1024 pairs."
    rng = np.random.default_rng(0)
    cloud = (rng.random((4000, 3)) * [30, 20, 4]).astype(np.float32)
    image = np.zeros((9, 16, 3), np.uint8)
    frame = Frame("cloud", cloud, cameras=[Camera("a", image, np.eye(3), np.eye(4))])
    view = views.view_of(frame, occlusion=False)

    turns = [inverse(views.rotate_z(view, rng).lidar_to_camera[0]) for _ in range(300)]
    assert kstest(np.arctan2([t[1, 0] for t in turns], [t[0, 0] for t in turns]) % (2 * np.pi) / (2 * np.pi), "uniform").pvalue > 1e-3
    signs = np.array([np.sign(np.diag(views.flip_points(view, rng).lidar_to_camera[0])[:2]) for _ in range(400)])
    assert (np.abs(signs.mean(0)) < 0.15).all() and abs((signs[:, 0] * signs[:, 1]).mean()) < 0.15
    mirrored = [views.flip_images(view, rng).intrinsics[0][0, 0] < 0 for _ in range(400)]
    assert abs(np.mean(mirrored) - 0.5) < 0.08

    sides = []
    for _ in range(300):
        left = views.drop_cuboid(replace(view, pairs=view.pairs.select(np.zeros(0, np.int64))), rng).index
        gone = np.delete(view.points, left, 0)
        sides.append(np.ptp(gone, 0) / np.ptp(cloud, 0))
    assert 0.17 < np.max(sides) < 0.2 and 0.04 < np.mean(sides) < 0.1  # a little less than drawn: the cloud ends, and has gaps

    crops = [views.random_crop((900, 1600), rng, views.Augmentation().crop_scale, views.Augmentation().crop_ratio) for _ in range(500)]
    area, ratio = np.array([(c.height * c.width / (900 * 1600), c.width / c.height) for c in crops]).T
    assert 0.295 < area.min() < 0.32 and 0.9 < area.max() <= 1 and abs(np.median(area) - 0.65) < 0.06
    assert 14 / 9 - 0.005 < ratio.min() < 1.58 and 1.86 < ratio.max() < 17 / 9 + 0.005
    settings = views.Augmentation()
    assert (settings.size, settings.cuboid, settings.min_pairs) == ((224, 416), 0.2, 1024)


def test_a_cuboid_that_takes_too_many_pairs_is_undone_as_a_whole():
    view, _ = start_of(*sloping_frame(5)[:2])
    undone = 0
    for seed in range(40):
        moved = views.drop_cuboid(view, np.random.default_rng(seed), side=0.5, min_pairs=590)
        free = views.drop_cuboid(view, np.random.default_rng(seed), side=0.5, min_pairs=0)
        fewest = np.bincount(free.pairs.camera, minlength=3).min()
        assert len(moved.points) == len(view.points if fewest < 590 else free.points)
        undone += fewest < 590
    assert 0 < undone < 40


@pytest.mark.parametrize("missing", ["points", "pairs", "cameras"])
@pytest.mark.parametrize("step", [*STEPS, "all with shuffle"])
def test_nothing_there(missing, step):
    frame, ids, _ = sloping_frame()
    if missing == "points":
        frame = Frame("empty", frame.points[:0], frame.intensity[:0], frame.cameras)
    elif missing == "cameras":
        frame, ids = Frame("blind", frame.points, frame.intensity), []
    run = STEPS.get(step, partial(views.augment, settings=EASY))
    for superpixel_ids in (ids, None):
        view = views.view_of(frame, superpixel_ids)
        if missing == "pairs":
            view = replace(view, pairs=view.pairs.select(np.zeros(0, np.int64)))
        moved = run(view, np.random.default_rng(0))
        assert len(moved.pairs) == 0 and len(moved.images) == len(view.images)
        batch = collate([moved], Voxels())
        assert len(batch.points) == len(moved.points) and len(batch.pair_voxel) == 0


def test_a_batch_still_points_at_the_patterns():
    made = [start_of(*sloping_frame(seed)[:2]) for seed in range(3)]
    augmented = [views.augment(view, np.random.default_rng(7), replace(EASY, shuffle_cameras=False)) for view, _ in made]
    batch = collate(augmented, Voxels(0.2))
    colour = batch.images[batch.pairs.camera, :, batch.pairs.row, batch.pairs.col].numpy() * STD + MEAN
    view_of_pair = np.searchsorted(batch.offsets.numpy(), batch.pairs.point.numpy(), side="right") - 1
    assert np.array_equal(batch.image_view[batch.pairs.camera].numpy(), view_of_pair)
    home = np.array([made[b][1][int(batch.semantic[p]), int(c) % 3] for b, p, c in zip(view_of_pair, batch.pairs.point, batch.pairs.camera)])
    assert np.abs(colour[:, :2] * [WIDTH - 1, HEIGHT - 1] - home).max() < 4  # read at whole pixels of a coarser image
    voxel = batch.coords[batch.pair_voxel]
    assert np.array_equal(voxel[:, 0].numpy(), view_of_pair)
    assert np.array_equal(voxel[:, 1:].numpy(), np.floor(batch.points[batch.pairs.point].numpy() / np.float32(0.2)))


KITTI = Path(os.environ.get("XMODAL_DATA", Path(__file__).parents[2] / "shared/data")) / "kitti_raw/2011_09_26"


def kitti_frame() -> Frame:
    from PIL import Image

    def read(name):
        lines = (line.split(":", 1) for line in (KITTI / name).read_text().splitlines() if ":" in line)
        return {key: np.array(value.split(), float) for key, value in lines if key not in ("calib_time", "corner_dist")}

    rig, velo = read("calib_cam_to_cam.txt"), read("calib_velo_to_cam.txt")
    p2 = rig["P_rect_02"].reshape(3, 4)
    to_rect = rigid(rig["R_rect_00"].reshape(3, 3)) @ rigid(velo["R"].reshape(3, 3), velo["T"])
    lidar_to_camera = rigid(translation=np.linalg.solve(p2[:, :3], p2[:, 3])) @ to_rect
    drive = KITTI / "2011_09_26_drive_9001_sync"
    scan = np.fromfile(sorted(drive.glob("velodyne_points/data/*.bin"))[0], np.float32).reshape(-1, 4)
    with Image.open(sorted(drive.glob("image_02/data/*.png"))[0]) as file:
        image = np.asarray(file.convert("RGB"))
    return Frame("kitti", scan[:, :3], scan[:, 3], [Camera("image_02", image, p2[:, :3], np.linalg.inv(lidar_to_camera))])


@pytest.mark.skipif(not KITTI.is_dir(), reason=f"no real recordings at {KITTI}")
def test_pairs_of_a_real_recording_stay_true_at_the_published_settings():
    frame = kitti_frame()
    ids = superpixels(frame.cameras[0].image, Superpixels("slic"))
    start = views.view_of(frame, [ids])
    assert len(start.pairs) > 10_000
    home = np.full((len(frame.points), 2), np.nan, np.float32)
    home[start.pairs.point] = start.pairs.uv
    for seed in range(4):
        view = views.augment(start, np.random.default_rng(seed))
        assert view.images[0].shape == (224, 416, 3) and len(view.pairs) > 1024
        uv, _ = project(transform(view.lidar_to_camera[0], view.points[view.pairs.point].astype(float)), view.intrinsics[0])
        assert np.abs(uv - view.pairs.uv).max() < 0.05
        old = home[view.index[view.pairs.point]].round().astype(int)
        same = view.superpixels[0][view.pairs.row, view.pairs.col] == ids[old[:, 1], old[:, 0]]
        assert same.mean() > 0.95  # the rest lies on a superpixel's border
        difference = view.images[0][view.pairs.row, view.pairs.col].astype(float) - frame.cameras[0].image[old[:, 1], old[:, 0]]
        assert np.median(np.abs(difference)) < 8
