"""Our network as a plan would hold it, and nnU-Net's for the same crop."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from sam3dnet.planning import rules

Shape = tuple[int, int, int]
FEATURES = (32, 64, 128, 256, 320, 320, 320)
RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6, 6)


def own_arguments(
    patch: Sequence[int],
    stride: int | Sequence[int],
    encoder: str = "vit_b",
    pretrained: bool = True,
    spacing_mm: Sequence[float] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Give the arguments of one of our networks, as a plan would hold them; without prompts unless they are asked for.

    Args:
        patch: Crop (z, y, x).
        stride: Voxels a token covers along each axis, or (z, y, x).
        encoder: Name of its size.
        pretrained: Whether the encoder is frozen, as with SAM's weights.
        spacing_mm: Of the voxels (z, y, x), for kernels and features that fit it; None leaves these to the network, and
            stands for tokens that are cubes.
        options: Further arguments, such as prompts=True.
    """
    token_stride = [stride] * 3 if isinstance(stride, int) else list(stride)
    strides = rules.choose_stage_strides(token_stride, spacing_mm or [1 / step for step in token_stride]).value
    fitted: dict[str, Any] = {}
    if spacing_mm is not None:
        fitted["kernels"] = rules.choose_kernels(spacing_mm, strides).value
        fitted["features"] = rules.choose_features(strides).value
    return {
        "encoder": encoder,
        "patch_size": list(patch),
        "token_stride": token_stride,
        "strides": strides,
        "pretrained": pretrained,
        **fitted,
        **options,
    }


def make_nnunet(
    classes: int, patch: Shape, *, residual: bool, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)
) -> nn.Module:
    """Make the U-Net that nnU-Net plans for a patch of isotropic or other voxels, plain or ResEnc-M."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    _, strides, kernels, _, _ = get_pool_and_conv_props(spacing_mm, patch, 4, 999999)
    stages = len(strides)
    arguments = {
        "n_stages": stages,
        "features_per_stage": FEATURES[:stages],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": kernels,
        "strides": strides,
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        "n_conv_per_stage_decoder": [1 if residual else 2] * (stages - 1),
    }
    if residual:
        arguments["n_blocks_per_stage"] = RESIDUAL_BLOCKS[:stages]
    else:
        arguments["n_conv_per_stage"] = [2] * stages
    name = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    network: nn.Module = get_network_from_plans(
        f"dynamic_network_architectures.architectures.unet.{name}",
        arguments,
        ("conv_op", "norm_op", "dropout_op", "nonlin"),
        1,
        classes,
        deep_supervision=True,
    )
    return network
