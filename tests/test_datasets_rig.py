"""Your own sensors: every format of point files, a rig described in a file of one's own, bags of ROS 1 and 2, and two real recordings that nobody wrote a reader for."""

import json
import os
import pickle
import shutil
import struct
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

for package in ("rosbags", "laspy", "plyfile", "pypcd4"):
    pytest.importorskip(package, reason="own sensors need the extra `datasets`: pip install -e '.[datasets]'")

from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from xmodal.data import bag_write, bags
from xmodal.data.bags import Bag
from xmodal.data.datasets import open_dataset
from xmodal.data.point_files import POINT_FILES, read_points
from xmodal.data.rig import Moment, Rig, RigCamera, pose, synchronise
from xmodal.data.street import Street
from xmodal.frame import BadData
from xmodal.projection import compose, inverse
from xmodal.training.batches import Batches

DATA = Path(os.environ.get("XMODAL_DATA", Path(__file__).parents[2] / "shared/data"))
QUICK = settings(max_examples=30, deadline=None)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """What is kept of bags, away from the user's; loader processes see it too."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "xmodal/bags"


# --- point files, written byte by byte as their publications say ---


def write_pcd(path, columns, encoding, height=1):
    """The Point Cloud Library's format, version 0.7; columns: name -> (N,) array."""
    import lzf

    kinds = {"f": "F", "u": "U", "i": "I"}
    count = len(next(iter(columns.values())))
    header = "\n".join(
        [
            "# .PCD v0.7 - Point Cloud Data file format",
            "VERSION 0.7",
            "FIELDS " + " ".join(columns),
            "SIZE " + " ".join(str(c.dtype.itemsize) for c in columns.values()),
            "TYPE " + " ".join(kinds[c.dtype.kind] for c in columns.values()),
            "COUNT " + " ".join("1" for _ in columns),
            f"WIDTH {count // height}",
            f"HEIGHT {height}",
            "VIEWPOINT 0 0 0 1 0 0 0",
            f"POINTS {count}",
            f"DATA {encoding}\n",
        ]
    )
    if encoding == "ascii":
        body = "".join(" ".join(repr(v.item()) for v in row) + "\n" for row in zip(*columns.values())).encode()
    elif encoding == "binary":
        body = b"".join(v.tobytes() for row in zip(*columns.values()) for v in row)
    else:  # each column in one piece, then compressed
        plain = b"".join(c.tobytes() for c in columns.values())
        packed = lzf.compress(plain, 2 * len(plain) + 100)
        body = struct.pack("<II", len(packed), len(plain)) + packed
    path.write_bytes(header.encode() + body)


def write_ply(path, columns, encoding):
    names = {"f4": "float", "f8": "double", "u1": "uchar", "u2": "ushort", "i4": "int"}
    lines = ["ply", f"format {encoding} 1.0", f"element vertex {len(next(iter(columns.values())))}"]
    lines += [f"property {names[c.dtype.str[1:]]} {name}" for name, c in columns.items()]
    order = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}[encoding]
    if order is None:
        body = "".join(" ".join(repr(v.item()) for v in row) + "\n" for row in zip(*columns.values())).encode()
    else:
        layout = order + "".join(c.dtype.char for c in columns.values())
        body = b"".join(struct.pack(layout, *(v.item() for v in row)) for row in zip(*columns.values()))
    path.write_bytes("\n".join([*lines, "end_header\n"]).encode() + body)


def write_las(path, points, intensity):
    """ASPRS LAS 1.2, point format 0: whole numbers times a scale."""
    scale = 0.001
    records = b"".join(
        struct.pack("<iiiHBBbBH", *(round(float(v) / scale) for v in p), int(i), 0, 0, 0, 0, 0) for p, i in zip(points, intensity)
    )
    header = struct.pack("<4sHHIHH8sBB32s32sHHHIIBHI5I", b"LASF", 0, 0, 0, 0, 0, b"", 1, 2, b"", b"", 1, 2026, 227, 227, 0, 0, 20, len(points), len(points), 0, 0, 0, 0)
    low, high = points.min(0), points.max(0)
    header += struct.pack("<12d", scale, scale, scale, 0, 0, 0, high[0], low[0], high[1], low[1], high[2], low[2])
    assert len(header) == 227
    path.write_bytes(header + records)


KINDS = [".bin", ".npy", "named.npy", ".npz", "columns.npz", "ascii.pcd", "binary.pcd", "binary_compressed.pcd"]
KINDS += ["ascii.ply", "binary_little_endian.ply", "binary_big_endian.ply", ".las"]


