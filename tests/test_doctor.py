"""The doctor: each planted fault is told by its own name and grade, and nothing is told about clean recordings."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmodal.alignment import align, motion_at, turned
from xmodal.data.kitti import KittiObject, KittiRaw
from xmodal.data.kitti_write import write_kitti
from xmodal.data.street import Street
from xmodal.doctor import diagnose, told, write_diagnosis
from xmodal.projection import compose, rigid

DATA = Path(os.environ.get("XMODAL_DATA", Path(__file__).parents[2] / "shared/data"))
DAY = "2026_01_01"
DRIVE = f"{DAY}/{DAY}_drive_0001_sync"
SCAN, IMAGE, LABEL = f"{DRIVE}/velodyne_points/data/0000000002.bin", f"{DRIVE}/image_02/data/0000000002.png", f"{DRIVE}/labels/0000000002.label"
CLASSES = {"car": "Car", "truck": "Truck", "person": "Pedestrian", "pedestrian": "Pedestrian", "rider": "Cyclist", "cyclist": "Cyclist", "bus": "Tram"}


class Kept:
    """Frames of the street, rendered once."""

    name = "kept"

    def __init__(self, street):
        self.frames, self.ids, self.classes = list(street), street.ids, street.classes

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, i):
        return self.frames[i]


@pytest.fixture(scope="module")
def street():
    return Kept(Street(frames=4, seed=3, size=(64, 208), cameras=2, beams=16, frames_per_drive=4, samples=1))


def write_object(street, root):
    """The front camera, the scan and the boxes in the layout of KITTI's object set."""
    for i, frame in enumerate(street.frames):
        folders = {name: root / f"training/{name}" for name in ("velodyne", "image_2", "calib", "label_2")}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        camera, name = frame.cameras[0], f"{i:06d}"
        np.column_stack([frame.points, frame.intensity]).astype("<f4").tofile(folders["velodyne"] / f"{name}.bin")
        Image.fromarray(camera.image).save(folders["image_2"] / f"{name}.png")
        still = compose(frame.lidar_to_ego, np.linalg.inv(camera.camera_to_ego))
        words = lambda values: " ".join(repr(float(v)) for v in np.ravel(values))
        p2 = np.column_stack([camera.intrinsics, np.zeros(3)])
        (folders["calib"] / f"{name}.txt").write_text(f"P2: {words(p2)}\nR0_rect: {words(np.eye(3))}\nTr_velo_to_cam: {words(still[:3])}\n")
        lines = []
        for label, center, size, yaw in zip(frame.boxes.label, frame.boxes.center, frame.boxes.size, frame.boxes.yaw):
            x, y, z = still[:3, :3] @ (center - [0, 0, size[2] / 2]) + still[:3, 3]
            ry = -yaw - np.pi / 2
            kind = CLASSES.get(street.classes[label], "Misc")
            lines.append(f"{kind} 0 0 0 0 0 9 9 {size[2]} {size[1]} {size[0]} {x} {y} {z} {ry}")
        (folders["label_2"] / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def write_depth(street, root):
    """Depth maps of 60 x 80 pixels in millimetres."""
    (root / "room").mkdir(parents=True)
    for i, frame in enumerate(street.frames):
        depth = np.where(frame.cameras[0].depth < 30, frame.cameras[0].depth, 0)[:60, 60:140]
        Image.fromarray((depth * 1000).astype(np.uint16)).save(root / f"room/{i:06d}.png")
    return root


def write_layout(layout, street, root):
    if layout == "semantickitti":
        return pytest.importorskip("xmodal.data.semantickitti_write").write_semantickitti(street, root, progress=False)
    if layout == "nuscenes":
        return pytest.importorskip("xmodal.data.nuscenes_write").write_nuscenes(street, root, progress=False)
    if layout == "kitti":
        return write_kitti(street, root, progress=False)
    return {"kitti-object": write_object, "depth": write_depth}[layout](street, root)


def opened(layout, root):
    """What `diagnose` is given: a folder and a name, or a dataset."""
    if layout == "semantickitti":
        from xmodal.data.semantickitti import SemanticKitti

        return SemanticKitti(root), layout
    if layout == "nuscenes":
        from xmodal.data.nuscenes import NuScenes

        return NuScenes(root, cache=root / "cache"), layout
    return root, layout


@pytest.fixture(scope="module")
def clean(street, tmp_path_factory):
    """The folder of each layout, written when it is first asked for."""
    written = {}

    def root(layout):
        if layout not in written:
            written[layout] = write_layout(layout, street, tmp_path_factory.mktemp(layout.replace("-", "_")) / "clean")
        return written[layout]

    return root


def told_of(layout, root, compared=0):
    """(grade, cause) of what the doctor finds; notes are left out."""
    found = diagnose(*opened(layout, root), methods=(), compared=compared, progress=False)
    assert found.code == 2 * any(f.grade == "error" for f in found.findings) or found.code == 1 * any(f.grade == "warning" for f in found.findings)
    return [(finding.grade, finding.cause) for finding in found.findings if finding.grade != "note"]


@pytest.mark.parametrize("layout", ["kitti", "kitti-object", "depth", "semantickitti", "nuscenes"])
def test_nothing_is_told_about_clean_recordings(layout, clean):
    assert told_of(layout, clean(layout), compared=0) == []


# ---- what is planted


def scan(change):
    """Changes the points (N, 4) of a scan."""

    def fault(path):
        change(np.fromfile(path, "<f4").reshape(-1, 4)).astype("<f4").tofile(path)

    return fault


def every(change):
    """The same for all scans of the drive."""

    def fault(path):
        for one in path.parent.glob("*" + path.suffix):
            change(one)

    return fault


def column(k, change):
    def changed(points):
        points = points.copy()
        points[:, k] = change(points[:, k])
        return points

    return changed


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 1])


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


