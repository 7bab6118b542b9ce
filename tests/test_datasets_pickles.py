"""Argoverse 2, PandaSet and the pickles of strangers: files of the official layouts by writers of their own -> read -> identical; damaged -> one clear BadData."""

import contextlib
import datetime
import functools
import gzip
import json
import os
import pickle
import sys
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import feather
from scipy.spatial import cKDTree

from xmodal.data.argoverse2 import CLASSES as AV2_CLASSES
from xmodal.data.argoverse2 import RING, UNSCORED, Argoverse2
from xmodal.data.pandaset import CAMERAS, PandaSet
from xmodal.data.pandaset import CLASSES as PANDASET_CLASSES
from xmodal.data.pickles import Table, read_pickle
from xmodal.frame import BadData
from xmodal.projection import compose, inverse, transform

DATA = Path(os.environ.get("XMODAL_DATA", Path(__file__).parents[2] / "shared/data"))
real = pytest.mark.skipif(not (DATA / "argoverse2").is_dir(), reason=f"no real recordings in {DATA} (non-commercial, not shipped; set XMODAL_DATA)")


def turn(w, x, y, z):
    """A rotation, by the textbook formula."""
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def random_pose(rng, spread=1.0, upright=False):
    """A unit quaternion w x y z, a translation, and the (4, 4) matrix of both."""
    q = rng.normal(size=4) * ([1, 0, 0, 1] if upright else [1, 0.1, 0.1, 1])
    q, t = q / np.linalg.norm(q), rng.normal(size=3) * spread
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn(*q), t
    return q, t, matrix


def assert_refused(make, *words):
    with pytest.raises(BadData) as fault:
        make()
    for word in words:
        assert str(word) in str(fault.value), fault.value
    assert str(fault.value).count("; ") >= 1  # cause; mend


# ---- pickles


def write(path, data):
    path.write_bytes(data)
    return path


numbers = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), st.dates(), st.datetimes(), st.timedeltas())
arrays = st.builds(
    lambda kind, shape, seed: (np.random.default_rng(seed).random(shape) * 100).astype(kind),
    st.sampled_from(["f4", "f8", ">f8", "i2", "i8", "u1", "?", "c16", "U3", "S5", "M8[ns]", "O"]),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.integers(0, 99),
)
things = st.recursive(
    numbers | arrays,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3) | st.sets(st.integers(), max_size=3),
    max_leaves=8,
)


def assert_same(found, wanted):
    if isinstance(wanted, np.ndarray):
        assert isinstance(found, np.ndarray) and found.dtype == wanted.dtype and found.shape == wanted.shape
        assert np.array_equal(found, wanted)
    elif isinstance(wanted, (list, tuple)):
        assert type(found) is type(wanted) and len(found) == len(wanted)
        for pair in zip(found, wanted):
            assert_same(*pair)
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            assert_same(found[key], wanted[key])
    else:
        assert found == wanted and type(found) is type(wanted)


@settings(max_examples=60, deadline=None)
@given(thing=things, protocol=st.integers(0, 5), packed=st.booleans())
def test_data_comes_back(tmp_path_factory, thing, protocol, packed):
    data = pickle.dumps(thing, protocol)
    path = write(tmp_path_factory.mktemp("p") / "a.pkl", gzip.compress(data) if packed else data)
    assert_same(read_pickle(path), thing)


def test_numpy_numbers_and_orders(tmp_path):
    thing = [np.float32(1.5), np.int64(-3), np.bool_(True), np.datetime64("2020-02-02T01:02:03", "s"), np.asfortranarray(np.arange(6).reshape(2, 3))]
    thing += [np.arange(12).reshape(3, 4)[::2, ::2], datetime.timezone.utc, slice(1, None, 2), 2j, frozenset({1}), bytearray(b"ab")]
    for protocol in range(2, 6):
        found = read_pickle(write(tmp_path / "a.pkl", pickle.dumps(thing, protocol)))
        assert_same(found[:-1], thing[:-1])
        assert found[-1] == b"ab"
    # the names that numpy 1 and Python 2 used
    data = pickle.dumps(thing[:-1], 2).replace(b"cnumpy._core.", b"cnumpy.core.")
    assert b"cnumpy.core.multiarray" in data and b"__builtin__" in data
    assert_same(read_pickle(write(tmp_path / "a.pkl", data)), thing[:-1])


