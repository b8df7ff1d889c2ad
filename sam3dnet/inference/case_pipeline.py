"""Cases in turn: while one is predicted, the next is read and the one before is written; each fails alone."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch

from sam3dnet.errors import Sam3dError
from sam3dnet.inference.companions import Segmentation
from sam3dnet.inference.economy import is_out_of_memory
from sam3dnet.inference.images import Case, Preprocessed, read_ahead
from sam3dnet.preprocessing.progress import Progress

logger = logging.getLogger(__name__)

OnProgress = Callable[[float], None]
Segmented = tuple[Segmentation, dict[str, Any]]
Writing = tuple[Case, Future[bool]]
Result = TypeVar("Result")


@dataclass
class PredictionReport:
    """Which cases were written, which were there already, and which failed and why."""

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseSteps:
    """What is done with each case.

    Attributes:
        read: Gives the preprocessed image, and what nnU-Net's preprocessor says about it; called in a thread.
        bytes_of: What an image takes in memory once it is read.
        segment: Gives what is written; tells the share that is done.
        write: Writes it, given the image's properties; called in a thread.
    """

    read: Callable[[Case], Preprocessed]
    bytes_of: Callable[[Case], int]
    segment: Callable[[Case, Preprocessed, OnProgress], Segmentation]
    write: Callable[[Case, Segmentation, Mapping[str, Any]], None]


def predict_cases(
    cases: Sequence[Case], steps: CaseSteps, ahead: int, progress: bool = True, description: str = "predicting"
) -> PredictionReport:
    """Predict the cases and report how each went; whatever is wrong with one, the others are predicted.

    Args:
        cases: In their order.
        steps: What is done with each.
        ahead: Images that are read ahead at the same time, as far as memory allows; 0 reads each when its turn comes.
        progress: Whether to show a bar.
        description: Stands before the bar.
    """
    return _Pipeline(steps).run(cases, ahead, progress, description)


class _Pipeline:
    def __init__(self, steps: CaseSteps) -> None:
        self._steps = steps
        self._report = PredictionReport()

    def run(self, cases: Sequence[Case], ahead: int, progress: bool, description: str) -> PredictionReport:
        steps = self._steps
        writing: Writing | None = None
        writer = ThreadPoolExecutor(1)
        try:
            with Progress(len(cases), description, show=progress and bool(cases)) as bar:
                for case, reading in read_ahead(cases, steps.read, ahead, steps.bytes_of):
                    part = _PartOfBar(bar, case.name)
                    segmented = self._attempt(case, partial(self._segment, case, reading, part))
                    del reading
                    self._settle(writing)
                    writing = (case, writer.submit(self._write, case, *segmented)) if segmented else None
                    part.reach(1.0)
                self._settle(writing)
        finally:
            writer.shutdown(wait=False, cancel_futures=True)
        return self._report

    def _segment(self, case: Case, reading: Future[Preprocessed], part: "_PartOfBar") -> Segmented:
        preprocessed = reading.result()
        return self._steps.segment(case, preprocessed, part.reach), preprocessed[1]

    def _write(self, case: Case, segmentation: Segmentation, properties: Mapping[str, Any]) -> bool:
        try:
            self._steps.write(case, segmentation, properties)
        finally:
            segmentation.companions.close()
        return True

    def _settle(self, writing: Writing | None) -> None:
        """Wait until a label map is written and note how it went."""
        if writing is not None:
            case, future = writing
            if self._attempt(case, future.result):
                self._report.written.append(case.name)

    def _attempt(self, case: Case, work: Callable[[], Result]) -> Result | None:
        """Return what the work returns; note the reason and return None if it fails."""
        try:
            return work()
        except Exception as error:  # whatever is wrong with one image, the others are predicted
            logger.debug("case %s failed", case.name, exc_info=True)
            self._report.failed[case.name] = reason_of(error)
            return None


class _PartOfBar:
    """Turns the share that is done of a case into steps of the bar for all cases; what is done twice counts once."""

    def __init__(self, bar: Progress, name: str):
        self._bar, self._name, self._reached = bar, name, 0.0

    def reach(self, share: float) -> None:
        if share > self._reached:
            self._bar.update(share - self._reached, note=self._name)
            self._reached = share


def reason_of(error: Exception) -> str:
    """Say in a sentence why a case failed."""
    if isinstance(error, Sam3dError):
        return str(error)
    if is_out_of_memory(error):
        return _memory_exhausted(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def _memory_exhausted(error: Exception) -> str:
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "memory exhausted; predict this image on a machine with more"
    torch.cuda.empty_cache()
    return "GPU memory exhausted; close other programs on the card, or use --device cpu"
