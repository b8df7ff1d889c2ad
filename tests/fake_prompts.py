"""Networks that answer prompts by a rule instead of weights, for tests of what lies around a network."""

import json

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from tiny_models import TinyNetwork, make_model, write_image

from sam3dnet.network.prompt_decoder import ImageFeatures
from sam3dnet.network.prompt_encoder import NEGATIVE, POSITIVE

SURE = 20.0  # logits


def whole(correction, shape):
    """What a correction adds to each voxel of an image."""
    values = np.zeros(shape, np.float32)
    for one in correction.boxes:
        values[one.box] += one.values_zyx
    return values


class ObjectNetwork:
    """Sees an object wherever the image is above 0.5, and adds or removes the objects that a prompt touches.

    Attributes:
        seen: Windows whose features were computed.
        asked: Each query's clicks (z, y, x), boxes and mask, in the window's voxels, in the order of the questions.
    """

    def __init__(self, reach=(np.inf,) * 3):
        self.seen = 0
        self.asked = []
        self.reach_zyx = reach

    def reach(self, class_index):
        return self.reach_zyx

    def features(self, x_BCzyx):
        self.seen += 1
        return ImageFeatures(x_BCzyx, (), (x_BCzyx,))

    def prompted(self, features, batch, margin_Qzyx):
        image_zyx = features.tokens_BCDHW[0, 0].numpy()
        objects_zyx, _ = ndimage.label(image_zyx > 0.5)
        points, kinds = batch.points_QP3[0].numpy(), batch.polarity_QP[0].numpy()
        mask_zyx = None if batch.mask_Qzyx is None else batch.mask_Qzyx[0].numpy() > 0
        boxes = batch.corners_QR23[0].numpy()[batch.has_box_QR[0].numpy()]
        self.asked.append((points[kinds >= 0], boxes, mask_zyx))
        correction = np.zeros(image_zyx.shape, np.float32)
        chosen = np.zeros(image_zyx.shape, bool)
        for low, high in boxes.astype(int):
            chosen[tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True))] = True
        if mask_zyx is not None:
            chosen |= mask_zyx
        correction[self._objects(objects_zyx, chosen)] = SURE
        for kind, sign in ((POSITIVE, 1), (NEGATIVE, -1)):
            clicked = np.zeros(image_zyx.shape, bool)
            clicked[tuple(points[kinds == kind].round().astype(int).T)] = True
            correction[self._objects(objects_zyx, clicked)] = sign * SURE
        return torch.from_numpy(correction)[None]

    def _objects(self, objects_zyx, chosen_zyx):
        touched = np.setdiff1d(np.unique(objects_zyx[chosen_zyx]), [0])
        return np.isin(objects_zyx, touched)


class ConstantNetwork(ObjectNetwork):
    """Adds the same everywhere, whatever is asked."""

    def __init__(self, value, **options):
        super().__init__(**options)
        self.value = value

    def prompted(self, features, batch, margin_Qzyx):
        super().prompted(features, batch, margin_Qzyx)
        return torch.full_like(margin_Qzyx, self.value)


class CarelessNetwork(ObjectNetwork):
    """Adds all bright objects and removes all dark ones, whatever is asked."""

    def prompted(self, features, batch, margin_Qzyx):
        super().prompted(features, batch, margin_Qzyx)
        image_BCzyx = features.tokens_BCDHW
        return SURE * ((image_BCzyx > 0.5).float() - (image_BCzyx < -0.5).float())[:, 0]


class PromptableNetwork(TinyNetwork):
    """The smallest network that answers prompts: where the image is like the clicked voxels, in a box if there is one.

    Attributes:
        seen: Windows whose features were computed, of all networks.
    """

    seen = 0

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.answers_prompts = True

    def reach(self, class_index):
        return (np.inf,) * 3

    def features(self, x_BCzyx):
        PromptableNetwork.seen += 1
        return ImageFeatures(x_BCzyx, (), (self(x_BCzyx),))

    def prompted(self, features, batch, margin_Qzyx):
        image_zyx = features.tokens_BCDHW[0, 0]
        correction = torch.zeros_like(image_zyx)
        boxes = batch.corners_QR23[0][batch.has_box_QR[0]].round().int().tolist()
        inside = torch.full_like(image_zyx, float(not boxes))
        for low, high in boxes:
            inside[tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True))] = 1
        for point, kind in zip(batch.points_QP3[0], batch.polarity_QP[0].tolist(), strict=True):
            if kind >= 0:
                z, y, x = point.round().int().tolist()
                alike = (-5 * (image_zyx - image_zyx[z, y, x]) ** 2).exp()
                correction += (SURE if kind == POSITIVE else -SURE) * alike * inside
        if boxes:
            correction += SURE * inside
        if batch.mask_Qzyx is not None:
            correction += SURE * batch.mask_Qzyx[0]
        return correction[None]


def make_promptable_model(results, **options):
    """A model folder whose networks answer prompts."""
    folder = make_model(results, **options)
    plans = json.loads((folder / "plans.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = f"{__name__}.PromptableNetwork"
    (folder / "plans.json").write_text(json.dumps(plans))
    return folder


def make_model_of_bright_objects(results, **options):
    """One whose last class is where the image is bright; the class before is elsewhere, a region everywhere."""
    folder = make_promptable_model(results, **options)
    file = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    weights = checkpoint["network_weights"]
    for values in weights.values():
        values.zero_()
    weights["first.weight"][0, 0, 1, 1, 1] = 0.15
    weights["last.weight"][-1, 0], weights["last.bias"][-1], weights["last.bias"][-2] = 10, -4, 1
    torch.save(checkpoint, file)
    return folder


def write_bright_objects(path):
    """Write an image with two bright objects, the first around (2, 2, 1) and the second around (2, 6, 4)."""
    write_image(path)
    image = sitk.ReadImage(str(path))
    values_ZYX = np.where(sitk.GetArrayFromImage(image) == 0, 0, -1).astype(np.float32)  # cropped, and dark
    values_ZYX[1:4, 1:4, :3] = values_ZYX[2:4, 6:8, 3:6] = 2
    bright = sitk.GetImageFromArray(values_ZYX)
    bright.CopyInformation(image)
    sitk.WriteImage(bright, str(path))


def write_prompts(path, cases, space="voxel"):
    """Write prompts in our format."""
    path.write_text(json.dumps({"format": "sam3dnet-prompts/1", "space": space, "cases": cases}))
    return path
