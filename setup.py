"""Install sam3dnet; the folders planning and preprocessing become sam3dnet.planning and sam3dnet.preprocessing."""

from setuptools import find_packages, setup

OUTER_FOLDERS = ("planning", "preprocessing")
# Not importable packages: stock nnU-Net imports whatever lies there, an __init__.py too.
NNUNET_FOLDERS = ("sam3dnet.nnunet_ext", "sam3dnet.comparison.clock_trainer")

setup(
    packages=[
        *find_packages(include=["sam3dnet", "sam3dnet.*"]),
        *NNUNET_FOLDERS,
        *(f"sam3dnet.{name}" for name in OUTER_FOLDERS),
    ],
    package_dir={"sam3dnet": "sam3dnet", **{f"sam3dnet.{name}": name for name in OUTER_FOLDERS}},
    package_data={"sam3dnet": ["py.typed", "serving/page/*"]},
)
