"""Weights of others: bad files are refused and run nothing, good ones are recognised, exports come back."""

import json
import os
import pickle
import zipfile
from dataclasses import asdict
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import xmodal.interop
from xmodal.batch import Voxels, voxelise
from xmodal.frame import BadData
from xmodal.interop import Unfitting, load_published, to_hub, to_mmdet3d, to_openpcdet, to_pointcept, to_slidr, to_torchsparse, to_torchvision
from xmodal.interop.exports import describe
from xmodal.interop.layouts import RES16UNET, SEGCONTRAST, SPUNET, TORCHSPARSE, pointnet2_entries, spvcnn_entries, to_spconv, unet_entries, voxel_entries
from xmodal.interop.published import PublishedRecipe, batch_of, centres, networks_of
from xmodal.methods.depthcontrast import Branch, DepthContrastRecipe
from xmodal.methods.parts import point_encoder
from xmodal.models.image import ResNet50
from xmodal.models.minkunet import MinkUNet, MinkUNet14, MinkUNet18, MinkUNet34, SpUNet34
from xmodal.models.pointnet2 import PointNet2MSG, PointNet2SSG
from xmodal.models.spvcnn import SPVCNN
from xmodal.models.voxelnet import Grid, VoxelNet
from xmodal.pretrain import METHODS, build, recipes
from xmodal.sparse import SparseTensor
from xmodal.sparse.minkowski_engine import is_available
from xmodal.training.checkpoint import save

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")
ENGINES = ["torch", pytest.param("minkowski", marks=pytest.mark.skipif(not is_available(), reason="MinkowskiEngine is not installed"))]
NARROW, ONES = (16, 16, 24, 32, 32, 24, 16, 16), (1,) * 8
SLIDR = {"decoder": "dilation", "voxel_size": 0.1, "cylindrical_coordinates": True, "NCE_temperature": 0.07, "bn_momentum": 0.05}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(network: nn.Module, seed: int = 0) -> nn.Module:
    "Statistics as after a training."
    generator = torch.Generator().manual_seed(seed)
    for m in network.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            m.running_mean.normal_(0, 0.1, generator=generator)
            m.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


@pytest.fixture
def unet() -> MinkUNet:
    torch.manual_seed(0)
    return trained(MinkUNet(1, 8, NARROW, ONES, 16))


@pytest.fixture
def cloud() -> tuple[torch.Tensor, torch.Tensor]:
    "Features and voxels of two samples in random order, negative coordinates among them."
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(-16, 16, (300, 3), generator=generator)
    coords = torch.unique(torch.cat([torch.randint(0, 2, (300, 1), generator=generator), places], 1), dim=0)
    coords = coords[torch.randperm(len(coords), generator=generator)].int()
    return torch.rand(len(coords), 1, generator=generator), coords


def named(network, layout=RES16UNET, stem_convs=1, blocks=ONES):
    "The tensors of a MinkUNet in the names of another system."
    state = network.state_dict()
    return {e.name: e.write(state[name]).clone() for name, e in unet_entries(list(state), layout, blocks, stem_convs).items()}


def write(tmp_path: Path, content, name: str = "file.pth") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


