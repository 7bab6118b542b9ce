"""The built-in world written in KITTI's layout and read back to identical frames."""

import numpy as np
import pytest

pytest.importorskip("open3d", reason="the street world is rendered with Open3D")

from xmodal.data.kitti import KittiRaw, read_timestamps  # noqa: E402
from xmodal.data.kitti_write import write_kitti, write_moment  # noqa: E402
from xmodal.data.street import Street  # noqa: E402


def test_moments_before_midnight_survive(tmp_path):
    write_moment(tmp_path / "2026_01_01/x", "oxts", 2, -0.03)
    write_moment(tmp_path / "2026_01_01/x", "oxts", 0, 86400.25)
    assert read_timestamps(tmp_path / "2026_01_01/x/oxts/timestamps.txt") == {0: 86400.25, 2: pytest.approx(-0.03, abs=1e-10)}


def assert_equal(a, b, names):
    for name in names:
        first, second = getattr(a, name), getattr(b, name)
        assert (first is None) == (second is None), name
        assert np.array_equal(first, second) or first is None, name


@pytest.mark.parametrize("cameras", [2, 5])  # 5: they look to all sides, which takes the general P = K [R | t]
def test_street_comes_back_identical(tmp_path, cameras):
    street = Street(frames=3, frames_per_drive=2, size=(96, 320), beams=16, samples=1, cameras=cameras)
    again = KittiRaw(write_kitti(street, tmp_path, progress=False), cameras=None)
    assert again.ids[-1] == "2026_01_01/2026_01_01_drive_0002_sync/0000000000"
    assert len(again) == len(street) and again.classes == tuple(street.classes)
    for i in range(len(street)):
        read, made = again[i].check(), street[i]
        assert_equal(read, made, ("points", "intensity", "semantic", "instance", "lidar_to_ego"))
        assert_equal(read.boxes, made.boxes, ("label", "instance"))
        np.testing.assert_allclose(read.ego_to_world, made.ego_to_world, atol=1e-6)
        for name in ("center", "size", "yaw"):
            np.testing.assert_allclose(getattr(read.boxes, name), getattr(made.boxes, name), atol=1e-6)
        assert abs(read.timestamp - made.timestamp) < 1e-9
        assert len(read.cameras) == len(made.cameras)
        for a, b in zip(read.cameras, made.cameras):
            assert_equal(a, b, ("image", "intrinsics", "camera_to_ego", "semantic", "instance"))
            np.testing.assert_allclose(a.ego_to_world, b.ego_to_world, atol=1e-6)
            near = b.depth < 255.99
            np.testing.assert_allclose(a.depth[near], b.depth[near], atol=1 / 256)
            assert not a.depth[~near].any()
            assert abs(a.timestamp - b.timestamp) < 1e-9
