"""Real KITTI recordings, where ../shared/data is present: they are not free to be passed on, so they are not in this repository."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, sobel

from xmodal.data.kitti import KittiObject, KittiRaw
from xmodal.data.kitti_files import read_numbers
from xmodal.data.kitti_write import write_kitti
from xmodal.projection import in_image

DATA = Path(os.environ.get("XMODAL_DATA", Path(__file__).parents[2] / "shared/data"))
pytestmark = pytest.mark.skipif(
    not (DATA / "kitti_raw").is_dir(), reason=f"no real recordings in {DATA} (KITTI is non-commercial and not shipped; set XMODAL_DATA)"
)


def official(points, p, r_rect, velo_to_cam):
    """KITTI's formula as its paper prints it: y = P R_rect T x."""
    r4, t4 = np.eye(4), np.eye(4)
    r4[:3, :3], t4[:3] = r_rect.reshape(3, 3), velo_to_cam
    y = p.reshape(3, 4) @ r4 @ t4 @ np.column_stack([points.astype(np.float64), np.ones(len(points))]).T
    return (y[:2] / y[2]).T, y[2]


def assert_official(frame, *calibration):
    uv, depth = frame.project(0)
    expected, expected_depth = official(frame.points, *calibration)
    seen = in_image(expected, expected_depth, frame.cameras[0].size)
    assert seen.sum() > 10_000
    assert np.abs(uv - expected)[seen].max() < 1e-3  # pixels
    assert np.array_equal(in_image(uv, depth, frame.cameras[0].size), seen)


def test_raw_projection_is_the_official_one():
    day = DATA / "kitti_raw/2011_09_26"
    cam, velo = read_numbers(day / "calib_cam_to_cam.txt"), read_numbers(day / "calib_velo_to_cam.txt")
    for i in (1, 20):
        frame = KittiRaw(DATA / "kitti_raw")[i].check()
        assert_official(frame, cam["P_rect_02"], cam["R_rect_00"], np.column_stack([velo["R"].reshape(3, 3), velo["T"]]))


def test_object_projection_is_the_official_one():
    dataset = KittiObject(DATA / "kitti_object")
    for i, number in enumerate(dataset.numbers):
        calib = read_numbers(DATA / f"kitti_object/training/calib/{number}.txt")
        assert_official(dataset[i].check(), calib["P2"], calib["R0_rect"], calib["Tr_velo_to_cam"].reshape(3, 4))


def test_every_frame_reads():
    dataset = KittiRaw(DATA / "kitti_raw")
    assert len(dataset) == 33 and dataset.ids[1] == "2011_09_26/2011_09_26_drive_9001_sync/0000000006"
    for frame in dataset:
        frame.check()
        assert 100_000 < len(frame.points) < 130_000 and frame.cameras[0].size == (375, 1242)
        assert frame.ego_to_world is None and frame.timestamp is None and frame.semantic is None
    assert frame.intensity.max() == 0  # drive 9002 has no intensity


def test_boxes_hold_points_and_lie_on_their_objects():
    dataset = KittiObject(DATA / "kitti_object")
    for i, number in enumerate(dataset.numbers):
        frame = dataset[i]
        rows = [line.split() for line in (DATA / f"kitti_object/training/label_2/{number}.txt").read_text().splitlines()]
        rows = [row for row in rows if row[0] != "DontCare"]
        owner = frame.boxes.contains(frame.points)
        uv, depth = frame.project(0)
        for k, row in enumerate(rows):
            inside = owner == k
            assert inside.sum() >= 5, (number, row[0])
            left, top, right, bottom = map(float, row[4:8])
            u, v = uv[inside & in_image(uv, depth, frame.cameras[0].size)].T
            in_rectangle = (u > left - 3) & (u < right + 3) & (v > top - 3) & (v < bottom + 3)
            assert in_rectangle.mean() > 0.9, (number, row[0])
        assert set(np.unique(frame.semantic)) == {0, *frame.boxes.label}


def edge_distance(frame, shift):
    """Mean distance, in pixels, from depth edges of the cloud (shifted) to the image's strongest edges."""
    grey = frame.cameras[0].image.mean(2)
    strength = np.hypot(sobel(grey, 0), sobel(grey, 1))
    distance = distance_transform_edt(strength < np.quantile(strength, 0.9))
    uv, depth = frame.project(0)
    height, width = grey.shape
    row = np.flatnonzero(in_image(uv, depth, (height, width)))
    jump = (np.diff(depth[row]) > 2) & (np.abs(np.diff(uv[row, 0])) < 5) & (np.abs(np.diff(uv[row, 1])) < 3) & (depth[row[:-1]] < 40)
    u, v = np.round(uv[row[:-1][jump]] + [shift, 0]).astype(int).T  # the near side of each jump along a ring
    inside = (u >= 0) & (u < width)
    return distance[v[inside], u[inside]].mean()


def test_depth_edges_fall_on_image_edges():
    dataset = KittiRaw(DATA / "kitti_raw")
    shifts = (-24, -12, 0, 12, 24)
    mean = np.mean([[edge_distance(dataset[i], shift) for shift in shifts] for i in (0, 6, 15, 25)], axis=0)
    assert shifts[mean.argmin()] == 0, dict(zip(shifts, mean))


class Few:
    """Some frames of a dataset."""

    name = "few"

    def __init__(self, dataset, take):
        self.dataset, self.take, self.classes = dataset, take, dataset.classes
        self.ids = [dataset.ids[i] for i in take]

    def __len__(self):
        return len(self.take)

    def __getitem__(self, i):
        return self.dataset[self.take[i]]


@pytest.mark.parametrize("source", ["raw", "object"])
def test_written_again_it_is_the_same(tmp_path, source):
    """Real frames through our writer: projection, points, labels and ids."""

    dataset = KittiRaw(DATA / "kitti_raw") if source == "raw" else KittiObject(DATA / "kitti_object")
    few = Few(dataset, [0, 14] if source == "raw" else [1])  # object frames differ in calibration: one
    again = KittiRaw(write_kitti(few, tmp_path, progress=False), cameras=None)
    if source == "raw":
        assert again.ids == few.ids
    for i in range(len(few)):
        a, b = again[i], few[i]
        assert np.array_equal(a.points, b.points) and np.array_equal(a.intensity, b.intensity)
        assert np.array_equal(a.cameras[0].image, b.cameras[0].image)
        assert np.array_equal(a.lidar_to_camera(0), b.lidar_to_camera(0))
        assert (a.semantic is None) == (b.semantic is None)
        if b.boxes is not None:
            assert np.array_equal(a.semantic, b.semantic) and np.array_equal(a.instance, b.instance)
            np.testing.assert_allclose(a.boxes.center, b.boxes.center, atol=1e-9)