# what is no weights file


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_in_a_pickle_does_not_run(tmp_path, unet):
    trap = tmp_path / "it_ran"
    for i, content in enumerate(({"model_points": named(unet), "config": RunsCode(trap)}, RunsCode(trap), {"epoch": RunsCode(trap)})):
        path = write(tmp_path, content, f"{i}.pth")
        with pytest.raises(BadData, match=path.name):
            load_published(path)
        (tmp_path / f"{i}.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(BadData):
            load_published(tmp_path / f"{i}.pkl")
    assert not trap.exists()


class Foreign:
    pass


def test_unknown_classes_are_refused(tmp_path, unet):
    with pytest.raises(BadData, match="not a file of plain tensors"):
        load_published(write(tmp_path, {"model_points": named(unet), "config": Foreign()}))


def bad_files(folder: Path, good: Path) -> list[Path]:
    content = {
        "empty.pth": b"",
        "text.pth": b"these are no weights\n" * 40,
        "noise.pth": np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8).tobytes(),
        "web_page.pth": b"<!DOCTYPE html><html><body>404: no such file</body></html>",
        "truncated.pth": good.read_bytes()[: good.stat().st_size // 2],
        "cut_at_the_end.pth": good.read_bytes()[:-30],
        "text.safetensors": b"these are no weights\n" * 40,
        "list.pth": pickle.dumps([1, 2, 3]),
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    with zipfile.ZipFile(folder / "archive.pth", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    save_file({"a": torch.zeros(3)}, folder / "whole.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:-5])
    return [folder / name for name in (*content, "archive.pth", "whole.safetensors", "cut.safetensors", "absent.pth")]


def test_bad_files_are_refused_by_name(tmp_path, unet):
    for path in bad_files(tmp_path, write(tmp_path, {"model_points": named(unet)}, "good.pth")):
        with pytest.raises(BadData) as caught:
            load_published(path)
        assert str(path) in str(caught.value), path.name


def test_damage_anywhere_raises_nothing_else(tmp_path):
    "A whole archive of torch whose pickle has other bytes here and there: either the tensors are still there, or the error is BadData."
    small = {f"layer{i}.0.conv1.weight": torch.zeros(2, 2, 1, 1) for i in (1, 2)}
    whole = write(tmp_path, {"state_dict": small, "epoch": 3, "config": {"lr": 0.1, "DATASET": {"VOXEL_SIZE": [0.1, 0.1]}}}, "whole.pth")
    with zipfile.ZipFile(whole) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in parts if name.endswith("data.pkl"))
    with pytest.raises(Unfitting):
        load_published(whole)
    rng, path, causes = np.random.default_rng(1), tmp_path / "damaged.pth", set()
    for _ in range(100):
        data = bytearray(parts[pickled])
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(0, 256)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, bytes(data) if name == pickled else content)
        with pytest.raises(BadData, match="damaged.pth") as caught:
            load_published(path)
        causes.add(type(caught.value.__cause__))
    assert len(causes) >= 4  # the damage reached the unpickler in many ways


def test_a_dict_that_contains_itself(tmp_path):
    content = {"state_dict": {}}
    content["state_dict"]["again"] = content["state_dict"]
    with pytest.raises(BadData, match="RecursionError"):
        load_published(write(tmp_path, content))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"voxel_size": [0.1, 0.1, 0.2]}, "cubes"),
        ({"voxel_size": [0.1, 0.1]}, "neither one edge nor three"),
        ({"voxel_size": "fine"}, "no number"),
        ({"voxel_size": -0.1}, "no number"),
        ({"DATASET": {"VOXEL_SIZE": {"x": 0.1}}}, "no number"),
        ({"voxel_size": 0.1, "NCE_temperature": [0.07]}, "no number"),
        ({"voxel_size": 0.1, "bn_momentum": "low"}, "no number"),
    ],
)
def test_settings_that_cannot_be(tmp_path, unet, settings, told):
    with pytest.raises(BadData, match=f"file.pth.*{told}"):
        load_published(write(tmp_path, {"model_points": named(unet), "config": {"decoder": "ppkt"} | settings}))


def test_settings_in_other_words(tmp_path, unet):
    for settings, size in (({"voxel_size": ["0.2"] * 3}, 0.2), ({"DATASET": {"VOXEL_SIZE": [0.05, 0.05, 0.05]}}, 0.05), ({"DATASET": "nuscenes"}, 0.1)):
        found = load_published(write(tmp_path, {"model_points": named(unet), "config": {"decoder": "ppkt"} | settings}))
        assert found.recipe.voxels.size == size


def test_a_folder_that_is_no_hub(tmp_path):
    with pytest.raises(BadData, match="no folder of a hub"):
        load_published(tmp_path)
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    for card, why in (("no json", "no folder of a hub"), ('{"architectures": ["BertModel"]}', "names no network of ours")):
        (tmp_path / "config.json").write_text(card)
        with pytest.raises(BadData, match=why):
            load_published(tmp_path)


