"""Weights of others: bad files are refused and run nothing, good ones are recognised, exports come back."""

import json
import os
import pickle
import zipfile
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from xmodal.frame import BadData
from xmodal.interop import Unfitting, load_published, to_hub, to_mmdet3d, to_openpcdet, to_pointcept, to_slidr, to_torchsparse, to_torchvision
from xmodal.interop.layouts import RES16UNET, SEGCONTRAST, TORCHSPARSE, unet_entries
from xmodal.models.image import ResNet50
from xmodal.models.minkunet import MinkUNet, MinkUNet34, SpUNet34
from xmodal.models.spvcnn import SPVCNN
from xmodal.models.voxelnet import Grid, VoxelNet
from xmodal.sparse import SparseTensor
from xmodal.sparse.minkowski_engine import is_available

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
    "Whatever bytes a pickle is left with, the error is BadData."
    whole = pickle.dumps({"state_dict": {"conv1.weight": [1.0, 2.0]}, "epoch": 3, "config": {"lr": 0.1}}, protocol=2)
    rng, path = np.random.default_rng(1), tmp_path / "damaged.pth"
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(0, 256)
        path.write_bytes(bytes(data))
        with pytest.raises(BadData):
            load_published(path)


def test_a_folder_that_is_no_hub(tmp_path):
    with pytest.raises(BadData, match="no folder of a hub"):
        load_published(tmp_path)
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    for card, why in (("no json", "no folder of a hub"), ('{"architectures": ["BertModel"]}', "names no network of ours")):
        (tmp_path / "config.json").write_text(card)
        with pytest.raises(BadData, match=why):
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
