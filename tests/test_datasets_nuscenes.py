"""nuScenes: the street written and read back, tables by another writer from a real key frame, and every kind of damage."""

import json
import multiprocessing
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from xmodal.data.columns import text
from xmodal.data.nuscenes import CAMERAS, NuScenes
from xmodal.data.nuscenes_splits import CATEGORIES, SPLITS
from xmodal.data.nuscenes_tables import Tables
from xmodal.data.pickles import read_pickle
from xmodal.frame import BadData, Boxes, Camera, Frame
from xmodal.projection import in_image, is_rigid, transform

DATA = Path(os.environ.get("XMODAL_DATA", Path(__file__).parents[2] / "shared/data")) / "nuscenes_keyframe"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# --- the street, through our writer ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def street():
    pytest.importorskip("open3d", reason="the street world is rendered with Open3D")
    from xmodal.data.street import Street

    made = Street(frames=3, frames_per_drive=2, size=(64, 192), beams=16, samples=1, cameras=5)
    return Few(made, [made[i] for i in range(3)])


class Few:
    """Frames in memory."""

    name = "few"

    def __init__(self, dataset, frames):
        self.frames, self.classes, self.ids = frames, dataset.classes, [frame.id for frame in frames]

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, i):
        return self.frames[i]


@pytest.fixture(scope="module")
def written(street, tmp_path_factory):
    from xmodal.data.nuscenes_write import write_nuscenes

    return write_nuscenes(street, tmp_path_factory.mktemp("street"), progress=False)


def assert_same(read, made, names):
    for name in names:
        a, b = getattr(read, name), getattr(made, name)
        assert np.array_equal(a, b) and a.dtype == b.dtype, name


def assert_near(read, made, names, atol=1e-9):
    for name in names:
        np.testing.assert_allclose(getattr(read, name), getattr(made, name), rtol=0, atol=atol, err_msg=name)


def assert_same_frame(read, made):
    assert_same(read, made, ("points", "intensity", "semantic", "instance"))
    assert_near(read, made, ("lidar_to_ego", "ego_to_world"))
    assert abs(read.timestamp - made.timestamp) <= 0.5001e-6
    assert_same(read.boxes, made.boxes, ("label", "instance", "size"))
    assert_near(read.boxes, made.boxes, ("center", "yaw"))
    assert [camera.name for camera in read.cameras] == [camera.name for camera in made.cameras]
    for a, b in zip(read.cameras, made.cameras):
        assert_same(a, b, ("image", "intrinsics"))
        assert_near(a, b, ("camera_to_ego", "ego_to_world"))
        assert abs(a.timestamp - b.timestamp) <= 0.5001e-6


def test_the_street_comes_back(street, written):
    dataset = NuScenes(written)
    assert dataset.ids == ["drive_0001/000", "drive_0001/001", "drive_0002/000"] and dataset.classes == tuple(street.classes)
    for i in range(3):
        assert len(street[i].boxes) and street[i].semantic.any() and street[i].instance.any()  # there is something to lose
        assert street[i].cameras[0].timestamp != street[i].timestamp
        assert_same_frame(dataset[i].check(), street[i])
    with pytest.raises(IndexError):
        dataset[3]
    bare = NuScenes(written, truth=False, cameras=("image_left",))[0]
    assert bare.boxes is None and bare.semantic is None and [camera.name for camera in bare.cameras] == ["image_left"]


def test_every_table_is_there_and_its_tokens_lead_somewhere(written):
    tables = {path.stem: json.loads(path.read_text()) for path in (written / "v1.0-mini").glob("*.json")}
    official = "attribute calibrated_sensor category ego_pose instance lidarseg log map panoptic sample sample_annotation sample_data scene sensor visibility"
    assert sorted(tables) == official.split()
    rows = {name: {row["token"]: row for row in table} for name, table in tables.items()}
    assert all(len(rows[name]) == len(tables[name]) for name in tables)
    for name, table in tables.items():
        for row in table:
            for key, value in row.items():
                target = key.removesuffix("_token").removeprefix("first_").removeprefix("last_").replace("annotation", "sample_annotation")
                target = name if key in ("prev", "next") else target if key.endswith("_token") else None
                empty = value == "" and key in ("prev", "next", "visibility_token")
                assert target is None or empty or value in rows[target]
    boxes = tables["sample_annotation"]
    assert all(rows["sample_annotation"][box["next"]]["prev"] == box["token"] for box in boxes if box["next"])
    assert any(box["next"] for box in boxes) and sum(row["nbr_annotations"] for row in tables["instance"]) == len(boxes)
    assert [row["nbr_samples"] for row in tables["scene"]] == [2, 1]