@pytest.mark.parametrize(
    "card",
    [
        [1],
        3,
        {"method": "lora"},
        {"method": ["slidr"], "recipe": {}},
        {"method": "slidr"},
        {"method": "slidr", "recipe": {"learning_rate": 1}},
        {"method": "slidr", "recipe": {"points": "minkunet99"}},
        {"network": ["MinkUNet"]},
        {"network": "MinkUNet"},
        {"network": "MinkUNet", "settings": [1]},
        {"network": "MinkUNet", "settings": {"width": 3}},
        {"network": "MinkUNet", "settings": {"planes": [1, 2]}},
        {"network": "MinkUNet", "settings": {"in_channels": -1}},
        {"network": "VoxelNet", "settings": {"grid": {"voxel": [1]}}},
        {"network": "ResNet50", "settings": {"blocks": 3}},
    ],
    ids=str,
)
def test_cards_that_describe_nothing(tmp_path, card):
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(card))
    with pytest.raises(BadData, match="config.json"):
        load_published(tmp_path)


# what is weights, but not these


def test_another_system_is_refused_with_its_names(tmp_path):
    names = ["blocks.0.attn.qkv.weight", "patch_embed.proj.weight"]
    with pytest.raises(Unfitting) as caught:
        load_published(write(tmp_path, {name: torch.zeros(3, 3) for name in names}))
    assert sorted(caught.value.unexpected) == names and "conv0p1s1.kernel" in caught.value.missing
    assert all(name in str(caught.value) for name in names)
    assert pickle.loads(pickle.dumps(caught.value)).unexpected == caught.value.unexpected


@pytest.mark.parametrize("name", ["conv0p1s1.kernel", "bn0.bn.running_var", "block4.0.conv2.kernel", "convtr5p8s2.kernel", "final.bias", "final.kernel"])
def test_one_missing_tensor_is_named(tmp_path, unet, name):
    tensors = named(unet)
    del tensors[name]
    with pytest.raises(Unfitting, match=name) as caught:
        load_published(write(tmp_path, {"model_points": tensors, "config": SLIDR}))
    assert caught.value.missing == [f"model_points.{name}"] and not caught.value.unexpected


def test_what_is_unexpected_or_misshapen_is_named(tmp_path, unet):
    with pytest.raises(Unfitting, match="unexpected: model_points.block1.0.se.fc1.weight") as caught:
        load_published(write(tmp_path, {"model_points": named(unet) | {"block1.0.se.fc1.weight": torch.zeros(2)}, "config": SLIDR}))
    assert caught.value.unexpected == ["model_points.block1.0.se.fc1.weight"] and not caught.value.missing
    with pytest.raises(Unfitting, match=r"bn2.bn.weight \(3,\) instead of \(16,\)"):
        load_published(write(tmp_path, {"model_points": named(unet) | {"bn2.bn.weight": torch.zeros(3)}, "config": SLIDR}))


def test_a_small_resnet_is_refused(tmp_path):
    basic = {"conv1.weight": torch.zeros(64, 3, 7, 7)} | {f"layer{i}.0.conv{j}.weight": torch.zeros(64, 64, 3, 3) for i in (1, 2, 3, 4) for j in (1, 2)}
    with pytest.raises(Unfitting, match="does not fit the ResNet-50") as caught:
        load_published(write(tmp_path, basic))
    assert "layer1.0.conv3.weight" in caught.value.missing


def test_two_networks_are_not_chosen_from(tmp_path, unet, cloud):
    path = write(tmp_path, {f"{side}.{name}": t for side in ("left", "right") for name, t in named(unet).items()})
    with pytest.raises(BadData, match="several networks: 'left.', 'right.'"):
        load_published(path)
    assert load_published(path, prefix="right.").points.out_channels == 8
    with pytest.raises(BadData, match="no network in it begins with 'middle.'"):
        load_published(path, prefix="middle.")


@pytest.mark.filterwarnings("error")
def test_a_prefix_chooses_among_its_kind_only(tmp_path, unet):
    resnet = ResNet50(dilated=False, blocks=(1, 1, 1, 1), width=8)
    content = {f"{side}.{name}": t for side in ("left", "right") for name, t in named(unet).items()}
    content |= {f"model_images.encoder.{name}": t for name, t in resnet.state_dict().items()}
    found = load_published(write(tmp_path, content), prefix="left.")
    assert found.image.channels == 256 and found.left_out == [name for name in content if name.startswith("right.")]


def test_a_system_that_is_none(tmp_path, unet):
    with pytest.raises(ValueError, match="system = 'minkunet'"):
        load_published(write(tmp_path, {"model_points": named(unet)}), system="minkunet")


