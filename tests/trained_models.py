"""A model folder with a tiny network that was trained for some seconds, on objects that are not seen for sure."""

import json

import numpy as np
import torch
from scipy import ndimage
from tiny_models import make_checkpoint, make_dataset_json, make_plans

from sam3dnet.network.sam3d import SAM3D
from sam3dnet.training.drawing import draw_questions
from sam3dnet.training.prompting import TrainingPrompter, draw_corrections
from sam3dnet.training.target_classes import Classes

PATCH = (8, 24, 24)
SPACING_MM = (2.0, 1.0, 1.0)
ARCHITECTURE = {
    "encoder": "tiny",
    "patch_size": list(PATCH),
    "token_stride": [2, 4, 4],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "prompts": True,
}
STEPS, BATCH = 150, 2


def draw_case(rng, shape, objects):
    """Draw an image with bright objects of the class, and as many of another kind that are often no darker.

    Returns:
        The image (z, y, x), and where the class is.
    """
    image, truth = rng.normal(0, 0.25, shape), np.zeros(shape, bool)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    for number in range(objects):
        radius = rng.uniform((1.5, 3, 3), (2.5, 5, 5))
        middle = rng.uniform(radius, np.array(shape) - radius)
        inside = (((grid - middle) / radius) ** 2).sum(-1) < 1
        if (ndimage.binary_dilation(inside, iterations=2) & (image > 1.5)).any():
            continue
        is_class = number % 2 == 0
        image[inside] += rng.normal(2.1 if is_class else 1.6, 0.3)
        truth |= inside & is_class
    return image.astype(np.float32), truth


def train_network(seed=0):
    """Train with prompts as the trainer does, one optimiser step after the other."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = SAM3D(1, 2, True, **ARCHITECTURE)
    classes = Classes((1,), False, None, SPACING_MM, (2, 4, 4))
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / STEPS) ** 0.9
        images, truths = zip(*(draw_case(rng, PATCH, 3) for _ in range(BATCH)), strict=True)
        target = torch.from_numpy(np.stack(truths))[:, None].float()
        questions = draw_questions(target, classes, rng)
        prompter = TrainingPrompter(questions, target, classes, draw_corrections(rng), rng)
        logits, answer = network(torch.from_numpy(np.stack(images))[:, None], prompter)
        loss = torch.nn.functional.cross_entropy(logits[0], target[:, 0].long()) + 0.5 * answer.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def make_trained_model(results):
    """Write the model folder."""
    folder = results / "Dataset901_Tiny" / "nnUNetTrainerSAM3D__SAM3DPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    plans = make_plans("resample_torch_fornnunet", 1)
    plans["transpose_forward"] = plans["transpose_backward"] = [0, 1, 2]
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"patch_size": list(PATCH), "spacing": list(SPACING_MM)}
    configuration["normalization_schemes"] = ["NoNormalization"]
    configuration["architecture"] |= {"network_class_name": "sam3dnet.network.sam3d.SAM3D", "arch_kwargs": ARCHITECTURE}
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(make_dataset_json(1, {"background": 0, "lesion": 1})))
    checkpoint = make_checkpoint(train_network().state_dict(), inference_allowed_mirroring_axes=None)
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder
