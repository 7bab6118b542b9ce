"""The two layouts of the Waymo Open Dataset, written independently of the readers: tables with pyarrow, records with google.protobuf."""

import zlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

SEGMENT, BASE = "10023947602400723454_1120_000_1140_000", 1_553_629_304_273_000  # a name and microseconds as they look there
LIDARS, CAMERAS = ("TOP", "FRONT", "SIDE_LEFT", "SIDE_RIGHT", "REAR"), ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "SIDE_LEFT", "SIDE_RIGHT")
LENS = ("f_u", "f_v", "c_u", "c_v", "k1", "k2", "p1", "p2", "k3")
TO_WAYMO = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])  # x forward, y left, z up -> optical


def rigid(angles=(0, 0, 0), place=(0, 0, 0)):
    "Roll, pitch, yaw in radians and a place."
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Rotation.from_euler("xyz", angles).as_matrix(), place
    return matrix


def coded(pixels, kind, **how):
    "An image's file."
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **how)
    return buffer.getvalue()


# ---- what a frame holds: plain dicts, in Waymo's frames -------------------------------------------------------------------------------------


def points(moment, name, echo=0):
    "The points of a range image in the vehicle's frame, row after row, as the publication words it."
    lasers = moment["lasers"][name]
    image, table, extrinsic = lasers["returns"][echo], lasers["beams"], lasers["extrinsic"]
    height, width = image.shape[:2]
    if table is None:
        low, high = lasers["limits"]
        table = np.array([low + (k + 0.5) * (high - low) / height for k in range(height)])
    row, column = np.argwhere(image[..., 0] > 0).T
    up = table[height - 1 - row]  # tables begin with the lowest beam, images with the highest
    mounted = np.arctan2(extrinsic[1, 0], extrinsic[0, 0])
    around = ((width - column - 0.5) / width * 2 - 1) * np.pi - mounted
    ahead = np.zeros((len(row), 3))
    ahead[:, 0] = image[row, column, 0]
    p = Rotation.from_euler("ZY", np.column_stack([around, -up])).apply(ahead)  # turned down by -up, then to the left by around
    p = Rotation.from_matrix(extrinsic[:3, :3]).apply(p) + extrinsic[:3, 3]
    if lasers["poses"] is not None:
        cell = lasers["poses"][row, column].astype(np.float64)
        in_world = Rotation.from_euler("xyz", cell[:, :3]).apply(p) + cell[:, 3:]
        p = (np.linalg.inv(moment["pose"]) @ np.column_stack([in_world, np.ones(len(p))]).T).T[:, :3]
    return p