def test_writing_goes_on_and_refuses_another(street, tmp_path):
    from xmodal.data.nuscenes_write import write_nuscenes

    class Breaks(Few):
        def __getitem__(self, i):
            if i == 2:
                raise KeyboardInterrupt
            return self.frames[i]

    with pytest.raises(KeyboardInterrupt):
        write_nuscenes(Breaks(street, street.frames), tmp_path / "a", progress=False)
    assert not NuScenes.is_at(tmp_path / "a")
    scan = next((tmp_path / "a/samples/LIDAR_TOP").iterdir())
    before = scan.stat().st_mtime_ns
    write_nuscenes(street, tmp_path / "a", progress=False)
    assert scan.stat().st_mtime_ns == before and len(NuScenes(tmp_path / "a")) == 3 and not list((tmp_path / "a").rglob("*.part"))
    tables = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a/v1.0-mini").glob("*.json")}
    write_nuscenes(street, tmp_path / "a", progress=False)
    assert tables == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a/v1.0-mini").glob("*.json")}
    other = Few(street, street.frames[::-1])
    other.ids = street.ids
    with pytest.raises(BadData, match="another dataset was written here"):
        write_nuscenes(other, tmp_path / "a", progress=False)
    with pytest.raises(BadData, match="another dataset is here"):
        shutil.rmtree(tmp_path / "a/v1.0-mini/.frames")
        write_nuscenes(street, tmp_path / "a", progress=False)


def test_frames_that_know_little(tmp_path):
    """No camera, intensity, pose, moment, label, box or class: what nuScenes cannot do without is filled in."""
    from xmodal.data.nuscenes_write import write_nuscenes

    clouds = [np.random.default_rng(k).uniform(-9, 9, (50, 3)).astype(np.float32) for k in range(3)]
    little = type("", (), {"classes": ()})()
    dataset = NuScenes(write_nuscenes(Few(little, [Frame(f"{k}", cloud) for k, cloud in enumerate(clouds)]), tmp_path / "root", progress=False))
    assert dataset.ids == [f"scene/{k:03d}" for k in range(3)] and dataset.cameras == ()
    for k, cloud in enumerate(clouds):
        frame = dataset[k].check()
        assert np.array_equal(frame.points, cloud) and frame.timestamp == 0.5 * k and not frame.intensity.any()
        assert np.array_equal(frame.ego_to_world, np.eye(4)) and frame.boxes is None and frame.semantic is None and frame.instance is None


def test_what_is_lost_is_told_once(street, tmp_path):
    from xmodal.data.nuscenes_write import write_nuscenes

    with pytest.warns(UserWarning) as told:
        write_nuscenes(street, tmp_path, progress=False)
    assert len(told) == 1 and "depth of images, semantic of images, instance of images" in str(told[0].message)


def test_class_names_may_have_spaces(tmp_path):
    from xmodal.data.nuscenes_write import write_nuscenes

    frame = Frame("a/0", np.ones((9, 3), np.float32), semantic=np.arange(9, dtype=np.int32) % 2)
    made = Few(type("", (), {"classes": ("unlabelled", "low vegetation")})(), [frame])
    dataset = NuScenes(write_nuscenes(made, tmp_path, progress=False))
    assert dataset.classes == made.classes and np.array_equal(dataset[0].semantic, frame.semantic) and not (tmp_path / "classes.txt").exists()
    made.classes = ("unlabelled", "high vegetation")
    with pytest.raises(BadData, match="category.json: another dataset with other classes"):
        write_nuscenes(made, tmp_path, progress=False)


def test_instances_without_classes(tmp_path):
    """Come back without classes: not as points that somebody called unlabelled."""
    from xmodal.data.nuscenes_write import write_nuscenes

    frame = Frame("a/0", np.ones((9, 3), np.float32), instance=np.arange(9, dtype=np.int32))
    made = Few(type("", (), {"classes": ("unlabelled", "car")})(), [frame])
    read = NuScenes(write_nuscenes(made, tmp_path, progress=False))[0]
    assert read.semantic is None and np.array_equal(read.instance, frame.instance)


# --- random frames, tables by another writer -------------------------------------------------------------------------


class Writer:
    """nuScenes' tables as the schema describes them: nothing of it is shared with the package."""

    def __init__(self, root, version="v1.0-mini", names=CATEGORIES, indent=0):
        self.root, self.version, self.indent, self.count = Path(root), version, indent, 0
        names_of_tables = "scene sample sensor calibrated_sensor ego_pose sample_data category instance sample_annotation lidarseg panoptic log map"
        self.tables = {name: [] for name in names_of_tables.split()}
        self.categories = {name: self.row("category", name=name, description="", index=i) for i, name in enumerate(names)}

    def row(self, table, **fields):
        self.count += 1
        token = np.random.default_rng(self.count).bytes(16).hex()
        self.tables[table].append({"token": token} | fields)
        return token

    def pose(self, matrix):
        x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
        return {"translation": matrix[:3, 3].tolist(), "rotation": [w, x, y, z]}

    def sensor(self, channel, to_ego, intrinsics=()):
        modality = "camera" if "CAM" in channel else "lidar"
        known = {row["channel"]: row["token"] for row in self.tables["sensor"]}
        sensor = known.get(channel) or self.row("sensor", channel=channel, modality=modality)
        return self.row("calibrated_sensor", sensor_token=sensor, camera_intrinsic=np.array(intrinsics).tolist(), **self.pose(to_ego))

    def data(self, sample, calibrated, ego_to_world, timestamp, filename, size=(0, 0), key=True, prev=""):
        ego = self.row("ego_pose", timestamp=timestamp, **self.pose(ego_to_world))
        return self.row(
            "sample_data", sample_token=sample, ego_pose_token=ego, calibrated_sensor_token=calibrated, timestamp=timestamp, filename=filename,
            fileformat=filename.rpartition(".")[2], height=size[0], width=size[1], is_key_frame=key, prev=prev, next="",
        )  # fmt: skip

    def labels(self, data, semantic, panoptic):
        saves = {"lidarseg": lambda p: semantic.astype(np.uint8).tofile(p), "panoptic": lambda p: np.savez_compressed(p, data=panoptic.astype(np.uint16))}
        for table, save in saves.items():
            file = f"{data}_lidarseg.bin" if table == "lidarseg" else f"{data}_panoptic.npz"
            path = self.root / table / self.version / file
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path)
            self.row(table, sample_data_token=data, filename=f"{table}/{self.version}/{file}")

    def save(self):
        (self.root / self.version).mkdir(parents=True, exist_ok=True)
        for name, rows in self.tables.items():
            (self.root / self.version / f"{name}.json").write_text(json.dumps(rows, indent=self.indent))
        return self.root


