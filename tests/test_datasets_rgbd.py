"""Indoor datasets: files written here in the official layouts, from their descriptions alone, come back as they were; damaged ones are named; real samples line up."""

import io
import os
import pickle
import struct
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from scipy.spatial.transform import Rotation

from xmodal.data.depth import DepthFrames, Sweeps
from xmodal.data.nyu import NyuDepth
from xmodal.data.redwood import Redwood, pairs
from xmodal.data.scannet import SCANNET20, ScanNet, frame_starts, read_sens
from xmodal.data.sunrgbd import SUNRGBD10, SunRgbd
from xmodal.evaluation.depth_frames import eigen_split
from xmodal.frame import BadData
from xmodal.matching import projection_pairs

REAL = Path(os.environ.get("XMODAL_DATA", Path(__file__).parents[2] / "shared/data"))
few = settings(max_examples=15, deadline=None)


def refused(make, *words):
    with pytest.raises(BadData) as fault:
        make()
    assert all(word in str(fault.value) for word in words), fault.value


def same(a, b):
    """Two frames, bit by bit."""
    for x, y in zip((a, *a.cameras), (b, *b.cameras), strict=True):
        for key, value in vars(x).items():
            assert np.array_equal(value, getattr(y, key)) if isinstance(value, np.ndarray) else key in ("cameras", "boxes") or value == getattr(y, key)


def travels(dataset):
    """As to a loader's process: small, and the same there."""
    packed = pickle.dumps(dataset)
    assert len(packed) < 4000 + 400 * len(dataset) + 30 * len(dataset.classes)
    same(dataset[0], pickle.loads(packed)[0])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def grows_by(small, large):
    """Bytes that each further frame adds to what a loader's process is sent."""
    assert len(large) >= len(small) + 500
    return (len(pickle.dumps(large)) - len(pickle.dumps(small))) / (len(large) - len(small))


def lifted(depth, fx, fy, cx, cy):
    """One pixel after the other: x forward, y left, z up."""
    rows, cols = depth.shape
    return np.array([(d, -(c - cx) * d / fx, -(r - cy) * d / fy) for r in range(rows) for c in range(cols) if (d := float(depth[r, c])) > 0])


# NYU Depth v2 ---------------------------------------------------------------------------------------------------------------------------------


def write_nyu(root, frames, scenes, names):
    """The labelled set; frames are dicts of arrays, rows first. MATLAB writes columns first."""
    import h5py

    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        for key in frames[0]:
            file.create_dataset(key, data=np.array([np.transpose(frame[key]) for frame in frames]), chunks=True, compression="gzip")
        for key, strings in (("scenes", scenes), ("names", names)):
            cell = file.create_dataset(key, (1, len(strings)), h5py.ref_dtype)
            for i, string in enumerate(strings):
                cell[0, i] = file.create_dataset(f"#refs#/{key}{i}", data=[[ord(letter)] for letter in string], dtype="u2").ref


def nyu_frames(rng, count, k):
    size = 3 * k, 4 * k
    return [
        {
            "images": rng.integers(0, 256, (*size, 3), np.uint8), "depths": rng.uniform(0.7, 9.9, size).astype("f4"),
            "rawDepths": (rng.uniform(0.7, 9.9, size) * (rng.random(size) > 0.3)).astype("f4"),
            "labels": rng.integers(0, 6, size).astype("u2"), "instances": rng.integers(0, 4, size).astype("u1"),
        }
        for _ in range(count)
    ]  # fmt: skip


@few
@given(seed=st.integers(0, 10**6), count=st.integers(1, 4), k=st.integers(3, 9), raw=st.booleans())
def test_nyu_labelled(seed, count, k, raw):
    rng = np.random.default_rng(seed)
    frames, scenes = nyu_frames(rng, count, k), [f"room_{i // 2:04d}" for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_nyu(root, frames, scenes, ["wall", "floor", "cup", "ünïcode", "bag"])
        dataset = NyuDepth(root, raw=raw)
        assert dataset.ids == [f"{scene}/{i + 1:04d}" for i, scene in enumerate(scenes)] and dataset.classes == ("unlabelled", "wall", "floor", "cup", "ünïcode", "bag")
        travels(dataset)
        for frame, truth in zip(dataset, frames):
            camera, depth = frame.check().cameras[0], truth["rawDepths" if raw else "depths"]
            assert np.array_equal(camera.image, truth["images"]) and np.array_equal(camera.depth, depth) and np.array_equal(camera.semantic, truth["labels"])
            s = k / 160
            expected = lifted(depth, 518.857901 * s, 519.469611 * s, (324.582449 + 0.5) * s - 0.5, (252.736166 + 0.5) * s - 0.5)
            assert np.abs(frame.points - expected).max() < 1e-4 and np.array_equal(frame.semantic, truth["labels"][depth > 0])
            ids = {(label, number): camera.instance[(truth["labels"] == label) & (truth["instances"] == number)] for label in range(6) for number in range(4)}
            assert all((part == 0).all() for (_, number), part in ids.items() if not number)
            things = [set(part) for (_, number), part in ids.items() if number and part.size]
            assert all(len(part) == 1 for part in things) and len(set.union(set(), *things)) == len(things)


def test_nyu_points_are_the_toolbox_s(tmp_path):
    """rgb_plane2rgb_world.m: pixels from 1, the published centre. x right, y down, z forward; each point falls back into its pixel, counted from 0."""
    frames = nyu_frames(np.random.default_rng(0), 1, 160)
    write_nyu(tmp_path, frames, ["a"], ["wall"])
    depth = frames[0]["depths"]
    frame = NyuDepth(tmp_path, truth=False, most=640 * 480)[0]
    xx, yy = np.meshgrid(np.arange(1, 641), np.arange(1, 481))
    right, down = (xx - 3.2558244941119034e02) * depth / 5.1885790117450188e02, (yy - 2.5373616633400465e02) * depth / 5.1946961112127485e02
    theirs = np.column_stack([right.ravel(), down.ravel(), depth.ravel()])
    assert np.abs(frame.points - np.column_stack([theirs[:, 2], -theirs[:, 0], -theirs[:, 1]])).max() < 1e-5
    assert np.abs(frame.project(0)[0] - np.column_stack([xx.ravel() - 1, yy.ravel() - 1])).max() < 1e-3


def test_nyu_splits_and_forty_classes(tmp_path):
    frames = nyu_frames(np.random.default_rng(0), 5, 4)
    write_nyu(tmp_path, frames, list("abcde"), ["wall", "floor", "cup", "box", "bag"])
    refused(lambda: NyuDepth(tmp_path, "train"), "splits.mat", "missing", "download")
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[5], [1]], np.uint16), "testNdxs": np.array([[2]], np.uint16)})
    assert NyuDepth(tmp_path, "train").ids == ["e/0005", "a/0001"] and NyuDepth(tmp_path, "test").ids == ["b/0002"]
    savemat(tmp_path / "classMapping40.mat", {"mapClass": [[1, 2, 3, 3, 0]], "className": np.array([["wall", "floor", "otherprop"]], object)})
    mapped = NyuDepth(tmp_path)
    assert mapped.classes == ("unlabelled", "wall", "floor", "otherprop")
    assert np.array_equal(mapped[1].cameras[0].semantic, np.array([0, 1, 2, 3, 3, 0])[frames[1]["labels"]])
    assert NyuDepth(tmp_path, truth=False)[0].semantic is None
    savemat(tmp_path / "classMapping40.mat", {"mapClass": [[1, 2]], "className": np.array([["wall", "floor"]], object)})
    refused(lambda: NyuDepth(tmp_path), "classMapping40.mat", "5 raw classes")
    savemat(tmp_path / "splits.mat", {"trainNdxs": [[6]], "other": [[1]]})
    refused(lambda: NyuDepth(tmp_path, "train"), "splits.mat", "1 to 5")
    refused(lambda: NyuDepth(tmp_path, "test"), "splits.mat", "lacks testNdxs")
    with pytest.raises(ValueError, match="no split 'val'"):
        NyuDepth(tmp_path, "val")


