"""The prediction of a made-up volume by sliding windows: a known answer, the CPU's answer, and the time."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from sam3dnet.check.example import copied_to, make_example, relative_error
from sam3dnet.check.measuring import synchronize
from sam3dnet.check.networks import Shape, own_arguments
from sam3dnet.check.result import CheckResult, at_most, skipped, told
from sam3dnet.check.setting import Setting
from sam3dnet.devices import half_type
from sam3dnet.inference.windows import predict_slabs
from sam3dnet.network.sam3d import SAM3D

CONSTANT = (-1.5, 2.25, 0.5)  # logits, exact in half precision
MIRROR_AXES = (2,)
# (window, volume); the volume is no multiple of a step between windows
CPU_SIZES: tuple[Shape, Shape] = ((32, 48, 32), (53, 75, 61))
CARD_SIZES: tuple[Shape, Shape] = ((64, 96, 96), (85, 203, 205))
QUICK_SIZES: tuple[Shape, Shape] = ((8, 16, 16), (11, 19, 27))
LARGEST_CONSTANT_ERROR = 1e-3
LARGEST_ERROR = {None: 1e-3, torch.bfloat16: 0.035, torch.float16: 0.005}  # as in precision.py
LARGEST_SHARE_OF_OTHER_LABELS = 0.03


def check_prediction(setting: Setting) -> Iterator[CheckResult]:
    """Predict with constant logits, which must come out at every voxel, and with random ones as on the CPU."""
    window, volume = QUICK_SIZES if setting.quick else CARD_SIZES if setting.is_card else CPU_SIZES
    encoder = "tiny" if setting.quick else "small"
    network = make_example("prediction", own_arguments(window, 8, encoder, False)).network.eval()
    network.decoder.deep_supervision = False
    yield from compare_with_cpu(network, setting, QUICK_SIZES[0] if setting.quick else CPU_SIZES[0])
    yield from predict_constant(make_constant(network), setting, window, volume)


def make_constant(network: SAM3D) -> SAM3D:
    """Give a copy whose last layer looks at nothing and gives the constant logits."""
    constant = copied_to(network, torch.device("cpu"))
    head = list(constant.decoder.seg_layers)[-1]
    with torch.no_grad():
        head.get_parameter("weight").zero_()
        head.get_parameter("bias").copy_(torch.tensor(CONSTANT))
    return constant


def predict_constant(network: SAM3D, setting: Setting, window: Shape, volume: Shape) -> Iterator[CheckResult]:
    """Judge that the constant comes out, and tell how long it took."""
    network = copied_to(network, setting.device)
    image = made_up_image(volume)
    synchronize(setting.device)
    start = time.perf_counter()
    logits = predict(network, image, window, setting.device)
    seconds = time.perf_counter() - start
    error = float((logits - torch.tensor(CONSTANT).view(-1, 1, 1, 1)).abs().max())
    shape = "x".join(map(str, volume))
    yield at_most("prediction", "constant logits", error, LARGEST_CONSTANT_ERROR, f"a volume of {shape}")
    megavoxels = image.numel() / 1e6
    message = f"{seconds:.2f} s for {shape}, windows of {'x'.join(map(str, window))}, mirrored once"
    yield told("prediction", "speed", message, megavoxels / seconds, "Mvoxel/s")


def compare_with_cpu(network: SAM3D, setting: Setting, window: Shape) -> Iterator[CheckResult]:
    """Judge logits and labels of a network with random weights."""
    if setting.is_cpu:
        yield skipped("prediction", "as on the CPU", "the device is the CPU")
        return
    image = made_up_image((window[0] + 3, window[1] + 5, window[2] + 9))
    reference = predict(network, image, window, torch.device("cpu"))
    logits = predict(copied_to(network, setting.device), image, window, setting.device)
    limit = LARGEST_ERROR[setting.half]
    yield at_most("prediction", "logits as on the CPU", relative_error(logits, reference), limit)
    other = float((logits.argmax(0) != reference.argmax(0)).float().mean())
    yield at_most("prediction", "share of other labels", other, LARGEST_SHARE_OF_OTHER_LABELS)


def predict(network: SAM3D, image_CZYX: Tensor, window: Shape, device: torch.device) -> Tensor:
    """Give the logits of the whole image on the CPU, as the predictor computes them."""
    slabs = predict_slabs(
        [lambda: network],
        image_CZYX,
        window,
        len(CONSTANT),
        mirror_axes=MIRROR_AXES,
        device=device,
        precision=half_type(device),
    )
    return torch.cat([slab.float().cpu() for slab in slabs], 1)


def made_up_image(shape: Shape) -> Tensor:
    """Make noise, (1, Z, Y, X)."""
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))