def random_pose(rng, far=1000.0):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix(), rng.uniform(-far, far, 3)
    return matrix


def save_scan(path, points, intensity):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.column_stack([points, intensity, np.arange(len(points)) % 32]).astype("<f4").tofile(path)


def save_image(path, image):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


CHALLENGE = np.array([0, 0, 7, 7, 7, 0, 7, 0, 0, 1, 0, 0, 8, 0, 2, 3, 3, 4, 5, 0, 0, 6, 9, 10, 11, 12, 13, 14, 15, 0, 16, 0], np.int32)  # the published table
AMONG = np.zeros(32, np.int32)  # which of the categories of its class: children are the second of the pedestrians
for several in ((2, 3, 4, 6), (15, 16), (0, 1, 5, 7, 8, 10, 11, 13, 19, 20, 29, 31)):
    AMONG[list(several)] = range(len(several))


def random_frames(root, rng, scenes=("scene-0061", "scene-0103"), frames=3, indent=0):
    """A little dataset of random numbers, with one sweep between two key frames; the frames that should come back."""
    writer, expected = Writer(root, indent=indent), []
    for s, scene in enumerate(scenes):
        scene_token = writer.row("scene", name=scene, description="", log_token="", nbr_samples=frames)
        lidar_to_ego, camera_to_ego = random_pose(rng, 2), random_pose(rng, 2)
        intrinsics = np.array([[rng.uniform(10, 50), 0, 16.5], [0, rng.uniform(10, 50), 9.25], [0, 0, 1]])
        lidar, camera = writer.sensor("LIDAR_TOP", lidar_to_ego), writer.sensor("CAM_FRONT", camera_to_ego, intrinsics)
        instances, before = [writer.row("instance", category_token=writer.categories[name]) for name in ("vehicle.car", "animal", "human.pedestrian.child")], ""
        for k in range(frames):
            moment = int(1.5e15) + s * 10**9 + k * 500_000
            sample = writer.row("sample", timestamp=moment, scene_token=scene_token)
            poses = [random_pose(rng) for _ in range(3)]
            clouds = [rng.uniform(-50, 50, (int(rng.integers(20, 60)), 3)).astype(np.float32) for _ in range(2)]
            bright = [rng.integers(0, 256, len(cloud)).astype(np.float32) for cloud in clouds]
            names = [f"samples/LIDAR_TOP/{scene}_{k}.pcd.bin", f"sweeps/LIDAR_TOP/{scene}_{k}.pcd.bin", f"samples/CAM_FRONT/{scene}_{k}.png"]
            if k:
                clouds[1][:3] = [[0.5, -0.9, 3], [0.5, 1.1, 0], [-7, 0.2, 0]]  # the first is the car itself
                save_scan(root / names[1], clouds[1], bright[1])
                before = writer.data(sample, lidar, poses[1], moment - 50_000, names[1], key=False, prev=before)
            save_scan(root / names[0], clouds[0], bright[0])
            before = data = writer.data(sample, lidar, poses[0], moment, names[0], prev=before)
            image = rng.integers(0, 256, (18, 32, 3), np.uint8)
            save_image(root / names[2], image)
            writer.data(sample, camera, poses[2], moment + 13_000, names[2], (18, 32))
            semantic, instance = rng.integers(0, 32, len(clouds[0])), rng.integers(0, 1000, len(clouds[0]))
            writer.labels(data, semantic, 1000 * semantic + instance)
            geometry = [(random_pose(rng), rng.uniform(0.5, 5, 3)) for _ in instances[: k + 1]]
            for (pose, size), who in zip(geometry, instances):
                writer.row("sample_annotation", sample_token=sample, instance_token=who, size=size.tolist(), num_lidar_pts=1, **writer.pose(pose))
            views = [Camera("CAM_FRONT", image, intrinsics, camera_to_ego, poses[2], timestamp=(moment + 13_000) / 1e6)]
            frame = Frame(f"{scene}/{k:03d}", clouds[0], bright[0] / np.float32(255), views, lidar_to_ego, poses[0], timestamp=moment / 1e6)
            frame.semantic, frame.instance = CHALLENGE[semantic], np.where(instance, instance + 1000 * AMONG[semantic], 0).astype(np.int32)
            to_lidar = np.linalg.inv(poses[0] @ lidar_to_ego)
            turned = [to_lidar @ pose for pose, _ in geometry]
            frame.boxes = Boxes(
                np.array([m[:3, 3] for m in turned]), np.array([size[[1, 0, 2]] for _, size in geometry]),
                np.array([np.arctan2(m[1, 0], m[0, 0]) for m in turned]), np.array([4, 0, 7][: k + 1], np.int32), np.arange(3 * s + 1, 3 * s + 2 + k, dtype=np.int32),
            )  # fmt: skip
            expected.append((frame, poses, clouds, bright))
    writer.save()
    return expected