def write(folder, kind, points, intensity, extra):
    """points (N, 3) float32 metres, intensity (N,) whole numbers; a column of no interest among the named ones where asked for."""
    path = folder / f"scan_{kind}" if not kind.startswith(".") else folder / f"scan{kind}"
    columns = {"x": points[:, 0], "y": points[:, 1], "z": points[:, 2], "intensity": intensity.astype(np.float32)}
    if extra:
        columns = {"t": np.arange(len(points), dtype=np.float64), "z": columns["z"], "x": columns["x"], "ring": np.zeros(len(points), np.uint16)}
        columns |= {"y": points[:, 1].astype(np.float64), "reflectivity": intensity.astype(np.uint16)}
    table = np.column_stack([points, intensity]).astype("<f4")
    if kind == ".bin":
        path.write_bytes(table.tobytes())
    elif kind == ".npy":
        np.save(path, table)
    elif kind == "named.npy":
        stored = np.zeros(len(points), [(name, c.dtype) for name, c in columns.items()])
        for name, c in columns.items():
            stored[name] = c
        np.save(path, stored)
    elif kind == ".npz":
        np.savez(path, data=table.astype(np.float64))
    elif kind == "columns.npz":
        np.savez_compressed(path, **columns)
    elif kind == ".las":
        write_las(path, points, intensity)
    else:
        encoding = path.stem.removeprefix("scan_")
        (write_pcd if kind.endswith("pcd") else write_ply)(path, columns, encoding)
    return path


@QUICK
@given(kind=st.sampled_from(KINDS), count=st.integers(1, 40), seed=st.integers(0, 999), extra=st.booleans())
def test_every_point_format_round_trips(kind, count, seed, extra):
    rng = np.random.default_rng(seed)
    points, intensity = rng.normal(scale=30, size=(count, 3)).astype(np.float32), rng.integers(0, 256, count)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), kind, points, intensity, extra)
        assert path.suffix in POINT_FILES
        found, bright = read_points(path, brightest=255)
        if kind == ".las":
            assert np.abs(found - points).max() <= 0.00051
        else:
            assert np.array_equal(found, points)
        assert np.array_equal(bright, intensity.astype(np.float32) / np.float32(255))


@QUICK
@given(kind=st.sampled_from([kind for kind in KINDS if "ascii" not in kind]), part=st.floats(0, 0.999), seed=st.integers(0, 99))
def test_a_file_cut_anywhere_is_told(kind, part, seed):
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), kind, rng.normal(size=(30, 3)).astype(np.float32), rng.integers(0, 256, 30), seed % 2 == 1)
        content = path.read_bytes()
        kept = int(part * len(content))
        path.write_bytes(content[: kept - (kind == ".bin" and kept % 16 == 0)])  # whole points of a .bin are a shorter scan
        with pytest.raises(BadData) as told:
            read_points(path, brightest=255)
        assert str(path) in str(told.value)


@QUICK
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 999))
def test_a_damaged_file_is_told_or_read_but_never_crashes(kind, seed):
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), kind, rng.normal(size=(30, 3)).astype(np.float32), rng.integers(0, 256, 30), False)
        content = bytearray(path.read_bytes())
        for place in rng.integers(0, min(len(content), 400), 3):  # mostly in the headers
            content[place] = rng.integers(0, 256)
        path.write_bytes(bytes(content))
        try:
            points, _ = read_points(path, brightest=1e30)
            assert points.dtype == np.float32 and points.shape[1] == 3
        except BadData:
            pass


def test_rays_without_a_return_are_dropped_only_where_the_format_has_them(tmp_path):
    points = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    points[[2, 7]], points[5] = np.nan, 0
    columns = dict(zip("xyz", points.T))
    for encoding in ("ascii", "binary", "binary_compressed"):
        write_pcd(tmp_path / "scan.pcd", columns, encoding, height=3)
        found, intensity = read_points(tmp_path / "scan.pcd")
        assert np.array_equal(found, points[[0, 1, 3, 4, 6, 8, 9, 10, 11]]) and intensity is None
    write_pcd(tmp_path / "scan.pcd", columns, "binary")
    with pytest.raises(BadData, match="2 of 12 points are NaN"):
        read_points(tmp_path / "scan.pcd")
    write_pcd(tmp_path / "scan.pcd", {name: np.full(4, np.nan, np.float32) for name in "xyz"}, "binary", height=2)
    with pytest.raises(BadData, match="no point"):
        read_points(tmp_path / "scan.pcd")


def test_map_coordinates_need_an_origin(tmp_path):
    near = np.random.default_rng(0).uniform(-60, 60, (50, 3))
    place = np.array([512_345.25, 1_400_123.75, 310.5])
    write_las(tmp_path / "scan.las", near + place, np.full(50, 40_000))
    points, intensity = read_points(tmp_path / "scan.las", brightest=65535, origin=place)
    assert np.abs(points - near).max() < 0.00052 and abs(intensity[0] - 40_000 / 65535) < 1e-6
    frame = Rig([], [Moment("a/0", tmp_path / "scan.las", origin=place)], brightest=65535)[0].check()
    assert np.array_equal(frame.points, points)
    for wrong in (None, -place):
        with pytest.raises(BadData, match="map coordinates.*origin"):
            read_points(tmp_path / "scan.las", brightest=65535, origin=wrong)


def test_doubtful_intensities_are_told_once(tmp_path):
    points, bright = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32), np.linspace(0, 1, 9).astype(np.float32)
    columns = dict(zip("xyz", points.T))
    write_ply(tmp_path / "cloudcompare.ply", columns | {"scalar_Intensity": bright}, "binary_little_endian")
    assert np.array_equal(read_points(tmp_path / "cloudcompare.ply")[1], bright)
    write_ply(tmp_path / "unnamed.ply", columns | {"echo": bright, "power": bright}, "ascii")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            read_points(tmp_path / "cloudcompare.ply", brightest=255)
            assert read_points(tmp_path / "unnamed.ply")[1] is None
    first, second = (str(warning.message) for warning in told)
    assert "1 or less, full scale is 255" in first and "ignored: echo, power" in second