def test_what_is_left_out_is_listed(tmp_path):
    state = ResNet50(dilated=False, blocks=(1, 1, 1, 1), width=8).state_dict()
    heads = {"fc.weight": torch.zeros(10, 256), "fc.bias": torch.zeros(10)}
    assert load_published(write(tmp_path, state | heads)).left_out == list(heads)
    moco = {f"module.encoder_q.{name}": t for name, t in (state | heads).items()} | {"module.queue": torch.zeros(8, 8)}
    assert load_published(write(tmp_path, {"state_dict": moco})).left_out == [*(f"state_dict.module.encoder_q.{name}" for name in heads), "state_dict.module.queue"]


# names and shapes as the systems' sources have them, written by hand


def bottlenecks(prefix: str) -> dict[str, torch.Tensor]:
    "A ResNet of torchvision with one block a level, of an eighth of the width."
    shapes = {"conv1.weight": (8, 3, 7, 7)}
    norms, wide = {"bn1": 8}, 8
    for i, width in enumerate((8, 16, 32, 64), 1):
        block = f"layer{i}.0"
        convs = {"conv1": (width, wide, 1, 1), "conv2": (width, width, 3, 3), "conv3": (4 * width, width, 1, 1), "downsample.0": (4 * width, wide, 1, 1)}
        shapes |= {f"{block}.{name}.weight": shape for name, shape in convs.items()}
        norms |= {f"{block}.bn1": width, f"{block}.bn2": width, f"{block}.bn3": 4 * width, f"{block}.downsample.1": 4 * width}
        wide = 4 * width
    shapes |= {f"{name}.{leaf}": (width,) for name, width in norms.items() for leaf in ("weight", "bias", "running_mean", "running_var")}
    return {prefix + name: torch.rand(shape) for name, shape in shapes.items()}


def res16unet(prefix: str, out: int) -> dict[str, torch.Tensor]:
    "SLidR's, with one block a level and planes of 8."
    tensors = {"conv0p1s1.kernel": torch.rand(27, 1, 8), "final.kernel": torch.rand(8, out), "final.bias": torch.rand(1, out)}
    names = ["bn0", *(f"bn{i}" for i in (1, 2, 3, 4)), *(f"bntr{i}" for i in (4, 5, 6, 7))]
    for i, stride in enumerate((1, 2, 4, 8), 1):
        tensors[f"conv{i}p{stride}s2.kernel"] = torch.rand(8, 8, 8)
    for i, stride in enumerate((16, 8, 4, 2), 4):
        tensors[f"convtr{i}p{stride}s2.kernel"] = torch.rand(8, 8, 8)
    for i in range(1, 9):
        wide = 16 if i > 4 else 8  # joined with the skip
        tensors |= {f"block{i}.0.conv1.kernel": torch.rand(27, wide, 8), f"block{i}.0.conv2.kernel": torch.rand(27, 8, 8)}
        names += [f"block{i}.0.norm1", f"block{i}.0.norm2"]
        if wide == 16:
            tensors[f"block{i}.0.downsample.0.kernel"] = torch.rand(16, 8)
            names.append(f"block{i}.0.downsample.1")
    tensors |= {f"{name}.bn.{leaf}": torch.rand(8) for name in names for leaf in ("weight", "bias", "running_mean", "running_var")}
    return {prefix + name: tensor for name, tensor in tensors.items()}


