"""Compiled training steps and windows: without graph breaks, once for all prompts, and never a reason to fail."""

import logging
from functools import partial

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from sam3dnet.network import compiling
from sam3dnet.network.compiling import Compiler, compile_network, pad_to_few_shapes
from sam3dnet.network.prompt_decoder import class_margin
from sam3dnet.network.prompt_encoder import PromptBatch, Query
from sam3dnet.network.published.adapter3dsam import Adapter3DSAM
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.prompts.types import Box, ClassPrompts, Point

pytestmark = pytest.mark.filterwarnings("ignore")  # those of torch's compiler

SHAPE = (6, 8, 12)
ARGUMENTS = {
    "encoder": "tiny",
    "patch_size": SHAPE,
    "token_stride": (2, 4, 4),
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "prompts": True,
}


def make(network_class=SAM3D):
    torch.manual_seed(0)
    return network_class(1, 3, True, **ARGUMENTS)


def queries(clicks: int, boxes: int, *, mask: bool):
    points = tuple(Point((1.0, 2.0, float(column)), positive=column % 2 == 0) for column in range(clicks))
    drawn = tuple(Box((1.0, 2.0, 3.0), (4.0, 5.0, 4.0 + row)) for row in range(boxes))
    prompts = ClassPrompts(points, drawn, np.ones(SHAPE, bool) if mask else None)
    return [Query(0, 1, prompts), Query(1, 2, ClassPrompts(points[:1]))]


def step(network, image_BCzyx, asked):
    """Train on automatic logits and on answers, as the trainer does: a correction first, without gradient."""

    def prompter(answering, features):
        batch = PromptBatch.of(asked, SHAPE)
        margin_Qzyx = class_margin(features.logits[0].detach().float(), batch.class_Q, regions=False)
        with torch.no_grad():
            answering.prompted(features, batch, margin_Qzyx)
        return margin_Qzyx + answering.prompted(features, batch, margin_Qzyx)

    network.zero_grad()
    logits, margin_Qzyx = network(image_BCzyx, prompter)
    (sum(level.square().mean() for level in logits) + margin_Qzyx.square().mean()).backward()
    return logits[0].detach(), margin_Qzyx.detach()


def compiled(network, backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compile_network(network, Compiler(partial(torch.compile, dynamic=False, fullgraph=True, backend=counter)))
    return counter


def check_step_and_window(backend, network_class=SAM3D):
    """Run all kinds of prompts through a compiled network beside one that is not."""
    plain, network = make(network_class), make(network_class)
    counter = compiled(network, backend)
    image = torch.randn(2, 1, *SHAPE)
    counts = []
    for clicks, boxes, mask in ((1, 0, False), (9, 0, False), (3, 2, False), (0, 3, True), (15, 0, True)):
        asked = queries(clicks, boxes, mask=mask)
        for ours, theirs in zip(step(network, image, asked), step(plain, image, asked), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)
        counts.append(counter.frame_count)
    assert counts == [3] * 5  # features, answers without and with gradient, whatever is asked
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-2)
    assert network.state_dict().keys() == plain.state_dict().keys()
    for each in (network, plain):
        each.eval().decoder.deep_supervision = False
    with torch.inference_mode():
        torch.testing.assert_close(network(image), plain(image), atol=2e-4, rtol=2e-4)
        network(image)
    assert counter.frame_count == 4  # and windows of prediction


def test_steps_and_windows_compile_whole_and_once():
    check_step_and_window("eager")


def test_padding_to_few_shapes_changes_no_answer():
    network = make().eval()
    features = network.features(torch.randn(2, 1, *SHAPE))
    batch = PromptBatch.of(queries(3, 2, mask=True), SHAPE)
    padded = pad_to_few_shapes(batch)
    assert (padded.points_QP3.shape[1], padded.corners_QR23.shape[1]) == (15, 4)
    margin_Qzyx = torch.randn(2, *SHAPE)
    answers = [network.prompted(features, each, margin_Qzyx) for each in (batch, padded)]
    torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-5)
    more = pad_to_few_shapes(PromptBatch.of(queries(16, 5, mask=False), SHAPE))
    assert (more.points_QP3.shape[1], more.corners_QR23.shape[1]) == (31, 8)


@pytest.mark.slow
def test_steps_and_windows_of_a_published_network_compile():
    check_step_and_window("eager", Adapter3DSAM)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_steps_and_windows_compile_on_a_cpu():
    check_step_and_window("inductor")


def warnings_in(caplog):
    return [record.message for record in caplog.records if record.name == compiling.logger.name]


def test_where_nothing_can_be_compiled_one_warning_is_all(caplog):
    def refuse(_graph, _inputs):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    torch._dynamo.reset()
    plain, network = make(), make()
    compile_network(network, Compiler(partial(torch.compile, backend=refuse)))
    image = torch.randn(2, 1, *SHAPE)
    with caplog.at_level(logging.WARNING):
        for clicks in (1, 5):
            asked = queries(clicks, 0, mask=False)
            for ours, theirs in zip(step(network, image, asked), step(plain, image, asked), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    (message,) = warnings_in(caplog)
    assert message.startswith("torch.compile does not work on this machine")
    assert "Failed to find C compiler" in message


def test_errors_of_the_network_itself_are_not_the_compilers(caplog):
    network = make()
    compile_network(network, Compiler(partial(torch.compile, backend="eager")))
    with pytest.raises(RuntimeError, match=r"(?i)expected.*channels|weight of size"):
        network.features(torch.randn(1, 5, *SHAPE))
    assert not warnings_in(caplog)


def test_exhausted_memory_is_not_the_compilers(caplog):
    def run_out(_graph, _inputs):
        def compiled_graph(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return compiled_graph

    torch._dynamo.reset()
    network = make()
    compile_network(network, Compiler(partial(torch.compile, backend=run_out)))
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        network(torch.randn(1, 1, *SHAPE))
    assert not warnings_in(caplog)