# --- a rig of one's own ---

MY_RIG = '''
import json
from pathlib import Path
from xmodal.data.rig import Moment, Rig, RigCamera, pose, synchronise

def dataset(root):
    root = Path(root)
    calibration = json.loads((root / "calibration.json").read_text())
    cameras = [RigCamera(name, c["K"], camera_to_lidar=pose(c["xyz"], c["xyzw"]), distortion=c["D"], size=c["size"]) for name, c in calibration.items()]
    scans = sorted((root / "lidar").glob("*.pcd"))
    files = {camera.name: sorted((root / camera.name).glob("*.png")) for camera in cameras}
    times = [float(scan.stem) for scan in scans]
    chosen = {name: synchronise(times, [float(f.stem) for f in found], within=0.04) for name, found in files.items()}
    moments = []
    for n, scan in enumerate(scans):
        rows = {name: found[n] for name, found in chosen.items() if found[n] >= 0}
        images = {name: files[name][row] for name, row in rows.items()}
        moments.append(Moment(f"yard/{scan.stem}", scan, images, timestamp=times[n], image_times={name: float(f.stem) for name, f in images.items()}))
    return Rig(cameras, moments, "yard", brightest=255)
'''


@pytest.fixture(scope="module")
def yard(tmp_path_factory):
    """Four scans, two cameras with clocks of their own, one image lost; and what is true of it."""
    root, rng = tmp_path_factory.mktemp("yard"), np.random.default_rng(3)
    (root / "lidar").mkdir()
    calibration, truth = {}, {"points": [], "images": []}
    for name, yaw in (("front", 0.0), ("side", 1.2)):
        (root / name).mkdir()
        camera_to_lidar = pose([0.3, -0.1, 0.2], [0, 0, np.sin(yaw / 2), np.cos(yaw / 2)]) @ pose([0, 0, 0], [-0.5, 0.5, -0.5, 0.5])
        from scipy.spatial.transform import Rotation

        turn = Rotation.from_matrix(camera_to_lidar[:3, :3]).as_quat().tolist()
        calibration[name] = dict(K=[[40, 0, 31.5], [0, 40, 23.5], [0, 0, 1]], D=[0.01, 0, 0, 0], size=[48, 64], xyz=camera_to_lidar[:3, 3].tolist(), xyzw=turn)
        truth[name] = camera_to_lidar
    (root / "calibration.json").write_text(json.dumps(calibration))
    for n in range(4):
        points = rng.uniform(-20, 20, (400, 3)).astype(np.float32)
        write_pcd(root / f"lidar/{n / 2:.3f}.pcd", dict(zip("xyz", points.T)) | {"intensity": rng.integers(0, 256, 400).astype(np.uint8)}, "binary_compressed")
        images = {}
        for name, late in (("front", 0.01), ("side", -0.03)):
            images[name] = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)
            if (n, name) != (2, "side"):
                Image.fromarray(images[name]).save(root / name / f"{n / 2 + late:.3f}.png")
        truth["points"].append(points)
        truth["images"].append(images)
    (root / "my_rig.py").write_text(MY_RIG)
    return root, truth


def test_a_file_of_thirty_lines_is_a_dataset(yard):
    root, truth = yard
    assert MY_RIG.strip().count("\n") < 30
    dataset = open_dataset(str(root / "my_rig.py"), root)
    assert dataset.ids == [f"yard/{t:.3f}" for t in (0, 0.5, 1, 1.5)] and "my_rig" not in sys.modules
    for n, frame in enumerate(dataset):
        frame.check()
        assert np.array_equal(frame.points, truth["points"][n]) and frame.timestamp == n / 2
        assert [camera.name for camera in frame.cameras] == (["front"] if n == 2 else ["front", "side"])
        for camera in frame.cameras:
            assert np.array_equal(camera.image, truth["images"][n][camera.name]) and np.allclose(camera.camera_to_ego, truth[camera.name])
            assert camera.distortion[0] == 0.01
    with pytest.raises(IndexError):
        dataset[4]


def view_of(frame, rng):  # a worker imports it by name
    return frame.id, frame.points.sum().item(), [int(camera.image.sum()) for camera in frame.cameras]


def test_a_rig_and_a_bag_travel_to_loader_processes(yard, tmp_path):
    write_drive(tmp_path / "bag", "mcap")
    for dataset in (open_dataset(str(yard[0] / "my_rig.py"), yard[0]), Bag(tmp_path / "bag")):
        batches = Batches(dataset, view_of, tuple, batch_size=2, seed=1)
        alone = [batch for batch, _ in batches.loader(range(2))]
        assert alone == [batch for batch, _ in batches.loader(range(2), workers=1)] and len(alone[0]) == 2


