"""Planted faults: each damaged file of a small KITTI recording gives one BadData that names the file, the cause and what to do."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmodal.data.kitti import KittiObject, KittiRaw
from xmodal.data.kitti_write import write_kitti
from xmodal.frame import BadData, Boxes, Camera, Frame
from xmodal.projection import rigid

DAY = "2026_01_01"
DRIVE = f"{DAY}/{DAY}_drive_0001_sync"
FORWARD = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0.0]])  # camera axes in the ego frame


class Small:
    """Two frames with everything that a KITTI recording can hold."""

    name, classes = "small", ("unlabelled", "road", "Car")
    ids = ["drive_0001/0000000000", "drive_0001/0000000001"]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        size, n = (40, 120), 200
        pose = rigid(None, [i * 1.0, 0, 0])
        camera = Camera(
            "image_02",
            rng.integers(0, 256, (*size, 3), dtype=np.uint8),
            np.array([[60.0, 0, 59.5], [0, 60, 19.5], [0, 0, 1]]),
            rigid(FORWARD, [0.2, 0, 0.1]),
            pose,
            timestamp=0.1 * i,
            depth=rng.uniform(1, 80, size).astype(np.float32),
            semantic=rng.integers(0, 3, size, dtype=np.int32),
            instance=rng.integers(0, 9, size, dtype=np.int32),
        )
        boxes = Boxes(np.array([[9.0, 1, 0]]), np.array([[4.0, 2, 1.5]]), np.array([0.2]), np.array([2]), np.array([5]))
        points = rng.uniform([5, -5, -2], [50, 5, 2], (n, 3)).astype(np.float32)
        labels = rng.integers(0, 3, n, dtype=np.int32), rng.integers(0, 9, n, dtype=np.int32)
        return Frame(self.ids[i], points, rng.random(n, np.float32), [camera], rigid(None, [0, 0, 1.7]), pose, *labels, boxes, 0.1 * i)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return write_kitti(Small(), tmp_path_factory.mktemp("clean"), progress=False)


@pytest.fixture
def root(clean, tmp_path):
    shutil.copytree(clean, tmp_path / "kitti")
    return tmp_path / "kitti"


def test_clean_recording_raises_nothing(root):
    for frame in (dataset := KittiRaw(root)):
        frame.check()
    assert len(dataset) == 2


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 1])


def empty(path):
    path.write_bytes(b"")


def nan_points(path):
    scan = np.fromfile(path, np.float32).reshape(-1, 4)
    scan[:3, 0] = np.nan
    scan.tofile(path)


def resize(path):
    Image.open(path).resize((60, 20)).save(path)


def edit(key, values):
    """Replaces the numbers of one entry of a calibration file."""

    def fault(path):
        lines = path.read_text().splitlines()
        assert any(line.startswith(f"{key}:") for line in lines)
        path.write_text("\n".join(f"{key}: {values}" if line.startswith(f"{key}:") else line for line in lines))

    return fault


def remove_entry(key):
    def fault(path):
        path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith(f"{key}:")))

    return fault


def write(text):
    return lambda path: path.write_text(text)


SCAN, IMAGE = f"{DRIVE}/velodyne_points/data/0000000001.bin", f"{DRIVE}/image_02/data/0000000001.png"
CAM, VELO, IMU = (f"{DAY}/calib_{name}.txt" for name in ("cam_to_cam", "velo_to_cam", "imu_to_velo"))
FAULTS = {
    "truncated scan": (SCAN, cut, "cut short"),
    "empty scan": (SCAN, empty, "empty"),
    "missing scan": (SCAN, Path.unlink, "missing"),
    "NaN points": (SCAN, nan_points, "3 of 200 points"),
    "missing image": (IMAGE, Path.unlink, "missing"),
    "truncated image": (IMAGE, cut, "cannot be read"),
    "not an image": (IMAGE, write("<html>404</html>"), "cannot be read"),
    "empty image": (IMAGE, empty, "cannot be read"),
    "image of the wrong size": (IMAGE, resize, "60 x 20"),
    "missing calib_cam_to_cam": (CAM, Path.unlink, "missing"),
    "missing calib_velo_to_cam": (VELO, Path.unlink, "missing"),
    "NaN in P": (CAM, edit("P_rect_02", "60 0 59.5 nan 0 60 19.5 0 0 0 1 0"), "NaN"),
    "singular P": (CAM, edit("P_rect_02", "0 0 59.5 0 0 0 19.5 0 0 0 1 0"), "singular"),
    "P of all zeros": (CAM, edit("P_rect_02", "0 " * 12), "singular"),
    "P too short": (CAM, edit("P_rect_02", "60 0 59.5"), "3 numbers instead of 12"),
    "no P": (CAM, remove_entry("P_rect_02"), "P_rect_02 is missing"),
    "R_rect no rotation": (CAM, edit("R_rect_00", "2 0 0 0 1 0 0 0 1"), "not a rotation"),
    "R mirrored": (VELO, edit("R", "0 1 0 0 0 -1 1 0 0"), "not a rotation"),
    "R singular": (VELO, edit("R", "0 " * 9), "not a rotation"),
    "T infinite": (VELO, edit("T", "0 inf 0"), "NaN or infinity"),
    "IMU no rotation": (IMU, edit("R", "1 0 0 0 1 0 0 0 3"), "not a rotation"),
    "point labels of another scan": (f"{DRIVE}/labels/0000000001.label", cut, "4 bytes each"),
    "depth damaged": (f"{DRIVE}/proj_depth/groundtruth/image_02/0000000001.png", cut, "cannot be read"),
    "depth of another size": (f"{DRIVE}/proj_depth/groundtruth/image_02/0000000001.png", resize, "shape (20, 60)"),
    "boxes with wrong columns": (f"{DRIVE}/boxes/data/0000000001.txt", write("Car 1 2 3\n"), "4 columns instead of 9"),
    "boxes with words": (f"{DRIVE}/boxes/data/0000000001.txt", write("Car 1 a 3 4 5 6 7 8\n"), "a word"),
    "boxes of an unknown class": (f"{DRIVE}/boxes/data/0000000001.txt", write("Zebra 1 2 3 4 5 6 7 8\n"), "unknown class"),
    "oxts packet missing": (f"{DRIVE}/oxts/data/0000000001.txt", Path.unlink, "missing"),
    "oxts packet short": (f"{DRIVE}/oxts/data/0000000001.txt", write("49 8 110"), "3 values instead of 30"),
    "oxts packet with words": (f"{DRIVE}/oxts/data/0000000001.txt", write("here and there"), "damaged"),
    "timestamps with words": (f"{DRIVE}/image_02/timestamps.txt", write("soon\nlater\n"), "no moment"),
    "timestamps that are no text": (f"{DRIVE}/image_02/timestamps.txt", lambda path: path.write_bytes(b"\xff\xfe\x00\n"), "no moment"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named(root, fault):
    file, plant, cause = FAULTS[fault]
    plant(root / file)
    dataset = KittiRaw(root)
    assert len(dataset) == 2  # a missing half is reported, not hidden
    with pytest.raises(BadData) as raised:
        dataset[1]
    bad = raised.value
    assert Path(bad.path).name == Path(file).name
    assert cause in bad.cause
    assert bad.mend and str(bad) == f"{bad.path}: {bad.cause}; {bad.mend}"
    assert "\n" not in str(bad)


def test_a_fault_spoils_only_its_frame(root):
    cut(root / SCAN)
    dataset = KittiRaw(root)
    dataset[0].check()
    with pytest.raises(BadData):
        dataset[1]


def test_edited_calibration_is_not_overruled(root):
    """calib_rig.txt repeats the calibration to the last bit: whoever edits the official file must hear of it."""
    edit("T", "1 2 3")(root / VELO)
    with pytest.raises(BadData, match="calib_rig.txt: .* disagrees .*; delete calib_rig.txt"):
        KittiRaw(root)[1]


def test_the_last_class_counts_without_a_newline(root):
    """Editors that end a file without one must not take a class away."""
    path = root / DAY / "classes.txt"
    path.write_text(path.read_text().rstrip("\n"))
    assert KittiRaw(root).classes == Small.classes
    KittiRaw(root)[1].check()


def test_damaged_tracklets(root):
    shutil.rmtree(root / DRIVE / "boxes")
    assert len(KittiRaw(root)[1].boxes) == 1
    cut(root / DRIVE / "tracklet_labels.xml")
    with pytest.raises(BadData, match="tracklet_labels.xml.*cannot be read"):
        KittiRaw(root)[1]


def test_camera_that_sees_no_point(root):
    """Not a fault of any file: the frame's own check finds it."""
    path = root / SCAN
    scan = np.fromfile(path, np.float32).reshape(-1, 4)
    scan[:, 0] *= -1  # everything behind
    scan.tofile(path)
    frame = KittiRaw(root)[1]
    with pytest.raises(BadData, match="no LiDAR point"):
        frame.check()


