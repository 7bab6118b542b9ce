"""What holds for the package as a whole."""

import subprocess
import sys
from importlib.metadata import version

CORE = "projection frame progress training.batches training.checkpoint training.fit evaluation.metrics"
HEAVY = "cv2 open3d MinkowskiEngine matplotlib plotly lightning sklearn skimage papermill tyro IPython"


def test_core_imports_need_no_heavy_package():
    code = f"""
import importlib, sys
for name in {CORE.split()!r}:
    importlib.import_module("xmodal." + name)
print(*[name for name in {HEAVY.split()!r} if name in sys.modules])
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_versions_agree():
    import xmodal

    assert version("xmodal") == xmodal.__version__