def test_faults_of_a_rig_are_named(yard):
    root, _ = yard
    rig = open_dataset(str(root / "my_rig.py"), root)
    (root / "empty.py").write_text("x = 1\n")
    for name, match in (("gone.py", "no such file"), ("empty.py", "no function dataset")):
        with pytest.raises(BadData, match=match):
            open_dataset(str(root / name), root)
    moment = rig.moments[0]
    cameras = list(rig.cameras.values())
    K, place = cameras[0].intrinsics, cameras[0].camera_to_lidar
    (root / "ids.npy").write_bytes(b"\x93NUMPY nothing")
    (root / "short.label").write_bytes(b"1234")
    np.save(root / "float.npy", np.zeros(400))
    np.save(root / "high.npy", np.full(400, 7))
    faults = {
        "neither": (lambda: RigCamera("front", K), "one extrinsic"),
        "both": (lambda: RigCamera("front", K, place, place), "one extrinsic"),
        "mirrored": (lambda: RigCamera("front", K, np.diag([1, 1, -1, 1])), "not a rotation"),
        "rounded": (lambda: RigCamera("front", K, np.round(place, 1) + 0.01), "not a rotation"),
        "flat": (lambda: RigCamera("front", np.zeros((3, 3)), place), "singular"),
        "nothing": (lambda: Rig(cameras, []), "no moment"),
        "twice": (lambda: Rig(cameras, [moment, moment]), "two moments"),
        "unknown": (lambda: Rig(cameras[1:], [moment]), "unknown cameras: front"),
        "scan": (lambda: Rig(cameras, [Moment("a", root / "gone.pcd")])[0], "gone.pcd"),
        "image": (lambda: Rig(cameras, [Moment("a", moment.scan, {"front": root / "gone.png"})], brightest=255)[0], "gone.png"),
        "damaged": (lambda: Rig(cameras, [Moment("a", moment.scan, labels=root / "ids.npy")], brightest=255)[0], "ids.npy"),
        "labels": (lambda: Rig(cameras, [Moment("a", moment.scan, labels=root / "short.label")], brightest=255)[0], "4 bytes for 400 points"),
        "kind": (lambda: Rig(cameras, [Moment("a", moment.scan, labels=root / "float.npy")], brightest=255)[0], "float64"),
        "class": (lambda: Rig(cameras, [Moment("a", moment.scan, labels=root / "high.npy")], brightest=255, classes=("no", "yes"))[0], "2 classes"),
        "bright": (lambda: Rig(cameras, [moment])[0], "brightest=255"),
    }
    for name, (fault, match) in faults.items():
        with pytest.raises(BadData, match=match):
            fault()
            pytest.fail(name)


@QUICK
@given(scans=st.lists(st.integers(0, 50), max_size=8), shots=st.lists(st.integers(0, 50), max_size=8), within=st.integers(0, 20))
def test_synchronise_takes_the_nearest(scans, shots, within):
    for scan, index in zip(scans, synchronise(scans, shots, within)):
        gaps = [abs(shot - scan) for shot in shots]
        assert gaps[index] == min(gaps) <= within if index >= 0 else not gaps or min(gaps) > within


# --- bags, written message by message ---

CLOUD_FIELDS = (("ring", 0, 4, "H"), ("x", 4, 7, "f"), ("y", 8, 8, "d"), ("z", 16, 7, "f"), ("intensity", 21, 2, "B"))
OFFSET = pose([0.5, 0.2, 0.1], [0.5, -0.5, 0.5, -0.5])  # optical frame on the mast


def drive_pose(seconds):
    return pose([4 * seconds, -seconds, 0.2], [0, 0, np.sin(0.1 * seconds), np.cos(0.1 * seconds)])


def drive_parts():
    """What the drive below holds: clouds, mosaics, their times in seconds."""
    rng = np.random.default_rng(5)
    clouds = []
    for _ in range(4):
        table = np.column_stack([rng.uniform(-30, 30, (60, 3)), rng.integers(0, 256, 60)])
        table[rng.choice(60, 6, replace=False), :3] = np.nan
        clouds.append(table)
    images = [rng.integers(0, 256, (16, 24, 3)).astype(np.uint8) for _ in range(4)]
    return clouds, images, [0.0, 0.1, 0.2, 0.3], [0.02, 0.09, 0.21, 0.5]


def pack_cloud(table, big_endian):
    order, rows = "<>"[big_endian], []
    for x, y, z, i in table:
        row = bytearray(24)
        for (_, offset, _, kind), value in zip(CLOUD_FIELDS, (3, x, y, z, int(i))):
            struct.pack_into(order + kind, row, offset, value)
        rows.append(bytes(row))
    half = len(table) // 2 * 24
    plain = b"".join(rows)
    return plain[:half] + b"padded" + plain[half:] + b"padded", half + 6


