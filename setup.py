"""Package metadata comes from settings.ini, the file that nbdev reads too."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(here / "settings.ini")
cfg = config["DEFAULT"]
extras = {key.removesuffix("_extra"): value.split() for key, value in cfg.items() if key.endswith("_extra")}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=cfg["author"],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=["xmodal", "xmodal.*"]),
    package_data={"xmodal.viz": ["web/*.js", "web/*.css"]},
    install_requires=cfg["requirements"].split(),
    extras_require=extras | {"all": sorted({r for rs in extras.values() for r in rs})},
    entry_points={"console_scripts": ["xmodal=xmodal.cli:main"]},
)