class Call:
    """Pickles to a call."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


def witness_calls(witness):
    """Pickles that would leave a file, each with the name that it must be refused for."""
    touch = f"touch {witness}"
    opened = f"open({str(witness)!r}, 'w').close()"
    system = f"cos\nsystem\n(V{touch}\n"
    text = lambda value: b"X" + len(value).to_bytes(4, "little") + value.encode()
    return {
        "system": ("posix.system", pickle.dumps(Call(os.system, (touch,)))),
        "eval": ("builtins.eval", pickle.dumps({"x": [Call(eval, (opened,))]})),
        "exec": ("builtins.exec", pickle.dumps((1, Call(exec, (opened,))), 5)),
        "python 2": ("__builtin__.eval", pickle.dumps(Call(eval, (opened,)), 0)),
        "getattr": ("builtins.getattr", pickle.dumps(Call(getattr, (Call(__import__, ("os",)), "system")))),
        "in objects of an array": ("posix.system", pickle.dumps(np.array([Call(os.system, (touch,)), 1], object))),
        "partial": ("posix.system", pickle.dumps(Call(functools.partial(os.system, touch), ()), 4)),
        "old instance": ("os system", f"(V{touch}\nios\nsystem\n.".encode()),
        "old object": ("os.system", f"(cos\nsystem\nV{touch}\no.".encode()),
        "by stack": ("os.system", b"\x80\x04" + text("os") + text("system") + b"\x93" + text(touch) + b"\x85R."),
        "dotted": ("numpy.f2py.os.system", b"\x80\x04" + text("numpy") + text("f2py.os.system") + b"\x93" + text(touch) + b"\x85R."),
        "through numpy": ("numpy.f2py.diagnose.run", b"cnumpy.f2py.diagnose\nrun\n)R."),
        "numpy's own unpickling": ("numpy.load", b"cnumpy\nload\n(V/tmp/x\nI00\nI01\ntR."),
        "through pandas": ("pandas.io.pickle.read_pickle", f"cpandas.io.pickle\nread_pickle\n(V{witness}\ntR.".encode()),
        "through copyreg": ("copyreg._reconstructor", f"ccopyreg\n_reconstructor\n({system}tRtR.".encode()),
        "extension": ("EXT1", b"\x80\x02\x82\x01)R."),
        "persistent": ("PERSID", b"Psomething\n."),
        "buffer outside": ("NEXT_BUFFER", b"\x80\x05\x97."),
        "apply": ("builtins.map", f"cbuiltins\nmap\n({system}tR](V{touch}\natR.".encode()),
        "type": ("builtins.type", b"cbuiltins\ntype\n(Va\n)}tR."),
        "object number": ("object", b"\x80\x03cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n(X\x01\x00\x00\x00OK\x00K\x01tRC\x0ecos\nsystem\n)R.\x86R."),
    }


@pytest.mark.parametrize("attack", witness_calls("x"))
def test_nothing_is_run(tmp_path, attack):
    name, data = witness_calls(tmp_path / "witness")[attack]
    assert_refused(lambda: read_pickle(write(tmp_path / "evil.pkl", data)), "evil.pkl", name, "nothing of it was run")
    assert not (tmp_path / "witness").exists()


def test_allowed_names_cannot_be_misused(tmp_path):
    """Calls of names on the list with arguments that are not theirs, and states put where none belongs."""
    dtype = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8tR"
    for data in (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(K\x00tC\x01btR.",  # never given a shape
        b"cnumpy\nndarray\n(K\x05tR.",  # named, never called
        b"cfunctools\npartial\n(cpandas.core.internals.blocks\nnew_block\ntR.",
        b"cnumpy\ndtype\n(X\x05\x00\x00\x00i4,i4tR.",  # records
        b"cnumpy\ndtype\n(X\x03\x00\x00\x00V99tR.",
        b"\x80\x03cnumpy.core.multiarray\nscalar\n" + dtype + b"C\x04abcd\x86R.",  # too few bytes
        b"\x80\x05cnumpy.core.numeric\n_frombuffer\n(C\x08abcdefgh" + dtype + b"(J\xff\xff\xff\x7ftX\x01\x00\x00\x00CtR.",  # too large a shape
        b"cbuiltins\nset\n}Va\nVb\nsb.",  # a state for a name
        b"]}Va\nVb\nsb.",  # a state for a list
        b"\x80\x02]q\x00h\x00a.",  # a list in itself
        b"cpandas.core.indexes.base\n_new_Index\n(cpandas.core.indexes.range\nRangeIndex\n}(Vstart\nI0\nVstop\nL999999999999999L\nVstep\nI1\nutR.",
        b"cbuiltins\nbytearray\n(I999999999999\ntR.",
        b"I1\nI2\n.",
        b"(I1\n.",
        b"t.", b"R.", b"a.", b".", b"", b"hello",
    ):  # fmt: skip
        assert_refused(lambda: print(read_pickle(write(tmp_path / "odd.pkl", data))), "odd.pkl")


def test_damage_is_told(tmp_path):
    rng = np.random.default_rng(0)
    data = pickle.dumps({"a": rng.random((2, 3)), "b": ["x", 1, None, (2.5,)], "c": np.array(["y"], object)}, 4)
    for end in range(len(data)):
        assert_refused(lambda: read_pickle(write(tmp_path / "cut.pkl", data[:end])), "cut.pkl")
    for _ in range(200):  # a value or a BadData, and nothing else
        spoiled = bytearray(data)
        spoiled[rng.integers(len(data))] = rng.integers(256)
        with contextlib.suppress(BadData):
            read_pickle(write(tmp_path / "spoiled.pkl", bytes(spoiled)))
    packed = gzip.compress(data)
    assert_refused(lambda: read_pickle(write(tmp_path / "cut.pkl.gz", packed[:-12])), "cut.pkl.gz")
    assert_refused(lambda: read_pickle(tmp_path / "absent.pkl"), "absent.pkl", "no such file")
    bomb = write(tmp_path / "bomb.pkl.gz", gzip.compress(pickle.dumps(bytes(10**7))))
    assert_refused(lambda: read_pickle(bomb, most=10**6), "bomb.pkl.gz", "more than 1000000 bytes")
    assert len(read_pickle(bomb)) == 10**7


def test_small_pickles_stay_small(tmp_path):
    """Indices of 300 million rows in a few bytes, one text turned into bytes a thousand times, a table of many columns of nothing."""
    import resource

    index = b"cpandas.core.indexes.base\n_new_Index\n(cpandas.core.indexes.range\nRangeIndex\n}(Vstart\nI%d\nVstop\nI99999999\nVstep\nI1\nutR"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read_pickle(write(tmp_path / "rows.pkl", b"(" + b"".join(index % k for k in range(3)) + b"t."))
    assert [len(rows) for rows in found] == [99_999_999 - k for k in range(3)] and all(isinstance(rows, range) for rows in found)
    text = b"\x80\x02X\x40\x42\x0f\x00" + b"a" * 10**6 + b"q\x00"
    again = text + b"0(" + b"c_codecs\nencode\n(h\x00X\x06\x00\x00\x00latin1tR" * 1000 + b"t."
    assert_refused(lambda: read_pickle(write(tmp_path / "bytes.pkl", again)), "bytes.pkl", "much more than its size")
    wide = dataframe({"x": np.zeros(0)}, "2", 3).replace(b"K\x01K\x00\x86", b"J\xff\xe0\xf5\x05K\x00\x86")
    assert b"J\xff\xe0\xf5\x05K\x00\x86" in wide
    assert_refused(lambda: read_pickle(write(tmp_path / "wide.pkl", wide)), "wide.pkl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # kilobytes


def test_large_files_are_not_read(tmp_path, monkeypatch):
    path = write(tmp_path / "large.pkl", b"x" * 1000)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("it was read whole"))
    assert_refused(lambda: read_pickle(path, most=999), "large.pkl", "999 bytes")


def test_keys_that_would_never_be_hashed(tmp_path):
    """A tuple that holds one tuple twice, 60 times over: its hash would take years, in every place where values become keys."""
    pairs = b"\x80\x02K\x01K\x02\x86" + b"q\x00h\x00\x86" * 60
    call = b"q\x010c%s\n(]h\x01atR."
    began = time.monotonic()
    for data in (
        pairs + b"q\x010}h\x01K\x00s.",
        pairs + b"q\x010}(h\x01K\x00u.",
        pairs + b"q\x010(h\x01K\x00d.",
        b"\x80\x04" + pairs[2:] + b"q\x010\x8f(h\x01\x90.",
        b"\x80\x04" + pairs[2:] + b"q\x010(h\x01\x91.",
        pairs + call % b"builtins\nset",
        pairs + call % b"builtins\nfrozenset",
        pairs + b"q\x010ccollections\nOrderedDict\n)Rh\x01K\x00s.",
    ):
        assert_refused(lambda: read_pickle(write(tmp_path / "keys.pkl", data)), "keys.pkl", "too many parts")
    assert time.monotonic() - began < 5
    thing = {(1, ("a", (2, frozenset({3})))): {(1, 2), "b"}}
    assert read_pickle(write(tmp_path / "keys.pkl", pickle.dumps(thing))) == thing


# ---- pandas tables, without pandas


@contextlib.contextmanager
def stand_ins():
    """Classes and functions under the names of pandas' own, for as long as it takes to pickle with them."""
    before = dict(sys.modules)

    def named(module, name, made):
        made.__module__, made.__name__, made.__qualname__ = module, name, name
        for end in range(1, module.count(".") + 2):
            sys.modules.setdefault(".".join(module.split(".")[:end]), types.ModuleType("pandas"))
        setattr(sys.modules[module], name, made)
        return made

    kinds = {kind: named(f"pandas.core.indexes.{place}", kind, type(kind, (), {})) for place, kind in (("base", "Index"), ("range", "RangeIndex"), ("numeric", "Int64Index"))}
    keep = {"__setstate__": lambda self, state: setattr(self, "given", state)}
    yield types.SimpleNamespace(
        **kinds,
        frame=named("pandas.core.frame", "DataFrame", type("DataFrame", (), {})),
        manager=named("pandas.core.internals.managers", "BlockManager", type("BlockManager", (), keep | {"__init__": lambda self, *parts: None})),
        new_index=named("pandas.core.indexes.base", "_new_Index", lambda kind, parts: None),
        unpickle_block=named("pandas._libs.internals", "_unpickle_block", lambda values, placement, ndim: None),
        new_block=named("pandas.core.internals.blocks", "new_block", lambda values, placement, ndim: None),
    )
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def dataframe(columns, pandas="2", protocol=4, index=None):
    """The pickle of a DataFrame as that version of pandas writes it: columns of one type share a block."""
    with stand_ins() as p:
        names, count = list(columns), len(next(iter(columns.values())))
        kinds = {}
        for place, name in enumerate(names):
            kinds.setdefault(np.asarray(columns[name]).dtype, []).append(place)
        blocks = []
        for places in kinds.values():
            values = np.stack([columns[names[place]] for place in places])
            values = np.asfortranarray(values) if len(blocks) % 2 else values
            steps = set(np.diff(places)) or {1}
            placement = slice(places[0], places[-1] + 1, int(steps.pop())) if len(steps) == 1 else np.array(places)
            blocks.append((values, placement))
        header = Call(p.new_index, (p.Index, {"data": np.array(names, object), "name": None}))
        rows = Call(p.new_index, (p.RangeIndex, {"name": "index", "start": 0, "stop": count, "step": 1}))
        if index is not None:
            rows = Call(p.new_index, (p.Int64Index if pandas < "2" else p.Index, {"data": index, "name": "index"}))
        frame, axes = p.frame(), [header, rows]
        state = {"_typ": "dataframe", "_metadata": []}
        if pandas in ("0.25", "1.2"):
            manager = p.manager()
            kept = {"axes": axes, "blocks": [{"values": values, "mgr_locs": placement} for values, placement in blocks]}
            p.manager.__reduce_ex__ = lambda self, protocol: (
                __import__("copyreg").__newobj__, (p.manager,), (axes, [values for values, _ in blocks], [header] * len(blocks), {"0.14.1": kept}),
            )  # fmt: skip
        else:
            block = functools.partial(p.new_block, ndim=2) if pandas == "1.3" else p.unpickle_block
            made = tuple(Call(block, (values, placement, *([] if pandas == "1.3" else [2]))) for values, placement in blocks)
            manager = Call(p.manager, (made, axes))
        frame.__dict__.update({"_data" if pandas == "0.25" else "_mgr": manager, **state, **({} if pandas == "0.25" else {"attrs": {}, "_flags": {"allows_duplicate_labels": True}})})
        data = pickle.dumps(frame, protocol)
        pickle.loads(data)  # Python's own reader takes it too
    return data