def test_nyu_faults(tmp_path):
    frames = nyu_frames(np.random.default_rng(0), 2, 4)
    file = tmp_path / "nyu_depth_v2_labeled.mat"
    for change, words in (
        ({"labels": np.full((12, 16), 9, "u2")}, ("frame 1", "label 9", "names has 2")), ({"depths": -frames[0]["depths"]}, ("frame 1", "negative")),
        ({"depths": np.full((12, 16), np.nan, "f4")}, ("frame 1", "not one depth")), ({"depths": np.ones((12, 12), "f4")}, ("depths", "(12, 12)", "(12, 16, 3)")),
    ):  # fmt: skip
        write_nyu(tmp_path, [{**frame, **change} for frame in frames], ["a", "b"], ["wall", "floor"])
        refused(lambda: NyuDepth(tmp_path)[0], "nyu_depth_v2_labeled.mat", *words)
    write_nyu(tmp_path, [{key: frame[key] for key in ("images", "labels")} for frame in frames], ["a", "b"], ["wall"])
    refused(lambda: NyuDepth(tmp_path)[1], "frame 2", "depths")
    file.write_bytes(file.read_bytes()[:3000])
    refused(lambda: NyuDepth(tmp_path), "nyu_depth_v2_labeled.mat", "cannot be read")
    file.write_bytes(b"MATLAB 7.3 MAT-file")
    refused(lambda: NyuDepth(tmp_path), "nyu_depth_v2_labeled.mat", "cannot be read")


def test_nyu_sync(tmp_path):
    rng = np.random.default_rng(1)
    depths = {}
    for split, scene, number in (("train", "cafe_0001a", 0), ("train", "cafe_0001a", 15), ("test", "cafe", 9)):
        (tmp_path / split / scene).mkdir(parents=True, exist_ok=True)
        depths[f"{split}/{scene}/{number:05d}"] = mm = rng.integers(0, 9999, (24, 32)).astype(np.uint16)
        Image.fromarray(mm).save(tmp_path / split / scene / f"sync_depth_{number:05d}.png")
        Image.fromarray(rng.integers(0, 255, (24, 32, 3)).astype(np.uint8)).save(tmp_path / split / scene / f"rgb_{number:05d}.jpg")
    dataset = NyuDepth(tmp_path)
    assert NyuDepth.is_at(tmp_path) and set(dataset.ids) == set(depths) and NyuDepth(tmp_path, "test").ids == ["test/cafe/00009"]
    travels(dataset)
    for id, frame in zip(dataset.ids, dataset):
        assert np.array_equal(frame.check().cameras[0].depth, depths[id].astype("f4") / 1000) and len(frame.points) == (depths[id] > 0).sum()
    (tmp_path / "train/cafe_0001a/rgb_00015.jpg").unlink()
    assert NyuDepth(tmp_path).ids == dataset.ids
    refused(lambda: dataset[dataset.ids.index("train/cafe_0001a/00015")], "rgb_00015.jpg", "missing")
    (tmp_path / "nyudepthv2_train_files_with_gt.txt").write_text("/train/cafe_0001a/rgb_00000.jpg /train/cafe_0001a/sync_depth_00000.png 518.8579\n\n")
    assert NyuDepth(tmp_path, "train").ids == ["train/cafe_0001a/00000"]
    (tmp_path / "test.txt").write_text("test/cafe/rgb_00009.jpg test/cafe/sync_depth_00009.png 518.8579\ntest/bar/rgb_00001.jpg test/bar/sync_depth_00001.png 518.8579\n")
    train, test = eigen_split(NyuDepth(tmp_path), tmp_path / "nyudepthv2_train_files_with_gt.txt", tmp_path / "test.txt")
    assert train.ids == ["train/cafe_0001a/00000"] and test.ids == ["test/cafe/00009"] and test.name == "nyu, 1 of 2 frames of test.txt"
    refused(lambda: eigen_split(NyuDepth(tmp_path / "train"), None, tmp_path / "test.txt"), "test.txt", "none of its 2 frames", "test/cafe/00009")
    (tmp_path / "nyudepthv2_train_files_with_gt.txt").write_text("kitchen.jpg kitchen.png\n")
    refused(lambda: NyuDepth(tmp_path, "train"), "nyudepthv2_train_files_with_gt.txt", "kitchen.jpg")
    refused(lambda: NyuDepth(tmp_path / "train", "test"), "the test split is not told")


