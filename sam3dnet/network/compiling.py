"""Compile what a network computes; where the compiler fails, go on without it."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from sam3dnet.network.prompt_decoder import ImageFeatures
from sam3dnet.network.prompt_encoder import PromptBatch
from sam3dnet.network.segmentation import SegmentationNetwork

logger = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
COMPILE: Compile = partial(torch.compile, dynamic=False)


class Compiler:
    """Compiles functions; after the first one that cannot be compiled, all are called as they are.

    Args:
        compile_function: torch.compile with its settings.

    Attributes:
        works: False after a failure.
    """

    def __init__(self, compile_function: Compile = COMPILE):
        self.compile_function = compile_function
        self.works = True

    def fail(self, error: Exception) -> None:
        """Say once that the compiler failed."""
        if self.works:
            cause = getattr(error, "inner_exception", error)
            reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
            logger.warning(
                "torch.compile does not work on this machine (%s); going on without it, which is slower; "
                "nnUNet_compile=f spares the attempt",
                reason,
            )
        self.works = False


class CompiledOrEager(Generic[Arguments, Result]):
    """A compiled function, or the function itself where the compiler fails.

    Args:
        function: What to compile; calling it again after a failure must do no harm.
        compiler: Whose failure is that of all functions that it compiles.
    """

    def __init__(self, function: Callable[Arguments, Result], compiler: Compiler):
        self._function = function
        self._compiler = compiler
        self._compiled = compiler.compile_function(function)

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Call it."""
        if not self._compiler.works:
            return self._function(*args, **kwargs)
        try:
            result: Result = self._compiled(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler raises; what is the function's own comes again below
            result = self._function(*args, **kwargs)
            self._compiler.fail(error)
        return result


def compile_network(network: SegmentationNetwork, compiler: Compiler | None = None) -> None:
    """Compile a network in two parts, between which prompts are made up: the features, and the answer to prompts.

    Names of parameters stay, and so does what a checkpoint holds. It happens at the first call of each.

    Args:
        network: Changed in place.
        compiler: What compiles; None: torch.compile.
    """
    compiler = compiler or Compiler()
    answer = CompiledOrEager(network.answer, compiler)

    def answer_in_few_shapes(features: ImageFeatures, batch: PromptBatch, margin_Qzyx: Tensor) -> Tensor:
        return answer(features, pad_to_few_shapes(batch), margin_Qzyx)

    network.features = CompiledOrEager(network.features, compiler)  # type: ignore[method-assign]
    network.answer = answer_in_few_shapes  # type: ignore[method-assign]


def pad_to_few_shapes(batch: PromptBatch) -> PromptBatch:
    """Make room for 15 clicks and 4 boxes, which with the class are 24 tokens, or for twice or four times as many.

    Each shape is compiled for itself. Shapes that are left open fail in torch 2.14's inductor.
    """
    clicks, boxes = batch.points_QP3.shape[1], batch.corners_QR23.shape[1]
    return batch.padded(_doubled(16, clicks + 1) - 1, _doubled(4, boxes))


def _doubled(start: int, at_least: int) -> int:
    while start < at_least:
        start *= 2
    return start
