"""SemanticKITTI, SemanticPOSS, KITTI-360 and RELLIS-3D: files of the official layouts, written here without the package, come back as they are; damaged ones are told."""

import os
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from xmodal.data.datasets import recognise
from xmodal.data.kitti import KittiObject, KittiRaw
from xmodal.data.kitti360 import Kitti360
from xmodal.data.kitti_files import read_png, read_scan
from xmodal.data.kitti_write import write_kitti
from xmodal.data.rellis3d import DISTORTION, RELLIS, RELLIS_ONTOLOGY, Rellis3D
from xmodal.data.semantickitti import SemanticKitti
from xmodal.data.semantickitti_write import write_semantickitti
from xmodal.data.semanticposs import SemanticPoss
from xmodal.frame import BadData, Boxes, Camera, Frame
from xmodal.projection import in_image

DATA = Path(os.environ.get("XMODAL_DATA", Path(__file__).parents[2] / "shared/data"))
AXES = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0.0]])  # LiDAR axes (x forward) to camera axes (z forward)
FAMILY = (SemanticKitti, SemanticPoss, Kitti360, Rellis3D)
some = settings(max_examples=8, deadline=None, derandomize=True)


def text(values):
    return " ".join(repr(float(value)) for value in np.ravel(values))


def rigid4(rng, reach, axes=np.eye(3), angle=0.05):
    a = np.eye(4)
    a[:3, :3] = Rotation.from_rotvec(rng.normal(0, angle, 3)).as_matrix() @ axes
    a[:3, 3] = rng.normal(0, reach, 3)
    return a


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(content).save(path)
    return path


def scan_of(rng, count):
    return np.column_stack([rng.uniform(-40, 40, (count, 3)), rng.random(count)]).astype("<f4")


def image_of(rng, size=(30, 80)):
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


def lens(rng):
    return np.array([[rng.uniform(40, 60), 0, 39.3], [0, rng.uniform(40, 60), 14.8], [0, 0, 1]])


def same_pixels(frame, camera, formula):
    "The frame's projection is that of an official formula, in homogeneous coordinates, for the points before the camera."
    uv, depth = frame.project(camera)
    y = formula @ np.column_stack([frame.points.astype(np.float64), np.ones(len(frame.points))]).T
    seen = in_image((y[:2] / y[2]).T, y[2], frame.cameras[camera].size)
    assert seen.any()
    np.testing.assert_allclose(uv[seen], (y[:2] / y[2]).T[seen], atol=1e-6)
    np.testing.assert_allclose(depth[seen], y[2][seen], atol=1e-6)


def told(ask, *words):
    with pytest.raises(BadData) as caught:
        ask()
    for word in words:
        assert word in str(caught.value)
    assert len(caught.value.mend) > 10


# ---- SemanticKITTI


def make_semantickitti(root, rng, sequences=("00", "08"), frames=3):
    "Returns what was written: {id: (scan, raw, instance, images, pose, time)} and the calibration of each sequence."
    made, rigs = {}, {}
    raws = np.array([0, 1, 10, 11, 13, 15, 16, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 52, 60, 70, 71, 72, 80, 81, 99, *range(252, 260)])
    for name in sequences:
        folder, Tr = root / "sequences" / name, rigid4(rng, 0.3, AXES)
        P = {k: lens(rng) @ np.column_stack([np.eye(3), [-0.5 * (k - 2) + 0.06, 0.001, 0.002]]) for k in (2, 3)}
        rigs[name] = P, Tr
        put(folder / "calib.txt", "".join(f"P{k}: {text(P.get(k, np.eye(3, 4)))}\n" for k in range(4)) + f"Tr: {text(Tr[:3])}\n")
        rows = [rigid4(rng, 50) for _ in range(frames)]
        put(folder / "poses.txt", "".join(text(row[:3]) + "\n" for row in rows))
        put(folder / "times.txt", "".join(f"{0.1 * n:e}\n" for n in range(frames)))
        for n in range(frames):
            count = int(rng.integers(300, 600))
            scan, raw, who = scan_of(rng, count), rng.choice(raws, count), rng.integers(0, 2**16, count)
            images = {k: image_of(rng) for k in (2, 3)}
            put(folder / f"velodyne/{n:06d}.bin", scan.tobytes())
            put(folder / f"labels/{n:06d}.label", (raw | who << 16).astype("<u4").tobytes())
            for k, image in images.items():
                put(folder / f"image_{k}/{n:06d}.png", image)
            made[f"{name}/{n:06d}"] = scan, raw, who, images, rows[n], 0.1 * n
    return made, rigs


@some
@given(st.integers(0, 2**32))
def test_semantickitti_comes_back(tmp_path_factory, seed):
    root, rng = tmp_path_factory.mktemp("kitti"), np.random.default_rng(seed)
    made, rigs = make_semantickitti(root, rng)
    for dataset, known in ((SemanticKitti(root), 19), (SemanticKitti(root / "sequences", moving=True), 25)):
        assert dataset.ids == sorted(made) and len(dataset.classes) == known + 1 and dataset.cameras == ("image_2", "image_3")
        for frame in dataset:
            scan, raw, who, images, pose, time = made[frame.id]
            P, Tr = rigs[frame.id[:2]]
            assert np.array_equal(frame.points, scan[:, :3]) and np.array_equal(frame.intensity, scan[:, 3])
            assert np.array_equal(frame.instance, who) and frame.semantic.dtype == frame.instance.dtype == np.int32
            moving = np.isin(raw, range(252, 260))
            assert frame.semantic.max() <= known and (frame.semantic[moving] >= (20 if known == 25 else 1)).all()
            assert (dataset.classes[frame.semantic[raw == 40][0]] == "road") if (raw == 40).any() else True
            assert ((frame.semantic == 0) == np.isin(raw, (0, 1, 52, 99))).all()
            np.testing.assert_allclose(frame.ego_to_world, np.linalg.inv(Tr) @ pose @ Tr, atol=1e-9)
            assert frame.timestamp == pytest.approx(time, abs=1e-9)
            for c, k in enumerate((2, 3)):
                assert np.array_equal(frame.cameras[c].image, images[k])
                assert np.array_equal(frame.cameras[c].ego_to_world, frame.ego_to_world)
                same_pixels(frame, c, P[k] @ Tr)