VERSIONS = ("0.25", "1.2", "1.3", "2")


@pytest.mark.parametrize("pandas", VERSIONS)
@pytest.mark.parametrize("protocol", (2, 3, 4, 5))
def test_tables_of_every_pandas(tmp_path, pandas, protocol):
    rng = np.random.default_rng(len(pandas) + protocol)
    columns = {"x": rng.random(7), "name": np.array(["a", None, "ü", "b", 1.5, True, ""], object), "y": rng.random(7), "n": rng.integers(0, 9, 7)}
    columns |= {"z": rng.random(7), "flag": rng.random(7) > 0.5, "m": rng.integers(0, 9, 7)}
    index = rng.permutation(7) if protocol % 2 else None
    table = read_pickle(write(tmp_path / "t.pkl", dataframe(columns, pandas, protocol, index)))
    assert isinstance(table, Table) and len(table) == 7 and "pandas" not in sys.modules
    assert_same(table.columns, columns)
    assert np.array_equal(table.index, np.arange(7) if index is None else index)


def test_tables_that_are_none(tmp_path):
    columns = {"x": np.arange(3.0), "y": np.arange(3.0)}
    data = dataframe(columns, "2", 3)
    for old, new in ((b"X\x01\x00\x00\x00y", b"X\x01\x00\x00\x00x"), (b"K\x02", b"K\x01"), (b"pandas.core.frame\nDataFrame", b"pandas.core.series\nSeries")):
        assert old in data
        assert_refused(lambda: read_pickle(write(tmp_path / "t.pkl", data.replace(old, new))), "t.pkl")


# ---- Argoverse 2


def pose_columns(poses):
    """Columns of quaternions and translations."""
    rows = np.array([[*q, *t] for q, t, _ in poses])
    return dict(zip(("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m"), rows.T))