def write_drive(path, storage, big_endian=False, leave_out=(), lens=("plumb_bob", 5), epoch=1000.0, late=7.0, tf_times=np.arange(-1, 13) / 20, twins=()):
    """A drive of four scans at 10 Hz, four images of which one comes too late (also as `twins` of another name), tf at 20 Hz. The recorder's clock is `late` seconds after the sensors'."""
    store = get_typestore(Stores.ROS1_NOETIC if storage == "ros1" else Stores.ROS2_FOXY)
    if storage == "ros1":  # the only type that the store lacks
        store.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms", "tf2_msgs/msg/TFMessage"))
    of = lambda name, *values: store.types[name.replace("/", "/msg/")](*values)
    stamp = lambda t: of("builtin_interfaces/Time", *divmod(round((epoch + t) * 1e9), 10**9))
    header = lambda t, frame: of("std_msgs/Header", 0, stamp(t), "/" + frame) if storage == "ros1" else of("std_msgs/Header", stamp(t), frame)

    def tf(t, child, parent, matrix):
        from scipy.spatial.transform import Rotation

        turn = of("geometry_msgs/Quaternion", *Rotation.from_matrix(matrix[:3, :3]).as_quat())
        step = of("geometry_msgs/Transform", of("geometry_msgs/Vector3", *matrix[:3, 3]), turn)
        return of("tf2_msgs/TFMessage", [of("geometry_msgs/TransformStamped", header(t, parent), child, step)])

    clouds, images, cloud_times, image_times = drive_parts()
    messages = [(0, "/tf_static", tf(0, "mast", "base", pose([0, 0, 2], [0, 0, 0, 1]))), (0, "/tf_static", tf(0, "scanner", "mast", pose([0, 0, 0.3], [0, 0, 1, 0])))]
    messages += [(0, "/tf_static", tf(0, "optical", "mast", OFFSET))]
    messages += [(t, "/tf", tf(t, "base", "odom", drive_pose(t))) for t in tf_times]
    for t, table in zip(cloud_times, clouds):
        data, row = pack_cloud(table, big_endian)
        fields = [of("sensor_msgs/PointField", name, offset, kind, 1) for name, offset, kind, _ in CLOUD_FIELDS]
        messages.append((t, "/points", of("sensor_msgs/PointCloud2", header(t, "scanner"), 2, 30, fields, big_endian, 24, row, np.frombuffer(data, np.uint8), False)))
    for t, image in zip(image_times, images):
        rows = np.pad(image[..., ::-1].reshape(16, -1), ((0, 0), (0, 5)))
        for topic in ("/cam/image_raw", *twins):
            messages.append((t, topic, of("sensor_msgs/Image", header(t, "optical"), 16, 24, "bgr8", 0, rows.shape[1], rows.ravel())))
        whole, K = of("sensor_msgs/RegionOfInterest", 0, 0, 0, 0, False), np.array([20.0, 0, 11.5, 0, 20, 7.5, 0, 0, 1])
        model, count = lens
        info = (header(t, "optical"), 16, 24, model, np.full(count, 0.01), K, np.eye(3).ravel(), np.insert(K, (3, 6, 9), 0), 0, 0, whole)
        messages.append((t, "/cam/camera_info", of("sensor_msgs/CameraInfo", *info)))
    messages.append((0.05, "/scan_again", messages[-1][2]))
    writer = Writer1(path) if storage == "ros1" else Writer2(path, version=8, storage_plugin=StoragePlugin[storage.upper()])
    serialize = store.serialize_ros1 if storage == "ros1" else store.serialize_cdr
    with writer:
        known = {}
        for t, topic, message in sorted(messages, key=lambda m: m[0]):
            if topic in leave_out:
                continue
            if topic not in known:
                known[topic] = writer.add_connection(topic, message.__msgtype__, typestore=store)
            writer.write(known[topic], round((epoch + late + max(t, 0)) * 1e9), serialize(message, message.__msgtype__))
    return path


@pytest.mark.parametrize("storage", ["mcap", "sqlite3", "ros1"])
@pytest.mark.parametrize("big_endian", [False, True])
def test_a_bag_reads_back(tmp_path, storage, big_endian):
    path = write_drive(tmp_path / ("drive.bag" if storage == "ros1" else "drive"), storage, big_endian)
    clouds, images, cloud_times, image_times = drive_parts()
    bag = Bag(path, world="odom")
    assert bag.images == ("/cam/image_raw",) and bag.ids == ["drive/000000", "drive/000001", "drive/000002"] and bag.left_out == 1
    assert Bag(path, within=0.3).left_out == 0 and Bag(path, images=()).ids[3] == "drive/000003"
    scanner = pose([0, 0, 2], [0, 0, 0, 1]) @ pose([0, 0, 0.3], [0, 0, 1, 0])
    for n in (2, 0, 1):  # in any order
        frame, kept = bag[n], np.isfinite(clouds[n][:, 0])
        assert np.array_equal(frame.points, clouds[n][kept, :3].astype(np.float32))
        assert np.array_equal(frame.intensity, clouds[n][kept, 3].astype(np.float32) / np.float32(255))
        camera = frame.cameras[0]
        assert np.array_equal(camera.image, images[n]) and camera.distortion.tolist() == [0.01] * 5 and camera.intrinsics[0, 2] == 11.5
        assert np.allclose(camera.camera_to_ego, np.linalg.inv(scanner) @ pose([0, 0, 2], [0, 0, 0, 1]) @ OFFSET)
        for part, t in ((frame, cloud_times[n]), (camera, image_times[n])):
            assert abs(part.timestamp - 1000 - t) < 1e-6
            if t in (0.0, 0.1, 0.2):  # where tf has an entry; between them it is interpolated
                assert np.allclose(part.ego_to_world, drive_pose(t) @ scanner, atol=1e-6)
            assert np.abs(part.ego_to_world - drive_pose(t) @ scanner).max() < 1e-3
    with ThreadPoolExecutor(3) as pool:
        for n, frame in enumerate(pool.map(bag.__getitem__, [0, 1, 2] * 4)):
            assert np.array_equal(frame.cameras[0].image, images[n % 3])
    assert Bag.is_at(tmp_path) and (storage == "ros1" or Bag.is_at(path)) and not Bag.is_at(tmp_path / "nowhere")


