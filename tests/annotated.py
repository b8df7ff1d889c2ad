"""A dataset that is annotated, its project, and what somebody does to its folders."""

import json

import numpy as np
import SimpleITK as sitk
from phantoms import make_raw_dataset

from sam3dnet.annotation.project import AnnotationProject

NAME = "Dataset975_Annotated"


def make_annotated(tmp_path):
    """Make a dataset of two labelled cases, and four images that wait in the folder pool; give the folder of both."""
    make_raw_dataset(tmp_path / "nnUNet_raw" / NAME, num_cases=2, num_test=4, channel_names=("MRI",))
    (tmp_path / "nnUNet_raw" / NAME / "imagesTs").rename(tmp_path / "pool")
    return tmp_path


def open_project(root, **options):
    """Open the project; most models here answer no prompts."""
    return AnnotationProject(975, root / "pool", root=root, **{"device": "cpu", "needs_prompts": False, **options})


def raw(root):
    return root / "nnUNet_raw" / NAME


def drawn(root, case, value=1):
    """Draw a label map on the grid of an image."""
    image = sitk.ReadImage(str(next(root.rglob(f"{case}_0000.nii.gz"))))
    labels = np.zeros(sitk.GetArrayViewFromImage(image).shape, np.uint8)
    labels[3:6, 4:9, 5:11] = value
    return labels


def label_in_folder(root, case):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(raw(root) / "labelsTr" / f"{case}.nii.gz")))


def names_in(folder):
    return sorted(path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz"))


def number_of_cases(root):
    return json.loads((raw(root) / "dataset.json").read_text())["numTraining"]


def edit(root, case, value):
    """Change a label map as another program does."""
    label = raw(root) / "labelsTr" / f"{case}.nii.gz"
    edited = sitk.GetImageFromArray(np.where(drawn(root, case), value, 0).astype(np.uint8))
    edited.CopyInformation(sitk.ReadImage(str(label)))
    sitk.WriteImage(edited, str(label))


def describe(root, **changes):
    """Change dataset.json as somebody does by hand."""
    file = raw(root) / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def replace_image(root, case):
    """Put another image of this name in its place."""
    file = root / "pool" / f"{case}_0000.nii.gz"
    image = sitk.ReadImage(str(file))
    sitk.WriteImage(image + 7, str(file))
    return file.read_bytes()