def save(path, columns, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    feather.write_feather(pyarrow.table(columns), path, **more)


def write_av2(log, rng, sweeps=3, cameras=RING, count=40):
    """A log of random numbers; returns what a reader must find, sweep by sweep."""
    start = 315_966_265_000_000_000 + int(rng.integers(1e6))
    mounts, sizes = {name: random_pose(rng) for name in cameras}, {name: (48, 36) if "center" in name else (36, 48) for name in cameras}
    lens = {name: rng.uniform(20, 60, 4) for name in cameras}
    save(log / "calibration/egovehicle_SE3_sensor.feather", {"sensor_name": [*cameras, "up_lidar"], **pose_columns([*mounts.values(), random_pose(rng)])})
    rows = np.array([lens[name] for name in cameras]).reshape(-1, 4)
    table = {"sensor_name": list(cameras), **dict(zip(("fx_px", "fy_px", "cx_px", "cy_px"), rows.T)), **{k: rng.normal(size=len(cameras)) for k in ("k1", "k2", "k3")}}
    save(log / "calibration/intrinsics.feather", table | {"height_px": np.uint16([sizes[n][0] for n in cameras]), "width_px": np.uint16([sizes[n][1] for n in cameras])})
    poses, frames, annotations = {}, [], []
    for k in range(sweeps):
        moment = start + k * 100_000_000
        xyz = rng.normal(size=(count, 3)).astype(np.float16) * np.float16(10)
        intensity = rng.integers(0, 256, count).astype(np.uint8)
        columns = {**dict(zip("xyz", xyz.T)), "intensity": intensity, "laser_number": np.zeros(count, np.uint8), "offset_ns": np.zeros(count, np.int32)}
        save(log / f"sensors/lidar/{moment}.feather", columns, compression=("lz4", "zstd", "uncompressed")[k % 3])
        poses[moment] = random_pose(rng, 1000)
        images = {}
        for name in cameras:
            near, far = rng.integers(-24_000_000, 24_000_000), rng.choice([-1, 1]) * rng.integers(25_000_000, 49_000_000)
            for at in (moment + int(near), moment + int(far)):
                path = log / f"sensors/cameras/{name}/{at}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (*sizes[name], 3)).astype(np.uint8)).save(path)
                poses[at] = random_pose(rng, 1000)
            images[name] = moment + int(near)
        boxes = []
        for _ in range(int(rng.integers(0, 4))):
            q, t, matrix = random_pose(rng, 10, upright=True)
            category, track, size = str(rng.choice([*AV2_CLASSES[1:], *UNSCORED])), f"track-{rng.integers(5)}", rng.uniform(0.5, 5, 3)
            boxes.append((matrix, category, track, size))
            annotations.append((moment, track, category, *size, (q, t, matrix)))
        frames.append((moment, xyz, intensity, images, boxes))
    if annotations:
        keys = ("timestamp_ns", "track_uuid", "category", "length_m", "width_m", "height_m")
        columns = list(zip(*(annotations[k] for k in rng.permutation(len(annotations)))))
        save(log / "annotations.feather", {**dict(zip(keys, columns)), **pose_columns(columns[6])})
    save(log / "city_SE3_egovehicle.feather", {"timestamp_ns": sorted(poses), **pose_columns([poses[at] for at in sorted(poses)])})
    return frames, poses, mounts, lens, sorted({row[1] for row in annotations})


@pytest.mark.parametrize("seed", range(4))
def test_argoverse2_round_trip(tmp_path, seed):
    rng = np.random.default_rng(seed)
    cameras = (RING, RING[:1], (*RING[1:3], "stereo_front_left"), RING[:2])[seed]
    base = tmp_path / "sensor" if seed % 2 else tmp_path
    frames, poses, mounts, lens, tracks = write_av2(base / "val/log-a", rng, cameras=cameras)
    write_av2(base / "train/log-b", rng, sweeps=1, cameras=())
    assert all(Argoverse2.is_at(place) for place in (tmp_path, base, base / "val", base / "val/log-a")) and not Argoverse2.is_at(base / "val/log-a/sensors")
    assert len(Argoverse2(tmp_path)) == 4 and [i.split("/")[0] for i in Argoverse2(tmp_path).ids] == ["train", "val", "val", "val"]
    dataset = Argoverse2(tmp_path, "val", cameras=None if cameras == RING else cameras)
    assert len(pickle.dumps(dataset)) < 10_000 and Argoverse2(tmp_path, "train")[0].cameras == []
    for frame, (moment, xyz, intensity, images, boxes) in zip(dataset, frames, strict=True):
        assert frame.id == f"val/log-a/{moment}" and abs(frame.timestamp - moment * 1e-9) < 1e-6
        assert frame.points.dtype == np.float32 and np.array_equal(frame.points, xyz.astype(np.float32))
        assert np.array_equal(np.rint(frame.intensity * 255), intensity) and np.array_equal(frame.lidar_to_ego, np.eye(4))
        np.testing.assert_allclose(frame.ego_to_world, poses[moment][2], atol=1e-9)
        assert [camera.name for camera in frame.cameras] == list(cameras)
        for camera in frame.cameras:
            at = images[camera.name]
            with Image.open(base / f"val/log-a/sensors/cameras/{camera.name}/{at}.jpg") as image:
                assert np.array_equal(camera.image, np.array(image))
            fx, fy, cx, cy = lens[camera.name]
            assert np.array_equal(camera.intrinsics, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]) and camera.distortion is None
            np.testing.assert_allclose(camera.camera_to_ego, mounts[camera.name][2], atol=1e-12)
            np.testing.assert_allclose(camera.ego_to_world, poses[at][2], atol=1e-9)
        if tracks:
            found = {(dataset.classes[label], int(track)): (*center, *size, yaw) for center, size, yaw, label, track in zip(*vars(frame.boxes).values())}
            wanted = {
                ("unlabelled" if name in UNSCORED else name, tracks.index(track) + 1): (*pose[:3, 3], *size, np.arctan2(pose[1, 0], pose[0, 0]))
                for pose, name, track, size in boxes
            }
            assert found.keys() == wanted.keys() and all(np.allclose(found[key], wanted[key]) for key in wanted)
    with pytest.raises(IndexError):
        dataset[3]