def test_files_by_hand(tmp_path, cloud):
    images = lambda prefix: bottlenecks(f"{prefix}encoder.") | {f"{prefix}decoder.0.weight": torch.rand(8, 256, 1, 1), f"{prefix}decoder.0.bias": torch.rand(8)}
    read = lambda content: load_published(write(tmp_path, content))
    ppkt = read({"model_points": res16unet("", 8), "model_images": images(""), "config": {"decoder": "ppkt", "voxel_size": 0.1}})
    nclr = read({"state_dict": res16unet("encoder.", 8) | images("img_encoder."), "config": {"DATASET": {"VOXEL_SIZE": 0.05}}})
    for found, system in ((ppkt, "ppkt"), (nclr, "nclr")):
        assert found.system == system and not found.left_out and found.image.encoder.stride == 32
        assert found.points(SparseTensor(*cloud)).shape == (len(cloud[0]), 8) and found.image(torch.rand(1, 3, 64, 64)).shape == (1, 8, 64, 64)
    seven = {name: t for name, t in res16unet("module.trunk.0.", 8).items() if not any(part in name for part in ("tr7", "block8", "final"))}
    depthcontrast = read({"model": seven})
    assert depthcontrast.system == "depthcontrast" and depthcontrast.points(SparseTensor(*cloud)).shape == (len(cloud[0]), 8)
    queue = {"module.queue": torch.rand(128, 16), "module.queue_ptr": torch.zeros(1)}
    head = {f"module.encoder_{k}.fc.{i}.weight": torch.rand(16, 256) for k in "qk" for i in (0, 2)}
    moco = bottlenecks("module.encoder_q.") | bottlenecks("module.encoder_k.") | queue | head
    found = read({"epoch": 200, "arch": "resnet50", "state_dict": moco})
    assert found.system == "resnet" and torch.equal(found.image.conv1.weight, moco["module.encoder_q.conv1.weight"])
    assert not any("encoder_q.layer" in name for name in found.left_out) and len(found.left_out) == len(moco) - len(bottlenecks(""))
    dino = {"student": bottlenecks("module.backbone."), "teacher": bottlenecks("backbone.") | {"head.mlp.0.weight": torch.rand(8, 256)}}
    found = read(dino)
    assert torch.equal(found.image.conv1.weight, dino["teacher"]["backbone.conv1.weight"]) and "teacher.head.mlp.0.weight" in found.left_out


# what is read


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout, stem_convs", [(RES16UNET, 1), (TORCHSPARSE, 1), (TORCHSPARSE, 2), (SEGCONTRAST, 2)])
def test_features_row_by_row(tmp_path, cloud, layout, stem_convs, engine):
    network = trained(MinkUNet(1, 8, NARROW, ONES, 16, stem_convs=stem_convs))
    found = load_published(write(tmp_path, {"state_dict": {f"module.encoder.{n}": t for n, t in named(network, layout, stem_convs).items()}}))
    feats, coords = cloud
    with torch.no_grad():
        ours = found.points(SparseTensor(feats, coords, engine=engine))
        assert ours.shape == (len(coords), 8)
        assert torch.allclose(ours, network(SparseTensor(feats, coords)), atol=1e-5)


def test_slidr_at_real_size(tmp_path):
    network, image = MinkUNet34(), ResNet50(dilated=True)
    images = {f"encoder.{name}": t for name, t in image.state_dict().items()} | {"decoder.0.weight": torch.zeros(64, 2048, 1, 1), "decoder.0.bias": torch.zeros(64)}
    blocks = (2, 3, 4, 6, 2, 2, 2, 2)
    path = write(tmp_path, {"model_points": named(network, blocks=blocks), "model_images": images, "epoch": 50, "config": SLIDR})
    found = load_published(path)
    count = lambda module: sum(p.numel() for p in module.parameters())
    assert found.system == "slidr" and not found.left_out
    assert count(found.points) == 37_849_184 and count(found.image.encoder) == 23_508_032
    assert found.image.encoder.stride == 4 and found.image.encoder.frozen and not found.points.training
    assert (found.recipe.points, found.recipe.channels, found.recipe.temperature) == ("minkunet34", 64, 0.07)
    assert found.recipe.voxels.cylindrical and found.recipe.voxels.size == 0.1
    from xmodal.methods.parts import point_encoder

    again = point_encoder(found.recipe.points, found.recipe.channels, found.recipe.network)
    again.load_state_dict(found.points.state_dict())


def test_foreign_settings_are_read_without_their_packages(tmp_path, unet):
    "EasyDict, a path, a number of NumPy: what NCLR and BEVContrast keep beside the weights."
    module = type("M", (), {})
    EasyDict = type("EasyDict", (dict,), {"__module__": "easydict"})
    module.EasyDict = EasyDict
    import sys

    before = sys.modules.get("easydict")
    sys.modules["easydict"] = module
    try:
        config = EasyDict(DATASET=EasyDict(VOXEL_SIZE=0.05), SAVE_FOLDER=PosixPath("output/run"))
        path = write(tmp_path, {"state_dict": {f"encoder.{n}": t for n, t in named(unet).items()}, "config": config, "epoch": np.float64(3)})
    finally:
        sys.modules.pop("easydict") if before is None else sys.modules.update(easydict=before)
    found = load_published(path)
    assert found.recipe.voxels.size == 0.05 and found.points.out_channels == 8