# ScanNet --------------------------------------------------------------------------------------------------------------------------------------


def write_sens(path, frames, color_kind=1, depth_kind=1, k=((700, 0, 9), (0, 710, 7), (0, 0, 1)), k_depth=((500, 0, 5), (0, 510, 4), (0, 0, 1)), name="sensor"):
    """Version 4; frames are (image, millimetres, camera_to_world, microseconds of colour, of depth)."""

    def four(matrix):
        whole = np.eye(4)
        whole[: len(matrix), : len(matrix)] = matrix
        return whole.astype("<f4").tobytes()

    def png(image):
        Image.fromarray(image).save(buffer := io.BytesIO(), "PNG")
        return buffer.getvalue()

    (h, w), (dh, dw) = frames[0][0].shape[:2], frames[0][1].shape
    out = struct.pack("<I", 4) + struct.pack("<Q", len(name)) + name.encode() + four(k) + four(np.eye(4)) + four(k_depth) + four(np.eye(4))
    out += struct.pack("<ii", color_kind, depth_kind) + struct.pack("<IIII", w, h, dw, dh) + struct.pack("<f", 1000) + struct.pack("<Q", len(frames))
    parts = [out]
    for image, mm, pose, at, measured in frames:
        color = image.tobytes() if color_kind == 0 else png(image)
        depth = mm.astype("<u2").tobytes()
        depth = zlib.compress(depth) if depth_kind == 1 else depth
        parts.append(four(pose) + struct.pack("<QQQQ", at, measured, len(color), len(depth)) + color + depth)
    out = b"".join(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out + struct.pack("<Q", 0))  # no inertial measurements
    return out


def sens_frames(rng, count):
    frames = []
    for i in range(count):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = Rotation.random(random_state=int(rng.integers(10**6))).as_matrix(), rng.uniform(-5, 5, 3)
        mm = rng.integers(500, 9000, (9, 12)) * (rng.random((9, 12)) > 0.2)
        mm[0, 0] = 2000
        frames.append((rng.integers(0, 256, (15, 20, 3)).astype(np.uint8), mm, pose, int(rng.integers(1, 10**9)), 33_000 * i))
    return frames


@few
@given(seed=st.integers(0, 10**6), count=st.integers(1, 5), color=st.integers(0, 1), depth=st.integers(0, 1), every=st.integers(1, 3), name=st.text(max_size=8).filter(str.isascii))
def test_scannet_sens(seed, count, color, depth, every, name):
    rng = np.random.default_rng(seed)
    frames = sens_frames(rng, count)
    lost = int(rng.integers(count))
    frames[lost] = (*frames[lost][:2], np.full((4, 4), -np.inf), *frames[lost][3:])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_sens(root / "scans/scene0011_01/scene0011_01.sens", frames, color, depth, name=name)
        dataset = ScanNet(root, every=every)
        assert dataset.ids == [f"scene0011_01/{i}" for i in range(0, count, every)] and ScanNet.is_at(root)
        travels(dataset)
        for frame, number in list(zip(dataset, range(0, count, every)))[::-1]:
            image, mm, pose, at, measured = frames[number]
            camera = frame.cameras[0]
            assert np.array_equal(camera.image, image) and np.array_equal(camera.intrinsics, [[700, 0, 9], [0, 710, 7], [0, 0, 1]])
            assert np.abs(frame.points - lifted(mm / 1000, 500, 510, 5, 4)).max() < 1e-5
            assert camera.timestamp == at / 1e6 and (frame.timestamp or 0) == measured / 1e6
            if number == lost:
                assert frame.ego_to_world is None is camera.ego_to_world
            else:  # x forward is the camera's z, y left its -x, z up its -y
                axes = frame.ego_to_world[:3, :3].T
                assert np.allclose(axes, [pose[:3, 2], -pose[:3, 0], -pose[:3, 1]], atol=1e-6) and np.allclose(frame.ego_to_world[:3, 3], pose[:3, 3], atol=1e-6)
                assert np.allclose(frame.lidar_to_camera(0)[:3, :3], [[0, -1, 0], [0, 0, -1], [1, 0, 0]], atol=1e-6)


def test_scannet_sens_cut_anywhere(tmp_path):
    whole = write_sens(tmp_path / "scene0000_00/scene0000_00.sens", sens_frames(np.random.default_rng(0), 3))
    for keep in np.random.default_rng(1).integers(0, len(whole) - 1, 40):
        path = tmp_path / f"cut{keep}/scene0000_00/scene0000_00.sens"
        path.parent.mkdir(parents=True)
        path.write_bytes(whole[:keep])
        refused(lambda: ScanNet(path.parents[1])[-1], "scene0000_00.sens")