def test_argoverse2_labels_and_classes_of_ours(tmp_path):
    rng = np.random.default_rng(0)
    frames, *_ = write_av2(tmp_path / "val/log", rng, sweeps=1, cameras=())
    labels = rng.integers(0, 9, 40).astype("<u4") | (rng.integers(0, 99, 40).astype("<u4") << 16)
    (tmp_path / "val/log/labels").mkdir()
    labels.tofile(tmp_path / f"val/log/labels/{frames[0][0]}.label")
    (tmp_path / "classes.txt").write_text("\n".join(AV2_CLASSES))
    (tmp_path / "val/log/annotations.feather").unlink(missing_ok=True)
    frame = Argoverse2(tmp_path)[0]
    assert frame.boxes is None and np.array_equal(frame.semantic, labels & 0xFFFF)
    columns = {"timestamp_ns": [frames[0][0]], "track_uuid": ["a"], "category": ["DOG"], "length_m": [1.0], "width_m": [1.0], "height_m": [1.0]}
    save(tmp_path / "val/log/annotations.feather", columns | pose_columns([random_pose(rng, upright=True)]))
    frame = Argoverse2(tmp_path)[0]
    assert np.array_equal(frame.semantic, labels & 0xFFFF) and np.array_equal(frame.instance, labels >> 16)
    assert Argoverse2(tmp_path, truth=False)[0].boxes is None


def test_argoverse2_faults(tmp_path):
    rng, log = np.random.default_rng(5), tmp_path / "test/log"
    frames, poses, *_ = write_av2(log, rng, sweeps=1, cameras=RING[:2], count=10)
    dataset, moment = Argoverse2(tmp_path, cameras=RING[:2]), frames[0][0]
    dataset[0]
    sweep, city, lenses = log / f"sensors/lidar/{moment}.feather", log / "city_SE3_egovehicle.feather", log / "calibration/intrinsics.feather"
    photo, notes = log / f"sensors/cameras/{RING[0]}/{frames[0][3][RING[0]]}.jpg", log / "annotations.feather"

    def spoiled(path, words, change):
        before = path.read_bytes()
        change(path)
        assert_refused(lambda: dataset[0], path.name, *words)
        path.write_bytes(before)
        dataset[0]

    def rewrite(column, value):
        def change(path):
            columns = {name: values.to_numpy().copy() for name, values in zip(*(lambda t: (t.column_names, t.columns))(feather.read_table(path, memory_map=False)))}
            columns = value(columns) if column is None else columns | {column: value(columns[column])}
            save(path, columns)

        return change

    def put(value):
        return lambda values: np.where(np.arange(len(values)) == 0, value, values)

    note = {"timestamp_ns": [moment], "track_uuid": ["a"], "category": ["DOG"], "length_m": [1.0], "width_m": [1.0], "height_m": [1.0]}
    save(notes, note | pose_columns([random_pose(rng, upright=True)]))
    spoiled(sweep, ["missing"], Path.unlink)
    spoiled(sweep, ["damaged"], lambda path: path.write_bytes(path.read_bytes()[:-50]))
    spoiled(sweep, ["damaged"], lambda path: path.write_bytes(b"no table"))
    spoiled(sweep, ["1 of 10", "NaN"], rewrite("y", put(np.nan)))
    spoiled(sweep, ["empty"], rewrite(None, lambda columns: {name: values[:0] for name, values in columns.items()}))
    spoiled(sweep, ["x"], rewrite(None, lambda columns: {name: values for name, values in columns.items() if name != "x"}))
    spoiled(sweep, ["z holds string instead of numbers"], rewrite("z", lambda values: np.array(["a"] * len(values))))
    spoiled(city, ["missing"], Path.unlink)
    spoiled(city, ["no rotation"], rewrite(None, lambda columns: columns | {"qw": columns["qw"] + 1}))
    spoiled(city, ["does not grow"], rewrite("timestamp_ns", lambda values: values[::-1].copy()))
    spoiled(city, ["no pose"], rewrite("timestamp_ns", lambda values: values + 10**9))
    spoiled(lenses, ["missing"], Path.unlink)
    spoiled(lenses, [f"no row for {RING[0]}"], rewrite("sensor_name", put("another")))
    spoiled(photo, ["calibration"], lambda path: Image.new("RGB", (10, 10)).save(path))
    spoiled(photo, ["cannot be read"], lambda path: path.write_bytes(path.read_bytes()[:200]))
    spoiled(notes, ["unknown class 'ROCKET'"], rewrite("category", put("ROCKET")))
    spoiled(notes, ["NaN"], rewrite("width_m", put(np.inf)))
    spoiled(notes, ["1 of 1 values are missing"], rewrite("track_uuid", lambda values: pyarrow.array([None], pyarrow.string())))
    spoiled(notes, ["instead of words"], rewrite("category", lambda values: np.arange(len(values))))
    hole = [moment - 10**9, moment + 10**9]
    spoiled(city, ["no pose"], lambda path: save(path, {"timestamp_ns": hole, **pose_columns([poses[moment]] * 2)}))
    (log / f"sensors/cameras/{RING[1]}").rename(log / "away")
    assert_refused(lambda: dataset[0], RING[1])
    assert_refused(lambda: Argoverse2(tmp_path / "nowhere"), "no log of Argoverse 2")
    assert_refused(lambda: Argoverse2(tmp_path, "train"), "train/<log>")
    (log / "away").rename(log / f"sensors/cameras/{RING[1]}")
    # logs that were unpacked in part are listed, and say so when they are read
    (tmp_path / "test/other/sensors").mkdir(parents=True)
    write_av2(tmp_path / "test/pictures", rng, sweeps=2, cameras=RING[:1], count=10)
    for sweep in (tmp_path / "test/pictures/sensors/lidar").iterdir():
        sweep.unlink()
    read = Argoverse2(tmp_path, cameras=())
    assert [i.split("/")[1] for i in read.ids] == ["log", "other", *["pictures"] * 4]
    read[0]
    assert_refused(lambda: read[1], "other/sensors/lidar", "no <nanoseconds>.feather", "unpack this log again")
    assert_refused(lambda: read[2], "pictures/sensors/lidar", "missing", "unpack the log again")


def test_argoverse2_places_and_splits(tmp_path):
    """The Sensor and the LiDAR dataset, a split, a log: all are opened; a split that is not whole is told, one that does not exist refused."""
    rng = np.random.default_rng(0)
    write_av2(tmp_path / "lidar/train/log-a", rng, sweeps=2, cameras=(), count=5)
    ids = Argoverse2(tmp_path).ids
    assert len(ids) == 2
    for place in ("lidar", "lidar/train", "lidar/train/log-a"):
        assert Argoverse2.is_at(tmp_path / place) and Argoverse2(tmp_path / place).ids == Argoverse2(tmp_path / place, "train").ids == ids
        with pytest.raises(ValueError, match="no split 'vall'"):
            Argoverse2(tmp_path / place, "vall")
        assert_refused(lambda: Argoverse2(tmp_path / place, "val"), "no log of Argoverse 2")
    (tmp_path / "lidar").rename(tmp_path / "sensor")
    with pytest.warns(UserWarning, match="1 of the 700 logs of the split train"):
        Argoverse2(tmp_path, "train")


