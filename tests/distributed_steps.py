"""What the processes of test_distributed run: a few steps on given batches, then a training whose clocks disagree."""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from commands import train_fold

from sam3dnet.preprocessing.folders import activate_folders
from sam3dnet.training.distributed import gathered, joined_processes
from sam3dnet.training.run import _read_plan
from sam3dnet.training.schedule import Budget
from sam3dnet.training.trainer import nnUNetTrainerSAM3D

BATCH, STEPS = 3, 3  # of two processes one has two images, the other one


def take_steps(dataset, folders, device):
    """Train on the same batches, however many processes share them; without prompts, which are drawn a process."""
    plans, dataset_json = _read_plan(dataset, folders, "SAM3DPlans")
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


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
