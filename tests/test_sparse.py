"""The two engines of sparse convolution against each other, against dense convolution and against finite differences."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xmodal.models.minkunet import MinkUNet, MinkUNet14
from xmodal.sparse import SparseConv3d, SparseConvTranspose3d, SparseReLU, SparseTensor, SubmanifoldConv3d
from xmodal.sparse.minkowski_engine import is_available

needs_minkowski = pytest.mark.skipif(not is_available(), reason="MinkowskiEngine is not installed")
ENGINES = ["torch", pytest.param("minkowski", marks=needs_minkowski)]
SCANS = Path(os.environ.get("XMODAL_DATA", Path(__file__).parents[2] / "shared/data")) / "kitti_raw/2011_09_26"


@pytest.fixture(autouse=True)
def one_thread():
    "Small clouds gain nothing from threads, and on a busy machine these wait for each other."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cloud(voxels: int, seed: int = 0, size: int = 24) -> torch.Tensor:
    "Voxels of two samples in random order, negative coordinates among them."
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(-size // 2, size // 2, (voxels, 3), generator=generator)
    coords = torch.unique(torch.cat([torch.randint(0, 2, (voxels, 1), generator=generator), places], 1), dim=0)
    return coords[torch.randperm(len(coords), generator=generator)].int()


def small_unet(seed: int = 0) -> MinkUNet:
    torch.manual_seed(seed)
    return MinkUNet14(2, 8, planes=(16, 32, 48, 64, 64, 48, 32, 32), stem_kernel=5)


def output_and_gradients(model, feats, coords, engine):
    feats = feats.clone().requires_grad_()
    model.zero_grad(set_to_none=True)
    out = model(SparseTensor(feats, coords, engine))
    target = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    (out * target).mean().backward()
    return [out.detach(), feats.grad, *(p.grad for p in model.parameters())]


def assert_close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1)


@needs_minkowski
@pytest.mark.parametrize("layers", ["submanifold 3", "submanifold 5", "down 2", "down 3", "down and up"])
def test_layers_agree_between_engines(layers):
    torch.manual_seed(0)
    make = {
        "submanifold 3": lambda: [SubmanifoldConv3d(4, 8, bias=True)],
        "submanifold 5": lambda: [SubmanifoldConv3d(4, 8, 5)],
        "down 2": lambda: [SparseConv3d(4, 8), SparseConvTranspose3d(8, 8)],
        "down 3": lambda: [SparseConv3d(4, 8, 3), SparseConvTranspose3d(8, 8, 3)],
        "down and up": lambda: [
            SparseConv3d(4, 8), SubmanifoldConv3d(8, 8), SparseConv3d(8, 8),
            SubmanifoldConv3d(8, 8), SparseConvTranspose3d(8, 8), SparseConvTranspose3d(8, 8),
        ],
    }  # fmt: skip
    stack = torch.nn.Sequential(*make[layers]())
    rows = lambda x: stack(x).feats
    rows.zero_grad, rows.parameters = stack.zero_grad, stack.parameters
    coords = cloud(3000)
    feats = torch.randn(len(coords), 4)
    ours, theirs = (output_and_gradients(rows, feats, coords, engine) for engine in ("torch", "minkowski"))
    assert_close(ours, theirs, 1e-4)


@needs_minkowski
@pytest.mark.parametrize("threads", [1, 2])
def test_one_state_dict_runs_on_both_engines(monkeypatch, threads):
    "Output, gradients of input and weights, running statistics: within 1e-4 in float32."
    # smooth, because at the kink of a ReLU a rounding error chooses between two gradients
    monkeypatch.setattr(SparseReLU, "forward", lambda self, x: x.with_feats(F.silu(x.feats)))
    monkeypatch.setattr(torch.Tensor, "relu_", lambda self: F.silu(self))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    coords = cloud(4000, size=40)
    feats = torch.rand(len(coords), 2)
    one, other = small_unet(0), small_unet(1)
    other.load_state_dict(one.state_dict())
    ours = output_and_gradients(one, feats, coords, "torch")
    theirs = output_and_gradients(other, feats, coords, "minkowski")
    torch.set_num_threads(before)
    assert_close(ours, theirs, 1e-4)
    assert_close(one.buffers(), other.buffers(), 1e-4)


@needs_minkowski
def test_engines_agree_in_float64():
    "What is left of the difference is rounding: it vanishes with more digits."
    coords = cloud(600)
    feats, model = torch.rand(len(coords), 2, dtype=torch.double), small_unet().double()
    ours, theirs = (output_and_gradients(model, feats, coords, engine) for engine in ("torch", "minkowski"))
    assert_close(ours, theirs, 1e-9)


def test_gradcheck():
    coords = cloud(30, size=4)
    torch.manual_seed(0)
    layers = [SubmanifoldConv3d(2, 3, bias=True), SparseConv3d(3, 2), SubmanifoldConv3d(2, 2), SparseConvTranspose3d(2, 2), SubmanifoldConv3d(2, 2, 1)]
    stack = torch.nn.Sequential(*layers).double()
    names = [name for name, _ in stack.named_parameters()]

    def run(feats, *weights):
        return torch.func.functional_call(stack, dict(zip(names, weights)), (SparseTensor(feats, coords, "torch"),)).feats

    assert torch.autograd.gradcheck(run, [torch.randn(len(coords), 2, dtype=torch.double, requires_grad=True), *stack.parameters()])


@pytest.mark.parametrize("engine", ENGINES)
def test_filled_grid_is_dense_convolution(engine):
    "Two samples, all convolutions in a row, values and gradients; conv3d is the judge."
    n, dtype = 8, torch.double
    torch.manual_seed(0)
    same, down, up = SubmanifoldConv3d(3, 4, bias=True).to(dtype), SparseConv3d(4, 5).to(dtype), SparseConvTranspose3d(5, 2).to(dtype)
    volume = torch.randn(2, 3, n, n, n, dtype=dtype, requires_grad=True)
    coords = torch.cartesian_prod(torch.arange(2), *[torch.arange(n)] * 3)[torch.randperm(2 * n**3)]
    b, x, y, z = coords.T

    sparse = up(down(same(SparseTensor(volume[b, :, x, y, z], coords, engine)))).feats
    weight_of = lambda layer: layer.weight.reshape(*[layer.kernel] * 3, *layer.weight.shape[1:]).permute(4, 3, 2, 1, 0)
    dense = F.conv3d(volume, weight_of(same), same.bias, padding=1)
    dense = F.conv_transpose3d(F.conv3d(dense, weight_of(down), stride=2), weight_of(up).transpose(0, 1), stride=2)
    assert torch.allclose(sparse, dense[b, :, x, y, z], atol=1e-10)

    leaves = [volume, same.weight, same.bias, down.weight, up.weight]
    judge = torch.randn_like(sparse)
    ours = torch.autograd.grad((sparse * judge).sum(), leaves)
    theirs = torch.autograd.grad((dense[b, :, x, y, z] * judge).sum(), leaves)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_torch_engine_repeats_itself_bit_by_bit(threads):
    coords = cloud(10000, size=50)
    feats = torch.rand(len(coords), 2)
    torch.set_num_threads(threads)
    first, again = (output_and_gradients(small_unet(), feats, coords, "torch") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("layer", [SubmanifoldConv3d(16, 16), SparseConv3d(16, 16)], ids=["submanifold", "strided"])
def test_layers_under_autocast_lose_only_the_rounding(layer):
    "bfloat16 keeps 8 bits, 0.4 %. (Of a deep network only the output can be compared: rounding flips ReLUs.)"
    coords = cloud(3000)
    feats, rows = torch.randn(len(coords), 16), lambda x: layer(x).feats
    rows.zero_grad, rows.parameters = layer.zero_grad, layer.parameters
    exact = output_and_gradients(rows, feats, coords, "torch")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = output_and_gradients(rows, feats, coords, "torch")
    assert half[0].dtype == torch.bfloat16 and all(g.dtype == torch.float32 for g in half[1:])
    assert all((a - b).norm() < 0.02 * b.norm() for a, b in zip(half, exact, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_unet_under_autocast(engine):
    coords = cloud(3000)
    feats, model = torch.rand(len(coords), 2), small_unet()
    exact = output_and_gradients(model, feats, coords, engine)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = output_and_gradients(model, feats, coords, engine)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in half[1:])
    assert (half[0].float() - exact[0]).abs().mean() < 0.05 * exact[0].abs().mean()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_torch_engine_on_the_gpu():
    "The same as on the CPU, and the same again bit by bit."
    coords = cloud(20000, size=60)
    feats, model = torch.rand(len(coords), 2, dtype=torch.double), small_unet().double()
    on_cpu = output_and_gradients(model, feats, coords, "torch")
    target = torch.linspace(-1, 1, on_cpu[0].numel(), dtype=torch.double, device="cuda").reshape(on_cpu[0].shape)
    model = model.cuda()
    runs = []
    for _ in range(2):
        moved = feats.cuda().requires_grad_()
        model.zero_grad(set_to_none=True)
        out = model(SparseTensor(moved, coords.cuda()))
        (out * target).mean().backward()
        runs.append([t.detach().cpu() for t in (out, moved.grad, *(p.grad for p in model.parameters()))])
    assert_close(runs[0], on_cpu, 1e-9)
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_minkowski_is_not_imported_before_it_is_asked_for():
    code = "import sys, torch, xmodal.sparse as s; s.SparseTensor(torch.ones(1, 1), torch.zeros(1, 4, dtype=torch.int)); print('MinkowskiEngine' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_missing_minkowski_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", None)
    with pytest.raises(ImportError, match="use engine='torch'"):
        SparseTensor(torch.ones(1, 1), torch.zeros(1, 4, dtype=torch.int), "minkowski")


@needs_minkowski
@pytest.mark.skipif(not SCANS.is_dir(), reason=f"no KITTI recording in {SCANS}")
def test_engines_agree_on_a_real_scan():
    points = np.fromfile(sorted(SCANS.glob("*/velodyne_points/data/*.bin"))[0], np.float32).reshape(-1, 4)[:, :3]
    voxels = torch.from_numpy(np.unique(np.floor(points / 0.4).astype(np.int32), axis=0))
    coords, model = F.pad(voxels, (1, 0)), small_unet().eval()
    feats = torch.rand(len(coords), 2)
    with torch.no_grad():
        ours, theirs = (model(SparseTensor(feats, coords, engine)) for engine in ("torch", "minkowski"))
    assert_close([ours], [theirs], 1e-4)