def test_argoverse2_cameras_of_each_log(tmp_path):
    """Without cameras= each log gives those it has, and what is lacking is told once; with it, they have to be there."""
    rng = np.random.default_rng(0)
    for name, cameras in (("a", RING), ("b", RING[:2]), ("c", ())):
        write_av2(tmp_path / f"val/{name}", rng, sweeps=1, cameras=cameras, count=5)
    with pytest.warns(UserWarning, match="2 of 3 drives lack images of some cameras .b: ring_") as told:
        dataset = Argoverse2(tmp_path)
    assert len(told) == 1 and [tuple(camera.name for camera in frame.cameras) for frame in dataset] == [RING, RING[:2], ()]
    assert_refused(lambda: Argoverse2(tmp_path, cameras=RING)[1], RING[2], "unpack it, or leave this camera out (cameras=...)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Argoverse2(tmp_path / "val/c")[0].cameras == []  # no images at all: none were wanted


def test_argoverse2_lists_and_tables_once_a_log(tmp_path, monkeypatch):
    """Sweeps cost eight bytes each; image folders are listed and boxes read once a log, and again when they change."""
    from xmodal.data import argoverse2

    rng, listed, opened = np.random.default_rng(1), [], []
    frames, *_, tracks = write_av2(tmp_path / "val/log", rng, sweeps=3, count=5)
    assert tracks
    dataset = Argoverse2(tmp_path)
    assert all(numbers.dtype == np.int64 and numbers.shape == (3,) for numbers in dataset.ids.numbers) and not hasattr(dataset, "frames")
    moments_in, read_columns = argoverse2.moments_in, argoverse2.read_columns
    monkeypatch.setattr(argoverse2, "moments_in", lambda folder, ending: (listed.append(folder.name), moments_in(folder, ending))[1])
    monkeypatch.setattr(argoverse2, "read_columns", lambda path, columns: (opened.append(path.name), read_columns(path, columns))[1])
    for frame in dataset:
        assert len(frame.cameras) == 7
    assert sorted(listed) == sorted(RING) and opened.count("annotations.feather") == opened.count("city_SE3_egovehicle.feather") == 1
    extra = tmp_path / f"val/log/sensors/cameras/{RING[0]}/{frames[0][0]}.jpg"
    Image.new("RGB", (36, 48)).save(extra)  # at the moment of the sweep: now the nearest
    assert dataset[0].cameras[0].timestamp == frames[0][0] * 1e-9 and listed.count(RING[0]) == 2


def test_labels_beyond_the_classes(tmp_path):
    """A .label file of ours with an id that classes.txt does not have; a classes.txt that names a class twice."""
    frames, *_ = write_av2(tmp_path / "val/log", np.random.default_rng(0), sweeps=1, cameras=())
    (tmp_path / "classes.txt").write_text("nothing\nthing\n")
    (tmp_path / "val/log/labels").mkdir()
    (tmp_path / "val/log/annotations.feather").unlink(missing_ok=True)
    label = tmp_path / f"val/log/labels/{frames[0][0]}.label"
    np.full(40, 1, "<u4").tofile(label)
    assert Argoverse2(tmp_path)[0].semantic.tolist() == [1] * 40
    np.full(40, 2, "<u4").tofile(label)
    assert_refused(lambda: Argoverse2(tmp_path)[0], label.name, "label ids that this benchmark does not have: 2")
    (tmp_path / "classes.txt").write_text("a\na\n")
    assert_refused(lambda: Argoverse2(tmp_path), "classes.txt", "names a class twice")
    (tmp_path / "002/lidar").mkdir(parents=True)
    (tmp_path / "002/lidar/00.pkl.gz").touch()
    assert_refused(lambda: PandaSet(tmp_path), "classes.txt", "names a class twice")


@real
def test_argoverse2_real():
    dataset = Argoverse2(DATA / "argoverse2")
    assert Argoverse2.is_at(DATA / "argoverse2") and len(dataset) == 2
    first, second = (dataset[i].check() for i in range(2))
    log = DATA / "argoverse2/sensor" / Path(first.id).parent
    assert first.cameras == [] and 90_000 < len(first.points) < 110_000 and len(first.boxes) == 81
    # boxes hold the points that were counted when they were drawn
    notes = feather.read_table(log / "annotations.feather")
    counted = notes["num_interior_pts"].to_numpy()[notes["timestamp_ns"].to_numpy() == int(Path(first.id).name)]
    held = np.bincount(first.boxes.contains(first.points) + 1, minlength=82)[1:]
    assert (held[counted > 0] > 0).mean() > 0.95 and (held[counted == 0] == 0).all() and np.corrcoef(held, counted)[0, 1] > 0.95
    # what the scene flow benchmark says about the points
    flow = feather.read_table(log / "flow_labels.feather")
    kinds = np.array([0, *(sorted((*AV2_CLASSES[1:], *UNSCORED)).index(name) + 1 for name in AV2_CLASSES[1:])])
    assert (kinds[first.semantic] == flow["classes"].to_numpy()).mean() > 0.99
    # poses: motion between the sweeps, and standing things in one place
    motion = compose(first.ego_to_world, inverse(second.ego_to_world))
    np.testing.assert_allclose(motion, np.load(log / "ego_motion.npz")["ego_motion"][0], atol=2e-3)
    moved = np.stack([flow[f"flow_t{axis}_m"].to_numpy() for axis in "xyz"], 1)
    still = ~flow["dynamic"].to_numpy(zero_copy_only=False)
    assert np.median(np.abs(transform(motion, first.points) - first.points - moved)[still]) < 0.003
    still &= ~flow["is_ground_0"].to_numpy(zero_copy_only=False)

    def apart(pose):
        clouds = [transform(pose(frame.ego_to_world), frame.points.astype(np.float64)) for frame in (first, second)]
        return np.median(cKDTree(clouds[1]).query(clouds[0][still][::20])[0])

    right, wrong, none = apart(lambda pose: pose), apart(inverse), apart(lambda pose: np.eye(4))
    assert right < 0.05 and right < 0.6 * none and right < 0.01 * wrong


# ---- PandaSet

AHEAD = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1.0]])  # x right, y forward -> x forward, y left


