"""The built-in world written in KITTI's layout and read back to identical frames."""

import numpy as np
import pytest

pytest.importorskip("open3d", reason="the street world is rendered with Open3D")

from xmodal.data.kitti import KittiRaw, read_timestamps  # noqa: E402
from xmodal.data.kitti_write import write_kitti, write_moment  # noqa: E402
from xmodal.data.street import Street  # noqa: E402
from xmodal.frame import BadData  # noqa: E402
from xmodal.matching import projection_pairs  # noqa: E402


def test_moments_before_midnight_survive(tmp_path):
    write_moment(tmp_path / "2026_01_01/x", "oxts", 2, -0.03)
    write_moment(tmp_path / "2026_01_01/x", "oxts", 0, 86400.25)
    assert read_timestamps(tmp_path / "2026_01_01/x/oxts/timestamps.txt") == {0: 86400.25, 2: pytest.approx(-0.03, abs=1e-10)}


def test_moments_outside_of_a_day_folder_count_from_the_first(tmp_path):
    """A drive that was unpacked elsewhere: the first line may be empty, or the whole file."""
    path = tmp_path / "timestamps.txt"
    path.write_text("\n2011-09-26 13:02:25.5\n2011-09-27 00:00:01.0\n")
    assert read_timestamps(path) == {1: 46945.5, 2: 86401.0}
    path.write_text("")
    assert read_timestamps(path) == {}
    path.write_text("2011-09-26 13:02:nan\n")
    with pytest.raises(BadData, match="line 1 is no moment"):
        read_timestamps(path)


def assert_equal(a, b, names):
    for name in names:
        first, second = getattr(a, name), getattr(b, name)
        assert (first is None) == (second is None), name
        assert first is None or (np.array_equal(first, second) and first.dtype == second.dtype), name


@pytest.mark.parametrize("cameras", [2, 5])  # 5: they look to all sides, which takes the general P = K [R | t]
def test_street_comes_back_identical(tmp_path, cameras):
    street = Street(frames=3, frames_per_drive=2, size=(96, 320), beams=16, samples=1, cameras=cameras)
    again = KittiRaw(write_kitti(street, tmp_path, progress=False), cameras=None)
    assert again.ids[-1] == "2026_01_01/2026_01_01_drive_0002_sync/0000000000"
    assert len(again) == len(street) and again.classes == tuple(street.classes)
    for i in range(len(street)):
        read, made = again[i].check(), street[i]
        assert len(made.boxes) and made.semantic.any() and made.instance.any()  # there is something to lose
        assert_equal(read, made, ("points", "intensity", "semantic", "instance", "lidar_to_ego"))
        assert_equal(read.boxes, made.boxes, ("center", "size", "yaw", "label", "instance"))
        assert abs(read.timestamp - made.timestamp) < 1e-9
        assert_same_pose(read.ego_to_world, made.ego_to_world)  # through latitudes and angles, and a velocity
        assert len(read.cameras) == len(made.cameras) == cameras
        for c, (a, b) in enumerate(zip(read.cameras, made.cameras)):
            assert_equal(a, b, ("image", "intrinsics", "camera_to_ego", "semantic", "instance", "distortion"))
            assert b.timestamp != made.timestamp and abs(a.timestamp - b.timestamp) < 1e-9
            assert_same_pose(a.ego_to_world, b.ego_to_world)
            assert_same_depth(a.depth, b.depth)
            for ours, theirs in zip(read.project(c), made.project(c)):
                np.testing.assert_allclose(ours[made.project(c)[1] > 1], theirs[made.project(c)[1] > 1], atol=1e-4)  # pixels, metres
        ours, theirs = projection_pairs(read), projection_pairs(made)
        assert len(theirs) > 1000 and len(set(zip(ours.point, ours.camera)) ^ set(zip(theirs.point, theirs.camera))) <= 2  # on the rim


def assert_same_pose(read, made):
    np.testing.assert_allclose(read, made, atol=1e-7)  # metres


def assert_same_depth(read, made):
    "KITTI stores 1/256 m in 16 bits; what lies beyond 256 m comes back as unknown."
    near = made < 255.99
    np.testing.assert_allclose(read[near], made[near], atol=0.5001 / 256)
    assert near.mean() > 0.5 and not read[made > 256].any()
