"""What the processes of test_distributed run: a few steps on given batches, then a training whose clocks disagree."""

import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
import torch.distributed as dist
from commands import train_fold

from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.training import pseudo_labels
from sam3dnet.training.asked import read_plan
from sam3dnet.training.checkpoint import load_safely
from sam3dnet.training.distributed import gathered, joined_processes
from sam3dnet.training.schedule import Budget
from sam3dnet.training.trainer import nnUNetTrainerSAM3D

BATCH, STEPS = 3, 3  # of two processes one has two images, the other one


def take_steps(dataset, folders, device):
    """Train on the same batches, however many processes share them; without prompts, which are drawn a process."""
    plans, dataset_json = read_plan(dataset, folders, "SAM3DPlans")
    configuration = plans["configurations"]["3d_fullres"]
    configuration["architecture"]["arch_kwargs"]["prompts"] = False
    configuration["batch_size"] = BATCH
    plans["continue_training"] = False
    trainer = nnUNetTrainerSAM3D(plans, "3d_fullres", 0, dataset_json, device)
    torch.manual_seed(0)
    trainer.initialize()
    # AdamW's first steps go by the sign of a gradient, so that rounding errors of tiny ones would be as long as others.
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), lr=0.1)
    before = trainer._bare_network().decoder.seg_layers[-1].weight.clone()
    generator = torch.Generator().manual_seed(1)
    mine = slice(None)
    if trainer.is_ddp:
        sizes = gathered(trainer.batch_size)
        assert sum(sizes) == BATCH
        mine = slice(sum(sizes[: trainer.local_rank]), sum(sizes[: trainer.local_rank + 1]))
    for _ in range(STEPS):
        data = torch.randn(BATCH, 1, *configuration["patch_size"], generator=generator)
        shapes = [level.shape[2:] for level in trainer._bare_network()(data)]
        targets = [torch.randint(3, (BATCH, 1, *shape), generator=generator).float() for shape in shapes]
        trainer.train_step({"data": data[mine], "target": [target[mine] for target in targets]})
    assert (trainer._bare_network().decoder.seg_layers[-1].weight - before).abs().max() > 1e-3
    return trainer._bare_network().state_dict()


def train_with_unequal_clocks(dataset, folders):
    """Train by the clock; that of the second process says at once that the time is over."""
    true_seconds = Budget.seconds
    late = 1e6 if dist.get_rank() else 0.0
    Budget.seconds = lambda self: true_seconds(self) + late
    output = train_fold(dataset, 0, folders, minutes=0.02, iterations_per_epoch=2, device="cpu", validate=False)
    epochs = gathered(len((output / "training_log.jsonl").read_text().splitlines()))
    assert len(set(epochs)) == 1 and epochs[0] >= 1


def train_on_images_without_labels(dataset, folders, images):
    """Share the labelling of images, and train on all of them in both processes."""
    pseudo_labels.with_something = lambda cases, _: cases  # a model of a few steps finds nothing
    if dist.get_rank() == 0:
        images.mkdir()
        for number, file in enumerate(sorted((folders.raw / dataset / "imagesTr").glob("*_0000.nii.gz"))[:3]):
            image = sitk.ReadImage(str(file))
            sitk.WriteImage(image + 1, str(images / f"more{number}_0000.nii.gz"))
    gathered(None)
    options = {"epochs": 1, "iterations_per_epoch": 2, "device": "cpu", "validate": False}
    output = train_fold(dataset, 0, folders, from_model=dataset, unlabelled=str(images), **options)
    gathered(None)  # the first process has written it
    stored = load_safely(output / "checkpoint_final.pth")["sam3d"]["pseudo_labelled"]
    assert sorted(stored) == ["more0", "more1", "more2"]


def main(dataset, output):
    np.random.seed()
    folders = activate_folders(None)
    with joined_processes(torch.device("cpu")) as device:
        weights = take_steps(dataset, folders, device)
        if not dist.is_initialized():
            torch.save(weights, output)
            return
        assert all(torch.equal(value, other[name]) for other in gathered(weights) for name, value in weights.items())
        if dist.get_rank() == 0:
            torch.save(weights, output)
        train_with_unequal_clocks(dataset, folders)
        train_on_images_without_labels(dataset, folders, output.with_name("images"))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