def painted(value):
    return lambda path: Image.new("RGB", Image.open(path).size, (value,) * 3).save(path)


def resized(path):
    Image.open(path).resize((100, 40)).save(path)


def copied(name):
    """From another file, named from the drive."""
    return lambda path: shutil.copy(path.parents[2] / name, path)


def entry(key, change):
    """Changes the numbers of one entry of a calibration file; None removes it."""

    def fault(path):
        lines = path.read_text().splitlines()
        assert any(line.startswith(f"{key}:") for line in lines)
        kept = []
        for line in lines:
            if not line.startswith(f"{key}:"):
                kept.append(line)
            elif change is not None:
                kept.append(f"{key}: " + " ".join(map(repr, map(float, change(np.array(line.split(":")[1].split(), float))))))
        path.write_text("\n".join(kept) + "\n")
        (path.parent / "calib_rig.txt").unlink(missing_ok=True)

    return fault


def lines_of(*names, change):
    """Changes the lines of files of the drive."""

    def fault(path):
        for name in names:
            lines = (path.parents[2] / name).read_text().splitlines()
            change(lines)
            (path.parents[2] / name).write_text("\n".join(lines) + "\n")

    return fault


def set_line(k, other):
    def change(lines):
        lines[k] = other if isinstance(other, str) else lines[other]

    return change


def swap(a, b):
    def change(lines):
        lines[a], lines[b] = lines[b], lines[a]

    return change