def test_scannet_sens_faults(tmp_path):
    path = tmp_path / "scene0000_00/scene0000_00.sens"
    frames = sens_frames(np.random.default_rng(0), 2)
    read = lambda: ScanNet(tmp_path)[1]
    whole = write_sens(path, frames)
    path.write_bytes(b"\x05" + whole[1:])
    refused(read, "version 4")
    path.write_bytes(whole[:1000] + bytes(200) + whole[1200:])
    refused(lambda: [ScanNet(tmp_path)[i] for i in range(2)], "scene0000_00.sens")
    write_sens(path, frames, depth_kind=2)
    refused(read, "frame 1", "depth compression 2")
    write_sens(path, frames, k=((0, 0, 9), (0, 710, 7), (0, 0, 1)))
    refused(read, "focal lengths")
    write_sens(path, [frames[0], (frames[1][0], np.zeros((9, 12)), *frames[1][2:])])
    refused(read, "frame 1", "not one depth")
    write_sens(path, [frames[0], (*frames[1][:2], 2 * np.eye(4), 0, 0)])
    refused(read, "no rotation")
    path.write_bytes(struct.pack("<IQ", 4, 2**60))
    refused(read, "no .sens file")


def test_scannet_sens_is_read_lightly(tmp_path):
    """2,000 frames: the way through the file is walked once, and the dataset that travels does not hold it."""
    frames = sens_frames(np.random.default_rng(0), 5) * 400
    path = tmp_path / "scans/scene0000_00/scene0000_00.sens"
    write_sens(path, frames, color_kind=0)
    dataset = ScanNet(tmp_path)
    assert len(dataset) == 2000 and np.array_equal(dataset[1999].cameras[0].image, frames[1999][0])
    starts = frame_starts(read_sens(path), path.stat().st_size)
    assert starts.nbytes == 8 * 2000 and starts is frame_starts(read_sens(path), path.stat().st_size)
    write_sens(tmp_path / "few/scene0000_00/scene0000_00.sens", frames[:20], color_kind=0)
    assert grows_by(ScanNet(tmp_path / "few"), dataset) < 1


def test_scannet_exported_frames_travel_lightly(tmp_path):
    """Scenes of 100 and of 700 names: neither the dataset nor its ids hold a string a frame."""
    for count in (100, 700):
        for scene in ("scene0000_00", "scene0000_01"):
            for part, ending in (("color", "jpg"), ("depth", "png")):
                (tmp_path / f"{count}/scans/{scene}/{part}").mkdir(parents=True)
                for i in range(0, count, 1 if part == "color" else 3):
                    (tmp_path / f"{count}/scans/{scene}/{part}/{i}.{ending}").touch()
    small, large = ScanNet(tmp_path / "100"), ScanNet(tmp_path / "700")
    expected = [f"scene0000_0{k}/{i}" for k in range(2) for i in range(700)]
    assert len(large) == 1400 and large.ids == expected and [large.ids[i] for i in (0, 699, 700, -1)] == [expected[i] for i in (0, 699, 700, -1)]
    assert grows_by(small, large) < 10 and pickle.loads(pickle.dumps(large)).ids == expected
    assert ScanNet(tmp_path / "700", every=7).ids == [f"scene0000_0{k}/{i}" for k in range(2) for i in range(0, 700, 7)]
    (tmp_path / "700/scans/scene0000_01/color/700.jpg").touch()
    refused(lambda: pickle.loads(pickle.dumps(large))[900], "scene0000_01", "701 frames now", "open the dataset again")


def test_scannet_exported(tmp_path):
    """As SensReader exports it, and as the 25,000 chosen frames lie; intrinsics are those of 1296 x 968 and 640 x 480."""
    rng, kinds = np.random.default_rng(0), ("color", "depth")
    matrices = {"color": [[1170.2, 0, 647.7, 0], [0, 1170.2, 483.8, 0]], "depth": [[577.6, 0, 318.9, 0], [0, 578.7, 242.7, 0]]}
    scenes = tmp_path / "scans/scene0001_00", tmp_path / "scans/scene0002_00"
    mm = rng.integers(500, 9000, (48, 64)).astype(np.uint16)
    labels = rng.integers(0, 41, (121, 162)).astype(np.uint8)
    for scene, number, place in ((scenes[0], "10", "intrinsic/intrinsic_{}.txt"), (scenes[1], "000020", "intrinsics_{}.txt")):
        for part in ("color", "depth", "pose", "label", "intrinsic"):
            (scene / part).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (121, 162, 3)).astype(np.uint8)).save(scene / f"color/{number}.jpg")
        Image.fromarray(mm).save(scene / f"depth/{number}.png")
        Image.fromarray(labels).save(scene / f"label/{number}.png")
        np.savetxt(scene / f"pose/{number}.txt", np.eye(4), fmt="%f")
        for kind in kinds:
            np.savetxt(scene / place.format(kind), [*matrices[kind], [0, 0, 1, 0], [0, 0, 0, 1]], fmt="%f")
    dataset = ScanNet(tmp_path)
    assert dataset.ids == ["scene0001_00/10", "scene0002_00/000020"] and ScanNet.is_at(tmp_path)
    travels(dataset)
    names = dict(enumerate(SCANNET20.names))
    for frame in dataset:
        assert np.abs(frame.check().points - lifted(mm / 1000, 57.76, 57.87, 319.4 / 10 - 0.5, 243.2 / 10 - 0.5)).max() < 1e-4
        semantic = frame.cameras[0].semantic
        assert {int(k): names[int(v)] for k, v in zip(labels.ravel(), semantic.ravel()) if v} == {
            1: "wall", 2: "floor", 3: "cabinet", 4: "bed", 5: "chair", 6: "sofa", 7: "table", 8: "door", 9: "window", 10: "bookshelf", 11: "picture", 12: "counter",
            14: "desk", 16: "curtain", 24: "refrigerator", 28: "shower curtain", 33: "toilet", 34: "sink", 36: "bathtub", 39: "otherfurniture",
        }  # fmt: skip
        assert frame.ego_to_world is not None and frame.timestamp is None
    for name, content, words in (
        ("pose/10.txt", "1 2 3", ("3 numbers", "no matrix of (4, 4)")), ("color/10.jpg", "x", ("cannot be read",)), ("depth/10.png", "x", ("cannot be read",)),
        ("intrinsic/intrinsic_depth.txt", "a b", ("no matrix",)), ("label/10.png", "x", ("cannot be read",)),
    ):  # fmt: skip
        kept = (scenes[0] / name).read_bytes()
        (scenes[0] / name).write_text(content)
        refused(lambda: dataset[0], name, *words)
        (scenes[0] / name).unlink()
        refused(lambda: dataset[0], name)
        (scenes[0] / name).write_bytes(kept)
    same(dataset[0], ScanNet(tmp_path)[0])
    Image.fromarray(np.full((121, 162), 41, np.uint8)).save(scenes[0] / "label/10.png")
    refused(lambda: dataset[0], "label/10.png", "41")
    Image.fromarray(labels[:50]).save(scenes[0] / "label/10.png")
    refused(lambda: dataset[0], "label/10.png", "(50, 162)")
    assert ScanNet(tmp_path, truth=False)[0].semantic is None
    (tmp_path / "scannetv2_val.txt").write_text("scene0002_00\nscene0003_00\n")
    assert ScanNet(tmp_path, "val").ids == ["scene0002_00/000020"]
    refused(lambda: ScanNet(tmp_path, "test"), "scannetv2_test.txt", "download")