@pytest.mark.parametrize("seed", range(3))
def test_random_tables_read_as_the_schema_says(tmp_path, seed):
    expected = random_frames(tmp_path / "root", np.random.default_rng(seed), indent=[0, 4, None][seed])
    dataset = NuScenes(tmp_path / "root")
    assert dataset.ids == [frame.id for frame, *_ in expected] and dataset.classes[4] == "car" and dataset.cameras == ("CAM_FRONT",)
    for i, (frame, *_) in enumerate(expected):
        assert_same_frame(dataset[i], frame)


def test_sweeps(tmp_path):
    expected = random_frames(tmp_path / "root", np.random.default_rng(5))
    single, four, many = (NuScenes(tmp_path / "root", sweeps=n) for n in (1, 4, 10))
    assert np.array_equal(four[0].points, single[0].points)  # nothing before the scene begins
    for i in (1, 2, 4, 5):
        frame, poses, clouds, bright = expected[i]
        read, count = four[i], len(clouds[0])
        lidar_to_world = poses[0] @ frame.lidar_to_ego
        turns = [(clouds[1], bright[1], poses[1])]
        for earlier in range(i - 1, i // 3 * 3 - 1, -1):
            _, before, seen, shone = expected[earlier]
            turns += [(seen[0], shone[0], before[0])] + ([(seen[1], shone[1], before[1])] if earlier % 3 else [])
        points, intensity = [clouds[0]], [bright[0]]
        for cloud, shine, pose in turns[:3]:
            kept = ~((np.abs(cloud[:, 0]) < 1) & (np.abs(cloud[:, 1]) < 1))
            points.append(transform(np.linalg.inv(lidar_to_world) @ pose @ frame.lidar_to_ego, cloud[kept]))
            intensity.append(shine[kept])
        np.testing.assert_allclose(read.points, np.concatenate(points), atol=1e-3)  # float32, a kilometre away
        assert np.array_equal(read.intensity, np.concatenate(intensity) / np.float32(255)) and len(clouds[1]) - 1 == len(points[1])
        assert np.array_equal(read.semantic[:count], frame.semantic) and not read.semantic[count:].any() and not read.instance[count:].any()
        assert read.semantic.dtype == np.int32 and len(read.semantic) == len(read.points) <= len(many[i].points)


def test_splits_and_versions(tmp_path):
    random_frames(tmp_path / "root", np.random.default_rng(1), ("scene-0061", "scene-0103", "scene-0001"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert NuScenes(tmp_path / "root", "mini_val").ids == [f"scene-0103/{k:03d}" for k in range(3)]
        assert NuScenes(tmp_path / "root", "train").ids == [f"scene-{n:04d}/{k:03d}" for n in (61, 1) for k in range(3)]  # in the order of scene.json
    assert "1 of the 2 scenes of the split mini_val (missing: scene-0916)" in str(told[0].message) and "2 of the 700" in str(told[1].message)
    with pytest.raises(BadData, match="0 of the 150 scenes of test"):
        NuScenes(tmp_path / "root", "test")
    with pytest.raises(ValueError, match="verifying"):
        NuScenes(tmp_path / "root", "training")
    with pytest.raises(BadData, match="v1.0-trainval/sample_data.json"):
        NuScenes(tmp_path / "root", version="v1.0-trainval")
    shutil.copytree(tmp_path / "root/v1.0-mini", tmp_path / "root/v1.0-trainval")
    assert NuScenes(tmp_path / "root").tables.folder.name == "v1.0-trainval"
    assert NuScenes(tmp_path / "root", version="v1.0-mini").tables.folder.name == "v1.0-mini"
    with pytest.warns(UserWarning):
        assert NuScenes(tmp_path / "root", "mini_train").tables.folder.name == "v1.0-mini"
    assert NuScenes.splits is SPLITS


def test_only_what_is_there_counts(tmp_path):
    """Part of the archives was unpacked: a frame without any file is left out, half a frame is told when it is read."""
    root = tmp_path / "root"
    random_frames(root, np.random.default_rng(2))
    (root / "samples/LIDAR_TOP/scene-0061_1.pcd.bin").unlink()
    (root / "samples/LIDAR_TOP/scene-0103_0.pcd.bin").unlink()
    (root / "samples/CAM_FRONT/scene-0103_0.png").unlink()
    dataset = NuScenes(root)
    assert dataset.ids == ["scene-0061/000", "scene-0061/001", "scene-0061/002", "scene-0103/001", "scene-0103/002"]
    with pytest.raises(BadData, match="scene-0061_1.pcd.bin: the scan is missing"):
        dataset[1]
    shutil.rmtree(root / "samples")
    with pytest.raises(BadData, match="none of the scans and images"):
        NuScenes(root)


def test_scenes_whose_files_are_absent_do_not_count(tmp_path):
    """All tables, but the files of one scene only: the split is not whole."""
    root = tmp_path / "root"
    random_frames(root, np.random.default_rng(2), ("scene-0103", "scene-0916"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(NuScenes(root, "mini_val")) == 6  # whole: nothing is told
    for path in root.glob("samples/*/scene-0916*"):
        path.unlink()
    with pytest.warns(UserWarning, match="1 of the 2 scenes of the split mini_val .missing: scene-0916"):
        assert len(NuScenes(root, "mini_val")) == 3


def test_cameras_and_sweeps_that_were_not_unpacked(tmp_path):
    """Told once, when opened; what was asked for by name is told when it is read."""
    root = tmp_path / "root"
    expected = random_frames(root, np.random.default_rng(2))
    shutil.rmtree(root / "samples/CAM_FRONT"), shutil.rmtree(root / "sweeps")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        dataset = NuScenes(root, sweeps=3)
        frames = [dataset[i] for i in range(6)]
    assert ["CAM_FRONT" in str(told[0].message), "sweeps" in str(told[1].message), len(told)] == [True, True, 2]
    assert dataset.cameras == () and len(dataset) == 6
    assert all(frame.cameras == [] and np.array_equal(frame.points, made.points) for frame, (made, *_) in zip(frames, expected))
    with pytest.raises(BadData, match="the image is missing; unpack it, or leave this camera out"):
        NuScenes(root, cameras=("CAM_FRONT",))[0]


def test_without_boxes_or_labels(tmp_path):
    """The test set: tables without a row; and a download without lidarseg."""
    root = tmp_path / "root"
    expected = random_frames(root, np.random.default_rng(3))
    for name in ("sample_annotation", "instance", "lidarseg"):
        (root / f"v1.0-mini/{name}.json").write_text("[\n]")
    frame = NuScenes(root)[0]
    assert frame.boxes is None and np.array_equal(frame.semantic, expected[0][0].semantic)  # from panoptic
    (root / "v1.0-mini/lidarseg.json").unlink(), (root / "v1.0-mini/panoptic.json").unlink()
    frame = NuScenes(root)[0]
    assert frame.semantic is None and frame.instance is None


# --- faults ----------------------------------------------------------------------------------------------------------


def edit(name, change):
    def do(root):
        path = root / f"v1.0-mini/{name}.json"
        rows = json.loads(path.read_text())
        change(rows)
        path.write_text(json.dumps(rows, indent=0))

    return do


def cut(name, size):
    def do(root):
        path = next(root.glob(name))
        os.truncate(path, path.stat().st_size + size if size < 0 else size)

    return do


def each(pattern, damage):
    return lambda root: [damage(path) for path in root.glob(pattern)]


FAULTS = {
    "a table is missing": (lambda root: (root / "v1.0-mini/ego_pose.json").unlink(), "ego_pose.json: the table is missing"),
    "no category table": (lambda root: (root / "v1.0-mini/category.json").unlink(), "category.json: the table is missing"),
    "a table was cut short": (cut("v1.0-mini/sample_data.json", -100), "sample_data.json: the table is damaged or was cut short"),
    "a table is a web page": (lambda root: (root / "v1.0-mini/scene.json").write_text("<html>"), "scene.json: it begins with '<html>'"),
    "a table is bytes": (lambda root: (root / "v1.0-mini/scene.json").write_bytes(bytes(range(256))), "scene.json: the table is damaged"),
    "a table is empty": (lambda root: (root / "v1.0-mini/ego_pose.json").write_text("[]"), "ego_pose.json: the table is empty"),
    "a field is missing": (edit("sample_data", lambda rows: rows[3].pop("timestamp")), "sample_data.json: row 4 has no timestamp"),
    "rows are no objects": (edit("sample", lambda rows: rows.append(7)), "sample.json: row 7 has no token"),
    "a pose is missing": (edit("ego_pose", lambda rows: rows.pop(0)), "names as ego_pose_token a row that ego_pose.json does not have"),
    "a quaternion is none": (edit("ego_pose", lambda rows: rows[2].update(rotation=[0, 0, 0, 0])), "row 3 holds no unit quaternion"),
    "a quaternion is short": (edit("calibrated_sensor", lambda rows: rows[1].update(rotation=[1, 0, 0])), "row 2 holds no 4 numbers as rotation"),
    "a translation is NaN": (edit("ego_pose", lambda rows: rows[1].update(translation=[0, float("nan"), 0])), "row 2 holds NaN"),
    "a token is a number": (edit("sample", lambda rows: rows[1].update(scene_token=5)), "row 2 has 5 as scene_token"),
    "a box without size": (edit("sample_annotation", lambda rows: rows[0].update(size=[1, 0, 1])), "row 1 holds a size that is not above 0"),
    "an unknown instance": (edit("instance", lambda rows: rows.clear()), "instance.json does not have"),
    "category numbers twice": (edit("category", lambda rows: [row.update(name=f"own{i}", index=1) for i, row in enumerate(rows)]), "number the categories"),
    "a file in another place": (edit("sample_data", lambda rows: rows[2].update(filename="/etc/passwd")), "sample_data.json: row 3 names as filename a file outside"),
    "a file above the root": (edit("lidarseg", lambda rows: rows[0].update(filename="lidarseg/../../x.bin")), "lidarseg.json: row 1 names as filename a file outside"),
    "labels in another place": (edit("panoptic", lambda rows: rows[1].update(filename="../x.npz")), "panoptic.json: row 2 names as filename a file outside"),
    "no LiDAR": (edit("sensor", lambda rows: [row.update(channel="X" + row["channel"]) for row in rows]), "there is no sensor LIDAR_TOP"),
}

READ_FAULTS = {
    "a scan is missing": (lambda root: (root / "samples/LIDAR_TOP/scene-0061_0.pcd.bin").unlink(), "scene-0061_0.pcd.bin: the scan is missing"),
    "a scan was cut short": (cut("samples/LIDAR_TOP/scene-0061_0.pcd.bin", -7), "no whole number of points"),
    "an image is missing": (lambda root: (root / "samples/CAM_FRONT/scene-0061_0.png").unlink(), "scene-0061_0.png: the image is missing"),
    "an image was cut short": (cut("samples/CAM_FRONT/scene-0061_0.png", 200), "scene-0061_0.png: the image cannot be read"),
    "an image has another size": (
        lambda root: save_image(root / "samples/CAM_FRONT/scene-0061_0.png", np.zeros((9, 16, 3), np.uint8)),
        "the image is 16 x 9, its table says 32 x 18",
    ),
    "labels are too few": (each("lidarseg/*/*.bin", lambda path: os.truncate(path, path.stat().st_size - 1)), r"lidarseg.bin: \d+ labels for \d+ points"),
    "labels are missing": (lambda root: shutil.rmtree(root / "lidarseg"), "lidarseg.bin: the labels are missing"),
    "panoptic labels were cut short": (each("panoptic/*/*.npz", lambda path: os.truncate(path, path.stat().st_size - 30)), "panoptic.npz: the labels cannot be read"),
    "panoptic labels are others": (each("panoptic/*/*.npz", lambda path: np.savez(path, data=np.zeros(3, np.uint16))), "panoptic.npz: 3 labels for"),
    "panoptic labels have no name": (each("panoptic/*/*.npz", lambda path: np.savez(path, labels=np.zeros(3))), "panoptic.npz: the labels cannot be read"),
    "panoptic labels are fractions": (each("panoptic/*/*.npz", lambda path: np.savez(path, data=np.zeros(3))), "panoptic.npz: labels of type float64"),
    "panoptic labels are a zip bomb": (each("panoptic/*/*.npz", lambda path: np.savez_compressed(path, data=np.zeros(30_000_000, np.uint16))), "30000000 labels for"),
    "panoptic labels are signed": (each("panoptic/*/*.npz", lambda path: np.savez(path, data=np.full(len(np.load(path)["data"]), -1))), "labels from -1 to -1"),
    "unknown classes": (each("lidarseg/*/*.bin", lambda path: path.write_bytes(b"\xc8" * path.stat().st_size)), "label ids that this benchmark does not have: 200"),
    "a camera has no key frame": (
        edit("sample_data", lambda rows: [row.update(is_key_frame=False) for row in rows if "CAM_FRONT/scene-0061_0" in row["filename"]]),
        "scene-0061/000 has no key frame of CAM_FRONT",
    ),
}


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    root = tmp_path_factory.mktemp("little")
    random_frames(root, np.random.default_rng(4))
    return root


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_tables_are_told_at_once(little, tmp_path, fault):
    damage, message = FAULTS[fault]
    damage(shutil.copytree(little, tmp_path / "root"))
    with pytest.raises(BadData, match=message):
        NuScenes(tmp_path / "root")
    assert not list((tmp_path / "cache").rglob("*.part")) or "category" in message


@pytest.mark.parametrize("fault", READ_FAULTS)
def test_damaged_files_are_told_when_read(little, tmp_path, fault):
    damage, message = READ_FAULTS[fault]
    damage(shutil.copytree(little, tmp_path / "root"))
    dataset = NuScenes(tmp_path / "root")
    with pytest.raises(BadData, match=message):
        dataset[0]


# --- the columns -----------------------------------------------------------------------------------------------------


def test_columns_are_made_again_when_they_or_the_tables_change(little, tmp_path):
    root = shutil.copytree(little, tmp_path / "root")
    points, place = NuScenes(root)[1].points, Tables(root / "v1.0-mini").place("core")
    made = (place / "keys.npy").stat().st_mtime_ns
    assert np.array_equal(NuScenes(root)[1].points, points) and (place / "keys.npy").stat().st_mtime_ns == made
    cut_short, unlisted, gone = place / "keys.npy", place / "columns.json", place / "sample_data.prev.npy"
    for damage in (lambda: os.truncate(cut_short, 130), lambda: unlisted.write_text("{"), gone.unlink):
        damage()
        assert np.array_equal(NuScenes(root)[1].points, points) and (place / "keys.npy").stat().st_mtime_ns != made
    edit("scene", lambda rows: rows[0].update(name="scene-0655"))(root)
    assert NuScenes(root).ids[0] == "scene-0655/000" and Tables(root / "v1.0-mini").place("core") != place


def test_the_cache_does_not_grow(little, tmp_path):
    """Tables that change have their old columns deleted; those of other tables stay."""
    root, mine = shutil.copytree(little, tmp_path / "root"), tmp_path / "mine"
    NuScenes(little, cache=mine), NuScenes(root, cache=mine)
    groups = sorted(path.name for path in mine.iterdir())
    for n in range(3):
        edit("scene", lambda rows: rows[0].update(name=f"scene-{n:04d}"))(root)
        assert NuScenes(root, cache=mine).ids[0] == f"scene-{n:04d}/000"
    again = sorted(path.name for path in mine.iterdir())
    assert len(again) == len(groups) and len(set(again) & set(groups)) == len(groups) - 4  # locks, and the columns of the others
    assert len(NuScenes(little, cache=mine)[0].points)


def test_a_cache_without_locks_or_on_a_bad_disk(little, tmp_path, monkeypatch):
    import fcntl

    from xmodal.data import nuscenes_tables

    def none(*args):
        raise OSError("No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", none)
        with pytest.raises(BadData, match="cannot lock files here .No locks available"):
            NuScenes(little, cache=tmp_path / "a")
    monkeypatch.setattr(nuscenes_tables, "open_columns", lambda place: None)
    with pytest.raises(BadData, match="cannot be read back"):
        NuScenes(little, cache=tmp_path / "b")


def test_a_root_that_cannot_be_written_to(little, tmp_path):
    before = sorted((path, path.stat().st_mtime_ns) for path in little.rglob("*"))
    assert len(NuScenes(little, cache=tmp_path / "mine")) == 6
    assert sorted(path.name[:5] for path in (tmp_path / "mine").iterdir() if path.is_dir()) == ["annot", "core-", "lidar", "panop"]
    assert before == sorted((path, path.stat().st_mtime_ns) for path in little.rglob("*"))
    (tmp_path / "file").touch()
    with pytest.raises(BadData, match="cannot be kept here"):
        NuScenes(little, cache=tmp_path / "file")


def open_and_read(root, cache, start, out):
    start.wait()
    out.put(float(NuScenes(root, cache=cache)[2].points.sum()))


def test_many_processes_at_once(little, tmp_path):
    """All ask for columns that are not there yet: one makes them, nobody fails."""
    context = multiprocessing.get_context("spawn")  # as loaders do
    start, out = context.Event(), context.Queue()
    workers = [context.Process(target=open_and_read, args=(little, tmp_path / "mine", start, out)) for _ in range(4)]
    [worker.start() for worker in workers]
    start.set()
    sums = {out.get(timeout=60) for _ in workers}
    [worker.join() for worker in workers]
    assert len(sums) == 1 and not list((tmp_path / "mine").glob(".*"))


# --- a real key frame ------------------------------------------------------------------------------------------------

needs_real = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real key frame in {DATA} (nuScenes is non-commercial and not shipped; set XMODAL_DATA)")
DETECTED = (
    "vehicle.car", "vehicle.truck", "vehicle.trailer", "vehicle.bus.rigid", "vehicle.construction", "vehicle.bicycle", "vehicle.motorcycle",
    "human.pedestrian.adult", "movable_object.trafficcone", "movable_object.barrier",
)  # fmt: skip


def sharp(matrix):
    """The rotation that is nearest to one of seven digits."""
    u, _, v = np.linalg.svd(np.array(matrix, np.float64)[:3, :3])
    exact = np.array(matrix, np.float64)
    exact[:3, :3] = u @ v
    return exact


def real_key_frame(root):
    """The key frame's pickle as tables, its files linked in place."""
    info = read_pickle(next((DATA / "info").glob("*.pkl")))["data_list"][0]
    (root / "samples").parent.mkdir(parents=True, exist_ok=True)
    os.symlink(DATA / "samples", root / "samples")
    of_boxes = ("animal", "human", "movable", "static_object", "vehicle")
    writer = Writer(root, names=[name for name in CATEGORIES if name.startswith(of_boxes) and name != "vehicle.ego"])
    for row in writer.tables["category"]:
        del row["index"]  # as the tables came before lidarseg
    sample = writer.row("sample", timestamp=round(info["timestamp"] * 1e6), scene_token=writer.row("scene", name="scene-0061", nbr_samples=1))
    ego_to_world, lidar_to_ego = sharp(info["ego2global"]), sharp(info["lidar_points"]["lidar2ego"])
    name = "samples/LIDAR_TOP/" + info["lidar_points"]["lidar_path"]
    writer.data(sample, writer.sensor("LIDAR_TOP", lidar_to_ego), ego_to_world, round(info["timestamp"] * 1e6), name)
    for channel, view in info["images"].items():
        # lidar -> camera leads through both poses: what is missing is the one at the camera's moment
        camera_to_ego = sharp(view["cam2ego"])
        at_camera = ego_to_world @ lidar_to_ego @ np.linalg.inv(np.array(view["lidar2cam"], np.float64)) @ np.linalg.inv(camera_to_ego)
        calibrated = writer.sensor(channel, camera_to_ego, view["cam2img"])
        writer.data(sample, calibrated, at_camera, round(view["timestamp"] * 1e6), f"samples/{channel}/{view['img_path']}", (900, 1600))
    lidar_to_world = ego_to_world @ lidar_to_ego
    for box in info["instances"]:
        x, y, z, length, width, height, yaw = box["bbox_3d"]
        turned = Rotation.from_euler("z", yaw).as_matrix()
        pose = lidar_to_world @ np.block([[turned, np.array([[x], [y], [z]])], [np.zeros((1, 3)), 1]])
        who = writer.row("instance", category_token=writer.categories[DETECTED[box["bbox_label_3d"]]])
        size, seen = [width, length, height], int(box["num_lidar_pts"])
        writer.row("sample_annotation", sample_token=sample, instance_token=who, size=size, num_lidar_pts=seen, **writer.pose(pose))
    writer.save()
    return info


@needs_real
def test_a_real_key_frame(tmp_path):
    info = real_key_frame(tmp_path / "root")
    dataset = NuScenes(tmp_path / "root")
    frame = dataset[0].check()
    assert dataset.ids == ["scene-0061/000"] and dataset.cameras == CAMERAS and len(frame.points) == 34688
    assert frame.semantic is None and abs(frame.timestamp - info["timestamp"]) < 1e-6 and 0 < frame.intensity.max() <= 1
    np.testing.assert_allclose(frame.ego_to_world, info["ego2global"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(frame.lidar_to_ego, info["lidar_points"]["lidar2ego"], rtol=0, atol=1e-6)
    for c, name in enumerate(CAMERAS):
        camera, wanted = frame.cameras[c], info["images"][name]
        assert camera.name == name and camera.size == (900, 1600) and is_rigid(camera.ego_to_world, 1e-9)
        np.testing.assert_array_equal(camera.intrinsics, wanted["cam2img"])
        np.testing.assert_allclose(camera.camera_to_ego, wanted["cam2ego"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(frame.lidar_to_camera(c), wanted["lidar2cam"], rtol=0, atol=1e-6)
        apart = np.linalg.norm(camera.ego_to_world[:3, 3] - frame.ego_to_world[:3, 3])
        assert abs(camera.timestamp - wanted["timestamp"]) < 1e-6 and apart < 0.5  # the car moved, but not far
        projection = np.array(wanted["cam2img"]) @ np.array(wanted["lidar2cam"])[:3]
        u, v, depth = projection @ np.column_stack([frame.points, np.ones(len(frame.points))]).T
        seen = in_image(np.column_stack([u, v]) / depth[:, None], depth, (900, 1600))
        uv, z = frame.project(c)
        assert seen.sum() > 2000 and np.abs(uv - np.column_stack([u, v]) / depth[:, None])[seen].max() < 0.01  # pixels


@needs_real
def test_real_boxes_hold_as_many_points_as_was_counted(tmp_path):
    info = real_key_frame(tmp_path / "root")
    frame = NuScenes(tmp_path / "root")[0]
    wanted = np.array([box["bbox_3d"] for box in info["instances"]])
    np.testing.assert_allclose(frame.boxes.center, wanted[:, :3], rtol=0, atol=1e-6)
    np.testing.assert_allclose(frame.boxes.size, wanted[:, 3:6], rtol=0, atol=1e-12)
    turn = (frame.boxes.yaw - wanted[:, 6] + np.pi) % (2 * np.pi) - np.pi
    assert np.abs(turn).max() < 1e-6 and frame.boxes.instance.tolist() == list(range(1, 70))
    counted = np.array([box["num_lidar_pts"] for box in info["instances"]])
    alone = [Boxes(*(part[k : k + 1] for part in (frame.boxes.center, frame.boxes.size, frame.boxes.yaw, frame.boxes.label))) for k in range(69)]
    inside = np.array([(box.contains(frame.points) == 0).sum() for box in alone])
    # boxes stand upright in our LiDAR frame, theirs in the world's: the car's tilt moves some points across a face
    assert (np.abs(inside - counted) <= np.maximum(2, 0.1 * counted)).all() and (inside == counted).mean() > 0.85, list(zip(inside, counted))
    assert abs(inside.sum() / counted.sum() - 1) < 0.02
    names = [NuScenes(tmp_path / "root").classes[label] for label in frame.boxes.label]
    assert names.count("car") == sum(box["bbox_label_3d"] == 0 for box in info["instances"]) and "pedestrian" in names and "unlabelled" not in names


def test_texts_survive(tmp_path):
    random_frames(tmp_path / "root", np.random.default_rng(0), ("Zürich-東京", "scene-0001"))
    core = Tables(tmp_path / "root/v1.0-mini")["core"]
    assert text(core, "scene.name", 0) == "Zürich-東京"