def test_half_precision_and_data_parallel_prefixes(tmp_path, unet, cloud):
    tensors = {f"module.{name}": t.half() if t.is_floating_point() else t for name, t in named(unet).items()}
    found = load_published(write(tmp_path, {"model_points": tensors, "config": SLIDR}))
    assert found.points.stem[0].weight.dtype == torch.float32
    feats, coords = cloud
    with torch.no_grad():
        assert torch.allclose(found.points(SparseTensor(feats, coords)), unet(SparseTensor(feats, coords)), atol=0.02)


# what is told


def unmade(recipe) -> nn.Module:
    "The network of a recipe, still random."
    if isinstance(recipe, DepthContrastRecipe):
        return Branch(recipe.formats[0], recipe).encoder.network
    if isinstance(recipe, PublishedRecipe):
        kinds = {"minkunet14": MinkUNet14, "minkunet18": MinkUNet18, "minkunet34": MinkUNet34, "spvcnn": SPVCNN, "voxelnet": VoxelNet}
        return kinds[recipe.points](recipe.in_channels, recipe.channels, **recipe.network)
    return point_encoder(recipe.points, recipe.channels, recipe.network)


GRID = Grid((0.4, 0.4, 0.4), (-12.8, -12.8, -6.4), (12.8, 12.8, 6.4))


def systems() -> dict[str, tuple[nn.Module, dict]]:
    "Name: a network, the file in which it is published."
    unet = lambda channels=1, out=8, **more: MinkUNet(channels, out, NARROW, ONES, 16, **more)
    plain, colour, two, bare, four = unet(), unet(3), unet(stem_convs=2), unet(out=0), SpUNet34(4, 8, planes=NARROW, blocks=ONES, stem=16)
    at = lambda prefix, tensors: {"state_dict": {prefix + name: t for name, t in tensors.items()}}
    files = {
        "slidr": (plain, {"model_points": named(plain), "config": SLIDR}),
        "slidr with colours": (colour, {"model_points": named(colour), "config": SLIDR}),
        "ppkt": (plain, {"model_points": named(plain), "config": {"decoder": "ppkt", "voxel_size": 0.2}}),
        "nclr": (plain, at("", {f"encoder.{n}": t for n, t in named(plain).items()} | {"img_encoder.score": torch.zeros(1)})),
        "segcontrast": (two, at("model_q.", named(two, SEGCONTRAST, 2))),
        "also": (bare, at("backbone.", named(bare, TORCHSPARSE))),
        "spunet": (four, at("module.backbone.", named(four, SPUNET))),
    }
    spv = SPVCNN(2, 8, (16, *NARROW), ONES)
    files["bevcontrast"] = spv, at("encoder.", {e.name: e.write(spv.state_dict()[n]).clone() for n, e in spvcnn_entries(list(spv.state_dict()), ONES).items()})
    voxelnet = VoxelNet(1, 16, GRID)
    state = voxelnet.backbone.state_dict()
    theirs = {e.name: e.write(state[n]).clone() for n, e in voxel_entries(list(state)).items()} | {"final.weight": to_spconv(voxelnet.final.weight.data).clone()}
    files["voxelnet"] = voxelnet, {"model_points": theirs, "config": SLIDR}
    for votenet, channels, network in ((True, 0, PointNet2SSG(2)), (True, 3, PointNet2SSG(1, 3)), (False, 1, PointNet2MSG(1))):
        names = pointnet2_entries(list(network.state_dict()), votenet)
        files[f"depthcontrast, points with {channels}"] = network, at("trunk.0.", {e.name: e.write(network.state_dict()[n]) for n, e in names.items()})
    for channels in (1, 3):
        network = unet(channels, 0)
        network.up, network.decode = network.up[:3], network.decode[:3]
        files[f"depthcontrast, voxels with {channels}"] = network, at("trunk.0.", named(network)) | {"config": {"voxel_size": 0.05}}
    return files


SYSTEMS = (
    "slidr", "slidr with colours", "ppkt", "nclr", "segcontrast", "also", "spunet", "bevcontrast", "voxelnet", "depthcontrast, points with 0",
    "depthcontrast, points with 3", "depthcontrast, points with 1", "depthcontrast, voxels with 1", "depthcontrast, voxels with 3",
)  # fmt: skip


