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


def exit_of(findings):
    grades = {finding.grade for finding in findings}
    return 2 if "error" in grades else 1 if "warning" in grades else 0


def told_of(layout, root, compared=0):
    """(grade, cause) of what the doctor finds; notes are left out."""
    found = diagnose(*opened(layout, root), methods=(), compared=compared, progress=False)
    assert found.code == exit_of(found.findings)
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
    "labels beyond the classes": (LABEL, labels(77), "error", "label ids that this benchmark does not have: 77"),
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
    "another unit: hundred metres": (SCAN, every(scan(lambda points: points * np.float32([0.05, 0.05, 0.05, 1]))), "warning", "9 of 10 points are within 2 m"),
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


@pytest.mark.parametrize("layout", ["kitti", "semantickitti", "nuscenes"])
def test_nothing_is_told_about_a_clean_calibration(layout, sharp, tmp_path):
    root = write_layout(layout, sharp[1], tmp_path / "clean")
    found = diagnose(*opened(layout, root), methods=(), compared=4, progress=False)
    assert [finding.cause for finding in found.findings if not finding.cause.startswith("not recorded")] == [] and found.code == 0
    assert [one.status for one in found.alignments] == ["aligned"]


def rolled(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def beside(frame):
    moved = frame.cameras[0].camera_to_ego.copy()
    moved[1, 3] += 0.5
    return moved


GROSS = {  # far beyond what the search reaches
    "turned by 5 degrees": lambda frame, other: changed(frame, camera_to_ego=frame.cameras[0].camera_to_ego @ rigid(turned(np.eye(3), 5, 0).T)),
    "turned by -8 degrees": lambda frame, other: changed(frame, camera_to_ego=frame.cameras[0].camera_to_ego @ rigid(turned(np.eye(3), -8, 0).T)),
    "pitched by 3 degrees": lambda frame, other: changed(frame, camera_to_ego=frame.cameras[0].camera_to_ego @ rigid(turned(np.eye(3), 0, 3).T)),
    "rolled by 2 degrees": lambda frame, other: changed(frame, camera_to_ego=frame.cameras[0].camera_to_ego @ rigid(rolled(2))),
    "focal length of 0.8": lambda frame, other: changed(frame, intrinsics=frame.cameras[0].intrinsics * [[0.8], [0.8], [1]] + [[0, 0, 0.2 * frame.cameras[0].intrinsics[0, 2]], [0, 0, 0.2 * frame.cameras[0].intrinsics[1, 2]], [0, 0, 0]]),
    "half a metre beside": lambda frame, other: changed(frame, camera_to_ego=beside(frame)),
    "mirrored": lambda frame, other: changed(frame, image=np.ascontiguousarray(frame.cameras[0].image[:, ::-1])),
    "images of others": lambda frame, other: changed(frame, image=other.cameras[0].image),
}  # fmt: skip


def gross(name, frames, others):
    wrong = Kept.__new__(Kept)
    wrong.frames = [GROSS[name](frame, other) for frame, other in zip(frames, others)]
    wrong.ids, wrong.classes = [frame.id for frame in frames], ("unlabelled",) * 256
    found = diagnose(wrong, methods=(), progress=False)
    told = [f.cause for f in found.findings if f.grade == "warning" and ("is this calibration of these images?" in f.cause or "off by" in f.cause)]
    assert len(told) == 1 and found.code == 1, [f.cause for f in found.findings]
    return told[0]


@pytest.mark.parametrize("name", GROSS)
def test_a_grossly_wrong_calibration_is_told(name, sharp):
    frames = sharp[1].frames
    others = list(Street(frames=4, seed=53, size=(120, 400), cameras=1, beams=16, frames_per_drive=4, samples=1)) if name == "images of others" else frames
    assert "nothing lines up" in gross(name, frames, others)


def test_one_bumped_drive_among_others_is_named(sharp):
    from dataclasses import replace

    monday, tuesday = ([replace(frame, id=f"{day}/{i}") for i, frame in enumerate(sharp[1].frames)] for day in ("monday", "tuesday"))
    mixed = Kept.__new__(Kept)
    mixed.frames = monday + [bumped(2, 0)(None, 0, frame) for frame in tuesday[:3]]
    mixed.ids, mixed.classes = [frame.id for frame in mixed.frames], sharp[1].classes
    found = diagnose(mixed, methods=(), progress=False)
    told = [f.cause for f in found.findings if f.grade == "warning" and "in tuesday: off by" in f.cause]
    assert len(told) == 1 and found.code == 1 and "3 frames" in told[0], [f.cause for f in found.findings]
    json.dumps(found.plain())


def test_a_standing_vehicle_is_one_scene(sharp):
    wrong = bumped(2, 0)(None, 0, sharp[1].frames[0])
    found = align([wrong] * 8)
    assert found.scenes == 1 and found.status == "cannot tell"
    assert align([bumped(2, 0)(None, 0, frame) for frame in sharp[1].frames[:2]]).status == "off"


# ---- what is given back


def exit_code(*args):
    from xmodal.cli import main

    try:
        return main(["check", *map(str, args)])
    except SystemExit as ended:
        return ended.code


def test_exit_codes_of_the_command(clean, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("xmodal.doctor.needs_of", lambda *args: [])
    root = shutil.copytree(clean("kitti"), tmp_path / "kitti")
    assert exit_code(root) == 0 and "Nothing stands in the way" in capsys.readouterr().out
    painted(0)(root / IMAGE)
    assert exit_code(root) == 1 and "Look at the warnings" in capsys.readouterr().out
    cut(root / SCAN)
    assert exit_code(root, "--json", tmp_path / "found.json") == 2 and "Mend the errors" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())["code"] == 2


def test_a_part_that_breaks_loses_no_findings(clean, tmp_path, monkeypatch):
    root = shutil.copytree(clean("kitti"), tmp_path / "kitti")
    cut(root / SCAN)

    def broken(*args):
        raise ZeroDivisionError("by chance")

    for name in ("align", "needs_of"):
        monkeypatch.setattr(f"xmodal.doctor.{name}", broken)
    found = diagnose(root, methods=("slidr",), progress=False)
    causes = [f.cause for f in found.findings]
    assert found.code == 2 and "cut short" in causes[0] and sum("(ZeroDivisionError: by chance)" in cause for cause in causes) == 2
    assert "by chance" in told(found)


def test_steps_are_those_of_the_frames_that_are_trained_on(clean, monkeypatch):
    from xmodal.needs import Needs

    asked = []
    monkeypatch.setattr("xmodal.doctor.needs_of", lambda *args: asked.append(args) or [Needs("slidr", "small", batch_size=2)])
    found = diagnose(clean("kitti"), methods=("slidr",), compared=0, progress=False)
    assert asked[0][1:3] == (3, 8)  # of four frames one is held out; all images are prepared
    assert "without activations" in told(found)


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


def rellis(tmp_path):
    source, drive, stem = DATA / "rellis3d/example", tmp_path / "Rellis-3D/00000", "frame000104-1581624663_149"
    for folder, name in (("os1_cloud_node_kitti_bin", "000104.bin"), ("pylon_camera_node", f"{stem}.jpg"), (".", "camera_info.txt"), (".", "transforms.yaml")):
        (drive / folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, drive / folder / name)
    return tmp_path


def nuscenes(tmp_path):
    from test_datasets_nuscenes import real_key_frame

    (tmp_path / "root").mkdir()
    real_key_frame(tmp_path / "root")
    return tmp_path / "root"


@needs_data
@pytest.mark.parametrize("root_of, cameras", [(rellis, 1), (nuscenes, 6), (lambda _: DATA / "argoverse2", 0)], ids=["rellis", "nuscenes", "argoverse2"])
def test_no_warning_of_other_real_recordings(root_of, cameras, tmp_path):
    found = diagnose(root_of(tmp_path), methods=(), progress=False)
    assert [(f.grade, f.cause) for f in found.findings if f.grade != "note"] == [] and found.code == 0
    assert len(found.alignments) == cameras and {one.status for one in found.alignments} <= {"aligned", "cannot tell"}


@needs_data
@pytest.mark.parametrize("name", ["turned by -8 degrees", "pitched by 3 degrees", "mirrored", "images of others"])
def test_a_grossly_wrong_calibration_is_told_of_real_recordings(name):
    dataset = KittiRaw(DATA / "kitti_raw")
    assert "nothing lines up" in gross(name, [dataset[i] for i in (13, 19, 25, 31)], [dataset[i] for i in (0, 3, 6, 9)])


@needs_data
@pytest.mark.parametrize("yaw, pitch", [(1.2, 0), (-2, 0), (0, 0.9)])
def test_a_planted_turn_is_found_in_real_recordings(yaw, pitch):
    dataset = KittiRaw(DATA / "kitti_raw")
    frames = [bumped(yaw, pitch)(None, i, dataset[i]) for i in (0, 6, 16, 24)]
    found = align(frames, 0)
    assert found.status == "off" and np.abs(np.array(found.degrees) - [yaw, pitch]).max() < 0.35
