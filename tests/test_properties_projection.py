"""Properties of transforms and cameras that hold for any pose and any lens; OpenCV is the other engine that has to agree."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from xmodal.projection import compose, in_image, inverse, is_rigid, lens_reach, project, rigid, transform, unproject, visible

quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)
small = st.floats(-0.02, 0.02)
lenses = st.none() | st.tuples(st.floats(-0.5, 0.6), st.floats(-0.3, 0.3), small, small, st.floats(-0.1, 0.1)).map(np.array)


def any_pose(rng):
    return rigid(Rotation.random(random_state=int(rng.integers(2**31))).as_matrix(), rng.normal(0, 100, 3))


@quick
@given(seed=seeds)
def test_transforms_form_a_group(seed):
    rng = np.random.default_rng(seed)
    a, b, c = (any_pose(rng) for _ in range(3))
    points = rng.normal(0, 50, (20, 3))
    assert all(map(is_rigid, (a, inverse(a), compose(a, b, c))))
    assert np.allclose(compose(a, inverse(a)), np.eye(4)) and np.allclose(inverse(inverse(a)), a)
    assert np.allclose(inverse(a), np.linalg.inv(a), atol=1e-9)
    assert np.allclose(compose(compose(a, b), c), compose(a, compose(b, c))) and np.allclose(compose(a, b, c), c @ b @ a)
    assert np.allclose(inverse(compose(a, b)), compose(inverse(b), inverse(a)))
    assert np.allclose(transform(compose(a, b), points), transform(b, transform(a, points)))
    moved = transform(a, points)
    assert np.allclose(transform(inverse(a), moved), points)
    assert np.allclose(np.linalg.norm(moved[1:] - moved[:-1], axis=1), np.linalg.norm(points[1:] - points[:-1], axis=1))


def any_camera(rng, lens):
    "Intrinsics, and points that the lens can see: well inside of where its model turns back."
    intrinsics = np.array([[rng.uniform(100, 2000), 0, rng.uniform(0, 1500)], [0, rng.uniform(100, 2000), rng.uniform(0, 900)], [0, 0, 1.0]])
    reach = 1.2 if lens is None else min(1.2, 0.7 * lens_reach(lens))
    angle, r, depth = rng.uniform(0, 2 * np.pi, 50), reach * np.sqrt(rng.random(50)), rng.uniform(0.5, 100, 50)
    return intrinsics, np.column_stack([r * np.cos(angle), r * np.sin(angle), np.ones(50)]) * depth[:, None]


@quick
@given(seed=seeds, lens=lenses)
def test_unproject_undoes_project_and_opencv_agrees(seed, lens):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is the judge")
    intrinsics, points = any_camera(np.random.default_rng(seed), lens)
    if lens is not None:  # where the radial part hardly grows the tangential one folds the image: two rays, one pixel
        r2 = ((points[:, :2] / points[:, 2:]) ** 2).sum(1).max() * np.linspace(0, 1, 100)
        assume((1 + 3 * lens[0] * r2 + 5 * lens[1] * r2**2 + 7 * lens[4] * r2**3 > 0.2).all())
    uv, depth = project(points, intrinsics, lens)
    theirs = cv2.projectPoints(points, np.zeros(3), np.zeros(3), intrinsics, lens)[0][:, 0]
    assert np.abs(uv - theirs).max() < 1e-6
    back = unproject(uv, depth, intrinsics, lens)
    assert np.abs(back - points).max() < 1e-5 * depth.max()
    again, _ = project(back, intrinsics, lens)
    assert np.abs(again - uv).max() < 1e-4


@quick
@given(seed=seeds, lens=lenses)
def test_no_point_behind_or_beyond_the_lens_has_a_pixel(seed, lens):
    rng = np.random.default_rng(seed)
    intrinsics, points = any_camera(rng, lens)
    assert np.isnan(project(points * [1, 1, -1], intrinsics, lens)[0]).all()
    if lens is not None and np.isfinite(reach := lens_reach(lens)):
        angle, r = rng.uniform(0, 2 * np.pi, 50), reach * rng.uniform(1.001, 5, 50)
        beyond = np.column_stack([r * np.cos(angle), r * np.sin(angle), np.ones(50)])
        assert np.isnan(project(beyond, intrinsics, lens)[0]).all()


@quick
@given(seed=seeds, count=st.integers(1, 400), size=st.tuples(st.integers(3, 200), st.integers(3, 400)))
def test_visible_points_are_in_the_image_and_the_nearest_is_never_hidden(seed, count, size):
    rng = np.random.default_rng(seed)
    uv, depth = rng.uniform(-20, np.array(size[::-1]) + 20, (count, 2)), rng.uniform(0.1, 80, count)
    inside, seen = in_image(uv, depth, size, min_depth=0), visible(uv, depth, size)
    assert not (seen & ~inside).any()
    if inside.any():
        nearest = np.flatnonzero(inside)[depth[inside].argmin()]
        assert seen[nearest]
    near = depth <= np.median(depth)  # what lies farther away neither hides a point nor brings it back
    assert np.array_equal(visible(uv[near], depth[near], size), seen[near])