def test_semantickitti_splits_and_roots(tmp_path):
    make_semantickitti(tmp_path / "dataset", np.random.default_rng(0), ("00", "08", "11"), 1)
    ids = lambda **options: SemanticKitti(tmp_path, **options).ids
    assert ids() == ["00/000000", "08/000000", "11/000000"]
    assert (ids(split="train"), ids(split="val"), ids(split="test")) == (["00/000000"], ["08/000000"], ["11/000000"])
    assert ids(split="trainval") == ["00/000000", "08/000000"]
    assert sorted(SemanticKitti.splits["train"] + SemanticKitti.splits["val"] + SemanticKitti.splits["test"]) == [f"{n:02d}" for n in range(22)]
    with pytest.raises(ValueError, match="no split 'training'"):
        SemanticKitti(tmp_path, split="training")
    with pytest.raises(IndexError):
        SemanticKitti(tmp_path)[3]


def test_semantickitti_without_images_labels_poses(tmp_path):
    "The scans alone are a dataset; classes.txt replaces the official classes."
    make_semantickitti(tmp_path, np.random.default_rng(1), ("00",), 2)
    folder = tmp_path / "sequences/00"
    put(tmp_path / "classes.txt", "unlabelled\nroad\n")
    put(folder / "labels/000000.label", np.ones((folder / "velodyne/000000.bin").stat().st_size // 16, "<u4").tobytes())
    dataset = SemanticKitti(tmp_path)
    assert dataset.classes == ("unlabelled", "road") and (dataset[0].semantic == 1).all()
    told(lambda: dataset[1], "000001.label", "does not have")
    for name in ("labels", "image_2", "image_3"):
        shutil.rmtree(folder / name)
    for name in ("poses.txt", "times.txt", "calib.txt"):
        (folder / name).unlink()
    frame = SemanticKitti(tmp_path)[1].check()
    assert frame.cameras == [] and frame.semantic is None and frame.ego_to_world is None and frame.timestamp is None


def quiet(work):
    "What `work` returns, without a word."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return work()


@pytest.mark.parametrize("which, split, words", [
    (SemanticKitti, "trainval", "1 of the 11 sequences of the split trainval"),
    (SemanticPoss, "train", "1 of the 5 sequences of the split train"),
    (Kitti360, "trainval", "1 of the 9 drives of the split trainval"),
    (Kitti360, "train", "2 of the 3 frames of the split train"),
    (Rellis3D, "val", "1 of the 2 frames of the split val"),
])  # fmt: skip
def test_a_part_of_a_split_is_told(tmp_path, which, split, words):
    rng = np.random.default_rng(0)
    if which is SemanticKitti:
        make_semantickitti(tmp_path, rng, ("00", "08"), 1)
        put(tmp_path / "sequences/01/calib.txt", "")  # the calibrations of all sequences come in one archive: no scan of it is here
        assert len(quiet(lambda: SemanticKitti(tmp_path, split="val"))) == 1
        shutil.rmtree(tmp_path / "sequences/08")
    elif which is SemanticPoss:
        make_poss(tmp_path, rng)
        assert len(quiet(lambda: SemanticPoss(tmp_path, split="val"))) == 1
        (tmp_path / "sequences/03").rename(tmp_path / "sequences/04")
    elif which is Kitti360:
        make_kitti360(tmp_path, rng, drives=(0,))
        names = "".join(f"data_2d_raw/{DRIVE.format(0)}/image_00/data_rect/{n:010d}.png\n" for n in (250, 251, 900))
        put(tmp_path / "data_2d_semantics/train/2013_05_28_drive_train_frames.txt", names)
    else:
        make_rellis(tmp_path, rng)
        assert len(quiet(lambda: Rellis3D(tmp_path, split="val"))) == 1
        put(tmp_path / "Rellis-3D/pt_val.lst", "".join(f"00003/os1_cloud_node_kitti_bin/{n:06d}.bin\n" for n in (104, 105)))
    with pytest.warns(UserWarning) as told:
        assert len(which(tmp_path, split=split))
    assert len(told) == 1 and words in str(told[0].message)


@pytest.mark.parametrize("which", (SemanticKitti, Kitti360, Rellis3D))
def test_cameras_that_only_some_drives_have(tmp_path, which):
    "Every frame can be read, with the images that its drive has; what is missing is told once, when opened."
    rng = np.random.default_rng(0)
    if which is SemanticKitti:
        make_semantickitti(tmp_path, rng, ("00", "01"), 2)
        shutil.rmtree(tmp_path / "sequences/01/image_3"), shutil.rmtree(tmp_path / "sequences/00/image_2")
        wanted = {"00": ["image_3"], "01": ["image_2"]}
    elif which is Kitti360:
        make_kitti360(tmp_path, rng)
        shutil.rmtree(tmp_path / f"data_2d_raw/{DRIVE.format(0)}")
        shutil.rmtree(tmp_path / f"data_2d_raw/{DRIVE.format(8)}/image_01/data_rect")  # its moments are still there
        put(tmp_path / f"data_2d_raw/{DRIVE.format(8)}/image_01/timestamps.txt", "")
        wanted = {DRIVE.format(0): [], DRIVE.format(8): ["image_00"]}
    else:
        make_rellis(tmp_path, rng)
        shutil.rmtree(tmp_path / "Rellis-3D/00003/pylon_camera_node")
        wanted = {"00000": ["pylon_camera_node"], "00003": []}
    with pytest.warns(UserWarning, match="their frames come without it"):
        dataset = which(tmp_path)
    assert {name.split("/")[0] for name in dataset.ids} == set(wanted)
    for frame in pickle.loads(pickle.dumps(dataset)):
        assert [camera.name for camera in frame.check().cameras] == wanted[frame.id.split("/")[0]]
    asked = which(tmp_path, cameras=("pylon_camera_node",) if which is Rellis3D else ("image_01",) if which is Kitti360 else ("image_3",))
    told(lambda: asked[len(asked) - 1], "image is missing", "leave this camera out")


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def edit(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


DAMAGE = {
    "scan cut short": (lambda f: cut(f / "velodyne/000001.bin", 1001), "000001.bin", "cut short"),
    "scan missing": (lambda f: (f / "velodyne/000001.bin").unlink(), "000001.bin", "missing"),
    "NaN in a scan": (lambda f: put(f / "velodyne/000001.bin", np.full((9, 4), np.nan, "<f4").tobytes()), "000001.bin", "NaN"),
    "intensity of another scale": (lambda f: put(f / "velodyne/000001.bin", np.full((9, 4), 200, "<f4").tobytes()), "000001.bin", "full scale"),
    "labels of another scan": (lambda f: cut(f / "labels/000001.label", 40), "000001.label", "40 bytes"),
    "labels missing": (lambda f: (f / "labels/000001.label").unlink(), "000001.label", "missing"),
    "label that nobody knows": (lambda f: put(f / "labels/000001.label", np.full((f / "labels/000001.label").stat().st_size // 4, 77, "<u4").tobytes()), "000001.label", "77"),
    "image cut short": (lambda f: cut(f / "image_3/000001.png", 2000), "image_3/000001.png", "cannot be read"),
    "image missing": (lambda f: (f / "image_2/000001.png").unlink(), "image_2/000001.png", "missing"),
    "no calibration": (lambda f: (f / "calib.txt").unlink(), "calib.txt", "missing"),
    "no Tr": (lambda f: edit(f / "calib.txt", "Tr:", "Tx:"), "calib.txt", "Tr is missing"),
    "singular P": (lambda f: put(f / "calib.txt", f"P2: {text(np.zeros(12))}\nP3: {text(np.zeros(12))}\nTr: {text(np.eye(3, 4))}\n"), "calib.txt", "singular"),
    "Tr is no rotation": (lambda f: put(f / "calib.txt", f"P2: {text(np.eye(3, 4))}\nTr: {text(2 * np.eye(3, 4))}\n"), "calib.txt", "not a rotation"),
    "poses cut short": (lambda f: cut(f / "poses.txt", 20), "poses.txt", "12 numbers"),
    "poses of another sequence": (lambda f: put(f / "poses.txt", text(np.eye(3, 4)) + "\n"), "poses.txt", "frame 1 has none"),
    "pose is no rotation": (lambda f: put(f / "poses.txt", 3 * (text(-np.eye(3, 4)) + "\n")), "poses.txt", "pose of frame 1", "not a rotation"),
    "word among the times": (lambda f: put(f / "times.txt", "0\nsoon\n2\n"), "times.txt", "line 2", "1 number"),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_semantickitti_faults_are_told(tmp_path, fault):
    make_semantickitti(tmp_path, np.random.default_rng(2), ("00",))
    damage, *words = DAMAGE[fault]
    damage(tmp_path / "sequences/00")
    dataset = SemanticKitti(tmp_path)
    assert len(dataset) == 3  # nothing is left out in silence
    told(lambda: dataset[1], *words)


# ---- the writer


class Made:
    "Random frames of a car with cameras to all sides, each with a moment of its own."

    name, classes = "made", ("unlabelled", "road", "car")

    def __init__(self, seed, drives=2, frames=2, cameras=3):
        self.ids = [f"drive_{d}/{n:03d}" for d in range(drives) for n in range(5, 5 + frames)]
        rng = np.random.default_rng(seed)
        lidar_to_ego, K = rigid4(rng, 0.5), lens(rng)
        places = [rigid4(rng, 0.5, Rotation.from_euler("z", 2.0 * k).as_matrix() @ AXES.T) for k in range(cameras)]
        self.frames = []
        for i, name in enumerate(self.ids):
            scan, count = scan_of(rng, 400), 400
            ego, time = rigid4(rng, 300, angle=1.0), 1000.5 + i
            views = [
                Camera(f"cam_{k}", image_of(rng), K @ np.diag([1 + k / 10, 1, 1]), place, rigid4(rng, 0.1) @ ego, timestamp=time + rng.normal(0, 0.03))
                for k, place in enumerate(places)
            ]
            labels = rng.integers(0, 3, count, dtype=np.int32), rng.integers(0, 2**16, count, dtype=np.int32)
            self.frames.append(Frame(name, scan[:, :3].copy(), scan[:, 3].copy(), views, lidar_to_ego, ego, *labels, timestamp=time))

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, i):
        return self.frames[i]


def assert_same(read, made):
    for name in ("points", "intensity", "semantic", "instance"):
        a, b = getattr(read, name), getattr(made, name)
        assert a.dtype == b.dtype and np.array_equal(a, b), name
    for name in ("lidar_to_ego", "ego_to_world", "timestamp"):
        np.testing.assert_allclose(getattr(read, name), getattr(made, name), rtol=0, atol=1e-9)
    assert len(read.cameras) == len(made.cameras)
    for c, (a, b) in enumerate(zip(read.cameras, made.cameras)):
        assert np.array_equal(a.image, b.image)
        for name in ("intrinsics", "camera_to_ego", "ego_to_world", "timestamp"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=1e-9)
        np.testing.assert_allclose(read.lidar_to_camera(c), made.lidar_to_camera(c), rtol=0, atol=1e-9)


@some
@given(st.integers(0, 2**32), st.integers(0, 4))
def test_written_semantickitti_is_the_same(tmp_path_factory, seed, cameras):
    made = Made(seed, cameras=cameras)
    again = SemanticKitti(write_semantickitti(made, tmp_path_factory.mktemp("written"), progress=False))
    assert again.ids == ["00/000000", "00/000001", "01/000000", "01/000001"] and again.classes == made.classes
    for i in range(4):
        assert_same(again[i], made[i])
    twice = SemanticKitti(write_semantickitti(again, tmp_path_factory.mktemp("twice"), progress=False))
    assert twice.ids == again.ids
    for i in range(4):
        assert_same(twice[i], made[i])


def test_unknown_poses_and_labels_stay_unknown(tmp_path):
    made = Made(3)
    for i, frame in enumerate(made.frames):
        frame.semantic = frame.instance = None
        if i % 2 == 0:
            frame.ego_to_world = frame.timestamp = None
            for camera in frame.cameras:
                camera.ego_to_world = camera.timestamp = None
    again = SemanticKitti(write_semantickitti(made, tmp_path, progress=False))
    for i in range(4):
        assert again[i].semantic is None and (again[i].ego_to_world is None) == (again[i].timestamp is None) == (i % 2 == 0)
        assert [camera.timestamp for camera in again[i].cameras] == [camera.timestamp for camera in made[i].cameras]


def test_writing_goes_on_where_it_was_stopped(tmp_path):
    made = Made(4)

    class Broken(Made):
        def __getitem__(self, i):
            if i == 2:
                raise KeyboardInterrupt
            return super().__getitem__(i)

    with pytest.raises(KeyboardInterrupt):
        write_semantickitti(Broken(4), tmp_path, progress=False)
    assert len(SemanticKitti(tmp_path)) == 2
    again = SemanticKitti(write_semantickitti(made, tmp_path, progress=False))
    for i in range(4):
        assert_same(again[i], made[i])
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("velodyne/*")}
    write_semantickitti(made, tmp_path, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("velodyne/*")}  # nothing is written twice
    told(lambda: write_semantickitti(Made(5), tmp_path, progress=False), "another dataset")
    made.classes = ("unlabelled", "other")
    told(lambda: write_semantickitti(made, tmp_path, progress=False), "other classes")


def test_tables_grow_at_their_end(tmp_path, monkeypatch):
    "Not one table is written anew for each frame; half a line, left by a crash, is made good."
    import xmodal.data.semantickitti_write as writer

    whole, written = writer.write_whole, []
    monkeypatch.setattr(writer, "write_whole", lambda path, content: written.append(path.name) or whole(path, content))
    made = Made(4, drives=1, frames=6)
    write_semantickitti(made, tmp_path, progress=False)
    assert not [name for name in written if name.startswith(("poses", "times"))]
    folder = tmp_path / "sequences/00"
    tables = {path: path.read_bytes() for path in folder.glob("*s*.txt")}
    assert len(tables) == 8  # poses and times, of the LiDAR and of three cameras
    for path, content in tables.items():
        path.write_bytes(content[:-3])  # in the middle of the last line
    (folder / "velodyne/000005.bin").unlink()
    write_semantickitti(made, tmp_path, progress=False)
    assert tables == {path: path.read_bytes() for path in folder.glob("*s*.txt")}


def test_a_camera_that_falls_in_step(tmp_path):
    "Its own table must not end before the frames in which it fires with the LiDAR."
    made = Made(4, drives=1, frames=3, cameras=1)
    for frame in made.frames[1:]:
        frame.cameras[0].ego_to_world, frame.cameras[0].timestamp = frame.ego_to_world, frame.timestamp
    again = SemanticKitti(write_semantickitti(made, tmp_path, progress=False))
    for i in range(3):
        assert_same(again[i], made[i])


def test_truth_that_has_no_place_is_told_once(tmp_path):
    made = Made(4)
    for frame in made.frames:
        frame.semantic = None
        frame.boxes = Boxes(np.zeros((1, 3)), np.ones((1, 3)), np.zeros(1), np.ones(1, np.int32))
        frame.cameras[1].depth = np.ones(frame.cameras[1].size, np.float32)
    with pytest.warns(UserWarning) as told:
        again = SemanticKitti(write_semantickitti(made, tmp_path, progress=False))
    assert len(told) == 1 and "no place for instance, boxes, depth of images" in str(told[0].message)
    assert again[0].semantic is None and again[0].instance is None


def test_more_than_a_hundred_drives_do_not_fit(tmp_path):
    made = Made(6, drives=1, frames=1)
    made.ids = [f"drive_{n}/0" for n in range(101)]
    told(lambda: write_semantickitti(made, tmp_path, progress=False), "two digits")


def test_street_through_semantickitti(tmp_path):
    pytest.importorskip("open3d", reason="the street world is rendered with Open3D")
    from xmodal.data.street import Street

    street = Street(frames=2, frames_per_drive=1, size=(48, 160), beams=16, samples=1, cameras=5)
    again = SemanticKitti(write_semantickitti(street, tmp_path, progress=False))
    assert again.cameras == ("image_2", "image_3", "image_4", "image_5", "image_6")  # two of KITTI's names, three without: numbered anew
    for i in range(2):
        made = street[i]
        assert made.semantic.any() and made.instance.any()
        assert_same(again[i].check(), made)


# ---- SemanticPOSS


@some
@given(st.integers(0, 2**32))
def test_semanticposs_comes_back(tmp_path_factory, seed):
    root, rng, made = tmp_path_factory.mktemp("poss"), np.random.default_rng(seed), {}
    for name in ("00", "03"):
        folder, Tr = root / "sequences" / name, rigid4(rng, 0.3, AXES)
        rows = [rigid4(rng, 50) for _ in range(4)]
        put(folder / "calib.txt", f"P0: {text(np.eye(3, 4))}\nTr: {text(Tr[:3])}\n")
        put(folder / "poses.txt", "".join(text(row[:3]) + "\n" for row in rows))
        put(folder / "tag/000001.tag", bytes(72000))
        for n in (1, 3):
            scan, raw, who = scan_of(rng, 200), rng.integers(0, 23, 200), rng.integers(0, 900, 200)
            put(folder / f"velodyne/{n:06d}.bin", scan.tobytes())
            put(folder / f"labels/{n:06d}.label", (raw | who << 16).astype("<u4").tobytes())
            made[f"{name}/{n:06d}"] = scan, raw, who, np.linalg.inv(Tr) @ rows[n] @ Tr
    dataset = SemanticPoss(root)
    assert dataset.ids == sorted(made) and SemanticPoss(root, split="val").ids == ["03/000001", "03/000003"] and len(dataset.classes) == 14
    person, ground = dataset.classes.index("person"), dataset.classes.index("ground")
    for frame in dataset:
        scan, raw, who, pose = made[frame.id]
        assert np.array_equal(np.column_stack([frame.points, frame.intensity]), scan) and np.array_equal(frame.instance, who)
        assert np.array_equal(frame.semantic == person, np.isin(raw, (4, 5))) and np.array_equal(frame.semantic == ground, raw == 22)
        assert frame.cameras == [] and frame.timestamp is None
        np.testing.assert_allclose(frame.ego_to_world, pose, atol=1e-9)
    put(root / "sequences/00/labels/000001.label", np.full(200, 60, "<u4").tobytes())
    told(lambda: dataset[0], "000001.label", "60")
    (root / "sequences/00/labels/000003.label").unlink()
    told(lambda: dataset[1], "000003.label", "missing")
    put(root / "sequences/03/velodyne/000001.bin", (scan * [1, 1, 1, 255]).astype("<f4").tobytes())
    told(lambda: dataset[2], "brightest=255")
    assert np.allclose(SemanticPoss(root, brightest=255)[2].intensity, scan[:, 3], atol=1e-6)


# ---- KITTI-360

DRIVE = "2013_05_28_drive_{:04d}_sync"


def make_kitti360(root, rng, drives=(0, 8), frames=(250, 251, 252)):
    "Returns {id: (scan, images, labels, things, pose)}, the cameras' 3 x 4 projections from the LiDAR, and camera 0 to the world as cam0_to_world.txt would say."
    made, cam_to_velo, rectify = {}, rigid4(rng, 0.5, AXES.T), [rigid4(rng, 0)[:3, :3] for _ in range(2)]
    cam_to_pose = [rigid4(rng, 0.5, AXES.T)]
    cam_to_pose.append(cam_to_pose[0] @ rigid4(rng, 0.2))
    K = lens(rng)
    put(root / "calibration/calib_cam_to_velo.txt", text(cam_to_velo[:3]) + "\n")
    put(root / "calibration/calib_cam_to_pose.txt", "".join(f"image_0{k}: {text(m[:3])}\n" for k, m in enumerate(cam_to_pose)))
    lines = [f"S_rect_0{k}: 80 30\nR_rect_0{k}: {text(rectify[k])}\nP_rect_0{k}: {text(np.column_stack([K, [-30.0 * k, 0, 0]]))}\n" for k in range(2)]
    put(root / "calibration/perspective.txt", "calib_time: 28-May-2013 14:00:00\ncorner_dist: 0.1\n" + "".join(lines))
    formulas, left = [], None
    for k in range(2):  # LiDAR -> camera 0 as built in -> ego -> camera k as built in -> rectified -> pixels
        to_rect = np.eye(4)
        to_rect[:3, :3] = rectify[k]
        formulas.append(K @ (to_rect @ np.linalg.inv(cam_to_pose[k]) @ cam_to_pose[0] @ np.linalg.inv(cam_to_velo))[:3])
        left = cam_to_pose[0] @ np.linalg.inv(to_rect) if k == 0 else left
    for number in drives:
        drive, rows = DRIVE.format(number), []
        for n in frames:
            scan, ego = scan_of(rng, 400), rigid4(rng, 100, angle=1.0)
            images, labels = [image_of(rng) for _ in range(2)], [rng.integers(0, 45, (30, 80)) for _ in range(2)]
            things = [rng.integers(0, 3, (30, 80)) for _ in range(2)]
            put(root / f"data_3d_raw/{drive}/velodyne_points/data/{n:010d}.bin", scan.tobytes())
            for k in range(2):
                put(root / f"data_2d_raw/{drive}/image_0{k}/data_rect/{n:010d}.png", images[k])
                put(root / f"data_2d_semantics/train/{drive}/image_0{k}/semantic/{n:010d}.png", labels[k].astype(np.uint8))
                put(root / f"data_2d_semantics/train/{drive}/image_0{k}/instance/{n:010d}.png", (labels[k] * 1000 + things[k]).astype(np.uint16))
            rows.append(f"{n} {text(ego[:3])}")
            made[f"{drive}/{n:010d}"] = scan, images, labels, things, ego
        put(root / f"data_poses/{drive}/poses.txt", "\n".join(rows) + "\n")
        moments = "".join(f"2013-05-28 08:46:{n % 60:02d}.{n:09d}\n" for n in range(frames[-1] + 1))
        put(root / f"data_3d_raw/{drive}/velodyne_points/timestamps.txt", moments)
    return made, formulas, left


@some
@given(st.integers(0, 2**32))
def test_kitti360_comes_back(tmp_path_factory, seed):
    root, rng = tmp_path_factory.mktemp("k360"), np.random.default_rng(seed)
    made, formulas, left = make_kitti360(root, rng, drives=(0,))
    dataset = Kitti360(root)
    assert dataset.ids == sorted(made) and len(dataset.classes) == 20
    for frame in dataset:
        scan, images, labels, things, ego = made[frame.id]
        assert np.array_equal(np.column_stack([frame.points, frame.intensity]), scan) and frame.semantic is None
        np.testing.assert_allclose(frame.ego_to_world, ego, atol=1e-9)
        np.testing.assert_allclose(frame.ego_to_world @ frame.cameras[0].camera_to_ego, ego @ left, atol=1e-9)  # cam0_to_world.txt
        n = int(frame.id[-10:])
        assert frame.timestamp == pytest.approx(8 * 3600 + 46 * 60 + n % 60 + n * 1e-9, abs=1e-9) and frame.cameras[0].timestamp is None
        for k, camera in enumerate(frame.cameras):
            assert np.array_equal(camera.image, images[k])
            same_pixels(frame, k, formulas[k])
            raw, car, building = labels[k], dataset.classes.index("car"), dataset.classes.index("building")
            assert np.array_equal(camera.semantic == car, raw == 26) and np.array_equal(camera.semantic == building, np.isin(raw, (11, 34)))
            assert np.array_equal(camera.instance, np.where(things[k] > 0, raw * 1000 + things[k], 0))


def test_kitti360_splits(tmp_path):
    make_kitti360(tmp_path, np.random.default_rng(0))
    first, test = DRIVE.format(0), DRIVE.format(8)
    line = "data_2d_raw/{0}/image_00/data_rect/{1:010d}.png data_2d_semantics/train/{0}/image_00/semantic/{1:010d}.png\n"
    put(tmp_path / "data_2d_semantics/train/2013_05_28_drive_train_frames.txt", line.format(first, 252) + line.format(first, 250) + line.format(first, 900))
    assert Kitti360(tmp_path, split="train").ids == [f"{first}/0000000252", f"{first}/0000000250"]
    assert {name[:26] for name in Kitti360(tmp_path, split="test").ids} == {test} and len(Kitti360(tmp_path, split="trainval")) == 3
    told(lambda: Kitti360(tmp_path, split="val"), "val_frames.txt", "missing")
    put(tmp_path / "data_2d_semantics/train/2013_05_28_drive_val_frames.txt", "not a frame\n")
    told(lambda: Kitti360(tmp_path, split="val"), "line 1")
    with pytest.raises(ValueError, match="no split"):
        Kitti360(tmp_path, split="training")


K360_DAMAGE = {
    "scan missing": (lambda r, d: (r / f"data_3d_raw/{d}/velodyne_points/data/0000000251.bin").unlink(), "0000000251.bin", "missing"),
    "image missing": (lambda r, d: (r / f"data_2d_raw/{d}/image_01/data_rect/0000000251.png").unlink(), "image_01", "missing"),
    "image of another size": (lambda r, d: put(r / f"data_2d_raw/{d}/image_00/data_rect/0000000251.png", np.zeros((20, 60, 3), np.uint8)), "60 x 20", "80 x 30"),
    "labels of another size": (lambda r, d: put(r / f"data_2d_semantics/train/{d}/image_00/semantic/0000000251.png", np.zeros((20, 60), np.uint8)), "semantic", "shape"),
    "unknown label": (lambda r, d: put(r / f"data_2d_semantics/train/{d}/image_00/semantic/0000000251.png", np.full((30, 80), 99, np.uint8)), "semantic", "99"),
    "no calibration": (lambda r, d: (r / "calibration/perspective.txt").unlink(), "perspective.txt", "missing"),
    "no rotation": (lambda r, d: put(r / "calibration/calib_cam_to_velo.txt", text(3 * np.eye(3, 4))), "calib_cam_to_velo", "not a rotation"),
    "camera unknown": (lambda r, d: put(r / "calibration/calib_cam_to_pose.txt", f"image_00: {text(np.eye(3, 4))}\n"), "calib_cam_to_pose", "image_01 is missing"),
    "poses out of order": (lambda r, d: put(r / f"data_poses/{d}/poses.txt", f"5 {text(np.eye(3, 4))}\n4 {text(np.eye(3, 4))}\n"), "poses.txt", "frame 4 is not after"),
    "poses of 12 numbers": (lambda r, d: put(r / f"data_poses/{d}/poses.txt", text(np.eye(3, 4)) + "\n"), "poses.txt", "13 numbers"),
    "no moment": (lambda r, d: put(r / f"data_3d_raw/{d}/velodyne_points/timestamps.txt", "2013-05-28 noon\n"), "timestamps.txt", "no moment"),
}


@pytest.mark.parametrize("fault", K360_DAMAGE)
def test_kitti360_faults_are_told(tmp_path, fault):
    make_kitti360(tmp_path, np.random.default_rng(1), drives=(0,))
    damage, *words = K360_DAMAGE[fault]
    damage(tmp_path, DRIVE.format(0))
    dataset = Kitti360(tmp_path)
    assert len(dataset) == 3
    told(lambda: dataset[1], *words)


def test_kitti360_poses_between_neighbours(tmp_path):
    "A car that stands for long has no poses meanwhile; a gap in the drive has none."
    make_kitti360(tmp_path, np.random.default_rng(2), drives=(0,), frames=(0, 1, 2, 3, 4, 5))
    at = lambda x: f"{text([1, 0, 0, x, 0, 1, 0, 0, 0, 0, 1, 0])}\n"
    put(tmp_path / f"data_poses/{DRIVE.format(0)}/poses.txt", f"1 {at(10)}3 {at(10.5)}5 {at(30)}")
    poses = [frame.ego_to_world for frame in Kitti360(tmp_path)]
    assert poses[0] is None and poses[4] is None  # before the first, and in a gap of 19.5 m
    assert [None if pose is None else pose[0, 3].round(9) for pose in poses] == [None, 10, 10.25, 10.5, None, 30]
    # 1.9 m apart, but who knows for how many of the 3 frames between it stood; 0.2 m apart, it does not matter
    put(tmp_path / f"data_poses/{DRIVE.format(0)}/poses.txt", f"0 {at(0)}4 {at(1.9)}5 {at(3)}")
    assert [frame.ego_to_world is None for frame in Kitti360(tmp_path)] == [False, True, True, True, False, False]
    put(tmp_path / f"data_poses/{DRIVE.format(0)}/poses.txt", f"0 {at(0)}4 {at(0.2)}5 {at(3)}")
    assert [frame.ego_to_world[0, 3].round(9) for frame in Kitti360(tmp_path)] == [0, 0.05, 0.1, 0.15, 0.2, 3]


# ---- RELLIS-3D

STEM = "frame000104-1581624663_149"


def make_rellis(root, rng, drives=("00000", "00003")):
    "Returns {id: (scan, raw, image, pixels, pose)}, intrinsics and camera_to_lidar."
    made, raws = {}, np.array([0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 17, 18, 19, 23, 27, 31, 33, 34])
    K, camera_to_lidar = np.array([[110.0, 0, 39.3], [0, 112, 14.8], [0, 0, 1]]), rigid4(rng, 0.2, AXES.T)
    x, y, z, w = Rotation.from_matrix(camera_to_lidar[:3, :3]).as_quat().tolist()
    place = "os1_cloud_node-pylon_camera_node:\n  q:\n" + "".join(f"    {k}: {v!r}\n" for k, v in dict(w=w, x=x, y=y, z=z).items())
    place += "  t:\n" + "".join(f"    {k}: {v!r}\n" for k, v in zip("xyz", camera_to_lidar[:3, 3].tolist()))
    for drive in drives:
        folder = root / "Rellis-3D" / drive
        scan, raw, pose = scan_of(rng, 900), rng.choice(raws, 900), rigid4(rng, 50)
        scan[rng.random(900) < 0.4] = 0  # no echo
        image, pixels = image_of(rng), rng.choice(raws, (30, 80))
        put(folder / "os1_cloud_node_kitti_bin/000104.bin", scan.tobytes())
        put(folder / "os1_cloud_node_semantickitti_label_id/000104.label", raw.astype("<u4").tobytes())
        put(folder / f"pylon_camera_node/{STEM}.jpg", image)
        put(folder / f"pylon_camera_node_label_id/{STEM}.png", pixels.astype(np.uint8))
        put(folder / "poses.txt", 105 * (text(pose[:3]) + "\n"))
        put(folder / "camera_info.txt", text(K[[0, 1, 0, 1], [0, 1, 2, 2]]) + "\n")
        put(folder / "transforms.yaml", place)
        made[f"{drive}/000104"] = scan, raw, pixels, pose
    put(root / "Rellis-3D/pt_val.lst", "00003/os1_cloud_node_kitti_bin/000104.bin 00003/os1_cloud_node_semantickitti_label_id/000104.label\n")
    return made, K, camera_to_lidar


@some
@given(st.integers(0, 2**32))
def test_rellis_comes_back(tmp_path_factory, seed):
    cv2 = pytest.importorskip("cv2")
    root, rng = tmp_path_factory.mktemp("rellis"), np.random.default_rng(seed)
    made, K, camera_to_lidar = make_rellis(root, rng)
    for dataset, classes in ((Rellis3D(root), RELLIS), (Rellis3D(root / "Rellis-3D", ontology=True), RELLIS_ONTOLOGY)):
        assert dataset.ids == sorted(made)
        for frame in dataset:
            scan, raw, pixels, pose = made[frame.id]
            echo = scan[:, :3].any(1)
            assert np.array_equal(np.column_stack([frame.points, frame.intensity]), scan[echo]) and not echo.all()
            assert np.array_equal(frame.semantic, [classes.raw[k] for k in raw[echo]])
            camera = frame.cameras[0]
            assert np.array_equal(camera.semantic, np.vectorize(classes.raw.get)(pixels)) and camera.timestamp == 1581624663.149
            np.testing.assert_allclose(frame.ego_to_world, pose, atol=1e-12)
            lidar_to_camera = np.linalg.inv(camera_to_lidar)  # as the authors project: inverted, with lens distortion
            straight = (lidar_to_camera[:3, :3] @ frame.points.T.astype(float)).T + lidar_to_camera[:3, 3]
            seen = (straight[:, 2] > 1) & (np.abs(straight[:, :2]).max(1) < 0.4 * straight[:, 2])
            expected, _ = cv2.projectPoints(straight[seen], np.zeros(3), np.zeros(3), K, np.array(DISTORTION))
            np.testing.assert_allclose(frame.project(0)[0][seen], expected[:, 0], atol=1e-6)
            assert seen.sum() > 10
    assert Rellis3D(root, split="val").ids == ["00003/000104"]


RELLIS_DAMAGE = {
    "scan missing": (lambda f: (f / "os1_cloud_node_kitti_bin/000104.bin").unlink(), "000104.bin", "missing"),
    "labels missing": (lambda f: (f / "os1_cloud_node_semantickitti_label_id/000104.label").unlink(), "000104.label", "missing"),
    "image missing": (lambda f: (f / f"pylon_camera_node/{STEM}.jpg").unlink(), "frame000104-", "missing"),
    "image cut short": (lambda f: cut(f / f"pylon_camera_node/{STEM}.jpg", 700), STEM, "cannot be read"),
    "pixels of another size": (lambda f: put(f / f"pylon_camera_node_label_id/{STEM}.png", np.zeros((9, 9), np.uint8)), "label_id", "shape"),
    "no lens": (lambda f: (f / "camera_info.txt").unlink(), "camera_info.txt", "missing"),
    "half a lens": (lambda f: put(f / "camera_info.txt", "2813 2808\n"), "camera_info.txt", "4 numbers"),
    "focal length 0": (lambda f: put(f / "camera_info.txt", "0 2808 960 600\n"), "camera_info.txt", "above 0"),
    "no place": (lambda f: (f / "transforms.yaml").unlink(), "transforms.yaml", "missing"),
    "a rotation of zeros": (lambda f: put(f / "transforms.yaml", "os1_cloud_node-pylon_camera_node: {q: {w: 0, x: 0, y: 0, z: 0}, t: {x: 0, y: 0, z: 0}}"), "transforms.yaml", "no q and t"),
    "poses end": (lambda f: put(f / "poses.txt", text(np.eye(3, 4)) + "\n"), "poses.txt", "frame 104 has none"),
}


@pytest.mark.parametrize("fault", RELLIS_DAMAGE)
def test_rellis_faults_are_told(tmp_path, fault):
    make_rellis(tmp_path, np.random.default_rng(1), ("00000",))
    damage, *words = RELLIS_DAMAGE[fault]
    damage(tmp_path / "Rellis-3D/00000")
    dataset = Rellis3D(tmp_path)
    assert len(dataset) == 1
    told(lambda: dataset[0], *words)
    told(lambda: Rellis3D(tmp_path, split="train"), "pt_train.lst")


# ---- all of them


def make_poss(root, rng):
    make_semantickitti(root, rng, ("03",), 1)
    put(root / "sequences/03/instances.txt", "")
    for name in ("labels", "image_2", "image_3"):
        shutil.rmtree(root / "sequences/03" / name)


@pytest.mark.parametrize("which", FAMILY)
def test_recognised_and_cheap_to_send(tmp_path, which):
    make = {SemanticKitti: make_semantickitti, SemanticPoss: make_poss, Kitti360: make_kitti360, Rellis3D: make_rellis}[which]
    make(tmp_path, np.random.default_rng(0))
    assert [found for found in (*FAMILY, KittiRaw, KittiObject) if found.is_at(tmp_path)] == [which]
    assert not which.is_at(tmp_path / "nothing") and which.__doc__.count("\n") == 0
    with pytest.raises(BadData):
        which(tmp_path / "nothing")
    dataset = which(tmp_path)
    size = len(pickle.dumps(dataset))
    frame = dataset[0].check()
    assert len(pickle.dumps(dataset)) == size < 3000  # poses and calibrations that were read stay here
    again = pickle.loads(pickle.dumps(dataset))[0]
    assert np.array_equal(again.points, frame.points) and dataset[-1].id == dataset.ids[-1]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("which", FAMILY)
def test_frames_are_the_callers(tmp_path, which):
    "Whatever is done to a frame, the next one that is read is as stored, and so are its other sensors."
    make = {SemanticKitti: make_semantickitti, SemanticPoss: make_poss, Kitti360: make_kitti360, Rellis3D: make_rellis}[which]
    make(tmp_path, np.random.default_rng(0))
    dataset = which(tmp_path)
    holders = lambda frame: (frame, *frame.cameras)
    names = ("points", "intensity", "lidar_to_ego", "ego_to_world", "semantic", "instance", "intrinsics", "camera_to_ego", "distortion", "image")
    arrays = lambda frame: [a for holder in holders(frame) for name in names if (a := getattr(holder, name, None)) is not None]
    before = [a.copy() for a in arrays(dataset[0])]
    frame = dataset[0]
    assert frame.ego_to_world is not None
    for k, array in enumerate(arrays(frame)):
        assert not any(np.shares_memory(array, other) for other in arrays(frame)[k + 1 :])
        array += 1
    assert all(np.array_equal(a, b) for a, b in zip(arrays(dataset[0]), before, strict=True))


@pytest.mark.parametrize("which", (SemanticKitti, SemanticPoss, KittiRaw))
def test_classes_of_ones_own(tmp_path, which):
    "Names may have spaces, an id that has no name is told, and a file that names one twice too."
    if which is KittiRaw:
        frame = Made(0, drives=1, frames=1, cameras=1)[0]
        frame.semantic, frame.cameras[0].timestamp, frame.cameras[0].ego_to_world = frame.semantic % 2, frame.timestamp, frame.ego_to_world
        frame.cameras[0].semantic = np.ones(frame.cameras[0].size, np.int32)
        made = Made(0, drives=1, frames=1)
        made.frames, made.classes = [frame], ("unlabelled", "low")
        write_kitti(made, tmp_path, progress=False)
        (names,) = tmp_path.rglob("classes.txt")
        (labels,), (pixels,) = tmp_path.rglob("labels/*.label"), tmp_path.rglob("semantic/*/*.png")
        Image.fromarray(np.full((30, 80), 2, np.uint8)).save(pixels)
        told(lambda: which(tmp_path)[0], pixels.name, "does not have: 2")
        pixels.unlink()
        labels = [labels]
    else:
        (make_semantickitti if which is SemanticKitti else make_poss)(tmp_path, np.random.default_rng(0))
        scans = list(tmp_path.rglob("velodyne/*.bin"))
        labels = [put(path.parents[1] / f"labels/{path.stem}.label", np.ones(path.stat().st_size // 16, "<u4").tobytes()) for path in scans]
        names = tmp_path / "classes.txt"
    put(names, "unlabelled\nlow vegetation\n")
    dataset = which(tmp_path)
    assert dataset.classes == ("unlabelled", "low vegetation") and set(dataset[0].semantic) <= {0, 1}
    labels[0].write_bytes(np.full(labels[0].stat().st_size // 4, 2, "<u4").tobytes())
    told(lambda: [dataset[i] for i in range(len(dataset))], labels[0].name, "does not have: 2")
    put(names, "")  # written from a dataset that has no names
    assert which(tmp_path).classes == () and 2 in {k for frame in which(tmp_path) for k in frame.semantic}
    put(names, "car\ncar\n")
    told(lambda: which(tmp_path), "classes.txt")


def test_kitti360_is_known_by_its_scans(tmp_path):
    "The test drives and the SLAM releases come without calibration: what is missing is named; a drive of it is no drive of KITTI."
    make_kitti360(tmp_path, np.random.default_rng(0), drives=(8,))
    shutil.rmtree(tmp_path / "calibration")
    assert recognise(tmp_path) == "kitti360"
    told(lambda: Kitti360(tmp_path)[0], "calib_cam_to_pose.txt", "missing")
    assert not KittiRaw.is_at(tmp_path / "data_3d_raw" / DRIVE.format(8)) and not KittiRaw.is_at(tmp_path / "data_3d_raw")


@pytest.mark.parametrize("values, words", [
    (np.full((9, 9), 300, np.uint16), "more than 8 bits"), (np.full((9, 9), 70000, np.int32), "more than 8 bits"),
])  # fmt: skip
def test_images_that_would_become_white(tmp_path, values, words):
    path = tmp_path / ("a.png" if values.dtype == np.uint16 else "a.tif")
    Image.fromarray(values).save(path)
    told(lambda: read_png(path, "RGB"), path.name, words)
    assert np.array_equal(read_png(path), values)


def test_intensities_below_nothing(tmp_path):
    path = put(tmp_path / "a.bin", np.array([[1, 2, 3, -0.5], [1, 2, 3, 1]], "<f4").tobytes())
    told(lambda: read_scan(path), "a.bin", "down to -0.5")
    put(path, np.array([[1, 2, 3, -1e-7]], "<f4").tobytes())
    assert read_scan(path)[1].tolist() == [0]
    put(path, np.array([[1, 2, 3, 40_000]], "<f4").tobytes())
    told(lambda: read_scan(path), "brightest=65535")


# ---- real recordings


@pytest.mark.skipif(not (DATA / "semantickitti_crop").is_dir(), reason=f"no real SemanticKITTI scan in {DATA} (non-commercial and not shipped; set XMODAL_DATA)")
def test_real_semantickitti_crop():
    dataset = SemanticKitti(DATA / "semantickitti_crop")
    frame = dataset[0].check()
    assert dataset.ids == ["00/000000"] and frame.points.shape == (50, 3) and frame.cameras == []
    assert {dataset.classes[k] for k in frame.semantic} == {"unlabelled", "building", "vegetation", "trunk", "pole"}


@pytest.mark.skipif(not (DATA / "rellis3d").is_dir(), reason=f"no real RELLIS-3D frame in {DATA} (non-commercial and not shipped; set XMODAL_DATA)")
def test_real_rellis_labels_of_points_fall_on_labels_of_pixels(tmp_path):
    source, drive = DATA / "rellis3d/example", tmp_path / "Rellis-3D/00000"
    for folder, name in (
        ("os1_cloud_node_kitti_bin", "000104.bin"), ("os1_cloud_node_semantickitti_label_id", "000104.label"),
        ("pylon_camera_node", f"{STEM}.jpg"), ("pylon_camera_node_label_id", f"{STEM}.png"), (".", "camera_info.txt"), (".", "transforms.yaml"),
    ):  # fmt: skip
        (drive / folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, drive / folder / name)
    dataset = Rellis3D(tmp_path, ontology=True)
    frame = dataset[0].check()
    assert len(frame.points) == 77_708 and frame.cameras[0].size == (1200, 1920)  # of 131,072 directions
    uv, depth = frame.project(0)
    labels = frame.cameras[0].semantic

    def agreement(name, shift):
        "Share of the points of a class that fall on pixels of the class, with the points moved sideways."
        label = dataset.classes.index(name)
        u, v = np.round(uv[in_image(uv, depth, (1200, 1920)) & (frame.semantic == label)]).astype(int).T
        return (labels[v, np.clip(u + shift, 0, 1919)] == label).mean()

    shifts = (-80, -40, 0, 40, 80)
    assert agreement("tree", 0) > 0.9 and agreement("bush", 0) > 0.85
    for name in ("bush", "person"):
        assert shifts[np.argmax([agreement(name, shift) for shift in shifts])] in ((0,) if name == "bush" else (0, -40)), name  # the person walks


@pytest.mark.skipif(not (DATA / "kitti_raw").is_dir(), reason=f"no real KITTI recording in {DATA} (non-commercial and not shipped; set XMODAL_DATA)")
def test_real_frame_through_semantickitti(tmp_path):
    "A real rig in the other layout: the same points on the same pixels."

    class One:
        name, dataset = "one", KittiRaw(DATA / "kitti_raw")
        classes, ids = dataset.classes, dataset.ids[1:2]

        def __len__(self):
            return 1

        def __getitem__(self, i):
            return self.dataset[1 + i]

    frame = SemanticKitti(write_semantickitti(One(), tmp_path, progress=False))[0].check()
    real = One()[0]
    assert np.array_equal(frame.points, real.points) and np.array_equal(frame.cameras[0].image, real.cameras[0].image)
    np.testing.assert_allclose(frame.lidar_to_camera(0), real.lidar_to_camera(0), atol=1e-9)
    np.testing.assert_allclose(frame.cameras[0].intrinsics, real.cameras[0].intrinsics, atol=1e-9)