def test_wrong_layouts(tmp_path, root):
    for work in (
        lambda: KittiRaw(tmp_path / "nowhere"),
        lambda: KittiRaw(tmp_path),
        lambda: KittiRaw(root, drives=["0099"]),
        lambda: KittiObject(root),
    ):
        with pytest.raises(BadData) as raised:
            work()
        assert raised.value.mend
    with pytest.raises(BadData, match="expected 2011_09_26"):
        KittiRaw(tmp_path)
    (tmp_path / "x_drive_sync/velodyne_points/data").mkdir(parents=True)
    with pytest.raises(BadData, match="no scan and no image"):
        KittiRaw(tmp_path / "x_drive_sync")


def test_root_is_recognised_at_each_level(root):
    ids = KittiRaw(root).ids
    assert ids == [f"{DRIVE}/{n:010d}" for n in range(2)]
    assert KittiRaw(root / DAY).ids == ids and KittiRaw(root / DRIVE).ids == ids
    assert KittiRaw(root, drives=["0001"]).ids == ids


def object_set(folder):
    """One frame of KITTI's object set."""
    for name in ("velodyne", "image_2", "calib", "label_2"):
        (folder / "training" / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    rng.uniform([5, -5, -2, 0], [50, 5, 2, 1], (200, 4)).astype(np.float32).tofile(folder / "training/velodyne/000000.bin")
    Image.fromarray(rng.integers(0, 256, (40, 120, 3), dtype=np.uint8)).save(folder / "training/image_2/000000.png")
    (folder / "training/calib/000000.txt").write_text(
        "P2: 60 0 59.5 3 0 60 19.5 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
    )
    (folder / "training/label_2/000000.txt").write_text("Car 0 0 0 0 0 0 0 1.5 1.8 4.2 2 1 20 -1.6\n")
    return folder


OBJECT_FAULTS = {
    "no calib": ("calib/000000.txt", Path.unlink, "missing"),
    "no Tr": ("calib/000000.txt", remove_entry("Tr_velo_to_cam"), "Tr_velo_to_cam is missing"),
    "NaN": ("calib/000000.txt", edit("R0_rect", "nan 0 0 0 1 0 0 0 1"), "NaN"),
    "no rotation": ("calib/000000.txt", edit("R0_rect", "1 1 1 1 1 1 1 1 1"), "not a rotation"),
    "columns": ("label_2/000000.txt", write("Car 0 0 0\n"), "4 columns instead of 15"),
    "class": ("label_2/000000.txt", write("Tank" + " 1" * 14), "unknown class"),
    "scan": ("velodyne/000000.bin", cut, "cut short"),
    "image": ("image_2/000000.png", Path.unlink, "missing"),
}


@pytest.mark.parametrize("fault", OBJECT_FAULTS)
def test_object_set_fault_is_named(tmp_path, fault):
    root = object_set(tmp_path)
    KittiObject(root)[0].check()
    file, plant, cause = OBJECT_FAULTS[fault]
    plant(root / "training" / file)
    with pytest.raises(BadData) as raised:
        KittiObject(root)[0]
    assert Path(raised.value.path).name == Path(file).name and cause in raised.value.cause and raised.value.mend