def labels(value):
    return lambda path: np.full(path.stat().st_size // 4, value, "<u4").tofile(path)


def no_sizes(path):
    """One image is smaller, and no calibration and no truth tells the size."""
    for folder in ("proj_depth", "semantic", "instance"):
        shutil.rmtree(path.parents[2] / folder)
    calibration = path.parents[3] / "calib_cam_to_cam.txt"
    calibration.write_text("\n".join(line for line in calibration.read_text().splitlines() if not line.startswith("S_rect")))
    resized(path)


def packets(change):
    """Changes the numbers of all OXTS packets: change(number of the frame, values)."""

    def fault(path):
        for k, packet in enumerate(sorted((path.parents[2] / "oxts/data").glob("*.txt"))):
            values = np.array(packet.read_text().split(), float)
            packet.write_text(" ".join(map(repr, map(float, change(k, values)))))

    return fault


def no_labels(plant):
    """Labels would tell that there are other points now."""

    def fault(path):
        shutil.rmtree(path.parents[2] / "labels")
        plant(path)

    return fault


def late_clock(path):
    """The second camera's clock is ahead by three seconds; no poses, which would follow it."""
    shutil.rmtree(path.parents[2] / "oxts")
    stamps = path.parents[2] / "image_03/timestamps.txt"
    stamps.write_text(stamps.read_text().replace(" 00:00:0", " 00:00:3"))


def first_packet(path):
    """Every frame has the pose of the first."""
    first = sorted((path.parents[2] / "oxts/data").glob("*.txt"))[0].read_text()
    packets(lambda k, values: np.array(first.split(), float))(path)


def jump(k, values):
    values[0] += 0.01 * (k == 2)  # a kilometre to the north
    return values


def far_boxes(path):
    for one in (path.parents[2] / "boxes/data").glob("*.txt"):
        rows = [line.split() for line in one.read_text().splitlines()]
        one.write_text("".join(" ".join([*row[:4], repr(float(row[4]) + 12), *row[5:]]) + "\n" for row in rows))


def depth_in_metres(path):
    for one in (path.parents[2] / "proj_depth/groundtruth/image_02").glob("*.png"):
        Image.fromarray((np.array(Image.open(one)) // 3).astype(np.uint16)).save(one)


def upwards(path):
    """The camera looks at the sky."""
    sky = rigid(np.array([[1, 0, 0], [0, 0, 1.0], [0, -1, 0]]))
    numbers = {line.partition(":")[0]: np.array(line.partition(":")[2].split(), float) for line in path.read_text().splitlines()}
    turned_up = sky @ rigid(numbers["R"].reshape(3, 3), numbers["T"])
    words = lambda values: " ".join(map(repr, map(float, np.ravel(values))))
    path.write_text(f"R: {words(turned_up[:3, :3])}\nT: {words(turned_up[:3, 3])}\n")
    (path.parent / "calib_rig.txt").unlink()


STAMPS = ("velodyne_points/timestamps.txt", "image_02/timestamps.txt", "image_03/timestamps.txt", "oxts/timestamps.txt")
CAM, VELO, IMU = (f"{DAY}/calib_{name}.txt" for name in ("cam_to_cam", "velo_to_cam", "imu_to_velo"))
KITTI = {  # name -> file, what happens to it, grade, a part of what is told
    "scan cut short": (SCAN, cut, "error", "cut short"),
    "scan empty": (SCAN, empty, "error", "the scan is empty"),
    "scan missing": (SCAN, remove, "error", "the scan is missing"),
    "NaN points": (SCAN, scan(column(0, lambda x: np.where(np.arange(len(x)) < 9, np.nan, x))), "error", "9 of"),
    "misread bytes": (SCAN, scan(column(1, lambda y: np.where(np.arange(len(y)) < 9, 9e30, y))), "error", "farther than 2000 m"),
    "intensities to 255": (SCAN, scan(column(3, lambda i: i * 255)), "error", "full scale"),
    "image missing": (IMAGE, remove, "error", "the image is missing"),
    "image cut short": (IMAGE, cut, "error", "the image cannot be read"),
    "image of another size": (IMAGE, resized, "error", "its calibration"),
    "image of a size that nothing tells": (IMAGE, no_sizes, "error", "another size than others with the same intrinsics"),
    "rotation stretched": (VELO, entry("R", lambda r: 1.2 * r), "error", "is not a rotation"),
    "rotation mirrored": (VELO, entry("R", lambda r: -r), "error", "is not a rotation"),
    "focal length zero": (CAM, entry("P_rect_02", lambda p: 0 * p), "error", "singular"),
    "calibration with NaN": (IMU, entry("T", lambda t: t * np.nan), "error", "NaN"),
    "calibration without an entry": (CAM, entry("P_rect_02", None), "error", "P_rect_02 is missing"),
    "calibration missing": (VELO, remove, "error", "the calibration file is missing"),
    "camera that looks at the sky": (VELO, upwards, "error", "no LiDAR point falls into this camera's image"),
    "labels of another scan": (LABEL, cut, "error", "4 bytes each"),
    "nothing labelled": (LABEL, labels(0), "warning", "not one point is labelled"),
    "labels beyond the classes": (LABEL, labels(77), "error", "labels go beyond"),
    "unknown class": (f"{DRIVE}/boxes/data/0000000002.txt", lambda path: path.write_text("ufo 1 0 0 0 1 1 1 0\n"), "error", "unknown class 'ufo'"),
    "boxes elsewhere": (SCAN, far_boxes, "warning", "hold no point"),
    "packet cut short": (f"{DRIVE}/oxts/data/0000000002.txt", cut, "error", "values instead of 30"),
    "timestamps swapped": (SCAN, lines_of(*STAMPS, change=swap(1, 2)), "error", "the timestamps run backwards"),
    "timestamp repeated": (SCAN, lines_of(*STAMPS, change=set_line(2, 1)), "error", "the same timestamp as the frame before"),
    "timestamp missing": (SCAN, lines_of(*STAMPS, change=set_line(2, "")), "warning", "no timestamp, though others of the drive have one"),
    "timestamp in words": (SCAN, lines_of(STAMPS[0], change=set_line(2, "yesterday")), "error", "is no moment"),
    "camera's clock": (SCAN, late_clock, "warning", "s apart"),
    "scan copied": (SCAN, no_labels(copied("velodyne_points/data/0000000001.bin")), "warning", "the scan is the same as that of another frame"),
    "image copied": (IMAGE, copied("image_02/data/0000000001.png"), "warning", "an image is the same as that of another frame"),
    "one image for two cameras": (IMAGE, copied("image_03/data/0000000002.png"), "warning", "two cameras of the frame have the same image"),
    "image black": (IMAGE, painted(0), "warning", "the image is black"),
    "image white": (IMAGE, painted(255), "warning", "the image is white"),
    "intensity zero": (SCAN, every(scan(column(3, lambda i: 0 * i))), "warning", "the intensity is all zero"),
    "intensity constant": (SCAN, every(scan(column(3, lambda i: 0 * i + 0.5))), "warning", "the intensity is the same everywhere"),
    "pose jumps": (SCAN, packets(jump), "error", "the pose jumps"),
    "poses never change": (SCAN, first_packet, "warning", "the poses never change, but the surroundings do"),
    "half of the scanner dark": (SCAN, no_labels(scan(lambda points: points[::3])), "warning", "far fewer points than its neighbours"),
    "cloud upside down": (SCAN, every(scan(lambda points: points * np.float32([1, -1, -1, 1]))), "error", "upside down"),
    "another unit: millimetres": (SCAN, every(scan(lambda points: points * np.float32([1e3, 1e3, 1e3, 1]))), "error", "farther than 2000 m"),
    "another unit: hundred metres": (SCAN, every(scan(lambda points: points * np.float32([0.05, 0.05, 0.05, 1]))), "error", "nearly all points are within 2 m"),
    "depth maps in another unit": (SCAN, depth_in_metres, "warning", "depth maps and LiDAR disagree by a factor of 0.33"),
}  # fmt: skip
ALSO = {  # what else is true of a fault
    "cloud upside down": ("hold no point", "depth maps and LiDAR disagree", "labelled"),
    "another unit: hundred metres": ("hold no point", "depth maps and LiDAR disagree", "labelled", "far fewer", "scan is the same"),
    "scan copied": ("hold no point", "depth maps and LiDAR disagree"),
}  # fmt: skip
OTHERS = {
    "object: calibration missing": ("kitti-object", "training/calib/000001.txt", remove, "error", "the calibration file is missing"),
    "object: scan missing": ("kitti-object", "training/velodyne/000001.bin", remove, "error", "the scan is missing"),
    "object: a word among the boxes": ("kitti-object", "training/label_2/000001.txt", lambda path: path.write_text(path.read_text().replace(" 9 9 ", " 9 nine ")), "error", "a word where a number belongs"),
    "object: scan copied": ("kitti-object", "training/velodyne/000001.bin", lambda path: shutil.copy(path.with_name("000003.bin"), path), "warning", "the scan is the same"),
    "depth: a picture of it": ("depth", "room/000001.png", lambda path: Image.open(path).point(lambda v: v / 256).convert("L").save(path), "error", "8 bits are no depths"),
    "depth: nothing known": ("depth", "room/000001.png", lambda path: Image.fromarray(np.zeros((60, 80), np.uint16)).save(path), "error", "not one depth is known"),
    "depth: cut short": ("depth", "room/000001.png", cut, "error", "cannot be read"),
    "depth: copied": ("depth", "room/000001.png", lambda path: shutil.copy(path.with_name("000003.png"), path), "warning", "the scan is the same"),
    "semantickitti: poses cut short": ("semantickitti", "sequences/{}/poses.txt", lambda path: path.write_text("\n".join(path.read_text().splitlines()[:3]) + "\n"), "error", "it ends after 3 lines"),
    "semantickitti: calibration mirrored": ("semantickitti", "sequences/{}/calib.txt", entry("Tr", lambda t: -t), "error", "is not a rotation"),
    "semantickitti: labels cut short": ("semantickitti", "sequences/{}/labels/000001.label", cut, "error", "bytes"),
    "nuscenes: image missing": ("nuscenes", "samples/[!L]*/*", remove, "error", "the image is missing"),
    "nuscenes: scan cut short": ("nuscenes", "samples/LIDAR_TOP/*.bin", cut, "error", "cut short"),
}  # fmt: skip


@pytest.mark.parametrize("name", KITTI)
def test_a_planted_fault_is_found(name, clean, tmp_path):
    file, plant, grade, words = KITTI[name]
    root = shutil.copytree(clean("kitti"), tmp_path / "kitti")
    plant(root / file)
    check(told_of("kitti", root), grade, words, ALSO.get(name, ()))


@pytest.mark.parametrize("name", OTHERS)
def test_a_planted_fault_is_found_in_other_layouts(name, clean, tmp_path):
    layout, file, plant, grade, words = OTHERS[name]
    root = shutil.copytree(clean(layout), tmp_path / "copy", ignore=shutil.ignore_patterns("cache"))
    plant(sorted(root.glob(file.replace("{}", "*")))[0])
    check(told_of(layout, root), grade, words, ())


def check(found, grade, words, also):
    """It is told once, with its grade, and nothing else but what follows from it."""
    matching = [g for g, cause in found if words in cause]
    assert matching == [grade], found
    rest = [cause for _, cause in found if words not in cause and not any(part in cause for part in also)]
    assert not rest, rest


# ---- camera and LiDAR


@pytest.fixture(scope="module")
def sharp():
    """Four frames at 9 m/s with one camera, large enough to compare edges, and the street that they are from."""
    street = Street(frames=4, seed=3, size=(120, 400), cameras=1, beams=32, frames_per_drive=4, samples=1)
    return street, Kept(street)


def changed(frame, **values):
    from dataclasses import replace

    return replace(frame, cameras=[replace(frame.cameras[0], **values)])


def bumped(yaw, pitch):
    wrong = rigid(turned(np.eye(3), yaw, pitch).T)
    return lambda street, i, frame: changed(frame, camera_to_ego=compose(wrong, frame.cameras[0].camera_to_ego))


def cropped(street, i, frame):
    return changed(frame, image=np.roll(frame.cameras[0].image, -8, 1))


def delayed(seconds):
    def late(street, i, frame):
        scene = street.scene(0).at(frame.cameras[0].timestamp + seconds)
        return changed(frame, image=street.camera(0, scene, np.random.default_rng(i)).image)

    return late


@pytest.mark.parametrize(
    "plant, words",
    [
        (None, None), (bumped(1.2, 0), "off by (+"), (bumped(-2.0, 0), "off by (-"), (bumped(0, 1.0), "px (right, down), 1."),
        (cropped, "an image that was cropped or shifted"), (delayed(0.1), "ms later than their timestamps say"), (delayed(-0.1), "ms earlier than their timestamps say"),
    ],
    ids=["untouched", "turned by 1.2 degrees", "turned by -2 degrees", "pitched by 1 degree", "cropped", "100 ms late", "100 ms early"],
)  # fmt: skip
def test_calibration_and_timing_are_measured(sharp, plant, words):
    street, kept = sharp
    few = Kept.__new__(Kept)
    few.frames = [plant(street, i, frame) if plant else frame for i, frame in enumerate(kept.frames)]
    few.ids, few.classes = kept.ids, kept.classes
    found = diagnose(few, methods=(), progress=False)
    causes = [(f.grade, f.cause) for f in found.findings]
    if plant is None:
        assert causes == [] and found.alignments[0].status == "aligned" and abs(found.alignments[0].delay) < 0.03
    else:
        assert [g for g, cause in causes if words in cause] == ["warning"] and len(causes) == 1, causes


# ---- what is given back


def test_report_json_and_text(clean, tmp_path):
    root = shutil.copytree(clean("kitti"), tmp_path / "kitti")
    cut(root / SCAN)
    found = diagnose(root, methods=("slidr", "depthcontrast"), progress=False)
    assert found.code == 2 and found.content.sound == 3 and found.content.has["poses"] == 3
    text = told(found)
    assert SCAN in text and "Mend the errors" in text and "\033" not in text and max(map(len, text.splitlines())) <= 130
    assert "\033[31;1merror\033[0m" in told(found, colour=True)
    plain = json.loads(json.dumps(found.plain()))
    assert plain["findings"][0]["places"] == [SCAN] and plain["needs"][0]["superpixels"] == "slic 150" and plain["needs"][0]["disk"] > 0
    page = write_diagnosis(found, tmp_path / "page.html", "xmodal check").read_text()
    assert "cut short" in page and "src=\"http" not in page and page.count("<figure") >= 2


def test_a_sample_is_spread_and_a_folder_of_nothing_is_refused(clean, tmp_path):
    found = diagnose(clean("kitti"), sample=2, methods=(), compared=0, progress=False)
    assert [look.row for look in found.looks] == [0, 3] and found.content.frames == 4
    with pytest.raises(ValueError, match="looks like none"):
        diagnose(tmp_path)
    with pytest.raises(ValueError, match="sample"):
        diagnose(clean("kitti"), sample=0)
    (tmp_path / DRIVE / "velodyne_points").mkdir(parents=True)
    empty_one = diagnose(tmp_path, progress=False)
    assert empty_one.code == 2 and "hold no scan" in empty_one.findings[0].cause


# ---- real recordings

needs_data = pytest.mark.skipif(not (DATA / "kitti_raw").is_dir(), reason=f"no real recordings in {DATA} (KITTI is non-commercial and not shipped; set XMODAL_DATA)")


@needs_data
def test_only_what_is_true_is_told_about_real_recordings():
    raw = diagnose(DATA / "kitti_raw", methods=(), compared=4, progress=False)
    assert [(f.grade, f.cause, f.count) for f in raw.findings] == [
        ("warning", "the intensity is all zero", 20), ("note", "not recorded: timestamps, poses, labels, boxes", 33),
    ]  # fmt: skip
    assert raw.alignments[0].status == "aligned" and max(map(abs, raw.alignments[0].pixels)) < 5
    one = diagnose(DATA / "kitti_object", methods=(), progress=False)
    assert [(f.grade, f.cause) for f in one.findings] == [("note", "not recorded: timestamps, poses")]
    assert one.alignments[0].status == "aligned" and max(map(abs, one.alignments[0].pixels)) < 5


@needs_data
@pytest.mark.parametrize("yaw, pitch", [(1.2, 0), (-2, 0), (0, 0.9)])
def test_a_planted_turn_is_found_in_real_recordings(yaw, pitch):
    dataset = KittiRaw(DATA / "kitti_raw")
    frames = [bumped(yaw, pitch)(None, i, dataset[i]) for i in (0, 6, 16, 24)]
    found = align(frames, 0)
    assert found.status == "off" and np.abs(np.array(found.degrees) - [yaw, pitch]).max() < 0.35