@pytest.fixture(scope="module")
def files():
    return systems()


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_recipe_makes_the_network_again(tmp_path, files, name):
    network, content = files[name]
    found = load_published(write(tmp_path, content), grid=GRID)
    again = unmade(found.recipe)
    again.load_state_dict(network.state_dict())  # one to one
    momenta = lambda network: {(m.momentum, m.eps) for m in network.modules() if isinstance(m, nn.BatchNorm1d)}
    assert momenta(again) == momenta(found.points)
    if "voxels with" in name:
        assert found.recipe.inputs == {1: "intensity", 3: "colour"}[int(name[-1])] and found.recipe.voxels.size == 0.05
    json.dumps(asdict(found.recipe))


# what is ours


@pytest.mark.parametrize("name", METHODS)
def test_our_own_networks_keep_the_promise(tmp_path, cloud, name):
    "From a checkpoint and from a hub: features row by row in the space that points and pixels share."
    recipe = recipes(name)["small"]()
    method = build(name, recipe).eval()
    path = save(tmp_path / "own.safetensors", method.state_dict(), {"method": name, "recipe": asdict(recipe)})
    feats, coords = cloud
    picture = torch.rand(1, 3, 64, 96)
    for found in (load_published(path), load_published(to_hub(method, tmp_path / "hub"))):
        assert found.system == name and not found.points.training
        with torch.no_grad():
            features = found.points(SparseTensor(feats, coords))
            mixed = torch.empty(len(coords), dtype=torch.long)  # the samples mixed otherwise, each in its own order: some methods draw points
            sample = coords[torch.randperm(len(coords), generator=torch.Generator().manual_seed(1)), 0]
            for b in (0, 1):
                mixed[sample == b] = (coords[:, 0] == b).nonzero()[:, 0]
            again = found.points(SparseTensor(feats[mixed], coords[mixed]))
            assert features.ndim == 2 and len(features) == len(coords) and features.isfinite().all() and features.std(0).mean() > 0
            assert torch.allclose(again, features[mixed], atol=1e-4)
            assert (found.image is None) == (not hasattr(method, "encode_images"))
            if found.image is not None:
                pixels = found.image(picture)
                assert pixels.shape == (1, features.shape[1], 64, 96) and torch.allclose(pixels, method.encode_images(picture), atol=1e-5)


@pytest.mark.parametrize("name", ["slidr", "ppkt", "pointcontrast", "nclr", "scalr"])
def test_our_own_features_are_those_of_the_method(tmp_path, name):
    "On a real batch whose points are the centres of voxels."
    method = build(name, recipes(name)["small"]()).eval()
    generator = torch.Generator().manual_seed(0)
    coords = nn.functional.pad(torch.unique(torch.randint(-20, 20, (400, 3), generator=generator), dim=0), (1, 0)).int()
    x = SparseTensor(torch.rand(len(coords), 1, generator=generator), coords)
    batch = batch_of(x, method.recipe.voxels)
    with torch.no_grad():
        features = nn.functional.normalize(networks_of(method, name).points(x), dim=1)
        assert torch.allclose(features, method.encode_points(batch), atol=1e-5)


