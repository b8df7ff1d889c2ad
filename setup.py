"""Install sam3dnet; the folders planning and preprocessing become sam3dnet.planning and sam3dnet.preprocessing."""

from setuptools import find_packages, setup

OUTER_FOLDERS = ("planning", "preprocessing")

setup(
    packages=find_packages(include=["sam3dnet", "sam3dnet.*"]) + [f"sam3dnet.{name}" for name in OUTER_FOLDERS],
    package_dir={"sam3dnet": "sam3dnet", **{f"sam3dnet.{name}": name for name in OUTER_FOLDERS}},
    package_data={"sam3dnet": ["py.typed"]},
)