def test_faults_of_a_bag_are_named(tmp_path):
    def fault(match, **options):
        path = write_drive(tmp_path / f"bag{len(list(tmp_path.iterdir()))}", "mcap", **options.pop("drive", {}))
        with pytest.raises(BadData, match=match):
            Bag(path, **options)

    fault("no calibration", drive=dict(leave_out=("/cam/camera_info",)), images=["/cam/image_raw"])
    fault("tf does not connect", drive=dict(leave_out=("/tf_static",)))
    fault("tf does not connect scanner with odom", drive=dict(leave_out=("/tf",)), world="odom")
    fault("0 topics of point clouds", drive=dict(leave_out=("/points",)))
    fault("equidistant with 4", drive=dict(lens=("equidistant", 4)))
    fault("rational_polynomial with 8", drive=dict(lens=("rational_polynomial", 8)))
    fault("no messages on the topic /velodyne", points="/velodyne")
    fault("nearest is 0.01 s away", within=0.005)
    with pytest.raises(BadData, match="no bag here"):
        Bag(tmp_path / "nowhere")


@pytest.fixture
def passes(monkeypatch):
    """The topics of each reading of a bag."""
    asked, raw = [], bags.Recording.raw

    def spy(self, topics, *span):
        asked.append(sorted(topics))
        return raw(self, topics, *span)

    monkeypatch.setattr(bags.Recording, "raw", spy)
    return asked


ALL = ["/cam/image_raw", "/points", "/tf", "/tf_static"]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3", "ros1"])
def test_a_bag_is_passed_over_once_and_what_was_found_is_kept(tmp_path, storage, passes, cache, monkeypatch):
    path = write_drive(tmp_path / ("drive.bag" if storage == "ros1" else "drive"), storage)

    def surveys():
        passes.clear()
        bag = Bag(path, world="odom")
        return [topics for topics in passes if len(topics) > 1], bag

    found, bag = surveys()
    assert found == [ALL]
    passes.clear()
    first = bag[1]
    assert sorted(passes) == [["/cam/image_raw"], ["/points"]]  # a frame reads its own messages alone
    (kept,) = cache.iterdir()
    found, again = surveys()
    assert not found and np.array_equal(again[1].points, first.points) and np.array_equal(again[1].ego_to_world, first.ego_to_world)
    content = kept.read_bytes()
    for damage in (b"", b"nothing", content[:-30], content[:200] + bytes(60) + content[260:]):
        kept.write_bytes(damage)
        found, again = surveys()
        assert found == [ALL] and kept.read_bytes() == content and np.array_equal(again[1].cameras[0].ego_to_world, first.cameras[0].ego_to_world)
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))  # a file: nothing can be written there
    assert surveys()[0] == [ALL] and surveys()[0] == [ALL]
    monkeypatch.undo()
    copied = pickle.loads(pickle.dumps(bag))
    assert np.array_equal(copied[1].ego_to_world, first.ego_to_world) and len(pickle.dumps(bag)) < 8000


def test_a_bag_that_has_changed_is_read_again(tmp_path, passes):
    path = write_drive(tmp_path / "drive", "mcap")
    assert len(Bag(path, within=0.3)) == 4
    shutil.rmtree(path)
    write_drive(path, "mcap", epoch=2000.0)
    passes.clear()
    assert abs(Bag(path)[0].timestamp - 2000) < 1e-6 and ALL in passes


def test_what_a_bag_has_not_is_counted(tmp_path, capsys):
    path = write_drive(tmp_path / "drive", "mcap", twins=("/side/image",))
    Bag(path, within=0.3)
    assert "frames;" not in capsys.readouterr().out
    Bag(path)
    assert "3 frames; 1 scans have no image within 0.05 s and are left out" in capsys.readouterr().out
    front = Bag(path).rigs[0].cameras["/cam/image_raw"]
    side = RigCamera("/side/image", front.intrinsics, front.lidar_to_camera)
    assert [len(frame.cameras) for frame in Bag(path, images=["/cam/image_raw", "/side/image"], cameras=[side])] == [2, 2, 2]
    gaps = write_drive(tmp_path / "gaps", "mcap", tf_times=[-0.05, 0.0, 0.05, 0.1, 3.1])
    capsys.readouterr()
    bag = Bag(gaps, world="odom")
    assert "1 frames have a part whose place in odom is not known" in capsys.readouterr().out
    assert [frame.ego_to_world is not None for frame in bag] == [True, True, False]  # three seconds are no neighbours
    stamps = bag.recordings[0].index["/points"].stamp
    asked = np.concatenate([stamps, stamps + 50_000_000, stamps - 10**9, stamps + 3 * 10**9])
    one = [bags.chain(bag.rigs[0].tree(int(stamp)), "scanner", "odom") is not None for stamp in asked]
    assert bag.rigs[0].posed(asked).tolist() == one and len(set(one)) == 2


