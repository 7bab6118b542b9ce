"""What holds for the package as a whole."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import xmodal

PACKAGE = Path(xmodal.__file__).parent
MODULES = sorted("xmodal." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py") if path.name[0] != "_")
HEAVY = "pyarrow h5py yaml rosbags laspy plyfile pypcd4 dask distributed cv2 open3d MinkowskiEngine matplotlib plotly lightning sklearn skimage papermill tyro IPython"


def test_importing_any_module_needs_no_heavy_package():
    light = [name for name in MODULES if name != "xmodal.viz.explorer"]  # it is the widget itself: a class of anywidget, which brings IPython
    code = f"""
import importlib, sys
for name in {light!r}:
    importlib.import_module(name)
print(*[name for name in {HEAVY.split()!r} if name in sys.modules])
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []
    assert {"xmodal.projection", "xmodal.sparse.layers", "xmodal.training.fit"} <= set(MODULES)


def test_versions_agree():
    assert version("xmodal") == xmodal.__version__


def test_a_wheel_holds_every_file_of_the_package(tmp_path):
    "Also those that are no Python: the explorer's scripts and styles."
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", tmp_path]
    subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, check=True)

    def files(folder):
        return {path.relative_to(folder) for path in folder.rglob("*.*") if path.is_file() and path.suffix != ".pyc"}

    assert files(tmp_path / "xmodal") == files(PACKAGE)
    assert any(path.suffix == ".js" for path in files(PACKAGE)) and any(path.suffix == ".css" for path in files(PACKAGE))


def test_a_bar_is_for_those_who_watch():
    "Libraries import ipykernel without being in a notebook."
    code = "import ipykernel, xmodal.progress; print(xmodal.progress.is_live())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    assert ran.stdout.strip() == "False"
