"""Datasets by name: a folder tells what it is, and only that; every dataset keeps the protocol."""

import inspect
import os
import pickle
from pathlib import Path

import pytest

from xmodal.data.datasets import DATASETS, dataset_class, open_dataset, recognise
from xmodal.data.kitti_write import write_kitti
from xmodal.data.nuscenes_write import write_nuscenes
from xmodal.data.semantickitti_write import write_semantickitti
from xmodal.data.street import Street

REAL = Path(os.environ.get("XMODAL_DATA", Path(__file__).parents[2] / "shared/data"))
LAYOUTS = {"kitti": write_kitti, "semantickitti": write_semantickitti, "nuscenes": write_nuscenes}


@pytest.fixture(scope="module")
def street():
    return Street(frames=2, cameras=2, size=(48, 96), beams=16, frames_per_drive=2, samples=1)


def owners(root):
    return [name for name in DATASETS if hasattr(dataset_class(name), "is_at") and dataset_class(name).is_at(root)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_street_in_every_layout_is_recognised_and_read_back(name, street, tmp_path):
    root = LAYOUTS[name](street, tmp_path / name, progress=False)
    assert owners(root) == [name] == [recognise(root)]
    again = open_dataset(name, root)
    assert len(again) == 2 and again.classes == street.classes
    for i in range(2):
        made, read = street[i], again[i].check()
        assert (made.points == read.points).all() and (made.semantic == read.semantic).all() and (made.instance == read.instance).all()
        assert len(read.cameras) == 2 and all((a.image == b.image).all() for a, b in zip(made.cameras, read.cameras))
        for camera in range(2):
            assert abs(made.lidar_to_camera(camera) - read.lidar_to_camera(camera)).max() < 1e-5


def test_a_folder_of_something_else_is_nobodys(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "image.png").touch()
    for root in (tmp_path, tmp_path / "training", tmp_path / "nowhere", tmp_path / "image.png", Path(__file__).parent):
        assert owners(root) == []


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_keeps_the_protocol(name, tmp_path):
    found = dataset_class(name)
    assert "\n" not in found.__doc__ and len(found.__doc__) < 160 and found.layout
    options = inspect.signature(found).parameters
    assert hasattr(found, "splits") == ("split" in options) or name == "kitti-object"  # its split is the folder
    for split, wanted in getattr(found, "splits", {}).items():
        assert isinstance(split, str) and isinstance(wanted, (tuple, str))
    with pytest.raises(ValueError) as refusal:  # BadData is one
        open_dataset(name, tmp_path / "nowhere")
    assert "nowhere" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_split_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nuscenes has no split 'training'; it has train, val, test, mini_train"):
        open_dataset("nuscenes:training", tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real recordings in {REAL} (not shipped; set XMODAL_DATA)")
@pytest.mark.parametrize("folder, name, frames", [("kitti_raw", "kitti", 33), ("kitti_object", "kitti-object", 4), ("argoverse2", "argoverse2", 2), ("semantickitti_crop", "semantickitti", 1)])
def test_real_recordings_are_recognised(folder, name, frames):
    assert owners(REAL / folder) == [name]
    dataset = open_dataset(recognise(REAL / folder), REAL / folder)
    assert len(dataset) == frames and len(pickle.dumps(dataset)) < 50_000