def test_one_topic_a_calibration(tmp_path, capsys):
    twins = tuple(f"/cam/{name}" for name in ("image_rect", "image_color", "image_mono", "image_rect_color"))
    path = write_drive(tmp_path / "drive", "mcap", twins=twins)
    assert Bag(path).images == ("/cam/image_rect_color",)
    told = capsys.readouterr().out
    assert all(f"/cam/image_rect_color, not {topic}" in told for topic in ("/cam/image_rect;", "/cam/image_color;", "/cam/image_raw;", "/cam/image_mono "))
    for number, expected in enumerate(("/cam/image_rect", "/cam/image_color", "/cam/image_raw")):
        left = ("/cam/image_rect_color", "/cam/image_rect", "/cam/image_color")[: number + 1]
        assert Bag(write_drive(tmp_path / f"drive{number}", "mcap", twins=twins, leave_out=left)).images == (expected,)
    bag = Bag(path, images=("/cam/image_mono", "/cam/image_rect"))
    assert [camera.distortion is None for camera in bag[0].cameras] == [False, True]


def test_the_shift_of_a_stereo_pair_counts_once(tmp_path, monkeypatch):
    info, header = bag_write.Messages.info, bag_write.Messages.header

    def shifted(self, seconds, camera):  # as stereo drivers do
        message = info(self, seconds, camera)
        message.p[3] = -0.1 * message.p[0] * (camera.name == "image_03")
        return message

    frames = list(Street(frames=1, size=(48, 160), beams=16, cameras=2))
    monkeypatch.setattr(bag_write.Messages, "info", shifted)
    own = Bag(bag_write.write_bag(frames, tmp_path / "own"))[0]  # each camera has a frame of its own, as a ZED
    for k in range(2):
        place = compose(frames[0].cameras[k].camera_to_ego, inverse(frames[0].lidar_to_ego))
        assert np.allclose(own.cameras[k].camera_to_ego, place)
    monkeypatch.setattr(bag_write.Messages, "header", lambda self, seconds, name: header(self, seconds, name.replace("image_03", "image_02")))
    shared = Bag(bag_write.write_bag(frames, tmp_path / "shared"))[0]  # both are told in the frame of the first
    first, second = (camera.camera_to_ego for camera in shared.cameras)
    assert np.allclose(inverse(first) @ second, pose([0.1, 0, 0], [0, 0, 0, 1]))