def pose_entry(pose):
    (w, x, y, z), t, _ = pose
    return {"position": dict(zip("xyz", t)), "heading": {"w": w, "x": x, "y": y, "z": z}}


def write_pandaset(folder, rng, frames=3, cameras=CAMERAS, count=60, pandas="1.2"):
    """A sequence of random numbers in the world; returns what a reader must find, frame by frame."""
    numbers, found = [f"{k:02d}" for k in range(frames)], []
    for place in ("lidar", "annotations/cuboids", "annotations/semseg", *(f"camera/{name}" for name in cameras)):
        (folder / place).mkdir(parents=True)
    times = 1557539956 + np.cumsum(rng.uniform(0.09, 0.11, frames))
    poses = [random_pose(rng, 30, upright=True) for _ in range(frames)]
    (folder / "lidar/poses.json").write_text(json.dumps([pose_entry(pose) for pose in poses]))
    (folder / "lidar/timestamps.json").write_text(json.dumps(times.tolist()))
    (folder / "annotations/semseg/classes.json").write_text(json.dumps({str(k): name for k, name in enumerate(PANDASET_CLASSES) if k}))
    lens, views = {}, {}
    for name in cameras:
        lens[name] = rng.uniform(20, 60, 4)
        (folder / f"camera/{name}/intrinsics.json").write_text(json.dumps(dict(zip(("fx", "fy", "cx", "cy"), lens[name]))))
        views[name] = [random_pose(rng, 30) for _ in numbers], times + rng.uniform(-0.04, 0.04)
        (folder / f"camera/{name}/poses.json").write_text(json.dumps([pose_entry(pose) for pose in views[name][0]]))
        (folder / f"camera/{name}/timestamps.json").write_text(json.dumps(views[name][1].tolist()))
        for number in numbers:
            Image.fromarray(rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)).save(folder / f"camera/{name}/{number}.jpg")
    for k, number in enumerate(numbers):
        local, device = rng.normal(size=(count, 3)) * 20, (rng.random(count) > 0.6).astype(np.int64)
        world = local @ poses[k][2][:3, :3].T + poses[k][2][:3, 3]
        intensity, kind = rng.integers(0, 256, count).astype(float), rng.integers(0, 43, count)
        columns = {**dict(zip("xyz", world.T)), "i": intensity, "t": np.full(count, times[k]), "d": device}
        index = np.arange(count) + 7 if k % 2 else None
        (folder / f"lidar/{number}.pkl.gz").write_bytes(gzip.compress(dataframe(columns, pandas, index=index)))
        (folder / f"annotations/semseg/{number}.pkl.gz").write_bytes(gzip.compress(dataframe({"class": kind}, pandas, index=index)))
        n = 6
        center, size, yaw = rng.normal(size=(n, 3)) * 10, rng.uniform(1, 5, (n, 3)), rng.uniform(-3, 3, n)
        names, sensor = rng.choice(PANDASET_CLASSES[13:], n), rng.integers(-1, 2, n)
        place = center @ poses[k][2][:3, :3].T + poses[k][2][:3, 3]
        turned = np.arctan2(poses[k][2][1, 0], poses[k][2][0, 0])
        cuboids = {
            "uuid": np.array([f"0000-{j}" for j in range(n)], object), "label": names.astype(object), "yaw": yaw + turned, "stationary": rng.random(n) > 0.5,
            "camera_used": rng.integers(-1, 6, n), **{f"position.{a}": v for a, v in zip("xyz", place.T)}, **{f"dimensions.{a}": v for a, v in zip("xyz", size.T)},
            "attributes.object_motion": np.array(["Parked", None] * 3, object), "cuboids.sibling_id": np.array(["-"] * n, object), "cuboids.sensor_id": sensor,
        }  # fmt: skip
        (folder / f"annotations/cuboids/{number}.pkl.gz").write_bytes(gzip.compress(dataframe(cuboids, pandas)))
        found.append((local @ AHEAD.T, intensity, device, kind, center @ AHEAD.T, size[:, [1, 0, 2]], yaw, names, sensor))
    return found, poses, times, lens, views


@pytest.mark.parametrize("seed", range(4))
def test_pandaset_round_trip(tmp_path, seed):
    rng = np.random.default_rng(seed)
    cameras = (CAMERAS, CAMERAS[:2], (), CAMERAS)[seed]
    frames, poses, times, lens, views = write_pandaset(tmp_path / "002", rng, cameras=cameras, pandas=VERSIONS[seed])
    write_pandaset(tmp_path / "019", rng, frames=1, cameras=())
    assert PandaSet.is_at(tmp_path) and not PandaSet.is_at(tmp_path / "002")
    lidar = (0, 1, None, 0)[seed]
    dataset = PandaSet(tmp_path, cameras=None if cameras == CAMERAS else cameras, lidar=lidar)
    assert dataset.ids == ["002/00", "002/01", "002/02", "019/00"] and len(pickle.dumps(dataset)) < 10_000
    turned, things = np.eye(4), {}
    turned[:3, :3] = AHEAD.T
    for k, (points, intensity, device, kind, center, size, yaw, names, sensor) in enumerate(frames):
        frame, kept = dataset[k], device == lidar if lidar is not None else slice(None)
        np.testing.assert_allclose(frame.points, points[kept], atol=1e-4)
        assert np.array_equal(np.rint(frame.intensity * 255), intensity[kept]) and np.array_equal(frame.semantic, kind[kept])
        assert frame.timestamp == times[k] and np.array_equal(frame.lidar_to_ego, np.eye(4))
        np.testing.assert_allclose(frame.ego_to_world, poses[k][2] @ turned, atol=1e-9)
        for camera in frame.cameras:
            (pose, at), (fx, fy, cx, cy) = (values[k] for values in views[camera.name]), lens[camera.name]
            with Image.open(tmp_path / f"002/camera/{camera.name}/{k:02d}.jpg") as image:
                assert np.array_equal(camera.image, np.array(image))
            assert np.array_equal(camera.intrinsics, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]) and camera.timestamp == at
            np.testing.assert_allclose(compose(camera.camera_to_ego, camera.ego_to_world), pose[2], atol=1e-6)
        mine = np.flatnonzero(sensor != 1 - lidar) if lidar is not None else np.arange(6)
        np.testing.assert_allclose(frame.boxes.center, center[mine], atol=1e-6)
        assert np.array_equal(frame.boxes.size, size[mine]) and [dataset.classes[label] for label in frame.boxes.label] == list(names[mine])
        np.testing.assert_allclose(np.exp(1j * frame.boxes.yaw), np.exp(1j * yaw[mine]), atol=1e-6)
        for thing, instance in zip(mine, frame.boxes.instance):
            assert things.setdefault(thing, instance) == instance > 0
    assert len(set(things.values())) == len(things) and PandaSet(tmp_path)[3].cameras == []
    with pytest.raises(IndexError):
        dataset[4]