# SUN RGB-D ------------------------------------------------------------------------------------------------------------------------------------


def write_sun(frame, image, mm, k, tilt, part="depth_bfx"):
    """A frame's folder; the toolbox reads depth as bitor(bitshift(d, -3), bitshift(d, 13))."""
    for name in ("image", part, "extrinsics"):
        (frame / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(frame / "image/0000103.jpg", quality=100)
    Image.fromarray(np.array([[(int(d) * 8) % 65536 + int(d) // 8192 for d in row] for row in mm], np.uint16)).save(frame / f"{part}/0000103.png")
    (frame / "intrinsics.txt").write_text(" ".join(map(str, np.ravel(k))) + " ")
    (frame / "extrinsics/2014.txt").write_text("\n".join(" ".join(f"{x:.9f}" for x in [*row, 0]) for row in tilt))


def toolbox_points(mm, k, tilt):
    """read3dPoints.m and Rtilt as readframeSUNRGBD.m makes it: x right, y forward, z up, pixels from 1; what is farther than 8 m is set to 8 m."""
    swap = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    r_tilt = swap @ tilt @ swap.T
    depth = np.minimum(mm / 1000, 8)
    points = [((c + 1 - k[0][2]) * d / k[0][0], d, -(r + 1 - k[1][2]) * d / k[1][1]) for r, row in enumerate(depth) for c, d in enumerate(row) if d > 0]
    return np.array(points) @ r_tilt.T


def small_tilt(rng):
    return Rotation.from_euler("xz", rng.uniform(-0.5, 0.5, 2)).as_matrix()


@few
@given(seed=st.integers(0, 10**6), part=st.sampled_from(["depth", "depth_bfx"]), clamp=st.booleans())
def test_sunrgbd_points_are_the_toolbox_s(seed, part, clamp):
    rng = np.random.default_rng(seed)
    tilt, k = small_tilt(rng), [[rng.uniform(10, 20), 0, 6.5], [0, rng.uniform(10, 20), 5.2], [0, 0, 1]]
    image, mm = rng.integers(0, 255, (9, 12, 3)).astype(np.uint8), rng.integers(0, 65536, (9, 12)) // rng.integers(1, 20, (9, 12))
    with tempfile.TemporaryDirectory() as folder:
        write_sun(Path(folder) / "SUNRGBD/realsense/lg/2014_10", image, mm, k, tilt, part)
        dataset = SunRgbd(folder, clamp=clamp)
        if not clamp:  # no wall at 8 m, where nothing was measured
            mm = mm * (mm <= 8000)
        assert dataset.ids == ["realsense/lg/2014_10"] and SunRgbd.is_at(Path(folder))
        travels(dataset)
        frame = dataset[0].check()
        theirs = toolbox_points(mm, k, tilt)
        assert np.abs(frame.points - np.column_stack([theirs[:, 1], -theirs[:, 0], theirs[:, 2]])).max() < 1e-4
        assert np.array_equal(frame.cameras[0].depth, np.minimum(mm.astype("f4") / 1000, 8)) and frame.boxes is None
        row, col = mm.nonzero()
        assert np.abs(frame.project(0)[0] - np.column_stack([col, row])).max() < 1e-3


def test_sunrgbd_boxes_and_splits(tmp_path, capsys):
    rng = np.random.default_rng(0)
    ids = ["kv1/NYUdata/NYU0001", "kv2/kinect2data/000002-resize", "xtion/sun3ddata/brown/b_1/0001"]
    for id in ids:
        write_sun(tmp_path / "SUNRGBD" / id, np.zeros((9, 12, 3), np.uint8), np.full((9, 12), 3000), [[15, 0, 6], [0, 15, 5], [0, 0, 1]], np.eye(3))
    fields, truth, rows = ("basis", "coeffs", "centroid", "classname", "sequenceName", "orientation", "label"), [], []
    for id, count in zip(ids, (3, 1, 0)):
        boxes = np.zeros(count, [(field, object) for field in fields])
        for i in range(count):
            angle, front, half, middle = rng.uniform(-3, 3), int(rng.integers(2)), rng.uniform(0.2, 2, 3), rng.uniform(-3, 3, 3)
            basis = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
            direction = basis[front] * rng.choice([-1, 1])
            boxes[i] = basis, half * rng.choice([-1, 1], 3), middle, ("chair", "lamp", "night_stand")[i], id, direction, 1
            if i != 1:
                truth.append((id, basis, half, middle, direction, boxes[i]["classname"]))
        rows.append((f"/n/fs/sun3d/data/SUNRGBD/{id}/depth_bfx/0000103.png", boxes))
    savemat(tmp_path / "SUNRGBDMeta3DBB_v2.mat", {"SUNRGBDMeta": np.array(rows, [("depthpath", object), ("groundtruth3DBB", object)])[None]})
    dataset = SunRgbd(tmp_path)
    travels(dataset)
    assert [len(frame.boxes) for frame in dataset] == [2, 1, 0]
    for id, basis, half, middle, direction, name in truth:
        boxes = dataset[ids.index(id)].boxes
        k = int(np.abs(boxes.center - [middle[1], -middle[0], middle[2]]).sum(1).argmin())
        assert SUNRGBD10[boxes.label[k]] == name and np.allclose([np.cos(boxes.yaw[k]), np.sin(boxes.yaw[k])], [direction[1], -direction[0]])
        theirs = middle + rng.uniform(-3, 3, (2000, 3))
        inside = (np.abs((theirs - middle) @ basis.T) <= half).all(1)
        only = replace(boxes, center=boxes.center[[k]], size=boxes.size[[k]], yaw=boxes.yaw[[k]])
        assert inside.any() and np.array_equal(only.contains(np.column_stack([theirs[:, 1], -theirs[:, 0], theirs[:, 2]])) == 0, inside)
    assert SunRgbd(tmp_path, truth=False)[0].boxes is None
    capsys.readouterr()
    for name in ("kv1/NYUdata/NYU0002", "kv1/NYUdata/NYU0003"):
        write_sun(tmp_path / "SUNRGBD" / name, np.zeros((9, 12, 3), np.uint8), np.full((9, 12), 3000), [[15, 0, 6], [0, 15, 5], [0, 0, 1]], np.eye(3))
    assert [len(frame.boxes) for frame in SunRgbd(tmp_path)] == [2, 0, 0, 1, 0] and "2 of 5 frames are not in it" in capsys.readouterr().out
    deep = tmp_path / "SUNRGBD/kv1"  # the table beside it knows kv1/NYUdata/NYU0001, not NYUdata/NYU0001
    (tmp_path / "SUNRGBD/SUNRGBDMeta3DBB_v2.mat").write_bytes((tmp_path / "SUNRGBDMeta3DBB_v2.mat").read_bytes())
    refused(lambda: SunRgbd(deep), "SUNRGBDMeta3DBB_v2.mat", "none of the 3 frames", "NYUdata/NYU0001", "root")
    assert SunRgbd(deep, truth=False)[0].boxes is None
    lists = tmp_path / "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"
    refused(lambda: SunRgbd(tmp_path, "train"), "allsplit.mat", "download")
    lists.parent.mkdir(parents=True)
    there = "/n/fs/sun3d/data/SUNRGBD/"
    savemat(lists, {"alltrain": np.array([[there + ids[0], there + "kv1/gone"]], object), "alltest": np.array([[f"{there}{id}/" for id in ids[1:]]], object)})
    assert SunRgbd(tmp_path, "train").ids == ids[:1] and SunRgbd(tmp_path / "SUNRGBD", "test").ids == ids[1:]
    assert [len(frame.boxes) for frame in SunRgbd(tmp_path, "test")] == [1, 0]


def test_sunrgbd_faults(tmp_path):
    frame = tmp_path / "kv1/NYUdata/NYU0001"
    write_sun(frame, np.zeros((9, 12, 3), np.uint8), np.full((9, 12), 3000), [[15, 0, 6], [0, 15, 5], [0, 0, 1]], np.eye(3))
    dataset = SunRgbd(tmp_path)
    dataset[0].check()
    for name, content, words in (
        ("intrinsics.txt", b"1 2", ("2 numbers",)), ("intrinsics.txt", b"nan 0 6 0 15 5 0 0 1", ("NaN",)), ("intrinsics.txt", b"-15 0 6 0 15 5 0 0 1", ("focal",)),
        ("extrinsics/2014.txt", b"1 0 0 0 0 1 0 0 0 0 -1 0", ("not a rotation",)), ("image/0000103.jpg", b"\xff\xd8", ("cannot be read",)),
        ("depth_bfx/0000103.png", b"\x89PNG", ("cannot be read",)),
    ):  # fmt: skip
        kept = (frame / name).read_bytes()
        (frame / name).write_bytes(content)
        refused(lambda: dataset[0], name, *words)
        (frame / name).unlink()
        refused(lambda: dataset[0], "NYU0001")
        (frame / name).write_bytes(kept)
    Image.fromarray(np.ones((9, 12), np.uint8)).save(frame / "depth_bfx/0000103.png")
    refused(lambda: dataset[0], "0000103.png", "16 bits")
    Image.fromarray(np.full((9, 9), 8000, np.uint16)).save(frame / "depth_bfx/0000103.png")
    refused(lambda: dataset[0], "(9, 9)", "(9, 12)")
    Image.fromarray(np.zeros((9, 12), np.uint16)).save(frame / "depth_bfx/0000103.png")
    refused(lambda: dataset[0], "not one depth")
    savemat(tmp_path / "SUNRGBDMeta3DBB_v2.mat", {"SUNRGBDMeta": [[1, 2]]})
    refused(lambda: SunRgbd(tmp_path), "SUNRGBDMeta3DBB_v2.mat", "no boxes")


# Redwood --------------------------------------------------------------------------------------------------------------------------------------


@few
@given(seed=st.integers(0, 10**6), count=st.integers(1, 30))
def test_redwood_pairs_by_time(seed, count):
    """Frames dropped and delayed at random: as if each depth map were held against every image."""
    rng = np.random.default_rng(seed)
    at = {kind: np.sort(rng.choice(40, count, replace=False)) * 33_333 + rng.integers(0, 16_000) + rng.integers(0, 600, count) for kind in ("depth", "rgb")}
    with tempfile.TemporaryDirectory() as folder:
        for kind, ending in (("depth", "png"), ("rgb", "jpg")):
            (Path(folder) / kind).mkdir()
            for i, moment in enumerate(at[kind], 1):
                (Path(folder) / f"{kind}/{i:07d}-{moment:012d}.{ending}").touch()
        found = {depth[:-4]: color and int(color[8:-4]) for depth, color in pairs(Path(folder)) if depth}
        for i, moment in enumerate(at["depth"], 1):
            gaps = np.abs(at["rgb"] - moment)
            assert found[f"{i:07d}-{moment:012d}"] == (at["rgb"][gaps.argmin()] if gaps.min() <= 33_333 / 2 else None)
        seen = {color for _, color in pairs(Path(folder)) if color}
        assert len(seen) == count and Redwood(folder).ids == [f"{Path(folder).name}/{(depth or color)[:-4]}" for depth, color in pairs(Path(folder))]


def test_redwood_frames_travel_lightly(tmp_path):
    """Scans of 100 and of 700 frames, the last image lost: counted when opened, paired again where they are asked for."""
    for count in (100, 700):
        for scan in ("00033", "00034"):
            for part, ending, late in (("depth", "png", 0), ("rgb", "jpg", 512)):
                (tmp_path / f"{count}/{scan}/{part}").mkdir(parents=True)
                for i in range(count - (part == "rgb")):
                    (tmp_path / f"{count}/{scan}/{part}/{i + 1:07d}-{33_369 * i + late:012d}.{ending}").touch()
    small, large = Redwood(tmp_path / "100"), Redwood(tmp_path / "700")
    expected = [f"{scan}/{i + 1:07d}-{33_369 * i:012d}" for scan in ("00033", "00034") for i in range(700)]
    assert len(large) == 1400 and large.ids == expected and large.ids[-1] == expected[-1] and large.ids[699:702] == expected[699:702]
    assert grows_by(small, large) < 1
    there = pickle.loads(pickle.dumps(large))
    assert there.ids == expected and Redwood(tmp_path / "700", every=15).ids == [id for k in (0, 700) for id in expected[k : k + 700 : 15]]
    refused(lambda: there[1399], "00034", f"{expected[-1][6:]}.png", "no colour image")
    (tmp_path / "700/00033/depth" / f"{expected[9][6:]}.png").unlink()
    (tmp_path / "700/00033/rgb" / f"{10:07d}-{33_369 * 9 + 512:012d}.jpg").unlink()
    refused(lambda: pickle.loads(pickle.dumps(large))[3], "00033", "699 frames now, and had 700")


def test_redwood(tmp_path):
    rng = np.random.default_rng(0)
    truth = []
    for i in range(6):
        for part in ("rgb", "depth"):
            (tmp_path / "rgbd/00033" / part).mkdir(parents=True, exist_ok=True)
        truth.append(rng.integers(0, 5000, (48, 64)).astype(np.uint16))
        Image.fromarray(truth[i]).save(tmp_path / f"rgbd/00033/depth/{i + 1:07d}-{33_369 * i:012d}.png")
        Image.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(tmp_path / f"rgbd/00033/rgb/{i + 1:07d}-{33_369 * i + 512:012d}.jpg")
    dataset = Redwood(tmp_path)
    assert Redwood.is_at(tmp_path) and len(dataset) == 6 and Redwood(tmp_path, every=5).ids == dataset.ids[::5]
    travels(dataset)
    for i, frame in enumerate(dataset):
        assert np.abs(frame.check().points - lifted(truth[i] / 1000, 52.5, 52.5, 31.5, 23.5)).max() < 1e-4
        assert frame.timestamp == 33_369 * i / 1e6 and frame.cameras[0].timestamp == (33_369 * i + 512) / 1e6
    (tmp_path / "rgbd/00033/rgb/0000003-000000067250.jpg").unlink()
    assert Redwood(tmp_path).ids == dataset.ids
    refused(lambda: Redwood(tmp_path)[2], "0000003-000000066738.png", "no colour image")
    (tmp_path / "rgbd/00033/depth/0000005-000000133476.png").write_bytes(b"\x89PNG")
    refused(lambda: dataset[4], "0000005-000000133476.png", "cannot be read")
    Image.fromarray(truth[0][:40]).save(tmp_path / "rgbd/00033/depth/0000001-000000000000.png")
    refused(lambda: dataset[0], "(40, 64)", "(48, 64)")


# all of them, methods, and real samples --------------------------------------------------------------------------------------------------------------------


def wall_frames(root):
    """A wall 0.8 m away, as each dataset stores it."""
    image, mm = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8), np.full((48, 64), 800, np.uint16)
    for part in ("depth", "scan/depth", "scan/rgb", "nyu"):
        (root / part).mkdir(parents=True)
    Image.fromarray(mm).save(root / "depth/0.png")
    Image.fromarray(image).save(root / "depth/0.jpg")
    yield DepthFrames(root / "depth", colour=[root / "depth/0.jpg"])
    write_nyu(root / "nyu", [{"images": image, "depths": mm / np.float32(1000)}], ["a"], ["wall"])
    yield NyuDepth(root / "nyu", truth=False)
    k = (60, 0, 31), (0, 60, 23), (0, 0, 1)
    write_sens(root / "scans/scene0000_00/scene0000_00.sens", [(image, mm, np.eye(4), 0, 0)], k=k, k_depth=k)
    yield ScanNet(root)
    write_sun(root / "SUNRGBD/kv1/a", image, mm, k, np.eye(3))
    yield SunRgbd(root)
    Image.fromarray(mm).save(root / "scan/depth/0000001-000000000000.png")
    Image.fromarray(image).save(root / "scan/rgb/0000001-000000000000.jpg")
    yield Redwood(root / "scan")


def test_a_wall_nearer_than_a_metre_gets_pairs(tmp_path):
    """No vehicle hides it, as in front of a car's cameras: its points pair with their pixels, all but those on the edge."""
    names = []
    for dataset in wall_frames(tmp_path):
        frame = dataset[0].check()
        found = projection_pairs(frame, occlusion=False)
        uv, depth = frame.project(0)
        assert np.allclose(depth, 0.8, atol=1e-5) and len(frame.points) == 48 * 64 and len(found.point) >= 46 * 62, dataset.name
        assert len(projection_pairs(frame).point) > 0.9 * 46 * 62 and np.allclose(found.uv, uv[found.point], atol=1e-3)
        names.append(dataset.name)
    assert names == ["depth", "nyu", "scannet", "sunrgbd", "redwood"]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Two frames of the built-in room as NYU's labelled set."""
    from xmodal.data.nyu import KINECT
    from xmodal.data.room import look, stand

    root = tmp_path_factory.mktemp("room")
    views = [look(stand(0.3, y, yaw=a, pitch=0.25), KINECT) for y, a in ((2.2, -0.1), (3.0, -0.4))]
    write_nyu(root, [{"images": view.image, "depths": view.depth} for view in views], ["a", "b"], ["wall"])
    return NyuDepth(root, truth=False)


def test_depthcontrast_and_simipu_have_a_finite_loss_and_gradients_on_depth_frames(room):
    import torch

    from xmodal.cloud_views import IndoorAugmentation
    from xmodal.methods.depthcontrast import DepthContrastRecipe
    from xmodal.methods.simipu import SimIPURecipe
    from xmodal.pretrain import build

    recipes = {
        "depthcontrast": replace(DepthContrastRecipe.small(), augmentation=IndoorAugmentation()),
        "simipu": replace(SimIPURecipe.small(), xyz=True, corners=((0, -4, -3), (6, 4, 3)), sample=512, kept=(256, 128, 64), image_size=((96, 128), (120, 160))),
    }
    for name, recipe in recipes.items():
        method = build(name, recipe, 0)
        batch = method.collate([method.make_view(frame, np.random.default_rng(i)) for i, frame in enumerate(room)])
        loss, values = method.loss(batch, torch.Generator().manual_seed(0))
        loss.backward()
        assert torch.isfinite(loss) and all(np.isfinite(float(value)) for value in values.values())
        assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in method.parameters())


class Plain(pickle.Unpickler):
    """Numbers, strings, lists, dictionaries and NumPy scalars; nothing else is made."""

    def find_class(self, module, name):
        core = np.core if int(np.__version__[0]) < 2 else np._core
        allowed = {("numpy.core.multiarray", "scalar"): core.multiarray.scalar, ("numpy", "dtype"): np.dtype}
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode("latin1")
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return allowed[module, name]


@pytest.mark.skipif(not (REAL / "sunrgbd").is_dir(), reason=f"no real RGB-D frame in {REAL} (not shipped; set XMODAL_DATA)")
def test_real_sunrgbd_points_meet_their_pixels(tmp_path):
    """Published points carry the colours of their pixels. Written into the official layout they come out of our reader where they were, on pixels of just these colours."""
    from scipy.linalg import rq

    with (REAL / "sunrgbd/sunrgbd_000017_infos.pkl").open("rb") as file:
        camera = Plain(file).load()["data_list"][0]["images"]["CAM0"]
    published = np.fromfile(REAL / "sunrgbd/000017.bin", "<f4").reshape(-1, 6)
    image = np.array(Image.open(REAL / "sunrgbd/000017.jpg").convert("RGB"))
    k, to_camera = rq(np.array(camera["depth2img"]))
    signs = np.sign(np.diag(k))
    k, to_camera = k * signs, signs[:, None] * to_camera
    in_camera = published[:, :3].astype(float) @ to_camera.T
    uv = in_camera[:, :2] / in_camera[:, 2:] * np.diag(k)[:2] + k[:2, 2]
    col, row = np.rint(uv).astype(int).T - 1
    mm = np.zeros(image.shape[:2], np.uint16)
    mm[row, col] = np.rint(in_camera[:, 2] * 1000)
    level = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]) @ to_camera.T  # the annotators' axes as the camera's, held level
    write_sun(tmp_path / "SUNRGBD/kv2/kinect2data/000017", image, mm, k, level)
    (tmp_path / "SUNRGBD/kv2/kinect2data/000017/image/0000103.jpg").write_bytes((REAL / "sunrgbd/000017.jpg").read_bytes())

    frame = SunRgbd(tmp_path)[0].check()
    order = np.unique(np.column_stack([row, col]), axis=0, return_index=True)[1]
    theirs = published[order]
    assert len(frame.points) == len(order) and np.linalg.norm(frame.points - theirs[:, [1, 0, 2]] * [1, -1, 1], axis=1).max() < 5e-3
    agreement = {}
    for shift in (0, 1, 3, 10, 30):
        u, v = np.rint(frame.project(0)[0]).astype(int).T + np.array([[shift], [0]])
        inside = (u >= 0) & (u < image.shape[1]) & (v >= 0) & (v < image.shape[0])
        agreement[shift] = np.corrcoef(image[v[inside], u[inside]].ravel(), theirs[inside, 3:].ravel())[0, 1]
    assert agreement[0] > 0.9999 and agreement[1] < 0.995 and agreement[3] < 0.97 and agreement[10] < agreement[3] and agreement[30] < 0.85


@pytest.mark.skipif(not (REAL / "scannet").is_dir(), reason=f"no real scene in {REAL} (not shipped; set XMODAL_DATA)")
def test_a_real_room_of_six_columns_is_read_as_a_sweep():
    """The points and colours of a ScanNet scene as one .bin file (the reader of sweeps; ScanNet's own layouts are tested above): metres, the floor at 0, z up."""
    frame = Sweeps([REAL / "scannet/scene0000_00.bin"], columns=6, brightest=255)[0].check()
    assert len(frame.points) == 40_684 and (np.ptp(frame.points, 0) < (10, 10, 4)).all()
    heights = np.histogram(frame.points[:, 2], np.arange(-0.1, 3.2, 0.1))[0]
    assert heights[:2].sum() > 3 * np.median(heights) and abs(frame.points[:, 2].min()) < 0.05
