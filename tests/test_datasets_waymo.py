"""Both releases of the Waymo Open Dataset: files written by an independent writer come back as they were, and every damage is told once and clearly."""

import pickle
import shutil
import subprocess
import sys
import warnings
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("pyarrow", reason="tables need pyarrow: pip install -e '.[datasets]'")
pytest.importorskip("google.protobuf", reason="the records are written with protobuf: pip install -e '.[train]'")

from waymo_files import (  # noqa: E402
    BASE, CAMERAS, LIDARS, SEGMENT, TO_WAYMO, at_random, frame_message, of_street, points, record, rigid, tables, write_records, write_tables,
)  # fmt: skip

from xmodal.data.protobuf import fields, floats, whole, wholes  # noqa: E402
from xmodal.data.waymo import Waymo  # noqa: E402
from xmodal.data.waymo_parts import BOXES, CLASSES, PIXELS, number_of  # noqa: E402
from xmodal.data.waymo_v1 import WaymoRecords  # noqa: E402
from xmodal.frame import BadData  # noqa: E402

LAYOUTS = [(Waymo, write_tables), (WaymoRecords, write_records)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    "Listings are kept in a folder of the test's own."
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


both = pytest.mark.parametrize("dataset, write", LAYOUTS, ids=["tables", "records"])


def assert_same(a, b):
    "Two frames, bit for bit."
    for one, two in ((a, b), *((a.boxes, b.boxes),) * bool(a.boxes), *zip(a.cameras, b.cameras)):
        assert vars(one).keys() == vars(two).keys()
        for key, value in vars(one).items():
            other = getattr(two, key)
            if key in ("points", "intensity") or isinstance(value, np.ndarray):
                assert value.dtype == other.dtype and np.array_equal(value, other), key
            elif key not in ("boxes", "cameras", "path"):
                assert value == other, key


def assert_holds(frame, moment, lidars=("TOP",), returns=1):
    "A frame is what was written, in this library's conventions."
    place = moment["lasers"]["TOP"]["extrinsic"][:3, 3]
    parts = [(name, echo, moment["lasers"][name]["returns"][echo]) for name in lidars for echo in range(returns)]
    expected = np.concatenate([points(moment, name, echo) for name, echo, _ in parts])
    assert frame.points.dtype == np.float32 and frame.points.shape == expected.shape
    np.testing.assert_allclose(frame.points, expected - place, atol=2e-5)  # metres
    raw = np.concatenate([image[image[..., 0] > 0][:, 1] for _, _, image in parts])
    np.testing.assert_allclose(frame.intensity, np.tanh(raw), atol=1e-6)
    labels = [moment["lasers"][name]["labels"][echo] for name, echo, _ in parts]
    if any(part is not None for part in labels):
        kept = [np.zeros(((image[..., 0] > 0).sum(), 2), int) if part is None else part[image[..., 0] > 0] for (_, _, image), part in zip(parts, labels)]
        assert np.array_equal(np.stack([frame.instance, frame.semantic], 1), np.concatenate(kept))
    np.testing.assert_allclose(frame.lidar_to_ego, rigid(place=place), atol=1e-12)
    np.testing.assert_allclose(frame.ego_to_world, moment["pose"], atol=1e-6)
    assert frame.id == f"{moment['segment']}/{moment['time']}" and abs(frame.timestamp - 1e-6 * moment["time"]) < 1e-6
    for camera in frame.cameras:
        assert_camera(camera, moment["cameras"][camera.name])
    if frame.boxes is not None:
        rows = np.array([box[:7] for box in moment["boxes"]]).reshape(-1, 7)
        np.testing.assert_allclose(np.column_stack([frame.boxes.center + place, frame.boxes.size, frame.boxes.yaw]), rows, atol=1e-9)
        assert frame.boxes.instance.tolist() == [number_of(box[8]) for box in moment["boxes"]]


def assert_camera(camera, written):
    "An image with its calibration."
    np.testing.assert_allclose(camera.camera_to_ego, written["extrinsic"] @ np.linalg.inv(TO_WAYMO), atol=1e-6)
    np.testing.assert_allclose(camera.ego_to_world, written["pose"], atol=1e-6)
    assert np.array_equal(camera.image, np.array(Image.open(BytesIO(written["jpeg"])))) and abs(camera.timestamp - written["time"]) < 1e-6
    f_u, f_v, c_u, c_v, *bend = written["lens"]
    np.testing.assert_allclose(camera.intrinsics, [[f_u, 0, c_u - 0.5], [0, f_v, c_v - 0.5], [0, 0, 1]], atol=1e-9)
    assert (camera.distortion is None and not any(bend)) or np.allclose(camera.distortion, bend, atol=0)


# ---- what was written comes back ------------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_noise_comes_back_from_both_layouts(tmp_path_factory, seed):
    rng, root = np.random.default_rng(seed), tmp_path_factory.mktemp("waymo")
    moment = at_random(rng)
    assert Waymo.is_at(write_tables(root, [moment])) and not WaymoRecords.is_at(root)
    assert WaymoRecords.is_at(write_records(root, [moment]))
    wanted = {"cameras": CAMERAS[:2], "lidars": tuple(rng.permutation(LIDARS)[: rng.integers(1, 6)].tolist()), "returns": int(rng.integers(1, 3))}
    one, two = Waymo(root, **wanted), WaymoRecords(root, **wanted)
    assert one.ids == two.ids == [f"{SEGMENT}/{BASE}"] and one.classes == two.classes == CLASSES
    a, b = one[0], two[0]
    assert_holds(a, moment, wanted["lidars"], wanted["returns"])
    assert a.boxes is not None and (b.boxes is None) == (not moment["boxes"])  # a segment without boxes may be of the test split
    b.boxes = b.boxes or a.boxes
    assert_same(a, b)
    assert [CLASSES[i] for i in a.boxes.label] == [("unlabelled", "vehicle", "pedestrian", "sign", "cyclist")[box[7]] for box in moment["boxes"]]
    panoptic = np.array(Image.open(BytesIO(moment["cameras"]["FRONT"]["panoptic"]))).astype(int)
    assert np.array_equal(a.cameras[0].instance, panoptic % 1000) and np.array_equal(a.cameras[0].semantic, PIXELS(panoptic // 1000, ""))
    assert BOXES.names == PIXELS.names == CLASSES


def test_the_wire_reader_reads_what_protobuf_writes():
    moment = at_random(np.random.default_rng(5))
    message = frame_message(moment)
    read = fields(message.SerializeToString())
    assert sorted(read) == sorted(field.number for field, _ in message.ListFields()) and whole(read, 2) == moment["time"]
    calibration = fields(fields(read[1][0])[2][0])
    assert floats(calibration, 2).tolist() == message.context.camera_calibrations[0].intrinsic[:] and whole(calibration, 5) == moment["cameras"]["FRONT"]["size"][0]
    kind = type(message)
    for value in (-1, -(2**63), 2**63 - 1, 0):
        assert whole(fields(kind(timestamp_micros=value).SerializeToString()), 2) == value
    matrix = message.DESCRIPTOR.file.message_types_by_name["MatrixInt32"]._concrete_class(data=[3, -1, -(2**31), 2**31 - 1, 0, 300])
    assert wholes(fields(matrix.SerializeToString()), 1).tolist() == matrix.data[:]


@pytest.fixture(scope="module")
def street():
    pytest.importorskip("open3d", reason="the street world is rendered with Open3D")
    from xmodal.data.street import Street

    return Street(frames=2, cameras=5, size=(96, 320), beams=16, samples=1, seed=3)


@pytest.fixture(scope="module")
def streets(street, tmp_path_factory):
    "The street in both layouts."
    root, moments = tmp_path_factory.mktemp("street"), [of_street(street, i) for i in range(2)]
    for _, write in LAYOUTS:
        write(root / write.__name__, moments)
        (root / write.__name__ / "classes.txt").write_text("".join(f"{name}\n" for name in street.classes))
    return root, moments


@both
def test_the_street_comes_back(street, streets, dataset, write):
    root, moments = streets
    read = dataset(root / write.__name__, split="train")
    assert len(read) == 2 and read.classes == street.classes and read.ids == [f"{SEGMENT}/{m['time']}" for m in moments]
    for i, moment in enumerate(moments):
        frame, made = read[i].check(), street[i]
        assert_holds(frame, moment)
        assert len(frame.boxes) and np.array_equal(frame.boxes.instance, made.boxes.instance) and np.array_equal(frame.boxes.label, made.boxes.label)
        np.testing.assert_allclose(frame.boxes.center, made.boxes.center, atol=1e-9)
        for a, b in zip(frame.cameras, made.cameras, strict=True):
            np.testing.assert_allclose(a.intrinsics, b.intrinsics, atol=1e-9)
            np.testing.assert_allclose(a.camera_to_ego, b.camera_to_ego, atol=1e-9)
            assert np.array_equal(a.semantic, b.semantic) and np.array_equal(a.instance, b.instance)
    assert [c.name for c in read[-1].cameras] == list(CAMERAS)
    with pytest.raises(IndexError):
        read[2]


@both
def test_points_lie_where_the_street_has_them(street, streets, dataset, write):
    """The vehicle drove 0.8 m and turned during the sweep: only the poses of the cells bring the points back to the street's."""
    from scipy.spatial import cKDTree

    frame, made = dataset(streets[0] / write.__name__)[1], street[1]
    distance, nearest = cKDTree(made.points).query(frame.points)
    cell = np.linalg.norm(frame.points, axis=1) * np.deg2rad(0.3) + 1e-3  # beams are 0.5 degrees apart, columns 0.2
    assert len(frame.points) > 0.95 * len(made.points) and (distance < cell).all()
    assert (made.semantic[nearest] == frame.semantic).mean() > 0.97
    uv, depth = frame.project(0)
    inside = (depth > 1) & (np.abs(uv - [159.5, 47.5]) < [158, 46]).all(1)
    col, row = np.round(uv[inside]).astype(int).T
    assert inside.sum() > 1000 and (made.cameras[0].semantic[row, col] == frame.semantic[inside]).mean() > 0.8  # the images are of another moment


@both
def test_only_what_is_asked_for_is_read(streets, dataset, write):
    root = streets[0] / write.__name__
    full = dataset(root)[0]
    few = dataset(root / "training", split="train", cameras=("SIDE_LEFT", "FRONT"), truth=False)
    frame = few[0]
    assert few.classes == dataset(root).classes != CLASSES  # classes.txt lies beside the splits
    assert [c.name for c in frame.cameras] == ["SIDE_LEFT", "FRONT"] and frame.boxes is frame.semantic is frame.cameras[0].semantic is None
    assert np.array_equal(frame.points, full.points) and np.array_equal(frame.cameras[1].image, full.cameras[0].image)
    assert_same(pickle.loads(pickle.dumps(few))[0], frame)
    assert dataset(root, cameras=())[0].cameras == []
    for wrong in ({"split": "trian"}, {"cameras": ("image_02",)}, {"lidars": ("BACK",)}, {"lidars": ()}, {"returns": 3}):
        with pytest.raises(ValueError):
            dataset(root, **wrong)
    with pytest.raises(BadData, match="validation"):
        dataset(root, split="val")
    assert not dataset.is_at(root.parent) and not dataset.is_at(root / "nothing")


def test_tables_of_which_parts_were_not_downloaded(streets, tmp_path):
    root = shutil.copytree(streets[0] / "write_tables", tmp_path / "some")
    for component in ("camera_image", "camera_calibration", "camera_segmentation", "lidar_box", "lidar_segmentation"):
        shutil.rmtree(root / "training" / component)
    frame = Waymo(root)[1].check()
    assert frame.cameras == [] and frame.boxes is None and frame.semantic is None


def test_a_frame_that_is_not_labelled(tmp_path):
    """Of most frames there are no labels of points; of a labelled one TOP's points only."""
    rng = np.random.default_rng(7)
    moments = [at_random(rng, cameras=()), None]
    moments[1] = moments[0] | {"time": BASE + 100_000, "lasers": {n: part | {"labels": [None, None]} for n, part in moments[0]["lasers"].items()}}
    for dataset, write in LAYOUTS:
        read = dataset(write(tmp_path, moments), cameras=(), lidars=("FRONT", "TOP"))
        labelled, bare = read
        front = len(points(moments[0], "FRONT"))
        assert bare.semantic is None and bare.instance is None and not labelled.semantic[:front].any() and labelled.semantic[front:].any()


def test_an_empty_street_is_no_test_split(tmp_path):
    """A frame without boxes of a segment that has some: an empty list, in both releases. None only where the whole segment has none."""
    first = at_random(np.random.default_rng(4), cameras=(), lidars=("TOP",)) | {"boxes": [(1.0, 2, 0, 4, 2, 1.5, 0.1, 1, "car")]}
    empty = first | {"time": BASE + 100_000, "boxes": []}
    for dataset, write in LAYOUTS:
        for order in ((first, empty), (empty, first | {"time": BASE + 200_000})):
            read = dataset(write(tmp_path, order), cameras=())
            assert sorted(len(read[i].boxes) for i in range(2)) == [0, 1]
    write_records(tmp_path, [empty])
    assert WaymoRecords(tmp_path, cameras=())[0].boxes is None


@both
def test_part_of_a_split_is_told(tmp_path, dataset, write):
    """1 of 798 segments: whoever asks for "train" is told; a world of one's own is not the published split."""
    root = write(tmp_path, [at_random(np.random.default_rng(1), cameras=())])
    with pytest.warns(UserWarning, match="1 of the 798 segments of the split train"):
        dataset(root, "train", cameras=())
    (root / "classes.txt").write_text("\n".join(CLASSES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset(root, "train", cameras=())
        dataset(root, cameras=())
    assert dataset.name == {"Waymo": "waymo", "WaymoRecords": "waymo-v1"}[dataset.__name__]
    (root / "classes.txt").write_text("a\na\n")
    with pytest.raises(BadData, match="names a class twice"):
        dataset(root)


def test_images_of_one_of_two_segments(tmp_path):
    """The other one gives clouds, and that is told when the dataset is opened."""
    moment = at_random(np.random.default_rng(1), cameras=CAMERAS)
    write_tables(tmp_path, [moment])
    write_tables(tmp_path, [moment | {"segment": "another"}])
    for component in ("camera_image", "camera_calibration"):
        (tmp_path / f"training/{component}/another.parquet").unlink()
    with pytest.warns(UserWarning, match="1 of 2 drives lack images of some cameras .another: FRONT, "):
        read = Waymo(tmp_path)
    assert {id.split("/")[0]: len(read[i].cameras) for i, id in enumerate(read.ids)} == {SEGMENT: 5, "another": 0}
    (tmp_path / f"training/camera_image/{SEGMENT}.parquet").unlink()  # no images at all: none were wanted
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Waymo(tmp_path)[0].cameras == []


def test_a_segment_is_listed_from_one_table(tmp_path, monkeypatch):
    """vehicle_pose alone has the keys: no other table is opened until it is missing."""
    from xmodal.data import waymo

    root, seen = write_tables(tmp_path, [at_random(np.random.default_rng(1), cameras=())]), []
    keys_of = waymo.keys_of
    monkeypatch.setattr(waymo, "keys_of", lambda path, names: (seen.append(path.parent.name), keys_of(path, names))[1])
    assert len(Waymo(root)) == 1 and seen == ["vehicle_pose"]
    (root / f"training/vehicle_pose/{SEGMENT}.parquet").unlink()
    assert len(Waymo(root)) == 1 and seen[1:] == ["lidar"]


def test_records_are_listed_once(tmp_path, monkeypatch):
    """Listing opens a file twice, however many records it has; the second time not at all; a file that has changed is listed anew."""
    import builtins
    from pathlib import Path

    moments = [at_random(np.random.default_rng(1), cameras=(), lidars=("TOP",), time=BASE + k) for k in range(5)]
    root, seen = write_records(tmp_path, moments), []
    for owner, name in ((builtins, "open"), (Path, "open")):
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, _plain=plain, **how: (str(args[0]).endswith(".tfrecord") and seen.append(args[0]), _plain(*args, **how))[1])
    first = WaymoRecords(root, cameras=())
    assert len(first) == 5 and 1 <= len(seen) <= 2
    seen.clear()
    again = WaymoRecords(root, cameras=())
    assert again.ids == first.ids and np.array_equal(again.places, first.places) and again.labelled == first.labelled and not seen
    assert_same(again[3], first[3])
    write_records(tmp_path, moments[:3])
    assert len(WaymoRecords(root, cameras=())) == 3


def test_large_groups_are_told_and_mended(tmp_path, monkeypatch):
    from xmodal.data import waymo
    from xmodal.data.parquet_rows import rewrite_tables

    moment = at_random(np.random.default_rng(1), cameras=CAMERAS[:1])
    root = write_tables(tmp_path / "large", [moment | {"time": BASE + k} for k in range(3)])
    monkeypatch.setattr(waymo, "LARGE", 1)
    with pytest.warns(UserWarning, match="rewrite_tables"):
        read = Waymo(root, cameras=CAMERAS[:1])
    again = Waymo(rewrite_tables(root, tmp_path / "small", rows=1), cameras=CAMERAS[:1])
    assert again.ids == read.ids
    for i in range(3):
        assert_same(again[i], read[i])


def test_memory_of_a_large_table(tmp_path):
    """Range images of full size in one row group: rows are decoded one at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = np.zeros(64 * 2650 * 4, np.float32)
    rows = 12
    table = pa.table({
        "key.frame_timestamp_micros": pa.array(np.arange(rows), pa.int64()),
        "[LiDARComponent].range_image_return1.values": pa.ListArray.from_arrays(
            pa.array(np.arange(rows + 1) * len(values), pa.int32()), pa.array(np.tile(values, rows))),
    })  # fmt: skip
    path = tmp_path / "one.parquet"
    pq.write_table(table, path, row_group_size=rows)
    program = f"""
import pyarrow, xmodal.data.parquet_rows as r
from pathlib import Path
path, time, column = Path({str(path)!r}), "key.frame_timestamp_micros", "[LiDARComponent].range_image_return1.values"
keys = r.keys_of(path, (time,))
row, = r.read_rows(path, keys, keys[time] == {rows - 1}, [column], AT_ONCE)
assert len(row[column]) == {len(values)}
print(pyarrow.default_memory_pool().max_memory())
"""

    def peak(at_once):  # of a process of its own
        return int(subprocess.run([sys.executable, "-c", program.replace("AT_ONCE", str(at_once))], capture_output=True, text=True, check=True).stdout)

    assert peak(1) < 6 * values.nbytes < rows * values.nbytes < peak(rows)


# ---- damage ---------------------------------------------------------------------------------------------------------------------------------


def damaged(root, component, change):
    "One table written again."
    import pyarrow.parquet as pq

    path = root / "training" / component / f"{SEGMENT}.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    return path


def replaced(column, value):
    "A table with one value for a whole column."
    import pyarrow as pa

    return lambda table: table.set_column(table.schema.get_field_index(column), column, pa.array([value] * len(table), table.schema.field(column).type))


SKEWED = np.diag([1.0, 1, 2, 1]).ravel().tolist()


@pytest.mark.parametrize(
    "component, change, message",
    [
        ("lidar", None, "missing"),
        ("vehicle_pose", None, "missing"),
        ("lidar_pose", None, "missing"),
        ("lidar_calibration", None, "missing"),
        ("camera_image", None, "missing"),
        ("camera_calibration", None, "missing"),
        ("lidar", "cut", "no whole Parquet file"),
        ("lidar_box", "cut", "no whole Parquet file"),
        ("vehicle_pose", lambda t: t.slice(0, 0), "0 poses"),
        ("lidar", lambda t: t.slice(0, 0), "no row for TOP"),
        ("camera_image", lambda t: t.slice(0, 1), "no row for"),
        ("camera_image", lambda t: t.take([0, 1, 1]), "two rows"),
        ("lidar_calibration", lambda t: t.filter(t["key.laser_name"].to_numpy() > 1), "no row for TOP"),
        ("lidar", lambda t: t.drop_columns(["[LiDARComponent].range_image_return1.shape"]), "no column"),
        ("lidar", lambda t: t.drop_columns(["key.laser_name"]), "no column"),
        ("lidar", replaced("[LiDARComponent].range_image_return1.shape", [3, 3, 4]), "numbers for the shape"),
        ("lidar", replaced("[LiDARComponent].range_image_return1.values", None), "no range image"),
        ("lidar", replaced("[LiDARComponent].range_image_return1.values", [float("nan")] * 8), "numbers for the shape"),
        ("lidar_pose", replaced("[LiDARPoseComponent].range_image_return1.values", None), "no poses of TOP's cells"),
        ("vehicle_pose", replaced("[VehiclePoseComponent].world_from_vehicle.transform", SKEWED), "not a rotation"),
        ("lidar_calibration", replaced("[LiDARCalibrationComponent].extrinsic.transform", [float("nan")] * 16), "0 numbers instead of 16"),
        ("lidar_calibration", replaced("[LiDARCalibrationComponent].beam_inclination.values", [0.1, 0.2]), "beam inclinations"),
        ("camera_image", replaced("[CameraImageComponent].image", b"\xff\xd8\xff\xe0 no image"), "cannot be read"),
        ("camera_image", replaced("[CameraImageComponent].image", None), "cannot be read"),
        ("camera_calibration", replaced("[CameraCalibrationComponent].width", 7), "its calibration is for 7 x"),
        ("camera_calibration", replaced("[CameraCalibrationComponent].intrinsic.f_u", 0.0), "f_u f_v"),
        ("camera_segmentation", replaced("[CameraSegmentationLabelComponent].panoptic_label_divisor", 0), "divisor"),
        ("lidar_box", replaced("[LiDARBoxComponent].type", 9), "9"),
        ("lidar_box", replaced("[LiDARBoxComponent].box.center.x", float("nan")), "NaN"),
        ("lidar_box", replaced("[LiDARBoxComponent].box.size.y", -1.0), "below zero"),
    ],
)
def test_damaged_tables(tmp_path, component, change, message):
    moment = at_random(np.random.default_rng(1))
    assert len(moment["boxes"])
    root = write_tables(tmp_path, [moment])
    path = root / "training" / component / f"{SEGMENT}.parquet"
    if change is None:
        path.unlink()
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        damaged(root, component, change)
    read = Waymo(root, cameras=CAMERAS[:2])
    assert len(read) == 1  # listed through the other components
    with pytest.raises(BadData, match=message) as caught:
        read[0]
    assert SEGMENT in caught.value.path and "\n" not in str(caught.value)


def test_empty_cells_of_tables_are_told(tmp_path):
    """Any column may hold nothing: a frame or BadData comes of it."""
    import pyarrow.parquet as pq

    moment, told = at_random(np.random.default_rng(1), cameras=CAMERAS[:1], lidars=("TOP", "REAR")), []
    root = write_tables(tmp_path, [moment])
    for component, table in tables([moment]).items():
        path = root / "training" / component / f"{SEGMENT}.parquet"
        content = path.read_bytes()
        for column in table.schema.names:
            pq.write_table(replaced(column, None)(table), path)
            try:
                read = Waymo(root, cameras=CAMERAS[:1], lidars=("TOP", "REAR"))
                read[len(read) - 1]
            except BadData:
                told.append(column)
        path.write_bytes(content)
    assert len(told) > 20 and "[LiDARBoxComponent].type" in told and "[CameraImageComponent].velocity.linear_velocity.x" not in told


def test_a_byte_in_the_middle_of_a_table(tmp_path):
    """Parquet has no checksums that are always there: a damaged page is told, or its numbers are; nothing else may escape."""
    root = write_tables(tmp_path, [at_random(np.random.default_rng(1), cameras=CAMERAS[:1])])
    rng, told = np.random.default_rng(2), {}
    for component in ("lidar", "camera_image", "vehicle_pose"):
        path = root / "training" / component / f"{SEGMENT}.parquet"
        whole_file = path.read_bytes()
        for _ in range(20):
            content = bytearray(whole_file)
            content[rng.integers(4, len(content))] ^= 1 << rng.integers(8)
            path.write_bytes(content)
            try:
                read = Waymo(root, cameras=CAMERAS[:1])
                [read[i].check() for i in range(len(read))]
            except BadData:
                told[component] = told.get(component, 0) + 1
        path.write_bytes(whole_file)
    assert min(told.get(component, 0) for component in ("lidar", "camera_image", "vehicle_pose")) >= 5, told


def test_a_segment_of_which_nothing_can_be_read_is_not_hidden(tmp_path):
    moments = [at_random(np.random.default_rng(1), cameras=())]
    root = write_tables(tmp_path, moments)
    for component in tables(moments):
        (root / "training" / component / "another.parquet").write_bytes(b"PAR1 nothing PAR1")
    read = Waymo(root, cameras=())
    assert read.ids == [f"{SEGMENT}/{BASE}", "another/unreadable"]
    read[0]
    with pytest.raises(BadData, match="Parquet"):
        read[1]


def test_damaged_records(tmp_path):
    moments = [at_random(np.random.default_rng(k), time=BASE + k) for k in range(3)]
    path = write_records(tmp_path, moments) / f"training/segment-{SEGMENT}_with_camera_labels.tfrecord"
    content, first = path.read_bytes(), len(record(frame_message(moments[0]).SerializeToString()))

    def told(data, row, message, frames=3):
        path.write_bytes(data)
        read = WaymoRecords(tmp_path, cameras=CAMERAS[:2])
        assert len(read) == frames
        for i in range(row):
            read[i]
        with pytest.raises(BadData, match=message) as caught:
            read[row]
        assert path.name in caught.value.path and "\n" not in str(caught.value)

    told(content[:-1], 2, "cut short")
    told(content[: first + 7], 1, "cut short", 2)
    told(content[: first + 2] + b"?" + content[first + 3 :], 1, "checksum", 2)  # a length
    middle = first + 12 + 3000
    told(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :], 1, "checksum")  # one bit of the content
    told(content + b"tail", 3, "cut short", 4)
    told(content + record(b"\x0a\x03abc"), 3, "no frame", 4)
    told(content + record(b""), 3, "names no segment", 4)
    told(b"", 0, "no record", 1)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f.ClearField("lasers"), "no range image of TOP"),
        (lambda f: f.context.ClearField("laser_calibrations"), "no calibration of TOP"),
        (lambda f: f.context.ClearField("camera_calibrations"), "no calibration of FRONT"),
        (lambda f: f.ClearField("images"), "no image of FRONT, FRONT_LEFT"),
        (lambda f: f.ClearField("pose"), "0 numbers instead of 16"),
        (lambda f: f.lasers[0].ri_return1.ClearField("range_image_compressed"), "no range image"),
        (lambda f: setattr(f.lasers[0].ri_return1, "range_image_compressed", b"no zlib"), "decompressed"),
        (lambda f: setattr(f.lasers[0].ri_return1, "range_image_pose_compressed", f.lasers[0].ri_return1.range_image_compressed), "poses of its cells"),
        (lambda f: f.lasers[0].ri_return1.ClearField("range_image_pose_compressed"), "no poses of TOP's cells"),
        (lambda f: f.lasers.add().CopyFrom(f.lasers[0]), "two of one sensor: range image"),
        (lambda f: f.images.add().CopyFrom(f.images[1]), "two of one sensor: image"),
        (lambda f: f.context.laser_calibrations.add().CopyFrom(f.context.laser_calibrations[0]), "two of one sensor: calibration"),
        (lambda f: setattr(f.lasers[0].ri_return1, "segmentation_label_compressed", f.lasers[0].ri_return1.range_image_compressed), "does not end|labels|numbers"),
        (lambda f: f.context.laser_calibrations[0].beam_inclinations.append(1.0), "beam inclinations"),
        (lambda f: f.context.camera_calibrations[0].intrinsic.pop(), "f_u f_v"),
        (lambda f: setattr(f.images[0], "image", f.images[0].image[:100]), "cannot be read"),
        (lambda f: setattr(f.laser_labels[0].box, "heading", float("nan")), "NaN"),
        (lambda f: f.laser_labels[0].box.ClearField("center_x"), "NaN"),
        (lambda f: setattr(f.laser_labels[0], "type", 5), "5"),
    ],
)
def test_records_that_are_whole_but_wrong(tmp_path, change, message):
    frame = frame_message(at_random(np.random.default_rng(1)))
    change(frame)
    path = tmp_path / "segment-x.tfrecord"
    path.write_bytes(record(frame.SerializeToString()))
    with pytest.raises(BadData, match=message) as caught:
        WaymoRecords(tmp_path, cameras=CAMERAS[:2])[0]
    assert path.name in caught.value.path and "\n" not in str(caught.value)


def test_any_bytes_in_a_whole_record_are_told(tmp_path):
    """The checksums are right, the message is not: no other error than BadData."""
    rng = np.random.default_rng(1)
    message, told = frame_message(at_random(rng, cameras=CAMERAS[:1], lidars=("TOP",))).SerializeToString(), 0
    for k in range(90):
        content = bytearray(message)
        for at in rng.integers(0, len(content), rng.integers(1, 5)):
            content[at] = rng.integers(0, 256)
        (tmp_path / "segment-x.tfrecord").write_bytes(record(bytes(content[: rng.integers(1, len(content)) if k % 3 == 0 else None])))
        try:
            WaymoRecords(tmp_path, cameras=CAMERAS[:1])[0].check()
        except BadData:
            told += 1
    assert told > 30
