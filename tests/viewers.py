"""What viewers do with images and with the client of nnInteractive."""

import json

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from fake_prompts import make_promptable_model
from tiny_models import SPACING_XYZ, write_image

SPACING_ZYX = SPACING_XYZ[::-1]


def array_of(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def begin(client, array_ZYX, spacing=SPACING_ZYX, dtype=np.uint8):
    """Give a client an image, and a buffer for the mask."""
    client.set_image(array_ZYX[None], {"spacing": list(spacing)})
    buffer = np.zeros(array_ZYX.shape, dtype)
    client.set_target_buffer(buffer)
    return buffer


def make_model_stored_in(orientation, results):
    """Make a promptable model whose training images were all stored in one orientation."""
    folder = make_promptable_model(results)
    plans = json.loads((folder / "plans.json").read_text())
    (folder / "plans.json").write_text(json.dumps(plans | {"sam3d": {"orientations": [orientation]}}))
    return folder


def write_stored(file, orientation, seed=3):
    """Write one image in an orientation, the same patient for all."""
    write_image(file, seed, direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), orientation), str(file))


def as_napari(file):
    """Read a file as napari's reader of NIfTI files does: axes to Superior, Anterior and Right, scale negative."""
    canonical = nib.as_closest_canonical(nib.load(file))
    return np.asarray(canonical.dataobj).transpose(), [-float(mm) for mm in canonical.header.get_zooms()[::-1]]


def back_from_napari(mask, file):
    """Bring a mask from napari's axes to those of the file as ITK reads it."""
    to_file = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.io_orientation(nib.load(file).affine)
    )
    return nib.orientations.apply_orientation(mask.transpose(), to_file).transpose()


def index_in_napari(voxel_zyx, file):
    shape = array_of(file).shape
    marked = np.zeros(shape, np.uint8)
    marked[voxel_zyx] = 1
    turned = nib.as_closest_canonical(nib.Nifti1Image(marked.transpose(), nib.load(file).affine))
    return tuple(int(at) for at in np.argwhere(np.asarray(turned.dataobj).transpose())[0])