def test_names_of_bags(tmp_path):
    for name in ("2024.05.01", "2024.05.02"):
        write_drive(tmp_path / name, "mcap")
    assert Bag(tmp_path).ids[::3] == ["2024.05.01/000000", "2024.05.02/000000"]
    write_drive(tmp_path / "2024.05.02.bag", "ros1")
    with pytest.raises(BadData, match="two bags are called 2024.05.02"):
        Bag(tmp_path)
    (tmp_path / "mlruns/0").mkdir(parents=True)
    (tmp_path / "mlruns/0/metadata.yaml").write_text("experiment: 0\n")
    assert not Bag.is_at(tmp_path / "mlruns") and not Bag.is_at(tmp_path / "mlruns/0") and Bag.is_at(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed in /proc only on Linux")
def test_many_bags_hold_few_files_open(tmp_path):
    (tmp_path / "all").mkdir()
    path = write_drive(tmp_path / "all/00", "mcap")
    for number in range(1, 19):
        shutil.copytree(path, tmp_path / f"all/{number:02d}")
    bag = Bag(tmp_path / "all")
    assert sum(len(bag[i].points) for i in range(0, len(bag), 3)) > 0
    held = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    assert 0 < sum(name.startswith(str(tmp_path)) for name in held) <= 16


@pytest.mark.parametrize("storage", ["mcap", "sqlite3", "ros1"])
def test_a_bag_cut_short_is_told_or_has_lost_nothing(tmp_path, storage):
    path = write_drive(tmp_path / ("drive.bag" if storage == "ros1" else "drive"), storage)
    points = [frame.points for frame in Bag(path)]
    file = path if storage == "ros1" else next(f for f in path.iterdir() if f.suffix != ".yaml")
    content = file.read_bytes()
    for part in (0, 0.3, 0.8, 0.99):
        file.write_bytes(content[: int(part * len(content))])
        try:
            found = [frame.points for frame in Bag(path)]
            assert part > 0.9 and storage == "sqlite3" and len(found) == len(points) and all(map(np.array_equal, found, points))
        except BadData as told:
            assert "drive" in str(told)


# --- real recordings ---

DGP_RIG = '''
import json
from datetime import datetime, timezone
from pathlib import Path
from xmodal.data.rig import Moment, Rig, RigCamera, pose
from xmodal.projection import compose, inverse

def place(part):
    (x, y, z), turn = (part["translation"][axis] for axis in "xyz"), part["rotation"]
    return pose([x, y, z], [turn[key] for key in ("qx", "qy", "qz", "qw")])

def dataset(root):
    cameras, moments = {}, []
    for path in sorted(Path(root).glob("*/scene_*.json")):
        scene = json.loads(path.read_text())
        data = {d["key"]: (d["id"]["name"], d["id"]["timestamp"], *d["datum"].values()) for d in scene["data"]}
        for number, sample in enumerate(scene["samples"]):
            rig = json.loads((path.parent / f"calibration/{sample['calibration_key']}.json").read_text())
            on_car = {name: place(extrinsic) for name, extrinsic in zip(rig["names"], rig["extrinsics"])}
            for name, k in zip(rig["names"][1:], rig["intrinsics"][1:]):
                matrix = [[k["fx"], k["skew"], k["cx"]], [0, k["fy"], k["cy"]], [0, 0, 1]]
                cameras[name] = RigCamera(name, matrix, camera_to_lidar=compose(on_car[name], inverse(on_car["LIDAR"])))
            shots = {name: (at, datum) for name, at, datum in (data[key] for key in sample["datum_keys"])}
            poses = {name: compose(inverse(on_car[name]), place(datum["pose"])) for name, (_, datum) in shots.items()}
            times = {name: datetime.strptime(at, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc).timestamp() for name, (at, _) in shots.items()}
            files = {name: path.parent / datum["filename"] for name, (_, datum) in shots.items()}
            moments.append(Moment(f"{path.parent.name}/{number:06d}", files.pop("LIDAR"), files, None, times.pop("LIDAR"), times, poses.pop("LIDAR"), poses))
    return Rig(list(cameras.values()), moments, "dgp")
'''


@pytest.mark.skipif(not (DATA / "dgp").is_dir(), reason=f"no DGP recording in {DATA} (not shipped; set XMODAL_DATA)")
def test_dgp_through_thirty_lines(tmp_path):
    (tmp_path / "dgp_rig.py").write_text(DGP_RIG)
    dataset = open_dataset(str(tmp_path / "dgp_rig.py"), DATA / "dgp/test_scene")
    assert len(dataset) == 3 and dataset.ids[0] == "scene_01/000000"
    for frame in dataset:
        frame.check()
        assert len(frame.points) > 40_000 and [camera.size for camera in frame.cameras] == [(1216, 1936)] * 3
    # the boxes that its owner drew in the cloud, projected, are those that he published in the images
    frame, scene, seen = dataset[0], DATA / "dgp/test_scene/scene_01", 0
    boxes = json.loads(next(scene.glob("bounding_box_3d/LIDAR/15569195938203752.json")).read_text())["annotations"]
    for k, camera in enumerate(frame.cameras):
        published = json.loads((scene / f"bounding_box_2d/{camera.name}/15569195938203752.json").read_text())["annotations"]
        published = {box["instance_id"]: box["box"] for box in published}
        for box in boxes:
            if (there := published.get(box["instance_id"])) is None:
                continue
            turn, at = (box["box"]["pose"][key] for key in ("rotation", "translation"))
            to_lidar = pose([at[a] for a in "xyz"], [turn[q] for q in ("qx", "qy", "qz", "qw")])
            half = np.array([box["box"][key] for key in ("length", "width", "height")]) / 2
            corners = (np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T * half) @ to_lidar[:3, :3].T + to_lidar[:3, 3]
            uv, depth = type(frame)("box", corners, cameras=[camera], ego_to_world=frame.ego_to_world).project(0)
            low, high = uv.min(0), uv.max(0)
            if depth.min() > 1 and low.min() > 1 and high[0] < 1934 and high[1] < 1214:
                expected = [there["x"], there["y"], there["x"] + there["w"], there["y"] + there["h"]]
                assert np.abs(np.append(low, high) - expected).max() < 2.1  # published as whole pixels
                seen += 1
    assert seen > 40


class Plain(pickle.Unpickler):
    """Dicts, lists, strings and NumPy's single numbers; nothing else is called."""

    def find_class(self, module, name):
        from codecs import encode

        from numpy._core.multiarray import scalar

        known = {("numpy", "dtype"): np.dtype, ("numpy.core.multiarray", "scalar"): scalar, ("_codecs", "encode"): encode}
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not data")
        return known[module, name]


@pytest.mark.skipif(not (DATA / "kitti_cropped").is_dir(), reason=f"no cropped KITTI frame in {DATA} (non-commercial, not shipped; set XMODAL_DATA)")
def test_a_calibration_from_a_pickle():
    root = DATA / "kitti_cropped"
    with (root / "000008.pkl").open("rb") as file:
        about = Plain(file).load()["data_list"][0]["images"]["CAM2"]
    projection, lidar_to_image = np.array(about["cam2img"]), np.array(about["lidar2img"])
    to_second = np.eye(4)  # the fourth column shifts from the first camera to the second
    to_second[:3, 3] = np.linalg.solve(projection[:3, :3], projection[:3, 3])
    size = int(about["height"]), int(about["width"])
    camera = RigCamera("CAM2", projection[:3, :3], lidar_to_camera=compose(np.array(about["lidar2cam"]), to_second), size=size)
    frame = Rig([camera], [Moment("kitti/000008", root / "000008.bin", {"CAM2": root / about["img_path"]})])[0].check()
    uv, depth = frame.project(0)
    expected = np.column_stack([frame.points, np.ones(len(uv))]).astype(np.float64) @ lidar_to_image.T
    assert np.abs(uv - expected[:, :2] / expected[:, 2:3]).max() < 1e-3 and np.abs(depth - expected[:, 2]).max() < 1e-6
    assert ((uv > -0.5) & (uv < [1242, 375])).all(1).mean() > 0.999  # it was cropped to this image