def seen_by(frame, height=80, width=1800, speed=8.0, turn=0.2):
    "A street's cloud as a turning LiDAR on a moving vehicle would have stored it: the nearest cells, and the pose of every cell."
    extrinsic = rigid((0, 0, np.deg2rad(148)), frame.lidar_to_ego[:3, 3])
    lasers = {"extrinsic": extrinsic, "beams": np.deg2rad(np.linspace(-20, 20, height)), "limits": (-0.3, 0.3)}
    seconds = 0.1 * ((np.arange(width) + 0.5) / width - 0.5)
    moved = [frame.ego_to_world @ rigid((0, 0, turn * t), (speed * t, 0, 0)) for t in seconds]  # column by column
    poses = np.stack([[*Rotation.from_matrix(m[:3, :3]).as_euler("xyz"), *m[:3, 3]] for m in moved]).astype(np.float32)
    lasers["poses"] = np.ascontiguousarray(np.broadcast_to(poses, (height, width, 6)))
    world = np.column_stack([frame.points, np.ones(len(frame.points))]) @ (frame.ego_to_world @ frame.lidar_to_ego).T
    column = np.full(len(world), width // 2)
    for _ in range(6):  # the direction tells the column, the column the moment, the moment the direction
        before = column
        back = np.linalg.inv(np.array(moved))[column]
        p = np.einsum("nij,nj->ni", back, world) @ np.linalg.inv(extrinsic @ rigid((0, 0, -np.deg2rad(148)))).T
        column = np.floor((np.pi - np.arctan2(p[:, 1], p[:, 0])) / (2 * np.pi) * width).astype(int) % width
    seen = column == before  # not what passes from the last column to the first, where the turn begins and ends
    column, p = column[seen], p[seen]
    far = np.linalg.norm(p[:, :3], axis=1)
    row = np.abs(lasers["beams"][::-1, None] - np.arcsin(p[:, 2] / far)).argmin(0)
    image, labels = np.full((height, width, 4), -1, np.float32), np.zeros((height, width, 2), np.int32)
    image[row, column] = np.stack([far, np.arctanh(0.99 * frame.intensity[seen]), 0.1 * far, 0 * far - 1], 1)
    labels[row, column] = np.stack([frame.instance, frame.semantic], 1)[seen]
    return lasers | {"returns": [image], "labels": [labels]}


def of_street(street, i):
    "A frame of the street."
    frame = street[i]
    moment = {"segment": SEGMENT, "time": BASE + round(1e6 * frame.timestamp), "pose": frame.ego_to_world, "lasers": {"TOP": seen_by(frame)}, "cameras": {}}
    for name, camera in zip(CAMERAS, frame.cameras):
        k = camera.intrinsics
        moment["cameras"][name] = {
            "jpeg": coded(camera.image, "jpeg", quality=95), "pose": camera.ego_to_world, "time": 1e-6 * BASE + camera.timestamp,
            "lens": [k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5, 0, 0, 0, 0, 0], "extrinsic": camera.camera_to_ego @ TO_WAYMO,
            "size": camera.size, "divisor": 1000, "panoptic": coded((1000 * camera.semantic + camera.instance).astype(np.uint16), "png"),
        }  # fmt: skip
    boxes = frame.boxes
    moment["boxes"] = [
        (*(boxes.center[k] + frame.lidar_to_ego[:3, 3]), *boxes.size[k], boxes.yaw[k], int(boxes.label[k]), str(boxes.instance[k])) for k in range(len(boxes))
    ]
    return moment


def at_random(rng, cameras=CAMERAS[:2], lidars=LIDARS, time=BASE):
    "A frame of noise in all parts that the layouts know, with the classes of the publication."
    pose = rigid(rng.uniform(-0.1, 0.1, 3) + [0, 0, rng.uniform(-3, 3)], rng.uniform(-3000, 3000, 3))
    moment = {"segment": SEGMENT, "time": time, "pose": pose, "lasers": {}, "cameras": {}}
    for name in lidars:
        height, width = rng.integers(2, 9), rng.integers(2, 30)
        shape, top = (height, width), name == "TOP"
        returns = [np.float32(rng.gamma(1, 1, (*shape, 4)) * [20, 5, 1, 1]) for _ in range(2)]
        for image in returns:
            image[rng.uniform(size=shape) < 0.5] = -1
        returns[0][0, 0] = 12.5, 3e4, 0, -1  # at least one, as bright as a retro-reflector
        near = np.array([rng.normal(0, 0.01, 6) + [*Rotation.from_matrix(pose[:3, :3]).as_euler("xyz"), *pose[:3, 3]] for _ in range(height * width)])
        moment["lasers"][name] = {
            "extrinsic": rigid(rng.uniform(-3, 3, 3) * [0.02, 0.02, 1], rng.uniform(-2, 2, 3)), "returns": returns, "limits": (-0.6, 0.1),
            "beams": np.sort(rng.uniform(-0.4, 0.2, height)) if top else None,
            "poses": np.float32(near).reshape(height, width, 6) if top else None,
            "labels": [np.stack([rng.integers(0, 500, shape), rng.integers(0, 23, shape)], -1).astype(np.int32) if top else None for _ in returns],
        }  # fmt: skip
    for name in cameras:
        size = tuple(int(n) for n in rng.integers(20, 60, 2))
        moment["cameras"][name] = {
            "jpeg": coded(rng.integers(0, 256, (*size, 3)).astype(np.uint8), "jpeg"), "pose": rigid(rng.uniform(-3, 3, 3), rng.uniform(-3000, 3000, 3)),
            "time": 1e-6 * time + rng.uniform(0, 0.1), "lens": [*rng.uniform(20, 60, 2), *rng.uniform(10, 30, 2), *rng.normal(0, 0.01, 5)],
            "extrinsic": rigid(rng.uniform(-3, 3, 3), rng.uniform(-2, 2, 3)), "size": size, "divisor": 1000,
            "panoptic": coded((1000 * rng.integers(0, 29, size) + rng.integers(0, 1000, size)).astype(np.uint16), "png"),
        }  # fmt: skip
    letters = "abcXYZ0123456789-_"
    moment["boxes"] = [
        (*rng.uniform(-50, 50, 3), *rng.uniform(0.1, 5, 3), rng.uniform(-3.1, 3.1), int(rng.integers(0, 5)), "x" + "".join(rng.choice(list(letters), 21)))
        for _ in range(rng.integers(0, 6))
    ]
    return moment


# ---- release 2: tables ----------------------------------------------------------------------------------------------------------------------


def tables(moments):
    "The published schema: component -> pyarrow table."
    import pyarrow as pa

    i8, i32, i64, f32, f64, text = pa.int8(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string()
    matrix = pa.list_(f64, 16)

    def table(title, columns, rows):
        names = [name if name.startswith("key.") else f"[{title}].{name}" for name in columns]
        return pa.table({name: pa.array([row[k] for row in rows], kind) for k, (name, kind) in enumerate(zip(names, columns.values()))})

    def images(returns, kind):
        return {f"range_image_return{k + 1}.{what}": of for k in range(returns) for what, of in (("values", pa.list_(kind)), ("shape", pa.list_(i32, 3)))}

    def stored(parts):
        return [x for part in parts for x in ((None, None) if part is None else (part.ravel(), part.shape))]

    segment = {"key.segment_context_name": text}
    frame = segment | {"key.frame_timestamp_micros": i64}
    keyed = [(m, (m["segment"], m["time"])) for m in moments]
    lasers = [((*key, LIDARS.index(name) + 1), part) for m, key in keyed for name, part in m["lasers"].items()]
    cameras = [((*key, CAMERAS.index(name) + 1), part) for m, key in keyed for name, part in m["cameras"].items()]
    laser, camera = frame | {"key.laser_name": i8}, frame | {"key.camera_name": i8}
    first = moments[0]
    return {
        "vehicle_pose": table("VehiclePoseComponent", frame | {"world_from_vehicle.transform": matrix}, [(*key, m["pose"].ravel()) for m, key in keyed]),
        "lidar": table("LiDARComponent", laser | images(2, f32), [(*key, *stored([*part["returns"], None][:2])) for key, part in lasers]),
        "lidar_pose": table("LiDARPoseComponent", laser | images(1, f32), [(*key, *stored([part["poses"]])) for key, part in lasers if part["poses"] is not None]),
        "lidar_segmentation": table(
            "LiDARSegmentationLabelComponent", laser | images(2, i32), [(*key, *stored([*part["labels"], None][:2])) for key, part in lasers if part["labels"][0] is not None]
        ),
        "lidar_calibration": table(
            "LiDARCalibrationComponent",
            segment | {"key.laser_name": i8, "extrinsic.transform": matrix, "beam_inclination.min": f64, "beam_inclination.max": f64, "beam_inclination.values": pa.list_(f64)},
            [(first["segment"], LIDARS.index(name) + 1, part["extrinsic"].ravel(), *part["limits"], part["beams"]) for name, part in first["lasers"].items()],
        ),
        "camera_image": table(
            "CameraImageComponent",
            camera | {"image": pa.binary(), "pose.transform": matrix, "velocity.linear_velocity.x": f32, "pose_timestamp": f64},
            [(*key, part["jpeg"], part["pose"].ravel(), 0.0, part["time"]) for key, part in cameras],
        ),
        "camera_calibration": table(
            "CameraCalibrationComponent",
            segment | {"key.camera_name": i8} | {f"intrinsic.{name}": f64 for name in LENS} | {"extrinsic.transform": matrix, "width": i32, "height": i32},
            [(first["segment"], CAMERAS.index(name) + 1, *part["lens"], part["extrinsic"].ravel(), *part["size"][::-1]) for name, part in first["cameras"].items()],
        ),
        "camera_segmentation": table(
            "CameraSegmentationLabelComponent",
            camera | {"panoptic_label_divisor": i32, "panoptic_label": pa.binary()},
            [(*key, part["divisor"], part["panoptic"]) for key, part in cameras if part["panoptic"]],
        ),
        "lidar_box": table(
            "LiDARBoxComponent",
            frame | {"key.laser_object_id": text} | {f"box.{what}.{axis}": f64 for what in ("center", "size") for axis in "xyz"} | {"box.heading": f64, "type": i8},
            [(*key, name, *numbers, kind) for m, key in keyed for *numbers, kind, name in m["boxes"]],
        ),
    }


def write_tables(root, moments, split="training", rows=3):
    "A segment of release 2, its rows in no order."
    import pyarrow.parquet as pq

    for component, table in tables(moments).items():
        path = Path(root) / split / component / f"{moments[0]['segment']}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        if component != "lidar_box":  # whose order is that of the boxes
            table = table.take(np.random.default_rng(0).permutation(len(table)))
        pq.write_table(table, path, row_group_size=rows)
    return Path(root)


# ---- release 1: records ---------------------------------------------------------------------------------------------------------------------

SCHEMA = """
MatrixShape: dims 1 int32*
MatrixFloat: data 1 float*packed, shape 2 MatrixShape
MatrixInt32: data 1 int32*packed, shape 2 MatrixShape
Transform: transform 1 double*
Velocity: v_x 1 float, w_z 6 double
CameraCalibration: name 1 int32, intrinsic 2 double*, extrinsic 3 Transform, width 4 int32, height 5 int32, rolling_shutter_direction 6 int32
LaserCalibration: name 1 int32, beam_inclinations 2 double*, beam_inclination_min 3 double, beam_inclination_max 4 double, extrinsic 5 Transform
Stats: time_of_day 2 string, location 3 string
Context: name 1 string, camera_calibrations 2 CameraCalibration*, laser_calibrations 3 LaserCalibration*, stats 4 Stats
RangeImage: range_image_compressed 2 bytes, camera_projection_compressed 3 bytes, range_image_pose_compressed 4 bytes, segmentation_label_compressed 6 bytes
CameraSegmentationLabel: panoptic_label_divisor 1 int32, panoptic_label 2 bytes, sequence_id 4 string
CameraImage: name 1 int32, image 2 bytes, pose 3 Transform, velocity 4 Velocity, pose_timestamp 5 double, shutter 6 double, camera_segmentation_label 10 CameraSegmentationLabel
Laser: name 1 int32, ri_return1 2 RangeImage, ri_return2 3 RangeImage
Box: center_x 1 double, center_y 2 double, center_z 3 double, width 4 double, length 5 double, height 6 double, heading 7 double
Label: box 1 Box, type 3 int32, id 4 string, num_lidar_points_in_box 7 int32
Frame: context 1 Context, timestamp_micros 2 int64, pose 3 Transform, images 4 CameraImage*, lasers 5 Laser*, laser_labels 6 Label*
"""  # of dataset.proto and label.proto; enums as int32, which are stored the same way


@lru_cache(maxsize=1)
def message_classes():
    "The messages, as protobuf itself makes them from their descriptors."
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="waymo.proto", package="w", syntax="proto2")
    for line in SCHEMA.split("\n")[1:-1]:
        title, _, entries = line.partition(": ")
        message = file.message_type.add(name=title)
        for entry in entries.split(", "):
            name, number, kind = entry.split(" ")
            kind, repeated, packed = kind.partition("*")
            entry = message.field.add(name=name, number=int(number), label=3 if repeated else 1)
            if packed:
                entry.options.packed = True
            if kind[0].isupper():
                entry.type, entry.type_name = 11, f".w.{kind}"
            else:
                entry.type = getattr(entry, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"w.{message.name}")) for message in file.message_type}


