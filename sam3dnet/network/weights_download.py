"""Download a known file of weights: announced, with a progress bar, whole and verified or not at all."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from sam3dnet.errors import CheckpointError
from sam3dnet.network.weights_cache import cache_folder, digest_of, recall, remember
from sam3dnet.network.weights_registry import KnownFile
from sam3dnet.preprocessing.folders import whole_or_nothing
from sam3dnet.preprocessing.progress import Progress

OFFLINE_VARIABLE = "SAM3D_OFFLINE"

CONNECT_TIMEOUT_S, SILENCE_TIMEOUT_S = 5.0, 30.0  # the first for each of a server's addresses
# Planning that would only like to have the weights does not try again for so long: a network that is not there may come
# back; an address that sent another file will send it again.
WAIT_AFTER_FAILURE_S, WAIT_AFTER_WRONG_FILE_S = 600.0, 86400.0
_ABANDONED_AFTER_S = 86400.0
_FAILURES = "failed_downloads.json"
_PARTIAL = ".partial-"
_CHUNK_BYTES = 1 << 20

_log = logging.getLogger(__name__)


class _WrongFile(ValueError):
    """What comes is not the file that was expected."""


def download(file: KnownFile) -> Path:
    """Download a file to the cache.

    It is announced with its size before, and appears there whole and with the right digest, or not at all.

    Raises:
        CheckpointError: If downloads are forbidden (`$SAM3D_OFFLINE`), the address cannot be reached, or what came is
            not the file; the message says why, and nothing else.
    """
    if os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0"):
        raise CheckpointError(f"{file.name} is not here, and ${OFFLINE_VARIABLE} forbids to download it")
    target = cache_folder() / file.name
    _log.info("Downloading %s (%s) from %s to %s", file.name, file.size, file.source, target.parent)
    try:
        with _partial_folder(target.parent) as folder:
            received = _receive(file, folder)
            with whole_or_nothing(target) as temporary:  # pooch's is readable by its owner alone
                received.replace(temporary)
    except (OSError, ValueError) as error:
        reason = _reason(error)
        wait = WAIT_AFTER_WRONG_FILE_S if isinstance(error, _WrongFile) else WAIT_AFTER_FAILURE_S
        remember(_FAILURES, {_failure_key(file): {"reason": reason, "until": time.time() + wait}})
        raise CheckpointError(_failure(file, reason)) from error
    remember(_FAILURES, {_failure_key(file): None})
    digest_of(target, file.digest.partition(":")[0])
    return target


def recent_failure(file: KnownFile) -> str | None:
    """Say why a download failed a short while ago, as `download` did; None if it did not, or may be tried again.

    Until when it is not tried again unasked is logged.
    """
    known = recall(_FAILURES).get(_failure_key(file))
    known = known if isinstance(known, dict) else {}
    until = known.get("until")
    now = time.time()
    if not isinstance(until, float) or not now < until <= now + WAIT_AFTER_WRONG_FILE_S:
        return None
    then = time.strftime("%Y-%m-%d %H:%M", time.localtime(until))
    _log.info("The download of %s failed a short while ago; not tried again unasked before %s", file.name, then)
    return _failure(file, str(known.get("reason")))


def _failure(file: KnownFile, reason: str) -> str:
    return f"{file.name} could not be downloaded from {file.source}: {reason}"


def _failure_key(file: KnownFile) -> str:
    return f"{file.source} {file.digest}"


@contextmanager
def _partial_folder(cache: Path) -> Iterator[Path]:
    """Offer a folder inside the cache, gone afterwards; remove those of processes that were killed."""
    cache.mkdir(parents=True, exist_ok=True)
    for folder in cache.glob(f"{_PARTIAL}*"):
        with suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=cache) as name:
        yield Path(name)


def _receive(file: KnownFile, folder: Path) -> Path:
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)  # it would announce the temporary name
    with Progress(file.bytes and -(-file.bytes // 2**20), file.name, "MiB") as bar, ExitStack() as answers:

        def close_at_the_end(answer: Any, **_: Any) -> None:  # pooch leaves it open after an error
            answers.callback(answer.close)

        downloader = pooch.HTTPDownloader(
            progressbar=_Watch(bar, file.bytes, folder),
            chunk_size=_CHUNK_BYTES,
            timeout=(CONNECT_TIMEOUT_S, SILENCE_TIMEOUT_S),
            headers={"Accept-Encoding": "identity"},  # or the announced size would be another
            hooks={"response": close_at_the_end},
        )
        try:
            return Path(pooch.retrieve(file.source, file.digest, file.name, folder, downloader=downloader))
        except ValueError as error:
            if "known hash" not in str(error):
                raise
            raise _WrongFile(str(error).partition(". Deleted")[0]) from error


class _Watch:
    """Pooch's progress bar: shows ours, and ends a download whose size says that it is another file.

    Args:
        bar: Counts MiB.
        expected: Bytes of the file; None if that is not known.
        folder: Holds what has come and nothing else; pooch itself counts whole chunks, also where they are smaller.
    """

    def __init__(self, bar: Progress, expected: int | None, folder: Path):
        self._bar, self._expected, self._folder = bar, expected, folder
        self._total = self._received = 0

    @property
    def total(self) -> int:
        """Bytes that the server announced, 0 if it did not."""
        return self._total

    @total.setter
    def total(self, announced: int) -> None:
        self._total = announced
        if self._expected and announced and announced != self._expected:
            raise _WrongFile(f"the address offers {announced:,} bytes, expected {self._expected:,}")

    def update(self, _: int) -> None:
        """Look at what has come."""
        before, self._received = self._received, sum(part.stat().st_size for part in self._folder.iterdir())
        self._bar.update((self._received - before) / 2**20)
        if self._expected and self._received > self._expected:
            raise _WrongFile(f"more than the expected {self._expected:,} bytes came")

    def reset(self) -> None:
        """Do nothing: what pooch counts anew has been counted."""

    def close(self) -> None:
        """Leave the bar to its owner."""


def _reason(error: Exception) -> str:
    """Say in a few words what went wrong, which requests hides behind several errors."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectTimeout):
        return f"no answer within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(error, requests.RequestException):
        cause = _first_cause(error)
        return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return str(error) or type(error).__name__


def _first_cause(error: BaseException) -> BaseException:
    cause: Any = error
    while (before := cause.__cause__ or cause.__context__) is not None:
        cause = before
    return cause
