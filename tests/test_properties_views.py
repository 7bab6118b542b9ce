"""Properties of views, pairs and voxels that hold for any input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal import views
from xmodal.batch import Voxels, voxelise
from xmodal.frame import Camera, Frame
from xmodal.matching import mutual_nearest, nearest, projection_pairs
from xmodal.projection import inverse, project, rigid, transform

pytest.importorskip("cv2", reason="views resize with OpenCV")

FORWARD = rigid(np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0.0]]))
quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))


def any_frame(rng, count, size, cameras):
    points = np.column_stack([rng.uniform(1, 30, count), rng.normal(0, 6, (count, 2))]).astype(np.float32)
    intrinsics = np.array([[rng.uniform(20, 80), 0, size[1] / 2], [0, rng.uniform(20, 80), size[0] / 2], [0, 0, 1.0]])
    image = rng.integers(0, 255, (*size, 3)).astype(np.uint8)
    rig = [Camera(str(i), image, intrinsics, rigid(translation=rng.normal(size=3)) @ inverse(FORWARD)) for i in range(cameras)]
    return Frame("any", points, cameras=rig)


@quick
@given(seed=seeds, count=st.integers(0, 300), size=sizes, cameras=st.integers(0, 3), target=sizes, min_pairs=st.integers(0, 200))
def test_augmented_pairs_lie_where_the_calibration_says(seed, count, size, cameras, target, min_pairs):
    rng = np.random.default_rng(seed)
    frame = any_frame(rng, count, size, cameras)
    ids = [rng.integers(0, 70_000, size).astype(np.int32) for _ in range(cameras)]
    start = views.view_of(frame, ids)
    view = views.augment(start, rng, views.Augmentation(size=target, min_pairs=min_pairs, cuboid=rng.uniform(0, 2)))
    assert view.points.dtype == np.float32 and view.pairs.uv.dtype == np.float32
    assert len(view.points) > 0 or count == 0
    assert all(image.shape == (*target, 3) for image in view.images)
    assert all(i.shape == target and i.dtype == np.int32 and np.isin(i, ids[0] if cameras == 1 else ids).all() for i in view.superpixels)
    for i in range(cameras):
        mine = view.pairs.select(view.pairs.camera == i)
        uv, depth = project(transform(view.lidar_to_camera[i], view.points[mine.point].astype(float)), view.intrinsics[i])
        assert (depth > 0).all() and np.abs(uv - mine.uv).max(initial=0) < 0.02
        assert ((mine.row >= 0) & (mine.row < target[0]) & (mine.col >= 0) & (mine.col < target[1])).all()


@quick
@given(seed=seeds, count=st.integers(0, 400), size=st.sampled_from([0.05, 0.1, 1.0, 50.0]), cylindrical=st.booleans(), degrees=st.sampled_from([0.7, 1.0, 7.0, 90.0]))
def test_voxels_are_a_partition_that_keeps_the_first_point(seed, count, size, cylindrical, degrees):
    points = np.random.default_rng(seed).normal(0, 10, (count, 3)).astype(np.float32)
    coords, inverse_map, retained = voxelise(points, Voxels(size, cylindrical, degrees))
    assert len(np.unique(coords, axis=0)) == len(coords) == len(retained) and len(inverse_map) == count
    for v in range(len(coords)):
        assert retained[v] == np.flatnonzero(inverse_map == v)[0]
    if not cylindrical and count:
        assert np.array_equal(coords[inverse_map], np.floor(points / np.float32(size)))


@quick
@given(seed=seeds, degrees=st.sampled_from([1.0, 2.5, 51.42857142857143]), turns=st.integers(1, 50))
def test_no_azimuth_bin_is_cut_at_the_seam(seed, degrees, turns):
    "A cloud turned by whole bins keeps its grouping: it does not matter on which side of the seam a point lies."
    rng = np.random.default_rng(seed)
    azimuth = np.radians((rng.integers(round(360 / degrees), size=60) + rng.uniform(0.05, 0.95, 60)) * degrees)
    voxels = Voxels(0.5, cylindrical=True, degrees=degrees)
    groups = []
    for turn in (0, turns):
        angle = azimuth + np.radians(turn * degrees)
        groups.append(voxelise(np.column_stack([5.2 * np.cos(angle), 5.2 * np.sin(angle), np.full(60, 0.1)]), voxels)[1])
    assert np.array_equal(groups[0][:, None] == groups[0], groups[1][:, None] == groups[1])


@quick
@given(seed=seeds, n=st.integers(0, 50), m=st.integers(1, 50), dimensions=st.sampled_from([1, 3, 8, 9, 64]))
def test_nearest_agrees_with_the_direct_loop(seed, n, m, dimensions):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, dimensions)), rng.normal(size=(m, dimensions))
    distance = np.linalg.norm(a[:, None] - b[None], axis=2)
    assert np.array_equal(nearest(a, b), distance.argmin(1))
    expected = [(i, j) for i in range(n) for j in range(m) if distance[i].argmin() == j and distance[:, j].argmin() == i]
    assert list(zip(*mutual_nearest(a, b))) == expected


@quick
@given(seed=seeds, count=st.integers(0, 60), size=sizes, cameras=st.integers(0, 3))
def test_projection_pairs_agree_with_the_direct_loop(seed, count, size, cameras):
    "SLidR's rule, point by point: depth > 1 m, 0 < u < W - 1, 0 < v < H - 1."
    frame = any_frame(np.random.default_rng(seed), count, size, cameras)
    expected = []
    for i, camera in enumerate(frame.cameras):
        for p, point in enumerate(frame.points):
            x, y, z = (np.linalg.inv(camera.camera_to_ego) @ [*point.astype(float), 1])[:3]
            u, v, _ = camera.intrinsics @ [x, y, z] / z
            if z > 1 and 0 < u < size[1] - 1 and 0 < v < size[0] - 1:
                expected.append((p, i, u, v))
    pairs = projection_pairs(frame, occlusion=False)
    assert list(zip(pairs.point, pairs.camera)) == [e[:2] for e in expected]
    assert np.allclose(pairs.uv, np.array([e[2:] for e in expected]).reshape(-1, 2), atol=1e-3)
    seen = set(zip(pairs.point, pairs.camera))
    assert seen.issuperset(zip(*(lambda q: (q.point, q.camera))(projection_pairs(frame))))