def test_pandaset_camera_moment(tmp_path):
    """A vehicle at constant speed: the pose at the camera's moment is known, and what is left is the camera's place on the vehicle."""
    write_pandaset(tmp_path / "001", np.random.default_rng(0), cameras=CAMERAS[:1])
    level, mount = np.array([1.0, 0, 0, 0]), np.array([0.5, 2.0, 1.5])
    times, shots = np.array([10.0, 10.1, 10.2]), np.array([9.97, 10.13, 10.24])
    at = lambda moments, offset: [pose_entry((level, np.array([0, 20 * t, 0]) + offset, None)) for t in moments]
    for place, moments, offset in (("lidar", times, 0), (f"camera/{CAMERAS[0]}", shots, mount)):
        (tmp_path / "001" / place / "timestamps.json").write_text(json.dumps(moments.tolist()))
        (tmp_path / "001" / place / "poses.json").write_text(json.dumps(at(moments, offset)))
    for frame, shot in zip(PandaSet(tmp_path, CAMERAS[:1], truth=False), shots):
        np.testing.assert_allclose(frame.cameras[0].ego_to_world[:3, 3], [0, 20 * shot, 0], atol=1e-6)
        np.testing.assert_allclose(frame.cameras[0].camera_to_ego[:3, 3], AHEAD @ mount, atol=1e-6)


def test_pandaset_faults(tmp_path):
    rng, folder = np.random.default_rng(3), tmp_path / "002"
    write_pandaset(folder, rng, frames=2, cameras=CAMERAS[:1], count=10)
    dataset = PandaSet(tmp_path, CAMERAS[:1])
    scan, cuboids, semseg = (folder / f"{place}/00.pkl.gz" for place in ("lidar", "annotations/cuboids", "annotations/semseg"))
    camera = folder / "camera" / CAMERAS[0]

    def spoiled(path, words, data=None):
        before = path.read_bytes()
        path.unlink() if data is None else path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        assert_refused(lambda: dataset[0], path.name, *words)
        path.write_bytes(before)
        dataset[0]

    good = {name: rng.normal(size=10) for name in "xyz"} | {"i": np.full(10, 255.0), "t": np.zeros(10), "d": np.zeros(10, np.int64)}
    spoiled(scan, ["no such file"])
    spoiled(scan, ["posix.system", "nothing of it was run"], gzip.compress(pickle.dumps(Call(os.system, (f"touch {tmp_path}/witness",)))))
    spoiled(scan, ["cannot be read"], scan.read_bytes()[:-20])
    spoiled(scan, ["no table"], pickle.dumps([1, 2]))
    spoiled(scan, ["columns d"], dataframe({name: values for name, values in good.items() if name != "d"}))
    spoiled(scan, ["NaN", "1 of 10"], dataframe(good | {"x": np.where(np.arange(10) == 3, np.nan, 0)}))
    spoiled(scan, ["full scale"], dataframe(good | {"i": np.full(10, 65535.0)}))
    spoiled(scan, ["no numbers"], dataframe(good | {"z": np.array(["a"] * 10, object)}))
    spoiled(scan, ["not one point of LiDAR 0"], dataframe(good | {"d": np.ones(10, np.int64)}))
    spoiled(folder / "lidar/poses.json", ["missing"])
    spoiled(folder / "lidar/poses.json", ["cannot be read"], b"[{")
    spoiled(folder / "lidar/poses.json", ["no entry for frame 00"], [])
    spoiled(folder / "lidar/poses.json", ["no pose"], [{"position": {}}] * 2)
    spoiled(folder / "lidar/poses.json", ["length 1"], [pose_entry((np.ones(4), np.zeros(3), None))] * 2)
    spoiled(folder / "lidar/poses.json", ["1 poses for 2 timestamps"], [pose_entry(random_pose(rng))])
    spoiled(folder / "lidar/timestamps.json", ["do not grow"], [2.0, 1.0])
    spoiled(folder / "lidar/timestamps.json", ["no list of timestamps"], ["noon", "night"])
    spoiled(camera / "00.jpg", ["missing"])
    spoiled(camera / "00.jpg", ["cannot be read"], b"no image")
    spoiled(camera / "intrinsics.json", ["fx, fy, cx, cy"], {"fx": 1})
    spoiled(camera / "poses.json", ["no entry"], [])
    spoiled(semseg, ["other rows"], dataframe({"class": np.zeros(9, np.int64)}))
    spoiled(semseg, ["label ids", "77"], dataframe({"class": np.full(10, 77)}))
    spoiled(folder / "annotations/semseg/classes.json", ["unknown class 'Moon'"], {"1": "Moon"})
    spoiled(folder / "annotations/semseg/classes.json", ["no table"], {"one": "Car"})
    spoiled(folder / "annotations/semseg/classes.json", ["no table"], ["Car"])
    spoiled(folder / "annotations/semseg/classes.json", ["missing"])
    spoiled(cuboids, ["columns uuid"], dataframe({"label": np.array(["Car"], object)}))
    assert not (tmp_path / "witness").exists()
    (folder / "lidar/01.pkl.gz").unlink()  # told, not left out
    assert len(PandaSet(tmp_path, ())) == 2
    assert_refused(lambda: PandaSet(tmp_path, ())[1], "01.pkl.gz", "no such file")
    with pytest.warns(UserWarning, match="1 of 1 drives lack images of some cameras .002: back_camera"):
        assert [c.name for c in PandaSet(tmp_path)[0].cameras] == [CAMERAS[0]]
    assert_refused(lambda: PandaSet(tmp_path, CAMERAS)[0], CAMERAS[1], "missing")
    assert_refused(lambda: PandaSet(folder), "no sequence of PandaSet")
    with pytest.raises(ValueError, match="lidar = 2"):
        PandaSet(tmp_path, lidar=2)


@real
def test_real_pickles():
    """Info files of detection toolboxes: read whole, nothing run."""
    files = sorted(DATA.rglob("*.pkl"))
    assert files
    for path in files:
        infos = read_pickle(path)
        assert set(infos) == {"metainfo", "data_list"} and infos["data_list"]