def frame_message(moment):
    "A Frame."
    kinds = message_classes()

    def matrix(values):
        if values is None:
            return None
        message = kinds["MatrixFloat" if values.dtype.kind == "f" else "MatrixInt32"](data=values.ravel().tolist())
        message.shape.dims.extend(values.shape)
        return zlib.compress(message.SerializeToString())

    transform = lambda m: kinds["Transform"](transform=np.ravel(m).tolist())
    frame = kinds["Frame"](timestamp_micros=moment["time"], pose=transform(moment["pose"]))
    frame.context.name, frame.context.stats.location = moment["segment"], "location_sf"
    for name, part in moment["cameras"].items():
        number = CAMERAS.index(name) + 1
        frame.context.camera_calibrations.add(
            name=number, intrinsic=part["lens"], extrinsic=transform(part["extrinsic"]), height=part["size"][0], width=part["size"][1], rolling_shutter_direction=2
        )
        image = frame.images.add(name=number, image=part["jpeg"], pose=transform(part["pose"]), pose_timestamp=part["time"], shutter=0.01)
        image.velocity.w_z = 0.1
        if part["panoptic"]:
            image.camera_segmentation_label.panoptic_label_divisor = part["divisor"]
            image.camera_segmentation_label.panoptic_label = part["panoptic"]
    for name, part in moment["lasers"].items():
        number = LIDARS.index(name) + 1
        limits = dict(zip(("beam_inclination_min", "beam_inclination_max"), part["limits"]))
        frame.context.laser_calibrations.add(name=number, beam_inclinations=[] if part["beams"] is None else part["beams"].tolist(), extrinsic=transform(part["extrinsic"]), **limits)
        laser = frame.lasers.add(name=number)
        for k, (image, labels) in enumerate(zip(part["returns"], part["labels"])):
            echo = (laser.ri_return1, laser.ri_return2)[k]
            echo.range_image_compressed = matrix(image)
            if k == 0 and part["poses"] is not None:
                echo.range_image_pose_compressed = matrix(part["poses"])
            if labels is not None:
                echo.segmentation_label_compressed = matrix(labels)
    for x, y, z, length, width, height, heading, kind, name in moment["boxes"]:
        box = kinds["Box"](center_x=x, center_y=y, center_z=z, length=length, width=width, height=height, heading=heading)
        frame.laser_labels.add(box=box, type=kind, id=name, num_lidar_points_in_box=3)
    return frame


CRC = []
for _octet in range(256):
    for _ in range(8):
        _octet = _octet >> 1 ^ (0x82F63B78 if _octet & 1 else 0)
    CRC.append(_octet)


def checksum(data):
    "Masked CRC-32C, byte by byte."
    crc = 0xFFFFFFFF
    for octet in data:
        crc = crc >> 8 ^ CRC[(crc ^ octet) & 255]
    crc ^= 0xFFFFFFFF
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def record(content):
    "One record of a TFRecord file."
    length = len(content).to_bytes(8, "little")
    return length + checksum(length) + content + checksum(content)


def write_records(root, moments, split="training"):
    "A segment of release 1."
    path = Path(root) / split / f"segment-{moments[0]['segment']}_with_camera_labels.tfrecord"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(record(frame_message(m).SerializeToString()) for m in moments))
    return Path(root)