@pytest.mark.parametrize("kind", ["points", "voxels"])
def test_a_depthcontrast_that_sees_colours(cloud, kind):
    small = {"points": (64, 32, 16, 8)}
    recipe = DepthContrastRecipe((kind,), "pointnet2_ssg", small, voxels_encoder="minkunet14", inputs="colour", queue=8)
    network, (_, coords) = networks_of(build("depthcontrast", recipe).eval(), "depthcontrast").points, cloud
    colours = torch.rand(len(coords), 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (network(SparseTensor(feats, coords)) for feats in (colours, 1 - colours))
    assert len(one) == len(coords) and not torch.allclose(one, other)


def test_cylindrical_voxels_have_their_centres_where_they_are():
    points = np.random.default_rng(0).uniform(-20, 20, (200, 3))
    for voxels in (Voxels(0.2), Voxels(0.2, cylindrical=True)):
        coords, inverse, _ = voxelise(points, voxels)
        places = centres(nn.functional.pad(torch.from_numpy(coords), (1, 0)), voxels).numpy()[inverse]
        assert np.linalg.norm(places - points, axis=1).max() < 0.36  # half a voxel: 0.1 m, 0.5 degrees at up to 28 m, 0.1 m


def test_the_public_names():
    assert {"load_published", "to_hub", "to_pointcept", "Unfitting"} <= set(xmodal.interop.__all__)


# what is written


@pytest.mark.filterwarnings("ignore:the file does not say")
@pytest.mark.parametrize("write_it", [to_slidr, to_torchsparse, to_pointcept])
def test_exports_come_back(tmp_path, unet, cloud, write_it):
    feats, coords = cloud
    found = load_published(write_it(unet, tmp_path / "deep" / "file.pth", head=True))
    with torch.no_grad():
        assert torch.allclose(found.points(SparseTensor(feats, coords)), unet(SparseTensor(feats, coords)), atol=1e-6)


def test_spunet_and_spvcnn_come_back(tmp_path, cloud):
    feats, coords = cloud
    for network, write_it in ((SpUNet34(1, 8, planes=NARROW, blocks=ONES, stem=16), to_pointcept), (SPVCNN(1, 8, (16, *NARROW), ONES), to_torchsparse)):
        found = load_published(write_it(trained(network), tmp_path / "file.pth", head=True))
        with torch.no_grad():
            assert torch.equal(found.points(SparseTensor(feats, coords)), network(SparseTensor(feats, coords)))


def test_detectors_get_their_names(tmp_path):
    network = VoxelNet(1, 16, Grid((0.4, 0.4, 0.4), (-12.8, -12.8, -6.4), (12.8, 12.8, 6.4)))
    read = lambda path: torch.load(path, weights_only=True)
    pcdet = read(to_openpcdet(network, tmp_path / "pcdet.pth"))["model_state"]
    mm = read(to_mmdet3d(network, tmp_path / "mm.pth", part="pts_middle_encoder"))["state_dict"]
    assert pcdet["backbone_3d.conv_input.0.weight"].shape == (16, 3, 3, 3, 4)  # out, z, y, x, in
    assert torch.equal(pcdet["backbone_3d.conv2.0.0.weight"], mm["pts_middle_encoder.encoder_layers.encoder_layer2.0.0.weight"])
    ours = network.backbone.conv2[0][0].weight  # (27, in, out), x fastest
    z, y, x = 2, 0, 1
    assert torch.equal(pcdet["backbone_3d.conv2.0.0.weight"][:, z, y, x], ours[9 * z + 3 * y + x].T)


def test_a_kernel_of_one_lies_otherwise_in_spconv(tmp_path):
    "spconv multiplies by weight.view(in, out), whatever the shape (out, 1, 1, 1, in) says."
    network = SpUNet34(1, 8, planes=NARROW, blocks=ONES, stem=16)
    tensors = torch.load(to_pointcept(network, tmp_path / "spunet.pth"), weights_only=True)["state_dict"]
    ours = network.decode[0][0].shortcut[0].weight[0]  # (in, out)
    theirs = tensors["backbone.dec.3.block0.proj.0.weight"]
    assert theirs.shape == (32, 1, 1, 1, 56) and torch.equal(theirs.view(56, 32), ours)


def test_resnet_and_hub_come_back(tmp_path, unet):
    resnet = trained(ResNet50(dilated=False, blocks=(1, 1, 1, 1), width=8))
    for path in (to_torchvision(resnet, tmp_path / "resnet.pth"), to_torchvision(resnet, tmp_path / "resnet.safetensors"), to_hub(resnet, tmp_path / "hub")):
        found = load_published(path)
        assert all(torch.equal(t, resnet.state_dict()[name]) for name, t in found.image.state_dict().items())
    folder = to_hub(unet, tmp_path / "unet")
    assert json.loads((folder / "config.json").read_text())["network"] == "MinkUNet"
    assert repr(load_published(folder).points) == repr(unet)
    tensors = dict(unet.state_dict())
    del tensors["stem.0.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(Unfitting, match="missing: stem.0.weight"):
        load_published(folder)


def test_only_known_networks_are_described(tmp_path):
    with pytest.raises(TypeError, match="a Linear is not described"):
        describe(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="a Linear"):
        to_hub(nn.Linear(2, 2), tmp_path / "hub")
